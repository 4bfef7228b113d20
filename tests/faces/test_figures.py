"""The figures: each shows what was planted, bears little data, and is well-formed SVG."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from outcomes import NX, NY, make_matches

from cynosure.data.tables import MATCHES, SOURCES
from cynosure.faces.report import figures, svg


def drawn(panel):
    """Return the elements of a panel as a browser would have them."""
    text = svg.Diagram((panel,), 400.0, 300.0).to_svg("test", "a figure & more")
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == "a figure & more"
    assert "nan" not in text
    assert "inf" not in re.sub(r"base64,[^\"]*", "", text)
    return root


def texts(panel):
    return [element.text for element in drawn(panel).iter("text")]


def one_chip(n):
    return make_matches(n) if n else MATCHES.empty()


PLOTS = [
    lambda m: figures.plot_quiver(m),
    lambda m: figures.plot_scatter(m),
    lambda m: figures.plot_residuals_against(m, "ref_mag"),
    lambda m: figures.plot_residuals_against(m, "ref_color"),
    lambda m: figures.plot_error_model(m),
    lambda m: figures.plot_chi2(m),
    lambda m: figures.plot_pulls(m),
    lambda m: figures.plot_image(np.ones((9, 12)), (NY, NX), SOURCES.empty(), m),
]


@pytest.mark.parametrize("n", [0, 1, 2, 5, 400])
@pytest.mark.parametrize("plot", PLOTS)
def test_any_number_of_stars_is_drawn(plot, n):
    panel = plot(one_chip(n))
    assert panel.title in texts(panel)


@pytest.mark.parametrize("plot", PLOTS)
def test_nothing_known_is_drawn(plot):
    matches = one_chip(20)
    for name in ("ref_mag", "ref_color", "sigma_ra_mas", "sigma_dec_mas"):
        matches[name] = np.nan
    drawn(plot(matches))


def positions(panel, box=(60.0, 30.0, 300.0, 200.0)):
    """Return the places of a panel's only path of marks, in pixels of the drawing."""
    (d,) = re.findall(r'<path d="(m[^"]*)"', panel.render(box, "k"))
    return np.cumsum([[float(a), float(b)] for a, b in re.findall(r"m(-?\d+) (-?\d+)h0", d)],
                     axis=0) / svg.FINE


def test_points_lie_where_the_axes_say():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(10, 20, 500), rng.uniform(-3, 5, 500)
    panel = svg.Panel(xlim=(10.0, 20.0), ylim=(-3.0, 5.0))
    panel.points(x, y)
    px, py = positions(panel).T
    # A quarter of a pixel is the grain, and its rounding does not add up.
    assert np.abs(px - (60.0 + 30.0 * (x - 10.0))).max() <= 0.126
    assert np.abs(py - (230.0 - 25.0 * (y + 3.0))).max() <= 0.126


def test_a_reversed_axis_runs_to_the_left():
    panel = svg.Panel(xlim=(20.0, 10.0), ylim=(0.0, 1.0))
    panel.points([12.0], [0.5])
    assert positions(panel)[0, 0] == pytest.approx(60.0 + 30.0 * 8.0, abs=0.13)


def test_a_logarithmic_axis():
    panel = svg.Panel(xlim=(0.0, 1.0), ylim=(1.0, 100.0), log_y=True)
    panel.points([0.5, 0.5, 0.5], [10.0, -1.0, 0.0])  # what has no logarithm is left out
    assert positions(panel).tolist() == [[210.0, 130.0]]
    assert svg.log_ticks(0.9, 120.0) == [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]


def test_equal_axes_are_equal():
    panel = svg.Panel(xlim=(0.0, 100.0), ylim=(0.0, 10.0), equal=True)
    panel.points([0.0, 100.0, 0.0], [0.0, 0.0, 10.0])
    (x0, y0), (x1, _), (_, y1) = positions(panel)
    assert (x1 - x0) / 100.0 == pytest.approx((y0 - y1) / 10.0)


def test_arrows_point_where_they_should_on_any_axis():
    for limits, sign in (((0.0, 10.0), 1.0), ((10.0, 0.0), -1.0)):
        panel = svg.Panel(xlim=limits, ylim=(0.0, 10.0))
        panel.arrows([5.0], [5.0], [2.0], [1.0], unit_px=10.0, heads=False)
        text = panel.render((0.0, 0.0, 100.0, 100.0), "k")
        (found,) = re.findall(r"M(-?\d+) (-?\d+)l(-?\d+) (-?\d+)", text)
        assert [int(v) / svg.FINE for v in found[2:]] == [sign * 20.0, -10.0]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2e-5, 8e-5), (1e6, 1.3e6), (5, -5)])
def test_ticks_are_round_and_inside(low, high):
    found = svg.ticks(low, high)
    assert 2 <= len(found) <= 6
    assert min(low, high) <= min(found)
    assert max(found) <= max(low, high)
    step = np.diff(found)
    assert np.allclose(step, step[0])
    assert f"{step[0]:.0e}"[0] in "125"


def test_a_png_is_what_it_was_made_of():
    from io import BytesIO

    from PIL import Image

    rng = np.random.default_rng(0)
    for shape in ((5, 7), (6, 3, 3)):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        assert np.array_equal(np.asarray(Image.open(BytesIO(svg.png_of(pixels)))), pixels)


def test_the_scale_of_colours_rises_in_lightness():
    light = svg.palette(np.linspace(0, 1, 50), 0, 1) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > 0).all()


def test_text_is_escaped():
    panel = svg.Panel("a < b & c")
    assert "a < b & c" in texts(panel)


def test_arrows_lie_on_the_detector():
    """A common shift of the sources along +x is drawn along +x whatever way the camera turns."""
    matches = one_chip(300)
    turn = np.radians(33.0)  # of conftest's field: +x is this far from west, through north
    matches["dra_mas"] = -100.0 * np.cos(turn)
    matches["ddec_mas"] = 100.0 * np.sin(turn)
    *_, u, v = figures.residual_arrows(matches)
    assert np.allclose(u, 100.0, atol=1.0)
    assert np.allclose(v, 0.0, atol=1.0)


def test_several_chips_are_drawn_on_the_sky():
    matches = one_chip(300)
    matches["chip"] = np.arange(300) % 4
    panel = figures.plot_quiver(matches)
    assert panel.xlabel == "east (arcmin)"
    assert panel.xlim[0] > panel.xlim[1], "east is left"
    x, _, u, _ = figures.residual_arrows(matches)
    east = (matches["ref_ra_deg"] - matches["ref_ra_deg"].mean()) > 0
    assert (x[east] > x[~east].mean()).mean() > 0.9
    assert np.array_equal(u, matches["dra_mas"])


def test_reference_stars_without_a_source_are_counted():
    matches = one_chip(200)
    paired = np.column_stack([matches["x"] + 0.7, matches["y"] - 0.7, matches["ref_mag"]])
    rng = np.random.default_rng(2)
    lone = []
    while len(lone) < 17:
        x, y = rng.uniform(0, NX), rng.uniform(0, NY)
        if np.hypot(matches["x"] - x, matches["y"] - y).min() > 15:
            lone.append([x, y, 17.0])
    panel = figures.plot_image(np.ones((9, 12)), (NY, NX), SOURCES.empty(), matches,
                               np.concatenate([paired, lone]))
    assert "17 reference, no pair" in texts(panel)


def test_calibrated_errors_give_chi2_of_one():
    matches = make_matches(6000)
    magnitude, observed, predicted, chi2, count = figures.magnitude_bins(matches)
    assert np.all(np.diff(magnitude) > 0)
    assert np.allclose(chi2, 1.0, atol=5.0 / np.sqrt(count.min()))
    assert np.allclose(observed / predicted, 1.0, atol=0.12)
    matches["sigma_ra_mas"] /= 2.0
    matches["sigma_dec_mas"] /= 2.0
    assert np.allclose(figures.magnitude_bins(matches)[3], 4.0, rtol=0.15)


def test_medians_of_bins_find_a_planted_trend():
    rng = np.random.default_rng(3)
    color = rng.normal(1.0, 0.5, 4000)
    center, middle, error = figures._binned(color, 20.0 * color + rng.normal(0, 30, 4000))
    assert np.allclose(middle, 20.0 * center, atol=5.0 * error.max())
    assert np.polyfit(center, middle, 1)[0] == pytest.approx(20.0, abs=2.0)


def test_model_figures(outcome):
    _, _, extras = outcome
    from cynosure.pipelines.evidence import columns

    grid = columns(extras["distortion"], ("x", "y", "dx_px", "dy_px"))
    panel = figures.plot_distortion(grid)
    assert f"{np.hypot(grid[:, 2], grid[:, 3]).max():.3g} px" in panel.title


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.plot_distortion(np.array([[0, 0, 0, 0], [9, 9, 0, 0]])),
        lambda: figures.plot_wcs_error(np.array([[0, 0, 1.0], [9, 5, 2.0]])),
        lambda: figures.plot_ledger(np.array([[0, 3, 5.0, np.nan]])),
        lambda: figures.plot_scores({}),
        lambda: figures.plot_scores({"shift": 3.0, "poly1": {"score": 2.0}}, "poly1"),
        lambda: figures.plot_hypotheses(np.zeros((0, 5)), 21.0),
        lambda: figures.plot_hypotheses([[30, 9, 1, 2, -1], [4, *[np.nan] * 4]], 21.0),
        lambda: figures.plot_psf_map(np.array([[5, 5, 2.0, 0.1, 30.0]])),
        lambda: figures.plot_psf_stamps(np.zeros((3, 5, 5))),
        lambda: figures.plot_profile(SOURCES.empty(4)),
        lambda: figures.plot_offsets(np.eye(9), (-1, 1, -2, 2)),
        lambda: figures.write_lines([], "nothing"),
        lambda: figures.plot_image(np.full((4, 4), np.nan), (8, 8), SOURCES.empty(),
                                      MATCHES.empty()),
    ],
)
def test_little_or_odd_data_is_drawn(draw):
    drawn(draw())


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0021, 0.002), (7.4, 10.0), (42.0, 50.0), (1.0, 1.0), (np.nan, 1.0), (0.0, 1.0)],
)
def test_round_numbers(value, expected):
    assert svg.round_number(value) == pytest.approx(expected)
