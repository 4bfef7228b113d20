"""Header cards of simulated images: the true WCS, and the one that the header believes.

The true WCS is written as TPV, which holds a polynomial of up to seventh degree on the tangent
plane exactly (Shupe et al. 2012; the terms odd in r are left out).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.wcs import SkyModel
from cynosure.ground.numeric import lstsq, poly_design, poly_exponents

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = ["believed_header", "tpv_header"]

Floats = NDArray[np.float64]

# PV index of x^i y^j of the first axis; the second axis has x and y exchanged. Between the degrees
# stand the terms r, r^3, r^5, r^7.
_FIRST = {0: 0, 1: 1, 2: 4, 3: 7, 4: 12, 5: 17, 6: 24, 7: 31}


def _pv_index(i: int, j: int) -> int:
    return _FIRST[i + j] + j


def _plain(
    header: Header, model: SkyModel, kind: str, crpix: tuple[float, float], cd: Floats
) -> None:
    header["WCSAXES"] = 2
    header["CTYPE1"], header["CTYPE2"] = f"RA---{kind}", f"DEC--{kind}"
    header["CUNIT1"], header["CUNIT2"] = "deg", "deg"
    header["CRVAL1"], header["CRVAL2"] = float(model.ra0_deg), float(model.dec0_deg)
    header["CRPIX1"], header["CRPIX2"] = float(crpix[0]) + 1.0, float(crpix[1]) + 1.0
    for i in range(2):
        for j in range(2):
            header[f"CD{i + 1}_{j + 1}"] = float(cd[i, j])
    header["RADESYS"] = "ICRS"


def tpv_header(model: SkyModel) -> Header:
    """Return the cards of a model as TPV, exact to the rounding of their 16 digits."""
    from astropy.io.fits import Header

    header = Header()
    cd = model.jacobian(model.x0, model.y0)
    _plain(header, model, "TPV", (model.x0, model.y0), cd)
    side = np.linspace(-1.0, 1.0, 21)
    x, y = (model.x0 + model.scale_px * a.ravel() for a in np.meshgrid(side, side))
    p, q = cd @ np.stack([x - model.x0, y - model.y0])
    size = float(max(np.abs(p).max(), np.abs(q).max()))
    plane = np.stack(model.pixel_to_plane(x, y), axis=1)
    coeff = lstsq(poly_design(p / size, q / size, model.degree), plane, what="TPV").x.T
    for (i, j), a, b in zip(poly_exponents(model.degree), *coeff):
        header[f"PV1_{_pv_index(i, j)}"] = float(a / size ** (i + j))
        header[f"PV2_{_pv_index(j, i)}"] = float(b / size ** (i + j))
    return header


def believed_header(model: SkyModel) -> Header:
    """Return the cards of what the header believes: TAN where the model is linear, else TPV."""
    from astropy.io.fits import Header

    if model.degree > 1:
        return tpv_header(model)
    header = Header()
    x, y = model.plane_to_pixel(0.0, 0.0)
    _plain(header, model, "TAN", (float(x), float(y)), model.jacobian(model.x0, model.y0))
    return header
