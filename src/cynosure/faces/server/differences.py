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

__all__ = ["Common", "Difference", "differences"]

Floats = NDArray[np.float64]
Shape = tuple[int, int]  # rows and columns
Chip = tuple[Target, Shape]

# Points over a chip, along x and y: 63 arrows to a picture.
NX, NY = 9, 7
# Chips that are compared; DECam has 62.
MAX_CHIPS = 64
# Points that a linear map of the plane needs.
MIN_POINTS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Common:
    """What all chips have done together: one linear map of the sky about the centre of the field.

    Attributes
    ----------
    rotation_mas, scale_mas, skew_mas : float
        What turning (north through east), growing, and everything else that is linear move a point
        at the edge of the field, the one furthest from its centre.
    chips_mas : (n_chips, 2) ndarray
        How far the middle of each chip is, east and north, from where shift and map put it; NaN
        where unknown. All zero for one chip.
    """

    rotation_mas: float
    scale_mas: float
    skew_mas: float
    chips_mas: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """How far one solution puts the pixels from where the reference does.

    Attributes
    ----------
    content_sha256 : str
        The solution.
    field_mas : (n_chips, NY, NX, 2) ndarray
        Shift on the sky of a grid of pixels, east and north at the centre of the field; NaN where
        unknown.
    place_mas : (n_chips, NY, NX, 2) ndarray
        Where the reference has those pixels, on the plane that touches the sky there.
    """

    content_sha256: str
    field_mas: Floats
    place_mas: Floats

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

    def common(self) -> Common:
        """Return what is common to all chips, and what each has done beside that.

        The linear map is fitted within the chips, each of which has a shift of its own: so a
        rotation or a scale that all share is told from chips that were moved against each other.
        """
        n_chips, n_points = len(self.field_mas), int(np.prod(self.field_mas.shape[1:-1]))
        moved: Any = self.field_mas.reshape(n_chips, n_points, 2)
        place: Any = self.place_mas.reshape(n_chips, n_points, 2)
        good: Any = np.isfinite(moved + place).all(axis=2)
        apart = np.full((len(moved), 2), np.nan)
        used = [k for k in range(len(moved)) if good[k].sum() >= MIN_POINTS]
        if not used:
            return Common(float("nan"), float("nan"), float("nan"), apart)
        middles = [(place[k, good[k]].mean(axis=0), moved[k, good[k]].mean(axis=0)) for k in used]
        inner = [np.concatenate([v[k, good[k]] - m[i] for k, m in zip(used, middles)])
                 for i, v in enumerate((place, moved))]
        matrix = np.linalg.lstsq(inner[0], inner[1], rcond=None)[0].T  # moved = matrix @ place
        centers, shifts = (np.array([m[i] for m in middles]) for i in (0, 1))
        rest = shifts - centers @ matrix.T
        apart[used] = rest - rest.mean(axis=0)
        everywhere = np.concatenate([place[k, good[k]] for k in used])
        reach = float(np.linalg.norm(everywhere - everywhere.mean(axis=0), axis=1).max())
        # A rotation from north through east takes (east, north) = (0, 1) to (+, 1).
        turn, grow = (matrix[0, 1] - matrix[1, 0]) / 2.0, (matrix[0, 0] + matrix[1, 1]) / 2.0
        skew = np.hypot(matrix[0, 0] - matrix[1, 1], matrix[0, 1] + matrix[1, 0]) / 2.0
        return Common(float(turn) * reach, float(grow) * reach, float(skew) * reach, apart)

    @property
    def apart_mas(self) -> float:
        """How far two chips have moved against each other at most, beside what is common to all."""
        known = self.common().chips_mas
        known = known[np.isfinite(known).all(axis=1)]
        return max((float(np.hypot(*(a - b))) for a in known for b in known), default=float("nan"))

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, JSON-safe."""
        common = self.common()
        east, north = self.shift_mas
        numbers = {
            "east_mas": east, "north_mas": north, "rest_mas": self.rest_mas,
            "rotation_mas": common.rotation_mas, "scale_mas": common.scale_mas,
            "skew_mas": common.skew_mas, "chips_apart_mas": self.apart_mas,
        }
        safe = {k: v if np.isfinite(v) else None for k, v in numbers.items()}
        return {"content_sha256": self.content_sha256, **safe}


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
    center = _center(truth)
    place = _plane_mas(truth, center)
    return [
        Difference(c, _plane_mas(_sky(kept[c], chips), center) - place, place) for c in contents
    ]


def _center(places: Floats) -> tuple[float, float]:
    """Return the mean direction of the places that are known; (0, 0) where there is none."""
    good = places.reshape(-1, 2)
    good = good[np.isfinite(good).all(axis=1)]
    if not len(good):
        return 0.0, 0.0
    ra, dec = sky.radec(sky.unit_vectors(good[:, 0], good[:, 1]).sum(axis=0))
    return float(ra), float(dec)


def _plane_mas(places: Floats, center: tuple[float, float]) -> Floats:
    """Return places on the plane that touches the sky at a centre, east and north in mas.

    On one plane shifts add up wherever the field lies, also around a pole and across 0h.
    """
    return np.stack(sky.project(places[..., 0], places[..., 1], *center), -1) * sky.MAS_PER_DEG


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
