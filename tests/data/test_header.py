"""What headers say: dates, angles, scales, in all the ways they are written."""

import math

import pytest
from astropy.io.fits import Header
from astropy.time import Time
from hypothesis import given
from hypothesis import strategies as st

from cynosure.data.header import (
    angle_deg,
    epoch_of,
    first,
    julian_epoch,
    mjd_of_text,
    number,
    position_of,
    scale_of,
)


@pytest.mark.parametrize(
    "text",
    [
        "2012-11-20T09:12:30.270",
        "2012-11-20 09:12:30.270",
        "2012-11-20T09:12:30.270Z",
        "2012/11/20T09:12:30.27",
        "20/11/2012 09:12:30.27",
        "2012.325:09:12:30.27",
        56251.383683680556,
        2456251.883683680556,
        "56251.383683680556",
    ],
)
def test_dates_in_all_their_forms(text):
    truth = Time("2012-11-20T09:12:30.270", scale="utc").mjd
    assert mjd_of_text(text) == pytest.approx(truth, abs=1e-8)


def test_old_dates_and_dates_without_time():
    assert mjd_of_text("13/06/97") == Time("1997-06-13").mjd
    assert mjd_of_text("1997-06-13") == Time("1997-06-13").mjd
    assert mjd_of_text("1997-06-13", "11:30:14") == pytest.approx(Time("1997-06-13T11:30:14").mjd)


@pytest.mark.parametrize(
    "text",
    ["0000-00-00T00:00:00", "N/A", "2012-13-45", "yesterday", "", True, 0.0, 1e9, "2012-02-30", -5],
)
def test_what_is_no_date_is_nan(text):
    assert math.isnan(mjd_of_text(text))


@given(st.floats(41400.0, 62000.0))
def test_julian_epochs_are_those_of_astropy(mjd):
    for system, scale in (("TT", "tt"), ("TAI", "tai"), ("TDB", "tdb")):
        truth = Time(mjd, format="mjd", scale=scale).tt.jyear
        assert julian_epoch(mjd, system) == pytest.approx(truth, abs=1e-9)


@pytest.mark.parametrize(
    "day", ["1975-01-01", "1999-12-31T23:59:59", "2016-07-01", "2021-05-24T11:35:53"]
)
def test_utc_has_its_leap_seconds(day):
    time = Time(day, scale="utc")
    assert julian_epoch(time.mjd, "UTC") == pytest.approx(time.tt.jyear, abs=1e-9)


@pytest.mark.parametrize(
    ("cards", "middle"),
    [
        ({"DATE-OBS": "2020-01-01T00:00:00", "EXPTIME": 60.0}, "2020-01-01T00:00:30"),
        (
            {"DATE-OBS": "2020-01-01", "TIME-OBS": "12:00:00", "EXPOSURE": "20"},
            "2020-01-01T12:00:10",
        ),
        (
            {"DATE-BEG": "2020-01-01T00:00:00", "DATE-END": "2020-01-01T00:10:00"},
            "2020-01-01T00:05:00",
        ),
        ({"EXPSTART": 58849.0001, "EXPEND": 58849.0003, "DATE-OBS": "2020-01-01"}, 58849.0002),
        (
            {"DATE-AVG": "2020-01-01T00:05:00", "DATE-OBS": "2019-01-01T00:00:00"},
            "2020-01-01T00:05:00",
        ),
        ({"MJD-OBS": 58849.25, "EXPTIME": 864.0}, 58849.255),
        ({"JD": 2458849.75, "EXPTIME": 864.0}, 58849.255),
        ({"DATE-OBS": "2020-01-01", "MJD-OBS": 58849.25}, 58849.25),
        ({"DATE-OBS": "", "UTC-OBS": "2020-01-01T06:00:00"}, 58849.25),
        # an end a year later is of something else
        ({"DATE-OBS": "2020-01-01T06:00:00", "DATE-END": "2021-01-01T00:00:00"}, 58849.25),
    ],
)
def test_the_epoch_is_of_mid_exposure(cards, middle):
    form = "mjd" if isinstance(middle, float) else "isot"
    truth = Time(middle, format=form, scale="utc").tt.jyear
    moment = epoch_of(Header(cards))
    assert moment.epoch_yr == pytest.approx(truth, abs=1e-9)
    assert moment.note == ""


def test_time_systems_are_told_apart():
    cards = Header({"DATE-OBS": "2020-01-01T06:00:00", "TIMESYS": "TAI"})
    assert epoch_of(cards).epoch_yr == pytest.approx(
        Time("2020-01-01T06:00", scale="tai").tt.jyear, abs=1e-9
    )


def test_what_a_date_is_of_can_be_said():
    cards = Header({"DATE-OBS": "2020-01-01T00:10:00", "EXPTIME": 600.0})
    epochs = [epoch_of(cards, date_is=w).epoch_yr for w in ("end", "mid", "start")]
    step = 300.0 / 86400.0 / 365.25
    assert epochs[1] - epochs[0] == pytest.approx(step, rel=1e-4)
    assert epochs[2] - epochs[1] == pytest.approx(step, rel=1e-4)


def test_no_date_and_half_a_date():
    assert epoch_of(Header()).epoch_yr is None
    assert "--epoch" in epoch_of(Header({"DATE-OBS": "0000-00-00"})).note
    half = epoch_of(Header({"DATE-OBS": "2020-01-01"}))
    assert "half a day" in half.note
    assert half.epoch_yr == pytest.approx(Time("2020-01-01T12:00").tt.jyear, abs=1e-9)


@pytest.mark.parametrize(
    ("value", "comment", "degrees"),
    [
        ("12:30:00", "", 187.5),
        ("12 30 00.0", "", 187.5),
        ("12h30m00s", "", 187.5),
        ("187.5", "", 187.5),
        (187.5, "", 187.5),
        (12.5, "[h] right ascension", 187.5),
        (12.5, "right ascension, hours", 187.5),
        (12.5, "deg", 12.5),
        ("187:30:00", "", 187.5),
        ("187d30m00s", "", 187.5),
    ],
)
def test_right_ascension_in_hours_and_degrees(value, comment, degrees):
    assert angle_deg(value, comment, hours=True) == pytest.approx(degrees)


def test_declination_keeps_its_sign():
    assert angle_deg("-00:30:00") == -0.5
    assert angle_deg("-43 49 57.0") == pytest.approx(-43.8325)
    assert math.isnan(angle_deg("north"))
    assert math.isnan(angle_deg("12:-30:00"))


def test_pointing_keywords_go_in_pairs_and_nonsense_is_skipped():
    header = Header({"OBJCTRA": "N/A", "OBJCTDEC": "10 0 0", "RA": "01:00:00", "DEC": "+20:00:00"})
    assert position_of(header)[:2] == pytest.approx((15.0, 20.0))
    assert math.isnan(position_of(Header({"RA": 10.0}))[0])
    assert math.isnan(position_of(Header({"RA": 0.0, "DEC": 0.0}))[0])
    assert math.isnan(position_of(Header({"RA": 10.0, "DEC": 999.0}))[0])


def test_an_old_equinox_is_precessed():
    from astropy.coordinates import SkyCoord

    ra, dec, note = position_of(Header({"RA": "10:00:00", "DEC": "10:00:00", "EQUINOX": 1950.0}))
    truth = SkyCoord("10h", "10d", frame="fk4", equinox="B1950").icrs
    assert (ra, dec) == pytest.approx((truth.ra.deg, truth.dec.deg), abs=1e-9)
    assert "1950" in note


def test_scale_from_keywords_and_optics():
    assert scale_of(Header({"SECPIX1": 1.5}))[0] == 1.5
    value, error, _ = scale_of(Header({"FOCALLEN": 2700.0, "XPIXSZ": 27.0}))
    assert value == pytest.approx(2.06265, abs=1e-4)
    assert error == 0.1
    assert math.isnan(scale_of(Header({"FOCALLEN": 0.0, "XPIXSZ": 27.0}))[0])


def test_first_and_number_skip_what_says_nothing():
    header = Header({"A": "N/A", "B": "  ", "C": "5.5", "D": True})
    header["E"] = None
    assert first(header, ("A", "B", "E", "C"))[0] == "C"
    assert number(header, ("A", "D", "C")) == ("C", 5.5)
    assert number(header, ("C",), 0.0, 5.0)[0] == ""
