"""Verify that a reference catalogue agrees with its metadata and its index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cynosure.data.catalogs.columns import Meaning, array_values, find_meaning
from cynosure.data.catalogs.coverage import distinct
from cynosure.data.catalogs.hats import HatsStore, partition_path
from cynosure.data.catalogs.location import Place
from cynosure.data.catalogs.refcat import open_refcat
from cynosure.ground import sky
from cynosure.ground.errors import CatalogMissing, CynosureError, Temporary

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["verify_refcat"]

# Up to so many rows, identifiers are compared over the whole catalogue (400 MB); with more, only
# within each partition.
IDS_IN_MEMORY = 50_000_000


def verify_refcat(
    path: str | Path, *, progress: Callable[[int, int, str], None] | None = None
) -> list[str]:
    """Check a catalogue thoroughly, reading every file.

    Checked are: the list of partitions against the files and the cells; each file's columns,
    order, and rows against its cell; positions against ``_healpix_29``; units; magnitudes;
    duplicate identifiers; the counts of rows; ``dataset/_metadata``.

    Parameters
    ----------
    path : str or Path
        A HATS catalogue or collection (also a URL), or a table file.
    progress : callable, optional
        Called with (number done, total, name of the step).

    Returns
    -------
    list of str
        The problems, in plain words; empty for a sound catalogue.

    Raises
    ------
    Temporary
        If a network fails.
    """
    try:
        place = Place(path)
        if place.is_table():
            return _check_table(path)
        store = HatsStore.open(place)
        meaning = find_meaning(store.schema(), str(path), named=store.named_columns())
    except Temporary:
        raise
    except CynosureError as error:
        return [str(error)]
    check = _Check(store, meaning)
    check.partitions()
    for k in range(len(store.pixels)):
        if progress:
            progress(k, len(store.pixels), f"partition {k + 1} of {len(store.pixels)}")
        check.partition(k)
    check.whole()
    if progress:
        progress(len(store.pixels), len(store.pixels), "done")
    return check.problems


def _check_table(path: str | Path) -> list[str]:
    try:
        catalog = open_refcat(path)
    except Temporary:
        raise
    except CynosureError as error:
        return [str(error)]
    stars = catalog.all()
    return _doubtful(stars["ref_id"], stars["mag"], str(path))


def _doubtful(ids: NDArray[np.int64], mags: NDArray[np.float64], where: str) -> list[str]:
    problems = []
    twice = len(ids) - len(distinct(ids))
    if twice:
        problems.append(f"{where}: {twice} identifiers occur more than once")
    odd = int(np.sum(~((mags > -5.0) & (mags < 35.0))))
    if odd > 0.5 * len(mags):
        problems.append(f"{where}: {odd} of {len(mags)} magnitudes are unknown or impossible")
    return problems


class _Check:
    """The checks of a HATS catalogue, and the problems found."""

    def __init__(self, store: HatsStore, meaning: Meaning):
        self.store = store
        self.meaning = meaning
        self.problems: list[str] = []
        self.rows = 0
        self._counts: dict[tuple[int, int], int] = {}
        self._ids: list[NDArray[np.int64]] = []

    def partitions(self) -> None:
        """Check the list of partitions: no cell within another, no file that is not listed."""
        store = self.store
        cells = Counter(zip(store.orders.tolist(), store.pixels.tolist()))
        for (order, pixel), n in cells.items():
            if n > 1:
                self.problems.append(f"partition Norder={order} Npix={pixel} is listed {n} times")
        shift = 2 * (sky.MAX_ORDER - store.orders)
        first, last = store.pixels << shift, (store.pixels + 1) << shift
        for k in np.flatnonzero(first[1:] < last[:-1]):
            if (store.orders[k], store.pixels[k]) != (store.orders[k + 1], store.pixels[k + 1]):
                self.problems.append(
                    f"partitions Norder={store.orders[k]} Npix={store.pixels[k]} and "
                    f"Norder={store.orders[k + 1]} Npix={store.pixels[k + 1]} overlap"
                )
        if store.place.fs is not None:
            return
        listed = {partition_path(o, p, store.suffix) for o, p in cells}
        root = Path(store.place.root)
        for path in sorted((root / "dataset").glob("Norder=*/Dir=*/Npix=*")):
            name = path.relative_to(root).as_posix()
            if name not in listed:
                self.problems.append(f"{name} is not in partition_info.csv")

    def partition(self, k: int) -> None:
        """Check one partition."""
        order, pixel = int(self.store.orders[k]), int(self.store.pixels[k])
        where = partition_path(order, pixel, self.store.suffix)
        try:
            tables = self.store.read(k, None, None)
        except Temporary:
            raise
        except CynosureError as error:
            self.problems.append(str(error))
            return
        if not tables:
            self.problems.append(f"{where} has no file")
        for table in tables:
            self._table(table, order, pixel, where)
        self._counts[order, pixel] = sum(t.num_rows for t in tables)
        self.rows += self._counts[order, pixel]

    def _table(self, table: pa.Table, order: int, pixel: int, where: str) -> None:
        declared = self.store.schema()
        missing = [n for n in declared.names if n not in table.column_names]
        if missing:
            self.problems.append(f"{where}: columns missing: {', '.join(missing)}")
            return
        for field in declared:
            kind = table.schema.field(field.name).type
            if kind != field.type:
                self.problems.append(f"{where}: column {field.name!r} is {kind}, not {field.type}")
        try:
            stars = self.meaning.to_reference([(table, slice(None))])
        except CynosureError as error:
            self.problems.append(f"{where}: {error}")
            return
        unplaced = ~(np.isfinite(stars["ra_deg"]) & np.isfinite(stars["dec_deg"]))
        if unplaced.any():
            self.problems.append(f"{where}: {int(unplaced.sum())} rows have no position")
            rows = np.flatnonzero(~unplaced)
            table, stars = table.take(rows), stars[rows]
        self._cells(table, stars, order, pixel, where)
        self.problems += _doubtful(stars["ref_id"], stars["mag"], where)
        if self.rows < IDS_IN_MEMORY:
            self._ids.append(distinct(stars["ref_id"]))

    def _cells(
        self, table: pa.Table, stars: NDArray[np.void], order: int, pixel: int, where: str
    ) -> None:
        name = self.meaning.index_column
        if name is None:
            deep = sky.healpix_cell(stars["ra_deg"], stars["dec_deg"])
        else:
            deep = self.store.cells_of(array_values(table.column(name)))
            if np.any(np.diff(deep) < 0):
                self.problems.append(f"{where}: rows are not sorted by {name}")
            centers = sky.radec(sky.healpix_center(deep, sky.MAX_ORDER))
            far = sky.separation_deg(stars["ra_deg"], stars["dec_deg"], *centers)
            wrong = int(np.sum(far > self.store.index_size_deg() + 1e-7))
            if wrong:
                self.problems.append(f"{where}: {wrong} rows are not in the cell that {name} says")
        outside = int(np.sum(deep >> (2 * (sky.MAX_ORDER - order)) != pixel))
        if outside:
            self.problems.append(f"{where}: {outside} rows lie outside of its cell")

    def whole(self) -> None:
        """Check counts, identifiers and metadata over all partitions."""
        said = self.store.properties.get("hats_nrows")
        if said is not None and int(said) != self.rows:
            self.problems.append(f"hats_nrows is {said}, the partitions have {self.rows} rows")
        if self._ids and self.rows <= IDS_IN_MEMORY:
            ids = np.concatenate(self._ids)
            twice = len(ids) - len(distinct(ids))
            if twice:
                self.problems.append(f"{twice} identifiers are in more than one partition")
        self._metadata()

    def _metadata(self) -> None:
        import re

        import pyarrow.parquet as pq

        try:
            with self.store.place.open("dataset/_metadata") as source:
                footer = pq.read_metadata(source)
        except Temporary:
            raise
        except CynosureError as error:
            if isinstance(error, CatalogMissing):
                return  # it is optional
            self.problems.append(str(error))
            return
        counts: Counter[tuple[int, int]] = Counter()
        for i in range(footer.num_row_groups):
            group = footer.row_group(i)
            match = re.search(r"Norder=(\d+)/.*Npix=(\d+)", group.column(0).file_path)
            if match:
                counts[int(match.group(1)), int(match.group(2))] += group.num_rows
        if dict(counts) != {k: n for k, n in self._counts.items() if n}:
            self.problems.append("dataset/_metadata does not agree with the partitions")
