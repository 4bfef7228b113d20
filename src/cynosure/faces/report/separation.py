"""Drawing how far two solutions are apart over the chips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cynosure.ground.errors import SettingError

if TYPE_CHECKING:
    from cynosure.solutions.files.compare import Separation

__all__ = ["FLOOR_MAS", "draw_separations", "top_of_scale"]

# The colour scale never ends below this: the last digits of the numbers in a header are worth some
# 1e-5 mas, and would be drawn as structure. The thousandth of the best fit of a star.
FLOOR_MAS = 1e-3


def top_of_scale(maps: list[Separation]) -> float:
    """Return the separation at the end of the colour scale, mas: the largest, or the floor."""
    largest = [float(np.nanmax(m.sep_mas)) for m in maps if np.isfinite(m.sep_mas).any()]
    return max([FLOOR_MAS, *largest])


def draw_separations(
    path: Path, maps: list[Separation], title: str, *, overwrite: bool = False
) -> None:
    """Draw the separation over each chip: its size in colour, its direction as arrows.

    All chips have one scale from zero. East is to the left, as on the sky and in the report.

    Raises
    ------
    SettingError
        If the file is no PNG, PDF or SVG.
    OutputExists, OutputError
    """
    from matplotlib.figure import Figure

    from cynosure.ground.files import atomic_path

    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise SettingError("{path}: a picture is PNG, PDF or SVG", path=str(path))
    figure = Figure(figsize=(7.0, 0.8 + 3.2 * len(maps)), layout="constrained")
    figure.suptitle(title, fontsize=9)
    top = top_of_scale(maps)
    for number, one in enumerate(maps, start=1):
        axes = figure.add_subplot(len(maps), 1, number)
        _draw_chip(figure, axes, one, top)
    with atomic_path(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=120)


def _draw_chip(figure: Any, axes: Any, one: Separation, top: float) -> None:
    image = axes.pcolormesh(
        one.x, one.y, one.sep_mas, shading="nearest", cmap="viridis", vmin=0.0, vmax=top
    )
    largest = np.nanmax(one.sep_mas) if np.isfinite(one.sep_mas).any() else 0.0
    if largest >= FLOOR_MAS:
        step = max(1, max(one.x.shape) // 11)
        cut = (slice(step // 2, None, step), slice(step // 2, None, step))
        axes.quiver(one.x[cut], one.y[cut], -one.dra_mas[cut], one.ddec_mas[cut],
                    color="white", width=0.003)
        arrows = "arrows: east to the left, north up"
    else:
        arrows = f"all below {FLOOR_MAS:g} mas, where the scale ends"
    axes.set_aspect("equal")
    axes.set_title(f"{one.target[0]},{one.target[1]}  {arrows}", fontsize=8)
    axes.set_xlabel("x [px]")
    axes.set_ylabel("y [px]")
    figure.colorbar(image, ax=axes, label="separation [mas]")
