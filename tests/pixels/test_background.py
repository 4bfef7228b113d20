"""The sky and its noise: planted ones, and those of sep and of SExtractor."""

import numpy as np
import pytest
from fields import gauss, moffat, star_field

from cynosure.data.fits.reader import read
from cynosure.data.frame import Frame
from cynosure.ground.errors import ImageError
from cynosure.pixels.background import Background, estimate_background


def sky_of(image, **more):
    return estimate_background(Frame(np.asarray(image, np.float32), name="t"), **more)


def test_planted_sky_and_noise_come_back():
    rng = np.random.default_rng(1)
    yy, xx = np.mgrid[:700, :900]
    sky = 300 + 0.012 * xx - 0.01 * yy + 5 * np.sin(xx / 400)
    noise = 5 + 3 * yy / 700
    b = sky_of(sky + rng.normal(size=sky.shape) * noise)
    assert b.shape == (700, 900)
    error = b.rows(0, 700) - sky
    assert np.abs(error).max() < 0.7  # a tenth of the noise
    assert error.std() < 0.15
    x, y = rng.uniform(0, 899, 300), rng.uniform(0, 699, 300)
    there = 300 + 0.012 * x - 0.01 * y + 5 * np.sin(x / 400)
    np.testing.assert_allclose(b.level_at(x, y), there, atol=0.7)
    assert np.median(b.sigma_at(x, y) / (5 + 3 * y / 700)) == pytest.approx(1, abs=0.01)
    column = b.level_at(np.full(7, 400), np.arange(123, 130))
    np.testing.assert_allclose(b.rows(123, 130)[:, 400], column, rtol=1e-6)


def test_stars_hardly_raise_the_sky():
    f = star_field(gauss(2.5), 2.5, shape=(600, 600), n=700, snr=(5, 3000), seed=2)
    b = sky_of(f.image)
    assert np.median(b.level) == pytest.approx(f.sky, abs=0.08 * f.noise)
    assert np.median(b.sigma) == pytest.approx(f.noise, rel=0.06)
    one = star_field(moffat(8), 8, shape=(500, 500), n=1, snr=(8000, 9000), seed=3)
    b = sky_of(one.image, cell_px=64)
    assert b.level_at(one.x, one.y)[0] == pytest.approx(one.sky, abs=4 * one.noise)


def test_nan_and_masked_pixels_have_no_say():
    rng = np.random.default_rng(4)
    image = rng.normal(50, 2, (400, 400)).astype(np.float32)
    clean = estimate_background(Frame(image))
    mask = rng.random(image.shape) < 0.3
    spoiled = np.where(mask, 1e5, image).astype(np.float32)
    masked = estimate_background(Frame(spoiled, mask=mask))
    holes = estimate_background(Frame(np.where(mask, np.nan, image).astype(np.float32)))
    np.testing.assert_allclose(masked.level, holes.level, rtol=1e-6)
    np.testing.assert_allclose(masked.sigma, holes.sigma, rtol=1e-6)
    np.testing.assert_allclose(masked.level, clean.level, atol=0.3)


def test_a_block_without_pixels_takes_the_nearest_sky():
    rng = np.random.default_rng(5)
    yy, _ = np.mgrid[:512, :512]
    image = rng.normal(100 + 0.1 * yy, 3).astype(np.float32)
    image[100:300, 100:300] = np.nan
    b = sky_of(image, cell_px=32)
    assert np.isfinite(b.level).all()
    assert np.all(b.sigma > 0)
    assert b.level_at([200.0], [110.0])[0] == pytest.approx(111, abs=5)


def test_periodic_bad_rows_do_not_blind_the_sample():
    rng = np.random.default_rng(6)
    for period in (2, 3, 4, 5, 8):
        image = rng.normal(100, 3, (256, 256)).astype(np.float32)
        image[::period] = -np.inf
        assert np.median(sky_of(image).level) == pytest.approx(100, abs=0.3)
        image = rng.normal(100, 3, (256, 256)).astype(np.float32)
        image[:, ::period] = np.nan
        assert np.median(sky_of(image).level) == pytest.approx(100, abs=0.3)


def test_negative_tiny_and_huge_skies_scale():
    rng = np.random.default_rng(7)
    image = rng.normal(0, 1, (300, 300))
    one = sky_of(image)
    for scale, offset in ((1e-30, 0), (1e-9, 0), (1e-3, -1.0), (1e12, 0), (1e30, 0), (1, -1e4)):
        b = sky_of(image * scale + offset)
        tiny = 4e-7 * abs(offset)  # single precision
        level = b.level - np.float32(offset)
        np.testing.assert_allclose(level, one.level * scale, atol=0.03 * scale + tiny)
        np.testing.assert_allclose(b.sigma, one.sigma * scale, rtol=0.03)


def test_steep_slopes_are_no_noise():
    rng = np.random.default_rng(14)
    yy, xx = np.mgrid[:640, :640]
    noise = rng.normal(0, 5, xx.shape)
    # Within a cell the first one scatters by 14, the second by up to 11.
    skies = (1000 + 0.3 * xx - 0.2 * yy, 0.04, 1.0), (100 + 5e-4 * (xx - 300) ** 2, 0.12, 6.0)
    for sky, wrong_noise, wrong_level in skies:
        b = sky_of(sky + noise)
        assert b.sigma.max() < 5 * (1 + wrong_noise)
        assert b.sigma.min() > 5 * 0.96
        assert np.abs(b.rows(0, 640) - sky)[40:-40, 40:-40].max() < wrong_level


def test_a_huge_nebula_is_followed_as_far_as_the_mesh_can():
    rng = np.random.default_rng(14)
    yy, xx = np.mgrid[:640, :640]
    nebula = 2000 * np.exp(-((xx - 320) ** 2 + (yy - 300) ** 2) / (2 * 130**2))
    b = sky_of(100 + nebula + rng.normal(0, 5, xx.shape), cell_px=64)
    assert np.median(b.sigma) < 20  # a cell on its slope spans 600
    error = np.abs(b.rows(0, 640) - 100 - nebula)
    assert np.median(error) < 15
    assert np.quantile(error, 0.95) < 100
    assert np.all(b.sigma > 0)
    # A noise that goes on straight beyond the edge would fall below zero there.
    noise = 0.2 + 10 * np.clip((320 - np.hypot(xx - 320, yy - 320)) / 320, 0, 1) ** 3
    b = sky_of(rng.normal(size=xx.shape) * noise, cell_px=64)
    assert b.sigma.min() > 0.15


def test_most_pixels_may_be_missing():
    rng = np.random.default_rng(15)
    image = rng.normal(50, 2, (400, 400))
    image[rng.random(image.shape) < 0.95] = np.nan
    b = sky_of(image)
    assert np.median(b.level) == pytest.approx(50, abs=0.3)
    assert np.median(b.sigma) == pytest.approx(2, rel=0.1)
    corner = np.full((400, 400), np.nan)
    corner[:25, :25] = rng.normal(50, 2, (25, 25))
    b = sky_of(corner)
    np.testing.assert_allclose(b.level, 50, atol=1.5)


@pytest.mark.parametrize("gain", [0.0, -1.0, np.nan])
def test_a_gain_that_is_none_is_said(gain):
    image = np.random.default_rng(16).normal(50, 2, (64, 64)).astype(np.float32)
    with pytest.raises(ImageError, match="electrons per ADU is invalid"):
        estimate_background(Frame(image, gain_e_adu=gain))


def test_a_constant_patch_keeps_its_level_and_borrows_a_noise():
    rng = np.random.default_rng(8)
    image = rng.normal(100, 4, (512, 512)).astype(np.float32)
    image[:256, :256] = 7000
    b = sky_of(image, cell_px=64, filter_cells=1)
    assert b.level_at([64.0], [64.0])[0] == pytest.approx(7000)
    assert b.sigma_at([64.0], [64.0])[0] == pytest.approx(4, rel=0.2)
    assert b.level_at([400.0], [400.0])[0] == pytest.approx(100, abs=1)


def test_a_sky_of_one_number_has_the_noise_of_its_rounding():
    image = np.zeros((128, 128), np.float32)
    image[40:44, 50:54] = 9  # digital steps of 3 and 9
    image[80, 80] = 3
    assert np.median(sky_of(image).sigma) == pytest.approx(3 / 12**0.5)
    rng = np.random.default_rng(9)
    coarse = np.round(rng.normal(10.1, 0.2, (256, 256)))
    assert np.all(sky_of(coarse).sigma >= 0.28)


@pytest.mark.parametrize(
    ("image", "reason"),
    [(np.full((64, 64), np.nan), "no usable pixels"), (np.zeros((64, 64)), "no noise"),
     (np.full((64, 64), np.inf), "no usable pixels")],
)
def test_no_sky_at_all_is_said(image, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        sky_of(image)
    assert caught.value.hint


@pytest.mark.parametrize("shape", [(16, 16), (17, 40), (33, 20), (64, 64), (20, 3000)])
def test_small_and_narrow_frames(shape):
    image = np.random.default_rng(10).normal(20, 2, shape)
    b = sky_of(image)
    assert np.median(b.level) == pytest.approx(20, abs=0.8)
    assert np.median(b.sigma) == pytest.approx(2, rel=0.3)


def test_same_bits_for_any_number_of_threads():
    image = np.random.default_rng(11).normal(20, 2, (900, 700))
    one = sky_of(image, cell_px=64)
    for threads in (2, 3):
        many = sky_of(image, cell_px=64, threads=threads)
        np.testing.assert_array_equal(one.level, many.level)
        np.testing.assert_array_equal(one.sigma, many.sigma)


def test_views_and_read_only_pixels_are_taken():
    image = np.random.default_rng(12).normal(20, 2, (300, 600)).astype(np.float32)
    view = image[:, ::2]
    frozen = view.copy()
    frozen.setflags(write=False)
    a, b = estimate_background(Frame(view)), estimate_background(Frame(frozen))
    np.testing.assert_array_equal(a.level, b.level)


def test_against_sep():
    sep = pytest.importorskip("sep")
    f = star_field(gauss(2.5), 2.5, shape=(768, 768), n=500, snr=(5, 2000), seed=13)
    xx = np.arange(768)[None, :]
    image = (f.image + 0.02 * xx).astype(np.float32)
    theirs = sep.Background(image, bw=128, bh=128, fw=3, fh=3)
    ours = sky_of(image)
    truth = f.sky + 0.02 * xx
    error, their_error = ours.rows(0, 768) - truth, theirs.back() - truth
    assert np.sqrt(np.mean(error**2)) < 1.2 * np.sqrt(np.mean(their_error**2)) + 0.02 * f.noise
    assert np.median(ours.sigma) == pytest.approx(theirs.globalrms, rel=0.04)


def test_against_sextractor_on_a_real_image(data_dir):
    """EMMI, with SExtractor's own background and its rms (mesh of 64 px, filter of 3)."""
    folder = data_dir / "p11-sextractor-truth"
    names = ("image.fits", "back.fits", "rms.fits")
    image, back, rms = (read(folder / name).frames[0].data.astype(float) for name in names)
    b = sky_of(image, cell_px=64)
    difference = b.rows(0, 256) - back
    assert np.abs(np.median(difference)) < 0.08 * np.median(rms)
    assert difference.std() < 0.15 * np.median(rms)
    assert np.median(b.sigma) == pytest.approx(np.median(rms), rel=0.06)


def test_background_is_a_plain_record():
    b = Background(np.full((2, 3), 5, np.float32), np.full((2, 3), 2, np.float32), (20, 30))
    assert b.level_at(3, 4) == pytest.approx([5.0])
    assert b.sigma_at([3, 9], [4, 1]) == pytest.approx([2.0, 2.0])
    assert b.rows(2, 4).shape == (2, 30)
