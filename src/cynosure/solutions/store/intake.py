"""Read headerlets, exposures and solution records as entries of the store.

Everything is turned into an :class:`Entry`, one solution of one exposure with all that is asked
for later. Of an exposure come its active WCS, its alternates and its headerlets; one that is the
same as a headerlet in the same file comes once. Headerlets are kept byte for byte, and read as
everywhere else (:mod:`cynosure.solutions.files.headerletio`), with what is alike in thousands of
them remembered, because a database is filled with thousands a second.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fits.alternates import records_of
from cynosure.data.fits.blocks import BLOCK, CARD, padded
from cynosure.data.fits.parts import FitsParts, Part, open_parts, parts_of_bytes
from cynosure.data.fits.wcsread import sky_of_pixels
from cynosure.ground.errors import CynosureError, ImageError
from cynosure.solutions.files.archive import shapes_of
from cynosure.solutions.files.chips import CELESTIAL
from cynosure.solutions.files.contents import Holdings, holdings_of
from cynosure.solutions.files.headerlet import (
    ChipWcs,
    Headerlet,
    HeaderletDamaged,
    Target,
    same_solution,
)
from cynosure.solutions.files.headerletio import headerlet_of_parts, parts_of_headerlet
from cynosure.solutions.names import parse_wcsname
from cynosure.solutions.store.dates import iso_date
from cynosure.solutions.store.entry import EXTENTS, MAX_NAME, Entry, Extent, checked_name
from cynosure.solutions.store.identity import wcs_identity
from cynosure.solutions.store.records import headerlet_of_record, read_record

__all__ = [
    "MAX_HEADERLET_BYTES", "as_headerlet", "entries_of_bytes", "read_entries", "read_headerlet",
]

# The largest headerlet of Hubble's archive has 0.2 MB, one of a mosaic of sixty chips would have
# 20 MB. The limit is smaller than that of a file, because a store receives from the network.
MAX_HEADERLET_BYTES = 64 << 20
GZIP_MAGIC = b"\x1f\x8b"

Shapes = Mapping[Target, tuple[int, int] | None]

# Cards that do not belong to the solution: copies that differ in them are the same solution.
_VOLATILE = {
    key.ljust(8).encode() for key in (
        "", "DATE", "CHECKSUM", "DATASUM", "COMMENT", "HISTORY", "END", "EXTEND", "SIMPLE",
        "XTENSION", "PCOUNT", "GCOUNT", "ORIGIN", "FILENAME",
    )
}


# --- files ----------------------------------------------------------------------------------


def read_entries(path: str | Path) -> Iterator[Entry | CynosureError]:
    """Read every solution of a file: a headerlet, an exposure, a record.

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
    with open_parts(path) as file:
        yield from _entries(file, str(path))


def entries_of_bytes(data: bytes, name: str = "upload") -> Iterator[Entry | CynosureError]:
    """Read every solution of the bytes of such a file."""
    if data.lstrip()[:1] == b"{":
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ImageError(image=name, reason=f"not UTF-8 ({error.reason})") from error
        yield read_record(text, name)
    else:
        parts = parts_of_bytes(data, name)
        yield from _entries(FitsParts(Path(name), io.BytesIO(data), parts, (0, 0), True), name)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_HEADERLET_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(image=str(path), reason=f"cannot be read ({error})") from error


def as_headerlet(payload: bytes, name: str = "solution") -> bytes:
    """Return the file of a solution as a headerlet, also where it is a record.

    Raises
    ------
    HeaderletDamaged, ImageError, CatalogDamaged
        If a headerlet cannot say what the record says.
    """
    if payload.startswith(b"SIMPLE"):
        return payload
    return headerlet_of_record(payload.decode("utf-8"), name).to_bytes()


# --- exposures ------------------------------------------------------------------------------


def _entries(file: FitsParts, name: str) -> Iterator[Entry | CynosureError]:
    if file.parts[0].text("DESTIM") or any(p.name == "SIPWCS" for p in file.parts):
        file.stream.seek(0)
        yield read_headerlet(file.stream.read(MAX_HEADERLET_BYTES + 1), name)
        return
    problem: CynosureError | None = None
    try:
        held = holdings_of(file)
    except ImageError as error:  # its headerlets may be good all the same
        held, problem = Holdings(file, []), error
    found = 0
    for made in itertools.chain(_embedded(held, name), _own(held, name)):
        found += 1
        yield made
    if found and problem is not None and any(p.has("CTYPE1") for p in file.parts):
        yield problem
    if not found:
        raise ImageError(
            image=name, reason=f"holds no solution: {problem.facts.get('reason', '')}"
            if problem is not None else "holds no solution: no WCS and no headerlet",
            hint="Headerlets, exposures with a WCS or HDRLET extensions and *.solution.json "
            "are read.",
        )


def _embedded(held: Holdings, name: str) -> Iterator[Entry | CynosureError]:
    """Give the headerlets in the extensions; an error that one meets is given in its place."""
    shapes = shapes_of(held)
    for part in held.embedded:
        where = f"{name}[{part.name or 'HDRLET'},{part.version}]"
        try:
            if part.size > MAX_HEADERLET_BYTES:
                raise _too_large(where, part.size)
            data = held.file.data_of(part)
            if data.startswith(GZIP_MAGIC):  # also where COMPRESS says otherwise
                data = _unpacked(data, where)
            yield read_headerlet(data, where, shapes=shapes)
        except CynosureError as error:
            yield error


def _own(held: Holdings, name: str) -> Iterator[Entry | CynosureError]:
    """Give the active WCS and the alternates of an exposure, but for what a headerlet holds."""
    shapes, kept = shapes_of(held), list[Headerlet]()
    for letter in (["", *held.letters] if held.has_active else list(held.letters)):
        where = f"{name}[{'alternate ' + letter if letter else 'active WCS'}]"
        try:
            headerlet = held.alternate(letter) if letter else held.active()
            if not any(CELESTIAL.match(f"{k}-") for c in headerlet.chips for k in c.kinds):
                continue
            known = held.kept_as(headerlet, headerlets_only=True) is not None or any(
                same_solution(h, headerlet) and h.wcsname.upper() == headerlet.wcsname.upper()
                for h in kept
            )
            if known:
                continue
            entry = read_headerlet(headerlet.to_bytes(), where, shapes=shapes)
        except CynosureError as error:
            yield error
            continue
        kept.append(headerlet)
        yield entry


def _unpacked(data: bytes, where: str) -> bytes:
    """Unpack gzip, but never more than a headerlet can have."""
    engine = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        out = engine.decompress(data, MAX_HEADERLET_BYTES + 1)
    except zlib.error as error:
        raise HeaderletDamaged(headerlet=where, reason=f"damaged gzip ({error})") from error
    if len(out) > MAX_HEADERLET_BYTES:
        raise _too_large(where, len(out))
    return out


def _too_large(where: str, size: int) -> HeaderletDamaged:
    return HeaderletDamaged(
        headerlet=where, n_bytes=size, limit=MAX_HEADERLET_BYTES,
        reason=f"{size} bytes are no headerlet ({MAX_HEADERLET_BYTES} allowed)",
        hint="A headerlet holds header cards and distortion tables, no pixels.",
    )


# --- headerlets -----------------------------------------------------------------------------


def read_headerlet(
    data: bytes, name: str = "headerlet", *, shapes: Shapes | None = None
) -> Entry:
    """Read a headerlet from its bytes.

    Parameters
    ----------
    data : bytes
        Its file.
    name : str
        Named in errors.
    shapes : mapping of (str, int) to (int, int)
        Rows and columns of the images it belongs to, where they are at hand.

    Raises
    ------
    HeaderletDamaged, ImageError
        If it is not FITS, is cut short, or says neither which exposure it is for nor what it is.
    """
    if len(data) > MAX_HEADERLET_BYTES:
        raise _too_large(name, len(data))
    parts = parts_of_headerlet(data, name)
    headerlet = headerlet_of_parts(parts, name)
    if not headerlet.destim:
        raise HeaderletDamaged(
            headerlet=name, reason="it does not say which exposure it is of (no DESTIM)",
            hint="Mend it, or attach it to its exposure with `cynosure wcs attach`.",
        )
    content, tables = _content(parts, data)
    faults, doubts = tuple(headerlet.faults()), tuple(headerlet.doubts())
    rootname = checked_name(headerlet.destim, name)
    corners, extent, odd = _footprint(headerlet, shapes or {})
    end = parts[-1].start + padded(parts[-1].size)
    return Entry(
        content_sha256=content, rootname=rootname,
        wcsname=headerlet.wcsname, hdrname=headerlet.hdrname, **_provenance(headerlet),
        corners=corners, extent=extent, faults=faults, doubts=doubts,
        notes=(*headerlet.notes, *odd), payload=data[:end], tables=tables,
        identity=wcs_identity(headerlet, rootname, sound=not (faults or doubts)),
    )


def _provenance(headerlet: Headerlet) -> dict[str, Any]:
    """Return the columns that say where a solution came from and how good it is."""
    parsed, model = parse_wcsname(headerlet.wcsname), headerlet.distortion
    idctab = model.idctab
    if not idctab and parsed.start.startswith("IDC_"):
        idctab = parsed.start.removeprefix("IDC_")
    rms = [v if math.isfinite(v) else None for v in headerlet.rms_mas]
    fit_rms, quality = headerlet.get("FIT_RMS"), headerlet.chips[0].get("FITQUAL")
    made_with = (("stwcs", headerlet.text("UPWCSVER")), ("astropy", headerlet.text("PYWCSVER")))
    return {
        "kind": parsed.kind, "distname": headerlet.text("DISTNAME"), "idctab": idctab,
        "npol": model.npol, "d2im": model.d2im, "catalog": headerlet.catalog[:MAX_NAME],
        "method": parsed.method, "rms_ra_mas": rms[0], "rms_dec_mas": rms[1],
        "quality": int(quality) if quality in (-1, 1, 2, 3, 4, 5) else None,
        "fit_rms_mas": float(fit_rms)
        if isinstance(fit_rms, (int, float)) and 0 < fit_rms < math.inf else None,
        "nmatch": headerlet.n_matched or None, "created": iso_date(headerlet.text("DATE")),
        "author": headerlet.text("AUTHOR"), "descrip": headerlet.text("DESCRIP"),
        # Headerlets of cynosure state "cynosure VERSION", those of stwcs the version alone.
        "software": " ".join(
            v if v.startswith("cynosure") else f"{k} {v}" for k, v in made_with if v
        ),
    }


_REFERENCE = ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2")


# --- content --------------------------------------------------------------------------------


def _content(
    parts: Iterable[Part], data: bytes
) -> tuple[str, tuple[tuple[int, int, bytes], ...]]:
    """Return the hash of what a headerlet says, and the units that others share."""
    said, tables = [], []
    for part in parts:
        body = part.data or b""
        if part.size < BLOCK // 2:
            said.append(_said(part, body))
            continue
        start, stop = part.start - len(part.raw), part.start + padded(part.size)
        piece = data[start:stop]
        known = _KNOWN_TABLES.get(piece)
        if known is None:
            known = _remember(piece, _said(part, body))
        digest, words = known
        said.append(words)
        if stop <= len(data):
            tables.append((start, stop - start, digest))
    return hashlib.sha256("\n".join(sorted(said)).encode()).hexdigest(), tuple(tables)


def _said(part: Part, body: bytes) -> str:
    """Return name, version and hash of what a unit says: its cards in our order, and its data."""
    raw = part.raw
    cards = [raw[i : i + CARD] for i in range(0, len(raw) - CARD + 1, CARD)]
    said = sorted([card for card in cards if card[:8] not in _VOLATILE])
    digest = hashlib.sha256(b"".join(said))
    digest.update(body)
    return f"{part.name},{part.version},{digest.hexdigest()}"


# Digests of tables and what they say, by their bytes: the same few are in thousands of headerlets,
# and to find them in a dictionary is faster than SHA-256.
_KNOWN_TABLES: dict[bytes, tuple[bytes, str]] = {}
MAX_KNOWN_TABLES, MAX_KNOWN_BYTES = 512, 1 << 17


def _remember(piece: bytes, said: str) -> tuple[bytes, str]:
    known = (hashlib.sha256(piece).digest(), said)
    if len(piece) <= MAX_KNOWN_BYTES:
        if len(_KNOWN_TABLES) >= MAX_KNOWN_TABLES:
            _KNOWN_TABLES.clear()
        _KNOWN_TABLES[piece] = known
    return known


# --- footprint ------------------------------------------------------------------------------


def _footprint(
    headerlet: Headerlet, shapes: Shapes
) -> tuple[NDArray[np.float64], Extent, list[str]]:
    """Return the corners of the chips that can be placed, how their size is known, what is odd."""
    corners, notes, extents = [], [], []
    for chip in sorted(headerlet.chips, key=lambda c: c.version):
        size, extent = _size(chip, headerlet, shapes.get(chip.target))
        found = _corners(chip, size) if _is_plain(chip) else _by_wcslib(chip, headerlet, size)
        if found is None:
            notes.append(f"SIPWCS,{chip.version}: its place on the sky cannot be told")
        else:
            corners.append(found)
            extents.append(extent)
    worst = min(extents, key=EXTENTS.index) if extents else ""
    return np.array(corners, dtype=float).reshape(-1, 4, 2), worst, notes


def _size(
    chip: ChipWcs, headerlet: Headerlet, shape: tuple[int, int] | None
) -> tuple[tuple[float, float], Extent]:
    """Return columns and rows of a chip, and how they are known.

    Lookup tables span the whole chip, also where the exposure is a part of it. Without them the
    reference pixel is taken as the middle, where the distortion models of whole chips have it.
    """
    if shape is not None:
        return (float(shape[1]), float(shape[0])), "image"
    for at in chip.lookups:
        table = headerlet.table(*at)
        span = _span(table.header) if table is not None else None
        if span is not None:
            return span, "tables"
    size = [2.0 * v if 1.0 <= v < 1e5 else 1024.0
            for v in (chip.number("CRPIX1"), chip.number("CRPIX2"))]
    return (size[0], size[1]), "assumed"


@lru_cache(maxsize=256)
def _span(header: bytes) -> tuple[float, float] | None:
    """Return up to which column and row a lookup table reaches; None where it does not say."""
    part = Part(records_of(header))
    out = []
    for i in (1, 2):
        values = [part.get(f"{k}{i}", d) for k, d in
                  (("NAXIS", 0), ("CDELT", 0.0), ("CRPIX", 0.0), ("CRVAL", 0.0))]
        if not all(isinstance(v, (int, float)) for v in values):
            return None
        n, step, at, value = (float(v) for v in values)  # type: ignore[arg-type]
        # An odd number of nodes has one on each edge, an even one has one in each cell.
        reach = value + (n - n % 2 - at) * step
        if not (n >= 2 and step > 0 and 1.0 < reach < 1e5):
            return None
        out.append(reach)
    return out[0], out[1]


def _is_plain(chip: ChipWcs) -> bool:
    """Say whether a WCS is a tangent plane on the sky of ICRS, north up in its own system."""
    pole = chip.number("LONPOLE", 180.0)
    return (
        chip.kinds == ("RA---TAN", "DEC--TAN") and pole == 180.0
        and str(chip.get("RADESYS", "ICRS")).upper() in ("ICRS", "FK5")
        and not any(math.isnan(chip.number(k, math.nan)) for k in _REFERENCE)
    )


_SQUARES = (("A_2_0", "A_1_1", "A_0_2"), ("B_2_0", "B_1_1", "B_0_2"))


def _corners(chip: ChipWcs, size: tuple[float, float]) -> list[tuple[float, float]] | None:
    """Place the corners of a chip by CD and TAN (Paper II) and the quadratic terms of SIP.

    Cubic terms and tables move a corner by a few pixels, which a footprint need not know.
    """
    ra0, dec0, px, py, cd11, cd12, cd21, cd22 = chip.linear.tolist()
    squares = [[chip.number(term) for term in terms] for terms in _SQUARES]
    out = []
    for x, y in ((0.5, 0.5), (size[0] + 0.5, 0.5), (size[0] + 0.5, size[1] + 0.5),
                 (0.5, size[1] + 0.5)):
        u, v = x - px, y - py
        du, dv = (a * u * u + b * u * v + c * v * v for a, b, c in squares)
        xi = cd11 * (u + du) + cd12 * (v + dv)
        eta = cd21 * (u + du) + cd22 * (v + dv)
        out.append(_deprojected(xi, eta, ra0, dec0))
    return out if all(math.isfinite(a) and math.isfinite(b) for a, b in out) else None


def _by_wcslib(
    chip: ChipWcs, headerlet: Headerlet, size: tuple[float, float]
) -> list[tuple[float, float]] | None:
    """Place the corners of a chip in any projection and frame."""
    try:
        wcs = headerlet.wcs(chip.target, shape=(int(size[1]), int(size[0])))
    except HeaderletDamaged:
        return None
    x, y = np.array([0, size[0], size[0], 0]) - 0.5, np.array([0, 0, size[1], size[1]]) - 0.5
    found = np.stack(sky_of_pixels(wcs, x, y), axis=-1)
    return [(a, d) for a, d in found.tolist()] if np.isfinite(found).all() else None


def _deprojected(xi: float, eta: float, ra0: float, dec0: float) -> tuple[float, float]:
    """Invert the gnomonic projection for one point; of arrays `sky.deproject` does the same."""
    x, y, d0 = math.radians(xi), math.radians(eta), math.radians(dec0)
    below = math.cos(d0) - y * math.sin(d0)
    ra = ra0 + math.degrees(math.atan2(x, below))
    return ra % 360.0, math.degrees(math.atan2(math.sin(d0) + y * math.cos(d0),
                                               math.hypot(x, below)))
