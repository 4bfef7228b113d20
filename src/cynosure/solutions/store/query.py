"""Queries of a store, and their conditions on its tables."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func

from cynosure.solutions.store.dates import asked_interval, stamp
from cynosure.solutions.store.schema import solutions

__all__ = ["Query", "conditions", "escaped"]


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for; what is not given is not asked.

    Attributes
    ----------
    rootname, wcsname : str
        A name; ``*`` stands for any characters.
    catalog : str
        The reference catalogue, in any case.
    kind : str
        Of the name: ``a posteriori``, ``a priori``, ….
    max_quality : int
        1 … 4: this quality or better.
    max_rms_mas : float
        Residuals per axis, of the larger axis.
    created_since, created_until, added_since, added_until : str, date, datetime or Time
        A year, month, day or moment in UTC, all of it included: until a day means until that day
        is over. A solution of which nobody knows when it was made is neither since nor until.
    cone : (float, float, float)
        Right ascension, declination and radius in degrees that the footprint must touch.
    valid : bool
        Only those that may be used, or only those that may not.
    """

    rootname: str | None = None
    wcsname: str | None = None
    catalog: str | None = None
    kind: str | None = None
    max_quality: int | None = None
    max_rms_mas: float | None = None
    created_since: Any = None
    created_until: Any = None
    added_since: Any = None
    added_until: Any = None
    cone: tuple[float, float, float] | None = None
    valid: bool | None = None


def escaped(name: str) -> str:
    """Return a name in which ``*`` stands for itself."""
    return name.replace("*", "\\*")


def _matches(column: Any, pattern: str) -> Any:
    """Compare with a name in which ``*`` stands for any characters, unless it is escaped."""
    plain = pattern.replace("\\*", "\0")
    if "*" not in plain:
        return column == plain.replace("\0", "*")
    like = plain.replace("!", "!!").replace("%", "!%").replace("_", "!_").replace("*", "%")
    return column.like(like.replace("\0", "*"), escape="!")


def _second(given: Any, name: str, end: int) -> str:
    """Return a bound as `created` is kept, to a second; one within a second takes all of it in."""
    moment = asked_interval(given, name)[end]
    if moment.microsecond:
        moment = moment.replace(microsecond=0) + datetime.timedelta(seconds=end)
    return moment.isoformat(timespec="seconds")


def _stamp(given: Any, name: str, end: int) -> str:
    """Return a bound as `added` is kept, to a millisecond."""
    moment = asked_interval(given, name)[end]
    over = moment.microsecond % 1000
    return stamp(moment + datetime.timedelta(microseconds=1000 * end - over) if over else moment)


def conditions(query: Query) -> list[Any]:
    """Return what the rows of ``solutions`` must fulfil, but for the circle.

    Raises
    ------
    SettingError
        If a date is none.
    """
    c = solutions.c
    worst = func.coalesce(c.rms_ra_mas, c.fit_rms_mas), func.coalesce(c.rms_dec_mas, c.fit_rms_mas)
    tests = [
        (query.rootname, lambda v: _matches(c.rootname, v)),
        (query.wcsname, lambda v: _matches(c.wcsname, v)),
        (query.catalog, lambda v: func.upper(c.catalog) == v.upper()),
        (query.kind, lambda v: c.kind == v),
        (query.max_quality, lambda v: c.quality.between(1, v)),
        (query.max_rms_mas, lambda v: (worst[0] <= v) & (worst[1] <= v)),
        (query.created_since, lambda v: c.created >= _second(v, "created_since", 0)),
        (query.created_until, lambda v: c.created < _second(v, "created_until", 1)),
        (query.added_since, lambda v: c.added >= _stamp(v, "added_since", 0)),
        (query.added_until, lambda v: c.added < _stamp(v, "added_until", 1)),
        (query.valid, lambda v: c.valid == v),
    ]
    return [test(value) for value, test in tests if value is not None]
