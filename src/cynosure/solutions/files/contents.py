"""The solutions of a file: its active WCS, its alternates and headerlets, each as a headerlet.

Hubble's files have a unit ``SCI`` for each chip, alternates that share the distortion of the
primary WCS, and headerlets as extensions. Any other image is taken the same way: its chips are its
units with a celestial WCS, its exposure is named by the file, and its alternates are complete in
themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cynosure.data.fits.alternates import Records
from cynosure.data.fits.parts import FitsParts, Part, Value, open_parts
from cynosure.data.fits.solved import output_name
from cynosure.ground.errors import CynosureError, ExitCode, ImageError
from cynosure.ground.sky import MAS_PER_DEG
from cynosure.solutions import soundness
from cynosure.solutions.files.cards import (
    RESERVED,
    alternate_cards,
    letters_of,
    remnants_of,
    shares_distortion,
)
from cynosure.solutions.files.chips import Chip, chips_of
from cynosure.solutions.files.hdrlet import is_hdrlet, unembed
from cynosure.solutions.files.headerlet import (
    MAX_HEADERLET_BYTES,
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
    parse_sipname,
    parse_wcsname,
    wcstype,
)
from cynosure.solutions.soundness import FACTS, Exposure, Reason, bare_name

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = [
    "Chip",
    "Entry",
    "Holdings",
    "NoSuchSolution",
    "holdings_of",
    "open_holdings",
    "shapes_of",
]

# Order in which solutions of one name that are equally sound are preferred.
PLACES = ("headerlet", "alternate", "active")
# Headerlets of a file that are listed; exposures of Hubble's archive have some ten.
MAX_LISTED = 2000
# A CRDER above this (36 arcsec, in degrees) is in mas, as some archives wrote it.
CRDER_MAS_ABOVE = 0.01


class NoSuchSolution(CynosureError):
    """A file has no solution of that name, or several."""

    text = "{image}: {reason}"
    hint = "See `cynosure wcs list FILE`; a name, a letter, or HDRLET,N is taken."
    exit_code = ExitCode.USAGE


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


@dataclass(eq=False)
class Holdings:
    """A file, its chips, and the solutions it holds.

    Attributes
    ----------
    file : FitsParts
    chips : list of Chip
    notes : list of str
        What was done to it, or found.
    warnings : list of str
        What was done although it is doubtful.
    meant : (Headerlet, dict) or None
        The solution that must be active once the file is written, and the WCS of its chips, empty
        where they cannot be evaluated; None where the active solution stays.
    exchanged : set of str
        Letters of the alternates that were added, removed or replaced.
    """

    file: FitsParts
    chips: list[Chip]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    meant: tuple[Headerlet, dict[Target, WCS]] | None = None
    exchanged: set[str] = field(default_factory=set)
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
        return letters_of([c.part.records for c in self.chips])

    @property
    def remnants(self) -> str:
        """Letters that have cards of an alternate, but no CTYPE, so that they are none."""
        return remnants_of([c.part.records for c in self.chips])

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
        return self._assembled(
            letter, lambda c: alternate_cards(c.part.records, letter)
            if c.part.has(f"CTYPE1{letter}") else [],
        )

    def entries(self) -> Iterator[Entry]:
        """Give all solutions: the active one, alternates by letter, headerlets as they lie."""
        if self.has_active:
            yield Entry("active", "active", self.active())
        for letter in self.letters:
            try:
                yield Entry("alternate", letter, self.alternate(letter))
            except CynosureError as error:  # the others are listed all the same
                yield Entry("alternate", letter, None, None, str(error))
        for part in self.embedded[:MAX_LISTED]:
            yield self.entry(part)

    # --- soundness --------------------------------------------------------------------------

    @cached_property
    def exposure(self) -> Exposure:
        """What the file says of the exposure: its names, its images, when and with what."""
        units = (self.primary, *(c.part for c in self.chips))
        names = {self.rootname, self.stem, self.primary.text("FILENAME")}
        names |= {p.text(k) for p in units for k in ("ROOTNAME", "EXPNAME")}
        if not any(p.text("ROOTNAME") for p in units):  # SIPNAME has the file's name of that time
            names.add(parse_sipname(self.primary.text("SIPNAME")).rootname or "")
        facts = {k: next((v for p in units if (v := p.get(k)) is not None), None) for k in FACTS}
        return Exposure(
            self.rootname, frozenset(map(bare_name, names)),
            tuple(c.target for c in self.chips), facts, {c.target: c.shape for c in self.chips},
        )

    def reasons(
        self, headerlet: Headerlet, key: str = "", entries: Sequence[Entry] | None = None
    ) -> list[Reason]:
        """Say why a solution is not sound as one of this exposure; see :mod:`soundness`.

        Parameters
        ----------
        headerlet : Headerlet
        key : str
            The key of its entry, where the file holds it: it is not compared with itself.
        entries : sequence of Entry, optional
            The solutions of the file, where they are at hand.
        """
        others: list[tuple[str, Headerlet]] = []
        if len(headerlet.chips) > 1 and headerlet.distortion.idctab:
            entries = list(self.entries()) if entries is None else entries
            others = [(e.key, e.headerlet) for e in entries
                      if e.headerlet is not None and e.key != key and not e.headerlet.doubts()]
        own = key == "active" or len(key) == 1
        found = soundness.reasons(headerlet, self.exposure, others=others, held=own)
        if any(r.kind == "identity" for r in found) and self._is_own(headerlet):
            found = [r for r in found if r.kind != "identity"]
        if key == RESERVED:  # the telescope's own WCS is linear, whatever its CTYPE says
            found = [r for r in found if r.kind != "distortion"]
        return found

    def _is_own(self, headerlet: Headerlet) -> bool:
        """Say whether a WCS of unknown name is, or goes with, one in the science headers."""
        own = ([self.active()] if self.has_active else []) + list(map(self.alternate, self.letters))
        family = [e.headerlet for e in map(self.entry, self.embedded) if e.headerlet is not None]
        units = (self.primary, *(c.part for c in self.chips))
        named_itself = any(p.text("ROOTNAME") for p in units)
        known = [h for h in family
                 if not named_itself and bare_name(h.destim) in self.exposure.names]
        if any(same_solution(headerlet, h) for h in own + known):
            return True
        name = bare_name(headerlet.destim)
        return bool(name) and any(
            bare_name(h.destim) == name and any(same_solution(h, one) for one in own)
            for h in family
        )

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
        sound solution is preferred to a doubtful one of the same name, then a headerlet to an
        alternate and that to the active one; of several headerlets that are the same solution
        the first is taken.

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
        if number is not None:
            found = [self.entry(p) for p in self.embedded if p.version == int(number[1])]
            return self._only(found, text)
        for found in self.named(text):
            if found:
                return self._only(found, text)
        names = sorted({e.wcsname for e in self.entries()} - {""})
        raise NoSuchSolution(
            image=self.name, reason=f"it has no solution {text!r} (it has {', '.join(names)})"
        )

    def named(self, text: str) -> tuple[list[Entry], list[Entry]]:
        """Return the solutions of a HDRNAME, and those of a WCSNAME, headerlets first."""
        entries = sorted(self.entries(), key=lambda e: PLACES.index(e.place))
        return ([e for e in entries if e.hdrname == text],
                [e for e in entries if e.wcsname == text])

    def _only(self, found: list[Entry], text: str) -> Entry:
        """Return the sound solution of a name; of those that are the same, the first."""
        if not found:
            raise NoSuchSolution(image=self.name, reason=f"it has no headerlet {text!r}")
        good = [e for e in found if e.headerlet is not None]
        if not good:
            name = f"{self.name}[{found[0].key}]"
            raise HeaderletDamaged(headerlet=name, reason=found[0].problem)
        if len(good) > 1:
            entries = list(self.entries())
            sound = [e for e in good
                     if e.headerlet is not None and not self.reasons(e.headerlet, e.key, entries)]
            good = sound or good
        first = good[0]
        differ = [
            e for e in good[1:] if e.place == first.place and first.headerlet is not None
            and e.headerlet is not None and not same_solution(first.headerlet, e.headerlet)
        ]
        if differ and first.place == "headerlet":
            listed = ", ".join(f"{e.key} {e.hdrname}" for e in good)
            raise NoSuchSolution(
                image=self.name, reason=f"several headerlets are called {text!r}: {listed}",
                hint="Call it by its HDRNAME or as HDRLET,N.",
            )
        return first

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

    def headed(self, chips: Sequence[ChipWcs]) -> Headerlet:
        """Return a new solution of the file as a headerlet, with the tables that it names."""
        wanted = dict.fromkeys(at for chip in chips for at in chip.lookups)
        tables = [t for at in wanted if (t := self.table(*at)) is not None]
        return Headerlet(self._head(chips[0], ""), tuple(chips), tuple(tables))

    def _assembled(self, letter: str, cards_of: object) -> Headerlet:
        chips, tables = [], {}
        for number, chip in enumerate(self.chips, start=1):
            records = [r for r in cards_of(chip) if is_solution_keyword(r[0])]  # type: ignore[operator]
            if not any(k == "CTYPE1" for k, _ in records):
                continue
            part = Part(list(records))
            part.set("TG_ENAME", chip.target[0], "EXTNAME of the image")
            part.set("TG_EVER", chip.target[1], "EXTVER of the image")
            for axis, n in zip((1, 2), reversed(chip.shape or ())):
                part.set(f"TG_NAXI{axis}", n, f"NAXIS{axis} of the image")
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
        cards |= {k: v for k, v in self.exposure.facts.items() if v is not None}
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


def shapes_of(held: Holdings) -> dict[Target, tuple[int, int] | None]:
    """Return rows and columns of the chips; of a stamp cut from a chip, those of the chip."""
    out = {}
    for chip in held.chips:
        sizes = [chip.part.get(f"SIZAXIS{i}") or held.primary.get(f"SIZAXIS{i}") for i in (2, 1)]
        shape = chip.shape
        if shape is not None and all(isinstance(n, int) and 0 < n < 1 << 16 for n in sizes):
            full = int(sizes[0]), int(sizes[1])  # type: ignore[arg-type]
            shape = full if full[0] > shape[0] and full[1] > shape[1] else shape
        out[chip.target] = shape
    return out


def _number(value: Value) -> float:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if plain and value > 0 else 0.0  # type: ignore[arg-type, operator]


def _crder_mas(value: float) -> float:
    """Return CRDER in mas: degrees, but some archives wrote mas where degrees belong."""
    return value * MAS_PER_DEG if value < CRDER_MAS_ABOVE else value


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
    """Find the chips of a file: its science images with a celestial WCS.

    Raises
    ------
    ImageError
        If there is none.
    """
    chips = chips_of(file)
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
