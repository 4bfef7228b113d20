"""The compiled loops of the PSF against splines of SciPy, finite differences and dense algebra."""

import numpy as np
import pytest
import twins

from cynosure.pixels import psfkernels

NOTHING = np.empty((0, 0))


def smooth_nodes(m, rng):
    at = np.arange(m) - 0.5 * (m - 1)
    r2 = at[:, None] ** 2 + 1.3 * at[None, :] ** 2 + 0.4 * at[:, None] * at[None, :]
    return np.exp(-0.5 * r2 / 6) * rng.uniform(0.8, 1.2, (m, m))


@pytest.mark.parametrize("spacing", [0.3, 0.5, 1.0, 1.7])
def test_stamp_is_the_spline_and_its_gradient(spacing):
    rng = np.random.default_rng(1)
    nodes, side = smooth_nodes(25, rng), 13
    for x, y, x0, y0 in ((20.3, 11.8, 14, 6), (20.0, 12.5, 14, 6), (3.2, 40.1, 0, 36)):
        p, px, py = (np.full((side, side), np.nan) for _ in range(3))
        psfkernels.stamp(nodes, spacing, x, y, x0, y0, p, px, py, True)
        twin = twins.stamp(nodes, spacing, x, y, x0, y0, side, side)
        for ours, expected in zip((p, px, py), twin):
            np.testing.assert_allclose(ours, expected, atol=1e-13)
        plain = np.full((side, side), np.nan)
        psfkernels.stamp(nodes, spacing, x, y, x0, y0, plain, NOTHING, NOTHING, False)
        np.testing.assert_array_equal(plain, p)


def test_gradient_is_that_of_finite_differences():
    rng = np.random.default_rng(2)
    nodes, eps = smooth_nodes(31, rng), 1e-6
    p, px, py, low, high = (np.empty((9, 9)) for _ in range(5))
    psfkernels.stamp(nodes, 0.5, 10.3, 9.8, 6, 6, p, px, py, True)
    for grad, (ax, ay) in ((px, (eps, 0)), (py, (0, eps))):
        psfkernels.stamp(nodes, 0.5, 10.3 - ax, 9.8 - ay, 6, 6, low, NOTHING, NOTHING, False)
        psfkernels.stamp(nodes, 0.5, 10.3 + ax, 9.8 + ay, 6, 6, high, NOTHING, NOTHING, False)
        np.testing.assert_allclose(grad, (high - low) / (2 * eps), atol=1e-8)


def test_a_spline_of_a_gaussian_sums_to_one_anywhere_in_a_pixel():
    at = (np.arange(41) - 20) * 0.5
    nodes = np.exp(-0.5 * (at[:, None] ** 2 + at[None, :] ** 2) / 1.1**2)
    nodes /= nodes.sum() * 0.25
    p = np.empty((19, 19))
    for x, y in ((9.0, 9.0), (9.3, 8.6), (9.5, 9.5)):
        psfkernels.stamp(nodes, 0.5, x, y, 0, 0, p, NOTHING, NOTHING, False)
        assert p.sum() == pytest.approx(1, abs=2e-4)


def test_projection_is_the_adjoint_of_the_stamp():
    rng = np.random.default_rng(3)
    for spacing, x, y in ((0.5, 10.3, 9.7), (0.31, 8.9, 11.2), (1.4, 10.0, 10.5)):
        nodes, values = rng.normal(size=(23, 23)), rng.normal(size=(15, 13))
        p, back = np.empty((15, 13)), np.zeros((23, 23))
        psfkernels.stamp(nodes, spacing, x, y, 4, 3, p, NOTHING, NOTHING, False)
        psfkernels.project_stamp(values, spacing, x, y, 4, 3, back)
        assert np.vdot(p, values) == pytest.approx(np.vdot(nodes, back), rel=1e-12)


def test_mix_is_a_sum_of_terms():
    rng = np.random.default_rng(4)
    c, t, out = rng.normal(size=(6, 9, 9)), rng.normal(size=6), np.empty((9, 9))
    psfkernels.mix(c, t, out)
    np.testing.assert_allclose(out, np.tensordot(t, c, 1), atol=1e-14)


@pytest.fixture
def stars():
    rng = np.random.default_rng(5)
    n, m, side, spacing = 7, 15, 11, 0.8
    x, y = rng.uniform(4.6, 5.4, n), rng.uniform(4.6, 5.4, n)
    zero = np.zeros(n, np.int64)
    s = {
        "nodes": smooth_nodes(m, rng)[None] / 40, "spacing": spacing, "x": x, "y": y, "x0": zero,
        "y0": zero, "flux": rng.uniform(500, 5000, n), "variance": rng.uniform(2, 9, n),
        "terms": np.ones((n, 1)), "more": np.column_stack([np.ones(n), rng.normal(size=(n, 2))]),
        "good": rng.random((n, side, side)) > 0.05, "gain": 1.7, "fraction": 0.01,
    }
    out = np.empty((n, side, side))
    psfkernels.forward(s["nodes"], spacing, s["terms"], x, y, zero, zero, out)
    light = s["flux"][:, None, None] * out
    s["light"] = light
    s["noise2"] = s["variance"][:, None, None] + light.clip(0) / 1.7 + (0.01 * light) ** 2
    s["values"] = (light + rng.normal(size=light.shape) * np.sqrt(s["noise2"])).astype(np.float32)
    return s


def test_forward_draws_each_star(stars):
    for k in range(7):
        p, _, _ = twins.stamp(
            stars["nodes"][0], 0.8, stars["x"][k], stars["y"][k], 0, 0, 11, 11
        )
        np.testing.assert_allclose(stars["light"][k], stars["flux"][k] * p, atol=1e-9)


def test_normal_equations_are_those_of_the_dense_problem(stars):
    s, m = stars, 15
    stencil, right = np.zeros((25, m, m), np.float32), np.zeros((3, m, m))
    psfkernels.gather_normal(
        s["nodes"], 0.8, s["terms"], s["more"], s["values"], s["good"], s["variance"], s["x0"],
        s["y0"], s["gain"], s["fraction"], s["x"], s["y"], s["flux"], stencil, right,
    )
    normal, gradient = np.zeros((m * m, m * m)), np.zeros((3, m * m))
    for k in range(7):
        a = s["flux"][k] * twins.design(m, 0.8, s["x"][k], s["y"][k], 0, 0, 11)
        w = (s["good"][k] / s["noise2"][k]).ravel()
        normal += a.T @ (w[:, None] * a)
        rest = w * (s["values"][k].astype(float) - s["light"][k]).ravel()
        gradient += s["more"][k][:, None] * (a.T @ rest)
    np.testing.assert_allclose(right.reshape(3, -1), gradient, rtol=1e-9, atol=1e-7)
    dense = twins.dense_of_stencil(stencil)
    np.testing.assert_allclose(dense, normal, rtol=2e-5, atol=1e-6 * np.abs(normal).max())


@pytest.mark.parametrize("k", [1, 3])
def test_conjugate_gradients_solve_the_dense_problem(stars, k):
    s, m, rng = stars, 15, np.random.default_rng(6)
    stencil, right = np.zeros((2, 25, m, m), np.float32), np.zeros((k, m, m))
    terms = np.column_stack([np.ones(2), rng.normal(size=(2, 2))])[:, :k].copy()
    for c, part in enumerate((slice(0, 4), slice(4, 7))):
        psfkernels.gather_normal(
            s["nodes"], 0.8, s["terms"][part], s["more"][part, :k].copy(), s["values"][part],
            s["good"][part], s["variance"][part], s["x0"][part], s["y0"][part], s["gain"],
            s["fraction"], s["x"][part], s["y"][part], s["flux"][part], stencil[c], right,
        )
    scale = rng.uniform(0.5, 2, (k, m, m)) * 1e-3
    smooth = np.exp(-0.5 * (np.arange(-4, 5) / 1.3) ** 2)
    smooth /= np.sqrt(np.sum(smooth**2))
    offset = rng.normal(size=(k, m, m)) * 1e-3
    one = np.array([np.convolve(row, smooth, "same") for row in np.eye(m)])
    spread = np.kron(one, one)
    size = m * m
    g = np.zeros((k * size, k * size))
    a = np.zeros((k * size, k * size))
    for t in range(k):
        here = slice(t * size, (t + 1) * size)
        g[here, here] = scale[t].ravel()[:, None] * spread  # S G
        for u in range(k):
            there = slice(u * size, (u + 1) * size)
            for c in range(2):
                a[here, there] += terms[c, t] * terms[c, u] * twins.dense_of_stencil(stencil[c])
    b = right.ravel() + a @ offset.ravel()
    z = np.linalg.solve(g.T @ a @ g + np.eye(k * size), g.T @ b)
    steps = psfkernels.solve_normal(stencil, terms, scale, smooth, right, offset, 600, 1e-5)
    assert steps < 600
    np.testing.assert_allclose(offset.ravel(), g @ z, atol=2e-4 * np.abs(g @ z).max())


def test_steps_lead_to_the_weighted_least_squares(stars):
    from scipy.optimize import least_squares

    s = stars
    x, y, flux = s["x"] + 0.15, s["y"] - 0.1, s["flux"] * 0.9
    psfkernels.step_stars(
        s["nodes"], 0.8, s["terms"], s["values"], s["good"], s["variance"], s["x0"], s["y0"],
        s["gain"], s["fraction"], 0.3, 30, x, y, flux,
    )
    for k in range(7):
        light = flux[k] * twins.stamp(s["nodes"][0], 0.8, x[k], y[k], 0, 0, 11, 11)[0]
        noise2 = s["variance"][k] + light.clip(0) / s["gain"] + (s["fraction"] * light) ** 2
        root = np.sqrt(s["good"][k] / noise2)

        def rest(p, k=k, root=root):
            model = p[0] * twins.stamp(s["nodes"][0], 0.8, p[1], p[2], 0, 0, 11, 11)[0]
            return (root * (s["values"][k] - model)).ravel()

        best = least_squares(rest, [flux[k], x[k], y[k]], x_scale=[100, 0.01, 0.01]).x
        np.testing.assert_allclose([x[k], y[k]], best[1:], atol=1e-4)
        assert flux[k] == pytest.approx(best[0], rel=1e-4)


def test_hidden_disks():
    good = np.ones((2, 9, 9), bool)
    psfkernels.hide_disks(good, np.array([1]), np.array([2.4]), np.array([7.0]), np.array([2.5]))
    assert good[0].all()
    yy, xx = np.mgrid[:9, :9]
    np.testing.assert_array_equal(good[1], np.hypot(xx - 2.4, yy - 7) > 2.5)
