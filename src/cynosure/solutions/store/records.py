"""Records of solved images (``NAME.solution.json``) as entries of the store, and as headerlets.

A record knows its image by the name of a file. Where that is the name of one of Hubble's
exposures, the record belongs to the same exposure as its headerlets, and Hubble's own client,
which takes nothing but headerlets with SIP, gets it in that form.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fits.alternates import records_of
from cynosure.data.fits.wcsread import read_wcs, sky_of_pixels
from cynosure.ground.errors import CynosureError, ImageError, SettingError
from cynosure.solutions.files.compare import converted
from cynosure.solutions.files.headerlet import (
    ChipWcs,
    Headerlet,
    HeaderletDamaged,
    Target,
    new_head,
)
from cynosure.solutions.names import (
    hdrname,
    model_name,
    parse_wcsname,
    wcstype,
)
from cynosure.solutions.solution import Solution
from cynosure.solutions.store.dates import iso_date
from cynosure.solutions.store.entry import (
    JSON,
    MAX_COUNT,
    MAX_NAME,
    Entry,
    Extent,
    checked_name,
)
from cynosure.solutions.store.identity import wcs_identity

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = ["exposure_of", "headerlet_of_record", "plain_headerlet", "read_record"]

Shapes = dict[Target, tuple[int, int] | None]

# Largest error of a record that is converted to SIP for Hubble's client, a tenth of the rms of a
# good fit (quality 1 of the archive: below 10 mas).
MAX_CONVERSION_MAS = 1.0

_NOT_CONTENT = ("created", "seconds", "files", "software", "notes", "tried", "hints")
# Root and suffix of a calibrated exposure of Hubble: instrument, programme, visit, exposure.
_HUBBLE = re.compile(r"([a-z][a-z0-9]{8})_(?:fl[tcm]|c[01][mf]|raw|spt|drz|drc)", re.IGNORECASE)


def read_record(text: str, name: str = "solution") -> Entry:
    """Read the record of a solved image (``NAME.solution.json``).

    Raises
    ------
    CatalogDamaged
        If it is not such a record.
    ImageError
        If the image was not solved: there is nothing to keep.
    """
    solution = _parsed(text, name)
    if not solution.chips or solution.status not in ("solved", "compromised"):
        raise ImageError(
            image=name, reason=f"no solution in it ({solution.status}: {solution.reason})",
            hint="Solve the image again; what failed has no WCS to keep.",
        )
    try:
        rootname = checked_name(_printable(exposure_of(solution.image)), name)
        return _entry_of(solution, rootname)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ImageError(image=name, reason=f"damaged record ({error})") from error


def _parsed(text: str, name: str) -> Solution:
    try:
        return Solution.from_json(text, name)
    except RecursionError as error:
        raise ImageError(image=name, reason="damaged record (nested too deep)") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ImageError(image=name, reason=f"damaged record ({error})") from error


def _entry_of(solution: Solution, rootname: str) -> Entry:
    payload = solution.to_json(None).encode()
    says = {k: v for k, v in solution.to_dict().items() if k not in _NOT_CONTENT}
    wcsname = _printable(solution.wcsname)
    parsed = parse_wcsname(wcsname)
    corners, notes = _corners(solution)
    rms = [v if math.isfinite(v) else None for v in (solution.rms_ra_mas, solution.rms_dec_mas)]
    extent: Extent = "image" if len(corners) else ""
    faults, doubts, identity = _judged(solution, rootname)
    return Entry(
        content_sha256=hashlib.sha256(
            json.dumps(says, sort_keys=True, ensure_ascii=False).encode()
        ).hexdigest(),
        rootname=rootname, wcsname=wcsname, hdrname=f"{rootname}_{wcsname}", kind=parsed.kind,
        idctab=parsed.start.removeprefix("IDC_") if parsed.start.startswith("IDC_") else "",
        catalog=_printable(solution.catalog or parsed.catalog)[:MAX_NAME], method=parsed.method,
        quality=solution.quality if solution.quality in (-1, 1, 2, 3, 4, 5) else None,
        status=solution.status, rms_ra_mas=rms[0], rms_dec_mas=rms[1],
        fit_rms_mas=math.hypot(*rms) if None not in rms else None,  # type: ignore[arg-type]
        nmatch=solution.n_used if 0 < solution.n_used < MAX_COUNT else None, corners=corners,
        extent=extent, created=iso_date(solution.created), descrip=_printable(solution.reason),
        software=_printable(solution.software), settings=solution.settings, notes=notes,
        faults=faults, doubts=doubts, media=JSON, payload=payload, identity=identity,
    )


def _judged(solution: Solution, rootname: str) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return faults, doubts and identity of a record's WCS, as of the headerlet that it makes.

    One of which no headerlet can be made has none of them; it stays what it is.
    """
    try:
        made, _ = _plain(solution, rootname)
    except CynosureError:
        return (), (), ""
    faults, doubts = tuple(made.faults()), tuple(made.doubts())
    return faults, doubts, wcs_identity(made, rootname, sound=not (faults or doubts))


def _printable(text: str) -> str:
    """Return a text without characters that no database, page or header would take."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "?" for c in text)


def exposure_of(image: str) -> str:
    """Return the exposure of an image: its name without folders, endings and Hubble's suffix.

    Examples
    --------
    >>> exposure_of("night/m81.fits.fz"), exposure_of("j95y04hpq_flc.fits")
    ('m81', 'j95y04hpq')
    """
    stem = re.split(r"[/\\]", image)[-1]
    stem = re.sub(r"(\.(fits|fit|fts|fz|gz|bz2|tiff?|png))+$", "", stem, flags=re.IGNORECASE)
    found = _HUBBLE.fullmatch(stem)
    return found[1] if found else stem


def _header(chip: dict[str, Any]) -> Header:
    """Return the cards of a chip as a header; what can be no card is left out."""
    from astropy.io.fits import Header

    cards = {k: v for k, v in chip["cards"].items() if v is not None}
    return Header([(k, v) for k, v in cards.items() if re.fullmatch(r"[A-Z0-9_-]{1,8}", k)])


def _shape(chip: dict[str, Any]) -> tuple[int, int] | None:
    shape = chip.get("shape")
    if not isinstance(shape, (list, tuple)) or len(shape) != 2:
        return None
    return int(shape[0]), int(shape[1])


def _corners(solution: Solution) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Place the corners of a record's chips by their cards, whatever the projection."""
    corners, notes = [], []
    for chip in solution.chips:
        wcs, shape = None, _shape(chip)
        if isinstance(chip.get("cards"), dict) and shape is not None:
            wcs, _ = read_wcs(_header(chip), shape=shape)
        if wcs is None or shape is None:
            notes.append(f"{chip.get('name', 'chip')}: its place on the sky cannot be told")
            continue
        ny, nx = shape
        x, y = np.array([0, nx, nx, 0]) - 0.5, np.array([0, 0, ny, ny]) - 0.5
        found = np.stack(sky_of_pixels(wcs, x, y), axis=-1)
        if np.isfinite(found).all():
            corners.append(found)
    return np.array(corners, dtype=float).reshape(-1, 4, 2), tuple(notes)


# --- as a headerlet -------------------------------------------------------------------------


def plain_headerlet(text: str, name: str = "solution") -> tuple[Headerlet, Shapes]:
    """Make a headerlet of a record in the form that it has, and return its images' sizes too.

    Raises
    ------
    CatalogDamaged, ImageError
        If it is not such a record.
    HeaderletDamaged
        If its chips cannot be told apart.
    """
    return _plain(_parsed(text, name), name)


def _plain(solution: Solution, name: str) -> tuple[Headerlet, Shapes]:
    try:
        rootname = _printable(exposure_of(solution.image))
        chips = [_chip(number, chip, solution) for number, chip in
                 enumerate(solution.chips, start=1)]
        shapes = {c.target: _shape(chip) for c, chip in zip(chips, solution.chips, strict=True)}
        if not chips or len(shapes) < len(chips):
            raise HeaderletDamaged(headerlet=name, reason="its chips cannot be told apart")
        return Headerlet(_head(solution, rootname, chips), tuple(chips)), shapes
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise ImageError(image=name, reason=f"damaged record ({error})") from error


def headerlet_of_record(text: str, name: str = "solution") -> Headerlet:
    """Make a headerlet in SIP of the record of a solved image.

    Raises
    ------
    CatalogDamaged, ImageError
        If it is not such a record.
    HeaderletDamaged
        If a chip has no WCS, or SIP cannot say what it says to a milliarcsecond.
    """
    made, shapes = plain_headerlet(text, name)
    if all(c.kinds == ("RA---TAN", "DEC--TAN") for c in made.chips):
        return made
    try:
        sip, maps = converted(made, "sip", shapes=shapes, name=made.wcsname)
    except SettingError as error:
        raise HeaderletDamaged(headerlet=name, reason=str(error)) from error
    worst = max(m.summary()["max_mas"] for m in maps)
    if not worst <= MAX_CONVERSION_MAS:
        raise HeaderletDamaged(
            headerlet=name, reason=f"as SIP it is up to {worst:.3g} mas off",
            hint="Fetch its record (JSON) instead.",
        )
    return sip.replaced(HDRNAME=made.hdrname, SIPNAME="UNKNOWN")


def _chip(number: int, chip: dict[str, Any], solution: Solution) -> ChipWcs:
    target = _target(str(chip.get("name", "")), int(chip.get("hdu", 0)))
    header = _header(chip)
    header["WCSNAME"] = solution.wcsname
    header["TG_ENAME"], header["TG_EVER"] = target
    raw = header.tostring(sep="", endcard=True, padding=True).encode("ascii", "replace")
    version = target[1] if target[0] == "SCI" else number
    return ChipWcs(version, target, records_of(raw))


def _target(name: str, hdu: int) -> Target:
    """Return the image of a chip: ``a.fits[SCI,2]`` says so, ``a.fits`` has a single one."""
    found = re.fullmatch(r".*\[([A-Za-z]\w*),(\d{1,6})\]", name, re.DOTALL)
    if found:
        return found[1].upper(), int(found[2])
    return ("PRIMARY", 1) if hdu == 0 else ("SCI", 1) if "[" not in name else ("HDU", hdu)


def _head(solution: Solution, rootname: str, chips: list[ChipWcs]) -> list[tuple[str, bytes]]:
    wcsname = _printable(solution.wcsname)
    parsed = parse_wcsname(wcsname)
    sipname = model_name("", any(c.distortion for c in chips))
    rms = [v if math.isfinite(v) else 0.0 for v in (solution.rms_ra_mas, solution.rms_dec_mas)]
    return new_head({
        "DESTIM": rootname, "HDRNAME": hdrname(rootname, wcsname), "WCSNAME": wcsname,
        "DATE": iso_date(solution.created) or "", "SIPNAME": sipname, "NPOLFILE": "N/A",
        "D2IMFILE": "N/A", "IDCTAB": "N/A",
        "DISTNAME": f"{sipname}-NOMODEL-NOMODEL", "AUTHOR": "cynosure",
        "DESCRIP": wcstype(wcsname), "RMS_RA": rms[0], "RMS_DEC": rms[1],
        "NMATCH": max(solution.n_used, 0), "CATALOG": solution.catalog or parsed.catalog,
        "UPWCSVER": solution.software,
    })
