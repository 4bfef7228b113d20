"""Any FITS WCS as a map that wcslib evaluates; no part of it is approximated by a polynomial."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.data.fits.wcsread import sky_of_pixels
from cynosure.geometry.pixelmap import (
    NONE,
    Composite,
    Reprojection,
    SkyMap,
    inverted,
    no_derivatives,
    points,
)
from cynosure.ground.sky import project

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = ["FitsMap", "on_plane"]

Floats = NDArray[np.float64]
Pair = tuple[Floats, Floats]

# The step of the numerical derivatives of a WCS, px. The five-point formula is then exact for
# polynomials of fourth degree, and a right ascension near 360 deg, known to 6e-14 deg, still
# gives the derivative to a few parts in 1e9 for pixels of 0.05 arcsec.
STEP_PX = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class FitsMap:
    """A FITS WCS, evaluated by wcslib and astropy with all of its distortion.

    Attributes
    ----------
    wcs : WCS
        Of astropy, with SIP, lookup tables, any projection and frame.
    ra0_deg, dec0_deg : float
        The point where the plane touches the sky; it need not be CRVAL.
    """

    wcs: WCS
    ra0_deg: float
    dec0_deg: float

    @classmethod
    def about(cls, wcs: WCS, x: float, y: float) -> FitsMap:
        """Return the map to the plane that touches the sky where a pixel is."""
        ra, dec = sky_of_pixels(wcs, x, y)
        return cls(wcs, float(ra), float(dec))

    @property
    def parameters(self) -> Floats:
        """Empty: the WCS has no free parameters."""
        return NONE

    @property
    def degree(self) -> int:
        """The order of the SIP polynomial; 1 where there is none."""
        sip = self.wcs.sip
        return 1 if sip is None else max(sip.a_order or 1, sip.b_order or 1)

    def with_parameters(self, values: Floats) -> FitsMap:
        """Return the map itself."""
        return self

    def pixel_to_sky(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Pair:
        """Return right ascension and declination, degrees, ICRS."""
        return sky_of_pixels(self.wcs, x, y)

    def sky_to_pixel(
        self, ra_deg: ArrayLike, dec_deg: ArrayLike, color: ArrayLike | None = None
    ) -> Pair:
        """Return pixels, 0-based; NaN where there are none."""
        return self.plane_to_pixel(*project(ra_deg, dec_deg, self.ra0_deg, self.dec0_deg))

    def pixel_to_plane(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Pair:
        """Return xi and eta in degrees."""
        return project(*sky_of_pixels(self.wcs, x, y), self.ra0_deg, self.dec0_deg)

    def plane_to_pixel(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Pair:
        """Invert :meth:`pixel_to_plane` by Newton's method from the middle of the image.

        wcslib's own inverse is an iteration that may diverge outside the image and then returns
        no point at all; here such a point is NaN, and the others are found.
        """
        xi, eta = points(x, y)
        shape = self.wcs.pixel_shape
        middle = (np.asarray(self.wcs.wcs.crpix) if shape is None else np.asarray(shape) + 1.0) / (
            1.0 if shape is None else 2.0
        ) - 1.0
        at = self.pixel_to_plane(*middle)
        inverse = np.linalg.inv(self.jacobian(*middle))
        dx, dy = xi - at[0], eta - at[1]
        start = (middle[0] + inverse[0, 0] * dx + inverse[0, 1] * dy,
                 middle[1] + inverse[1, 0] * dx + inverse[1, 1] * dy)
        return inverted(
            lambda x, y, rows: self.pixel_to_plane(x, y),
            lambda x, y, rows: self.jacobian(x, y), start, (xi, eta),
        )

    def jacobian(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Floats:
        """Return d(xi, eta) / d(x, y), (..., 2, 2), degrees per pixel, by five-point differences.

        ``f' = [8 (f(h) - f(-h)) - (f(2h) - f(-2h))] / 12 h``; at a kink of a lookup table it is
        the mean of the two sides.
        """
        x, y = points(x, y)
        h = STEP_PX * np.array([1.0, -1.0, 2.0, -2.0]).reshape(4, *[1] * x.ndim)
        still = np.zeros_like(h)
        px = x + np.concatenate([h, still])
        py = y + np.concatenate([still, h])
        plane = np.stack(self.pixel_to_plane(px, py), axis=-1).reshape(2, 4, *x.shape, 2)
        slope = (8.0 * (plane[:, 0] - plane[:, 1]) - (plane[:, 2] - plane[:, 3])) / (12.0 * STEP_PX)
        return np.moveaxis(slope, 0, -1)

    def derivatives(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Floats:
        """Return an empty array (..., 2, 0)."""
        return no_derivatives(x, y)


def on_plane(sky_map: SkyMap, ra0_deg: float, dec0_deg: float) -> SkyMap:
    """Return a map with its plane at another tangent point; the sky positions stay."""
    at = (sky_map.ra0_deg, sky_map.dec0_deg)
    if at == (ra0_deg, dec0_deg):
        return sky_map
    if isinstance(sky_map, FitsMap):
        return replace(sky_map, ra0_deg=ra0_deg, dec0_deg=dec0_deg)
    step = Reprojection(at, (ra0_deg, dec0_deg))
    if isinstance(sky_map, Composite):
        return Composite(
            (*sky_map.steps, step), ra0_deg, dec0_deg, (*sky_map.blocks, "")
        )
    return Composite((sky_map, step), ra0_deg, dec0_deg)
