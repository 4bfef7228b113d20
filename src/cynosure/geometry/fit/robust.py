r"""Robust generalised least squares: weights, clipping and error model of any linear problem.

Given a design that is linear in its parameters, values with covariances of two kinds, and which
stars may take part,

    minimise  sum_i w_i r_i^T Sigma_i^-1 r_i,    r = A p - goal,
    Sigma_i = a^2 S_source,i + S_reference,i + sigma_0^2 I,

is solved in rounds: the parameters, then the error model of the residuals
(:mod:`cynosure.geometry.fit.errormodel`), then the stars beyond the threshold are left out and
those beyond 2.5 standard deviations get a smaller weight (Huber), until nothing changes. The
meaning of the parameters does not matter: the fit of a polynomial, of a correction of a WCS, and
of many exposures at once all use this loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.fit.errormodel import ErrorModel, fit_error_model, mahalanobis2
from cynosure.ground.numeric import mad_std, solve_normal

__all__ = [
    "LinearDesign", "Measured", "RobustFit", "Rules", "Solver", "Start", "fit_robust",
    "huber", "inverse_weights", "without_outliers",
]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Weights of stars beyond this many standard deviations fall off (Huber 1964, Annals of
# Mathematical Statistics 35, 73). His 1.345 costs 5 % of the information of a sample without
# outliers, 2.5 next to nothing; the outliers that it leaves with weight are dropped.
HUBER_K = 2.5

# Floor of 1 - h, by which squared residuals are divided. With a leverage h near one the residual is
# rounding, and dividing by less would make an outlier of it.
LEAST_LEFT = 0.05

# Clipping keeps at least this share of the stars that may take part: if more than two thirds look
# like outliers, the error model is wrong rather than the stars.
LEAST_SHARE = 0.3

# The loop has converged when ln a and ln sigma_0 change by less than these; their statistical
# errors, about 1 / sqrt(4 n), are larger for up to some thousands of stars.
SETTLED_LN_A, SETTLED_LN_SIGMA0 = 1e-3, 1e-2

# From the normal matrix (p, p), the right side (p,) and the number of equations to parameters (p,)
# and their covariance (p, p).
Solver = Callable[[Floats, Floats, int], tuple[Floats, Floats]]


class LinearDesign(Protocol):
    """How the values (n, 2) depend on the parameters (p,)."""

    def apply(self, p: Floats, /) -> Floats:
        """Return the values (n, 2)."""

    def normal(self, w: Floats, goal: Floats, /) -> tuple[Floats, Floats]:
        """Return ``A^T W A`` and ``A^T W goal`` for inverse covariances w (n, 3)."""

    def variance(self, covariance: Floats, /) -> Floats:
        """Return the covariance (n, 3) of the values for that of the parameters (p, p)."""


class Measured(NamedTuple):
    """The measured values of a fit. All on the same two axes, in mas and mas^2.

    Attributes
    ----------
    goal : (n, 2) ndarray
        The values.
    source, reference : (n, 3) ndarray
        Their covariances (xx, yy, xy): the part that the error model scales by a^2, and the part
        that it does not scale.
    train : (n,) ndarray of bool
        The stars that may take part; the others are held out.
    """

    goal: Floats
    source: Floats
    reference: Floats
    train: Bools


class Rules(NamedTuple):
    """The settings of the loop: clipping threshold, rounds, and fewest stars.

    Attributes
    ----------
    threshold : float
        Mahalanobis distance beyond which a star is dropped; 4.3 keeps all but one in ten thousand
        good ones.
    rounds : int
        Most rounds.
    least : int
        Fewest stars that determine the parameters.
    what : str
        Named in errors.
    """

    threshold: float = 4.3
    rounds: int = 10
    least: int = 1
    what: str = "fit"


class Start(NamedTuple):
    """Where the loop starts: the error model, and the stars (n,) of the first round."""

    errors: ErrorModel
    use: Bools


class Round(NamedTuple):
    """The numbers of one round."""

    round: int
    n_used: int
    rms_mas: float
    a: float
    sigma0_mas: float


@dataclass(frozen=True, slots=True, eq=False)
class RobustFit:
    """The result of :func:`fit_robust`.

    Attributes
    ----------
    parameters : (p,) ndarray
    covariance : (p, p) ndarray
    residual_mas : (n, 2) ndarray
        ``A p - goal`` of all stars.
    leverage : (n, 2) ndarray
        The share of each residual that the fit took up; 0 for stars that took no part.
    errors : ErrorModel
    used : (n,) ndarray of bool
    history : tuple of Round
    """

    parameters: Floats
    covariance: Floats
    residual_mas: Floats
    leverage: Floats
    errors: ErrorModel
    used: Bools
    history: tuple[Round, ...] = ()


def fit_robust(
    design: LinearDesign, measured: Measured, rules: Rules, start: Start,
    solve: Solver | None = None,
) -> RobustFit:
    """Fit a linear design to measured values in rounds.

    Parameters
    ----------
    design : LinearDesign
    measured : Measured
    rules : Rules
    start : Start
        As :func:`without_outliers` returns it.
    solve : callable, optional
        Solves the normal equations, with a prior for instance; least squares by default.

    Raises
    ------
    Degenerate
        If the stars do not determine the parameters.
    """
    goal, source, reference, train = measured
    solve = solve or _least_squares(rules.what)
    (errors, use), weight = start, np.ones(len(train))
    history: list[Round] = []
    for k in range(rules.rounds):
        cov = errors.covariance(source, reference)
        w = inverse_weights(cov, use, weight)
        p, covariance = solve(*design.normal(w, goal), 2 * int(use.sum()))
        lever = _leverage(w, design.variance(covariance))
        residual = design.apply(p) - goal
        new, _ = fit_error_model(
            residual[use], source[use], reference[use], lever[use], start=errors
        )
        cov = new.covariance(source, reference)
        q = mahalanobis2(residual / np.sqrt(np.clip(1 - lever, LEAST_LEFT, 1)), cov)
        kept = train & (q < rules.threshold**2)
        # Never drop so many that the parameters are no longer determined.
        if kept.sum() < max(rules.least, LEAST_SHARE * train.sum()):
            kept = use
        history.append(Round(
            k, int(use.sum()), float(np.sqrt(np.mean(residual[use] ** 2))), new.a, new.sigma0_mas
        ))
        settled = (
            np.array_equal(kept, use)
            and abs(np.log(new.a / errors.a)) < SETTLED_LN_A
            and abs(np.log(new.sigma0_mas / errors.sigma0_mas)) < SETTLED_LN_SIGMA0
        )
        errors, use, weight = new, kept, huber(q)
        if settled:
            break
    return RobustFit(
        p, covariance, residual, np.where(use[:, None], lever, 0.0), errors, use, tuple(history)
    )


def without_outliers(offset: Floats, train: Bools, clipping: float, least: int = 1) -> Start:
    """Return where to start: without the gross outliers of offsets from a first guess.

    Parameters
    ----------
    offset : (n, 2) ndarray
        Goal minus a first guess, mas; their median is taken off.
    train : (n,) ndarray of bool
        The stars that may take part.
    clipping : float
        Stars beyond this many robust standard deviations are left out.
    least : int
        With fewer stars left than this, none is left out.
    """
    offset = offset - np.median(offset[train], axis=0)
    spread = max(float(np.mean(mad_std(offset[train], axis=0))), 1e-6)
    use = train & (np.hypot(*offset.T) < clipping * np.sqrt(2.0) * spread)
    if use.sum() < least:
        use = train.copy()
    return Start(ErrorModel(1.0, max(spread, 1e-3)), use)


def huber(q: Floats) -> Floats:
    """Return the weights of squared Mahalanobis distances."""
    return np.minimum(1.0, HUBER_K / np.sqrt(np.maximum(q, 1e-12)))


def inverse_weights(cov: Floats, use: Bools, weight: Floats) -> Floats:
    """Return the inverse covariances (n, 3) of the stars that are used, times their weights."""
    det = cov[:, 0] * cov[:, 1] - cov[:, 2] ** 2
    w = np.stack([cov[:, 1], cov[:, 0], -cov[:, 2]], axis=1)
    w *= (np.where(use, weight, 0.0) / det)[:, None]
    return w


def _leverage(w: Floats, variance: Floats) -> Floats:
    """Return the leverages ``h = diag(A C A^T W)`` (n, 2)."""
    lever = w[:, :2] * variance[:, :2] + (w[:, 2] * variance[:, 2])[:, None]
    return np.clip(lever, 0.0, 1.0)


def _least_squares(what: str) -> Solver:
    def solve(matrix: Floats, right: Floats, n_equations: int) -> tuple[Floats, Floats]:
        solved = solve_normal(matrix, right, n_equations, what=what)
        return solved.x, solved.covariance

    return solve
