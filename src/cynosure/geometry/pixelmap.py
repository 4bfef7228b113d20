r"""Maps from pixels to the tangent plane and the sky, with inverse, Jacobian and derivatives.

A :class:`PixelMap` takes two coordinates to two others. It gives its inverse, its Jacobian and its
derivatives by its parameters; each of them may depend on the colour of the star. A
:class:`SkyMap` is one whose plane touches the sky at a known point. The implementations:

=====================================  ==========================================================
:class:`.skymodel.SkyModel`            the polynomial
:class:`LinearMap`                     shift, rshift, rscale or general linear map of a plane
:class:`Reprojection`                  from one tangent plane to another, exactly
:class:`Composite`                     maps one after the other
:class:`.lookup.LookupTable`           offsets at nodes, bilinear in between: NPOL, D2IM
:class:`.lookup.Chromatic`             another map's offset times the star's colour
:class:`.fitsmap.FitsMap`              any FITS WCS as wcslib evaluates it
=====================================  ==========================================================

For a composition ``f = f_n o ... o f_1`` the chain rule gives

    df/dx   = J_n ... J_2 J_1,
    df/dp_k = J_n ... J_{k+1} df_k/dp_k.

Maps are immutable; ``with_parameters`` returns a new one. Which parameters are fitted, shared
between maps or held, is said in :mod:`cynosure.geometry.parameters`. The idea is that of the maps
of gbdes (Bernstein et al. 2017, PASP 129, 074503).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.ground.errors import SettingError
from cynosure.ground.numeric import newton_plane
from cynosure.ground.sky import deproject, east_north, project, unit_vectors

__all__ = [
    "LINEAR_GEOMETRIES",
    "Composite",
    "LinearMap",
    "PixelMap",
    "Reprojection",
    "SkyMap",
    "inverted",
    "linear_matrix",
    "no_derivatives",
    "points",
]

Floats = NDArray[np.float64]
Pair = tuple[Floats, Floats]

# Linear maps of a plane, each with the parameters of the former and more.
LINEAR_GEOMETRIES = ("shift", "rshift", "rscale", "general")

@runtime_checkable
class PixelMap(Protocol):
    """A map of two coordinates to two others: pixels to pixels, pixels to a plane, a plane to one.

    Coordinates are arrays of any one shape; pixels are 0-based, planes are in degrees. `color` is
    the colour of each star (mag), or None for stars of the reference colour.
    """

    @property
    def parameters(self) -> Floats:
        """The parameters, (p,); empty for a map that has none."""

    def with_parameters(self, values: Floats, /) -> PixelMap:
        """Return the map with other parameters."""

    def pixel_to_plane(self, x: ArrayLike, y: ArrayLike, /, color: ArrayLike | None = None) -> Pair:
        """Return the image of points."""

    def plane_to_pixel(self, x: ArrayLike, y: ArrayLike, /, color: ArrayLike | None = None) -> Pair:
        """Return the points of images; NaN where there are none."""

    def jacobian(self, x: ArrayLike, y: ArrayLike, /, color: ArrayLike | None = None) -> Floats:
        """Return the derivatives (..., 2, 2) of the image by the point."""

    def derivatives(self, x: ArrayLike, y: ArrayLike, /, color: ArrayLike | None = None) -> Floats:
        """Return the derivatives (..., 2, p) of the image by the parameters."""


@runtime_checkable
class SkyMap(PixelMap, Protocol):
    """A map whose plane touches the sky at (ra0, dec0)."""

    @property
    def ra0_deg(self) -> float:
        """Right ascension of the tangent point."""

    @property
    def dec0_deg(self) -> float:
        """Declination of the tangent point."""

    def pixel_to_sky(self, x: ArrayLike, y: ArrayLike, /, color: ArrayLike | None = None) -> Pair:
        """Return right ascension and declination, degrees, ICRS."""

    def sky_to_pixel(
        self, ra_deg: ArrayLike, dec_deg: ArrayLike, /, color: ArrayLike | None = None
    ) -> Pair:
        """Return pixels, 0-based; NaN where there are none."""


NONE = np.zeros(0)


def points(x: ArrayLike, y: ArrayLike) -> Pair:
    """Return coordinates as arrays of one shape."""
    x, y = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    return x, y


def inverted(
    forward: Callable[[Floats, Floats, NDArray[np.intp]], Pair],
    jacobian: Callable[[Floats, Floats, NDArray[np.intp]], Floats], start: Pair, target: Pair,
) -> Pair:
    """Solve ``f(x, y) = target`` for points of any shape; see :func:`newton_plane`."""
    shape = np.shape(target[0])
    flat = [np.ravel(v) for v in (*start, *target)]
    x, y = newton_plane(forward, jacobian, (flat[0], flat[1]), (flat[2], flat[3]))
    return x.reshape(shape), y.reshape(shape)


def no_derivatives(x: ArrayLike, y: ArrayLike) -> Floats:
    """Return the derivatives (..., 2, 0) of a map without parameters."""
    return np.zeros((*points(x, y)[0].shape, 2, 0))


# --- linear ---------------------------------------------------------------------------------


def linear_matrix(geometry: str, p: Floats) -> Floats:
    """Return the matrix (2, 2) of a linear geometry for its parameters.

    The first two parameters are the shift. The third of ``rshift`` is the tangent of the angle
    by which it turns counterclockwise; ``rscale`` has as its third and fourth
    ``s sin`` and ``s cos - 1`` of angle and scale s, ``general`` the matrix less unity.

    Examples
    --------
    >>> linear_matrix("rscale", np.array([0.0, 0.0, 0.1, 0.2])).tolist()
    [[1.2, -0.1], [0.1, 1.2]]
    """
    if geometry == "shift":
        return np.eye(2)
    if geometry == "rshift":
        c, s = np.cos(np.arctan(p[2])), np.sin(np.arctan(p[2]))
        return np.array([[c, -s], [s, c]])
    if geometry == "rscale":
        return np.array([[1 + p[3], -p[2]], [p[2], 1 + p[3]]])
    if geometry == "general":
        return np.eye(2) + np.reshape(p[2:], (2, 2))
    raise SettingError("geometry {geometry!r} is not known", geometry=geometry,
                       hint=f"One of {', '.join(LINEAR_GEOMETRIES)}.")


@dataclass(frozen=True, slots=True, eq=False)
class LinearMap:
    """A linear map of a plane: ``x' = M x + t``.

    Attributes
    ----------
    geometry : str
        One of ``LINEAR_GEOMETRIES``.
    parameters : (p,) ndarray
        2 for a shift, 3 for rshift, 4 for rscale, 6 for general; the first two are t in the unit
        of the plane. See :func:`linear_matrix`.
    """

    geometry: str
    parameters: Floats

    @classmethod
    def unity(cls, geometry: str) -> LinearMap:
        """Return the map of a geometry that changes nothing."""
        size = dict(zip(LINEAR_GEOMETRIES, (2, 3, 4, 6)))
        if geometry not in size:
            linear_matrix(geometry, NONE)
        return cls(geometry, np.zeros(size[geometry]))

    @classmethod
    def of(cls, geometry: str, matrix: Floats, shift: Floats) -> LinearMap:
        """Return the map of a geometry that is nearest to a matrix and a shift."""
        m = np.asarray(matrix, dtype=float)
        turned, grown = (m[1, 0] - m[0, 1]) / 2.0, (m[0, 0] + m[1, 1]) / 2.0
        rest = {"shift": [], "rshift": [turned / grown], "rscale": [turned, grown - 1.0],
                "general": (m - np.eye(2)).ravel()}[geometry]
        return cls(geometry, np.concatenate([shift, rest]))

    @property
    def matrix(self) -> Floats:
        """M, (2, 2)."""
        return linear_matrix(self.geometry, self.parameters)

    @property
    def shift(self) -> Floats:
        """t, (2,)."""
        return self.parameters[:2]

    def with_parameters(self, values: Floats) -> LinearMap:
        """Return the map of the same geometry with other parameters."""
        return LinearMap(self.geometry, np.array(values, dtype=float))

    def pixel_to_plane(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Pair:
        """Return M x + t."""
        x, y = points(x, y)
        m, t = self.matrix, self.shift
        return m[0, 0] * x + m[0, 1] * y + t[0], m[1, 0] * x + m[1, 1] * y + t[1]

    def plane_to_pixel(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Pair:
        """Return M^-1 (x - t)."""
        x, y = points(x, y)
        m, t = np.linalg.inv(self.matrix), self.shift
        return (m[0, 0] * (x - t[0]) + m[0, 1] * (y - t[1]),
                m[1, 0] * (x - t[0]) + m[1, 1] * (y - t[1]))

    def jacobian(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Floats:
        """Return M for every point."""
        return np.broadcast_to(self.matrix, (*points(x, y)[0].shape, 2, 2)).copy()

    def derivatives(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Floats:
        """Return the derivatives (..., 2, p) by the parameters."""
        x, y = points(x, y)
        one, zero = np.ones_like(x), np.zeros_like(x)
        rows = [[one, zero], [zero, one]]
        if self.geometry == "rshift":
            c, s = np.cos(np.arctan(self.parameters[2])), np.sin(np.arctan(self.parameters[2]))
            # d(angle)/d(tangent) = cos^2
            rows.append([c * c * (-s * x - c * y), c * c * (c * x - s * y)])
        elif self.geometry == "rscale":
            rows += [[-y, x], [x, y]]
        elif self.geometry == "general":
            rows += [[x, zero], [y, zero], [zero, x], [zero, y]]
        return np.moveaxis(np.array(rows), (0, 1), (-1, -2))


# --- planes ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Reprojection:
    """From the plane that touches the sky at one point to the plane of another.

    Both projections are central, from the centre of the sphere, so that the map is a homography:
    with R the rotation from the axes (east, north, outward) of the first point to those of the
    second, and lengths in radians, ``(X, Y, Z) = R (xi, eta, 1)``, ``xi' = X / Z, eta' = Y / Z``.

    Attributes
    ----------
    start, end : (float, float)
        Right ascension and declination of the two tangent points, deg.
    """

    start: tuple[float, float]
    end: tuple[float, float]
    rotation: Floats = field(init=False)

    def __post_init__(self) -> None:
        a, b = (np.array([*east_north(*at), unit_vectors(*at)]) for at in (self.start, self.end))
        object.__setattr__(self, "rotation", b @ a.T)

    @property
    def parameters(self) -> Floats:
        """Empty: the map has no free parameters."""
        return NONE

    def with_parameters(self, values: Floats) -> Reprojection:
        """Return the map itself."""
        return self

    def pixel_to_plane(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Pair:
        """Return the coordinates on the second plane; NaN for what lies behind it."""
        x, y = (np.radians(v) for v in points(x, y))
        r = self.rotation
        px, py, pz = (r[k, 0] * x + r[k, 1] * y + r[k, 2] for k in range(3))
        pz = np.where(pz > 0.0, pz, np.nan)
        return np.degrees(px / pz), np.degrees(py / pz)

    def plane_to_pixel(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Pair:
        """Return the coordinates on the first plane."""
        return Reprojection(self.end, self.start).pixel_to_plane(x, y)

    def jacobian(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Floats:
        """Return the derivatives (..., 2, 2): ``(R_ij - xi'_i R_3j) / Z``."""
        x, y = points(x, y)
        r = self.rotation
        new = np.radians(np.stack(self.pixel_to_plane(x, y), axis=-1))
        pz = r[2, 0] * np.radians(x) + r[2, 1] * np.radians(y) + r[2, 2]
        return (r[:2, :2] - new[..., :, None] * r[2, :2]) / pz[..., None, None]

    def derivatives(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Floats:
        """Return an empty array (..., 2, 0)."""
        return no_derivatives(x, y)


@dataclass(frozen=True, slots=True, eq=False)
class Composite:
    """Maps one after the other, the last one onto the plane at (ra0, dec0).

    Attributes
    ----------
    steps : tuple of PixelMap
        In the order in which they act.
    ra0_deg, dec0_deg : float
        Where the last plane touches the sky; NaN where it is no plane of the sky.
    blocks : tuple of str
        The name of each step's block of parameters (:mod:`cynosure.geometry.parameters`); empty
        for a step whose parameters stay what they are.
    """

    steps: tuple[PixelMap, ...]
    ra0_deg: float = float("nan")
    dec0_deg: float = float("nan")
    blocks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.blocks:
            object.__setattr__(self, "blocks", ("",) * len(self.steps))
        if len(self.blocks) != len(self.steps):
            raise SettingError(
                "{n_blocks} names of parameter blocks for {n_steps} maps",
                n_blocks=len(self.blocks), n_steps=len(self.steps),
            )

    @property
    def parameters(self) -> Floats:
        """Those of all steps, one after the other."""
        return np.concatenate([NONE, *(s.parameters for s in self.steps)])

    def with_parameters(self, values: Floats) -> Composite:
        """Return the composition with other parameters of its steps."""
        ends = np.cumsum([len(s.parameters) for s in self.steps])[:-1]
        parts = np.split(np.asarray(values, dtype=float), ends)
        return replace(
            self, steps=tuple(s.with_parameters(v) for s, v in zip(self.steps, parts))
        )

    def pixel_to_plane(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Pair:
        """Return the image of points under all steps."""
        at = points(x, y)
        for step in self.steps:
            at = step.pixel_to_plane(*at, color=color)
        return at

    def plane_to_pixel(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Pair:
        """Return the points whose images are given: the inverses in reverse order."""
        at = points(x, y)
        for step in reversed(self.steps):
            at = step.plane_to_pixel(*at, color=color)
        return at

    def jacobian(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Floats:
        """Return the product of the steps' Jacobians, (..., 2, 2)."""
        at = points(x, y)
        out = np.broadcast_to(np.eye(2), (*at[0].shape, 2, 2))
        for step in self.steps:
            out = step.jacobian(*at, color=color) @ out
            at = step.pixel_to_plane(*at, color=color)
        return out

    def derivatives(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Floats:
        """Return the derivatives (..., 2, p) by the parameters of all steps."""
        return np.concatenate(self.derivatives_by_step(x, y, color), axis=-1)

    def derivatives_by_step(
        self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None,
        wanted: tuple[bool, ...] | None = None,
    ) -> list[Floats]:
        """Return the derivatives (..., 2, p_k) of the image by the parameters of each step.

        Parameters
        ----------
        x, y, color : array_like
        wanted : tuple of bool, optional
            Steps of which they are wanted; of the others they are not computed, and empty.
        """
        at = points(x, y)
        out: list[Floats] = []
        for k, step in enumerate(self.steps):
            slope = step.jacobian(*at, color=color)
            out = [slope @ d for d in out]
            want = wanted is None or wanted[k]
            out.append(
                step.derivatives(*at, color=color) if want else np.zeros((*at[0].shape, 2, 0))
            )
            at = step.pixel_to_plane(*at, color=color)
        return out

    def pixel_to_sky(self, x: ArrayLike, y: ArrayLike, color: ArrayLike | None = None) -> Pair:
        """Return right ascension and declination, degrees, ICRS."""
        return deproject(*self.pixel_to_plane(x, y, color), self.ra0_deg, self.dec0_deg)

    def sky_to_pixel(
        self, ra_deg: ArrayLike, dec_deg: ArrayLike, color: ArrayLike | None = None
    ) -> Pair:
        """Return pixels, 0-based; NaN where there are none."""
        plane = project(ra_deg, dec_deg, self.ra0_deg, self.dec0_deg)
        return self.plane_to_pixel(*plane, color)
