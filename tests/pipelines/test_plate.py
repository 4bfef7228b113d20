"""From sources to the sky: which stars are referred to, and what a header is believed."""

from types import SimpleNamespace

import numpy as np
import pytest
from planted import plant, wcs_of

from cynosure.data.catalogs.refcat import open_refcat
from cynosure.data.fits.reader import read
from cynosure.data.frame import Frame, Pointing
from cynosure.data.tables import REFERENCE, SOURCES, SourceFlag
from cynosure.geometry.fit.chip import _alone, _prior
from cynosure.geometry.reference import Reference, reference_stars, select_reference
from cynosure.geometry.wcs import SkyModel, model_to_header
from cynosure.ground.errors import CatalogMissing, NoMatch, NotEnoughReference, NotEnoughStars
from cynosure.ground.sky import separation_deg
from cynosure.pipelines.extract import extract_sources
from cynosure.pipelines.plate import _moved, _where, solve_plate
from cynosure.pipelines.run import default_settings
from cynosure.pipelines.solve import solve

SHAPE = (500, 600)
SCALE = 0.4 / 3600.0
SETTINGS = default_settings()


# ---------------------------------------------------------------------------- reference stars
def catalog(n=20, **columns):
    defaults = {"ref_id": np.arange(n), "ra_deg": np.linspace(10, 10.1, n),
                "dec_deg": np.full(n, 20.0), "mag": np.linspace(10, 20, n), "ref_epoch_yr": 2016.0,
                "ra_error_mas": 0.1, "dec_error_mas": 0.1, "good": True}
    return REFERENCE.build(**{**defaults, **columns})


def test_reference_stars_are_cut_in_magnitude_quality_and_error():
    error = np.where(np.arange(20) == 3, 9e3, 0.1)
    stars = catalog(good=np.arange(20) % 4 > 0, dec_error_mas=error)
    keep = select_reference(stars, min_mag=11.0, max_mag=19.0)
    assert not keep[stars["mag"] < 11].any()
    assert not keep[stars["mag"] > 19].any()
    assert not keep[~stars["good"]].any()
    assert not keep[3]
    assert select_reference(stars, require_good=False).sum() == 19
    assert select_reference(catalog(good=False)).all(), "better such stars than none"
    unknown = catalog(ra_error_mas=np.nan, dec_error_mas=np.nan)
    assert select_reference(unknown).all(), "an error that is not known is not a large one"


class Sky:
    """A catalogue of one table."""

    name = "TEST"

    def __init__(self, stars, stated=("ra_error_mas",)):
        self.stars = stars
        self.meaning = SimpleNamespace(sources=dict.fromkeys(stated), position_error_mas=60.0)

    def cone(self, *circle, **cuts):
        return self.stars

    def all(self):
        return self.stars

    def info(self):
        return {"rows": len(self.stars)}


def test_an_unknown_epoch_moves_nothing_and_widens_what_moves():
    stars = catalog(pm_ra_mas_yr=np.arange(20.0), pm_dec_mas_yr=0.0, parallax_mas=1.0,
                    pm_ra_error_mas_yr=0.1, pm_dec_error_mas_yr=0.1, parallax_error_mas=0.1)
    known, epoch = reference_stars(Sky(stars), 10, 20, 1, 2026.0, {"refcat": {}}, 10)
    assert epoch == 2026.0
    moved = (known.ra_deg - stars["ra_deg"]) * np.cos(np.radians(20)) * 3.6e6
    assert np.abs(moved - 10 * np.arange(20)).max() < 2.0, "the parallax is within a mas"
    unknown, epoch = reference_stars(Sky(stars), 10, 20, 1, None, {"refcat": {}}, 10)
    assert epoch == 2016.0
    assert np.abs(unknown.ra_deg - stars["ra_deg"]).max() * 3.6e6 < 2.0
    sigma = np.sqrt(unknown.cov_mas2[:, 0])
    assert sigma[10] == pytest.approx(100.0, rel=0.1)
    assert sigma[0] < 5.0


def test_what_is_assumed_of_all_stars_alike_is_left_to_the_fit():
    stars = catalog(ra_error_mas=60.0, dec_error_mas=60.0)
    silent, _ = reference_stars(Sky(stars, ()), 10, 20, 1, 2026.0, {"refcat": {}}, 10)
    assert np.sqrt(silent.cov_mas2[0, 0]) == pytest.approx(np.hypot(60, 70), rel=0.01)
    assert np.sqrt(silent.stated_mas2[0, :2]).max() < 1.0
    told, _ = reference_stars(Sky(stars), 10, 20, 1, 2026.0, {"refcat": {}}, 10)
    assert np.sqrt(told.stated_mas2[0, 0]) == pytest.approx(60, rel=0.01)
    some = catalog(pm_ra_mas_yr=np.where(np.arange(20) < 3, 5.0, np.nan), pm_dec_mas_yr=0.0)
    mixed, _ = reference_stars(Sky(some), 10, 20, 1, 2026.0, {"refcat": {}}, 10)
    assert np.array_equal(mixed.stated_mas2, mixed.cov_mas2), "some stars lack a motion, not all"


def test_a_catalogue_says_where_it_is():
    text = _where(Sky(catalog()))
    assert "its 20 stars lie within 0.0" in text
    assert "10.0500 +20.0000" in text
    assert "radians" not in text
    assert "radians" in _where(Sky(catalog(ra_deg=np.linspace(2.6, 2.61, 20), dec_deg=0.5)))
    assert _where(Sky(catalog(1)[:0])) == ""
    whole = catalog(ra_deg=np.linspace(0, 350, 20), dec_deg=np.linspace(-80, 80, 20))
    assert _where(Sky(whole)) == ""


# ---------------------------------------------------------- what the header of an image is worth
def model_of(rotation_deg=0.0, cubic_px=0.0, ra=40.0, dec=35.0, scale=SCALE):
    """Return a model of the frame: a rotation, and a cubic distortion of so much in the corner."""
    turn, half = np.radians(rotation_deg), max(SHAPE) / 2
    matrix = np.array([[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    pixels = np.zeros((2, 10))
    pixels[0, 1] = pixels[1, 2] = 1.0
    pixels[0, 6] = pixels[1, 9] = cubic_px / half
    coeff = matrix @ pixels
    x0, y0 = (SHAPE[1] - 1) / 2, (SHAPE[0] - 1) / 2
    return SkyModel(ra, dec, x0, y0, half, coeff * half * scale)


def frame_of(model):
    header = model_to_header(model, "tpv", shape=SHAPE)
    return Frame(np.zeros(SHAPE, np.float32), header=header, wcs=wcs_of(header))


def away_px(a, b, linear=False):
    """Return how far two models are apart, (n, 2); without the linear part where it is said."""
    grid = np.meshgrid(np.linspace(0, SHAPE[1], 7), np.linspace(0, SHAPE[0], 7))
    x, y = (v.ravel() for v in grid)
    off = np.stack(b.sky_to_pixel(*a.pixel_to_sky(x, y)), axis=1) - np.stack([x, y], axis=1)
    design = np.stack([np.ones_like(x), x, y], axis=1)
    if linear:
        off -= design @ np.linalg.lstsq(design, off, rcond=None)[0]
    return off


@pytest.mark.parametrize("off", [(0.0, 0.0), (0.4, -0.3)])
def test_a_header_that_only_points_wrong_may_be_shifted(off):
    true = model_of(30.0, 2.0)
    old = model_of(30.0, 2.0, 40.0 + off[0], 35.0 + off[1])
    prior, lowest = _prior(frame_of(old), model_of(30.0))
    assert lowest == "shift"
    assert prior.degree == 3
    moved = away_px(prior, true)
    assert np.ptp(moved, axis=0).max() < 1.0, "but for a shift it is the true one"


@pytest.mark.parametrize("old", [model_of(32.0, 2.0), model_of(210.0, 2.0),
                                 model_of(30.0, 2.0, scale=1.03 * SCALE)])
def test_of_a_header_that_is_turned_or_scaled_the_distortion_is_kept(old):
    true = model_of(30.0, 2.0)
    prior, lowest = _prior(frame_of(old), model_of(30.0))
    assert lowest == "general", "its linear part is that of the stars"
    assert prior.degree == 3
    assert np.abs(away_px(prior, true, linear=True)).max() < 0.05
    assert np.abs(away_px(prior, true)).max() < 2.0


def test_a_header_of_another_image_is_not_believed():
    prior, lowest = _prior(frame_of(model_of(30.0, 60.0)), model_of(30.0))
    assert prior is None
    assert lowest == "general"
    none = Frame(np.zeros(SHAPE, np.float32))
    assert _prior(none, model_of()) == (None, "general")


# --------------------------------------------------------------------------------- few stars
@pytest.fixture(scope="module")
def poor(tmp_path_factory):
    """Give fields of a dozen stars, the header turned, and their outcomes."""
    out = []
    for seed in range(40, 52):
        field = plant(
            tmp_path_factory.mktemp("poor"), seed,
            sky={"n_stars": 16, "mag_bright": 13.0, "mag_faint": 17.0, "margin_deg": 0.3,
                 "galaxy_fraction": 0.0},
            distortion={"radial3": 0.0}, artefacts={"cosmic_rays": 0},
            header={"rotation_error_deg": 50.0, "pointing_error_deg": 0.1},
        )
        out.append((field, solve(field.image, field.refcat)))
    return out


def test_the_error_of_a_wcs_from_a_dozen_stars_is_told_honestly(poor):
    pulls, forms = [], []
    for field, outcome in poor:
        if not outcome.headers:
            continue
        (header,) = outcome.headers.values()
        error = field.error_mas(header, n=3)[[0, 2, 6, 8]]
        pulls.append(np.sqrt(np.mean(error**2)) / outcome.solution.wcs_error_mas["corner"])
        forms.append(outcome.solution.chips[0]["fit"])
    assert len(pulls) >= 10, "a dozen stars are enough to recognise a field"
    assert "shift" not in forms, "a shift of what the same stars have taught has no honest error"
    # The prediction is that of the worst corner.
    assert 0.25 < np.sqrt(np.mean(np.square(pulls))) < 1.4
    assert np.max(pulls) < 3.5


def test_a_trail_in_a_poor_field_is_not_a_crowd_of_stars(tmp_path):
    field = plant(
        tmp_path, 8, sky={"n_stars": 30, "mag_bright": 13.0, "mag_faint": 17.5},
        artefacts={"trails": 3, "trail_e": 900.0, "cosmic_rays": 30},
    )
    frame = read(field.image).frames[0]
    part = extract_sources(frame, SETTINGS)
    assert part.psf is not None
    assert part.psf.fwhm_px == pytest.approx(2.7, abs=0.5)
    assert solve(field.image, field.refcat).solution.status == "solved"


# ------------------------------------------------------------------------------------ failures
def sources_of(n, flags):
    rng = np.random.default_rng(4)
    return SOURCES.build(
        x=rng.uniform(0, SHAPE[1], n), y=rng.uniform(0, SHAPE[0], n), x_err=0.1, y_err=0.1,
        flux_e=np.linspace(1e4, 1e3, n), fwhm_px=2.5, snr=50.0, flags=int(flags),
    )


def reference_of(model, sources):
    ra, dec = model.pixel_to_sky(sources["x"], sources["y"])
    n = len(sources)
    return Sky(catalog(n, ra_deg=ra, dec_deg=dec, mag=np.linspace(10, 14, n)))


def test_a_field_whose_stars_cannot_be_measured_says_so():
    sources = sources_of(40, SourceFlag.SATURATED)
    model = model_of(10.0)
    near = Pointing(40.0, 35.0, 0.1, 0.4)
    with pytest.raises(NotEnoughStars, match=r"recognised by 40 stars.*40 saturated"):
        solve_plate([frame_of(model)], [sources], reference_of(model, sources), near, SETTINGS,
                    epoch_yr=2016.0)


def test_an_image_without_sources():
    model = model_of()
    with pytest.raises(NotEnoughStars, match="0 stars found"):
        solve_plate([frame_of(model)], [SOURCES.empty()], Sky(catalog()), Pointing(40.0, 35.0),
                    SETTINGS, epoch_yr=2016.0)


def test_without_a_pointing_a_catalogue_of_one_region_is_searched_whole():
    sources, model = sources_of(40, 0), model_of(100.0)
    refcat = reference_of(model, sources)
    frame = Frame(np.zeros(SHAPE, np.float32))
    known = Pointing(scale_arcsec=0.41)
    plate = solve_plate([frame], [sources], refcat, known, SETTINGS, epoch_yr=2016.0)
    assert len(plate.chips[0].source_index) > 30
    assert "the whole of TEST was searched" in plate.notes[0]
    wide = Sky(catalog(ra_deg=np.linspace(0, 350, 20)))
    with pytest.raises(NoMatch, match="no pointing, and TEST covers"):
        solve_plate([frame], [sources], wide, Pointing(), SETTINGS, epoch_yr=2016.0)
    with pytest.raises(CatalogMissing, match="no stars"):
        solve_plate([frame], [sources], Sky(catalog(1)[:0]), Pointing(), SETTINGS, epoch_yr=2016.0)


@pytest.mark.parametrize(("n", "clean"), [(500, True), (100, False), (30000, False)])
def test_stars_with_companions_are_left_out_as_strictly_as_the_field_allows(n, clean):
    model = model_of()
    rng = np.random.default_rng(n)
    x, y = rng.uniform(0, SHAPE[1], n), rng.uniform(0, SHAPE[0], n)
    mag = np.full(n, 15.0)
    # The first is blended, the second has a faint companion beside it, the third a hopeless one.
    x[:6], y[:6] = [50, 52, 90, 95, 150, 155], 60.0
    mag[:6] = [14, 15, 14, 18, 14, 20]
    keep = np.hypot(x[:, None] - x[:6], y[:, None] - y[:6]).min(axis=1) > 9
    keep[:6] = True
    stars = catalog(n, mag=mag)[keep]
    ra, dec = model.pixel_to_sky(x[keep], y[keep])
    none = np.zeros((len(ra), 3))
    alone = _alone(Reference(stars, ra, dec, none, none), model, 2.0)
    assert list(alone[:6]) == [False, False, not clean, not clean, True, not clean]


def test_stars_that_look_like_none_are_asked_where_the_others_do_not_know():
    sources, model = sources_of(60, 0), model_of(100.0)
    refcat = reference_of(model, sources)
    frame = Frame(np.zeros(SHAPE, np.float32))
    sources["flags"][12:] = SourceFlag.COSMIC
    # The dozen that look like stars are none.
    sources["x"][:12], sources["y"][:12] = sources["y"][:12], sources["x"][:12] * 0.7
    known = Pointing(scale_arcsec=0.41)
    with pytest.raises(NotEnoughStars, match=r"recognised by \d+ stars.*48 cosmic"):
        solve_plate([frame], [sources], refcat, known, SETTINGS, epoch_yr=2016.0)
    sources["flags"][12:18] = 0
    with pytest.raises(NotEnoughStars, match=r"but only \d of its 60 sources are measured"):
        solve_plate([frame], [sources], refcat, known, SETTINGS, epoch_yr=2016.0)
    sources["flags"][30:] = 0
    plate = solve_plate([frame], [sources], refcat, known, SETTINGS, epoch_yr=2016.0)
    assert len(plate.chips[0].source_index) > 20


def test_a_field_whose_stars_are_all_cut_is_not_called_uncovered():
    model = model_of()
    sky = Sky(catalog(ra_error_mas=4000.0, dec_error_mas=4000.0))
    frame = frame_of(model)
    here = Pointing(10.05, 20.0, radius_deg=0.5, scale_arcsec=0.4)
    with pytest.raises(NotEnoughReference, match="leaves out all of them") as caught:
        solve_plate([frame], [sources_of(40, 0)], sky, here, SETTINGS, epoch_yr=2016.0)
    assert "max_error_mas 2000" in str(caught.value)
    assert "error is 4000 mas" in str(caught.value)
    assert "max_error_mas" in caught.value.hint


@pytest.mark.parametrize(("ra", "dec"), [(40.0, 35.0), (0.01, -60.0), (120.0, 89.6)])
def test_each_chip_is_looked_for_where_it_lies_from_the_first(ra, dec):
    first, other = model_of(30.0, ra=ra, dec=dec), model_of(30.0, ra=ra, dec=dec)
    # 20000 px beyond the first one's edge, and the header points 0.4 degrees off.
    other = other.replaced(x0=other.x0 - 20000.0)
    frames = [frame_of(first), frame_of(other)]
    off = Pointing(ra + 0.1, dec - 0.4, radius_deg=0.5)
    moved = _moved(off, frames[0], frames[1])
    x, y = (SHAPE[1] - 1) / 2, (SHAPE[0] - 1) / 2
    centres = [[float(v) for v in m.pixel_to_sky(x, y)] for m in (first, other)]
    step = float(separation_deg(*centres[0], *centres[1]))
    assert step > 1.5
    assert float(separation_deg(off.ra_deg, off.dec_deg, moved.ra_deg, moved.dec_deg)) == (
        pytest.approx(step, rel=1e-6)
    )
    if abs(dec) < 80:
        assert float(separation_deg(moved.ra_deg, moved.dec_deg, *centres[1])) < 0.5
    assert _moved(off, frames[0], frames[0]) is off
    assert _moved(off, frames[0], Frame(np.zeros(SHAPE, np.float32))) is off


def test_chips_without_a_wcs_cannot_be_one_plane():
    frames = [Frame(np.zeros(SHAPE, np.float32), chip=k) for k in (0, 1)]
    with pytest.raises(NoMatch, match="a WCS in every chip") as caught:
        solve_plate(frames, [sources_of(9, 0)] * 2, Sky(catalog()), Pointing(), SETTINGS,
                    epoch_yr=2016.0)
    assert "--chips apart" in caught.value.hint


def test_planted_fields_open(tmp_path):
    field = plant(tmp_path, 9)
    assert open_refcat(field.refcat).name == "GAIADR3"
