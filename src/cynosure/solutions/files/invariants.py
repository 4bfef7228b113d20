"""What must be true of the solutions of a file, and whether it is.

An error is something that will mislead software or its user; a note is something odd that archives
have always had and that does no harm.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cynosure.data.fits.parts import Part
from cynosure.ground.errors import CynosureError, ExitCode
from cynosure.solutions.files.contents import RESERVED, Holdings, open_holdings
from cynosure.solutions.files.headerlet import (
    TABLES,
    Headerlet,
    HeaderletDamaged,
    lookups_of,
    same_solution,
)
from cynosure.solutions.files.headerletio import read_headerlet
from cynosure.solutions.files.wcscorr import find_wcscorr
from cynosure.solutions.names import parse_wcsname

__all__ = ["Finding", "NotTrue", "check", "check_headerlet", "check_holdings"]


class NotTrue(CynosureError):
    """A file whose solutions contradict themselves."""

    text = "{image}: {reason}"
    hint = "`cynosure wcs list FILE` shows what it holds; `delete --duplicates` removes doubles."
    exit_code = ExitCode.NOT_VERIFIED


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    level: Literal["error", "note"]
    text: str


def check(path: str | Path) -> list[Finding]:
    """Check an image or a headerlet.

    Raises
    ------
    ImageError
        If it cannot be read at all.
    """
    try:
        headerlet = read_headerlet(path)
    except HeaderletDamaged as error:
        if "no SIPWCS" not in str(error):
            with open_holdings(path) as held:  # says what is wrong with a file that is no FITS
                return check_holdings(held)
    else:
        return check_headerlet(headerlet)
    with open_holdings(path) as held:
        return check_holdings(held)


def check_headerlet(headerlet: Headerlet) -> list[Finding]:
    """Check a headerlet against itself."""
    out = [Finding("error", f) for f in headerlet.faults()]
    out += [Finding("error", d) for d in headerlet.doubts()]
    out += [Finding("note", n) for n in headerlet.notes]
    if not headerlet.destim:
        out.append(Finding("error", "DESTIM is missing: it fits no exposure"))
    if not headerlet.text("UPWCSVER"):
        out.append(Finding("note", "UPWCSVER is missing"))
    parsed = parse_wcsname(headerlet.wcsname)
    if parsed.kind == "a posteriori" and not headerlet.n_matched:
        out.append(Finding("note", "a fit that does not say how many stars it had"))
    if not out:
        for chip in headerlet.chips:
            try:
                headerlet.wcs(chip.target)
            except HeaderletDamaged as error:
                out.append(Finding("error", str(error)))
    used = {at for chip in headerlet.chips for at in chip.lookups}
    for table in headerlet.tables:
        if (table.name, table.version) not in used:
            out.append(Finding("note", f"{table.name},{table.version} is not used"))
    return out


def check_holdings(held: Holdings) -> list[Finding]:
    """Check everything that a file holds."""
    out = [*_units(held), *_active(held), *_alternates(held), *_headerlets(held)]
    table, reason = find_wcscorr(held.file)
    if reason:
        out.append(Finding("note", reason))
    elif table is not None:
        out += [Finding("error", f) for f in table.faults()]
    return out


def _units(held: Holdings) -> list[Finding]:
    out = []
    stated = held.primary.get("NEXTEND")
    if stated is not None and stated != len(held.parts) - 1:
        out.append(Finding("error", f"NEXTEND says {stated}, there are {len(held.parts) - 1}"))
    places = Counter((p.name, p.version) for p in held.parts[1:] if p.name)
    for (name, version), n in places.items():
        if n > 1:
            out.append(Finding("error", f"{n} extensions are {name},{version}"))
    return out


def _active(held: Holdings) -> list[Finding]:
    if not held.has_active:
        return [Finding("error", "there is no active WCS")]
    out, active = [], held.active()
    names = {c.part.text("WCSNAME") for c in held.chips}
    if len(names) > 1:
        listed = ", ".join(sorted(names))
        out.append(Finding("error", f"its chips have different active solutions: {listed}"))
    for fault in active.faults():
        out.append(Finding("error", fault.replace("SIPWCS", "active WCS of chip")))
    if not active.faults():
        for chip in active.chips:
            try:
                active.wcs(chip.target)
            except HeaderletDamaged as error:
                out.append(Finding("error", str(error)))
    stated = held.chips[0].part.text("HDRNAME")
    if stated and held.embedded:
        named = [e for e in map(held.entry, held.embedded) if e.hdrname == stated]
        if not named:
            out.append(Finding("note", f"the active WCS's headerlet {stated} is not in the file"))
        elif named[0].headerlet is not None and not same_solution(named[0].headerlet, active):
            text = f"{named[0].key} {stated} is not the active WCS, which has that name"
            out.append(Finding("error", text))
    return out


def _alternates(held: Holdings) -> list[Finding]:
    out = []
    names = Counter(held.alternate(x).wcsname.upper() for x in held.letters)
    out += [Finding("error", f"{n} alternates are called {k}") for k, n in names.items() if n > 1]
    for letter in held.letters:
        if not all(c.part.has(f"CTYPE1{letter}") for c in held.chips):
            out.append(Finding("error", f"alternate {letter} is not in all chips"))
    if RESERVED in held.letters and held.distortion:
        original = held.alternate(RESERVED)
        if any(c.distortion or c.lookups for c in original.chips):
            out.append(Finding("error", "alternate O has a distortion; it is the original WCS"))
        if parse_wcsname(original.wcsname).kind != "pipeline":
            out.append(Finding("error", f"alternate O is called {original.wcsname}, not OPUS"))
    return out


def _headerlets(held: Holdings) -> list[Finding]:
    out, names, wrong = [], Counter[str](), []
    for part in held.embedded:
        entry = held.entry(part)
        if entry.headerlet is None:
            out.append(Finding("error", f"{entry.key} {entry.hdrname}: {entry.problem}"))
            continue
        names[entry.hdrname] += 1
        if entry.headerlet.destim != held.rootname and entry.headerlet.destim != held.stem:
            text = f"{entry.key} is a WCS of {entry.headerlet.destim or 'no exposure'}"
            out.append(Finding("error", text))
        for text in (*entry.headerlet.faults(), *entry.headerlet.doubts()):
            out.append(Finding("error", f"{entry.key}: {text}"))
        if part.text("HDRNAME") != entry.hdrname:
            out.append(Finding("error", f"{entry.key}: HDRNAME inside and outside differ"))
        if not _offsets_true(held, part):
            wrong.append(entry.key)
    if wrong:
        out.append(Finding("note", f"XINDn do not point to the extensions of {', '.join(wrong)}"))
    out += [Finding("error", f"{n} headerlets are called {k}") for k, n in names.items() if n > 1]
    used = {at for c in held.chips for at in lookups_of(c.part.records)}
    unused = sum((p.name, p.version) not in used for p in held.parts if p.name in TABLES)
    if unused:
        out.append(Finding("note", f"{unused} lookup tables are not used by the active WCS"))
    return out


def _offsets_true(held: Holdings, part: Part) -> bool:
    """Say whether XINDn are the byte offsets of the embedded extensions."""
    if part.get("COMPRESS") is True:
        return True
    data, number = held.file.data_of(part), 1
    while (at := part.get(f"XIND{number}")) is not None:
        if not isinstance(at, int) or data[at : at + 8] != b"XTENSION":
            return False
        number += 1
    return True
