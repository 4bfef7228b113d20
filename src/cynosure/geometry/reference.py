"""Reference stars at the epoch of an image, with the covariance that they have there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.catalogs.refcat import RefCat
from cynosure.data.tables import ASTROMETRY
from cynosure.ground.settings import Range, Unit
from cynosure.ground.sky import at_epoch

__all__ = ["Reference", "reference_stars", "select_reference"]

Floats = NDArray[np.float64]

# Error of the epoch (yr) of an image without a date: half of an assumed range of two decades.
UNKNOWN_EPOCH_YR = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Reference stars at the epoch of the image.

    Attributes
    ----------
    stars : (n,) structured array
        Schema ``REFERENCE``, brightest first.
    ra_deg, dec_deg : (n,) ndarray
        At the epoch.
    cov_mas2 : (n, 3) ndarray
        Their covariance, with assumed values where the catalogue gives none.
    stated_mas2 : (n, 3) ndarray
        The same without an assumed error that all stars share: where there are enough stars, that
        error is left to the sigma_0 of the error model.
    epoch_yr : float
        Julian year of the positions.
    """

    stars: NDArray[np.void]
    ra_deg: Floats
    dec_deg: Floats
    cov_mas2: Floats
    stated_mas2: Floats
    epoch_yr: float = float("nan")

    def __len__(self) -> int:
        return len(self.stars)

    def __getitem__(self, rows: NDArray[np.generic]) -> Reference:
        return Reference(
            self.stars[rows], self.ra_deg[rows], self.dec_deg[rows], self.cov_mas2[rows],
            self.stated_mas2[rows], self.epoch_yr,
        )


def select_reference(
    stars: NDArray[np.void],
    *,
    min_mag: Annotated[float | None, Unit("mag"), Range(-5, 40)] = None,
    max_mag: Annotated[float | None, Unit("mag"), Range(-5, 40)] = None,
    require_good: bool = True,
    max_error_mas: Annotated[float, Unit("mas"), Range(0.001, 1e6)] = 2000.0,
) -> NDArray[np.bool_]:
    """Say which reference stars may take part in a fit.

    Parameters
    ----------
    stars : (n,) structured array
        Schema ``REFERENCE``.
    min_mag, max_mag : float, optional
        Brightest and faintest star to use.
    require_good : bool
        Leave out stars that fail the catalogue's quality cuts (ruwe, duplicates, blends), unless
        that would leave fewer than a third.
    max_error_mas : float
        Largest error of the catalogue's position.
    """
    keep = np.ones(len(stars), dtype=bool)
    with np.errstate(invalid="ignore"):
        if min_mag is not None:
            keep &= stars["mag"] >= min_mag
        if max_mag is not None:
            keep &= stars["mag"] <= max_mag
        error = np.fmax(stars["ra_error_mas"], stars["dec_error_mas"])
    keep &= ~(error > max_error_mas)
    if require_good and np.count_nonzero(keep & stars["good"]) > np.count_nonzero(keep) / 3:
        keep &= stars["good"]
    return keep


def reference_stars(
    refcat: RefCat, ra: float, dec: float, radius: float, epoch_yr: float | None,
    settings: Mapping[str, dict[str, Any]], max_rows: int,
) -> tuple[Reference, float]:
    """Return the reference stars of a circle at the epoch."""
    cuts = settings["refcat"]
    stars = refcat.cone(
        ra, dec, min(radius, 180.0), min_mag=cuts.get("min_mag"), max_mag=cuts.get("max_mag"),
        max_rows=max_rows, columns=ASTROMETRY,
    )
    stars = stars[select_reference(stars, **cuts)]
    epoch = epoch_yr
    if epoch is None:
        epoch = float(np.median(stars["ref_epoch_yr"])) if len(stars) else 2016.0
    ra_deg, dec_deg, cov = at_epoch(stars, epoch)
    if epoch_yr is None:
        with np.errstate(invalid="ignore"):
            mu = np.hypot(stars["pm_ra_mas_yr"], stars["pm_dec_mas_yr"])
        cov[:, :2] += (np.nan_to_num(mu, nan=7.0)[:, None] * UNKNOWN_EPOCH_YR) ** 2
    stated = _stated(refcat, stars, epoch, cov)
    return Reference(stars, ra_deg, dec_deg, cov, stated, epoch), epoch


def _stated(
    refcat: RefCat, stars: NDArray[np.void], epoch: float, cov: Floats
) -> Floats:
    """Return covariances without an error that is assumed for every star alike."""
    still = not np.isfinite(stars["pm_ra_mas_yr"]).any()
    stated = at_epoch(stars, epoch, unknown_pm_mas_yr=0.0)[2] if still else cov.copy()
    if "ra_error_mas" not in refcat.meaning.sources:
        stated[:, :2] -= refcat.meaning.position_error_mas**2
    stated[:, :2] = np.fmax(stated[:, :2], LEAST_ERROR_MAS**2)
    return stated


# Floor of a catalogue error: the best positions of Gaia DR3 have errors of 0.01 to 0.02 mas (Gaia
# Collaboration, Vallenari et al. 2023, A&A 674, A1).
LEAST_ERROR_MAS = 0.01
