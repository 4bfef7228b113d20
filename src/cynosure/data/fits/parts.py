"""A FITS file as parts: read lazily, changed card by card, written in one pass.

A part has its header as 80-byte records, and data that stay in the file until they are copied.
Unchanged data are copied by the operating system, byte for byte, so that only headers need memory.
The result replaces the file when it is complete and on the disk.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from cynosure.data.fits.alternates import Records, records_of
from cynosure.data.fits.blocks import (
    BLOCK,
    CARD,
    Unit,
    checksum_text,
    padded,
    printable,
    read_units,
    readable_header,
    sum32,
)
from cynosure.data.fits.file import stamp_of
from cynosure.data.fits.opening import next_unit, opened
from cynosure.ground.errors import ImageError, OutputError, SettingError, Temporary
from cynosure.ground.files import atomic_path

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = [
    "FitsParts",
    "Part",
    "Value",
    "card",
    "new_parts",
    "open_parts",
    "parts_of_bytes",
    "value_of",
]

Value = str | int | float | bool | None

PIECE_BYTES = 1 << 22  # bytes copied at a time, where the operating system cannot copy
SUMMED_BYTES = 1 << 20  # bytes summed at a time: they fit the second-level cache of a core
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([EDed][+-]?\d+)?")
# Longest text on a first card, and on each that continues it (with "&": FITS 4.0, 4.2.1.2).
LONGEST, CONTINUED = 67, 67
SUMS = ("CHECKSUM", "DATASUM")
# The checksum of the uncompressed image of a compressed one; invalid once its header has changed.
STALE = "ZHECKSUM"


# --- cards ----------------------------------------------------------------------------------


@lru_cache(maxsize=4096)  # the headerlets of an archive share most of their cards
def value_of(body: bytes) -> Value:
    """Return the value of a card with its CONTINUEs; None for commentary and for no value.

    Examples
    --------
    >>> value_of(b"CRVAL1  =       137.8644413309 / [deg]")
    137.8644413309
    >>> value_of(b"HDRNAME = 'it''s     ' / name")
    "it's"
    """
    if body[8:9] != b"=":
        return None
    text = printable(body[9:CARD]).strip()
    if text.startswith("'"):
        return _long_text(body)
    text = text.split("/", 1)[0].strip()
    if text in ("T", "F"):
        return text == "T"
    if NUMBER.fullmatch(text):
        if text.lstrip("+-").isdigit():
            return int(text)
        number = float(text.upper().replace("D", "E"))
        return number if math.isfinite(number) else None
    return text or None


def _long_text(body: bytes) -> str:
    out = ""
    for start in range(0, len(body), CARD):
        piece = _quoted(printable(body[start + 9 : start + CARD]))
        if piece is None:
            break
        out += piece
        if not out.endswith("&"):
            break
        if start + CARD < len(body):
            out = out[:-1]
    return out.rstrip()


def _quoted(text: str) -> str | None:
    found = re.match(r"\s*'((?:[^']|'')*)(?:'|$)", text)
    return None if found is None else found[1].replace("''", "'")


def card(keyword: str, value: Value, comment: str = "") -> tuple[str, bytes]:
    """Return a card as (keyword, record); a long text is continued in CONTINUE cards.

    Examples
    --------
    >>> card("NMATCH", 573, "stars")[1].decode().rstrip()
    'NMATCH  =                  573 / stars'
    """
    head = f"{keyword:<8}= "
    if isinstance(value, str):
        text = printable(value.encode("latin-1", "replace")).rstrip().replace("'", "''")
        pieces = _pieces(text)
        first = f"'{pieces[0]}&'" if len(pieces) > 1 else f"'{pieces[0]:<8}'"
        body = _commented(f"{head}{first:<20}", comment if len(pieces) == 1 else "")
        for number, piece in enumerate(pieces[1:], start=2):
            more = "&" if number < len(pieces) else ""
            body += f"CONTINUE  '{piece}{more}'".ljust(CARD).encode("ascii")
        return keyword, body
    if isinstance(value, bool):
        text = "T" if value else "F"
    elif isinstance(value, int):
        text = str(value)
    else:
        text = "" if value is None or value != value else repr(float(value)).upper()
    return keyword, _commented(f"{head}{text:>20}", comment)


def _pieces(text: str) -> list[str]:
    """Split a text (quotes doubled) for a card and its CONTINUEs, not within a doubled quote."""
    if len(text) <= LONGEST + 1:
        return [text]
    out = []
    while text:
        n = LONGEST if len(text) > CONTINUED else len(text)
        if n < len(text) and (len(text[:n]) - len(text[:n].rstrip("'"))) % 2:
            n -= 1
        out.append(text[:n])
        text = text[n:]
    return out


def _commented(text: str, comment: str) -> bytes:
    if comment and len(text) < CARD - 4:
        text = f"{text} / {comment}"
    return text[:CARD].ljust(CARD).encode("ascii", "replace")


# --- parts ----------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Part:
    """A header-data unit that may be changed.

    Attributes
    ----------
    records : list of (str, bytes)
        Its cards without END; change them through `set`, `remove` and `replace`.
    raw : bytes
        The header in the file; empty once it is changed, or for a new part.
    data : bytes or None
        New data; None if they are in the file.
    start, size : int
        Their position and size in the file.
    """

    records: Records
    raw: bytes = b""
    data: bytes | None = None
    start: int = 0
    size: int = 0
    _first: dict[str, bytes] | None = field(default=None, repr=False)
    _indexed: tuple[Records, int] | None = field(default=None, repr=False)

    @property
    def unit(self) -> Unit:
        """The part as a unit, for reading pixels."""
        return Unit(0, self.header_bytes(), self.start, self.size)

    @property
    def kind(self) -> str:
        """XTENSION; empty for the primary unit."""
        return self.text("XTENSION").upper()

    @property
    def name(self) -> str:
        """EXTNAME in capitals."""
        return self.text("EXTNAME").upper()

    @property
    def version(self) -> int:
        """EXTVER, 1 where absent."""
        value = self.get("EXTVER")
        return int(value) if isinstance(value, (int, float)) and abs(value) < 2**31 else 1

    def first(self) -> dict[str, bytes]:
        """Return the first card of each keyword, found once for as long as the cards are these."""
        records, known = self.records, self._indexed
        if self._first is None or known is None or (
            known[0] is not records or known[1] != len(records)
        ):
            self._first, self._indexed = dict(reversed(records)), (records, len(records))
        return self._first

    def get(self, keyword: str, default: Value = None) -> Value:
        """Return the value of the first card of a keyword."""
        body = self.first().get(keyword)
        value = None if body is None else value_of(body)
        return default if value is None else value

    def text(self, keyword: str) -> str:
        """Return a value as a text without blanks around it; empty where there is none."""
        value = self.get(keyword)
        return "" if value is None else str(value).strip()

    def has(self, keyword: str) -> bool:
        """Say whether there is such a card."""
        return keyword in self.first()

    def set(self, keyword: str, value: Value, comment: str = "") -> None:
        """Replace a card, or append it; a card that already has the value is not changed."""
        for i, (key, body) in enumerate(self.records):
            if key == keyword:
                if value_of(body) != value or type(value_of(body)) is not type(value):
                    comment = comment or _comment_of(body)
                    self.replace([*self.records[:i], card(keyword, value, comment),
                                  *self.records[i + 1 :]])
                return
        last = max((i for i, r in enumerate(self.records) if r[1].strip()), default=-1) + 1
        self.replace([*self.records[:last], card(keyword, value, comment), *self.records[last:]])

    def remove(self, keywords: Sequence[str]) -> None:
        """Remove all cards of some keywords."""
        kept = [r for r in self.records if r[0] not in keywords]
        if len(kept) < len(self.records):
            self.replace(kept)

    def replace(self, records: Records) -> None:
        """Replace all cards."""
        if records != self.records:
            self.records = records
            self.raw = b""

    def header(self) -> Header:
        """Return the header for astropy, without cards that cannot be read."""
        return readable_header(self.header_bytes())[0]

    def header_bytes(self) -> bytes:
        """Return the header in whole blocks, with its changes."""
        return self.raw or _joined(self.records)


def _comment_of(body: bytes) -> str:
    """Return the comment of a card of one record; those of CONTINUEs are not kept."""
    text = printable(body[:CARD])
    found = re.match(r"[^=]{8}=\s*(?:'(?:[^']|'')*'|[^'/]*)\s*/(.*)", text)
    return found[1].strip() if found else ""


def _joined(records: Records) -> bytes:
    body = b"".join(body for _, body in records) + b"END".ljust(CARD)
    return body.ljust(padded(len(body)))


def parts_of_bytes(data: bytes, name: str, *, max_parts: int = 10_000) -> list[Part]:
    """Return the parts of a FITS file in memory, with copies of their data.

    Raises
    ------
    ImageError
        If it is not FITS or ends too early.
    """
    parts: list[Part] = []
    for unit in read_units(io.BytesIO(data), name, len(data)):
        if len(parts) >= max_parts:
            raise ImageError(image=name, reason=f"more than {max_parts} units")
        body = data[unit.data_start : unit.data_start + unit.data_size]
        cards, first = _indexed(unit.raw)
        records = list(cards)
        parts.append(Part(records, unit.raw, body, unit.data_start, unit.data_size,
                          first, (records, len(records))))
    return parts


@lru_cache(maxsize=64)  # those of lookup tables are the same in thousands of files
def _indexed(raw: bytes) -> tuple[Records, dict[str, bytes]]:
    """Return the cards of a header, and the first one of each keyword; neither is to be changed."""
    records = records_of(raw)
    return records, dict(reversed(records))


# --- files ----------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class FitsParts:
    """An open FITS file as a list of parts; see :func:`open_parts`."""

    path: Path
    stream: BinaryIO
    parts: list[Part]
    tail: tuple[int, int]
    packed: bool
    before: list[Part] = field(default_factory=list)
    stamp: tuple[int, ...] = ()
    length: int = 0
    damage: list[str] = field(default_factory=list)  # what of the file cannot be read

    @property
    def changed(self) -> bool:
        """Whether anything differs from the file."""
        same = len(self.parts) == len(self.before) and all(
            a is b for a, b in zip(self.parts, self.before)
        )
        return not same or any(not p.raw for p in self.parts)

    def data_of(self, part: Part) -> bytes:
        """Return the data of a part, without padding."""
        if part.data is not None:
            return part.data
        self.stream.seek(part.start)
        data = self.stream.read(part.size)
        if len(data) < part.size:
            raise ImageError(image=self.path.name, reason="truncated while it was read")
        return data

    def save(
        self, out: str | Path | None = None, *, overwrite: bool = False,
        check: Callable[[Path], None] | None = None,
    ) -> Path:
        """Write the file in one pass; replace it if `out` is None.

        Parameters
        ----------
        out : path, optional
        overwrite : bool
            Whether another file of that name may be replaced.
        check : callable, optional
            Called with the path of the complete temporary file before it is renamed; if it raises,
            nothing is written.

        Raises
        ------
        OutputExists, OutputError
            The file is then unchanged, and no partial file is left.
        SettingError
            If a compressed file would be changed in place.
        Temporary
            If another program changed the file since it was opened.
        """
        target = (self.path if out is None else Path(out)).resolve()
        own = target == self.path.resolve()
        if own and self.packed:
            raise SettingError(
                "{path}: a compressed file cannot be changed in place", path=str(self.path),
                hint="Use --out; the result is written uncompressed.",
            )
        if own and not os.access(target, os.W_OK):  # a rename would only need a writable folder
            raise OutputError(
                path=str(target), reason="the file is read-only", hint="Use --out, or chmod u+w.",
            )
        with atomic_path(target, overwrite=overwrite or own) as temporary:
            with temporary.open("r+b", buffering=0) as sink:
                if own:
                    temporary.chmod(target.stat().st_mode & 0o7777)
                with _Flusher(sink) as flusher:
                    for part in self.parts:
                        self._write(part, sink)
                        flusher.note(part.size)
                    self._copy(*self.tail, sink)
            if check is not None:
                check(temporary)
            self._unchanged(target if own else None)
        return target

    def _write(self, part: Part, sink: BinaryIO) -> None:
        size = self._size(part)
        if not part.raw and part.data is None and self._known_sum(part) is None:
            self._write_summed(part, size, sink)
            return
        _write_all(sink, part.raw or self._header(part, self._known_sum(part) or 0))
        if part.data is None:
            self._copy(part.start, size, sink)
        else:
            _write_all(sink, part.data)
        _write_all(sink, _fill(part, size))

    def _size(self, part: Part) -> int:
        """Return the size of the data in bytes, with the padding of the file."""
        if part.data is not None:
            return len(part.data)
        return min(padded(part.size), max(self.length - part.start, part.size))

    def _known_sum(self, part: Part) -> int | None:
        """Return the sum of the data if it is known without reading them; 0 if none is needed."""
        if not {key for key, _ in part.records} & set(SUMS):
            return 0
        if part.data is not None:
            return sum32(part.data + _fill(part, len(part.data)))
        stated = part.text("DATASUM")
        return int(stated) if stated.isdigit() and int(stated) >> 32 == 0 else None

    def _header(self, part: Part, total: int) -> bytes:
        """Return a changed header, with CHECKSUM and DATASUM updated if it has them."""
        records = [r for r in part.records if r[0] != STALE]
        texts = {"DATASUM": str(total), "CHECKSUM": "0" * 16}
        records = [(k, _with_text(b, texts[k]) if k in SUMS else b) for k, b in records]
        if part.has("CHECKSUM"):
            true = checksum_text(sum32(_joined(records), total))
            records = [(k, _with_text(b, true) if k == "CHECKSUM" else b) for k, b in records]
        return _joined(records)

    def _write_summed(self, part: Part, size: int, sink: BinaryIO) -> None:
        """Write a part whose data are summed while they are copied, and its header last."""
        start = sink.tell()
        sink.seek(start + len(self._header(part, 0)))
        self.stream.seek(part.start)
        total, left = 0, size
        buffer = np.empty(SUMMED_BYTES, dtype=np.uint8)
        while left:
            n = self._read_into(buffer.data[: min(left, SUMMED_BYTES)])
            total = sum32(buffer[:n], total)
            _write_all(sink, buffer.data[:n])
            left -= n
        fill = _fill(part, size)
        _write_all(sink, fill)
        total = sum32(b"\0" * (size % 4) + fill, total)  # it may begin within a word of the data
        end = sink.tell()
        sink.seek(start)
        _write_all(sink, self._header(part, total))
        sink.seek(end)

    def _read_into(self, view: memoryview) -> int:
        """Fill the view; the sum is over words, and needs whole pieces."""
        done = 0
        while done < len(view):
            n = self.stream.readinto(view[done:])  # type: ignore[attr-defined]
            if not n:
                raise ImageError(image=self.path.name, reason="truncated while it was copied")
            done += n
        return done

    def _copy(self, start: int, size: int, sink: BinaryIO) -> None:
        """Copy bytes of the file, by the operating system if it can."""
        left = size
        try:
            while left and not self.packed:
                at = start + size - left
                n = os.copy_file_range(self.stream.fileno(), sink.fileno(), left, at)
                if n == 0:
                    break
                left -= n
        except (OSError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise
        self.stream.seek(start + size - left)
        while left:
            piece = self.stream.read(min(left, PIECE_BYTES))
            if not piece:
                raise ImageError(image=self.path.name, reason="truncated while it was copied")
            _write_all(sink, piece)
            left -= len(piece)

    def _unchanged(self, target: Path | None) -> None:
        """Raise an error if another program has changed or replaced the file.

        A program without our lock is detected by the file's size and time.
        """
        if self.packed or not self.stamp:
            return
        now = [os.fstat(self.stream.fileno())]
        if target is not None:
            now.append(target.stat())
        if any(stamp_of(s) != self.stamp for s in now):
            raise Temporary(resource=str(self.path), reason="another program has just changed it")


def _fill(part: Part, size: int) -> bytes:
    """Return the padding of the last block of data: blanks for an ASCII table, else zeros."""
    return (b" " if part.kind == "TABLE" else b"\0") * (padded(size) - size)


def new_parts(path: str | Path, parts: list[Part]) -> FitsParts:
    """Return a FITS file that is not on the disk yet; :meth:`FitsParts.save` writes it."""
    return FitsParts(Path(path), io.BytesIO(), parts, (0, 0), True)


NO_SPACE = (28, 122, 27)  # ENOSPC, EDQUOT, EFBIG
FLUSH_BYTES = 24 << 20  # bytes after which a flush is started: some tenths of a second of a disk


class _Flusher:
    """Flushes written data to the disk while the rest is copied, to shorten the final flush."""

    def __init__(self, sink: BinaryIO):
        self._sink, self._since = sink, 0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> _Flusher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.join()

    def note(self, size: int) -> None:
        """Count written bytes; start a flush after `FLUSH_BYTES`."""
        self._since += size
        busy = self._thread is not None and self._thread.is_alive()
        if self._since > FLUSH_BYTES and not busy:
            self._since = 0
            self._thread = threading.Thread(target=self._flush)
            self._thread.start()

    def _flush(self) -> None:
        with contextlib.suppress(OSError):  # the final flush raises the error
            os.fsync(self._sink.fileno())


def _with_text(body: bytes, text: str) -> bytes:
    head = body[:8] + f"= '{text:<8}'".encode()
    comment = b" / " + _comment_of(body).encode("ascii", "replace")
    return (head.ljust(30) + comment)[:CARD].ljust(CARD)


def _write_all(sink: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[sink.write(view) :]


@contextmanager
def open_parts(path: str | Path, *, lock: bool = False) -> Iterator[FitsParts]:
    """Open a FITS file as parts.

    Parameters
    ----------
    path : path
        A file compressed by gzip, bzip2 or xz can be read, but not changed in place.
    lock : bool
        Lock the file for writing; another writer waits some seconds and then gets an error.

    Raises
    ------
    ImageError
        If it cannot be read.
    Temporary
        If another writer holds it.
    """
    path = Path(path)
    stream, size = opened(path, lock=lock)
    with stream:
        packed = not hasattr(stream, "raw")
        stamp = () if packed else stamp_of(os.fstat(stream.fileno()))
        parts: list[Part] = []
        damage: list[str] = []
        end = 0
        start: int | None = 0
        while start is not None:
            for unit in read_units(stream, path.name, size, start=start):
                parts.append(
                    Part(records_of(unit.raw), unit.raw, None, unit.data_start, unit.data_size)
                )
                end = unit.data_start + padded(unit.data_size)
            start = None if packed else next_unit(stream, end, size or end)
            if start is not None:
                damage.append(f"the bytes {end} to {start} are no extension; what was there "
                              "cannot be read")
                stream.seek(end)
                parts.append(Part([], stream.read(BLOCK), None, end + BLOCK, start - end - BLOCK))
        rest = max((size or end) - end, 0)
        yield FitsParts(
            path, stream, parts, (end, rest), packed, list(parts), stamp, size or end, damage
        )
