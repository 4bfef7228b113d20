"""Convert the angles, positions and dates of arguments to plain numbers in stated units.

The public functions accept a ``Quantity``, ``Angle``, ``SkyCoord``, ``Time`` or ``datetime``, a
text, or a plain number in the documented unit. All other functions work with floats.
"""

from __future__ import annotations

import datetime
import math
import re
from numbers import Real
from typing import Any

from cynosure.ground.errors import SettingError

__all__ = ["angle_in", "julian_year", "scale_in_arcsec", "sky_position"]


def angle_in(value: Any, unit: str, what: str) -> float | None:
    """Return an angle as a number of `unit`; None stays None.

    Parameters
    ----------
    value : float, Quantity, Angle, str or None
        A plain number is in `unit`; a text is a number with a unit, ``"30 arcmin"``, or a number.
    unit : str
        The unit of the result, as astropy spells it.
    what : str
        What messages call the argument.

    Raises
    ------
    SettingError
        If it is not a single finite angle.

    Examples
    --------
    >>> angle_in("30 arcmin", "deg", "radius"), angle_in(0.5, "deg", "radius")
    (0.5, 0.5)
    """
    if value is None:
        return None
    try:
        number = _text_in(value, unit) if isinstance(value, str) else (
            float(value) if _is_plain(value) else _converted(value, unit)
        )
    except (TypeError, ValueError) as error:
        raise _refused(what, value, f"a number in {unit} or an angle with a unit", error) from error
    if not math.isfinite(number):
        raise _refused(what, value, f"a finite number in {unit}")
    return number


# Size of a degree in a unit, and the spellings of the unit. Texts are parsed without astropy, whose
# import takes longer than a short command.
_UNITS = {
    1.0: "deg degree degrees d °", 60.0: "arcmin arcminute arcminutes amin ' ′",
    3600.0: 'arcsec arcsecond arcseconds asec " ″', 3.6e6: "mas", math.pi / 180.0: "rad",
}
_PER_DEGREE = {word: size for size, words in _UNITS.items() for word in words.split()}


def _text_in(text: str, unit: str) -> float:
    """Return a text, a number with or without a unit, as a number of `unit`."""
    found = re.fullmatch(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(\S*)\s*", text, re.I)
    if found is None:
        message = "no number"
        raise ValueError(message)
    word = found[2] or unit
    if word not in _PER_DEGREE:
        message = f"{word!r} is not a unit of an angle"
        raise ValueError(message)
    return float(found[1]) if word == unit else (
        float(found[1]) * (_PER_DEGREE[unit] / _PER_DEGREE[word])
    )


def scale_in_arcsec(value: Any, what: str = "scale") -> float | None:
    """Return the size of a pixel in arcseconds; "per pixel" in the unit is optional.

    Raises
    ------
    SettingError
        If it is not a single finite angle.

    Examples
    --------
    >>> scale_in_arcsec("0.8 arcsec"), scale_in_arcsec("0.8 arcsec/pix"), scale_in_arcsec(0.8)
    (0.8, 0.8, 0.8)
    """
    if isinstance(value, str):
        value = re.sub(r"\s*/\s*(pix(el)?|px)$", "", value.strip())
    elif hasattr(value, "unit"):
        from astropy import units

        per_pixel = value * units.pix
        if per_pixel.unit.is_equivalent(units.arcsec):
            value = per_pixel
    return angle_in(value, "arcsec", what)


def sky_position(value: Any, what: str = "center") -> tuple[float, float] | None:
    """Return a position on the sky as right ascension and declination, ICRS degrees.

    Parameters
    ----------
    value : SkyCoord, pair or None
        A SkyCoord of any frame that can be transformed to ICRS; or a pair of numbers (deg), angles
        or texts. A right ascension with colons or letters is in hours.
    what : str
        What messages call the argument.

    Raises
    ------
    SettingError
        If it is not a single position on the sky.

    Examples
    --------
    >>> sky_position(("00:42:44.3", "+41:16:09")), sky_position((10.684, 41.269))
    ((10.684583333333332, 41.269166666666665), (10.684, 41.269))
    """
    if value is None:
        return None
    expected = "a SkyCoord, or a pair of right ascension and declination in degrees"
    if hasattr(value, "icrs"):
        if not getattr(value, "isscalar", True):
            raise _refused(what, value, "one place, not a list of places")
        place = value.icrs
        return float(place.ra.deg), float(place.dec.deg)
    try:
        ra, dec = value.split() if isinstance(value, str) else value
    except (TypeError, ValueError, AttributeError) as error:
        raise _refused(what, value, expected, error) from error
    numbers = _coordinate(ra, True, what), _coordinate(dec, False, what)
    if not (abs(numbers[0]) <= 360.0 and abs(numbers[1]) <= 90.0):
        raise SettingError(
            "{what} {ra:g} {dec:g}: not on the sky", what=what, ra=numbers[0], dec=numbers[1],
            hint="Right ascension comes first, in degrees or h:m:s, then declination.",
        )
    return numbers[0] % 360.0, numbers[1]


def julian_year(value: Any, what: str = "epoch") -> float | None:
    """Return a date as a Julian year; None stays None.

    Parameters
    ----------
    value : float, Time, datetime, str or None
        A plain number is a Julian year; a text is a year or an ISO 8601 date.
    what : str
        What messages call the argument.

    Raises
    ------
    SettingError
        If it is not a single date.

    Examples
    --------
    >>> julian_year(2024.5), round(julian_year("2000-01-01T12:00:00"), 6)
    (2024.5, 2000.0)
    """
    if value is None:
        return None
    expected = "a Julian year, an ISO 8601 date, a Time or a datetime"
    try:
        if _is_plain(value):
            year = float(value)
        elif hasattr(value, "unit"):
            year = _converted(value, "yr")
        else:
            year = _year_of_date(value)
    except (TypeError, ValueError) as error:
        raise _refused(what, value, expected, error) from error
    if not math.isfinite(year):
        raise _refused(what, value, expected)
    return year


def _year_of_date(value: Any) -> float:
    if isinstance(value, str) and re.fullmatch(r"\s*[JB]?\d{4}(\.\d*)?\s*", value):
        return float(value.strip().lstrip("JB"))
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value.strip())
    elif type(value).__name__ == "datetime64":
        value = value.astype("datetime64[us]").item()
    if isinstance(value, datetime.datetime):
        if value.tzinfo is not None:
            value = value.astimezone(datetime.UTC).replace(tzinfo=None)
        day = value - datetime.datetime(2000, 1, 1, 12)
        return 2000.0 + day.total_seconds() / 86400.0 / 365.25
    if isinstance(value, datetime.date):
        return _year_of_date(value.isoformat())
    if not getattr(value, "isscalar", False) or not hasattr(value, "jyear"):
        message = "not one date"
        raise ValueError(message)
    return float(value.jyear)


def _is_plain(value: Any) -> bool:
    """Say whether a value is a number without a unit."""
    if isinstance(value, bool) or hasattr(value, "unit"):
        return False
    return isinstance(value, Real) or getattr(getattr(value, "dtype", None), "kind", "-") in "iuf"


def _converted(value: Any, unit: str) -> float:
    from astropy import units

    quantity = units.Quantity(value)
    return float(quantity.to_value(unit))  # UnitConversionError is a TypeError


_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_ANGLE = re.compile(
    rf"\s*([+-]?){_NUMBER}"  # sign and first part
    rf"(?:(h|d|deg|°|:| )\s*(?:{_NUMBER}(?:[:m′' ]\s*(?:{_NUMBER}[s″\"]?)?)?)?)?\s*"
)


def _coordinate(value: Any, is_ra: bool, what: str) -> float:
    """Return one coordinate in degrees; a sexagesimal right ascension is in hours."""
    if not isinstance(value, str):
        return float(angle_in(value, "deg", what) or 0.0)
    found = _ANGLE.fullmatch(value)
    if found is None:
        name = "right ascension" if is_ra else "declination"
        raise SettingError(
            "{what}: {text!r} is not a {name}", what=what, text=value, name=name,
            hint="For instance 150.55 2.236, or 10:02:11.5 +02:14:09.",
        )
    degrees, minutes, seconds = (float(found[k]) if found[k] else 0.0 for k in (2, 4, 5))
    number = degrees + minutes / 60.0 + seconds / 3600.0
    hours = is_ra and found[3] in ("h", ":", " ") and (found[3] == "h" or found[4] is not None)
    return (-number if found[1] == "-" else number) * (15.0 if hours else 1.0)


def _refused(
    what: str, value: Any, expected: str, error: Exception | None = None
) -> SettingError:
    because = f" ({error})" if error is not None and str(error) else ""
    return SettingError(
        "{what} = {value}: {expected} is expected{because}", what=what, value=str(value)[:80],
        expected=expected, because=because,
    )
