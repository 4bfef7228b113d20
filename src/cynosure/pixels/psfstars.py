"""The stars of a PSF: their selection, their pixels, their positions and fluxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cynosure.data.frame import Frame
from cynosure.data.mask import PSF
from cynosure.data.tables import SourceFlag
from cynosure.ground.numeric import MAD_TO_STD, clip, lstsq
from cynosure.pixels import psfkernels
from cynosure.pixels.background import Background

__all__ = ["MODEL_FRACTION", "Stamps", "choose_stars", "noise_gain"]

Floats = NDArray[np.float64]

# Relative error of the model in the brightest pixels: the flat and the variation of the PSF are not
# known better. It limits the weight of the brightest stars.
MODEL_FRACTION = 0.004

# Radii of shells around the most frequent width (log) and ellipticity: from the noise of a bright
# star to the variation of a PSF over the frame.
SHELLS = np.array([0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5])
# Sources whose shapes are compared (the cost is their square), fewest similar ones for a selection,
# and the density, as a part of the largest, below which a shell ends the locus of stars.
MOST_SHAPES, FEWEST_ALIKE, LEAST_DENSITY = 2000, 10, 0.05

# Floor of a flux that is a denominator.
TINY = 1e-200

# Bins of brightness in which the variance of the residuals is measured, each of 40 pixels or more.
GAIN_BINS = 30

# The gain is not measured where the chi^2 of the stars scatters by more than this many times its
# expectation: the residuals are then errors of the model and not noise.
MOST_UNEVEN = 2.8

# Residuals whose leverage in the star's own fit exceeds this are left out of the noise.
MAX_LEVERAGE = 0.5


# --------------------------------------------------------------------------- choosing the stars
def choose_stars(
    sources: NDArray[np.void], shape: tuple[int, int], min_snr: float, max_stars: int
) -> tuple[NDArray[np.int64], float]:
    """Choose the stars for the PSF: bright, isolated, of the common width.

    Returns
    -------
    index : (n,) ndarray of int
        Rows of `sources`.
    fwhm_px : float
        Their median width.
    """
    known = np.isfinite(sources["fwhm_px"]) & (sources["fwhm_px"] > 0.4)
    spoiled = SourceFlag.unusable() | SourceFlag.NEAR_BRIGHT
    good = np.zeros(0, dtype=np.int64)
    # With fewer than 60 stars those with a bad pixel are used too, with fewer than 10 also fainter
    # ones.
    for flags, least, too_few in (
        (spoiled, min_snr, 1), (spoiled & ~SourceFlag.BAD_PIXEL, min_snr, 60),
        (spoiled & ~SourceFlag.BAD_PIXEL, min(min_snr, 8.0), 10),
    ):
        if len(good) < too_few:
            fit = known & (sources["flags"] & flags == 0) & (sources["snr"] > least)
            good = np.flatnonzero(fit)
    if len(good) == 0:
        return good, float("nan")
    good = good[_alike(sources[good])]
    size = np.log(sources["fwhm_px"][good])
    # Stars form a narrow locus in width (log); galaxies, blends and spikes lie outside. It may be
    # as wide as the variation of the PSF over the frame.
    keep = np.abs(size - np.median(size)) < 0.35
    keep &= clip(size, 4.0) | (np.abs(size - np.median(size)) < 0.1)
    good = good[keep] if keep.any() else good
    fwhm = float(np.median(sources["fwhm_px"][good]))
    crowd = _neighbours_light(sources, good, 3.0 * fwhm)
    # Neighbours within 3 FWHM have less than 2 % of the star's light; if that leaves fewer than 60
    # stars, the 60 with the least, but half of their own at most.
    alone = good[crowd < 0.02]
    if len(alone) < 60:
        order = np.argsort(crowd, kind="stable")
        alone = good[order[: max(60, len(alone))]]
        alone = alone[np.argsort(alone)]
        alone = alone[np.isin(alone, good[crowd < 0.5])] if (crowd < 0.5).sum() >= 10 else alone
    return _spread(sources, alone, shape, max_stars), fwhm


def _alike(sources: NDArray[np.void]) -> NDArray[np.bool_]:
    """Say which sources have the most frequent width and shape.

    Stars have similar shapes, up to the noise and the variation of the PSF over the frame; cosmic
    rays, galaxies and blends, which may be more, do not. In the space of log width and the two
    components of the ellipticity the densest point is found, and the radius to which the density
    around it is high.
    """
    from scipy.spatial import cKDTree

    turn = 2.0 * np.radians(sources["theta_deg"])
    shape = np.column_stack([
        np.log(sources["fwhm_px"]), sources["ellipticity"] * np.cos(turn),
        sources["ellipticity"] * np.sin(turn),
    ])
    known = np.all(np.isfinite(shape), axis=1)
    bright = np.flatnonzero(known)[np.argsort(-sources["snr"][known], kind="stable")][:MOST_SHAPES]
    sample = shape[bright]
    count = cKDTree(sample).query_ball_point(sample, SHELLS[0], return_length=True) if len(
        sample) else np.zeros(1)
    if count.max() < FEWEST_ALIKE:
        return np.ones(len(sources), dtype=bool)
    center = sample[np.argmax(count)]
    for _ in range(5):
        center = sample[np.linalg.norm(sample - center, axis=1) < SHELLS[0]].mean(axis=0)
    away = np.linalg.norm(sample - center, axis=1)
    inside = np.searchsorted(np.sort(away), SHELLS)
    # Per radius, not per volume: a varying PSF spreads the stars along a line in this space.
    density = np.diff(inside) / np.diff(SHELLS)
    thin = np.flatnonzero(density < LEAST_DENSITY * inside[0] / SHELLS[0])
    reach = SHELLS[thin[0] + 1] if len(thin) else np.inf
    near = np.zeros(len(sources), dtype=bool)
    near[known] = np.linalg.norm(shape[known] - center, axis=1) < reach
    return near


def _neighbours_light(
    sources: NDArray[np.void], index: NDArray[np.int64], reach_px: float
) -> Floats:
    """Return the light of the neighbours of some sources as a fraction of their own."""
    from scipy.spatial import cKDTree

    place = np.column_stack([sources["x"], sources["y"]])
    pairs = cKDTree(place).query_pairs(reach_px, output_type="ndarray")
    flux = np.maximum(sources["flux_aper_e"], 0.0)
    light = np.bincount(
        np.concatenate([pairs[:, 0], pairs[:, 1]]),
        np.concatenate([flux[pairs[:, 1]], flux[pairs[:, 0]]]), minlength=len(sources),
    )
    return light[index] / np.maximum(flux[index], TINY)


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
class Stamps:
    """The pixels of the chosen stars, with flux and position of each; the fit changes them.

    Attributes
    ----------
    values : (n, side, side) ndarray of float32
        Pixels less the sky, ADU.
    usable, good : (n, side, side) ndarray of bool
        Pixels that could be used, and those of them that are.
    variance : (n,) ndarray
        Of the sky, ADU^2.
    x, y, flux : (n,) ndarray
        The present positions (px) and fluxes (ADU).
    x0, y0 : (n,) ndarray of int
        First pixel of each stamp.
    radius : int
        Of the stamps: side = 2 radius + 1.
    fwhm : float
        Of the stars, px.
    gain, stated_gain : float
        Electrons per ADU for the photon noise, and the value of the frame.
    """

    values: NDArray[np.float32]
    usable: NDArray[np.bool_]
    good: NDArray[np.bool_]
    variance: Floats
    x: Floats
    y: Floats
    flux: Floats
    x0: NDArray[np.int64]
    y0: NDArray[np.int64]
    radius: int
    fwhm: float
    gain: float
    stated_gain: float

    @classmethod
    def cut(
        cls, frame: Frame, background: Background, sources: NDArray[np.void],
        index: NDArray[np.int64], fwhm: float, radius_fwhm: float,
    ) -> Stamps:
        """Cut the stamps of some sources out of a frame."""
        ny, nx = frame.shape
        radius = int(np.clip(np.ceil(radius_fwhm * fwhm + 1.0), 4, 40))
        side = 2 * radius + 1
        x, y = sources["x"][index].astype(float), sources["y"][index].astype(float)
        x0 = np.rint(x).astype(np.int64) - radius
        y0 = np.rint(y).astype(np.int64) - radius
        rows, columns = y0[:, None] + np.arange(side), x0[:, None] + np.arange(side)
        inside = ((rows >= 0) & (rows < ny))[:, :, None]
        inside = inside & ((columns >= 0) & (columns < nx))[:, None]
        jj = rows.clip(0, ny - 1)[:, :, None]
        ii = columns.clip(0, nx - 1)[:, None, :]
        values = frame.data[jj, ii].astype(np.float32, copy=False)
        good = inside & np.isfinite(values) & (values < frame.saturation_adu)
        unusable = frame.unusable(PSF)
        if unusable is not None:
            good &= ~unusable[jj, ii]
        level = background.level_at(x, y).astype(np.float32)
        values = np.where(good, values - level[:, None, None], np.float32(0.0))
        _hide_neighbours(sources, index, fwhm, rows, columns, good)
        sigma = background.sigma_at(x, y)
        flux = np.maximum(sources["flux_aper_e"][index] / frame.gain_e_adu * 1.1, 1e-3 * sigma)
        return cls(
            values, good, good.copy(), sigma**2, x, y, flux, x0, y0, radius,
            fwhm, frame.gain_e_adu, frame.gain_e_adu,
        )

    def part(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Stamps:
        """Return a copy of some of the stars."""
        return Stamps(
            self.values[index], self.usable[index], self.good[index], self.variance[index],
            self.x[index], self.y[index], self.flux[index], self.x0[index], self.y0[index],
            self.radius, self.fwhm, self.gain, self.stated_gain,
        )

    def refine(self, coefficients: Floats, spacing: float, terms: Floats) -> None:
        """Fit flux and position of every star with the present PSF."""
        psfkernels.step_stars(
            coefficients, spacing, terms, self.values, self.good, self.variance, self.x0, self.y0,
            self.gain, MODEL_FRACTION, 0.3, 2, self.x, self.y, self.flux,
        )

    def light(self, coefficients: Floats, spacing: float, terms: Floats) -> Floats:
        """Return the model of the pixels for the present fluxes, ADU."""
        out = np.empty(self.values.shape)
        psfkernels.forward(
            coefficients, spacing, terms, self.x, self.y, self.x0, self.y0, out
        )
        out *= self.flux[:, None, None]
        return out

    def reject_outliers(
        self, coefficients: Floats, spacing: float, terms: Floats, fraction: float
    ) -> None:
        """Reject pixels (beyond 6 sigma) and stars with a bad fit, and restore the others.

        The error of a pixel includes a fraction of the light, by which an early PSF is wrong.
        """
        light = self.light(coefficients, spacing, terms)
        residual2 = (self.values - light) ** 2
        noise2 = self.variance[:, None, None] + np.maximum(light, 0.0) / self.gain
        noise2 += (fraction * light) ** 2
        residual2 /= noise2
        self.good = self.usable & (residual2 < 36.0)
        count = np.maximum(np.sum(self.good, axis=(1, 2)), 1)
        chi2 = np.sum(residual2 * self.good, axis=(1, 2)) / count
        bad = ~clip(np.log(np.maximum(chi2, 1e-3)), 6.0) & (chi2 > 1.0)
        if bad.mean() < 0.5:
            self.good[bad] = False


def noise_gain(
    data: Stamps, coefficients: Floats, spacing: float, terms: Floats, *, factor: float = 2.0
) -> float:
    """Measure the gain by the photon noise of the stars (photon transfer).

    The squared residuals of pixels of similar brightness L give a variance, and the variances are
    ``a + L / (g sigma) + (c L)^2`` in units of the sky's; the last term is the error of the PSF
    model. Each squared residual is corrected for its leverage in the fit of its star. Returns the
    frame's gain unless the stars contradict it by more than `factor` and five standard errors.
    """
    light, taken = np.empty(data.values.shape), np.empty(data.values.shape)
    psfkernels.judge_stars(
        coefficients, spacing, terms, data.values, data.good, data.variance, data.x0, data.y0,
        data.gain, MODEL_FRACTION, data.x, data.y, data.flux, light, taken,
    )
    sigma = np.broadcast_to(np.sqrt(data.variance)[:, None, None], light.shape)
    bright = data.good & (light > 0.3 * sigma) & (taken < MAX_LEVERAGE)
    if bright.sum() < 40 * GAIN_BINS:
        return data.gain
    level = light[bright] / sigma[bright]
    deviation = np.abs(data.values[bright] - light[bright]) / sigma[bright]
    deviation /= np.sqrt(1.0 - taken[bright])
    order = np.argsort(level, kind="stable")
    bins = np.array_split(order, GAIN_BINS)
    x = np.array([np.median(level[b]) for b in bins])
    y = np.array([np.median(deviation[b]) for b in bins]) ** 2 * MAD_TO_STD**2
    weight = np.array([len(b) for b in bins]) / (2.7 * y**2)
    fit = lstsq(np.stack([np.ones_like(x), x, x * x], axis=1), y, weight, what="noise of the light")
    inverse, error = fit.x[1], float(np.sqrt(fit.covariance[1, 1]))
    sky = float(np.sqrt(np.median(data.variance)))
    stated = 1.0 / (data.stated_gain * sky)
    if abs(inverse - stated) < 5.0 * error or stated / factor < inverse < factor * stated:
        return data.stated_gain
    noise2 = np.maximum(fit.x @ np.stack([np.ones_like(level), level, level * level]), 1e-3)
    if _uneven(np.nonzero(bright)[0], deviation**2 / noise2) > MOST_UNEVEN:
        return data.stated_gain
    return 1.0 / (max(inverse, 0.1 * error) * sky)


def _uneven(star: NDArray[np.int64], chi2: Floats) -> float:
    """Return the scatter of the stars' chi^2 over its expectation for noise alone.

    Photon noise gives all stars the same chi^2 per pixel; galaxies and blends, which the PSF does
    not describe, increase the scatter.
    """
    count = np.bincount(star)
    enough = count >= 8
    if enough.sum() < 8:
        return 0.0
    mean = np.bincount(star, chi2)[enough] / count[enough]
    spread = MAD_TO_STD * np.median(np.abs(mean - np.median(mean)))
    return float(spread / np.median(mean) / np.sqrt(2.0 / np.median(count[enough])))


def _hide_neighbours(
    sources: NDArray[np.void], index: NDArray[np.int64], fwhm: float,
    rows: NDArray[np.int64], columns: NDArray[np.int64], good: NDArray[np.bool_],
) -> None:
    """Exclude the pixels around other sources from the stamps."""
    from scipy.spatial import cKDTree

    side = rows.shape[1]
    place = np.column_stack([sources["x"], sources["y"]])
    near = cKDTree(place[index]).query_ball_tree(cKDTree(place), 0.75 * side + 2 * fwhm)
    star = np.repeat(np.arange(len(index)), [len(k) for k in near])
    other = np.concatenate([np.asarray(k, dtype=np.int64) for k in near])
    keep = other != index[star]
    star, other = star[keep], other[keep]
    flux = np.maximum(sources["flux_aper_e"], 0.0)
    ratio = np.maximum(flux[other] / np.maximum(flux[index[star]], TINY), 1e-4)
    reach = fwhm * (1.0 + 0.25 * np.maximum(np.log(ratio * 300.0), 0.0))
    psfkernels.hide_disks(
        good, star, sources["x"][other] - columns[star, 0], sources["y"][other] - rows[star, 0],
        reach,
    )
