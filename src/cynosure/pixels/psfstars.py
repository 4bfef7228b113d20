"""The stars that a PSF is built from: which ones, their pixels, their places and fluxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cynosure.data.frame import Frame
from cynosure.data.tables import SourceFlag
from cynosure.ground.numeric import MAD_TO_STD, clip, lstsq
from cynosure.pixels import psfkernels
from cynosure.pixels.background import Background

__all__ = ["MODEL_FRACTION", "Stamps", "choose_stars", "noise_gain"]

Floats = NDArray[np.float64]

# A star's brightest pixels are not known better than this fraction: the PSF varies within the
# polynomial's reach, the flat is not perfect. It bounds the weight of the brightest stars.
MODEL_FRACTION = 0.004

# Classes of brightness for the noise of the light.
GAIN_BINS = 30


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
    known = np.isfinite(sources["fwhm_px"]) & (sources["fwhm_px"] > 0.4)
    spoiled = SourceFlag.unusable() | SourceFlag.NEAR_BRIGHT
    good = np.zeros(0, dtype=np.int64)
    # A star with a bad pixel, or a fainter one, where there are few others.
    for flags, least, too_few in (
        (spoiled, min_snr, 1), (spoiled & ~SourceFlag.BAD_PIXEL, min_snr, 60),
        (spoiled & ~SourceFlag.BAD_PIXEL, min(min_snr, 8.0), 10),
    ):
        if len(good) < too_few:
            fit = known & (sources["flags"] & flags == 0) & (sources["snr"] > least)
            good = np.flatnonzero(fit)
    if len(good) == 0:
        return good, float("nan")
    size = np.log(sources["fwhm_px"][good])
    # Stars form a narrow locus in width; galaxies, blends and spikes lie off it. The locus may be
    # as wide as the PSF's own variation over the frame.
    keep = np.abs(size - np.median(size)) < 0.35
    keep &= clip(size, 4.0) | (np.abs(size - np.median(size)) < 0.1)
    good = good[keep] if keep.any() else good
    fwhm = float(np.median(sources["fwhm_px"][good]))
    crowd = _neighbours_light(sources, good, 3.0 * fwhm)
    alone = good[crowd < 0.02]
    if len(alone) < 60:
        order = np.argsort(crowd, kind="stable")
        alone = good[order[: max(60, len(alone))]]
        alone = alone[np.argsort(alone)]
        alone = alone[np.isin(alone, good[crowd < 0.5])] if (crowd < 0.5).sum() >= 10 else alone
    return _spread(sources, alone, shape, max_stars), fwhm


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
    return light[index] / np.maximum(flux[index], 1e-30)


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
    """The pixels of the chosen stars, and what is known of each star; changes as they are fitted.

    Attributes
    ----------
    values : (n, side, side) ndarray of float32
        Pixels less the sky, ADU.
    good : (n, side, side) ndarray of bool
        The pixels to use.
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
    gain : float
        Electrons per ADU, for the noise of the light.
    """

    values: NDArray[np.float32]
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
        values = frame.data[jj, ii]
        good = inside & np.isfinite(values) & (values < frame.saturation_adu)
        if frame.mask is not None:
            good &= ~frame.mask[jj, ii]
        level = background.level_at(x, y).astype(np.float32)
        values = np.where(good, values - level[:, None, None], np.float32(0.0))
        _hide_neighbours(sources, index, fwhm, rows, columns, good)
        flux = np.maximum(sources["flux_aper_e"][index] / frame.gain_e_adu * 1.1, 1e-30)
        return cls(
            values, good, background.sigma_at(x, y) ** 2, x, y, flux, x0, y0, radius, fwhm,
            frame.gain_e_adu,
        )

    def part(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Stamps:
        """Return a copy of some of the stars."""
        return Stamps(
            self.values[index], self.good[index], self.variance[index], self.x[index],
            self.y[index], self.flux[index], self.x0[index], self.y0[index], self.radius,
            self.fwhm, self.gain,
        )

    def refine(self, coefficients: Floats, spacing: float, terms: Floats) -> None:
        """Fit flux and position of every star with the present PSF."""
        psfkernels.step_stars(
            coefficients, spacing, terms, self.values, self.good, self.variance, self.x0, self.y0,
            self.gain, MODEL_FRACTION, 0.3, 2, self.x, self.y, self.flux,
        )

    def light(self, coefficients: Floats, spacing: float, terms: Floats) -> Floats:
        """Return what the PSF and the present fluxes put on the pixels, ADU."""
        out = np.empty(self.values.shape)
        psfkernels.forward(
            coefficients, spacing, terms, self.x, self.y, self.x0, self.y0, out
        )
        out *= self.flux[:, None, None]
        return out

    def reject_outliers(self, coefficients: Floats, spacing: float, terms: Floats) -> None:
        """Drop pixels and whole stars that the PSF does not describe."""
        light = self.light(coefficients, spacing, terms)
        residual2 = (self.values - light) ** 2
        # Early PSFs are some per cent off in the core; only what exceeds that is an outlier.
        noise2 = self.variance[:, None, None] + np.maximum(light, 0.0) / self.gain
        noise2 += (0.05 * light) ** 2
        residual2 /= noise2
        self.good &= residual2 < 36.0
        count = np.maximum(np.sum(self.good, axis=(1, 2)), 1)
        chi2 = np.sum(residual2 * self.good, axis=(1, 2)) / count
        bad = ~clip(np.log(np.maximum(chi2, 1e-3)), 6.0) & (chi2 > 1.0)
        if bad.mean() < 0.5:
            self.good[bad] = False


def noise_gain(data: Stamps, light: Floats) -> float:
    """Measure how many electrons an ADU is by the noise of the stars' own light (photon transfer).

    The squared residuals of pixels of like brightness L give a variance, and the variances are
    ``1 + L / (g sigma) + (c L)^2`` in units of the sky's; the last term is what the PSF does not
    describe. Residuals are corrected for the part of them that the fit of each star's flux and
    place has taken up. Returns the gain the stamps have already where the stars do not
    contradict it.
    """
    noise2 = data.variance[:, None, None] + np.maximum(light, 0.0) / data.gain
    taken = np.zeros_like(light)
    for part in (light, np.gradient(light, axis=1), np.gradient(light, axis=2)):
        information = data.good * part**2 / noise2
        taken += information / np.maximum(information.sum(axis=(1, 2), keepdims=True), 1e-30)
    sigma = np.sqrt(data.variance)[:, None, None]
    bright = data.good & (light > 0.3 * sigma) & (taken < 0.7)
    if bright.sum() < 40 * GAIN_BINS:
        return data.gain
    level = (light / sigma)[bright]
    deviation = np.abs(data.values - light)[bright] / np.broadcast_to(sigma, light.shape)[bright]
    deviation /= np.sqrt(1.0 - taken[bright])
    order = np.argsort(level, kind="stable")
    bins = np.array_split(order, GAIN_BINS)
    x = np.array([np.median(level[b]) for b in bins])
    y = np.array([np.median(deviation[b]) for b in bins]) ** 2 * MAD_TO_STD**2
    weight = np.array([len(b) for b in bins]) / (2.7 * y**2)
    fit = lstsq(np.stack([np.ones_like(x), x, x * x], axis=1), y, weight, what="noise of the light")
    inverse, error = fit.x[1], float(np.sqrt(fit.covariance[1, 1]))
    sky = float(np.sqrt(np.median(data.variance)))
    stated = 1.0 / (data.gain * sky)
    if abs(inverse - stated) < 5.0 * error or 0.7 * stated < inverse < 1.4 * stated:
        return data.gain
    return 1.0 / (max(inverse, 0.1 * error) * sky)


def _hide_neighbours(
    sources: NDArray[np.void], index: NDArray[np.int64], fwhm: float,
    rows: NDArray[np.int64], columns: NDArray[np.int64], good: NDArray[np.bool_],
) -> None:
    """Take the pixels around other sources out of the stamps."""
    from scipy.spatial import cKDTree

    side = rows.shape[1]
    place = np.column_stack([sources["x"], sources["y"]])
    near = cKDTree(place[index]).query_ball_tree(cKDTree(place), 0.75 * side + 2 * fwhm)
    star = np.repeat(np.arange(len(index)), [len(k) for k in near])
    other = np.concatenate([np.asarray(k, dtype=np.int64) for k in near])
    keep = other != index[star]
    star, other = star[keep], other[keep]
    flux = np.maximum(sources["flux_aper_e"], 0.0)
    ratio = np.maximum(flux[other] / np.maximum(flux[index[star]], 1e-30), 1e-4)
    reach = fwhm * (1.0 + 0.25 * np.maximum(np.log(ratio * 300.0), 0.0))
    psfkernels.hide_disks(
        good, star, sources["x"][other] - columns[star, 0], sources["y"][other] - rows[star, 0],
        reach,
    )
