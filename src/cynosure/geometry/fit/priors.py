r"""Gaussian priors on the distortion, with sizes that are estimated from the stars.

With few stars a linear map has a systematic error that its covariance does not include, and a free
polynomial is needlessly noisy. Here every coefficient beyond the linear ones has a Gaussian prior
about zero, or about the input WCS,

    c_k ~ N(m_k, tau_g^2)      for the terms of group g,

so that the fit stays a linear problem, ``(N + T^-1) (c - m) = b - N m``, and its covariance
``(N + T^-1)^-1`` includes what the stars do not determine. The groups are the terms of each degree,
and the third- and fifth-order radial distortion about the frame's centre, one parameter each,
which are the largest terms of a lens. The sizes tau_g maximise the likelihood of the residuals
(type-II maximum likelihood, MacKay 1992, Neural Computation 4, 415; by the expectation-maximisation
steps of Dempster, Laird & Rubin 1977, J. R. Stat. Soc. B 39, 1), with a weak prior about an initial
size. Several initial sizes are tried, and their solutions are averaged with the evidence as weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.skymodel import SkyModel
from cynosure.ground.numeric import n_terms, poly_design, poly_exponents

__all__ = ["SIZES_PX", "Shrinkage", "mixture", "moved", "simplified"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Initial sizes of the terms of second and third degree: px, half a frame from the centre. They run
# from an undistorted camera (below any centroid error) to a wide lens, a factor 4 to 5 apart, which
# the estimated sizes bridge.
SIZES_PX = (0.004, 0.02, 0.1, 0.4, 1.5)

# Initial sizes beyond the third degree fall by this factor a degree, and those of radial terms (and
# of the linear terms of an input WCS) are this factor larger: the ratios that are typical of
# lenses. They only matter where the stars do not determine the sizes.
FALL, RADIAL = 0.4, 5.0

# Weight of the initial size against the fitted coefficients of its group, in coefficients. A group
# of one radial term has a smaller weight, so that one coefficient can change its own size.
WEIGHT, RADIAL_WEIGHT = 3.0, 0.3

# Prior log-odds of each initial size over the next larger one: a weak preference (0.3 is 1.35 : 1)
# for little distortion where the evidence is equal.
SIZE_LOG_ODDS = 0.3

# Terms are left out when that moves the WCS by less than this part of its error (rms over the
# frame): at 0.5 the total error rises by 12 % at most, and it is added to the covariance.
NEGLIGIBLE_SE = 0.5

# Expectation-maximisation steps for the sizes. They converge linearly and are not iterated to the
# end: the several initial sizes and their mixture take care of the rest.
STEPS = 12


@dataclass(slots=True, eq=False)
class Shrinkage:
    """The prior of the coefficients of a polynomial, with its estimated sizes.

    Attributes
    ----------
    degree : int
        Of the polynomial.
    basis : (2 t, q) ndarray
        From the parameters, the radial ones last, to the coefficients of both axes.
    groups : tuple of (k,) ndarray of int
        The parameters that share a size; without a prior mean the linear ones are in no group.
    typical2, size2 : (g,) ndarray
        The squares of the initial and of the present sizes, deg^2.
    weight : (g,) ndarray
        Weight of the initial sizes, in coefficients.
    mean : (2 t,) ndarray
        The prior mean of the coefficients.
    effective : float
        Effective number of parameters that the stars determine.
    log_evidence : float
        Contribution of the prior to the log-likelihood of the residuals.
    """

    degree: int
    basis: Floats
    groups: tuple[Ints, ...]
    typical2: Floats
    weight: Floats
    size2: Floats
    mean: Floats
    effective: float = 0.0
    log_evidence: float = 0.0

    @classmethod
    def of(
        cls, base: SkyModel, degree: int, size_px: float, around: SkyModel | None = None
    ) -> Shrinkage:
        """Return the prior for a polynomial on the plane of a model.

        Parameters
        ----------
        base : SkyModel
            Its linear part defines the radial direction.
        degree : int
        size_px : float
            Initial size of the terms of second and third degree.
        around : SkyModel, optional
            The prior mean of all coefficients, on the same plane; zero by default.
        """
        t = n_terms(degree)
        powers = poly_exponents(degree)
        order = powers.sum(axis=1)
        pixel_deg = np.sqrt(abs(np.linalg.det(base.coeff[:, 1:3]))) / base.scale_px
        columns, groups, typical, weights = [np.eye(2 * t)], [], [], []
        mean = np.zeros((2, t))
        if around is not None:
            mean[:, : around.coeff.shape[1]] = around.coeff
        for k in range(2 if around is None else 1, degree + 1):
            rows = np.flatnonzero(order == k)
            groups.append(np.concatenate([rows, rows + t]))
            typical.append(size_px * FALL ** max(k - 3, 0) * (RADIAL if k == 1 else 1.0))
            weights.append(WEIGHT if k > 1 else RADIAL_WEIGHT)
        for k in range(3, min(degree, 5) + 1, 2):
            groups.append(np.array([2 * t + len(columns) - 1]))
            columns.append(_radial(base, powers, (k - 1) // 2).reshape(-1, 1))
            typical.append(RADIAL * size_px * FALL ** max(k - 3, 0))
            weights.append(RADIAL_WEIGHT)
        typical2 = (np.array(typical) * pixel_deg) ** 2
        return cls(
            degree, np.concatenate(columns, axis=1), tuple(groups), typical2, np.array(weights),
            typical2.copy(), mean.ravel(),
        )

    def solve(self, matrix: Floats, right: Floats) -> tuple[Floats, Floats]:
        """Solve the normal equations of the coefficients, and estimate the sizes.

        Returns
        -------
        coefficients : (2 t,) ndarray
        covariance : (2 t, 2 t) ndarray
        """
        normal = self.basis.T @ matrix @ self.basis
        goal = self.basis.T @ (right - matrix @ self.mean)
        for step in range(STEPS):
            inverse, x, log_det = self._posterior(normal, goal)
            if step == STEPS - 1:
                break
            for g, rows in enumerate(self.groups):
                seen = np.sum(x[rows] ** 2 + np.diag(inverse)[rows])
                typical = self.weight[g] * self.typical2[g]
                self.size2[g] = (typical + seen) / (self.weight[g] + len(rows))
        self.effective = float(np.sum(inverse * normal))
        self.log_evidence = self._log_evidence(x, log_det)
        return self.mean + self.basis @ x, self.basis @ inverse @ self.basis.T

    def _posterior(self, normal: Floats, goal: Floats) -> tuple[Floats, Floats, float]:
        precision = np.zeros(len(goal))
        for g, rows in enumerate(self.groups):
            precision[rows] = 1.0 / self.size2[g]
        total = normal + np.diag(precision)
        scale = 1.0 / np.sqrt(np.diag(total))
        half = np.linalg.cholesky(total * np.outer(scale, scale))
        inner = np.linalg.solve(half, np.diag(scale))
        inverse = inner.T @ inner
        log_det = 2.0 * float(np.sum(np.log(np.diag(half))) - np.sum(np.log(scale)))
        return inverse, inverse @ goal, log_det

    def _log_evidence(self, x: Floats, log_det: float) -> float:
        value = -0.5 * log_det
        for g, rows in enumerate(self.groups):
            size2 = self.size2[g]
            value -= 0.5 * (len(rows) * np.log(size2) + np.sum(x[rows] ** 2) / size2)
            ratio = self.typical2[g] / size2
            value += 0.5 * self.weight[g] * (np.log(ratio) - ratio)
        return float(value)


def mixture(tried: list[tuple[float, Floats, Floats]]) -> tuple[Floats, Floats]:
    """Return mean and covariance of the solutions of several priors, weighted by their evidence.

    Parameters
    ----------
    tried : list of tuple
        Logarithm of the evidence, coefficients (p,) and covariance (p, p).
    """
    log_weight = np.array([t[0] for t in tried]) - SIZE_LOG_ODDS * np.arange(len(tried))
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    mean = sum(w * t[1] for w, t in zip(weight, tried))
    covariance = sum(
        w * (t[2] + np.outer(t[1] - mean, t[1] - mean)) for w, t in zip(weight, tried)
    )
    return np.asarray(mean), np.asarray(covariance)


def simplified(
    p: Floats, covariance: Floats, u: Floats, v: Floats, highest: int
) -> tuple[Floats, int]:
    """Leave out terms of the highest degrees that hardly move the WCS (see `NEGLIGIBLE_SE`).

    The lower terms get their conditional mean for higher terms of zero.

    Parameters
    ----------
    p : (2 t,) ndarray
    covariance : (2 t, 2 t) ndarray
    u, v : (n,) ndarray
        Where the stars are; the terms are judged over the rectangle that holds these.
    highest : int
        Terms of higher degree are left out in any case.

    Returns
    -------
    p : (2 t,) ndarray
        With zeros.
    degree : int
        The highest that is left.
    """
    order = poly_exponents(_degree_of(len(p) // 2)).sum(axis=1)
    for degree in range(1, int(order[-1])):
        out = np.flatnonzero(np.tile(order > degree, 2))
        new = p - covariance[:, out] @ np.linalg.lstsq(covariance[np.ix_(out, out)], p[out])[0]
        new[out] = 0.0
        if degree == highest or moved(new - p, covariance, u, v) < NEGLIGIBLE_SE:
            return new, degree
    return p, int(order[-1])


def moved(change: Floats, covariance: Floats, u: Floats, v: Floats) -> float:
    """Return how far coefficients move the WCS over the frame, in standard errors (rms)."""
    t = len(change) // 2
    gu, gv = np.meshgrid(*(np.linspace(z.min(), z.max(), 7) for z in (u, v)))
    design = poly_design(gu.ravel(), gv.ravel(), _degree_of(t))
    errors2 = [
        np.einsum("ij,ij->i", design @ c, design)
        for c in (covariance[:t, :t], covariance[t:, t:])
    ]
    return float(np.sqrt(np.mean(
        [(design @ d) ** 2 / e for d, e in zip(np.split(change, 2), errors2)]
    )))


def _degree_of(t: int) -> int:
    return round((np.sqrt(8 * t + 1) - 3) / 2)


def _radial(base: SkyModel, powers: Ints, half_order: int) -> Floats:
    """Return the coefficients (2, t) of (xi, eta) r^(2 m) for the linear part of a model."""
    square = {0: {(0, 0): 1.0}, 1: {(2, 0): 1.0, (0, 2): 1.0},
              2: {(4, 0): 1.0, (2, 2): 2.0, (0, 4): 1.0}}[half_order]
    linear = base.coeff[:, 1:3] / np.sqrt(abs(np.linalg.det(base.coeff[:, 1:3])))
    out = np.zeros((2, len(powers)))
    place = {(int(i), int(j)): k for k, (i, j) in enumerate(powers)}
    for (i, j), value in square.items():
        out[:, place[i + 1, j]] += value * linear[:, 0]
        out[:, place[i, j + 1]] += value * linear[:, 1]
    return out
