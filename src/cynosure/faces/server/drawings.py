"""The figures of the pages, as SVG without scripts; what differs in colour differs in form too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from cynosure.faces.report.svg import round_number
from cynosure.faces.server.differences import Difference
from cynosure.ground import sky
from cynosure.solutions.store.store import Known

__all__ = ["Mark", "draw_field", "draw_offsets", "draw_sky"]

# Cells of the map, 1.8 degrees across.
MAP_ORDER = 5


def _hammer(ra_deg: float, dec_deg: float) -> tuple[float, float]:
    """Project the whole sky, equal in area, east to the left: x in +-2, y in +-1 (Hammer 1892)."""
    half = math.radians(((ra_deg + 180.0) % 360.0 - 180.0) / 2.0)
    dec = math.radians(dec_deg)
    root = math.sqrt(1.0 + math.cos(dec) * math.cos(half))
    return -2.0 * math.cos(dec) * math.sin(half) / root, math.sin(dec) / root


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def draw_sky(known: Sequence[Known], width: int = 960) -> str:
    """Draw the exposures on a map of the sky; each dot leads to those of its place."""
    scale = (width - 20) / 4.0 / math.sqrt(2.0)

    def place(ra_deg: float, dec_deg: float) -> tuple[float, float]:
        x, y = _hammer(ra_deg, dec_deg)
        return width / 2 + x * scale * math.sqrt(2.0), height / 2 - y * scale * math.sqrt(2.0)

    height = round(width / 2 + 14)
    lines = []
    for ra in range(-180, 181, 30):
        edge = 179.9999 if abs(ra) == 180 else ra
        lines.append(_path([place(math.copysign(edge, ra), d) for d in range(-90, 91, 5)]))
    for dec in range(-60, 61, 30):
        lines.append(_path([place(r, dec) for r in np.linspace(-179.9999, 179.9999, 73)]))
    labels = "".join(
        f'<text x="{place(h * 15, 0)[0]:.0f}" y="{place(h * 15, 0)[1] - 4:.0f}">{h}h</text>'
        for h in (0, 4, 8, 16, 20)
    ) + "".join(
        f'<text x="{place(179.9999, d)[0] - 20:.0f}" '
        f'y="{place(179.9999, d)[1] + 4:.0f}">{d:+d}°</text>'
        for d in (-60, -30, 30, 60)
    )
    dots = "".join(_dot(cell, *place(cell.ra_deg, cell.dec_deg)) for cell in _cells(known))
    return (
        f'<svg class="sky" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Map of the sky with {len(known)} exposures">'
        f'<path class="grid" d="{"".join(lines)}"/><g class="label">{labels}</g>{dots}</svg>'
    )


@dataclass(frozen=True, slots=True)
class _Cell:
    ra_deg: float
    dec_deg: float
    count: int
    fitted: int
    name: str


def _cells(known: Sequence[Known]) -> list[_Cell]:
    placed = [k for k in known if k.ra_deg is not None and k.dec_deg is not None]
    if not placed:
        return []
    ra, dec = np.array([k.ra_deg for k in placed]), np.array([k.dec_deg for k in placed])
    _, first, cell = np.unique(
        sky.healpix_cell(ra, dec, MAP_ORDER), return_index=True, return_inverse=True
    )
    counts = np.bincount(cell)
    fitted = np.bincount(cell, weights=[k.fitted for k in placed])
    return [
        _Cell(float(ra[i]), float(dec[i]), int(n), int(f), placed[i].rootname)
        for i, n, f in zip(first, counts, fitted, strict=True)
    ]


def _dot(cell: _Cell, x: float, y: float) -> str:
    size = 3.5 + 2.5 * math.log10(cell.count)
    kind = "fitted" if cell.fitted == cell.count else "part" if cell.fitted else "prior"
    what = cell.name if cell.count == 1 else f"{cell.count} exposures, {cell.name} and others"
    radius = 0.05 if cell.count == 1 else 2.0
    target = quote(f"{cell.ra_deg:.5f} {cell.dec_deg:+.5f} {radius}")
    shape = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>' if kind != "prior" else
        f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size:.1f}" '
        f'height="{2 * size:.1f}"/>'
    )
    title = f"{what}: {cell.fitted} of {cell.count} fitted to a catalogue"
    return f'<a href="/?q={target}" class="{kind}"><title>{escape(title)}</title>{shape}</a>'


@dataclass(frozen=True, slots=True)
class Mark:
    """A solution in the drawing of offsets.

    Attributes
    ----------
    number : int
        As in the table.
    name : str
        Its name, shown where the pointer rests.
    east_mas, north_mas : float
        Its offset from the best.
    verdict : str
        ``chosen``, ``passed over`` or ``excluded``.
    """

    number: int
    name: str
    east_mas: float
    north_mas: float
    verdict: str


def draw_offsets(marks: Sequence[Mark], size: int = 420) -> str:
    """Draw where solutions put the centre, seen from the best: direction true, distance log."""
    placeable = [m for m in marks if math.isfinite(m.east_mas + m.north_mas)]
    marks = sorted(placeable, key=lambda m: m.verdict == "chosen")  # the chosen one on top
    largest = max([10.0, *(math.hypot(m.east_mas, m.north_mas) for m in marks)])
    decades = math.ceil(math.log10(largest))
    unit = (size / 2 - 26) / decades
    middle = size / 2
    rings = "".join(
        f'<circle class="grid" cx="{middle}" cy="{middle}" r="{unit * k:.1f}"/>'
        f'<text x="{middle + 3}" y="{middle - unit * k - 3:.0f}">{_angle(10.0**k)}</text>'
        for k in range(1, decades + 1)
    )
    axes = (
        f'<path class="grid" d="M{middle},14V{size - 14}M14,{middle}H{size - 14}"/>'
        f'<text x="{middle - 14}" y="12">N</text><text x="2" y="{middle - 6}">E</text>'
    )
    placed = [_radial(m, middle, unit) for m in marks]
    shown = ""
    for m, (x, y) in zip(marks, placed, strict=True):
        kind = m.verdict.replace(" ", "-")
        shown += (
            f'<g class="mark {kind}"><title>{m.number} {escape(m.name)}</title>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/></g>'
        )
    for number, (x, y), (lx, ly) in _labels(marks, placed):
        shown += (
            f'<path class="leader" d="M{x:.1f},{y:.1f}L{lx:.1f},{ly:.1f}"/>'
            f'<text class="number" x="{lx:.1f}" y="{ly + 4:.1f}">{number}</text>'
        )
    return (
        f'<svg class="offsets" viewBox="0 0 {size} {size}" role="img" aria-label="Offsets of '
        f'{len(marks)} solutions from the best">{rings}{axes}{shown}</svg>'
    )


def _radial(mark: Mark, middle: float, unit: float) -> tuple[float, float]:
    distance = math.hypot(mark.east_mas, mark.north_mas)
    length = unit * max(0.0, math.log10(max(distance, 1.0)))
    angle = math.atan2(mark.north_mas, -mark.east_mas)
    return middle + length * math.cos(angle), middle - length * math.sin(angle)


def _labels(
    marks: Sequence[Mark], placed: Sequence[tuple[float, float]]
) -> list[tuple[str, tuple[float, float], tuple[float, float]]]:
    """Return one label for marks that lie on each other, moved away from other labels."""
    groups: list[tuple[list[int], tuple[float, float]]] = []
    for m, point in zip(marks, placed, strict=True):
        near = next((g for g in groups if math.dist(g[1], point) < 9.0), None)
        if near is None:
            groups.append(([m.number], point))
        else:
            near[0].append(m.number)
    out: list[tuple[str, tuple[float, float], tuple[float, float]]] = []
    for numbers, (x, y) in groups:
        spots = [(x + r * math.cos(a), y + r * math.sin(a))
                 for r in (17.0, 28.0, 40.0) for a in (-0.7, 0.7, 2.4, -2.4, 0.0, math.pi)]
        taken = [spot for _, _, spot in out] + [p for _, p in groups]
        free = [s for s in spots if all(math.dist(s, t) > 13.0 for t in taken)]
        out.append((",".join(map(str, sorted(numbers))), (x, y), (free or spots)[0]))
    return out


def draw_field(difference: Difference, width: int = 300) -> str:
    """Draw what differs beyond the mean shift, as arrows over the chips."""
    chips = difference.field_mas
    rest = chips - np.array(difference.shift_mas)
    lengths = np.hypot(rest[..., 0], rest[..., 1])
    known = np.isfinite(lengths)
    if not known.any():
        return '<p class="soft">This solution cannot be evaluated.</p>'
    n_chips, ny, nx = lengths.shape
    unit = round_number(float(lengths[known].max())) or 1.0
    step = width / (nx + 1)
    tall = (ny + 0.6) * step * 0.75
    arrows = "".join(
        _arrow(rest[k, j, i] / unit * step * 0.9, (i + 1) * step,
               (n_chips - 1 - k) * tall + (ny - j) * step * 0.75)
        for k in range(n_chips) for j in range(ny) for i in range(nx) if known[k, j, i]
    )
    frames = "".join(
        f'<rect class="grid" x="2" y="{k * tall + 2:.1f}" width="{width - 4}" '
        f'height="{tall - 4:.1f}"/>' for k in range(n_chips)
    )
    height = tall * n_chips + 24
    bar = (
        f'<path class="bar" d="M8,{height - 9:.1f}h{step * 0.9:.1f}"/>'
        f'<text x="{16 + step * 0.9:.0f}" y="{height - 5:.0f}">{_angle(unit)}</text>'
    )
    return (
        f'<svg class="field" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'aria-label="What differs beyond the shift">{frames}{arrows}{bar}</svg>'
    )


def _arrow(vector: NDArray[np.float64], x: float, y: float) -> str:
    """Draw east to the left and north up, the arrow's middle at its place."""
    dx, dy = -float(vector[0]), -float(vector[1])
    length = math.hypot(dx, dy)
    x, y = x - dx / 2.0, y - dy / 2.0
    if length < 0.6:
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="0.9"/>'
    head = min(3.0, 0.45 * length)
    ux, uy = dx / length, dy / length
    left = (x + dx - head * (ux + 0.5 * uy), y + dy - head * (uy - 0.5 * ux))
    right = (x + dx - head * (ux - 0.5 * uy), y + dy - head * (uy + 0.5 * ux))
    return (
        f'<path class="arrow" d="M{x:.1f},{y:.1f}l{dx:.1f},{dy:.1f}'
        f'M{left[0]:.1f},{left[1]:.1f}L{x + dx:.1f},{y + dy:.1f}L{right[0]:.1f},{right[1]:.1f}"/>'
    )


def _angle(mas: float) -> str:
    if mas < 1000.0:
        return f"{mas:g} mas"
    return f"{mas / 1000.0:g}″" if mas < 6e4 else f"{mas / 6e4:.3g}′"
