"""The tables of the solution database, and the version of their schema.

One definition serves SQLite and PostgreSQL. A solution is a row of ``solutions``; its footprint
lies in ``footprints``, its file in ``payloads``. Distortion tables are the same in thousands of
headerlets: a payload keeps only its own bytes, and names the ``pieces`` that it shares.

Decisions and guide-star offsets are only ever added; the last one counts.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    func,
)

__all__ = [
    "NO_FAULTS",
    "SCHEMA_VERSION",
    "Stored",
    "decisions",
    "footprints",
    "guide_stars",
    "metadata",
    "payloads",
    "pieces",
    "rms_per_axis",
    "solutions",
    "store_facts",
]

# Raise it with every change of a table, and add the step to `migrations.STEPS`.
SCHEMA_VERSION = 4

metadata = MetaData()

# SQLite numbers rows by itself only where the key is an INTEGER.
_Key = BigInteger().with_variant(Integer, "sqlite")

store_facts = Table(
    "store_facts", metadata,
    Column("name", String(40), primary_key=True),
    Column("value", Text, nullable=False),
)

solutions = Table(
    "solutions", metadata,
    Column("id", _Key, primary_key=True),
    Column("content_sha256", String(64), nullable=False, unique=True),
    Column("rootname", Text, nullable=False),
    Column("wcsname", Text, nullable=False),
    Column("hdrname", Text, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("distname", Text, nullable=False),
    Column("idctab", Text, nullable=False),
    Column("npol", Text, nullable=False),
    Column("d2im", Text, nullable=False),
    Column("catalog", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("quality", Integer),
    Column("status", String(20), nullable=False),
    Column("rms_ra_mas", Double),
    Column("rms_dec_mas", Double),
    Column("fit_rms_mas", Double),
    Column("nmatch", Integer),
    Column("ra_deg", Double),
    Column("dec_deg", Double),
    Column("radius_deg", Double),
    Column("corners", LargeBinary, nullable=False),  # float64 ra, dec of 4 corners a chip
    Column("created", String(40)),  # to a second, UTC; null where nobody knows
    Column("added", String(40), nullable=False),
    Column("author", Text, nullable=False),
    Column("descrip", Text, nullable=False),
    Column("software", Text, nullable=False),
    Column("settings", Text, nullable=False),  # JSON
    Column("valid", Boolean, nullable=False),
    Column("faults", Text, nullable=False),  # JSON: why it is not valid, doubted, what was odd
    Column("media", String(40), nullable=False),
    Column("size_bytes", Integer, nullable=False),
    # How the size of the chips is known; of a store of schema 2 nobody said.
    Column("extent", String(10), nullable=False, server_default="assumed"),
    # Of the WCS: what has the same is the same solution, whatever file it came in.
    Column("identity", String(32), nullable=False),
    Index("solutions_rootname", "rootname"),
    Index("solutions_created", "created"),
    Index("solutions_added", "added"),
    Index("solutions_identity", "identity", unique=True),
)

Index("solutions_catalog", func.upper(solutions.c.catalog), solutions.c.created)

footprints = Table(
    "footprints", metadata,
    # Order and nested cell in one number, 4 * 4^order + cell (IVOA MOC 2.0, section 4.2.3).
    Column("uniq", BigInteger, primary_key=True, autoincrement=False),
    Column("solution_id", BigInteger, ForeignKey("solutions.id"), primary_key=True,
           autoincrement=False),
    sqlite_with_rowid=False,
)

pieces = Table(
    "pieces", metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

payloads = Table(
    "payloads", metadata,
    Column("solution_id", BigInteger, ForeignKey("solutions.id"), primary_key=True,
           autoincrement=False),
    Column("sha256", String(64), nullable=False),
    Column("layout", LargeBinary, nullable=False),  # where the pieces go: offset and digest
    Column("body", LargeBinary, nullable=False),
)

decisions = Table(
    "decisions", metadata,
    Column("id", _Key, primary_key=True),
    Column("rootname", Text, nullable=False),
    Column("content_sha256", String(64), nullable=False),  # empty: a choice is taken back
    Column("wcsname", Text, nullable=False),
    Column("rule", String(20), nullable=False),  # "user" for a choice of the user
    Column("made", String(40), nullable=False),
    Column("made_by", Text, nullable=False),
    Column("record", Text, nullable=False),  # JSON: the whole decision
    Index("decisions_rootname", "rootname", "id"),
)

guide_stars = Table(
    "guide_stars", metadata,
    Column("id", _Key, primary_key=True),
    Column("rootname", Text, nullable=False),
    Column("delta_ra_deg", Double, nullable=False),
    Column("delta_dec_deg", Double, nullable=False),
    Column("delta_roll_deg", Double, nullable=False),
    Column("delta_scale", Double, nullable=False),
    Column("input_ra_deg", Double, nullable=False),
    Column("input_dec_deg", Double, nullable=False),
    Column("output_ra_deg", Double, nullable=False),
    Column("output_dec_deg", Double, nullable=False),
    Column("catalog", Text, nullable=False),
    Column("added", String(40), nullable=False),
    Index("guide_stars_rootname", "rootname", "id"),
)

NO_FAULTS = json.dumps({"doubts": [], "faults": [], "notes": []})


def rms_per_axis(ra: float | None, dec: float | None, both: float | None) -> float | None:
    """Return residuals per axis of those in right ascension, in declination, and of both axes."""
    if ra is not None and dec is not None:
        return math.hypot(ra, dec) / math.sqrt(2.0)
    if both is not None:
        return both / math.sqrt(2.0)
    return ra if dec is None else dec


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """One solution as the store has it: a row of ``solutions``.

    The fields are those of :class:`cynosure.solutions.store.entry.Entry` without the file, and:

    Attributes
    ----------
    id : int
        Its number in this store.
    ra_deg, dec_deg, radius_deg : float or None
        A circle around its footprint.
    added : str
        When it came into the store (UTC).
    valid : bool
        Whether it may be used.
    size_bytes : int
        Size of its file.
    """

    id: int
    content_sha256: str
    rootname: str
    wcsname: str
    hdrname: str
    kind: str
    distname: str
    idctab: str
    npol: str
    d2im: str
    catalog: str
    method: str
    quality: int | None
    status: str
    rms_ra_mas: float | None
    rms_dec_mas: float | None
    fit_rms_mas: float | None
    nmatch: int | None
    ra_deg: float | None
    dec_deg: float | None
    radius_deg: float | None
    corners: NDArray[np.float64]
    created: str | None
    added: str
    author: str
    descrip: str
    software: str
    settings: dict[str, Any]
    valid: bool
    faults: tuple[str, ...]
    media: str
    size_bytes: int
    extent: str = ""
    identity: str = ""
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of_row(cls, row: Any) -> Stored:
        """Make it of a row of ``solutions`` with all its columns in order."""
        values = dict(zip(_COLUMNS, row, strict=True))
        values["corners"] = np.frombuffer(values["corners"], dtype="<f8").reshape(-1, 4, 2)
        settings, faults = values["settings"], values["faults"]
        values["settings"] = {} if settings == "{}" else json.loads(settings)
        values["faults"] = ()
        if faults != NO_FAULTS:
            said = json.loads(faults)
            values.update({k: tuple(said.get(k, ())) for k in ("faults", "doubts", "notes")})
        return cls(**values)

    @property
    def rms_mas(self) -> float | None:
        """Residuals of the fit per axis; None where unknown."""
        return rms_per_axis(self.rms_ra_mas, self.rms_dec_mas, self.fit_rms_mas)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, JSON-safe."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["corners"] = self.corners.tolist()
        for name in ("faults", "doubts", "notes"):
            values[name] = list(values[name])
        return values


_COLUMNS = tuple(c.name for c in solutions.columns)
