"""The error model finds the two numbers that were planted."""

import numpy as np
import pytest

from cynosure.geometry.fit.errormodel import (
    CHI2_OUTLIER,
    ErrorModel,
    fit_error_model,
    mahalanobis2,
)


def planted(n, a, sigma0_mas, seed=1):
    """Residuals of n stars whose source errors span two decades, elongated and correlated."""
    rng = np.random.default_rng(seed)
    sx = 10 ** rng.uniform(0.3, 2.3, n)
    sy = sx * rng.uniform(0.7, 1.4, n)
    rho = rng.uniform(-0.5, 0.5, n)
    source = np.stack([sx**2, sy**2, rho * sx * sy], axis=1)
    reference = np.stack([rng.uniform(0.1, 2.0, n) ** 2] * 2 + [np.zeros(n)], axis=1)
    cov = ErrorModel(a, sigma0_mas).covariance(source, reference)
    x = rng.normal(size=(n, 2))
    lower = np.zeros((n, 2, 2))
    lower[:, 0, 0] = np.sqrt(cov[:, 0])
    lower[:, 1, 0] = cov[:, 2] / lower[:, 0, 0]
    lower[:, 1, 1] = np.sqrt(cov[:, 1] - lower[:, 1, 0] ** 2)
    return np.einsum("nij,nj->ni", lower, x), source, reference


@pytest.mark.parametrize(("a", "sigma0_mas"), [(1.0, 10.0), (1.3, 3.0), (0.8, 25.0)])
def test_planted_numbers_come_back(a, sigma0_mas):
    residual, source, reference = planted(8000, a, sigma0_mas)
    model, inlier = fit_error_model(residual, source, reference)
    assert model.a == pytest.approx(a, rel=0.03)
    assert model.sigma0_mas == pytest.approx(sigma0_mas, rel=0.06)
    assert inlier.mean() > 0.999


def test_no_floor_is_found_where_there_is_none():
    residual, source, reference = planted(4000, 1.0, 0.0)
    model, _ = fit_error_model(residual, source, reference)
    assert model.sigma0_mas < 0.5
    assert model.a == pytest.approx(1.0, rel=0.03)


def test_outliers_do_not_move_it():
    residual, source, reference = planted(3000, 1.0, 8.0, seed=2)
    rng = np.random.default_rng(3)
    wrong = rng.choice(3000, 300, replace=False)
    residual[wrong] += rng.uniform(500, 3000, (300, 2)) * rng.choice([-1, 1], (300, 2))
    model, inlier = fit_error_model(residual, source, reference)
    assert model.a == pytest.approx(1.0, rel=0.06)
    assert model.sigma0_mas == pytest.approx(8.0, rel=0.12)
    far = np.zeros(3000, dtype=bool)
    far[wrong] = np.hypot(*residual[wrong].T) > 6 * np.sqrt(source[wrong, 0] + source[wrong, 1])
    assert not inlier[far].any()


def test_chi2_is_one_in_every_bin_of_error():
    residual, source, reference = planted(20000, 1.1, 12.0, seed=4)
    model, _ = fit_error_model(residual, source, reference)
    q = mahalanobis2(residual, model.covariance(source, reference))
    order = np.argsort(source[:, 0])
    for part in np.array_split(order, 8):
        # The mean of chi^2 / 2 over 2500 stars scatters by 2 %.
        assert q[part].mean() / 2 == pytest.approx(1.0, abs=0.06)


def test_leverage_is_undone():
    residual, source, reference = planted(5000, 1.0, 10.0, seed=5)
    shrunk = residual * np.sqrt(1 - 0.3)
    model, _ = fit_error_model(shrunk, source, reference, np.full((5000, 2), 0.3))
    assert model.a == pytest.approx(1.0, rel=0.03)
    assert model.sigma0_mas == pytest.approx(10.0, rel=0.06)


def test_few_stars_stay_near_the_prior():
    residual, source, reference = planted(4, 1.0, 0.0, seed=6)
    model, _ = fit_error_model(residual, source, reference)
    assert 0.4 < model.a < 2.5


def test_mahalanobis_by_hand():
    # Sigma = [[4, 2], [2, 9]], r = (1, 2): r^T Sigma^-1 r = (9 - 8 + 16) / 32
    q = mahalanobis2(np.array([[1.0, 2.0]]), np.array([[4.0, 9.0, 2.0]]))
    assert q[0] == pytest.approx((9 * 1 - 2 * 2 * 1 * 2 + 4 * 4) / (36 - 4))
    assert pytest.approx(-2 * np.log(1e-4), abs=1e-5) == CHI2_OUTLIER


def test_a_start_that_explains_nothing_is_not_believed():
    rng = np.random.default_rng(8)
    flat = np.tile([100.0, 100.0, 0.0], (6, 1))
    residual = rng.normal(0, 900.0, (6, 2))
    model, _ = fit_error_model(residual, flat, 1e-4 * flat, start=ErrorModel(1.0, 20.0))
    assert 300 < model.sigma0_mas < 2700
