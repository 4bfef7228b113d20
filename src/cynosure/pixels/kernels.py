"""The compiled loops of the pixel floor.

Every kernel here takes and returns plain arrays. Each has a twin in NumPy in
``tests/pixels/twins.py`` that says the same thing slowly, and the tests hold the two together.

Background
    ``mesh_statistics`` (clipped mode and standard deviation of each cell), ``mesh_rows``
    (bicubic interpolation of the mesh),
    ``tile_pixels`` (a tile less its sky).
Detection
    ``filter_strip`` (matched filter), ``find_peaks`` (significant local maxima).
Measurement
    ``measure_sources`` (windowed centroid and moments, aperture sums, flags).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = [
    "disk_pixel_area",
    "filter_strip",
    "find_peaks",
    "measure_sources",
    "mesh_at",
    "mesh_rows",
    "mesh_statistics",
    "tile_pixels",
]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# Sums may be reordered and fused, which lets them use vector instructions; NaN keep their meaning
# because several loops test for them.
FAST = {"reassoc", "contract", "arcp", "nsz"}


# --------------------------------------------------------------------------------- background
@njit(cache=True, nogil=True)
def mesh_statistics(  # noqa: D103 - described in the module's docstring
    data: F32, mask: NDArray[np.bool_], cell: int, step: int, level: F32, sigma: F32,
    used: F32, first: int, last: int,
) -> None:
    ny, nx = data.shape
    has_mask = mask.size > 0
    values = np.empty((cell // step + 2) ** 2, dtype=np.float32)
    for j in range(first, last):
        for i in range(level.shape[1]):
            y0, y1 = j * ny // level.shape[0], (j + 1) * ny // level.shape[0]
            x0, x1 = i * nx // level.shape[1], (i + 1) * nx // level.shape[1]
            n, total = 0, 0
            # A stagger of the start of each row keeps the sample from following columns.
            for k, y in enumerate(range(y0, y1, step)):
                for x in range(x0 + k % step, x1, step):
                    total += 1
                    v = data[y, x]
                    if math.isfinite(v) and not (has_mask and mask[y, x]):
                        values[n] = v
                        n += 1
            used[j, i] = n / max(total, 1)
            if n < 16 or used[j, i] < 0.3:
                level[j, i] = np.nan
                sigma[j, i] = np.nan
                continue
            level[j, i], sigma[j, i] = _clipped_mode(values[:n])


@njit(cache=True, nogil=True)
def _clipped_mode(values: F32) -> tuple[float, float]:
    """Clip around the median, three standard deviations, until stable; then Pearson's mode."""
    values.sort()
    n = values.size
    shift = np.float64(values[n // 2])
    s1 = np.empty(n + 1)
    s2 = np.empty(n + 1)
    s1[0] = s2[0] = 0.0
    for k in range(n):
        d = values[k] - shift
        s1[k + 1] = s1[k] + d
        s2[k + 1] = s2[k] + d * d
    lo, hi = 0, n
    # The lower half of the values knows nothing of the stars: its width starts the clipping.
    median = np.float64(values[n // 2])
    width = (median - np.float64(values[int(0.1587 * n)])) * 1.2
    mean, std = median, width
    for k in range(30):
        limit = 3.0 * (width if k == 0 else std)
        new_lo = np.searchsorted(values, np.float32(median - limit), side="left")
        new_hi = np.searchsorted(values, np.float32(median + limit), side="right")
        if new_hi - new_lo < 8 or (k > 0 and new_lo == lo and new_hi == hi):
            break
        lo, hi = new_lo, new_hi
        m = hi - lo
        mean = (s1[hi] - s1[lo]) / m
        std = math.sqrt(max((s2[hi] - s2[lo]) / m - mean * mean, 0.0))
        mean += shift
        middle = lo + m // 2
        median = np.float64(values[middle])
        if m % 2 == 0:
            median = 0.5 * (median + values[middle - 1])
    # A Gaussian cut at three standard deviations has lost 1.35 % of its standard deviation.
    std *= 1.0136
    mode = 2.5 * median - 1.5 * mean
    if abs(mean - median) > 0.3 * std:
        mode = median
    return mode, std


@njit(cache=True, nogil=True)
def _cubic(t: float, w: F64) -> None:
    """Catmull-Rom weights of the four nodes around a point a fraction t past the second."""
    w[0] = 0.5 * t * (-1.0 + t * (2.0 - t))
    w[1] = 1.0 + 0.5 * t * t * (3.0 * t - 5.0)
    w[2] = 0.5 * t * (1.0 + t * (4.0 - 3.0 * t))
    w[3] = 0.5 * t * t * (t - 1.0)


@njit(cache=True, nogil=True)
def _mesh_line(mesh: F32, y: float, ny: int, line: F64) -> None:
    """Interpolate the mesh along y: one value per column of cells."""
    rows, columns = mesh.shape
    w = np.empty(4)
    g = (y + 0.5) * rows / ny - 0.5
    j = int(math.floor(g))
    _cubic(g - j, w)
    for i in range(columns):
        s = 0.0
        for k in range(4):
            s += w[k] * mesh[min(max(j - 1 + k, 0), rows - 1), i]
        line[i] = s


@njit(cache=True, nogil=True)
def mesh_rows(mesh: F32, ny: int, nx: int, y0: int, out: F32, x0: int = 0) -> None:  # noqa: D103
    columns = mesh.shape[1]
    line = np.empty(columns)
    for r in range(out.shape[0]):
        _mesh_line(mesh, y0 + r, ny, line)
        x, last = x0, min(nx, x0 + out.shape[1])
        for i in range(-1, columns):
            # Pixels between the centres of cells i and i + 1 share one cubic polynomial.
            end = nx if i == columns - 1 else int(math.ceil((i + 1.5) * nx / columns - 0.5))
            p0, p1 = line[max(i - 1, 0)], line[max(i, 0)]
            p2, p3 = line[min(i + 1, columns - 1)], line[min(i + 2, columns - 1)]
            c1 = 0.5 * (p2 - p0)
            c2 = p0 - 2.5 * p1 + 2.0 * p2 - 0.5 * p3
            c3 = 0.5 * (p3 - p0) + 1.5 * (p1 - p2)
            a = columns / nx
            b = 0.5 * a - 0.5 - i
            for k in range(x, min(end, last)):
                t = k * a + b
                out[r, k - x0] = p1 + t * (c1 + t * (c2 + t * c3))
            x = max(x, min(end, last))


@njit(cache=True, nogil=True)
def tile_pixels(
    data: F32, mask: NDArray[np.bool_], given: F32, level: F32, sigma: F32, ny: int, nx: int,
    x0: int, y0: int, saturation: float, image: F32, variance: F32, clean: NDArray[np.bool_],
) -> None:
    """Fill a tile with its pixels less the sky, the variance of the sky, and what is usable.

    A variance of 0 marks a pixel that is not to be fitted: unusable or saturated. A given
    variance plane replaces the sky's where it is much larger: it knows the noisy pixels.
    """
    background = np.empty((1, data.shape[1]), dtype=np.float32)
    noise = np.empty((1, data.shape[1]), dtype=np.float32)
    has_mask, has_given = mask.size > 0, given.size > 0
    for j in range(data.shape[0]):
        mesh_rows(level, ny, nx, y0 + j, background, x0)
        mesh_rows(sigma, ny, nx, y0 + j, noise, x0)
        for i in range(data.shape[1]):
            v = data[j, i]
            good = math.isfinite(v) and not (has_mask and mask[j, i])
            clean[j, i] = good
            image[j, i] = v - background[0, i] if good else np.float32(0.0)
            s2 = noise[0, i] * noise[0, i]
            if has_given and given[j, i] > 4.0 * s2:
                s2 = given[j, i]
            variance[j, i] = s2 if good and v < saturation else np.float32(0.0)


@njit(cache=True, nogil=True)
def mesh_at(mesh: F32, ny: int, nx: int, x: F64, y: F64, out: F64) -> None:  # noqa: D103
    rows, columns = mesh.shape
    wx, wy = np.empty(4), np.empty(4)
    for n in range(x.size):
        gy = (y[n] + 0.5) * rows / ny - 0.5
        gx = (x[n] + 0.5) * columns / nx - 0.5
        j, i = int(math.floor(gy)), int(math.floor(gx))
        _cubic(gy - j, wy)
        _cubic(gx - i, wx)
        s = 0.0
        for k in range(4):
            row = min(max(j - 1 + k, 0), rows - 1)
            for m in range(4):
                s += wy[k] * wx[m] * mesh[row, min(max(i - 1 + m, 0), columns - 1)]
        out[n] = s


# ---------------------------------------------------------------------------------- detection
@njit(cache=True, nogil=True, fastmath=FAST)
def filter_strip(
    data: F32, mask: NDArray[np.bool_], level: F32, sigma: F32, y0: int, kernel: F32,
    normalised: F32, smooth: F32,
) -> None:
    """Fill `normalised` with (data - background) / sigma and `smooth` with its matched filter.

    `normalised` holds the rows y0 … y0 + n of the image, those outside it as zeros; `smooth` is
    filled where the kernel has all its rows, in units of its own standard deviation on sky.
    """
    ny, nx = data.shape
    n = normalised.shape[0]
    half = kernel.size // 2
    has_mask = mask.size > 0
    background = np.empty((1, nx), dtype=np.float32)
    noise = np.empty((1, nx), dtype=np.float32)
    rows = np.empty((n, nx), dtype=np.float32)
    for r in range(n):
        y = y0 + r
        line = normalised[r]
        if y < 0 or y >= ny:
            line[:] = 0.0
            rows[r, :] = 0.0
            continue
        mesh_rows(level, ny, nx, y, background)
        mesh_rows(sigma, ny, nx, y, noise)
        source = data[y]
        b, s = background[0], noise[0]
        for x in range(nx):
            line[x] = (source[x] - b[x]) / s[x]
        for x in range(nx):
            if not (abs(line[x]) < 1e30):  # NaN and infinities are blank sky
                line[x] = 0.0
        if has_mask:
            hidden = mask[y]
            for x in range(nx):
                if hidden[x]:
                    line[x] = 0.0
        out = rows[r]
        for x in range(nx):
            out[x] = kernel[half] * line[x]
        for k in range(1, half + 1):
            w = kernel[half + k]
            for x in range(k, nx - k):
                out[x] += w * (line[x - k] + line[x + k])
            for x in range(min(k, nx)):
                if x + k < nx:
                    out[x] += w * line[x + k]
            for x in range(max(nx - k, k), nx):
                out[x] += w * line[x - k]
    for r in range(half, n - half):
        out = smooth[r]
        middle = rows[r]
        for x in range(nx):
            out[x] = kernel[half] * middle[x]
        for k in range(1, half + 1):
            w = kernel[half + k]
            above, below = rows[r - k], rows[r + k]
            for x in range(nx):
                out[x] += w * (above[x] + below[x])


@njit(cache=True, nogil=True)
def find_peaks(
    smooth: F32, normalised: F32, first: int, last: int, y0: int, threshold: float,
    ring_x: NDArray[np.int64], ring_y: NDArray[np.int64], level_to_flux: float,
    noise_per_flux: F32, contrast: float, out: F64,
) -> int:
    """List the local maxima of rows first … last above the threshold; return how many there are.

    A maximum counts by what it rises above the median of a ring around it, against the noise at
    that level: on the wing of a bright star both the level and its photon noise are higher. Each
    row of `out` is x, y, significance over sky, rise, ring level, and the largest single pixel.
    """
    nx = smooth.shape[1]
    ring = np.empty(ring_x.size, dtype=np.float32)
    found = 0
    for r in range(first, last):
        row, above, below = smooth[r], smooth[r - 1], smooth[r + 1]
        for x in range(1, nx - 1):
            s = row[x]
            if not (s > threshold):
                continue
            # Strict on one side, not on the other: a plateau of two pixels counts once.
            if not (
                s > row[x - 1] and s >= row[x + 1]
                and s > above[x] and s >= below[x]
                and s > above[x - 1] and s >= below[x + 1]
                and s > above[x + 1] and s >= below[x - 1]
            ):
                continue
            for k in range(ring.size):
                rx = min(max(x + ring_x[k], 0), nx - 1)
                ring[k] = smooth[min(max(r + ring_y[k], 1), smooth.shape[0] - 2), rx]
            ring.sort()
            base = max(np.float64(ring[ring.size // 2]), 0.0)
            extra = base * level_to_flux * noise_per_flux[r]
            rise = s - base
            if rise < threshold * math.sqrt(1.0 + extra) or rise < contrast * base:
                continue
            peak = np.float32(-1e30)
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    peak = max(peak, normalised[r + dy, x + dx])
            if found < out.shape[0]:
                out[found, 0] = x
                out[found, 1] = y0 + r
                out[found, 2] = s
                out[found, 3] = rise / math.sqrt(1.0 + extra)
                out[found, 4] = base
                out[found, 5] = peak
            found += 1
    return found


# -------------------------------------------------------------------------------- measurement
@njit(cache=True, nogil=True)
def _quadrant_area(a: float, b: float, r: float) -> float:
    """Area of the disk of radius r about the origin with x <= a and y <= b."""
    if a <= -r or b <= -r:
        return 0.0
    a, b = min(a, r), min(b, r)
    # Integrate over x from -r to a the length of y from -sqrt(r^2 - x^2) to min(b, +sqrt).
    total = _half_chord(a, r) - _half_chord(-r, r)  # the lower half disk
    if b >= 0.0:
        edge = math.sqrt(max(r * r - b * b, 0.0))
        # |x| > edge: the chord is below b, otherwise b cuts it.
        left = min(a, -edge)
        total += _half_chord(left, r) - _half_chord(-r, r)
        if a > -edge:
            total += b * (min(a, edge) + edge)
        if a > edge:
            total += _half_chord(a, r) - _half_chord(edge, r)
        return total
    edge = math.sqrt(max(r * r - b * b, 0.0))
    if a <= -edge:
        return 0.0
    top = min(a, edge)
    return _half_chord(top, r) - _half_chord(-edge, r) + b * (top + edge)


@njit(cache=True, nogil=True)
def _half_chord(x: float, r: float) -> float:
    """Antiderivative of sqrt(r^2 - x^2)."""
    x = min(max(x, -r), r)
    return 0.5 * (x * math.sqrt(max(r * r - x * x, 0.0)) + r * r * math.asin(x / r))


@njit(cache=True, nogil=True)
def disk_pixel_area(dx: float, dy: float, r: float) -> float:
    """Return the area of the unit pixel centred at (dx, dy) inside the disk of radius r at 0."""
    d = math.hypot(dx, dy)
    if d > r + 0.7072:
        return 0.0
    if d < r - 0.7072:
        return 1.0
    x0, x1, y0, y1 = dx - 0.5, dx + 0.5, dy - 0.5, dy + 0.5
    return (
        _quadrant_area(x1, y1, r) - _quadrant_area(x0, y1, r)
        - _quadrant_area(x1, y0, r) + _quadrant_area(x0, y0, r)
    )


@njit(cache=True, nogil=True)
def measure_sources(
    data: F32, mask: NDArray[np.bool_], background: F64, sigma: F64, gain: float,
    saturation: float, window: float, aperture: float, start: F64, out: F64,
    flags: NDArray[np.int32],
) -> None:
    """Measure windowed centroid, moments and aperture sum of each source.

    The centroid is the fixed point of a first moment under a Gaussian window of standard
    deviation `window`, doubled in its step (Bertin's XWIN), which for a Gaussian star comes
    within a few per cent of the Cramer-Rao bound. Rows of `out`: x, y, x_err, y_err, flux,
    flux_err, mxx, myy, mxy of the star itself (the window's share removed), peak pixel.
    """
    ny, nx = data.shape
    has_mask = mask.size > 0
    reach = int(math.ceil(max(4.0 * window, aperture + 1.0)))
    for n in range(start.shape[0]):
        x, y = start[n, 0], start[n, 1]
        b, variance = background[n], sigma[n] * sigma[n]
        flag = 0
        sxx = syy = sxy = total = ex = ey = 0.0
        for k in range(16):
            cx, cy = int(round(x)), int(round(y))
            sx = sy = ex = ey = total = sxx = syy = sxy = 0.0
            for j in range(max(cy - reach, 0), min(cy + reach + 1, ny)):
                for i in range(max(cx - reach, 0), min(cx + reach + 1, nx)):
                    dx, dy = i - x, j - y
                    r2 = dx * dx + dy * dy
                    if r2 > 16.0 * window * window:
                        continue
                    v = data[j, i] - b
                    if not math.isfinite(v) or (has_mask and mask[j, i]):
                        continue
                    w = math.exp(-0.5 * r2 / (window * window))
                    total += w * v
                    sx += w * v * dx
                    sy += w * v * dy
                    sxx += w * v * dx * dx
                    syy += w * v * dy * dy
                    sxy += w * v * dx * dy
                    noise = w * w * (variance + max(v, 0.0) / gain)
                    ex += noise * dx * dx
                    ey += noise * dy * dy
            if not total > 0.0:
                break
            step_x, step_y = 2.0 * sx / total, 2.0 * sy / total
            length = math.hypot(step_x, step_y)
            if length > 0.5:
                step_x, step_y = step_x * 0.5 / length, step_y * 0.5 / length
            x, y = x + step_x, y + step_y
            if math.hypot(x - start[n, 0], y - start[n, 1]) > max(2.0, 1.5 * window):
                x, y = start[n, 0], start[n, 1]  # ran away to a neighbour
                break
            if length < 1e-4:
                break
        cx, cy = int(round(x)), int(round(y))
        flux, variance_sum, peak = 0.0, 0.0, -1e30
        span = int(math.ceil(aperture + 1.0))
        for j in range(cy - span, cy + span + 1):
            for i in range(cx - span, cx + span + 1):
                area = disk_pixel_area(i - x, j - y, aperture)
                if area == 0.0:
                    continue
                if i < 0 or j < 0 or i >= nx or j >= ny:
                    flag |= 2
                    continue
                v = data[j, i]
                if not math.isfinite(v) or (has_mask and mask[j, i]):
                    flag |= 4
                    continue
                if v >= saturation:
                    flag |= 1
                flux += area * (v - b)
                variance_sum += area * (variance + max(v - b, 0.0) / gain)
                peak = max(peak, v)
        out[n, 0], out[n, 1] = x, y
        if total > 0.0:
            out[n, 2] = 2.0 * math.sqrt(ex) / total
            out[n, 3] = 2.0 * math.sqrt(ey) / total
            # A Gaussian star of variance s under a window of variance w has s w / (s + w).
            w2 = window * window
            mxx, myy, mxy = sxx / total, syy / total, sxy / total
            # (M^-1 - I / w2)^-1, the same for the whole matrix
            det = mxx * myy - mxy * mxy
            if det > 0.0:
                ixx, iyy, ixy = myy / det - 1.0 / w2, mxx / det - 1.0 / w2, -mxy / det
                d2 = ixx * iyy - ixy * ixy
                if d2 > 0.0 and ixx > 0.0:
                    mxx, myy, mxy = iyy / d2, ixx / d2, -ixy / d2
            out[n, 6], out[n, 7], out[n, 8] = mxx, myy, mxy
        else:
            out[n, 2] = out[n, 3] = out[n, 6] = out[n, 7] = out[n, 8] = np.nan
        out[n, 4], out[n, 5], out[n, 9] = flux, math.sqrt(variance_sum), peak
        flags[n] = flag
