"""Check a whole table of stars; correct or refuse obvious errors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.catalogs.columns import Meaning, array_values, check_degrees
from cynosure.ground.errors import CatalogDamaged

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["mend_byte_order", "prepared"]


def prepared(table: pa.Table, meaning: Meaning) -> tuple[pa.Table, Meaning]:
    """Check a whole table: correct obvious errors, refuse contradictions.

    Columns without a declared unit are compared with the possible values of stars: positions that
    all lie within 2 pi and cover a large part of the sky (radians), or right ascensions that all
    lie below 24 (hours), are refused; proper motions and errors far too small for mas are treated
    as unknown. Each finding is a note of the returned meaning.
    """
    notes: list[str] = []
    _refuse_other_angles(table, meaning)
    sources = dict(meaning.sources)
    for role, floor in (
        ("ra_error_mas", 1e-3), ("dec_error_mas", 1e-3), ("pm_ra_mas_yr", 0.05),
        ("pm_dec_mas_yr", 0.05),
    ):
        source = sources.get(role)
        if source is None or source.declared or table.num_rows < 20:
            continue
        values = np.abs(meaning.values(table, role))
        values = values[np.isfinite(values) & (values > 0)]
        if len(values) >= 10 and np.percentile(values, 90) < floor:
            notes.append(
                f"column {source.column!r} has no unit and its numbers (90 % below "
                f"{np.percentile(values, 90):.2g}) are too small for mas: taken as unknown"
            )
            del sources[role]
            sources.pop(role.replace("_mas_yr", "_error_mas_yr"), None)
    table, swapped = _with_mended_magnitudes(table, meaning)
    return table, replace(meaning, sources=sources, notes=(*meaning.notes, *notes, *swapped))


def _refuse_other_angles(table: pa.Table, meaning: Meaning) -> None:
    ra, dec = meaning.values(table, "ra_deg"), meaning.values(table, "dec_deg")
    check_degrees(meaning.catalog, ra, dec, meaning.column("ra_deg"), meaning.column("dec_deg"))
    if meaning.sources["ra_deg"].declared or not (np.isfinite(ra) & np.isfinite(dec)).any():
        return
    ra_span, dec_span = np.nanmax(ra) - np.nanmin(ra), np.nanmax(dec) - np.nanmin(dec)
    turn = 2.0 * np.pi
    looks = None
    if np.nanmax(np.abs(ra)) <= turn and np.nanmax(np.abs(dec)) <= np.pi / 2:
        looks = "radians" if ra_span > 0.7 * turn and dec_span > 1.0 else None
    elif np.nanmax(np.abs(ra)) <= 24.0 and ra_span > 20.0 and dec_span > 40.0:
        looks = "hours"
    if looks:
        raise CatalogDamaged(
            "{catalog}: column {column!r} has no unit and its numbers look like {looks}",
            catalog=meaning.catalog, column=meaning.column("ra_deg"), looks=looks,
            hint="Declare the unit in the table (deg, rad, hourangle), or convert to degrees.",
        )


def _with_mended_magnitudes(table: pa.Table, meaning: Meaning) -> tuple[pa.Table, list[str]]:
    import pyarrow as pa

    name = meaning.sources["mag"].column
    column = table.column(name)
    if column.null_count or not pa.types.is_floating(column.type):
        return table, []
    mended = mend_byte_order(array_values(column))
    if mended is None:
        return table, []
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(name), pa.array(mended)), [
        f"the byte order of column {name!r} was wrong and has been corrected "
        f"(magnitudes {np.nanmin(mended):.2f} to {np.nanmax(mended):.2f})"
    ]


def mend_byte_order(values: NDArray[Any]) -> NDArray[Any] | None:
    """Return magnitudes with their bytes swapped where their order was wrong, else None.

    Some tables were written by copying a big-endian column as if it were little-endian. Then at
    least a tenth of the numbers are impossible as magnitudes, and all of them are possible with
    their bytes swapped.
    """
    finite = values[np.isfinite(values)]
    if len(finite) < 20 or np.mean(np.abs(finite) < 40.0) > 0.9:
        return None
    turned = values.byteswap()
    possible = np.isfinite(turned) & (turned > -5.0) & (turned < 35.0)
    return turned if possible[np.isfinite(values)].all() else None
