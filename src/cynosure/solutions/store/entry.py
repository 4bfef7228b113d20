"""One solution of one exposure, with all that a database is asked for later.

Where it lies on the sky is told by the corners of its chips. A headerlet does not say how large
its chips are, so an entry says how that is known: from the image itself, from the lookup tables,
which span the chip, or only assumed.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cynosure.ground import sky
from cynosure.ground.errors import ImageError

__all__ = [
    "EXTENTS", "FITS", "JSON", "MAX_COUNT", "MAX_NAME", "Entry", "Extent", "checked_name",
    "circles", "iso_date",
]

FITS, JSON = "application/fits", "application/json"
MAX_NAME = 200
MAX_COUNT = 2**31 - 1

Extent = Literal["", "assumed", "tables", "image"]
# How the size of the chips is known, the worst first.
EXTENTS: tuple[Extent, ...] = ("", "assumed", "tables", "image")


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One solution of one exposure, ready for the store.

    Attributes
    ----------
    content_sha256 : str
        Of what the solution says; a copy with another date, padding or order has the same.
    rootname, wcsname, hdrname : str
        The exposure, the solution's name, and the name of its headerlet.
    kind : str
        Of the name (:mod:`cynosure.solutions.names`).
    distname, idctab, npol, d2im : str
        The distortion model, and the roots of the files that it is made of; empty for none.
    catalog, method : str
        The reference catalogue and what was fitted.
    quality : int or None
        1 … 5, -1; None where nobody judged.
    status : str
        ``solved``, ``compromised`` or empty.
    rms_ra_mas, rms_dec_mas, fit_rms_mas : float or None
        Residuals of the fit, by axis and together.
    nmatch : int or None
        Stars of the fit.
    corners : (n_chips, 4, 2) ndarray
        Right ascension and declination of the chips' corners, degrees.
    extent : str
        How the size of the chips is known: ``image``, ``tables``, ``assumed`` (twice the
        reference pixel); empty where a place on the sky is not.
    created : str
        Date and time, ISO 8601; empty where unknown.
    author, descrip, software : str
        Who made it, with what.
    settings : dict
        What it was made with.
    faults, doubts, notes : tuple of str
        Why it must not be used; why another is better used; what was odd.
    media : str
        Media type of `payload`.
    payload : bytes
        The headerlet, or the record as JSON.
    tables : tuple of (int, int, bytes)
        Start, size and SHA-256 of the units of `payload` that other solutions share.
    """

    content_sha256: str
    rootname: str
    wcsname: str
    hdrname: str = ""
    kind: str = "other"
    distname: str = ""
    idctab: str = ""
    npol: str = ""
    d2im: str = ""
    catalog: str = ""
    method: str = ""
    quality: int | None = None
    status: str = ""
    rms_ra_mas: float | None = None
    rms_dec_mas: float | None = None
    fit_rms_mas: float | None = None
    nmatch: int | None = None
    corners: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4, 2)))
    extent: Extent = ""
    created: str = ""
    author: str = ""
    descrip: str = ""
    software: str = ""
    settings: dict[str, Any] | None = None
    faults: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    media: str = FITS
    payload: bytes = b""
    tables: tuple[tuple[int, int, bytes], ...] = ()

    def circle(self) -> tuple[float, float, float] | None:
        """Return centre and radius in degrees of a circle around the footprint; None for none."""
        return circles([self])[0]


def circles(entries: Sequence[Entry]) -> list[tuple[float, float, float] | None]:
    """Return the circles around footprints; those of many at once are ten times as fast."""
    out: list[tuple[float, float, float] | None] = [None] * len(entries)
    by_count: dict[int, list[int]] = {}
    for index, entry in enumerate(entries):
        if len(entry.corners):
            by_count.setdefault(len(entry.corners), []).append(index)
    for members in by_count.values():
        places = np.stack([entries[i].corners for i in members]).reshape(len(members), -1, 2)
        with np.errstate(invalid="ignore"):
            vectors = sky.unit_vectors(places[..., 0], places[..., 1])
            total = vectors.sum(axis=1)
            length = np.linalg.norm(total, axis=1)
            good = np.isfinite(places).all(axis=(1, 2)) & (length >= 1e-6)
            center = np.where(good[:, None], total / np.where(good, length, 1.0)[:, None], 0.0)
            chord = np.linalg.norm(vectors - center[:, None], axis=2).max(axis=1)
        ra, dec = sky.radec(center)
        radius = np.degrees(2.0 * np.arcsin(np.clip(chord / 2.0, 0.0, 1.0)))
        for k, index in enumerate(members):
            if good[k]:
                out[index] = float(ra[k]), float(dec[k]), float(radius[k])
    return out


def checked_name(rootname: str, where: str) -> str:
    """Return an exposure's name.

    Raises
    ------
    ImageError
        If it has no characters, or too many for one.
    """
    if not 0 < len(rootname) <= MAX_NAME:
        raise ImageError(
            image=where, reason=f"the exposure's name has {len(rootname)} characters, "
            f"1 to {MAX_NAME} allowed", hint="Rename the image, or mend DESTIM.",
        )
    return rootname


def iso_date(text: str) -> str:
    """Return a date and time in UTC without its zone; empty where it is none.

    Examples
    --------
    >>> iso_date("2021-01-05T05:23:11+01:00"), iso_date("yesterday")
    ('2021-01-05T04:23:11', '')
    """
    try:
        moment = datetime.datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return ""
    return moment.isoformat(timespec="seconds")
