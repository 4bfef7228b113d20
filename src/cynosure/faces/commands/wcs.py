"""``cynosure wcs``: the WCS solutions that a file holds, and moving between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cynosure.faces.shell import Command, Shell, describe_error, option, shared
from cynosure.ground.errors import CynosureError, ExitCode, SettingError

if TYPE_CHECKING:
    from cynosure.solutions.files.archive import Change

__all__ = ["wcs"]

files_argument = click.argument("files", nargs=-1, required=True, metavar="FILE…")
file_argument = click.argument("file", metavar="FILE")
force_option = option("--force", is_flag=True,
                      help="Take it although it is doubtful, or has another distortion model.")


@click.group()
def wcs() -> None:
    """List, compare, apply, keep and convert WCS solutions."""


def _each(shell: Shell, files: Sequence[str], work: Callable[[str], None]) -> int:
    """Do the same for several files; one that fails does not stop the others."""
    codes = []
    for file in files:
        try:
            work(file)
            codes.append(int(ExitCode.OK))
        except CynosureError as error:
            if len(files) == 1:
                raise
            shell.tell(describe_error(error))
            shell.emit({"file": file, "error": str(error), "exit_code": int(error.exit_code)})
            codes.append(int(error.exit_code))
    return codes[0] if len(set(codes)) == 1 else int(ExitCode.MIXED)


def _target(shell: Shell, file: str, files: Sequence[str] = ()) -> dict[str, Any]:
    """Return where a change goes: --out is a file, or a folder for several."""
    if shell.out is None:
        return {"dry_run": shell.dry_run}
    out = Path(shell.out)
    if out.is_dir() or len(files) > 1:
        if not shell.dry_run:
            out.mkdir(parents=True, exist_ok=True)
        out = out / Path(file).name
    return {"out": out, "overwrite": shell.overwrite, "dry_run": shell.dry_run}


def _tell(shell: Shell, file: str, change: Change, verb: str) -> None:
    shell.emit({
        "file": file, "operation": verb, "out": str(change.path), "done": change.done,
        "written": change.written, "dry_run": shell.dry_run, "warnings": change.warnings,
    })
    for line in change.warnings:
        shell.tell(f"warning: {file}: {line}")
    head = "would: " if shell.dry_run else ""
    for line in change.done:
        shell.say(f"{file}: {head}{line}")


# --- looking --------------------------------------------------------------------------------


@wcs.command("list", cls=Command, example="cynosure wcs list j95y04hpq_flc.fits")
@files_argument
@option("--keyword", metavar="KEYWORD",
        help="Print only this keyword of each headerlet: WCSNAME, HDRNAME, DISTNAME …")
@option("--extensions", is_flag=True, help="Print the extensions of the file instead.")
@option("--no-distances", is_flag=True, help="Do not evaluate the solutions; quicker.")
@shared
def list_(
    shell: Shell, files: tuple[str, ...], keyword: str | None, extensions: bool, no_distances: bool
) -> int:
    """List the solutions of files: the active one, alternates, headerlets, or a headerlet file."""
    from cynosure.data.fits.parts import open_parts
    from cynosure.solutions.files.archive import listing, names

    def work(file: str) -> None:
        if keyword is not None:
            values = names(file, keyword.upper())
            shell.emit({"file": file, keyword.upper(): values})
            for value in values:
                shell.say(value)
            return
        if extensions:
            with open_parts(file) as found:
                _print_extensions(shell, file, found.parts)
            return
        listed = listing(file, distances=not no_distances)
        shell.emit({"file": file, **listed})
        n, model = len(listed["chips"]), listed["distortion"]
        model = model if any(c not in "NOMODEL-" for c in model) else "in the header"
        shell.say(f"{file}: {listed['rootname']}, {n} chip{'s' if n > 1 else ''}, "
                  f"distortion {model}")
        for text in listed["damage"]:
            shell.tell(f"warning: {file}: {text}")
        _print_solutions(shell, listed["solutions"])

    return _each(shell, files, work)


def _print_solutions(shell: Shell, rows: list[dict[str, Any]]) -> None:
    head = ("", "WCSNAME", "HDRNAME", "stars", "rms mas", "from active mas")
    lines = [head]
    for row in rows:
        rms = [f"{row[k]:.1f}" for k in ("rms_ra_mas", "rms_dec_mas") if row.get(k)]
        lines.append((
            row["key"], row["wcsname"], row["hdrname"], str(row.get("n_matched") or ""),
            " ".join(rms), _range(row.get("distance_mas")),
        ))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line, row in zip(lines, [{}, *rows]):
        shell.say("  " + "  ".join(t.ljust(w) for t, w in zip(line, widths)).rstrip())
        for doubt in filter(None, [row.get("problem"), *row.get("doubts", [])]):
            shell.say(f"      ! {doubt}")


def _range(distance: dict[str, float | None] | None) -> str:
    if not distance or distance["median"] is None:
        return ""
    low, middle, high = (distance[k] or 0.0 for k in ("min", "median", "max"))
    return f"{_mas(middle)} ({_mas(low)} … {_mas(high)})"


def _mas(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _print_extensions(shell: Shell, file: str, parts: Sequence[Any]) -> None:
    kinds = {"": "PrimaryHDU", "IMAGE": "ImageHDU", "BINTABLE": "BinTableHDU",
             "TABLE": "TableHDU", "HDRLET": "HeaderletHDU"}
    shell.say(f"{'No.':<5}{'Name':<11}{'Ver':>4}    {'Type':<13}{'Cards':>6}   Dimensions")
    for number, part in enumerate(parts):
        axes = [part.get(f"NAXIS{i}") for i in range(1, int(part.get("NAXIS") or 0) + 1)]
        record = {
            "number": number, "name": part.name or ("PRIMARY" if not number else ""),
            "version": part.version,
            "type": kinds.get(part.kind, part.kind) if part.records else "(damaged)",
            "cards": len(part.records), "axes": axes,
        }
        shell.emit({"file": file, **record})
        dimensions = ", ".join(map(str, axes)) + ("," if len(axes) == 1 else "")
        shell.say(
            f"{number:>3}  {record['name']:<11}{record['version']:>4}    {record['type']:<13}"
            f"{record['cards']:>6}   ({dimensions})"
        )


@wcs.command(cls=Command, example="cynosure wcs summary j95y04hpq_flc.fits")
@files_argument
@shared
def summary(shell: Shell, files: tuple[str, ...]) -> int:
    """Say what each headerlet of a file says of itself."""
    from cynosure.solutions.files.archive import summary as summary_of

    def work(file: str) -> None:
        rows = summary_of(file)
        shell.emit({"file": file, "headerlets": rows})
        shell.say(f"{file}: {len(rows)} headerlets")
        if not rows:
            return
        columns = list(rows[0])
        widths = [max(len(c), *(len(str(r[c])) for r in rows)) for c in columns]
        shell.say("  " + "  ".join(c.ljust(w) for c, w in zip(columns, widths)).rstrip())
        for row in rows:
            texts = [str(row[c]).ljust(w) for c, w in zip(columns, widths)]
            shell.say("  " + "  ".join(texts).rstrip())

    return _each(shell, files, work)


@wcs.command(cls=Command, example="cynosure wcs show j95y04hpq_flc.fits IDC_0461802ej-GSC240")
@file_argument
@click.argument("name", required=False, metavar="NAME")
@option("--cards", is_flag=True, help="Print the WCS cards of every chip.")
@shared
def show(shell: Shell, file: str, name: str | None, cards: bool) -> int:
    """Show a solution: names, fit, distortion, footprint of each chip.

    NAME is a WCSNAME, a HDRNAME, a letter or HDRLET,N; the active solution without it. FILE may
    be a headerlet.
    """
    from cynosure.solutions.files.archive import solution_of
    from cynosure.solutions.files.compare import facts_of

    headerlet = solution_of(file, name)
    facts = facts_of(headerlet)
    shell.emit({"file": file, **facts})
    for key, value in facts.items():
        if key != "chips" and value not in ("", None, []):
            shell.say(f"{key.replace('_', ' '):<16} {value}")
    for chip in facts["chips"]:
        shell.say(f"chip {chip['chip']}")
        for key, value in chip.items():
            if key != "chip" and value not in ("", None, []):
                shell.say(f"  {key.replace('_', ' '):<14} {value}")
    if cards:
        for one in headerlet.chips:
            shell.say(f"{one.target[0]},{one.target[1]}")
            for _, body in one.cards:
                shell.say("  " + body.decode("ascii", "replace").rstrip())
    return int(ExitCode.OK)


@wcs.command(cls=Command, example="cynosure wcs diff j95y04hpq_flc.fits IDC_0461802ej active")
@file_argument
@click.argument("first", metavar="NAME|FILE")
@click.argument("second", default="active", metavar="[NAME|FILE]")
@option("--picture", metavar="FILE", help="Draw the separation over each chip (PNG, PDF, SVG).")
@option("--shape", nargs=2, type=click.IntRange(2, 131072), metavar="NY NX",
        help="Rows and columns of a chip, where the file does not say.")
@option("--side", type=click.IntRange(2, 1025), default=33, show_default=True, metavar="N",
        help="Points of the map along the longer side.")
@shared
def diff(
    shell: Shell, file: str, first: str, second: str, picture: str | None,
    shape: tuple[int, int] | None, side: int,
) -> int:
    """Say how far two solutions of a file are apart on the sky, chip by chip, in mas.

    A solution is a name in FILE, or another file: an image or a headerlet.
    """
    from cynosure.solutions.files.archive import shapes_of, solution_of
    from cynosure.solutions.files.compare import separations
    from cynosure.solutions.files.contents import open_holdings

    with open_holdings(file) as held:
        shapes: dict[Any, Any] = shapes_of(held)
        pair = [
            solution_of(text) if Path(text).is_file() else held.find(text).headerlet
            for text in (first, second)
        ]
    if pair[0] is None or pair[1] is None:
        from cynosure.solutions.files.headerlet import HeaderletDamaged

        raise HeaderletDamaged(headerlet=first if pair[0] is None else second,
                               reason="it cannot be read")
    if shape is not None:
        shapes = dict.fromkeys(shapes, shape)
    maps = separations(pair[0], pair[1], shapes, side=side)
    shell.emit({"file": file, "first": pair[0].wcsname, "second": pair[1].wcsname,
                "chips": [m.summary() for m in maps]})
    shell.say(f"{pair[1].wcsname} minus {pair[0].wcsname}, mas")
    shell.say("  chip      min  median     rms     max     dra    ddec")
    for one in maps:
        s = one.summary()
        keys = ("min_mas", "median_mas", "rms_mas", "max_mas", "dra_mas", "ddec_mas")
        shell.say(f"  {s['chip']:<6} " + " ".join(f"{s[k]:>7.4g}" for k in keys))
    if picture is not None and not shell.dry_run:
        from cynosure.faces.report.separation import draw_separations

        title = f"{pair[1].wcsname} minus {pair[0].wcsname}"
        draw_separations(Path(picture), maps, title, overwrite=shell.overwrite)
        shell.say(f"drawn in {picture}")
    return int(ExitCode.OK)


@wcs.command(cls=Command, example="cynosure wcs verify j95y04hp?_flc.fits")
@files_argument
@shared
def verify(shell: Shell, files: tuple[str, ...]) -> int:
    """Check what must be true of a file's solutions, or of a headerlet."""
    from cynosure.solutions.files.invariants import NotTrue, check

    def work(file: str) -> None:
        found = check(file)
        shell.emit({"file": file, "good": not any(f.level == "error" for f in found),
                    "findings": [{"level": f.level, "text": f.text, "cure": f.cure}
                                 for f in found]})
        for finding in found:
            shell.say(f"{file}: {finding.level}: {finding.text}")
        errors = [f for f in found if f.level == "error"]
        if errors:
            cures = dict.fromkeys(f.cure.replace("FILE", file) for f in errors if f.cure)
            hint = f"`{'`, `'.join(cures)}` removes what is wrong." if cures else None
            raise NotTrue(image=file, reason="; ".join(f.text for f in errors), hint=hint)
        shell.say(f"{file}: good")

    return _each(shell, files, work)


# --- changing -------------------------------------------------------------------------------


@wcs.command(cls=Command, example="cynosure wcs attach j95y04hpq_flc.fits j95y04hpq_hlet.fits")
@file_argument
@click.argument("headerlets", nargs=-1, required=True, metavar="HEADERLET…")
@option("--name", metavar="HDRNAME", help="Name it this in the file.")
@option("--compress", is_flag=True, help="Keep it gzipped.")
@force_option
@shared
def attach(
    shell: Shell, file: str, headerlets: tuple[str, ...], name: str | None, compress: bool,
    force: bool,
) -> int:
    """Append headerlets to their exposure, all or none; the active WCS stays."""
    from cynosure.solutions.files.archive import attach as attach_all

    change = attach_all(
        file, *headerlets, hdrname=name, compress=compress, force=force, **_target(shell, file)
    )
    _tell(shell, file, change, "attach")
    return int(ExitCode.OK)


@wcs.command(cls=Command,
             example="cynosure wcs activate j95y04hpq_flc.fits IDC_0461802ej-GSC240")
@file_argument
@click.argument("solution", metavar="NAME|HEADERLET")
@option("--no-archive", is_flag=True, help="Do not keep the WCS that is replaced.")
@option("--no-attach", is_flag=True, help="Do not append a headerlet that comes from a file.")
@option("--alternate", is_flag=True, help="Keep it as an alternate instead; the active one stays.")
@option("--letter", metavar="A…Z", help="The letter of that alternate; the first free one.")
@force_option
@shared
def activate(
    shell: Shell, file: str, solution: str, no_archive: bool, no_attach: bool, alternate: bool,
    letter: str | None, force: bool,
) -> int:
    """Make a solution the active WCS: one that FILE holds, or a headerlet file.

    What was active is kept in the file, once.
    """
    from cynosure.solutions.files import archive

    target = _target(shell, file)
    if alternate:
        change = archive.apply_alternate(file, solution, letter=letter, force=force, **target)
    else:
        change = archive.activate(
            file, solution, archive=not no_archive, attach=not no_attach, force=force, **target
        )
    _tell(shell, file, change, "activate")
    return int(ExitCode.OK)


@wcs.command(cls=Command, example="cynosure wcs archive j95y04hpq_flc.fits")
@files_argument
@option("--solution", default="active", show_default=True, metavar="NAME",
        help="What to keep: active, or an alternate.")
@option("--name", metavar="HDRNAME", help="Name the headerlet this.")
@shared
def archive(shell: Shell, files: tuple[str, ...], solution: str, name: str | None) -> int:
    """Keep the active WCS as a headerlet in the file."""
    from cynosure.solutions.files.archive import archive as archive_one

    def work(file: str) -> None:
        change = archive_one(file, solution, hdrname=name, **_target(shell, file, files))
        _tell(shell, file, change, "archive")

    return _each(shell, files, work)


@wcs.command(cls=Command,
             example="cynosure wcs extract j95y04hpq_flc.fits OPUS --out j95y04hpq_hlet.fits")
@file_argument
@click.argument("names", nargs=-1, metavar="NAME…")
@option("--all", "every", is_flag=True, help="All headerlets of the file, into the folder --out.")
@option("--author", help="AUTHOR of a headerlet that is made of header cards.")
@option("--descrip", help="DESCRIP of such a headerlet.")
@shared
def extract(
    shell: Shell, file: str, names: tuple[str, ...], every: bool, author: str | None,
    descrip: str | None,
) -> int:
    """Write solutions as headerlet files; the active one without NAME."""
    from cynosure.solutions.files import archive
    from cynosure.solutions.files.contents import open_holdings

    if every:
        with open_holdings(file) as held:
            names = tuple(f"HDRLET,{p.version}" for p in held.embedded)
    names = names or ("active",)
    out = shell.folder(".")

    def work(name: str) -> None:
        headerlet = archive.create(file, name, author=author, descrip=descrip)
        path = out
        if out.is_dir() or every or len(names) > 1:
            path = out / _hlet_name(headerlet.hdrname)
        record = {"file": file, "hdrname": headerlet.hdrname, "wcsname": headerlet.wcsname}
        if not shell.dry_run:
            path.parent.mkdir(parents=True, exist_ok=True)
            archive.write(headerlet, path, overwrite=shell.overwrite)
        shell.emit({**record, "out": str(path), "dry_run": shell.dry_run})
        shell.say(f"{file}: {'would write ' if shell.dry_run else ''}{path} {headerlet.wcsname}")

    return _each(shell, names, work)


def _hlet_name(hdrname: str) -> str:
    """Return a file name for a headerlet; nothing in a name leads out of the folder."""
    safe = "".join(c if c.isalnum() or c in "-_+." else "_" for c in hdrname).lstrip(".")
    stem = safe.removesuffix(".fits").removesuffix("-hlet").removesuffix("_hlet") or "headerlet"
    return f"{stem[:200]}_hlet.fits"


@wcs.command(cls=Command, example="cynosure wcs delete j95y04hpq_flc.fits IDC_0461802ej-GSC240")
@file_argument
@click.argument("names", nargs=-1, metavar="NAME…")
@option("--distname", metavar="DISTNAME", help="All headerlets of this distortion model.")
@option("--duplicates", is_flag=True,
        help="Of headerlets that are one solution, under one name, keep the first.")
@shared
def delete(
    shell: Shell, file: str, names: tuple[str, ...], distname: str | None, duplicates: bool
) -> int:
    """Delete headerlets and alternates; never the active WCS, never the original one."""
    from cynosure.solutions.files.archive import delete as delete_some

    if not (names or distname or duplicates):
        raise SettingError("what is to be deleted?", hint="Give a NAME, as `wcs list` shows them.")
    change = delete_some(
        file, names, distname=distname, duplicates=duplicates, **_target(shell, file)
    )
    _tell(shell, file, change, "delete")
    return int(ExitCode.OK)


@wcs.command(cls=Command, example="cynosure wcs restore j95y04hpq_flc.fits IDC_0461802ej")
@file_argument
@click.argument("name", required=False, metavar="NAME")
@option("--all", "every", is_flag=True,
        help="All headerlets of a distortion model: NAME, or the best, active; the others "
        "as alternates.")
@option("--distname", metavar="DISTNAME", help="That model; the one of the file by default.")
@force_option
@shared
def restore(
    shell: Shell, file: str, name: str | None, every: bool, distname: str | None, force: bool
) -> int:
    """Make a solution that the file holds the active one again."""
    from cynosure.solutions.files import archive

    if every or distname is not None:
        change = archive.restore_all(
            file, distname, primary=name, force=force, **_target(shell, file)
        )
    elif name is None:
        raise SettingError("which solution?", hint="Give a NAME (cynosure wcs list), or --all.")
    else:
        change = archive.restore(file, name, force=force, **_target(shell, file))
    _tell(shell, file, change, "restore")
    return int(ExitCode.OK)


# --- other software, other forms ------------------------------------------------------------


@wcs.command("export", cls=Command, example="cynosure wcs export m81_wcs.fits --out m81.head")
@file_argument
@click.argument("name", default="active", metavar="[NAME]")
@option("--as", "kind", type=click.Choice(["head", "wcs"]), metavar="head|wcs",
        help="SCAMP's text (TPV), or astrometry.net's FITS (SIP); told by --out.")
@shared
def export(shell: Shell, file: str, name: str, kind: str | None) -> int:
    """Write a solution for SCAMP (.head) or astrometry.net (.wcs)."""
    from cynosure.solutions.files.exchange import export_solution

    if shell.out is None:
        raise SettingError("--out is missing", hint="Say where: --out NAME.head or NAME.wcs.")
    path = Path(shell.out)
    kind = kind or path.suffix.lower().removeprefix(".")
    if shell.dry_run:
        shell.say(f"would write {path}")
        return int(ExitCode.OK)
    error_mas = export_solution(file, path, name, kind=kind, overwrite=shell.overwrite)
    shell.emit({"file": file, "out": str(path), "kind": kind, "error_mas": error_mas})
    shell.say(f"{path}: {kind}, largest error of the form {error_mas:.3g} mas")
    return int(ExitCode.OK)


@wcs.command("import", cls=Command, example="cynosure wcs import m81.fits m81.head --activate")
@file_argument
@click.argument("source", metavar="HEAD|WCS")
@option("--name", metavar="WCSNAME", help="Name of the solution; SCAMP or ASTROMETRY.NET.")
@option("--activate", "active", is_flag=True, help="Make it the active WCS, too.")
@force_option
@shared
def import_(
    shell: Shell, file: str, source: str, name: str | None, active: bool, force: bool
) -> int:
    """Attach a solution that SCAMP (.head) or astrometry.net (.wcs) made."""
    from cynosure.solutions.files import archive
    from cynosure.solutions.files.exchange import import_solution

    headerlet = import_solution(file, source, name=name)
    target = _target(shell, file)
    if active:
        change = archive.activate(file, headerlet, force=force, **target)
    else:
        change = archive.attach(file, headerlet, force=force, **target)
    _tell(shell, file, change, "import")
    return int(ExitCode.OK)


@wcs.command(cls=Command, example="cynosure wcs convert m81_wcs.fits --form sip")
@files_argument
@option("--form", type=click.Choice(["tpv", "sip", "tan"]), required=True,
        metavar="tpv|sip|tan", help="The form that the active WCS is to have.")
@option("--solution", default="active", show_default=True, metavar="NAME",
        help="What to convert.")
@option("--degree", "max_degree", type=click.IntRange(1, 9), default=7, show_default=True,
        metavar="N", help="Highest degree of the polynomial.")
@option("--name", metavar="WCSNAME", help="Name of the result.")
@option("--max-error", "max_error_mas", type=float, metavar="MAS",
        help="Refuse where the new form is further off than this.")
@shared
def convert(
    shell: Shell, files: tuple[str, ...], form: str, solution: str, max_degree: int,
    name: str | None, max_error_mas: float | None,
) -> int:
    """Write a solution in another form (TPV, SIP, TAN), and say what that costs.

    Lookup tables become part of the polynomial. The solution it was made of stays in the file.
    """
    from cynosure.solutions.files.exchange import convert as convert_one

    def work(file: str) -> None:
        change, maps = convert_one(
            file, form, solution, max_degree=max_degree, wcsname=name,
            max_error_mas=max_error_mas, **_target(shell, file, files),
        )
        errors = [m.summary() for m in maps]
        shell.emit({"file": file, "form": form, "errors": errors})
        for one in errors:
            shell.say(f"{file}: {one['chip']}: rms {one['rms_mas']:.3g} mas, "
                      f"at most {one['max_mas']:.3g} mas from the solution it was made of")
        _tell(shell, file, change, "convert")

    return _each(shell, files, work)


@wcs.command("default", cls=Command,
             example="cynosure wcs default j95y04hpq_flc.fits --refs /ref/jref")
@files_argument
@option("--refs", metavar="DIR", help="Folder of the reference files; else jref, iref … say.")
@option("--idctab", metavar="FILE", help="This IDCTAB instead of the one in the header.")
@option("--npolfile", metavar="FILE", help="This NPOLFILE.")
@option("--d2imfile", metavar="FILE", help="This D2IMFILE.")
@option("--offtab", metavar="FILE", help="This OFFTAB (WFPC2).")
@shared
def default(shell: Shell, files: tuple[str, ...], **references: str | None) -> int:
    """Make Hubble's default solution from its reference files, and activate it."""
    from cynosure.solutions.files import archive
    from cynosure.solutions.files.hubble import default_solution

    def work(file: str) -> None:
        headerlet = default_solution(file, **references)
        change = archive.activate(file, headerlet, force=True, **_target(shell, file, files))
        _tell(shell, file, change, "default")

    return _each(shell, files, work)
