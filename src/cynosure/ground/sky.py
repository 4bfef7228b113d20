"""The sky: unit vectors, the tangent plane, separations, motion of the stars, cells.

All angles are degrees, ICRS, unless the name says otherwise. Positions are handled as unit
vectors wherever the poles or the meridian of right ascension zero could be in the field.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.ground.numeric import propagated
from cynosure.ground.settings import Range, Unit

__all__ = [
    "MAS_PER_DEG",
    "MAX_ORDER",
    "at_epoch",
    "cone_cells",
    "cone_ranges",
    "covariance_on_plane",
    "covariance_on_sky",
    "deproject",
    "earth_position_au",
    "east_north",
    "five_parameters",
    "healpix_cell",
    "healpix_center",
    "healpix_radius_deg",
    "plane_jacobian",
    "position_angle_deg",
    "project",
    "radec",
    "rows_within",
    "separation_deg",
    "sky_offset_mas",
    "unit_vectors",
]

Floats = NDArray[np.float64]

MAS_PER_DEG = 3.6e6
MAS_PER_RAD = MAS_PER_DEG * 180.0 / np.pi
# Cosine of the largest distance from the tangent point (84 degrees); beyond it the scale of the
# gnomonic projection, 1 / cos^2, has grown by a factor 100.
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


def plane_jacobian(
    ra_deg: ArrayLike, dec_deg: ArrayLike, ra0_deg: float, dec0_deg: float
) -> Floats:
    """Return d(xi, eta) / d(ra cos dec, dec) of :func:`project` at positions, (..., 2, 2).

    It holds the rotation between north at the position and +eta of the plane, which is large near
    the poles, and the scale of the plane, ``1 / cos^2`` of the distance along the radius and
    ``1 / cos`` across it. Every covariance that goes from one frame to the other goes through this
    matrix. With p the direction, n0 the tangent point, k the unit vector along xi or eta and l the
    one along ra or dec at the position,

        d(xi_k) / d(l) = (l . k - (l . n0) xi_k) / (p . n0),

    the derivative of ``xi_k = p . k / p . n0``.
    """
    p, n0 = unit_vectors(ra_deg, dec_deg), unit_vectors(ra0_deg, dec0_deg)
    axes = np.stack(east_north(ra0_deg, dec0_deg))
    local = np.stack(east_north(ra_deg, dec_deg), axis=-2)
    cosine = (p @ n0)[..., None]
    at = (p @ axes.T) / cosine
    out = axes @ np.swapaxes(local, -1, -2) - at[..., :, None] * (local @ n0)[..., None, :]
    return np.asarray(out / cosine[..., None], dtype=np.float64)


def covariance_on_plane(
    covariance: Floats, ra_deg: ArrayLike, dec_deg: ArrayLike, ra0_deg: float, dec0_deg: float
) -> Floats:
    """Return covariances (n, 3) along ra (with cos dec) and dec as those along xi and eta."""
    return propagated(plane_jacobian(ra_deg, dec_deg, ra0_deg, dec0_deg), covariance)


def covariance_on_sky(
    covariance: Floats, ra_deg: ArrayLike, dec_deg: ArrayLike, ra0_deg: float, dec0_deg: float
) -> Floats:
    """Return covariances (n, 3) along xi and eta as those along ra (with cos dec) and dec."""
    jacobian = plane_jacobian(ra_deg, dec_deg, ra0_deg, dec0_deg)
    return propagated(np.asarray(np.linalg.inv(jacobian), np.float64), covariance)


def sky_offset_mas(
    ra_deg: ArrayLike, dec_deg: ArrayLike, ref_ra_deg: ArrayLike, ref_dec_deg: ArrayLike
) -> tuple[Floats, Floats]:
    """Return the offsets of positions from others along ra (with cos dec) and dec, mas.

    Each offset is measured on the plane that touches the sky at its own reference position, so
    that it is right at the poles and across the meridian of right ascension zero.
    """
    ref = unit_vectors(ref_ra_deg, ref_dec_deg)
    east, north = east_north(ref_ra_deg, ref_dec_deg)
    p = unit_vectors(ra_deg, dec_deg)
    scale = MAS_PER_RAD / np.sum(p * ref, axis=-1)
    return np.sum(p * east, axis=-1) * scale, np.sum(p * north, axis=-1) * scale


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
    """Return the Earth's barycentric position (3,), ICRS, in au (ERFA epv00, to 5e-8 au).

    Before 1900 and after 2100, outside the range of that ephemeris, it is the position on the same
    day of the nearest year within: accurate to 0.01 au, 1 % of a parallax.
    """
    import erfa

    year = float(np.clip(np.floor(epoch_yr), 1900.0, 2099.0))
    epoch_yr = year + epoch_yr - np.floor(epoch_yr)
    jd = 2451545.0 + (epoch_yr - 2000.0) * 365.25
    _, barycentric = erfa.epv00(jd, 0.0)
    return np.asarray(barycentric["p"], dtype=float)


def at_epoch(
    reference: NDArray[np.void],
    epoch_yr: float,
    *,
    unknown_pm_mas_yr: Annotated[float, Unit("mas/yr"), Range(0, 1e4)] = 7.0,
    unknown_pm_error_mas_yr: Annotated[float, Unit("mas/yr"), Range(0, 1e4)] = 1.0,
    unknown_epoch_yr: Annotated[float, Unit("yr"), Range(0, 200)] = 20.0,
    parallax: bool = True,
) -> tuple[Floats, Floats, Floats]:
    """Move reference stars to an epoch, with their covariance.

    The direction is ``r(t) ~ r0 + (t - t0) (p mu_ra + q mu_dec) - plx E(t)`` with p east, q north
    and E the Earth's barycentric position (ESA 1997, SP-1200 volume 1, 1.2; radial velocity is
    left out, its term is below 0.1 mas in 20 years for all but a handful of stars). The
    covariance is ``J C J^T`` with the full 5 x 5 covariance of Gaia. A star with an unknown motion
    is not moved and gets a larger error; an unknown parallax, typically below a mas, is neglected.

    Parameters
    ----------
    reference : (n,) structured array
        Schema ``REFERENCE`` of :mod:`cynosure.data.tables`.
    epoch_yr : float
        Julian year; NaN is unknown, as for the epoch of a position.
    unknown_pm_mas_yr : float
        Error per axis of the motion of a star without a motion in the catalogue. Half of the stars
        of G < 19 move less than this.
    unknown_pm_error_mas_yr : float
        Error of a motion without an error in the catalogue.
    unknown_epoch_yr : float
        Error of an unknown epoch; a star without an epoch is not moved, and its motion in this
        time is added to its error.
    parallax : bool
        Whether the parallax is applied.

    Returns
    -------
    ra_deg, dec_deg : (n,) ndarray
    covariance_mas2 : (n, 3) ndarray
        Variance along ra (with cos dec), along dec, and their covariance.
    """
    n = len(reference)
    parallax = parallax and bool(np.isfinite(epoch_yr))
    ra0, dec0 = reference["ra_deg"], reference["dec_deg"]
    dt = np.asarray(epoch_yr - reference["ref_epoch_yr"], dtype=float)
    dated = np.isfinite(dt)
    known = np.isfinite(reference["pm_ra_mas_yr"]) & np.isfinite(reference["pm_dec_mas_yr"])
    mu_ra = np.where(known, reference["pm_ra_mas_yr"], 0.0)
    mu_dec = np.where(known, reference["pm_dec_mas_yr"], 0.0)
    plx = np.nan_to_num(reference["parallax_mas"]) if parallax else np.zeros(n)
    east, north = east_north(ra0, dec0)
    factor = -earth_position_au(epoch_yr) if parallax else np.zeros(3)
    f_ra, f_dec = east @ factor, north @ factor
    shift_ra = mu_ra * np.where(dated, dt, 0.0) + plx * f_ra
    shift_dec = mu_dec * np.where(dated, dt, 0.0) + plx * f_dec
    start = unit_vectors(ra0, dec0)
    moved = (
        (1.0 + plx / MAS_PER_RAD * (start @ factor))[:, None] * start
        + (shift_ra / MAS_PER_RAD)[:, None] * east
        + (shift_dec / MAS_PER_RAD)[:, None] * north
    )
    ra, dec = radec(moved)
    unmoved = (shift_ra == 0) & (shift_dec == 0)
    ra, dec = np.where(unmoved, ra0 % 360.0, ra), np.where(unmoved, dec0, dec)
    sigma = _errors(reference, known, unknown_pm_mas_yr, unknown_pm_error_mas_yr)
    # A star without an epoch is not moved; its motion is added to its error.
    undated = np.stack([mu_ra, mu_dec])[:, ~dated]
    sigma[3:, ~dated] = np.hypot(sigma[3:, ~dated], undated)
    dt = np.where(dated, dt, unknown_epoch_yr)
    covariance = _moved_covariance(reference, sigma, dt, f_ra, f_dec, known & dated)
    return ra, dec, covariance


def _errors(
    reference: NDArray[np.void], known: NDArray[np.bool_], unknown_pm: float,
    unknown_pm_error: float,
) -> Floats:
    """Return the errors (5, n) of the five parameters; 0 for an unknown position or parallax."""
    sigma = np.stack([np.asarray(reference[name], dtype=float) for name in _ERRORS])
    sigma[3:] = np.where(np.isnan(sigma[3:]), unknown_pm_error, sigma[3:])
    sigma[3:, ~known] = unknown_pm
    return np.nan_to_num(sigma)


def five_parameters(
    reference: NDArray[np.void], *, unknown_pm_mas_yr: float = 7.0,
    unknown_pm_error_mas_yr: float = 1.0,
) -> tuple[Floats, Floats]:
    """Return the astrometric parameters of reference stars and their covariance.

    Unknown values are treated as by :func:`at_epoch`: a motion is zero with an error, a parallax
    zero without one. ``J C J^T`` with J of :func:`at_epoch` is the covariance that it returns for
    positions with an epoch.

    Parameters
    ----------
    reference : (n,) structured array
        Schema ``REFERENCE`` of :mod:`cynosure.data.tables`.
    unknown_pm_mas_yr, unknown_pm_error_mas_yr : float
        As for :func:`at_epoch`.

    Returns
    -------
    parameters : (n, 5) ndarray
        Right ascension and declination (deg), parallax (mas), motion along ra (with cos dec) and
        dec (mas/yr), at ``ref_epoch_yr``.
    covariance : (n, 5, 5) ndarray
        In mas and mas/yr, along ra with cos dec.
    """
    known = np.isfinite(reference["pm_ra_mas_yr"]) & np.isfinite(reference["pm_dec_mas_yr"])
    values = np.stack([np.asarray(reference[name], dtype=float) for name in _PARAMETERS], axis=1)
    values[~known, 3:] = 0.0
    values[:, 2] = np.nan_to_num(values[:, 2])
    sigma = _errors(reference, known, unknown_pm_mas_yr, unknown_pm_error_mas_yr)
    correlation = np.broadcast_to(np.eye(5), (len(reference), 5, 5)).copy()
    for (i, k), name in _CORRELATIONS.items():
        rho = np.nan_to_num(reference[name]).astype(float)
        rho[~known & (k > 2)] = 0.0
        correlation[:, i, k] = correlation[:, k, i] = rho
    return values, correlation * sigma.T[:, :, None] * sigma.T[:, None, :]


_PARAMETERS = ("ra_deg", "dec_deg", "parallax_mas", "pm_ra_mas_yr", "pm_dec_mas_yr")

# The five parameters of Gaia in the order of the covariance: their errors and correlations.
_ERRORS = (
    "ra_error_mas", "dec_error_mas", "parallax_error_mas", "pm_ra_error_mas_yr",
    "pm_dec_error_mas_yr",
)
_CORRELATIONS = {
    (0, 1): "ra_dec_corr", (0, 2): "ra_parallax_corr", (0, 3): "ra_pmra_corr",
    (0, 4): "ra_pmdec_corr", (1, 2): "dec_parallax_corr", (1, 3): "dec_pmra_corr",
    (1, 4): "dec_pmdec_corr", (2, 3): "parallax_pmra_corr", (2, 4): "parallax_pmdec_corr",
    (3, 4): "pmra_pmdec_corr",
}


def _moved_covariance(
    reference: NDArray[np.void], sigma: Floats, dt: Floats, f_ra: Floats, f_dec: Floats,
    known: NDArray[np.bool_],
) -> Floats:
    """Return ``J C J^T`` (n, 3); correlations with a motion count where the motion is known."""
    one, zero = np.ones_like(dt), np.zeros_like(dt)
    # Rows of the Jacobian d(ra*, dec) / d(ra*, dec, parallax, pm_ra, pm_dec), times the errors.
    a = np.stack([one, zero, f_ra, dt, zero]) * sigma
    b = np.stack([zero, one, f_dec, zero, dt]) * sigma
    out = np.stack([(a * a).sum(axis=0), (b * b).sum(axis=0), (a * b).sum(axis=0)], axis=-1)
    for (i, k), name in _CORRELATIONS.items():
        rho = np.nan_to_num(reference[name]).astype(float)
        if k > 2:
            rho[~known] = 0.0
        if not rho.any():
            continue
        out[:, 0] += 2.0 * rho * a[i] * a[k]
        out[:, 1] += 2.0 * rho * b[i] * b[k]
        out[:, 2] += rho * (a[i] * b[k] + a[k] * b[i])
    return out


def rows_within(
    ra_deg: ArrayLike, dec_deg: ArrayLike, ra0_deg: float, dec0_deg: float, radius_deg: float
) -> NDArray[np.int64]:
    """Return the rows of a list that lie within a circle, its edge included, in rising order."""
    ra, dec = np.asarray(ra_deg, dtype=float), np.asarray(dec_deg, dtype=float)
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero(np.abs(dec - dec0_deg) <= radius_deg + 1e-9)
    if radius_deg >= 180.0:
        return rows
    half_ra = np.radians(ra[rows] - ra0_deg) / 2.0
    dec, dec0 = np.radians(dec[rows]), np.radians(dec0_deg)
    # Half the chord, squared (the haversine), keeps its digits in small circles.
    haversine = (
        np.sin((dec - dec0) / 2.0) ** 2 + np.cos(dec) * np.cos(dec0) * np.sin(half_ra) ** 2
    )
    edge = np.sin(np.radians(radius_deg) / 2.0) ** 2
    return rows[haversine <= edge * (1.0 + 1e-12) + 1e-30]


# --- HEALPix, nested (Gorski et al. 2005, ApJ 622, 759) -------------------------------------
# Implemented here because the libraries for it take a third of a second to import.

MAX_ORDER = 29  # 12 x 4^29 cells: the deepest order whose numbers fit into 64-bit integers
# Ring number, in units of nside, of the southern corner of each of the twelve base cells, and
# the longitude of that corner in units of 45 degrees.
_CORNER_RING = np.array([2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4])
_CORNER_LONGITUDE = np.array([1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7])
_SPREAD = (
    (16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F),
    (2, 0x3333333333333333), (1, 0x5555555555555555),
)


def healpix_cell(
    ra_deg: ArrayLike, dec_deg: ArrayLike, order: int = MAX_ORDER
) -> NDArray[np.int64]:
    """Return the nested HEALPix cell of directions at an order (nside = 2^order)."""
    ra, dec = np.broadcast_arrays(
        np.asarray(ra_deg, dtype=float), np.asarray(dec_deg, dtype=float)
    )
    nside = 1 << order
    z, tt = np.sin(np.radians(dec)), (ra % 360.0) / 90.0
    height = np.abs(z)
    polar = height > 2.0 / 3.0
    # The two diagonal coordinates of the equatorial belt; the base cell follows from them.
    rising, falling = nside * (0.5 + tt - 0.75 * z), nside * (0.5 + tt + 0.75 * z)
    jp, jm = rising.astype(np.int64), falling.astype(np.int64)
    fp, fm = jp >> order, jm >> order
    face = np.where(fp == fm, (fp & 3) | 4, np.where(fp < fm, fp & 3, (fm & 3) + 8))
    ix, iy = jm & (nside - 1), nside - 1 - (jp & (nside - 1))
    if polar.any():
        quadrant = np.minimum(tt.astype(np.int64), 3)
        frac = tt - quadrant
        # sqrt(3 (1 - |z|)), from cos(dec), which keeps its digits at the poles.
        root = nside * np.abs(np.cos(np.radians(dec))) * np.sqrt(3.0 / (1.0 + height))
        jp_polar = np.minimum((frac * root).astype(np.int64), nside - 1)
        jm_polar = np.minimum(((1.0 - frac) * root).astype(np.int64), nside - 1)
        north = z > 0
        face = np.where(polar, np.where(north, quadrant, quadrant + 8), face)
        ix = np.where(polar, np.where(north, nside - 1 - jm_polar, jp_polar), ix)
        iy = np.where(polar, np.where(north, nside - 1 - jp_polar, jm_polar), iy)
    return (face.astype(np.int64) << (2 * order)) + _interleaved(ix) + (_interleaved(iy) << 1)


def healpix_center(cell: ArrayLike, order: int) -> Floats:
    """Return the unit vectors (..., 3) of the centres of nested cells."""
    cell = np.asarray(cell, dtype=np.int64)
    nside = 1 << order
    face = cell >> (2 * order)
    inside = cell & ((1 << (2 * order)) - 1)
    ix, iy = _deinterleaved(inside), _deinterleaved(inside >> 1)
    ring = _CORNER_RING[face] * nside - ix - iy - 1
    north, south = ring < nside, ring > 3 * nside
    width = np.where(north, ring, np.where(south, 4 * nside - ring, nside)).astype(float)
    part = width**2 / (3.0 * float(nside) ** 2)
    belt = (2.0 * nside - ring) * 2.0 / (3.0 * nside)
    z = np.where(north, 1.0 - part, np.where(south, part - 1.0, belt))
    sine_belt = np.sqrt(np.maximum(0.0, 1.0 - belt**2))
    sine = np.where(north | south, np.sqrt(part * (2.0 - part)), sine_belt)
    # Within a polar cap a quarter turn holds `width` cells, in the belt nside.
    phi = np.pi / 4.0 * (_CORNER_LONGITUDE[face] + (ix - iy) / width)
    return np.stack([sine * np.cos(phi), sine * np.sin(phi), z], axis=-1)


def healpix_radius_deg(order: int) -> float:
    """Return the largest angle from the centre of a cell to its corners, at an order."""
    nside = 1 << order
    middle = np.array([np.sqrt(5.0) / 3.0 * np.cos(np.pi / (4 * nside)),
                       np.sqrt(5.0) / 3.0 * np.sin(np.pi / (4 * nside)), 2.0 / 3.0])
    z = 1.0 - (1.0 - 1.0 / nside) ** 2 / 3.0
    corner = np.array([np.sqrt(1.0 - z * z), 0.0, z])
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(middle, corner)), middle @ corner)))


def cone_cells(
    ra_deg: float, dec_deg: float, radius_deg: float, order: int
) -> NDArray[np.int64]:
    """Return, sorted, all nested cells of an order that may overlap a circle on the sky.

    No cell that overlaps it is missing; a few others may be included.
    """
    center = unit_vectors(ra_deg, dec_deg)
    cells = np.arange(12, dtype=np.int64)
    for k in range(order + 1):
        if k:
            cells = (cells[:, None] * 4 + np.arange(4)).ravel()
        reach = np.radians(min(radius_deg + healpix_radius_deg(k), 180.0))
        v = healpix_center(cells, k)
        chord = np.linalg.norm(v - center, axis=-1)
        cells = cells[chord <= 2.0 * np.sin(reach / 2.0) + 1e-12]
    return cells


def cone_ranges(ra_deg: float, dec_deg: float, radius_deg: float) -> NDArray[np.int64]:
    """Cover a circle on the sky by ranges (k, 2) of cells of order 29, [first, last), in order.

    The cells are about a twelfth of the circle's diameter: smaller cells would give more ranges,
    larger ones include more sky outside.
    """
    order = 0
    while order < MAX_ORDER - 1 and healpix_radius_deg(order) > max(radius_deg, 1e-7) / 6.0:
        order += 1
    cells = cone_cells(ra_deg, dec_deg, radius_deg, order)
    if len(cells) == 0:
        return np.zeros((0, 2), dtype=np.int64)
    breaks = np.flatnonzero(np.diff(cells) > 1)
    first = cells[np.concatenate([[0], breaks + 1])]
    last = cells[np.concatenate([breaks, [len(cells) - 1]])] + 1
    return np.stack([first, last], axis=1) << (2 * (MAX_ORDER - order))


def _interleaved(bits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Spread the bits of numbers below 2^29 to the even places."""
    for shift, mask in _SPREAD:
        bits = (bits | (bits << shift)) & mask
    return bits


def _deinterleaved(bits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Gather the even bits: the inverse of :func:`_interleaved`."""
    bits = bits & 0x5555555555555555
    for shift, mask in ((1, 0x3333333333333333), (2, 0x0F0F0F0F0F0F0F0F), (4, 0x00FF00FF00FF00FF),
                        (8, 0x0000FFFF0000FFFF), (16, 0x00000000FFFFFFFF)):
        bits = (bits | (bits >> shift)) & mask
    return bits
