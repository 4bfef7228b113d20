"""Sources and PSF of an image without a catalogue: settings first, then images, tables out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cynosure.data.fits.reader import read
from cynosure.data.frame import Exposure, Frame
from cynosure.data.tables import SOURCES
from cynosure.ground.settings import Settings
from cynosure.pipelines.extract import Extraction, extract_sources
from cynosure.pipelines.run import settings_of
from cynosure.pixels.background import estimate_background
from cynosure.pixels.detect import detect_sources, find_saturation
from cynosure.pixels.psf import build_psf as psf_of_sources

if TYPE_CHECKING:
    from astropy.table import QTable

    from cynosure.pixels.psf import Psf

__all__ = ["SourceFinder", "build_psf"]

Sections = Settings | Mapping[str, Mapping[str, Any]] | None


class SourceFinder:
    """Finds the sources of images and fits the PSF to them.

    Parameters
    ----------
    settings : Settings or mapping, optional
        What differs from the built-in settings, by section: ``{"background": {...}}``.
    threads : int
        Threads that share the work; the result does not depend on it.
    **detect
        Settings of the section ``detect``, such as ``threshold_sigma``.

    Raises
    ------
    SettingError
        If a setting is not known or outside its range.

    Examples
    --------
    >>> find = SourceFinder(threshold_sigma=8.0)
    >>> sources = find("m81.fits")  # doctest: +SKIP
    >>> sources["x", "y", "flux_e"][:3]  # doctest: +SKIP
    """

    def __init__(self, settings: Sections = None, *, threads: int = 1, **detect: Any):
        given = settings_of(settings)
        self.settings = given.updated({"detect": detect}, "SourceFinder") if detect else given
        self.threads = threads

    def __call__(self, image: Any) -> QTable:
        """Return the sources of an image, all its chips, with units.

        Parameters
        ----------
        image : path, HDUList, image HDU, array, (data, header), CCDData, Exposure or Frame

        Returns
        -------
        QTable
            The columns of the schema ``SOURCES``; no rows where there is none.

        Raises
        ------
        ImageError
            If there is no image, or its pixels hold no sky.
        """
        tables = [part.sources for part in self.extract(image)]
        return SOURCES.to_qtable(np.concatenate([SOURCES.empty(), *tables]))

    def extract(self, image: Any) -> list[Extraction]:
        """Return for each chip its background, its PSF and its sources."""
        return [
            extract_sources(frame, self.settings, threads=self.threads) for frame in _frames(image)
        ]


def build_psf(image: Any, settings: Sections = None, *, threads: int = 1) -> Psf:
    """Build the PSF of an image from its own stars.

    Parameters
    ----------
    image : path, HDUList, image HDU, array, (data, header), CCDData, Exposure or Frame
        Of several chips the first is taken.
    settings : Settings or mapping, optional
        Sections ``background``, ``detect`` and ``psf``.
    threads : int
        Threads that share the work; the result does not depend on it.

    Returns
    -------
    Psf

    Raises
    ------
    ImageError
        If there is no image, or its pixels hold no sky.
    NotEnoughStars
        If too few stars could show it.
    """
    chosen = settings_of(settings)
    frame = _frames(image)[0]
    frame = frame.replaced(saturation_adu=find_saturation(frame))
    background = estimate_background(frame, threads=threads, **chosen["background"])
    sources = detect_sources(frame, background, threads=threads, **chosen["detect"])
    return psf_of_sources(frame, background, sources, threads=threads, **chosen["psf"])


def _frames(image: Any) -> tuple[Frame, ...]:
    if isinstance(image, Frame):
        return (image,)
    return (image if isinstance(image, Exposure) else read(image)).frames
