"""A WCS corrected in a common tangent plane, with the covariance of the correction.

A :class:`Correction` moves the plane that touches the sky at (ra0, dec0),

    (xi, eta)' = M (xi, eta) + t,

and with it every position on the sky. Its geometry is one of shift (t), rshift (and a rotation),
rscale (and a scale) and general (any M); :data:`cynosure.geometry.fit.geometries.GEOMETRIES` is the
table of their parameters and of the fewest stars that each is tried with. The chips of an exposure
are moved by the same correction, so that they stay where they are to each other.

:func:`fit_correction` finds it from paired stars: their pixels go through the WCS *whole*, SIP and
tables included, so that nothing is flattened. :func:`correct_wcs` writes it into a WCS. Only CRVAL
and CD change; CRPIX, SIP and lookup tables stay to the bit. A chip's plane touches the sky at its
own CRVAL, and a linear map of one tangent plane is not exactly one of another (of a shift t at the
distance r the difference is of the order t r^2): CRVAL and CD are those that agree best over the
chip, and the largest distance that is left is returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.data.fits.wcsread import is_wcs_keyword, sky_of_pixels
from cynosure.geometry.fit.exposure import fit_wcs
from cynosure.geometry.fit.geometries import GEOMETRIES
from cynosure.geometry.fit.plane import Fit
from cynosure.geometry.fitsmap import on_plane
from cynosure.geometry.observations import Pairs
from cynosure.geometry.pixelmap import (
    LINEAR_GEOMETRIES,
    Composite,
    LinearMap,
    Reprojection,
    SkyMap,
)
from cynosure.geometry.skymodel import SkyModel
from cynosure.ground.errors import Degenerate, SettingError
from cynosure.ground.numeric import lstsq
from cynosure.ground.sky import (
    MAS_PER_DEG,
    deproject,
    east_north,
    project,
    radec,
    separation_deg,
    unit_vectors,
)

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

__all__ = [
    "Corrected",
    "Correction",
    "CorrectionFit",
    "correct_wcs",
    "corrected_cards",
    "fit_correction",
    "least_stars",
]

Floats = NDArray[np.float64]
Pair = tuple[Floats, Floats]

# Most Gauss-Newton steps for CRVAL and CD; each gains at least three digits, so that three or four
# are taken and the rest is a guard.
STEPS = 8
# Stop when the WCS agrees with the correction to this: a hundredth of a microarcsecond, far below
# the 0.01 mas that the best catalogue position is known to.
EXACT_MAS = 1e-5
# With fewer stars than these the geometry is not chosen by cross-validation, which would leave too
# few to fit: two stars for each of the six parameters of ``general``.
CHOOSE_STARS = 12
# Points along each side of the grid on which CRVAL and CD are fitted, and of the finer grid on
# which the fit is checked (with nodes halfway between those of the first). The residual is a smooth
# quadratic, so that both resolve it many times over.
GRID, CHECK_GRID = 17, 33


def least_stars(geometry: str) -> int:
    """Return the fewest stars that a geometry is tried with.

    Examples
    --------
    >>> [least_stars(geometry) for geometry in ("shift", "rshift", "rscale", "general")]
    [1, 2, 3, 5]
    """
    return GEOMETRIES[geometry][1]


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """A linear correction of the sky in a tangent plane.

    Attributes
    ----------
    linear : LinearMap
        Of the plane, in degrees.
    ra0_deg, dec0_deg : float
        Where the plane touches the sky.
    covariance : (p, p) ndarray
        Of the parameters of `linear`: deg^2 for the shift.
    """

    linear: LinearMap
    ra0_deg: float
    dec0_deg: float
    covariance: Floats

    @classmethod
    def of(
        cls, ra0_deg: float, dec0_deg: float, *, shift_arcsec: tuple[float, float] = (0.0, 0.0),
        rotation_deg: float = 0.0, scale: float = 1.0,
    ) -> Correction:
        """Return an exact correction: a shift east and north, a turn from north through east."""
        turn = np.radians(-rotation_deg)
        matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        geometry = "rscale" if scale != 1.0 else "rshift" if rotation_deg else "shift"
        linear = LinearMap.of(geometry, matrix, np.array(shift_arcsec) / 3600.0)
        size = len(linear.parameters)
        return cls(linear, ra0_deg, dec0_deg, np.zeros((size, size)))

    @property
    def geometry(self) -> str:
        """One of ``LINEAR_GEOMETRIES``."""
        return self.linear.geometry

    @property
    def shift_arcsec(self) -> tuple[float, float]:
        """How far the tangent point moves to the east and to the north."""
        return float(3600.0 * self.linear.shift[0]), float(3600.0 * self.linear.shift[1])

    @property
    def rotation_deg(self) -> float:
        """How far the sky turns from north through east."""
        m = self.linear.matrix
        return float(np.degrees(np.arctan2(m[0, 1] - m[1, 0], m[0, 0] + m[1, 1])))

    @property
    def scale(self) -> float:
        """The factor on lengths, the root of the determinant."""
        return float(np.sqrt(abs(np.linalg.det(self.linear.matrix))))

    def sky(self, ra_deg: ArrayLike, dec_deg: ArrayLike) -> Pair:
        """Return where positions come to lie, degrees."""
        plane = project(ra_deg, dec_deg, self.ra0_deg, self.dec0_deg)
        return deproject(*self.linear.pixel_to_plane(*plane), self.ra0_deg, self.dec0_deg)

    def applied(self, sky_map: SkyMap) -> Composite:
        """Return a map that puts pixels where the correction puts them, on its own plane."""
        on = on_plane(sky_map, self.ra0_deg, self.dec0_deg)
        return Composite((on, self.linear), self.ra0_deg, self.dec0_deg)

    def error_mas(self, ra_deg: ArrayLike, dec_deg: ArrayLike) -> Floats:
        """Return its standard error (..., 2) at positions, along ra (with cos dec) and dec."""
        plane = np.stack(project(ra_deg, dec_deg, self.ra0_deg, self.dec0_deg), axis=-1)
        design = self.linear.derivatives(plane[..., 0], plane[..., 1])
        turn = _sky_axes(plane, ra_deg, dec_deg, (self.ra0_deg, self.dec0_deg))
        design = turn @ design * MAS_PER_DEG
        return np.sqrt(np.einsum("...ij,jk,...ik->...i", design, self.covariance, design))

    def wcs_error_mas(self, sky_map: SkyMap, x: ArrayLike, y: ArrayLike) -> Floats:
        """Return its standard error (..., 2) at pixels of a map that it corrects."""
        return self.error_mas(*sky_map.pixel_to_sky(x, y))

    def inverse(self) -> Correction:
        """Return the correction that takes this one back, with the same geometry.

        ``M' = M^-1, t' = -M^-1 t``, and for the covariance ``dM' = -M^-1 dM M^-1``,
        ``dt' = -M^-1 (dt + dM t')``.
        """
        inverse = np.asarray(np.linalg.inv(self.linear.matrix), dtype=np.float64)
        shift = -inverse @ self.linear.shift
        slope = np.zeros((6, 6))  # of (t, M row by row)
        slope[:2, :2] = -inverse
        slope[:2, 2:] = -np.kron(inverse, shift)
        slope[2:, 2:] = -np.kron(inverse, inverse.T)
        return self._with(self.geometry, inverse, shift, slope @ self._general @ slope.T)

    def then(self, other: Correction) -> Correction:
        """Return this correction followed by another in the same plane.

        The geometry is the wider of the two; their errors are taken to be independent.

        Raises
        ------
        SettingError
            If the planes touch the sky at different points; see :meth:`about`.
        """
        if (self.ra0_deg, self.dec0_deg) != (other.ra0_deg, other.dec0_deg):
            raise SettingError(
                "the corrections are of different tangent planes, at {a:.6f} {b:+.6f} and "
                "{c:.6f} {d:+.6f}", a=self.ra0_deg, b=self.dec0_deg, c=other.ra0_deg,
                d=other.dec0_deg, hint="Take one of them to the other's plane (about).",
            )
        first, second = self.linear, other.linear
        geometry = max(first.geometry, second.geometry, key=LINEAR_GEOMETRIES.index)
        by_first = np.zeros((6, 6))
        by_first[:2, :2] = second.matrix
        by_first[2:, 2:] = np.kron(second.matrix, np.eye(2))
        by_second = np.eye(6)
        by_second[:2, 2:] = np.kron(np.eye(2), first.shift)
        by_second[2:, 2:] = np.kron(np.eye(2), first.matrix.T)
        covariance = by_first @ self._general @ by_first.T
        covariance += by_second @ other._general @ by_second.T
        return self._with(
            geometry, second.matrix @ first.matrix, second.matrix @ first.shift + second.shift,
            covariance,
        )

    def about(self, ra0_deg: float, dec0_deg: float) -> Correction:
        """Return the correction in the plane of another tangent point, of the geometry general.

        It is the linear part there: exact at that point, and to t r^2 at the distance r from it.
        """
        there = Reprojection((ra0_deg, dec0_deg), (self.ra0_deg, self.dec0_deg))
        back = Reprojection((self.ra0_deg, self.dec0_deg), (ra0_deg, dec0_deg))
        whole = Composite((there, self.linear, back), ra0_deg, dec0_deg)
        matrix, shift = whole.jacobian(0.0, 0.0), np.array(whole.pixel_to_plane(0.0, 0.0))
        # The parameters' errors, to first order as if nothing else moved.
        at, out = there.jacobian(0.0, 0.0), back.jacobian(0.0, 0.0)
        point = np.array(there.pixel_to_plane(0.0, 0.0))
        slope = np.zeros((6, 6))
        slope[:2, :2], slope[:2, 2:] = out, np.kron(out, point)
        slope[2:, 2:] = np.kron(out, at.T)
        new = LinearMap.of("general", matrix, shift)
        return Correction(new, ra0_deg, dec0_deg, slope @ self._general @ slope.T)

    @property
    def _general(self) -> Floats:
        """The covariance of t and of M row by row, (6, 6)."""
        # The image of the unit vectors less that of the origin is M, that of the origin t.
        corners = self.linear.derivatives([0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
        slope = np.zeros((6, len(self.covariance)))
        slope[:2] = corners[0]
        for column in (1, 2):
            slope[[1 + column, 3 + column]] = corners[column] - corners[0]
        return slope @ self.covariance @ slope.T

    def _with(self, geometry: str, matrix: Floats, shift: Floats, covariance: Floats) -> Correction:
        """Return a correction of a geometry in the same plane; the covariance is of (t, M)."""
        new = LinearMap.of(geometry, matrix, shift)
        slope = np.zeros((len(new.parameters), 6))
        slope[:2, :2] = np.eye(2)
        if geometry == "general":
            slope[2:, 2:] = np.eye(4)
        elif geometry == "rscale":
            slope[2, 2:], slope[3, 2:] = [0.0, -0.5, 0.5, 0.0], [0.5, 0.0, 0.0, 0.5]
        elif geometry == "rshift":  # the tangent of the angle: d tan = d angle / cos^2
            m = new.matrix
            c, s = m[0, 0], m[1, 0]
            slope[2, 2:] = np.array([-s, -c, c, -s]) / (2.0 * c * c)
        return Correction(new, self.ra0_deg, self.dec0_deg, slope @ covariance @ slope.T)


def _sky_axes(
    plane: Floats, ra_deg: ArrayLike, dec_deg: ArrayLike, at: tuple[float, float]
) -> Floats:
    """Return d(offset on the sky) / d(plane), (..., 2, 2): along ra (with cos dec) and dec."""
    point = np.radians(plane)
    east, north = east_north(ra_deg, dec_deg)
    east0, north0 = east_north(*at)
    axes = np.stack([east, north], axis=-2) @ np.stack([east0, north0], axis=-1)
    return axes / np.sqrt(1.0 + np.sum(point**2, axis=-1))[..., None, None]


# --- fitting --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class CorrectionFit:
    """The result of :func:`fit_correction`.

    Attributes
    ----------
    correction : Correction
    fit : Fit
        Of all stars together, on the common plane: residuals, error model, who was used.
    chip : (n,) ndarray of int
        The chip of each star of `fit`: its place in the list that was given.
    """

    correction: Correction
    fit: Fit
    chip: NDArray[np.int64]


def fit_correction(
    chips: Sequence[tuple[SkyMap, Pairs]], *, geometry: str = "auto", lowest: str = "rscale",
    tangent: tuple[float, float] | None = None, options: Mapping[str, Any] | None = None,
) -> CorrectionFit:
    """Fit one correction to the paired stars of one or more chips.

    Parameters
    ----------
    chips : sequence of (SkyMap, Pairs)
        Each chip's WCS as a map, and its pairs.
    geometry : str
        One of ``LINEAR_GEOMETRIES``, or ``auto``: the one that predicts held-out stars best.
    lowest : str
        The simplest geometry that ``auto`` takes where there are stars for it, and the one that it
        takes with few stars. A simpler one treats the rotation of the WCS as exact, and its error
        at the corners as zero.
    tangent : (float, float), optional
        Where the common plane touches the sky; the mean of the stars where absent.
    options : mapping, optional
        Settings of :func:`cynosure.geometry.fit.exposure.fit_wcs` other than these.

    Raises
    ------
    Degenerate
        If there are fewer stars than the geometry needs, or they do not determine it.
    SettingError
        If the geometry is not linear.
    """
    if geometry != "auto" and geometry not in LINEAR_GEOMETRIES:
        raise SettingError("geometry {geometry!r} is not known", geometry=geometry,
                           hint=f"One of auto, {', '.join(LINEAR_GEOMETRIES)}.")
    count = sum(len(pairs) for _, pairs in chips)
    if geometry == "auto" and count < CHOOSE_STARS:
        simple = LINEAR_GEOMETRIES[: LINEAR_GEOMETRIES.index(lowest) + 1]
        geometry = max((f for f in simple if count >= least_stars(f)), key=simple.index,
                   default="shift")
    if count < (1 if geometry == "auto" else least_stars(geometry)):
        raise Degenerate(what="correction of the WCS", n_points=count, condition=np.inf,
                         n_parameters=GEOMETRIES[geometry][0])
    if tangent is None:
        vectors = np.concatenate([unit_vectors(p.ra_deg, p.dec_deg) for _, p in chips])
        ra0, dec0 = radec(vectors.mean(axis=0))
        tangent = float(ra0), float(dec0)
    placed = [_on_common_plane(sky_map, pairs, tangent) for sky_map, pairs in chips]
    pairs = Pairs(*(np.concatenate([getattr(p, name) for p in placed]) for name in Pairs.__slots__))
    unity = SkyModel(*tangent, 0.0, 0.0, 1.0, np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    settings = {**(options or {}), "geometry": geometry, "max_order": 0}
    fit = fit_wcs(pairs, unity, (1, 1), unity, lowest, **settings)
    linear = LinearMap.of(fit.geometry, fit.model.coeff[:, 1:], fit.model.coeff[:, 0])
    grow = max(1.0, fit.chi2 / max(fit.dof, 1))
    chip = np.repeat(np.arange(len(chips)), [len(p) for p in placed])
    return CorrectionFit(Correction(linear, *tangent, fit.covariance * grow), fit, chip)


def _on_common_plane(sky_map: SkyMap, pairs: Pairs, tangent: tuple[float, float]) -> Pairs:
    """Return pairs with their pixels replaced by degrees on a tangent plane."""
    on = on_plane(sky_map, *tangent)
    xi, eta = on.pixel_to_plane(pairs.x, pairs.y)
    j = on.jacobian(pairs.x, pairs.y)
    full = pairs.cov_px2[:, [0, 2, 2, 1]].reshape(-1, 2, 2)
    moved = (j @ full @ np.swapaxes(j, 1, 2)).reshape(-1, 4)[:, [0, 3, 1]]
    rest = (getattr(pairs, name) for name in Pairs.__slots__[3:])
    return Pairs(xi, eta, moved, *rest)


# --- writing --------------------------------------------------------------------------------


class Corrected(NamedTuple):
    """A corrected WCS.

    Attributes
    ----------
    wcs : WCS
        A copy with other CRVAL and CD (or PC, where it has CDELT).
    lost_mas : float
        The largest distance over the chip between it and the exact correction.
    """

    wcs: WCS
    lost_mas: float


def correct_wcs(wcs: WCS, correction: Correction, shape: tuple[int, int]) -> Corrected:
    """Write a correction into CRVAL and CD of a WCS.

    Parameters
    ----------
    wcs : WCS
        Of any projection; it is not changed.
    correction : Correction
    shape : (int, int)
        Rows and columns of the chip.
    """
    x, y = _grid(shape, GRID)
    ra, dec = correction.sky(*sky_of_pixels(wcs, x, y))
    good = np.isfinite(ra) & np.isfinite(dec)
    x, y = x[good], y[good]
    center = tuple(float(v) for v in radec(unit_vectors(ra[good], dec[good]).mean(axis=0)))
    wanted = np.stack(project(ra[good], dec[good], *center))

    def offset(trial: WCS) -> Floats:
        """Return the remaining offset on the plane at the middle of the chip, deg."""
        return np.ravel(wanted - project(*sky_of_pixels(trial, x, y), *center))

    new = wcs.deepcopy()
    missing = offset(new)
    small = np.abs(np.diff(wcs.pixel_scale_matrix.ravel())).max() or 1e-5
    for _ in range(STEPS):
        if np.abs(missing).max() * MAS_PER_DEG < EXACT_MAS:
            break
        # Units in which each parameter moves the corners by about a pixel.
        units = small * np.r_[1.0, 1.0, np.full(4, 2.0 / max(shape))]
        slope = np.stack([missing - offset(_stepped(new, u)) for u in np.diag(units)], axis=1)
        step = lstsq(slope, missing, what="CRVAL and CD").x * units
        trial = _stepped(new, step)
        left = offset(trial)
        if not np.sum(left**2) < 0.9 * np.sum(missing**2):
            break
        new, missing = trial, left
    gx, gy = _grid(shape, CHECK_GRID)
    exact = correction.sky(*sky_of_pixels(wcs, gx, gy))
    apart = separation_deg(*exact, *sky_of_pixels(new, gx, gy)) * MAS_PER_DEG
    return Corrected(new, float(np.nanmax(apart)))


def _grid(shape: tuple[int, int], n: int) -> Pair:
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(-0.5, nx - 0.5, n), np.linspace(-0.5, ny - 0.5, n))
    return x.ravel(), y.ravel()


def _stepped(wcs: WCS, step: Floats) -> WCS:
    """Return a WCS with its CRVAL moved on its plane and its matrix changed.

    The matrix follows the turn of north from the old CRVAL to the new one, which near a pole is
    large, so that the step is nearly linear.
    """
    new = wcs.deepcopy()
    axes = [wcs.wcs.lng, wcs.wcs.lat]
    crval = np.array(wcs.wcs.crval, dtype=float)
    old = float(crval[axes[0]]), float(crval[axes[1]])
    at = deproject(step[0], step[1], *old)
    crval[axes] = [float(v) for v in at]
    crval[axes[0]] += 360.0 * np.round((old[0] - crval[axes[0]]) / 360.0)
    turn = Reprojection(old, (float(at[0]), float(at[1]))).jacobian(step[0], step[1])
    matrix = wcs.pixel_scale_matrix[axes] + np.reshape(step[2:], (2, 2))
    full = np.empty((2, 2))
    full[axes] = turn @ matrix
    new.wcs.crval = crval
    if wcs.wcs.has_cd():
        new.wcs.cd = full
    else:
        if wcs.wcs.has_crota():
            del new.wcs.crota
        new.wcs.pc = full / np.asarray(wcs.wcs.cdelt)[:, None]
    new.wcs.set()
    return new


def corrected_cards(header: Header, wcs: WCS) -> Header:
    """Return the cards of the primary WCS of a header, with CRVAL and CD of a corrected WCS.

    Parameters
    ----------
    header : Header
        What the WCS was read from.
    wcs : WCS
        The corrected one.

    Returns
    -------
    Header
        Every card of the WCS in its place, SIP and tables included. Where the header has CDELT,
        PC changes instead of CD, and takes the place of CROTA.
    """
    from astropy.io.fits import Header

    out = Header([card for card in header.cards if is_wcs_keyword(card.keyword)])
    for key in [k for k in out if k.startswith("CROTA") and not wcs.wcs.has_cd()]:
        out.remove(key)
    kinds = [str(k).strip().upper() for k in wcs.wcs.ctype]
    axes = [
        next((i for i in range(1, 10) if str(out.get(f"CTYPE{i}", "")).strip().upper() == kind),
             place + 1)
        for place, kind in enumerate(kinds)
    ]
    linear = wcs.wcs.cd if wcs.wcs.has_cd() else wcs.wcs.pc
    name = "CD" if wcs.wcs.has_cd() else "PC"
    for row, i in enumerate(axes):
        _change(out, f"CRVAL{i}", float(wcs.wcs.crval[row]), f"CTYPE{i}")
        for column, j in enumerate(axes):
            default = float(name == "PC" and i == j)
            value = float(linear[row, column])
            if f"{name}{i}_{j}" in out or value != default:
                _change(out, f"{name}{i}_{j}", value, f"CRVAL{i}")
    return out


def _change(header: Header, keyword: str, value: float, after: str) -> None:
    """Change the value of a card where it differs; add one where there is none."""
    if keyword not in header:
        header.set(keyword, value, after=after if after in header else None)
    elif header[keyword] != value:
        header[keyword] = value
