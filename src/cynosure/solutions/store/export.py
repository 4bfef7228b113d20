"""Export a store to Parquet and JSON lines, and import it into another database.

An export is a folder: ``solutions.parquet`` has every solution with its file, ``decisions.jsonl``
and ``guide_stars.jsonl`` the rest, ``store.json`` says what should be there. An import reads every
file anew, as if it came from its maker, so that a damaged export is noticed.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from sqlalchemy import insert, select

from cynosure._version import __version__
from cynosure.ground.errors import (
    CatalogDamaged,
    CynosureError,
    OutputError,
    OutputExists,
    SettingError,
)
from cynosure.ground.files import reason_of
from cynosure.solutions.store.dates import asked_interval, stamp
from cynosure.solutions.store.entry import EXTENTS, FITS, Entry
from cynosure.solutions.store.intake import read_headerlet
from cynosure.solutions.store.records import read_record
from cynosure.solutions.store.rows import PROVENANCE, told
from cynosure.solutions.store.schema import (
    SCHEMA_VERSION,
    Stored,
    decisions,
    guide_stars,
    solutions,
)
from cynosure.solutions.store.store import Added, Store

__all__ = ["FORMAT", "export_store", "import_store", "is_export"]

FORMAT = "cynosure.store/1"
# Solutions in memory at a time: at most 100 MB with headerlets of 0.2 MB.
ROWS = 500


def is_export(path: Path) -> bool:
    """Say whether a folder is an export."""
    return path.is_dir() and (path / "store.json").is_file()


def export_store(store: Store, folder: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Write a whole store to a folder, which appears when it is complete.

    Raises
    ------
    OutputExists, OutputError
        If it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not (overwrite and (is_export(folder) or not any(folder.iterdir()))):
        raise OutputExists(path=str(folder))
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        facts = {
            "format": FORMAT, "schema": SCHEMA_VERSION, "software": f"cynosure {__version__}",
            "solutions": _write_solutions(store, temporary / "solutions.parquet"),
        }
        for table in (decisions, guide_stars):
            facts[table.name] = _write_rows(store, table, temporary / f"{table.name}.jsonl")
        (temporary / "store.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise OutputError(path=str(folder), reason=reason_of(error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return facts


def _write_solutions(store: Store, path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [(f.name, _arrow_type(pa, str(f.type))) for f in dataclasses.fields(Stored)]
    schema = pa.schema([*columns, ("payload", pa.binary())])
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in _all_solutions(store):
            files = dict(store.payloads([s.content_sha256 for s in part]))
            rows = [
                {**s.to_dict(), "settings": json.dumps(s.settings, sort_keys=True),
                 "corners": s.corners.ravel().tolist(), "payload": files[s.content_sha256]}
                for s in part
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            count += len(rows)
    return count


def _arrow_type(pa: Any, annotation: str) -> Any:
    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    base = annotation.removesuffix(" | None")
    if base.startswith("tuple"):
        return pa.list_(pa.string())
    if base.startswith("NDArray"):
        return pa.list_(pa.float64())
    return kinds.get(base, pa.string())


def _all_solutions(store: Store) -> Iterator[list[Stored]]:
    """Give all solutions by number, some at a time."""
    last = 0
    while True:
        statement = select(solutions).where(solutions.c.id > last).order_by(solutions.c.id)
        with store.database.read() as connection:
            part = [Stored.of_row(row) for row in connection.execute(statement.limit(ROWS))]
        if not part:
            return
        yield part
        last = part[-1].id


def _write_rows(store: Store, table: Any, path: Path) -> int:
    count = 0
    with store.database.read() as connection, path.open("w", encoding="utf-8") as stream:
        for row in connection.execute(select(table).order_by(table.c.id)).mappings():
            values = {k: v for k, v in row.items() if k != "id"}
            stream.write(json.dumps(values, sort_keys=True, ensure_ascii=False) + "\n")
            count += 1
    return count


def import_store(store: Store, folder: str | Path) -> Added:
    """Add all that an export holds; what the store has already is left as it is.

    Raises
    ------
    CatalogDamaged
        If the export is not complete, or its files are not what they were.
    """
    folder = Path(folder)
    facts = _facts(folder)
    total = store.add(_entries(folder, facts))
    for table in (decisions, guide_stars):
        rows = _read_rows(folder / f"{table.name}.jsonl", table, facts.get(table.name))
        store.database.write(partial(_insert_missing, table=table, rows=rows))
    return total


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / "store.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogDamaged(catalog=str(folder), reason=f"not an export ({error})") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CatalogDamaged(
            catalog=str(folder), reason=f"not an export of format {FORMAT}",
            hint="Use the version of cynosure that wrote it.",
        )
    return facts


def _entries(folder: Path, facts: dict[str, Any]) -> Iterator[Entry]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, count = folder / "solutions.parquet", 0
    try:
        with pq.ParquetFile(path) as file:
            # What the image's size was is not in a headerlet, nor what other files said of it.
            kept = ("corners", "extent", "added", "settings", *PROVENANCE)
            known = [n for n in kept if n in file.schema_arrow.names]
            wanted = ["content_sha256", "media", "payload", *known]
            for batch in file.iter_batches(ROWS, columns=wanted):
                for row in batch.to_pylist():
                    count += 1
                    yield _entry(row, f"{path}, row {count}")
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise CatalogDamaged(catalog=str(path), reason=f"cannot be read ({error})") from error
    if count != facts.get("solutions"):
        raise CatalogDamaged(
            catalog=str(path), reason=f"{count} solutions, {facts.get('solutions')} expected"
        )


def _entry(row: dict[str, Any], name: str) -> Entry:
    payload = row["payload"] or b""
    try:
        if row["media"] == FITS:
            entry = read_headerlet(payload, name)
        else:
            entry = read_record(payload.decode("utf-8"), name)
    except (CynosureError, UnicodeDecodeError) as error:
        raise CatalogDamaged(catalog=name, reason=f"damaged ({error})") from error
    if entry.content_sha256 != row["content_sha256"]:
        raise CatalogDamaged(catalog=name, reason="its content is not what its checksum says")
    return _completed(_placed(entry, row.get("corners"), row.get("extent")), row)


def _completed(entry: Entry, row: dict[str, Any]) -> Entry:
    """Return an entry with what the store knew of it beside its file, and since when it did."""
    known = dict.fromkeys(PROVENANCE)
    known.update({k: v for k, v in row.items() if k in known})
    news = told(entry, SimpleNamespace(**known))
    if not entry.settings and row.get("settings") not in (None, "", "{}"):
        news["settings"] = json.loads(row["settings"])
    try:
        news["added"] = stamp(asked_interval(row.get("added") or "")[0])
    except SettingError:  # of a damaged row; it then comes in now
        news["added"] = ""
    return dataclasses.replace(entry, **news)


def _placed(entry: Entry, corners: Any, extent: Any) -> Entry:
    """Return an entry with the footprint that it had, where that is known better."""
    if extent not in EXTENTS or EXTENTS.index(extent) <= EXTENTS.index(entry.extent):
        return entry
    places = np.asarray(corners or [], dtype=float)
    if not places.size or places.size % 8 or not np.isfinite(places).all():
        return entry
    return dataclasses.replace(entry, corners=places.reshape(-1, 4, 2), extent=extent)


def _read_rows(path: Path, table: Any, expected: Any) -> list[dict[str, Any]]:
    names = {c.name for c in table.columns if c.name != "id"}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CatalogDamaged(catalog=str(path), reason=f"cannot be read ({error})") from error
    good = all(isinstance(row, dict) and set(row) == names for row in rows)
    if not good or len(rows) != expected:
        raise CatalogDamaged(catalog=str(path), reason="not complete")
    return rows


def _insert_missing(connection: Any, table: Any, rows: list[dict[str, Any]]) -> None:
    """Add the rows that are not there, in their order."""
    def key(row: Any) -> str:
        return json.dumps({k: v for k, v in row.items() if k != "id"}, sort_keys=True)

    there = {key(dict(row)) for row in connection.execute(select(table)).mappings()}
    fresh = [row for row in rows if key(row) not in there]
    if fresh:
        connection.execute(insert(table), fresh)
