"""The bytes of a FITS file: units, cards, pixels, checksums.

This module interprets only the structure of a file, so that a copy keeps every byte that is not
meant to change, a truncated file is distinguished from another format, and pixels become float32 in
one pass without a second copy (61 million of them in a twentieth of a second).

The structure is FITS 4.0, sections 3 and 4; the checksum its appendix J.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cynosure.ground.errors import ImageError

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = [
    "BLOCK",
    "CARD",
    "Unit",
    "checksum_text",
    "float_pixels",
    "padded",
    "readable_header",
    "read_units",
    "split_cards",
    "stream_integers",
    "stream_pixels",
    "sum32",
]

BLOCK, CARD = 2880, 80  # bytes (FITS 4.0, 3.1 and 4.1)
# Pixels are converted in pieces that fit the second-level cache of a core.
PIECE_BYTES = 1 << 20
# Limit of a header, against reading a damaged file to its end: 10,000 blocks are 360,000 cards.
MAX_HEADER_BLOCKS = 10_000
MAX_AXES = 999  # FITS 4.0, section 4.4.1

# BITPIX to the type in the file.
DTYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}


def padded(size: int) -> int:
    """Return `size` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


@dataclass(frozen=True, eq=False)
class Unit:
    """One header-data unit of a file.

    Attributes
    ----------
    index : int
        0-based number in the file.
    raw : bytes
        The header with END and padding.
    data_start, data_size : int
        Position and size of the data in the file, without padding.
    first : dict of str to bytes, optional
        The first card of each keyword, where an index of them is at hand.
    """

    index: int
    raw: bytes
    data_start: int
    data_size: int
    first: dict[str, bytes] | None = field(default=None, repr=False)

    def value(self, keyword: str) -> str:
        """Return the text of a value as :func:`card_value` does."""
        if self.first is None or keyword not in self.first:
            return "" if self.first is not None else card_value(self.raw, keyword)
        body = self.first[keyword]
        plain = body.startswith(keyword.ljust(8).encode() + b"=")
        return card_value(body if plain else self.raw, keyword)

    @cached_property
    def header(self) -> Header:
        """The header of the image for astropy, without cards that cannot be read.

        Of a compressed image it is that of the image, not that of the table it is stored in.
        """
        return readable_header(image_records(self.raw) if self.is_compressed else self.raw)[0]

    @cached_property
    def unreadable(self) -> tuple[str, ...]:
        """The keywords of the cards that cannot be read."""
        return readable_header(self.raw)[1]

    @cached_property
    def is_compressed(self) -> bool:
        """Whether this is a table that holds a tile-compressed image."""
        return b"BINTABLE" in self.raw[:CARD] and self.value("ZIMAGE") == "T"

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Length of the axes, slowest first, of the image (also of a compressed one)."""
        prefix = "ZNAXIS" if self.is_compressed else "NAXIS"
        n = min(_integer(self.value(prefix)), MAX_AXES)
        return tuple(_integer(self.value(f"{prefix}{i}")) for i in range(n, 0, -1))

    @cached_property
    def is_image(self) -> bool:
        """Whether it is an image with pixels, compressed or not."""
        kind = self.value("XTENSION")
        plain = kind in ("", "IMAGE", "IUEIMAGE") and self.value("GROUPS") != "T"
        return (plain or self.is_compressed) and bool(self.shape) and min(self.shape) > 0

    @property
    def is_table(self) -> bool:
        """Whether it is anything but an image unit: a table, compressed or not, or foreign."""
        return self.value("XTENSION") not in ("", "IMAGE", "IUEIMAGE")

    @cached_property
    def name(self) -> str:
        """EXTNAME in capitals."""
        return self.value("EXTNAME").upper()

    @property
    def plane_of(self) -> tuple[int, int] | None:
        """The HDU and plane of a cube whose WCS this unit holds; None for any other unit."""
        if self.name != "WCS" or not self.value("PLANEHDU"):
            return None
        return _integer(self.value("PLANEHDU")), _integer(self.value("PLANE"))

    @property
    def version(self) -> int:
        """EXTVER, 1 where absent."""
        return _integer(self.value("EXTVER"), 1)


def printable(raw: bytes) -> str:
    """Return header bytes as printable ASCII, with question marks for bytes that are not."""
    text = raw.decode("latin-1")
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if " " <= c <= "~" else ("?" if ord(c) > 127 else " ") for c in text)


# A card that conforms to the standard; astropy parses the others, which it partly corrects.
PLAIN_CARD = re.compile(
    r"(?:COMMENT|HISTORY|CONTINUE| {8}).*|[A-Z0-9_-]{1,8} *= *"
    r"(?:'(?:[^']|'')*'|[TF]|[+-]?(?:\d+\.?\d*|\.\d+)(?:[EDed][+-]?\d+)?)? *(?:/.*)?"
)


def readable_header(raw: bytes) -> tuple[Header, tuple[str, ...]]:
    """Return header bytes as a header of readable cards, and the keywords of the others."""
    from astropy.io.fits import Card, Header, VerifyError

    text = printable(raw)
    kept, bad = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy reports the cards that it corrects
        for start in range(0, len(text), CARD):
            record = text[start : start + CARD]
            if PLAIN_CARD.fullmatch(record) or not record.strip():
                kept.append(record)
                continue
            if record.rstrip() == "END":
                break
            try:
                card = Card.fromstring(record)
                kept.append(str(Card(card.keyword, card.value, card.comment)))
            except (VerifyError, ValueError, TypeError):
                bad.append(record[:8].strip())
        return Header.fromstring("".join(kept)), tuple(bad)


# Cards of the table that holds a compressed image, which are not cards of the image.
TABLE_CARD = re.compile(
    r"XTENSION|BITPIX|NAXIS\d*|[PG]COUNT|TFIELDS|T(TYPE|FORM|UNIT|DIM|NULL|SCAL|ZERO|DISP)\d+|THEAP"
    r"|Z(IMAGE|CMPTYPE|TILE\d+|NAME\d+|VAL\d+|SCALE|ZERO|BLANK|QUANTIZ|DITHER0|SIMPLE|TENSION|EXTEND"
    r"|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|HECKSUM|DATASUM|MASKCMP)|CHECKSUM|DATASUM"
)


def image_records(raw: bytes) -> bytes:
    """Return the header of the image that a table of compressed tiles holds."""
    n = card_int(raw, "ZNAXIS")
    lines = [
        "XTENSION= 'IMAGE   '",
        f"BITPIX  = {card_int(raw, 'ZBITPIX'):>20}",
        f"NAXIS   = {n:>20}",
        *(f"NAXIS{i}  = {card_int(raw, f'ZNAXIS{i}'):>20}" for i in range(1, n + 1)),
        f"PCOUNT  = {0:>20}",
        f"GCOUNT  = {1:>20}",
    ]
    own = [body for key, body in split_cards(raw) if not TABLE_CARD.fullmatch(key)]
    return b"".join([*(line.encode().ljust(CARD) for line in lines), *own, b"END".ljust(CARD)])


def split_cards(raw: bytes) -> list[tuple[str, bytes]]:
    """Return (keyword, 80 bytes) of the records before END; CONTINUE and blank ones included."""
    end = raw.find(b"END".ljust(CARD))
    starts = range(0, len(raw) - CARD + 1 if end < 0 or end % CARD else end, CARD)
    known = [_KEYWORDS.get(raw[start : start + 8]) for start in starts]
    if None not in known:  # nearly always: the first END is the end
        return list(zip(known, [raw[start : start + CARD] for start in starts]))  # type: ignore[arg-type]
    return _split_slowly(raw)


def _split_slowly(raw: bytes) -> list[tuple[str, bytes]]:
    """Split cards of which some are met for the first time, or have no plain keyword."""
    out = []
    for start in range(0, len(raw) - CARD + 1, CARD):
        record = raw[start : start + CARD]
        keyword = _KEYWORDS.get(record[:8])
        if keyword is None:
            keyword = record[:8].decode("latin-1").rstrip().upper()
            if keyword == "END" and not record[8:].strip():
                break
            if record.startswith(b"HIERARCH "):
                keyword = record[9:].split(b"=", 1)[0].decode("latin-1").strip().upper()
            elif keyword not in ("END", "HIERARCH") and len(_KEYWORDS) < MAX_KEYWORDS:
                _KEYWORDS[record[:8]] = keyword
        out.append((keyword, record))
    return out


# Keywords by their bytes, to decode each once: a few hundred make up nearly all headers.
_KEYWORDS: dict[bytes, str] = {}
MAX_KEYWORDS = 4096  # limit of the dictionary, for files with random keywords


def card_value(raw: bytes, keyword: str) -> str:
    """Return the text of a fixed-format value, quotes stripped; empty where the card is absent."""
    key = keyword.ljust(8).encode() + b"="
    start = 0
    while (found := raw.find(key, start)) >= 0:
        if found % CARD == 0:
            body = raw[found + 9 : found + CARD].decode("latin-1").strip()
            if body.startswith("'"):
                return body[1:].split("'", 1)[0].strip()
            return body.split("/", 1)[0].strip()
        start = found + 1
    return ""


def card_int(raw: bytes, keyword: str, default: int = 0) -> int:
    """Return the integer value of a structural card; `default` where it is absent or no number."""
    return _integer(card_value(raw, keyword), default)


def _integer(text: str, default: int = 0) -> int:
    try:
        return int(float(text)) if text else default
    except (ValueError, OverflowError):
        return default


def read_units(
    stream: BinaryIO, name: str, size: int | None = None, *, start: int = 0
) -> Iterator[Unit]:
    """Walk the units of a FITS stream; the stream is left at the start of each unit's data.

    Parameters
    ----------
    stream : binary file
        At the start of the file. It may be moved by the caller between units if it can seek.
    name : str
        Named in errors.
    size : int, optional
        Length of the file in bytes, to detect truncation before its pixels are read.
    start : int
        Offset of the first unit to read, for the units behind a damaged one.

    Raises
    ------
    ImageError
        If it is not FITS, or ends within a header or within data.
    """
    index, position = int(start > 0), start
    while True:
        if stream.seekable():
            stream.seek(position)
        raw = _read_header(stream, name, index)
        if raw is None:
            return
        unit = _unit(index, raw, position, name, size)
        yield unit
        position = unit.data_start + padded(unit.data_size)
        index += 1


def _unit(index: int, raw: bytes, position: int, name: str, size: int | None) -> Unit:
    """Return the unit of a header; refuse impossible axes and data that are cut short."""
    data_size, keyword, n = _measured(raw)
    if keyword:
        raise ImageError(
            image=name, hdu=index, hint="Fetch or copy the file again.",
            reason=f"HDU {index} is damaged ({keyword} = {n}, where 0 to {MAX_AXES} is "
            "possible)",
        )
    data_start = position + len(raw)
    if size is not None and data_start + data_size > size:
        raise ImageError(
            image=name,
            n_bytes=size,
            needed=data_start + data_size,
            hdu=index,
            reason=f"truncated: it ends at byte {size}, "
            f"HDU {index} needs {data_start + data_size}",
            hint="Fetch or copy the file again.",
        )
    return Unit(index, raw, data_start, data_size)


@lru_cache(maxsize=64)  # lookup tables have the same few headers in thousands of files
def _measured(raw: bytes) -> tuple[int, str, int]:
    """Return the size of the data, or keyword and value of an impossible number of axes.

    Other readers would loop over such a number for hours.
    """
    for keyword in ("NAXIS", "ZNAXIS") if b"BINTABLE" in raw[:CARD] else ("NAXIS",):
        n = card_int(raw, keyword)
        if not 0 <= n <= MAX_AXES:
            return 0, keyword, n
    return _data_size(raw), "", 0


def _read_header(stream: BinaryIO, name: str, index: int) -> bytes | None:
    blocks = []
    for number in range(MAX_HEADER_BLOCKS):
        block = stream.read(BLOCK)
        if number == 0:
            start = block[:10]
            if index == 0 and not start.startswith(b"SIMPLE  ="):
                raise ImageError(
                    image=name,
                    reason="empty file" if not block else "not a FITS file",
                    hint="FITS (.fits, .fits.fz, .fits.gz), TIFF and PNG are read.",
                )
            if index > 0 and not start.startswith(b"XTENSION"):
                return None  # the end, or special records after the last unit
        blocks.append(block)
        if _has_end(block):
            return b"".join(blocks)
        if len(block) < BLOCK:
            break
    raise ImageError(
        image=name,
        hdu=index,
        reason=f"truncated: the header of HDU {index} has no END",
        hint="Fetch or copy the file again.",
    )


_END = b"END".ljust(CARD)


def _has_end(block: bytes) -> bool:
    start = 0
    while (found := block.find(_END, start)) >= 0:
        if found % CARD == 0:
            return True
        start = found + 1
    return block[-CARD:].rstrip(b" \0") == b"END"


def _data_size(raw: bytes) -> int:
    """Return the bytes of data: |BITPIX| / 8 GCOUNT (PCOUNT + prod NAXISn) (FITS 4.0, eq. 2)."""
    n = min(card_int(raw, "NAXIS"), MAX_AXES)  # a damaged card may have any number
    if n <= 0:
        return 0
    axes = [card_int(raw, f"NAXIS{i}") for i in range(1, n + 1)]
    groups = axes[0] == 0 and card_value(raw, "GROUPS") == "T"
    if groups:
        axes = axes[1:]
    count = 1
    for axis in axes:
        count *= axis
    extra = card_int(raw, "PCOUNT") if index_or_groups(raw, groups) else 0
    size = abs(card_int(raw, "BITPIX")) // 8 * max(card_int(raw, "GCOUNT", 1), 1) * (extra + count)
    return max(size, 0)


def index_or_groups(raw: bytes, groups: bool) -> bool:
    """Say whether PCOUNT counts: in extensions and random groups, not in a primary image."""
    return groups or raw.startswith(b"XTENSION")


def stream_pixels(
    stream: BinaryIO, unit: Unit, offset: int, shape: tuple[int, int], name: str
) -> tuple[NDArray[np.float32], bool]:
    """Read an image plane as float32, piece by piece.

    Parameters
    ----------
    stream : binary file
        Placed at the first byte of the plane (`offset` into the unit's data).
    unit : Unit
    offset : int
        Byte offset of the plane, for errors only.
    shape : (int, int)
        Rows and columns.
    name : str

    Returns
    -------
    data : (ny, nx) ndarray of float32
        BSCALE and BZERO applied, BLANK as NaN.
    all_finite : bool
    """
    dtype = np.dtype(DTYPES[card_int(unit.raw, "BITPIX")])
    scaling = Scaling.of(unit.raw)
    out = np.empty(shape, dtype=np.float32)
    flat = out.reshape(-1)
    step = PIECE_BYTES // dtype.itemsize
    buffer = np.empty(min(step, flat.size) * dtype.itemsize, dtype=np.uint8)
    finite = True
    for start in range(0, flat.size, step):
        piece = flat[start : start + step]
        raw = buffer[: piece.size * dtype.itemsize]
        _fill(stream, raw.data, name, unit, offset + start * dtype.itemsize)
        finite &= scaling.convert_into(piece, raw.view(dtype))
    return out, finite


def _fill(stream: BinaryIO, view: memoryview, name: str, unit: Unit, at: int) -> None:
    done = 0
    while done < len(view):
        try:
            n = stream.readinto(view[done:])  # type: ignore[attr-defined]
        except (EOFError, OSError, ValueError) as error:  # a damaged gzip stream, a disk error
            raise ImageError(
                image=name,
                reason=f"HDU {unit.index} cannot be read ({error})",
                hint="Fetch or copy the file again.",
            ) from error
        if not n:
            raise ImageError(
                image=name,
                hdu=unit.index,
                reason=f"truncated: the data of HDU {unit.index} end at byte {at + done} "
                f"of {unit.data_size}",
                hint="Fetch or copy the file again.",
            )
        done += n


@dataclass(frozen=True, slots=True)
class Scaling:
    """The conversion of stored numbers to pixels: ``BZERO + BSCALE * stored``, BLANK is NaN."""

    scale: float = 1.0
    zero: float = 0.0
    blank: int | None = None

    @classmethod
    def of(cls, raw: bytes) -> Scaling:
        """Read the scaling of a header."""
        blank = card_value(raw, "BLANK")
        integer = card_int(raw, "BITPIX") > 0
        return cls(
            _float(card_value(raw, "BSCALE"), 1.0) or 1.0,
            _float(card_value(raw, "BZERO"), 0.0),
            card_int(raw, "BLANK") if integer and blank else None,
        )

    def convert_into(self, out: NDArray[np.float32], stored: NDArray) -> bool:
        """Convert into `out`; return whether every pixel is a finite number."""
        if stored.dtype.kind in "iu":
            # A float32 has 24 bits; wider integers are scaled as float64 before rounding.
            if self.scale == 1.0 and stored.dtype.itemsize <= 2:
                out[...] = stored
                if self.zero:
                    out += np.float32(self.zero)
            else:
                out[...] = stored.astype(np.float64) * self.scale + self.zero
            if self.blank is None:
                return True
            blank = stored == self.blank
            if not blank.any():
                return True
            out[blank] = np.nan
            return False
        with np.errstate(over="ignore", invalid="ignore"):
            out[...] = stored
            if self.scale != 1.0:
                out *= np.float32(self.scale)
            if self.zero:
                out += np.float32(self.zero)
            # A finite sum excludes NaN and infinities; otherwise test each pixel.
            return bool(np.isfinite(out.sum(dtype=np.float64)) or np.isfinite(out).all())


def stream_integers(
    stream: BinaryIO, unit: Unit, offset: int, shape: tuple[int, int], name: str
) -> NDArray[np.int64]:
    """Read a plane of flags with all its bits; scaled or floating numbers are rounded."""
    dtype = np.dtype(DTYPES[card_int(unit.raw, "BITPIX")])
    raw = np.empty(shape[0] * shape[1] * dtype.itemsize, dtype=np.uint8)
    _fill(stream, raw.data, name, unit, offset)
    scaling = Scaling.of(unit.raw)
    stored = raw.view(dtype)
    if dtype.kind in "iu" and scaling.scale == 1.0 and float(scaling.zero).is_integer():
        return (stored.astype(np.int64) + int(scaling.zero)).reshape(shape)
    values = stored.astype(np.float64) * scaling.scale + scaling.zero
    return np.rint(np.nan_to_num(values)).astype(np.int64).reshape(shape)


def float_pixels(array: NDArray) -> tuple[NDArray[np.float32], bool]:
    """Return an array as float32 in the machine's byte order, and whether all of it is finite."""
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):
        out = np.ascontiguousarray(array, dtype=np.float32)
    if array.dtype.kind in "iu":
        return out, True
    return out, bool(np.isfinite(out.sum(dtype=np.float64)) or np.isfinite(out).all())


def _float(text: str, default: float) -> float:
    try:
        return float(text.replace("D", "E").replace("d", "e")) if text else default
    except ValueError:
        return default


def sum32(data: bytes | NDArray[np.uint8], start: int = 0) -> int:
    """Return the 32-bit ones'-complement sum of big-endian words; `data` is padded with zeros."""
    array = np.frombuffer(data, dtype=np.uint8) if not isinstance(data, np.ndarray) else data
    whole = array.size // 4 * 4
    total = start + _sum_words(array[:whole])
    if whole < array.size:
        total += int.from_bytes(bytes(array[whole:]).ljust(4, b"\0"), "big")
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def _sum_words(array: NDArray[np.uint8]) -> int:
    # Swapped into the machine's order first: the sum over that is several times faster.
    return int(array.view(">u4").astype(np.uint32).sum(dtype=np.uint64))


def checksum_text(total: int) -> str:
    """Encode the complement of a 32-bit sum as the 16 letters of CHECKSUM (FITS 4.0, J.2)."""
    value = 0xFFFFFFFF - total
    letters = bytearray(16)
    for i, byte in enumerate(value.to_bytes(4, "big")):
        quotient, remainder = byte // 4 + ord("0"), byte % 4
        group = [quotient + remainder, quotient, quotient, quotient]
        while any(58 <= c <= 64 or 91 <= c <= 96 for c in group):
            for a, b in ((0, 1), (2, 3)):
                if any(58 <= group[k] <= 64 or 91 <= group[k] <= 96 for k in (a, b)):
                    group[a] += 1
                    group[b] -= 1
        for k, letter in enumerate(group):
            letters[4 * k + i] = letter
    return (letters[-1:] + letters[:-1]).decode("ascii")
