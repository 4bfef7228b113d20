"""Fit a WCS to paired stars, with the order that cross-validation chooses.

A *geometry* names the parameters that are fitted. ``shift``, ``rshift``, ``rscale`` and ``general``
move the plane of an existing model: the input WCS, whose distortion is kept, or else a linear
model. ``poly1`` … ``poly7`` fit the whole polynomial. All are linear in their parameters, so
each is one generalised least-squares problem with the full 2 x 2 covariance of every star,

    minimise  sum_i r_i^T Sigma_i^-1 r_i,     Sigma_i from the error model,

solved again as outliers are dropped (with Huber weights) and as the error model, which needs
the residuals, converges. The covariance of the parameters gives the error of the WCS itself at any
pixel.

Of every set of pairs a seventh is held out, chosen by a hash of the star's identifier, so that
every fit holds out the same stars. The geometry is the one with the best likelihood of the
held-out stars, or a simpler one that is as good to within a third of the standard error of the
paired difference: a superfluous term adds a little noise, which the error bars include; a missing
term is a systematic error, which they do not. For the same reason an even order is raised to the
next odd one where there are enough stars and that is not clearly worse: the distortion of a
centred optical system is of third order, then of fifth. Where the held-out stars are too few,
five-fold cross-validation over the others decides.

The higher terms of the chosen geometry then get a Gaussian prior whose size is estimated from the
stars (:mod:`cynosure.geometry.fit.priors`); the error of the WCS includes what they leave open.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.fit.geometries import GEOMETRIES
from cynosure.geometry.fit.plane import FEW_STARS, Clipping, Fit, Pairs, Plane
from cynosure.geometry.fit.selection import choose_geometry, reserve
from cynosure.geometry.skymodel import SkyModel
from cynosure.ground.errors import Degenerate
from cynosure.ground.numeric import lstsq, poly_design
from cynosure.ground.settings import Range, Unit

__all__ = ["GEOMETRIES", "Fit", "Pairs", "fit_wcs", "linear_part", "reserve"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Degree of the polynomial whose higher terms have a prior: five includes the third- and fifth-order
# distortion of a lens; a chosen order above it is used instead. The fewest pairs for it: five give
# ten equations for the six linear parameters, and so a residual from which to estimate the sizes.
SHRUNK_DEGREE, SHRUNK_LEAST = 5, 5

# The geometry is chosen on this many of the best-measured stars. Fainter ones carry little weight,
# and the time of cross-validation is proportional to their number.
SELECTION_STARS = 4000


def fit_wcs(
    pairs: Pairs,
    base: SkyModel,
    shape: tuple[int, int],
    prior: SkyModel | None = None,
    lowest: str = "shift",
    last: Fit | None = None,
    *,
    geometry: Literal[
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
        A model that does not depend on these stars, on the same tangent plane as `base`: ``shift``
        … ``general`` keep its distortion. Without it they move the linear part of `base`.
    lowest : str
        The simplest geometry that ``auto`` may choose: ``shift`` where `prior` does not depend on
        these stars, ``general`` where its linear part was fitted to them. A simpler geometry would
        treat that linear part as exact, and the error of the WCS would be far too small.
    last : Fit, optional
        A fit to nearly the same pairs; its geometry is used again.
    geometry : str
        What to fit; ``auto`` chooses by the likelihood of held-out stars.
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
    plane = Plane(pairs, base, lower, Clipping(clipping_threshold, error_threshold, rounds))
    # With fewer than 30 pairs none is held out: four stars would measure nothing.
    held = reserve(pairs.ref_id) if len(pairs) >= 30 else np.zeros(len(pairs), dtype=bool)
    if geometry != "auto":
        return plane.fit(geometry, ~held)
    if last is not None:
        chosen, scores = last.geometry, last.scores
    else:
        chosen, scores = choose_geometry(plane.best(SELECTION_STARS), max_order, shape, lowest)
    polynomial = chosen.startswith("poly")
    if max_order > 1 and (polynomial or len(pairs) < FEW_STARS) and len(pairs) >= SHRUNK_LEAST:
        around = None if polynomial else prior
        least = int(chosen[4:]) if polynomial else 1
        degree = max(min(max_order, SHRUNK_DEGREE), around.degree if around else 1, least)
        # A polynomial of higher order is not extrapolated over more than half of the frame.
        wide = extent(pairs.x, pairs.y, shape) > 0.5
        highest = degree if wide else least
        return replace(
            plane.fit_shrunk(chosen, degree, highest, around, ~held), scores=scores
        )
    return replace(plane.fit(chosen, ~held), scores=scores)


def linear_part(model: SkyModel, shape: tuple[int, int]) -> SkyModel:
    """Return the linear model closest to a model over the frame."""
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9))
    plane = np.stack(model.pixel_to_plane(x.ravel(), y.ravel()), axis=1)
    u, v = (x.ravel() - model.x0) / model.scale_px, (y.ravel() - model.y0) / model.scale_px
    return model.replaced(coeff=lstsq(poly_design(u, v, 1), plane, what="linear part").x.T)


def extent(x: Floats, y: Floats, shape: tuple[int, int]) -> float:
    """Return the share of the frame that the rectangle about the stars covers."""
    return float(np.ptp(x) * np.ptp(y) / (shape[0] * shape[1]))
