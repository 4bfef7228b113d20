"""``cynosure solve``: images onto the sky of a reference catalogue."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from cynosure.faces.shell import (
    COMMON,
    Bytes,
    Command,
    Shell,
    compile_first,
    log_to,
    option,
    shared,
)
from cynosure.ground.errors import CatalogMissing, ExitCode, SettingError
from cynosure.ground.quantities import angle_in, julian_year, scale_in_arcsec, sky_position

__all__ = ["solve"]

EXAMPLE = "cynosure solve m81.fits --refcat gaia/ --out solved"

# ASTAP's own exit codes and words, which observatory programs read.
ASTAP = {
    ExitCode.OK: (0, ""),
    ExitCode.NOT_VERIFIED: (0, ""),
    ExitCode.NO_SOLUTION: (1, "No solution"),
    ExitCode.NOT_ENOUGH_STARS: (2, "Not enough stars detected"),
    ExitCode.NOT_ENOUGH_REFERENCE: (2, "Not enough reference stars"),
    ExitCode.IMAGE_UNREADABLE: (16, "Error reading image file"),
    ExitCode.NO_CATALOG: (32, "No star database found"),
    ExitCode.CATALOG_DAMAGED: (33, "Error reading star database"),
}


@click.command(cls=Command, example=EXAMPLE)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…")
@option("--refcat", metavar="PATH|URL", group="Match",
        help="Reference catalogue; the default is $CYNOSURE_REFCAT.")
@option("--center", nargs=2, metavar="RA DEC", group="Match",
        help="Where the image points: degrees, or 10:02:11 +02:14:09.")
@option("--radius", metavar="DEG", group="Match",
        help="How far the centre may be from there: degrees, or 30arcmin.")
@option("--scale", metavar="ARCSEC", group="Match",
        help="Size of a pixel: arcseconds, or 0.8arcsec.")
@option("--blind", is_flag=True, group="Match",
        help="Ignore what the header says of the pointing; search the index.")
@option("--index", metavar="PATH", group="Match", help="Blind index (cynosure index build).")
@option("--epoch", metavar="DATE", group="Match",
        help="Date of the image, where its header has none: a Julian year, or 2024-06-01.")
@option("--instrument", metavar="NAME", group="Match",
        help="Instrument file to use; the default is what the header says.")
@option("--form", type=click.Choice(["auto", "keep", "tpv", "sip", "tan"]), default="auto",
        show_default=True, group="Fit",
        help="How the WCS is written; keep: the input WCS, its CRVAL and CD corrected; auto: keep "
        "for an observatory's distortion or lookup tables, else tpv.")
@option("--order", default="auto", show_default=True, metavar="N|auto", group="Fit",
        help="Total degree of the distortion; auto: what the reserved stars choose.")
@option("--chips", type=click.Choice(["together", "apart"]), default="together",
        show_default=True, group="Fit", help="Chips as one focal plane, or each alone.")
@option("--header-only", is_flag=True, group="Output", help="Write NAME.wcs.fits without pixels.")
@option("--in-place", is_flag=True, group="Output", help="Change the image itself.")
@option("--region", is_flag=True, group="Output", help="Write DS9 regions, NAME.reg.")
@option("--ini", is_flag=True, group="Output",
        help="Write ASTAP's NAME.ini and end with ASTAP's exit codes.")
@option("--memory", "memory_bytes", type=Bytes(), metavar="SIZE", group=COMMON,
        help="What the images at work may take together, as 8G; default: 80 % of what is free.")
@option("--report/--no-report", default=True, group="Output", help="Write report.html.")
@shared
def solve(shell: Shell, images: tuple[str, ...], **options: Any) -> int:
    """Put images on the sky of a reference catalogue.

    The pointing is taken from the header; --center and --scale stand in for it, --blind does
    without. For an image NAME.fits there will be NAME_wcs.fits, NAME.solution.json and
    NAME.matches.parquet, and for the run report.html, run.json and run.log.
    """
    if not options["refcat"]:
        options["refcat"] = os.environ.get("CYNOSURE_REFCAT")
    if not options["refcat"]:
        raise CatalogMissing(
            "no reference catalogue: neither --refcat nor $CYNOSURE_REFCAT is given"
        )
    to_numbers(options, "--")
    options["order"] = _order(options["order"])
    region, ini, report = (options.pop(k) for k in ("region", "ini", "report"))
    if shell.dry_run:
        return _plan(shell, images, options)
    return solve_images(shell, images, options, region=region, ini=ini, report=report)


def to_numbers(options: dict[str, Any], prefix: str = "") -> None:
    """Turn what says where, how large and when into numbers, in place.

    Raises
    ------
    SettingError
        If one cannot be read; `prefix` stands before its name.
    """
    options["center"] = sky_position(options["center"], f"{prefix}center")
    options["radius"] = angle_in(options["radius"], "deg", f"{prefix}radius")
    options["scale"] = scale_in_arcsec(options["scale"], f"{prefix}scale")
    options["epoch"] = julian_year(options["epoch"], f"{prefix}epoch")


def solve_images(
    shell: Shell, images: tuple[str, ...], options: dict[str, Any], *,
    region: bool = False, ini: bool = False, report: bool = True,
) -> int:
    """Solve, print every record as it comes, and return the exit code of the run."""
    from cynosure.pipelines.manifest import make_folder

    out = make_folder(shell.folder("cynosure_out"))
    with log_to(out, ["cynosure", *sys.argv[1:]], shell.verbose):
        return _solve_into(out, shell, images, options, region=region, ini=ini, report=report)


def _solve_into(
    out: Path, shell: Shell, images: tuple[str, ...], options: dict[str, Any], *,
    region: bool, ini: bool, report: bool,
) -> int:
    from cynosure.faces.progress import Progress
    from cynosure.pipelines.solve import run_solve

    if shell.workers != 1:  # or each worker would compile them all
        compile_first(shell.tell)
    settings = shell.settings()
    records = []

    def show(record: Any) -> None:
        records.append(record)
        shell.emit(record.to_dict())
        shell.say(f"{record}\n")
        if region and record.status != "failed":
            _write_regions(out, record)
        if ini:
            _write_ini(out, record)

    refcat = options.pop("refcat")
    with Progress(len(images), quiet=shell.quiet, first=compile_first) as watch:
        run = run_solve(
            images, refcat, out, settings=settings, workers=shell.workers,
            timeout_s=shell.timeout_s, overwrite=shell.overwrite, watch=watch, on_record=show,
            facts={"command": ["cynosure", *sys.argv[1:]]}, **options,
        )
    for image in run.skipped:
        shell.tell(f"{image}: done before with the same settings; --overwrite does it again")
    if report and records:
        from cynosure.faces.report.page import write_report

        shell.say(f"report  {write_report(out)}")
    shell.say(tally_line(record.status for record in records))
    if ini and len(records) == 1:
        return ASTAP.get(ExitCode(records[0].exit_code), (1, ""))[0]
    return int(run.exit_code)


def tally_line(statuses: Any) -> str:
    """Return the last line of a run: ``3 solved · 1 compromised · 1 failed``."""
    from cynosure.pipelines.manifest import tally

    return " · ".join(f"{count} {word}" for word, count in tally(statuses).items())


def _order(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdigit() or not 1 <= int(text) <= 7:
        raise SettingError(
            "--order {text}: a number from 1 to 7, or auto, is expected", text=text,
            hint="Leave it out: the reserved stars choose the order.",
        )
    return int(text)


def _plan(shell: Shell, images: tuple[str, ...], options: dict[str, Any]) -> int:
    """Print what would be done."""
    from cynosure.data.fits.file import split_path
    from cynosure.pipelines.manifest import stems_of

    shell.settings()  # so that a mistake in them shows now
    out = shell.folder("cynosure_out")
    ending = ".wcs.fits" if options["header_only"] else "_wcs.fits"
    given = {k: v for k, v in options.items() if v not in (None, False)}
    shell.say(f"would solve {len(images)} image(s) into {out}/")
    for stem, image in stems_of(images).items():
        missing = "" if split_path(image)[0].exists() else "   (not there)"
        products = [image if options["in_place"] else f"{stem}{ending}",
                    f"{stem}.solution.json", f"{stem}.matches.parquet"]
        shell.say(f"  {image}{missing}  ->  {'  '.join(products)}")
        shell.emit({"image": image, "exists": not missing, "products": products})
    shell.say("  for the run: report.html  run.json  run.log")
    for name, value in given.items():
        shell.say(f"  {name} = {value}")
    return int(ExitCode.OK)


def _write_regions(out: Path, record: Any) -> None:
    """Write the matched stars as DS9 regions, coloured by what became of them."""
    from cynosure.data.tables import MATCHES, read_parquet
    from cynosure.ground.files import write_text
    from cynosure.pipelines.manifest import stem_of

    stem = stem_of(record.image)
    path = out / f"{stem}.matches.parquet"
    if not path.exists():
        return
    lines = [
        "# Region file format: DS9 version 4.1",
        "# used: green, reserved: cyan, clipped: red circles; reference stars: yellow crosses",
        "icrs",
    ]
    radius = 3.0 * record.scale_arcsec
    for row in read_parquet(path, MATCHES):
        color = "green" if row["used"] else "cyan" if row["reserved"] else "red"
        lines.append(
            f'circle({row["ra_deg"]:.8f},{row["dec_deg"]:.8f},{radius:.3f}") # color={color}'
        )
        lines.append(
            f'point({row["ref_ra_deg"]:.8f},{row["ref_dec_deg"]:.8f}) # point=cross color=yellow'
        )
    write_text(out / f"{stem}.reg", "\n".join(lines) + "\n", overwrite=True)


def _write_ini(out: Path, record: Any) -> None:
    """Write the result file that programs which drive ASTAP read."""
    from cynosure.ground.files import write_text
    from cynosure.pipelines.manifest import stem_of

    code, error = ASTAP.get(ExitCode(record.exit_code), (1, record.reason))
    lines = ["PLTSOLVD=T" if code == 0 else "PLTSOLVD=F"]
    if code == 0:
        lines += [f"{k}={v}" for k, v in _linear_cards(record).items()]
        if record.status == "compromised":
            lines.append(f"WARNING={record.reason}")
    else:
        lines.append(f"ERROR={error}")
    lines.append(f"CMDLINE={' '.join(['cynosure', *sys.argv[1:]])}")
    write_text(out / f"{stem_of(record.image)}.ini", "\n".join(lines) + "\n", overwrite=True)


def _linear_cards(record: Any) -> dict[str, Any]:
    """Return the linear part of the first chip's WCS, with scale and rotation beside CD."""
    import math

    cards = record.chips[0]["cards"] if record.chips else {}
    names = ("CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2", "CD1_1", "CD1_2", "CD2_1", "CD2_2")
    linear = {name: cards[name] for name in names if name in cards}
    if all(name in linear for name in names[4:]):
        cd = [linear[name] for name in names[4:]]
        sign = math.copysign(1.0, cd[0] * cd[3] - cd[1] * cd[2])
        linear["CDELT1"] = sign * math.hypot(cd[0], cd[2])
        linear["CDELT2"] = math.hypot(cd[1], cd[3])
        linear["CROTA1"] = math.degrees(math.atan2(sign * cd[2], sign * cd[0]))
        linear["CROTA2"] = math.degrees(math.atan2(-cd[1], cd[3]))
    return linear
