"""One solution of one exposure, with all columns that the database stores of it.

Where it lies on the sky is told by the corners of its chips. A headerlet does not say how large
its chips are, so an entry says how that is known: from the image itself, from the lookup tables,
which span the chip, or only assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cynosure.ground import sky
from cynosure.ground.errors import ImageError, SettingError

__all__ = [
    "EXTENTS", "FITS", "JSON", "MAX_COUNT", "MAX_NAME", "Entry", "Extent", "GuideStars",
    "checked_name", "circles",
]

FITS, JSON = "application/fits", "application/json"
# Characters of a name: three times what fits into a FITS card.
MAX_NAME = 200
# The largest INTEGER of PostgreSQL.
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
    created : str or None
        Date and time, ISO 8601 (UTC); None where nothing says when it was made.
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
    identity : str
        Of the WCS (:mod:`cynosure.solutions.store.identity`): two files of the same WCS have the
        same, whatever else they say. By default that of the content.
    added : str
        When it came into the store that it was exported from; empty for a new one.
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
    created: str | None = None
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
    identity: str = ""
    added: str = ""

    @property
    def key(self) -> str:
        """What tells it from the other solutions of a store."""
        return self.identity or self.content_sha256[:32]

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


@dataclass(frozen=True, slots=True)
class GuideStars:
    """How far the guide stars of an exposure were off: angles in degrees.

    Attributes
    ----------
    rootname : str
        The exposure.
    delta_ra_deg, delta_dec_deg, delta_roll_deg : float
        What is to be added to the pointing.
    delta_scale : float
        Factor of the scale.
    input_ra_deg, input_dec_deg, output_ra_deg, output_dec_deg : float
        The guide star as it was, and as it is in `catalog`.
    catalog : str
        The catalogue of the new position; empty where there is no offset.
    """

    rootname: str
    delta_ra_deg: float
    delta_dec_deg: float
    delta_roll_deg: float
    delta_scale: float
    input_ra_deg: float
    input_dec_deg: float
    output_ra_deg: float
    output_dec_deg: float
    catalog: str

    @classmethod
    def from_dict(cls, content: Any) -> GuideStars:
        """Make it of an object with these fields.

        Raises
        ------
        SettingError
            If a field is missing, of another type, or not finite.
        """
        values = content if isinstance(content, dict) else {}
        texts = {n: values.get(n) for n in ("rootname", "catalog")}
        numbers = {n: values.get(n) for n in cls.__slots__ if n not in texts}
        wrong = [n for n, v in texts.items() if not isinstance(v, str)]
        wrong += [
            n for n, v in numbers.items()
            if isinstance(v, bool) or not isinstance(v, (int, float)) or not math.isfinite(v)
        ]
        if wrong or not texts["rootname"]:
            raise SettingError(
                "guide stars: {wrong} missing or of another type",
                wrong=", ".join(wrong or ["rootname"]),
                hint=f"The fields are {', '.join(cls.__slots__)}.",
            )
        return cls(**texts, **{n: float(v) for n, v in numbers.items()})  # type: ignore[arg-type]
