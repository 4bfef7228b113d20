"""The robust loop, for any linear design; and what a fit says of itself."""

from dataclasses import replace

import numpy as np
import pytest
from test_fit import SHAPE, make_pairs, start_of, truth_model

from cynosure.geometry.fit.errormodel import mahalanobis2
from cynosure.geometry.fit.exposure import fit_wcs, reserve
from cynosure.geometry.fit.robust import Measured, Rules, fit_robust, without_outliers
from cynosure.ground.errors import Degenerate


class Shift:
    """The simplest design: one shift of all values."""

    def __init__(self, n):
        self.n = n

    def apply(self, p):
        return np.tile(p, (self.n, 1))

    def normal(self, w, goal):
        xx, yy, xy = w.sum(axis=0)
        right = [w[:, 0] @ goal[:, 0] + w[:, 2] @ goal[:, 1],
                 w[:, 2] @ goal[:, 0] + w[:, 1] @ goal[:, 1]]
        return np.array([[xx, xy], [xy, yy]]), np.array(right)

    def variance(self, c):
        return np.tile([c[0, 0], c[1, 1], c[0, 1]], (self.n, 1))


def planted(n=600, shift=(40.0, -25.0), wrong=0.1, seed=3):
    rng = np.random.default_rng(seed)
    sx, sy = rng.uniform(3, 30, (2, n))
    rho = rng.uniform(-0.7, 0.7, n)
    source = np.stack([sx**2, sy**2, rho * sx * sy], axis=1)
    reference = np.tile([0.04, 0.04, 0.0], (n, 1))
    u, v = rng.normal(size=(2, n))
    noise = np.stack([sx * u, sy * (rho * u + np.sqrt(1 - rho**2) * v)], axis=1)
    goal = np.array(shift) + noise + rng.normal(0, 6.0, (n, 2))
    bad = rng.random(n) < wrong
    goal[bad] += rng.choice([-1, 1], (bad.sum(), 2)) * rng.uniform(300, 900, (bad.sum(), 2))
    return Measured(goal, source, reference, np.ones(n, dtype=bool)), bad


def test_a_shift_comes_back_with_its_error_and_the_error_model():
    pulls = []
    for seed in range(40):
        measured, bad = planted(200, seed=seed)
        start = without_outliers(measured.goal, measured.train, 5.0)
        fit = fit_robust(Shift(200), measured, Rules(), start)
        assert not fit.used[bad].any()
        assert fit.used[~bad].mean() > 0.98
        error = fit.parameters - [40.0, -25.0]
        pulls.append(error / np.sqrt(np.diag(fit.covariance)))
    assert np.std(pulls) == pytest.approx(1.0, abs=0.2)  # 80 pulls: known to 8 %
    assert fit.errors.sigma0_mas == pytest.approx(6.0, rel=0.35)
    assert fit.errors.a == pytest.approx(1.0, abs=0.15)
    assert fit.history[-1].n_used == fit.used.sum()


def test_stars_that_may_not_take_part_do_not():
    measured, _ = planted()
    held = np.arange(600) % 5 == 0
    other = measured._replace(train=~held)
    spoiled = other._replace(goal=np.where(held[:, None], 1e4, measured.goal))
    fits = [
        fit_robust(Shift(600), m, Rules(), without_outliers(m.goal, m.train, 5.0))
        for m in (other, spoiled)
    ]
    assert np.array_equal(fits[0].parameters, fits[1].parameters)
    assert not fits[0].used[held].any()
    assert not fits[0].leverage[held].any()


def test_too_few_equations_are_degenerate():
    measured, _ = planted(8)
    none = measured._replace(train=np.zeros(8, dtype=bool))
    start = without_outliers(measured.goal, measured.train, 5.0)
    with pytest.raises(Degenerate, match="shift"):
        fit_robust(
            Shift(8), none, Rules(what="shift"), start._replace(use=np.zeros(8, dtype=bool))
        )


# ---------------------------------------------------------------------- what a fit says of itself
def test_stars_held_out_are_judged_by_the_threshold_of_the_fit_and_not_more_strictly():
    truth = truth_model(1)
    pairs, _ = make_pairs(truth, n=3000, sigma0_mas=15.0)
    fit = fit_wcs(pairs, start_of(truth), SHAPE, geometry="poly1")
    held = reserve(pairs.ref_id)
    # One in ten thousand of them is an outlier.
    assert fit.reserved.sum() >= held.sum() - 2
    z = fit.residual_mas[fit.reserved] / np.sqrt(fit.sigma2_mas2[fit.reserved, :2])
    assert np.sqrt(np.mean(z**2)) == pytest.approx(1.0, abs=0.08)
    strict = fit_wcs(pairs, start_of(truth), SHAPE, geometry="poly1", error_threshold=3.0)
    q = mahalanobis2(strict.residual_mas, strict.sigma2_mas2)
    assert np.array_equal(strict.reserved, held & (q < 3.0**2))
    assert 0 < (held & ~strict.reserved).sum() < 0.05 * held.sum()


def test_the_error_of_a_star_held_out_has_that_of_the_wcs_in_it():
    truth = truth_model(3)
    q, bare = [], []
    for seed in range(40):
        pairs, _ = make_pairs(truth, n=60, sigma_px=(0.02, 0.03), seed=300 + seed)
        fit = fit_wcs(pairs, start_of(truth), SHAPE, geometry="poly3", error_threshold=50.0)
        assert fit.leverage[fit.used].mean() > 0.15, "the stars are few for what is fitted"
        held = fit.reserved
        q.append(mahalanobis2(fit.residual_mas[held], fit.sigma2_mas2[held]))
        own = fit.plane_variance_mas2(pairs.x[held], pairs.y[held])
        bare.append(mahalanobis2(fit.residual_mas[held], fit.sigma2_mas2[held] - own))
    # 340 stars: the median of chi^2 / (2 ln 2) is known to 8 %.
    typical = np.median(np.concatenate(q)) / (2 * np.log(2))
    assert typical == pytest.approx(1.0, abs=0.25)
    assert np.median(np.concatenate(bare)) / (2 * np.log(2)) > 1.25 * typical


def test_the_error_of_the_wcs_grows_with_chi2_and_never_shrinks():
    truth = truth_model(1)
    pairs, _ = make_pairs(truth, n=200)
    fit = fit_wcs(pairs, start_of(truth), SHAPE, geometry="poly1")
    x, y = np.array([10.0, 1500.0]), np.array([30.0, 1000.0])
    calm = replace(fit, chi2=float(fit.dof)).wcs_error_mas(x, y)
    worse = replace(fit, chi2=4.0 * fit.dof).wcs_error_mas(x, y)
    better = replace(fit, chi2=0.25 * fit.dof).wcs_error_mas(x, y)
    assert worse == pytest.approx(2.0 * calm, rel=1e-9)
    assert np.array_equal(better, calm)
