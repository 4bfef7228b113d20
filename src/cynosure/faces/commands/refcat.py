"""``cynosure refcat``: build, fetch and look into reference catalogues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cynosure.faces.progress import Steps
from cynosure.faces.shell import Command, Shell, option, shared
from cynosure.ground.errors import CatalogDamaged, ExitCode, SettingError
from cynosure.ground.quantities import sky_position

__all__ = ["refcat"]

CONE_COLUMNS = (
    "ref_id", "ra_deg", "dec_deg", "ref_epoch_yr", "mag", "color", "pm_ra_mas_yr", "pm_dec_mas_yr",
    "parallax_mas", "ra_error_mas", "dec_error_mas",
)


@click.group()
def refcat() -> None:
    """Build, fetch and look into reference catalogues."""


@refcat.command(cls=Command, example="cynosure refcat build gaia.parquet --out gaia")
@click.argument("tables", nargs=-1, required=True, metavar="TABLE…")
@option("--name", help="Name that solutions will carry; the default comes from the table.")
@option("--ref-epoch", "ref_epoch_yr", type=float, metavar="YEAR",
        help="Julian year of the positions, where the table does not say.")
@option("--position-error", "position_error_mas", type=float, metavar="MAS",
        help="Standard error of a position, where the table does not say.")
@shared
def build(shell: Shell, tables: tuple[str, ...], **options: Any) -> int:
    """Build a catalogue on disk (HATS) from Parquet, FITS, ECSV, CSV or VOTable.

    A table needs ra and dec in degrees and one magnitude; proper motions, parallaxes and errors
    are used where they are, under Gaia's column names or common aliases.
    """
    out = _required_out(shell)
    if shell.dry_run:
        shell.say(f"would build {out}/ from {' '.join(tables)}")
        return int(ExitCode.OK)
    from cynosure.data.catalogs.build import build_refcat

    with Steps(quiet=shell.quiet) as steps:
        built = build_refcat(
            list(tables), out, overwrite=shell.overwrite, progress=steps, **options
        )
    _show_facts(shell, built.info())
    return int(ExitCode.OK)


@refcat.command(cls=Command, example="cynosure refcat fetch --for m81.fits --out m81")
@option("--for", "image", metavar="IMAGE", help="The sky that this image needs.")
@option("--center", nargs=2, metavar="RA DEC", help="Degrees, or 10:02:11 +02:14:09.")
@option("--radius", "radius_deg", type=float, metavar="DEG",
        help="How much of the sky around it; 1 where nothing says otherwise.")
@option("--service", metavar="URL", help="TAP service or remote HATS catalogue.")
@option("--table", metavar="NAME", help="Table of the TAP service.")
@option("--max-mag", type=float, metavar="MAG", help="Only stars brighter than this.")
@shared
def fetch(
    shell: Shell, image: str | None, center: tuple[str, str] | None, radius_deg: float | None,
    **options: Any,
) -> int:
    """Fetch just the sky that is needed from a service; cached, resumable, never cut short."""
    out = _required_out(shell)
    ra_deg, dec_deg, needed = _circle(image, sky_position(center, "--center"))
    radius_deg = needed if radius_deg is None else radius_deg
    given = {k: v for k, v in options.items() if v is not None}
    if shell.dry_run:
        shell.say(f"would fetch {radius_deg:g} deg around {ra_deg:.5f} {dec_deg:+.5f} into {out}/")
        return int(ExitCode.OK)
    from cynosure.data.catalogs.fetch import fetch_refcat

    with Steps(quiet=shell.quiet) as steps:
        fetched = fetch_refcat(
            out, ra_deg=ra_deg, dec_deg=dec_deg, radius_deg=radius_deg,
            overwrite=shell.overwrite, progress=steps, **given,
        )
    _show_facts(shell, fetched.info())
    return int(ExitCode.OK)


def _circle(
    image: str | None, center: tuple[float, float] | None
) -> tuple[float, float, float]:
    """Return the circle that an image needs, or one degree around a centre."""
    if center is not None:
        return *center, 1.0
    if image is None:
        raise SettingError("which part of the sky?", hint="Give --for IMAGE, or --center RA DEC.")
    from cynosure.data.fits.reader import read

    exposure = read(Path(image))
    pointing = exposure.pointing
    if pointing.ra_deg is None or pointing.dec_deg is None:
        raise SettingError(
            "{image}: its header does not say where it points", image=image,
            hint="Give --center RA DEC --radius DEG.",
        )
    side_px = max(sum(frame.shape) for frame in exposure.frames) * len(exposure.frames) ** 0.5
    field_deg = 0.5 * side_px * (pointing.scale_arcsec or 1.0) / 3600.0
    return pointing.ra_deg, pointing.dec_deg, field_deg + (pointing.radius_deg or 0.3)


@refcat.command(cls=Command, example="cynosure refcat info gaia/")
@click.argument("path", metavar="PATH|URL")
@shared
def info(shell: Shell, path: str) -> int:
    """Say what a catalogue holds: stars, sky, epoch, columns, what is unknown."""
    from cynosure.data.catalogs.refcat import open_refcat

    _show_facts(shell, open_refcat(path).info())
    return int(ExitCode.OK)


@refcat.command(cls=Command, example="cynosure refcat cone gaia/ 148.97 69.68 0.1")
@click.argument("path", metavar="PATH|URL")
@click.argument("center", nargs=2, metavar="RA DEC")
@click.argument("radius_deg", type=float, metavar="RADIUS")
@option("--max-mag", type=float, metavar="MAG", help="Only stars brighter than this.")
@option("--max-rows", type=int, metavar="N", help="Only so many, the brightest.")
@shared
def cone(
    shell: Shell, path: str, center: tuple[str, str], radius_deg: float, **options: Any
) -> int:
    """Print the stars within RADIUS degrees of RA DEC, brightest first.

    With --out FILE they are written to a Parquet table instead.
    """
    from cynosure.data.catalogs.refcat import open_refcat
    from cynosure.data.tables import REFERENCE

    ra_deg, dec_deg = sky_position(center, "--center") or (0.0, 0.0)
    stars = open_refcat(path).cone(ra_deg, dec_deg, radius_deg, **options)
    if shell.out is not None:
        return _write_stars(shell, stars)
    if shell.json:
        for star in stars:
            shell.emit({name: _plain(star[name]) for name in REFERENCE.names})
        return int(ExitCode.OK)
    shell.say(" ".join(CONE_COLUMNS))
    for star in stars:
        shell.say(" ".join(_short(star[name]) for name in CONE_COLUMNS))
    shell.tell(f"{len(stars)} stars")
    return int(ExitCode.OK)


@refcat.command(cls=Command, example="cynosure refcat verify gaia/")
@click.argument("path", metavar="PATH")
@shared
def verify(shell: Shell, path: str) -> int:
    """Read a catalogue whole and check it against itself."""
    from cynosure.data.catalogs.verify import verify_refcat

    with Steps(quiet=shell.quiet) as steps:
        faults = verify_refcat(path, progress=steps)
    shell.emit({"catalog": path, "good": not faults, "faults": faults})
    if faults:
        raise CatalogDamaged(catalog=path, reason="; ".join(faults))
    shell.say(f"{path}: good")
    return int(ExitCode.OK)


def _required_out(shell: Shell) -> Path:
    if shell.out is None:
        raise SettingError("--out is missing", hint="Say where the catalogue is to be: --out DIR.")
    return Path(shell.out)


def _write_stars(shell: Shell, stars: Any) -> int:
    from cynosure.data.tables import REFERENCE, write_parquet
    from cynosure.ground.errors import OutputExists

    path = shell.folder("")
    if path.exists() and not shell.overwrite:
        raise OutputExists(path=str(path))
    write_parquet(path, stars, REFERENCE)
    shell.say(f"{len(stars)} stars in {path}")
    return int(ExitCode.OK)


def _show_facts(shell: Shell, facts: dict[str, Any]) -> None:
    """Print facts by name; which column is which only with -v."""
    shell.emit(facts)
    for name, value in facts.items():
        if isinstance(value, dict) and shell.verbose:
            value = ", ".join(f"{k} = {v}" for k, v in value.items())
        elif isinstance(value, dict):
            value = f"{len(value)} known"
        elif isinstance(value, (list, tuple)):
            value = " … ".join(map(str, value)) if "range" in name else "; ".join(map(str, value))
        if value not in (None, ""):
            shell.say(f"{name.replace('_', ' '):<20} {value}")


def _plain(value: Any) -> Any:
    plain = value.item()
    return None if plain != plain else plain


def _short(value: Any) -> str:
    plain = value.item()
    return f"{plain:.9g}" if isinstance(plain, float) else str(plain)
