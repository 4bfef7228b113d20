"""The solve door: an image goes in, the same image with a verified WCS comes out.

:func:`solve` does one image in memory and returns an :class:`Outcome`; :func:`run_solve` does many,
writes the files, and leaves a manifest. What happens in between, in order:

1. the frames are read (:mod:`cynosure.data.fitsio`), and their sources measured
   (:mod:`cynosure.pipelines.extract`);
2. the stars are recognised and the WCS is fitted (:mod:`cynosure.pipelines.plate`);
3. the WCS that the image came with is scored on the same stars, and the verdict is spoken
   (:mod:`cynosure.solutions.quality`);
4. the WCS is written as a header, read again with wcslib, and compared with the fit over the whole
   frame before any file is released.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from cynosure._version import __version__
from cynosure.data.fitsio import read
from cynosure.data.frame import Exposure, Frame, Pointing
from cynosure.data.refcat import RefCat, open_refcat
from cynosure.data.tables import MATCHES, SOURCES
from cynosure.data.wcsread import sky_of_pixels
from cynosure.geometry.wcs import header_error_mas, model_to_header
from cynosure.ground.errors import (
    CatalogMissing,
    CynosureError,
    ExitCode,
    SettingError,
    Unverified,
)
from cynosure.ground.numeric import rms
from cynosure.ground.settings import Range, Settings, Unit
from cynosure.ground.sky import MAS_PER_DEG, project, separation_deg
from cynosure.pipelines.extract import Extraction, extract_sources
from cynosure.pipelines.plate import Chip, Plate, solve_plate
from cynosure.pipelines.run import Run, default_settings, run_images
from cynosure.solutions.names import wcsname
from cynosure.solutions.quality import Verdict, coverage_4x4, judge
from cynosure.solutions.solution import Solution

if TYPE_CHECKING:
    from astropy.io.fits import Header

    from cynosure.pipelines.workers import Watch

__all__ = ["Outcome", "run_solve", "solve", "write"]

Floats = NDArray[np.float64]
Log = Callable[[str], None]

# A header that differs from the fit by more than this anywhere in the frame is not released.
MAX_HEADER_ERROR_PX = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What came of one image.

    Attributes
    ----------
    solution : Solution
    matches : structured array
        Schema ``MATCHES``.
    sources : structured array
        Schema ``SOURCES``.
    headers : dict
        HDU number to the cards of the new WCS.
    report : dict
        Arrays and rows that the report draws.
    """

    solution: Solution
    matches: NDArray[np.void]
    sources: NDArray[np.void]
    headers: dict[int, Header] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.solution)

    def _repr_html_(self) -> str:
        return self.solution._repr_html_()


def solve(
    image: Any,
    refcat: RefCat | str | Path,
    *,
    settings: Settings | None = None,
    center: tuple[float, float] | None = None,
    radius_deg: Annotated[float | None, Unit("deg"), Range(0.0001, 180)] = None,
    scale_arcsec: Annotated[float | None, Unit("arcsec"), Range(0.001, 3600)] = None,
    scale_error: Annotated[float | None, Range(0.0001, 10)] = None,
    blind: bool = False,
    index: Any = None,
    form: str = "tpv",
    order: int | str = "auto",
    epoch_yr: float | None = None,
    chips: str = "together",
    instrument: str | None = None,
    threads: int = 1,
    log: Log = lambda text: None,
) -> Outcome:
    """Put one image on the sky of a reference catalogue.

    Parameters
    ----------
    image : path, Exposure, HDUList, (data, header) or CCDData
    refcat : RefCat, path or URL
        The reference catalogue.
    settings : Settings, optional
        From :func:`cynosure.pipelines.run.default_settings`.
    center : tuple of float, optional
        Right ascension and declination (deg) of the image's centre, instead of the header's.
    radius_deg : float, optional
        How far the centre may be off.
    scale_arcsec : float, optional
        Size of a pixel, instead of the header's.
    scale_error : float, optional
        Fraction by which the scale may be wrong.
    blind : bool
        Do not use any pointing; needs `index`.
    index : path or QuadIndex, optional
        Blind index, searched also where the pointing leads nowhere.
    form : str
        ``tpv``, ``sip`` or ``tan``: how the WCS is written.
    order : int or str
        Degree of the distortion, or ``auto``.
    epoch_yr : float, optional
        Julian year of the image where its header has no date.
    chips : str
        ``together`` as one focal plane, or ``apart``.
    instrument : str, optional
        Name or file of the instrument.
    threads : int
        Threads that share the work on the pixels; the result does not depend on it.
    log : callable
        Told each step as it begins.

    Returns
    -------
    Outcome
        Also of an image that failed: then its solution says why and what was tried.

    Raises
    ------
    SettingError
        If an argument cannot be used.

    Examples
    --------
    >>> outcome = solve("m81.fits", "gaia/")  # doctest: +SKIP
    >>> print(outcome)  # doctest: +SKIP
    """
    start = time.perf_counter()
    settings = _with_arguments(settings or default_settings(), form, order)
    name = _name_of(image)
    exposure: Exposure | None = None
    try:
        log("reading")
        catalog = refcat if isinstance(refcat, RefCat) else open_refcat(refcat)
        exposure = image if isinstance(image, Exposure) else read(
            image, instrument=instrument, epoch_yr=epoch_yr
        )
        if epoch_yr is not None:
            frames = tuple(f.replaced(epoch_yr=epoch_yr) for f in exposure.frames)
            exposure = dataclasses.replace(exposure, frames=frames)
        pointing = _pointing(exposure, center, radius_deg, scale_arcsec, scale_error, blind)
        quads = _open_index(index, blind, name)
        seconds = {"read": time.perf_counter() - start}
        outcome = _solve_exposure(
            exposure, catalog, pointing, quads, settings, form, chips, threads, seconds, log, name
        )
    except CynosureError as error:
        if isinstance(error, SettingError):
            raise
        outcome = failure(name, error, settings, exposure)
    total = {**outcome.solution.seconds, "total": time.perf_counter() - start}
    return dataclasses.replace(outcome, solution=outcome.solution.replaced(seconds=_rounded(total)))


def write(outcome: Outcome, out: str | Path, *, source: str | Path | None = None,
          header_only: bool = False, overwrite: bool = False) -> list[Path]:
    """Write the files of an outcome: image or header, solution, match table.

    Parameters
    ----------
    outcome : Outcome
    out : path
        A folder; it is made.
    source : path, optional
        The image, where it is not what the outcome names.
    header_only : bool
        Write ``NAME.wcs.fits`` without pixels.
    overwrite : bool
        Whether files may be there already.

    Returns
    -------
    list of Path
        What was written.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files = _write_files(
        outcome, Path(source or outcome.solution.image), folder, header_only, False, overwrite
    )
    return [folder / f for f in files]


# ------------------------------------------------------------------------------------ arguments
def _with_arguments(settings: Settings, form: str, order: int | str) -> Settings:
    if form not in ("tpv", "sip", "tan"):
        raise SettingError(
            "form {form!r}: one of tpv, sip, tan is expected", form=form,
            hint="TPV is read by SWarp, SCAMP and astropy; SIP by astropy, DS9 and astrometry.net.",
        )
    if form == "tan":
        order = 1
    if order == "auto":
        return settings
    if not isinstance(order, int) or not 1 <= order <= 7:
        raise SettingError("order {order!r}: 1 to 7, or auto, is expected", order=order)
    changes = {"form": f"poly{order}", "max_order": order}
    return settings.updated({"fit": changes}, f"--order {order}")


def _name_of(image: Any) -> str:
    if isinstance(image, Exposure):
        return Path(image.path).name or "image"
    return Path(image).name if isinstance(image, (str, Path)) else "image"


def _pointing(
    exposure: Exposure, center: tuple[float, float] | None, radius_deg: float | None,
    scale_arcsec: float | None, scale_error: float | None, blind: bool,
) -> Pointing:
    """Return the pointing of header and instrument, with what the caller knows better."""
    known = exposure.pointing
    changes: dict[str, Any] = {}
    if blind:
        changes.update(ra_deg=None, dec_deg=None, radius_deg=None)
    if center is not None:
        changes.update(ra_deg=center[0] % 360.0, dec_deg=center[1])
    if radius_deg is not None:
        changes["radius_deg"] = radius_deg
    if scale_arcsec is not None:
        changes.update(scale_arcsec=scale_arcsec, scale_error=0.05)
    if scale_error is not None:
        changes["scale_error"] = scale_error
    return dataclasses.replace(known, **changes)


def _open_index(index: Any, blind: bool, name: str) -> Any:
    if index is None:
        if blind:
            raise CatalogMissing(
                "{image}: a blind search needs an index", image=name,
                hint="Build one with `cynosure index build REFCAT --out INDEX` and give --index.",
            )
        return None
    if isinstance(index, (str, Path)):
        from cynosure.geometry.quads import open_index

        return open_index(index)
    return index


# -------------------------------------------------------------------------------- one exposure
def _solve_exposure(
    exposure: Exposure, refcat: RefCat, pointing: Pointing, quads: Any, settings: Settings,
    form: str, chips: str, threads: int, seconds: dict[str, float], log: Log, name: str,
) -> Outcome:
    parts: list[Extraction] = []
    for frame in exposure.frames:
        prefix = f"{frame.name}: " if len(exposure.frames) > 1 else ""
        say = (lambda text, p=prefix: log(p + text))
        parts.append(extract_sources(frame, settings, threads=threads, log=say))
        for step, value in parts[-1].seconds.items():
            seconds[step] = seconds.get(step, 0.0) + value
    sources = np.concatenate([p.sources for p in parts]) if parts else SOURCES.empty()
    notes = list(exposure.notes) + [n for p in parts for n in p.notes] + list(refcat.notes)
    lap = time.perf_counter()
    epoch = next((f.epoch_yr for f in exposure.frames if f.epoch_yr is not None), None)
    if epoch is None:
        notes.append(
            "the image has no date: the reference stars are where their catalogue has them, with "
            "errors that cover 10 years of motion; --epoch YEAR mends that"
        )
    known = {"n_sources": len(sources), "catalog": refcat.name, "notes": tuple(notes)}
    groups = [parts] if chips == "together" or len(parts) == 1 else [[p] for p in parts]
    plates = []
    try:
        for group in groups:
            plates.append(solve_plate(
                [p.frame for p in group], [p.sources for p in group], refcat, pointing, settings,
                epoch_yr=epoch, blind=quads, together=len(group) > 1, name=name, log=log,
            ))
    except CynosureError as error:
        seconds["match"] = time.perf_counter() - lap
        outcome = failure(name, error, settings, exposure)
        solution = outcome.solution.replaced(**known, seconds=_rounded(seconds))
        return dataclasses.replace(
            outcome, solution=solution, sources=sources, report=_report(parts, [], None)
        )
    seconds["match and fit"] = time.perf_counter() - lap
    lap = time.perf_counter()
    log("verdict")
    outcome = _conclude(exposure, parts, plates, refcat, settings, form, known, name)
    seconds["verify"] = time.perf_counter() - lap
    return dataclasses.replace(
        outcome, solution=outcome.solution.replaced(seconds=_rounded(seconds)), sources=sources
    )


def failure(
    name: str, error: CynosureError, settings: Settings, exposure: Exposure | None = None
) -> Outcome:
    """Return the outcome of an image that could not be solved."""
    tried = error.facts.get("tried", ())
    solution = Solution.from_error(
        name, error, software=f"cynosure {__version__}", created=_now(),
        settings=settings.resolved(),
        tried=tuple({"step": t.split(":")[0], "text": t} for t in tried),
        sha256=exposure.sha256 if exposure is not None else "",
        notes=exposure.notes if exposure is not None else (),
    )
    return Outcome(solution, MATCHES.empty(), SOURCES.empty())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {k: round(v, 4) for k, v in seconds.items()}


# --------------------------------------------------------------------------------- the verdict
def _conclude(
    exposure: Exposure, parts: list[Extraction], plates: list[Plate], refcat: RefCat,
    settings: Settings, form: str, known: dict[str, Any], name: str,
) -> Outcome:
    """Judge the fits, make the headers, and collect the numbers."""
    chips = [c for plate in plates for c in plate.chips]
    matches = np.concatenate([
        _match_rows(chip, plate) for plate in plates for chip in plate.chips
    ])
    numbers = _numbers(chips, matches)
    before = _before(chips, matches)
    scale = _geometry(chips[0])["scale_arcsec"]
    error = _wcs_error(chips)
    verdict = judge(
        n_used=numbers["n_used"], n_reserved=numbers["n_reserved"],
        rms_mas=float(np.hypot(numbers["rms_ra_mas"], numbers["rms_dec_mas"]) / np.sqrt(2)),
        rms_reserved_mas=float(
            np.hypot(numbers["rms_reserved_ra_mas"], numbers["rms_reserved_dec_mas"]) / np.sqrt(2)
        ),
        scale_arcsec=scale, log_odds=plates[0].match.log_odds, chi2_dof=numbers["chi2_dof"],
        coverage=_coverage(chips), before_rms_mas=before["before_rms_mas"],
        wcs_error_mas=error["corner"], **settings["quality"],
    )
    old_name = _old_name(exposure.frames[0])
    new_name = wcsname(old_name, "IMG", refcat.name)
    headers, entries = _headers(chips, form, new_name, numbers, verdict, plates[0], refcat, name)
    solution = Solution(
        image=name, sha256=exposure.sha256, software=f"cynosure {__version__}", created=_now(),
        settings=settings.resolved(), status=verdict.status, reason="; ".join(verdict.reasons),
        tried=tuple(
            {"step": t.split(":")[0], "text": t} for t in plates[0].match.evidence.get("tried", ())
        ),
        quality=verdict.quality, wcsname=new_name, epoch_yr=plates[0].epoch_yr,
        n_reference=sum(len(p.reference) for p in plates), log_odds=plates[0].match.log_odds,
        form=form, order=max(c.fit.order for c in chips), chips=tuple(entries),
        wcs_error_mas=error, checks=tuple(c.to_dict() for c in verdict.checks),
        clip_rounds=max(len(c.fit.history) for c in chips),
        exit_code=int(ExitCode.OK if verdict.status == "solved" else
                      ExitCode.NOT_VERIFIED if verdict.status == "compromised" else
                      ExitCode.NO_SOLUTION),
        **numbers, **before, **_geometry(chips[0]),
        **{**known, "notes": known["notes"] + tuple(n for p in plates for n in p.notes)},
    )
    return Outcome(solution, matches, SOURCES.empty(), headers, _report(parts, plates, solution))


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
    rows["ref_id"], rows["ref_mag"], rows["ref_color"] = stars["ref_id"], stars["mag"], stars["color"]
    rows["ref_ra_deg"], rows["ref_dec_deg"] = reference.ra_deg[j], reference.dec_deg[j]
    rows["dra_mas"], rows["ddec_mas"] = _sky_offset(ra, dec, rows["ref_ra_deg"], rows["ref_dec_deg"])
    rows["sigma_ra_mas"], rows["sigma_dec_mas"] = np.sqrt(fit.sigma2_mas2[:, :2]).T
    rows["used"], rows["reserved"] = fit.used, fit.reserved
    return rows


def _sky_offset(ra: Floats, dec: Floats, ref_ra: Floats, ref_dec: Floats) -> tuple[Floats, Floats]:
    """Return position minus reference along ra (with cos dec) and dec, mas."""
    dra = (ra - ref_ra + 180.0) % 360.0 - 180.0
    return dra * np.cos(np.radians(ref_dec)) * MAS_PER_DEG, (dec - ref_dec) * MAS_PER_DEG


def _numbers(chips: list[Chip], matches: NDArray[np.void]) -> dict[str, Any]:
    used, held = matches["used"], matches["reserved"]
    # What the error model calls an outlier is none of the fit's business; reserved stars are
    # judged by the same rule as the others.
    pull2 = (matches["dra_mas"] / matches["sigma_ra_mas"]) ** 2
    pull2 += (matches["ddec_mas"] / matches["sigma_dec_mas"]) ** 2
    held = held & (pull2 < 4.3**2)
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
    }


def _before(chips: list[Chip], matches: NDArray[np.void]) -> dict[str, float]:
    """Score the WCS that the image came with on the same stars."""
    offsets, centre = [], float("nan")
    for k, chip in enumerate(chips):
        if chip.frame.wcs is None:
            continue
        rows = matches[(matches["chip"] == chip.frame.chip) & matches["used"]]
        ra, dec = sky_of_pixels(chip.frame.wcs, rows["x"], rows["y"])
        offsets.append(np.stack(_sky_offset(ra, dec, rows["ref_ra_deg"], rows["ref_dec_deg"])))
        if k == 0:
            ny, nx = chip.frame.shape
            x, y = [(nx - 1) / 2], [(ny - 1) / 2]
            old, new = sky_of_pixels(chip.frame.wcs, x, y), chip.fit.model.pixel_to_sky(x, y)
            centre = 3600.0 * float(separation_deg(old[0], old[1], *new)[0])
    every = np.concatenate(offsets, axis=1) if offsets else np.zeros((2, 0))
    return {"before_offset_arcsec": centre, "before_rms_mas": rms(every)}


def _coverage(chips: list[Chip]) -> float:
    values = [
        coverage_4x4(c.sources["x"][c.source_index[c.fit.used]],
                     c.sources["y"][c.source_index[c.fit.used]], c.frame.shape[1], c.frame.shape[0])
        for c in chips
    ]
    return float(np.mean(values))


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


def _headers(
    chips: list[Chip], form: str, name: str, numbers: dict[str, Any], verdict: Verdict,
    plate: Plate, refcat: RefCat, image: str,
) -> tuple[dict[int, Header], list[dict[str, Any]]]:
    """Make the cards of each chip, and read them back before they are released."""
    headers, entries = {}, []
    for chip in chips:
        shape = chip.frame.shape
        header = model_to_header(chip.fit.model, form, shape=shape)  # type: ignore[arg-type]
        error = header_error_mas(header, chip.fit.model, shape)
        limit = MAX_HEADER_ERROR_PX * 1000.0 * _geometry(chip)["scale_arcsec"]
        if form != "tan" and not error < limit:
            raise Unverified(
                image=image, reason=f"the {form.upper()} header differs from the fit by {error:.3g} mas "
                f"({limit:.3g} allowed)", hint="Try the other --form, or a lower --order.",
            )
        header["WCSNAME"] = (name, "name of this solution")
        cards = {k: header[k] for k in header if k}
        for key, value, comment in (
            ("NMATCHES", numbers["n_used"], "stars of the fit"),
            ("RMS_RA", round(numbers["rms_ra_mas"], 4), "[mas] rms about zero, with cos dec"),
            ("RMS_DEC", round(numbers["rms_dec_mas"], 4), "[mas] rms about zero"),
            ("CRDER1", numbers["rms_ra_mas"] / MAS_PER_DEG, "[deg] random error"),
            ("CRDER2", numbers["rms_dec_mas"] / MAS_PER_DEG, "[deg] random error"),
            ("FITQUAL", verdict.quality, "1 best ... 5 failed"),
            ("ASTCAT", refcat.name[:60], "reference catalogue"),
            ("ASTEPOCH", round(plate.epoch_yr, 6), "[yr] epoch of the reference stars"),
            ("ASTSOFT", f"cynosure {__version__}", "software of this solution"),
            ("AST_NRSV", numbers["n_reserved"], "stars held out of the fit"),
            ("AST_RSVX", _finite(numbers["rms_reserved_ra_mas"]), "[mas] rms of those, ra"),
            ("AST_RSVY", _finite(numbers["rms_reserved_dec_mas"]), "[mas] rms of those, dec"),
            ("AST_CHI2", _finite(numbers["chi2_dof"]), "chi^2 per degree of freedom"),
            ("AST_SIG0", _finite(numbers["sigma0_mas"]), "[mas] error beyond source and catalogue"),
            ("AST_AFAC", _finite(numbers["a"]), "factor on the source errors"),
        ):
            if value is not None:
                header[key] = (value, comment)
        headers[chip.frame.hdu] = header
        entries.append({
            "name": chip.frame.name, "hdu": chip.frame.hdu, "shape": list(shape), "cards": cards,
            "header_error_mas": round(error, 6), "fit": chip.fit.form,
            "n_used": int(chip.fit.used.sum()), "inherited": chip.inherited,
        })
    return headers, entries


def _finite(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None


# ---------------------------------------------------------------------------- for the report
THUMBNAIL_PX = 720


def _report(
    parts: list[Extraction], plates: list[Plate], solution: Solution | None
) -> dict[str, Any]:
    """Collect what the report draws beyond the tables, for the first chip."""
    if not parts:
        return {}
    part = parts[0]
    frame = part.frame
    extras: dict[str, Any] = {
        "shape": frame.shape, "thumbnail": _thumbnail(part), "fwhm_px": _psf_map(part),
        "background_sigma": float(np.median(part.background.sigma)),
    }
    if plates and plates[0].chips:
        fit = plates[0].chips[0].fit
        reference = plates[0].reference
        x, y = fit.model.sky_to_pixel(reference.ra_deg, reference.dec_deg)
        ny, nx = frame.shape
        inside = (x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5)
        order = np.flatnonzero(inside)[:5000]
        extras |= {
            "ledger": list(fit.history), "scores": fit.scores,
            "evidence": plates[0].match.evidence, "distortion": _distortion(fit.model, frame.shape),
            "reference": np.stack([x[order], y[order], reference.stars["mag"][order]], axis=1),
            "errors": {"a": fit.errors.a, "sigma0_mas": fit.errors.sigma0_mas},
        }
    return extras


def _thumbnail(part: Extraction) -> NDArray[np.float32]:
    """Return the frame, background subtracted and binned to a few hundred pixels."""
    data, (ny, nx) = part.frame.data, part.frame.shape
    step = max(1, -(-max(ny, nx) // THUMBNAIL_PX))
    rows, columns = ny // step, nx // step
    if rows < 1 or columns < 1:
        return np.zeros((1, 1), dtype=np.float32)
    out = np.empty((rows, columns), dtype=np.float32)
    for j in range(rows):
        # The middle row of each bin, and the largest of its pixels: stars stay visible.
        y = j * step + step // 2
        line = data[y] - part.background.rows(y, y + 1)[0]
        out[j] = np.nan_to_num(line[: columns * step].reshape(columns, step).max(axis=1))
    return out / np.float32(np.median(part.background.sigma))


def _psf_map(part: Extraction) -> list[dict[str, float]]:
    """Return the PSF's width and flattening on a grid of the frame."""
    if part.psf is None:
        return []
    ny, nx = part.frame.shape
    rows = []
    for y in np.linspace(0.1, 0.9, 5) * (ny - 1):
        for x in np.linspace(0.1, 0.9, 5) * (nx - 1):
            fwhm, ellipticity, theta = part.psf.shape_at(float(x), float(y))
            rows.append({"x": float(x), "y": float(y), "fwhm_px": fwhm,
                         "ellipticity": ellipticity, "theta_deg": theta})
    return rows


def _distortion(model: Any, shape: tuple[int, int]) -> dict[str, Any]:
    """Return how far the model is from its own best linear part, in pixels, on a grid."""
    from cynosure.ground.numeric import lstsq

    ny, nx = shape
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, nx - 1, 17), np.linspace(0, ny - 1, 17)))
    plane = np.stack(model.pixel_to_plane(x, y), axis=1)
    design = np.stack([np.ones_like(x), x, y], axis=1)
    linear = lstsq(design, plane, what="linear part").x
    shift = (plane - design @ linear) @ np.linalg.inv(linear[1:])
    return {"x": x, "y": y, "dx_px": shift[:, 0], "dy_px": shift[:, 1]}


# ------------------------------------------------------------------------------- many images
@dataclass(frozen=True, slots=True)
class _Door:
    """What a worker does with one image; it travels to the worker's process."""

    refcat: str
    out: str
    settings: Settings
    arguments: dict[str, Any]
    header_only: bool
    in_place: bool

    def __call__(self, payload: tuple[str, bool], log: Log) -> Solution:
        image, overwrite = payload
        outcome = solve(image, self.refcat, settings=self.settings, log=log, **self.arguments)
        log("writing")
        return save(outcome, Path(image), Path(self.out), self.header_only, self.in_place, overwrite)


def save(
    outcome: Outcome, source: Path, folder: Path, header_only: bool, in_place: bool, overwrite: bool
) -> Solution:
    """Write an outcome's files and return its solution with their names and the time it took."""
    start = time.perf_counter()
    outcome = dataclasses.replace(outcome, solution=outcome.solution.replaced(image=str(source)))
    files = _write_files(outcome, source, folder, header_only, in_place, overwrite)
    seconds = dict(outcome.solution.seconds)
    seconds["write"] = round(time.perf_counter() - start, 4)
    seconds["total"] = round(seconds.get("total", 0.0) + seconds["write"], 4)
    return _write_solution(
        outcome.solution.replaced(files=tuple(files), seconds=seconds), source, folder, overwrite
    )


def _write_files(
    outcome: Outcome, source: Path, folder: Path, header_only: bool, in_place: bool, overwrite: bool
) -> list[str]:
    from cynosure.data.fitsio import split_path
    from cynosure.data.fitswrite import output_name, write_header_only, write_solved
    from cynosure.data.tables import write_parquet

    source = split_path(str(source))[0]
    files = []
    if outcome.headers:
        solution = outcome.solution
        if header_only:
            path = folder / output_name(source, ".wcs.fits")
            shapes = [tuple(c["shape"]) for c in solution.chips]
            write_header_only(path, list(outcome.headers.values()), shapes, overwrite=overwrite)
        else:
            path = source if in_place else folder / output_name(source, "_wcs.fits")
            chips = {hdu: _split(header) for hdu, header in outcome.headers.items()}
            write_solved(source, path, chips, overwrite=overwrite or in_place)
        files.append(str(path) if in_place and not header_only else path.name)
        path = folder / output_name(source, ".matches.parquet")
        write_parquet(path, outcome.matches, MATCHES)
        files.append(path.name)
    if outcome.report:
        files.append(_write_report_data(outcome, folder / output_name(source, ".report.npz")))
    return files


def _write_solution(solution: Solution, source: Path, folder: Path, overwrite: bool) -> Solution:
    from cynosure.data.fitsio import split_path
    from cynosure.data.fitswrite import output_name
    from cynosure.ground.files import write_text

    path = folder / output_name(split_path(str(source))[0], ".solution.json")
    solution = solution.replaced(files=(*solution.files, path.name))
    write_text(path, solution.to_json() + "\n", overwrite=True)
    return solution


WCS_CARDS = ("WCSAXES", "WCSNAME", "CTYPE", "CRVAL", "CRPIX", "CUNIT", "CDELT", "CROTA", "CD", "PC",
             "PV", "A_", "B_", "AP_", "BP_", "RADESYS", "EQUINOX", "LONPOLE", "LATPOLE", "CRDER")


def _split(header: Header) -> tuple[Header, Header]:
    """Split cards into those of the WCS and the others."""
    wcs, extra = header.copy(), header.copy()
    for key in list(header):
        own = key.startswith(WCS_CARDS)
        del (extra if own else wcs)[key]
    return wcs, extra


def _write_report_data(outcome: Outcome, path: Path) -> str:
    """Keep what the report draws beside the tables, so that it can be drawn again later."""
    import json

    from cynosure.ground.files import atomic_path

    arrays = {"sources": outcome.sources}
    rest: dict[str, Any] = {}
    for key, value in outcome.report.items():
        if isinstance(value, np.ndarray):
            arrays[key] = value
        elif key == "distortion":
            arrays |= {f"distortion_{k}": v for k, v in value.items()}
        else:
            rest[key] = value
    arrays["rows"] = np.array(json.dumps(rest, default=float))
    with atomic_path(path, overwrite=True) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)
    return path.name


def run_solve(
    images: Sequence[str | Path], refcat: str | Path, out: str | Path, *,
    settings: Settings | None = None, workers: int = 1, timeout_s: float | None = None,
    overwrite: bool = False, watch: Watch | None = None,
    on_record: Callable[[Any], None] | None = None, facts: Mapping[str, Any] | None = None,
    header_only: bool = False, in_place: bool = False, **arguments: Any,
) -> Run:
    """Solve images and write their files, a manifest and a log.

    Parameters
    ----------
    images : sequence of path
    refcat : path or URL
    out : path
        The folder of the run.
    settings, workers, timeout_s, overwrite, watch, on_record, facts
        As in :func:`cynosure.pipelines.run.run_images`.
    header_only, in_place : bool
        Write headers alone; change the images themselves.
    **arguments
        As in :func:`solve`.

    Returns
    -------
    Run
    """
    import os

    settings = settings or default_settings()
    open_refcat(refcat)  # a catalogue that cannot be opened is one error, not one for each image
    cores = os.cpu_count() or 1
    arguments.setdefault("threads", max(1, cores // max(workers, 1)) if len(images) else 1)
    door = _Door(str(refcat), str(out), settings, dict(arguments), header_only, in_place)

    def failed(image: str, error: CynosureError) -> Solution:
        from cynosure.ground.errors import OutputExists

        solution = failure(image, error, settings).solution.replaced(image=str(image))
        if isinstance(error, OutputExists):
            return solution
        return _write_solution(solution, Path(image), Path(out), True)

    options = {k: v for k, v in arguments.items() if k not in ("threads", "log")}
    return run_images(
        door, images, out,
        endings=(".wcs.fits",) if header_only else () if in_place else ("_wcs.fits",),
        options={**options, "refcat": str(refcat), "header_only": header_only, "in_place": in_place},
        settings=settings, facts={"catalog": str(refcat), **(facts or {})}, failed=failed,
        on_record=on_record, workers=workers, timeout_s=timeout_s, overwrite=overwrite, watch=watch,
    )
