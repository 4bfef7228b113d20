"""Planted skies are recognised, others never; pairs respect their gate."""

import dataclasses
import itertools
import json
import warnings

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from skies import camera, make_sky

from cynosure.data.frame import Pointing
from cynosure.geometry.match.asterisms import neighbours, select
from cynosure.geometry.match.pairs import mutual_nearest
from cynosure.geometry.match.pointing import depth_match, match_pointing, match_regions, pair
from cynosure.geometry.match.verification import (
    LEVELS,
    N_TERMS,
    Birth,
    Expected,
    Work,
    grow,
    make_grid,
    order_of,
)
from cynosure.ground.errors import NoMatch, NotEnoughReference, NotEnoughStars
from cynosure.ground.sky import position_angle_deg

# Skies that show about eight stars.
BARE = dict(n=9, spurious=0.0, missing=0.0, noise=0.1, radius=0.2)
EIGHT = [s for s in range(40) if 7 <= len(make_sky(s, **BARE).x) <= 9]


def match(sky, pointing=None, **settings):
    return match_pointing(*sky.lists, pointing or sky.pointing, sky.shape, **settings)


def assert_right(sky, found, median=0.5, most=3.0):
    e = sky.errors_px(found.model)
    assert np.median(e) < median
    assert np.quantile(e, 0.95) < most
    assert sky.purity(found) > 0.95
    assert found.parity == sky.parity
    assert found.log_odds > 30
    off = (found.rotation_deg - sky.rotation + 180) % 360 - 180
    assert abs(off) < 0.5
    assert found.scale_arcsec == pytest.approx(sky.scale, rel=0.01)


# ---- recognition


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("parity", [1, -1])
def test_any_rotation_both_parities(seed, parity):
    sky = make_sky(seed, parity=parity)
    found = match(sky)
    assert_right(sky, found)
    assert len(np.unique(found.source_index)) == len(found.source_index)
    assert len(np.unique(found.reference_index)) == len(found.reference_index)
    # Nearly all that could be paired are.
    assert len(found.source_index) > 0.9 * np.sum(sky.star >= 0)
    json.dumps(found.evidence)


@pytest.mark.parametrize(
    "kind",
    [
        dict(n=20, noise=0.1), dict(n=20, depth=10.0), dict(n=3000, shape=(4000, 4000)),
        dict(n=150, depth=30.0, scale=2.0), dict(n=400, depth=0.15), dict(n=200, cluster=2000),
        dict(n=200, distortion=0.01), dict(n=200, distortion=-0.01, shape=(6000, 6000)),
        dict(n=40, distortion=0.01, noise=0.1), dict(n=150, scatter=0.5), dict(n=150, noise=0.6),
        dict(n=150, scale=15.0), dict(n=100, spurious=0.5), dict(n=100, missing=0.5),
    ],
    ids=lambda kind: "-".join(f"{k}={v}" for k, v in kind.items()),
)
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_all_kinds_of_fields(kind, seed):
    sky = make_sky(seed, **kind)
    assert_right(sky, match(sky), median=1.0, most=4.0)


@pytest.mark.parametrize("center", [(0.05, 12.0), (359.97, -40.0), (123.0, 89.95), (10.0, -89.9)])
def test_the_meridian_and_the_poles(center):
    sky = make_sky(3, center=center)
    found = match(sky)
    e = sky.errors_px(found.model)
    assert np.median(e) < 0.5
    assert found.parity == sky.parity


def test_strong_distortion_is_right_in_the_corners():
    sky = make_sky(5, n=2000, shape=(6000, 6000), distortion=0.01)
    found = match(sky)
    ny, nx = sky.shape
    x, y = np.array([0, nx - 1, 0, nx - 1]), np.array([0, 0, ny - 1, ny - 1])
    tx, ty = sky.truth.sky_to_pixel(*found.model.pixel_to_sky(x, y))
    # 42 px is what the distortion is there.
    assert np.hypot(tx - x, ty - y).max() < 1.0
    assert found.model.degree == 3


@pytest.mark.parametrize(
    "known",
    [dict(scale_arcsec=None), dict(scale_error=1.5), dict(scale_error=3.0, radius_deg=None)],
)
def test_an_unknown_scale(known):
    sky = make_sky(7, n=200)
    assert_right(sky, match(sky, dataclasses.replace(sky.pointing, **known)))


def test_nothing_known_but_the_catalogue():
    sky = make_sky(8, n=200)
    found = match(sky, Pointing())
    assert_right(sky, found)
    assert len(found.evidence["tried"]) > 1


def test_rotation_and_parity_are_those_of_wcslib():
    from astropy.wcs import WCS

    sky = make_sky(9, rotation=33.0, parity=1)
    found = match(sky)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [sky.truth.ra0_deg, sky.truth.dec0_deg]
    wcs.wcs.crpix = [sky.truth.x0 + 1, sky.truth.y0 + 1]
    wcs.wcs.cd = sky.truth.coeff[:, 1:3] / sky.truth.scale_px
    assert np.linalg.det(wcs.wcs.cd) < 0  # parity +1
    ra0, dec0 = wcs.all_pix2world(sky.truth.x0, sky.truth.y0, 0)
    ra1, dec1 = wcs.all_pix2world(sky.truth.x0, sky.truth.y0 + 1, 0)
    angle = position_angle_deg(float(ra0), float(dec0), float(ra1), float(dec1))
    assert angle == pytest.approx(33.0, abs=1e-3)
    assert found.rotation_deg == pytest.approx(angle, abs=0.06)
    assert found.parity == 1


def test_a_good_header_takes_the_fast_path():
    sky = make_sky(10, n=300)
    good = dataclasses.replace(
        sky.pointing, scale_arcsec=sky.scale * 1.002, scale_error=0.01,
        rotation_deg=sky.rotation + 1.0, rotation_error_deg=3.0, parity=sky.parity,
    )
    found = match(sky, good)
    assert_right(sky, found)
    assert found.evidence["method"] == "offsets"
    # A header whose rotation is a lie is overcome, as long as it does not claim to be sure.
    liar = dataclasses.replace(good, rotation_deg=sky.rotation + 90, rotation_error_deg=12.0)
    with pytest.raises(NoMatch):
        match(sky, liar)
    humble = dataclasses.replace(liar, rotation_error_deg=180.0)
    assert match(sky, humble).evidence["method"] == "quads"


def test_a_known_parity_is_respected():
    sky = make_sky(21, parity=1)
    assert match(sky, dataclasses.replace(sky.pointing, parity=1)).parity == 1
    with pytest.raises(NoMatch):
        match(sky, dataclasses.replace(sky.pointing, parity=-1))


@pytest.mark.parametrize("seed", EIGHT)
def test_eight_stars_do(seed):
    sky = make_sky(seed, **BARE)
    found = match(sky)
    assert np.median(sky.errors_px(found.model)) < 2.0


@pytest.mark.parametrize("seed", [25, 46, 57])
def test_the_few_brightest_are_all_that_a_shallow_catalogue_has(seed):
    sky = make_sky(seed, n=120, depth=0.16, radius=0.3, shape=(3000, 3000), scale=2.0)
    assert 8 <= np.sum(sky.star >= 0) <= 12 < 0.13 * len(sky.x)
    found = match(sky)
    assert_right(sky, found)
    assert "14 brightest sources" in found.evidence["tried"][-1]


def test_few_stars_bend_the_frame_as_a_round_lens_does():
    for seed in range(5):
        sky = make_sky(seed, n=30, distortion=0.008, shape=(4000, 6000), noise=0.1, spurious=0.2)
        found = match(sky)
        ny, nx = sky.shape
        x, y = np.array([0, nx - 1, 0, nx - 1]), np.array([0, 0, ny - 1, ny - 1])
        tx, ty = sky.truth.sky_to_pixel(*found.model.pixel_to_sky(x, y))
        # 29 px is what the distortion is there, which two dozen stars must not leave to chance.
        assert np.hypot(tx - x, ty - y).max() < 1.8


def test_the_order_of_the_rows_and_calling_twice_do_not_matter():
    sky = make_sky(30, n=300)
    first, again = match(sky), match(sky)
    assert first.model.coeff.tobytes() == again.model.coeff.tobytes()
    assert first.log_odds == again.log_odds
    rng = np.random.default_rng(1)
    p, q = rng.permutation(len(sky.x)), rng.permutation(len(sky.ra))
    other = match_pointing(
        sky.x[p], sky.y[p], sky.flux[p], sky.ra[q], sky.dec[q], sky.mag[q], sky.pointing, sky.shape
    )
    pairs = set(zip(first.source_index.tolist(), first.reference_index.tolist()))
    assert pairs == set(zip(p[other.source_index].tolist(), q[other.reference_index].tolist()))


def test_inputs_are_left_alone_and_gaps_are_skipped():
    sky = make_sky(31)
    x, y, flux, ra, dec, mag = (v.copy() for v in sky.lists)
    x[3], y[5], flux[7], ra[2], mag[4] = np.nan, np.inf, np.nan, np.nan, np.nan
    before = [v.copy() for v in (x, y, flux, ra, dec, mag)]
    found = match_pointing(x, y, flux, ra, dec, mag, sky.pointing, sky.shape)
    for old, new in zip(before, (x, y, flux, ra, dec, mag)):
        assert np.array_equal(old, new, equal_nan=True)
    assert np.median(sky.errors_px(found.model)) < 0.5
    assert not np.isin(found.source_index, [3, 5]).any()
    assert 2 not in found.reference_index


def test_a_flux_that_means_nothing_is_no_obstacle():
    sky = make_sky(32, n=40)
    sky.flux[:] = 1.0
    assert np.median(sky.errors_px(match(sky).model)) < 0.5


# ---- what must not be recognised


@pytest.mark.parametrize("seed", range(12))
def test_the_wrong_sky_is_refused(seed):
    n, depth, cluster = [20, 60, 200][seed % 3], [1.0, 3.0][seed % 2], [0, 0, 0, 100][seed % 4]
    sky = make_sky(seed, n=n, wrong=True, depth=depth, cluster=cluster, radius=0.3)
    with pytest.raises(NoMatch) as error:
        match(sky)
    assert error.value.best_log_odds < 20
    assert error.value.n_sources > 0
    assert len(error.value.tried) >= 6
    assert "looked up" in error.value.tried[0]


LINES = {
    "trail": (lambda r: np.linspace(100, 1900, 150), lambda r: np.linspace(1400, 200, 150)),
    "column": (lambda r: np.full(200, 731.0), lambda r: r.uniform(0, 1500, 200)),
    "clump": (lambda r: r.normal(700, 30, 200), lambda r: r.normal(500, 30, 200)),
    "double": (
        lambda r: np.repeat(r.uniform(0, 2000, 100), 2),
        lambda r: np.repeat(r.uniform(0, 1500, 100), 2),
    ),
}


@pytest.mark.parametrize("shape", LINES)
@pytest.mark.parametrize("wrong", [True, False])
def test_trails_columns_and_doubles_neither_match_nor_hinder(shape, wrong):
    x, y = LINES[shape]
    sky = make_sky(40, n=150, false_x=x, false_y=y, wrong=wrong)
    if wrong:
        with pytest.raises(NoMatch):
            match(sky)
    else:
        assert np.median(match(sky) and sky.errors_px(match(sky).model)) < 0.5


def test_a_lattice_matches_itself_everywhere_and_so_nowhere():
    i, j = (v.ravel().astype(float) for v in np.meshgrid(np.arange(15), np.arange(11)))
    rng = np.random.default_rng(2)
    truth = camera(50.0, 10.0, 1.0, 0.0, 1, (1500, 2000), 0.0)
    wide_i, wide_j = (v.ravel() for v in np.meshgrid(np.arange(-8, 23), np.arange(-8, 19)))
    ra, dec = truth.pixel_to_sky(130 * wide_i + 90, 130 * wide_j + 90)
    x, y = 130 * i + 90 + rng.normal(0, 0.1, i.size), 130 * j + 90 + rng.normal(0, 0.1, i.size)
    with pytest.raises(NoMatch):
        match_pointing(
            x, y, rng.uniform(1, 2, x.size), ra, dec, rng.uniform(10, 12, ra.size),
            Pointing(50.0, 10.0, 0.15, 1.0), (1500, 2000),
        )


@pytest.mark.parametrize("n", [0, 1, 3, 4])
def test_too_few_stars_are_said_so(n):
    sky = make_sky(1)
    with pytest.raises(NotEnoughStars) as error:
        match_pointing(
            sky.x[:n], sky.y[:n], sky.flux[:n], sky.ra, sky.dec, sky.mag, sky.pointing, sky.shape,
            name="few.fits",
        )
    assert str(error.value) == f"few.fits: {n} stars found, 5 needed"
    with pytest.raises(NotEnoughReference):
        match_pointing(
            sky.x, sky.y, sky.flux, sky.ra[:n], sky.dec[:n], sky.mag[:n], sky.pointing, sky.shape
        )


def test_a_pointing_away_from_the_catalogue_has_no_reference():
    sky = make_sky(1)
    away = dataclasses.replace(sky.pointing, ra_deg=(sky.pointing.ra_deg + 90) % 360)
    with pytest.raises(NotEnoughReference):
        match(sky, away)


def test_a_million_sources_are_no_burden():
    sky = make_sky(50, n=2000, shape=(8000, 8000))
    rng = np.random.default_rng(0)
    n = 1_000_000
    x = np.concatenate([sky.x, rng.uniform(0, 8000, n)])
    y = np.concatenate([sky.y, rng.uniform(0, 8000, n)])
    flux = np.concatenate([sky.flux, rng.uniform(0, 0.3, n) * sky.flux.min()])
    found = match_pointing(x, y, flux, sky.ra, sky.dec, sky.mag, sky.pointing, sky.shape)
    assert np.median(sky.errors_px(found.model)) < 0.5


# ---- regions


def test_regions_hold_where_a_lens_bends_by_a_fifth():
    sky = make_sky(60, n=900, distortion=0.2, shape=(3000, 4000), radius=0.3)
    found = match_regions(*sky.lists, sky.pointing, sky.shape)
    assert sky.purity(found) > 0.97
    assert np.median(sky.errors_px(found.model)) < 1.0
    assert found.evidence["method"] == "regions"
    assert int(found.evidence["tried"][0].split()[6]) > 15  # propose
    # The usual way finds it too, itself or by way of the regions.
    assert np.quantile(sky.errors_px(match(sky).model), 0.9) < 2.0


def test_regions_refuse_the_wrong_sky():
    sky = make_sky(61, n=600, wrong=True)
    with pytest.raises(NoMatch) as error:
        match_regions(*sky.lists, sky.pointing, sky.shape, columns=3, rows=2)
    assert "regions: 3 x 2" in error.value.tried[0]


# ---- the odds


def test_the_odds_of_chance_are_what_they_say():
    """exp(L) is a martingale where the match is chance: it exceeds K at most once in K times."""
    rng = np.random.default_rng(0)
    n, trials = 120, 3000
    final = np.empty(trials)
    owner = np.full(n, -1)
    match_, chance = np.full(60, -1), np.zeros(60)
    coeff = np.zeros(N_TERMS, complex)
    for t in range(trials):
        w = rng.uniform(-1000, 1000, n) + 1j * rng.uniform(-1000, 1000, n)
        z = rng.uniform(-500, 500, 60) + 1j * rng.uniform(-500, 500, 60)
        # Two sources are said to be two stars, as a search would say it.
        a = (w[1] - w[0]) / (z[1] - z[0])
        a *= 1.0 / abs(a)
        z = np.concatenate([z[:1], z[:1] + (w[1] - w[0]) / a, z[2:]])
        z0 = 0.5 * (z[0] + z[1])
        growth = grow(
            z, np.argsort(abs(z - z0)), w, make_grid(w, 2.0),
            Birth(np.array([0, 1]), np.array([0, 1]), a, 0.5 * (w[0] + w[1]), z0, t),
            Expected(700.0, 0.05, 20.0, 0.5, -1.0, 0.15, -1e9), Work(owner, match_, chance, coeff),
        )
        final[t] = growth.log_odds
    for k in (3.0, 10.0, 30.0):
        share = np.mean(final > np.log(k))
        assert share < 1.0 / k + 3 * np.sqrt(1.0 / k / trials)
    # And it does not simply always say no.
    assert np.mean(final > -3.0) > 0.001


def test_true_matches_score_high_whatever_the_level():
    rng = np.random.default_rng(1)
    z = rng.uniform(-1000, 1000, 40) + 1j * rng.uniform(-1000, 1000, 40)
    for eps in (0.0, 0.003, 0.012):
        w = z * (1 + eps * abs(z) ** 2 / 1414**2) * np.exp(0.7j) + 100
        w = w + rng.normal(0, 0.2, 40) + 1j * rng.normal(0, 0.2, 40)
        z0 = 0.5 * (z[0] + z[1])
        match_, coeff = np.full(40, -1), np.zeros(N_TERMS, complex)
        a = (w[1] - w[0]) / (z[1] - z[0])
        growth = grow(
            z, np.argsort(abs(z - z0)), w, make_grid(w, 2.0),
            Birth(np.array([0, 1]), np.array([0, 1]), a, 0.5 * (w[0] + w[1]), z0, 0),
            Expected(1414.0, 0.05, 50.0, 0.5, -1.0, 0.15, -1e9),
            Work(np.full(40, -1), match_, np.zeros(40), coeff),
        )
        assert growth.log_odds > 100
        assert np.mean(match_ == np.arange(40)) > 0.9
        if eps == 0.012:
            assert LEVELS[growth.level] >= 3e-3


# ---- lists


def test_select_is_blind_to_rotation_and_even():
    rng = np.random.default_rng(0)
    z = np.concatenate([
        rng.uniform(0, 1000, 1500) + 1j * rng.uniform(0, 1000, 1500),
        rng.normal(300, 20, 1500) + 1j * rng.normal(300, 20, 1500),
    ])
    z = z[rng.permutation(3000)]
    kept = select(z, 100.0, 8, 0.0)
    turned = select(z * np.exp(0.4j) + 17, 100.0, 8, 0.0)
    # Where a cell of the search is crowded the rule is kept to one star in a few hundred.
    assert len(np.setxor1d(kept, turned)) < 0.01 * len(kept)
    # Its own definition, the long way.
    d = abs(z[:, None] - z[None, :])
    brighter = np.array([np.sum(d[i, :i] < 100.0) for i in range(len(z))])
    assert len(np.setxor1d(kept, np.flatnonzero(brighter < 8))) < 0.01 * len(kept)
    # Nearly as dense in the cluster as outside, though it has a hundred times the stars.
    inside = abs(z[kept] - (300 + 300j)) < 50
    density = inside.sum() / (np.pi * 50**2)
    assert density < 5 * (~inside).sum() / 1e6
    # A longer list holds the shorter one.
    assert np.isin(kept, select(z, 60.0, 8, 0.0)).all()
    assert len(select(z[:0], 10.0, 8, 1.0)) == 0


def test_select_drops_what_was_detected_twice():
    z = np.array([0j, 0.5 + 0j, 10 + 0j, 10 + 1.9j, 30 + 0j])
    assert select(z, 0.0, 8, 2.0).tolist() == [0, 2, 4]


def test_neighbours_never_list_the_star_itself():
    z = np.array([0j, 0j, 0j, 1 + 0j, 5 + 0j])
    near = neighbours(z, 3)
    assert all(i not in row for i, row in enumerate(near))
    assert neighbours(z[:1], 3).shape == (1, 0)


def test_order_of_sorts():
    key = np.random.default_rng(3).uniform(size=300)
    assert np.array_equal(order_of(key), np.argsort(key))


# ---- pairs


TRUTH = camera(200.0, 40.0, 0.5, 20.0, 1, (2000, 2000), 0.005)


def catalogue(rng, n, sd_mas=20.0):
    x, y = rng.uniform(0, 2000, n), rng.uniform(0, 2000, n)
    ra, dec = TRUTH.pixel_to_sky(x, y)
    ra = ra + rng.normal(0, sd_mas, n) / 3.6e6 / np.cos(np.radians(dec))
    dec = dec + rng.normal(0, sd_mas, n) / 3.6e6
    return x, y, ra, dec, np.tile([sd_mas**2, sd_mas**2, 0.0], (n, 1))


def test_the_gate_lets_through_its_share_and_q_is_chi2():
    rng = np.random.default_rng(0)
    x, y, ra, dec, cov_ref = catalogue(rng, 4000)
    sd = rng.uniform(0.02, 0.2, (4000, 2))
    cov = np.column_stack([sd[:, 0] ** 2, sd[:, 1] ** 2, 0.3 * sd[:, 0] * sd[:, 1]])
    root = np.linalg.cholesky(np.stack([cov[:, [0, 2]], cov[:, [2, 1]]], axis=1))
    dx, dy = (root @ rng.normal(size=(4000, 2, 1)))[:, :, 0].T
    i, j, q = pair(TRUTH, x + dx, y + dy, cov, ra, dec, cov_ref)
    assert np.mean(i == j) > 0.999
    assert len(i) > 0.998 * 4000
    # chi^2 of two degrees of freedom: mean 2, variance 4
    assert q.mean() == pytest.approx(2.0, abs=0.1)
    i, _, q = pair(TRUTH, x + dx, y + dy, cov, ra, dec, cov_ref, gate_probability=0.9)
    assert len(i) == pytest.approx(3600, abs=80)
    assert q.max() <= -2 * np.log(0.1)


def test_the_radius_and_the_models_own_error_count():
    rng = np.random.default_rng(1)
    x, y, ra, dec, cov_ref = catalogue(rng, 200)
    cov = np.tile([0.01, 0.01, 0.0], (200, 1))
    assert len(pair(TRUTH, x + 2.0, y, cov, ra, dec, cov_ref)[0]) == 0
    i, j, _ = pair(TRUTH, x + 2.0, y, cov, ra, dec, cov_ref, model_sd_px=2.0)
    assert len(i) > 190
    assert np.mean(i == j) > 0.97
    narrow = dict(model_sd_px=2.0, max_radius_px=1.0)
    assert len(pair(TRUTH, x + 2.0, y, cov, ra, dec, cov_ref, **narrow)[0]) == 0
    none = pair(TRUTH, x[:0], y[:0], cov[:0], ra, dec, cov_ref)
    assert [len(v) for v in none] == [0, 0, 0]


def test_confused_groups_are_assigned_at_least_total_q():
    """The oracle tries every assignment of small confused groups."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        n, m = (int(v) for v in rng.integers(2, 6, 2))
        sx, sy = 1000 + rng.uniform(0, 2, n), 1000 + rng.uniform(0, 2, n)
        rx, ry = 1000 + rng.uniform(0, 2, m), 1000 + rng.uniform(0, 2, m)
        ra, dec = TRUTH.pixel_to_sky(rx, ry)
        cov = np.tile([0.25, 0.25, 0.0], (n, 1))
        i, j, q = pair(TRUTH, sx, sy, cov, ra, dec, np.zeros((m, 3)))
        table = ((sx[:, None] - rx) ** 2 + (sy[:, None] - ry) ** 2) / 0.25
        gain = np.where(table < 18.42, table - 18.42, 0.0)
        best = gain[linear_sum_assignment(gain)].sum()
        assert (q - 18.42).sum() == pytest.approx(best, abs=0.02)
        assert len(set(i)) == len(set(j)) == len(i)
        few = min(n, m)
        if few <= 3:
            orders = itertools.permutations(range(max(n, m)), few)
            other = min(
                sum((gain if n <= m else gain.T)[a, b] for a, b in enumerate(o)) for o in orders
            )
            assert best == pytest.approx(other)


def test_mutual_nearest_against_the_long_way():
    rng = np.random.default_rng(3)
    a = rng.uniform(0, 100, 300) + 1j * rng.uniform(0, 100, 300)
    b = rng.uniform(0, 100, 400) + 1j * rng.uniform(0, 100, 400)
    i, j, d = mutual_nearest(a, b, 3.0)
    table = abs(a[:, None] - b)
    expected = [
        (k, table[k].argmin()) for k in range(300)
        if table[k].min() <= 3.0 and table[:, table[k].argmin()].argmin() == k
    ]
    assert list(zip(i, j)) == expected
    assert np.allclose(d, table[i, j])


def test_depth_match_does_not_cascade():
    """With a third of the stars not in the catalogue every source still gets its own or none."""
    rng = np.random.default_rng(4)
    n = 3000
    x, y = rng.uniform(0, 2000, n), rng.uniform(0, 2000, n)
    flux = 10 ** rng.uniform(2, 5, n)
    known = rng.uniform(size=n) > 0.3
    m, extra = known.sum(), 2000
    rx = np.concatenate([x[known] + rng.normal(0, 0.2, m), rng.uniform(0, 2000, extra)])
    ry = np.concatenate([y[known] + rng.normal(0, 0.2, m), rng.uniform(0, 2000, extra)])
    mag = -2.5 * np.log10(flux[known]) + rng.normal(0, 0.2, m)
    mag = np.concatenate([mag, rng.uniform(-12, -5, extra)])
    i, j = depth_match(x, y, flux, rx, ry, mag, radius_px=2.0)
    truth = np.full(n, -1)
    truth[known] = np.arange(known.sum())
    assert len(set(j.tolist())) == len(j) and len(set(i.tolist())) == len(i)
    assert np.hypot(x[i] - rx[j], y[i] - ry[j]).max() <= 2.0
    assert np.mean(truth[i] == j) > 0.97
    assert np.mean(np.isin(np.flatnonzero(known), i)) > 0.99
    # The widest gate shows what it guards against.
    i, j = depth_match(x, y, flux, rx, ry, mag, radius_px=1000.0)
    assert np.mean(truth[i] == j) < 0.9


def test_depth_match_prefers_the_bright_and_falls_back():
    # Two sources want one star: the brighter has it.
    i, j = depth_match([0.0, 1.0], [0, 0], [10.0, 100.0], [0.4, 50], [0, 0], [10, 12], radius_px=3)
    assert (i.tolist(), j.tolist()) == ([1], [0])
    # More sources than stars: mutual nearest neighbours.
    i, j = depth_match([0.0, 1.0], [0, 0], [10.0, 100.0], [0.4], [0.0], [10.0], radius_px=3)
    assert (i.tolist(), j.tolist()) == ([0], [0])
    assert [len(v) for v in depth_match([], [], [], [1.0], [1.0], [1.0])] == [0, 0]
    # Beyond the window of the brightest nothing is looked at.
    i, j = depth_match(
        [0.0], [0.0], [1.0], [0.0, 9.0], [0.0, 9.0], [20.0, 10.0], depth=1, depth_fraction=0.0
    )
    assert len(i) == 0


# ---- real lists


def test_a_real_list_against_gaia(data_dir):
    """A SExtractor list of LCO's kb76 against Gaia DR2, nothing known: 113 of 118 stars pair."""
    from astropy.io import fits
    from astropy.io.fits.verify import VerifyWarning

    folder = data_dir / "p16-lco-kb76-ldac-gaiadr2"
    if not folder.is_dir():
        pytest.skip("no p16 in CYNOSURE_TEST_DATA")
    with fits.open(folder / "ldac_test_catalog.fits") as hdus:
        sources = np.array(hdus[2].data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerifyWarning)  # its display formats are no FITS
        with fits.open(folder / "GAIA-DR2.cat") as hdus:
            stars = np.array(hdus[2].data)
    found = match_pointing(
        sources["XWIN_IMAGE"] - 1.0, sources["YWIN_IMAGE"] - 1.0, sources["FLUX_AUTO"],
        stars["XWIN_WORLD"], stars["YWIN_WORLD"], stars["MAG"], Pointing(), (2048, 2048),
    )
    assert len(found.source_index) >= 110
    assert found.log_odds > 200
    # The list's own positions are from a header that is some arcseconds off.
    i, j = found.source_index, found.reference_index
    x, y = sources["XWIN_IMAGE"][i] - 1.0, sources["YWIN_IMAGE"][i] - 1.0
    ra, dec = found.model.pixel_to_sky(x, y)
    dra = (ra - stars["XWIN_WORLD"][j]) * np.cos(np.radians(dec)) * 3600
    assert np.sqrt(np.mean(dra**2)) < 0.5
    assert np.sqrt(np.mean((dec - stars["YWIN_WORLD"][j]) ** 2)) * 3600 < 0.5
