"""How far two solutions are apart over a chip, and what a change of form costs.

Distances are on the sky, in milliarcseconds, between where the two put the same pixel; the offset
in right ascension includes cos dec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fits.parts import Part
from cynosure.data.fits.wcsread import sky_of_pixels
from cynosure.geometry.wcs import Form, model_from_wcs, model_to_header
from cynosure.ground.errors import SettingError
from cynosure.ground.sky import MAS_PER_DEG, separation_deg
from cynosure.solutions.files.headerlet import ChipWcs, Headerlet, HeaderletDamaged, Target

__all__ = [
    "Separation",
    "chip_shape",
    "converted",
    "facts_of",
    "s_region",
    "separation_map",
    "separations",
]

Floats = NDArray[np.float64]
Shape = tuple[int, int]

# Points of the map along the longer side, unless more are asked for: every 128 px of a chip of
# 4096 px.
MAP_SIDE = 33
# Longest side of a chip, px. The largest detectors have 16384; a larger number is a damaged card.
MAX_SIDE = 1 << 17


@dataclass(frozen=True, slots=True, eq=False)
class Separation:
    """The distance between two solutions over a chip.

    Attributes
    ----------
    target : (str, int)
    shape : (int, int)
        Rows and columns of the chip.
    x, y : (ny, nx) ndarray
        0-based pixels of the map.
    dra_mas, ddec_mas, sep_mas : (ny, nx) ndarray
        The second solution minus the first; NaN where one has no position.
    """

    target: Target
    shape: Shape
    x: Floats
    y: Floats
    dra_mas: Floats
    ddec_mas: Floats
    sep_mas: Floats

    def summary(self) -> dict[str, Any]:
        """Return the numbers that say it in a line."""
        good = self.sep_mas[np.isfinite(self.sep_mas)]
        if not good.size:
            nan = float("nan")
            stats = dict.fromkeys(("min_mas", "median_mas", "rms_mas", "max_mas"), nan)
        else:
            stats = {
                "min_mas": float(good.min()), "median_mas": float(np.median(good)),
                "rms_mas": float(np.sqrt(np.mean(good**2))), "max_mas": float(good.max()),
            }
        shift = {
            "dra_mas": float(np.nanmedian(self.dra_mas)) if good.size else float("nan"),
            "ddec_mas": float(np.nanmedian(self.ddec_mas)) if good.size else float("nan"),
        }
        return {"chip": f"{self.target[0]},{self.target[1]}", **stats, **shift}


def chip_shape(chip: ChipWcs, headerlet: Headerlet, shape: Shape | None = None) -> Shape:
    """Return rows and columns of a chip: those given, or what its WCS suggests.

    Lookup tables span the chip; without them the reference pixel is taken as its centre.
    """
    if shape is not None:
        return shape
    for at in chip.lookups:
        table = headerlet.table(*at)
        if table is not None:
            part = Part(_cards(table.header))
            steps = [part.get(f"CDELT{i}") for i in (2, 1)]
            if all(isinstance(s, (int, float)) and s > 1 for s in steps):
                sides = [n * float(s) for n, s in zip(table.array.shape, steps)]  # type: ignore[arg-type]
                if max(sides) < MAX_SIDE:
                    return round(sides[0]), round(sides[1])
    center = chip.linear[2:4]
    if not np.isfinite(center).all() or not (1 < center.min() and center.max() < MAX_SIDE / 2):
        raise SettingError(
            "the size of chip {chip} is not known", chip=chip.target, hint="Give --shape NY NX.",
        )
    return round(2 * float(center[1])), round(2 * float(center[0]))


def _cards(header: bytes) -> list[tuple[str, bytes]]:
    from cynosure.data.fits.alternates import records_of

    return records_of(header)


def separation_map(
    a: Headerlet, b: Headerlet, target: Target, *, shape: Shape | None = None, side: int = MAP_SIDE
) -> Separation:
    """Return how far two solutions are apart over a chip.

    Parameters
    ----------
    a, b : Headerlet
    target : (str, int)
        The image.
    shape : (int, int), optional
        Rows and columns of the image; guessed from the solutions where absent.
    side : int
        Pixels of the map along the longer side.

    Raises
    ------
    HeaderletDamaged
        If one of them has no usable WCS of that chip.
    SettingError
        If one is on the sky and the other on the Sun, or the size is not known.
    """
    chip = a.chip(target)
    if chip is None or b.chip(target) is None:
        raise HeaderletDamaged(
            headerlet=(b if chip else a).hdrname, reason=f"it has no WCS of {target[0]},{target[1]}"
        )
    frames = [_frame(chip.kinds[0]), _frame(b.chip(target).kinds[0])]  # type: ignore[union-attr]
    if frames[0] != frames[1]:
        raise SettingError(
            "{first} is in {one} and {second} in {other}: there is no distance between them",
            first=a.wcsname, second=b.wcsname, one=frames[0], other=frames[1],
        )
    shape = chip_shape(chip, a, shape)
    ny, nx = (max(2, round(side * n / max(shape))) for n in shape)
    x, y = np.meshgrid(np.linspace(0, shape[1] - 1, nx), np.linspace(0, shape[0] - 1, ny))
    ra, dec = sky_of_pixels(a.wcs(target, shape=shape), x, y)
    ra2, dec2 = sky_of_pixels(b.wcs(target, shape=shape), x, y)
    dra = ((ra2 - ra + 180.0) % 360.0 - 180.0) * np.cos(np.radians(dec)) * MAS_PER_DEG
    sep = separation_deg(ra, dec, ra2, dec2) * MAS_PER_DEG
    return Separation(target, shape, x, y, dra, (dec2 - dec) * MAS_PER_DEG, sep)


# Longitudes that ICRS has a place for: equatorial, galactic, ecliptic, supergalactic. Any other,
# on the Sun or on a planet, has none.
SKY = ("RA--", "GLON", "ELON", "HLON", "SLON")


def _frame(kind: str) -> str:
    """Return what the first axis of a WCS is a longitude of."""
    return "the sky" if kind[:4].upper() in SKY else kind[:4].rstrip("-") or "no frame"


def separations(
    a: Headerlet, b: Headerlet, shapes: dict[Target, Shape | None], *, side: int = MAP_SIDE
) -> list[Separation]:
    """Return the maps of all chips that both have."""
    both = [c.target for c in a.chips if b.chip(c.target) is not None]
    return [separation_map(a, b, t, shape=shapes.get(t), side=side) for t in both]


# --- another form ---------------------------------------------------------------------------

FORM_NAMES = {"tpv": "TPV", "sip": "SIP", "tan": "TAN"}


def converted(
    headerlet: Headerlet,
    form: Form,
    *,
    shapes: dict[Target, Shape | None] | None = None,
    max_degree: int = 7,
    name: str | None = None,
) -> tuple[Headerlet, list[Separation]]:
    """Return a solution in another form, and what the change costs over each chip.

    Lookup tables become part of the polynomial as well as it can follow them.

    Parameters
    ----------
    headerlet : Headerlet
    form : {"tpv", "sip", "tan"}
    shapes : mapping of (str, int) to (int, int)
        Rows and columns of the images.
    max_degree : int
        Highest degree of the polynomial; 7 is what TPV holds.
    name : str, optional
        WCSNAME of the result; that of the solution with ``-TPV`` and the like by default.

    Raises
    ------
    HeaderletDamaged, SettingError
    """
    if form not in FORM_NAMES:
        raise SettingError("form {form!r} is not known", form=form, hint="One of tpv, sip, tan.")
    shapes = shapes or {}
    chips = []
    for chip in headerlet.chips:
        shape = chip_shape(chip, headerlet, shapes.get(chip.target))
        wcs = headerlet.wcs(chip.target, shape=shape)
        model, _ = model_from_wcs(wcs, shape, max_degree=max_degree)
        header = model_to_header(model, form, shape=shape)
        text = header.tostring(sep="", endcard=True, padding=True).encode("ascii", "replace")
        kept = [r for r in chip.records if r[0] in ("TG_ENAME", "TG_EVER", "WCSNAME", "ORIENTAT")]
        chips.append(ChipWcs(chip.version, chip.target, _cards(text) + kept))
    wcsname = name or f"{headerlet.wcsname}-{FORM_NAMES[form]}"
    stem = headerlet.hdrname.removesuffix("-hlet.fits")
    new = Headerlet(headerlet.head, tuple(chips)).replaced(
        WCSNAME=wcsname, HDRNAME=f"{stem}-{FORM_NAMES[form]}-hlet.fits"
    )
    return new, separations(headerlet, new, shapes, side=2 * MAP_SIDE)


def s_region(wcs: Any, shape: Shape) -> str:
    """Return the footprint of a chip as S_REGION: the centres of its corner pixels."""
    ny, nx = shape
    ra, dec = sky_of_pixels(wcs, [0, 0, nx - 1, nx - 1], [0, ny - 1, ny - 1, 0])
    return "POLYGON ICRS " + " ".join(f"{a:.10f} {d:.10f}" for a, d in zip(ra, dec))


def facts_of(headerlet: Headerlet) -> dict[str, Any]:
    """Return what a solution is, for people and for programs."""
    rms = [None if not np.isfinite(v) else round(v, 4) for v in headerlet.rms_mas]
    facts: dict[str, Any] = {
        "wcsname": headerlet.wcsname, "hdrname": headerlet.hdrname, "exposure": headerlet.destim,
        "description": headerlet.text("DESCRIP"), "catalog": headerlet.catalog,
        "n_matched": headerlet.n_matched or None, "rms_ra_mas": rms[0], "rms_dec_mas": rms[1],
        "distortion": headerlet.distname, "created": headerlet.text("DATE") or None,
        "author": headerlet.text("AUTHOR"), "software": headerlet.text("UPWCSVER"),
        "doubts": [*headerlet.notes, *headerlet.faults(), *headerlet.doubts()], "chips": [],
    }
    for chip in headerlet.chips:
        linear = chip.linear
        matrix = linear[4:].reshape(2, 2)
        scale = 3600.0 * float(np.sqrt(abs(np.linalg.det(matrix))))
        record: dict[str, Any] = {
            "chip": f"{chip.target[0]},{chip.target[1]}", "ctype": str(chip.get("CTYPE1", "")),
            "crval_deg": linear[:2].tolist(), "crpix": linear[2:4].tolist(),
            "scale_arcsec": round(scale, 9), "terms": len(chip.distortion),
            "tables": [f"{n},{v}" for n, v in chip.lookups],
        }
        try:
            shape = chip_shape(chip, headerlet)
            record["s_region"] = s_region(headerlet.wcs(chip.target, shape=shape), shape)
        except (HeaderletDamaged, SettingError):
            record["s_region"] = ""
        facts["chips"].append(record)
    return facts
