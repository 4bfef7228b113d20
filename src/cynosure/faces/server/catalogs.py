"""Reference catalogues in the words of the guide-star service of Hubble's archive.

``vo/CatalogSearch.aspx`` is what the alignment software of Hubble and Webb asks for stars: a
circle, a polygon or a box on the sky, and CSV comes back, after one line of comment, with CRLF.
What goes wrong is one line that starts with ``Error``; where there are no stars it is
``No data records``. Names and values are taken in any case.

Stars are moved to ``EPOCH`` with proper motion and parallax. One without a motion is not dropped:
it stays where the catalogue has it, and its ``epoch`` and its empty ``pmra`` say so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from cynosure.data.catalogs.refcat import RefCat
from cynosure.ground import sky
from cynosure.ground.errors import CatalogDamaged, CatalogMissing, SettingError

__all__ = ["by_name", "router"]

router = APIRouter(tags=["Hubble's client"])

Floats = NDArray[np.float64]

# Limits of one request, so that no client can occupy the service: the radius of a cone, the stars
# of an answer (some 10 MB of CSV), the corners of a polygon.
MAX_RADIUS_DEG = 5.0
MAX_STARS = 50_000
MAX_VERTICES = 100

# Column of the answer, and of the schema REFERENCE.
COLUMNS = {
    "objID": "ref_id", "source_id": "ref_id", "ra": "ra_deg", "dec": "dec_deg",
    "ra_error": "ra_error_mas", "dec_error": "dec_error_mas", "epoch": "ref_epoch_yr",
    "mag": "mag", "color": "color", "parallax": "parallax_mas",
    "parallax_error": "parallax_error_mas", "pmra": "pm_ra_mas_yr",
    "pmra_error": "pm_ra_error_mas_yr", "pmdec": "pm_dec_mas_yr",
    "pmdec_error": "pm_dec_error_mas_yr",
}


def by_name(catalogs: Sequence[RefCat]) -> dict[str, RefCat]:
    """Return catalogues by the name that a request gives: capitals and digits only."""
    return {_plain(c.name): c for c in catalogs}


def _plain(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", name.upper())


@router.get("/webservices/vo/CatalogSearch.aspx", response_class=Response)
def catalog_search(request: Request) -> Response:
    """Give the stars of a circle, polygon or box (RA, DEC, SR; STCS; BBOX) of a catalogue as CSV.

    CAT names the catalogue; EPOCH, MAXOBJ and MAGRANGE are optional.
    """
    asked = {key.lower(): value.strip() for key, value in request.query_params.items()}
    catalogs: Mapping[str, RefCat] = request.app.state.catalogs
    try:
        return _answer(*_found(asked, catalogs))
    except SettingError as error:
        return _text(f"Error: {error}", 400)
    except (CatalogMissing, CatalogDamaged) as error:
        return _text(f"Error: {error}", 503)


def _found(
    asked: dict[str, str], catalogs: Mapping[str, RefCat]
) -> tuple[RefCat, NDArray[np.void], float | None]:
    """Return the catalogue, its stars at the epoch, and the epoch."""
    catalog = _catalog(asked.get("cat") or asked.get("catalog") or "", catalogs)
    if asked.get("format", "CSV").upper() != "CSV":
        raise SettingError("FORMAT={format}: only CSV is given", format=asked["format"][:40])
    epoch = _number(asked, "epoch", 1800.0, 2200.0) if asked.get("epoch") else None
    outline = _outline(asked)
    center = _circle(asked, outline)
    limit = int(_number(asked, "maxobj", 1, MAX_STARS)) if asked.get("maxobj") else MAX_STARS
    faint: dict[str, Any] = {}
    if asked.get("magrange"):
        low, high = _numbers(asked["magrange"].replace(",", " "), 2, 2)
        if low > high:
            raise SettingError("MAGRANGE={low:g},{high:g}: the brighter comes first", low=low,
                               high=high)
        faint = {"min_mag": low, "max_mag": high}
    stars = catalog.cone(*center, max_rows=None if outline is not None else limit, **faint)
    if epoch is not None:
        stars = _moved(stars, epoch)
    if outline is not None:
        stars = stars[_inside(stars["ra_deg"], stars["dec_deg"], outline, center)][:limit]
    return catalog, stars, epoch


def _catalog(name: str, catalogs: Mapping[str, RefCat]) -> RefCat:
    if not catalogs:
        raise SettingError("no catalogue is served here (start it with --refcat)")
    found = catalogs.get(_plain(name)) if name else next(iter(catalogs.values()))
    if found is None:
        raise SettingError("catalogue {name} is not served here, but {names}", name=name[:40],
                           names=", ".join(catalogs))
    return found


def _number(asked: dict[str, str], name: str, low: float, high: float) -> float:
    value = _numbers(asked.get(name, ""), 1, 1)[0]
    if not low <= value <= high:
        raise SettingError("{name}={value:g}: {low:g} to {high:g} is possible", name=name.upper(),
                           value=value, low=low, high=high)
    return value


def _numbers(text: str, least: int, most: int) -> list[float]:
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if not least <= len(values) <= most or not all(map(math.isfinite, values)):
        raise SettingError("{text!r}: {count} numbers are expected", text=text[:80],
                           count=least if least == most else f"{least} to {most}")
    return values


def _outline(asked: dict[str, str]) -> Floats | None:
    """Return the corners of a polygon or box, (n, 2) degrees; None for a circle."""
    shape, rest = _shape(asked)
    if asked.get("bbox"):
        ra0, dec0, ra1, dec1 = _numbers(asked["bbox"].replace(",", " "), 4, 4)
        corners = [ra0, dec0, ra1, dec0, ra1, dec1, ra0, dec1]
    elif shape == "POLYGON":
        corners = _numbers(rest, 6, 2 * MAX_VERTICES)
    elif shape not in ("", "CIRCLE"):
        raise SettingError("STCS={shape}: CIRCLE or POLYGON is possible", shape=shape[:40])
    else:
        return None
    if len(corners) % 2 or max(map(abs, corners[1::2])) > 90.0:
        raise SettingError("the corners are not pairs of right ascension and declination")
    return np.array(corners).reshape(-1, 2)


def _shape(asked: dict[str, str]) -> tuple[str, str]:
    """Return the word and the numbers of STCS; its frame is always that of the sky, ICRS."""
    words = [w for w in asked.get("stcs", "").upper().split() if w not in ("ICRS", "J2000", "FK5")]
    return (words[0], " ".join(words[1:])) if words else ("", "")


def _circle(asked: dict[str, str], outline: Floats | None) -> tuple[float, float, float]:
    if outline is not None:
        vectors = sky.unit_vectors(outline[:, 0], outline[:, 1])
        ra, dec = (float(v) for v in sky.radec(vectors.sum(axis=0)))
        radius = float(sky.separation_deg(ra, dec, outline[:, 0], outline[:, 1]).max())
    elif asked.get("stcs"):
        ra, dec, radius = _numbers(_shape(asked)[1], 3, 3)
    else:
        ra, dec = _number(asked, "ra", -360.0, 720.0), _number(asked, "dec", -90.0, 90.0)
        radius = _number(asked, "sr", 0.0, 180.0)
    if not (abs(dec) <= 90.0 and 0.0 <= radius <= MAX_RADIUS_DEG):
        raise SettingError("a region {radius:g} degrees wide at declination {dec:g}: at most "
                           "{limit:g} is given", radius=radius, dec=dec, limit=MAX_RADIUS_DEG)
    return ra % 360.0, dec, radius


def _moved(stars: NDArray[np.void], epoch_yr: float) -> NDArray[np.void]:
    """Return stars at an epoch; those without a motion stay where and when they are."""
    moved = stars.copy()
    known = np.isfinite(stars["pm_ra_mas_yr"]) & np.isfinite(stars["pm_dec_mas_yr"])
    known &= np.isfinite(stars["ref_epoch_yr"])
    ra, dec, covariance = sky.at_epoch(stars[known], epoch_yr)
    moved["ra_deg"][known], moved["dec_deg"][known] = ra, dec
    moved["ra_error_mas"][known] = np.sqrt(covariance[:, 0])
    moved["dec_error_mas"][known] = np.sqrt(covariance[:, 1])
    moved["ref_epoch_yr"][known] = epoch_yr
    return moved


def _inside(
    ra_deg: Floats, dec_deg: Floats, outline: Floats, center: tuple[float, float, float]
) -> NDArray[np.bool_]:
    """Say which stars lie within a polygon of great circles, which the tangent plane keeps."""
    x, y = sky.project(ra_deg, dec_deg, center[0], center[1])
    px, py = sky.project(outline[:, 0], outline[:, 1], center[0], center[1])
    inside = np.zeros(len(x), dtype=bool)
    for x0, y0, x1, y1 in zip(px, py, np.roll(px, -1), np.roll(py, -1), strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


def _answer(catalog: RefCat, stars: NDArray[np.void], epoch: float | None) -> Response:
    if not len(stars):
        return _text(f"No data records found in {catalog.name}", 200)
    at = "the epoch of each" if epoch is None else f"{epoch:.3f}"
    more = ", the brightest" if len(stars) == MAX_STARS else ""
    lines = [f"# {len(stars)} records of {catalog.name} at {at}, errors in mas{more}",
             ",".join(COLUMNS)]
    columns = [stars[name].tolist() for name in COLUMNS.values()]
    lines += [",".join(map(_cell, row)) for row in zip(*columns, strict=True)]
    return _text("\r\n".join(lines), 200)


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    return "" if value != value else f"{value:.12g}"


def _text(text: str, status: int) -> Response:
    return Response(text + "\r\n", status, media_type="text/csv; charset=utf-8")
