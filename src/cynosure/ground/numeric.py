"""Robust statistics, weighted least squares and two-dimensional polynomials.

All modules use these functions: one clipping, one least squares, one order of polynomial terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.ground.errors import Degenerate

__all__ = [
    "LeastSquares",
    "clip",
    "lstsq",
    "mad_std",
    "n_terms",
    "newton_plane",
    "poly_design",
    "poly_exponents",
    "poly_gradient",
    "propagated",
    "rms",
    "solve_normal",
]

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

# 1 / Phi^-1(3/4): the standard deviation of a Gaussian whose median absolute deviation is 1.
MAD_TO_STD = 1.482602218505602


def mad_std(values: ArrayLike, axis: int | None = None) -> Floats:
    """Return the standard deviation of the Gaussian that has the data's median absolute deviation.

    NaN are ignored; no data give NaN.
    """
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        return np.float64(np.nan)  # type: ignore[return-value]
    center = np.nanmedian(values, axis=axis, keepdims=True)
    return MAD_TO_STD * np.nanmedian(np.abs(values - center), axis=axis)


def rms(values: ArrayLike) -> float:
    """Return the root mean square about zero; NaN for no data."""
    values = np.asarray(values, dtype=float)
    return float(np.sqrt(np.mean(values**2))) if values.size else float("nan")


def clip(values: ArrayLike, sigma: float = 3.0, max_rounds: int = 20) -> NDArray[np.bool_]:
    """Return the mask of the values within `sigma` robust standard deviations of the median.

    Rounds repeat until nothing changes. Values that are not finite are never kept.
    """
    values = np.asarray(values, dtype=float)
    keep = np.isfinite(values)
    for _ in range(max_rounds):
        if not keep.any():
            break
        center = np.median(values[keep])
        spread = mad_std(values[keep])
        new = np.isfinite(values) & (np.abs(values - center) <= sigma * spread)
        if spread == 0 or np.array_equal(new, keep):
            break
        keep = new
    return keep


@dataclass(frozen=True, slots=True)
class LeastSquares:
    """The result of :func:`lstsq`.

    Attributes
    ----------
    x : (p,) or (p, k) ndarray
        The solution.
    covariance : (p, p) ndarray
        ``(A^T W A)^-1``; it is the covariance of `x` where the weights are inverse variances.
    condition : float
        Condition number of the column-scaled design.
    """

    x: Floats
    covariance: Floats
    condition: float


def lstsq(
    design: ArrayLike,
    values: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    max_condition: float = 1e10,
    what: str = "least squares",
) -> LeastSquares:
    """Solve ``A x = b`` by weighted linear least squares, with covariance.

    Parameters
    ----------
    design : (n, p) array_like
        The design matrix A.
    values : (n,) or (n, k) array_like
        The right-hand side b; several columns share the weights.
    weights : (n,) array_like, optional
        Inverse variances.
    max_condition : float
        Largest condition number of the column-scaled design. At 1e10 the solution keeps five or six
        of sixteen digits.
    what : str
        Named in the error.

    Raises
    ------
    Degenerate
        If there are fewer points than parameters or the condition is too large.
    """
    a = np.asarray(design, dtype=float)
    b = np.asarray(values, dtype=float)
    n, p = a.shape
    if weights is not None:
        root = np.sqrt(np.asarray(weights, dtype=float))
        a = a * root[:, None]
        b = b * (root if b.ndim == 1 else root[:, None])
    scale = np.sqrt(np.einsum("ij,ij->j", a, a))
    if n < p or not np.all(scale > 0):
        raise Degenerate(what=what, n_points=n, n_parameters=p, condition=np.inf)
    scaled = a / scale
    values, vectors = np.linalg.eigh(scaled.T @ scaled)
    # Normal equations square the condition. With more than four points a parameter they are much
    # cheaper, and up to a condition of 1e7 of the matrix they keep nine digits; otherwise the
    # singular value decomposition is used.
    if n > 4 * p and values[0] > 1e-7 * values[-1]:
        condition = float(np.sqrt(values[-1] / values[0]))
        inverse = (vectors / values) / scale[:, None]
        return LeastSquares(
            inverse @ (vectors.T @ (scaled.T @ b)),
            (inverse * values) @ inverse.T, condition,
        )
    u, s, vt = np.linalg.svd(scaled, full_matrices=False)
    condition = float(s[0] / s[-1]) if s[-1] > 0 else np.inf
    if condition > max_condition:
        raise Degenerate(what=what, n_points=n, n_parameters=p, condition=condition)
    inverse = (vt.T / s) / scale[:, None]
    return LeastSquares(inverse @ (u.T @ b), inverse @ inverse.T, condition)


def n_terms(degree: int) -> int:
    """Return the number of terms of a two-dimensional polynomial of total degree `degree`."""
    return (degree + 1) * (degree + 2) // 2


def poly_exponents(degree: int) -> NDArray[np.int64]:
    """Return the exponents (i, j) of ``u^i v^j``, by total degree and then by falling i.

    Examples
    --------
    >>> poly_exponents(2).tolist()
    [[0, 0], [1, 0], [0, 1], [2, 0], [1, 1], [0, 2]]
    """
    return np.array([(d - j, j) for d in range(degree + 1) for j in range(d + 1)], dtype=np.int64)


def _powers(u: Floats, degree: int) -> Floats:
    powers = np.empty((degree + 1, *u.shape))
    powers[0] = 1.0
    for d in range(1, degree + 1):
        powers[d] = powers[d - 1] * u
    return powers


def poly_design(u: ArrayLike, v: ArrayLike, degree: int) -> Floats:
    """Return the (n, n_terms) matrix of ``u^i v^j`` in the order of :func:`poly_exponents`."""
    u, v = np.asarray(u, dtype=float), np.asarray(v, dtype=float)
    pu, pv = _powers(u, degree), _powers(v, degree)
    return np.stack([pu[i] * pv[j] for i, j in poly_exponents(degree)], axis=-1)


def poly_gradient(u: ArrayLike, v: ArrayLike, degree: int) -> tuple[Floats, Floats]:
    """Return the derivatives of :func:`poly_design` by u and by v, each (n, n_terms)."""
    u, v = np.asarray(u, dtype=float), np.asarray(v, dtype=float)
    pu, pv = _powers(u, degree), _powers(v, degree)
    zero = np.zeros_like(u)
    du = [i * pu[i - 1] * pv[j] if i else zero for i, j in poly_exponents(degree)]
    dv = [j * pu[i] * pv[j - 1] if j else zero for i, j in poly_exponents(degree)]
    return np.stack(du, axis=-1), np.stack(dv, axis=-1)


def propagated(jacobian: Floats, covariance: Floats) -> Floats:
    """Return ``J C J^T`` of 2 x 2 covariances kept as (n, 3): xx, yy, xy.

    Parameters
    ----------
    jacobian : (n, 2, 2) or (2, 2) ndarray
        Derivatives of the new coordinates (rows) by the old ones (columns).
    covariance : (n, 3) ndarray

    Examples
    --------
    >>> quarter_turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    >>> propagated(quarter_turn, np.array([[4.0, 1.0, 0.5]])).tolist()
    [[1.0, 4.0, -0.5]]
    """
    cxx, cyy, cxy = covariance.T
    a, b = jacobian[..., 0, 0], jacobian[..., 0, 1]
    c, d = jacobian[..., 1, 0], jacobian[..., 1, 1]
    return np.stack([
        a * a * cxx + b * b * cyy + 2 * a * b * cxy,
        c * c * cxx + d * d * cyy + 2 * c * d * cxy,
        a * c * cxx + b * d * cyy + (a * d + b * c) * cxy,
    ], axis=-1)


def solve_normal(
    matrix: Floats, right: Floats, n_points: int, *, max_condition: float = 1e10,
    what: str = "least squares",
) -> LeastSquares:
    """Solve the normal equations ``N x = r`` of a weighted least-squares problem.

    For designs that are cheaper to sum than to store. The matrix is scaled to a unit diagonal. Its
    condition is the square of the design's, which is limited to 1e7: the solution keeps two digits
    at least.

    Parameters
    ----------
    matrix : (p, p) ndarray
        ``A^T W A``.
    right : (p,) ndarray
        ``A^T W b``.
    n_points : int
        Number of observations, for the error.
    max_condition : float
        Largest condition of the design (the root of the matrix's).
    what : str
        Named in the error.

    Raises
    ------
    Degenerate
        If the observations do not determine the parameters.
    """
    p = len(right)
    diagonal = np.sqrt(np.diag(matrix))
    if n_points < p or not np.all(diagonal > 0):
        raise Degenerate(what=what, n_points=n_points, n_parameters=p, condition=np.inf)
    values, vectors = np.linalg.eigh(matrix / np.outer(diagonal, diagonal))
    condition = float(np.sqrt(values[-1] / values[0])) if values[0] > 0 else np.inf
    if condition > min(max_condition, 1e7):
        raise Degenerate(what=what, n_points=n_points, n_parameters=p, condition=condition)
    half = vectors / np.sqrt(values) / diagonal[:, None]
    return LeastSquares(half @ (half.T @ right), half @ half.T, condition)


# Most Newton steps. A smooth distortion needs three or four; a point that needs 20 has left the
# region where the map is one-to-one.
MAX_NEWTON_STEPS = 20
# Convergence in px: the iteration ends when all steps are below the first; a point whose last step
# exceeds the second has no solution.
NEWTON_TOLERANCE, NEWTON_FAILED = 1e-9, 1e-3


def newton_plane(
    forward: Callable[[Floats, Floats, Rows], tuple[Floats, Floats]],
    jacobian: Callable[[Floats, Floats, Rows], Floats],
    start: tuple[Floats, Floats], target: tuple[Floats, Floats],
) -> tuple[Floats, Floats]:
    """Solve ``f(x, y) = (u, v)`` by Newton's method, for many points at once.

    Parameters
    ----------
    forward : callable
        f, of x and y of some of the points, each (k,), and the rows of these.
    jacobian : callable
        Its derivatives, (k, 2, 2), of the same.
    start : tuple of (n,) ndarray
        Initial x and y. The unit of the tolerances is that of x and y, usually a pixel.
    target : tuple of (n,) ndarray
        u and v.

    Returns
    -------
    x, y : (n,) ndarray
        NaN where the steps do not converge.
    """
    x, y = (np.array(v, dtype=float) for v in start)
    u, v = target
    moved = np.full(x.shape, np.inf)
    left = np.flatnonzero(np.isfinite(x + y + u + v))
    for _ in range(MAX_NEWTON_STEPS):
        if not left.size:
            break
        fu, fv = forward(x[left], y[left], left)
        j = jacobian(x[left], y[left], left)
        ru, rv = u[left] - fu, v[left] - fv
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            det = j[:, 0, 0] * j[:, 1, 1] - j[:, 0, 1] * j[:, 1, 0]
            dx = (j[:, 1, 1] * ru - j[:, 0, 1] * rv) / det
            dy = (j[:, 0, 0] * rv - j[:, 1, 0] * ru) / det
            x[left], y[left] = x[left] + dx, y[left] + dy
            moved[left] = np.hypot(dx, dy)
            left = left[(moved[left] > NEWTON_TOLERANCE) & np.isfinite(moved[left])]
    good = moved < NEWTON_FAILED
    return np.where(good, x, np.nan), np.where(good, y, np.nan)
