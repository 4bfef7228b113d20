"""Corrections in a common tangent plane: planted, fitted, composed, and written into a WCS."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from test_pixelmap import polynomial, wcs_with_tables

from cynosure.data.fits.wcsread import is_wcs_keyword, read_wcs, sky_of_pixels
from cynosure.geometry.correction import (
    Correction,
    correct_wcs,
    corrected_cards,
    fit_correction,
    least_stars,
)
from cynosure.geometry.fitsmap import FitsMap, on_plane
from cynosure.geometry.observations import Pairs
from cynosure.geometry.pixelmap import LINEAR_GEOMETRIES, LinearMap
from cynosure.ground.errors import Degenerate, SettingError
from cynosure.ground.sky import MAS_PER_DEG, deproject, project, separation_deg

SHAPE = (500, 640)
CHIP = (2048, 4096)  # of the wide field channel


def correction(geometry, seed=0, ra=150.02, dec=2.01, sigma=1e-6):
    """Return a correction of up to 2 arcsec, 0.1 deg and 1e-4, with some covariance."""
    rng = np.random.default_rng(seed)
    linear = LinearMap.unity(geometry)
    size = np.r_[np.full(2, 2.0 / 3600.0), np.full(4, 1e-4)][: len(linear.parameters)]
    if geometry in ("rshift", "rscale"):
        size[2] = np.radians(0.1)
    half = rng.normal(0, sigma, (len(size), len(size)))
    return Correction(
        linear.with_parameters(size * rng.uniform(-1, 1, len(size))), ra, dec, half @ half.T
    )


def apart_mas(a, b):
    return separation_deg(*a, *b) * MAS_PER_DEG


# --- the correction itself ------------------------------------------------------------------


def test_what_it_says_of_itself():
    one = Correction.of(10.0, 60.0, shift_arcsec=(0.5, -0.25), rotation_deg=0.05, scale=1.0002)
    assert one.geometry == "rscale"
    assert one.shift_arcsec == pytest.approx((0.5, -0.25))
    assert one.rotation_deg == pytest.approx(0.05)
    assert one.scale == pytest.approx(1.0002)
    turned = Correction.of(10.0, 60.0, rotation_deg=0.05)
    ra, _ = turned.sky(10.0, 60.1)
    assert ra > 10.0  # north turns to the east
    assert Correction.of(10.0, 60.0, shift_arcsec=(1.0, 0.0)).sky(10.0, 60.0)[0] > 10.0
    assert [least_stars(f) for f in LINEAR_GEOMETRIES] == [1, 2, 3, 5]


@pytest.mark.parametrize("geometry", LINEAR_GEOMETRIES)
def test_the_inverse_takes_it_back(geometry):
    one = correction(geometry, 3)
    back = one.inverse()
    assert back.geometry == geometry
    ra, dec = np.array([150.0, 150.1, 149.9]), np.array([2.0, 2.1, 1.95])
    assert apart_mas(back.sky(*one.sky(ra, dec)), (ra, dec)).max() < 1e-6
    assert np.allclose(one.then(back).linear.parameters, 0.0, atol=1e-12)
    # The error of an inverse is that of the correction, to the size of the latter.
    assert np.allclose(back.error_mas(ra, dec), one.error_mas(ra, dec), rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("first", LINEAR_GEOMETRIES)
@pytest.mark.parametrize("second", LINEAR_GEOMETRIES)
def test_one_after_the_other(first, second):
    one, two = correction(first, 1), correction(second, 2)
    both = one.then(two)
    assert both.geometry == max(first, second, key=LINEAR_GEOMETRIES.index)
    ra, dec = np.array([150.0, 150.1]), np.array([2.0, 2.1])
    assert apart_mas(both.sky(ra, dec), two.sky(*one.sky(ra, dec))).max() < 1e-6
    quadrature = np.hypot(one.error_mas(ra, dec), two.error_mas(ra, dec))
    assert np.allclose(both.error_mas(ra, dec), quadrature, rtol=0.01, atol=1e-4)


def test_errors_are_those_of_corrections_drawn_from_the_covariance():
    """At dec 89.9 the axes of the plane and those of the star are turned by 50 deg."""
    rng = np.random.default_rng(4)
    for geometry in LINEAR_GEOMETRIES:
        one = correction(geometry, 5, 40.0, 89.9, sigma=3e-6)
        ra, dec = 90.0, 89.95
        ra0, dec0 = one.sky(ra, dec)
        point = project(ra, dec, 40.0, 89.9)
        drawn = rng.multivariate_normal(one.linear.parameters, one.covariance, 4000)
        plane = np.array([one.linear.with_parameters(p).pixel_to_plane(*point) for p in drawn])
        sky = deproject(*plane.T, 40.0, 89.9)
        spread = np.std(project(*sky, float(ra0), float(dec0)), axis=1) * MAS_PER_DEG
        assert one.error_mas(ra, dec) == pytest.approx(spread, rel=0.05)


def test_in_another_plane():
    one = correction("rscale", 6)
    there = one.about(150.05, 1.98)
    ra, dec = np.array([150.05, 150.04]), np.array([1.98, 1.99])
    assert apart_mas(one.sky(ra, dec), there.sky(ra, dec)).max() < 1e-3
    assert np.allclose(there.error_mas(ra, dec), one.error_mas(ra, dec), rtol=0.01)
    with pytest.raises(SettingError, match="different tangent planes"):
        one.then(there)


def test_a_map_that_is_corrected():
    sky_map, one = polynomial(3, ra=150.0, dec=2.0), correction("general", 7)
    x, y = np.array([0.0, 639.0]), np.array([0.0, 499.0])
    moved = one.applied(sky_map)
    assert apart_mas(moved.pixel_to_sky(x, y), one.sky(*sky_map.pixel_to_sky(x, y))).max() < 1e-6
    assert np.allclose(moved.sky_to_pixel(*moved.pixel_to_sky(x, y)), (x, y), atol=1e-7)
    assert np.array_equal(
        one.wcs_error_mas(sky_map, x, y), one.error_mas(*sky_map.pixel_to_sky(x, y))
    )


# --- fitted ---------------------------------------------------------------------------------


def pairs_of(truth, n, seed, sigma_px=0.02, outliers=0.0, scale_mas=50.0):
    """Return pairs of a corrected map, with elongated errors of the pixels."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, SHAPE[1], n), rng.uniform(0, SHAPE[0], n)
    ra, dec = truth.pixel_to_sky(x, y)
    size = sigma_px * 10 ** rng.uniform(-0.5, 0.5, n)
    cov = np.stack([size**2, (0.5 * size) ** 2, 0.4 * size**2 * 0.5], axis=1)
    full = cov[:, [0, 2, 2, 1]].reshape(-1, 2, 2)
    step = np.einsum("nij,nj->ni", np.linalg.cholesky(full), rng.normal(size=(n, 2)))
    ref = np.full(n, 0.1)
    ra += rng.normal(0, ref) / MAS_PER_DEG / np.cos(np.radians(dec))
    dec += rng.normal(0, ref) / MAS_PER_DEG
    wrong = rng.random(n) < outliers
    step[wrong] += rng.normal(0, 40.0 / scale_mas, (int(wrong.sum()), 2))
    ids = rng.integers(1, 2**62, n)
    return Pairs(
        x + step[:, 0], y + step[:, 1], cov, ra, dec,
        np.stack([ref**2, ref**2, 0 * ref], axis=1), ids,
    ), wrong


@pytest.mark.parametrize("geometry", LINEAR_GEOMETRIES)
def test_a_planted_correction_is_demanded_back(geometry):
    pulls = []
    for seed in range(6):
        maps = [FitsMap(wcs_with_tables(k, ra=150.0 + 0.01 * k), 150.0, 2.0) for k in (1, 2)]
        true = correction(geometry, seed)
        chips = [(m, pairs_of(true.applied(m), 120, 10 * seed + k, outliers=0.03)[0])
                 for k, m in enumerate(maps)]
        found = fit_correction(chips, geometry=geometry, tangent=(150.02, 2.01))
        error = np.sqrt(np.diag(found.correction.covariance))
        pulls.append((found.correction.linear.parameters - true.linear.parameters) / error)
        assert np.array_equal(np.bincount(found.chip), [120, 120])
        assert 0.6 < found.fit.chi2 / found.fit.dof < 1.4
    assert np.sqrt(np.mean(np.square(pulls))) < 1.5
    assert np.sqrt(np.mean(np.square(pulls))) > 0.5


def test_outliers_are_dropped_and_a_seventh_is_held_out():
    true = correction("rscale", 1)
    sky_map = FitsMap(wcs_with_tables(1), 150.0, 2.0)
    pairs, wrong = pairs_of(true.applied(sky_map), 300, 2, outliers=0.1)
    found = fit_correction([(sky_map, pairs)])
    assert found.fit.geometry in ("rscale", "general")
    assert not (found.fit.used & wrong).any()
    assert found.fit.reserved.sum() > 20
    assert not (found.fit.used & found.fit.reserved).any()


def test_auto_takes_the_skew_that_the_stars_show():
    rng = np.random.default_rng(3)
    linear = LinearMap("general", np.r_[rng.normal(0, 1e-4, 2), 0.0, 2e-4, 0.0, -2e-4])
    true = Correction(linear, 150.0, 2.0, np.zeros((6, 6)))
    sky_map = FitsMap(wcs_with_tables(1), 150.0, 2.0)
    pairs, _ = pairs_of(true.applied(sky_map), 300, 2)
    assert fit_correction([(sky_map, pairs)]).fit.geometry == "general"
    assert fit_correction([(sky_map, pairs)], geometry="shift").fit.errors.sigma0_mas > 0.5


def test_few_stars_and_forms_that_are_none():
    true = correction("shift", 1)
    sky_map = FitsMap(wcs_with_tables(1), 150.0, 2.0)
    many, _ = pairs_of(true.applied(sky_map), 11, 2)
    for n, geometry in ((11, "rscale"), (3, "rscale"), (2, "rshift"), (1, "shift")):
        assert fit_correction([(sky_map, many[np.arange(n)])]).fit.geometry == geometry
    pairs = many[np.arange(2)]
    with pytest.raises(Degenerate):
        fit_correction([(sky_map, pairs)], geometry="rscale")
    with pytest.raises(Degenerate):
        fit_correction([(sky_map, pairs[np.arange(0)])])
    with pytest.raises(SettingError, match="'poly2' is not known"):
        fit_correction([(sky_map, pairs)], geometry="poly2")


# --- written --------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", LINEAR_GEOMETRIES)
@pytest.mark.parametrize("ra, dec", [(150.0, 2.0), (359.9999, -75.0), (20.0, 89.99)])
def test_crval_and_cd_hold_the_correction(geometry, ra, dec):
    wcs = wcs_with_tables(2, ra=ra, dec=dec)
    one = correction(geometry, 4, ra + 0.02 / np.cos(np.radians(dec)), dec - 0.02)
    before = wcs.to_header(relax=True).tostring()
    new, lost = correct_wcs(wcs, one, SHAPE)
    assert lost < 0.001
    assert wcs.to_header(relax=True).tostring() == before
    x, y = np.meshgrid(np.linspace(0, 639, 14), np.linspace(0, 499, 14))
    assert apart_mas(sky_of_pixels(new, x, y), one.sky(*sky_of_pixels(wcs, x, y))).max() < 0.001
    assert np.array_equal(new.wcs.crpix, wcs.wcs.crpix)
    assert np.array_equal(new.sip.a, wcs.sip.a)
    assert np.array_equal(new.cpdis1.data, wcs.cpdis1.data)
    same, lost = correct_wcs(wcs, Correction.of(ra, dec), SHAPE)
    assert np.array_equal(same.wcs.cd, wcs.wcs.cd)
    assert np.array_equal(same.wcs.crval, wcs.wcs.crval)
    assert lost < 1e-6


def test_what_is_lost_in_a_wide_field_is_told():
    """A shift of one tangent plane is not one of the sphere: t r^2 at the distance r."""
    header = fits.Header({
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 80.0, "CRVAL2": 30.0,
        "CRPIX1": 1000.0, "CRPIX2": 1000.0, "CD1_1": -0.002, "CD2_2": 0.002, "CD1_2": 0.0,
    })
    wcs = WCS(header)
    one = Correction.of(80.0, 30.0, shift_arcsec=(60.0, 40.0))
    new, lost = correct_wcs(wcs, one, (2000, 2000))
    x, y = np.meshgrid(np.linspace(-0.5, 1999.5, 50), np.linspace(-0.5, 1999.5, 50))
    apart = apart_mas(sky_of_pixels(new, x, y), one.sky(*sky_of_pixels(wcs, x, y))).max()
    assert 5.0 < apart <= lost
    # CRVAL moved by the shift, and CD as it was, would lose far more.
    moved = wcs.deepcopy()
    moved.wcs.crval = one.sky(80.0, 30.0)
    moved.wcs.set()
    plain = apart_mas(sky_of_pixels(moved, x, y), one.sky(*sky_of_pixels(wcs, x, y))).max()
    assert plain > 3.0 * lost


@pytest.mark.parametrize("linear", [
    {"CD1_1": -1.4e-5, "CD1_2": 2e-6, "CD2_1": 2e-6, "CD2_2": 1.4e-5},
    {"CD1_1": -1.4e-5, "CD2_2": 1.4e-5},
    {"CDELT1": -1.4e-5, "CDELT2": 1.4e-5},
    {"CDELT1": -1.4e-5, "CDELT2": 1.4e-5, "PC1_1": 0.99, "PC1_2": 0.1, "PC2_1": -0.1},
    {"CDELT1": -1.4e-5, "CDELT2": 1.4e-5, "CROTA2": 12.0},
])
def test_the_cards_are_those_of_the_header_but_for_the_linear_ones(linear):
    header = fits.Header({
        "OBJECT": "M 81", "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP",
        "CRVAL1": 80.0, "CRVAL2": 30.0, "CRPIX1": 320.0, "CRPIX2": 250.0, **linear,
        "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1.234567890123e-6, "B_1_1": 0.00001, "NAXIS": 2,
    })
    wcs, _ = read_wcs(header, shape=SHAPE)
    new, lost = correct_wcs(wcs, correction("general", 2, 80.0, 30.0), SHAPE)
    cards = corrected_cards(header, new)
    again, notes = read_wcs(cards, shape=SHAPE)
    assert not notes
    x, y = np.meshgrid(np.linspace(0, 639, 9), np.linspace(0, 499, 9))
    assert apart_mas(sky_of_pixels(again, x, y), sky_of_pixels(new, x, y)).max() < 1e-6
    changed = {k for k in {*cards, *header} if is_wcs_keyword(k) and cards.get(k) != header.get(k)}
    matrix = "CD" if "CD1_1" in linear else "PC"
    allowed = {"CRVAL1", "CRVAL2", "CROTA2", *(f"{matrix}{i}_{j}" for i in "12" for j in "12")}
    assert changed <= allowed
    assert "OBJECT" not in cards
    for key in ("A_2_0", "B_1_1", "CRPIX1"):
        assert cards.cards[key].image == header.cards[key].image
    assert lost < 0.001


def test_real_exposures_lose_less_than_a_hundredth_of_a_milliarcsecond(data_dir):
    folder = data_dir / "p04-hst-headerlets"
    for name, shape, tables in (("flc", CHIP, True), ("flt", (1014, 1014), False)):
        with fits.open(folder / f"sample_ipppssoot_{name}.fits") as units:
            for unit in [u for u in units if u.name == "SCI"]:
                wcs, _ = read_wcs(unit.header, hdulist=units, shape=shape)
                assert (wcs.cpdis1 is not None) == tables
                for seed, geometry in enumerate(LINEAR_GEOMETRIES):
                    ra, dec = wcs.wcs.crval
                    one = correction(geometry, seed, ra + 0.02, dec - 0.02)
                    new, lost = correct_wcs(wcs, one, shape)
                    assert lost < 0.002
                    cards = corrected_cards(unit.header, new)
                    old = [c for c in unit.header.cards if is_wcs_keyword(c.keyword)]
                    differing = {a.keyword for a, b in zip(old, cards.cards) if str(a) != str(b)}
                    assert differing <= {"CRVAL1", "CRVAL2", "CD1_1", "CD1_2", "CD2_1", "CD2_2"}
                    assert len(old) == len(cards)


def test_chips_stay_where_they_are_to_each_other():
    chips = [wcs_with_tables(k, ra=150.0, dec=2.0 + 0.03 * k) for k in (0, 1)]
    one = correction("rscale", 9)
    new = [correct_wcs(w, one, SHAPE).wcs for w in chips]
    maps = [on_plane(FitsMap(w, 150.0, 2.0), 150.02, 2.01) for w in (*chips, *new)]
    at = [np.array(m.pixel_to_plane(100.0, 400.0)) for m in maps]
    assert np.allclose(at[3] - at[2], one.linear.matrix @ (at[1] - at[0]), atol=1e-3 / MAS_PER_DEG)
