"""Solutions, files and decisions as rows of the tables, and back."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql, sqlite

from cynosure.solutions.store.entry import Entry
from cynosure.solutions.store.schema import NO_FAULTS
from cynosure.solutions.store.selection import Decision

if TYPE_CHECKING:
    from sqlalchemy import Dialect, Table

__all__ = [
    "PIECE", "decision_row", "insert_many", "payload_row", "put_together", "solution_row",
]

PIECE = struct.Struct("<QI32s")  # offset in the file, size, digest

_PLAIN = (
    "content_sha256", "rootname", "wcsname", "hdrname", "kind", "distname", "idctab", "npol",
    "d2im", "catalog", "method", "quality", "status", "rms_ra_mas", "rms_dec_mas", "fit_rms_mas",
    "nmatch", "created", "author", "descrip", "software", "media", "extent",
)


def insert_many(connection: Any, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows that are not there yet, by the driver itself.

    SQLAlchemy makes the statement; that it also goes through every value of every row would be
    half the time of filling a store.
    """
    if not rows:
        return
    statement, order = _insertion(table, connection.dialect, tuple(rows[0]))
    given = [tuple(row[n] for n in order) for row in rows] if order else list(rows)
    connection.exec_driver_sql(statement, given)


@lru_cache(maxsize=64)
def _insertion(
    table: Table, dialect: Dialect, names: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    """Return the statement, and the order of its parameters where they have no names."""
    module = sqlite if dialect.name == "sqlite" else postgresql
    statement = module.insert(table).values({n: bindparam(n) for n in names})
    compiled = statement.on_conflict_do_nothing().compile(dialect=dialect)
    return str(compiled), tuple(compiled.positiontup or ())


def solution_row(
    entry: Entry, circle: tuple[float, float, float] | None, added: str
) -> dict[str, Any]:
    """Return the row of ``solutions``, without its number."""
    ra, dec, radius = circle or (None, None, None)
    said = NO_FAULTS
    if entry.faults or entry.doubts or entry.notes:
        said = json.dumps(
            {"doubts": entry.doubts, "faults": entry.faults, "notes": entry.notes},
            ensure_ascii=False,
        )
    return {
        **{name: getattr(entry, name) for name in _PLAIN},
        "ra_deg": ra, "dec_deg": dec, "radius_deg": radius,
        "corners": entry.corners.astype("<f8").tobytes(), "added": added,
        "settings": json.dumps(entry.settings, sort_keys=True, default=str)
        if entry.settings else "{}",
        "valid": not entry.faults, "faults": said,
        "size_bytes": len(entry.payload),
    }


def payload_row(entry: Entry, number: int, shared: dict[bytes, bytes]) -> dict[str, Any]:
    """Return the row of ``payloads``; the pieces that others share are added to `shared`."""
    layout, kept, position = [], [], 0
    for start, size, digest in sorted(entry.tables):
        shared[digest] = entry.payload[start : start + size]
        layout.append(PIECE.pack(start, size, digest))
        kept.append(entry.payload[position:start])
        position = start + size
    kept.append(entry.payload[position:])
    return {"solution_id": number, **_checked(b"".join(layout), b"".join(kept))}


def _checked(layout: bytes, body: bytes) -> dict[str, Any]:
    # The pieces' digests stand in the layout, so this vouches for the whole file.
    digest = hashlib.sha256(layout + body).hexdigest()
    return {"sha256": digest, "layout": layout, "body": body}


def put_together(
    sha256: str, layout: bytes, body: bytes, bodies: dict[bytes, bytes]
) -> bytes | None:
    """Return the file that :func:`payload_row` took apart; None where it is damaged.

    The `bodies` of the pieces must have been checked against their digests.
    """
    if hashlib.sha256(layout + body).hexdigest() != sha256:
        return None
    parts, position, written = [], 0, 0
    for start, size, digest in PIECE.iter_unpack(layout):
        piece = bodies.get(digest)
        if piece is None or len(piece) != size:
            return None
        own = body[position : position + start - written]
        parts += [own, piece]
        position += len(own)
        written = start + size
    return b"".join([*parts, body[position:]])


def decision_row(decision: Decision) -> dict[str, Any]:
    """Return the row of ``decisions``."""
    return {
        "rootname": decision.rootname, "content_sha256": decision.content_sha256,
        "wcsname": decision.wcsname, "rule": decision.rule, "made": decision.made,
        "made_by": decision.made_by,
        "record": json.dumps(decision.to_dict(), ensure_ascii=False, sort_keys=True),
    }
