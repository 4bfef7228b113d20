"""The focal plane: the chips of an exposure, laid out by their input WCS's.

The input WCS's are used only for the positions of the chips relative to each other: all stars,
projected through them on a common plane, form one list of pseudo-pixels. One general linear
correction of that plane is fitted to all pairs; then each chip gets the additional terms that
cross-validation on its own stars chooses. A chip with few or no stars gets the common correction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.frame import Frame, Pointing
from cynosure.data.tables import SourceFlag
from cynosure.geometry.fit.chip import Chip, fit_chip, make_pairs, scale_arcsec, source_covariance
from cynosure.geometry.fit.exposure import Fit, fit_wcs
from cynosure.geometry.match.confirm import confirm_wcs
from cynosure.geometry.match.lists import Match
from cynosure.geometry.reference import Reference
from cynosure.geometry.wcs import SkyModel, model_from_wcs
from cynosure.ground.errors import CynosureError, Degenerate
from cynosure.ground.numeric import lstsq, poly_design, propagated
from cynosure.ground.sky import MAS_PER_DEG, plane_jacobian, project, separation_deg

__all__ = ["FocalPlane", "lay_out"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class FocalPlane:
    """The sources of all chips as one list of (pseudo-)pixels."""

    x: Floats
    y: Floats
    flux: Floats
    shape: tuple[int, int]
    scale_deg: float | None = None
    models: tuple[SkyModel, ...] = ()
    header: SkyModel | None = None
    origin: tuple[float, float] = (0.0, 0.0)
    center: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def single(
        cls, frame: Frame, sources: NDArray[np.void], spoiled: SourceFlag | None = None
    ) -> FocalPlane:
        """Return one chip's sources: the matchable ones, or all without a flag of `spoiled`."""
        use = _matchable(sources)
        if spoiled is not None:
            use = ((sources["flags"] & spoiled) == 0) & np.isfinite(sources["x"])
        header = None
        if frame.wcs is not None:
            with contextlib.suppress(CynosureError):
                header, _ = model_from_wcs(frame.wcs, frame.shape)
        return cls(
            sources["x"][use], sources["y"][use], sources["flux_e"][use], frame.shape,
            header=header,
        )

    def confirmed(self, reference: Reference, pointing: Pointing) -> Match | None:
        """Return the match of a header that is nearly right, if it agrees with the pointing."""
        if self.header is None or pointing.ra_deg is None or pointing.dec_deg is None:
            return None
        ra, dec = self.header.pixel_to_sky((self.shape[1] - 1) / 2, (self.shape[0] - 1) / 2)
        away = float(separation_deg(ra, dec, pointing.ra_deg, pointing.dec_deg))
        if not away < 0.1 * scale_arcsec(self.header) * max(self.shape) / 3600.0:
            return None  # the pointing was given and differs from the header's
        return confirm_wcs(
            self.header, self.x, self.y, self.flux, reference.ra_deg, reference.dec_deg, self.shape
        )

    def half_diagonal_deg(self, pointing: Pointing) -> float:
        """Return half the frame's diagonal, with the scale's own uncertainty."""
        pixels = 0.5 * float(np.hypot(*self.shape))
        scale = pointing.scale_arcsec
        if scale is None:
            return 1.0
        return pixels * scale * (1.0 + pointing.scale_error) / 3600.0

    def chip_model(self, k: int, whole: SkyModel) -> SkyModel:
        """Return the model of chip k, seen through a model of the pseudo-pixels."""
        frame_model = self.models[k]
        u, v = np.meshgrid(np.linspace(-1, 1, 24), np.linspace(-1, 1, 24))
        x = frame_model.x0 + frame_model.scale_px * u.ravel()
        y = frame_model.y0 + frame_model.scale_px * v.ravel()
        px, py = self.pseudo(k, x, y)
        xi, eta = whole.pixel_to_plane(px, py)
        degree = max(frame_model.degree, whole.degree)
        design = poly_design(u.ravel(), v.ravel(), degree)
        coeff = lstsq(design, np.stack([xi, eta], axis=1), what="focal plane").x.T
        return frame_model.replaced(ra0_deg=whole.ra0_deg, dec0_deg=whole.dec0_deg, coeff=coeff)

    def pseudo(self, k: int, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Return pseudo-pixels of pixels of chip k."""
        xi, eta = project(*self.models[k].pixel_to_sky(x, y), *self.center)
        scale = float(self.scale_deg or 1.0)
        return -xi / scale - self.origin[0], eta / scale - self.origin[1]

    def pseudo_jacobian(self, k: int, x: Floats, y: Floats) -> Floats:
        """Return d(pseudo-pixels) / d(pixels of chip k), (n, 2, 2)."""
        model = self.models[k]
        at = model.pixel_to_sky(x, y)
        own = plane_jacobian(*at, model.ra0_deg, model.dec0_deg)
        common = plane_jacobian(*at, *self.center)
        mirror = np.array([[-1.0, 0.0], [0.0, 1.0]]) / float(self.scale_deg or 1.0)
        return np.asarray(mirror @ common @ np.linalg.inv(own) @ model.jacobian(x, y), np.float64)

    def combined(self, sources: list[NDArray[np.void]]) -> NDArray[np.void]:
        """Return the sources of all chips in pseudo-pixels, their covariances turned with them."""
        every = []
        for k, table in enumerate(sources):
            moved = table.copy()
            moved["x"], moved["y"] = self.pseudo(k, table["x"], table["y"])
            jacobian = self.pseudo_jacobian(k, table["x"], table["y"])
            turned = propagated(jacobian, source_covariance(table))
            moved["x_err"], moved["y_err"] = np.sqrt(turned[:, :2]).T
            moved["xy_corr"] = turned[:, 2] / (moved["x_err"] * moved["y_err"])
            every.append(moved)
        return np.concatenate(every)

    def fit(
        self, frames: list[Frame], sources: list[NDArray[np.void]], reference: Reference,
        match: Match, settings: Mapping[str, dict[str, Any]],
    ) -> list[Chip]:
        """Fit the plane as a whole, then the chips within it."""
        every = self.combined(sources)
        plane_settings = {"fit": {**settings["fit"], "max_order": 1, "geometry": "auto"}}
        plane = fit_chip(
            frames[0].replaced(wcs=None), every, reference, match.model, self.shape, plane_settings
        )
        if plane.fit.geometry == "poly1" or match.model.degree == 1:
            whole = plane.fit.model
        else:  # the cubic of the match would distort the chips
            linear = fit_wcs(
                make_pairs(every, reference, plane.source_index, plane.reference_index),
                match.model, self.shape, geometry="poly1",
            )
            whole = linear.model
        chips = []
        for k, (frame, table) in enumerate(zip(frames, sources)):
            base = self.chip_model(k, whole)
            try:
                chips.append(fit_chip(
                    frame, table, reference, base, frame.shape, settings, prior=(base, "shift")
                ))
            except Degenerate:
                chips.append(self._inherited(frame, table, base, plane))
        return chips

    def _inherited(
        self, frame: Frame, sources: NDArray[np.void], base: SkyModel, plane: Chip
    ) -> Chip:
        none = np.zeros(0, dtype=np.int64)
        fit = plane.fit
        # Its error is the largest error of the common plane over the frame.
        ny, nx = self.shape
        corners = np.array([0.0, nx, 0.0, nx]), np.array([0.0, 0.0, ny, ny])
        worst = fit.plane_variance_mas2(*corners)[:, :2].max(axis=0)
        empty = Fit(
            model=base, geometry="shift", errors=fit.errors,
            covariance=np.diag(worst) / MAS_PER_DEG**2,
            residual_mas=np.zeros((0, 2)), sigma2_mas2=np.zeros((0, 3)),
            leverage=np.zeros((0, 2)), used=np.zeros(0, bool), reserved=np.zeros(0, bool),
            chi2=0.0, dof=0, chi2_all=0.0, base=base,
        )
        return Chip(frame, sources, none, none, empty, inherited=True)


def _matchable(sources: NDArray[np.void]) -> NDArray[np.bool_]:
    """Say which sources are used for matching: saturated stars are, diffraction spikes are not."""
    spoiled = SourceFlag.COSMIC | SourceFlag.TRAIL | SourceFlag.NEAR_BRIGHT
    good = (sources["flags"] & spoiled) == 0
    good &= np.isfinite(sources["x"]) & np.isfinite(sources["y"])
    return good if good.sum() >= 8 else np.isfinite(sources["x"])


def lay_out(frames: list[Frame], sources: list[NDArray[np.void]]) -> FocalPlane | None:
    """Lay several chips on one plane by their own WCS's; None for one chip, or where one lacks."""
    if len(frames) < 2 or any(f.wcs is None for f in frames):
        return None
    models = tuple(model_from_wcs(f.wcs, f.shape)[0] for f in frames)
    ra, dec = models[0].pixel_to_sky(models[0].x0, models[0].y0)
    scale = scale_arcsec(models[0]) / 3600.0
    first = FocalPlane(
        np.zeros(0), np.zeros(0), np.zeros(0), (1, 1), scale, models,
        center=(float(ra), float(dec)),
    )
    xs, ys, fluxes = [], [], []
    corners = []
    for k, (frame, table) in enumerate(zip(frames, sources)):
        use = _matchable(table)
        x, y = first.pseudo(k, table["x"][use], table["y"][use])
        xs.append(x)
        ys.append(y)
        fluxes.append(table["flux_e"][use])
        ny, nx = frame.shape
        corners.append(first.pseudo(k, np.array([0, nx, nx, 0.0]), np.array([0, 0, ny, float(ny)])))
    cx = np.concatenate([c[0] for c in corners])
    cy = np.concatenate([c[1] for c in corners])
    origin = (float(cx.min()), float(cy.min()))
    shape = (int(np.ceil(np.ptp(cy))) + 1, int(np.ceil(np.ptp(cx))) + 1)
    x, y = np.concatenate(xs) - origin[0], np.concatenate(ys) - origin[1]
    return replace(first, x=x, y=y, flux=np.concatenate(fluxes), shape=shape, origin=origin)
