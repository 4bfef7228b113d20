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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.catalogs.refcat import RefCat
from cynosure.data.fits.wcsread import sky_of_pixels
from cynosure.data.frame import Frame, Pointing
from cynosure.data.tables import SourceFlag
from cynosure.geometry.fit.exposure import Fit, fit_wcs
from cynosure.geometry.match.confirm import confirm_wcs
from cynosure.geometry.match.pointing import Match, match_pointing
from cynosure.geometry.wcs import SkyModel, model_from_wcs
from cynosure.ground.errors import (
    CatalogMissing,
    CynosureError,
    Degenerate,
    NoMatch,
    NotEnoughReference,
    NotEnoughStars,
)
from cynosure.ground.numeric import lstsq, poly_design, propagated
from cynosure.ground.sky import (
    MAS_PER_DEG,
    deproject,
    plane_jacobian,
    project,
    radec,
    separation_deg,
    unit_vectors,
)
from cynosure.pipelines.chips import Chip, fit_chip, make_pairs, scale_arcsec, source_covariance
from cynosure.pipelines.reference import Reference, reference_stars, select_reference

__all__ = ["Plate", "solve_plate"]

Floats = NDArray[np.float64]


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
    together: bool = True, first: Frame | None = None, name: str = "image",
    log: Callable[[str], None] = lambda text: None,
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
    first : Frame, optional
        The chip whose pointing `pointing` is, where it is not the first of `frames`.
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
    if first is not None:
        pointing = _moved(pointing, first, frames[0])
    field = layout or _Layout.single(frames[0], sources[0])
    notes: list[str] = []
    log("reference stars")
    doubtful = False
    try:
        match, reference, epoch, more = _recognise(
            field, refcat, pointing, settings, epoch_yr, blind, name, log
        )
    except NoMatch as error:
        wider = None if layout else _Layout.single(frames[0], sources[0], SourceFlag.TRAIL)
        if wider is None or len(wider.x) < 1.5 * len(field.x):
            raise
        log("recognition with sources that look like no stars")
        try:
            match, reference, epoch, more = _recognise(
                wider, refcat, pointing, settings, epoch_yr, blind, name, log
            )
        except NoMatch:
            raise error from None
        doubtful = True
        more.append("recognised with the help of sources that look like no stars")
    notes += more
    log("fit")
    if layout is None:
        try:
            chip = fit_chip(frames[0], sources[0], reference, match.model, field.shape, settings)
        except Degenerate as error:
            raise _unmeasured(name, sources[0], match) from error
        if doubtful and chip.fit.used.sum() < FEW_MEASURED * len(match.source_index):
            raise _unmeasured(name, sources[0], match, int(chip.fit.used.sum()))
        return Plate((chip,), reference, match, epoch, tuple(notes))
    chips = layout.fit(frames, sources, reference, match, settings)
    return Plate(tuple(chips), reference, match, epoch, tuple(notes))


def _moved(pointing: Pointing, first: Frame, frame: Frame) -> Pointing:
    """Return where a chip points if `first` points there, as the WCS's of the two have it."""
    if frame is first or pointing.ra_deg is None or pointing.dec_deg is None:
        return pointing
    centres = []
    for chip in (first, frame):
        if chip.wcs is None:
            return pointing
        ny, nx = chip.shape
        centres.append(sky_of_pixels(chip.wcs, [(nx - 1) / 2], [(ny - 1) / 2]))
    (ra0, dec0), (ra, dec) = centres
    xi, eta = project(ra, dec, float(ra0[0]), float(dec0[0]))
    if not (np.isfinite(xi).all() and np.isfinite(eta).all()):
        return pointing
    moved = deproject(xi, eta, pointing.ra_deg, pointing.dec_deg)
    return replace(pointing, ra_deg=float(moved[0][0]), dec_deg=float(moved[1][0]))


# Where most stars look like none, the few that do are not to be trusted with the fit.
FEW_MEASURED = 0.25


def _unmeasured(
    name: str, sources: NDArray[np.void], match: Match, n_used: int = 0
) -> NotEnoughStars:
    """Say why a field that was recognised has no star to be fitted."""
    odd = {flag: int(np.count_nonzero(sources["flags"] & flag)) for flag in SourceFlag}
    most = sorted((f for f in odd if odd[f] and f & SourceFlag.unusable()), key=lambda f: -odd[f])
    why = ", ".join(f"{odd[f]} {str(f.name).lower().replace('_', ' ')}" for f in most[:3])
    return NotEnoughStars(
        "{image}: the field was recognised by {n_matched} stars, but {count} of its {n_sources} "
        "sources {verb} measured well enough for a fit ({why})", image=name,
        n_sources=len(sources), count=f"only {n_used}" if n_used else "none",
        verb="are" if n_used > 1 else "is",
        n_matched=len(match.source_index), why=why or "their errors exceed a pixel",
        tried=tuple(match.evidence.get("tried", ())),
        hint="Check focus, tracking and saturation; look at the sources in the report.",
    )


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
    from cynosure.geometry.match.blind import solve_blind

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
    reference, epoch = reference_stars(
        refcat, ra, dec, radius + half, epoch_yr, settings, most
    )
    if len(reference) == 0:
        _say_if_cut(refcat, ra, dec, radius + half, settings["refcat"], name)
        raise CatalogMissing(
            "{image}: {catalog} has no stars within {radius:.3g} deg of {ra:.4f} {dec:+.4f}{where}",
            image=name, catalog=refcat.name, radius=radius + half, ra=ra, dec=dec,
            where=_where(refcat),
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


def _say_if_cut(
    refcat: RefCat, ra: float, dec: float, radius: float, cuts: Mapping[str, Any], name: str
) -> None:
    """Tell a field whose stars are all left out from one that the catalogue does not cover."""
    stars = refcat.cone(ra, dec, min(radius, 180.0), max_rows=1000)
    if len(stars) == 0:
        return
    error = float(np.nanmedian(np.fmax(stars["ra_error_mas"], stars["dec_error_mas"])))
    low, high = float(np.nanmin(stars["mag"])), float(np.nanmax(stars["mag"]))
    every = {**(select_reference.__kwdefaults__ or {}), **cuts}
    said = ", ".join(f"{key} {value:g}" for key, value in every.items()
                     if value is not None and not isinstance(value, bool))
    raise NotEnoughReference(
        "{image}: {catalog} has stars within {radius:.3g} deg of {ra:.4f} {dec:+.4f}, but leaves "
        "out all of them ({said}): their median error is {error:.4g} mas, their magnitudes "
        "{low:.1f} to {high:.1f}", image=name, catalog=refcat.name, radius=radius, ra=ra, dec=dec,
        said=said, error=error, low=low, high=high, n_reference=0, needed=5,
        hint="Widen the cuts: --set refcat.max_error_mas=…, refcat.min_mag, refcat.max_mag.",
    )


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
    ra0, dec0, radius = _circle_of(stars)
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


def _circle_of(stars: NDArray[np.void]) -> tuple[float, float, float]:
    """Return centre and radius of a circle that holds stars, deg."""
    ra, dec = stars["ra_deg"], stars["dec_deg"]
    ra0, dec0 = (float(v) for v in radec(unit_vectors(ra, dec).mean(axis=0)))
    return ra0, dec0, float(separation_deg(ra, dec, ra0, dec0).max())


def _where(refcat: RefCat) -> str:
    """Say where a catalogue of one region lies, for who looks elsewhere; empty for a large one."""
    if not 0 < int(refcat.info().get("rows") or 0) <= MAX_WHOLE:
        return ""
    stars = refcat.all()
    ra, dec, radius = _circle_of(stars)
    if radius > 20.0:
        return ""
    text = f"; its {len(stars)} stars lie within {radius:.3g} deg of {ra:.4f} {dec:+.4f}"
    if stars["ra_deg"].max() < 2.0 * np.pi and np.abs(stars["dec_deg"]).max() < np.pi / 2.0:
        text += " (are its positions in radians?)"
    return text


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
    deeper, epoch = reference_stars(refcat, float(ra), float(dec), radius, epoch_yr, settings, most)
    return match, deeper, epoch


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
    def single(
        cls, frame: Frame, sources: NDArray[np.void], spoiled: SourceFlag | None = None
    ) -> _Layout:
        """Return one chip's sources: those that help, or all that have no flag of `spoiled`."""
        use = _matchable(sources)
        if spoiled is not None:
            use = ((sources["flags"] & spoiled) == 0) & np.isfinite(sources["x"])
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
        if not away < 0.1 * scale_arcsec(self.header) * max(self.shape) / 3600.0:
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

    def pseudo_jacobian(self, k: int, x: Floats, y: Floats) -> Floats:
        """Return d(pseudo-pixels) / d(pixels of chip k), (n, 2, 2)."""
        model = self.models[k]
        at = model.pixel_to_sky(x, y)
        own = plane_jacobian(*at, model.ra0_deg, model.dec0_deg)
        common = plane_jacobian(*at, *self.center)
        mirror = np.array([[-1.0, 0.0], [0.0, 1.0]]) / float(self.scale_deg or 1.0)
        return np.asarray(mirror @ common @ np.linalg.inv(own) @ model.jacobian(x, y), np.float64)

    def fit(
        self, frames: list[Frame], sources: list[NDArray[np.void]], reference: Reference,
        match: Match, settings: Mapping[str, dict[str, Any]],
    ) -> list[Chip]:
        """Fit the plane as a whole, then the chips within it."""
        combined = []
        for k, table in enumerate(sources):
            moved = table.copy()
            moved["x"], moved["y"] = self.pseudo(k, table["x"], table["y"])
            jacobian = self.pseudo_jacobian(k, table["x"], table["y"])
            turned = propagated(jacobian, source_covariance(table))
            moved["x_err"], moved["y_err"] = np.sqrt(turned[:, :2]).T
            moved["xy_corr"] = turned[:, 2] / (moved["x_err"] * moved["y_err"])
            combined.append(moved)
        every = np.concatenate(combined)
        plane_settings = {"fit": {**settings["fit"], "max_order": 1, "geometry": "auto"}}
        plane = fit_chip(
            frames[0].replaced(wcs=None), every, reference, match.model, self.shape, plane_settings
        )
        if plane.fit.geometry == "poly1" or match.model.degree == 1:
            whole = plane.fit.model
        else:  # the low-order model of the match bends chips that are straight
            linear = fit_wcs(
                make_pairs(every, reference, plane.source_index, plane.reference_index),
                match.model, self.shape, geometry="poly1",
            )
            whole = linear.model
        chips = []
        for k, (frame, table) in enumerate(zip(frames, sources)):
            base = self.chip_model(k, whole)
            try:
                chips.append(fit_chip(
                    frame, table, reference, base, frame.shape, settings, prior=(base, "shift")
                ))
            except Degenerate:
                chips.append(self._inherited(frame, table, base, plane))
        return chips

    def _inherited(
        self, frame: Frame, sources: NDArray[np.void], base: SkyModel, plane: Chip
    ) -> Chip:
        none = np.zeros(0, dtype=np.int64)
        fit = plane.fit
        # It is as uncertain as the plane is where that is most so.
        ny, nx = self.shape
        corners = np.array([0.0, nx, 0.0, nx]), np.array([0.0, 0.0, ny, ny])
        worst = fit.plane_variance_mas2(*corners)[:, :2].max(axis=0)
        empty = Fit(
            model=base, geometry="shift", errors=fit.errors,
            covariance=np.diag(worst) / MAS_PER_DEG**2,
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
    scale = scale_arcsec(models[0]) / 3600.0
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
