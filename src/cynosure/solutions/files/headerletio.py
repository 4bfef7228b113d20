"""Reading and writing headerlets as files and as bytes.

What is read may come from any archive of the last fifteen years: units in any order, cards that
are missing or of another type. What had to be mended is told in the headerlet's notes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from cynosure.data.fits.file import open_fits
from cynosure.data.fits.parts import Part, Value, parts_of_bytes
from cynosure.ground.errors import ImageError
from cynosure.ground.files import atomic_path, reason_of
from cynosure.solutions.files.headerlet import (
    MAX_HEADERLET_BYTES,
    STRUCTURE,
    TABLES,
    ChipWcs,
    Headerlet,
    HeaderletDamaged,
    LookupTable,
)

__all__ = [
    "headerlet_of_parts", "parse_headerlet", "parts_of_headerlet", "read_headerlet",
    "write_headerlet",
]

# A mosaic of sixty chips has some 300 units: SIPWCS and four tables a chip. More is damage.
MAX_UNITS = 2000


def read_headerlet(path: str | Path) -> Headerlet:
    """Read a stand-alone headerlet, also one compressed by gzip.

    Raises
    ------
    ImageError, HeaderletDamaged
        If it cannot be read, or is not a headerlet.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_HEADERLET_BYTES:
            raise HeaderletDamaged(
                headerlet=path.name, reason=f"larger than {MAX_HEADERLET_BYTES >> 20} MiB"
            )
        stream, _ = open_fits(path)
        with stream:
            data = stream.read(MAX_HEADERLET_BYTES + 1)
    except OSError as error:
        raise ImageError(image=str(path), reason=reason_of(error)) from error
    return parse_headerlet(data, path.name)


def parse_headerlet(data: bytes, name: str = "headerlet") -> Headerlet:
    """Read a headerlet from the bytes of its file.

    Raises
    ------
    HeaderletDamaged
        If it is not FITS, ends too early, or has no SIPWCS.
    """
    return headerlet_of_parts(parts_of_headerlet(data, name), name)


def parts_of_headerlet(data: bytes, name: str = "headerlet") -> list[Part]:
    """Take the bytes of a headerlet apart.

    Raises
    ------
    HeaderletDamaged
        If it is not FITS, or ends too early.
    """
    if len(data) > MAX_HEADERLET_BYTES:
        raise HeaderletDamaged(
            headerlet=name, reason=f"larger than {MAX_HEADERLET_BYTES >> 20} MiB"
        )
    try:
        return parts_of_bytes(data, name, max_parts=MAX_UNITS)
    except ImageError as error:
        raise HeaderletDamaged(headerlet=name, reason=error.facts.get("reason", "")) from error


def headerlet_of_parts(parts: Sequence[Part], name: str = "headerlet") -> Headerlet:
    """Make a headerlet of the parts of its file.

    Raises
    ------
    HeaderletDamaged
        If it has no SIPWCS, or two units of one name.
    """
    if not parts:
        raise HeaderletDamaged(headerlet=name, reason="empty")
    notes: list[str] = []
    chips, tables = [], []
    for part in parts[1:]:
        kind = part.name
        if kind == "SIPWCS":
            chips.append(_chip(part, notes))
        elif kind in TABLES and part.data:
            tables.append(LookupTable(kind, part.version, part.raw, part.data))
    if not chips:
        raise HeaderletDamaged(
            headerlet=name, reason="it has no SIPWCS extension, so it is no headerlet",
            hint="A FITS image goes with its own commands: cynosure wcs list FILE.",
        )
    places = [("SIPWCS", c.version) for c in chips] + [(t.name, t.version) for t in tables]
    if len(set(places)) < len(places):
        kind, version = next(p for i, p in enumerate(places) if p in places[:i])
        raise HeaderletDamaged(headerlet=name, reason=f"two {kind} of EXTVER {version}")
    head = [r for r in parts[0].records if not _is_structure(r[0])]
    headerlet = Headerlet(head, tuple(chips), tuple(tables), tuple(notes))
    return _completed(headerlet)


@lru_cache(maxsize=1024)
def _is_structure(keyword: str) -> bool:
    return STRUCTURE.fullmatch(keyword) is not None


def _chip(part: Part, notes: list[str]) -> ChipWcs:
    """Return the chip of a SIPWCS; old ones name their image in SCIEXT, or not at all."""
    records = [r for r in part.records if not _is_structure(r[0])]
    name, version = part.text("TG_ENAME").upper(), part.get("TG_EVER")
    if not (name and isinstance(version, int)):
        found = re.search(r"([A-Za-z]\w*)?\W*(\d{1,6})", part.text("SCIEXT"))
        name = (found[1] or "SCI").upper() if found else "SCI"
        version = int(found[2]) if found else part.version
        notes.append(f"SIPWCS,{part.version} does not say which image it belongs to; "
                     f"taken as {name},{version}")
    return ChipWcs(part.version, (name, version), records)


def _completed(headerlet: Headerlet) -> Headerlet:
    """Give names that are missing; WCSNAME and HDRNAME stand in for each other."""
    notes = list(headerlet.notes)
    cards: dict[str, Value] = {}
    if not headerlet.text("WCSNAME"):
        cards["WCSNAME"] = headerlet.wcsname
        notes.append(f"no WCSNAME; taken as {headerlet.wcsname!r}")
    if not headerlet.hdrname and (headerlet.destim or headerlet.wcsname):
        cards["HDRNAME"] = "_".join(filter(None, [headerlet.destim, headerlet.wcsname]))
        notes.append(f"no HDRNAME; taken as {cards['HDRNAME']!r}")
    if not cards:
        return headerlet
    return replace(headerlet.replaced(**cards), notes=tuple(notes))


def write_headerlet(headerlet: Headerlet, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a headerlet as a file.

    Raises
    ------
    OutputExists, OutputError
    """
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(headerlet.to_bytes())
    return Path(path)
