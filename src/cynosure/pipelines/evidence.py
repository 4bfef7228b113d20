"""Data for the figures of one image, beside its record and matches: ``NAME.report.npz``.

The solve door collects them in ``Outcome.report``. Every entry is optional; the report omits the
figures whose data are absent. A *table* is an (n, k) array, a dict of columns, or a list of dicts.

===================  ==========  ================================================================
name                 kind        meaning
===================  ==========  ================================================================
``shape``            2 numbers   rows and columns of the first chip
``thumbnail``        (h, w)      the first chip, background taken off (:func:`thumbnail`)
``reference``        table       ``x, y, mag`` of the reference stars in the first chip, px
``distortion``       table       ``x, y, dx_px, dy_px``: what the model adds to its linear part
``wcs_error``        table       ``x, y, sigma_mas``: predicted 1-sigma error of the WCS, per axis
``psf``              table       ``x, y, fwhm_px, ellipticity, theta_deg``
``psf_stamps``       (m, s, s)   the PSF at m places, row by row over the frame
``ledger``           table       a row a round: ``round, n_used, rms_mas, sigma0_mas``
``scores``           dict        form that was tried to its score on stars held out (a number,
                                 or a dict with ``score``): mean negative log-likelihood of a
                                 star, the least is best
``evidence``         dict        of the match: ``tried`` (texts), ``second_log_odds``
``hypotheses``       table       ``log_odds, n_pairs, scale_arcsec, rotation_deg, parity``, best
                                 first
``offsets``          (h, w)      histogram of the offsets source - reference
``offsets_range``    4 numbers   its edges: left, right, bottom, top, in arcsec
===================  ==========  ================================================================
"""

from __future__ import annotations

import json
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

__all__ = ["ENDING", "Evidence", "columns", "read_evidence", "thumbnail", "write_evidence"]

ENDING = ".report.npz"
# The brightest sources, which the report draws; the file stays small.
MAX_SOURCES = 20_000
ROWS = "rows"
KEPT = ("chip", "x", "y", "snr", "flags", "fwhm_px")


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the figures of one image are drawn from.

    Attributes
    ----------
    sources : (n,) structured array
        Schema ``SOURCES``; only the columns that figures need are filled.
    extras : dict
        What of the table above is there.
    """

    sources: NDArray[np.void] = field(default_factory=SOURCES.empty)
    extras: dict[str, Any] = field(default_factory=dict)

    def table(self, name: str, names: tuple[str, ...]) -> NDArray[np.float64]:
        """Return a table as (n, k) array; no rows where it is not there."""
        return columns(self.extras.get(name, ()), names)


def columns(table: Any, names: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the named columns of a table of any kind as (n, k) array; NaN for unknown numbers.

    Examples
    --------
    >>> columns([{"round": 1, "rms_mas": 9.5}], ("round", "rms_mas", "limit")).tolist()
    [[1.0, 9.5, nan]]
    """
    if isinstance(table, Mapping):
        return np.column_stack([np.asarray(table[name], dtype=float) for name in names])
    if isinstance(table, (list, tuple)) and table and isinstance(table[0], Mapping):
        table = [[row.get(name, np.nan) for name in names] for row in table]
    return np.asarray(table, dtype=float).reshape(-1, len(names))


def thumbnail(image: ArrayLike, size_px: int = 720) -> NDArray[np.float32]:
    """Make an image small so that its stars stay visible: the maximum of samples of each block.

    Parameters
    ----------
    image : (ny, nx) array_like
        With its background taken off.
    size_px : int
        The longer side becomes at most this long.

    Returns
    -------
    (h, w) ndarray
    """
    image = np.asarray(image)
    ny, nx = image.shape
    step = max(1, -(-max(ny, nx) // size_px))
    # Of a block of many pixels every third row and column is looked at: a star is wider.
    stride = min(3, step)
    h, w = max(1, ny // step), max(1, nx // step)
    small = np.full((h, w), -np.inf, dtype=np.float32)
    for j in range(0, step, stride):
        for i in range(0, step, stride):
            rows = np.minimum(np.arange(h) * step + j, ny - 1)
            across = np.minimum(np.arange(w) * step + i, nx - 1)
            np.fmax(small, image[np.ix_(rows, across)], out=small)
    return np.where(np.isfinite(small), small, np.nan).astype(np.float32)


def write_evidence(
    path: str | Path, sources: NDArray[np.void], extras: Mapping[str, Any]
) -> None:
    """Write the evidence of one image; a file that is there is replaced.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    if len(sources) > MAX_SOURCES:
        keep = np.argpartition(-np.nan_to_num(sources["snr"]), MAX_SOURCES)[:MAX_SOURCES]
        sources = sources[np.sort(keep)]
    arrays: dict[str, Any] = {
        f"sources.{name}": sources[name].astype("i4" if name in ("chip", "flags") else "f4")
        for name in KEPT
    }
    rest: dict[str, Any] = {}
    for name, value in extras.items():
        if isinstance(value, np.ndarray) and value.ndim > 0:
            arrays[name] = _as_half(value) if name == "thumbnail" else value
        else:
            rest[name] = value
    arrays[ROWS] = np.array(json.dumps(rest, default=_plain))
    with atomic_path(path, overwrite=True) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def read_evidence(path: str | Path) -> Evidence:
    """Read the evidence of one image; empty where the file is not there.

    Raises
    ------
    CatalogDamaged
        If the file is not what :func:`write_evidence` writes.
    """
    path = Path(path)
    if not path.exists():
        return Evidence()
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            arrays: dict[str, Any] = dict(content)
        own = {name: arrays.pop(f"sources.{name}") for name in KEPT}
        rest = json.loads(str(arrays.pop(ROWS)))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CatalogDamaged(
            catalog=str(path), reason="not what a report is drawn from",
            hint="Remove it; the report is then drawn without it.",
        ) from error
    return Evidence(SOURCES.build(**own), {**arrays, **rest})


def _plain(value: Any) -> Any:
    """Return what JSON has no word for: NumPy's arrays and numbers."""
    return value.tolist()


def _as_half(values: NDArray[Any]) -> NDArray[np.float16]:
    """Return pixels as 16-bit floats, scaled so that none overflows."""
    top = float(np.nanmax(np.abs(values), initial=0.0))
    scale = 6e4 / top if top > 6e4 else 1.0
    return (values * scale).astype(np.float16)
