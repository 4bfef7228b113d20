"""Writing solved images: new WCS cards, every other byte as it was.

The data of the source are copied as bytes, so that scaled integers, compressed tiles and tables
stay what they are; of the headers only the cards that are meant to change do. Everything goes to a
temporary file that takes its name when it is whole and on the disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from cynosure.data.fits.alternates import (
    Records,
    alternate_letters,
    archive_records,
    primary_keyword,
    records_of,
    strip_records,
)
from cynosure.data.fits.blocks import (
    CARD,
    Unit,
    card_value,
    checksum_text,
    padded,
    read_units,
    sum32,
)
from cynosure.data.fits.file import open_fits
from cynosure.data.fits.wcsread import is_wcs_keyword
from cynosure.data.raster import RASTERS, read_raster
from cynosure.ground.errors import ImageError, SettingError
from cynosure.ground.files import atomic_path

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = ["header_beside", "output_name", "write_header_only", "write_solved"]

# An HDU, or an HDU and a plane of its cube.
Chip = int | tuple[int, int]

# Read, summed and written in pieces that stay in the cache of one core.
PIECE_BYTES = 1 << 20
# The sum of the header that a compressed image had before it was compressed: no longer true.
STALE = ("ZHECKSUM",)
# Cards that a header without pixels states itself.
RESTATED = ("IMAGEW", "IMAGEH", "CHECKSUM", "DATASUM")
SUFFIXES = (".fits", ".fit", ".fts", ".fz", ".gz", ".bz2", ".xz", *RASTERS)


def output_name(source: str | Path, ending: str) -> str:
    """Return the name of a product of an image: its own, without suffixes, with an ending.

    Examples
    --------
    >>> output_name("night/m81.fits.fz", "_wcs.fits")
    'm81_wcs.fits'
    """
    name = Path(source).name
    while (suffix := Path(name).suffix.lower()) in SUFFIXES and name != suffix:
        name = name[: -len(suffix)]
    return name + ending


def write_solved(
    source: str | Path,
    out: str | Path,
    chips: Mapping[Chip, tuple[Header, Header]],
    *,
    overwrite: bool = False,
    archive: str | None = "ORIGINAL",
    active: bool = True,
) -> Path:
    """Write an image with new WCSs, pixels and all other cards kept.

    Parameters
    ----------
    source : path
        FITS, or a picture, which becomes FITS. What gzip compressed is written plain; compressed
        tiles stay compressed.
    out : path
        The file to write; the source itself for a change in place.
    chips : mapping of HDU, or (HDU, plane), to (wcs, extra)
        The cards of the new WCS, and others, which replace those of the same keyword. The cards
        of a plane of a cube become an extension ``WCS`` without data at the end of the file.
    overwrite : bool
        Whether `out` may be there already.
    archive : str or None
        The name that the old WCS gets as an alternate where it has none; None drops the old WCS.
        A WCS of the same WCSNAME as the new one is replaced: a repeat adds nothing.
    active : bool
        Whether the new WCS becomes the one that readers use. Otherwise the old one stays, card
        for card, and the new one is added as an alternate.

    Raises
    ------
    OutputExists, OutputError
        Nothing half-written is left.
    ImageError
        If the source cannot be read.
    """
    source, out = Path(source), Path(out)
    if source.suffix.lower() in RASTERS:
        if out.suffix.lower() in RASTERS:
            raise SettingError(
                "{path}: a picture cannot hold a WCS",
                path=str(out),
                hint="Use --out; the result is a FITS file.",
            )
        return _write_raster(source, out, chips, overwrite)
    if _same(source, out):
        overwrite, out = True, source.resolve()
        if _is_packed(source):
            raise SettingError(
                "{path}: a compressed file cannot be changed in place",
                path=str(source),
                hint="Use --out; the result is written uncompressed.",
            )
    stream, size = open_fits(source)
    with (
        stream,
        atomic_path(out, overwrite=overwrite) as temporary,
        temporary.open("r+b", buffering=0) as sink,
    ):
        if out == source.resolve():
            temporary.chmod(source.stat().st_mode & 0o7777)
        _copy(stream, source.name, size, sink, chips, archive, active)
    return out


def _same(a: Path, b: Path) -> bool:
    return b.exists() and a.exists() and a.samefile(b)


def _is_packed(path: Path) -> bool:
    with path.open("rb") as stream:
        return not stream.read(9).startswith(b"SIMPLE")


def _copy(
    stream: BinaryIO,
    name: str,
    size: int | None,
    sink: BinaryIO,
    chips: Mapping[Chip, tuple[Header, Header]],
    archive: str | None,
    active: bool,
) -> None:
    missing = {chip if isinstance(chip, int) else chip[0] for chip in chips}
    end = 0
    for unit in read_units(stream, name, size):
        missing.discard(unit.index)
        end = unit.data_start + padded(unit.data_size)
        if unit.plane_of in chips:
            continue  # the WCS of a plane that gets a new one
        if unit.index in chips:
            wcs, extra = chips[unit.index]
            make = solved_records if active else records_beside
            records = make(records_of(unit.raw), wcs, extra, archive)
            _write_unit(stream, name, unit, records, sink)
        else:
            _write_all(sink, unit.raw)
            _copy_data(stream, name, unit.data_size, sink)
    if missing:
        raise ImageError(image=name, reason=f"it has no HDU {', '.join(map(str, sorted(missing)))}")
    stream.seek(end)
    while rest := stream.read(PIECE_BYTES):  # special records after the last unit
        _write_all(sink, rest)
    for chip in sorted(c for c in chips if isinstance(c, tuple)):
        wcs, extra = chips[chip]
        at = _lines(
            f"PLANEHDU= {chip[0]:>20} / HDU of the cube, from 0",
            f"PLANE   = {chip[1]:>20} / plane of the cube, from 0",
        )
        _write_wcs_unit(sink, _cards_of(wcs) + at + _cards_of(extra), chip[1] + 1)


def _write_unit(stream: BinaryIO, name: str, unit: Unit, records: Records, sink: BinaryIO) -> None:
    """Write a unit: room for its header, its data while they are summed, then the header."""
    start = sink.tell()
    length = len(_header_bytes(records, "0", "0" * 16))
    sink.seek(start + length)
    total = _copy_data(stream, name, unit.data_size, sink, summed=True)
    end = sink.tell()
    blank = _header_bytes(records, str(total), "0" * 16)
    final = _header_bytes(records, str(total), checksum_text(sum32(blank, total)))
    sink.seek(start)
    _write_all(sink, final)
    sink.seek(end)


def _copy_data(
    stream: BinaryIO, name: str, size: int, sink: BinaryIO, *, summed: bool = False
) -> int:
    """Copy data with fresh padding; return their 32-bit sum where it is asked for."""
    left, total = size, 0
    buffer = np.empty(PIECE_BYTES, dtype=np.uint8)
    view = buffer.data
    while left:
        n = _read_into(stream, view[: min(left, PIECE_BYTES)], name)
        total = sum32(buffer[:n], total) if summed else 0
        _write_all(sink, view[:n])
        left -= n
    _write_all(sink, b"\0" * (padded(size) - size))
    return total


def _read_into(stream: BinaryIO, view: memoryview, name: str) -> int:
    """Fill the view; short reads would upset the words of the sum."""
    done = 0
    while done < len(view):
        try:
            n = stream.readinto(view[done:])  # type: ignore[attr-defined]
        except (EOFError, OSError) as error:
            raise ImageError(image=name, reason=f"cannot be read ({error})") from error
        if not n:
            raise ImageError(image=name, reason="truncated while it was copied")
        done += n
    return done


def _write_all(sink: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[sink.write(view) :]


# --- cards ----------------------------------------------------------------------------------


def solved_records(records: Records, wcs: Header, extra: Header, archive: str | None) -> Records:
    """Return the cards of a header with a new WCS.

    The new cards stand where the old WCS began, or at the end.
    """
    new = _cards_of(wcs)
    name = next((b for k, b in new if k == "WCSNAME"), None)
    at = next((i for i, (k, _) in enumerate(records) if is_wcs_keyword(k)), len(records))
    old_name = next((b for k, b in records if k == "WCSNAME"), None)
    keep = archive is not None and (name is None or _value(old_name) != _value(name))
    if keep:
        rest, _ = archive_records(records, str(archive))
    else:
        rest, _ = strip_records(records)
    at = min(at, len(rest))
    rest = [r for r in rest if r[0] not in STALE]
    return _with_extra(rest[:at] + new + rest[at:], _cards_of(extra))


def records_beside(records: Records, wcs: Header, extra: Header, archive: str | None) -> Records:
    """Return the cards of a header that keeps its WCS, with a new one as an alternate.

    An alternate of the same WCSNAME is replaced. Where there is no WCS, the new one is it.
    """
    if not any(k == "CTYPE1" for k, _ in records):
        return solved_records(records, wcs, extra, archive)
    new = _cards_of(wcs)
    name = _value(next((b for k, b in new if k == "WCSNAME"), None))
    for letter in alternate_letters(records):
        body = next((b for k, b in records if k == f"WCSNAME{letter}"), None)
        if name and _value(body) == name:
            records = [r for r in records if not primary_keyword(r[0], letter)]
    rest = strip_records(records)[0]
    beside, _ = archive_records(rest + new, name or str(archive))
    records = [r for r in records if r[0] not in STALE]
    return _with_extra(records, beside[len(rest):] + _cards_of(extra))


def header_beside(old: Header, wcs: Header, extra: Header) -> Header:
    """Return a header of an old WCS with a new one as an alternate, and other cards."""
    from astropy.io.fits import Header

    records = records_beside(_cards_of(old), wcs, extra, None)
    return Header.fromstring(b"".join(body for _, body in records).decode("ascii"))


def _value(body: bytes | None) -> str:
    return card_value(body.ljust(CARD), body[:8].decode("ascii").strip()) if body else ""


def _with_extra(records: Records, extra: Records) -> Records:
    """Replace cards of the same keyword in their place, append the others."""
    out = list(records)
    last = max((i for i, r in enumerate(out) if r[1].strip()), default=-1) + 1
    index = {k: i for i, (k, _) in reversed(list(enumerate(out)))}
    tail: Records = []
    for keyword, body in extra:
        if keyword not in ("COMMENT", "HISTORY", "") and keyword in index:
            out[index[keyword]] = (keyword, body)
        elif (keyword, body) not in out or keyword == "":
            tail.append((keyword, body))
    return out[:last] + tail + out[last:]


def _cards_of(header: Header) -> Records:
    return records_of(
        header.tostring(sep="", endcard=True, padding=True).encode("ascii", "replace")
    )


def _header_bytes(records: Records, datasum: str, checksum: str) -> bytes:
    """Return a whole header with its two sums in their cards."""
    sums = {
        "CHECKSUM": f"CHECKSUM= '{checksum}'   / of the HDU".encode().ljust(CARD),
        "DATASUM": f"DATASUM = '{datasum:<10}'         / of the data".encode().ljust(CARD),
    }
    seen, body = set(), bytearray()
    for keyword, record in records:
        if keyword in sums:
            if keyword not in seen:
                body += sums[keyword]
            seen.add(keyword)
        else:
            body += record
    for keyword in ("CHECKSUM", "DATASUM"):
        if keyword not in seen:
            body += sums[keyword]
    body += b"END".ljust(CARD)
    return bytes(body.ljust(padded(len(body))))


# --- headers alone, and pictures ------------------------------------------------------------


def write_header_only(
    out: str | Path,
    headers: Header | Sequence[Header],
    shapes: tuple[int, int] | Sequence[tuple[int, int]],
    *,
    overwrite: bool = False,
) -> Path:
    """Write WCS headers without pixels: ``NAME.wcs.fits``.

    One header is a primary unit without data; several are extensions after an empty primary one.
    IMAGEW and IMAGEH say how large the image is.

    Parameters
    ----------
    out : path
    headers : Header or sequence of Header
    shapes : (ny, nx), or one for each header
    overwrite : bool
    """
    listed: list[Header] = list(headers) if isinstance(headers, (list, tuple)) else [headers]
    sizes = np.reshape(shapes, (-1, 2)).tolist()
    with (
        atomic_path(out, overwrite=overwrite) as temporary,
        temporary.open("r+b", buffering=0) as sink,
    ):
        if len(listed) > 1:
            _write_all(sink, _summed(_structure(True, 8, ())))
        for number, (header, (ny, nx)) in enumerate(zip(listed, sizes), start=1):
            kept = [r for r in _cards_of(header) if r[0] not in RESTATED]
            size = _lines(
                f"IMAGEW  = {nx:>20} / [px] width of the image",
                f"IMAGEH  = {ny:>20} / [px] height of the image",
            )
            _write_wcs_unit(sink, kept + size, number if len(listed) > 1 else None)
    return Path(out)


def _write_wcs_unit(sink: BinaryIO, cards: Records, version: int | None) -> None:
    """Write a unit of cards without data: the primary one, or an extension with an EXTVER."""
    records = _structure(version is None, 8, ())
    if version is not None:
        records += _lines("EXTNAME = 'WCS     '", f"EXTVER  = {version:>20}")
    _write_all(sink, _summed(records + cards))


def _summed(records: Records) -> bytes:
    """Return the header of a unit without data, with its sums."""
    return _header_bytes(records, "0", checksum_text(sum32(_header_bytes(records, "0", "0" * 16))))


def _lines(*lines: str) -> Records:
    return [(line[:8].strip(), line.encode().ljust(CARD)) for line in lines]


def _structure(primary: bool, bitpix: int, shape: tuple[int, ...]) -> Records:
    """Return the mandatory cards of an image unit; no shape for a unit without data."""
    first = f"SIMPLE  = {'T':>20}" if primary else "XTENSION= 'IMAGE   '"
    lines = [first, f"BITPIX  = {bitpix:>20}", f"NAXIS   = {len(shape):>20}"]
    lines += [f"NAXIS{i}  = {n:>20}" for i, n in enumerate(reversed(shape), start=1)]
    lines += [f"EXTEND  = {'T':>20}"] if primary else [f"PCOUNT  = {0:>20}", f"GCOUNT  = {1:>20}"]
    return _lines(*lines)


def _write_raster(
    source: Path, out: Path, chips: Mapping[Chip, tuple[Header, Header]], overwrite: bool
) -> Path:
    """Write a picture as FITS: its own numbers, first row first, with the new header."""
    pixels, when = read_raster(source)
    wcs, extra = chips[0]
    bitpix, zero, stored = _stored(pixels)
    records = _structure(True, bitpix, pixels.shape)
    if zero:
        records += _lines(f"BZERO   = {zero:>20}", f"BSCALE  = {1:>20}")
    if when:
        records += _lines(f"DATE-OBS= '{when}'")
    records = _with_extra(records + _cards_of(wcs), _cards_of(extra))
    data = stored.tobytes()
    data += b"\0" * (padded(len(data)) - len(data))
    total = sum32(data)
    blank = _header_bytes(records, str(total), "0" * 16)
    header = _header_bytes(records, str(total), checksum_text(sum32(blank, total)))
    with (
        atomic_path(out, overwrite=overwrite) as temporary,
        temporary.open("r+b", buffering=0) as sink,
    ):
        _write_all(sink, header)
        _write_all(sink, data)
    return out


def _stored(pixels: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Return BITPIX, BZERO and the numbers as FITS stores them."""
    if pixels.dtype == np.uint8:
        return 8, 0, pixels
    if pixels.dtype == np.uint16:
        return 16, 32768, (pixels.astype(np.int32) - 32768).astype(">i2")
    if pixels.dtype.kind in "iu":
        return 32, 0, pixels.astype(">i4")
    return -32, 0, pixels.astype(">f4")
