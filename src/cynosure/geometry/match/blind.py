"""Match an image without a pointing: look up its quads in the blind index.

The sources are thinned to about as many as a band of the index has in a field of its width; their
quads, in both parities, are looked up in every band (Lang et al. 2010, AJ 139, 1782). An agreement
of codes gives the positions of A and B on the sky, and so the scale. If the scale lies within the
limits of the index and neighbours of the quad are found where they are predicted, the hypothesis is
grown among the stars of the band (:mod:`cynosure.geometry.match.verification`); the best ones
continue as in :mod:`cynosure.geometry.match.pointing`.

The number of hypotheses is that of the pairs of an image's quad and an index's quad with different
A and B. Its logarithm is subtracted from the log-odds before they are compared with the limit, so
that the limit means the same for a star field and for the whole sky.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.geometry.match.asterisms import neighbours, select, source_codes
from cynosure.geometry.match.hypotheses import PREFILTER, neighbour_radius, outward
from cynosure.geometry.match.index import (
    FIELD_STARS,
    Band,
    QuadIndex,
    Rows,
    build_index,
    direction_of,
    open_index,
    project_one,
    quantised,
)
from cynosure.geometry.match.lists import (
    MIN_SEP_PX,
    RANK,
    Acceptance,
    Hypothesis,
    Match,
    Sources,
    Stars,
    densify,
    prepare_sources,
    typical_density,
)
from cynosure.geometry.match.refinement import conclude
from cynosure.geometry.match.verification import (
    N_TERMS,
    Birth,
    Expected,
    Growth,
    Work,
    grow,
    make_grid,
)
from cynosure.ground.cache import compiled
from cynosure.ground.errors import CatalogDamaged, NoMatch, NotEnoughStars
from cynosure.ground.settings import Range, Unit
from cynosure.ground.sky import project, radec

__all__ = ["QuadIndex", "build_index", "open_index", "solve_blind"]

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Ints = NDArray[np.int64]

# Fewest sources: four make the quad, and two are left to verify it.
MIN_STARS = 6
# Neighbours that a source makes quads with, 35 quads a source: enough that a quad survives where a
# third of the sources are spurious.
NEAR = 7
# Sources in the thinned list, in the order in which they are tried: first about as many as the
# index has in a field (24), then numbers that fit half-way between two bands, then those of images
# that are much shallower or deeper than the index. The second row is tried with a wider tolerance.
TIERS = ((20, 28, 14, 40), (20, 28, 14, 40, 10, 56, 80))
# Log-odds at which the search ends at once: far above the logarithm of the number of hypotheses of
# the whole sky (below 30) plus the acceptance limit.
ENOUGH = 70.0
PROMISING = 12.0  # log-odds from which a hypothesis is grown over fainter stars
WIDTH_SLACK = 1.5  # fields narrower or wider than the index's by this factor are still tried
KEEP = 8  # hypotheses that a search keeps
MAX_GATHER = 6000  # stars of the index that one hypothesis is grown among; it limits the memory
MAX_RADIUS = 1.2  # radians (69 degrees), where the scale of the tangent plane has grown to eight


class _Blind(NamedTuple):
    """The best hypotheses of a blind search.

    `tangent` is the unit vector that the plane of `coeff` touches, `scale` its nominal pixel in
    radians, `aim` the direction of the frame's centre, `match` the star of the band of each
    source; `counts` are quads looked up, agreements, those within the limits, those grown.
    """

    log_odds: Floats
    parity: Ints
    level: Ints
    sigma_px: Floats
    z0: Complexes
    coeff: Complexes
    scale: Floats
    tangent: Floats
    aim: Floats
    match: Ints
    counts: Ints


class _Scene(NamedTuple):
    """The input of a blind search: sources, neighbours, quads, limits; and its work arrays."""

    zz: Complexes
    near: NDArray[np.int32]
    star: NDArray[np.int32]
    code: Floats
    signs: Ints
    tol: float
    scale_min: float  # radians a pixel
    scale_max: float
    center: complex
    norm: float
    sigma_px: float
    number: Ints
    point: Complexes
    found: _Blind


def _nothing(n: int) -> _Blind:
    return _Blind(
        np.full(KEEP, -np.inf), np.zeros(KEEP, np.int64), np.zeros(KEEP, np.int64), np.zeros(KEEP),
        np.zeros(KEEP, np.complex128), np.zeros((KEEP, N_TERMS), np.complex128), np.zeros(KEEP),
        np.zeros((KEEP, 3)), np.zeros((KEEP, 3)), np.full((KEEP, n), -1, np.int64),
        np.zeros(4, np.int64),
    )


@compiled
def _gather(
    rows: Rows, x: float, y: float, z: float, radius: float,
    number: Ints, point: Complexes,
) -> int:
    """Find the stars of a band within `radius` (radians) of a direction, and project them there."""
    vector, ra, row = rows.vector, rows.ra, rows.start
    n_rows = row.size - 1
    height = np.pi / n_rows
    dec = np.arcsin(min(max(z, -1.0), 1.0))
    ra0 = np.arctan2(y, x) % (2.0 * np.pi)
    j0 = max(int((dec - radius + 0.5 * np.pi) / height), 0)
    j1 = min(int((dec + radius + 0.5 * np.pi) / height), n_rows - 1)
    reach = np.pi
    if abs(dec) + radius < 0.5 * np.pi:
        reach = np.arcsin(min(np.sin(radius) / np.cos(dec), 1.0))
    cosine = np.cos(radius)
    n = 0
    for j in range(j0, j1 + 1):
        for turn in range(-1, 2):
            low, high = ra0 - reach + turn * 2.0 * np.pi, ra0 + reach + turn * 2.0 * np.pi
            if turn != 0 and reach >= np.pi:
                continue
            if reach >= np.pi:
                low, high = -1.0, 7.0
            if high < 0.0 or low > 2.0 * np.pi:
                continue
            a, b = row[j], row[j + 1]
            while a < b:
                middle = (a + b) // 2
                if ra[middle] < low:
                    a = middle + 1
                else:
                    b = middle
            while a < row[j + 1] and ra[a] <= high and n < number.size:
                vx, vy, vz = float(vector[a, 0]), float(vector[a, 1]), float(vector[a, 2])
                if vx * x + vy * y + vz * z > cosine:
                    number[n] = a
                    point[n] = project_one(vx, vy, vz, x, y, z)
                    n += 1
                a += 1
    return n


@compiled
def _middle(vector: NDArray[np.float32], stars: NDArray[np.int32]) -> tuple[float, float, float]:
    x, y, z = 0.0, 0.0, 0.0
    for k in range(4):
        x += vector[stars[k], 0]
        y += vector[stars[k], 1]
        z += vector[stars[k], 2]
    length = np.sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length


@compiled
def _neighbours_there(
    scene: _Scene, z: Complexes, quad: NDArray[np.int32], rows: Rows, scale: float,
    pole: tuple[float, float, float], similarity: tuple[complex, complex, complex],
) -> bool:
    """Say whether a similarity (a, b, z0) predicts stars at a few neighbours of the quad."""
    near, point = scene.near, scene.point
    (x, y, t), (a, b, z0) = pole, similarity
    size = abs(z[quad[1]] - z[quad[0]])
    count = min(near.shape[1], PREFILTER)
    reach = 0.0
    for k in range(count):
        reach = max(reach, abs(z[near[quad[0], k]] - z0))
    reach = min((1.1 * reach + abs(b)) * scale, MAX_RADIUS)
    n = _gather(rows, x, y, t, reach, scene.number, point)
    tried, hits = 0, 0
    for k in range(count):
        i = near[quad[0], k]
        if i == quad[1] or i == quad[2] or i == quad[3]:
            continue
        p = a * (z[i] - z0) + b
        r2 = neighbour_radius(abs(z[i] - z0), size, scene.sigma_px) ** 2
        tried += 1
        for j in range(n):
            dx, dy = point[j].real / scale - p.real, point[j].imag / scale - p.imag
            if dx * dx + dy * dy < r2:
                hits += 1
                break
    return hits >= (2 if tried > 5 else 1)


@compiled
def _consider(
    scene: _Scene, quad: NDArray[np.int32], stars: NDArray[np.int32], parity: int, rows: Rows
) -> float:
    """Judge one agreement; return the log-odds of its growth, or minus infinity."""
    z, found = scene.zz[0] if parity > 0 else scene.zz[1], scene.found
    found.counts[1] += 1
    x, y, t = _middle(rows.vector, stars)
    va, vb = rows.vector[stars[0]], rows.vector[stars[1]]
    wa = project_one(float(va[0]), float(va[1]), float(va[2]), x, y, t)
    wb = project_one(float(vb[0]), float(vb[1]), float(vb[2]), x, y, t)
    za, zb = z[quad[0]], z[quad[1]]
    scale = abs(wb - wa) / abs(zb - za)
    if not (scene.scale_min <= scale <= scene.scale_max):
        return -np.inf
    found.counts[2] += 1
    # From here on the unit of the plane is a pixel at the scale of this hypothesis.
    z0, b = 0.5 * (za + zb), 0.5 * (wa + wb) / scale
    a = (wb - wa) / (zb - za) / scale
    size = abs(zb - za)
    if not _neighbours_there(scene, z, quad, rows, scale, (x, y, t), (a, b, z0)):
        return -np.inf
    center = scene.center if parity > 0 else scene.center.conjugate()
    aim = direction_of((a * (center - z0) + b) * scale, x, y, t)
    for k in range(KEEP):
        if found.log_odds[k] > ENOUGH and _close(found.aim[k], aim, scene.norm * scale):
            return found.log_odds[k]
    found.counts[3] += 1
    radius = (1.1 * scene.norm + abs(center - z0) + abs(b)) * scale
    n = _gather(rows, x, y, t, min(radius, MAX_RADIUS), scene.number, scene.point)
    w = scene.point[:n] / scale
    seeds, refs = np.empty(2, np.int64), np.empty(2, np.int64)
    seeds[0], seeds[1], refs[0], refs[1] = quad[0], quad[1], -1, -1
    for k in range(n):
        for s in range(2):
            if scene.number[k] == stars[s]:
                refs[s] = k
    if refs[0] < 0 or refs[1] < 0:
        return -np.inf
    match, chance, owner = np.empty(z.size, np.int64), np.zeros(z.size), np.zeros(n, np.int64)
    coeff = np.empty(N_TERMS, np.complex128)
    # The slope of A and B is known to 5 % and their middle to 5 % of their distance (a lens of that
    # size); 15 % of the sources at least are expected to match, and a score of -6 ends the growth.
    growth = grow(
        z, outward(z, z0, quad[2], quad[3]), w, make_grid(w, 2.0), Birth(seeds, refs, a, b, z0, n),
        Expected(scene.norm, 0.05, 0.05 * size, scene.sigma_px, -1.0, 0.15, -6.0),
        Work(owner, match, chance, coeff),
    )
    if growth.n_matched > 0:
        slot = _slot(found, growth, aim, 0.2 * scene.norm * scale)
        if slot >= 0:
            found.parity[slot], found.z0[slot], found.scale[slot] = parity, z0, scale
            for k in range(N_TERMS):
                found.coeff[slot, k] = coeff[k]
            found.tangent[slot, 0], found.tangent[slot, 1], found.tangent[slot, 2] = x, y, t
            for i in range(z.size):
                found.match[slot, i] = scene.number[match[i]] if match[i] >= 0 else -1
    return growth.log_odds


@compiled
def _slot(found: _Blind, growth: Growth, aim: Floats, radius: float) -> int:
    """Return the place of a hypothesis: that of the same solution, else of the worst; or -1."""
    slot = 0
    for k in range(KEEP):
        if found.log_odds[k] < found.log_odds[slot]:
            slot = k
    for k in range(KEEP):
        if found.log_odds[k] > -1e300 and _close(found.aim[k], aim, radius):
            slot = k
    if growth.log_odds <= found.log_odds[slot]:
        return -1
    found.log_odds[slot], found.level[slot] = growth.log_odds, growth.level
    found.sigma_px[slot] = growth.sigma_px
    for k in range(3):
        found.aim[slot, k] = aim[k]
    return slot


@compiled
def _close(a: Floats, b: Floats, radius: float) -> bool:
    dx, dy, dz = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return bool(dx * dx + dy * dy + dz * dz < radius * radius)


@compiled
def _search_band(scene: _Scene, band: Band) -> bool:
    """Look up the quads of the image in one band; say whether one reached ENOUGH."""
    low, high = np.empty(4, np.int64), np.empty(4, np.int64)
    at, unit = np.empty(4), np.empty(4)
    for k in range(4):
        unit[k] = quantised(1.0, k % 2 == 0) - quantised(0.0, k % 2 == 0)
    bins, tol2 = band.bins, scene.tol * scene.tol
    for q in range(scene.code.shape[0]):
        scene.found.counts[0] += 1
        for k in range(4):
            at[k] = quantised(scene.code[q, k], k % 2 == 0)
            reach = scene.tol * unit[k]
            low[k] = int(min(max(at[k] - reach, 0.0), 65535.0)) * bins // 65536
            high[k] = int(min(max(at[k] + reach, 0.0), 65535.0)) * bins // 65536
        for c0 in range(low[0], high[0] + 1):
            for c1 in range(low[1], high[1] + 1):
                for c2 in range(low[2], high[2] + 1):
                    # The cells of the last axis lie side by side.
                    first = ((c0 * bins + c1) * bins + c2) * bins
                    begin, end = band.cell[first + low[3]], band.cell[first + high[3] + 1]
                    for e in range(max(begin, 0), min(end, band.quad.shape[0])):
                        d2 = 0.0
                        for k in range(4):
                            d2 += ((band.code[e, k] - at[k]) / unit[k]) ** 2
                        if d2 > tol2 or not _known(band.quad[e], band.star.size):
                            continue
                        odds = _consider(
                            scene, scene.star[q], band.quad[e], scene.signs[q], band.rows
                        )
                        if odds > ENOUGH:
                            return True
    return False


@compiled(inline="always")
def _known(quad: NDArray[np.int32], n: int) -> bool:
    """Say whether the stars of a quad exist, which they may not in a damaged file."""
    for k in range(4):
        if quad[k] < 0 or quad[k] >= n:
            return False
    return True


def solve_blind(
    x: ArrayLike, y: ArrayLike, flux: ArrayLike, index: QuadIndex, shape: tuple[int, int],
    *,
    min_scale_arcsec: Annotated[float | None, Unit("arcsec"), Range(1e-3, 3600.0)] = None,
    max_scale_arcsec: Annotated[float | None, Unit("arcsec"), Range(1e-3, 3600.0)] = None,
    parity: Annotated[int, Range(-1, 1)] = 0,
    sigma_px: Annotated[float, Unit("px"), Range(0.01, 10.0)] = 0.5,
    name: str = "image",
    min_log_odds: Annotated[float, Range(5.0, 1000.0)] = 30.0,
    min_lead: Annotated[float, Range(0.0, 1000.0)] = 10.0,
) -> Match:
    """Match the stars of an image without a pointing.

    Parameters
    ----------
    x, y, flux : (n,) array_like
        Sources, 0-based pixels, in any order. The flux is used as an order only.
    index : QuadIndex
    shape : tuple of int
        Rows and columns of the image.
    min_scale_arcsec, max_scale_arcsec : float
        Limits of the size of a pixel; without them those of the fields that the index is for.
    parity : int
        +1, -1 as in :class:`cynosure.data.frame.Pointing`, 0 for unknown.
    sigma_px : float
        Error of a source's position per axis, as a first guess.
    name : str
        What messages call the image.
    min_log_odds : float
        Log-odds from which a match is accepted, after the logarithm of the number of hypotheses
        has been subtracted. 30 is odds of 10^13.
    min_lead : float
        Least difference of the log-odds to the best match at another place. 10 is a factor 22,000.

    Returns
    -------
    Match
        Its `reference_index` counts in the stars of `index`.

    Raises
    ------
    CatalogDamaged
        If the index contradicts itself.
    NotEnoughStars
        If fewer than six sources can take part.
    NoMatch
        If no hypothesis is accepted; its fact `tried` says what was tried, with numbers.
    """
    sources = prepare_sources(x, y, flux, shape)
    if len(sources.z) < MIN_STARS:
        raise NotEnoughStars(image=name, n_sources=len(sources.z), needed=MIN_STARS)
    acceptance = Acceptance(min_log_odds, min_lead)
    scales = _scales(index, shape, min_scale_arcsec, max_scale_arcsec)
    tried: list[str] = []
    known: list[Hypothesis] = []
    for tol, tiers in zip((0.01, 0.02), TIERS):  # tolerances of the codes: 0.5 px in 50, and twice
        sizes: set[int] = set()
        for tier in tiers:
            step = _Tier(tier, tol, scales, parity, sigma_px)
            for h, stars in _look_up(sources, index, step, sizes, tried):
                grown = densify(h, sources, stars) if h.log_odds > PROMISING else h
                known.append(grown)
                second = acceptance.judge(grown, known)
                if second is None:
                    continue
                evidence = {"tried": tried, "second_log_odds": second}
                return conclude(
                    grown, sources, stars, index.ra_deg, index.dec_deg, len(stars.w), evidence
                )
    raise NoMatch(
        image=name, n_sources=len(sources.z), n_reference=len(index.ra_deg), tried=tried,
        best_log_odds=round(max((h.log_odds for h in known), default=0.0), 1),
        needed_log_odds=min_log_odds,
        hint="Give the scale (--scale), use an index for narrower or wider fields, or check that "
        "the sources are stars.",
    )


def _scales(
    index: QuadIndex, shape: tuple[int, int], low_arcsec: float | None, high_arcsec: float | None
) -> tuple[float, float]:
    """Return the least and the largest size of a pixel, radians."""
    side = np.sqrt(shape[0] * shape[1])
    low = np.radians(index.min_width_deg) / side / WIDTH_SLACK
    high = np.radians(index.max_width_deg) / side * WIDTH_SLACK
    if low_arcsec is not None:
        low = max(low, np.radians(low_arcsec / 3600.0))
    if high_arcsec is not None:
        high = min(high, np.radians(high_arcsec / 3600.0))
    return float(low), float(high)


class _Tier(NamedTuple):
    """One attempt: number of sources, tolerance of the codes, limits of scale, parity, error."""

    n_target: int
    tol: float
    scales: tuple[float, float]
    parity: int
    sigma_px: float


def _look_up(
    sources: Sources, index: QuadIndex, tier: _Tier, sizes: set[int], tried: list[str]
) -> list[tuple[Hypothesis, Stars]]:
    """Look up the quads of a tier's sources in every band that could hold them."""
    n_target, tol, scales, parity, sigma_px = tier
    common = min(n_target / sources.area, 1.3 * sources.density)
    i = select(sources.z, float(np.sqrt(RANK / (np.pi * common))), RANK, MIN_SEP_PX)
    z = sources.z[i]
    if len(z) < MIN_STARS or len(z) in sizes:
        return []
    sizes.add(len(z))
    near = neighbours(z, max(NEAR, PREFILTER))
    star, code, _, signs = source_codes(z, np.ascontiguousarray(near[:, :NEAR]), parity, tol)
    scene = _Scene(
        np.stack([z, z.conj()]), near, star, code, signs, tol, *scales, sources.center,
        sources.norm, sigma_px, np.empty(MAX_GATHER, np.int64),
        np.empty(MAX_GATHER, np.complex128), _nothing(len(z)),
    )
    places = float(np.log(max(index.n_quads, 1)) + np.log(len(z) * NEAR))
    out: list[tuple[Hypothesis, Stars]] = []
    counts = np.zeros(4, np.int64)
    for band in reversed(index.bands):
        if not _plausible(band, sources, scales, len(z)):
            continue
        found = _nothing(len(z))
        sure = _search_band(scene._replace(found=found), band)
        counts += found.counts
        for k in np.argsort(-found.log_odds, kind="stable"):
            if found.log_odds[k] > PROMISING:
                out.append(_hypothesis(found, k, i, band, index, sources, places))
        if sure:
            break
    out.sort(key=lambda pair: -pair[0].log_odds)
    tried.append(
        f"blind: {len(z)} sources, {counts[0]} quads looked up, {counts[1]} agree, {counts[3]} "
        f"grown, log-odds {max((h.log_odds for h, _ in out), default=0.0):.1f}"
    )
    return out[:3]


def _plausible(band: Band, sources: Sources, scales: tuple[float, float], n: int) -> bool:
    """Say whether a list of `n` sources may be as deep as this band at an allowed scale."""
    width = np.radians(band.width_deg) * np.sqrt(n / FIELD_STARS)
    side = np.sqrt(sources.area)
    return scales[0] * side / 2.5 <= width <= scales[1] * side * 2.5


def _hypothesis(
    found: _Blind, k: int, i: Ints, band: Band, index: QuadIndex, sources: Sources, places: float
) -> tuple[Hypothesis, Stars]:
    """Return a hypothesis in rows of the full lists, with the stars of the index around it."""
    tangent, scale = found.tangent[k], float(found.scale[k])
    ra0, dec0 = (float(v) for v in radec(tangent))
    hit = np.flatnonzero(found.match[k] >= 0)
    matched = np.asarray(band.star)[found.match[k][hit]].astype(np.int64)
    if np.any((matched < 0) | (matched >= len(index.ra_deg))):
        raise CatalogDamaged(
            catalog=str(index.path), reason="a band refers to stars that do not exist",
            hint="Build it again with `cynosure index build`.",
        )
    near = _stars_around(index, found.aim[k], 1.25 * sources.norm * scale)
    near = np.union1d(near, matched)
    near = near[np.argsort(index.mag[near], kind="stable")]
    xi, eta = project(index.ra_deg[near], index.dec_deg[near], ra0, dec0)
    w = (-xi + 1j * eta) / np.degrees(scale)
    stars = Stars(
        w, near, np.asarray(index.mag[near], dtype=float), float(np.degrees(scale)), ra0, dec0,
        typical_density(w),
    )
    order = np.argsort(near, kind="stable")
    j = order[np.searchsorted(near[order], matched)]
    return Hypothesis(
        float(found.log_odds[k]) - places, int(found.parity[k]), int(found.level[k]),
        float(found.sigma_px[k]), complex(found.z0[k]), sources.norm, found.coeff[k].copy(),
        i[hit], j, "blind",
    ), stars


def _stars_around(index: QuadIndex, aim: Floats, radius: float) -> Ints:
    """Return the stars of the index within `radius` of a direction: all, or those of a band."""
    number, point = np.empty(MAX_GATHER, np.int64), np.empty(MAX_GATHER, np.complex128)
    x, y, z = (float(v) for v in aim)
    radius = min(radius, MAX_RADIUS)
    n = _gather(index.rows, x, y, z, radius, number, point)
    if n < MAX_GATHER:
        return number[:n].copy()
    for band in index.bands:
        n = _gather(band.rows, x, y, z, radius, number, point)
        if n < MAX_GATHER:
            break
    return np.asarray(band.star)[number[:n]].astype(np.int64)
