"""Headerlets: read whatever archives wrote, written in one form, evaluated to the bit."""

import gzip
import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from exposures import GRID, headerlet_sky, make_flc, make_tpv, sky

from cynosure.data.fits.parts import Part, card, parts_of_bytes
from cynosure.ground.errors import CynosureError
from cynosure.solutions.files.archive import create
from cynosure.solutions.files.hdrlet import embed, hdu_class, unembed
from cynosure.solutions.files.headerlet import HeaderletDamaged, same_solution
from cynosure.solutions.files.headerletio import parse_headerlet, read_headerlet, write_headerlet

P04 = "p04-hst-headerlets"


@pytest.fixture(scope="module")
def flc(tmp_path_factory):
    return make_flc(tmp_path_factory.mktemp("hlet") / "j95y04hpq_flc.fits")


@pytest.fixture(scope="module")
def headerlet(flc):
    return create(flc, author="a test")


def real_headerlets(data_dir):
    """Give (name, bytes) of the headerlets of the archive."""
    for file in ("sample_ipppssoot_flc.fits", "sample_ipppssoot_flt.fits"):
        with fits.open(data_dir / P04 / file) as units:
            for unit in units:
                if unit.header.get("XTENSION") == "HDRLET":
                    yield f"{file}[{unit.ver}]", unit.data.tobytes()
    alone = data_dir / P04 / "ia1d23dmq_flt_hlet.fits"
    yield alone.name, alone.read_bytes()


def test_real_headerlets_come_back_byte_for_byte(data_dir):
    found = list(real_headerlets(data_dir))
    assert len(found) == 18
    for name, data in found:
        headerlet = parse_headerlet(data, name)
        assert headerlet.to_bytes() == data, name
        assert not headerlet.faults(), name
        assert headerlet.distname.startswith(headerlet.destim), name


def test_real_headerlets_with_another_solution_in_a_chip_are_doubted(data_dir):
    doubted = [n for n, d in real_headerlets(data_dir) if parse_headerlet(d).doubts()]
    # The archive's own: its second chip is that of HSC30.
    assert doubted == ["sample_ipppssoot_flc.fits[8]"]


def test_real_headerlets_evaluate_as_astropy_does_from_their_bytes(data_dir):
    from astropy.wcs import WCS

    for name, data in real_headerlets(data_dir):
        headerlet = parse_headerlet(data)
        with fits.open(io.BytesIO(data)) as units:
            for chip in headerlet.chips:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # astropy wants an image with the WCS
                    truth = WCS(units["SIPWCS", chip.version].header, units)
                mine = headerlet.wcs(chip.target)
                x, y = (40.0 * g.ravel() for g in GRID)
                assert np.array_equal(
                    truth.all_pix2world(x, y, 0), mine.all_pix2world(x, y, 0)
                ), name


def test_wcs_of_a_headerlet_is_that_of_its_file_to_the_bit(flc, headerlet):
    for target in (("SCI", 1), ("SCI", 2)):
        assert np.array_equal(headerlet_sky(headerlet, target), sky(flc, target))


def test_the_tables_and_the_polynomial_are_added_at_the_corrected_pixel(headerlet):
    """Evaluate one chip by hand: D2IM, then SIP beside NPOL, then CD and the tangent plane."""
    from scipy.interpolate import RegularGridInterpolator

    from cynosure.ground.sky import deproject

    chip = headerlet.chip(("SCI", 2))
    x, y = (g.ravel()[10:40] for g in GRID)

    def table(kind, version, x, y):
        values = headerlet.table(kind, version).array
        at = RegularGridInterpolator(
            (12.0 * np.arange(5), 12.0 * np.arange(7)), values.astype(float), bounds_error=False,
            fill_value=None,
        )
        return at(np.stack([y, x], axis=1))

    x1 = x + table("D2IMARR", 3, x, y)
    y1 = y + table("D2IMARR", 4, x, y)
    u, v = x1 + 1 - chip.number("CRPIX1"), y1 + 1 - chip.number("CRPIX2")
    a, b = ({k: chip.number(k) for k in chip.distortion if k[0] == n} for n in "AB")
    f, g = (
        sum(c * u ** int(k[2]) * v ** int(k[4]) for k, c in terms.items()) for terms in (a, b)
    )
    u, v = u + f + table("WCSDVARR", 3, x1, y1), v + g + table("WCSDVARR", 4, x1, y1)
    cd = chip.linear[4:].reshape(2, 2)
    ra, dec = deproject(*(cd @ np.stack([u, v])), *chip.linear[:2])
    inside = (x1 < 60) & (y1 < 44)
    mine = headerlet_sky(headerlet, ("SCI", 2))[:, 10:40]
    assert inside.sum() > 15
    assert np.abs(mine[0] - ra)[inside].max() * 3.6e6 < 1e-4
    assert np.abs(mine[1] - dec)[inside].max() * 3.6e6 < 1e-4


def test_canonical_form(headerlet, tmp_path):
    path = write_headerlet(headerlet, tmp_path / "h.fits")
    with fits.open(path) as units:
        units.verify("exception")
        names = [(u.name, u.ver) for u in units[1:]]
        keys = list(units[0].header)
    assert names == [
        ("SIPWCS", 1), ("WCSDVARR", 1), ("WCSDVARR", 2), ("D2IMARR", 1), ("D2IMARR", 2),
        ("SIPWCS", 2), ("WCSDVARR", 3), ("WCSDVARR", 4), ("D2IMARR", 3), ("D2IMARR", 4),
    ]
    assert keys[4:21] == [
        "DESTIM", "HDRNAME", "DATE", "WCSNAME", "DISTNAME", "SIPNAME", "NPOLFILE", "D2IMFILE",
        "IDCTAB", "AUTHOR", "DESCRIP", "RMS_RA", "RMS_DEC", "NMATCH", "CATALOG", "UPWCSVER",
        "PYWCSVER",
    ]
    assert read_headerlet(path).to_bytes() == path.read_bytes()


# --- the tolerant reader --------------------------------------------------------------------


def rebuilt(headerlet, change):
    """Return the bytes of a headerlet after a change of its parts."""
    parts = parts_of_bytes(headerlet.to_bytes(), "h")
    parts = change(parts) or parts
    out = b""
    for part in parts:
        out += part.header_bytes() + part.data + b"\0" * (-len(part.data) % 2880)
    return out


def test_units_in_any_order(headerlet):
    data = rebuilt(headerlet, lambda p: [p[0], *reversed(p[1:])])
    other = parse_headerlet(data)
    assert same_solution(other, headerlet)
    assert other.to_bytes() == headerlet.to_bytes()


@pytest.mark.parametrize("text", ["('SCI', {})", "SCI,{}", "{}"])
def test_old_headerlets_name_their_image_in_sciext(headerlet, text):
    def change(parts):
        for part in parts[1:]:
            if part.name == "SIPWCS":
                part.remove(["TG_ENAME", "TG_EVER"])
                part.set("SCIEXT", text.format(part.version))

    other = parse_headerlet(rebuilt(headerlet, change))
    assert [c.target for c in other.chips] == [("SCI", 1), ("SCI", 2)]
    assert len(other.notes) == 2
    assert b"TG_ENAME" in other.to_bytes()


def test_missing_target_is_sci_of_the_same_version(headerlet):
    def change(parts):
        for part in parts[1:]:
            part.remove(["TG_ENAME", "TG_EVER", "IDCSCALE"])

    other = parse_headerlet(rebuilt(headerlet, change))
    assert [c.target for c in other.chips] == [("SCI", 1), ("SCI", 2)]
    again = parse_headerlet(other.to_bytes())
    assert again.chips[0].number("IDCSCALE") == pytest.approx(3600 * np.hypot(1.39e-5, 1.1e-7))


@pytest.mark.parametrize(
    "cards, n, rms",
    [
        ({"NMATCH": "573", "RMS_RA": 5.5, "RMS_DEC": "4.5"}, 573, (5.5, 4.5)),
        ({"NMATCH": "", "RMS_RA": 1.5e-6, "RMS_DEC": 2.5e-6}, 0, (5.4, 9.0)),
        ({"NMATCH": "N/A", "RMS_RA": "", "RMS_DEC": 0}, 0, (np.nan, np.nan)),
        ({"NMATCH": 12.0, "RMS_RA": -1, "RMS_DEC": 3}, 12, (np.nan, 3.0)),
    ],
)
def test_numbers_of_the_fit_in_whatever_dress(headerlet, cards, n, rms):
    other = parse_headerlet(headerlet.replaced(**cards).to_bytes())
    assert other.n_matched == n
    assert other.rms_mas == pytest.approx(rms, nan_ok=True)


def test_blank_catalog_is_what_the_name_says(headerlet):
    other = headerlet.replaced(CATALOG="", WCSNAME="IDC_0461802ej-FIT_REL_GAIADR1")
    assert other.catalog == "GAIADR1"


def test_missing_names_stand_in_for_each_other(headerlet):
    other = parse_headerlet(rebuilt(headerlet, lambda p: p[0].remove(["WCSNAME", "HDRNAME"])))
    assert other.wcsname == "IDC_0461802ej"
    assert other.hdrname == "j95y04hpq_IDC_0461802ej"


def test_long_names_are_whole(headerlet):
    name = "hst_11665_06_wfc3_uvis_f555w_" + "x" * 80 + "it's-hlet.fits"
    other = headerlet.replaced(HDRNAME=name)
    assert parse_headerlet(other.to_bytes()).hdrname == name
    part = embed(other, 1)
    assert part.text("HDRNAME") == name
    with fits.open(io.BytesIO(other.to_bytes())) as units:
        assert units[0].header["HDRNAME"] == name


# --- faults ---------------------------------------------------------------------------------


def test_faults_are_named(headerlet):
    def without(keys):
        def change(parts):
            for part in parts[1:]:
                part.remove(keys)
        return parse_headerlet(rebuilt(headerlet, change))

    assert "no SIP terms" in " ".join(without(["A_ORDER", "A_2_0", "A_0_3"]).faults())
    assert "no usable CD" in " ".join(without(["CD1_1", "CD1_2"]).faults())

    def tan(parts):
        for part in parts[1:]:
            if part.name == "SIPWCS":
                part.set("CTYPE1", "RA---TAN")

    assert "does not say -SIP" in " ".join(parse_headerlet(rebuilt(headerlet, tan)).faults())
    gone = parse_headerlet(rebuilt(headerlet, lambda p: [x for x in p if x.name != "D2IMARR"]))
    assert "D2IMARR,1, which is not in it" in " ".join(gone.faults())
    with pytest.raises(HeaderletDamaged, match="D2IMARR,1"):
        gone.wcs(1)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "empty"), (b"not FITS at all" * 300, "not a FITS"),
        (b"SIMPLE  =" + b" " * 2871, "no END"),
        (fits.PrimaryHDU().header.tostring().encode(), "no SIPWCS"),
    ],
)
def test_what_is_no_headerlet_says_so(data, words):
    with pytest.raises(HeaderletDamaged, match=words):
        parse_headerlet(data)


def test_two_chips_of_one_version_are_refused(headerlet):
    with pytest.raises(HeaderletDamaged, match="two SIPWCS of EXTVER 1"):
        parse_headerlet(rebuilt(headerlet, lambda p: [*p, p[1]]))


def test_a_bomb_in_gzip_is_refused(headerlet, monkeypatch):
    import cynosure.solutions.files.hdrlet as module

    monkeypatch.setattr(module, "MAX_HEADERLET_BYTES", 1 << 16)
    part = embed(headerlet, 1, compress=True)
    with pytest.raises(HeaderletDamaged, match="unpacked"):
        unembed(part, gzip.compress(b"\0" * (1 << 20)))
    with pytest.raises(HeaderletDamaged, match="damaged compression"):
        unembed(part, part.data[:20] + b"junk" + part.data[30:])


# --- HDRLET ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
def test_hdrlet_extension(headerlet, compress):
    part = embed(headerlet, 3, compress=compress)
    assert part.header_bytes().startswith(b"XTENSION= 'HDRLET  '")
    assert part.get("NAXIS1") == len(part.data)
    assert part.get("COMPRESS") is compress
    data = gzip.decompress(part.data) if compress else part.data
    assert len(data) % 2880 == 0
    offsets = [part.get(f"XIND{i}") for i in range(1, 11)]
    assert all(data[at : at + 8] == b"XTENSION" for at in offsets)
    assert part.get("XIND11") is None
    assert unembed(part, part.data).to_bytes() == headerlet.to_bytes()


ASK = """
import sys
from pathlib import Path
from astropy.io import fits
from cynosure.solutions.files.hdrlet import register_hdu, unregister_hdu

def look(path):
    with fits.open(path) as units:
        units.verify("exception")
        assert type(units[1]).__name__ in str(units.info(output=False)[1])
        print(type(units[1]).__name__)
        if hasattr(units[1], "headerlet"):
            Path(path + ".back").write_bytes(units[1].headerlet.to_bytes())

look(sys.argv[1])
register_hdu()
look(sys.argv[1])
unregister_hdu()
look(sys.argv[1])
"""


def test_astropy_knows_the_class_only_when_asked(headerlet, tmp_path):
    # In a process of its own: stwcs, the oracle of other tests, registers its class when imported.
    path = tmp_path / "e.fits"
    unit = hdu_class().from_headerlet(headerlet, 2)
    fits.HDUList([fits.PrimaryHDU(), unit]).writeto(path)
    told = subprocess.run([sys.executable, "-W", "error", "-c", ASK, str(path)],
                          capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.split() == ["NonstandardExtHDU", "HeaderletHDU", "NonstandardExtHDU"]
    assert Path(f"{path}.back").read_bytes() == headerlet.to_bytes()


# --- generic images, and mutations ----------------------------------------------------------


def test_headerlet_of_an_image_of_any_telescope(tmp_path):
    path = make_tpv(tmp_path / "m81_wcs.fits", name="FIT_IMG_GAIADR3")
    headerlet = create(path)
    assert headerlet.destim == "m81"
    assert headerlet.chips[0].target == ("PRIMARY", 1)
    assert np.array_equal(headerlet_sky(headerlet, ("PRIMARY", 1)), sky(path, 0))


def mutated(data, rng):
    """Return bytes with a few of them changed, cut, doubled or moved."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        kind, at = rng.integers(5), int(rng.integers(max(len(data) - 80, 1)))
        card_at = at // 80 * 80
        if kind == 0:
            data[at] = rng.integers(256)
        elif kind == 1:
            data[card_at + 10 : card_at + 30] = b"%20d" % rng.integers(-(2**62), 2**62)
        elif kind == 2:
            del data[card_at : card_at + 80 * int(rng.integers(1, 40))]
        elif kind == 3:
            data[card_at:card_at] = data[card_at : card_at + 80]
        else:
            other = int(rng.integers(max(len(data) // 80, 1))) * 80
            data[card_at : card_at + 80] = data[other : other + 80].ljust(80)
    return bytes(data)


def test_mutated_headerlets_end_in_our_error_or_in_a_headerlet(headerlet):
    rng = np.random.default_rng(11)
    source, good = headerlet.to_bytes(), 0
    for number in range(500):
        data = mutated(source, rng)
        try:
            found = parse_headerlet(data)
            found.faults(), found.doubts(), found.to_bytes()
            if number % 5 == 0 and not found.faults():
                found.wcs(found.chips[0].target)
            good += 1
        except CynosureError:
            pass
    assert 35 < good < 465


def test_cards_of_every_kind_come_back():
    for value in ("a", "it's", "x" * 300, "'" * 90, 1, -3, True, False, 1.5, 1e-300, 0.1 + 0.2):
        part = Part([card("KEY", value, "comment")])
        assert part.get("KEY") == value
        assert fits.Header.fromstring(part.header_bytes().decode())["KEY"] == value
