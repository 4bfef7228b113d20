"""The chips of a file: its science images with a celestial WCS, or headers that stand alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from cynosure.data.fits.alternates import alternate_letters
from cynosure.data.fits.blocks import Unit
from cynosure.data.fits.extensions import headers_alone, science_units
from cynosure.data.fits.parts import FitsParts, Part, Value, value_of
from cynosure.data.instrument import Instrument, identify, identifying_keywords, load_instrument
from cynosure.solutions.files.headerlet import Target

__all__ = ["Chip", "chips_of"]

# Keywords and values that tell an instrument.
Identity = tuple[tuple[str, Value], ...]

CELESTIAL = re.compile(r"(RA--|DEC-|[GESH]LON|[GESH]LAT|[A-Z]{2}L[NT])-")


@dataclass(slots=True, eq=False)
class Chip:
    """A science image of a file: its unit, its EXTNAME and EXTVER, its rows and columns."""

    part: Part
    target: Target
    shape: tuple[int, int] | None


def chips_of(file: FitsParts) -> list[Chip]:
    """Return the science images of a file that have a celestial WCS, in order.

    A unit ``SCI`` counts without one; where no image has one, headers without pixels are taken.
    """
    units = [
        Unit(i, p.header_bytes(), p.start, p.size, p.first()) for i, p in enumerate(file.parts)
    ]
    first = next((u.index for u in units if u.is_image), 0)
    camera = _camera(*(_identifying(file.parts[i]) for i in (0, first)))
    chips = [
        c for u in science_units(units, camera)
        if (c := _chip(file, u)).part.name == "SCI" or _has_celestial(c.part)
    ]
    if not chips:
        alone = headers_alone(units, camera)
        chips = [c for u in alone if _has_celestial((c := _chip(file, u)).part)]
    return chips


def _identifying(part: Part) -> Identity:
    """Return the values that may tell the instrument."""
    keywords = identifying_keywords()
    if keywords.isdisjoint(part.first()):
        return ()
    return tuple((k, value_of(b)) for k, b in part.records if k in keywords)


@lru_cache(maxsize=64)  # an archive has few instruments
def _camera(*headers: Identity) -> Instrument:
    return load_instrument(identify(*(dict(reversed(h)) for h in headers)))


def _chip(file: FitsParts, unit: Unit) -> Chip:
    part, number = file.parts[unit.index], unit.index
    name = part.name if number else "PRIMARY"
    target = (name, part.version) if name and number else (name or "HDU", number or 1)
    return Chip(part, target, _shape(part))


def _has_celestial(part: Part) -> bool:
    return any(_celestial(part, x) for x in ("", *alternate_letters(part.records)))


def _celestial(part: Part, letter: str) -> bool:
    return all(CELESTIAL.match(part.text(f"CTYPE{i}{letter}").upper() + "-") for i in (1, 2))


def _unit(part: Part) -> Unit:
    return Unit(0, part.header_bytes(), 0, 0, part.first())


def _shape(part: Part) -> tuple[int, int] | None:
    """Return rows and columns, also of a header that says how large its image is."""
    shape = _unit(part).shape
    if len(shape) >= 2 and min(shape) > 0:
        return shape[-2], shape[-1]
    sizes = [part.get("IMAGEH"), part.get("IMAGEW")]
    if all(isinstance(n, int) and n > 0 for n in sizes):
        return int(sizes[0]), int(sizes[1])  # type: ignore[arg-type]
    return None
