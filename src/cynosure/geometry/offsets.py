"""The fast path: where rotation and scale are nearly known, differences pile up at the offset.

All differences between reference stars and turned sources are counted in square bins; true pairs
fall together, chance pairs do not (Kaiser et al. 1999, the catalogue cross-correlation of imcat;
also SCAMP's last step, Bertin 2006). The pairs of the highest bins are seeds for growth, so that
an error of the rotation only has to be small between neighbours, not over the frame.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cynosure.geometry.growth import N_TERMS, Grid, grow
from cynosure.geometry.hypotheses import Found, Limits, _by_distance, remember

__all__ = ["search_offsets"]

Complexes = NDArray[np.complex128]
Ints = NDArray[np.int64]

BINS_PX = np.array([4.0, 16.0, 64.0])
MAX_BINS = 1024  # on an axis
PEAKS = 3  # bins that are looked into, of each size
SEEDS = 6  # pairs of a bin that are grown


@njit(cache=True, nogil=True)
def _count(z: Complexes, w: Complexes, a: complex, center: complex, radius: float, size: float, n: int):
    counts = np.zeros((n, n), np.int32)
    for i in range(z.size):
        p = a * (z[i] - center)
        for j in range(w.size):
            ix = int((w[j].real - p.real + radius) / size)
            iy = int((w[j].imag - p.imag + radius) / size)
            if 0 <= ix < n and 0 <= iy < n:
                counts[iy, ix] += 1
    return counts


@njit(cache=True, nogil=True)
def _peaks(counts, n: int):
    """Return the PEAKS highest sums over 2 x 2 bins that do not touch each other."""
    best = np.zeros(PEAKS, np.int64)
    at = np.full((PEAKS, 2), -9, np.int64)
    for iy in range(1, n - 2):
        for ix in range(1, n - 2):
            if counts[iy, ix] + counts[iy, ix + 1] + counts[iy + 1, ix] < 1:
                continue
            total = counts[iy, ix] + counts[iy, ix + 1] + counts[iy + 1, ix] + counts[iy + 1, ix + 1]
            if total <= best[-1]:
                continue
            place = PEAKS
            for k in range(PEAKS):
                if abs(at[k, 0] - iy) <= 2 and abs(at[k, 1] - ix) <= 2:
                    place = k
                    break
            if place < PEAKS:
                if total <= best[place]:
                    continue
            else:
                place = PEAKS - 1
            best[place], at[place, 0], at[place, 1] = total, iy, ix
            while place > 0 and best[place] > best[place - 1]:
                best[place], best[place - 1] = best[place - 1], best[place]
                for c in range(2):
                    at[place, c], at[place - 1, c] = at[place - 1, c], at[place, c]
                place -= 1
    return best, at


@njit(cache=True, nogil=True)
def search_offsets(
    z: Complexes, w: Complexes, grid: Grid, limits: Limits, parity: int, slope_error: float,
    owner: Ints, found: Found,
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
    owner : (m,) ndarray of int
        Scratch.
    found : Found
        Filled.

    Returns
    -------
    int
        The count of the highest bin of the size that did best.
    """
    angle = limits.rotation if parity > 0 else limits.rotation - np.pi
    a = complex(np.cos(angle), np.sin(angle))
    center = limits.center if parity > 0 else limits.center.conjugate()
    match, chance = np.empty(z.size, np.int64), np.zeros(z.size)
    coeff = np.empty(N_TERMS, np.complex128)
    pair_i, pair_j = np.empty(4096, np.int64), np.empty(4096, np.int64)
    seed, ref = np.empty(1, np.int64), np.empty(1, np.int64)
    best_count, best_odds = 0, -np.inf
    for s in range(BINS_PX.size):
        size = max(BINS_PX[s], 2.0 * limits.radius / (MAX_BINS - 4))
        n = int(2.0 * limits.radius / size) + 3
        origin = limits.radius + size
        counts = _count(z, w, a, center, origin, size, n)
        heights, at = _peaks(counts, n)
        slope_sd = min(slope_error, 4.0 * size / limits.norm + 0.002)
        for k in range(PEAKS):
            if heights[k] < 2:
                continue
            if best_count == 0:
                best_count = heights[k]
            m = 0
            for i in range(z.size):
                p = a * (z[i] - center)
                for j in range(w.size):
                    ix = int((w[j].real - p.real + origin) / size) - at[k, 1]
                    iy = int((w[j].imag - p.imag + origin) / size) - at[k, 0]
                    if 0 <= ix <= 1 and 0 <= iy <= 1 and m < pair_i.size:
                        pair_i[m], pair_j[m] = i, j
                        m += 1
            near = np.argsort(np.abs(z[pair_i[:m]] - center))
            for t in range(min(m, SEEDS)):
                seed[0], ref[0] = pair_i[near[t]], pair_j[near[t]]
                z0 = z[seed[0]]
                found.counts[3] += 1
                growth = grow(
                    z, _by_distance(z, z0), seed, ref, w, grid, a, w[ref[0]], z0, limits.norm,
                    slope_sd, 1.0, limits.sigma_px, -1, 0.15, -6.0, owner, found.counts[3],
                    match, chance, coeff,
                )
                if growth.n_matched > 0:
                    remember(found, growth, parity, z0, coeff, match, seed, limits.norm)
                if growth.log_odds > best_odds:
                    best_odds, best_count = growth.log_odds, heights[k]
                if growth.log_odds > limits.enough:
                    return best_count
    return best_count
