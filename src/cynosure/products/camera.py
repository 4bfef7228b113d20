"""The geometry of a scene: focal plane, distortion, chips, atmosphere, and the header's WCS.

The focal plane is in pixels from its centre, X and Y. A chip maps its own pixels there by a shift
and a rotation; the distortion, a polynomial in (X, Y) over the half diagonal, maps that to the
ideal plane; scale, rotation and parity map that to the tangent plane. All of it is a polynomial,
so each chip's true WCS is a :class:`~cynosure.geometry.wcs.SkyModel` exactly.
"""

from __future__ import annotations

import datetime
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.wcs import SkyModel
from cynosure.ground.numeric import lstsq, n_terms, poly_design
from cynosure.ground.sky import MAS_PER_DEG, deproject, east_north, radec, unit_vectors
from cynosure.products.scene import Atmosphere, Camera, Distortion, Header, Scene

__all__ = ["FocalPlane", "believed_models", "build_focal_plane", "displacement_mas", "epoch_yr"]

Floats = NDArray[np.float64]

# Random waves of the turbulence field: the sum is a Gaussian process to 1 % in its tails.
N_WAVES = 400


@dataclass(frozen=True, slots=True, eq=False)
class FocalPlane:
    """The true geometry of a scene.

    Attributes
    ----------
    models : tuple of SkyModel
        The true WCS of each chip.
    half_width_px, half_height_px : float
        Half the sides of the box around all chips.
    """

    models: tuple[SkyModel, ...]
    half_width_px: float
    half_height_px: float


def epoch_yr(camera: Camera) -> float:
    """Return the Julian year of mid-exposure."""
    import erfa

    start = datetime.datetime.fromisoformat(camera.date_obs)
    seconds = start.second + start.microsecond * 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", erfa.ErfaWarning)  # leap seconds of the future
        utc = erfa.dtf2d(
            "UTC", start.year, start.month, start.day, start.hour, start.minute, seconds
        )
        day, fraction = erfa.taitt(*erfa.utctai(*utc))
    return float(2000.0 + (day - 2451545.0 + fraction + camera.exptime_s / 172800.0) / 365.25)


def _to_focal(camera: Camera, chip: int, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Map the pixels of a chip to the focal plane."""
    rotations = camera.chip_rotation_deg
    angle = np.radians(rotations[chip] if len(rotations) > 1 else rotations[0])
    dx, dy = x - (camera.width_px - 1) / 2, y - (camera.height_px - 1) / 2
    return (
        camera.chip_x_px[chip] + np.cos(angle) * dx - np.sin(angle) * dy,
        camera.chip_y_px[chip] + np.sin(angle) * dx + np.cos(angle) * dy,
    )


def _axes(scale_arcsec: float, rotation_deg: float, parity: int) -> Floats:
    """Return d(xi, eta) / d(X, Y) in degrees per pixel.

    +Y points at `rotation_deg` from north through east; +X is 90 degrees clockwise from it on a
    mirrored image and counter-clockwise (to the west, when north is up) on a common one.
    """
    c, s = np.cos(np.radians(rotation_deg)), np.sin(np.radians(rotation_deg))
    return scale_arcsec / 3600.0 * np.array([[-parity * c, s], [parity * s, c]])


def _distorted(
    distortion: Distortion, random: Floats, half_diagonal: float, x: Floats, y: Floats
) -> tuple[Floats, Floats]:
    """Apply the distortion to focal-plane pixels (Brown 1966 and a random polynomial)."""
    u, v = x / half_diagonal, y / half_diagonal
    r2 = u * u + v * v
    radial = distortion.radial3 * r2 + distortion.radial5 * r2 * r2
    p, q = distortion.tangential_x, distortion.tangential_y
    du = u * radial + p * (r2 + 2 * u * u) + 2 * q * u * v
    dv = v * radial + q * (r2 + 2 * v * v) + 2 * p * u * v
    if random.size:
        terms = poly_design(u, v, distortion.random_degree)
        du, dv = du + terms @ random[0] / half_diagonal, dv + terms @ random[1] / half_diagonal
    return x + half_diagonal * du, y + half_diagonal * dv


def _degree(distortion: Distortion) -> int:
    degree = 1
    if distortion.tangential_x or distortion.tangential_y:
        degree = 2
    if distortion.radial3:
        degree = 3
    if distortion.radial5:
        degree = 5
    return max(degree, distortion.random_degree if distortion.random_px > 0 else 1)


def _random_terms(
    rng: np.random.Generator, distortion: Distortion, half_width: float, half_height: float
) -> Floats:
    """Draw a polynomial of second and higher order with the given rms displacement in pixels."""
    degree = distortion.random_degree
    if degree < 2 or distortion.random_px == 0:
        return np.zeros(0)
    half = np.hypot(half_width, half_height)
    grid = np.meshgrid(np.linspace(-half_width, half_width, 25) / half,
                       np.linspace(-half_height, half_height, 25) / half)  # fmt: skip
    design = poly_design(grid[0].ravel(), grid[1].ravel(), degree)
    # Orders contribute alike: terms of equal rms over the frame, linear part excluded.
    size = np.sqrt(np.mean(design**2, axis=0))
    terms = rng.standard_normal((2, n_terms(degree))) / size
    terms[:, :3] = 0.0
    values = terms @ design.T
    return terms * (distortion.random_px / np.sqrt(np.mean(values**2, axis=1)))[:, None]


def build_focal_plane(scene: Scene, rng: np.random.Generator) -> FocalPlane:
    """Return the true geometry of a scene; `rng` draws the random part of its distortion."""
    camera, distortion = scene.camera, scene.distortion
    nx, ny = camera.width_px, camera.height_px
    corners = [
        _to_focal(camera, k, np.array([0.0, nx, 0.0, nx]) - 0.5, np.array([0.0, 0.0, ny, ny]) - 0.5)
        for k in range(camera.n_chips)
    ]
    half_width = max(float(np.abs(x).max()) for x, _ in corners)
    half_height = max(float(np.abs(y).max()) for _, y in corners)
    half = float(np.hypot(half_width, half_height))
    random = _random_terms(rng, distortion, half_width, half_height)
    axes = _axes(camera.scale_arcsec, camera.rotation_deg, camera.parity)
    degree = _degree(distortion)
    x0, y0, scale = (nx - 1) / 2, (ny - 1) / 2, max(np.hypot(nx, ny) / 2, 1.0)
    u, v = (a.ravel() for a in np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 21)))
    design = poly_design(u, v, degree)
    models = []
    for chip in range(camera.n_chips):
        focal = _to_focal(camera, chip, x0 + scale * u, y0 + scale * v)
        plane = axes @ np.stack(_distorted(distortion, random, half, *focal))
        # The composition is a polynomial of this degree, so least squares finds it exactly.
        coeff = lstsq(design, plane.T, what="focal plane").x.T
        models.append(SkyModel(scene.sky.ra_deg % 360.0, scene.sky.dec_deg, x0, y0, scale, coeff))
    return FocalPlane(tuple(models), half_width, half_height)


# --------------------------------------------------------------------------- the atmosphere


def displacement_mas(
    rng: np.random.Generator,
    atmosphere: Atmosphere,
    ra_deg: Floats,
    dec_deg: Floats,
    color: Floats,
    center: tuple[float, float, float],
) -> tuple[Floats, Floats]:
    """Return the displacement of each star by the atmosphere, towards east and north.

    Parameters
    ----------
    rng : Generator
        Randomness of the turbulence.
    atmosphere : Atmosphere
        Its strength.
    ra_deg, dec_deg : (n,) ndarray
        Directions.
    color : (n,) ndarray
        Colours.
    center : (float, float, float)
        Right ascension and declination of the field's centre, and the colour without displacement.
    """
    ra0, dec0, color0 = center
    east = np.zeros(len(ra_deg))
    north = np.zeros(len(ra_deg))
    if atmosphere.turbulence_mas > 0:
        turbulent = _turbulence(rng, atmosphere, ra_deg, dec_deg, ra0, dec0)
        east, north = east + turbulent[0], north + turbulent[1]
    if atmosphere.dcr_mas_mag != 0:
        refracted = _refraction(atmosphere, ra_deg, dec_deg, color - color0, ra0, dec0)
        east, north = east + refracted[0], north + refracted[1]
    return east, north


def _turbulence(
    rng: np.random.Generator,
    atmosphere: Atmosphere,
    ra: Floats,
    dec: Floats,
    ra0: float,
    dec0: float,
) -> tuple[Floats, Floats]:
    """Return a random field with the von Karman spectrum ``(k^2 + 1/L^2)^(-11/6)``.

    Wave numbers are drawn from that spectrum (in two dimensions its cumulative distribution is
    ``1 - (1 + k^2 L^2)^(-5/6)``), directions and phases uniformly. The displacement is along the
    wave vector, as the displacements of refraction are gradients of a potential.
    """
    k_scale = 60.0 / atmosphere.turbulence_arcmin  # 1 / L in 1 / deg
    k = k_scale * np.sqrt((1.0 - rng.random(N_WAVES)) ** (-6.0 / 5.0) - 1.0)
    angle, phase = rng.uniform(0, 2 * np.pi, N_WAVES), rng.uniform(0, 2 * np.pi, N_WAVES)
    # Local plane coordinates; the field is narrow, so the gnomonic scale does not matter.
    n = unit_vectors(ra, dec)
    east, north = east_north(ra0, dec0)
    xi, eta = np.degrees(n @ east), np.degrees(n @ north)
    # sin^2 of the phase and cos^2 of the direction average to 1/4.
    amplitude = 2.0 * atmosphere.turbulence_mas / np.sqrt(N_WAVES)
    d_east, d_north = np.zeros(len(ra)), np.zeros(len(ra))
    for start in range(0, len(ra), 20000):
        part = slice(start, start + 20000)
        wave = amplitude * np.sin(
            np.outer(xi[part], k * np.sin(angle)) + np.outer(eta[part], k * np.cos(angle)) + phase
        )
        d_east[part], d_north[part] = wave @ np.sin(angle), wave @ np.cos(angle)
    return d_east, d_north


def _refraction(
    atmosphere: Atmosphere, ra: Floats, dec: Floats, color: Floats, ra0: float, dec0: float
) -> tuple[Floats, Floats]:
    """Return the colour refraction: ``k (C - C0) tan z`` towards the zenith, z for each star."""
    z0, q = np.radians(atmosphere.zenith_deg), np.radians(atmosphere.parallactic_deg)
    east0, north0 = east_north(ra0, dec0)
    zenith = np.cos(z0) * unit_vectors(ra0, dec0) + np.sin(z0) * (
        np.sin(q) * east0 + np.cos(q) * north0
    )
    n = unit_vectors(ra, dec)
    east, north = east_north(ra, dec)
    cosine = np.maximum(n @ zenith, 0.02)
    # The zenith's components on the local axes are sin z (sin q, cos q): over cos z, the tangent.
    size = atmosphere.dcr_mas_mag * color / cosine
    return size * (east @ zenith), size * (north @ zenith)


def moved(ra: Floats, dec: Floats, east_mas: Floats, north_mas: Floats) -> tuple[Floats, Floats]:
    """Move directions by an offset on the sky."""
    east, north = east_north(ra, dec)
    rad = np.radians(1.0 / MAS_PER_DEG)
    return radec(
        unit_vectors(ra, dec)
        + (east_mas * rad)[:, None] * east
        + (north_mas * rad)[:, None] * north
    )


# ------------------------------------------------------------------------- the header's WCS


def believed_models(
    scene: Scene, plane: FocalPlane, rng: np.random.Generator
) -> tuple[SkyModel, ...]:
    """Return the models of the header: the true ones with the header's errors.

    The pointing is wrong in a random direction; rotation and scale are wrong about the centre of
    the focal plane. With ``header.wcs = "tan"`` only the linear part is kept.
    """
    header: Header = scene.header
    angle = rng.uniform(0, 2 * np.pi)
    distance = np.degrees(np.tan(np.radians(header.pointing_error_deg)))
    sky = scene.sky
    ra0, dec0 = sky.ra_deg % 360.0, sky.dec_deg
    if 0 < header.pointing_error_deg < 80:
        ra, dec = deproject(distance * np.sin(angle), distance * np.cos(angle), ra0, dec0)
        ra0, dec0 = float(ra), float(dec)
    elif header.pointing_error_deg >= 80:
        ra0, dec0 = (ra0 + 180.0) % 360.0, -dec0
    turn = np.radians(header.rotation_error_deg)
    # A rotation from north through east is clockwise with xi to the right and eta up.
    matrix = (1.0 + header.scale_error) * np.array(
        [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
    )
    nominal = plane.models if header.wcs == "true" else _linear_models(scene)
    return tuple(m.replaced(ra0_deg=ra0, dec0_deg=dec0, coeff=matrix @ m.coeff) for m in nominal)


def _linear_models(scene: Scene) -> tuple[SkyModel, ...]:
    plain = scene.updated({"distortion": {k: 0 for k in Distortion.__dataclass_fields__}})
    return build_focal_plane(plain, np.random.default_rng(0)).models
