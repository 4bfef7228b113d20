"""The compiled loops of detection: matched filter, significant local maxima, saturated pixels.

``detect_rows`` does all of it for some rows of a frame; ``join_runs`` says which saturated pixels
belong together, ``nearest_runs`` which peaks belong to them. See :mod:`cynosure.pixels.kernels`
for the twins of kernels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cynosure.ground.cache import compiled
from cynosure.pixels.kernels import F32, F64, FAST, I64, mesh_line, mesh_point, segment, segment_end

__all__ = ["detect_rows", "join_pairs", "join_runs", "nearest_runs"]

# A pixel this near to the threshold may have its summit, between the pixels, above it.
SCAN_FRACTION = 0.75

# The median of a ring on pure noise scatters by 0.45 and is rarely above this; below half of it
# the ring says nothing, and in between it is given less weight.
RING_LEAST = 1.4


@compiled(fastmath=FAST)
def _normalise(
    source: F32, level: F64, noise: F64, mask: NDArray[np.bool_], has_mask: bool, out: F32
) -> None:
    """Fill a row with (data - level) / noise; what is not a number or masked is blank sky."""
    nx, columns = source.size, level.size
    scale = np.float32(columns / nx)
    x = 0
    for i in range(-1, columns):
        end = segment_end(i, columns, nx)
        p, q, r2, r3 = segment(level, i, True)
        a, b, c, d = np.float32(p), np.float32(q), np.float32(r2), np.float32(r3)
        p, q, _, _ = segment(noise, i, False)
        e, f = np.float32(p), np.float32(q)
        t0 = np.float32((x + 0.5) * columns / nx - 0.5 - i)
        pixels, target = source[x:end], out[x:end]
        for k in range(target.size):
            t = t0 + np.float32(k) * scale
            v = (pixels[k] - (a + t * (b + t * (c + t * d)))) / (e + f * t)
            target[k] = v if abs(v) < np.float32(1e30) else np.float32(0.0)
        x = max(x, end)
    if has_mask:
        for k in range(nx):
            out[k] = np.float32(0.0) if mask[k] else out[k]


@compiled(fastmath=FAST)
def _filter_row(padded: F32, kernel: F32, half: int, out: F32) -> None:
    """Convolve a row, padded by `half` on both sides, with a symmetric kernel (half odd)."""
    nx = out.size
    k0, k1 = kernel[half], kernel[half + 1]
    m, l1, r1 = padded[half : half + nx], padded[half - 1 :], padded[half + 1 :]
    for x in range(nx):
        out[x] = k0 * m[x] + k1 * (l1[x] + r1[x])
    for k in range(2, half, 2):
        k1, k2 = kernel[half + k], kernel[half + k + 1]
        l1, r1 = padded[half - k :], padded[half + k :]
        l2, r2 = padded[half - k - 1 :], padded[half + k + 1 :]
        for x in range(nx):
            out[x] += k1 * (l1[x] + r1[x]) + k2 * (l2[x] + r2[x])


@compiled(fastmath=FAST)
def _filter_columns(rows: F32, y: int, kernel: F32, half: int, out: F32) -> None:
    """The same along y: row r of the frame is rows[r % len(rows)]."""
    depth, nx = rows.shape
    k0, k1 = kernel[half], kernel[half + 1]
    m, l1, r1 = rows[y % depth], rows[(y - 1) % depth], rows[(y + 1) % depth]
    for x in range(nx):
        out[x] = k0 * m[x] + k1 * (l1[x] + r1[x])
    for k in range(2, half, 2):
        k1, k2 = kernel[half + k], kernel[half + k + 1]
        l1, r1 = rows[(y - k) % depth], rows[(y + k) % depth]
        l2, r2 = rows[(y - k - 1) % depth], rows[(y + k + 1) % depth]
        for x in range(nx):
            out[x] += k1 * (l1[x] + r1[x]) + k2 * (l2[x] + r2[x])


@compiled
def _sort(values: F32) -> None:
    """Sort a few values by insertion."""
    for k in range(1, values.size):
        v = values[k]
        i = k - 1
        while i >= 0 and values[i] > v:
            values[i + 1] = values[i]
            i -= 1
        values[i + 1] = v


@compiled
def _ring_level(
    smooth: F32, x: int, y: int, ny: int, ring_x: I64, ring_y: I64, ring: F32
) -> tuple[float, float]:
    """Median and scatter (1.48 MAD) of the filtered image on a ring around a pixel."""
    depth, nx = smooth.shape
    for k in range(ring.size):
        column = min(max(x + ring_x[k], 0), nx - 1)
        ring[k] = smooth[min(max(y + ring_y[k], 0), ny - 1) % depth, column]
    _sort(ring)
    base = np.float64(ring[ring.size // 2])
    if base < RING_LEAST:
        return max(2.0 * base - RING_LEAST, 0.0), 1.0
    for k in range(ring.size):
        ring[k] = abs(ring[k] - base)
    _sort(ring)
    return base, 1.4826 * np.float64(ring[ring.size // 2])


@compiled
def _summit(below: float, here: float, above: float) -> tuple[float, float]:
    """Offset and rise of the vertex of a parabola through three points, the middle the highest."""
    bend = 2.0 * here - below - above
    if not bend > 0.0:
        return 0.0, 0.0
    slope = 0.5 * (above - below)
    return slope / bend, 0.5 * slope * slope / bend


@compiled
def _row_peaks(
    smooth: F32, normalised: F32, half: int, y: int, ny: int, threshold: float, ring_x: I64,
    ring_y: I64, light: float, contrast: float, ring: F32, sigma: F32, out: F64, found: int,
) -> int:
    """Add the peaks of one row to `out`; return how many there are now."""
    depth, nx = smooth.shape
    row = smooth[y % depth]
    above, below = smooth[(y - 1) % depth], smooth[(y + 1) % depth]
    least = np.float32(SCAN_FRACTION * threshold)
    for block in range(0, nx, 64):
        any_above = 0
        for v in row[block : block + 64]:
            any_above += v > least
        if any_above == 0:
            continue
        for x in range(max(block, 1), min(block + 64, nx - 1)):
            s = row[x]
            # Strict on one side, not on the other: a plateau of two pixels counts once.
            if not (
                s > least
                and s > row[x - 1] and s >= row[x + 1]
                and s > above[x] and s >= below[x]
                and s > above[x - 1] and s >= below[x + 1]
                and s > above[x + 1] and s >= below[x - 1]
            ):
                continue
            offset_x, rise_x = _summit(row[x - 1], s, row[x + 1])
            offset_y, rise_y = _summit(above[x], s, below[x])
            top = s + rise_x + rise_y
            if not top > threshold:
                continue
            base, scatter = _ring_level(smooth, x, y, ny, ring_x, ring_y, ring)
            noise = 1.0
            if base > 0.0:
                photons = base * light / mesh_point(sigma, ny, nx, float(x), float(y), False)
                noise = math.sqrt(max(min(1.0 + photons, scatter * scatter), 1.0))
            rise = top - base
            if rise < threshold * noise or rise < contrast * base:
                continue
            if found < out.shape[0]:
                peak = np.float32(-1e30)
                for dy in range(-1, 2):
                    line = normalised[(y + dy) % normalised.shape[0]]
                    for dx in range(-1, 2):
                        peak = max(peak, line[half + x + dx])
                out[found, 0], out[found, 1] = x + offset_x, y + offset_y
                out[found, 2], out[found, 3] = top, rise / noise
                out[found, 4], out[found, 5] = base, peak
            found += 1
    return found


@compiled
def _row_runs(source: F32, saturation: float, y: int, runs: I64, found: int) -> int:
    """Add the runs of saturated pixels of one row, (y, first, last + 1), to `runs`."""
    limit, count = np.float32(saturation), 0
    for v in source:
        count += v >= limit
    if count == 0:
        return found
    x, nx = 0, source.size
    while x < nx:
        if source[x] >= limit:
            start = x
            while x < nx and source[x] >= limit:
                x += 1
            if found < runs.shape[0]:
                runs[found, 0], runs[found, 1], runs[found, 2] = y, start, x
            found += 1
        x += 1
    return found


@compiled
def detect_rows(
    data: F32, mask: NDArray[np.bool_], level: F32, sigma: F32, first: int, last: int,
    kernel: F32, threshold: float, ring_x: I64, ring_y: I64, gain: float, contrast: float,
    saturation: float, out: F64, runs: I64,
) -> tuple[int, int]:
    """Find the peaks of the matched filter, and the saturated pixels, of rows first … last.

    The rows pass through once: each is normalised to the noise of the sky and convolved along
    x; the last few of these are convolved along y; the last few of those are searched. A maximum
    counts by what it rises above the median of a ring around it, against the noise at that
    level: on the wing of a bright star both the level and its photon noise are higher. The
    noise is the smaller one of what the photons and what the scatter of the ring say.

    Rows of `out` are x, y (of the interpolated summit), significance over sky, rise over its
    noise, ring level, largest single pixel; rows of `runs` are y, first x, last x + 1. Returned
    is how many of both there are, which may be more than there was room for.
    """
    ny, nx = data.shape
    half, reach = kernel.size // 2, 1
    for k in ring_y:
        reach = max(reach, abs(k))
    columns = level.shape[1]
    normalised = np.zeros((reach + half + 2, nx + 2 * half), dtype=np.float32)
    rows = np.zeros((2 * half + 1, nx), dtype=np.float32)
    smooth = np.zeros((2 * reach + 1, nx), dtype=np.float32)
    level_line, noise_line = np.empty(columns), np.empty(columns)
    ring = np.empty(ring_x.size, dtype=np.float32)
    has_mask, has_limit = mask.size > 0, math.isfinite(saturation)
    # A level of the filtered image of 1 is this much light in a pixel, electrons per sigma.
    total = 0.0
    for weight in kernel:
        total += weight
    light = 1.0 / (total * total * gain)
    found = found_runs = 0
    for y in range(first - reach - half, last + reach + half):
        line = normalised[y % normalised.shape[0]]
        if 0 <= y < ny:
            mesh_line(level, float(y), ny, True, 0, columns, level_line)
            mesh_line(sigma, float(y), ny, False, 0, columns, noise_line)
            hidden = mask[y] if has_mask else mask[:0].ravel()
            _normalise(
                data[y], level_line, noise_line, hidden, has_mask, line[half : half + nx]
            )
            if has_limit and first <= y < last:
                found_runs = _row_runs(data[y], saturation, y, runs, found_runs)
        else:
            for x in range(line.size):
                line[x] = np.float32(0.0)
        _filter_row(line, kernel, half, rows[y % rows.shape[0]])
        s = y - half
        if s < first - reach:
            continue
        if 0 <= s < ny:
            _filter_columns(rows, s, kernel, half, smooth[s % smooth.shape[0]])
        p = s - reach
        if first <= p and 1 <= p < ny - 1:
            found = _row_peaks(
                smooth, normalised, half, p, ny, threshold, ring_x, ring_y, light, contrast,
                ring, sigma, out, found,
            )
    return found, found_runs


@compiled
def _join(label: I64, a: int, b: int) -> None:
    """Put two things into one group, whose label is its first member."""
    while label[a] != a:
        a = label[a]
    while label[b] != b:
        b = label[b]
    label[max(a, b)] = min(a, b)


@compiled
def _settle(label: I64) -> None:
    """Let every label be that of its group; a label points to an earlier one."""
    for n in range(label.size):
        label[n] = label[label[n]]


@compiled
def join_pairs(pairs: I64, label: I64) -> None:
    """Number the groups of things that pairs (m, 2) link, by their first member."""
    for n in range(label.size):
        label[n] = n
    for k in range(pairs.shape[0]):
        _join(label, pairs[k, 0], pairs[k, 1])
    _settle(label)


@compiled
def join_runs(runs: I64, label: I64) -> None:
    """Number the groups of runs that touch, corners included, by their first run.

    `runs` are (y, first x, last x + 1) in the order of y, then x.
    """
    start, here = 0, 0  # the runs of the row above begin at `start`
    for n in range(runs.shape[0]):
        label[n] = n
        y = runs[n, 0]
        if runs[here, 0] < y:
            start = here if runs[here, 0] == y - 1 else n
            here = n
        for k in range(start, here):
            if runs[k, 1] <= runs[n, 2] and runs[k, 2] >= runs[n, 1]:
                _join(label, n, k)
    _settle(label)


@compiled
def nearest_runs(
    runs: I64, label: I64, x: F64, y: F64, reach: float, blob: I64
) -> None:
    """Fill `blob` with the label of the nearest run within `reach` of each place, or -1."""
    for n in range(x.size):
        blob[n] = -1
        nearest = reach * reach
        # The first run that is not too far down, by bisection.
        lo, hi = 0, runs.shape[0]
        while lo < hi:
            middle = (lo + hi) // 2
            if runs[middle, 0] < y[n] - reach:
                lo = middle + 1
            else:
                hi = middle
        for k in range(lo, runs.shape[0]):
            if runs[k, 0] > y[n] + reach:
                break
            dx = max(runs[k, 1] - x[n], x[n] - (runs[k, 2] - 1), 0.0)
            d2 = dx * dx + (runs[k, 0] - y[n]) ** 2
            if d2 <= nearest:
                nearest = d2
                blob[n] = label[k]
