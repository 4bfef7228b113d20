"""One detector array and the exposure it belongs to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

__all__ = ["Exposure", "Frame", "Pointing"]


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

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, (ny, nx)."""
        ny, nx = self.data.shape
        return ny, nx

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
    sha256 : str
        Checksum of the file.
    notes : tuple of str
        What was found odd or mended while reading, in plain words.
    """

    frames: tuple[Frame, ...]
    path: str = ""
    instrument: str = "generic"
    pointing: Pointing = field(default_factory=Pointing)
    sha256: str = ""
    notes: tuple[str, ...] = ()
