"""HATS catalogues as they lie on disk, on a web server or in a bucket.

A HATS catalogue is a folder: ``hats.properties`` (or ``properties``), ``partition_info.csv``, and
for each cell of an adaptive HEALPix grid one Parquet file
``dataset/Norder=5/Dir=10000/Npix=12321.parquet`` whose rows are sorted by ``_healpix_29``, their
cell of order 29. A collection is a folder of such folders with ``collection.properties``.
"""

from __future__ import annotations

import contextlib
import math
import posixpath
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.reftables import INDEX_COLUMNS, Meaning
from cynosure.data.tables import REFERENCE
from cynosure.ground import sky
from cynosure.ground.errors import CatalogDamaged, CatalogMissing, Temporary

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["Coverage", "HatsStore", "Place", "partition_path", "read_properties"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TABLE_SUFFIXES = (
    ".parquet", ".parq", ".pq", ".fits", ".fit", ".fts", ".fits.gz", ".ecsv", ".csv", ".csv.gz",
    ".ecsv.gz", ".vot", ".votable", ".xml", ".cat", ".ldac",
)
REMOTE_THREADS = 8
FOOTERS_KEPT = 512


def partition_path(order: int, pixel: int, suffix: str = ".parquet") -> str:
    """Return where the file (or folder, with suffix "/") of a partition lies in a catalogue."""
    folder = 10000 * (pixel // 10000)
    return f"dataset/Norder={order}/Dir={folder}/Npix={pixel}{suffix}".rstrip("/")


def read_properties(text: str) -> dict[str, str]:
    """Read a file of ``key=value`` lines; ``#`` and ``!`` start a comment.

    Examples
    --------
    >>> read_properties("#HATS catalog" + chr(10) + "hats_nrows = 12")
    {'hats_nrows': '12'}
    """
    found = {}
    for line in text.replace("\\\n", "").splitlines():
        line = line.strip()
        if not line or line[0] in "#!":
            continue
        cut = min((i for i in (line.find("="), line.find(":")) if i > 0), default=-1)
        if cut > 0:
            value = line[cut + 1 :].strip()
            for escaped, plain in (("\\:", ":"), ("\\=", "="), ("\\#", "#"), ("\\\\", "\\")):
                value = value.replace(escaped, plain)
            found[line[:cut].strip()] = value
    return found


# --- local or remote ------------------------------------------------------------------------------


class Place:
    """A folder or file, local or behind a URL.

    Attributes
    ----------
    text : str
        What messages call it.
    root : str
        The path, without a slash at its end.
    fs : fsspec filesystem or None
        None is the local disk.
    """

    def __init__(self, source: str | Path, fs: Any = None):
        self.text = str(source)
        self.fs = fs
        self.root = self.text.rstrip("/") or "/"
        if fs is None and isinstance(source, str) and "://" in source:
            if source.startswith("file://"):
                self.root = source[len("file://") :].rstrip("/")
            else:
                self.fs, self.root = _filesystem(source)

    def at(self, name: str) -> str:
        """Return the path of a file in it."""
        return f"{self.root}/{name}"

    def child(self, name: str) -> Place:
        """Return a folder in it, or the place that an absolute name names."""
        if "://" in name or name.startswith("/"):
            return Place(name)
        place = Place.__new__(Place)
        place.fs, place.root = self.fs, posixpath.normpath(f"{self.root}/{name}")
        if self.fs is not None and "://" in self.root:
            place.root = f"{self.root}/{name.strip('/')}"
        place.text = f"{self.text.rstrip('/')}/{name}"
        return place

    def is_table(self) -> bool:
        """Say whether it is one file rather than a folder."""
        if self.fs is None:
            path = Path(self.root)
            if not path.exists():
                raise CatalogMissing(catalog=self.text, reason="there is no such file or folder")
            return path.is_file()
        return self.root.lower().split("?")[0].endswith(TABLE_SUFFIXES)

    def read_text(self, name: str) -> str | None:
        """Return a small file's text; None where there is no such file."""
        path = self.at(name)
        try:
            with self.errors(path):
                if self.fs is None:
                    return Path(path).read_text(encoding="utf-8")
                return self.fs.cat_file(path).decode("utf-8")
        except CatalogMissing:
            return None

    def names(self, name: str) -> list[str]:
        """Return the sorted names in a folder in it."""
        path = self.at(name)
        with self.errors(path):
            if self.fs is None:
                return sorted(p.name for p in Path(path).iterdir())
            return sorted(posixpath.basename(p.rstrip("/")) for p in self.fs.ls(path, detail=False))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """Open a file for pyarrow: a path if it is local, else a stream that reads by ranges."""
        path = self.at(name)
        with self.errors(path):
            if self.fs is None:
                yield path
            else:
                # No read-ahead: pyarrow asks for just the bytes it needs.
                with self.fs.open(path, "rb", cache_type="none") as stream:
                    yield stream

    @contextlib.contextmanager
    def local_copy(self) -> Iterator[Path]:
        """Give the file as a local one."""
        if self.fs is None:
            yield Path(self.root)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / posixpath.basename(self.root)
            with self.errors(self.root):
                self.fs.get_file(self.root, str(path))
            yield path

    @contextlib.contextmanager
    def errors(self, path: str) -> Iterator[None]:
        """Turn what goes wrong with a file into errors with facts."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise CatalogMissing(catalog=str(path), reason="there is no such file") from error
        except PermissionError as error:
            raise CatalogMissing(catalog=str(path), reason="it may not be read") from error
        except _network_errors(self.fs) as error:
            reason = str(error).strip().splitlines()
            raise Temporary(
                resource=str(path), reason=reason[0] if reason else type(error).__name__
            ) from error
        except _damage_errors() as error:
            reason = str(error).strip().splitlines()
            raise CatalogDamaged(
                catalog=str(path), reason=f"not a Parquet file that can be read ({reason[0] if reason else '?'})"
            ) from error


def _filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL, and the path in it."""
    import os

    try:
        from fsspec.core import url_to_fs

        options: dict[str, Any] = {}
        if url.startswith("s3://") and not any(k.startswith("AWS_") for k in os.environ):
            options["anon"] = True  # public buckets, which is where catalogues are
        fs, root = url_to_fs(url, **options)
    except ImportError as error:
        raise CatalogMissing(
            catalog=url, reason=f"{error.name} is not installed",
            hint="Install the network extra: pip install 'cynosure[online]'.",
        ) from error
    except ValueError as error:
        raise CatalogMissing(catalog=url, reason=str(error)) from error
    return fs, root.rstrip("/")


def _network_errors(fs: Any) -> tuple[type[BaseException], ...]:
    if fs is None:
        return (TimeoutError,)
    found: list[type[BaseException]] = [OSError, TimeoutError]
    with contextlib.suppress(ImportError):
        import aiohttp

        found.append(aiohttp.ClientError)
    with contextlib.suppress(ImportError):
        import botocore.exceptions

        found.append(botocore.exceptions.BotoCoreError)
    return tuple(found)


def _damage_errors() -> tuple[type[BaseException], ...]:
    import pyarrow as pa

    return (pa.ArrowException, OSError, UnicodeDecodeError, EOFError)


# --- the catalogue --------------------------------------------------------------------------------


class HatsStore:
    """The partitions of a HATS catalogue.

    Attributes
    ----------
    place : Place
    properties : dict
        Its ``hats.properties``.
    orders, pixels : (p,) ndarray of int64
        The partitions, in the order of the sky.
    """

    def __init__(self, place: Place, properties: dict[str, str], orders: Integers, pixels: Integers):
        self.place = place
        self.properties = properties
        shift = 2 * (sky.MAX_ORDER - orders)
        rank = np.argsort(pixels << shift, kind="stable")
        self.orders, self.pixels = orders[rank], pixels[rank]
        self._first = self.pixels << shift[rank]
        self._last = (self.pixels + 1) << shift[rank]
        self.suffix = properties.get("hats_npix_suffix", ".parquet")
        self.index_order = int(properties.get("hats_col_healpix_order", sky.MAX_ORDER))
        self._footers: dict[str, pq.FileMetaData] = {}
        self._schema: pa.Schema | None = None
        self._checked = False

    @classmethod
    def open(cls, place: Place) -> HatsStore:
        """Open a catalogue, or the main catalogue of a collection.

        Raises
        ------
        CatalogMissing
            If there is none.
        CatalogDamaged
            If its properties or its list of partitions cannot be read.
        """
        text = place.read_text("hats.properties") or place.read_text("properties")
        if text is None:
            collection = place.read_text("collection.properties")
            if collection is None:
                raise CatalogMissing(
                    catalog=place.text,
                    reason="not a HATS catalogue (no hats.properties, properties or collection.properties)",
                )
            main = read_properties(collection).get("hats_primary_table_url")
            if not main:
                raise CatalogDamaged(
                    catalog=place.text, reason="collection.properties names no hats_primary_table_url"
                )
            return cls.open(place.child(main))
        properties = read_properties(text)
        kind = properties.get("dataproduct_type", "object")
        if kind not in ("object", "source"):
            raise CatalogMissing(
                catalog=place.text, reason=f"a HATS {kind}, not a catalogue of objects",
                hint="Give the folder of the main catalogue, or of the collection.",
            )
        orders, pixels = _partitions(place)
        return cls(place, properties, orders, pixels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_footers": {}}

    def schema(self) -> pa.Schema:
        """Return column names, types and units."""
        if self._schema is None:
            import pyarrow.parquet as pq

            if self.place.fs is None and not Path(self.place.at("dataset/_common_metadata")).exists():
                names = self._files(0)
            else:
                names = ["dataset/_common_metadata"]
            try:
                with self.place.open(names[0]) as source:
                    self._schema = pq.read_schema(source)
            except CatalogMissing:
                with self.place.open(self._files(0)[0]) as source:
                    self._schema = pq.read_schema(source)
            self._schema = _without_index_metadata(self._schema)
        return self._schema

    def _files(self, k: int) -> list[str]:
        """Return the files of a partition."""
        name = partition_path(int(self.orders[k]), int(self.pixels[k]), self.suffix)
        if self.suffix != "/":
            return [name]
        return [f"{name}/{n}" for n in self.place.names(name) if not n.startswith(("_", "."))]

    def overlapping(self, ranges: Integers) -> Integers:
        """Return the numbers of the partitions that share a cell of order 29 with the ranges."""
        if len(ranges) == 0:
            return np.zeros(0, dtype=np.int64)
        # The first range that ends after the partition begins must begin before it ends.
        k = np.searchsorted(ranges[:, 1], self._first, side="right")
        found = k < len(ranges)
        found[found] = ranges[k[found], 0] < self._last[found]
        return np.flatnonzero(found)

    def read(self, k: int, columns: list[str] | None, ranges: Integers | None) -> list[pa.Table]:
        """Read the row groups of a partition that may hold rows in the ranges.

        Parameters
        ----------
        k : int
            Number of the partition.
        columns : list of str, optional
            Only these.
        ranges : (r, 2) ndarray of int64, optional
            Cells of order 29, [first, last); None is all.
        """
        import pyarrow.parquet as pq

        tables = []
        for name in self._files(k):
            with self.place.open(name) as source:
                file = pq.ParquetFile(source, metadata=self._footers.get(name),
                                      pre_buffer=self.place.fs is not None)
                if len(self._footers) < FOOTERS_KEPT:
                    self._footers[name] = file.metadata
                groups = self._groups(file.metadata, ranges)
                if columns is not None:
                    self._require(file.metadata, columns, name)
                if groups:
                    tables.append(file.read_row_groups(groups, columns=columns))
        return tables

    def _require(self, footer: pq.FileMetaData, columns: list[str], name: str) -> None:
        have = set(footer.schema.to_arrow_schema().names)
        missing = [c for c in columns if c not in have]
        if missing:
            raise CatalogDamaged(
                catalog=self.place.at(name), reason=f"columns missing: {', '.join(missing)}"
            )

    def _groups(self, footer: pq.FileMetaData, ranges: Integers | None) -> list[int]:
        n = footer.num_row_groups
        column = next(
            (i for i in range(footer.num_columns) if footer.schema.column(i).path in self._index_names()), None
        )
        if ranges is None or n <= 1 or column is None:
            return list(range(n))
        kept = []
        for i in range(n):
            statistics = footer.row_group(i).column(column).statistics
            if statistics is None or not statistics.has_min_max:
                kept.append(i)
                continue
            low, high = self._cells29(statistics.min), self._cells29(statistics.max, last=True)
            k = int(np.searchsorted(ranges[:, 1], low, side="right"))
            if k < len(ranges) and ranges[k, 0] <= high:
                kept.append(i)
        return kept

    def _index_names(self) -> tuple[str, ...]:
        named = self.properties.get("hats_col_healpix")
        return (named,) if named else INDEX_COLUMNS

    def _cells29(self, value: int, last: bool = False) -> int:
        """Return the first (or last) cell of order 29 of a value of the index column."""
        order = self.index_order
        if self._hipscat():
            value, order = int(value) >> 22, 19
        shift = 2 * (sky.MAX_ORDER - order)
        return ((int(value) + 1) << shift) - 1 if last else int(value) << shift

    def _hipscat(self) -> bool:
        """Say whether the index is that of the format's ancestor: cell of order 19, a counter."""
        names = self.schema().names
        return "_healpix_29" not in names and "_hipscat_index" in names

    def cone(
        self, meaning: Meaning, ra_deg: float, dec_deg: float, radius_deg: float,
        mags: tuple[float, float] | None,
    ) -> NDArray[np.void]:
        """Return the stars of a circle and a magnitude range, in the order of the sky."""
        ranges = sky.cone_ranges(ra_deg, dec_deg, radius_deg)
        columns = meaning.columns

        def stars_of(k: int) -> list[NDArray[np.void]]:
            return [
                self._stars(meaning, table, (ra_deg, dec_deg, radius_deg), mags)
                for table in self.read(k, columns, ranges)
            ]

        return self._gathered(stars_of, self.overlapping(ranges))

    def all(self, meaning: Meaning) -> NDArray[np.void]:
        """Return all stars, in the order of the sky."""
        columns = meaning.columns
        return self._gathered(
            lambda k: [self._stars(meaning, t, None, None) for t in self.read(k, columns, None)],
            np.arange(len(self.pixels)),
        )

    def _gathered(
        self, stars_of: Callable[[int], list[NDArray[np.void]]], parts: Integers
    ) -> NDArray[np.void]:
        if self.place.fs is not None and len(parts) > 1:
            with ThreadPoolExecutor(REMOTE_THREADS) as pool:
                pieces = list(pool.map(stars_of, map(int, parts)))
        else:
            pieces = [stars_of(int(k)) for k in parts]
        flat = [stars for piece in pieces for stars in piece]
        return np.concatenate(flat) if flat else REFERENCE.empty()

    def _stars(
        self, meaning: Meaning, table: pa.Table, circle: tuple[float, float, float] | None,
        mags: tuple[float, float] | None,
    ) -> NDArray[np.void]:
        ra, dec = meaning.values(table, "ra_deg"), meaning.values(table, "dec_deg")
        if not self._checked:
            self._check_cells(meaning, table, ra, dec)
            self._checked = True
        if circle is None:
            return meaning.to_reference(table, np.flatnonzero(np.isfinite(ra) & np.isfinite(dec)))
        rows = sky.rows_within(ra, dec, *circle)
        if mags is not None:
            mag = meaning.values(table, "mag", rows)
            with np.errstate(invalid="ignore"):
                rows = rows[(mag >= mags[0]) & (mag <= mags[1])]
        return meaning.to_reference(table, rows)

    def _check_cells(self, meaning: Meaning, table: pa.Table, ra: Floats, dec: Floats) -> None:
        """Hold positions against the cells they are filed under: units that drifted show here."""
        name = meaning.index_column
        if name is None or name not in table.column_names or len(ra) == 0 or self._hipscat():
            return
        rows = np.linspace(0, len(ra) - 1, min(len(ra), 64)).astype(np.int64)
        cells = table.column(name).to_numpy()[rows].astype(np.int64)
        far = sky.separation_deg(
            ra[rows] % 360.0, dec[rows], *sky.radec(sky.healpix_center(cells, self.index_order))
        )
        limit = 2.0 * sky.healpix_radius_deg(self.index_order) + 1e-5
        if np.mean(far > limit) > 0.5:
            raise CatalogDamaged(
                catalog=self.place.text,
                reason=f"positions in {meaning.column('ra_deg')!r} and {meaning.column('dec_deg')!r} are "
                f"{float(np.median(far)):.3g} deg from the cells in {name!r}: not degrees, or not the columns it was built from",
            )

    def coverage(self) -> Coverage:
        """Return where there are stars: as it was recorded at building, else the partitions."""
        text = self.properties.get("cynosure_moc")
        if text:
            return Coverage.from_text(text)
        return Coverage.of_order(self.pixels, self.orders)

    def facts(self) -> dict[str, Any]:
        """Return rows, order, magnitude range and sky fraction, None where it is not recorded."""
        known = self.properties.get
        mags = known("cynosure_mag_range")
        rows = known("hats_nrows")
        fraction = self.coverage().sky_fraction if known("cynosure_moc") else None
        if fraction is None:
            fraction = float(known("moc_sky_fraction") or self.coverage().sky_fraction)
        epoch = known("cynosure_epoch_yr")
        return {
            "kind": "hats", "rows": int(rows) if rows else None, "partitions": len(self.pixels),
            "order": [int(self.orders.min()), int(self.orders.max())] if len(self.orders) else None,
            "epoch_yr": float(epoch) if epoch else None,
            "mag_range": [float(m) for m in mags.split()] if mags else None,
            "sky_fraction": fraction,
        }


def _without_index_metadata(schema: pa.Schema) -> pa.Schema:
    metadata = {k: v for k, v in (schema.metadata or {}).items() if k != b"pandas"}
    return schema.with_metadata(metadata)


def _partitions(place: Place) -> tuple[Integers, Integers]:
    """Read the list of partitions, or where there is none tell it from ``dataset/_metadata``."""
    text = place.read_text("partition_info.csv")
    try:
        if text is not None:
            lines = [line.split(",") for line in text.split()]
            heads = [h.strip().lower() for h in lines[0]]
            i, j = heads.index("norder"), heads.index("npix")
            found = np.array([(row[i], row[j]) for row in lines[1:]], dtype=float).astype(np.int64)
        else:
            found = np.array(_metadata_partitions(place), dtype=np.int64)
        found = found.reshape(-1, 2)
    except (ValueError, IndexError) as error:
        raise CatalogDamaged(
            catalog=place.at("partition_info.csv"), reason="not a list of Norder,Npix"
        ) from error
    orders, pixels = found[:, 0], found[:, 1]
    if np.any((orders < 0) | (orders > sky.MAX_ORDER) | (pixels < 0)) or np.any(
        pixels >= 12 * 4.0**orders
    ):
        raise CatalogDamaged(
            catalog=place.at("partition_info.csv"), reason="a partition is not a HEALPix cell"
        )
    return orders, pixels


def _metadata_partitions(place: Place) -> list[tuple[int, int]]:
    import re

    import pyarrow.parquet as pq

    with place.open("dataset/_metadata") as source:
        footer = pq.read_metadata(source)
    paths = {footer.row_group(i).column(0).file_path for i in range(footer.num_row_groups)}
    matches = [re.search(r"Norder=(\d+)/.*Npix=(\d+)", p) for p in sorted(paths)]
    return [(int(m.group(1)), int(m.group(2))) for m in matches if m]


# --- where there are stars ------------------------------------------------------------------------


class Coverage:
    """A part of the sky as ranges of HEALPix cells of order 29.

    Attributes
    ----------
    ranges : (k, 2) ndarray of int64
        [first, last), sorted and apart.
    """

    # A cell counts as covered where there is a star in it; it is chosen so large that the mean
    # cell has this many, and an empty cell inside the field is then unlikely (e^-24).
    STARS_PER_CELL = 24
    MAX_RANGES = 2000

    def __init__(self, ranges: NDArray[np.int64]):
        self.ranges = np.asarray(ranges, dtype=np.int64).reshape(-1, 2)

    @classmethod
    def of_cells(cls, cells29: NDArray[np.int64]) -> Coverage:
        """Tell it from the cells (order 29) of the stars."""
        cells = np.unique(cells29 >> (2 * (sky.MAX_ORDER - 12)))
        order = 12
        while order > 0 and len(cells29) < cls.STARS_PER_CELL * len(cells):
            cells, order = np.unique(cells >> 2), order - 1
        found = cls.of_order(cells, order)
        while len(found.ranges) > cls.MAX_RANGES:
            cells, order = np.unique(cells >> 2), order - 1
            found = cls.of_order(cells, order)
        return found

    @classmethod
    def of_order(cls, cells: NDArray[np.int64], order: Any) -> Coverage:
        """Make it of cells of one order, or of one order each."""
        shift = 2 * (sky.MAX_ORDER - np.asarray(order, dtype=np.int64))
        cells = np.asarray(cells, dtype=np.int64)
        return cls(_merged(np.stack([cells << shift, (cells + 1) << shift], axis=1)))

    @classmethod
    def from_text(cls, text: str) -> Coverage:
        """Read what :meth:`to_text` wrote: a MOC in ASCII, of one order or several."""
        ranges = []
        order = 0
        for token in text.replace(",", " ").split():
            if "/" in token:
                head, token = token.split("/", 1)
                order = int(head)
            if token:
                first, _, last = token.partition("-")
                shift = 2 * (sky.MAX_ORDER - order)
                ranges.append((int(first) << shift, (int(last or first) + 1) << shift))
        return cls(_merged(np.array(ranges, dtype=np.int64).reshape(-1, 2)))

    def to_text(self) -> str:
        """Write it as a MOC in ASCII (IVOA MOC 2.0, 4.2.2), of the one order that holds it."""
        order = sky.MAX_ORDER
        while order > 0 and not np.any(self.ranges & ((4 << (2 * (sky.MAX_ORDER - order))) - 1)):
            order -= 1
        shift = 2 * (sky.MAX_ORDER - order)
        spans = [(int(a) >> shift, (int(b) >> shift) - 1) for a, b in self.ranges]
        return f"{order}/" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)

    @property
    def sky_fraction(self) -> float:
        """The part of the whole sky that it is."""
        return float((self.ranges[:, 1] - self.ranges[:, 0]).sum() / (12 << 58))

    def holds(self, cells29: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say which cells of order 29 are in it."""
        index = np.searchsorted(self.ranges[:, 0], cells29, side="right") - 1
        inside = index >= 0
        inside[inside] = cells29[inside] < self.ranges[index[inside], 1]
        return inside

    def fraction(self, ra_deg: float, dec_deg: float, radius_deg: float) -> float:
        """Return the part of a circle that is covered, from 1500 points spread evenly in it."""
        # Sunflower: even in area, the same each time (Vogel 1979).
        k = np.arange(1500) + 0.5
        height = 2.0 * math.sin(math.radians(radius_deg) / 2) ** 2 * k / len(k)  # 1 - cos(r)
        sine = np.sqrt(height * (2.0 - height))
        angle = k * math.pi * (3.0 - math.sqrt(5.0))
        east, north = sky.east_north(ra_deg, dec_deg)
        points = (
            (1.0 - height)[:, None] * sky.unit_vectors(ra_deg, dec_deg)
            + (sine * np.cos(angle))[:, None] * east + (sine * np.sin(angle))[:, None] * north
        )
        return float(self.holds(sky.healpix_cell(*sky.radec(points))).mean())


def _merged(ranges: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(ranges) == 0:
        return ranges.reshape(0, 2)
    ranges = ranges[np.lexsort((ranges[:, 1], ranges[:, 0]))]
    ends = np.maximum.accumulate(ranges[:, 1])
    starts = np.flatnonzero(np.concatenate([[True], ranges[1:, 0] > ends[:-1]]))
    return np.stack([ranges[starts, 0], ends[np.concatenate([starts[1:] - 1, [len(ends) - 1]])]], axis=1)
