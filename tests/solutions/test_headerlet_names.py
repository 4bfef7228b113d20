"""Names of headerlets and of distortion models: parse and build are inverse, for every text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cynosure.solutions.names import (
    Distortion,
    distname,
    hdrname,
    model_name,
    model_root,
    parse_distname,
    parse_hdrname,
    parse_sipname,
    parse_wcsname,
    parse_wcstype,
    wcstype,
)

texts = st.one_of(st.text(max_size=60), st.text("IDC_FT-hlet.fOPUS0aSVMGRE ", max_size=60))
roots = st.from_regex(r"[a-z0-9]{8,9}", fullmatch=True)
stems = st.from_regex(r"[a-z][a-z0-9]{7,8}(_fl[tc])?", fullmatch=True)
wcsnames = st.one_of(
    st.just("OPUS"), roots.map("IDC_{}".format), roots.map("IDC_{}-GSC240".format),
    roots.map("IDC_{}-FIT_SVM_GAIAeDR3".format), st.just("FIT_IMG_GAIADR3"),
)


@given(texts)
def test_parse_and_build_are_inverse_for_any_text(text):
    for parse in (parse_hdrname, parse_sipname, parse_distname, parse_wcstype, parse_wcsname):
        assert parse(text).build() == text


@given(stems, wcsnames)
def test_names_of_headerlets_are_taken_apart_as_they_were_put_together(stem, name):
    found = parse_hdrname(hdrname(stem, name))
    assert (found.stem, found.wcsname, found.ending) == (stem, name, "-hlet.fits")


@given(stems, roots, st.one_of(st.just(""), roots), st.one_of(st.just(""), roots))
def test_distname_keeps_the_roots_whatever_the_exposure(stem, idctab, npol, d2im):
    model = Distortion(idctab, npol, d2im)
    name = distname(stem.replace("_", ""), model)
    assert parse_distname(name).distortion == model
    assert parse_sipname(parse_distname(name).sipname).model == idctab


@pytest.mark.parametrize(
    "text, root",
    [
        ("jref$0461802ej_idc.fits", "0461802ej"), ("/a/b/02c1450oj_npl.fits", "02c1450oj"),
        ("iref$y7b1516hi_d2i.fits", "y7b1516hi"), ("N/A", ""), (" ", ""), ("none", ""),
        ("INDEF", ""), ("NOMODEL", ""), ("02c1450nj", "02c1450nj"),
    ],
)
def test_roots_of_reference_files(text, root):
    assert model_root(text) == root
    assert model_name(text, True) == (root or "UNKNOWN")
    assert model_name(text, False) == (root or "NOMODEL")


@pytest.mark.parametrize(
    "name, text",
    [
        ("OPUS", "pipeline default not aligned"),
        ("IDC_w3m18525i", "undistorted not aligned"),
        ("IDC_w3m18525i-HSC30", "undistorted a priori solution based on HSC30"),
        ("IDC_x-FIT_REL_GAIADR2",
         "undistorted a posteriori solution relatively aligned to GAIADR2"),
        ("IDC_x-FIT_IMG_GAIADR2",
         "undistorted a posteriori solution aligned image-by-image to GAIADR2"),
        ("IDC_x-FIT_SVM_GAIADR2",
         "undistorted a posteriori solution aligned by visit to GAIADR2"),
    ],
)
def test_wcstype_is_in_the_words_of_the_archive(name, text):
    assert wcstype(name) == text
    found = parse_wcstype(text)
    assert found.kind != "other" and found.build() == text
    assert found.catalog == parse_wcsname(name).catalog
