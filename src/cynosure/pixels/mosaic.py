"""Raw frames of colour cameras: convert a Bayer mosaic to luminance.

In a mosaic every 2 x 2 cell has one red, one blue and two green pixels, so that the image of a star
has a pattern that depends on its colour. The kernel

    1 2 1
    2 4 2   / 16
    1 2 1

gives every pixel, whatever its own filter, a quarter of red, half of green and a quarter of blue:
an image in one passband on the same pixels, so that positions do not change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cynosure.data.frame import Frame

__all__ = ["NOISE_FACTOR", "is_mosaic", "to_luminance"]

# The kernel correlates the noise: fluxes scatter 1.5 times more than the scatter of single pixels
# implies (between 1 for one pixel and 2.7 for a wide sum; measured on stars of 2 px).
NOISE_FACTOR = 1.5

# The sky levels of the two green phases differ by less than this part of the difference between the
# colours: imperfect flats make it some per cent, another cause of a 2 x 2 pattern about one.
GREEN_AGREEMENT = 0.25


def is_mosaic(frame: Frame) -> bool:
    """Say whether the pixels are a Bayer mosaic: two diagonal phases alike, the others not.

    The sky levels of the colours must differ by at least a fifth of the noise of a pixel.
    """
    ny, nx = (2 * (n // 2) for n in frame.shape)
    if min(ny, nx) < 64:
        return False
    step = 2 * max(1, min(ny, nx) // 512)
    phases = [frame.data[j:ny:step, i:nx:step] for j, i in ((0, 0), (0, 1), (1, 0), (1, 1))]
    if not all(np.isfinite(p).any() for p in phases):
        return False
    levels = np.array([np.nanmedian(p) for p in phases])
    noise = np.nanmedian([1.4826 * np.nanmedian(np.abs(p - m)) for p, m in zip(phases, levels)])
    if not (np.isfinite(levels).all() and noise > 0):
        return False
    one, other = (levels[0], levels[3]), (levels[1], levels[2])
    for green, rest in ((one, other), (other, one)):
        between = min(abs(np.mean(green) - r) for r in rest)
        if between > 0.2 * noise and abs(green[0] - green[1]) < GREEN_AGREEMENT * between:
            return True
    return False


def to_luminance(frame: Frame) -> Frame:
    """Return the luminance of a mosaic; pixels next to unusable ones are unusable."""
    data = frame.data.astype(np.float32)
    for axis in (0, 1):
        data = _smooth(data, axis)
    mask = None
    if frame.mask is not None:
        ny, nx = frame.shape
        padded = np.pad(frame.mask, 1)
        mask = np.bitwise_or.reduce(
            [padded[j : j + ny, i : i + nx] for j in range(3) for i in range(3)]
        )
    return frame.replaced(
        data=data, mask=mask, dq=None, variance=None, saturation_adu=0.5 * frame.saturation_adu
    )


def _smooth(data: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return the (1, 2, 1) / 4 mean along an axis; edges are mirrored, which keeps the colours."""
    padded = np.pad(data, [(1, 1) if k == axis else (0, 0) for k in (0, 1)], mode="reflect")
    low = padded[:-2] if axis == 0 else padded[:, :-2]
    high = padded[2:] if axis == 0 else padded[:, 2:]
    return (0.25 * (low + high) + 0.5 * data).astype(np.float32)
