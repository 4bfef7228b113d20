"""Which of an exposure's solutions is to be active, and why.

The user's choice comes before everything. Otherwise a valid a posteriori solution, which was
measured on the image's own stars, comes before any a priori one, and those have an order:

======================  ====================================================================
a posteriori            fitted to a catalogue, and not found wrong
HSC                     a priori: the Hubble Source Catalog's fit, applied unseen
GSC                     a priori: corrected positions of the guide stars
other a priori          corrected with another catalogue
distortion              the telescope's pointing with the distortion model, ``IDC_…``
unplaced                a relative alignment only (catalogue NONE), or a name of its own
pipeline                the telescope's pointing, ``OPUS``
======================  ====================================================================

Before all classes come the solutions that nothing speaks against: one whose chips hold different
solutions would tear the chips apart, so it is only taken where there is nothing else, and says so.
Within a class the *hierarchy* asks for the newest distortion model, then for quality and the newest
catalogue; *measured* asks for quality and residuals first. Where all that is alike, the last made
comes first; one of which nobody knows when it was made counts as the oldest.

The decision is a record: what was chosen, by which rule, and for every other solution the first
point on which it lost.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from cynosure._version import __version__
from cynosure.ground.settings import Range, Unit
from cynosure.solutions.names import parse_wcsname
from cynosure.solutions.store.schema import NO_FAULTS, rms_per_axis

if TYPE_CHECKING:
    from cynosure.solutions.store.schema import Stored

__all__ = ["Brief", "Considered", "Decision", "best_place", "distortion_date", "select_best"]

Policy = Literal["hierarchy", "measured"]

CLASSES = (
    "no solution", "pipeline", "unplaced", "distortion", "other a priori", "GSC", "HSC",
    "a posteriori",
)


@dataclass(frozen=True, slots=True)
class Considered:
    """What became of one solution.

    Attributes
    ----------
    content_sha256, wcsname, hdrname : str
        The solution.
    group : str
        Its class in the hierarchy.
    verdict : str
        ``chosen``, ``passed over`` or ``excluded``.
    reason : str
        Why, in words.
    rms_mas : float or None
        Residuals of the fit per axis.
    quality : int or None
        As judged; where nobody did, as told from the residuals.
    """

    content_sha256: str
    wcsname: str
    hdrname: str
    group: str
    verdict: str
    reason: str
    rms_mas: float | None = None
    quality: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Which solution is to be active, and why: a record that is kept.

    Attributes
    ----------
    rootname : str
        The exposure.
    content_sha256, wcsname, hdrname : str
        The solution; empty where there is none that may be used.
    rule : str
        ``user``, ``hierarchy``, ``measured``, or ``none``.
    reason : str
        Why, in words.
    considered : tuple of Considered
        Every solution, the best first.
    made, made_by, software : str
        When (UTC), by whom, with what.
    """

    rootname: str
    content_sha256: str = ""
    wcsname: str = ""
    hdrname: str = ""
    rule: str = "none"
    reason: str = ""
    considered: tuple[Considered, ...] = ()
    made: str = ""
    made_by: str = ""
    software: str = f"cynosure {__version__}"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, JSON-safe."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["considered"] = [
            {f.name: getattr(c, f.name) for f in fields(c)} for c in self.considered
        ]
        return values

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Decision:
        """Return the record that :meth:`to_dict` wrote; fields it does not know are left out."""
        known = {f.name for f in fields(cls)}
        inner = {f.name for f in fields(Considered)}
        given = {k: v for k, v in content.items() if k in known}
        given["considered"] = tuple(
            Considered(**{k: v for k, v in c.items() if k in inner})
            for c in content.get("considered", ())
        )
        return cls(**given)

    def __str__(self) -> str:
        head = f"{self.rootname}  {self.wcsname or 'no usable solution'}   ({self.rule})"
        lines = [head, f"  why        {self.reason}"]
        for c in self.considered:
            rms = f"  rms {c.rms_mas:.3g} mas" if c.rms_mas is not None else ""
            lines.append(f"  {c.verdict:<12}{c.wcsname or '(no name)'}{rms}: {c.reason}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Limits:
    max_rms_mas: float
    min_matches: int


def select_best(
    rootname: str,
    stored: Sequence[Stored],
    *,
    choice: str = "",
    made_by: str = "",
    policy: Policy = "hierarchy",
    max_rms_mas: Annotated[float, Unit("mas"), Range(0, 1e6)] = 150.0,
    min_matches: Annotated[int, Range(1, 10_000)] = 4,
) -> Decision:
    """Choose the solution that is to be active.

    Parameters
    ----------
    rootname : str
        The exposure.
    stored : sequence of Stored
        All its solutions.
    choice : str
        `content_sha256` of the solution that the user chose; empty for none.
    made_by : str
        Who asks.
    policy : str
        ``hierarchy`` or ``measured``, see the module.
    max_rms_mas : float
        A fit that nobody judged is not used where its residuals are larger.
    min_matches : int
        Nor where it has fewer stars.

    Examples
    --------
    >>> select_best("j95y04hpq", []).reason
    'no solution is known'
    """
    limits = _Limits(max_rms_mas, min_matches)
    order = _ORDERS[policy]
    ranked = sorted(stored, key=lambda s: tuple(c.key(s) for c in order), reverse=True)
    good = [s for s in ranked if not _exclusion(s, limits)]
    chosen = next((s for s in stored if s.content_sha256 == choice), None) if choice else None
    rule = "user" if chosen is not None else policy
    best = chosen if chosen is not None else (good[0] if good else None)
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    decision = Decision(rootname, made=made, made_by=made_by)
    considered = tuple(_consider(s, best, rule, order, limits) for s in ranked)
    if best is None:
        why = "no solution may be used" if stored else "no solution is known"
        return replace(decision, reason=why, considered=considered)
    return replace(
        decision, content_sha256=best.content_sha256, wcsname=best.wcsname, hdrname=best.hdrname,
        rule=rule, reason=_why(best, good, rule, order, limits),
        considered=tuple(sorted(considered, key=lambda c: c.verdict != "chosen")),
    )


class Brief(NamedTuple):
    """What of a solution its rank depends on, and its place: columns of ``solutions``."""

    rootname: str
    content_sha256: str
    wcsname: str
    hdrname: str
    idctab: str
    catalog: str
    method: str
    quality: int | None
    status: str
    rms_ra_mas: float | None
    rms_dec_mas: float | None
    fit_rms_mas: float | None
    nmatch: int | None
    created: str | None
    valid: bool
    faults: Any
    ra_deg: float
    dec_deg: float

    @property
    def rms_mas(self) -> float | None:
        """Residuals of the fit per axis."""
        return rms_per_axis(self.rms_ra_mas, self.rms_dec_mas, self.fit_rms_mas)

    @property
    def doubts(self) -> Sequence[str]:
        """Why another is better used."""
        return () if self.faults == NO_FAULTS else json.loads(self.faults).get("doubts", ())


def best_place(stored: Sequence[Brief], choice: str = "") -> Brief:
    """Return the solution that says where an exposure is: the best by :func:`select_best`'s rule.

    Parameters
    ----------
    stored : sequence of Brief
        The exposure's solutions that have a place, one at least.
    choice : str
        `content_sha256` of the solution that the user chose.
    """
    if len(stored) == 1:
        return stored[0]
    if chosen := [s for s in stored if s.content_sha256 == choice]:
        return chosen[0]
    limits = _default_limits()
    left = [s for s in stored if not _exclusion(s, limits)] or list(stored)
    for criterion in _ORDERS["hierarchy"]:  # most are told apart by the first two
        if len(left) == 1:
            break
        keys = [criterion.key(s) for s in left]
        highest = max(keys)
        left = [s for s, key in zip(left, keys, strict=True) if key == highest]
    return left[0]


@cache
def _default_limits() -> _Limits:
    given = select_best.__kwdefaults__ or {}
    return _Limits(given["max_rms_mas"], given["min_matches"])


def _why(
    best: Stored, good: Sequence[Stored], rule: str, order: Sequence[_Criterion], limits: _Limits
) -> str:
    """Say why the best is the best: what it is, and on what it beat the next."""
    if rule == "user":
        fault = _exclusion(best, limits)
        text = "chosen by the user" + (f"; it would have been excluded: {fault}" if fault else "")
        return f"{text}; doubtful: {'; '.join(best.doubts)}" if best.doubts else text
    text = _describe_group(best)
    others = [s for s in good if s is not best]
    if others:
        text += f"; {_lost_on(others[0], best, order)[1]} than {others[0].wcsname or 'the next'}"
    return text


def _consider(
    s: Stored, best: Stored | None, rule: str, order: Sequence[_Criterion], limits: _Limits
) -> Considered:
    fault = _exclusion(s, limits)
    if s is best:
        verdict, reason = "chosen", "the user's choice" if rule == "user" else _describe_group(s)
    elif fault:
        verdict, reason = "excluded", fault
    elif rule == "user":
        verdict, reason = "passed over", "the user chose another"
    else:
        assert best is not None
        verdict, reason = "passed over", _lost_on(s, best, order)[0]
    return Considered(
        s.content_sha256, s.wcsname, s.hdrname, CLASSES[_group(s)], verdict, reason, s.rms_mas,
        _quality(s),
    )


def _exclusion(s: Stored | Brief, limits: _Limits) -> str:
    """Return why a solution must not be used; empty where it may."""
    if not s.valid:
        return "; ".join(s.faults) or "not valid"
    if s.quality in (5, -1) or s.status == "failed":
        return f"quality {s.quality}: do not use"
    fitted = parse_wcsname(s.wcsname).kind == "a posteriori"
    if fitted and s.quality is None:  # nobody judged it but we
        if s.rms_mas is not None and s.rms_mas > limits.max_rms_mas:
            return f"residuals of {s.rms_mas:.4g} mas, at most {limits.max_rms_mas:g} allowed"
        if s.nmatch is not None and s.nmatch < limits.min_matches:
            return f"{s.nmatch} stars, {limits.min_matches} needed"
    return ""


def _group(s: Stored) -> int:
    """Return the class in the hierarchy, as an index of CLASSES."""
    return _group_of(s.wcsname)


@lru_cache(maxsize=4096)  # an archive has few names of solutions
def _group_of(wcsname: str) -> int:
    name = parse_wcsname(wcsname)
    if name.kind == "none":
        return 0
    if name.start.startswith("OPUS") and name.kind in ("pipeline", "a priori"):
        return 1  # without the distortion model, whatever its pointing
    if name.kind == "a posteriori":
        return 2 if name.catalog.upper() == "NONE" else 7
    if name.kind == "a priori":
        catalog = name.catalog.upper()
        return 6 if catalog.startswith("HSC") else 5 if catalog.startswith("GSC") else 4
    return 3 if name.kind == "distortion" else 2


def _describe_group(s: Stored) -> str:
    text = _describe_class(s)
    return f"{text}; doubtful: {'; '.join(s.doubts)}" if s.doubts else text


def _describe_class(s: Stored) -> str:
    group = _group(s)
    if group == 7:
        parts = [f"a posteriori, fitted to {s.catalog or parse_wcsname(s.wcsname).catalog}"]
        if s.nmatch is not None:
            parts.append(f"{s.nmatch} stars")
        if s.rms_mas is not None:
            parts.append(f"rms {s.rms_mas:.3g} mas")
        return ", ".join(parts)
    return {
        6: "a priori, from the Hubble Source Catalog", 5: "a priori, from corrected guide stars",
        4: f"a priori, from {s.catalog}", 3: "pointing with the distortion model",
        2: "not placed by a catalogue", 1: "pointing of the telescope", 0: "no name",
    }[group]


def _quality(s: Stored) -> int | None:
    """Return the quality, told from the residuals where nobody judged (10 mas are fine)."""
    if s.quality is not None or s.rms_mas is None:
        return s.quality
    return 1 if s.rms_mas < 10.0 else 3


# The first letter or digit of a reference file's name is the year it was made, the next two the
# month and the day, then the hour and the minute.
_STAMP = re.compile(r"([0-9a-z])([1-9a-c])([1-9a-v])(\d\d)(\d\d)[0-9a-z]{1,2}")


@lru_cache(maxsize=1024)
def distortion_date(root: str) -> str:
    """Return when a distortion file was made, told from its name; empty where it does not say.

    Examples
    --------
    >>> distortion_date("0461802ej"), distortion_date("w3m18525i"), distortion_date("mine")
    ('2016-04-06T18:02', '2012-03-22T18:52', '')
    """
    found = _STAMP.fullmatch(root.lower())
    if found is None:
        return ""
    letter, month, day = found[1], int(found[2], 36), int(found[3], 36)
    year = 2016 + int(letter) if letter.isdigit() else 1980 + int(letter, 36)
    return f"{year}-{month:02d}-{day:02d}T{found[4]}:{found[5]}"


# Gaia's releases by the quality of their astrometry; an early release equals its full one.
_CATALOGS = (
    (r"GAIA(E?DR3|EDR3)", 6), (r"GAIADR2", 4), (r"GAIADR1", 3), (r"GAIA(DR[4-9]).*", 7),
    (r"(GSC|HSC)(\d+)", 2), (r".+", 1),
)


def _catalog_rank(s: Stored) -> tuple[int, int]:
    return _rank_of((s.catalog or parse_wcsname(s.wcsname).catalog).upper())


@lru_cache(maxsize=1024)
def _rank_of(catalog: str) -> tuple[int, int]:
    for pattern, rank in _CATALOGS:
        if found := re.fullmatch(pattern, catalog):
            number = found[2] if rank == 2 else ""
            return rank, int(number) if number and len(number) < 6 else 0
    return 0, 0


@dataclass(frozen=True, slots=True)
class _Criterion:
    """One point of comparison: larger keys are better; what is said of the loser and winner."""

    key: Callable[[Any], Any]
    lost: Callable[[Stored, Stored], str]
    won: str


def _lost_on(loser: Stored, winner: Stored, order: Sequence[_Criterion]) -> tuple[str, str]:
    """Return what is said of the loser and of the winner on the first point that they differ in."""
    for criterion in order:
        if criterion.key(loser) != criterion.key(winner):
            return criterion.lost(loser, winner), criterion.won
    return "the same in all that counts", "first"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


_BY_DOUBT = _Criterion(
    lambda s: not s.doubts,
    lambda a, b: f"doubtful: {'; '.join(a.doubts)}",
    "not in doubt rather",
)
_BY_GROUP = _Criterion(
    _group,
    lambda a, b: f"{CLASSES[_group(a)]} comes after {CLASSES[_group(b)]}",
    "higher in the hierarchy",
)
_BY_QUALITY = _Criterion(
    # Not judged and no residuals: nothing speaks for it, nothing against.
    lambda s: -(_quality(s) or 4) if _group(s) == 7 else 0,
    lambda a, b: f"quality {_quality(a) or 'unknown'} against {_quality(b) or 'unknown'}",
    "better quality",
)
_BY_DISTORTION = _Criterion(
    lambda s: distortion_date(s.idctab),
    lambda a, b: f"older distortion model ({a.idctab or 'none'} against {b.idctab or 'none'})",
    "newer distortion model",
)
_BY_CATALOG = _Criterion(
    _catalog_rank, lambda a, b: f"{a.catalog or 'no catalogue'} is older than {b.catalog}",
    "newer catalogue",
)
_BY_METHOD = _Criterion(
    lambda s: s.method in ("REL", "SVM", "MVM"),
    lambda a, b: f"{a.method} may break the alignment between exposures, {b.method} keeps it",
    "aligned together with the other exposures rather",
)
_BY_RMS = _Criterion(
    lambda s: -s.rms_mas if s.rms_mas is not None else float("-inf"),
    lambda a, b: f"rms {_number(a.rms_mas)} mas against {_number(b.rms_mas)}",
    "smaller residuals",
)
_BY_MATCHES = _Criterion(
    lambda s: s.nmatch or 0, lambda a, b: f"{a.nmatch or 0} stars against {b.nmatch or 0}",
    "more stars",
)
_BY_FORM = _Criterion(
    lambda s: not parse_wcsname(s.wcsname).form, lambda a, b: "converted from another form",
    "not converted rather",
)
_BY_DATE = _Criterion(  # unknown is the oldest
    lambda s: s.created or "",
    lambda a, b: "made earlier" if a.created else "nobody knows when it was made", "made later",
)
_BY_NAME = _Criterion(  # two of the same: any, but always the same one
    lambda s: (s.hdrname, s.content_sha256), lambda a, b: "the same but for its name",
    "first by name rather",
)

_ORDERS: dict[str, tuple[_Criterion, ...]] = {
    "hierarchy": (_BY_DOUBT, _BY_GROUP, _BY_DISTORTION, _BY_QUALITY, _BY_CATALOG, _BY_METHOD,
                  _BY_RMS, _BY_MATCHES, _BY_FORM, _BY_DATE, _BY_NAME),
    "measured": (_BY_DOUBT, _BY_GROUP, _BY_QUALITY, _BY_RMS, _BY_MATCHES, _BY_DISTORTION,
                 _BY_CATALOG, _BY_METHOD, _BY_FORM, _BY_DATE, _BY_NAME),
}
