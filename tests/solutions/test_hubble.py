"""Hubble's default solution: against the archive's own headers, and against stwcs."""

import re

import numpy as np
import pytest
from astropy.io import fits
from exposures import make_tpv

from cynosure.solutions.files import archive
from cynosure.solutions.files.compare import separations
from cynosure.solutions.files.hubble import NoModel, aperture_roll_deg, default_solution
from cynosure.solutions.files.idctab import placed, read_idctab

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


def by_stwcs(path, refs, monkeypatch):
    """Return our default solution of a file, and what stwcs leaves in it."""
    updatewcs = pytest.importorskip("stwcs.updatewcs")
    for variable in ("jref", "oref", "uref"):
        monkeypatch.setenv(variable, f"{refs}/")
    monkeypatch.chdir(path.parent)
    ours = default_solution(path)
    updatewcs.updatewcs(str(path), use_db=False, checkfiles=False)
    return ours, archive.solution_of(path)


def wfpc2(data_dir, path, **changes):
    """Write the real WFPC2 exposure as the pipeline converts it: an extension for each chip."""
    source = data_dir / "p14-wfpc2-omegacen" / "u40x010hm_c0f.fits.gz"
    with fits.open(source) as units:
        header, table, data = units[0].header.copy(), units[1].data, units[0].data
        for key in ("CRVAL", "CRPIX", "CTYPE", "CD1_", "CD2_", "CRVAL3", "CTYPE3"):
            for name in [k for k in header if k.startswith(key)]:
                del header[name]
        for key in ("DETECTOR", "DGEOFILE", *changes):
            header.remove(key, ignore_missing=True)
        given = {"NEXTEND": 4, "DGEOFILE": "N/A", "D2IMFILE": "N/A", "ROOTNAME": "u40x010hm"}
        header.update({**given, **changes})
        chips = []
        for k, row in enumerate(table):
            own = fits.Header([("EXTNAME", "SCI"), ("EXTVER", k + 1)])
            for key in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CD1_1", "CD1_2", "CD2_1",
                        "CD2_2", "CTYPE1", "CTYPE2", "DETECTOR", "VAFACTOR", "ORIENTAT"):
                own[key] = row[key]
            half = 2 if changes.get("MODE") == "AREA" else 1
            for i in (1, 2):
                own[f"CRPIX{i}"] /= half
                own[f"CD{i}_1"], own[f"CD{i}_2"] = half * own[f"CD{i}_1"], half * own[f"CD{i}_2"]
            chips.append(fits.ImageHDU(data[k, ::half, ::half], own))
        # Keywords like EXTEND and NAXIS come from the units themselves.
        primary = fits.PrimaryHDU(header=header)
        fits.HDUList([primary, *chips]).writeto(path)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("changes", [
    {}, {"DATE-OBS": "1993-12-31"}, {"DATE-OBS": "2009-05-01"}, {"MODE": "AREA"},
])
def test_wfpc2_has_its_chips_where_the_offset_table_puts_them(
    data_dir, refs, tmp_path, monkeypatch, changes
):
    path = wfpc2(data_dir, tmp_path / "u40x010hm_c0m.fits", **changes)
    before = archive.solution_of(path)
    ours, theirs = by_stwcs(path, refs, monkeypatch)
    assert ours.wcsname == theirs.wcsname == "IDC_sad1946fu"
    shapes = {("SCI", k): (800, 800) for k in (1, 2, 3, 4)}
    # stwcs keeps the angles of the table in single precision: 3e-5 degrees over 400 pixels.
    assert max(m.summary()["max_mas"] for m in separations(ours, theirs, shapes)) < 0.1
    # The telescope's own WCS lacks the distortion: arcseconds at the corners, not degrees.
    away = [m.summary()["max_mas"] for m in separations(ours, before, shapes)]
    assert 100 < max(away) < 20_000


@pytest.mark.filterwarnings("ignore")  # astropy's, about the table of the old format
def test_the_rows_of_wfpc2_become_a_table_along_y(data_dir, refs, tmp_path):
    path = wfpc2(data_dir, tmp_path / "u40x010hm_c0m.fits",
                 DGEOFILE="uref$s8f1222cu_dxy.fits")
    dgeo = tmp_path / "s8f1222cu_dxy.fits"
    with fits.open(data_dir / "p14-wfpc2-omegacen" / "s8f1222cu_dxy.fits.gz") as units:
        units.writeto(dgeo)
        rows = units["DY", 1].data[:, 0].astype(float)
    references = {"idctab": refs / "sad1946fu_idc.fits", "offtab": refs / "s9518396u_off.fits"}
    with_rows = default_solution(path, refs=tmp_path, **references)
    without = default_solution(wfpc2(data_dir, tmp_path / "no.fits"), **references)
    assert len(with_rows.tables) == 4
    assert str(with_rows.distortion) == "sad1946fu-NOMODEL-s8f1222cu"
    y = np.arange(800.0)
    for x in (0.0, 400.0, 799.0):
        at = np.full(800, x)
        ra, dec = with_rows.wcs(("SCI", 3)).all_pix2world(at, y, 0)
        # The correction is of the pixel, before everything else, and the same in all columns.
        ra0, dec0 = without.wcs(("SCI", 3)).all_pix2world(at, y + rows, 0)
        apart = np.hypot((ra - ra0) * np.cos(np.radians(dec0)), dec - dec0) * 3.6e6
        assert apart.max() < 0.02
    assert 2.0 < np.ptp(rows) * 100 < 4.0  # of a pixel of 100 mas


@pytest.mark.filterwarnings("ignore")
def test_stis_and_its_two_exposures(data_dir, refs, tmp_path, monkeypatch):
    path = tmp_path / "o4k19a010_flt.fits"
    with fits.open(data_dir / "p15-stis-crsplit" / "o4k19a010_flt.fits.gz") as units:
        units.writeto(path)
    ours, theirs = by_stwcs(path, refs, monkeypatch)
    assert ours.wcsname == theirs.wcsname == "IDC_o8g1508do"
    assert max(m.summary()["max_mas"] for m in separations(
        ours, theirs, {("SCI", k): (1024, 1024) for k in (1, 2)})) < 1e-3


def subarray(acs, path, *, corner=(1500, 700), size=512, binning=1, tables=False):
    """Cut chip 1 of the ACS exposure as the detector would have been read out."""
    with fits.open(acs) as units:
        head, chip = units[0].header.copy(), units[4].header.copy()
        assert chip["EXTNAME"] == "SCI"
        head.update(IDCTAB="jref$qbu1641sj_idc.fits", DGEOFILE="N/A",
                    NPOLFILE="jref$qbu16424j_npl.fits" if tables else "N/A",
                    D2IMFILE="jref$02c1450oj_d2i.fits" if tables else "N/A")
        alternate = re.compile(r"(CRVAL[12]|CRPIX[12]|CTYPE[12]|CUNIT[12]|CD\d_\d|WCSNAME)[A-Z]")
        for key in [k for k in chip if k.startswith(("A_", "B_", "OC", "TDD"))
                    or alternate.fullmatch(k)]:
            del chip[key]
        chip["CTYPE1"], chip["CTYPE2"] = "RA---TAN", "DEC--TAN"
        for i, start in ((1, corner[0]), (2, corner[1])):
            # The middle of the piece is the pixel that the telescope points by.
            ltv = (0.5 - start) / binning + 0.5 - 0.5 / binning if binning > 1 else -start
            chip[f"LTV{i}"], chip[f"LTM{i}_{i}"] = ltv, 1.0 / binning
            chip[f"BINAXIS{i}"] = binning
            chip[f"CRPIX{i}"] = size / 2.0
            for j in (1, 2):
                chip[f"CD{i}_{j}"] *= binning
        chip["EXTVER"] = 1
        image = fits.ImageHDU(np.zeros((size, size), np.uint8), chip)
        fits.HDUList([fits.PrimaryHDU(header=head), image]).writeto(path)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"tables": True}, {"binning": 2, "size": 1024}])
def test_subarrays_and_binned_pixels_as_stwcs_has_them(
    acs, refs, tmp_path, monkeypatch, options
):
    path = subarray(acs, tmp_path / "j94f05bgq_flt.fits", **options)
    ours, theirs = by_stwcs(path, refs, monkeypatch)
    size = options.get("size", 512)
    apart, = separations(ours, theirs, {("SCI", 1): (size, size)})
    assert apart.summary()["max_mas"] < 1e-3
    assert len(ours.tables) == len(theirs.tables) == (4 if options.get("tables") else 0)


def test_a_subarray_has_the_sky_of_the_whole_chip(acs, refs, tmp_path):
    """The telescope points at what the whole chip has there: then all of the piece agrees."""
    whole = default_solution(acs, refs=refs)
    path = subarray(acs, tmp_path / "j94f05bgq_flt.fits")
    x0, y0 = 1500.0, 700.0
    ra, dec = whole.wcs(("SCI", 2)).all_pix2world(np.array([x0 + 255.0]), np.array([y0 + 255.0]), 0)
    with fits.open(path, mode="update") as units:
        units[1].header["CRVAL1"], units[1].header["CRVAL2"] = float(ra[0]), float(dec[0])
    piece = default_solution(path, refs=refs)
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, 511, 9), np.linspace(0, 511, 9)))
    ra, dec = piece.wcs(("SCI", 1)).all_pix2world(x, y, 0)
    ra0, dec0 = whole.wcs(("SCI", 2)).all_pix2world(x + x0, y + y0, 0)
    at = piece.chips[0]
    east = (ra - ra0) * np.cos(np.radians(dec0)) * 3.6e6
    north = (dec - dec0) * 3.6e6
    xi = (ra0 - at.number("CRVAL1")) * np.cos(np.radians(dec0)) * 3.6e6
    eta = (dec0 - at.number("CRVAL2")) * 3.6e6
    turn = (xi @ north - eta @ east) / (xi @ xi + eta @ eta)
    # The pipeline takes the roll at the reference pixel of the chip: meridians converge from
    # there, at this declination of -72 degrees by 0.2 mrad, 4 mas at the corners.
    aside = at.number("CRVAL1") - whole.chips[1].number("CRVAL1")
    assert turn == pytest.approx(np.radians(aside) * np.sin(np.radians(dec0.mean())), rel=0.1)
    assert np.hypot(east + turn * eta, north - turn * xi).max() < 0.1


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
    with pytest.raises(NoModel, match="no row for chip 9"):
        placed(read_idctab(refs / "sad1946fu_idc.fits", 1, "F555W"),
               refs / "s9518396u_off.fits", 9, "1997-06-13")
