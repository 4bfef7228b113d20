"""Saturated stars are one source, spikes and trails are flagged, and stars are not."""

import numpy as np
import pytest
from fields import gauss, light_of, moffat, pair, star_field, tilted

from cynosure.data.tables import SOURCES, SourceFlag
from cynosure.pixels.background import estimate_background
from cynosure.pixels.defects import flag_trails, in_rows, merge_saturated, spike_contrast
from cynosure.pixels.detect import detect_sources, gaussian_kernel
from cynosure.pixels.measure import fit_psf
from cynosure.pixels.psf import build_psf


def detect(frame, **more):
    return detect_sources(frame, estimate_background(frame), **more)


def fitted(frame):
    b = estimate_background(frame)
    s = detect_sources(frame, b)
    return fit_psf(frame, b, build_psf(frame, b, s), s)


def usable(sources):
    return (sources["flags"] & SourceFlag.unusable()) == 0


def planted(n=150, shape=(600, 600), fwhm=2.5, seed=1, snr=(8, 500)):
    return star_field(gauss(fwhm), fwhm, shape=shape, n=n, snr=snr, seed=seed)


# --------------------------------------------------------------------------------- saturation
@pytest.mark.parametrize("bleed", [0, 40, 200])
def test_a_saturated_star_is_one_source_in_its_place(bleed):
    f, sat = planted(), 30000.0
    stars = [(200.3, 300.7, 3e6), (450.2, 330.4, 3e7)]
    image = f.image.copy()
    for x, y, flux in stars:
        image += light_of([x], [y], [flux], gauss(2.5), image.shape, 40) / f.gain
        image += light_of([x], [y], [0.05 * flux], moffat(6, 2), image.shape, 200) / f.gain
    rng = np.random.default_rng(2)
    image += rng.normal(size=image.shape) * np.sqrt(np.maximum(image - f.sky, 0) / f.gain)
    image = np.minimum(image, sat)
    for x, y, _ in stars:
        if bleed:
            image[int(y) - bleed : int(y) + int(1.2 * bleed), int(x) - 1 : int(x) + 1] = sat
    image += rng.normal(size=image.shape) * 5 * (image >= sat)
    f.image = image
    s = detect(f.frame(saturation_adu=0.99 * sat))
    for x, y, flux in stars:
        apart = np.hypot(s["x"] - x, s["y"] - y)
        core = apart < (15 if flux > 1e7 else 8)
        assert core.sum() == 1
        assert apart.min() < 0.7
        assert s["flags"][np.argmin(apart)] & SourceFlag.SATURATED
        # What else there is along the bleeding is no star to be used.
        along = (np.abs(s["x"] - x) < 4) & (np.abs(s["y"] - y) < 1.3 * bleed + 6)
        assert usable(s[along]).sum() <= 1
    truth, _ = pair(f, s[usable(s)])
    assert usable(s).sum() - len(truth) <= 3
    assert len(truth) > 0.85 * len(f.x)


def blob(rows):
    """Runs of a picture of X."""
    out = []
    for y, row in enumerate(rows):
        x = 0
        while x < len(row):
            if row[x] == "X":
                start = x
                while x < len(row) and row[x] == "X":
                    x += 1
                out.append((y, start, x))
            x += 1
    return np.array(out, np.int64)


def test_peaks_of_a_blob_are_merged_into_its_thickest_part():
    rows = ["............", "....XXX.....", "...XXXXX....", "...XXXXX....", "...XXXXX....",
            "....XXX.....", ".....X......", ".....X......", ".....X......", ".........XX."]
    table = np.array([
        [5.0, 2.0, 90, 90, 0, 50], [5.0, 7.5, 95, 80, 0, 50], [3.2, 6.2, 60, 60, 0, 50],
        [9.6, 9.1, 70, 70, 0, 40], [0.0, 0.0, 30, 30, 0, 9],
    ])
    merged, streak = merge_saturated(table, blob(rows), 2.0)
    assert len(merged) == 3  # the star, the small blob, the one far away
    assert not streak.any()
    star = merged[np.argmax(merged[:, 2])]
    np.testing.assert_allclose(star[:2], [5, 3], atol=0.6)
    assert star[2] == 95
    np.testing.assert_array_equal(merged[merged[:, 2] == 70][0], table[3])
    np.testing.assert_array_equal(merged[merged[:, 2] == 30][0], table[4])


def test_a_long_saturated_blob_is_a_streak_and_nothing_is_fine():
    runs = np.array([[y, 10 + y, 13 + y] for y in range(100)], np.int64)
    table = np.array([[60.0, 50.0, 90, 90, 0, 50], [30.0, 20.0, 80, 80, 0, 50]])
    merged, streak = merge_saturated(table, runs, 2.0)
    assert len(merged) == 1
    assert streak.all()
    none, streak = merge_saturated(table, np.zeros((0, 3), np.int64), 2.0)
    np.testing.assert_array_equal(none, table)
    assert not streak.any()
    assert len(merge_saturated(table[:0], runs, 2.0)[0]) == 0


def test_a_very_large_blob_is_not_drawn():
    runs = np.column_stack([np.arange(3000), np.zeros(3000), np.full(3000, 3000)]).astype(np.int64)
    merged, _ = merge_saturated(np.array([[9.0, 9.0, 90, 90, 0, 50]]), runs, 2.0)
    np.testing.assert_allclose(merged[0, :2], [1499.5, 1499.5], atol=1)


# ------------------------------------------------------------------------------------- spikes
@pytest.mark.parametrize("fwhm", [1.2, 1.5, 2.2, 3.5, 6.0])
def test_hot_pixels_are_flagged_and_stars_are_not(fwhm):
    f = star_field(
        gauss(fwhm), fwhm, shape=(500, 500), step=max(28, 6 * fwhm), snr=(6, 1000), seed=3
    )
    rng = np.random.default_rng(4)
    hot = rng.integers(10, 490, (2, 150))
    f.image[hot[1], hot[0]] += f.noise * 10 ** rng.uniform(1, 2.5, 150)
    s = detect(f.frame())
    truth, found = pair(f, s)
    star = np.zeros(len(s), bool)
    star[found] = True
    near_hot = np.min(np.hypot(s["x"][:, None] - hot[0], s["y"][:, None] - hot[1]), axis=1)
    spike = s["flags"] & (SourceFlag.COSMIC | SourceFlag.TRAIL) > 0
    assert spike[(near_hot < 1) & ~star].mean() > 0.97
    clean = star & (near_hot > 3 * fwhm + 3)
    assert clean.sum() > 15
    assert spike[clean].mean() < 0.01
    del truth


@pytest.mark.parametrize(("fwhm", "least"), [(1.3, 0.85), (2.2, 0.93), (4.0, 0.93)])
def test_tracks_of_cosmic_rays_are_flagged_after_the_fit(fwhm, least):
    f = star_field(gauss(fwhm), fwhm, shape=(600, 600), step=40, snr=(8, 1000), seed=5)
    rng = np.random.default_rng(6)
    tracks = []
    for _ in range(150):
        x, y = rng.uniform(10, 590, 2)
        length, angle = rng.exponential(3), rng.uniform(0, np.pi)
        height = f.noise * 8 * 40 ** rng.uniform()
        pixels = {
            (round(y + t * np.sin(angle)), round(x + t * np.cos(angle)))
            for t in np.arange(0, max(length, 0.01), 0.1)
        }
        for j, i in pixels:
            if 0 <= i < 600 and 0 <= j < 600:
                f.image[j, i] += height * rng.uniform(0.5, 1)
        tracks.append([x + length / 2 * np.cos(angle), y + length / 2 * np.sin(angle)])
    s = fitted(f.frame())
    _, found = pair(f, s)
    star = np.zeros(len(s), bool)
    star[found] = True
    tracks = np.array(tracks)
    apart = np.hypot(s["x"][:, None] - tracks[:, 0], s["y"][:, None] - tracks[:, 1]).min(axis=1)
    on_track = (apart < 2.5) & ~star
    assert on_track.sum() > 100
    assert (~usable(s[on_track])).mean() > least
    clean = star & (apart > 3 * fwhm + 6)
    assert (~usable(s[clean])).mean() < 0.02


def test_a_spike_stands_out_by_the_kernel():
    for fwhm in (1.2, 2.5, 5.0):
        k = gaussian_kernel(fwhm)
        image = np.zeros((31, 31))
        image[15, 15] = 1
        kernel2 = np.outer(k, k)
        answer = kernel2[len(k) // 2, len(k) // 2]
        assert spike_contrast(k) == pytest.approx(1 / answer, rel=1e-6)
        assert spike_contrast(k) > 1


# ------------------------------------------------------------------------------------- trails
@pytest.mark.parametrize("peak", [2.0, 5.0, 50.0])
def test_what_lies_along_a_satellite_trail_is_flagged(peak):
    f = planted(seed=7, n=140)
    rng = np.random.default_rng(8)
    yy, xx = np.mgrid[:600, :600]

    def beside(x, y):
        return x * np.sin(0.4) - y * np.cos(0.4) + 80

    trail = peak * f.noise * np.exp(-0.5 * (beside(xx, yy) / 1.06) ** 2)
    f.image = f.image + trail + rng.normal(size=trail.shape) * np.sqrt(trail / f.gain)
    s = fitted(f.frame())
    _, found = pair(f, s)
    star = np.zeros(len(s), bool)
    star[found] = True
    on = (np.abs(beside(s["x"], s["y"])) < 2.5) & ~star
    assert on.sum() > 40
    assert (~usable(s[on])).mean() > 0.93
    off = star & (np.abs(beside(s["x"], s["y"])) > 8)
    assert usable(s[off]).mean() > 0.98


@pytest.mark.parametrize("height", [10.0, 1000.0])
def test_what_lies_along_a_bad_column_is_flagged(height):
    f = planted(seed=9)
    f.image[:, 300] += height * f.noise
    f.image[150:, 210] -= height * f.noise
    s = detect(f.frame())
    truth, found = pair(f, s)
    star = np.zeros(len(s), bool)
    star[found] = True
    on = (np.abs(s["x"] - 300) < 2) & ~star
    assert on.sum() > 40
    assert not usable(s[on]).any()
    off = star & (np.abs(s["x"] - 300) > 6) & (np.abs(s["x"] - 210) > 6)
    assert usable(s[off]).mean() > 0.97
    del truth


def test_trails_may_outnumber_the_stars():
    f = planted(n=12, seed=10, snr=(30, 200))
    yy, _ = np.mgrid[:600, :600]
    trail = 30 * f.noise * np.exp(-0.5 * ((yy - 250) / 1.06) ** 2)
    f.image = f.image + np.random.default_rng(11).poisson(trail * f.gain) / f.gain
    s = detect(f.frame())
    on = np.abs(s["y"] - 250) < 3
    assert on.sum() > 3 * (~on).sum()
    assert not usable(s[on]).any()
    assert usable(s[~on]).mean() > 0.9


@pytest.mark.parametrize("angle", [0.0, 45.0])
def test_elongated_stars_are_no_trails(angle):
    f = star_field(tilted(3.0, 0.5, angle), 3.0, shape=(700, 700), n=900, snr=(8, 500), seed=12)
    s = detect(f.frame())
    assert (s["flags"] & SourceFlag.TRAIL > 0).mean() < 0.03


def chain(n, step, x0=50.0, y0=60.0, slope=0.5, ellipticity=0.8):
    s = SOURCES.empty(n)
    s["x"] = x0 + step * np.arange(n)
    s["y"] = y0 + slope * step * np.arange(n)
    s["theta_deg"], s["ellipticity"] = np.degrees(np.arctan(slope)), ellipticity
    s["snr"], s["fwhm_px"], s["flags"] = 20.0, 5.0, 0
    return s


def test_a_chain_is_a_trail_and_a_cloud_is_not():
    rng = np.random.default_rng(13)
    cloud = SOURCES.empty(80)
    cloud["x"], cloud["y"] = rng.uniform(0, 800, (2, 80))
    cloud["ellipticity"], cloud["theta_deg"] = rng.uniform(0, 0.3, 80), rng.uniform(-90, 90, 80)
    cloud["snr"], cloud["fwhm_px"] = 20.0, 2.5
    for n, step in ((6, 20.0), (12, 8.0)):
        table = np.concatenate([chain(n, step), cloud])
        flags = flag_trails(table, 2.5)
        assert flags[:n].all()
        assert flags[n:].sum() <= 3  # those that happen to lie on it
    assert not flag_trails(cloud, 2.5).any()
    assert not flag_trails(np.concatenate([chain(3, 20.0), cloud]), 2.5).any()
    round_ones = chain(12, 8.0, ellipticity=0.1)
    assert not flag_trails(np.concatenate([round_ones, cloud]), 2.5).any()
    assert in_rows(chain(5, 4.0), 2.5).all()
    assert len(flag_trails(SOURCES.empty(0), 2.5)) == 0
    assert len(in_rows(SOURCES.empty(0), 2.5)) == 0
