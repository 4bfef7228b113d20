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

from cynosure.ground.numeric import newton_plane, poly_design, poly_gradient
from cynosure.ground.sky import deproject, project

__all__ = ["SkyModel"]

Floats = NDArray[np.float64]


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

    @property
    def parameters(self) -> Floats:
        """The coefficients as one vector: those of xi, then those of eta."""
        return self.coeff.ravel()

    def with_parameters(self, values: Floats) -> SkyModel:
        """Return the model with other coefficients, in the order of :attr:`parameters`."""
        return self.replaced(coeff=np.reshape(values, self.coeff.shape).copy())

    def pixel_to_plane(
        self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None
    ) -> tuple[Floats, Floats]:
        """Return xi and eta in degrees; they do not depend on the colour."""
        u, v = self._uv(x, y)
        terms = poly_design(u, v, self.degree)
        return terms @ self.coeff[0], terms @ self.coeff[1]

    def jacobian(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Floats:
        """Return d(xi, eta) / d(x, y), (..., 2, 2), in degrees per pixel."""
        u, v = self._uv(x, y)
        du, dv = poly_gradient(u, v, self.degree)
        rows = [[d @ c for d in (du, dv)] for c in self.coeff]
        return np.moveaxis(np.array(rows), (0, 1), (-2, -1)) / self.scale_px

    def derivatives(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Floats:
        """Return d(xi, eta) / d(parameters), (..., 2, 2 n_terms)."""
        terms = poly_design(*self._uv(x, y), self.degree)
        out = np.zeros((*terms.shape[:-1], 2, 2, terms.shape[-1]))
        out[..., 0, 0, :] = out[..., 1, 1, :] = terms
        return out.reshape(*terms.shape[:-1], 2, 2 * terms.shape[-1])

    def plane_to_pixel(
        self, xi_deg: ArrayLike, eta_deg: ArrayLike, color: ArrayLike | None = None
    ) -> tuple[Floats, Floats]:
        """Invert :meth:`pixel_to_plane` by Newton's method; NaN where it does not converge."""
        xi, eta = np.broadcast_arrays(np.asarray(xi_deg, float), np.asarray(eta_deg, float))
        inverse = np.linalg.inv(self.jacobian(self.x0, self.y0))
        xi0, eta0 = self.pixel_to_plane(self.x0, self.y0)
        dx, dy = (xi - xi0).ravel(), (eta - eta0).ravel()
        x, y = newton_plane(
            lambda x, y, rows: self.pixel_to_plane(x, y), lambda x, y, rows: self.jacobian(x, y),
            (self.x0 + inverse[0, 0] * dx + inverse[0, 1] * dy,
             self.y0 + inverse[1, 0] * dx + inverse[1, 1] * dy),
            (xi.ravel(), eta.ravel()),
        )
        return x.reshape(xi.shape), y.reshape(xi.shape)

    def pixel_to_sky(
        self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None
    ) -> tuple[Floats, Floats]:
        """Return right ascension and declination in degrees."""
        return deproject(*self.pixel_to_plane(x, y), self.ra0_deg, self.dec0_deg)

    def sky_to_pixel(
        self, ra_deg: ArrayLike, dec_deg: ArrayLike, color: ArrayLike | None = None
    ) -> tuple[Floats, Floats]:
        """Return x and y, 0-based; NaN far from the field."""
        return self.plane_to_pixel(*project(ra_deg, dec_deg, self.ra0_deg, self.dec0_deg))

    def replaced(self, **changes: float | Floats) -> SkyModel:
        """Return a model with some attributes replaced."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
