"""Maps: round trips, Jacobians and derivatives against differences, and parameters that are shared.

The FITS maps are compared with astropy's own evaluation of the same headers.
"""

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from cynosure.geometry.fitsmap import FitsMap, on_plane
from cynosure.geometry.lookup import Chromatic, LookupTable
from cynosure.geometry.parameters import Block, Parameters
from cynosure.geometry.pixelmap import (
    LINEAR_GEOMETRIES,
    Composite,
    LinearMap,
    PixelMap,
    Reprojection,
    SkyMap,
)
from cynosure.geometry.skymodel import SkyModel
from cynosure.geometry.wcs import model_to_header
from cynosure.ground.errors import Degenerate, SettingError
from cynosure.ground.numeric import n_terms
from cynosure.ground.sky import MAS_PER_DEG, separation_deg

SHAPE = (500, 640)


def polynomial(degree=3, seed=0, ra=150.0, dec=-60.0, bend=1e-3):
    rng = np.random.default_rng(seed)
    coeff = rng.normal(0, bend * 0.004, (2, n_terms(degree)))
    coeff[:, 1:3] = 0.00444 * np.array([[-0.8, 0.6], [0.6, 0.8]])
    return SkyModel(ra, dec, 319.5, 249.5, 320.0, coeff)


def linear(geometry, seed=0, size=1e-3):
    start = LinearMap.unity(geometry)
    return start.with_parameters(np.random.default_rng(seed).normal(0, size, len(start.parameters)))


def table(seed=0, amplitude=0.3, shape=(6, 8)):
    rng = np.random.default_rng(seed)
    return LookupTable(rng.normal(0, amplitude, (2, *shape)), -3.0, 5.5, 90.0, 80.0)


def wcs_with_tables(seed=0, version=1, ra=150.0, dec=2.0):
    """Return a WCS with SIP, NPOL and D2IM, and the header that it was read from."""
    rng = np.random.default_rng(seed)
    header = fits.Header({
        "WCSAXES": 2, "CRVAL1": ra, "CRVAL2": dec, "CRPIX1": 320.0, "CRPIX2": 250.0,
        "CD1_1": -1.39e-5, "CD1_2": 2e-6, "CD2_1": 3e-6, "CD2_2": 1.41e-5,
        "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 3, "B_ORDER": 2,
        "A_2_0": 1e-5, "A_0_3": 1e-8, "B_1_1": -2e-5, "RADESYS": "ICRS",
    })
    units = [fits.PrimaryHDU()]
    for name, dis, record, amplitude in (
        ("WCSDVARR", "CPDIS", "DP", 0.4), ("D2IMARR", "D2IMDIS", "D2IM", 0.2)
    ):
        for axis in (1, 2):
            header[f"{dis}{axis}"] = "LOOKUP"
            extver = 2 * version - 2 + axis
            for text in (f"EXTVER: {extver}", "NAXES: 2", "AXIS.1: 1", "AXIS.2: 2"):
                header.append((f"{record}{axis}", text), end=True)
            values = rng.normal(0, amplitude, (6, 8)).astype(np.float32)
            unit = fits.ImageHDU(values, name=name, ver=extver)
            for i, step in ((1, 91.0), (2, 82.0)):
                unit.header[f"CRPIX{i}"], unit.header[f"CRVAL{i}"] = 0.0, 1.0 - step / 2
                unit.header[f"CDELT{i}"] = step
            units.append(unit)
    wcs = WCS(header, fits.HDUList(units))
    wcs.pixel_shape = SHAPE[::-1]
    return wcs


def every_map():
    steps = {geometry: linear(geometry, 3) for geometry in LINEAR_GEOMETRIES}
    steps["polynomial"] = polynomial(5)
    steps["table"] = table()
    steps["colour shift"] = Chromatic(LinearMap("shift", np.array([0.05, -0.1])), 1.2)
    steps["lateral colour"] = Chromatic(linear("general", 4), 0.8)
    steps["reprojection"] = Reprojection((150.0, 88.0), (210.0, 88.3))
    steps["chain"] = Composite(
        (table(2), Chromatic(linear("rscale", 5), 1.0), polynomial(3, 1),
         linear("rshift", 6, 1e-4)), 150.0, -60.0,
    )
    return steps


@pytest.fixture(scope="module", params=sorted(every_map()))
def any_map(request):
    return every_map()[request.param]


def places(mapping, n=60, seed=1):
    """Return points and colours where a map is meant to be used, off the nodes of tables."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(5, SHAPE[1] - 5, n), rng.uniform(5, SHAPE[0] - 5, n)
    if isinstance(mapping, Reprojection):
        x, y = x / 600, y / 600
    return x, y, rng.uniform(0.3, 2.5, n)


def test_maps_keep_their_promise(any_map):
    x, y, color = places(any_map)
    assert isinstance(any_map, PixelMap)
    image = any_map.pixel_to_plane(x, y, color=color)
    back = any_map.plane_to_pixel(*image, color=color)
    assert np.allclose(back, (x, y), rtol=0, atol=1e-7)
    assert any_map.jacobian(x, y, color=color).shape == (60, 2, 2)
    for shape in ((), (3, 20), (0,)):
        part = [np.resize(v, shape) for v in (x, y)]
        assert np.shape(any_map.pixel_to_plane(*part)) == (2, *shape)
        assert np.shape(any_map.plane_to_pixel(*any_map.pixel_to_plane(*part))) == (2, *shape)
        assert any_map.jacobian(*part).shape == (*shape, 2, 2)
        assert any_map.derivatives(*part).shape == (*shape, 2, len(any_map.parameters))


def test_jacobians_are_the_differences(any_map):
    x, y, color = places(any_map)
    h = 1e-3
    for axis, (dx, dy) in enumerate(((h, 0.0), (0.0, h))):
        up = np.array(any_map.pixel_to_plane(x + dx, y + dy, color=color))
        down = np.array(any_map.pixel_to_plane(x - dx, y - dy, color=color))
        found = any_map.jacobian(x, y, color=color)[..., axis].T
        scale = np.abs(found).max()
        assert np.abs(found - (up - down) / (2 * h)).max() < 2e-6 * scale


def test_derivatives_by_the_parameters_are_the_differences(any_map):
    x, y, color = places(any_map, 12)
    found = any_map.derivatives(x, y, color=color)
    for k, value in enumerate(any_map.parameters):
        h = 1e-5 * max(abs(value), 1e-2)
        step = np.zeros(len(any_map.parameters))
        step[k] = h
        up, down = (
            np.array(any_map.with_parameters(any_map.parameters + s).pixel_to_plane(
                x, y, color=color
            )) for s in (step, -step)
        )
        expected = ((up - down) / (2 * h)).T
        assert np.abs(found[..., k] - expected).max() < 1e-6 * max(1e-3, np.abs(expected).max())


def test_colour_moves_and_an_unknown_one_does_not():
    drift = Chromatic(LinearMap("shift", np.array([0.05, -0.1])), 1.2)
    x, y = np.array([10.0, 20.0, 30.0]), np.array([5.0, 6.0, 7.0])
    moved = drift.pixel_to_plane(x, y, color=[2.2, 1.2, np.nan])
    assert np.allclose(moved[0] - x, [0.05, 0.0, 0.0], atol=1e-15)
    assert np.allclose(moved[1] - y, [-0.1, 0.0, 0.0], atol=1e-15)
    assert np.array_equal(drift.pixel_to_plane(x, y), (x, y))


def test_the_chain_rule_is_that_of_the_steps():
    chain = every_map()["chain"]
    x, y, color = places(chain, 20)
    product = np.eye(2)
    at = (x, y)
    for step in chain.steps:
        product = step.jacobian(*at, color=color) @ product
        at = step.pixel_to_plane(*at, color=color)
    assert np.allclose(chain.jacobian(x, y, color), product, rtol=1e-12)
    assert np.array_equal(chain.pixel_to_plane(x, y, color), at)


def test_a_reprojection_is_what_the_sky_says():
    step = Reprojection((10.0, 89.9), (200.0, 89.8))
    first, second = (polynomial(1, ra=ra, dec=dec) for ra, dec in ((10.0, 89.9), (200.0, 89.8)))
    ra, dec = first.pixel_to_sky([0.0, 600.0, 320.0], [0.0, 100.0, 400.0])
    direct = second.pixel_to_plane(*second.sky_to_pixel(ra, dec))
    assert np.allclose(step.pixel_to_plane(*first.pixel_to_plane([0.0, 600.0, 320.0],
                                                                 [0.0, 100.0, 400.0])), direct,
                       atol=1e-12)
    behind = Reprojection((0.0, 0.0), (180.0, 0.0)).pixel_to_plane([0.1], [0.0])
    assert np.isnan(behind).all()


# --- any FITS WCS ---------------------------------------------------------------------------


@pytest.mark.parametrize("ra, dec", [(0.0002, 2.0), (150.0, -89.995), (359.9999, 45.0)])
def test_a_wcs_with_tables_goes_there_and_back(ra, dec):
    wcs = wcs_with_tables(ra=ra, dec=dec)
    whole = FitsMap.about(wcs, 319.5, 249.5)
    assert isinstance(whole, SkyMap)
    x, y = np.meshgrid(np.linspace(-0.5, 639.5, 41), np.linspace(-0.5, 499.5, 31))
    x, y = x.ravel(), y.ravel()
    ra1, dec1 = wcs.all_pix2world(x, y, 0)
    sky = whole.pixel_to_sky(x, y)
    assert np.array_equal(sky, (ra1, dec1))
    back = whole.sky_to_pixel(*sky)
    # A right ascension of 360 deg is known to 6e-14 deg, 4e-9 px, and tables bend the lines.
    assert np.allclose(back, (x, y), rtol=0, atol=1e-6)
    far = whole.sky_to_pixel([(ra + 180.0) % 360.0, sky[0][0]], [-dec, sky[1][0]])
    assert np.isnan(far[0][0])
    assert abs(far[0][1] - x[0]) < 1e-6


def test_the_jacobian_of_a_wcs_is_that_of_its_polynomial():
    model = polynomial(4, bend=3e-3)
    for form in ("tpv", "sip"):
        whole = FitsMap(WCS(model_to_header(model, form, shape=SHAPE)), 150.0, -60.0)
        x, y, _ = places(whole, 200)
        exact = model.jacobian(x, y)
        assert np.abs(whole.jacobian(x, y) - exact).max() < 3e-8 * np.abs(exact).max()
        assert whole.derivatives(x, y).shape == (200, 2, 0)


def test_the_jacobian_of_a_wcs_with_tables_is_that_of_its_parts():
    """Beside the nodes of the tables: (I + dD2IM), then SIP beside NPOL, then CD."""
    wcs = wcs_with_tables(3)
    npol = LookupTable.of_fits(wcs.cpdis1, wcs.cpdis2)
    d2im = LookupTable.of_fits(wcs.det2im1, wcs.det2im2)
    rng = np.random.default_rng(2)
    # Cells of both tables begin at half a pixel and are 91 by 82 pixels.
    x = 91.0 * rng.integers(0, 6, 50) + rng.uniform(6.0, 85.0, 50) + 45.0
    y = 82.0 * rng.integers(0, 5, 50) + rng.uniform(6.0, 76.0, 50) + 41.0
    px, py = d2im.pixel_to_plane(x, y)
    u, v = px - 319.0, py - 249.0
    one = np.eye(2) + np.zeros((50, 2, 2))
    sip = one.copy()
    sip[:, 0, 0] += 2e-5 * u
    sip[:, 0, 1] += 3e-8 * v**2
    sip[:, 1, 0] += -2e-5 * v
    sip[:, 1, 1] += -2e-5 * u
    focal = (sip + npol.jacobian(px, py) - one) @ d2im.jacobian(x, y)
    expected = wcs.wcs.cd @ focal
    found = FitsMap(wcs, 150.0, 2.0).jacobian(x, y)
    assert np.abs(found - expected).max() < 1e-8 * 1.4e-5 + 2e-13
    # Everywhere, beyond the outermost nodes too, the offsets are those of astropy.
    x, y = np.meshgrid(np.linspace(-0.5, 639.5, 33), np.linspace(-0.5, 499.5, 33))
    x, y = x.ravel(), y.ravel()
    px, py = d2im.pixel_to_plane(x, y)
    u, v = px - 319.0, py - 249.0
    fx, fy = npol.pixel_to_plane(px, py)
    sip_x, sip_y = 1e-5 * u**2 + 1e-8 * v**3, -2e-5 * u * v
    assert np.allclose(wcs.pix2foc(x, y, 0), (fx + sip_x, fy + sip_y), atol=1e-9)


def test_a_plane_elsewhere_keeps_the_sky():
    x, y, _ = places(None, 30)
    for sky_map in (polynomial(3), FitsMap(wcs_with_tables(), 150.0, 2.0),
                    Composite((table(), polynomial(2)), 150.0, -60.0)):
        moved = on_plane(sky_map, sky_map.ra0_deg + 0.02, sky_map.dec0_deg - 0.01)
        assert moved.ra0_deg == sky_map.ra0_deg + 0.02
        apart = separation_deg(*moved.pixel_to_sky(x, y), *sky_map.pixel_to_sky(x, y))
        assert apart.max() * MAS_PER_DEG < 1e-5
        assert np.allclose(moved.sky_to_pixel(*sky_map.pixel_to_sky(x, y)), (x, y), atol=1e-6)
        assert on_plane(moved, moved.ra0_deg, moved.dec0_deg) is moved


# --- parameters -----------------------------------------------------------------------------


def two_exposures():
    """Two chips, whose polynomials both exposures share, and a motion of each exposure."""
    rng = np.random.default_rng(8)
    chips = [polynomial(3, seed) for seed in (1, 2)]
    moves = [LinearMap("rscale", rng.normal(0, 2e-5, 4)) for _ in range(2)]
    return chips, moves


def chain_of(chip, exposure, chips, moves):
    return Composite(
        (table(7, 0.05), chips[chip], moves[exposure]), 150.0, -60.0,
        ("", f"chip {chip}", f"exposure {exposure}"),
    )


def test_shared_and_held_parameters_are_assembled_right():
    chips, moves = two_exposures()
    held = np.ones(20, dtype=bool)
    held[3] = False
    blocks = Parameters([
        Block("chip 0", chips[0].parameters, free=held), Block("exposure 0", moves[0].parameters),
        Block("chip 1", chips[1].parameters, free=False),
        Block("exposure 1", moves[1].parameters),
    ])
    assert blocks.size == 19 + 4 + 4
    x, y, _ = places(None, 15)
    for chip, exposure in ((0, 0), (0, 1), (1, 1)):
        composite = blocks.bound(chain_of(chip, exposure, chips, moves))
        columns, design = blocks.design(composite, x, y)
        assert len(columns) == (19 if chip == 0 else 0) + 4
        full = np.zeros((15, 2, blocks.size))
        full[..., columns] = design
        for k in range(blocks.size):
            h = np.zeros(blocks.size)
            h[k] = 1e-7
            up, down = (
                np.array(
                    blocks.with_vector(blocks.vector + s).bound(composite).pixel_to_plane(x, y)
                ) for s in (h, -h)
            )
            assert np.allclose(full[..., k], ((up - down) / 2e-7).T, atol=3e-7)
    again = blocks.with_vector(blocks.vector + 1.0)
    assert again.block("chip 1").values is not blocks.block("chip 1").values
    assert np.array_equal(again.block("chip 1").values, chips[1].parameters)
    assert again.block("chip 0").values[3] == chips[0].parameters[3]


def test_a_block_that_two_steps_share_has_the_sum():
    one = LinearMap("rscale", np.array([0.1, 0.2, 0.01, -0.02]))
    twice = Composite((one, one), blocks=("move", "move"))
    blocks = Parameters([Block("move", one.parameters)])
    columns, design = blocks.design(twice, [1.0, 2.0], [3.0, -1.0])
    assert np.array_equal(columns, [0, 1, 2, 3])
    for k in range(4):
        h = 1e-6 * np.eye(4)[k]
        up, down = (
            np.array(blocks.with_vector(blocks.vector + s).bound(twice).pixel_to_plane(
                [1.0, 2.0], [3.0, -1.0])) for s in (h, -h)
        )
        assert np.allclose(design[..., k], ((up - down) / 2e-6).T, atol=1e-8)


def fitted(blocks, chips, moves, data, rounds=3):
    """Fit by Gauss-Newton; `data` are chip, exposure, x, y, wanted (n, 2) and sigma."""
    for _ in range(rounds):
        normal = blocks.normal_equations()
        for chip, exposure, x, y, wanted, sigma in data:
            composite = blocks.bound(chain_of(chip, exposure, chips, moves))
            columns, design = blocks.design(composite, x, y)
            residual = np.stack(composite.pixel_to_plane(x, y), axis=1) - wanted
            w = np.repeat([[1.0, 1.0, 0.0]], len(x), axis=0) / sigma**2
            normal.add(columns, design, w, residual)
        change = normal.solve()
        blocks = blocks.with_vector(blocks.vector + change.x)
    return blocks, change


def test_a_joint_fit_demands_the_planted_parameters_back():
    chips, moves = two_exposures()
    rng = np.random.default_rng(5)
    sigma = 2.0 / MAS_PER_DEG
    data = []
    for chip in (0, 1):
        for exposure in (0, 1):
            x, y, _ = places(None, 400, 10 * chip + exposure)
            truth = chain_of(chip, exposure, chips, moves).pixel_to_plane(x, y)
            noisy = np.stack(truth, axis=1) + rng.normal(0, sigma, (400, 2))
            data.append((chip, exposure, x, y, noisy, sigma))
    start = [c.replaced(coeff=c.coeff * (1 + 1e-3)) for c in chips]
    blocks = Parameters([
        Block("chip 0", start[0].parameters), Block("chip 1", start[1].parameters),
        # One exposure sets the frame of the chips.
        Block("exposure 0", moves[0].parameters, free=False),
        Block("exposure 1", np.zeros(4)),
    ])
    blocks, change = fitted(blocks, chips, moves, data)
    truth = np.concatenate([c.parameters for c in chips] + [moves[1].parameters])
    pull = (blocks.vector - truth) / np.sqrt(np.diag(change.covariance))
    assert np.sqrt(np.mean(pull**2)) < 1.5
    assert np.abs(pull).max() < 4.5
    assert np.sqrt(change.covariance[-4, -4]) * MAS_PER_DEG < 0.3


def test_a_prior_lifts_what_the_data_leave_open():
    chips, moves = two_exposures()
    x, y, _ = places(None, 200)
    wanted = np.stack(chain_of(0, 0, chips, moves).pixel_to_plane(x, y), axis=1)
    data = [(0, 0, x, y, wanted, 1.0 / MAS_PER_DEG)]
    free = [Block("chip 0", chips[0].parameters), Block("exposure 0", moves[0].parameters)]
    with pytest.raises(Degenerate):  # the chip can move as the exposure does
        fitted(Parameters(free), chips, moves, data)
    sigma = np.array([1e-4, 1e-4, 1e-5, 1e-5])
    known = Parameters([free[0], Block("exposure 0", np.zeros(4), prior=moves[0].parameters,
                                       sigma=sigma)])
    known, change = fitted(known, chips, moves, data, 4)
    found = known.block("exposure 0").values
    assert np.allclose(found, moves[0].parameters, atol=1e-9)
    assert np.allclose(np.sqrt(np.diag(change.covariance))[-4:], sigma, rtol=1e-3)
    assert known.chi2_prior() < 1e-6
    off = known.with_vector(known.vector + np.r_[np.zeros(20), sigma])
    assert off.chi2_prior() == pytest.approx(4.0, rel=1e-3)


def test_blocks_that_make_no_sense():
    with pytest.raises(SettingError, match="named 'a'"):
        Parameters([Block("a", np.zeros(2)), Block("a", np.zeros(2))])
    with pytest.raises(SettingError, match="sigma above zero"):
        Block("a", np.zeros(2), sigma=0.0)
    with pytest.raises(SettingError, match="sigma has the shape"):
        Block("a", np.zeros(2), sigma=np.ones(3))
    with pytest.raises(SettingError, match="no parameter block 'b'"):
        Parameters([Block("a", np.zeros(4))]).bound(Composite((linear("rscale"),), blocks=("b",)))
    with pytest.raises(SettingError, match="1 names"):
        Composite((table(), table()), blocks=("a",))
    with pytest.raises(SettingError, match="'affine' is not known"):
        LinearMap.unity("affine")
    with pytest.raises(SettingError, match="same nodes"):
        LookupTable.of_fits(None, None)


@settings(max_examples=30, deadline=None)
@given(
    geometry=st.sampled_from(LINEAR_GEOMETRIES), seed=st.integers(0, 999),
    size=st.sampled_from([1e-6, 1e-3, 0.2]),
)
def test_a_linear_map_is_found_again_from_its_matrix(geometry, seed, size):
    one = linear(geometry, seed, size)
    again = LinearMap.of(geometry, one.matrix, one.shift)
    assert np.allclose(again.parameters, one.parameters, rtol=1e-12, atol=1e-15)
