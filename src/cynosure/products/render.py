"""Point-spread functions as sums of Gaussians, and stars on pixels.

Every profile here is a mixture of elliptical Gaussians, and a pixel's value is the mixture's
integral over the pixel. Other profiles are represented to 1e-5 by an integral over Gaussians, which
a trapezoid rule in the logarithm of their width sums with exponential convergence:

- Moffat: ``(1 + r^2)^-b = 1/Gamma(b) int exp(b s - e^s) exp(-e^s r^2) ds``;
- exponential disc: ``exp(-r) = 1/(2 sqrt(pi)) int exp(-s/2 - e^-s / 4) exp(-e^s r^2) ds``, of
  which few terms are kept: discs are accurate to some per cent, less than real discs differ.

A convolution of mixtures adds covariances, so a galaxy is rendered as a star is. The position of
an object is the centroid of its profile.

Two ways to integrate an elliptical Gaussian over a pixel, both better than 1e-5 of its peak:
narrow ones by error functions along x and Gauss-Legendre nodes along y; broad ones by the
Gaussian that is convolved with the pixel's second moment, corrected with the fourth (the
characteristic function of the pixel is ``exp(-k^2/24 - k^4/2880 - ...)``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.ground.cache import compiled
from cynosure.ground.numeric import n_terms, poly_design
from cynosure.products.scene import Psf

__all__ = [
    "Mixture",
    "central_share",
    "disc_mixture",
    "psf_fwhm_px",
    "psf_mixture",
    "render_stars",
    "render_stars_into",
    "stamps",
]

Floats = NDArray[np.float64]

FWHM_TO_SIGMA = 1.0 / (2.0 * math.sqrt(2.0 * math.log(2.0)))
# Above this variance (px^2) of its minor axis a Gaussian is broad: the sixth moment of the pixel,
# which the correction leaves out, is 3e-6 of the peak there.
BROAD_VARIANCE = 3.0
# Above this one the fourth moment, too, is below 1e-6.
SMOOTH_VARIANCE = 60.0
# Coma moves a quarter of the light, and that quarter is broader by this factor in variance.
COMA_FRACTION = 0.25
COMA_VARIANCE = 1.7
CHUNK = 20000  # objects whose mixtures are made at a time; it limits the memory
STAMP_CUTOFF = 1e-12  # value of a unit flux down to which stamps are drawn: all of a stamp


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """A profile for each of n objects, as k Gaussians.

    Attributes
    ----------
    weight : (n, k) ndarray
        Fractions of the flux.
    dx, dy : (n, k) ndarray
        Offsets of the components from the object's position, px.
    cxx, cxy, cyy : (n, k) ndarray
        Covariances, px^2.
    """

    weight: Floats
    dx: Floats
    dy: Floats
    cxx: Floats
    cxy: Floats
    cyy: Floats

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, index: slice | NDArray[np.int64] | NDArray[np.bool_]) -> Mixture:
        return Mixture(*(a[index] for a in self.arrays))

    @property
    def arrays(self) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats]:
        """The six arrays, in order."""
        return self.weight, self.dx, self.dy, self.cxx, self.cxy, self.cyy

    def convolved(self, other: Mixture) -> Mixture:
        """Return the convolution with another mixture of the same length."""
        n = len(self)

        def summed(a: Floats, b: Floats) -> Floats:
            return (a[:, :, None] + b[:, None, :]).reshape(n, -1)

        weight = (self.weight[:, :, None] * other.weight[:, None, :]).reshape(n, -1)
        pairs = zip(self.arrays[1:], other.arrays[1:])
        return Mixture(weight, *(summed(a, b) for a, b in pairs))

    def variance_px2(self) -> tuple[Floats, Floats]:
        """Return the second moments along x and y of each profile."""
        return (
            np.sum(self.weight * (self.cxx + self.dx**2), axis=1),
            np.sum(self.weight * (self.cyy + self.dy**2), axis=1),
        )


# ------------------------------------------------------------------------------- the profiles


@lru_cache(maxsize=16)
def _radial(
    family: str, beta: float, wing_fraction: float, wing_ratio: float
) -> tuple[Floats, Floats]:
    """Return weights and variances of round Gaussians whose sum has FWHM 1."""
    if family == "moffat":
        # r in units of alpha, variance 1 / (2 t) for t = e^s.
        t = np.exp(_moffat_nodes(beta))
        weight = np.exp(beta * np.log(t) - t) / t  # amplitude times area
        alpha = 1.0 / (2.0 * math.sqrt(2.0 ** (1.0 / beta) - 1.0))
        return weight / weight.sum(), alpha**2 / (2.0 * t)
    if family == "double_gaussian" and wing_fraction > 0:
        weight = np.array([1.0 - wing_fraction, wing_fraction])
        variance = np.array([1.0, wing_ratio**2])
        return weight, variance / _full_width(weight, variance) ** 2
    return np.ones(1), np.full(1, FWHM_TO_SIGMA**2)


def _moffat_nodes(beta: float) -> Floats:
    """Return the nodes s of the trapezoid rule for a Moffat profile, good to 1e-5 of the peak.

    The rule's relative error at the centre is ``2 |Gamma(b + 2 pi i / step)| / Gamma(b)`` (the
    first alias of the integrand's Fourier transform); the ends leave out 1e-5 of the flux and
    less of the peak. For b near 2 that is far out: the wings stop at r = 50 alpha.
    """
    from scipy.special import gamma, loggamma

    step = 0.9
    while 2.0 * np.exp(loggamma(beta + 2j * np.pi / step).real) / gamma(beta) > 5e-6:
        step *= 0.95
    low = max(math.log(1e-5 * gamma(beta)) / (beta - 1.0), -8.5)
    high = math.log(beta + 6.0 * math.sqrt(beta) + 8.0)
    return np.arange(low, high + step, step)


def _full_width(weight: Floats, variance: Floats) -> float:
    """Return the FWHM of a sum of round Gaussians, by bisection."""
    amplitude = weight / variance
    low, high = 0.0, 10.0 * math.sqrt(variance.max())
    for _ in range(60):
        middle = 0.5 * (low + high)
        value = np.sum(amplitude * np.exp(-(middle**2) / (2.0 * variance)))
        low, high = (middle, high) if value > 0.5 * amplitude.sum() else (low, middle)
    return low + high


def _polynomial(terms: tuple[float, ...], u: Floats, v: Floats) -> Floats:
    """Evaluate as many terms 1, u, v, u^2, uv, v^2, ... as there are."""
    degree = 0
    while n_terms(degree) < len(terms):
        degree += 1
    if not terms:
        return np.zeros(np.shape(u))
    return poly_design(u, v, degree)[..., : len(terms)] @ np.array(terms)


def psf_fwhm_px(psf: Psf, u: Floats, v: Floats, color: Floats) -> Floats:
    """Return the FWHM at n places of a chip, as in :func:`psf_mixture`."""
    fwhm = psf.fwhm_px * (1.0 + _polynomial(psf.fwhm_terms, u, v)) * (1.0 + psf.color_slope * color)
    return np.maximum(fwhm, 0.3 * psf.fwhm_px)


def psf_mixture(psf: Psf, u: ArrayLike, v: ArrayLike, color: ArrayLike = 0.0) -> Mixture:
    """Return the PSF at n places of a chip.

    Parameters
    ----------
    psf : Psf
        The description.
    u, v : (n,) array_like
        Place, -1 to 1 over the chip.
    color : (n,) array_like
        Colour from that for which the description holds, mag.
    """
    u, v, color = np.broadcast_arrays(*(np.atleast_1d(np.asarray(a, float)) for a in (u, v, color)))
    fwhm = psf_fwhm_px(psf, u, v, color)
    e1, e2 = _polynomial(psf.e1_terms, u, v), _polynomial(psf.e2_terms, u, v)
    squeeze = np.minimum(1.0, 0.8 / np.maximum(np.hypot(e1, e2), 1e-12))
    e1, e2 = e1 * squeeze, e2 * squeeze
    area = np.sqrt(1.0 - e1**2 - e2**2)  # keeps the area of the ellipse that of the circle
    weight, variance = _radial(psf.family, psf.beta, psf.wing_fraction, psf.wing_ratio)
    scaled = (fwhm**2 / area)[:, None] * variance
    weights = np.broadcast_to(weight, scaled.shape)
    zero = np.zeros_like(scaled)
    round_ = Mixture(
        weights,
        zero,
        zero,
        scaled * (1 + e1)[:, None],
        scaled * e2[:, None],
        scaled * (1 - e1)[:, None],
    )
    if not (psf.coma_x_terms or psf.coma_y_terms):
        return round_
    return _with_coma(
        round_,
        fwhm * _polynomial(psf.coma_x_terms, u, v),
        fwhm * _polynomial(psf.coma_y_terms, u, v),
    )


def _with_coma(mixture: Mixture, shift_x: Floats, shift_y: Floats) -> Mixture:
    """Shift a broader part of the light and the rest in opposite directions, with no net shift."""
    f = COMA_FRACTION
    w, dx, dy, *cov = mixture.arrays
    x, y = shift_x[:, None] + dx, shift_y[:, None] + dy
    return Mixture(
        np.hstack([(1 - f) * w, f * w]),
        np.hstack([-f * x, (1 - f) * x]),
        np.hstack([-f * y, (1 - f) * y]),
        *(np.hstack([c, COMA_VARIANCE * c]) for c in cov),
    )


def disc_mixture(radius_px: Floats, axis_ratio: Floats, angle_deg: Floats) -> Mixture:
    """Return exponential discs: scale length, axis ratio, angle of the long axis from +x to +y."""
    s = np.arange(-4.0, 5.5, 1.1)
    t = np.exp(s)
    weight = np.exp(-0.5 * s - 0.25 / t) / t
    weight = np.broadcast_to(weight / weight.sum(), (len(radius_px), len(s)))
    scale = (radius_px**2)[:, None] / (2.0 * t)
    c, s_ = np.cos(np.radians(angle_deg))[:, None], np.sin(np.radians(angle_deg))[:, None]
    q2 = (axis_ratio**2)[:, None]
    zero = np.zeros_like(scale)
    cov = (
        scale * (c * c + q2 * s_ * s_),
        scale * (1 - q2) * c * s_,
        scale * (s_ * s_ + q2 * c * c),
    )
    return Mixture(weight, zero, zero, *cov)


# --------------------------------------------------------------------------------- the pixels


def render_stars(
    shape: tuple[int, int],
    x: ArrayLike,
    y: ArrayLike,
    flux_e: ArrayLike,
    psf: Psf,
    *,
    cutoff_e: float = 1e-3,
) -> NDArray[np.float32]:
    """Return an image of stars without sky and noise.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns.
    x, y : (n,) array_like
        Positions, 0-based px.
    flux_e : (n,) array_like
        Fluxes.
    psf : Psf
        Their PSF.
    cutoff_e : float
        A Gaussian component is followed down to this value per pixel.

    Returns
    -------
    (ny, nx) ndarray of float32
    """
    image = np.zeros(shape, dtype=np.float32)
    x, y, flux = (np.atleast_1d(np.asarray(a, float)) for a in (x, y, flux_e))
    ny, nx = shape
    for start in range(0, len(x), CHUNK):
        part = slice(start, start + CHUNK)
        u, v = 2.0 * x[part] / max(nx - 1, 1) - 1.0, 2.0 * y[part] / max(ny - 1, 1) - 1.0
        render_stars_into(image, x[part], y[part], flux[part], psf_mixture(psf, u, v), cutoff_e)
    return image


def render_stars_into(
    image: NDArray[np.floating],
    x: Floats,
    y: Floats,
    flux_e: Floats,
    mixture: Mixture,
    cutoff_e: float = 1e-3,
) -> None:
    """Add objects to an image in place; arguments as in :func:`render_stars`."""
    nodes, node_weights = _legendre(8)
    arguments = (image, x, y, flux_e, *mixture.arrays, cutoff_e, nodes, node_weights)
    _render(*arguments)


def central_share(mixture: Mixture) -> Floats:
    """Return the share of the flux in a pixel that is centred on the object, (n,)."""
    zero = np.zeros(len(mixture))
    return stamps(mixture, 0, zero, zero)[:, 0, 0]


def stamps(mixture: Mixture, half: int, frac_x: Floats, frac_y: Floats) -> Floats:
    """Return pixel-integrated unit-flux stamps, (n, 2 half + 1, 2 half + 1).

    The objects lie at (frac_x, frac_y) from the centre of the central pixel.
    """
    size = 2 * half + 1
    out = np.zeros((len(mixture), size, size))
    arguments = (out, half + frac_x, half + frac_y, *mixture.arrays, *_legendre(8))
    _stamps(*arguments)
    return out


@lru_cache(maxsize=4)
def _legendre(n: int) -> tuple[Floats, Floats]:
    """Return nodes and weights of the Gauss-Legendre rules 1 ... n on [-1/2, 1/2], as rows."""
    nodes, weights = np.zeros((n + 1, n)), np.zeros((n + 1, n))
    for k in range(1, n + 1):
        a, w = np.polynomial.legendre.leggauss(k)
        nodes[k, :k], weights[k, :k] = 0.5 * a, 0.5 * w
    return nodes, weights


@compiled
def _render(image, x, y, flux, weight, dx, dy, cxx, cxy, cyy, cutoff, nodes, node_weights):  # type: ignore[no-untyped-def]
    edges = np.empty(image.shape[1] + 1)
    for i in range(x.shape[0]):
        for k in range(weight.shape[1]):
            a = flux[i] * weight[i, k]
            if a > 0.0 and np.isfinite(x[i] + y[i]):
                _add(
                    image, x[i] + dx[i, k], y[i] + dy[i, k], a, cxx[i, k], cxy[i, k], cyy[i, k],
                    cutoff, nodes, node_weights, edges,
                )  # fmt: skip


@compiled
def _stamps(out, x, y, weight, dx, dy, cxx, cxy, cyy, nodes, node_weights):  # type: ignore[no-untyped-def]
    edges = np.empty(out.shape[2] + 1)
    for i in range(weight.shape[0]):
        for k in range(weight.shape[1]):
            _add(
                out[i], x[i] + dx[i, k], y[i] + dy[i, k], weight[i, k], cxx[i, k], cxy[i, k],
                cyy[i, k], STAMP_CUTOFF, nodes, node_weights, edges,
            )  # fmt: skip


@compiled
def _add(image, x, y, flux, cxx, cxy, cyy, cutoff, nodes, node_weights, edges):  # type: ignore[no-untyped-def]
    minor = 0.5 * (cxx + cyy) - math.sqrt(0.25 * (cxx - cyy) ** 2 + cxy * cxy)
    if minor > BROAD_VARIANCE:
        _broad(image, x, y, flux, cxx, cxy, cyy, minor, cutoff)
    else:
        _narrow(image, x, y, flux, cxx, cxy, cyy, cutoff, nodes, node_weights, edges)


@compiled
def _broad(image, x, y, flux, cxx, cxy, cyy, minor, cutoff):  # type: ignore[no-untyped-def]
    ny, nx = image.shape
    cxx, cyy = cxx + 1.0 / 12.0, cyy + 1.0 / 12.0
    det = cxx * cyy - cxy * cxy
    amplitude = flux / (2.0 * math.pi * math.sqrt(det))
    if amplitude <= cutoff:
        return
    q = 2.0 * math.log(amplitude / cutoff)
    pxx, pxy, pyy = cyy / det, -cxy / det, cxx / det
    correct = minor < SMOOTH_VARIANCE
    reach = math.sqrt(q * cyy)
    for j in range(max(0, math.ceil(y - reach)), min(ny - 1, math.floor(y + reach)) + 1):
        dy = j - y
        # The chord of the ellipse q in this row.
        middle = -pxy * dy / pxx
        half = math.sqrt(max(q - dy * dy / cyy, 0.0) / pxx)
        i0 = max(0, math.ceil(x + middle - half))
        i1 = min(nx - 1, math.floor(x + middle + half))
        if i1 < i0:
            continue
        dx = i0 - x
        # exp of a quadratic along a row by second differences: two products for a pixel.
        g = amplitude * math.exp(-0.5 * (pxx * dx * dx + 2.0 * pxy * dx * dy + pyy * dy * dy))
        ratio = math.exp(-0.5 * pxx * (2.0 * dx + 1.0) - pxy * dy)
        step = math.exp(-pxx)
        if correct:
            for i in range(i0, i1 + 1):
                ux = (pxx * dx + pxy * dy) ** 2
                uy = (pxy * dx + pyy * dy) ** 2
                fourth = (
                    ux * (ux - 6.0 * pxx) + uy * (uy - 6.0 * pyy) + 3.0 * (pxx * pxx + pyy * pyy)
                )
                image[j, i] += g * (1.0 - fourth / 2880.0)
                g *= ratio
                ratio *= step
                dx += 1.0
        else:
            for i in range(i0, i1 + 1):
                image[j, i] += g
                g *= ratio
                ratio *= step


@compiled
def _narrow(image, x, y, flux, cxx, cxy, cyy, cutoff, nodes, node_weights, edges):  # type: ignore[no-untyped-def]
    ny, nx = image.shape
    # The pixel widens the Gaussian; the limit of q is extended by the corner of a pixel.
    det = cxx * cyy - cxy * cxy
    amplitude = flux / (2.0 * math.pi * math.sqrt(det))
    if amplitude <= cutoff:
        return
    q = 2.0 * math.log(amplitude / cutoff)
    reach_x, reach_y = math.sqrt(q * cxx) + 0.5, math.sqrt(q * cyy) + 0.5
    i0, i1 = max(0, math.ceil(x - reach_x)), min(nx - 1, math.floor(x + reach_x))
    j0, j1 = max(0, math.ceil(y - reach_y)), min(ny - 1, math.floor(y + reach_y))
    if i1 < i0 or j1 < j0:
        return
    slope = cxy / cyy
    inverse = 1.0 / math.sqrt(2.0 * det / cyy)
    inverse_y = 1.0 / math.sqrt(2.0 * cyy)
    if cxy == 0.0:
        for i in range(i0, i1 + 2):
            edges[i - i0] = 0.5 * math.erf((i - 0.5 - x) * inverse)
        below = 0.5 * math.erf((j0 - 0.5 - y) * inverse_y)
        for j in range(j0, j1 + 1):
            above = 0.5 * math.erf((j + 0.5 - y) * inverse_y)
            for i in range(i0, i1 + 1):
                image[j, i] += flux * (above - below) * (edges[i - i0 + 1] - edges[i - i0])
            below = above
        return
    # The narrower the Gaussian along y, the more nodes; each keeps 1e-6 of the peak.
    sigma_y = math.sqrt(min(cyy, det / cxx))
    n = 8 if sigma_y < 0.5 else 6 if sigma_y < 0.75 else 5 if sigma_y < 1.0 else 4
    norm = flux * inverse_y / math.sqrt(math.pi)
    for j in range(j0, j1 + 1):
        for k in range(n):
            dy = j + nodes[n, k] - y
            a = 0.5 * norm * node_weights[n, k] * math.exp(-((dy * inverse_y) ** 2))
            middle = x + slope * dy
            left = math.erf((i0 - 0.5 - middle) * inverse)
            for i in range(i0, i1 + 1):
                right = math.erf((i + 0.5 - middle) * inverse)
                image[j, i] += a * (right - left)
                left = right
