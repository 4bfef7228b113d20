"""The compiled loops of sky and first measurement against their twins and against oracles."""

import numpy as np
import pytest
import twins

from cynosure.pixels import kernels

NO_MASK = np.zeros((0, 0), bool)
NO_PLANE = np.zeros((0, 0), np.float32)


def sampled(data, mask, step, rows, columns):
    n = rows * columns
    cell = max(-(-data.shape[0] // rows), -(-data.shape[1] // columns))
    values = np.empty((n, (cell // step + 2) ** 2), np.float32)
    count, total = np.empty(n, np.int64), np.empty(n, np.int64)
    kernels.sample_cells(data, mask, step, 0, rows, rows, columns, values, count, total)
    return values, count, total


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_cells_are_sampled_as_the_twin_says(step):
    rng = np.random.default_rng(1)
    data = rng.normal(100, 5, (61, 83)).astype(np.float32)
    data[rng.random(data.shape) < 0.1] = np.nan
    mask = rng.random(data.shape) < 0.1
    values, count, total = sampled(data, mask, step, 2, 3)
    for c in range(6):
        expected, n = twins.cell_sample(data, mask, step, c // 3, c % 3, 2, 3)
        assert total[c] == n
        assert count[c] == len(expected)
        np.testing.assert_array_equal(np.sort(values[c, : count[c]]), np.sort(expected))
        assert np.all(np.isinf(values[c, count[c] :]))


def clipped(values, least=0.3, count=None, total=None):
    """Clip and sum the values of one cell, of which all pixels are in the sample."""
    values = np.asarray(values, np.float32)
    n = np.array([values.size if count is None else count])
    total = n if total is None else np.array([total])
    low, high, pivot = np.empty((3, 1), np.float32)
    few, sums = np.empty(1, bool), np.empty((1, 4))
    kernels.clip_cells(np.sort(values)[None], n, total, least, low, high, pivot, few)
    kernels.sum_cells(values[None], NO_MASK, 0, 1, 1, 1, low, high, pivot, sums)
    return sums, low, high, pivot, few


def level_and_noise(values, **limits):
    """Return the level and the noise of one cell."""
    from cynosure.pixels.background import _level_and_noise

    sums, low, high, pivot, few = clipped(values, **limits)
    level, sigma = _level_and_noise(sums, low, high, pivot, few)
    return level[0], sigma[0]


@pytest.mark.parametrize("kind", ["noise", "stars", "integers", "coarse", "floor"])
def test_clipped_mode_is_that_of_the_twin(kind):
    rng = np.random.default_rng(2)
    values = rng.normal(100, 5, 1000)
    if kind == "stars":
        values[:150] += rng.exponential(60, 150)
    if kind == "integers":
        values = np.round(values)
    if kind == "coarse":
        values = np.round(rng.normal(3.2, 0.6, 1000))
    if kind == "floor":
        values = np.maximum(rng.normal(-1, 2, 1000), 0)
    mode, std = twins.clipped_mode(values.astype(np.float32))
    level, sigma = level_and_noise(values)
    # The loop sums n values and their squares, taken from a pivot, in single precision: either sum
    # is off by at most (n + 4) / 2^24 of the sum of magnitudes, in whatever order it is taken, the
    # variance by three times that part of the mean square about the pivot.
    pivot = float(clipped(values)[3][0])
    rounding = (len(values) + 4) / 2**24
    square = (std / 1.0136) ** 2 + (pivot - mode) ** 2
    assert sigma == pytest.approx(std, rel=1.5 * rounding * square / (std / 1.0136) ** 2)
    # The loop takes the median from a count and the density there, its twin from the values; few
    # different values have a mean only.
    few = kind in ("coarse", "floor")
    assert level == pytest.approx(mode, abs=rounding * square**0.5 if few else 0.06 * std)


@pytest.mark.parametrize("masked", [False, True])
def test_cells_are_summed_within_their_bounds(masked):
    rng = np.random.default_rng(3)
    data = rng.normal(10, 3, (61, 83)).astype(np.float32)
    data[rng.random(data.shape) < 0.05] = np.nan
    mask = rng.random(data.shape) < 0.1 if masked else np.zeros(data.shape, bool)
    low, high = np.full(6, 4, np.float32), np.full(6, 17, np.float32)
    pivot, sums = rng.normal(10, 0.3, 6).astype(np.float32), np.empty((6, 4))
    kernels.sum_cells(data, mask if masked else NO_MASK, 1, 3, 3, 3, low, high, pivot, sums)
    for c in range(6):
        j, i = 1 + c // 3, c % 3
        box = (slice(j * 61 // 3, (j + 1) * 61 // 3), slice(i * 83 // 3, (i + 1) * 83 // 3))
        v = data[box][~mask[box]].astype(float)
        v = (v[(v >= 4) & (v <= 17)] - pivot[c]) / 13
        expected = [len(v), np.sum(v < 0), v.sum(), (v * v).sum()]
        np.testing.assert_allclose(sums[c], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("noise", "tolerance"), [(0.35, 0.06), (0.5, 0.03), (0.8, 0.12), (1.2, 0.12)]
)
def test_level_of_integers_is_not_an_integer(noise, tolerance):
    """A median of integers would be off by up to half a step; over its bin it is not."""
    rng = np.random.default_rng(3)
    for true in np.linspace(10, 11, 9):
        level, sigma = level_and_noise(np.round(rng.normal(true, noise, 20000)))
        assert level == pytest.approx(true, abs=tolerance)
        assert sigma == pytest.approx(np.hypot(noise, 12**-0.5), rel=0.3)


def test_level_is_as_good_as_all_the_pixels_allow():
    """The scatter of Pearson's mode is 2.1 standard deviations over the root of their number."""
    rng = np.random.default_rng(4)
    levels = [level_and_noise(rng.normal(50, 2, 4000))[0] for _ in range(200)]
    assert np.mean(levels) == pytest.approx(50, abs=0.015)
    assert np.std(levels) < 2.5 * 2 / 4000**0.5


@pytest.mark.parametrize(("count", "total"), [(29, 100), (15, 15), (0, 40)])
def test_a_cell_with_too_few_pixels_is_nan(count, total):
    values = np.random.default_rng(4).normal(0, 1, 100)
    assert np.isnan(level_and_noise(values, count=count, total=total)).all()
    assert np.isfinite(level_and_noise(values, count=100, total=100)).all()


@pytest.mark.parametrize("cubic", [True, False])
@pytest.mark.parametrize("cells", [(1, 1), (1, 4), (3, 2), (5, 7)])
def test_mesh_is_interpolated_as_the_twin_says(cells, cubic):
    rng = np.random.default_rng(5)
    mesh, shape = rng.normal(100, 10, cells).astype(np.float32), (53, 71)
    expected = twins.mesh_image(mesh, shape, cubic)
    out = np.empty(shape, np.float32)
    kernels.mesh_rows(mesh, *shape, 0, 0, cubic, out)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    part = np.empty((7, 11), np.float32)
    kernels.mesh_rows(mesh, *shape, 20, 33, cubic, part)
    np.testing.assert_allclose(part, expected[20:27, 33:44], rtol=1e-5)
    x, y = rng.uniform(-3, 74, 50), rng.uniform(-3, 56, 50)
    at = np.empty(50)
    kernels.mesh_at(mesh, *shape, x, y, cubic, at)
    one = [twins.mesh_value(mesh, shape, a, b, cubic) for a, b in zip(x, y)]
    np.testing.assert_allclose(at, one, rtol=1e-9)


def test_bilinear_noise_never_overshoots():
    mesh = np.array([[1, 1, 100, 1, 1]], np.float32)
    out = np.empty((1, 500), np.float32)
    kernels.mesh_rows(mesh, 1, 500, 0, 0, False, out)
    assert out.min() >= 1
    assert out.max() <= 100


def test_boxes_hold_the_pixels_less_the_sky():
    rng = np.random.default_rng(6)
    data = rng.normal(100, 5, (60, 80)).astype(np.float32)
    data[10, 12], data[20, 30] = np.nan, 9e4
    mask, given = np.zeros(data.shape, bool), np.full(data.shape, 1.0, np.float32)
    mask[21, 29], given[22, 30] = True, 1e4
    level, sigma = rng.normal(100, 1, (3, 4)).astype(np.float32), np.full((3, 4), 5, np.float32)
    tile = (40, 50)
    image, variance = np.zeros(tile, np.float32), np.zeros(tile, np.float32)
    bad = np.zeros(tile, bool)
    corner_x, corner_y, unit = 5, 8, 4.0
    x, y, half = np.array([24, 7, 60, -3]), np.array([13, 1, 20, 45]), np.array([4, 3, 5, 2])
    n = kernels.fill_boxes(
        data, mask, given, level, sigma, 5e4, unit, corner_x, corner_y, x, y, half, image,
        variance, bad,
    )
    seen = np.zeros(tile, bool)
    for a, b, h in zip(x, y, half):
        seen[max(b - h, 0) : max(b + h + 1, 0), max(a - h, 0) : max(a + h + 1, 0)] = True
    sky = twins.mesh_image(level, data.shape, True)[8:48, 5:55]
    here = (slice(8, 48), slice(5, 55))
    usable = np.isfinite(data[here]) & ~mask[here]
    np.testing.assert_array_equal(bad, seen & ~usable)
    assert n == (seen & ~usable).sum() == 2
    good = seen & usable
    np.testing.assert_allclose(unit * image[good], (data[here] - sky)[good], atol=2e-5)
    assert not image[~good].any()
    assert not variance[~good].any()
    expected = np.where(given[here] > 100, given[here], 25.0)
    expected[data[here] >= 5e4] = 0
    np.testing.assert_allclose(unit**2 * variance[good], expected[good], rtol=1e-5)


# ---------------------------------------------------------------------------------- measurement
def test_pixel_of_a_disk_against_photutils():
    from photutils.geometry import circular_overlap_grid

    rng = np.random.default_rng(7)
    for r in (0.3, 0.5, 1.0, 2.5, 7.3):
        x, y = rng.uniform(-0.5, 0.5, 2)
        half = int(r + 2)
        edge = half + 0.5
        exact = circular_overlap_grid(
            -edge - x, edge - x, -edge - y, edge - y, 2 * half + 1, 2 * half + 1, r, 1, 1
        )
        at = np.arange(-half, half + 1)
        ours = np.array([[kernels.disk_pixel_area(i - x, j - y, r) for i in at] for j in at])
        np.testing.assert_allclose(ours, exact, atol=1e-12)
        assert ours.sum() == pytest.approx(np.pi * r * r, rel=1e-12)


def measure(data, x, y, *, mask=NO_MASK, background=0.0, sigma=1.0, gain=1.0, saturation=np.inf,
            window=1.0, aperture=2.5):
    start = np.column_stack([np.atleast_1d(x), np.atleast_1d(y)]).astype(float)
    n = len(start)
    out, flags = np.empty((n, 10)), np.zeros(n, np.int32)
    kernels.measure_sources(
        data.astype(np.float32), mask, np.full(n, float(background)), np.full(n, float(sigma)),
        float(gain), float(saturation), float(window), float(aperture), start, out, flags,
    )
    return out, flags


@pytest.mark.parametrize("fwhm", [1.8, 2.5, 4.0])
def test_windowed_centroid_and_moments_are_those_of_the_twin(fwhm):
    from fields import gauss

    window = fwhm / 2.3548
    yy, xx = np.mgrid[:41, :41]
    for x, y in ((20.0, 20.0), (20.31, 19.77), (19.5, 20.5)):
        data = 500 * gauss(fwhm)(xx - x, yy - y) + 0.02
        out, flags = measure(
            data, round(x), round(y), window=window, background=0.02, gain=1e12, sigma=1e-6
        )
        data = data.astype(np.float32).astype(float)
        tx, ty, second = twins.windowed(data, 20, 20, 0.02, window)
        np.testing.assert_allclose(out[0, :2], [tx, ty], atol=2e-4)
        np.testing.assert_allclose(out[0, :2], [x, y], atol=0.02)
        np.testing.assert_allclose(out[0, 6:9], twins.unwindowed(*second, window**2), atol=5e-3)
        assert flags[0] == 0


def test_aperture_sums_against_photutils():
    from photutils.aperture import CircularAperture, aperture_photometry

    rng = np.random.default_rng(8)
    data = rng.normal(10, 1, (60, 60)).astype(np.float32)
    yy, xx = np.mgrid[:60, :60]
    data += 3000 * np.exp(-0.5 * ((xx - 30.3) ** 2 + (yy - 28.9) ** 2) / 1.5**2)
    out, _ = measure(data, 30, 29, background=10, window=1.5, aperture=3.7, gain=2.0)
    aperture = CircularAperture(out[0, :2], r=3.7)
    exact = aperture_photometry(data.astype(float) - 10, aperture)["aperture_sum"][0]
    assert out[0, 4] == pytest.approx(exact, rel=1e-6)
    v = 1.0 + np.maximum(data.astype(float) - 10, 0) / 2.0
    variance = aperture_photometry(v, aperture)["aperture_sum"][0]
    assert out[0, 5] == pytest.approx(np.sqrt(variance), rel=1e-6)
    assert out[0, 9] == data[29, 30] == data.max()


def test_error_of_the_windowed_centroid_is_its_scatter():
    from fields import gauss

    rng = np.random.default_rng(9)
    yy, xx = np.mgrid[:25, :25]
    light = 3000 * gauss(2.5)(xx - 12.2, yy - 11.9)
    z = []
    for _ in range(400):
        data = (rng.poisson(light + 50) - 50) / 2.0 + rng.normal(0, 1, light.shape)
        out, _ = measure(data, 12, 12, sigma=np.sqrt(50 / 4 + 1), gain=2.0, window=1.06)
        z.append((out[0, :2] - [12.2, 11.9]) / out[0, 2:4])
    assert np.std(z) == pytest.approx(1.0, abs=0.09)
    assert np.abs(np.mean(z, axis=0)).max() < 0.2


def test_flags_of_saturation_edge_and_bad_pixels():
    data = np.full((40, 40), 1.0, np.float32)
    for x, y in ((10, 10), (20, 20), (30, 30), (1, 20)):
        data[y, x] = 100
    data[21, 21] = np.nan
    data[30, 30] = 900
    mask = np.zeros(data.shape, bool)
    mask[9, 9] = True
    _, flags = measure(data, [10, 20, 30, 1], [10, 20, 30, 20], mask=mask, saturation=800)
    assert flags.tolist() == [4, 4, 1, 2]


def test_a_trail_is_given_a_long_axis():
    yy, xx = np.mgrid[:61, :61]
    data = 50 * np.exp(-0.5 * ((yy - 30 - 0.5 * (xx - 30)) / np.hypot(1, 0.5)) ** 2)
    out, _ = measure(data, 30, 30, window=1.06)
    mxx, myy, mxy = out[0, 6:9]
    values, vectors = np.linalg.eigh([[mxx, mxy], [mxy, myy]])
    assert values[1] / values[0] > 20
    assert abs(vectors[1, 1] / vectors[0, 1]) == pytest.approx(0.5, abs=0.03)
