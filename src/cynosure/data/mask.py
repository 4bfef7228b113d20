"""The dictionary of mask bits: their names, and the purposes for which each makes a pixel unusable.

A mask is a plane of 32-bit unsigned integers, one bit for each condition. The bits are data,
``masks/NAME.toml``; code asks for them by name, here and nowhere else. The DQ planes of other
observatories are mapped onto it by their instrument files
(:meth:`cynosure.data.instrument.Instrument.mask_of`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.ground.errors import SettingError
from cynosure.ground.settings import unknown_name

__all__ = [
    "DETECTION",
    "MASK_CARD",
    "PHOTOMETRY",
    "PSF",
    "PURPOSES",
    "Mask",
    "MaskBit",
    "MaskDictionary",
    "as_mask",
    "bits_within",
    "joined",
    "mask_dictionary",
    "smallest_integers",
]

Mask = NDArray[np.uint32]
Purpose = Literal["detection", "psf", "photometry"]
DETECTION: Purpose = "detection"
PSF: Purpose = "psf"
PHOTOMETRY: Purpose = "photometry"
# A mask extension whose header has this card holds bits of the dictionary that it names.
MASK_CARD = "MASKDICT"
PURPOSES = (DETECTION, PSF, PHOTOMETRY)


@dataclass(frozen=True, slots=True)
class MaskBit:
    """One condition of a pixel.

    Attributes
    ----------
    bit : int
        Its number, 0 to 31.
    name : str
    text : str
        What it means.
    spoils : tuple of str
        The purposes for which it makes a pixel unusable: ``detection``, ``psf``, ``photometry``.
    """

    bit: int
    name: str
    text: str
    spoils: tuple[str, ...] = ()

    @property
    def value(self) -> int:
        """The integer in which only this bit is set."""
        return 1 << self.bit


@dataclass(frozen=True)
class MaskDictionary:
    """The bits of a mask, in the order of their numbers; made by :func:`mask_dictionary`.

    Examples
    --------
    >>> bits = mask_dictionary()
    >>> bits["saturated"], bits["nan"], bits.value("saturated", "nan")
    (1, 64, 65)
    >>> bits.names(65)
    ('saturated', 'nan')
    >>> bool(bits.spoiling("detection") & bits["detected"])
    False
    """

    name: str
    bits: tuple[MaskBit, ...]

    @cached_property
    def _values(self) -> dict[str, int]:
        return {b.name: b.value for b in self.bits}

    def __getitem__(self, name: str) -> int:
        """Return the value of a bit.

        Raises
        ------
        SettingError
            If there is no bit of that name; similar ones are named.
        """
        if name not in self._values:
            raise unknown_name("mask bit", name, list(self._values), f"masks/{self.name}.toml")
        return self._values[name]

    def value(self, *names: str) -> int:
        """Return the sum of the values of some bits."""
        return sum(self[n] for n in set(names))

    def names(self, value: int) -> tuple[str, ...]:
        """Return the names of the bits that are set in a value."""
        return tuple(b.name for b in self.bits if int(value) & b.value)

    def spoiling(self, purpose: Purpose) -> int:
        """Return the bits that make a pixel unusable for a purpose."""
        if purpose not in PURPOSES:
            raise unknown_name("purpose", purpose, list(PURPOSES), "mask")
        return sum(b.value for b in self.bits if purpose in b.spoils)


@cache
def mask_dictionary(name: str = "default") -> MaskDictionary:
    """Return a mask dictionary, ``masks/NAME.toml``.

    Raises
    ------
    SettingError
        If there is none of that name, or a number or name is repeated.
    """
    import tomllib

    folder = Path(__file__).parents[1] / "masks"
    path = folder / f"{name}.toml"
    if not path.exists():
        raise unknown_name("mask dictionary", name, [p.stem for p in folder.glob("*.toml")], "mask")
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    bits = tuple(
        MaskBit(b["bit"], b["name"], b["text"], tuple(b.get("spoils", ()))) for b in content["bit"]
    )
    twice = len({b.bit for b in bits}) < len(bits) or len({b.name for b in bits}) < len(bits)
    if twice or any(not 0 <= b.bit < 32 for b in bits):
        raise SettingError(
            "{path}: every bit has a number of its own from 0 to 31, and a name of its own",
            path=path.name,
        )
    return MaskDictionary(content["name"], tuple(sorted(bits, key=lambda b: b.bit)))


def as_mask(flags: ArrayLike, bit: str = "unusable") -> Mask:
    """Return a plane of flags as a mask.

    Parameters
    ----------
    flags : (ny, nx) array of bool or of integers
        Where True, `bit` is set; integers are bits of the dictionary already.
    """
    flags = np.asarray(flags)
    if flags.dtype.kind == "b":
        return flags * np.uint32(mask_dictionary()[bit])
    return flags.astype(np.uint32, copy=False)


def joined(*masks: Mask | None) -> Mask | None:
    """Return the union of masks, of which some may be None; None for none."""
    present = [m for m in masks if m is not None]
    if not present:
        return None
    out = present[0]
    for mask in present[1:]:
        out = out | mask
    return out


def smallest_integers(flags: NDArray[np.int64]) -> NDArray[Any]:
    """Return integers in the narrowest type that holds all of them, 16 bits at least."""
    low, high = (int(flags.min()), int(flags.max())) if flags.size else (0, 0)
    for dtype in (np.uint16, np.int16, np.uint32, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return flags.astype(dtype)
    return flags


def bits_within(
    mask: Mask | None, x: NDArray[np.float64], y: NDArray[np.float64], radius_px: float
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return the mask bits of the pixels around positions, and of the pixels at them.

    Parameters
    ----------
    mask : (ny, nx) ndarray of uint32, or None for a frame without a mask
    x, y : (n,) ndarray
        The positions; NaN and positions outside the frame have no bits.
    radius_px : float
        Radius within which the centre of a pixel must lie; the nearest pixel always counts.

    Returns
    -------
    around, at : (n,) ndarray of uint32
    """
    around, at = np.zeros(len(x), np.uint32), np.zeros(len(x), np.uint32)
    if mask is None or not len(x):
        return around, at
    ny, nx = mask.shape
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    cx, cy = np.rint(x[known]).astype(np.int64), np.rint(y[known]).astype(np.int64)
    for dx, dy in _offsets(radius_px):
        i, j = cx + dx, cy + dy
        inside = (i >= 0) & (j >= 0) & (i < nx) & (j < ny)
        if dx or dy:
            inside &= np.hypot(i - x[known], j - y[known]) <= radius_px
        bits = mask[j[inside], i[inside]]
        around[known[inside]] |= bits
        if not (dx or dy):
            at[known[inside]] = bits
    return around, at


def _offsets(radius_px: float) -> Iterable[tuple[int, int]]:
    """Return the offsets of all pixels that may be within a radius of a position in the centre.

    0.7072 is half the diagonal of a pixel, rounded up.
    """
    reach = int(np.ceil(radius_px + 0.5))
    steps = range(-reach, reach + 1)
    return [(i, j) for j in steps for i in steps if np.hypot(i, j) <= radius_px + 0.7072]
