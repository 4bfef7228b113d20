"""From a hypothesis that grew to a match: more stars, the model of the frame, the pairs.

What a search finds is a model that was learnt from a few dozen stars. Here it goes on growing over
a thousand fainter ones, a polynomial with the prior of a lens is fitted to the pairs on the plane
that touches the sky at the frame's own centre, and the brightest sources are paired once more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.geometry.asterisms import select
from cynosure.geometry.growth import LEVELS, N_TERMS, NOISE, evaluate, grow, make_grid
from cynosure.geometry.hypotheses import Found
from cynosure.geometry.pairs import mutual_nearest
from cynosure.geometry.skymodel import SkyModel
from cynosure.ground.numeric import lstsq, mad_std, poly_design, poly_exponents
from cynosure.ground.sky import deproject, project

__all__ = [
    "MIN_SEP_PX",
    "RANK",
    "Hypothesis",
    "Match",
    "Sources",
    "Stars",
    "conclude",
    "densify",
    "even_lists",
    "hypotheses_of",
    "join",
    "prepare_sources",
    "typical_density",
]

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Ints = NDArray[np.int64]

RANK = 8  # a star is listed while fewer than this many brighter ones are near
MIN_SEP_PX = 2.0  # sources closer than this are one source detected twice
# A disc that holds RANK / WHOLE stars on average rarely holds more than RANK: nearly all are kept.
WHOLE = 1.3
DENSE = 1000  # sources that the second growth takes in
MAX_PAIRS = 5000  # the brightest sources that the last pairing takes in


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """The stars of an image, recognised.

    Attributes
    ----------
    source_index, reference_index : (m,) ndarray of int
        The pairs, one to one.
    model : SkyModel
        From pixels to the sky, good to about a pixel over the frame; where fits begin.
    log_odds : float
        Natural logarithm of the odds against chance.
    n_sources, n_reference : int
        How many of each took part.
    scale_arcsec : float
        Size of a pixel at the frame's centre.
    rotation_deg : float
        Angle of the +y axis from north through east, at the frame's centre.
    parity : int
        +1 where east is to the left when north is up, -1 for a mirrored image.
    evidence : dict
        How it was found, JSON-safe.
    """

    source_index: Ints
    reference_index: Ints
    model: SkyModel
    log_odds: float
    n_sources: int
    n_reference: int
    scale_arcsec: float
    rotation_deg: float
    parity: int
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """The sources, brightest first, as complex pixels; `row` counts in the caller's list."""

    z: Complexes
    row: Ints
    flux: Floats
    density: float
    shape: tuple[int, int]

    @property
    def center(self) -> complex:
        """The middle of the frame."""
        return complex((self.shape[1] - 1) / 2, (self.shape[0] - 1) / 2)

    @property
    def norm(self) -> float:
        """Half the diagonal of the frame, px."""
        return float(np.hypot(*self.shape) / 2)

    def part(self, member: Ints, shape: tuple[int, int]) -> Sources:
        """Return some of the sources, as those of a smaller frame."""
        z = self.z[member]
        return Sources(z, self.row[member], self.flux[member], typical_density(z), shape)

    @property
    def area(self) -> float:
        """Of the part of the frame that has sources, px^2."""
        if len(self.z) < 2:
            return float(self.shape[0] * self.shape[1])
        box = np.ptp(self.z.real) * np.ptp(self.z.imag) * (1 + 2 / len(self.z))
        return float(np.clip(box, 1.0, self.shape[0] * self.shape[1]))


def typical_density(points: Complexes) -> float:
    """Return the median of the local density of points: what it is outside the clumps."""
    density = make_grid(points, 4.0).density
    return float(np.median(density[density > 0])) if len(points) else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Stars:
    """Reference stars on the plane ``w = (-xi + i eta) / scale``, brightest first."""

    w: Complexes
    row: Ints
    mag: Floats
    scale_deg: float
    ra0_deg: float
    dec0_deg: float
    density: float


def prepare_sources(
    x: ArrayLike, y: ArrayLike, flux: ArrayLike, shape: tuple[int, int]
) -> Sources:
    """Sort sources by brightness, unknown brightness last; those without a place are left out."""
    x, y, flux = (np.asarray(v, dtype=float) for v in (x, y, flux))
    order = np.argsort(-np.nan_to_num(flux, nan=-np.inf), kind="stable")
    order = order[np.isfinite(x[order]) & np.isfinite(y[order])]
    z = x[order] + 1j * y[order]
    return Sources(z, order, flux[order], typical_density(z), shape)


@dataclass(frozen=True, slots=True, eq=False)
class Hypothesis:
    """A hypothesis that was grown, with its pairs as rows of the brightness-sorted lists."""

    log_odds: float
    parity: int
    level: int
    sigma_px: float
    z0: complex
    norm: float
    coeff: Complexes
    i: Ints
    j: Ints
    stage: str

    def says_the_same(self, other: Hypothesis) -> bool:
        """Say whether most of the other's pairs are also this one's."""
        mine = dict(zip(self.i.tolist(), self.j.tolist()))
        common = sum(mine.get(i) == j for i, j in zip(other.i.tolist(), other.j.tolist()))
        return common > 0.5 * min(len(self.i), len(other.i))


def hypotheses_of(found: Found, i: Ints, j: Ints, norm: float, stage: str) -> list[Hypothesis]:
    """Return what a search found, best first, in rows of the full lists."""
    out = []
    for k in np.argsort(-found.log_odds, kind="stable"):
        if not np.isfinite(found.log_odds[k]):
            break
        hit = np.flatnonzero(found.match[k] >= 0)
        out.append(Hypothesis(
            float(found.log_odds[k]), int(found.parity[k]), int(found.level[k]),
            float(found.sigma_px[k]), complex(found.z0[k]), norm, found.coeff[k].copy(),
            i[hit], j[found.match[k][hit]], stage,
        ))
    return out


def even_lists(
    sources: Sources, stars: Stars, n_target: int, dense_z: float, dense_w: float
) -> tuple[Ints, Ints]:
    """Cut both lists to the same density, that of `n_target` sources or less.

    `dense_z` and `dense_w` say how many times denser each is to be. A list that is sparser is
    taken nearly whole, but for its clumps.
    """
    common = min(n_target / sources.area, WHOLE * sources.density, WHOLE * stars.density)
    radius = np.sqrt(RANK / (np.pi * common))
    return (
        select(sources.z, float(radius / np.sqrt(dense_z)), RANK, MIN_SEP_PX),
        select(stars.w, float(radius / np.sqrt(dense_w)), RANK, 1.0),
    )


def densify(h: Hypothesis, sources: Sources, stars: Stars) -> Hypothesis:
    """Go on growing a hypothesis over more, fainter stars."""
    few = len(sources.z) <= DENSE
    common = sources.density if few else DENSE / sources.area
    radius = float(np.sqrt(RANK / (np.pi * common)))
    i = select(sources.z, 0.0 if few else radius, RANK, MIN_SEP_PX)
    j = select(stars.w, 0.0 if stars.density < 2.0 * common else radius, RANK, 1.0)
    i, j = np.union1d(i, h.i), np.union1d(j, h.j)
    z, w = sources.z[i], stars.w[j]
    if h.parity < 0:
        z = z.conj()
    match, chance = np.full(len(z), -1), np.zeros(len(z))
    coeff = np.zeros(N_TERMS, np.complex128)
    a = h.coeff[1] / h.norm
    growth = grow(
        z, np.argsort(np.abs(z - h.z0), kind="stable"), np.searchsorted(i, h.i),
        np.searchsorted(j, h.j), w, make_grid(w, 2.0), a, h.coeff[0], h.z0, h.norm,
        0.05 * abs(a), 0.02 * h.norm, h.sigma_px / NOISE[h.level],
        float(h.level), 0.02, -np.inf, np.full(len(w), -1), 0,
        match, chance, coeff,
    )
    hit = np.flatnonzero(match >= 0)
    return Hypothesis(
        h.log_odds + max(growth.log_odds, 0.0), h.parity, growth.level, growth.sigma_px, h.z0,
        h.norm, coeff, i[hit], j[match[hit]], h.stage,
    )


AGREE_SLOPE = 0.25  # by how much the local slopes of two regions may differ
AGREE_STEP = 0.05  # by how much a step may differ from its prediction, of its length


def join(
    proposals: list[Hypothesis], sources: Sources, stars: Stars, chance_odds: float
) -> tuple[Hypothesis, int] | None:
    """Join the proposals of regions that agree with each other; return how many they are.

    From one birthplace to another the plane advances by the mean of the two slopes times the
    step, to third order in it: proposals that say so agree.
    """
    best: list[int] = []
    gain = 0.0
    at = np.array([h.coeff[0] for h in proposals])
    slope = np.array([h.coeff[1] / h.norm for h in proposals])
    for lead in range(len(proposals)):
        group = []
        for k, h in enumerate(proposals):
            step = h.z0 - proposals[lead].z0
            said = at[k] - at[lead] - 0.5 * (slope[k] + slope[lead]) * step
            room = AGREE_STEP * abs(slope[lead] * step) + 3.0
            turned = abs(slope[k] - slope[lead]) > AGREE_SLOPE * abs(slope[lead])
            if h.parity == proposals[lead].parity and abs(said) < room and not turned:
                group.append(k)
        total = sum(proposals[k].log_odds - chance_odds for k in group)
        if total > gain:
            best, gain = group, total
    if not best:
        return None
    chosen = [proposals[k] for k in best]
    i = np.concatenate([h.i for h in chosen])
    j = np.concatenate([h.j for h in chosen])
    # Regions overlap: every source and every star once.
    first = np.intersect1d(np.unique(i, return_index=True)[1], np.unique(j, return_index=True)[1])
    i, j = i[first], j[first]
    parity = chosen[0].parity
    z0 = _seen(sources.center, parity)
    z = sources.z[i] if parity > 0 else sources.z[i].conj()
    coeff, kept = _complex_fit((z - z0) / sources.norm, stars.w[j])
    joined = Hypothesis(
        chance_odds + gain, parity, int(np.argmax(LEVELS)), max(h.sigma_px for h in chosen), z0,
        sources.norm, coeff, i[kept], j[kept], "regions",
    )
    return joined, len(chosen)


def _complex_fit(u: Complexes, w: Complexes) -> tuple[Complexes, Ints]:
    """Fit the polynomial of :mod:`growth` to control points, robustly; return who was kept."""
    v = u.conj()
    terms = [np.ones_like(u), u, v, u * u, u * v, v * v, u**3, u * u * v, u * v * v, v**3]
    design = np.column_stack(terms)
    weights = np.ones(len(u))
    coeff: Complexes = np.zeros(N_TERMS, np.complex128)
    sd = 1.0
    for _ in range(6):
        root = np.sqrt(weights)
        solved = np.linalg.lstsq(design * root[:, None], w * root, rcond=1e-6)[0]
        coeff = np.asarray(solved, np.complex128)
        residual = np.abs(w - design @ coeff)
        sd = max(float(np.median(residual)) / 1.1774, 0.05)
        weights = 1.0 / np.maximum(1.0, residual / (2.0 * sd))
    return coeff, np.flatnonzero(residual < 5.0 * sd)


def _prior_px(degree: int, level: int, norm: float) -> Floats:
    """Return the prior errors of the terms, px: those of a lens, free up to degree 1."""
    order = poly_exponents(degree).sum(axis=1)
    size = np.where(order == 2, 1.5, 1.0) * LEVELS[level] * norm
    return np.where(order < 2, 10.0 * norm, size)


def _level(
    design: Floats, plane: Floats, degree: int, norm: float, sigma_px: float, level: int
) -> int:
    """Choose the amplitude of the distortion by its evidence: the odds of the pairs under each.

    ``ln p = -(y^T C^-1 y + ln det C) / 2`` per axis with ``C = sigma^2 + Phi Lambda Phi^T``. Where
    the pairs are many, the prior says nothing, and the widest is taken.
    """
    n = len(design)
    if n > 60:
        return int(np.argmax(LEVELS))
    values = plane - plane.mean(axis=0)
    best, best_odds = level, -np.inf
    for m in np.argsort(LEVELS, kind="stable")[[0, 1, 3]]:
        scaled = design * _prior_px(degree, int(m), norm)
        cov = scaled @ scaled.T + sigma_px**2 * np.eye(n)
        _, logdet = np.linalg.slogdet(cov)
        odds = -logdet - 0.5 * float(np.sum(values * np.linalg.solve(cov, values)))
        if odds > best_odds:
            best, best_odds = int(m), odds
    return best


def _fit(
    x: Floats, y: Floats, ra: Floats, dec: Floats, tangent: tuple[float, float],
    sources: Sources, scale_deg: float, level: int, sigma_px: float,
) -> tuple[SkyModel, Floats]:
    """Fit a polynomial to pairs, with the prior of a lens, robustly; return residuals in px."""
    n = len(x)
    degree = 3 if n >= 8 else 2 if n >= 6 else 1
    c, norm = sources.center, sources.norm
    design = poly_design((x - c.real) / norm, (y - c.imag) / norm, degree)
    plane = np.column_stack(project(ra, dec, *tangent)) / scale_deg
    level = _level(design, plane, degree, norm, max(sigma_px, 0.2), level)
    prior = _prior_px(degree, level, norm)
    values = np.concatenate([plane, np.zeros((len(prior), 2))])
    weights = np.ones(n)
    sd = max(sigma_px, 0.1)
    for _ in range(3):
        solved = lstsq(
            np.concatenate([design, np.eye(len(prior))]), values,
            np.concatenate([weights / sd**2, 1.0 / prior**2]), what="match",
        ).x
        residual = np.hypot(*(plane - design @ solved).T)
        # For a two-dimensional Gaussian the median radius is 1.1774 sigma; few residuals of many
        # terms are too small, and the assumed error holds them up.
        found = float(np.median(residual)) / 1.1774
        sd = max(found, 0.02) if n > 40 else max(found, 0.5 * sigma_px)
        weights = np.clip(1.0 - (residual / (5.0 * sd)) ** 2, 1e-6, None) ** 2
    model = SkyModel(*tangent, c.real, c.imag, norm, solved.T * scale_deg)
    return model, residual


def _polish(
    h: Hypothesis, sources: Sources, stars: Stars, ra: Floats, dec: Floats
) -> tuple[SkyModel, Ints, Ints, Floats]:
    """Turn a grown hypothesis into a model over the frame and the pairs of the bright sources."""
    at = evaluate(h.coeff, np.array([_seen(sources.center, h.parity)]), h.z0, h.norm)[0]
    at *= stars.scale_deg
    a0, d0 = deproject(-at.real, at.imag, stars.ra0_deg, stars.dec0_deg)
    tangent = (float(a0), float(d0))
    scale_deg = stars.scale_deg * float(abs(h.coeff[1])) / h.norm
    i, j = h.i, h.j
    n = min(MAX_PAIRS, len(sources.z))
    z = sources.z[:n]
    near = _reachable(h, sources, stars, n)
    ra_near, dec_near = ra[stars.row[near]], dec[stars.row[near]]
    xi, eta = project(ra_near, dec_near, *tangent)
    plane = np.asarray((xi + 1j * eta) / scale_deg, np.complex128)
    spacing = np.sqrt(sources.area / max(len(near), 1))
    rms = h.sigma_px
    for radius in (6.0, 5.0, 4.0):
        model, residual = _fit(
            sources.z[i].real, sources.z[i].imag, ra[stars.row[j]], dec[stars.row[j]],
            tangent, sources, scale_deg, h.level, rms,
        )
        rms = max(float(np.median(residual)) / 1.1774, 0.05)
        xi, eta = model.pixel_to_plane(z.real, z.imag)
        # Where stars are so far apart that chance hardly pairs them, the reach may be wider.
        reach = min(max(radius * rms, 0.5, min(0.02 * spacing, 6.0)), 0.5 * spacing)
        there = np.asarray((xi + 1j * eta) / scale_deg, np.complex128)
        i, k, _ = mutual_nearest(there, plane, reach)
        j = near[k]
    agree = _agree_in_brightness(sources.flux[i], stars.mag[j])
    i, j = i[agree], j[agree]
    model, residual = _fit(
        sources.z[i].real, sources.z[i].imag, ra[stars.row[j]], dec[stars.row[j]],
        tangent, sources, scale_deg, h.level, rms,
    )
    return model, i, j, residual


def _agree_in_brightness(flux: Floats, mag: Floats) -> NDArray[np.bool_]:
    """Say which pairs do not contradict the zero point of the others, where there is one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = mag + 2.5 * np.log10(flux)
    known = np.isfinite(zero)
    if known.sum() < 20:
        return np.ones(len(zero), bool)
    spread = float(mad_std(zero[known]))
    # Far in the wings, so that red and variable stars stay; and only where flux means magnitude.
    if spread > 0.7:
        return np.ones(len(zero), bool)
    return ~known | (np.abs(zero - np.median(zero[known])) < 0.7 + 5.0 * spread)


def _seen(z: complex, parity: int) -> complex:
    return z if parity > 0 else z.conjugate()


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

    Near 0 where a part of the frame was left behind. Only the brightest sources count, and parts
    with eight of them or more.
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
    """Make the match of a hypothesis that was accepted."""
    model, i, j, residual = _polish(h, sources, stars, ra_deg, dec_deg)
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
