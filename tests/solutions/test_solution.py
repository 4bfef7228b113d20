"""The record: JSON there and back, what it prints, and how an error becomes one."""

import copy
import dataclasses
import json
import math
import pickle

import numpy as np
import pytest

from cynosure.ground.errors import CatalogDamaged, CynosureError, NoMatch, NotEnoughStars
from cynosure.solutions.solution import SCHEMA, Solution, sexagesimal

SOLVED = Solution(
    "ngc1.fits[SCI,1]", "ab" * 32, status="solved", quality=1, n_sources=412, n_reference=300,
    wcsname="IDC_0461802ej-FIT_IMG_GAIADR3", n_matched=187, n_used=151, n_reserved=20,
    n_clipped=16, clip_rounds=4, rms_ra_mas=4.1, rms_dec_mas=3.8, rms_reserved_ra_mas=4.3,
    rms_reserved_dec_mas=4.0, sigma0_mas=2.9, a=1.02, chi2_dof=1.06, before_offset_arcsec=0.412,
    before_rms_mas=400.0, center_ra_deg=150.5478417, center_dec_deg=2.235925, scale_arcsec=0.0498,
    width_deg=3.4 / 60, height_deg=1.7 / 60, rotation_deg=12.31, parity=1, form="sip", order=4,
    log_odds=700.2, wcs_error_mas={"center": 0.3, "corner": math.nan},
    checks=({"name": "odds", "passed": True, "value": 700.2, "limit": 21.0, "text": "…"},),
    files=("ngc1_wcs.fits",), seconds={"total": 1.5}, settings={"fit": {"order": None}},
)


def test_the_contract_has_its_fields():
    contract = """
        schema image sha256 software created settings status reason tried hints quality wcsname
        catalog epoch_yr n_sources n_reference n_matched n_used n_reserved rms_ra_mas rms_dec_mas
        rms_reserved_ra_mas rms_reserved_dec_mas sigma0_mas a chi2 dof chi2_dof log_odds
        before_offset_arcsec before_rms_mas center_ra_deg center_dec_deg scale_arcsec rotation_deg
        parity width_deg height_deg form order chips wcs_error_mas seconds
    """.split()
    assert set(contract) <= set(SOLVED.to_dict())
    assert SOLVED.to_dict()["schema"] == SCHEMA == "cynosure.solution/1"


def test_json_there_and_back():
    text = SOLVED.to_json()
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert "NaN" not in text
    assert json.loads(text)["epoch_yr"] is None
    again = Solution.from_json(text)
    assert again == SOLVED
    assert hash(again) == hash(SOLVED)
    assert again.to_json() == text
    assert math.isnan(again.epoch_yr)
    assert again != SOLVED.replaced(n_used=150)
    for twin in (copy.deepcopy(SOLVED), pickle.loads(pickle.dumps(SOLVED))):
        assert twin == SOLVED


def test_numpy_numbers_are_plain_in_json():
    chip = {"cards": {"CD1_1": np.float64(1e-5)}, "shape": np.array([2, 3])}
    odd = SOLVED.replaced(
        rms_ra_mas=np.float64(4.5), n_used=np.int64(7), epoch_yr=np.float32("nan"), chips=(chip,)
    )
    content = json.loads(odd.to_json())
    assert (content["rms_ra_mas"], content["n_used"], content["epoch_yr"]) == (4.5, 7, None)
    assert content["chips"] == [{"cards": {"CD1_1": 1e-5}, "shape": [2, 3]}]


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SOLVED.n_used = 3


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": "cynosure.solution/2"}'])
def test_what_is_no_record(text):
    with pytest.raises(CatalogDamaged):
        Solution.from_json(text, "x.json")


def test_a_later_field_is_left_out():
    content = {**SOLVED.to_dict(), "of_the_future": 1}
    assert Solution.from_dict(content) == SOLVED


def test_screen_of_a_solved_image():
    lines = str(SOLVED).splitlines()
    assert lines[0] == "ngc1.fits[SCI,1]  SOLVED  quality 1 of 5   (IDC_0461802ej-FIT_IMG_GAIADR3)"
    assert lines[1].startswith("  centre    10:02:11.482  +02:14:09.33   scale 0.0498″/px")
    assert "size 3.4′ x 1.7′   up is 12.31° E of N   parity normal" in lines[1]
    assert "187 matched, 151 used, 20 reserved (16 clipped in 4 rounds)" in lines[2]
    assert "RA 4.1 mas   Dec 3.8 mas   σ0 2.9 mas   a 1.02   χ²/dof 1.06" in lines[3]
    assert "before: off by 0.412″, residuals 400 mas" in lines[4]
    assert lines[-1] == "  wrote     ngc1_wcs.fits"


def test_screen_of_a_compromised_image_says_why():
    text = str(SOLVED.replaced(status="compromised", quality=2, reason="chi2/dof 3, 2 allowed"))
    assert "COMPROMISED  quality 2 of 5" in text
    assert "  why       chi2/dof 3, 2 allowed" in text


def test_screen_of_a_failed_image_says_what_was_tried():
    error = NoMatch(image="ngc2.fits", n_sources=9, n_reference=214)
    failed = Solution.from_error(
        "ngc2.fits", error,
        tried=({"step": "offsets", "best_peak": 2.123456, "needed": 5},
               {"step": "triangles", "text": "0 of 5012 agree"}),
    )
    assert str(failed).splitlines() == [
        "ngc2.fits  FAILED  no match between 9 sources and 214 reference stars (exit 10)",
        "  tried     offsets: best peak 2.123, needed 5;  triangles: 0 of 5012 agree",
        "  stars     9 found, 214 reference",
        "  try       " + NoMatch.hint,
    ]
    assert (failed.n_sources, failed.n_reference) == (9, 214)
    assert (failed.exit_code, failed.quality) == (10, 5)


def test_errors_become_records():
    few = Solution.from_error("a.fits", NotEnoughStars(image="a.fits", n_sources=3, needed=8))
    assert (few.reason, few.exit_code) == ("3 stars found, 8 needed", 11)
    broken = Solution.from_error("a.fits", CynosureError("internal"))
    assert broken.quality == -1
    known = Solution.from_error("a.fits", NoMatch(image="a.fits", n_sources=3), n_sources=4)
    assert known.n_sources == 4


def test_an_empty_record_can_be_shown():
    bare = Solution("x.fits", status="solved")
    assert "nan" not in str(bare).lower()
    assert "nan" not in bare._repr_html_().lower()
    assert "<b>" not in Solution("<b>x", reason="<i>")._repr_html_()


@pytest.mark.parametrize(
    ("ra", "dec", "expected"),
    [
        (0.0, 0.0, ("00:00:00.000", "+00:00:00.00")),
        (359.9999999, -89.9999999, ("00:00:00.000", "-90:00:00.00")),
        (15.0, -0.5, ("01:00:00.000", "-00:30:00.00")),
        (-15.0, 59.999999, ("23:00:00.000", "+60:00:00.00")),
    ],
)
def test_sexagesimal_carries(ra, dec, expected):
    assert sexagesimal(ra, dec) == expected
