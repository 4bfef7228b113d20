"""Hubble's IDCTAB: the polynomial distortion of a chip, how ACS/WFC's changes with time, and the
OFFTAB, which has the places of WFPC2's chips with time.

The time-dependent terms are Anderson's (ACS ISR 2007-08), and those that the table's own header
gives since 2014.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fits.parts import open_parts
from cynosure.ground.errors import CynosureError, ExitCode

__all__ = [
    "IdcModel",
    "NoModel",
    "moved_chip",
    "placed",
    "read_idctab",
    "rotation",
    "skewed",
    "year_of",
]

Floats = NDArray[np.float64]

# ACS/WFC, from the time-dependent skew of its distortion (Anderson 2007, ISR ACS 2007-08) as stwcs
# applies it: angle of the frame in which the skew was measured, centres of the chips and half a
# side of the frame in pixels, arcseconds a pixel.
SKEW_FRAME_DEG = 2.234529
SKEW_CENTERS = {1: (2048.0, 3072.0), 2: (2048.0, 1024.0)}
SKEW_HALF_SIDE, SKEW_SCALE = 2048.0, 0.05
# Skew before the tables had terms of their own, as stwcs has it: two terms, each a constant and a
# rate per year, and the year of reference.
OLD_SKEW = ((0.095, 0.036), (-0.029, -0.012), 2004.5)


class NoModel(CynosureError):
    """The reference files do not give a model for this exposure."""

    text = "{image}: {reason}"
    hint = "Say where the reference files are: --refs DIR, or the variables jref, iref …"
    exit_code = ExitCode.NO_CATALOG


@dataclass(frozen=True, slots=True, eq=False)
class IdcModel:
    """The distortion of a chip, from an IDCTAB.

    Attributes
    ----------
    cx, cy : (n + 1, n + 1) ndarray
        Coefficient [i, j] of ``x^j y^(i-j)`` in arcseconds, about (xref, yref).
    order : int
    xref, yref : float
        Reference pixel, 1-based.
    v2, v3 : float
        Its place in the telescope's frame, arcseconds.
    scale : float
        Arcseconds per pixel.
    theta_deg : float
        Angle of the detector in that frame.
    xsize, ysize : float
        Pixels of the field that the model is of.
    binning : int
        Detector pixels along a side of one of the exposure.
    terms : dict
        Cards of the time dependence for this chip; empty where the table has none.
    """

    cx: Floats
    cy: Floats
    order: int
    xref: float
    yref: float
    v2: float
    v3: float
    scale: float
    theta_deg: float
    xsize: float
    ysize: float
    terms: dict[str, float]
    binning: int = 1

    def shifted(self, cx: Floats, cy: Floats) -> IdcModel:
        """Return the model with other coefficients."""
        return replace(self, cx=cx, cy=cy)

    def binned(self, factor: int) -> IdcModel:
        """Return the model of binned pixels, as the pipeline takes it: every degree alike."""
        return replace(
            self, binning=factor, cx=self.cx * factor, cy=self.cy * factor,
            scale=self.scale * factor,
            xref=self.xref / factor, yref=self.yref / factor,
            xsize=self.xsize / factor, ysize=self.ysize / factor,
        )

    def about(self, dx: float, dy: float) -> IdcModel:
        """Return the model with its polynomials taken about another pixel, that far away.

        The place (v2, v3) stays that of the reference pixel, as the pipeline has it for
        subarrays; the constant terms are where the other pixel is.
        """
        n = self.order + 1
        cx, cy = np.zeros((2, n, n))
        for i in range(n):
            for j in range(i + 1):  # (x + dx)^j (y + dy)^(i - j), by the binomial theorem
                for a in range(j + 1):
                    for b in range(i - j + 1):
                        weight = (comb(j, a) * comb(i - j, b) * dx ** (j - a)
                                  * dy ** (i - j - b))
                        cx[a + b, a] += weight * self.cx[i, j]
                        cy[a + b, a] += weight * self.cy[i, j]
        return self.shifted(cx, cy)


# --- reading the reference files ------------------------------------------------------------


def read_idctab(
    path: str | Path, chip: int, filter1: str = "CLEAR", filter2: str = "CLEAR"
) -> IdcModel:
    """Read the distortion of a chip from an IDCTAB.

    Parameters
    ----------
    path : path
    chip : int
        CCDCHIP or DETECTOR.
    filter1, filter2 : str
        As the exposure names them; for STIS the optical element and the filter.

    Raises
    ------
    NoModel
        If no row is for that chip and those filters.
    ImageError
        If it cannot be read.
    """
    from astropy.io import fits

    from cynosure.data.fits.file import understood

    with open_parts(path):  # says in our words what is wrong with a file that is no FITS
        pass
    with understood(Path(path).name, 1), fits.open(path, memmap=False) as units:
        header, rows = units[0].header, np.array(units[1].data)
        order = int(header["NORDER"])
        wanted = (_clear(filter1), _clear(filter2))
        row = next((r for r in rows if _matches(r, chip, wanted)), None)
        if row is not None:
            return _model(row, order, _time_terms(header, chip))
    raise NoModel(
        image=Path(path).name, chip=chip, filters=wanted, hint="Check CCDCHIP and the filters.",
        reason=f"no row for chip {chip} and the filters {' '.join(wanted)}",
    )


def _clear(name: Any) -> str:
    text = str(name).strip().upper()
    return "CLEAR" if not text or text.startswith("CLEAR") else text


def _matches(row: Any, chip: int, filters: tuple[str, str]) -> bool:
    names = row.dtype.names

    def text(column: str) -> str:
        value = row[column]
        return (value.decode() if isinstance(value, bytes) else str(value)).strip()

    if "DIRECTION" in names and text("DIRECTION").upper() != "FORWARD":
        return False
    if "DETCHIP" in names and text("DETCHIP").lstrip("-").isdigit():
        if int(text("DETCHIP")) not in (chip, -999):
            return False
    if "FILTER1" in names:
        return (_clear(text("FILTER1")), _clear(text("FILTER2"))) == filters
    if "OPT_ELEM" in names:
        return _clear(text("OPT_ELEM")) == filters[0] and _clear(text("FILTER")) == filters[1]
    return "FILTER" not in names or _clear(text("FILTER")) in filters


def _model(row: Any, norder: int, terms: dict[str, float]) -> IdcModel:
    order = max(norder, 3)
    cx, cy = np.zeros((2, order + 1, order + 1))
    names = row.dtype.names
    a, b = ("CX", "CY") if "CX10" in names else ("A", "B")
    for i in range(1, norder + 1):
        for j in range(i + 1):
            cx[i, j], cy[i, j] = row[f"{a}{i}{j}"], row[f"{b}{i}{j}"]
    scale = round(float(row["SCALE"]), 8)
    if cx[1, 1] == 1.0 != scale:  # coefficients in pixels
        cx, cy = cx * scale, cy * scale
    v2, v3, theta = (float(row[k]) if k in names else 0.0 for k in ("V2REF", "V3REF", "THETA"))
    xref, yref, *size = (float(row[k]) for k in ("XREF", "YREF", "XSIZE", "YSIZE"))
    return IdcModel(cx, cy, order, xref, yref, v2, v3, scale, theta, size[0], size[1], terms)


def placed(model: IdcModel, offtab: str | Path, chip: int, date: str) -> IdcModel:
    """Return a model with the place and the angle of its chip at a date, from an OFFTAB.

    They are interpolated between the rows of the chip; after the last row the last two are
    continued, and before the first the first holds, as the pipeline does.

    Raises
    ------
    NoModel
        If the table has no row of that chip.
    ImageError
        If it cannot be read.
    """
    from astropy.io import fits

    from cynosure.data.fits.file import understood

    with open_parts(offtab):
        pass
    with understood(Path(offtab).name, 1), fits.open(offtab, memmap=False) as units:
        rows = [
            (datetime.date.fromisoformat(str(r["OBSDATE"]).strip()[:10]).toordinal(),
             float(r["V2REF"]), float(r["V3REF"]), float(r["THETA"]))
            for r in units[1].data if int(r["DETCHIP"]) in (chip, -999)
        ]
    if not rows:
        raise NoModel(
            image=Path(offtab).name, reason=f"no row for chip {chip}", hint="Check DETECTOR."
        )
    days, *columns = np.array(sorted(rows)).T
    day = datetime.date.fromisoformat(date[:10]).toordinal()
    last = int(np.clip(np.searchsorted(days, day), 1, max(len(days) - 1, 1)))
    if day <= days[0] or len(days) == 1:
        v2, v3, theta = (float(c[0]) for c in columns)
    else:
        part = (day - days[last - 1]) / (days[last] - days[last - 1])
        v2, v3, theta = (float(c[last - 1] + part * (c[last] - c[last - 1])) for c in columns)
    return replace(model, v2=v2, v3=v3, theta_deg=theta)


def _time_terms(header: Any, chip: int) -> dict[str, float]:
    """Return the terms of time dependence of ACS/WFC, those of a chip without its number."""
    out: dict[str, float] = {}
    for key in header:
        value = header[key]
        if not str(key).startswith("TDD") or not isinstance(value, (int, float)):
            continue
        if key in ("TDDORDER", "TDD_DATE") or key[:5] in ("TDD_A", "TDD_B"):
            out[key] = float(value)
        elif key.endswith(str(chip)):
            out[key[:-1]] = float(value)
    return out


# --- time dependence ------------------------------------------------------------------------


def year_of(date: str) -> float:
    """Return a date as the calibration of these terms counts years."""
    day = datetime.date.fromisoformat(date[:10])
    return day.year + day.timetuple().tm_yday / 365.25


def rotation(angle_deg: float) -> Floats:
    """Return the matrix that turns axes by an angle."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, s], [-s, c]])


def skewed(model: IdcModel, year: float) -> tuple[IdcModel, tuple[float, float]]:
    """Return the model of ACS/WFC at a date, and (alpha, beta) where chips move with it."""
    terms = model.terms
    since = year - terms.get("TDD_DATE", year)
    cx, cy = model.cx.copy(), model.cy.copy()
    if "TDD_CTB" in terms:  # linear terms that drift (2015)
        cx[1, 1] += terms.get("TDD_CXB", 0.0) * since
        cy[1, 1] += terms["TDD_CTB"] * since
        cy[1, 0] += terms.get("TDD_CYB", 0.0) * since
        return model.shifted(cx, cy), (0.0, 0.0)
    if "TDD_CYB" in terms:  # linear terms that are replaced, where a constant is given (2014)
        start = terms.get("TDD_CYA") or cy[1, 1]
        cy[1, 1] = start + terms["TDD_CYB"] * since
        if terms.get("TDD_CXA"):
            cx[1, 1] = terms["TDD_CXA"] + terms.get("TDD_CXB", 0.0) * since
        return model.shifted(cx, cy), (0.0, 0.0)
    if "TDDORDER" in terms:
        powers = range(int(terms["TDDORDER"]) + 1)
        alpha = sum(terms.get(f"TDD_A{k}", 0.0) * since**k for k in powers)
        beta = sum(terms.get(f"TDD_B{k}", 0.0) * since**k for k in powers)
    else:
        since = year - OLD_SKEW[2]
        alpha, beta = (c[0] + c[1] * since for c in OLD_SKEW[:2])
    skew = np.array([[beta, alpha], [alpha, -beta]])
    matrix = rotation(SKEW_FRAME_DEG) @ (np.eye(2) + skew / SKEW_HALF_SIDE)
    both = matrix @ rotation(-SKEW_FRAME_DEG) @ np.array([cx.ravel(), cy.ravel()])
    moved = model.shifted(both[0].reshape(cx.shape), both[1].reshape(cy.shape))
    # A table with terms of its own has the places of its chips for them.
    return moved, ((0.0, 0.0) if "TDDORDER" in terms else (float(alpha), float(beta)))


def moved_chip(chip: int, skew: tuple[float, float]) -> tuple[float, float]:
    """Return how far the skew moves a chip of ACS/WFC in V2 and -V3, arcseconds."""
    alpha, beta = skew
    if chip not in SKEW_CENTERS or not (alpha or beta):
        return 0.0, 0.0
    center = np.array(SKEW_CENTERS[chip]) - SKEW_HALF_SIDE
    matrix = np.array([[beta, alpha], [alpha, -beta]])
    shift = rotation(SKEW_FRAME_DEG) / SKEW_HALF_SIDE @ matrix @ center * SKEW_SCALE
    return float(shift[0]), float(shift[1])
