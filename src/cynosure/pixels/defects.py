"""What is not a star, or not only: saturated blobs, spikes of a pixel, trails.

A saturated star is a plateau with bleeding columns, on which noise makes many maxima; its
connected saturated pixels are one source, at the middle of their thickest part. Cosmic rays
and hot pixels are sharper than the PSF. Satellite trails, bleeding and bad columns are chains of
detections that are long in the direction of the chain.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cynosure.data.tables import SourceFlag
from cynosure.pixels import peakkernels

__all__ = ["flags_of", "flag_trails", "in_rows", "merge_saturated", "spike_contrast"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Odds (logarithm) by which a spike of one pixel must be the better description of a source.
SPIKE_ODDS = 2.0

# A source this much narrower than the stars, its error considered, is none; the moments of a
# star of S/N s scatter by about 1.3 / s of its width.
NARROW = 0.68
WIDTH_ERROR = 1.3

# Members of a trail: axis ratio at most this part of the stars'; no farther from the next one than
# this; and so many at least.
TRAIL_AXIS_RATIO = 0.55
TRAIL_LINK_FWHM = 12.0
TRAIL_LEAST = 5

# A piece of a trail is at least this elongated, and others lie within so many FWHM of it.
LONG = 0.4
ROW_FWHM = 8.0
RICH = 50_000

# Larger blobs than this are not looked at for their thickest part.
LARGEST_BLOB_PX = 1_000_000


# --------------------------------------------------------------------------------- saturation
def merge_saturated(table: Floats, runs: NDArray[np.int64], fwhm_px: float) -> tuple[Floats, Bools]:
    """Make one peak of all those on, or at the rim of, connected saturated pixels.

    Parameters
    ----------
    table : (n, 6) ndarray
        Peaks as from :func:`cynosure.pixels.peakkernels.detect_rows`.
    runs : (m, 3) ndarray of int
        Runs of saturated pixels: y, first x, last x + 1, in the order of y and x.
    fwhm_px : float
        Width of the stars; peaks as near as 0.8 of it to a saturated pixel belong to it.

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
            if thick >= 5:  # else there is no plateau, and the peak is where it was
                out[k, 0], out[k, 1] = x, y
    return out[keep], streak[keep]


def _thickest(runs: NDArray[np.int64]) -> tuple[float, float, int, bool]:
    """Return the middle of the thickest part of a blob, how thick, and if it is long and thin."""
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
    while left.any():  # peel it
        image, layers = left, layers + 1
        left = image.copy()
        left[1:-1, 1:-1] &= image[:-2, 1:-1] & image[2:, 1:-1] & image[1:-1, :-2] & image[1:-1, 2:]
    yy, xx = np.nonzero(image)
    x, y, thick = float(xx.mean() + x0 - 1), float(yy.mean() + y0 - 1), 2 * layers - 1
    return x, y, thick, length > 15.0 * thick


# ------------------------------------------------------------------------------------- spikes
def spike_contrast(kernel: NDArray[np.float32]) -> float:
    """Return the largest pixel of a lone spike in units of its matched-filter peak.

    The filter of unit norm answers to a pixel of 1 with k_0^2 where ``kernel`` is the
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
    """Say which sources lie on a trail: long ones, each on the long axis of the next.

    Sources longer than the stars are linked where each lies on the axis of the other; chains of
    five or more are trails, and whatever lies on them, between their ends, is flagged. In a poor
    field the pieces of a trail may outnumber the stars; so those of :func:`in_rows` count too.
    """
    n = len(sources)
    out = in_rows(sources, fwhm_px)
    with np.errstate(invalid="ignore"):
        axis_ratio = 1.0 - sources["ellipticity"]
        star = (sources["snr"] > 15) & (axis_ratio > 0)
        # Pieces of a trail are long: the rounder ones are the stars.
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
    """Say which sources are long and have three such more along their axis, near by.

    They are told by each other, not by the typical star. In a rich field they are few among
    many, which stand in rows by chance, and nothing is done.
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
    """Return the pairs (m, 2) of places each of which lies on the axis of the other."""
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
    """Flag the members of a chain, and, if it is straight, all that lies on it and goes on."""
    centre = place[members].mean(axis=0)
    _, _, axes = np.linalg.svd(place[members] - centre, full_matrices=False)
    along, across = (place[members] - centre) @ axes[0], (place[members] - centre) @ axes[1]
    if np.ptp(along) < 6.0 * fwhm_px:
        return
    out[members] = True
    if np.sqrt(np.mean(across**2)) > fwhm_px:
        return
    near = np.flatnonzero(np.abs((place - centre) @ axes[1]) < 1.5 * fwhm_px)
    near = near[np.argsort((place[near] - centre) @ axes[0], kind="stable")]
    at = (place[near] - centre) @ axes[0]
    # On from either end as long as the next one is nearer than stars would be by chance.
    size = np.ptp(place[:, 0]) * np.ptp(place[:, 1])
    gap = min(TRAIL_LINK_FWHM * fwhm_px, 0.2 * size / (3.0 * fwhm_px * len(place)))
    gap = max(gap, 3.0 * fwhm_px)
    breaks = np.r_[True, np.diff(at) > gap]
    piece = np.cumsum(breaks)
    inside = (at >= along.min()) & (at <= along.max())
    out[near[np.isin(piece, piece[inside]) | inside]] = True


def flags_of(sources: NDArray[np.void], fwhm_px: float) -> NDArray[np.int32]:
    """Return the flags of what is shaped unlike the stars."""
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
