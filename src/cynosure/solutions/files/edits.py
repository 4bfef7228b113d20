"""Changes of the solutions of a file, in memory: attach, keep, apply, exchange, remove.

No function here writes to the disk; a refusal raises an error. Two rules hold throughout. No WCS
is lost: a WCS that is replaced stays in the file, as a headerlet or an alternate. No WCS is kept
twice: a solution that the file has is not added again, so that switching between two solutions
leaves the size of the file unchanged.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

import numpy as np

from cynosure.data.fits.alternates import records_of
from cynosure.data.fits.parts import Part
from cynosure.ground.errors import CynosureError, ExitCode
from cynosure.solutions.files.cards import (
    RESERVED,
    Before,
    applied_cards,
    exchanged_cards,
    inserted,
    lettered_cards,
    original_cards,
    without_letter,
)
from cynosure.solutions.files.compare import s_region
from cynosure.solutions.files.contents import Entry, Holdings
from cynosure.solutions.files.hdrlet import embed
from cynosure.solutions.files.headerlet import (
    TABLES,
    Headerlet,
    HeaderletDamaged,
    Target,
    same_distortion,
    same_solution,
)
from cynosure.solutions.files.wcscorr import WcsCorr, find_wcscorr, new_wcscorr
from cynosure.solutions.names import hdrname, parse_wcsname
from cynosure.solutions.soundness import Reason, bare_name

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = [
    "NameTaken",
    "Refused",
    "WrongDistortion",
    "WrongExposure",
    "add_alternate",
    "apply_primary",
    "attach_to",
    "check_sound",
    "drop_letter",
    "drop_remnants",
    "exchange",
    "keep_active",
    "put_active",
    "record_attached",
    "record_solution",
    "remove",
    "renumber",
    "unique_hdrname",
]


class Refused(CynosureError):
    """An operation that would break a rule; nothing was changed."""

    text = "{image}: {reason}"
    exit_code = ExitCode.USAGE


class WrongExposure(Refused):
    """A headerlet of another exposure."""

    text = "{headerlet}: {reason}, {image} is {rootname}"
    hint = "A headerlet fits its own exposure only; use --force if it is one of this exposure."


class WrongDistortion(Refused):
    """A headerlet that was made with another distortion model."""

    text = "{headerlet} has the distortion model {theirs}, {image} has {ours}"
    hint = "Use --force to take it with its own model; the present one is archived."


class NameTaken(Refused):
    """A headerlet of that name, and another content, is in the file."""

    text = "{image}: it has a headerlet {name!r} already, with another WCS"
    hint = "Delete that one first, or give --name."
    exit_code = ExitCode.OUTPUT_EXISTS


# --- headerlets as extensions ---------------------------------------------------------------


FORCE = "Use --force to take it all the same; `cynosure wcs list FILE` shows the others."


def check_sound(
    held: Holdings, headerlet: Headerlet, *, key: str = "", force: bool = False
) -> None:
    """Refuse a solution that is not sound; by force it is taken, with a warning.

    Parameters
    ----------
    held : Holdings
    headerlet : Headerlet
    key : str
        The key of its entry, where the file holds it.
    force : bool

    Raises
    ------
    WrongExposure, Refused, HeaderletDamaged
    """
    _refuse(held, headerlet, held.reasons(headerlet, key), force)


def _refuse(held: Holdings, headerlet: Headerlet, found: list[Reason], force: bool) -> None:
    if not found:
        return
    name = headerlet.hdrname or headerlet.wcsname or "the headerlet"
    listed = "; ".join(dict.fromkeys(r.text for r in found))
    if force:
        held.warnings.append(f"{name} is taken by force: {listed}")
    elif found[0].kind == "identity":
        raise WrongExposure(
            image=held.name, rootname=held.rootname, destim=headerlet.destim or "no exposure",
            headerlet=name, reason=found[0].text,
        )
    elif found[0].kind == "chips":
        raise Refused(
            image=held.name, reason=f"{name}: {listed}",
            hint="A headerlet must have a SIPWCS for every image of the exposure.",
        )
    else:
        raise HeaderletDamaged(headerlet=name, reason=listed, hint=FORCE)


def attach_to(
    held: Holdings, headerlet: Headerlet, *, compress: bool = False, force: bool = False
) -> bool:
    """Append a headerlet as an extension; return whether it was not there yet.

    One that goes by another name than the exposure is addressed to it (DESTIM), so that other
    software takes it, too.

    Raises
    ------
    WrongExposure, NameTaken
    """
    if not force:
        strange = [r for r in held.reasons(headerlet) if r.kind == "identity"]
        _refuse(held, headerlet, strange, force=False)
    if bare_name(headerlet.destim) not in held.exposure.names:
        held.notes.append(f"DESTIM was {headerlet.destim or 'empty'}, is {held.rootname} now")
        headerlet = headerlet.replaced(DESTIM=held.rootname)
    for part in held.embedded:
        entry = held.entry(part)
        if entry.hdrname != headerlet.hdrname:
            continue
        if entry.headerlet is not None and same_solution(entry.headerlet, headerlet):
            held.notes.append(f"{headerlet.hdrname} is attached already, as {entry.key}")
            return False
        raise NameTaken(image=held.name, name=headerlet.hdrname)
    version = max((p.version for p in held.embedded), default=0) + 1
    held.parts.append(embed(headerlet, version, compress=compress))
    held.notes.append(f"attached {headerlet.hdrname} as HDRLET,{version}")
    return True


def unique_hdrname(held: Holdings, headerlet: Headerlet, avoid: str = "") -> str:
    """Return the name of a headerlet, or a new one where a headerlet has it, or it is `avoid`."""
    taken = {held.entry(p).hdrname for p in held.embedded} | ({avoid} - {""})
    name, number = headerlet.hdrname, 1
    while name in taken:
        body = hdrname(held.stem, headerlet.wcsname).removesuffix("-hlet.fits")
        name = f"{body}{f'-{number}' if number > 1 else ''}-hlet.fits"
        number += 1
    return name


def keep_active(held: Holdings, avoid: str = "") -> None:
    """Make sure that the active WCS is held besides being active, not under the name `avoid`."""
    if not held.has_active:
        return
    active = held.active()
    where = held.kept_as(active)
    if where is not None:
        held.notes.append(f"{active.wcsname} stays in the file as {where.key}")
        return
    _keep(held, active, avoid)


def _keep(held: Holdings, headerlet: Headerlet, avoid: str = "") -> None:
    """Attach a solution of the science headers, under a name of its own."""
    missing = _missing_tables(headerlet)
    if missing:
        raise Refused(
            image=held.name, reason=f"its WCS {headerlet.wcsname} names {', '.join(missing)}, "
            "which is not in the file, so it cannot be kept",
            hint="Use --no-archive to drop it.",
        )
    named = headerlet.replaced(HDRNAME=unique_hdrname(held, headerlet, avoid))
    if named.destim != held.rootname:
        named = named.replaced(DESTIM=held.rootname)
    attach_to(held, named, force=True)
    record_solution(held, named, pa_only=True)


def renumber(held: Holdings) -> None:
    """Give headerlets the EXTVERs 1 … n in the order they lie, and say which have a new one.

    Other software counts headerlets to number the next one, so numbers with gaps would come twice.
    """
    moved = []
    for number, part in enumerate(held.embedded, start=1):
        if part.version != number:
            moved.append(f"HDRLET,{part.version} is HDRLET,{number} now")
        part.set("EXTVER", number)
    held.notes += moved


# --- the primary WCS ------------------------------------------------------------------------


def apply_primary(
    held: Holdings, headerlet: Headerlet, *, archive: bool = True, attach: bool = True,
    force: bool = False, key: str = "",
) -> None:
    """Make a headerlet the active WCS.

    Parameters
    ----------
    held : Holdings
    headerlet : Headerlet
    archive : bool
        Keep the WCS that is replaced.
    attach : bool
        Append the headerlet itself, where it is not in the file.
    force : bool
        Take one with another distortion model, or one that is not sound.
    key : str
        The key of its entry, where the file holds it.

    Raises
    ------
    WrongExposure, WrongDistortion, Refused, HeaderletDamaged
        Nothing is changed then.
    """
    evaluated = _check_fit(held, headerlet, force, key)
    other_model = held.distortion != headerlet.distortion and bool(
        held.distortion or headerlet.distortion
    )
    if archive:
        keep_active(held, headerlet.hdrname)
    _put_alternates_away(held, headerlet, other_model, archive)
    _keep_original(held)
    if attach:
        attach_to(held, headerlet, force=True)
    _exchange_tables(held, headerlet, other_model)
    held.meant = headerlet, evaluated
    put_active(held, headerlet, evaluated)
    _state_model(held, headerlet, other_model)
    record_solution(held, headerlet)
    held.notes.append(f"{headerlet.wcsname} is active")


def put_active(
    held: Holdings, headerlet: Headerlet, evaluated: dict[Target, WCS],
    before: dict[Target, Before] | None = None,
) -> None:
    """Put the cards of a solution into the headers of the chips, in the place of the old ones.

    `evaluated` needs the WCS of chips with an S_REGION only.
    """
    for chip in held.chips:
        theirs = headerlet.chip(chip.target)
        assert theirs is not None
        was = before[chip.target] if before else Before.of(chip.part.records)
        chip.part.replace(applied_cards(chip.part.records, headerlet, theirs.cards, was))
        if chip.part.has("S_REGION") and chip.shape is not None:
            chip.part.set("S_REGION", s_region(evaluated[chip.target], chip.shape), "")


def _check_fit(
    held: Holdings, headerlet: Headerlet, force: bool, key: str
) -> dict[Target, WCS]:
    """Refuse what does not fit; return the WCS of each chip."""
    found = held.reasons(headerlet, key)
    strange = [r for r in found if r.kind == "identity"]
    _refuse(held, headerlet, strange, force)
    missing = [r for r in found if r.kind == "chips" and "no WCS of" in r.text]
    _refuse(held, headerlet, missing, force=False)
    ours, theirs = held.distortion, headerlet.distortion
    if ours != theirs and not force:
        raise WrongDistortion(
            image=held.name, headerlet=headerlet.hdrname, ours=str(ours), theirs=str(theirs)
        )
    _refuse(held, headerlet, [r for r in found if r not in strange], force)
    # A WCS that cannot be evaluated never becomes active.
    return {c.target: headerlet.wcs(c.target, shape=c.shape) for c in held.chips}


def _put_alternates_away(
    held: Holdings, headerlet: Headerlet, other_model: bool, archive: bool
) -> None:
    """Take alternates out of the headers that the change would take the distortion from.

    They are headerlets then: a letter that says -SIP beside another distortion, or none, has
    wrong positions for everybody who reads it.
    """
    for letter in held.letters:
        if letter == RESERVED or not (other_model or held.shares(letter)):
            continue
        other = held.alternate(letter)
        if not other_model and same_distortion(other, headerlet):
            continue
        lost = bool(other.faults())
        whole = _whole(held, other) if lost else None
        if whole is not None:
            if not other_model and same_distortion(whole, headerlet):
                continue  # the change gives it its distortion back
        elif lost:
            held.warnings.append(f"alternate {letter} {other.wcsname} lacks the distortion that "
                                 "it names, and nothing in the file has it")
            if not other_model:
                continue
        elif held.kept_as(other, headerlets_only=True) is None:
            if archive or not _missing_tables(other):
                _keep(held, other, headerlet.hdrname)
        where = held.kept_as(other if whole is None else whole, headerlets_only=True)
        drop_letter(held, letter, f"{where.key} has it with its distortion" if where else "")


def _whole(held: Holdings, lost: Headerlet) -> Headerlet | None:
    """Return the headerlet of an alternate that has lost its distortion."""
    for entry in map(held.entry, held.embedded):
        found = entry.headerlet
        if found is not None and found.wcsname == lost.wcsname and not found.faults() and all(
            (theirs := found.chip(c.target)) is not None
            and np.allclose(theirs.linear, c.linear, rtol=1e-12, atol=1e-18)
            for c in lost.chips
        ):
            return found
    return None


def _missing_tables(headerlet: Headerlet) -> list[str]:
    return [f"{n},{v}" for c in headerlet.chips for n, v in c.lookups
            if headerlet.table(n, v) is None]


def _keep_original(held: Holdings) -> None:
    """Give Hubble's own WCS the letter O before it is replaced for the first time."""
    if RESERVED in held.letters or not held.distortion or not held.has_active:
        return
    if parse_wcsname(held.active().wcsname).kind != "pipeline":
        return
    for chip in held.chips:
        chip.part.replace(inserted(chip.part.records, original_cards(chip.part.records)))


def _exchange_tables(held: Holdings, headerlet: Headerlet, other_model: bool) -> None:
    """Put a headerlet's tables where those of the same EXTVER lie, or behind the last one.

    Tables of the same model that the new WCS does not name (that of a linear WCS, say) stay: the
    solution that needs them comes back to find them. Those of another model go.
    """
    wanted = {at for chip in headerlet.chips for at in chip.lookups}
    if other_model:
        held.parts[:] = [
            p for p in held.parts if p.name not in TABLES or (p.name, p.version) in wanted
        ]
    for at in sorted(wanted, key=lambda t: (TABLES.index(t[0]), t[1])):
        table = headerlet.table(*at)
        if table is None:
            continue
        new = Part([], table.header, table.data, 0, len(table.data))
        new.records = records_of(table.header)
        old = next((i for i, p in enumerate(held.parts) if (p.name, p.version) == at), None)
        if old is None:
            held.parts.insert(_place_for_table(held.parts), new)
        elif held.parts[old].header_bytes() != table.header or (
            held.file.data_of(held.parts[old]) != table.data
        ):
            held.parts[old] = new


def _place_for_table(parts: list[Part]) -> int:
    last = [i for i, p in enumerate(parts) if p.name in TABLES]
    if last:
        return last[-1] + 1
    kept = [i for i, p in enumerate(parts) if p.name == "WCSCORR" or p.kind == "HDRLET"]
    return kept[0] if kept else len(parts)


def _state_model(held: Holdings, headerlet: Headerlet, other_model: bool) -> None:
    """Name the reference files of the model in the primary header."""
    primary = held.primary
    for keyword in ("UPWCSVER", "PYWCSVER"):
        if primary.has(keyword) and headerlet.text(keyword):
            primary.set(keyword, headerlet.text(keyword))
    if other_model:
        for keyword in ("IDCTAB", "NPOLFILE", "D2IMFILE"):
            primary.set(keyword, headerlet.text(keyword) or "N/A")
        for keyword in ("SIPNAME", "DISTNAME"):
            if primary.has(keyword) or headerlet.text(keyword):
                primary.set(keyword, headerlet.text(keyword))


# --- alternates -----------------------------------------------------------------------------


def add_alternate(
    held: Holdings, headerlet: Headerlet, letter: str | None = None, *, key: str = "",
    force: bool = False,
) -> str:
    """Keep a headerlet as an alternate; return its letter.

    One with the distortion of the active WCS gets its linear part, as Hubble's alternates have it;
    any other is kept whole.

    Raises
    ------
    WrongExposure, WrongDistortion, Refused, HeaderletDamaged
    """
    check_sound(held, headerlet, key=key, force=force)
    if held.distortion != headerlet.distortion:
        raise WrongDistortion(
            image=held.name, headerlet=headerlet.hdrname, ours=str(held.distortion),
            theirs=str(headerlet.distortion), hint="Alternates share the active distortion.",
        )
    for taken in held.letters:
        if held.alternate(taken).wcsname.upper() == headerlet.wcsname.upper():
            if same_solution(held.alternate(taken), headerlet):
                held.notes.append(f"{headerlet.wcsname} is alternate {taken} already")
                return taken
            raise NameTaken(
                image=held.name, name=headerlet.wcsname,
                hint=f"Delete alternate {taken} first.",
            )
    chosen = _free_letter(held, letter)
    for chip in held.chips:
        theirs = headerlet.chip(chip.target)
        if theirs is None:
            reason = f"{headerlet.hdrname} has no WCS of {chip.target[0]},{chip.target[1]}"
            raise Refused(image=held.name, reason=reason)
        cards = lettered_cards(theirs.cards, headerlet, chosen, shared=bool(held.distortion))
        chip.part.replace(inserted(chip.part.records, cards))
    held.exchanged.add(chosen)
    held.notes.append(f"{headerlet.wcsname} is alternate {chosen}")
    return chosen


def _free_letter(held: Holdings, letter: str | None) -> str:
    """Return the letter asked for, or the first that no card of any chip has."""
    remnants = held.remnants
    free = [x for x in string.ascii_uppercase if x not in held.letters + remnants + RESERVED]
    chosen = letter or (free[0] if free else "")
    if chosen in free:
        return chosen
    if chosen and chosen in remnants:
        raise Refused(
            image=held.name, reason=f"letter {chosen} has cards that were left of an alternate",
            hint=f"`cynosure wcs delete FILE {chosen}` removes them.",
        )
    raise Refused(
        image=held.name, hint="Delete alternates that are no longer needed.",
        reason=f"letter {chosen} is not free" if chosen else "all letters are taken",
    )


def exchange(held: Holdings, letter: str) -> bool:
    """Exchange the active WCS and an alternate that is complete in itself, card by card.

    Returns
    -------
    bool
        False, and nothing is changed, where the chips would need different letters.
    """
    if not all(chip.part.has(f"CTYPE1{letter}") for chip in held.chips):
        return False
    exchanged = [exchanged_cards(chip.part.records, letter) for chip in held.chips]
    results, letters = [r for r, _ in exchanged], {x for _, x in exchanged}
    if len(letters) > 1:
        return False
    new = held.alternate(letter)
    try:
        held.meant = new, {c.target: new.wcs(c.target, shape=c.shape) for c in held.chips}
    except HeaderletDamaged:
        held.meant = new, {}
    held.exchanged |= {letter, *letters}
    for chip, records in zip(held.chips, results):
        chip.part.replace(records)
    name = held.active().wcsname
    held.notes.append(f"{name} is active; what was active is alternate {letters.pop()}")
    return True


def drop_letter(held: Holdings, letter: str, why: str = "") -> None:
    """Remove an alternate from all chips, and say why."""
    _remove_letter(held, letter)
    held.notes.append(f"alternate {letter} was removed" + (f": {why}" if why else ""))


def drop_remnants(held: Holdings, letter: str) -> None:
    """Remove the cards that were left of an alternate, which has no CTYPE any more."""
    _remove_letter(held, letter)
    held.notes.append(f"the cards left of alternate {letter} were removed")


def _remove_letter(held: Holdings, letter: str) -> None:
    for chip in held.chips:
        chip.part.replace(without_letter(chip.part.records, letter))
    held.exchanged.add(letter)


def remove(held: Holdings, entry: Entry) -> None:
    """Remove a headerlet or an alternate; never the active WCS, never ``O``.

    Raises
    ------
    Refused
    """
    if entry.place == "active":
        raise Refused(
            image=held.name, reason="the active WCS cannot be deleted",
            hint="Activate another one first.",
        )
    if entry.key == RESERVED and held.distortion:
        raise Refused(
            image=held.name, reason="alternate O is the telescope's own WCS and is not deleted",
        )
    if entry.place == "alternate":
        drop_letter(held, entry.key)
        return
    held.parts[:] = [p for p in held.parts if p is not entry.part]
    held.notes.append(f"deleted {entry.key} {entry.hdrname}")
    table, reason = find_wcscorr(held.file)
    if reason:
        held.notes.append(reason)
    gone = entry.headerlet
    if table is not None and gone is not None:
        still = held.kept_as(gone, headerlets_only=True)
        active = held.has_active and same_solution(held.active(), gone)
        if still is None and not active:
            table.remove(gone)


# --- the history table ----------------------------------------------------------------------


def record_solution(held: Holdings, headerlet: Headerlet, *, pa_only: bool = False) -> None:
    """Write a solution into WCSCORR; where Hubble's file has none, make it."""
    table, reason = find_wcscorr(held.file)
    if reason:
        held.notes.append(reason)
        return
    if table is None:
        combined = held.primary.has("NDRIZIM") or held.primary.has("D001DATA")
        if pa_only or combined or not held.distortion or len(held.parts) == 1:
            return
        table = _begun(held)
    table.add(headerlet, _angle(held))


def record_attached(held: Holdings, headerlet: Headerlet) -> None:
    """Write into WCSCORR, where there is one, that a headerlet was attached."""
    table, reason = find_wcscorr(held.file)
    if table is not None:
        table.add(headerlet, _angle(held), attached=True)
    elif reason:
        held.notes.append(reason)


def _begun(held: Holdings) -> WcsCorr:
    """Append a new table with what the file holds: the telescope's own WCS first."""
    table = new_wcscorr()
    first = next((i for i, p in enumerate(held.parts) if p.kind == "HDRLET"), len(held.parts))
    held.parts.insert(first, table.part)
    for letter in sorted(held.letters, key=lambda x: x != RESERVED):
        other = held.alternate(letter)
        before = len(table.filled)
        table.add(other if letter != RESERVED else other.replaced(HDRNAME=""), _angle(held))
        if letter == RESERVED:
            table.rows["WCS_key"][before : len(table.filled)] = b"O"
            table.part.data = table.rows.tobytes()
    held.notes.append("made a WCSCORR table")
    return table


def _angle(held: Holdings) -> float:
    value = held.primary.get("PA_V3")
    return float(value) if isinstance(value, (int, float)) else 0.0
