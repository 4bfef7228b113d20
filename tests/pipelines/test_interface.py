"""The Python interface as an astropy user meets it: quantities in, WCS and tables out."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import QTable, Table
from astropy.time import Time
from astropy.wcs import WCS
from astropy.wcs.wcsapi import BaseHighLevelWCS
from planted import apart_mas, grid, plant, wcs_of

import cynosure
from cynosure.data.tables import SOURCES
from cynosure.ground.errors import (
    CatalogDamaged,
    CynosureError,
    OutputExists,
    SettingError,
    Unverified,
)


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """Give a field whose header says nothing of where it points."""
    return plant(tmp_path_factory.mktemp("interface"), 61, header={"wcs": "none"})


@pytest.fixture(scope="module")
def stars(field):
    """Give its reference stars as an astropy table."""
    return Table.read(field.files.reference)


@pytest.fixture(scope="module")
def told(field):
    """Give the arguments that say where it points, in astropy's types."""
    centre = wcs_of(field.truth()).pixel_to_world(259.5, 229.5)
    return {
        "center": centre.directional_offset_by(40 * u.deg, 0.02 * u.deg),
        "radius": 6 * u.arcmin, "scale": 1.03 * u.arcsec / u.pix,
        "epoch": Time(2025.5, format="jyear"),
    }


@pytest.fixture(scope="module")
def outcome(field, stars, told):
    """Give what came of the pixels alone with a table in memory."""
    with fits.open(field.image) as hdus:
        image = fits.PrimaryHDU(hdus[0].data, hdus[0].header)
    return cynosure.solve(image, stars, **told)


def test_the_wcs_is_astropys_and_right(field, outcome):
    assert outcome.solved
    assert isinstance(outcome.wcs, WCS)
    assert isinstance(outcome.wcs, BaseHighLevelWCS)
    x, y = grid(field.truth())
    truth = wcs_of(field.truth())
    assert np.abs(apart_mas(outcome.wcs, truth, x, y)).max() < 150
    assert isinstance(outcome.wcs.pixel_to_world(10, 20), SkyCoord)
    assert list(outcome.chips) == ["0"]
    assert outcome.chips["0"].wcs is outcome.wcs


def test_the_error_of_the_wcs_is_that_of_the_record(field, outcome):
    error = outcome.wcs_error([259.5], [229.5])
    assert error.unit == u.mas
    assert error.shape == (1, 2)
    size = np.sqrt(np.mean(error[0].value ** 2))
    assert size == pytest.approx(outcome.solution.wcs_error_mas["center"], rel=1e-9)
    assert outcome.wcs_error(np.zeros((3, 1)), np.zeros(4)).shape == (3, 4, 2)
    with pytest.raises(SettingError, match="has no chip 'SCI,9'"):
        outcome.wcs_error(1, 1, chip="SCI,9")


def test_tables_come_with_units(outcome):
    assert isinstance(outcome.matches, QTable)
    assert isinstance(outcome.sources, QTable)
    assert len(outcome.matches) == outcome.solution.n_matched
    assert len(outcome.sources) == outcome.solution.n_sources
    assert outcome.matches["dra_mas"].unit == u.mas
    assert outcome.sources["flux_e"].unit == u.electron
    assert outcome.sources["x"].unit == u.pix
    used = outcome.matches["used"]
    rms = np.sqrt(np.mean(outcome.matches["dra_mas"][used] ** 2))
    assert rms.to_value(u.mas) == pytest.approx(outcome.solution.rms_ra_mas)
    assert "by the error model" in outcome.matches["sigma_ra_mas"].info.description


def test_plain_numbers_and_texts_say_the_same(field, outcome, told):
    centre = told["center"]
    again = cynosure.solve(
        field.image, field.files.reference, center=(centre.ra.deg, centre.dec.deg), radius=0.1,
        scale="1.03 arcsec", epoch="2025.5",
    )
    assert again.match_rows.tobytes() == outcome.match_rows.tobytes()


def test_a_catalogue_in_memory_of_any_kind(field, stars, told, outcome):
    columns = QTable(stars, copy=True)
    place = SkyCoord(columns["ra"], columns["dec"], unit="deg")
    columns.remove_columns(["ra", "dec"])
    columns["where"] = place
    rows = pq.read_table(field.files.reference)
    for catalog in (columns, rows, rows.to_pandas(), stars.as_array()):
        refcat = cynosure.open_refcat(catalog)
        cone = refcat.cone(told["center"].ra.deg, told["center"].dec.deg, 0.05)
        assert len(cone) > 20
        same = cynosure.open_refcat(field.files.reference).cone(
            told["center"].ra.deg, told["center"].dec.deg, 0.05
        )
        assert np.allclose(cone["ra_deg"], same["ra_deg"], atol=1e-9)


def test_settings_as_a_mapping(field, told):
    outcome = cynosure.solve(field.image, field.refcat, settings={"fit": {"max_order": 1}}, **told)
    assert outcome.solution.order == 1
    with pytest.raises(SettingError, match="max_ordre"):
        cynosure.solve(field.image, field.refcat, settings={"fit": {"max_ordre": 1}}, **told)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("center", "M31"), ("center", SkyCoord([1, 2], [1, 2], unit="deg")), ("radius", 3 * u.m),
     ("radius", -1.0), ("scale", 0.0), ("scale", "tiny"), ("epoch", "yesterday")],
)
def test_an_argument_that_cannot_be_is_refused_by_name(field, argument, value):
    with pytest.raises(SettingError, match=argument):
        cynosure.solve(field.image, field.refcat, **{argument: value})


@pytest.mark.parametrize("catalog", [5, object(), [1, 2, 3], np.zeros(4)])
def test_what_is_no_catalogue_is_told(field, catalog):
    outcome = cynosure.solve(field.image, catalog)
    assert outcome.solution.status == "failed"
    with pytest.raises(CatalogDamaged, match="neither a path nor a table"):
        cynosure.open_refcat(catalog)


def test_what_is_no_image_is_told(field):
    for image in (5, fits.BinTableHDU(Table({"a": [1]})), {"a": 1}):
        outcome = cynosure.solve(image, field.refcat)
        assert outcome.solution.status == "failed"
        assert "not a path, HDUList" in outcome.solution.reason


def test_an_image_that_failed_has_no_wcs_and_says_so(field):
    rng = np.random.default_rng(1)
    outcome = cynosure.solve(rng.normal(100, 1, (64, 64)), field.refcat, center=(1, 1), scale=1)
    assert not outcome.solved
    assert len(outcome.chips) == 0
    assert len(outcome.matches) == 0
    assert outcome.matches["dra_mas"].unit == u.mas
    for ask in (lambda: outcome.wcs, lambda: outcome.wcs_error(1, 1)):
        with pytest.raises(Unverified, match="no new WCS"):
            ask()


def test_chips_by_name(tmp_path):
    field = plant(
        tmp_path, 62, camera={"width_px": 300, "height_px": 420, "chip_x_px": [-160.0, 161.5],
                          "chip_y_px": [1.5, -0.7], "chip_rotation_deg": [0.3, -0.2]},
    )
    outcome = cynosure.solve(field.image, field.refcat)
    assert outcome.solved, outcome.solution
    names = list(outcome.chips)
    assert len(names) == 2
    for number, name in enumerate(names):
        chip = outcome.chips[name]
        truth = field.truth(number)
        assert np.abs(apart_mas(chip.wcs, wcs_of(truth), *grid(truth))).max() < 200
        word, version = name.split(",")
        assert outcome.chips[word.lower(), int(version)] is chip
        assert outcome.chips[number] is chip
    with pytest.raises(KeyError):
        outcome.chips["SCI,7"]


def test_source_finder_is_what_solve_uses(field, outcome):
    find = cynosure.SourceFinder()
    assert np.array_equal(find(field.image)["x"].value, outcome.source_rows["x"])
    few = cynosure.SourceFinder(threshold_sigma=50.0)(cynosure.read(field.image).frames[0])
    assert 0 < len(few) < len(outcome.sources)
    assert few.colnames == list(SOURCES.names)
    with pytest.raises(SettingError, match="threshhold"):
        cynosure.SourceFinder(threshhold=5.0)


def test_build_psf_of_an_image(field):
    psf = cynosure.build_psf(field.image)
    assert psf.fwhm_px == pytest.approx(2.6, rel=0.15)
    with pytest.raises(CynosureError):
        cynosure.build_psf(np.random.default_rng(0).normal(0, 1, (80, 80)))


def test_public_names_are_importable_documented_and_alone():
    assert dir(cynosure) == sorted(cynosure.__all__)
    for name in cynosure.__all__:
        thing = getattr(cynosure, name)
        assert isinstance(thing, str) or len(thing.__doc__) > 40, name


def test_an_outcome_writes_itself(field, outcome, tmp_path):
    files = outcome.write(tmp_path / "out", source=field.image)
    assert {f.name for f in files} == {
        "field_wcs.fits", "field.matches.parquet", "field.report.npz", "field.solution.json",
    }
    assert all(f.exists() for f in files)
    x, y = grid(field.truth())
    with fits.open(files[0]) as hdus:
        apart = apart_mas(wcs_of(hdus[0].header), outcome.wcs, x, y)
    assert np.abs(apart).max() < 1e-3
    with pytest.raises(OutputExists):
        outcome.write(tmp_path / "out", source=field.image)
