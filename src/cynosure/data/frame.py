"""One detector array and the exposure it belongs to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.ground.errors import ImageError

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

__all__ = ["Exposure", "Frame", "Pointing", "check_pixels", "mask_bits"]

# An image narrower than this has no star with its background around it.
MIN_SIDE_PX = 16
# About as many pixels as a first look takes; only where they are all alike are all looked at.
SAMPLE = 20_000
MAX_SATURATED = 0.5


@dataclass(frozen=True, slots=True)
class Pointing:
    """What is known beforehand of where an image points; None is unknown.

    Attributes
    ----------
    ra_deg, dec_deg : float
        Centre of the frame.
    radius_deg : float
        How far the true centre may be from it.
    scale_arcsec : float
        Size of a pixel.
    scale_error : float
        Fraction by which the scale may be wrong: 0.1 is 10 %.
    rotation_deg : float
        Angle of the +y axis from north through east.
    rotation_error_deg : float
        How far the rotation may be off; 180 is no knowledge.
    parity : int
        +1 where east is to the left when north is up (determinant of CD negative), -1 for a
        mirrored image, 0 for unknown.
    """

    ra_deg: float | None = None
    dec_deg: float | None = None
    radius_deg: float | None = None
    scale_arcsec: float | None = None
    scale_error: float = 0.1
    rotation_deg: float | None = None
    rotation_error_deg: float = 180.0
    parity: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One detector array.

    Attributes
    ----------
    data : (ny, nx) ndarray of float32
        Pixels in ADU, as in the file.
    name : str
        What messages call it: ``m81.fits`` or ``m81.fits[SCI,2]``.
    chip : int
        0-based number in its exposure.
    hdu : int
        Index of its HDU in the file.
    header : Header
        Its header, with the primary header's cards where it lacks them.
    variance : (ny, nx) ndarray of float32, optional
        Variance of `data`, ADU^2; None where it is to be derived from gain and read noise.
    mask : (ny, nx) ndarray of bool, optional
        True where a pixel is not to be used.
    wcs : WCS, optional
        The solution it came with; None where there is none.
    epoch_yr : float, optional
        Julian year of mid-exposure; None where the header has no date.
    exptime_s, gain_e_adu, read_noise_e, saturation_adu : float
        gain 1, read noise 0 and saturation infinity where unknown.
    filter : str
        As the header names it.
    plane : int, optional
        0-based plane of a cube that the pixels are of; None where the HDU is a plain image.
    cell : int
        Pixels of the file to a side of one pixel of `data`: 2 for a colour camera whose Bayer
        cells were made one pixel, else 1. Pixel x of the frame is ``cell x + (cell - 1) / 2`` of
        the file; :func:`cynosure.geometry.wcs.model_in_file` takes a solution there.
    """

    data: NDArray[np.float32]
    name: str = "image"
    chip: int = 0
    hdu: int = 0
    header: Header | None = None
    variance: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None
    wcs: WCS | None = None
    epoch_yr: float | None = None
    exptime_s: float = float("nan")
    gain_e_adu: float = 1.0
    read_noise_e: float = 0.0
    saturation_adu: float = float("inf")
    filter: str = ""
    plane: int | None = None
    cell: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, (ny, nx)."""
        ny, nx = self.data.shape
        return ny, nx

    @property
    def place(self) -> int | tuple[int, int]:
        """Where its header goes: the HDU, or the HDU and the plane of a cube."""
        return self.hdu if self.plane is None else (self.hdu, self.plane)

    def replaced(self, **changes: Any) -> Frame:
        """Return a new frame with some attributes replaced."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, slots=True, eq=False)
class Exposure:
    """The frames that were exposed together.

    Attributes
    ----------
    frames : tuple of Frame
    path : str
        The file, or a name where there is none.
    instrument : str
        Name of the instrument file that was used.
    pointing : Pointing
        What header and instrument say about where the first frame's centre points.
    digest : str or callable
        Checksum of the file, or what computes it; :attr:`sha256` asks it.
    notes : tuple of str
        What was found odd or mended while reading, in plain words.
    """

    frames: tuple[Frame, ...]
    path: str = ""
    instrument: str = "generic"
    pointing: Pointing = field(default_factory=Pointing)
    digest: Any = ""
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """SHA-256 of the file in hexadecimal; empty where there is no file."""
        return self.digest if isinstance(self.digest, str) else self.digest()


@cache
def mask_bits(name: str = "default") -> dict[str, int]:
    """Return the values of the planes of a mask dictionary, ``masks/NAME.toml``, by name.

    Examples
    --------
    >>> mask_bits()["saturated"], mask_bits()["nan"]
    (1, 64)
    """
    import tomllib

    path = Path(__file__).parents[1] / "masks" / f"{name}.toml"
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return {entry["name"]: 1 << entry["bit"] for entry in content["bit"]}


def check_pixels(frame: Frame) -> None:
    """Refuse pixels in which there can be no star.

    Raises
    ------
    ImageError
        If the frame is too small, has no usable pixel, or all of them are alike or saturated.
    """
    data = frame.data
    if min(data.shape) < MIN_SIDE_PX:
        raise ImageError(
            image=frame.name,
            reason=f"{data.shape[1]}x{data.shape[0]} pixels are too few for a star field",
            width=data.shape[1],
            height=data.shape[0],
            hint=f"At least {MIN_SIDE_PX} pixels a side are needed.",
        )
    step = max(1, int(np.sqrt(data.size / SAMPLE)))
    for view in (np.s_[::step, ::step], np.s_[:, :]):
        reason = _nothing_to_see(frame, view)
        if not reason:
            return
    raise ImageError(
        image=frame.name, reason=reason, hint="Check the exposure, the mask and the file."
    )


def _nothing_to_see(frame: Frame, view: tuple[slice, slice]) -> str:
    """Say why no star can be seen in a part of the frame; empty where one could be."""
    pixels = frame.data[view]
    finite = np.isfinite(pixels)
    if not finite.any():
        return "every pixel is NaN"
    usable = finite if frame.mask is None else finite & ~frame.mask[view]
    if not usable.any():
        return "every pixel is masked"
    values = pixels[usable]
    low, high = float(values.min()), float(values.max())
    if low == high:
        return "every pixel is zero" if low == 0 else f"every pixel is {low:g}"
    saturated = float(np.mean(values >= frame.saturation_adu))
    if saturated > MAX_SATURATED:
        return f"{saturated:.0%} of the pixels are at or above saturation, {frame.saturation_adu:g}"
    return ""
