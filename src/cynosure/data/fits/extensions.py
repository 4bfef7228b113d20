"""The roles of a file's extensions: science, errors, variances, weights and masks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fits.blocks import Unit
from cynosure.data.fits.file import FitsFile, planes, sides
from cynosure.data.instrument import Instrument
from cynosure.data.mask import MASK_CARD, Mask, as_mask, joined, smallest_integers

__all__ = ["Companions", "companions_of", "headers_alone", "label", "role_of", "science_units"]

# Roles by EXTNAME, where the instrument file does not state them: the convention of Hubble, Webb
# and most pipelines. A number may follow (``DQ2``), or a chip be named (``CCD1_DQ``).
ROLE_NAMES: dict[str, tuple[str, ...]] = {
    "science": ("SCI", "SCIENCE", "IMAGE", "DATA", "COMPRESSED_IMAGE", "IMG"),
    "error": ("ERR", "ERROR", "UNCERT", "SIGMA", "RMS"),
    "variance": ("VAR", "VARIANCE"),
    "ivar": ("IVAR", "INVVAR"),
    "weight": ("WHT", "WEIGHT", "EXP"),
    "mask": ("DQ", "MASK", "BPM", "FLAGS"),
}
COMPANIONS = ("error", "variance", "ivar", "weight", "mask")
# Names of extensions that are images, but not of the sky.
NO_SKY = (
    *("WCSDVARR", "D2IMARR", "SAMP", "TIME", "CON", "CTX", "SIPWCS", "BACKGROUND", "BKG", "PSF"),
    *("HDRLET", "CAT", "FLAT", "DARK", "BIAS"),
)
# An error array with a larger share of values that are not positive was never computed.
MAX_EMPTY = 0.9


def role_of(unit: Unit, camera: Instrument) -> str:
    """Return the role of an image extension.

    Returns
    -------
    str
        ``science``, one of ``error``, ``variance``, ``ivar``, ``weight``, ``mask``, ``other`` for
        an image that is not of the sky, or ``unknown``.
    """
    return _role(unit.name, tuple((r, tuple(p)) for r, p in camera.layout.items()))


@lru_cache(maxsize=1024)  # the extensions of all files of a camera have the same few names
def _role(name: str, layout: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
    for role, patterns in layout:
        if any(fnmatchcase(name, p.upper()) for p in patterns):
            return role
    for role, names in ROLE_NAMES.items():
        if name in names:
            return role
    tokens = [_bare(t) for t in _tokens(name)]
    for role in COMPANIONS:
        if any(t in ROLE_NAMES[role] for t in tokens):
            return role
    if any(t in NO_SKY for t in tokens):
        return "other"
    return "science" if any(t in ROLE_NAMES["science"] for t in tokens) else "unknown"


def science_units(units: Sequence[Unit], camera: Instrument) -> list[Unit]:
    """Return the science images of a file; no other function decides this.

    They are the images that the instrument file or their names call science; without any, those of
    unknown role. An image has pixels on two axes or more.

    Parameters
    ----------
    units : sequence of Unit
        All units of the file.
    camera : Instrument

    Returns
    -------
    list of Unit
        Empty where there is none.
    """
    images = [u for u in units if u.is_image and len(u.shape) >= 2]
    roles = [role_of(u, camera) for u in images]
    for wanted in ("science", "unknown"):
        if wanted in roles:
            return [u for u, role in zip(images, roles) if role == wanted]
    return []


def headers_alone(units: Sequence[Unit], camera: Instrument) -> list[Unit]:
    """Return the units without pixels that have a WCS of an image: ``NAME.wcs.fits``."""
    return [
        u for u in units
        if not u.is_image and not u.is_table and role_of(u, camera) in ("science", "unknown")
    ]


def _tokens(name: str) -> list[str]:
    return [t for t in re.split(r"[_. -]+", name) if t]


def _bare(token: str) -> str:
    return re.sub(r"\d+$", "", token)


def label(unit: Unit) -> str:
    """Return the label of a unit for messages: number, name, version and size."""
    size = "x".join(str(n) for n in reversed(unit.shape))
    return f"{unit.index} [{unit.name or 'PRIMARY'},{unit.version}] {size}"


class Companions(NamedTuple):
    """The companions of an image.

    Attributes
    ----------
    variance : (ny, nx) ndarray of float32, or None
        Infinite where a companion declares a pixel worthless.
    mask : (ny, nx) ndarray of uint32, or None
        Bits of the mask dictionary.
    dq : (ny, nx) ndarray of int, or None
        The flags of the file, where they are another observatory's.
    notes : list of str
    """

    variance: NDArray[np.float32] | None
    mask: Mask | None
    dq: NDArray[Any] | None
    notes: list[str]


def companions_of(
    file: FitsFile,
    unit: Unit,
    plane: int,
    images: list[Unit],
    camera: Instrument,
) -> Companions:
    """Read the companions of an image.

    Parameters
    ----------
    file : FitsFile
    unit : Unit
        The image.
    plane : int
        0-based plane of it.
    images : list of Unit
        All images of the file.
    camera : Instrument
    """
    variance: NDArray[np.float32] | None = None
    mask: Mask | None = None
    dq: NDArray[Any] | None = None
    notes: list[str] = []
    found = [(file, u, role_of(u, camera)) for u in _siblings(unit, images, camera)]
    opened: list[FitsFile] = []
    try:
        for beside, role in _files_beside(file, camera):
            opened.append(beside)
            same = [u for u in beside.units if u.is_image and u.shape == unit.shape]
            named = [u for u in same if u.name == unit.name] or same
            found += [(beside, u, role) for u in named[:1]]
        for source, sibling, role in found:
            if sides(sibling.shape) != sides(unit.shape) or planes(sibling.shape) <= plane:
                notes.append(
                    f"{source.name}[{label(sibling)}] is not the size of the image: left out"
                )
            elif role == "mask":
                flags = source.integers(sibling, plane)
                ours = MASK_CARD in source.header(sibling) or camera.mask_kind == "dictionary"
                mask = joined(mask, as_mask(flags) if ours else camera.mask_of(flags))
                dq = dq if ours else smallest_integers(flags)
            else:
                new, bad = _variance(source.plane(sibling, plane)[0], role)
                variance = new if new is not None else variance
                mask = joined(mask, as_mask(bad) if bad.any() else None)
    finally:
        for beside in opened:
            beside.__exit__()
    return Companions(variance, mask, dq, notes)


def _siblings(unit: Unit, images: list[Unit], camera: Instrument) -> list[Unit]:
    """Return the companions of an image in its own file.

    All if it is the only image; else those of the same chip, number and EXTVER; else those between
    it and the next image.
    """
    roles = {u.index: role_of(u, camera) for u in images}
    science = [u.index for u in images if roles[u.index] == roles[unit.index]]
    companions = [u for u in images if roles[u.index] in COMPANIONS and u.index != unit.index]
    if len(science) == 1:
        return companions
    same = [u for u in companions if _kinship(u) == _kinship(unit)]
    if same and len(same) < len(companions):
        return same
    end = min((i for i in science if i > unit.index), default=images[-1].index + 1)
    return [u for u in companions if unit.index < u.index < end]


def _kinship(unit: Unit) -> tuple[tuple[str, ...], str, int]:
    """Return the identity that an image shares with its companions: chip name, number, EXTVER."""
    every = {name for names in ROLE_NAMES.values() for name in names}
    chip, number = [], ""
    for token in _tokens(unit.name):
        if _bare(token) in every:
            number = token[len(_bare(token)) :]
        else:
            chip.append(token)
    return tuple(chip), number, unit.version


def _files_beside(file: FitsFile, camera: Instrument) -> list[tuple[FitsFile, str]]:
    """Open the companion files that lie beside an image."""
    out: list[tuple[FitsFile, str]] = []
    if file.path is None:
        return out
    for companion in camera.companions:
        if companion.old not in file.path.name:
            continue
        beside = file.path.with_name(file.path.name.replace(companion.old, companion.new))
        if beside.exists():
            out.append((FitsFile(beside), companion.role))
    return out


def _variance(
    values: NDArray[np.float32], role: str
) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
    """Return the variance of a companion, and the pixels that it declares unusable."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if role == "weight":  # of unknown unit (exposure time, number of images): use only zeros
            return None, ~(values > 0)
        variance = {"error": values * values, "variance": values, "ivar": 1.0 / values}[role]
    bad = ~(np.isfinite(variance) & (variance > 0))
    if bad.mean() > MAX_EMPTY:
        return None, np.zeros_like(bad)
    return np.where(bad, np.float32(np.inf), variance).astype(np.float32), bad
