"""Collect the data for the report of an image, as :mod:`cynosure.pipelines.evidence` lists them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.wcs import SkyModel
from cynosure.ground.numeric import lstsq
from cynosure.pipelines.extract import Extraction
from cynosure.pipelines.plate import Plate

__all__ = ["gather"]

# Pixels along the longer side of the thumbnail: its figure in the report is 610 wide.
THUMBNAIL_PX = 720


def gather(parts: list[Extraction], plates: list[Plate]) -> dict[str, Any]:
    """Collect what the report draws beyond the tables, for the first chip."""
    if not parts:
        return {}
    part = parts[0]
    extras: dict[str, Any] = {
        "shape": part.frame.shape, "thumbnail": _thumbnail(part),
        **_psf_tables(part),
    }
    if plates and plates[0].chips:
        extras |= _fit_tables(part, plates[0])
    return extras


def _fit_tables(part: Extraction, plate: Plate) -> dict[str, Any]:
    chip, reference = plate.chips[0], plate.reference
    fit, (ny, nx) = chip.fit, part.frame.shape
    x, y = fit.model.sky_to_pixel(reference.ra_deg, reference.dec_deg)
    inside = (x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5)
    rows = np.flatnonzero(inside)[:5000]
    table = np.stack([x, y, reference.stars["mag"]], axis=1)
    grid = np.meshgrid(np.linspace(0, nx - 1, 17), np.linspace(0, ny - 1, 17))
    gx, gy = (v.ravel() for v in grid)
    error = np.sqrt(np.mean(fit.wcs_error_mas(gx, gy) ** 2, axis=1))
    return {
        "ledger": list(fit.history), "scores": {k: v["score"] for k, v in fit.scores.items()},
        "evidence": plate.match.evidence,
        "distortion": _distortion(fit.model, part.frame.shape),
        "wcs_error": np.stack([gx, gy, error], axis=1),
        "reference": table[rows],
    }


def _thumbnail(part: Extraction) -> NDArray[np.float32]:
    """Return the frame in units of its noise, binned to a few hundred pixels.

    The largest pixel of one row in each bin: stars stay visible, and little is read.
    """
    data, (ny, nx) = part.frame.data, part.frame.shape
    step = max(1, -(-max(ny, nx) // THUMBNAIL_PX))
    rows, columns = max(ny // step, 1), max(nx // step, 1)
    out = np.empty((rows, columns), dtype=np.float32)
    for j in range(rows):
        y = min(j * step + step // 2, ny - 1)
        line = data[y] - part.background.rows(y, y + 1)[0]
        out[j] = np.nan_to_num(line[: columns * step].reshape(columns, -1).max(axis=1))
    return out / np.float32(np.median(part.background.sigma))


def _psf_tables(part: Extraction) -> dict[str, Any]:
    """Return the PSF's shape on a grid of the frame, and its picture at nine places."""
    if part.psf is None:
        return {}
    ny, nx = part.frame.shape
    rows = []
    for y in np.linspace(0.1, 0.9, 5) * (ny - 1):
        for x in np.linspace(0.1, 0.9, 5) * (nx - 1):
            fwhm, ellipticity, theta = part.psf.shape_at(float(x), float(y))
            rows.append({"x": float(x), "y": float(y), "fwhm_px": fwhm,
                         "ellipticity": ellipticity, "theta_deg": theta})
    stamps = [
        part.psf.image(round(x), round(y))
        for y in np.array([0.1, 0.5, 0.9]) * (ny - 1) for x in np.array([0.1, 0.5, 0.9]) * (nx - 1)
    ]
    return {"psf": rows, "psf_stamps": np.array(stamps)}


def _distortion(model: SkyModel, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return x, y and how far the model is from its own best linear part there, in pixels."""
    ny, nx = shape
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, nx - 1, 17), np.linspace(0, ny - 1, 17)))
    plane = np.stack(model.pixel_to_plane(x, y), axis=1)
    design = np.stack([np.ones_like(x), x, y], axis=1)
    linear = lstsq(design, plane, what="linear part").x
    shift = (plane - design @ linear) @ np.linalg.inv(linear[1:])
    return np.column_stack([x, y, shift])
