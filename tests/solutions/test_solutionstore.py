"""The store as a library sees it: what goes in comes out, as tables with units and as WCS's."""

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import QTable
from headerlets import make_headerlet

import cynosure
from cynosure.ground.errors import CynosureError, ImageError, SettingError

NAMES = ("IDC_0461802ej", "IDC_0461802ej-FIT_REL_GAIADR2", "IDC_0461802ej-GSC240")


@pytest.fixture
def files(tmp_path):
    """Give a folder of three headerlets of one exposure and one of another, elsewhere."""
    folder = tmp_path / "headerlets"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        cards = {"RMS_RA": 3.5, "RMS_DEC": 4.5, "NMATCH": 77, "CATALOG": "GAIADR2"}
        data = make_headerlet(wcsname=name, ra=150.0 + 1e-5 * number, tables=False,
                              primary=cards if "GAIADR2" in name else None)
        (folder / f"{number}_hlet.fits").write_bytes(data)
    (folder / "other_hlet.fits").write_bytes(
        make_headerlet("j95y05abq", ra=10.0, dec=-60.0, tables=False)
    )
    return folder


@pytest.fixture
def store(tmp_path):
    """Give a store that is made anew."""
    with cynosure.SolutionStore(tmp_path / "solutions.db", create=True) as opened:
        yield opened


def test_a_folder_goes_in_once(store, files):
    added = store.add(files)
    assert (added.new, added.known) == (4, 0)
    again = store.add(*sorted(files.iterdir()))
    assert (again.new, again.known) == (0, 4)
    assert len(store) == 4


def test_what_is_found_is_a_table_with_units(store, files):
    store.add(files)
    table = store.find(rootname="j95y04hpq")
    assert isinstance(table, QTable)
    assert set(table["wcsname"]) == set(NAMES)
    assert table["rms_ra_mas"].unit == u.mas
    fit = table[table["catalog"] == "GAIADR2"]
    assert fit["rms_ra_mas"].value.tolist() == [3.5]
    assert fit["nmatch"].tolist() == [77.0]
    assert np.abs(table["ra_deg"].to_value(u.deg) - 150.0).max() < 0.05


def test_a_place_is_astropys(store, files):
    store.add(files)
    centre = SkyCoord(10.0, -60.0, unit="deg")  # in the gap between the chips
    there = centre.directional_offset_by(30 * u.deg, 10 * u.arcsec)
    assert set(store.find(center=there)["rootname"]) == {"j95y05abq"}
    away = there.directional_offset_by(0 * u.deg, 12 * u.arcmin)
    assert len(store.find(center=away)) == 0
    assert len(store.find(center=away, radius=15 * u.arcmin)) == 1
    with pytest.raises(SettingError, match="radius"):
        store.find(center=there, radius=3 * u.m)


def test_nothing_found_is_a_table_without_rows(store):
    table = store.find(rootname="nobody")
    assert len(table) == 0
    assert table["rms_dec_mas"].unit == u.mas
    assert "wcsname" in table.colnames


def test_the_best_comes_back_as_a_headerlet_with_its_wcs(store, files):
    store.add(files)
    decision = store.best("j95y04hpq")
    assert decision.wcsname == NAMES[1]
    headerlet = store.headerlet(decision.content_sha256)
    assert isinstance(headerlet, cynosure.Headerlet)
    assert headerlet.wcsname == NAMES[1]
    direct = cynosure.read_headerlet(files / "1_hlet.fits")
    mine, theirs = (h.wcs(1, shape=(2048, 4096)).pixel_to_world(100, 200)
                    for h in (headerlet, direct))
    assert mine.separation(theirs).arcsec < 1e-9


def test_a_headerlet_itself_goes_in(store, files):
    store.add(cynosure.read_headerlet(files / "0_hlet.fits"))
    assert store.find()["wcsname"].tolist() == [NAMES[0]]
    assert store.add(files / "0_hlet.fits").known == 1


def test_what_is_not_there_is_an_error(store, tmp_path):
    with pytest.raises(ImageError):
        store.add(tmp_path / "missing.fits")
    with pytest.raises(CynosureError):
        store.headerlet("0" * 64)
