"""The names of WCS solutions: one grammar, parse and build are inverse.

The names are those that the archives of space telescopes use and their users know:

====================================  ===========================================================
``OPUS``                              what the telescope's own pointing said
``NONE``, empty                       no solution, or one without a name
``IDC_<root>``                        pointing with the distortion model ``<root>``
``<start>-<CATALOG>``                 a priori: the guide stars' positions were corrected
``<start>-FIT_<METHOD>_<CATALOG>``    a posteriori: fitted to a catalogue
``FIT_<METHOD>_<CATALOG>``            the same, where the solution before it had no name
====================================  ===========================================================

METHOD says what was fitted: ``IMG`` each image, ``REL`` images aligned to each other first, ``EVM``
and ``SVM`` the exposures of a visit, ``MVM`` several visits, ``user`` a catalogue of the user. An
archive that keeps two solutions of one name adds ``-1``, ``-2`` …. A solution that was converted to
another form of WCS keeps its name and adds ``-SIP``, ``-TPV`` or ``-TAN``.

Any other text is somebody's own name; it is carried as it is. For every text,
``parse_wcsname(text).build() == text``; the same holds for the other names that are read here:

========================================  =======================================================
HDRNAME   ``<file>_<WCSNAME>-hlet.fits``  of a headerlet, unique among those of a file
WCSTYPE   ``undistorted not aligned`` …   what WCSNAME says, in words
SIPNAME   ``<exposure>_<IDCTAB root>``    the polynomial distortion model
NPOLNAME, D2IMNAME                        roots of the lookup tables' files
DISTNAME  ``SIPNAME-NPOLNAME-D2IMNAME``   the whole distortion model
========================================  =======================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

__all__ = [
    "METHODS",
    "DistName",
    "Distortion",
    "HdrName",
    "SipName",
    "WcsName",
    "WcsType",
    "catalog_code",
    "distname",
    "hdrname",
    "model_name",
    "model_root",
    "parse_distname",
    "parse_hdrname",
    "parse_sipname",
    "parse_wcsname",
    "parse_wcstype",
    "wcsname",
    "wcstype",
]

Kind = Literal["none", "pipeline", "distortion", "a priori", "a posteriori", "other"]

METHODS = {
    "IMG": "image by image to",
    "REL": "relatively to each other, then to",
    "EVM": "by exposures of the visit to",
    "SVM": "by visit to",
    "MVM": "by several visits to",
    "user": "by the user to",
}

_COPY = re.compile(r"(?P<body>.+)-(?P<copy>[1-9]\d{0,3})", re.DOTALL)
_FIT = re.compile(r"(?:(?P<start>[^-]+)-)?FIT_(?P<method>[A-Za-z]+)_(?P<catalog>[^-]+)", re.DOTALL)
# The forms to which a solution is converted are no catalogues.
_PRIOR = re.compile(
    r"(?P<start>OPUS|IDC_[^-]+)-(?!(?:SIP|TPV|TAN)\Z)(?P<catalog>[A-Za-z][A-Za-z0-9]*)"
)
_CONVERTED = re.compile(
    r"(?P<body>.+?)-(?P<form>(?:[1-9]\d{0,3}-)?(?:SIP|TPV|TAN)(?:-(?:SIP|TPV|TAN))*)", re.DOTALL
)
_DISTORTION = re.compile(r"IDC_[^-]+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class WcsName:
    """A solution's name, taken apart.

    Attributes
    ----------
    kind : str
        ``none``, ``pipeline``, ``distortion``, ``a priori``, ``a posteriori`` or ``other``.
    start : str
        What the fit started from: ``OPUS``, ``IDC_<root>``, empty; for ``other`` the whole text.
    method : str
        What was fitted; only of an a posteriori name.
    catalog : str
        Code of the reference catalogue; ``NONE`` where only a relative alignment succeeded.
    copy : int
        Number that an archive added to keep names apart; 0 for none.
    form : str
        The form of WCS to which the solution was converted, ``SIP``, ``TPV`` or ``TAN``; several,
        in their order, where it was converted again. A number before it (``1-SIP``) is that of the
        copy that was converted.
    """

    kind: Kind
    start: str = ""
    method: str = ""
    catalog: str = ""
    copy: int = 0
    form: str = ""

    def build(self) -> str:
        """Return the name as it stands in a header."""
        if self.kind == "a posteriori":
            text = "-".join(filter(None, [self.start, f"FIT_{self.method}_{self.catalog}"]))
        elif self.kind == "a priori":
            text = f"{self.start}-{self.catalog}"
        else:
            text = self.start
        text = f"{text}-{self.form}" if self.form else text
        return f"{text}-{self.copy}" if self.copy else text

    def __str__(self) -> str:
        return self.build()

    def describe(self) -> str:
        """Say in words what the name says (the text of WCSTYPE).

        Examples
        --------
        >>> parse_wcsname("IDC_0461802ej-FIT_IMG_GAIAEDR3").describe()
        'undistorted a posteriori solution aligned image by image to GAIAEDR3'
        """
        if self.kind == "none":
            return "no solution"
        origins = {"IDC_": "undistorted", "OPUS": "pipeline default"}
        origin = origins.get(self.start[:4], "user-defined")
        if self.kind == "a priori":
            return f"{origin} a priori solution based on {self.catalog}"
        if self.kind == "a posteriori":
            how = METHODS.get(self.method, f"by {self.method} to")
            return f"{origin} a posteriori solution aligned {how} {self.catalog}"
        return f"{origin} not aligned"


@lru_cache(maxsize=4096)
def parse_wcsname(text: str) -> WcsName:
    """Take a name apart; any text is a name.

    Examples
    --------
    >>> name = parse_wcsname("IDC_0461802ej-FIT_REL_GAIADR2")
    >>> name.kind, name.start, name.method, name.catalog
    ('a posteriori', 'IDC_0461802ej', 'REL', 'GAIADR2')
    >>> name = parse_wcsname("IDC_0461802ej-FIT_REL_GAIADR2-SIP-1")
    >>> name.catalog, name.form, name.copy
    ('GAIADR2', 'SIP', 1)
    >>> parse_wcsname("j95y04hpq_flc.fits").kind
    'other'
    """
    name = _parse(text)
    if name.kind != "other":
        return name
    numbered = _COPY.fullmatch(text)
    body, copy = (numbered["body"], int(numbered["copy"])) if numbered else (text, 0)
    converted = _CONVERTED.fullmatch(body)
    tries = [(body, "")]
    if converted is not None:
        tries.append((converted["body"], converted["form"]))
    for start, form in tries:
        known = _parse(start)
        if known.kind != "other":
            return replace(known, copy=copy, form=form)
    return name


def _parse(text: str) -> WcsName:
    if text in ("", "NONE"):
        return WcsName("none", text)
    if text == "OPUS":
        return WcsName("pipeline", text)
    if found := _FIT.fullmatch(text):
        return WcsName("a posteriori", found["start"] or "", found["method"], found["catalog"])
    if found := _PRIOR.fullmatch(text):
        return WcsName("a priori", found["start"], "", found["catalog"])
    if _DISTORTION.fullmatch(text):
        return WcsName("distortion", text)
    return WcsName("other", text)


def catalog_code(catalog: str) -> str:
    """Return a catalogue's name as names of solutions write it.

    Examples
    --------
    >>> catalog_code("Gaia DR3"), catalog_code("my-stars.fits"), catalog_code("")
    ('GAIADR3', 'MYSTARSFITS', 'USER')
    """
    return re.sub(r"[^A-Za-z0-9]", "", catalog).upper() or "USER"


def wcsname(before: str, method: str, catalog: str) -> str:
    """Name a fit after the solution that it started from.

    Parameters
    ----------
    before : str
        WCSNAME of the solution before; empty where it had none.
    method : str
        One of :data:`METHODS`, or a word of letters.
    catalog : str
        The catalogue's name; see :func:`catalog_code`.

    Examples
    --------
    >>> wcsname("IDC_0461802ej-GSC240", "IMG", "Gaia eDR3")
    'IDC_0461802ej-FIT_IMG_GAIAEDR3'
    >>> wcsname("", "IMG", "Gaia DR3")
    'FIT_IMG_GAIADR3'
    """
    old = parse_wcsname(before)
    # As the archives do: what stands before the first dash stays, whatever was aligned after it.
    start = "" if old.kind == "none" else old.start.split("-")[0].strip()
    return WcsName("a posteriori", start, method, catalog_code(catalog)).build()


# --- names of headerlets --------------------------------------------------------------------

_HDRNAME = re.compile(
    r"(?:(?P<stem>.*?)_)??(?P<wcsname>OPUS(?:-.*?)??|IDC_.*?|FIT_.*?)(?P<ending>[-_]hlet(?:\.fits)?|\.fits)?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class HdrName:
    """The name of a headerlet, taken apart.

    Attributes
    ----------
    stem : str or None
        Of the exposure's file; None where the name is that of a WCS alone.
    wcsname : str
        The solution; for a name of another kind, all of it.
    ending : str
        ``-hlet.fits`` or the like, or empty.
    """

    stem: str | None
    wcsname: str
    ending: str = ""

    def build(self) -> str:
        """Return the name as it stands in a header."""
        return ("" if self.stem is None else f"{self.stem}_") + self.wcsname + self.ending


def parse_hdrname(text: str) -> HdrName:
    """Take the name of a headerlet apart; any text is one.

    Examples
    --------
    >>> name = parse_hdrname("ib4606c5q_flc_IDC_2731450pi-FIT_REL_GAIAeDR3-hlet.fits")
    >>> name.stem, name.wcsname, name.ending
    ('ib4606c5q_flc', 'IDC_2731450pi-FIT_REL_GAIAeDR3', '-hlet.fits')
    """
    found = _HDRNAME.fullmatch(text)
    if found is None:
        return HdrName(None, text)
    return HdrName(found["stem"], found["wcsname"], found["ending"] or "")


def hdrname(stem: str, name: str) -> str:
    """Name a headerlet after the file of its exposure and the solution.

    Examples
    --------
    >>> hdrname("j95y04hpq_flc", "IDC_0461802ej-GSC240")
    'j95y04hpq_flc_IDC_0461802ej-GSC240-hlet.fits'
    """
    return HdrName(stem, name or "NONE", "-hlet.fits").build()


# --- names of distortion models -------------------------------------------------------------

NO_MODEL, UNKNOWN_MODEL = "NOMODEL", "UNKNOWN"
_NO_FILE = {"", "N/A", "NONE", "INDEF", NO_MODEL, UNKNOWN_MODEL}
_MODEL_ENDING = re.compile(r"_(idc|npl|d2i|dxy|off)$", re.IGNORECASE)


@lru_cache(maxsize=4096)
def model_root(file: str) -> str:
    """Return the root of a reference file: without folder, variable and ending; empty for none.

    Examples
    --------
    >>> [model_root(x) for x in ("jref$0461802ej_idc.fits", "/ref/02c1450oj_npl.fits", "N/A")]
    ['0461802ej', '02c1450oj', '']
    """
    text = file.strip()
    if text.upper() in _NO_FILE:
        return ""
    text = text.replace("\\", "/").rpartition("/")[2].rpartition("$")[2]
    text = re.sub(r"\.fits?$", "", text, flags=re.IGNORECASE)
    return _MODEL_ENDING.sub("", text)


def model_name(file: str, present: bool) -> str:
    """Return NPOLNAME, D2IMNAME or the model part of SIPNAME.

    Parameters
    ----------
    file : str
        The reference file, as a header names it.
    present : bool
        Whether the header has such a distortion.
    """
    return model_root(file) or (UNKNOWN_MODEL if present else NO_MODEL)


@dataclass(frozen=True, slots=True)
class Distortion:
    """What a distortion model is known by: the roots of its files, empty for none.

    SIPNAME and DISTNAME begin with the exposure, so those of two exposures never agree; the roots
    do.
    """

    idctab: str = ""
    npol: str = ""
    d2im: str = ""

    def __str__(self) -> str:
        return "-".join(x or NO_MODEL for x in (self.idctab, self.npol, self.d2im))

    def __bool__(self) -> bool:
        return bool(self.idctab or self.npol or self.d2im)


@dataclass(frozen=True, slots=True)
class SipName:
    """SIPNAME taken apart: the exposure (None where it is not said) and the model."""

    rootname: str | None
    model: str

    def build(self) -> str:
        """Return the name as it stands in a header."""
        return self.model if self.rootname is None else f"{self.rootname}_{self.model}"


def parse_sipname(text: str) -> SipName:
    """Take SIPNAME apart; any text is one.

    Examples
    --------
    >>> parse_sipname("ib4606c5q_2731450pi")
    SipName(rootname='ib4606c5q', model='2731450pi')
    """
    rootname, dash, model = text.rpartition("_")
    return SipName(rootname, model) if dash else SipName(None, text)


@dataclass(frozen=True, slots=True)
class DistName:
    """DISTNAME taken apart; None for what it does not say."""

    sipname: str
    npolname: str | None = None
    d2imname: str | None = None

    def build(self) -> str:
        """Return the name as it stands in a header."""
        return "-".join(x for x in (self.sipname, self.npolname, self.d2imname) if x is not None)

    @property
    def distortion(self) -> Distortion:
        """The roots that it names."""
        return Distortion(
            model_root(parse_sipname(self.sipname).model),
            model_root(self.npolname or ""), model_root(self.d2imname or ""),
        )


def parse_distname(text: str) -> DistName:
    """Take DISTNAME apart; any text is one.

    Examples
    --------
    >>> str(parse_distname("ib4606cpq_w3m18525i-NOMODEL-NOMODEL").distortion)
    'w3m18525i-NOMODEL-NOMODEL'
    """
    return DistName(*text.split("-", 2))


def distname(rootname: str, distortion: Distortion) -> str:
    """Name the distortion model of an exposure.

    Examples
    --------
    >>> distname("j95y04hpq", Distortion("0461802ej", "02c1450oj", "02c1450nj"))
    'j95y04hpq_0461802ej-02c1450oj-02c1450nj'
    """
    sip = SipName(rootname, distortion.idctab).build() if distortion.idctab else NO_MODEL
    return DistName(sip, distortion.npol or NO_MODEL, distortion.d2im or NO_MODEL).build()


# --- WCSTYPE --------------------------------------------------------------------------------

# The words of the archive; METHODS has ours.
_ARCHIVE_WORDS = {
    "REL": "relatively aligned to",
    "IMG": "aligned image-by-image to",
    "EVM": "aligned by visit-exposures to",
    "SVM": "aligned by visit to",
}
_WCSTYPE = re.compile(
    r"(?P<origin>undistorted|pipeline default|user-defined) "
    r"(?:(?P<plain>not aligned)|a priori solution based on (?P<prior>.+)"
    r"|a posteriori solution (?P<how>.+ to) (?P<catalog>\S+))",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class WcsType:
    """WCSTYPE taken apart; `how` are its own words.

    Attributes
    ----------
    origin : str
        ``undistorted``, ``pipeline default``, ``user-defined``; for another text, all of it.
    kind : str
        ``not aligned``, ``a priori``, ``a posteriori``, ``other``.
    how : str
        What stands before the catalogue of an a posteriori solution.
    catalog : str
    """

    origin: str
    kind: str
    how: str = ""
    catalog: str = ""

    def build(self) -> str:
        """Return the text as it stands in a header."""
        if self.kind == "other":
            return self.origin
        if self.kind == "a priori":
            return f"{self.origin} a priori solution based on {self.catalog}"
        if self.kind == "a posteriori":
            return f"{self.origin} a posteriori solution {self.how} {self.catalog}"
        return f"{self.origin} not aligned"


def parse_wcstype(text: str) -> WcsType:
    """Take WCSTYPE apart; any text is one.

    Examples
    --------
    >>> parse_wcstype("undistorted a posteriori solution relatively aligned to GAIAEDR3").catalog
    'GAIAEDR3'
    """
    found = _WCSTYPE.fullmatch(text)
    if found is None:
        return WcsType(text, "other")
    if found["plain"]:
        return WcsType(found["origin"], "not aligned")
    if found["prior"]:
        return WcsType(found["origin"], "a priori", "", found["prior"])
    return WcsType(found["origin"], "a posteriori", found["how"], found["catalog"])


def wcstype(name: str) -> str:
    """Return WCSTYPE of a WCSNAME, in the words of Hubble's archive.

    Examples
    --------
    >>> wcstype("IDC_0461802ej-FIT_REL_GAIADR2")
    'undistorted a posteriori solution relatively aligned to GAIADR2'
    """
    parsed = parse_wcsname(name)
    if parsed.kind != "a posteriori" or parsed.method not in _ARCHIVE_WORDS:
        return parsed.describe()
    origin = parsed.describe().split(" a posteriori")[0]
    return WcsType(origin, "a posteriori", _ARCHIVE_WORDS[parsed.method], parsed.catalog).build()
