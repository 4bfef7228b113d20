r"""Distortion that few stars cannot tell: terms of a polynomial that are believed as far as they show.

A choice between a linear map and a polynomial is a choice between an error that no error bar knows
of and one that is needlessly large. Here every coefficient beyond the linear ones has a Gaussian
prior about zero,

    c_k ~ N(0, tau_g^2)      for the terms of group g,

so that the fit is a linear problem still, ``(N + T^-1) c = b``, and its covariance ``(N + T^-1)^-1``
holds what the stars have left open. The groups are the terms of each degree, and the third- and
fifth-order radial distortion of an optical axis at the frame's centre as a parameter each: a lens
has more of these than of anything else. The sizes tau_g are those under which the residuals are
most likely (type-II maximum likelihood, MacKay 1992, Neural Computation 4, 415; here by the steps
of Dempster et al. 1977), with a weak prior that keeps them from falling to zero where no star
speaks of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.skymodel import SkyModel
from cynosure.ground.numeric import n_terms, poly_exponents

__all__ = ["STARTS_PX", "Shrinkage"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Sizes (px, half a frame from the centre) at which the search begins: of the terms of each
# degree, and of the radial ones. The likeliest end wins.
STARTS_PX = ((0.02, 0.05), (0.05, 2.0), (1.0, 2.0))

# What a size is taken for before the stars are asked, px, and what that weighs, in coefficients.
TYPICAL_PX = {2: 0.05, 3: 0.05, 4: 0.02, 5: 0.02, 6: 0.01, 7: 0.01}
TYPICAL_RADIAL_PX = {3: 0.3, 5: 0.1}
WEIGHT = 1.0

# Steps of the iteration for the sizes, each time the linear problem is solved.
STEPS = 12


@dataclass(slots=True, eq=False)
class Shrinkage:
    """The prior of the coefficients of a polynomial, and what has been learnt of it.

    Attributes
    ----------
    degree : int
        Of the polynomial.
    basis : (2 t, q) ndarray
        From the parameters, the radial ones last, to the coefficients of both axes.
    groups : tuple of (k,) ndarray of int
        Parameters that have a size in common; the linear ones are in none.
    typical2, size2 : (g,) ndarray
        The squares of the typical and of the present sizes, deg^2.
    effective : float
        Parameters that the stars determine.
    log_evidence : float
        What the prior adds to the logarithm of the likelihood of the residuals.
    """

    degree: int
    basis: Floats
    groups: tuple[Ints, ...]
    typical2: Floats
    size2: Floats
    effective: float = 0.0
    log_evidence: float = 0.0
    fixed: bool = field(default=False)

    @classmethod
    def of(
        cls, base: SkyModel, degree: int, start_px: tuple[float, float], highest: int | None = None
    ) -> Shrinkage:
        """Return the prior for a polynomial on the plane of a model.

        Parameters
        ----------
        base : SkyModel
            Its linear part tells what radial is.
        degree : int
        start_px : tuple of float
            First guess of the sizes: of the terms, and of the radial ones.
        highest : int, optional
            Terms beyond this degree are zero.
        """
        t = n_terms(degree)
        powers = poly_exponents(degree)
        order = powers.sum(axis=1)
        pixel_deg = np.sqrt(abs(np.linalg.det(base.coeff[:, 1:3]))) / base.scale_px
        columns, groups, typical, start = [np.eye(2 * t)], [], [], []
        for k in range(2, degree + 1):
            rows = np.flatnonzero(order == k)
            groups.append(np.concatenate([rows, rows + t]))
            typical.append(TYPICAL_PX[k])
            start.append(start_px[0] * (1.0 if k <= 3 else 0.3))
        for k in range(3, min(degree, 5) + 1, 2):
            groups.append(np.array([2 * t + len(columns) - 1]))
            columns.append(_radial(base, powers, (k - 1) // 2).reshape(-1, 1))
            typical.append(TYPICAL_RADIAL_PX[k])
            start.append(start_px[1] * (1.0 if k == 3 else 0.3))
        size2 = (np.array(start) * pixel_deg) ** 2
        return cls(
            degree, np.concatenate(columns, axis=1), tuple(groups),
            (np.array(typical) * pixel_deg) ** 2, size2,
        )

    def solve(self, matrix: Floats, right: Floats) -> tuple[Floats, Floats]:
        """Solve the normal equations of the coefficients; learn the sizes on the way.

        Returns
        -------
        coefficients : (2 t,) ndarray
        covariance : (2 t, 2 t) ndarray
        """
        normal, goal = self.basis.T @ matrix @ self.basis, self.basis.T @ right
        # In units in which a parameter's prior, or else its error, is about one.
        for step in range(1 if self.fixed else STEPS):
            inverse, x, log_det = self._posterior(normal, goal)
            if self.fixed or step == STEPS - 1:
                break
            for g, rows in enumerate(self.groups):
                seen = np.sum(x[rows] ** 2 + np.diag(inverse)[rows])
                self.size2[g] = (WEIGHT * self.typical2[g] + seen) / (WEIGHT + len(rows))
        self.effective = float(np.sum(inverse * normal))
        self.log_evidence = self._log_evidence(x, log_det)
        return self.basis @ x, self.basis @ inverse @ self.basis.T

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
            value -= 0.5 * len(rows) * np.log(self.size2[g]) + 0.5 * np.sum(x[rows]**2) / self.size2[g]
            value -= 0.5 * WEIGHT * (np.log(self.size2[g]) + self.typical2[g] / self.size2[g])
        return float(value)


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
