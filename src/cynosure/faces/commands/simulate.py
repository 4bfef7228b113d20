"""``cynosure simulate``: images of known truth."""

from __future__ import annotations

import dataclasses

import click

from cynosure.faces.shell import Command, Shell, option, shared
from cynosure.ground.errors import ExitCode
from cynosure.ground.settings import read_toml, split_text

__all__ = ["simulate"]


@click.command(cls=Command, example="cynosure simulate demo --out demo --set sky.n_stars=3000")
@click.argument("scene", required=False, metavar="SCENE")
@option("--seed", type=int, help="Another draw of the same scene.")
@option("--list", "listed", is_flag=True, help="Name the scenes that come with cynosure.")
@shared
def simulate(shell: Shell, scene: str | None, seed: int | None, listed: bool) -> int:
    """Make images of known truth.

    SCENE is a name (--list) or a TOML file. There will be NAME.fits, reference.parquet (the catalogue that goes with it), NAME_truth.parquet
    and NAME_truth.wcs.fits. --set and --config change the scene's own sections.
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
    files = simulate_scene(setup, out, seed=seed, overwrite=shell.overwrite)
    written = {f.name: str(getattr(files, f.name)) for f in dataclasses.fields(files)}
    shell.emit({"scene": setup.name, **written})
    for name, path in written.items():
        shell.say(f"{name.replace('_', ' '):<12} {path}")
    return int(ExitCode.OK)
