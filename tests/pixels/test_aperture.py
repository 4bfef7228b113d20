"""Sums in circles: against photutils and sep, planted truth, and where pixels are missing."""

import numpy as np
import pytest
import twins
from fields import gauss, light_of, observe

from cynosure.data.frame import Frame
from cynosure.data.mask import mask_dictionary
from cynosure.data.tables import SourceFlag
from cynosure.ground.errors import SettingError
from cynosure.pixels import fluxkernels
from cynosure.pixels.aperture import aperture_schema, measure_apertures
from cynosure.pixels.background import Background

SHAPE = (90, 110)
NO_MASK = np.zeros((0, 0), dtype=bool)


def flat(level=0.0, sigma=1.0, shape=SHAPE):
    one = np.ones((1, 1), np.float32)
    return Background(one * np.float32(level), one * np.float32(sigma), shape)


def noisy(seed=1, level=100.0, sigma=3.0):
    rng = np.random.default_rng(seed)
    return rng.normal(level, sigma, SHAPE).astype(np.float32)


def places(n=40, seed=2, edge=16):
    rng = np.random.default_rng(seed)
    return np.column_stack([
        rng.uniform(edge, SHAPE[1] - edge, n), rng.uniform(edge, SHAPE[0] - edge, n)
    ])


def test_sums_are_those_of_photutils():
    photutils = pytest.importorskip("photutils.aperture")
    data, at = noisy(), places()
    frame = Frame(data)
    table = measure_apertures(frame, flat(90.0, 3.0), at, radii_px=(0.4, 3.0, 7.3))
    for k, r in enumerate((0.4, 3.0, 7.3), 1):
        error = np.sqrt(9.0 + np.maximum(data.astype(float) - 90.0, 0.0))
        other = photutils.aperture_photometry(
            data.astype(float) - 90.0, photutils.CircularAperture(at, r), error=error
        )
        assert np.allclose(table[f"aper{k}_e"], other["aperture_sum"], rtol=1e-6)
        assert np.allclose(table[f"aper{k}_err_e"], other["aperture_sum_err"], rtol=1e-6)


def test_sums_are_those_of_sep():
    sep = pytest.importorskip("sep")
    data, at = noisy(), places()
    table = measure_apertures(Frame(data), flat(), at, radii_px=(4.5,))
    flux, _, _ = sep.sum_circle(data.astype(float), at[:, 0], at[:, 1], 4.5, subpix=0)
    assert np.allclose(table["aper1_e"], flux, rtol=1e-6)


def test_the_ring_is_that_of_photutils():
    photutils = pytest.importorskip("photutils.aperture")
    from astropy.stats import SigmaClip

    data, at = noisy(), places()
    data[::9, ::7] += 500.0  # stars in the rings
    table = measure_apertures(Frame(data), flat(), at, radii_px=(3.0,), annulus_px=(7.0, 12.0))
    ring = photutils.CircularAnnulus(at, 7.0, 12.0)
    stats = photutils.ApertureStats(
        data.astype(float), ring, sum_method="center",
        sigma_clip=SigmaClip(3.0, maxiters=None, cenfunc="median", stdfunc="std"),
    )
    assert np.allclose(table["background_e"], stats.median, rtol=1e-6)
    assert np.allclose(table["background_std_e"], stats.std, rtol=1e-5)
    own = stats.center_aper_area.value if hasattr(stats.center_aper_area, "value") else None
    assert own is None or np.array_equal(table["n_background"], own)


def test_kernels_do_what_their_twins_do():
    data, at = noisy(), places(12, edge=4)
    unusable = np.zeros(SHAPE, bool)
    unusable[::5, ::6] = True
    data[3, 3] = np.nan
    x, y = np.ascontiguousarray(at.T)
    level, sigma = np.full(len(x), 95.0), np.full(len(x), 3.0)
    for mirror in (False, True):
        out, flags = np.empty((len(x), 3)), np.zeros(len(x), np.int32)
        fluxkernels.aperture_sums(
            data, unusable, np.zeros((0, 0), np.float32), level, sigma, 2.0, 105.0, x, y, 4.2,
            mirror, out, flags,
        )
        for n in range(len(x)):
            expected, flag = twins.aperture_sum(
                data, unusable, level[n], sigma[n], 2.0, 105.0, x[n], y[n], 4.2, mirror
            )
            assert np.allclose(out[n], expected, rtol=5e-4, atol=1.0, equal_nan=True)
            assert flags[n] == flag
    ring = np.empty((len(x), 4))
    fluxkernels.ring_levels(data, unusable, x, y, 5.0, 9.0, 2.5, ring)
    for n in range(len(x)):
        assert np.allclose(ring[n], twins.ring_level(data, unusable, x[n], y[n], 5.0, 9.0, 2.5))


def test_fluxes_and_errors_are_those_of_the_truth():
    rng = np.random.default_rng(5)
    gx, gy = np.meshgrid(np.arange(25, 600, 50.0), np.arange(25, 600, 50.0))
    x, y = np.stack([gx.ravel(), gy.ravel()]) + rng.uniform(-0.5, 0.5, (2, gx.size))
    flux = np.geomspace(500, 50000, len(x))
    gain, sky, read = 2.0, 100.0, 4.0
    image = observe(light_of(x, y, flux, gauss(2.5), (600, 600), 18), sky, read, gain, rng)
    frame = Frame(image.astype(np.float32), gain_e_adu=gain)
    sigma = np.sqrt(sky + read**2) / gain
    mesh = flat(sky / gain, sigma, (600, 600))
    for annulus in (None, (12.0, 20.0)):
        table = measure_apertures(
            frame, mesh, np.column_stack([x, y]), radii_px=(3.0, 6.0), annulus_px=annulus
        )
        pull = (table["aper2_e"] - flux) / table["aper2_err_e"]
        assert abs(pull.mean()) < 4 / np.sqrt(len(x))
        assert 0.85 < pull.std() < 1.15
        assert 0.9 < np.sum(table["aper1_e"]) / flux.sum() < 0.99, "a smaller one has less"
        if annulus:
            assert np.allclose(table["background_e"], sky, atol=6 * table["background_err_e"].max())
            assert (table["background_err_e"] > 0).all()
            assert (table["n_background"] > 700).all()


def test_the_error_of_the_ring_counts_with_the_area_squared():
    data = noisy()
    frame, at = Frame(data, gain_e_adu=1e9), places()
    table = measure_apertures(frame, flat(100.0, 3.0), at, radii_px=(8.0,), annulus_px=(9.0, 10.0))
    own = np.pi * 64 * table["background_std_e"] ** 2
    ring = (np.pi * 64 * table["background_err_e"]) ** 2
    assert np.allclose(table["aper1_err_e"] ** 2, own + ring, rtol=1e-5)
    assert (ring > 0.5 * own).all()


def test_a_masked_pixel_is_mirrored_or_makes_the_flux_unknown():
    star = light_of([50.0], [40.0], [1000.0], gauss(3.0), SHAPE, 15).astype(np.float32)
    mask = np.zeros(SHAPE, np.uint32)
    mask[41, 51] = mask_dictionary()["dark_high"]
    broken = star.copy()
    broken[41, 51] = 1e6
    at, mesh = [[50.0, 40.0]], flat()
    whole = measure_apertures(Frame(star), mesh, at, radii_px=(5.0,))
    mirrored = measure_apertures(Frame(broken, mask=mask), mesh, at, radii_px=(5.0,))
    assert np.isclose(mirrored["aper1_e"], whole["aper1_e"], rtol=1e-5)
    assert np.isclose(mirrored["aper1_masked"], 1 / (np.pi * 25))
    assert mirrored["flags"] == SourceFlag.BAD_PIXEL
    assert mirrored["mask_bits"] == mask_dictionary()["dark_high"]
    table = measure_apertures(Frame(broken, mask=mask), mesh, at, radii_px=(0.6, 5.0), masked="nan")
    assert np.isfinite(table["aper1_e"])
    assert np.isnan(table["aper2_e"])
    assert np.isnan(table["aper2_err_e"])
    mask[39, 49] = mask[41, 51]
    both = measure_apertures(Frame(broken, mask=mask), mesh, at, radii_px=(5.0,))
    assert np.isnan(both["aper1_e"]), "its mirror is masked too"
    harmless = np.zeros_like(mask)
    harmless[41, 51] = mask_dictionary()["detected"]
    table = measure_apertures(Frame(star, mask=harmless), mesh, at, radii_px=(5.0,))
    assert table["flags"] == 0
    assert table["mask_bits"] == mask_dictionary()["detected"]


def test_what_leaves_the_frame_is_never_zero():
    data = np.ones(SHAPE, np.float32)
    at = [[0.5, 40.0], [-30.0, 40.0], [np.nan, 3.0], [50.0, 40.0]]
    table = measure_apertures(Frame(data), flat(), at, radii_px=(4.0,), masked="nan")
    assert np.isnan(table["aper1_e"][:3]).all()
    assert (table["flags"][:3] & SourceFlag.EDGE != 0).all()
    assert table["flags"][3] == 0
    assert table["aper1_e"][3] == pytest.approx(np.pi * 16)
    assert table["aper1_masked"][1] == pytest.approx(1.0)
    mirrored = measure_apertures(Frame(data), flat(), at, radii_px=(4.0,), annulus_px=(5.0, 7.0))
    assert np.isnan(mirrored["aper1_e"][1:3]).all(), "nor is its mirror seen"
    assert (mirrored["flags"][:3] & SourceFlag.EDGE != 0).all()


def test_saturation_and_given_variance_count():
    data = noisy()
    data[40, 50] = 5000.0
    frame = Frame(data, saturation_adu=4000.0, variance=np.full(SHAPE, 400.0, np.float32))
    at = [[50.0, 40.0], [20.0, 20.0]]
    table = measure_apertures(frame, flat(100.0, 3.0), at, radii_px=(3.0,))
    assert table["flags"].tolist() == [SourceFlag.SATURATED, 0]
    assert table["mask_bits"].tolist() == [mask_dictionary()["saturated"], 0]
    assert table["aper1_err_e"][1] > np.sqrt(np.pi * 9 * 400.0) * 0.99


def test_the_same_bits_whatever_the_threads_and_none_is_a_table():
    data, at = noisy(), np.tile(places(), (120, 1))
    one = measure_apertures(Frame(data), flat(100.0), at, annulus_px=(6.0, 9.0))
    two = measure_apertures(Frame(data), flat(100.0), at, annulus_px=(6.0, 9.0), threads=3)
    assert one.tobytes() == two.tobytes()
    none = measure_apertures(Frame(data), flat(), np.zeros((0, 2)))
    assert none.dtype == aperture_schema(3).dtype
    assert len(none) == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"radii_px": (0.0,)}, "radii"), ({"radii_px": ()}, "radii"),
        ({"annulus_px": (5.0, 5.0)}, "inner"),
    ],
)
def test_radii_that_make_no_sense_are_refused(more, said):
    with pytest.raises(SettingError, match=said):
        measure_apertures(Frame(noisy()), flat(), places(), **more)


@pytest.mark.parametrize("at", [[1.0, 2.0, 3.0], np.zeros((2, 3)), np.zeros(3, [("a", float)])])
def test_places_that_are_none_are_refused(at):
    with pytest.raises(SettingError, match="positions"):
        measure_apertures(Frame(noisy()), flat(), at)
