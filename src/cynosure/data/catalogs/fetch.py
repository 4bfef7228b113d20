"""Fetch a region of a catalogue, for work offline.

A TAP service (Gaia's, VizieR's, any) is queried by HEALPix cells. The rows of each cell are counted
first, and the answer must have that number of rows; where a service truncates its answer, smaller
cells are queried, so that no row limit can leave out stars silently. From a HATS catalogue only the
necessary partitions, row groups and columns are read. Fetched cells are kept on the disk: an
interrupted fetch continues where it stopped.

TAP: Dowler et al. 2019, IVOA recommendation TAP 1.1 (section 2.7.4 on OVERFLOW).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from cynosure.data.catalogs.build import Progress, build_refcat, check_replaceable
from cynosure.data.catalogs.columns import Meaning, catalog_word, find_meaning
from cynosure.data.catalogs.coverage import Coverage
from cynosure.data.catalogs.hats import HatsStore
from cynosure.data.catalogs.refcat import RefCat, open_refcat
from cynosure.data.catalogs.tablefiles import from_astropy
from cynosure.ground import sky
from cynosure.ground.errors import CatalogDamaged, CatalogMissing, OutputError, Temporary
from cynosure.ground.files import atomic_path, reason_of
from cynosure.ground.settings import Range, Unit

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["GAIA_TAP", "fetch_refcat"]

GAIA_TAP = "https://gea.esac.esa.int/tap-server/tap"
# Gaia's archive answers synchronous queries with at most this many rows.
SYNC_ROWS = 2000
# Gaia's source_id has the cell of order 12 in the bits above these (Gaia DR3 documentation 20.1.1).
SOURCE_ID_SHIFT = 35
DEEPEST_TILE = 12
# Margin around the circle. The cell in Gaia's source_id is of an early position; the star in the
# catalogue may lie in the next cell. 0.01 deg covers a motion of 1"/yr over 36 years.
MARGIN_DEG = 0.01


def fetch_refcat(
    out: str | Path, *, ra_deg: Annotated[float, Unit("deg")],
    dec_deg: Annotated[float, Unit("deg")],
    radius_deg: Annotated[float, Unit("deg"), Range(0, 180)],
    service: str = GAIA_TAP, table: str = "gaiadr3.gaia_source",
    kind: Literal["auto", "tap", "hats"] = "auto",
    max_mag: Annotated[float | None, Unit("mag")] = None, name: str | None = None,
    ref_epoch_yr: Annotated[float | None, Unit("yr")] = None,
    position_error_mas: Annotated[float | None, Unit("mas")] = None,
    mode: Literal["auto", "sync", "async"] = "auto",
    max_rows_per_query: Annotated[int, Unit("rows"), Range(1, 10_000_000)] = 200_000,
    retries: int = 4, cache: str | Path | None = None, overwrite: bool = False,
    progress: Progress | None = None,
) -> RefCat:
    """Fetch the stars of a circle on the sky and build a local catalogue of them.

    Parameters
    ----------
    out : path
        The HATS folder to make.
    ra_deg, dec_deg, radius_deg : float
        The circle.
    service : str
        URL of a TAP service, or URL or folder of a HATS catalogue.
    table : str
        Table of the TAP service, in double quotes where its name needs them.
    kind : str
        What the service is: "tap", "hats", or "auto": an ``http`` URL with a part "tap" is a TAP.
    max_mag : float, optional
        Only stars at least that bright.
    name : str, optional
        The catalogue's name; by default it is derived from that of the table.
    ref_epoch_yr, position_error_mas : float, optional
        For rows without a value of their own.
    mode : str
        Mode of the TAP queries: "sync", "async", or "auto", which is sync up to 2000 rows.
    max_rows_per_query : int
        A cell with more stars is queried in four parts.
    retries : int
        How often a query is repeated where the network fails, after 1, 2, 4, ... seconds.
    cache : path, optional
        Folder of the fetched cells. By default a folder beside `out` that is removed at the end; a
        folder that is given is not removed, and later fetches use it too.
    overwrite : bool
        Whether an existing catalogue may be replaced.
    progress : callable, optional
        Called with (number done, total, name of the step).

    Returns
    -------
    RefCat
        The new catalogue, opened.

    Raises
    ------
    CatalogMissing
        If the service has no such table, or no star in the circle.
    CatalogDamaged
        If a service returns another number of rows than it counts, even in the smallest cells.
    Temporary
        If the network or the service fails; the fetched cells are kept for another attempt.
    OutputExists, OutputError
        If `out` exists, or cannot be written.
    """
    out = Path(out)
    check_replaceable(out, overwrite)
    tell = progress or (lambda done, total, what: None)
    keep = Path(cache) if cache is not None else out.parent / f".{out.name}.fetch"
    circle = (float(ra_deg) % 360.0, float(dec_deg), float(radius_deg))
    if _is_tap(service, kind):
        source: _TapSource | _HatsSource = _TapSource(
            _Tap(service, retries), table, circle, max_mag, mode, max_rows_per_query, keep
        )
    else:
        source = _HatsSource(service, circle, max_mag, keep)
    with _kept(keep):
        files = source.fetch(tell)
    properties = {
        "cynosure_region": f"circle {circle[0]:.6f} {circle[1]:.6f} {circle[2]:.6f}",
        "cynosure_moc": source.coverage.to_text(),
        "moc_sky_fraction": f"{source.coverage.sky_fraction:.6g}",
        "cynosure_origin": source.origin,
    }
    if max_mag is not None:
        properties["cynosure_max_mag"] = f"{max_mag:g}"
    if not files:
        raise CatalogMissing(catalog=source.origin, reason="it has no stars there")
    epoch = source.epoch_yr if ref_epoch_yr is None else ref_epoch_yr
    catalog = build_refcat(
        files, out, name=name or source.name, ref_epoch_yr=epoch,
        position_error_mas=position_error_mas, overwrite=overwrite, properties=properties,
    )
    if cache is None:
        shutil.rmtree(keep, ignore_errors=True)
    return catalog


def _is_tap(service: str, kind: str) -> bool:
    if kind != "auto":
        return kind == "tap"
    return service.startswith("http") and "tap" in service.lower().split("?")[0].split("/")


@contextlib.contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Make the folder of the fetched cells; an error says that it is kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except Temporary as error:
        raise Temporary(
            error.message, resource=error.facts["resource"], reason=error.facts["reason"],
            hint=f"Run it again: what has come is kept in {folder}.",
        ) from error
    except OSError as error:
        raise OutputError(path=str(folder), reason=reason_of(error)) from error


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _store(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    with atomic_path(path, overwrite=True) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _rows_of(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


# --- TAP ------------------------------------------------------------------------------------------


class _Tap:
    """A TAP service, with repeated attempts where the network fails."""

    def __init__(self, url: str, retries: int, pause_s: float = 1.0):
        self.url = url
        self.retries = retries
        self.pause_s = pause_s
        self._service: Any = None
        self._session: Any = None
        self._answers: list[Any] = []

    def table(self, query: str, max_rows: int, asynchronous: bool = False) -> tuple[pa.Table, bool]:
        """Return the answer to a query, and whether the service reports that it is truncated."""
        for attempt in range(self.retries + 1):
            try:
                return self._ask(query, max_rows, asynchronous)
            except _network_errors() as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                if attempt == self.retries:
                    raise Temporary(resource=self.url, reason=reason) from error
                time.sleep(self.pause_s * 2**attempt)
        raise AssertionError("unreachable")

    def _ask(self, query: str, max_rows: int, asynchronous: bool) -> tuple[pa.Table, bool]:
        from astropy.utils.exceptions import AstropyWarning
        from pyvo.dal import DALOverflowWarning, DALQueryError

        with warnings.catch_warnings():
            for category in (AstropyWarning, DALOverflowWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)
            try:
                service = self._connected()
                if asynchronous:
                    result = service.run_async(query, maxrec=max_rows)
                else:
                    result = service.run_sync(query, maxrec=max_rows)
                return from_astropy(result.to_table()), _overflown(result)
            except DALQueryError as error:
                raise CatalogMissing(
                    catalog=self.url, reason=f"the service refuses the query: {error.reason}",
                    hint=f"The query was: {query}",
                ) from error
            finally:
                self.close()

    def close(self) -> None:
        """Close the responses, which pyvo leaves open."""
        for response in self._answers:
            response.close()
        self._answers.clear()
        if self._session is not None:
            self._session.close()

    def _connected(self) -> Any:
        if self._service is None:
            try:
                import requests
                from pyvo.dal import TAPService
            except ImportError as error:
                raise CatalogMissing(
                    catalog=self.url, reason=f"{error.name} is not installed",
                    hint="Install the network extra: pip install 'cynosure[online]'.",
                ) from error

            answers = self._answers

            class Session(requests.Session):
                """A session with timeouts that keeps its responses, to close them."""

                def request(self, *args: Any, **kwargs: Any) -> Any:
                    kwargs["timeout"] = kwargs.get("timeout") or (20, 300)
                    answers.append(super().request(*args, **kwargs))
                    return answers[-1]

            self._session = Session()
            self._service = TAPService(self.url, session=self._session)
        return self._service


def _network_errors() -> tuple[type[BaseException], ...]:
    from xml.parsers.expat import ExpatError

    found: list[type[BaseException]] = [OSError, ExpatError]
    with contextlib.suppress(ImportError):
        import urllib3
        from pyvo.dal import DALFormatError, DALServiceError

        found += [urllib3.exceptions.HTTPError, DALFormatError, DALServiceError]
    return tuple(found)


def _overflown(result: Any) -> bool:
    """Say whether a status of an answer is OVERFLOW, before or after the rows."""
    votable = result.votable
    infos = list(votable.infos)
    for resource in votable.resources:
        infos += list(resource.infos)
        for table in resource.tables:
            infos += list(table.infos)
    return any(
        (i.name or "").upper() == "QUERY_STATUS" and (i.value or "").upper() == "OVERFLOW"
        for i in infos
    )


@dataclass(frozen=True, slots=True, order=True)
class _Tile:
    """A cell of the sky that is queried."""

    order: int
    pixel: int

    def quarters(self) -> list[_Tile]:
        return [_Tile(self.order + 1, 4 * self.pixel + k) for k in range(4)]


class _TapSource:
    """The stars of a circle from a table of a TAP service."""

    def __init__(
        self, tap: _Tap, table: str, circle: tuple[float, float, float], max_mag: float | None,
        mode: str, max_rows: int, keep: Path,
    ):
        self.tap = tap
        self.table = table
        self.max_mag = max_mag
        self.mode = mode
        self.max_rows = max_rows
        self.name = catalog_word(table.replace('"', ""), tap.url)
        self.origin = f"{tap.url} {table}"
        self.epoch_yr: float | None = None
        ra, dec, radius = circle
        order = 3
        while order < 9 and sky.healpix_radius_deg(order) > max(radius, 0.05):
            order += 1
        cells = sky.cone_cells(ra, dec, radius + MARGIN_DEG, order)
        self.tiles = [_Tile(order, int(c)) for c in cells]
        self.coverage = Coverage.of_order(cells, order)
        self.keep = keep
        self._meaning: Meaning | None = None

    def fetch(self, tell: Callable[[int, int, str], None]) -> list[Path]:
        """Fetch all tiles; return the files of those that have stars."""
        meaning = self._columns()
        folder = self.keep / _key(self.tap.url, self.table, meaning.columns, self.max_mag)
        folder.mkdir(exist_ok=True)
        files: list[Path] = []
        todo = list(reversed(self.tiles))
        done = 0
        while todo:
            tile = todo.pop()
            total = done + len(todo) + 1
            tell(done, total, f"cell {tile.order}/{tile.pixel}")
            path = folder / f"tile-{tile.order}-{tile.pixel}.parquet"
            if path.exists() or self._fetched(tile, path, meaning):
                done += 1
                if _rows_of(path):
                    files.append(path)
            else:
                todo += reversed(tile.quarters())
        return sorted(files)

    def _columns(self) -> Meaning:
        """Query one row with all columns, for their names and units."""
        path = self.keep / f"columns-{_key(self.tap.url, self.table)}.parquet"
        if not path.exists():
            row, _ = self.tap.table(f"SELECT TOP 1 * FROM {self.table}", 1)
            _store(path, row)
        import pyarrow.parquet as pq

        return find_meaning(pq.read_schema(path), self.origin, word=self.name)

    def _fetched(self, tile: _Tile, path: Path, meaning: Meaning) -> bool:
        """Fetch a tile; return False where it must be queried in quarters."""
        where, exact = self._where(tile, meaning)
        counted, _ = self.tap.table(f"SELECT COUNT(*) AS n FROM {self.table} WHERE {where}", 1)
        n = int(counted.column(0)[0].as_py())
        if n > self.max_rows and tile.order < DEEPEST_TILE:
            return False
        columns = ", ".join(_quoted(c) for c in meaning.columns)
        asynchronous = self.mode == "async" or (self.mode == "auto" and n > SYNC_ROWS)
        query = f"SELECT {columns} FROM {self.table} WHERE {where}"
        rows, overflow = self.tap.table(query, n + 1, asynchronous)
        if overflow or rows.num_rows != n:
            if tile.order < DEEPEST_TILE:
                return False
            raise CatalogDamaged(
                "{catalog}: the service counts {n} rows in cell {order}/{pixel} but gives {given}",
                catalog=self.origin, n=n, order=tile.order, pixel=tile.pixel, given=rows.num_rows,
                hint="Try again later, or another service.",
            )
        if not exact:
            ra, dec = meaning.values(rows, "ra_deg"), meaning.values(rows, "dec_deg")
            import pyarrow as pa

            rows = rows.filter(pa.array(sky.healpix_cell(ra, dec, tile.order) == tile.pixel))
        _store(path, rows)
        return True

    def _where(self, tile: _Tile, meaning: Meaning) -> tuple[str, bool]:
        """Return the condition for a tile, and whether it is the tile exactly."""
        exact = meaning.column("ref_id") == "source_id" and "gaia" in self.table.lower()
        if exact:
            shift = 2 * (DEEPEST_TILE - tile.order) + SOURCE_ID_SHIFT
            low, high = tile.pixel << shift, ((tile.pixel + 1) << shift) - 1
            where = f"source_id BETWEEN {low} AND {high}"
        else:
            center = sky.radec(sky.healpix_center(tile.pixel, tile.order))
            ra, dec = (_quoted(str(meaning.column(r))) for r in ("ra_deg", "dec_deg"))
            radius = sky.healpix_radius_deg(tile.order) + 1e-6
            where = (
                f"1=CONTAINS(POINT('ICRS', {ra}, {dec}), "
                f"CIRCLE('ICRS', {center[0]:.9f}, {center[1]:.9f}, {radius:.9f}))"
            )
        if self.max_mag is not None:
            where += f" AND {_quoted(str(meaning.column('mag')))} <= {self.max_mag:g}"
        return where, exact


def _quoted(column: str) -> str:
    return column if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", column) else f'"{column}"'


# --- HATS -----------------------------------------------------------------------------------------


class _HatsSource:
    """The stars of a circle from another HATS catalogue."""

    def __init__(
        self, url: str, circle: tuple[float, float, float], max_mag: float | None, keep: Path
    ):
        self.catalog = open_refcat(url)
        if not isinstance(self.catalog.store, HatsStore):
            raise CatalogMissing(
                catalog=url, reason="a table, not a HATS catalogue", hint="Use `refcat build`."
            )
        self.store = self.catalog.store
        self.circle = circle
        self.max_mag = max_mag
        self.name = self.catalog.name
        self.origin = url
        epoch = self.catalog.meaning.ref_epoch_yr
        self.epoch_yr = float(epoch) if np.isfinite(epoch) else None
        self.keep = keep
        order = 0
        while order < 20 and sky.healpix_radius_deg(order) > max(circle[2], 1e-4) / 20.0:
            order += 1
        cells = sky.cone_cells(*circle, order)
        inside = sky.rows_within(*sky.radec(sky.healpix_center(cells, order)), *circle)
        self.coverage = Coverage.of_order(cells[inside], order)

    def fetch(self, tell: Callable[[int, int, str], None]) -> list[Path]:
        """Return the files of all partitions that have stars in the circle."""
        meaning = self.catalog.meaning
        ranges = sky.cone_ranges(*self.circle)
        parts = self.store.overlapping(ranges)
        folder = self.keep / _key(self.origin, meaning.columns, self.max_mag, self.circle)
        folder.mkdir(exist_ok=True)
        files = []
        for done, k in enumerate(parts.tolist()):
            order, pixel = int(self.store.orders[k]), int(self.store.pixels[k])
            tell(done, len(parts), f"partition {order}/{pixel}")
            path = folder / f"part-{order}-{pixel}.parquet"
            if not path.exists():
                _store(path, self._part(k, meaning, ranges))
            if _rows_of(path):
                files.append(path)
        return files

    def _part(self, k: int, meaning: Meaning, ranges: Any) -> pa.Table:
        import pyarrow as pa

        pieces = []
        for table in self.store.read(k, meaning.columns, ranges):
            ra, dec = meaning.values(table, "ra_deg"), meaning.values(table, "dec_deg")
            keep = np.zeros(table.num_rows, dtype=bool)
            keep[sky.rows_within(ra, dec, *self.circle)] = True
            if self.max_mag is not None:
                with np.errstate(invalid="ignore"):
                    keep &= meaning.magnitudes(table) <= self.max_mag
            pieces.append(table.filter(pa.array(keep)))
        if pieces:
            return pa.concat_tables(pieces)
        schema = self.store.schema()
        return pa.schema([schema.field(c) for c in meaning.columns]).empty_table()
