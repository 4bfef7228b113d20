"""The compiled loops of the sky mesh and of the first measurement of sources.

Every kernel here takes and returns plain arrays. Each has a twin in NumPy in
``tests/pixels/twins.py`` that says the same thing slowly, and the tests hold the two together.

Background
    ``sample_cells``, ``clip_cells`` (the bounds of the sky's values in each cell), ``sum_cells``
    (moments of all pixels within them),
    ``mesh_rows``, ``mesh_at`` (interpolation of the mesh), ``fill_boxes`` (pixels less the sky).
Measurement
    ``measure_sources`` (windowed centroid and moments, aperture sums, flags).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cynosure.ground.cache import compiled

__all__ = [
    "clip_cells",
    "disk_pixel_area",
    "fill_boxes",
    "measure_sources",
    "mesh_at",
    "mesh_line",
    "mesh_point",
    "mesh_rows",
    "sample_cells",
    "segment",
    "segment_end",
    "sum_cells",
]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# Sums may be reordered and fused, which lets them use vector instructions; NaN keep their meaning
# because several loops test for them.
FAST = {"reassoc", "contract", "arcp", "nsz"}

# Where more than this part of the pixels is one number, no median means much.
FEW_SHARE = 0.45


# --------------------------------------------------------------------------------- background
@compiled
def sample_cells(
    data: F32, mask: NDArray[np.bool_], step: int, first: int, last: int, rows: int, columns: int,
    values: F32, count: I64, total: I64,
) -> None:
    """Gather a staggered sample of the pixels of the cells in rows first … last of the mesh.

    Row k of `values` is cell (first + k // columns, k % columns): its `count` usable pixels of
    `total`, then infinities, so that sorting leaves them at the end.
    """
    ny, nx = data.shape
    has_mask = mask.size > 0
    for c in range((last - first) * columns):
        j, i = first + c // columns, c % columns
        y0, y1 = j * ny // rows, (j + 1) * ny // rows
        x0, x1 = i * nx // columns, (i + 1) * nx // columns
        n, m = 0, 0
        # Staggered, so that the sample follows neither bad columns nor bad rows.
        for k in range((y1 - y0 + step - 1) // step):
            y = min(y0 + k * step + (5 * k) % step, y1 - 1)
            for x in range(x0 + k % step, x1, step):
                m += 1
                v = data[y, x]
                if math.isfinite(v) and not (has_mask and mask[y, x]):
                    values[c, n] = v
                    n += 1
        for k in range(n, values.shape[1]):
            values[c, k] = np.inf
        count[c], total[c] = n, m


@compiled
def clip_cells(
    values: F32, count: I64, total: I64, least: float, low: F32, high: F32, pivot: F32,
    few: NDArray[np.bool_],
) -> None:
    """Clip the sorted values of each cell about their median until nothing changes.

    Filled are the bounds of the values kept (NaN where too few pixels are usable), a pivot just
    above the median, and whether the cell has few different values.
    """
    s1, s2 = np.empty(values.shape[1] + 1), np.empty(values.shape[1] + 1)
    for c in range(count.size):
        n = count[c]
        if n < 16 or n < least * total[c]:
            low[c] = high[c] = pivot[c] = np.nan
            few[c] = False
            continue
        part = values[c, :n]
        lo, hi, low[c], high[c] = _clip(part, s1, s2)
        v = part[lo + (hi - lo) // 2]
        above = _first(part, lo, hi, v, True)
        pivot[c] = 0.5 * (v + part[above]) if above < hi else v
        few[c] = _share(part, lo, hi) > FEW_SHARE


@compiled(fastmath=FAST)
def sum_cells(
    data: F32, mask: NDArray[np.bool_], first: int, last: int, rows: int, columns: int, low: F32,
    high: F32, pivot: F32, sums: F64,
) -> None:
    """Sum over all the pixels of cells within their bounds.

    Rows of `sums` are how many, how many of them below the pivot, and the first and second
    moments about it, in units of the distance of the bounds (no square leaves single precision).
    """
    ny, nx = data.shape
    has_mask = mask.size > 0
    for c in range((last - first) * columns):
        j, i = first + c // columns, c % columns
        x0, x1 = i * nx // columns, (i + 1) * nx // columns
        lo, hi, p = low[c], high[c], pivot[c]
        width = float(hi) - float(lo)
        scale = np.float32(1.0 / width) if width > 0.0 else np.float32(1.0)
        n = below = 0
        s1 = s2 = 0.0
        for y in range(j * ny // rows, (j + 1) * ny // rows):
            line = data[y, x0:x1]
            t1, t2 = np.float32(0.0), np.float32(0.0)
            for k in range(line.size):
                v = line[k]
                inside = lo <= v <= hi
                if has_mask:
                    inside = inside and not mask[y, x0 + k]
                d = (v - p) * scale if inside else np.float32(0.0)
                t1 += d
                t2 += d * d
                n += int(inside)
                below += int(d < np.float32(0.0))
            s1 += float(t1)
            s2 += float(t2)
        sums[c, 0], sums[c, 1], sums[c, 2], sums[c, 3] = n, below, s1, s2


@compiled
def _first(values: F32, lo: int, hi: int, v: np.float32, beyond: bool) -> int:
    """The first place of sorted values lo … hi that is at least v, or beyond it."""
    while lo < hi:
        middle = (lo + hi) // 2
        if values[middle] < v or (beyond and values[middle] == v):
            lo = middle + 1
        else:
            hi = middle
    return lo


@compiled
def _clip(values: F32, s1: F64, s2: F64) -> tuple[int, int, np.float32, np.float32]:
    """Which sorted values lie within three standard deviations of their median, and the bounds."""
    n = values.size
    shift = np.float64(values[n // 2])
    s1[0] = s2[0] = 0.0
    for k in range(n):
        d = values[k] - shift
        s1[k + 1] = s1[k] + d
        s2[k + 1] = s2[k] + d * d
    lo, hi = 0, n
    low, high = values[0], values[n - 1]
    # The lower half of the values knows nothing of the stars: its width starts the clipping.
    median = _grouped_median(values, 0, n)
    width = (median - float(values[int(0.1587 * n)])) * 1.2
    if _share(values, 0, n) > FEW_SHARE:  # all but one number: whatever there is beside it
        width = 0.5 * (float(values[int(0.98 * n)]) - float(values[int(0.02 * n)]))
    for k in range(30):
        new_low, new_high = np.float32(median - 3.0 * width), np.float32(median + 3.0 * width)
        new_lo = _first(values, 0, n, new_low, False)
        new_hi = _first(values, 0, n, new_high, True)
        if new_hi - new_lo < 8 or (k > 0 and new_lo == lo and new_hi == hi):
            break
        lo, hi, low, high = new_lo, new_hi, new_low, new_high
        mean = (s1[hi] - s1[lo]) / (hi - lo)
        width = math.sqrt(max((s2[hi] - s2[lo]) / (hi - lo) - mean * mean, 0.0))
        median = _grouped_median(values, lo, hi)
    return lo, hi, low, high


@compiled
def _share(values: F32, lo: int, hi: int) -> float:
    """The part of sorted values lo … hi that equals their median."""
    v = values[lo + (hi - lo) // 2]
    return (_first(values, lo, hi, v, True) - _first(values, lo, hi, v, False)) / (hi - lo)


@compiled
def _grouped_median(values: F32, lo: int, hi: int) -> float:
    """Median of sorted values; among equal ones (integers) it is interpolated over their bin."""
    middle = lo + (hi - lo) // 2
    v = values[middle]
    first, last = _first(values, lo, hi, v, False), _first(values, lo, hi, v, True)
    if last - first < 4:
        if (hi - lo) % 2 == 0:
            return 0.5 * (np.float64(values[middle]) + np.float64(values[middle - 1]))
        return np.float64(v)
    below = np.float64(values[first - 1]) if first > lo else np.float64(v)
    above = np.float64(values[last]) if last < hi else np.float64(v)
    low, high = 0.5 * (below + v), 0.5 * (above + v)
    return low + (lo + 0.5 * (hi - lo) - first) / (last - first) * (high - low)


@compiled
def _cubic(t: float, w: F64) -> None:
    """Catmull-Rom weights of the four nodes around a point a fraction t past the second."""
    w[0] = 0.5 * t * (-1.0 + t * (2.0 - t))
    w[1] = 1.0 + 0.5 * t * t * (3.0 * t - 5.0)
    w[2] = 0.5 * t * (1.0 + t * (4.0 - 3.0 * t))
    w[3] = 0.5 * t * t * (t - 1.0)


@compiled
def _linear(t: float, w: F64) -> None:
    """The same for linear interpolation."""
    w[0], w[1], w[2], w[3] = 0.0, 1.0 - t, t, 0.0


@compiled
def _beyond(line: F64, i: int, cubic: bool) -> float:
    """A node of a line, which goes on straight beyond its ends where it is cubic, else level."""
    last = line.size - 1
    if 0 <= i <= last:
        return line[i]
    if not cubic or last == 0:
        return line[0] if i < 0 else line[last]
    if i < 0:
        return line[0] + i * (line[1] - line[0])
    return line[last] + (i - last) * (line[last] - line[last - 1])


@compiled
def mesh_line(
    mesh: F32, y: float, ny: int, cubic: bool, first: int, last: int, line: F64
) -> None:
    """Interpolate the mesh along y: one value for each of its columns first … last."""
    rows, columns = mesh.shape
    w, node = np.empty(4), np.empty(rows)
    g = (y + 0.5) * rows / ny - 0.5
    j = math.floor(g)
    if cubic:
        _cubic(g - j, w)
    else:
        _linear(g - j, w)
    low, high = max(j - 1, 0), min(j + 3, rows)
    if low > rows - 2:
        low = max(rows - 2, 0)
    if high < 2:
        high = min(2, rows)
    for i in range(max(first, 0), min(last, columns)):
        for k in range(low, high):
            node[k] = mesh[k, i]
        s = 0.0
        for k in range(4):
            s += w[k] * _beyond(node, j - 1 + k, cubic)
        line[i] = s


@compiled
def segment(line: F64, i: int, cubic: bool) -> tuple[float, float, float, float]:
    """Coefficients of the polynomial in t = 0 … 1 between the centres of cells i and i + 1."""
    p1, p2 = _beyond(line, i, cubic), _beyond(line, i + 1, cubic)
    if not cubic:
        return p1, p2 - p1, 0.0, 0.0
    p0, p3 = _beyond(line, i - 1, True), _beyond(line, i + 2, True)
    second, third = p0 - 2.5 * p1 + 2.0 * p2 - 0.5 * p3, 0.5 * (p3 - p0) + 1.5 * (p1 - p2)
    return p1, 0.5 * (p2 - p0), second, third


@compiled
def segment_end(i: int, columns: int, nx: int) -> int:
    """The first pixel beyond the centre of cell i + 1."""
    return nx if i >= columns - 1 else math.ceil((i + 1.5) * nx / columns - 0.5)


@compiled(fastmath=FAST)
def mesh_rows(
    mesh: F32, ny: int, nx: int, y0: int, x0: int, cubic: bool, out: F32
) -> None:
    """Interpolate the mesh on the pixels from (x0, y0) on: bicubic or bilinear."""
    columns = mesh.shape[1]
    line = np.empty(columns)
    scale = np.float32(columns / nx)
    last = min(nx, x0 + out.shape[1])
    left = math.floor((x0 + 0.5) * columns / nx - 0.5)
    right = math.floor((last - 0.5) * columns / nx - 0.5)
    for r in range(out.shape[0]):
        mesh_line(
            mesh, float(y0 + r), ny, cubic, min(left - 1, columns - 2), max(right + 3, 2), line
        )
        x = x0
        for i in range(left, right + 1):
            end = min(segment_end(i, columns, nx), last)
            if end <= x:
                continue
            p, q, r2, r3 = segment(line, i, cubic)
            a, b, c, d = np.float32(p), np.float32(q), np.float32(r2), np.float32(r3)
            t0 = np.float32((x + 0.5) * columns / nx - 0.5 - i)
            target = out[r, x - x0 : end - x0]
            for k in range(target.size):
                t = t0 + np.float32(k) * scale
                target[k] = a + t * (b + t * (c + t * d))
            x = end


@compiled
def mesh_point(mesh: F32, ny: int, nx: int, x: float, y: float, cubic: bool) -> float:
    """Interpolate the mesh at one position."""
    columns = mesh.shape[1]
    line = np.empty(columns)
    i = math.floor((x + 0.5) * columns / nx - 0.5)
    first = max(min(i - 1, columns - 2), 0)
    mesh_line(mesh, y, ny, cubic, first, max(i + 3, 2), line)
    a, b, c, d = segment(line, i, cubic)
    t = (x + 0.5) * columns / nx - 0.5 - i
    return a + t * (b + t * (c + t * d))


@compiled
def mesh_at(mesh: F32, ny: int, nx: int, x: F64, y: F64, cubic: bool, out: F64) -> None:
    """Interpolate the mesh at positions: bicubic or bilinear."""
    for n in range(x.size):
        out[n] = mesh_point(mesh, ny, nx, x[n], y[n], cubic)


@compiled
def fill_boxes(
    data: F32, mask: NDArray[np.bool_], given: F32, level: F32, sigma: F32, saturation: float,
    unit: float, corner_x: int, corner_y: int, x: I64, y: I64, half: I64, image: F32,
    variance: F32, bad: NDArray[np.bool_],
) -> int:
    """Fill squares of a tile with the pixels less the sky and with the variance of the sky.

    The tile's first pixel is (corner_x, corner_y) of the frame; square n is the pixels within
    half[n] of (x[n], y[n]), those counted from the tile's corner. Both are in units of `unit`,
    which keeps the variance of any sky within single precision. A variance of 0 marks a pixel
    that is not to be fitted: unusable (also in `bad`) or saturated. A given variance plane
    replaces the sky's where it is much larger: it knows the noisy pixels. Returns how many of
    the pixels seen were unusable.
    """
    ny, nx = data.shape
    height, width = image.shape
    side = 1
    for h in half:
        side = max(side, 2 * h + 1)
    background = np.empty((1, side), dtype=np.float32)
    noise = np.empty((1, side), dtype=np.float32)
    has_mask, has_given = mask.size > 0, given.size > 0
    per, per2 = np.float32(1.0 / unit), 1.0 / unit**2
    unusable = 0
    for n in range(x.size):
        i0, i1 = max(x[n] - half[n], 0), min(x[n] + half[n] + 1, width)
        if i1 <= i0:
            continue
        for j in range(max(y[n] - half[n], 0), min(y[n] + half[n] + 1, height)):
            row = corner_y + j
            mesh_rows(level, ny, nx, row, corner_x + i0, True, background[:, : i1 - i0])
            mesh_rows(sigma, ny, nx, row, corner_x + i0, False, noise[:, : i1 - i0])
            for i in range(i0, i1):
                v = data[row, corner_x + i]
                good = math.isfinite(v) and not (has_mask and mask[row, corner_x + i])
                if not good:
                    bad[j, i] = True
                    unusable += 1
                    image[j, i] = variance[j, i] = np.float32(0.0)
                    continue
                image[j, i] = (v - background[0, i - i0]) * per
                s2 = (noise[0, i - i0] * per) ** 2
                if has_given and given[row, corner_x + i] * per2 > 4.0 * s2:
                    s2 = np.float32(given[row, corner_x + i] * per2)
                variance[j, i] = s2 if v < saturation else np.float32(0.0)
    return unusable


# -------------------------------------------------------------------------------- measurement
@compiled
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


@compiled
def _half_chord(x: float, r: float) -> float:
    """Antiderivative of sqrt(r^2 - x^2)."""
    x = min(max(x, -r), r)
    return 0.5 * (x * math.sqrt(max(r * r - x * x, 0.0)) + r * r * math.asin(x / r))


@compiled
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


@compiled
def _unwindowed(mxx: float, myy: float, mxy: float, w2: float) -> tuple[float, float, float]:
    """Take the share of a Gaussian window of variance w2 out of second moments.

    Along each axis a Gaussian star of variance s under the window has s w / (s + w). What is as
    broad as the window (a trail) has no bound, and is given seven times the window's width.
    """
    mean, half = 0.5 * (mxx + myy), 0.5 * (mxx - myy)
    root = math.hypot(half, mxy)
    major, minor = mean + root, mean - root
    major = 49.0 * w2 if major > 0.98 * w2 else major * w2 / (w2 - major)
    minor = 49.0 * w2 if minor > 0.98 * w2 else max(minor, 0.0) * w2 / (w2 - max(minor, 0.0))
    cosine, sine = (half / root, mxy / root) if root > 0.0 else (1.0, 0.0)
    mean, half = 0.5 * (major + minor), 0.5 * (major - minor)
    return mean + half * cosine, mean - half * cosine, half * sine


@compiled
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
    reach = math.ceil(4.0 * window) + 1
    weight = np.empty(2 * reach + 1)
    for n in range(start.shape[0]):
        x, y = start[n, 0], start[n, 1]
        b, variance = background[n], sigma[n] * sigma[n]
        flag = 0
        sxx = syy = sxy = total = ex = ey = 0.0
        for k in range(17):
            cx, cy = round(x), round(y)
            for i in range(2 * reach + 1):
                weight[i] = math.exp(-0.5 * ((cx + i - reach - x) / window) ** 2)
            sx = sy = ex = ey = total = sxx = syy = sxy = 0.0
            for j in range(max(cy - reach, 0), min(cy + reach + 1, ny)):
                dy = j - y
                wy = math.exp(-0.5 * (dy / window) ** 2)
                for i in range(max(cx - reach, 0), min(cx + reach + 1, nx)):
                    dx = i - x
                    if dx * dx + dy * dy > 16.0 * window * window:
                        continue
                    v = data[j, i] - b
                    if not math.isfinite(v) or (has_mask and mask[j, i]):
                        continue
                    w = wy * weight[i - cx + reach]
                    wv = w * v
                    total += wv
                    sx += wv * dx
                    sy += wv * dy
                    sxx += wv * dx * dx
                    syy += wv * dy * dy
                    sxy += wv * dx * dy
                    noise = w * w * (variance + max(v, 0.0) / gain)
                    ex += noise * dx * dx
                    ey += noise * dy * dy
            if not total > 0.0:
                break
            step_x, step_y = 2.0 * sx / total, 2.0 * sy / total
            length = math.hypot(step_x, step_y)
            if length < 1e-4 or length * total < 0.02 * math.sqrt(ex + ey) or k == 16:
                break  # at rest, by far less than its error
            if length > 0.5:
                step_x, step_y = step_x * 0.5 / length, step_y * 0.5 / length
            x, y = x + step_x, y + step_y
            if math.hypot(x - start[n, 0], y - start[n, 1]) > max(2.0, 1.5 * window):
                x, y = start[n, 0], start[n, 1]  # ran away to a neighbour
                break
        cx, cy = round(x), round(y)
        flux, variance_sum, peak = 0.0, 0.0, -1e30
        span = math.ceil(aperture + 1.0)
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
            # How far the mean under the window follows the star: w / (s + w) along an axis, half
            # for a window as wide as the star.
            w2 = total * window * window
            out[n, 2] = math.sqrt(ex) / total / min(max(1.0 - sxx / w2, 0.25), 0.8)
            out[n, 3] = math.sqrt(ey) / total / min(max(1.0 - syy / w2, 0.25), 0.8)
            out[n, 6], out[n, 7], out[n, 8] = _unwindowed(
                sxx / total, syy / total, sxy / total, window * window
            )
        else:
            out[n, 2] = out[n, 3] = out[n, 6] = out[n, 7] = out[n, 8] = np.nan
        out[n, 4], out[n, 5], out[n, 9] = flux, math.sqrt(variance_sum), peak
        flags[n] = flag
