"""Fit the PSF to the sources: positions, fluxes and their covariance.

Every source has three parameters, flux and position; the background is that of the mesh. Sources
that share pixels form groups, and the stars of a group are solved together by Gauss-Newton steps
whose weights come from the model, not from the data (weights from the data favour pixels that
fluctuated down and bias faint fluxes). Groups see each other through the residual image, in
sweeps. The covariance is the inverse of the normal matrix, with the blends' couplings in it.

The frame is fitted in tiles with a margin, so that memory does not grow with it; the tiles, and so
the results, do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from cynosure.data.frame import Frame
from cynosure.data.tables import SourceFlag
from cynosure.ground.settings import Range, Unit
from cynosure.ground.threads import share
from cynosure.pixels import fitkernels, kernels, peakkernels
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

__all__ = ["fit_psf"]

TILE_PX = 768

NO_VARIANCE = np.zeros((0, 0), dtype=np.float32)

# Blends of more stars than this are left to the sweeps: the joint solution costs the cube.
MAX_GROUP = 12

# The normal matrix gives position errors to first order. A faint star's errors are larger, because
# the gradient they are scaled by is itself noisy and the star was detected where noise raised it:
# variance times 1 + 7 / snr^2. The pulls of simulated stars of S/N 4 to 16 give 5 to 9, for
# Gaussian and Moffat profiles, round and long, of FWHM 1.2 to 4, on bright and on dark sky.
SECOND_ORDER = 7.0

# A PSF model is some per cent off in the core of a bright star; what it leaves there is no source.
RESIDUAL_FRACTION = 0.03

# Nor is what has less than this part of the light of a star near by.
WING_FRACTION = 0.001

# chi^2 per degree of freedom, on sky noise, of what is no single star.
MISFIT_CHI2 = 3.0

# An unusable pixel this near to the centre of a star spoils it.
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
        2 or more looks for further sources in what the fit of the first ones leaves, and fits
        all of them again. By default 2 where the field is crowded, else 1.
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
    frame = frame.replaced(data=plain_pixels(frame)[0])  # once, not for every tile
    current = sources
    for k in range(passes):
        last = k == passes - 1
        residual = None if last else np.zeros_like(frame.data)
        fitted, lost = _fit_all(
            frame, background, psf, current, sweeps, group_fwhm, threads, residual
        )
        if passes > 1:
            fitted = fitted[~lost]
        if last or residual is None:
            break
        old, background = background, _refined(frame, background, residual, threads)
        more = _further_sources(
            frame, old, background, psf, fitted, residual, threshold_sigma, threads
        )
        current = np.concatenate([fitted, more])
        current["background_e"] = background.level_at(current["x"], current["y"])
        current["background_e"] *= frame.gain_e_adu
    if passes > 1:  # the further ones may go on with a trail
        fitted["flags"][flag_trails(fitted, psf.fwhm_px)] |= SourceFlag.TRAIL
    return fitted


def _fit_all(
    frame: Frame, background: Background, psf: Psf, sources: NDArray[np.void], sweeps: int,
    group_fwhm: float, threads: int, residual: NDArray[np.float32] | None,
) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """Fit all sources; return them, and which were given up in favour of their neighbours."""
    out, lost = sources.copy(), np.zeros(len(sources), dtype=bool)
    group, blended = _groups(sources, group_fwhm * psf.fwhm_px)
    fit_radius, draw_radius = _radii(sources, psf)
    tolerance = np.where(_lonely(sources, fit_radius + draw_radius), 0.1, 0.02)
    margin = 2 * psf.radius_px + 4
    ny, nx = frame.shape
    first = np.zeros(group.max() + 1, dtype=np.int64)
    first[group[::-1]] = np.arange(len(group))[::-1]
    home = first[group]  # a group lives in the tile of its first member
    home_x = sources["x"][home].clip(0, nx - 1)
    home_y = sources["y"][home].clip(0, ny - 1)

    def work(corner: tuple[int, int]) -> None:
        tx, ty = corner
        mine = (home_x >= tx - 0.5) & (home_x < tx + TILE_PX - 0.5)
        mine &= (home_y >= ty - 0.5) & (home_y < ty + TILE_PX - 0.5)
        box = (
            max(tx - margin, 0), max(ty - margin, 0),
            min(tx + TILE_PX + margin, nx), min(ty + TILE_PX + margin, ny),
        )
        here = (sources["x"] > box[0] - 1) & (sources["x"] < box[2])
        here &= (sources["y"] > box[1] - 1) & (sources["y"] < box[3])
        index = np.flatnonzero(here | mine)
        if len(index):
            index = index[np.argsort(group[index], kind="stable")]
        left = _fit_tile(
            frame, background, psf, sources, index, group, fit_radius, draw_radius, tolerance, box,
            sweeps, mine, out, lost, residual is not None,
        )
        if residual is not None and left is not None:
            y1, x1 = min(ty + TILE_PX, ny), min(tx + TILE_PX, nx)
            residual[ty:y1, tx:x1] = left[ty - box[1] : y1 - box[1], tx - box[0] : x1 - box[0]]

    # The first and last tiles also hold sources just outside the frame.
    share(work, [(x, y) for y in range(0, ny, TILE_PX) for x in range(0, nx, TILE_PX)], threads)
    out["flags"][blended] |= SourceFlag.BLENDED
    _flag_misfits(out, psf)
    return out, lost


def _flag_misfits(sources: NDArray[np.void], psf: Psf) -> None:
    """Flag what the PSF does not describe: as sharper, or as broader, than a star."""
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
    1.5 FWHM (3.5 sigma) leaves nothing of the first, 2 FWHM 0.2 % of the second.
    """
    fwhm, snr = psf.fwhm_px, np.nan_to_num(sources["peak_snr"], nan=5.0)
    wanted = np.where(snr > 200, 2.4, np.where(snr > 40, 1.9, 1.45)) * fwhm + 0.5
    fit = np.clip(np.rint(wanted), 2, psf.radius_px).astype(np.int64)
    drawn = np.where(snr > 20, psf.radius_px, np.minimum(psf.radius_px, fit + 2))
    return fit, drawn.astype(np.int64)


def _lonely(sources: NDArray[np.void], reach: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say which sources have no other whose model reaches their pixels: one step settles them."""
    from scipy.spatial import cKDTree

    tree = cKDTree(np.column_stack([sources["x"], sources["y"]]))
    distance, _ = tree.query(tree.data, k=2)
    return distance[:, 1] > reach


def _groups(
    sources: NDArray[np.void], link_px: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Number the groups of sources linked by less than `link_px`, and say which are blended.

    The links of a group of more than MAX_GROUP are shortened until it falls apart. Groups are
    in the order of their first members.
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


def _fit_tile(
    frame: Frame, background: Background, psf: Psf, sources: NDArray[np.void],
    index: NDArray[np.int64], group: NDArray[np.int64], fit_radius: NDArray[np.int64],
    draw_radius: NDArray[np.int64], tolerance: NDArray[np.float64],
    box: tuple[int, int, int, int], sweeps: int, mine: NDArray[np.bool_], out: NDArray[np.void],
    lost: NDArray[np.bool_], whole: bool,
) -> NDArray[np.float32] | None:
    """Fit the sources `index` on the pixels of `box`; write those that are `mine` to `out`.

    Returns what the models leave of the pixels, where the `whole` tile is asked for.
    """
    x0, y0, x1, y1 = box
    n = len(index)
    if n == 0 and not whole:
        return None
    x, y = sources["x"][index] - x0, sources["y"][index] - y0
    fit, draw = fit_radius[index], draw_radius[index]
    unit = _unit(background)
    if whole:
        half, at = np.array([max(y1 - y0, x1 - x0)]), np.zeros(1)
        image, variance, bad = _tile_pixels(frame, background, unit, box, at, at, half)
    else:
        half = np.maximum(fit, draw) + 2
        image, variance, bad = _tile_pixels(frame, background, unit, box, x, y, half)
    residual = image.copy()
    if n == 0:
        return residual * np.float32(unit)
    flux = _first_fluxes(frame, background, sources[index]) / unit
    bounds = np.flatnonzero(np.r_[True, np.diff(group[index]) != 0, True]).astype(np.int64)
    terms = np.ascontiguousarray(psf.terms(sources["x"][index], sources["y"][index]))
    nodes = psf.coefficients
    if psf.degree > 0:
        nodes = np.empty((n, *psf.coefficients.shape[1:]))
        fitkernels.mix_all(psf.coefficients, terms, nodes)
    covariance, chi2 = np.full((n, 3, 3), np.nan), np.full(n, np.nan)
    status = np.zeros(n, dtype=np.int32)
    fitkernels.draw_stars(residual, nodes, psf.spacing_px, x, y, flux, draw)
    fitkernels.fit_groups(
        image, residual, variance, psf.gain_e_adu * unit, nodes, psf.spacing_px, bounds, x, y, flux,
        fit, draw, sweeps, tolerance[index], covariance, chi2, status,
    )
    keep = mine[index]
    rows = index[keep]
    lost[rows] = status[keep] < 0
    _store(out, rows, frame.gain_e_adu * unit, x[keep] + x0, y[keep] + y0, flux[keep],
           covariance[keep], chi2[keep], status[keep])
    if bad.any():
        _flag_bad_pixels(out, rows, bad, box, psf.fwhm_px)
    return residual * np.float32(unit) if whole else None


def _unit(background: Background) -> float:
    """Return about the noise of the sky, a power of two, so that nothing is rounded."""
    return float(2.0 ** np.round(np.log2(np.median(background.sigma.astype(float)))))


def _first_fluxes(
    frame: Frame, background: Background, sources: NDArray[np.void]
) -> NDArray[np.float64]:
    """Return fluxes to start from, ADU: of an earlier fit, or of the aperture."""
    fitted = np.isfinite(sources["chi2_dof"])
    start = np.where(fitted, sources["flux_e"], sources["flux_aper_e"]) / frame.gain_e_adu
    least = 2.0 * background.sigma_at(sources["x"], sources["y"])
    return np.maximum(np.nan_to_num(start), least)


def _tile_pixels(
    frame: Frame, background: Background, unit: float, box: tuple[int, int, int, int],
    x: NDArray[np.float64], y: NDArray[np.float64], half: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Return a tile's pixels less the sky, their variance, and which are bad.

    Only squares around the given places are filled; elsewhere all three are zero.
    """
    x0, y0, x1, y1 = box
    shape = (y1 - y0, x1 - x0)
    image, variance = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    bad = np.zeros(shape, dtype=bool)
    data, mask = plain_pixels(frame)
    given = NO_VARIANCE
    if frame.variance is not None:
        given = np.require(frame.variance, np.float32, PLAIN)
    kernels.fill_boxes(
        data, mask, given, background.level, background.sigma, frame.saturation_adu, unit, x0, y0,
        np.rint(x).astype(np.int64), np.rint(y).astype(np.int64), half, image, variance, bad,
    )
    return image, variance, bad


def _store(
    out: NDArray[np.void], rows: NDArray[np.int64], gain: float, x: NDArray[np.float64],
    y: NDArray[np.float64], flux: NDArray[np.float64], covariance: NDArray[np.float64],
    chi2: NDArray[np.float64], status: NDArray[np.int32],
) -> None:
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


def _flag_bad_pixels(
    out: NDArray[np.void], rows: NDArray[np.int64], bad: NDArray[np.bool_],
    box: tuple[int, int, int, int], fwhm: float,
) -> None:
    """Flag fitted sources with an unusable pixel in their core, and no others.

    The fit leaves such pixels out, so that one in a star's wing costs it next to nothing.
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
    """Measure level and noise of the sky again, on what the fits leave of the pixels.

    In a crowded field the wings of the stars raise both. Of a sky that spans a few digital steps
    the residuals are no such steps any more, and the first measurement is the better one.
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
    frame: Frame, old: Background, background: Background, psf: Psf, current: NDArray[np.void],
    residual: NDArray[np.float32], threshold_sigma: float, threads: int,
) -> NDArray[np.void]:
    """Detect sources in the residual, each pixel weighed by the noise of what was subtracted.

    The residual is that of the `old` background; it is changed in place.
    """
    noise_mesh = Background(background.sigma, background.sigma, background.shape)
    for row in range(0, frame.shape[0], 512):
        block = slice(row, min(row + 512, frame.shape[0]))
        sky = old.rows(block.start, block.stop)
        noise = noise_mesh.rows(block.start, block.stop)
        with np.errstate(over="ignore"):  # of a pixel beyond all measure nothing is left
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
    """Say which further sources are what the fits have left.

    That is all beside a saturated star, and what has next to no light beside a bright one: in its
    wings the PSF is known to a part in a thousand of its peak, not of what is there.
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
