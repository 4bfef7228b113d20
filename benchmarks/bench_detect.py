"""Detection, aperture sums, PSF and PSF fits on a scene of known truth.

    python benchmarks/bench_detect.py [--scene DIR] [--name wide]

DIR holds NAME.fits and NAME_truth.fits (x, y 1-based, flux, crb_x, crb_f) made by others; without
it the scenes `wide` and `crowded` of cynosure's simulator are made. Detection is timed as a whole
process: imports, reading, background, width of the stars, detection, apertures. Stars count as
found within 1.5 px, brightest first; true stars above S/N 5 that are 12 px from the edges count for
the completeness, sources with any true star for the purity. Centroids are compared with the
Cramer-Rao bound on stars that are alone: no neighbour within 10 px has more light than 2 % of their
own, or than the error of their flux. (At S/N 200 a star of 2 % is one of 4 sigma, too faint to be
seen beside them and bright enough to move them by several times their bound.) The plus-minus is
the sampling error of the number of stars.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from scipy.spatial import cKDTree

from cynosure.data.fits.reader import read
from cynosure.pixels.background import estimate_background
from cynosure.pixels.detect import detect_sources
from cynosure.pixels.measure import fit_psf
from cynosure.pixels.psf import build_psf

DETECT = """
import sys
from cynosure.data.fits.reader import read
from cynosure.pixels.background import estimate_background
from cynosure.pixels.detect import detect_sources
frame = read(sys.argv[1]).frames[0]
detect_sources(frame, estimate_background(frame))
"""


def whole_process(path: Path, runs: int = 3) -> tuple[float, float]:
    """Return CPU seconds and peak MB of detection as a process of its own, medians."""
    rows = []
    for _ in range(runs + 1):
        child = subprocess.Popen([sys.executable, "-c", DETECT, str(path)])
        _, _, usage = os.wait4(child.pid, 0)
        rows.append((usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024))
    cpu, memory = np.median(rows[1:], axis=0)
    return float(cpu), float(memory)


def pair(truth: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return for each true star the row of its source, or -1; each source serves once."""
    distance, near = cKDTree(np.column_stack([x, y])).query(
        np.column_stack([truth["x"], truth["y"]]), k=4, distance_upper_bound=1.5
    )
    index, taken = np.full(len(truth["x"]), -1), np.zeros(len(x), dtype=bool)
    for i in np.argsort(-truth["flux"]):
        for d, j in zip(distance[i], near[i]):
            if np.isfinite(d) and not taken[j]:
                index[i], taken[j] = j, True
                break
    return index


def alone(truth: dict[str, np.ndarray]) -> np.ndarray:
    """Say which true stars have no neighbour of note."""
    at = np.column_stack([truth["x"], truth["y"]])
    pairs = cKDTree(at).query_pairs(10.0, output_type="ndarray")
    keep, flux = np.ones(len(at), dtype=bool), truth["flux"]
    least = np.minimum(0.02 * flux, truth["crb_f"])
    for a, b in ((pairs[:, 0], pairs[:, 1]), (pairs[:, 1], pairs[:, 0])):
        keep[a[flux[b] > least[a]]] = False
    return keep


def clipped_rms(z: np.ndarray) -> float:
    """Return the rms of what lies within five robust standard deviations."""
    spread = 1.4826 * np.median(np.abs(z - np.median(z)))
    return float(np.sqrt(np.mean(z[np.abs(z - np.median(z)) < 5 * spread] ** 2)))


def judge(name: str, truth: dict[str, np.ndarray], sources: np.ndarray, shape: tuple[int, int],
          saturation: float) -> None:
    """Print completeness, purity, and centroids over their bound."""
    index = pair(truth, sources["x"], sources["y"])
    found = index >= 0
    ny, nx = shape
    inner = (truth["x"] > 11) & (truth["x"] < nx - 13) & (truth["y"] > 11) & (truth["y"] < ny - 13)
    snr = truth["flux"] / truth["crb_f"]
    got = np.zeros(len(sources), dtype=bool)
    got[index[found]] = True
    x, y = sources["x"], sources["y"]
    inside = (x > 11) & (x < nx - 13) & (y > 11) & (y < ny - 13)
    complete = found[inner & (snr > 5)].mean()
    print(f"{name}: {len(sources)} sources, completeness {complete:.4f} above S/N 5, "
          f"purity {got[inside].mean():.4f}")
    lone = alone(truth) & inner & found & (truth["peak"] < saturation)
    cells = []
    for low, high in ((7, 10), (10, 20), (20, 50), (50, 200), (200, 2000)):
        rows = np.flatnonzero(lone & (snr >= low) & (snr < high))
        if len(rows) < 8:
            continue
        dx = sources["x"][index[rows]] - truth["x"][rows]
        dy = sources["y"][index[rows]] - truth["y"][rows]
        z = np.concatenate([dx, dy]) / np.tile(truth["crb_x"][rows], 2)
        chance = 1 / np.sqrt(2 * len(z))
        cells.append(f"S/N {low}-{high}: {clipped_rms(z):.3f} ± {chance:.3f} ({len(rows)})")
    print("   centroid rms over the bound (stars): " + ",  ".join(cells))


def load(folder: Path, name: str) -> tuple[Path, dict[str, np.ndarray], float]:
    """Return the image, its truth with 0-based pixels, and the peak above which stars saturate."""
    if (folder / f"{name}_truth.fits").exists():
        table = Table.read(folder / f"{name}_truth.fits")
        truth = {k: np.asarray(table[k], float) for k in ("flux", "crb_x", "crb_f")}
        truth |= {k: np.asarray(table[k], float) - 1.0 for k in ("x", "y")}
    else:
        table = Table.read(folder / f"{name}_truth.parquet")
        names = {"flux": "flux_e", "crb_x": "crb_x_px", "crb_f": "crb_flux_e", "x": "x", "y": "y"}
        columns = {k: v if v in table.colnames else k for k, v in names.items()}
        truth = {k: np.asarray(table[v], float) for k, v in columns.items()}
    truth["peak"] = (
        np.asarray(table["peak"], float) if "peak" in table.colnames else 0.16 * truth["flux"]
    )
    return folder / f"{name}.fits", truth, 50_000.0


def measure(folder: Path, name: str) -> None:
    """Measure one scene and print what came out."""
    path, truth, saturation = load(folder, name)
    header = fits.getheader(path)
    pixels = header["NAXIS1"] * header["NAXIS2"] / 1e6
    cpu, memory = whole_process(path)
    print(f"{name}: detection + apertures, whole process {cpu:.2f} CPU s, "
          f"{pixels / cpu:.1f} Mpix/s, {memory:.0f} MB")
    frame = read(path).frames[0]
    for _ in range(2):  # the first round loads the compiled kernels
        background = estimate_background(frame)
        sources = detect_sources(frame, background)
        start = time.process_time()
        psf = build_psf(frame, background, sources)
        built = time.process_time()
        fitted = fit_psf(frame, background, psf, sources)
        end = time.process_time()
    judge("detected", truth, sources, frame.shape, saturation)
    judge("PSF-fitted", truth, fitted, frame.shape, saturation)
    print(f"   PSF of {psf.n_stars} stars, degree {psf.degree}: {built - start:.2f} CPU s; "
          f"fits {len(fitted) / (end - built):.0f}/s, "
          f"with the PSF {len(fitted) / (end - start):.0f}/s")


def main() -> None:
    """Measure the scenes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--name", action="append")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.name or ["wide", "crowded"]:
            folder = options.scene or Path(temporary)
            if options.scene is None:
                command = ["simulate", name, "--out", temporary, "-q"]
                subprocess.run([sys.executable, "-m", "cynosure", *command], check=True)
            measure(folder, name)


if __name__ == "__main__":
    main()
