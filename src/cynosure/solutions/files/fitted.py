"""Apply a fitted solution to the headers of its file, and verify files before their release.

:func:`apply_fit` keeps the old WCS as an alternate and gives each alternate that shared its
distortion a copy of it, so that no alternate changes its meaning. An alternate has one letter in
all chips. The cards are exchanged by the function that makes a headerlet active.

:func:`check_file` (after a fit) and :func:`check_change` (after a ``wcs`` verb) open the written
file under its temporary name, as astropy does with the open file and as ``cynosure wcs list`` does,
and compare what both read with the solution that was to be written, over the frame of each chip.
They read headers and tables, no pixels.
"""

from __future__ import annotations

import contextlib
import re
import string
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fits.alternates import Records, alternate_letters, archive_records
from cynosure.data.fits.parts import FitsParts, open_parts
from cynosure.data.fits.wcsread import is_wcs_keyword, sky_of_pixels
from cynosure.ground.errors import CynosureError, OutputError, Unverified
from cynosure.ground.sky import MAS_PER_DEG, separation_deg
from cynosure.solutions.files.cards import (
    RESERVED,
    Before,
    about_keyword,
    is_linear,
    lettered,
    shares_distortion,
)
from cynosure.solutions.files.contents import Chip, Holdings
from cynosure.solutions.files.edits import drop_letter, put_active, record_solution
from cynosure.solutions.files.headerlet import (
    OWN,
    SHARED,
    Headerlet,
    Target,
    same_distortion,
    same_solution,
)

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = ["Meant", "apply_fit", "check_change", "check_file", "solutions_in"]

Floats = NDArray[np.float64]


def apply_fit(
    held: Holdings, fit: Headerlet, *, archive: str | None = "ORIGINAL", active: bool = True
) -> str:
    """Put a solution that was fitted to this very file into its headers.

    Parameters
    ----------
    held : Holdings
        Its chips are those that were solved.
    fit : Headerlet
        A WCS for each of them. A lookup table that it names is in the file.
    archive : str or None
        The name that the old WCS gets as an alternate where it has none; None drops it. A WCS of
        the same WCSNAME as the new one is replaced.
    active : bool
        Whether it becomes the active WCS. Otherwise the old one stays, card for card, and the new
        one is an alternate.

    Returns
    -------
    str
        The letter of the alternate that was made; empty where none was.

    Raises
    ------
    OutputError
        If all letters are taken.
    """
    if held.has_active and not active:
        return put_beside(held, fit)
    letter = ""
    before = {c.target: Before.of(c.part.records) for c in held.chips}
    if not (held.has_active and same_distortion(held.active(), fit)):
        complete_alternates(held)
    names = {c.part.text("WCSNAME") for c in held.chips if c.part.has("CTYPE1")}
    if archive is not None and names != {fit.wcsname}:
        letter = archive_active(held, archive)
    regions = [c for c in held.chips if c.part.has("S_REGION")]
    evaluated = {c.target: fit.wcs(c.target, shape=c.shape) for c in regions}
    put_active(held, fit, evaluated, before)
    record_solution(held, fit, pa_only=True)
    held.notes.append(f"{fit.wcsname} is active")
    return letter


# --- alternates ------------------------------------------------------------------------------


def complete_alternates(held: Holdings) -> None:
    """Give every alternate that shares the primary's distortion a copy of it.

    One that names a distortion which the primary does not have either is left as it is.
    """
    for chip in held.chips:
        if not chip.part.has("A_ORDER"):
            continue
        for letter in alternate_letters(chip.part.records):
            if shares_distortion(chip.part.records, letter):
                chip.part.replace(_completed(chip.part.records, letter))


def _completed(records: Records, letter: str) -> Records:
    there = {k for k, _ in records}
    copies = [
        lettered(k, b, letter) for k, b in records
        if (is_wcs_keyword(k) and not is_linear(k)) or k in SHARED
    ]
    kind = re.compile(rf"CTYPE\d{letter}")
    own = [(k, b.replace(b"-SIP'", b"    '", 1) if kind.fullmatch(k) else b) for k, b in records]
    last = max((i for i, (_, b) in enumerate(own) if b.strip()), default=-1) + 1
    return own[:last] + [r for r in copies if r[0] not in there] + own[last:]


def archive_active(held: Holdings, name: str = "ORIGINAL") -> str:
    """Move the active WCS of all chips under one letter, with the cards that describe it.

    Parameters
    ----------
    held : Holdings
    name : str
        WCSNAME of the alternate where the WCS has none itself.

    Returns
    -------
    str
        The letter; empty where there was nothing to keep. A WCS that is kept already, card for
        card, is not kept twice.

    Raises
    ------
    OutputError
        If all letters are taken.
    """
    chips = [c for c in held.chips if c.part.has("CTYPE1")]
    if not chips:
        return ""
    letter = _kept_already(held, name)
    known = bool(letter)
    letter = letter or _free_letter(held)
    for chip in chips:
        records = chip.part.records
        if known:
            records = archive_records(records, name)[0]
        chip.part.replace(_archived(records, name, letter, known))
    return letter


def _kept_already(held: Holdings, name: str) -> str:
    """Return the letter under which every chip has its active WCS, card for card."""
    found = set()
    for chip in held.chips:
        letters = alternate_letters(chip.part.records)
        if not letters:
            return ""
        if chip.part.has("CTYPE1"):
            try:
                letter = archive_records(chip.part.records, name)[1]
            except OutputError:  # all letters are taken by others
                return ""
            found.add(letter if letter in letters else "")
    return found.pop() if len(found) == 1 else ""


def _free_letter(held: Holdings) -> str:
    taken = {x for c in held.chips for x in alternate_letters(c.part.records)}
    taken |= {RESERVED} if held.distortion else set()
    free = next((x for x in string.ascii_uppercase if x not in taken), "")
    if not free:
        raise OutputError(
            path=held.name, reason="all 26 letters for alternate WCSs are taken",
            hint="Delete alternates that are no longer needed (cynosure wcs delete).",
        )
    return free


def _archived(records: Records, name: str, letter: str, known: bool = False) -> Records:
    """Return cards with the primary WCS, and what describes it, under a letter.

    Where the WCS is `known` to be there, cards that describe it and are there too are not doubled.
    """
    if not known:
        records = archive_records(records, name, letter)[0]
    own = {about_keyword(k, letter) for k in OWN}
    there = {k for k, _ in records if k in own} if known else set()
    out: Records = []
    for keyword, body in records:
        if keyword in own and not known and not is_wcs_keyword(keyword[:-1]):
            continue  # a remnant of an alternate that was removed
        if keyword in OWN and not is_wcs_keyword(keyword):
            new = lettered(keyword, body, letter)
            out += [] if new[0] in there else [new]
        else:
            out.append((keyword, body))
    return out


def put_beside(held: Holdings, headerlet: Headerlet) -> str:
    """Add a solution as an alternate that is whole; one of the same WCSNAME is replaced.

    Returns
    -------
    str
        Its letter.
    """
    name = headerlet.wcsname
    for letter in held.letters:
        if held.alternate(letter).wcsname.upper() == name.upper():
            drop_letter(held, letter)
    letter = _free_letter(held)
    for chip in held.chips:
        theirs = headerlet.chip(chip.target)
        if theirs is not None:
            cards = _archived(theirs.cards, name, letter)
            records = chip.part.records
            last = max((i for i, (_, b) in enumerate(records) if b.strip()), default=-1) + 1
            chip.part.replace(records[:last] + cards + records[last:])
    held.notes.append(f"{name} is alternate {letter}")
    return letter


# --- read again -----------------------------------------------------------------------------

# Largest distance of two readings: a microarcsecond, far below any error of a catalogue. Two
# readings of the same cards agree to the rounding of a position, some 1e-7 mas.
LIMIT_MAS = 1e-3
# Points along a side of the frame at which readings are compared: enough for every term of a
# polynomial of degree 8 to show.
SIDE = 9


@dataclass(frozen=True, slots=True, eq=False)
class Meant:
    """What one unit of a written file must say.

    Attributes
    ----------
    index : int
        0-based number of the HDU.
    target : (str, int)
        How the chip is called.
    shape : (int, int)
        Rows and columns.
    wcs : WCS
        What its WCS must be.
    letter : str
        The alternate that is meant; empty for the active WCS.
    foreign : bool
        Whether other software can read it as well: SIP and lookup tables have no alternates.
    """

    index: int
    target: Target
    shape: tuple[int, int]
    wcs: WCS
    letter: str = ""
    foreign: bool = True


def check_file(
    path: Path, meant: Sequence[Meant], alternates: dict[str, Headerlet], name: str
) -> None:
    """Compare what a written file says with what is meant.

    Parameters
    ----------
    path : Path
    meant : sequence of Meant
    alternates : dict
        Letters to solutions that must still be what they were.
    name : str
        What errors call the file.

    Raises
    ------
    Unverified
        If any reading differs by more than a micro-arcsecond, or fails.
    """
    with open_parts(path) as file:
        with _opened_by_others(path, file) as hdulist:
            for one in meant:
                if one.foreign:
                    _compare(one, _sky_of_others(hdulist, file, one, name), "astropy", name)
        chips = dict.fromkeys((m.index, m.target, m.shape) for m in meant)
        held = Holdings(file, [Chip(file.parts[i], target, shape) for i, target, shape in chips])
        _check_holdings(held, meant, name)
        for letter, before in alternates.items():
            if letter not in held.letters or not same_solution(held.alternate(letter), before):
                raise Unverified(
                    image=name, reason=f"the written file would change alternate {letter}, "
                    f"{before.wcsname}", hint=REPORT,
                )


def solutions_in(held: Holdings) -> dict[str, Headerlet]:
    """Return the solutions in the science headers by letter, the active one by ``""``.

    One that cannot be read is left out.
    """
    found = {}
    if held.has_active:
        found[""] = held.active()
    for letter in held.letters:
        with contextlib.suppress(CynosureError):
            found[letter] = held.alternate(letter)
    return found


def check_change(path: Path, held: Holdings, before: dict[str, Headerlet]) -> None:
    """Compare a written file with the change of its solutions that was made in memory.

    A solution that became active is compared card by card with what was asked for, and over the
    frame of each chip as astropy reads the file. All other solutions of the science headers must
    be what they were, or what the operation made of them, and the units must be those that were
    to be written.

    Parameters
    ----------
    path : Path
        The written file, under its temporary name.
    held : Holdings
        The file as it was changed in memory.
    before : dict
        Its solutions before the change (:func:`solutions_in`).

    Raises
    ------
    Unverified
    """
    with open_parts(path) as file:
        units = [[(p.name, p.version, p.kind) for p in f.parts] for f in (file, held.file)]
        if units[0] != units[1]:
            raise _changed(held, "its units")
        index = {id(p): i for i, p in enumerate(held.parts)}
        places = [(index[id(c.part)], c) for c in held.chips]
        written = Holdings(file, [Chip(file.parts[i], c.target, c.shape) for i, c in places])
        if held.has_active != written.has_active or held.letters != written.letters:
            raise _changed(held, "its alternates")
        for letter, old in before.items():
            # An alternate without its distortion means whatever the primary has; O is linear.
            free = letter in held.exchanged or letter == RESERVED or bool(old.faults())
            if letter and (free or letter not in held.letters):
                continue
            if letter and not same_solution(written.alternate(letter), old):
                raise _changed(held, f"alternate {letter}, {old.wcsname}")
            if not letter and held.meant is None and not same_solution(written.active(), old):
                raise _changed(held, f"the active WCS, {old.wcsname}")
        if held.meant is not None:
            solution, evaluated = held.meant
            if not _has_cards_of(written.active(), solution):
                raise _changed(held, f"the cards of {solution.wcsname}")
            meant = [Meant(i, c.target, c.shape, evaluated[c.target])
                     for i, c in places if c.shape is not None and c.target in evaluated]
            if meant and not (file.tail[1] or file.damage):
                _check_others(path, file, held, meant)


def _changed(held: Holdings, what: str) -> Unverified:
    return Unverified(
        image=held.name, reason=f"the written file would change {what}", hint=REPORT
    )


def _has_cards_of(read: Headerlet, meant: Headerlet) -> bool:
    """Say whether the chips of a file have the WCS and the lookup tables of a solution."""
    for chip in read.chips:
        if (theirs := meant.chip(chip.target)) is None:
            return False
        for at in chip.lookups:
            one, two = read.table(*at), meant.table(*at)
            if one is None or two is None or one.data != two.data:
                return False
        # Without primary cards the distortion model is named by the chips alone.
        if not same_solution(replace(read, head=[], chips=(chip,)),
                             replace(meant, head=[], chips=(theirs,))):
            return False
    return True


def _check_others(path: Path, file: FitsParts, held: Holdings, meant: Sequence[Meant]) -> None:
    """Compare what astropy reads with what is meant, where astropy can read it at all.

    It cannot where it could not read the file before, nor a dialect that is read here alone (TAN
    with the PV terms of old SCAMP): then it reads the very cards of the solution otherwise.
    """
    with _opened_by_others(path, file) as hdulist:
        for one in meant:
            try:
                _compare(one, _sky_of_others(hdulist, file, one, held.name), "astropy", held.name)
            except Unverified:
                if _read_alike(held, one):
                    raise


def _read_alike(held: Holdings, one: Meant) -> bool:
    """Say whether astropy read the file before, and reads the cards of the solution as meant."""
    from astropy.io import fits
    from astropy.wcs import WCS

    assert held.meant is not None
    solution = held.meant[0]
    chip = solution.chip(one.target)
    assert chip is not None
    before = next(c for c in held.chips if c.target == one.target)
    content = solution.to_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd cards that were there before
            with fits.open(held.file.path, memmap=True) as old:
                number = [id(p) for p in held.file.before].index(id(before.part))
                WCS(old[number].header, old, naxis=2)
            with fits.HDUList.fromstring(content) as alone:
                wcs = WCS(alone["SIPWCS", chip.version].header, alone, naxis=2)
                _compare(one, sky_of_pixels(wcs, *_grid(one.shape)), "astropy", held.name)
    except (CynosureError, ValueError, KeyError, TypeError, AssertionError, OSError):
        return False
    return True


def _check_holdings(held: Holdings, meant: Sequence[Meant], name: str) -> None:
    """Compare the list of solutions with what is meant."""
    read: dict[str, Headerlet] = {}
    for one in meant:
        try:
            if one.letter not in read:
                read[one.letter] = held.alternate(one.letter) if one.letter else held.active()
            wcs = read[one.letter].wcs(one.target, shape=one.shape)
        except CynosureError as error:
            raise _wrong(name, one, f"it cannot be read again ({error})") from error
        _compare(one, sky_of_pixels(wcs, *_grid(one.shape)), "its list of solutions", name)


@contextlib.contextmanager
def _opened_by_others(path: Path, file: FitsParts) -> Iterator[Any]:
    """Open a file with astropy; None where it has records after its last unit, as few may have."""
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what astropy says of odd cards that were there before
        if file.tail[1]:
            yield None
            return
        with fits.open(path, memmap=True, lazy_load_hdus=True) as hdulist:
            yield hdulist


REPORT = "Nothing was written. Please report this with the header of the image."


def _grid(shape: tuple[int, int]) -> tuple[Floats, Floats]:
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, SIDE), np.linspace(0, ny - 1, SIDE))
    return x.ravel(), y.ravel()


def _sky_of_others(
    hdulist: Any, file: FitsParts, one: Meant, name: str
) -> tuple[Floats, Floats]:
    """Return the sky over the frame as astropy reads it from the open file."""
    from astropy.wcs import WCS

    header = file.parts[one.index].unit.header if hdulist is None else hdulist[one.index].header
    flat = {} if header.get("NAXIS", 0) <= 2 else {"naxis": 2}
    try:
        wcs = WCS(header, hdulist, key=one.letter or " ", **flat)
        if not flat:
            return sky_of_pixels(wcs, *_grid(one.shape))
        if wcs.sip is None and wcs.cpdis1 is None and wcs.det2im1 is None:
            WCS(header, hdulist, key=one.letter or " ")  # all axes; astropy distorts only two
        return sky_of_pixels(wcs, *_grid(one.shape))
    except (ValueError, KeyError, IndexError, TypeError, AssertionError, OSError) as error:
        said = " ".join(str(error).split())[-200:]
        raise _wrong(name, one, f"astropy cannot read it ({said})") from error


def _compare(one: Meant, found: tuple[Floats, Floats], reader: str, name: str) -> None:
    truth = sky_of_pixels(one.wcs, *_grid(one.shape))
    known = np.isfinite(truth[0]) & np.isfinite(truth[1])
    apart = separation_deg(*(v[known] for v in (*found, *truth))) * MAS_PER_DEG
    worst = float(np.max(apart, initial=0.0))
    if not worst < LIMIT_MAS:
        raise _wrong(
            name, one, f"{reader} reads it {worst:.3g} mas from the fit ({LIMIT_MAS:g} allowed)"
        )


def _wrong(name: str, one: Meant, reason: str) -> Unverified:
    where = f"HDU {one.index}" + (f", alternate {one.letter}" if one.letter else "")
    return Unverified(image=name, reason=f"the written WCS of {where}: {reason}", hint=REPORT)
