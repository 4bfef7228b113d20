"""Instrument files: what they say is used, what they misspell is named."""

import math

import pytest
from astropy.io.fits import Header

from cynosure.data.header import mjd_of_text
from cynosure.data.instrument import Instrument, identify, instrument_names, load_instrument
from cynosure.ground.errors import SettingError


def write(tmp_path, text):
    path = tmp_path / "own.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", instrument_names())
def test_every_shipped_file_is_sound(name):
    camera = load_instrument(name)
    assert camera.name == name
    assert camera.title
    assert camera.status in ("verified", "documents", "draft")
    assert camera.identify or name in ("generic", "startracker")
    if camera.mask_planes and camera.mask_kind == "bits":
        assert all(v & (v - 1) == 0 for v in camera.mask_planes.values()), "a bit is a power of two"
    assert set(camera.mask_bad) <= set(camera.mask_planes.values())


def test_the_shipped_ones_are_those_that_are_documented():
    wanted = {
        "generic", "ptf_p48", "decam_cp", "lco", "hst_acs_wfc", "hst_wfc3_ir", "hst_wfc3_uvis",
        "hst_wfpc2", "hst_stis", "last", "condor_array", "dslr", "startracker",
    }  # fmt: skip
    assert wanted <= set(instrument_names())


@pytest.mark.parametrize(
    ("cards", "name"),
    [
        ({"INSTRUME": "PTF/MOSAIC"}, "ptf_p48"),
        ({"INSTRUME": "DECam   "}, "decam_cp"),
        ({"ORIGIN": "LCOGT"}, "lco"),
        ({"TELESCOP": "HST", "INSTRUME": "WFC3", "DETECTOR": "IR"}, "hst_wfc3_ir"),
        ({"TELESCOP": "HST", "INSTRUME": "WFC3", "DETECTOR": "UVIS"}, "hst_wfc3_uvis"),
        ({"TELESCOP": "HST", "INSTRUME": "ACS", "DETECTOR": "WFC"}, "hst_acs_wfc"),
        ({"TELESCOP": "HST", "INSTRUME": "WFPC2", "DETECTOR": 1}, "hst_wfpc2"),
        ({"PROJNAME": "LAST.01.02.03"}, "last"),
        ({"TELESCOP": "Condor Array Telescope"}, "condor_array"),
        ({"BAYERPAT": "RGGB"}, "dslr"),
        ({"INSTRUME": "WFC3"}, "generic"),
        ({}, "generic"),
    ],
)
def test_headers_are_recognised(cards, name):
    assert identify(Header(cards)) == name


def test_own_keywords_come_first(tmp_path):
    camera = load_instrument(write(tmp_path, '[header]\ngain = "MYGAIN"\n'))
    assert camera.aliases["gain"][0] == "MYGAIN"
    assert "EGAIN" in camera.aliases["gain"]
    assert camera.name == "own"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("scale = 1.0", "generic"),
        ("[values]\nscale_arcsecs = 1.0", "scale_arcsec"),
        ("[header]\ngains = 'X'", "gain"),
        ("[[flip]]\nbefor = '2020-01-01'", "before"),
        ("[layout]\nscienc = 'SCI'", "science"),
        ("[mask]\nplanes = {hot = 16}\nbad = ['hott']", "hot"),
        ("status = 'verifed'", "verified"),
        ("[[companion]]\nrole = 'maks'\nreplace = ['a', 'b']", "mask"),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest(tmp_path, text, hint):
    with pytest.raises(SettingError) as caught:
        load_instrument(write(tmp_path, text))
    assert hint in caught.value.hint or hint == "generic"
    assert "own.toml" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[values]\nparity = 2",
        "[values]\nscale_arcsec = 'one'",
        "[values]\ndate_is = 'later'",
        "[[flip]]\nbefore = 'spring'",
        "[[companion]]\nrole = 'mask'\nreplace = ['a']",
        "[mask]\nkind = 'numbers'",
        "name = ",
    ],
)
def test_a_wrong_value_is_refused(tmp_path, text):
    with pytest.raises(SettingError):
        load_instrument(write(tmp_path, text))


def test_an_unknown_name_and_a_missing_file(tmp_path):
    with pytest.raises(SettingError) as caught:
        load_instrument("decam")
    assert "decam_cp" in caught.value.hint
    with pytest.raises(SettingError, match="No such file"):
        load_instrument(tmp_path / "none.toml")


FLIPS = """
[values]
parity = 1
rotation_deg = 10.0
rotation_error_deg = 2.0

[[flip]]
before = "2021-05-24T11:35:53"
turn_deg = 180.0
mirror = true
only = { CAMERA = "east*" }

[[flip]]
after = "2023-01-01"
before = "2024-01-01"
rotation_deg = 90.0
rotation_error_deg = 5.0
parity = -1
dec_offset_deg = 0.25
"""


def test_flips_hold_in_their_dates_and_for_their_cameras(tmp_path):
    camera = load_instrument(write(tmp_path, FLIPS))
    east, west = Header({"CAMERA": "East-3"}), Header({"CAMERA": "west"})
    last_second = mjd_of_text("2021-05-24T11:35:52")
    early = camera.mount(last_second, east)
    assert (early["parity"], early["rotation_deg"]) == (-1, 190.0)
    at_the_change = camera.mount(mjd_of_text("2021-05-24T11:35:53"), east)
    assert (at_the_change["parity"], at_the_change["rotation_deg"]) == (1, 10.0)
    assert camera.mount(last_second, west)["rotation_deg"] == 10.0
    assert camera.mount(last_second)["rotation_deg"] == 10.0
    middle = camera.mount(mjd_of_text("2023-06-01"), west)
    assert (middle["parity"], middle["rotation_deg"]) == (-1, 90.0)
    assert (middle["rotation_error_deg"], middle["dec_offset_deg"]) == (5.0, 0.25)
    assert camera.mount(math.nan, east)["rotation_deg"] == 10.0, "no date, no flip"


def test_the_condor_cameras_were_turned_on_a_day_in_may():
    flip = load_instrument("condor_array").flips[0]
    assert flip.before_mjd == pytest.approx(mjd_of_text("2021-05-24T11:35:53"))
    assert flip.turn_deg == 180.0


def test_a_mount_of_unknown_rotation_stays_unknown():
    mount = Instrument().mount(60000.0)
    assert mount["rotation_deg"] is None
    assert mount["rotation_error_deg"] == 180.0
    assert mount["parity"] == 0
