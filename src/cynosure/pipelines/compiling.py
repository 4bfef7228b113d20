"""Compile the kernels before they are needed, in several processes.

The kernels fall into groups that have little in common, and each group is compiled by calling, on
data as small as will do, the functions that use it. Every process keeps what it compiles in the
common folder (:mod:`cynosure.ground.cache`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from cynosure.ground.cache import mark, marked
from cynosure.ground.errors import CynosureError

__all__ = ["GROUPS", "SOLVE", "compile_group", "compile_kernels"]

# Image on which the kernels are called, px: the smallest with enough stars of this width for a PSF.
SIDE = 128
FWHM_PX = 2.5


def compile_kernels(
    names: Sequence[str], *, workers: int | None = None,
    say: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
    """Compile groups of kernels, those that were not compiled before.

    Parameters
    ----------
    names : sequence of str
        Of :data:`GROUPS`; the longest to compile come first there.
    workers : int, optional
        Processes at a time; as many as there are processors by default.
    say : callable
        Told after each group how many are done, and of how many.

    Returns
    -------
    done : bool
        Whether every process ended well. If not, the kernels are compiled when they are called.
    """
    missing = [name for name in GROUPS if name in names and not marked([name])]
    if not missing:
        return True
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        waiting = [pool.submit(_compile_apart, name) for name in missing]
        good = True
        for count, future in enumerate(as_completed(waiting), 1):
            good = future.result() and good
            say(count, len(missing))
    return good


def _compile_apart(name: str) -> bool:
    """Compile a group in a process of its own."""
    code = f"from cynosure.pipelines.compiling import compile_group; compile_group({name!r})"
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(p for p in (package, os.environ.get("PYTHONPATH")) if p)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
    )
    return done.returncode == 0


def compile_group(name: str) -> None:
    """Compile a group of kernels in this process, and note that it was done."""
    with np.errstate(all="ignore"):
        GROUPS[name]()
    mark(name)


# ------------------------------------------------------------------------------------ the pixels
def _small_frame() -> Any:
    """Return a frame with 25 stars, and where they are."""
    from cynosure.data.frame import Frame

    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    grid = np.linspace(16.0, SIDE - 16.0, 5)
    place = rng.uniform(-3, 3, (25, 2)) + np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    data = rng.normal(0.0, 1.0, (SIDE, SIDE)).astype(np.float32)
    sigma = FWHM_PX / 2.355
    for x, y in place:
        data += 300.0 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2.0 * sigma**2))
    return Frame(data, saturation_adu=1e4), place


def _flat_sky() -> Any:
    from cynosure.pixels.background import Background

    mesh = np.zeros((2, 2), np.float32)
    return Background(mesh, mesh + np.float32(1.0), (SIDE, SIDE))


def _sources(place: Any) -> Any:
    from cynosure.data.tables import SOURCES

    sources = SOURCES.empty(len(place))
    sources["x"], sources["y"] = place.T
    sources["flux_e"] = sources["flux_aper_e"] = 300.0 * 2.0 * np.pi * (FWHM_PX / 2.355) ** 2
    sources["snr"] = sources["peak_snr"] = 100.0
    sources["fwhm_px"], sources["ellipticity"], sources["sharpness"] = FWHM_PX, 0.05, -1.0
    sources["theta_deg"] = sources["background_e"] = sources["xy_corr"] = 0.0
    return sources


def _sky() -> None:
    from cynosure.pixels.background import estimate_background
    from cynosure.pixels.detect import detect_sources

    frame, _ = _small_frame()
    sky = estimate_background(frame, cell_px=32)
    sky.rows(0, 2)
    detect_sources(frame, sky)


def _psf() -> None:
    from cynosure.pixels.psf import build_psf

    frame, place = _small_frame()
    with contextlib.suppress(CynosureError):
        build_psf(frame, _flat_sky(), _sources(place), radius_fwhm=1.5, rounds=1)


def _fit() -> None:
    from cynosure.pixels.measure import fit_psf
    from cynosure.pixels.psf import Psf

    frame, place = _small_frame()
    nodes = np.arange(15) - 7.0
    profile = np.exp(-((nodes[:, None] ** 2 + nodes**2) / (2.0 * (FWHM_PX / 2.355) ** 2)))
    coefficients = np.stack([profile / profile.sum(), 0.0 * profile, 0.0 * profile])
    psf = Psf(coefficients, 1.0, 1, frame.shape, FWHM_PX, 0.0, 4, 25, 1.0)
    fit_psf(frame, _flat_sky(), psf, _sources(place), passes=1)


# --------------------------------------------------------------------------------- recognition
def _stars() -> Any:
    """Return pixels, flux, sky and magnitude of forty stars at 1 arcsec a pixel."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0.0, 1000.0, (2, 40))
    mag = np.linspace(10.0, 14.0, 40)
    ra, dec = 10.0 - (x - 500.0) / 3600.0, (y - 500.0) / 3600.0
    return x, y, 10.0 ** (-0.4 * mag), ra, dec, mag


def _pointing() -> None:
    from cynosure.data.frame import Pointing
    from cynosure.geometry.match.pairs import depth_match
    from cynosure.geometry.match.pointing import match_pointing

    x, y, flux, ra, dec, mag = _stars()
    near = Pointing(10.0, 0.0, radius_deg=0.1, scale_arcsec=1.0, scale_error=0.01)
    with contextlib.suppress(CynosureError):
        match_pointing(x, y, flux, ra, dec, mag, near, (1000, 1000))
    depth_match(x, y, flux, x, y, mag)


def _blind() -> None:
    import tempfile

    from cynosure.geometry.match.blind import build_index, solve_blind

    x, y, flux, ra, dec, mag = _stars()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(CynosureError):
        index = build_index(ra, dec, mag, Path(folder) / "index", min_width_deg=1.0,
                            max_width_deg=1.0)
        solve_blind(x, y, flux, index, (1000, 1000))


def _scene() -> None:
    import tempfile

    from cynosure.products.simulate import load_scene, simulate_scene

    scene = load_scene("demo").updated(
        {"sky": {"n_stars": 20}, "camera": {"width_px": 64, "height_px": 64}}
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(CynosureError):
        simulate_scene(scene, folder)


# The groups, in the order of their time to compile, the longest first: the processes end together.
GROUPS: dict[str, Callable[[], None]] = {
    "pointing": _pointing, "psf": _psf, "blind": _blind, "sky": _sky, "fit": _fit,
    "scene": _scene,
}
SOLVE = ("pointing", "psf", "sky", "fit")
