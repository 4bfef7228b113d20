"""The whole way from pixels to fitted sources on images that are hard: it ends, and says how."""

import numpy as np
import pytest
from fields import Field, gauss, light_of, moffat, observe, pair, star_field

from cynosure.data.frame import Frame
from cynosure.data.tables import SourceFlag
from cynosure.ground.errors import CynosureError, ImageError, NotEnoughStars
from cynosure.pixels.background import estimate_background
from cynosure.pixels.detect import detect_sources, find_saturation
from cynosure.pixels.measure import fit_psf
from cynosure.pixels.psf import build_psf


def sources_of(frame):
    frame = frame.replaced(saturation_adu=find_saturation(frame))
    b = estimate_background(frame)
    s = detect_sources(frame, b)
    return fit_psf(frame, b, build_psf(frame, b, s), s)


def usable(sources):
    return (sources["flags"] & SourceFlag.unusable()) == 0


def plain(n=250, shape=(500, 500), snr=(8, 1500), **more):
    return star_field(gauss(2.4), 2.4, shape=shape, n=n, snr=snr, seed=5, **more)


def check(f, frame, *, found=0.9, spurious=8, pull=0.2):
    """Most stars are there and usable, little else is, and the errors are about right."""
    s = sources_of(frame)
    good = s[usable(s)]
    truth, rows = pair(f, good)
    assert len(truth) >= found * len(f.x)
    assert len(good) - len(truth) <= spurious
    for name in ("x", "y", "x_err", "y_err", "flux_e", "flux_err_e", "snr", "chi2_dof"):
        assert np.isfinite(good[name]).all()
    z = (good["x"][rows] - f.x[truth]) / good["x_err"][rows]
    assert 1.4826 * np.median(np.abs(z)) == pytest.approx(1, abs=pull)
    return s


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.int32, np.float64, ">f4"])
def test_every_kind_of_number(kind):
    f = plain(offset_adu=-500.0 if kind == np.int16 else 0.0, snr=(8, 400))
    image = np.round(f.image) if np.dtype(kind).kind in "iu" else f.image
    check(f, Frame(image.astype(kind), gain_e_adu=f.gain))


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-3, 1e6, 1e30])
def test_every_unit_of_light(scale):
    """A frame in physical units, whose squares no single precision holds, and without a gain."""
    f = plain()
    check(f, Frame((f.image * scale).astype(np.float32)))


@pytest.mark.parametrize("sky", [-1e4, 0.0, 3e4])
def test_any_sky(sky):
    f = plain(offset_adu=sky)
    check(f, f.frame())


@pytest.mark.parametrize("fwhm", [0.9, 1.2, 6.0, 12.0])
def test_any_width(fwhm):
    f = star_field(
        gauss(fwhm), fwhm, shape=(600, 600), step=max(24, 6 * fwhm), snr=(10, 800), seed=1
    )
    check(f, f.frame(), spurious=3, pull=0.25)


def test_undersampled_stars_are_known_to_a_few_thousandths_of_a_pixel():
    """Below 1.3 px the PSF is not determined by one image; errors hold to S/N 150."""
    for fwhm in (1.0, 1.2):
        f = star_field(gauss(fwhm), fwhm, shape=(600, 600), step=22, snr=(10, 1500), seed=1)
        s = sources_of(f.frame())
        truth, rows = pair(f, s)
        error = np.hypot(s["x"][rows] - f.x[truth], s["y"][rows] - f.y[truth]) / 2**0.5
        bright = f.snr[truth] > 400
        assert np.sqrt(np.mean(error[bright] ** 2)) < 0.004
        fair = f.snr[truth] < 150
        z = (s["x"][rows] - f.x[truth]) / s["x_err"][rows]
        # What the PSF has wrong may pass for noise of the light, and make the errors too large.
        assert 0.7 < np.std(z[fair]) < 1.12


@pytest.mark.parametrize("shape", [(100, 100), (6000, 300), (40, 3000)])
def test_any_shape(shape):
    f = plain(n=max(5, shape[0] * shape[1] // 4000), shape=shape, snr=(30, 1000))
    check(f, f.frame(), found=0.85, pull=0.7 if len(f.x) < 50 else 0.2)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 500), (500, 1), (64, 3), (8, 8), (0, 5)])
def test_too_small_is_said(shape):
    image = np.random.default_rng(1).normal(100, 5, shape).astype(np.float32)
    with pytest.raises(CynosureError) as caught:
        sources_of(Frame(image))
    assert caught.value.hint


def test_a_sky_of_few_digital_steps():
    """Residuals of a digital sky are no digital steps; their level and noise would mislead."""
    f = plain(gain=60.0)
    check(f, Frame(np.round(f.image).astype(np.float32), gain_e_adu=60.0))


def test_stars_a_million_times_the_noise():
    """What the PSF of a very bright star leaves in its wings is no crowd of stars."""
    f = plain(n=200, snr=(8, 2000), sky=0.5, read=1.0)
    image = np.maximum(np.round(f.image), 0).astype(np.float32)
    # The skew noise of a third of an electron has a few peaks of its own.
    check(f, Frame(image, gain_e_adu=f.gain), spurious=18, pull=0.25)


def test_masks_holes_and_half_frames():
    f = plain()
    mask = np.ones(f.image.shape, bool)
    mask[:160, :160] = False
    s = sources_of(f.frame(mask=mask))
    assert len(s) > 10
    assert np.all((s["x"] < 165) & (s["y"] < 165))
    f.image[250:] = np.nan
    s = sources_of(f.frame())
    truth, _ = pair(f, s[usable(s)])
    assert len(truth) > 0.9 * np.sum(f.y < 245)
    f.image[np.random.default_rng(2).random(f.image.shape) < 0.9] = np.nan
    with pytest.raises(NotEnoughStars):
        sources_of(f.frame())


def test_infinite_and_enormous_pixels():
    f = plain()
    rng = np.random.default_rng(3)
    places = rng.integers(0, 500, (2, 40))
    f.image[places[0], places[1]] = np.tile([np.inf, -np.inf, 3e38, -3e38, 1e30], 8)
    check(f, f.frame(), found=0.85, spurious=12)


def test_light_that_is_no_star():
    """A nebula, a wide trail and bias strips cost the stars on them at most."""
    f = plain()
    rng = np.random.default_rng(4)
    yy, xx = np.mgrid[:500, :500]
    nebula = rng.poisson(4000 * np.exp(-((xx - 250) ** 2 + (yy - 230) ** 2) / (2 * 90**2))) / f.gain
    trail = 800 * np.exp(-0.5 * ((yy - 0.3 * xx - 90) / 10) ** 2)
    for more, least in ((nebula, 0.5), (trail, 0.85)):  # the nebula hides the faint ones
        s = sources_of(f.frame().replaced(data=(f.image + more).astype(np.float32)))
        truth, _ = pair(f, s[usable(s)])
        assert len(truth) > least * len(f.x)
        assert usable(s).sum() - len(truth) < 12
    f.image[:, :40], f.image[:, -30:], f.image[-20:] = rng.normal(10, 0.8, (500, 40)), 0, 10
    s = sources_of(f.frame())
    inside = (f.x > 50) & (f.x < 460) & (f.y < 470)
    truth, _ = pair(f, s[usable(s)])
    assert len(truth) > 0.9 * inside.sum()


def test_salt_and_pepper_end():
    f = plain(n=60)
    rng = np.random.default_rng(6)
    places = rng.integers(0, 500, (2, 20000))
    f.image[places[0], places[1]] = rng.choice([0, 65535], 20000)
    s = sources_of(f.frame())
    good = s[usable(s)]
    assert np.isfinite(good["x_err"]).all()
    assert len(good) < 0.05 * len(s)


def test_a_core_too_crowded_to_resolve():
    rng = np.random.default_rng(8)
    r, a = 50 * np.abs(rng.normal(size=4000)), rng.uniform(0, 2 * np.pi, 4000)
    x, y, flux = 250 + r * np.cos(a), 250 + r * np.sin(a), 10 ** rng.uniform(2, 5, 4000)
    image = observe(light_of(x, y, flux, gauss(2.4), (500, 500), 14), 200, 5, 1.5, rng)
    f = Field(image, x, y, flux, 133, 10, 1.5)
    s = sources_of(f.frame())
    truth, _ = pair(f, s)
    assert len(s) > 600
    assert len(truth) > 0.985 * len(s)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_stars_are_said(n):
    rng = np.random.default_rng(9)
    x, y = np.array([90.3, 200.2])[:n], np.array([100.6, 40.9])[:n]
    light = light_of(x, y, np.full(n, 3e4), gauss(2.4), (300, 300), 14)
    with pytest.raises(NotEnoughStars) as caught:
        sources_of(Frame(observe(light, 200, 5, 1.5, rng).astype(np.float32), gain_e_adu=1.5))
    assert caught.value.n_sources <= n


def test_a_trail_alone_and_a_star_that_fills_the_frame():
    rng = np.random.default_rng(10)
    yy, xx = np.mgrid[:300, :300]
    trail = rng.normal(100, 5, xx.shape) + 3000 * np.exp(-0.5 * ((yy - 0.3 * xx - 100) / 1.2) ** 2)
    light = light_of([150.0], [150.0], [1e9], moffat(12, 2.2), (300, 300), 300) + 100
    for image in (trail, np.minimum(rng.poisson(light), 60000)):
        with pytest.raises(NotEnoughStars):
            sources_of(Frame(image.astype(np.float32)))


@pytest.mark.parametrize("value", [0.0, 7.0, 65535.0, np.nan])
def test_one_number_everywhere_is_said(value):
    with pytest.raises(ImageError) as caught:
        sources_of(Frame(np.full((200, 200), value, np.float32)))
    assert caught.value.hint
