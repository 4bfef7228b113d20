"""Confirm a WCS that is nearly right, up to a small shift.

Most images have a WCS that is off by a few pixels at most. Then only a shift has to be found: the
differences of all sources and reference stars within the radius have their maximum density there,
and the odds of the pairs at that shift decide. A full search tests up to a billion hypotheses; a
shift of a few pixels is one of a few hundred, so that three or four stars in a small cutout are
sufficient evidence.

The odds are those of every match: for a source at distance d from its nearest reference star,

    ln [ f exp(-d^2 / 2 s^2) / (2 pi s^2 n) + 1 - f ],

with s the error (the best of a few), n the density of reference stars and f the fraction of sources
that have one, summed over the sources, less the logarithm of the number of distinct shifts that are
no larger than the one found: (1 + shift / s)^2.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.geometry.match.lists import Acceptance, Match
from cynosure.geometry.match.pairs import mutual_nearest
from cynosure.geometry.wcs import SkyModel
from cynosure.ground.sky import project

__all__ = ["confirm_wcs"]

Floats = NDArray[np.float64]

# Brightest sources that take part: far more than the odds need, few enough to be quick.
MAX_SOURCES = 400
# Fractions of sources with a reference star, and errors in units of the largest error expected,
# among which the likelihood chooses. The steps are coarse because log-odds depend weakly on both.
FRACTIONS = (0.3, 0.5, 0.7, 0.9)
SIGMAS = (0.25, 0.5, 1.0)


def confirm_wcs(
    model: SkyModel, x: ArrayLike, y: ArrayLike, flux: ArrayLike, ra_deg: ArrayLike,
    dec_deg: ArrayLike, shape: tuple[int, int], *, radius_px: float = 8.0, sigma_px: float = 0.7,
    min_log_odds: float = 21.0,
) -> Match | None:
    """Find the small shift that aligns a WCS with the stars, if its odds are high enough.

    Parameters
    ----------
    model : SkyModel
        The input WCS.
    x, y, flux : (n,) array_like
        Sources, 0-based pixels.
    ra_deg, dec_deg : (m,) array_like
        Reference stars at the epoch of the image.
    shape : tuple of int
        Rows and columns of the frame.
    radius_px : float
        How far the WCS may be off.
    sigma_px : float
        Largest error of the shifted WCS and of the positions, per axis.
    min_log_odds : float
        Natural logarithm of the odds from which the shift is accepted; 21 is one in 10^9.

    Returns
    -------
    Match or None
        None where no shift is accepted; the image may still match elsewhere.
    """
    ny, nx = shape
    x, y, flux = (np.asarray(v, dtype=float) for v in (x, y, flux))
    listed = np.argsort(-np.nan_to_num(flux), kind="stable")[:MAX_SOURCES]
    px, py = model.sky_to_pixel(ra_deg, dec_deg)
    inside = (px > -radius_px) & (px < nx + radius_px) & (py > -radius_px) & (py < ny + radius_px)
    stars = np.flatnonzero(inside)
    if len(stars) < 2 or len(listed) < 2:
        return None
    density = len(stars) / ((nx + 2 * radius_px) * (ny + 2 * radius_px))
    source = np.column_stack([x[listed], y[listed]])
    star = np.column_stack([px[stars], py[stars]])
    shift = _likely_shift(source, star, radius_px, sigma_px)
    if shift is None:
        return None
    i, j, _ = mutual_nearest(_complex(source + shift), _complex(star), 4.0 * sigma_px)
    if len(i) < 2:
        return None
    refined = shift + np.median(star[j] - source[i] - shift, axis=0)
    i, j, away = mutual_nearest(_complex(source + refined), _complex(star), 4.0 * sigma_px)
    size = float(np.hypot(*refined))
    log_odds, fraction = max(
        _log_odds(away**2, len(source), s, density, size) for s in sigma_px * np.array(SIGMAS)
    )
    if not Acceptance(min_log_odds).accepts(log_odds):
        return None
    # A shift of the pixels by s is the model evaluated at x + s.
    moved = model.replaced(x0=model.x0 - refined[0], y0=model.y0 - refined[1])
    evidence = {
        "tried": [
            f"header: shift of {refined[0]:+.2f} {refined[1]:+.2f} px, {len(i)} of {len(listed)} "
            f"sources agree, log-odds {log_odds:.1f}"
        ],
        "method": "header", "n_matched": len(i), "fraction": fraction,
        "shift_px": [float(v) for v in refined],
    }
    return Match(
        listed[i], stars[j], moved, log_odds, len(x), len(stars), *_attitude(moved, shape),
        evidence,
    )


def _likely_shift(source: Floats, star: Floats, radius: float, sigma: float) -> Floats | None:
    """Return the shift at which most differences lie within 2 sigma of each other."""
    from scipy.spatial import cKDTree

    pairs = cKDTree(source).query_ball_tree(cKDTree(star), radius)
    differences = np.array([
        star[k] - source[n] for n, near in enumerate(pairs) for k in near
    ]).reshape(-1, 2)
    if len(differences) < 2:
        return None
    tree = cKDTree(differences)
    count = tree.query_ball_point(differences, 2.0 * sigma, return_length=True)
    best = int(np.argmax(count))
    near = tree.query_ball_point(differences[best], 2.0 * sigma)
    return np.asarray(differences[near].mean(axis=0))


def _complex(place: Floats) -> NDArray[np.complex128]:
    return np.asarray(place[:, 0] + 1j * place[:, 1], np.complex128)


def _log_odds(
    distance2: Floats, n: int, sigma: float, density: float, shift: float
) -> tuple[float, float]:
    """Return the largest log-odds over the fraction of sources that have a star, and that one."""
    signal = np.exp(-0.5 * distance2 / sigma**2) / (2.0 * np.pi * sigma**2 * density)
    lone = n - len(distance2)
    scores = [
        float(np.sum(np.log(f * signal + 1.0 - f)) + lone * math.log(1.0 - f)) for f in FRACTIONS
    ]
    best = int(np.argmax(scores))
    return scores[best] - 2.0 * math.log(1.0 + shift / sigma), FRACTIONS[best]


def _attitude(model: SkyModel, shape: tuple[int, int]) -> tuple[float, float, int]:
    """Return scale (arcsec), rotation (deg) and parity at the frame's centre."""
    xc, yc = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    ra, dec = model.pixel_to_sky(xc, yc)
    xi, eta = project(*model.pixel_to_sky([xc, xc], [yc + 0.5, yc - 0.5]), float(ra), float(dec))
    determinant = float(np.linalg.det(model.jacobian(xc, yc)))
    return (
        math.sqrt(abs(determinant)) * 3600.0,
        math.degrees(math.atan2(xi[0] - xi[1], eta[0] - eta[1])) % 360.0,
        1 if determinant < 0 else -1,
    )
