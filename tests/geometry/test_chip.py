"""One chip: which pairs enter its fit, with which errors, and as which observations."""

from dataclasses import replace

import numpy as np
import pytest
from chips import SHAPE, chip_model, frame_of, observed

from cynosure.data.tables import REFERENCE
from cynosure.geometry.fit.chip import TELLING, fit_chip, make_pairs
from cynosure.geometry.observations import (
    PARAMETERS,
    Observations,
    prior_covariance,
    star_priors,
)
from cynosure.ground.sky import MAS_PER_DEG, at_epoch, earth_position_au, east_north

FIT = {"fit": {}}


def fitted(sources, reference, model, **options):
    return fit_chip(
        frame_of(model).replaced(wcs=None), sources, reference, model, SHAPE, FIT, **options
    )


@pytest.mark.parametrize("n", [TELLING - 1, TELLING])
def test_few_stars_are_given_the_errors_that_many_can_tell(n):
    sources, reference = observed(chip_model(40.0, 10.0), 50)
    assumed = reference.cov_mas2 + np.array([3600.0, 3600.0, 0.0])
    reference = replace(reference, cov_mas2=assumed)
    pairs = make_pairs(sources, reference, np.arange(n), np.arange(n))
    want = reference.stated_mas2 if n >= TELLING else assumed
    assert np.array_equal(pairs.cov_mas2, want[:n])


def test_an_error_that_is_assumed_of_all_stars_does_not_hide_how_good_they_are():
    model = chip_model(40.0, 10.0)
    sources, reference = observed(model, 300, scatter_mas=4.0)
    reference = replace(reference, cov_mas2=reference.cov_mas2 + np.array([3600.0, 3600.0, 0.0]))
    chip = fitted(sources, reference, model)
    assert chip.fit.errors.sigma0_mas == pytest.approx(4.0, abs=1.0)
    assert chip.fit.chi2 / chip.fit.dof == pytest.approx(1.0, abs=0.2)


def test_blended_stars_are_not_fitted():
    """A blend's centre lies between two stars, so it says nothing of either."""
    model = chip_model(40.0, 10.0)
    sources, reference = observed(model, 200, seed=4, source_px=(0.002, 0.002, 0.0))
    blended = np.arange(40)
    sources["x"][blended] += 0.12  # towards a companion 2.4 mag fainter at 1.3 px
    x, y = model.sky_to_pixel(reference.ra_deg[blended], reference.dec_deg[blended])
    companion = reference[blended]
    ra, dec = model.pixel_to_sky(x + 1.3, y)
    stars = companion.stars.copy()
    stars["mag"] += 2.4
    stars["ref_id"] += 1
    both = replace(
        reference, stars=np.concatenate([reference.stars, stars]),
        ra_deg=np.r_[reference.ra_deg, ra], dec_deg=np.r_[reference.dec_deg, dec],
        cov_mas2=np.concatenate([reference.cov_mas2, companion.cov_mas2]),
        stated_mas2=np.concatenate([reference.stated_mas2, companion.stated_mas2]),
    )
    chip = fitted(sources, both, model)
    assert len(chip.source_index) > 120
    assert not np.isin(chip.source_index, blended).any()
    assert chip.fit.errors.sigma0_mas < 2.0


# ------------------------------------------------------------------------------- observations
def gaia_like(n, seed=2):
    rng = np.random.default_rng(seed)
    names = [c for c in REFERENCE.names if c.endswith("corr")]
    # Correlations of a random matrix that is positive definite.
    a = rng.normal(size=(n, 5, 8))
    cov = a @ a.transpose(0, 2, 1)
    root = np.sqrt(np.einsum("nii->ni", cov))
    rho = cov / root[:, :, None] / root[:, None, :]
    upper = [(i, k) for i in range(5) for k in range(i + 1, 5)]
    order = ["ra_dec_corr", "ra_parallax_corr", "ra_pmra_corr", "ra_pmdec_corr",
             "dec_parallax_corr", "dec_pmra_corr", "dec_pmdec_corr", "parallax_pmra_corr",
             "parallax_pmdec_corr", "pmra_pmdec_corr"]
    assert sorted(order) == sorted(names)
    return REFERENCE.build(
        ref_id=np.arange(1, n + 1), ra_deg=rng.uniform(0, 360, n), dec_deg=rng.uniform(-89, 89, n),
        ref_epoch_yr=2016.0, mag=15.0, parallax_mas=rng.uniform(0, 9, n),
        pm_ra_mas_yr=rng.normal(0, 20, n), pm_dec_mas_yr=rng.normal(0, 20, n),
        ra_error_mas=rng.uniform(0.1, 2, n), dec_error_mas=rng.uniform(0.1, 2, n),
        parallax_error_mas=rng.uniform(0.1, 2, n), pm_ra_error_mas_yr=rng.uniform(0.1, 2, n),
        pm_dec_error_mas_yr=rng.uniform(0.1, 2, n), good=True,
        **{name: rho[:, i, k] for (i, k), name in zip(upper, order)},
    )


def test_a_prior_propagated_to_the_epoch_is_the_reference_star_there():
    stars, epoch = gaia_like(50), 2029.3
    stars["pm_ra_mas_yr"][:5] = stars["pm_dec_mas_yr"][:5] = np.nan
    ra, dec, cov = at_epoch(stars, epoch)
    priors = star_priors(stars)
    dt = epoch - 2016.0
    east, north = east_north(priors["ra_deg"], priors["dec_deg"])
    factor = -earth_position_au(epoch)
    j = np.zeros((50, 2, 5))
    j[:, 0, 0] = j[:, 1, 1] = 1.0
    j[:, 0, 2], j[:, 1, 2] = east @ factor, north @ factor
    j[:, 0, 3] = j[:, 1, 4] = dt
    want = j @ prior_covariance(priors) @ j.transpose(0, 2, 1)
    got = np.array([[cov[:, 0], cov[:, 2]], [cov[:, 2], cov[:, 1]]]).transpose(2, 0, 1)
    assert np.allclose(got, want, rtol=1e-6)
    motion = np.stack([priors["parallax_mas"], priors["pm_ra_mas_yr"], priors["pm_dec_mas_yr"]])
    moved = np.einsum("nij,jn->ni", j[:, :, 2:], motion)
    away = (ra - stars["ra_deg"] + 180) % 360 - 180
    assert np.abs(away * np.cos(np.radians(stars["dec_deg"])) * MAS_PER_DEG - moved[:, 0]).max() < 1
    assert np.abs((dec - stars["dec_deg"]) * MAS_PER_DEG - moved[:, 1]).max() < 0.01
    assert PARAMETERS == ("ra", "dec", "parallax", "pm_ra", "pm_dec")


def test_a_fit_and_a_set_of_exposures_take_the_same_observations():
    model = chip_model(40.0, 10.0)
    sources, reference = observed(model, 80, source_px=(0.01, 0.02, 0.4))
    chip = fitted(sources, reference, model)
    seen = chip.observations(reference)
    pairs = make_pairs(sources, reference, chip.source_index, chip.reference_index)
    for name in pairs.__slots__:
        assert np.array_equal(getattr(seen.pairs(), name), getattr(pairs, name)), name
    assert pairs.cov_px2[0, 2] == pytest.approx(
        0.4 * np.sqrt(pairs.cov_px2[0, 0] * pairs.cov_px2[0, 1])
    )
    assert (seen.rows["epoch_yr"] == 2016.0).all()
    half = seen[np.arange(len(seen)) % 2 == 0].of_exposure(1)
    both = Observations.joined([seen, half])
    assert len(both.priors) == len(seen), "a star that two exposures have seen is one star"
    assert np.bincount(both.rows["exposure"]).tolist() == [len(seen), len(half)]
    assert np.array_equal(both.pairs().ref_id, np.r_[seen.pairs().ref_id, half.pairs().ref_id])
    assert len(Observations.joined([])) == 0
