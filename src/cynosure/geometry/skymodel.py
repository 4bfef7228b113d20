"""The model of a WCS: a polynomial from pixels to the tangent plane.

:class:`SkyModel` is what the fits produce and what everything downstream evaluates. It is linear
in its coefficients: with ``u = (x - x0) / scale_px`` and ``v = (y - y0) / scale_px``,

    xi  = sum_k a_k u^i v^j,    eta = sum_k b_k u^i v^j      (degrees, i + j <= degree),

on the plane that touches the sky at (ra0, dec0). Because TPV and SIP are polynomials of the same
degree in linear images of (u, v), both represent it exactly.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.ground.numeric import poly_design, poly_gradient
from cynosure.ground.sky import deproject, project

__all__ = ["SkyModel"]

Floats = NDArray[np.float64]

# Newton's method on a smooth distortion gains six digits in three steps; a point that needs more
# than this many has left the region where the polynomial is one-to-one.
MAX_NEWTON_STEPS = 20
NEWTON_TOLERANCE_PX = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class SkyModel:
    """A polynomial map from pixels (0-based) to the sky.

    Attributes
    ----------
    ra0_deg, dec0_deg : float
        The tangent point (CRVAL).
    x0, y0 : float
        Pixel at the origin of the normalised coordinates, 0-based.
    scale_px : float
        Pixels to a unit of the normalised coordinates.
    coeff : (2, n_terms) ndarray
        Coefficients of xi and eta in degrees, in the order of
        :func:`cynosure.ground.numeric.poly_exponents`.
    """

    ra0_deg: float
    dec0_deg: float
    x0: float
    y0: float
    scale_px: float
    coeff: Floats

    @property
    def degree(self) -> int:
        """The total degree of the polynomial."""
        return int((np.sqrt(8 * self.coeff.shape[1] + 1) - 3) / 2 + 0.5)

    def _uv(self, x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        return (x - self.x0) / self.scale_px, (y - self.y0) / self.scale_px

    def pixel_to_plane(self, x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
        """Return xi and eta in degrees."""
        u, v = self._uv(x, y)
        terms = poly_design(u, v, self.degree)
        return terms @ self.coeff[0], terms @ self.coeff[1]

    def jacobian(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """Return d(xi, eta) / d(x, y), (..., 2, 2), in degrees per pixel."""
        u, v = self._uv(x, y)
        du, dv = poly_gradient(u, v, self.degree)
        rows = [[d @ c for d in (du, dv)] for c in self.coeff]
        return np.moveaxis(np.array(rows), (0, 1), (-2, -1)) / self.scale_px

    def plane_to_pixel(self, xi_deg: ArrayLike, eta_deg: ArrayLike) -> tuple[Floats, Floats]:
        """Invert :meth:`pixel_to_plane` by Newton's method; NaN where it does not converge."""
        xi, eta = np.broadcast_arrays(np.asarray(xi_deg, float), np.asarray(eta_deg, float))
        cd = self.jacobian(self.x0, self.y0)
        inverse = np.linalg.inv(cd)
        xi0, eta0 = self.pixel_to_plane(self.x0, self.y0)
        dx, dy = xi - xi0, eta - eta0
        x = self.x0 + inverse[0, 0] * dx + inverse[0, 1] * dy
        y = self.y0 + inverse[1, 0] * dx + inverse[1, 1] * dy
        moved = np.full(np.shape(x), np.inf)
        for _ in range(MAX_NEWTON_STEPS):
            fx, fy = self.pixel_to_plane(x, y)
            j = self.jacobian(x, y)
            det = j[..., 0, 0] * j[..., 1, 1] - j[..., 0, 1] * j[..., 1, 0]
            rx, ry = xi - fx, eta - fy
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                step_x = (j[..., 1, 1] * rx - j[..., 0, 1] * ry) / det
                step_y = (j[..., 0, 0] * ry - j[..., 1, 0] * rx) / det
                x, y = x + step_x, y + step_y
                moved = np.hypot(step_x, step_y)
            if not np.any(moved > NEWTON_TOLERANCE_PX):
                break
        good = moved < 1e-3
        return np.where(good, x, np.nan), np.where(good, y, np.nan)

    def pixel_to_sky(self, x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
        """Return right ascension and declination in degrees."""
        return deproject(*self.pixel_to_plane(x, y), self.ra0_deg, self.dec0_deg)

    def sky_to_pixel(self, ra_deg: ArrayLike, dec_deg: ArrayLike) -> tuple[Floats, Floats]:
        """Return x and y, 0-based; NaN far from the field."""
        return self.plane_to_pixel(*project(ra_deg, dec_deg, self.ra0_deg, self.dec0_deg))

    def replaced(self, **changes: float | Floats) -> SkyModel:
        """Return a model with some attributes replaced."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
