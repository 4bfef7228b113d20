"""From an accepted hypothesis to a match: the model of the frame and the pairs.

With many pairs an ordinary robust polynomial is fitted on the plane that touches the sky at the
frame's own centre, and the brightest sources are paired again. With few pairs, one false one would
distort the model: the amplitude of the distortion, the error of the positions and the pairs
themselves are then chosen together, by their evidence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.match.lists import Hypothesis, Match, Sources, Stars, seen, terms_matrix
from cynosure.geometry.match.pairs import mutual_nearest
from cynosure.geometry.match.verification import LEVELS, evaluate
from cynosure.geometry.skymodel import SkyModel
from cynosure.ground.numeric import lstsq, mad_std, poly_design, poly_exponents
from cynosure.ground.sky import deproject, project

__all__ = ["conclude"]

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Ints = NDArray[np.int64]

# Brightest sources of the last pairing: far more than the 20 coefficients of the cubic need.
MAX_PAIRS = 5000
# Pairs up to which they are chosen by evidence, which inverts matrices of their size; with more the
# robust fit with its 20 parameters has at least six equations a parameter.
FEW = 60
SIGMAS_PX = (0.1, 0.25, 0.6, 1.5)  # position errors that are tried, a factor 2.5 apart
# Priors of the terms of the polynomial that are tried: a general distortion at every level of
# LEVELS, and the radial distortion of a lens slightly off its axis, with few free terms.
ANY = np.array([0, 0, 1, 1.5, 1.5, 1.5, 1, 1, 1, 1])
ROUND = np.array([0, 0, 0.05, 0.3, 0.3, 0.05, 0.05, 1, 0.05, 0.05])
LENSES = [ANY * level for level in np.unique(LEVELS)] + [ROUND * 0.003, ROUND * 0.01]
MIN_PAIRS = 5  # pairs that are never left out: four of the quad and one that verifies it
GATE_SIGMA = 3.7  # gate in standard errors: of true pairs exp(-3.7^2 / 2) = 0.1 % lie outside
TRUE_SHARE = 0.7  # prior probability that a pair of a grown hypothesis is true


class _Frame(NamedTuple):
    """The plane of the last fits: it touches the sky at the frame's centre, in pixels."""

    ra0_deg: float
    dec0_deg: float
    scale_deg: float
    center: complex
    norm: float

    def project(self, ra: Floats, dec: Floats) -> Complexes:
        xi, eta = project(ra, dec, self.ra0_deg, self.dec0_deg)
        return np.asarray((-xi + 1j * eta) / self.scale_deg, np.complex128)


def _frame(h: Hypothesis, sources: Sources, stars: Stars) -> _Frame:
    center = np.array([seen(sources.center, h.parity)])
    at = evaluate(h.coeff, center, h.z0, h.norm)[0] * stars.scale_deg
    ra0, dec0 = deproject(-at.real, at.imag, stars.ra0_deg, stars.dec0_deg)
    scale = stars.scale_deg * float(abs(h.coeff[1])) / h.norm
    return _Frame(float(ra0), float(dec0), scale, sources.center, sources.norm)


def _fit(z: Complexes, w: Complexes, frame: _Frame, sigma_px: float) -> tuple[SkyModel, Floats]:
    """Fit a cubic to many pairs robustly; return it and the residuals in px."""
    design = poly_design(
        (z.real - frame.center.real) / frame.norm, (z.imag - frame.center.imag) / frame.norm, 3
    )
    order = poly_exponents(3).sum(axis=1)
    # A prior as wide as the largest distortion of LEVELS limits the model where there are no pairs.
    prior = np.where(order < 2, 10.0, LEVELS.max() * np.where(order == 2, 1.5, 1.0)) * frame.norm
    plane = np.column_stack([-w.real, w.imag])
    values = np.concatenate([plane, np.zeros((len(prior), 2))])
    rows = np.concatenate([design, np.eye(len(prior))])
    weights, sd = np.ones(len(z)), max(sigma_px, 0.1)
    for _ in range(3):
        both = np.concatenate([weights / sd**2, 1.0 / prior**2])
        solved = lstsq(rows, values, both, what="match").x
        residual = np.hypot(*(plane - design @ solved).T)
        # For a two-dimensional Gaussian the median radius is 1.1774 sigma. Tukey's biweight with a
        # cut at 5 sigma; 0.02 px is below the error of any source.
        sd = max(float(np.median(residual)) / 1.1774, 0.02)
        weights = np.clip(1.0 - (residual / (5.0 * sd)) ** 2, 1e-6, None) ** 2
    c = frame.center
    model = SkyModel(
        frame.ra0_deg, frame.dec0_deg, c.real, c.imag, frame.norm, solved.T * frame.scale_deg
    )
    return model, residual


class _Field(NamedTuple):
    """The lists of the last pairing: the `n` brightest sources, the reference stars `near`."""

    sources: Sources
    stars: Stars
    ra: Floats
    dec: Floats
    frame: _Frame
    near: Ints
    n: int


def _refine_many(h: Hypothesis, field: _Field) -> tuple[SkyModel, Ints, Ints, Floats]:
    """Alternate between the fit and the pairing of the brightest sources."""
    sources, stars, ra, dec, frame, near, n = field
    i, j, z, rms = h.i, h.j, sources.z[:n], h.sigma_px
    plane = frame.project(ra[stars.row[near]], dec[stars.row[near]])
    spacing = np.sqrt(sources.area / max(len(near), 1))
    for radius in (6.0, 5.0, 4.0):  # pairing radii in units of the scatter, as the model improves
        w = frame.project(ra[stars.row[j]], dec[stars.row[j]])
        model, residual = _fit(sources.z[i], w, frame, rms)
        rms = max(float(np.median(residual)) / 1.1774, 0.05)
        xi, eta = model.pixel_to_plane(z.real, z.imag)
        there = np.asarray((-xi + 1j * eta) / frame.scale_deg, np.complex128)
        # The radius may be larger where stars are so sparse that chance pairs are rare.
        reach = min(max(radius * rms, 0.5, min(0.02 * spacing, 6.0)), 0.5 * spacing)
        i, k, _ = mutual_nearest(there, plane, reach)
        j = near[k]
    agree = _agree_in_brightness(sources.flux[i], stars.mag[j])
    i, j = i[agree], j[agree]
    w = frame.project(ra[stars.row[j]], dec[stars.row[j]])
    model, residual = _fit(sources.z[i], w, frame, rms)
    return model, i, j, residual


class _Few(NamedTuple):
    """A fit to few pairs: rows that were kept, coefficients, their covariance, the error."""

    evidence: float
    kept: Ints
    coeff: Complexes
    cov: Complexes
    sigma_px: float


def _fit_few(u: Complexes, w: Complexes, norm: float, density: float) -> _Few:
    """Choose distortion, error and pairs by their evidence, and fit.

    For a prior Lambda of the distortion and an error sigma the positions are Gaussian with
    ``C = sigma^2 + Phi Lambda Phi^H``; a pair that is left out is a chance pair, with the density
    of the stars. The odds of each pair given all others follow from the inverse of C, and the worst
    pairs are left out one at a time.
    """
    phi = terms_matrix(u)
    values = w - w.mean()
    as_chance = np.log(density * (1.0 - TRUE_SHARE) / TRUE_SHARE)
    best: _Few | None = None
    for lens in LENSES:
        prior = np.where(np.arange(len(lens)) < 2, 10.0, lens) * norm
        scaled = phi * prior
        for sigma in SIGMAS_PX:
            kept = np.arange(len(u))
            while True:
                f = scaled[kept]
                inverse = np.linalg.inv(f @ f.conj().T + sigma**2 * np.eye(len(kept)))
                alpha, own = inverse @ values[kept], np.diag(inverse).real
                alone = np.log(own / (2.0 * np.pi)) - 0.5 * np.abs(alpha) ** 2 / own
                worst = int(np.argmin(alone))
                if alone[worst] > as_chance or len(kept) <= MIN_PAIRS:
                    break
                kept = np.delete(kept, worst)
            logdet = float(np.linalg.slogdet(inverse)[1])
            odds = logdet - 0.5 * float((values[kept].conj() @ alpha).real)
            odds += (len(u) - len(kept)) * as_chance - len(kept) * np.log(2.0 * np.pi)
            if best is None or odds > best.evidence:
                normal = f.conj().T @ f / sigma**2 + np.eye(len(prior))
                cov = np.asarray(prior[:, None] * np.linalg.inv(normal) * prior, np.complex128)
                coeff = cov @ (phi[kept].conj().T @ values[kept]) / sigma**2
                coeff[0] += w.mean()
                best = _Few(odds, kept, coeff, cov, sigma)
    assert best is not None
    return best


def _refine_few(h: Hypothesis, field: _Field) -> tuple[SkyModel, Ints, Ints, Floats]:
    """Alternate between the fit by evidence and the pairing within each source's own error."""
    sources, stars, ra, dec, frame, near, n = field
    i, j = h.i, h.j
    center = seen(frame.center, h.parity)
    z = sources.z if h.parity > 0 else sources.z.conj()
    u = (z - center) / frame.norm
    plane = frame.project(ra[stars.row[near]], dec[stars.row[near]])
    density = max(len(near), 1) / sources.area
    for _ in range(3):
        w = frame.project(ra[stars.row[j]], dec[stars.row[j]])
        few = _fit_few(u[i], w, frame.norm, density)
        phi = terms_matrix(u[:n])
        variance = np.einsum("nk,kl,nl->n", phi, few.cov, phi.conj()).real + few.sigma_px**2
        # Beyond a third of the mean spacing a neighbour is as near as the star itself.
        reach = np.minimum(GATE_SIGMA * np.sqrt(variance), 0.33 / np.sqrt(density))
        a, k, d = mutual_nearest(phi @ few.coeff, plane, float(reach.max()))
        good = d < reach[a]
        if good.sum() < MIN_PAIRS:
            break
        i, j = a[good], near[k[good]]
    w = frame.project(ra[stars.row[j]], dec[stars.row[j]])
    few = _fit_few(u[i], w, frame.norm, density)
    residual = np.abs(w - terms_matrix(u[i]) @ few.coeff)
    model = _to_model(few.coeff, h.parity, frame)
    return model, i[few.kept], j[few.kept], residual[few.kept]


def _to_model(coeff: Complexes, parity: int, frame: _Frame) -> SkyModel:
    """Write the complex polynomial in real terms, exactly."""
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5)))
    w = terms_matrix(x + 1j * parity * y) @ coeff * frame.scale_deg
    real = lstsq(poly_design(x, y, 3), np.column_stack([-w.real, w.imag]), what="match").x
    c = frame.center
    return SkyModel(frame.ra0_deg, frame.dec0_deg, c.real, c.imag, frame.norm, real.T)


def _agree_in_brightness(flux: Floats, mag: Floats) -> NDArray[np.bool_]:
    """Say which pairs agree with the zero point of the others, where it is well defined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = mag + 2.5 * np.log10(flux)
    known = np.isfinite(zero)
    if known.sum() < 20:
        return np.ones(len(zero), bool)
    spread = float(mad_std(zero[known]))
    # Beyond a scatter of 0.7 mag, flux and magnitude are of too different bands to compare. The
    # limit of 0.7 mag and five times the scatter keeps red and variable stars.
    if spread > 0.7:
        return np.ones(len(zero), bool)
    return ~known | (np.abs(zero - np.median(zero[known])) < 0.7 + 5.0 * spread)


def _reachable(h: Hypothesis, sources: Sources, stars: Stars, n: int) -> Ints:
    """Return the reference stars in the frame that are bright enough for the `n` sources."""
    ny, nx = sources.shape
    edge = np.array([0, nx / 2, nx]), np.array([0, ny / 2, ny])
    box = (edge[0][:, None] + 1j * edge[1][None, :]).ravel()
    corners = evaluate(h.coeff, box if h.parity > 0 else box.conj(), h.z0, h.norm)
    margin = 0.02 * sources.norm
    w = stars.w
    inside = (
        (w.real > corners.real.min() - margin) & (w.real < corners.real.max() + margin)
        & (w.imag > corners.imag.min() - margin) & (w.imag < corners.imag.max() + margin)
    )
    inside = np.flatnonzero(inside)
    flux = sources.flux[:n]
    good = np.isfinite(stars.mag[h.j]) & (sources.flux[h.i] > 0)
    if good.sum() >= 5 and np.any(flux > 0):
        zero = stars.mag[h.j][good] + 2.5 * np.log10(sources.flux[h.i][good])
        faintest = np.median(zero) - 2.5 * np.log10(flux[flux > 0].min())
        slack = 1.0 + 3.0 * float(mad_std(zero))
        inside = inside[~(stars.mag[inside] > faintest + slack)]
    return inside


def evenness(sources: Sources, i: Ints) -> float:
    """Return the least share of sources paired in a sixteenth of the frame, over the median share.

    Near 0 where a part of the frame is not matched. Only the `MAX_PAIRS` brightest sources count,
    and parts with at least eight of them, which limits the scatter of the shares.
    """
    ny, nx = sources.shape
    z = sources.z[:MAX_PAIRS]
    cell = np.clip((z.real + 0.5) * 4 // nx, 0, 3) + 4 * np.clip((z.imag + 0.5) * 4 // ny, 0, 3)
    cell = cell.astype(np.int64)
    paired = np.zeros(len(z))
    paired[i[i < len(z)]] = 1.0
    total = np.bincount(cell, minlength=16)
    share = (np.bincount(cell, paired, minlength=16) / np.maximum(total, 1))[total >= 8]
    return float(share.min() / max(np.median(share), 1e-9)) if len(share) else 1.0


def conclude(
    h: Hypothesis, sources: Sources, stars: Stars, ra_deg: Floats, dec_deg: Floats,
    n_reference: int, evidence: dict[str, Any],
) -> Match:
    """Return the match of an accepted hypothesis."""
    frame = _frame(h, sources, stars)
    n = min(MAX_PAIRS, len(sources.z))
    near = _reachable(h, sources, stars, n)
    way = _refine_few if len(h.i) <= FEW else _refine_many
    model, i, j, residual = way(h, _Field(sources, stars, ra_deg, dec_deg, frame, near, n))
    c = sources.center
    cd = model.jacobian(c.real, c.imag)
    det = float(np.linalg.det(cd))
    source_index, reference_index = sources.row[i], stars.row[j]
    order = np.argsort(source_index, kind="stable")
    evidence = {
        **evidence,
        "method": h.stage,
        "n_matched": len(order),
        "rms_px": float(np.sqrt(np.mean(residual**2) / 2.0)),
        "distortion_level": float(LEVELS[h.level]),
        "degree": model.degree,
        "evenness": evenness(sources, i),
    }
    rotation = float(np.degrees(np.arctan2(cd[0, 1], cd[1, 1])) % 360.0)
    return Match(
        source_index[order], reference_index[order], model, float(h.log_odds), len(sources.z),
        n_reference, 3600.0 * float(np.sqrt(abs(det))), rotation, 1 if det < 0 else -1, evidence,
    )
