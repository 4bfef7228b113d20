"""Match by the histogram of offsets, where rotation and scale are nearly known.

All differences between reference stars and rotated sources are counted in square bins; true pairs
share a bin, chance pairs do not (as in the last step of SCAMP, Bertin 2006, ASP Conf. 351, 112).
The pairs of the highest bins are seeds for growth, so that an error of the rotation only has to be
small between neighbours, not over the frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.match.hypotheses import Found, Limits, remember, same
from cynosure.geometry.match.verification import (
    N_TERMS,
    Birth,
    Expected,
    Grid,
    Work,
    by_distance,
    grow,
    order_of,
)
from cynosure.ground.cache import compiled

__all__ = ["search_offsets"]

Complexes = NDArray[np.complex128]
Ints = NDArray[np.int64]

# Sides of the bins: an error of the rotation moves the corners by these many pixels. Small bins
# have the better contrast, so that they are tried first.
BINS_PX = np.array([4.0, 16.0, 64.0])
MAX_BINS = 1024  # bins on an axis; bins are wider where the radius needs more (memory: 4 MB)
PEAKS = 3  # highest bins that are tried, of each size
SEEDS = 6  # pairs of a bin that are grown: one of six is nearly always a true pair
MAX_IN_BIN = 4096  # pairs listed of one bin; it limits the memory


@compiled
def _count(
    z: Complexes, w: Complexes, a: complex, center: complex, origin: float, size: float, n: int
) -> NDArray[np.int32]:
    """Count the differences ``w - a (z - center)`` in n x n bins."""
    counts = np.zeros((n, n), np.int32)
    for i in range(z.size):
        p = a * (z[i] - center)
        for j in range(w.size):
            x, y = w[j].real - p.real + origin, w[j].imag - p.imag + origin
            if x >= 0.0 and y >= 0.0:
                ix, iy = int(x / size), int(y / size)
                if ix < n and iy < n:
                    counts[iy, ix] += 1
    return counts


@compiled
def _insert(best: Ints, at: Ints, total: int, iy: int, ix: int) -> None:
    """Enter a peak in the ranking, in place of one that it touches or of the last."""
    place = best.size - 1
    for k in range(best.size):
        if abs(at[k, 0] - iy) <= 2 and abs(at[k, 1] - ix) <= 2:
            place = k
            break
    if total <= best[place]:
        return
    best[place], at[place, 0], at[place, 1] = total, iy, ix
    while place > 0 and best[place] > best[place - 1]:
        best[place], best[place - 1] = best[place - 1], best[place]
        for c in range(2):
            at[place, c], at[place - 1, c] = at[place - 1, c], at[place, c]
        place -= 1


@compiled
def _peaks(counts: NDArray[np.int32]) -> tuple[Ints, Ints]:
    """Return the highest sums over 2 x 2 bins that do not touch each other, and where they are."""
    n = counts.shape[0]
    best = np.zeros(PEAKS, np.int64)
    at = np.empty((PEAKS, 2), np.int64)
    for k in range(PEAKS):
        at[k, 0] = at[k, 1] = -9
    for iy in range(n - 1):
        for ix in range(n - 1):
            total = counts[iy, ix] + counts[iy, ix + 1]
            total += counts[iy + 1, ix] + counts[iy + 1, ix + 1]
            if total > best[-1]:
                _insert(best, at, total, iy, ix)
    return best, at


@compiled
def _pairs_in(
    z: Complexes, w: Complexes, a: complex, center: complex, origin: float, size: float,
    at: Ints,
) -> tuple[Ints, Ints]:
    """Return the pairs of 2 x 2 bins, those nearest the centre of the frame first."""
    iy, ix = at[0], at[1]
    first, second = np.empty(MAX_IN_BIN, np.int64), np.empty(MAX_IN_BIN, np.int64)
    m = 0
    for i in range(z.size):
        p = a * (z[i] - center)
        for j in range(w.size):
            x = (w[j].real - p.real + origin) / size - ix
            y = (w[j].imag - p.imag + origin) / size - iy
            if 0.0 <= x < 2.0 and 0.0 <= y < 2.0 and m < MAX_IN_BIN:
                first[m], second[m] = i, j
                m += 1
    key = np.empty(m)
    for k in range(m):
        key[k] = abs(z[first[k]] - center)
    order = order_of(key)
    for k in range(m):
        key[k] = first[order[k]]
        order[k] = second[order[k]]
    for k in range(m):
        first[k] = int(key[k])
    return first[:m], order


@compiled
def search_offsets(
    z: Complexes, w: Complexes, grid: Grid, limits: Limits, parity: int, slope_error: float,
    found: Found,
) -> int:
    """Grow the pairs of the highest bins of the differences.

    Parameters
    ----------
    z : (n,) ndarray of complex
        Sources, mirrored where `parity` is -1.
    w : (m,) ndarray of complex
        Reference stars on the plane, nominal px.
    grid : Grid
        Of `w`.
    limits : Limits
        Its rotation is taken as known to `slope_error`.
    parity : int
    slope_error : float
        Error of the rotation (radians) and of the scale (relative).
    found : Found
        Filled.

    Returns
    -------
    int
        The count of the bin that grew best.
    """
    angle = limits.rotation if parity > 0 else limits.rotation - np.pi
    a = complex(np.cos(angle), np.sin(angle))
    center = limits.center if parity > 0 else limits.center.conjugate()
    work = Work(
        np.full(w.size, -1, np.int64), np.empty(z.size, np.int64), np.zeros(z.size),
        np.empty(N_TERMS, np.complex128),
    )
    seed, ref = np.empty(1, np.int64), np.empty(1, np.int64)
    best_count, best_odds = 0, -np.inf
    for s in range(BINS_PX.size):
        size = max(BINS_PX[s], 2.0 * limits.radius / (MAX_BINS - 4))
        origin = limits.radius + size
        counts = _count(z, w, a, center, origin, size, int(2.0 * origin / size) + 2)
        heights, at = _peaks(counts)
        slope_sd = min(slope_error, 4.0 * size / limits.norm + 0.002)
        for k in range(PEAKS):
            if heights[k] < 2:
                continue
            first, second = _pairs_in(z, w, a, center, origin, size, at[k])
            for t in range(min(first.size, SEEDS)):
                seed[0], ref[0] = first[t], second[t]
                z0, b = z[seed[0]], w[ref[0]]
                if _sure(found, parity, z0, b, a, limits):
                    continue
                found.counts[3] += 1
                # The seed is placed to 1 px; 0.15 and -6 as for quads.
                growth = grow(
                    z, by_distance(z, z0), w, grid, Birth(seed, ref, a, b, z0, found.counts[3]),
                    Expected(limits.norm, slope_sd, 1.0, limits.sigma_px, -1.0, 0.15, -6.0), work,
                )
                if growth.n_matched > 0:
                    remember(found, growth, parity, z0, work.coeff, work.match, limits.norm)
                if growth.log_odds > best_odds:
                    best_odds, best_count = growth.log_odds, heights[k]
        if best_odds > limits.enough:
            break
    return best_count


@compiled
def _sure(found: Found, parity: int, z0: complex, b: complex, a: complex, limits: Limits) -> bool:
    """Say whether this solution was already found with log-odds above `limits.enough`."""
    for k in range(found.log_odds.size):
        if found.log_odds[k] > limits.enough and same(found, k, parity, z0, b, a, limits.norm):
            return True
    return False
