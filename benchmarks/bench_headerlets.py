"""Headerlets: time and memory on a file of 170 MB against copying it, and mutated input.

    python benchmarks/bench_headerlets.py speed
    python benchmarks/bench_headerlets.py fuzz --cases 100000
"""

import argparse
import contextlib
import hashlib
import io
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from astropy.io import fits

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "solutions"))
from exposures import lookup_table, make_flc, science_cards

from cynosure.data.fits.parts import Part
from cynosure.ground.errors import CynosureError
from cynosure.solutions.files import archive, invariants
from cynosure.solutions.files.headerletio import parse_headerlet

GSC = "IDC_0461802ej-GSC240"
LIMIT_S = 2.0
CPU_S = []


def big_flc(path):
    """Write two chips of 4096 x 2048 with ERR and DQ: 168 MB."""
    rng = np.random.default_rng(1)
    primary = fits.PrimaryHDU()
    for key, value in (("ROOTNAME", "j95y04hpq"), ("IDCTAB", "jref$0461802ej_idc.fits"),
                       ("NPOLFILE", "jref$02c1450oj_npl.fits"), ("NEXTEND", 14),
                       ("D2IMFILE", "jref$02c1450nj_d2i.fits")):
        primary.header[key] = value
    units, tables = [primary], []
    for version in (1, 2):
        pixels = rng.normal(0, 1, (2048, 4096)).astype(np.float32)
        units += [fits.ImageHDU(pixels, name="SCI", ver=version),
                  fits.ImageHDU(pixels, name="ERR", ver=version),
                  fits.ImageHDU(np.zeros((2048, 4096), np.int16), name="DQ", ver=version)]
        science_cards(units[-3].header, version)
        tables += [lookup_table(n, 2 * version - 1 + k, rng, 0.1)
                   for n in ("WCSDVARR", "D2IMARR") for k in (0, 1)]
    fits.HDUList(units + tables).writeto(path)


def moved(headerlet, shift, name):
    chips = []
    for chip in headerlet.chips:
        part = Part(list(chip.records))
        part.set("CRVAL1", chip.number("CRVAL1") + shift)
        chips.append(replace(chip, records=part.records))
    return replace(headerlet, chips=tuple(chips)).replaced(WCSNAME=name, HDRNAME=name)


def timed(work):
    os.sync()
    start, cpu = time.perf_counter(), time.process_time()
    work()
    CPU_S.append(time.process_time() - cpu)
    return time.perf_counter() - start


def copy(source, out):
    """Copy as a careful program does: whole, on the disk, under its name at the end."""
    shutil.copyfile(source, f"{out}.tmp")
    handle = os.open(f"{out}.tmp", os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    Path(f"{out}.tmp").replace(out)


def speed(folder):
    source, work = folder / "j95y04hpq_flc.fits", folder / "w_flc.fits"
    big_flc(source)
    copy(source, work)
    own = archive.create(source)
    gsc = moved(own, 1e-4, GSC)
    operations = {
        "attach": lambda: archive.attach(work, gsc),
        "activate": lambda: archive.activate(work, GSC),
        "restore": lambda: archive.restore(work, "IDC_0461802ej"),
        "delete": lambda: archive.delete(work, [GSC]),
    }
    size = source.stat().st_size / 1e6
    plain, careful, times = [], [], {name: [] for name in operations}
    before, cpu = 0, {}
    for turn in range(6):
        plain.append(timed(lambda: shutil.copyfile(source, folder / "c.fits")))
        careful.append(timed(lambda: copy(source, folder / "c.fits")))
        for name, operation in operations.items():
            seconds = timed(operation)
            cpu[name] = CPU_S[-1]
            if turn:  # the first turn compiles, imports, and makes WCSCORR
                times[name].append(seconds)
        if not turn:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    base = np.median(careful)
    print(f"{size:.0f} MB: copy {np.median(plain):.3f} s, with fsync and rename {base:.3f} s")
    for name, seconds in times.items():
        middle = np.median(seconds)
        print(f"{name:<9} {middle:.3f} s ({cpu[name]:.3f} of CPU), "
              f"{middle / base:.2f} x the careful copy, "
              f"{middle / np.median(plain):.2f} x the plain one")
    print(f"memory: {before / 1024:.0f} MB at most, {(after - before) / 1024:.1f} MB more later; "
          f"the largest extension has {2048 * 4096 * 4 / 1e6:.0f} MB")


def mutated(data, rng):
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        kind, at = int(rng.integers(6)), int(rng.integers(max(len(data) - 80, 1)))
        start = at // 80 * 80
        if kind == 0:
            data[at] = int(rng.integers(256))
        elif kind == 1:
            number = int(rng.integers(-(2**62), 2**62)) >> int(rng.integers(62))
            data[start + 10 : start + 30] = b"%20d" % number
        elif kind == 2:
            del data[start : start + 80 * int(rng.integers(1, 40))]
        elif kind == 3:
            data[start:start] = data[start : start + 80]
        elif kind == 4:
            other = int(rng.integers(max(len(data) // 80, 1))) * 80
            data[start : start + 80] = data[other : other + 80].ljust(80)
        else:
            text = [b"1E400", b"NaN", b"-1", b"T", b"'x'", b"0", b"99999999999"][rng.integers(7)]
            data[start + 10 : start + 30] = text.rjust(20)
    return bytes(data)


def fuzz(folder, cases, seed):
    rng = np.random.default_rng(seed)
    flc = make_flc(folder / "j95y04hpq_flc.fits")
    own = archive.create(flc)
    archive.attach(flc, moved(own, 1e-4, GSC))
    headerlet, image = own.to_bytes(), flc.read_bytes()
    path = folder / "m_flc.fits"
    counts = {"headerlets read": 0, "headerlets refused": 0, "files done": 0, "files refused": 0,
              "DEFECTS": 0}
    slowest, began = 0.0, time.perf_counter()
    operations = (
        lambda p: archive.activate(p, GSC), lambda p: archive.restore(p, "O"),
        lambda p: archive.attach(p, moved(own, 2e-4, "IDC_0461802ej-HSC30")),
        lambda p: archive.summary(p), lambda p: archive.archive(p),
        lambda p: invariants.check(p), lambda p: archive.delete(p, [GSC]),
    )
    for number in range(cases):
        start = time.process_time()  # a busy machine may keep a process waiting for minutes
        if number % 10:
            data = mutated(headerlet, rng)
            try:
                found = parse_headerlet(data)
                if not found.faults() and number % 20 == 1:
                    found.wcs(found.chips[0].target)
                counts["headerlets read"] += 1
            except CynosureError:
                counts["headerlets refused"] += 1
            except Exception:  # noqa: BLE001 - what is looked for
                counts["DEFECTS"] += 1
                traceback.print_exc(limit=-3, file=sys.stdout)
        else:
            data = mutated(image, rng)
            path.write_bytes(data)
            before = hashlib.sha256(data).digest()
            try:
                operations[number // 10 % len(operations)](path)
                counts["files done"] += 1
            except CynosureError:
                counts["files refused"] += 1
                assert hashlib.sha256(path.read_bytes()).digest() == before, number
                assert not list(folder.glob(".*tmp")), number
            except Exception:  # noqa: BLE001 - what is looked for
                counts["DEFECTS"] += 1
                traceback.print_exc(limit=-3, file=sys.stdout)
        seconds = time.process_time() - start
        slowest = max(slowest, seconds)
        if seconds > LIMIT_S:
            print(f"case {number} took {seconds:.2f} s")
    took = time.perf_counter() - began
    print(f"{cases} cases in {took:.0f} s, slowest {slowest:.2f} s of CPU; {counts}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", default="speed", choices=["speed", "fuzz"])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "speed":
            speed(Path(folder))
        else:
            with contextlib.redirect_stderr(io.StringIO()):
                fuzz(Path(folder), arguments.cases, arguments.seed)


if __name__ == "__main__":
    main()
