"""The verdict of the solve door: the numbers of the fits, their headers, and their checks."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure._version import __version__
from cynosure.data.catalogs.refcat import RefCat
from cynosure.data.fits.wcsread import is_wcs_keyword, sky_of_pixels
from cynosure.data.frame import Exposure, Frame
from cynosure.data.tables import MATCHES
from cynosure.geometry.fit.chip import Chip
from cynosure.geometry.wcs import header_error_mas, model_in_file, model_to_header
from cynosure.ground.errors import ExitCode, Unverified
from cynosure.ground.numeric import rms
from cynosure.ground.settings import Settings
from cynosure.ground.sky import (
    MAS_PER_DEG,
    covariance_on_sky,
    plane_jacobian,
    project,
    separation_deg,
    sky_offset_mas,
)
from cynosure.pipelines.keep import kept_header
from cynosure.pipelines.plate import Plate
from cynosure.solutions.names import wcsname
from cynosure.solutions.quality import Measured, Verdict, coverage_4x4, judge
from cynosure.solutions.solution import Solution

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = ["conclude", "now", "steps_tried"]

Floats = NDArray[np.float64]

def steps_tried(texts: Iterable[str]) -> tuple[dict[str, str], ...]:
    """Return what was tried, as step and text, each text once.

    Examples
    --------
    >>> steps_tried(["quads: 30 of 50 agree", "quads: 30 of 50 agree"])
    ({'step': 'quads', 'text': '30 of 50 agree'},)
    """
    split = [text.partition(": ") for text in dict.fromkeys(texts)]
    return tuple({"step": step, "text": rest or step} for step, _, rest in split)


# A header that differs from the fit by more than this anywhere in the frame is not released. A
# hundredth of a pixel is the centroid error of a bright star, the most that matters.
MAX_HEADER_ERROR_PX = 0.01
# A FITS card has 68 characters for a string.
MAX_CATALOG_NAME = 60
# The corners of a frame and its inside: where two WCSs are compared, a side.
GRID_SIDE = 9


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def conclude(
    exposure: Exposure, plates: list[Plate], refcat: RefCat, settings: Settings, form: str,
    known: dict[str, Any], name: str,
) -> tuple[Solution, NDArray[np.void], dict[Any, Header], dict[Any, Header]]:
    """Judge the fits, make the headers, and collect the numbers.

    Parameters
    ----------
    exposure : Exposure
    plates : list of Plate
        One for the whole exposure, or one a chip.
    refcat : RefCat
    settings : Settings
    form : str
        ``tpv``, ``sip``, ``tan`` or ``keep``.
    known : dict
        Fields of the solution that are known already.
    name : str
        What the solution calls the image.

    Returns
    -------
    solution : Solution
    matches : structured array
        Schema ``MATCHES``.
    headers : dict
        Place in the file (HDU, or HDU and plane) to the cards of its new WCS; empty where the
        solution failed.
    kept : dict
        The same of the WCS that the image came with, where that is better and stays.

    Raises
    ------
    Unverified
        If a header, read back, is not what was fitted.
    """
    chips = [c for plate in plates for c in plate.chips]
    matches = np.concatenate([
        _match_rows(chip, plate) for plate in plates for chip in plate.chips
    ])
    numbers = _numbers(chips, matches)
    before, ratio = _before(chips, matches)
    scale = _geometry(chips[0])["scale_arcsec"]
    error = _wcs_error(chips)
    odds = min(plate.match.log_odds for plate in plates)
    measured = Measured(
        n_used=numbers["n_used"], n_reserved=numbers["n_reserved"],
        rms_mas=float(np.hypot(numbers["rms_ra_mas"], numbers["rms_dec_mas"]) / np.sqrt(2)),
        rms_reserved_mas=float(
            np.hypot(numbers["rms_reserved_ra_mas"], numbers["rms_reserved_dec_mas"]) / np.sqrt(2)
        ),
        scale_arcsec=scale, log_odds=odds, chi2_dof=numbers["chi2_dof"],
        coverage=_coverage(chips), before_ratio=ratio,
        wcs_error_mas=error["corner"],
    )
    verdict = judge(measured, **settings["quality"])
    old_name = _old_name(exposure.frames[0])
    new_name = wcsname(old_name, "IMG", refcat.name)
    form, said = _form_of_cubes(form, chips)
    known = {**known, "notes": (*known["notes"], *said)}
    facts = _fit_cards(numbers, verdict, plates[0].epoch_yr, refcat.name)
    headers, entries = _headers(chips, form, new_name, facts, name)
    stays = any(c.name == "before" and not c.passed for c in verdict.checks)
    if stays:
        known = {**known, "notes": (*known["notes"], KEPT)}
    if verdict.status == "failed":
        headers = {}
    solution = Solution(
        image=name, sha256=exposure.sha256, software=f"cynosure {__version__}", created=now(),
        settings=settings.resolved(), status=verdict.status, reason="; ".join(verdict.reasons),
        tried=steps_tried(plates[0].match.evidence.get("tried", ())),
        quality=verdict.quality, wcsname=new_name, epoch_yr=plates[0].epoch_yr,
        n_reference=sum(len(p.reference) for p in plates), log_odds=odds,
        form=form, order=max(c.fit.order for c in chips), chips=tuple(entries),
        wcs_error_mas=error, checks=tuple(c.to_dict() for c in verdict.checks),
        clip_rounds=max(len(c.fit.history) for c in chips),
        exit_code=int(ExitCode.OK if verdict.status == "solved" else
                      ExitCode.NOT_VERIFIED if verdict.status == "compromised" else
                      ExitCode.NO_SOLUTION),
        **numbers, **before, **_geometry(chips[0]),  # type: ignore[arg-type]
        **{**known, "notes": known["notes"] + tuple(n for p in plates for n in p.notes)},
    )
    return solution, matches, headers, _old_cards(chips) if headers and stays else {}


KEPT = "the WCS that the image came with stays in use; the new one is beside it as an alternate"


def _old_cards(chips: list[Chip]) -> dict[Any, Header]:
    """Return the cards of the WCS that each chip came with."""
    kept = {}
    for chip in chips:
        if chip.frame.wcs is not None and chip.frame.header is not None:
            kept[chip.frame.place] = chip.frame.header.copy()
            for key in [k for k in kept[chip.frame.place] if not is_wcs_keyword(k)]:
                kept[chip.frame.place].remove(key, ignore_missing=True, remove_all=True)
    return kept


def _match_rows(chip: Chip, plate: Plate) -> NDArray[np.void]:
    """Return the rows of the match table of one chip."""
    fit, reference = chip.fit, plate.reference
    i, j = chip.source_index, chip.reference_index
    sources, stars = chip.sources[i], reference.stars[j]
    ra, dec = fit.model.pixel_to_sky(sources["x"], sources["y"])
    rows = MATCHES.empty(len(i))
    for name in ("x", "y", "x_err", "y_err", "flux_e", "snr"):
        rows[name] = sources[name]
    rows["chip"], rows["ra_deg"], rows["dec_deg"] = chip.frame.chip, ra, dec
    for name in ("ref_id", "mag", "color"):
        rows[name if name == "ref_id" else f"ref_{name}"] = stars[name]
    rows["ref_ra_deg"], rows["ref_dec_deg"] = reference.ra_deg[j], reference.dec_deg[j]
    at = rows["ref_ra_deg"], rows["ref_dec_deg"]
    rows["dra_mas"], rows["ddec_mas"] = sky_offset_mas(ra, dec, *at)
    tangent = fit.model.ra0_deg, fit.model.dec0_deg
    sigma2 = covariance_on_sky(fit.sigma2_mas2, *at, *tangent)
    rows["sigma_ra_mas"], rows["sigma_dec_mas"] = np.sqrt(sigma2[:, :2]).T
    rows["used"], rows["reserved"] = fit.used, fit.reserved
    return rows


def _numbers(chips: list[Chip], matches: NDArray[np.void]) -> dict[str, Any]:
    used, held = matches["used"], matches["reserved"]
    chi2, dof = sum(c.fit.chi2 for c in chips), sum(c.fit.dof for c in chips)
    best = max(chips, key=lambda c: int(c.fit.used.sum()))
    n_reserved = int(held.sum())
    return {
        "n_matched": len(matches), "n_used": int(used.sum()), "n_reserved": n_reserved,
        "n_clipped": int(len(matches) - used.sum() - n_reserved),
        "rms_ra_mas": rms(matches["dra_mas"][used]), "rms_dec_mas": rms(matches["ddec_mas"][used]),
        "rms_reserved_ra_mas": rms(matches["dra_mas"][held]),
        "rms_reserved_dec_mas": rms(matches["ddec_mas"][held]),
        "sigma0_mas": best.fit.errors.sigma0_mas, "a": best.fit.errors.a,
        "chi2": chi2, "dof": float(dof), "chi2_dof": chi2 / dof if dof > 0 else float("nan"),
        "chi2_all": sum(c.fit.chi2_all for c in chips),
    }


def _before(chips: list[Chip], matches: NDArray[np.void]) -> tuple[dict[str, float], float]:
    """Score the WCS that the image came with on the same stars.

    Returns
    -------
    dict
        The solution's fields of that score.
    ratio : float
        How many times worse the fit predicts its stars than the old WCS does.
    """
    offsets, new, old, centre = [], [], [], float("nan")
    for k, chip in enumerate(chips):
        if chip.frame.wcs is None:
            continue
        # A chip's rows of the table stand in the order of its fit.
        mine = matches[matches["chip"] == chip.frame.chip]
        offset = np.stack(_offsets_of(chip.frame, mine), axis=1)
        offsets.append(offset[mine["used"]])
        rows = (mine["used"] | mine["reserved"]) & np.isfinite(offset).all(axis=1)
        sigma = np.stack([mine["sigma_ra_mas"], mine["sigma_dec_mas"]], axis=1)[rows]
        ours = _unseen_offsets(chip, mine)
        new.append((ours[rows] / sigma).ravel())
        old.append((offset[rows] / sigma).ravel())
        if k == 0:
            ny, nx = chip.frame.shape
            x, y = [(nx - 1) / 2], [(ny - 1) / 2]
            was, now = sky_of_pixels(chip.frame.wcs, x, y), chip.fit.model.pixel_to_sky(x, y)
            centre = 3600.0 * float(separation_deg(was[0], was[1], *now)[0])
    every = np.concatenate(offsets) if offsets else np.zeros((0, 2))
    ratio = float("nan")
    if new and len(np.concatenate(new)):
        # One gross outlier, held out, is not to decide; beyond the cut all are equally wrong.
        pulls = [np.clip(np.concatenate(v), -WORST_PULL, WORST_PULL) for v in (new, old)]
        ratio = rms(pulls[0]) / max(rms(pulls[1]), 1e-9)
    if _agree(chips):
        ratio = min(ratio, 1.0)
    return {"before_offset_arcsec": centre, "before_rms_mas": rms(every)}, ratio


def _unseen_offsets(chip: Chip, rows: NDArray[np.void]) -> Floats:
    """Return the leave-one-out residuals (n, 2) along ra and dec, mas.

    The residual of a star under the fit of all others is its own over 1 - leverage (Cook 1977).
    """
    fit = chip.fit
    unseen = fit.residual_mas / np.fmax(1.0 - fit.leverage, MIN_FREEDOM)
    tangent = fit.model.ra0_deg, fit.model.dec0_deg
    turn = np.linalg.inv(plane_jacobian(rows["ref_ra_deg"], rows["ref_dec_deg"], *tangent))
    return np.asarray(np.einsum("nij,nj->ni", turn, unseen), np.float64)


# Pulls are clipped at this many sigma: no Gaussian error reaches it, so what does is an outlier,
# of which the size says nothing.
WORST_PULL = 10.0

# Two WCSs are the same where they differ by less than this part of the predicted error (rms over
# the frame). Fits of one image to two independent samples of stars differ by sqrt(2) of it.
SAME_ERRORS = 0.5
# The smallest error of a WCS that pulls are formed with, mas: the rounding of positions is 1e-7.
MIN_WCS_ERROR_MAS = 1e-3
# A star that determines the fit alone has the leverage 1, and no residual to be scaled.
MIN_FREEDOM = 0.05


def _agree(chips: list[Chip]) -> bool:
    """Say whether the old WCS is the new one, to within a part of the latter's error.

    It is where an image is solved again. Then which of the two predicts its stars better says
    nothing, because the old one was fitted to the same stars.
    """
    pulls = []
    for chip in chips:
        if chip.frame.wcs is None:
            return False
        ny, nx = chip.frame.shape
        grid = np.meshgrid(np.linspace(0, nx - 1, GRID_SIDE), np.linspace(0, ny - 1, GRID_SIDE))
        x, y = (v.ravel() for v in grid)
        old, new = sky_of_pixels(chip.frame.wcs, x, y), chip.fit.model.pixel_to_sky(x, y)
        offset = np.stack(sky_offset_mas(*new, *old), axis=1)
        pulls.append((offset / np.fmax(chip.fit.wcs_error_mas(x, y), MIN_WCS_ERROR_MAS)).ravel())
    return bool(rms(np.concatenate(pulls)) < SAME_ERRORS)


def _offsets_of(frame: Frame, rows: NDArray[np.void]) -> tuple[Floats, Floats]:
    """Return old position minus reference of matched stars along ra (with cos dec) and dec, mas."""
    ra, dec = sky_of_pixels(frame.wcs, rows["x"], rows["y"])
    return sky_offset_mas(ra, dec, rows["ref_ra_deg"], rows["ref_dec_deg"])


def _coverage(chips: list[Chip]) -> float:
    """Return the share of the cells of a 4 x 4 grid over the frame or focal plane with a star."""
    used = [c.sources[c.source_index[c.fit.used]] for c in chips]
    if len(chips) == 1:
        ny, nx = chips[0].frame.shape
        return coverage_4x4(used[0]["x"], used[0]["y"], nx, ny)
    grids = [np.meshgrid(*(np.linspace(0, n - 1, 16) for n in c.frame.shape[::-1])) for c in chips]
    there = [_on_plane(c, chips[0], *(v.ravel() for v in g)) for c, g in zip(chips, grids)]
    stars = [_on_plane(c, chips[0], rows["x"], rows["y"]) for c, rows in zip(chips, used)]
    every = np.concatenate(there)
    low, size = every.min(axis=0), np.maximum(np.ptp(every, axis=0), 1e-12) / 4.0
    occupied, possible = (
        {tuple(c) for c in np.clip((np.concatenate(v) - low) / size, 0, 3.999).astype(int).tolist()}
        for v in (stars, there)
    )
    return len(occupied & possible) / len(possible)


def _on_plane(chip: Chip, first: Chip, x: Floats, y: Floats) -> Floats:
    """Return pixels of a chip on the tangent plane at the centre of the first one, deg, (n, 2)."""
    ny, nx = first.frame.shape
    ra0, dec0 = (float(v) for v in first.fit.model.pixel_to_sky((nx - 1) / 2, (ny - 1) / 2))
    return np.stack(project(*chip.fit.model.pixel_to_sky(x, y), ra0, dec0), axis=1)


def _wcs_error(chips: list[Chip]) -> dict[str, float]:
    """Return the predicted error of the WCS at the centre and at the worst corner of any chip."""
    centre, worst = [], []
    for chip in chips:
        ny, nx = chip.frame.shape
        x = np.array([(nx - 1) / 2, 0, nx - 1, 0, nx - 1.0])
        y = np.array([(ny - 1) / 2, 0, 0, ny - 1, ny - 1.0])
        error = np.sqrt(np.mean(chip.fit.wcs_error_mas(x, y) ** 2, axis=1))
        centre.append(float(error[0]))
        worst.append(float(error[1:].max()))
    return {"center": max(centre), "corner": max(worst)}


def _geometry(chip: Chip) -> dict[str, Any]:
    ny, nx = chip.frame.shape
    x, y = (nx - 1) / 2, (ny - 1) / 2
    model = chip.fit.model
    ra, dec = (float(v) for v in model.pixel_to_sky(x, y))
    xi, eta = project(
        *model.pixel_to_sky([x, x + 0.5, x - 0.5, x, x], [y, y, y, y + 0.5, y - 0.5]), ra, dec
    )
    cd = np.array([[xi[1] - xi[2], xi[3] - xi[4]], [eta[1] - eta[2], eta[3] - eta[4]]])
    determinant = np.linalg.det(cd)
    edges = model.pixel_to_sky(
        [-0.5, nx - 0.5, x, x], [y, y, -0.5, ny - 0.5]
    )
    side = [float(separation_deg(edges[0][a], edges[1][a], edges[0][b], edges[1][b]))
            for a, b in ((0, 1), (2, 3))]
    return {
        "center_ra_deg": ra, "center_dec_deg": dec,
        "scale_arcsec": float(np.sqrt(abs(determinant)) * 3600.0),
        "rotation_deg": float(np.degrees(np.arctan2(cd[0, 1], cd[1, 1])) % 360.0),
        "parity": 1 if determinant < 0 else -1, "width_deg": side[0], "height_deg": side[1],
    }


def _old_name(frame: Frame) -> str:
    return str(frame.header.get("WCSNAME", "")) if frame.header is not None else ""


def _form_of_cubes(form: str, chips: list[Chip]) -> tuple[str, tuple[str, ...]]:
    """Return the form that is written, and why it is not the one that was asked for.

    SIP of an array with more than two axes is read by astropy only where the caller says
    ``naxis=2``; TPV is read in all axes.
    """
    axes = [c.frame.header.get("NAXIS", 2) for c in chips if c.frame.header is not None]
    if form != "sip" or max(axes, default=2) <= 2:
        return form, ()
    return "tpv", ("written as TPV: SIP cannot be read in an array of more than two axes",)


def _headers(
    chips: list[Chip], form: str, name: str, facts: FitCards, image: str
) -> tuple[dict[Any, Header], list[dict[str, Any]]]:
    """Make the cards of each chip, and read them back before they are released."""
    headers, entries = {}, []
    for chip in chips:
        # Where Bayer cells were made pixels, the header speaks of the pixels of the file.
        cell = chip.frame.cell
        shape = (cell * chip.frame.shape[0], cell * chip.frame.shape[1])
        if form == "keep":
            header, error = kept_header(chip)
        else:
            model = model_in_file(chip.fit.model, cell)
            header = model_to_header(model, form, shape=shape)  # type: ignore[arg-type]
            error = header_error_mas(header, model, shape)
        limit = MAX_HEADER_ERROR_PX * 1000.0 * _geometry(chip)["scale_arcsec"]
        if form != "tan" and not error < limit:
            raise Unverified(
                image=image, hint="Try the other --form, or a lower --order.",
                reason=f"the {form.upper()} header differs from the fit by {error:.3g} mas "
                f"({limit:.3g} allowed)",
            )
        header["WCSNAME"] = (name, "name of this solution")
        cards = {k: header[k] for k in header if k}
        header.update({key: (value, comment) for key, value, comment in facts if value is not None})
        headers[chip.frame.place] = header
        entries.append({
            "name": chip.frame.name, "hdu": chip.frame.hdu, "shape": list(shape), "cards": cards,
            "header_error_mas": round(error, 6), "fit": chip.fit.geometry,
            "n_used": int(chip.fit.used.sum()), "inherited": chip.inherited,
        })
    return headers, entries


# Keyword, value (None where it is not known) and comment.
FitCards = tuple[tuple[str, Any, str], ...]


def _fit_cards(
    numbers: dict[str, Any], verdict: Verdict, epoch_yr: float, catalog: str
) -> FitCards:
    """Return the cards that describe the fit, the same for all chips."""
    return (
        ("NMATCHES", numbers["n_used"], "stars of the fit"),
        ("RMS_RA", round(numbers["rms_ra_mas"], 4), "[mas] rms about zero, with cos dec"),
        ("RMS_DEC", round(numbers["rms_dec_mas"], 4), "[mas] rms about zero"),
        ("CRDER1", numbers["rms_ra_mas"] / MAS_PER_DEG, "[deg] random error"),
        ("CRDER2", numbers["rms_dec_mas"] / MAS_PER_DEG, "[deg] random error"),
        ("FITQUAL", verdict.quality, "1 best ... 5 failed"),
        ("ASTCAT", catalog[:MAX_CATALOG_NAME], "reference catalogue"),
        ("ASTEPOCH", _finite(epoch_yr), "[yr] epoch of the reference stars"),
        ("ASTSOFT", f"cynosure {__version__}", "software of this solution"),
        ("AST_NRSV", numbers["n_reserved"], "stars held out of the fit"),
        ("AST_RSVX", _finite(numbers["rms_reserved_ra_mas"]), "[mas] rms of those, ra"),
        ("AST_RSVY", _finite(numbers["rms_reserved_dec_mas"]), "[mas] rms of those, dec"),
        ("AST_CHI2", _finite(numbers["chi2_dof"]), "chi^2 per degree of freedom"),
        ("AST_SIG0", _finite(numbers["sigma0_mas"]), "[mas] error beyond source and catalogue"),
        ("AST_AFAC", _finite(numbers["a"]), "factor on the source errors"),
    )


def _finite(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None
