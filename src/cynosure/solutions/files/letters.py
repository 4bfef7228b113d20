"""Solutions under the letters of alternates, one letter for all chips of an exposure.

An alternate is a solution in the cards of the science headers, with a letter behind each keyword.
Some have everything of their own; others, as Hubble's files have them, have a linear part and share
distortion and lookup tables with the primary WCS. The latter must be given copies before the
primary WCS is replaced, or they would mean another thing.
"""

from __future__ import annotations

import re
import string

from cynosure.data.fits.alternates import (
    Records,
    alternate_keyword,
    alternate_letters,
    archive_records,
    primary_keyword,
)
from cynosure.data.fits.wcsread import is_wcs_keyword
from cynosure.ground.errors import OutputError
from cynosure.solutions.files.contents import (
    RESERVED,
    Holdings,
    about_keyword,
    is_linear,
    shares_distortion,
)
from cynosure.solutions.files.headerlet import ABOUT, OWN, SHARED, Headerlet

__all__ = ["archive_active", "complete_alternates", "drop_letter", "lettered", "put_beside"]


def lettered(keyword: str, body: bytes, letter: str) -> tuple[str, bytes]:
    """Return a card of a solution as one of an alternate: only its keyword changes."""
    new = (
        alternate_keyword(keyword, letter) if is_wcs_keyword(keyword)
        else about_keyword(keyword, letter)
    )
    return new, new.encode().ljust(8) + body[8:]


def drop_letter(held: Holdings, letter: str) -> None:
    """Remove an alternate from all chips."""
    own = {about_keyword(k, letter) for k in ABOUT}
    for chip in held.chips:
        chip.part.replace([
            r for r in chip.part.records
            if primary_keyword(r[0], letter) is None and r[0] not in own
        ])
    held.notes.append(f"alternate {letter} was removed")


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
        if len(alternate_letters(chip.part.records)) == len(string.ascii_uppercase):
            found.add(_same_in_full(chip.part.records, name))
        elif chip.part.has("CTYPE1"):
            letter = archive_records(chip.part.records, name)[1]
            found.add(letter if letter in alternate_letters(chip.part.records) else "")
    return found.pop() if len(found) == 1 else ""


def _same_in_full(records: Records, name: str) -> str:
    try:
        return archive_records(records, name)[1]
    except OutputError:
        return ""


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
            continue  # what an alternate that is gone has left
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
