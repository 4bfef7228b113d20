"""``cynosure simulate``: images of known truth."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import click

from cynosure.faces.shell import Command, Shell, compile_first, option, shared
from cynosure.ground.errors import CatalogMissing, ExitCode
from cynosure.ground.settings import read_toml, split_text

if TYPE_CHECKING:
    from cynosure.products.scene import Scene

__all__ = ["simulate"]


@click.command(cls=Command, example="cynosure simulate demo --out demo --set sky.n_stars=3000")
@click.argument("scene", required=False, metavar="SCENE")
@option("--seed", type=int, help="Another draw of the same scene.")
@option("--refcat", metavar="PATH|URL",
        help="Take the stars from this catalogue instead of drawing them.")
@option("--list", "listed", is_flag=True, help="Name the scenes that come with cynosure.")
@shared
def simulate(
    shell: Shell, scene: str | None, seed: int | None, refcat: str | None, listed: bool
) -> int:
    """Make images of known truth.

    SCENE is a name (--list) or a TOML file. There will be NAME.fits, reference.parquet (the
    catalogue that goes with it), NAME_truth.parquet and NAME_truth.wcs.fits. --set and --config
    change the scene's own sections.
    """
    from cynosure.products.simulate import load_scene, scene_names, simulate_scene

    if listed or scene is None:
        for name in scene_names():
            about = load_scene(name).to_dict().get("scene", {}).get("about", "")
            shell.say(f"{name:<14} {about}")
            shell.emit({"scene": name, "about": about})
        return int(ExitCode.OK)
    setup = load_scene(scene)
    for path in shell.config:
        setup = setup.updated(read_toml(path), path)
    for text in shell.texts:
        section, key, value = split_text(text)
        setup = setup.updated({section: {key: value}}, f"--set {text}")
    out = shell.folder(setup.name)
    if shell.dry_run:
        shell.say(f"would simulate {setup.name} into {out}/")
        return int(ExitCode.OK)
    stars = None if refcat is None else _stars_of(refcat, setup)
    compile_first(shell.tell, "scene")
    files = simulate_scene(setup, out, seed=seed, overwrite=shell.overwrite, refcat=stars)
    paths = {f.name: getattr(files, f.name) for f in dataclasses.fields(files)}
    written = {name: str(path) for name, path in paths.items() if path.exists()}
    shell.emit({"scene": setup.name, **written})
    for name, path in written.items():
        shell.say(f"{name.replace('_', ' '):<12} {path}")
    return int(ExitCode.OK)


def _stars_of(refcat: str, scene: Scene) -> Any:
    """Return the stars of a catalogue on the sky that a scene shows, with its margin."""
    from cynosure.data.catalogs.refcat import open_refcat

    camera = scene.camera
    across_px = math.hypot(camera.width_px, camera.height_px) * math.sqrt(camera.n_chips)
    radius_deg = 0.5 * across_px * camera.scale_arcsec / 3600.0 + scene.sky.margin_deg
    stars = open_refcat(refcat).cone(scene.sky.ra_deg, scene.sky.dec_deg, radius_deg)
    if not len(stars):
        raise CatalogMissing(
            catalog=refcat, reason="no star where the scene points",
            hint="Point it: --set sky.ra_deg=… --set sky.dec_deg=….",
        )
    return stars
