"""Solutions, files and decisions as rows of the tables, and back."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from cynosure.solutions.store.entry import Entry
from cynosure.solutions.store.schema import NO_FAULTS, payloads, pieces, solutions
from cynosure.solutions.store.selection import Decision

if TYPE_CHECKING:
    from sqlalchemy import Connection, Dialect, Table

__all__ = [
    "PIECE", "PROVENANCE", "decision_row", "insert_many", "payload_row", "put_together",
    "said_of", "solution_row", "stored_files", "told",
]

PIECE = struct.Struct("<QI32s")  # offset in the file, size, digest

_PLAIN = (
    "content_sha256", "rootname", "wcsname", "hdrname", "kind", "distname", "idctab", "npol",
    "d2im", "catalog", "method", "quality", "status", "rms_ra_mas", "rms_dec_mas", "fit_rms_mas",
    "nmatch", "created", "author", "descrip", "software", "media", "extent",
)

_plain = attrgetter(*_PLAIN)

# Columns that one file of a solution may state and another omit; blank is None or an empty text.
_PROVENANCE = (
    ("created",), ("quality",), ("status",), ("rms_ra_mas", "rms_dec_mas", "fit_rms_mas"),
    ("nmatch",), ("catalog",), ("author",), ("descrip",), ("software",),
)
PROVENANCE = tuple(name for group in _PROVENANCE for name in group)


def insert_many(connection: Any, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows that are not there yet, by the driver itself.

    SQLAlchemy makes the statement; that it also goes through every value of every row would be
    half the time of filling a store.
    """
    if not rows:
        return
    statement, order = _insertion(table, connection.dialect, tuple(rows[0]))
    given = list(map(itemgetter(*order), rows)) if order else list(rows)
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
    return {
        **dict(zip(_PLAIN, _plain(entry), strict=True)),
        "ra_deg": ra, "dec_deg": dec, "radius_deg": radius,
        "corners": entry.corners.astype("<f8").tobytes(), "added": added,
        "settings": json.dumps(entry.settings, sort_keys=True, default=str)
        if entry.settings else "{}",
        "valid": not entry.faults, "faults": said_of(entry),
        "size_bytes": len(entry.payload), "identity": entry.key,
    }


def said_of(entry: Entry) -> str:
    """Return why a solution is not sound, and what was odd, as JSON."""
    if not (entry.faults or entry.doubts or entry.notes):
        return NO_FAULTS
    return json.dumps(
        {"doubts": entry.doubts, "faults": entry.faults, "notes": entry.notes},
        ensure_ascii=False,
    )


def told(known: Any, entry: Any) -> dict[str, Any]:
    """Return what an entry says of a solution that is not known of it yet.

    Parameters
    ----------
    known : Entry, or row of ``solutions``
        What is known.
    entry : Entry, or row of ``solutions``
        Another account of the same solution.
    """
    out: dict[str, Any] = {}
    for group in _PROVENANCE:
        if all(getattr(known, name) in (None, "") for name in group):
            given = {name: getattr(entry, name) for name in group}
            out.update({k: v for k, v in given.items() if v not in (None, "")})
    return out


def payload_row(entry: Entry, number: int, shared: dict[bytes, bytes]) -> dict[str, Any]:
    """Return the row of ``payloads``; the pieces that others share are added to `shared`."""
    layout, kept, position = [], [], 0
    for start, size, digest in sorted(entry.tables):
        if digest not in shared:
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


def stored_files(
    connection: Connection, contents: Sequence[str]
) -> Iterator[tuple[str, bytes | None]]:
    """Give the files of some solutions with the content that each is of; None for a damaged one."""
    rows = connection.execute(
        select(solutions.c.content_sha256, payloads.c.sha256, payloads.c.layout, payloads.c.body)
        .join(payloads, payloads.c.solution_id == solutions.c.id)
        .where(solutions.c.content_sha256.in_(contents))
    ).all()
    needed = {digest for row in rows for _, _, digest in PIECE.iter_unpack(row[2])}
    found = connection.scalars(
        select(pieces.c.body).where(pieces.c.digest.in_(list(needed)))
    ) if needed else ()
    bodies = {hashlib.sha256(piece).digest(): bytes(piece) for piece in found}
    for content, digest, layout, body in rows:
        yield content, put_together(digest, bytes(layout), bytes(body), bodies)


def decision_row(decision: Decision) -> dict[str, Any]:
    """Return the row of ``decisions``."""
    return {
        "rootname": decision.rootname, "content_sha256": decision.content_sha256,
        "wcsname": decision.wcsname, "rule": decision.rule, "made": decision.made,
        "made_by": decision.made_by,
        "record": json.dumps(decision.to_dict(), ensure_ascii=False, sort_keys=True),
    }
