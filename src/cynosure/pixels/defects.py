"""Flag defects: saturated stars, cosmic rays and hot pixels, trails.

A saturated star is a plateau with bleeding columns, on which noise makes many maxima; its
connected saturated pixels become one source, at the middle of their thickest part. Cosmic rays
and hot pixels are sharper than the PSF. Satellite trails, bleeding and bad columns are chains of
detections that are elongated along the chain.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cynosure.data.tables import SourceFlag
from cynosure.pixels import peakkernels

__all__ = ["flags_of", "flag_trails", "in_rows", "merge_saturated", "spike_contrast"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Log-odds by which a single-pixel spike must describe a source better than a star does: 2 is 7 : 1,
# since stars are far more frequent.
SPIKE_ODDS = 2.0

# A source narrower than this part of the FWHM of the stars, less twice its error, is not a star;
# the width of a star of S/N s, by its moments, scatters by about 1.3 / s.
NARROW = 0.68
WIDTH_ERROR = 1.3

# Members of a trail: their axis ratio is at most this part of that of the stars, the next member
# lies within this many FWHM, and there are at least this many. Five aligned elongated sources are
# rare by chance even in rich fields.
TRAIL_AXIS_RATIO = 0.55
TRAIL_LINK_FWHM = 12.0
TRAIL_LEAST = 5

# Pieces of a trail in a poor field: ellipticity above LONG, with others within ROW_FWHM. With more
# than RICH such sources, alignments by chance are frequent, and none is flagged.
LONG = 0.4
ROW_FWHM = 8.0
RICH = 50_000

# The thickest part of larger blobs is not searched; it limits the memory.
LARGEST_BLOB_PX = 1_000_000


# --------------------------------------------------------------------------------- saturation
def merge_saturated(table: Floats, runs: NDArray[np.int64], fwhm_px: float) -> tuple[Floats, Bools]:
    """Merge all peaks on, or next to, connected saturated pixels into one.

    Parameters
    ----------
    table : (n, 6) ndarray
        Peaks as from :func:`cynosure.pixels.peakkernels.detect_rows`.
    runs : (m, 3) ndarray of int
        Runs of saturated pixels: y, first x, last x + 1, in the order of y and x.
    fwhm_px : float
        Width of the stars; peaks within 0.8 of it from a saturated pixel are merged.

    Returns
    -------
    table : (k, 6) ndarray
        The brightest peak of each blob, moved to the middle of its thickest part, and the rest.
    streak : (k,) ndarray of bool
        Blobs much longer than thick: trails.
    """
    streak = np.zeros(len(table), dtype=bool)
    if len(runs) == 0 or len(table) == 0:
        return table, streak
    label = np.empty(len(runs), dtype=np.int64)
    peakkernels.join_runs(runs, label)
    blob = np.empty(len(table), dtype=np.int64)
    peakkernels.nearest_runs(
        runs, label, np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1]),
        max(1.5, 0.8 * fwhm_px), blob,
    )
    on = np.flatnonzero(blob >= 0)
    order = on[np.lexsort((-table[on, 2], blob[on]))]
    first = np.flatnonzero(np.r_[True, np.diff(blob[order]) != 0]) if len(order) else order
    keep = np.ones(len(table), dtype=bool)
    keep[on] = False
    keep[order[first]] = True
    out = table.copy()
    by_blob = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[by_blob], blob[order[first]], side="left")
    ends = np.searchsorted(label[by_blob], blob[order[first]], side="right")
    for k, start, end in zip(order[first], starts, ends):
        mine = runs[by_blob[start:end]]
        if np.sum(mine[:, 2] - mine[:, 1]) > 3:
            x, y, thick, streak[k] = _thickest(mine)
            if thick >= 5:  # a thinner blob has no plateau, and its peak is not moved
                out[k, 0], out[k, 1] = x, y
    return out[keep], streak[keep]


def _thickest(runs: NDArray[np.int64]) -> tuple[float, float, int, bool]:
    """Return the middle of the thickest part of a blob, its thickness, and whether it is a streak.

    A streak is more than 15 times as long as thick; the bleeding of a star is shorter than that.
    """
    y0, y1, x0, x1 = runs[:, 0].min(), runs[:, 0].max() + 1, runs[:, 1].min(), runs[:, 2].max()
    width = (runs[:, 2] - runs[:, 1]).astype(float)
    length = float(np.hypot(y1 - y0, x1 - x0))
    if (y1 - y0) * (x1 - x0) > LARGEST_BLOB_PX:
        thick = int(np.sum(width) / length) + 1
        weight = width**2 / np.sum(width**2)
        x = np.sum(weight * 0.5 * (runs[:, 1] + runs[:, 2] - 1))
        return float(x), float(np.sum(weight * runs[:, 0])), thick, length > 15.0 * thick
    image = np.zeros((y1 - y0 + 2, x1 - x0 + 2), dtype=bool)
    for y, a, b in runs:
        image[y - y0 + 1, a - x0 + 1 : b - x0 + 1] = True
    layers, left = 0, image
    while left.any():  # erode it layer by layer
        image, layers = left, layers + 1
        left = image.copy()
        left[1:-1, 1:-1] &= image[:-2, 1:-1] & image[2:, 1:-1] & image[1:-1, :-2] & image[1:-1, 2:]
    yy, xx = np.nonzero(image)
    x, y, thick = float(xx.mean() + x0 - 1), float(yy.mean() + y0 - 1), 2 * layers - 1
    return x, y, thick, length > 15.0 * thick


# ------------------------------------------------------------------------------------- spikes
def spike_contrast(kernel: NDArray[np.float32]) -> float:
    """Return the value of a single bright pixel in units of its matched-filter peak.

    The response of the filter of unit norm to one pixel of value 1 is k_0^2, with ``kernel`` the
    one-dimensional k.
    """
    return float(1.0 / kernel[len(kernel) // 2] ** 2)


def flag_spikes(sources: NDArray[np.void], fwhm_px: float) -> Bools:
    """Say which sources are sharper than a star: hot pixels and cosmic rays."""
    spike = sources["sharpness"] > SPIKE_ODDS
    error = WIDTH_ERROR / np.maximum(sources["snr"], 1.0)
    with np.errstate(invalid="ignore"):
        narrow = sources["fwhm_px"] < (NARROW - 2.0 * error) * fwhm_px
    return spike | narrow


# ------------------------------------------------------------------------------------- trails
def flag_trails(sources: NDArray[np.void], fwhm_px: float) -> Bools:
    """Say which sources lie on a trail: a chain of elongated sources along their long axes.

    Sources more elongated than the stars are linked where each lies on the axis of the other;
    chains of `TRAIL_LEAST` or more are trails, and all sources on them, between their ends, are
    flagged. In a poor field the pieces of a trail may outnumber the stars, so that the typical
    elongation is theirs; those of :func:`in_rows` count too.
    """
    n = len(sources)
    out = in_rows(sources, fwhm_px)
    with np.errstate(invalid="ignore"):
        axis_ratio = 1.0 - sources["ellipticity"]
        star = (sources["snr"] > 15) & (axis_ratio > 0)
        # The stars are the rounder sources: the 0.8 quantile of the axis ratio is theirs even
        # where most sources are pieces of a trail.
        typical = float(np.quantile(axis_ratio[star], 0.8)) if star.sum() > 20 else 1.0
        long = np.flatnonzero((axis_ratio < TRAIL_AXIS_RATIO * typical) | out)
    if len(long) < TRAIL_LEAST or n > RICH:
        return out
    place = np.column_stack([sources["x"], sources["y"]])
    pairs = _aligned(place[long], sources["theta_deg"][long], TRAIL_LINK_FWHM * fwhm_px, fwhm_px)
    label = np.empty(len(long), dtype=np.int64)
    peakkernels.join_pairs(pairs, label)
    for name in np.flatnonzero(np.bincount(label) >= TRAIL_LEAST):
        _flag_along(place, long[label == name], fwhm_px, out)
    return out


def in_rows(sources: NDArray[np.void], fwhm_px: float) -> Bools:
    """Say which sources are elongated and have three more such sources along their axis.

    The criterion does not depend on the typical star. In a rich field (more than `RICH`) chance
    alignments are frequent, and none is flagged.
    """
    out = np.zeros(len(sources), dtype=bool)
    with np.errstate(invalid="ignore"):
        long = np.flatnonzero(sources["ellipticity"] > LONG)
    if not 4 <= len(long) <= RICH:
        return out
    place = np.column_stack([sources["x"][long], sources["y"][long]])
    pairs = _aligned(place, sources["theta_deg"][long], ROW_FWHM * fwhm_px, fwhm_px)
    out[long[np.bincount(pairs.ravel(), minlength=len(long)) >= 3]] = True
    return out


def _aligned(
    place: Floats, theta_deg: Floats, reach_px: float, aside_px: float
) -> NDArray[np.int64]:
    """Return the pairs (m, 2) of positions, each of which lies on the axis of the other."""
    from scipy.spatial import cKDTree

    pairs = cKDTree(place).query_pairs(reach_px, output_type="ndarray").astype(np.int64)
    step = place[pairs[:, 1]] - place[pairs[:, 0]]
    theta = np.radians(theta_deg)
    keep = np.ones(len(pairs), dtype=bool)
    for end in (0, 1):
        angle = theta[pairs[:, end]]
        keep &= np.abs(step[:, 0] * np.sin(angle) - step[:, 1] * np.cos(angle)) < aside_px
    return pairs[keep]


def _flag_along(place: Floats, members: NDArray[np.int64], fwhm_px: float, out: Bools) -> None:
    """Flag the members of a chain and, if it is straight, all sources on it and its extension."""
    centre = place[members].mean(axis=0)
    _, _, axes = np.linalg.svd(place[members] - centre, full_matrices=False)
    along, across = (place[members] - centre) @ axes[0], (place[members] - centre) @ axes[1]
    if np.ptp(along) < 6.0 * fwhm_px:  # a blend, not a trail
        return
    out[members] = True
    if np.sqrt(np.mean(across**2)) > fwhm_px:
        return
    near = np.flatnonzero(np.abs((place - centre) @ axes[1]) < 1.5 * fwhm_px)
    near = near[np.argsort((place[near] - centre) @ axes[0], kind="stable")]
    at = (place[near] - centre) @ axes[0]
    # Extend it at either end as long as the next source is nearer than expected by chance: a fifth
    # of the mean distance of sources in a strip of three FWHM, but at least three FWHM.
    size = np.ptp(place[:, 0]) * np.ptp(place[:, 1])
    gap = min(TRAIL_LINK_FWHM * fwhm_px, 0.2 * size / (3.0 * fwhm_px * len(place)))
    gap = max(gap, 3.0 * fwhm_px)
    breaks = np.r_[True, np.diff(at) > gap]
    piece = np.cumsum(breaks)
    inside = (at >= along.min()) & (at <= along.max())
    out[near[np.isin(piece, piece[inside]) | inside]] = True


def flags_of(sources: NDArray[np.void], fwhm_px: float) -> NDArray[np.int32]:
    """Return the flags of sources whose shape differs from that of the stars.

    TRAIL also for a single source with an axis ratio below 0.45 of the stars', EXTENDED for one
    broader than 1.6 FWHM, both at S/N above 15, where the shape is measured to 10 %.
    """
    flags = np.zeros(len(sources), dtype=np.int32)
    flags[flag_spikes(sources, fwhm_px)] |= SourceFlag.COSMIC
    flags[flag_trails(sources, fwhm_px)] |= SourceFlag.TRAIL
    bright = (sources["snr"] > 15) & (sources["flags"] & SourceFlag.SATURATED == 0)
    with np.errstate(invalid="ignore"):
        axis = 1.0 - sources["ellipticity"]
        typical = float(np.nanmedian(axis[bright])) if np.isfinite(axis[bright]).any() else 1.0
        flags[bright & (axis < 0.45 * typical)] |= SourceFlag.TRAIL
        flags[bright & (sources["fwhm_px"] > 1.6 * fwhm_px)] |= SourceFlag.EXTENDED
    return flags
