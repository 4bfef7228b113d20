"""What goes into the store: headerlets, exposures that carry some, records of solved images.

Everything is turned into an :class:`Entry`, one solution of one exposure with all that is asked
for later. Headerlets are read from their bytes, card by card as needed, because a database is
filled with thousands a second and most of their cards are never looked at. Units are found by
EXTNAME and EXTVER, never by their place.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import itertools
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fitsbytes import BLOCK, Unit, padded, read_units
from cynosure.ground import sky
from cynosure.ground.errors import CynosureError, ImageError
from cynosure.solutions.cards import Cards, printable
from cynosure.solutions.names import parse_wcsname
from cynosure.solutions.solution import Solution

__all__ = [
    "FITS", "MAX_HEADERLET_BYTES", "Entry", "entries_of_bytes", "image_stem", "read_entries",
    "read_headerlet", "read_record",
]

FITS, JSON = "application/fits", "application/json"
# The largest headerlet of an archive has 0.2 MB; a mosaic of sixty chips would have ten.
MAX_HEADERLET_BYTES = 64 << 20
MAX_NAME = 200
MAX_COUNT = 2**31 - 1

# Cards that say nothing about the solution, so that a copy of it counts as the same.
_VOLATILE = {
    key.ljust(8).encode() for key in (
        "", "DATE", "CHECKSUM", "DATASUM", "COMMENT", "HISTORY", "END", "EXTEND", "SIMPLE",
        "XTENSION", "PCOUNT", "GCOUNT", "ORIGIN", "FILENAME",
    )
}
_NO_FILE = {"", "N/A", "NONE", "INDEF", "NOMODEL", "UNKNOWN"}


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
    created : str
        Date and time, ISO 8601; empty where unknown.
    author, descrip, software : str
        Who made it, with what.
    settings : dict
        What it was made with.
    faults, notes : tuple of str
        Why it must not be used; what was odd.
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
    created: str = ""
    author: str = ""
    descrip: str = ""
    software: str = ""
    settings: dict[str, Any] | None = None
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    media: str = FITS
    payload: bytes = b""
    tables: tuple[tuple[int, int, bytes], ...] = ()

    def circle(self) -> tuple[float, float, float] | None:
        """Return centre and radius in degrees of a circle around the footprint; None for none."""
        if not len(self.corners) or not np.isfinite(self.corners).all():
            return None
        vectors = [_direction(ra, dec) for ra, dec in self.corners.reshape(-1, 2).tolist()]
        x, y, z = (sum(v[i] for v in vectors) for i in range(3))
        length = math.sqrt(x * x + y * y + z * z)
        if length < 1e-6:
            return None
        x, y, z = x / length, y / length, z / length
        chord = max(math.dist((x, y, z), v) for v in vectors)
        ra_deg = math.degrees(math.atan2(y, x)) % 360.0
        dec_deg = math.degrees(math.atan2(z, math.hypot(x, y)))
        return ra_deg, dec_deg, math.degrees(2.0 * math.asin(min(chord / 2.0, 1.0)))


def _direction(ra_deg: float, dec_deg: float) -> tuple[float, float, float]:
    """Return a unit vector; of arrays `sky.unit_vectors` does the same."""
    ra, dec = math.radians(ra_deg), math.radians(dec_deg)
    return math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec)


def read_entries(path: str | Path) -> Iterator[Entry | CynosureError]:
    """Read every solution of a file: a headerlet, an exposure that carries some, a record.

    What is in the file but cannot be used is given as the error that says why.

    Raises
    ------
    ImageError
        If the file itself cannot be read.
    """
    path = Path(path)
    if path.suffix == ".json":
        yield read_record(_text(path), str(path))
        return
    from cynosure.data.fitsfile import open_fits

    stream, size = open_fits(path)
    with stream:
        yield from _entries(stream, str(path), size)


def entries_of_bytes(data: bytes, name: str = "upload") -> Iterator[Entry | CynosureError]:
    """Read every solution of the bytes of such a file."""
    if data.lstrip()[:1] == b"{":
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ImageError(image=name, reason=f"not UTF-8 ({error.reason})") from error
        yield read_record(text, name)
    else:
        yield from _entries(io.BytesIO(data), name, len(data))


def _entries(stream: BinaryIO, name: str, size: int | None) -> Iterator[Entry | CynosureError]:
    found = 0
    for unit in read_units(stream, name, size):
        cards = Cards(unit.raw)
        if unit.index == 0 and cards.text("DESTIM"):
            stream.seek(0)
            yield read_headerlet(stream.read(MAX_HEADERLET_BYTES + 1), name)
            return
        if cards.text("XTENSION") == "HDRLET":
            found += 1
            yield _embedded(stream, unit, cards, name)
    if not found:
        raise ImageError(
            image=name, reason="holds no headerlet",
            hint="Headerlets, exposures with HDRLET extensions and *.solution.json are read.",
        )


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_HEADERLET_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(image=str(path), reason=f"cannot be read ({error})") from error


def _embedded(stream: BinaryIO, unit: Unit, cards: Cards, name: str) -> Entry | CynosureError:
    """Read the headerlet in an extension; an error that it meets is returned."""
    where = f"{name}[{cards.text('EXTNAME') or 'HDRLET'},{unit.version}]"
    try:
        if unit.data_size > MAX_HEADERLET_BYTES:
            raise _too_large(where, unit.data_size)
        stream.seek(unit.data_start)
        data = stream.read(unit.data_size)
        if cards.text("COMPRESS") == "T" or data[:2] == b"\x1f\x8b":
            data = _unpacked(data, where)
        return read_headerlet(data, where)
    except CynosureError as error:
        return error


def _unpacked(data: bytes, where: str) -> bytes:
    """Unpack gzip, but never more than a headerlet can have."""
    engine = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        out = engine.decompress(data, MAX_HEADERLET_BYTES + 1)
    except zlib.error as error:
        raise ImageError(image=where, reason=f"damaged gzip ({error})") from error
    if len(out) > MAX_HEADERLET_BYTES:
        raise _too_large(where, len(out))
    return out


def _too_large(where: str, size: int) -> ImageError:
    return ImageError(
        image=where, n_bytes=size, limit=MAX_HEADERLET_BYTES,
        reason=f"{size} bytes are no headerlet ({MAX_HEADERLET_BYTES} allowed)",
        hint="A headerlet holds header cards and distortion tables, no pixels.",
    )


def read_headerlet(data: bytes, name: str = "headerlet") -> Entry:
    """Read a headerlet from its bytes.

    Raises
    ------
    ImageError
        If it is not FITS, is cut short, or says neither which exposure it is for nor what it is.
    """
    if len(data) > MAX_HEADERLET_BYTES:
        raise _too_large(name, len(data))
    units = list(read_units(io.BytesIO(data), name, len(data)))
    end = units[-1].data_start + padded(units[-1].data_size)
    primary, names, said, chips, tables = Cards(units[0].raw), set(), [], [], []
    for unit in units:
        start, stop = unit.data_start - len(unit.raw), unit.data_start + padded(unit.data_size)
        if unit.data_size >= BLOCK // 2 and stop <= len(data):
            piece = data[start:stop]
            digest = hashlib.sha256(piece).digest()
            tables.append((start, stop - start, digest))
            known = _KNOWN_TABLES.get(digest)
            if known is None:
                known = _remember(digest, _said(unit, Cards(unit.raw), data))
            this = known
        else:
            cards = Cards(unit.raw)
            this = _said(unit, cards, data)
            if this[0] == "SIPWCS":
                chips.append((this[1], cards))
        names.add(this[:2])
        said.append("{},{},{}".format(*this))
    chips.sort(key=lambda pair: pair[0])
    rootname = primary.text("DESTIM")
    if not rootname or not chips:
        what = "no SIPWCS extension" if rootname else "no DESTIM"
        raise ImageError(
            image=name, reason=f"not a headerlet: {what}",
            hint="A headerlet names its exposure in DESTIM and has a SIPWCS extension a chip.",
        )
    first = chips[0][1]
    _check_name(rootname, name)
    wcsname = primary.text("WCSNAME") or first.text("WCSNAME")
    faults, notes = _faults(names, chips, wcsname), []
    hdrname = primary.text("HDRNAME")
    if not hdrname:
        notes.append("no HDRNAME")
    corners, odd = _all_corners(chips)
    return Entry(
        content_sha256=hashlib.sha256("\n".join(sorted(said)).encode()).hexdigest(),
        rootname=rootname, wcsname=wcsname, hdrname=hdrname,
        **_provenance(primary, first, wcsname), corners=corners,
        faults=tuple(faults), notes=(*notes, *odd), media=FITS, payload=data[:end],
        tables=tuple(tables),
    )


def _check_name(rootname: str, name: str) -> None:
    if not 0 < len(rootname) <= MAX_NAME:
        raise ImageError(
            image=name, reason=f"the exposure's name has {len(rootname)} characters, "
            f"1 to {MAX_NAME} allowed", hint="Rename the image, or mend DESTIM.",
        )


def _provenance(primary: Cards, first: Cards, wcsname: str) -> dict[str, Any]:
    """Return the columns that say where a solution came from and how good it is."""
    parsed = parse_wcsname(wcsname)
    idctab = _root(primary.text("IDCTAB"))
    if not idctab and parsed.start.startswith("IDC_"):
        idctab = parsed.start.removeprefix("IDC_")
    fit_rms = primary.number("FIT_RMS")
    nmatch = primary.number("NMATCH", "NMATCHES") or first.number("NMATCHES", "NMATCH")
    return {
        "kind": parsed.kind, "distname": primary.text("DISTNAME"), "idctab": idctab,
        "npol": _root(primary.text("NPOLFILE")), "d2im": _root(primary.text("D2IMFILE")),
        "catalog": (primary.text("CATALOG") or parsed.catalog)[:MAX_NAME], "method": parsed.method,
        "rms_ra_mas": _rms_mas(primary.number("RMS_RA") or first.number("RMS_RA")),
        "rms_dec_mas": _rms_mas(primary.number("RMS_DEC") or first.number("RMS_DEC")),
        "fit_rms_mas": fit_rms if fit_rms is not None and fit_rms > 0 else None,
        "nmatch": int(nmatch) if nmatch and 0 < nmatch < MAX_COUNT else None,
        "created": _date(primary.text("DATE")), "author": primary.text("AUTHOR"),
        "descrip": primary.text("DESCRIP"),
        "software": " ".join(filter(None, [
            f"stwcs {v}" if (v := primary.text("UPWCSVER")) else "",
            f"astropy {v}" if (v := primary.text("PYWCSVER")) else "",
        ])),
    }


def _root(name: str) -> str:
    """Return the root of a reference file's name: ``jref$0461802ej_idc.fits`` → ``0461802ej``."""
    stem = re.split(r"[$/\\]", name.strip())[-1].removesuffix(".fits")
    stem = re.sub(r"_(idc|npl|d2i|off|dxy)$", "", stem)
    return "" if stem.upper() in _NO_FILE or name.strip().upper() in _NO_FILE else stem


def _rms_mas(value: float | None) -> float | None:
    """Return residuals in mas; older files have degrees, and 0 or -1 where nothing is known."""
    if value is None or value <= 0:
        return None
    # No fit is good to a thousandth of a mas, and none as bad as a thousandth of a degree.
    return value * sky.MAS_PER_DEG if value < 1e-3 else value


def _date(text: str) -> str:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return ""
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    return moment.isoformat(timespec="seconds")


def _said(unit: Unit, cards: Cards, data: bytes) -> tuple[str, int, str]:
    """Return name, version and hash of what a unit says: its cards in our order, and its data."""
    said = sorted(pair for pair in cards.pairs if pair[0] not in _VOLATILE)
    digest = hashlib.sha256(b"".join(itertools.chain.from_iterable(said)))
    digest.update(data[unit.data_start : unit.data_start + unit.data_size])
    return *cards.name, digest.hexdigest()


# What tables say, by the digest of their bytes: the same few are in thousands of headerlets.
_KNOWN_TABLES: dict[bytes, tuple[str, int, str]] = {}


def _remember(digest: bytes, said: tuple[str, int, str]) -> tuple[str, int, str]:
    if len(_KNOWN_TABLES) > 10_000:
        _KNOWN_TABLES.clear()
    _KNOWN_TABLES[digest] = said
    return said


def _faults(
    tables: set[tuple[str, int]], chips: list[tuple[int, Cards]], wcsname: str
) -> list[str]:
    """Return why a headerlet must not be applied; empty where it may."""
    faults = []
    for number, cards in chips:
        chip = f"SIPWCS,{number}"
        has_sip = b"A_ORDER " in cards.records or b"B_ORDER " in cards.records
        says_sip = cards.text("CTYPE1").endswith("-SIP")
        if has_sip != says_sip:
            which = "SIP terms without -SIP" if has_sip else "-SIP without SIP terms"
            faults.append(f"{chip}: {which} in CTYPE1")
        elif not has_sip and wcsname.startswith("IDC_") and "TAN" in cards.text("CTYPE1"):
            faults.append(f"{chip}: the name says distortion corrected, but there are no SIP terms")
        matrix = [cards.number(k) or 0.0 for k in ("CD1_1", "CD1_2", "CD2_1", "CD2_2")]
        if matrix[0] * matrix[3] - matrix[1] * matrix[2] == 0.0:
            faults.append(f"{chip}: the CD matrix is singular or missing")
        if any(cards.number(k) is None for k in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2")):
            faults.append(f"{chip}: no reference point")
        for kind, record, table in (("CPDIS", "DP", "WCSDVARR"), ("D2IMDIS", "D2IM", "D2IMARR")):
            for axis in "12":
                version = cards.record_value(record + axis, "EXTVER")
                lookup = cards.text(kind + axis).upper() == "LOOKUP"
                if lookup and (table, int(version or 0)) not in tables:
                    faults.append(f"{chip}: {table},{int(version or 0)} is missing")
    return faults


def _all_corners(chips: list[tuple[int, Cards]]) -> tuple[NDArray[np.float64], list[str]]:
    """Return the corners of the chips that can be placed, and what was odd."""
    corners, notes = [], []
    for number, cards in chips:
        found = _corners(cards)
        if found is None:
            notes.append(f"SIPWCS,{number}: its place on the sky cannot be told")
        else:
            corners.append(found)
    return np.array(corners, dtype=float).reshape(-1, 4, 2), notes


def _corners(cards: Cards) -> list[tuple[float, float]] | None:
    """Place the corners of a chip by CD and TAN (Paper II) and the quadratic terms of SIP.

    Cubic terms and tables move a corner by a few pixels, which a footprint need not know. A
    headerlet does not say how large its chip is: twice CRPIX, because the distortion models
    have their reference in the middle of the chip.
    """
    keys = ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CD1_1", "CD1_2", "CD2_1", "CD2_2")
    values = [cards.number(k) for k in keys]
    if any(v is None for v in values[:4]) or "TAN" not in cards.text("CTYPE1"):
        return None
    ra0, dec0, px, py, *matrix = (0.0 if v is None else v for v in values)
    cd11, cd12, cd21, cd22 = matrix
    half = [abs(p) if 1.0 <= abs(p) < 1e5 else 512.0 for p in (px, py)]
    squares = [[cards.number(f"{name}_{t}") or 0.0 for t in ("2_0", "1_1", "0_2")]
               for name in "AB"]
    out = []
    for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        u, v = sx * half[0], sy * half[1]
        du, dv = (a * u * u + b * u * v + c * v * v for a, b, c in squares)
        xi = cd11 * (u + du) + cd12 * (v + dv)
        eta = cd21 * (u + du) + cd22 * (v + dv)
        out.append(_deprojected(xi, eta, ra0, dec0))
    return out if all(math.isfinite(a) and math.isfinite(b) for a, b in out) else None


def _deprojected(xi: float, eta: float, ra0: float, dec0: float) -> tuple[float, float]:
    """Invert the gnomonic projection for one point; of arrays `sky.deproject` does the same."""
    x, y, d0 = math.radians(xi), math.radians(eta), math.radians(dec0)
    below = math.cos(d0) - y * math.sin(d0)
    ra = ra0 + math.degrees(math.atan2(x, below))
    return ra % 360.0, math.degrees(math.atan2(math.sin(d0) + y * math.cos(d0),
                                               math.hypot(x, below)))


def read_record(text: str, name: str = "solution") -> Entry:
    """Read the record of a solved image (``NAME.solution.json``).

    Raises
    ------
    CatalogDamaged
        If it is not such a record.
    ImageError
        If the image was not solved: there is nothing to keep.
    """
    try:
        solution = Solution.from_json(text, name)
    except RecursionError as error:
        raise ImageError(image=name, reason="damaged record (nested too deep)") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ImageError(image=name, reason=f"damaged record ({error})") from error
    if not solution.chips or solution.status not in ("solved", "compromised"):
        raise ImageError(
            image=name, reason=f"no solution in it ({solution.status}: {solution.reason})",
            hint="Solve the image again; what failed has no WCS to keep.",
        )
    rootname = printable(image_stem(solution.image))
    _check_name(rootname, name)
    try:
        return _entry_of(solution, rootname)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ImageError(image=name, reason=f"damaged record ({error})") from error


def _entry_of(solution: Solution, rootname: str) -> Entry:
    payload = solution.to_json(None).encode()
    says = {k: v for k, v in solution.to_dict().items() if k not in _NOT_CONTENT}
    wcsname = printable(solution.wcsname)
    parsed = parse_wcsname(wcsname)
    corners, notes = _corners_of_chips(solution)
    rms = [_finite(v) for v in (solution.rms_ra_mas, solution.rms_dec_mas)]
    return Entry(
        content_sha256=hashlib.sha256(
            json.dumps(says, sort_keys=True, ensure_ascii=False).encode()
        ).hexdigest(),
        rootname=rootname, wcsname=wcsname, hdrname=f"{rootname}_{wcsname}", kind=parsed.kind,
        idctab=parsed.start.removeprefix("IDC_") if parsed.start.startswith("IDC_") else "",
        catalog=printable(solution.catalog or parsed.catalog)[:MAX_NAME], method=parsed.method,
        quality=solution.quality if solution.quality in (-1, 1, 2, 3, 4, 5) else None,
        status=solution.status, rms_ra_mas=rms[0], rms_dec_mas=rms[1],
        fit_rms_mas=math.hypot(*rms) if None not in rms else None,  # type: ignore[arg-type]
        nmatch=solution.n_used if 0 < solution.n_used < MAX_COUNT else None, corners=corners,
        created=_date(solution.created), descrip=printable(solution.reason),
        software=printable(solution.software), settings=solution.settings, notes=notes,
        media=JSON, payload=payload,
    )


_NOT_CONTENT = ("created", "seconds", "files", "software", "notes", "tried", "hints")


def image_stem(image: str) -> str:
    """Return the name of an image without folders and endings."""
    stem = re.split(r"[/\\]", image)[-1]
    return re.sub(r"(\.(fits|fit|fts|fz|gz|bz2|tiff?|png))+$", "", stem, flags=re.IGNORECASE)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _corners_of_chips(solution: Solution) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Place the corners of a record's chips by their cards, whatever the projection."""
    from astropy.io.fits import Header

    from cynosure.data.wcsread import read_wcs, sky_of_pixels

    corners, notes = [], []
    for chip in solution.chips:
        cards, shape = chip.get("cards"), chip.get("shape")
        wcs, ny, nx = None, 0, 0
        if isinstance(cards, dict) and isinstance(shape, (list, tuple)) and len(shape) == 2:
            ny, nx = int(shape[0]), int(shape[1])
            header = Header([(k, v) for k, v in cards.items() if v is not None])
            wcs, _ = read_wcs(header, shape=(ny, nx))
        if wcs is None:
            notes.append(f"{chip.get('name', 'chip')}: its place on the sky cannot be told")
            continue
        x, y = np.array([0, nx, nx, 0]) - 0.5, np.array([0, 0, ny, ny]) - 0.5
        found = np.stack(sky_of_pixels(wcs, x, y), axis=-1)
        if np.isfinite(found).all():
            corners.append(found)
    return np.array(corners, dtype=float).reshape(-1, 4, 2), tuple(notes)
