"""What a file holds: its active WCS, its alternates, its headerlets, each as a headerlet.

Hubble's files have a unit ``SCI`` for each chip, alternates that share the distortion of the
primary WCS, and headerlets as extensions. Any other image is taken the same way: its chips are its
units with a celestial WCS, its exposure is named by the file, and its alternates are complete in
themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cynosure.data.fits.alternates import (
    Records,
    alternate_keyword,
    alternate_letters,
    primary_keyword,
    restore_records,
)
from cynosure.data.fits.blocks import Unit
from cynosure.data.fits.parts import FitsParts, Part, Value, open_parts, value_of
from cynosure.data.fits.solved import output_name
from cynosure.data.fits.wcsread import is_wcs_keyword
from cynosure.ground.errors import CynosureError, ExitCode, ImageError
from cynosure.solutions.files.hdrlet import is_hdrlet, unembed
from cynosure.solutions.files.headerlet import (
    ABOUT,
    MAS_PER_DEG,
    MAX_HEADERLET_BYTES,
    OWN,
    SHARED,
    TABLES,
    ChipWcs,
    Headerlet,
    HeaderletDamaged,
    LookupTable,
    Target,
    is_solution_keyword,
    lookups_of,
    new_head,
    same_solution,
)
from cynosure.solutions.names import (
    Distortion,
    distname,
    hdrname,
    model_name,
    model_root,
    parse_wcsname,
    wcstype,
)

__all__ = [
    "Chip",
    "Entry",
    "Holdings",
    "NoSuchSolution",
    "about_keyword",
    "holdings_of",
    "open_holdings",
]

RESERVED = "O"
CELESTIAL = re.compile(r"(RA--|DEC-|[GESH]LON|[GESH]LAT|[A-Z]{2}L[NT])-")
NOT_SCIENCE = {
    "ERR", "DQ", "SAMP", "TIME", "WHT", "CTX", "VAR", "WEIGHT", "MASK", "SIPWCS", *TABLES,
}
MAX_LISTED = 2000
# No WCS has an error of a hundredth of a degree; such a CRDER is in mas.
CRDER_MAS_ABOVE = 0.01


class NoSuchSolution(CynosureError):
    """A file has no solution of that name, or several."""

    text = "{image}: {reason}"
    hint = "See `cynosure wcs list FILE`; a name, a letter, or HDRLET,N is taken."
    exit_code = ExitCode.USAGE


@dataclass(slots=True, eq=False)
class Chip:
    """A science image of a file."""

    part: Part
    target: Target
    shape: tuple[int, int] | None


@dataclass(slots=True, eq=False)
class Entry:
    """A solution that a file holds.

    Attributes
    ----------
    place : str
        ``active``, ``alternate`` or ``headerlet``.
    key : str
        How it is called: ``active``, the letter, ``HDRLET,3``.
    headerlet : Headerlet or None
        None where it cannot be read; `problem` then says why.
    part : Part or None
        The extension of a headerlet.
    """

    place: Literal["active", "alternate", "headerlet"]
    key: str
    headerlet: Headerlet | None
    part: Part | None = None
    problem: str = ""

    @property
    def wcsname(self) -> str:
        """WCSNAME."""
        if self.headerlet is not None:
            return self.headerlet.wcsname
        return self.part.text("WCSNAME") if self.part is not None else ""

    @property
    def hdrname(self) -> str:
        """HDRNAME; empty for an alternate that has none."""
        if self.headerlet is not None:
            return self.headerlet.hdrname
        return self.part.text("HDRNAME") if self.part is not None else ""


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


@dataclass(eq=False)
class Holdings:
    """A file, its chips, and the solutions it holds.

    Attributes
    ----------
    file : FitsParts
    chips : list of Chip
    notes : list of str
        What was done to it, or found.
    """

    file: FitsParts
    chips: list[Chip]
    notes: list[str] = field(default_factory=list)
    _read: dict[int, Entry] = field(default_factory=dict)

    @property
    def parts(self) -> list[Part]:
        """All units."""
        return self.file.parts

    @property
    def primary(self) -> Part:
        """The primary unit."""
        return self.file.parts[0]

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.file.path.name

    @property
    def stem(self) -> str:
        """The name of the file without its endings."""
        return output_name(self.file.path, "")

    @property
    def rootname(self) -> str:
        """The exposure: ROOTNAME, or the name of the file without what was added to it."""
        for part in (self.primary, *(c.part for c in self.chips)):
            if part.text("ROOTNAME"):
                return part.text("ROOTNAME")
        return re.sub(r"[._]wcs$", "", self.stem)

    @property
    def distortion(self) -> Distortion:
        """Roots of the files of the distortion model; all empty for other telescopes."""
        sci = self.chips[0].part

        def root(keyword: str, own: str) -> str:
            texts = (self.primary.text(keyword), sci.text(own), sci.text(keyword))
            return next(filter(None, map(model_root, texts)), "")

        return Distortion(
            root("IDCTAB", "IDCTAB"), root("NPOLFILE", "NPOLEXT"), root("D2IMFILE", "D2IMEXT")
        )

    @property
    def embedded(self) -> list[Part]:
        """The HDRLET extensions."""
        return [p for p in self.parts if is_hdrlet(p)]

    # --- solutions --------------------------------------------------------------------------

    @property
    def has_active(self) -> bool:
        """Whether there is an active WCS."""
        return any(c.part.has("CTYPE1") for c in self.chips)

    @property
    def letters(self) -> str:
        """The letters of the alternates."""
        found = "".join(alternate_letters(c.part.records) for c in self.chips)
        return "".join(
            x for x in sorted(set(found)) if any(c.part.has(f"CTYPE1{x}") for c in self.chips)
        )

    def active(self) -> Headerlet:
        """Return the active WCS as a headerlet."""
        if not self.has_active:
            raise NoSuchSolution(image=self.name, reason="it has no active WCS", hint="")
        return self._assembled("", lambda c: c.part.records)

    def alternate(self, letter: str) -> Headerlet:
        """Return an alternate as a headerlet, with the distortion that it shares.

        Raises
        ------
        NoSuchSolution
        """
        if letter not in self.letters:
            has = ", ".join(self.letters) or "none"
            raise NoSuchSolution(
                image=self.name, reason=f"it has no alternate WCS {letter} (it has {has})"
            )
        return self._assembled(letter, lambda c: alternate_cards(c.part.records, letter))

    def entries(self) -> Iterator[Entry]:
        """Give all solutions: the active one, alternates by letter, headerlets as they lie."""
        if self.has_active:
            yield Entry("active", "active", self.active())
        for letter in self.letters:
            yield Entry("alternate", letter, self.alternate(letter))
        for part in self.embedded[:MAX_LISTED]:
            yield self.entry(part)

    def entry(self, part: Part) -> Entry:
        """Return the entry of an HDRLET extension; one that cannot be read says why."""
        if id(part) not in self._read:
            key = f"HDRLET,{part.version}"
            try:
                size = part.size if part.data is None else len(part.data)
                if size > MAX_HEADERLET_BYTES:
                    raise HeaderletDamaged(headerlet=key, reason="too large for a headerlet")
                entry = Entry("headerlet", key, unembed(part, self.file.data_of(part)), part)
            except (HeaderletDamaged, ImageError) as error:
                entry = Entry("headerlet", key, None, part, str(error.facts.get("reason", error)))
            self._read[id(part)] = entry
        return self._read[id(part)]

    def find(self, text: str) -> Entry:
        """Return the solution of a name.

        ``active``, a letter, ``HDRLET,3``, a HDRNAME, or a WCSNAME; names are compared whole. A
        headerlet is preferred to an alternate of the same name; of several headerlets that are
        the same solution the first is taken.

        Raises
        ------
        NoSuchSolution
            If there is none, or there are several that differ.
        """
        if text == "active":
            return Entry("active", "active", self.active())
        if re.fullmatch(r"[A-Z]", text):
            return Entry("alternate", text, self.alternate(text))
        number = re.fullmatch(r"(?:HDRLET,)?(\d{1,6})", text, re.IGNORECASE)
        found = [self.entry(p) for p in self.embedded]
        if number is not None:
            found = [e for e in found if e.part is not None and e.part.version == int(number[1])]
            return self._only(found, text)
        for by in ("hdrname", "wcsname"):
            same = [e for e in found if getattr(e, by) == text]
            if same:
                return self._only(same, text)
        for letter in self.letters:
            other = self.alternate(letter)
            if text in (other.wcsname, other.text("HDRNAME")):
                return Entry("alternate", letter, other)
        if self.has_active and text in (self.active().wcsname, self.active().hdrname):
            return Entry("active", "active", self.active())
        names = sorted({e.wcsname for e in self.entries()} - {""})
        raise NoSuchSolution(
            image=self.name, reason=f"it has no solution {text!r} (it has {', '.join(names)})"
        )

    def _only(self, found: list[Entry], text: str) -> Entry:
        if not found:
            raise NoSuchSolution(image=self.name, reason=f"it has no headerlet {text!r}")
        good = [e for e in found if e.headerlet is not None]
        if not good:
            name = f"{self.name}[{found[0].key}]"
            raise HeaderletDamaged(headerlet=name, reason=found[0].problem)
        sound = [e for e in good if e.headerlet is not None and not e.headerlet.doubts()]
        good = sound or good
        first = good[0].headerlet
        differ = [
            e for e in good[1:]
            if first is None or e.headerlet is None or not same_solution(first, e.headerlet)
        ]
        if differ:
            listed = ", ".join(f"{e.key} {e.hdrname}" for e in good)
            raise NoSuchSolution(
                image=self.name, reason=f"several headerlets are called {text!r}: {listed}",
                hint="Call it by its HDRNAME or as HDRLET,N.",
            )
        return good[0]

    def kept_as(self, wanted: Headerlet, *, headerlets_only: bool = False) -> Entry | None:
        """Return where a solution is held besides being active; None where it is not.

        A headerlet of the same WCSNAME and the same WCS, or an alternate of the same WCS that
        needs nothing of the primary.
        """
        for part in self.embedded:
            entry = self.entry(part)
            if entry.headerlet is not None and same_solution(entry.headerlet, wanted):
                if entry.wcsname.upper() == wanted.wcsname.upper():
                    return entry
        if headerlets_only:
            return None
        for letter in self.letters:
            if self.shares(letter) and any(c.distortion or c.lookups for c in wanted.chips):
                continue
            other = self.alternate(letter)
            if other.wcsname == wanted.wcsname and same_solution(other, wanted):
                return Entry("alternate", letter, other)
        return None

    def shares(self, letter: str) -> bool:
        """Say whether an alternate needs the distortion of the primary WCS."""
        return any(
            shares_distortion(c.part.records, letter) for c in self.chips
            if c.part.has(f"CTYPE1{letter}")
        )

    # --- making -----------------------------------------------------------------------------

    def _assembled(self, letter: str, cards_of: object) -> Headerlet:
        chips, tables = [], {}
        for number, chip in enumerate(self.chips, start=1):
            records = [r for r in cards_of(chip) if is_solution_keyword(r[0])]  # type: ignore[operator]
            if not any(k == "CTYPE1" for k, _ in records):
                continue
            part = Part(list(records))
            part.set("TG_ENAME", chip.target[0], "EXTNAME of the image")
            part.set("TG_EVER", chip.target[1], "EXTVER of the image")
            version = chip.target[1] if chip.target[0] == "SCI" else number
            chips.append(ChipWcs(version, chip.target, part.records))
            for at in lookups_of(records):
                table = self.table(*at)
                if table is not None:
                    tables[at] = table
        return Headerlet(self._head(chips[0], letter), tuple(chips), tuple(tables.values()))

    def table(self, name: str, version: int) -> LookupTable | None:
        """Return a lookup table of the file."""
        for part in self.parts:
            if part.name == name and part.version == version:
                return LookupTable(name, version, part.header_bytes(), self.file.data_of(part))
        return None

    def _head(self, chip: ChipWcs, letter: str) -> Records:
        """Return primary cards for a solution that is only in the science headers."""
        own = Part(chip.records)
        name = own.text("WCSNAME") or ("OPUS" if letter == RESERVED else "ORIGINAL")
        rms = [_number(own.get(k)) for k in ("RMS_RA", "RMS_DEC")]
        if not any(rms):
            rms = [_crder_mas(_number(own.get(k))) for k in ("CRDER1", "CRDER2")]
        matched = next((own.get(k) for k in ("NMATCHES", "NMATCH") if _number(own.get(k))), 0)
        roots = self.distortion
        sip = any(k == "A_ORDER" for k, _ in chip.records)
        model = model_name(roots.idctab, sip)
        cards: dict[str, Value] = {
            "DESTIM": self.rootname,
            "HDRNAME": own.text("HDRNAME") or hdrname(self.stem, name),
            "DATE": self._stated_date(own.text("HDRNAME"), name),
            "WCSNAME": name,
            "DISTNAME": self.primary.text("DISTNAME") or distname(self.rootname, roots),
            "SIPNAME": self.primary.text("SIPNAME")
            or (f"{self.rootname}_{model}" if roots.idctab else model),
            "NPOLFILE": self.primary.text("NPOLFILE") or own.text("NPOLEXT") or "N/A",
            "D2IMFILE": self.primary.text("D2IMFILE") or own.text("D2IMEXT") or "N/A",
            "IDCTAB": self.primary.text("IDCTAB") or "N/A",
            "DESCRIP": own.text("WCSTYPE") or wcstype(name),
            "RMS_RA": rms[0], "RMS_DEC": rms[1], "NMATCH": matched,
            "CATALOG": own.text("CATALOG") or own.text("ASTCAT") or parse_wcsname(name).catalog,
            "UPWCSVER": self.primary.text("UPWCSVER"), "PYWCSVER": self.primary.text("PYWCSVER"),
        }
        return new_head(cards)

    def _stated_date(self, named: str, wcsname: str) -> str:
        """Return when a solution in the science headers was made, by its headerlet; else empty.

        The headerlet is known by the HDRNAME that the headers state, or where they state none, by
        the WCSNAME if the file has only one headerlet of it. DATE in an image's own header is when
        that file was written, which says nothing of the solution.
        """
        found = [p for p in self.embedded if named and p.text("HDRNAME") == named]
        if not named:
            found = [p for p in self.embedded if p.text("WCSNAME") == wcsname]
        dates = {p.text("DATE") for p in found}
        return dates.pop() if len(dates) == 1 else ""


def _number(value: Value) -> float:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if plain and value > 0 else 0.0  # type: ignore[arg-type, operator]


def _crder_mas(value: float) -> float:
    """Return CRDER in mas: degrees, but some archives wrote mas where degrees belong."""
    return value * MAS_PER_DEG if value < CRDER_MAS_ABOVE else value


def shares_distortion(records: Records, letter: str) -> bool:
    """Say whether an alternate is one of Hubble's: CTYPE says -SIP, the terms are the primary's."""
    own = alternate_keyword("A_ORDER", letter)
    kind = next((b for k, b in records if k == f"CTYPE1{letter}"), b"")
    return str(value_of(kind) or "").endswith("-SIP") and not any(k == own for k, _ in records)


def alternate_cards(records: Records, letter: str) -> Records:
    """Return the cards of an alternate as those of a primary WCS."""
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


# --- opening --------------------------------------------------------------------------------


@contextmanager
def open_holdings(path: str | Path, *, lock: bool = False) -> Iterator[Holdings]:
    """Open a file to look at the solutions it holds, or to change them.

    Raises
    ------
    ImageError
        If it cannot be read or has no image with a WCS.
    """
    with open_parts(path, lock=lock) as file:
        yield holdings_of(file)


def holdings_of(file: FitsParts) -> Holdings:
    """Find the chips of a file."""
    chips = [
        Chip(p, ("SCI", p.version), _shape(p)) for p in file.parts if p.name == "SCI" and _image(p)
    ]
    if not chips:
        chips = _other_chips(file.parts)
    targets = [c.target for c in chips]
    if len(set(targets)) < len(targets):
        twice = next(t for t in targets if targets.count(t) > 1)
        raise ImageError(
            image=file.path.name, reason=f"two images are called {twice[0]},{twice[1]}", hint=""
        )
    if not chips:
        raise ImageError(
            image=file.path.name, reason="it has no image with a WCS",
            hint="A headerlet goes with attach, activate, show and diff.",
        )
    return Holdings(file, chips)


def _other_chips(parts: list[Part]) -> list[Chip]:
    """Take the units with a celestial WCS: those with pixels, or a header that stands alone."""
    out = []
    for number, part in enumerate(parts):
        if part.name in NOT_SCIENCE or is_hdrlet(part) or not _image(part):
            continue
        letters = [x for x in ("", *alternate_letters(part.records)) if _celestial(part, x)]
        if letters:
            name = part.name if number else "PRIMARY"
            target = (name, part.version) if name and number else (name or "HDU", number or 1)
            out.append(Chip(part, target, _shape(part)))
    with_pixels = [c for c in out if _unit(c.part).is_image]
    return with_pixels or out


def _celestial(part: Part, letter: str) -> bool:
    return all(CELESTIAL.match(part.text(f"CTYPE{i}{letter}").upper() + "-") for i in (1, 2))


def _image(part: Part) -> bool:
    return part.kind in ("", "IMAGE", "IUEIMAGE") or part.get("ZIMAGE") is True


def _unit(part: Part) -> Unit:
    return Unit(0, part.header_bytes(), 0, 0)


def _shape(part: Part) -> tuple[int, int] | None:
    """Return rows and columns, also of a header that says how large its image is."""
    shape = _unit(part).shape
    if len(shape) >= 2 and min(shape) > 0:
        return shape[-2], shape[-1]
    sizes = [part.get("IMAGEH"), part.get("IMAGEW")]
    if all(isinstance(n, int) and n > 0 for n in sizes):
        return int(sizes[0]), int(sizes[1])  # type: ignore[arg-type]
    return None
