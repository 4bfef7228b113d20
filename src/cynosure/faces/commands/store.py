"""``cynosure store``: the database of solutions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cynosure.faces.shell import Command, Shell, option, shared
from cynosure.ground.errors import CynosureError, ExitCode, OutputExists, SettingError

if TYPE_CHECKING:
    from cynosure.data.catalogs.refcat import RefCat
    from cynosure.solutions.store.entry import Entry
    from cynosure.solutions.store.schema import Stored

__all__ = ["store"]

where = option(
    "--store", "url", metavar="URL", envvar="CYNOSURE_STORE", required=True, show_envvar=True,
    help="sqlite:///FILE, the path of a file, or postgresql://USER@HOST/DATABASE.",
)
by_policy = option(
    "--policy", type=click.Choice(["hierarchy", "measured"]), default="hierarchy",
    show_default=True, help="What counts first within a class.",
)


@click.group()
def store() -> None:
    """Keep every solution of every exposure in a database."""


@store.command(cls=Command, example="cynosure store init --store sqlite:///solutions.db")
@where
@shared
def init(shell: Shell, url: str) -> int:
    """Make an empty store."""
    from cynosure.solutions.store.database import Database
    from cynosure.solutions.store.store import Store

    if shell.dry_run:
        shell.say(f"would make {Database(url).name}")
        return int(ExitCode.OK)
    with Store(url, create=True) as opened:
        shell.emit({**opened.info(), "created": opened.created})
        shell.say(f"{opened.name}: {'made' if opened.created else 'there already'}")
        return int(ExitCode.OK if opened.created else ExitCode.NOTHING_TO_DO)


@store.command(cls=Command, example="cynosure store add --store solutions.db *.solution.json")
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@where
@shared
def add(shell: Shell, files: tuple[str, ...], url: str) -> int:
    """Add solutions: records of solved images, headerlets, all that exposures hold.

    A FILE may be NAME.solution.json, a headerlet, a FITS image (its active WCS, its alternates, its
    HDRLET extensions), a folder with such files, or the folder of an export. What is there already
    is left as it is.
    """
    from cynosure.solutions.store.export import import_store, is_export
    from cynosure.solutions.store.store import Added, Store

    refused: list[CynosureError] = []
    total = Added()
    with Store(url) as opened:
        exports = [Path(f) for f in files if is_export(Path(f))]
        if shell.dry_run:
            shell.say(f"would add {len(list(_entries(files, refused)))} solutions")
            return int(ExitCode.OK)
        for path in exports:
            total += import_store(opened, path)
        rest = [f for f in files if Path(f) not in exports]
        total += opened.add(_entries(rest, refused, shell.processes))
        shell.emit({"store": opened.name, "new": total.new, "known": total.known,
                    "refused": [str(error) for error in refused]})
        shell.say(f"{opened.name}: {total.new} new, {total.known} known, {len(refused)} refused")
    for error in refused:
        shell.tell(f"refused: {error}")
    if refused:
        alone = total.new + total.known == 0 and len({e.exit_code for e in refused}) == 1
        return int(refused[0].exit_code if alone else ExitCode.MIXED)
    return int(ExitCode.OK if total.new else ExitCode.NOTHING_TO_DO)


def _entries(
    files: Any, refused: list[CynosureError], workers: int = 1
) -> Iterator[Entry]:
    """Read the files one by one, or some at a time; what cannot be read is put aside."""
    paths = list(_expanded(files))
    if workers > 1 and len(paths) > 1:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            made = pool.map(_read, paths, chunksize=max(1, min(50, len(paths) // workers)))
            yield from _good(made, refused)
    else:
        yield from _good(map(_read, paths), refused)


def _good(
    made: Iterable[list[Entry | CynosureError]], refused: list[CynosureError]
) -> Iterator[Entry]:
    for entries in made:
        for entry in entries:
            if isinstance(entry, CynosureError):
                refused.append(entry)
            else:
                yield entry


def _read(path: Path) -> list[Entry | CynosureError]:
    from cynosure.solutions.store.intake import read_entries

    try:
        return list(read_entries(path))
    except CynosureError as error:
        return [error]


def _expanded(files: Any) -> Iterator[Path]:
    """Give the files, and those of folders that look like solutions."""
    for path in map(Path, files):
        if path.is_dir():
            for pattern in ("*.solution.json", "*hlet.fits*", "*_fl[tcm].fits*"):
                yield from sorted(path.rglob(pattern))
        else:
            yield path


@store.command(cls=Command, example="cynosure store find --store sky.db --cone 137.84 -64.91 0.1")
@click.argument("rootname", required=False)
@where
@option("--wcsname", metavar="NAME", help="Only solutions of this name; * stands for anything.")
@option("--catalog", metavar="NAME", help="Only those fitted to this catalogue.")
@option("--kind", metavar="KIND", help="Only 'a posteriori', 'a priori', 'distortion' ….")
@option("--cone", nargs=3, metavar="RA DEC RADIUS", help="Only those that touch this circle (deg).")
@option("--max-quality", type=click.IntRange(1, 4), metavar="N", help="Quality 1 … N.")
@option("--max-rms", "max_rms_mas", type=float, metavar="MAS", help="Residuals at most this.")
@option("--since", "created_since", metavar="DATE", help="Made on this date or later (UTC).")
@option("--until", "created_until", metavar="DATE",
        help="Made on this date or earlier; a day counts to its end.")
@option("--usable/--unusable", "valid", default=None, help="Only those that may be used, or not.")
@option("--limit", type=click.IntRange(1), default=1000, show_default=True, metavar="N",
        help="At most so many.")
@shared
def find(
    shell: Shell, rootname: str | None, url: str, cone: tuple[str, str, str] | None, limit: int,
    **options: Any,
) -> int:
    """Find solutions by exposure, sky, catalogue, quality and date.

    ROOTNAME is an exposure; * stands for any characters. A DATE is 2021, 2021-01, 2021-01-05 or
    2021-01-05T05:23:11; all of it is meant. Solutions of which nobody knows when they were made are
    found without dates only.
    """
    from cynosure.ground.quantities import sky_position
    from cynosure.solutions.store.query import Query
    from cynosure.solutions.store.store import Store

    circle = None
    if cone is not None:
        ra_deg, dec_deg = sky_position(cone[:2], "--cone") or (0.0, 0.0)
        circle = (ra_deg, dec_deg, _number(cone[2]))
    query = Query(rootname=rootname, cone=circle, **options)
    with Store(url) as opened:
        found = opened.find(query, limit=limit)
    for solution in found:
        shell.emit(solution.to_dict())
    if found:
        shell.say(_line(_HEADS))
    for solution in found:
        shell.say(_line(_cells(solution)))
    shell.tell(f"{len(found)} solutions" + (" (--limit)" if len(found) == limit else ""))
    return int(ExitCode.OK if found else ExitCode.NOTHING_TO_DO)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingError("--cone: {text} is no number of degrees", text=text) from None


_HEADS = ("rootname", "wcsname", "catalogue", "rms/mas", "stars", "q", "made", "")
_WIDTHS = (18, 36, 10, 8, 6, 2, 16, 0)


def _line(cells: tuple[str, ...]) -> str:
    return "  ".join(f"{c:<{w}}" for c, w in zip(cells, _WIDTHS, strict=True)).rstrip()


def _cells(s: Stored) -> tuple[str, ...]:
    return (
        s.rootname, s.wcsname, s.catalog, "" if s.rms_mas is None else f"{s.rms_mas:.3g}",
        "" if s.nmatch is None else str(s.nmatch), "" if s.quality is None else str(s.quality),
        s.created[:16] if s.created else "unknown",
        "" if s.valid else "unusable: " + "; ".join(s.faults),
    )


@store.command(cls=Command, example="cynosure store best --store solutions.db ib4606c5q")
@click.argument("rootname")
@where
@by_policy
@option("--record", is_flag=True, help="Keep the decision in the store.")
@option("--choose", metavar="NAME", help="Make this solution the choice, above all rules.")
@option("--withdraw", is_flag=True, help="Take a choice back.")
@option("--by", "made_by", default="", metavar="WHO", help="Who decides; kept with the decision.")
@option("--write", metavar="FILE",
        help="Write the solution's file here; a headerlet where it ends in .fits.")
@shared
def best(
    shell: Shell, rootname: str, url: str, policy: Any, record: bool, choose: str | None,
    withdraw: bool, made_by: str, write: str | None,
) -> int:
    """Say which solution of an exposure is to be active, and why."""
    from cynosure.solutions.store.intake import as_headerlet
    from cynosure.solutions.store.store import Store

    if sum([record, choose is not None, withdraw]) > 1:
        raise SettingError("--record, --choose and --withdraw exclude each other", hint="Give one.")
    if choose == "":
        raise SettingError("--choose: no solution named", hint="--withdraw takes a choice back.")
    with Store(url) as opened:
        if withdraw or choose:
            decision = opened.choose(
                rootname, choose or "", made_by=made_by, dry_run=shell.dry_run)
        else:
            decision = opened.best(rootname, policy=policy, made_by=made_by)
            if record and not shell.dry_run and decision.content_sha256:
                opened.record(decision)
        shell.emit(decision.to_dict())
        shell.say(str(decision))
        if write is not None and decision.content_sha256 and not shell.dry_run:
            payload = opened.payload(decision.content_sha256)
            if Path(write).suffix.lower() == ".fits":
                payload = as_headerlet(payload, decision.hdrname)
            _write(Path(write), payload, shell.overwrite)
            shell.say(f"  wrote      {write}")
    return int(ExitCode.OK if decision.content_sha256 else ExitCode.NO_SOLUTION)


def _write(path: Path, content: bytes, overwrite: bool) -> None:
    from cynosure.ground.files import atomic_path

    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(content)


@store.command(cls=Command, example="cynosure store history --store solutions.db ib4606c5q")
@click.argument("rootname")
@where
@shared
def history(shell: Shell, rootname: str, url: str) -> int:
    """List all that happened to an exposure: solutions that came in, decisions that were made."""
    from cynosure.solutions.store.store import Store

    with Store(url) as opened:
        events = opened.history(rootname)
    for event in events:
        shell.emit(event)
        why = event["reason"] if "reason" in event else event["descrip"]
        words = f"{event['when'][:19]}  {event['what']:<16}  {event['wcsname']:<36}  {why}"
        shell.say(words.rstrip())
    return int(ExitCode.OK if events else ExitCode.NOTHING_TO_DO)


@store.command(cls=Command, example="cynosure store export --store solutions.db --out backup")
@where
@shared
def export(shell: Shell, url: str) -> int:
    """Write the whole store to a folder of Parquet and JSON files; `store add` reads it back."""
    from cynosure.solutions.store.export import export_store
    from cynosure.solutions.store.store import Store

    if shell.out is None:
        raise SettingError("--out is missing", hint="Say where the export is to be: --out FOLDER.")
    out = Path(shell.out)
    if out.exists() and not shell.overwrite:
        raise OutputExists(path=str(out))
    with Store(url) as opened:
        if shell.dry_run:
            shell.say(f"would write {opened.count()} solutions to {out}/")
            return int(ExitCode.OK)
        facts = export_store(opened, out, overwrite=shell.overwrite)
    shell.emit(facts)
    shell.say(f"{out}: {facts['solutions']} solutions, {facts['decisions']} decisions")
    return int(ExitCode.OK)


@store.command(cls=Command, example="cynosure store migrate --store solutions.db")
@where
@shared
def migrate(shell: Shell, url: str) -> int:
    """Take a store of an older version to the newest schema."""
    from cynosure.solutions.store import migrations
    from cynosure.solutions.store.database import Database
    from cynosure.solutions.store.schema import SCHEMA_VERSION

    database = Database(url)
    if database.path is not None and not database.path.is_file():
        from cynosure.ground.errors import StoreUnavailable

        raise StoreUnavailable(store=database.name, reason="there is no such file")
    try:
        version = migrations.version_of(database)
        if shell.dry_run:
            shell.say(f"{database.name}: schema {version}, newest {SCHEMA_VERSION}")
            return int(ExitCode.OK)
        done = migrations.migrate(database)
    finally:
        database.close()
    shell.emit({"store": database.name, "from": version, "to": SCHEMA_VERSION, "done": done})
    for words in done:
        shell.say(words)
    shell.say(f"{database.name}: schema {SCHEMA_VERSION}")
    return int(ExitCode.OK if done else ExitCode.NOTHING_TO_DO)


@store.command(cls=Command, example="cynosure store serve --store solutions.db")
@where
@option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
        help="Address to listen on; the default can be reached from this machine only.")
@option("--port", type=click.IntRange(1, 65535), default=8765, show_default=True, metavar="N",
        help="Port to listen on.")
@option("--token", envvar="CYNOSURE_TOKEN", show_envvar=True, metavar="TEXT",
        help="Who writes must show it; without one the service only reads.")
@option("--max-body", "max_body_mb", type=click.IntRange(1, 10_000), default=64,
        show_default=True, metavar="MB", help="Refuse larger uploads.")
@option("--rate", "requests_per_minute", type=click.IntRange(0), default=1200, show_default=True,
        metavar="N", help="Requests a minute and address; 0 for no limit.")
@option("--refcat", "refcats", multiple=True, metavar="[NAME=]PATH|URL",
        help="Also serve this reference catalogue; may be given several times.")
@shared
def serve(
    shell: Shell, url: str, host: str, port: int, token: str | None, max_body_mb: int,
    requests_per_minute: int, refcats: tuple[str, ...],
) -> int:
    """Serve a store: pages, a JSON interface, and the one that Hubble's own client speaks."""
    from cynosure.solutions.store.store import Store

    try:
        from cynosure.faces.server import app
    except ModuleNotFoundError as error:
        raise SettingError(
            "the service needs {module}", module=error.name, hint="pip install 'cynosure[server]'"
        ) from error
    with Store(url) as opened:
        catalogs = [_catalog(text) for text in refcats]
        address = f"http://{host}:{port}"
        may = "reading and writing" if token else "only reading"
        shell.tell(f"{opened.name}: {address}  ({may})")
        shell.tell(f"for Hubble's client: ASTROMETRY_SERVICE_URL={address}/astrometryDB/ "
                   f"GSSS_WEBSERVICES_URL={address}/webservices")
        for catalog in catalogs:
            shell.tell(f"catalogue {catalog.name}: {catalog.source}")
        if not shell.dry_run:
            app.serve(
                opened, host=host, port=port, token=token or "", refcats=catalogs,
                max_body_bytes=max_body_mb << 20, requests_per_minute=requests_per_minute,
            )
    return int(ExitCode.OK)


def _catalog(text: str) -> RefCat:
    """Open PATH or URL, under another name where NAME= stands before it."""
    from cynosure.data.catalogs.refcat import open_refcat

    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9]*)=(.+)", text)
    return open_refcat(found[2], name=found[1]) if found else open_refcat(text)


@store.command(cls=Command, example="cynosure store guide-stars --store solutions.db offsets.json")
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@where
@shared
def guide_stars(shell: Shell, files: tuple[str, ...], url: str) -> int:
    """Keep offsets of guide stars, from JSON files: one object, or a list of them.

    An object has rootname, delta_ra_deg, delta_dec_deg, delta_roll_deg, delta_scale,
    input_ra_deg, input_dec_deg, output_ra_deg, output_dec_deg and catalog.
    """
    from cynosure.solutions.store.store import GuideStars, Store

    offsets = []
    for name in files:
        try:
            content = json.loads(Path(name).read_text(encoding="utf-8"))
            rows = content if isinstance(content, list) else [content]
            offsets += [GuideStars.from_dict(row) for row in rows]
        except (OSError, ValueError, RecursionError) as error:
            raise SettingError("{file}: {error}", file=name, error=error) from error
    with Store(url) as opened:
        for row in () if shell.dry_run else offsets:
            opened.set_guide_stars(row)
        shell.say(f"{opened.name}: offsets of {len(offsets)} exposures")
    return int(ExitCode.OK)
