"""Operations on files: list, create, attach, apply, archive, restore, delete.

Each operation opens the file, changes it in memory and writes it once, whole. What was written is
read again before it takes its name; a refusal leaves the file as it was. The file itself is
replaced unless `out` names another; `dry_run` says what would be done and writes nothing. Each
operation returns a :class:`Change`, which says what was done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cynosure.ground.errors import SettingError
from cynosure.solutions.files import edits
from cynosure.solutions.files.cards import RESERVED
from cynosure.solutions.files.contents import (
    Entry,
    Holdings,
    NoSuchSolution,
    open_holdings,
    shapes_of,
)
from cynosure.solutions.files.fitted import check_change, solutions_in
from cynosure.solutions.files.headerlet import (
    Headerlet,
    HeaderletDamaged,
    same_solution,
)
from cynosure.solutions.files.headerletio import read_headerlet, write_headerlet
from cynosure.solutions.files.invariants import duplicates_of, holdings_table, listing
from cynosure.solutions.names import Distortion, parse_distname, parse_wcsname

__all__ = [
    "Change",
    "activate",
    "apply_alternate",
    "archive",
    "attach",
    "create",
    "delete",
    "extract",
    "holdings_table",
    "listing",
    "names",
    "restore",
    "restore_all",
    "shapes_of",
    "solution_of",
    "summary",
    "write",
]

SUMMARY = (
    "HDRNAME", "WCSNAME", "DISTNAME", "AUTHOR", "DATE", "SIPNAME", "NPOLFILE", "D2IMFILE",
    "DESCRIP",
)


@dataclass(slots=True)
class Change:
    """What an operation did to a file.

    Attributes
    ----------
    path : Path
        The file that has the result.
    done : list of str
        In words, in order.
    written : bool
        False for a dry run, and where there was nothing to do.
    warnings : list of str
        What was done by force although it is doubtful, and why it is.
    """

    path: Path
    done: list[str] = field(default_factory=list)
    written: bool = False
    warnings: list[str] = field(default_factory=list)


@contextmanager
def _changing(
    path: str | Path, out: str | Path | None, overwrite: bool, dry_run: bool
) -> Iterator[tuple[Holdings, Change]]:
    change = Change(Path(path if out is None else out))
    with open_holdings(path, lock=out is None and not dry_run) as held:
        before = solutions_in(held)
        yield held, change
        if held.primary.has("NEXTEND"):
            held.primary.set("NEXTEND", len(held.parts) - 1)
        change.done = list(dict.fromkeys(held.notes))
        change.warnings = list(dict.fromkeys(held.warnings))
        if not dry_run and (held.file.changed or out is not None):
            held.file.save(
                out, overwrite=overwrite, check=lambda written: check_change(written, held, before)
            )
            change.written = True


# --- looking --------------------------------------------------------------------------------


def solution_of(path: str | Path, name: str | None = None) -> Headerlet:
    """Return a solution: that of a headerlet file, or the one of that name of an image.

    Raises
    ------
    ImageError, HeaderletDamaged, NoSuchSolution
    """
    if name is None:
        try:
            return read_headerlet(path)
        except HeaderletDamaged as error:
            if "no SIPWCS" not in str(error):
                raise
    with open_holdings(path) as held:
        return _headerlet(held.find(name or "active"))


def _headerlet(entry: Entry) -> Headerlet:
    if entry.headerlet is None:
        raise HeaderletDamaged(headerlet=entry.key, reason=entry.problem)
    return entry.headerlet


def names(path: str | Path, keyword: str = "HDRNAME") -> list[str]:
    """Return the values of a keyword of all headerlets in a file, as they lie.

    Parameters
    ----------
    path : path
    keyword : str
        ``HDRNAME``, ``WCSNAME``, ``DISTNAME``, ``EXTVER`` …
    """
    with open_holdings(path) as held:
        return [part.text(keyword) for part in held.embedded]


def summary(path: str | Path) -> list[dict[str, Any]]:
    """Return what the headerlets of a file say of themselves, one record for each.

    What a headerlet does not say is ``INDEF``, as users of the archive know it.
    """
    out = []
    with open_holdings(path) as held:
        for number, part in enumerate(held.parts):
            if part not in held.embedded:
                continue
            entry = held.entry(part)
            record: dict[str, Any] = {"EXTN": number, "EXTVER": part.version}
            for keyword in SUMMARY:
                text = part.text(keyword)
                if entry.headerlet is not None:
                    text = entry.headerlet.text(keyword) or text
                record[keyword] = text or "INDEF"
            if entry.problem:
                record["problem"] = entry.problem
            out.append(record)
    return out


# --- making and taking out ------------------------------------------------------------------


def create(
    path: str | Path, name: str = "active", *, hdrname: str | None = None,
    wcsname: str | None = None, author: str | None = None, descrip: str | None = None,
) -> Headerlet:
    """Make a headerlet of a solution in the headers of an image.

    Parameters
    ----------
    path : path
    name : str
        ``active``, a letter, or a name.
    hdrname, wcsname : str, optional
        Its names, where they are not to be those it has.
    author, descrip : str, optional
        Who made it, and what it is.

    Raises
    ------
    Refused
        For the reserved alternate ``O``, and where tables are missing.
    """
    with open_holdings(path) as held:
        entry = held.find(name)
        if entry.place == "alternate" and entry.key == RESERVED and held.distortion:
            raise edits.Refused(
                image=held.name, reason="alternate O is the telescope's own and makes no headerlet",
                hint="The headerlet OPUS of the archive is the same WCS.",
            )
        headerlet = _headerlet(entry)
    faults = [f for f in headerlet.faults() if "not in it" in f]
    if faults:
        raise edits.Refused(image=str(path), reason="; ".join(faults), hint="")
    cards = {"HDRNAME": hdrname, "WCSNAME": wcsname, "AUTHOR": author, "DESCRIP": descrip}
    given = {k: v for k, v in cards.items() if v is not None}
    return headerlet.replaced(**given) if given else headerlet


def write(headerlet: Headerlet, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a headerlet as a file of its own; see :func:`write_headerlet`."""
    return write_headerlet(headerlet, path, overwrite=overwrite)


def extract(
    path: str | Path, name: str, out: str | Path, *, overwrite: bool = False
) -> tuple[Headerlet, Path]:
    """Write a solution of a file as a headerlet of its own.

    A headerlet that was in the file comes out byte for byte as it went in.

    Returns
    -------
    headerlet : Headerlet
    out : Path
    """
    headerlet = create(path, name)
    return headerlet, write_headerlet(headerlet, out, overwrite=overwrite)


# --- changing -------------------------------------------------------------------------------


def attach(
    path: str | Path, headerlet: Headerlet | str | Path, *more: Headerlet | str | Path,
    hdrname: str | None = None, compress: bool = False, force: bool = False,
    out: str | Path | None = None, overwrite: bool = False, dry_run: bool = False,
) -> Change:
    """Append headerlets to their exposure, all or none; the active WCS stays.

    Parameters
    ----------
    path : path
        The image.
    headerlet, *more : Headerlet or path
    hdrname : str, optional
        A name for it in this file, where there is one.
    compress : bool
        Whether to gzip them.
    force : bool
        Take one that is not sound.
    out, overwrite, dry_run
        See the module.

    Raises
    ------
    WrongExposure, NameTaken, HeaderletDamaged, SettingError
    """
    if hdrname is not None and more:
        raise SettingError(
            "one name for {n} headerlets", n=1 + len(more), hint="Attach them one by one.",
        )
    given = [h if isinstance(h, Headerlet) else read_headerlet(h) for h in (headerlet, *more)]
    with _changing(path, out, overwrite, dry_run) as (held, change):
        for one in given:
            theirs = one if hdrname is None else one.replaced(HDRNAME=hdrname)
            edits.check_sound(held, theirs, force=force)
            if edits.attach_to(held, theirs, compress=compress, force=True):
                edits.record_attached(held, theirs)
    return change


def activate(
    path: str | Path, solution: str | Path | Headerlet, *, archive: bool = True,
    attach: bool = True, force: bool = False, out: str | Path | None = None,
    overwrite: bool = False, dry_run: bool = False,
) -> Change:
    """Make a solution the active one.

    Parameters
    ----------
    path : path
        The image.
    solution : str, path or Headerlet
        Something the file holds (a name, a letter, ``HDRLET,3``), a headerlet, or its file.
    archive : bool
        Keep the WCS that is replaced (it is never kept twice).
    attach : bool
        Append a headerlet that comes from outside.
    force : bool
        Take one with another distortion model, or one that is not sound.
    out, overwrite, dry_run
        See the module.

    Raises
    ------
    NoSuchSolution, WrongExposure, WrongDistortion, Refused, HeaderletDamaged
    """
    with _changing(path, out, overwrite, dry_run) as (held, change):
        _activate(held, solution, archive=archive, attach=attach, force=force)
    return change


def _activate(
    held: Holdings, solution: str | Path | Headerlet, *, archive: bool, attach: bool, force: bool
) -> None:
    if isinstance(solution, Headerlet):
        edits.apply_primary(held, solution, archive=archive, attach=attach, force=force)
        return
    try:
        entry = held.find(str(solution))
    except NoSuchSolution:
        if not Path(solution).is_file():
            raise
        theirs = read_headerlet(solution)
        edits.apply_primary(held, theirs, archive=archive, attach=attach, force=force)
        return
    if entry.place == "active":
        held.notes.append(f"{entry.wcsname} is active already")
        return
    theirs = _headerlet(entry)
    if entry.place == "alternate" and not held.distortion and held.has_active:
        edits.check_sound(held, theirs, key=entry.key, force=force)
        if edits.exchange(held, entry.key):
            return
    edits.apply_primary(
        held, theirs, archive=archive, attach=False, force=force, key=entry.key
    )


def apply_alternate(
    path: str | Path, solution: str | Path | Headerlet, *, letter: str | None = None,
    force: bool = False, out: str | Path | None = None, overwrite: bool = False,
    dry_run: bool = False,
) -> Change:
    """Keep a headerlet as an alternate WCS, under a letter.

    Raises
    ------
    WrongExposure, WrongDistortion, NameTaken, Refused
    """
    with _changing(path, out, overwrite, dry_run) as (held, change):
        key = ""
        if isinstance(solution, Headerlet):
            theirs = solution
        elif Path(solution).is_file():
            theirs = read_headerlet(solution)
        else:
            entry = held.find(str(solution))
            theirs, key = _headerlet(entry), entry.key
        edits.add_alternate(held, theirs, letter, key=key, force=force)
    return change


def archive(
    path: str | Path, name: str = "active", *, hdrname: str | None = None,
    out: str | Path | None = None, overwrite: bool = False, dry_run: bool = False,
) -> Change:
    """Keep the active WCS, or an alternate, as a headerlet in the file.

    Nothing is done where it is one already.

    Raises
    ------
    Refused, NameTaken, NoSuchSolution
    """
    headerlet = create(path, name)
    with _changing(path, out, overwrite, dry_run) as (held, change):
        where = held.kept_as(headerlet, headerlets_only=True)
        if where is not None and hdrname in (None, where.hdrname):
            held.notes.append(f"{headerlet.wcsname} is in the file already, as {where.key}")
        else:
            new = hdrname or edits.unique_hdrname(held, headerlet)
            named = headerlet.replaced(HDRNAME=new, DESTIM=held.rootname)
            edits.attach_to(held, named, force=True)
    return change


def restore(
    path: str | Path, name: str, *, force: bool = False, archive: bool = True,
    out: str | Path | None = None, overwrite: bool = False, dry_run: bool = False,
) -> Change:
    """Make a solution that the file holds the active one again; see :func:`activate`."""
    with _changing(path, out, overwrite, dry_run) as (held, change):
        held.find(name)  # a solution of the file, not another file of that name
        _activate(held, name, archive=archive, attach=False, force=force)
    return change


def restore_all(
    path: str | Path, distname: str | None = None, *, primary: str | None = None,
    force: bool = False, out: str | Path | None = None, overwrite: bool = False,
    dry_run: bool = False,
) -> Change:
    """Restore all headerlets of a distortion model: one as the active WCS, the rest as alternates.

    Parameters
    ----------
    path : path
    distname : str, optional
        DISTNAME; the exposure in it does not matter. That of the file by default.
    primary : str, optional
        The one to be active; a fit to a catalogue before an a priori solution before the pipeline's
        by default, the last made of several.
    force, out, overwrite, dry_run
        As of :func:`activate`.

    Raises
    ------
    NoSuchSolution, WrongDistortion
    """
    with _changing(path, out, overwrite, dry_run) as (held, change):
        wanted = held.distortion if distname is None else parse_distname(distname).distortion
        of_model = _sound_ones(held, wanted)
        if primary is not None:
            first = held.find(primary)
            _same_model(held, _headerlet(first), wanted)
        elif of_model:
            first = max(of_model, key=lambda e: (_rank(_headerlet(e)), _made(e)))
        else:
            kind = "sound headerlet" if held.notes else "headerlet"
            raise NoSuchSolution(
                image=held.name, reason=f"no {kind} has the distortion model {wanted}"
            )
        name = _headerlet(first).wcsname
        if first.place == "active":
            held.notes.append(f"{name} is active already")
        else:
            edits.check_sound(held, _headerlet(first), key=first.key, force=force)
            edits.apply_primary(  # `distname` asks for the other model
                held, _headerlet(first), attach=False, key=first.key,
                force=force or wanted != held.distortion,
            )
        for entry in of_model:
            other = _headerlet(entry)
            if parse_wcsname(other.wcsname).kind == "pipeline" or other.wcsname == name:
                continue
            try:
                edits.add_alternate(held, other, key=entry.key)
            except edits.NameTaken:
                held.notes.append(f"{other.hdrname} is not an alternate: its name is taken")
    return change


def _sound_ones(held: Holdings, wanted: Distortion) -> list[Entry]:
    """Return the sound headerlets of a distortion model.

    For one that is not sound a sound solution of its name stands in, wherever that is held.
    """
    out: list[Entry] = []
    entries = list(held.entries())
    for entry in entries:
        one = entry.headerlet
        if entry.place != "headerlet" or one is None or one.distortion != wanted:
            continue
        found = held.reasons(one, entry.key, entries)
        if not found:
            out.append(entry)
            continue
        listed = "; ".join(r.text for r in found)
        held.notes.append(f"{entry.key} {entry.wcsname} is left out: {listed}")
        out += [e for e in entries if e.place != "headerlet" and e.wcsname == one.wcsname
                and e.headerlet is not None and e not in out
                and not held.reasons(e.headerlet, e.key, entries)][:1]
    return out


def _made(entry: Entry) -> str:
    """Return when a headerlet was made; the headers of an image do not say it of theirs."""
    return _headerlet(entry).text("DATE") if entry.place == "headerlet" else ""


def _same_model(held: Holdings, headerlet: Headerlet, wanted: Distortion) -> None:
    if headerlet.distortion != wanted:
        raise edits.WrongDistortion(
            image=held.name, headerlet=headerlet.hdrname, ours=str(wanted),
            theirs=str(headerlet.distortion),
        )


RANKS = ("other", "none", "pipeline", "distortion", "a priori", "a posteriori")


def _rank(headerlet: Headerlet) -> int:
    return RANKS.index(parse_wcsname(headerlet.wcsname).kind)


def delete(
    path: str | Path, names: Sequence[str] = (), *, distname: str | None = None,
    duplicates: bool = False, out: str | Path | None = None, overwrite: bool = False,
    dry_run: bool = False,
) -> Change:
    """Delete headerlets and alternates from a file.

    Parameters
    ----------
    path : path
    names : sequence of str
        What :func:`activate` takes; never the active WCS, never ``O``.
    distname : str, optional
        Delete all headerlets of this distortion model.
    duplicates : bool
        Of headerlets that are one solution, under one WCSNAME or HDRNAME, keep the first.
    out, overwrite, dry_run
        See the module.

    Raises
    ------
    NoSuchSolution, Refused
    """
    with _changing(path, out, overwrite, dry_run) as (held, change):
        gone = [_one_to_delete(held, n) for n in names if n not in held.remnants]
        for letter in (n for n in names if n in held.remnants):
            edits.drop_remnants(held, letter)
        listed = [held.entry(p) for p in held.embedded]
        if distname is not None:
            wanted = parse_distname(distname).distortion
            gone += [e for e in listed if e.headerlet and e.headerlet.distortion == wanted]
        if duplicates:
            found = duplicates_of(listed)
            gone += [later for _, later in found]
            held.notes += [f"{e.key} {e.hdrname} is the solution of {f.key}" for f, e in found]
        if not gone and not held.notes:
            held.notes.append("nothing to delete")
        for entry in {e.key + str(id(e.part)): e for e in gone}.values():
            edits.remove(held, entry)
        if any(e.place == "headerlet" for e in gone):
            edits.renumber(held)
    return change


def _one_to_delete(held: Holdings, name: str) -> Entry:
    """Return the solution of a name; where a sound and a doubtful one share it, none is meant."""
    entry = held.find(name)
    same = next((found for found in held.named(name) if found), [])
    others = [e for e in same if e.place == "headerlet"]
    if entry.place == "headerlet" and len(others) > 1 and any(
        e.headerlet is None or not same_solution(e.headerlet, _headerlet(entry)) for e in others
    ):
        raise NoSuchSolution(
            image=held.name, hint="Call it as HDRLET,N.",
            reason=f"several headerlets are called {name!r}: {', '.join(e.key for e in others)}",
        )
    return entry
