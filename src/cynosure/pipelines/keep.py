"""The input WCS, corrected: what ``solve --form keep`` writes.

An observatory calibrates the distortion of its WCS (SIP, and lookup tables beside it) with far more
stars than one exposure has, and a polynomial cannot represent the tables. The stars of the image
therefore correct such a WCS as a whole (:mod:`cynosure.geometry.correction`): CRVAL and CD change,
the distortion stays to the bit. The polynomial fit of :mod:`cynosure.pipelines.plate` has matched
the stars, and is the alternative: ``--form auto`` takes it where it predicts the stars held out of
both fits significantly better (cross-validation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fits.wcsread import read_wcs, sky_of_pixels
from cynosure.data.frame import Frame
from cynosure.geometry.correction import (
    Correction,
    CorrectionFit,
    correct_wcs,
    corrected_cards,
    fit_correction,
)
from cynosure.geometry.fit.chip import Chip, make_pairs
from cynosure.geometry.fit.errormodel import CHI2_OUTLIER, mahalanobis2
from cynosure.geometry.fit.plane import Fit
from cynosure.geometry.fit.selection import reserve
from cynosure.geometry.fitsmap import FitsMap
from cynosure.geometry.pixelmap import LINEAR_GEOMETRIES
from cynosure.geometry.wcs import model_from_wcs
from cynosure.ground.errors import Degenerate, ImageError
from cynosure.ground.sky import MAS_PER_DEG, separation_deg
from cynosure.pipelines.plate import Plate

if TYPE_CHECKING:
    from astropy.io.fits import HDUList, Header
    from astropy.wcs import WCS

__all__ = ["has_observatory_distortion", "kept_header", "lookup_tables", "settle_form"]

Floats = NDArray[np.float64]
Settings = Mapping[str, dict[str, Any]]

# A linear map of the tangent plane and a motion of the sphere differ by t r^2: the correction is
# fitted again about the corrected WCS until it moves that by less than this, 3e-6 mas at 1 deg.
SMALL_ARCSEC = 1e-5
# Every round reduces the difference by the size of the correction in radians: two rounds suffice.
MAX_ROUNDS = 4

# The polynomial replaces the observatory's distortion where it predicts stars that both fits held
# out better by this many standard errors of the mean difference (three: one chance in 700), and
# there are at least so many of them (fewer give no usable standard error).
HELD_OUT_LEAST, CLEARLY_BETTER_SE = 10, 3.0


def has_observatory_distortion(frame: Frame) -> bool:
    """Say whether a frame came with lookup tables, or with SIP made from an IDCTAB."""
    wcs, header = frame.wcs, frame.header
    if wcs is None or frame.cell != 1:
        return False
    if _has_tables(wcs):
        return True
    idctab = "" if header is None else str(header.get("IDCTAB", "")).strip().upper()
    return wcs.sip is not None and idctab not in ("", "N/A")


def _has_tables(wcs: WCS | None) -> bool:
    return wcs is not None and any(
        t is not None for t in (wcs.cpdis1, wcs.cpdis2, wcs.det2im1, wcs.det2im2)
    )


def settle_form(
    plates: list[Plate], form: str, settings: Settings
) -> tuple[list[Plate], str, tuple[str, ...]]:
    """Decide how the WCS is written, and fit what is kept.

    Parameters
    ----------
    plates : list of Plate
        With the polynomial fit of every chip.
    form : str
        ``auto``, ``keep``, or a form in which a polynomial is written.
    settings : mapping
        Section ``fit``.

    Returns
    -------
    plates : list of Plate
        With the fits of what is written.
    form : str
        Not ``auto``.
    notes : tuple of str
        What was decided.

    Raises
    ------
    ImageError
        If a chip has no WCS that could be kept.
    Degenerate
        If the stars do not determine the correction, and ``keep`` was asked for.
    """
    frames = [chip.frame for plate in plates for chip in plate.chips]
    theirs = all(has_observatory_distortion(frame) for frame in frames)
    if form not in ("auto", "keep"):
        return _flattened(plates, form)
    if form == "auto" and not theirs:
        return plates, "tpv", ()
    for frame in frames:
        if frame.wcs is None or frame.header is None or frame.cell != 1:
            raise ImageError(
                image=frame.name, hint="Use --form tpv or sip.",
                reason="it has no WCS that could be kept" if frame.cell == 1 else
                "its WCS is of the single pixels of the Bayer cells and is not kept",
            )
    try:
        fits = [_fitted(plate, settings) for plate in plates]
    except Degenerate as error:
        if form == "keep":
            raise
        plates, form, said = _flattened(plates, "tpv")
        return plates, form, (f"the distortion of the input WCS is not kept: {error}", *said)
    kept = [_kept(plate, *fitted) for plate, fitted in zip(plates, fits)]
    better = _gain_of_polynomial(plates, kept) if form == "auto" else None
    if better is not None:
        why = (f"the polynomial predicts {better[0]} held-out stars better than the distortion "
               f"of the input WCS, by {better[1]:.1f} standard errors, and replaces it")
        plates, form, said = _flattened(plates, "tpv")
        return plates, form, (why, *said)
    return kept, "keep", tuple(_said(found, before) for found, _, before in fits)


# --- fitting --------------------------------------------------------------------------------


def _fitted(plate: Plate, settings: Settings) -> tuple[CorrectionFit, list[WCS], list[WCS]]:
    """Return the last correction of a plate's chips, the WCS's with it, and those without it."""
    pairs = [
        make_pairs(c.sources, plate.reference, c.source_index, c.reference_index)
        for c in plate.chips
    ]
    asked = str(settings["fit"].get("geometry", "auto"))
    geometry = asked if asked in LINEAR_GEOMETRIES else "auto"
    wcses = [chip.frame.wcs for chip in plate.chips]
    at: tuple[float, float] | None = None
    for _ in range(MAX_ROUNDS):
        maps = [FitsMap(w, *(at or (0.0, 90.0))) for w in wcses]
        found = fit_correction(
            list(zip(maps, pairs)), geometry=geometry, tangent=at, options=settings["fit"]
        )
        correction = found.correction
        at, geometry = (correction.ra0_deg, correction.dec0_deg), correction.geometry
        before = wcses
        wcses = [
            correct_wcs(w, correction, chip.frame.shape).wcs
            for w, chip in zip(wcses, plate.chips)
        ]
        if _moved_arcsec(correction, before, plate.chips) < SMALL_ARCSEC:
            break
    return found, wcses, before


def _moved_arcsec(
    correction: Correction, wcses: list[WCS], chips: tuple[Chip, ...]
) -> float:
    """Return the farthest that a correction moves the corners of any chip."""
    worst = 0.0
    for wcs, chip in zip(wcses, chips):
        ny, nx = chip.frame.shape
        corners = sky_of_pixels(wcs, [0, nx - 1, 0, nx - 1], [0, 0, ny - 1, ny - 1])
        apart = separation_deg(*corners, *correction.sky(*corners))
        worst = max(worst, 3600.0 * float(np.nanmax(apart)))
    return worst


def _kept(plate: Plate, found: CorrectionFit, new: list[WCS], before: list[WCS]) -> Plate:
    """Return a plate whose chips have the corrected WCS's, and their shares of the fit."""
    at = found.correction.ra0_deg, found.correction.dec0_deg
    whole = found.fit
    q = mahalanobis2(whole.residual_mas, whole.sigma2_mas2)
    n_used = np.bincount(found.chip[whole.used], minlength=len(new))
    n_parameters = 2 * int(whole.used.sum()) - whole.dof
    chips = []
    for k, chip in enumerate(plate.chips):
        rows = found.chip == k
        used = whole.used[rows]
        # Whoever evaluates a fit's model takes any map to the sky for one.
        model: Any = FitsMap(new[k], *at)
        base: Any = FitsMap(before[k], *at)
        fit = replace(
            whole, model=model, base=base,
            residual_mas=whole.residual_mas[rows], sigma2_mas2=whole.sigma2_mas2[rows],
            leverage=whole.leverage[rows], used=used, reserved=whole.reserved[rows],
            chi2=float(q[rows][used].sum()),
            # What the fit took up is counted once, where most of its stars are.
            dof=2 * int(n_used[k]) - (n_parameters if k == int(np.argmax(n_used)) else 0),
            chi2_all=float(q[rows & (q < CHI2_OUTLIER)].sum()),
        )
        chips.append(replace(chip, fit=fit, inherited=not rows.any()))
    return replace(plate, chips=tuple(chips))


# --- choosing -------------------------------------------------------------------------------


def _gain_of_polynomial(
    plates: list[Plate], kept: list[Plate]
) -> tuple[int, float] | None:
    """Return stars and standard errors by which the polynomial is better; None where it is not."""
    gains = []
    for plate, other in zip(plates, kept):
        for chip, corrected in zip(plate.chips, other.chips):
            ref_id = plate.reference.stars["ref_id"][chip.reference_index]
            held = reserve(ref_id) & ~chip.fit.used & ~corrected.fit.used
            if chip.fit.reserved.any():  # a fit of few stars holds none out
                gains.append(_loss(corrected.fit, held) - _loss(chip.fit, held))
    gain = np.concatenate([np.zeros(0), *gains])
    if len(gain) < HELD_OUT_LEAST:
        return None
    errors = float(gain.mean() / (gain.std(ddof=1) / np.sqrt(len(gain)) + 1e-12))
    return (len(gain), errors) if errors > CLEARLY_BETTER_SE else None


def _loss(fit: Fit, rows: NDArray[np.bool_]) -> Floats:
    """Return the negative log-likelihood of stars, as Student's t with 5 degrees of freedom."""
    cov = fit.sigma2_mas2[rows]
    q = mahalanobis2(fit.residual_mas[rows], cov)
    return 0.5 * np.log(cov[:, 0] * cov[:, 1] - cov[:, 2] ** 2) + 3.5 * np.log1p(q / 5.0)


def _said(found: CorrectionFit, before: list[WCS]) -> str:
    return (f"the distortion of the input WCS is kept; CRVAL and CD are corrected "
            f"({found.correction.geometry}, {int(found.fit.used.sum())} stars, "
            f"{len(before)} chip{'s' if len(before) > 1 else ''})")


# --- what a polynomial leaves out ------------------------------------------------------------


def _flattened(plates: list[Plate], form: str) -> tuple[list[Plate], str, tuple[str, ...]]:
    """Return plates whose errors hold what a polynomial leaves out of lookup tables."""
    left: list[float] = []
    new = []
    for plate in plates:
        chips = []
        for chip in plate.chips:
            rms = _left_out_mas(chip.frame) if _has_tables(chip.frame.wcs) else 0.0
            left.append(rms)
            chips.append(replace(chip, fit=_widened(chip.fit, rms)) if rms > 0.0 else chip)
        new.append(replace(plate, chips=tuple(chips)))
    if not max(left, default=0.0) > 0.0:
        return plates, form, ()
    return new, form, (
        f"the lookup tables of the input WCS are not part of the {form.upper()} solution, which "
        f"is {max(left):.2g} mas rms off for it; --form keep keeps them",
    )


def _left_out_mas(frame: Frame) -> float:
    """Return how far the polynomial of a WCS is from it, rms per axis over the frame."""
    model, _ = model_from_wcs(frame.wcs, frame.shape)
    x, y = _grid(frame.shape)
    apart = separation_deg(*sky_of_pixels(frame.wcs, x, y), *model.pixel_to_sky(x, y))
    return float(np.sqrt(np.nanmean(apart**2) / 2.0)) * MAS_PER_DEG


def _widened(fit: Fit, rms_mas: float) -> Fit:
    """Return a fit whose WCS has one more error, the same everywhere."""
    covariance = fit.covariance.copy()
    poly = (fit.spread or fit.geometry).startswith("poly")
    for k in (0, len(covariance) // 2 if poly else 1):  # the constant terms
        covariance[k, k] += (rms_mas / MAS_PER_DEG) ** 2
    return replace(fit, covariance=covariance)


# --- writing --------------------------------------------------------------------------------


def kept_header(chip: Chip) -> tuple[Header, float]:
    """Return the cards of a chip's corrected WCS, and how far they are from it when read back.

    Returns
    -------
    header : Header
    error_mas : float
        The largest distance over the chip; NaN where the cards cannot be read.
    """
    model: Any = chip.fit.model
    assert chip.frame.header is not None
    header = corrected_cards(chip.frame.header, model.wcs)
    again, _ = read_wcs(header, hdulist=lookup_tables(model, header), shape=chip.frame.shape)
    if again is None:
        return header, float("nan")
    x, y = _grid(chip.frame.shape)
    apart = separation_deg(*sky_of_pixels(again, x, y), *model.pixel_to_sky(x, y))
    return header, float(np.nanmax(apart)) * MAS_PER_DEG


def _grid(shape: tuple[int, int]) -> tuple[Floats, Floats]:
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(-0.5, nx - 0.5, 65), np.linspace(-0.5, ny - 0.5, 65))
    return x.ravel(), y.ravel()


def lookup_tables(model: object, header: Header) -> HDUList | None:
    """Return the lookup tables of a kept WCS as the extensions that its cards name.

    None where there are none, or the WCS is not a kept one.
    """
    from astropy.io.fits import HDUList, ImageHDU, PrimaryHDU

    if not isinstance(model, FitsMap):
        return None
    wcs = model.wcs
    units = [PrimaryHDU()]
    for name, record, tables in (
        ("WCSDVARR", "DP", (wcs.cpdis1, wcs.cpdis2)),
        ("D2IMARR", "D2IM", (wcs.det2im1, wcs.det2im2)),
    ):
        for axis, table in enumerate(tables, start=1):
            if table is None:
                continue
            unit = ImageHDU(table.data, name=name, ver=int(header[f"{record}{axis}.EXTVER"]))
            for i in (0, 1):
                for key in ("CRPIX", "CRVAL", "CDELT"):
                    unit.header[f"{key}{i + 1}"] = float(getattr(table, key.lower())[i])
            units.append(unit)
    return HDUList(units) if len(units) > 1 else None
