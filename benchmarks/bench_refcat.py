"""Measure reference catalogues: building, opening, cones, epoch, verifying.

    python benchmarks/bench_refcat.py [TABLE] [--stars N]

A dense field of Gaia's columns is drawn (40,000 stars a square degree, as at a galactic latitude of
20 degrees), or TABLE is used. One process; the page cache is warm; the best of five is given. The
cold figures are of new processes, with NumPy imported before the clock starts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cynosure.data.catalogs.build import build_refcat
from cynosure.data.catalogs.verify import verify_refcat
from cynosure.ground import sky

DENSITY = 40_000  # stars a square degree
COLD = """
import sys, time, numpy
cpu, wall = time.process_time(), time.perf_counter()
from cynosure.data.catalogs.refcat import open_refcat
catalog = open_refcat(sys.argv[1])
stars = catalog.cone(*map(float, sys.argv[2:5]), max_mag=float(sys.argv[5]))
print(1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu), len(stars))
"""


def best(action: Callable[[], Any], rounds: int = 5) -> tuple[float, float, Any]:
    """Return the least wall and CPU milliseconds of an action, and what it gave."""
    times, result = [], None
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        result = action()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return 1e3 * min(t[0] for t in times), 1e3 * min(t[1] for t in times), result


def draw(path: Path, n: int) -> None:
    """Write a table of stars with the forty columns of Gaia that matter."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(1)
    half = 0.5 * np.sqrt(n / DENSITY)
    ra, dec = sky.deproject(*rng.uniform(-half, half, (2, n)), 280.0, 35.0)
    columns: dict[str, Any] = {
        "source_id": (sky.healpix_cell(ra, dec, 12) << 35) + np.arange(n), "ra": ra, "dec": dec,
        "ref_epoch": np.full(n, 2016.0),
        # Star counts grow by a factor of two and a half a magnitude.
        "phot_g_mean_mag": (20.7 + np.log(rng.uniform(1e-6, 1, n)) / np.log(2.5)).astype("f4"),
        "astrometric_params_solved": np.full(n, 31, np.int8),
        "duplicated_source": np.zeros(n, bool), "ipd_frac_multi_peak": np.zeros(n, np.int8),
    }
    for name in ("parallax", "pmra", "pmdec", "radial_velocity"):
        columns[name] = rng.normal(0, 5, n)
    five = ("ra", "dec", "parallax", "pmra", "pmdec")
    for k, name in enumerate(five):
        columns[f"{name}_error"] = rng.uniform(0.02, 1, n).astype("f4")
        for other in five[k + 1 :]:
            columns[f"{name}_{other}_corr"] = rng.uniform(-0.5, 0.5, n).astype("f4")
    for name in ("bp_rp", "ruwe", "phot_bp_mean_mag", "phot_rp_mean_mag", "pseudocolour",
                 "phot_bp_rp_excess_factor", "astrometric_excess_noise", "classprob_star",
                 "astrometric_excess_noise_sig", "astrometric_sigma5d_max"):
        columns[name] = rng.uniform(0.8, 1.3, n).astype("f4")
    pq.write_table(pa.table(columns), path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", nargs="?", type=Path)
    parser.add_argument("--stars", type=int, default=1_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = given.table or Path(folder) / "gaia_dr3.parquet"
        if given.table is None:
            draw(table, given.stars)
        out = Path(folder) / "cat"
        wall, cpu, catalog = best(lambda: build_refcat([table], out, overwrite=True), 1)
        info = catalog.info()
        size = sum(p.stat().st_size for p in out.rglob("*.parquet"))
        n = info["rows"]
        print(f"build        {n} rows, {info['partitions']} partitions, {size / n:.0f} B a row: "
              f"{wall / 1e3:.2f} s, {n / wall * 1e3:.3g} rows/s")
        wall, cpu, problems = best(lambda: verify_refcat(out), 1)
        print(f"verify       {wall / 1e3:.2f} s, {len(problems)} problems")
        stars = catalog.all()
        vectors = sky.unit_vectors(stars["ra_deg"], stars["dec_deg"]).mean(axis=0)
        ra, dec = (float(v) for v in sky.radec(vectors))
        for radius, faint in ((1.6, 17.0), (0.5642, 99.0)):
            arguments = [sys.executable, "-c", COLD, str(out), *map(str, (ra, dec, radius, faint))]
            runs = []
            for _ in range(5):
                run = subprocess.run(arguments, capture_output=True, text=True, check=True)
                runs.append([float(x) for x in run.stdout.split()])
            wall, cpu, found = min(runs)
            limit = faint if faint < 90 else None
            warm = best(lambda r=radius, m=limit: catalog.cone(ra, dec, r, max_mag=m))
            print(f"cone         radius {radius} deg, to magnitude {faint}: {int(found)} stars, "
                  f"cold {wall:.0f} ms ({cpu:.0f} ms CPU), warm {warm[0]:.1f} ms")
        some = stars[:100_000]
        wall, cpu, _ = best(lambda: sky.at_epoch(some, 2026.5))
        print(f"at_epoch     {len(some)} stars with covariance: {wall:.1f} ms")
        wall, cpu, _ = best(lambda: sky.healpix_cell(some["ra_deg"], some["dec_deg"]))
        print(f"healpix_cell {len(some)} stars: {wall:.1f} ms")


if __name__ == "__main__":
    main()
