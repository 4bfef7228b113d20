"""Asterisms: star lists of equal density, and the quads of neighbours in them.

Two lists of different depth and extent are first thinned to the same density: a star is kept where
fewer than `rank` brighter ones lie within a fixed radius (adaptive non-maximal suppression, Brown,
Szeliski & Winder 2005, CVPR). The rule does not depend on frames, cells or rotations, it thins
clusters, and it uses brightness as an order only.

Four neighbours make a quad: the two most distant stars A, B define a frame in which A is (0, 0)
and B is (1, 0), and the places of C and D in it are four numbers that do not change with shift,
rotation or scale (Lang et al. 2010, AJ 139, 1782; there with B at (1, 1)). A and B are named such
that ``x_C + x_D <= 1``, C and D such that ``x_C <= x_D``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.match.verification import bounds
from cynosure.ground.cache import compiled

__all__ = [
    "BINS",
    "Y_MAX",
    "Quads",
    "bin_of",
    "canonical",
    "listed_earlier",
    "neighbours",
    "reaches",
    "select",
    "sides",
    "source_codes",
    "source_quads",
]

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Ints = NDArray[np.int64]

# Cells on each axis of code space: 16^4 cells, a few for each quad of the image, and a cell about
# six times as wide as the default tolerance, so that few codes fall into several cells.
BINS = 16
Y_MAX = 0.88  # |y| of C and D is at most sqrt(3)/2, for AB is the longest side


@compiled
def select(points: Complexes, radius: float, rank: int, min_sep: float) -> Ints:
    """Return the points with fewer than `rank` earlier ones within `radius`.

    Parameters
    ----------
    points : (n,) ndarray of complex
        Brightest first.
    radius : float
    rank : int
    min_sep : float
        A point closer than this to an earlier one counts as a second detection and is left out.
    """
    n = points.size
    kept = np.empty(n, np.int64)
    if n == 0:
        return kept
    x0, y0, width, height = bounds(points)
    size = max(radius, min_sep, max(width, height) / 2000.0, np.sqrt(width * height / n), 1e-9)
    nx, ny = int(width / size) + 1, int(height / size) + 1
    # A cell as wide as the radius lists at most a few times `rank` points: a later point beside so
    # many brighter ones has at least `rank` of them within the radius.
    room = 10 * rank if size == radius else n
    head = np.zeros(nx * ny, np.int64) - 1
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
    parity: Ints
    start: Ints
    entry: NDArray[np.int32]


@compiled(inline="always")
def _code(
    a: complex, b: complex, c: complex, d: complex, side: float
) -> tuple[complex, complex]:
    scale = (b - a).conjugate() / (side * side)
    return (c - a) * scale, (d - a) * scale


@compiled(inline="always")
def _longest_side(side: Floats, i: int, j: int, k: int) -> tuple[int, int, int, int]:
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


@compiled(inline="always")
def canonical(
    p: Complexes, side: Floats, i: int, j: int, k: int
) -> tuple[int, int, int, int, complex, complex]:
    """Return which of the points 0, i, j, k are A, B, C, D, and the places of C and D."""
    a, b, c, d = _longest_side(side, i, j, k)
    u, v = _code(p[a], p[b], p[c], p[d], side[a, b])
    if u.real + v.real > 1.0:
        a, b = b, a
        u, v = 1.0 - u, 1.0 - v
    if u.real > v.real:
        c, d = d, c
        u, v = v, u
    return a, b, c, d, u, v


@compiled
def _variants(
    z: Complexes, who: Ints, side: Floats, s: Ints, tol: float, n: int,
    out: tuple[NDArray[np.int32], Floats, Floats],
) -> int:
    """Append every code that noise could give the quad `s`, where its canonical order is unsure."""
    star, code, length = out
    longest = 0.0
    for i in range(4):
        for j in range(i + 1, 4):
            longest = max(longest, side[s[i], s[j]])
    least = longest * (1.0 - 2.0 * tol)
    for i in range(4):
        for j in range(4):
            if i == j or side[s[i], s[j]] < least:
                continue
            a, b = who[s[i]], who[s[j]]
            for k in range(4):
                if k == i or k == j:
                    continue
                m = 6 - i - j - k
                c, d = _code(z[a], z[b], z[who[s[k]]], z[who[s[m]]], side[s[i], s[j]])
                if c.real <= d.real + 2.0 * tol and c.real + d.real <= 1.0 + 2.0 * tol:
                    if n < star.shape[0]:
                        star[n, 0], star[n, 1], star[n, 2], star[n, 3] = a, b, who[s[k]], who[s[m]]
                        code[n, 0], code[n, 1] = c.real, c.imag
                        code[n, 2], code[n, 3] = d.real, d.imag
                        length[n] = side[s[i], s[j]]
                    n += 1
    return n


@compiled
def reaches(points: Complexes, near: NDArray[np.int32]) -> Floats:
    """Return how far each point's last neighbour is."""
    out = np.zeros(points.size)
    for i in range(points.size if near.shape[1] else 0):
        out[i] = abs(points[near[i, near.shape[1] - 1]] - points[i])
    return out


@compiled(inline="always")
def listed_earlier(
    who: NDArray[np.int64], side: Floats, reach: Floats, i: int, j: int, k: int
) -> bool:
    """Say whether a star before `who[0]` also lists the quad 0, i, j, k; each is taken once."""
    for a, b, c in ((i, j, k), (j, i, k), (k, i, j)):
        star = who[a]
        if star < who[0] and max(side[a, 0], side[a, b], side[a, c]) <= reach[star]:
            return True
    return False


@compiled
def sides(points: Complexes, near: NDArray[np.int32], r: int, who: Ints, side: Floats) -> None:
    """Fill in a point and its neighbours, and how far they are from each other."""
    who[0] = r
    for i in range(near.shape[1] + 1):
        if i > 0:
            who[i] = near[r, i - 1]
        for j in range(i):
            side[i, j] = side[j, i] = abs(points[who[i]] - points[who[j]])


@compiled
def _list_quads(
    z: Complexes, near: NDArray[np.int32], tol: float, capacity: int
) -> tuple[int, NDArray[np.int32], Floats, Floats]:
    """List the variants of all quads of a star and three of its neighbours, each quad once."""
    star = np.empty((capacity, 4), np.int32)
    code = np.empty((capacity, 4))
    length = np.empty(capacity)
    m = near.shape[1]
    s, who, side = np.zeros(4, np.int64), np.empty(m + 1, np.int64), np.empty((m + 1, m + 1))
    reach = reaches(z, near)
    n = 0
    for r in range(near.shape[0]):
        sides(z, near, r, who, side)
        for i in range(1, m + 1):
            for j in range(i + 1, m + 1):
                for k in range(j + 1, m + 1):
                    if listed_earlier(who, side, reach, i, j, k):
                        continue
                    s[1], s[2], s[3] = i, j, k
                    n = _variants(z, who, side, s, tol, n, (star, code, length))
    return n, star, code, length


@compiled(inline="always")
def bin_of(value: float, low: float, high: float) -> int:
    """Return the cell of a coordinate of code space."""
    return min(max(int((value - low) / (high - low) * BINS), 0), BINS - 1)


@compiled
def _table(code: Floats, tol: float) -> tuple[Ints, NDArray[np.int32]]:
    """Enter each code in every cell that a code within `tol` of it can fall in."""
    start = np.zeros(BINS**4 + 1, np.int64)
    entry = np.empty(0, np.int32)
    place = start
    low, high = np.empty(4, np.int64), np.empty(4, np.int64)
    for fill in range(2):
        if fill:
            for c in range(BINS**4):
                start[c + 1] += start[c]
            entry = np.empty(start[-1], np.int32)
            place = np.empty(BINS**4, np.int64)
            for c in range(BINS**4):
                place[c] = start[c]
        for q in range(code.shape[0]):
            for k in range(4):
                bottom, top = (0.0, 1.0) if k % 2 == 0 else (-Y_MAX, Y_MAX)
                low[k] = bin_of(code[q, k] - tol, bottom, top)
                high[k] = bin_of(code[q, k] + tol, bottom, top) + 1
            for x in range(low[0], high[0]):
                for y in range(low[1], high[1]):
                    for u in range(low[2], high[2]):
                        for v in range(low[3], high[3]):
                            cell = ((x * BINS + y) * BINS + u) * BINS + v
                            if fill:
                                entry[place[cell]] = q
                                place[cell] += 1
                            else:
                                start[cell + 1] += 1
    return start, entry


def source_codes(
    z: Complexes, near: NDArray[np.int32], parity: int, tol: float
) -> tuple[NDArray[np.int32], Floats, Floats, Ints]:
    """Return stars, codes, lengths and signs of the image's quads; parity 0 is both."""
    n = len(z)
    m = near.shape[1]
    capacity = max(n * (m * (m - 1) * (m - 2) // 6) * 2, 64)
    found, star, code, length = _list_quads(z, near, tol, capacity)
    if found > capacity:
        found, star, code, length = _list_quads(z, near, tol, found)
    star, code, length = star[:found], code[:found], length[:found]
    signs = np.ones(found, dtype=np.int64)
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
