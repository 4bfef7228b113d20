r"""The point-spread function, continuous over the frame.

The PSF that a pixel sees (the optical one, integrated over the pixel) is a cubic B-spline on a
square grid of nodes, with coefficients that are polynomials of the place in the frame:

    P(d; X, Y) = sum_k T_k(X, Y) sum_ij c_kij B3(d_y / h - i) B3(d_x / h - j).

It is linear in c, so that the best c for given stars is one weighted least-squares problem, with
every pixel of every star as it was recorded: nothing is shifted, resampled or averaged. The
problem is solved by conjugate gradients; between rounds the stars' positions and fluxes are fitted
again with the new PSF (the idea of Anderson & King 2000 with the solution of PSFEx). A smooth
elliptical Moffat profile is the prior mean, so that what the stars do not determine - the far
wings, a sparse corner - is smooth and not noise.

The degree of the polynomial is the one that best predicts the pixels of stars left out.

The zero point of position is the centroid of the PSF's core, and its sum over the plane is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.data.frame import Frame
from cynosure.data.tables import SourceFlag
from cynosure.ground.errors import NotEnoughStars
from cynosure.ground.numeric import clip, n_terms, poly_design
from cynosure.ground.settings import Range, Unit
from cynosure.ground.threads import share
from cynosure.pixels import psfkernels
from cynosure.pixels.background import Background

__all__ = ["Psf", "build_psf", "choose_stars"]

Floats = NDArray[np.float64]

# Nodes to a FWHM: a Gaussian is represented to 3e-4 of its peak, and its first moment to 1e-4 px.
NODES_PER_FWHM = 4.5

# A star's brightest pixels are not known better than this fraction: the PSF varies within the
# polynomial's reach, the flat is not perfect. It bounds the weight of the brightest stars.
MODEL_FRACTION = 0.004


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
        Where the model ends.
    n_stars : int
        Stars it was built from.
    """

    coefficients: Floats
    spacing_px: float
    degree: int
    shape: tuple[int, int]
    fwhm_px: float
    ellipticity: float
    radius_px: int
    n_stars: int

    def terms(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """Return the polynomial terms at pixel positions, (n, k)."""
        return field_terms(x, y, self.shape, self.degree)

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
        Degree of the polynomial over the frame; chosen by left-out stars where not given.
    min_snr : float
        Least signal to noise of a star that is used.
    max_stars : int
        Most stars to use, the best of every part of the frame.
    radius_fwhm : float
        Radius of the model.
    rounds : int
        How often PSF and stars are fitted in turn.
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
    data = _Stamps.cut(frame, background, sources, index, fwhm, radius_fwhm)
    spacing = float(np.clip(fwhm / NODES_PER_FWHM, 0.2, 8.0))
    nodes = 2 * int(np.ceil((data.radius + 0.5) / spacing)) + 5
    base = _moffat_nodes(data, spacing, nodes)
    fit = _Fit(data, spacing, base, frame.shape, threads)
    coefficients = base[None]
    for _ in range(rounds):
        data.refine_stars(coefficients, spacing, fit.terms(0))
        coefficients = _normalised(fit.solve(0, coefficients), spacing)
        data.reject_outliers(coefficients, spacing, fit.terms(0))
    best = _choose_degree(fit, coefficients, len(index)) if degree is None else degree
    if best > 0:
        for _ in range(2):
            coefficients = _normalised(fit.solve(best, coefficients), spacing)
            data.refine_stars(coefficients, spacing, fit.terms(best))
        coefficients = _normalised(fit.solve(best, coefficients), spacing)
    centre = np.tensordot(
        field_terms([frame.shape[1] / 2], [frame.shape[0] / 2], frame.shape, best)[0],
        coefficients, axes=1,
    )
    width, ellipticity, _ = _core_shape(centre, spacing)
    return Psf(
        coefficients, spacing, best, frame.shape, width, ellipticity, data.radius, len(index)
    )


# --------------------------------------------------------------------------- choosing the stars
def choose_stars(
    sources: NDArray[np.void], shape: tuple[int, int], min_snr: float, max_stars: int
) -> tuple[NDArray[np.int64], float]:
    """Choose stars fit to show the PSF: bright, alone, of the common width.

    Returns
    -------
    index : (n,) ndarray of int
        Rows of `sources`.
    fwhm_px : float
        Their median width.
    """
    from scipy.spatial import cKDTree

    usable = (sources["flags"] & (SourceFlag.unusable() | SourceFlag.NEAR_BRIGHT)) == 0
    usable &= np.isfinite(sources["fwhm_px"]) & (sources["fwhm_px"] > 0.4)
    good = np.flatnonzero(usable & (sources["snr"] > min_snr))
    if len(good) < 10:
        good = np.flatnonzero(usable & (sources["snr"] > min(min_snr, 8.0)))
    if len(good) == 0:
        return good, float("nan")
    fwhm = float(np.median(sources["fwhm_px"][good]))
    size = np.log(sources["fwhm_px"][good])
    # Stars form a narrow locus in width; galaxies, blends and spikes lie off it. The locus may be
    # as wide as the PSF's own variation over the frame.
    keep = np.abs(size - np.median(size)) < 0.35
    keep &= clip(size, 4.0) | (np.abs(size - np.median(size)) < 0.1)
    good = good[keep]
    fwhm = float(np.median(sources["fwhm_px"][good])) if len(good) else fwhm
    tree = cKDTree(np.column_stack([sources["x"], sources["y"]]))
    reach = 3.0 * fwhm
    pairs = tree.query_ball_point(
        np.column_stack([sources["x"][good], sources["y"][good]]), reach
    )
    flux = sources["flux_aper_e"]
    # Light of neighbours, as a fraction of the star's own, falling with distance.
    crowd = np.array([
        sum(max(flux[k], 0.0) for k in near if k != i) / flux[i] if len(near) > 1 else 0.0
        for i, near in zip(good, pairs)
    ])
    alone = good[crowd < 0.02]
    if len(alone) < 60:
        order = np.argsort(crowd, kind="stable")
        alone = good[order[: max(60, len(alone))]]
        alone = alone[np.argsort(alone)]
        alone = alone[np.isin(alone, good[crowd < 0.5])] if (crowd < 0.5).sum() >= 10 else alone
    return _spread(sources, alone, shape, max_stars), fwhm


def _spread(
    sources: NDArray[np.void], index: NDArray[np.int64], shape: tuple[int, int], most: int
) -> NDArray[np.int64]:
    """Keep the brightest of every cell of an 8 x 8 grid, and fill up with the brightest of all."""
    if len(index) <= most:
        return np.sort(index)
    cell = (sources["x"][index] / shape[1] * 8).astype(int).clip(0, 7) * 8
    cell += (sources["y"][index] / shape[0] * 8).astype(int).clip(0, 7)
    order = np.lexsort((-sources["snr"][index], cell))
    rank = np.empty(len(index), dtype=int)
    starts = np.searchsorted(cell[order], np.arange(64))
    rank[order] = np.arange(len(index)) - starts[cell[order]]
    chosen = np.lexsort((-sources["snr"][index], rank > most // 128))[:most]
    return np.sort(index[chosen])


# ----------------------------------------------------------------------------------- the pixels
@dataclass(slots=True, eq=False)
class _Stamps:
    """The pixels of the chosen stars, and what is known of each star; changes as they are fitted."""

    values: Floats
    variance: Floats
    weights: Floats
    x: Floats
    y: Floats
    flux: Floats
    x0: NDArray[np.int64]
    y0: NDArray[np.int64]
    radius: int
    fwhm: float
    gain: float

    @classmethod
    def cut(
        cls, frame: Frame, background: Background, sources: NDArray[np.void],
        index: NDArray[np.int64], fwhm: float, radius_fwhm: float,
    ) -> _Stamps:
        ny, nx = frame.shape
        radius = int(np.clip(np.ceil(radius_fwhm * fwhm + 1.0), 4, 40))
        side = 2 * radius + 1
        x, y = sources["x"][index].astype(float), sources["y"][index].astype(float)
        x0 = np.rint(x).astype(np.int64) - radius
        y0 = np.rint(y).astype(np.int64) - radius
        rows, columns = y0[:, None] + np.arange(side), x0[:, None] + np.arange(side)
        inside = ((rows >= 0) & (rows < ny))[:, :, None] & ((columns >= 0) & (columns < nx))[:, None]
        jj = rows.clip(0, ny - 1)[:, :, None]
        ii = columns.clip(0, nx - 1)[:, None, :]
        values = frame.data[jj, ii].astype(float) - background.level_at(x, y)[:, None, None]
        good = inside & np.isfinite(values)
        if frame.mask is not None:
            good &= ~frame.mask[jj, ii]
        sigma2 = background.sigma_at(x, y)[:, None, None] ** 2 * np.ones_like(values)
        cls._hide_neighbours(sources, index, fwhm, rows, columns, good)
        flux = np.maximum(sources["flux_aper_e"][index] / frame.gain_e_adu, 1e-6)
        return cls(
            np.where(good, values, 0.0), sigma2, good.astype(float), x, y, flux.astype(float) * 1.1,
            x0, y0, radius, fwhm, frame.gain_e_adu,
        )

    @staticmethod
    def _hide_neighbours(
        sources: NDArray[np.void], index: NDArray[np.int64], fwhm: float,
        rows: NDArray[np.int64], columns: NDArray[np.int64], good: NDArray[np.bool_],
    ) -> None:
        """Take the pixels around other sources out of the stamps."""
        from scipy.spatial import cKDTree

        side = rows.shape[1]
        tree = cKDTree(np.column_stack([sources["x"], sources["y"]]))
        centre = np.column_stack([sources["x"][index], sources["y"][index]])
        near = tree.query_ball_point(centre, 0.75 * side + 2 * fwhm)
        for n, (i, others) in enumerate(zip(index, near)):
            for k in others:
                if k == i:
                    continue
                ratio = max(sources["flux_aper_e"][k] / sources["flux_aper_e"][i], 1e-4)
                reach = fwhm * (1.0 + 0.25 * max(np.log(ratio * 300.0), 0.0))
                d2 = (rows[n][:, None] - sources["y"][k]) ** 2 + (columns[n] - sources["x"][k]) ** 2
                good[n] &= d2 > reach**2

    def update_weights(self, model: Floats) -> None:
        light = np.maximum(self.flux[:, None, None] * model, 0.0)
        variance = self.variance + light / self.gain + (MODEL_FRACTION * light) ** 2
        self.weights = np.where(self.weights > 0, 1.0 / variance, 0.0)

    def refine_stars(self, coefficients: Floats, spacing: float, terms: Floats) -> None:
        """Fit flux and position of every star with the present PSF."""
        for _ in range(2):
            self.update_weights(self.model(coefficients, spacing, terms))
            psfkernels.step_stars(
                coefficients, spacing, terms, self.values, self.weights, self.x0, self.y0,
                self.x, self.y, self.flux, 0.3,
            )

    def model(self, coefficients: Floats, spacing: float, terms: Floats) -> Floats:
        out = np.empty_like(self.values)
        psfkernels.forward(
            np.ascontiguousarray(coefficients), spacing, terms, self.x, self.y, self.x0, self.y0, out
        )
        return out

    def reject_outliers(self, coefficients: Floats, spacing: float, terms: Floats) -> None:
        """Drop pixels and whole stars that the PSF does not describe."""
        model = self.model(coefficients, spacing, terms)
        light = self.flux[:, None, None] * model
        residual = self.values - light
        # Early PSFs are some per cent off in the core; only what exceeds that is an outlier.
        noise2 = self.variance + np.maximum(light, 0.0) / self.gain + (0.05 * light) ** 2
        self.weights[residual**2 > 36.0 * noise2] = 0.0
        chi2 = np.sum(residual**2 / noise2 * (self.weights > 0), axis=(1, 2))
        count = np.maximum(np.sum(self.weights > 0, axis=(1, 2)), 1)
        bad = ~clip(np.log(np.maximum(chi2 / count, 1e-3)), 6.0) & (chi2 / count > 1.0)
        if bad.mean() < 0.5:
            self.weights[bad] = 0.0


# ------------------------------------------------------------------------------- the linear fit
class _Fit:
    """The linear problem for the spline coefficients, and its solution by conjugate gradients."""

    def __init__(
        self, data: _Stamps, spacing: float, base: Floats, shape: tuple[int, int], threads: int
    ):
        self.data, self.spacing, self.base = data, spacing, base
        self.shape, self.threads = shape, threads
        peak = base.max()
        # How far the PSF may be from the smooth profile, a priori: a tenth of it, and a
        # thousandth of the peak where there is next to nothing. Its variation over the frame
        # may be half of that.
        self.prior = 0.1 * np.abs(base) + 1e-3 * peak
        self.held = np.arange(len(data.x)) % 5 == 4

    def terms(self, degree: int) -> Floats:
        """Return the polynomial terms of the stars."""
        return field_terms(self.data.x, self.data.y, self.shape, degree)

    def solve(
        self, degree: int, guess: Floats, held_out: bool = False, steps: int = 15
    ) -> Floats:
        """Return the coefficients (k, m, m) of the best PSF of a degree, starting from a guess."""
        data, terms = self.data, np.ascontiguousarray(self.terms(degree))
        use = ~self.held if held_out else np.ones(len(data.x), dtype=bool)
        flux = data.flux[:, None, None]
        weights = data.weights * use[:, None, None]
        scale = np.repeat(self.prior[None], terms.shape[1], axis=0)
        scale[1:] *= 0.5
        start = np.zeros_like(scale)
        start[: len(guess)] = guess[: len(start)]
        mean = np.zeros_like(scale)
        mean[0] = self.base
        pieces = [slice(k, k + 64) for k in range(0, len(data.x), 64)]

        def normal(z: Floats) -> Floats:
            coefficients = np.ascontiguousarray(z * scale)
            return self._back(pieces, coefficients, terms, flux**2 * weights) * scale + z

        rest = flux * weights * (data.values - flux * data.model(start, self.spacing, terms))
        right = self._adjoint(pieces, rest, terms) * scale - (start - mean) / scale
        return start + scale * _conjugate_gradients(normal, right, steps)

    def _back(
        self, pieces: list[slice], coefficients: Floats, terms: Floats, weights: Floats
    ) -> Floats:
        """Return A^T W A c."""
        d = self.data

        def work(s: slice) -> Floats:
            out = np.empty_like(d.values[s])
            args = (self.spacing, terms[s], d.x[s], d.y[s], d.x0[s], d.y0[s])
            psfkernels.forward(coefficients, *args, out)
            out *= weights[s]
            back = np.zeros_like(coefficients)
            psfkernels.adjoint(out, *args, back)
            return back

        # Summed in the order of the pieces, whatever the number of threads.
        return _total(share(work, pieces, self.threads))

    def _adjoint(self, pieces: list[slice], values: Floats, terms: Floats) -> Floats:
        d = self.data
        m = self.base.shape[0]

        def work(s: slice) -> Floats:
            back = np.zeros((terms.shape[1], m, m))
            psfkernels.adjoint(
                values[s], self.spacing, terms[s], d.x[s], d.y[s], d.x0[s], d.y0[s], back
            )
            return back

        return _total(share(work, pieces, self.threads))

    def held_out_chi2(self, coefficients: Floats, degree: int) -> float:
        """Return the chi^2 of the stars left out, per pixel, with their flux and place fitted."""
        d = self.data
        keep = self.held & (d.weights.max(axis=(1, 2)) > 0)
        if not keep.any():
            return float("inf")
        part = _Stamps(*(
            getattr(d, name)[keep].copy() if isinstance(getattr(d, name), np.ndarray) else getattr(d, name)
            for name in _Stamps.__dataclass_fields__
        ))
        terms = field_terms(part.x, part.y, self.shape, degree)
        part.refine_stars(coefficients, self.spacing, terms)
        model = part.flux[:, None, None] * part.model(coefficients, self.spacing, terms)
        per_star = np.sum(part.weights * (part.values - model) ** 2, axis=(1, 2))
        per_star /= np.maximum(np.sum(part.weights > 0, axis=(1, 2)), 1)
        return float(np.mean(np.minimum(per_star, 5.0 * np.median(per_star))))


def _choose_degree(fit: _Fit, guess: Floats, n_stars: int) -> int:
    """Return the degree that best predicts the stars left out, highest 3; ten stars a term."""
    best, best_chi2 = 0, np.inf
    for degree in (0, 1, 2, 3):
        if n_stars < 10 * n_terms(degree) and degree > 0:
            break
        coefficients = _normalised(
            fit.solve(degree, guess, held_out=True, steps=10), fit.spacing
        )
        chi2 = fit.held_out_chi2(coefficients, degree)
        # A part in a thousand of chi^2 is the noise of this comparison.
        if chi2 < best_chi2 * 0.999:
            best, best_chi2 = degree, chi2
        elif degree >= best + 1 and degree > 1:
            break
    return best


def _total(parts: list[Floats]) -> Floats:
    out = parts[0].copy()
    for part in parts[1:]:
        out += part
    return out


def _conjugate_gradients(normal: Any, right: Floats, steps: int) -> Floats:
    """Solve ``normal(z) = right`` for a positive operator near the identity."""
    z = np.zeros_like(right)
    r = right.copy()
    p = r.copy()
    rr = np.vdot(r, r)
    stop = 1e-8 * rr
    for _ in range(steps):
        if rr <= stop or rr == 0:
            break
        q = normal(p)
        alpha = rr / np.vdot(p, q)
        z += alpha * p
        r -= alpha * q
        new = np.vdot(r, r)
        p = r + (new / rr) * p
        rr = new
    return z


# ------------------------------------------------------------------------------- shape and norm
def _normalised(coefficients: Floats, spacing: float) -> Floats:
    """Scale so that the PSF's sum is 1 everywhere, and move its core's centroid to zero."""
    total = coefficients.sum(axis=(1, 2)) * spacing**2
    out = coefficients / total[0]
    total = total / total[0]
    # The terms beyond the first must not carry flux: P / sum P to first order in the variation.
    out[1:] -= total[1:, None, None] * out[0]
    x, y = _core_centroid(out[0], spacing)
    return _shifted(out, x / spacing, y / spacing)


def _grid(m: int, spacing: float) -> Floats:
    return (np.arange(m) - 0.5 * (m - 1)) * spacing


def _core_window(nodes: Floats, spacing: float) -> tuple[Floats, Floats, Floats]:
    m = nodes.shape[0]
    at = _grid(m, spacing)
    peak = np.unravel_index(np.argmax(nodes), nodes.shape)
    r2 = (at[:, None] - at[peak[0]]) ** 2 + (at[None, :] - at[peak[1]]) ** 2
    above = nodes > 0.5 * nodes.max()
    radius2 = max(above.sum() * spacing**2 / np.pi, spacing**2)
    window = np.exp(-0.5 * r2 / (2.0 * radius2))
    return window * np.maximum(nodes, 0.0), at[None, :] * np.ones((m, 1)), at[:, None] * np.ones(m)


def _core_centroid(nodes: Floats, spacing: float) -> tuple[float, float]:
    w, x, y = _core_window(nodes, spacing)
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
    # Sample the spline finely: nodes alone are coarse.
    r = 4 * nodes.shape[0]
    fine, nothing = np.empty((r, r)), np.empty((0, 0))
    psfkernels.stamp(
        nodes, 4.0, (r - 1) / 2.0, (r - 1) / 2.0, 0, 0, fine, nothing, nothing, False
    )
    step = spacing / 4.0
    half = fine > 0.5 * fine.max()
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


def _moffat_nodes(data: _Stamps, spacing: float, m: int) -> Floats:
    """Fit one elliptical Moffat profile to all stars and return it on the nodes."""
    from scipy.optimize import least_squares

    side = data.values.shape[1]
    offset_x = data.x0[:, None, None] + np.arange(side) - data.x[:, None, None]
    offset_y = data.y0[:, None, None] + np.arange(side)[:, None] - data.y[:, None, None]
    offset_x, offset_y = np.broadcast_arrays(offset_x, offset_y)
    scaled = data.values / data.flux[:, None, None]
    noise = np.sqrt(data.variance) / data.flux[:, None, None]
    near = (np.hypot(offset_x, offset_y) < 3.0 * data.fwhm) & (data.weights > 0)
    chosen = np.flatnonzero(near.ravel())
    chosen = chosen[:: max(1, len(chosen) // 6000)]
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
    nodes = _moffat(at[None, :], at[:, None], fit.x[1:])
    nodes = nodes / (nodes.sum() * spacing**2)
    return nodes


def _moffat(dx: Floats, dy: Floats, p: Floats) -> Floats:
    """Return (1 + (2^q - 1) r^2)^(-1/q): half at r = 1; q -> 0 is a Gaussian."""
    xx, xy, yy, q = p
    r2 = np.maximum(xx * dx * dx + 2.0 * xy * dx * dy + yy * dy * dy, 0.0)
    return np.exp(-np.log1p((2.0**q - 1.0) * r2) / q)
