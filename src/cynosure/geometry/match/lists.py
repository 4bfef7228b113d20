"""The records of catalogue matching: sources, reference stars, and grown hypotheses.

This module also thins lists to the same density, grows hypotheses over a thousand fainter stars,
and joins the matches of the regions of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.geometry.match.asterisms import select
from cynosure.geometry.match.hypotheses import Found
from cynosure.geometry.match.verification import (
    LEVELS,
    N_TERMS,
    NOISE,
    Birth,
    Expected,
    Work,
    grow,
    make_grid,
)
from cynosure.geometry.skymodel import SkyModel

__all__ = [
    "MIN_SEP_PX",
    "RANK",
    "Acceptance",
    "Hypothesis",
    "Match",
    "Sources",
    "Stars",
    "brightest_lists",
    "densify",
    "even_lists",
    "hypotheses_of",
    "join",
    "prepare_sources",
    "seen",
    "terms_matrix",
    "typical_density",
]

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Ints = NDArray[np.int64]

# A star is listed while fewer than this many brighter ones are within the radius. Small numbers
# follow the local density more closely, large ones depend less on single interlopers.
RANK = 8
MIN_SEP_PX = 2.0  # sources closer than this, about a FWHM, are one source detected twice
# A disc that holds RANK / WHOLE stars on average rarely holds more than RANK: nearly all are kept.
WHOLE = 1.3
# Sources of the second growth: enough to constrain the cubic everywhere in the frame; its time is
# proportional to them.
DENSE = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """The matched stars of an image.

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
        The method, numbers and attempts, JSON-safe.
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


class Acceptance(NamedTuple):
    """The acceptance criteria of a hypothesis, the same for all ways of matching.

    Attributes
    ----------
    min_log_odds : float
        Natural logarithm of the odds against chance.
    min_lead : float
        Least difference of the log-odds to the best hypothesis of another solution.
    """

    min_log_odds: float
    min_lead: float = 0.0

    def accepts(self, log_odds: float, second: float = 0.0) -> bool:
        """Say whether a match of these odds is accepted beside a second-best one."""
        return log_odds >= self.min_log_odds and log_odds - second >= self.min_lead

    def judge(self, best: Hypothesis, known: list[Hypothesis]) -> float | None:
        """Return the log-odds of the second best where the best is accepted, otherwise None."""
        second = max((h.log_odds for h in known if not best.says_the_same(h)), default=0.0)
        return float(second) if self.accepts(best.log_odds, second) else None


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
        """Area of the part of the frame that has sources, px^2."""
        if len(self.z) < 2:
            return float(self.shape[0] * self.shape[1])
        box = np.ptp(self.z.real) * np.ptp(self.z.imag) * (1 + 2 / len(self.z))
        return float(np.clip(box, 1.0, self.shape[0] * self.shape[1]))


def typical_density(points: Complexes) -> float:
    """Return the median of the local density of points, which clumps hardly affect."""
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
    """Sort sources by brightness, unknown brightness last; leave out those without a position."""
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


def brightest_lists(sources: Sources, stars: Stars, n_target: int) -> tuple[Ints, Ints]:
    """Return the brightest of each list, not evened out, with the same number per area.

    For lists that have little more than a cluster in common.
    """
    share = sources.area * make_grid(stars.w, 4.0).mean_density / len(stars.w)
    return (
        select(sources.z[:n_target], 0.0, RANK, MIN_SEP_PX),
        select(stars.w[: int(n_target / min(share, 1.0))], 0.0, RANK, 1.0),
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
    match, coeff = np.full(len(z), -1), np.zeros(N_TERMS, np.complex128)
    a = h.coeff[1] / h.norm
    birth = Birth(np.searchsorted(i, h.i), np.searchsorted(j, h.j), a, h.coeff[0], h.z0, 0)
    # Slope and offset are known to 5 % and 2 % of the frame at least; few of the fainter sources
    # may match (2 %), and the growth is not given up.
    expected = Expected(
        h.norm, 0.05 * float(abs(a)), 0.02 * h.norm, h.sigma_px / float(NOISE[h.level]),
        float(h.level), 0.02, -np.inf,
    )
    growth = grow(
        z, np.argsort(np.abs(z - h.z0), kind="stable"), w, make_grid(w, 2.0), birth, expected,
        Work(np.full(len(w), -1), match, np.zeros(len(z)), coeff),
    )
    hit = np.flatnonzero(match >= 0)
    return Hypothesis(
        h.log_odds + max(growth.log_odds, 0.0), h.parity, growth.level, growth.sigma_px, h.z0,
        h.norm, coeff, i[hit], j[match[hit]], h.stage,
    )


# Largest relative difference of the local slopes of two regions, and of the step between them from
# its prediction. A lens that distorts by a tenth or two passes; wrong matches agree by chance only.
AGREE_SLOPE = 0.25
AGREE_STEP = 0.05


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
    # Regions overlap: keep every source and every star once.
    first = np.intersect1d(np.unique(i, return_index=True)[1], np.unique(j, return_index=True)[1])
    i, j = i[first], j[first]
    parity = chosen[0].parity
    z0 = seen(sources.center, parity)
    z = sources.z[i] if parity > 0 else sources.z[i].conj()
    coeff, kept = _complex_fit((z - z0) / sources.norm, stars.w[j])
    joined = Hypothesis(
        chance_odds + gain, parity, int(np.argmax(LEVELS)), max(h.sigma_px for h in chosen), z0,
        sources.norm, coeff, i[kept], j[kept], "regions",
    )
    return joined, len(chosen)


def terms_matrix(u: Complexes) -> Complexes:
    """Return the terms (n, 10) of the polynomial of :mod:`cynosure.geometry.match.verification`."""
    v = u.conj()
    terms = [np.ones_like(u), u, v, u * u, u * v, v * v, u**3, u * u * v, u * v * v, v**3]
    return np.column_stack(terms)


def seen(z: complex, parity: int) -> complex:
    """Return a pixel in the coordinates of the growth: mirrored where the parity is -1."""
    return z if parity > 0 else z.conjugate()


def _complex_fit(u: Complexes, w: Complexes) -> tuple[Complexes, Ints]:
    """Fit the polynomial of :func:`terms_matrix` robustly; return it and the rows kept."""
    design = terms_matrix(u)
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
