"""Maps other than polynomials: offsets at the nodes of a grid, and offsets by colour."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.geometry.pixelmap import PixelMap, inverted, points
from cynosure.ground.errors import SettingError

__all__ = ["Chromatic", "LookupTable"]

Floats = NDArray[np.float64]
Pair = tuple[Floats, Floats]


@dataclass(frozen=True, slots=True, eq=False)
class LookupTable:
    """Offsets at the nodes of a grid, bilinear between them, constant beyond the outermost.

    The lookup tables of FITS (CPDIS, D2IMDIS) are these, and :meth:`of_fits` reads one.

    Attributes
    ----------
    values : (2, ny, nx) ndarray
        What is added to x and to y at the nodes, px.
    x0, y0 : float
        Pixel of the first node, 0-based.
    step_x, step_y : float
        Pixels from node to node.
    """

    values: Floats
    x0: float
    y0: float
    step_x: float
    step_y: float

    @classmethod
    def of_fits(cls, table_x: Any, table_y: Any) -> LookupTable:
        """Return the tables of x and y of an astropy WCS (``wcs.cpdis1, wcs.cpdis2``) as one map.

        Raises
        ------
        SettingError
            If there is neither, or their nodes differ.
        """
        given = [t for t in (table_x, table_y) if t is not None]
        grids = {(t.data.shape, *t.crpix, *t.crval, *t.cdelt) for t in given}
        if len(grids) != 1:
            raise SettingError(
                "two lookup tables with the same nodes are expected, not {count}",
                count=len(grids), hint="Take the WCS whole, as a FitsMap.",
            )
        t = given[0]
        values = [np.zeros(t.data.shape) if u is None else u.data for u in (table_x, table_y)]
        step = np.asarray(t.cdelt, dtype=float)
        # Node CRPIX, counted from 1, lies at pixel CRVAL, counted from 1.
        first = np.asarray(t.crval) - 1.0 + (1.0 - np.asarray(t.crpix)) * step
        return cls(np.array(values, dtype=float), *first, *step)

    @property
    def parameters(self) -> Floats:
        """The values at the nodes as one vector."""
        return self.values.ravel()

    def with_parameters(self, values: Floats) -> LookupTable:
        """Return the table with other values."""
        return replace(self, values=np.array(values, dtype=float).reshape(self.values.shape))

    def _cells(self, x: Floats, y: Floats) -> tuple[Floats, ...]:
        """Return the cell (j, i) of points, where they lie in it (0 to 1), and if it moves them."""
        ny, nx = self.values.shape[1:]
        out = []
        for at, start, step, n in ((y, self.y0, self.step_y, ny), (x, self.x0, self.step_x, nx)):
            place = np.nan_to_num((at - start) / step)
            clipped = np.clip(place, 0.0, n - 1.0)
            cell = np.minimum(clipped.astype(np.int64), max(n - 2, 0))
            out += [cell, clipped - cell, (place == clipped) & (n > 1)]
        j, v, in_y, i, u, in_x = out
        return j, i, v, u, in_y, in_x

    def _corners(self, j: Any, i: Any) -> list[Floats]:
        """Return the values (2, ...) at the corners of cells: 00, 01 (x + 1), 10, 11."""
        ny, nx = self.values.shape[1:]
        j1, i1 = np.minimum(j + 1, ny - 1), np.minimum(i + 1, nx - 1)
        return [self.values[:, a, b] for a in (j, j1) for b in (i, i1)]

    def pixel_to_plane(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Pair:
        """Return the points with the table's offsets added."""
        x, y = points(x, y)
        j, i, v, u, _, _ = self._cells(x, y)
        a, b, c, d = self._corners(j, i)
        dx, dy = (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * c + u * d)
        return x + dx, y + dy

    def plane_to_pixel(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Pair:
        """Return the points whose images are given."""
        target = points(x, y)
        return inverted(
            lambda x, y, rows: self.pixel_to_plane(x, y),
            lambda x, y, rows: self.jacobian(x, y), target, target,
        )

    def jacobian(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Floats:
        """Return the derivatives (..., 2, 2); at a node those of the cell that begins there."""
        x, y = points(x, y)
        j, i, v, u, in_y, in_x = self._cells(x, y)
        a, b, c, d = self._corners(j, i)
        by_x = ((1 - v) * (b - a) + v * (d - c)) * in_x / self.step_x
        by_y = ((1 - u) * (c - a) + u * (d - b)) * in_y / self.step_y
        return np.eye(2) + np.moveaxis(np.array([by_x, by_y]), (0, 1), (-1, -2))

    def derivatives(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Floats:
        """Return the derivatives (..., 2, 2 ny nx): the weights of the nodes."""
        x, y = points(x, y)
        j, i, v, u, _, _ = self._cells(x, y)
        _, ny, nx = self.values.shape
        weights = np.zeros((x.size, ny * nx))
        rows = np.arange(x.size)
        for a, wy in ((j, 1 - v), (np.minimum(j + 1, ny - 1), v)):
            for b, wx in ((i, 1 - u), (np.minimum(i + 1, nx - 1), u)):
                np.add.at(weights, (rows, np.ravel(a * nx + b)), np.ravel(wy * wx))
        out = np.zeros((x.size, 2, 2, ny * nx))
        out[:, 0, 0] = out[:, 1, 1] = weights
        return out.reshape(*x.shape, 2, 2 * ny * nx)


@dataclass(frozen=True, slots=True, eq=False)
class Chromatic:
    """Another map's offset times the star's colour: ``x' = x + (c - c0) (f(x) - x)``.

    A shift under it is differential refraction, a linear map lateral colour.

    Attributes
    ----------
    step : PixelMap
        f.
    reference_color : float
        c0, mag; stars of unknown colour (NaN, None) are taken to have it.
    """

    step: PixelMap
    reference_color: float

    @property
    def parameters(self) -> Floats:
        """Those of f."""
        return self.step.parameters

    def with_parameters(self, values: Floats) -> Chromatic:
        """Return the map with other parameters of f."""
        return replace(self, step=self.step.with_parameters(values))

    def _excess(self, x: Floats, color: ArrayLike | None) -> Floats:
        if color is None:
            return np.zeros(x.shape)
        excess = np.asarray(color, dtype=float) - self.reference_color
        return np.broadcast_to(np.nan_to_num(excess), x.shape)

    def pixel_to_plane(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Pair:
        """Return the image of points for their colour."""
        x, y = points(x, y)
        fx, fy = self.step.pixel_to_plane(x, y)
        c = self._excess(x, color)
        return x + c * (fx - x), y + c * (fy - y)

    def plane_to_pixel(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Pair:
        """Return the points whose images are given."""
        target = points(x, y)
        c = np.ravel(self._excess(target[0], color)) + self.reference_color
        return inverted(
            lambda x, y, rows: self.pixel_to_plane(x, y, c[rows]),
            lambda x, y, rows: self.jacobian(x, y, c[rows]), target, target,
        )

    def jacobian(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Floats:
        """Return the derivatives (..., 2, 2)."""
        x, y = points(x, y)
        c = self._excess(x, color)[..., None, None]
        return np.eye(2) + c * (self.step.jacobian(x, y) - np.eye(2))

    def derivatives(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Floats:
        """Return the derivatives (..., 2, p) by the parameters."""
        x, y = points(x, y)
        return self._excess(x, color)[..., None, None] * self.step.derivatives(x, y)
