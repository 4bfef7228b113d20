"""The sky background and its noise, on a mesh.

The frame is cut into cells. In each, a staggered sample of the pixels is clipped around its
median at three standard deviations until it is stable; of all the pixels within those bounds the
level is Pearson's estimate of the mode, ``2.5 median - 1.5 mean``, or the median where stars skew
the cell so much that the estimate would overshoot (Bertin & Arnouts 1996). Cells without enough
pixels take the value of their neighbours. A 3 x 3 median removes cells that contain a bright star
or a knot of a nebula. Between the centres of the cells the level is interpolated bicubically and
the noise, which may not overshoot, bilinearly; outside the outermost centres the level is
extrapolated linearly. Where the level changes within a cell by as much as the noise, both are
measured again after subtracting it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.data.frame import Frame
from cynosure.data.mask import DETECTION, Purpose
from cynosure.ground.errors import ImageError
from cynosure.ground.settings import Range, Unit
from cynosure.ground.threads import share
from cynosure.pixels import kernels

__all__ = ["Background", "estimate_background", "plain_pixels", "rounding_noise"]

NO_MASK = np.zeros((0, 0), dtype=bool)

# Layout that the compiled loops expect (contiguous, writable, aligned); another layout would be
# another numba type, and compiled again.
PLAIN: tuple[Literal["C", "W", "A"], ...] = ("C", "W", "A")

# Pixels of a cell that are sampled for the clipping bounds: they give the standard deviation to
# 1 / sqrt(2 n) = 2 %, which hardly moves a bound of three standard deviations.
SAMPLE_PER_CELL = 1024

# A cell with a smaller share of usable pixels takes the value of its neighbours: what is left of it
# is mostly the surroundings of masked objects.
LEAST_USABLE = 0.3

# The sky is measured again when its level changes by more than STEEP times its noise from one cell
# to the next in more than STEEP_PART of the frame. At 0.5 the slope raises the standard deviation
# within a cell by 0.5^2 / 24 = 1 %.
STEEP, STEEP_PART = 0.5, 0.2

# A sky with more distinct values than this between its quantiles is not limited by digitisation.
FEW_STEPS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """Level and noise of the sky over a frame.

    Attributes
    ----------
    level, sigma : (m, n) ndarray of float32
        One value for each cell of the mesh: background and its standard deviation, ADU.
    shape : tuple of int
        Rows and columns of the frame.
    """

    level: NDArray[np.float32]
    sigma: NDArray[np.float32]
    shape: tuple[int, int]

    def rows(self, first: int, last: int) -> NDArray[np.float32]:
        """Return the level on the rows first … last, (last - first, nx)."""
        out = np.empty((last - first, self.shape[1]), dtype=np.float32)
        kernels.mesh_rows(self.level, *self.shape, first, 0, True, out)
        return out

    def level_at(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        """Return the level at pixel positions."""
        return self._at(self.level, x, y, True)

    def sigma_at(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        """Return the noise at pixel positions."""
        return self._at(self.sigma, x, y, False)

    def _at(
        self, mesh: NDArray[np.float32], x: ArrayLike, y: ArrayLike, cubic: bool
    ) -> NDArray[np.float64]:
        x = np.atleast_1d(np.asarray(x, dtype=float))
        y = np.atleast_1d(np.asarray(y, dtype=float))
        out = np.empty(x.size)
        kernels.mesh_at(mesh, *self.shape, x, y, cubic, out)
        return out


def plain_pixels(
    frame: Frame, purpose: Purpose = DETECTION
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return data and the mask of unusable pixels, in the layout that the compiled loops expect.

    The mask is an empty array where the frame has none.
    """
    data, unusable = np.require(frame.data, np.float32, PLAIN), frame.unusable(purpose)
    return data, NO_MASK if unusable is None else np.require(unusable, bool, PLAIN)


def estimate_background(
    frame: Frame,
    *,
    cell_px: Annotated[int, Unit("px"), Range(8, 4096)] = 128,
    filter_cells: Annotated[int, Unit("cells"), Range(1, 15)] = 3,
    threads: int = 1,
) -> Background:
    """Estimate the background and its noise.

    Parameters
    ----------
    frame : Frame
        The pixels; NaN and masked pixels are left out.
    cell_px : int
        Size of a cell. It should be several times as large as the largest object.
    filter_cells : int
        Width of the median filter over the mesh; 1 is none.
    threads : int
        Threads that share the work; the result does not depend on it.

    Raises
    ------
    ImageError
        If no cell has enough usable pixels, the pixels have no noise, or the gain is not positive.
    """
    if not frame.gain_e_adu > 0:
        raise ImageError(
            image=frame.name, reason=f"a gain of {frame.gain_e_adu} electrons per ADU is invalid",
            hint="Give a positive gain; with 1, it is measured from the noise of the stars.",
        )
    sky = _measured(frame, cell_px, filter_cells, threads)
    if _steep(sky):
        rest = np.empty(frame.shape, dtype=np.float32)
        for row in range(0, len(rest), 512):
            block = slice(row, min(row + 512, len(rest)))
            rest[block] = frame.data[block]
            rest[block] -= sky.rows(block.start, block.stop)
        more = _measured(frame.replaced(data=rest), cell_px, filter_cells, threads)
        sigma = np.maximum(more.sigma, rounding_noise(frame.data))
        sky = Background(sky.level + more.level, sigma, sky.shape)
    return sky


def _steep(sky: Background) -> bool:
    """Say whether the level changes from cell to cell by much of its noise (see `STEEP`)."""
    level, sigma = sky.level.astype(float), sky.sigma.astype(float)
    steps = [np.abs(np.diff(level, axis=a)).ravel() for a in (0, 1)]
    pairs = ((sigma[1:], sigma[:-1]), (sigma[:, 1:], sigma[:, :-1]))
    noise = [np.minimum(a, b).ravel() for a, b in pairs]
    steep = np.concatenate(steps) > STEEP * np.concatenate(noise)
    return bool(steep.size > 0 and steep.mean() > STEEP_PART)


def _measured(frame: Frame, cell_px: int, filter_cells: int, threads: int) -> Background:
    """Measure level and noise of every cell."""
    ny, nx = frame.shape
    rows, columns = max(round(ny / cell_px), 1), max(round(nx / cell_px), 1)
    level = np.empty((rows, columns), dtype=np.float32)
    sigma = np.empty_like(level)
    cell = max(-(-ny // rows), -(-nx // columns))
    step = max(1, int(cell / SAMPLE_PER_CELL**0.5))
    data, mask = plain_pixels(frame)
    values = np.empty((rows * columns, (cell // step + 2) ** 2), dtype=np.float32)

    def work(j: int, least: float = LEAST_USABLE) -> None:
        part = values[j * columns : (j + 1) * columns]
        count, total = np.empty(columns, dtype=np.int64), np.empty(columns, dtype=np.int64)
        kernels.sample_cells(data, mask, step, j, j + 1, rows, columns, part, count, total)
        part.sort(axis=1)
        low, high, pivot = np.empty((3, columns), dtype=np.float32)
        few, sums = np.empty(columns, dtype=bool), np.empty((columns, 4))
        kernels.clip_cells(part, count, total, least, low, high, pivot, few)
        kernels.sum_cells(data, mask, j, j + 1, rows, columns, low, high, pivot, sums)
        level[j], sigma[j] = _level_and_noise(sums, low, high, pivot, few)

    share(work, range(rows), threads)
    if not np.isfinite(level).any():  # no cell has enough usable pixels: take any number
        share(partial(work, least=0.0), range(rows), threads)
    if not np.isfinite(level).any():
        raise ImageError(
            image=frame.name, reason="no usable pixels: no background can be measured",
            hint="Check the image and its mask: all pixels, or all but a few, are NaN or masked.",
        )
    sigma = np.maximum(sigma, rounding_noise(values))
    if not (sigma > 0).any():
        raise ImageError(
            image=frame.name, reason="the pixels have no noise: no background can be measured",
            hint="Check the image: all pixels have the same value.",
        )
    # A constant patch keeps its level and takes the noise of its neighbours.
    level, sigma = _fill(level, np.isfinite(level)), _fill(sigma, sigma > 0)
    level, sigma = _smoothed(level, filter_cells, True), _smoothed(sigma, filter_cells, False)
    return Background(level, sigma, (ny, nx))


def _level_and_noise(
    sums: NDArray[np.float64], low: NDArray[np.float32], high: NDArray[np.float32],
    pivot: NDArray[np.float32], few: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return level and noise of cells from their sums (see :func:`kernels.sum_cells`)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        n, below, s1, s2 = sums.T
        mean = s1 / n
        # A Gaussian clipped at 3 sigma has a standard deviation of 1 / 1.0136 sigma.
        std = 1.0136 * np.sqrt(np.maximum(s2 / n - mean**2, 0.0))
        # From the pivot to the median: a quantile of the clipped Gaussian (its share 0.9973), by
        # the series of the inverse error function to the fifth order.
        z = 2.0 * 0.9973 * (0.5 - below / n)
        series = z + np.pi * z**3 / 12.0 + 7.0 * np.pi**2 * z**5 / 480.0
        median = std * np.sqrt(np.pi / 2.0) * series
        mode = np.where(np.abs(mean - median) > 0.3 * std, median, 2.5 * median - 1.5 * mean)
        unit = high.astype(float) - low
        unit[unit == 0] = 1.0
    return pivot + np.where(few, mean, mode) * unit, std * unit


def rounding_noise(values: NDArray[np.float32]) -> np.float32:
    """Return the rounding noise, step / sqrt(12), where the sky spans few digital steps, else 0."""
    # A sample of 50,000 pixels; between the quantiles 0.05 and 0.85 they are sky and not stars.
    step = max(1, round((values.size / 50_000) ** 0.5))
    sample = values[::step, ::step].ravel()
    sample = sample[np.isfinite(sample)]
    low, high = np.quantile(sample, [0.05, 0.85]) if len(sample) else (0.0, 0.0)
    distinct = np.unique(sample[(sample >= low) & (sample <= high)])
    if not 2 <= len(distinct) <= FEW_STEPS:
        distinct = np.unique(sample) if len(distinct) == 1 else distinct[:1]
    return np.float32(np.diff(distinct).min() / 12.0**0.5) if len(distinct) > 1 else np.float32(0)


def _smoothed(mesh: NDArray[np.float32], cells: int, straight: bool) -> NDArray[np.float32]:
    """Return the running median of a mesh, extrapolated linearly, or as a constant, at its edge."""
    if cells < 2 or mesh.size == 1:
        return mesh
    before = cells // 2
    # Linear extrapolation keeps a gradient at the edge; the noise is held constant, so that it
    # stays positive.
    width = tuple((before, cells - 1 - before) if n > 1 else (0, 0) for n in mesh.shape)
    if straight:
        padded = np.pad(mesh, width, mode="reflect", reflect_type="odd")
    else:
        padded = np.pad(mesh, width, mode="edge")
    cells_y, cells_x = (cells if n > 1 else 1 for n in mesh.shape)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (cells_y, cells_x))
    return np.ascontiguousarray(np.median(windows, axis=(2, 3)).astype(np.float32))


def _fill(mesh: NDArray[np.float32], good: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give cells without a value that of the nearest cell with one."""
    if good.all():
        return mesh
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(~good, return_distances=False, return_indices=True)
    return np.ascontiguousarray(mesh[tuple(nearest)])
