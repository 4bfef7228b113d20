"""The compiled fit of groups against SciPy's least squares on small blends."""

import numpy as np
import pytest
import twins
from scipy.optimize import least_squares

from cynosure.pixels import fitkernels

SPACING, NODES, GAIN = 0.5, 37, 2.0


def psf_nodes(width=1.0):
    at = (np.arange(NODES) - 18) * SPACING
    nodes = np.exp(-0.5 * (at[:, None] ** 2 + 0.9 * at[None, :] ** 2) / width**2)
    return nodes / (nodes.sum() * SPACING**2)


def render(nodes, x, y, flux, shape):
    """All stars of an image, from the twin of the stamp."""
    out = np.zeros(shape)
    for k, (a, b, f) in enumerate(zip(x, y, flux)):
        out += f * twins.stamp(nodes[k % len(nodes)], SPACING, a, b, 0, 0, *shape)[0]
    return out


def scene(x, y, flux, *, nodes, shape=(40, 44), seed=1):
    rng = np.random.default_rng(seed)
    light = render(nodes, x, y, flux, shape)
    sky = np.full(shape, 4.0, np.float32)
    image = light + rng.normal(size=shape) * np.sqrt(sky + light / GAIN)
    return image.astype(np.float32), sky


def fit(image, variance, x, y, flux, groups, *, nodes, radius=6, sweeps=60, tolerance=1e-6):
    n = len(x)
    x, y, flux = (np.array(v, float) for v in (x, y, flux))
    fit_radius, draw = np.full(n, radius), np.full(n, 8)
    residual = image.copy()
    fitkernels.draw_stars(residual, nodes, SPACING, x, y, flux, draw)
    covariance, chi2 = np.full((n, 3, 3), np.nan), np.full(n, np.nan)
    status = np.zeros(n, np.int32)
    fitkernels.fit_groups(
        image, residual, variance, GAIN, nodes, SPACING, np.array(groups), x, y, flux, fit_radius,
        draw, sweeps, np.full(n, tolerance), covariance, chi2, status,
    )
    return x, y, flux, covariance, chi2, status, residual


def reference(image, variance, x, y, flux, nodes, radius=6):
    """Weighted least squares of all stars on the union of their disks, weights of the model."""
    yy, xx = np.mgrid[: image.shape[0], : image.shape[1]]
    used = np.zeros(image.shape, bool)
    for a, b in zip(x, y):
        used |= (xx - round(a)) ** 2 + (yy - round(b)) ** 2 <= (radius + 0.5) ** 2
    used &= variance > 0
    p = np.column_stack([flux, x, y]).ravel()
    for _ in range(25):
        model = render(nodes, p[1::3], p[2::3], p[::3], image.shape)
        root = 1 / np.sqrt(variance[used] + model.clip(0)[used] / GAIN)

        def rest(q, root=root):
            return root * (image - render(nodes, q[1::3], q[2::3], q[::3], image.shape))[used]

        result = least_squares(rest, p, x_scale=np.tile([50, 0.02, 0.02], len(x)), method="lm")
        done, p = np.allclose(result.x, p, rtol=1e-9), result.x
        if done:
            break
    covariance = np.linalg.inv(result.jac.T @ result.jac)
    return p[1::3], p[2::3], p[::3], covariance


@pytest.mark.parametrize("apart", [0.0, 2.2, 3.5])
def test_one_group_is_the_joint_least_squares(apart):
    nodes = psf_nodes()[None]
    x, y, flux = [20.3], [18.8], [3000.0]
    if apart:
        x, y, flux = [20.3, 20.3 + 0.8 * apart], [18.8, 18.8 + 0.6 * apart], [3000.0, 1200.0]
    image, sky = scene(x, y, flux, nodes=nodes)
    start = np.array(x) + 0.15, np.array(y) - 0.1, np.array(flux) * 0.9
    fx, fy, ff, covariance, chi2, status, _ = fit(image, sky, *start, [0, len(x)], nodes=nodes)
    rx, ry, rf, expected = reference(image, sky, fx, fy, ff, nodes)
    # Of two stars the kernel counts for each the pixels of its own disk.
    loose = 1 if apart == 0 else 30
    np.testing.assert_allclose(fx, rx, atol=1e-4 * loose)
    np.testing.assert_allclose(fy, ry, atol=1e-4 * loose)
    np.testing.assert_allclose(ff, rf, rtol=1e-4 * loose)
    for k in range(len(x)):
        block = expected[3 * k : 3 * k + 3, 3 * k : 3 * k + 3]
        errors = np.diag(covariance[k]), np.diag(block)
        np.testing.assert_allclose(*errors, rtol=0.02 * min(loose, 3))
    assert status.tolist() == [1] * len(x)
    assert np.all(chi2 < 1.5)


def test_what_is_not_there_is_given_up():
    """Of three places for two stars one is left, and the two are as if it had never been."""
    nodes = psf_nodes()[None]
    x, y, flux = [20.3, 22.9], [18.8, 19.4], [3000.0, 2200.0]
    image, sky = scene(x, y, flux, nodes=nodes)
    two = fit(image, sky, x, y, flux, [0, 2], nodes=nodes)
    three = fit(
        image, sky, [20.1, 21.6, 23.1], [18.7, 19.1, 19.5], [1500.0, 2500.0, 900.0], [0, 3],
        nodes=nodes,
    )
    left = three[5] == 1
    assert left.sum() == 2
    assert three[5].min() == -1
    assert three[2][~left] == 0
    for a, b in zip(two[:4], three[:4]):
        np.testing.assert_allclose(b[left], a, rtol=2e-4)
    np.testing.assert_allclose(three[6], two[6], atol=0.05)
    alone = fit(image, sky, [4.0], [5.0], [3.0], [0, 1], nodes=nodes)
    assert alone[5][0] >= 0  # a lone star stays, however faint


def test_groups_meet_in_the_residual():
    """Two stars fitted in turn come to rest where the joint fit puts them."""
    nodes = psf_nodes()[None]
    x, y, flux = np.array([18.3, 22.6]), np.array([19.8, 20.1]), np.array([2000.0, 2500.0])
    image, sky = scene(x, y, flux, nodes=nodes)
    joint = fit(image, sky, x, y, flux, [0, 2], nodes=nodes)
    turns = fit(image, sky, x + 0.1, y, flux, [0, 1, 2], nodes=nodes)
    for a, b, tolerance in zip(joint[:3], turns[:3], (5e-3, 5e-3, 5)):
        np.testing.assert_allclose(a, b, atol=tolerance)


def test_residual_is_the_image_less_the_models():
    nodes = np.stack([psf_nodes(1.0), psf_nodes(1.2), psf_nodes(0.9)])
    x, y, flux = [10.2, 25.0, 40.9], [8.3, 33.1, 20.4], [900.0, 1500.0, 4000.0]
    image, sky = scene(x, y, flux, nodes=nodes)
    fx, fy, ff, _, _, _, residual = fit(
        image, sky, x, y, np.array(flux) * 1.1, [0, 1, 2, 3], nodes=nodes, sweeps=4
    )
    yy, xx = np.mgrid[:40, :44]
    expected = image.astype(float)
    for k in range(3):
        p = twins.stamp(nodes[k], SPACING, fx[k], fy[k], 0, 0, 40, 44)[0]
        box = (np.abs(xx - round(fx[k])) <= 8) & (np.abs(yy - round(fy[k])) <= 8)
        expected -= ff[k] * p * box
    np.testing.assert_allclose(residual, expected, atol=2e-3)


def test_pixels_without_variance_have_no_say():
    nodes = psf_nodes()[None]
    image, sky = scene([20.3], [18.8], [3000.0], nodes=nodes)
    clean = fit(image, sky, [20.3], [18.8], [3000.0], [0, 1], nodes=nodes)
    spoiled, holes = image.copy(), sky.copy()
    holes[18:20, 22] = 0
    a = fit(spoiled, holes, [20.3], [18.8], [3000.0], [0, 1], nodes=nodes)
    spoiled[18:20, 22] = 1e6
    b = fit(spoiled, holes, [20.3], [18.8], [3000.0], [0, 1], nodes=nodes)
    assert a[0] == pytest.approx(b[0], abs=1e-9)
    assert abs(a[0] - clean[0])[0] < 5 * np.sqrt(clean[3][0, 1, 1])
    assert a[3][0, 1, 1] > clean[3][0, 1, 1]


def test_a_star_outside_or_without_pixels_is_left_alone():
    nodes = psf_nodes()[None]
    image, sky = scene([20.3], [18.8], [3000.0], nodes=nodes)
    x, y, flux, covariance, _, status, _ = fit(
        image, np.where(np.arange(44) < 10, 0, sky).astype(np.float32), [3.0, 90.0], [20.0, 20.0],
        [500.0, 500.0], [0, 1, 2], nodes=nodes, radius=3,
    )
    assert status.tolist() == [0, 0]
    assert x.tolist() == [3.0, 90.0]
    assert y.tolist() == [20.0, 20.0]
    assert flux.tolist() == [500.0, 500.0]
    assert np.isnan(covariance).all()


def test_every_star_has_its_own_mixture():
    rng = np.random.default_rng(3)
    c, t = rng.normal(size=(3, 7, 7)), rng.normal(size=(4, 3))
    nodes = np.empty((4, 7, 7))
    fitkernels.mix_all(c, t, nodes)
    np.testing.assert_allclose(nodes, np.tensordot(t, c, 1), atol=1e-13)
