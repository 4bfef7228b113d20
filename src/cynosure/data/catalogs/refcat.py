"""Reference catalogues: stars with known positions.

:func:`open_refcat` opens a HATS catalogue (a folder of Parquet files, one for each HEALPix cell;
local, over HTTP or on S3) or a plain table file, and :meth:`RefCat.cone` returns the stars of a
circle in the schema ``REFERENCE``. Of a HATS catalogue only the necessary columns, files and row
groups are read.

HATS: Caplar et al. 2025 and the IVOA note "HATS", version 1.0; HEALPix: Gorski et al. 2005.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cynosure.data.catalogs.check import prepared
from cynosure.data.catalogs.columns import (
    Meaning,
    Pieces,
    catalog_word,
    find_meaning,
    named_by_columns,
)
from cynosure.data.catalogs.coverage import Coverage
from cynosure.data.catalogs.hats import HatsStore
from cynosure.data.catalogs.location import Place
from cynosure.data.catalogs.tablefiles import read_table, table_in_memory
from cynosure.data.tables import REFERENCE, Schema
from cynosure.ground import sky
from cynosure.ground.errors import CatalogMissing, SettingError
from cynosure.ground.settings import Range, Unit

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["RefCat", "open_refcat"]


def open_refcat(
    source: Any, *, name: str | None = None,
    ref_epoch_yr: Annotated[float | None, Unit("yr"), Range(1800, 2200)] = None,
    position_error_mas: Annotated[float | None, Unit("mas"), Range(0, 1e6)] = None,
) -> RefCat:
    """Open a reference catalogue.

    Parameters
    ----------
    source : str, Path, Table, structured array or RefCat
        A HATS catalogue or collection: a folder, or its URL (``https://``, ``s3://``). Or a table
        file: Parquet, FITS (SCAMP's LDAC too), ECSV, CSV, VOTable. A table in memory (astropy,
        Arrow, pandas, or a structured array) is read like such a file, with its units. A RefCat is
        returned unchanged.
    name : str, optional
        The catalogue's short word, as in WCSNAME; by default from its properties or its file name.
    ref_epoch_yr : float, optional
        Julian year of the positions, for rows without one.
    position_error_mas : float, optional
        Error per axis of positions without one. By default 0.5 to 1 mas for Gaia, 60 mas for
        Tycho-2, 100 mas for an unknown catalogue.

    Returns
    -------
    RefCat

    Raises
    ------
    CatalogMissing
        If there is no catalogue.
    CatalogDamaged
        If it contradicts itself, lacks position or magnitude, or has a unit that does not fit the
        quantity.
    """
    if isinstance(source, RefCat):
        return source
    options = (name, ref_epoch_yr, position_error_mas)
    if not isinstance(source, (str, PathLike)):
        return _of_table(table_in_memory(source), "table", *options)
    place = Place(Path(source) if isinstance(source, PathLike) else source)
    if place.is_table():
        with place.local_copy() as path:
            return _open_table(path, str(source), *options)
    store = HatsStore.open(place)
    return _open_hats(store, str(source), *options)


def _open_table(
    path: Path, source: str, name: str | None, ref_epoch_yr: float | None,
    position_error_mas: float | None,
) -> RefCat:
    return _of_table(read_table(path), source, name, ref_epoch_yr, position_error_mas)


def _of_table(
    table: pa.Table, source: str, name: str | None, ref_epoch_yr: float | None,
    position_error_mas: float | None,
) -> RefCat:
    comments = [v.decode("utf-8", "replace") for k, v in (table.schema.metadata or {}).items()
                if k in (b"name", b"comment", b"description")]
    word = catalog_word(name, posixpath.basename(source.rstrip("/")), *comments)
    meaning = find_meaning(
        table.schema, source, word=word, ref_epoch_yr=ref_epoch_yr,
        position_error_mas=position_error_mas,
    )
    table, meaning = prepared(table, meaning)
    store = MemoryStore(table, meaning)
    notes = list(meaning.notes)
    lost = table.num_rows - len(store.rows)
    if lost:
        notes.append(f"{lost} rows without a position are left out")
    if not len(store.rows):
        raise CatalogMissing(catalog=source, reason="the table has no rows")
    if name is None:
        word = named_by_columns(table.schema, store.epoch_yr(), word)
    return RefCat(word, source, meaning, store, tuple(notes))


def _open_hats(
    store: HatsStore, source: str, name: str | None, ref_epoch_yr: float | None,
    position_error_mas: float | None,
) -> RefCat:
    properties = store.properties
    word = catalog_word(
        name, properties.get("cynosure_name"), properties.get("obs_collection"),
        posixpath.basename(source.rstrip("/")),
    )
    meaning = find_meaning(
        store.schema(), source, word=word,
        ref_epoch_yr=_first_number(ref_epoch_yr, properties.get("cynosure_ref_epoch_yr")),
        position_error_mas=_first_number(
            position_error_mas, properties.get("cynosure_position_error_mas")
        ),
        named=store.named_columns(),
    )
    notes = [*meaning.notes, *filter(None, properties.get("cynosure_notes", "").split("; "))]
    return RefCat(word, source, meaning, store, tuple(dict.fromkeys(notes)))


class Store(Protocol):
    """The storage of the stars of a :class:`RefCat`."""

    def cone(
        self, meaning: Meaning, ra_deg: float, dec_deg: float, radius_deg: float,
        mags: tuple[float, float] | None,
    ) -> Pieces:
        """Return the tables and rows of the stars of a circle."""
        ...

    def all(self, meaning: Meaning) -> Pieces:
        """Return the tables and rows of all stars."""
        ...

    def coverage(self) -> Coverage:
        """Return the part of the sky that has stars."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return rows, order and the like for :meth:`RefCat.info`."""
        ...


class RefCat:
    """An open reference catalogue; made by :func:`open_refcat`.

    It can be sent to another process; a HATS catalogue is then opened there again.

    Attributes
    ----------
    name : str
        A short word for headers, such as GAIADR3 or TYCHO2.
    source : str
        Path or URL.
    notes : tuple of str
        Assumptions and corrections, in plain words.
    """

    def __init__(
        self, name: str, source: str, meaning: Meaning, store: Store, notes: tuple[str, ...] = ()
    ):
        self.name = name
        self.source = source
        self.meaning = meaning
        self.store = store
        self.notes = notes
        self._coverage: Coverage | None = None

    def __repr__(self) -> str:
        return f"RefCat({self.name!r}, {self.source!r})"

    def cone(
        self, ra_deg: float, dec_deg: float, radius_deg: float, *, min_mag: float | None = None,
        max_mag: float | None = None, max_rows: int | None = None,
        columns: Iterable[str] | None = None,
    ) -> NDArray[np.void]:
        """Return the stars within a circle, brightest first.

        Parameters
        ----------
        ra_deg, dec_deg, radius_deg : float
            The circle, at the epoch of the catalogue; its edge belongs to it.
        min_mag, max_mag : float, optional
            Only stars at least that faint, and at most that faint. With either, a star of unknown
            magnitude is left out; without, it comes last.
        max_rows : int, optional
            Return only the brightest stars, up to this number. There is no limit by default.
        columns : iterable of str, optional
            Columns of ``REFERENCE`` to return; no more is read than these need. All by default.

        Returns
        -------
        (n,) structured array
            Schema ``REFERENCE``, or that part of it; no rows where there are no stars. The stars
            and their order do not depend on the columns.

        Raises
        ------
        SettingError
            If that is no circle on the sky, or a column is not known.

        Examples
        --------
        >>> import pyarrow as pa, pyarrow.parquet, tempfile
        >>> stars = pa.table({"ra": [10.0, 10.1], "dec": [5.0, 5.0], "phot_g_mean_mag": [9.5, 8.0]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pa.parquet.write_table(stars, folder + "/stars.parquet")
        ...     catalog = open_refcat(folder + "/stars.parquet", ref_epoch_yr=2016.0)
        >>> catalog.cone(10.0, 5.0, 1.0, columns=["ra_deg", "mag"]).tolist()
        [(10.1, 8.0), (10.0, 9.5)]
        """
        circle = _checked_circle(ra_deg, dec_deg, radius_deg)
        mags = _mag_range(min_mag, max_mag)
        schema = REFERENCE if columns is None else REFERENCE.part(columns)
        meaning = self.meaning if columns is None else self.meaning.only(schema.names)
        return self._stars(self.store.cone(meaning, *circle, mags), max_rows, meaning, schema)

    def all(self) -> NDArray[np.void]:
        """Return every star, brightest first, schema ``REFERENCE``."""
        return self._stars(self.store.all(self.meaning), None, self.meaning, REFERENCE)

    def _stars(
        self, pieces: Pieces, max_rows: int | None, meaning: Meaning, schema: Schema
    ) -> NDArray[np.void]:
        if not pieces:
            return schema.empty()
        return meaning.to_reference(pieces, meaning.ranked(pieces, max_rows), schema)

    def coverage(self, ra_deg: float, dec_deg: float, radius_deg: float) -> float:
        """Return the fraction of a circle, by area, where the catalogue has stars.

        It is derived from the cells of the sky that contain stars, which are large enough for a
        dozen or more; at the edge of the catalogue it is therefore a little too large.
        """
        circle = _checked_circle(ra_deg, dec_deg, radius_deg)
        if self._coverage is None:
            self._coverage = self.store.coverage()
        return self._coverage.fraction(*circle)

    def covers(self, ra_deg: float, dec_deg: float, radius_deg: float) -> bool:
        """Say whether the whole circle (98 % of it) lies where the catalogue has stars."""
        return self.coverage(ra_deg, dec_deg, radius_deg) > 0.98

    def info(self) -> dict[str, Any]:
        """Return the properties of the catalogue, safe for JSON; None is unknown."""
        sources = self.meaning.sources
        stored = self.store.facts()
        epoch = stored.pop("epoch_yr", None)
        if epoch is None and math.isfinite(self.meaning.ref_epoch_yr):
            epoch = self.meaning.ref_epoch_yr
        wanted = [n for n in REFERENCE.names if n not in ("good", "color")]
        has_color = "color" in sources or {"bp_mag", "rp_mag"} <= set(sources)
        return {
            "name": self.name, "source": self.source, "epoch_yr": epoch,
            "epoch_column": self.meaning.column("ref_epoch_yr"),
            **stored,
            "columns": {n: sources[n].column for n in wanted if n in sources},
            "unknown": [n for n in wanted if n not in sources] + ([] if has_color else ["color"]),
            "position_error_mas": None if "ra_error_mas" in sources
            else self.meaning.position_error_mas,
            "notes": list(self.notes),
        }


def _checked_circle(ra_deg: float, dec_deg: float, radius_deg: float) -> tuple[float, float, float]:
    ra, dec, radius = float(ra_deg), float(dec_deg), float(radius_deg)
    if not (math.isfinite(ra) and abs(dec) <= 90.0 and 0.0 <= radius < math.inf):
        raise SettingError(
            "ra {ra_deg:g}, dec {dec_deg:g}, radius {radius_deg:g} deg: not a circle on the sky",
            ra_deg=ra, dec_deg=dec, radius_deg=radius,
        )
    return ra % 360.0, dec, min(radius, 180.0)


def _mag_range(min_mag: float | None, max_mag: float | None) -> tuple[float, float] | None:
    if min_mag is None and max_mag is None:
        return None
    return (-math.inf if min_mag is None else min_mag, math.inf if max_mag is None else max_mag)


def _first_number(*values: float | str | None) -> float | None:
    for value in values:
        if value is not None and value != "":
            return float(value)
    return None


# --- a table in memory ----------------------------------------------------------------------------


class MemoryStore:
    """The stars of a table file, kept as they were read.

    Attributes
    ----------
    table : pyarrow.Table
    rows : (n,) ndarray of int64
        Those that have a position.
    """

    def __init__(self, table: pa.Table, meaning: Meaning):
        self.table = table
        self.meaning = meaning
        ra, dec = meaning.values(table, "ra_deg"), meaning.values(table, "dec_deg")
        self.rows = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
        self._ra, self._dec = ra[self.rows], dec[self.rows]
        self._mag = meaning.magnitudes(table, self.rows)

    def cone(
        self, meaning: Meaning, ra_deg: float, dec_deg: float, radius_deg: float,
        mags: tuple[float, float] | None,
    ) -> Pieces:
        """See :class:`Store`."""
        found = sky.rows_within(self._ra, self._dec, ra_deg, dec_deg, radius_deg)
        if mags is not None:
            with np.errstate(invalid="ignore"):
                found = found[(self._mag[found] >= mags[0]) & (self._mag[found] <= mags[1])]
        return [(self.table, self.rows[found])]

    def all(self, meaning: Meaning) -> Pieces:
        """See :class:`Store`."""
        return [(self.table, self.rows)]

    def coverage(self) -> Coverage:
        """See :class:`Store`."""
        return Coverage.of_cells(sky.healpix_cell(self._ra, self._dec))

    def epoch_yr(self) -> float | None:
        """Return the epoch of most positions, None where it is not known."""
        if "ref_epoch_yr" not in self.meaning.sources:
            epoch = self.meaning.ref_epoch_yr
        else:
            epochs = self.meaning.values(self.table, "ref_epoch_yr", self.rows)
            epoch = float(np.nanmedian(epochs)) if np.isfinite(epochs).any() else math.nan
        return epoch if math.isfinite(epoch) else None

    def facts(self) -> dict[str, Any]:
        """See :class:`Store`."""
        known = np.isfinite(self._mag)
        return {
            "kind": "table", "rows": len(self.rows), "partitions": None, "order": None,
            "epoch_yr": self.epoch_yr(),
            "mag_range": [float(self._mag[known].min()), float(self._mag[known].max())]
            if known.any() else None,
            "sky_fraction": self.coverage().sky_fraction,
        }
