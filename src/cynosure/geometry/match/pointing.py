"""Match an image whose pointing is roughly known.

The methods, each tried only where the one before found no acceptable hypothesis:

1. *offsets*: with rotation and scale known to a few degrees and per cents, the histogram of the
   differences of all source and reference positions has its maximum at the pointing error;
2. *quads* of neighbours, in lists cut to the same density, then in denser ones;
3. *regions*: the frame in pieces, each matched alone, joined through the pairs they found.

Every hypothesis is judged in the same way (:mod:`cynosure.geometry.match.verification`): grown
outward from its first pairs, and each star is scored before it is used. A match is accepted when
its log-odds exceed `min_log_odds` and those of the best hypothesis of another solution are at least
`min_lead` lower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.data.frame import Pointing
from cynosure.geometry.match.asterisms import neighbours, source_quads
from cynosure.geometry.match.hypotheses import (
    PREFILTER,
    Limits,
    make_scene,
    no_hypotheses,
    search,
)
from cynosure.geometry.match.lists import (
    Acceptance,
    Hypothesis,
    Match,
    Sources,
    Stars,
    brightest_lists,
    densify,
    even_lists,
    hypotheses_of,
    join,
    prepare_sources,
    typical_density,
)
from cynosure.geometry.match.offsets import search_offsets
from cynosure.geometry.match.pairs import depth_match, pair
from cynosure.geometry.match.refinement import conclude
from cynosure.geometry.match.verification import LEVELS, make_grid
from cynosure.ground.errors import NoMatch, NotEnoughReference, NotEnoughStars
from cynosure.ground.settings import Range, Unit
from cynosure.ground.sky import project, radec, unit_vectors

__all__ = ["Match", "depth_match", "match_pointing", "match_regions", "pair"]

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Ints = NDArray[np.int64]

Stage = Callable[[Sources, Stars, Limits, Pointing, list[str]], list[Hypothesis]]

MIN_STARS = 5  # four make the quad, and at least one more verifies it
# Log-odds at which a search ends: exp(-45) is 3e-20, far below one over the number of hypotheses.
ENOUGH = 45.0
PROMISING = 8.0  # log-odds from which a hypothesis is grown over fainter stars
DISTORTION = 0.03  # largest relative difference of the local scale from the mean: 1 % at the corner
# Largest over smallest scale that one pair of lists serves: the density differs by a factor 2 at
# most, as it does between bands of the blind index.
SCALE_STEP = 1.44
# Error of the rotation up to which the offsets are tried: a seed and its neighbours are still
# paired at 12 degrees; beyond, only quads serve, which do not depend on the rotation.
OFFSETS_ROTATION_DEG = 12.0


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One attempt with quads: number of sources, relative densities, neighbours, budget."""

    n_target: int
    dense_z: float
    dense_w: float
    near_z: int  # or ALL
    near_w: int
    budget: int
    even: bool = True  # evened out; otherwise the brightest


# ALL takes as many neighbours as keep the quads of the image, and of the sky, to these numbers,
# which take some tenths of a second.
ALL = 0
ALL_QUADS = 20_000, 500_000
SPARSE = 120  # sources up to which all quads are tried

# The attempts: first equal densities with seven neighbours, then more sources, then lists of
# unequal depth (by 2 and 4) with more neighbours, then all quads of the sparse lists, and last the
# brightest stars without evening out, for clusters. The budget, in quads looked up, limits the time
# of a failure. The order is that of expected success per unit of time.
ATTEMPTS = (
    _Attempt(60, 1, 1, 7, 7, 3_000_000),
    _Attempt(150, 1, 1, 7, 7, 3_000_000),
    _Attempt(60, 1, 2, 7, 10, 3_000_000),
    _Attempt(60, 2, 1, 10, 7, 3_000_000),
    _Attempt(400, 1, 1, 7, 7, 3_000_000),
    _Attempt(40, 1, 1, 13, 13, 3_000_000),
    _Attempt(40, 1, 4, 8, 14, 4_000_000),
    _Attempt(40, 4, 1, 14, 8, 4_000_000),
    _Attempt(40, 1.3, 1.3, ALL, ALL, 4_000_000),
    _Attempt(40, 1, 1, 8, 8, 3_000_000, even=False),
    _Attempt(14, 1, 1, ALL, ALL, 3_000_000, even=False),
)


def match_pointing(
    x: ArrayLike, y: ArrayLike, flux: ArrayLike,
    ra_deg: ArrayLike, dec_deg: ArrayLike, mag: ArrayLike,
    pointing: Pointing, shape: tuple[int, int],
    *,
    sigma_px: Annotated[float, Unit("px"), Range(0.01, 10.0)] = 0.5,
    name: str = "image",
    code_tolerance: Annotated[float, Range(0.001, 0.1)] = 0.02,
    min_log_odds: Annotated[float, Range(5.0, 1000.0)] = 30.0,
    min_lead: Annotated[float, Range(0.0, 1000.0)] = 10.0,
) -> Match:
    """Match the stars of an image near a rough pointing.

    Parameters
    ----------
    x, y, flux : (n,) array_like
        Sources, 0-based pixels, in any order. The flux is used as an order only.
    ra_deg, dec_deg, mag : (m,) array_like
        Reference stars at the epoch of the image, in any order, over all of the sky that the
        image may show.
    pointing : Pointing
        What is known. Without a centre the middle of the reference stars is used; without a scale
        every scale at which the frame fits among them is tried.
    shape : tuple of int
        Rows and columns of the image.
    sigma_px : float
        Error of a source's position per axis, as a first guess; the growth finds the true one.
    name : str
        What messages call the image.
    code_tolerance : float
        How far quads may differ in code space.
    min_log_odds : float
        Log-odds from which a match is accepted; 30 is odds of 10^13.
    min_lead : float
        Least difference of the log-odds to the best hypothesis of another solution; 10 is a
        factor 22,000.

    Returns
    -------
    Match

    Raises
    ------
    NotEnoughStars, NotEnoughReference
        If fewer than five of either can take part.
    NoMatch
        If no hypothesis is accepted; its fact `tried` says what was tried, with numbers.
    """
    task = _Task(sigma_px, code_tolerance, Acceptance(min_log_odds, min_lead), name)
    stages = _stages(pointing)
    lists = _Lists(x, y, flux, ra_deg, dec_deg, mag)
    enough = np.size(x) >= REGION_STARS * REGION_GRID[0] * REGION_GRID[1]
    width_deg = (pointing.scale_arcsec or 0.0) * float(np.hypot(*shape)) / 3600.0
    if enough and width_deg > REGION_WIDTH_DEG:
        stages.append(_regions)
    match = _try_stages(stages, lists, pointing, shape, task)
    lens = match.evidence["distortion_level"] == LEVELS.max() or match.evidence["rms_px"] > 1.0
    if not enough or not lens or match.evidence["evenness"] > UNEVEN:
        return match
    # A part of the frame has few pairs, perhaps because of a distortion beyond the priors.
    try:
        other = _try_stages([_regions], lists, pointing, shape, task)
    except NoMatch:
        return match
    return other if len(other.source_index) > len(match.source_index) else match


def match_regions(
    x: ArrayLike, y: ArrayLike, flux: ArrayLike,
    ra_deg: ArrayLike, dec_deg: ArrayLike, mag: ArrayLike,
    pointing: Pointing, shape: tuple[int, int],
    *,
    columns: Annotated[int, Range(1, 100)] = 6,
    rows: Annotated[int, Range(1, 100)] = 4,
    sigma_px: Annotated[float, Unit("px"), Range(0.01, 10.0)] = 0.5,
    name: str = "image",
    code_tolerance: Annotated[float, Range(0.001, 0.1)] = 0.03,
    min_log_odds: Annotated[float, Range(5.0, 1000.0)] = 30.0,
) -> Match:
    """Match a wide, distorted image region by region.

    Each region is matched alone. Two matches agree where the step from one region's centre to the
    other's is the one that their local scales and rotations predict; the largest group that agrees
    is kept, and one polynomial is fitted to all of its pairs. No parameters are averaged. Meant for
    lenses that distort by more than a tenth; :func:`match_pointing` uses it as its last method.

    Parameters
    ----------
    x, y, flux, ra_deg, dec_deg, mag, pointing, shape
        As for :func:`match_pointing`.
    columns, rows : int
        Number of regions along x and y.
    sigma_px : float
        Error of a source's position per axis, as a first guess.
    name : str
        What messages call the image.
    code_tolerance : float
        How far quads may differ in code space.
    min_log_odds : float
        Log-odds from which a match is accepted.

    Returns
    -------
    Match

    Raises
    ------
    NotEnoughStars, NotEnoughReference, NoMatch
        As for :func:`match_pointing`.
    """
    task = _Task(sigma_px, code_tolerance, Acceptance(min_log_odds), name)
    stage = partial(_regions, grid=(columns, rows))
    lists = _Lists(x, y, flux, ra_deg, dec_deg, mag)
    return _try_stages([stage], lists, pointing, shape, task)


@dataclass(frozen=True, slots=True)
class _Task:
    """The settings of a match."""

    sigma_px: float
    code_tolerance: float
    acceptance: Acceptance
    name: str


class _Lists(NamedTuple):
    """The sources and the reference stars as the caller gave them."""

    x: ArrayLike
    y: ArrayLike
    flux: ArrayLike
    ra_deg: ArrayLike
    dec_deg: ArrayLike
    mag: ArrayLike


def _try_stages(
    stages: list[Stage], lists: _Lists, pointing: Pointing, shape: tuple[int, int], task: _Task
) -> Match:
    """Try the methods in order, at every scale, until a hypothesis is accepted."""
    sources = prepare_sources(lists.x, lists.y, lists.flux, shape)
    ra, dec = np.asarray(lists.ra_deg, float), np.asarray(lists.dec_deg, float)
    if len(sources.z) < MIN_STARS:
        raise NotEnoughStars(image=task.name, n_sources=len(sources.z), needed=MIN_STARS)
    tried: list[str] = []
    known: list[Hypothesis] = []
    fields = _fields(sources, ra, dec, np.asarray(lists.mag, float), pointing, task.name)
    n_reference = max(len(f.stars.w) for f in fields)
    for stage in stages:
        for field in fields:
            limits = field.limits(pointing, sources, task.sigma_px, task.code_tolerance)
            found = stage(sources, field.stars, limits, pointing, tried)
            best = _best_grown(found, known, sources, field.stars)
            second = task.acceptance.judge(best, known) if best else None
            if best is None or second is None:
                continue
            evidence = {"tried": tried, "second_log_odds": second}
            return conclude(best, sources, field.stars, ra, dec, n_reference, evidence)
    best_odds = max((h.log_odds for h in known), default=0.0)
    raise NoMatch(
        image=task.name, n_sources=len(sources.z), n_reference=n_reference, tried=tried,
        best_log_odds=round(float(best_odds), 1), needed_log_odds=task.acceptance.min_log_odds,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Field:
    """The reference stars at one nominal scale, and the scales that it stands for."""

    stars: Stars
    scale_min: float
    scale_max: float
    radius: float

    def limits(
        self, pointing: Pointing, sources: Sources, sigma_px: float, tol: float
    ) -> Limits:
        known = pointing.rotation_deg is not None and pointing.rotation_error_deg < 179.0
        # 0.05 rad more for the local rotation by a lens; 4 rad is any rotation.
        return Limits(
            tol, self.scale_min, self.scale_max, float(np.radians(pointing.rotation_deg or 0.0)),
            float(np.radians(pointing.rotation_error_deg) + 0.05) if known else 4.0,
            sources.center, self.radius, sources.norm, sigma_px, ENOUGH,
        )


def _fields(
    sources: Sources, ra: Floats, dec: Floats, mag: Floats, pointing: Pointing, name: str
) -> list[_Field]:
    """Project the reference stars, and divide the range of scales."""
    good = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    if len(good) < MIN_STARS:
        raise NotEnoughReference(image=name, n_reference=len(good), needed=MIN_STARS)
    ra0, dec0 = pointing.ra_deg, pointing.dec_deg
    if ra0 is None or dec0 is None:
        ra0, dec0 = (float(v) for v in radec(unit_vectors(ra[good], dec[good]).sum(axis=0)))
    xi, eta = project(ra[good], dec[good], ra0, dec0)
    seen = np.isfinite(xi)
    good, xi, eta = good[seen], xi[seen], eta[seen]
    order = np.argsort(np.nan_to_num(mag[good], nan=np.inf), kind="stable")
    row = good[order]
    w: Complexes = -xi[order] + 1j * eta[order]
    extent = float(np.abs(w).max(initial=0.0))
    radius = extent if pointing.radius_deg is None else 1.1 * pointing.radius_deg
    fields = []
    for scale, low, high in _scales(pointing, sources, w, extent):
        reach = radius + 1.1 * high * scale * sources.norm
        kept = np.flatnonzero(np.abs(w) <= reach)
        if len(kept) < MIN_STARS:
            continue
        near: Complexes = w[kept] / scale
        stars = Stars(
            near, row[kept], mag[row[kept]], scale, ra0, dec0, typical_density(near)
        )
        fields.append(_Field(stars, low, high, radius / scale + 0.05 * sources.norm))
    if not fields:
        raise NotEnoughReference(image=name, n_reference=len(good), needed=MIN_STARS)
    return fields


def _scales(
    pointing: Pointing, sources: Sources, w: Complexes, extent: float
) -> list[tuple[float, float, float]]:
    """Return nominal scales (deg), and the least and largest scale relative to each."""
    if pointing.scale_arcsec is None:
        # The frame is at most as wide as the reference stars, and holds at least a dozen of them.
        high = extent / sources.norm
        low = high * max(np.sqrt(12.0 / len(w)), 1e-3)
    else:
        low = pointing.scale_arcsec / 3600.0 / (1.0 + pointing.scale_error)
        high = pointing.scale_arcsec / 3600.0 * (1.0 + pointing.scale_error)
    if high / low <= SCALE_STEP:
        middle = np.sqrt(low * high)
        return [(middle, low / middle * (1 - DISTORTION), high / middle * (1 + DISTORTION))]
    n = int(np.ceil(np.log(high / low) / np.log(SCALE_STEP)))
    edges = np.geomspace(high, low, n + 1)
    middle = np.sqrt(edges[1:] * edges[:-1])
    half = np.sqrt(edges[0] / edges[1])
    return [(float(m), (1 - DISTORTION) / half, (1 + DISTORTION) * half) for m in middle]


def _best_grown(
    found: list[Hypothesis], known: list[Hypothesis], sources: Sources, stars: Stars
) -> Hypothesis | None:
    """Add new hypotheses to the known ones; return the best."""
    grown = [densify(h, sources, stars) if h.log_odds > PROMISING else h for h in found[:3]]
    known.extend(grown + found[3:])
    return max(grown, key=lambda h: h.log_odds, default=None)


def _stages(pointing: Pointing) -> list[Stage]:
    """Return the methods in the order in which they are tried."""
    stages: list[Stage] = []
    if pointing.rotation_deg is not None and pointing.rotation_error_deg <= OFFSETS_ROTATION_DEG:
        stages.append(_offsets)
    return stages + [partial(_quads, attempt=attempt) for attempt in ATTEMPTS]


def _lists(
    sources: Sources, stars: Stars, n_target: int, dense_z: float, dense_w: float,
    even: bool = True,
) -> tuple[Ints, Ints]:
    """Thin both lists to about the same density; the reference stars nearest the pointing first."""
    if even:
        i, j = even_lists(sources, stars, n_target, dense_z, dense_w)
    else:
        i, j = brightest_lists(sources, stars, n_target)
    return i, j[np.argsort(np.abs(stars.w[j]), kind="stable")]


def _offsets(
    sources: Sources, stars: Stars, limits: Limits, pointing: Pointing, tried: list[str]
) -> list[Hypothesis]:
    i, j = _lists(sources, stars, 120, 1.0, 1.0)
    z, w = sources.z[i], stars.w[j]
    if len(z) < MIN_STARS or len(w) < MIN_STARS:
        return []
    grid = make_grid(w, 2.0)
    slope_error = float(np.hypot(limits.rotation_error, limits.scale_max - 1.0))
    out: list[Hypothesis] = []
    for parity in (pointing.parity,) if pointing.parity else (1, -1):
        found = no_hypotheses(len(z))
        peak = search_offsets(
            z if parity > 0 else z.conj(), w, grid, limits, parity, slope_error, found
        )
        new = hypotheses_of(found, i, j, limits.norm, "offsets")
        tried.append(
            f"offsets: {len(z)} sources, {len(w)} reference, parity {parity:+d}, peak of {peak}, "
            f"log-odds {_best(new):.1f}"
        )
        out += new
        if _best(new) > limits.enough:
            break
    return sorted(out, key=lambda h: -h.log_odds)


def _best(found: list[Hypothesis]) -> float:
    return max((h.log_odds for h in found), default=0.0)


def _neighbour_count(n: int, quads: int) -> int:
    """Return the number of neighbours with which `n` stars make `quads` quads; at least seven."""
    return int(np.clip(np.cbrt(6.0 * quads / n) + 1.0, 7, max(n - 1, 7)))


def _quads(
    sources: Sources, stars: Stars, limits: Limits, pointing: Pointing, tried: list[str],
    *, attempt: _Attempt,
) -> list[Hypothesis]:
    i, j = _lists(
        sources, stars, attempt.n_target, attempt.dense_z, attempt.dense_w, attempt.even
    )
    z, w = sources.z[i], stars.w[j]
    if len(z) < MIN_STARS or len(w) < MIN_STARS:
        return []
    if attempt.near_w == ALL and len(sources.z) > SPARSE and len(w) > SPARSE:
        return []  # with many stars, the attempts before this one had enough quads
    near_z = attempt.near_z or _neighbour_count(len(z), ALL_QUADS[0])
    near_w = attempt.near_w or _neighbour_count(len(w), ALL_QUADS[1])
    kind = "" if attempt.even else "brightest "
    label = (
        f"quads: {len(z)} {kind}sources with {near_z} neighbours, {len(w)} reference with "
        f"{near_w} at {3600 * stars.scale_deg:.3g} arcsec/px, "
    )
    if any(text.startswith(label) for text in tried):
        return []  # short lists are the same in several attempts
    close = neighbours(z, max(near_z, PREFILTER))
    quads = source_quads(
        z, np.ascontiguousarray(close[:, :near_z]), pointing.parity, limits.tol
    )
    if len(quads.length) == 0:
        return []
    scene = make_scene(
        z, close, quads, w, neighbours(w, near_w), make_grid(w, 2.0), limits
    )
    search(scene, attempt.budget)
    found = scene.found
    out = hypotheses_of(found, i, j, limits.norm, "quads")
    tried.append(
        f"{label}{found.counts[0]} looked up, {found.counts[1]} agree, {found.counts[3]} grown, "
        f"log-odds {_best(out):.1f}"
    )
    return out


# Columns and rows of regions, square ones on a frame of 3:2. Fewer leave more distortion within a
# region than the growth follows, more leave too few stars in each.
REGION_GRID = (6, 4)
UNEVEN = 0.4  # evenness of the pairs below which the regions are tried as well
REGION_WIDTH_DEG = 2.0  # diagonal (deg) of the narrowest frame whose lens distorts that much
REGION_STARS = 10  # sources that a region needs on average for the regions to be tried
REGION_ATTEMPT = _Attempt(60, 1, 1, 7, 7, 500_000)  # the first, with a budget for 24 regions
REGION_ODDS = 12.0  # least log-odds of a region's match: a little above CHANCE_ODDS
REGION_GIVE_UP = 0.25  # give up when this share of the regions was tried and none matched
# Log-odds that the best of the wrong hypotheses of a region may have: exp(10) is 22,000 hypotheses.
# Only what exceeds this is added up over the regions.
CHANCE_ODDS = 10.0


def _regions(
    sources: Sources, stars: Stars, limits: Limits, pointing: Pointing, tried: list[str],
    *, grid: tuple[int, int] = REGION_GRID,
) -> list[Hypothesis]:
    """Match each region alone, and join those that agree."""
    ny, nx = sources.shape
    width, height = nx / grid[0], ny / grid[1]
    row, column = (v.ravel() for v in np.mgrid[: grid[1], : grid[0]])
    centers = (column + 0.5) * width + 1j * (row + 0.5) * height
    proposals: list[Hypothesis] = []
    asked = 0
    # The middle is tried first, where a lens distorts least; if it does not match, the rest is not.
    for center in centers[np.argsort(np.abs(centers - sources.center), kind="stable")]:
        offset = sources.z - center
        # A tenth more on every side, so that quads across a border are included.
        inside = (np.abs(offset.real) < 0.6 * width) & (np.abs(offset.imag) < 0.6 * height)
        member = np.flatnonzero(inside)
        if len(member) < MIN_STARS:
            continue
        if asked >= REGION_GIVE_UP * len(centers) and not proposals:
            break
        asked += 1
        part = sources.part(member, (int(1.2 * height) + 1, int(1.2 * width) + 1))
        # A region may lie off the pointing by as much as the frame is wide.
        local = limits._replace(
            center=complex(center), norm=part.norm,
            radius=limits.radius + 1.2 * limits.scale_max * abs(center - sources.center),
            scale_min=0.7 * limits.scale_min, scale_max=1.4 * limits.scale_max,
        )
        found = _quads(part, stars, local, pointing, [], attempt=REGION_ATTEMPT)
        if _best(found) > REGION_ODDS:
            best = densify(found[0], part, stars)
            proposals.append(replace(best, i=member[best.i], stage="regions"))
    joined = join(proposals, sources, stars, CHANCE_ODDS)
    tried.append(
        f"regions: {grid[0]} x {grid[1]}, {asked} asked, {len(proposals)} propose, "
        f"{0 if joined is None else joined[1]} agree, "
        f"log-odds {0.0 if joined is None else joined[0].log_odds:.1f}"
    )
    return [] if joined is None else [joined[0]]
