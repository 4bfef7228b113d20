"""The compiled loops of detection against their twins, and SciPy's labels."""

import numpy as np
import pytest
import twins
from fields import gauss, light_of

from cynosure.pixels import peakkernels
from cynosure.pixels.detect import gaussian_kernel

NO_MASK = np.zeros((0, 0), bool)


def ring_of(fwhm):
    angle = 2 * np.pi * np.arange(24) / 24
    r = max(2.0, 1.6 * fwhm)
    return np.rint(r * np.cos(angle)).astype(np.int64), np.rint(r * np.sin(angle)).astype(np.int64)


def scene(shape, seed=1, bright=4e4):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-2, shape[1] + 2, 25), rng.uniform(-2, shape[0] + 2, 25)
    flux = 10 ** rng.uniform(1.5, np.log10(bright), 25)
    light = light_of(x, y, flux, gauss(2.4), shape, 12)
    return (rng.normal(0, 4, shape) + light + 50).astype(np.float32), rng


@pytest.mark.parametrize("fwhm", [1.4, 2.4, 4.5])
@pytest.mark.parametrize("masked", [False, True])
def test_peaks_are_those_of_the_twin(fwhm, masked):
    shape = (90, 110)
    data, rng = scene(shape)
    data[40:44, 50] = np.nan
    mask = rng.random(shape) < 0.03 if masked else np.zeros(shape, bool)
    level = rng.normal(50, 1, (3, 2)).astype(np.float32)
    sigma = rng.uniform(3, 6, (3, 2)).astype(np.float32)
    kernel, ring = gaussian_kernel(fwhm), ring_of(fwhm)
    out, runs = np.empty((500, 6)), np.empty((10, 3), np.int64)
    sky, noise = twins.mesh_image(level, shape, True), twins.mesh_image(sigma, shape, False)
    z, smooth = twins.matched_filter(data, mask, sky, noise, kernel)
    expected = twins.peaks(z, smooth, noise, kernel, 4.0, ring, 1.5, 0.02)
    assert len(expected) > 12
    found = []
    for first, last in ((0, 31), (31, 32), (32, 90)):
        n, n_runs = peakkernels.detect_rows(
            data, mask if masked else NO_MASK, level, sigma, first, last, kernel, 4.0, *ring, 1.5,
            0.02, np.inf, out, runs,
        )
        assert n_runs == 0
        found.append(out[:n].copy())
    found = np.concatenate(found)
    assert len(found) == len(expected)
    order, order2 = np.lexsort(found[:, :2].T), np.lexsort(expected[:, :2].T)
    np.testing.assert_allclose(found[order], expected[order2], rtol=2e-4, atol=2e-4)


def test_a_lone_star_peaks_at_its_signal_to_noise():
    """S of the matched filter on a star without noise is flux / error on sky noise."""
    shape, fwhm = (41, 41), 2.4
    effective = np.hypot(fwhm, 2.3548 / np.sqrt(12))  # the width on the pixels
    kernel = gaussian_kernel(effective)
    for x, y in ((20.0, 20.0), (20.4, 19.7), (20.5, 20.5)):
        light = light_of([x], [y], [1000.0], gauss(fwhm), shape, 15)
        best = np.sqrt(np.sum((light / 3) ** 2))
        out, runs = np.empty((9, 6)), np.empty((1, 3), np.int64)
        n, _ = peakkernels.detect_rows(
            light.astype(np.float32), NO_MASK, np.zeros((1, 1), np.float32),
            np.full((1, 1), 3, np.float32), 0, 41, kernel, 5.0, *ring_of(fwhm), 1.0, 0.02, np.inf,
            out, runs,
        )
        assert n == 1
        assert out[0, 2] == pytest.approx(best, rel=0.03)  # also between the pixels
        np.testing.assert_allclose(out[0, :2], [x, y], atol=0.05)


def test_more_peaks_than_room_are_counted():
    data = np.random.default_rng(3).normal(0, 1, (60, 60)).astype(np.float32)
    args = (
        data, NO_MASK, np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32), 0, 60,
        gaussian_kernel(2.0), 1.0, *ring_of(2.0), 1.0, 0.02, 1.5,
    )
    few, runs = np.empty((3, 6)), np.empty((2, 3), np.int64)
    n, n_runs = peakkernels.detect_rows(*args, few, runs)
    many, all_runs = np.empty((n, 6)), np.empty((n_runs, 3), np.int64)
    assert peakkernels.detect_rows(*args, many, all_runs) == (n, n_runs)
    np.testing.assert_array_equal(few, many[:3])
    np.testing.assert_array_equal(runs, all_runs[:2])
    assert n > 50


def test_runs_and_blobs_of_saturated_pixels_are_those_of_scipy():
    from scipy.ndimage import label as scipy_label

    rng = np.random.default_rng(4)
    for density in (0.02, 0.2, 0.45):
        data = np.where(rng.random((50, 70)) < density, 1000, 0).astype(np.float32)
        out, runs = np.empty((2000, 6)), np.empty((3000, 3), np.int64)
        _, n = peakkernels.detect_rows(
            data, NO_MASK, np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32), 0, 50,
            gaussian_kernel(2.0), 1e9, *ring_of(2.0), 1.0, 0.02, 999.0, out, runs,
        )
        runs = runs[:n]
        drawn = np.zeros(data.shape, bool)
        label = np.empty(n, np.int64)
        peakkernels.join_runs(runs, label)
        image = np.full(data.shape, -1)
        for (y, a, b), name in zip(runs, label):
            assert not drawn[y, a:b].any()
            drawn[y, a:b], image[y, a:b] = True, name
        np.testing.assert_array_equal(drawn, data >= 999)
        expected, count = scipy_label(drawn, np.ones((3, 3)))
        assert len(np.unique(label)) == count
        assert len({(a, b) for a, b in zip(image[drawn], expected[drawn])}) == count


def test_groups_of_pairs_are_those_of_scipy():
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rng = np.random.default_rng(5)
    for m in (0, 5, 60, 150):
        pairs = rng.integers(0, 120, (m, 2))
        label = np.empty(120, np.int64)
        peakkernels.join_pairs(pairs, label)
        graph = coo_array((np.ones(m), (pairs[:, 0], pairs[:, 1])), shape=(120, 120))
        count, expected = connected_components(graph, directed=False)
        assert len({(a, b) for a, b in zip(label, expected)}) == count == len(np.unique(label))
        first = {name: np.flatnonzero(label == name)[0] for name in np.unique(label)}
        assert all(name == k for name, k in first.items())


def test_nearest_run():
    rng = np.random.default_rng(6)
    y = np.sort(rng.integers(0, 40, 30))
    x = rng.integers(0, 40, 30)
    runs = np.column_stack([y, x, x + rng.integers(1, 6, 30)]).astype(np.int64)
    px, py = rng.uniform(-3, 45, (2, 200))
    blob, label = np.empty(200, np.int64), np.arange(30) * 7
    peakkernels.nearest_runs(runs, label, px, py, 2.5, blob)
    for k in range(200):
        dx = np.maximum(np.maximum(runs[:, 1] - px[k], px[k] - (runs[:, 2] - 1)), 0)
        d = np.hypot(dx, runs[:, 0] - py[k])
        if d.min() > 2.5:
            assert blob[k] == -1
        else:
            assert d[blob[k] // 7] == pytest.approx(d.min())
