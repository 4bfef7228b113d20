"""The cards of solutions in a header: of the active WCS, and of alternates by their letter.

Hubble's alternates are linear and share the distortion of the primary WCS, which their CTYPE says
(``-SIP``) without terms of their own; any other alternate is complete in its own cards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from cynosure.data.fits.alternates import (
    Records,
    alternate_keyword,
    archive_records,
    primary_keyword,
    restore_records,
)
from cynosure.data.fits.parts import Part, card, value_of
from cynosure.data.fits.wcsread import is_wcs_keyword
from cynosure.solutions.files.headerlet import ABOUT, OWN, SHARED, Headerlet, is_solution_keyword
from cynosure.solutions.names import parse_wcsname, wcstype

__all__ = [
    "RESERVED", "Before", "about_keyword", "alternate_cards", "applied_cards", "exchanged_cards",
    "inserted", "is_linear", "lettered", "lettered_cards", "letters_of", "original_cards",
    "remnants_of", "shares_distortion", "without_letter",
]

# The letter of the telescope's own WCS.
RESERVED = "O"


def about_keyword(keyword: str, letter: str) -> str:
    """Return an own keyword with the letter of an alternate, in eight characters.

    Examples
    --------
    >>> [about_keyword(k, "B") for k in ("HDRNAME", "NMATCHES", "AST_CHI2")]
    ['HDRNAMEB', 'NMATCHEB', 'ASTCHI2B']
    """
    if len(keyword) == 8:
        keyword = keyword.replace("_", "", 1) if "_" in keyword else keyword[:7]
    return keyword + letter


def shares_distortion(records: Records, letter: str) -> bool:
    """Say whether an alternate is one of Hubble's: CTYPE says -SIP, the terms are the primary's."""
    own = alternate_keyword("A_ORDER", letter)
    kind = next((b for k, b in records if k == f"CTYPE1{letter}"), b"")
    return str(value_of(kind) or "").endswith("-SIP") and not any(k == own for k, _ in records)


def alternate_cards(records: Records, letter: str) -> Records:
    """Return the cards of an alternate as those of a primary WCS; none where it is not there."""
    if not any(k == f"CTYPE1{letter}" for k, _ in records):
        return []
    shared = shares_distortion(records, letter)
    own = {about_keyword(k, letter): k for k in OWN}
    renamed = [
        (own[k], own[k].encode().ljust(8) + b[8:]) for k, b in records if k in own
    ]
    if shared:
        out = [
            r for r in records
            if (is_wcs_keyword(r[0]) and not is_linear(r[0])) or r[0] in SHARED
        ]
        for keyword, body in records:
            primary = primary_keyword(keyword, letter)
            if primary is not None:
                out.append((primary, primary.encode().ljust(8) + body[8:]))
    else:
        restored = restore_records(records, letter)
        out = [r for r in restored if is_wcs_keyword(r[0])]
        # What says how the primary was made does not say it of the alternate.
    return [r for r in out if r[0] not in ABOUT and r[0] not in own.values()] + renamed + (
        [r for r in records if r[0] in SHARED and r[0] not in {k for k, _ in renamed}]
        if shared else []
    )


LINEAR = re.compile(
    r"WCSAXES|WCSNAME|(CTYPE|CRVAL|CRPIX|CDELT|CROTA|CUNIT|CNAME|CRDER|CSYER)\d|(CD|PC)\d_\d"
    r"|PV\d_\d+|PS\d_\d+|LONPOLE|LATPOLE|RADESYS|RADECSYS|EQUINOX"
)


def is_linear(keyword: str) -> bool:
    """Say whether a WCS keyword is one that every alternate has of its own."""
    return LINEAR.fullmatch(keyword) is not None


@lru_cache(maxsize=8192)  # the headers of a file are asked again and again
def _letter(keyword: str) -> str:
    """Return the letter of the alternate that a keyword belongs to; empty for none."""
    last = keyword[-1:]
    upper = len(keyword) > 1 and "A" <= last <= "Z"
    return last if upper and primary_keyword(keyword, last) is not None else ""


def letters_of(headers: Sequence[Records]) -> str:
    """Return the letters of the alternates of an exposure: those with a CTYPE in any chip."""
    found = {k[6:] for records in headers for k, _ in records if k.startswith("CTYPE1")}
    return "".join(sorted(x for x in found if len(x) == 1 and "A" <= x <= "Z"))


def remnants_of(headers: Sequence[Records]) -> str:
    """Return the letters that have cards, but no CTYPE in any chip, so that they are none."""
    found = {_letter(k) for records in headers for k, _ in records} - {""}
    return "".join(sorted(found - set(letters_of(headers))))


def without_letter(records: Records, letter: str) -> Records:
    """Return the cards without those of an alternate."""
    own = {about_keyword(k, letter) for k in ABOUT}
    return [r for r in records if primary_keyword(r[0], letter) is None and r[0] not in own]


# --- the cards of a solution in a header ----------------------------------------------------


class Before(NamedTuple):
    """What the header of a chip was before its old solution was moved away."""

    place: int | None
    has_angle: bool

    @classmethod
    def of(cls, records: Records) -> Before:
        """Note where the solution begins, and whether the header has an ORIENTAT."""
        keys = [k for k, _ in records]
        place = next((i for i, k in enumerate(keys) if is_solution_keyword(k)), None)
        return cls(place, "ORIENTAT" in keys)


def applied_cards(
    records: Records, headerlet: Headerlet, cards: Records, was: Before
) -> Records:
    """Return the cards of an image with another solution in the place of its own."""
    new = Part([r for r in cards if r[0] not in ("HDRNAME", "TG_ENAME", "TG_EVER")])
    if not new.text("WCSNAME"):  # a chip that has another name than the headerlet keeps it
        new.set("WCSNAME", headerlet.wcsname, "name of the solution")
    if parse_wcsname(headerlet.wcsname).kind not in ("other", "none") and not new.has("WCSTYPE"):
        new.set("WCSTYPE", wcstype(headerlet.wcsname))
    for keyword, value in zip(("RMS_RA", "RMS_DEC"), headerlet.rms_mas):
        if np.isfinite(value) and not new.has(keyword):
            new.set(keyword, value, "[mas] rms of the fit")
    if headerlet.n_matched and not (new.has("NMATCHES") or new.has("NMATCH")):
        new.set("NMATCHES", headerlet.n_matched, "stars of the fit")
    if was.has_angle and not new.has("ORIENTAT"):
        values = [new.get("CD1_2"), new.get("CD2_2")]
        if all(isinstance(v, (int, float)) for v in values):
            angle = float(np.degrees(np.arctan2(values[0], values[1])))  # type: ignore[arg-type]
            new.set("ORIENTAT", angle, "[deg] position angle of the y axis")
    if headerlet.hdrname:
        new.set("HDRNAME", headerlet.hdrname, "headerlet of this solution")
    rest = [r for r in records if not is_solution_keyword(r[0])]
    if was.place is None:
        return inserted(rest, new.records)
    before = sum(not is_solution_keyword(k) for k, _ in records[: was.place])
    return rest[:before] + new.records + rest[before:]


def inserted(records: Records, cards: Records) -> Records:
    """Append cards before the blank ones at the end."""
    last = max((i for i, r in enumerate(records) if r[1].strip()), default=-1) + 1
    return records[:last] + cards + records[last:]


def lettered(keyword: str, body: bytes, letter: str) -> tuple[str, bytes]:
    """Return a card of a solution as one of an alternate: only its keyword changes."""
    new = (
        alternate_keyword(keyword, letter) if is_wcs_keyword(keyword)
        else about_keyword(keyword, letter)
    )
    return new, new.encode().ljust(8) + body[8:]


def lettered_cards(
    cards: Records, headerlet: Headerlet, letter: str, *, shared: bool
) -> Records:
    """Return the cards of a chip of a headerlet as those of an alternate.

    Parameters
    ----------
    cards : list
        Those of a primary WCS.
    headerlet : Headerlet
    letter : str
    shared : bool
        Whether it shares the distortion of the primary WCS: then its linear part is enough.
    """
    out = [
        lettered(k, b, letter) for k, b in cards
        if (is_linear(k) if shared else is_wcs_keyword(k)) or (k in ABOUT and k != "ORIENTAT")
    ]
    if not shared and any(k == "A_ORDER" for k, _ in cards):
        out = _without_sip(out)
    if not any(k == f"WCSNAME{letter}" for k, _ in out):
        out.insert(0, card(f"WCSNAME{letter}", headerlet.wcsname, "name of the solution"))
    out = [r for r in out if r[0] != f"HDRNAME{letter}"]
    return [*out, card(f"HDRNAME{letter}", headerlet.hdrname)]


def original_cards(records: Records) -> Records:
    """Return the linear part of a primary WCS as the telescope's own, under its letter."""
    return _without_sip([lettered(k, b, RESERVED) for k, b in records if is_linear(k)])


def _without_sip(cards: Records) -> Records:
    return [(k, b.replace(b"-SIP'", b"'    ", 1) if k.startswith("CTYPE") else b)
            for k, b in cards]


def exchanged_cards(records: Records, letter: str) -> tuple[Records, str]:
    """Exchange the primary WCS and an alternate; return the cards and the new letter."""
    kept, new = archive_records(records, "ORIGINAL")
    own = [] if any(k == about_keyword("WCSTYPE", new) for k, _ in kept) else list(ABOUT)
    kept = [lettered(k, b, new) if new and k in own else (k, b) for k, b in kept
            if k in own or k not in ABOUT]
    back = {about_keyword(k, letter): k for k in ABOUT}
    restored = restore_records(kept, letter)
    return [
        (back[k], back[k].encode().ljust(8) + b[8:]) if k in back else (k, b)
        for k, b in restored
    ], new
