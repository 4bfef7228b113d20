"""Cramer-Rao bounds: the smallest possible errors of position and flux of a star.

For counts with mean ``F p_i(x, y) + b`` and variance ``F p_i + b + r^2`` in pixel i, the Fisher
matrix of (x, y, F) is ``I = sum_i g_i g_i^T / var_i`` with ``g_i = (F dp/dx, F dp/dy, p)``, and the
bound is the diagonal of its inverse. It is exact for Poisson noise, and for read noise in the
limit in which a pixel's noise is Gaussian. The bound depends on the position within the pixel; the
root mean square over the pixel is returned.

Limits for a Gaussian of width s that is well sampled: ``s / sqrt(F)`` where the star's own noise
dominates, ``sqrt(8 pi) s^2 sigma / F`` in a background of noise sigma per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cynosure.products.detector import sky_values
from cynosure.products.render import Mixture, psf_mixture, stamps
from cynosure.products.scene import Detector, Psf

__all__ = ["Bounds", "cramer_rao", "scene_bounds"]

Floats = NDArray[np.float64]

STEP_PX = 1e-3  # of the numeric derivative; its error is step^2/6 p''' ~ 1e-6 of p'
N_PHASES = 4  # per axis: 1e-3 of the average for a FWHM of 1.2 px, less for more
N_FLUXES = 32  # tabulated fluxes; the logarithm of the bound is nearly linear in that of the flux
MAX_HALF_PX = 45  # half a stamp: with wings beyond it the bound is too large by less than 1 %


def cramer_rao(
    mixture: Mixture, flux_e: Floats, variance_e2: float, *, n_phases: int = N_PHASES
) -> tuple[Floats, Floats, Floats]:
    """Return the bounds of x, y (px) and flux (e-) of an isolated star, averaged over the pixel.

    Parameters
    ----------
    mixture : Mixture
        The PSF, of length 1.
    flux_e : (n,) ndarray
        Fluxes.
    variance_e2 : float
        Variance of a pixel without the star: sky and read noise.
    n_phases : int
        Positions in the pixel, per axis.

    Returns
    -------
    x, y, flux : (n,) ndarray
    """
    extent = float(np.sqrt(np.max(np.sum(mixture.weight * (mixture.cxx + mixture.cyy), axis=1))))
    narrow = float(np.sqrt(np.min(mixture.cxx + mixture.cyy)))
    half = int(np.clip(np.ceil(max(3.0 * extent, 6.0 * narrow)) + 3, 8, MAX_HALF_PX))
    phase = (np.arange(n_phases) + 0.5) / n_phases - 0.5
    fx, fy = (a.ravel() for a in np.meshgrid(phase, phase))
    n, e = len(fx), STEP_PX
    many = Mixture(*(np.repeat(a, n, axis=0) for a in mixture.arrays))
    p = stamps(many, half, fx, fy).reshape(n, -1)
    px = (stamps(many, half, fx + e, fy) - stamps(many, half, fx - e, fy)).reshape(n, -1) / (2 * e)
    py = (stamps(many, half, fx, fy + e) - stamps(many, half, fx, fy - e)).reshape(n, -1) / (2 * e)
    products = np.stack([px * px, px * py, px * p, py * py, py * p, p * p])  # (6, phases, pixels)
    total = np.zeros((3, len(flux_e)))
    for k, flux in enumerate(flux_e):
        weight = 1.0 / (flux * p + variance_e2 + 1e-12)
        xx, xy, xf, yy, yf, ff = np.einsum("kpi,pi->kp", products, weight)
        fisher = np.array([[flux * flux * xx, flux * flux * xy, flux * xf],
                           [flux * flux * xy, flux * flux * yy, flux * yf],
                           [flux * xf, flux * yf, ff]])  # fmt: skip
        covariance = np.linalg.inv(np.moveaxis(fisher, -1, 0))
        total[:, k] = np.mean(np.diagonal(covariance, axis1=1, axis2=2), axis=0)
    x, y, f = np.sqrt(total)
    return x, y, f


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """Bounds on a grid of places and fluxes, interpolated linearly in u, v and log flux.

    Attributes
    ----------
    places : (g,) ndarray
        The grid along u and along v.
    log_flux : (m,) ndarray
    log_values : (3, g, g, m) ndarray
        Logarithms of the bounds of x, y and flux at [v, u].
    """

    places: Floats
    log_flux: Floats
    log_values: Floats

    def at(self, u: Floats, v: Floats, flux_e: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the bounds of x, y (px) and flux (e-) of stars."""
        log_flux = np.log(np.maximum(flux_e, 1e-3))
        axes = [
            _cell(a, g) for a, g in ((v, self.places), (u, self.places), (log_flux, self.log_flux))
        ]
        value = np.zeros((3, len(flux_e)))
        for corner in np.ndindex(2, 2, 2):
            weight, index = np.ones(len(flux_e)), []
            for (low, fraction), grid, side in zip(axes, (0, 0, 1), corner):
                size = (len(self.places), len(self.log_flux))[grid]
                index.append(np.minimum(low + side, size - 1))
                weight = weight * (fraction if side else 1.0 - fraction)
            value += weight * self.log_values[:, index[0], index[1], index[2]]
        x, y, f = np.exp(value)
        return x, y, f


def _cell(values: Floats, grid: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return the cell of a regular grid and the place in it; outside it extrapolates."""
    if len(grid) == 1:
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values))
    at = (values - grid[0]) / (grid[1] - grid[0])
    low = np.clip(at.astype(np.int64), 0, len(grid) - 2)
    return low, at - low


def scene_bounds(psf: Psf, detector: Detector, flux_e: Floats, *, n_places: int = 5) -> Bounds:
    """Return the bounds for a chip: at one position if PSF and sky are constant, else on a grid.

    Parameters
    ----------
    psf, detector : Psf, Detector
        The scene's.
    flux_e : (n,) ndarray
        Fluxes whose range is tabulated.
    n_places : int
        Grid points per axis where PSF or sky vary over the chip.
    """
    varying = any(
        any(terms[1:])
        for terms in (
            *(psf.fwhm_terms, psf.e1_terms, psf.e2_terms, psf.coma_x_terms, psf.coma_y_terms),
            detector.sky_terms,
        )
    )
    places = np.linspace(-1.0, 1.0, n_places) if varying else np.zeros(1)
    flux = flux_e[np.isfinite(flux_e) & (flux_e > 0)]
    low, high = (flux.min(), flux.max()) if flux.size else (1.0, 1e5)
    log_flux = np.linspace(np.log(max(low, 1e-2)), np.log(max(high, 1e-1) * 1.001) + 0.01, N_FLUXES)
    values = np.zeros((3, len(places), len(places), N_FLUXES))
    for j, v in enumerate(places):
        for i, u in enumerate(places):
            place = np.array([u]), np.array([v])
            variance = float(sky_values(detector, *place)[0]) + detector.read_noise_e**2
            values[:, j, i] = cramer_rao(psf_mixture(psf, *place), np.exp(log_flux), variance)
    return Bounds(places, log_flux, np.log(values))
