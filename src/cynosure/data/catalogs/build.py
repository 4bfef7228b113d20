"""Build a HATS catalogue from tables.

The rows get Gaia's column names and units and are sorted by their HEALPix cell of order 29; the
sky is divided into cells of adaptive size, each of which becomes one Parquet file. The same rows
give the same bytes, whatever the order of the tables.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from cynosure._version import __version__
from cynosure.data.catalogs.check import prepared
from cynosure.data.catalogs.columns import (
    INDEX_COLUMNS,
    Meaning,
    catalog_word,
    column_unit,
    find_meaning,
    named_by_columns,
)
from cynosure.data.catalogs.coverage import Coverage, distinct
from cynosure.data.catalogs.hats import partition_path
from cynosure.data.catalogs.refcat import RefCat, open_refcat
from cynosure.data.catalogs.roles import ROLES, Role
from cynosure.data.catalogs.tablefiles import read_table
from cynosure.ground import sky
from cynosure.ground.errors import CatalogDamaged, CatalogMissing, OutputError, OutputExists
from cynosure.ground.files import reason_of
from cynosure.ground.settings import Range, Unit

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Progress", "build_refcat"]

Integers = NDArray[np.int64]
Progress = Callable[[int, int, str], None]

INDEX = "_healpix_29"
# Rows of a Parquet row group, the unit of reading: about the stars of a field of a degree, and
# 0.3 s of a slow network.
ROWS_PER_GROUP = 16_384
# Rows kept in memory (about a gigabyte of Gaia's columns); beyond, sorted pieces go to the disk.
ROWS_IN_MEMORY = 4_000_000
SPILL_ORDER = 4  # cells of 13 square degrees: 3072 pieces at most on the disk
DEEPEST_ORDER = 18  # cells of 0.8": the limit of subdivision, below any real density of stars
# Columns of hive partitioning, which are not columns of the stars.
PARTITION_COLUMNS = ("Norder", "Dir", "Npix")


def build_refcat(
    tables: Sequence[str | Path], out: str | Path, *, name: str | None = None,
    ref_epoch_yr: Annotated[float | None, Unit("yr"), Range(1800, 2200)] = None,
    position_error_mas: Annotated[float | None, Unit("mas"), Range(0, 1e6)] = None,
    max_rows_per_partition: Annotated[int, Unit("rows"), Range(1, 10_000_000)] = 200_000,
    overwrite: bool = False, progress: Progress | None = None,
    properties: dict[str, str] | None = None,
) -> RefCat:
    """Build a HATS catalogue from tables of stars.

    The catalogue is built in a folder beside `out`, which takes that name when it is complete.

    Parameters
    ----------
    tables : sequence of path
        Parquet, FITS, ECSV, CSV or VOTable files; several are joined. They need a position and a
        magnitude; columns that are not recognised are kept unchanged. Of duplicate rows (the same
        identifier in the same cell of 0.4 mas) one is kept.
    out : path
        The folder to make.
    name : str, optional
        The catalogue's name, such as "Gaia DR3"; by default it is derived from the files' names.
    ref_epoch_yr : float, optional
        Julian year of positions without one.
    position_error_mas : float, optional
        Error per axis of positions without one.
    max_rows_per_partition : int
        A cell with more stars is divided into four.
    overwrite : bool
        Whether an existing catalogue may be replaced.
    progress : callable, optional
        Called with (number done, total, name of the step).
    properties : dict, optional
        Further lines for ``hats.properties``.

    Returns
    -------
    RefCat
        The new catalogue, opened.

    Raises
    ------
    OutputExists, OutputError
        If `out` exists, or cannot be written.
    CatalogMissing, CatalogDamaged
        If a table does not exist, cannot be read, or contradicts itself.
    """
    out = Path(out)
    check_replaceable(out, overwrite)
    if not tables:
        raise CatalogMissing(catalog=str(out), reason="no tables to build from")
    tell = progress or (lambda done, total, what: None)
    with _appearing(out, overwrite) as folder:
        rows = _Rows(folder / "spill")
        notes: list[str] = []
        total = len(tables) + 1
        for k, path in enumerate(tables):
            tell(k, total, Path(path).name)
            words = catalog_word(name, Path(path).name)
            table, found = _canonical(Path(path), words, ref_epoch_yr, position_error_mas)
            notes += found
            rows.add(table)
        tell(len(tables), total, "writing")
        builder = _Writer(folder, rows, max_rows_per_partition)
        builder.write()
        shutil.rmtree(folder / "spill", ignore_errors=True)
        lines = _properties(
            builder, name, [Path(p).name for p in tables], ref_epoch_yr, position_error_mas,
            list(dict.fromkeys([*notes, *builder.notes()])),
        )
        _write_lines(folder, {**lines, **(properties or {})})
        _flush_tree(folder)
    tell(total, total, "done")
    return open_refcat(out)


# --- rows -----------------------------------------------------------------------------------------


def _canonical(
    path: Path, word: str, ref_epoch_yr: float | None, position_error_mas: float | None
) -> tuple[pa.Table, list[str]]:
    """Read a table and give its columns Gaia's names and units, and each row its cell."""
    import pyarrow as pa

    table = read_table(path)
    meaning = find_meaning(
        table.schema, str(path), word=word, ref_epoch_yr=ref_epoch_yr,
        position_error_mas=position_error_mas,
    )
    table, meaning = prepared(table, meaning)
    notes = [n for n in meaning.notes if n.startswith(("column", "the byte order"))]
    ra, dec = meaning.values(table, "ra_deg"), meaning.values(table, "dec_deg")
    keep = np.isfinite(ra) & np.isfinite(dec)
    if not keep.all():
        notes.append(f"{int((~keep).sum())} rows of {path.name} have no position: left out")
        table = table.filter(pa.array(keep))
        ra, dec = ra[keep], dec[keep]
    cells = sky.healpix_cell(ra, dec)
    fields, arrays = [pa.field(INDEX, pa.int64())], [pa.array(cells)]
    used = {INDEX}
    for role in ROLES:
        if role.name in meaning.sources:
            field, array = _canonical_column(table, meaning, role)
            if field.name not in used:
                used.add(field.name)
                fields.append(field)
                arrays.append(array)
    taken = {s.column for s in meaning.sources.values()} | {*INDEX_COLUMNS, *PARTITION_COLUMNS}
    for column in table.schema:
        if column.name not in taken:
            label = column.name if column.name not in used else f"{column.name}_original"
            unit = column_unit(column)
            used.add(label)
            fields.append(pa.field(label, column.type, metadata={"unit": unit} if unit else None))
            arrays.append(table.column(column.name))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields)), notes


def _canonical_column(table: pa.Table, meaning: Meaning, role: Role) -> tuple[pa.Field, Any]:
    import pyarrow as pa

    source = meaning.sources[role.name]
    label = stored_name(role, source.column)
    array = table.column(source.column)
    if source.scale != 1.0 or source.from_days:
        array = _nullable(meaning.values(table, role.name))
    elif role.name == "ra_deg":
        ra = meaning.values(table, role.name)
        array = pa.array(ra % 360.0 if np.any((ra < 0) | (ra >= 360.0)) else ra)
    elif role.name == "dec_deg":
        array = pa.array(meaning.values(table, role.name))
    elif pa.types.is_dictionary(array.type) or pa.types.is_decimal(array.type):
        array = _nullable(meaning.values(table, role.name))
    return pa.field(label, array.type, metadata={"unit": role.unit} if role.unit else None), array


def stored_name(role: Role, column: str) -> str:
    """Return the name under which a column is stored: Gaia's, unless it is another magnitude."""
    if role.name.endswith("mag_error"):  # the error is renamed with its magnitude
        of_gaia = ("e_Gmag", "e_BPmag", "e_RPmag", role.gaia_name)
        return role.gaia_name if column in of_gaia else column
    if role.name in ("mag", "color", "bp_mag", "rp_mag"):
        known = {
            "Gmag": "phot_g_mean_mag", "BPmag": "phot_bp_mean_mag", "RPmag": "phot_rp_mean_mag",
            "BP-RP": "bp_rp",
        }
        return known.get(column, column.lower() if column.lower() == role.gaia_name else column)
    return role.gaia_name


def _nullable(values: NDArray[np.float64]) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, mask=np.isnan(values))


class _Rows:
    """The rows of all tables, returned cell by cell in their final order.

    Up to `ROWS_IN_MEMORY` rows are kept in memory; beyond that they are written to the disk in
    pieces, by cell of order `SPILL_ORDER`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.pieces: list[pa.Table] = []
        self.schema: pa.Schema | None = None
        self.counts = np.zeros(12 << (2 * SPILL_ORDER), dtype=np.int64)
        self.duplicates = 0
        self._spilled: dict[int, list[Path]] = {}
        self._units: dict[str, str] = {}

    def add(self, table: pa.Table) -> None:
        """Add the rows of a table."""
        import pyarrow as pa

        for column in table.schema:
            unit = column_unit(column)
            if self._units.setdefault(column.name, unit) != unit:
                raise CatalogDamaged(
                    "column {column!r} is in {first!r} in one table and in {second!r} in another",
                    column=column.name, first=self._units[column.name], second=unit,
                    hint="Give the tables the same unit, or build them apart.",
                )
        schemas = [table.schema] if self.schema is None else [self.schema, table.schema]
        self.schema = pa.unify_schemas(schemas, promote_options="permissive")
        cells = table.column(INDEX).to_numpy() >> (2 * (sky.MAX_ORDER - SPILL_ORDER))
        self.counts += np.bincount(cells, minlength=len(self.counts))
        self.pieces.append(table)
        if sum(p.num_rows for p in self.pieces) > ROWS_IN_MEMORY:
            self._spill()

    def _spill(self) -> None:
        import pyarrow.parquet as pq

        self.folder.mkdir(exist_ok=True)
        table = self._together(self.pieces)
        cells = table.column(INDEX).to_numpy() >> (2 * (sky.MAX_ORDER - SPILL_ORDER))
        rank = np.argsort(cells, kind="stable")
        table, cells = table.take(rank), cells[rank]
        starts = np.concatenate([[0], np.flatnonzero(np.diff(cells)) + 1, [len(cells)]])
        for first, last in pairwise(starts.tolist()):
            bucket = self._spilled.setdefault(int(cells[first]), [])
            path = self.folder / f"{cells[first]}.{len(bucket)}.parquet"
            pq.write_table(table.slice(first, last - first), path, compression="lz4")
            bucket.append(path)
        self.pieces = []

    def _together(self, pieces: list[pa.Table]) -> pa.Table:
        import pyarrow as pa

        assert self.schema is not None
        whole = pa.concat_tables([self.schema.empty_table(), *pieces], promote_options="permissive")
        return whole.select(self.schema.names)

    def count(self, order: int, pixel: int) -> int:
        """Return the number of rows in a cell of at most `SPILL_ORDER`, duplicates included."""
        shift = 2 * (SPILL_ORDER - order)
        return int(self.counts[pixel << shift : (pixel + 1) << shift].sum())

    def sorted(self, order: int, pixel: int) -> pa.Table:
        """Return the rows of a cell, sorted, each once."""
        import pyarrow.parquet as pq

        shift = 2 * (SPILL_ORDER - order)
        pieces = self.pieces
        if self._spilled:
            if pieces:
                self._spill()
            wanted = range(pixel << shift, (pixel + 1) << shift)
            pieces = [
                pq.ParquetFile(p).read() for cell in wanted for p in self._spilled.get(cell, ())
            ]
        table = self._together(pieces)
        cells = table.column(INDEX).to_numpy()
        if not self._spilled:
            mine = np.flatnonzero(cells >> (2 * (sky.MAX_ORDER - order)) == pixel)
            if len(mine) < len(cells):
                table, cells = table.take(mine), cells[mine]
        return self._ordered(table, cells)

    def _ordered(self, table: pa.Table, cells: Integers) -> pa.Table:
        """Sort by cell, then by identifier or magnitude, and drop duplicates."""
        import pyarrow as pa

        keys = [k for k in ("source_id", "ra", "dec") if k in table.column_names]
        columns = [_filled(table.column(k)) for k in keys]
        rank = np.lexsort([*reversed(columns), cells])
        table, cells = table.take(pa.array(rank)), cells[rank]
        same = np.diff(cells) == 0
        for values in columns:
            same &= np.diff(values[rank]) == 0
        if same.any():
            self.duplicates += int(same.sum())
            table = table.filter(pa.array(np.concatenate([[True], ~same])))
        return table


def _filled(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column as numbers that can be compared, null as the least."""
    if column.null_count == 0:
        return np.asarray(column.to_numpy())
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(column, -1).to_numpy())


# --- files ----------------------------------------------------------------------------------------


class _Writer:
    """Writes partitions, and collects the content of the catalogue's metadata files."""

    def __init__(self, folder: Path, rows: _Rows, max_rows: int):
        self.folder = folder
        self.rows = rows
        self.max_rows = max_rows
        self.partitions: list[tuple[int, int]] = []
        self.n_rows = 0
        self.bytes = 0
        self.mags: list[tuple[float, float]] = []
        self.epochs: dict[float, int] = {}
        self._cells: list[Integers] = []
        self._footers: list[Any] = []

    def write(self) -> None:
        """Write all partitions and the files that list them."""
        import pyarrow.parquet as pq

        schema = self.rows.schema
        if schema is None or not self.rows.counts.any():
            raise CatalogMissing(catalog=str(self.folder), reason="the tables have no rows")
        self.meaning = find_meaning(schema, str(self.folder))
        for base in range(12):
            self._visit(0, base)
        dataset = self.folder / "dataset"
        pq.write_metadata(schema, dataset / "_common_metadata")
        pq.write_metadata(schema, dataset / "_metadata", metadata_collector=self._footers)
        lines = [f"{order},{pixel}" for order, pixel in self.partitions]
        (self.folder / "partition_info.csv").write_text("\n".join(["Norder,Npix", *lines, ""]))

    def notes(self) -> list[str]:
        """Return notes for the user."""
        n = self.rows.duplicates
        return [f"{n} duplicate rows were left out"] if n else []

    def coverage(self) -> Coverage:
        """Return the part of the sky that has stars."""
        return Coverage.of_counts(np.concatenate(self._cells), self.n_rows)

    def _visit(self, order: int, pixel: int) -> None:
        """Write a cell, or its four quarters where it has too many rows."""
        n = self.rows.count(order, pixel)
        if n == 0:
            return
        if n <= self.max_rows or order == SPILL_ORDER:
            self._cut(order, pixel, self.rows.sorted(order, pixel))
            return
        for quarter in range(4):
            self._visit(order + 1, 4 * pixel + quarter)

    def _cut(self, order: int, pixel: int, table: pa.Table) -> None:
        if table.num_rows <= self.max_rows or order >= DEEPEST_ORDER:
            self._partition(order, pixel, table)
            return
        cells = table.column(INDEX).to_numpy() >> (2 * (sky.MAX_ORDER - order - 1))
        for quarter in range(4 * pixel, 4 * pixel + 4):
            first, last = np.searchsorted(cells, [quarter, quarter + 1])
            if last > first:
                self._cut(order + 1, quarter, table.slice(first, last - first))

    def _partition(self, order: int, pixel: int, table: pa.Table) -> None:
        import pyarrow.parquet as pq

        name = partition_path(order, pixel)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        footer: list[Any] = []
        pq.write_table(
            table, path, row_group_size=ROWS_PER_GROUP, metadata_collector=footer,
            **writing_options(table.schema),
        )
        footer[0].set_file_path(name.removeprefix("dataset/"))
        self._footers.append(footer[0])
        self.partitions.append((order, pixel))
        self.n_rows += table.num_rows
        self.bytes += path.stat().st_size
        self._cells.append(distinct(table.column(INDEX).to_numpy() >> (2 * (sky.MAX_ORDER - 12))))
        mags = self.meaning.magnitudes(table)
        if np.isfinite(mags).any():
            self.mags.append((float(np.nanmin(mags)), float(np.nanmax(mags))))
        if "ref_epoch_yr" in self.meaning.sources:
            epochs = self.meaning.values(table, "ref_epoch_yr")
            for epoch, n in zip(*np.unique(epochs[np.isfinite(epochs)], return_counts=True)):
                self.epochs[float(epoch)] = self.epochs.get(float(epoch), 0) + int(n)


def writing_options(schema: pa.Schema) -> dict[str, Any]:
    """Return the options of the Parquet writer: byte-stream split for fractions, then lz4.

    The files are a fifteenth larger than with zstd, and a cone is read in two thirds of the time.
    """
    import pyarrow as pa

    fractions = [f.name for f in schema if pa.types.is_floating(f.type)]
    others = [f.name for f in schema if not pa.types.is_floating(f.type) and f.name != INDEX]
    return {
        "compression": "lz4", "use_dictionary": others,
        "column_encoding": {name: "BYTE_STREAM_SPLIT" for name in fractions},
        "write_statistics": True, "store_schema": True,
    }


def _properties(
    built: _Writer, name: str | None, files: list[str], ref_epoch_yr: float | None,
    position_error_mas: float | None, notes: list[str],
) -> dict[str, str]:
    epoch = ref_epoch_yr
    if built.epochs:
        epoch = max(built.epochs, key=lambda e: (built.epochs[e], e))
    word = catalog_word(name, *files)
    if name is None:
        word = named_by_columns(built.rows.schema, epoch, word)
    coverage = built.coverage()
    lines = {
        "obs_collection": name or word.lower(),
        "dataproduct_type": "object",
        "hats_nrows": str(built.n_rows),
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": INDEX,
        "hats_col_healpix_order": str(sky.MAX_ORDER),
        "hats_npix_suffix": ".parquet",
        "hats_max_rows": str(built.max_rows),
        "hats_order": str(max(order for order, _ in built.partitions)),
        "hats_estsize": str(built.bytes // 1024 + 1),
        "moc_sky_fraction": f"{coverage.sky_fraction:.6g}",
        "hats_builder": f"cynosure {__version__}",
        "hats_version": "v1.0",
        "obs_regime": "Optical",
        "cynosure_name": word,
        "cynosure_moc": coverage.to_text(),
    }
    if built.mags:
        low, high = min(m[0] for m in built.mags), max(m[1] for m in built.mags)
        lines["cynosure_mag_range"] = f"{low:.4f} {high:.4f}"
    if epoch is not None:
        lines["cynosure_epoch_yr"] = f"{epoch:g}"
    if ref_epoch_yr is not None:
        lines["cynosure_ref_epoch_yr"] = f"{ref_epoch_yr!r}"
    if position_error_mas is not None:
        lines["cynosure_position_error_mas"] = f"{position_error_mas!r}"
    if notes:
        lines["cynosure_notes"] = "; ".join(n.replace("\n", " ") for n in notes)
    return lines


def _write_lines(folder: Path, lines: dict[str, str]) -> None:
    text = "\n".join(["#HATS catalog", *(f"{k}={v}" for k, v in lines.items()), ""])
    for name in ("hats.properties", "properties"):
        (folder / name).write_text(text, encoding="utf-8")


# --- the folder as a whole ------------------------------------------------------------------------


def check_replaceable(out: Path, overwrite: bool) -> None:
    """Refuse an existing folder; with `overwrite`, only one that is not a catalogue."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise OutputExists(path=str(out))
    if not out.is_dir() or not any((out / n).exists() for n in ("hats.properties", "properties")):
        raise OutputExists(
            "{path}: exists and is not a catalogue; it is not replaced", path=str(out),
            hint="Use another --out, or remove it yourself.",
        )


@contextmanager
def _appearing(out: Path, overwrite: bool) -> Iterator[Path]:
    """Give a new folder beside `out`, which takes its name when the block ends well."""
    folder = out.parent / f".{out.name[:150]}.{secrets.token_hex(4)}.tmp"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        (folder / "dataset").mkdir()
        try:
            yield folder
            check_replaceable(out, overwrite)
            if out.exists():
                old = folder.with_suffix(".old")
                out.rename(old)
                folder.rename(out)
                shutil.rmtree(old, ignore_errors=True)
            else:
                folder.rename(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise OutputError(path=str(out), reason=reason_of(error)) from error


def _flush_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
