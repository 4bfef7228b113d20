"""A database behind a URL: connections, transactions, and errors in words.

SQLite is the default, one file in WAL mode, so that readers never wait for a writer; PostgreSQL
serves many machines. A transaction that meets a lock is tried again until a time limit; whatever
goes wrong becomes one of our errors, which never show a password.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cynosure.ground.errors import CynosureError, OutputError, StoreUnavailable, Temporary

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

__all__ = ["Database", "store_url"]

T = TypeVar("T")

# A server that does not answer in this time is not there: a connection takes milliseconds.
CONNECT_TIMEOUT_S = 5
# PostgreSQL's codes for what may work when tried again: serialization failure, deadlock, lock
# timeout, and a server that is still starting.
TRANSIENT_STATES = {"40001", "40P01", "55P03", "57P03"}
# Undefined table, invalid schema name: the store is not there.
ABSENT_STATES = {"42P01", "3F000"}
# Disk full.
FULL_STATES = {"53100"}


def store_url(store: str | Path) -> URL:
    """Return the URL of a store: ``sqlite:///FILE``, ``postgresql://…``, or the path of a file.

    Raises
    ------
    StoreUnavailable
        If it is no URL of a database that is known.
    """
    text = str(store)
    if "://" not in text:
        return URL.create("sqlite", database=text)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise StoreUnavailable(
            store=text.split("@")[-1], reason="not a URL of a database", hint=_URL_HINT
        ) from error
    kind = url.drivername.split("+")[0]
    if kind in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if kind != "sqlite" or not url.database or url.database == ":memory:":
        raise StoreUnavailable(
            store=url.render_as_string(), reason="not a database that is known", hint=_URL_HINT
        )
    return url


_URL_HINT = "Use sqlite:///FILE, a path, or postgresql://USER@HOST/DATABASE."


class Database:
    """Connections to one database.

    Parameters
    ----------
    store : str or Path
        See :func:`store_url`.
    wait_s : float
        How long a locked database is waited for.
    """

    def __init__(self, store: str | Path, *, wait_s: float = 30.0):
        self.url = store_url(store)
        self.wait_s = wait_s
        self.is_sqlite = self.url.drivername == "sqlite"
        self.engine = self._engine()

    @property
    def name(self) -> str:
        """The URL without its password, as errors print it."""
        if self.is_sqlite:
            return str(self.url.database)
        return self.url.set(drivername="postgresql").render_as_string(hide_password=True)

    @property
    def path(self) -> Path | None:
        """The file of SQLite."""
        return Path(str(self.url.database)) if self.is_sqlite else None

    def _engine(self) -> Engine:
        try:
            if self.is_sqlite:
                engine = create_engine(self.url, connect_args={"timeout": self.wait_s})
                event.listen(engine, "connect", _set_up_sqlite)
                event.listen(engine, "begin", _begin_sqlite)
                return engine
            return create_engine(
                self.url, pool_pre_ping=True,
                connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "cynosure"},
            )
        except (ImportError, NoSuchModuleError) as error:
            raise StoreUnavailable(
                store=self.name, reason=f"the driver is not installed ({error})",
                hint="pip install 'cynosure[postgres]'",
            ) from error

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection in a transaction that only reads."""
        try:
            with self.engine.connect() as connection:
                yield connection
        except (DBAPIError, PoolTimeout) as error:
            raise self._in_words(error) from error

    def write(self, action: Callable[[Connection], T], *, durable: bool = True) -> T:
        """Run an action in one transaction, again while the database is locked.

        Where it is not `durable`, a power cut may undo it; the next one that is durable makes it
        so too. (A killed process undoes nothing that was written.)

        Raises
        ------
        Temporary
            If it is still locked after `wait_s`; nothing was written.
        StoreUnavailable, OutputError
            If it cannot be written to at all.
        """
        deadline = time.monotonic() + self.wait_s
        pause = 0.01
        while True:
            try:
                with self.engine.connect() as connection:
                    connection = connection.execution_options(
                        cynosure_write="FULL" if durable else "NORMAL"
                    )
                    with connection.begin():
                        return action(connection)
            except (DBAPIError, PoolTimeout) as error:
                known = self._in_words(error)
                if not isinstance(known, Temporary) or time.monotonic() + pause > deadline:
                    raise known from error
            # A random pause, so that two writers do not collide again.
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2.0 * pause, 1.0)

    def _in_words(self, error: DBAPIError | PoolTimeout) -> CynosureError:
        """Return what a driver's error means to the user; a defect of ours is raised as it is."""
        if isinstance(error, PoolTimeout):
            return Temporary(resource=self.name, reason="all connections are in use")
        origin = error.orig
        reason = str(origin).strip().splitlines()[0].lower() if str(origin).strip() else "unknown"
        if self.is_sqlite:
            return self._sqlite_in_words(error, reason)
        state = getattr(origin, "sqlstate", None) or ""
        if state in TRANSIENT_STATES:
            return Temporary(resource=self.name, reason=reason)
        if state in ABSENT_STATES:
            return StoreUnavailable(store=self.name, reason="there is no store in this database")
        if state in FULL_STATES:
            return OutputError(path=self.name, reason="the disk of the server is full")
        if state.startswith("57") or type(origin).__name__ in (
            "OperationalError", "ConnectionTimeout", "AdminShutdown", "InterfaceError",
        ) or error.connection_invalidated:
            return StoreUnavailable(
                store=self.name, reason=_without_address(reason),
                hint="Check that the server runs and that the URL, user and password are right.",
            )
        raise error

    def _sqlite_in_words(self, error: DBAPIError, reason: str) -> CynosureError:
        if "locked" in reason or "busy" in reason:
            return Temporary(resource=self.name, reason="locked by another writer")
        if "full" in reason:
            return OutputError(path=self.name, reason="the disk is full")
        if "readonly" in reason or "read-only" in reason:
            return OutputError(path=self.name, reason="read-only")
        if "no such table" in reason:
            return StoreUnavailable(store=self.name, reason="there is no store in this file")
        if "not a database" in reason or "malformed" in reason or "encrypted" in reason:
            return StoreUnavailable(
                store=self.name, reason=f"damaged, or no database of SQLite ({reason})",
                hint="Restore it from `cynosure store export`, or choose another file.",
            )
        if "unable to open" in reason or "disk i/o" in reason:
            return StoreUnavailable(store=self.name, reason=reason)
        raise error


def _without_address(reason: str) -> str:
    """Leave out what a driver puts before the reason itself."""
    return reason.split(" failed: ", 1)[-1].removeprefix("fatal: ").removeprefix("error: ")


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    """Let transactions begin where we say so, and wait for locks."""
    connection.isolation_level = None
    cursor = connection.cursor()
    # 64 MiB of pages in memory and 256 MiB mapped, so that lookups rarely read the disk.
    cursor.execute("PRAGMA cache_size=-65536")
    cursor.execute("PRAGMA mmap_size=268435456")
    # 8192 pages, 32 MiB instead of 4: fewer, larger copies from the log into the file.
    cursor.execute("PRAGMA wal_autocheckpoint=8192")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at once: a lock that is taken late cannot be waited for."""
    write = connection.get_execution_options().get("cynosure_write")
    if write:
        connection.exec_driver_sql(f"PRAGMA synchronous={write}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
