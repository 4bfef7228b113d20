"""What figures are drawn on: their style and colours, and the pictures made of them.

The colours are those of Okabe & Ito (2008), which people of all kinds of colour vision can tell
apart. Nothing here goes through pyplot, which has a global state and is slow to import.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "RED", "axes_or_new", "few_rows", "height_pt",
    "log_scale", "new_figure", "place_labels", "round_number", "scale_arrow", "show_limit",
    "style", "to_png",
]

BLUE, ORANGE, RED, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
PURPLE, GREY = "#CC79A7", "#777777"

STYLE: Any = {
    "font.size": 8.0, "axes.titlesize": 9.0, "axes.titlelocation": "left", "axes.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "grid.linewidth": 0.5, "legend.frameon": False, "legend.fontsize": 7.5,
    "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "text.parse_math": False,
    # With a place given, matplotlib need not measure every label to find one for the title.
    "axes.titley": 1.0,
}
# Points beyond this number only make a figure slow and black.
MAX_POINTS = 8000


def new_figure(
    width_in: float, height_in: float, dpi: float = 100.0, layout: Any = "constrained"
) -> Figure:
    """Return an empty figure of its own, apart from pyplot and its global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=dpi, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure, n_colors: int = 64) -> bytes:
    """Return a figure as PNG with few colours: a fifth of the bytes, and nothing one would miss."""
    from PIL import Image

    canvas: Any = figure.canvas
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    stream = io.BytesIO()
    image.quantize(n_colors, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        stream, "PNG"
    )
    return stream.getvalue()


def place_labels(figure: Figure) -> None:
    """Put the labels of all axes at a fixed distance and thin their ticks.

    To find a place by itself matplotlib measures every tick label twice; that is a third of the
    time of a small figure.
    """
    from matplotlib.ticker import MaxNLocator

    to_pt = 72.0 / figure.dpi
    for ax in figure.axes:
        if not ax.get_title("left"):
            continue  # a colour bar
        box = ax.get_window_extent()
        ax.xaxis.set_label_coords(0.5, -24.0 / (box.height * to_pt))
        ax.yaxis.set_label_coords(-31.0 / (box.width * to_pt), 0.5)
        for axis in (ax.xaxis, ax.yaxis):
            locator = axis.get_major_locator()
            if isinstance(locator, MaxNLocator):
                locator.set_params(nbins=4 if box.width * to_pt < 200.0 else 8)


def axes_or_new(ax: Axes | None, width_in: float = 5.0, height_in: float = 4.0) -> Axes:
    """Return the axes that were given, or those of a new figure."""
    if ax is not None:
        return ax
    with style():
        return new_figure(width_in, height_in).subplots()


def style() -> Any:
    """Return the context in which the figures look as they should."""
    import matplotlib as mpl

    return mpl.rc_context(STYLE)


def few_rows(mask: NDArray[np.bool_], most: int = MAX_POINTS) -> NDArray[np.int64]:
    """Return rows of a mask, evenly thinned to at most so many."""
    rows = np.flatnonzero(mask)
    return rows[:: max(1, -(-len(rows) // most))]


def log_scale(ax: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers: powers of ten are slow to typeset."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    subs = (1.0, 2.0, 5.0) if high < 300.0 * low else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(10.0, subs=subs, numticks=8))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def show_limit(values: ArrayLike, share: float = 0.99) -> float:
    """Return a limit that shows most of the values: outliers must not flatten a figure."""
    size = np.abs(np.asarray(values, dtype=float))
    size = size[np.isfinite(size)]
    return 1.3 * float(np.quantile(size, share)) if size.size and size.max() > 0 else 1.0


def height_pt(ax: Axes) -> float:
    """Return the height of the axes in points, with its aspect applied."""
    ax.apply_aspect()
    return float(ax.get_window_extent().height) * 72.0 / ax.figure.dpi


def scale_arrow(ax: Axes, arrows: Any, length: float, unit: str) -> None:
    """Put an arrow of known length under the axes, at their right end."""
    ax.quiverkey(arrows, 0.9, -30.0 / height_pt(ax), length, f"{length:g} {unit}", labelpos="W",
                 coordinates="axes", labelsep=0.05)


def round_number(value: float) -> float:
    """Return the number 1, 2 or 5 times a power of ten that is nearest."""
    if not np.isfinite(value) or value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(min((1.0, 2.0, 5.0, 10.0), key=lambda m: abs(np.log(m * power / value))) * power)
