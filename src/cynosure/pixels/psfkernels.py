"""The compiled loops of PSF models: evaluate, project, fit.

A PSF is a cubic B-spline on a square grid of nodes, its coefficients polynomials of the place in
the frame. ``mix`` brings the polynomial to one place, ``stamp`` evaluates the PSF and its gradient
on pixels, ``project_stamp`` is the adjoint of ``stamp``. ``forward`` and ``adjoint`` do both for
many stars, which is all that the linear fit of a PSF needs; ``step_stars`` moves isolated stars by
one Gauss-Newton step; ``fit_groups`` fits all the stars of a tile, blends jointly.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = [
    "adjoint",
    "draw_stars",
    "fit_groups",
    "forward",
    "mix",
    "project_stamp",
    "spline_weights",
    "stamp",
    "step_stars",
]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# See cynosure.pixels.kernels.
FAST = {"reassoc", "contract", "arcp", "nsz"}


@njit(cache=True, nogil=True, fastmath=FAST)
def mix(coefficients: F64, terms: F64, out: F64) -> None:
    """Fill `out` (m, m) with the PSF's nodes at one place: sum over k of terms[k] * c[k]."""
    flat = out.ravel()
    first = coefficients[0].ravel()
    for n in range(flat.size):
        flat[n] = terms[0] * first[n]
    for k in range(1, terms.size):
        layer = coefficients[k].ravel()
        t = terms[k]
        for n in range(flat.size):
            flat[n] += t * layer[n]


@njit(cache=True, nogil=True)
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
        i = int(math.floor(g))
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


@njit(cache=True, nogil=True, fastmath=FAST)
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
            p[j, :] = 0.0
            if gradient:
                px[j, :] = 0.0
                py[j, :] = 0.0
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


@njit(cache=True, nogil=True, fastmath=FAST)
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
@njit(cache=True, nogil=True)
def forward(
    coefficients: F64, spacing: float, terms: F64, x: F64, y: F64, x0: I64, y0: I64, out: F64
) -> None:
    """Fill out[n] with the PSF of unit flux of star n on its pixels from (x0[n], y0[n]) on."""
    nodes = np.empty(coefficients.shape[1:])
    nothing = np.empty((0, 0))
    for n in range(x.size):
        mix(coefficients, terms[n], nodes)
        stamp(nodes, spacing, x[n], y[n], x0[n], y0[n], out[n], nothing, nothing, False)


@njit(cache=True, nogil=True)
def adjoint(
    values: F64, spacing: float, terms: F64, x: F64, y: F64, x0: I64, y0: I64, out: F64
) -> None:
    """Add to `out` (k, m, m) the adjoint of :func:`forward` applied to `values`."""
    nodes = np.empty(out.shape[1:])
    for n in range(x.size):
        nodes[:] = 0.0
        project_stamp(values[n], spacing, x[n], y[n], x0[n], y0[n], nodes)
        for k in range(terms.shape[1]):
            out[k] += terms[n, k] * nodes


@njit(cache=True, nogil=True)
def step_stars(
    coefficients: F64, spacing: float, terms: F64, stamps: F64, weights: F64, x0: I64, y0: I64,
    x: F64, y: F64, flux: F64, max_step: float,
) -> None:
    """Move flux and position of isolated stars by one Gauss-Newton step, in place."""
    side = stamps.shape[1]
    nodes = np.empty(coefficients.shape[1:])
    p, px, py = np.empty((side, side)), np.empty((side, side)), np.empty((side, side))
    a, g = np.empty((3, 3)), np.empty(3)
    for n in range(x.size):
        mix(coefficients, terms[n], nodes)
        stamp(nodes, spacing, x[n], y[n], x0[n], y0[n], p, px, py, True)
        a[:], g[:] = 0.0, 0.0
        f = flux[n]
        for j in range(side):
            for i in range(side):
                w = weights[n, j, i]
                if w == 0.0:
                    continue
                d0, d1, d2 = p[j, i], f * px[j, i], f * py[j, i]
                r = stamps[n, j, i] - f * d0
                a[0, 0] += w * d0 * d0
                a[0, 1] += w * d0 * d1
                a[0, 2] += w * d0 * d2
                a[1, 1] += w * d1 * d1
                a[1, 2] += w * d1 * d2
                a[2, 2] += w * d2 * d2
                g[0] += w * d0 * r
                g[1] += w * d1 * r
                g[2] += w * d2 * r
        if not _solve(a, g, 3):
            continue
        flux[n] = max(f + g[0], 0.1 * f)
        x[n] += min(max(g[1], -max_step), max_step)
        y[n] += min(max(g[2], -max_step), max_step)


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _solve(a: F64, b: F64, n: int) -> bool:
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


@njit(cache=True, nogil=True)
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


# ------------------------------------------------------------------------- fitting the stars
@njit(cache=True, nogil=True)
def fit_groups(
    image: F32, residual: F32, variance: F32, gain: float, coefficients: F64, spacing: float,
    terms: F64, groups: I64, x: F64, y: F64, flux: F64, fit_radius: I64, draw_radius: I64,
    sweeps: int, tolerance: float, covariance: F64, chi2: F64, status: NDArray[np.int32],
) -> None:
    """Fit flux and position of the stars of a tile, in place.

    `residual` is the image less all the stars' models and is kept so. Stars of one group (rows
    groups[g] … groups[g + 1]) are solved jointly by Gauss-Newton steps with weights from the
    model; groups see each other through the residual (Gauss-Seidel). A pixel of `variance` 0 is
    not used. `status` is 1 for a star whose last step was below `tolerance` of its errors.
    """
    biggest = 1
    for g in range(groups.size - 1):
        biggest = max(biggest, groups[g + 1] - groups[g])
    side = 2 * int(max(fit_radius.max(), draw_radius.max())) + 1 if x.size else 1
    nodes = np.empty((biggest, *coefficients.shape[1:]))
    p = np.empty((biggest, side, side))
    px, py = np.empty_like(p), np.empty_like(p)
    new = np.empty((side, side))
    a, b = np.empty((3 * biggest, 3 * biggest)), np.empty(3 * biggest)
    block = np.empty((3, 3))
    nothing = np.empty((0, 0))
    settled = np.zeros(groups.size - 1, dtype=np.int64)
    for sweep in range(sweeps):
        for g in range(groups.size - 1):
            first, last = groups[g], groups[g + 1]
            # A group that has stood still twice is left alone; the last sweep visits nobody new.
            if settled[g] >= 1:
                continue
            n = last - first
            a[: 3 * n, : 3 * n] = 0.0
            b[: 3 * n] = 0.0
            for s in range(n):
                k = first + s
                mix(coefficients, terms[k], nodes[s])
                _accumulate(
                    image, residual, variance, gain, nodes[s], spacing, x[k], y[k], flux[k],
                    fit_radius[k], p[s], px[s], py[s], a, b, 3 * s, chi2, k,
                )
            for s in range(n):
                for t in range(s + 1, n):
                    _couple(
                        image, residual, variance, gain, x, y, flux, fit_radius, first + s,
                        first + t, p[s], px[s], py[s], p[t], px[t], py[t], a, 3 * s, 3 * t,
                    )
            ok = _solve(a, b, 3 * n)
            still = ok
            for s in range(n):
                k = first + s
                if not ok:
                    status[k] = 0
                    continue
                _inverse_block(a, 3 * n, 3 * s, block)
                for c in range(3):
                    for d in range(3):
                        covariance[k, c, d] = block[c, d]
                df, dx, dy = b[3 * s], b[3 * s + 1], b[3 * s + 2]
                moved = max(
                    abs(df) / math.sqrt(block[0, 0]), abs(dx) / math.sqrt(block[1, 1]),
                    abs(dy) / math.sqrt(block[2, 2]),
                )
                status[k] = 1 if moved < 20.0 * tolerance else 0
                if moved > tolerance:
                    still = False
                limit = 0.5 if sweep < 2 else 0.25
                dx, dy = min(max(dx, -limit), limit), min(max(dy, -limit), limit)
                fresh = flux[k] + df
                if fresh < 0.1 * flux[k]:
                    fresh = 0.1 * flux[k]
                _redraw(
                    residual, nodes[s], spacing, draw_radius[k], x[k], y[k], flux[k], x[k] + dx,
                    y[k] + dy, fresh, new, nothing,
                )
                x[k] += dx
                y[k] += dy
                flux[k] = fresh
            if still:
                settled[g] += 1

@njit(cache=True, nogil=True, fastmath=FAST)
def _accumulate(
    image: F32, residual: F32, variance: F32, gain: float, nodes: F64, spacing: float, x: float,
    y: float, flux: float, radius: int, p: F64, px: F64, py: F64, a: F64, b: F64, at: int,
    chi2: F64, k: int,
) -> None:
    """Add a star's own block to the normal equations and note its chi^2."""
    ny, nx = image.shape
    side = 2 * radius + 1
    x0, y0 = int(round(x)) - radius, int(round(y)) - radius
    stamp(nodes, spacing, x, y, x0, y0, p[:side, :side], px[:side, :side], py[:side, :side], True)
    a00 = a01 = a02 = a11 = a12 = a22 = 0.0
    g0 = g1 = g2 = q = 0.0
    count = 0
    limit = (radius + 0.5) ** 2
    for j in range(max(0, -y0), min(side, ny - y0)):
        cy = j - radius
        for i in range(max(0, -x0), min(side, nx - x0)):
            v = variance[y0 + j, x0 + i]
            if v == 0.0 or cy * cy + (i - radius) * (i - radius) > limit:
                continue
            r = np.float64(residual[y0 + j, x0 + i])
            w = 1.0 / (v + max(image[y0 + j, x0 + i] - r, 0.0) / gain)
            d0, d1, d2 = p[j, i], flux * px[j, i], flux * py[j, i]
            w0, w1, w2 = w * d0, w * d1, w * d2
            a00 += w0 * d0
            a01 += w0 * d1
            a02 += w0 * d2
            a11 += w1 * d1
            a12 += w1 * d2
            a22 += w2 * d2
            g0 += w0 * r
            g1 += w1 * r
            g2 += w2 * r
            q += w * r * r
            count += 1
    a[at, at], a[at, at + 1], a[at, at + 2] = a00, a01, a02
    a[at + 1, at + 1], a[at + 1, at + 2], a[at + 2, at + 2] = a11, a12, a22
    b[at], b[at + 1], b[at + 2] = g0, g1, g2
    chi2[k] = q / max(count - 3, 1)


@njit(cache=True, nogil=True)
def _couple(
    image: F32, residual: F32, variance: F32, gain: float, x: F64, y: F64, flux: F64,
    fit_radius: I64, m: int, n: int, p1: F64, px1: F64, py1: F64, p2: F64, px2: F64, py2: F64,
    a: F64, at1: int, at2: int,
) -> None:
    """Add the coupling of two stars that share pixels to the normal equations."""
    ny, nx = image.shape
    r1, r2 = fit_radius[m], fit_radius[n]
    xa, ya = int(round(x[m])) - r1, int(round(y[m])) - r1
    xb, yb = int(round(x[n])) - r2, int(round(y[n])) - r2
    f1, f2 = flux[m], flux[n]
    d1, d2 = np.empty(3), np.empty(3)
    for j in range(max(ya, yb, 0), min(ya + 2 * r1 + 1, yb + 2 * r2 + 1, ny)):
        for i in range(max(xa, xb, 0), min(xa + 2 * r1 + 1, xb + 2 * r2 + 1, nx)):
            v = variance[j, i]
            if v == 0.0:
                continue
            if (j - ya - r1) ** 2 + (i - xa - r1) ** 2 > (r1 + 0.5) ** 2:
                continue
            if (j - yb - r2) ** 2 + (i - xb - r2) ** 2 > (r2 + 0.5) ** 2:
                continue
            w = 1.0 / (v + max(image[j, i] - residual[j, i], 0.0) / gain)
            d1[0] = p1[j - ya, i - xa]
            d1[1], d1[2] = f1 * px1[j - ya, i - xa], f1 * py1[j - ya, i - xa]
            d2[0] = p2[j - yb, i - xb]
            d2[1], d2[2] = f2 * px2[j - yb, i - xb], f2 * py2[j - yb, i - xb]
            for c in range(3):
                for d in range(3):
                    a[at1 + c, at2 + d] += w * d1[c] * d2[d]


@njit(cache=True, nogil=True)
def _redraw(
    residual: F32, nodes: F64, spacing: float, radius: int, x: float, y: float, flux: float,
    new_x: float, new_y: float, new_flux: float, new: F64, nothing: F64,
) -> None:
    """Put a star's old model back into the residual and take the new one out."""
    ny, nx = residual.shape
    for turn in range(2):
        cx, cy, f = (x, y, flux) if turn == 0 else (new_x, new_y, -new_flux)
        if f == 0.0:
            continue
        side = 2 * radius + 1
        x0, y0 = int(round(cx)) - radius, int(round(cy)) - radius
        stamp(nodes, spacing, cx, cy, x0, y0, new[:side, :side], nothing, nothing, False)
        for j in range(max(0, -y0), min(side, ny - y0)):
            for i in range(max(0, -x0), min(side, nx - x0)):
                residual[y0 + j, x0 + i] += f * new[j, i]


@njit(cache=True, nogil=True)
def draw_stars(
    residual: F32, coefficients: F64, spacing: float, terms: F64, x: F64, y: F64, flux: F64,
    radius: I64,
) -> None:
    """Take the models of all stars out of the residual."""
    side = 2 * int(radius.max()) + 1 if x.size else 1
    nodes = np.empty(coefficients.shape[1:])
    new = np.empty((side, side))
    nothing = np.empty((0, 0))
    for k in range(x.size):
        mix(coefficients, terms[k], nodes)
        _redraw(residual, nodes, spacing, radius[k], 0.0, 0.0, 0.0, x[k], y[k], flux[k], new, nothing)
