"""Aperture photometry: fluxes in circular apertures at given positions.

The area of each pixel inside a circle is exact. The sky is that of the background mesh, or the
median of an annulus around each position. Errors include sky noise, photon noise, and the error of
the annulus level.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.data.frame import Frame
from cynosure.data.mask import PHOTOMETRY, bits_within, mask_dictionary
from cynosure.data.tables import Schema, SourceFlag
from cynosure.ground.errors import SettingError
from cynosure.ground.settings import Range, Unit
from cynosure.ground.threads import share
from cynosure.pixels import fluxkernels
from cynosure.pixels.background import PLAIN, Background, plain_pixels

__all__ = ["aperture_schema", "measure_apertures"]

NO_VARIANCE = np.zeros((0, 0), dtype=np.float32)
PIECE = 4096  # positions of one task: many milliseconds of work, and enough tasks to share


@cache
def aperture_schema(n: int) -> Schema:
    """Return the schema of the table of `n` apertures around each place.

    Examples
    --------
    >>> aperture_schema(1).names[-4:]
    ('aper1_radius_px', 'aper1_e', 'aper1_err_e', 'aper1_masked')
    """
    columns = [
        ("x", "f8", "px", "column of the centre, 0-based, the first pixel's centre is 0.0"),
        ("y", "f8", "px", "row of the centre, 0-based"),
        ("background_e", "f8", "e-", "sky under the source, per pixel, of the mesh or the ring"),
        ("background_err_e", "f8", "e-", "its standard error, 0 for the mesh"),
        ("background_std_e", "f8", "e-", "standard deviation of the sky's pixels"),
        ("n_background", "i4", "", "pixels of the ring that made the sky, 0 for the mesh"),
        ("flags", "i4", "", "sum of SourceFlag over all apertures"),
        ("mask_bits", "u4", "", "bits of the mask dictionary in the largest aperture"),
    ]
    for k in range(1, n + 1):
        columns += [
            (f"aper{k}_radius_px", "f8", "px", f"radius of aperture {k}"),
            (f"aper{k}_e", "f8", "e-", f"flux in aperture {k}; NaN where pixels are missing"),
            (f"aper{k}_err_e", "f8", "e-", f"standard error of aper{k}_e"),
            (f"aper{k}_masked", "f8", "", f"part of aperture {k} that was not seen"),
        ]
    return Schema("cynosure.apertures/1", columns)


def measure_apertures(
    frame: Frame, background: Background, positions: ArrayLike, *,
    radii_px: Annotated[Sequence[float], Unit("px")] = (3.0, 5.0, 7.0),
    annulus_px: Annotated[tuple[float, float] | None, Unit("px")] = None,
    clip_sigma: Annotated[float, Unit("sigma"), Range(1, 100)] = 3.0,
    masked: Literal["mirror", "nan"] = "mirror", threads: int = 1,
) -> NDArray[np.void]:
    """Measure the flux in circular apertures.

    Parameters
    ----------
    frame, background
        The pixels and the sky.
    positions : (n, 2) array of x, y, or a table with columns x and y
        Centres, 0-based pixels.
    radii_px : sequence of float
    annulus_px : (inner, outer), optional
        Take the sky from an annulus of these radii around each position, not from the mesh: the
        median of its pixels, clipped at `clip_sigma` about it until nothing changes.
    masked : str
        Replacement of a pixel that is unusable or outside the frame: ``"mirror"`` takes the pixel
        opposite the centre (for symmetric sources); ``"nan"`` takes none. A flux that still lacks a
        pixel is NaN.
    threads : int
        Threads that share the work; the result does not depend on it.

    Returns
    -------
    table : (n,) structured array
        Schema ``aperture_schema(len(radii_px))``, in the order of the places. The variance of a
        flux is ``sum_i a_i (sigma^2 + max(light_i, 0) / gain) + (sum_i a_i)^2 error_ring^2`` with
        a_i the area of pixel i inside. Flags: SATURATED; EDGE, the aperture leaves the frame;
        BAD_PIXEL, a pixel of it is unusable.

    Raises
    ------
    SettingError
        If a radius is not positive, or the annulus has no width.

    Notes
    -----
    With an annulus, the standard deviation of its pixels is taken as the noise of the sky.
    """
    radii = [float(r) for r in radii_px]
    _check_radii(radii, annulus_px)
    x, y = places_of(positions)
    table = aperture_schema(len(radii)).empty(len(x))
    table["x"], table["y"] = x, y
    if not len(x):
        return table
    data, unusable = plain_pixels(frame, PHOTOMETRY)
    known = np.isfinite(x) & np.isfinite(y)
    level, sigma = np.full((2, len(x)), np.nan)
    ring = np.zeros((len(x), 4))
    if annulus_px is None:
        level[known] = background.level_at(x[known], y[known])
        sigma[known] = background.sigma_at(x[known], y[known])
    else:
        inner, outer = annulus_px

        def rings(part: slice) -> None:
            fluxkernels.ring_levels(
                data, unusable, x[part], y[part], inner, outer, clip_sigma, ring[part]
            )

        share(rings, _pieces(len(x)), threads)
        level, sigma = np.ascontiguousarray(ring[:, 0]), np.ascontiguousarray(ring[:, 2])
    gain = frame.gain_e_adu
    table["background_e"], table["background_std_e"] = level * gain, sigma * gain
    table["background_err_e"], table["n_background"] = ring[:, 1] * gain, ring[:, 3]
    given = NO_VARIANCE
    if frame.variance is not None:
        given = np.require(frame.variance, np.float32, PLAIN)
    for k, radius in enumerate(radii, 1):
        out, flags = np.empty((len(x), 3)), np.zeros(len(x), np.int32)

        def sums(part: slice) -> None:
            fluxkernels.aperture_sums(
                data, unusable, given, level[part], sigma[part], gain, frame.saturation_adu,
                x[part], y[part], radius, masked == "mirror", out[part], flags[part],  # noqa: B023
            )

        share(sums, _pieces(len(x)), threads)
        table[f"aper{k}_radius_px"] = radius
        table[f"aper{k}_e"] = out[:, 0] * gain
        of_ring = (np.pi * radius**2) ** 2 * ring[:, 1] ** 2
        table[f"aper{k}_err_e"] = np.sqrt(out[:, 1] + of_ring) * gain
        table[f"aper{k}_masked"] = out[:, 2]
        table["flags"] |= flags
    table["mask_bits"] = bits_within(frame.mask, x, y, max(radii))[0]
    seen = table["flags"] & SourceFlag.SATURATED != 0
    table["mask_bits"][seen] |= np.uint32(mask_dictionary()["saturated"])
    return table


def _check_radii(radii: list[float], annulus_px: tuple[float, float] | None) -> None:
    if not radii or not all(0 < r < 1000 for r in radii):
        raise SettingError(
            "radii_px = {radii}: radii of 0 to 1000 px are expected", radii=tuple(radii)
        )
    if annulus_px is not None and not 0 <= annulus_px[0] < annulus_px[1] < 1000:
        raise SettingError(
            "annulus_px = {annulus}: an inner radius and a larger outer one are expected",
            annulus=tuple(annulus_px),
        )


def places_of(positions: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x and y of places that come as (n, 2) numbers or as a table.

    Raises
    ------
    SettingError
        If they are neither.
    """
    names = getattr(positions, "colnames", None) or np.asarray(positions).dtype.names
    if names is not None:
        if not {"x", "y"} <= set(names):
            raise SettingError(
                "positions: columns x and y are expected among {names}", names=", ".join(names)
            )
        x, y = (np.asarray(positions[n], dtype=np.float64) for n in ("x", "y"))  # type: ignore[call-overload, index]
        return np.ascontiguousarray(x), np.ascontiguousarray(y)
    places = np.asarray(positions, dtype=np.float64)
    if places.size == 0:
        return np.zeros(0), np.zeros(0)
    if places.ndim != 2 or places.shape[1] != 2:
        raise SettingError(
            "positions: an array (n, 2) of x and y is expected, not {shape}", shape=places.shape
        )
    return np.ascontiguousarray(places[:, 0]), np.ascontiguousarray(places[:, 1])


def _pieces(n: int) -> list[slice]:
    return [slice(k, k + PIECE) for k in range(0, n, PIECE)]
