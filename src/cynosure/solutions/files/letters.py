"""The cards of an alternate WCS: which letter, which keywords, whose distortion.

Hubble's alternates are linear and share the distortion of the primary WCS, which their CTYPE says
(``-SIP``) without terms of their own; any other alternate is complete in its own cards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from cynosure.data.fits.alternates import (
    Records,
    alternate_keyword,
    primary_keyword,
    restore_records,
)
from cynosure.data.fits.parts import value_of
from cynosure.data.fits.wcsread import is_wcs_keyword
from cynosure.solutions.files.headerlet import ABOUT, OWN, SHARED

__all__ = [
    "RESERVED", "about_keyword", "alternate_cards", "drop_letter", "is_linear", "letters_of",
    "remnants_of", "shares_distortion",
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
        keyword = keyword.replace("AST_", "AST") if keyword.startswith("AST_") else keyword[:7]
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


def drop_letter(records: Records, letter: str) -> Records:
    """Return the cards without those of an alternate."""
    own = {about_keyword(k, letter) for k in ABOUT}
    return [r for r in records if primary_keyword(r[0], letter) is None and r[0] not in own]
