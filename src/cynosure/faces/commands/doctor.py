"""``cynosure doctor``: say whether everything is there, and what a file holds."""

from __future__ import annotations

import importlib.util
import os
import platform
import tempfile
import time
from pathlib import Path

import click

from cynosure.faces.shell import Command, Shell, option, shared, user_files
from cynosure.ground.errors import CynosureError, ExitCode

__all__ = ["doctor"]

# What the optional parts need: catalogues from services, pictures.
EXTRAS = {"online": ("pyvo", "fsspec", "aiohttp"), "images": ("PIL",)}


@click.command(cls=Command, example="cynosure doctor m81.fits")
@click.argument("files", nargs=-1, metavar="[FILE…]")
@option("--self-test/--no-self-test", default=True, help="Simulate a small field and solve it.")
@option("--compile", "compile_all", is_flag=True,
        help="Compile all kernels now, so that no run waits for it.")
@shared
def doctor(shell: Shell, files: tuple[str, ...], self_test: bool, compile_all: bool) -> int:
    """Check the installation, or a file.

    Without FILE: versions, settings, catalogue, and a small field simulated and solved. With FILE:
    what it holds, as solve would read it.
    """
    if files:
        return max(_examine(shell, name) for name in files)
    from cynosure.pipelines.manifest import versions

    for name, version in versions().items():
        _line(shell, name, version)
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        text = f"missing {', '.join(missing)} (extra: cynosure[{extra}])" if missing else "there"
        _line(shell, extra, text)
    _line(shell, "machine", f"{platform.platform()}, {os.cpu_count()} cores")
    _line(shell, "settings", " ".join(user_files()) or "built-in only")
    codes = [_check_settings(shell), _check_refcat(shell), _check_kernels(shell, compile_all)]
    if self_test:
        codes.append(_solve_small_field(shell))
    return max(codes)


def _line(shell: Shell, name: str, text: str, good: bool = True) -> None:
    shell.say(f"{name:<12} {'' if good else 'PROBLEM: '}{text}")
    shell.emit({"check": name, "good": good, "text": text})


def _problem(shell: Shell, name: str, error: CynosureError) -> int:
    _line(shell, name, f"{error}. {error.hint}", good=False)
    return int(error.exit_code)


def _check_settings(shell: Shell) -> int:
    try:
        shell.settings()
    except CynosureError as error:
        return _problem(shell, "settings", error)
    return int(ExitCode.OK)


def _check_refcat(shell: Shell) -> int:
    path = os.environ.get("CYNOSURE_REFCAT")
    if not path:
        _line(shell, "catalogue", "CYNOSURE_REFCAT is not set; solve needs --refcat")
        return int(ExitCode.OK)
    from cynosure.data.catalogs.refcat import open_refcat

    try:
        facts = open_refcat(path).info()
    except CynosureError as error:
        return _problem(shell, "catalogue", error)
    _line(shell, "catalogue", f"{path}: {facts['name']}, {facts['rows']} stars")
    return int(ExitCode.OK)


def _check_kernels(shell: Shell, compile_all: bool) -> int:
    """Say where compiled kernels are kept, and compile those that are not."""
    from cynosure.ground.cache import describe, marked
    from cynosure.pipelines.compiling import GROUPS, compile_kernels

    good = True
    if compile_all:
        good = compile_kernels(
            tuple(GROUPS),
            say=lambda done, total: shell.tell(f"kernels: {done} of {total} groups compiled"),
        )
    here = [name for name in GROUPS if marked([name])]
    text = f"{len(here)} of {len(GROUPS)} groups compiled, in {describe()}"
    _line(shell, "kernels", text, good)
    return int(ExitCode.OK if good else ExitCode.INTERNAL)


def _solve_small_field(shell: Shell) -> int:
    """Simulate a field and solve it: everything from pixels to the verdict works here."""
    from cynosure.data.catalogs.refcat import open_refcat
    from cynosure.pipelines.solve import solve
    from cynosure.products.simulate import load_scene, simulate_scene

    scene = load_scene("demo").updated(
        {"sky": {"n_stars": 400}, "camera": {"width_px": 768, "height_px": 768}}
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = simulate_scene(scene, folder)
            start = time.monotonic()
            outcome = solve(files.image, open_refcat(files.reference))
    except CynosureError as error:
        return _problem(shell, "self-test", error)
    solution = outcome.solution
    good = solution.status == "solved"
    text = f"{solution.status}, {solution.n_used} stars, {solution.rms_mas:.1f} mas"
    _line(shell, "self-test", f"{text}, {time.monotonic() - start:.1f} s", good)
    return int(ExitCode.OK if good else ExitCode.INTERNAL)


def _examine(shell: Shell, name: str) -> int:
    """Say what a file holds, as `solve` would read it."""
    from cynosure.data.fits.reader import read

    try:
        exposure = read(Path(name))
    except CynosureError as error:
        return _problem(shell, name, error)
    _line(shell, name, f"instrument {exposure.instrument}, {len(exposure.frames)} chip(s)")
    pointing = exposure.pointing
    if pointing.ra_deg is None or pointing.dec_deg is None:
        _line(shell, "pointing", "unknown: give --center, or solve with --blind")
    else:
        scale = f"{pointing.scale_arcsec:.4g}″/px" if pointing.scale_arcsec else "scale unknown"
        _line(shell, "pointing", f"{pointing.ra_deg:.5f} {pointing.dec_deg:+.5f}, {scale}")
    for frame in exposure.frames:
        ny, nx = frame.shape
        epoch = "epoch unknown" if frame.epoch_yr is None else f"epoch {frame.epoch_yr:.3f}"
        wcs = "no WCS" if frame.wcs is None else "WCS " + "/".join(frame.wcs.wcs.ctype)
        _line(shell, "frame", f"{frame.name}: {nx} x {ny} px, {epoch}, {wcs}")
    for note in exposure.notes:
        _line(shell, "note", note)
    return int(ExitCode.OK)
