"""Chips of known truth: sources, reference stars and frames without pixels."""

import warnings

import numpy as np
from astropy.wcs import WCS, FITSFixedWarning

from cynosure.data.frame import Frame
from cynosure.data.tables import REFERENCE, SOURCES
from cynosure.geometry.reference import Reference
from cynosure.geometry.skymodel import SkyModel
from cynosure.geometry.wcs import model_to_header
from cynosure.ground.sky import MAS_PER_DEG, at_epoch, deproject

SHAPE = (800, 900)
SCALE_DEG = 0.5 / 3600.0


def chip_model(ra, dec, rotation_deg=20.0, at=(0.0, 0.0), shape=SHAPE):
    """Return a linear model whose centre lies `at` (xi, eta, in pixels) of the tangent point."""
    turn, half = np.radians(rotation_deg), 500.0
    matrix = np.array([[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    coeff = np.column_stack([np.array(at), half * matrix]) * SCALE_DEG
    return SkyModel(ra, dec, (shape[1] - 1) / 2, (shape[0] - 1) / 2, half, coeff)


def frame_of(model, chip=0, shape=SHAPE):
    header = model_to_header(model, "tan", shape=shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        wcs = WCS(header)
    return Frame(np.zeros(shape, np.float32), header=header, wcs=wcs, chip=chip)


def drawn(rng, errors):
    """Return one draw (n, 2) of errors (a, b, rho), each of n."""
    a, b, rho = errors
    u, v = rng.normal(size=(2, len(a)))
    return np.stack([a * u, b * (rho * u + np.sqrt(1 - rho**2) * v)], axis=1)


def observed(model, n, seed=1, reference_mas=(0.2, 0.2, 0.0), source_px=(0.01, 0.01, 0.0),
             scatter_mas=0.0, shape=SHAPE):
    """Return sources and the reference stars that they are, row by row, with drawn errors."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(5, shape[1] - 6, n), rng.uniform(5, shape[0] - 6, n)
    source = np.tile(np.array(source_px)[:, None], n)
    source[:2] *= 10 ** rng.uniform(0, 1, n)
    ref = np.tile(np.array(reference_mas)[:, None], n)
    dx, dy = drawn(rng, source).T
    offset = (drawn(rng, ref) + rng.normal(0, 1, (n, 2)) * scatter_mas) / MAS_PER_DEG
    ra, dec = (np.array([deproject(*o, r, d) for o, r, d in zip(offset, *model.pixel_to_sky(x, y))])
               .reshape(-1, 2).T)
    sources = SOURCES.build(
        x=x + dx, y=y + dy, x_err=source[0], y_err=source[1], xy_corr=source[2],
        flux_e=10 ** rng.uniform(3, 5, n), fwhm_px=2.0, snr=100.0, flags=np.zeros(n, int),
    )
    stars = REFERENCE.build(
        ref_id=rng.integers(1, 2**60, n), ra_deg=ra, dec_deg=dec, ref_epoch_yr=2016.0,
        mag=np.full(n, 15.0), ra_error_mas=ref[0], dec_error_mas=ref[1], ra_dec_corr=ref[2],
        pm_ra_mas_yr=0.0, pm_dec_mas_yr=0.0, pm_ra_error_mas_yr=0.0, pm_dec_error_mas_yr=0.0,
        good=np.ones(n, bool),
    )
    at = at_epoch(stars, 2016.0)
    return sources, Reference(stars, *at, at[2].copy(), 2016.0)
