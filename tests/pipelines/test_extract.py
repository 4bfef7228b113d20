"""From a frame to sources whose positions are where the stars were planted."""

import numpy as np
import pytest

from cynosure.data.frame import Frame
from cynosure.pipelines.extract import extract_sources
from cynosure.pipelines.run import default_settings


def few_stars(seed, bright=((0.95, 0.45),), n=34, shape=(620, 340), sigma=0.85, sky=150.0):
    """Return a frame of few stars, some of which outshine the others, and where they are."""
    rng = np.random.default_rng(seed)
    ny, nx = shape
    x, y = rng.uniform(8, nx - 8, n), rng.uniform(8, ny - 8, n)
    flux = 10 ** rng.uniform(3.0, 3.7, n)
    x = np.append(x, [nx * u for u, _ in bright])
    y = np.append(y, [ny * v for _, v in bright])
    flux = np.append(flux, np.full(len(bright), 2.5e5))
    rows, columns = np.mgrid[0:ny, 0:nx]
    image = np.full(shape, sky)
    for k in range(len(x)):
        r2 = (columns - x[k]) ** 2 + (rows - y[k]) ** 2
        image += flux[k] / (2 * np.pi * sigma**2) * np.exp(-0.5 * r2 / sigma**2)
    noisy = rng.poisson(image) + rng.normal(0, 4, shape)
    frame = Frame(noisy.astype(np.float32), gain_e_adu=1.0, saturation_adu=1e6)
    return frame, x, y


@pytest.mark.parametrize(
    "bright",
    [[(0.95, 0.45)], [(0.5, 0.5)], [(0.95, 0.9), (0.7, 0.7)],
     [(0.9, 0.1), (0.75, 0.2), (0.1, 0.5)]],
)  # fmt: skip
@pytest.mark.parametrize(("n", "degree"), [(34, 1), (70, 2), (130, 3)])
def test_a_psf_that_varies_has_its_zero_point_everywhere(bright, n, degree):
    # A star that outshines the others, far from the middle of its part of the frame, once made
    # the rounds of the fit diverge: positions were off by a pixel where nobody could see it.
    frame, x, y = few_stars(n, bright, n)
    settings = default_settings().updated({"psf": {"degree": degree}}, "test")
    sources = extract_sources(frame, settings).sources
    good = sources[(sources["flags"] == 0) & (sources["snr"] > 15)]
    away = np.hypot(good["x"][:, None] - x, good["y"][:, None] - y)
    near, alone = away.argmin(axis=1), np.sort(away, axis=1)[:, 1] > 12.0
    good, near = good[alone], near[alone]
    assert len(good) > 0.6 * n
    dx, dy = good["x"] - x[near], good["y"] - y[near]
    assert np.hypot(dx, dy).max() < 0.5
    floor = 0.003  # the PSF of a few stars is not known better
    pulls = np.stack([dx / np.hypot(good["x_err"], floor), dy / np.hypot(good["y_err"], floor)])
    assert np.sqrt(np.mean(pulls**2)) < 1.35


@pytest.mark.parametrize("blank", ["every other", "nearly all"])
def test_pixels_without_a_value_are_no_colour_of_a_mosaic(blank):
    frame, _, _ = few_stars(1)
    rows, columns = np.indices(frame.shape)
    gone = (rows + columns) % 2 == 1 if blank == "every other" else rows > 0
    data = np.where(gone, np.float32(np.nan), frame.data)
    # Warnings are errors here: none may come of it.
    part = extract_sources(frame.replaced(data=data), default_settings())
    assert not any("Bayer" in note for note in part.notes)


def test_the_noise_of_a_mosaic_makes_few_sources():
    """The sum of the colours correlates the noise: sums over a star scatter more than it says.

    Without NOISE_FACTOR the threshold would be at 3.3 sigma, and near a thousand would exceed it.
    """
    rng = np.random.default_rng(5)
    data = rng.normal(np.tile([[100.0, 140.0], [140.0, 190.0]], (256, 256)), 5.0)
    part = extract_sources(Frame(data.astype(np.float32)), default_settings())
    assert any("Bayer" in note for note in part.notes)
    assert len(part.sources) < 100
