"""Hypotheses: which few stars of the image are which few stars of the sky.

Two lists of very different depth and extent are made alike first: a star stays where fewer than
`rank` brighter ones lie within a fixed radius (adaptive non-maximal suppression, Brown et al.
2005). The rule knows nothing of frames, cells or rotations, evens out clusters, and needs
brightness as an order only.

Four neighbours make a quad: the two most distant stars A, B define a frame in which A is (0, 0)
and B is (1, 0), and the places of C and D in it are four numbers that do not change with shift,
rotation or scale (Lang et al. 2010, AJ 139, 1782; there with B at (1, 1)). The quads of the image
lie in a table over cells of that space; the quads of the sky are streamed past it. Each agreement
is a similarity; it must respect what is known of scale, rotation, parity and pointing, then place
a neighbour or two, and is then grown (:mod:`cynosure.geometry.growth`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cynosure.geometry.growth import N_TERMS, Grid, _density_at, _nearest_free, _terms, grow

__all__ = [
    "BINS",
    "Found",
    "Limits",
    "Quads",
    "neighbours",
    "search",
    "select",
    "source_codes",
    "source_quads",
]

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Ints = NDArray[np.int64]

BINS = 16  # cells on each axis of code space
Y_MAX = 0.88  # |y| of C and D is at most sqrt(3)/2, for AB is the longest side
PREFILTER = 10  # neighbours that a similarity is asked to place before it is grown
KEEP = 12  # hypotheses that a search remembers


@njit(cache=True, nogil=True)
def select(points: Complexes, radius: float, rank: int, min_sep: float) -> Ints:
    """Return the points with fewer than `rank` earlier ones within `radius`.

    Parameters
    ----------
    points : (n,) ndarray of complex
        Brightest first.
    radius : float
    rank : int
    min_sep : float
        A point closer than this to an earlier one is a second detection of it, and left out.
    """
    n = points.size
    kept = np.empty(n, np.int64)
    if n == 0:
        return kept
    x0, y0 = points.real.min(), points.imag.min()
    width, height = points.real.max() - x0, points.imag.max() - y0
    size = max(radius, min_sep, max(width, height) / 2000.0, np.sqrt(width * height / n), 1e-9)
    nx, ny = int(width / size) + 1, int(height / size) + 1
    # A cell as wide as the radius need not list more than a few times `rank`: whoever has so many
    # brighter ones in a cell beside it has enough of them near.
    room = 5 * rank if size == radius else n
    head = np.full(nx * ny, -1, np.int64)
    listed = np.zeros(nx * ny, np.int64)
    entry = np.empty(n, np.complex128)
    following = np.empty(n, np.int64)
    n_kept, n_entries = 0, 0
    radius2, sep2 = radius * radius, min_sep * min_sep
    for i in range(n):
        ci, cj = int((points[i].real - x0) / size), int((points[i].imag - y0) / size)
        home = cj * nx + ci
        brighter = 0
        for step in range(9):  # the star's own cell first
            c, j = ci + (step % 3 + 1) % 3 - 1, cj + (step // 3 + 1) % 3 - 1
            if c < 0 or j < 0 or c >= nx or j >= ny:
                continue
            k = head[j * nx + c]
            while k >= 0 and brighter < rank:
                dx, dy = entry[k].real - points[i].real, entry[k].imag - points[i].imag
                d2 = dx * dx + dy * dy
                if d2 < sep2:
                    brighter = rank
                elif d2 < radius2:
                    brighter += 1
                k = following[k]
            if brighter >= rank:
                break
        if brighter < rank:
            kept[n_kept] = i
            n_kept += 1
        if listed[home] < room:
            entry[n_entries] = points[i]
            following[n_entries] = head[home]
            head[home] = n_entries
            listed[home] += 1
            n_entries += 1
    return kept[:n_kept]


def neighbours(points: Complexes, count: int) -> NDArray[np.int32]:
    """Return the `count` nearest neighbours (n, count) of each point, nearest first."""
    from scipy.spatial import cKDTree

    count = min(count, len(points) - 1)
    if count < 1:
        return np.zeros((len(points), 0), dtype=np.int32)
    xy = np.column_stack([points.real, points.imag])
    _, index = cKDTree(xy).query(xy, k=count + 1)
    # A point is not its own neighbour, even where another lies on top of it.
    self_first = index[:, 0] == np.arange(len(points))
    index[~self_first, 1:] = np.where(
        index[~self_first, 1:] == np.flatnonzero(~self_first)[:, None],
        index[~self_first, :1], index[~self_first, 1:],
    )
    return np.ascontiguousarray(index[:, 1:], dtype=np.int32)


class Quads(NamedTuple):
    """The quads of the image, in a table over code space.

    Attributes
    ----------
    star : (q, 4) ndarray of int
        A, B, C, D.
    code : (q, 4) ndarray
        x and y of C and of D.
    length : (q,) ndarray
        |AB|, px.
    parity : (q,) ndarray of int
        1, or -1 where the code is that of the mirrored image.
    start, entry : ndarray of int
        The quads of each cell.
    """

    star: NDArray[np.int32]
    code: Floats
    length: Floats
    parity: NDArray[np.int8]
    start: Ints
    entry: NDArray[np.int32]


@njit(cache=True, nogil=True, inline="always")
def _code(a: complex, b: complex, c: complex, d: complex) -> tuple[complex, complex]:
    scale = 1.0 / (b - a)
    return (c - a) * scale, (d - a) * scale


@njit(cache=True, nogil=True)
def _variants(
    z: Complexes, s: Ints, tol: float, star: NDArray[np.int32], code: Floats, length: Floats, n: int
) -> int:
    """Append every code that noise could give the quad `s`: ambiguous sides, ends and orders."""
    longest = 0.0
    for i in range(4):
        for j in range(i + 1, 4):
            longest = max(longest, abs(z[s[i]] - z[s[j]]))
    for i in range(4):
        for j in range(4):
            if i == j or abs(z[s[i]] - z[s[j]]) < longest * (1.0 - 2.0 * tol):
                continue
            for k in range(4):
                if k == i or k == j:
                    continue
                m = 6 - i - j - k
                c, d = _code(z[s[i]], z[s[j]], z[s[k]], z[s[m]])
                if c.real <= d.real + 2.0 * tol and c.real + d.real <= 1.0 + 2.0 * tol:
                    if n < star.shape[0]:
                        star[n, 0], star[n, 1], star[n, 2], star[n, 3] = s[i], s[j], s[k], s[m]
                        code[n, 0], code[n, 1] = c.real, c.imag
                        code[n, 2], code[n, 3] = d.real, d.imag
                        length[n] = abs(z[s[i]] - z[s[j]])
                    n += 1
    return n


@njit(cache=True, nogil=True)
def _list_quads(z: Complexes, near: NDArray[np.int32], tol: float, capacity: int):
    """List the variants of all quads of a star and three of its neighbours, each quad once."""
    star = np.empty((capacity, 4), np.int32)
    code = np.empty((capacity, 4))
    length = np.empty(capacity)
    s = np.empty(4, np.int64)
    seen = set()
    seen.add(np.int64(-1))
    n = 0
    for i in range(near.shape[0]):
        for j in range(near.shape[1]):
            for k in range(j + 1, near.shape[1]):
                for m in range(k + 1, near.shape[1]):
                    s[0], s[1], s[2], s[3] = i, near[i, j], near[i, k], near[i, m]
                    t = np.sort(s)
                    key = ((t[0] * 32768 + t[1]) * 32768 + t[2]) * 32768 + t[3]
                    if key in seen:
                        continue
                    seen.add(key)
                    n = _variants(z, t, tol, star, code, length, n)
    return n, star, code, length


@njit(cache=True, nogil=True, inline="always")
def _bin(value: float, low: float, high: float) -> int:
    return min(max(int((value - low) / (high - low) * BINS), 0), BINS - 1)


@njit(cache=True, nogil=True)
def _table(code: Floats, tol: float):
    """Enter each code in every cell that a code within `tol` of it can fall in."""
    start = np.zeros(BINS**4 + 1, np.int64)
    entry = np.empty(0, np.int32)
    place = start
    for fill in range(2):
        if fill:
            for c in range(BINS**4):
                start[c + 1] += start[c]
            entry = np.empty(start[-1], np.int32)
            place = start[:-1].copy()
        for q in range(code.shape[0]):
            x0, x1 = _bin(code[q, 0] - tol, 0.0, 1.0), _bin(code[q, 0] + tol, 0.0, 1.0)
            y0, y1 = _bin(code[q, 1] - tol, -Y_MAX, Y_MAX), _bin(code[q, 1] + tol, -Y_MAX, Y_MAX)
            u0, u1 = _bin(code[q, 2] - tol, 0.0, 1.0), _bin(code[q, 2] + tol, 0.0, 1.0)
            v0, v1 = _bin(code[q, 3] - tol, -Y_MAX, Y_MAX), _bin(code[q, 3] + tol, -Y_MAX, Y_MAX)
            for x in range(x0, x1 + 1):
                for y in range(y0, y1 + 1):
                    for u in range(u0, u1 + 1):
                        for v in range(v0, v1 + 1):
                            cell = ((x * BINS + y) * BINS + u) * BINS + v
                            if fill:
                                entry[place[cell]] = q
                                place[cell] += 1
                            else:
                                start[cell + 1] += 1
    return start, entry


def source_codes(
    z: Complexes, near: NDArray[np.int32], parity: int, tol: float
) -> tuple[NDArray[np.int32], Floats, Floats, NDArray[np.int8]]:
    """Return stars, codes, lengths and signs of the image's quads, for one parity or (0) for both."""
    n = len(z)
    m = near.shape[1]
    capacity = max(n * (m * (m - 1) * (m - 2) // 6) * 2, 64)
    found, star, code, length = _list_quads(z, near, tol, capacity)
    if found > capacity:
        found, star, code, length = _list_quads(z, near, tol, found)
    star, code, length = star[:found], code[:found], length[:found]
    signs = np.ones(found, dtype=np.int8)
    if parity > 0:
        return star, code, length, signs
    mirrored = code * np.array([1.0, -1.0, 1.0, -1.0])
    if parity < 0:
        return star, mirrored, length, -signs
    return (
        np.concatenate([star, star]), np.concatenate([code, mirrored]),
        np.concatenate([length, length]), np.concatenate([signs, -signs]),
    )


def source_quads(z: Complexes, near: NDArray[np.int32], parity: int, tol: float) -> Quads:
    """Build the table of the quads of the image."""
    star, code, length, signs = source_codes(z, near, parity, tol)
    return Quads(star, code, length, signs, *_table(code, tol))


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
    parity, level, n_matched : (k,) ndarray of int
    sigma_px : (k,) ndarray
    z0 : (k,) ndarray of complex
        Where it was born, in the (mirrored) pixels of its parity.
    coeff : (k, 10) ndarray of complex
    match : (k, n) ndarray of int
    seeds : (k, 4) ndarray of int
        The four sources.
    counts : (4,) ndarray of int
        Quads of the sky looked up, agreements, hypotheses that passed the limits, grown.
    """

    log_odds: Floats
    parity: Ints
    level: Ints
    n_matched: Ints
    sigma_px: Floats
    z0: Complexes
    coeff: Complexes
    match: Ints
    seeds: Ints
    counts: Ints


def no_hypotheses(n_sources: int) -> Found:
    """Return the empty memory that a search fills."""
    return Found(
        np.full(KEEP, -np.inf), np.zeros(KEEP, np.int64), np.zeros(KEEP, np.int64),
        np.zeros(KEEP, np.int64), np.zeros(KEEP), np.zeros(KEEP, np.complex128),
        np.zeros((KEEP, N_TERMS), np.complex128), np.full((KEEP, n_sources), -1, np.int64),
        np.zeros((KEEP, 4), np.int64), np.zeros(4, np.int64),
    )


@njit(cache=True, nogil=True)
def _same(found: Found, k: int, parity: int, z0: complex, b: complex, a: complex, norm: float) -> bool:
    """Say whether hypothesis `k` puts the place `z0` where ``a (z - z0) + b`` does."""
    if found.parity[k] != parity:
        return False
    slope = found.coeff[k, 1] / norm
    if abs(slope - a) > 0.1 * abs(a):
        return False
    phi = np.empty(N_TERMS, np.complex128)
    _terms((z0 - found.z0[k]) / norm, phi)
    at = 0.0j
    for i in range(N_TERMS):
        at += found.coeff[k, i] * phi[i]
    return abs(at - b) < 0.03 * norm


@njit(cache=True, nogil=True)
def _places_neighbours(
    z: Complexes, near: NDArray[np.int32], quad: NDArray[np.int32], w: Complexes, grid: Grid,
    owner: Ints, a: complex, b: complex, z0: complex, size: float, sigma_px: float,
) -> bool:
    """Ask the similarity to place a few neighbours of the quad, within noise and distortion."""
    tried, hits, by_chance = 0, 0, 0.0
    for k in range(min(near.shape[1], PREFILTER)):
        i = near[quad[0], k]
        if i == quad[1] or i == quad[2] or i == quad[3]:
            continue
        p = a * (z[i] - z0) + b
        rho = _density_at(grid, p)
        if rho <= 0.0:
            continue
        reach = abs(z[i] - z0)
        radius = 3.0 * np.sqrt(
            2.0 * sigma_px**2 * (1.0 + (reach / size) ** 2) + (0.012 * reach) ** 2
        )
        j, _ = _nearest_free(grid, p, radius, owner, -2)
        tried += 1
        hits += j >= 0
        by_chance += np.pi * radius * radius * rho
    if tried < 3:
        return True
    return hits >= (2 if tried > 5 else 1)


@njit(cache=True, nogil=True)
def _by_distance(z: Complexes, z0: complex) -> Ints:
    d2 = (z.real - z0.real) ** 2 + (z.imag - z0.imag) ** 2
    return np.argsort(d2)


@njit(cache=True, nogil=True)
def remember(
    found: Found, growth, parity: int, z0: complex, coeff: Complexes, match: Ints,
    seeds: Ints, norm: float,
) -> None:
    """Keep a hypothesis if it is better than what says the same, or than the worst."""
    slot = -1
    for k in range(KEEP):
        if found.log_odds[k] > -1e300 and _same(found, k, parity, z0, coeff[0], coeff[1] / norm, norm):
            slot = k
            break
    if slot < 0:
        slot = int(np.argmin(found.log_odds))
    if growth.log_odds <= found.log_odds[slot]:
        return
    found.log_odds[slot] = growth.log_odds
    found.parity[slot] = parity
    found.level[slot] = growth.level
    found.n_matched[slot] = growth.n_matched
    found.sigma_px[slot] = growth.sigma_px
    found.z0[slot] = z0
    found.coeff[slot] = coeff
    found.match[slot] = match
    for s in range(min(4, seeds.size)):
        found.seeds[slot, s] = seeds[s]


@njit(cache=True, nogil=True)
def _turn(angle: float) -> float:
    return (angle + np.pi) % (2.0 * np.pi) - np.pi


@njit(cache=True, nogil=True)
def _consider(
    zz: Complexes, near: NDArray[np.int32], quad: NDArray[np.int32], refs: Ints, parity: int,
    w: Complexes, grid: Grid, limits: Limits, owner: Ints, match: Ints, chance: Floats,
    coeff: Complexes, found: Found,
) -> float:
    """Judge one agreement of two quads; return the log-odds of its growth, or minus infinity."""
    z = zz[0] if parity > 0 else zz[1]
    found.counts[1] += 1
    z0, b = 0.0j, 0.0j
    for k in range(4):
        z0 += 0.25 * z[quad[k]]
        b += 0.25 * w[refs[k]]
    a, weight = 0.0j, 0.0
    for k in range(4):
        dz = z[quad[k]] - z0
        a += (w[refs[k]] - b) * dz.conjugate()
        weight += dz.real**2 + dz.imag**2
    a = a / weight
    scale = abs(a)
    if scale < limits.scale_min or scale > limits.scale_max:
        return -np.inf
    if limits.rotation_error < 3.14:
        angle = np.angle(a)
        if parity < 0:
            angle += np.pi
        if abs(_turn(angle - limits.rotation)) > limits.rotation_error:
            return -np.inf
    center = limits.center if parity > 0 else limits.center.conjugate()
    if abs(a * (center - z0) + b) > limits.radius:
        return -np.inf
    found.counts[2] += 1
    size = np.sqrt(weight)
    if not _places_neighbours(z, near, quad, w, grid, owner, a, b, z0, size, limits.sigma_px):
        return -np.inf
    for k in range(KEEP):
        if found.log_odds[k] > limits.enough and _same(found, k, parity, z0, b, a, limits.norm):
            return found.log_odds[k]
    found.counts[3] += 1
    # A and B make the similarity; C and D are the first to be scored by it.
    seeds = np.empty(2, np.int64)
    seeds[0], seeds[1] = quad[0], quad[1]
    za, zb = z[quad[0]], z[quad[1]]
    z0, b = 0.5 * (za + zb), 0.5 * (w[refs[0]] + w[refs[1]])
    a = (w[refs[1]] - w[refs[0]]) / (zb - za)
    order = _by_distance(z, z0)
    place = 0
    for k in range(order.size):
        i = order[k]
        if i == quad[2] or i == quad[3]:
            order[place + 1 : k + 1] = order[place:k].copy()
            order[place] = i
            place += 1
    growth = grow(
        z, order, seeds, refs[:2], w, grid, a, b, z0, limits.norm,
        0.05 * scale + 3.0 * limits.sigma_px / size, 0.05 * size + 3.0 * limits.sigma_px,
        limits.sigma_px, -1, 0.15, -6.0, owner, found.counts[3], match, chance, coeff,
    )
    if growth.n_matched > 0:
        remember(found, growth, parity, z0, coeff, match, seeds, limits.norm)
    return growth.log_odds


@njit(cache=True, nogil=True)
def search(
    zz: Complexes, near_z: NDArray[np.int32], quads: Quads, w: Complexes,
    near_w: NDArray[np.int32], grid: Grid, limits: Limits, first: int, budget: int,
    owner: Ints, found: Found,
) -> int:
    """Stream the quads of the sky past those of the image, from reference star `first` on.

    Parameters
    ----------
    zz : (2, n) ndarray of complex
        The sources, and the sources mirrored.
    near_z : (n, k) ndarray of int
        Neighbours of each source.
    quads : Quads
    w : (m,) ndarray of complex
        Reference stars on the plane, nominal px.
    near_w : (m, l) ndarray of int
        Neighbours of each reference star; its quads are itself with any three of them.
    grid : Grid
        Of `w`.
    limits : Limits
    first, budget : int
        The first reference star, and how many quads to look up at most.
    owner : (m,) ndarray of int
        Scratch, of -1.
    found : Found
        Filled.

    Returns
    -------
    int
        The reference star to go on with; `m` at the end.
    """
    shortest, longest = np.inf, 0.0
    for q in range(quads.length.size):
        shortest = min(shortest, quads.length[q])
        longest = max(longest, quads.length[q])
    shortest, longest = shortest * limits.scale_min, longest * limits.scale_max
    n_near = near_w.shape[1]
    p = np.empty(n_near + 1, np.complex128)
    side = np.empty((n_near + 1, n_near + 1))
    who = np.empty(4, np.int64)
    refs = np.empty(4, np.int64)
    match = np.empty(zz.shape[1], np.int64)
    chance = np.zeros(zz.shape[1])
    coeff = np.empty(N_TERMS, np.complex128)
    tol2 = limits.tol**2
    end = found.counts[0] + budget
    for r in range(first, w.size):
        if found.counts[0] >= end:
            return r
        p[0] = w[r]
        for k in range(n_near):
            p[k + 1] = w[near_w[r, k]]
        for i in range(n_near + 1):
            for j in range(i):
                side[i, j] = side[j, i] = abs(p[i] - p[j])
        enough = False
        for i in range(1, n_near + 1):
            for j in range(i + 1, n_near + 1):
                for k in range(j + 1, n_near + 1):
                    ia, ib, ic, id_ = _canonical_sides(side, i, j, k)
                    if side[ia, ib] < shortest or side[ia, ib] > longest:
                        continue
                    found.counts[0] += 1
                    c, d = _code(p[ia], p[ib], p[ic], p[id_])
                    if c.real + d.real > 1.0:
                        ia, ib = ib, ia
                        c, d = 1.0 - c, 1.0 - d
                    if c.real > d.real:
                        ic, id_ = id_, ic
                        c, d = d, c
                    cell = _bin(c.real, 0.0, 1.0) * BINS + _bin(c.imag, -Y_MAX, Y_MAX)
                    cell = (cell * BINS + _bin(d.real, 0.0, 1.0)) * BINS
                    cell += _bin(d.imag, -Y_MAX, Y_MAX)
                    for e in range(quads.start[cell], quads.start[cell + 1]):
                        q = quads.entry[e]
                        ratio = side[ia, ib] / quads.length[q]
                        if ratio < limits.scale_min or ratio > limits.scale_max:
                            continue
                        d2 = (c.real - quads.code[q, 0]) ** 2 + (c.imag - quads.code[q, 1]) ** 2
                        d2 += (d.real - quads.code[q, 2]) ** 2 + (d.imag - quads.code[q, 3]) ** 2
                        if d2 > tol2:
                            continue
                        who[0], who[1], who[2], who[3] = ia, ib, ic, id_
                        for s in range(4):
                            refs[s] = r if who[s] == 0 else near_w[r, who[s] - 1]
                        score = _consider(
                            zz, near_z, quads.star[q], refs, quads.parity[q], w, grid, limits,
                            owner, match, chance, coeff, found,
                        )
                        enough = enough or score > limits.enough
        if enough:
            return r + 1
    return w.size


@njit(cache=True, nogil=True, inline="always")
def _canonical_sides(side: Floats, i: int, j: int, k: int) -> tuple[int, int, int, int]:
    """Return the numbers of A, B, C, D among 0, i, j, k: A and B are the most distant."""
    best, ia, ib, ic, id_ = side[0, i], 0, i, j, k
    if side[0, j] > best:
        best, ia, ib, ic, id_ = side[0, j], 0, j, i, k
    if side[0, k] > best:
        best, ia, ib, ic, id_ = side[0, k], 0, k, i, j
    if side[i, j] > best:
        best, ia, ib, ic, id_ = side[i, j], i, j, 0, k
    if side[i, k] > best:
        best, ia, ib, ic, id_ = side[i, k], i, k, 0, j
    if side[j, k] > best:
        best, ia, ib, ic, id_ = side[j, k], j, k, 0, i
    return ia, ib, ic, id_
