"""Statistics, least squares and polynomials against NumPy and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cynosure.ground.errors import Degenerate
from cynosure.ground.numeric import (
    clip,
    lstsq,
    mad_std,
    n_terms,
    poly_design,
    poly_exponents,
    poly_gradient,
    rms,
    solve_normal,
)


def test_mad_std_is_the_standard_deviation_of_a_gaussian():
    values = np.random.default_rng(1).normal(3.0, 2.5, 100_000)
    assert mad_std(values) == pytest.approx(2.5, rel=0.01)
    assert np.isnan(mad_std([]))
    assert mad_std([1.0, np.nan, 1.0]) == 0.0


def test_rms_is_about_zero_and_not_about_the_mean():
    assert rms([3.0, 4.0]) == pytest.approx(np.sqrt(12.5))
    assert rms([5.0, 5.0]) == 5.0
    assert np.isnan(rms([]))


def test_clip_drops_what_was_planted_and_little_else():
    rng = np.random.default_rng(2)
    values = rng.normal(0, 1, 5000)
    values[:100] = rng.uniform(20, 90, 100)
    values[100] = np.nan
    keep = clip(values, 4.0)
    assert not keep[:101].any()
    assert keep[101:].mean() > 0.999
    assert values[keep].mean() == pytest.approx(0.0, abs=0.05)
    assert values[keep].std() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("n", [9, 40, 4000])
def test_lstsq_agrees_with_numpy_and_promises_its_scatter(n):
    rng = np.random.default_rng(n)
    a = rng.normal(size=(n, 4))
    w = rng.uniform(0.1, 10, n)
    b = a @ [1.0, -2.0, 3.0, 0.5] + rng.normal(size=n) / np.sqrt(w)
    root = np.sqrt(w)
    expected = np.linalg.lstsq(a * root[:, None], b * root, rcond=None)[0]
    result = lstsq(a, b, w)
    assert result.x == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert result.covariance == pytest.approx(np.linalg.inv((a.T * w) @ a), rel=1e-7)


def test_lstsq_keeps_its_digits_where_normal_equations_would_not():
    u = np.linspace(0.9, 1.1, 2000)  # powers that are nearly the same
    a = np.stack([u**k for k in range(6)], axis=1)
    x = np.array([1.0, -1.0, 2.0, 0.5, -0.25, 3.0])
    result = lstsq(a, a @ x, max_condition=1e13)
    assert a @ result.x == pytest.approx(a @ x, rel=1e-11)


def test_several_right_hand_sides_share_the_weights():
    rng = np.random.default_rng(5)
    a, b, w = rng.normal(size=(50, 3)), rng.normal(size=(50, 2)), rng.uniform(1, 2, 50)
    both = lstsq(a, b, w).x
    for k in range(2):
        assert both[:, k] == pytest.approx(lstsq(a, b[:, k], w).x, rel=1e-9)


def test_what_is_not_determined_is_refused_with_numbers():
    a = np.ones((10, 2))
    with pytest.raises(Degenerate) as caught:
        lstsq(a, np.ones(10), what="twins")
    assert caught.value.n_parameters == 2
    assert "twins" in str(caught.value)
    with pytest.raises(Degenerate):
        lstsq(np.eye(3)[:2], [1.0, 2.0])
    with pytest.raises(Degenerate):
        solve_normal(np.ones((2, 2)), np.ones(2), 10)


def test_normal_equations_solve_what_lstsq_solves():
    rng = np.random.default_rng(7)
    a, b, w = rng.normal(size=(200, 5)), rng.normal(size=200), rng.uniform(0.5, 2, 200)
    one, two = lstsq(a, b, w), solve_normal((a.T * w) @ a, (a.T * w) @ b, 200)
    assert two.x == pytest.approx(one.x, rel=1e-9)
    assert two.covariance == pytest.approx(one.covariance, rel=1e-8)


@given(st.integers(0, 7))
def test_exponents_are_all_terms_once_by_degree(degree):
    pairs = [tuple(p) for p in poly_exponents(degree)]
    assert len(pairs) == n_terms(degree) == len(set(pairs))
    assert {i + j for i, j in pairs} == set(range(degree + 1))
    assert [i + j for i, j in pairs] == sorted(i + j for i, j in pairs)


@pytest.mark.parametrize("degree", range(1, 8))
def test_gradient_is_the_derivative(degree):
    rng = np.random.default_rng(degree)
    u, v, h = rng.uniform(-1, 1, 30), rng.uniform(-1, 1, 30), 1e-6
    du, dv = poly_gradient(u, v, degree)
    by_u = (poly_design(u + h, v, degree) - poly_design(u - h, v, degree)) / (2 * h)
    by_v = (poly_design(u, v + h, degree) - poly_design(u, v - h, degree)) / (2 * h)
    assert du == pytest.approx(by_u, abs=1e-7)
    assert dv == pytest.approx(by_v, abs=1e-7)
