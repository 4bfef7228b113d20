"""The sky: unit vectors, the tangent plane, separations, motion of the stars, cells, sky match.

All angles are degrees, ICRS, unless the name says otherwise. Positions are handled as unit
vectors wherever the poles or the meridian of right ascension zero could be in the field.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "MAS_PER_DEG",
    "at_epoch",
    "deproject",
    "earth_position_au",
    "east_north",
    "match_sky",
    "position_angle_deg",
    "project",
    "radec",
    "separation_deg",
    "unit_vectors",
]

Floats = NDArray[np.float64]

MAS_PER_DEG = 3.6e6
MAS_PER_RAD = MAS_PER_DEG * 180.0 / np.pi
# A point further than this from the tangent point, as the cosine of its distance, has no useful
# gnomonic image (the plane's scale grows by more than a hundred).
MIN_COSINE = 0.1


def unit_vectors(ra_deg: ArrayLike, dec_deg: ArrayLike) -> Floats:
    """Return the unit vectors (..., 3) of directions on the sky."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    cos_dec = np.cos(dec)
    return np.stack([cos_dec * np.cos(ra), cos_dec * np.sin(ra), np.sin(dec)], axis=-1)


def radec(vectors: ArrayLike) -> tuple[Floats, Floats]:
    """Return right ascension in [0, 360) and declination of vectors (..., 3) of any length."""
    x, y, z = np.moveaxis(np.asarray(vectors, dtype=float), -1, 0)
    ra = np.degrees(np.arctan2(y, x)) % 360.0
    return np.where(ra >= 360.0, 0.0, ra), np.degrees(np.arctan2(z, np.hypot(x, y)))


def east_north(ra_deg: ArrayLike, dec_deg: ArrayLike) -> tuple[Floats, Floats]:
    """Return the unit vectors that point east and north at a direction, each (..., 3)."""
    ra, dec = np.broadcast_arrays(np.radians(ra_deg), np.radians(dec_deg))
    zero = np.zeros_like(ra)
    east = np.stack([-np.sin(ra), np.cos(ra), zero], axis=-1)
    north = np.stack(
        [-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)], axis=-1
    )
    return east, north


def project(
    ra_deg: ArrayLike, dec_deg: ArrayLike, ra0_deg: float, dec0_deg: float
) -> tuple[Floats, Floats]:
    """Project the sky on the plane that touches it at (ra0, dec0): xi, eta in degrees.

    ``xi = n.e / n.n0``, ``eta = n.g / n.n0`` (Calabretta & Greisen 2002, section 5.1.3). NaN
    where the direction is 84 degrees or more from the tangent point.
    """
    n = unit_vectors(ra_deg, dec_deg)
    n0 = unit_vectors(ra0_deg, dec0_deg)
    east, north = east_north(ra0_deg, dec0_deg)
    cosine = n @ n0
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.where(cosine > MIN_COSINE, cosine, np.nan)
        return np.degrees(n @ east / cosine), np.degrees(n @ north / cosine)


def deproject(
    xi_deg: ArrayLike, eta_deg: ArrayLike, ra0_deg: float, dec0_deg: float
) -> tuple[Floats, Floats]:
    """Invert :func:`project`: right ascension in [0, 360) and declination, degrees."""
    xi, eta = np.broadcast_arrays(np.radians(xi_deg), np.radians(eta_deg))
    east, north = east_north(ra0_deg, dec0_deg)
    n0 = unit_vectors(ra0_deg, dec0_deg)
    return radec(n0 + xi[..., None] * east + eta[..., None] * north)


def separation_deg(
    ra1_deg: ArrayLike, dec1_deg: ArrayLike, ra2_deg: ArrayLike, dec2_deg: ArrayLike
) -> Floats:
    """Return the angle between directions; exact for small and for large angles (Vincenty)."""
    a, b = unit_vectors(ra1_deg, dec1_deg), unit_vectors(ra2_deg, dec2_deg)
    a, b = np.broadcast_arrays(a, b)
    cross = np.linalg.norm(np.cross(a, b), axis=-1)
    return np.degrees(np.arctan2(cross, np.sum(a * b, axis=-1)))


def position_angle_deg(
    ra1_deg: float, dec1_deg: float, ra2_deg: ArrayLike, dec2_deg: ArrayLike
) -> Floats:
    """Return the angle at point 1 from north through east to point 2, in [0, 360)."""
    east, north = east_north(ra1_deg, dec1_deg)
    n = unit_vectors(ra2_deg, dec2_deg)
    return np.degrees(np.arctan2(n @ east, n @ north)) % 360.0


def earth_position_au(epoch_yr: float) -> Floats:
    """Return the Earth's barycentric position (3,), ICRS, in au (ERFA epv00, to 5e-8 au)."""
    import erfa

    jd = 2451545.0 + (epoch_yr - 2000.0) * 365.25
    _, barycentric = erfa.epv00(jd, 0.0)
    return np.asarray(barycentric["p"], dtype=float)


def at_epoch(
    reference: NDArray[np.void],
    epoch_yr: float,
    *,
    unknown_pm_mas_yr: float = 7.0,
    parallax: bool = True,
) -> tuple[Floats, Floats, Floats]:
    """Move reference stars to an epoch, with their covariance.

    The direction is ``r(t) ~ r0 + (t - t0) (p mu_ra + q mu_dec) - plx E(t)`` with p east, q north
    and E the Earth's barycentric position (ESA 1997, SP-1200 volume 1, 1.2; radial velocity is
    left out, its term is below 0.1 mas in 20 years for all but a handful of stars). The
    covariance is ``J C J^T`` with the full 5 x 5 covariance of Gaia.

    Parameters
    ----------
    reference : (n,) structured array
        Schema ``REFERENCE`` of :mod:`cynosure.data.tables`.
    epoch_yr : float
        Julian year.
    unknown_pm_mas_yr : float
        Error a star's motion is given per axis where the catalogue has no motion for it. Half of
        the stars of G < 19 move less than this.
    parallax : bool
        Whether the parallax is applied.

    Returns
    -------
    ra_deg, dec_deg : (n,) ndarray
    covariance_mas2 : (n, 3) ndarray
        Variance along ra (with cos dec), along dec, and their covariance.
    """
    n = len(reference)
    ra0, dec0 = reference["ra_deg"], reference["dec_deg"]
    dt = np.asarray(epoch_yr - reference["ref_epoch_yr"], dtype=float)
    known = np.isfinite(reference["pm_ra_mas_yr"]) & np.isfinite(reference["pm_dec_mas_yr"])
    mu_ra = np.where(known, reference["pm_ra_mas_yr"], 0.0)
    mu_dec = np.where(known, reference["pm_dec_mas_yr"], 0.0)
    plx = np.nan_to_num(reference["parallax_mas"]) if parallax else np.zeros(n)
    east, north = east_north(ra0, dec0)
    factor = -earth_position_au(epoch_yr) if parallax else np.zeros(3)
    f_ra, f_dec = east @ factor, north @ factor
    shift_ra = mu_ra * dt + plx * f_ra
    shift_dec = mu_dec * dt + plx * f_dec
    moved = (
        unit_vectors(ra0, dec0)
        + (shift_ra / MAS_PER_RAD)[:, None] * east
        + (shift_dec / MAS_PER_RAD)[:, None] * north
    )
    ra, dec = radec(moved)
    unmoved = (shift_ra == 0) & (shift_dec == 0)
    ra, dec = np.where(unmoved, ra0 % 360.0, ra), np.where(unmoved, dec0, dec)
    return ra, dec, _moved_covariance(reference, dt, f_ra, f_dec, known, unknown_pm_mas_yr)


# The five parameters of Gaia in the order of the covariance, and the columns of their errors.
_ERRORS = ("ra_error_mas", "dec_error_mas", "parallax_error_mas", "pm_ra_error_mas_yr", "pm_dec_error_mas_yr")
_CORRELATIONS = {
    (0, 1): "ra_dec_corr", (0, 2): "ra_parallax_corr", (0, 3): "ra_pmra_corr",
    (0, 4): "ra_pmdec_corr", (1, 2): "dec_parallax_corr", (1, 3): "dec_pmra_corr",
    (1, 4): "dec_pmdec_corr", (2, 3): "parallax_pmra_corr", (2, 4): "parallax_pmdec_corr",
    (3, 4): "pmra_pmdec_corr",
}


def _moved_covariance(
    reference: NDArray[np.void], dt: Floats, f_ra: Floats, f_dec: Floats,
    known: NDArray[np.bool_], unknown_pm_mas_yr: float,
) -> Floats:
    sigma = [np.nan_to_num(reference[name]).astype(float) for name in _ERRORS]
    for k in (3, 4):
        sigma[k] = np.where(known, sigma[k], unknown_pm_mas_yr)
    # Rows of the Jacobian: d(ra*, dec) / d(ra*, dec, parallax, pm_ra, pm_dec).
    j_ra = [np.ones_like(dt), None, f_ra, dt, None]
    j_dec = [None, np.ones_like(dt), f_dec, None, dt]
    out = np.zeros((len(dt), 3))
    for i in range(5):
        for k in range(i, 5):
            if i == k:
                c = sigma[i] ** 2
            else:
                rho = np.nan_to_num(reference[_CORRELATIONS[i, k]]).astype(float)
                c = np.where(known | (k < 3), rho, 0.0) * sigma[i] * sigma[k]
            double = 1.0 if i == k else 2.0
            if j_ra[i] is not None and j_ra[k] is not None:
                out[:, 0] += double * j_ra[i] * j_ra[k] * c
            if j_dec[i] is not None and j_dec[k] is not None:
                out[:, 1] += double * j_dec[i] * j_dec[k] * c
            out[:, 2] += _cross(j_ra, j_dec, i, k) * c
    return out


def _cross(j_ra: list[Floats | None], j_dec: list[Floats | None], i: int, k: int) -> Floats | float:
    total: Floats | float = 0.0
    for a, b in {(i, k), (k, i)}:
        if j_ra[a] is not None and j_dec[b] is not None:
            total = total + j_ra[a] * j_dec[b]  # type: ignore[operator]
    return total


def match_sky(
    ra1_deg: ArrayLike, dec1_deg: ArrayLike, ra2_deg: ArrayLike, dec2_deg: ArrayLike,
    radius_deg: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Pair two lists by mutual nearest neighbour within a radius.

    Returns
    -------
    index1, index2 : (m,) ndarray of int
        The pairs, in rising order of `index1`.
    sep_deg : (m,) ndarray
    """
    from scipy.spatial import cKDTree

    a, b = unit_vectors(ra1_deg, dec1_deg), unit_vectors(ra2_deg, dec2_deg)
    if len(a) == 0 or len(b) == 0:
        none = np.zeros(0, dtype=np.int64)
        return none, none, np.zeros(0)
    chord = 2.0 * np.sin(np.radians(radius_deg) / 2.0)
    distance, forward = cKDTree(b).query(a, distance_upper_bound=chord)
    _, backward = cKDTree(a).query(b)
    index1 = np.flatnonzero(np.isfinite(distance))
    index1 = index1[backward[forward[index1]] == index1]
    index2 = forward[index1].astype(np.int64)
    return index1, index2, np.degrees(2.0 * np.arcsin(np.minimum(distance[index1] / 2.0, 1.0)))
