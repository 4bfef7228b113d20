"""Pair sources and reference stars, once the mapping from pixels to the sky is known well.

Every fit uses :func:`pair`: a source and a reference star are candidates where the square of their
distance in units of its error,

    q = d^T (S_source + S_reference + S_model)^-1 d,

is below the quantile of chi^2 with two degrees of freedom at the gate's probability. Where more
than one pairing is possible, the connected group of candidates is resolved at once, by the
assignment of least total q. :func:`depth_match` pairs from bright to faint, for lists whose
errors are not known, with a radius it never exceeds.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.geometry.match.verification import Grid, make_grid
from cynosure.geometry.skymodel import SkyModel
from cynosure.ground.cache import compiled
from cynosure.ground.numeric import propagated
from cynosure.ground.settings import Range, Unit
from cynosure.ground.sky import MAS_PER_DEG, covariance_on_plane, project

__all__ = ["depth_match", "mutual_nearest", "pair"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Candidates of a connected group up to which the assignment is solved exactly, at a cost that grows
# with the cube. Blends have a few; a larger group comes from a bad model and is paired greedily.
MAX_ASSIGNMENT = 200


@compiled
def _candidates(
    points: NDArray[np.complex128], grid: Grid, radius: Floats
) -> tuple[Ints, Ints]:
    """List every (point, grid point) closer than the point's radius."""
    n = 0
    first = np.empty(0, np.int64)
    second = np.empty(0, np.int64)
    for fill in range(2):
        if fill:
            first, second = np.empty(n, np.int64), np.empty(n, np.int64)
            n = 0
        for i in range(points.size):
            p, r = points[i], radius[i]
            if not (np.isfinite(p.real) and np.isfinite(p.imag)):
                continue
            i0 = max(int(np.floor((p.real - r - grid.x0) / grid.size)), 0)
            i1 = min(int(np.floor((p.real + r - grid.x0) / grid.size)), grid.nx - 1)
            j0 = max(int(np.floor((p.imag - r - grid.y0) / grid.size)), 0)
            j1 = min(int(np.floor((p.imag + r - grid.y0) / grid.size)), grid.ny - 1)
            for j in range(j0, j1 + 1):
                for c in range(i0, i1 + 1):
                    for k in range(grid.start[j * grid.nx + c], grid.start[j * grid.nx + c + 1]):
                        dx, dy = grid.point[k].real - p.real, grid.point[k].imag - p.imag
                        if dx * dx + dy * dy <= r * r:
                            if fill:
                                first[n], second[n] = i, grid.label[k]
                            n += 1
    return first, second


def mutual_nearest(
    points: NDArray[np.complex128], others: NDArray[np.complex128], radius: float
) -> tuple[Ints, Ints, Floats]:
    """Pair two lists in the plane by mutual nearest neighbour within `radius`."""
    grid = make_grid(np.ascontiguousarray(others), 2.0)
    i, j = _candidates(np.ascontiguousarray(points), grid, np.full(len(points), radius))
    d2 = np.abs(points[i] - others[j])
    order = np.lexsort((j, i, d2))
    i, j, d2 = i[order], j[order], d2[order]
    _, first_i = np.unique(i, return_index=True)
    _, first_j = np.unique(j, return_index=True)
    both = np.intersect1d(first_i, first_j)
    both = both[np.argsort(i[both], kind="stable")]
    return i[both], j[both], d2[both]


def pair(
    model: SkyModel,
    x: ArrayLike,
    y: ArrayLike,
    cov_xy_px2: ArrayLike,
    ra_deg: ArrayLike,
    dec_deg: ArrayLike,
    cov_ref_mas2: ArrayLike,
    *,
    model_sd_px: Annotated[float, Unit("px"), Range(0.0, 100.0)] = 0.0,
    gate_probability: Annotated[float, Range(0.5, 0.99999999)] = 0.9999,
    max_radius_px: Annotated[float, Unit("px"), Range(0.01, 1000.0)] = 3.0,
) -> tuple[Ints, Ints, Floats]:
    """Pair sources and reference stars one to one, within the gate.

    Parameters
    ----------
    model : SkyModel
    x, y : (n,) array_like
        Sources, 0-based pixels.
    cov_xy_px2 : (n, 3) array_like
        Variance of x, of y, and covariance.
    ra_deg, dec_deg : (m,) array_like
        Reference stars at the epoch of the image.
    cov_ref_mas2 : (m, 3) array_like
        Variance along ra (with cos dec), along dec, and covariance.
    model_sd_px : float
        Error of the model per axis; a number, or one for each source, (n,).
    gate_probability : float
        The share of true pairs that the gate lets through: 0.9999 is q < 18.4.
    max_radius_px : float
        No pair is wider than this, whatever its errors.

    Returns
    -------
    source_index, reference_index : (k,) ndarray of int
        The pairs, by rising source_index.
    q : (k,) ndarray
        Squared distance in units of its error.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    cov_xy, cov_ref = np.asarray(cov_xy_px2, float), np.asarray(cov_ref_mas2, float)
    xi, eta = model.pixel_to_plane(x, y)
    rxi, reta = project(ra_deg, dec_deg, model.ra0_deg, model.dec0_deg)
    middle = model.jacobian(model.x0, model.y0)
    scale_deg = float(np.sqrt(abs(np.linalg.det(middle))))
    limit = -2.0 * np.log1p(-gate_probability)
    inside = np.isfinite(rxi)
    inside[inside] = _near_box(rxi[inside], reta[inside], xi, eta, 2 * max_radius_px * scale_deg)
    kept = np.flatnonzero(inside)
    if len(kept) == 0 or len(x) == 0:
        none = np.zeros(0, np.int64)
        return none, none, np.zeros(0)
    grid = make_grid(rxi[kept] + 1j * reta[kept], 2.0)
    # Candidates are wanted within max_radius_px, which the local scale stretches a little.
    i, j = _candidates(xi + 1j * eta, grid, np.full(len(x), 1.3 * max_radius_px * scale_deg))
    j = kept[j]
    model_sd = np.broadcast_to(np.asarray(model_sd_px, float), x.shape)
    ra, dec = np.asarray(ra_deg, float)[j], np.asarray(dec_deg, float)[j]
    offset = xi[i] - rxi[j], eta[i] - reta[j]
    q, r = _gate_distance(
        model, _Candidates(x[i], y[i], cov_xy[i], model_sd[i], ra, dec, cov_ref[j], *offset)
    )
    good = (q <= limit) & (r <= max_radius_px)
    return _resolve(i[good], j[good], q[good], limit)


def _near_box(rx: Floats, ry: Floats, x: Floats, y: Floats, margin: float) -> NDArray[np.bool_]:
    good = np.isfinite(x) & np.isfinite(y)
    if not good.any():
        return np.zeros(len(rx), bool)
    x, y = x[good], y[good]
    return (
        (rx > x.min() - margin) & (rx < x.max() + margin)
        & (ry > y.min() - margin) & (ry < y.max() + margin)
    )


class _Candidates(NamedTuple):
    """Sources and reference stars that may be pairs, and how far they are apart on the plane."""

    x: Floats
    y: Floats
    cov_xy: Floats
    model_sd: Floats
    ra: Floats
    dec: Floats
    cov_ref: Floats
    dxi: Floats
    deta: Floats


def _gate_distance(model: SkyModel, candidates: _Candidates) -> tuple[Floats, Floats]:
    """Return q and the distance in pixels of candidates, all in the pixel plane."""
    x, y, cov_xy, model_sd, ra, dec, cov_ref, dxi, deta = candidates
    if len(x) == 0:
        return np.zeros(0), np.zeros(0)
    inverse = np.linalg.inv(model.jacobian(x, y))
    dx = inverse[:, 0, 0] * dxi + inverse[:, 0, 1] * deta
    dy = inverse[:, 1, 0] * dxi + inverse[:, 1, 1] * deta
    on_plane = covariance_on_plane(cov_ref, ra, dec, model.ra0_deg, model.dec0_deg)
    to_px = np.asarray(inverse / MAS_PER_DEG, np.float64)
    a, b, c = np.add(cov_xy, propagated(to_px, on_plane)).T
    a, b = a + model_sd**2, b + model_sd**2
    det = a * b - c * c
    with np.errstate(divide="ignore", invalid="ignore"):
        q = (b * dx * dx - 2.0 * c * dx * dy + a * dy * dy) / det
    return np.where(np.isfinite(q), q, np.inf), np.hypot(dx, dy)


def _resolve(i: Ints, j: Ints, q: Floats, limit: float) -> tuple[Ints, Ints, Floats]:
    """Choose one-to-one pairs among candidates: alone, or by assignment in connected groups."""
    n_i = np.bincount(i)[i] if len(i) else i
    n_j = np.bincount(j)[j] if len(j) else j
    alone = (n_i == 1) & (n_j == 1)
    chosen = [np.flatnonzero(alone)]
    rest = np.flatnonzero(~alone)
    if len(rest):
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        ui, ii = np.unique(i[rest], return_inverse=True)
        uj, jj = np.unique(j[rest], return_inverse=True)
        size = len(ui) + len(uj)
        graph = coo_matrix((np.ones(len(rest)), (ii, len(ui) + jj)), shape=(size, size))
        _, group = connected_components(graph, directed=False)
        group = group[ii]
        order = np.argsort(group, kind="stable")
        for edges in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
            chosen.append(rest[edges[_assign(ii[edges], jj[edges], q[rest[edges]], limit)]])
    picked = np.concatenate(chosen)
    picked = picked[np.argsort(i[picked], kind="stable")]
    return i[picked], j[picked], q[picked]


def _assign(i: Ints, j: Ints, q: Floats, limit: float) -> Ints:
    """Return the edges of the assignment that pairs most, at least total q."""
    ui, a = np.unique(i, return_inverse=True)
    uj, b = np.unique(j, return_inverse=True)
    if len(ui) + len(uj) > MAX_ASSIGNMENT:
        return _greedy(a, b, q)
    from scipy.optimize import linear_sum_assignment

    # Pairs that are no candidates cost as much as the gate, so that the most pairs are made.
    cost = np.full((len(ui), len(uj)), limit)
    edge = np.full((len(ui), len(uj)), -1)
    cost[a, b], edge[a, b] = np.minimum(q, limit) - limit, np.arange(len(i))
    cost[edge < 0] = 0.0
    rows, columns = linear_sum_assignment(cost)
    found = edge[rows, columns]
    return found[found >= 0]


def _greedy(i: Ints, j: Ints, q: Floats) -> Ints:
    used_i, used_j, picked = set(), set(), []
    for e in np.lexsort((j, i, q)):
        if i[e] not in used_i and j[e] not in used_j:
            used_i.add(i[e])
            used_j.add(j[e])
            picked.append(e)
    return np.array(picked, dtype=np.int64)


@compiled
def _deplete(points: NDArray[np.complex128], grid: Grid, depth: Ints, radius: float) -> Ints:
    """Give each point in turn the nearest grid point that is left among its first `depth`."""
    taken = np.zeros(grid.point.size, np.bool_)
    out = np.full(points.size, -1, np.int64)
    for n in range(points.size):
        p, best, best2 = points[n], -1, radius * radius
        i0 = max(int(np.floor((p.real - radius - grid.x0) / grid.size)), 0)
        i1 = min(int(np.floor((p.real + radius - grid.x0) / grid.size)), grid.nx - 1)
        j0 = max(int(np.floor((p.imag - radius - grid.y0) / grid.size)), 0)
        j1 = min(int(np.floor((p.imag + radius - grid.y0) / grid.size)), grid.ny - 1)
        for j in range(j0, j1 + 1):
            for i in range(i0, i1 + 1):
                for k in range(grid.start[j * grid.nx + i], grid.start[j * grid.nx + i + 1]):
                    if taken[k] or grid.label[k] >= depth[n]:
                        continue
                    d2 = (grid.point[k].real - p.real) ** 2 + (grid.point[k].imag - p.imag) ** 2
                    if d2 <= best2:
                        best, best2 = k, d2
        if best >= 0:
            taken[best] = True
            out[n] = grid.label[best]
    return out


def depth_match(
    x: ArrayLike, y: ArrayLike, flux: ArrayLike, rx: ArrayLike, ry: ArrayLike, mag: ArrayLike,
    *,
    radius_px: Annotated[float, Unit("px"), Range(0.01, 1000.0)] = 3.0,
    depth: Annotated[int, Range(1, 100_000_000)] = 15000,
    depth_fraction: Annotated[float, Range(0.0, 1.0)] = 0.3,
) -> tuple[Ints, Ints]:
    """Pair from bright to faint within a radius, removing each pair from the lists.

    The sources are taken in order of brightness. Each takes the nearest unpaired reference star
    within `radius_px` in a window of ``max(depth, depth_fraction m)`` stars that moves down the
    reference list at the same pace. Without the radius a source that has no counterpart would take
    that of a neighbour, and so on down the list. Where there are more sources than reference stars
    the ranks carry little information, and the pairs are mutual nearest neighbours within the
    radius.

    Parameters
    ----------
    x, y, flux : (n,) array_like
        Sources.
    rx, ry, mag : (m,) array_like
        Reference stars in the same pixels.
    radius_px : float
        Largest distance of a pair.
    depth : int
        Length of the window on the reference stars, at least.
    depth_fraction : float
        The same as a fraction of them.

    Returns
    -------
    source_index, reference_index : (k,) ndarray of int
        The pairs, by rising source_index.
    """
    points = np.asarray(x, float) + 1j * np.asarray(y, float)
    others = np.asarray(rx, float) + 1j * np.asarray(ry, float)
    source = _rank(-np.asarray(flux, float), np.isfinite(points))
    target = _rank(np.asarray(mag, float), np.isfinite(others))
    n, m = len(source), len(target)
    if n == 0 or m == 0:
        none = np.zeros(0, np.int64)
        return none, none
    if n > m:
        i, j, _ = mutual_nearest(points[source], others[target], radius_px)
    else:
        window = max(depth, int(np.ceil(depth_fraction * m)))
        last = window + (np.arange(n) * (m / n)).astype(np.int64)
        found = _deplete(points[source], make_grid(others[target], 2.0), last, radius_px)
        i = np.flatnonzero(found >= 0)
        j = found[i]
    i, j = source[i], target[j]
    order = np.argsort(i, kind="stable")
    return i[order], j[order]


def _rank(brightness: Floats, valid: NDArray[np.bool_]) -> Ints:
    """Return the numbers of the valid rows, brightest first; unknown brightness last."""
    order = np.argsort(brightness, kind="stable")
    return order[valid[order]]
