"""PSF photometry at given positions, and in passes for crowded fields.

:func:`forced_psf` fits fluxes at positions from another source: another epoch, a catalogue, an
ephemeris. :func:`measure_iteratively` detects the sources of a crowded field in passes, the bright
ones first, each pass on the residual image of the passes before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.data.frame import Frame
from cynosure.data.tables import SOURCES, SourceFlag
from cynosure.ground.errors import SettingError
from cynosure.ground.settings import Range, Unit
from cynosure.pixels.aperture import places_of
from cynosure.pixels.background import Background, plain_pixels
from cynosure.pixels.detect import detect_sources, note_mask_bits
from cynosure.pixels.measure import Manner, fit_all, fit_in_passes
from cynosure.pixels.psf import Psf

__all__ = ["forced_psf", "measure_iteratively"]

# Radius (FWHM) within which mask bits are recorded: it holds 97 % of the light of a Gaussian star
# and nearly all of the information on the flux of a faint one.
BITS_FWHM = 1.15


def forced_psf(
    frame: Frame, background: Background, psf: Psf, positions: ArrayLike, *,
    shifts: Annotated[int, Range(0, 20)] = 0,
    max_shift_px: Annotated[float, Unit("px"), Range(0, 2)] = 0.2,
    group_fwhm: Annotated[float, Unit("FWHM"), Range(0, 10)] = 1.5,
    sweeps: Annotated[int, Range(1, 100)] = 12, threads: int = 1,
) -> NDArray[np.void]:
    """Fit the flux of the PSF at given places.

    Parameters
    ----------
    frame, background, psf
        The pixels, the sky and the PSF.
    positions : (n, 2) array of x, y, or a table with columns x and y
        Positions, 0-based pixels. The list should include neighbours: the light of a star that is
        not on it adds to the flux of those that are.
    shifts : int
        Steps in which a position may move towards the star; 0 keeps all positions. A source below
        S/N 4 does not move.
    max_shift_px : float
        Largest total shift along each axis.
    group_fwhm : float
        Sources closer than this are fitted jointly.
    sweeps : int
        Most steps of a flux.
    threads : int
        Threads that share the work; the result does not depend on it.

    Returns
    -------
    sources : (n,) structured array
        Schema ``SOURCES``, in the order of the places, flagged FORCED, with `iteration` -1. A flux
        may be negative. Outside the frame (flag EDGE), where no pixel is usable (BAD_PIXEL), and
        where two places are the same, the flux is NaN (NOT_CONVERGED).
    """
    x, y = places_of(positions)
    out = SOURCES.empty(len(x))
    out["chip"], out["x"], out["y"], out["iteration"] = frame.chip, x, y, -1
    out["flags"] = SourceFlag.FORCED
    ny, nx = frame.shape
    with np.errstate(invalid="ignore"):
        inside = (x >= -0.5) & (x < nx - 0.5) & (y >= -0.5) & (y < ny - 0.5)
        near_edge = np.minimum.reduce([x, y, nx - 1 - x, ny - 1 - y]) < psf.fwhm_px
    out["flags"][near_edge | ~inside] |= SourceFlag.EDGE
    out["flags"][~inside] |= SourceFlag.NOT_CONVERGED
    rows = np.flatnonzero(inside)
    if not len(rows):
        return out
    asked = out[rows]
    asked["peak_snr"] = _rough_snr(frame, background, psf, x[rows], y[rows])
    frame = frame.replaced(data=plain_pixels(frame)[0])
    how = Manner(sweeps, group_fwhm, threads, shifts, max_shift_px)
    fitted, _ = fit_all(frame, background, psf, asked, how)
    fitted["peak_snr"] = np.nan
    fitted["background_e"] = background.level_at(fitted["x"], fitted["y"]) * frame.gain_e_adu
    note_mask_bits(frame, fitted, BITS_FWHM * psf.fwhm_px)
    out[rows] = fitted
    return out


def _rough_snr(
    frame: Frame, background: Background, psf: Psf, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the approximate significance at positions, from their central pixels.

    It decides to what radius a star is fitted. The central pixel of a Gaussian star has 0.88 /
    fwhm^2 of its flux, and 1 / sqrt(sum P^2) of sky noise is the error of the flux, with sum P^2 =
    0.44 / fwhm^2.
    """
    column = np.rint(x).astype(int).clip(0, frame.shape[1] - 1)
    row = np.rint(y).astype(int).clip(0, frame.shape[0] - 1)
    light = frame.data[row, column].astype(float) - background.level_at(x, y)
    peak = np.nan_to_num(light / background.sigma_at(x, y), nan=5.0, posinf=1e6, neginf=0.0)
    return np.asarray(peak * psf.fwhm_px * 0.44**0.5 / 0.88)


def measure_iteratively(
    frame: Frame, background: Background, psf: Psf, *,
    thresholds_sigma: Annotated[Sequence[float], Unit("sigma")] = (500.0, 50.0, 4.5),
    repeats: Annotated[int, Range(0, 10)] = 1,
    sweeps: Annotated[int, Range(1, 100)] = 12,
    group_fwhm: Annotated[float, Unit("FWHM"), Range(0, 10)] = 1.5, threads: int = 1,
) -> NDArray[np.void]:
    """Detect and fit the sources of a frame in passes, each on the residual image of the former.

    Parameters
    ----------
    frame, background, psf
        The pixels, the sky and the PSF.
    thresholds_sigma : sequence of float
        Detection threshold of each pass. New sources are fitted together with all earlier ones and
        subtracted; the photon noise of the subtracted light is included in the next threshold.
        Level and noise of the sky are measured again after each pass.
    repeats : int
        Further passes at the last threshold, for stars that only the residual image shows.
    sweeps : int
        Most Gauss-Newton steps of a source in a pass.
    group_fwhm : float
        Sources closer than this are fitted jointly.
    threads : int
        Threads that share the work; the result does not depend on it.

    Returns
    -------
    sources : (n,) structured array
        Schema ``SOURCES``; `iteration` is the pass, from 0, in which a source was found.

    Raises
    ------
    SettingError
        If there is no threshold, or one is not positive.
    """
    thresholds = [float(t) for t in thresholds_sigma]
    if not thresholds or not all(t > 0 for t in thresholds):
        raise SettingError(
            "thresholds_sigma = {given}: positive numbers are expected", given=tuple(thresholds)
        )
    thresholds += thresholds[-1:] * repeats
    first, more = thresholds[0], thresholds[1:]
    skipped = 0
    sources = SOURCES.empty()
    while not len(sources):  # the brightest may be fainter than the first threshold
        sources = detect_sources(
            frame, background, threshold_sigma=first, fwhm_px=psf.fwhm_px, threads=threads
        )
        if not len(sources) and not more:
            return sources
        if not len(sources):
            first, more, skipped = more[0], more[1:], skipped + 1
    fitted = fit_in_passes(
        frame, background, psf, sources, more, Manner(sweeps, group_fwhm, threads)
    )
    fitted["iteration"] += skipped
    return fitted
