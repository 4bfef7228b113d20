"""The companions of an image: errors, variances, weights and masks, beside it or in its file."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fitsbytes import Unit
from cynosure.data.fitsfile import FitsFile, planes, sides
from cynosure.data.instrument import Instrument

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = ["companions_of", "flagged_pixels", "joined", "label", "role_of"]

# What an extension is, by EXTNAME, where the instrument file does not say: the convention of
# Hubble, Webb and most pipelines.
ROLE_NAMES: dict[str, tuple[str, ...]] = {
    "science": ("SCI", "SCIENCE", "IMAGE", "DATA", "COMPRESSED_IMAGE", "IMG"),
    "error": ("ERR", "ERROR", "UNCERT", "SIGMA", "RMS"),
    "variance": ("VAR", "VARIANCE"),
    "ivar": ("IVAR", "INVVAR"),
    "weight": ("WHT", "WEIGHT", "EXP"),
    "mask": ("DQ", "MASK", "BPM", "DQA", "FLAGS"),
}
# Extensions that are images but of no sky.
NO_SKY = (
    "WCSDVARR",
    "D2IMARR",
    "SAMP",
    "TIME",
    "CON",
    "CTX",
    "SIPWCS",
    "BACKGROUND",
    "PSF",
    "HDRLET",
    "CAT",
    "BPM",
)


def role_of(unit: Unit, camera: Instrument) -> str:
    """Say what an image extension is: science, error, variance, ivar, weight, mask, or none of it."""
    for role, patterns in camera.layout.items():
        if any(fnmatchcase(unit.name, p.upper()) for p in patterns):
            return role
    bare = re.sub(r"[_-]?\d*$", "", unit.name)
    for role, names in ROLE_NAMES.items():
        if unit.name in names or bare in names:
            return role
    if bare in NO_SKY:
        return "other"
    return "unknown"


def label(unit: Unit) -> str:
    size = "x".join(str(n) for n in reversed(unit.shape))
    return f"{unit.index} [{unit.name or 'PRIMARY'},{unit.version}] {size}"


def joined(*masks: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    present = [m for m in masks if m is not None]
    if not present:
        return None
    out = present[0]
    for mask in present[1:]:
        out = out | mask
    return out


# --- companions: errors and masks -----------------------------------------------------------


def companions_of(
    file: FitsFile,
    unit: Unit,
    shape: tuple[int, int],
    images: list[Unit],
    roles: dict[int, str],
    camera: Instrument,
) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_] | None, list[str]]:
    """Return variance and mask of a science unit from its companions, and notes."""
    variance: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None
    notes: list[str] = []
    found = [(file, u, roles[u.index]) for u in _siblings(unit, images, roles)]
    opened: list[FitsFile] = []
    try:
        for beside, role in _files_beside(file, camera):
            opened.append(beside)
            same = [u for u in beside.units if u.is_image and u.shape == unit.shape]
            named = [u for u in same if u.name == unit.name] or same
            found += [(beside, u, role) for u in named[:1]]
        for source, sibling, role in found:
            if sides(sibling.shape) != shape or planes(sibling.shape) != 1:
                if sibling.shape:
                    notes.append(
                        f"{source.name}[{label(sibling)}] is not the size of the image and was left out"
                    )
                continue
            if role == "mask":
                mask = joined(
                    mask, flagged_pixels(source.integers(sibling), camera, source.header(sibling))
                )
            else:
                values = source.plane(sibling, 0)[0]
                new, bad = _variance(values, role)
                variance = new if new is not None else variance
                mask = joined(mask, bad if bad.any() else None)
    finally:
        for beside in opened:
            beside.__exit__()
    return variance, mask, notes


def _siblings(unit: Unit, images: list[Unit], roles: dict[int, str]) -> list[Unit]:
    """Return the companions of a science unit: of its EXTVER, else those that follow it."""
    own_role = roles[unit.index]
    science = [u.index for u in images if roles[u.index] == own_role]
    companions = [
        u for u in images if roles[u.index] in ("error", "variance", "ivar", "weight", "mask")
    ]
    if len(science) == 1:
        return companions
    same = [u for u in companions if u.version == unit.version]
    if len({u.version for u in companions}) > 1 or all(u.version == 1 for u in companions[:0]):
        return same
    after = [i for i in science if i > unit.index]
    end = after[0] if after else max(u.index for u in images) + 1
    return [u for u in companions if unit.index < u.index < end]


def _files_beside(file: FitsFile, camera: Instrument) -> list[tuple[FitsFile, str]]:
    """Open the companion files that lie beside an image."""
    out = []
    if file.path is None:
        return out
    for companion in camera.companions:
        if companion.old not in file.path.name:
            continue
        beside = file.path.with_name(file.path.name.replace(companion.old, companion.new))
        if beside.exists():
            out.append((FitsFile(beside), companion.role))
    return out


def flagged_pixels(
    flags: NDArray[np.int64], camera: Instrument, header: Header | None = None
) -> NDArray[np.bool_]:
    """Return where flags make a pixel unusable, by the instrument's dictionary.

    The DECam community pipeline changed from bits to values; its files with values have WAT or
    ``DQ`` classes from 1 to 8 only, which is what ``kind = "values"`` stands for.
    """
    if not camera.mask_bad:
        return flags != 0
    if camera.mask_kind == "values":
        return np.isin(flags, camera.mask_bad)
    bits = 0
    for bit in camera.mask_bad:
        bits |= bit
    return (flags & bits) != 0


def _variance(
    values: NDArray[np.float32], role: str
) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
    """Return the variance that a companion means, and the pixels that it declares unusable."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if role == "weight":  # exposure or weight in a unit of its own: only nothing is certain
            return None, ~(values > 0)
        variance = {"error": values * values, "variance": values, "ivar": 1.0 / values}[role]
    bad = ~(np.isfinite(variance) & (variance > 0))
    # A column of zeros in ERR means "not computed" in some files: then it is no information.
    if bad.mean() > 0.9:
        return None, np.zeros_like(bad)
    return np.where(bad, np.float32(np.inf), variance).astype(np.float32), bad
