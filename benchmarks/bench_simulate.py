"""Measure the simulator: how fast its scenes are made, and how true they are.

    python benchmarks/bench_simulate.py [scene ...]

One process, one core; every scene is made twice and the second time is given, so that the compiled
loops are warm. Then: the rendering alone, with the PSF families, of 30,000 stars on 61 Mpix; and
the error of a pixel's value against quadrature.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time

import numpy as np

from cynosure.data.tables import read_parquet
from cynosure.products.render import psf_mixture, render_stars, stamps
from cynosure.products.scene import Psf
from cynosure.products.simulate import TRUTH, load_scene, scene_names, simulate_scene

FRAME = (9576, 6354)
N_STARS = 30_000
FAMILIES = {
    "Gaussian, round": Psf(fwhm_px=2.2),
    "Gaussian, elliptical": Psf(fwhm_px=2.2, e1_terms=(0.05,), e2_terms=(0.02,)),
    "two Gaussians": Psf(family="double_gaussian", fwhm_px=2.2),
    "Moffat 3, elliptical": Psf(family="moffat", fwhm_px=2.2, e2_terms=(0.05,)),
    "Moffat 3, coma": Psf(family="moffat", fwhm_px=2.2, coma_x_terms=(0.0, 0.1)),
}


def time_scenes(names: list[str]) -> None:
    print(f"{'scene':<14} {'Mpix':>6} {'objects':>8} {'wall s':>7} {'CPU s':>6}")
    for name in names:
        scene = load_scene(name)
        with tempfile.TemporaryDirectory() as folder:
            simulate_scene(scene, folder)
            wall, cpu = time.perf_counter(), time.process_time()
            files = simulate_scene(scene, folder, overwrite=True)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            n = len(read_parquet(files.truth, TRUTH))
        camera = scene.camera
        mpix = camera.n_chips * camera.width_px * camera.height_px / 1e6
        print(f"{name:<14} {mpix:6.1f} {n:8d} {wall:7.2f} {cpu:6.2f}")


def time_rendering() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, FRAME[1], N_STARS), rng.uniform(0, FRAME[0], N_STARS)
    flux = 10.0 ** (2.0 + 3.0 * rng.random(N_STARS) ** 2)
    print(f"\n{N_STARS} stars on {FRAME[0] * FRAME[1] / 1e6:.0f} Mpix, FWHM 2.2 px, to 0.01 e-")
    for name, psf in FAMILIES.items():
        render_stars((64, 64), x[:9] % 64, y[:9] % 64, flux[:9], psf)
        start = time.perf_counter()
        render_stars(FRAME, x, y, flux, psf, cutoff_e=0.01)
        seconds = time.perf_counter() - start
        print(f"{name:<22} {seconds:6.2f} s {N_STARS / seconds / 1e3:8.0f} thousand stars a second")


def by_quadrature(psf: Psf, half: int, fx: float, fy: float, n: int = 24) -> np.ndarray:
    """Integrate a PSF over pixels with n x n Gauss-Legendre nodes."""
    zero = np.zeros(1)
    mixture = psf_mixture(psf, zero, zero)
    node, weight = np.polynomial.legendre.leggauss(n)
    grid = (np.arange(-half, half + 1)[:, None] + node / 2).ravel()
    x, y = grid[None, :] - fx, grid[:, None] - fy
    total = np.zeros((grid.size, grid.size))
    for w, dx, dy, xx, xy, yy in zip(*(a[0] for a in mixture.arrays)):
        det = xx * yy - xy * xy
        q = (yy * (x - dx) ** 2 - 2 * xy * (x - dx) * (y - dy) + xx * (y - dy) ** 2) / det
        total += w * np.exp(-0.5 * q) / (2 * np.pi * np.sqrt(det))
    size = 2 * half + 1
    return np.einsum("iajb,a,b->ij", total.reshape(size, n, size, n), weight / 2, weight / 2)


def measure_pixels() -> None:
    print("\nlargest error of a pixel, in units of the brightest")
    at = 0.31, -0.47
    for fwhm in (0.8, 1.2, 2.2, 3.9, 4.2, 10.0):
        psf = Psf(fwhm_px=fwhm, e1_terms=(0.1,), e2_terms=(0.2,))
        zero = np.zeros(1)
        mixture = psf_mixture(psf, zero, zero)
        ours = stamps(mixture, 12, np.array(at[:1]), np.array(at[1:]))[0]
        truth = by_quadrature(psf, 12, *at)
        print(f"FWHM {fwhm:4.1f} px {np.abs(ours - truth).max() / truth.max():9.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenes", nargs="*", default=scene_names())
    time_scenes(parser.parse_args().scenes)
    time_rendering()
    measure_pixels()
    print(f"\nlargest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
