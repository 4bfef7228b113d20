"""Recognising the stars of an image that could be anywhere: quads against the blind index.

The sources are thinned to about as many as a band of the index has in a field of its width; their
quads, in both parities, are looked up in every band (Lang et al. 2010, AJ 139, 1782). An agreement
of codes says where on the sky A and B would be, and so the scale: if the index knows fields of
that width, the neighbours are asked, and the hypothesis is grown among the stars of the band
(:mod:`cynosure.geometry.growth`); the best go on as in :mod:`cynosure.geometry.match`.

The image could have been at as many places as there are pairs of an image's quad and an index's
quad with different A and B. The logarithm of that number is taken off the log-odds before they are
compared with the limit, so that the limit means the same for a star field and for the whole sky.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from cynosure.geometry.growth import N_TERMS, grow, make_grid
from cynosure.geometry.hypotheses import (
    PREFILTER,
    _by_distance,
    neighbours,
    select,
    source_codes,
)
from cynosure.geometry.recognition import (
    MIN_SEP_PX,
    RANK,
    Hypothesis,
    Match,
    Sources,
    Stars,
    conclude,
    densify,
    prepare_sources,
    typical_density,
)
from cynosure.geometry.skyindex import (
    FIELD_STARS,
    Band,
    QuadIndex,
    Rows,
    build_index,
    open_index,
    project_one,
    quantised,
)
from cynosure.ground.errors import NoMatch, NotEnoughStars
from cynosure.ground.settings import Range, Unit
from cynosure.ground.sky import project, radec

__all__ = ["QuadIndex", "build_index", "open_index", "solve_blind"]

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Ints = NDArray[np.int64]

MIN_STARS = 6
NEAR = 7  # neighbours that a source makes quads with
# Sources in the thinned list, in the order in which they are tried: first about as many as the
# index has in a field, then what lies between two bands, then what odd depths need.
TIERS = ((20, 28, 14, 40), (20, 28, 14, 40, 10, 56, 80))
ENOUGH = 70.0  # log-odds at which the search ends at once
PROMISING = 12.0
WIDTH_SLACK = 1.5  # fields this much narrower or wider than the index's are still tried
KEEP = 8
MAX_GATHER = 6000


class _Search(NamedTuple):
    """What a blind search is given besides the lists."""

    tol: float
    scale_min: float  # radians a pixel
    scale_max: float
    center: complex
    norm: float
    sigma_px: float


class _Blind(NamedTuple):
    """The best hypotheses of a blind search.

    `tangent` is the unit vector that the plane of `coeff` touches, `scale` its nominal pixel in
    radians, `aim` the direction of the frame's centre, `match` the star of the band of each source.
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


def _nothing(n: int) -> _Blind:
    return _Blind(
        np.full(KEEP, -np.inf), np.zeros(KEEP, np.int64), np.zeros(KEEP, np.int64), np.zeros(KEEP),
        np.zeros(KEEP, np.complex128), np.zeros((KEEP, N_TERMS), np.complex128), np.zeros(KEEP),
        np.zeros((KEEP, 3)), np.zeros((KEEP, 3)), np.full((KEEP, n), -1, np.int64),
        np.zeros(4, np.int64),
    )


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _neighbours_there(
    z: Complexes, near: NDArray[np.int32], quad: NDArray[np.int32], a: complex, b: complex,
    z0: complex, size: float, sigma_px: float, points: Complexes, radius: float,
) -> bool:
    """Ask a similarity to place a few neighbours of the quad, among the stars gathered there."""
    tried, hits = 0, 0
    for k in range(min(near.shape[1], PREFILTER)):
        i = near[quad[0], k]
        if i == quad[1] or i == quad[2] or i == quad[3]:
            continue
        p = a * (z[i] - z0) + b
        reach = abs(z[i] - z0)
        r2 = 9.0 * (2.0 * sigma_px**2 * (1.0 + (reach / size) ** 2) + (0.012 * reach) ** 2)
        tried += 1
        for j in range(points.size):
            dx, dy = points[j].real - p.real, points[j].imag - p.imag
            if dx * dx + dy * dy < r2:
                hits += 1
                break
    return hits >= (2 if tried > 5 else 1)


@njit(cache=True, nogil=True)
def _consider(
    z: Complexes, near: NDArray[np.int32], quad: NDArray[np.int32], stars: NDArray[np.int32],
    parity: int, rows: Rows, search: _Search,
    number: Ints, point: Complexes, found: _Blind,
) -> float:
    """Judge one agreement; return the log-odds of its growth, or minus infinity."""
    found.counts[1] += 1
    vector = rows.vector
    x, y, t = 0.0, 0.0, 0.0
    for k in range(4):
        x += vector[stars[k], 0]
        y += vector[stars[k], 1]
        t += vector[stars[k], 2]
    length = np.sqrt(x * x + y * y + t * t)
    x, y, t = x / length, y / length, t / length
    va, vb = vector[stars[0]], vector[stars[1]]
    wa = project_one(float(va[0]), float(va[1]), float(va[2]), x, y, t)
    wb = project_one(float(vb[0]), float(vb[1]), float(vb[2]), x, y, t)
    za, zb = z[quad[0]], z[quad[1]]
    scale = abs(wb - wa) / abs(zb - za)
    if not (search.scale_min <= scale <= search.scale_max):
        return -np.inf
    found.counts[2] += 1
    # From here on the plane is in pixels of this hypothesis.
    z0, b = 0.5 * (za + zb), 0.5 * (wa + wb) / scale
    a = (wb - wa) / (zb - za) / scale
    size = abs(zb - za)
    reach = 0.0
    for k in range(min(near.shape[1], PREFILTER)):
        reach = max(reach, abs(z[near[quad[0], k]] - z0))
    n = _gather(rows, x, y, t, min((1.1 * reach + abs(b)) * scale, 1.2), number, point)
    for k in range(n):
        point[k] /= scale
    if not _neighbours_there(z, near, quad, a, b, z0, size, search.sigma_px, point[:n], reach):
        return -np.inf
    center = search.center if parity > 0 else search.center.conjugate()
    wc = (a * (center - z0) + b) * scale
    aim = _direction(wc, x, y, t)
    for k in range(KEEP):
        if found.log_odds[k] > ENOUGH and _close(found.aim[k], aim, search.norm * scale):
            return found.log_odds[k]
    found.counts[3] += 1
    radius = (1.1 * search.norm + abs(center - z0) + abs(b)) * scale
    n = _gather(rows, x, y, t, min(radius, 1.2), number, point)
    if n < 4:
        return -np.inf
    w = point[:n] / scale
    seeds, refs = np.empty(2, np.int64), np.empty(2, np.int64)
    seeds[0], seeds[1], refs[0], refs[1] = quad[0], quad[1], -1, -1
    for k in range(n):
        if number[k] == stars[0]:
            refs[0] = k
        if number[k] == stars[1]:
            refs[1] = k
    if refs[0] < 0 or refs[1] < 0:
        return -np.inf
    order = _by_distance(z, z0)
    place = 0
    for k in range(order.size):
        i = order[k]
        if i == quad[2] or i == quad[3]:
            order[place + 1 : k + 1] = order[place:k].copy()
            order[place] = i
            place += 1
    match, chance = np.empty(z.size, np.int64), np.zeros(z.size)
    coeff = np.empty(N_TERMS, np.complex128)
    growth = grow(
        z, order, seeds, refs, w, make_grid(w, 2.0), a, b, z0, search.norm, 0.05, 0.05 * size,
        search.sigma_px, -1, 0.15, -6.0, np.full(n, -1), 0, match, chance, coeff,
    )
    if growth.n_matched == 0:
        return growth.log_odds
    slot = int(np.argmin(found.log_odds))
    for k in range(KEEP):
        if found.log_odds[k] > -1e300 and _close(found.aim[k], aim, 0.2 * search.norm * scale):
            slot = k
    if growth.log_odds > found.log_odds[slot]:
        found.log_odds[slot], found.parity[slot] = growth.log_odds, parity
        found.level[slot], found.sigma_px[slot] = growth.level, growth.sigma_px
        found.z0[slot], found.scale[slot] = z0, scale
        found.coeff[slot] = coeff
        found.aim[slot] = aim
        found.tangent[slot, 0], found.tangent[slot, 1], found.tangent[slot, 2] = x, y, t
        for i in range(z.size):
            found.match[slot, i] = number[match[i]] if match[i] >= 0 else -1
    return growth.log_odds


@njit(cache=True, nogil=True)
def _direction(w: complex, x: float, y: float, z: float) -> Floats:
    """Invert :func:`project_one`."""
    h = np.sqrt(x * x + y * y)
    ex, ey = (-y / h, x / h) if h > 1e-9 else (0.0, 1.0)
    gx, gy, gz = -z * ey, z * ex, x * ey - y * ex
    out = np.array(
        [x - w.real * ex + w.imag * gx, y - w.real * ey + w.imag * gy, z + w.imag * gz]
    )
    return out / np.sqrt(np.sum(out**2))


@njit(cache=True, nogil=True)
def _close(a: Floats, b: Floats, radius: float) -> bool:
    return np.sum((a - b) ** 2) < radius * radius


@njit(cache=True, nogil=True)
def _search_band(
    zz: Complexes, near: NDArray[np.int32], star: NDArray[np.int32], code: Floats,
    signs: NDArray[np.int8], bins: int, stored: NDArray[np.uint16], quad: NDArray[np.int32],
    cell: NDArray[np.int32], rows: Rows, search: _Search,
    number: Ints, point: Complexes, found: _Blind,
) -> bool:
    """Look the quads of the image up in one band; say whether one was found beyond doubt."""
    low, high = np.empty(4, np.int64), np.empty(4, np.int64)
    at, unit = np.empty(4), np.empty(4)
    for k in range(4):
        unit[k] = quantised(1.0, k % 2 == 0) - quantised(0.0, k % 2 == 0)
    for q in range(code.shape[0]):
        found.counts[0] += 1
        for k in range(4):
            at[k] = quantised(code[q, k], k % 2 == 0)
            reach = search.tol * unit[k]
            low[k] = int(min(max(at[k] - reach, 0.0), 65535.0)) * bins // 65536
            high[k] = int(min(max(at[k] + reach, 0.0), 65535.0)) * bins // 65536
        for c0 in range(low[0], high[0] + 1):
            for c1 in range(low[1], high[1] + 1):
                for c2 in range(low[2], high[2] + 1):
                    # The cells of the last axis lie side by side.
                    first = ((c0 * bins + c1) * bins + c2) * bins
                    begin, end = cell[first + low[3]], cell[first + high[3] + 1]
                    for e in range(max(begin, 0), min(end, quad.shape[0])):
                        d2 = 0.0
                        for k in range(4):
                            d2 += ((stored[e, k] - at[k]) / unit[k]) ** 2
                        if d2 > search.tol * search.tol or not _known(quad[e], rows.ra.size):
                            continue
                        z = zz[0] if signs[q] > 0 else zz[1]
                        odds = _consider(
                            z, near, star[q], quad[e], signs[q], rows, search,
                            number, point, found,
                        )
                        if odds > ENOUGH:
                            return True
    return False


@njit(cache=True, nogil=True, inline="always")
def _known(quad: NDArray[np.int32], n: int) -> bool:
    """Guard against a damaged file: numbers of stars that do not exist."""
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
    """Recognise the stars of an image that could be anywhere.

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
        Log-odds from which a match is accepted, with the number of places where it could have
        been taken off.
    min_lead : float
        How far the second-best place must be behind.

    Returns
    -------
    Match
        Its `reference_index` counts in the stars of `index`.

    Raises
    ------
    NotEnoughStars
        If fewer than six sources can take part.
    NoMatch
        If no hypothesis is accepted; its fact `tried` says what was tried, with numbers.
    """
    sources = prepare_sources(x, y, flux, shape)
    if len(sources.z) < MIN_STARS:
        raise NotEnoughStars(image=name, n_sources=len(sources.z), needed=MIN_STARS)
    width = np.radians(np.array([index.min_width_deg, index.max_width_deg])) / np.sqrt(
        shape[0] * shape[1]
    )
    scale_min, scale_max = width[0] / WIDTH_SLACK, width[1] * WIDTH_SLACK
    if min_scale_arcsec is not None:
        scale_min = max(scale_min, np.radians(min_scale_arcsec / 3600.0))
    if max_scale_arcsec is not None:
        scale_max = min(scale_max, np.radians(max_scale_arcsec / 3600.0))
    tried: list[str] = []
    known: list[Hypothesis] = []
    for tol, tiers in zip((0.01, 0.02), TIERS):
        search = _Search(tol, scale_min, scale_max, sources.center, sources.norm, sigma_px)
        sizes: set[int] = set()
        for tier in tiers:
            for h, stars in _tier(sources, index, search, tier, parity, sizes, tried):
                grown = densify(h, sources, stars) if h.log_odds > PROMISING else h
                known.append(grown)
                lead = grown.log_odds - max(
                    (k.log_odds for k in known if not grown.says_the_same(k)), default=0.0
                )
                if grown.log_odds >= min_log_odds and lead >= min_lead:
                    evidence = {"tried": tried, "second_log_odds": grown.log_odds - lead}
                    return conclude(
                        grown, sources, stars, index.ra_deg, index.dec_deg, len(stars.w), evidence
                    )
    raise NoMatch(
        image=name, n_sources=len(sources.z), n_reference=len(index.ra_deg), tried=tried,
        best_log_odds=round(max((h.log_odds for h in known), default=0.0), 1),
        needed_log_odds=min_log_odds,
        hint="Give the scale (--scale), use an index for narrower or wider fields, or check that the "
        "sources are stars.",
    )


def _tier(
    sources: Sources, index: QuadIndex, search: _Search, tier: int, parity: int,
    sizes: set[int], tried: list[str],
) -> list[tuple[Hypothesis, Stars]]:
    """Look up the quads of about `tier` sources in every band that could hold them."""
    common = min(tier / sources.area, 1.3 * sources.density)
    i = select(sources.z, float(np.sqrt(RANK / (np.pi * common))), RANK, MIN_SEP_PX)
    z = sources.z[i]
    if len(z) < MIN_STARS or len(z) in sizes:
        return []
    sizes.add(len(z))
    near = neighbours(z, max(NEAR, PREFILTER))
    star, code, _, signs = source_codes(
        z, np.ascontiguousarray(near[:, :NEAR]), parity, search.tol
    )
    zz = np.stack([z, z.conj()])
    number, point = np.empty(MAX_GATHER, np.int64), np.empty(MAX_GATHER, np.complex128)
    places = np.log(max(index.n_quads, 1)) + np.log(len(z) * NEAR)
    out: list[tuple[Hypothesis, Stars]] = []
    counts = np.zeros(4, np.int64)
    for band in reversed(index.bands):
        if not _plausible(band, sources, search, len(z)):
            continue
        found = _nothing(len(z))
        sure = _search_band(
            zz, near, star, code, signs, band.bins, band.code, band.quad, band.cell, band.rows,
            search, number, point, found,
        )
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


def _plausible(band: Band, sources: Sources, search: _Search, n: int) -> bool:
    """Say whether a list of `n` sources may be as deep as this band at an allowed scale."""
    width = np.radians(band.width_deg) * np.sqrt(n / FIELD_STARS)
    side = np.sqrt(sources.area)
    return search.scale_min * side / 2.5 <= width <= search.scale_max * side * 2.5


def _hypothesis(
    found: _Blind, k: int, i: Ints, band: Band, index: QuadIndex, sources: Sources, places: float
) -> tuple[Hypothesis, Stars]:
    """Return a hypothesis in rows of the full lists, with the stars of the index around it."""
    tangent, scale = found.tangent[k], float(found.scale[k])
    ra0, dec0 = (float(v) for v in radec(tangent))
    hit = np.flatnonzero(found.match[k] >= 0)
    matched = np.asarray(band.star)[found.match[k][hit]].astype(np.int64)
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
        float(found.sigma_px[k]), complex(found.z0[k]), sources.norm, found.coeff[k].copy(), i[hit], j, "blind",
    ), stars


def _stars_around(index: QuadIndex, aim: Floats, radius: float) -> Ints:
    """Return the stars of the index within `radius` of a direction: all, or those of a band."""
    number, point = np.empty(MAX_GATHER, np.int64), np.empty(MAX_GATHER, np.complex128)
    n = _gather(index.rows, *aim, min(radius, 1.2), number, point)
    if n < MAX_GATHER:
        return number[:n].copy()
    for band in index.bands:
        n = _gather(band.rows, *aim, min(radius, 1.2), number, point)
        if n < MAX_GATHER:
            break
    return np.asarray(band.star)[number[:n]].astype(np.int64)
