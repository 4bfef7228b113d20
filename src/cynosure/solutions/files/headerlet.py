"""Headerlets: the whole WCS of an exposure in a small FITS file of its own.

A headerlet is a FITS file without pixels: a primary unit that says whose WCS this is and how it
was made, a unit ``SIPWCS`` for each chip with its WCS cards, and the lookup tables (``WCSDVARR``,
``D2IMARR``) that those cards name. Everything needed to go from pixels to the sky is in it.

What is read may come from any archive of the last fifteen years: units in any order, cards that
are missing or of another type. What is written has one form, in which a headerlet that had it
already comes back byte for byte. Cards are kept as their own 80 bytes, so that no number changes.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cynosure._version import __version__
from cynosure.data.fits.alternates import Records, records_of
from cynosure.data.fits.blocks import CARD, DTYPES, Unit, padded
from cynosure.data.fits.parts import Part, Value, card, value_of
from cynosure.data.fits.wcsread import is_wcs_keyword, read_wcs
from cynosure.ground.errors import CynosureError, ExitCode
from cynosure.ground.sky import MAS_PER_DEG
from cynosure.solutions import soundness
from cynosure.solutions.names import (
    Distortion,
    distname,
    model_root,
    parse_distname,
    parse_wcsname,
)

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = [
    "MAX_HEADERLET_BYTES",
    "ChipWcs",
    "Headerlet",
    "HeaderletDamaged",
    "LookupTable",
    "Target",
    "is_solution_keyword",
    "lookups_of",
    "new_head",
    "same_distortion",
    "same_solution",
]

# The largest headerlet of Hubble's archive has 0.2 MB, one of a mosaic of sixty chips would have
# 20 MB; what is larger than this limit is not unpacked.
MAX_HEADERLET_BYTES = 256 << 20
# A D2IM table is as long as a chip; the largest detectors have 16384 px on a side.
MAX_TABLE_SIDE = 1 << 14

# EXTNAME (PRIMARY for the first unit) and EXTVER of an image.
Target = tuple[str, int]

TABLES = ("WCSDVARR", "D2IMARR")
LOOKUP = re.compile(r"(DP|D2IM)\d(\.EXTVER)?")
LOOKUP_VERSION = re.compile(r"EXTVER: *(\d{1,9})(\.0*)?")
TERM = re.compile(r"[AB]_\d+_\d+|PV[12]_\d+")
STRUCTURE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|CHECKSUM|DATASUM|GROUPS|TFIELDS|T[A-Z]{4}\d+"
)
# Cards of a solution that are not WCS keywords of the standard: Hubble's for its distortion, and
# those that say how the solution was made.
SHARED = ("OCX10", "OCX11", "OCY10", "OCY11", "IDCSCALE", "NPOLEXT", "D2IMEXT")
ABOUT = (
    "ORIENTAT", "WCSTYPE", "HDRNAME", "RMS_RA", "RMS_DEC", "NMATCH", "NMATCHES", "FITNAME",
    "FITGEOM", "RELGEOM", "RELMATCH", "RELRMS_R", "RELRMS_D", "RELREFIM", "CATALOG", "FITQUAL",
    "ASTCAT", "ASTEPOCH", "ASTSOFT", "AST_NRSV", "AST_RSVX", "AST_RSVY", "AST_CHI2", "AST_SIG0",
    "AST_AFAC", "AST_KEEP", "AST_PLAN",
)
OWN = frozenset((*SHARED, *ABOUT))
# Order and comments of the primary cards.
HEAD = {
    "DESTIM": "exposure that this is a WCS of",
    "HDRNAME": "name of this headerlet",
    "DATE": "when it was made",
    "WCSNAME": "name of the solution",
    "DISTNAME": "distortion model",
    "SIPNAME": "polynomial distortion model",
    "NPOLFILE": "non-polynomial distortion",
    "D2IMFILE": "detector to image correction",
    "IDCTAB": "polynomial distortion",
    "AUTHOR": "who made it",
    "DESCRIP": "what it is",
    "RMS_RA": "[mas] rms in right ascension",
    "RMS_DEC": "[mas] rms in declination",
    "NMATCH": "stars of the fit",
    "CATALOG": "reference catalogue",
    "UPWCSVER": "software that made the WCS",
    "PYWCSVER": "WCS library that it was made with",
}
# RMS_RA below this is in degrees: 1e-4 deg are 360 mas, more than an accepted fit has, and no fit
# is good to 1e-4 mas.
DEGREES_BELOW = 1e-4


class HeaderletDamaged(CynosureError):
    """A headerlet that cannot be read or contradicts itself."""

    text = "{headerlet}: {reason}"
    hint = "Fetch it again, or look into it with `cynosure wcs verify FILE`."
    exit_code = ExitCode.IMAGE_UNREADABLE


def is_solution_keyword(keyword: str) -> bool:
    """Say whether a card belongs to a solution: of its WCS, or of the fit that made it."""
    return is_wcs_keyword(keyword) or keyword in OWN


@dataclass(frozen=True, slots=True, eq=False)
class LookupTable:
    """A lookup table as it lies in a file.

    Attributes
    ----------
    name : str
        ``WCSDVARR`` or ``D2IMARR``.
    version : int
        EXTVER, by which WCS cards name it.
    header : bytes
        Header in whole blocks.
    data : bytes
        Without padding.
    """

    name: str
    version: int
    header: bytes
    data: bytes

    @property
    def array(self) -> NDArray[np.float32]:
        """The numbers, (ny, nx).

        Raises
        ------
        HeaderletDamaged
            If it is not a small image of numbers.
        """
        unit = Unit(0, self.header, 0, len(self.data))
        shape = unit.shape
        bitpix = Part(records_of(self.header)).get("BITPIX")
        dtype = DTYPES.get(bitpix) if isinstance(bitpix, int) else None
        good = len(shape) == 2 and dtype is not None and all(0 < n <= MAX_TABLE_SIDE for n in shape)
        if not good or len(self.data) != np.prod(shape) * np.dtype(dtype).itemsize:
            raise HeaderletDamaged(
                headerlet=f"{self.name},{self.version}", reason="not a lookup table"
            )
        return np.frombuffer(self.data, dtype).reshape(shape).astype(np.float32)

    @property
    def axes(self) -> dict[str, float]:
        """CRPIX, CRVAL and CDELT of the table."""
        part = Part(records_of(self.header))
        keys = [f"{k}{i}" for k in ("CRPIX", "CRVAL", "CDELT") for i in (1, 2)]
        values = {k: part.get(k) for k in keys}
        return {k: float(v) for k, v in values.items() if isinstance(v, (int, float))}


@dataclass(frozen=True, eq=False)
class ChipWcs:
    """The WCS of one chip.

    Attributes
    ----------
    version : int
        EXTVER of its SIPWCS.
    target : (str, int)
        EXTNAME and EXTVER of the image it belongs to.
    records : list of (str, bytes)
        All cards of the unit but the structural ones.
    """

    version: int
    target: Target
    records: Records
    @cached_property
    def _first(self) -> dict[str, bytes]:
        return dict(reversed(self.records))  # the first card of a keyword counts

    @property
    def cards(self) -> Records:
        """The cards that go into the header of an image."""
        out = [r for r in self.records if is_solution_keyword(r[0])]
        if any(k.startswith("CD") and k[2:3].isdigit() for k, _ in out):
            # CDELT has no meaning beside a CD matrix (FITS standard 4.0, 8.2), but wcslib reads it.
            out = [r for r in out if not r[0].startswith("CDELT")]
        return out

    def get(self, keyword: str, default: Value = None) -> Value:
        """Return the value of a card."""
        body = self._first.get(keyword)
        value = None if body is None else value_of(body)
        return default if value is None else value

    def number(self, keyword: str, default: float = 0.0) -> float:
        """Return a value as a number; the default where it is none."""
        value = self.get(keyword)
        return float(value) if isinstance(value, (int, float)) else default

    @cached_property
    def lookups(self) -> list[tuple[str, int]]:
        """EXTNAME and EXTVER of the tables that the cards name."""
        return list(_lookups(self.groups[2]))

    @cached_property
    def linear(self) -> NDArray[np.float64]:
        """CRVAL, CRPIX and the matrix from pixels to degrees."""
        number = self.number
        cd = [number(k, math.nan) for k in ("CD1_1", "CD1_2", "CD2_1", "CD2_2")]
        if all(map(math.isnan, cd)):
            cd = [
                number(f"PC{i}_{j}", float(i == j)) * number(f"CDELT{i}", 1.0)
                for i in (1, 2) for j in (1, 2)
            ]
        point = [number(k) for k in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2")]
        return np.array([*point, *(0.0 if math.isnan(v) else v for v in cd)])

    @cached_property
    def distortion(self) -> dict[str, float]:
        """The SIP and PV terms that are not zero."""
        return dict(_terms(self.groups[1]))

    @cached_property
    def groups(self) -> tuple[tuple[tuple[str, bytes], ...], ...]:
        """The cards of the linear part, of the distortion's terms, and of lookup tables."""
        out: tuple[Records, ...] = ([], [], [])
        for record in self.records:
            if (group := _group_of(record[0])) is not None:
                out[group].append(record)
        return tuple(map(tuple, out))

    @cached_property
    def kinds(self) -> tuple[str, str]:
        """CTYPE1 and CTYPE2 without ``-SIP``."""
        return tuple(str(self.get(f"CTYPE{i}", "")).removesuffix("-SIP") for i in (1, 2))  # type: ignore[return-value]


@lru_cache(maxsize=4096)
def _group_of(keyword: str) -> int | None:
    patterns = (soundness.LINEAR, TERM, LOOKUP)
    return next((i for i, p in enumerate(patterns) if p.fullmatch(keyword)), None)


def lookups_of(records: Records) -> list[tuple[str, int]]:
    """Return EXTNAME and EXTVER of the tables that WCS cards name, NPOL's first."""
    return list(_lookups(tuple(r for r in records if r[0][:2] in ("DP", "D2"))))


@lru_cache(maxsize=512)  # all exposures of a camera name the same few tables
def _lookups(records: tuple[tuple[str, bytes], ...]) -> tuple[tuple[str, int], ...]:
    out = set()
    for key, body in records:
        if LOOKUP.fullmatch(key):
            text = str(value_of(body))
            number = LOOKUP_VERSION.fullmatch(text)
            if number is None and key.endswith(".EXTVER"):
                number = re.fullmatch(r"(\d{1,9})(\.0*)?", text)
            if number is not None:
                out.add((TABLES[key.startswith("D2IM")], int(number[1])))
    return tuple(sorted(out, key=lambda at: (TABLES.index(at[0]), at[1])))


@lru_cache(maxsize=512)  # all exposures with one IDCTAB have the same terms
def _terms(records: tuple[tuple[str, bytes], ...]) -> tuple[tuple[str, float], ...]:
    values = {k: value_of(body) for k, body in records if TERM.fullmatch(k)}
    return tuple((k, float(v)) for k, v in values.items() if isinstance(v, (int, float)) and v)


@dataclass(frozen=True, eq=False)
class Headerlet:
    """The complete WCS solution of an exposure.

    Attributes
    ----------
    head : list of (str, bytes)
        Cards of the primary unit but the structural ones.
    chips : tuple of ChipWcs
    tables : tuple of LookupTable
    notes : tuple of str
        What the reader mended.
    """

    head: Records
    chips: tuple[ChipWcs, ...]
    tables: tuple[LookupTable, ...] = ()
    notes: tuple[str, ...] = ()

    def get(self, keyword: str, default: Value = None) -> Value:
        """Return the value of a primary card."""
        body = self._first.get(keyword)
        value = None if body is None else value_of(body)
        return default if value is None else value

    @cached_property
    def _first(self) -> dict[str, bytes]:
        return dict(reversed(self.head))

    def text(self, keyword: str) -> str:
        """Return a primary card as a text; empty where it is absent."""
        return str(self.get(keyword, "")).strip()

    @property
    def destim(self) -> str:
        """The exposure it is a WCS of."""
        return self.text("DESTIM")

    @cached_property
    def hdrname(self) -> str:
        """Its own name."""
        return self.text("HDRNAME")

    @cached_property
    def wcsname(self) -> str:
        """The name of the solution; from the chips where the primary unit has none."""
        return self.text("WCSNAME") or str(self.chips[0].get("WCSNAME", "")) or self.hdrname

    @cached_property
    def distortion(self) -> Distortion:
        """Roots of the distortion's files."""
        first = self.chips[0]
        if "IDCTAB" not in self._first and self.text("DISTNAME"):
            return parse_distname(self.text("DISTNAME")).distortion
        return Distortion(
            model_root(self.text("IDCTAB")),
            model_root(self.text("NPOLFILE") or str(first.get("NPOLEXT", ""))),
            model_root(self.text("D2IMFILE") or str(first.get("D2IMEXT", ""))),
        )

    @property
    def distname(self) -> str:
        """DISTNAME as stored, else made of the roots."""
        return self.text("DISTNAME") or distname(self.destim, self.distortion)

    @property
    def catalog(self) -> str:
        """The reference catalogue, if need be as the name says; empty where nothing says."""
        stated = self.text("CATALOG") or str(self.chips[0].get("ASTCAT", ""))
        return stated or parse_wcsname(self.wcsname).catalog

    @property
    def n_matched(self) -> int:
        """Stars of the fit, also where they were written as a text; 0 where unknown."""
        first = self.chips[0]
        for text in (self.text("NMATCH"), *(str(first.get(k, "")) for k in ("NMATCHES", "NMATCH"))):
            if re.fullmatch(r"\d{1,9}(\.0*)?", text) and float(text):
                return int(float(text))
        return 0

    @property
    def rms_mas(self) -> tuple[float, float]:
        """Rms in right ascension and declination; NaN where unknown.

        Old headerlets have degrees in the same cards; no fit is good to a thousandth of a
        milliarcsecond, so the size of the number tells.
        """
        out = []
        for keyword in ("RMS_RA", "RMS_DEC"):
            text = self.text(keyword) or str(self.chips[0].get(keyword, ""))
            try:
                value = float(text)
            except ValueError:
                value = np.nan
            value = value * MAS_PER_DEG if 0 < value < DEGREES_BELOW else value
            out.append(value if value > 0 else np.nan)
        return out[0], out[1]

    @property
    def fingerprint(self) -> str:
        """A hash of the WCS alone: chips and tables, without names and dates."""
        total = hashlib.sha256()
        for chip in sorted(self.chips, key=lambda c: c.target):
            terms = sorted(chip.distortion.items())
            total.update(repr((chip.target, chip.kinds, chip.linear.tolist(), terms)).encode())
        for table in sorted(self.tables, key=lambda t: (t.name, t.version)):
            total.update(f"{table.name}{table.version}".encode() + table.data)
        return total.hexdigest()

    def chip(self, target: Target) -> ChipWcs | None:
        """Return the chip of an image."""
        return next((c for c in self.chips if c.target == target), None)

    def table(self, name: str, version: int) -> LookupTable | None:
        """Return a lookup table."""
        return next((t for t in self.tables if t.version == version and t.name == name), None)

    def wcs(self, target: Target | int = 1, *, shape: tuple[int, int] | None = None) -> WCS:
        """Return the WCS of a chip as astropy evaluates it: D2IM, then SIP beside NPOL, CD, TAN.

        Parameters
        ----------
        target : (str, int) or int
            The image, or its EXTVER.
        shape : (int, int), optional
            Rows and columns of the image.

        Raises
        ------
        HeaderletDamaged
            If there is no such chip, a table is missing, or the WCS cannot be used.
        """
        from astropy.io.fits import HDUList, ImageHDU, PrimaryHDU

        name = self.hdrname or self.wcsname or "headerlet"
        chip = (
            next((c for c in self.chips if c.target[1] == target), None)
            if isinstance(target, int) else self.chip(target)
        )
        if chip is None:
            raise HeaderletDamaged(headerlet=name, reason=f"it has no WCS of chip {target}")
        units = [PrimaryHDU()]
        for kind, version in chip.lookups:
            table = self.table(kind, version)
            if table is None:
                raise HeaderletDamaged(
                    headerlet=name, reason=f"its WCS names {kind},{version}, which is not in it"
                )
            unit = ImageHDU(table.array, name=kind, ver=version)
            unit.header.update(table.axes)
            units.append(unit)
        header = Part([*chip.cards]).header()
        wcs, notes = read_wcs(header, hdulist=HDUList(units), shape=shape)
        if wcs is None:
            reason = "; ".join(notes) or "it has no WCS"
            raise HeaderletDamaged(headerlet=name, reason=f"chip {chip.target}: {reason}")
        return wcs

    def faults(self) -> list[str]:
        """Return what is missing and makes the solution unusable; empty for a good one."""
        return [r.text for r in soundness.faults_of(self)]

    def doubts(self) -> list[str]:
        """Return the contradictions of a solution that can be evaluated; empty for most."""
        return [r.text for r in soundness.doubts_of(self)]

    def replaced(self, **cards: Value) -> Headerlet:
        """Return a headerlet with some primary cards set; WCSNAME also in the chips."""
        part = Part(list(self.head))
        for keyword, value in cards.items():
            part.set(keyword, value, HEAD.get(keyword, ""))
        chips = self.chips
        if "WCSNAME" in cards:
            # A chip that holds another solution keeps its name: a new one would hide that.
            chips = tuple(
                _renamed(c, str(cards["WCSNAME"]))
                if str(c.get("WCSNAME", "")) in ("", self.wcsname) else c for c in chips
            )
        return replace(self, head=part.records, chips=chips)

    def to_bytes(self) -> bytes:
        """Return the headerlet as a FITS file: each chip followed by its tables."""
        out = [_unit_bytes(_image(True) + self._head())]
        written = set()
        for chip in sorted(self.chips, key=lambda c: c.version):
            out.append(_unit_bytes(_image(False) + _chip_records(chip)))
            for at in chip.lookups:
                table = self.table(*at)
                if table is not None and at not in written:
                    out += [table.header, _padding(table.data)]
                    written.add(at)
        return b"".join(out)

    def _head(self) -> Records:
        """Return the primary cards; those of :data:`HEAD` first where they are not in order."""
        keys = [k for k, _ in self.head if k in HEAD]
        if keys == [k for k in HEAD if k in keys]:
            return self.head
        first = [next(r for r in self.head if r[0] == k) for k in HEAD if k in keys]
        return first + [r for r in self.head if r[0] not in HEAD]


def _renamed(chip: ChipWcs, name: str) -> ChipWcs:
    part = Part(list(chip.records))
    part.set("WCSNAME", name, "name of the solution")
    return replace(chip, records=part.records)


def _chip_records(chip: ChipWcs) -> Records:
    """Return the cards of a SIPWCS with all that readers ask for."""
    part = Part(list(chip.records))
    if not (part.has("TG_ENAME") and part.has("TG_EVER")):
        part.remove(["SCIEXT"])
        part.set("TG_ENAME", chip.target[0], "EXTNAME of the image")
        part.set("TG_EVER", chip.target[1], "EXTVER of the image")
    if part.has("OCX11") and chip.distortion and not part.has("IDCSCALE"):
        scale = 3600.0 * float(np.hypot(chip.number("CD1_1"), chip.number("CD2_1")))
        part.set("IDCSCALE", scale, "[arcsec/px] scale of the distortion model")
    part.set("EXTNAME", "SIPWCS", "extension name")
    part.set("EXTVER", chip.version, "extension version")
    return part.records


def _image(primary: bool) -> Records:
    if primary:
        return [
            card("SIMPLE", True, "conforms to FITS standard"),
            card("BITPIX", 8, "array data type"),
            card("NAXIS", 0, "number of array dimensions"),
            card("EXTEND", True),
        ]
    return [
        ("XTENSION", b"XTENSION= 'IMAGE   '           / Image extension".ljust(CARD)),
        card("BITPIX", 8, "array data type"),
        card("NAXIS", 0, "number of array dimensions"),
        card("PCOUNT", 0, "number of parameters"),
        card("GCOUNT", 1, "number of groups"),
    ]


def _unit_bytes(records: Records) -> bytes:
    while records and not records[-1][1].strip():  # blank cards before END
        records = records[:-1]
    return Part(records).header_bytes()


def _padding(data: bytes) -> bytes:
    return data.ljust(padded(len(data)), b"\0")


# --- making and comparing -------------------------------------------------------------------


def new_head(cards: dict[str, Value], history: Sequence[str] = ()) -> Records:
    """Return primary cards in their order, with UPWCSVER; DATE is empty where it is not known."""
    full: dict[str, Value] = {
        **dict.fromkeys(HEAD, ""), "RMS_RA": 0.0, "RMS_DEC": 0.0, "NMATCH": 0,
        **{k: v for k, v in cards.items() if v is not None},
    }
    full["UPWCSVER"] = full["UPWCSVER"] or f"cynosure {__version__}"
    records = [card(k, v, HEAD.get(k, "")) for k, v in full.items()]
    for line in history:
        for start in range(0, max(len(line), 1), 70):
            text = line[start : start + 70]
            records.append(("HISTORY", f"HISTORY {text}".encode("ascii", "replace").ljust(CARD)))
    return records


def same_solution(a: Headerlet, b: Headerlet) -> bool:
    """Say whether two headerlets hold the same WCS, whatever their names.

    Numbers agree to 12 digits. Lookup tables are the same if they come from the same reference
    files (that is what a distortion model is known by), or where no file is named, by their bytes.
    """
    if {c.target for c in a.chips} != {c.target for c in b.chips}:
        return False
    for one in a.chips:
        other = b.chip(one.target)
        assert other is not None
        if one.kinds != other.kinds or one.distortion.keys() != other.distortion.keys():
            return False
        ours, theirs = ([c.distortion[k] for k in one.distortion] for c in (one, other))
        if not np.allclose(one.linear, other.linear, rtol=1e-12, atol=1e-18):
            return False
        if not np.allclose(ours, theirs, rtol=1e-12, atol=0.0):
            return False
        if len(one.lookups) != len(other.lookups):
            return False
    return _same_tables(a, b)


def same_distortion(one: Headerlet, other: Headerlet) -> bool:
    """Say whether all chips of a solution have the distortion that they have in another one."""
    return all(
        (theirs := other.chip(c.target)) is not None
        and theirs.distortion == c.distortion and theirs.lookups == c.lookups
        for c in one.chips
    )


def _same_tables(a: Headerlet, b: Headerlet) -> bool:
    wanted = [{at for c in h.chips for at in c.lookups} for h in (a, b)]
    if not any(wanted):
        return True
    for kind, one, two in (
        ("WCSDVARR", a.distortion.npol, b.distortion.npol),
        ("D2IMARR", a.distortion.d2im, b.distortion.d2im),
    ):
        if one != two:
            return False
        if not one:
            data = [
                [h.table(*at).data for at in sorted(w) if at[0] == kind and h.table(*at)]  # type: ignore[union-attr]
                for h, w in zip((a, b), wanted)
            ]
            if data[0] != data[1]:
                return False
    return True
