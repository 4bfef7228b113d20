"""Fit a WCS to paired stars, with the order that stars held out choose.

A *form* says what is fitted. ``shift``, ``rshift``, ``rscale`` and ``general`` move the plane of a
model that is there already: the WCS that the image came with, whose distortion stays, or else a
linear one. ``poly1`` … ``poly7`` fit the whole polynomial. All are linear in their parameters, so
each is one generalised least-squares problem with the full 2 x 2 covariance of every star,

    minimise  sum_i r_i^T Sigma_i^-1 r_i,     Sigma_i from the error model,

solved anew as outliers are dropped (Huber weights in between) and as the error model, which needs
the residuals, settles. The covariance of the parameters gives the error of the WCS itself at any
pixel.

Of every set of pairs a seventh is held out, chosen by the stars' identity, so that the same stars
are held out whoever asks. The form is the one whose likelihood for the stars held out is best, or
a simpler one that is as good to within a third of the standard error of the paired difference:
a term too many costs a little noise, a term too few is an error that no error bar knows of. For
the same reason an even order is raised to the next odd one where there are stars enough and that
is not clearly worse: the distortion of a centred system is cubic, then of fifth order. Where the
stars held out are too few to tell, five-fold cross-validation over the others decides.

The higher terms of what is chosen are then believed as far as the stars show them
(:mod:`cynosure.geometry.fit.priors`); what is left open is part of the error of the WCS.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.fit.errormodel import CHI2_OUTLIER, ErrorModel, fit_error_model, mahalanobis2
from cynosure.geometry.fit.geometries import FORMS, Design, assemble
from cynosure.geometry.fit.priors import SIZES_PX, Shrinkage, mixture, moved, simplified
from cynosure.geometry.wcs import SkyModel
from cynosure.ground.errors import Degenerate
from cynosure.ground.numeric import lstsq, mad_std, n_terms, poly_design, solve_normal
from cynosure.ground.settings import Range, Unit
from cynosure.ground.sky import MAS_PER_DEG, project

__all__ = ["FORMS", "Fit", "Pairs", "fit_wcs", "linear_part", "reserve"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Stars enough for a held-out seventh of them to judge the form.
HELD_OUT_NEEDS = 2500
# A part in seven is 14 %.
HOLD_OUT_ONE_IN = 7

# Stars from which only full linear maps and polynomials are tried.
RICH = 500

# The higher terms of a polynomial of this degree are shrunk: with fewer stars than these in every
# round of the fit, with more of them once, on the normal equations of the fit without it.
FEW_STARS = 1500
SHRUNK_DEGREE, SHRUNK_ROUNDS, SHRUNK_LEAST = 5, 4, 5

# What the image came with, moved, is as likely if it is nearer than this to what the stars say,
# in standard errors of that.
AS_LIKELY = 1.0

# Stars a coefficient from which an order is well determined.
ODD_STARS = 15

# A simpler form is as good if it is worse by no more than this part of the standard error.
AS_GOOD_SE = 0.33

# The best measured stars decide the form; the faint half of a rich field adds time and no light.
SELECTION_STARS = 4000

# Weights of stars beyond this many standard deviations fall off (Huber), before they are dropped.
HUBER_K = 2.5


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Paired stars: pixels with covariance, and sky positions at the epoch with theirs.

    Attributes
    ----------
    x, y : (n,) ndarray
        Pixels, 0-based.
    cov_px2 : (n, 3) ndarray
        Variances of x and y and their covariance.
    ra_deg, dec_deg : (n,) ndarray
        Reference positions at the epoch.
    cov_mas2 : (n, 3) ndarray
        Their covariance, along ra (with cos dec) and dec.
    ref_id : (n,) ndarray of int
        Identity of the reference star.
    """

    x: Floats
    y: Floats
    cov_px2: Floats
    ra_deg: Floats
    dec_deg: Floats
    cov_mas2: Floats
    ref_id: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: NDArray[np.generic]) -> Pairs:
        return Pairs(*(getattr(self, name)[rows] for name in self.__slots__))


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """The result of :func:`fit_wcs`.

    Attributes
    ----------
    model : SkyModel
        The WCS.
    form : str
        What was fitted, one of ``FORMS``.
    errors : ErrorModel
        The error model.
    covariance : (p, p) ndarray
        Of the parameters of `spread`, or else of `form`; see :meth:`wcs_error_mas`.
    residual_mas : (n, 2) ndarray
        Source minus reference, all pairs, along ra (with cos dec) and dec.
    sigma2_mas2 : (n, 3) ndarray
        The covariance the error model gives each residual; that of the WCS is in it where the
        star was held out of the fit.
    leverage : (n, 2) ndarray
        Of the used stars, 0 for the others.
    used, reserved : (n,) ndarray of bool
        Took part in the fit; held out of it. A pair beyond the threshold is neither.
    chi2, dof : float, int
        Of the used stars.
    chi2_all : float
        Of all pairs that are not outliers, with the same model: also those held out.
    history : tuple of dict
        One row a round: ``round, form, n_used, rms_mas, a, sigma0_mas``.
    scores : dict
        For each form tried, its held-out score (mean negative log-likelihood of a star) and
        degrees of freedom.
    base : SkyModel, optional
        What `form` moves.
    spread : str
        The form of the covariance where terms were left open that `form` has not.
    """

    model: SkyModel
    form: str
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

    def wcs_error_mas(self, x: Floats, y: Floats) -> Floats:
        """Return the predicted standard error per axis (n, 2) of the WCS itself at pixels."""
        base = self.base if self.base is not None else self.model
        design = Design(self.spread or self.form, base, np.atleast_1d(x), np.atleast_1d(y))
        grow = max(1.0, self.chi2 / max(self.dof, 1))
        return np.sqrt(design.variance(self.covariance)[:, :2] * grow)


def reserve(ref_id: NDArray[np.int64], one_in: int = HOLD_OUT_ONE_IN) -> Bools:
    """Choose the stars to hold out, by a hash of their identity: the same ones every time."""
    with np.errstate(over="ignore"):
        h = ref_id.astype(np.uint64)
        # The finaliser of SplitMix64 (Steele et al. 2014): every bit depends on every bit.
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        h ^= h >> np.uint64(31)
    return (h % np.uint64(one_in)) == 0


def fit_wcs(
    pairs: Pairs,
    base: SkyModel,
    shape: tuple[int, int],
    prior: SkyModel | None = None,
    lowest: str = "shift",
    last: Fit | None = None,
    *,
    form: Literal[
        "auto", "shift", "rshift", "rscale", "general",
        "poly1", "poly2", "poly3", "poly4", "poly5", "poly6", "poly7",
    ] = "auto",
    max_order: Annotated[int, Range(1, 7)] = 7,
    clipping_threshold: Annotated[float, Unit("sigma"), Range(1.5, 100)] = 5.0,
    error_threshold: Annotated[float, Unit("sigma"), Range(1.5, 100)] = 4.3,
    rounds: Annotated[int, Range(1, 50)] = 10,
) -> Fit:
    """Fit a WCS to pairs.

    Parameters
    ----------
    pairs : Pairs
        The paired stars.
    base : SkyModel
        A model good to a few pixels: where the fit starts.
    shape : tuple of int
        Rows and columns of the frame.
    prior : SkyModel, optional
        A model made from other stars than these, on the same tangent plane as `base`: ``shift`` …
        ``general`` keep its distortion. Without it they move the linear part of `base`.
    lowest : str
        The simplest form that ``auto`` may choose: ``shift`` where nothing of `prior` was learnt
        from these stars, ``general`` where its linear part was. A form that keeps what the same
        stars have taught believes it without an error, and its error of the WCS is far too small.
    last : Fit, optional
        A fit to nearly the same pairs, whose form stands.
    form : str
        What to fit; ``auto`` lets held-out stars choose.
    max_order : int
        Highest polynomial to try.
    clipping_threshold : float
        First rounds, before there is an error model: pairs are dropped beyond this many robust
        standard deviations of all residuals.
    error_threshold : float
        Later rounds: pairs are dropped beyond this many standard deviations of their own error,
        as a Mahalanobis distance in the plane; 4.3 keeps all but one in ten thousand good ones.
    rounds : int
        Most rounds of fit, error model and clipping.

    Raises
    ------
    Degenerate
        If not even a shift is determined.
    """
    if len(pairs) == 0:
        raise Degenerate(what="WCS fit", n_points=0, n_parameters=2, condition=np.inf)
    lower = linear_part(base, shape) if prior is None else prior
    plane = _Plane(pairs, base, lower, clipping_threshold, error_threshold, rounds)
    held = reserve(pairs.ref_id) if len(pairs) >= 30 else np.zeros(len(pairs), dtype=bool)
    scores: dict[str, dict[str, float]] = {}
    if form != "auto":
        return plane.fit(form, ~held, scores)
    if last is not None:
        chosen, scores = last.form, last.scores
    else:
        chosen, scores = _choose_form(plane.best(SELECTION_STARS), lower, max_order, shape, lowest)
    polynomial = chosen.startswith("poly")
    if max_order > 1 and (polynomial or len(pairs) < FEW_STARS) and len(pairs) >= SHRUNK_LEAST:
        around = None if polynomial else prior
        least = int(chosen[4:]) if polynomial else 1
        degree = max(min(max_order, SHRUNK_DEGREE), around.degree if around else 1, least)
        # A polynomial runs away where there are no stars.
        wide = extent(pairs.x, pairs.y, shape) > 0.5
        highest = degree if wide else least
        return plane.fit_shrunk(chosen, degree, highest, around, ~held, scores)
    return plane.fit(chosen, ~held, scores)


# ------------------------------------------------------------------------------ choosing the form
def _candidates(
    n: int, lower: SkyModel, max_order: int, coverage: float, lowest: str = "shift"
) -> list[str]:
    """List the forms that this many stars can be asked for, simplest first."""
    low = ("shift", "rshift", "rscale", "general")
    names = [k for k in low if n >= FORMS[k][1]]
    # Four stars give the linear part with next to no check; fewer give the best that they can.
    names = names[low.index(lowest):] or ([lowest] if n >= 3 else names[-1:])
    for d in range(1, max_order + 1):
        # A polynomial runs away where there are no stars; most of the frame must have some.
        if n >= FORMS[f"poly{d}"][1] and (d == 1 or coverage >= (0.5 if d < 4 else 0.7)):
            names.append(f"poly{d}")
    if lower.degree == 1 and "poly1" in names and "general" in names:
        names.remove("general")  # the same thing
    return names or ["shift"]


def linear_part(model: SkyModel, shape: tuple[int, int]) -> SkyModel:
    """Return the linear model closest to a model over the frame."""
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9))
    plane = np.stack(model.pixel_to_plane(x.ravel(), y.ravel()), axis=1)
    u, v = (x.ravel() - model.x0) / model.scale_px, (y.ravel() - model.y0) / model.scale_px
    return model.replaced(coeff=lstsq(poly_design(u, v, 1), plane, what="linear part").x.T)


def coverage(x: Floats, y: Floats, shape: tuple[int, int], cells: int = 4) -> float:
    """Return the fraction of the cells of a grid over the frame that hold a star."""
    if len(x) == 0:
        return 0.0
    i = (np.asarray(x) / shape[1] * cells).astype(int).clip(0, cells - 1)
    j = (np.asarray(y) / shape[0] * cells).astype(int).clip(0, cells - 1)
    return len(np.unique(j * cells + i)) / cells**2


def extent(x: Floats, y: Floats, shape: tuple[int, int]) -> float:
    """Return the share of the frame that the rectangle about the stars covers."""
    return float(np.ptp(x) * np.ptp(y) / (shape[0] * shape[1]))


def _choose_form(
    plane: _Plane, lower: SkyModel, max_order: int, shape: tuple[int, int], lowest: str = "shift"
) -> tuple[str, dict[str, dict[str, float]]]:
    pairs = plane.pairs
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
            break  # three orders in a row have not helped
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
    plane: _Plane, name: str, folds: list[Bools], never: Bools | None
) -> Floats | None:
    """Return the negative log-likelihood of each held-out star, robust against outliers."""
    losses = []
    for fold in folds:
        train = ~fold if never is None else ~fold & ~never
        try:
            fit = plane.fit(name, train, {}, rounds=3)
        except Degenerate:
            return None
        test = fold if never is None else fold & ~never
        cov = fit.sigma2_mas2[test]
        q = mahalanobis2(fit.residual_mas[test], cov)
        det = cov[:, 0] * cov[:, 1] - cov[:, 2] ** 2
        # Student's t with 5 degrees of freedom: a wrong pair costs the same whatever the form.
        losses.append(0.5 * np.log(det) + 3.5 * np.log1p(q / 5.0))
    return np.concatenate(losses)


# ------------------------------------------------------------------------------------- the fit
class _Plane:
    """Pairs on the tangent plane of a model, ready to be fitted many times."""

    def __init__(
        self, pairs: Pairs, base: SkyModel, lower: SkyModel, clipping: float, threshold: float,
        rounds: int,
    ):
        self.pairs, self.base, self.lower = pairs, base, lower
        self.clipping, self.threshold, self.rounds = clipping, threshold, rounds
        xi, eta = project(pairs.ra_deg, pairs.dec_deg, base.ra0_deg, base.dec0_deg)
        self.target = np.stack([xi, eta], axis=1) * MAS_PER_DEG
        self.source_cov = _to_sky(base, pairs)
        self.designs: dict[str, Design] = {}

    def best(self, most: int) -> _Plane:
        """Return the plane with the best measured stars only, in their order."""
        if len(self.pairs) <= most:
            return self
        size = self.source_cov[:, 0] + self.source_cov[:, 1]
        rows = np.sort(np.argpartition(size, most)[:most])
        return _Plane(
            self.pairs[rows], self.base, self.lower, self.clipping, self.threshold, self.rounds
        )

    def start(self, form: str) -> SkyModel:
        """Return the model that a form moves."""
        return self.base if form.startswith("poly") else self.lower

    def design(self, form: str) -> Design:
        """Return the design of a form, made once."""
        if form not in self.designs:
            self.designs[form] = Design(form, self.start(form), self.pairs.x, self.pairs.y)
        return self.designs[form]

    def offset(self, form: str) -> Floats:
        """Return what the design must explain: all of the target, or its distance to a model."""
        if form.startswith("poly"):
            return self.target
        return self._distance(self.lower)

    def _distance(self, model: SkyModel) -> Floats:
        xi, eta = model.pixel_to_plane(self.pairs.x, self.pairs.y)
        return self.target - np.stack([xi, eta], axis=1) * MAS_PER_DEG

    def fit(
        self, form: str, train: Bools, scores: dict[str, dict[str, float]],
        rounds: int | None = None, prior: Shrinkage | None = None,
    ) -> Fit:
        """Fit one form to the stars of `train`, with a prior of its coefficients."""
        design, goal = self.design(form), self.offset(form)
        least = FORMS[form][1] if prior is None else FORMS["general"][1]
        errors, use, weight = self._start(least, train)
        history: list[dict[str, float | int | str]] = []
        for k in range(rounds or self.rounds):
            cov = errors.covariance(self.source_cov, self.pairs.cov_mas2)
            p, covariance, lever = self._solve(form, design, goal, cov, use, weight, prior)
            residual = design.apply(p) - goal
            new_errors, _ = fit_error_model(
                residual[train & use], self.source_cov[train & use],
                self.pairs.cov_mas2[train & use], lever[train & use], start=errors,
            )
            cov = new_errors.covariance(self.source_cov, self.pairs.cov_mas2)
            q = mahalanobis2(residual / np.sqrt(np.clip(1 - lever, 0.05, 1)), cov)
            new_use = train & (q < self.threshold**2)
            # Never drop so many that the form is no longer determined.
            if new_use.sum() < max(least, 0.3 * train.sum()):
                new_use = use
            history.append({
                "round": k, "form": form, "n_used": int(use.sum()),
                "rms_mas": float(np.sqrt(np.mean(residual[use] ** 2))),
                "a": new_errors.a, "sigma0_mas": new_errors.sigma0_mas,
            })
            settled = (
                np.array_equal(new_use, use)
                and abs(np.log(new_errors.a / errors.a)) < 1e-3
                and abs(np.log(new_errors.sigma0_mas / errors.sigma0_mas)) < 1e-2
            )
            errors, use = new_errors, new_use
            weight = _huber(q)
            if settled:
                break
        n_parameters = FORMS[form][0] if prior is None else prior.effective
        return self._record(
            form, p, covariance, lever, errors, residual, use, train, history, scores, n_parameters
        )

    def fit_shrunk(
        self, form: str, degree: int, highest: int, around: SkyModel | None, train: Bools,
        scores: dict[str, dict[str, float]],
    ) -> Fit:
        """Fit a polynomial whose higher terms are believed as far as the stars show them.

        Where `around` is given and its motion by `form` is as good, that is what is returned,
        with the covariance of the former.
        """
        whole = f"poly{degree}"
        tried = self._tried(degree, around, train, scores)
        _, _, _, fit, prior = max(tried, key=lambda t: t[0])
        p, covariance = mixture([t[:3] for t in tried])
        u, v = ((z - z0) / self.base.scale_px for z, z0 in
                ((self.pairs.x, self.base.x0), (self.pairs.y, self.base.y0)))
        if around is not None:
            low = self.fit(form, train, scores)
            change = -p.reshape(2, -1)
            change[:, : low.model.coeff.shape[1]] += low.model.coeff
            if moved(change.ravel(), covariance, u, v) < AS_LIKELY:
                return replace(low, covariance=covariance + np.outer(change, change), spread=whole)
        new, order = simplified(p - prior.mean, covariance, u, v, highest)
        left = new + prior.mean - p
        covariance = covariance + np.outer(left, left)
        order = max(order, around.degree if around else 1)
        residual, use = self.design(whole).apply(new + prior.mean) - self.target, fit.used
        errors, _ = fit_error_model(
            residual[use], self.source_cov[use], self.pairs.cov_mas2[use], fit.leverage[use],
            start=fit.errors,
        )
        fit = self._record(
            whole, new + prior.mean, covariance, fit.leverage, errors, residual, use, train,
            list(fit.history), scores, prior.effective,
        )
        model = self.base.replaced(coeff=fit.model.coeff[:, : n_terms(order)])
        return replace(fit, model=model, form=f"poly{order}", spread=whole)

    def _tried(
        self, degree: int, around: SkyModel | None, train: Bools,
        scores: dict[str, dict[str, float]],
    ) -> list[tuple[float, Floats, Floats, Fit, Shrinkage]]:
        """Return what each size of the terms leads to: evidence, coefficients, covariance."""
        whole = f"poly{degree}"
        priors = [Shrinkage.of(self.base, degree, size, around) for size in SIZES_PX]
        tried = []
        if len(self.pairs) < FEW_STARS:
            for prior in priors:
                fit = self.fit(whole, train, scores, SHRUNK_ROUNDS, prior)
                cov = fit.sigma2_mas2[train]
                det = cov[:, 0] * cov[:, 1] - cov[:, 2] ** 2
                q = np.minimum(mahalanobis2(fit.residual_mas[train], cov), self.threshold**2)
                evidence = prior.log_evidence - 0.5 * float(np.sum(np.log(det) + q))
                tried.append((evidence, fit.model.coeff.ravel(), fit.covariance, fit, prior))
            return tried
        fit = self.fit(whole, train, scores)
        cov = fit.errors.covariance(self.source_cov, self.pairs.cov_mas2)
        w = _weights(cov, fit.used, _huber(mahalanobis2(fit.residual_mas, fit.sigma2_mas2)))
        matrix, right = self.design(whole).normal(w, self.offset(whole))
        for prior in priors:
            p, covariance = prior.solve(matrix, right)
            chi2 = p @ matrix @ p - 2.0 * p @ right  # less that of all zeros, which is common
            tried.append((prior.log_evidence - 0.5 * float(chi2), p, covariance, fit, prior))
        return tried

    def _start(self, least: int, train: Bools) -> tuple[ErrorModel, Bools, Floats]:
        """Drop gross outliers by the residuals of the base, corrected for their median."""
        offset = self._distance(self.base)
        offset = offset - np.median(offset[train], axis=0)
        size = np.hypot(*offset.T)
        spread = max(float(np.mean(mad_std(offset[train], axis=0))), 1e-6)
        use = train & (size < self.clipping * np.sqrt(2.0) * spread)
        if use.sum() < least:
            use = train.copy()
        return ErrorModel(1.0, max(spread, 1e-3)), use, np.ones(len(train))

    def _solve(
        self, form: str, design: Design, goal: Floats, cov: Floats, use: Bools, weight: Floats,
        prior: Shrinkage | None,
    ) -> tuple[Floats, Floats, Floats]:
        """Solve the generalised least squares; return parameters, covariance and leverages."""
        w = _weights(cov, use, weight)
        matrix, right = design.normal(w, goal)
        if prior is None:
            solved = solve_normal(matrix, right, 2 * int(use.sum()), what=f"WCS fit ({form})")
            x, covariance = solved.x, solved.covariance
        else:
            x, covariance = prior.solve(matrix, right)
        variance = design.variance(covariance)
        # h = diag(A C A^T W), the share of each residual that the fit took up
        lever = w[:, :2] * variance[:, :2] + (w[:, 2] * variance[:, 2])[:, None]
        return x, covariance, np.clip(lever, 0.0, 1.0)

    def _record(
        self, form: str, p: Floats, covariance: Floats, lever: Floats, errors: ErrorModel,
        residual: Floats, use: Bools, train: Bools,
        history: list[dict[str, float | int | str]], scores: dict[str, dict[str, float]],
        n_parameters: float,
    ) -> Fit:
        cov = errors.covariance(self.source_cov, self.pairs.cov_mas2)
        # Of a star that the fit has not seen, the error of the WCS is part of the residual.
        cov[~train] += self.design(form)[~train].variance(covariance)
        q = mahalanobis2(residual, cov)
        return Fit(
            model=assemble(form, self.start(form), p), form=form, errors=errors,
            covariance=covariance, residual_mas=residual, sigma2_mas2=cov,
            leverage=np.where(use[:, None], lever, 0.0), used=use,
            reserved=~train & (q < self.threshold**2), chi2=float(q[use].sum()),
            dof=max(2 * int(use.sum()) - round(n_parameters), 0),
            chi2_all=float(q[q < CHI2_OUTLIER].sum()), history=tuple(history), scores=scores,
            base=self.start(form),
        )


def _huber(q: Floats) -> Floats:
    return np.minimum(1.0, HUBER_K / np.sqrt(np.maximum(q, 1e-12)))


def _weights(cov: Floats, use: Bools, weight: Floats) -> Floats:
    """Return the inverse covariances (n, 3) of the stars that are used, times their weights."""
    det = cov[:, 0] * cov[:, 1] - cov[:, 2] ** 2
    w = np.stack([cov[:, 1], cov[:, 0], -cov[:, 2]], axis=1)
    w *= (np.where(use, weight, 0.0) / det)[:, None]
    return w


def _to_sky(model: SkyModel, pairs: Pairs) -> Floats:
    """Return the covariances of the pixels on the plane, mas^2: J C J^T."""
    j = model.jacobian(pairs.x, pairs.y) * MAS_PER_DEG
    cxx, cyy, cxy = pairs.cov_px2.T
    a, b, c, d = j[:, 0, 0], j[:, 0, 1], j[:, 1, 0], j[:, 1, 1]
    return np.stack([
        a * a * cxx + b * b * cyy + 2 * a * b * cxy,
        c * c * cxx + d * d * cyy + 2 * c * d * cxy,
        a * c * cxx + b * d * cyy + (a * d + b * c) * cxy,
    ], axis=1)
