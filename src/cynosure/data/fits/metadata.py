"""Detector properties and pointing of a frame, from header and instrument file."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from cynosure.data.fits.blocks import Unit, card_int
from cynosure.data.fits.wcsread import sky_of_pixels
from cynosure.data.frame import Frame, Pointing
from cynosure.data.header import number, position_of, scale_of, text
from cynosure.data.instrument import Instrument
from cynosure.ground.sky import project

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = ["binning", "detector_of", "pointing_of"]


def detector_of(header: Header, camera: Instrument, unit: Unit) -> dict[str, Any]:
    """Return gain, read noise, saturation, exposure time and filter of a frame.

    Pixels in electrons have gain 1, pixels in electrons or counts per second the exposure time as
    a factor (BUNIT). The saturation of an 8- or 16-bit image is at most the end of its range.
    """
    names, values = camera.aliases, camera.values
    exptime = number(header, names["exptime"], 0.0, 1e7)[1]
    gain = number(header, names["gain"], 0.0, 1e3)[1]
    gain = gain if math.isfinite(gain) else float(values.get("gain_e_adu", 1.0))
    unit_name = (values.get("units") or text(header, ("BUNIT",))).upper().replace(" ", "")
    rate = re.search(r"/S|S-1|S\^-1|PERSEC", unit_name) is not None
    if unit_name.startswith(("ELECTRON", "E-")):
        gain = 1.0
    if rate and math.isfinite(exptime):
        gain *= exptime
    noise = number(header, names["read_noise"], 0.0, 1e4)[1]
    saturation = number(header, names["saturation"], 0.0)[1]
    if not math.isfinite(saturation):
        saturation = float(values.get("saturation_adu", math.inf))
    bitpix = card_int(unit.raw, "ZBITPIX" if unit.raw and unit.is_compressed else "BITPIX")
    if bitpix in (8, 16):
        top = (2**bitpix - 1) if bitpix == 8 else 32767.0
        scale = number(header, ("BSCALE",))[1]
        zero = number(header, ("BZERO",))[1]
        top = top * (scale if math.isfinite(scale) else 1.0) + (
            zero if math.isfinite(zero) else 0.0
        )
        saturation = min(saturation, top)
    return {
        "exptime_s": exptime
        if math.isfinite(exptime)
        else float(values.get("exptime_s", math.nan)),
        "gain_e_adu": gain,
        "read_noise_e": noise if math.isfinite(noise) else float(values.get("read_noise_e", 0.0)),
        "saturation_adu": saturation,
        "filter": text(header, names["filter"]),
    }


def pointing_of(frame: Frame, camera: Instrument, primary: Header) -> tuple[Pointing, list[str]]:
    """Return the pointing of a frame's centre, from header and instrument file, and notes."""
    header = frame.header if frame.header is not None else primary
    ny, nx = frame.shape
    ra = dec = scale = math.nan
    # Relative error of the scale: 10 % where it comes from a focal length, as in `scale_of`; 5 % of
    # a WCS or an instrument file, which may be nominal.
    scale_error, notes = 0.1, []
    rotation: float | None = None
    if frame.wcs is not None:
        ra, dec, scale, rotation = _from_wcs(frame.wcs, nx, ny)
        scale_error = 0.05
    if not math.isfinite(ra + dec):
        for source in (header, primary):
            ra, dec, note = position_of(source, camera.aliases)
            if math.isfinite(ra + dec):
                notes += [note] if note else []
                break
    if "scale_arcsec" in camera.values:
        scale = float(camera.values["scale_arcsec"]) * binning(header)
        scale_error = float(camera.values.get("scale_error", 0.05))
    elif not math.isfinite(scale):
        scale, scale_error, _ = scale_of(header, camera.aliases)
    scale *= frame.cell if frame.wcs is None else 1
    mjd = 51544.5 + (frame.epoch_yr - 2000.0) * 365.25 if frame.epoch_yr is not None else math.nan
    mount = camera.mount(mjd, header)
    if mount["rotation_deg"] is not None:
        rotation = mount["rotation_deg"]
    if math.isfinite(ra + dec):
        ra = (ra + mount["ra_offset_deg"]) % 360.0
        dec = min(max(dec + mount["dec_offset_deg"], -90.0), 90.0)
    return Pointing(
        ra_deg=ra if math.isfinite(ra + dec) else None,
        dec_deg=dec if math.isfinite(ra + dec) else None,
        radius_deg=camera.values.get("pointing_error_deg"),
        scale_arcsec=scale if math.isfinite(scale) else None,
        scale_error=scale_error if math.isfinite(scale_error) else 0.1,
        rotation_deg=rotation,
        rotation_error_deg=float(mount["rotation_error_deg"]),
        parity=int(mount["parity"]),
    ), notes


def _from_wcs(wcs: Any, nx: int, ny: int) -> tuple[float, float, float, float | None]:
    """Return the sky at the centre, the pixel scale there and the angle of +y from north."""
    x0, y0 = (nx - 1) / 2, (ny - 1) / 2
    ra, dec = sky_of_pixels(wcs, [x0, x0 + 1, x0], [y0, y0, y0 + 1])
    if not np.isfinite(ra + dec).all():
        return math.nan, math.nan, math.nan, None
    xi, eta = project(ra, dec, float(ra[0]), float(dec[0]))
    area = abs((xi[1] * eta[2]) - (xi[2] * eta[1]))
    rotation = math.degrees(math.atan2(xi[2], eta[2])) % 360.0
    return float(ra[0]), float(dec[0]), math.sqrt(area) * 3600.0, rotation


def binning(header: Header) -> float:
    """Return the binning along x, from XBINNING or CCDSUM; 1 where unknown."""
    value = number(header, ("XBINNING", "BINX", "CCDXBIN", "BINAXIS1"), 0.0, 64.0)[1]
    if math.isfinite(value):
        return value
    match = re.match(r"\s*(\d+)[ ,x]+\d+", text(header, ("CCDSUM", "BINNING")))
    return float(match[1]) if match else 1.0
