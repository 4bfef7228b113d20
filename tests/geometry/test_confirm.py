"""A header that is nearly right is confirmed; one that is wrong never is."""

import numpy as np
import pytest

from cynosure.geometry.match.confirm import confirm_wcs
from cynosure.geometry.wcs import SkyModel

SHAPE = (1000, 1200)
SCALE_DEG = 0.5 / 3600
MODEL = SkyModel(
    30.0, -20.0, 599.5, 499.5, 600.0,
    np.array([[0, -600 * SCALE_DEG, 0], [0, 0, 600 * SCALE_DEG]], dtype=float),
)


def field(n_common, n_lone, n_reference, shift=(0.0, 0.0), seed=0, sigma=0.15):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 1200, n_common), rng.uniform(0, 1000, n_common)
    ra, dec = MODEL.pixel_to_sky(x + shift[0], y + shift[1])
    other = MODEL.pixel_to_sky(
        rng.uniform(-500, 1700, n_reference), rng.uniform(-500, 1500, n_reference)
    )
    sx = np.r_[x + rng.normal(0, sigma, n_common), rng.uniform(0, 1200, n_lone)]
    sy = np.r_[y + rng.normal(0, sigma, n_common), rng.uniform(0, 1000, n_lone)]
    return sx, sy, rng.random(len(sx)), np.r_[ra, other[0]], np.r_[dec, other[1]]


@pytest.mark.parametrize("n_common", [4, 8, 60])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.5, -2.0), (-4.0, 5.0)])
def test_a_small_shift_is_found(n_common, shift):
    found = 0
    for seed in range(10):
        x, y, flux, ra, dec = field(n_common, 4, 12, shift, seed)
        match = confirm_wcs(MODEL, x, y, flux, ra, dec, SHAPE)
        if match is None:
            continue
        found += 1
        moved = match.evidence["shift_px"]
        # The models differ by the shift, to the error of the mean of the stars.
        assert np.hypot(moved[0] - shift[0], moved[1] - shift[1]) < 0.4
        px, py = match.model.sky_to_pixel(ra[:n_common], dec[:n_common])
        assert np.median(np.hypot(px - x[:n_common], py - y[:n_common])) < 0.5
        assert match.scale_arcsec == pytest.approx(0.5, rel=1e-3)
        assert match.parity == 1
    assert found == 10 if n_common > 4 else found >= 5


def test_the_wrong_sky_is_never_confirmed():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        n = int(10 ** rng.uniform(0.5, 2.5))
        x, y, flux, ra, dec = field(0, n, int(10 ** rng.uniform(0.5, 3.5)), seed=seed)
        assert confirm_wcs(MODEL, x, y, flux, ra, dec, SHAPE) is None


def test_too_little_to_go_on():
    nothing = np.zeros(0)
    assert confirm_wcs(MODEL, nothing, nothing, nothing, nothing, nothing, SHAPE) is None
    x, y, flux, ra, dec = field(1, 0, 0)
    assert confirm_wcs(MODEL, x, y, flux, ra, dec, SHAPE) is None


def test_a_larger_shift_has_to_overcome_more_places():
    """The same stars, shifted, agree as well; but there are (1 + shift / sigma)^2 places for it."""
    rng = np.random.default_rng(5)
    x, y = rng.uniform(100, 1100, 12), rng.uniform(100, 900, 12)
    flux, noise = np.arange(12.0), rng.normal(0, 0.15, (2, 12))
    odds, places = [], []
    for shift in (0.0, 6.0):
        ra, dec = MODEL.pixel_to_sky(x + shift, y)
        match = confirm_wcs(MODEL, x + noise[0], y + noise[1], flux, ra, dec, SHAPE)
        odds.append(match.log_odds)
        # The best sigma of those tried is the least, 0.25 * 0.7 px.
        places.append(2.0 * np.log1p(np.hypot(*match.evidence["shift_px"]) / 0.175))
    assert odds[0] - odds[1] == pytest.approx(places[1] - places[0], abs=0.3)
    assert odds[0] - odds[1] > 5.0
