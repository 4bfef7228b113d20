"""Dates, pointing, scale, exposure time and gain of a header.

Headers use many keywords for the same quantity, write numbers as texts, and right ascensions in
hours or degrees. Each function here tries a list of keywords, from the most to the least specific,
and returns notes on its assumptions.
"""

from __future__ import annotations

import datetime
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = [
    "ALIASES",
    "epoch_of",
    "first",
    "julian_epoch",
    "mjd_of_text",
    "number",
    "position_of",
    "scale_of",
    "text",
]

# Keywords of each quantity, in the order in which they are tried.
ALIASES: dict[str, tuple[str, ...]] = {
    # EGAIN is electrons per ADU in amateur cameras, whose GAIN is a setting of the camera.
    "gain": (
        "EGAIN",
        "CCDGAIN",
        "ATODGAIN",
        "ATODGNA",
        "GAIN",
        "GAINA",
        "GAIN1",
        "DETGAIN",
        "ARAWGAIN",
        "ESO DET OUT1 CONAD",
        "GAINEFF",
        "HIERARCH ESO DET OUT1 CONAD",
    ),
    "read_noise": (
        "RDNOISE",
        "READNOI",
        "READNSE",
        "READNSEA",
        "READNOIS",
        "READNOISE",
        "RON",
        "RDNOISEA",
        "RDNOISE1",
        "ENOISE",
        "RDNOIS",
        "ESO DET OUT1 RON",
        "READNSE1",
    ),
    "saturation": (
        "SATURATE",
        "SATURVAL",
        "SATLEVEL",
        "SATURATA",
        "SATURAT",
        "SATUR",
        "SATUR1",
        "MAXLIN",
        "ESO DET SATLEVEL",
    ),
    "exptime": (
        "EXPTIME",
        "AEXPTIME",
        "EXPOSURE",
        "EXPOSED",
        "TEXPTIME",
        "XPOSURE",
        "EXP_TIME",
        "EXPTIME1",
        "ITIME",
        "INTTIME",
        "ELAPTIME",
        "EXP",
        "TELAPSE",
    ),
    "filter": (
        "FILTER",
        "FILTNAM1",
        "FILTERS",
        "FILTER1",
        "INSFLNAM",
        "FILTERID",
        "ESO INS FILT1 NAME",
    ),
    "scale": (
        "SECPIX",
        "PIXSCALE",
        "SECPIX1",
        "PIXSCAL1",
        "SCALE",
        "PLTSCALE",
        "PLATESC",
        "PIXELSCL",
        "ARCSECPX",
        "PXSCALE",
    ),
    "mid": (
        "DATE-AVG",
        "DATE-MID",
        "MJD-AVG",
        "MJD-MID",
        "MJDMID",
        "MIDJD",
        "MIDEXPJD",
        "JD-MID",
        "MIDPOINT",
        "DATEMID",
    ),
    "start": (
        "DATE-BEG",
        "DATE-OBS",
        "DATE_OBS",
        "MJD-BEG",
        "MJD-OBS",
        "EXPSTART",
        "MJDSTART",
        "MJDOBS",
        "MJD",
        "OBSMJD",
        "UTC-OBS",
        "JD",
        "JD-OBS",
        "OBSJD",
        "DATEOBS",
        "DATE-STA",
    ),
    "end": ("DATE-END", "MJD-END", "EXPEND", "DATE_END", "MJDEND"),
    "time_of_day": (
        "TIME-OBS",
        "UTC-OBS",
        "UT-OBS",
        "UTSTART",
        "UTSHUT",
        "UT",
        "UTC",
        "TIME_OBS",
        "TM-START",
        "UTOBS",
        "TIME-BEG",
        "UT-START",
    ),
    "ra": (
        "OBJCTRA",
        "TELRA",
        "RA_PNT",
        "RA-PNT",
        "RA",
        "RA_DEG",
        "RADEG",
        "RA-D",
        "OBJRA",
        "OBJRAD",
        "RA_OBJ",
        "RA-MNT",
        "RA_TEL",
        "RA_APER",
        "RA_TARG",
        "CAT-RA",
        "TCSRA",
        "TELESRA",
        "RAJ2000",
        "CRVAL1",
    ),
    "dec": (
        "OBJCTDEC",
        "TELDEC",
        "DEC_PNT",
        "DEC-PNT",
        "DEC",
        "DEC_DEG",
        "DECDEG",
        "DEC-D",
        "OBJDEC",
        "OBJDECD",
        "DEC_OBJ",
        "DEC-MNT",
        "DEC_TEL",
        "DEC_APER",
        "DEC_TARG",
        "CAT-DEC",
        "TCSDEC",
        "TELESDEC",
        "DEJ2000",
        "CRVAL2",
    ),
}

EMPTY = ("", "N/A", "NA", "NONE", "UNKNOWN", "UNDEFINED", "NULL", "UNSPECIFIED")
ARCSEC_PER_RAD = 180.0 * 3600.0 / math.pi
MJD_2000 = 51544.5
# Dates between 1880 and 2120 are accepted; others come from clocks that were not set.
MJD_RANGE = (7700.0, 95400.0)
JD_OF_MJD_ZERO = 2400000.5
# Largest time from start to end of an exposure; a later end belongs to a sequence of exposures.
MAX_EXPOSURE_DAYS = 1.0


def first(header: Header, names: Sequence[str]) -> tuple[str, Any]:
    """Return the first keyword that has a value, and the value; ``("", None)`` for none."""
    for name in names:
        value = header.get(name)
        if value is None or type(value).__name__ == "Undefined":
            continue
        if isinstance(value, str) and value.strip().upper() in EMPTY:
            continue
        return name, value
    return "", None


def number(
    header: Header, names: Sequence[str], low: float = -math.inf, high: float = math.inf
) -> tuple[str, float]:
    """Return the first keyword whose value is a number in (low, high]; ``("", nan)`` for none."""
    for name in names:
        _, value = first(header, (name,))
        if isinstance(value, bool) or value is None:
            continue
        try:
            result = float(value)
        except (TypeError, ValueError):
            continue
        if math.isfinite(result) and low < result <= high:
            return name, result
    return "", math.nan


def text(header: Header, names: Sequence[str]) -> str:
    """Return the first value that is a text."""
    for name in names:
        _, value = first(header, (name,))
        if isinstance(value, str):
            return value.strip()
    return ""


# --- dates ----------------------------------------------------------------------------------


def mjd_of_text(value: Any, day_time: Any = None) -> float:
    """Return the MJD of a date, in its own time scale; NaN if it is not a date.

    ISO 8601 (``2012-11-20T09:12:30.270``, with a blank, without seconds, without the time), the
    old ``20/11/99``, HST's ``1997.164:11:31:39``, and numbers that are MJD or JD.
    """
    if isinstance(value, bool):
        return math.nan
    if isinstance(value, (int, float)):
        return _plausible(float(value))
    string = str(value).strip().rstrip("Z")
    if re.fullmatch(r"[+-]?\d+\.?\d*([eEdD][+-]?\d+)?", string) and "-" not in string[1:]:
        return _plausible(float(string.upper().replace("D", "E")))
    date, fraction = _split_date(string)
    if date is None:
        return math.nan
    if fraction is None:
        fraction = _day_fraction(day_time) if day_time is not None else 0.0
        fraction = 0.0 if fraction is None else fraction
    return _plausible(date.toordinal() - 678576 + fraction)


def _split_date(string: str) -> tuple[datetime.date | None, float | None]:
    match = re.fullmatch(r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?:[T ]+(.+))?", string)
    order = (1, 2, 3)
    if match is None:
        match = re.fullmatch(r"(\d{1,2})/(\d{1,2})/(\d{2,4})(?:[T ]+(.+))?", string)
        order = (3, 2, 1)
    try:
        if match is not None:
            year, month, day = (int(match[k]) for k in order)
            year += 1900 if year < 100 else 0
            return datetime.date(year, month, day), _day_fraction(match[4])
        match = re.fullmatch(r"(\d{4})\.(\d{3}):(.+)", string)  # year, day of year, time
        if match is not None:
            start = datetime.date(int(match[1]), 1, 1)
            return start + datetime.timedelta(int(match[2]) - 1), _day_fraction(match[3])
    except ValueError:
        pass
    return None, None


def _day_fraction(value: Any) -> float | None:
    """Return a time of day as a fraction; None if it is not a time."""
    if isinstance(value, str):
        match = re.search(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d*)?))?", value)
        if match is None:
            return None
        seconds = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3] or 0)
        return seconds / 86400.0
    return None


def _plausible(value: float) -> float:
    if value > JD_OF_MJD_ZERO:
        value -= JD_OF_MJD_ZERO
    return value if MJD_RANGE[0] < value < MJD_RANGE[1] else math.nan


def julian_epoch(mjd: float, time_system: str = "UTC") -> float:
    """Return the Julian epoch, 2000 + (JD(TT) - 2451545.0) / 365.25, of an MJD.

    TDB, TCB and TT are not told apart: they differ by 20 seconds at most, 6e-7 yr.
    """
    system = time_system.strip().upper().split("(")[0] or "UTC"
    offset_s = {
        "TT": 0.0,
        "TDT": 0.0,
        "ET": 0.0,
        "TDB": 0.0,
        "TCB": 0.0,
        "TCG": 0.0,
        "TAI": 32.184,
        "IAT": 32.184,
        "GPS": 51.184,
    }.get(system)
    if offset_s is None:
        offset_s = 32.184 + _leap_seconds(mjd)
    return 2000.0 + (mjd + offset_s / 86400.0 - MJD_2000) / 365.25


def _leap_seconds(mjd: float) -> float:
    import erfa

    date = datetime.date.fromordinal(int(mjd) + 678576)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "dubious year" before 1960 and in the future
        return float(erfa.dat(date.year, date.month, date.day, 0.0))


@dataclass(frozen=True, slots=True)
class Moment:
    """A Julian epoch, or None, with a note on assumptions."""

    epoch_yr: float | None
    note: str = ""


def epoch_of(
    header: Header,
    aliases: Mapping[str, tuple[str, ...]] | None = None,
    *,
    date_is: str = "start",
) -> Moment:
    """Return the Julian epoch of mid-exposure.

    In this order: a keyword for the middle; start and end; start plus half the exposure time.

    Parameters
    ----------
    header : Header
    aliases : mapping, optional
        Keywords of each quantity; :data:`ALIASES` where absent.
    date_is : {"start", "mid", "end"}
        The meaning of the instrument's DATE-OBS.
    """
    names = aliases or ALIASES
    system = text(header, ("TIMESYS",)) or "UTC"
    mid = _moment(header, names, "mid")[1]
    if math.isfinite(mid):
        return Moment(julian_epoch(mid, system))
    name, start, timed = _moment(header, names, "start")
    end = _moment(header, names, "end")[1]
    if not math.isfinite(start):
        return Moment(None, "no date in the header: the epoch is unknown, give --epoch YEAR")
    if math.isfinite(end) and 0 <= end - start < MAX_EXPOSURE_DAYS:
        return Moment(julian_epoch((start + end) / 2, system))
    if not timed:
        note = f"{name} has no time of day: the epoch is known to half a day"
        return Moment(julian_epoch(start + 0.5, system), note)
    exptime = number(header, names["exptime"], 0.0, 1e6)[1]
    if math.isfinite(exptime):
        start += {"start": 0.5, "mid": 0.0, "end": -0.5}[date_is] * exptime / 86400.0
    return Moment(julian_epoch(start, system))


def _moment(
    header: Header, names: Mapping[str, tuple[str, ...]], kind: str
) -> tuple[str, float, bool]:
    """Return the first keyword that gives a date, its MJD, and whether it has a time of day.

    A date without a time is taken only where no keyword has more.
    """
    day_time = first(header, names["time_of_day"])[1]
    only_date = ("", math.nan, False)
    for name in names[kind]:
        value = first(header, (name,))[1]
        mjd = mjd_of_text(value, day_time) if value is not None else math.nan
        if not math.isfinite(mjd):
            continue
        if mjd != int(mjd) or not isinstance(value, str) or ":" in value:
            return name, mjd, True
        if not only_date[0]:
            only_date = (name, mjd, _day_fraction(day_time) is not None)
    return only_date


# --- positions ------------------------------------------------------------------------------


def angle_deg(value: Any, comment: str = "", hours: bool = False) -> float:
    """Return an angle written as a number or a sexagesimal text, in degrees; NaN if it is neither.

    Parameters
    ----------
    value : float or str
    comment : str
        The card's comment: ``[h]`` or the word hours makes a plain number hours.
    hours : bool
        Whether a sexagesimal text is in hours (right ascension).
    """
    if isinstance(value, bool) or value is None:
        return math.nan
    if isinstance(value, (int, float)):
        return _hours(float(value), comment, hours)
    string = str(value).strip()
    parts = [p for p in re.split(r"[:hdms°'\"\s]+", string) if p]
    try:
        numbers = [float(p) for p in parts]
    except ValueError:
        return math.nan
    if len(numbers) == 1:
        return _hours(numbers[0], comment, hours and "h" in string)
    if not 2 <= len(numbers) <= 3 or any(n < 0 for n in numbers[1:]):
        return math.nan
    size = sum(abs(n) / 60.0**k for k, n in enumerate(numbers))
    signed = -size if string.startswith("-") else size
    in_degrees = "d" in string or "°" in string or abs(numbers[0]) > 24
    return signed * 15.0 if hours and not in_degrees else signed


def _hours(value: float, comment: str, hours: bool) -> float:
    says_hours = re.search(r"\[\s*h|\bhours?\b|\bhrs?\b", comment, re.IGNORECASE) is not None
    return value * 15.0 if hours and says_hours and abs(value) <= 24 else value


def position_of(
    header: Header, aliases: Mapping[str, tuple[str, ...]] | None = None
) -> tuple[float, float, str]:
    """Return the pointing of a header: right ascension and declination (ICRS, deg) and a note.

    NaN where there is none. Coordinates of another equinox are precessed.
    """
    names = aliases or ALIASES
    for ra_name, dec_name in _pairs(names["ra"], names["dec"]):
        ra_value, dec_value = first(header, (ra_name,))[1], first(header, (dec_name,))[1]
        if ra_value is None or dec_value is None:
            continue
        ra = angle_deg(ra_value, str(header.comments[ra_name]), hours=True)
        dec = angle_deg(dec_value)
        if math.isfinite(ra + dec) and -360 <= ra <= 360 and -90 <= dec <= 90 and (ra or dec):
            return _to_icrs(ra % 360.0, dec, header, ra_name)
    return math.nan, math.nan, ""


def _pairs(ra_names: Sequence[str], dec_names: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(ra_names, dec_names))


def _to_icrs(ra: float, dec: float, header: Header, name: str) -> tuple[float, float, str]:
    equinox = number(header, ("OBJEQUIN", "EQUINOX", "EPOCH", "RADECEQ"), 1800.0, 2100.0)[1]
    frame = text(header, ("RADESYS", "RADECSYS")).upper()
    if not math.isfinite(equinox) or abs(equinox - 2000.0) < 0.1 or frame == "ICRS":
        return ra, dec, ""
    from astropy.coordinates import FK4, FK5, SkyCoord
    from astropy.time import Time

    if frame.startswith("FK4") or (not frame and equinox < 1984):
        system: Any = FK4(equinox=Time(equinox, format="byear"))
    else:
        system = FK5(equinox=Time(equinox, format="jyear"))
    moved = SkyCoord(ra, dec, unit="deg", frame=system).icrs
    note = f"{name} is of equinox {equinox:g}: precessed to ICRS"
    return float(moved.ra.deg), float(moved.dec.deg), note


def scale_of(
    header: Header, aliases: Mapping[str, tuple[str, ...]] | None = None
) -> tuple[float, float, str]:
    """Return the size of a pixel in arcsec, its relative error, and its source.

    From a scale keyword (error 5 %, since many are nominal), or from focal length and pixel size
    (10 %, since focal lengths are those of the catalogue; XPIXSZ is the size after binning, as
    documented by the software that writes it).
    """
    names = aliases or ALIASES
    name, value = number(header, names["scale"], 0.0, 3600.0)
    if math.isfinite(value):
        return value, 0.05, name
    focal_mm = number(header, ("FOCALLEN", "FOCALLNG", "FOCAL"), 1.0, 1e5)[1]
    pixel_um = number(header, ("XPIXSZ", "PIXSIZE1", "PIXSIZE"), 0.1, 500.0)[1]
    if math.isfinite(focal_mm) and math.isfinite(pixel_um):
        return ARCSEC_PER_RAD * pixel_um * 1e-3 / focal_mm, 0.1, "FOCALLEN and pixel size"
    return math.nan, math.nan, ""
