"""The sky, against ERFA and astropy, and there and back again."""

import erfa
import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cynosure.data.tables import REFERENCE
from cynosure.ground import sky

RA = st.floats(-360.0, 720.0)
DEC = st.one_of(
    st.floats(-90.0, 90.0), st.sampled_from([90.0, -90.0, 89.9999999, -89.9999999, 0.0])
)
SMALL = st.floats(-20.0, 20.0)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def even_sky(n, seed=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))


# --- directions -------------------------------------------------------------------------------


@quick
@given(RA, DEC)
@example(360.0, 0.0)
@example(-1e-14, 10.0)
def test_unit_vectors_come_back(ra, dec):
    ra2, dec2 = sky.radec(sky.unit_vectors(ra, dec))
    assert 0.0 <= ra2 < 360.0
    assert dec2 == pytest.approx(dec, abs=1e-12)
    turn = (ra2 - ra + 180.0) % 360.0 - 180.0
    assert abs(turn) * np.cos(np.radians(dec)) < 1e-12


@quick
@given(RA, DEC, SMALL, SMALL)
def test_the_tangent_plane_comes_back(ra0, dec0, xi, eta):
    ra, dec = sky.deproject(xi, eta, ra0, dec0)
    xi2, eta2 = sky.project(ra, dec, ra0, dec0)
    assert (xi2, eta2) == (pytest.approx(xi, abs=1e-10), pytest.approx(eta, abs=1e-10))


def test_the_tangent_plane_is_that_of_astropy():
    rng = np.random.default_rng(2)
    for ra0, dec0 in ((10.0, 20.0), (359.9, -89.5), (0.0, 90.0)):
        xi, eta = rng.uniform(-3, 3, (2, 50))
        ra, dec = sky.deproject(xi, eta, ra0, dec0)
        x, y = erfa.tpxes(np.radians(ra), np.radians(dec), np.radians(ra0), np.radians(dec0))[:2]
        assert np.degrees(x) == pytest.approx(xi, abs=1e-11)
        assert np.degrees(y) == pytest.approx(eta, abs=1e-11)


def test_the_far_side_has_no_image():
    xi, eta = sky.project([190.0, 10.0, 100.0], [-20.0, 20.0, 0.0], 10.0, 20.0)
    assert np.isnan(xi).tolist() == [True, False, True]
    assert np.isnan(eta).tolist() == [True, False, True]


@quick
@given(RA, DEC, RA, DEC)
def test_separation_is_that_of_erfa(ra1, dec1, ra2, dec2):
    expected = np.degrees(erfa.seps(*np.radians([ra1, dec1, ra2, dec2])))
    assert sky.separation_deg(ra1, dec1, ra2, dec2) == pytest.approx(expected, abs=1e-12)


def test_separation_keeps_its_digits():
    mas = 1.0 / sky.MAS_PER_DEG
    assert sky.separation_deg(10.0, 89.0, 10.0, 89.0 + mas) == pytest.approx(mas, rel=1e-4)
    assert sky.separation_deg(0.0, 0.0, 180.0, 0.0) == pytest.approx(180.0, abs=1e-12)


@quick
@given(RA, st.floats(-89.9, 89.9), RA, st.floats(-89.9, 89.9))
def test_position_angle_is_that_of_erfa(ra1, dec1, ra2, dec2):
    if sky.separation_deg(ra1, dec1, ra2, dec2) < 1e-6:
        return
    expected = np.degrees(erfa.pas(*np.radians([ra1, dec1, ra2, dec2]))) % 360.0
    turn = (sky.position_angle_deg(ra1, dec1, ra2, dec2) - expected + 180.0) % 360.0 - 180.0
    assert turn == pytest.approx(0.0, abs=1e-6)


# --- motion -----------------------------------------------------------------------------------


def star(**columns):
    given_ = {"ra_deg": 10.0, "dec_deg": 20.0, "ref_epoch_yr": 2016.0, "pm_ra_mas_yr": 0.0,
              "pm_dec_mas_yr": 0.0, "parallax_mas": 0.0}
    return REFERENCE.build(**(given_ | columns))


def mas_between(ra1, dec1, ra2, dec2):
    return sky.separation_deg(ra1, dec1, ra2, dec2) * sky.MAS_PER_DEG


@quick
@given(
    st.floats(0, 360), st.sampled_from([0.0, 45.0, -88.0, 89.99, -89.9999]),
    st.floats(-10000, 10000), st.floats(-10000, 10000), st.floats(0.1, 700),
    st.floats(1990, 2040),
)
def test_motion_and_parallax_are_those_of_erfa(ra, dec, pm_ra, pm_dec, parallax, epoch):
    stars = star(ra_deg=ra, dec_deg=dec, pm_ra_mas_yr=pm_ra, pm_dec_mas_yr=pm_dec,
                 parallax_mas=parallax)
    ra2, dec2, _ = sky.at_epoch(stars, epoch)
    mas_yr = np.radians(1 / sky.MAS_PER_DEG)
    expected = erfa.pmpx(
        np.radians(ra), np.radians(dec), pm_ra * mas_yr / np.cos(np.radians(dec)), pm_dec * mas_yr,
        parallax / 1000.0, 0.0, epoch - 2016.0, sky.earth_position_au(epoch),
    )
    # ERFA also follows the light over the Earth's orbit: 507 s of motion, 0.16 mas at 10"/yr.
    reach = np.hypot(pm_ra, pm_dec) * 510.0 / 31557600.0
    assert mas_between(ra2[0], dec2[0], *sky.radec(expected)) < reach + 1e-5


def test_motion_over_the_pole_and_the_meridian_is_that_of_astropy():
    ra, dec = np.array([10.0, 359.99999, 120.0]), np.array([89.9999, 0.0, -89.99999])
    pm_ra, pm_dec = np.array([500.0, 10000.0, -3000.0]), np.array([9000.0, -200.0, -8000.0])
    stars = star(ra_deg=ra, dec_deg=dec, pm_ra_mas_yr=pm_ra, pm_dec_mas_yr=pm_dec)
    ra2, dec2, _ = sky.at_epoch(stars, 2076.0, parallax=False)
    start = erfa.starpm(
        np.radians(ra), np.radians(dec), np.radians(pm_ra / 3.6e6) / np.cos(np.radians(dec)),
        np.radians(pm_dec / 3.6e6), np.full(3, 0.001), np.zeros(3), 2457388.5, 0.0,
        2457388.5, 60 * 365.25,
    )
    assert mas_between(ra2, dec2, *np.degrees(start[:2])).max() < 2.0  # of 600,000 mas moved
    assert ra2[1] < 1.0  # crossed RA 0
    assert ((ra2 >= 0) & (ra2 < 360)).all()


def test_a_gaia_star_is_where_astropy_puts_it():
    rng = np.random.default_rng(3)
    ra, dec = even_sky(40, 3)
    pm = rng.normal(0, 200, (2, 40))
    stars = star(ra_deg=ra, dec_deg=dec, pm_ra_mas_yr=pm[0], pm_dec_mas_yr=pm[1])
    ra2, dec2, _ = sky.at_epoch(stars, 2026.9, parallax=False)
    moved = erfa.starpm(
        np.radians(ra), np.radians(dec), np.radians(pm[0] / 3.6e6) / np.cos(np.radians(dec)),
        np.radians(pm[1] / 3.6e6), np.full(40, 0.01), np.zeros(40), 2457388.5, 0.0, 2457388.5,
        10.9 * 365.25,
    )
    assert mas_between(ra2, dec2, *np.degrees(moved[:2])).max() < 0.02
    coordinate = SkyCoord(ra * u.deg, dec * u.deg)
    arcsec = coordinate.separation(SkyCoord(ra2 * u.deg, dec2 * u.deg)).arcsec
    assert arcsec == pytest.approx(np.hypot(*pm) * 10.9 / 1000.0, rel=1e-6)


def test_covariance_is_that_of_moved_samples():
    rng = np.random.default_rng(4)
    names = ("ra_dec_corr", "ra_parallax_corr", "ra_pmra_corr", "ra_pmdec_corr",
             "dec_parallax_corr", "dec_pmra_corr", "dec_pmdec_corr", "parallax_pmra_corr",
             "parallax_pmdec_corr", "pmra_pmdec_corr")
    mixing = rng.normal(size=(5, 5))
    covariance = mixing @ mixing.T
    sigma = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(sigma, sigma)
    pairs = [(i, k) for i in range(5) for k in range(i + 1, 5)]
    stars = star(
        ra_deg=310.0, dec_deg=62.0, parallax_mas=40.0, ra_error_mas=sigma[0],
        dec_error_mas=sigma[1], parallax_error_mas=sigma[2], pm_ra_error_mas_yr=sigma[3],
        pm_dec_error_mas_yr=sigma[4],
        **{name: correlation[pair] for name, pair in zip(names, pairs)},
    )
    _, _, got = sky.at_epoch(stars, 2021.3)
    draws = rng.multivariate_normal(np.zeros(5), covariance, 200_000)
    east, north = sky.east_north(310.0, 62.0)
    factor = -sky.earth_position_au(2021.3)
    d_ra = draws[:, 0] + 5.3 * draws[:, 3] + (east @ factor) * draws[:, 2]
    d_dec = draws[:, 1] + 5.3 * draws[:, 4] + (north @ factor) * draws[:, 2]
    expected = np.cov(d_ra, d_dec)
    scale = np.sqrt(expected[0, 0] * expected[1, 1])
    wanted = [expected[0, 0], expected[1, 1], expected[0, 1]]
    assert got[0] == pytest.approx(wanted, abs=0.02 * scale)


def test_what_is_unknown_widens_the_error_and_moves_nothing():
    stars = star(ra_deg=np.full(5, 10.0), ra_error_mas=1.0, dec_error_mas=1.0)
    stars["pm_ra_mas_yr"][1] = stars["pm_dec_mas_yr"][1] = np.nan  # no motion
    stars["pm_ra_mas_yr"][2] = 30.0  # a motion without its error
    stars["ref_epoch_yr"][3] = np.nan  # a motion, no epoch
    stars["pm_dec_mas_yr"][3] = 40.0
    for name in ("pm_ra_error_mas_yr", "pm_dec_error_mas_yr"):
        stars[name][[0, 3, 4]] = 0.1
    stars["parallax_mas"][4] = np.nan
    ra, dec, covariance = sky.at_epoch(stars, 2026.0)
    moved = mas_between(ra, dec, stars["ra_deg"], stars["dec_deg"])
    assert moved == pytest.approx([0, 0, 300, 0, 0], abs=1e-4)
    sigma = np.sqrt(covariance[:, :2])
    assert sigma[0] == pytest.approx([np.hypot(1, 1)] * 2)
    assert sigma[1] == pytest.approx([np.hypot(1, 70)] * 2)
    assert sigma[2] == pytest.approx([np.hypot(1, 10)] * 2)
    assert sigma[3] == pytest.approx([np.hypot(1, 2), np.hypot(1, 20 * np.hypot(0.1, 40))])
    assert sigma[4] == pytest.approx(sigma[0])
    assert np.isfinite(covariance).all()
    ra, dec, covariance = sky.at_epoch(stars[:1], np.nan)
    assert (ra[0], dec[0]) == (10.0, 20.0)
    assert np.sqrt(covariance[0, :2]) == pytest.approx([np.hypot(1, 2)] * 2)


def test_no_time_moves_nothing():
    ra, dec = even_sky(100, 5)
    stars = star(ra_deg=ra, dec_deg=dec, pm_ra_mas_yr=100.0, ra_error_mas=0.3, dec_error_mas=0.4)
    ra2, dec2, covariance = sky.at_epoch(stars, 2016.0)
    assert (ra2 == ra).all()
    assert (dec2 == dec).all()
    assert covariance[:, :2] == pytest.approx(np.tile([0.09, 0.16], (100, 1)))
    assert len(sky.at_epoch(REFERENCE.empty(), 2020.0)[0]) == 0


# --- cells ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1, 2, 5, 12, 18, 29])
def test_cells_are_those_of_astropy_healpix(order):
    healpix = pytest.importorskip("astropy_healpix")
    grid = healpix.HEALPix(1 << order, order="nested")
    ra, dec = even_sky(20_000, order)
    # Everywhere, close to both poles, and close to where the equatorial belt ends.
    dec[:3000] = np.copysign(90 - 10.0 ** np.linspace(-9, 1, 3000), np.resize([1, -1], 3000))
    dec[3000:4000] = np.resize([1, -1], 1000) * 41.8103148957786
    ra[4000:4100] -= 360.0
    cells = sky.healpix_cell(ra, dec, order)
    theirs = grid.lonlat_to_healpix(ra * u.deg, dec * u.deg)
    differ = cells != theirs
    assert differ[:4000].mean() < 1e-2 * (order > 20) + 2e-3  # on a border, rounding decides
    assert differ[4000:].sum() == 0
    lon, lat = grid.healpix_to_lonlat(cells)
    centers = sky.healpix_center(cells, order)
    assert np.abs(centers - sky.unit_vectors(lon.deg, lat.deg)).max() < 3e-15
    chord = np.linalg.norm(centers - sky.unit_vectors(ra, dec), axis=1)
    away = np.degrees(2 * np.arcsin(chord / 2))
    assert away.max() <= sky.healpix_radius_deg(order) * (1 + 1e-6) + 1e-13


@quick
@given(RA, DEC)
@example(0.0, 90.0)
@example(360.0, -90.0)
@example(-1e-13, 0.0)
def test_a_cell_lies_in_its_parent(ra, dec):
    deep = int(sky.healpix_cell(ra, dec))
    assert 0 <= deep < 12 << 58
    for order in (0, 3, 11, 20):
        assert int(sky.healpix_cell(ra, dec, order)) == deep >> (2 * (29 - order))


@pytest.mark.parametrize(
    ("ra", "dec", "radius"),
    [(0.0, 0.0, 1.0), (123.0, 89.99, 0.5), (10.0, -90.0, 3.0), (359.99, 41.8, 0.01),
     (45.0, 10.0, 20.0), (200.0, -30.0, 1e-5), (77.0, 12.0, 120.0)],
)
def test_ranges_cover_the_circle_and_little_more(ra, dec, radius):
    ranges = sky.cone_ranges(ra, dec, radius)
    assert (ranges[1:, 0] > ranges[:-1, 1]).all()
    rng = np.random.default_rng(6)
    height = rng.uniform(0, 1 - np.cos(np.radians(radius)), 5000)
    height[0], height[1] = 0.0, 1 - np.cos(np.radians(radius))
    angle = rng.uniform(0, 2 * np.pi, 5000)
    east, north = sky.east_north(ra, dec)
    sine = np.sqrt(height * (2 - height))[:, None]
    points = (1 - height)[:, None] * sky.unit_vectors(ra, dec) + sine * (
        np.cos(angle)[:, None] * east + np.sin(angle)[:, None] * north
    )
    cells = sky.healpix_cell(*sky.radec(points))
    index = np.searchsorted(ranges[:, 0], cells, side="right") - 1
    assert (index >= 0).all()
    assert (cells < ranges[index, 1]).all()
    area = (ranges[:, 1] - ranges[:, 0]).sum() / (12 << 58)
    circle = np.sin(np.radians(radius) / 2) ** 2
    assert area < 1.9 * circle
    assert len(ranges) < 80


def test_rows_within_a_circle_are_those_of_the_separation():
    ra, dec = even_sky(50_000, 7)
    dec[:10] = 90.0
    for circle in ((0.1, 89.9, 2.0), (359.9, 0.0, 5.0), (20.0, -50.0, 70.0), (0.0, 0.0, 180.0)):
        rows = sky.rows_within(ra, dec, *circle)
        expected = np.flatnonzero(sky.separation_deg(ra, dec, *circle[:2]) <= circle[2])
        assert rows.tolist() == expected.tolist()
    assert sky.rows_within(ra[:5], dec[:5], ra[2], dec[2], 0.0).tolist() == [
        i for i in range(5) if (ra[i], dec[i]) == (ra[2], dec[2]) or dec[i] == dec[2] == 90.0
    ]
    assert sky.rows_within([np.nan, 1.0], [0.0, np.nan], 0.0, 0.0, 10.0).tolist() == []


@pytest.mark.parametrize("year", [1750.3, 1890.7, 2100.4, 2999.0])
def test_the_earth_goes_round_the_sun_outside_the_ephemeris_too(year):
    here = sky.earth_position_au(year)
    same_day = sky.earth_position_au(2000.0 + year % 1.0)
    assert np.linalg.norm(here) == pytest.approx(1.0, abs=0.03)
    assert np.linalg.norm(here - same_day) < 0.1
