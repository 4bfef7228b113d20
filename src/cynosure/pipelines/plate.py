"""Match and fit the sources of an exposure: reference stars, match, pairs, the fit of each chip.

Chips that have a WCS each are matched as one focal plane (:mod:`cynosure.geometry.focalplane`);
other chips are matched one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.catalogs.refcat import RefCat
from cynosure.data.fits.wcsread import sky_of_pixels
from cynosure.data.frame import Frame, Pointing
from cynosure.data.tables import SourceFlag
from cynosure.geometry.fit.chip import Chip, fit_chip
from cynosure.geometry.focalplane import FocalPlane, lay_out
from cynosure.geometry.match.pointing import Match, match_pointing
from cynosure.geometry.reference import Reference, reference_stars, select_reference
from cynosure.ground.errors import (
    CatalogMissing,
    Degenerate,
    NoMatch,
    NotEnoughReference,
    NotEnoughStars,
)
from cynosure.ground.sky import deproject, project, radec, separation_deg, unit_vectors

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
    layout = lay_out(frames, sources) if together else None
    if layout is None and len(frames) > 1:
        message = "one focal plane needs a WCS in every chip to say how they lie"
        raise NoMatch(
            "{image}: {reason}", image=name, reason=message, hint="Use --chips apart.",
        )
    if first is not None:
        pointing = _moved(pointing, first, frames[0])
    field = layout or FocalPlane.single(frames[0], sources[0])
    notes: list[str] = []
    log("reference stars")
    doubtful = False
    try:
        match, reference, epoch, more = _recognise(
            field, refcat, pointing, settings, epoch_yr, name, log, blind=blind
        )
    except NoMatch as error:
        wider = None if layout else FocalPlane.single(frames[0], sources[0], SourceFlag.TRAIL)
        if wider is None or len(wider.x) < 1.5 * len(field.x):
            raise
        log("recognition with sources that look like no stars")
        try:
            match, reference, epoch, more = _recognise(
                wider, refcat, pointing, settings, epoch_yr, name, log, blind=blind
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


# The part of the matched sources that must be usable stars. Where most are saturated, trailed or
# blended, the remaining ones are not reliable either.
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
    field: FocalPlane, refcat: RefCat, pointing: Pointing, settings: Mapping[str, dict[str, Any]],
    epoch_yr: float | None, name: str, log: Callable[[str], None], *, blind: Any,
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
    field: FocalPlane, refcat: RefCat, pointing: Pointing, settings: Mapping[str, dict[str, Any]],
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
    stars = refcat.cone(ra, dec, min(radius, 180.0), max_rows=1000,
                        columns=("mag", "ra_error_mas", "dec_error_mas"))
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
    field: FocalPlane, refcat: RefCat, pointing: Pointing, settings: Mapping[str, dict[str, Any]],
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


# The number of brightest sources that are matched; a match needs tens, and the time grows with
# their number.
RECOGNISED = 4000

# A catalogue of up to this many stars, a few square degrees of Gaia, is searched whole for an image
# without a pointing.
MAX_WHOLE = 300_000


def _deepened(
    field: FocalPlane, refcat: RefCat, match: Match, reference: Reference,
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
