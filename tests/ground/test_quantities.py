"""Angles, places and dates as callers give them: what they mean, and what is refused."""

import datetime

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import FK5, Angle, SkyCoord
from astropy.time import Time
from hypothesis import given
from hypothesis import strategies as st

from cynosure.ground.errors import SettingError
from cynosure.ground.quantities import angle_in, julian_year, scale_in_arcsec, sky_position


@pytest.mark.parametrize("value", [0.5, "0.5", "30 arcmin", 30 * u.arcmin, Angle("0d30m"),
                                   np.float32(0.5), "1800arcsec"])
def test_an_angle_in_any_dress_is_the_same(value):
    assert angle_in(value, "deg", "radius") == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize(
    "value", ["wide", 3 * u.m, [1.0, 2.0] * u.deg, float("nan"), True, object()]
)
def test_what_is_no_angle_is_refused_by_name(value):
    with pytest.raises(SettingError, match=r"^radius = "):
        angle_in(value, "deg", "radius")


@pytest.mark.parametrize("value", [0.8, "0.8", "0.8arcsec", "0.8 arcsec/pix", "0.8arcsec/px",
                                   0.8 * u.arcsec, 0.8 * u.arcsec / u.pix, 800 * u.mas / u.pix])
def test_the_unit_of_a_scale_may_say_per_pixel(value):
    assert scale_in_arcsec(value) == pytest.approx(0.8, rel=1e-12)


@given(st.floats(0, 359.999), st.floats(-89.9, 89.9))
def test_a_place_survives_every_way_of_writing_it(ra, dec):
    place = SkyCoord(ra * u.deg, dec * u.deg)
    sexagesimal = place.to_string("hmsdms", precision=8).split()
    colons = place.to_string("hmsdms", sep=":", precision=8).split()
    for value in (place, (ra, dec), (ra * u.deg, dec * u.deg), sexagesimal, colons,
                  (repr(ra), repr(dec)) if "e" not in f"{ra!r}{dec!r}" else (ra, dec)):
        got = SkyCoord(*sky_position(value), unit="deg")
        assert got.separation(place).arcsec < 1e-3


def test_another_frame_is_turned_to_icrs():
    place = SkyCoord(10.0, 20.0, unit="deg", frame=FK5(equinox="J1950"))
    ra, dec = sky_position(place)
    assert (ra, dec) == pytest.approx((place.icrs.ra.deg, place.icrs.dec.deg), abs=1e-12)
    assert ra == pytest.approx(10.66, abs=0.05)


def test_degrees_with_a_d_are_not_hours():
    assert sky_position(("10d30m", "-0d30m")) == pytest.approx((10.5, -0.5))
    assert sky_position(("10h30m", "-0d30m")) == pytest.approx((157.5, -0.5))
    assert sky_position("150.5 2.25") == (150.5, 2.25)


@pytest.mark.parametrize("value", [SkyCoord([1, 2], [3, 4], unit="deg"), (1.0,), (1, 2, 3), 5.0,
                                   "M31", ("10:61:xx", "2"), (10.0, 95.0), (1 * u.m, 2 * u.deg)])
def test_what_is_no_place_is_refused(value):
    with pytest.raises(SettingError, match="center"):
        sky_position(value)


@pytest.mark.parametrize("value", [2024.5, "2024.5", "J2024.5", Time(2024.5, format="jyear"),
                                   2024.5 * u.yr])
def test_a_julian_year(value):
    assert julian_year(value) == pytest.approx(2024.5, abs=1e-9)


def test_dates():
    day = Time("2024-06-01", scale="utc").jyear
    for value in ("2024-06-01", datetime.date(2024, 6, 1), datetime.datetime(2024, 6, 1),
                  np.datetime64("2024-06-01")):
        assert julian_year(value) == pytest.approx(day, abs=1e-9)


@pytest.mark.parametrize("value", ["soon", Time([2000.0, 2001.0], format="jyear"), 3 * u.m,
                                   float("inf"), [2000.0]])
def test_what_is_no_date_is_refused(value):
    with pytest.raises(SettingError, match=r"^epoch = "):
        julian_year(value)


def test_nothing_stays_nothing():
    assert angle_in(None, "deg", "x") is None
    assert scale_in_arcsec(None) is None
    assert sky_position(None) is None
    assert julian_year(None) is None
