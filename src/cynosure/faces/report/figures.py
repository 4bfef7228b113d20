"""Figures of one image: functions that draw on Axes and return them.

Every figure takes the tables of :mod:`cynosure.data.tables` or an array of
:mod:`cynosure.pipelines.evidence`. What differs in colour differs in its marker too. Residuals
are source minus reference, right ascension with cos dec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.faces.report.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    axes_or_new,
    few_rows,
    height_pt,
    log_scale,
    round_number,
    scale_arrow,
    show_limit,
)
from cynosure.ground.numeric import rms
from cynosure.ground.sky import project, radec, unit_vectors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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

# Arrows beyond this number only make a figure slow and black.
MAX_ARROWS = 1500

# What became of a pair: its colour, its marker, its word.
CLASSES = {
    "used": (BLUE, "o"),
    "reserved": (ORANGE, "s"),
    "clipped": (RED, "x"),
}
def classify(matches: Table) -> dict[str, NDArray[np.bool_]]:
    """Return the masks of the pairs that were used, reserved and clipped."""
    used, reserved = matches["used"], matches["reserved"]
    return {"used": used & ~reserved, "reserved": reserved, "clipped": ~used & ~reserved}


def plot_image(
    thumbnail: ArrayLike, shape: tuple[int, int], sources: Table, matches: Table,
    reference: ArrayLike | None = None, *, ax: Axes | None = None,
) -> Axes:
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
    ax : Axes, optional
        Where to draw; by default on a new figure.
    """
    ax = axes_or_new(ax, 6.0, 6.0)
    small = np.asarray(thumbnail, dtype=np.float32)
    if not np.isfinite(small).any():
        small = np.zeros_like(small)
    low, mid, high = np.nanpercentile(small, (20.0, 60.0, 99.7))
    softening = max(float(mid - low), 1e-6)
    stretched = np.arcsinh((small - low) / softening)
    top = float(np.arcsinh((high - low) / softening))
    ny, nx = shape
    ax.imshow(stretched, cmap="gray_r", origin="lower", vmin=0.0, vmax=max(top, 1e-6),
              extent=(-0.5, nx - 0.5, -0.5, ny - 0.5), interpolation="nearest", aspect="equal")
    first = sources["chip"] == 0
    rows = few_rows(first, 3000)
    ax.plot(sources["x"][rows], sources["y"][rows], "o", ms=4.5, mfc="none", mec=GREY, mew=0.4,
            ls="none", label=f"{int(first.sum())} detected")
    pairs = matches[matches["chip"] == 0]
    _mark_pairs(ax, pairs)
    if reference is not None and np.size(reference):
        lost = _without_pair(np.asarray(reference, dtype=float), pairs)
        shown = lost[np.argsort(lost[:, 2], kind="stable")][:500]
        ax.plot(shown[:, 0], shown[:, 1], "+", ms=5, mec=PURPLE, mew=0.8, ls="none",
                label=f"{len(lost)} reference, no pair")
    ax.set(xlim=(-0.5, nx - 0.5), ylim=(-0.5, ny - 0.5), xlabel="x (px)", ylabel="y (px)",
           title="Stars")
    ax.grid(visible=False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -36.0 / height_pt(ax)), ncols=3,
              handletextpad=0.2, columnspacing=1.0, borderpad=0.0)
    return ax


def _without_pair(reference: NDArray[np.float64], pairs: Table) -> NDArray[np.float64]:
    """Return the rows of (x, y, mag) that have no pair within a few pixels."""
    cell = 4.0

    def key(x: Any, y: Any) -> NDArray[np.int64]:
        return np.floor(np.asarray(x) / cell).astype(np.int64) * 10**6 + np.floor(
            np.asarray(y) / cell).astype(np.int64)

    taken = np.unique(np.concatenate([
        key(pairs["x"] + i * cell, pairs["y"] + j * cell) for i in (-1, 0, 1) for j in (-1, 0, 1)
    ]))
    return reference[~np.isin(key(reference[:, 0], reference[:, 1]), taken)]


def _mark_pairs(ax: Axes, matches: Table) -> None:
    for name, mask in classify(matches).items():
        color, marker = CLASSES[name]
        rows = few_rows(mask, 2000)
        ax.plot(matches["x"][rows], matches["y"][rows], marker, ms=6, mec=color, mfc="none",
                mew=0.8, ls="none", label=f"{int(mask.sum())} {name}")


def well_measured(matches: Table, at_least: int = 60) -> Table:
    """Return the half of the pairs with the least errors, where there are enough of them.

    The noise of faint stars would hide what is common to neighbours.
    """
    if len(matches) < 2 * at_least:
        return matches
    sigma = np.hypot(matches["sigma_ra_mas"], matches["sigma_dec_mas"])
    return matches[sigma <= np.nanmedian(sigma)]


def plot_quiver(matches: Table, *, ax: Axes | None = None) -> Axes:
    """Draw the residuals of the well-measured half of the stars as arrows, with a scale arrow.

    One chip is drawn in its pixels, the arrows turned as they lie on the detector; several chips
    are drawn on the sky, north up and east to the left.
    """
    ax = axes_or_new(ax)
    matches = well_measured(matches)
    kept = classify(matches)
    x, y, u, v = _arrows(matches)
    shown = kept["used"] | kept["reserved"]
    key = round_number(2.0 * float(np.median(np.hypot(u, v)[shown]))) if shown.any() else 1.0
    for name in ("used", "reserved"):
        rows = few_rows(kept[name], MAX_ARROWS)
        arrows = ax.quiver(
            x[rows], y[rows], u[rows], v[rows], color=CLASSES[name][0], angles="uv",
            scale_units="width", scale=key / 0.07, width=0.0022, headwidth=4.0, headlength=4.5,
        )
    on_sky = len(np.unique(matches["chip"])) > 1
    if len(matches):
        _frame(ax, x, y)
    if on_sky:
        ax.invert_xaxis()
    ax.set(aspect="equal", xlabel="east (arcmin)" if on_sky else "x (px)",
           ylabel="north (arcmin)" if on_sky else "y (px)", title="Residuals over the frame")
    scale_arrow(ax, arrows, key, "mas")
    return ax


def _arrows(matches: Table) -> tuple[NDArray[np.float64], ...]:
    """Return the places of the residuals, and the residuals along the axes of the plot, in mas."""
    east, north = matches["dra_mas"], matches["ddec_mas"]
    if len(matches) < 3:
        return matches["x"], matches["y"], -east, north
    center = unit_vectors(matches["ref_ra_deg"], matches["ref_dec_deg"]).mean(axis=0)
    ra0, dec0 = radec(center)
    xi, eta = project(matches["ref_ra_deg"], matches["ref_dec_deg"], float(ra0), float(dec0))
    if len(np.unique(matches["chip"])) > 1:
        return 60.0 * xi, 60.0 * eta, -east, north
    # The linear map from the plane to the pixels, without its scale, turns the residuals.
    design = np.column_stack([np.ones(len(xi)), xi, eta])
    columns = np.column_stack([matches["x"], matches["y"]])
    linear = np.linalg.lstsq(design, columns, rcond=None)[0][1:].T
    turn = linear / np.sqrt(max(abs(np.linalg.det(linear)), 1e-300))
    return matches["x"], matches["y"], *(turn @ np.stack([east, north]))


def _frame(ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    margin = 0.03 * max(float(np.ptp(x)), float(np.ptp(y)), 1e-9)
    ax.set(xlim=(x.min() - margin, x.max() + margin), ylim=(y.min() - margin, y.max() + margin))


def plot_scatter(matches: Table, *, ax: Axes | None = None) -> Axes:
    """Draw the residuals in ra against those in dec, with the ellipses of 1 and 3 sigma."""
    from matplotlib.patches import Ellipse

    ax = axes_or_new(ax, 4.0, 4.0)
    kept = classify(matches)
    for name in ("clipped", "used", "reserved"):
        color, marker = CLASSES[name]
        rows = few_rows(kept[name])
        ax.plot(matches["dra_mas"][rows], matches["ddec_mas"][rows], marker, ms=2.2, color=color,
                mew=0.5, alpha=0.6, ls="none")
    sigma = [rms(matches[c][kept["used"]]) for c in ("dra_mas", "ddec_mas")]
    if np.all(np.isfinite(sigma)):
        for k in (1.0, 3.0):
            ax.add_patch(Ellipse((0, 0), 2 * k * sigma[0], 2 * k * sigma[1], fill=False, ec="black",
                                 lw=0.8, ls="-" if k == 1 else "--"))
    shown = kept["used"] | kept["reserved"]
    limit = max(show_limit(matches["dra_mas"][shown]), show_limit(matches["ddec_mas"][shown]))
    ax.set(xlim=(limit, -limit), ylim=(-limit, limit), aspect="equal", xlabel="ra (mas)",
           ylabel="dec (mas)", title="Residuals")
    return ax


AGAINST = {
    "ref_mag": "magnitude", "ref_color": "colour (mag)", "x": "x (px)", "y": "y (px)",
    "snr": "signal to noise",
}


def plot_residuals_against(matches: Table, column: str, *, ax: Axes | None = None) -> Axes:
    """Draw the residuals of both axes against a column, with the medians of its bins."""
    ax = axes_or_new(ax, 4.0, 2.6)
    kept = classify(matches)
    fitted = kept["used"] | kept["reserved"]
    fitted = fitted & np.isfinite(matches[column])
    rows = few_rows(fitted)
    value = matches[column]
    limit = 1.0
    for name, color in (("dra_mas", BLUE), ("ddec_mas", RED)):
        ax.plot(value[rows], matches[name][rows], ".", color=color, ls="none", **_dots(len(rows)))
        center, middle, error = _binned(value[fitted], matches[name][fitted])
        ax.errorbar(center, middle, error, fmt="o" if name == "dra_mas" else "s", ms=5.0,
                    color=color, lw=1.4, mec="white", mew=0.8, zorder=5,
                    label=name[1:].split("_")[0])
        limit = max(limit, show_limit(matches[name][fitted], 0.98))
    ax.axhline(0.0, color="black", lw=0.6)
    label = AGAINST.get(column, column)
    ax.set(ylim=(-limit, limit), xlabel=label, ylabel="residual (mas)",
           title=f"Against {label.split(' (')[0]}")
    ax.legend(loc="upper right", ncols=2, handletextpad=0.1, columnspacing=0.8, borderpad=0.1)
    return ax


def _dots(count: int) -> dict[str, Any]:
    """Return size and strength of dots: few are large and dark, many small and pale."""
    strength = min(1.0, max(0.0, (3.7 - np.log10(max(count, 1))) / 1.7))
    return {"ms": 1.6 + 2.0 * strength, "alpha": 0.22 + 0.35 * strength}


def _binned(
    value: ArrayLike, residual: ArrayLike, n_bins: int = 10
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
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


def plot_error_model(matches: Table, *, ax: Axes | None = None) -> Axes:
    """Draw the size of the residuals against magnitude, and what the error model says of it."""
    ax = axes_or_new(ax, 4.0, 2.8)
    rows = few_rows(classify(matches)["used"])
    size = np.hypot(matches["dra_mas"], matches["ddec_mas"]) / np.sqrt(2.0)
    ax.plot(matches["ref_mag"][rows], size[rows], ".", color=BLUE, ls="none", **_dots(len(rows)))
    magnitude, observed, predicted, _, _ = _magnitude_bins(matches)
    ax.plot(magnitude, observed, "o", ms=4, color=BLUE, mec="white", label="rms of the residuals")
    ax.plot(magnitude, predicted, "-", color=RED, lw=1.4, label="error model")
    if len(rows) and np.nanmin(size[rows], initial=np.inf) < np.inf:
        low = max(float(np.nanquantile(size[rows], 0.01)), 1e-3)
        ax.set_ylim(low, 1.5 * float(np.nanmax(size[rows])))
        log_scale(ax)
    ax.set(xlabel="magnitude", ylabel="per axis (mas)", title="Error model")
    ax.legend(loc="upper left")
    return ax


def plot_chi2(matches: Table, *, ax: Axes | None = None) -> Axes:
    """Draw chi^2 per degree of freedom in bins of magnitude; 1 is what calibrated errors give."""
    ax = axes_or_new(ax, 4.0, 2.8)
    magnitude, _, _, chi2, count = _magnitude_bins(matches)
    # chi^2 / dof of n stars with two axes each scatters by sqrt(2 / (2 n)).
    ax.errorbar(magnitude, chi2, 1.0 / np.sqrt(count), fmt="o", ms=4, color=BLUE, lw=1.0)
    ax.axhline(1.0, color="black", lw=0.8)
    ax.axhspan(0.95, 1.05, color=GREEN, alpha=0.18, lw=0)
    top = max(2.0, 1.15 * float(np.max(chi2, initial=0.0)))
    ax.set(ylim=(0.0, min(top, 6.0)), xlabel="magnitude", ylabel="chi2 / dof",
           title="Are the errors calibrated?")
    return ax


def _magnitude_bins(matches: Table) -> tuple[NDArray[np.float64], ...]:
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


def plot_pulls(matches: Table, *, ax: Axes | None = None) -> Axes:
    """Draw the distribution of residual / sigma against the unit Gaussian."""
    ax = axes_or_new(ax, 4.0, 2.8)
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
            ax.step(middle, density, where="mid", color=CLASSES[name][0], lw=1.3,
                    label=f"{name}: std {np.std(pulls):.2f}")
    ax.plot(middle, np.exp(-0.5 * middle**2) / np.sqrt(2 * np.pi), "k--", lw=0.9, label="Gaussian")
    ax.set(xlim=(-5, 5), ylim=(0, 0.72), xlabel="residual / sigma", ylabel="density", title="Pulls")
    ax.legend(loc="upper center", handlelength=1.2, borderpad=0.0)
    return ax


def plot_distortion(distortion: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Draw what the model adds to its linear part, as arrows of pixels over the frame."""
    ax = axes_or_new(ax)
    x, y, dx, dy = np.asarray(distortion, dtype=float).reshape(-1, 4).T
    size = np.hypot(dx, dy)
    key = round_number(float(np.nanmax(size, initial=0.0)) / 1.5)
    arrows = ax.quiver(x, y, dx, dy, size, cmap="cividis", angles="xy", scale_units="width",
                       scale=key / 0.09, width=0.003)
    top = float(np.nanmax(size, initial=0.0))
    ax.margins(0.08)
    ax.set(aspect="equal", xlabel="x (px)", ylabel="y (px)", title=f"Distortion to {top:.3g} px")
    scale_arrow(ax, arrows, key, "px")
    return ax


def plot_wcs_error(wcs_error: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Draw the predicted 1-sigma error of the WCS itself over the frame."""
    ax = axes_or_new(ax)
    x, y, error = np.asarray(wcs_error, dtype=float).reshape(-1, 3).T
    columns, rows = np.unique(x), np.unique(y)
    order = np.lexsort((x, y))
    if len(columns) * len(rows) == len(x):
        mesh: Any = ax.pcolormesh(columns, rows, error[order].reshape(len(rows), len(columns)),
                             cmap="cividis", shading="nearest", rasterized=True)
    else:
        mesh = ax.scatter(x, y, c=error, cmap="cividis", s=30)
    bar = ax.figure.colorbar(mesh, ax=ax, shrink=0.85, pad=0.02)
    bar.set_label("mas")
    bar.outline.set_visible(False)
    ax.set(aspect="equal", xlabel="x (px)", ylabel="y (px)", title="Error of the WCS")
    ax.grid(visible=False)
    return ax


def plot_psf_map(psf_grid: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Draw the FWHM over the frame as colour and the ellipticity as sticks."""
    ax = axes_or_new(ax)
    x, y, fwhm, ellipticity, theta = np.asarray(psf_grid, dtype=float).reshape(-1, 5).T
    size = min(300.0, 9000.0 / max(len(x), 1))
    points = ax.scatter(x, y, c=fwhm, cmap="cividis", s=size, marker="s", lw=0)
    t = np.radians(theta)
    ax.quiver(x, y, ellipticity * np.cos(t), ellipticity * np.sin(t), pivot="middle", headwidth=0,
              headlength=0, headaxislength=0, scale_units="width", scale=max(
                  float(np.nanmax(ellipticity, initial=0.0)), 0.05) / 0.06, color=RED, width=0.005)
    bar = ax.figure.colorbar(points, ax=ax, shrink=0.85, pad=0.02)
    bar.set_label("FWHM (px)")
    bar.outline.set_visible(False)
    ax.set(aspect="equal", xlabel="x (px)", ylabel="y (px)",
           title=f"PSF: {np.nanmedian(fwhm):.2f} px, e {np.nanmedian(ellipticity):.2f}")
    ax.margins(0.1)
    return ax


def plot_psf_stamps(stamps: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Draw the PSF at places over the frame, side by side as they lie on it."""
    ax = axes_or_new(ax, 4.0, 4.0)
    stamps = np.asarray(stamps, dtype=float)
    n = len(stamps)
    across = max(1, round(n**0.5))
    down = -(-n // across)
    s = stamps.shape[-1]
    sheet = np.full((down * (s + 1) - 1, across * (s + 1) - 1), np.nan)
    for k, stamp in enumerate(stamps):
        row, column = divmod(k, across)
        peak = np.nanmax(stamp)
        sheet[row * (s + 1):row * (s + 1) + s, column * (s + 1):column * (s + 1) + s] = (
            np.arcsinh(20 * stamp / peak) if peak > 0 else stamp
        )
    ax.imshow(sheet, origin="lower", cmap="gray_r", interpolation="nearest")
    ax.set(title="PSF over the frame (arcsinh)", xticks=[], yticks=[])
    ax.grid(visible=False)
    return ax


def plot_hypotheses(
    hypotheses: ArrayLike, needed: float = np.nan, *, ax: Axes | None = None
) -> Axes:
    """Draw the log-odds of the best hypotheses of the match against what was needed."""
    ax = axes_or_new(ax, 4.0, 2.8)
    table = np.asarray(hypotheses, dtype=float).reshape(-1, 5)[:10]
    place = np.arange(len(table))
    passed = table[:, 0] >= needed
    colors = [BLUE if p or np.isnan(needed) else GREY for p in passed]
    ax.barh(place, table[:, 0], color=colors, height=0.3)
    for k, (odds, pairs, scale, rotation, parity) in enumerate(table):
        mirror = ", mirrored" if parity < 0 else ""
        what = f"{pairs:.0f} pairs, {scale:.4g}″/px, {rotation:.1f}°{mirror}"
        text = f"{odds:.1f}: {what}" if np.isfinite(pairs) else f"{odds:.1f}: the next best"
        ax.annotate(text, (0.0, k), xytext=(3, 0.36 * 18), textcoords="offset points",
                    va="bottom", fontsize=7)
    if np.isfinite(needed):
        ax.axvline(needed, color=RED, lw=1.0, ls="--", label=f"needed: {needed:g}")
        ax.legend(loc="lower right")
    top = float(np.nanmax(table[:, 0], initial=1.0))
    ax.set(yticks=place, yticklabels=[f"{k + 1}." for k in place],
           xlabel="log-odds against chance", title="Hypotheses of the match",
           xlim=(min(0.0, table[:, 0].min(initial=0.0)), 1.05 * top),
           ylim=(max(len(table), 3) - 0.5, -0.7))
    return ax


def write_lines(lines: Any, title: str, *, ax: Axes | None = None) -> Axes:
    """Write lines of text where a figure would be."""
    import textwrap

    ax = axes_or_new(ax, 4.0, 2.8)
    wrapped = [part for line in lines for part in textwrap.wrap(str(line), 40)]
    ax.set_axis_off()
    ax.set_title(title if wrapped else "")
    for k, line in enumerate(wrapped[:14]):
        ax.text(0.0, 0.97 - 0.07 * k, line, transform=ax.transAxes, va="top", fontsize=7)
    return ax


def plot_profile(sources: Table, *, ax: Axes | None = None) -> Axes:
    """Draw the widths of the sources against their signal to noise; stars form a line."""
    ax = axes_or_new(ax, 4.0, 2.8)
    known = np.isfinite(sources["fwhm_px"]) & (sources["snr"] > 0)
    rows = few_rows(known)
    width = sources["fwhm_px"]
    ax.plot(np.log10(sources["snr"][rows]), width[rows], ".", ms=1.6, color=BLUE, alpha=0.35)
    if known.any():
        ax.set_ylim(0.0, 3.0 * float(np.median(width[known])))
    ax.set(xlabel="log10 of signal to noise", ylabel="FWHM (px)", title="Widths of the sources")
    return ax


def plot_offsets(
    offsets: ArrayLike, edges: ArrayLike, *, ax: Axes | None = None
) -> Axes:
    """Draw the histogram of the offsets source - reference; a match is a peak."""
    ax = axes_or_new(ax, 4.0, 3.4)
    left, right, bottom, top = np.asarray(edges, dtype=float)
    image = ax.imshow(np.asarray(offsets), origin="lower", extent=(left, right, bottom, top),
                      cmap="cividis", interpolation="nearest", aspect="auto")
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.85, pad=0.02)
    bar.set_label("pairs")
    bar.outline.set_visible(False)
    ax.set(xlabel="dx (arcsec)", ylabel="dy (arcsec)", title="Offsets of all pairs")
    ax.grid(visible=False)
    return ax


def plot_ledger(ledger: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Draw the rounds of the fit: residuals, sigma0 and stars left.

    Parameters
    ----------
    ledger : (n, 4) array_like
        Round, stars used, rms in mas, sigma0 in mas.
    ax : Axes, optional
        Where to draw; by default on a new figure.
    """
    ax = axes_or_new(ax, 4.0, 2.8)
    number, used, size, sigma0 = np.asarray(ledger, dtype=float).reshape(-1, 4).T
    ax.plot(number, size, "o-", color=BLUE, ms=4, label="rms")
    if np.isfinite(sigma0).any():
        ax.plot(number, sigma0, "s--", color=RED, lw=1.0, ms=3, label="sigma0")
    for k, (n, y) in enumerate(zip(used, size)):
        if k in (0, len(used) - 1) or len(used) < 8:
            ax.annotate(f"{n:.0f}", (number[k], y), xytext=(0, 6), textcoords="offset points",
                        ha="center", fontsize=7)
    whole = np.unique(number.astype(int))
    ax.margins(y=0.3)
    log_scale(ax)
    ax.set(xlabel="round (labels: stars used)", xticks=whole[:: -(-len(whole) // 12)],
           ylabel="mas", title="Rounds of the fit")
    ax.legend(loc="upper right", ncols=2)
    return ax


def plot_scores(
    scores: dict[str, Any], chosen: str = "", *, ax: Axes | None = None
) -> Axes:
    """Draw how well each form that was tried predicts stars that it never saw.

    Parameters
    ----------
    scores : dict
        Form to its score, or to a dict with its ``score``: mean negative log-likelihood of a
        held-out star; least is best.
    chosen : str
        The form that was taken.
    ax : Axes, optional
        Where to draw; by default on a new figure.
    """
    ax = axes_or_new(ax, 4.0, 2.8)
    names = list(scores)
    given = [scores[name] for name in names]
    score = np.array([g["score"] if isinstance(g, dict) else g for g in given], dtype=float)
    loss = score - np.nanmin(score, initial=np.inf) if len(score) else score
    colors = [BLUE if name == chosen else GREY for name in names]
    ax.bar(np.arange(len(names)), loss, color=colors, width=0.65)
    worth_saying = 0.04 * np.nanmax(loss, initial=0.0)
    for k, value in enumerate(loss):
        if 0.0 < value < worth_saying:
            continue
        ax.annotate(f"{value:.2g}", (k, value), xytext=(0, 2), textcoords="offset points",
                    ha="center", fontsize=7)
    labels = [name.replace("poly", "") for name in names]
    turned = any(len(text) > 3 for text in labels)
    ax.set(xticks=np.arange(len(names)), xticklabels=labels, ylabel="loss against the best",
           xlabel="" if turned else "degree", title=f"Form: {chosen}" if chosen else "Forms")
    ax.tick_params(axis="x", rotation=40 if turned else 0)
    ax.margins(y=0.15)
    return ax
