"""Observations: positions of reference stars on the chips of exposures.

One table serves one chip, an exposure, and any number of exposures: the fit of a single chip uses
:meth:`Observations.pairs`, a joint solution the table itself. A row is one source. The reference
stars are in a second table, once each however often they were observed, with their five
astrometric parameters and the covariance of these: the prior of a star whose position is solved for
together with the exposures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cynosure.data.tables import Schema
from cynosure.ground.sky import five_parameters

__all__ = [
    "OBSERVATIONS", "PARAMETERS", "PRIORS", "Observations", "Pairs", "prior_covariance",
    "star_priors",
]

Floats = NDArray[np.float64]

OBSERVATIONS = Schema(
    "cynosure.observations/1",
    [
        ("exposure", "i4", "", "0-based number of the exposure"),
        ("chip", "i4", "", "0-based number of the detector array in its exposure"),
        ("star", "i8", "", "row of the reference star in the table of priors"),
        ("x", "f8", "px", "column of the source, 0-based"),
        ("y", "f8", "px", "row of the source, 0-based"),
        ("x_var_px2", "f8", "px2", "variance of x"),
        ("y_var_px2", "f8", "px2", "variance of y"),
        ("xy_cov_px2", "f8", "px2", "covariance of x and y"),
        ("epoch_yr", "f8", "yr", "Julian year of the exposure"),
        ("color", "f8", "mag", "colour of the star, NaN where unknown"),
        ("ref_ra_deg", "f8", "deg", "reference star at epoch_yr, ICRS"),
        ("ref_dec_deg", "f8", "deg", "reference star at epoch_yr, ICRS"),
        ("ref_ra_var_mas2", "f8", "mas2", "variance of that along ra, with cos dec"),
        ("ref_dec_var_mas2", "f8", "mas2", "variance of that along dec"),
        ("ref_cov_mas2", "f8", "mas2", "covariance of the two"),
    ],
)

# The five parameters in the order of their covariance.
PARAMETERS = ("ra", "dec", "parallax", "pm_ra", "pm_dec")
_UNITS = ("mas", "mas", "mas", "mas/yr", "mas/yr")
_UPPER = [(i, k) for i in range(5) for k in range(i, 5)]

PRIORS = Schema(
    "cynosure.priors/1",
    [
        ("ref_id", "i8", "", "identifier in the catalogue (Gaia source_id)"),
        ("ref_epoch_yr", "f8", "yr", "Julian year of the parameters"),
        ("ra_deg", "f8", "deg", "right ascension, ICRS"),
        ("dec_deg", "f8", "deg", "declination, ICRS"),
        ("parallax_mas", "f8", "mas", "parallax, 0 where unknown"),
        ("pm_ra_mas_yr", "f8", "mas/yr", "proper motion in ra, with cos dec, 0 where unknown"),
        ("pm_dec_mas_yr", "f8", "mas/yr", "proper motion in dec, 0 where unknown"),
        *(
            (f"cov_{PARAMETERS[i]}_{PARAMETERS[k]}", "f8", f"{_UNITS[i]} {_UNITS[k]}",
             "covariance; along ra with cos dec")
            for i, k in _UPPER
        ),
    ],
)


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Paired stars of one chip: pixels with covariance, sky positions at the epoch with theirs.

    Attributes
    ----------
    x, y : (n,) ndarray
        Pixels, 0-based.
    cov_px2 : (n, 3) ndarray
        Variances of x and y and their covariance.
    ra_deg, dec_deg : (n,) ndarray
        Reference positions at the epoch.
    cov_mas2 : (n, 3) ndarray
        Their covariance, along ra (with cos dec) and dec at each star.
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

    @classmethod
    def of(cls, rows: NDArray[np.void], ref_id: NDArray[np.int64]) -> Pairs:
        """Return the pairs of observations (schema ``OBSERVATIONS``)."""
        source = np.stack([rows[k] for k in ("x_var_px2", "y_var_px2", "xy_cov_px2")], axis=1)
        star = np.stack(
            [rows[k] for k in ("ref_ra_var_mas2", "ref_dec_var_mas2", "ref_cov_mas2")], axis=1
        )
        place = (np.ascontiguousarray(rows[k]) for k in ("x", "y", "ref_ra_deg", "ref_dec_deg"))
        x, y, ra, dec = place
        return cls(x, y, source, ra, dec, star, ref_id)


def star_priors(stars: NDArray[np.void]) -> NDArray[np.void]:
    """Return the priors (schema ``PRIORS``) of reference stars (schema ``REFERENCE``)."""
    values, covariance = five_parameters(stars)
    priors = PRIORS.empty(len(stars))
    for name in ("ref_id", "ref_epoch_yr"):
        priors[name] = stars[name]
    for k, name in enumerate(PRIORS.names[2:7]):
        priors[name] = values[:, k]
    for (i, k), name in zip(_UPPER, PRIORS.names[7:]):
        priors[name] = covariance[:, i, k]
    return priors


def prior_covariance(priors: NDArray[np.void]) -> Floats:
    """Return the covariances (n, 5, 5) of the parameters of priors, mas and mas/yr."""
    out = np.empty((len(priors), 5, 5))
    for (i, k), name in zip(_UPPER, PRIORS.names[7:]):
        out[:, i, k] = out[:, k, i] = priors[name]
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Observations:
    """Sources of one or more exposures, and the reference stars that they are paired with.

    Attributes
    ----------
    rows : (n,) structured array
        Schema ``OBSERVATIONS``.
    priors : (m,) structured array
        Schema ``PRIORS``; ``rows["star"]`` counts in it.
    """

    rows: NDArray[np.void]
    priors: NDArray[np.void]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: NDArray[np.generic]) -> Observations:
        """Return some of the observations, with the priors of all."""
        return Observations(self.rows[rows], self.priors)

    def pairs(self) -> Pairs:
        """Return the observations as pairs, for the fit of one chip."""
        return Pairs.of(self.rows, self.priors["ref_id"][self.rows["star"]])

    def of_exposure(self, number: int) -> Observations:
        """Return the same observations as those of an exposure of another number."""
        rows = self.rows.copy()
        rows["exposure"] = number
        return Observations(rows, self.priors)

    @classmethod
    def joined(cls, parts: Sequence[Observations]) -> Observations:
        """Join observations; a star that several contain gets one prior, the first."""
        if not parts:
            return cls(OBSERVATIONS.empty(), PRIORS.empty())
        priors = np.concatenate([p.priors for p in parts])
        _, first, number = np.unique(priors["ref_id"], return_index=True, return_inverse=True)
        rows = np.concatenate([p.rows for p in parts])
        offset = np.cumsum([0] + [len(p.priors) for p in parts[:-1]])
        rows["star"] += np.repeat(offset, [len(p) for p in parts])
        rows["star"] = number[rows["star"]]
        return cls(rows, priors[first])
