"""The compiled loops that fit the PSF to the stars of a tile, blends jointly.

See :mod:`cynosure.pixels.psfkernels` for the PSF, :mod:`cynosure.pixels.measure` for the method.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cynosure.ground.cache import compiled
from cynosure.pixels.kernels import F32, F64, FAST, I64
from cynosure.pixels.psfkernels import mix, solve_positive, stamp

__all__ = ["draw_stars", "fit_groups", "mix_all"]

I32 = NDArray[np.int32]

# Of stars fitted jointly the one whose flux is below this many of its errors is given up, one in a
# sweep, once the first sweeps have brought the others near their places: what was taken for three
# stars may be two.
LEAST_SNR = 2.0
SETTLING = 2


@compiled
def mix_all(coefficients: F64, terms: F64, nodes: F64) -> None:
    """Fill nodes[n] with the PSF's nodes at the place of star n."""
    for n in range(terms.shape[0]):
        mix(coefficients, terms[n], nodes[n])


@compiled
def fit_groups(
    image: F32, residual: F32, variance: F32, gain: float, nodes: F64, spacing: float,
    groups: I64, x: F64, y: F64, flux: F64, fit_radius: I64, draw_radius: I64, sweeps: int,
    tolerance: F64, covariance: F64, chi2: F64, status: I32,
) -> None:
    """Fit flux and position of the stars of a tile, in place.

    `nodes` is the PSF of each star, or one for all. `residual` is the image less all the stars'
    models and is kept so. Stars of one group (rows groups[g] … groups[g + 1]) are solved jointly
    by Gauss-Newton steps with weights from the model; groups see each other through the residual
    (Gauss-Seidel). A group is done when a step of its stars is below their `tolerance`, in
    standard errors. A pixel of `variance` 0 is not used. `status` is 1 for a star that came
    within 20 tolerances of rest, and -1 for one of a group that was given up: its flux is 0.
    """
    biggest = 1
    for g in range(groups.size - 1):
        biggest = max(biggest, groups[g + 1] - groups[g])
    side = 1
    for k in range(x.size):
        side = max(side, 2 * fit_radius[k] + 1, 2 * draw_radius[k] + 1)
    p = np.empty((biggest, side * side))
    px, py = np.empty((biggest, side * side)), np.empty((biggest, side * side))
    new = np.empty(side * side)
    a, b = np.empty((3 * biggest, 3 * biggest)), np.empty(3 * biggest)
    block = np.empty((3, 3))
    settled = np.zeros(groups.size - 1, dtype=np.bool_)
    member = np.empty(biggest, dtype=np.int64)
    for sweep in range(sweeps):
        limit = 0.5 if sweep < 2 else 0.25
        for g in range(groups.size - 1):
            if settled[g]:
                continue
            n = 0
            for k in range(groups[g], groups[g + 1]):
                if status[k] >= 0:
                    member[n] = k
                    n += 1
            for s in range(3 * n):
                for t in range(3 * n):
                    a[s, t] = 0.0
            for s in range(n):
                k = member[s]
                _accumulate(
                    image, residual, variance, gain, nodes[k % nodes.shape[0]], spacing, x[k],
                    y[k], flux[k], fit_radius[k], p[s], px[s], py[s], a, b, 3 * s, chi2, k,
                )
            for s in range(n):
                for t in range(s + 1, n):
                    _couple(
                        image, residual, variance, gain, x, y, flux, fit_radius, member[s],
                        member[t], p[s], px[s], py[s], p[t], px[t], py[t], a, 3 * s, 3 * t,
                    )
            if not solve_positive(a, b, 3 * n):
                for s in range(n):
                    status[member[s]] = 0
                continue
            still, faintest, weakest = True, LEAST_SNR, -1
            for s in range(n):
                k = member[s]
                _inverse_block(a, 3 * n, 3 * s, block)
                for c in range(3):
                    for d in range(3):
                        covariance[k, c, d] = block[c, d]
                df, dx, dy = b[3 * s], b[3 * s + 1], b[3 * s + 2]
                moved = max(
                    abs(df) / math.sqrt(block[0, 0]), abs(dx) / math.sqrt(block[1, 1]),
                    abs(dy) / math.sqrt(block[2, 2]),
                )
                status[k] = 1 if moved < 20.0 * tolerance[k] else 0
                still = still and moved <= tolerance[k]
                new_x = x[k] + min(max(dx, -limit), limit)
                new_y = y[k] + min(max(dy, -limit), limit)
                new_flux = min(max(flux[k] + df, 0.1 * flux[k]), 10.0 * flux[k])
                psf = nodes[k % nodes.shape[0]]
                _draw(residual, psf, spacing, draw_radius[k], x[k], y[k], flux[k], new)
                _draw(residual, psf, spacing, draw_radius[k], new_x, new_y, -new_flux, new)
                x[k], y[k], flux[k] = new_x, new_y, new_flux
                if new_flux < faintest * math.sqrt(block[0, 0]):
                    faintest, weakest = new_flux / math.sqrt(block[0, 0]), k
            if n > 1 and sweep >= SETTLING and weakest >= 0:
                k, still = weakest, False
                psf = nodes[k % nodes.shape[0]]
                _draw(residual, psf, spacing, draw_radius[k], x[k], y[k], flux[k], new)
                flux[k], status[k] = 0.0, -1
            settled[g] = still


@compiled
def _half_width(radius: int, dy: int) -> int:
    """How far a row of a disk reaches to each side; -1 where the row is outside."""
    room = (radius + 0.5) ** 2 - dy * dy
    return int(math.sqrt(room)) if room >= 0.0 else -1


@compiled(fastmath=FAST)
def _accumulate(
    image: F32, residual: F32, variance: F32, gain: float, nodes: F64, spacing: float, x: float,
    y: float, flux: float, radius: int, p: F64, px: F64, py: F64, a: F64, b: F64, at: int,
    chi2: F64, k: int,
) -> None:
    """Add a star's own block to the normal equations and note its chi^2."""
    ny, nx = image.shape
    side = 2 * radius + 1
    x0, y0 = round(x) - radius, round(y) - radius
    shape = (side, side)
    p2 = p[: side * side].reshape(shape)
    px2, py2 = px[: side * side].reshape(shape), py[: side * side].reshape(shape)
    stamp(nodes, spacing, x, y, x0, y0, p2, px2, py2, True)
    a00 = a01 = a02 = a11 = a12 = a22 = 0.0
    g0 = g1 = g2 = q = 0.0
    count = 0
    for j in range(max(0, -y0), min(side, ny - y0)):
        half = _half_width(radius, j - radius)
        i0, i1 = max(0, -x0, radius - half), min(side, nx - x0, radius + half + 1)
        if i1 <= i0:
            continue
        data, rest = image[y0 + j, x0 + i0 : x0 + i1], residual[y0 + j, x0 + i0 : x0 + i1]
        sky = variance[y0 + j, x0 + i0 : x0 + i1]
        c0, cx, cy = p2[j, i0:i1], px2[j, i0:i1], py2[j, i0:i1]
        for i in range(i1 - i0):
            r, v = np.float64(rest[i]), np.float64(sky[i])
            noise = v + max(data[i] - r, 0.0) / gain
            w = 1.0 / noise if v > 0.0 else 0.0
            d0, d1, d2 = c0[i], flux * cx[i], flux * cy[i]
            w0, w1, w2, wr = w * d0, w * d1, w * d2, w * r
            a00 += w0 * d0
            a01 += w0 * d1
            a02 += w0 * d2
            a11 += w1 * d1
            a12 += w1 * d2
            a22 += w2 * d2
            g0 += wr * d0
            g1 += wr * d1
            g2 += wr * d2
            q += wr * r
            count += int(v > 0.0)
    a[at, at], a[at, at + 1], a[at, at + 2] = a00, a01, a02
    a[at + 1, at + 1], a[at + 1, at + 2], a[at + 2, at + 2] = a11, a12, a22
    b[at], b[at + 1], b[at + 2] = g0, g1, g2
    chi2[k] = q / max(count - 3, 1)


@compiled(fastmath=FAST)
def _couple(
    image: F32, residual: F32, variance: F32, gain: float, x: F64, y: F64, flux: F64,
    fit_radius: I64, m: int, n: int, p1: F64, px1: F64, py1: F64, p2: F64, px2: F64, py2: F64,
    a: F64, at1: int, at2: int,
) -> None:
    """Add the coupling of two stars that share pixels to the normal equations."""
    ny, nx = image.shape
    r1, r2 = fit_radius[m], fit_radius[n]
    side1, side2 = 2 * r1 + 1, 2 * r2 + 1
    xa, ya = round(x[m]) - r1, round(y[m]) - r1
    xb, yb = round(x[n]) - r2, round(y[n]) - r2
    s00 = s01 = s02 = s10 = s11 = s12 = s20 = s21 = s22 = 0.0
    for j in range(max(ya, yb, 0), min(ya + side1, yb + side2, ny)):
        h1, h2 = _half_width(r1, j - ya - r1), _half_width(r2, j - yb - r2)
        i0 = max(xa + r1 - h1, xb + r2 - h2, 0)
        i1 = min(xa + r1 + h1 + 1, xb + r2 + h2 + 1, nx)
        at_a, at_b = (j - ya) * side1 - xa, (j - yb) * side2 - xb
        for i in range(i0, i1):
            v = np.float64(variance[j, i])
            noise = v + max(image[j, i] - residual[j, i], 0.0) / gain
            w = 1.0 / noise if v > 0.0 else 0.0
            u0, ux, uy = w * p1[at_a + i], w * px1[at_a + i], w * py1[at_a + i]
            v0, vx, vy = p2[at_b + i], px2[at_b + i], py2[at_b + i]
            s00 += u0 * v0
            s01 += u0 * vx
            s02 += u0 * vy
            s10 += ux * v0
            s11 += ux * vx
            s12 += ux * vy
            s20 += uy * v0
            s21 += uy * vx
            s22 += uy * vy
    f1, f2 = flux[m], flux[n]
    a[at1, at2], a[at1, at2 + 1], a[at1, at2 + 2] = s00, f2 * s01, f2 * s02
    a[at1 + 1, at2], a[at1 + 1, at2 + 1] = f1 * s10, f1 * f2 * s11
    a[at1 + 1, at2 + 2] = f1 * f2 * s12
    a[at1 + 2, at2], a[at1 + 2, at2 + 1] = f1 * s20, f1 * f2 * s21
    a[at1 + 2, at2 + 2] = f1 * f2 * s22


@compiled(fastmath=FAST)
def _draw(
    residual: F32, nodes: F64, spacing: float, radius: int, x: float, y: float, flux: float,
    new: F64,
) -> None:
    """Add a star's model to the residual."""
    ny, nx = residual.shape
    side = 2 * radius + 1
    x0, y0 = round(x) - radius, round(y) - radius
    model = new[: side * side].reshape((side, side))
    stamp(nodes, spacing, x, y, x0, y0, model, model, model, False)
    i0, i1 = max(0, -x0), min(side, nx - x0)
    if i1 <= i0:
        return
    for j in range(max(0, -y0), min(side, ny - y0)):
        target, source = residual[y0 + j, x0 + i0 : x0 + i1], model[j, i0:i1]
        for i in range(target.size):
            target[i] += np.float32(flux * source[i])


@compiled
def draw_stars(
    residual: F32, nodes: F64, spacing: float, x: F64, y: F64, flux: F64, radius: I64
) -> None:
    """Take the models of all stars out of the residual."""
    side = 1
    for r in radius:
        side = max(side, 2 * r + 1)
    new = np.empty(side * side)
    for k in range(x.size):
        psf = nodes[k % nodes.shape[0]]
        _draw(residual, psf, spacing, radius[k], x[k], y[k], -flux[k], new)


@compiled
def _inverse_block(a: F64, n: int, first: int, out: F64) -> None:
    """Fill `out` (3, 3) with the block of the inverse at `first`, from the factor in `a`."""
    z = np.empty((n, 3))
    for c in range(3):
        for i in range(n):
            t = 1.0 if i == first + c else 0.0
            for k in range(first, i):
                t -= a[i, k] * z[k, c]
            z[i, c] = t / a[i, i] if i >= first else 0.0
    for c in range(3):
        for d in range(3):
            s = 0.0
            for i in range(first, n):
                s += z[i, c] * z[i, d]
            out[c, d] = s
