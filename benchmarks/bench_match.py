"""Measure how stars are recognised: hinted, against the wrong sky, and blind.

    python benchmarks/bench_match.py hinted --fields 2000
    python benchmarks/bench_match.py wrong --fields 10000
    python benchmarks/bench_match.py blind --fields 400 --tycho PATH/tycho2.parquet
    python benchmarks/bench_match.py region --fields 400

Every field is simulated here, on the sphere, with its own truth: a population of stars with
power-law magnitudes, sometimes with a cluster; an image with distortion, noise, missing and
spurious sources; a catalogue of another depth, over a cone wider than the frame. One process, one
core; the times are of a warm process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from cynosure.data.frame import Pointing
from cynosure.geometry.match.blind import build_index, open_index, solve_blind
from cynosure.geometry.match.pointing import match_pointing
from cynosure.ground.errors import CynosureError
from cynosure.ground.sky import deproject, project, separation_deg


@dataclass
class Field:
    """A simulated image, its catalogue, and the truth."""

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    star: np.ndarray  # row of the catalogue, -1 for none
    ra: np.ndarray
    dec: np.ndarray
    mag: np.ndarray
    pointing: Pointing
    shape: tuple[int, int]
    truth: object  # (ra, dec) -> (x, y)
    facts: dict


@dataclass
class Camera:
    """A TAN camera with radial distortion and decentring; u = offset / half the diagonal."""

    ra: float
    dec: float
    scale: float
    rotation: float
    parity: int
    shape: tuple[int, int]
    radial: float
    tangential: complex

    @property
    def norm(self):
        return np.hypot(*self.shape) / 2

    def pixels(self, ra, dec):
        xi, eta = project(ra, dec, self.ra, self.dec)
        w = (-xi + 1j * eta) * 3600 / self.scale * np.exp(-1j * np.radians(self.rotation))
        target = w / self.norm
        target = np.where(np.abs(target) < 3, target, 3)  # far outside of the frame
        u = target.copy()
        for _ in range(30):
            d = self.radial * u * np.abs(u) ** 2 + self.tangential * np.abs(u) ** 2
            u = target - d - np.conj(self.tangential) * u**2
        z = u * self.norm
        if self.parity < 0:
            z = -z.conj()
        ny, nx = self.shape
        return z.real + (nx - 1) / 2, z.imag + (ny - 1) / 2


def magnitudes(rng, n, slope):
    return np.log10(rng.uniform(1e-9, 1, n)) / slope


def simulate(
    rng,
    *,
    n_sources,
    spurious=0.3,
    missing=0.3,
    radius=0.5,
    scale_error=0.1,
    depth=1.0,
    distortion=0.01,
    cluster=0.0,
    noise=0.25,
    scatter=0.3,
    scale=None,
    shape=None,
    wrong_sky=False,
    structure="",
    max_reference=150_000,
):
    """Make a field of about `n_sources`; `depth`: stars of the catalogue a star of the image."""
    shape_given = shape
    if shape is None:
        side = rng.choice([512, 1024, 2048, 4096, 6000])
        shape = (int(side * rng.choice([0.67, 1.0, 1.5])), int(side))
    ny, nx = shape
    n_real = n_sources * (1 - spurious) / (1 - missing)  # stars above the limit, in the frame
    for _ in range(200):
        s = scale or 10 ** rng.uniform(-0.5, 1.3)
        half = np.hypot(nx, ny) / 2 * s / 3600
        cone = radius + 1.15 * half
        total = n_real * np.pi * cone**2 / (nx * ny * (s / 3600) ** 2)
        crowded = n_sources * (1 + cluster) * 64 > nx * ny  # a star every 8 px
        if crowded and shape_given is None:
            side *= 2
            shape = ny, nx = 2 * ny, 2 * nx
            continue
        if total * max(depth, 1) * (1 + cluster) < max_reference and half < 15:
            break
    else:
        depth = 1.0
    camera = Camera(
        rng.uniform(0, 360),
        np.degrees(np.arcsin(rng.uniform(-1, 1))),
        s,
        rng.uniform(0, 360),
        int(rng.choice([-1, 1])),
        shape,
        rng.uniform(-1, 1) * distortion * 0.85,
        distortion * 0.15 * rng.uniform() * np.exp(2j * np.pi * rng.uniform()),
    )
    where, r = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.uniform())
    ra0, dec0 = (
        float(v) for v in deproject(r * np.cos(where), r * np.sin(where), camera.ra, camera.dec)
    )

    def population(count):
        n = rng.poisson(count)
        a, d = rng.uniform(0, 2 * np.pi, n), cone * np.sqrt(rng.uniform(size=n))
        xi, eta = d * np.cos(a), d * np.sin(a)
        if cluster:
            # a clump somewhere in the frame, of `cluster` times the field stars of the frame
            m = rng.poisson(cluster * count * nx * ny * (s / 3600) ** 2 / (np.pi * cone**2))
            cx, cy = project(camera.ra, camera.dec, ra0, dec0)
            at = rng.normal(0, 0.08 * half, (2, m)) + rng.uniform(-0.3, 0.3, (2, 1)) * half
            xi, eta = np.concatenate([xi, at[0] + cx]), np.concatenate([eta, at[1] + cy])
        return deproject(xi, eta, ra0, dec0)

    slope = rng.uniform(0.2, 0.4)
    ra, dec = population(total * max(depth, 1))
    mag = magnitudes(rng, len(ra), slope)
    x, y = camera.pixels(ra, dec)
    framed = (x > 0) & (x < nx - 1) & (y > 0) & (y < ny - 1)
    limit = np.log10(1 / max(depth, 1)) / slope  # of the image
    seen = framed & (mag < limit) & (rng.uniform(size=len(x)) > missing)
    seen = np.flatnonzero(seen)
    deepest = np.log10(min(depth, 1)) / slope  # of the catalogue
    kept = np.flatnonzero(mag < deepest)
    number = np.full(len(ra), -1)
    number[kept] = np.arange(len(kept))
    n_false = round(len(seen) * spurious / (1 - spurious))
    fx, fy = false_sources(rng, n_false, shape, structure)
    flux = 10 ** (-0.4 * (mag[seen] + rng.normal(0, scatter, len(seen))))
    fflux = (
        rng.choice(flux, len(fx)) * 10 ** rng.normal(0, 0.1, len(fx))
        if len(flux)
        else np.ones(len(fx))
    )
    faint = np.clip(10 ** (0.2 * (mag[seen] - limit)), 0.1, 1)
    x = np.concatenate([x[seen] + rng.normal(0, 1, len(seen)) * noise * faint, fx])
    y = np.concatenate([y[seen] + rng.normal(0, 1, len(seen)) * noise * faint, fy])
    star = np.concatenate([number[seen], np.full(len(fx), -1)])
    if structure == "double":
        again = rng.integers(0, len(x), len(x) // 3)
        x = np.concatenate([x, x[again] + rng.normal(0, 1.5, len(again))])
        y = np.concatenate([y, y[again] + rng.normal(0, 1.5, len(again))])
        star, flux = np.concatenate([star, star[again]]), np.concatenate([flux, fflux])
        flux, fflux = np.concatenate([flux, flux[again]]), np.zeros(0)
    flux = np.concatenate([flux, fflux])
    order = rng.permutation(len(x))
    x, y, flux, star = x[order], y[order], flux[order], star[order]
    ra, dec, mag = ra[kept], dec[kept], mag[kept]
    if wrong_sky:
        ra, dec = population(total * depth)
        mag, star = magnitudes(rng, len(ra), slope), np.full(len(x), -1)
    pointing = Pointing(ra0, dec0, radius, s * (1 + rng.uniform(-1, 1) * scale_error), scale_error)
    facts = dict(
        n=len(x),
        true=int((star >= 0).sum()),
        reference=len(ra),
        scale=s,
        shape=shape,
        depth=depth,
        cluster=cluster,
        radial=camera.radial,
    )
    return Field(x, y, flux, star, ra, dec, mag, pointing, shape, camera, facts)


def false_sources(rng, n, shape, structure):
    ny, nx = shape
    if structure == "trail":
        t = np.sort(rng.uniform(0, 1, 3 * n + 30))
        x0, x1, y0, y1 = (
            rng.uniform(0, nx),
            rng.uniform(0, nx),
            rng.uniform(0, ny),
            rng.uniform(0, ny),
        )
        return x0 + t * (x1 - x0) + rng.normal(0, 1, t.size), y0 + t * (y1 - y0) + rng.normal(
            0, 1, t.size
        )
    if structure == "column":
        t = rng.uniform(0, ny, 3 * n + 30)
        return np.round(rng.uniform(0, nx, 1)) + rng.normal(0, 0.5, t.size), t
    if structure == "clump":
        c = rng.uniform(0.2, 0.8, 2)
        m = 2 * n + 20
        return c[0] * nx + rng.normal(0, 0.03 * nx, m), c[1] * ny + rng.normal(0, 0.03 * ny, m)
    if structure == "grid":
        m = max(int(np.sqrt(2 * n + 16)), 4)
        gx, gy = np.meshgrid(np.linspace(0.05, 0.95, m) * nx, np.linspace(0.05, 0.95, m) * ny)
        return gx.ravel() + rng.normal(0, 0.3, m * m), gy.ravel() + rng.normal(0, 0.3, m * m)
    return rng.uniform(0, nx, n), rng.uniform(0, ny, n)


def errors_px(field, match):
    """How far the model is from the truth at the catalogue's stars in the frame, px."""
    if match is None:
        return np.full(1, np.inf)
    x, y = field.truth.pixels(field.ra, field.dec)
    ny, nx = field.shape
    inside = (x > 0) & (x < nx - 1) & (y > 0) & (y < ny - 1)
    x, y = x[inside][:2000], y[inside][:2000]
    tx, ty = field.truth.pixels(*match.model.pixel_to_sky(x, y))
    return np.hypot(tx - x, ty - y)


def is_right(field, match):
    """Whether the model is right over the frame, at stars seen or not, and so most pairs."""
    e = errors_px(field, match)
    return bool(np.median(e) < 1.5 and np.quantile(e, 0.9) < 4.0 and purity(field, match) > 0.6)


def purity(field, match):
    return np.mean(field.star[match.source_index] == match.reference_index)


def attempt(field, solver=match_pointing):
    start = time.process_time()
    try:
        match = solver(
            field.x,
            field.y,
            field.flux,
            field.ra,
            field.dec,
            field.mag,
            field.pointing,
            field.shape,
        )
        why = ""
    except CynosureError as error:
        match, why = None, error
    return match, why, time.process_time() - start


def random_hinted(rng, **changes):
    """Return a field of any kind that shows at least eight stars of the catalogue."""
    while True:
        field = any_field(rng, **changes)
        if changes.get("wrong_sky") or field.facts["true"] >= 8:
            return field


def any_field(rng, **changes):
    n = int(10 ** rng.uniform(np.log10(20), np.log10(20000)))
    depth = 10 ** rng.uniform(np.log10(0.1), np.log10(30))
    depth = max(depth, min(1.0, 14 / (0.7 * n)))
    kind = dict(
        n_sources=n,
        depth=depth,
        distortion=rng.choice([0.0, 0.002, 0.005, 0.01]),
        cluster=float(rng.choice([0, 0, 0, 0.3, 1.0, 3.0])),
        noise=rng.uniform(0.1, 0.5),
        scatter=rng.uniform(0.1, 0.5),
    )
    return simulate(rng, **{**kind, **changes})


def table(rows):
    print(
        f"{'sources':>14} {'fields':>7} {'right':>8} {'none':>6} {'wrong':>6} {'CPU s':>9} "
        f"{'99 %':>8} {'err px':>7} {'pairs true':>10}"
    )
    for label, seconds, right, none, wrong, err, pure in rows:
        n = len(seconds)
        print(
            f"{label:>14} {n:7d} {100 * right / n:7.2f}% {none:6d} {wrong:6d} "
            f"{np.median(seconds):9.4f} {np.quantile(seconds, 0.99):8.3f} "
            f"{np.median(err):7.3f} {100 * np.mean(pure):9.2f}%"
        )


def hinted(fields, seed, verbose, make=random_hinted):
    edges = [0, 30, 100, 1000, 5000, 1 << 30]
    bins = [[[], 0, 0, 0, [], []] for _ in edges]
    for k in range(fields):
        rng = np.random.default_rng([seed, k])
        field = make(rng)
        match, why, seconds = attempt(field)
        right = match is not None and is_right(field, match)
        for b in (np.searchsorted(edges, field.facts["n"], side="right") - 1, len(edges) - 1):
            bins[b][0].append(seconds)
            bins[b][1] += right
            bins[b][2] += match is None
            bins[b][3] += match is not None and not right
            if right:
                bins[b][4].append(np.median(errors_px(field, match)))
                bins[b][5].append(purity(field, match))
        if verbose and not right:
            e = errors_px(field, match)
            print(
                k,
                field.facts,
                "->",
                f"{seconds:.2f} s",
                why and why.facts.get("tried", why),
                match and (match.log_odds, match.evidence, np.quantile(e, [0.5, 0.9])),
                flush=True,
            )
        if verbose and (k + 1) % 500 == 0:
            print(k + 1, "fields", flush=True)
    labels = [f"{a}-{b}" for a, b in pairwise(edges)][:-1] + ["5000+", "all"]
    table([(label, *b) for label, b in zip(labels, bins) if b[0]])


def wrong(fields, seed, verbose):
    kinds = ["", "", "trail", "column", "clump", "double", "grid"]
    accepted, seconds, best = 0, [], []
    for k in range(fields):
        rng = np.random.default_rng([seed, 7, k])
        n = int(10 ** rng.uniform(np.log10(20), np.log10(3000)))
        field = random_hinted(
            rng,
            n_sources=n,
            wrong_sky=True,
            structure=kinds[k % len(kinds)],
            cluster=float(rng.choice([0, 0.3])),
            max_reference=50_000,
        )
        match, why, dt = attempt(field)
        seconds.append(dt)
        best.append(match.log_odds if match else why.facts.get("best_log_odds", np.nan))
        if match is not None:
            accepted += 1
            print("WRONG", k, field.facts, match.log_odds, match.evidence, flush=True)
        if verbose and (k + 1) % 500 == 0:
            print(
                k + 1,
                "fields",
                f"median {np.median(seconds):.3f} s, best log-odds {np.nanmax(best):.1f}",
                flush=True,
            )
    best = np.array(best)
    print(
        f"wrong sky: {fields} fields, {accepted} accepted, median {np.median(seconds):.3f} s, "
        f"highest log-odds {np.nanmax(best):.1f}, 99.9 % {np.nanquantile(best, 0.999):.1f}"
    )


def read_tycho(path):
    """Read ra, dec and magnitude of Tycho-2; its magnitudes may be of the other byte order."""
    import pyarrow.parquet as pq

    t = pq.read_table(path)
    ra, dec, mag = (t[c].to_numpy() for c in ("ra", "dec", "vt_mag"))
    if not 5 < np.median(mag) < 15:
        mag = mag.byteswap()
    return ra, dec, mag.astype(float)


def blind_field(
    rng,
    ra,
    dec,
    mag,
    width,
    center=None,
    *,
    missing=0.3,
    spurious=0.3,
    scatter=0.4,
    distortion=0.006,
    invented=False,
    structure="",
):
    """Make an image of a part of a catalogue; None where it shows fewer than 14 of its stars."""
    ny, nx = (int(v) for v in rng.choice([[1024, 1024], [768, 1024], [2048, 2048], [2700, 4000]]))
    scale = width * 3600 / np.sqrt(nx * ny)
    ra0, dec0 = center or (rng.uniform(0, 360), np.degrees(np.arcsin(rng.uniform(-1, 1))))
    camera = Camera(
        ra0,
        dec0,
        scale,
        rng.uniform(0, 360),
        int(rng.choice([-1, 1])),
        (ny, nx),
        rng.uniform(-1, 1) * distortion,
        0.1 * distortion * np.exp(2j * np.pi * rng.uniform()),
    )
    reach = 0.8 * width * 1.1
    low, high = np.searchsorted(dec, [dec0 - reach, dec0 + reach])  # the catalogue is by dec
    near = low + np.flatnonzero(separation_deg(ra[low:high], dec[low:high], ra0, dec0) < reach)
    x, y = camera.pixels(ra[near], dec[near])
    inside = (x > 0) & (x < nx) & (y > 0) & (y < ny)
    near, x, y = near[inside], x[inside], y[inside]
    n = int(10 ** rng.uniform(np.log10(30), np.log10(500)))
    order = np.argsort(mag[near])[:n]
    order = order[rng.uniform(size=len(order)) > missing]
    if len(order) < 14:
        return None
    star, x, y = near[order], x[order], y[order]
    if invented:  # the same, but of no sky
        x, y = rng.uniform(0, nx, len(x)), rng.uniform(0, ny, len(y))
    flux = 10 ** (-0.4 * (mag[star] + rng.normal(0, rng.uniform(0.05, scatter), len(star))))
    fx, fy = false_sources(rng, int(len(star) * spurious / (1 - spurious)), (ny, nx), structure)
    sd = rng.uniform(0.05, 0.3)
    x = np.concatenate([x + rng.normal(0, sd, len(x)), fx])
    y = np.concatenate([y + rng.normal(0, sd, len(y)), fy])
    return x, y, np.concatenate([flux, rng.choice(flux, len(fx))]), camera


def blind(fields, seed, verbose, index, catalogue, widths, centers=None, invented=False):
    kinds = ["", "", "trail", "column", "clump", "grid"]
    rows, accepted, k = [], 0, 0
    while len(rows) < fields:
        rng = np.random.default_rng([seed, 11, k])
        k += 1
        width = 10 ** rng.uniform(*np.log10(widths))
        made = blind_field(
            rng,
            *catalogue,
            width,
            centers and centers(rng),
            invented=invented,
            structure=kinds[k % len(kinds)] if invented else "",
        )
        if made is None:
            continue
        x, y, flux, camera = made
        start, cpu = time.perf_counter(), time.process_time()
        try:
            match, tried = solve_blind(x, y, flux, index, camera.shape), None
        except CynosureError as error:
            match, tried = None, error.facts
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        right = False
        if match is not None:
            ny, nx = camera.shape
            gx, gy = (v.ravel() for v in np.meshgrid(np.linspace(0, nx, 9), np.linspace(0, ny, 9)))
            e = np.hypot(*(np.array(camera.pixels(*match.model.pixel_to_sky(gx, gy))) - [gx, gy]))
            right = np.median(e) < 2 and match.parity == camera.parity
        accepted += match is not None
        rows.append(
            (
                width,
                right,
                match is not None and not right,
                seconds,
                cpu,
                tried["best_log_odds"] if tried else match.log_odds,
            )
        )
        if (verbose and right == invented) or (match is not None and not right):
            print(
                k - 1,
                f"width {width:.2f}",
                len(x),
                f"dec {camera.dec:.0f}",
                f"{cpu:.3f} s",
                tried,
                match and (match.log_odds, match.evidence),
                flush=True,
            )
    r = np.array(rows, dtype=float)
    if invented:
        print(
            f"blind, no sky: {len(r)} lists, {accepted} accepted, "
            f"highest log-odds {r[:, 5].max():.1f}, median {np.median(r[:, 4]):.4f} CPU s"
        )
        return
    print(
        f"{'width deg':>12} {'lists':>6} {'solved':>8} {'wrong':>6} {'median s':>9} "
        f"{'median CPU s':>12} {'99 % CPU s':>10}"
    )
    for low, high in [*zip([1, 2, 5, 10], [2, 5, 10, 20.01]), (0, 100)]:
        b = r[(r[:, 0] >= low) & (r[:, 0] < high)]
        if len(b):
            print(
                f"{low:5g}-{high:<6.3g} {len(b):6d} {100 * b[:, 1].mean():7.2f}% "
                f"{int(b[:, 2].sum()):6d} {np.median(b[:, 3]):9.4f} {np.median(b[:, 4]):12.4f} "
                f"{np.quantile(b[:, 4], 0.99):10.3f}"
            )


def region_catalogue():
    """100,000 stars of one region, 20 by 20 degrees, power-law magnitudes."""
    rng = np.random.default_rng(77)
    xi, eta = np.degrees(np.tan(np.radians(rng.uniform(-10, 10, (2, 100_000)))))
    ra, dec = deproject(xi, eta, 83.0, 35.0)
    return ra, dec, 18 + magnitudes(rng, 100_000, 0.35)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", default="hinted", choices=["hinted", "wrong", "blind", "region", "nosky"]
    )
    parser.add_argument("--fields", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("--tycho", help="Parquet of Tycho-2: ra, dec, vt_mag")
    parser.add_argument("--index", default=str(Path(tempfile.gettempdir()) / "cynosure-bench"))
    a = parser.parse_args()
    if a.what in ("blind", "region", "nosky"):
        region = a.what == "region"
        catalogue = region_catalogue() if region else read_tycho(a.tycho)
        by_dec = np.argsort(catalogue[1], kind="stable")
        catalogue = tuple(column[by_dec] for column in catalogue)
        path = Path(a.index + ("-region" if region else "-tycho"))
        widths = (1.9, 2.1) if region else (1.0, 20.0)
        if not path.exists():
            start = time.perf_counter()
            index = build_index(
                *catalogue,
                path,
                min_width_deg=2.0 if region else 1.0,
                max_width_deg=2.0 if region else 20.0,
            )
            print(f"built in {time.perf_counter() - start:.1f} s: {index!r}")
        start = time.perf_counter()
        index = open_index(path)
        print(f"opened in {1e3 * (time.perf_counter() - start):.1f} ms: {index!r}")
        centers = (
            (lambda rng: (83 + rng.uniform(-8, 8), 35 + rng.uniform(-8, 8))) if region else None
        )
        for n in (3, a.fields):  # the first few compile and load
            blind(
                n,
                a.seed,
                a.verbose and n == a.fields,
                index,
                catalogue,
                widths,
                centers,
                a.what == "nosky",
            )
        return
    attempt(simulate(np.random.default_rng(0), n_sources=300))
    if a.what == "hinted":
        hinted(a.fields, a.seed, a.verbose)
    else:
        wrong(a.fields, a.seed, a.verbose)


if __name__ == "__main__":
    main()
