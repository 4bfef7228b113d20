"""``cynosure index``: blind indexes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cynosure.faces.shell import Command, Shell, option, shared
from cynosure.ground.errors import ExitCode, OutputExists, SettingError

if TYPE_CHECKING:
    from cynosure.geometry.match.index import QuadIndex

__all__ = ["index"]


@click.group()
def index() -> None:
    """Build blind indexes and look into them."""


@index.command(cls=Command, example="cynosure index build tycho2/ --out sky.index --width 1 20")
@click.argument("refcat", metavar="REFCAT")
@option("--width", "widths", nargs=2, type=float, default=(0.5, 5.0), show_default=True,
        metavar="MIN MAX", help="Widths in degrees of the images it is for.")
@option("--max-mag", type=float, metavar="MAG", help="Only stars brighter than this.")
@option("--center", nargs=2, metavar="RA DEC", help="Only around here; with --radius.")
@option("--radius", "radius_deg", type=float, metavar="DEG", help="How far around --center.")
@shared
def build(
    shell: Shell, refcat: str, widths: tuple[float, float], max_mag: float | None,
    center: tuple[str, str] | None, radius_deg: float | None,
) -> int:
    """Build the index that `solve --blind` searches, from any reference catalogue."""
    from cynosure.ground.quantities import sky_position

    if shell.out is None:
        raise SettingError("--out is missing", hint="Say where the index is to be: --out FILE.")
    if (center is None) != (radius_deg is None):
        raise SettingError("--center and --radius belong together", hint="Give both or none.")
    out = Path(shell.out)
    if out.exists() and not shell.overwrite:
        raise OutputExists(path=str(out))
    circle = sky_position(center, "--center")
    if shell.dry_run:
        shell.say(f"would build {out} from {refcat} for images {widths[0]:g} … {widths[1]:g} deg")
        return int(ExitCode.OK)
    from cynosure.data.catalogs.refcat import open_refcat
    from cynosure.geometry.match.index import build_index

    catalog = open_refcat(refcat)
    around = (0.0, 0.0, 180.0) if circle is None else (*circle, float(radius_deg or 0.0))
    stars = catalog.cone(*around, max_mag=max_mag)
    built = build_index(
        stars["ra_deg"], stars["dec_deg"], stars["mag"], out,
        min_width_deg=widths[0], max_width_deg=widths[1], overwrite=shell.overwrite,
    )
    _show(shell, str(out), built)
    return int(ExitCode.OK)


@index.command(cls=Command, example="cynosure index info sky.index")
@click.argument("path", metavar="PATH")
@shared
def info(shell: Shell, path: str) -> int:
    """Say what an index holds."""
    from cynosure.geometry.match.index import open_index

    _show(shell, path, open_index(path))
    return int(ExitCode.OK)


def _show(shell: Shell, path: str, index: QuadIndex) -> None:
    """Print what an index holds."""
    facts = {
        "index": path, "stars": len(index.ra_deg), "quads": index.n_quads,
        "bands": len(index.bands), "min_width_deg": index.min_width_deg,
        "max_width_deg": index.max_width_deg,
    }
    shell.emit(facts)
    for name, value in facts.items():
        shell.say(f"{name.replace('_', ' '):<16} {value}")
