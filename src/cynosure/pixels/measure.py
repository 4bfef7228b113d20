"""Fit the PSF to the sources: positions, fluxes and their covariance.

Every source has three parameters, flux and position; the background is that of the mesh. Sources
that share pixels form groups, and the stars of a group are solved together by Gauss-Newton steps
whose weights come from the model, not from the data (weights from the data favour pixels that
fluctuated down and bias faint fluxes). Groups are solved in turn on the common residual image, in
sweeps. The covariance is the inverse of the normal matrix of the group, blends included.

The frame is fitted in tiles with a margin, so that memory does not grow with it; the tiles, and so
the results, do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.data.frame import Frame
from cynosure.data.mask import PHOTOMETRY
from cynosure.data.tables import SourceFlag
from cynosure.ground.settings import Range, Unit
from cynosure.ground.threads import share
from cynosure.pixels import fitkernels, fluxkernels, kernels, peakkernels
from cynosure.pixels.background import (
    PLAIN,
    Background,
    estimate_background,
    plain_pixels,
    rounding_noise,
)
from cynosure.pixels.defects import flag_trails
from cynosure.pixels.detect import detect_sources
from cynosure.pixels.psf import Psf

__all__ = ["Manner", "fit_all", "fit_in_passes", "fit_psf"]

# Side of a tile (px): its margin adds little, and its arrays are some megabytes a thread.
TILE_PX = 768

NO_VARIANCE = np.zeros((0, 0), dtype=np.float32)

# Most stars that are solved jointly, since the cost grows with the cube; the links of larger groups
# are shortened, and the sweeps account for the rest.
MAX_GROUP = 12

# The normal matrix gives position errors to first order. A faint star's errors are larger, because
# the gradient they are scaled by is itself noisy and the star was detected where noise raised it:
# variance times 1 + 7 / snr^2. The pulls of simulated stars of S/N 4 to 16 give 5 to 9, for
# Gaussian and Moffat profiles, round and long, of FWHM 1.2 to 4, on bright and on dark sky.
SECOND_ORDER = 7.0

# Detections in the residual image below this part of the subtracted light are not sources: a PSF
# model is wrong by some per cent in the core of a bright star.
RESIDUAL_FRACTION = 0.03

# Nor are those with less than this part of the flux of a star nearby, in its wings.
WING_FRACTION = 0.001

# chi^2 per degree of freedom, on sky noise, above which a source is not a single star. A good fit
# has 1 within 0.2 (some 50 pixels); the rest allows for errors of the PSF model.
MISFIT_CHI2 = 3.0

# A star with an unusable pixel within this distance (FWHM) of its centre is flagged: just outside
# the half-maximum radius, within which most of the information on its position is.
CORE_FWHM = 0.6


def fit_psf(
    frame: Frame,
    background: Background,
    psf: Psf,
    sources: NDArray[np.void],
    *,
    passes: Annotated[int | None, Range(1, 10)] = None,
    sweeps: Annotated[int, Range(1, 100)] = 12,
    group_fwhm: Annotated[float, Unit("FWHM"), Range(0, 10)] = 1.5,
    threshold_sigma: Annotated[float, Unit("sigma"), Range(1, 1000)] = 5.0,
    threads: int = 1,
) -> NDArray[np.void]:
    """Fit the PSF to all sources of a frame.

    Parameters
    ----------
    frame, background, psf, sources
        The pixels, the sky, the PSF and the sources to start from.
    passes : int, optional
        With 2 or more, further sources are detected in the residual image, and all sources are
        fitted again. By default 2 where the field is crowded (more than 3 sources in 100 areas of a
        beam), else 1.
    sweeps : int
        Most Gauss-Newton steps of a source; few stars need more than three.
    group_fwhm : float
        Sources closer than this are fitted jointly.
    threshold_sigma : float
        Least significance of a further source.
    threads : int
        Threads that share the work; the result does not depend on it.

    Returns
    -------
    sources : (n,) structured array
        A new table; x, y, flux_e, snr, their errors, chi2_dof and flags come from the fit.
    """
    if len(sources) == 0:
        return sources.copy()
    if passes is None:
        beams = frame.data.size / (np.pi * (2.0 * psf.fwhm_px) ** 2)
        passes = 2 if len(sources) > 0.03 * beams else 1
    how = Manner(sweeps, group_fwhm, threads)
    return fit_in_passes(frame, background, psf, sources, (threshold_sigma,) * (passes - 1), how)


def fit_in_passes(
    frame: Frame, background: Background, psf: Psf, sources: NDArray[np.void],
    thresholds: Sequence[float], how: Manner,
) -> NDArray[np.void]:
    """Fit sources, detect more in the residual image, and fit all again.

    Parameters
    ----------
    thresholds : sequence of float
        Detection threshold of each pass after the first; with none, the sources are fitted once,
        and none is dropped in favour of its neighbours.
    """
    frame = frame.replaced(data=plain_pixels(frame)[0])  # once, not for every tile
    current = sources
    for k, threshold in enumerate([*thresholds, None]):
        residual = None if threshold is None else np.zeros_like(frame.data)
        fitted, lost = fit_all(frame, background, psf, current, how, residual)
        if len(thresholds):
            fitted = fitted[~lost]
        if threshold is None or residual is None:
            break
        old, background = background, _refined(frame, background, residual, how.threads)
        more = _further_sources(
            frame, (old, background), psf, fitted, residual, threshold, how.threads
        )
        more["iteration"] = k + 1
        current = np.concatenate([fitted, more])
        current["background_e"] = background.level_at(current["x"], current["y"])
        current["background_e"] *= frame.gain_e_adu
    if len(thresholds):  # further sources may extend a trail
        fitted["flags"][flag_trails(fitted, psf.fwhm_px)] |= SourceFlag.TRAIL
    return fitted


@dataclass(frozen=True, slots=True)
class Manner:
    """Settings of a fit.

    Attributes
    ----------
    sweeps : int
        Most steps of a source.
    group_fwhm : float
        Sources closer than this are fitted jointly.
    threads : int
    shifts : int, optional
        Steps that the position may take: fluxes are forced. None fits positions freely.
    max_shift_px : float
        Farthest that a position may come in those steps, along each axis.
    """

    sweeps: int
    group_fwhm: float
    threads: int = 1
    shifts: int | None = None
    max_shift_px: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """The data that the tiles of a fit share; `out`, `lost` and `residual` are filled."""

    frame: Frame
    background: Background
    psf: Psf
    sources: NDArray[np.void]
    how: Manner
    group: NDArray[np.int64]
    fit_radius: NDArray[np.int64]
    draw_radius: NDArray[np.int64]
    tolerance: NDArray[np.float64]
    out: NDArray[np.void]
    lost: NDArray[np.bool_]
    residual: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, eq=False)
class _Stars:
    """The sources on a tile, with their positions on it, sorted by group."""

    index: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    fit: NDArray[np.int64]
    draw: NDArray[np.int64]
    tolerance: NDArray[np.float64]
    groups: NDArray[np.int64]
    nodes: NDArray[np.float64]


class Fitted(NamedTuple):
    """The results of fits: positions in the frame, fluxes, errors."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    flux: NDArray[np.float64]
    covariance: NDArray[np.float64]
    chi2: NDArray[np.float64]
    status: NDArray[np.int32]


def fit_all(
    frame: Frame, background: Background, psf: Psf, sources: NDArray[np.void], how: Manner,
    residual: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """Fit all sources; return them, and which were dropped in favour of their neighbours.

    The residual image is written to `residual`, if given.
    """
    group, blended = _groups(sources, how.group_fwhm * psf.fwhm_px)
    fit_radius, draw_radius = _radii(sources, psf)
    tolerance = np.where(_isolated(sources, fit_radius + draw_radius), 0.1, 0.02)
    out, lost = sources.copy(), np.zeros(len(sources), dtype=bool)
    job = _Job(
        frame, background, psf, sources, how, group, fit_radius, draw_radius, tolerance, out, lost,
        residual,
    )
    ny, nx = frame.shape
    first = np.zeros(group.max() + 1, dtype=np.int64)
    first[group[::-1]] = np.arange(len(group))[::-1]
    home = first[group]  # a group is fitted on the tile of its first member
    home_x = sources["x"][home].clip(0, nx - 1)
    home_y = sources["y"][home].clip(0, ny - 1)

    def work(corner: tuple[int, int]) -> None:
        tx, ty = corner
        mine = (home_x >= tx - 0.5) & (home_x < tx + TILE_PX - 0.5)
        mine &= (home_y >= ty - 0.5) & (home_y < ty + TILE_PX - 0.5)
        _fit_tile(job, corner, mine)

    # The first and last tiles also hold sources just outside the frame.
    share(work, [(x, y) for y in range(0, ny, TILE_PX) for x in range(0, nx, TILE_PX)], how.threads)
    out["flags"][blended] |= SourceFlag.BLENDED
    _flag_misfits(out, psf)
    return out, lost


def _flag_misfits(sources: NDArray[np.void], psf: Psf) -> None:
    """Flag sources with a bad fit, as sharper (or elongated) or as broader than a star.

    Sharper is a FWHM below 0.9 of the PSF's or an ellipticity above 0.5, broader one above 1.25:
    outside the variation of a PSF over the frame.
    """
    with np.errstate(invalid="ignore"):
        limit = MISFIT_CHI2 * (1.0 + (RESIDUAL_FRACTION * sources["snr"]) ** 2)
        misfit = (sources["chi2_dof"] > limit) & (sources["flags"] & SourceFlag.SATURATED == 0)
        sharp = (sources["fwhm_px"] < 0.9 * psf.fwhm_px) | (sources["ellipticity"] > 0.5)
        broad = sources["fwhm_px"] > 1.25 * psf.fwhm_px
    sources["flags"][misfit & sharp] |= SourceFlag.COSMIC
    sources["flags"][misfit & broad & ~sharp] |= SourceFlag.EXTENDED


def _radii(sources: NDArray[np.void], psf: Psf) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the radius of the fit and of the drawn model of each source.

    The information on a Gaussian star's position within a radius r of k standard deviations is
    1 - (1 + k^2) exp(-k^2) of all on sky noise, and 1 - (1 + k^2/2) exp(-k^2/2) on its own noise:
    1.5 FWHM (3.5 sigma) has all but 0.01 % of the first, 2 FWHM all but 0.2 % of the second. The
    radii for S/N above 40 and 200 are larger, because there the photon noise of the star dominates.
    """
    fwhm, snr = psf.fwhm_px, np.nan_to_num(sources["peak_snr"], nan=5.0)
    wanted = np.where(snr > 200, 2.4, np.where(snr > 40, 1.9, 1.45)) * fwhm + 0.5
    fit = np.clip(np.rint(wanted), 2, psf.radius_px).astype(np.int64)
    drawn = np.where(snr > 20, psf.radius_px, np.minimum(psf.radius_px, fit + 2))
    return fit, drawn.astype(np.int64)


def _isolated(sources: NDArray[np.void], reach: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say which sources have no neighbour whose model reaches their pixels."""
    from scipy.spatial import cKDTree

    tree = cKDTree(np.column_stack([sources["x"], sources["y"]]))
    distance, _ = tree.query(tree.data, k=2)
    return distance[:, 1] > reach


def _groups(
    sources: NDArray[np.void], link_px: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Number the groups of sources linked by less than `link_px`, and say which are blended.

    The links of a group of more than MAX_GROUP are shortened (by a fifth at a time) until it is
    divided. Groups are in the order of their first members.
    """
    from scipy.spatial import cKDTree

    n = len(sources)
    place = np.column_stack([sources["x"], sources["y"]])
    pairs = cKDTree(place).query_pairs(link_px, output_type="ndarray").astype(np.int64)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    apart = np.hypot(*(place[pairs[:, 0]] - place[pairs[:, 1]]).T)
    blended = np.zeros(n, dtype=bool)
    blended[pairs.ravel()] = True
    link = np.full(n, link_px)
    label = np.empty(n, dtype=np.int64)
    for _ in range(40):
        near = apart <= np.minimum(link[pairs[:, 0]], link[pairs[:, 1]])
        peakkernels.join_pairs(pairs[near], label)
        big = np.bincount(label, minlength=n)[label] > MAX_GROUP
        if not big.any():
            break
        link[big] *= 0.8
    return np.unique(label, return_inverse=True)[1].astype(np.int64), blended


def _fit_tile(job: _Job, corner: tuple[int, int], mine: NDArray[np.bool_]) -> None:
    """Fit the sources on a tile of the frame, and write those that are `mine`.

    The residual image of the tile is written too, if asked for.
    """
    psf, sources, group, (ny, nx) = job.psf, job.sources, job.group, job.frame.shape
    margin, (tx, ty), whole = 2 * psf.radius_px + 4, corner, job.residual is not None
    x0, y0, x1, y1 = box = (
        max(tx - margin, 0), max(ty - margin, 0),
        min(tx + TILE_PX + margin, nx), min(ty + TILE_PX + margin, ny),
    )
    here = (sources["x"] > x0 - 1) & (sources["x"] < x1)
    here &= (sources["y"] > y0 - 1) & (sources["y"] < y1)
    index = np.flatnonzero(here | mine)
    if len(index) == 0 and not whole:
        return
    index = index[np.argsort(group[index], kind="stable")]
    x, y = sources["x"][index] - x0, sources["y"][index] - y0
    fit, draw = job.fit_radius[index], job.draw_radius[index]
    unit = _unit(job.background)
    if whole:
        half, at = np.array([max(y1 - y0, x1 - x0)]), np.zeros(1)
        image, variance, bad = _tile_pixels(job, unit, box, at, at, half)
    else:
        image, variance, bad = _tile_pixels(job, unit, box, x, y, np.maximum(fit, draw) + 2)
    residual = image.copy()
    if len(index):
        stars = _Stars(
            index, x, y, fit, draw, job.tolerance[index],
            np.flatnonzero(np.r_[True, np.diff(group[index]) != 0, True]).astype(np.int64),
            psf.nodes_of(sources["x"][index], sources["y"][index]),
        )
        flux, covariance, chi2, status = _solve(job, stars, image, residual, variance, unit)
        keep = mine[index]
        rows = index[keep]
        job.lost[rows] = status[keep] < 0
        store = _store if job.how.shifts is None else _store_forced
        store(job.out, rows, job.frame.gain_e_adu * unit, Fitted(
            x[keep] + x0, y[keep] + y0, flux[keep], covariance[keep], chi2[keep], status[keep]
        ))
        if bad.any():
            _flag_bad_pixels(job.out, rows, bad, box, psf.fwhm_px)
    if job.residual is not None:
        yb, xb = min(ty + TILE_PX, ny), min(tx + TILE_PX, nx)
        job.residual[ty:yb, tx:xb] = (
            residual[ty - y0 : yb - y0, tx - x0 : xb - x0] * np.float32(unit)
        )


def _solve(
    job: _Job, stars: _Stars, image: NDArray[np.float32], residual: NDArray[np.float32],
    variance: NDArray[np.float32], unit: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int32]]:
    """Return flux, covariance, chi^2 and status of a tile's stars; move them, fill `residual`."""
    how, spacing, gain = job.how, job.psf.spacing_px, job.psf.gain_e_adu * unit
    n = len(stars.index)
    covariance, chi2 = np.full((n, 3, 3), np.nan), np.full(n, np.nan)
    status = np.zeros(n, dtype=np.int32)
    if how.shifts is not None:
        flux = np.zeros(n)
        fluxkernels.fit_fluxes(
            image, residual, variance, gain, stars.nodes, spacing, stars.groups, stars.x, stars.y,
            flux, stars.fit, stars.draw, how.sweeps, how.shifts, how.max_shift_px, covariance,
            chi2, status,
        )
        return flux, covariance, chi2, status
    flux = _first_fluxes(job.frame, job.background, job.sources[stars.index]) / unit
    fitkernels.draw_stars(residual, stars.nodes, spacing, stars.x, stars.y, flux, stars.draw)
    fitkernels.fit_groups(
        image, residual, variance, gain, stars.nodes, spacing, stars.groups, stars.x, stars.y, flux,
        stars.fit, stars.draw, how.sweeps, stars.tolerance, covariance, chi2, status,
    )
    return flux, covariance, chi2, status


def _unit(background: Background) -> float:
    """Return the power of two next to the sky noise: dividing by it does not round."""
    return float(2.0 ** np.round(np.log2(np.median(background.sigma.astype(float)))))


def _first_fluxes(
    frame: Frame, background: Background, sources: NDArray[np.void]
) -> NDArray[np.float64]:
    """Return initial fluxes, ADU: of an earlier fit, or of the aperture."""
    fitted = np.isfinite(sources["chi2_dof"])
    start = np.where(fitted, sources["flux_e"], sources["flux_aper_e"]) / frame.gain_e_adu
    least = 2.0 * background.sigma_at(sources["x"], sources["y"])
    return np.maximum(np.nan_to_num(start), least)


def _tile_pixels(
    job: _Job, unit: float, box: tuple[int, int, int, int], x: NDArray[np.float64],
    y: NDArray[np.float64], half: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Return a tile's pixels less the sky, their variance, and which are bad.

    Only squares around the given places are filled; elsewhere all three are zero.
    """
    x0, y0, x1, y1 = box
    frame, background = job.frame, job.background
    shape = (y1 - y0, x1 - x0)
    image, variance = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    bad = np.zeros(shape, dtype=bool)
    data, mask = plain_pixels(frame, PHOTOMETRY)
    given = NO_VARIANCE
    if frame.variance is not None:
        given = np.require(frame.variance, np.float32, PLAIN)
    kernels.fill_boxes(
        data, mask, given, background.level, background.sigma, frame.saturation_adu, unit, x0, y0,
        np.rint(x).astype(np.int64), np.rint(y).astype(np.int64), half, image, variance, bad,
    )
    return image, variance, bad


def _store(
    out: NDArray[np.void], rows: NDArray[np.int64], gain: float, fitted: Fitted
) -> None:
    """Write positions and fluxes with their errors; `gain` is electrons per unit of the flux."""
    x, y, flux, covariance, chi2, status = fitted
    far = np.hypot(x - out["x"][rows], y - out["y"][rows]) > 3.0
    good = np.isfinite(covariance[:, 1, 1]) & (covariance[:, 1, 1] > 0) & ~far & (flux > 0)
    converged = good & (status == 1)
    bad, rows_good = rows[~converged], rows[good]
    out["flags"][bad] |= SourceFlag.NOT_CONVERGED
    out["flags"][rows[converged]] &= ~SourceFlag.NOT_CONVERGED
    c = covariance[good]
    out["x"][rows_good], out["y"][rows_good] = x[good], y[good]
    snr2 = flux[good] ** 2 / c[:, 0, 0]
    second = 1.0 + SECOND_ORDER / np.maximum(snr2, 1.0)
    out["x_err"][rows_good] = np.sqrt(c[:, 1, 1] * second)
    out["y_err"][rows_good] = np.sqrt(c[:, 2, 2] * second)
    out["xy_corr"][rows_good] = c[:, 1, 2] / np.sqrt(c[:, 1, 1] * c[:, 2, 2])
    out["flux_e"][rows_good] = flux[good] * gain
    out["flux_err_e"][rows_good] = np.sqrt(c[:, 0, 0]) * gain
    out["snr"][rows_good] = np.sqrt(snr2)
    out["chi2_dof"][rows_good] = chi2[good]


def _store_forced(
    out: NDArray[np.void], rows: NDArray[np.int64], gain: float, fitted: Fitted
) -> None:
    """Write fluxes of either sign and their positions; failed fits stay NaN."""
    x, y, flux, covariance, chi2, status = fitted
    good = status == 1
    rows_good, c = rows[good], covariance[good]
    out["flags"][rows[~good]] |= SourceFlag.NOT_CONVERGED
    out["x"][rows_good], out["y"][rows_good] = x[good], y[good]
    out["flux_e"][rows_good] = flux[good] * gain
    out["flux_err_e"][rows_good] = np.sqrt(c[:, 0, 0]) * gain
    out["snr"][rows_good] = flux[good] / np.sqrt(c[:, 0, 0])
    out["chi2_dof"][rows_good] = chi2[good]
    moved = rows[good & np.isfinite(covariance[:, 1, 1])]
    c = covariance[good & np.isfinite(covariance[:, 1, 1])]
    out["x_err"][moved], out["y_err"][moved] = np.sqrt(c[:, 1, 1]), np.sqrt(c[:, 2, 2])
    out["xy_corr"][moved] = c[:, 1, 2] / np.sqrt(c[:, 1, 1] * c[:, 2, 2])


def _flag_bad_pixels(
    out: NDArray[np.void], rows: NDArray[np.int64], bad: NDArray[np.bool_],
    box: tuple[int, int, int, int], fwhm: float,
) -> None:
    """Flag fitted sources with an unusable pixel in their core, and no others.

    The fit leaves such pixels out, so that one in the wing of a star has little effect.
    """
    from scipy.ndimage import distance_transform_edt

    distance = distance_transform_edt(~bad)
    with np.errstate(invalid="ignore"):
        ix = np.rint(out["x"][rows] - box[0]).astype(int).clip(0, bad.shape[1] - 1)
        iy = np.rint(out["y"][rows] - box[1]).astype(int).clip(0, bad.shape[0] - 1)
    near = distance[iy, ix] <= max(1.0, CORE_FWHM * fwhm)
    fitted = np.isfinite(out["chi2_dof"][rows])
    out["flags"][rows[fitted & ~near]] &= ~SourceFlag.BAD_PIXEL
    out["flags"][rows[near]] |= SourceFlag.BAD_PIXEL


def _refined(
    frame: Frame, background: Background, residual: NDArray[np.float32], threads: int
) -> Background:
    """Measure level and noise of the sky again, on the residual image.

    In a crowded field the wings of the stars raise both. Where the sky spans a few digital steps
    only, the first measurement is kept, since the residuals no longer have these steps.
    """
    if rounding_noise(frame.data) > 0:
        return background
    rest = estimate_background(
        frame.replaced(data=residual), cell_px=_cell_px(background), threads=threads
    )
    if rest.level.shape != background.level.shape:
        return background
    return Background(background.level + rest.level, rest.sigma, background.shape)


def _cell_px(background: Background) -> int:
    return max(8, round(background.shape[0] / background.level.shape[0]))


def _further_sources(
    frame: Frame, skies: tuple[Background, Background], psf: Psf, current: NDArray[np.void],
    residual: NDArray[np.float32], threshold_sigma: float, threads: int,
) -> NDArray[np.void]:
    """Detect sources in the residual image, with the photon noise of the subtracted light.

    The residual was made with the first of the two `skies`; detection uses the second. It is
    changed in place.
    """
    old, background = skies
    noise_mesh = Background(background.sigma, background.sigma, background.shape)
    for row in range(0, frame.shape[0], 512):
        block = slice(row, min(row + 512, frame.shape[0]))
        sky = old.rows(block.start, block.stop)
        noise = noise_mesh.rows(block.start, block.stop)
        with np.errstate(over="ignore"):  # an enormous pixel overflows to infinity and gets 0
            light = np.maximum(frame.data[block] - sky - residual[block], 0.0) / noise
            total = 1.0 + light / (psf.gain_e_adu * noise) + (RESIDUAL_FRACTION * light) ** 2
        residual[block] += sky - background.rows(block.start, block.stop)
        residual[block] /= np.sqrt(total)
    flat = Background(np.zeros_like(background.level), background.sigma, background.shape)
    rest = frame.replaced(data=residual, saturation_adu=np.inf)
    more = detect_sources(
        rest, flat, threshold_sigma=threshold_sigma, fwhm_px=psf.fwhm_px, threads=threads
    )
    more = more[more["flags"] & (SourceFlag.COSMIC | SourceFlag.EDGE) == 0]
    return more[~_left_over(current, more, psf.radius_px)]


def _left_over(
    sources: NDArray[np.void], more: NDArray[np.void], reach_px: float
) -> NDArray[np.bool_]:
    """Say which further sources are residuals of the fits.

    These are all detections next to a saturated star, and faint ones next to a bright star: the PSF
    is accurate to a part in a thousand of its peak (`WING_FRACTION`), not of its wings.
    """
    from scipy.spatial import cKDTree

    left = np.zeros(len(more), dtype=bool)
    if len(more) == 0:
        return left
    place = np.column_stack([more["x"], more["y"]])
    saturated = sources["flags"] & SourceFlag.SATURATED != 0
    bright = sources["flux_e"] * WING_FRACTION > more["flux_aper_e"].min()
    for bad, reach in ((saturated, 2.0 * reach_px), (bright & ~saturated, reach_px)):
        if not bad.any():
            continue
        tree = cKDTree(np.column_stack([sources["x"][bad], sources["y"][bad]]))
        pairs = cKDTree(place).sparse_distance_matrix(tree, reach, output_type="ndarray")
        own, others = pairs["i"], np.flatnonzero(bad)[pairs["j"]]
        faint = more["flux_aper_e"][own] < WING_FRACTION * sources["flux_e"][others]
        left[own[faint | saturated[others]]] = True
    return left
