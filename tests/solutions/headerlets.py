"""Headerlets of known content, made with astropy."""

import io

import numpy as np
from astropy.io import fits

SCALE_DEG = 0.05 / 3600.0


def make_headerlet(
    rootname="j95y04hpq", wcsname="IDC_0461802ej", ra=150.0, dec=2.0, *, chips=2, tables=True,
    hdrname=None, size=(4096, 2048), turn_deg=30.0, primary=None, sip=None, **sipwcs,
):
    """Return the bytes of a headerlet, two chips one above the other as those of ACS/WFC."""
    hdus = [_primary(rootname, wcsname, hdrname, tables, primary or {})]
    for chip in range(1, chips + 1):
        header = _sipwcs(chip, wcsname, ra, dec, size, turn_deg, chips, sip)
        if tables:
            hdus += _tables(header, chip, np.random.default_rng(0))
        header.update(sipwcs)
        hdus.insert(1, fits.ImageHDU(header=header, name="SIPWCS", ver=chip))
    out = io.BytesIO()
    fits.HDUList(hdus).writeto(out, output_verify="fix")
    return out.getvalue()


def _primary(rootname, wcsname, hdrname, tables, extra):
    idctab = wcsname.split("-")[0].removeprefix("IDC_") if wcsname.startswith("IDC_") else "N/A"
    others = "02c1450oj-02c1450nj" if tables else "NOMODEL-NOMODEL"
    cards = {
        "DESTIM": rootname, "HDRNAME": hdrname or f"{rootname}_flc_{wcsname}-hlet.fits",
        "DATE": "2021-01-05T05:23:11", "WCSNAME": wcsname,
        "DISTNAME": f"{rootname}_{idctab}-{others}",
        "SIPNAME": f"{rootname}_{idctab}",
        "NPOLFILE": "jref$02c1450oj_npl.fits" if tables else "N/A",
        "D2IMFILE": "jref$02c1450nj_d2i.fits" if tables else "N/A",
        "IDCTAB": f"jref${idctab}_idc.fits" if idctab != "N/A" else "N/A", "AUTHOR": "somebody",
        "DESCRIP": "made up", "RMS_RA": 0, "RMS_DEC": 0, "NMATCH": 0, "CATALOG": "",
        "UPWCSVER": "1.7.2", "PYWCSVER": "6.1", **extra,
    }
    return fits.PrimaryHDU(header=fits.Header([(k, v) for k, v in cards.items() if v is not None]))


def _sipwcs(chip, wcsname, ra, dec, size, turn_deg, chips, sip):
    c, s = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    cd = SCALE_DEG * np.array([[-c, s], [s, c]])
    # The chips' own reference points lie a chip apart on one tangent plane.
    up = (chip - (chips + 1) / 2) * (size[1] + 50)
    xi, eta = cd @ [0.0, up]
    has_sip = wcsname.startswith("IDC_") if sip is None else sip
    suffix = "-SIP" if has_sip else ""
    header = fits.Header({
        "WCSAXES": 2, "CRPIX1": size[0] / 2.0, "CRPIX2": size[1] / 2.0,
        "CTYPE1": f"RA---TAN{suffix}", "CTYPE2": f"DEC--TAN{suffix}",
        "CUNIT1": "deg", "CUNIT2": "deg",
        "CRVAL1": ra + xi / np.cos(np.radians(dec)), "CRVAL2": dec + eta,
        "WCSNAME": wcsname, "RADESYS": "ICRS",
    })
    if has_sip:
        rng = np.random.default_rng(chip)
        for name in "AB":
            header[f"{name}_ORDER"] = 4
            for p in range(5):
                for q in range(5 - p):
                    if p + q > 1:
                        size_px = 20.0 if p + q == 2 else 0.5  # at a thousand pixels
                        header[f"{name}_{p}_{q}"] = rng.normal() * size_px / 1000.0 ** (p + q)
    header["TG_ENAME"], header["TG_EVER"] = "SCI", chip
    for i in (1, 2):
        for j in (1, 2):
            header[f"CD{i}_{j}"] = cd[i - 1, j - 1]
    if has_sip:
        header["IDCSCALE"] = 0.05
    return header


def _tables(header, chip, rng):
    """Return the lookup tables of a chip, alike for all exposures, and name them in its header."""
    hdus = []
    for axis in (1, 2):
        version = 2 * (chip - 1) + axis
        for kind, record, name in (("CPDIS", "DP", "WCSDVARR"), ("D2IMDIS", "D2IM", "D2IMARR")):
            header[f"{kind}{axis}"] = "LOOKUP"
            header.append(("", "", ""), end=True)
            for field, value in (("EXTVER", version), ("NAXES", 2), ("AXIS.1", 1), ("AXIS.2", 2)):
                header.append(fits.Card(f"{record}{axis}", f"{field}: {value:.1f}"), end=True)
            values = rng.normal(0, 0.05, (33, 65)).astype("f4")
            table = fits.ImageHDU(values, name=name, ver=version)
            for i in (1, 2):
                table.header[f"CRPIX{i}"], table.header[f"CRVAL{i}"] = 0.0, 0.0
                table.header[f"CDELT{i}"] = 64.0
            hdus.append(table)
    return hdus


def variants(data, rootnames):
    """Give the headerlet for other exposures: the same bytes with the names replaced.

    Names must have the length of the first one.
    """
    old = bytes(data[data.index(b"DESTIM  = '") + 11:][:20]).split(b"'")[0].rstrip()
    for name in rootnames:
        new = name.encode()
        assert len(new) == len(old)
        yield data.replace(old, new)
