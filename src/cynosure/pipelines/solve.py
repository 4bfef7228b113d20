"""The solve door: an image goes in, the same image with a verified WCS comes out.

:func:`solve` does one image in memory and returns an :class:`Outcome`; :func:`run_solve` does many,
writes the files, and leaves a manifest. What happens in between, in order:

1. the frames are read (:mod:`cynosure.data.fits.reader`), and their sources measured
   (:mod:`cynosure.pipelines.extract`);
2. the stars are recognised and the WCS is fitted (:mod:`cynosure.pipelines.plate`);
3. the WCS that the image came with is scored on the same stars, and the solution is judged
   (:mod:`cynosure.solutions.quality`);
4. the WCS is written as a header, read again with wcslib, and compared with the fit over the whole
   frame before any file is released.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cynosure._version import __version__
from cynosure.data.catalogs.refcat import RefCat, open_refcat
from cynosure.data.fits.reader import read
from cynosure.data.frame import Exposure, Pointing
from cynosure.data.tables import MATCHES, SOURCES
from cynosure.ground.errors import CatalogMissing, CynosureError, SettingError
from cynosure.ground.quantities import angle_in, julian_year, scale_in_arcsec, sky_position
from cynosure.ground.settings import Settings
from cynosure.pipelines.extract import Extraction, extract_sources, load_kernels
from cynosure.pipelines.gather import gather
from cynosure.pipelines.keep import lookup_tables, settle_form
from cynosure.pipelines.outcome import Chips, Manner, Outcome, SolvedChip, write_solution
from cynosure.pipelines.plate import Plate, solve_plate
from cynosure.pipelines.run import (
    Run,
    default_settings,
    expected_bytes,
    placed,
    run_images,
    settings_of,
)
from cynosure.pipelines.verdict import conclude, now, steps_tried
from cynosure.solutions.solution import Solution

if TYPE_CHECKING:
    from astropy.io.fits import Header

    from cynosure.pipelines.tasks.done import Watch

__all__ = ["Outcome", "run_solve", "solve", "write"]

Log = Callable[[str], None]


def solve(
    image: Any,
    catalog: Any,
    *,
    settings: Settings | Mapping[str, Mapping[str, Any]] | None = None,
    center: Any = None,
    radius: Any = None,
    scale: Any = None,
    scale_error: float | None = None,
    blind: bool = False,
    index: Any = None,
    form: str = "auto",
    order: int | str = "auto",
    epoch: Any = None,
    chips: str = "together",
    instrument: str | None = None,
    threads: int = 1,
    log: Log = lambda text: None,
) -> Outcome:
    """Put one image on the sky of a reference catalogue.

    Parameters
    ----------
    image : path, Exposure, HDUList, image HDU, array, (data, header) or CCDData
    catalog : path, URL, RefCat, Table or structured array
        The reference catalogue: HATS or a table file, opened or not, or a table in memory with
        at least ``ra``, ``dec`` and one magnitude.
    settings : Settings or mapping, optional
        What differs from the built-in settings, ``{"fit": {"max_order": 3}}``.
    center : SkyCoord or pair, optional
        Where the image points, instead of the header's: a SkyCoord, or right ascension and
        declination as numbers in degrees, angles or texts.
    radius : Quantity, float or str, optional
        How far the centre may be off; a plain number is in degrees.
    scale : Quantity, float or str, optional
        Size of a pixel, instead of the header's; a plain number is in arcseconds.
    scale_error : float, optional
        Fraction by which the scale may be wrong.
    blind : bool
        Do not use any pointing; needs `index`.
    index : path or QuadIndex, optional
        Blind index, searched also where the pointing leads nowhere.
    form : str
        How the WCS is written: ``tpv``, ``sip`` or ``tan``; ``keep``: the WCS that the image came
        with, of which CRVAL and CD change and the distortion stays; ``auto``: ``keep`` where
        that has lookup tables or an observatory's SIP and the held-out stars do not ask for
        more, else ``tpv``.
    order : int or str
        Degree of the distortion, or ``auto``.
    epoch : Time, float, str or datetime, optional
        Date of the image where its header has none; a plain number is a Julian year.
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
    >>> outcome.wcs.pixel_to_world(512, 512)  # doctest: +SKIP
    """
    start = time.perf_counter()
    known = _Known(
        sky_position(center), _positive(angle_in(radius, "deg", "radius"), "radius"),
        _positive(scale_in_arcsec(scale), "scale"), scale_error, blind,
    )
    epoch_yr = julian_year(epoch)
    job = _Job(_name_of(image), _with_arguments(settings_of(settings), form, order),
               "tpv" if form == "auto" and order != "auto" else form, chips, threads, log)
    exposure: Exposure | None = None
    try:
        log("reading")
        if threads > 1:
            # First what reading needs of Python, or the two would wait for each other's lock.
            import astropy.io.fits
            import astropy.wcs  # noqa: F401

            threading.Thread(target=_load_kernels, daemon=True).start()
        refcat = open_refcat(catalog)
        exposure = image if isinstance(image, Exposure) else read(
            image, instrument=instrument, epoch_yr=epoch_yr
        )
        if epoch_yr is not None:
            frames = tuple(f.replaced(epoch_yr=epoch_yr) for f in exposure.frames)
            exposure = dataclasses.replace(exposure, frames=frames)
        job = dataclasses.replace(
            job, settings=_with_instrument(job.settings, instrument or exposure.instrument),
            index=_open_index(index, blind, job.name),
        )
        seconds = {"read": time.perf_counter() - start}
        outcome = _solve_exposure(exposure, refcat, known.pointing(exposure), job, seconds)
    except CynosureError as error:
        if isinstance(error, SettingError):
            raise
        outcome = failure(job.name, error, job.settings, exposure)
    total = {**outcome.solution.seconds, "total": time.perf_counter() - start}
    return dataclasses.replace(outcome, solution=outcome.solution.replaced(seconds=_rounded(total)))


@dataclass(frozen=True, slots=True)
class _Job:
    """How one image is to be solved."""

    name: str
    settings: Settings
    form: str
    chips: str
    threads: int
    log: Log
    index: Any = None


@dataclass(frozen=True, slots=True)
class _Known:
    """What the caller knows of the pointing better than header and instrument; None is nothing."""

    center: tuple[float, float] | None
    radius_deg: float | None
    scale_arcsec: float | None
    scale_error: float | None
    blind: bool

    def pointing(self, exposure: Exposure) -> Pointing:
        """Return the pointing of an exposure with this laid over it."""
        changes: dict[str, Any] = {}
        if self.blind:
            changes.update(ra_deg=None, dec_deg=None, radius_deg=None)
        if self.center is not None:
            changes.update(ra_deg=self.center[0], dec_deg=self.center[1])
        if self.radius_deg is not None:
            changes["radius_deg"] = self.radius_deg
        if self.scale_arcsec is not None:
            changes.update(scale_arcsec=self.scale_arcsec, scale_error=SCALE_ERROR)
        if self.scale_error is not None:
            changes["scale_error"] = self.scale_error
        return dataclasses.replace(exposure.pointing, **changes)


# Relative error of a scale that the user gives: half a unit of the second digit is at most 5 %.
SCALE_ERROR = 0.05


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
    return outcome.write(out, source=source, header_only=header_only, overwrite=overwrite)


# ------------------------------------------------------------------------------------ arguments
def _with_arguments(settings: Settings, form: str, order: int | str) -> Settings:
    if form not in ("auto", "keep", "tpv", "sip", "tan"):
        raise SettingError(
            "form {form!r}: one of auto, keep, tpv, sip, tan is expected", form=form,
            hint="TPV is read by SWarp, SCAMP and astropy; SIP by astropy, DS9 and astrometry.net.",
        )
    if form == "keep" and order != "auto":
        raise SettingError(
            "order {order!r}: the form keep keeps the distortion of the input WCS", order=order)
    if form == "tan":
        order = 1
    if order == "auto":
        return settings
    if not isinstance(order, int) or not 1 <= order <= 7:
        raise SettingError("order {order!r}: 1 to 7, or auto, is expected", order=order)
    changes = {"geometry": f"poly{order}", "max_order": order}
    return settings.updated({"fit": changes}, f"--order {order}")


def _with_instrument(settings: Settings, instrument: str) -> Settings:
    """Lay what was set by hand over the defaults of the instrument."""
    from cynosure.data.instrument import load_instrument

    defaults = load_instrument(instrument).settings
    return settings.over(defaults, f"instrument {instrument}") if defaults else settings


def _name_of(image: Any) -> str:
    if isinstance(image, Exposure):
        return Path(image.path).name or "image"
    return Path(image).name if isinstance(image, (str, Path)) else "image"


def _positive(number: float | None, what: str) -> float | None:
    if number is not None and not number > 0.0:
        raise SettingError("{what} = {value:g}: it must be above zero", what=what, value=number)
    return number


def _open_index(index: Any, blind: bool, name: str) -> Any:
    if index is None:
        if blind:
            raise CatalogMissing(
                "{image}: a blind search needs an index", image=name,
                hint="Build one with `cynosure index build REFCAT --out INDEX` and give --index.",
            )
        return None
    if isinstance(index, (str, Path)):
        from cynosure.geometry.match.blind import open_index

        return open_index(index)
    return index


# -------------------------------------------------------------------------------- one exposure
def _solve_exposure(
    exposure: Exposure, refcat: RefCat, pointing: Pointing, job: _Job, seconds: dict[str, float],
) -> Outcome:
    name, settings, log = job.name, job.settings, job.log
    if job.threads > 1:
        threading.Thread(target=_warm_up, daemon=True).start()
    parts: list[Extraction] = []
    for frame in exposure.frames:
        prefix = f"{frame.name}: " if len(exposure.frames) > 1 else ""
        say = partial(_say, log, prefix)
        parts.append(extract_sources(frame, settings, threads=job.threads, log=say))
        for step, value in parts[-1].seconds.items():
            seconds[step] = seconds.get(step, 0.0) + value
    sources = np.concatenate([p.sources for p in parts]) if parts else SOURCES.empty()
    notes = list(exposure.notes) + [n for p in parts for n in p.notes] + list(refcat.notes)
    lap = time.perf_counter()
    epoch = next((f.epoch_yr for f in exposure.frames if f.epoch_yr is not None), None)
    if epoch is None:
        notes = [n for n in notes if "epoch is unknown" not in n]  # the same in fewer words
        notes.append(
            "the image has no date: the reference stars are where their catalogue has them, with "
            "errors that cover 10 years of motion; --epoch YEAR mends that"
        )
    known = {"n_sources": len(sources), "catalog": refcat.name, "notes": tuple(notes)}
    groups = [parts] if job.chips == "together" or len(parts) == 1 else [[p] for p in parts]
    plates = []
    try:
        for group in groups:
            plates.append(solve_plate(
                [p.frame for p in group], [p.sources for p in group], refcat, pointing, settings,
                epoch_yr=epoch, blind=job.index, together=len(group) > 1, first=exposure.frames[0],
                name=name if len(groups) == 1 else group[0].frame.name, log=log,
            ))
        plates, form, said = settle_form(plates, job.form, settings)
    except CynosureError as error:
        seconds["match"] = time.perf_counter() - lap
        outcome = failure(name, error, settings, exposure)
        solution = outcome.solution.replaced(**known, seconds=_rounded(seconds))
        return dataclasses.replace(
            outcome, solution=solution, source_rows=sources, report=gather(parts, [])
        )
    seconds["match and fit"] = time.perf_counter() - lap
    lap = time.perf_counter()
    log("verdict")
    known["notes"] = (*notes, *said)
    solution, matches, headers, kept = conclude(
        exposure, plates, refcat, settings, form, known, name
    )
    evidence = gather(parts, plates)
    seconds["verify"] = time.perf_counter() - lap
    solution = solution.replaced(seconds=_rounded(seconds))
    return Outcome(
        solution, matches, sources, _solved_chips(plates, headers), headers, kept, evidence
    )


def _solved_chips(plates: Sequence[Plate], headers: Mapping[Any, Header]) -> Chips:
    """Return the chips that have new cards, named as files name their extensions."""
    solved = []
    for chip in (c for plate in plates for c in plate.chips):
        frame = chip.frame
        if frame.place in headers:
            inside = re.search(r"\[([^][]*)\]$", frame.name)
            name = inside[1] if inside else str(frame.hdu)
            tables = lookup_tables(chip.fit.model, headers[frame.place])
            solved.append(SolvedChip(name, headers[frame.place], chip.fit, frame.cell, tables))
    return Chips(tuple(solved))


def _say(log: Log, prefix: str, text: str) -> None:
    log(prefix + text)


@cache
def _load_kernels() -> None:
    """Load the compiled kernels of the pixels, once in a process."""
    load_kernels(default_settings())


@cache
def _warm_up() -> None:
    """Load what recognition and catalogue need, while the kernels measure the pixels.

    Importing them and loading the compiled matching takes half a second of a single image's
    solve; the kernels hold no lock, so that it can be had meanwhile. The match is of nothing.
    """
    import pyarrow.parquet  # noqa: F401
    import scipy.optimize  # noqa: F401

    from cynosure.geometry.match.pointing import match_pointing

    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1000, (2, 12))
    nowhere = Pointing(10.0, 0.0, radius_deg=0.1, scale_arcsec=1.0, scale_error=0.01)
    with contextlib.suppress(CynosureError):
        match_pointing(x, y, x, 10.0 + x / 3600.0, y / 3600.0, y, nowhere, (1000, 1000))


def failure(
    name: str, error: CynosureError, settings: Settings, exposure: Exposure | None = None
) -> Outcome:
    """Return the outcome of an image that could not be solved."""
    tried = error.facts.get("tried", ())
    solution = Solution.from_error(
        name, error, software=f"cynosure {__version__}", created=now(),
        settings=settings.resolved(),
        tried=steps_tried(tried),
        sha256=exposure.sha256 if exposure is not None else "",
        notes=exposure.notes if exposure is not None else (),
    )
    return Outcome(solution, MATCHES.empty(), SOURCES.empty())


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {k: round(v, 4) for k, v in seconds.items()}


# ------------------------------------------------------------------------------- many images
# The arguments of solve() that may be paths.
PLACES = ("index", "instrument")


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
        return save(
            outcome, Path(image), Path(self.out), self.header_only, self.in_place, overwrite
        )


def save(
    outcome: Outcome, source: Path, folder: Path, header_only: bool, in_place: bool, overwrite: bool
) -> Solution:
    """Write an outcome's files and return its solution with their names and the time it took."""
    start = time.perf_counter()
    outcome = dataclasses.replace(outcome, solution=outcome.solution.replaced(image=str(source)))
    manner = Manner(header_only, in_place, overwrite)
    files = outcome.write_files(source, folder, manner)
    seconds = dict(outcome.solution.seconds)
    seconds["write"] = round(time.perf_counter() - start, 4)
    seconds["total"] = round(seconds.get("total", 0.0) + seconds["write"], 4)
    solution = outcome.solution.replaced(files=tuple(files), seconds=seconds)
    return write_solution(solution, source, folder)


def _check_once(
    refcat: str | Path, settings: Settings, arguments: Mapping[str, Any]
) -> None:
    """Refuse what no image can be solved with: one error, not one for each image."""
    from cynosure.data.instrument import load_instrument

    open_refcat(refcat)
    _with_arguments(settings, arguments.get("form", "auto"), arguments.get("order", "auto"))
    if arguments.get("instrument"):
        load_instrument(arguments["instrument"])
    _open_index(arguments.get("index"), bool(arguments.get("blind")), "--blind")


def run_solve(
    images: Sequence[str | Path], refcat: str | Path, out: str | Path, *,
    settings: Settings | None = None, workers: int | str = 1, timeout_s: float | None = None,
    memory_bytes: int | None = None, overwrite: bool = False, watch: Watch | None = None,
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
    settings, workers, timeout_s, memory_bytes, overwrite, watch, on_record, facts
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
    if isinstance(workers, str):  # the workers of a cluster stand in folders of their own
        images, out = [str(Path(i).absolute()) for i in images], Path(out).absolute()
        refcat = placed(refcat)
        arguments = {k: placed(v) if k in PLACES else v for k, v in arguments.items()}
    _check_once(refcat, settings, arguments)
    cores = os.cpu_count() or 1
    at_once = cores if isinstance(workers, str) else max(workers, 1)  # a cluster's are not ours
    arguments.setdefault("threads", max(1, cores // at_once) if len(images) else 1)
    door = _Door(str(refcat), str(out), settings, dict(arguments), header_only, in_place)

    def failed(image: str, error: CynosureError) -> Solution:
        from cynosure.ground.errors import OutputExists

        solution = failure(image, error, settings).solution.replaced(image=str(image))
        if isinstance(error, OutputExists):
            return solution
        return write_solution(solution, Path(image), Path(out))

    options = {k: v for k, v in arguments.items() if k not in ("threads", "log")}
    options |= {"refcat": str(refcat), "header_only": header_only, "in_place": in_place}
    return run_images(
        door, images, out,
        endings=(".wcs.fits",) if header_only else () if in_place else ("_wcs.fits",),
        options=options,
        settings=settings, facts={"catalog": str(refcat), **(facts or {})}, failed=failed,
        on_record=on_record, workers=workers, timeout_s=timeout_s, memory_bytes=memory_bytes,
        memory_of=expected_bytes, overwrite=overwrite, watch=watch,
    )
