"""The store: every solution that an exposure ever had, in a database.

:class:`Store` adds solutions, finds them by exposure, sky, catalogue, quality and time, gives
their files back byte for byte, decides which is best
(:mod:`cynosure.solutions.store.selection`), and keeps the decisions. It may be used by many
threads and many processes at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import case, delete, func, insert, select, update

from cynosure.ground.errors import CatalogDamaged, SettingError, StoreUnavailable
from cynosure.solutions.store import footprints as skyquery
from cynosure.solutions.store import migrations
from cynosure.solutions.store.database import Database
from cynosure.solutions.store.dates import now
from cynosure.solutions.store.entry import EXTENTS, Entry, GuideStars, circles
from cynosure.solutions.store.query import Query, conditions, escaped
from cynosure.solutions.store.rows import (
    PROVENANCE,
    decision_row,
    insert_many,
    payload_row,
    solution_row,
    stored_files,
    told,
)
from cynosure.solutions.store.schema import (
    SCHEMA_VERSION,
    Stored,
    decisions,
    footprints,
    guide_stars,
    payloads,
    pieces,
    solutions,
)
from cynosure.solutions.store.selection import Brief, Decision, Policy, best_place, select_best

__all__ = ["Added", "GuideStars", "Known", "Store"]

T = TypeVar("T")

# Solutions in one transaction, which shares one sync to the disk. A batch that fails is lost as a
# whole.
BATCH = 500
# Names in one statement, well below the 32766 parameters that SQLite allows.
MANY = 5000
# Fewer exposures than this are asked for by name, more by the range of their names.
FEW = 500


@dataclass(frozen=True, slots=True)
class Added:
    """What an addition did.

    Attributes
    ----------
    new, known : int
        Solutions that came in, and that were there already.
    """

    new: int = 0
    known: int = 0

    def __add__(self, other: Added) -> Added:
        return Added(self.new + other.new, self.known + other.known)


@dataclass(frozen=True, slots=True)
class Known:
    """An exposure that has solutions.

    Attributes
    ----------
    rootname : str
        The exposure.
    n_solutions : int
        How many it has.
    ra_deg, dec_deg : float or None
        Where it is: the mean direction of the corners of its chips by its best solution.
    fitted : bool
        Whether one of them is a posteriori.
    last_added : str
        When the last one came in (UTC).
    """

    rootname: str
    n_solutions: int
    ra_deg: float | None
    dec_deg: float | None
    fitted: bool
    last_added: str


class Store:
    """A database of solutions.

    Parameters
    ----------
    store : str or Path
        ``sqlite:///FILE``, the path of a file, or ``postgresql://…``.
    create : bool
        Whether a store that is not there is made.
    wait_s : float
        How long a locked database is waited for.

    Raises
    ------
    StoreUnavailable
        If there is no store, it cannot be reached, or it is of another version.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Store(f"{folder}/solutions.db", create=True) as store:
    ...         store.count()
    0
    """

    def __init__(self, store: str | Path, *, create: bool = False, wait_s: float = 30.0):
        self.database = Database(store, wait_s=wait_s)
        path = self.database.path
        if path is not None and not create and not path.is_file():
            raise StoreUnavailable(store=str(path), reason="there is no such file")
        try:
            self.created = create and migrations.create(self.database)
            migrations.check_version(self.database)
        except BaseException:
            self.database.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give all connections back."""
        self.database.close()

    @property
    def name(self) -> str:
        """The store's URL, without a password."""
        return self.database.name

    # --- adding -------------------------------------------------------------------------------

    def add(self, entries: Iterable[Entry]) -> Added:
        """Add solutions; those that are there already are left as they are.

        Raises
        ------
        Temporary, StoreUnavailable, OutputError
            If the database does not take them; batches of earlier calls are kept, a batch that
            fails is not there at all.
        """
        total, waiting = Added(), None
        for batch in _batches(entries, BATCH):
            if waiting is not None:
                action = partial(self._add_batch, batch=waiting)
                total += self.database.write(action, durable=False)
            waiting = batch
        if waiting is not None:
            total += self.database.write(partial(self._add_batch, batch=waiting))
        return total

    def _add_batch(self, connection: Any, batch: Sequence[Entry]) -> Added:
        unique: dict[str, Entry] = {}
        for e in batch:
            other = unique.get(e.key)
            unique[e.key] = e if other is None else _together(other, e)
        known = self._known(connection, unique.values())
        self._learn(connection, [(known[k], e) for k, e in unique.items() if k in known])
        fresh = [e for key, e in unique.items() if key not in known]
        if not fresh:
            return Added(0, len(batch))
        added = now()
        around = circles(fresh)
        rows = [solution_row(e, circle, e.added or added)
                for e, circle in zip(fresh, around, strict=True)]
        insert_many(connection, solutions, rows)
        ids = {k: row.id for k, row in self._known(connection, fresh).items()}
        # Another writer may have been faster with some; its file and footprint serve as well.
        numbers = [ids[e.key] for e in fresh]
        self._cover(connection, numbers, around)
        shared: dict[bytes, bytes] = {}
        files = [payload_row(e, number, shared) for e, number in zip(fresh, numbers, strict=True)]
        self._insert_pieces(connection, shared)
        insert_many(connection, payloads, files)
        return Added(len(fresh), len(batch) - len(fresh))

    def _known(self, connection: Any, entries: Iterable[Entry]) -> dict[str, Any]:
        """Return the rows of the solutions that are there, by the entries' keys."""
        c = solutions.c
        contents = {e.content_sha256: e.key for e in entries}
        columns = [c.id, c.identity, c.content_sha256, c.extent, c.settings]
        rows = connection.execute(
            select(*columns, *(c[n] for n in PROVENANCE)).where(
                c.identity.in_(list(contents.values())) | c.content_sha256.in_(list(contents)))
        ).all()
        by_content = {contents[r.content_sha256]: r for r in rows if r.content_sha256 in contents}
        return by_content | {r.identity: r for r in rows}

    def _learn(self, connection: Any, twice: list[tuple[Any, Entry]]) -> None:
        """Keep what another file of a known solution says that was not known of it."""
        for row, entry in twice:
            news = told(row, entry)
            if entry.settings and row.settings == "{}":
                news["settings"] = solution_row(entry, None, "")["settings"]
            if news:
                connection.execute(
                    update(solutions).where(solutions.c.id == row.id).values(news))
        self._place(connection, [(row.id, e) for row, e in twice if _knows_more(e, row.extent)])

    def _cover(self, connection: Any, numbers: list[int], around: list[Any]) -> None:
        cells = skyquery.footprint_cells(around)
        insert_many(connection, footprints, [
            {"uniq": uniq, "solution_id": numbers[k]} for k, uniq in cells
        ])

    def _place(self, connection: Any, better: list[tuple[int, Entry]]) -> None:
        """Correct the footprints of solutions of which the chips' size has become known."""
        for number, entry in better:
            row = solution_row(entry, entry.circle(), "")
            names = ("corners", "extent", "ra_deg", "dec_deg", "radius_deg")
            connection.execute(
                update(solutions).where(solutions.c.id == number).values(
                    {name: row[name] for name in names})
            )
            connection.execute(delete(footprints).where(footprints.c.solution_id == number))
        self._cover(connection, [number for number, _ in better], [e.circle() for _, e in better])

    def _insert_pieces(self, connection: Any, bodies: dict[bytes, bytes]) -> None:
        if not bodies:
            return
        there = {bytes(row[0]) for row in connection.execute(
            select(pieces.c.digest).where(pieces.c.digest.in_(list(bodies)))
        )}
        # In one order, so that two writers never wait for each other.
        insert_many(connection, pieces, [
            {"digest": d, "body": bodies[d]} for d in sorted(bodies) if d not in there
        ])

    # --- finding ------------------------------------------------------------------------------

    def count(self) -> int:
        """Return the number of solutions."""
        with self.database.read() as connection:
            return int(connection.scalar(select(func.count()).select_from(solutions)) or 0)

    def newest(self) -> int:
        """Return the number of the solution that came in last; 0 where there is none."""
        with self.database.read() as connection:
            return int(connection.scalar(select(func.max(solutions.c.id))) or 0)

    def find(
        self, query: Query | None = None, *, limit: int | None = None, offset: int = 0
    ) -> list[Stored]:
        """Return the solutions that a query asks for, by exposure and date, the unknown first.

        Raises
        ------
        SettingError
            If a date or the circle is none.
        """
        query = query or Query()
        statement = select(solutions).where(*conditions(query))
        c = solutions.c
        statement = statement.order_by(c.rootname, c.created.asc().nulls_first(), c.id)
        with self.database.read() as connection:
            if query.cone is None:
                if limit is not None or offset:
                    statement = statement.limit(limit).offset(offset)
                return [Stored.of_row(row) for row in connection.execute(statement)]
            candidates = self._near(connection, statement, query.cone)
        found = skyquery.touching(candidates, *query.cone)
        return found[offset : None if limit is None else offset + limit]

    def _near(
        self, connection: Any, statement: Any, cone: tuple[float, float, float]
    ) -> list[Stored]:
        """Return the solutions whose cells touch a circle, and a few more."""
        ids = sorted({row[0] for row in connection.execute(skyquery.ids_in_cells(*cone))})
        found = []
        for part in _batches(ids, MANY):
            found += [
                Stored.of_row(row)
                for row in connection.execute(statement.where(solutions.c.id.in_(part)))
            ]
        return sorted(found, key=lambda s: (s.rootname, s.created or "", s.id))

    def exposures(self, *, after: str = "", limit: int | None = None) -> list[Known]:
        """Return the exposures by name, those after a name first to last."""
        c = solutions.c
        fitted = func.max(case((c.kind == "a posteriori", 1), else_=0))
        statement = (
            select(c.rootname, func.count(), fitted, func.max(c.added), func.min(c.ra_deg),
                   func.max(c.ra_deg), func.min(c.dec_deg), func.max(c.dec_deg))
            .where(c.rootname > after).group_by(c.rootname).order_by(c.rootname).limit(limit)
        )
        with self.database.read() as connection:
            rows = connection.execute(statement).all()
            # Where all solutions say the same place, as one alone does, none need be ranked.
            places = self._places(
                connection, [r[0] for r in rows if r[4] != r[5] or r[6] != r[7]])
        out = []
        for rootname, n_solutions, is_fitted, last, ra, _, dec, _ in rows:
            ra, dec = places.get(rootname, (ra, dec))
            out.append(Known(rootname, n_solutions, ra, dec, bool(is_fitted), last))
        return out

    def _places(
        self, connection: Any, names: list[str]
    ) -> dict[str, tuple[float, float]]:
        """Return where exposures are, whose names are given in the database's own order.

        Each is where the best of its solutions that has a place puts it.
        """
        c, d = solutions.c, decisions.c
        if not names:
            return {}
        asked = [c.ra_deg.is_not(None), c.rootname.between(names[0], names[-1])]
        if len(names) < FEW:
            asked.append(c.rootname.in_(names))
        made = connection.execute(
            select(d.rootname, d.content_sha256).where(d.rule == "user").order_by(d.made, d.id))
        choices = {row[0]: row[1] for row in made}
        found: dict[str, list[Brief]] = {name: [] for name in names}
        rows = connection.execute(
            select(*(c[name] for name in Brief._fields)).where(*asked)).all()
        for row in rows:
            if row[0] in found:
                found[row[0]].append(Brief._make(row))
        out = {}
        for rootname, briefs in found.items():
            best = best_place(briefs, choices.get(rootname, ""))
            out[rootname] = best.ra_deg, best.dec_deg
        return out

    def get(self, content_sha256: str) -> Stored | None:
        """Return the solution of a content, None where there is none."""
        with self.database.read() as connection:
            row = connection.execute(
                select(solutions).where(solutions.c.content_sha256 == content_sha256)
            ).first()
        return Stored.of_row(row) if row is not None else None

    def payload(self, content_sha256: str) -> bytes:
        """Return a solution's file, byte for byte as it came.

        Raises
        ------
        SettingError
            If there is no such solution.
        CatalogDamaged
            If the file is not what was stored.
        """
        for _, payload in self.payloads([content_sha256]):
            return payload
        raise SettingError("{content_sha256}: no such solution", content_sha256=content_sha256)

    def payloads(self, contents: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Give the files of solutions, with what each belongs to."""
        for part in _batches(contents, BATCH):
            with self.database.read() as connection:
                files = list(stored_files(connection, part))
            for content, payload in files:
                if payload is None:
                    raise CatalogDamaged(
                        catalog=self.name, reason=f"the file of {content} is damaged",
                        hint="Add the solution again to another store, or restore an export.",
                    )
                yield content, payload

    # --- deciding -----------------------------------------------------------------------------

    def best(self, rootname: str, *, policy: Policy = "hierarchy", made_by: str = "") -> Decision:
        """Return which solution of an exposure is to be active, and why; nothing is written."""
        with self.database.read() as connection:
            rows = connection.execute(select(solutions).where(solutions.c.rootname == rootname))
            stored = [Stored.of_row(row) for row in rows]
            choice = self._choice(connection, rootname)
        return select_best(rootname, stored, choice=choice, policy=policy, made_by=made_by)

    def _choice(self, connection: Any, rootname: str) -> str:
        c = decisions.c
        return connection.scalar(
            select(c.content_sha256).where(c.rootname == rootname, c.rule == "user")
            .order_by(c.made.desc(), c.id.desc()).limit(1)
        ) or ""

    def record(self, decision: Decision) -> None:
        """Keep a decision."""
        self.database.write(partial(_keep, rows=[decision_row(decision)]))

    def choose(
        self, rootname: str, solution: str, *, made_by: str = "", dry_run: bool = False
    ) -> Decision:
        """Keep the user's choice, which stands above all rules.

        Parameters
        ----------
        rootname : str
            The exposure.
        solution : str
            WCSNAME, HDRNAME or content of one of its solutions; empty takes a choice back, where
            there is one.
        made_by : str
            Who chose.
        dry_run : bool
            Whether nothing is written.

        Raises
        ------
        SettingError
            If the exposure is not known, has no such solution, or more than one of this name.
        """
        stored = self.find(Query(rootname=escaped(rootname)))
        with self.database.read() as connection:
            before = self._choice(connection, rootname)
        if not stored and not before:
            raise SettingError(
                "{rootname}: no such exposure in {store}", rootname=rootname, store=self.name,
                hint="`cynosure store find` lists the exposures; * stands for any characters.",
            )
        named = [s for s in stored if solution in (s.content_sha256, s.hdrname, s.wcsname)]
        exact = [s for s in named if solution in (s.content_sha256, s.hdrname)]
        named = exact or named
        if solution and len(named) != 1:
            names = ", ".join(sorted({s.hdrname or s.content_sha256 for s in named or stored}))
            raise SettingError(
                "{rootname}: {count} solutions are called {solution}", rootname=rootname,
                count=len(named) or "no", solution=solution, hint=f"One of: {names or 'none'}.",
            )
        choice = named[0].content_sha256 if solution else ""
        decision = select_best(rootname, stored, choice=choice, made_by=made_by)

        rows = [decision_row(decision)]
        if not solution:
            withdrawn = {**rows[0], "content_sha256": "", "rule": "user", "wcsname": ""}
            rows = [withdrawn, *rows] if before else []
        if rows and not dry_run:
            self.database.write(partial(_keep, rows=rows))
        return decision

    def history(self, rootname: str) -> list[dict[str, Any]]:
        """Return all that happened to an exposure, oldest first: solutions and decisions."""
        with self.database.read() as connection:
            rows = connection.execute(
                select(solutions).where(solutions.c.rootname == rootname).order_by(solutions.c.id))
            events = [{"when": s.added, "what": "solution", **s.to_dict()}
                      for s in map(Stored.of_row, rows)]
            made = connection.execute(
                select(decisions).where(decisions.c.rootname == rootname)
                .order_by(decisions.c.made, decisions.c.id)
            ).mappings()
            for row in made:
                withdrawn = row["rule"] == "user" and not row["content_sha256"]
                what = "choice withdrawn" if withdrawn else "decision"
                events.append({"when": row["made"], "what": what, **json.loads(row["record"])})
        return sorted(events, key=lambda e: str(e["when"]))

    def last_decision(self, rootname: str) -> Decision | None:
        """Return the last decision that was kept."""
        with self.database.read() as connection:
            record = connection.scalar(
                select(decisions.c.record).where(
                    decisions.c.rootname == rootname, decisions.c.content_sha256 != ""
                ).order_by(decisions.c.made.desc(), decisions.c.id.desc()).limit(1)
            )
        return Decision.from_dict(json.loads(record)) if record else None

    def proposals(self, *, limit: int = 100) -> list[tuple[Decision, Decision]]:
        """Return exposures whose best solution is not the one last decided on: (last, best now)."""
        c, s = decisions.c, solutions.c
        latest = func.row_number().over(
            partition_by=c.rootname, order_by=(c.made.desc(), c.id.desc()))
        ranked = select(c.id, latest.label("place")).where(c.content_sha256 != "").subquery()
        last = select(ranked.c.id).where(ranked.c.place == 1).subquery()
        newest = (
            select(s.rootname, func.max(s.added).label("added")).group_by(s.rootname).subquery()
        )
        statement = (
            select(decisions.c.record).join(last, last.c.id == c.id)
            .join(newest, newest.c.rootname == c.rootname)
            .where(newest.c.added >= c.made).order_by(c.rootname)
        )
        found: list[tuple[Decision, Decision]] = []
        with self.database.read() as connection:
            records = connection.execute(statement).scalars().all()
        for record in records:
            before = Decision.from_dict(json.loads(record))
            now = self.best(before.rootname)
            if now.content_sha256 and now.content_sha256 != before.content_sha256:
                found.append((before, now))
                if len(found) >= limit:
                    break
        return found

    # --- guide stars --------------------------------------------------------------------------

    def set_guide_stars(self, offsets: GuideStars) -> None:
        """Keep the offsets of an exposure's guide stars; the last ones count."""
        values = {name: getattr(offsets, name) for name in offsets.__slots__}
        self.database.write(
            lambda c: c.execute(insert(guide_stars), [{**values, "added": now()}])
        )

    def guide_stars(self, rootname: str) -> GuideStars | None:
        """Return the offsets of an exposure's guide stars; its name in any case."""
        names = list(GuideStars.__slots__)
        with self.database.read() as connection:
            row = connection.execute(
                select(*(guide_stars.c[n] for n in names))
                .where(guide_stars.c.rootname.in_({rootname, rootname.lower(), rootname.upper()}))
                .order_by(guide_stars.c.added.desc(), guide_stars.c.id.desc()).limit(1)
            ).first()
        return GuideStars(*row) if row is not None else None

    def remove(self, content_sha256: str) -> bool:
        """Remove a solution and its file for good; false where there is none."""

        def take_out(connection: Any) -> bool:
            number = connection.scalar(
                select(solutions.c.id).where(solutions.c.content_sha256 == content_sha256)
            )
            if number is None:
                return False
            for table in (footprints, payloads):
                connection.execute(delete(table).where(table.c.solution_id == number))
            connection.execute(delete(solutions).where(solutions.c.id == number))
            return True

        return self.database.write(take_out)

    def info(self) -> dict[str, Any]:
        """Return what a store holds, in numbers."""
        c = solutions.c
        with self.database.read() as connection:
            row = connection.execute(select(
                func.count(), func.count(c.rootname.distinct()), func.sum(c.size_bytes),
                func.max(c.added),
            )).one()
            kinds = connection.execute(select(c.kind, func.count()).group_by(c.kind)).all()
        return {
            "store": self.name, "schema": SCHEMA_VERSION, "solutions": int(row[0]),
            "exposures": int(row[1]), "size_bytes": int(row[2] or 0), "last_added": row[3] or "",
            "kinds": {kind: int(n) for kind, n in sorted(kinds)},
        }


def _knows_more(entry: Entry, extent: str) -> bool:
    """Say whether an entry knows the size of its chips better than was known."""
    worse: Sequence[str] = EXTENTS[: EXTENTS.index(entry.extent)]
    return extent in worse


def _together(first: Entry, second: Entry) -> Entry:
    """Return the first of two files of a solution, with what only the second one says."""
    news = told(first, second)
    if second.settings and not first.settings:
        news["settings"] = second.settings
    if _knows_more(second, first.extent):
        news |= {"corners": second.corners, "extent": second.extent}
    return replace(first, **news) if news else first


def _keep(connection: Any, rows: list[dict[str, Any]]) -> None:
    """Add decisions, none dated before the last one, whatever the clock says."""
    for row in rows:
        last = connection.scalar(
            select(func.max(decisions.c.made)).where(decisions.c.rootname == row["rootname"])
        ) or ""
        connection.execute(insert(decisions), [{**row, "made": max(row["made"], last)}])


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
