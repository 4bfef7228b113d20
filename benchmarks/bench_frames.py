"""Measure reading and writing: a 61-megapixel frame, against astropy and against a plain copy.

    python benchmarks/bench_frames.py [IMAGE.fits]

Without an image a frame of 6354 x 9576 16-bit pixels is made. One process; the page cache is warm;
the best of three is given, as CPU and wall seconds, with the peak of the memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from astropy.io import fits

from cynosure.data.fits.reader import read
from cynosure.geometry.wcs import SkyModel, header_error_mas, model_from_wcs, model_to_header
from cynosure.pipelines.save import Request, save_image

SHAPE = (9576, 6354)


def best(action: Callable[[], object], rounds: int = 3) -> tuple[float, float]:
    """Return the least CPU and wall seconds of an action."""
    times = []
    for _ in range(rounds):
        cpu, wall = time.process_time(), time.perf_counter()
        action()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    return min(t[0] for t in times), min(t[1] for t in times)


def model() -> SkyModel:
    """Return a WCS of degree 5."""
    coeff = np.zeros((2, 21))
    coeff[0, 1], coeff[1, 2] = -1.1, 1.1
    coeff[:, 3:] = np.random.default_rng(1).normal(0, 1e-4, (2, 18))
    return SkyModel(183.0, 46.0, 3176.5, 4787.5, 3177.0, coeff)


def make(path: Path) -> None:
    """Write a frame with a WCS."""
    rng = np.random.default_rng(1)
    header = model_to_header(model(), "sip", shape=SHAPE)
    data = rng.integers(900, 1100, SHAPE, dtype=np.uint16)
    fits.PrimaryHDU(data, header).writeto(path)


def copy_and_flush(source: Path, target: Path) -> None:
    """Copy a file and flush it to the disk, as any safe writer has to."""
    shutil.copyfile(source, target)
    with target.open("rb") as stream:
        os.fsync(stream.fileno())


def by_astropy(path: Path) -> np.ndarray:
    """Read the pixels as astropy's users do."""
    with fits.open(path) as hdulist:
        return hdulist[0].data.astype(np.float32)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", nargs="?", type=Path)
    given = parser.parse_args().image
    with tempfile.TemporaryDirectory() as folder:
        path = given or Path(folder) / "frame.fits"
        if given is None:
            make(path)
        out = Path(folder) / "out.fits"
        frame = read(path).frames[0]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(f"peak after the first read: {peak} MB")
        shape = frame.shape
        del frame
        solved = model()
        header = model_to_header(solved, "tpv", shape=shape)
        header["WCSNAME"] = "BENCH"
        wcs = read(path).frames[0].wcs
        rows: dict[str, Callable[[], object]] = {
            "read": lambda: read(path),
            "read, with its SHA-256": lambda: read(path).sha256,
            "astropy: open, data, float32": lambda: by_astropy(path),
            "save_image": lambda: save_image(
                path, out, Request({0: header}, {}), overwrite=True
            ),
            "copy and flush": lambda: copy_and_flush(path, out),
            "model_from_wcs": lambda: model_from_wcs(wcs, shape),
            "model_to_header, TPV": lambda: model_to_header(solved, "tpv", shape=shape),
            "model_to_header, SIP": lambda: model_to_header(solved, "sip", shape=shape),
            "header_error_mas": lambda: header_error_mas(header, solved, shape),
        }
        print(f"{'':<32}{'CPU s':>8}{'wall s':>8}")
        for name, action in rows.items():
            cpu, wall = best(action)
            print(f"{name:<32}{cpu:>8.3f}{wall:>8.3f}")
        print(f"TPV against the model: {header_error_mas(header, solved, shape):.1e} mas")


if __name__ == "__main__":
    main()
