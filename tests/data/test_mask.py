"""The mask: its dictionary, other observatories' flags in it, and what it hides."""

import numpy as np
import pytest
from astropy.io import fits

from cynosure.data.fits.reader import read
from cynosure.data.frame import Frame
from cynosure.data.instrument import Instrument, instrument_names, load_instrument
from cynosure.data.mask import (
    MASK_CARD,
    PURPOSES,
    as_mask,
    bits_within,
    mask_dictionary,
    smallest_integers,
)
from cynosure.ground.errors import SettingError

BITS = mask_dictionary()


def test_bits_are_numbered_without_gaps_and_those_of_last_are_last():
    assert [b.bit for b in BITS.bits] == list(range(32))
    assert BITS["saturated"] == 1
    assert BITS["detected"] == 1 << 30
    assert all(set(b.spoils) <= set(PURPOSES) for b in BITS.bits)


def test_a_dictionary_says_what_spoils_what():
    assert BITS.spoiling("psf") & BITS["nonlinear"]
    assert not BITS.spoiling("photometry") & BITS["nonlinear"]
    assert not BITS.spoiling("detection") & BITS.value("detected", "near_edge", "overlap")
    for purpose in PURPOSES:
        assert BITS.spoiling(purpose) & BITS["unusable"]
    with pytest.raises(SettingError, match="saturatd") as caught:
        BITS["saturatd"]
    assert "saturated" in caught.value.hint
    with pytest.raises(SettingError, match="no purpose"):
        BITS.spoiling("beauty")
    with pytest.raises(SettingError, match="no mask dictionary"):
        mask_dictionary("nothing")


def test_a_frame_tells_what_is_unusable_for_what():
    mask = np.zeros((20, 30), np.uint32)
    mask[1, 2], mask[3, 4], mask[5, 6] = BITS["detected"], BITS["nonlinear"], BITS["nan"]
    frame = Frame(np.ones((20, 30), np.float32), mask=mask)
    assert np.argwhere(frame.unusable("detection")).tolist() == [[5, 6]]
    assert np.argwhere(frame.unusable("psf")).tolist() == [[3, 4], [5, 6]]
    assert frame.unusable("photometry") is frame.unusable("detection"), "one plane for both"
    assert frame.replaced(data=frame.data * 2).unusable("psf") is frame.unusable("psf")
    other = frame.replaced(mask=np.zeros_like(mask))
    assert not other.unusable("psf").any()
    assert frame.replaced(mask=None).unusable("psf") is None


def test_a_plane_of_bool_becomes_the_bit_unusable():
    flags = np.zeros((20, 30), bool)
    flags[2, 3] = True
    frame = Frame(np.ones((20, 30), np.float32), mask=flags)
    assert frame.mask.dtype == np.uint32
    assert frame.mask[2, 3] == BITS["unusable"]
    assert frame.mask.sum() == BITS["unusable"]


ACS = {
    0: "", 1: "unusable", 4: "unusable", 16: "dark_high", 32: "flaring", 64: "",
    256: "saturated", 2048: "saturated", 4096: "", 8192: "", 16 + 64: "dark_high",
    16 + 256: "dark_high saturated",
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hst_acs_wfc", ACS),
        ("hst_wfc3_uvis", {512: "flat_uncertain", 16: "dark_high", 1: "unusable", 32: ""}),
        ("hst_wfc3_ir", {128: "near_edge unusable", 512: "flat_uncertain", 256: "saturated"}),
        ("hst_stis", {32: "low_qe unusable", 1024: "low_qe", 256: "saturated"}),
        ("hst_wfpc2", {8: "saturated", 512: "", 1024: "dark_high", 2: "unusable"}),
        ("decam_cp", {1: "unusable", 2: "nan", 3: "saturated", 4: "bleeding", 7: "", 8: "streak"}),
        ("lco", {1: "unusable", 2: "saturated", 4: "unusable", 8: "cosmic_laplacian"}),
        ("last", {1 << 30: "detected", 1 << 14: "cosmic_delta"}),
        ("generic", {0: "", 1: "unusable", 1 << 20: "unusable"}),
    ],
)
def test_flags_of_observatories_become_bits_of_the_dictionary(name, expected):
    flags = np.array([list(expected)], dtype=np.int64)
    got = load_instrument(name).mask_of(flags)
    assert got.dtype == np.uint32
    assert [" ".join(sorted(BITS.names(v))) for v in got[0]] == list(expected.values())


@pytest.mark.parametrize("name", [n for n in instrument_names() if load_instrument(n).mask_bad])
def test_what_a_camera_calls_bad_is_unusable_for_everything(name):
    camera = load_instrument(name)
    mask = camera.mask_of(np.array([camera.mask_bad], dtype=np.int64))
    for purpose in PURPOSES:
        assert (mask & np.uint32(BITS.spoiling(purpose)) != 0).all()


def test_wide_flags_and_narrow_ones_are_translated_alike():
    camera = Instrument(mask_bits=((2, "saturated"), (1 << 20, "streak")), mask_bad=(4,))
    flags = np.array([[0, 2, 4, 6, 1 << 20, (1 << 20) + 2, -(1 << 30)]], dtype=np.int64)
    wide = camera.mask_of(flags)
    assert np.array_equal(wide[:, :4], camera.mask_of(flags[:, :4]))
    names = [" ".join(BITS.names(v)) for v in wide[0]]
    assert names == ["", "saturated", "unusable", "saturated", "streak", "saturated streak", ""]


def test_an_instrument_file_with_an_unknown_bit_is_refused(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text("[mask.planes]\nhot = 16\n[mask.bits]\nhot = 'dark_hihg'\n")
    with pytest.raises(SettingError, match="dark_hihg"):
        load_instrument(own)
    own.write_text("[mask.bits]\nhot = 'dark_high'\n")
    with pytest.raises(SettingError, match="no mask plane 'hot'"):
        load_instrument(own)


def _file(*planes):
    first = fits.ImageHDU(np.ones((20, 30), np.float32), name="SCI")
    return fits.HDUList([fits.PrimaryHDU(), first, *planes])


def test_the_file_s_own_flags_are_kept_beside_the_mask():
    flags = np.zeros((20, 30), np.int16)
    flags[3, 4], flags[5, 6] = 16 + 64, 4096
    frame = read(_file(fits.ImageHDU(flags, name="DQ")), instrument="hst_acs_wfc").frames[0]
    assert np.array_equal(frame.dq, flags)
    assert frame.dq.itemsize == 2
    assert BITS.names(frame.mask[3, 4]) == ("dark_high",)
    assert frame.mask[5, 6] == 0


def test_a_mask_of_the_dictionary_is_read_as_it_is():
    bits = np.zeros((20, 30), np.uint32)
    bits[3, 4], bits[5, 6] = BITS["detected"], BITS["unusable"] + BITS["nan"]
    plane = fits.ImageHDU(bits, name="MASK")
    plane.header[MASK_CARD] = "default"
    frame = read(_file(plane)).frames[0]
    assert np.array_equal(frame.mask, bits)
    assert frame.dq is None


def test_errors_weights_and_numbers_set_their_bits():
    weight = np.ones((20, 30), np.float32)
    weight[2, 3] = 0
    file = _file(fits.ImageHDU(weight, name="WHT"))
    file[1].data[7, 8] = np.nan
    mask = read(file).frames[0].mask
    assert np.argwhere(mask).tolist() == [[2, 3], [7, 8]]
    assert mask[2, 3] == BITS["unusable"]
    assert mask[7, 8] == BITS["nan"]


def test_bits_around_places():
    mask = np.zeros((20, 30), np.uint32)
    mask[5, 7], mask[5, 5], mask[8, 5] = 1, 2, 4
    x, y = np.array([5.2, 5.2, 29.9, np.nan, -50.0]), np.array([5.1, 5.1, 5.0, 5.0, 5.0])
    around, at = bits_within(mask, x, y, 2.0)
    assert around.tolist() == [3, 3, 0, 0, 0]
    assert at.tolist() == [2, 2, 0, 0, 0]
    assert bits_within(mask, x, y, 1.7)[0].tolist() == [2, 2, 0, 0, 0], "7 is 1.8 away"
    assert bits_within(mask, x, y, 3.0)[0].tolist()[0] == 7
    assert bits_within(mask, np.array([5.4]), np.array([5.4]), 0.1)[0].tolist() == [2], "nearest"
    assert bits_within(None, x, y, 2.0)[0].tolist() == [0] * 5


def test_flags_are_kept_in_the_narrowest_type():
    cases = ((0, 65535, "u2"), (-1, 5, "i2"), (0, 1 << 31, "u4"), (-1, 70000, "i4"))
    for low, high, dtype in cases:
        flags = np.array([[low, high]], dtype=np.int64)
        got = smallest_integers(flags)
        assert got.dtype == dtype
        assert np.array_equal(got, flags)


def test_as_mask_keeps_integers():
    assert as_mask(np.array([[3]], np.int64)).dtype == np.uint32
    assert as_mask(np.array([[True, False]]), "streak").tolist() == [[BITS["streak"], 0]]
