"""Hypotheses: which few stars of the image are which few stars of the sky.

The quads of the image lie in a table over code space (:mod:`cynosure.geometry.match.asterisms`);
the quads of the sky are streamed past it. Each agreement is a similarity; it must respect what is
known of scale, rotation, parity and pointing, then place a neighbour or two, and is then grown
(:mod:`cynosure.geometry.match.verification`) from its A and B alone, so that C and D are the first
to be scored by it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.match.asterisms import (
    BINS,
    Y_MAX,
    Quads,
    bin_of,
    canonical,
    listed_earlier,
    reaches,
    sides,
)
from cynosure.geometry.match.verification import (
    N_TERMS,
    Birth,
    Expected,
    Grid,
    Growth,
    Work,
    by_distance,
    density_at,
    grow,
    nearest_free,
    terms_of,
)
from cynosure.ground.cache import compiled

__all__ = [
    "PREFILTER",
    "Found",
    "Limits",
    "Scene",
    "make_scene",
    "neighbour_radius",
    "no_hypotheses",
    "outward",
    "remember",
    "same",
    "search",
]

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Ints = NDArray[np.int64]

PREFILTER = 10  # neighbours that a similarity is asked to place before it is grown
KEEP = 12  # hypotheses that a search remembers
# Quads that are looked up after one was found beyond doubt, for another that says something else.
AFTERWARDS = 20_000
# An agreement takes as long as looking up about so many quads, and a growth.
AGREEMENT_COST = 10
GROWTH_COST = 1000


class Limits(NamedTuple):
    """What a hypothesis must respect. Pixels of the plane are nominal pixels.

    Attributes
    ----------
    tol : float
        Distance in code space.
    scale_min, scale_max : float
        Of nominal pixels a pixel.
    rotation, rotation_error : float
        Argument of the similarity's slope where the parity is 1, radians.
    center : complex
        The frame's centre, px.
    radius : float
        How far the centre may lie from the pointing, nominal px.
    norm : float
        Half the frame's diagonal, px.
    sigma_px : float
    enough : float
        Log-odds at which the search may end.
    """

    tol: float
    scale_min: float
    scale_max: float
    rotation: float
    rotation_error: float
    center: complex
    radius: float
    norm: float
    sigma_px: float
    enough: float


class Found(NamedTuple):
    """The best distinct hypotheses of a search; rows with log_odds above -1e300 are filled.

    Attributes
    ----------
    log_odds : (k,) ndarray
    parity, level : (k,) ndarray of int
    sigma_px : (k,) ndarray
    z0 : (k,) ndarray of complex
        Where it was born, in the (mirrored) pixels of its parity.
    coeff : (k, 10) ndarray of complex
    match : (k, n) ndarray of int
    counts : (4,) ndarray of int
        Quads of the sky looked up, agreements, hypotheses that passed the limits, grown.
    """

    log_odds: Floats
    parity: Ints
    level: Ints
    sigma_px: Floats
    z0: Complexes
    coeff: Complexes
    match: Ints
    counts: Ints


def no_hypotheses(n_sources: int) -> Found:
    """Return the empty memory that a search fills."""
    return Found(
        np.full(KEEP, -np.inf), np.zeros(KEEP, np.int64), np.zeros(KEEP, np.int64),
        np.zeros(KEEP), np.zeros(KEEP, np.complex128), np.zeros((KEEP, N_TERMS), np.complex128),
        np.full((KEEP, n_sources), -1, np.int64), np.zeros(4, np.int64),
    )


@compiled
def same(
    found: Found, k: int, parity: int, z0: complex, b: complex, a: complex, norm: float
) -> bool:
    """Say whether hypothesis `k` puts the place `z0` where ``a (z - z0) + b`` does."""
    if found.log_odds[k] < -1e300 or found.parity[k] != parity:
        return False
    slope = found.coeff[k, 1] / norm
    if abs(slope - a) > 0.1 * abs(a):
        return False
    phi = np.empty(N_TERMS, np.complex128)
    terms_of((z0 - found.z0[k]) / norm, phi)
    at = 0.0j
    for i in range(N_TERMS):
        at += found.coeff[k, i] * phi[i]
    return abs(at - b) < 0.03 * norm


class Scene(NamedTuple):
    """What a search works on.

    Attributes
    ----------
    zz : (2, n) ndarray of complex
        The sources, and the sources mirrored.
    near_z : (n, k) ndarray of int
        Neighbours of each source.
    quads : Quads
        Of the sources.
    w : (m,) ndarray of complex
        Reference stars on the plane, nominal px.
    near_w : (m, l) ndarray of int
        Neighbours of each reference star; its quads are itself with any three of them.
    grid : Grid
        Of `w`.
    limits : Limits
    work : Work
        Scratch.
    found : Found
        Filled.
    """

    zz: Complexes
    near_z: NDArray[np.int32]
    quads: Quads
    w: Complexes
    near_w: NDArray[np.int32]
    grid: Grid
    limits: Limits
    work: Work
    found: Found


def make_scene(
    z: Complexes, near_z: NDArray[np.int32], quads: Quads, w: Complexes,
    near_w: NDArray[np.int32], grid: Grid, limits: Limits,
) -> Scene:
    """Return a scene with nothing found yet."""
    n = len(z)
    return Scene(
        np.stack([z, z.conj()]), near_z, quads, w, near_w, grid, limits,
        Work(np.full(len(w), -1), np.full(n, -1), np.zeros(n), np.zeros(N_TERMS, np.complex128)),
        no_hypotheses(n),
    )


@compiled
def _places_neighbours(
    scene: Scene, z: Complexes, quad: NDArray[np.int32], a: complex, b: complex, z0: complex,
    size: float,
) -> bool:
    """Ask the similarity to place a few neighbours of the quad, within noise and distortion."""
    near, sigma_px = scene.near_z, scene.limits.sigma_px
    tried, hits = 0, 0
    for k in range(min(near.shape[1], PREFILTER)):
        i = near[quad[0], k]
        if i == quad[1] or i == quad[2] or i == quad[3]:
            continue
        p = a * (z[i] - z0) + b
        if density_at(scene.grid, p) <= 0.0:
            continue
        tried += 1
        radius = neighbour_radius(abs(z[i] - z0), size, sigma_px)
        j, _ = nearest_free(scene.grid, p, radius, scene.work.owner, -2)
        hits += j >= 0
    return tried < 3 or hits >= (2 if tried > 5 else 1)


@compiled(inline="always")
def neighbour_radius(reach: float, size: float, sigma_px: float) -> float:
    """Return how far off a neighbour may be placed: noise that grows with the lever, distortion."""
    noise = 2.0 * sigma_px**2 * (1.0 + (reach / size) ** 2)
    return 3.0 * np.sqrt(noise + (0.012 * reach) ** 2)


@compiled
def outward(z: Complexes, z0: complex, c: int, d: int) -> Ints:
    """Return the order of growth: C and D first, then by distance."""
    order = by_distance(z, z0)
    out = np.empty(order.size, np.int64)
    first, place = 0, 2
    for i in order:
        if i == c or i == d:
            out[first] = i
            first += 1
        else:
            out[place] = i
            place += 1
    return out


@compiled
def remember(
    found: Found, growth: Growth, parity: int, z0: complex, coeff: Complexes, match: Ints,
    norm: float,
) -> None:
    """Keep a hypothesis if it is better than what says the same, or than the worst."""
    slot = -1
    for k in range(KEEP):
        if same(found, k, parity, z0, coeff[0], coeff[1] / norm, norm):
            slot = k
            break
    if slot < 0:
        slot = 0
        for k in range(KEEP):
            if found.log_odds[k] < found.log_odds[slot]:
                slot = k
    if growth.log_odds <= found.log_odds[slot]:
        return
    found.log_odds[slot] = growth.log_odds
    found.parity[slot] = parity
    found.level[slot] = growth.level
    found.sigma_px[slot] = growth.sigma_px
    found.z0[slot] = z0
    for k in range(N_TERMS):
        found.coeff[slot, k] = coeff[k]
    for i in range(match.size):
        found.match[slot, i] = match[i]


@compiled
def _respects(limits: Limits, a: complex, b: complex, z0: complex, parity: int) -> bool:
    """Say whether a similarity respects what is known of scale, rotation and pointing."""
    if not (limits.scale_min <= abs(a) <= limits.scale_max):
        return False
    if limits.rotation_error < 3.14:
        angle = np.angle(a) + (0.0 if parity > 0 else np.pi)
        off = (angle - limits.rotation + np.pi) % (2.0 * np.pi) - np.pi
        if abs(off) > limits.rotation_error:
            return False
    center = limits.center if parity > 0 else limits.center.conjugate()
    return abs(a * (center - z0) + b) <= limits.radius


@compiled
def _consider(scene: Scene, quad: NDArray[np.int32], refs: Ints, parity: int) -> float:
    """Judge one agreement of two quads; return the log-odds of its growth, or minus infinity."""
    w, limits, found = scene.w, scene.limits, scene.found
    z = scene.zz[0] if parity > 0 else scene.zz[1]
    found.counts[1] += 1
    za, zb = z[quad[0]], z[quad[1]]
    z0, b = 0.5 * (za + zb), 0.5 * (w[refs[0]] + w[refs[1]])
    a = (w[refs[1]] - w[refs[0]]) / (zb - za)
    if not _respects(limits, a, b, z0, parity):
        return -np.inf
    found.counts[2] += 1
    size = abs(zb - za)
    if not _places_neighbours(scene, z, quad, a, b, z0, size):
        return -np.inf
    for k in range(KEEP):
        if found.log_odds[k] > limits.enough and same(found, k, parity, z0, b, a, limits.norm):
            return found.log_odds[k]
    found.counts[3] += 1
    seeds = np.empty(2, np.int64)
    seeds[0], seeds[1] = quad[0], quad[1]
    expected = Expected(
        limits.norm, 0.05 * abs(a) + 3.0 * limits.sigma_px / size,
        0.05 * size + 3.0 * limits.sigma_px, limits.sigma_px, -1.0, 0.15, -6.0,
    )
    growth = grow(
        z, outward(z, z0, quad[2], quad[3]), w, scene.grid,
        Birth(seeds, refs[:2], a, b, z0, found.counts[3]), expected, scene.work,
    )
    if growth.n_matched > 0:
        remember(found, growth, parity, z0, scene.work.coeff, scene.work.match, limits.norm)
    return growth.log_odds


@compiled
def _agreeing(
    start: Ints, entry: NDArray[np.int32], code: Floats, c: complex, d: complex, tol2: float,
    out: Ints,
) -> int:
    """List the quads of the image that agree with a code of the sky; return how many they are."""
    cell = bin_of(c.real, 0.0, 1.0) * BINS + bin_of(c.imag, -Y_MAX, Y_MAX)
    cell = (cell * BINS + bin_of(d.real, 0.0, 1.0)) * BINS + bin_of(d.imag, -Y_MAX, Y_MAX)
    n = 0
    for e in range(start[cell], start[cell + 1]):
        q = entry[e]
        d2 = (c.real - code[q, 0]) ** 2 + (c.imag - code[q, 1]) ** 2
        d2 += (d.real - code[q, 2]) ** 2 + (d.imag - code[q, 3]) ** 2
        if d2 <= tol2 and n < out.size:
            out[n] = q
            n += 1
    return n


@compiled
def _spent(found: Found) -> int:
    counts = found.counts
    return counts[0] + AGREEMENT_COST * counts[1] + GROWTH_COST * counts[3]


@compiled
def search(scene: Scene, budget: int) -> None:
    """Stream the quads of the sky past those of the image.

    It ends when all were looked up, when `budget` is spent, or a little after one was found beyond
    doubt.
    """
    # Arrays are taken out of their tuples here: a tuple costs a call more than looking up does.
    w, near, counts = scene.w, scene.near_w, scene.found.counts
    start, entry, code = scene.quads.start, scene.quads.entry, scene.quads.code
    lengths = scene.quads.length
    scale_min, scale_max, tol2 = scene.limits.scale_min, scene.limits.scale_max, scene.limits.tol**2
    shortest, longest = np.inf, 0.0
    for length in lengths:
        shortest = min(shortest, length * scale_min)
        longest = max(longest, length * scale_max)
    n_near = near.shape[1]
    p = np.empty(n_near + 1, np.complex128)
    side = np.empty((n_near + 1, n_near + 1))
    who, refs = np.empty(n_near + 1, np.int64), np.empty(4, np.int64)
    agree, reach = np.empty(lengths.size, np.int64), reaches(w, near)
    certain = False
    for r in range(w.size):
        if _spent(scene.found) >= budget:
            return
        sides(w, near, r, who, side)
        for i in range(n_near + 1):
            p[i] = w[who[i]]
        for i in range(1, n_near + 1):
            for j in range(i + 1, n_near + 1):
                for k in range(j + 1, n_near + 1):
                    if listed_earlier(who, side, reach, i, j, k):
                        continue
                    ia, ib, ic, id_, c, d = canonical(p, side, i, j, k)
                    length = side[ia, ib]
                    if length < shortest or length > longest:
                        continue
                    counts[0] += 1
                    for e in range(_agreeing(start, entry, code, c, d, tol2, agree)):
                        q = agree[e]
                        if not (scale_min <= length / lengths[q] <= scale_max):
                            continue
                        refs[0], refs[1], refs[2], refs[3] = who[ia], who[ib], who[ic], who[id_]
                        odds = _consider(scene, scene.quads.star[q], refs, scene.quads.parity[q])
                        if odds > scene.limits.enough and not certain:
                            certain = True
                            budget = min(budget, _spent(scene.found) + AFTERWARDS)
