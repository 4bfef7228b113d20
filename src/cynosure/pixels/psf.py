r"""The point-spread function, continuous over the frame.

The effective PSF (the optical one, integrated over the pixel) is a cubic B-spline on a square grid
of nodes, with coefficients that are polynomials of the position in the frame:

    P(d; X, Y) = sum_k T_k(X, Y) sum_ij c_kij B3(d_y / h - i) B3(d_x / h - j).

It is linear in c, so that the best c for given stars is one weighted least-squares problem, with
every pixel of every star as it was recorded: nothing is shifted, resampled or averaged. The
problem is solved by conjugate gradients; between rounds the stars' positions and fluxes are fitted
again with the new PSF (the iteration of Anderson & King 2000, PASP 112, 1360, with the linear
solution of PSFEx, Bertin 2011, ASP Conf. 442, 435). A smooth elliptical Moffat profile is the prior
mean, so that where the stars do not determine the PSF (far wings, a sparse corner) it is smooth.

The degree of the polynomial is chosen by cross-validation: it best predicts the pixels of stars
left out of the fit.

The zero point of position is the centroid of the PSF's core, and its sum over the plane is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.data.frame import Frame
from cynosure.ground.errors import NotEnoughStars
from cynosure.ground.numeric import n_terms, poly_design
from cynosure.ground.settings import Range, Unit
from cynosure.ground.threads import share
from cynosure.pixels import fitkernels, psfkernels
from cynosure.pixels.background import Background
from cynosure.pixels.psfstars import MODEL_FRACTION, Stamps, choose_stars, noise_gain

__all__ = ["Psf", "build_psf"]

Floats = NDArray[np.float64]

# Nodes to a FWHM: a Gaussian is represented to 3e-4 of its peak, and its first moment to 1e-4 px.
NODES_PER_FWHM = 4.5

# Cells on a side of the frame over which the curvature of the linear problem is summed. Within a
# cell the polynomial is taken at the mean position: fine enough up to MAX_DEGREE.
CELLS = 5

# Highest degree of the polynomial that may be asked for.
MAX_DEGREE = 4

# Stars of S/N 20 have more than FEWEST_ELECTRONS; where the gain implies fewer it is wrong (a rate,
# a normalised image) and is replaced by one that gives MANY_ELECTRONS: no photon noise until the
# gain is measured.
FEWEST_ELECTRONS, MANY_ELECTRONS = 10.0, 1e6

# Tolerance of the outlier rejection for errors of the PSF, as a part of the light of a star:
# VARIATION while the PSF is constant over the frame, MISFIT once it varies.
VARIATION, MISFIT = 0.3, 0.05

# Correlation length of the difference from the Moffat profile (standard deviation of the kernel, in
# FWHM). Without it an undersampled PSF is not determined: a shift of the stars that is a function
# of their pixel phase, with a PSF warped accordingly, describes the pixels equally well (Anderson &
# King 2000 break this degeneracy with dithers), but such a PSF has ripples of the pixel's period.
SMOOTH_FWHM = 0.35

# Steps and relative tolerance of the conjugate gradients. Each round starts from the solution of
# the last one, so that an approximate solution suffices.
CG_STEPS, CG_TOLERANCE = 60, 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Psf:
    """A PSF that varies over the frame.

    Attributes
    ----------
    coefficients : (k, m, m) ndarray
        Spline coefficients, [term, y, x].
    spacing_px : float
        Distance of the nodes.
    degree : int
        Degree of the polynomial over the frame.
    shape : tuple of int
        Rows and columns of the frame.
    fwhm_px, ellipticity : float
        Width and flattening at the centre of the frame.
    radius_px : int
        Radius of the model; it is zero beyond.
    n_stars : int
        Stars it was built from.
    gain_e_adu : float
        Electrons per ADU by the photon noise of the stars: the frame's gain, unless the stars
        contradict it (a rate, a stack, a header without a gain).
    """

    coefficients: Floats
    spacing_px: float
    degree: int
    shape: tuple[int, int]
    fwhm_px: float
    ellipticity: float
    radius_px: int
    n_stars: int
    gain_e_adu: float

    def terms(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """Return the polynomial terms at pixel positions, (n, k)."""
        return field_terms(x, y, self.shape, self.degree)

    def nodes_of(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """Return the spline coefficients at each of some places, (n, m, m), or one for all."""
        if self.degree == 0:
            return self.coefficients
        terms = np.ascontiguousarray(self.terms(x, y))
        nodes = np.empty((len(terms), *self.coefficients.shape[1:]))
        fitkernels.mix_all(self.coefficients, terms, nodes)
        return nodes

    def nodes_at(self, x: float, y: float) -> Floats:
        """Return the spline coefficients at one place, (m, m)."""
        return np.tensordot(self.terms([x], [y])[0], self.coefficients, axes=1)

    def image(self, x: float, y: float, radius: int | None = None) -> Floats:
        """Return the PSF of a star at (x, y) on the pixels around the nearest one."""
        r = self.radius_px if radius is None else radius
        out, nothing = np.empty((2 * r + 1, 2 * r + 1)), np.empty((0, 0))
        psfkernels.stamp(
            self.nodes_at(x, y), self.spacing_px, float(x), float(y), round(x) - r, round(y) - r,
            out, nothing, nothing, False,
        )
        return out

    def shape_at(self, x: float, y: float) -> tuple[float, float, float]:
        """Return FWHM (px), ellipticity and position angle (deg, from +x to +y) at one place."""
        return _core_shape(self.nodes_at(x, y), self.spacing_px)

    def noise_pixels(self, x: float, y: float) -> float:
        """Return 1 / sum P^2: sky noise of the flux is sigma_sky times the root of this."""
        return float(1.0 / np.sum(self.image(x, y) ** 2))


def field_terms(x: ArrayLike, y: ArrayLike, shape: tuple[int, int], degree: int) -> Floats:
    """Return polynomial terms of the place in the frame, each coordinate scaled to -1 … 1."""
    ny, nx = shape
    u = 2.0 * np.asarray(x, float) / max(nx - 1, 1) - 1.0
    v = 2.0 * np.asarray(y, float) / max(ny - 1, 1) - 1.0
    return poly_design(np.clip(u, -1.1, 1.1), np.clip(v, -1.1, 1.1), degree)


def build_psf(
    frame: Frame,
    background: Background,
    sources: NDArray[np.void],
    *,
    degree: Annotated[int | None, Range(0, 4)] = None,
    min_snr: Annotated[float, Range(5, 1000)] = 20.0,
    max_stars: Annotated[int, Unit("stars"), Range(5, 100_000)] = 900,
    radius_fwhm: Annotated[float, Unit("FWHM"), Range(1.5, 20)] = 3.2,
    rounds: Annotated[int, Range(1, 20)] = 3,
    threads: int = 1,
) -> Psf:
    """Build the PSF of a frame from its stars.

    Parameters
    ----------
    frame, background, sources
        The pixels, the sky and the detected sources.
    degree : int, optional
        Degree of the polynomial over the frame; chosen by cross-validation by default.
    min_snr : float
        Least signal to noise of a star that is used.
    max_stars : int
        Most stars to use, the best of every part of the frame.
    radius_fwhm : float
        Radius of the model.
    rounds : int
        Number of times that PSF and stars are fitted in turn.
    threads : int
        Threads that share the work.

    Raises
    ------
    NotEnoughStars
        If there are no stars to build from.
    """
    index, fwhm = choose_stars(sources, frame.shape, min_snr, max_stars)
    if len(index) < 3:
        raise NotEnoughStars(
            "{image}: {n_sources} stars are fit to build the PSF from, {needed} needed",
            image=frame.name, n_sources=len(index), needed=3,
            hint="Lower psf.min_snr, or check that the image is not saturated.",
        )
    data = Stamps.cut(frame, background, sources, index, fwhm, radius_fwhm)
    light = float(np.median(data.flux))
    if light * data.gain < FEWEST_ELECTRONS:  # measure the gain later, with weights of sky noise
        data.gain = MANY_ELECTRONS / light
    spacing = float(np.clip(fwhm / NODES_PER_FWHM, 0.2, 8.0))
    nodes = 2 * int(np.ceil((data.radius + 0.5) / spacing)) + 5
    base = _moffat_nodes(data, spacing, nodes)
    fit = _Fit(data, spacing, base, frame.shape, threads)
    coefficients = base[None]
    for k in range(rounds):
        data.refine(coefficients, spacing, fit.terms(0))
        if k == 0:
            # The variation of the PSF, not fitted yet, looks like photon noise: the gain is
            # replaced only where it is wrong by more than a factor 30.
            data.gain = noise_gain(data, coefficients, spacing, fit.terms(0), factor=30.0)
        coefficients = fit.solve(fit.gather(coefficients, 0), coefficients, 0)
        data.reject_outliers(coefficients, spacing, fit.terms(0), VARIATION)
    best = _choose_degree(fit, coefficients) if degree is None else degree
    last = rounds if best > 0 else 1
    for k in range(last):
        coefficients = fit.solve(fit.gather(coefficients, best), coefficients, best)
        data.refine(coefficients, spacing, fit.terms(best))
        if k in (0, last - 1):
            data.gain = noise_gain(data, coefficients, spacing, fit.terms(best))
        if k < last - 1:
            data.reject_outliers(coefficients, spacing, fit.terms(best), MISFIT)
    centre = np.tensordot(
        field_terms([frame.shape[1] / 2], [frame.shape[0] / 2], frame.shape, best)[0],
        coefficients, axes=1,
    )
    width, ellipticity, _ = _core_shape(centre, spacing)
    return Psf(
        coefficients, spacing, best, frame.shape, width, ellipticity, data.radius, len(index),
        data.gain,
    )


# ------------------------------------------------------------------------------- the linear fit
class _Fit:
    """The linear problem for the spline coefficients.

    The curvature is summed over the stars of each cell of the frame and taken at the terms of the
    cell's mean position; the gradient has every star at its own position, so that the rounds
    correct the approximate curvature. One star in five is held out, in a sum of its own.
    """

    def __init__(
        self, data: Stamps, spacing: float, base: Floats, shape: tuple[int, int], threads: int
    ):
        self.data, self.spacing, self.base = data, spacing, base
        self.shape, self.threads = shape, threads
        # Prior standard deviation of the difference from the Moffat profile: a tenth of the
        # profile plus a thousandth of its peak for the wings; half of that for its variation.
        self.prior = 0.1 * np.abs(base) + 1e-3 * base.max()
        at = np.arange(-4, 5) * spacing / data.fwhm
        smooth = np.exp(-0.5 * (at / SMOOTH_FWHM) ** 2)
        self.smooth = smooth / np.sqrt(np.sum(smooth**2))
        n = len(data.x)
        self.held = np.arange(n) % 5 == 4
        side = int(np.clip(np.sqrt(n), 1, CELLS))
        cell = (data.x / shape[1] * side).astype(int).clip(0, side - 1) * side
        cell += (data.y / shape[0] * side).astype(int).clip(0, side - 1)
        groups = [
            [np.flatnonzero((cell == k) & (self.held == held)) for k in np.unique(cell)]
            for held in (False, True)
        ]
        self.groups = [[g for g in group if len(g)] for group in groups]

    def terms(self, degree: int) -> Floats:
        """Return the polynomial terms of the stars."""
        return field_terms(self.data.x, self.data.y, self.shape, degree)

    def weight(self, index: NDArray[np.int64]) -> Floats:
        """Return the weights of stars in the curvature: the (S/N)^2 of their brightest pixel."""
        d = self.data
        peak = np.maximum(d.flux[index], 0.0) * 0.9 / d.fwhm**2  # 4 ln 2 / pi = 0.88: a Gaussian's
        return peak**2 / (d.variance[index] + peak / d.gain + (MODEL_FRACTION * peak) ** 2)

    def gather(self, coefficients: Floats, degree: int) -> list[_Sums]:
        """Return the normal equations at a PSF, for its variation of a degree."""
        d, m = self.data, self.base.shape[0]
        terms = self.terms(_degree_of(coefficients))
        more = self.terms(degree)

        def work(index: NDArray[np.int64]) -> _Sums:
            stencil = np.zeros((25, m, m), dtype=np.float32)
            right = np.zeros((more.shape[1], m, m))
            psfkernels.gather_normal(
                coefficients, self.spacing, terms[index], more[index], d.values[index],
                d.good[index], d.variance[index], d.x0[index], d.y0[index], d.gain,
                MODEL_FRACTION, d.x[index], d.y[index], d.flux[index], stencil, right,
            )
            weight = self.weight(index)
            place = field_terms(
                np.average(d.x[index], weights=weight), np.average(d.y[index], weights=weight),
                self.shape, degree,
            )
            return _Sums(stencil[None], place[None], right)

        return [_Sums.joined(share(work, group, self.threads)) for group in self.groups if group]

    def solve(self, sums: list[_Sums], guess: Floats, degree: int) -> Floats:
        """Return the coefficients (k, m, m) that solve the normal equations at a guess."""
        total, k = _Sums.joined(sums), n_terms(degree)
        scale = np.repeat(self.prior[None], k, axis=0)
        scale[1:] *= 0.5
        offset = np.zeros_like(scale)
        offset[: len(guess)] = guess[:k]
        offset[0] -= self.base
        stencil, terms = total.stencil, np.ascontiguousarray(total.terms[:, :k])
        if degree == 0:
            stencil, terms = stencil.sum(axis=0, keepdims=True), terms[:1]
        right = np.ascontiguousarray(total.right[:k])
        psfkernels.solve_normal(
            stencil, terms, scale, self.smooth, right, offset, CG_STEPS, CG_TOLERANCE
        )
        offset[0] += self.base
        return _normalised(offset, self.spacing)

    def held_out_chi2(self, coefficients: Floats) -> float:
        """Return chi^2 per pixel of the held-out stars, with their flux and position fitted."""
        keep = self.held & self.data.good.any(axis=(1, 2))
        if not keep.any():
            return float("inf")
        part = self.data.part(keep)
        terms = field_terms(part.x, part.y, self.shape, _degree_of(coefficients))
        part.refine(coefficients, self.spacing, terms)
        light = part.light(coefficients, self.spacing, terms)
        noise2 = part.variance[:, None, None] + np.maximum(light, 0.0) / part.gain
        noise2 += (MODEL_FRACTION * light) ** 2
        per_star = np.sum(part.good * (part.values - light) ** 2 / noise2, axis=(1, 2))
        per_star /= np.maximum(np.sum(part.good, axis=(1, 2)), 1)
        # Stars above five times the median, such as blends, do not decide between degrees.
        return float(np.mean(np.minimum(per_star, 5.0 * np.median(per_star))))


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """Normal equations: curvature (c, 25, m, m) and terms (c, k) of cells, gradient (k, m, m)."""

    stencil: NDArray[np.float32]
    terms: Floats
    right: Floats

    @classmethod
    def joined(cls, parts: list[_Sums]) -> _Sums:
        """Sum in the order of the parts, so that the result does not depend on threads."""
        if len(parts) == 1:
            return parts[0]
        right = parts[0].right.copy()
        for part in parts[1:]:
            right += part.right
        return cls(
            np.concatenate([p.stencil for p in parts]), np.concatenate([p.terms for p in parts]),
            right,
        )


def _degree_of(coefficients: Floats) -> int:
    return next(d for d in range(MAX_DEGREE + 1) if n_terms(d) == len(coefficients))


def _choose_degree(fit: _Fit, guess: Floats) -> int:
    """Return the degree (at most 3, ten stars a term) that best predicts held-out stars."""
    most = max(d for d in range(4) if d == 0 or len(fit.data.x) >= 10 * n_terms(d))
    if most == 0:
        return 0
    shown = fit.gather(guess, most)[:1]
    best, best_chi2 = 0, np.inf
    for degree in range(most + 1):
        chi2 = fit.held_out_chi2(fit.solve(shown, guess, degree))
        # Differences of chi^2 below a thousandth are within the noise of this comparison.
        if chi2 < best_chi2 * 0.999:
            best, best_chi2 = degree, chi2
        elif degree > max(best, 1):
            break
    return best


# ------------------------------------------------------------------------------- shape and norm
def _normalised(coefficients: Floats, spacing: float) -> Floats:
    """Scale so that the PSF's sum is 1 everywhere, and move its core's centroid to zero.

    Both are degenerate with the fluxes and positions of the stars, and would drift over the frame.
    """
    total = coefficients.sum(axis=(1, 2)) * spacing**2
    out = coefficients / total[0]
    total = total / total[0]
    # The terms beyond the first must not carry flux: P / sum P to first order in the variation.
    out[1:] -= total[1:, None, None] * out[0]
    x, y = _core_centroid(out[0], spacing)
    moved = _shifted(out, x / spacing, y / spacing)
    window, at_x, at_y = _core_window(moved[0], spacing)
    slope_y, slope_x = np.gradient(moved[0])  # by nodes
    for at, slope in ((at_x, slope_x), (at_y, slope_y)):
        weight = window * at
        off = np.tensordot(moved[1:], weight, axes=2) / np.sum(weight * slope)
        moved[1:] -= off[:, None, None] * slope
    return moved


def _grid(m: int, spacing: float) -> Floats:
    return (np.arange(m, dtype=np.float64) - 0.5 * (m - 1)) * spacing


def _core_window(nodes: Floats, spacing: float) -> tuple[Floats, Floats, Floats]:
    """Return a Gaussian window about the core, and the coordinates x and y of the nodes."""
    m = nodes.shape[0]
    at = _grid(m, spacing)
    peak = np.unravel_index(np.argmax(nodes), nodes.shape)
    r2 = (at[:, None] - at[peak[0]]) ** 2 + (at[None, :] - at[peak[1]]) ** 2
    above = nodes > 0.5 * nodes.max()
    radius2 = max(above.sum() * spacing**2 / np.pi, spacing**2)
    window = np.exp(-0.5 * r2 / (2.0 * radius2))
    return window, at[None, :] * np.ones((m, 1)), at[:, None] * np.ones(m)


def _core_centroid(nodes: Floats, spacing: float) -> tuple[float, float]:
    window, x, y = _core_window(nodes, spacing)
    w = window * np.maximum(nodes, 0.0)
    return float(np.sum(w * x) / w.sum()), float(np.sum(w * y) / w.sum())


def _shifted(coefficients: Floats, dx: float, dy: float) -> Floats:
    """Move a spline by a fraction of a node, to first and second order."""
    def along(c: Floats, t: float, axis: int) -> Floats:
        plus, minus = np.roll(c, -1, axis), np.roll(c, 1, axis)
        return c + 0.5 * t * (plus - minus) + 0.5 * t * t * (plus - 2 * c + minus)

    limit = 0.5
    dx, dy = float(np.clip(dx, -limit, limit)), float(np.clip(dy, -limit, limit))
    return along(along(coefficients, dx, 2), dy, 1)


def _core_shape(nodes: Floats, spacing: float) -> tuple[float, float, float]:
    """Return FWHM, ellipticity and angle from the area and the moments above half maximum."""
    # Sample the spline finely, where it is high: nodes alone are coarse.
    m, fine = nodes.shape[0], 16
    above = nodes > 0.3 * nodes.max()
    high = np.flatnonzero(above.any(axis=0) | above.any(axis=1))
    reach = fine * int(max(0.5 * (m - 1) - high.min(), high.max() - 0.5 * (m - 1)) + 2)
    image, nothing = np.empty((2 * reach + 1, 2 * reach + 1)), np.empty((0, 0))
    psfkernels.stamp(nodes, float(fine), 0.0, 0.0, -reach, -reach, image, nothing, nothing, False)
    step = spacing / fine
    half = image > 0.5 * image.max()
    y, x = np.nonzero(half)
    fwhm = 2.0 * np.sqrt(half.sum() * step**2 / np.pi)
    if len(x) < 3:
        return float(fwhm), 0.0, 0.0
    cxx, cyy = np.var(x), np.var(y)
    cxy = np.mean((x - x.mean()) * (y - y.mean()))
    root = np.hypot(0.5 * (cxx - cyy), cxy)
    mean = 0.5 * (cxx + cyy)
    ellipticity = 1.0 - np.sqrt(max(mean - root, 0.0) / (mean + root))
    return float(fwhm), float(ellipticity), float(np.degrees(0.5 * np.arctan2(2 * cxy, cxx - cyy)))


def _moffat_nodes(data: Stamps, spacing: float, m: int) -> Floats:
    """Fit one elliptical Moffat profile to all stars and return it on the nodes."""
    from scipy.optimize import least_squares

    side = data.values.shape[1]
    offset_x = data.x0[:, None, None] + np.arange(side) - data.x[:, None, None]
    offset_y = data.y0[:, None, None] + np.arange(side)[:, None] - data.y[:, None, None]
    offset_x, offset_y = np.broadcast_arrays(offset_x, offset_y)
    scaled = data.values / data.flux[:, None, None]
    noise = np.broadcast_to((np.sqrt(data.variance) / data.flux)[:, None, None], scaled.shape)
    near = (np.hypot(offset_x, offset_y) < 3.0 * data.fwhm) & data.good
    chosen = np.flatnonzero(near.ravel())
    chosen = chosen[:: max(1, len(chosen) // 2500)]
    dx, dy = offset_x.ravel()[chosen], offset_y.ravel()[chosen]
    v, s = scaled.ravel()[chosen], noise.ravel()[chosen] + 0.01 * scaled.max() * 0.1

    def residual(p: Floats) -> Floats:
        return (p[0] * _moffat(dx, dy, p[1:]) - v) / s

    w = 1.0 / (0.5 * data.fwhm) ** 2
    start = np.array([1.1 * w / np.pi * 0.7, w, 0.0, w, 0.25])
    lower = [0, w / 30, -w * 10, w / 30, 0.01]
    upper = [np.inf, w * 30, w * 10, w * 30, 0.6]
    fit = least_squares(residual, start, bounds=(lower, upper), loss="soft_l1", max_nfev=40)
    at = _grid(m, spacing)
    wanted = _moffat(at[None, :], at[:, None], fit.x[1:])
    # Iterate the coefficients until the values of the spline at the nodes are the profile.
    nodes = wanted.copy()
    for _ in range(6):
        nodes += wanted - _blurred(nodes)
    return nodes / (nodes.sum() * spacing**2)


def _blurred(nodes: Floats) -> Floats:
    """Return the values of a cubic spline at its nodes."""
    out = np.pad(nodes, 1, mode="edge")
    out = (out[2:] + 4.0 * out[1:-1] + out[:-2]) / 6.0
    return (out[:, 2:] + 4.0 * out[:, 1:-1] + out[:, :-2]) / 6.0


def _moffat(dx: Floats, dy: Floats, p: Floats) -> Floats:
    """Return (1 + (2^q - 1) r^2)^(-1/q), averaged over a pixel; q = 0 would be a Gaussian."""
    xx, xy, yy, q = p
    out = np.zeros(np.broadcast(dx, dy).shape)
    h = 0.5 / 3.0**0.5  # two-point Gauss-Legendre quadrature over the pixel
    for ax in (-h, h):
        for ay in (-h, h):
            u, v = dx + ax, dy + ay
            r2 = np.maximum(xx * u * u + 2.0 * xy * u * v + yy * v * v, 0.0)
            out += 0.25 * np.exp(-np.log1p((2.0**q - 1.0) * r2) / q)
    return out
