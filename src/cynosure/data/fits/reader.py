"""Read exposures: FITS, compressed or not, with one extension or many; TIFF and PNG.

:func:`read` returns an :class:`Exposure` for every format: pixels as float32, a mask of bad pixels,
the epoch of mid-exposure, the pointing, the input WCS, and notes on all assumptions.

This and :mod:`cynosure.data.fits.parts`, which writes, are the only places that open FITS files;
1-based pixels stay in headers.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cynosure.data.fits.alternates import strip_wcs
from cynosure.data.fits.blocks import Unit, float_pixels
from cynosure.data.fits.extensions import companions_of, label, science_units
from cynosure.data.fits.file import (
    FitsFile,
    FitsInMemory,
    LazyDigest,
    Selector,
    file_sha256,
    planes,
    sides,
    split_path,
    understood,
)
from cynosure.data.fits.metadata import detector_of, pointing_of
from cynosure.data.fits.solved import output_name, write_header_only
from cynosure.data.fits.wcsread import is_wcs_keyword, read_wcs
from cynosure.data.frame import Exposure, Frame, check_pixels
from cynosure.data.header import epoch_of, text
from cynosure.data.instrument import Instrument, identify, load_instrument
from cynosure.data.mask import Mask, as_mask, joined
from cynosure.data.raster import RASTERS, read_raster
from cynosure.ground.errors import ImageError
from cynosure.ground.files import atomic_path

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

__all__ = [
    "atomic_path",
    "check_pixels",
    "debayered",
    "file_sha256",
    "output_name",
    "read",
    "split_path",
    "write_header_only",
]

BAYER_PATTERNS = ("rggb", "bggr", "grbg", "gbrg", "sum")
# Structural cards that an extension does not inherit from the primary header.
NOT_INHERITED = re.compile(
    r"(SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|BZERO|BSCALE|BLANK|CHECKSUM|DATASUM"
    r"|EXTNAME|EXTVER|EXTLEVEL|ZHECKSUM|ZDATASUM|COMMENT|HISTORY|)"
)


def read(
    source: Any,
    *,
    instrument: str | Path | Instrument | None = None,
    extension: str | int | None = None,
    epoch_yr: float | None = None,
    bayer: str | None = None,
) -> Exposure:
    """Read an exposure.

    Parameters
    ----------
    source : path, HDUList, image HDU, (data, header), ndarray or CCDData
        A path may select an extension: ``mosaic.fits[SCI,2]``, ``cube.fits[0,3]`` (HDU 0, plane 3).
    instrument : str, Path or Instrument, optional
        Name or file of the instrument; found from the header where absent.
    extension : str or int, optional
        As in the brackets of a path: ``2``, ``"SCI"``, ``"SCI,2"``, ``"0,3"`` or ``"0,all"``.
    epoch_yr : float, optional
        Julian year of mid-exposure; it overrides the date of the header.
    bayer : str, optional
        The colour pattern of a raw colour camera from the first pixel, such as ``"rggb"``: every
        2 x 2 cell becomes one pixel, the mean of its greens (see :func:`debayered`); ``"sum"``
        takes the mean of all four. The WCS and the scale are those of the cells.

    Returns
    -------
    Exposure

    Raises
    ------
    ImageError
        If no image can be read, with the reason.
    SettingError
        If the instrument is not known.

    Examples
    --------
    >>> import numpy as np
    >>> exposure = read((np.zeros((20, 30)), None), epoch_yr=2020.5)
    >>> exposure.frames[0].shape, exposure.frames[0].epoch_yr
    ((20, 30), 2020.5)
    """
    if isinstance(source, (str, os.PathLike)):
        path, selected = split_path(str(source))
        if path.suffix.lower() in RASTERS:
            return _read_raster(path, instrument, epoch_yr, bayer)
        selector = Selector.of(extension if extension is not None else selected, str(source))
        with FitsFile(path) as file:
            return _assemble(file, instrument, selector, epoch_yr, bayer)
    selector = Selector.of(extension, "image")
    return _assemble(FitsInMemory.of(source), instrument, selector, epoch_yr, bayer)


# --- from units to an exposure --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """The file, instrument and options with which the frames of an exposure are read."""

    file: FitsFile
    camera: Instrument
    images: list[Unit]
    primary: Header
    bayer: str | None

    def frame(self, unit: Unit, plane: int | None, chip: int) -> tuple[Frame, list[str]]:
        """Read one detector array, with notes."""
        data, finite = self.file.plane(unit, plane or 0)
        own = self.file.header(unit)
        if plane is not None:
            own = self._of_plane(own, unit, plane)
        header = inherited(own, self.primary) if unit.index > 0 else own
        tables = any(k.startswith(("CPDIS", "D2IMDIS")) for k in own)
        with understood(self.file.name, unit.index):
            hdulist = self.file.hdulist() if tables else None
        wcs, said = read_wcs(own, hdulist=hdulist, shape=sides(unit.shape))
        if unit.unreadable:
            said = (*said, f"header cards that cannot be read: {', '.join(unit.unreadable)}")
        beside = companions_of(
            self.file, unit, plane or 0, self.images, self.camera
        )
        mask = joined(
            None if finite else as_mask(~np.isfinite(data), "nan"),
            beside.mask,
            outside_data_section(header, sides(unit.shape), self.camera),
        )
        date_is = self.camera.values.get("date_is", "start")
        moment = epoch_of(header, self.camera.aliases, date_is=date_is)
        frame = Frame(
            data,
            name=self._name(unit, plane),
            chip=chip,
            hdu=unit.index,
            header=header,
            variance=beside.variance,
            mask=mask,
            dq=beside.dq,
            wcs=wcs,
            epoch_yr=moment.epoch_yr,
            plane=plane,
            **detector_of(header, self.camera, unit),
        )
        if self.bayer:
            frame = debayered(frame, self.bayer)
        return frame, [*said, *beside.notes, *([moment.note] if moment.note else [])]

    def _name(self, unit: Unit, plane: int | None) -> str:
        if len(self.images) == 1 and plane is None:
            return self.file.name
        at = f"{unit.name},{unit.version}" if unit.name and unit.index else str(unit.index)
        return f"{self.file.name}[{at}]" if plane is None else f"{self.file.name}[{at},{plane}]"

    def _of_plane(self, header: Header, unit: Unit, plane: int) -> Header:
        """Return the header of one plane of a cube.

        Its WCS is that of an extension which says it is of this plane
        (:func:`cynosure.data.fits.solved.plane_part`); else the row of a table replaces cards
        (GEIS groups of Hubble).
        """
        header = header.copy()
        for other in self.file.units:
            if other.plane_of == (unit.index, plane):
                strip_wcs(header)
                cards = [c for c in other.header.cards if is_wcs_keyword(c.keyword)]
                header.extend(cards, end=True)
                return header
        for name, value in self.file.row(self.camera.plane_table, plane).items():
            finite = not isinstance(value, float) or math.isfinite(value)
            if finite and re.fullmatch(r"[A-Z0-9_-]{1,8}", name):
                header[name] = value
        return header


def _assemble(
    file: FitsFile,
    instrument: str | Path | Instrument | None,
    selector: Selector | None,
    epoch_yr: float | None,
    bayer: str | None,
) -> Exposure:
    images = [u for u in file.units if u.is_image]
    if not images:
        kinds = ", ".join(str(u.name or f"HDU {u.index}") for u in file.units)
        raise ImageError(
            image=file.name,
            reason=f"no image extension (it has {len(file.units)} HDU: {kinds})",
            hint="Is it a table or a header? Give the image itself.",
        )
    primary = file.header(file.units[0])
    camera = _instrument(instrument, primary, file.header(images[0]))
    reading = Reading(file, camera, images, primary, bayer or camera.values.get("bayer"))
    frames: list[Frame] = []
    notes: list[str] = []
    for unit in _science(file, images, selector, camera):
        for plane in _chosen_planes(file, unit, selector, camera):
            frame, said = reading.frame(unit, plane, len(frames))
            frames.append(frame)
            notes += said
    if epoch_yr is not None:
        frames = [f.replaced(epoch_yr=epoch_yr) for f in frames]
        notes = [n for n in notes if "epoch is" not in n]
    pointing, said = pointing_of(frames[0], camera, primary)
    return Exposure(
        tuple(frames),
        path=str(file.path) if file.path is not None else file.name,
        instrument=camera.name,
        pointing=pointing,
        digest=file.digest(),
        notes=tuple(dict.fromkeys(notes + said)),
    )


def _instrument(
    given: str | Path | Instrument | None, primary: Header, first: Header
) -> Instrument:
    if isinstance(given, Instrument):
        return given
    if given is not None:
        return load_instrument(given)
    return load_instrument(identify(primary, first))


def _science(
    file: FitsFile, images: list[Unit], selector: Selector | None, camera: Instrument
) -> list[Unit]:
    """Return the units to read: the selected ones, else the science images."""
    listed = ", ".join(label(u) for u in images)
    if selector is not None:
        chosen = [u for u in file.units if selector.takes(u)]
        if not chosen:
            raise ImageError(
                image=file.name, reason=f"it has no HDU {selector}", hint=f"It has {listed}."
            )
        pictures = [u for u in chosen if u.is_image]
        if not pictures:
            raise ImageError(
                image=file.name, reason=f"HDU {selector} is not an image",
                hint=f"Images are {listed}.",
            )
        return pictures
    if found := science_units(images, camera):
        return found
    raise ImageError(
        image=file.name,
        reason=f"no science extension among {listed}",
        hint="Say which one with --extension NAME,VERSION, or image.fits[NAME,VERSION].",
    )


def _chosen_planes(
    file: FitsFile, unit: Unit, selector: Selector | None, camera: Instrument
) -> list[int | None]:
    """Return the planes to read; None stands for the only one."""
    count = planes(unit.shape)
    wanted = selector.plane if selector is not None else None
    if count == 1 and wanted in (None, 0, "all"):
        return [None]
    if wanted == "all" or (wanted is None and camera.planes == "chips"):
        return list(range(count))
    size = "x".join(str(n) for n in reversed(unit.shape))
    if wanted is None:
        raise ImageError(
            image=file.name,
            planes=count,
            reason=f"HDU {unit.index} is a cube of {size} pixels, {count} planes",
            hint=f"Choose a plane, counted from 0: --extension {unit.index},0 or "
            f"{file.name}[{unit.index},0]; [{unit.index},all] takes every plane for a detector.",
        )
    if not isinstance(wanted, int) or wanted >= count:
        raise ImageError(
            image=file.name,
            reason=f"HDU {unit.index} ({size}) has no plane {wanted}: it has 0 to {count - 1}",
        )
    return [wanted]


def inherited(own: Header, primary: Header) -> Header:
    """Return an extension's header with the cards of the primary header that it lacks.

    The WCS of the primary header is not inherited: it describes the mosaic, not one array.
    """
    header = own.copy()
    known = set(own)
    extra = [
        card
        for card in primary.cards
        if card.keyword not in known
        and not NOT_INHERITED.fullmatch(card.keyword)
        and not is_wcs_keyword(card.keyword)
    ]
    header.extend(extra, end=True)
    return header


def outside_data_section(
    header: Header, shape: tuple[int, int], camera: Instrument
) -> Mask | None:
    """Mask the pixels outside DATASEC (overscan) of a raw frame; None where all are inside.

    A DATASEC that does not fit the array dates from before a crop and is ignored.
    """
    if camera.values.get("trim") is False:
        return None
    section = text(header, ("DATASEC",)) or str(camera.values.get("data_section", ""))
    match = re.fullmatch(r"\[(\d+):(\d+),(\d+):(\d+)\]", section.replace(" ", ""))
    if match is None:
        return None
    x1, x2, y1, y2 = (int(g) for g in match.groups())
    ny, nx = shape
    whole = (x2 - x1 + 1, y2 - y1 + 1) == (nx, ny)
    if whole or not (1 <= x1 < x2 <= nx and 1 <= y1 < y2 <= ny):
        return None
    outside = np.ones(shape, dtype=bool)
    outside[y1 - 1 : y2, x1 - 1 : x2] = False
    return as_mask(outside)


# --- pixels without a header, and colour cameras --------------------------------------------


def _read_raster(
    path: Path,
    instrument: str | Path | Instrument | None,
    epoch_yr: float | None,
    bayer: str | None,
) -> Exposure:
    from astropy.io.fits import Header

    stored, when = read_raster(path)
    camera = (
        instrument
        if isinstance(instrument, Instrument)
        else load_instrument(instrument or "generic")
    )
    header = Header()
    if when:
        header["DATE-OBS"] = when
    pixels, finite = float_pixels(stored)
    moment = epoch_of(header)
    top = float(np.iinfo(stored.dtype).max) if stored.dtype.kind in "iu" else math.inf
    values = camera.values
    frame = Frame(
        pixels,
        name=path.name,
        header=header,
        mask=None if finite else as_mask(~np.isfinite(pixels), "nan"),
        epoch_yr=epoch_yr if epoch_yr is not None else moment.epoch_yr,
        exptime_s=float(values.get("exptime_s", math.nan)),
        gain_e_adu=float(values.get("gain_e_adu", 1.0)),
        read_noise_e=float(values.get("read_noise_e", 0.0)),
        saturation_adu=min(top, float(values.get("saturation_adu", math.inf))),
    )
    pattern = bayer or values.get("bayer")
    frame = debayered(frame, pattern) if pattern else frame
    pointing, said = pointing_of(frame, camera, header)
    notes = ["pixels without a FITS header"]
    if frame.epoch_yr is None or epoch_yr is None:
        notes += [moment.note] if moment.note else []
    return Exposure(
        (frame,),
        path=str(path),
        instrument=camera.name,
        pointing=pointing,
        digest=LazyDigest(path),
        notes=tuple(notes + said),
    )


def debayered(frame: Frame, pattern: str) -> Frame:
    """Return a colour camera's raw frame with every 2 x 2 cell made one pixel.

    The two greens of a cell are averaged: they have the same pass band, and their mean lies at the
    centre of the cell, whatever the pattern; ``"sum"`` takes the mean of all four. Positions are
    those of the cells: pixel (x, y) of the new frame is (2 x + 0.5, 2 y + 0.5) of the old one.

    Parameters
    ----------
    frame : Frame
    pattern : str
        ``rggb``, ``bggr``, ``grbg``, ``gbrg``, or ``sum``.

    Raises
    ------
    ImageError
        If the pattern is not known.
    """
    pattern = pattern.lower()
    if pattern not in BAYER_PATTERNS:
        raise ImageError(
            image=frame.name,
            reason=f"{pattern!r} is not a Bayer pattern",
            hint=f"One of {', '.join(BAYER_PATTERNS)}.",
        )
    cells = [(0, 0), (0, 1), (1, 0), (1, 1)]
    use = cells if pattern == "sum" else [c for c, x in zip(cells, pattern) if x == "g"]
    ny, nx = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
    parts = [(slice(j, ny, 2), slice(i, nx, 2)) for j, i in use]
    n = len(parts)
    data = np.add.reduce([frame.data[p] for p in parts]) / np.float32(n)
    mask, variance = frame.mask, frame.variance
    if mask is not None:
        mask = np.bitwise_or.reduce([mask[p] for p in parts])
    if variance is not None:
        variance = np.add.reduce([variance[p] for p in parts]) / np.float32(n * n)
    return frame.replaced(
        data=data,
        mask=mask,
        dq=None,
        variance=variance,
        wcs=None if frame.wcs is None else _of_cells(frame.wcs),
        gain_e_adu=frame.gain_e_adu * n,
        read_noise_e=frame.read_noise_e * math.sqrt(n),
        cell=2 * frame.cell,
    )


def _of_cells(wcs: WCS) -> WCS | None:
    """Return the WCS of 2 x 2 cells; None where lookup tables make it more than a header."""
    from astropy.wcs import Sip

    if wcs.det2im1 or wcs.det2im2 or wcs.cpdis1 or wcs.cpdis2:
        return None
    out = wcs.deepcopy()
    reference = np.asarray(wcs.wcs.crpix) / 2 + 0.25  # 1-based: cell k holds pixels 2 k - 1 and 2 k
    out.wcs.crpix = reference
    if wcs.wcs.has_cd():
        out.wcs.cd = np.asarray(wcs.wcs.cd) * 2
    else:
        out.wcs.cdelt = np.asarray(wcs.wcs.cdelt) * 2
    if wcs.sip is not None:  # u = 2 u', f = 2 f': A'_pq = A_pq 2^(p + q - 1)
        terms = [
            None if c is None else c * 2.0 ** (np.add.outer(*2 * [np.arange(len(c))]) - 1.0)
            for c in (wcs.sip.a, wcs.sip.b, wcs.sip.ap, wcs.sip.bp)
        ]
        out.sip = Sip(*terms, reference)
    if wcs.pixel_shape is not None:
        out.pixel_shape = tuple(n // 2 for n in wcs.pixel_shape)
    out.wcs.set()
    return out
