"""Hubble's default solution: against the archive's own headers, and against stwcs."""

import numpy as np
import pytest
from astropy.io import fits
from exposures import make_tpv

from cynosure.solutions import archive
from cynosure.solutions.compare import separations
from cynosure.solutions.hubble import NoModel, aperture_roll_deg, default_solution
from cynosure.solutions.idctab import read_idctab

REFS = "p05-hst-reffiles"
SHAPES = {("SCI", 1): (2048, 4096), ("SCI", 2): (2048, 4096)}


@pytest.fixture
def refs(data_dir):
    return data_dir / REFS


@pytest.fixture
def acs(data_dir):
    return data_dir / "p12-wcs-zoo" / "j94f05bgq_flt.fits"


def worst_mas(a, b):
    return max(m.summary()["max_mas"] for m in separations(a, b, SHAPES))


def test_the_archives_own_header_comes_out(acs, refs):
    """The header was made by the archive from the same IDCTAB: SIP, CD, CRVAL, skew of 2005."""
    ours, theirs = default_solution(acs, refs=refs), archive.solution_of(acs)
    assert ours.wcsname == theirs.wcsname == "IDC_qbu1641sj"
    for mine, its in zip(ours.chips, theirs.chips):
        assert mine.distortion.keys() == its.distortion.keys()
        for key, value in its.distortion.items():
            assert mine.distortion[key] == pytest.approx(value, rel=1e-12), key
        for key in ("OCX10", "OCX11", "OCY10", "OCY11", "IDCSCALE", "ORIENTAT"):
            assert mine.number(key) == pytest.approx(its.number(key), rel=1e-9), key
    assert worst_mas(ours, theirs) < 1e-3


CASES = [
    ("qbu1641sj", None, None, "2005-03-07", ("F606W", "CLEAR2L")),
    ("postsm4", None, None, "2010-05-01", ("F606W", "CLEAR2L")),
    ("0461802ej", "02c1450rj", None, "2016-05-01", ("CLEAR1L", "F814W")),
    ("0461802ej", "qbu16424j", "02c1450oj", "2003-12-31", ("F606W", "CLEAR2L")),
]


@pytest.mark.parametrize("idc, npl, d2i, date, filters", CASES)
@pytest.mark.filterwarnings("ignore")
def test_stwcs_makes_the_same(acs, refs, tmp_path, monkeypatch, idc, npl, d2i, date, filters):
    updatewcs = pytest.importorskip("stwcs.updatewcs")
    monkeypatch.setenv("jref", f"{refs}/")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "j94f05bgq_flt.fits"
    with fits.open(acs) as units:
        header = units[0].header
        header["IDCTAB"] = f"jref${idc}_idc.fits"
        header["NPOLFILE"] = f"jref${npl}_npl.fits" if npl else "N/A"
        header["D2IMFILE"] = f"jref${d2i}_d2i.fits" if d2i else "N/A"
        header["DGEOFILE"], header["DATE-OBS"] = "N/A", date
        header["FILTER1"], header["FILTER2"] = filters
        for number in (1, 4):  # stwcs takes tables larger than the image for something else
            units[number].data = np.zeros((2048, 4096), np.uint8)
        units.writeto(path)
    ours = default_solution(path)
    updatewcs.updatewcs(str(path), use_db=False, checkfiles=False)
    theirs = archive.solution_of(path)
    assert theirs.wcsname == ours.wcsname == f"IDC_{idc}"
    assert len(ours.tables) == len(theirs.tables) == (4 if npl else 0) + (4 if d2i else 0)
    assert worst_mas(ours, theirs) < 1e-3
    assert ours.distortion == theirs.distortion


def test_it_is_applied_as_any_other(acs, refs, tmp_path):
    path = tmp_path / "j94f05bgq_flt.fits"
    path.write_bytes(acs.read_bytes())
    tables = {"npolfile": refs / "02c1450rj_npl.fits", "d2imfile": refs / "02c1450oj_d2i.fits"}
    headerlet = default_solution(path, refs=refs, idctab=refs / "0461802ej_idc.fits", **tables)
    assert str(headerlet.distortion) == "0461802ej-02c1450rj-02c1450oj"
    archive.activate(path, headerlet, force=True)
    assert fits.getval(path, "WCSNAME", ("SCI", 2)) == "IDC_0461802ej"
    assert worst_mas(archive.solution_of(path), headerlet) == 0.0
    assert archive.names(path, "WCSNAME") == ["IDC_qbu1641sj", "IDC_0461802ej"]


def test_roll_of_an_aperture():
    """At V1 itself the roll is that of V1; elsewhere as vectors on the sphere have it."""
    assert aperture_roll_deg(30.0, 0.0, 0.0, 1e-6) == pytest.approx(30.0, abs=1e-6)
    for roll, v2, v3 in ((10.0, 260.0, 200.0), (123.0, -27.0, -33.0), (300.0, 1.0, -400.0)):
        # V1 at (0, 0) of the sky, V3 at that angle: find the aperture, then V3 seen from there.
        a, b, r = np.radians([v2 / 3600, v3 / 3600, roll])
        east, north, toward = np.eye(3)
        v3_axis = np.cos(r) * north + np.sin(r) * east
        v2_axis = np.cos(r) * east - np.sin(r) * north
        at = (np.cos(a) * np.cos(b) * toward + np.sin(a) * np.cos(b) * v2_axis
              + np.sin(b) * v3_axis)
        dec = np.arcsin(at @ north)
        north_at = north - (at @ north) * at
        up = v3_axis - (at @ v3_axis) * at
        angle = np.arctan2(np.cross(up, north_at) @ at, up @ north_at)
        expected = np.degrees(angle) % 360
        found = aperture_roll_deg(roll, np.degrees(dec), v2, v3) % 360
        # Arcseconds: the formula takes V2 along the equator of V3, not about it.
        assert min(abs(found - expected), 360 - abs(found - expected)) < 0.01


def test_what_cannot_be_built_says_why(acs, refs, tmp_path):
    with pytest.raises(NoModel, match="is not there"):
        default_solution(acs, refs=tmp_path)
    with pytest.raises(NoModel, match="no default solution"):
        default_solution(make_tpv(tmp_path / "m81.fits"))
    with pytest.raises(NoModel, match="no row for chip 7"):
        read_idctab(refs / "0461802ej_idc.fits", 7)
    path = tmp_path / "sub.fits"
    with fits.open(acs) as units:
        units[1].header["LTV1"] = -100.0
        units.writeto(path)
    with pytest.raises(NoModel, match="subarray"):
        default_solution(path, refs=refs)
