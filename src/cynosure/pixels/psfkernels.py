"""The compiled loops of PSF models: evaluate, project, fit.

A PSF is a cubic B-spline on a square grid of nodes, its coefficients polynomials of the place in
the frame. ``mix`` brings the polynomial to one place, ``stamp`` evaluates the PSF and its gradient
on pixels, ``project_stamp`` is the adjoint of ``stamp``, ``forward`` evaluates many stars. For the
linear fit of a PSF ``gather_normal`` sums the normal equations and ``solve_normal`` solves them;
``step_stars`` moves isolated stars by Gauss-Newton steps; ``fit_groups`` fits all the stars of a
tile, blends jointly.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cynosure.ground.cache import compiled
from cynosure.pixels.kernels import F32, F64, FAST, I64

__all__ = [
    "forward",
    "gather_normal",
    "hide_disks",
    "judge_stars",
    "mix",
    "project_stamp",
    "solve_normal",
    "spline_weights",
    "stamp",
    "step_stars",
]


@compiled(fastmath=FAST)
def mix(coefficients: F64, terms: F64, out: F64) -> None:
    """Fill `out` (m, m) with the PSF's nodes at one place: sum over k of terms[k] * c[k]."""
    flat = out.reshape(-1)
    first = coefficients[0].reshape(-1)
    for n in range(flat.size):
        flat[n] = terms[0] * first[n]
    for k in range(1, terms.size):
        layer = coefficients[k].reshape(-1)
        t = terms[k]
        for n in range(flat.size):
            flat[n] += t * layer[n]


@compiled
def spline_weights(
    first: int, count: int, center: float, spacing: float, nodes: int,
    start: NDArray[np.int64], w: F64, dw: F64,
) -> None:
    """Cubic B-spline weights of `count` pixels from `first` on, for a star at `center`.

    Pixel p lies at node coordinate ``(p - center) / spacing + (nodes - 1) / 2``; `start` is the
    first of its four nodes (-9 where the pixel is off the grid), `w` the weights and `dw` their
    derivatives by the star's position.
    """
    for k in range(count):
        g = (first + k - center) / spacing + 0.5 * (nodes - 1)
        i = math.floor(g)
        t = g - i
        if i < 1 or i + 2 >= nodes:
            start[k] = -9
            continue
        start[k] = i - 1
        s = 1.0 - t
        w[k, 0] = s * s * s / 6.0
        w[k, 1] = (4.0 - 6.0 * t * t + 3.0 * t * t * t) / 6.0
        w[k, 2] = (4.0 - 6.0 * s * s + 3.0 * s * s * s) / 6.0
        w[k, 3] = t * t * t / 6.0
        dw[k, 0] = 0.5 * s * s / spacing
        dw[k, 1] = (2.0 * t - 1.5 * t * t) / spacing
        dw[k, 2] = -(2.0 * s - 1.5 * s * s) / spacing
        dw[k, 3] = -0.5 * t * t / spacing


@compiled(fastmath=FAST)
def stamp(
    nodes: F64, spacing: float, x: float, y: float, x0: int, y0: int, p: F64, px: F64, py: F64,
    gradient: bool,
) -> None:
    """Fill `p` with the PSF of a star at (x, y) on the pixels from (x0, y0) on.

    With `gradient`, `px` and `py` are its derivatives by x and by y. The PSF is
    ``P(d) = sum_ij c_ij B3(d_y / h - i) B3(d_x / h - j)`` with h the spacing of the nodes.
    """
    ny, nx = p.shape
    m = nodes.shape[0]
    sx, sy = np.empty(nx, dtype=np.int64), np.empty(ny, dtype=np.int64)
    wx, dx = np.empty((nx, 4)), np.empty((nx, 4))
    wy, dy = np.empty((ny, 4)), np.empty((ny, 4))
    spline_weights(x0, nx, x, spacing, m, sx, wx, dx)
    spline_weights(y0, ny, y, spacing, m, sy, wy, dy)
    lo, hi = m, -1
    for j in range(ny):
        if sy[j] >= 0:
            lo, hi = min(lo, sy[j]), max(hi, sy[j] + 3)
    along = np.empty((m, nx))
    slope = np.empty((m if gradient else 1, nx))
    for r in range(lo, hi + 1):
        row = nodes[r]
        for i in range(nx):
            s = sx[i]
            if s < 0:
                along[r, i] = 0.0
                if gradient:
                    slope[r, i] = 0.0
                continue
            a, b, c, d = row[s], row[s + 1], row[s + 2], row[s + 3]
            along[r, i] = wx[i, 0] * a + wx[i, 1] * b + wx[i, 2] * c + wx[i, 3] * d
            if gradient:
                slope[r, i] = dx[i, 0] * a + dx[i, 1] * b + dx[i, 2] * c + dx[i, 3] * d
    for j in range(ny):
        s = sy[j]
        if s < 0:
            for i in range(nx):
                p[j, i] = 0.0
            if gradient:
                for i in range(nx):
                    px[j, i] = py[j, i] = 0.0
            continue
        a, b, c, d = along[s], along[s + 1], along[s + 2], along[s + 3]
        w0, w1, w2, w3 = wy[j, 0], wy[j, 1], wy[j, 2], wy[j, 3]
        for i in range(nx):
            p[j, i] = w0 * a[i] + w1 * b[i] + w2 * c[i] + w3 * d[i]
        if gradient:
            v0, v1, v2, v3 = dy[j, 0], dy[j, 1], dy[j, 2], dy[j, 3]
            for i in range(nx):
                py[j, i] = v0 * a[i] + v1 * b[i] + v2 * c[i] + v3 * d[i]
            a, b, c, d = slope[s], slope[s + 1], slope[s + 2], slope[s + 3]
            for i in range(nx):
                px[j, i] = w0 * a[i] + w1 * b[i] + w2 * c[i] + w3 * d[i]


@compiled(fastmath=FAST)
def project_stamp(
    values: F64, spacing: float, x: float, y: float, x0: int, y0: int, nodes: F64
) -> None:
    """Add to `nodes` the adjoint of :func:`stamp` applied to `values`."""
    ny, nx = values.shape
    m = nodes.shape[0]
    sx, sy = np.empty(nx, dtype=np.int64), np.empty(ny, dtype=np.int64)
    wx, dx = np.empty((nx, 4)), np.empty((nx, 4))
    wy, dy = np.empty((ny, 4)), np.empty((ny, 4))
    spline_weights(x0, nx, x, spacing, m, sx, wx, dx)
    spline_weights(y0, ny, y, spacing, m, sy, wy, dy)
    rows = np.zeros((m, nx))
    lo, hi = m, -1
    for j in range(ny):
        s = sy[j]
        if s < 0:
            continue
        lo, hi = min(lo, s), max(hi, s + 3)
        for k in range(4):
            w = wy[j, k]
            for i in range(nx):
                rows[s + k, i] += w * values[j, i]
    for r in range(lo, hi + 1):
        for i in range(nx):
            s = sx[i]
            if s < 0:
                continue
            v = rows[r, i]
            nodes[r, s] += wx[i, 0] * v
            nodes[r, s + 1] += wx[i, 1] * v
            nodes[r, s + 2] += wx[i, 2] * v
            nodes[r, s + 3] += wx[i, 3] * v


# --------------------------------------------------------------------------- building the PSF
@compiled
def _factor(a: F64, n: int) -> bool:
    """Cholesky factor, in the lower triangle, of a symmetric matrix given in its upper one."""
    for j in range(n):
        s = a[j, j]
        for k in range(j):
            s -= a[j, k] * a[j, k]
        if not s > 1e-13 * a[j, j] or not s > 0.0:
            return False
        d = math.sqrt(s)
        for i in range(j + 1, n):
            t = a[j, i]
            for k in range(j):
                t -= a[i, k] * a[j, k]
            a[i, j] = t / d
        a[j, j] = d
    return True


@compiled
def solve_positive(a: F64, b: F64, n: int) -> bool:
    """Solve a x = b in place for symmetric positive a (upper triangle given, destroyed)."""
    if not _factor(a, n):
        return False
    for i in range(n):
        t = b[i]
        for k in range(i):
            t -= a[i, k] * b[k]
        b[i] = t / a[i, i]
    for i in range(n - 1, -1, -1):
        t = b[i]
        for k in range(i + 1, n):
            t -= a[k, i] * b[k]
        b[i] = t / a[i, i]
    return True


@compiled
def forward(
    coefficients: F64, spacing: float, terms: F64, x: F64, y: F64, x0: I64, y0: I64, out: F64
) -> None:
    """Fill out[n] with the PSF of unit flux of star n on its pixels from (x0[n], y0[n]) on."""
    nodes = np.empty(coefficients.shape[1:])
    nothing = np.empty((0, 0))
    for n in range(x.size):
        mix(coefficients, terms[n], nodes)
        stamp(nodes, spacing, x[n], y[n], x0[n], y0[n], out[n], nothing, nothing, False)


@compiled
def step_stars(
    coefficients: F64, spacing: float, terms: F64, values: F32, good: NDArray[np.bool_],
    variance: F64, x0: I64, y0: I64, gain: float, fraction: float, max_step: float, steps: int,
    x: F64, y: F64, flux: F64,
) -> None:
    """Move flux and position of isolated stars by some Gauss-Newton steps, in place.

    A pixel's variance is that of the sky plus the model's photons plus (fraction * model)^2.
    """
    side = values.shape[1]
    nodes = np.empty(coefficients.shape[1:])
    p, px, py = np.empty((side, side)), np.empty((side, side)), np.empty((side, side))
    a, g = np.empty((3, 3)), np.empty(3)
    for n in range(x.size):
        mix(coefficients, terms[n], nodes)
        for _ in range(steps):
            stamp(nodes, spacing, x[n], y[n], x0[n], y0[n], p, px, py, True)
            _star_normal(
                values[n], good[n], variance[n], gain, fraction, flux[n], p, px, py, a, g
            )
            if not solve_positive(a, g, 3):
                break
            flux[n] = max(flux[n] + g[0], 0.1 * flux[n])
            x[n] += min(max(g[1], -max_step), max_step)
            y[n] += min(max(g[2], -max_step), max_step)


@compiled
def judge_stars(
    coefficients: F64, spacing: float, terms: F64, values: F32, good: NDArray[np.bool_],
    variance: F64, x0: I64, y0: I64, gain: float, fraction: float, x: F64, y: F64, flux: F64,
    light: F64, taken: F64,
) -> None:
    """Fill `light` with the models of isolated stars, `taken` with what their fit takes up.

    That is the part of a pixel's expected squared residual by which the fit of its star's flux
    and place lowers it: the pixel's leverage.
    """
    side = values.shape[1]
    nodes = np.empty(coefficients.shape[1:])
    p, px, py = np.empty((side, side)), np.empty((side, side)), np.empty((side, side))
    a, g, inverse = np.empty((3, 3)), np.empty(3), np.empty((3, 3))
    for n in range(x.size):
        mix(coefficients, terms[n], nodes)
        stamp(nodes, spacing, x[n], y[n], x0[n], y0[n], p, px, py, True)
        for c in range(3):
            _star_normal(values[n], good[n], variance[n], gain, fraction, flux[n], p, px, py, a, g)
            for d in range(3):
                g[d] = 1.0 if c == d else 0.0
            ok = solve_positive(a, g, 3)
            for d in range(3):
                inverse[c, d] = g[d] if ok else 0.0
        for j in range(side):
            for i in range(side):
                model = flux[n] * p[j, i]
                noise = variance[n] + max(model, 0.0) / gain + (fraction * model) ** 2
                d0, d1, d2 = p[j, i], flux[n] * px[j, i], flux[n] * py[j, i]
                h = d0 * (inverse[0, 0] * d0 + 2.0 * (inverse[0, 1] * d1 + inverse[0, 2] * d2))
                h += inverse[1, 1] * d1 * d1 + 2.0 * inverse[1, 2] * d1 * d2
                h += inverse[2, 2] * d2 * d2
                light[n, j, i] = model
                taken[n, j, i] = h / noise if good[n, j, i] else 0.0


@compiled(fastmath=FAST)
def _star_normal(
    values: F32, good: NDArray[np.bool_], variance: float, gain: float, fraction: float,
    flux: float, p: F64, px: F64, py: F64, a: F64, g: F64,
) -> None:
    """Fill the normal equations of one star's flux and position."""
    a00 = a01 = a02 = a11 = a12 = a22 = 0.0
    g0 = g1 = g2 = 0.0
    for j in range(p.shape[0]):
        for i in range(p.shape[1]):
            light = flux * p[j, i]
            noise = variance + max(light, 0.0) / gain + (fraction * light) ** 2
            w = 1.0 / noise if good[j, i] else 0.0
            d0, d1, d2 = p[j, i], flux * px[j, i], flux * py[j, i]
            wr = w * (np.float64(values[j, i]) - light)
            a00 += w * d0 * d0
            a01 += w * d0 * d1
            a02 += w * d0 * d2
            a11 += w * d1 * d1
            a12 += w * d1 * d2
            a22 += w * d2 * d2
            g0 += wr * d0
            g1 += wr * d1
            g2 += wr * d2
    a[0, 0], a[0, 1], a[0, 2] = a00, a01, a02
    a[1, 1], a[1, 2], a[2, 2] = a11, a12, a22
    g[0], g[1], g[2] = g0, g1, g2


@compiled
def gather_normal(
    coefficients: F64, spacing: float, terms: F64, more_terms: F64, values: F32,
    good: NDArray[np.bool_], variance: F64, x0: I64, y0: I64, gain: float, fraction: float,
    x: F64, y: F64, flux: F64, stencil: F32, right: F64,
) -> None:
    """Sum the normal equations of the spline coefficients over some stars of one place.

    The PSF of `coefficients` and `terms` is linearised; `right` (k, m, m) gets the gradient for
    the polynomial `more_terms` (n, k) and `stencil` (25, m, m) the curvature at constant
    terms: entry o of node (j, i) couples it with node (j + dy, i + dx), where o counts dx = 0 … 3
    of dy = 0, then dx = -3 … 3 of dy = 1, 2, 3. The rest is symmetric.
    """
    side, m = values.shape[1], right.shape[1]
    nodes = np.empty((m, m))
    p, w = np.empty((side, side)), np.empty((side, side))
    nothing = np.empty((0, 0))
    start_x, start_y = np.empty(side, dtype=np.int64), np.empty(side, dtype=np.int64)
    wx, wy = np.empty((side, 4)), np.empty((side, 4))
    slope = np.empty((side, 4))
    band = np.empty((7, m), dtype=np.float32)
    for n in range(x.size):
        mix(coefficients, terms[n], nodes)
        stamp(nodes, spacing, x[n], y[n], x0[n], y0[n], p, nothing, nothing, False)
        for j in range(side):
            for i in range(side):
                light = flux[n] * p[j, i]
                noise = variance[n] + max(light, 0.0) / gain + (fraction * light) ** 2
                weight = flux[n] / noise if good[n, j, i] else 0.0
                p[j, i] = weight * (np.float64(values[n, j, i]) - light)
                w[j, i] = weight * flux[n]
        flat = nodes.reshape(-1)
        for i in range(flat.size):
            flat[i] = 0.0
        project_stamp(p, spacing, x[n], y[n], x0[n], y0[n], nodes)
        for k in range(more_terms.shape[1]):
            _add(more_terms[n, k], flat, right[k].reshape(-1))
        spline_weights(x0[n], side, x[n], spacing, m, start_x, wx, slope)
        spline_weights(y0[n], side, y[n], spacing, m, start_y, wy, slope)
        for j in range(side):
            if start_y[j] >= 0:
                _row_band(w[j], start_x, wx, band)
                _add_band(band, start_y[j], wy[j], stencil)


@compiled
def _row_band(w: F64, start: I64, wx: F64, band: F32) -> None:
    """Fill band[dx + 3, i] with the sum over a row's pixels of w B_i B_(i + dx)."""
    for j in range(7):
        for i in range(band.shape[1]):
            band[j, i] = np.float32(0.0)
    for k in range(w.size):
        s = start[k]
        if s < 0 or w[k] == 0.0:
            continue
        for a in range(4):
            v = w[k] * wx[k, a]
            for b in range(4):
                band[b - a + 3, s + a] += np.float32(v * wx[k, b])


@compiled(fastmath=FAST)
def _add_band(band: F32, start: int, wy: F64, stencil: F32) -> None:
    """Add a row's band to the rows of nodes that the row of pixels sees."""
    for a in range(4):
        for b in range(a, 4):
            v = np.float32(wy[a] * wy[b])
            dy = b - a
            for dx in range(0 if dy == 0 else -3, 4):
                target = stencil[dx if dy == 0 else 7 * dy + dx, start + a]
                source = band[dx + 3]
                for i in range(target.size):
                    target[i] += v * source[i]


@compiled(fastmath=FAST)
def _apply_stencil(stencil: F32, z: F32, out: F32) -> None:
    """Add the product of a symmetric stencil with z (m, m) to `out`."""
    m = z.shape[0]
    for o in range(25):
        dy = 0 if o < 4 else (o + 3) // 7
        dx = o - 7 * dy
        i0, i1 = max(0, -dx), min(m, m - dx)
        for j in range(m - dy):
            weight = stencil[o, j, i0:i1]
            here, there = z[j, i0:i1], z[j + dy, i0 + dx : i1 + dx]
            to_here, to_there = out[j, i0:i1], out[j + dy, i0 + dx : i1 + dx]
            for i in range(i1 - i0):
                to_here[i] += weight[i] * there[i]
            if o > 0:
                for i in range(i1 - i0):
                    to_there[i] += weight[i] * here[i]


@compiled(fastmath=FAST)
def _add(factor: float, source: F64, out: F64) -> None:
    """Add a multiple of one array (flat) to another."""
    for i in range(out.size):
        out[i] += factor * source[i]


@compiled(fastmath=FAST)
def _dot(a: F64, b: F64) -> float:
    """Return the scalar product of two arrays (flat)."""
    total = 0.0
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@compiled(fastmath=FAST)
def _smooth(kernel: F64, source: F64, rows: F64, out: F64) -> None:
    """Convolve a square array with a symmetric kernel along both axes; beyond it is nothing."""
    m, half = source.shape[0], kernel.size // 2
    for j in range(m):
        for i in range(m):
            rows[j, i] = 0.0
            out[j, i] = 0.0
    for k in range(-half, half + 1):
        w = kernel[half + k]
        i0, i1 = max(0, -k), min(m, m - k)
        for j in range(m):
            target, line = rows[j, i0:i1], source[j, i0 + k : i1 + k]
            for i in range(i1 - i0):
                target[i] += w * line[i]
    for k in range(-half, half + 1):
        w = kernel[half + k]
        for j in range(max(0, -k), min(m, m - k)):
            target, line = out[j], rows[j + k]
            for i in range(m):
                target[i] += w * line[i]


@compiled(fastmath=FAST)
def _apply_data(stencils: F32, terms: F64, z: F64, here: F32, there: F32, out: F64) -> None:
    """Fill `out` with (sum over places of T^T N T) z, both (k, m, m)."""
    k, m = z.shape[0], z.shape[1]
    for t in range(k):
        for j in range(m):
            for i in range(m):
                out[t, j, i] = 0.0
    for c in range(stencils.shape[0]):
        for j in range(m):
            for i in range(m):
                here[j, i] = there[j, i] = np.float32(0.0)
        for t in range(k):
            w = terms[c, t]
            for j in range(m):
                for i in range(m):
                    here[j, i] += np.float32(w * z[t, j, i])
        _apply_stencil(stencils[c], here, there)
        for t in range(k):
            w = terms[c, t]
            for j in range(m):
                for i in range(m):
                    out[t, j, i] += w * there[j, i]


@compiled(fastmath=FAST)
def _spread(scale: F64, smooth: F64, z: F64, rows: F64, out: F64) -> None:
    """Fill `out` with S G z: from independent unit variables to what the prior allows."""
    for t in range(z.shape[0]):
        _smooth(smooth, z[t], rows, out[t])
        for j in range(z.shape[1]):
            for i in range(z.shape[1]):
                out[t, j, i] *= scale[t, j, i]


@compiled(fastmath=FAST)
def _gather(scale: F64, smooth: F64, source: F64, work: F64, rows: F64, out: F64) -> None:
    """Fill `out` with G S source, the transpose of :func:`_spread`."""
    for t in range(source.shape[0]):
        for j in range(source.shape[1]):
            for i in range(source.shape[1]):
                work[j, i] = scale[t, j, i] * source[t, j, i]
        _smooth(smooth, work, rows, out[t])


@compiled
def _preconditioner(stencils: F32, terms: F64, scale: F64, smooth: F64, out: F64) -> None:
    """Fill `out` with the inverse diagonal of G S A S G + 1, as if A changed little nearby.

    Nodes in the core are much better determined by the stars than those far out.
    """
    k, m = scale.shape[0], scale.shape[1]
    overlap = np.zeros(4)  # of the smoothing with itself, some nodes away
    for d in range(4):
        for i in range(smooth.size - d):
            overlap[d] += smooth[i] * smooth[i + d]
    for t in range(k):
        for j in range(m):
            for i in range(m):
                out[t, j, i] = 0.0
    for c in range(stencils.shape[0]):
        for j in range(m):
            for i in range(m):
                total = 0.0
                for o in range(25):
                    dy = 0 if o < 4 else (o + 3) // 7
                    part = stencils[c, o, j, i] * overlap[dy] * overlap[abs(o - 7 * dy)]
                    total += part if o == 0 else 2.0 * part
                for t in range(k):
                    out[t, j, i] += terms[c, t] ** 2 * total
    for t in range(k):
        for j in range(m):
            for i in range(m):
                curvature = scale[t, j, i] ** 2 * max(out[t, j, i], 0.0)
                out[t, j, i] = 1.0 / (1.0 + curvature)


@compiled
def solve_normal(
    stencils: F32, terms: F64, scale: F64, smooth: F64, right: F64, offset: F64, steps: int,
    tolerance: float,
) -> int:
    """Find the best offset of the spline coefficients from their prior mean.

    With A = sum over c of T_c^T N_c T_c, where N are the `stencils` (c, 25, m, m) of
    :func:`gather_normal` and T their `terms` (c, k), and with the prior ``offset = S G z``, z of
    unit variance, S the `scale` (k, m, m) and G the convolution with `smooth`, it solves

        (G S A S G + 1) z = G S (right + A offset)

    by conjugate gradients, for the `offset` (k, m, m) at which the gradient `right` was taken, and
    replaces that by the new one. It ends after some steps or where the residual has fallen to a
    fraction; the number of steps is returned.
    """
    k, m = right.shape[0], right.shape[1]
    shape = (k, m, m)
    here, there = np.empty((m, m), dtype=np.float32), np.empty((m, m), dtype=np.float32)
    work, rows = np.empty((m, m)), np.empty((m, m))
    z, r, p = np.zeros(shape), np.empty(shape), np.empty(shape)
    q, v, inverse = np.empty(shape), np.empty(shape), np.empty(shape)
    _preconditioner(stencils, terms, scale, smooth, inverse)
    _apply_data(stencils, terms, offset, here, there, v)
    _add(1.0, right.reshape(-1), v.reshape(-1))
    _gather(scale, smooth, v, work, rows, r)
    flat_z, flat_r, flat_p, flat_q = z.reshape(-1), r.reshape(-1), p.reshape(-1), q.reshape(-1)
    flat_inverse = inverse.reshape(-1)
    for i in range(flat_r.size):
        flat_p[i] = flat_q[i] = flat_inverse[i] * flat_r[i]
    rr = _dot(flat_r, flat_q)
    stop = tolerance * tolerance * rr
    done = steps
    for step in range(steps):
        if not rr > stop:
            done = step
            break
        _spread(scale, smooth, p, rows, v)
        _apply_data(stencils, terms, v, here, there, q)
        _gather(scale, smooth, q, work, rows, v)
        flat_v = v.reshape(-1)
        _add(1.0, flat_p, flat_v)
        alpha = rr / _dot(flat_p, flat_v)
        _add(alpha, flat_p, flat_z)
        _add(-alpha, flat_v, flat_r)
        for i in range(flat_q.size):
            flat_q[i] = flat_inverse[i] * flat_r[i]
        fresh = _dot(flat_r, flat_q)
        for i in range(flat_p.size):
            flat_p[i] = flat_q[i] + fresh / rr * flat_p[i]
        rr = fresh
    _spread(scale, smooth, z, rows, offset)
    return done


@compiled
def hide_disks(
    good: NDArray[np.bool_], stamp: I64, x: F64, y: F64, radius: F64
) -> None:
    """Clear the disk around (x, y) of the stamp that each of them belongs to."""
    side = good.shape[1]
    for n in range(x.size):
        r = radius[n]
        for j in range(max(math.ceil(y[n] - r), 0), min(int(y[n] + r) + 1, side)):
            for i in range(max(math.ceil(x[n] - r), 0), min(int(x[n] + r) + 1, side)):
                if (j - y[n]) ** 2 + (i - x[n]) ** 2 <= r * r:
                    good[stamp[n], j, i] = False
