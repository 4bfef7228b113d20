"""The WCS cards of a header: remove, archive as an alternate, restore.

The old primary WCS is kept under a letter, A to Z, *in its own cards*: only the keyword field of
each 80-byte record changes (``CRVAL1`` to ``CRVAL1A``), so value, format and comment survive to
the bit, and :func:`restore_alternate` returns identical records. FITS allows the letter on the
linear part and on PV terms, and every reader understands them there (``WCS(header, key="A")``).
SIP, TNX and lookup-table keywords have no alternate form in the standard: their cards get the
letter too, by the same rule (``A_0_2A``; ``APORDERA`` where eight characters are too few), which
other readers ignore; the alternate's CTYPE then has no ``-SIP``, so that they use its linear part.
No further extension or table is needed.
"""

from __future__ import annotations

import re
import string
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cynosure.data.fits.blocks import CARD, split_cards
from cynosure.data.fits.wcsread import is_wcs_keyword
from cynosure.ground.errors import OutputError

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = [
    "alternate_keyword",
    "alternate_letters",
    "archive_alternate",
    "archive_records",
    "primary_keyword",
    "records_of",
    "restore_alternate",
    "restore_records",
    "strip_records",
    "strip_wcs",
]

Records = list[
    tuple[str, bytes]
]  # keyword, and the card with its CONTINUEs (a multiple of 80 bytes)

# Keywords of eight characters have no room for a letter: (primary, alternate without its letter).
# Those of lookup tables have room, but wcslib rejects an alternate with such keywords.
SQUEEZED = (
    (r"CPDIS(\d)", r"CPLUT\1"),
    (r"DP(\d)", r"DPLUT\1"),
    (r"([AB])P_ORDER", r"\1PORDER"),
    (r"WAT(\d)_(\d{3})", r"WAT\1\2"),
    (r"RADECSYS", r"RADECSY"),
    (r"PC00(\d)00(\d)", r"PC\g<1>00\2"),
    (r"D2IMDIS(\d)", r"D2IDIS\1"),
    (r"D2IMERR(\d)", r"D2IERR\1"),
    (r"AXISCORR", r"AXISCOR"),
    (r"([AB])P_(\d)_(\d\d)", r"\1P\2_\3"),
    (r"([AB])P_(\d\d)_(\d)", r"\1P\2_\3"),
)
UNSQUEEZED = (
    (r"CPLUT(\d)", r"CPDIS\1"),
    (r"DPLUT(\d)", r"DP\1"),
    (r"([AB])PORDER", r"\1P_ORDER"),
    (r"WAT(\d)(\d{3})", r"WAT\1_\2"),
    (r"RADECSY", r"RADECSYS"),
    (r"PC(\d)00(\d)", r"PC00\g<1>00\2"),
    (r"D2IDIS(\d)", r"D2IMDIS\1"),
    (r"D2IERR(\d)", r"D2IMERR\1"),
    (r"AXISCOR", r"AXISCORR"),
    (r"([AB])P(\d)_(\d\d)", r"\1P_\2_\3"),
    (r"([AB])P(\d\d)_(\d)", r"\1P_\2_\3"),
)
# The comment of a WCSNAME that was added when a WCS without a name was archived.
GIVEN_NAME = b"/ name given when it was archived"


def alternate_keyword(keyword: str, letter: str) -> str:
    """Return the keyword of an alternate: the letter appended, squeezed into eight characters.

    Examples
    --------
    >>> [alternate_keyword(k, "B") for k in ("CRVAL1", "PV1_10", "A_0_2", "AP_ORDER")]
    ['CRVAL1B', 'PV1_10B', 'A_0_2B', 'APORDERB']
    """
    for pattern, replacement in SQUEEZED:
        if re.fullmatch(pattern, keyword):
            return re.sub(pattern, replacement, keyword) + letter
    return keyword + letter


def primary_keyword(keyword: str, letter: str) -> str | None:
    """Return the primary keyword of an alternate's keyword; None if it is not of that letter."""
    if len(keyword) < 2 or not keyword.endswith(letter) or keyword == letter:
        return None
    bare = keyword[:-1]
    for pattern, replacement in UNSQUEEZED:
        if re.fullmatch(pattern, bare):
            return re.sub(pattern, replacement, bare)
    return bare if is_wcs_keyword(bare) else None


def records_of(raw: bytes) -> Records:
    """Split header bytes into logical cards: a card and the CONTINUEs that follow it."""
    cards = split_cards(raw)
    if b"CONTINUE" not in raw:
        return cards
    out: Records = []
    for keyword, record in cards:
        if keyword == "CONTINUE" and out:
            out[-1] = (out[-1][0], out[-1][1] + record)
        else:
            out.append((keyword, record))
    return out


def alternate_letters(records: Records) -> str:
    """Return the letters of the alternates that a header has."""
    return "".join(
        x for x in string.ascii_uppercase if any(primary_keyword(k, x) for k, _ in records)
    )


def strip_records(records: Records) -> tuple[Records, Records]:
    """Return the records without the primary WCS, and those of the primary WCS."""
    rest = [r for r in records if not is_wcs_keyword(r[0])]
    return rest, [r for r in records if is_wcs_keyword(r[0])]


def archive_records(records: Records, name: str, letter: str = "") -> tuple[Records, str]:
    """Move the primary WCS to the first free letter, or to a given free one.

    Parameters
    ----------
    records : list
        All cards of the header.
    name : str
        WCSNAME of the alternate if the WCS has none.
    letter : str, optional
        The letter to take.

    Returns
    -------
    records : list
        The header without a primary WCS, each of its cards renamed in its place.
    letter : str
        Empty if there is no WCS. A WCS that is already archived, card for card, is not archived
        again: its letter is returned.

    Raises
    ------
    OutputError
        If all 26 letters are taken.
    """
    if not any(re.fullmatch(r"CTYPE\d", k) for k, _ in records):
        return strip_records(records)[0], ""
    if letter:
        return _alternate_of(records, letter, name), letter
    rest, primary = strip_records(records)
    taken = alternate_letters(records)
    for letter in taken:
        if _alternate_of(primary, letter, name) == _of_letter(records, letter):
            return rest, letter
    free = [x for x in string.ascii_uppercase if x not in taken]
    if not free:
        raise OutputError(
            path="header",
            reason="all 26 letters for alternate WCSs are taken",
            hint="Delete alternates that are no longer needed.",
        )
    return _alternate_of(records, free[0], name), free[0]


def _alternate_of(records: Records, letter: str, name: str) -> Records:
    """Rename the primary WCS cards among records, each in its place; name the WCS if need be."""
    sip = any(k == "A_ORDER" for k, _ in records)
    out: Records = []
    named = any(k == "WCSNAME" for k, _ in records)
    for keyword, body in records:
        if not is_wcs_keyword(keyword):
            out.append((keyword, body))
            continue
        if not named:
            quoted = "'" + name.replace("'", "''")[:30].ljust(8) + "'"
            card = f"WCSNAME{letter}= {quoted:<20} ".encode() + GIVEN_NAME
            out.append((f"WCSNAME{letter}", card.ljust(CARD)))
            named = True
        if sip and keyword.startswith("CTYPE"):  # other readers then use its linear part
            body = _without_sip(body)
        out.append(_renamed(keyword, alternate_keyword(keyword, letter), body))
    return out


def _of_letter(records: Records, letter: str) -> Records:
    return [r for r in records if primary_keyword(r[0], letter)]


def _renamed(old: str, new: str, body: bytes) -> tuple[str, bytes]:
    """Replace the keyword field; that of a record-valued keyword (``DP1.NAXES``) is ``DP1``."""
    if len(new) > 8:
        message = f"no alternate keyword for {old}"
        raise ValueError(message)
    return new, new.encode().ljust(8) + body[8:]


def _without_sip(body: bytes) -> bytes:
    return body.replace(b"-SIP'", b"    '", 1)


def _with_sip(body: bytes) -> bytes:
    return re.sub(rb"(= *'[A-Z-]{8})    '", rb"\1-SIP'", body, count=1)


def restore_records(records: Records, letter: str) -> Records:
    """Make an alternate the primary WCS again, bit for bit; the present primary is removed.

    Raises
    ------
    OutputError
        If there is no such alternate.
    """
    kept = _of_letter(records, letter)
    if not kept:
        raise OutputError(
            path="header",
            reason=f"it has no alternate WCS {letter!r}",
            hint=f"It has {', '.join(alternate_letters(records)) or 'none'}.",
        )
    sip = any(primary_keyword(k, letter) == "A_ORDER" for k, _ in kept)
    out: Records = []
    for keyword, body in strip_records(records)[0]:
        primary = primary_keyword(keyword, letter)
        if primary is None:
            out.append((keyword, body))
        elif not (primary == "WCSNAME" and GIVEN_NAME in body):
            back = _renamed(keyword, primary, body)[1]
            with_sip = sip and primary.startswith("CTYPE")
            out.append((primary, _with_sip(back) if with_sip else back))
    return out


# --- the same for astropy's headers ---------------------------------------------------------


def _records_from_header(header: Header) -> Records:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cards that violate the standard are kept if possible
        text = header.tostring(sep="", endcard=True, padding=True)
    return records_of(text.encode("latin-1", "replace"))


def _replace_cards(header: Header, records: Sequence[tuple[str, bytes]]) -> None:
    from astropy.io.fits import Header

    new = Header.fromstring(b"".join(body for _, body in records).decode("latin-1"))
    header.clear()
    header.extend(new.cards, strip=False, bottom=True, end=True)


def strip_wcs(header: Header) -> list[str]:
    """Remove the primary WCS from a header, in place; return the keywords that were removed."""
    records = _records_from_header(header)
    rest, gone = strip_records(records)
    if gone:
        _replace_cards(header, rest)
    return [k for k, _ in gone]


def archive_alternate(header: Header, wcsname: str) -> str:
    """Move the primary WCS of a header to the first free letter, in place; return the letter.

    See :func:`archive_records`.
    """
    records, letter = archive_records(_records_from_header(header), wcsname)
    _replace_cards(header, records)
    return letter


def restore_alternate(header: Header, letter: str) -> None:
    """Make an alternate the primary WCS again, in place; see :func:`restore_records`."""
    _replace_cards(header, restore_records(_records_from_header(header), letter))
