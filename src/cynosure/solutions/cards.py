"""The cards of a header, looked up without reading them all.

A headerlet has some hundreds of cards, of which a database wants thirty. Here a header is split
by the compiled loops of Python's own library, and a card is read when it is asked for: twenty
times as fast as a whole header.
"""

from __future__ import annotations

import math
import re
import struct

from cynosure.data.fitsbytes import CARD

__all__ = ["Cards", "printable"]

_STRING = re.compile(r"'((?:[^']|'')*)'")
_RECORD_VALUE = re.compile(r"\s*([A-Za-z0-9_.]+)\s*:\s*(\S+)")
_CARDS = struct.Struct("8s72s")


class Cards:
    """The cards of a header, looked up in their raw form and converted when asked for."""

    __slots__ = ("pairs", "records", "values")

    def __init__(self, raw: bytes):
        # (keyword, the rest), 8 and 72 bytes; the last block may be cut short.
        self.pairs = list(_CARDS.iter_unpack(raw[: len(raw) // CARD * CARD]))
        self.records = dict(self.pairs)
        self.values: dict[bytes, list[bytes]] = {}
        # The few cards that are not alone under their keyword.
        if b"CONTINUE" in self.records:
            last = b""
            for key, body in self.pairs:
                if key == b"CONTINUE" and last:
                    self.values.setdefault(last, [self.records[last]]).append(body)
                else:
                    last = key
        if not self.records.keys().isdisjoint(_RECORD_VALUED):
            for key, body in self.pairs:
                if key in _RECORD_VALUED:
                    self.values.setdefault(key, []).append(body)

    @property
    def name(self) -> tuple[str, int]:
        """EXTNAME in capitals, and EXTVER."""
        version = self.number("EXTVER")
        return self.text("EXTNAME").upper(), 1 if version is None else int(version)

    def text(self, keyword: str) -> str:
        """Return a value as text, quotes stripped, long strings joined; empty where absent."""
        key = keyword.ljust(8).encode()
        if self.values and key in self.values:
            parts = [_value(body) for body in self.values[key]]
            return "".join([*(p.removesuffix("&") for p in parts[:-1]), parts[-1]]).strip()
        body = self.records.get(key)
        return "" if body is None else _value(body)

    def number(self, *keywords: str) -> float | None:
        """Return the first keyword that is a finite number, whatever its type in the file."""
        for keyword in keywords:
            body = self.records.get(keyword.ljust(8).encode())
            if body is None:
                continue
            value = _number(body)
            if math.isfinite(value):
                return value
        return None

    def record_value(self, keyword: str, field: str) -> float | None:
        """Return a field of a record-valued card, ``DP1 = 'EXTVER: 1.0'``."""
        for body in self.values.get(keyword.ljust(8).encode(), ()):
            found = _RECORD_VALUE.fullmatch(_value(body))
            if found and found[1] == field:
                try:
                    return float(found[2])
                except ValueError:
                    return None
        return None


_RECORD_VALUED = frozenset(k.ljust(8).encode() for k in ("DP1", "DP2", "D2IM1", "D2IM2"))


def printable(text: str) -> str:
    """Return a text without characters that no database, page or header would take."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "?" for c in text)


def _value(body: bytes) -> str:
    text = printable(body[1:].decode("latin-1")).strip()
    if not text.startswith("'"):
        return text.split("/", 1)[0].rstrip()
    end = text.find("'", 1)
    if "''" in text[1:]:
        found = _STRING.match(text)
        return (found[1].replace("''", "'") if found else text[1:]).strip()
    return (text[1:end] if end > 0 else text[1:]).strip()


def _number(body: bytes) -> float:
    if body[22:23] in b" /":
        try:
            return float(body[1:22])  # where the standard's fixed format has it
        except ValueError:
            pass
    try:
        return float(_value(body).replace("D", "E"))
    except ValueError:
        return math.nan
