"""Footprints as HEALPix cells, and circles on the sky asked of them.

A footprint is covered by a few cells of an order that fits its size, from a minute of arc to the
whole sky; order and cell stand in one number, the "uniq" of IVOA MOC 2.0. A circle is asked for
at every order: the cells that touch it, and below their order all that lie within them. No
solution that touches the circle is missed; those that do not are told apart by their corners.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BigInteger, column, select, values

from cynosure.ground import sky
from cynosure.ground.errors import SettingError
from cynosure.solutions.store.schema import footprints

if TYPE_CHECKING:
    from cynosure.solutions.store.schema import Stored

__all__ = ["footprint_cells", "ids_in_cells", "touching"]

Circle = tuple[float, float, float]

# Cells from 3.7 degrees (order 4) to 52 seconds of arc (order 12) across; larger footprints have
# more cells, smaller ones a cell that is larger than they are.
MIN_ORDER, MAX_ORDER = 4, 12
RADIUS_DEG = [sky.healpix_radius_deg(order) for order in range(MAX_ORDER + 1)]
# A footprint wider than this, almost three cells of the lowest order, is covered cell by cell.
WIDE_DEG = 10.0


def _disc(spacing: float) -> NDArray[np.float64]:
    """Return points of a hexagonal grid in the unit disc, no point further than `spacing`."""
    step = spacing * math.sqrt(3.0)  # the covering radius of the grid is step / sqrt(3)
    n = math.ceil(1.5 / step) + 1
    rows, columns = np.mgrid[-2 * n : 2 * n + 1, -2 * n : 2 * n + 1]
    x = (columns + 0.5 * (rows % 2)) * step
    y = rows * step * math.sqrt(3.0) / 2.0
    # Points just outside the disc cover its edge.
    keep = np.hypot(x, y) <= 1.0 + spacing
    return np.stack([x[keep], y[keep]])


# The circle around a cell's centre that fits into it, as a part of the largest radius of a cell
# of its order: 0.325 for the slimmest, which lie where the polar caps begin.
INSCRIBED = 0.31


def footprint_cells(circles: Sequence[Circle | None]) -> list[tuple[int, int]]:
    """Return (index, uniq) of the cells that cover circles; many at once, as one is as dear.

    A cell that touches a circle has its centre within the circle widened by the cell's radius,
    and around its centre a disc that lies within it; so a grid of points finer than that disc,
    over the widened circle, has a point in every such cell.
    """
    out: list[tuple[int, int]] = []
    by_order: dict[int, list[int]] = {}
    for index, circle in enumerate(circles):
        if circle is None:
            continue
        if circle[2] > WIDE_DEG:
            cells = sky.cone_cells(*circle, MIN_ORDER)
            out += [(index, int(c) + (4 << 2 * MIN_ORDER)) for c in cells]
        else:
            by_order.setdefault(_order_for(circle[2]), []).append(index)
    for order, members in by_order.items():
        out += _covered([circles[i] for i in members], members, order)  # type: ignore[misc]
    return out


def _order_for(radius_deg: float) -> int:
    """Return the highest order whose cells are not much smaller than a circle."""
    order = MIN_ORDER
    while order < MAX_ORDER and RADIUS_DEG[order + 1] >= radius_deg:
        order += 1
    return order


def _covered(circles: list[Circle], members: list[int], order: int) -> list[tuple[int, int]]:
    reach = RADIUS_DEG[order]
    given = np.array(circles)
    widened = given[:, 2] + reach
    disc = _disc(INSCRIBED * reach / float(widened.max()))
    center = sky.unit_vectors(given[:, 0], given[:, 1])
    east, north = sky.east_north(given[:, 0], given[:, 1])
    # A gnomonic plane stretches outwards: the disc is scaled by the tangent, and so is finer
    # nowhere than it must be.
    size = np.tan(np.radians(widened))[:, None, None]
    points = center[:, None] + size * (
        disc[0][None, :, None] * east[:, None] + disc[1][None, :, None] * north[:, None]
    )
    cells = sky.healpix_cell(*sky.radec(points), order) + (4 << 2 * order)
    cells.sort(axis=1)
    first = np.ones(cells.shape, dtype=bool)
    first[:, 1:] = cells[:, 1:] != cells[:, :-1]
    return [(members[k], c) for k, c in zip(np.nonzero(first)[0].tolist(), cells[first].tolist())]


def ids_in_cells(ra_deg: float, dec_deg: float, radius_deg: float) -> Any:
    """Return the statement for the numbers of all solutions whose cells touch a circle.

    Raises
    ------
    SettingError
        If it is no circle on the sky.
    """
    good = math.isfinite(ra_deg) and abs(dec_deg) <= 90.0 and 0.0 <= radius_deg <= 180.0
    if not good:
        raise SettingError(
            "circle {ra_deg} {dec_deg} {radius_deg}: not on the sky", ra_deg=ra_deg,
            dec_deg=dec_deg, radius_deg=radius_deg,
            hint="Right ascension, declination within 90, radius from 0 to 180, all degrees.",
        )
    ranges = _ranges(ra_deg, dec_deg, radius_deg)
    asked = values(
        column("first", BigInteger), column("last", BigInteger), name="asked", literal_binds=True
    ).data(ranges).cte("asked")
    return select(footprints.c.solution_id).select_from(
        asked.join(footprints, footprints.c.uniq.between(asked.c.first, asked.c.last))
    )


def _ranges(ra_deg: float, dec_deg: float, radius_deg: float) -> list[tuple[int, int]]:
    """Return the ranges of uniq, both ends included, that a circle asks for."""
    fine = MIN_ORDER
    while fine < MAX_ORDER and RADIUS_DEG[fine] > radius_deg / 2.0:
        fine += 1
    cells = sky.cone_cells(ra_deg, dec_deg, radius_deg, fine)
    ranges = []
    for order in range(MIN_ORDER, MAX_ORDER + 1):
        # Whoever touches the circle has a child that does.
        if order <= fine:
            here = np.unique(cells >> 2 * (fine - order))
            first, last = _runs(here, here)
        else:
            shift = 2 * (order - fine)
            first, last = _runs(cells << shift, ((cells + 1) << shift) - 1)
        base = 4 << 2 * order
        ranges += [(base + int(a), base + int(b)) for a, b in zip(first, last, strict=True)]
    return ranges


def _runs(
    first: NDArray[np.int64], last: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Join ranges that touch."""
    breaks = np.flatnonzero(first[1:] > last[:-1] + 1)
    return (
        first[np.concatenate([[0], breaks + 1])],
        last[np.concatenate([breaks, [len(last) - 1]])],
    )


def touching(
    found: Sequence[Stored], ra_deg: float, dec_deg: float, radius_deg: float
) -> list[Stored]:
    """Keep the solutions of which a chip touches a circle.

    The chips are convex quadrangles between great circles. A chip touches where the circle's
    centre is within it or one of its sides comes near enough.
    """
    if not found:
        return []
    counts = [len(s.corners) for s in found]
    owner = np.repeat(np.arange(len(found)), counts)
    corners = np.concatenate([s.corners for s in found])
    center = sky.unit_vectors(ra_deg, dec_deg)
    v = sky.unit_vectors(corners[..., 0], corners[..., 1])
    w = np.roll(v, -1, axis=1)
    normal = np.cross(v, w)
    length = np.linalg.norm(normal, axis=-1)
    side = normal @ center
    inside = (side >= 0).all(axis=1) | (side <= 0).all(axis=1)
    inside &= (v.sum(axis=1) @ center) > 0  # not on the far side of the sky
    # The angle to a side: to its great circle where the foot lies on it, else to its ends.
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.abs(np.arcsin(np.clip(side / length, -1.0, 1.0)))
    foot = center - normal * (side / np.where(length > 0, length, 1.0) ** 2)[..., None]
    between = (
        (np.einsum("ijk,ijk->ij", np.cross(v, foot), normal) >= 0)
        & (np.einsum("ijk,ijk->ij", np.cross(foot, w), normal) >= 0) & (length > 0)
        & (np.einsum("ijk,ijk->ij", foot, v + w) > 0)
    )
    ends = 2.0 * np.arcsin(np.clip(np.linalg.norm(v - center, axis=-1) / 2.0, 0.0, 1.0))
    nearest = np.minimum(np.where(between, distance, np.inf).min(axis=1), ends.min(axis=1))
    hit = inside | (nearest <= math.radians(radius_deg) + 1e-12)
    touched = np.zeros(len(found), dtype=bool)
    np.logical_or.at(touched, owner, hit)
    return [s for s, yes in zip(found, touched, strict=True) if yes]
