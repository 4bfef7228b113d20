"""The arrays behind the figures of one image, kept beside the run for its report.

Everything that is optional may be absent; the report then leaves the figure out. Names, shapes
and units of the arrays that the report knows:

=======================  ==========  ==========================================================
name                     shape       meaning
=======================  ==========  ==========================================================
``thumbnail``            (h, w)      first chip, background taken off (:func:`thumbnail`)
``thumbnail_step``       ()          pixels of the chip to one of the thumbnail
``unmatched``            (n, 3)      reference stars in the first chip without a source: x, y
                                     in px, magnitude
``distortion``           (n, 4)      x, y, and what the model adds to its linear part there, px
``wcs_error``            (n, 3)      x, y, and the predicted 1-sigma error of the WCS, mas
``psf_grid``             (n, 5)      x, y, FWHM in px, ellipticity, position angle in deg
``psf_stamps``           (m, s, s)   the PSF at m places, row by row over the frame
``ledger``               (n, 4)      a row a round of clipping: round, stars used, rms in mas,
                                     clipping limit in mas
``hypotheses``           (n, 5)      a row a hypothesis, best first: log-odds, pairs, scale in
                                     arcsec, rotation in deg, parity
``hypotheses_needed``    ()          log-odds that were needed
``offsets``              (h, w)      histogram of the offsets source - reference
``offsets_range``        (4,)        its edges, left, right, bottom, top, in arcsec
``order_trials``         (n, 3)      a row a degree that was tried: degree, rms in mas of the
                                     fit, rms in mas of the stars held out
=======================  ==========  ==========================================================
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.data.tables import SOURCES
from cynosure.ground.errors import CatalogDamaged
from cynosure.ground.files import atomic_path
from cynosure.pipelines.manifest import make_folder

__all__ = ["Evidence", "read_evidence", "thumbnail", "write_evidence"]

FOLDER = "evidence"
# The brightest sources are enough for a picture, and the file stays small.
MAX_SOURCES = 20_000
PIXELS = "thumbnail"
COLUMNS = ("chip", "x", "y", "snr", "flags", "fwhm_px")


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the figures of one image are drawn from, beside its record and its matches.

    Attributes
    ----------
    sources : (n,) structured array
        Schema ``SOURCES``; only the columns that figures need are filled.
    extras : dict of str to ndarray
        The arrays of the table above that are there.
    """

    sources: NDArray[np.void] = field(default_factory=SOURCES.empty)
    extras: dict[str, NDArray[Any]] = field(default_factory=dict)


def thumbnail(image: ArrayLike, size_px: int = 800) -> tuple[NDArray[np.float32], int]:
    """Make an image small so that its stars stay visible: the maximum of samples of each block.

    Parameters
    ----------
    image : (ny, nx) array_like
        With its background taken off.
    size_px : int
        The longer side becomes at most this long.

    Returns
    -------
    small : (h, w) ndarray
    step : int
        Pixels of the image to one of `small`.
    """
    image = np.asarray(image)
    ny, nx = image.shape
    step = max(1, -(-max(ny, nx) // size_px))
    # Of a block of many pixels every third row and column is looked at: a star is wider.
    stride = min(3, step)
    inner = -(-step // stride)
    h, w = max(1, ny // step), max(1, nx // step)
    small = np.full((h, w), -np.inf, dtype=np.float32)
    for j in range(inner):
        for i in range(inner):
            rows = np.minimum(np.arange(h) * step + min(j * stride, step - 1), ny - 1)
            columns = np.minimum(np.arange(w) * step + min(i * stride, step - 1), nx - 1)
            np.fmax(small, image[np.ix_(rows, columns)], out=small)
    return np.where(np.isfinite(small), small, np.nan).astype(np.float32), step


def write_evidence(
    folder: str | Path, stem: str, sources: NDArray[np.void], extras: Mapping[str, Any]
) -> Path:
    """Write the arrays of one image; returns the file."""
    make_folder(Path(folder) / FOLDER)
    path = _path(folder, stem)
    if len(sources) > MAX_SOURCES:
        keep = np.argpartition(-np.nan_to_num(sources["snr"]), MAX_SOURCES)[:MAX_SOURCES]
        sources = sources[np.sort(keep)]
    arrays: dict[str, NDArray[Any]] = {
        f"sources.{name}": sources[name].astype("i4" if name in ("chip", "flags") else "f4")
        for name in COLUMNS
    }
    for name, values in extras.items():
        values = np.asarray(values)
        half = name == PIXELS and values.dtype.kind == "f"
        arrays[name] = _as_half(values) if half else values
    with atomic_path(path, overwrite=True) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return path


def read_evidence(folder: str | Path, stem: str) -> Evidence:
    """Read the arrays of one image; none where the file is not there.

    Raises
    ------
    CatalogDamaged
        If the file is not what :func:`write_evidence` writes.
    """
    path = _path(folder, stem)
    if not path.exists():
        return Evidence()
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = dict(content)
        columns = {name: arrays.pop(f"sources.{name}") for name in COLUMNS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CatalogDamaged(
            catalog=str(path), reason="not the arrays of an image",
            hint="Remove it; the report is then drawn without it.",
        ) from error
    return Evidence(SOURCES.build(**columns), arrays)


def _path(folder: str | Path, stem: str) -> Path:
    return Path(folder) / FOLDER / f"{stem}.npz"


def _as_half(values: NDArray[Any]) -> NDArray[np.float16]:
    """Return pixels as 16-bit floats, scaled so that none overflows."""
    top = float(np.nanmax(np.abs(values), initial=0.0))
    scale = 6e4 / top if top > 6e4 else 1.0
    return (values * scale).astype(np.float16)
