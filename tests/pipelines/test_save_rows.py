"""What a written solution does to everything else that a file holds, and how others read it."""

import fcntl
import os
import shutil
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from cynosure.data.fits.reader import read
from cynosure.geometry.skymodel import SkyModel
from cynosure.geometry.wcs import model_from_wcs, model_to_header
from cynosure.ground.errors import ImageError, Temporary, Unverified
from cynosure.ground.sky import separation_deg
from cynosure.pipelines.save import Request, save_header, save_image
from cynosure.solutions.files import archive, fitted
from cynosure.solutions.files.contents import open_holdings
from cynosure.solutions.files.headerlet import ABOUT, is_solution_keyword

SHAPE = (40, 60)
GRID = [v.ravel() for v in np.meshgrid(np.linspace(0, 59, 9), np.linspace(0, 39, 9))]
MICRO = 1e-3  # mas: a millionth of an arcsecond
FLC = "p04-hst-headerlets/sample_ipppssoot_flc.fits"


def model(seed=0, ra=150.0):
    rng = np.random.default_rng(seed)
    coeff = np.zeros((2, 10))
    coeff[0, 1], coeff[1, 2] = -0.01, 0.01
    coeff[:, 3:] = rng.normal(0, 1e-5, (2, 7))
    return SkyModel(ra, 20.0, 29.5, 19.5, 30.0, coeff)


def cards(name="FIT_IMG_GAIADR3", seed=0, form="tpv", **more):
    header = model_to_header(model(seed), form, shape=SHAPE)
    header["WCSNAME"] = name
    header["NMATCHES"], header["RMS_RA"], header["ASTCAT"] = 77, 1.5, "GAIADR3"
    header.update(more)
    return header


def apart_mas(a, b):
    return float(np.max(separation_deg(*a, *b))) * 3.6e6


def truth(seed=0):
    return model(seed).pixel_to_sky(*GRID)


def sky_in(path, name, grid=GRID, target=None):
    """Return the sky of a solution of a file as our list of solutions has it."""
    solution = archive.solution_of(path, name)
    wcs = solution.wcs(target or solution.chips[0].target)
    return wcs.all_pix2world(*grid, 0)


def astropy_sky(path, index=0, key=" ", grid=GRID, **options):
    with warnings.catch_warnings(), fits.open(path) as hdulist:
        warnings.simplefilter("ignore")
        wcs = WCS(hdulist[index].header, hdulist, key=key, **options)
        more = [np.zeros(len(grid[0]))] * (wcs.naxis - 2)
        return wcs.all_pix2world(*grid, *more, 0)[:2]


def image(path, header=None, shape=SHAPE, **more):
    header = fits.Header(header) if header is not None else fits.Header()
    header.update(more)
    fits.PrimaryHDU(np.arange(np.prod(shape), dtype="i2").reshape(shape), header).writeto(path)
    return path


# --- alternates that share the primary's distortion -----------------------------------------


def with_alternates(path):
    """Write a SIP image with A sharing its terms, and B a TPV that is whole."""
    header = model_to_header(model(5), "sip", shape=SHAPE)
    header["WCSNAME"] = "IDC"
    for key in [k for k in header if k.startswith(("C", "RADE", "EQUI", "WCSAX")) and len(k) < 8]:
        header[key + "A"] = header[key]
    header["CRVAL1A"] += 1e-4
    header["WCSNAMEA"], header["NMATCHEA"] = "PRIORI", 12
    for card in model_to_header(model(6), "tpv", shape=SHAPE).cards:
        header[card.keyword + "B"] = card.value
    header["WCSNAMEB"] = "OTHER"
    return image(path, header)


@pytest.mark.parametrize("form", ["tpv", "sip", "tan"])
def test_alternates_mean_what_they_meant(tmp_path, form):
    path = with_alternates(tmp_path / "a.fits")
    before = {x: sky_in(path, x) for x in ("active", "A", "B")}
    assert apart_mas(before["A"], before["active"]) > 300, "shifted"
    out = save_image(path, tmp_path / "b.fits", Request({0: cards(form=form)}, {}))
    for letter in "AB":
        assert apart_mas(sky_in(out, letter), before[letter]) < MICRO
    assert apart_mas(sky_in(out, "IDC"), before["active"]) < MICRO, "the old one, under C"
    assert archive.solution_of(out, "A").n_matched == 12
    if form == "tpv":
        assert apart_mas(astropy_sky(out, key="B"), before["B"]) < MICRO
    with open_holdings(out) as held:
        assert all(not held.shares(x) for x in held.letters)
        faults = [f for e in held.entries() for f in e.headerlet.faults()]
    assert not [f for f in faults if "HDRNAME" not in f]
    # Solved again under another name, and the first fit is brought back.
    twice = save_image(out, tmp_path / "c.fits", Request({0: cards("SECOND", seed=2)}, {}))
    for name, letter in (("IDC", "active"), ("PRIORI", "A"), ("OTHER", "B")):
        assert apart_mas(sky_in(twice, name), before[letter]) < MICRO
    assert apart_mas(sky_in(twice, "FIT_IMG_GAIADR3"), sky_in(out, "active")) < MICRO
    archive.activate(twice, "PRIORI")
    assert apart_mas(astropy_sky(twice), before["A"]) < MICRO, "whole again as the active one"


def test_alternates_that_share_their_sip_stay_where_the_distortion_stays(tmp_path):
    path = with_alternates(tmp_path / "a.fits")
    before = sky_in(path, "A")
    header = model_to_header(model(5), "sip", shape=SHAPE)
    linear = fits.Header([c for c in header.cards if c.keyword[:2] not in ("A_", "B_", "AP", "BP")])
    linear["CRVAL1"] += 2e-4
    linear["WCSNAME"] = "SHIFTED"
    request = Request({0: linear}, {}, distortion_stays=True)
    out = save_image(path, tmp_path / "b.fits", request)
    assert apart_mas(sky_in(out, "A"), before) < MICRO
    assert fits.getval(out, "CTYPE1A") == "RA---TAN-SIP", "left as it was"
    old = fits.getheader(path)
    new = fits.getheader(out)
    assert all(new[k] == old[k] for k in old if k[:2] in ("A_", "B_"))
    ours, theirs = sky_in(out, "active"), astropy_sky(out)
    assert apart_mas(ours, theirs) < MICRO
    assert 500 < apart_mas(ours, sky_in(path, "active")) < 800
    alone = save_header(path, tmp_path / "a.wcs.fits", request, [SHAPE])
    assert apart_mas(astropy_sky(alone), ours) < MICRO


@pytest.fixture
def flc(data_dir, tmp_path):
    return shutil.copy(data_dir / FLC, tmp_path / "ib4606c5q_flc.fits")


def flc_cards(path, name="IDC_2731450pi-FIT_IMG_GAIADR3"):
    """Return TPV cards of both chips, fitted to what the file has."""
    out = {}
    for frame in read(path).frames:
        fit, _ = model_from_wcs(frame.wcs, (2051, 4096))
        header = model_to_header(fit, "tpv", shape=(2051, 4096))
        header["WCSNAME"], header["NMATCHES"] = name, 50
        out[frame.hdu] = header
    return out


def test_a_real_exposure_of_hubble_keeps_all_its_solutions(flc, tmp_path):
    grid = [v.ravel() for v in np.meshgrid(np.linspace(0, 4095, 9), np.linspace(0, 2050, 9))]
    chips = [("SCI", 1), ("SCI", 2)]
    with open_holdings(flc) as held:
        keys = [e.key for e in held.entries()]
        active = held.active().wcsname
    before = {(k, t): sky_in(flc, k, grid, t) for k in keys for t in chips}
    out = save_image(flc, tmp_path / "out_flc.fits", Request(flc_cards(flc), {}))
    for (key, target), sky in before.items():
        name = "C" if key == "active" else key
        assert apart_mas(sky_in(out, name, grid, target), sky) < MICRO, (key, target)
    for index in (1, 4):
        with fits.open(out) as units:
            header = units[index].header
            assert header["WCSNAMEC"] == active
            assert header["WCSTYPEC"] != header["WCSTYPE"]
            assert header["HDRNAMEC"] == fits.getval(flc, "HDRNAME", index)
            for letter in "ABCO":  # what is left of a shared distortion is the linear part
                WCS(header, units, key=letter)
    # Its own library reads it too.
    wcsutil = pytest.importorskip("stwcs.wcsutil")
    with fits.open(out) as units:
        theirs = wcsutil.HSTWCS(units, ext=("SCI", 2)).all_pix2world(*grid, 0)
        assert set("ABCO") <= set(wcsutil.altwcs.wcskeys(units, ext=("SCI", 2)))
    assert apart_mas(theirs, sky_in(out, "active", grid, ("SCI", 2))) < MICRO
    archive.activate(out, "C")
    for target in chips:
        assert apart_mas(sky_in(out, "active", grid, target), before["active", target]) < MICRO


def test_chips_that_have_other_letters_get_one_letter(tmp_path):
    hdus = [fits.PrimaryHDU()]
    for seed in (1, 2):
        header = model_to_header(model(seed), "tpv", shape=SHAPE)
        header["CTYPE1A" if seed == 1 else "CTYPE1B"] = "RA---TAN"
        hdus.append(fits.ImageHDU(np.zeros(SHAPE, "f4"), header, name="SCI", ver=seed))
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    request = Request({1: cards(seed=3), 2: cards(seed=4)}, {})
    out = save_image(tmp_path / "a.fits", tmp_path / "b.fits", request)
    for chip in (1, 2):
        kept = astropy_sky(out, chip, key="C")
        assert apart_mas(kept, truth(chip)) < MICRO
        assert fits.getval(out, "WCSNAMEC", chip) == "ORIGINAL"


# --- what described the old solution --------------------------------------------------------


def test_facts_of_the_old_solution_go_with_it(tmp_path):
    old = dict.fromkeys((k for k in ABOUT if not k.startswith("ORIENT")), 1)
    old |= {"HDRNAME": "old-hlet.fits", "WCSTYPE": "old type", "RMS_DEC": 9.0, "CATALOG": "OLDCAT"}
    header = model_to_header(model(5), "tpv", shape=SHAPE)
    header["WCSNAME"] = "OLD"
    for key, value in old.items():
        header[key] = value
    header["CRDER1"], header["CRDER2"] = 1e-6, 1e-6
    header["ORIENTAT"] = 180.0
    path = image(tmp_path / "a.fits", header, S_REGION="POLYGON ICRS 1 2 3 4 5 6 7 8")
    new = cards()
    out = save_image(path, tmp_path / "b.fits", Request({0: new}, {}))
    found = fits.getheader(out)
    about = {k for k in found if k in ABOUT} - {"ORIENTAT", "WCSTYPE"}
    assert about == {"NMATCHES", "RMS_RA", "ASTCAT"}, "those of the new one and no others"
    assert "a posteriori" in found["WCSTYPE"]
    assert abs(found["ORIENTAT"]) < 1
    assert "CRDER1" not in found
    assert found["S_REGION"].startswith("POLYGON ICRS 150.")
    kept = archive.solution_of(out, "OLD")
    assert kept.hdrname == "old-hlet.fits"
    assert kept.rms_mas[1] == 9.0
    assert kept.catalog == "OLDCAT"
    assert found["HDRNAMEA"] == "old-hlet.fits"
    assert len({k for k in found if k.startswith("REL")}) == 5, "RELRMS_R and RELRMS_D differ"
    # And they come back with it.
    archive.activate(out, "OLD")
    back = fits.getheader(out)
    assert {k: back[k] for k in old} == old
    assert "FIT_IMG_GAIADR3" in back["WCSNAMEB"]


def test_the_cards_of_a_solution_are_known_as_such():
    assert all(is_solution_keyword(k) for k in cards())
    with pytest.raises(ValueError, match="NOVELTY"):
        save_header("a.fits", "b.fits", Request({0: cards(NOVELTY=1)}, {}), [SHAPE])


# --- in place -------------------------------------------------------------------------------


def edited_by_another(path):
    with fits.open(path, mode="update") as hdulist:
        hdulist[0].header["OBJECT"] = "theirs"
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def test_another_program_changed_the_file_after_it_was_read(tmp_path):
    path = image(tmp_path / "a.fits", OBJECT="ours")
    exposure = read(path)
    edited_by_another(path)
    assert exposure.sha256 == "", "what was read is not vouched for"
    for stale in ("", "0" * 64):
        with pytest.raises(Temporary, match="changed it after it was read") as caught:
            save_image(path, path, Request({0: cards()}, {}, sha256=stale))
        assert caught.value.exit_code == 75
        assert fits.getval(path, "OBJECT") == "theirs"
    save_image(path, path, Request({0: cards()}, {}, sha256=read(path).sha256))
    assert fits.getval(path, "OBJECT") == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["a.fits"]


@pytest.mark.parametrize("replaced", [False, True])
def test_another_program_changes_the_file_while_it_is_written(tmp_path, monkeypatch, replaced):
    path = image(tmp_path / "a.fits", OBJECT="ours")

    def meanwhile(held, *rest, **more):
        if replaced:
            other = image(tmp_path / "other.fits", OBJECT="theirs")
            other.replace(path)
        else:
            edited_by_another(path)
        return apply(held, *rest, **more)

    apply = fitted.apply_fit
    monkeypatch.setattr("cynosure.pipelines.save.apply_fit", meanwhile)
    for out in (path, tmp_path / "b.fits")[: 1 if replaced else 2]:
        with pytest.raises(Temporary, match="another program has just changed it"):
            save_image(path, out, Request({0: cards()}, {}), overwrite=True)
        assert fits.getval(path, "OBJECT") == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["a.fits"]


def test_a_file_that_another_writer_holds(tmp_path):
    path = image(tmp_path / "a.fits")
    before = path.read_bytes()
    with path.open("rb") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with pytest.raises(Temporary, match="another program is writing"):
            save_image(path, path, Request({0: cards()}, {}))
        save_image(path, tmp_path / "b.fits", Request({0: cards()}, {}))
    assert path.read_bytes() == before


# --- sums -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 100])
def test_the_sums_of_all_units_are_true(tmp_path, rows):
    text = fits.TableHDU.from_columns([fits.Column("n", "A7", array=["x"] * rows)])
    binary = fits.BinTableHDU.from_columns([fits.Column("n", "7A", array=["x"] * rows)])
    hdus = fits.HDUList([fits.PrimaryHDU(np.ones((7, 5), "u1")), text, binary])
    hdus.writeto(tmp_path / "a.fits", checksum=True)
    out = save_image(tmp_path / "a.fits", tmp_path / "b.fits", Request({0: cards()}, {}))
    with fits.open(out, checksum=True) as found:  # warnings are errors
        assert all(h.verify_checksum() == 1 == h.verify_datasum() for h in found)
        assert len(found[1].data) == rows
    raw = (tmp_path / "a.fits").read_bytes()
    assert out.read_bytes().endswith(raw[-5760:]), "padding and all"


# --- one definition of science --------------------------------------------------------------


def extensions(path, *names, primary=None):
    header = model_to_header(model(), "tpv", shape=SHAPE)
    first = fits.PrimaryHDU() if primary is None else fits.PrimaryHDU(primary, header)
    rest = [fits.ImageHDU(np.ones(SHAPE, "f4"), header, name=n) for n in names]
    fits.HDUList([first, *rest]).writeto(path)
    return path


@pytest.mark.parametrize(
    ("names", "primary", "science"),
    [
        (("IMAGE", "IVAR", "BPM", "UNCERT", "RMS", "PSF"), False, [1]),
        (("SCI", "ERR", "DQ", "WHT"), False, [1]),
        (("CCD1", "CCD2", "CCD2_DQ", "BKG"), False, [1, 2]),
        (("MASK", "VAR", "EXP"), True, [0]),
        (("N1", "N2"), False, [1, 2]),
        (("", "CAT"), False, [1]),
        (("DATA", "WEIGHT", "OTHER"), False, [1]),
    ],
)
def test_read_and_list_find_the_same_images(tmp_path, names, primary, science):
    pixels = np.ones(SHAPE, "f4") if primary else None
    path = extensions(tmp_path / "a.fits", *names, primary=pixels)
    assert [f.hdu for f in read(path).frames] == science
    with open_holdings(path) as held:
        assert [held.parts.index(c.part) for c in held.chips] == science


def test_what_an_instrument_calls_science_is_science_everywhere(tmp_path):
    header = model_to_header(model(), "tpv", shape=SHAPE)
    primary = fits.PrimaryHDU()
    primary.header["TELESCOP"], primary.header["INSTRUME"] = "x", "x"
    names = ("FRAME", "GUIDER")
    hdus = [fits.ImageHDU(np.ones(SHAPE, "f4"), header, name=n) for n in names]
    fits.HDUList([primary, *hdus]).writeto(tmp_path / "a.fits")
    assert len(read(tmp_path / "a.fits").frames) == 2, "no instrument says which"


def test_headers_alone_are_listed(tmp_path):
    path = tmp_path / "a.wcs.fits"
    save_header("a.fits", path, Request({0: cards()}, {}), [SHAPE])
    with open_holdings(path) as held:
        assert [c.shape for c in held.chips] == [SHAPE]
    several = tmp_path / "b.wcs.fits"
    save_header("a.fits", several, Request({1: cards(), 2: cards(seed=1)}, {}), [SHAPE] * 2)
    with open_holdings(several) as held:
        assert [c.target for c in held.chips] == [("WCS", 1), ("WCS", 2)]


def test_real_files_have_the_same_images_for_both(data_dir):
    looked = 0
    for path in sorted(data_dir.glob("p*/*.fits*"))[::3]:
        if path.stat().st_size > 30 << 20:
            continue
        try:
            with open_holdings(path) as held:
                listed = {held.parts.index(c.part) for c in held.chips if c.shape}
                alone = not any(c.part.unit.is_image for c in held.chips)
            frames = {f.hdu for f in read(path, extension=None).frames}
        except ImageError:
            continue
        looked += 1
        assert alone or listed <= frames, path
    assert looked > 5


# --- cubes ----------------------------------------------------------------------------------


def cube(path, planes, **more):
    header = model_to_header(model(5), "tan", shape=SHAPE)
    header["WCSNAME"] = "OLD"
    return image(path, header, (planes, *SHAPE), **more)


@pytest.mark.parametrize("plane", [0, 2])
def test_the_colours_of_a_picture_share_one_wcs(tmp_path, plane):
    path = cube(tmp_path / "a.fits", 3)
    out = save_image(path, tmp_path / "b.fits", Request({(0, plane): cards()}, {}))
    with fits.open(out) as hdulist:
        assert len(hdulist) == 1, "no extension is needed"
        header = hdulist[0].header
        assert np.array_equal(hdulist[0].data, fits.getdata(path))
    assert (header["AST_PLAN"], header["WCSNAME"], header["WCSNAMEA"]) == (
        plane, "FIT_IMG_GAIADR3", "OLD"
    )
    assert apart_mas(astropy_sky(out), truth()) < MICRO, "in all three axes"
    assert apart_mas(astropy_sky(out, naxis=2), truth()) < MICRO
    assert apart_mas(sky_in(out, "active"), truth()) < MICRO
    for k in range(3):
        frame = read(out, extension=f"0,{k}").frames[0]
        assert apart_mas(frame.wcs.all_pix2world(*GRID, 0), truth()) < MICRO
    again = save_image(out, tmp_path / "c.fits", Request({(0, plane): cards(seed=3)}, {}))
    assert apart_mas(astropy_sky(again), truth(3)) < MICRO
    with fits.open(again) as hdulist:
        assert len(hdulist) == 1


@pytest.mark.parametrize("planes", [1, 3])
def test_a_linear_wcs_of_a_cube_is_reduced_by_astropy(tmp_path, planes):
    path = cube(tmp_path / "a.fits", planes)
    place = 0 if planes == 1 else (0, 1)
    out = save_image(path, tmp_path / "b.fits", Request({place: cards(form="tan")}, {}))
    wcs = WCS(fits.getheader(out))
    assert wcs.naxis == 3
    expected = WCS(cards(form="tan")).all_pix2world(*GRID, 0)
    assert apart_mas(wcs.celestial.all_pix2world(*GRID, 0), expected) < MICRO


@pytest.mark.parametrize("planes", [1, 3])
def test_the_third_axis_of_a_cube_stays(tmp_path, planes):
    third = {"CTYPE3": "FREQ", "CRVAL3": 1.4e9, "CDELT3": 1e6, "CRPIX3": 1.0, "CUNIT3": "Hz"}
    path = cube(tmp_path / "a.fits", planes, WCSAXES=3, **third)
    place = 0 if planes == 1 else (0, 1)
    out = save_image(path, tmp_path / "b.fits", Request({place: cards()}, {}))
    wcs = WCS(fits.getheader(out))
    sky = wcs.all_pix2world(*GRID, np.full(len(GRID[0]), 2.0), 0)
    assert apart_mas(sky[:2], truth()) < MICRO
    assert np.allclose(sky[2], 1.402e9)
    assert apart_mas(sky_in(out, "active"), truth()) < MICRO
    assert fits.getval(out, "CTYPE3A") == "FREQ"
    assert apart_mas(astropy_sky(out, key="A"), astropy_sky(path)) < MICRO


def test_planes_that_are_images_of_their_own(tmp_path):
    """One plane solved after another: the second is another image, and says so in an extension."""
    path = cube(tmp_path / "a.fits", 3)
    first = save_image(path, tmp_path / "1.fits", Request({(0, 1): cards(seed=1)}, {}))
    second = save_image(first, tmp_path / "2.fits", Request({(0, 2): cards(seed=2)}, {}))
    for plane, seed in ((0, 1), (1, 1), (2, 2)):
        frame = read(second, extension=f"0,{plane}").frames[0]
        assert apart_mas(frame.wcs.all_pix2world(*GRID, 0), truth(seed)) < MICRO
    kept = cards(seed=9)
    del kept["WCSNAME"], kept["NMATCHES"], kept["RMS_RA"], kept["ASTCAT"]
    request = Request({(0, 0): cards("BESIDE", seed=3)}, {(0, 0): kept})
    third = save_image(second, tmp_path / "3.fits", request)
    frame = read(third, extension="0,0").frames[0]
    assert apart_mas(frame.wcs.all_pix2world(*GRID, 0), truth(9)) < MICRO, "a better one stays"


def test_an_extension_that_a_plane_has_is_kept_up_to_date(tmp_path):
    path = cube(tmp_path / "a.fits", 3)
    both = Request({(0, 0): cards(seed=1), (0, 2): cards(seed=2)}, {})
    first = save_image(path, tmp_path / "1.fits", both)
    with fits.open(first, mode="update") as hdulist:
        del hdulist[2]
    out = save_image(first, tmp_path / "2.fits", Request({(0, 0): cards(seed=3)}, {}))
    assert len(fits.info(out, output=False)) == 2
    for index in (0, 1):
        assert apart_mas(astropy_sky(out, index, naxis=2), truth(3)) < MICRO
    assert apart_mas(read(out, extension="0,0").frames[0].wcs.all_pix2world(*GRID, 0), truth(3)) < 1


def test_a_chip_without_a_wcs_gets_the_new_one_beside_chips_that_keep_theirs(tmp_path):
    old = model_to_header(model(5), "tpv", shape=SHAPE)
    old["WCSNAME"] = "OLD"
    hdus = [fits.ImageHDU(np.ones(SHAPE, "f4"), h, name="N", ver=k)
            for k, h in ((1, old), (2, None))]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "a.fits")
    request = Request({1: cards(seed=1), 2: cards(seed=2)}, {1: old})
    out = save_image(tmp_path / "a.fits", tmp_path / "b.fits", request)
    assert fits.getval(out, "WCSNAME", 1) == "OLD"
    assert apart_mas(astropy_sky(out, 1, key="A"), truth(1)) < MICRO
    assert apart_mas(astropy_sky(out, 2), truth(2)) < MICRO
    assert "WCSNAMEA" not in fits.getheader(out, 2)


def test_the_groups_of_a_real_cube_keep_their_table(data_dir, tmp_path):
    path = next(iter(sorted((data_dir / "p14-wfpc2-omegacen").glob("*c0*.fits*"))), None)
    if path is None:
        pytest.skip("no cube of groups")
    before = [f.wcs for f in read(path).frames]
    grid = [v.ravel() for v in np.meshgrid(np.linspace(0, 799, 5), np.linspace(0, 799, 5))]
    out = save_image(path, tmp_path / "out.fits", Request({(0, 2): cards()}, {}))
    after = [f.wcs for f in read(out).frames]
    for k in range(4):
        old = model().pixel_to_sky(*grid) if k == 2 else before[k].all_pix2world(*grid, 0)
        assert apart_mas(after[k].all_pix2world(*grid, 0), old) < MICRO


# --- read again before it is released -------------------------------------------------------


@pytest.mark.parametrize(
    "fault", ["CRVAL1", "CD1_2", "PV1_1", "CTYPE1", "alternate", "unreadable"]
)
def test_what_does_not_read_as_it_was_fitted_is_not_released(tmp_path, monkeypatch, fault):
    header = model_to_header(model(5), "tpv", shape=SHAPE)
    header["WCSNAMEB"], header["CTYPE1B"], header["CTYPE2B"] = "B", "RA---TAN", "DEC--TAN"
    header["CRVAL1B"], header["CRVAL2B"], header["CD1_1B"], header["CD2_2B"] = 1, 2, -1e-3, 1e-3
    path = image(tmp_path / "a.fits", header)
    before = path.read_bytes()
    apply = fitted.apply_fit

    def faulty(held, *rest, **more):
        letter = apply(held, *rest, **more)
        part = held.chips[0].part
        if fault == "alternate":
            part.set("CRVAL1B", 1.0000001)
        elif fault == "unreadable":
            part.remove(["CTYPE2"])
        elif fault == "CTYPE1":
            part.set("CTYPE1", "RA---SIN")
            part.set("CTYPE2", "DEC--SIN")
        else:
            part.set(fault, part.get(fault, 0.0) + (1e-6 if fault == "PV1_1" else 1e-8))
        return letter

    monkeypatch.setattr("cynosure.pipelines.save.apply_fit", faulty)
    for out in (tmp_path / "b.fits", path):
        with pytest.raises(Unverified, match="written") as caught:
            save_image(path, out, Request({0: cards()}, {}))
        assert caught.value.exit_code == 13
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.fits"]


def test_a_better_wcs_stays_and_the_new_one_is_beside_it(tmp_path):
    old = model_to_header(model(5), "sip", shape=SHAPE)
    old["WCSNAME"], old["HDRNAME"] = "OLD", "old-hlet.fits"
    path = image(tmp_path / "a.fits", old)
    out = tmp_path / "b.fits"
    for _ in range(2):  # a repeat replaces the alternate
        save_image(path, out, Request({0: cards()}, {0: old}), overwrite=True)
        header = fits.getheader(out)
        assert (header["WCSNAME"], header["HDRNAME"]) == ("OLD", "old-hlet.fits")
        assert header["AST_KEEP"] is True
        assert [k for k in header if k.startswith("WCSNAME")] == ["WCSNAME", "WCSNAMEA"]
        assert header["NMATCHEA"] == 77
        assert apart_mas(sky_in(out, "A"), truth()) < MICRO
        assert apart_mas(astropy_sky(out), truth(5)) < MICRO
        path = shutil.copy(out, tmp_path / "a.fits")
