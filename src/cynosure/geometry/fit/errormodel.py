r"""The error model: the covariance that a residual should have.

The covariance of the residual of star i is

    Sigma_i = a^2 S_source,i + S_reference,i + sigma_0^2 I

with S_source the covariance of the measured position, S_reference that of the reference star at
the epoch, a the factor on the measuring errors, and sigma_0 the error that neither covariance
includes: turbulence, unmodelled distortion, pixel phase. Both are found by maximum likelihood,

    minimise  1/2 sum_i [ln det Sigma_i + r_i^T Sigma_i^-1 r_i],

over the stars that are not outliers (Mahalanobis distance squared below the 0.9999 quantile of
chi^2 with two degrees of freedom). A residual of a star that took part in the fit is smaller than
its error by sqrt(1 - h) with h its leverage; it is divided by that before the fit. A weak prior
(ln a ~ N(0, 0.5^2): a within a factor 1.6 of 1) decides where few stars cannot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHI2_OUTLIER", "ErrorModel", "fit_error_model", "mahalanobis2"]

Floats = NDArray[np.float64]

# The 0.9999 quantile of chi^2 with two degrees of freedom, -2 ln 1e-4.
CHI2_OUTLIER = 18.42068

# Floor of sigma_0: a tenth of the smallest error of a reference star (LEAST_ERROR_MAS), so that it
# has no effect; the fit uses ln sigma_0, which must stay finite.
LEAST_SIGMA0_MAS = 1e-3

# Standard deviation of the prior on ln a: wide enough that a is measured wherever the stars
# determine it, and narrow enough that a stays near 1 with fewer than about ten stars.
PRIOR_LN_A = 0.5


@dataclass(frozen=True, slots=True)
class ErrorModel:
    """The error model of one image.

    Attributes
    ----------
    a : float
        Factor on the standard errors of the source positions.
    sigma0_mas : float
        Error added to every star, per axis.
    """

    a: float = 1.0
    sigma0_mas: float = 0.0

    def covariance(self, source: Floats, reference: Floats) -> Floats:
        """Return the covariance (n, 3) - xx, yy, xy - of residuals, mas^2."""
        out = self.a**2 * source + reference
        out[:, :2] += self.sigma0_mas**2
        return out


def mahalanobis2(residual: Floats, covariance: Floats) -> Floats:
    """Return ``r^T Sigma^-1 r`` of residuals (n, 2) with covariances (n, 3)."""
    xx, yy, xy = covariance.T
    x, y = residual.T
    return (yy * x * x - 2.0 * xy * x * y + xx * y * y) / (xx * yy - xy * xy)


def fit_error_model(
    residual: Floats,
    source: Floats,
    reference: Floats,
    leverage: Floats | None = None,
    *,
    start: ErrorModel | None = None,
    rounds: int = 6,
) -> tuple[ErrorModel, NDArray[np.bool_]]:
    """Find the error model of residuals by maximum likelihood.

    Parameters
    ----------
    residual : (n, 2) ndarray
        Source minus reference, mas.
    source, reference : (n, 3) ndarray
        Covariances of the measured and of the reference positions, mas^2: xx, yy, xy.
    leverage : (n, 2) ndarray, optional
        Leverage of each residual per axis in the fit that made it; 0 for stars held out.
    start : ErrorModel, optional
        Where to start; otherwise from the median residual.
    rounds : int
        Most rounds of fitting and dropping outliers.

    Returns
    -------
    model : ErrorModel
    inlier : (n,) ndarray of bool
        The stars that were not outliers in the last round.
    """
    if leverage is not None:
        residual = residual / np.sqrt(np.clip(1.0 - leverage, 0.05, 1.0))
    model = start or _rough(residual, source, reference)
    inlier = mahalanobis2(residual, model.covariance(source, reference)) < 2.0 * CHI2_OUTLIER
    if 2 * inlier.sum() < len(inlier):  # the start calls most stars outliers: it is discarded
        model = _rough(residual, source, reference)
        inlier = mahalanobis2(residual, model.covariance(source, reference)) < 2.0 * CHI2_OUTLIER
    for _ in range(rounds):
        if inlier.sum() < 3:
            break
        model = _most_likely(residual[inlier], source[inlier], reference[inlier], model)
        new = mahalanobis2(residual, model.covariance(source, reference)) < CHI2_OUTLIER
        if np.array_equal(new, inlier):
            break
        inlier = new
    return model, inlier


def _rough(residual: Floats, source: Floats, reference: Floats) -> ErrorModel:
    """Start with a = 1 and the sigma_0 that gives chi^2 its expected median, 2 ln 2."""
    low, high = LEAST_SIGMA0_MAS, max(10.0 * float(np.median(np.abs(residual))), 1.0)
    for _ in range(30):
        middle = np.sqrt(low * high)
        q = mahalanobis2(residual, ErrorModel(1.0, middle).covariance(source, reference))
        if np.median(q) > 2.0 * np.log(2.0):  # the median of chi^2 with two degrees of freedom
            low = middle
        else:
            high = middle
    return ErrorModel(1.0, float(high))


def _most_likely(
    residual: Floats, source: Floats, reference: Floats, start: ErrorModel
) -> ErrorModel:
    """Minimise the negative log-likelihood over (ln a, ln sigma_0) by damped Newton steps."""
    residual, source, reference = (
        np.ascontiguousarray(table.T) for table in (residual, source, reference)
    )
    # A sigma_0 below a twentieth of the best star's error changes its variance by 1/400 at most.
    best = np.sqrt(np.min(source[0] + reference[0]))
    floor = np.log(max(LEAST_SIGMA0_MAS, 0.05 * best))
    p = np.array([np.log(start.a), max(np.log(max(start.sigma0_mas, 1e-9)), floor)])
    value, gradient, curvature = _likelihood(p, residual, source, reference)
    damping = 1e-4
    for _ in range(40):
        step = -gradient / (np.diag(curvature) * (1.0 + damping) + 1e-9)
        if p[1] > floor or gradient[1] < 0:  # sigma_0 is free; at its floor only a moves
            damped = curvature + damping * np.diag(np.diag(curvature) + 1e-9)
            step = np.asarray(np.linalg.solve(damped, -gradient), np.float64)
        trial = np.clip(p + np.clip(step, -1.5, 1.5), [np.log(0.05), floor], [np.log(50.0), 20.0])
        moved = np.abs(trial - p).max()
        if moved < 1e-4:
            break
        new = _likelihood(trial, residual, source, reference)
        if new[0] <= value + 1e-9 * abs(value):
            p, (value, gradient, curvature) = trial, new
            damping = max(damping / 10.0, 1e-9)
        else:
            damping *= 20.0
            if damping > 1e6:
                break
    return ErrorModel(float(np.exp(p[0])), float(np.exp(p[1])))


def _likelihood(
    p: Floats, residual: Floats, source: Floats, reference: Floats
) -> tuple[float, Floats, Floats]:
    """Return the negative log-likelihood with the prior, its gradient, and Fisher's matrix.

    The arguments are columns: x and y of the residuals, xx, yy and xy of the covariances.
    """
    a2, s2 = np.exp(2.0 * p)
    (x, y), (sxx, syy, sxy) = residual, source
    xx, yy = a2 * sxx + reference[0] + s2, a2 * syy + reference[1] + s2
    xy = a2 * sxy + reference[2]
    det = xx * yy - xy * xy
    ixx, iyy, ixy = yy / det, xx / det, -xy / det
    u, v = ixx * x + ixy * y, ixy * x + iyy * y
    value = 0.5 * (np.log(det).sum() + u @ x + v @ y)
    # With D the derivative of Sigma, 2 a^2 S or 2 s^2 1: the gradient is
    # 1/2 tr(Sigma^-1 D) - 1/2 u^T D u, and Fisher's matrix 1/2 tr(Sigma^-1 D1 Sigma^-1 D2).
    m00, m01 = ixx * sxx + ixy * sxy, ixx * sxy + ixy * syy
    m10, m11 = ixy * sxx + iyy * sxy, ixy * sxy + iyy * syy
    uu, vv = u * u, v * v
    gradient = np.array([
        a2 * (m00.sum() + m11.sum() - sxx @ uu - syy @ vv - 2.0 * (sxy @ (u * v))),
        s2 * (ixx.sum() + iyy.sum() - uu.sum() - vv.sum()),
    ])
    cross = 2.0 * a2 * s2 * (m00 @ ixx + (m01 + m10) @ ixy + m11 @ iyy)
    fisher = np.array([
        [2.0 * a2 * a2 * (m00 @ m00 + 2.0 * (m01 @ m10) + m11 @ m11), cross],
        [cross, 2.0 * s2 * s2 * (ixx @ ixx + 2.0 * (ixy @ ixy) + iyy @ iyy)],
    ])
    value += 0.5 * (p[0] / PRIOR_LN_A) ** 2
    gradient[0] += p[0] / PRIOR_LN_A**2
    fisher[0, 0] += 1.0 / PRIOR_LN_A**2
    return float(value), gradient, fisher
