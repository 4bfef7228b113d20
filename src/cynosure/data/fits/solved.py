"""Files for solutions other than FITS images: headers without pixels, and converted pictures.

Both are parts in memory (:mod:`cynosure.data.fits.parts`), so that solutions are written into them
in the same way as into an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cynosure.data.fits.alternates import Records, records_of
from cynosure.data.fits.parts import SUMS, FitsParts, Part, card, new_parts
from cynosure.data.raster import RASTERS, read_raster

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = ["header_parts", "output_name", "picture_parts", "records_from", "write_header_only"]

# Cards that are written for a header without pixels and not copied.
RESTATED = ("IMAGEW", "IMAGEH", *SUMS)
SUFFIXES = (".fits", ".fit", ".fts", ".fz", ".gz", ".bz2", ".xz", *RASTERS)


def output_name(source: str | Path, ending: str) -> str:
    """Return the name of a product of an image: its own, without suffixes, with an ending.

    Examples
    --------
    >>> output_name("night/m81.fits.fz", "_wcs.fits")
    'm81_wcs.fits'
    """
    name = Path(source).name
    while (suffix := Path(name).suffix.lower()) in SUFFIXES and name != suffix:
        name = name[: -len(suffix)]
    return name + ending


def records_from(header: Header) -> Records:
    """Return the cards of a header of astropy as records of 80 bytes."""
    text = header.tostring(sep="", endcard=True, padding=True)
    return records_of(text.encode("ascii", "replace"))


def summed(records: Records) -> Part:
    """Return a part with empty CHECKSUM and DATASUM, which the writer computes."""
    part = Part(records, data=b"")
    part.set("CHECKSUM", "", "of the HDU")
    part.set("DATASUM", "", "of the data")
    return part


# --- headers alone --------------------------------------------------------------------------


def header_parts(
    source: str | Path, headers: Sequence[Records], shapes: Sequence[tuple[int, int]]
) -> FitsParts:
    """Return a file of headers without pixels, ``NAME.wcs.fits``.

    One header is a primary unit without data; several are extensions ``WCS`` after an empty
    primary one. IMAGEW and IMAGEH say how large the image is.

    Parameters
    ----------
    source : path
        The image of the headers.
    headers : sequence of list
        Cards of each unit; they may be empty.
    shapes : sequence of (int, int)
        Rows and columns, one for each.
    """
    several = len(headers) > 1
    parts = [summed(structure(8, (), primary=True))] if several else []
    for number, (cards, (ny, nx)) in enumerate(zip(headers, shapes), start=1):
        records = structure(8, (), primary=not several)
        if several:
            records += [card("EXTNAME", "WCS"), card("EXTVER", number)]
        part = summed(records + [r for r in cards if r[0] not in RESTATED])
        part.set("IMAGEW", nx, "[px] width of the image")
        part.set("IMAGEH", ny, "[px] height of the image")
        parts.append(part)
    return new_parts(source, parts)


def write_header_only(
    out: str | Path,
    headers: Header | Sequence[Header],
    shapes: tuple[int, int] | Sequence[tuple[int, int]],
    *,
    overwrite: bool = False,
) -> Path:
    """Write WCS headers without pixels; see :func:`header_parts`.

    Parameters
    ----------
    out : path
    headers : Header or sequence of Header
    shapes : (ny, nx), or one for each header
    overwrite : bool

    Raises
    ------
    OutputExists, OutputError
    """
    listed: list[Header] = list(headers) if isinstance(headers, (list, tuple)) else [headers]
    sizes = [(int(ny), int(nx)) for ny, nx in np.reshape(shapes, (-1, 2))]
    header_parts("", [records_from(h) for h in listed], sizes).save(out, overwrite=overwrite)
    return Path(out)


def plane_part(cube: int, plane: int) -> Part:
    """Return a unit without data for the WCS of one plane of a cube.

    Parameters
    ----------
    cube : int
        0-based number of the cube's HDU.
    plane : int
        0-based.
    """
    return summed([
        *structure(8, (), primary=False), card("EXTNAME", "WCS"), card("EXTVER", plane + 1),
        card("PLANEHDU", cube, "HDU of the cube, from 0"),
        card("PLANE", plane, "plane of the cube, from 0"),
    ])


# --- pictures -------------------------------------------------------------------------------


def picture_parts(source: str | Path) -> FitsParts:
    """Return a picture (PNG, TIFF) as FITS: its own numbers, first row first.

    Raises
    ------
    ImageError
        If it cannot be read.
    """
    pixels, when = read_raster(Path(source))
    bitpix, zero, stored = _stored(pixels)
    records = structure(bitpix, pixels.shape, primary=True)
    if zero:
        records += [card("BZERO", zero), card("BSCALE", 1)]
    if when:
        records += [card("DATE-OBS", when)]
    part = summed(records)
    part.data = stored.tobytes()
    return new_parts(source, [part])


def structure(bitpix: int, shape: tuple[int, ...], *, primary: bool) -> Records:
    """Return the mandatory cards of an image unit; no shape for a unit without data."""
    first = card("SIMPLE", True) if primary else card("XTENSION", "IMAGE")
    axes = [card(f"NAXIS{i}", n) for i, n in enumerate(reversed(shape), start=1)]
    last = [card("EXTEND", True)] if primary else [card("PCOUNT", 0), card("GCOUNT", 1)]
    return [first, card("BITPIX", bitpix), card("NAXIS", len(shape)), *axes, *last]


def _stored(pixels: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Return BITPIX, BZERO and the numbers as FITS stores them."""
    if pixels.dtype == np.uint8:
        return 8, 0, pixels
    if pixels.dtype == np.uint16:
        return 16, 32768, (pixels.astype(np.int32) - 32768).astype(">i2")
    if pixels.dtype.kind in "iu":
        return 32, 0, pixels.astype(">i4")
    return -32, 0, pixels.astype(">f4")
