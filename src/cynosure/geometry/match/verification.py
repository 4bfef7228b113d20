"""Growing verification: score a hypothesis star by star, outward from where it was born.

A hypothesis (a few stars of the image said to be a few stars of the sky) fixes a similarity that
is only right near those stars: a lens may distort the frame by a per cent. So the stars of the
image are taken in order of their distance from the birthplace. Each is predicted by what the
stars before it have taught, scored, and only then learnt from; the model is a polynomial in the
complex pixel coordinate u,

    w = c0 + c1 u + c2 u* + c3 u^2 + c4 u u* + c5 u*^2 + ... + c9 u*^3,

of which the similarity (c0, c1) is free and the rest has a Gaussian prior of the size that a lens
distortion of relative amplitude epsilon would give it. The fit is recursive least squares (a
Kalman filter with a constant state), the pairing soft (Bar-Shalom & Tse 1975, Automatica 11, 451:
a pair enters with the probability that it is true). Several amplitudes run side by side.

The score is the log-odds against chance,

    L = sum_i ln[ (1 - f) + f N(d_i; 0, s_i^2) / rho_i ],

with d_i the distance of the nearest reference star that is still free, s_i the error of the
prediction, rho_i the local density of the reference stars and f the fraction matched so far. As
every source is scored before the model has seen it, exp(L) is a martingale where the match is
chance, and the probability that a wrong hypothesis ever reaches L is below exp(-L) (Ville's
inequality), however flexible the polynomial: acceptance at 30 leaves 1e-13 a hypothesis.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.ground.cache import compiled

__all__ = [
    "LEVELS",
    "NOISE",
    "N_TERMS",
    "Birth",
    "Expected",
    "Grid",
    "Growth",
    "Work",
    "bounds",
    "by_distance",
    "density_at",
    "evaluate",
    "grow",
    "make_grid",
    "nearest_free",
    "order_of",
    "terms_of",
]

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Ints = NDArray[np.int64]

N_TERMS = 10
# Relative amplitudes of distortion that are tried side by side: none to speak of, that of a
# camera lens, that of a wide or a bad one (1 % at the corner, and a little more).
LEVELS = np.array([4e-4, 3e-3, 1.2e-2, 3e-3])
# The last is for positions that are much worse than assumed.
NOISE = np.array([1.0, 1.0, 1.0, 4.0])
NOISE_RANGE = 2.0  # how far each level's noise may move from its start
# A level this far below the best has lost; it is no longer followed.
LEVEL_LOST = 20.0
LEVEL_KNOWN = 6.0  # how much worse the other levels are where one is known to be right
GATE_SIGMA = 3.7
NU_SIGMA = 6.0  # weight, in measurements, of the assumed centroid error against the found one


class Grid(NamedTuple):
    """Points in square cells, for neighbour searches inside compiled loops.

    Attributes
    ----------
    x0, y0, size : float
        Corner of the first cell, and width of a cell.
    nx, ny : int
        Number of cells.
    start : (nx ny + 1,) ndarray
        Where each cell begins in `point`.
    point : (n,) ndarray of complex
        The points x + iy, cell by cell.
    label : (n,) ndarray of int
        The number of each point in the list the grid was made of.
    density : (nx ny,) ndarray
        Points in a unit of area, over 3 x 3 cells; 0 where there are none.
    mean_density : float
        Points in a unit of area, over the cells that have any near.
    """

    x0: float
    y0: float
    size: float
    nx: int
    ny: int
    start: Ints
    point: Complexes
    label: Ints
    density: Floats
    mean_density: float


class Growth(NamedTuple):
    """What :func:`grow` returns.

    Attributes
    ----------
    log_odds : float
    n_seen, n_matched : int
        Sources scored, and those of them that were paired.
    sigma_px : float
        Error of a position, as found.
    level : int
        The amplitude of :data:`LEVELS` that did best.
    """

    log_odds: float
    n_seen: int
    n_matched: int
    sigma_px: float
    level: int


class Birth(NamedTuple):
    """What makes a hypothesis: its seeds, and the similarity ``w = a (z - z0) + b`` that they say.

    Attributes
    ----------
    seeds, seed_refs : (s,) ndarray of int
        Sources and reference stars; learnt from, never scored.
    a, b : complex
    z0 : complex
        The birthplace.
    mark : int
        Number of the growth: not among the owners of its work yet.
    """

    seeds: Ints
    seed_refs: Ints
    a: complex
    b: complex
    z0: complex
    mark: int


class Expected(NamedTuple):
    """What is known before a hypothesis is grown.

    Attributes
    ----------
    norm : float
        Half the diagonal of the frame, px.
    slope_sd, offset_sd : float
        Prior errors of a and of b (px).
    sigma_px : float
        Error of a position per axis, as first guess.
    level : float
        The number of the amplitude that did best before, or -1.0.
    min_fraction : float
        The least share of matched sources that is expected.
    give_up : float
        The score at which the growth ends.
    """

    norm: float
    slope_sd: float
    offset_sd: float
    sigma_px: float
    level: float
    min_fraction: float
    give_up: float


class Work(NamedTuple):
    """What a growth fills; reused from one to the next.

    Attributes
    ----------
    owner : (m,) ndarray of int
        Reference stars whose entry is the mark of a growth are taken by it.
    match : (n,) ndarray of int
        The reference star of each source, or -1.
    chance : (n,) ndarray
        The probability that the pair is true.
    coeff : (10,) ndarray of complex
        The coefficients in ``(z - z0) / norm``.
    """

    owner: Ints
    match: Ints
    chance: Floats
    coeff: Complexes


# Loops are written out below where NumPy has a function: numba compiles them many times faster.


@compiled
def bounds(points: Complexes) -> tuple[float, float, float, float]:
    """Return the least x and y of points, and how far they spread from there."""
    x0, x1, y0, y1 = np.inf, -np.inf, np.inf, -np.inf
    for p in points:
        x0, x1 = min(x0, p.real), max(x1, p.real)
        y0, y1 = min(y0, p.imag), max(y1, p.imag)
    if points.size == 0:
        return 0.0, 0.0, 1.0, 1.0
    return x0, y0, x1 - x0, y1 - y0


@compiled
def order_of(key: Floats | Ints) -> Ints:
    """Return the order that sorts a short list (Shell sort; ties keep no particular order)."""
    n = key.size
    order = np.empty(n, np.int64)
    for i in range(n):
        order[i] = i
    gap = 1
    while gap < n // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, n):
            moving, k = order[i], i
            while k >= gap and key[order[k - gap]] > key[moving]:
                order[k] = order[k - gap]
                k -= gap
            order[k] = moving
        gap //= 3
    return order


@compiled
def by_distance(z: Complexes, z0: complex) -> Ints:
    """Return the order of points by their distance from `z0`."""
    key = np.empty(z.size)
    for i in range(z.size):
        key[i] = (z[i].real - z0.real) ** 2 + (z[i].imag - z0.imag) ** 2
    return order_of(key)


@compiled
def make_grid(points: Complexes, per_cell: float) -> Grid:
    """Sort points into square cells of about `per_cell` points each."""
    n = points.size
    x0, y0, width, height = bounds(points)
    width, height = max(width, 1e-9), max(height, 1e-9)
    size = max(np.sqrt(width * height * per_cell / max(n, 1)), max(width, height) / 2000.0)
    nx, ny = int(width / size) + 1, int(height / size) + 1
    start = np.zeros(nx * ny + 1, np.int64)
    cell = np.empty(n, np.int64)
    for i in range(n):
        cell[i] = int((points[i].imag - y0) / size) * nx + int((points[i].real - x0) / size)
        start[cell[i] + 1] += 1
    counts, place = np.empty(nx * ny, np.int64), np.empty(nx * ny, np.int64)
    for k in range(nx * ny):
        counts[k], place[k] = start[k + 1], start[k]
        start[k + 1] += start[k]
    point = np.empty(n, np.complex128)
    label = np.empty(n, np.int64)
    for i in range(n):
        point[place[cell[i]]] = points[i]
        label[place[cell[i]]] = i
        place[cell[i]] += 1
    density = np.zeros(nx * ny)
    covered = 0
    for j in range(ny):
        for i in range(nx):
            total, cells = 0, 0
            for jj in range(max(j - 1, 0), min(j + 2, ny)):
                for ii in range(max(i - 1, 0), min(i + 2, nx)):
                    total += counts[jj * nx + ii]
                    cells += 1
            density[j * nx + i] = total / (cells * size * size)
            covered += total > 0
    mean_density = n / max(covered * size * size, 1e-300)
    return Grid(x0, y0, size, nx, ny, start, point, label, density, mean_density)


@compiled(inline="always")
def nearest_free(
    grid: Grid, p: complex, radius: float, owner: Ints, mark: int
) -> tuple[int, float]:
    """Return the nearest point that does not carry `mark`, or -1, and its squared distance."""
    best, best2 = -1, radius * radius
    i0 = int(np.floor((p.real - radius - grid.x0) / grid.size))
    i1 = int(np.floor((p.real + radius - grid.x0) / grid.size))
    j0 = int(np.floor((p.imag - radius - grid.y0) / grid.size))
    j1 = int(np.floor((p.imag + radius - grid.y0) / grid.size))
    for j in range(max(j0, 0), min(j1, grid.ny - 1) + 1):
        for i in range(max(i0, 0), min(i1, grid.nx - 1) + 1):
            for k in range(grid.start[j * grid.nx + i], grid.start[j * grid.nx + i + 1]):
                dx, dy = grid.point[k].real - p.real, grid.point[k].imag - p.imag
                d2 = dx * dx + dy * dy
                if d2 < best2 and owner[grid.label[k]] != mark:
                    best, best2 = grid.label[k], d2
    return best, best2


@compiled(inline="always")
def density_at(grid: Grid, p: complex) -> float:
    """Return the local density of the points; 0 outside what they cover."""
    i = int(np.floor((p.real - grid.x0) / grid.size))
    j = int(np.floor((p.imag - grid.y0) / grid.size))
    if i < 0 or j < 0 or i >= grid.nx or j >= grid.ny:
        return 0.0
    return grid.density[j * grid.nx + i]


@compiled(inline="always")
def terms_of(u: complex, phi: Complexes) -> None:
    """Fill `phi` with the terms of the polynomial of the module's head."""
    v = u.conjugate()
    phi[0] = 1.0
    phi[1] = u
    phi[2] = v
    phi[3] = u * u
    phi[4] = u * v
    phi[5] = v * v
    phi[6] = phi[3] * u
    phi[7] = phi[3] * v
    phi[8] = u * phi[5]
    phi[9] = v * phi[5]


@compiled
def evaluate(coeff: Complexes, z: Complexes, z0: complex, norm: float) -> Complexes:
    """Return the polynomial of the module's head at the points `z`."""
    out = np.empty(z.size, np.complex128)
    phi = np.empty(N_TERMS, np.complex128)
    for i in range(z.size):
        terms_of((z[i] - z0) / norm, phi)
        total = 0.0j
        for k in range(N_TERMS):
            total += coeff[k] * phi[k]
        out[i] = total
    return out


@compiled(fastmath={"contract", "reassoc", "nsz"})
def _predict(
    coeff: Complexes, cov: Complexes, phi: Complexes, gain: Complexes
) -> tuple[complex, float]:
    """Return the prediction and its variance per axis; ``gain`` becomes ``cov @ conj(phi)``."""
    value = 0.0j
    variance = 0.0
    for i in range(N_TERMS):
        value += coeff[i] * phi[i]
        total = 0.0j
        for k in range(N_TERMS):
            total += cov[i, k] * phi[k].conjugate()
        gain[i] = total
        variance += (phi[i] * total).real
    return value, max(variance, 0.0)


@compiled(fastmath={"contract", "reassoc", "nsz"})
def _learn(
    coeff: Complexes, cov: Complexes, gain: Complexes, error: complex, variance: float
) -> None:
    """Update the model with one measurement of total variance `variance` per axis."""
    for i in range(N_TERMS):
        coeff[i] += gain[i] * error / variance
        for k in range(N_TERMS):
            cov[i, k] -= gain[i] * gain[k].conjugate() / variance


class _State(NamedTuple):
    """The models of all levels while they grow; every entry has the level as its first axis."""

    coeff: Complexes
    cov: Complexes
    gain: Complexes
    value: Complexes
    total: Floats
    spread: Floats
    noise: Floats
    assumed: Floats
    noise_sum: Floats
    noise_n: Floats


@compiled
def _begin(
    a: complex, b: complex, norm: float, slope_sd: float, offset_sd: float, sigma_px: float,
    level: int,
) -> _State:
    n = LEVELS.size
    coeff = np.zeros((n, N_TERMS), np.complex128)
    cov = np.zeros((n, N_TERMS, N_TERMS), np.complex128)
    for m in range(n):
        coeff[m, 0], coeff[m, 1] = b, a * norm
        cov[m, 0, 0], cov[m, 1, 1] = offset_sd**2, (slope_sd * norm) ** 2
        # A radial distortion epsilon |u|^2 u, seen from a point off the axis, has these sizes.
        for k in range(2, N_TERMS):
            size = 1.5 if 3 <= k <= 5 else 1.0
            cov[m, k, k] = (size * LEVELS[m] * norm) ** 2
    state = _State(
        coeff, cov, np.empty((n, N_TERMS), np.complex128), np.empty(n, np.complex128),
        np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n),
    )
    for m in range(n):
        state.total[m] = 0.0 if level in (-1, m) else -LEVEL_KNOWN
        state.assumed[m] = state.noise[m] = (sigma_px * NOISE[m]) ** 2
        state.noise_sum[m], state.noise_n[m] = NU_SIGMA * state.noise[m], NU_SIGMA
    return state


@compiled
def _learn_seed(state: _State, phi: Complexes, target: complex) -> None:
    for m in range(LEVELS.size):
        at, var = _predict(state.coeff[m], state.cov[m], phi, state.gain[m])
        _learn(state.coeff[m], state.cov[m], state.gain[m], target - at, var + state.noise[m])


@compiled
def _predict_all(state: _State, phi: Complexes, best: int) -> float:
    """Predict with every level that is still in the race; return the largest variance."""
    widest = 0.0
    for m in range(LEVELS.size):
        if state.total[m] < state.total[best] - LEVEL_LOST:
            continue
        state.value[m], var = _predict(state.coeff[m], state.cov[m], phi, state.gain[m])
        state.spread[m] = var + state.noise[m]
        widest = max(widest, state.spread[m])
    return widest


@compiled
def _score(
    state: _State, best: int, paired: bool, target: complex, fraction: float, rho: float
) -> float:
    """Score one source in every level, then learn from it; return how sure the best level is."""
    sure, limit = 0.0, state.total[best] - LEVEL_LOST
    for m in range(LEVELS.size):
        if state.total[m] < limit:
            continue
        if not paired:
            state.total[m] += np.log(1.0 - fraction)
            continue
        error = target - state.value[m]
        chi2 = (error.real**2 + error.imag**2) / state.spread[m]
        odds = fraction * np.exp(-0.5 * chi2) / (2.0 * np.pi * state.spread[m] * rho)
        state.total[m] += np.log(1.0 - fraction + odds)
        true = odds / (1.0 - fraction + odds)
        if m == best:
            sure = true
        if true > 0.05:
            var, noise = state.spread[m] - state.noise[m], state.noise[m]
            # What it says of the noise weighs as the noise does in the spread.
            share = true * noise / state.spread[m]
            state.noise_sum[m] += share * noise * 0.5 * chi2
            state.noise_n[m] += share
            _learn(state.coeff[m], state.cov[m], state.gain[m], error, var + noise / true)
            noise = state.noise_sum[m] / state.noise_n[m]
            noise = min(noise, state.assumed[m] * NOISE_RANGE**2)
            state.noise[m] = max(noise, state.assumed[m] / NOISE_RANGE**4)
    return sure


@compiled
def _sum_exp(values: Floats, largest: float) -> float:
    total = 0.0
    for value in values:
        total += np.exp(max(value - largest, -700.0))
    return total


@compiled
def grow(
    z: Complexes, order: Ints, w: Complexes, grid: Grid, birth: Birth, expected: Expected,
    work: Work,
) -> Growth:
    """Grow a match from its seeds over the sources in `order`; see the module's head.

    Parameters
    ----------
    z : (n,) ndarray of complex
        Sources, in pixels (mirrored where the hypothesis is).
    order : (k,) ndarray of int
        The sources to score, nearest to the birthplace first. Seeds among them are passed over.
    w : (m,) ndarray of complex
        Reference stars on the plane, in nominal pixels.
    grid : Grid
        Of `w`.
    birth : Birth
    expected : Expected
    work : Work
        Filled.
    """
    seeds, seed_refs, z0, mark = birth.seeds, birth.seed_refs, birth.z0, birth.mark
    norm = expected.norm
    owner, match, chance = work.owner, work.match, work.chance
    level, min_fraction, give_up = int(expected.level), expected.min_fraction, expected.give_up
    state = _begin(
        birth.a, birth.b, norm, expected.slope_sd, expected.offset_sd, expected.sigma_px, level
    )
    weight = _sum_exp(state.total, 0.0)
    phi = np.empty(N_TERMS, np.complex128)
    for i in range(match.size):
        match[i] = -1
    for s in range(seeds.size):
        match[seeds[s]], chance[seeds[s]], owner[seed_refs[s]] = seed_refs[s], 1.0, mark
        terms_of((z[seeds[s]] - z0) / norm, phi)
        _learn_seed(state, phi, w[seed_refs[s]])
    cap = 0.8 / np.sqrt(grid.mean_density)
    floor = 0.1 * grid.mean_density
    n_seen, n_hit, best = 0, 0, max(level, 0)
    for o in range(order.size):
        i = order[o]
        if match[i] >= 0:
            continue
        terms_of((z[i] - z0) / norm, phi)
        gate = min(GATE_SIGMA * np.sqrt(_predict_all(state, phi, best)), cap)
        rho = density_at(grid, state.value[best])
        if rho <= 0.0:
            continue
        fraction = min(max((n_hit + 2.0) / (n_seen + 4.0), min_fraction), 0.85)
        j, _ = nearest_free(grid, state.value[best], gate, owner, mark)
        n_seen += 1
        target = w[j] if j >= 0 else 0.0j
        sure = _score(state, best, j >= 0, target, fraction, max(rho, floor))
        if sure > 0.5:
            match[i], chance[i], owner[j] = j, sure, mark
            n_hit += 1
        for m in range(LEVELS.size):
            if state.total[m] > state.total[best]:
                best = m
        if state.total[best] < give_up:
            break
    for k in range(N_TERMS):
        work.coeff[k] = state.coeff[best, k]
    log_odds = state.total[best] + np.log(_sum_exp(state.total, state.total[best]) / weight)
    return Growth(log_odds, n_seen, n_hit, np.sqrt(state.noise[best]), best)
