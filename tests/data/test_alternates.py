"""The old WCS is kept under a letter and comes back bit for bit."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from cynosure.data.fits.alternates import (
    alternate_keyword,
    alternate_letters,
    archive_alternate,
    archive_records,
    primary_keyword,
    records_of,
    restore_alternate,
    restore_records,
    strip_wcs,
)
from cynosure.data.fits.blocks import read_units
from cynosure.data.fits.wcsread import is_wcs_keyword, read_wcs
from cynosure.geometry.skymodel import SkyModel
from cynosure.geometry.wcs import model_to_header
from cynosure.ground.errors import OutputError

SHAPE = (500, 600)


def wcs_header(form="tpv", seed=1, degree=3):
    rng = np.random.default_rng(seed)
    coeff = np.zeros((2, (degree + 1) * (degree + 2) // 2))
    coeff[0, 1], coeff[1, 2] = -0.1, 0.1
    coeff[:, 3:] = rng.normal(0, 1e-4, (2, coeff.shape[1] - 3))
    model = SkyModel(50.0 + seed, 10.0, 300.0, 250.0, 300.0, coeff)
    return model_to_header(model, form, shape=SHAPE)


def image_header(form="tpv", seed=1):
    structure = [("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", 600), ("NAXIS2", 500)]
    header = fits.Header([*structure, ("OBJECT", "M81", "a name")])
    header.extend(wcs_header(form, seed).cards, end=True)
    header["GAIN"] = (1.5, "after the WCS")
    return header


def texts(header):
    return [str(c) for c in header.cards]


def wcs_texts(header):
    return [str(c) for c in header.cards if is_wcs_keyword(c.keyword)]


AXIS = ["CTYPE", "CRVAL", "CRPIX", "CDELT", "CROTA", "CUNIT", "CPDIS", "DP", "D2IMDIS", "D2IM"]
KEYWORDS = [f"{k}{i}" for k in AXIS for i in (1, 2)] + (
    "CD1_2 PC2_1 PC001002 PV1_0 PV2_39 PS1_0 WCSAXES WCSNAME RADESYS RADECSYS EQUINOX "
    "A_ORDER B_ORDER AP_ORDER BP_ORDER A_0_2 AP_9_0 BP_0_9 A_DMAX WAT1_001 WAT2_010 "
    "LONPOLE LATPOLE D2IMEXT D2IMERR1 AXISCORR PROJP1 CPERR1"
).split()


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_every_wcs_keyword_has_an_alternate_that_leads_back(keyword):
    assert is_wcs_keyword(keyword)
    other = alternate_keyword(keyword, "Q")
    assert len(other) <= 8
    assert not is_wcs_keyword(other)
    assert primary_keyword(other, "Q") == keyword
    assert primary_keyword(other, "R") is None


def test_alternate_keywords_are_all_different():
    assert len({alternate_keyword(k, "A") for k in KEYWORDS}) == len(KEYWORDS)


@pytest.mark.parametrize(
    "keyword", ["MOONRA", "ZPTSIGMA", "OBJECT", "GAIN", "EXTNAME", "DATA", "A", "PTFA"]
)
def test_other_keywords_that_end_in_a_letter_are_no_alternates(keyword):
    for letter in "ATNE":
        assert primary_keyword(keyword, letter) is None


@pytest.mark.parametrize("form", ["tan", "tpv", "sip"])
def test_archive_and_restore_are_inverse_to_the_bit(form):
    header = image_header(form)
    before = texts(header)
    assert archive_alternate(header, "ORIGINAL") == "A"
    assert header["WCSNAMEA"] == "ORIGINAL"
    assert not wcs_texts(header)
    assert header["OBJECT"] == "M81"
    restore_alternate(header, "A")
    assert texts(header) == before


def test_a_name_of_its_own_is_kept():
    header = image_header()
    header["WCSNAME"] = ("PTF", "from the archive")
    before = texts(header)
    archive_alternate(header, "ORIGINAL")
    assert header["WCSNAMEA"] == "PTF"
    restore_alternate(header, "A")
    assert texts(header) == before


@pytest.mark.parametrize("form", ["tan", "tpv"])
def test_other_readers_understand_the_alternate(form):
    header = image_header(form)
    at = np.array([[10.0, 20.0], [550.0, 480.0]])
    truth = WCS(header).all_pix2world(at, 0)
    archive_alternate(header, "ORIGINAL")
    header.update(wcs_header("tpv", seed=5))
    assert np.allclose(WCS(header, key="A").all_pix2world(at, 0), truth, atol=1e-12)


def test_the_linear_part_of_sip_is_what_others_read():
    header = image_header("sip")
    linear = header.copy()
    for key in [k for k in linear if k[:2] in ("A_", "B_", "AP", "BP")]:
        del linear[key]
    for i in (1, 2):
        linear[f"CTYPE{i}"] = linear[f"CTYPE{i}"][:8]
    archive_alternate(header, "ORIGINAL")
    assert header["CTYPE1A"] == "RA---TAN"
    header.update(wcs_header("tpv", seed=5))
    at = np.array([[10.0, 20.0]])
    found = WCS(header, key="A").all_pix2world(at, 0)
    assert np.allclose(found, WCS(linear).all_pix2world(at, 0), atol=1e-12)


def test_the_new_wcs_is_untouched_by_the_archived_one():
    header = image_header("sip", seed=1)
    archive_alternate(header, "ORIGINAL")
    new = wcs_header("tpv", seed=9)
    header.extend(new.cards, end=True)
    wcs, notes = read_wcs(header, shape=SHAPE)
    assert notes == ()
    assert wcs.sip is None
    assert np.allclose(wcs.all_pix2world(3, 4, 0), WCS(new).all_pix2world(3, 4, 0), atol=1e-12)


def test_a_repeat_does_not_clutter():
    header = image_header("tpv", seed=1)
    assert archive_alternate(header, "ORIGINAL") == "A"
    n = len(header)
    header.extend(wcs_header("tpv", seed=1).cards, end=True)  # the same WCS again
    assert archive_alternate(header, "ORIGINAL") == "A"
    assert len(header) == n
    header.extend(wcs_header("tpv", seed=2).cards, end=True)  # another one
    assert archive_alternate(header, "OTHER") == "B"
    assert header["WCSNAMEB"] == "OTHER"


def test_letters_that_are_taken_are_left_alone():
    header = image_header("tan")
    header["CRVAL1A"], header["WCSNAMEC"] = 1.0, "C"
    assert archive_alternate(header, "ORIGINAL") == "B"
    assert header["CRVAL1A"] == 1.0


def test_all_letters_taken():
    header = image_header("tan")
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        header[f"WCSNAME{letter}"] = letter
    with pytest.raises(OutputError, match="all 26 letters"):
        archive_alternate(header, "ORIGINAL")


def test_nothing_to_archive_and_nothing_to_restore():
    header = fits.Header({"OBJECT": "M81"})
    assert archive_alternate(header, "ORIGINAL") == ""
    with pytest.raises(OutputError, match="no alternate WCS 'B'"):
        restore_alternate(header, "B")


def test_strip_says_what_it_removed():
    header = image_header("sip")
    removed = strip_wcs(header)
    assert {"CTYPE1", "CRVAL2", "CD1_2", "A_ORDER", "RADESYS"} <= set(removed)
    assert list(header) == ["SIMPLE", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "OBJECT", "GAIN"]
    assert strip_wcs(header) == []


printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(KEYWORDS), printable), max_size=25),
    st.sampled_from(["TAN-SIP", "TAN", "TPV", "TNX"]),
)
def test_any_cards_come_back(cards, projection):
    lines = [f"CTYPE1  = 'RA---{projection}'       / first", f"CTYPE2  = 'DEC--{projection}'"]
    lines += [f"{k:<8}= {text}" for k, text in cards if not k.startswith(("CTYPE", "WCSNAME"))]
    raw = "".join(line[:80].ljust(80) for line in [*lines, "OBJECT  = 'x'", "END"]).encode()
    records = records_of(raw)
    archived, letter = archive_records(records, "ORIGINAL")
    assert restore_records(archived, letter) == records


@pytest.mark.parametrize(
    "name",
    [
        "p01-ptf-m81-gaiaedr3/PTF_Cropped.fits",
        "p12-wcs-zoo/tnx.fits",
        "p12-wcs-zoo/zpx.fits",
        "p12-wcs-zoo/tanpv.fits",
        "p12-wcs-zoo/ie6d07ujq_wcs.fits",
        "p04-hst-headerlets/sample_ipppssoot_flc.fits",
    ],
)
def test_real_headers_come_back_bit_for_bit(data_dir, name):
    path = data_dir / name
    with path.open("rb") as stream:
        units = [
            u for u in read_units(stream, path.name, path.stat().st_size) if b"CTYPE1  =" in u.raw
        ]
    records = records_of(units[0].raw)
    letters = alternate_letters(records)
    archived, letter = archive_records(records, "ORIGINAL")
    assert letter not in letters
    assert not any(is_wcs_keyword(k) for k, _ in archived)
    back = restore_records(archived, letter)
    assert back == records
