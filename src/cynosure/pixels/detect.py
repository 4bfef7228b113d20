"""Find the sources of a frame.

The detection image is the matched filter of a star on sky noise,

    S(x) = sum_i k_i D_{x+i} / sqrt(sum_i k_i^2),    D = (data - background) / sigma,

with a Gaussian k of the width of the stars, measured first on a sample of them (Zackay & Ofek
2017, ApJ 836, 187). A source is a local maximum of S above the threshold. On the wing of a bright
star, where level and photon noise are higher, the maximum is measured above the median of a ring
around it and compared with the noise there, so that noise on haloes and spikes is not detected.

Each source then gets a windowed centroid and moments, an aperture sum and flags; see
:data:`cynosure.data.tables.SOURCES`. The frame is worked through in strips that fit the
processor's cache, so nothing the size of the frame is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from cynosure.data.frame import Frame
from cynosure.data.mask import bits_within, mask_dictionary
from cynosure.data.tables import SOURCES, SourceFlag
from cynosure.ground.numeric import clip
from cynosure.ground.settings import Range, Unit
from cynosure.ground.threads import share
from cynosure.pixels import kernels, peakkernels
from cynosure.pixels.background import Background, plain_pixels
from cynosure.pixels.defects import flags_of, in_rows, merge_saturated, spike_contrast

__all__ = ["detect_sources", "find_saturation", "measure_fwhm"]

FWHM_TO_SIGMA = 1.0 / math.sqrt(8.0 * math.log(2.0))

# Rows of a strip: few enough for the processor's cache, many against the margin of a kernel.
STRIP_ROWS = 512
# Rows of each of the (about twelve) strips on which the width of the stars is measured.
SAMPLE_ROWS = 96

# Width of the stars (px) where the image shows none: that of a well-sampled image.
DEFAULT_FWHM_PX = 2.5

# Least width (px) of the window of the moments. Under a narrower one the width of a star depends on
# its position within the pixel.
LEAST_WINDOW_PX = 2.0

# Radius of the ring. The matched-filter image of a star is sqrt(2) broader than the star; at 1.6
# FWHM it has fallen to 3 %, so that the ring measures the surroundings and not the star.
RING_FWHM = 1.6

# Least height of a source above the ring, as a part of the ring's level: spikes, ghosts and an
# imperfect flat are real structure of about a per cent of a wing's brightness.
WING_CONTRAST = 0.02


def detect_sources(
    frame: Frame,
    background: Background,
    *,
    threshold_sigma: Annotated[float, Unit("sigma"), Range(1, 1000)] = 5.0,
    fwhm_px: Annotated[float | None, Unit("px"), Range(0.5, 100)] = None,
    aper_radius_px: Annotated[float | None, Unit("px"), Range(0.5, 200)] = None,
    max_sources: Annotated[int, Unit("sources"), Range(1, 100_000_000)] = 2_000_000,
    threads: int = 1,
) -> NDArray[np.void]:
    """Detect and measure the sources of a frame.

    Parameters
    ----------
    frame : Frame
        The pixels.
    background : Background
        Level and noise of the sky.
    threshold_sigma : float
        Least significance of the matched filter. Pure noise gives about one false peak in
        1.6 million pixels at 4.5 for stars of 2.2 px.
    fwhm_px : float, optional
        Width of the stars; measured on the image where it is not given.
    aper_radius_px : float, optional
        Radius of the aperture sums; 1.15 FWHM where it is not given.
    max_sources : int
        Only the brightest this many are measured.
    threads : int
        Threads that share the work; the result does not depend on it.

    Returns
    -------
    sources : (n,) structured array
        Schema ``SOURCES``, brightest first. Fluxes are in electrons.
    """
    fwhm = measure_fwhm(frame, background) if fwhm_px is None else float(fwhm_px)
    found = _peaks(frame, background, fwhm, threshold_sigma, threads)
    peaks, streak = merge_saturated(found.table, found.runs, fwhm)
    order = np.lexsort((peaks[:, 0], peaks[:, 1], -peaks[:, 2]))[:max_sources]
    radius = 1.15 * fwhm if aper_radius_px is None else float(aper_radius_px)
    sources = _measure(frame, background, peaks[order], fwhm, radius, threads)
    note_mask_bits(frame, sources, radius)
    sources["flags"] |= flags_of(sources, fwhm)
    sources["flags"][streak[order]] |= SourceFlag.TRAIL
    return sources


def gaussian_kernel(fwhm_px: float) -> NDArray[np.float32]:
    """Return a one-dimensional Gaussian star on pixels, of unit norm (sum of squares).

    `fwhm_px` is the width after integration over the pixels, whose variance is 1/12 px^2.
    """
    sigma = math.sqrt(max((fwhm_px * FWHM_TO_SIGMA) ** 2 - 1.0 / 12.0, 0.03))
    half = max(1, math.ceil(3.0 * sigma)) | 1  # odd: the loops take its values in pairs
    edges = (np.arange(-half, half + 2) - 0.5) / (sigma * math.sqrt(2.0))
    kernel = np.diff([math.erf(e) for e in edges])
    return (kernel / np.sqrt(np.sum(kernel**2))).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Peaks:
    """The peaks of the matched filter, and the runs of saturated pixels (y, x, x + 1)."""

    table: NDArray[np.float64]
    runs: NDArray[np.int64]


def _peaks(
    frame: Frame, background: Background, fwhm: float, threshold: float, threads: int = 1,
    strips: Iterable[tuple[int, int]] | None = None,
) -> _Peaks:
    """Return the peaks of the matched filter: x, y, S, rise, ring level, largest pixel."""
    ny, nx = frame.shape
    kernel = gaussian_kernel(fwhm)
    radius = max(2.0, RING_FWHM * fwhm)
    angle = 2.0 * np.pi * np.arange(24) / 24
    ring_x = np.rint(radius * np.cos(angle)).astype(np.int64)
    ring_y = np.rint(radius * np.sin(angle)).astype(np.int64)
    data, mask = plain_pixels(frame)

    def work(strip: tuple[int, int]) -> _Peaks:
        first, last = strip
        room, room_runs = max(64, (last - first) * nx // 200), 256
        while True:
            out, runs = np.empty((room, 6)), np.empty((room_runs, 3), dtype=np.int64)
            found, found_runs = peakkernels.detect_rows(
                data, mask, background.level, background.sigma, first, last, kernel,
                threshold, ring_x, ring_y, frame.gain_e_adu, WING_CONTRAST,
                frame.saturation_adu, out, runs,
            )
            if found <= room and found_runs <= room_runs:
                return _Peaks(out[:found], runs[:found_runs])
            room, room_runs = max(room, found), max(room_runs, found_runs)

    whole = [(y, min(y + STRIP_ROWS, ny)) for y in range(0, ny, STRIP_ROWS)]
    parts = share(work, whole if strips is None else strips, threads)
    return _Peaks(
        np.concatenate([p.table for p in parts]), np.concatenate([p.runs for p in parts])
    )


def _measure(
    frame: Frame, background: Background, peaks: NDArray[np.float64], fwhm: float,
    radius: float, threads: int,
) -> NDArray[np.void]:
    n = len(peaks)
    sources = SOURCES.empty(n)
    level = background.level_at(peaks[:, 0], peaks[:, 1])
    sigma = background.sigma_at(peaks[:, 0], peaks[:, 1])
    start = np.ascontiguousarray(peaks[:, :2])
    out = np.empty((n, 10))
    flags = np.zeros(n, dtype=np.int32)
    data, mask = plain_pixels(frame)
    gain = frame.gain_e_adu
    window = max(fwhm, LEAST_WINDOW_PX) * FWHM_TO_SIGMA

    def work(piece: slice) -> None:
        kernels.measure_sources(
            data, mask, level[piece], sigma[piece], gain, frame.saturation_adu, window,
            radius, start[piece], out[piece], flags[piece],
        )

    share(work, [slice(k, k + 4096) for k in range(0, n, 4096)], threads)
    sources["chip"] = frame.chip
    for k, name in enumerate(("x", "y", "x_err", "y_err", "flux_aper_e", "flux_aper_err_e")):
        sources[name] = out[:, k]
    for name in ("flux_aper_e", "flux_aper_err_e"):
        sources[name] *= gain
    sources["xy_corr"] = 0.0
    sources["flux_e"], sources["flux_err_e"] = sources["flux_aper_e"], sources["flux_aper_err_e"]
    sources["snr"], sources["peak_snr"] = peaks[:, 3], peaks[:, 2]
    sources["background_e"] = level * gain
    sources["sharpness"] = 0.5 * (peaks[:, 5] ** 2 - peaks[:, 2] ** 2)
    _shapes(sources, out[:, 6], out[:, 7], out[:, 8])
    sources["flags"] = flags
    edge = np.minimum.reduce([
        sources["x"], sources["y"], frame.shape[1] - 1 - sources["x"],
        frame.shape[0] - 1 - sources["y"],
    ])
    sources["flags"][edge < fwhm] |= SourceFlag.EDGE
    wing = peaks[:, 4] > peaks[:, 2] - peaks[:, 4]  # the ring's level exceeds its own light
    sources["flags"][wing] |= SourceFlag.NEAR_BRIGHT
    return sources


def note_mask_bits(frame: Frame, sources: NDArray[np.void], radius_px: float) -> None:
    """Write the bits of the frame's mask at the sources, with those of detected saturation."""
    around, center = bits_within(frame.mask, sources["x"], sources["y"], radius_px)
    seen = sources["flags"] & SourceFlag.SATURATED != 0
    around[seen] |= np.uint32(mask_dictionary()["saturated"])
    sources["mask_bits"], sources["mask_bits_center"] = around, center


def _shapes(
    sources: NDArray[np.void], mxx: NDArray[np.float64], myy: NDArray[np.float64],
    mxy: NDArray[np.float64],
) -> None:
    mean, half = 0.5 * (mxx + myy), 0.5 * (mxx - myy)
    root = np.hypot(half, mxy)
    major, minor = mean + root, np.maximum(mean - root, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        sources["fwhm_px"] = np.sqrt(np.maximum(mean, 0.0)) / FWHM_TO_SIGMA
        sources["ellipticity"] = 1.0 - np.sqrt(minor / np.where(major > 0, major, np.nan))
    sources["theta_deg"] = np.degrees(0.5 * np.arctan2(mxy, half))


# ------------------------------------------------------------------------- width, saturation
def measure_fwhm(frame: Frame, background: Background) -> float:
    """Measure the typical full width at half maximum of the stars, in pixels.

    Bright, unsaturated peaks of a sample of strips are measured under a window that is adapted
    to them in a few rounds; the median of the widths within the main peak of their distribution is
    returned. Single bright pixels and elongated sources are left out. An image without stars
    gives 2.5.
    """
    # S/N thresholds of the rounds: 15 for accurate widths, then 8 for images of few stars.
    ny = frame.shape[0]
    step = max(1, ny // (SAMPLE_ROWS * 12))
    strips = [(y, min(y + SAMPLE_ROWS, ny)) for y in range(0, ny, SAMPLE_ROWS * step)]
    fwhm = DEFAULT_FWHM_PX
    for threshold in (15.0, 15.0, 15.0, 15.0, 15.0, 8.0, 8.0):
        widths = _widths(frame, background, fwhm, threshold, strips)
        if len(widths) == 0:
            continue
        new = float(np.clip(_main_peak(widths), 0.9, 50.0))
        if abs(new - fwhm) < 0.05 * fwhm:
            return new
        # Under a window that is too small the width is underestimated, so the next one is wider.
        fwhm = min(new * 1.5, 50.0) if new > 1.5 * fwhm else new
    return fwhm


def _widths(
    frame: Frame, background: Background, fwhm: float, threshold: float,
    strips: list[tuple[int, int]],
) -> NDArray[np.float64]:
    """Return the widths of the bright round sources of some strips."""
    table = _peaks(frame, background, fwhm, threshold, strips=strips).table
    single = 0.85 * spike_contrast(gaussian_kernel(fwhm))
    table = table[table[:, 5] < single * table[:, 2]]
    order = np.argsort(-table[:, 2], kind="stable")[:2000]
    sources = _measure(frame, background, table[order], fwhm, 1.15 * fwhm, 1)
    usable = sources["flags"] & SourceFlag.unusable() == 0
    with np.errstate(invalid="ignore"):
        usable &= (sources["fwhm_px"] > 0.95) & ~in_rows(sources, fwhm)
    return sources["fwhm_px"][usable]


def _main_peak(values: NDArray[np.float64]) -> float:
    """Return the median of the values near their mode (within 20 %), by the half-sample mode.

    The narrowest half of the sorted values is taken repeatedly (Robertson & Cryer 1974), until 20
    are left.
    """
    values = np.sort(np.log(values))
    inner = values
    while len(inner) > 20:
        half = len(inner) // 2
        k = int(np.argmin(inner[half:] - inner[: len(inner) - half]))
        inner = inner[k : k + half + 1]
    near = values[np.abs(values - np.median(inner)) < 0.2]
    near = near[clip(near)]
    return float(np.exp(np.median(near if len(near) else inner)))


def find_saturation(frame: Frame) -> float:
    """Return the level at which pixels saturate, ADU.

    The value of the header or the instrument; without one, 0.99 times the largest value, if at
    least eight pixels exceed that and they are more than 0.4 of those above 0.7 of it (without
    saturation the number of pixels falls steeply with brightness). Otherwise infinity.
    """
    if np.isfinite(frame.saturation_adu):
        return frame.saturation_adu
    top = np.float32(-np.inf)
    for row in range(0, frame.shape[0], 1024):
        block = frame.data[row : row + 1024]
        finite = block[np.isfinite(block)] if not np.isfinite(block.max()) else block
        if finite.size:
            top = max(top, finite.max())
    if not np.isfinite(top) or top <= 0:
        return float("inf")
    # Amplifier gains and flat fields spread a digital ceiling by about a per cent.
    ceiling = np.float32(0.99) * top
    piled = sum(
        int(np.count_nonzero(frame.data[r : r + 1024] >= ceiling))
        for r in range(0, frame.shape[0], 1024)
    )
    above_half = sum(
        int(np.count_nonzero(frame.data[r : r + 1024] >= 0.7 * ceiling))
        for r in range(0, frame.shape[0], 1024)
    )
    return float(ceiling) if piled >= 8 and piled > 0.4 * above_half else float("inf")
