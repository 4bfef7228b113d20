"""TIFF, PNG and other pictures as pixels without a header."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.ground.errors import ImageError, SettingError
from cynosure.ground.files import reason_of

__all__ = ["RASTERS", "read_raster"]

RASTERS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp")

# EXIF tags of the time of exposure, and of the date of the file.
EXIF_IFD = 0x8769
TAG_ORIGINAL_TIME, TAG_DATE_TIME = 36867, 306


def read_raster(path: Path) -> tuple[NDArray[Any], str]:
    """Read a picture as one plane of numbers, first row first as it lies in the file.

    Colour pictures become the mean of their channels; an alpha channel is ignored. A FITS image
    counts rows upwards and a picture downwards: the rows are not reversed, and the solution has the
    parity of the file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    pixels : (ny, nx) ndarray
        uint8, uint16, int32 or float32.
    when : str
        Time of exposure as ISO text where the file has one, else empty.

    Raises
    ------
    ImageError
        If it is not a picture, or damaged.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise SettingError(
            "{path}: reading pictures needs Pillow",
            path=str(path),
            hint="pip install 'cynosure[images]'",
        ) from error
    try:
        with warnings.catch_warnings(), Image.open(path) as opened:
            image: Image.Image = opened
            warnings.simplefilter("ignore")  # odd metadata of a picture that is otherwise read
            when = _time(image)
            if image.mode == "1":
                image = image.convert("L")
            if image.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
                image = image.convert("RGB")
            pixels = np.asarray(image)
            bands = image.getbands()
    except UnidentifiedImageError as error:
        raise ImageError(image=path.name, reason="not a picture that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            image=path.name, reason="too many pixels for a picture; convert it to FITS"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise ImageError(image=path.name, reason=f"cannot be read ({reason})") from error
    if pixels.ndim == 3:
        colours = [i for i, band in enumerate(bands) if band != "A"]
        pixels = pixels[..., colours].mean(axis=-1, dtype=np.float32)
    if pixels.dtype.kind not in "iuf":
        raise ImageError(image=path.name, reason=f"pixels of type {pixels.dtype} are not numbers")
    return pixels, when


def _time(image: Any) -> str:
    exif = image.getexif()
    value = exif.get_ifd(EXIF_IFD).get(TAG_ORIGINAL_TIME) or exif.get(TAG_DATE_TIME) or ""
    match = re.match(r"(\d{4}):(\d\d):(\d\d) (\d\d:\d\d:\d\d)", str(value))
    return f"{match[1]}-{match[2]}-{match[3]}T{match[4]}" if match else ""
