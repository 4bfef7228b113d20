"""Figures of one image: functions that return what is drawn, as a panel.

Every figure takes the tables of :mod:`cynosure.data.tables` or an array of
:mod:`cynosure.pipelines.evidence`. What differs in colour differs in its mark too. Residuals are
source minus reference, right ascension with cos dec.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.faces.report.svg import (
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    Panel,
    few_rows,
    round_number,
    show_limit,
)
from cynosure.ground.numeric import rms
from cynosure.ground.sky import project, radec, unit_vectors

__all__ = [
    "CLASSES",
    "classify",
    "plot_chi2",
    "plot_distortion",
    "plot_error_model",
    "plot_hypotheses",
    "plot_image",
    "plot_ledger",
    "plot_offsets",
    "plot_profile",
    "plot_psf_map",
    "plot_psf_stamps",
    "plot_pulls",
    "plot_quiver",
    "plot_residuals_against",
    "plot_scatter",
    "plot_scores",
    "plot_wcs_error",
    "well_measured",
    "write_lines",
]

Table = NDArray[np.void]
Floats = NDArray[np.float64]

# Arrows in a figure; more overlap at its size and take time to draw.
MAX_ARROWS = 1500

# What became of a pair: its colour, its mark.
CLASSES = {"used": (BLUE, "o"), "reserved": (ORANGE, "s"), "clipped": (RED, "x")}


def classify(matches: Table) -> dict[str, NDArray[np.bool_]]:
    """Return the masks of the pairs that were used, reserved and clipped."""
    used, reserved = matches["used"], matches["reserved"]
    return {"used": used & ~reserved, "reserved": reserved, "clipped": ~used & ~reserved}


def plot_image(
    thumbnail: ArrayLike, shape: tuple[int, int], sources: Table, matches: Table,
    reference: ArrayLike | None = None,
) -> Panel:
    """Draw the first chip with its detections and what became of the reference stars.

    Parameters
    ----------
    thumbnail : (h, w) array_like
        The chip made small, background taken off.
    shape : (ny, nx)
        Of the chip itself.
    sources, matches : structured array
        Schemas ``SOURCES`` and ``MATCHES``.
    reference : (n, 3) array_like, optional
        Reference stars in the chip: x, y, magnitude; those without a pair are marked.
    """
    ny, nx = shape
    panel = Panel("Stars", "x (px)", "y (px)", (-0.5, nx - 0.5), (-0.5, ny - 0.5), equal=True,
                  grid=False, legend_at="below")
    panel.picture(_stretched(thumbnail), (-0.5, nx - 0.5, -0.5, ny - 0.5))
    first = sources["chip"] == 0
    rows = few_rows(first, 2000)
    panel.points(sources["x"][rows], sources["y"][rows], color=GREY, mark="o", size_px=6.0,
                 width_px=0.5, label=f"{int(first.sum())} detected")
    pairs = matches[matches["chip"] == 0]
    for name, mask in classify(pairs).items():
        color, mark = CLASSES[name]
        rows = few_rows(mask, 1500)
        panel.points(pairs["x"][rows], pairs["y"][rows], color=color, mark=mark, size_px=8.0,
                     label=f"{int(mask.sum())} {name}")
    if reference is not None and np.size(reference):
        lost = _without_pair(np.asarray(reference, dtype=float), pairs)
        shown = lost[np.argsort(lost[:, 2], kind="stable")][:500]
        panel.points(shown[:, 0], shown[:, 1], color=PURPLE, mark="+", size_px=7.0,
                     label=f"{len(lost)} reference, no pair")
    return panel


def _stretched(thumbnail: ArrayLike) -> NDArray[np.uint8]:
    """Return a picture as bytes, dark stars on white, so that faint ones are seen too."""
    small = np.asarray(thumbnail, dtype=np.float32)
    if not np.isfinite(small).any():
        small = np.zeros_like(small)
    low, mid, high = np.nanpercentile(small, (20.0, 60.0, 99.7))
    softening = max(float(mid - low), 1e-6)
    stretched = np.arcsinh((np.nan_to_num(small, nan=low) - low) / softening)
    top = max(float(np.arcsinh((high - low) / softening)), 1e-6)
    return (255.0 * (1.0 - np.clip(stretched / top, 0.0, 1.0))).astype(np.uint8)


def _without_pair(reference: Floats, pairs: Table) -> Floats:
    """Return the rows of (x, y, mag) that have no pair within a few pixels."""
    cell = 4.0

    def key(x: Any, y: Any) -> NDArray[np.int64]:
        return np.floor(np.asarray(x) / cell).astype(np.int64) * 10**6 + np.floor(
            np.asarray(y) / cell).astype(np.int64)

    # Sorting and searching: NumPy's unique and isin take ten times as long.
    taken = np.sort(np.concatenate([
        key(pairs["x"] + i * cell, pairs["y"] + j * cell) for i in (-1, 0, 1) for j in (-1, 0, 1)
    ]))
    if not len(taken):
        return reference
    wanted = key(reference[:, 0], reference[:, 1])
    at = np.minimum(np.searchsorted(taken, wanted), len(taken) - 1)
    return reference[taken[at] != wanted]


def well_measured(matches: Table, at_least: int = 60) -> Table:
    """Return the half of the pairs with the least errors, where there are enough of them.

    The noise of faint stars would hide what is common to neighbours.
    """
    if len(matches) < 2 * at_least:
        return matches
    sigma = np.hypot(matches["sigma_ra_mas"], matches["sigma_dec_mas"])
    return matches[sigma <= np.nanmedian(sigma)]


def plot_quiver(matches: Table) -> Panel:
    """Draw the residuals of the well-measured half of the stars as arrows, with a scale arrow.

    One chip is drawn in its pixels, the arrows turned as they lie on the detector; several chips
    are drawn on the sky, north up and east to the left.
    """
    matches = well_measured(matches)
    kept = classify(matches)
    x, y, u, v = residual_arrows(matches)
    on_sky = len(np.unique(matches["chip"])) > 1
    panel = Panel("Residuals over the frame", "east (arcmin)" if on_sky else "x (px)",
                  "north (arcmin)" if on_sky else "y (px)", equal=True)
    shown = kept["used"] | kept["reserved"]
    key = round_number(2.0 * float(np.median(np.hypot(u, v)[shown]))) if shown.any() else 1.0
    unit_px = 32.0 / key
    for name in ("used", "reserved"):
        rows = few_rows(kept[name], MAX_ARROWS)
        panel.arrows(x[rows], y[rows], u[rows], v[rows], unit_px=unit_px, color=CLASSES[name][0])
    if len(matches):
        margin = 0.03 * max(float(np.ptp(x)), float(np.ptp(y)), 1e-9)
        panel.xlim, panel.ylim = ((float(z.min()) - margin, float(z.max()) + margin)
                                  for z in (x, y))
        if on_sky:
            panel.xlim = panel.xlim[::-1]
    panel.key = (key * unit_px, f"{key:g} mas")
    return panel


def residual_arrows(matches: Table) -> tuple[Floats, ...]:
    """Return the places of the residuals, and the residuals along the axes of the plot, in mas.

    On the sky x is east, whose axis runs to the left.
    """
    east, north = matches["dra_mas"], matches["ddec_mas"]
    if len(matches) < 3:
        return matches["x"], matches["y"], -east, north
    center = unit_vectors(matches["ref_ra_deg"], matches["ref_dec_deg"]).mean(axis=0)
    ra0, dec0 = radec(center)
    xi, eta = project(matches["ref_ra_deg"], matches["ref_dec_deg"], float(ra0), float(dec0))
    if len(np.unique(matches["chip"])) > 1:
        return 60.0 * xi, 60.0 * eta, east, north
    # The linear map from the plane to the pixels, without its scale, turns the residuals.
    design = np.column_stack([np.ones(len(xi)), xi, eta])
    columns = np.column_stack([matches["x"], matches["y"]])
    linear = np.linalg.lstsq(design, columns, rcond=None)[0][1:].T
    turn = linear / np.sqrt(max(abs(np.linalg.det(linear)), 1e-300))
    return matches["x"], matches["y"], *(turn @ np.stack([east, north]))


def plot_scatter(matches: Table) -> Panel:
    """Draw the residuals in ra against those in dec, with the ellipses of 1 and 3 sigma."""
    kept = classify(matches)
    shown = kept["used"] | kept["reserved"]
    limit = max(show_limit(matches["dra_mas"][shown]), show_limit(matches["ddec_mas"][shown]))
    panel = Panel("Residuals", "ra (mas)", "dec (mas)", (limit, -limit), (-limit, limit),
                  equal=True)
    for name in ("clipped", "used", "reserved"):
        color, mark = CLASSES[name]
        rows = few_rows(kept[name])
        panel.points(matches["dra_mas"][rows], matches["ddec_mas"][rows], color=color,
                     mark="dot" if name == "used" else mark, size_px=2.6, opacity=0.6)
    sigma = [rms(matches[c][kept["used"]]) for c in ("dra_mas", "ddec_mas")]
    if np.all(np.isfinite(sigma)):
        for k, dash in ((1.0, ""), (3.0, "4 3")):
            panel.ellipse(k * sigma[0], k * sigma[1], dash)
    return panel


AGAINST = {
    "ref_mag": "magnitude", "ref_color": "colour (mag)", "x": "x (px)", "y": "y (px)",
    "snr": "signal to noise",
}


def plot_residuals_against(matches: Table, column: str) -> Panel:
    """Draw the residuals of both axes against a column, with the medians of its bins."""
    label = AGAINST.get(column, column)
    panel = Panel(f"Against {label.split(' (')[0]}", label, "residual (mas)")
    kept = classify(matches)
    fitted = (kept["used"] | kept["reserved"]) & np.isfinite(matches[column])
    rows = few_rows(fitted, 1500)
    value, limit = matches[column], 1.0
    for name, color in (("dra_mas", BLUE), ("ddec_mas", RED)):
        panel.points(value[rows], matches[name][rows], color=color, **_dots(len(rows)))
        limit = max(limit, show_limit(matches[name][fitted], 0.98))
    for name, color in (("dra_mas", BLUE), ("ddec_mas", RED)):
        panel.errorbars(*_binned(value[fitted], matches[name][fitted]), color=color,
                        mark="o" if name == "dra_mas" else "s", label=name[1:].split("_")[0])
    panel.level(0.0)
    panel.ylim = (-limit, limit)
    return panel


def _dots(count: int) -> dict[str, Any]:
    """Return size and strength of dots: few are large and dark, many small and pale."""
    strength = min(1.0, max(0.0, (3.7 - np.log10(max(count, 1))) / 1.7))
    return {"size_px": 2.0 + 2.0 * strength, "opacity": 0.3 + 0.35 * strength}


def _binned(
    value: ArrayLike, residual: ArrayLike, n_bins: int = 10
) -> tuple[Floats, Floats, Floats]:
    """Return centre, median and its error of bins that hold as many stars each."""
    value, residual = np.asarray(value, dtype=float), np.asarray(residual, dtype=float)
    order = np.argsort(value, kind="stable")
    pieces = np.array_split(order, max(1, min(n_bins, len(order) // 5)))
    pieces = [p for p in pieces if len(p)]
    center = np.array([np.median(value[p]) for p in pieces])
    middle = np.array([np.median(residual[p]) for p in pieces])
    # The median of n Gaussian numbers is uncertain by 1.25 sigma / sqrt(n).
    error = np.array([1.2533 * np.std(residual[p]) / np.sqrt(len(p)) for p in pieces])
    return center, middle, error


def plot_error_model(matches: Table) -> Panel:
    """Draw the size of the residuals against magnitude, and what the error model says of it."""
    panel = Panel("Error model", "magnitude", "per axis (mas)", log_y=True, legend_at="left")
    rows = few_rows(classify(matches)["used"])
    size = np.hypot(matches["dra_mas"], matches["ddec_mas"]) / np.sqrt(2.0)
    panel.points(matches["ref_mag"][rows], size[rows], color=BLUE, **_dots(len(rows)))
    magnitude, observed, predicted, _, _ = magnitude_bins(matches)
    panel.points(magnitude, observed, color=BLUE, size_px=6.0, label="rms of the residuals")
    panel.line(magnitude, predicted, color=RED, width_px=1.8, label="error model")
    known = size[rows][np.isfinite(size[rows]) & (size[rows] > 0.0)]
    panel.ylim = (1.0, 10.0) if not len(known) else (
        max(float(np.quantile(known, 0.01)), 1e-3), 1.5 * float(known.max())
    )
    return panel


def plot_chi2(matches: Table) -> Panel:
    """Draw chi^2 per degree of freedom in bins of magnitude; 1 is what calibrated errors give."""
    panel = Panel("Are the errors calibrated?", "magnitude", "chi² / dof")
    magnitude, _, _, chi2, count = magnitude_bins(matches)
    panel.band(0.95, 1.05)
    panel.level(1.0)
    # chi^2 / dof of n stars with two axes each scatters by sqrt(2 / (2 n)).
    panel.errorbars(magnitude, chi2, 1.0 / np.sqrt(count))
    top = max(2.0, 1.15 * float(np.nanmax(chi2, initial=0.0)))
    panel.ylim = (0.0, min(top, 6.0))
    return panel


def magnitude_bins(matches: Table) -> tuple[Floats, ...]:
    """Return magnitude, rms, predicted sigma, chi^2/dof and count of bins of equal number."""
    used = classify(matches)["used"] & np.isfinite(matches["ref_mag"])
    rows = np.flatnonzero(used)
    rows = rows[np.argsort(matches["ref_mag"][rows], kind="stable")]
    pieces = [p for p in np.array_split(rows, max(1, min(10, len(rows) // 8))) if len(p)]
    table = []
    for p in pieces:
        part = matches[p]
        d2 = 0.5 * (part["dra_mas"] ** 2 + part["ddec_mas"] ** 2)
        s2 = 0.5 * (part["sigma_ra_mas"] ** 2 + part["sigma_dec_mas"] ** 2)
        q = 0.5 * (
            (part["dra_mas"] / part["sigma_ra_mas"]) ** 2
            + (part["ddec_mas"] / part["sigma_dec_mas"]) ** 2
        )
        table.append([
            np.median(part["ref_mag"]), np.sqrt(np.mean(d2)), np.sqrt(np.mean(s2)), np.mean(q),
            len(p),
        ])
    return tuple(np.array(table, dtype=float).reshape(-1, 5).T)


def plot_pulls(matches: Table) -> Panel:
    """Draw the distribution of residual / sigma against the unit Gaussian."""
    panel = Panel("Pulls", "residual / sigma", "density", (-5.0, 5.0), (0.0, 0.72))
    edges = np.linspace(-5.0, 5.0, 41)
    middle = 0.5 * (edges[1:] + edges[:-1])
    kept = classify(matches)
    for name in ("used", "reserved"):
        part = matches[kept[name]]
        pulls = np.concatenate([
            part["dra_mas"] / part["sigma_ra_mas"], part["ddec_mas"] / part["sigma_dec_mas"],
        ])
        pulls = pulls[np.isfinite(pulls)]
        if pulls.size:
            density = np.histogram(pulls, edges)[0] / (pulls.size * np.diff(edges))
            panel.line(middle, density, color=CLASSES[name][0], width_px=1.5, steps=True,
                       label=f"{name}: std {np.std(pulls):.2f}")
    gaussian = np.exp(-0.5 * middle**2) / np.sqrt(2 * np.pi)
    panel.line(middle, gaussian, dash="4 3", label="Gaussian")
    return panel


def plot_distortion(distortion: ArrayLike) -> Panel:
    """Draw what the model adds to its linear part, as arrows of pixels over the frame."""
    x, y, dx, dy = np.asarray(distortion, dtype=float).reshape(-1, 4).T
    size = np.hypot(dx, dy)
    top = float(np.nanmax(size, initial=0.0))
    key = round_number(top / 1.5)
    panel = Panel(f"Distortion to {top:.3g} px", "x (px)", "y (px)", equal=True)
    unit_px = 22.0 / key
    panel.arrows(x, y, dx, dy, unit_px=unit_px, color=BLUE)
    panel.key = (key * unit_px, f"{key:g} px")
    return panel


def plot_wcs_error(wcs_error: ArrayLike) -> Panel:
    """Draw the predicted 1-sigma error of the WCS itself over the frame."""
    x, y, error = np.asarray(wcs_error, dtype=float).reshape(-1, 3).T
    panel = Panel("Error of the WCS", "x (px)", "y (px)", equal=True, grid=False)
    columns, rows = np.unique(x), np.unique(y)
    order = np.lexsort((x, y))
    if len(columns) * len(rows) == len(x) and len(columns) > 1 and len(rows) > 1:
        half_x, half_y = 0.5 * (columns[1] - columns[0]), 0.5 * (rows[1] - rows[0])
        panel.shades(error[order].reshape(len(rows), len(columns)),
                     (columns[0] - half_x, columns[-1] + half_x, rows[0] - half_y,
                      rows[-1] + half_y), "mas")
    else:
        panel.points(x, y, size_px=9.0)
        for place in zip(x, y, error):
            panel.note(place[0], place[1], f"{place[2]:.3g} mas", dy=-8.0)
    return panel


def plot_psf_map(psf_grid: ArrayLike) -> Panel:
    """Draw the FWHM over the frame as colour and the ellipticity as sticks."""
    x, y, fwhm, ellipticity, theta = np.asarray(psf_grid, dtype=float).reshape(-1, 5).T
    panel = Panel(f"PSF: {np.nanmedian(fwhm):.2f} px, e {np.nanmedian(ellipticity):.2f}",
                  "x (px)", "y (px)", equal=True, grid=False)
    columns, rows = np.unique(x), np.unique(y)
    if len(columns) * len(rows) == len(x) and len(columns) > 1 and len(rows) > 1:
        order = np.lexsort((x, y))
        half_x, half_y = 0.5 * (columns[1] - columns[0]), 0.5 * (rows[1] - rows[0])
        panel.shades(fwhm[order].reshape(len(rows), len(columns)),
                     (columns[0] - half_x, columns[-1] + half_x, rows[0] - half_y,
                      rows[-1] + half_y), "FWHM")
    else:
        panel.points(x, y, size_px=6.0)
    t = np.radians(theta)
    longest = max(float(np.nanmax(ellipticity, initial=0.0)), 0.05)
    panel.arrows(x, y, ellipticity * np.cos(t), ellipticity * np.sin(t), unit_px=22.0 / longest,
                 color=RED, heads=False, width_px=2.0)
    return panel


def plot_psf_stamps(stamps: ArrayLike) -> Panel:
    """Draw the PSF at places over the frame, side by side as they lie on it."""
    stamps = np.asarray(stamps, dtype=float)
    n = len(stamps)
    across = max(1, round(n**0.5))
    down = -(-n // across)
    s = stamps.shape[-1]
    sheet = np.full((down * (s + 1) - 1, across * (s + 1) - 1), 190, dtype=np.uint8)
    for k, stamp in enumerate(stamps):
        row, column = divmod(k, across)
        peak = float(np.nanmax(stamp))
        shown = np.arcsinh(20 * np.nan_to_num(stamp) / peak) if peak > 0 else 0.0 * stamp
        grey = 255.0 * (1.0 - np.clip(shown / np.arcsinh(20.0), 0.0, 1.0))
        sheet[row * (s + 1):row * (s + 1) + s, column * (s + 1):column * (s + 1) + s] = grey
    h, w = sheet.shape
    panel = Panel("PSF over the frame (arcsinh)", xlim=(0.0, float(w)), ylim=(0.0, float(h)),
                  equal=True, xticks=(), yticks=(), grid=False)
    panel.picture(sheet, (0.0, float(w), 0.0, float(h)))
    return panel


def plot_hypotheses(hypotheses: ArrayLike, needed: float = np.nan) -> Panel:
    """Draw the log-odds of the best hypotheses of the match against what was needed."""
    table = np.asarray(hypotheses, dtype=float).reshape(-1, 5)[:10]
    place = np.arange(len(table), dtype=float)
    top = float(np.nanmax(table[:, 0], initial=1.0))
    panel = Panel(
        "Hypotheses of the match", "log-odds against chance",
        xlim=(min(0.0, float(table[:, 0].min(initial=0.0))), 1.05 * top),
        ylim=(max(len(table), 3) - 0.5, -0.7), yticks=[(k, f"{k + 1:.0f}.") for k in place],
    )
    colors = [BLUE if odds >= needed or np.isnan(needed) else GREY for odds in table[:, 0]]
    panel.bars(place, table[:, 0], colors, width=0.3, across=True)
    for k, (odds, pairs, scale, rotation, parity) in enumerate(table):
        mirror = ", mirrored" if parity < 0 else ""
        what = f"{pairs:.0f} pairs, {scale:.4g}″/px, {rotation:.1f}°{mirror}"
        text = f"{odds:.1f}: {what}" if np.isfinite(pairs) else f"{odds:.1f}: the next best"
        panel.note(0.0, k, text, dx=4.0, dy=-10.0, anchor="start")
    if np.isfinite(needed):
        panel.level(needed, color=RED, dash="4 3", upright=True, label=f"needed: {needed:g}")
    return panel


def write_lines(lines: Sequence[Any], title: str) -> Panel:
    """Write lines of text where a figure would be."""
    wrapped = [part for line in lines for part in textwrap.wrap(str(line), 42)]
    panel = Panel(title if wrapped else "")
    panel.lines_of_text(wrapped[:14])
    return panel


def plot_profile(sources: Table) -> Panel:
    """Draw the widths of the sources against their signal to noise; stars form a line."""
    panel = Panel("Widths of the sources", "log₁₀ of signal to noise", "FWHM (px)")
    known = np.isfinite(sources["fwhm_px"]) & (sources["snr"] > 0)
    rows = few_rows(known)
    width = sources["fwhm_px"]
    panel.points(np.log10(sources["snr"][rows]), width[rows], color=BLUE, size_px=2.0, opacity=0.4)
    if known.any():
        panel.ylim = (0.0, 3.0 * float(np.median(width[known])))
    return panel


def plot_offsets(offsets: ArrayLike, edges: ArrayLike) -> Panel:
    """Draw the histogram of the offsets source - reference; a match is a peak."""
    left, right, bottom, top = (float(v) for v in np.asarray(edges, dtype=float))
    panel = Panel("Offsets of all pairs", "dx (arcsec)", "dy (arcsec)", (left, right),
                  (bottom, top), grid=False)
    panel.shades(np.asarray(offsets), (left, right, bottom, top), "pairs")
    return panel


def plot_ledger(ledger: ArrayLike) -> Panel:
    """Draw the rounds of the fit: residuals, sigma0 and stars left.

    Parameters
    ----------
    ledger : (n, 4) array_like
        Round, stars used, rms in mas, sigma0 in mas.
    """
    panel = Panel("Rounds of the fit", "round (labels: stars used)", "mas", log_y=True)
    number, used, size, sigma0 = np.asarray(ledger, dtype=float).reshape(-1, 4).T
    panel.line(number, size, color=BLUE)
    panel.points(number, size, color=BLUE, size_px=6.0, label="rms")
    if np.isfinite(sigma0).any():
        panel.line(number, sigma0, color=RED, dash="4 3")
        panel.points(number, sigma0, color=RED, mark="s", size_px=5.0, label="sigma0")
    for k, (n, y) in enumerate(zip(used, size)):
        if k in (0, len(used) - 1) or len(used) < 8:
            panel.note(number[k], y, f"{n:.0f}", dy=-8.0)
    whole = np.unique(number.astype(int))
    panel.xticks = [(float(v), str(v)) for v in whole[:: max(1, -(-len(whole) // 12))]]
    every = np.concatenate([size, sigma0])
    every = every[np.isfinite(every) & (every > 0)]
    panel.ylim = (every.min() / 1.6, every.max() * 2.2) if len(every) else (0.1, 1.0)
    return panel


def plot_scores(scores: dict[str, Any], chosen: str = "") -> Panel:
    """Draw how well each geometry that was tried predicts stars that it never saw.

    Parameters
    ----------
    scores : dict
        Geometry to its score, or to a dict with its ``score``: mean negative log-likelihood of a
        held-out star; least is best.
    chosen : str
        The geometry that was taken.
    """
    panel = Panel(f"Geometry: {chosen}" if chosen else "Geometries", "", "loss against the best")
    names = list(scores)
    given = [scores[name] for name in names]
    score = np.array([g["score"] if isinstance(g, dict) else g for g in given], dtype=float)
    loss = score - np.nanmin(score, initial=np.inf) if len(score) else score
    place = np.arange(len(names), dtype=float)
    panel.bars(place, loss, [BLUE if name == chosen else GREY for name in names])
    top = float(np.nanmax(loss, initial=0.0))
    for k, value in enumerate(loss):
        if value == 0.0 or value >= 0.04 * top:
            panel.note(k, value, f"{value:.2g}", dy=-4.0)
    panel.ylim = (0.0, 1.15 * top if top > 0 else 1.0)
    panel.xlim = (-0.6, max(len(names), 1) - 0.4)
    panel.xticks = [(k, name.replace("poly", "")) for k, name in enumerate(names)]
    panel.xlabel = "degree of the polynomial, or what moves the WCS"
    return panel

