"""Fields of few stars: what they cannot tell of the distortion is in the error of the WCS."""

import numpy as np
import pytest

from cynosure.geometry.fit.exposure import Pairs, fit_wcs, linear_part
from cynosure.geometry.fit.priors import Shrinkage, mixture, simplified
from cynosure.geometry.wcs import SkyModel
from cynosure.ground.numeric import n_terms, poly_exponents

SHAPE = (1000, 1200)
PIXEL_DEG = 1.0 / 3600
HALF_PX = 600.0


def lens(radial_px, rng, terms_px=0.0):
    """Return a rotated field with a cubic radial distortion, and others of its degree."""
    powers = [tuple(e) for e in poly_exponents(3)]
    px = np.zeros((2, n_terms(3)))
    for axis, (one, two) in enumerate((((3, 0), (1, 2)), ((2, 1), (0, 3)))):
        px[axis, powers.index((1, 0) if axis == 0 else (0, 1))] = HALF_PX
        px[axis, powers.index(one)] = px[axis, powers.index(two)] = radial_px
    px[:, 3:] += rng.normal(0.0, terms_px, (2, n_terms(3) - 3))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return SkyModel(150.0, 20.0, 599.5, 499.5, HALF_PX, turn @ np.diag([-1, 1]) @ px * PIXEL_DEG)


def stars(model, n, rng):
    x, y = rng.uniform(0, SHAPE[1], n), rng.uniform(0, SHAPE[0], n)
    ra, dec = model.pixel_to_sky(x, y)
    error = 10 ** rng.uniform(-2.0, -0.7, n)
    none = np.zeros(n)
    x, y = x + rng.normal(0, error), y + rng.normal(0, error)
    ref = np.full(n, 0.1)
    return Pairs(
        x, y, np.stack([error**2, error**2, none], axis=1), ra, dec,
        np.stack([ref, ref, none], axis=1), rng.integers(1, 2**60, n),
    )


def errors_px(fit, truth):
    """Return the error of a fit over the frame and what it is said to be, (n, 2) each."""
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, 1199, 9), np.linspace(0, 999, 9)))
    ra, dec = fit.model.pixel_to_sky(x, y)
    ra0, dec0 = truth.pixel_to_sky(x, y)
    error = np.stack([(ra - ra0) * np.cos(np.radians(dec0)), dec - dec0], axis=1) * 3600
    return error, fit.wcs_error_mas(x, y) / 1000


def fit_all(n, fields, radial, terms=0.0):
    out = []
    for seed in range(fields):
        rng = np.random.default_rng([seed, n])
        truth = lens(rng.normal(0.0, radial), rng, terms)
        fit = fit_wcs(stars(truth, n, rng), linear_part(truth, SHAPE), SHAPE, None, "general")
        out.append((fit, *errors_px(fit, truth)))
    return out


@pytest.mark.parametrize(
    ("n", "radial", "worst_px"),
    [(9, 1.0, 1.0), (16, 1.0, 0.5), (30, 1.0, 0.2), (80, 1.0, 0.12), (16, 0.0, 0.2),
     (80, 0.0, 0.08), (30, 4.0, 0.4)],
)  # fmt: skip
def test_few_stars_tell_a_distortion_or_that_they_do_not_know(n, radial, worst_px):
    fits = fit_all(n, 7, radial)
    pulls = [np.sqrt(np.mean((error / sigma) ** 2)) for _, error, sigma in fits]
    assert 0.6 < np.sqrt(np.mean(np.square(pulls))) < 1.3
    assert np.median([np.hypot(*error.T).max() for _, error, _ in fits]) < worst_px
    # A wrong answer of which nothing is said is what this is all for.
    assert max(np.abs(error / sigma).max() for _, error, sigma in fits) < 7


def test_a_straight_field_is_straight():
    orders = [fit.order for fit, _, _ in fit_all(40, 6, 0.0)]
    assert np.mean(np.array(orders) == 1) > 0.6
    assert all(fit.order == 3 for fit, _, _ in fit_all(120, 4, 2.0))


def test_a_distortion_that_is_known_is_kept_and_its_error_is_not_nothing():
    rng = np.random.default_rng(4)
    truth = lens(3.0, rng, 0.5)
    coeff = truth.coeff.copy()
    coeff[:, 0] += 0.8 * PIXEL_DEG
    came_with = truth.replaced(coeff=coeff)
    fit = fit_wcs(stars(truth, 8, rng), linear_part(came_with, SHAPE), SHAPE, came_with)
    assert fit.order == 3
    error, sigma = errors_px(fit, truth)
    assert np.hypot(*error.T).max() < 0.25
    assert np.sqrt(np.mean((error / sigma) ** 2)) < 1.5


def test_stars_in_a_corner_leave_the_rest_open():
    rng = np.random.default_rng(6)
    truth = lens(1.5, rng)
    pairs = stars(truth, 200, rng)
    fit = fit_wcs(pairs[(pairs.x < 400) & (pairs.y < 350)], linear_part(truth, SHAPE), SHAPE)
    error, sigma = errors_px(fit, truth)
    assert fit.order <= 3
    assert sigma.max() > 10 * sigma.min()
    corner = np.logical_and.outer(np.arange(9) < 3, np.arange(9) < 3).ravel()
    assert np.abs(error[corner] / sigma[corner]).max() < 4


def test_the_posterior_is_that_of_the_textbook():
    rng = np.random.default_rng(7)
    prior = Shrinkage.of(lens(0.0, rng), 3, 0.1)
    prior.weight[:] = 1e12  # so heavy that sizes stay as they are
    t = n_terms(3)
    design = rng.normal(size=(100, 2 * t))
    goal = rng.normal(size=100) * PIXEL_DEG
    normal, right = design.T @ design / PIXEL_DEG**2, design.T @ goal / PIXEL_DEG**2
    p, covariance = prior.solve(normal, right)
    sizes = np.zeros(prior.basis.shape[1])
    for rows, size2 in zip(prior.groups, prior.typical2):
        sizes[rows] = size2
    assert prior.size2 == pytest.approx(prior.typical2, rel=1e-6)
    # The coefficients' own prior: the degrees' sizes, and the radial direction's beside them.
    spread = prior.basis @ np.diag(sizes) @ prior.basis.T
    free = np.abs(np.diag(spread)) == 0
    spread[free, free] = 1e6
    expected = np.linalg.inv(normal + np.linalg.inv(spread))
    assert covariance == pytest.approx(expected, rel=1e-4, abs=1e-6 * np.abs(expected).max())
    assert p == pytest.approx(expected @ right, rel=1e-4, abs=1e-6 * np.abs(p).max())


def test_a_mixture_is_wider_than_its_parts():
    one, two = np.array([0.0, 0.0]), np.array([2.0, 0.0])
    mean, covariance = mixture([(0.0, one, np.eye(2)), (0.3, two, np.eye(2))])
    assert mean == pytest.approx([1.0, 0.0])
    assert np.diag(covariance) == pytest.approx([2.0, 1.0])
    mean, _ = mixture([(0.0, one, np.eye(2)), (-50.0, two, np.eye(2))])
    assert mean == pytest.approx([0.0, 0.0])


def test_terms_that_move_nothing_are_left_out():
    t = n_terms(3)
    u, v = np.random.default_rng(8).uniform(-1, 1, (2, 50))
    p = np.zeros(2 * t)
    p[1] = p[t + 2] = 1.0
    new, degree = simplified(p, np.eye(2 * t) * 1e-4, u, v, 3)
    assert degree == 1
    assert new == pytest.approx(p)
    p[6] = 0.5
    assert simplified(p, np.eye(2 * t) * 1e-4, u, v, 3)[1] == 3
    new, degree = simplified(p, np.eye(2 * t) * 1e-4, u, v, 2)
    assert degree == 2
    assert new[6] == 0


def test_many_stars_of_a_lens_gain_from_its_shape_and_of_anything_else_lose_nothing():
    for terms, gain in ((0.0, 0.75), (0.4, 1.1)):
        shrunk, plain, pulls = [], [], []
        for seed in range(6):
            rng = np.random.default_rng([7, seed])
            truth = lens(2.0, rng, terms)
            pairs = stars(truth, 2500, rng)
            fit = fit_wcs(pairs, linear_part(truth, SHAPE), SHAPE)
            error, sigma = errors_px(fit, truth)
            pulls.append(np.mean((error / sigma) ** 2))
            shrunk.append(np.mean(error**2))
            other = fit_wcs(pairs, linear_part(truth, SHAPE), SHAPE, geometry="poly5")
            plain.append(np.mean(errors_px(other, truth)[0] ** 2))
            assert other.order == 5
        assert np.sqrt(np.mean(shrunk) / np.mean(plain)) < gain
        assert 0.6 < np.sqrt(np.mean(pulls)) < 1.25
