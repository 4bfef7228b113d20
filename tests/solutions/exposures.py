"""Small exposures with everything in their WCS, and what the tests ask of them."""

import hashlib

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

ROOT = "j95y04hpq"
SHAPE = (48, 64)
GRID = np.meshgrid(np.linspace(0, SHAPE[1] - 1, 9), np.linspace(0, SHAPE[0] - 1, 7))


def science_cards(header, version, shift=0.0, name="IDC_0461802ej"):
    """Give a header a WCS with SIP, NPOL and D2IM."""
    header["WCSAXES"] = 2
    header["CRVAL1"], header["CRVAL2"] = 150.0 + shift, 2.0 + 0.03 * (version - 1)
    header["CRPIX1"], header["CRPIX2"] = 32.0, 24.0
    header["CD1_1"], header["CD1_2"] = -1.39e-5, 1e-7
    header["CD2_1"], header["CD2_2"] = 1.1e-7, 1.41e-5
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    header["CUNIT1"], header["CUNIT2"] = "deg", "deg"
    header["ORIENTAT"] = 0.5
    header["A_ORDER"], header["B_ORDER"] = 3, 3
    header["A_2_0"], header["A_0_3"] = 1e-4 * version, 1e-6
    header["B_1_1"], header["B_0_2"] = -2e-4, 3e-5 / 3
    header["WCSNAME"], header["IDCSCALE"] = name, 0.05
    header["OCX10"], header["OCX11"], header["OCY10"], header["OCY11"] = 0.001, 0.05, 0.05, 0.001
    for kind, keys, first in (("WCSDVARR", ("CPDIS", "DP", "CPERR"), 2 * version - 1),
                              ("D2IMARR", ("D2IMDIS", "D2IM", "D2IMERR"), 2 * version - 1)):
        for axis in (1, 2):
            header[f"{keys[0]}{axis}"] = "Lookup"
            header[f"{keys[2]}{axis}"] = 0.05
            for text in (f"EXTVER: {first + axis - 1}", "NAXES: 2", "AXIS.1: 1", "AXIS.2: 2"):
                header.append((f"{keys[1]}{axis}", text), end=True)
        header["NPOLEXT" if kind == "WCSDVARR" else "D2IMEXT"] = "jref$02c1450oj_x.fits"


def lookup_table(name, version, rng, amplitude):
    values = rng.normal(0, amplitude, (5, 7)).astype(np.float32)
    unit = fits.ImageHDU(values, name=name, ver=version)
    for i in (1, 2):
        unit.header[f"CRPIX{i}"], unit.header[f"CRVAL{i}"] = 1.0, 1.0
        unit.header[f"CDELT{i}"] = 12.0
    return unit


def make_flc(path, *, root=ROOT, checksum=False, idctab="jref$0461802ej_idc.fits"):
    """Write a two-chip exposure of Hubble with tables of both kinds and an OPUS alternate."""
    rng = np.random.default_rng(4)
    primary = fits.PrimaryHDU()
    for keyword, value in (
        ("ROOTNAME", root), ("INSTRUME", "ACS"), ("DETECTOR", "WFC"), ("IDCTAB", idctab),
        ("NPOLFILE", "jref$02c1450oj_npl.fits"), ("D2IMFILE", "jref$02c1450nj_d2i.fits"),
        ("UPWCSVER", "1.7.7"), ("PYWCSVER", "8.0"), ("NEXTEND", 14), ("PA_V3", 10.0),
        ("SIPNAME", f"{root}_0461802ej"), ("DISTNAME", f"{root}_0461802ej-02c1450oj-02c1450nj"),
    ):
        primary.header[keyword] = value
    units, tables = [primary], []
    for version in (1, 2):
        science = fits.ImageHDU(
            rng.normal(0, 1, SHAPE).astype(np.float32), name="SCI", ver=version
        )
        header = science.header
        header["CCDCHIP"] = 3 - version
        science_cards(header, version)
        header["WCSNAMEO"], header["WCSAXESO"] = "OPUS", 2
        for keyword in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CD1_1", "CD1_2", "CD2_1", "CD2_2"):
            header[keyword + "O"] = header[keyword] * (1 + 1e-7)
        header["CTYPE1O"], header["CTYPE2O"] = "RA---TAN", "DEC--TAN"
        header["S_REGION"] = "POLYGON ICRS 1 2 3 4 5 6 7 8"
        header["HISTORY"] = "kept"
        units += [science, fits.ImageHDU(np.zeros((3, 3), np.float32), name="ERR", ver=version),
                  fits.ImageHDU(np.zeros((3, 3), np.int16), name="DQ", ver=version)]
        tables += [lookup_table(n, 2 * version - 1 + k, rng, a) for n, a in
                   (("WCSDVARR", 0.4), ("D2IMARR", 0.2)) for k in (0, 1)]
    fits.HDUList(units + tables).writeto(path, overwrite=True, checksum=checksum)
    return path


def make_tpv(path, *, name=None):
    """Write an image of one unit with a TPV distortion."""
    unit = fits.PrimaryHDU(np.arange(SHAPE[0] * SHAPE[1], dtype=np.int16).reshape(SHAPE))
    header = unit.header
    header["OBJECT"] = "M 81"
    header["CTYPE1"], header["CTYPE2"] = "RA---TPV", "DEC--TPV"
    header["CRVAL1"], header["CRVAL2"] = 10.0, -40.0
    header["CRPIX1"], header["CRPIX2"] = 30.5, 20.5
    header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = -1e-3, 2e-6, 3e-6, 1e-3
    header["PV1_1"], header["PV2_1"], header["PV1_4"], header["PV2_6"] = 1.0, 1.0, 0.01, -0.02
    if name:
        header["WCSNAME"] = name
    unit.writeto(path, overwrite=True)
    return path


def sky(path, unit, key=" "):
    """Return what astropy makes of the grid, from the file alone."""
    with fits.open(path) as units:
        wcs = WCS(units[unit].header, units, key=key)
        return np.array(wcs.all_pix2world(GRID[0].ravel(), GRID[1].ravel(), 0))


def headerlet_sky(headerlet, target):
    wcs = headerlet.wcs(target)
    return np.array(wcs.all_pix2world(GRID[0].ravel(), GRID[1].ravel(), 0))


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def layout(path):
    with fits.open(path) as units:
        units.verify("exception")
        return [(u.name, u.ver) for u in units]
