"""Dates: what files state, and what users ask for, as moments of time in UTC.

A file states its date in one of the forms that FITS has had (ISO 8601, before 1998 ``DD/MM/YY``);
what it does not state is not known, and stays so: no date is ever made up. A user may name a year,
a month, a day or a moment, and means all of it.
"""

from __future__ import annotations

import datetime
import re
from typing import Any

from cynosure.ground.errors import SettingError

__all__ = ["Interval", "asked_interval", "iso_date", "now", "stamp"]

Interval = tuple[datetime.datetime, datetime.datetime]

ACCEPTED = (
    "A year, month or day (2021, 2021-01, 2021-01-05), or a day and a time "
    "(2021-01-05T05:23, 2021-01-05T05:23:11.5, UTC unless a zone like +01:00 follows)."
)
_ASKED = re.compile(
    r"(?P<year>\d{4})(-(?P<month>\d\d)(-(?P<day>\d\d)"
    r"([T ](?P<hour>\d\d):(?P<minute>\d\d)(:(?P<second>\d\d)(?P<part>\.\d{1,9})?)?"
    r"(?P<zone>Z|[+-]\d\d:?\d\d)?)?)?)?"
)
_OLD = re.compile(r"(\d\d)/(\d\d)/(\d\d)")


def iso_date(text: str) -> str | None:
    """Return a date and time in UTC without its zone; None where it is none.

    Examples
    --------
    >>> iso_date("2021-01-05T05:23:11+01:00"), iso_date("31/12/97"), iso_date("yesterday")
    ('2021-01-05T04:23:11', '1997-12-31T00:00:00', None)
    """
    if found := _OLD.fullmatch(text.strip()):  # FITS 1.0: years of the twentieth century
        text = f"19{found[3]}-{found[2]}-{found[1]}"
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
        if moment.tzinfo is not None:
            moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None
    return moment.isoformat(timespec="seconds")


def now() -> str:
    """Return this moment as the store keeps it, in UTC to a millisecond."""
    return stamp(datetime.datetime.now(datetime.UTC))


def stamp(moment: datetime.datetime) -> str:
    """Return a moment of UTC as the store keeps when something was added or decided."""
    return moment.replace(tzinfo=datetime.UTC).isoformat(timespec="milliseconds")


def asked_interval(given: Any, name: str = "date") -> Interval:
    """Return the first moment of what a user names, and the first one after it (UTC, no zone).

    Parameters
    ----------
    given : str, datetime.date, datetime.datetime or astropy.time.Time
        A year, month, day, minute or moment.
    name : str
        Named in the error.

    Raises
    ------
    SettingError
        If it is no date; the error lists the forms that are.

    Examples
    --------
    >>> [m.isoformat() for m in asked_interval("2024-02-29")]
    ['2024-02-29T00:00:00', '2024-03-01T00:00:00']
    >>> [m.isoformat() for m in asked_interval("2021-01-05 05:23+01:00")]
    ['2021-01-05T04:23:00', '2021-01-05T04:24:00']
    """
    try:
        if isinstance(given, str):
            return _interval(given.strip())
        if hasattr(given, "utc") and hasattr(given, "to_datetime"):  # an astropy Time
            given = given.utc.to_datetime()
        if isinstance(given, datetime.datetime):
            return _of_moment(given, datetime.timedelta(microseconds=1))
        if isinstance(given, datetime.date):
            return _interval(given.isoformat())
    except (ValueError, OverflowError) as error:
        raise _no_date(name, given, str(error)) from error
    raise _no_date(name, given, f"a {type(given).__name__}")


def _no_date(name: str, given: Any, reason: str) -> SettingError:
    return SettingError(
        "{name}: {given!r} is no date ({reason})", name=name, given=given, reason=reason,
        hint=ACCEPTED,
    )


def _interval(text: str) -> Interval:
    found = _ASKED.fullmatch(text)
    if found is None:
        raise ValueError("not of a form that is known")
    year, month, day, hour, minute, second = (
        int(found[k] or d) for k, d in
        (("year", 0), ("month", 1), ("day", 1), ("hour", 0), ("minute", 0), ("second", 0))
    )
    start = datetime.datetime(year, month, day, hour, minute, second)
    if found["month"] is None:
        return start, start.replace(year=year + 1)
    if found["day"] is None:
        return start, datetime.datetime(year + month // 12, month % 12 + 1, 1)
    if found["hour"] is None:
        return start, start + datetime.timedelta(days=1)
    step = datetime.timedelta(seconds=1 if found["second"] else 60)
    if found["part"]:
        start += datetime.timedelta(microseconds=int(float(found["part"]) * 1e6))
        step = datetime.timedelta(microseconds=1)
    if found["zone"]:
        start = start.replace(tzinfo=datetime.datetime.fromisoformat(
            f"2000-01-01T00:00{found['zone']}").tzinfo)
    return _of_moment(start, step)


def _of_moment(moment: datetime.datetime, step: datetime.timedelta) -> Interval:
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    return moment, moment + step
