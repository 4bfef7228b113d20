"""PSF fits of planted fields: unbiased, at the Cramer-Rao bound, with errors that are true."""

import numpy as np
import pytest
from fields import Field, gauss, light_of, moffat, observe, pair, star_field, tilted
from test_psf import Varying

from cynosure.data.tables import SOURCES, SourceFlag
from cynosure.pixels import measure
from cynosure.pixels.background import estimate_background
from cynosure.pixels.detect import detect_sources
from cynosure.pixels.measure import fit_psf
from cynosure.pixels.psf import build_psf


def extract(frame, *, degree=None, **more):
    b = estimate_background(frame)
    s = detect_sources(frame, b)
    psf = build_psf(frame, b, s, degree=degree)
    return fit_psf(frame, b, psf, s, **more), b, psf, s


def usable(sources):
    return (sources["flags"] & SourceFlag.unusable()) == 0


CASES = {
    "gauss 2.2": (gauss(2.2), 2.2, 24), "gauss 1.3": (gauss(1.3), 1.3, 22),
    "moffat 2.5": (moffat(2.5, 3.0), 2.5, 30), "gauss 10": (gauss(10.0), 10.0, 60),
    "long 3": (tilted(3.0, 0.6), 3.0, 28), "varying": (Varying(2.0, 2.8, 640), 2.4, 25),
}


@pytest.mark.parametrize("name", CASES)
def test_positions_and_fluxes_are_at_the_bound_and_their_errors_are_true(name):
    profile, fwhm, step = CASES[name]
    side = int(step * 26)
    f = star_field(profile, fwhm, shape=(side, side), step=step, snr=(8, 1500), seed=1)
    s, _, psf, _ = extract(f.frame())
    truth, found = pair(f, s)
    good = usable(s[found]) & (f.snr[truth] > 8)
    assert good.mean() > 0.98
    truth, found = truth[good], found[good]
    assert len(truth) > 550
    dx, dy = s["x"][found] - f.x[truth], s["y"][found] - f.y[truth]
    pulls = np.r_[dx / s["x_err"][found], dy / s["y_err"][found]]
    assert np.std(pulls) == pytest.approx(1, abs=0.055)  # of which 0.02 is chance
    assert abs(np.mean(dx / s["x_err"][found])) < 0.13
    assert abs(np.mean(dy / s["y_err"][found])) < 0.13
    if name != "varying":  # the bound is that of one profile
        ratio = np.r_[dx, dy] / np.r_[f.crb_xy[truth], f.crb_xy[truth]]
        assert np.sqrt(np.mean(ratio**2)) < 1.05
        for low, high in ((20, 100), (100, 1500)):
            part = (f.snr[truth] > low) & (f.snr[truth] < high)
            part = np.r_[part, part]
            assert np.sqrt(np.mean(ratio[part] ** 2)) < 1.09  # a hundred or two stars
    # What the PSF's sum is off by is common to all fluxes, and no part of their errors.
    weighted = f.flux[truth] / s["flux_err_e"][found] ** 2
    scale = np.sum(weighted * s["flux_e"][found]) / np.sum(weighted * f.flux[truth])
    assert scale == pytest.approx(1, abs=5e-3)
    z = (s["flux_e"][found] / scale - f.flux[truth]) / s["flux_err_e"][found]
    assert abs(np.median(z)) < 0.3
    assert 0.85 < 1.4826 * np.median(np.abs(z)) < 1.15
    assert np.median(s["chi2_dof"][found]) == pytest.approx(1, abs=0.06)
    np.testing.assert_allclose(s["snr"][found], s["flux_e"][found] / s["flux_err_e"][found])
    del psf


def test_centroids_reach_the_bound_at_every_brightness():
    """Lone stars, the PSF from the image: within 3 % of Cramer-Rao, and with errors as true."""
    ratio, pull, snr = [], [], []
    for seed in range(3):
        f = star_field(
            gauss(2.2), 2.2, shape=(1300, 1300), step=30, snr=(7, 2000), seed=20 + seed, sky=100.0
        )
        s, _, _, _ = extract(f.frame(), degree=0)
        truth, found = pair(f, s)
        assert len(truth) > 0.99 * len(f.x)
        for name in ("x", "y"):
            error = s[name][found] - getattr(f, name)[truth]
            ratio.append(error / f.crb_xy[truth])
            pull.append(error / s[f"{name}_err"][found])
            snr.append(f.snr[truth])
    ratio, pull, snr = (np.concatenate(v) for v in (ratio, pull, snr))
    for low, high in ((10, 20), (20, 50), (50, 200), (200, 2000)):
        part = (snr > low) & (snr < high)
        chance = 1 / np.sqrt(2 * part.sum())
        assert chance < 0.02
        assert np.sqrt(np.mean(ratio[part] ** 2)) < 1.03 + 2 * chance
        assert np.sqrt(np.mean(pull[part] ** 2)) == pytest.approx(1, abs=0.03 + 2 * chance)


def test_errors_of_faint_stars_are_true_too():
    z, snr = [], []
    for seed in range(4):
        size, psf = (900, 900), gauss(2.2)
        f = star_field(psf, 2.2, shape=size, step=24, snr=(4.5, 40), seed=seed, slope=-1)
        bright = star_field(psf, 2.2, shape=size, step=90, snr=(300, 900), seed=seed + 9)
        bright.image += f.image - f.sky  # stars for the PSF, in the first one's noise
        s, _, _, _ = extract(f.frame().replaced(data=f.image.astype(np.float32)), passes=1)
        truth, found = pair(f, s)
        good = usable(s[found])
        truth, found = truth[good], found[good]
        z.append((s["x"][found] - f.x[truth]) / s["x_err"][found])
        z.append((s["y"][found] - f.y[truth]) / s["y_err"][found])
        snr += [s["snr"][found]] * 2
    z, snr = np.concatenate(z), np.concatenate(snr)
    for low, high in ((4.5, 6), (6, 8), (8, 12), (12, 40)):
        part = z[(snr > low) & (snr < high)]
        assert len(part) > 600
        assert np.sqrt(np.mean(part[np.abs(part) < 5] ** 2)) == pytest.approx(1, abs=0.06)
    # What the errors lack, as the coefficient of 1 / snr^2 in the variance; 7 of it is assumed.
    faint = (snr < 8) & (np.abs(z) < 5)
    lack = (z[faint] ** 2 - 1) * snr[faint] ** 2
    assert abs(np.mean(lack)) < 3


def test_correlation_of_x_and_y_follows_the_psf():
    for angle, sign in ((40, 1), (-40, -1)):
        profile = tilted(3.0, 0.5, angle)
        f = star_field(profile, 3.0, shape=(500, 500), step=35, snr=(20, 300), seed=3)
        s, _, _, _ = extract(f.frame())
        truth, found = pair(f, s)
        dx = (s["x"][found] - f.x[truth]) / s["x_err"][found]
        dy = (s["y"][found] - f.y[truth]) / s["y_err"][found]
        assert np.mean(s["xy_corr"][found]) * sign > 0.4
        assert np.corrcoef(dx, dy)[0, 1] == pytest.approx(np.mean(s["xy_corr"][found]), abs=0.15)


def blends(apart, seed=4, shape=(900, 900)):
    """Single stars, and pairs of 1 to 4 in flux."""
    rng = np.random.default_rng(seed)
    base = star_field(gauss(2.4), 2.4, shape=shape, step=45, snr=(80, 600), seed=seed)
    n = len(base.x) // 4
    angle = rng.uniform(0, 2 * np.pi, n)
    x = np.r_[base.x, base.x[:n] + apart * np.cos(angle)]
    y = np.r_[base.y, base.y[:n] + apart * np.sin(angle)]
    flux = np.r_[base.flux, base.flux[:n] * rng.uniform(0.25, 1, n)]
    image = observe(light_of(x, y, flux, gauss(2.4), shape, 16), 200.0, 5.0, 1.5, rng)
    return Field(image, x, y, flux, 200 / 1.5, 15 / 1.5, 1.5), n


@pytest.mark.parametrize("apart", [2.6, 3.0, 3.6, 5.0, 8.0])
def test_blends_are_fitted_jointly(apart):
    """Pairs apart by 1.1 FWHM, which are one peak in the image, come out as two stars."""
    f, n = blends(apart)
    s, _, _, _ = extract(f.frame(), degree=0)
    assert len(s) <= len(f.x) + 2  # and as no more than two
    truth, found = pair(f, s)
    pairs = np.zeros(len(f.x), bool)
    pairs[:n] = pairs[-n:] = True
    part = pairs[truth] & usable(s[found])
    assert part.sum() > 1.94 * n
    i, k = truth[part], found[part]
    if apart < 3.8:
        assert (s["flags"][k] & SourceFlag.BLENDED > 0).mean() > 0.97
    z = np.r_[(s["x"][k] - f.x[i]) / s["x_err"][k], (s["y"][k] - f.y[i]) / s["y_err"][k]]
    assert 1.4826 * np.median(np.abs(z)) == pytest.approx(1, abs=0.1)  # of which 0.06 is chance
    assert np.mean(np.abs(z) > 5) < 0.01
    zf = (s["flux_e"][k] - f.flux[i]) / s["flux_err_e"][k]
    assert abs(np.median(zf)) < 0.35
    assert 1.4826 * np.median(np.abs(zf)) < 1.2


def test_more_passes_find_more_in_a_crowd():
    f = star_field(gauss(2.5), 2.5, shape=(600, 600), n=1800, snr=(4, 600), seed=5)
    frame = f.frame()
    counts = []
    for passes in (1, 2):
        s, _, _, _ = extract(frame, passes=passes)
        truth, found = pair(f, s)
        seen = np.zeros(len(f.x), bool)
        seen[truth] = True
        counts.append(seen[f.snr > 5].mean())
        assert len(found) / len(s) > 0.985
    assert counts[1] > counts[0] + 0.03
    assert counts[1] > 0.9
    default, _, _, _ = extract(frame)
    assert len(default) == len(s)  # a crowded field has two passes unasked


def test_a_poor_field_has_one_pass():
    f = star_field(gauss(2.5), 2.5, shape=(600, 600), n=50, snr=(10, 600), seed=6)
    s, b, psf, detected = extract(f.frame())
    assert len(s) == len(detected)
    one = fit_psf(f.frame(), b, psf, detected, passes=1)
    assert one.tobytes() == s.tobytes()


def test_tiles_leave_no_seams(monkeypatch):
    f = star_field(gauss(2.4), 2.4, shape=(400, 400), n=500, snr=(6, 500), seed=7)
    frame = f.frame()
    whole, b, psf, detected = extract(frame)
    monkeypatch.setattr(measure, "TILE_PX", 90)
    tiled = fit_psf(frame, b, psf, detected)
    assert len(tiled) == len(whole)
    apart = np.hypot(tiled["x"] - whole["x"], tiled["y"] - whole["y"])
    assert np.median(apart) < 1e-4
    assert np.quantile(apart / whole["x_err"], 0.98) < 0.15


def test_same_bits_for_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(measure, "TILE_PX", 128)
    f = star_field(Varying(2.0, 2.8, 400), 2.4, shape=(400, 400), n=600, snr=(6, 500), seed=8)
    frame = f.frame()
    one, b, psf, detected = extract(frame, degree=1)
    for threads in (2, 3):
        assert fit_psf(frame, b, psf, detected, threads=threads).tobytes() == one.tobytes()


def test_nothing_to_fit_and_sources_outside():
    f = star_field(gauss(2.4), 2.4, shape=(200, 200), step=40, snr=(50, 500), seed=9)
    frame = f.frame()
    s, b, psf, detected = extract(frame)
    assert len(fit_psf(frame, b, psf, SOURCES.empty(0))) == 0
    outside = detected[:3].copy()
    outside["x"] = -40.0, 230.0, 100.0
    outside["y"] = 100.0, 50.0, 260.0
    fitted = fit_psf(frame, b, psf, np.concatenate([detected, outside]))
    assert np.all(fitted["flags"][-3:] & SourceFlag.NOT_CONVERGED)
    np.testing.assert_array_equal(fitted["x"][-3:], outside["x"])
    same = fitted[:-3]
    np.testing.assert_allclose(same["x"], s["x"][: len(same)], atol=1e-3)


def test_holes_and_saturated_pixels_are_left_out():
    f = star_field(gauss(2.6), 2.6, shape=(500, 500), step=40, snr=(60, 900), seed=10)
    wing, core = np.arange(0, 40), np.arange(40, 60)
    for k in wing:
        f.image[round(f.y[k]), round(f.x[k]) + 4] = np.nan
    for k in core:
        f.image[round(f.y[k]), round(f.x[k])] = np.nan
    s, _, _, _ = extract(f.frame())
    truth, found = pair(f, s, radius=2.5)
    flags = np.zeros(len(f.x), int)
    flags[truth] = s["flags"][found]
    assert (flags[wing] & SourceFlag.BAD_PIXEL > 0).mean() < 0.1
    assert (flags[core] & SourceFlag.BAD_PIXEL > 0).all()
    z = (s["x"][found] - f.x[truth]) / s["x_err"][found]
    whole = np.isin(truth, wing)
    assert np.std(z[whole]) < 1.4
    clipped = np.minimum(f.image, 0.5 * np.nanmax(f.image))
    frame = f.frame(saturation_adu=float(0.49 * np.nanmax(f.image)))
    s, _, _, _ = extract(frame.replaced(data=clipped.astype(np.float32)))
    saturated = s["flags"] & SourceFlag.SATURATED > 0
    assert saturated.sum() > 2
    truth, found = pair(f, s)
    z = (s["x"][found] - f.x[truth]) / s["x_err"][found]
    assert np.std(z[saturated[found]]) < 2.5  # from what is left of them


def test_a_given_variance_plane_tells_noisy_pixels():
    f = star_field(gauss(2.6), 2.6, shape=(400, 400), step=40, snr=(60, 600), seed=11)
    rng = np.random.default_rng(12)
    noisy = rng.random(f.image.shape) < 0.05
    f.image = f.image + noisy * rng.normal(0, 40 * f.noise, f.image.shape)
    variance = np.where(noisy, (40 * f.noise) ** 2, f.noise**2).astype(np.float32)
    plain = f.frame()
    b = estimate_background(plain)
    s = detect_sources(plain, b)
    _, found = pair(f, s)
    s = s[np.sort(found)]
    psf = build_psf(plain, b, s, degree=0)

    def scatter(frame):
        q = fit_psf(frame, b, psf, s, passes=1)
        truth, found = pair(f, q)
        return 1.4826 * np.median(np.abs(q["x"][found] - f.x[truth]))

    assert scatter(plain.replaced(variance=variance)) < 0.7 * scatter(plain)


def test_an_unknown_gain_gives_sane_errors():
    for gain in (2e-2, 1e3):
        f = star_field(
            gauss(2.3), 2.3, shape=(600, 600), step=28, snr=(15, 1500), seed=13, gain=gain
        )
        s, _, psf, _ = extract(f.frame().replaced(gain_e_adu=1.0))
        assert psf.gain_e_adu == pytest.approx(gain, rel=0.1)
        truth, found = pair(f, s)
        z = (s["x"][found] - f.x[truth]) / s["x_err"][found]
        assert np.std(z) == pytest.approx(1, abs=0.12)
        # Fluxes are as the frame's own gain has them.
        ratio = s["flux_e"][found] / (f.flux[truth] / gain)
        assert np.median(ratio) == pytest.approx(1, abs=0.01)


def test_what_is_broader_than_the_psf_is_flagged():
    f = star_field(gauss(2.4), 2.4, shape=(500, 500), step=45, snr=(100, 600), seed=14)
    rng = np.random.default_rng(15)
    gx, gy = rng.uniform(30, 470, (2, 12))
    light = light_of(gx, gy, np.full(12, 6e4), moffat(6, 2), (500, 500), 30)
    f.image += rng.poisson(light) / f.gain
    s, _, _, _ = extract(f.frame())
    near = np.array([np.argmin(np.hypot(s["x"] - a, s["y"] - b)) for a, b in zip(gx, gy)])
    assert (s["flags"][near] & SourceFlag.EXTENDED > 0).mean() > 0.7
    far = np.min(np.hypot(s["x"][:, None] - gx, s["y"][:, None] - gy), axis=1) > 25
    assert (s["flags"][far] & SourceFlag.EXTENDED > 0).mean() < 0.02
