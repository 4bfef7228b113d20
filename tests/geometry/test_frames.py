"""Covariances keep their axes: planted errors that are long, turned and near the poles."""

import numpy as np
import pytest

from cynosure.geometry.fit.exposure import Pairs, fit_wcs
from cynosure.geometry.match.pairs import pair
from cynosure.geometry.skymodel import SkyModel
from cynosure.ground.numeric import propagated
from cynosure.ground.sky import (
    MAS_PER_DEG,
    covariance_on_plane,
    covariance_on_sky,
    deproject,
    plane_jacobian,
    project,
    radec,
    sky_offset_mas,
    unit_vectors,
)

SHAPE = (2000, 2000)
SCALE_DEG = 1.0 / 3600.0
PLACES = [(210.0, 54.0), (0.02, 89.7), (75.0, 89.7), (359.9, -89.9), (0.0, -20.0)]


def model_at(ra, dec, rotation_deg=25.0):
    turn = np.radians(rotation_deg)
    half = 1000.0 * SCALE_DEG
    matrix = np.array([[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * half
    return SkyModel(ra, dec, 999.5, 999.5, 1000.0, np.column_stack([np.zeros(2), matrix]))


def matrices(cov):
    return np.array([[cov[:, 0], cov[:, 2]], [cov[:, 2], cov[:, 1]]]).transpose(2, 0, 1)


def scattered(rng, cov):
    """Return one draw (n, 2) of each covariance (n, 3)."""
    lower = np.linalg.cholesky(matrices(cov))
    return np.einsum("nij,nj->ni", lower, rng.normal(size=(len(cov), 2)))


def moved(ra, dec, offset_mas):
    """Return positions moved along ra (with cos dec) and dec, by the plane at each."""
    out = [deproject(*(o / MAS_PER_DEG), r, d) for o, r, d in zip(offset_mas, ra, dec)]
    return np.array(out).T


# ------------------------------------------------------------------------------- the one function
@pytest.mark.parametrize(("ra0", "dec0"), PLACES)
@pytest.mark.parametrize("away_deg", [0.05, 8.0])
def test_the_jacobian_of_the_plane_is_that_of_the_projection(ra0, dec0, away_deg):
    rng = np.random.default_rng(1)
    ra, dec = deproject(*rng.uniform(-away_deg, away_deg, (2, 50)), ra0, dec0)
    step = 200.0  # mas: its square is 1e-7 of it
    got = plane_jacobian(ra, dec, ra0, dec0)
    for k, direction in enumerate(np.eye(2)):
        ends = [
            np.stack(project(*moved(ra, dec, np.tile(sign * step * direction, (50, 1))),
                             ra0, dec0)) for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]) * MAS_PER_DEG / (2 * step)
        assert np.abs(got[:, :, k].T - slope).max() < 1e-6


def test_covariances_are_propagated_as_matrices_are():
    rng = np.random.default_rng(2)
    jacobian = rng.normal(size=(40, 2, 2))
    sx, sy, rho = rng.uniform(1, 30, 40), rng.uniform(1, 30, 40), rng.uniform(-0.9, 0.9, 40)
    cov = np.stack([sx**2, sy**2, rho * sx * sy], axis=1)
    want = jacobian @ matrices(cov) @ jacobian.transpose(0, 2, 1)
    assert np.allclose(matrices(propagated(jacobian, cov)), want, rtol=1e-12, atol=1e-9)
    # By hand: a turn by 90 degrees swaps the variances and the sign of the correlation.
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    assert propagated(turn, np.array([[900.0, 9.0, 60.0]])).tolist() == [[9.0, 900.0, -60.0]]


@pytest.mark.parametrize(("ra0", "dec0"), PLACES)
def test_a_covariance_comes_back_from_the_plane(ra0, dec0):
    rng = np.random.default_rng(3)
    ra, dec = deproject(*rng.uniform(-1, 1, (2, 30)), ra0, dec0)
    cov = np.tile([900.0, 9.0, 40.0], (30, 1))
    there = covariance_on_plane(cov, ra, dec, ra0, dec0)
    assert np.allclose(covariance_on_sky(there, ra, dec, ra0, dec0), cov, rtol=1e-9, atol=1e-7)
    if abs(dec0) > 89:  # the axes are turned by the difference of right ascension
        assert np.ptp(there[:, 0]) > 500


@pytest.mark.parametrize(("ra0", "dec0"), PLACES)
def test_an_offset_on_the_sky_is_what_was_planted(ra0, dec0):
    rng = np.random.default_rng(4)
    ra, dec = deproject(*rng.uniform(-0.3, 0.3, (2, 200)), ra0, dec0)
    want = rng.normal(0, 400.0, (200, 2))
    got = np.stack(sky_offset_mas(*moved(ra, dec, want), ra, dec), axis=1)
    assert np.abs(got - want).max() < 1e-4


# ------------------------------------------------------------------------------------- the fit
def polar_pairs(model, n, seed, sigma0_mas, reference_mas, source_px):
    """Pairs whose reference errors are (ra, dec, rho) and source errors (x, y, rho)."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, SHAPE[1], n), rng.uniform(0, SHAPE[0], n)

    def covariance(a, b, rho):
        return np.tile([a * a, b * b, rho * a * b], (n, 1))

    source, reference = covariance(*source_px), covariance(*reference_mas)
    source *= 10 ** rng.uniform(0, 2, (n, 1))  # errors over a decade tell a from sigma_0
    ra, dec = model.pixel_to_sky(x, y)
    truth = ra, dec
    ra, dec = moved(ra, dec, scattered(rng, reference) + rng.normal(0, sigma0_mas, (n, 2)))
    dx, dy = scattered(rng, source).T
    ids = rng.integers(1, 2**62, n)
    return Pairs(x + dx, y + dy, source, ra, dec, reference, ids), truth


@pytest.mark.parametrize(("ra0", "dec0"), [(75.0, 89.7), (200.0, -89.9), (0.0, 40.0)])
def test_long_errors_near_a_pole_are_known_as_such(ra0, dec0):
    model = model_at(ra0, dec0)
    pairs, _ = polar_pairs(model, 1500, 5, 1.5, (30.0, 3.0, 0.5), (0.002, 0.0005, -0.6))
    fit = fit_wcs(pairs, model, SHAPE, geometry="poly1")
    assert fit.errors.sigma0_mas == pytest.approx(1.5, abs=0.5)
    assert fit.errors.a == pytest.approx(1.0, abs=0.12)
    assert fit.chi2 / fit.dof == pytest.approx(1.0, abs=0.06)
    # 1500 stars, and the information of each is that of its short axis: each star's axes differ.
    white = np.linalg.solve(
        np.linalg.cholesky(matrices(fit.sigma2_mas2)), fit.residual_mas[:, :, None]
    )[..., 0]
    assert np.std(white[fit.used], axis=0) == pytest.approx([1.0, 1.0], abs=0.06)
    assert np.std(white[fit.reserved], axis=0) == pytest.approx([1.0, 1.0], abs=0.2)
    at = covariance_on_sky(
        fit.sigma2_mas2, pairs.ra_deg, pairs.dec_deg, model.ra0_deg, model.dec0_deg
    )
    pure = covariance_on_sky(
        propagated(model.jacobian(pairs.x, pairs.y) * MAS_PER_DEG, pairs.cov_px2),
        pairs.ra_deg, pairs.dec_deg, model.ra0_deg, model.dec0_deg,
    ) + np.array([900.0 + 1.5**2, 9.0 + 1.5**2, 45.0])
    assert np.median(np.sqrt(at[:, 0] / pure[:, 0])) == pytest.approx(1.0, abs=0.03)
    assert np.median(np.sqrt(at[:, 1] / pure[:, 1])) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("ra0", "dec0"), [(75.0, 89.7), (0.0, -60.0)])
def test_the_error_of_the_wcs_is_along_ra_and_dec(ra0, dec0):
    model = model_at(ra0, dec0)
    # One corner's stars alone make an error that is long in one direction elsewhere.
    x, y = np.array([1000.0, 1990.0, 10.0]), np.array([1000.0, 1990.0, 1990.0])
    pulls = []
    for seed in range(60):
        pairs, _ = polar_pairs(model, 60, 100 + seed, 3.0, (20.0, 2.0, 0.0), (0.005, 0.001, 0.5))
        fit = fit_wcs(pairs, model, SHAPE, geometry="poly1")
        got = np.stack(sky_offset_mas(*fit.model.pixel_to_sky(x, y), *model.pixel_to_sky(x, y)))
        pulls.append(got.T / fit.wcs_error_mas(x, y))
    # 180 pulls an axis: their standard deviation is known to 5 %, the error model to 15 %.
    assert np.std(np.array(pulls).reshape(-1, 2), axis=0) == pytest.approx([1, 1], abs=0.25)


def test_the_gate_knows_the_long_axis_near_a_pole():
    model = model_at(75.0, 89.7)
    pairs, _ = polar_pairs(model, 400, 8, 0.0, (600.0, 20.0, 0.4), (0.005, 0.005, 0.0))
    i, j, q = pair(
        model, pairs.x, pairs.y, pairs.cov_px2, pairs.ra_deg, pairs.dec_deg, pairs.cov_mas2,
    )
    true = i == j
    assert true.sum() > 370
    # Of chi^2 with two degrees of freedom.
    assert np.mean(q[true]) == pytest.approx(2.0, abs=0.3)


def test_positions_at_the_pole_itself():
    ra, dec = radec(unit_vectors([10.0, 200.0], [90.0, -90.0]))
    assert np.isfinite(np.stack(sky_offset_mas(ra, dec, ra, dec))).all()
    round_ = np.array([[4.0, 4.0, 0.0]])
    there = covariance_on_plane(round_, ra[:1], dec[:1], 33.0, 89.9)
    assert np.allclose(there, round_, rtol=1e-4, atol=1e-4)
