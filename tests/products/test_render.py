"""Stars on pixels: profiles against their formulas, pixels against quadrature, flux, centroid."""

import dataclasses

import numpy as np
import pytest

from cynosure.products.bounds import Bounds, cramer_rao, scene_bounds
from cynosure.products.render import (
    FWHM_TO_SIGMA,
    Mixture,
    central_share,
    disc_mixture,
    psf_mixture,
    render_stars,
    render_stars_into,
    stamps,
)
from cynosure.products.scene import Detector, Psf

ZERO = np.zeros(1)

SHAPES = {
    "round": Psf(fwhm_px=1.2),
    "elliptical": Psf(fwhm_px=1.2, e1_terms=(0.2,), e2_terms=(-0.3,)),
    "very narrow": Psf(fwhm_px=0.8, e1_terms=(0.4,), e2_terms=(0.5,)),
    "just broad": Psf(fwhm_px=3.65, e1_terms=(0.02,), e2_terms=(0.03,)),
    "broad": Psf(fwhm_px=10.0, e2_terms=(0.4,)),
    "two Gaussians": Psf(family="double_gaussian", fwhm_px=2.0, wing_fraction=0.3),
    "Moffat with coma": Psf(
        family="moffat",
        fwhm_px=1.5,
        beta=2.5,
        e2_terms=(0.1,),
        coma_x_terms=(0.4,),
        coma_y_terms=(-0.2,),
    ),
}


def density(mixture, x, y):
    """Return the profile of a mixture of length 1 at points, by its definition."""
    total = np.zeros(np.broadcast(x, y).shape)
    for w, dx, dy, cxx, cxy, cyy in zip(*(a[0] for a in mixture.arrays)):
        det = cxx * cyy - cxy**2
        q = (cyy * (x - dx) ** 2 - 2 * cxy * (x - dx) * (y - dy) + cxx * (y - dy) ** 2) / det
        total += w * np.exp(-0.5 * q) / (2 * np.pi * np.sqrt(det))
    return total


def by_quadrature(mixture, half, fx, fy, n=16):
    """Integrate over pixels with n x n Gauss-Legendre nodes."""
    node, weight = np.polynomial.legendre.leggauss(n)
    grid = (np.arange(-half, half + 1)[:, None] + node / 2).ravel()
    value = density(mixture, grid[None, :] - fx, grid[:, None] - fy)
    size = 2 * half + 1
    return np.einsum("iajb,a,b->ij", value.reshape(size, n, size, n), weight / 2, weight / 2)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("at", [(0.0, 0.0), (0.31, -0.47)])
def test_pixels_hold_the_integral_of_the_profile(name, at):
    mixture = psf_mixture(SHAPES[name], ZERO, ZERO)
    ours = stamps(mixture, 10, np.array([at[0]]), np.array([at[1]]))[0]
    truth = by_quadrature(mixture, 10, *at)
    assert np.abs(ours - truth).max() < 1e-5 * truth.max()
    central = by_quadrature(mixture, 0, 0, 0)[0, 0]
    assert central_share(mixture)[0] == pytest.approx(central, rel=1e-5)


@pytest.mark.parametrize("beta", [2.0, 2.5, 3.5, 4.765, 8.0])
def test_moffat_is_a_moffat(beta):
    fwhm = 3.0
    mixture = psf_mixture(Psf(family="moffat", fwhm_px=fwhm, beta=beta), ZERO, ZERO)
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    r = np.linspace(0, 8 * alpha, 400)
    truth = (beta - 1) / (np.pi * alpha**2) * (1 + (r / alpha) ** 2) ** -beta
    limit = 3e-4 if beta < 2.5 else 2e-5  # the wings of a small beta are cut at 50 alpha
    assert np.abs(density(mixture, r, 0 * r) - truth).max() < limit * truth[0]


@pytest.mark.parametrize("family", ["gaussian", "moffat", "double_gaussian"])
def test_the_fwhm_is_the_full_width_at_half_maximum(family):
    mixture = psf_mixture(Psf(family=family, fwhm_px=4.0), ZERO, ZERO)
    half, peak = density(mixture, np.array([2.0, 0.0]), np.zeros(2))
    assert half / peak == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_the_position_is_the_centroid_and_the_flux_is_the_sum(name):
    # Sums over pixels are integrals only where the pixels sample well.
    psf = dataclasses.replace(SHAPES[name], fwhm_px=5.0)
    shape = (401, 407)
    image = np.zeros(shape)
    x, y = np.array([203.37]), np.array([198.81])
    render_stars_into(image, x, y, np.array([1e6]), psf_mixture(psf, ZERO, ZERO), 1e-12)
    total = image.sum()
    limit = 2e-2 if psf.family == "moffat" else 1e-7  # a Moffat's wings end beyond the image
    assert total == pytest.approx(1e6, rel=limit)
    j, i = np.indices(shape)
    # What is cut off at the edges is not symmetric; the core is.
    core = np.hypot(i - x, j - y) < (60 if psf.family == "moffat" else 190)
    tolerance = 1e-2 if psf.family == "moffat" else 1e-6
    assert (image * i)[core].sum() / image[core].sum() == pytest.approx(x[0], abs=tolerance)
    assert (image * j)[core].sum() / image[core].sum() == pytest.approx(y[0], abs=tolerance)


def test_coma_skews_and_leaves_the_centroid_exactly():
    mixture = psf_mixture(Psf(coma_x_terms=(0.5,), coma_y_terms=(0.1,)), ZERO, ZERO)
    assert np.sum(mixture.weight * mixture.dx) == pytest.approx(0, abs=1e-15)
    assert np.sum(mixture.weight * mixture.dy) == pytest.approx(0, abs=1e-15)
    third = np.sum(mixture.weight * (mixture.dx**3 + 3 * mixture.dx * mixture.cxx))
    assert third > 0.05


def test_the_psf_varies_as_its_polynomials_say():
    psf = Psf(fwhm_px=4.0, fwhm_terms=(0.0, 0.1, 0.0, 0.0, 0.0, 0.2), e1_terms=(0.0, 0.3))
    u, v = np.array([0.0, 1.0, -1.0, 0.0]), np.array([0.0, 0.0, 0.0, 1.0])
    mixture = psf_mixture(psf, u, v)
    area = np.sqrt(mixture.cxx * mixture.cyy - mixture.cxy**2)[:, 0]
    fwhm = 4.0 * np.array([1.0, 1.1, 0.9, 1.2])
    np.testing.assert_allclose(np.sqrt(area) / FWHM_TO_SIGMA, fwhm, rtol=1e-12)
    np.testing.assert_allclose(mixture.cxx[1, 0] / mixture.cyy[1, 0], 1.3 / 0.7, rtol=1e-12)
    red = psf_mixture(Psf(fwhm_px=4.0, color_slope=-0.05), ZERO, ZERO, np.ones(1))
    np.testing.assert_allclose(red.cxx, (4.0 * 0.95 * FWHM_TO_SIGMA) ** 2)


def test_stars_are_rendered_where_they_are_and_may_leave_the_frame():
    x, y = np.array([-3.0, 40.2, 99.9, 500.0, np.nan]), np.array([20.0, -1.0, 49.5, 20.0, 20.0])
    flux = np.full(5, 1000.0)
    image = render_stars((50, 100), x, y, flux, Psf(fwhm_px=3.0), cutoff_e=1e-9)
    big = render_stars((150, 200), x + 50, y + 50, flux, Psf(fwhm_px=3.0), cutoff_e=1e-9)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, big[50:100, 50:150], atol=2e-5)
    assert 0 < image.sum() < big.sum()
    assert render_stars((5, 5), [], [], [], Psf()).sum() == 0


def test_the_cutoff_leaves_out_less_than_it_says():
    star = np.array([50.3]), np.array([49.6]), np.array([1e5])
    full = render_stars((101, 101), *star, Psf(fwhm_px=5.0), cutoff_e=1e-12)
    cut = render_stars((101, 101), *star, Psf(fwhm_px=5.0), cutoff_e=0.5)
    assert np.abs(full - cut).max() < 0.6
    assert (cut == 0).sum() > (full == 0).sum()


def test_discs_have_their_size_shape_and_direction():
    disc = disc_mixture(np.array([3.0]), np.array([0.5]), np.array([30.0]))
    xx, yy = (a[0] for a in disc.variance_px2())
    xy = np.sum(disc.weight * disc.cxy)
    # An exponential disc of scale h has second moments 3 h^2 along each axis.
    major, minor = np.linalg.eigvalsh([[xx, xy], [xy, yy]])[::-1]
    assert np.sqrt(major) == pytest.approx(3 * np.sqrt(3), rel=0.03)
    assert np.sqrt(minor / major) == pytest.approx(0.5, rel=1e-9)
    assert 0.5 * np.degrees(np.arctan2(2 * xy, xx - yy)) == pytest.approx(30.0)
    r = np.array([1.0, 3.0])
    round_ = disc_mixture(np.array([1.0]), np.array([1.0]), ZERO)
    values = density(round_, r, 0 * r)
    assert values[1] / values[0] == pytest.approx(np.exp(-2), rel=0.08)


def test_a_convolution_adds_second_moments():
    psf = psf_mixture(SHAPES["two Gaussians"], ZERO, ZERO)
    disc = disc_mixture(np.array([2.0]), np.array([0.7]), np.array([70.0]))
    both = psf.convolved(disc)
    assert both.weight.sum() == pytest.approx(1)
    for total, a, b in zip(both.variance_px2(), psf.variance_px2(), disc.variance_px2()):
        np.testing.assert_allclose(total, a + b)


# ------------------------------------------------------------------------------- the bounds


def gaussian(fwhm_px):
    return psf_mixture(Psf(fwhm_px=fwhm_px), ZERO, ZERO)


def test_bounds_of_a_bright_gaussian_are_sigma_over_root_n():
    flux = np.array([1e6, 1e8])
    x, y, f = cramer_rao(gaussian(6.0), flux, 1e-6)
    sigma = 6.0 * FWHM_TO_SIGMA
    np.testing.assert_allclose(x, np.sqrt(sigma**2 + 1 / 12) / np.sqrt(flux), rtol=2e-3)
    np.testing.assert_allclose(y, x, rtol=1e-6)
    np.testing.assert_allclose(f, np.sqrt(flux), rtol=1e-3)


def test_bounds_of_a_faint_gaussian_are_root_two_sigma_over_snr():
    sigma, noise = 6.0 * FWHM_TO_SIGMA, 10.0
    flux = np.array([10.0, 100.0])
    x, _, f = cramer_rao(gaussian(6.0), flux, noise**2 * 1e4)
    noise *= 1e2
    flux_error = np.sqrt(4 * np.pi) * np.sqrt(sigma**2 + 1 / 12) * noise
    np.testing.assert_allclose(f, flux_error, rtol=2e-3)
    np.testing.assert_allclose(x, np.sqrt(2) * sigma / (flux / flux_error), rtol=1e-2)


def test_bounds_are_reached_by_weighted_least_squares():
    rng = np.random.default_rng(7)
    psf = Psf(family="moffat", fwhm_px=2.3, beta=3.0, e2_terms=(0.2,), coma_x_terms=(0.2,))
    one = psf_mixture(psf, ZERO, ZERO)
    n, flux, sky, read, half = 900, 2000.0, 80.0, 4.0, 9
    many = Mixture(*(np.repeat(a, n, axis=0) for a in one.arrays))
    true = rng.uniform(-0.5, 0.5, (2, n))
    expected = flux * stamps(many, half, *true) + sky
    data = rng.poisson(expected) - sky + rng.normal(0, read, expected.shape)
    x, y, f = true[0].copy(), true[1].copy(), np.full(n, flux)
    for _ in range(4):
        p = stamps(many, half, x, y)
        h = 1e-3
        dx = (stamps(many, half, x + h, y) - stamps(many, half, x - h, y)) / (2 * h)
        dy = (stamps(many, half, x, y + h) - stamps(many, half, x, y - h)) / (2 * h)
        g = np.stack([f[:, None, None] * dx, f[:, None, None] * dy, p], axis=-1).reshape(n, -1, 3)
        w = 1.0 / (f[:, None, None] * p + sky + read**2).reshape(n, -1, 1)
        residual = (data - f[:, None, None] * p).reshape(n, -1, 1)
        normal, right = g.transpose(0, 2, 1) @ (w * g), g.transpose(0, 2, 1) @ (w * residual)
        step = np.linalg.solve(normal, right)[..., 0]
        x, y, f = x + step[:, 0], y + step[:, 1], f + step[:, 2]
    bound = [b[0] for b in cramer_rao(one, np.array([flux]), sky + read**2, n_phases=5)]
    measured = [np.std(x - true[0]), np.std(y - true[1]), np.std(f)]
    # 900 fits know a standard deviation to 2.4 %.
    np.testing.assert_allclose(measured, bound, rtol=0.08)


def test_interpolated_bounds_agree_with_those_made_on_the_spot():
    psf = Psf(fwhm_px=2.2, fwhm_terms=(0.0, 0.1, 0.0), e2_terms=(0.0, 0.0, 0.1))
    detector = Detector(sky_e=100.0, sky_terms=(0.0, 0.2), read_noise_e=3.0)
    flux = np.array([30.0, 800.0, 2e5])
    bounds = scene_bounds(psf, detector, flux)
    assert isinstance(bounds, Bounds)
    u, v = np.array([-0.7, 0.33, 0.9]), np.array([0.1, -0.8, 0.95])
    table = bounds.at(u, v, flux)
    for k in range(3):
        sky = 100.0 * (1 + 0.2 * u[k]) + 9.0
        direct = cramer_rao(psf_mixture(psf, u[k : k + 1], v[k : k + 1]), flux[k : k + 1], sky)
        for a, b in zip(table, direct):
            assert a[k] == pytest.approx(b[0], rel=0.01)
    flat = scene_bounds(Psf(), Detector(), flux)
    assert flat.log_values.shape[1:3] == (1, 1)
    assert np.all(np.isfinite(flat.at(u, v, flux)))
