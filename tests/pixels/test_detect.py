"""Sources of planted fields: all found, little else, measured without bias."""

import numpy as np
import pytest
from fields import gauss, light_of, moffat, pair, star_field, tilted

from cynosure.data.frame import Frame
from cynosure.data.mask import mask_dictionary
from cynosure.data.tables import SOURCES, SourceFlag
from cynosure.pixels.background import Background, estimate_background
from cynosure.pixels.detect import (
    detect_sources,
    find_saturation,
    gaussian_kernel,
    measure_fwhm,
)


def detect(frame, **more):
    return detect_sources(frame, estimate_background(frame), **more)


def test_completeness_and_purity_of_a_planted_field():
    f = star_field(gauss(2.2), 2.2, shape=(1400, 1400), n=700, snr=(4, 300), seed=1)
    s = detect(f.frame())
    truth, found = pair(f, s)
    got = np.zeros(len(f.x), bool)
    got[truth] = True
    assert got[f.snr > 7].mean() > 0.985  # a few lie on top of another
    assert got[f.snr > 5].mean() > 0.95
    assert len(found) / len(s) > 0.995
    assert s.dtype == SOURCES.dtype
    assert np.all(np.diff(s["peak_snr"]) <= 0)


def test_pure_noise_gives_next_to_nothing():
    rng = np.random.default_rng(2)
    frame = Frame(rng.normal(100, 5, (2000, 2000)).astype(np.float32))
    b = estimate_background(frame)
    assert len(detect_sources(frame, b, fwhm_px=2.2)) <= 7
    assert 3 < len(detect_sources(frame, b, fwhm_px=2.2, threshold_sigma=4.0)) < 200


@pytest.mark.parametrize("fwhm", [1.6, 2.4, 5.0])
def test_significance_is_flux_over_its_error_on_sky(fwhm):
    step = 8 * fwhm + 10
    f = star_field(gauss(fwhm), fwhm, shape=(500, 500), step=step, snr=(20, 40), seed=3)
    s = detect(f.frame(), fwhm_px=np.hypot(fwhm, 0.68))
    truth, found = pair(f, s)
    assert len(truth) == len(f.x)
    at = np.arange(-20, 21)
    p2 = np.mean([
        np.sum(gauss(fwhm)(at[None, :] - a, at[:, None] - b) ** 2)
        for a in (0, 0.25, 0.5) for b in (0, 0.25, 0.5)
    ])
    expected = f.flux[truth] * np.sqrt(p2) / (f.noise * f.gain)
    between = 0.03 if fwhm > 2 else 0.05  # what the summit between pixels loses
    assert np.median(s["peak_snr"][found] / expected) == pytest.approx(1, abs=between)


@pytest.mark.parametrize("make", [gauss, moffat, tilted])
def test_windowed_positions_and_aperture_fluxes_are_unbiased(make):
    fwhm = 2.8
    f = star_field(make(fwhm), fwhm, shape=(900, 900), step=45, snr=(15, 2000), seed=4)
    s = detect(f.frame(), aper_radius_px=9.0)
    truth, found = pair(f, s)
    assert len(truth) == len(f.x)
    for name in ("x", "y"):
        z = (s[name][found] - getattr(f, name)[truth]) / s[f"{name}_err"][found]
        assert abs(np.mean(z)) < 4 / np.sqrt(len(z))
        assert 0.85 < np.std(z) < 1.25  # of a long star seen through a round window
    radius = np.arange(-25, 26)
    light = make(fwhm)(radius[None, :], radius[:, None])
    share = light[np.hypot(*np.meshgrid(radius, radius)) < 9].sum()
    bright = f.snr[truth] > 300
    ratio = s["flux_aper_e"][found] / (f.flux[truth] * share)
    assert np.median(ratio[bright]) == pytest.approx(1, abs=0.01)
    z = (s["flux_aper_e"][found] - f.flux[truth] * share) / s["flux_aper_err_e"][found]
    assert abs(np.median(z)) < 0.4
    np.testing.assert_allclose(s["background_e"], f.sky * f.gain, rtol=0.02)


@pytest.mark.parametrize("fwhm", [1.2, 1.5, 2.0, 3.0, 5.0, 8.0, 10.0])
@pytest.mark.parametrize("make", [gauss, moffat])
def test_fwhm_is_measured(make, fwhm):
    step = max(32, 7 * fwhm)
    f = star_field(make(fwhm), fwhm, shape=(640, 640), step=step, snr=(20, 1000), seed=5)
    frame = f.frame()
    b = estimate_background(frame)
    on_pixels = np.hypot(fwhm, 0.68)  # a pixel is as broad as a Gaussian of 0.68 px
    broad = 1.0 if make is gauss else 1.12  # moments see the wings
    assert measure_fwhm(frame, b) == pytest.approx(broad * on_pixels, rel=0.08)
    assert (detect_sources(frame, b)["flags"] & SourceFlag.COSMIC).sum() == 0


def test_fwhm_of_few_stars_and_of_none():
    f = star_field(gauss(6), 6, shape=(250, 250), n=2, snr=(60, 90), seed=6)
    frame = f.frame()
    assert measure_fwhm(frame, estimate_background(frame)) == pytest.approx(6.05, rel=0.15)
    noise = Frame(np.random.default_rng(7).normal(0, 1, (200, 200)).astype(np.float32))
    assert measure_fwhm(noise, estimate_background(noise)) == 2.5


def test_fwhm_among_hot_pixels():
    for fwhm in (1.5, 2.5, 5.0):
        f = star_field(gauss(fwhm), fwhm, shape=(600, 600), n=60, snr=(30, 500), seed=8)
        rng = np.random.default_rng(9)
        hot = rng.integers(0, 600, (2, 1500))
        f.image[hot[0], hot[1]] += f.noise * 10 ** rng.uniform(1, 3, 1500)
        frame = f.frame()
        width = measure_fwhm(frame, estimate_background(frame))
        assert width == pytest.approx(np.hypot(fwhm, 0.68), rel=0.1)


def test_kernel_has_unit_norm_and_the_asked_width():
    for fwhm in (1.2, 2.3, 4.0, 9.0):
        k = gaussian_kernel(fwhm)
        assert np.sum(k.astype(float) ** 2) == pytest.approx(1, rel=1e-5)
        assert len(k) % 4 == 3
        at = np.arange(len(k)) - len(k) // 2
        width = np.sqrt(np.sum(k * at**2.0) / np.sum(k)) * 2.3548
        assert width == pytest.approx(fwhm, rel=0.02 if fwhm > 2 else 0.06)


def test_noise_on_a_bright_halo_is_no_source():
    rng = np.random.default_rng(10)
    light = light_of([250.2], [250.4], [3e7], moffat(3, 2.2), (500, 500), 250) + 100
    image = rng.poisson(light).astype(np.float32)
    frame = Frame(image, gain_e_adu=1.0)
    b = Background(np.full((4, 4), 100, np.float32), np.full((4, 4), 10, np.float32), (500, 500))
    s = detect_sources(frame, b, fwhm_px=3.0)
    assert len(s) <= 6  # the halo is 10^6 noise bumps wide
    assert np.hypot(s["x"][0] - 250.2, s["y"][0] - 250.4) < 0.05


def test_a_companion_on_a_wing_is_found():
    x, y = [100.2, 160.6], [100.4, 135.8]
    light = light_of(x, y, [9e9, 8000], moffat(3, 2), (300, 300), 250)
    image = np.random.default_rng(11).poisson(light + 100).astype(np.float32)
    b = Background(np.full((2, 2), 100, np.float32), np.full((2, 2), 10, np.float32), (300, 300))
    s = detect_sources(Frame(image), b, fwhm_px=3.0)
    near = np.hypot(s["x"] - 160.6, s["y"] - 135.8) < 1
    assert near.sum() == 1
    assert s["flags"][near][0] & SourceFlag.NEAR_BRIGHT


def test_masked_pixels_are_blank_and_flagged():
    f = star_field(gauss(2.5), 2.5, shape=(300, 300), step=40, snr=(50, 100), seed=12)
    mask = np.zeros(f.image.shape, bool)
    x, y = round(f.x[0]), round(f.y[0])
    mask[y - 6 : y + 7, x - 6 : x + 7] = True  # the first star is gone
    mask[round(f.y[1]) + 1, round(f.x[1])] = True
    f.image[mask] = 6e4
    s = detect(f.frame(mask=mask), fwhm_px=2.6)
    truth, found = pair(f, s)
    assert 0 not in truth
    assert len(s) == len(f.x) - 1
    spoiled = found[list(truth).index(1)]
    assert s["flags"][spoiled] & SourceFlag.BAD_PIXEL
    assert (s["flags"] & SourceFlag.BAD_PIXEL > 0).sum() == 1


def test_most_significant_sources_are_kept():
    f = star_field(gauss(2.5), 2.5, shape=(400, 400), step=40, snr=(8, 200), seed=13)
    frame = f.frame()
    all_of_them = detect(frame, fwhm_px=2.6)
    few = detect(frame, fwhm_px=2.6, max_sources=10)
    np.testing.assert_array_equal(few["x"], all_of_them["x"][:10])


def test_same_bits_for_any_number_of_threads():
    f = star_field(gauss(2.4), 2.4, shape=(1300, 500), n=400, snr=(4, 500), seed=14)
    frame = f.frame(saturation_adu=900.0)
    b = estimate_background(frame)
    one = detect_sources(frame, b)
    for threads in (2, 3):
        assert one.tobytes() == detect_sources(frame, b, threads=threads).tobytes()


def test_more_peaks_than_expected_are_all_kept():
    """A frame full of stars asks for more room than a strip first has."""
    rng = np.random.default_rng(15)
    image = rng.normal(0, 1, (200, 200)).astype(np.float32)
    image[::6, ::6] += 60
    frame = Frame(image)
    b = Background(np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32), (200, 200))
    s = detect_sources(frame, b, fwhm_px=1.3)
    assert len(s) >= 33 * 33


def test_saturation_from_the_header_or_the_pile_of_pixels():
    rng = np.random.default_rng(16)
    image = rng.normal(100, 5, (300, 300)).astype(np.float32)
    assert find_saturation(Frame(image, saturation_adu=500.0)) == 500
    assert find_saturation(Frame(image)) == np.inf
    for k in range(6):
        image[20 + 40 * k : 26 + 40 * k, 50:56] = 65535 - 300 * rng.random((6, 6))
    assert 0.98 * 65535 < find_saturation(Frame(image)) <= 65535 * 0.9951
    image[5, 5] = np.nan
    assert 0.98 * 65535 < find_saturation(Frame(image)) <= 65535 * 0.9951
    assert find_saturation(Frame(np.full((20, 20), np.nan, np.float32))) == np.inf
    assert find_saturation(Frame(-np.abs(image))) == np.inf


def test_an_unknown_gain_does_not_hide_stars_beside_others():
    """A rate image: a gain of 1 would say that light is enormously noisy."""
    f = star_field(gauss(2.4), 2.4, shape=(400, 400), n=250, snr=(15, 500), seed=17, gain=1e4)
    known = detect(f.frame())
    unknown = detect(f.frame().replaced(gain_e_adu=1.0))
    assert len(unknown) >= 0.98 * len(known)


def test_against_sep():
    sep = pytest.importorskip("sep")
    f = star_field(gauss(2.4), 2.4, shape=(1000, 1000), n=800, snr=(4, 500), seed=18)
    frame = f.frame()
    b = estimate_background(frame)
    ours = detect_sources(frame, b)
    k = gaussian_kernel(2.5)
    data = np.ascontiguousarray(frame.data - b.rows(0, 1000))
    objects = sep.extract(
        data, 5.0 / np.sum(k) ** 2 * np.sum(k**2), err=float(np.median(b.sigma)), minarea=1,
        filter_kernel=np.outer(k, k) / np.sum(k) ** 2, filter_type="conv",
    )
    theirs = np.zeros(len(objects), SOURCES.dtype)
    theirs["x"], theirs["y"], _ = sep.winpos(data, objects["x"], objects["y"], 2.5 / 2.3548)
    truth, found = pair(f, ours)
    truth2, found2 = pair(f, theirs)
    assert len(truth) >= len(truth2)
    assert len(found) / len(ours) >= len(found2) / len(theirs) - 0.002
    # The same star under the same window is at the same place.
    bright = f.snr[truth] > 30
    both, i, k = np.intersect1d(truth[bright], truth2, return_indices=True)
    a, b = ours[found[bright][i]], theirs[found2[k]]
    assert len(both) > 100
    assert np.median(np.hypot(a["x"] - b["x"], a["y"] - b["y"])) < 0.004


def test_sources_know_the_bits_of_their_mask():
    field = star_field(gauss(2.4), 2.4, step=40, snr=(60, 300), seed=3)
    bits = mask_dictionary()
    mask = np.zeros(field.image.shape, np.uint32)
    x, y = np.rint(field.x).astype(int), np.rint(field.y).astype(int)
    mask[y[0], x[0]] = bits["ghost"]
    mask[y[1], x[1] + 1] = bits["near_edge"]
    mask[y[2], x[2] + 9] = bits["ghost"]
    mask[y[3], x[3] + 2] = bits["dark_high"]
    frame = field.frame(mask=mask, saturation_adu=float(np.sort(field.image.ravel())[-2]))
    found = detect_sources(frame, estimate_background(frame))
    left, right = pair(field, found)
    row = dict(zip(left, right))
    got = found[[row[k] for k in range(4)]]
    saturated = np.uint32(bits["saturated"])
    assert [bits.names(v & ~saturated) for v in got["mask_bits"]] == [
        ("ghost",), ("near_edge",), (), ("dark_high",)
    ]
    assert [bits.names(v) for v in got["mask_bits_center"]] == [("ghost",), (), (), ()]
    assert (got["flags"][:3] & SourceFlag.BAD_PIXEL == 0).all(), "those bits only tell"
    assert got["flags"][3] & SourceFlag.BAD_PIXEL
    seen = found["flags"] & SourceFlag.SATURATED != 0
    assert seen.any()
    assert np.array_equal(found["mask_bits"] & saturated != 0, seen)
