"""Instrument files: TOML descriptions of the headers of one camera.

An instrument file defines the keywords of each quantity, the roles of extensions, the bits of
masks, the plate scale, the mounting of the camera with the dates of its changes, and default
settings. ``generic`` has the usual keywords and is used where no other file matches; every other
file only defines the differences. The shipped files are in ``cynosure/instruments``; a file of the
user is given by its path (``docs/how-to/own-instrument.md``).
"""

from __future__ import annotations

import fnmatch
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.header import ALIASES, mjd_of_text
from cynosure.data.mask import PURPOSES, Mask, mask_dictionary
from cynosure.ground.errors import SettingError
from cynosure.ground.settings import unknown_name

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = [
    "Companion",
    "Flip",
    "Instrument",
    "identify",
    "identifying_keywords",
    "instrument_names",
    "load_instrument",
]

FOLDER = Path(__file__).parents[1] / "instruments"
ROLES = ("science", "error", "variance", "ivar", "weight", "mask")
MASK_KINDS = ("bits", "values", "dictionary")
# Flags below this are translated by a table of all 16-bit values, others value by value.
LOOKED_UP = 1 << 16

# The keys of each table of an instrument file, and their types. Keys ending in * are free.
SCHEMA: dict[str, dict[str, tuple[type, ...]]] = {
    "": {
        "name": (str,),
        "title": (str,),
        "status": (str,),
        "notes": (str,),
        "identify": (list,),
        "header": (dict,),
        "values": (dict,),
        "layout": (dict,),
        "companion": (list,),
        "mask": (dict,),
        "flip": (list,),
        "settings": (dict,),
    },
    "header": {name: (str, list) for name in ALIASES},
    "values": {
        "scale_arcsec": (float, int),
        "scale_error": (float, int),
        "gain_e_adu": (float, int),
        "read_noise_e": (float, int),
        "saturation_adu": (float, int),
        "pointing_error_deg": (float, int),
        "rotation_deg": (float, int),
        "rotation_error_deg": (float, int),
        "parity": (int,),
        "exptime_s": (float, int),
        "date_is": (str,),
        "units": (str,),
        "trim": (bool,),
        "bayer": (str,),
        "data_section": (str,),
    },
    "layout": {**{role: (str, list) for role in ROLES}, "planes": (str,), "plane_table": (int,)},
    "companion": {"role": (str,), "replace": (list,)},
    "mask": {"kind": (str,), "bad": (list,), "keyword": (str,), "planes": (dict,), "bits": (dict,)},
    "flip": {
        "before": (str,),
        "after": (str,),
        "parity": (int,),
        "mirror": (bool,),
        "turn_deg": (float, int),
        "rotation_deg": (float, int),
        "rotation_error_deg": (float, int),
        "only": (dict,),
        "ra_offset_deg": (float, int),
        "dec_offset_deg": (float, int),
        "why": (str,),
    },
}
STATUSES = ("verified", "documents", "draft")


@dataclass(frozen=True, slots=True)
class Flip:
    """The mounting of the camera in a range of dates.

    Attributes
    ----------
    after_mjd, before_mjd : float
        The range, UTC; infinite where open.
    parity : int or None
        Replaces the parity.
    mirror : bool
        Reverses the parity.
    turn_deg : float
        Added to the rotation.
    rotation_deg, rotation_error_deg : float or None
        Replace the rotation and its error.
    ra_offset_deg, dec_offset_deg : float
        Added to the pointing of the header (ra without cos dec).
    only : dict of str to str
        Header keywords and patterns of the cameras concerned; empty for all.
    """

    after_mjd: float = -math.inf
    before_mjd: float = math.inf
    parity: int | None = None
    mirror: bool = False
    turn_deg: float = 0.0
    rotation_deg: float | None = None
    rotation_error_deg: float | None = None
    ra_offset_deg: float = 0.0
    dec_offset_deg: float = 0.0
    only: Mapping[str, str] = field(default_factory=dict)
    why: str = ""

    def holds(self, mjd: float, header: Header | None = None) -> bool:
        """Say whether the flip applies at a date; not if the date is unknown."""
        if self.only and (
            header is None or not all(_matches(header.get(k), p) for k, p in self.only.items())
        ):
            return False
        return self.after_mjd <= mjd < self.before_mjd


@dataclass(frozen=True, slots=True)
class Companion:
    """A file beside the image: its role, and the replacement in the image's name."""

    role: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Instrument:
    """The checked content of an instrument file.

    Attributes
    ----------
    name, title, status, notes : str
        ``status`` is ``verified`` (on real data), ``documents`` (from documentation), ``draft``.
    identify : tuple of dict
        Each maps header keywords to patterns; all of one must match.
    aliases : dict
        Keywords for each quantity: the file's own first, the generic ones after them.
    values : dict
        Values for headers without their own, and scale, rotation and parity of the mounting.
    layout : dict of role to tuple of EXTNAME patterns
    planes : str
        ``"chips"`` where the planes of a cube are detectors; ``""`` where a cube is refused.
    plane_table : int
        HDU of the table that holds the header values of each plane; -1 for none.
    companions : tuple of Companion
    mask_kind : str
        ``"bits"``; ``"values"`` (codes, one a pixel); or ``"dictionary"``: the masks have the bits
        of cynosure's own dictionary.
    mask_bad : tuple of int
        Bits, or values, that make a pixel unusable; empty for all that are not in `mask_bits`.
    mask_planes : dict of name to int
    mask_bits : tuple of (int, str)
        Bits, or values, and the corresponding bit of the mask dictionary.
    flips : tuple of Flip
    settings : dict
        Default settings, section by section.
    """

    name: str = "generic"
    title: str = ""
    status: str = "verified"
    notes: str = ""
    identify: tuple[dict[str, str], ...] = ()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(ALIASES))
    values: Mapping[str, Any] = field(default_factory=dict)
    layout: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    planes: str = ""
    plane_table: int = -1
    companions: tuple[Companion, ...] = ()
    mask_kind: str = "bits"
    mask_bad: tuple[int, ...] = ()
    mask_planes: Mapping[str, int] = field(default_factory=dict)
    mask_bits: tuple[tuple[int, str], ...] = ()
    flips: tuple[Flip, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def matches(self, header: Header | Mapping[str, Any]) -> bool:
        """Say whether a header is of this instrument."""
        return any(
            all(_matches(header.get(key), pattern) for key, pattern in rule.items())
            for rule in self.identify
        )

    def mask_of(self, flags: NDArray[np.int64]) -> Mask:
        """Return the camera's flags as bits of the mask dictionary.

        Parameters
        ----------
        flags : (ny, nx) ndarray of int
            The flags of the file.

        Returns
        -------
        mask : (ny, nx) ndarray of uint32
            The bits by `mask_bits`. A pixel that is bad by `mask_bad` gets the bit ``unusable``,
            unless another of its bits makes it unusable.
        """
        if self.mask_kind == "dictionary" or not flags.size:
            return flags.astype(np.uint32)
        low, high = int(flags.min()), int(flags.max())
        if 0 <= low and high < LOOKED_UP:
            return self._translated(np.arange(high + 1))[flags]
        out = np.zeros(flags.shape, dtype=np.uint32)
        some = flags != 0
        out[some] = self._translated(flags[some])
        return out

    def _translated(self, flags: NDArray[np.int64]) -> Mask:
        """Return the mask of each of some values."""
        dictionary = mask_dictionary()
        out = np.zeros(flags.shape, dtype=np.uint32)
        known = np.zeros_like(flags)
        for own, name in self.mask_bits:
            hit = flags == own if self.mask_kind == "values" else (flags & own) != 0
            out[hit] |= np.uint32(dictionary[name])
            known[hit] |= own
        if not self.mask_bad:
            bad = (flags != known) if self.mask_kind == "values" else (flags & ~known) != 0
        elif self.mask_kind == "values":
            bad = np.isin(flags, self.mask_bad)
        else:
            bad = (flags & np.bitwise_or.reduce(np.array(self.mask_bad))) != 0
        enough = np.bitwise_and.reduce([dictionary.spoiling(p) for p in PURPOSES])
        out[bad & ((out & np.uint32(enough)) == 0)] |= np.uint32(dictionary["unusable"])
        return out

    def mount(self, mjd: float, header: Header | None = None) -> dict[str, Any]:
        """Return parity, rotation, and pointing offsets as they were at a date (MJD, UTC).

        Returns
        -------
        dict
            ``parity`` (0 unknown), ``rotation_deg`` (None unknown), ``rotation_error_deg``,
            ``ra_offset_deg``, ``dec_offset_deg``.
        """
        v = self.values
        out = {
            "parity": v.get("parity", 0),
            "rotation_deg": v.get("rotation_deg"),
            "rotation_error_deg": v.get("rotation_error_deg", 180.0),
            "ra_offset_deg": 0.0,
            "dec_offset_deg": 0.0,
        }
        for flip in self.flips:
            if not flip.holds(mjd, header):
                continue
            if flip.parity is not None:
                out["parity"] = flip.parity
            if flip.mirror:
                out["parity"] = -out["parity"]
            if flip.rotation_deg is not None:
                out["rotation_deg"] = flip.rotation_deg
            if out["rotation_deg"] is not None:
                out["rotation_deg"] = (out["rotation_deg"] + flip.turn_deg) % 360.0
            if flip.rotation_error_deg is not None:
                out["rotation_error_deg"] = flip.rotation_error_deg
            out["ra_offset_deg"] += flip.ra_offset_deg
            out["dec_offset_deg"] += flip.dec_offset_deg
        return out


def _matches(value: Any, pattern: str) -> bool:
    """Match a header value against a shell pattern, ignoring case and outer blanks."""
    if value is None:
        return False
    return fnmatch.fnmatchcase(str(value).strip().upper(), pattern.upper())


def instrument_names() -> tuple[str, ...]:
    """Return the names of the shipped instruments."""
    return tuple(sorted(p.stem for p in FOLDER.glob("*.toml")))


def load_instrument(name: str | Path) -> Instrument:
    """Load an instrument by its shipped name or the path of its file.

    Raises
    ------
    SettingError
        If there is none of that name, or the file has an unknown key or a wrong value; the hint
        names the nearest one that exists.

    Examples
    --------
    >>> load_instrument("decam_cp").title
    'DECam, NOIRLab community pipeline'
    """
    text = str(name)
    if text.endswith(".toml") or "/" in text:
        return _load(Path(name))
    if text not in instrument_names():
        raise unknown_name("instrument", text, list(instrument_names()), "--instrument")
    return _shipped(text)


@cache
def _shipped(name: str) -> Instrument:
    return _load(FOLDER / f"{name}.toml")


def identify(*headers: Header | Mapping[str, Any]) -> str:
    """Return the name of the shipped instrument that matches the first of some headers.

    Parameters
    ----------
    *headers : Header or mapping
        The primary header, then that of the first image; of a mapping those of
        :func:`identifying_keywords` are enough.

    Returns
    -------
    str
        ``generic`` where none fits.
    """
    for header in headers:
        for name in _identifiable(header):
            if load_instrument(name).matches(header):
                return name
    return "generic"


@cache
def identifying_keywords() -> frozenset[str]:
    """Return the keywords that identify shipped instruments."""
    return frozenset(k for rules in _rule_keys().values() for rule in rules for k in rule)


def _identifiable(header: Header | Mapping[str, Any]) -> list[str]:
    """Return the shipped instruments whose file could match, without parsing the others.

    Every rule names INSTRUME, TELESCOP or another keyword; only these are read first.
    """
    return [
        n
        for n, keys in _rule_keys().items()
        if any(all(k in header for k in rule) for rule in keys)
    ]


@cache
def _rule_keys() -> dict[str, tuple[tuple[str, ...], ...]]:
    out = {}
    for path in sorted(FOLDER.glob("*.toml")):
        rules = _rules_only(path)
        if rules:
            out[path.stem] = rules
    return out


def _rules_only(path: Path) -> tuple[tuple[str, ...], ...]:
    """Read the keywords of the [[identify]] tables of a shipped file."""
    rules: list[list[str]] = []
    inside = False
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line.startswith("["):
            inside = line == "[[identify]]"
            if inside:
                rules.append([])
        elif inside and (match := re.match(r'"?([A-Z0-9_ -]+?)"?\s*=', line)):
            rules[-1].append(match[1])
    return tuple(tuple(r) for r in rules)


def _load(path: Path) -> Instrument:
    try:
        with path.open("rb") as stream:
            content = tomllib.load(stream)
    except OSError as error:
        raise SettingError("{path}: {reason}", path=str(path), reason=error.strerror) from error
    except tomllib.TOMLDecodeError as error:
        raise SettingError(
            "{path}: not TOML ({reason})", path=str(path), reason=str(error)
        ) from error
    _check(content, path)
    layout = content.get("layout", {})
    mask = content.get("mask", {})
    planes = {str(k): int(v) for k, v in mask.get("planes", {}).items()}
    return Instrument(
        name=content.get("name", path.stem),
        title=content.get("title", ""),
        status=content.get("status", "draft"),
        notes=content.get("notes", ""),
        identify=tuple({k: str(v) for k, v in r.items()} for r in content.get("identify", [])),
        aliases=_aliases(content.get("header", {})),
        values=dict(content.get("values", {})),
        layout={k: _texts(v) for k, v in layout.items() if k in ROLES},
        planes=layout.get("planes", ""),
        plane_table=layout.get("plane_table", -1),
        companions=tuple(Companion(c["role"], *c["replace"]) for c in content.get("companion", [])),
        mask_kind=mask.get("kind", "bits"),
        mask_planes=planes,
        mask_bad=tuple(_mask_number(b, planes, path) for b in mask.get("bad", [])),
        mask_bits=_mask_bits(mask.get("bits", {}), planes, path),
        flips=tuple(_flip(f, path) for f in content.get("flip", [])),
        settings=content.get("settings", {}),
    )


def _texts(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _aliases(own: Mapping[str, str | list[str]]) -> dict[str, tuple[str, ...]]:
    """Return the aliases with an instrument's own keywords first."""
    merged = {}
    for quantity, generic in ALIASES.items():
        names = _texts(own.get(quantity, []))
        merged[quantity] = names + tuple(n for n in generic if n not in names)
    if "ra" in own or "dec" in own:  # they are read in pairs
        ra, dec = _texts(own.get("ra", [])), _texts(own.get("dec", []))
        merged["ra"], merged["dec"] = ra + ALIASES["ra"], dec + ALIASES["dec"]
    return merged


def _mask_number(value: int | str, planes: Mapping[str, int], path: Path) -> int:
    if isinstance(value, int):
        return value
    if value not in planes:
        raise unknown_name("mask plane", value, list(planes), f"{path.name} [mask] bad")
    return planes[value]


def _mask_bits(
    bits: Mapping[str, str], planes: Mapping[str, int], path: Path
) -> tuple[tuple[int, str], ...]:
    """Return own bits, or values, with the names of the dictionary's bits, which are checked."""
    for name in bits.values():
        mask_dictionary()[name]
    return tuple((_mask_number(own, planes, path), name) for own, name in bits.items())


def _flip(table: Mapping[str, Any], path: Path) -> Flip:
    limits: dict[str, Any] = {}
    for key in ("after", "before"):
        if key in table:
            limits[f"{key}_mjd"] = mjd_of_text(table[key])
            if not math.isfinite(limits[f"{key}_mjd"]):
                raise SettingError(
                    "{path} [[flip]] {key} = {value!r}: not a date",
                    path=path.name,
                    key=key,
                    value=table[key],
                    hint="Write it as 2021-05-24T11:35:53 (UTC).",
                )
    rest = {k: v for k, v in table.items() if k not in ("after", "before")}
    return Flip(**limits, **rest)


def _check(content: Mapping[str, Any], path: Path) -> None:
    _check_table(content, "", path)
    for name in ("header", "values", "layout", "mask"):
        _check_table(content.get(name, {}), name, path)
    for name in ("companion", "flip"):
        for table in content.get(name, []):
            _check_table(table, name, path)
    if content.get("status", "draft") not in STATUSES:
        raise unknown_name("status", str(content["status"]), list(STATUSES), path.name)
    for companion in content.get("companion", []):
        if companion.get("role") not in ROLES:
            raise unknown_name(
                "role", str(companion.get("role")), list(ROLES), f"{path.name} [[companion]]"
            )
        if len(companion.get("replace", [])) != 2:
            raise SettingError(
                "{path} [[companion]] replace: two texts are expected",
                path=path.name,
                hint='For instance replace = ["_ooi_", "_oow_"].',
            )
    if content.get("values", {}).get("parity", 0) not in (-1, 0, 1):
        raise SettingError("{path} [values] parity: -1, 0 or 1 is expected", path=path.name)
    if content.get("values", {}).get("date_is", "start") not in ("start", "mid", "end"):
        raise SettingError("{path} [values] date_is: start, mid or end is expected", path=path.name)
    if content.get("mask", {}).get("kind", "bits") not in MASK_KINDS:
        raise SettingError(
            "{path} [mask] kind: one of {known} is expected", path=path.name,
            known=", ".join(MASK_KINDS),
        )


def _check_table(table: Mapping[str, Any], name: str, path: Path) -> None:
    known = SCHEMA[name]
    where = f"{path.name} [{name}]" if name else path.name
    for key, value in table.items():
        if key not in known:
            raise unknown_name("key", key, list(known), where)
        if not isinstance(value, known[key]) or (
            isinstance(value, bool) and bool not in known[key]
        ):
            raise SettingError(
                "{where} {key} = {value!r}: {expected} is expected",
                where=where,
                key=key,
                value=value,
                expected=" or ".join(t.__name__ for t in known[key]),
            )
