"""The fit geometries: the parameters of each, and the design matrix of the plane.

``shift``, ``rshift``, ``rscale`` and ``general`` move the plane of an existing model; ``poly1`` …
``poly7`` are the whole polynomial. All are linear in their parameters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.pixelmap import linear_matrix
from cynosure.geometry.skymodel import SkyModel
from cynosure.ground.numeric import n_terms, poly_design
from cynosure.ground.sky import MAS_PER_DEG

__all__ = ["GEOMETRIES", "Design", "assemble"]

Floats = NDArray[np.float64]

# Geometry: number of parameters, and the fewest stars it is tried with. A star gives two equations;
# rscale and general have at least one star more than their parameters need, so that a residual is
# left. A polynomial needs two stars a coefficient and two more before it is tried;
# cross-validation decides whether it is chosen.
GEOMETRIES: dict[str, tuple[int, int]] = {
    "shift": (2, 1),
    "rshift": (3, 2),
    "rscale": (4, 3),
    "general": (6, 5),
    **{f"poly{d}": (2 * n_terms(d), 2 * n_terms(d) + 2) for d in range(1, 8)},
}


class Design:
    """The design of a geometry at some pixels: how xi and eta, in mas, depend on the parameters.

    A polynomial uses the same terms for both axes, so its normal matrix is made of three blocks
    of half the size.
    """

    def __init__(self, geometry: str, base: SkyModel, x: Floats, y: Floats):
        self.both = geometry.startswith("poly")
        if self.both:
            u, v = (x - base.x0) / base.scale_px, (y - base.y0) / base.scale_px
            self.ax = self.ay = poly_design(u, v, int(geometry[4:])) * MAS_PER_DEG
            return
        xi, eta = (v * MAS_PER_DEG for v in base.pixel_to_plane(x, y))
        one, zero = np.full(len(xi), MAS_PER_DEG), np.zeros(len(xi))
        ax = {"shift": [one, zero], "rshift": [one, zero, -eta], "rscale": [one, zero, -eta, xi],
              "general": [one, zero, xi, eta, zero, zero]}[geometry]
        ay = {"shift": [zero, one], "rshift": [zero, one, xi], "rscale": [zero, one, xi, eta],
              "general": [zero, one, zero, zero, xi, eta]}[geometry]
        self.ax, self.ay = np.stack(ax, axis=1), np.stack(ay, axis=1)

    def __getitem__(self, rows: NDArray[np.generic]) -> Design:
        part = object.__new__(Design)
        part.both, part.ax, part.ay = self.both, self.ax[rows], self.ay[rows]
        return part

    def apply(self, p: Floats) -> Floats:
        """Return the values (n, 2) for parameters."""
        px, py = np.split(p, 2) if self.both else (p, p)
        return np.stack([self.ax @ px, self.ay @ py], axis=1)

    def normal(self, w: Floats, goal: Floats) -> tuple[Floats, Floats]:
        """Return normal matrix and right side for weights w (n, 3), the inverse covariances."""
        t, s = self.ax, self.ay
        gx = w[:, 0] * goal[:, 0] + w[:, 2] * goal[:, 1]
        gy = w[:, 2] * goal[:, 0] + w[:, 1] * goal[:, 1]
        xx, xy, yy = (t.T @ (w[:, 0:1] * t), t.T @ (w[:, 2:3] * s), s.T @ (w[:, 1:2] * s))
        if self.both:
            return np.block([[xx, xy], [xy.T, yy]]), np.concatenate([t.T @ gx, s.T @ gy])
        return xx + xy + xy.T + yy, t.T @ gx + s.T @ gy

    def variance(self, c: Floats) -> Floats:
        """Return the covariance (n, 3) of the values for the parameters' covariance."""
        h = len(c) // 2
        cxx, cyy, cxy = (c[:h, :h], c[h:, h:], c[:h, h:]) if self.both else (c, c, c)
        return np.stack([
            np.einsum("ij,ij->i", self.ax @ cxx, self.ax),
            np.einsum("ij,ij->i", self.ay @ cyy, self.ay),
            np.einsum("ij,ij->i", self.ax @ cxy, self.ay),
        ], axis=1)


def assemble(geometry: str, base: SkyModel, p: Floats) -> SkyModel:
    """Return the model that parameters describe."""
    if geometry.startswith("poly"):
        return base.replaced(coeff=p.reshape(2, -1).copy())
    coeff = linear_matrix(geometry, p) @ base.coeff
    coeff[:, 0] += p[:2]
    return base.replaced(coeff=coeff)
