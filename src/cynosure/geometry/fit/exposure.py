"""Fit a WCS to paired stars, with the order that stars held out choose.

A *geometry* says what is fitted. ``shift``, ``rshift``, ``rscale`` and ``general`` move the plane
of a model that is there already: the WCS that the image came with, whose distortion stays, or else
a linear one. ``poly1`` … ``poly7`` fit the whole polynomial. All are linear in their parameters, so
each is one generalised least-squares problem with the full 2 x 2 covariance of every star,

    minimise  sum_i r_i^T Sigma_i^-1 r_i,     Sigma_i from the error model,

solved anew as outliers are dropped (Huber weights in between) and as the error model, which needs
the residuals, settles. The covariance of the parameters gives the error of the WCS itself at any
pixel.

Of every set of pairs a seventh is held out, chosen by the stars' identity, so that the same stars
are held out whoever asks. The geometry is the one whose likelihood for the stars held out is
best, or a simpler one that is as good to within a third of the standard error of the paired
difference:
a term too many costs a little noise, a term too few is an error that no error bar knows of. For
the same reason an even order is raised to the next odd one where there are stars enough and that
is not clearly worse: the distortion of a centred system is cubic, then of fifth order. Where the
stars held out are too few to tell, five-fold cross-validation over the others decides.

The higher terms of what is chosen are then believed as far as the stars show them
(:mod:`cynosure.geometry.fit.priors`); what is left open is part of the error of the WCS.
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

# The higher terms of a polynomial of this degree are shrunk, from this many stars on.
SHRUNK_DEGREE, SHRUNK_LEAST = 5, 5

# The best measured stars decide the geometry; the faint half of a rich field adds time and no
# light.
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
        A model made from other stars than these, on the same tangent plane as `base`: ``shift`` …
        ``general`` keep its distortion. Without it they move the linear part of `base`.
    lowest : str
        The simplest geometry that ``auto`` may choose: ``shift`` where nothing of `prior` was
        learnt from these stars, ``general`` where its linear part was. A geometry that keeps what
        the same stars have taught believes it without an error, and its error of the WCS is far
        too small.
    last : Fit, optional
        A fit to nearly the same pairs, whose geometry stands.
    geometry : str
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
    plane = Plane(pairs, base, lower, Clipping(clipping_threshold, error_threshold, rounds))
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
        # A polynomial runs away where there are no stars.
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
