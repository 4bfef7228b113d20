"""Migrations from one version of the schema to the next.

A new store is made with the newest schema at once; an older one is taken there step by step, all
steps in one transaction. A store that is newer than the software is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy import MetaData, insert, inspect, select, text, update
from sqlalchemy.schema import CreateTable

from cynosure._version import __version__
from cynosure.ground.errors import CynosureError, StoreUnavailable
from cynosure.solutions.store import schema
from cynosure.solutions.store.entry import FITS, Entry
from cynosure.solutions.store.intake import read_headerlet
from cynosure.solutions.store.records import read_record
from cynosure.solutions.store.rows import said_of, stored_files
from cynosure.solutions.store.schema import SCHEMA_VERSION, store_facts

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from cynosure.solutions.store.database import Database

__all__ = ["STEPS", "check_version", "create", "migrate", "version_of"]

# An arbitrary number that PostgreSQL locks while a store is made or changed.
LOCK = 7_263_541
# Solutions in memory at a time: at most 100 MB with headerlets of 0.2 MB.
ROWS = 500


def _decisions(connection: Connection) -> None:
    schema.decisions.create(connection)
    schema.guide_stars.create(connection)


def _extents(connection: Connection) -> None:
    connection.execute(text(
        "ALTER TABLE solutions ADD COLUMN extent VARCHAR(10) DEFAULT 'assumed' NOT NULL"
    ))
    # Records state the size of their images.
    connection.execute(
        update(schema.solutions).where(schema.solutions.c.media != FITS).values(extent="image")
    )


def _identities(connection: Connection) -> None:
    """Tell solutions by their WCS, and let it be unknown when one was made.

    What came in twice under the old rule stays: decisions name it. What is asked of a solution's
    file (whether it is sound) is asked anew.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("ALTER TABLE solutions ALTER COLUMN created DROP NOT NULL"))
        connection.execute(text("ALTER TABLE solutions ADD COLUMN identity VARCHAR(32)"))
        connection.execute(text("UPDATE solutions SET identity = substr(content_sha256, 1, 32)"))
        connection.execute(text("ALTER TABLE solutions ALTER COLUMN identity SET NOT NULL"))
    else:
        _rebuild(connection)
    connection.execute(
        update(schema.solutions).where(schema.solutions.c.created == "").values(created=None))
    _identify(connection)
    index = next(i for i in schema.solutions.indexes if i.name == "solutions_identity")
    index.create(connection)


def _rebuild(connection: Connection) -> None:
    """Make the table of solutions anew, as SQLite cannot change a column."""
    new = schema.solutions.to_metadata(MetaData(), name="solutions_new")
    old = [c.name for c in new.columns if c.name != "identity"]
    connection.execute(CreateTable(new))
    columns = ", ".join(old)
    connection.execute(text(
        f"INSERT INTO solutions_new ({columns}, identity) "
        f"SELECT {columns}, substr(content_sha256, 1, 32) FROM solutions"
    ))
    connection.execute(text("DROP TABLE solutions"))
    connection.execute(text("ALTER TABLE solutions_new RENAME TO solutions"))
    for index in schema.solutions.indexes:
        if index.name != "solutions_identity":
            index.create(connection)


def _identify(connection: Connection) -> None:
    """Read every file again for its identity and for what is wrong with it."""
    c = schema.solutions.c
    seen: set[str] = set()
    last = 0
    while True:
        part = connection.execute(
            select(c.id, c.content_sha256, c.media).where(c.id > last).order_by(c.id).limit(ROWS)
        ).all()
        if not part:
            return
        last = part[-1].id
        files = dict(stored_files(connection, [row.content_sha256 for row in part]))
        for row in part:
            entry = _read_again(files.get(row.content_sha256), row.media)
            if entry is None:  # damaged: told when its file is asked for
                continue
            values = {"valid": not entry.faults, "faults": said_of(entry)}
            if entry.key not in seen:
                values["identity"] = entry.key
            seen.add(entry.key)
            connection.execute(
                update(schema.solutions).where(c.id == row.id).values(values))


def _read_again(payload: bytes | None, media: str) -> Entry | None:
    try:
        if payload is None:
            return None
        if media == FITS:
            return read_headerlet(payload)
        return read_record(payload.decode("utf-8"))
    except (CynosureError, UnicodeDecodeError):
        return None


# Version that a step leads to: what it does, in words and in deed.
STEPS: dict[int, tuple[str, Callable[[Connection], None]]] = {
    2: ("keep decisions and guide-star offsets", _decisions),
    3: ("say how the size of the chips is known", _extents),
    4: ("tell solutions by their WCS, and leave unknown dates unknown", _identities),
}


def version_of(database: Database) -> int:
    """Return the schema's version of a store; 0 where there is none."""
    with database.read() as connection:
        return _version(connection)


def _version(connection: Connection) -> int:
    if not inspect(connection).has_table(store_facts.name):
        return 0
    value = connection.scalar(
        select(store_facts.c.value).where(store_facts.c.name == "schema_version")
    )
    return int(value) if value is not None and value.isdigit() else 0


def check_version(database: Database) -> None:
    """Refuse a store that this software cannot use.

    Raises
    ------
    StoreUnavailable
        If there is no store, or it is of another version of the schema.
    """
    version = version_of(database)
    if version == 0:
        raise StoreUnavailable(store=database.name, reason="there is no store")
    _refuse_newer(database, version)
    if version < SCHEMA_VERSION:
        raise StoreUnavailable(
            store=database.name, version=version, needed=SCHEMA_VERSION,
            reason=f"schema {version}, this software uses {SCHEMA_VERSION}",
            hint=f"cynosure store migrate --store {database.name}",
        )


def _refuse_newer(database: Database, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise StoreUnavailable(
            store=database.name, version=version, needed=SCHEMA_VERSION,
            reason=f"written by a newer cynosure (schema {version}, this one knows "
            f"{SCHEMA_VERSION})",
            hint=f"Use a cynosure newer than {__version__}.",
        )


def create(database: Database) -> bool:
    """Make the tables of a new store; false where there is one already."""

    def make(connection: Connection) -> bool:
        _lock(connection)
        if _version(connection):
            return False
        schema.metadata.create_all(connection)
        connection.execute(insert(store_facts), [
            {"name": "schema_version", "value": str(SCHEMA_VERSION)},
            {"name": "software", "value": f"cynosure {__version__}"},
        ])
        return True

    if database.is_sqlite:  # cannot be set within a transaction
        with database.read() as connection:
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            connection.exec_driver_sql("BEGIN")
    return database.write(make)


def migrate(database: Database) -> list[str]:
    """Take a store to the newest schema; returns what was done, in words.

    Raises
    ------
    StoreUnavailable
        If there is no store, or it is newer than this software.
    """

    def climb(connection: Connection) -> list[str]:
        _lock(connection)
        version, done = _version(connection), []
        if version == 0:
            raise StoreUnavailable(store=database.name, reason="there is no store")
        _refuse_newer(database, version)
        while version < SCHEMA_VERSION:
            version += 1
            words, step = STEPS[version]
            step(connection)
            done.append(f"schema {version}: {words}")
        connection.execute(
            update(store_facts).where(store_facts.c.name == "schema_version")
            .values(value=str(version))
        )
        return done

    return database.write(climb)


def _lock(connection: Connection) -> None:
    """Keep others from doing the same at once; SQLite's transaction does already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
