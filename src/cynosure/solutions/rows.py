"""Solutions, files and decisions as rows of the tables, and back."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

from cynosure.solutions.intake import Entry
from cynosure.solutions.selection import Decision

__all__ = ["PIECE", "decision_row", "payload_row", "put_together", "solution_row"]

PIECE = struct.Struct("<QI32s")  # offset in the file, size, digest

_PLAIN = (
    "content_sha256", "rootname", "wcsname", "hdrname", "kind", "distname", "idctab", "npol",
    "d2im", "catalog", "method", "quality", "status", "rms_ra_mas", "rms_dec_mas", "fit_rms_mas",
    "nmatch", "created", "author", "descrip", "software", "media",
)


def solution_row(
    entry: Entry, circle: tuple[float, float, float] | None, added: str
) -> dict[str, Any]:
    """Return the row of ``solutions``, without its number."""
    ra, dec, radius = circle or (None, None, None)
    faults = {"faults": list(entry.faults), "notes": list(entry.notes)}
    return {
        **{name: getattr(entry, name) for name in _PLAIN},
        "ra_deg": ra, "dec_deg": dec, "radius_deg": radius,
        "corners": entry.corners.astype("<f8").tobytes(), "added": added,
        "settings": json.dumps(entry.settings or {}, sort_keys=True, default=str),
        "valid": not entry.faults, "faults": json.dumps(faults, ensure_ascii=False),
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
