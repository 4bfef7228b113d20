"""The PSF against planted ones: its image, its variation, its width, the gain it finds."""

import numpy as np
import pytest
from fields import gauss, light_of, moffat, observe, star_field, tilted

from cynosure.data.frame import Frame
from cynosure.data.tables import SOURCES, SourceFlag
from cynosure.ground.errors import NotEnoughStars
from cynosure.pixels.background import estimate_background
from cynosure.pixels.detect import detect_sources
from cynosure.pixels.psf import Psf, build_psf, field_terms
from cynosure.pixels.psfstars import Stamps, choose_stars, noise_gain


def build(frame, sources=None, **more):
    b = estimate_background(frame)
    s = detect_sources(frame, b) if sources is None else sources
    return build_psf(frame, b, s, **more)


def image_error(psf, profile, x=250, y=260, r=7):
    """Root of the summed squared difference to the true image, as a fraction of that image."""
    at, out = np.arange(-r, r + 1), []
    for dx, dy in ((0, 0), (0.3, 0.2), (0.45, -0.4), (-0.2, 0.1)):
        truth = profile(at[None, :] - dx, at[:, None] - dy)
        image = psf.image(x + dx, y + dy, r)
        out.append(np.sqrt(np.sum((image - truth) ** 2) / np.sum(truth**2)))
    return max(out)


@pytest.mark.parametrize(
    ("profile", "fwhm", "tolerance"),
    [
        (gauss(1.2), 1.2, 0.02), (gauss(1.6), 1.6, 0.006), (gauss(2.4), 2.4, 0.004),
        (gauss(5.0), 5.0, 0.008), (gauss(9.0), 9.0, 0.02), (moffat(1.5, 3.0, 9), 1.5, 0.012),
        (moffat(3.0, 2.5), 3.0, 0.03), (tilted(3.0, 0.5), 3.0, 0.008),
    ],
)
def test_the_true_image_comes_back(profile, fwhm, tolerance):
    step = max(30, 6 * fwhm)
    f = star_field(profile, fwhm, shape=(520, 520), step=step, snr=(30, 2000), seed=1)
    psf = build(f.frame())
    assert image_error(psf, profile) < tolerance
    assert psf.image(250.2, 260.1).sum() == pytest.approx(1, abs=0.015)
    assert psf.gain_e_adu == f.gain
    assert psf.shape == (520, 520)


def test_width_ellipticity_and_angle():
    f = star_field(tilted(4.0, 0.6, 30), 4.0, shape=(500, 500), step=40, snr=(50, 1000), seed=2)
    psf = build(f.frame(), degree=0)
    fwhm, ellipticity, angle = psf.shape_at(250, 250)
    assert fwhm == psf.fwhm_px == pytest.approx(np.hypot(4.0, 0.68), rel=0.02)
    assert ellipticity == pytest.approx(0.39, abs=0.03)
    assert angle == pytest.approx(30, abs=2)
    round_one = build(star_field(gauss(2.5), 2.5, shape=(400, 400), step=30, snr=(50, 900)).frame())
    assert round_one.ellipticity < 0.02
    at = np.arange(-15, 16)
    expected = 1 / np.sum(gauss(2.5)(at[None, :], at[:, None]) ** 2)
    assert round_one.noise_pixels(200, 200) == pytest.approx(expected, rel=0.01)


class Varying:
    """A Gaussian that broadens across the frame."""

    varies = True

    def __init__(self, left, right, width):
        self.left, self.right, self.width = left, right, width

    def at(self, x):
        return self.left + (self.right - self.left) * (x / self.width)

    def __call__(self, x, y):
        return gauss(self.at(x))


def test_a_varying_psf_is_followed_and_a_constant_one_is_constant():
    field = Varying(2.0, 3.2, 900)
    f = star_field(field, 2.6, shape=(900, 900), step=30, snr=(25, 800), seed=3)
    psf = build(f.frame())
    assert psf.degree >= 1
    for x in (40, 450, 860):
        assert image_error(psf, gauss(field.at(x)), x=x, y=450) < 0.018  # at the edge; 0.005 within
        assert psf.shape_at(x, 450)[0] == pytest.approx(np.hypot(field.at(x), 0.68), rel=0.02)
    f = star_field(gauss(2.6), 2.6, shape=(900, 900), step=30, snr=(25, 800), seed=4)
    assert build(f.frame()).degree == 0


def test_the_zero_point_of_place_is_the_centre_of_light():
    f = star_field(gauss(2.4), 2.4, shape=(400, 400), step=30, snr=(50, 900), seed=5)
    psf = build(f.frame(), degree=0)
    r = 8
    image = psf.image(200.37, 210.21, r)
    at = np.arange(-r, r + 1)
    assert np.sum(image * at[None, :]) / image.sum() + 200 == pytest.approx(200.37, abs=0.004)
    assert np.sum(image * at[:, None]) / image.sum() + 210 == pytest.approx(210.21, abs=0.004)


def test_few_stars_give_a_psf_and_two_do_not():
    f = star_field(moffat(3.0), 3.0, shape=(300, 300), step=80, snr=(100, 400), seed=6)
    frame = f.frame()
    b = estimate_background(frame)
    s = detect_sources(frame, b)
    psf = build_psf(frame, b, s[:4])
    assert psf.n_stars == 4
    assert psf.degree == 0
    assert image_error(psf, moffat(3.0), 150, 150) < 0.05
    with pytest.raises(NotEnoughStars, match="2 stars") as caught:
        build_psf(frame, b, s[:2])
    assert caught.value.n_sources == 2
    with pytest.raises(NotEnoughStars, match="0 stars"):
        build_psf(frame, b, s[:0])


@pytest.mark.parametrize("given", [1.0, 3e3, 2e-2])
@pytest.mark.parametrize("true", [2.5, 1e3])
def test_the_noise_of_the_light_tells_the_gain(true, given):
    f = star_field(gauss(2.3), 2.3, shape=(700, 700), step=26, snr=(10, 1500), seed=7, gain=true)
    frame = f.frame()
    assert build(frame).gain_e_adu == true
    found = build(frame.replaced(gain_e_adu=given)).gain_e_adu
    assert found == pytest.approx(true, rel=0.1)


def test_faint_stars_do_not_contradict_the_gain():
    f = star_field(gauss(1.3), 1.3, shape=(600, 600), step=20, snr=(8, 40), seed=8, gain=1.5)
    for given in (1.5, 1.0, 3.0):
        assert build(f.frame().replaced(gain_e_adu=given)).gain_e_adu == given


def test_leverage_of_the_fit_is_counted():
    """Of the variance of the residuals the fit of each star takes three degrees of freedom."""
    from cynosure.pixels import psfkernels

    f = star_field(gauss(2.3), 2.3, shape=(500, 500), step=25, snr=(50, 500), seed=9)
    frame = f.frame()
    b = estimate_background(frame)
    s = detect_sources(frame, b)
    psf = build_psf(frame, b, s, degree=0)
    index, fwhm = choose_stars(s, frame.shape, 20.0, 900)
    d = Stamps.cut(frame, b, s, index, fwhm, 3.2)
    terms = psf.terms(d.x, d.y)
    d.refine(psf.coefficients, psf.spacing_px, terms)
    light, taken = np.empty(d.values.shape), np.empty(d.values.shape)
    psfkernels.judge_stars(
        psf.coefficients, psf.spacing_px, terms, d.values, d.good, d.variance, d.x0, d.y0, d.gain,
        0.004, d.x, d.y, d.flux, light, taken,
    )
    np.testing.assert_allclose(taken.sum(axis=(1, 2)), 3, atol=1e-6)
    np.testing.assert_allclose(light, d.light(psf.coefficients, psf.spacing_px, terms), rtol=1e-9)
    core = taken > 0.15
    noise2 = d.variance[:, None, None] + light / d.gain
    z2 = (d.values - light)[core] ** 2 / (noise2 * (1 - taken))[core]
    assert np.mean(z2) == pytest.approx(1, abs=0.08)
    assert noise_gain(d, psf.coefficients, psf.spacing_px, terms) == f.gain


def test_stars_are_chosen_bright_alone_and_of_the_common_width():
    f = star_field(gauss(2.5), 2.5, shape=(600, 600), step=40, snr=(5, 500), seed=10)
    frame = f.frame()
    s = detect_sources(frame, estimate_background(frame))
    s["flags"][:3] = SourceFlag.SATURATED, SourceFlag.COSMIC, SourceFlag.NEAR_BRIGHT
    s["fwhm_px"][3] = 6.0
    twin = s[4:5].copy()
    twin["x"] += 4
    s = np.concatenate([s, twin])
    index, fwhm = choose_stars(s, frame.shape, 20.0, 900)
    assert not np.isin([0, 1, 2, 3, 4, len(s) - 1], index).any()
    assert fwhm == pytest.approx(2.6, abs=0.1)
    assert np.all(s["snr"][index] > 20)
    few, _ = choose_stars(s, frame.shape, 20.0, 30)
    assert len(few) == 30
    assert len(np.unique((s["x"][few] // 75) * 8 + s["y"][few] // 75)) > 25  # of all the frame
    assert len(choose_stars(SOURCES.empty(0), frame.shape, 20.0, 30)[0]) == 0


def test_stars_with_bad_pixels_serve_where_there_are_no_others():
    f = star_field(gauss(2.5), 2.5, shape=(500, 500), step=30, snr=(30, 500), seed=11)
    mask = np.zeros(f.image.shape, bool)
    mask[::5] = True
    f.image[::5] = 0
    psf = build(f.frame(mask=mask))
    assert psf.n_stars > 100
    assert image_error(psf, gauss(2.5)) < 0.01


def test_neighbours_do_not_leave_their_mark():
    f = star_field(gauss(2.5), 2.5, shape=(700, 700), n=2500, snr=(5, 1500), seed=12, slope=-0.5)
    assert image_error(build(f.frame()), gauss(2.5), 350, 350) < 0.015


def test_same_bits_for_any_number_of_threads():
    f = star_field(Varying(2.0, 3.0, 600), 2.5, shape=(600, 600), step=26, snr=(20, 900), seed=13)
    frame = f.frame()
    b = estimate_background(frame)
    s = detect_sources(frame, b)
    one = build_psf(frame, b, s, degree=2)
    for threads in (2, 3):
        many = build_psf(frame, b, s, degree=2, threads=threads)
        np.testing.assert_array_equal(one.coefficients, many.coefficients)


def test_terms_are_polynomials_of_the_place():
    psf = Psf(np.zeros((6, 9, 9)), 0.5, 2, (101, 201), 2.0, 0.0, 4, 10, 1.0)
    terms = psf.terms([0, 100, 200], [50, 100, 0])
    np.testing.assert_allclose(terms[:, 0], 1)
    np.testing.assert_allclose(terms[:, 1], [-1, 0, 1])
    np.testing.assert_allclose(terms[:, 2], [0, 1, -1])
    np.testing.assert_allclose(terms[2, 3:], [1, -1, 1])
    far = field_terms([1e6], [-1e6], (101, 201), 1)
    np.testing.assert_allclose(far, [[1, 1.1, -1.1]])  # no wild extrapolation


@pytest.mark.parametrize("varies", [False, True])
def test_stars_are_told_from_what_is_more_numerous(varies):
    """Three times as many tracks of cosmic rays as stars: none becomes a star of the PSF."""
    width = Varying(2.0, 2.8, 900).at if varies else (lambda x: 2.0)
    field = Varying(2.0, 2.8, 900) if varies else gauss(2.0)
    f = star_field(field, 2.2, shape=(900, 900), step=60, snr=(30, 600), seed=7)
    frame = f.frame()
    rng, data = np.random.default_rng(8), frame.data.copy()
    for _ in range(3 * len(f.x)):
        length, angle = rng.exponential(3.0) + 1.0, rng.uniform(0, np.pi)
        t = np.arange(0.0, length, 0.25)
        x, y = rng.uniform(20, 880, 2)
        charge = 10 ** rng.uniform(2.0, 3.5) * f.noise / len(t)
        np.add.at(data, (np.rint(y + t * np.sin(angle)).astype(int),
                         np.rint(x + t * np.cos(angle)).astype(int)), charge)
    frame = frame.replaced(data=data)
    background = estimate_background(frame)
    sources = detect_sources(frame, background)
    index, fwhm = choose_stars(sources, frame.shape, 20.0, 900)
    apart = np.hypot(sources["x"][index][:, None] - f.x, sources["y"][index][:, None] - f.y)
    real = apart.min(axis=1) < 1.0
    assert len(index) > 0.5 * len(f.x)
    assert real.mean() > (0.9 if varies else 0.97)
    assert fwhm == pytest.approx(np.hypot(width(450.0), 0.68), rel=0.06)
    psf = build_psf(frame, background, sources)
    assert psf.gain_e_adu == frame.gain_e_adu


def test_galaxies_are_not_noise_of_the_light():
    """Where most that is found are galaxies the gain stays as stated; stars alone would mend it."""
    rng, shape = np.random.default_rng(5), (900, 900)
    x, y = rng.uniform(20, 880, (2, 380))
    flux = 10 ** rng.uniform(3.3, 5, 380)
    image = light_of(x[:30], y[:30], flux[:30], gauss(2.5), shape, 15)
    for k in range(30, 380):
        width = 2.5 * np.hypot(1.0, rng.exponential(1.0))
        profile = tilted(width, rng.uniform(0.4, 1), rng.uniform(0, 180))
        image += light_of(x[k : k + 1], y[k : k + 1], flux[k : k + 1], profile, shape, 25)
    frame = Frame(observe(image, 200.0, 5.0, 1.5, rng).astype(np.float32), gain_e_adu=1.5)
    assert build(frame).gain_e_adu == 1.5
