"""Measure the sources of a frame: background, detection, PSF, fits."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.frame import Frame, check_pixels
from cynosure.data.tables import SourceFlag
from cynosure.ground.errors import CynosureError, NotEnoughStars
from cynosure.pixels.background import Background, estimate_background
from cynosure.pixels.detect import detect_sources, find_saturation
from cynosure.pixels.measure import fit_psf
from cynosure.pixels.mosaic import NOISE_FACTOR, is_mosaic, to_luminance
from cynosure.pixels.psf import Psf, build_psf

__all__ = ["Extraction", "extract_sources", "load_kernels"]

SettingsMap = Mapping[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Extraction:
    """What the pixels of a frame gave.

    Attributes
    ----------
    frame : Frame
        With its saturation level filled in.
    background : Background
    psf : Psf or None
        None where there were too few stars; positions are then windowed centroids.
    sources : (n,) structured array
        Schema ``SOURCES``.
    notes : tuple of str
    seconds : dict
        By step.
    """

    frame: Frame
    background: Background
    psf: Psf | None
    sources: NDArray[np.void]
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


def extract_sources(
    frame: Frame, settings: SettingsMap, *, threads: int = 1,
    log: Callable[[str], None] = lambda text: None,
) -> Extraction:
    """Find and measure the sources of a frame.

    Parameters
    ----------
    frame : Frame
    settings : mapping
        Sections ``background``, ``detect``, ``psf`` and ``measure``.
    threads : int
        Threads that share the work; the result does not depend on it.
    log : callable
        Told each step as it begins.

    Raises
    ------
    ImageError
        If the pixels hold no sky.
    """
    check_pixels(frame)
    clock = _Clock()
    frame = frame.replaced(saturation_adu=find_saturation(frame))
    notes = []
    mosaic = is_mosaic(frame)
    if mosaic:
        notes.append("the pixels are a Bayer mosaic: measured in the sum of its colours")
        frame = to_luminance(frame)
    log("background")
    background = estimate_background(frame, threads=threads, **settings["background"])
    if mosaic:
        sigma = background.sigma * np.float32(NOISE_FACTOR)
        background = dataclasses.replace(background, sigma=sigma)
    clock.lap("background")
    log("detection")
    sources = detect_sources(frame, background, threads=threads, **settings["detect"])
    clock.lap("detect")
    psf = None
    try:
        log("PSF")
        psf = build_psf(frame, background, sources, threads=threads, **settings["psf"])
        clock.lap("psf")
        _check_psf(psf, sources, frame.name)
        log(f"fit of {len(sources)} sources")
        sources = fit_psf(frame, background, psf, sources, threads=threads, **settings["measure"])
        clock.lap("measure")
    except NotEnoughStars as error:
        notes.append(f"{error}: positions are windowed centroids")
        psf = None
    return Extraction(frame, background, psf, sources, tuple(notes), clock.seconds)


def load_kernels(settings: SettingsMap) -> None:
    """Load the compiled kernels by measuring a small made-up field.

    It takes half a second of a single image's solve, and can be had while the image is read,
    which holds no lock.
    """
    rng = np.random.default_rng(0)
    side, n, sigma = 128, 16, 1.0
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    data = rng.normal(0.0, 1.0, (side, side)).astype(np.float32)
    grid = np.linspace(16.0, side - 16.0, round(n**0.5))
    for x, y in rng.uniform(-3, 3, (n, 2)) + np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2):
        data += 300.0 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2.0 * sigma**2))
    small = {**settings["psf"], "degree": 0, "rounds": 1, "radius_fwhm": 1.5}
    with contextlib.suppress(CynosureError):
        extract_sources(Frame(data, saturation_adu=1e4), {**settings, "psf": small})


# Largest ratio of the width of the PSF to the median width of the sources, either way. Seeing over
# a frame and blends change the median by tens of percent, trails and spikes by several times.
MAX_WIDTH_RATIO = 2.5


def _check_psf(psf: Psf, sources: NDArray[np.void], name: str) -> None:
    """Refuse a PSF that was built from trails or spikes, where these outnumber the stars."""
    good = (sources["flags"] & SourceFlag.unusable()) == 0
    width = sources["fwhm_px"][good & (sources["snr"] > 10.0) & (sources["fwhm_px"] > 0.4)]
    typical = float(np.median(width)) if len(width) else psf.fwhm_px
    if not typical / MAX_WIDTH_RATIO < psf.fwhm_px < typical * MAX_WIDTH_RATIO:
        raise NotEnoughStars(
            "{image}: the PSF is {fwhm:.3g} px wide and the sources {typical:.3g} px: it is not of "
            "stars", image=name, fwhm=psf.fwhm_px, typical=typical, n_sources=len(width),
        )


class _Clock:
    """Wall-clock seconds between laps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
