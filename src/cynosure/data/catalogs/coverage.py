"""The coverage of a catalogue: a part of the sky as ranges of HEALPix cells."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.ground import sky

__all__ = ["Coverage", "distinct"]


class Coverage:
    """A part of the sky as ranges of HEALPix cells of order 29.

    Attributes
    ----------
    ranges : (k, 2) ndarray of int64
        [first, last), sorted and apart.
    """

    # A cell with a star counts as covered. Cells are so large that the mean cell has this many
    # stars: an empty cell inside the field then has a probability of e^-24.
    STARS_PER_CELL = 24
    MAX_RANGES = 2000  # cells become larger until there are at most so many: 40 kB of text

    def __init__(self, ranges: NDArray[np.int64]):
        self.ranges = np.asarray(ranges, dtype=np.int64).reshape(-1, 2)

    @classmethod
    def of_cells(cls, cells29: NDArray[np.int64]) -> Coverage:
        """Return the coverage of stars in cells of order 29."""
        return cls.of_counts(distinct(cells29 >> (2 * (sky.MAX_ORDER - 12))), len(cells29))

    @classmethod
    def of_counts(cls, cells: NDArray[np.int64], n_stars: int) -> Coverage:
        """Return the coverage of a number of stars in some cells of order 12."""
        order = 12
        mean = min(cls.STARS_PER_CELL, max(1.0, n_stars / 8))
        while order > 0 and n_stars < mean * len(cells):
            cells, order = distinct(cells >> 2), order - 1
        found = cls.of_order(cells, order)
        while len(found.ranges) > cls.MAX_RANGES:
            cells, order = distinct(cells >> 2), order - 1
            found = cls.of_order(cells, order)
        return found

    @classmethod
    def of_order(cls, cells: NDArray[np.int64], order: Any) -> Coverage:
        """Return the coverage of cells of one order, or each of its own order."""
        shift = 2 * (sky.MAX_ORDER - np.asarray(order, dtype=np.int64))
        cells = np.asarray(cells, dtype=np.int64)
        return cls(_merged(np.stack([cells << shift, (cells + 1) << shift], axis=1)))

    @classmethod
    def from_text(cls, text: str) -> Coverage:
        """Read what :meth:`to_text` wrote: a MOC in ASCII, of one order or several."""
        ranges = []
        order = 0
        for token in text.replace(",", " ").split():
            if "/" in token:
                head, token = token.split("/", 1)
                order = int(head)
            if token:
                first, _, last = token.partition("-")
                shift = 2 * (sky.MAX_ORDER - order)
                ranges.append((int(first) << shift, (int(last or first) + 1) << shift))
        return cls(_merged(np.array(ranges, dtype=np.int64).reshape(-1, 2)))

    def to_text(self) -> str:
        """Write it as a MOC in ASCII (IVOA MOC 2.0, 4.2.2), of the one order that holds it."""
        order = sky.MAX_ORDER
        while order > 0 and not np.any(self.ranges & ((4 << (2 * (sky.MAX_ORDER - order))) - 1)):
            order -= 1
        shift = 2 * (sky.MAX_ORDER - order)
        spans = [(int(a) >> shift, (int(b) >> shift) - 1) for a, b in self.ranges]
        return f"{order}/" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)

    @property
    def sky_fraction(self) -> float:
        """The covered part of the whole sky."""
        return float((self.ranges[:, 1] - self.ranges[:, 0]).sum() / (12 << 58))

    def holds(self, cells29: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say which cells of order 29 are covered."""
        index = np.searchsorted(self.ranges[:, 0], cells29, side="right") - 1
        inside = index >= 0
        inside[inside] = cells29[inside] < self.ranges[index[inside], 1]
        return inside

    def fraction(self, ra_deg: float, dec_deg: float, radius_deg: float) -> float:
        """Return the part of a circle that is covered, from 1500 points spread evenly in it."""
        # Fibonacci spiral: equal areas, no random numbers (Vogel 1979, Math. Biosci. 44, 179). 1500
        # points give the fraction to about a per cent.
        k = np.arange(1500) + 0.5
        height = 2.0 * math.sin(math.radians(radius_deg) / 2) ** 2 * k / len(k)  # 1 - cos(r)
        sine = np.sqrt(height * (2.0 - height))
        angle = k * math.pi * (3.0 - math.sqrt(5.0))
        east, north = sky.east_north(ra_deg, dec_deg)
        points = (
            (1.0 - height)[:, None] * sky.unit_vectors(ra_deg, dec_deg)
            + (sine * np.cos(angle))[:, None] * east + (sine * np.sin(angle))[:, None] * north
        )
        return float(self.holds(sky.healpix_cell(*sky.radec(points))).mean())


def distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the distinct values, sorted; for millions of values faster than ``np.unique``."""
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def _merged(ranges: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(ranges) == 0:
        return ranges.reshape(0, 2)
    ranges = ranges[np.lexsort((ranges[:, 1], ranges[:, 0]))]
    ends = np.maximum.accumulate(ranges[:, 1])
    starts = np.flatnonzero(np.concatenate([[True], ranges[1:, 0] > ends[:-1]]))
    last = np.concatenate([starts[1:] - 1, [len(ends) - 1]])
    return np.stack([ranges[starts, 0], ends[last]], axis=1)
