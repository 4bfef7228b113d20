"""The checks of a solution, and the verdict that follows from them.

A solution is *failed* where its match could be chance or nothing was fitted, *compromised* where
any check did not pass, *solved* otherwise. The quality is that of the space-telescope archives:

======  ============================================================
1       all checks passed and the residuals are below the fine limit
2       a check did not pass, the residuals are below the fine limit
3       all checks passed, residuals up to the coarse limit
4       a check did not pass, or residuals above the coarse limit
5       not valid: do not use
-1      the code itself failed
======  ============================================================

The limits are in pixels, because the size of a pixel limits what an image can measure; a limit in
milliarcseconds (10 mas for the fine limit of the archives) replaces it where one is set. The
default limits are conventions: a fine fit is a fifth of a pixel, a coarse one a pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cynosure.ground.settings import Range, Unit

__all__ = ["Check", "Measured", "Status", "Verdict", "coverage_4x4", "judge"]

Status = Literal["solved", "compromised", "failed"]

# Cells of the 4 x 4 grid over the frame; a quarter of the frame without stars is four empty cells.
CELLS = 16


@dataclass(frozen=True, slots=True)
class Measured:
    """The numbers by which a solution is judged; one that is not known is NaN.

    All rms are about zero, per axis: the root mean square of the two axes' values.

    Attributes
    ----------
    n_used, n_reserved : int
        Stars of the fit, and stars that were held out of it.
    rms_mas, rms_reserved_mas : float
        Residuals of the two sets.
    scale_arcsec : float
        Size of a pixel.
    log_odds : float
        Natural logarithm of the odds of the match against chance.
    chi2_dof : float
        Of the residuals under the error model.
    coverage : float
        Share of the 4 x 4 cells of the frame that hold a used star (:func:`coverage_4x4`).
    before_ratio : float
        How many times larger the residuals are at which the solution predicts its stars (each
        from the others) than those of the WCS that the image came with.
    wcs_error_mas : float
        Predicted 1-sigma error of the WCS at the worst corner.
    """

    n_used: int
    n_reserved: int
    rms_mas: float
    rms_reserved_mas: float
    scale_arcsec: float
    log_odds: float
    chi2_dof: float
    coverage: float
    before_ratio: float
    wcs_error_mas: float


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what was measured and the limit it was held to.

    Attributes
    ----------
    name : str
        One word.
    passed : bool
        Whether it passed; see :func:`judge` for a number that is not known (NaN).
    value, limit : float
        In the unit that `text` names.
    text : str
        A line for people, with both numbers.
    """

    name: str
    passed: bool
    value: float
    limit: float
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checks say together.

    Attributes
    ----------
    status : str
        ``solved``, ``compromised`` or ``failed``.
    quality : int
        1 … 5; -1 is given by who caught a failure of the code.
    checks : tuple of Check
        All checks, in a fixed order.
    """

    status: Status
    quality: int
    checks: tuple[Check, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """The texts of the checks that did not pass."""
        return tuple(c.text for c in self.checks if not c.passed)


def coverage_4x4(x: Any, y: Any, nx: int, ny: int) -> float:
    """Return the share of the cells of a 4 x 4 grid over the frame that hold a star.

    Examples
    --------
    >>> coverage_4x4([0.0, 99.0], [0.0, 99.0], 100, 100)
    0.125
    """
    import numpy as np

    column = np.clip((np.asarray(x, dtype=float) + 0.5) * 4.0 / nx, 0, 3).astype(int)
    row = np.clip((np.asarray(y, dtype=float) + 0.5) * 4.0 / ny, 0, 3).astype(int)
    return len(np.unique(row * 4 + column)) / CELLS


def judge(
    measured: Measured,
    *,
    min_log_odds: Annotated[float, Range(0, 1e6)] = 21.0,
    min_used: Annotated[int, Range(1, 10_000)] = 6,
    fine_rms_px: Annotated[float, Unit("px"), Range(0, 100)] = 0.2,
    coarse_rms_px: Annotated[float, Unit("px"), Range(0, 100)] = 1.0,
    fine_rms_mas: Annotated[float | None, Unit("mas"), Range(0, 1e6)] = None,
    coarse_rms_mas: Annotated[float | None, Unit("mas"), Range(0, 1e6)] = None,
    min_coverage: Annotated[float, Range(0, 1)] = 0.6,
    max_reserved_ratio: Annotated[float, Range(1, 100)] = 1.25,
    reserved_sigma: Annotated[float, Unit("sigma"), Range(0, 100)] = 4.0,
    max_chi2_dof: Annotated[float, Range(0, 1e6)] = 2.0,
    max_wcs_error_px: Annotated[float, Unit("px"), Range(0, 100)] = 0.5,
    max_before_ratio: Annotated[float, Range(1, 100)] = 1.05,
) -> Verdict:
    """Judge a solution by its numbers.

    The check of a number that is not known (NaN) passes, except that of the odds.

    Parameters
    ----------
    measured : Measured
        The numbers.
    min_log_odds : float
        Below these odds the match may be chance, and the solution failed; 21 is one in 10^9.
    min_used : int
        Fewer stars than this compromise a solution.
    fine_rms_px, fine_rms_mas : float
        Residuals below this limit are fine: quality 1 or 2. The one in mas replaces the one in
        pixels where it is set.
    coarse_rms_px, coarse_rms_mas : float
        Residuals above this limit compromise a solution.
    min_coverage : float
        Share of the cells of the frame that must hold a star, of those that as many stars
        strewn at random would fill.
    max_reserved_ratio : float
        How much larger the reserved stars' residuals may be than those of the fit.
    reserved_sigma : float
        By how many standard errors they must exceed that ratio to count.
    max_chi2_dof : float
        chi^2 per degree of freedom above which the errors are not understood.
    max_wcs_error_px : float
        Largest predicted error of the WCS in a corner.
    max_before_ratio : float
        Limit of `before_ratio`; beyond it the WCS that the image came with stays.

    Examples
    --------
    >>> verdict = judge(Measured(
    ...     n_used=100, n_reserved=20, rms_mas=30, rms_reserved_mas=31, scale_arcsec=1,
    ...     log_odds=200, chi2_dof=1, coverage=1, before_ratio=0.03, wcs_error_mas=5))
    >>> verdict.status, verdict.quality
    ('solved', 1)
    """
    m = measured
    pixel_mas = m.scale_arcsec * 1000.0
    fine = fine_rms_px * pixel_mas if fine_rms_mas is None else fine_rms_mas
    coarse = coarse_rms_px * pixel_mas if coarse_rms_mas is None else coarse_rms_mas
    needed = min_coverage * (1.0 - (1.0 - 1.0 / CELLS) ** m.n_used)
    reserved_limit = _reserved_limit(m.n_used, m.n_reserved, max_reserved_ratio, reserved_sigma)
    reserved = math.nan
    if m.rms_mas > 0 and m.n_reserved > 0:
        reserved = m.rms_reserved_mas / m.rms_mas
    checks = (
        _check("odds", m.log_odds, min_log_odds),
        _check("stars", m.n_used, min_used),
        _check("rms", m.rms_mas, coarse),
        _check("coverage", m.coverage, needed),
        _check("reserved", reserved, reserved_limit),
        _check("chi2", m.chi2_dof, max_chi2_dof),
        _check("corner", m.wcs_error_mas / pixel_mas, max_wcs_error_px),
        _check("before", m.before_ratio, max_before_ratio),
    )
    return _verdict(checks, m.rms_mas, fine, coarse)


# The line of each check; where it says "needed" the value must reach the limit, where it says
# "allowed" it must not exceed it.
TEXTS = {
    "odds": "log-odds {value:.1f} of the match, {limit:g} needed",
    "stars": "{value:.0f} stars used, {limit:.0f} needed",
    "rms": "residuals of {value:.4g} mas, at most {limit:.4g} allowed",
    "coverage": "stars in {value:.0%} of the frame's 4 x 4 cells, {limit:.0%} needed",
    "reserved": "reserved stars have {value:.2f} times the fit's residuals, {limit:.2f} allowed",
    "chi2": "chi2/dof {value:.2f}, {limit:g} allowed",
    "corner": "WCS uncertain by {value:.2f} px in the worst corner, {limit:g} allowed",
    "before": "predicts its stars {value:.2f} times worse than the WCS it came with, "
    "{limit:g} allowed",
}


def _check(name: str, value: float, limit: float) -> Check:
    text = TEXTS[name]
    good = value >= limit if "needed" in text else value <= limit
    # A number that is not known does not fail its check; without odds there is no match.
    passed = good or (math.isnan(value) and name != "odds")
    return Check(name, passed, float(value), float(limit), text.format(value=value, limit=limit))


def _reserved_limit(n_used: int, n_reserved: int, ratio: float, sigma: float) -> float:
    """Return the largest believable ratio of two rms.

    ln(rms1 / rms2) of Gaussian samples with nu1 and nu2 degrees of freedom has the variance
    1 / (2 nu1) + 1 / (2 nu2); each star gives two.
    """
    if n_used == 0 or n_reserved == 0:
        return math.inf
    return ratio * math.exp(sigma * math.sqrt(0.25 / n_used + 0.25 / n_reserved))


def _verdict(checks: tuple[Check, ...], rms_mas: float, fine: float, coarse: float) -> Verdict:
    odds = next(c for c in checks if c.name == "odds")
    if not odds.passed or not math.isfinite(rms_mas):
        return Verdict("failed", 5, checks)
    passed = all(c.passed for c in checks)
    if rms_mas < fine:
        return Verdict("solved" if passed else "compromised", 1 if passed else 2, checks)
    if passed and rms_mas <= coarse:
        return Verdict("solved", 3, checks)
    return Verdict("compromised", 4, checks)
