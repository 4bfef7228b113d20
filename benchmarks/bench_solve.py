"""The whole solve of a 61-Mpix survey frame, against source-extractor + SCAMP in the same run.

    python benchmarks/bench_solve.py [--scene DIR] [--runs 3] [--rotate DEG]

Makes the scene `wide` of cynosure's simulator, or takes a folder that holds wide.fits,
ref_gaia.fits and wide_truthwcs.fits made by others. Each command is timed as a whole process by
the operating system's accounting (CPU seconds, wall seconds, peak memory); the median of the runs
is printed, and the WCS of each is compared with the true one on a 40 x 40 grid of pixels.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

warnings.simplefilter("ignore")

CYNOSURE = [sys.executable, "-m", "cynosure"]
EPOCH_YR = 2025.5


def timed(command: list[str], runs: int, cwd: Path | None = None) -> dict[str, float]:
    """Run a command and return the medians of its CPU, wall and peak memory, after one warm-up."""
    rows = []
    for k in range(runs + 1):
        start = time.perf_counter()
        child = subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        if os.waitstatus_to_exitcode(status) not in (0, 13):
            message = f"{command[:3]} … ended with {os.waitstatus_to_exitcode(status)}"
            raise RuntimeError(message)
        if k:
            rows.append((usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024))
    cpu, wall, memory = (statistics.median(column) for column in zip(*rows))
    return {"cpu_s": cpu, "wall_s": wall, "memory_mb": memory}


def wcs_error_mas(header: fits.Header, truth: WCS, shape: tuple[int, int]) -> tuple[float, float]:
    """Return the rms per axis and the largest distance between a WCS and the true one, mas."""
    x, y = (v.ravel() for v in np.meshgrid(
        np.linspace(0, shape[1] - 1, 40), np.linspace(0, shape[0] - 1, 40)
    ))
    ra, dec = WCS(header).all_pix2world(x, y, 0)
    ra0, dec0 = truth.all_pix2world(x, y, 0)
    dra = ((ra - ra0 + 180) % 360 - 180) * np.cos(np.radians(dec0)) * 3.6e6
    ddec = (dec - dec0) * 3.6e6
    return float(np.sqrt(0.5 * np.mean(dra**2 + ddec**2))), float(np.hypot(dra, ddec).max())


# ------------------------------------------------------------------------------------ the scene
def make_scene(folder: Path) -> None:
    """Simulate the scene `wide` under the names that this benchmark uses."""
    subprocess.run([*CYNOSURE, "simulate", "wide", "--out", str(folder), "-q"], check=True)
    for old, new in (("wide_truth.wcs.fits", "wide_truthwcs.fits"),):
        shutil.copy(folder / old, folder / new)
    Table.read(folder / "reference.parquet").write(folder / "ref_gaia.fits", overwrite=True)


def rotated(folder: Path, image: Path, degrees: float, mirror: bool) -> Path:
    """Return a copy of the image whose header is turned (and mirrored) away from the truth."""
    path = folder / "turned.fits"
    with fits.open(image) as hdus:
        header = hdus[0].header
        cd = np.array([[header[f"CD{i}_{j}"] for j in (1, 2)] for i in (1, 2)])
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        cd = np.array([[c, -s], [s, c]]) @ cd
        if mirror:
            cd = np.diag([-1.0, 1.0]) @ cd
        for i in (1, 2):
            for j in (1, 2):
                header[f"CD{i}_{j}"] = cd[i - 1, j - 1]
        hdus.writeto(path, overwrite=True)
    return path


# ------------------------------------------------------------------------------------- the peer
SEX_PARAM = "\n".join((
    "XWIN_IMAGE", "YWIN_IMAGE", "ERRAWIN_IMAGE", "ERRBWIN_IMAGE", "ERRTHETAWIN_IMAGE", "FLUX_AUTO",
    "FLUXERR_AUTO", "FLAGS", "FLUX_RADIUS", "ELONGATION", "FLUX_APER(1)", "FLUXERR_APER(1)",
    "MAG_AUTO", "MAGERR_AUTO", "",
))


def write_ldac(table: Table, path: Path, epoch_yr: float, max_mag: float) -> None:
    """Write reference stars, moved to an epoch, as the LDAC table that SCAMP reads."""
    table = table[np.asarray(table["phot_g_mean_mag"]) < max_mag]
    dec = np.asarray(table["dec"], float)
    dt = epoch_yr - np.asarray(table["ref_epoch"], float)
    moved = np.asarray(table["pmra"]) * dt / 3.6e6 / np.cos(np.radians(dec))
    ra = np.asarray(table["ra"], float) + moved
    dec = dec + np.asarray(table["pmdec"]) * dt / 3.6e6
    error = (np.asarray(table["ra_error"]) / 3.6e6).astype("f4")
    n = len(table)
    columns = [
        ("X_WORLD", "1D", ra, "deg"), ("Y_WORLD", "1D", dec, "deg"),
        ("ERRA_WORLD", "1E", error, "deg"), ("ERRB_WORLD", "1E", error, "deg"),
        ("ERRTHETA_WORLD", "1E", np.zeros(n, "f4"), "deg"),
        ("MAG", "1E", np.asarray(table["phot_g_mean_mag"], "f4"), "mag"),
        ("MAGERR", "1E", np.full(n, 0.01, "f4"), "mag"),
        ("OBSDATE", "1D", np.full(n, epoch_yr), "yr"),
    ]
    objects = fits.BinTableHDU.from_columns(
        [fits.Column(name, form, array=values, unit=unit) for name, form, values, unit in columns],
        name="LDAC_OBJECTS",
    )
    cards = [f"{c:<80}" for c in (
        "SIMPLE  =                    T", "BITPIX  =                    8",
        "NAXIS   =                    0", "END")]
    head = fits.BinTableHDU.from_columns(
        [fits.Column("Field Header Card", f"{80 * len(cards)}A", array=["".join(cards)])],
        name="LDAC_IMHEAD",
    )
    head.header["TDIM1"] = f"(80, {len(cards)})"
    fits.HDUList([fits.PrimaryHDU(), head, objects]).writeto(path, overwrite=True)


def peer(folder: Path, image: Path, runs: int, degree: int, any_rotation: bool) -> dict[str, float]:
    """Time source-extractor + SCAMP and return its figures with the WCS that it wrote."""
    (folder / "se.param").write_text(SEX_PARAM)
    (folder / "se.conv").write_text("CONV NORM\n1 2 1\n2 4 2\n1 2 1\n")
    write_ldac(Table.read(folder / "ref_gaia.fits"), folder / "ref.cat", EPOCH_YR, 17.0)
    extract = [
        "source-extractor", str(image), "-CATALOG_NAME", "peer.cat", "-CATALOG_TYPE", "FITS_LDAC",
        "-PARAMETERS_NAME", "se.param", "-FILTER_NAME", "se.conv", "-DETECT_THRESH", "10",
        "-ANALYSIS_THRESH", "10", "-DETECT_MINAREA", "3", "-GAIN", "1", "-SATUR_LEVEL", "60000",
        "-PIXEL_SCALE", "1.25", "-PHOT_APERTURES", "5", "-MEMORY_PIXSTACK", "3000000",
        "-MEMORY_OBJSTACK", "30000", "-VERBOSE_TYPE", "QUIET",
    ]
    solve = [
        "scamp", "peer.cat", "-ASTREF_CATALOG", "FILE", "-ASTREFCAT_NAME", "ref.cat",
        "-ASTREFCENT_KEYS", "X_WORLD,Y_WORLD", "-ASTREFERR_KEYS",
        "ERRA_WORLD,ERRB_WORLD,ERRTHETA_WORLD",
        "-ASTREFMAG_KEY", "MAG", "-DISTORT_DEGREES", str(degree), "-POSITION_MAXERR", "25",
        "-POSANGLE_MAXERR", "180" if any_rotation else "5", "-PIXSCALE_MAXERR", "1.02",
        "-MATCH_FLIPPED", "Y" if any_rotation else "N", "-CROSSID_RADIUS", "6",
        "-SN_THRESHOLDS", "10,100", "-CHECKPLOT_TYPE", "NONE",
        "-CHECKPLOT_DEV", "NULL", "-WRITE_XML", "N",
        "-SOLVE_PHOTOM", "N",
        "-VERBOSE_TYPE", "QUIET", "-NTHREADS", "2",
    ]
    one, two = timed(extract, runs, folder), timed(solve, runs, folder)
    text = (folder / "peer.head").read_bytes().decode("latin1").encode("ascii", "ignore").decode()
    header = fits.Header.fromstring(text, sep="\n")
    for k in (1, 2):
        header[f"CTYPE{k}"] = header[f"CTYPE{k}"].replace("TAN", "TPV")
    truth = WCS(fits.getheader(folder / "wide_truthwcs.fits"))
    shape = tuple(fits.getheader(image)[f"NAXIS{k}"] for k in (2, 1))
    rms, worst = wcs_error_mas(header, truth, shape)
    return {"cpu_s": one["cpu_s"] + two["cpu_s"], "wall_s": one["wall_s"] + two["wall_s"],
            "memory_mb": max(one["memory_mb"], two["memory_mb"]), "rms_mas": rms, "max_mas": worst}


def ours(folder: Path, image: Path, runs: int, extra: tuple[str, ...] = ()) -> dict[str, float]:
    """Time `cynosure solve` and return its figures with the WCS that it wrote."""
    out = folder / "solved"
    command = [*CYNOSURE, "solve", str(image), "--refcat", str(folder / "refcat"), "--out",
               str(out), "--overwrite", *extra]
    figures = timed(command, runs)
    truth = WCS(fits.getheader(folder / "wide_truthwcs.fits"))
    header = fits.getheader(out / f"{image.stem}_wcs.fits")
    shape = (header["NAXIS2"], header["NAXIS1"])
    figures["rms_mas"], figures["max_mas"] = wcs_error_mas(header, truth, shape)
    return figures


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.scene is None:
            make_scene(folder)
        else:
            for name in ("wide.fits", "ref_gaia.fits", "wide_truthwcs.fits"):
                shutil.copy(options.scene / name, folder / name)
        subprocess.run(
            [*CYNOSURE, "refcat", "build", str(folder / "ref_gaia.fits"), "--out",
             str(folder / "refcat"), "-q"], check=True,
        )
        image = folder / "wide.fits"
        turned = rotated(folder, image, 131.0, mirror=True)
        rows = [
            ("cynosure, header as it is", ours(folder, image, options.runs, ("--no-report",))),
            ("the same with its report", ours(folder, image, options.runs)),
            ("cynosure, header turned by 131° and mirrored",
             ours(folder, turned, options.runs, ("--no-report",))),
        ]
        if not options.no_peer and shutil.which("scamp") and shutil.which("source-extractor"):
            rows += [
                ("source-extractor + SCAMP, degree 3", peer(folder, image, options.runs, 3, False)),
                ("source-extractor + SCAMP, degree 5", peer(folder, image, options.runs, 5, False)),
                ("the same, header turned and mirrored, any rotation",
                 peer(folder, turned, options.runs, 5, True)),
            ]
    print("| job | CPU s | wall s | memory MB | WCS rms mas | WCS worst mas |")
    print("|---|---|---|---|---|---|")
    for name, f in rows:
        print(f"| {name} | {f['cpu_s']:.2f} | {f['wall_s']:.2f} | {f['memory_mb']:.0f} | "
              f"{f['rms_mas']:.2f} | {f['max_mas']:.1f} |")


if __name__ == "__main__":
    main()
