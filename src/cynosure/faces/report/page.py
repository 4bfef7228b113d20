"""The report of a run: one HTML file that needs no network and no other file.

It is made from what the run wrote: ``run.json``, and for each image ``NAME.solution.json``,
``NAME.matches.parquet`` and the arrays of :mod:`cynosure.pipelines.evidence`. Its size is kept
below a limit: images that did not solve, and then the worst, have their figures drawn first.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.tables import MATCHES, arrow_array, read_parquet
from cynosure.faces.report import figures
from cynosure.faces.report.svg import Diagram, Panel
from cynosure.ground.errors import CatalogMissing
from cynosure.ground.files import write_text
from cynosure.pipelines.evidence import ENDING, Evidence, columns, read_evidence
from cynosure.pipelines.manifest import Manifest, Row, tally
from cynosure.solutions.solution import Solution

__all__ = ["write_report"]

# Bytes of a page; one of this size opens at once and can be mailed (5 MB is a usual limit).
MAX_BYTES = 4_600_000
# Sign and colour class of a verdict; the word itself is always there too.
SIGNS = {"solved": "✓", "compromised": "!", "failed": "✗", "pending": "…"}
WORST_FIRST = ("failed", "compromised", "solved", "pending")


@dataclass(frozen=True, slots=True)
class Picture:
    """One drawn figure of the page.

    Attributes
    ----------
    title, text : str
        What it shows; its alternative text.
    svg : str
        The drawing.
    data : tuple of str
        Keys of the tables behind it, in :attr:`Card.tables`.
    wide : bool
        Whether it takes the whole width.
    """

    title: str
    text: str
    svg: str
    data: tuple[str, ...]
    wide: bool = False


@dataclass(slots=True)
class Card:
    """One image of the page."""

    stem: str
    solution: Solution
    matches: NDArray[np.void] = field(default_factory=MATCHES.empty)
    evidence: Evidence = field(default_factory=Evidence)
    pictures: list[Picture] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    drawn: bool = False

    @property
    def sign(self) -> str:
        """The verdict's sign."""
        return SIGNS.get(self.solution.status, "?")

    @property
    def sparkline(self) -> str:
        """The residuals over the frame as a small SVG."""
        return _small_quiver(self.matches)


def write_report(
    run: str | Path, path: str | Path | None = None, *, names: Sequence[str] = (),
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Write the report of the run in a folder.

    Parameters
    ----------
    run : str or Path
        The folder of the run.
    path : str or Path, optional
        The file to write; by default ``report.html`` in that folder.
    names : sequence of str
        Only these images (file names or stems); by default all.
    max_bytes : int
        No more figures are drawn when the page has grown to this size.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    CatalogMissing
        If the folder holds no run, or no image of those names.
    OutputError
        If the file cannot be written.
    """
    folder = Path(run)
    manifest = Manifest.read(folder)
    rows = {s: r for s, r in manifest.rows.items() if _is_named(s, r, names)}
    if not rows:
        raise CatalogMissing(
            catalog=str(folder), reason="no run of cynosure solve, or no such image in it",
            hint="Give the --out folder of a solve.",
        )
    cards = [_read_card(folder, stem, row) for stem, row in rows.items()]
    size = 60_000
    for card in sorted(cards, key=_urgency):
        if size < max_bytes or names:
            size += _draw_card(card)
    target = folder / "report.html" if path is None else Path(path)
    write_text(target, render_page(manifest, cards), overwrite=True)
    return target


def _is_named(stem: str, row: Row, names: Sequence[str]) -> bool:
    return not names or stem in names or row.image in names or Path(row.image).name in names


def _read_card(folder: Path, stem: str, row: Row) -> Card:
    """Read what the run wrote of an image; what is missing stays empty."""
    record = folder / f"{stem}.solution.json"
    if record.exists():
        solution = Solution.from_json(record.read_text(encoding="utf-8"), str(record))
    else:
        solution = Solution(
            row.image, status=row.status, reason=row.reason, quality=row.quality,
            exit_code=row.exit_code,
        )
    card = Card(stem, solution, evidence=read_evidence(folder / f"{stem}{ENDING}"))
    matches = folder / f"{stem}.matches.parquet"
    if matches.exists():
        card.matches = read_parquet(matches, MATCHES)
    return card


def _urgency(card: Card) -> tuple[int, float]:
    rms = card.solution.rms_mas
    return WORST_FIRST.index(card.solution.status), -rms if math.isfinite(rms) else 0.0


def render_page(manifest: Manifest, cards: Sequence[Card]) -> str:
    """Return the page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cynosure", "templates"), autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    counts = tally(card.solution.status for card in cards)
    return environment.get_template("report.html.j2").render(
        cards=cards, counts={k: v for k, v in counts.items() if v}, signs=SIGNS,
        manifest=manifest, facts=manifest.facts, settings=_settings(manifest, cards),
        steps=_steps(cards), total=sum(card.solution.seconds.get("total", 0.0) for card in cards),
        notes=_notes(cards), software=cards[0].solution.software if cards else "",
        omitted=[card.stem for card in cards if not card.drawn],
    )


def _number(value: float, digits: int = 3) -> str:
    """Return a number for a table; an unknown one is a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0.0 < abs(value) < 1e-3:
        return "<0.001"
    return f"{value:.{digits}g}" if abs(value) < 10.0**digits else f"{value:.0f}"


def _settings(manifest: Manifest, cards: Iterable[Card]) -> list[tuple[str, str, str, str]]:
    """Return section, name, value and origin of every setting."""
    changed = manifest.facts.get("settings", {})
    resolved = next((c.solution.settings for c in cards if c.solution.settings), {})
    lines = []
    for section in sorted({*resolved, *changed}):
        given = changed.get(section, {})
        for name in sorted({*resolved.get(section, {}), *given}):
            own = given.get(name)
            value = own["value"] if own else resolved[section][name]
            lines.append((section, name, json.dumps(value), own["origin"] if own else "built-in"))
    return lines


def _steps(cards: Sequence[Card]) -> list[tuple[str, float]]:
    """Return the seconds of every step, summed over the images."""
    total: dict[str, float] = {}
    for card in cards:
        for step, seconds in card.solution.seconds.items():
            if step != "total":
                total[step] = total.get(step, 0.0) + float(seconds)
    return list(total.items())


def _notes(cards: Sequence[Card]) -> list[tuple[str, str]]:
    """Return the notes of the images; one that several share is said once."""
    found: dict[str, list[str]] = {}
    for card in cards:
        for note in card.solution.notes:
            found.setdefault(note, []).append(card.stem)
    return [(note, ", ".join(stems[:6]) + (" …" if len(stems) > 6 else ""))
            for note, stems in found.items()]


# --- the figures of an image ----------------------------------------------------------------------


def _draw_card(card: Card) -> int:
    """Draw the figures of an image that there is something to draw for; return their bytes."""
    for group in GROUPS:
        if group.needs(card):
            card.pictures.append(_draw(group, card))
    for key in {key for picture in card.pictures for key in picture.data}:
        card.tables[key] = _packed(_table(card, key))
    card.drawn = True
    pictures = sum(len(picture.svg) for picture in card.pictures)
    return pictures + sum(map(len, card.tables.values()))


@dataclass(frozen=True, slots=True)
class Group:
    """Panels that are drawn as one figure, alike in size.

    Attributes
    ----------
    title, text : str
        What it shows.
    size : tuple of float
        Width and height in pixels; a height of 0 follows the shape of the frame.
    margins : tuple of float
        Left, right, bottom and top in pixels.
    data : tuple of str
        The tables behind it.
    needs : callable
        Whether a card has something to draw.
    draw : callable
        Returns the panels of a card.
    """

    title: str
    text: str
    size: tuple[float, float]
    margins: tuple[float, float, float, float]
    data: tuple[str, ...]
    needs: Callable[[Card], bool]
    draw: Callable[[Card], list[Panel]]


def _draw(group: Group, card: Card) -> Picture:
    width, height = group.size
    left, right, bottom, top = group.margins
    if height == 0.0:
        height = bottom + top + (width - left - right) * min(max(_aspect(card), 0.4), 1.25)
    panels = group.draw(card)
    panels[0].title = f"{card.solution.status.upper()} · {panels[0].title}"
    name = f"{group.title.lower()}-{zlib.crc32(card.stem.encode()):08x}"
    diagram = Diagram(tuple(panels), width, height, group.margins)
    svg = diagram.to_svg(name, f"{group.title}: {group.text}; {_in_numbers(card)}")
    known = tuple(key for key in group.data if _has_table(card, key))
    return Picture(group.title, group.text, svg, known, width > WIDE[0] - 1.0)


def _in_numbers(card: Card) -> str:
    """Say the numbers of an image for those who do not see its figures."""
    s = card.solution
    if not s.n_used:
        return s.status
    return (f"{s.n_used} stars used, rms {_number(s.rms_ra_mas)} mas in ra and "
            f"{_number(s.rms_dec_mas)} mas in dec, chi²/dof {_number(s.chi2_dof)}")


def _aspect(card: Card) -> float:
    """Return the height of the first chip over its width."""
    ny, nx = _shape(card)
    return ny / max(nx, 1)


def _shape(card: Card) -> tuple[int, int]:
    """Return rows and columns of the first chip."""
    shape = card.evidence.extras.get("shape")
    if shape is None and card.solution.chips:
        shape = card.solution.chips[0].get("shape")
    if shape is None:
        shape = np.shape(card.evidence.extras.get("thumbnail", np.zeros((1, 1))))
    ny, nx = shape
    return int(ny), int(nx)


def _stars(card: Card) -> list[Panel]:
    return [figures.plot_image(
        card.evidence.extras["thumbnail"], _shape(card), card.evidence.sources, card.matches,
        _values(card, "reference"),
    )]


def _quiver(card: Card) -> list[Panel]:
    return [figures.plot_quiver(card.matches)]


def _scatter(card: Card) -> list[Panel]:
    return [figures.plot_scatter(card.matches), figures.plot_pulls(card.matches)]


def _errors(card: Card) -> list[Panel]:
    return [figures.plot_error_model(card.matches), figures.plot_chi2(card.matches)]


def _against(card: Card) -> list[Panel]:
    columns = ["ref_mag", "ref_color", "x", "y"]
    if not np.isfinite(card.matches["ref_color"]).any():
        columns[1] = "snr"
    return [figures.plot_residuals_against(card.matches, column) for column in columns]


def _model(card: Card) -> list[Panel]:
    draw = {"distortion": figures.plot_distortion, "wcs_error": figures.plot_wcs_error}
    return [
        function(_values(card, name)) if _has_table(card, name) else Panel(bare=True)
        for name, function in draw.items()
    ]


def _fit(card: Card) -> list[Panel]:
    ledger = card.evidence.extras.get("ledger", [])
    last = ledger[-1] if len(ledger) else {}
    chosen = str(last.get("geometry", last.get("form", ""))) if isinstance(last, dict) else ""
    return [figures.plot_scores(card.evidence.extras.get("scores", {}), chosen),
            figures.plot_ledger(_values(card, "ledger"))]


def _match(card: Card) -> list[Panel]:
    needed = next((c["limit"] for c in card.solution.checks if c["name"] == "odds"), math.nan)
    extras = card.evidence.extras
    if "offsets" in extras and "offsets_range" in extras:
        right = figures.plot_offsets(extras["offsets"], extras["offsets_range"])
    else:
        right = figures.write_lines(extras.get("evidence", {}).get("tried", ()), "What was tried")
    return [figures.plot_hypotheses(_values(card, "hypotheses"), needed), right]


def _psf(card: Card) -> list[Panel]:
    stamps = card.evidence.extras.get("psf_stamps")
    if stamps is not None and np.size(stamps):
        left = figures.plot_psf_stamps(stamps)
    else:
        left = figures.plot_profile(card.evidence.sources)
    return [left, figures.plot_psf_map(_values(card, "psf"))]


def _with(name: str) -> Callable[[Card], bool]:
    return lambda card: _has_table(card, name)


def _with_matches(card: Card) -> bool:
    return bool(card.matches["used"].any())


HALF, TALL, WIDE = (610.0, 300.0), (610.0, 0.0), (1230.0, 280.0)
PAIR, SQUARE = (60.0, 14.0, 46.0, 28.0), (60.0, 14.0, 92.0, 28.0)
GROUPS = (
    Group("Stars", "detections on the image and what became of the reference stars", TALL,
          SQUARE, ("matches", "sources", "reference"), _with("thumbnail"), _stars),
    Group("Residuals", "of the well-measured half, from reference to source", TALL,
          SQUARE, ("matches",), _with_matches, _quiver),
    Group("Distribution", "residuals with 1 and 3 sigma, and in units of their errors", HALF,
          PAIR, ("matches",), _with_matches, _scatter),
    Group("Errors", "size of the residuals, and chi² per bin of magnitude", HALF,
          PAIR, ("matches",), _with_matches, _errors),
    Group("Trends", "residuals against magnitude, colour, x and y, with the medians of bins", WIDE,
          PAIR, ("matches",), _with_matches, _against),
    Group("Model", "distortion, and the predicted error of the WCS itself", HALF,
          PAIR, ("distortion", "wcs_error"), _with("distortion"), _model),
    Group("Fit", "the geometry that was chosen, and the rounds of clipping", HALF,
          PAIR, ("ledger",), _with("ledger"), _fit),
    Group("Match", "the best hypotheses against what was needed", HALF,
          PAIR, ("hypotheses",), _with("hypotheses"), _match),
    Group("PSF", "the point-spread function over the frame", HALF,
          PAIR, ("psf",), _with("psf"), _psf),
)

# --- the tables behind the figures ----------------------------------------------------------------

COLUMNS = {
    "reference": ("x", "y", "mag"),
    "distortion": ("x", "y", "dx_px", "dy_px"),
    "wcs_error": ("x", "y", "sigma_mas"),
    "psf": ("x", "y", "fwhm_px", "ellipticity", "theta_deg"),
    "ledger": ("round", "n_used", "rms_mas", "sigma0_mas"),
    "hypotheses": ("log_odds", "n_pairs", "scale_arcsec", "rotation_deg", "parity"),
}
SOURCE_COLUMNS = ("chip", "x", "y", "snr", "flags")


def _has_table(card: Card, key: str) -> bool:
    if key == "matches":
        return len(card.matches) > 0
    if key == "sources":
        return len(card.evidence.sources) > 0
    if key == "thumbnail":
        return np.size(card.evidence.extras.get(key, ())) > 1
    return len(_values(card, key)) > 0


def _values(card: Card, key: str) -> NDArray[np.float64]:
    """Return one of :data:`COLUMNS` as array; no rows where there is none."""
    if key == "hypotheses" and key not in card.evidence.extras:
        return _two_hypotheses(card)
    return columns(card.evidence.extras.get(key, ()), COLUMNS[key])


def _two_hypotheses(card: Card) -> NDArray[np.float64]:
    """Return the accepted hypothesis and the next best, as far as they are known."""
    s = card.solution
    if not math.isfinite(s.log_odds):
        return np.zeros((0, 5))
    first = [s.log_odds, s.n_matched, s.scale_arcsec, s.rotation_deg, s.parity]
    second = card.evidence.extras.get("evidence", {}).get("second_log_odds")
    rows = [first] if second is None else [first, [float(second), *[math.nan] * 4]]
    return np.array(rows, dtype=float)


def _table(card: Card, key: str) -> bytes:
    """Return a table as CSV."""
    if key == "matches":
        units = {c.name: c.unit for c in MATCHES.columns}
        return _csv({
            n: _rounded(card.matches[n], 9 if units[n] == "deg" else None) for n in MATCHES.names
        })
    if key == "sources":
        return _csv({n: _rounded(card.evidence.sources[n]) for n in SOURCE_COLUMNS})
    return _csv({n: _rounded(v) for n, v in zip(COLUMNS[key], _values(card, key).T)})


def _csv(table: dict[str, NDArray[Any]]) -> bytes:
    import io

    import pyarrow as pa
    from pyarrow import csv

    stream = io.BytesIO()
    arrays = [arrow_array(np.ascontiguousarray(v)) for v in table.values()]
    rows = pa.Table.from_arrays(arrays, names=list(table))
    csv.write_csv(rows, stream, csv.WriteOptions(quoting_style="none"))
    return stream.getvalue().replace(b'"', b"")  # the names of the columns are quoted anyway


def _rounded(values: NDArray[Any], decimals: int | None = None) -> NDArray[Any]:
    """Return a column to so many decimals, or to six digits; truth values are 0 and 1."""
    if values.dtype.kind != "f":
        return np.ascontiguousarray(values, dtype=np.int64)
    values = np.asarray(values, dtype=np.float64)
    if decimals is not None:
        return np.round(values, decimals)
    with np.errstate(divide="ignore", invalid="ignore"):
        power = np.floor(np.log10(np.abs(values)))
    # Both powers are whole numbers that a float holds exactly, so that the quotient is the nearest
    # float to the decimal number, and prints as it.
    shift = np.clip(5.0 - np.where(np.isfinite(power), power, 0.0), -300, 300)
    up, down = 10.0 ** np.maximum(shift, 0.0), 10.0 ** np.maximum(-shift, 0.0)
    return np.rint(values * up / down) / up * down


def _packed(content: bytes) -> str:
    # The least effort: what is saved beyond it is little, and takes five times as long.
    return base64.b64encode(gzip.compress(content, compresslevel=1, mtime=0)).decode()


# --- small multiples ------------------------------------------------------------------------------


def _small_quiver(matches: NDArray[np.void], width: int = 96, height: int = 64) -> str:
    """Return the residuals of at most 80 stars as a small SVG: the shape of what is wrong."""
    kept = figures.well_measured(matches[matches["used"] | matches["reserved"]])
    if not len(kept):
        return ""
    kept = kept[:: -(-len(kept) // 80)]
    x, y = kept["x"], kept["y"]
    span = max(float(np.ptp(x)), float(np.ptp(y)) * width / height, 1.0)
    size = np.hypot(kept["dra_mas"], kept["ddec_mas"])
    reach = 7.0 / max(float(np.median(size)), 1e-9)
    px = 4 + (x - x.min()) / span * (width - 8)
    py = height - 4 - (y - y.min()) / span * (width - 8)
    u, v = kept["dra_mas"] * reach, kept["ddec_mas"] * reach
    shrink = np.minimum(1.0, 18.0 / np.maximum(size * reach, 1e-9))
    path = "".join(
        f"M{a:.1f} {b:.1f}l{-c:.1f} {-d:.1f}" for a, b, c, d in zip(px, py, u * shrink, v * shrink)
    )
    return (
        f'<svg class="quiver" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{html.escape("residuals over the frame")}">'
        f'<path d="{path}"/></svg>'
    )
