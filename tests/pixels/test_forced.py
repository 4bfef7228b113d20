"""PSF photometry at given places, and of a crowded field in passes."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest
from fields import bounds, gauss, light_of, moffat, observe, pair, star_field

from cynosure.data.fits.products import ImagePlane, write_product
from cynosure.data.frame import Frame
from cynosure.data.mask import mask_dictionary
from cynosure.data.tables import SourceFlag
from cynosure.ground.errors import SettingError
from cynosure.pixels.background import Background, estimate_background
from cynosure.pixels.detect import detect_sources
from cynosure.pixels.forced import forced_psf, measure_iteratively
from cynosure.pixels.measure import fit_psf
from cynosure.pixels.psf import build_psf

FWHM, GAIN, SKY, READ = 2.6, 1.5, 200.0, 5.0
SIGMA = np.sqrt(SKY + READ**2) / GAIN


@functools.cache
def measured():
    """A field of bright stars, its frame, sky and PSF."""
    field = star_field(moffat(FWHM), FWHM, shape=(512, 512), step=36, snr=(30, 800), gain=GAIN)
    frame = field.frame()
    sky = estimate_background(frame)
    return field, frame, sky, build_psf(frame, sky, detect_sources(frame, sky))


@functools.cache
def faint(seed=7):
    """Faint stars at known places on the same sky and PSF: also below any threshold, and none."""
    rng = np.random.default_rng(seed)
    gx, gy = np.meshgrid(np.arange(20, 500, 24.0), np.arange(20, 500, 24.0))
    x = gx.ravel() + rng.uniform(-0.5, 0.5, gx.size)
    y = gy.ravel() + rng.uniform(-0.5, 0.5, gx.size)
    flux = np.tile([0.0, 60.0, 150.0, 400.0, 4000.0], len(x) // 5)[: len(x)]
    x, y = x[: len(flux)], y[: len(flux)]
    image = observe(light_of(x, y, flux, moffat(FWHM), (512, 512), 18), SKY, READ, GAIN, rng)
    one = np.ones((1, 1), np.float32)
    mesh = Background(one * np.float32(SKY / GAIN), one * np.float32(SIGMA), (512, 512))
    return Frame(image.astype(np.float32), gain_e_adu=GAIN), mesh, x, y, flux


def test_fluxes_are_right_within_their_errors_for_faint_stars_and_none():
    psf = measured()[3]
    frame, mesh, x, y, flux = faint()
    got = forced_psf(frame, mesh, psf, np.column_stack([x, y]))
    assert np.array_equal(got["x"], x)
    assert np.array_equal(got["y"], y)
    assert (got["flags"] == SourceFlag.FORCED).all()
    assert (got["iteration"] == -1).all()
    pull = (got["flux_e"] - flux) / got["flux_err_e"]
    for value in np.unique(flux):
        mine = pull[flux == value]
        assert abs(mine.mean()) < 4 / np.sqrt(len(mine)), value
        assert abs(mine.std() - 1) < 4 / np.sqrt(2 * len(mine)), value
    assert (got["flux_e"][flux == 0] < 0).sum() > 20, "noise is of either sign"
    assert np.allclose(got["snr"], got["flux_e"] / got["flux_err_e"])
    assert abs(np.median(got["chi2_dof"]) - 1) < 0.1


def test_errors_are_the_bound_of_a_flux_at_a_known_place():
    psf = measured()[3]
    frame, mesh, x, y, flux = faint()
    got = forced_psf(frame, mesh, psf, np.column_stack([x, y]))
    _, bound = bounds(moffat(FWHM), [400.0], SKY + READ**2, 12, np.random.default_rng(0))
    assert np.allclose(got["flux_err_e"][flux == 400.0], bound[0], rtol=0.04)


@pytest.mark.parametrize("apart", [0.8, 1.2, 2.0])
def test_blends_are_taken_apart(apart):
    psf = measured()[3]
    rng = np.random.default_rng(11)
    gx, gy = np.meshgrid(np.arange(20, 500, 30.0), np.arange(20, 500, 30.0))
    x1, y1 = np.stack([gx.ravel(), gy.ravel()]) + rng.uniform(-0.5, 0.5, (2, gx.size))
    angle = rng.uniform(0, 2 * np.pi, x1.size)
    x2, y2 = x1 + apart * FWHM * np.cos(angle), y1 + apart * FWHM * np.sin(angle)
    x, y = np.r_[x1, x2], np.r_[y1, y2]
    flux = np.r_[np.full(x1.size, 3000.0), np.full(x1.size, 600.0)]
    image = observe(light_of(x, y, flux, moffat(FWHM), (512, 512), 18), SKY, READ, GAIN, rng)
    mesh = faint()[1]
    frame = Frame(image.astype(np.float32), gain_e_adu=GAIN)
    got = forced_psf(frame, mesh, psf, np.stack([x, y], 1))
    assert ((got["flags"] & SourceFlag.BLENDED != 0) == (apart < 1.5)).all()
    for part in (slice(0, x1.size), slice(x1.size, None)):
        pull = (got["flux_e"][part] - flux[part]) / got["flux_err_e"][part]
        assert abs(pull.mean()) < 5 / np.sqrt(x1.size)
        assert abs(pull.std() - 1) < 5 / np.sqrt(2 * x1.size)


def test_places_move_to_the_stars_but_no_farther_than_asked():
    psf = measured()[3]
    frame, mesh, x, y, flux = faint()
    off = np.column_stack([x + 0.15, y - 0.1])
    bright, none = flux == 4000.0, flux == 0.0
    fixed = forced_psf(frame, mesh, psf, off)
    moved = forced_psf(frame, mesh, psf, off, shifts=5)
    pull = (moved["x"] - x)[bright] / moved["x_err"][bright]
    assert abs(pull.std() - 1) < 4 / np.sqrt(2 * bright.sum())
    assert np.array_equal(moved["x"][none], off[none, 0]), "no light to move by"
    assert np.isnan(moved["x_err"][none]).all()
    assert np.isnan(fixed["x_err"]).all()
    short = (fixed["flux_e"] - flux)[bright].mean()
    right = (moved["flux_e"] - flux)[bright]
    assert abs(right.mean()) < 4 * right.std() / np.sqrt(bright.sum())
    assert short < right.mean() - 10, "off the star less of the light is seen"
    far = forced_psf(frame, mesh, psf, np.column_stack([x + 1.0, y]), shifts=8)
    assert np.allclose(far["x"][bright], x[bright] + 0.8)


def test_what_cannot_be_measured_is_unknown_and_not_zero():
    psf = measured()[3]
    frame, mesh, x, y, _ = faint()
    mask = np.zeros(frame.shape, np.uint32)
    dead = np.hypot(*(np.indices(frame.shape)[::-1] - np.array([x[3], y[3]])[:, None, None])) < 9
    mask[dead] = mask_dictionary()["column_low"]
    at = [[-5.0, 30.0], [600.0, 20.0], [np.nan, 3.0], [x[3], y[3]], [x[4], y[4]], [0.0, 0.0]]
    got = forced_psf(frame.replaced(mask=mask), mesh, psf, at)
    assert np.isnan(got["flux_e"]).tolist() == [True, True, True, True, False, False]
    assert np.isnan(got["flux_err_e"]).tolist() == [True, True, True, True, False, False]
    failed = got["flags"] & SourceFlag.NOT_CONVERGED != 0
    assert failed.tolist() == [True, True, True, True, False, False]
    assert (got["flags"][:3] & SourceFlag.EDGE != 0).all()
    assert got["flags"][3] & SourceFlag.BAD_PIXEL
    assert got["mask_bits"].tolist() == [0, 0, 0, mask_dictionary()["column_low"], 0, 0]
    assert got["mask_bits_center"][3] == mask_dictionary()["column_low"]
    assert got["flags"][5] & SourceFlag.EDGE


def test_twice_the_same_place_spoils_nobody_else():
    psf = measured()[3]
    frame, mesh, x, y, _ = faint()
    at = np.column_stack([x, y])
    got = forced_psf(frame, mesh, psf, np.vstack([at, at[4:5]]))
    alone = forced_psf(frame, mesh, psf, at)
    assert np.isnan(got["flux_e"][[4, -1]]).all()
    others = np.hypot(x - x[4], y - y[4]) > 40
    assert np.allclose(got["flux_e"][:-1][others], alone["flux_e"][others])


def test_the_same_bits_whatever_the_threads_and_the_order_of_tables():
    psf = measured()[3]
    frame, mesh, x, y, _ = faint()
    at = np.column_stack([x, y])
    one, two = (forced_psf(frame, mesh, psf, at, shifts=2, threads=n) for n in (1, 3))
    assert one.tobytes() == two.tobytes()
    table = np.zeros(len(x), [("x", "f8"), ("y", "f8")])
    table["x"], table["y"] = x, y
    assert forced_psf(frame, mesh, psf, table, shifts=2).tobytes() == one.tobytes()
    assert len(forced_psf(frame, mesh, psf, np.zeros((0, 2)))) == 0


def test_forced_fluxes_of_found_stars_are_those_of_the_fit():
    _, frame, sky, psf = measured()
    free = fit_psf(frame, sky, psf, detect_sources(frame, sky))
    got = forced_psf(frame, sky, psf, free)
    good = free["flags"] & SourceFlag.unusable() == 0
    assert np.abs((got["flux_e"] - free["flux_e"]) / free["flux_err_e"])[good].max() < 0.5


# --------------------------------------------------------------------------------------- in passes
@functools.cache
def crowd():
    """A crowded field: a star to 20 beams of the faint limit, and its PSF from the image."""
    field = star_field(
        gauss(2.3), 2.3, shape=(512, 512), n=900, snr=(4, 2000), slope=-0.6, gain=1.0, sky=100.0,
        read=3.0, seed=21,
    )
    frame = field.frame()
    sky = estimate_background(frame)
    return field, frame, sky, build_psf(frame, sky, detect_sources(frame, sky))


def test_a_crowded_field_is_found_whole_and_pure():
    field, frame, sky, psf = crowd()
    got = measure_iteratively(frame, sky, psf)
    once = detect_sources(frame, sky)
    rows, _ = pair(field, got)
    wanted = field.snr > 5
    complete = np.isin(np.flatnonzero(wanted), rows).mean()
    before = np.isin(np.flatnonzero(wanted), pair(field, once)[0]).mean()
    assert complete > 0.95
    assert complete > before + 0.02
    assert len(rows) / len(got) > 0.99
    assert got["iteration"].max() == 3
    assert set(np.unique(got["iteration"])) == {0, 1, 2, 3}
    first, last = got["iteration"] == 0, got["iteration"] >= 2
    assert np.median(got["flux_e"][first]) > 10 * np.median(got["flux_e"][last])


def test_fluxes_of_a_crowded_field_have_their_errors():
    field, frame, sky, psf = crowd()
    got = measure_iteratively(frame, sky, psf)
    left, right = pair(field, got)
    bright = field.snr[left] > 15
    pull = ((got["flux_e"][right] - field.flux[left]) / got["flux_err_e"][right])[bright]
    assert abs(np.median(pull)) < 0.3
    assert np.median(np.abs(pull)) < 1.0


def test_passes_without_a_bright_star_start_lower():
    frame, mesh, _, _, flux = faint()
    psf = measured()[3]
    got = measure_iteratively(frame, mesh, psf, thresholds_sigma=(5000.0, 8.0), repeats=0)
    assert set(got["iteration"]) == {1}
    assert abs(len(got) - np.sum(flux > 1000)) < 10
    assert len(measure_iteratively(frame, mesh, psf, thresholds_sigma=(1e6,))) == 0


def test_passes_have_the_same_bits_with_threads():
    _, frame, sky, psf = crowd()
    one, two = (measure_iteratively(frame, sky, psf, threads=n) for n in (1, 2))
    assert one.tobytes() == two.tobytes()


def test_thresholds_that_are_none_are_refused():
    _, frame, sky, psf = crowd()
    for given in ((), (5.0, -1.0)):
        with pytest.raises(SettingError, match="thresholds_sigma"):
            measure_iteratively(frame, sky, psf, thresholds_sigma=given)


def test_the_page_on_measuring_does_what_it_says(tmp_path, monkeypatch):
    frame = crowd()[1]
    cards = [("GAIN", 1.0, ""), ("DATE-OBS", "2026-01-01T00:00:00", ""), ("EXPTIME", 20.0, "")]
    write_product(tmp_path / "field.fits", [ImagePlane(frame.data, cards=cards)])
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "how-to" / "measure.md"
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    assert np.isfinite(names["forced"]["flux_e"]).mean() > 0.99
    assert np.isfinite(names["table"]["aper3_e"]).mean() > 0.9
    assert len(names["crowd"]) > len(names["found"])
    assert (tmp_path / "product.fits").exists()
