"""Choose the fit geometry by cross-validation.

Each geometry is scored by the likelihood of stars held out of its fit, with the error of the WCS
itself in their covariance; :mod:`cynosure.geometry.fit.exposure` describes the choice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.fit.errormodel import mahalanobis2
from cynosure.geometry.fit.geometries import GEOMETRIES
from cynosure.geometry.fit.plane import Plane
from cynosure.geometry.skymodel import SkyModel
from cynosure.ground.errors import Degenerate
from cynosure.ground.numeric import n_terms

__all__ = ["choose_geometry", "coverage", "reserve"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Pairs from which the held-out seventh (some 350 stars) alone chooses the geometry; with fewer,
# five-fold cross-validation does, which costs five fits instead of one.
HELD_OUT_NEEDS = 2500
# One star in seven (14 %) is held out: enough to report, and the fit's errors grow by 8 % only.
HOLD_OUT_ONE_IN = 7

# An even order is raised to the next odd one with at least this many stars a coefficient: all
# coefficients together then add at most 1/15 of a star's variance to that of the WCS.
ODD_STARS = 15

# A simpler geometry is chosen if it is worse by no more than this part of the standard error of the
# paired difference. The usual rule, one standard error (Breiman et al. 1984), would often drop
# a term that is real; a third prefers a little noise to a systematic error.
AS_GOOD_SE = 0.33


def reserve(ref_id: NDArray[np.int64], one_in: int = HOLD_OUT_ONE_IN) -> Bools:
    """Choose the stars to hold out, by a hash of their identity: the same ones every time."""
    with np.errstate(over="ignore"):
        h = ref_id.astype(np.uint64)
        # The finaliser of SplitMix64 (Steele et al. 2014): every bit depends on every bit.
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        h ^= h >> np.uint64(31)
    return (h % np.uint64(one_in)) == 0


def _candidates(
    n: int, lower: SkyModel, max_order: int, coverage: float, lowest: str = "shift"
) -> list[str]:
    """List the geometries that this many stars determine, simplest first."""
    low = ("shift", "rshift", "rscale", "general")
    names = [k for k in low if n >= GEOMETRIES[k][1]]
    # Three or four stars determine `lowest` with hardly a residual to check it; with fewer the
    # richest geometry that they determine is taken.
    names = names[low.index(lowest):] or ([lowest] if n >= 3 else names[-1:])
    for d in range(1, max_order + 1):
        # A polynomial must not be extrapolated: half of the frame's cells must hold a star, and
        # from the fourth order on 70 % of them.
        if n >= GEOMETRIES[f"poly{d}"][1] and (d == 1 or coverage >= (0.5 if d < 4 else 0.7)):
            names.append(f"poly{d}")
    if lower.degree == 1 and "poly1" in names and "general" in names:
        names.remove("general")  # of a linear model, it is poly1
    return names or ["shift"]


def coverage(x: Floats, y: Floats, shape: tuple[int, int], cells: int = 4) -> float:
    """Return the fraction of the cells of a grid over the frame that hold a star."""
    if len(x) == 0:
        return 0.0
    i = (np.asarray(x) / shape[1] * cells).astype(int).clip(0, cells - 1)
    j = (np.asarray(y) / shape[0] * cells).astype(int).clip(0, cells - 1)
    return len(np.unique(j * cells + i)) / cells**2


def choose_geometry(
    plane: Plane, max_order: int, shape: tuple[int, int], lowest: str = "shift"
) -> tuple[str, dict[str, dict[str, float]]]:
    """Return the geometry with the best held-out likelihood, and the score of each tried.

    Parameters
    ----------
    plane : Plane
    max_order : int
        Highest polynomial to try.
    shape : tuple of int
        Rows and columns of the frame.
    lowest : str
        The simplest geometry that may be chosen.
    """
    pairs, lower = plane.pairs, plane.lower
    held = reserve(pairs.ref_id) if len(pairs) >= 30 else np.zeros(len(pairs), dtype=bool)
    enough = len(pairs) >= HELD_OUT_NEEDS
    folds = [held] if enough else [
        np.arange(len(pairs)) % 5 == k for k in range(min(5, len(pairs)))
    ]
    names = _candidates(
        int((~folds[0]).sum()), lower, max_order, coverage(pairs.x, pairs.y, shape), lowest
    )
    losses: dict[str, Floats] = {}
    worse = 0
    best = np.inf
    for name in names:
        loss = _held_out_loss(plane, name, folds, held if not enough else None)
        if loss is None:
            continue
        losses[name] = loss
        mean = float(loss.mean())
        worse = worse + 1 if mean > best else 0
        best = min(best, mean)
        if worse >= 3 and name.startswith("poly") and name > "poly3":
            break  # three orders in a row are worse than the best
    if not losses:
        return names[0], {}
    winner = min(losses, key=lambda k: float(losses[k].mean()))
    chosen = winner
    for name in losses:  # simplest first
        difference = losses[name] - losses[winner]
        if difference.mean() <= AS_GOOD_SE * difference.std() / np.sqrt(len(difference)):
            chosen = name
            break
    scores = {k: {"score": float(v.mean()), "n": float(len(v))} for k, v in losses.items()}
    return _odd_order(chosen, losses, len(pairs)), scores


def _odd_order(chosen: str, losses: dict[str, Floats], n: int) -> str:
    """Raise an even order to the next odd one, if it is not clearly worse and well determined."""
    if not chosen.startswith("poly") or int(chosen[4:]) % 2:
        return chosen
    odd = f"poly{int(chosen[4:]) + 1}"
    if odd not in losses or n < ODD_STARS * n_terms(int(odd[4:])):
        return chosen
    difference = losses[odd] - losses[chosen]
    worse = difference.mean() > 2.0 * difference.std() / np.sqrt(len(difference))
    return chosen if worse else odd


def _held_out_loss(
    plane: Plane, name: str, folds: list[Bools], never: Bools | None
) -> Floats | None:
    """Return the negative log-likelihood of each held-out star, robust against outliers."""
    losses = []
    for fold in folds:
        train = ~fold if never is None else ~fold & ~never
        try:
            fit = plane.fit(name, train, rounds=3)
        except Degenerate:
            return None
        test = fold if never is None else fold & ~never
        cov = fit.sigma2_mas2[test]
        q = mahalanobis2(fit.residual_mas[test], cov)
        det = cov[:, 0] * cov[:, 1] - cov[:, 2] ** 2
        # Student's t with 5 degrees of freedom (exponent (5 + 2) / 2): a wrong pair changes the
        # loss hardly, and equally for all geometries.
        losses.append(0.5 * np.log(det) + 3.5 * np.log1p(q / 5.0))
    return np.concatenate(losses)
