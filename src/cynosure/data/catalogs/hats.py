"""HATS catalogues on disk, on a web server or in a bucket.

A HATS catalogue is a folder: ``hats.properties`` (or ``properties``), ``partition_info.csv``, and
for each cell of an adaptive HEALPix grid one Parquet file
``dataset/Norder=5/Dir=10000/Npix=12321.parquet`` whose rows are sorted by ``_healpix_29``, their
cell of order 29. A collection is a folder of such folders with ``collection.properties``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.catalogs.columns import INDEX_COLUMNS, Meaning, Pieces, array_values
from cynosure.data.catalogs.coverage import Coverage
from cynosure.data.catalogs.location import Place
from cynosure.ground import sky
from cynosure.ground.errors import CatalogDamaged, CatalogMissing, Temporary

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["HatsStore", "partition_path", "read_properties"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

REMOTE_THREADS = 8  # partitions read at a time over a network, which waits for latency
RETRY_PAUSES_S = (0.5, 2.0)  # pauses before further attempts where the network fails
FOOTERS_KEPT = 512  # Parquet footers kept in memory, some kilobytes each


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

    def __init__(
        self, place: Place, properties: dict[str, str], orders: Integers, pixels: Integers
    ):
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
                    reason="no hats.properties in it: not a HATS catalogue",
                )
            main = read_properties(collection).get("hats_primary_table_url")
            if not main:
                raise CatalogDamaged(
                    catalog=place.text,
                    reason="collection.properties names no hats_primary_table_url",
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

            try:
                with self.place.open("dataset/_common_metadata") as source:
                    self._schema = pq.read_schema(source)
            except CatalogMissing:
                if len(self.pixels) == 0:
                    raise
                with self.place.open(self._files(0)[0]) as source:
                    self._schema = pq.read_schema(source)
            self._schema = _without_index_metadata(self._schema)
        return self._schema

    def named_columns(self) -> dict[str, str]:
        """Return the columns that the properties name."""
        named = {"ra_deg": "hats_col_ra", "dec_deg": "hats_col_dec", "index": "hats_col_healpix"}
        return {r: self.properties[k] for r, k in named.items() if self.properties.get(k)}

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
        # Of the first range that ends after the partition begins, the start must precede its end.
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
        for pause_s in RETRY_PAUSES_S:
            try:
                return self._read(k, columns, ranges)
            except Temporary:
                time.sleep(pause_s)
        return self._read(k, columns, ranges)

    def _read(self, k: int, columns: list[str] | None, ranges: Integers | None) -> list[pa.Table]:
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
        names = [footer.schema.column(i).path for i in range(footer.num_columns)]
        column = next((i for i, name in enumerate(names) if name in self._index_names()), None)
        if ranges is None or n <= 1 or column is None:
            return list(range(n))
        kept = []
        for i in range(n):
            statistics = footer.row_group(i).column(column).statistics
            if statistics is None or not statistics.has_min_max:
                kept.append(i)
                continue
            low = int(self.cells_of(statistics.min))
            high = int(self.cells_of(statistics.max, last=True))
            k = int(np.searchsorted(ranges[:, 1], low, side="right"))
            if k < len(ranges) and ranges[k, 0] <= high:
                kept.append(i)
        return kept

    def _index_names(self) -> tuple[str, ...]:
        named = self.properties.get("hats_col_healpix")
        return (named,) if named else INDEX_COLUMNS

    def cells_of(self, index: NDArray[Any], last: bool = False) -> Integers:
        """Return the first (or last) cells of order 29 of values of the index column."""
        order = self.index_order
        if self._hipscat():
            index, order = np.asarray(index, dtype=np.uint64) >> np.uint64(22), 19
        shift = 2 * (sky.MAX_ORDER - order)
        cells = np.asarray(index).astype(np.int64)
        return ((cells + 1) << shift) - 1 if last else cells << shift

    def index_size_deg(self) -> float:
        """Return the largest distance of a star from the first cell of order 29 of its index."""
        order = 19 if self._hipscat() else self.index_order
        return 2.0 * sky.healpix_radius_deg(order)

    def _hipscat(self) -> bool:
        """Say whether the index is HiPSCat's, the format before HATS: order 19 and a counter."""
        names = self.schema().names
        return "_healpix_29" not in names and "_hipscat_index" in names

    def cone(
        self, meaning: Meaning, ra_deg: float, dec_deg: float, radius_deg: float,
        mags: tuple[float, float] | None,
    ) -> Pieces:
        """Return the tables and rows of a circle and a magnitude range, in the sky's order."""
        ranges = sky.cone_ranges(ra_deg, dec_deg, radius_deg)

        def rows_of(table: pa.Table, ra: Floats, dec: Floats) -> Integers:
            rows = sky.rows_within(ra, dec, ra_deg, dec_deg, radius_deg)
            if mags is not None:
                mag = meaning.magnitudes(table, rows)
                with np.errstate(invalid="ignore"):
                    rows = rows[(mag >= mags[0]) & (mag <= mags[1])]
            return rows

        return self._gathered(meaning, self.overlapping(ranges), ranges, rows_of)

    def all(self, meaning: Meaning) -> Pieces:
        """Return the tables and rows of all stars, in the sky's order."""
        return self._gathered(
            meaning, np.arange(len(self.pixels)), None,
            lambda table, ra, dec: np.flatnonzero(np.isfinite(ra) & np.isfinite(dec)),
        )

    def _gathered(
        self, meaning: Meaning, parts: Integers, ranges: Integers | None,
        rows_of: Callable[[pa.Table, Floats, Floats], Integers],
    ) -> Pieces:
        def pieces_of(k: int) -> list[tuple[pa.Table, Integers]]:
            found = []
            for table in self.read(k, meaning.columns, ranges):
                ra, dec = meaning.values(table, "ra_deg"), meaning.values(table, "dec_deg")
                if not self._checked:
                    self._check_cells(meaning, table, ra, dec)
                    self._checked = True
                rows = rows_of(table, ra, dec)
                if len(rows):
                    found.append((table, rows))
            return found

        if self.place.fs is not None and len(parts) > 1:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(REMOTE_THREADS) as pool:
                pieces = list(pool.map(pieces_of, parts.tolist()))
        else:
            pieces = [pieces_of(k) for k in parts.tolist()]
        return [piece for some in pieces for piece in some]

    def _check_cells(self, meaning: Meaning, table: pa.Table, ra: Floats, dec: Floats) -> None:
        """Compare positions with the cells of the index; a wrong unit or column shows here."""
        name = meaning.index_column
        if name is None or len(ra) == 0:
            return
        rows = np.linspace(0, len(ra) - 1, min(len(ra), 64)).astype(np.int64)
        cells = self.cells_of(array_values(table.column(name))[rows])
        centers = sky.radec(sky.healpix_center(cells, sky.MAX_ORDER))
        far = sky.separation_deg(ra[rows] % 360.0, dec[rows], *centers)
        if np.mean(far > self.index_size_deg() + 1e-5) > 0.5:
            raise CatalogDamaged(
                catalog=self.place.text,
                reason=f"positions in {meaning.column('ra_deg')!r}, {meaning.column('dec_deg')!r} "
                f"are {float(np.median(far)):.3g} deg from the cells in {name!r}: not degrees, or "
                "not the columns it was built from",
            )

    def coverage(self) -> Coverage:
        """Return the coverage recorded at building, else that of the partitions."""
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
    """Read the list of partitions, or else derive it from ``dataset/_metadata``."""
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
