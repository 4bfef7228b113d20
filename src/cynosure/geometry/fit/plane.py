"""The pairs of one chip on the tangent plane, and the fits of any geometry to them.

Everything here is on the plane of the base model: the reference stars are projected on it, and
the covariances of both sides are turned to its axes, those of the pixels by the Jacobian of the
model, those of the reference stars by that of the projection, which near the poles is a rotation
of any angle. :mod:`cynosure.geometry.fit.robust` does the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.fit.errormodel import CHI2_OUTLIER, ErrorModel, fit_error_model, mahalanobis2
from cynosure.geometry.fit.geometries import GEOMETRIES, Design, assemble
from cynosure.geometry.fit.priors import SIZES_PX, Shrinkage, mixture, moved, simplified
from cynosure.geometry.fit.robust import (
    Measured,
    RobustFit,
    Rules,
    Solver,
    Start,
    fit_robust,
    huber,
    inverse_weights,
    without_outliers,
)
from cynosure.geometry.observations import Pairs
from cynosure.geometry.skymodel import SkyModel
from cynosure.ground.numeric import n_terms, propagated
from cynosure.ground.sky import MAS_PER_DEG, covariance_on_plane, covariance_on_sky, project

__all__ = ["Clipping", "Fit", "Pairs", "Plane"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# With fewer stars than these the prior of the higher terms takes part in every round of the robust
# fit; with more, outliers and weights do not depend on it, and it is applied once, to the normal
# equations of the fit without a prior, which saves a robust fit for each initial size.
FEW_STARS = 1500
# Most rounds of the robust fit with a prior: one fit is made for each initial size, and four rounds
# limit their cost while outliers and error model settle.
SHRUNK_ROUNDS = 4

# Keep the input WCS, corrected, when it lies within this many standard errors (rms over the frame)
# of the free fit: at 1 the difference is no larger than the error of the free fit itself.
KEEP_WITHIN_SE = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """The fit of a WCS to the pairs of one chip.

    Attributes
    ----------
    model : SkyModel
        The WCS.
    geometry : str
        What was fitted, one of ``GEOMETRIES``.
    errors : ErrorModel
        The error model.
    covariance : (p, p) ndarray
        Of the parameters of `spread`, or else of `geometry`; see :meth:`wcs_error_mas`.
    residual_mas : (n, 2) ndarray
        Source minus reference, all pairs, along xi and eta of the plane of `model`.
    sigma2_mas2 : (n, 3) ndarray
        The covariance that the error model gives each residual, on the same axes; that of the WCS
        is in it where the star was held out of the fit.
    leverage : (n, 2) ndarray
        Of the used stars, 0 for the others.
    used, reserved : (n,) ndarray of bool
        Took part in the fit; held out of it. A pair beyond the threshold is neither.
    chi2, dof : float, int
        Of the used stars.
    chi2_all : float
        Of all pairs that are not outliers, with the same model: also those held out.
    history : tuple of dict
        One row a round: ``round, geometry, n_used, rms_mas, a, sigma0_mas``.
    scores : dict
        For each geometry tried, its held-out score (mean negative log-likelihood of a star) and
        degrees of freedom.
    base : SkyModel, optional
        What `geometry` moves.
    spread : str
        The geometry of the covariance, where it includes terms that `geometry` does not have.
    """

    model: SkyModel
    geometry: str
    errors: ErrorModel
    covariance: Floats
    residual_mas: Floats
    sigma2_mas2: Floats
    leverage: Floats
    used: Bools
    reserved: Bools
    chi2: float
    dof: int
    chi2_all: float
    history: tuple[dict[str, float | int | str], ...] = ()
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    base: SkyModel | None = None
    spread: str = ""

    @property
    def order(self) -> int:
        """The degree of the polynomial."""
        return self.model.degree

    def plane_variance_mas2(self, x: Floats, y: Floats) -> Floats:
        """Return the covariance (n, 3) of the WCS itself at pixels, along xi and eta."""
        base = self.base if self.base is not None else self.model
        design = Design(self.spread or self.geometry, base, np.atleast_1d(x), np.atleast_1d(y))
        grow = max(1.0, self.chi2 / max(self.dof, 1))
        return design.variance(self.covariance) * grow

    def wcs_error_mas(self, x: Floats, y: Floats) -> Floats:
        """Return the predicted standard error (n, 2) of the WCS itself at pixels.

        Along right ascension (with cos dec) and declination.
        """
        x, y = np.atleast_1d(x), np.atleast_1d(y)
        variance = self.plane_variance_mas2(x, y)
        at = self.model.pixel_to_sky(x, y)
        turned = covariance_on_sky(variance, *at, self.model.ra0_deg, self.model.dec0_deg)
        return np.sqrt(turned[:, :2])


class Clipping(NamedTuple):
    """Clipping: `first` is clipping_threshold, `threshold` is error_threshold, then the rounds."""

    first: float
    threshold: float
    rounds: int


class Tried(NamedTuple):
    """The fit with one initial size of the prior."""

    evidence: float
    parameters: Floats
    covariance: Floats
    fit: RobustFit
    prior: Shrinkage


class Plane:
    """Pairs on the tangent plane of a model, ready to be fitted many times.

    Parameters
    ----------
    pairs : Pairs
    base : SkyModel
        Good to a few pixels; polynomials are fitted on its plane.
    lower : SkyModel
        On the same plane: what ``shift`` ... ``general`` move.
    clipping : Clipping
    """

    def __init__(self, pairs: Pairs, base: SkyModel, lower: SkyModel, clipping: Clipping):
        self.pairs, self.base, self.lower, self.clipping = pairs, base, lower, clipping
        tangent = base.ra0_deg, base.dec0_deg
        xi, eta = project(pairs.ra_deg, pairs.dec_deg, *tangent)
        self.target = np.stack([xi, eta], axis=1) * MAS_PER_DEG
        jacobian = base.jacobian(pairs.x, pairs.y) * MAS_PER_DEG
        self.source_cov = propagated(jacobian, pairs.cov_px2)
        self.reference_cov = covariance_on_plane(
            pairs.cov_mas2, pairs.ra_deg, pairs.dec_deg, *tangent
        )
        self.designs: dict[str, Design] = {}

    def best(self, most: int) -> Plane:
        """Return the plane with the best measured stars only, in their order."""
        if len(self.pairs) <= most:
            return self
        size = self.source_cov[:, 0] + self.source_cov[:, 1]
        rows = np.sort(np.argpartition(size, most)[:most])
        return Plane(self.pairs[rows], self.base, self.lower, self.clipping)

    def start(self, geometry: str) -> SkyModel:
        """Return the model that a geometry moves."""
        return self.base if geometry.startswith("poly") else self.lower

    def design(self, geometry: str) -> Design:
        """Return the design of a geometry, made once."""
        if geometry not in self.designs:
            self.designs[geometry] = Design(
                geometry, self.start(geometry), self.pairs.x, self.pairs.y
            )
        return self.designs[geometry]

    def goal(self, geometry: str) -> Floats:
        """Return the values that the design fits: the target, or its offset from a model."""
        if geometry.startswith("poly"):
            return self.target
        return self._distance(self.lower)

    def _distance(self, model: SkyModel) -> Floats:
        xi, eta = model.pixel_to_plane(self.pairs.x, self.pairs.y)
        return self.target - np.stack([xi, eta], axis=1) * MAS_PER_DEG

    def _covariance(self, errors: ErrorModel) -> Floats:
        return errors.covariance(self.source_cov, self.reference_cov)

    def fit(self, geometry: str, train: Bools, rounds: int | None = None) -> Fit:
        """Fit one geometry to the stars of `train`."""
        fit = self._robust(geometry, train, rounds)
        return self._record(geometry, fit, train, GEOMETRIES[geometry][0])

    def _robust(
        self, geometry: str, train: Bools, rounds: int | None = None,
        prior: Shrinkage | None = None,
    ) -> RobustFit:
        """Fit the parameters of a geometry, with a prior of its coefficients."""
        least = GEOMETRIES["general" if prior is not None else geometry][1]
        rules = Rules(
            self.clipping.threshold, rounds or self.clipping.rounds, least, f"WCS fit ({geometry})"
        )
        measured = Measured(self.goal(geometry), self.source_cov, self.reference_cov, train)
        solve: Solver | None = None
        if prior is not None:
            known = prior

            def solve(matrix: Floats, right: Floats, n_equations: int) -> tuple[Floats, Floats]:
                return known.solve(matrix, right)

        start = self._start(least, train)
        return fit_robust(self.design(geometry), measured, rules, start, solve)

    def _start(self, least: int, train: Bools) -> Start:
        return without_outliers(self._distance(self.base), train, self.clipping.first, least)

    def fit_shrunk(
        self, geometry: str, degree: int, highest: int, around: SkyModel | None, train: Bools
    ) -> Fit:
        """Fit a polynomial with a Gaussian prior of its higher terms, estimated from the stars.

        Where `around` is given and, moved by `geometry`, lies within `KEEP_WITHIN_SE` standard
        errors of that polynomial, it is returned instead, with the covariance of the polynomial.
        """
        whole = f"poly{degree}"
        tried = self._tried(degree, around, train)
        best = max(tried, key=lambda t: t.evidence)
        p, covariance = mixture([t[:3] for t in tried])
        u, v = ((z - z0) / self.base.scale_px for z, z0 in
                ((self.pairs.x, self.base.x0), (self.pairs.y, self.base.y0)))
        if around is not None:
            low = self.fit(geometry, train)
            change = -p.reshape(2, -1)
            change[:, : low.model.coeff.shape[1]] += low.model.coeff
            if moved(change.ravel(), covariance, u, v) < KEEP_WITHIN_SE:
                return replace(low, covariance=covariance + np.outer(change, change), spread=whole)
        new, order = simplified(p - best.prior.mean, covariance, u, v, highest)
        left = new + best.prior.mean - p
        covariance = covariance + np.outer(left, left)
        order = max(order, around.degree if around else 1)
        fit, use = best.fit, best.fit.used
        residual = self.design(whole).apply(new + best.prior.mean) - self.target
        errors, _ = fit_error_model(
            residual[use], self.source_cov[use], self.reference_cov[use], fit.leverage[use],
            start=fit.errors,
        )
        fit = replace(
            fit, parameters=new + best.prior.mean, covariance=covariance, residual_mas=residual,
            errors=errors,
        )
        found = self._record(whole, fit, train, best.prior.effective)
        model = self.base.replaced(coeff=found.model.coeff[:, : n_terms(order)])
        return replace(found, model=model, geometry=f"poly{order}", spread=whole)

    def _tried(self, degree: int, around: SkyModel | None, train: Bools) -> list[Tried]:
        """Return the fit for each initial size of the prior."""
        whole = f"poly{degree}"
        priors = [Shrinkage.of(self.base, degree, size, around) for size in SIZES_PX]
        tried = []
        if len(self.pairs) < FEW_STARS:
            for prior in priors:
                fit = self._robust(whole, train, SHRUNK_ROUNDS, prior)
                cov = self._covariance(fit.errors)[train]
                det = cov[:, 0] * cov[:, 1] - cov[:, 2] ** 2
                q = mahalanobis2(fit.residual_mas[train], cov)
                q = np.minimum(q, self.clipping.threshold**2)
                evidence = prior.log_evidence - 0.5 * float(np.sum(np.log(det) + q))
                tried.append(Tried(evidence, fit.parameters, fit.covariance, fit, prior))
            return tried
        fit = self._robust(whole, train)
        cov = self._covariance(fit.errors)
        w = inverse_weights(cov, fit.used, huber(mahalanobis2(fit.residual_mas, cov)))
        matrix, right = self.design(whole).normal(w, self.target)
        for prior in priors:
            p, covariance = prior.solve(matrix, right)
            chi2 = p @ matrix @ p - 2.0 * p @ right  # less chi2 of p = 0, the same for all priors
            tried.append(Tried(prior.log_evidence - 0.5 * float(chi2), p, covariance, fit, prior))
        return tried

    def _record(self, geometry: str, fit: RobustFit, train: Bools, n_parameters: float) -> Fit:
        cov = self._covariance(fit.errors)
        # The residual of a held-out star includes the error of the WCS.
        cov[~train] += self.design(geometry)[~train].variance(fit.covariance)
        q = mahalanobis2(fit.residual_mas, cov)
        history = tuple({"geometry": geometry, **r._asdict()} for r in fit.history)
        return Fit(
            model=assemble(geometry, self.start(geometry), fit.parameters), geometry=geometry,
            errors=fit.errors, covariance=fit.covariance, residual_mas=fit.residual_mas,
            sigma2_mas2=cov, leverage=fit.leverage, used=fit.used,
            reserved=~train & (q < self.clipping.threshold**2), chi2=float(q[fit.used].sum()),
            dof=max(2 * int(fit.used.sum()) - round(n_parameters), 0),
            chi2_all=float(q[q < CHI2_OUTLIER].sum()), history=history,
            base=self.start(geometry),
        )
