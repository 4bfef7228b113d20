"""Images that could be anywhere are found by the index; those of another sky never are."""

import dataclasses
import json

import numpy as np
import pytest
from skies import camera

from cynosure.geometry.match.blind import build_index, solve_blind
from cynosure.ground.errors import CatalogDamaged, NoMatch, NotEnoughStars
from cynosure.ground.sky import separation_deg

SHAPE = (900, 1200)
WIDTHS = 4.0, 12.0  # degrees, of the fields that the index is for


@pytest.fixture(scope="module")
def sky():
    """40,000 stars all over the sky."""
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, 40_000), np.degrees(np.arcsin(rng.uniform(-1, 1, 40_000)))
    return ra, dec, 10 + np.log10(rng.uniform(1e-9, 1, 40_000)) / 0.3


@pytest.fixture(scope="module")
def index(sky, tmp_path_factory):
    path = tmp_path_factory.mktemp("blind") / "sky.index"
    return build_index(*sky, path, min_width_deg=WIDTHS[0], max_width_deg=WIDTHS[1])


def image(sky, seed, *, width=8.0, center=None, parity=None, n=80, missing=0.3, spurious=0.3,
          noise=0.2, scatter=0.2, distortion=0.004, invented=False):
    """Return sources of the brightest stars in a frame, `star` their rows, and the true WCS."""
    rng = np.random.default_rng(seed)
    ny, nx = SHAPE
    at = center or (rng.uniform(0, 360), np.degrees(np.arcsin(rng.uniform(-1, 1))))
    parity = int(rng.choice([-1, 1])) if parity is None else parity
    scale = width * 3600 / np.sqrt(nx * ny)
    truth = camera(*at, scale, rng.uniform(0, 360), parity, SHAPE, distortion)
    near = np.flatnonzero(separation_deg(sky[0], sky[1], *at) < width)
    x, y = truth.sky_to_pixel(sky[0][near], sky[1][near])
    inside = (x > 0) & (x < nx - 1) & (y > 0) & (y < ny - 1)
    star = near[inside][np.argsort(sky[2][near[inside]])][:n]
    star = star[rng.uniform(size=len(star)) > missing]
    x, y = truth.sky_to_pixel(sky[0][star], sky[1][star])
    if invented:
        x, y = rng.uniform(0, nx, len(x)), rng.uniform(0, ny, len(y))
    m = round(len(star) * spurious / (1 - spurious))
    x = np.r_[x + rng.normal(0, noise, len(x)), rng.uniform(0, nx, m)]
    y = np.r_[y + rng.normal(0, noise, len(y)), rng.uniform(0, ny, m)]
    flux = 10 ** (-0.4 * (sky[2][star] + rng.normal(0, scatter, len(star))))
    flux, star = np.r_[flux, rng.choice(flux, m)], np.r_[star, np.full(m, -1)]
    order = rng.permutation(len(x))
    return x[order], y[order], flux[order], star[order], truth, parity, scale


def assert_right(found, index, x, y, star, truth, parity, scale):
    ny, nx = SHAPE
    gx, gy = (v.ravel() for v in np.meshgrid(np.linspace(0, nx, 7), np.linspace(0, ny, 7)))
    tx, ty = truth.sky_to_pixel(*found.model.pixel_to_sky(gx, gy))
    assert np.median(np.hypot(tx - gx, ty - gy)) < 1.0
    assert found.parity == parity
    assert found.scale_arcsec == pytest.approx(scale, rel=0.01)
    assert found.log_odds > 30
    # Its references count in the stars of the index, whose rows are those of the table.
    assert np.mean(index.row[found.reference_index] == star[found.source_index]) > 0.9


@pytest.mark.parametrize("width", [4.0, 5.5, 8.0, 12.0])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("parity", [1, -1])
def test_any_place_any_scale_both_parities(sky, index, width, seed, parity):
    x, y, flux, star, truth, parity, scale = image(sky, seed, width=width, parity=parity)
    found = solve_blind(x, y, flux, index, SHAPE)
    assert_right(found, index, x, y, star, truth, parity, scale)
    assert found.evidence["method"] == "blind"
    json.dumps(found.evidence)


@pytest.mark.parametrize("center", [(0.01, 3.0), (359.9, -20.0), (77.0, 90.0), (200.0, -89.5)])
def test_the_meridian_and_the_poles(sky, index, center):
    x, y, flux, star, truth, parity, scale = image(sky, 5, center=center)
    assert_right(
        solve_blind(x, y, flux, index, SHAPE), index, x, y, star, truth, parity, scale
    )


@pytest.mark.parametrize(
    "kind",
    [
        dict(n=30, spurious=0.1, missing=0.1), dict(n=300), dict(spurious=0.5), dict(missing=0.5),
        dict(noise=0.7), dict(scatter=0.6), dict(distortion=0.012), dict(distortion=-0.012),
    ],
    ids=lambda kind: "-".join(f"{k}={v}" for k, v in kind.items()),
)
def test_all_kinds_of_lists(sky, index, kind):
    x, y, flux, star, truth, parity, scale = image(sky, 7, **kind)
    assert_right(
        solve_blind(x, y, flux, index, SHAPE), index, x, y, star, truth, parity, scale
    )


def test_a_known_parity_is_respected(sky, index):
    x, y, flux, _, _, _, _ = image(sky, 11, parity=-1)
    assert solve_blind(x, y, flux, index, SHAPE, parity=-1).parity == -1
    with pytest.raises(NoMatch):
        solve_blind(x, y, flux, index, SHAPE, parity=1)


def test_a_range_of_scales_is_respected(sky, index):
    x, y, flux, _, _, _, scale = image(sky, 12)
    near = dict(min_scale_arcsec=0.9 * scale, max_scale_arcsec=1.1 * scale)
    found = solve_blind(x, y, flux, index, SHAPE, **near)
    assert found.scale_arcsec == pytest.approx(scale, rel=0.01)
    for wrong in (dict(min_scale_arcsec=1.3 * scale), dict(max_scale_arcsec=0.75 * scale)):
        with pytest.raises(NoMatch):
            solve_blind(x, y, flux, index, SHAPE, **wrong)
    with pytest.raises(NoMatch) as error:  # of no field that the index knows
        solve_blind(x, y, flux, index, SHAPE, min_scale_arcsec=3000.0)
    assert error.value.n_sources == len(x)


def test_the_order_of_the_rows_and_calling_twice_do_not_matter(sky, index):
    x, y, flux, _, _, _, _ = image(sky, 13)
    first, again = (solve_blind(x, y, flux, index, SHAPE) for _ in range(2))
    assert first.model.coeff.tobytes() == again.model.coeff.tobytes()
    assert first.log_odds == again.log_odds
    p = np.random.default_rng(0).permutation(len(x))
    other = solve_blind(x[p], y[p], flux[p], index, SHAPE)
    pairs = set(zip(first.source_index.tolist(), first.reference_index.tolist()))
    assert pairs == set(zip(p[other.source_index].tolist(), other.reference_index.tolist()))


# ---- what must not be recognised


@pytest.mark.parametrize("seed", range(5))
def test_stars_of_no_sky_are_refused(sky, index, seed):
    x, y, flux, *_ = image(sky, 100 + seed, n=60, invented=True)
    with pytest.raises(NoMatch) as error:
        solve_blind(x, y, flux, index, SHAPE, name="made-up.fits")
    assert error.value.best_log_odds < 15
    assert "made-up.fits" in str(error.value)
    assert len(error.value.tried) >= 3
    assert "looked up" in error.value.tried[0]
    assert "--scale" in error.value.hint


def test_a_field_that_the_index_does_not_cover_is_refused(sky, tmp_path):
    north = np.flatnonzero(sky[1] > 40)
    index = build_index(
        *(v[north] for v in sky), tmp_path / "north", min_width_deg=8.0, max_width_deg=8.0
    )
    x, y, flux, star, *_ = image(sky, 14, center=(100.0, 70.0))
    found = solve_blind(x, y, flux, index, SHAPE)
    assert np.mean(north[index.row[found.reference_index]] == star[found.source_index]) > 0.9
    with pytest.raises(NoMatch):
        solve_blind(*image(sky, 15, center=(100.0, -30.0))[:3], index, SHAPE)


def test_a_lattice_of_sources_is_refused(index):
    gx, gy = (v.ravel() for v in np.meshgrid(np.arange(50, 1200, 120.0), np.arange(50, 900, 120.0)))
    with pytest.raises(NoMatch):
        solve_blind(gx, gy, np.arange(gx.size) + 1.0, index, SHAPE)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_too_few_sources_are_said_so(sky, index, n):
    x, y, flux, *_ = image(sky, 16)
    with pytest.raises(NotEnoughStars) as error:
        solve_blind(x[:n], y[:n], flux[:n], index, SHAPE, name="few.fits")
    assert str(error.value) == f"few.fits: {n} stars found, 6 needed"


def test_a_band_that_names_stars_that_are_not_there_is_an_error(sky, index):
    x, y, flux, *_ = image(sky, 17)
    star = [np.full_like(b.star, 10**8) for b in index.bands]
    for array in star:
        array.flags.writeable = False  # as what is mapped from a file
    bad = tuple(b._replace(star=s) for b, s in zip(index.bands, star))
    with pytest.raises(CatalogDamaged, match="stars that do not exist"):
        solve_blind(x, y, flux, dataclasses.replace(index, bands=bad), SHAPE)
