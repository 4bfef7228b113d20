"""From expected electrons to the values of a file: sky, noise, saturation, artefacts.

The order is that of a detector: light (stars, sky, trails) is counted with Poisson noise, cosmic
rays and hot pixels add charge, full wells bleed, the amplifier adds read noise, and the converter
rounds and clips.
"""

from __future__ import annotations

import math
from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.ground.cache import compiled
from cynosure.ground.numeric import poly_exponents
from cynosure.products.scene import Artefacts, Detector

__all__ = [
    "PixelTruth",
    "add_artefacts_into",
    "add_sky_into",
    "blank_blocks_into",
    "bleed_into",
    "count_into",
    "digitise",
    "draw_trail_into",
    "kill_columns_into",
    "saturation_adu",
    "sky_level",
    "sky_values",
]

Floats = NDArray[np.float64]
Pixels = NDArray[np.float32]

# Below this mean counts are drawn from the Poisson distribution itself; above it from its
# Cornish-Fisher expansion, which is the same to 1e-3 of its standard deviation.
EXACT_POISSON_BELOW = 30.0
ROWS = 256  # rows that are processed at a time, to limit the memory


class PixelTruth(IntFlag):
    """The defects of a pixel of a simulated frame."""

    SATURATED = 1  # at the full well
    COSMIC = 2
    HOT = 4
    BAD_COLUMN = 8
    TRAIL = 16
    MISSING = 32  # NaN, or zero in an integer file


TRAIL_BIT = int(PixelTruth.TRAIL)


def sky_values(detector: Detector, u: Floats, v: Floats) -> Floats:
    """Return the sky background in electrons at places of a chip (-1 to 1)."""
    value = np.ones(np.broadcast(u, v).shape)
    for k, term in enumerate(detector.sky_terms):
        i, j = _exponents(k)
        value = value + term * u**i * v**j
    return detector.sky_e * np.maximum(value, 0.0)


def _exponents(k: int) -> tuple[int, int]:
    degree = 0
    while (degree + 1) * (degree + 2) // 2 <= k:
        degree += 1
    i, j = poly_exponents(degree)[k]
    return int(i), int(j)


def add_sky_into(image: Pixels, detector: Detector) -> None:
    """Add the sky background, in electrons."""
    ny, nx = image.shape
    if not any(detector.sky_terms):
        image += np.float32(detector.sky_e)
        return
    # The polynomial as a product of matrices: powers of v, coefficients, powers of u.
    degree = max(sum(_exponents(k)) for k in range(len(detector.sky_terms)))
    coefficients = np.zeros((degree + 1, degree + 1))
    coefficients[0, 0] = 1.0
    for k, term in enumerate(detector.sky_terms):
        i, j = _exponents(k)
        coefficients[j, i] += term
    powers = np.arange(degree + 1)
    along_u = np.linspace(-1, 1, nx)[None, :] ** powers[:, None]
    rows = (detector.sky_e * coefficients @ along_u).astype(np.float32)
    along_v = (np.linspace(-1, 1, ny)[:, None] ** powers).astype(np.float32)
    for start in range(0, ny, ROWS):
        image[start : start + ROWS] += np.maximum(along_v[start : start + ROWS] @ rows, 0)


def count_into(image: Pixels, rng: np.random.Generator) -> None:
    """Replace expected electrons by counted ones: Poisson."""
    for start in range(0, len(image), ROWS):
        block = image[start : start + ROWS]
        normal = rng.standard_normal(block.shape, dtype=np.float32)
        low = block < EXACT_POISSON_BELOW
        exact = rng.poisson(np.maximum(block[low], 0.0)) if low.any() else None
        _counted(block, normal)
        if exact is not None:
            block[low] = exact


@compiled
def _counted(block, normal):  # type: ignore[no-untyped-def]
    """Turn means into Poisson counts by the Cornish-Fisher expansion of their quantiles.

    ``n = round(m + z sqrt(m) + (z^2 - 1) / 6 + (z - z^3) / (72 sqrt(m)))``: skewness
    ``1/sqrt(m)`` and kurtosis ``1/m`` of the Poisson distribution.
    """
    for j in range(block.shape[0]):
        for i in range(block.shape[1]):
            m = block[j, i]
            if m > 0:
                z = normal[j, i]
                root = np.sqrt(m)
                value = (
                    m + z * root + (z * z - 1) * np.float32(1 / 6) + z * (1 - z * z) / (72 * root)
                )
                block[j, i] = max(np.floor(value + np.float32(0.5)), np.float32(0))


def bleed_into(image: Pixels, full_well_e: float, bleeding: bool) -> None:
    """Limit pixels to the full well; half of the excess flows up its column, half down."""
    _bleed(image, np.float32(full_well_e), bleeding)


@compiled
def _bleed(image, full_well, bleeding):  # type: ignore[no-untyped-def]
    # One sweep over the rows for each direction, with the charge that moves in each column. The
    # first sweep does not change the pixels above the full well, so that the second finds them.
    ny, nx = image.shape
    for sweep in range(2 if bleeding else 1):
        down = sweep == 1 or not bleeding
        carried = np.zeros(nx)
        for row in range(ny):
            j = ny - 1 - row if down else row
            for i in range(nx):
                excess = image[j, i] - full_well
                if excess > 0:
                    carried[i] += 0.5 * excess
                    if down:
                        image[j, i] = full_well
                elif carried[i] > 0 and bleeding:
                    taken = min(-excess, carried[i])
                    image[j, i] += taken
                    carried[i] -= taken


def draw_trail_into(
    image: Pixels,
    truth: NDArray[np.uint8],
    rng: np.random.Generator,
    electrons: float,
    sigma_px: float,
) -> None:
    """Draw a straight trail across the whole frame: a Gaussian of width `sigma_px`."""
    ny, nx = image.shape
    angle = rng.uniform(0, np.pi)
    x, y = rng.uniform(0.15, 0.85) * nx, rng.uniform(0.15, 0.85) * ny
    c, s = np.cos(angle), np.sin(angle)
    _trail(image, truth, x, y, c, s, electrons, np.sqrt(sigma_px**2 + 1.0 / 12.0))


@compiled
def _trail(image, truth, x, y, c, s, electrons, sigma):  # type: ignore[no-untyped-def]
    ny, nx = image.shape
    peak = electrons / (np.sqrt(2 * np.pi) * sigma)
    for j in range(ny):
        # |across| < 5 sigma is a range of columns; a level trail has the whole row or none of it.
        i0, i1 = 0, nx - 1
        if abs(s) > 1e-6:
            middle, half = x + (j - y) * c / s, 5 * sigma / abs(s)
            i0, i1 = max(i0, math.ceil(middle - half)), min(i1, math.floor(middle + half))
        for i in range(i0, i1 + 1):
            across = (j - y) * c - (i - x) * s
            if abs(across) < 5 * sigma:
                if abs(across) < 3 * sigma:
                    truth[j, i] |= TRAIL_BIT
                image[j, i] += peak * np.exp(-0.5 * (across / sigma) ** 2)


def add_artefacts_into(
    image: Pixels, truth: NDArray[np.uint8], artefacts: Artefacts, rng: np.random.Generator
) -> None:
    """Add cosmic rays and hot pixels to counted electrons, and mark them in `truth`."""
    ny, nx = image.shape
    if artefacts.cosmic_rays:
        rows, columns, charge = _cosmic_rays(rng, artefacts, ny, nx)
        np.add.at(image, (rows, columns), charge.astype(np.float32))
        truth[rows, columns] |= np.uint8(PixelTruth.COSMIC)
    n_hot = rng.binomial(image.size, artefacts.hot_fraction) if artefacts.hot_fraction else 0
    rows, columns = rng.integers(ny, size=n_hot), rng.integers(nx, size=n_hot)
    charge = artefacts.hot_e * np.exp(np.log(3.0) * rng.standard_normal(n_hot))
    np.add.at(image, (rows, columns), charge.astype(np.float32))
    truth[rows, columns] |= np.uint8(PixelTruth.HOT)


def kill_columns_into(
    image: Pixels, truth: NDArray[np.uint8], artefacts: Artefacts, rng: np.random.Generator
) -> None:
    """Set the dead columns to zero charge."""
    columns = rng.integers(image.shape[1], size=artefacts.bad_columns)
    image[:, columns] = 0.0
    truth[:, columns] |= np.uint8(PixelTruth.BAD_COLUMN)


def blank_blocks_into(
    numbers: NDArray[Any], truth: NDArray[np.uint8], artefacts: Artefacts, rng: np.random.Generator
) -> None:
    """Blank blocks of a digitised frame: NaN, or zero where the type has no NaN."""
    ny, nx = numbers.shape
    size = artefacts.nan_block_px
    for _ in range(artefacts.nan_blocks):
        y, x = rng.integers(max(ny - size, 0) + 1), rng.integers(max(nx - size, 0) + 1)
        block = slice(y, y + size), slice(x, x + size)
        numbers[block] = np.nan if numbers.dtype.kind == "f" else 0
        truth[block] |= np.uint8(PixelTruth.MISSING)


def _cosmic_rays(
    rng: np.random.Generator, artefacts: Artefacts, ny: int, nx: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Return pixels and charges of straight tracks of exponential length."""
    n = artefacts.cosmic_rays
    length = rng.exponential(3.0, n) + 0.3
    angle = rng.uniform(0, np.pi, n)
    x, y = rng.uniform(-0.5, nx - 0.5, n), rng.uniform(-0.5, ny - 0.5, n)
    total = artefacts.cosmic_ray_e * np.exp(np.log(3.0) * rng.standard_normal(n))
    steps = np.maximum((length * 4).astype(int), 1)
    track = np.repeat(np.arange(n), steps)
    along = (np.arange(len(track)) - np.repeat(np.cumsum(steps) - steps, steps)) / 4.0
    columns = np.rint(x[track] + along * np.cos(angle[track])).astype(np.int64)
    rows = np.rint(y[track] + along * np.sin(angle[track])).astype(np.int64)
    inside = (rows >= 0) & (rows < ny) & (columns >= 0) & (columns < nx)
    return rows[inside], columns[inside], (total / steps)[track][inside]


def sky_level(detector: Detector) -> tuple[float, float]:
    """Return the mean value of the sky in the file, and its noise, in ADU."""
    sky = 0.0 if detector.sky_subtracted else detector.sky_e
    noise = np.sqrt(detector.sky_e + detector.read_noise_e**2)
    return sky / detector.gain_e_adu + detector.bias_adu, float(noise / detector.gain_e_adu)


def saturation_adu(detector: Detector) -> float:
    """Return the value at which the file's pixels saturate."""
    limit = np.inf
    if detector.dtype.startswith(("uint", "int")):
        limit = float(np.iinfo(detector.dtype).max)
    if detector.saturation_adu > 0:
        limit = min(limit, detector.saturation_adu)
    offset = detector.sky_e if detector.sky_subtracted else 0.0
    return float(
        min(limit, (detector.full_well_e - offset) / detector.gain_e_adu + detector.bias_adu)
    )


def digitise(image: Pixels, detector: Detector, rng: np.random.Generator) -> NDArray[Any]:
    """Add read noise and convert electrons to the values of the file; `image` is overwritten."""
    sky = detector.sky_e / detector.gain_e_adu if detector.sky_subtracted else 0.0
    integer = detector.dtype.startswith(("uint", "int"))
    low = float(np.iinfo(detector.dtype).min) if integer else -np.inf
    out = np.empty(image.shape, dtype=detector.dtype)
    for start in range(0, len(image), ROWS):
        block = image[start : start + ROWS]
        if detector.read_noise_e > 0:
            normal = rng.standard_normal(block.shape, dtype=np.float32)
            normal *= np.float32(detector.read_noise_e)
            block += normal
        _converted(
            block, out[start : start + ROWS], 1.0 / detector.gain_e_adu, detector.bias_adu - sky,
            low, saturation_adu(detector), integer,
        )  # fmt: skip
    return out


@compiled
def _converted(block, out, factor, offset, low, top, rounded):  # type: ignore[no-untyped-def]
    for j in range(block.shape[0]):
        for i in range(block.shape[1]):
            value = block[j, i] * factor + offset
            if rounded:
                value = np.floor(value + 0.5)
            out[j, i] = min(max(value, low), top)
