"""One detector array, and the exposure that it belongs to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.mask import DETECTION, Mask, Purpose, as_mask, mask_dictionary
from cynosure.ground.errors import ImageError

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

__all__ = ["Exposure", "Frame", "Pointing", "check_pixels"]

# Smallest side of an image: room for a star and the background around it.
MIN_SIDE_PX = 16
# Approximate number of pixels that are checked first; all are checked only if these are unusable.
SAMPLE = 20_000
MAX_SATURATED = 0.5  # share of saturated pixels above which the sky itself is saturated


@dataclass(frozen=True, slots=True)
class Pointing:
    """The approximate pointing of an image; None is unknown.

    Attributes
    ----------
    ra_deg, dec_deg : float
        Centre of the frame.
    radius_deg : float
        Largest distance of the true centre.
    scale_arcsec : float
        Size of a pixel.
    scale_error : float
        Fraction by which the scale may be wrong: 0.1 is 10 %.
    rotation_deg : float
        Angle of the +y axis from north through east.
    rotation_error_deg : float
        Largest error of the rotation; 180 is unknown.
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
    mask : (ny, nx) ndarray of uint32, optional
        Bits of the mask dictionary (:mod:`cynosure.data.mask`); None where no pixel has any. A
        plane of bool is taken too: True becomes the bit ``unusable``.
    dq : (ny, nx) ndarray of int, optional
        The flags of the file, where they are another observatory's; `mask` is their translation.
    wcs : WCS, optional
        The input WCS; None where there is none.
    epoch_yr : float, optional
        Julian year of mid-exposure; None where the header has no date.
    exptime_s, gain_e_adu, read_noise_e, saturation_adu : float
        gain 1, read noise 0 and saturation infinity where unknown.
    filter : str
        Name in the header.
    plane : int, optional
        0-based plane of a cube; None where the HDU is a plain image.
    cell : int
        Pixels of the file along a side of one pixel of `data`: 2 for a colour camera whose Bayer
        cells were combined, else 1. Pixel x of the frame is ``cell x + (cell - 1) / 2`` of the
        file; :func:`cynosure.geometry.wcs.model_in_file` converts a solution.
    """

    data: NDArray[np.float32]
    name: str = "image"
    chip: int = 0
    hdu: int = 0
    header: Header | None = None
    variance: NDArray[np.float32] | None = None
    mask: Mask | None = None
    dq: NDArray[Any] | None = None
    wcs: WCS | None = None
    epoch_yr: float | None = None
    exptime_s: float = float("nan")
    gain_e_adu: float = 1.0
    read_noise_e: float = 0.0
    saturation_adu: float = float("inf")
    filter: str = ""
    plane: int | None = None
    cell: int = 1
    _unusable: dict[int, NDArray[np.bool_]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.mask is not None and self.mask.dtype != np.uint32:
            object.__setattr__(self, "mask", as_mask(self.mask))

    def unusable(self, purpose: Purpose) -> NDArray[np.bool_] | None:
        """Return where the mask makes pixels unusable for a purpose; None for a frame without one.

        Purposes are ``"detection"``, ``"psf"`` and ``"photometry"``; the mask dictionary defines
        which bits make a pixel unusable for which. The result is cached, and shared by purposes
        with the same bits.
        """
        if self.mask is None:
            return None
        bits = mask_dictionary().spoiling(purpose)
        if bits not in self._unusable:
            plane = (self.mask & np.uint32(bits)) != 0
            same = [p for p in self._unusable.values() if np.array_equal(p, plane)]
            self._unusable[bits] = same[0] if same else plane
        return self._unusable[bits]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, (ny, nx)."""
        ny, nx = self.data.shape
        return ny, nx

    @property
    def place(self) -> int | tuple[int, int]:
        """The position of its header: the HDU, or the HDU and the plane of a cube."""
        return self.hdu if self.plane is None else (self.hdu, self.plane)

    def replaced(self, **changes: Any) -> Frame:
        """Return a new frame with some attributes replaced."""
        if "mask" in changes:
            changes["_unusable"] = {}
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
        The approximate pointing of the first frame's centre, from header and instrument file.
    digest : str or callable
        Checksum of the file, or a function that returns it; :attr:`sha256` calls it.
    notes : tuple of str
        Problems and corrections while reading, in plain words.
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


def check_pixels(frame: Frame) -> None:
    """Raise an error for pixels that cannot show stars.

    Raises
    ------
    ImageError
        If the frame is too small, or its pixels are unusable, all equal, or saturated.
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
    """Return the reason why a part of the frame cannot show stars; empty if it can."""
    pixels = frame.data[view]
    finite = np.isfinite(pixels)
    if not finite.any():
        return "every pixel is NaN"
    usable = finite
    if frame.mask is not None:
        usable = finite & (frame.mask[view] & np.uint32(mask_dictionary().spoiling(DETECTION)) == 0)
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
