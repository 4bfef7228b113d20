"""Soundness of a solution: one predicate, with its reasons, for all commands.

A solution is sound where it is whole (every chip, every table, the distortion that its CTYPE
names), where it does not contradict itself (one name over all chips, one matrix, no keyword twice,
names of the distortion that agree, sums that are true), and, beside an exposure, where it belongs
to that exposure and holds its chips together as the other solutions of the same model do. Every
command that lists, checks or applies a solution asks :func:`reasons`; one that is not sound is
used by force only.

Identity is a comparison of facts: DESTIM with the names that an exposure has had, the start of
the exposure with the camera and the size of the chips, and the WCS itself, which no other exposure
has to twelve digits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fits.alternates import records_of
from cynosure.data.fits.blocks import sum32
from cynosure.data.fits.parts import Part, Value, value_of
from cynosure.ground.sky import deproject, project
from cynosure.solutions.names import model_root, parse_distname, parse_sipname

__all__ = [
    "FACTS", "Exposure", "Kind", "Reason", "bare_name", "doubts_of", "faults_of", "identity",
    "reasons", "relation_px", "torn",
]

Kind = Literal[
    "name", "chips", "tables", "distortion", "matrix", "torn", "twice", "sums", "identity"
]
Floats = NDArray[np.float64]
Target = tuple[str, int]

# Cards of a headerlet, besides DESTIM, that identify its exposure.
FACTS = ("EXPSTART", "INSTRUME", "DETECTOR")
# EXPSTART is a date in days with nine decimals or fewer; two exposures of a camera start more than
# half a second apart.
SAME_START_DAYS = 0.5 / 86400.0
# The chips of solutions of one distortion model keep their relation to 1e-5 px (measured on the
# archive's headerlets, all fits); the torn one of the archive is 2 px off.
TORN_PX = 0.1
# The linear parts of two solutions are compared within so many pixels of the reference pixel: over
# a square of 2000 px, half the side of a chip of ACS/WFC.
HALF_CHIP_PX = 1000.0
LINEAR = re.compile(r"(CTYPE|CRVAL|CRPIX|CDELT|CROTA|CUNIT)\d|(CD|PC)\d_\d|LONPOLE|LATPOLE|RADESYS")
REFERENCE = ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2")
LOOKUPS = (("CPDIS1", "WCSDVARR"), ("D2IMDIS1", "D2IMARR"))
NO_NAMES = frozenset(("", "none"))

# The interfaces of the records in `files.headerlet`, which imports this module.
Solution = Any
ChipWcs = Any
LookupTable = Any


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a solution is not sound.

    Attributes
    ----------
    kind : str
        What is wrong.
    text : str
        In words, with the chip.
    unfit : bool
        It cannot give the positions that it names; otherwise it contradicts itself or its exposure.
    """

    kind: Kind
    text: str
    unfit: bool = False

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Exposure:
    """What a file says of the exposure that it holds.

    Attributes
    ----------
    rootname : str
        How it is called.
    names : frozenset of str
        All names that it has had, as :func:`bare_name` gives them.
    targets : tuple of (str, int)
        Its images.
    facts : mapping
        Values of :data:`FACTS`.
    shapes : mapping of (str, int) to (int, int)
        Rows and columns of the images.
    """

    rootname: str
    names: frozenset[str] = frozenset()
    targets: tuple[Target, ...] = ()
    facts: Mapping[str, Value] = field(default_factory=dict)
    shapes: Mapping[Target, tuple[int, int] | None] = field(default_factory=dict)


# --- the solution by itself -----------------------------------------------------------------


def reasons(
    solution: Solution, exposure: Exposure | None = None, *,
    others: Iterable[tuple[str, Solution]] = (), held: bool = False,
) -> list[Reason]:
    """Say why a solution is not sound; empty where it is.

    Parameters
    ----------
    solution : Headerlet
    exposure : Exposure, optional
        The exposure that it is to be a WCS of.
    others : iterable of (str, Headerlet)
        The other solutions of that exposure, and how they are called.
    held : bool
        Whether the exposure's file holds the same WCS already.
    """
    out = [*faults_of(solution), *doubts_of(solution)]
    if exposure is None:
        return out
    missing = [t for t in exposure.targets if solution.chip(t) is None]
    if missing:
        listed = ", ".join(f"{n},{v}" for n, v in missing)
        out.append(Reason("chips", f"it has no WCS of {listed}", unfit=True))
    stranger = identity(solution, exposure, held=held)
    away = torn(solution, others)
    return out + [r for r in (stranger, away) if r is not None]


def faults_of(solution: Solution) -> list[Reason]:
    """Say what is missing in a solution, so that it cannot give the positions that it names."""
    out = []
    if not solution.hdrname:
        out.append(Reason("name", "it has no HDRNAME", unfit=True))
    targets = [c.target for c in solution.chips]
    if len(set(targets)) < len(targets):
        out.append(Reason("chips", "two of its chips belong to the same image", unfit=True))
    for chip in solution.chips:
        out += [Reason(k, f"SIPWCS,{chip.version} {text}", unfit=True)
                for k, text in _chip_faults(chip, solution)]
    return out


def _chip_faults(chip: ChipWcs, solution: Solution) -> list[tuple[Kind, str]]:
    out: list[tuple[Kind, str]] = []
    terms = any(k[0] in "AB" for k in chip.distortion)
    says = [str(chip.get(f"CTYPE{i}", "")).endswith("-SIP") for i in (1, 2)]
    orders = bool(chip.get("A_ORDER") and chip.get("B_ORDER"))
    if not str(chip.get("CTYPE1", "")):
        out.append(("distortion", "has no CTYPE"))
    elif terms and not all(says):
        out.append(("distortion", "has SIP terms, but its CTYPE does not say -SIP"))
    elif any(says) and not orders:
        out.append(("distortion", "has a CTYPE that says -SIP, but no SIP terms"))
    elif _corrected(solution.wcsname) and chip.kinds[0].endswith("-TAN") and not orders:
        out.append(("distortion", "is called distortion corrected, but has no SIP terms"))
    linear = chip.linear.tolist()
    a, b, c, d = linear[4:]
    if not all(map(math.isfinite, linear)) or a * d - b * c == 0.0:
        out.append(("matrix", "has no usable CD matrix"))
    if any(math.isnan(chip.number(k, math.nan)) for k in REFERENCE):
        out.append(("matrix", "has no reference point"))
    named = {name for name, _ in chip.lookups}
    out += [("tables", f"does not say which {table} it looks up") for key, table in LOOKUPS
            if table not in named and str(chip.get(key, "")).upper() == "LOOKUP"]
    return out + [("tables", f"names {n},{v}, which is not in it") for n, v in chip.lookups
                  if solution.table(n, v) is None]


def _corrected(wcsname: str) -> bool:
    """Say whether a name promises a distortion model; a conversion to TAN says that it has none."""
    return wcsname.startswith("IDC_") and not wcsname.endswith("-TAN")


def doubts_of(solution: Solution) -> list[Reason]:
    """Say what in a solution contradicts itself."""
    out = []
    for chip in solution.chips:
        where = f"SIPWCS,{chip.version}"
        name = str(chip.get("WCSNAME", "") or "").strip()
        if name and name != solution.wcsname:
            out.append(Reason("torn", f"{where} holds another solution, {name}"))
        keys, twice = _keys(chip.groups[0])
        if "PC" in keys and "CD" in keys:
            out.append(Reason("matrix", f"{where} has a PC and a CD matrix"))
        if twice:
            out.append(Reason("twice", f"{where} states {twice} twice, differently"))
    return out + _names(solution) + _sums(solution.tables)


@lru_cache(maxsize=512)  # the chips of a file are asked again and again
def _keys(records: tuple[tuple[str, bytes], ...]) -> tuple[frozenset[str], str]:
    """Return which matrices linear cards have, and the first keyword that is there twice."""
    seen: dict[str, bytes] = {}
    twice, found = "", set()
    for key, body in records:
        if _is_linear(key):
            if key[2:3].isdigit() and key[3:4] == "_":
                found.add(key[:2])
            if key in seen and not twice and value_of(seen[key]) != value_of(body):
                twice = key
            seen.setdefault(key, body)
    return frozenset(found), twice


@lru_cache(maxsize=4096)
def _is_linear(keyword: str) -> bool:
    return LINEAR.fullmatch(keyword) is not None


def _names(solution: Solution) -> list[Reason]:
    """Compare the names of the distortion model with each other."""
    stated = model_root(solution.text("IDCTAB"))
    if not stated:
        return []
    sipname, distname = solution.text("SIPNAME"), solution.text("DISTNAME")
    said = (("SIPNAME", sipname, model_root(parse_sipname(sipname).model)),
            ("DISTNAME", distname, parse_distname(distname).distortion.idctab))
    return [Reason("name", f"{key} {text} is not the distortion model of IDCTAB, {stated}")
            for key, text, root in said if root and root.casefold() != stated.casefold()]


def _sums(tables: Iterable[LookupTable]) -> list[Reason]:
    """Compare the sums of lookup tables with their bytes."""
    out = []
    for table in tables:
        if b"DATASUM" not in table.header:
            continue
        text = _false_sum(table.header, table.data)
        if text:
            out.append(Reason("sums", f"the numbers of {table.name},{table.version} are not those "
                              f"of its DATASUM {text}"))
    return out


@lru_cache(maxsize=64)  # thousands of headerlets share their tables
def _false_sum(header: bytes, data: bytes) -> str:
    """Return DATASUM where it is not the sum of the data; empty where it is, or is absent."""
    text = Part(records_of(header)).text("DATASUM")
    return text if text.isdigit() and int(text) != sum32(data) else ""


# --- beside its exposure --------------------------------------------------------------------


@lru_cache(maxsize=4096)
def bare_name(text: str) -> str:
    """Return the name of an exposure without folder, endings and processing step.

    Examples
    --------
    >>> [bare_name(t) for t in ("/data/IB4606C5Q_flc.fits", "ib4606c5q", "m81.fits.gz")]
    ['ib4606c5q', 'ib4606c5q', 'm81']
    """
    name = text.strip().replace("\\", "/").rpartition("/")[2].lower()
    name = re.sub(r"(\.(fits?|fz|gz|bz2|xz))+$", "", name)
    return re.sub(r"(_(raw|flt|flc|crj|crc|ima|c0m|c0f|c1m|wcs))+$|\.wcs$", "", name)


def identity(solution: Solution, exposure: Exposure, *, held: bool = False) -> Reason | None:
    """Say why a solution is not known to belong to an exposure; None where it is.

    Parameters
    ----------
    solution : Headerlet
    exposure : Exposure
    held : bool
        Whether the exposure's file holds the same WCS already.
    """
    if held:
        return None
    agree = 0
    for key in FACTS:
        theirs, ours = solution.get(key), exposure.facts.get(key)
        if theirs in (None, "") or ours in (None, ""):
            continue
        if not _same_fact(theirs, ours):
            return Reason("identity", f"its {key} is {theirs}, that of the exposure is {ours}")
        agree += 1
    if bare_name(solution.destim) in exposure.names - NO_NAMES:
        return None
    if agree == len(FACTS) and _same_sizes(solution, exposure):
        return None
    return Reason("identity", f"it is a WCS of {solution.destim or 'no exposure'}")


def _same_fact(a: Value, b: Value) -> bool:
    numbers = [v for v in (a, b) if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) == 2:
        return abs(numbers[0] - numbers[1]) <= SAME_START_DAYS
    return str(a).strip().casefold() == str(b).strip().casefold()


def _same_sizes(solution: Solution, exposure: Exposure) -> bool:
    """Say whether all chips say that they are as large as those of the exposure."""
    for target in exposure.targets:
        chip, shape = solution.chip(target), exposure.shapes.get(target)
        if chip is None or shape is None:
            return False
        if [chip.get(f"TG_NAXI{i}") for i in (2, 1)] != list(shape):
            return False
    return bool(exposure.targets)


def torn(
    solution: Solution, others: Iterable[tuple[str, Solution]]
) -> Reason | None:
    """Compare the relation of the chips with that in the other solutions of the same model.

    The chips of a camera move together: a fit shifts, turns and scales them all. A solution whose
    chips stand to each other otherwise than in more than half of the others is made of two.
    """
    apart = []
    for name, other in others:
        px = relation_px(solution, other)
        if px is not None:
            apart.append((px, name))
    far = sorted((a for a in apart if a[0] > TORN_PX), key=lambda a: a[0])
    if not far or 2 * len(far) <= len(apart):
        return None
    px, name = far[len(far) // 2]
    more = f" and {len(far) - 1} more" if len(far) > 1 else ""
    return Reason("torn", f"its chips lie {px:.2g} px otherwise to each other than in {name}{more}")


def relation_px(a: Solution, b: Solution) -> float | None:
    """Return how far the chips of one solution are from those of another, moved as one.

    Both are linear over a chip; what is common to all chips, a shift and a linear map, is taken
    off.

    Returns
    -------
    float or None
        Largest distance in pixels; None where the solutions have fewer than two chips in common,
        or another distortion model, so that nothing can be said.
    """
    pairs = [(c, b.chip(c.target)) for c in a.chips]
    if len(pairs) < 2 or not a.distortion.idctab or a.distortion != b.distortion:
        return None
    if any(o is None or not _comparable(c, o) for c, o in pairs):
        return None
    origin = a.chips[0].linear[:2]
    ours, theirs = (
        np.array([_points(pair[k].linear, origin) for pair in pairs]) for k in (0, 1)
    )
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return None
    inner = [(v - v.mean(axis=1, keepdims=True)).reshape(-1, 2) for v in (theirs, ours)]
    matrix = np.linalg.lstsq(inner[0], inner[1], rcond=None)[0]
    rest = ours - theirs @ matrix
    rest -= rest.reshape(-1, 2).mean(axis=0)
    scale = math.sqrt(abs(np.linalg.det(a.chips[0].linear[4:].reshape(2, 2))))
    return float(np.hypot(rest[..., 0], rest[..., 1]).max() / scale) if scale > 0 else None


def _comparable(a: ChipWcs, b: ChipWcs) -> bool:
    """Say whether two chips have one distortion, so that their linear parts may be compared."""
    ours, theirs = a.distortion, b.distortion
    return (
        a.kinds == b.kinds and a.kinds[0].endswith("-TAN") and ours.keys() == theirs.keys()
        and np.allclose(list(ours.values()), [theirs[k] for k in ours], rtol=1e-6, atol=0.0)
        and np.allclose(a.linear[2:4], b.linear[2:4], atol=1e-6)
    )


def _points(linear: Floats, origin: Floats) -> Floats:
    """Return five points of a chip on the tangent plane about an origin, degrees, (5, 2)."""
    matrix = linear[4:].reshape(2, 2)
    pixels = HALF_CHIP_PX * np.array([[0, 0], [-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float)
    xi, eta = matrix @ pixels.T
    ra, dec = deproject(xi, eta, float(linear[0]), float(linear[1]))
    return np.stack(project(ra, dec, float(origin[0]), float(origin[1])), axis=-1)
