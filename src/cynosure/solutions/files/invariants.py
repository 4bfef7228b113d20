"""List the solutions of a file, and check the invariants that ``wcs verify`` reports.

An error is something that will mislead software or its user; a note is something odd that archives
have always had and that does no harm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cynosure.data.fits.parts import Part
from cynosure.ground.errors import CynosureError, ExitCode, SettingError
from cynosure.solutions.files.cards import RESERVED
from cynosure.solutions.files.compare import Separation, separations
from cynosure.solutions.files.contents import (
    Entry,
    Holdings,
    open_holdings,
    shapes_of,
)
from cynosure.solutions.files.headerlet import (
    TABLES,
    Headerlet,
    HeaderletDamaged,
    Target,
    lookups_of,
    same_solution,
)
from cynosure.solutions.files.headerletio import read_headerlet
from cynosure.solutions.files.wcscorr import find_wcscorr
from cynosure.solutions.names import parse_wcsname

__all__ = [
    "Finding", "NotTrue", "check", "check_headerlet", "check_holdings", "duplicates_of",
    "holdings_table", "listing",
]


class NotTrue(CynosureError):
    """A file whose solutions contradict themselves."""

    text = "{image}: {reason}"
    hint = "`cynosure wcs list FILE` shows what it holds."
    exit_code = ExitCode.NOT_VERIFIED


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes
    ----------
    level : str
        ``error`` or ``note``.
    text : str
    cure : str
        The command that mends it, where one does; FILE stands for the file.
    """

    level: Literal["error", "note"]
    text: str
    cure: str = ""


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
    entries = list(held.entries())
    out = [
        *_units(held), *_active(held, entries), *_alternates(held, entries),
        *_headerlets(held, entries), *_doubles(entries),
    ]
    out += [Finding("error", text) for text in held.file.damage]
    table, reason = find_wcscorr(held.file)
    if reason:
        out.append(Finding("note", reason))
    elif table is not None:
        out += [Finding("error", f) for f in table.faults()]
    return out


def duplicates_of(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Return the headerlets that are the solution of an earlier one: that one, and the later.

    They have the same WCS, and one WCSNAME or one HDRNAME.
    """
    out: list[tuple[Entry, Entry]] = []
    firsts: list[Entry] = []
    for entry in entries:
        if entry.place != "headerlet" or entry.headerlet is None:
            continue
        for first in firsts:
            one = first.headerlet
            named = (entry.wcsname.upper() == first.wcsname.upper()
                     or entry.hdrname == first.hdrname)
            if named and one is not None and same_solution(one, entry.headerlet):
                out.append((first, entry))
                break
        else:
            firsts.append(entry)
    return out


# --- listing --------------------------------------------------------------------------------


def listing(path: str | Path, *, distances: bool = True) -> dict[str, Any]:
    """Return what a file holds, an image or a headerlet, JSON-safe.

    Parameters
    ----------
    path : path
    distances : bool
        Whether to evaluate the solutions.

    Returns
    -------
    dict
        ``rootname``, ``distortion``, ``chips``, ``solutions`` (a record each), ``damage``.

    Raises
    ------
    ImageError
    """
    try:
        headerlet = read_headerlet(path)
    except HeaderletDamaged:
        with open_holdings(path) as held:
            return {
                "rootname": held.rootname, "distortion": str(held.distortion),
                "chips": [f"{c.target[0]},{c.target[1]}" for c in held.chips],
                "solutions": holdings_table(held, distances=distances),
                "damage": list(held.file.damage),
            }
    record: dict[str, Any] = {
        "key": "file", "place": "headerlet", "wcsname": headerlet.wcsname,
        "hdrname": headerlet.hdrname, "problem": "", **_said(headerlet),
        "doubts": [*headerlet.notes, *headerlet.faults(), *headerlet.doubts()],
    }
    return {
        "rootname": headerlet.destim, "distortion": str(headerlet.distortion),
        "chips": [f"{c.target[0]},{c.target[1]}" for c in headerlet.chips],
        "solutions": [record], "damage": [],
    }


def holdings_table(held: Holdings, *, distances: bool = True) -> list[dict[str, Any]]:
    """Return a record for every solution of a file, with its distance from the active one.

    Parameters
    ----------
    held : Holdings
    distances : bool
        Whether to evaluate them; it takes some ten milliseconds a chip.
    """
    shapes, out, active, entries = shapes_of(held), [], None, list(held.entries())
    for entry in entries:
        record: dict[str, Any] = {
            "key": entry.key, "place": entry.place, "wcsname": entry.wcsname,
            "hdrname": entry.hdrname, "problem": entry.problem,
        }
        h = entry.headerlet
        if h is not None:
            if entry.place == "active":
                active = h
            doubts = [r.text for r in held.reasons(h, entry.key, entries)]
            record |= {**_said(h), "doubts": [*h.notes, *doubts]}
            if distances and active is not None and entry.place != "active":
                record |= _distance(active, h, shapes, record)
        out.append(record)
    return out


def _distance(
    active: Headerlet, other: Headerlet, shapes: dict[Target, Any], record: dict[str, Any]
) -> dict[str, Any]:
    try:
        maps = separations(active, other, shapes, side=9)
    except (HeaderletDamaged, SettingError) as error:
        return {"problem": record["problem"] or str(error.facts.get("reason", error))}
    return {"distance_mas": _together(maps)}


def _together(maps: Sequence[Separation]) -> dict[str, float | None]:
    every = np.concatenate([m.sep_mas.ravel() for m in maps]) if maps else np.array([np.nan])
    every = every[np.isfinite(every)]
    if not every.size:
        return {"min": None, "median": None, "max": None}
    return {"min": float(every.min()), "median": float(np.median(every)), "max": float(every.max())}


def _said(h: Headerlet) -> dict[str, Any]:
    """Return what a solution says of itself."""
    rms = [None if not np.isfinite(v) else v for v in h.rms_mas]
    return {
        "distname": h.distname, "catalog": h.catalog, "n_matched": h.n_matched,
        "rms_ra_mas": rms[0], "rms_dec_mas": rms[1], "created": h.text("DATE") or None,
        "author": h.text("AUTHOR"), "chips": len(h.chips),
    }


# --- checking -------------------------------------------------------------------------------


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


def _active(held: Holdings, entries: list[Entry]) -> list[Finding]:
    if not held.has_active:
        return [Finding("error", "there is no active WCS")]
    out, active = [], held.active()
    found = held.reasons(active, "active", entries)
    for reason in found:
        out.append(Finding("error", reason.text.replace("SIPWCS", "active WCS of chip")))
    if not any(r.unfit for r in found):
        for chip in active.chips:
            try:
                active.wcs(chip.target)
            except HeaderletDamaged as error:
                out.append(Finding("error", str(error)))
    stated = held.chips[0].part.text("HDRNAME")
    if stated and held.embedded:
        named = [e for e in entries if e.place == "headerlet" and e.hdrname == stated]
        if not named:
            out.append(Finding("note", f"the active WCS's headerlet {stated} is not in the file"))
        elif named[0].headerlet is not None and not same_solution(named[0].headerlet, active):
            text = f"{named[0].key} {stated} is not the active WCS, which has that name"
            out.append(Finding("error", text))
    return out


def _alternates(held: Holdings, entries: list[Entry]) -> list[Finding]:
    out = []
    alternates = [e for e in entries if e.place == "alternate"]
    names = Counter(e.wcsname.upper() for e in alternates)
    out += [Finding("error", f"{n} alternates are called {k}") for k, n in names.items() if n > 1]
    for entry in alternates:
        where, one = f"alternate {entry.key}", entry.headerlet
        cure = f"cynosure wcs delete FILE {entry.key}"
        if one is None:
            out.append(Finding("error", f"{where} cannot be read: {entry.problem}", cure))
        elif entry.key == RESERVED and held.distortion:
            out += _original(held, one)
        else:
            out += [Finding("error", f"{where} {one.wcsname}: {_of_chip(r.text)}", cure)
                    for r in held.reasons(one, entry.key, entries)]
    for letter in held.remnants:
        out.append(Finding("note", f"letter {letter} has cards that were left of an alternate",
                           f"cynosure wcs delete FILE {letter}"))
    return out


def _of_chip(text: str) -> str:
    return text.replace("SIPWCS,", "chip ")


def _original(held: Holdings, original: Headerlet) -> list[Finding]:
    """Check the telescope's own WCS."""
    out = []
    if held.shares(RESERVED):  # old archives copied CTYPE with its -SIP
        text = "the CTYPE of alternate O says -SIP; the original WCS is linear"
        out.append(Finding("note", text))
    elif any(c.distortion or c.lookups for c in original.chips):
        out.append(Finding("error", "alternate O has a distortion; it is the original WCS"))
    if parse_wcsname(original.wcsname).kind != "pipeline":
        out.append(Finding("error", f"alternate O is called {original.wcsname}, not OPUS"))
    out += [Finding("error", f"alternate O: {_of_chip(r.text)}")
            for r in held.reasons(original, RESERVED, [])]
    return out


def _headerlets(held: Holdings, entries: list[Entry]) -> list[Finding]:
    out, names, wrong = [], Counter[str](), []
    for entry in entries:
        if entry.place != "headerlet" or entry.part is None:
            continue
        if entry.headerlet is None:
            out.append(Finding("error", f"{entry.key} {entry.hdrname}: {entry.problem}"))
            continue
        names[entry.hdrname] += 1
        for reason in held.reasons(entry.headerlet, entry.key, entries):
            out.append(Finding("error", f"{entry.key}: {reason.text}",
                               f"cynosure wcs delete FILE {entry.key}"))
        if entry.part.text("HDRNAME") != entry.hdrname:
            out.append(Finding("error", f"{entry.key}: HDRNAME inside and outside differ"))
        if not _offsets_true(held, entry.part):
            wrong.append(entry.key)
    if wrong:
        out.append(Finding("note", f"XINDn do not point to the extensions of {', '.join(wrong)}"))
    out += [Finding("error", f"{n} headerlets are called {k}") for k, n in names.items() if n > 1]
    used = {at for c in held.chips for at in lookups_of(c.part.records)}
    unused = sum((p.name, p.version) not in used for p in held.parts if p.name in TABLES)
    if unused:
        out.append(Finding("note", f"{unused} lookup tables are not used by the active WCS"))
    return out


def _doubles(entries: list[Entry]) -> list[Finding]:
    """Say which headerlets are one solution; that is clutter, and no harm."""
    return [
        Finding("note", f"{later.key} {later.hdrname} is the solution of {first.key}",
                "cynosure wcs delete FILE --duplicates")
        for first, later in duplicates_of(entries)
    ]


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
