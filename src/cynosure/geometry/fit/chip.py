"""One chip: its sources paired with reference stars, and its WCS fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.frame import Frame
from cynosure.data.tables import SourceFlag
from cynosure.geometry.fit.exposure import Fit, fit_wcs
from cynosure.geometry.match.pairs import pair
from cynosure.geometry.observations import OBSERVATIONS, Observations, Pairs, star_priors
from cynosure.geometry.reference import Reference
from cynosure.geometry.wcs import SkyModel, model_from_wcs
from cynosure.ground.errors import CynosureError, Degenerate
from cynosure.ground.numeric import lstsq, poly_design
from cynosure.ground.sky import project

__all__ = ["Chip", "fit_chip", "make_pairs", "scale_arcsec", "source_covariance"]

Floats = NDArray[np.float64]

# Sources with a larger position error (px) are not fitted: the weight of such a source is below a
# thousandth of that of a well-measured star (0.03 px).
MAX_SOURCE_ERROR_PX = 1.0

# From this many stars on, an error that all reference stars share is left to the fitted sigma_0
# instead of being assumed: 30 stars (60 coordinates) determine sigma_0 to about 10 %.
TELLING = 30


@dataclass(frozen=True, slots=True, eq=False)
class Chip:
    """One chip of a solved exposure.

    Attributes
    ----------
    frame : Frame
    sources : (n,) structured array
    source_index, reference_index : (m,) ndarray of int
        Its pairs.
    fit : Fit
    inherited : bool
        Whether its WCS is that of the whole focal plane, for lack of stars of its own.
    """

    frame: Frame
    sources: NDArray[np.void]
    source_index: NDArray[np.int64]
    reference_index: NDArray[np.int64]
    fit: Fit
    inherited: bool = False

    def observations(self, reference: Reference) -> Observations:
        """Return the chip's pairs as observations of `reference`, the stars it was paired with."""
        i, j = self.source_index, self.reference_index
        rows = _observed(self.sources, reference, i, j)
        rows["chip"], rows["star"] = self.frame.chip, np.arange(len(rows))
        return Observations(rows, star_priors(reference.stars[j]))


def _usable(sources: NDArray[np.void]) -> NDArray[np.bool_]:
    good = (sources["flags"] & SourceFlag.unusable()) == 0
    with np.errstate(invalid="ignore"):
        error = np.fmax(sources["x_err"], sources["y_err"])
        return good & (error < MAX_SOURCE_ERROR_PX) & (error > 0) & np.isfinite(sources["x"])


def source_covariance(sources: NDArray[np.void]) -> Floats:
    """Return the covariances of the positions (n, 3): xx, yy, xy, px^2."""
    xx, yy = sources["x_err"] ** 2, sources["y_err"] ** 2
    xy = np.nan_to_num(sources["xy_corr"]) * sources["x_err"] * sources["y_err"]
    return np.stack([xx, yy, xy], axis=1)


def make_pairs(
    sources: NDArray[np.void], reference: Reference, i: NDArray[np.int64], j: NDArray[np.int64]
) -> Pairs:
    """Return the pairs of rows i of the sources with rows j of the reference stars."""
    return Pairs.of(_observed(sources, reference, i, j), reference.stars["ref_id"][j])


def _observed(
    sources: NDArray[np.void], reference: Reference, i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.void]:
    """Return the observations, but for whose they are."""
    rows = OBSERVATIONS.empty(len(i))
    rows["x"], rows["y"] = sources["x"][i], sources["y"][i]
    cov = source_covariance(sources[i])
    rows["x_var_px2"], rows["y_var_px2"], rows["xy_cov_px2"] = cov.T
    rows["epoch_yr"], rows["color"] = reference.epoch_yr, reference.stars["color"][j]
    rows["ref_ra_deg"], rows["ref_dec_deg"] = reference.ra_deg[j], reference.dec_deg[j]
    errors = reference.stated_mas2 if len(i) >= TELLING else reference.cov_mas2
    rows["ref_ra_var_mas2"], rows["ref_dec_var_mas2"], rows["ref_cov_mas2"] = errors[j].T
    return rows


# A companion closer than this many FWHM makes a blend, unless it is fainter by this many
# magnitudes (a tenth of the flux), which moves the centroid by less than a tenth of its distance.
BLEND_FWHM, BLEND_MAG = 1.5, 2.5

# A stricter isolation (FWHM, mag): the residue of a subtracted or undetected neighbour moves a
# bright star by a noticeable part of its small error. It is used where it keeps at least this share
# of the isolated stars, and more than this number, so that crowded and sparse fields lose nothing.
CLEAN_FWHM, CLEAN_MAG = 2.7, 5.0
CLEAN_SHARE, CLEAN_STARS = 0.85, 300


def _alone(reference: Reference, model: SkyModel, fwhm_px: float) -> NDArray[np.bool_]:
    """Say which reference stars have no companion that would blend with them in the image.

    A companion within 1.5 FWHM that is less than 2.5 mag fainter moves the blend's centre by
    more than a tenth of its distance.
    """
    from scipy.spatial import cKDTree

    alone = np.ones(len(reference), dtype=bool)
    if len(reference) < 2:
        return alone
    x, y = model.sky_to_pixel(reference.ra_deg, reference.dec_deg)
    rows = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    place = np.column_stack([x[rows], y[rows]])
    pairs = cKDTree(place).query_pairs(CLEAN_FWHM * fwhm_px, output_type="ndarray")
    away = np.hypot(*(place[pairs[:, 0]] - place[pairs[:, 1]]).T)
    mag = np.nan_to_num(reference.stars["mag"], nan=99.0)

    def without(near: NDArray[np.bool_], fainter: float) -> NDArray[np.bool_]:
        out = np.ones(len(reference), dtype=bool)
        a, b = rows[pairs[near, 0]], rows[pairs[near, 1]]
        out[a[mag[b] < mag[a] + fainter]] = False
        out[b[mag[a] < mag[b] + fainter]] = False
        return out

    alone = without(away < BLEND_FWHM * fwhm_px, BLEND_MAG)
    clean = alone & without(np.ones(len(pairs), dtype=bool), CLEAN_MAG)
    n_alone, n_clean = np.count_nonzero(alone[rows]), np.count_nonzero(clean[rows])
    return clean if n_clean > max(CLEAN_SHARE * n_alone, CLEAN_STARS) else alone


def fit_chip(
    frame: Frame, sources: NDArray[np.void], reference: Reference, base: SkyModel,
    shape: tuple[int, int], settings: Mapping[str, dict[str, Any]], *, radius_px: float = 3.0,
    prior: tuple[SkyModel | None, str] | None = None,
) -> Chip:
    """Pair and fit in turn until the pairs no longer change.

    All sources are paired, so that the reference star of a saturated one does not go to a faint
    neighbour; only the usable ones are fitted.
    """
    listed = np.flatnonzero(np.isfinite(sources["x"]) & np.isfinite(sources["y"]))
    good = _usable(sources)
    cov = source_covariance(sources)
    cov[~good] = np.fmax(cov[~good], SPOILED_ERROR_PX**2 * np.array([1.0, 1.0, 0.0]))
    fwhm = float(np.nanmedian(sources["fwhm_px"][good])) if good.any() else 2.5
    alone = _alone(reference, base, fwhm)
    known, lowest = _prior(frame, base) if prior is None else prior
    # The match is good to 0.7 px an axis, a fit to 0.05 px and its sigma_0. The pairing radius is
    # first 1.2 FWHM at least, later 0.6 FWHM or five sigma_0, from 1.5 px to the given radius.
    model, sd, sigma0 = base, 0.7, 0.0
    fit: Fit | None = None
    old = b""
    reach = max(radius_px, 1.2 * fwhm)
    for _ in range(6):  # the pairs are usually stable after three rounds
        i, j, _ = pair(
            model, sources["x"][listed], sources["y"][listed], cov[listed], reference.ra_deg,
            reference.dec_deg, reference.cov_mas2, model_sd_px=float(np.hypot(sd, sigma0)),
            max_radius_px=reach,
        )
        i = listed[i]
        keep = good[i] & alone[j]
        i, j = i[keep], j[keep]
        if old == i.tobytes() + j.tobytes():
            break
        old = i.tobytes() + j.tobytes()
        pairs = make_pairs(sources, reference, i, j)
        fit = _refitted(fit, pairs, base, shape, (known, lowest), settings)
        model = fit.model
        scale_mas = 1000.0 * scale_arcsec(model)
        sigma0 = fit.errors.sigma0_mas / scale_mas
        sd, reach = 0.05, float(np.clip(max(0.6 * fwhm, 5.0 * sigma0), 1.5, max(radius_px, fwhm)))
    if fit is None:
        raise Degenerate(what="WCS fit", n_points=0, n_parameters=2, condition=np.inf)
    return Chip(frame, sources, i, j, fit)


def _refitted(
    last: Fit | None, pairs: Pairs, base: SkyModel, shape: tuple[int, int],
    prior: tuple[SkyModel | None, str], settings: Mapping[str, dict[str, Any]],
) -> Fit:
    """Fit pairs; keep the last geometry where 1000 pairs or more changed by less than 5 %."""
    if len(pairs) < 1000 or (last and abs(len(pairs) / len(last.used) - 1.0) > 0.05):
        last = None
    return fit_wcs(pairs, base, shape, *prior, last, **settings["fit"])


# Position error (px) given to a saturated or otherwise flagged source; it is paired, not fitted.
SPOILED_ERROR_PX = 1.0


def _prior(frame: Frame, base: SkyModel) -> tuple[SkyModel | None, str]:
    """Return the input WCS as a prior of the fit, and the simplest geometry allowed.

    The tangent point of the input WCS is moved so that the frame's centre falls where the match
    puts it. If the result agrees with the match within `MAX_MOVE_PX`, the WCS is independent of
    these stars and the simplest geometry is ``shift``. Otherwise its linear part is replaced by
    that of the match, and the simplest geometry is ``general``, which fits the linear part again.
    There is no prior (None) if its distortion then differs from the match by more than
    `MAX_PRIOR_PX`, or if there is no readable WCS.
    """
    if frame.wcs is None:
        return None, "general"
    try:
        old, _ = model_from_wcs(frame.wcs, frame.shape)
    except CynosureError:
        return None, "general"
    ny, nx = frame.shape
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, nx - 1, 15), np.linspace(0, ny - 1, 15)))
    want = np.stack(base.pixel_to_plane(x, y), axis=1)
    plane = np.stack(
        project(*_centred(old, base, frame.shape).pixel_to_sky(x, y), base.ra0_deg, base.dec0_deg),
        axis=1,
    )
    lowest = "shift"
    pixel = scale_arcsec(base) / 3600.0
    plane += np.mean(want - plane, axis=0)
    if not np.abs(plane - want).max() <= MAX_MOVE_PX * pixel:
        lowest = "general"
        plane = np.stack(old.pixel_to_plane(x, y), axis=1)
        design = np.column_stack([np.ones(len(x)), plane])
        plane = design @ lstsq(design, want, what="prior distortion").x
    if np.abs(plane - want).max() > MAX_PRIOR_PX * pixel:
        return None, "general"
    u, v = (x - base.x0) / base.scale_px, (y - base.y0) / base.scale_px
    fit = lstsq(poly_design(u, v, max(old.degree, 1)), plane, what="prior distortion")
    return base.replaced(coeff=fit.x.T), lowest


def _centred(old: SkyModel, base: SkyModel, shape: tuple[int, int]) -> SkyModel:
    """Return a model with its tangent point moved so that its centre agrees with `base`."""
    x, y = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    ra, dec = base.pixel_to_sky(x, y)
    for _ in range(3):
        ra_now, dec_now = old.pixel_to_sky(x, y)
        ra0, dec0 = old.ra0_deg + float(ra - ra_now), old.dec0_deg + float(dec - dec_now)
        if not abs(dec0) < 90.0:
            break
        old = old.replaced(ra0_deg=ra0 % 360.0, dec0_deg=dec0)
    return old


# Largest disagreement (px) between input WCS and match at which the input WCS, shifted, is a prior.
# The geometries shift to general are linear, and move the distortion correctly only this far.
MAX_MOVE_PX = 3.0
# Largest disagreement (px) once the linear part is fitted. The match is good to about a pixel over
# the frame; a distortion that differs by several pixels belongs to another instrument or binning.
MAX_PRIOR_PX = 5.0


def scale_arcsec(model: SkyModel) -> float:
    """Return the size of a pixel at the origin of a model."""
    return float(np.sqrt(abs(np.linalg.det(model.jacobian(model.x0, model.y0)))) * 3600.0)
