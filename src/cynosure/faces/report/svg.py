"""Diagrams as SVG: panels with axes, points, lines, arrows and pictures.

A diagram of a report is drawn in milliseconds, is sharp at every size, takes its ink from the page
(so that it is right on a dark one) and can be read by a screen reader. Thousands of marks of one
kind are one path, with whole numbers relative to each other: about eight bytes a mark.

The colours are those of Okabe & Ito (2008), which people of all kinds of colour vision can tell
apart.
"""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "BLUE", "GREEN", "GREY", "INK", "ORANGE", "PURPLE", "RED", "Diagram", "Panel", "few_rows",
    "png_of", "round_number", "show_limit", "ticks",
]

Floats = NDArray[np.float64]

BLUE, ORANGE, RED, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
PURPLE, GREY, INK = "#CC79A7", "#777777", "var(--ink)"

# Points in a figure; more overlap at its size and take time to draw.
MAX_POINTS = 2500
# Marks are placed on a grid of a quarter of a pixel, finer than the eye resolves: short numbers.
FINE = 4

# A scale of colours whose lightness rises evenly, from dark blue over grey to yellow.
SEQUENTIAL = np.array([
    (0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (253, 231, 55),
], dtype=float)


def few_rows(mask: NDArray[np.bool_], most: int = MAX_POINTS) -> NDArray[np.int64]:
    """Return rows of a mask, evenly thinned to at most so many."""
    rows = np.flatnonzero(mask)
    return rows[:: max(1, -(-len(rows) // most))]


def show_limit(values: ArrayLike, share: float = 0.99) -> float:
    """Return a limit that shows most of the values: outliers must not flatten a figure."""
    size = np.abs(np.asarray(values, dtype=float))
    size = size[np.isfinite(size)]
    return 1.3 * float(np.quantile(size, share)) if size.size and size.max() > 0 else 1.0


def round_number(value: float) -> float:
    """Return the number 1, 2 or 5 times a power of ten that is nearest."""
    if not np.isfinite(value) or value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(min((1.0, 2.0, 5.0, 10.0), key=lambda m: abs(np.log(m * power / value))) * power)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers between two limits, at most so many.

    Examples
    --------
    >>> ticks(0.0, 10.0), ticks(-3.2, 3.2, 4)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [-2.0, 0.0, 2.0])
    """
    low, high = min(low, high), max(low, high)
    if not (np.isfinite(low) and np.isfinite(high)) or low == high:
        return []
    power = 10.0 ** np.floor(np.log10((high - low) / most))
    for factor in (1.0, 2.0, 5.0, 10.0, 20.0):
        step = factor * power
        first, last = np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [float(f"{k * step:.12g}") + 0.0 for k in np.arange(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten between two positive limits; powers alone where far."""
    factors = (1.0, 2.0, 5.0) if high < 300.0 * low else (1.0,)
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    return [float(f"{f * p:.6g}") for p in powers for f in factors if low <= f * p <= high]


def png_of(pixels: ArrayLike) -> bytes:
    """Return an (h, w) or (h, w, 3) array of bytes as a PNG, its first row at the top."""
    pixels = np.ascontiguousarray(pixels, dtype=np.uint8)
    h, w = pixels.shape[:2]
    raw = np.zeros((h, 1 + pixels[0].size), dtype=np.uint8)
    raw[:, 1:] = pixels.reshape(h, -1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        sum32 = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", sum32)

    head = struct.pack(">IIBBBBB", w, h, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    body = zlib.compress(raw.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def palette(values: ArrayLike, low: float, high: float) -> NDArray[np.uint8]:
    """Return colours (..., 3) of values between two limits on the sequential scale."""
    span = high - low if high > low else 1.0
    place = np.clip((np.nan_to_num(np.asarray(values, dtype=float), nan=low) - low) / span, 0, 1)
    place = place * (len(SEQUENTIAL) - 1)
    channels = [np.interp(place, np.arange(len(SEQUENTIAL)), c) for c in SEQUENTIAL.T]
    return np.stack(channels, axis=-1).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Scale:
    """From data to the pixels of the drawing, for one axis."""

    low: float
    high: float
    start_px: float
    end_px: float
    log: bool = False

    def __call__(self, values: ArrayLike) -> Floats:
        """Return pixels; NaN stays NaN."""
        v = np.asarray(values, dtype=float)
        low, high = self.low, self.high
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                v = np.log10(np.where(v > 0, v, np.nan))
            low, high = np.log10(low), np.log10(high)
        return self.start_px + (v - low) / (high - low) * (self.end_px - self.start_px)


Drawing = Callable[[Scale, Scale], str]

# A mark as a path relative to its centre and back to it, in quarters of a pixel, of radius r.
MARKS: dict[str, Callable[[int], str]] = {
    "dot": lambda r: "h0",
    "o": lambda r: f"m{-r} 0a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0m{r} 0",
    "s": lambda r: f"m{-r} {-r}h{2 * r}v{2 * r}h{-2 * r}zm{r} {r}",
    "x": lambda r: f"m{-r} {-r}l{2 * r} {2 * r}m{-2 * r} 0l{2 * r} {-2 * r}m{-r} {r}",
    "+": lambda r: f"m{-r} 0h{2 * r}m{-r} {-r}v{2 * r}m0 {-r}",
}


def marks_path(x: Floats, y: Floats, mark: str, radius_px: float) -> str:
    """Return the path of marks at pixels; those that are not finite are left out."""
    good = np.isfinite(x) & np.isfinite(y)
    if not good.any():
        return ""
    columns = np.rint(np.stack([x[good], y[good]], axis=1) * FINE).astype(np.int64)
    steps = np.diff(columns, axis=0, prepend=np.zeros((1, 2), dtype=np.int64))
    shape = MARKS[mark](max(1, round(radius_px * FINE)))
    return "".join(f"m{a} {b}{shape}" for a, b in steps.tolist())


def lines_path(segments: ArrayLike) -> str:
    """Return the path of segments (n, 4): x and y of the start, dx and dy, in pixels."""
    table = np.asarray(segments, dtype=float).reshape(-1, 4)
    table = np.rint(table[np.isfinite(table).all(axis=1)] * FINE).astype(np.int64)
    return "".join(f"M{x} {y}l{u} {v}" for x, y, u, v in table.tolist())


@dataclass(slots=True)
class Panel:
    """One pair of axes and what is drawn on them.

    Attributes
    ----------
    title, xlabel, ylabel : str
    xlim, ylim : tuple of float, optional
        Limits; the first is at the left, or at the bottom. By default what is drawn, with a margin.
    equal : bool
        Whether a unit of x is as long as one of y.
    log_y : bool
    bare : bool
        Without axes: for text and pictures.
    """

    title: str = ""
    xlabel: str = ""
    ylabel: str = ""
    xlim: tuple[float, float] | None = None
    ylim: tuple[float, float] | None = None
    equal: bool = False
    log_y: bool = False
    bare: bool = False
    grid: bool = True
    legend_at: str = "right"
    xticks: Sequence[tuple[float, str]] | None = None
    yticks: Sequence[tuple[float, str]] | None = None
    drawings: list[Drawing] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    key: tuple[float, str] | None = None
    bar: tuple[float, float, str] | None = None
    extent: list[tuple[float, float, float, float]] = field(default_factory=list)

    # --- what is drawn --------------------------------------------------------------------------

    def points(
        self, x: ArrayLike, y: ArrayLike, *, color: str = BLUE, mark: str = "dot",
        size_px: float = 2.5, width_px: float = 1.0, opacity: float = 1.0, label: str = "",
    ) -> None:
        """Draw a mark at each point: a dot, or an outline ``o``, ``s``, ``x``, ``+``."""
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        self._reach(x, y)
        stroke = size_px if mark == "dot" else width_px
        style = (f'fill="none" stroke="{color}" stroke-width="{stroke * FINE:g}" '
                 f'stroke-linecap="round" opacity="{opacity:.2g}"')
        self.drawings.append(
            lambda sx, sy: _path(marks_path(sx(x), sy(y), mark, 0.5 * size_px), style)
        )
        self._label(label, _sample(mark, color, size_px, width_px))

    def line(
        self, x: ArrayLike, y: ArrayLike, *, color: str = INK, width_px: float = 1.2,
        dash: str = "", label: str = "", steps: bool = False,
    ) -> None:
        """Draw a line through points, or as steps about them."""
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        if steps and len(x) > 1:
            edges = np.concatenate([[1.5 * x[0] - 0.5 * x[1]], 0.5 * (x[1:] + x[:-1]),
                                    [1.5 * x[-1] - 0.5 * x[-2]]])
            x, y = np.repeat(edges, 2)[1:-1], np.repeat(y, 2)
        self._reach(x, y)
        style = _stroke(color, width_px, dash)

        def draw(sx: Scale, sy: Scale) -> str:
            place = np.stack([sx(x), sy(y)], axis=1) * FINE
            place = place[np.isfinite(place).all(axis=1)]
            if not len(place):
                return ""
            return _path("M" + "L".join(f"{a:.0f} {b:.0f}" for a, b in place.tolist()), style)

        self.drawings.append(draw)
        self._label(label, f'<path d="M0 0h64" {style}/>')

    def errorbars(
        self, x: ArrayLike, y: ArrayLike, error: ArrayLike, *, color: str = BLUE,
        mark: str = "o", label: str = "",
    ) -> None:
        """Draw marks with their standard errors."""
        x, y, error = (np.asarray(v, dtype=float) for v in (x, y, error))
        style = _stroke(color, 1.4)
        self.drawings.append(lambda sx, sy: _path(lines_path(np.stack(
            [sx(x), sy(y - error), 0.0 * x, sy(y + error) - sy(y - error)], axis=1)), style))
        self.points(x, y, color="var(--card)", size_px=7.0)
        self.points(x, y, color=color, mark=mark, size_px=5.0, width_px=1.6, label=label)

    def arrows(
        self, x: ArrayLike, y: ArrayLike, u: ArrayLike, v: ArrayLike, *, unit_px: float,
        color: str = BLUE, heads: bool = True, width_px: float = 1.1,
    ) -> None:
        """Draw arrows (u, v), u along x and v along y, `unit_px` pixels to a unit.

        Without `heads` they are sticks about their places.
        """
        x, y, u, v = (np.asarray(w, dtype=float) for w in (x, y, u, v))
        self._reach(x, y)
        style = _stroke(color, width_px)

        def draw(sx: Scale, sy: Scale) -> str:
            dx = u * unit_px * np.sign(sx.end_px - sx.start_px) * np.sign(sx.high - sx.low)
            dy = -v * unit_px
            px, py = sx(x), sy(y)
            if not heads:
                px, py = px - 0.5 * dx, py - 0.5 * dy
            segments = [np.stack([px, py, dx, dy], axis=1)]
            if heads:
                length = np.hypot(dx, dy)
                size = np.minimum(4.0, 0.45 * length) / np.maximum(length, 1e-9)
                for side in (0.42, -0.42):
                    segments.append(np.stack([
                        px + dx, py + dy, -size * (dx - side * dy), -size * (dy + side * dx),
                    ], axis=1))
            return _path(lines_path(np.concatenate(segments)), style)

        self.drawings.append(draw)

    def picture(self, pixels: ArrayLike, extent: tuple[float, float, float, float]) -> None:
        """Draw bytes, grey or RGB, the first row at the bottom, from left to right, bottom to top.

        Parameters
        ----------
        pixels : (h, w) or (h, w, 3) array of uint8
        extent : tuple
            Left, right, bottom and top in data coordinates.
        """
        content = base64.b64encode(png_of(np.asarray(pixels)[::-1])).decode()
        left, right, bottom, top = extent
        self.extent.append(extent)
        kind = ' class="sky"' if np.ndim(pixels) == 2 else ""

        def draw(sx: Scale, sy: Scale) -> str:
            x, y = sx([left, right]) * FINE, sy([top, bottom]) * FINE
            return (f'<image{kind} x="{x.min():.0f}" y="{y.min():.0f}" width="{np.ptp(x):.0f}" '
                    f'height="{np.ptp(y):.0f}" preserveAspectRatio="none" '
                    f'href="data:image/png;base64,{content}"/>')

        self.drawings.append(draw)

    def shades(
        self, values: ArrayLike, extent: tuple[float, float, float, float], unit: str
    ) -> None:
        """Draw an (h, w) array on the sequential scale of colours, with its bar."""
        table = np.asarray(values, dtype=float)
        low, high = float(np.nanmin(table)), float(np.nanmax(table))
        self.picture(palette(table, low, high), extent)
        self.bar = (low, high, unit)

    def bars(
        self, place: ArrayLike, size: ArrayLike, colors: Sequence[str], *, width: float = 0.65,
        across: bool = False,
    ) -> None:
        """Draw bars from zero, upright or `across`."""
        place, size = np.asarray(place, dtype=float), np.asarray(size, dtype=float)
        zero, half = 0.0 * size, 0.5 * width
        if across:
            self._reach(np.append(size, 0.0), np.append(place, place[:1]))
        else:
            self._reach(np.append(place, place[:1]), np.append(size, 0.0)[: len(size) + 1])

        def draw(sx: Scale, sy: Scale) -> str:
            if across:
                x0, x1, y0, y1 = sx(zero), sx(size), sy(place - half), sy(place + half)
            else:
                x0, x1, y0, y1 = sx(place - half), sx(place + half), sy(zero), sy(size)
            return "".join(
                f'<rect x="{min(a, b) * FINE:.0f}" y="{min(c, d) * FINE:.0f}" '
                f'width="{abs(b - a) * FINE:.0f}" height="{abs(d - c) * FINE:.0f}" fill="{color}"/>'
                for a, b, c, d, color in zip(x0, x1, y0, y1, colors)
                if np.isfinite([a, b, c, d]).all()
            )

        self.drawings.append(draw)

    def level(self, value: float, *, color: str = INK, dash: str = "", label: str = "",
              upright: bool = False) -> None:
        """Draw a line across the panel at a value of y, or `upright` at one of x."""
        style = _stroke(color, 1.0, dash)

        def draw(sx: Scale, sy: Scale) -> str:
            if upright:
                x = float(sx(value)) * FINE
                return _path(f"M{x:.0f} {sy.start_px * FINE:.0f}V{sy.end_px * FINE:.0f}", style)
            y = float(sy(value)) * FINE
            return _path(f"M{sx.start_px * FINE:.0f} {y:.0f}H{sx.end_px * FINE:.0f}", style)

        self.drawings.append(draw)
        self._label(label, f'<path d="M0 0h64" {style}/>')

    def band(self, low: float, high: float, color: str = GREEN) -> None:
        """Shade the panel between two values of y."""
        def draw(sx: Scale, sy: Scale) -> str:
            y = sorted(float(v) * FINE for v in sy([low, high]))
            width = abs(sx.end_px - sx.start_px) * FINE
            return (f'<rect x="{min(sx.start_px, sx.end_px) * FINE:.0f}" y="{y[0]:.0f}" '
                    f'width="{width:.0f}" height="{y[1] - y[0]:.0f}" fill="{color}" opacity=".2"/>')

        self.drawings.append(draw)

    def ellipse(self, rx: float, ry: float, dash: str = "") -> None:
        """Draw an ellipse about the origin."""
        style = _stroke(INK, 1.0, dash)

        def draw(sx: Scale, sy: Scale) -> str:
            x, y = float(sx(0.0)) * FINE, float(sy(0.0)) * FINE
            a, b = abs(float(sx(rx)) * FINE - x), abs(float(sy(ry)) * FINE - y)
            return f'<ellipse cx="{x:.0f}" cy="{y:.0f}" rx="{a:.0f}" ry="{b:.0f}" {style}/>'

        self.drawings.append(draw)

    def note(self, x: float, y: float, text: str, *, dx: float = 0.0, dy: float = 0.0,
             anchor: str = "middle") -> None:
        """Write a text at a point, moved by pixels."""
        self.drawings.append(lambda sx, sy: _text(
            float(sx(x)) + dx, float(sy(y)) + dy, text, anchor=anchor, kind="small"
        ))

    def lines_of_text(self, lines: Sequence[str]) -> None:
        """Write lines from the top of the panel."""
        self.bare = True
        self.drawings.append(lambda sx, sy: "".join(
            _text(sx.start_px, sy.end_px + 12.0 + 15.0 * k, line, anchor="start", kind="small")
            for k, line in enumerate(lines)
        ))

    # --- drawing --------------------------------------------------------------------------------

    def _label(self, label: str, sample: str) -> None:
        if label:
            self.legend.append((label, sample))

    def _reach(self, x: Floats, y: Floats) -> None:
        x, y = x[np.isfinite(x)], y[np.isfinite(y)]
        if len(x) and len(y):
            self.extent.append((float(x.min()), float(x.max()), float(y.min()), float(y.max())))

    def _limits(self, axis: int) -> tuple[float, float]:
        given = (self.xlim, self.ylim)[axis]
        if given is not None:
            return given
        ends = [e[2 * axis:2 * axis + 2] for e in self.extent] or [(0.0, 1.0)]
        low, high = min(min(e) for e in ends), max(max(e) for e in ends)
        if axis == 1 and self.log_y:
            low = low if low > 0 else max(high, 1.0) * 1e-3
            return low / 1.3, max(high, low) * 1.4
        margin = 0.05 * (high - low) or max(0.5, 0.05 * abs(high))
        return low - margin, high + margin

    def render(self, box: tuple[float, float, float, float], number: str) -> str:
        """Return the panel as SVG in a box: left, top, width and height in pixels."""
        left, top, width, height = box
        (x0, x1), (y0, y1) = self._limits(0), self._limits(1)
        if self.bar is not None:
            width -= 46.0
        if self.equal:
            scale = min(width / abs(x1 - x0), height / abs(y1 - y0))
            fit_w, fit_h = scale * abs(x1 - x0), scale * abs(y1 - y0)
            left, top = left + 0.5 * (width - fit_w), top + 0.5 * (height - fit_h)
            width, height = fit_w, fit_h
        sx, sy = Scale(x0, x1, left, left + width), Scale(y0, y1, top + height, top, self.log_y)
        parts = [] if self.bare else [self._axes(sx, sy)]
        parts.append(
            f'<clipPath id="{number}"><rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}"/></clipPath>'
        )
        inside = "".join(draw(sx, sy) for draw in self.drawings)
        clip = "" if self.bare else f' clip-path="url(#{number})"'
        parts.append(f'<g{clip}><g transform="scale({1 / FINE})">{inside}</g></g>')
        if not self.bare:
            parts.append(f'<path class="axis" d="M{left:.1f} {top:.1f}V{top + height:.1f}'
                         f'H{left + width:.1f}"/>')
        parts.append(_text(left, top - 8.0, self.title, anchor="start", kind="title", fine=1))
        parts.append(self._legend(left, top, width, height))
        if self.key is not None:
            length, text = self.key
            parts.append(_key(left + width, top + height + 30.0, length, text))
        if self.bar is not None:
            parts.append(_bar(left + width + 10.0, top, height, self.bar))
        return "".join(parts)

    def _axes(self, sx: Scale, sy: Scale) -> str:
        x_ticks, y_ticks = self.xticks, self.yticks
        if x_ticks is None:
            most = max(2, int(abs(sx.end_px - sx.start_px) / 52.0))
            x_ticks = [(v, f"{v:g}") for v in ticks(sx.low, sx.high, most)]
        if y_ticks is None:
            most = max(2, int(abs(sy.end_px - sy.start_px) / 26.0))
            found = log_ticks(sy.low, sy.high) if self.log_y else ticks(sy.low, sy.high, most)
            y_ticks = [(v, f"{v:g}") for v in found]
        left, bottom = min(sx.start_px, sx.end_px), max(sy.start_px, sy.end_px)
        right, top = max(sx.start_px, sx.end_px), min(sy.start_px, sy.end_px)
        lines, texts = [], []
        for value, label in x_ticks:
            x = float(sx(value))
            lines.append(f"M{x:.1f} {bottom:.1f}V{top:.1f}")
            texts.append(_text(x, bottom + 14.0, label.replace("-", "−"), fine=1))
        for value, label in y_ticks:
            y = float(sy(value))
            lines.append(f"M{left:.1f} {y:.1f}H{right:.1f}")
            texts.append(_text(left - 5.0, y + 3.5, label.replace("-", "−"), anchor="end", fine=1))
        grid = f'<path class="grid" d="{"".join(lines)}"/>' if self.grid else ""
        texts.append(_text(0.5 * (left + right), bottom + 29.0, self.xlabel, kind="label", fine=1))
        if self.ylabel:
            texts.append(_text(left - 40.0, 0.5 * (top + bottom), self.ylabel, kind="label", fine=1,
                               turned=True))
        return grid + "".join(texts)

    def _legend(self, left: float, top: float, width: float, height: float) -> str:
        if not self.legend:
            return ""
        out, across = [], 0.0
        for k, (label, sample) in enumerate(self.legend):
            if self.legend_at == "below":
                per_row = max(1, int((width + 40.0) // 150.0))
                x = left - 30.0 + 150.0 * (k % per_row)
                y = top + height + 46.0 + 15.0 * (k // per_row)
            else:
                wide = 26.0 + 6.2 * len(label)
                x = left + 6.0 + across if self.legend_at == "left" else (
                    left + width - wide)
                y = top + 10.0 + 15.0 * k
            out.append(f'<g transform="translate({x:.0f} {y:.0f})"><g transform="scale({1 / FINE})'
                       f'">{sample}</g></g>' + _text(x + 21.0, y + 3.5, label, anchor="start",
                                                     kind="small", fine=1))
        return "".join(out)


@dataclass(frozen=True, slots=True)
class Diagram:
    """Panels side by side as one SVG.

    Attributes
    ----------
    panels : tuple of Panel
    width, height : float
        Of the whole, in pixels.
    margins : tuple of float
        Left, right, bottom and top, about the panels.
    gap : float
        Between panels.
    """

    panels: tuple[Panel, ...]
    width: float
    height: float
    margins: tuple[float, float, float, float] = (58.0, 14.0, 44.0, 26.0)
    gap: float = 62.0

    def to_svg(self, name: str, text: str) -> str:
        """Return the SVG; `name` makes its parts unique in a page, `text` says what it shows."""
        left, right, bottom, top = self.margins
        n = max(len(self.panels), 1)
        wide = (self.width - left - right - (n - 1) * self.gap) / n
        high = self.height - top - bottom
        drawn = "".join(
            panel.render((left + k * (wide + self.gap), top, wide, high), f"{name}-{k}")
            for k, panel in enumerate(self.panels)
        )
        return (
            f'<svg class="plot" viewBox="0 0 {self.width:g} {self.height:g}" role="img" '
            f'aria-label="{html.escape(text)}">{drawn}</svg>'
        )


# --- pieces ---------------------------------------------------------------------------------------


def _stroke(color: str, width_px: float, dash: str = "") -> str:
    dashes = " ".join(f"{float(d) * FINE:g}" for d in dash.split()) if dash else ""
    return f'fill="none" stroke="{color}" stroke-width="{width_px * FINE:g}"' + (
        f' stroke-dasharray="{dashes}"' if dashes else "")


def _path(d: str, style: str) -> str:
    return f'<path d="{d}" {style}/>' if d else ""


def _text(
    x: float, y: float, text: str, *, anchor: str = "middle", kind: str = "tick", fine: int = FINE,
    turned: bool = False,
) -> str:
    if not text or not np.isfinite([x, y]).all():
        return ""
    turn = f' transform="rotate(-90 {x * fine:.1f} {y * fine:.1f})"' if turned else ""
    grown = f' style="font-size:{11 * fine}px"' if fine != 1 else ""
    return (f'<text class="{kind}" x="{x * fine:.1f}" y="{y * fine:.1f}" text-anchor="{anchor}"'
            f'{turn}{grown}>{html.escape(text)}</text>')


def _sample(mark: str, color: str, size_px: float, width_px: float) -> str:
    """Return a mark as it stands in a legend, in quarters of a pixel."""
    stroke = max(size_px, 4.0) if mark == "dot" else width_px
    path = "m32 0" + MARKS[mark](max(1, round(0.5 * max(size_px, 5.0) * FINE)))
    return (f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{stroke * FINE:g}" '
            'stroke-linecap="round"/>')


def _key(right: float, y: float, length: float, text: str) -> str:
    """Return an arrow of known length, under the panel at its right end."""
    segments = [(right - length, y, length, 0.0), (right, y, -4.0, -1.8), (right, y, -4.0, 1.8)]
    return (f'<g transform="scale({1 / FINE})">' + _path(lines_path(segments), _stroke(INK, 1.1))
            + "</g>" + _text(right - length - 6.0, y + 3.5, text, anchor="end", fine=1))


def _bar(left: float, top: float, height: float, bar: tuple[float, float, str]) -> str:
    """Return the bar of a scale of colours with its ends and its unit."""
    low, high, unit = bar
    content = base64.b64encode(png_of(palette(np.linspace(1, 0, 64)[:, None], 0, 1))).decode()
    return (
        f'<image x="{left:.0f}" y="{top:.0f}" width="9" height="{height:.0f}" '
        f'preserveAspectRatio="none" href="data:image/png;base64,{content}"/>'
        + "".join(
            _text(left + 12.0, y, label, anchor="start", fine=1)
            for y, label in ((top + 8.0, f"{high:.3g}"), (top + height, f"{low:.3g}"),
                             (top + 0.5 * height + 4.0, unit))
        )
    )

