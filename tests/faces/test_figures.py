"""The figures: each draws on the axes it is given, shows what was planted, bears little data."""

import numpy as np
import pytest
from outcomes import NX, NY, make_matches

from cynosure.data.tables import MATCHES, SOURCES
from cynosure.faces.report import canvas, figures


@pytest.fixture
def ax():
    with canvas.style():
        figure = canvas.new_figure(5, 4)
        yield figure.subplots()
        canvas.to_png(figure)  # whatever was drawn can be drawn


def one_chip(n):
    return make_matches(n) if n else MATCHES.empty()


PLOTS = [
    lambda m, ax: figures.plot_quiver(m, ax=ax),
    lambda m, ax: figures.plot_scatter(m, ax=ax),
    lambda m, ax: figures.plot_residuals_against(m, "ref_mag", ax=ax),
    lambda m, ax: figures.plot_residuals_against(m, "ref_color", ax=ax),
    lambda m, ax: figures.plot_error_model(m, ax=ax),
    lambda m, ax: figures.plot_chi2(m, ax=ax),
    lambda m, ax: figures.plot_pulls(m, ax=ax),
    lambda m, ax: figures.plot_image(np.ones((9, 12)), (NY, NX), SOURCES.empty(), m, ax=ax),
]


@pytest.mark.parametrize("n", [0, 1, 2, 5, 400])
@pytest.mark.parametrize("plot", PLOTS)
def test_any_number_of_stars_is_drawn(plot, n, ax):
    assert plot(one_chip(n), ax) is ax
    assert ax.get_title("left")


@pytest.mark.parametrize("plot", PLOTS)
def test_nothing_known_is_drawn(plot, ax):
    matches = one_chip(20)
    for name in ("ref_mag", "ref_color", "sigma_ra_mas", "sigma_dec_mas"):
        matches[name] = np.nan
    plot(matches, ax)


def test_without_axes_a_figure_is_made():
    ax = figures.plot_scatter(one_chip(50))
    assert ax.figure.canvas is not None
    assert canvas.to_png(ax.figure).startswith(b"\x89PNG")


def test_arrows_lie_on_the_detector(ax):
    """A common shift of the sources along +x is drawn along +x whatever way the camera turns."""
    matches = one_chip(300)
    turn = np.radians(33.0)  # of conftest's field: +x is this far from west, through north
    matches["dra_mas"] = -100.0 * np.cos(turn)
    matches["ddec_mas"] = 100.0 * np.sin(turn)
    *_, u, v = figures._arrows(matches)
    assert np.allclose(u, 100.0, atol=1.0)
    assert np.allclose(v, 0.0, atol=1.0)


def test_several_chips_are_drawn_on_the_sky(ax):
    matches = one_chip(300)
    matches["chip"] = np.arange(300) % 4
    figures.plot_quiver(matches, ax=ax)
    assert ax.get_xlabel() == "east (arcmin)"
    left, right = ax.get_xlim()
    assert left > right, "east is left"


def test_reference_stars_without_a_source_are_counted(ax):
    matches = one_chip(200)
    paired = np.column_stack([matches["x"] + 0.7, matches["y"] - 0.7, matches["ref_mag"]])
    rng = np.random.default_rng(2)
    lone = []
    while len(lone) < 17:
        x, y = rng.uniform(0, NX), rng.uniform(0, NY)
        if np.hypot(matches["x"] - x, matches["y"] - y).min() > 15:
            lone.append([x, y, 17.0])
    figures.plot_image(np.ones((9, 12)), (NY, NX), SOURCES.empty(), matches,
                       np.concatenate([paired, lone]), ax=ax)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "17 reference, no pair" in labels


def test_calibrated_errors_give_chi2_of_one():
    matches = make_matches(6000)
    magnitude, observed, predicted, chi2, count = figures._magnitude_bins(matches)
    assert np.all(np.diff(magnitude) > 0)
    assert np.allclose(chi2, 1.0, atol=5.0 / np.sqrt(count.min()))
    assert np.allclose(observed / predicted, 1.0, atol=0.12)
    matches["sigma_ra_mas"] /= 2.0
    matches["sigma_dec_mas"] /= 2.0
    assert np.allclose(figures._magnitude_bins(matches)[3], 4.0, rtol=0.15)


def test_medians_of_bins_find_a_planted_trend():
    rng = np.random.default_rng(3)
    color = rng.normal(1.0, 0.5, 4000)
    center, middle, error = figures._binned(color, 20.0 * color + rng.normal(0, 30, 4000))
    assert np.allclose(middle, 20.0 * center, atol=5.0 * error.max())
    assert np.polyfit(center, middle, 1)[0] == pytest.approx(20.0, abs=2.0)


def test_model_figures(ax, outcome):
    _, _, extras = outcome
    from cynosure.pipelines.evidence import columns

    grid = columns(extras["distortion"], ("x", "y", "dx_px", "dy_px"))
    figures.plot_distortion(grid, ax=ax)
    assert f"{np.hypot(grid[:, 2], grid[:, 3]).max():.3g} px" in ax.get_title("left")


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: figures.plot_distortion(np.array([[0, 0, 0, 0], [9, 9, 0, 0]]), ax=ax),
        lambda ax: figures.plot_wcs_error(np.array([[0, 0, 1.0], [9, 5, 2.0]]), ax=ax),
        lambda ax: figures.plot_ledger(np.array([[0, 3, 5.0, np.nan]]), ax=ax),
        lambda ax: figures.plot_scores({}, ax=ax),
        lambda ax: figures.plot_scores({"shift": 3.0, "poly1": {"score": 2.0}}, "poly1", ax=ax),
        lambda ax: figures.plot_hypotheses(np.zeros((0, 5)), 21.0, ax=ax),
        lambda ax: figures.plot_hypotheses([[30, 9, 1, 2, -1], [4, *[np.nan] * 4]], 21.0, ax=ax),
        lambda ax: figures.plot_psf_map(np.array([[5, 5, 2.0, 0.1, 30.0]]), ax=ax),
        lambda ax: figures.plot_psf_stamps(np.zeros((3, 5, 5)), ax=ax),
        lambda ax: figures.plot_profile(SOURCES.empty(4), ax=ax),
        lambda ax: figures.plot_offsets(np.eye(9), (-1, 1, -2, 2), ax=ax),
        lambda ax: figures.write_lines([], "nothing", ax=ax),
        lambda ax: figures.plot_image(np.full((4, 4), np.nan), (8, 8), SOURCES.empty(),
                                      MATCHES.empty(), ax=ax),
    ],
)
def test_little_or_odd_data_is_drawn(draw, ax):
    draw(ax)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0021, 0.002), (7.4, 10.0), (42.0, 50.0), (1.0, 1.0), (np.nan, 1.0), (0.0, 1.0)],
)
def test_round_numbers(value, expected):
    assert canvas.round_number(value) == pytest.approx(expected)
