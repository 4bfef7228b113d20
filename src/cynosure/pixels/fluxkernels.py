"""The compiled loops of photometry at given places: PSF fluxes, and sums in apertures.

See :mod:`cynosure.pixels.forced` and :mod:`cynosure.pixels.aperture` for the methods.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cynosure.ground.cache import compiled
from cynosure.pixels.kernels import F32, F64, FAST, I64, disk_pixel_area
from cynosure.pixels.psfkernels import solve_positive, stamp

__all__ = ["aperture_sums", "fit_fluxes", "ring_levels"]

I32 = NDArray[np.int32]
BOOL = NDArray[np.bool_]

# A sweep that changes no flux of a group by more than this part of its error is its last.
REST = 0.02

# A star fainter than this many of its errors does not say where it is.
LEAST_SNR_TO_MOVE = 4.0


# ------------------------------------------------------------------------------------ PSF fluxes
@compiled(fastmath=FAST)
def _products(
    image: F32, residual: F32, variance: F32, gain: float, x: F64, y: F64, radius: I64, m: int,
    n: int, pm: F64, pn: F64, terms: int, a: F64, b: F64, at_m: int, at_n: int, chi2: F64,
) -> None:
    """Add the products of two stars' columns to the normal equations, or of one with itself.

    The columns are the PSF and, with three terms, the flux times its derivatives by the place. For
    a star with itself the right-hand side and its chi^2 are noted too.
    """
    ny, nx = image.shape
    rm, rn = radius[m], radius[n]
    side_m, side_n = 2 * rm + 1, 2 * rn + 1
    xm, ym = round(x[m]) - rm, round(y[m]) - rm
    xn, yn = round(x[n]) - rn, round(y[n]) - rn
    q, count = 0.0, 0
    for j in range(max(ym, yn, 0), min(ym + side_m, yn + side_n, ny)):
        dy_m, dy_n = j - ym - rm, j - yn - rn
        for i in range(max(xm, xn, 0), min(xm + side_m, xn + side_n, nx)):
            dx_m, dx_n = i - xm - rm, i - xn - rn
            v = np.float64(variance[j, i])
            if v <= 0.0 or dx_m * dx_m + dy_m * dy_m > (rm + 0.5) ** 2:
                continue
            if dx_n * dx_n + dy_n * dy_n > (rn + 0.5) ** 2:
                continue
            r = np.float64(residual[j, i])
            w = 1.0 / (v + max(image[j, i] - r, 0.0) / gain)
            k_m, k_n = (j - ym) * side_m + i - xm, (j - yn) * side_n + i - xn
            for c in range(terms):
                wc = w * pm[c, k_m]
                for d in range(terms):
                    a[at_m + c, at_n + d] += wc * pn[d, k_n]
                if m == n:
                    b[at_m + c] += wc * r
            q += w * r * r
            count += 1
    if m == n:
        chi2[m] = q / max(count - terms, 1)


@compiled(fastmath=FAST)
def _subtract(
    residual: F32, nodes: F64, spacing: float, radius: int, x: float, y: float, flux: float,
    room: F64,
) -> None:
    """Take a star out of the residual."""
    ny, nx = residual.shape
    side = 2 * radius + 1
    x0, y0 = round(x) - radius, round(y) - radius
    model = room[: side * side].reshape((side, side))
    stamp(nodes, spacing, x, y, x0, y0, model, model, model, False)
    for j in range(max(0, -y0), min(side, ny - y0)):
        for i in range(max(0, -x0), min(side, nx - x0)):
            residual[y0 + j, x0 + i] -= np.float32(flux * model[j, i])


@compiled
def _blocks_of_inverse(a: F64, n: int, terms: int, s: int, out: F64) -> None:
    """Fill `out` (3, 3) with the block of star `s` of the inverse, from the factor in `a`."""
    first = terms * s
    z = np.zeros((terms, n))
    for c in range(terms):
        for i in range(first, n):
            t = 1.0 if i == first + c else 0.0
            for k in range(first, i):
                t -= a[i, k] * z[c, k]
            z[c, i] = t / a[i, i]
    for c in range(terms):
        for d in range(terms):
            total = 0.0
            for i in range(first, n):
                total += z[c, i] * z[d, i]
            out[c, d] = total


@compiled
def fit_fluxes(
    image: F32, residual: F32, variance: F32, gain: float, nodes: F64, spacing: float, groups: I64,
    x: F64, y: F64, flux: F64, fit_radius: I64, draw_radius: I64, sweeps: int, shifts: int,
    max_shift: float, covariance: F64, chi2: F64, status: I32,
) -> None:
    """Fit the flux, of either sign, of stars at given places, in place.

    `residual` is the image less the stars of the fluxes that come in, and is kept so. The stars
    of a group are solved jointly, with weights from the model; groups see each other through
    the residual. With `shifts`, so many steps follow in which the places of stars with enough
    light move too, by `max_shift` along each axis at most from where they were given; then the
    fluxes are settled. A pixel of `variance` 0 is not used. `status` is 1 for a flux that came to
    rest; of one that did not, or has no pixel, or the very place of another, it is 0.
    """
    biggest, side = 1, 1
    for g in range(groups.size - 1):
        biggest = max(biggest, groups[g + 1] - groups[g])
    for k in range(x.size):
        side = max(side, 2 * fit_radius[k] + 1, 2 * draw_radius[k] + 1)
    columns, room = np.zeros((biggest, 3, side * side)), np.empty(side * side)
    a, b = np.empty((3 * biggest, 3 * biggest)), np.empty(3 * biggest)
    block, error = np.empty((3, 3)), np.zeros(x.size)
    given_x, given_y = x.copy(), y.copy()
    rounds = sweeps if shifts == 0 else 2 * sweeps + shifts
    at_rest = np.zeros(groups.size - 1, dtype=np.bool_)
    for sweep in range(rounds):
        moving = sweeps <= sweep < sweeps + shifts
        if moving or sweep == sweeps + shifts:
            at_rest[:] = False
        terms = 3 if moving else 1
        for g in range(groups.size - 1):
            if at_rest[g]:
                continue
            first, n = groups[g], groups[g + 1] - groups[g]
            size = terms * n
            a[:size, :size] = 0.0
            b[:size] = 0.0
            for s in range(n):
                k = first + s
                edge = 2 * fit_radius[k] + 1
                p = columns[s, :, : edge * edge].copy().reshape((3, edge, edge))
                stamp(
                    nodes[k % nodes.shape[0]], spacing, x[k], y[k], round(x[k]) - fit_radius[k],
                    round(y[k]) - fit_radius[k], p[0], p[1], p[2], moving,
                )
                flat = p.reshape((3, edge * edge))
                for i in range(edge * edge):
                    columns[s, 0, i] = flat[0, i]
                    columns[s, 1, i] = flux[k] * flat[1, i]
                    columns[s, 2, i] = flux[k] * flat[2, i]
            for s in range(n):
                for t in range(s, n):
                    _products(
                        image, residual, variance, gain, x, y, fit_radius, first + s, first + t,
                        columns[s], columns[t], terms, a, b, terms * s, terms * t, chi2,
                    )
            for s in range(n):  # what has no pixels, or no light to move by, is left as it is
                fixed = moving and not flux[first + s] > LEAST_SNR_TO_MOVE * error[first + s]
                for c in range(terms):
                    at = terms * s + c
                    if (c > 0 and fixed) or not a[at, at] > 0.0:
                        a[at, :size] = 0.0
                        a[:size, at] = 0.0
                        a[at, at], b[at] = 1.0, 0.0
                        if c == 0:
                            status[first + s] = -1
            solved = solve_positive(a, b, size)
            still = True
            for s in range(n):
                k = first + s
                if status[k] < 0 or not solved:
                    status[k] = min(status[k], 0)
                    continue
                _blocks_of_inverse(a, size, terms, s, block)
                error[k] = math.sqrt(block[0, 0])
                move_x = move_y = 0.0
                if moving:
                    move_x = min(max(x[k] + b[3 * s + 1], given_x[k] - max_shift),
                                 given_x[k] + max_shift) - x[k]
                    move_y = min(max(y[k] + b[3 * s + 2], given_y[k] - max_shift),
                                 given_y[k] + max_shift) - y[k]
                    free = flux[k] > LEAST_SNR_TO_MOVE * error[k]
                    for c in range(3):
                        for d in range(3):
                            covariance[k, c, d] = block[c, d] if free or c + d == 0 else np.nan
                elif shifts == 0 or sweep < sweeps:
                    covariance[k, 0, 0] = block[0, 0]
                step = b[terms * s]
                status[k] = 1 if abs(step) < 20.0 * REST * error[k] else 0
                still = still and abs(step) < REST * error[k]
                psf = nodes[k % nodes.shape[0]]
                if moving:
                    _subtract(residual, psf, spacing, draw_radius[k], x[k], y[k], -flux[k], room)
                    x[k], y[k], flux[k] = x[k] + move_x, y[k] + move_y, flux[k] + step
                    _subtract(residual, psf, spacing, draw_radius[k], x[k], y[k], flux[k], room)
                else:
                    _subtract(residual, psf, spacing, draw_radius[k], x[k], y[k], step, room)
                    flux[k] += step
            at_rest[g] = solved and still and not moving


# ------------------------------------------------------------------------------------- apertures
@compiled
def ring_levels(
    data: F32, unusable: BOOL, x: F64, y: F64, inner: float, outer: float, clip: float, out: F64
) -> None:
    """Fill out[n] with the level of a ring around place n, its error, its deviation, its pixels.

    A pixel belongs to the ring if its centre lies at inner <= r < outer. Values farther than
    `clip` standard deviations from the median are left out, again and again, until none is; the
    level is the median of the rest. Of no pixels all three are NaN.
    """
    ny, nx = data.shape
    has_mask = unusable.size > 0
    reach = math.ceil(outer) + 1
    values = np.empty((2 * reach + 1) ** 2)
    for n in range(x.size):
        count = 0
        out[n, 0] = out[n, 1] = out[n, 2] = np.nan
        out[n, 3] = 0.0
        if not (math.isfinite(x[n]) and math.isfinite(y[n])):
            continue
        cx, cy = round(x[n]), round(y[n])
        for j in range(max(cy - reach, 0), min(cy + reach + 1, ny)):
            for i in range(max(cx - reach, 0), min(cx + reach + 1, nx)):
                r2 = (i - x[n]) ** 2 + (j - y[n]) ** 2
                if r2 < inner * inner or r2 >= outer * outer:
                    continue
                if math.isfinite(data[j, i]) and not (has_mask and unusable[j, i]):
                    values[count] = data[j, i]
                    count += 1
        kept = np.sort(values[:count])
        while kept.size > 0:
            median = 0.5 * (kept[(kept.size - 1) // 2] + kept[kept.size // 2])
            std = np.std(kept)
            low = np.searchsorted(kept, median - clip * std, side="left")
            high = np.searchsorted(kept, median + clip * std, side="right")
            if high - low == kept.size or high <= low:
                # The median of Gaussian noise scatters by sqrt(pi / 2) more than the mean.
                out[n, 0], out[n, 2], out[n, 3] = median, std, kept.size
                out[n, 1] = std * math.sqrt(0.5 * math.pi / kept.size)
                break
            kept = kept[low:high]


@compiled
def aperture_sums(
    data: F32, unusable: BOOL, given: F32, level: F64, sigma: F64, gain: float, saturation: float,
    x: F64, y: F64, radius: float, mirror: bool, out: F64, flags: I32,
) -> None:
    """Fill out[n] with the sum in a disk around place n, its variance, and the part not seen.

    Pixels count by the exact area of theirs inside the disk. A pixel that is unusable or outside
    the frame is not seen; with `mirror` the one opposite the centre stands for it, where it is
    usable. A sum that lacks pixels is NaN. The variance is that of the sky and of the
    light above it. `flags`: 1 a saturated pixel, 2 outside the frame, 4 an unusable pixel.
    """
    ny, nx = data.shape
    has_mask, has_given = unusable.size > 0, given.size > 0
    span = math.ceil(radius + 1.0)
    for n in range(x.size):
        out[n, 0] = out[n, 1] = np.nan
        out[n, 2] = 1.0
        here = 0
        if not (math.isfinite(x[n]) and math.isfinite(y[n])):
            flags[n] = 2
            continue
        cx, cy = round(x[n]), round(y[n])
        total = noise = lost = missing = 0.0
        for j in range(cy - span, cy + span + 1):
            for i in range(cx - span, cx + span + 1):
                area = disk_pixel_area(i - x[n], j - y[n], radius)
                if area == 0.0:
                    continue
                row, column = j, i
                for attempt in range(2):
                    seen = 0 <= row < ny and 0 <= column < nx
                    if not seen:
                        here |= 2 if attempt == 0 else 0
                    elif not math.isfinite(data[row, column]) or (
                        has_mask and unusable[row, column]
                    ):
                        here |= 4 if attempt == 0 else 0
                        seen = False
                    if seen or not mirror:
                        break
                    row, column = round(2.0 * y[n] - j), round(2.0 * x[n] - i)
                    lost += area if attempt == 0 else 0.0
                if not seen:
                    missing += area
                    continue
                v = np.float64(data[row, column])
                if v >= saturation:
                    here |= 1
                s2 = sigma[n] * sigma[n]
                if has_given and math.isfinite(given[row, column]):
                    s2 = max(s2, np.float64(given[row, column]))
                total += area * (v - level[n])
                noise += area * (s2 + max(v - level[n], 0.0) / gain)
        out[n, 2] = (lost if mirror else missing) / (math.pi * radius * radius)
        if missing == 0.0:
            out[n, 0], out[n, 1] = total, noise
        flags[n] = here
