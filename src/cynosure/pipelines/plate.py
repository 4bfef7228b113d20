"""From sources to the sky: reference stars, recognition, pairs, fit - for all chips of an exposure.

The chips of an exposure that came with a WCS each are matched as one focal plane: the WCS's only
say how the chips lie to each other, so that all stars, projected through them on a common plane,
form one list of pseudo-pixels. One general linear correction of that plane is fitted to all pairs;
then each chip gets the terms of its own that its own held-out stars ask for. A chip with few or no
stars stays where the others put it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.frame import Frame, Pointing
from cynosure.data.refcat import RefCat
from cynosure.data.tables import SourceFlag
from cynosure.geometry.confirm import confirm_wcs
from cynosure.geometry.fit import Fit, Pairs, fit_wcs
from cynosure.geometry.match import Match, match_pointing, pair
from cynosure.geometry.wcs import SkyModel, model_from_wcs
from cynosure.ground.errors import (
    CatalogMissing,
    CynosureError,
    Degenerate,
    NoMatch,
    NotEnoughReference,
    NotEnoughStars,
)
from cynosure.ground.numeric import lstsq, poly_design
from cynosure.ground.settings import Range, Unit
from cynosure.ground.sky import at_epoch, project, separation_deg

__all__ = ["Chip", "Plate", "Reference", "select_reference", "solve_plate"]

Floats = NDArray[np.float64]

# Half a period of an uncertain epoch: a plate without a date is from anywhere in two decades.
UNKNOWN_EPOCH_YR = 10.0

# A source whose position is known worse than this many pixels says nothing about the WCS.
MAX_SOURCE_ERROR_PX = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Reference stars at the epoch of the image.

    Attributes
    ----------
    stars : (n,) structured array
        Schema ``REFERENCE``, brightest first.
    ra_deg, dec_deg : (n,) ndarray
        At the epoch.
    cov_mas2 : (n, 3) ndarray
    """

    stars: NDArray[np.void]
    ra_deg: Floats
    dec_deg: Floats
    cov_mas2: Floats

    def __len__(self) -> int:
        return len(self.stars)

    def __getitem__(self, rows: NDArray[np.generic]) -> Reference:
        return Reference(
            self.stars[rows], self.ra_deg[rows], self.dec_deg[rows], self.cov_mas2[rows]
        )


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


@dataclass(frozen=True, slots=True, eq=False)
class Plate:
    """A solved exposure.

    Attributes
    ----------
    chips : tuple of Chip
    reference : Reference
    match : Match
        How the stars were recognised.
    epoch_yr : float
    notes : tuple of str
    """

    chips: tuple[Chip, ...]
    reference: Reference
    match: Match
    epoch_yr: float
    notes: tuple[str, ...] = ()


def solve_plate(
    frames: list[Frame], sources: list[NDArray[np.void]], refcat: RefCat, pointing: Pointing,
    settings: Mapping[str, dict[str, Any]], *, epoch_yr: float | None, blind: Any = None,
    together: bool = True, name: str = "image", log: Callable[[str], None] = lambda text: None,
) -> Plate:
    """Recognise the stars of an exposure and fit its WCS.

    Parameters
    ----------
    frames, sources : list
        The chips and what was found on each.
    refcat : RefCat
    pointing : Pointing
        What is known of where the first chip points.
    settings : mapping
        Sections ``refcat``, ``match``, ``blind`` and ``fit``.
    epoch_yr : float or None
        Julian year of the exposure; None widens the reference stars' errors.
    blind : QuadIndex, optional
        Searched where there is no pointing, or where it led nowhere.
    together : bool
        Whether several chips are one focal plane.
    name : str
        What messages call the image.
    log : callable
        Told each step as it begins.

    Raises
    ------
    NotEnoughStars, NotEnoughReference, NoMatch, CatalogMissing
    """
    layout = _layout(frames, sources) if together else None
    if layout is None and len(frames) > 1:
        message = "one focal plane needs a WCS in every chip to say how they lie"
        raise NoMatch(
            "{image}: {reason}", image=name, reason=message, hint="Use --chips apart.",
        )
    field = layout or _Layout.single(frames[0], sources[0])
    notes: list[str] = []
    log("reference stars")
    match, reference, epoch, more = _recognise(
        field, refcat, pointing, settings, epoch_yr, blind, name, log
    )
    notes += more
    log("fit")
    if layout is None:
        chip = _fit_chip(frames[0], sources[0], reference, match.model, field.shape, settings)
        return Plate((chip,), reference, match, epoch, tuple(notes))
    chips = layout.fit(frames, sources, reference, match, settings)
    return Plate(tuple(chips), reference, match, epoch, tuple(notes))


# ------------------------------------------------------------------------------ reference stars
def select_reference(
    stars: NDArray[np.void],
    *,
    min_mag: Annotated[float | None, Unit("mag"), Range(-5, 40)] = None,
    max_mag: Annotated[float | None, Unit("mag"), Range(-5, 40)] = None,
    require_good: bool = True,
    max_error_mas: Annotated[float, Unit("mas"), Range(0.001, 1e6)] = 2000.0,
) -> NDArray[np.bool_]:
    """Say which reference stars may take part in a fit.

    Parameters
    ----------
    stars : (n,) structured array
        Schema ``REFERENCE``.
    min_mag, max_mag : float, optional
        Brightest and faintest star to use.
    require_good : bool
        Leave out stars that fail the catalogue's quality cuts (ruwe, duplicates, blends), unless
        that would leave fewer than a third.
    max_error_mas : float
        Largest error of the catalogue's position.
    """
    keep = np.ones(len(stars), dtype=bool)
    with np.errstate(invalid="ignore"):
        if min_mag is not None:
            keep &= stars["mag"] >= min_mag
        if max_mag is not None:
            keep &= stars["mag"] <= max_mag
        error = np.fmax(stars["ra_error_mas"], stars["dec_error_mas"])
    keep &= ~(error > max_error_mas)
    if require_good and np.count_nonzero(keep & stars["good"]) > np.count_nonzero(keep) / 3:
        keep &= stars["good"]
    return keep


def _reference(
    refcat: RefCat, ra: float, dec: float, radius: float, epoch_yr: float | None,
    settings: Mapping[str, dict[str, Any]], max_rows: int,
) -> tuple[Reference, float]:
    """Return the reference stars of a circle at the epoch."""
    cuts = settings["refcat"]
    stars = refcat.cone(
        ra, dec, min(radius, 180.0), min_mag=cuts.get("min_mag"), max_mag=cuts.get("max_mag"),
        max_rows=max_rows,
    )
    stars = stars[select_reference(stars, **cuts)]
    epoch = epoch_yr
    if epoch is None:
        epoch = float(np.median(stars["ref_epoch_yr"])) if len(stars) else 2016.0
    ra_deg, dec_deg, cov = at_epoch(stars, epoch)
    if epoch_yr is None:
        with np.errstate(invalid="ignore"):
            mu = np.hypot(stars["pm_ra_mas_yr"], stars["pm_dec_mas_yr"])
        cov[:, :2] += (np.nan_to_num(mu, nan=7.0)[:, None] * UNKNOWN_EPOCH_YR) ** 2
    return Reference(stars, ra_deg, dec_deg, cov), epoch


# ---------------------------------------------------------------------------------- recognition
def _recognise(
    field: _Layout, refcat: RefCat, pointing: Pointing, settings: Mapping[str, dict[str, Any]],
    epoch_yr: float | None, blind: Any, name: str, log: Callable[[str], None],
) -> tuple[Match, Reference, float, list[str]]:
    """Recognise the stars with what is known of the pointing, then without."""
    if len(field.x) == 0:
        raise NotEnoughStars(image=name, n_sources=0, needed=5)
    failure: Exception | None = None
    if pointing.ra_deg is not None and pointing.dec_deg is not None:
        try:
            return _with_pointing(field, refcat, pointing, settings, epoch_yr, name, log)
        except (NoMatch, NotEnoughReference, CatalogMissing) as error:
            if blind is None:
                raise
            failure = error
    elif blind is None:
        return _with_whole_catalog(field, refcat, pointing, settings, epoch_yr, name, log)
    log("blind search")
    scale = pointing.scale_arcsec
    span = 1.0 + pointing.scale_error
    limits = {} if scale is None else {
        "min_scale_arcsec": scale / span, "max_scale_arcsec": scale * span,
    }
    from cynosure.geometry.quads import solve_blind

    found = solve_blind(
        field.x, field.y, field.flux, blind, field.shape, name=name,
        **{**limits, **settings["blind"]},
    )
    ra, dec = found.model.pixel_to_sky((field.shape[1] - 1) / 2, (field.shape[0] - 1) / 2)
    near = Pointing(
        float(ra), float(dec), radius_deg=0.1, scale_arcsec=found.scale_arcsec, scale_error=0.02,
        rotation_deg=found.rotation_deg, rotation_error_deg=2.0, parity=found.parity,
    )
    match, reference, epoch, notes = _with_pointing(
        field, refcat, near, settings, epoch_yr, name, log
    )
    if failure is not None:
        notes.append(f"the pointing led nowhere ({failure}); found by the blind index")
    evidence = {**match.evidence, "blind": {"log_odds": found.log_odds, **found.evidence}}
    return replace(match, evidence=evidence, log_odds=match.log_odds), reference, epoch, notes


def _with_pointing(
    field: _Layout, refcat: RefCat, pointing: Pointing, settings: Mapping[str, dict[str, Any]],
    epoch_yr: float | None, name: str, log: Callable[[str], None],
) -> tuple[Match, Reference, float, list[str]]:
    half = field.half_diagonal_deg(pointing)
    radius = pointing.radius_deg if pointing.radius_deg is not None else max(0.6, half)
    ra, dec = float(pointing.ra_deg or 0.0), float(pointing.dec_deg or 0.0)
    # As many reference stars to the area as there are sources, with room for a catalogue that
    # goes deeper; more would only slow the search.
    area = ((radius + half) / half) ** 2 * np.pi / 2.0
    most = int(np.clip(3.0 * min(len(field.x), RECOGNISED) * area, 3000, 200_000))
    reference, epoch = _reference(
        refcat, ra, dec, radius + half, epoch_yr, settings, most
    )
    if len(reference) == 0:
        raise CatalogMissing(
            "{image}: {catalog} has no stars within {radius:.3g} deg of {ra:.4f} {dec:+.4f}",
            image=name, catalog=refcat.name, radius=radius + half, ra=ra, dec=dec,
            hint="The catalogue does not cover the field: fetch it (cynosure refcat fetch), or "
            "correct the pointing with --center.",
        )
    log(f"recognition among {len(reference)} reference stars")
    near = field.confirmed(reference, pointing)
    if near is not None:
        return (*_deepened(field, refcat, near, reference, settings, epoch_yr, epoch), [])
    wide = replace(pointing, radius_deg=radius)
    match = match_pointing(
        field.x, field.y, field.flux, reference.ra_deg, reference.dec_deg,
        reference.stars["mag"], wide, field.shape, name=name, **settings["match"],
    )
    return (*_deepened(field, refcat, match, reference, settings, epoch_yr, epoch), [])


def _with_whole_catalog(
    field: _Layout, refcat: RefCat, pointing: Pointing, settings: Mapping[str, dict[str, Any]],
    epoch_yr: float | None, name: str, log: Callable[[str], None],
) -> tuple[Match, Reference, float, list[str]]:
    """Search a catalogue of one region for an image without a pointing."""
    stars = refcat.all()
    if len(stars) == 0:
        raise CatalogMissing(catalog=refcat.name, reason="it has no stars")
    if len(stars) > MAX_WHOLE:
        raise NoMatch(
            "{image}: the header has no pointing, and {catalog} is too large to search whole "
            "({n_reference} stars)", image=name, catalog=refcat.name, n_reference=len(stars),
            n_sources=len(field.x), hint="Give --center RA DEC, or --blind --index PATH.",
        )
    ra, dec = stars["ra_deg"], stars["dec_deg"]
    from cynosure.ground.sky import radec, unit_vectors

    centre = unit_vectors(ra, dec).mean(axis=0)
    ra0, dec0 = (float(v) for v in radec(centre))
    radius = float(separation_deg(ra, dec, ra0, dec0).max())
    if radius > 20.0:
        raise NoMatch(
            "{image}: the header has no pointing, and {catalog} covers {radius:.0f} deg of sky",
            image=name, catalog=refcat.name, radius=radius, n_sources=len(field.x),
            n_reference=len(stars), hint="Give --center RA DEC, or --blind --index PATH.",
        )
    notes = [f"no pointing: the whole of {refcat.name} was searched ({len(stars)} stars)"]
    near = replace(pointing, ra_deg=ra0, dec_deg=dec0, radius_deg=radius)
    match, reference, epoch, more = _with_pointing(
        field, refcat, near, settings, epoch_yr, name, log
    )
    return match, reference, epoch, notes + more


# The brightest sources recognise the field; more of them take time and add nothing.
RECOGNISED = 4000

# A catalogue of up to this many stars is searched whole for an image without a pointing.
MAX_WHOLE = 300_000


def _deepened(
    field: _Layout, refcat: RefCat, match: Match, reference: Reference,
    settings: Mapping[str, dict[str, Any]], epoch_yr: float | None, epoch: float,
) -> tuple[Match, Reference, float]:
    """Fetch the stars of the frame itself, as deep as the catalogue and the image go."""
    ny, nx = field.shape
    ra, dec = match.model.pixel_to_sky((nx - 1) / 2, (ny - 1) / 2)
    x = np.array([0, nx / 2, nx, nx, nx, nx / 2, 0, 0])
    y = np.array([0, 0, 0, ny / 2, ny, ny, ny, ny / 2])
    edge = separation_deg(ra, dec, *match.model.pixel_to_sky(x, y))
    radius = 1.02 * float(np.nanmax(edge)) + 0.002
    most = int(np.clip(8 * len(field.x), 5000, 2_000_000))
    deeper, epoch = _reference(refcat, float(ra), float(dec), radius, epoch_yr, settings, most)
    return match, deeper, epoch


# ------------------------------------------------------------------------------------- one chip
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


def _make_pairs(
    sources: NDArray[np.void], reference: Reference, i: NDArray[np.int64], j: NDArray[np.int64]
) -> Pairs:
    return Pairs(
        sources["x"][i], sources["y"][i], source_covariance(sources)[i],
        reference.ra_deg[j], reference.dec_deg[j], reference.cov_mas2[j],
        reference.stars["ref_id"][j],
    )


def _alone(reference: Reference, model: SkyModel, radius_px: float) -> NDArray[np.bool_]:
    """Say which reference stars have no companion that would blend with them in the image.

    A companion within `radius_px` that is less than 2.5 mag fainter moves the blend's centre by
    more than a tenth of its distance.
    """
    from scipy.spatial import cKDTree

    if len(reference) < 2:
        return np.ones(len(reference), dtype=bool)
    x, y = model.sky_to_pixel(reference.ra_deg, reference.dec_deg)
    inside = np.isfinite(x) & np.isfinite(y)
    rows = np.flatnonzero(inside)
    alone = np.ones(len(reference), dtype=bool)
    pairs = cKDTree(np.column_stack([x[rows], y[rows]])).query_pairs(
        radius_px, output_type="ndarray"
    )
    a, b = rows[pairs[:, 0]], rows[pairs[:, 1]]
    mag = np.nan_to_num(reference.stars["mag"], nan=99.0)
    alone[a[mag[b] < mag[a] + 2.5]] = False
    alone[b[mag[a] < mag[b] + 2.5]] = False
    return alone


def _fit_chip(
    frame: Frame, sources: NDArray[np.void], reference: Reference, base: SkyModel,
    shape: tuple[int, int], settings: Mapping[str, dict[str, Any]], radius_px: float = 3.0,
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
    alone = _alone(reference, base, 1.5 * fwhm)
    known, lowest = _prior(frame, base) if prior is None else prior
    model, sd, sigma0 = base, 0.7, 0.0
    fit: Fit | None = None
    old = b""
    reach = max(radius_px, 1.2 * fwhm)
    for _ in range(6):
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
        pairs = _make_pairs(sources, reference, i, j)
        fit = fit_wcs(pairs, base, shape, known, lowest, **settings["fit"])
        model = fit.model
        scale_mas = 1000.0 * _scale_arcsec(model)
        sigma0 = fit.errors.sigma0_mas / scale_mas
        sd, reach = 0.05, float(np.clip(max(0.6 * fwhm, 5.0 * sigma0), 1.5, max(radius_px, fwhm)))
    if fit is None:
        raise Degenerate(what="WCS fit", n_points=0, n_parameters=2, condition=np.inf)
    return Chip(frame, sources, i, j, fit)


def _refitted(
    last: Fit | None, pairs: Pairs, base: SkyModel, shape: tuple[int, int], prior: SkyModel | None,
    settings: Mapping[str, dict[str, Any]],
) -> Fit:
    """Fit pairs; where a rich field has hardly changed since the last fit, its form stands."""
    if last is None or len(pairs) < 1000 or abs(len(pairs) / len(last.used) - 1.0) > 0.05:
        return fit_wcs(pairs, base, shape, prior, **settings["fit"])
    fit = fit_wcs(pairs, base, shape, prior, **{**settings["fit"], "form": last.form})
    return replace(fit, scores=last.scores)


# A saturated or otherwise spoiled source is somewhere within this of where it was measured.
SPOILED_ERROR_PX = 1.0


def _prior(frame: Frame, base: SkyModel) -> tuple[SkyModel | None, str]:
    """Return what the image's own WCS says beyond its pointing, and the simplest form it allows.

    The old WCS is pointed to where the stars are. Where the rest of it then agrees with them to
    within a few pixels, it knows the field independently of the stars, and a mere shift of it
    may be enough. Else its linear part is taken from the stars, and has to be fitted to them at
    least; None where its distortion is so unlike the stars' that it cannot be its own.
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
        project(*_pointed(old, base, frame.shape).pixel_to_sky(x, y), base.ra0_deg, base.dec0_deg),
        axis=1,
    )
    lowest = "shift"
    pixel = _scale_arcsec(base) / 3600.0
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


def _pointed(old: SkyModel, base: SkyModel, shape: tuple[int, int]) -> SkyModel:
    """Return a model pointed to where `base` points: its tangent point moves, nothing else."""
    x, y = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    ra, dec = base.pixel_to_sky(x, y)
    for _ in range(3):
        ra_now, dec_now = old.pixel_to_sky(x, y)
        ra0, dec0 = old.ra0_deg + float(ra - ra_now), old.dec0_deg + float(dec - dec_now)
        if not abs(dec0) < 90.0:
            break
        old = old.replaced(ra0_deg=ra0 % 360.0, dec0_deg=dec0)
    return old


# A form that moves a WCS is linear in what it moves: so far, and no further.
MAX_MOVE_PX = 3.0
# The match's model is good to a pixel or so; a distortion that disagrees by more is not this one's.
MAX_PRIOR_PX = 5.0


def _scale_arcsec(model: SkyModel) -> float:
    return float(np.sqrt(abs(np.linalg.det(model.jacobian(model.x0, model.y0)))) * 3600.0)


# --------------------------------------------------------------------------- the focal plane
@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """The sources of all chips as one list of (pseudo-)pixels."""

    x: Floats
    y: Floats
    flux: Floats
    shape: tuple[int, int]
    scale_deg: float | None = None
    models: tuple[SkyModel, ...] = ()
    header: SkyModel | None = None
    origin: tuple[float, float] = (0.0, 0.0)
    center: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def single(cls, frame: Frame, sources: NDArray[np.void]) -> _Layout:
        use = _matchable(sources)
        header = None
        if frame.wcs is not None:
            with contextlib.suppress(CynosureError):
                header, _ = model_from_wcs(frame.wcs, frame.shape)
        return cls(
            sources["x"][use], sources["y"][use], sources["flux_e"][use], frame.shape,
            header=header,
        )

    def confirmed(self, reference: Reference, pointing: Pointing) -> Match | None:
        """Return the match of a header that is nearly right, and points where we look."""
        if self.header is None or pointing.ra_deg is None or pointing.dec_deg is None:
            return None
        ra, dec = self.header.pixel_to_sky((self.shape[1] - 1) / 2, (self.shape[0] - 1) / 2)
        away = float(separation_deg(ra, dec, pointing.ra_deg, pointing.dec_deg))
        if not away < 0.1 * _scale_arcsec(self.header) * max(self.shape) / 3600.0:
            return None  # the caller knows better than the header
        return confirm_wcs(
            self.header, self.x, self.y, self.flux, reference.ra_deg, reference.dec_deg, self.shape
        )

    def half_diagonal_deg(self, pointing: Pointing) -> float:
        """Return half the frame's diagonal, with the scale's own uncertainty."""
        pixels = 0.5 * float(np.hypot(*self.shape))
        scale = pointing.scale_arcsec
        if scale is None:
            return 1.0
        return pixels * scale * (1.0 + pointing.scale_error) / 3600.0

    def chip_model(self, k: int, whole: SkyModel) -> SkyModel:
        """Return the model of chip k, seen through a model of the pseudo-pixels."""
        frame_model = self.models[k]
        u, v = np.meshgrid(np.linspace(-1, 1, 24), np.linspace(-1, 1, 24))
        x = frame_model.x0 + frame_model.scale_px * u.ravel()
        y = frame_model.y0 + frame_model.scale_px * v.ravel()
        px, py = self.pseudo(k, x, y)
        xi, eta = whole.pixel_to_plane(px, py)
        degree = max(frame_model.degree, whole.degree)
        design = poly_design(u.ravel(), v.ravel(), degree)
        coeff = lstsq(design, np.stack([xi, eta], axis=1), what="focal plane").x.T
        return frame_model.replaced(ra0_deg=whole.ra0_deg, dec0_deg=whole.dec0_deg, coeff=coeff)

    def pseudo(self, k: int, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Return pseudo-pixels of pixels of chip k."""
        xi, eta = project(*self.models[k].pixel_to_sky(x, y), *self.center)
        scale = float(self.scale_deg or 1.0)
        return -xi / scale - self.origin[0], eta / scale - self.origin[1]

    def fit(
        self, frames: list[Frame], sources: list[NDArray[np.void]], reference: Reference,
        match: Match, settings: Mapping[str, dict[str, Any]],
    ) -> list[Chip]:
        """Fit the plane as a whole, then the chips within it."""
        combined = []
        for k, table in enumerate(sources):
            moved = table.copy()
            moved["x"], moved["y"] = self.pseudo(k, table["x"], table["y"])
            # Covariances turn with the chip; for pairing and a linear fit their size is enough.
            mean = np.sqrt(0.5 * (table["x_err"] ** 2 + table["y_err"] ** 2))
            moved["x_err"] = moved["y_err"] = mean
            combined.append(moved)
        every = np.concatenate(combined)
        plane_settings = {"fit": {**settings["fit"], "max_order": 1, "form": "auto"}}
        plane = _fit_chip(
            frames[0].replaced(wcs=None), every, reference, match.model, self.shape, plane_settings
        )
        if plane.fit.form == "poly1" or match.model.degree == 1:
            whole = plane.fit.model
        else:  # the low-order model of the match bends chips that are straight
            linear = fit_wcs(
                _make_pairs(every, reference, plane.source_index, plane.reference_index),
                match.model, self.shape, form="poly1",
            )
            whole = linear.model
        chips = []
        for k, (frame, table) in enumerate(zip(frames, sources)):
            base = self.chip_model(k, whole)
            try:
                chips.append(_fit_chip(
                    frame, table, reference, base, frame.shape, settings, prior=(base, "shift")
                ))
            except Degenerate:
                chips.append(self._inherited(frame, table, base, plane))
        return chips

    @staticmethod
    def _inherited(
        frame: Frame, sources: NDArray[np.void], base: SkyModel, plane: Chip
    ) -> Chip:
        none = np.zeros(0, dtype=np.int64)
        fit = plane.fit
        empty = Fit(
            model=base, form="shift", errors=fit.errors,
            covariance=np.eye(2) * fit.errors.sigma0_mas**2 / 3.6e6**2,
            residual_mas=np.zeros((0, 2)), sigma2_mas2=np.zeros((0, 3)),
            leverage=np.zeros((0, 2)), used=np.zeros(0, bool), reserved=np.zeros(0, bool),
            chi2=0.0, dof=0, chi2_all=0.0, base=base,
        )
        return Chip(frame, sources, none, none, empty, inherited=True)


def _matchable(sources: NDArray[np.void]) -> NDArray[np.bool_]:
    """Say which sources help to recognise the field: saturated stars do, spikes do not."""
    spoiled = SourceFlag.COSMIC | SourceFlag.TRAIL | SourceFlag.NEAR_BRIGHT
    good = (sources["flags"] & spoiled) == 0
    good &= np.isfinite(sources["x"]) & np.isfinite(sources["y"])
    return good if good.sum() >= 8 else np.isfinite(sources["x"])


def _layout(frames: list[Frame], sources: list[NDArray[np.void]]) -> _Layout | None:
    """Lay several chips on one plane by their own WCS's; None for one chip, or where one lacks."""
    if len(frames) < 2 or any(f.wcs is None for f in frames):
        return None
    models = tuple(model_from_wcs(f.wcs, f.shape)[0] for f in frames)
    ra, dec = models[0].pixel_to_sky(models[0].x0, models[0].y0)
    scale = _scale_arcsec(models[0]) / 3600.0
    first = _Layout(
        np.zeros(0), np.zeros(0), np.zeros(0), (1, 1), scale, models,
        center=(float(ra), float(dec)),
    )
    xs, ys, fluxes = [], [], []
    corners = []
    for k, (frame, table) in enumerate(zip(frames, sources)):
        use = _matchable(table)
        x, y = first.pseudo(k, table["x"][use], table["y"][use])
        xs.append(x)
        ys.append(y)
        fluxes.append(table["flux_e"][use])
        ny, nx = frame.shape
        corners.append(first.pseudo(k, np.array([0, nx, nx, 0.0]), np.array([0, 0, ny, float(ny)])))
    cx = np.concatenate([c[0] for c in corners])
    cy = np.concatenate([c[1] for c in corners])
    origin = (float(cx.min()), float(cy.min()))
    shape = (int(np.ceil(np.ptp(cy))) + 1, int(np.ceil(np.ptp(cx))) + 1)
    x, y = np.concatenate(xs) - origin[0], np.concatenate(ys) - origin[1]
    return replace(first, x=x, y=y, flux=np.concatenate(fluxes), shape=shape, origin=origin)
