"""The grammar of solution names: known names, and parse and build as inverses for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cynosure.solutions.names import METHODS, WcsName, catalog_code, parse_wcsname, wcsname

KNOWN = {
    "": ("none", "", "", "", 0),
    "NONE": ("none", "NONE", "", "", 0),
    "OPUS": ("pipeline", "OPUS", "", "", 0),
    "IDC_0461802ej": ("distortion", "IDC_0461802ej", "", "", 0),
    "IDC_0461802ej-GSC240": ("a priori", "IDC_0461802ej", "", "GSC240", 0),
    "OPUS-HSC30": ("a priori", "OPUS", "", "HSC30", 0),
    "IDC_0461802ej-FIT_REL_GAIADR2": ("a posteriori", "IDC_0461802ej", "REL", "GAIADR2", 0),
    "IDC_x-FIT_SVM_GAIAeDR3": ("a posteriori", "IDC_x", "SVM", "GAIAeDR3", 0),
    "IDC_x-FIT_user_my_stars": ("a posteriori", "IDC_x", "user", "my_stars", 0),
    "IDC_x-FIT_MVM_NONE": ("a posteriori", "IDC_x", "MVM", "NONE", 0),
    "FIT_IMG_GAIADR3": ("a posteriori", "", "IMG", "GAIADR3", 0),
    "IDC_x-FIT_IMG_GAIADR3-2": ("a posteriori", "IDC_x", "IMG", "GAIADR3", 2),
    "IDC_0461802ej-1": ("distortion", "IDC_0461802ej", "", "", 1),
    "OPUS-12": ("pipeline", "OPUS", "", "", 12),
    "j95y04hpq_flc.fits": ("other", "j95y04hpq_flc.fits", "", "", 0),
    "TWEAK": ("other", "TWEAK", "", "", 0),
    "my-own-name-3": ("other", "my-own-name-3", "", "", 0),
    "TWEAK-FIT_IMG_GAIADR3": ("a posteriori", "TWEAK", "IMG", "GAIADR3", 0),
    "IDC_x-FIT_IMG": ("other", "IDC_x-FIT_IMG", "", "", 0),
    "IDC_x-FIT_IMG_A-01": ("other", "IDC_x-FIT_IMG_A-01", "", "", 0),
    "my-own-SIP": ("other", "my-own-SIP", "", "", 0),
}

# What was converted keeps its class and its catalogue.
CONVERTED = {
    "IDC_x-FIT_REL_GAIADR2-SIP": ("a posteriori", "IDC_x", "REL", "GAIADR2", 0, "SIP"),
    "FIT_IMG_GAIADR3-TPV": ("a posteriori", "", "IMG", "GAIADR3", 0, "TPV"),
    "IDC_x-GSC240-TAN": ("a priori", "IDC_x", "", "GSC240", 0, "TAN"),
    "IDC_x-SIP": ("distortion", "IDC_x", "", "", 0, "SIP"),
    "OPUS-TAN": ("pipeline", "OPUS", "", "", 0, "TAN"),
    "OPUS-SIPPY": ("a priori", "OPUS", "", "SIPPY", 0, ""),
    "IDC_x-HSC30-SIP-TPV-3": ("a priori", "IDC_x", "", "HSC30", 3, "SIP-TPV"),
    "IDC_x-FIT_IMG_GAIADR3-2-SIP": ("a posteriori", "IDC_x", "IMG", "GAIADR3", 0, "2-SIP"),
}


@pytest.mark.parametrize(("text", "parts"), CONVERTED.items())
def test_converted_names(text, parts):
    name = parse_wcsname(text)
    got = (name.kind, name.start, name.method, name.catalog, name.copy, name.form)
    assert got == parts
    assert name.build() == text


@pytest.mark.parametrize(("text", "parts"), KNOWN.items())
def test_known_names(text, parts):
    name = parse_wcsname(text)
    assert (name.kind, name.start, name.method, name.catalog, name.copy) == parts
    assert name.build() == str(name) == text


pieces = st.sampled_from(
    ["IDC_", "OPUS", "NONE", "FIT_", "IMG", "_", "-", "GSC240", "1", "02", "a.fits", " ", "x", "\n",
     "-SIP", "-TPV", "-TAN"]
)


@given(st.one_of(st.text(max_size=60), st.lists(pieces, max_size=9).map("".join)))
def test_any_text_is_carried(text):
    assert parse_wcsname(text).build() == text


letters = st.text("ABCxyz019", min_size=1, max_size=8)


@given(
    start=st.one_of(st.just(""), st.just("OPUS"), letters.map("IDC_{}".format), letters),
    method=st.sampled_from(sorted(METHODS)), catalog=letters, copy=st.integers(0, 99),
)
def test_any_fit_is_parsed(start, method, catalog, copy):
    name = WcsName("a posteriori", start, method, catalog, copy)
    assert parse_wcsname(name.build()) == name


KINDS = (
    "OPUS", "IDC_x", "IDC_x-GSC240", "OPUS-HSC30", "IDC_x-FIT_SVM_GAIAeDR3", "FIT_IMG_A", "NONE",
)


@given(
    text=st.sampled_from(KINDS), copy=st.integers(0, 99), again=st.integers(0, 99),
    forms=st.lists(st.sampled_from(["SIP", "TPV", "TAN"]), max_size=3),
)
def test_a_conversion_changes_neither_class_nor_catalogue(text, copy, again, forms):
    """Whatever was converted, and numbered before or after that."""
    if copy and not forms:
        again = 0
    numbered = f"{text}-{copy}" if copy else text
    name = parse_wcsname("-".join([numbered, *forms, *([str(again)] if again else [])]))
    plain = parse_wcsname(text)
    assert (name.kind, name.start, name.method, name.catalog) == (
        plain.kind, plain.start, plain.method, plain.catalog)
    assert name.form.endswith("-".join(forms))
    assert name.build() == "-".join([numbered, *forms, *([str(again)] if again else [])])
    assert name.describe() == plain.describe()


@given(st.one_of(st.text(max_size=40), st.lists(pieces, max_size=9).map("".join)), letters)
def test_a_fit_of_anything_has_a_name_of_a_fit(before, catalog):
    name = parse_wcsname(wcsname(before, "IMG", catalog))
    assert name.kind == "a posteriori"
    assert (name.method, name.catalog) == ("IMG", catalog_code(catalog))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "FIT_IMG_GAIADR3"),
        ("NONE", "FIT_IMG_GAIADR3"),
        ("OPUS", "OPUS-FIT_IMG_GAIADR3"),
        ("IDC_x", "IDC_x-FIT_IMG_GAIADR3"),
        ("IDC_x-GSC240", "IDC_x-FIT_IMG_GAIADR3"),
        ("IDC_x-FIT_REL_GAIADR1", "IDC_x-FIT_IMG_GAIADR3"),
        ("IDC_x-FIT_REL_GAIADR1-2", "IDC_x-FIT_IMG_GAIADR3"),
        ("a.fits", "a.fits-FIT_IMG_GAIADR3"),
    ],
)
def test_a_fit_is_named_after_where_it_started(before, after):
    assert wcsname(before, "IMG", "Gaia DR3") == after


def test_words():
    def words(text):
        return parse_wcsname(text).describe()

    assert words("OPUS") == "pipeline default not aligned"
    assert words("IDC_x-GSC240") == "undistorted a priori solution based on GSC240"
    assert words("FIT_XYZ_A") == "user-defined a posteriori solution aligned by XYZ to A"
    assert words("") == "no solution"
