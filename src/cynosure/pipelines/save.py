"""Write a fitted solution into the file of its image, and verify the file before its release.

The source is opened once, under a lock where it is changed in place. The solution is applied by the
function that the ``wcs`` verbs use (:mod:`cynosure.solutions.files.fitted`), and the file is
written by the one copy-through writer (:mod:`cynosure.data.fits.parts`), which keeps all other
bytes. A picture is converted to FITS, and ``NAME.wcs.fits`` is made without pixels, by the same
steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cynosure.data.fits.alternates import Records
from cynosure.data.fits.file import file_sha256, sides
from cynosure.data.fits.parts import SUMS, FitsParts, Part, card, open_parts
from cynosure.data.fits.solved import header_parts, picture_parts, plane_part, records_from
from cynosure.data.fits.wcsread import is_wcs_keyword, read_wcs
from cynosure.data.instrument import identify, load_instrument
from cynosure.data.raster import RASTERS
from cynosure.ground.errors import ImageError, SettingError, Temporary
from cynosure.solutions.files.cards import is_linear
from cynosure.solutions.files.contents import Chip, Holdings
from cynosure.solutions.files.fitted import Meant, apply_fit, check_file
from cynosure.solutions.files.headerlet import (
    SHARED,
    ChipWcs,
    Headerlet,
    is_solution_keyword,
    lookups_of,
)

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = ["Place", "Request", "save_header", "save_image"]

# An HDU, or an HDU and a plane of its cube.
Place = int | tuple[int, int]

# Keyword of a cube for the plane to which its WCS was fitted.
PLANE = "AST_PLAN"
KEPT = ("AST_KEEP", "the WCS it came with is better and stays")


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A solution that is to be written.

    Attributes
    ----------
    cards : mapping of place to Header
        All cards of the solution: of its WCS, and of the fit that made it.
    kept : mapping of place to Header
        WCS cards that the image came with, where they stay in use and the new ones become an
        alternate.
    distortion_stays : bool
        Whether the cards are a linear part only, and SIP, PV and lookup tables of the old WCS go
        with it.
    archive : str or None
        Name of the old WCS as an alternate where it has none; None drops it.
    sha256 : str or None
        Of the file that was solved, empty where it changed while it was read; a file that is
        changed in place must still be it. None takes any file.
    """

    cards: Mapping[Place, Header]
    kept: Mapping[Place, Header]
    distortion_stays: bool = False
    archive: str | None = "ORIGINAL"
    sha256: str | None = None


def save_image(
    source: str | Path, out: str | Path, request: Request, *, overwrite: bool = False
) -> Path:
    """Write an image with a new WCS; pixels and all other cards are kept.

    Parameters
    ----------
    source : path
        FITS, or a picture, which becomes FITS. What gzip compressed is written plain; compressed
        tiles stay compressed.
    out : path
        The file to write; the source itself for a change in place.
    request : Request
    overwrite : bool
        Whether another file may be there already.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    OutputExists, OutputError
        Nothing half-written is left.
    ImageError
        If the source cannot be read.
    SettingError
        If the source cannot hold a WCS, or is compressed and was to be changed in place.
    Temporary
        If another program holds the file, or changed it since it was read.
    Unverified
        If what would be written does not read as it was fitted. Nothing is written.
    """
    source, out = Path(source), Path(out)
    own = out.exists() and source.exists() and out.samefile(source)
    picture = source.suffix.lower() in RASTERS
    if picture and out.suffix.lower() in RASTERS:
        raise SettingError(
            "{path}: a picture cannot hold a WCS", path=str(out),
            hint="Use --out; the result is a FITS file.",
        )
    with _opened(source, picture, own) as file:
        if own and request.sha256 not in (None, file_sha256(source)):
            raise Temporary(
                resource=str(source), reason="another program changed it after it was read",
                hint="Solve it again.",
            )
        placed = _placed(file, request)
        return _saved(file, placed, request, None if own else out, overwrite)


def save_header(
    source: str | Path, out: str | Path, request: Request,
    shapes: Sequence[tuple[int, int]], *, overwrite: bool = False,
) -> Path:
    """Write a solution as headers without pixels, ``NAME.wcs.fits``.

    Parameters
    ----------
    source : path
        The image that was solved; it is opened only where its distortion stays.
    out : path
    request : Request
    shapes : sequence of (int, int)
        Rows and columns, one for each place.
    overwrite : bool

    Raises
    ------
    OutputExists, OutputError, Unverified
    """
    old = [records_from(request.kept[p]) if p in request.kept else [] for p in request.cards]
    tables: list[Part] = []
    if request.distortion_stays:
        old, tables = _old_wcs(Path(source), [_hdu(p) for p in request.cards])
    file = header_parts(source, old, shapes)
    file.parts += tables
    several = len(shapes) > 1
    placed = [
        _Placed(number, shape, header, place in request.kept)
        for number, (shape, (place, header))
        in enumerate(zip(shapes, request.cards.items()), start=1 if several else 0)
    ]
    return _saved(file, placed, replace(request, archive=None), Path(out), overwrite)


def _old_wcs(source: Path, units: Sequence[int]) -> tuple[list[Records], list[Part]]:
    """Return the WCS cards of some units of a file, and the lookup tables that they name."""
    with open_parts(source) as file:
        old = [[r for r in file.parts[i].records if is_solution_keyword(r[0])] for i in units]
        wanted = {at for records in old for at in lookups_of(records)}
        tables = [
            Part(p.records, data=file.data_of(p)) for p in file.parts
            if (p.name, p.version) in wanted
        ]
    return old, tables


@contextlib.contextmanager
def _opened(source: Path, picture: bool, lock: bool) -> Iterator[FitsParts]:
    if picture:
        yield picture_parts(source)
        return
    with open_parts(source, lock=lock) as file:
        yield file


# --- where the cards go ---------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Placed:
    """Cards, and the unit of the file that they are of."""

    index: int
    shape: tuple[int, int]
    header: Header
    beside: bool


def _placed(file: FitsParts, request: Request) -> list[_Placed]:
    """Find the units of a solution; those for planes of a cube are made."""
    missing = sorted({_hdu(p) for p in request.cards if _hdu(p) >= len(file.parts)})
    if missing:
        listed = ", ".join(map(str, missing))
        raise ImageError(image=file.path.name, reason=f"it has no HDU {listed}")
    out = []
    for place, header in request.cards.items():
        cube = file.parts[_hdu(place)]
        shape = _sides(cube)
        beside = place in request.kept
        if isinstance(place, int):
            out.append(_Placed(place, shape, header, beside))
            continue
        hdu, plane = place
        solved = sorted(p[1] for p in request.cards if not isinstance(p, int) and p[0] == hdu)
        whole = _one_for_all(file, hdu, solved)
        if whole or (plane == solved[0] and len(solved) > 1 and not _has_plane_table(file)):
            out.append(_Placed(hdu, shape, _of_plane(header, plane), beside))
        if not whole or any(p.unit.plane_of == place for p in file.parts):
            out.append(_Placed(_plane_unit(file, hdu, plane, request), shape, header, beside))
    return out


def _hdu(place: Place) -> int:
    return place if isinstance(place, int) else place[0]


def _of_plane(header: Header, plane: int) -> Header:
    header = header.copy()
    header[PLANE] = (plane, "plane that was solved, from 0")
    return header


def _one_for_all(file: FitsParts, hdu: int, solved: Sequence[int]) -> bool:
    """Say whether the WCS of a plane is that of the whole cube.

    It is where one plane is solved (the colours of a picture share one WCS, and a header has one)
    and no other plane has a WCS of its own: in an extension, by an earlier solution of another
    plane, or in the table of an instrument whose planes are detectors.
    """
    others = [p.unit.plane_of for p in file.parts]
    separate = any(at is not None and at[0] == hdu and at[1] not in solved for at in others)
    earlier = file.parts[hdu].get(PLANE)
    foreign = earlier is not None and earlier != solved[0]
    return len(solved) == 1 and not separate and not foreign and not _has_plane_table(file)


def _has_plane_table(file: FitsParts) -> bool:
    camera = load_instrument(identify(file.parts[0].header()))
    return 0 <= camera.plane_table < len(file.parts)


def _plane_unit(file: FitsParts, hdu: int, plane: int, request: Request) -> int:
    """Return the number of the extension for a plane; it is made where there is none."""
    for number, part in enumerate(file.parts):
        if part.unit.plane_of == (hdu, plane):
            return number
    new = plane_part(hdu, plane)
    if (hdu, plane) in request.kept:
        new.replace(new.records + records_from(request.kept[hdu, plane]))
    file.parts.append(new)
    return len(file.parts) - 1


def _sides(part: Part) -> tuple[int, int]:
    shape = part.unit.shape
    if len(shape) < 2 or min(shape) < 1:
        raise ImageError(image=part.name or "image", reason="the HDU that was solved has no pixels")
    return sides(shape)


# --- applying, writing, reading again -------------------------------------------------------


def _saved(
    file: FitsParts, placed: list[_Placed], request: Request, out: Path | None, overwrite: bool
) -> Path:
    """Apply a solution to parts, write them, and check the result before it is released."""
    chips = _chips(file, placed)
    held = Holdings(file, chips)
    fit = held.headed([
        _chip_wcs(chip, one, number, request.distortion_stays)
        for number, (chip, one) in enumerate(zip(chips, placed), start=1)
    ]).replaced(HDRNAME="")
    before = {x: held.alternate(x) for x in held.letters}
    stay = [one.beside and c.part.has("CTYPE1") for c, one in zip(chips, placed)]
    meant = []
    for stays in (False, True):
        some = [(c, one) for c, one, kept in zip(chips, placed, stay) if kept == stays]
        if some:
            meant += _applied(file, some, fit, request, stays)
    for chip in chips:
        for keyword, comment in zip(SUMS, ("of the HDU", "of the data")):
            # Summed anew: a crop often has the DATASUM of the whole image.
            chip.part.set(keyword, "", "" if chip.part.has(keyword) else comment)
    if file.parts[0].has("NEXTEND"):
        file.parts[0].set("NEXTEND", len(file.parts) - 1)
    gone = {m.letter for m in meant}
    alternates = {x: h for x, h in before.items() if x not in gone and x in held.letters}
    return file.save(
        out, overwrite=overwrite,
        check=lambda path: check_file(path, meant, alternates, file.path.name),
    )


def _applied(
    file: FitsParts, some: list[tuple[Chip, _Placed]], fit: Headerlet, request: Request,
    stays: bool,
) -> list[Meant]:
    """Apply a solution to some chips; return what their headers must say then."""
    held = Holdings(file, [c for c, _ in some])
    old = held.active() if stays else None
    letter = apply_fit(held, fit, archive=request.archive, active=not stays)
    meant = []
    for chip, one in some:
        if any(p in request.kept for p in request.cards):
            chip.part.set(KEPT[0], True, KEPT[1])
        wcs = None if request.distortion_stays else read_wcs(one.header, shape=one.shape)[0]
        if wcs is None:
            wcs = fit.wcs(chip.target, shape=one.shape)
        own = _readable(chip.part) if stays else True
        meant.append(Meant(one.index, chip.target, one.shape, wcs, letter * stays, own))
        if old is not None:
            was = old.wcs(chip.target, shape=one.shape)
            meant.append(Meant(one.index, chip.target, one.shape, was, foreign=False))
    return meant


def _readable(part: Part) -> bool:
    """Say whether others read an alternate as it is: they give it the primary's distortion."""
    return not any(k in ("A_ORDER", "CPDIS1", "D2IMDIS1", "AXISCORR") for k, _ in part.records)


def _chips(file: FitsParts, placed: list[_Placed]) -> list[Chip]:
    """Return the units as chips, each with a name of its own."""
    chips, seen = [], set()
    for one in placed:
        part = file.parts[one.index]
        target = (part.name or "HDU", part.version) if one.index else ("PRIMARY", 1)
        if target in seen:
            target = ("HDU", one.index)
        seen.add(target)
        chips.append(Chip(part, target, one.shape))
    return chips


def _chip_wcs(chip: Chip, one: _Placed, number: int, distortion_stays: bool) -> ChipWcs:
    """Return the cards of a chip as a record, with those of the old WCS that stay."""
    cards = records_from(one.header)
    odd = [k for k, _ in cards if not is_solution_keyword(k)]
    if odd:
        message = f"{', '.join(odd)}: not known as cards of a solution"
        raise ValueError(message)
    if distortion_stays:
        there = {k for k, _ in cards}
        cards += [r for r in chip.part.records if _is_distortion(r[0]) and r[0] not in there]
    else:
        further = _further_axes(chip.part)
        if further:
            axes = card("WCSAXES", len(chip.part.unit.shape), "axes of the WCS")
            cards = [axes, *(r for r in cards if r[0] != "WCSAXES"), *further]
    return ChipWcs(number, chip.target, cards)


def _is_distortion(keyword: str) -> bool:
    """Say whether a card is of a distortion: SIP, PV and PS, lookup tables, and what goes along."""
    if keyword in SHARED or keyword[:2] in ("PV", "PS"):
        return is_solution_keyword(keyword)
    return is_wcs_keyword(keyword) and not is_linear(keyword)


def _further_axes(part: Part) -> Records:
    """Return cards for the axes of a cube beyond the celestial two, as the old WCS had them.

    Its step goes to the diagonal of CD, beside which CDELT is not read; an axis without a row of
    CD would be mended by readers, with a warning.
    """
    out: Records = []
    for axis in range(3, len(part.unit.shape) + 1):
        out += [r for r in part.records if r[0] in (f"{k}{axis}" for k in AXIS_KEYWORDS)]
        step = part.get(f"CD{axis}_{axis}", part.get(f"CDELT{axis}", 1.0))
        step = float(step) if isinstance(step, (int, float)) and step else 1.0
        out.append(card(f"CD{axis}_{axis}", step))
    return out


AXIS_KEYWORDS = ("CTYPE", "CRVAL", "CRPIX", "CUNIT", "CNAME")
