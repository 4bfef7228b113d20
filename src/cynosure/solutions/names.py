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
archive that keeps two solutions of one name adds ``-1``, ``-2`` ….

Any other text is somebody's own name; it is carried as it is. For every text,
``parse_wcsname(text).build() == text``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["METHODS", "WcsName", "catalog_code", "parse_wcsname", "wcsname"]

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
_PRIOR = re.compile(r"(?P<start>OPUS|IDC_[^-]+)-(?P<catalog>[A-Za-z][A-Za-z0-9]*)")
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
    """

    kind: Kind
    start: str = ""
    method: str = ""
    catalog: str = ""
    copy: int = 0

    def build(self) -> str:
        """Return the name as it stands in a header."""
        if self.kind == "a posteriori":
            text = "-".join(filter(None, [self.start, f"FIT_{self.method}_{self.catalog}"]))
        elif self.kind == "a priori":
            text = f"{self.start}-{self.catalog}"
        else:
            text = self.start
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


def parse_wcsname(text: str) -> WcsName:
    """Take a name apart; any text is a name.

    Examples
    --------
    >>> name = parse_wcsname("IDC_0461802ej-FIT_REL_GAIADR2")
    >>> name.kind, name.start, name.method, name.catalog
    ('a posteriori', 'IDC_0461802ej', 'REL', 'GAIADR2')
    >>> parse_wcsname("j95y04hpq_flc.fits").kind
    'other'
    """
    name = _parse(text)
    if name.kind == "other" and (numbered := _COPY.fullmatch(text)):
        body = _parse(numbered["body"])
        if body.kind != "other":
            return WcsName(body.kind, body.start, body.method, body.catalog, int(numbered["copy"]))
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
