"""Operations on files: list, create, attach, apply, archive, restore, delete.

Each operation opens the file, changes it in memory and writes it once, whole; a refusal leaves the
file as it was. The file itself is replaced unless `out` names another. `dry_run` says what would
be done. What was done is told in a :class:`Change`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cynosure.ground.errors import SettingError
from cynosure.solutions.files import edits
from cynosure.solutions.files.compare import Separation, separations
from cynosure.solutions.files.contents import (
    RESERVED,
    Entry,
    Holdings,
    NoSuchSolution,
    open_holdings,
)
from cynosure.solutions.files.headerlet import (
    Headerlet,
    HeaderletDamaged,
    Target,
)
from cynosure.solutions.files.headerletio import read_headerlet, write_headerlet
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
    """What an operation did.

    Attributes
    ----------
    path : Path
        The file that has the result.
    done : list of str
        In words, in order.
    written : bool
        False for a dry run, and where there was nothing to do.
    """

    path: Path
    done: list[str] = field(default_factory=list)
    written: bool = False


@contextmanager
def _changing(
    path: str | Path, out: str | Path | None, overwrite: bool, dry_run: bool
) -> Iterator[tuple[Holdings, Change]]:
    change = Change(Path(path if out is None else out))
    with open_holdings(path, lock=out is None and not dry_run) as held:
        yield held, change
        if held.primary.has("NEXTEND"):
            held.primary.set("NEXTEND", len(held.parts) - 1)
        change.done = list(dict.fromkeys(held.notes))
        if not dry_run and (held.file.changed or out is not None):
            held.file.save(out, overwrite=overwrite)
            change.written = True


# --- looking --------------------------------------------------------------------------------


def shapes_of(held: Holdings) -> dict[Target, tuple[int, int] | None]:
    """Return rows and columns of the chips; of a stamp cut from a chip, those of the chip."""
    out = {}
    for chip in held.chips:
        sizes = [chip.part.get(f"SIZAXIS{i}") or held.primary.get(f"SIZAXIS{i}") for i in (2, 1)]
        shape = chip.shape
        if shape is not None and all(isinstance(n, int) and 0 < n < 1 << 16 for n in sizes):
            full = int(sizes[0]), int(sizes[1])  # type: ignore[arg-type]
            shape = full if full[0] > shape[0] and full[1] > shape[1] else shape
        out[chip.target] = shape
    return out


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


def holdings_table(held: Holdings, *, distances: bool = True) -> list[dict[str, Any]]:
    """Return a record for every solution of a file, with its distance from the active one.

    Parameters
    ----------
    held : Holdings
    distances : bool
        Whether to evaluate them; it takes some ten milliseconds a chip.
    """
    shapes, out, active = shapes_of(held), [], None
    for entry in held.entries():
        record: dict[str, Any] = {
            "key": entry.key, "place": entry.place, "wcsname": entry.wcsname,
            "hdrname": entry.hdrname, "problem": entry.problem,
        }
        h = entry.headerlet
        if h is not None:
            if entry.place == "active":
                active = h
            rms = [None if not np.isfinite(v) else v for v in h.rms_mas]
            record |= {
                "distname": h.distname, "catalog": h.catalog, "n_matched": h.n_matched,
                "rms_ra_mas": rms[0], "rms_dec_mas": rms[1], "created": h.text("DATE") or None,
                "author": h.text("AUTHOR"), "chips": len(h.chips),
                "doubts": [*h.notes, *h.faults(), *h.doubts()],
            }
            if distances and active is not None and entry.place != "active":
                record |= _distance(active, h, shapes, record)
        out.append(record)
    return out


def _distance(
    active: Headerlet, other: Headerlet, shapes: dict[Target, Any], record: dict[str, Any]
) -> dict[str, Any]:
    try:
        maps = separations(active, other, shapes, side=9)
    except (HeaderletDamaged, SettingError) as error:
        return {"problem": record["problem"] or str(error.facts.get("reason", error))}
    return {"distance_mas": _together(maps)}


def _together(maps: Sequence[Separation]) -> dict[str, float | None]:
    every = np.concatenate([m.sep_mas.ravel() for m in maps]) if maps else np.array([np.nan])
    every = every[np.isfinite(every)]
    if not every.size:
        return {"min": None, "median": None, "max": None}
    return {"min": float(every.min()), "median": float(np.median(every)), "max": float(every.max())}


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
    path: str | Path, headerlet: Headerlet | str | Path, *, hdrname: str | None = None,
    compress: bool = False, force: bool = False, out: str | Path | None = None,
    overwrite: bool = False, dry_run: bool = False,
) -> Change:
    """Append a headerlet to its exposure; the active WCS stays.

    Parameters
    ----------
    path : path
        The image.
    headerlet : Headerlet or path
    hdrname : str, optional
        A name for it in this file.
    compress : bool
        Whether to gzip it.
    force : bool
        Take it with its faults.
    out, overwrite, dry_run
        See the module.

    Raises
    ------
    WrongExposure, NameTaken, HeaderletDamaged
    """
    theirs = headerlet if isinstance(headerlet, Headerlet) else read_headerlet(headerlet)
    if hdrname is not None:
        theirs = theirs.replaced(HDRNAME=hdrname)
    faults = theirs.faults()
    if faults and not force:
        raise HeaderletDamaged(headerlet=theirs.hdrname or str(headerlet), reason="; ".join(faults))
    with _changing(path, out, overwrite, dry_run) as (held, change):
        if edits.attach_to(held, theirs, compress=compress):
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
        Take one with another distortion model, or with faults.
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
    if entry.place == "alternate" and not held.distortion and held.has_active:
        if edits.exchange(held, entry.key):
            return
    edits.apply_primary(held, _headerlet(entry), archive=archive, attach=False, force=force)


def apply_alternate(
    path: str | Path, solution: str | Path | Headerlet, *, letter: str | None = None,
    out: str | Path | None = None, overwrite: bool = False, dry_run: bool = False,
) -> Change:
    """Keep a headerlet as an alternate WCS, under a letter.

    Raises
    ------
    WrongExposure, WrongDistortion, NameTaken, Refused
    """
    with _changing(path, out, overwrite, dry_run) as (held, change):
        if isinstance(solution, Headerlet):
            theirs = solution
        elif Path(solution).is_file():
            theirs = read_headerlet(solution)
        else:
            theirs = _headerlet(held.find(str(solution)))
        edits.add_alternate(held, theirs, letter)
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
            edits.attach_to(held, headerlet.replaced(HDRNAME=new, DESTIM=held.rootname))
    return change


def restore(
    path: str | Path, name: str, *, force: bool = False, archive: bool = True,
    out: str | Path | None = None, overwrite: bool = False, dry_run: bool = False,
) -> Change:
    """Make a solution that the file holds the active one again; see :func:`activate`."""
    with _changing(path, out, overwrite, dry_run) as (held, change):
        held.find(name)  # a file of that name is not meant
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
        found = [held.entry(p) for p in held.embedded]
        good = [e.headerlet for e in found if e.headerlet is not None and not e.headerlet.faults()]
        of_model = [h for h in good if h.distortion == wanted]
        if not of_model:
            raise NoSuchSolution(
                image=held.name, reason=f"no headerlet has the distortion model {wanted}"
            )
        if primary is not None:
            first = _headerlet(held.find(primary))
            _same_model(held, first, wanted)
        else:
            first = max(of_model, key=lambda h: (_rank(h), h.text("DATE")))
        edits.apply_primary(
            held, first, attach=False, force=force or wanted != held.distortion
        )
        for other in of_model:
            if parse_wcsname(other.wcsname).kind == "pipeline" or other.wcsname == first.wcsname:
                continue
            try:
                edits.add_alternate(held, other)
            except edits.NameTaken:
                held.notes.append(f"{other.hdrname} is not an alternate: its name is taken")
    return change


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
        Of headerlets of one HDRNAME keep the first.
    out, overwrite, dry_run
        See the module.

    Raises
    ------
    NoSuchSolution, Refused
    """
    with _changing(path, out, overwrite, dry_run) as (held, change):
        gone = [held.find(name) for name in names]
        listed = [held.entry(p) for p in held.embedded]
        if distname is not None:
            wanted = parse_distname(distname).distortion
            gone += [e for e in listed if e.headerlet and e.headerlet.distortion == wanted]
        if duplicates:
            seen: set[str] = set()
            for entry in listed:
                if entry.hdrname and entry.hdrname in seen:
                    gone.append(entry)
                seen.add(entry.hdrname)
        if not gone:
            held.notes.append("nothing to delete")
        for entry in {e.key + str(id(e.part)): e for e in gone}.values():
            edits.remove(held, entry)
        if any(e.place == "headerlet" for e in gone):
            edits.renumber(held)
    return change
