"""What the compiled loops of the pixel floor do, said slowly in NumPy and SciPy."""

import numpy as np
from scipy.interpolate import BSpline
from scipy.ndimage import convolve1d


# --------------------------------------------------------------------------------- the sky mesh
def clipped_mode(values):
    """Clip about the median at three standard deviations; Pearson's mode, corrected deviation."""
    values = np.sort(np.asarray(values, float))
    kept = values
    low = np.sort(values)[int(0.1587 * len(values))]
    width = (grouped_median(values) - low) * 1.2
    if np.mean(values == values[len(values) // 2]) > 0.45:
        width = 0.5 * (values[int(0.98 * len(values))] - values[int(0.02 * len(values))])
    median = grouped_median(values)
    mean, std = median, width
    for k in range(30):
        limit = 3 * (width if k == 0 else std)
        lo, hi = np.float32(median - limit), np.float32(median + limit)
        new = values[(values >= lo) & (values <= hi)]
        if len(new) < 8 or (k > 0 and len(new) == len(kept) and new[0] == kept[0]):
            break
        kept = new
        mean, std, median = kept.mean(), kept.std(), grouped_median(kept)
    std *= 1.0136
    if std > 0 and np.mean(kept == kept[len(kept) // 2]) > 0.45:
        return mean, std
    mode = 2.5 * median - 1.5 * mean
    return (median if abs(mean - median) > 0.3 * std else mode), std


def grouped_median(values):
    """The median, interpolated over the bin of equal values where there are four or more."""
    middle = values[len(values) // 2]
    same = np.flatnonzero(values == middle)
    if len(same) < 4:
        return float(np.median(values))
    below = values[same[0] - 1] if same[0] > 0 else middle
    above = values[same[-1] + 1] if same[-1] + 1 < len(values) else middle
    low, high = 0.5 * (below + middle), 0.5 * (above + middle)
    return low + (0.5 * len(values) - same[0]) / len(same) * (high - low)


def cell_sample(data, mask, step, j, i, rows, columns):
    """The staggered sample of a cell: usable values, and how many were looked at."""
    ny, nx = data.shape
    y0, y1 = j * ny // rows, (j + 1) * ny // rows
    x0, x1 = i * nx // columns, (i + 1) * nx // columns
    y, x = [], []
    for k in range(-(-(y1 - y0) // step)):
        row = min(y0 + k * step + 5 * k % step, y1 - 1)
        columns_here = np.arange(x0 + k % step, x1, step)
        y.append(np.full(len(columns_here), row))
        x.append(columns_here)
    y, x = np.concatenate(y), np.concatenate(x)
    good = np.isfinite(data[y, x]) & ~mask[y, x]
    return data[y, x][good], len(y)


def extended(mesh, cubic):
    """The mesh with four more nodes on every side: straight on where cubic, else level."""
    mode = {"mode": "reflect", "reflect_type": "odd"} if cubic else {"mode": "edge"}
    wide = np.asarray(mesh, float)
    for axis, n in enumerate(mesh.shape):
        for _ in range(4):  # one node at a time, so that each goes on from the last
            pad = [(1, 1) if a == axis else (0, 0) for a in (0, 1)]
            wide = np.pad(wide, pad, **(mode if n > 1 else {"mode": "edge"}))
    return wide


def mesh_value(mesh, shape, x, y, cubic, wide=None):
    """Catmull-Rom interpolation of cell centres, straight on beyond them; or linear and level."""
    rows, columns = mesh.shape

    def weights(t):
        if not cubic:
            return np.array([0, 1 - t, t, 0])
        return 0.5 * np.array([
            -t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2
        ])

    gy, gx = (y + 0.5) * rows / shape[0] - 0.5, (x + 0.5) * columns / shape[1] - 0.5
    j, i = int(np.floor(gy)), int(np.floor(gx))
    part = (extended(mesh, cubic) if wide is None else wide)[j + 3 : j + 7, i + 3 : i + 7]
    return weights(gy - j) @ part @ weights(gx - i)


def mesh_image(mesh, shape, cubic):
    """The mesh on every pixel."""
    wide = extended(mesh, cubic)
    return np.array([
        [mesh_value(mesh, shape, x, y, cubic, wide) for x in range(shape[1])]
        for y in range(shape[0])
    ])


# ------------------------------------------------------------------------------------ detection
def matched_filter(data, mask, level, sigma, kernel):
    """Normalised pixels and their separable convolution; outside the frame is blank sky."""
    z = (np.asarray(data, float) - level) / sigma
    z[~np.isfinite(z) | mask] = 0
    kernel = np.asarray(kernel, float)
    rows = convolve1d(z, kernel, axis=1, mode="constant")
    return z, convolve1d(rows, kernel, axis=0, mode="constant")


def peaks(z, smooth, sigma, kernel, threshold, ring, gain, contrast, scan=0.75, least=1.4):
    """The significant local maxima of a filtered image, as the compiled loop lists them."""
    ny, nx = smooth.shape
    light = 1 / (np.sum(np.asarray(kernel, float)) ** 2 * gain)
    out = []
    for y in range(1, ny - 1):
        for x in range(1, nx - 1):
            s = smooth[y, x]
            box = smooth[y - 1 : y + 2, x - 1 : x + 2]
            before = [box[1, 0], box[0, 1], box[0, 0], box[0, 2]]
            after = [box[1, 2], box[2, 1], box[2, 2], box[2, 0]]
            if s <= scan * threshold or s <= max(before) or s < max(after):
                continue
            top, place = s, []
            for low, high in ((box[1, 0], box[1, 2]), (box[0, 1], box[2, 1])):
                bend, slope = 2 * s - low - high, 0.5 * (high - low)
                place.append(slope / bend if bend > 0 else 0.0)
                top += 0.5 * slope**2 / bend if bend > 0 else 0.0
            if top <= threshold:
                continue
            rows, columns = np.clip(y + ring[1], 0, ny - 1), np.clip(x + ring[0], 0, nx - 1)
            around = np.sort(smooth[rows, columns])
            base, scatter = around[len(around) // 2], 1.0
            if base < least:
                base = max(2 * base - least, 0)
            else:
                scatter = 1.4826 * np.sort(np.abs(around - base))[len(around) // 2]
            noise = 1.0
            if base > 0:
                noise = np.sqrt(max(min(1 + base * light / sigma[y, x], scatter**2), 1))
            if top - base < threshold * noise or top - base < contrast * base:
                continue
            spike = z[y - 1 : y + 2, x - 1 : x + 2].max()
            out.append([x + place[0], y + place[1], top, (top - base) / noise, base, spike])
    return np.array(out).reshape(-1, 6)


# ---------------------------------------------------------------------------------- measurement
def windowed(data, x, y, background, window):
    """The fixed point of the first moment under a Gaussian window, and second moments there."""
    ny, nx = data.shape
    yy, xx = np.mgrid[:ny, :nx]
    v = data - background
    for _ in range(200):
        r2 = (xx - x) ** 2 + (yy - y) ** 2
        w = np.where(r2 <= 16 * window**2, np.exp(-0.5 * r2 / window**2), 0) * v
        dx, dy = np.sum(w * (xx - x)) / w.sum(), np.sum(w * (yy - y)) / w.sum()
        x, y = x + 2 * dx, y + 2 * dy
        if np.hypot(dx, dy) < 1e-12:
            break
    xx, yy = xx - x, yy - y
    return x, y, [np.sum(w * a * b) / w.sum() for a, b in ((xx, xx), (yy, yy), (xx, yy))]


def unwindowed(mxx, myy, mxy, w2):
    """Moments of a Gaussian from those under a window: inverse matrices subtract."""
    inverse = np.linalg.inv(np.array([[mxx, mxy], [mxy, myy]])) - np.eye(2) / w2
    m = np.linalg.inv(inverse)
    return m[0, 0], m[1, 1], m[0, 1]


# ------------------------------------------------------------------------------------- the PSF
def spline_basis(pixels, center, spacing, nodes):
    """Values (pixel, node) of the cubic B-splines, and their derivatives by `center`."""
    g = (np.asarray(pixels, float) - center) / spacing + 0.5 * (nodes - 1)
    value, slope = np.zeros((2, len(g), nodes))
    one = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    for n in range(nodes):
        value[:, n] = np.nan_to_num(one(g - n))
        slope[:, n] = -np.nan_to_num(one.derivative()(g - n)) / spacing
    inside = (np.floor(g) >= 1) & (np.floor(g) + 2 < nodes)
    return value * inside[:, None], slope * inside[:, None]


def stamp(nodes, spacing, x, y, x0, y0, ny, nx):
    """The PSF and its derivatives by x and y on pixels."""
    m = len(nodes)
    bx, dx = spline_basis(np.arange(x0, x0 + nx), x, spacing, m)
    by, dy = spline_basis(np.arange(y0, y0 + ny), y, spacing, m)
    return by @ nodes @ bx.T, by @ nodes @ dx.T, dy @ nodes @ bx.T


def design(nodes, spacing, x, y, x0, y0, side):
    """The matrix (pixel, node) of a star's stamp."""
    bx, _ = spline_basis(np.arange(x0, x0 + side), x, spacing, nodes)
    by, _ = spline_basis(np.arange(y0, y0 + side), y, spacing, nodes)
    return np.einsum("jn,im->jinm", by, bx).reshape(side * side, nodes * nodes)


def dense_of_stencil(stencil):
    """The symmetric matrix that a stencil of 25 layers stands for."""
    m = stencil.shape[1]
    out = np.zeros((m, m, m, m))
    offsets = [(0, dx) for dx in range(4)] + [(dy, dx) for dy in (1, 2, 3) for dx in range(-3, 4)]
    for layer, (dy, dx) in zip(stencil, offsets):
        for j in range(m - dy):
            for i in range(max(0, -dx), min(m, m - dx)):
                out[j, i, j + dy, i + dx] = out[j + dy, i + dx, j, i] = layer[j, i]
    return out.reshape(m * m, m * m)


# ------------------------------------------------------------------------- photometry at places
def disk_areas(shape, x, y, radius, sub=40):
    """The part of every pixel inside a disk, by sub-pixels."""
    out = np.zeros(shape)
    at = (np.arange(sub) + 0.5) / sub - 0.5
    for j in range(max(int(y - radius) - 1, 0), min(int(y + radius) + 3, shape[0])):
        for i in range(max(int(x - radius) - 1, 0), min(int(x + radius) + 3, shape[1])):
            r2 = (i + at[None, :] - x) ** 2 + (j + at[:, None] - y) ** 2
            out[j, i] = np.mean(r2 < radius**2)
    return out


def aperture_sum(data, unusable, level, sigma, gain, saturation, x, y, radius, mirror):
    """Sum, variance, part not seen, and flags of a disk, on a frame with a wide dark rim."""
    rim = 12
    wide = np.pad(np.asarray(data, float), rim, constant_values=np.nan)
    hidden = np.pad(unusable, rim, constant_values=False) | ~np.isfinite(wide)
    outside = np.pad(np.zeros(data.shape, bool), rim, constant_values=True)
    area = disk_areas(wide.shape, x + rim, y + rim, radius)
    flags, total, noise, lost, failed = 0, 0.0, 0.0, 0.0, False
    for j, i in np.argwhere(area > 0):
        row, column = j, i
        if hidden[j, i]:
            flags |= 2 if outside[j, i] else 4
            lost += area[j, i]
            row, column = round(2 * (y + rim) - j), round(2 * (x + rim) - i)
            if not mirror or hidden[row, column]:
                failed = True
                continue
        v = wide[row, column]
        flags |= int(v >= saturation)
        total += area[j, i] * (v - level)
        noise += area[j, i] * (sigma**2 + max(v - level, 0) / gain)
    if failed:
        total = noise = np.nan
    return [total, noise, lost / (np.pi * radius**2)], flags


def ring_level(data, unusable, x, y, inner, outer, clip):
    """Clipped median of a ring, its error, its deviation and its pixels."""
    yy, xx = np.mgrid[: data.shape[0], : data.shape[1]]
    r = np.hypot(xx - x, yy - y)
    values = data[(r >= inner) & (r < outer) & ~unusable & np.isfinite(data)].astype(float)
    while True:
        kept = values[np.abs(values - np.median(values)) <= clip * values.std()]
        if len(kept) == len(values):
            break
        values = kept
    error = values.std() * np.sqrt(np.pi / 2 / len(values))
    return [np.median(values), error, values.std(), len(values)]
