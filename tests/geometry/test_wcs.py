"""WCS models: what is written is what wcslib reads; what others wrote is understood or refused."""

import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from cynosure.geometry.wcs import (
    SkyModel,
    header_error_mas,
    model_from_wcs,
    model_in_file,
    model_to_header,
    read_head,
    read_wcs,
    sip_inverse_error_px,
    sky_of_pixels,
    substituted,
)
from cynosure.ground.errors import ImageError, SettingError
from cynosure.ground.numeric import n_terms, poly_design
from cynosure.ground.sky import MAS_PER_DEG, separation_deg

SHAPE = (900, 1200)
# Headers hold 16 digits: a right ascension of 360 degrees is known to a few nanoarcseconds.
ROUNDING_MAS = 1e-5


def planted(degree=4, *, ra=150.0, dec=2.0, scale=1.25, rotation=30.0, parity=1, bend=1e-3, seed=1):
    """Return a model with a random distortion of `bend` times the size of the field."""
    rng = np.random.default_rng(seed)
    half = 600.0
    coeff = np.zeros((2, n_terms(degree)))
    size = half * scale / 3600.0
    turn = np.radians(rotation)
    coeff[:, 1] = size * np.array([-parity * np.cos(turn), parity * np.sin(turn)])
    coeff[:, 2] = size * np.array([np.sin(turn), np.cos(turn)])
    coeff[:, 0] = rng.normal(0, 0.02 * size, 2)
    coeff[:, 3:] = rng.normal(0, bend * size, (2, coeff.shape[1] - 3))
    return SkyModel(ra, dec, 599.5, 449.5, half, coeff)


models = st.builds(
    planted,
    degree=st.integers(1, 7),
    ra=st.floats(0.0, 359.999),
    dec=st.floats(-89.9, 89.9),
    scale=st.floats(0.05, 60.0),
    rotation=st.floats(0.0, 360.0),
    parity=st.sampled_from([-1, 1]),
    bend=st.sampled_from([1e-5, 1e-3, 5e-3]),
    seed=st.integers(0, 999),
)


def apart_mas(ra1, dec1, ra2, dec2):
    return separation_deg(ra1, dec1, ra2, dec2) * MAS_PER_DEG


def close(sky1, sky2, mas=1e-4):
    return bool(np.max(apart_mas(*sky1, *sky2)) < mas)


# --- model to header and back ---------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(model=models, form=st.sampled_from(["tpv", "sip"]))
def test_a_header_is_its_model_to_rounding(model, form):
    header = model_to_header(model, form, shape=SHAPE)
    assert header_error_mas(header, model, SHAPE) < ROUNDING_MAS * max(1.0, model.scale_px)
    back, error = model_from_wcs(WCS(header), SHAPE, max_degree=7)
    assert error < 1e-3
    x, y = np.meshgrid([0.0, 333.3, 1199.0], [0.0, 500.5, 899.0])
    assert apart_mas(*back.pixel_to_sky(x, y), *model.pixel_to_sky(x, y)).max() < 1e-3


@pytest.mark.parametrize("form", ["tpv", "sip"])
@pytest.mark.parametrize("degree", [2, 3, 5, 7])
def test_the_header_says_what_the_convention_demands(form, degree):
    model = planted(degree)
    header = model_to_header(model, form, shape=SHAPE)
    assert header["RADESYS"] == "ICRS"
    assert header["CUNIT1"] == header["CUNIT2"] == "deg"
    if form == "tpv":
        assert header["CTYPE1"] == "RA---TPV"
        assert header["CTYPE2"] == "DEC--TPV"
        assert header["PV1_1"] == header["PV2_1"] == 1.0
        never = [0, 2, 3, 11, 23, 39]
        assert not [k for k in header for m in never if k in (f"PV1_{m}", f"PV2_{m}")]
        assert not [k for k in header if k.startswith(("A_", "B_"))]
    else:
        assert header["CTYPE1"] == "RA---TAN-SIP"
        assert header["A_ORDER"] == header["B_ORDER"] == degree
        assert header["AP_ORDER"] > degree or header["AP_ORDER"] == 9
        assert not [k for k in header if k.startswith("PV")]
        linear = ["A_0_0", "A_1_0", "A_0_1", "B_0_0", "B_1_0", "B_0_1"]
        assert not [k for k in linear if k in header]
    fits.Header.fromstring(header.tostring())  # every card is legal


def test_the_second_tpv_axis_has_x_and_y_exchanged():
    # eta = y + 1e-3 x^2: by the convention PV2_6, the square of the *other* axis.
    coeff = np.zeros((2, 6))
    coeff[0, 1], coeff[1, 2], coeff[1, 3] = -0.1, 0.1, 1e-5
    header = model_to_header(SkyModel(10.0, 20.0, 0, 0, 100.0, coeff), "tpv", shape=(100, 100))
    assert header["PV2_6"] == pytest.approx(1e-3, rel=1e-12)
    assert header["PV2_4"] == header["PV2_5"] == 0.0


def test_pixels_are_zero_based_inside_and_one_based_in_the_header():
    # The tangent point on the centre of the third column and fifth row.
    coeff = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0]]) * 1e-3
    model = SkyModel(200.0, -30.0, 2.0, 4.0, 1.0, coeff)
    header = model_to_header(model, "tan", shape=(10, 10))
    assert (header["CRPIX1"], header["CRPIX2"]) == (3.0, 5.0)
    assert WCS(header).all_pix2world(2.0, 4.0, 0) == pytest.approx([200.0, -30.0], abs=1e-12)
    assert close(model.pixel_to_sky(2.0, 4.0), (200.0, -30.0))


def test_a_model_of_degree_one_is_tan_in_every_form():
    model = planted(1)
    for form in ("tpv", "sip", "tan"):
        header = model_to_header(model, form, shape=SHAPE)
        assert header["CTYPE1"] == "RA---TAN"
        assert header_error_mas(header, model, SHAPE) < ROUNDING_MAS


def test_the_linear_form_is_the_best_linear_one_and_its_loss_is_known():
    model = planted(3, bend=1e-3)
    header = model_to_header(model, "tan", shape=SHAPE)
    lost = header_error_mas(header, model, SHAPE)
    jacobian = planted(3, bend=0.0).replaced(coeff=model.coeff * (np.arange(10) < 3))
    naive = header_error_mas(model_to_header(jacobian, "tan", shape=SHAPE), model, SHAPE)
    assert 10.0 < lost < naive


def test_the_tangent_point_may_be_far_outside_a_crop():
    model = planted(4, bend=1e-4).replaced(x0=-9000.0, y0=12000.0)
    for form in ("tpv", "sip"):
        header = model_to_header(model, form, shape=SHAPE)
        assert header_error_mas(header, model, SHAPE) < 1e-3


def test_a_tangent_point_that_the_polynomial_never_reaches_becomes_a_constant_term():
    # xi = 1 + u^2 has no zero, so no CRPIX can take the shift; PV1_0 must.
    coeff = np.zeros((2, 6))
    coeff[0, [0, 1, 3]] = 0.5, 0.01, 0.3
    coeff[1, 2] = 0.1
    model = SkyModel(80.0, 10.0, 50.0, 50.0, 50.0, coeff)
    header = model_to_header(model, "tpv", shape=(100, 100))
    assert header["PV1_0"] != 0.0
    assert header_error_mas(header, model, (100, 100)) < 1e-3


@pytest.mark.parametrize("degree", [2, 3, 5])
def test_the_inverse_sip_terms_find_the_pixel(degree):
    model = planted(degree, bend=1e-3)
    header = model_to_header(model, "sip", shape=SHAPE)
    assert sip_inverse_error_px(header, SHAPE) < 1e-3
    wcs = WCS(header)
    x, y = np.meshgrid(np.linspace(0, 1199, 9), np.linspace(0, 899, 9))
    pixels = np.column_stack([x.ravel(), y.ravel()])
    back = wcs.sip_foc2pix(wcs.sip_pix2foc(pixels, 1), 1)
    assert np.abs(back - pixels).max() < 1e-3


def test_forms_refuse_what_they_cannot_hold():
    with pytest.raises(SettingError, match="degree 8 does not fit in TPV"):
        model_to_header(planted(8), "tpv", shape=SHAPE)
    with pytest.raises(SettingError, match="not known"):
        model_to_header(planted(2), "zpn", shape=SHAPE)
    assert header_error_mas(model_to_header(planted(8), "sip", shape=SHAPE), planted(8), SHAPE) < 1


def test_a_wrong_header_is_noticed():
    model = planted(4)
    header = model_to_header(model, "tpv", shape=SHAPE)
    header["PV1_7"] += 1e-2
    assert header_error_mas(header, model, SHAPE) > 1.0
    del header["CTYPE1"]
    assert np.isnan(header_error_mas(header, model, SHAPE))


@settings(max_examples=30, deadline=None)
@given(
    degree=st.integers(0, 7),
    seed=st.integers(0, 999),
    angle=st.floats(0, 6.3),
    stretch=st.floats(0.3, 3.0),
)
def test_substitution_is_exact(degree, seed, angle, stretch):
    rng = np.random.default_rng(seed)
    coeff = rng.normal(size=(2, n_terms(degree)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * stretch
    shift = rng.normal(size=2)
    new = substituted(coeff, turn, shift)
    at = rng.uniform(-1, 1, (50, 2))
    old_at = at @ turn.T + shift
    expected = poly_design(*old_at.T, degree) @ coeff.T
    scale = np.abs(expected).max() + 1.0
    assert np.allclose(poly_design(*at.T, degree) @ new.T, expected, atol=1e-11 * scale, rtol=0)


def test_a_model_of_cells_is_taken_to_the_pixels_of_the_file():
    fine = planted(3)
    # The same sky seen through cells of 2 x 2 pixels: cell 10 holds pixels 20 and 21.
    cells = fine.replaced(
        x0=(fine.x0 - 0.5) / 2, y0=(fine.y0 - 0.5) / 2, scale_px=fine.scale_px / 2
    )
    assert close(cells.pixel_to_sky(10.0, 7.0), fine.pixel_to_sky(20.5, 14.5))
    back = model_in_file(cells, 2)
    assert close(back.pixel_to_sky(123.0, 456.0), fine.pixel_to_sky(123.0, 456.0))


# --- from a WCS -----------------------------------------------------------------------------


def test_other_projections_and_frames_become_models():
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "GLON-ARC", "GLAT-ARC"
    header["CRVAL1"], header["CRVAL2"], header["CRPIX1"], header["CRPIX2"] = (
        120.0,
        30.0,
        600.0,
        450.0,
    )
    header["CDELT1"], header["CDELT2"] = -1e-3, 1e-3
    wcs, notes = read_wcs(header, shape=SHAPE)
    assert any("galactic" in n for n in notes)
    model, error = model_from_wcs(wcs, SHAPE)
    assert error < 0.01
    sky = wcs.pixel_to_world(100.0, 200.0).icrs
    assert close(model.pixel_to_sky(100.0, 200.0), (sky.ra.deg, sky.dec.deg))


def test_declination_may_be_the_first_axis():
    model = planted(1)
    header = model_to_header(model, "tan", shape=SHAPE)
    swapped = header.copy()
    for key in ("CTYPE", "CRVAL"):
        swapped[f"{key}1"], swapped[f"{key}2"] = header[f"{key}2"], header[f"{key}1"]
    for j in (1, 2):
        swapped[f"CD1_{j}"], swapped[f"CD2_{j}"] = header[f"CD2_{j}"], header[f"CD1_{j}"]
    wcs, _ = read_wcs(swapped, shape=SHAPE)
    back, error = model_from_wcs(wcs, SHAPE)
    assert error < 1e-3
    assert close(back.pixel_to_sky(1.0, 2.0), model.pixel_to_sky(1.0, 2.0))


def test_a_wcs_without_sky_is_refused():
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---SIN", "DEC--SIN"
    header["CRVAL1"], header["CRVAL2"], header["CRPIX1"], header["CRPIX2"] = 10.0, 30.0, -9e5, 0.0
    header["CDELT1"], header["CDELT2"] = -1e-2, 1e-2
    wcs, notes = read_wcs(header, shape=SHAPE)
    assert "no sky position at the centre" in " ".join(notes)
    with pytest.raises(ImageError, match="no sky position over 100%"):
        model_from_wcs(wcs, SHAPE)


# --- dialects -------------------------------------------------------------------------------


def linear(**more):
    header = model_to_header(planted(1), "tan", shape=SHAPE)
    header.update(more)
    return header


def sky(header, x=100.0, y=200.0):
    wcs, notes = read_wcs(header, shape=SHAPE)
    assert wcs is not None, notes
    return sky_of_pixels(wcs, x, y)


def test_old_scamp_tan_with_pv_is_tpv():
    new = model_to_header(planted(4), "tpv", shape=SHAPE)
    old = new.copy()
    old["CTYPE1"], old["CTYPE2"] = "RA---TAN", "DEC--TAN"
    wcs, notes = read_wcs(old, shape=SHAPE)
    assert notes == ("TAN with PV terms is read as TPV (old SCAMP)",)
    assert close(sky_of_pixels(wcs, 10.0, 20.0), sky(new, 10.0, 20.0))


def test_radial_tpv_terms_are_read():
    header = model_to_header(planted(3), "tpv", shape=SHAPE)
    without = sky(header)
    header["PV1_3"] = header["PV2_3"] = 1e-3
    assert apart_mas(*sky(header), *without) > 100.0


@pytest.mark.parametrize("says", ["TAN-SIP", "TPV", "TAN"])
def test_ctype_decides_between_sip_and_pv(says):
    sip = model_to_header(planted(3, seed=1), "sip", shape=SHAPE)
    tpv = model_to_header(planted(3, seed=2), "tpv", shape=SHAPE)
    both = tpv.copy()
    both.update({k: v for k, v in sip.items() if k[:2] in ("A_", "B_", "AP", "BP")})
    for key in ("CRPIX1", "CRPIX2", "CD1_1", "CD1_2", "CD2_1", "CD2_2"):
        both[key] = sip[key]
    both["CTYPE1"], both["CTYPE2"] = f"RA---{says}", f"DEC--{says}"
    wcs, notes = read_wcs(both, shape=SHAPE)
    assert any("has SIP and PV" in n and "differ by up to" in n for n in notes)
    expected = both.copy()
    for key in list(both):
        if key.startswith("PV") if says == "TAN-SIP" else key[:2] in ("A_", "B_", "AP", "BP"):
            del expected[key]
    if says == "TAN":
        expected["CTYPE1"], expected["CTYPE2"] = "RA---TPV", "DEC--TPV"
    truth = WCS(expected).all_pix2world(50.0, 60.0, 0)
    assert close(sky_of_pixels(wcs, 50.0, 60.0), truth)


def test_matrix_dialects_agree():
    cd = linear()
    c = {k: cd[k] for k in ("CD1_1", "CD1_2", "CD2_1", "CD2_2")}
    base = cd.copy()
    for key in c:
        del base[key]
    pc = base.copy()
    pc["CDELT1"] = pc["CDELT2"] = 2.0
    pc.update({k.replace("CD", "PC"): v / 2 for k, v in c.items()})
    old = base.copy()
    old["CDELT1"] = old["CDELT2"] = 2.0
    old.update({f"PC00{k[2]}00{k[4]}": v / 2 for k, v in c.items()})
    mixed = cd.copy()
    mixed["CDELT1"], mixed["CDELT2"], mixed["CROTA2"], mixed["PC1_1"] = -9.0, 9.0, 45.0, 1.0
    for header in (pc, old, mixed):
        assert close(sky(header), sky(cd))
    scale, angle = np.hypot(c["CD1_1"], c["CD2_1"]), np.degrees(np.arctan2(-c["CD1_2"], c["CD2_2"]))
    crota = base.copy()
    crota["CDELT1"], crota["CDELT2"], crota["CROTA2"] = -scale, scale, angle
    assert apart_mas(*sky(crota), *sky(cd)) < 1e-3


def test_coordinates_of_another_equinox_become_icrs():
    header = linear(RADESYS="FK4", EQUINOX=1950.0)
    wcs, notes = read_wcs(header, shape=SHAPE)
    assert any("FK4 of B1950" in n for n in notes)
    from astropy.coordinates import SkyCoord

    raw = wcs.all_pix2world(100.0, 200.0, 0)
    truth = SkyCoord(*raw, unit="deg", frame="fk4", equinox="B1950").icrs
    assert apart_mas(*sky_of_pixels(wcs, 100.0, 200.0), truth.ra.deg, truth.dec.deg) < 1e-3
    assert apart_mas(*sky_of_pixels(wcs, 100.0, 200.0), *raw) > 1e6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"CD1_1": 0.0, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 0.0}, "no CD, PC or CDELT"),
        ({"CD1_1": 1e-4, "CD1_2": 1e-4, "CD2_1": 1e-4, "CD2_2": 1e-4}, "ingular"),
        ({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, "no celestial WCS"),
        ({"CUNIT1": "m/s"}, "cannot be read"),
        ({"CTYPE1": "RA---XYZ", "CTYPE2": "DEC--XYZ"}, "cannot be read"),
        ({"CTYPE2": "DEC--SIN"}, "cannot be read"),
        ({"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 21469},
         "B_ORDER is 21469"),
        ({"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": "two", "B_ORDER": 2},
         "A_ORDER is two"),
        ({"WCSAXES": 10**6}, "WCSAXES is 1000000"),
    ],
)
def test_what_cannot_be_used_is_said(change, words):
    header = linear()
    header.update(change)
    wcs, notes = read_wcs(header, shape=SHAPE)
    assert wcs is None
    assert any(words in n for n in notes), notes


def test_a_distortion_of_the_detector_that_is_no_table_is_said():
    header = linear(D2IMDIS1="Polynomial")
    units = fits.HDUList([fits.PrimaryHDU()])
    wcs, notes = read_wcs(header, shape=SHAPE, hdulist=units)
    assert wcs is None
    assert any("cannot be read" in n for n in notes), notes


def test_a_header_without_a_wcs_says_nothing():
    assert read_wcs(fits.Header({"OBJECT": "M81"})) == (None, ())


def test_sip_without_its_order_and_order_without_its_suffix():
    header = model_to_header(planted(2), "sip", shape=SHAPE)
    bare = header.copy()
    bare["CTYPE1"], bare["CTYPE2"] = "RA---TAN", "DEC--TAN"
    wcs, notes = read_wcs(bare, shape=SHAPE)
    assert "although CTYPE does not say -SIP" in " ".join(notes)
    assert close(sky_of_pixels(wcs, 5.0, 5.0), sky(header, 5.0, 5.0))
    del header["A_ORDER"]
    _, notes = read_wcs(header, shape=SHAPE)
    assert "without A_ORDER" in " ".join(notes)


def test_head_files(tmp_path):
    cards = model_to_header(planted(3), "tpv", shape=SHAPE).tostring(sep="\n", padding=False)
    text = f"HISTORY by Emmanuel B\xe9rtin\n{cards}\nCOMMENT second\n{cards}\n"
    path = tmp_path / "two.head"
    path.write_bytes(text.encode("latin-1"))
    headers = read_head(path)
    assert len(headers) == 2
    assert close(sky(headers[1]), sky(headers[0]))
    path.write_bytes(text.encode("utf-8"))
    assert len(read_head(path)) == 2
    path.write_text("")
    with pytest.raises(ImageError, match="no header cards"):
        read_head(path)
    with pytest.raises(ImageError, match="no such file"):
        read_head(tmp_path / "none.head")


# --- real headers ---------------------------------------------------------------------------

# What astropy cannot read, and the words that say so.
UNREADABLE = {
    "nonstandard_units.hdr": "Mismatched units",
    "orion-freq-1.hdr": "no celestial WCS",
    "orion-freq-4.hdr": "no celestial WCS",
    "orion-velo-1.hdr": "no celestial WCS",
    "orion-velo-4.hdr": "no celestial WCS",
    "orion-wave-1.hdr": "no celestial WCS",
    "orion-wave-4.hdr": "no celestial WCS",
    "dist.fits": "no celestial WCS",
}
NO_WCS = {"chandra-pixlist-wcs.hdr"}


def headers_of(path):
    if path.suffix != ".fits":
        return None, read_head(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hdulist = fits.open(path)
        return hdulist, [hdu.header for hdu in hdulist]


def test_the_zoo_of_real_headers(data_dir):
    """Every one is read as astropy reads it, or refused with words; none raises or warns."""
    paths = sorted((data_dir / "p12-wcs-zoo").iterdir())
    assert len(paths) > 60
    n_read = 0
    for path in paths:
        hdulist, headers = headers_of(path)
        try:
            results = [(h, *read_wcs(h, hdulist=hdulist)) for h in headers]
            n_read += _as_astropy_reads(path, hdulist, results)
        finally:
            if hdulist is not None:
                hdulist.close()
    assert n_read >= 50


def _as_astropy_reads(path, hdulist, results):
    found = [(h, w, n) for h, w, n in results if w is not None]
    notes = " ".join(" ".join(n) for _, _, n in results)
    if not found and "CRVAL" in notes:
        # It says what pixels there are but not where they are; astropy takes zero for that.
        assert not all(k in h for h, _, _ in results for k in ("CRVAL1", "CRVAL2"))
        return 0
    if path.name in UNREADABLE:
        assert UNREADABLE[path.name] in notes, path.name
        assert not found
        return 0
    if not found:
        assert path.name in NO_WCS or "header_with_time" in path.name, path.name
        return 0
    header, wcs, _ = found[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = WCS(header, hdulist)
        theirs = theirs if theirs.naxis == 2 else theirs.celestial
        at = np.array([[10.0, 20.0], [100.0, 100.0], [300.0, 50.0]])
        expected = theirs.all_pix2world(at, 0)
    ours = wcs.all_pix2world(at, 0)
    assert np.allclose(ours, expected, atol=1e-9, equal_nan=True), path.name
    return 1


def test_lookup_tables_are_used(data_dir):
    path = data_dir / "p04-hst-headerlets" / "sample_ipppssoot_flc.fits"
    with fits.open(path) as hdulist:
        header = hdulist[1].header
        assert "CPDIS1" in header
        wcs, notes = read_wcs(header, hdulist=hdulist)
        assert wcs.cpdis1 is not None
        assert notes == ()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = WCS(header, hdulist)
        at = np.array([[3.0, 4.0], [9.0, 0.0]])
        assert np.array_equal(wcs.all_pix2world(at, 0), theirs.all_pix2world(at, 0))
        alone, notes = read_wcs(header)
        assert alone.cpdis1 is None
        assert any("lookup tables" in n for n in notes)


def test_ptf_sip_and_pv_are_the_same_and_become_a_model(data_dir):
    header = fits.getheader(data_dir / "p01-ptf-m81-gaiaedr3" / "PTF_Cropped.fits")
    wcs, notes = read_wcs(header)
    assert any("CTYPE says SIP" in n and "agree within 0.001 arcsec" in n for n in notes)
    model, error = model_from_wcs(wcs, (1001, 1001))
    assert model.degree == 4
    assert error < 1e-3
    for form in ("tpv", "sip"):
        assert (
            header_error_mas(model_to_header(model, form, shape=(1001, 1001)), model, (1001, 1001))
            < 1e-3
        )


def test_a_scamp_solution_becomes_a_model(data_dir):
    header = read_head(data_dir / "p12-wcs-zoo" / "example_externcat_scamp_tpv.head")[0]
    wcs, _ = read_wcs(header)
    model, error = model_from_wcs(wcs, (4096, 4096))
    assert model.degree == 3
    assert error < 1e-3


def test_decam_tpv_of_22_terms(data_dir):
    path = next((data_dir / "p06-decam-3band-9epoch-gaia").glob("c4d_150411*ooi*ls9*"))
    header = fits.getheader(path, 1)
    wcs, notes = read_wcs(header)
    assert notes == ()
    model, error = model_from_wcs(wcs, (250, 250))
    assert error < 0.01
    written = model_to_header(model, "tpv", shape=(250, 250))
    assert header_error_mas(written, model, (250, 250)) < 1e-3
