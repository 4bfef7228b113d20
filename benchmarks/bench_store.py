"""The store at scale: bulk ingest, best of an exposure, cone search, listing.

    python benchmarks/bench_store.py [--solutions 100000] [--store URL]
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "solutions"))

from headerlets import make_headerlet, variants

from cynosure.solutions.store.intake import read_headerlet
from cynosure.solutions.store.query import Query
from cynosure.solutions.store.store import Store

NAMES = (
    "OPUS", "IDC_0461802ej", "IDC_0461802ej-GSC240", "IDC_0461802ej-HSC30",
    "IDC_0461802ej-FIT_REL_GAIADR2",
)
PIECE = 2000  # headerlets at a time
FIELDS = 400  # places on the sky, each with many exposures


def made(n_solutions):
    """Give headerlets of exposures all over the sky, five solutions each."""
    rng = np.random.default_rng(1)
    each = max(1, n_solutions // (FIELDS * len(NAMES)))
    for k in range(FIELDS):
        ra, dec = float(rng.uniform(0, 360)), float(np.degrees(np.arcsin(rng.uniform(-0.99, 0.99))))
        for wcsname in NAMES:
            data = make_headerlet("j00000000", wcsname, ra, dec, chips=1, tables=False)
            yield from variants(data, (f"j{k * each + i:08d}" for i in range(each)))


def clock(action, repeat):
    """Return what an action takes, in ms: of the wall clock, and of one core."""
    times, cpu = [], time.process_time()
    for k in range(repeat):
        start = time.perf_counter()
        action(k)
        times.append((time.perf_counter() - start) * 1000.0)
    cpu = (time.process_time() - cpu) * 1000.0 / repeat
    return (f"median {np.median(times):7.2f} ms   95 % {np.percentile(times, 95):7.2f} ms   "
            f"cpu {cpu:7.2f} ms")


def ingest(store, label, files):
    """Time the way from bytes to rows, by pieces: on a busy machine the best tells of the code."""
    walls, cpus = [], []
    for start in range(0, len(files), PIECE):
        piece = files[start : start + PIECE]
        wall, cpu = time.perf_counter(), time.process_time()
        new = store.add(read_headerlet(data) for data in piece).new
        walls.append(new / (time.perf_counter() - wall))
        cpus.append(new / (time.process_time() - cpu))
    print(f"ingest, {label:<20} {np.median(walls):6.0f} /s wall   {np.median(cpus):6.0f} /s cpu   "
          f"best {max(walls):6.0f} /s wall   {max(cpus):6.0f} /s cpu")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--solutions", type=int, default=100_000)
    parser.add_argument("--store", help="an empty database; a SQLite file in a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = given.store or f"{folder}/store.db"
        with Store(url, create=True) as store:
            large = make_headerlet("k00000000")
            ingest(store, f"8000 of {len(large) // 1000} kB", list(
                variants(large, (f"k{i:08d}" for i in range(8000)))))
            files = list(made(given.solutions))
            ingest(store, f"{len(files)} of {len(files[0]) // 1000} kB", files)
            if store.database.path is not None:
                size = store.database.path.stat().st_size
                print(f"size on disk {size / 1e6:.0f} MB for {store.count()} solutions")
            rng = np.random.default_rng(2)
            names = rng.choice([e.rootname for e in store.exposures()], 300).tolist()
            print(f"best of an exposure   {clock(lambda k: store.best(names[k]), 300)}")
            places = [(s.ra_deg, s.dec_deg) for s in store.find(limit=2000)[::7]]
            for radius in (0.01, 0.1, 1.0, 10.0):
                asked = [Query(cone=(ra, dec, radius)) for ra, dec in places]
                text = clock(lambda k, asked=asked: store.find(asked[k]), 30)
                n = len(store.find(asked[0]))
                print(f"cone of {radius:5.2f} deg      {text}   about {n} found")
            empty = Query(cone=(1.0, 89.9, 0.1))
            print(f"cone of empty sky     {clock(lambda k: store.find(empty), 30)}")
            print(f"all exposures         {clock(lambda k: store.exposures(), 3)}")


if __name__ == "__main__":
    main()
