"""How far apart an exposure's solutions put the same pixels."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fits.wcsread import sky_of_pixels
from cynosure.ground import sky
from cynosure.ground.errors import CynosureError, SettingError
from cynosure.solutions.files.compare import chip_shape
from cynosure.solutions.files.headerlet import Headerlet, Target
from cynosure.solutions.files.headerletio import parse_headerlet
from cynosure.solutions.store.entry import FITS
from cynosure.solutions.store.records import plain_headerlet
from cynosure.solutions.store.schema import Stored
from cynosure.solutions.store.store import Store

__all__ = ["Difference", "differences"]

Floats = NDArray[np.float64]
Shape = tuple[int, int]  # rows and columns
Chip = tuple[Target, Shape]

NX, NY = 9, 7  # points over a chip
MAX_CHIPS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """How far one solution puts the pixels from where the reference does.

    Attributes
    ----------
    content_sha256 : str
        The solution.
    field_mas : (n_chips, NY, NX, 2) ndarray
        Shift on the sky of a grid of pixels, east (with cos dec) and north; NaN where unknown.
    """

    content_sha256: str
    field_mas: Floats

    @property
    def shift_mas(self) -> tuple[float, float]:
        """The mean shift, east and north."""
        good = self.field_mas.reshape(-1, 2)
        good = good[np.isfinite(good).all(axis=1)]
        return (float(good[:, 0].mean()), float(good[:, 1].mean())) if len(good) else NO_SHIFT

    @property
    def rest_mas(self) -> float:
        """What differs beyond the shift: root mean square, both axes together."""
        rest = self.field_mas.reshape(-1, 2) - self.shift_mas
        squares = (rest**2).sum(axis=1)
        squares = squares[np.isfinite(squares)]
        return float(np.sqrt(squares.mean())) if len(squares) else float("nan")

    @property
    def distance_mas(self) -> float:
        """Length of the mean shift."""
        return float(np.hypot(*self.shift_mas))

    @property
    def apart_mas(self) -> float:
        """How far the chips have moved against each other: the largest distance of their shifts."""
        means = [chip[np.isfinite(chip).all(axis=-1)].mean(axis=0) for chip in self.field_mas
                 if np.isfinite(chip).all(axis=-1).any()]
        return max((float(np.hypot(*(a - b))) for a in means for b in means), default=float("nan"))

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, JSON-safe."""
        east, north = (None if np.isnan(v) else v for v in self.shift_mas)
        rest, apart = (None if np.isnan(v) else v for v in (self.rest_mas, self.apart_mas))
        return {
            "content_sha256": self.content_sha256, "east_mas": east, "north_mas": north,
            "rest_mas": rest, "chips_apart_mas": apart,
        }


NO_SHIFT = (float("nan"), float("nan"))


@dataclass(frozen=True, slots=True)
class _File:
    """A solution's file; the content stands for all of it."""

    content: str
    media: str = field(compare=False)
    payload: bytes = field(compare=False, repr=False)

    def opened(self) -> tuple[Headerlet, Mapping[Target, Shape | None]]:
        """Return the WCSs of the chips, and their sizes as far as they are stated."""
        if self.media == FITS:
            return parse_headerlet(self.payload, self.content), {}
        return plain_headerlet(self.payload.decode("utf-8"), self.content)


def differences(store: Store, solutions: Sequence[Stored], reference: str) -> list[Difference]:
    """Compare solutions with one of them, on the same pixels of the same chips.

    The chips' sizes are those of the reference: headerlets do not state them, and two solutions
    that reckon them from their reference points may not agree. What cannot be evaluated has no
    place to compare.
    """
    contents = [s.content_sha256 for s in solutions]
    media = {s.content_sha256: s.media for s in solutions}
    if reference not in media:
        return []
    kept = {c: _File(c, media[c], payload) for c, payload in store.payloads(contents)}
    chips = _chips(kept[reference])
    truth = _sky(kept[reference], chips)
    out = []
    for content in contents:
        ra, dec = np.moveaxis(_sky(kept[content], chips), -1, 0)
        ra0, dec0 = truth[..., 0], truth[..., 1]
        turn = (ra - ra0 + 180.0) % 360.0 - 180.0
        east = turn * np.cos(np.radians(dec0))
        out.append(Difference(content, np.stack([east, dec - dec0], axis=-1) * sky.MAS_PER_DEG))
    return out


def _chips(file: _File) -> tuple[Chip, ...]:
    chips: list[Chip] = []
    try:
        headerlet, shapes = file.opened()
        for chip in sorted(headerlet.chips, key=lambda c: c.version)[:MAX_CHIPS]:
            with contextlib.suppress(SettingError):  # its size cannot be told
                shape = chip_shape(chip, headerlet, shapes.get(chip.target))
                chips.append((chip.target, shape))
    except CynosureError:
        return ()
    return tuple(chips)


@functools.lru_cache(maxsize=256)
def _sky(file: _File, chips: tuple[Chip, ...]) -> Floats:
    """Return right ascension and declination of a grid of pixels of every chip."""
    out = np.full((len(chips), NY, NX, 2), np.nan)
    try:
        headerlet, _ = file.opened()
        for k, (target, shape) in enumerate(chips):
            if headerlet.chip(target) is None:
                continue
            with contextlib.suppress(CynosureError):
                wcs = headerlet.wcs(target, shape=shape)
                x, y = np.meshgrid(
                    np.linspace(0, shape[1] - 1, NX), np.linspace(0, shape[0] - 1, NY)
                )
                out[k] = np.stack(sky_of_pixels(wcs, x, y), axis=-1)
    except CynosureError:
        return out
    return out
