"""The solve door, end to end: a WCS is planted and demanded back; astropy reads what is written."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from planted import apart_mas, grid, plant, wcs_of

import cynosure
from cynosure.data.catalogs.build import build_refcat
from cynosure.data.fits.alternates import alternate_letters, records_of, restore_alternate
from cynosure.data.tables import MATCHES, read_parquet
from cynosure.ground.errors import SettingError
from cynosure.pipelines import solve as solve_door
from cynosure.pipelines.run import default_settings
from cynosure.pipelines.solve import run_solve, save, solve, write

# What scripts rely on.
FIELDS = """schema image sha256 software created settings status reason tried hints quality wcsname
    catalog epoch_yr n_sources n_reference n_matched n_used n_reserved rms_ra_mas rms_dec_mas
    rms_reserved_ra_mas rms_reserved_dec_mas sigma0_mas a chi2 dof chi2_dof log_odds
    before_offset_arcsec before_rms_mas center_ra_deg center_dec_deg scale_arcsec rotation_deg
    parity width_deg height_deg form order chips wcs_error_mas seconds""".split()
COLUMNS = """chip x y x_err y_err flux_e snr ra_deg dec_deg ref_id ref_ra_deg ref_dec_deg ref_mag
    ref_color dra_mas ddec_mas sigma_ra_mas sigma_dec_mas used reserved""".split()
UNITS = {"x": "px", "x_err": "px", "flux_e": "e-", "snr": "", "ra_deg": "deg", "ref_mag": "mag",
         "ref_dec_deg": "deg", "dra_mas": "mas", "sigma_dec_mas": "mas", "used": ""}


@pytest.fixture(scope="session")
def field(tmp_path_factory):
    """Give an ordinary field."""
    return plant(tmp_path_factory.mktemp("field"))


@pytest.fixture(scope="session")
def solved(field):
    """Give its outcome."""
    return solve(field.image, field.refcat)


def header_of(outcome):
    (header,) = outcome.headers.values()
    return header


def written(outcome, field, folder, **options):
    """Return the header and the files of an outcome that was written."""
    files = write(outcome, folder, source=field.image, **options)
    with fits.open(files[0]) as hdus:
        return hdus[0].header, files


# --------------------------------------------------------------------------------------- truth
POINTINGS = [  # rotation, parity, pointing error (deg), rotation error, scale error, header
    (0.0, 1, 0.0, 0.0, 0.0, "tan"),
    (33.0, 1, 0.03, 2.0, 0.003, "tan"),
    (111.0, -1, 0.1, 0.0, 0.0, "true"),
    (200.0, 1, 0.5, 5.0, -0.01, "tan"),
    (300.0, -1, 0.3, 90.0, 0.08, "tan"),
    (77.0, -1, 0.2, 180.0, -0.08, "pointing"),
    (250.0, 1, 0.0, 0.0, 0.0, "none"),
]


@pytest.fixture(scope="session")
def pointings(tmp_path_factory):
    """Give fields that the header describes well, badly or not at all, and their outcomes."""
    out = []
    for seed, (turn, parity, off, twist, scale, kind) in enumerate(POINTINGS, start=20):
        field = plant(
            tmp_path_factory.mktemp("pointing"), seed,
            sky={"margin_deg": off + 0.12, "ra_deg": 57.0 * seed % 360,
                 "dec_deg": 29.0 * seed - 670},
            camera={"rotation_deg": turn, "parity": parity},
            header={"pointing_error_deg": off, "rotation_error_deg": twist, "scale_error": scale,
                    "wcs": kind},
        )
        out.append((field, solve(field.image, field.refcat)))
    return out


@pytest.mark.parametrize("k", range(len(POINTINGS)))
def test_any_pointing_rotation_scale_and_parity(pointings, k):
    field, outcome = pointings[k]
    turn, parity, off = POINTINGS[k][:3]
    solution = outcome.solution
    assert solution.status == "solved", solution
    error = field.error_mas(header_of(outcome))
    assert np.abs(error).max() < 150
    assert solution.parity == parity
    if k:  # the first is at the pole, where north is in all directions
        assert abs((solution.rotation_deg - turn + 180) % 360 - 180) < 0.3
    assert solution.scale_arcsec == pytest.approx(1.0, rel=2e-3)
    assert solution.before_offset_arcsec == pytest.approx(3600 * off, abs=12) or k >= 5
    centre = wcs_of(field.truth()).all_pix2world(259.5, 229.5, 0)
    assert solution.center_dec_deg == pytest.approx(float(centre[1]), abs=1e-4)
    if k:
        assert solution.center_ra_deg == pytest.approx(float(centre[0]), abs=1e-4)


def test_the_error_that_is_predicted_is_the_error_that_is_made(pointings):
    centre, corner = [], []
    for field, outcome in pointings:
        true = field.error_mas(header_of(outcome), n=3)
        predicted = outcome.solution.wcs_error_mas
        centre.append(true[4] / predicted["center"])
        corner.append(true[[0, 2, 6, 8]] / predicted["corner"])
    # Seven centres of two axes each; the corners of one field are not independent of each other,
    # and the prediction is that of the worst of them.
    assert 0.5 < np.sqrt(np.mean(np.square(centre))) < 1.6
    assert 0.3 < np.sqrt(np.mean(np.square(corner))) < 1.5


def test_pulls_of_stars_that_the_fit_never_saw(pointings):
    pulls = []
    for _, outcome in pointings:
        rows = outcome.match_rows[outcome.match_rows["reserved"]]
        pulls += [rows["dra_mas"] / rows["sigma_ra_mas"], rows["ddec_mas"] / rows["sigma_dec_mas"]]
        assert outcome.solution.chi2_dof == pytest.approx(1.0, abs=0.25)
    pulls = np.concatenate(pulls)
    pulls = pulls[np.abs(pulls) < 4.3]
    assert len(pulls) > 200
    assert 0.9 < np.sqrt(np.mean(pulls**2)) < 1.1


def test_numbers_of_the_table_are_those_of_the_solution(solved):
    rows, solution = solved.match_rows, solved.solution
    used = rows[rows["used"]]
    assert len(rows) == solution.n_matched
    assert len(used) == solution.n_used
    assert not (rows["used"] & rows["reserved"]).any()
    assert solution.rms_ra_mas == pytest.approx(np.sqrt(np.mean(used["dra_mas"] ** 2)))
    assert solution.rms_dec_mas == pytest.approx(np.sqrt(np.mean(used["ddec_mas"] ** 2)))
    held = rows[rows["reserved"]]
    assert 0 < solution.n_reserved <= len(held)
    assert solution.quality == 1
    assert solution.log_odds > 100


def test_matches_are_the_stars_they_are_said_to_be(field, solved):
    stars = field.stars().set_index("id")
    known = stars.loc[solved.match_rows["ref_id"]]
    off = np.hypot(known["x"] - solved.match_rows["x"], known["y"] - solved.match_rows["y"])
    assert np.quantile(off, 0.97) < 1.0
    sharp = known["snr"] if "snr" in known else known["flux_e"] / known["flux_crb_e"]
    assert off[sharp > 100].max() < 0.3


# --------------------------------------------------------------------------------------- forms
@pytest.mark.parametrize("form", ["tpv", "sip", "tan"])
def test_astropy_reads_what_was_fitted(field, tmp_path, form):
    outcome = solve(field.image, field.refcat, form=form)
    header, _ = written(outcome, field, tmp_path)
    kind = {"tpv": "TPV", "sip": "TAN-SIP", "tan": "TAN"}[form]
    assert header["CTYPE1"] == f"RA---{kind}"
    assert ("A_ORDER" in header) == (form == "sip")
    assert ("PV1_4" in header) == (form == "tpv")
    rows = outcome.match_rows
    ra, dec = wcs_of(header).all_pix2world(rows["x"], rows["y"], 0)
    cos = np.cos(np.radians(rows["dec_deg"]))
    assert np.abs((ra - rows["ra_deg"]) * cos).max() * 3.6e6 < 0.01
    assert np.abs(dec - rows["dec_deg"]).max() * 3.6e6 < 0.01
    assert outcome.solution.form == form
    assert outcome.solution.order == (1 if form == "tan" else 3)
    limit = 400 if form == "tan" else 150  # without terms for it, the distortion remains
    assert np.abs(field.error_mas(header)).max() < limit


def test_the_order_that_is_asked_for(field):
    outcome = solve(field.image, field.refcat, order=2)
    assert outcome.solution.order == 2
    assert outcome.solution.chips[0]["fit"] == "poly2"


@pytest.mark.parametrize("bad", [{"form": "zpn"}, {"order": 0}, {"order": "high"}])
def test_arguments_that_make_no_sense(field, bad):
    with pytest.raises(SettingError):
        solve(field.image, field.refcat, **bad)


# --------------------------------------------------------------------------------------- files
def test_every_pixel_and_card_is_kept_and_the_cards_of_the_solution_are_added(
    field, solved, tmp_path
):
    header, files = written(solved, field, tmp_path)
    assert [f.name for f in files] == [
        "field_wcs.fits", "field.matches.parquet", "field.report.npz", "field.solution.json",
    ]
    before, after = fits.open(field.image), fits.open(files[0])
    with before, after:
        assert np.array_equal(before[0].data, after[0].data)
        for key in ("EXPTIME", "GAIN", "DATE-OBS", "BZERO"):
            assert after[0].header[key] == before[0].header[key]
    assert header["NMATCHES"] == solved.solution.n_used
    assert header["RMS_RA"] == pytest.approx(solved.solution.rms_ra_mas, abs=1e-3)
    assert header["RMS_DEC"] == pytest.approx(solved.solution.rms_dec_mas, abs=1e-3)
    assert header["FITQUAL"] == 1
    assert header["WCSNAME"] == solved.solution.wcsname
    assert header["ASTCAT"] == "GAIADR3"
    with fits.open(files[0], checksum=True) as hdus:  # a wrong sum is a warning, and an error here
        hdus[0].data  # noqa: B018


def test_the_old_wcs_is_an_alternate_and_can_be_restored(field, solved, tmp_path):
    header, _ = written(solved, field, tmp_path)
    with fits.open(field.image) as hdus:
        old = hdus[0].header
    x, y = grid(field.truth())
    kept = wcs_of(header, key="A")
    assert np.abs(apart_mas(kept, wcs_of(old), x, y)).max() < 1e-3
    assert header["WCSNAMEA"] == "ORIGINAL"
    restore_alternate(header, "A")
    for key in ("CRVAL1", "CRPIX2", "CD1_2", "CTYPE1"):
        assert header[key] == old[key]


def test_solving_the_result_again_changes_nothing_but_the_name(field, solved, tmp_path):
    header, files = written(solved, field, tmp_path)
    again = solve(files[0], field.refcat)
    assert again.solution.status == "solved", again
    assert not again.kept
    assert again.solution.before_offset_arcsec < 0.005
    moved = apart_mas(wcs_of(header_of(again)), wcs_of(header), *grid(field.truth()))
    assert np.abs(moved).max() < 0.5 * again.solution.wcs_error_mas["corner"]
    twice = write(again, tmp_path / "twice", source=files[0])
    with fits.open(twice[0]) as hdus:
        raw = hdus[0].header.tostring().encode()
    assert alternate_letters(records_of(raw)) == "A", "the same solution is not archived"


def test_header_only(field, solved, tmp_path):
    header, files = written(solved, field, tmp_path, header_only=True)
    assert files[0].name == "field.wcs.fits"
    with fits.open(files[0]) as hdus:
        assert hdus[0].data is None
    assert (header["IMAGEW"], header["IMAGEH"]) == (520, 460)
    assert np.abs(field.error_mas(header)).max() < 150
    assert header["NMATCHES"] == solved.solution.n_used


def test_in_place(field, tmp_path):
    image = tmp_path / "mine.fits"
    shutil.copy(field.image, image)
    image.chmod(0o640)
    run = run_solve([image], field.refcat, tmp_path / "out", in_place=True)
    assert run.records[0].status == "solved"
    with fits.open(image) as hdus:
        assert np.abs(field.error_mas(hdus[0].header)).max() < 150
        assert "CRVAL1A" in hdus[0].header
        assert np.array_equal(hdus[0].data, fits.getdata(field.image))
    assert image.stat().st_mode & 0o777 == 0o640
    assert not (tmp_path / "out" / "mine_wcs.fits").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"mine.fits", "out"}


def test_in_place_never_loses_what_another_program_wrote(field, tmp_path, monkeypatch):
    image = tmp_path / "mine.fits"
    shutil.copy(field.image, image)

    def meanwhile(*given, **options):
        with fits.open(image, mode="update") as hdus:
            hdus[0].header["OBJECT"] = "theirs"
        return conclude(*given, **options)

    conclude = solve_door.conclude
    monkeypatch.setattr(solve_door, "conclude", meanwhile)
    run = run_solve([image], field.refcat, tmp_path / "out", in_place=True)
    assert run.records[0].status == "failed"
    assert "another program changed it" in run.records[0].reason
    header = fits.getheader(image)
    assert header["OBJECT"] == "theirs"
    assert "CRVAL1A" not in header


@pytest.mark.parametrize("form", ["tpv", "sip"])
def test_an_image_with_a_third_axis_of_one_plane(field, tmp_path, form):
    image = tmp_path / "axis.fits"
    with fits.open(field.image) as hdus:
        fits.PrimaryHDU(hdus[0].data[None], hdus[0].header).writeto(image)
    outcome = solve(image, field.refcat, form=form)
    assert outcome.solution.form == "tpv", "of SIP astropy reads two axes only"
    assert any("SIP" in n for n in outcome.solution.notes) == (form == "sip")
    files = write(outcome, tmp_path / "out", source=image)
    wcs = wcs_of(fits.getheader(files[0]))
    assert wcs.naxis == 3
    x, y = grid(field.truth())
    sky = wcs.all_pix2world(x, y, np.zeros(np.shape(x)), 0)[:2]
    plane = wcs_of(fits.getheader(files[0]), naxis=2)
    assert np.abs(apart_mas(plane, wcs_of(field.truth()), x, y)).max() < 150
    assert np.allclose(sky, plane.all_pix2world(x, y, 0), atol=1e-10, rtol=0)


@pytest.mark.parametrize("ending", [".fits.fz", ".fits.gz"])
def test_compressed_images(field, tmp_path, ending):
    image = tmp_path / f"night{ending}"
    with fits.open(field.image) as hdus:
        if ending == ".fits.fz":
            tiles = fits.CompImageHDU(hdus[0].data, hdus[0].header, compression_type="RICE_1")
            fits.HDUList([fits.PrimaryHDU(), tiles]).writeto(image)
        else:
            image.write_bytes(gzip.compress(field.image.read_bytes(), 1))
        pixels = hdus[0].data.copy()
    outcome = solve(image, field.refcat)
    assert outcome.solution.status == "solved"
    files = write(outcome, tmp_path / "out", source=image)
    assert files[0].name == "night_wcs.fits"
    with fits.open(files[0]) as hdus:
        hdu = hdus[1 if ending == ".fits.fz" else 0]
        assert np.array_equal(hdu.data, pixels)
        assert np.abs(field.error_mas(hdu.header)).max() < 150


def test_a_cube_is_solved_in_the_plane_that_is_chosen(field, tmp_path):
    image = tmp_path / "cube.fits"
    with fits.open(field.image) as hdus:
        sky = np.random.default_rng(1).normal(300, 12, hdus[0].data.shape)
        planes = np.stack([sky.astype(np.uint16), hdus[0].data])
        fits.PrimaryHDU(planes, hdus[0].header).writeto(image)
    refused = solve(image, field.refcat).solution
    assert refused.status == "failed"
    assert "cube" in refused.reason
    assert "[0,0]" in refused.hints[0]
    outcome = solve(f"{image}[0,1]", field.refcat)
    assert outcome.solution.status == "solved"
    files = write(outcome, tmp_path / "out", source=image)
    with fits.open(files[0]) as hdus:
        assert len(hdus) == 1
        assert hdus[0].header["AST_PLAN"] == 1
        assert hdus[0].data.shape == planes.shape
    back = cynosure.read(f"{files[0]}[0,1]").frames[0].wcs
    assert np.abs(apart_mas(back, wcs_of(field.truth()), *grid(field.truth()))).max() < 150


# --------------------------------------------------------------------------------- several chips
@pytest.fixture(scope="session")
def mosaic(tmp_path_factory):
    """Give three chips on one focal plane, with gaps and rotations."""
    return plant(
        tmp_path_factory.mktemp("mosaic"), 5, "mosaic",
        sky={"n_stars": 500, "margin_deg": 0.2},
        camera={"width_px": 300, "height_px": 400, "chip_x_px": [-330.0, 2.0, 331.0],
                "chip_y_px": [0.5, -0.7, 0.4], "chip_rotation_deg": [0.1, -0.05, 0.0]},
        header={"pointing_error_deg": 0.05},
    )


@pytest.mark.parametrize("chips", ["together", "apart"])
def test_chips(mosaic, tmp_path, chips):
    outcome = solve(mosaic.image, mosaic.refcat, chips=chips)
    assert outcome.solution.status == "solved", outcome
    files = write(outcome, tmp_path, source=mosaic.image)
    with fits.open(files[0]) as hdus:
        assert len(hdus) == 4
        headers = [h.header for h in hdus[1:]]
    assert len({h["CRVAL1"] for h in headers}) >= 1
    for chip, header in enumerate(headers):
        assert np.abs(mosaic.error_mas(header, chip)).max() < 250
        assert header["CRPIX1A"]
    entries = outcome.solution.chips
    assert [e["hdu"] for e in entries] == [1, 2, 3]
    assert all(e["cards"]["CRVAL2"] == h["CRVAL2"] for e, h in zip(entries, headers))
    assert sum(e["n_used"] for e in entries) == outcome.solution.n_used
    assert set(outcome.match_rows["chip"]) == {0, 1, 2}


def test_few_stars_on_each_of_many_chips_cover_the_focal_plane(tmp_path):
    columns = [-300.0, 0.0, 300.0] * 2
    field = plant(
        tmp_path, 4, sky={"n_stars": 60, "mag_bright": 12.0, "mag_faint": 17.0},
        camera={"width_px": 260, "height_px": 260, "chip_x_px": columns,
                "chip_y_px": [-150.0] * 3 + [150.0] * 3, "chip_rotation_deg": [0.0]},
        artefacts={"cosmic_rays": 0}, distortion={"radial3": 0.0},
    )
    solution = solve(field.image, field.refcat).solution
    assert 25 < solution.n_used < 60
    check = next(c for c in solution.checks if c["name"] == "coverage")
    assert check["value"] > 0.75
    assert solution.status == "solved", solution


def test_a_chip_without_stars_goes_with_the_others(mosaic, tmp_path):
    image = tmp_path / "dark.fits"
    with fits.open(mosaic.image) as hdus:
        sky = np.random.default_rng(2).normal(350.0, 13.0, hdus[3].data.shape)
        hdus[3].data = sky.astype(np.uint16)
        hdus.writeto(image)
    outcome = solve(image, mosaic.refcat)
    entries = outcome.solution.chips
    assert outcome.solution.status in ("solved", "compromised")
    assert [e["inherited"] for e in entries] == [False, False, True]
    error = mosaic.error_mas(outcome.headers[3], 2)
    # Where the chips lie to each other is what the header says: 0.7 px of 5e-4 of the plane.
    assert np.abs(error).max() < 1500
    apart = solve(image, mosaic.refcat, chips="apart").solution
    assert apart.status == "failed"
    assert "3" in apart.reason


# ------------------------------------------------------------------------------ epoch and motion
@pytest.fixture(scope="session")
def fast(tmp_path_factory):
    """Give a field of which a third of the stars moved by 5 px since the catalogue's epoch."""
    return plant(
        tmp_path_factory.mktemp("fast"), 7,
        sky={"high_pm_fraction": 0.3, "high_pm_mas_yr": 500.0, "parallax_mas": 5.0},
        catalog={"two_parameter_fraction": 0.0}, distortion={"radial3": 0.0},
    )


def test_stars_are_where_their_motion_takes_them(fast):
    outcome = solve(fast.image, fast.refcat)
    assert outcome.solution.epoch_yr == pytest.approx(2025.5, abs=0.01)
    stars = fast.stars().set_index("id").loc[outcome.match_rows["ref_id"]]
    quick = (np.hypot(stars["pm_ra_mas_yr"], stars["pm_dec_mas_yr"]) > 300).to_numpy()
    assert quick.sum() > 20
    rows = outcome.match_rows[quick]
    pull = [rows["dra_mas"] / rows["sigma_ra_mas"], rows["ddec_mas"] / rows["sigma_dec_mas"]]
    assert np.median(np.hypot(*pull)) < 1.6
    off = np.hypot((rows["ref_ra_deg"] - stars["ra_deg"][quick]) * np.cos(np.radians(30.0)),
                   rows["ref_dec_deg"] - stars["dec_deg"][quick])
    assert off.max() * 3.6e6 < 20, "at the epoch, with parallax"


def test_neither_image_nor_catalogue_has_a_date(fast, tmp_path):
    """A table of positions and magnitudes alone: the epoch is unknown, and no card pretends."""
    whole = pq.read_table(fast.files.reference)
    pq.write_table(whole.select(["ra", "dec", "phot_g_mean_mag"]), tmp_path / "bare.parquet")
    build_refcat([tmp_path / "bare.parquet"], tmp_path / "bare", name="Bare")
    image = tmp_path / "undated.fits"
    with fits.open(fast.image) as units:
        for unit in units:
            for key in [k for k in unit.header if k.startswith(("DATE", "MJD", "EXPSTART"))]:
                del unit.header[key]
        units.writeto(image)
    outcome = solve(image, tmp_path / "bare")
    assert outcome.solution.status == "solved"
    assert any("no date" in n for n in outcome.solution.notes)
    header = next(iter(outcome.headers.values()))
    assert "ASTEPOCH" not in header
    assert json.loads(outcome.solution.to_json())["epoch_yr"] is None


def test_an_image_without_a_date(fast, tmp_path):
    image = tmp_path / "undated.fits"
    with fits.open(fast.image) as hdus:
        for key in ("DATE-OBS", "MJD-OBS"):
            hdus[0].header.remove(key, ignore_missing=True)
        hdus.writeto(image)
    dated, undated = solve(fast.image, fast.refcat), solve(image, fast.refcat)
    told = solve(image, fast.refcat, epoch=2025.5)
    assert any("--epoch" in n for n in undated.solution.notes)
    assert not any("--epoch" in n for n in told.solution.notes)
    assert undated.solution.epoch_yr == 2016.0
    assert told.solution.epoch_yr == 2025.5
    assert told.solution.n_used == pytest.approx(dated.solution.n_used, abs=3)
    errors = [np.abs(fast.error_mas(header_of(o))).max() for o in (dated, undated, told)]
    assert errors[0] < 150
    assert errors[2] < 150
    sigma = [float(np.median(np.hypot(o.match_rows["sigma_ra_mas"], o.match_rows["sigma_dec_mas"])))
             for o in (dated, undated)]
    assert sigma[1] > 1.3 * sigma[0]
    pull = undated.match_rows["dra_mas"] / undated.match_rows["sigma_ra_mas"]
    assert np.sqrt(np.mean(pull**2)) < 1.5, "the errors cover the motion that is not known"
    assert errors[0] < errors[1] < 5 * undated.solution.wcs_error_mas["corner"]


# -------------------------------------------------------------------------- no worse than before
def test_a_poor_header_is_replaced_and_its_score_is_told(field, solved):
    solution = solved.solution
    assert not solved.kept
    assert solution.before_offset_arcsec == pytest.approx(108, abs=3)
    assert solution.before_rms_mas > 100 * solution.rms_ra_mas
    check = next(c for c in solution.checks if c["name"] == "before")
    assert check["passed"]
    assert check["value"] < 0.2


@pytest.fixture(scope="session")
def precious(tmp_path_factory):
    """Give an image whose header is the truth, and whose stars are few and noisy."""
    return plant(
        tmp_path_factory.mktemp("precious"), 3,
        sky={"n_stars": 26, "mag_bright": 17.2, "mag_faint": 18.6},
        header={"wcs": "true", "pointing_error_deg": 0.0, "rotation_error_deg": 0.0,
                "scale_error": 0.0},
        distortion={"radial3": 0.02},
    )


@pytest.mark.parametrize("header_only", [False, True])
def test_a_header_that_is_better_than_the_stars_can_give_stays(precious, tmp_path, header_only):
    settings = default_settings().updated({"fit": {"geometry": "general"}}, "test")
    outcome = solve(precious.image, precious.refcat, settings=settings)
    solution = outcome.solution
    ours = np.abs(precious.error_mas(header_of(outcome))).max()
    assert ours > 50, "what the stars give is worse than the truth"
    assert solution.status == "compromised"
    assert "WCS it came with" in solution.reason
    assert any("stays in use" in n for n in solution.notes)
    header, files = written(outcome, precious, tmp_path, header_only=header_only)
    assert np.abs(precious.error_mas(header)).max() < 0.01
    beside = wcs_of(header, key="A")
    assert header["WCSNAMEA"] == solution.wcsname
    rows = outcome.match_rows
    linear = apart_mas(beside, wcs_of(header_of(outcome)), rows["x"], rows["y"])
    assert np.abs(linear).max() < 0.01, "the alternate is the new WCS"
    assert header["AST_KEEP"] is True
    assert "NMATCHES" not in header, "the numbers of the fit are not those of the active WCS"
    again = solve(files[0], precious.refcat, settings=settings) if not header_only else None
    if again is not None:
        twice = write(again, tmp_path / "twice", source=files[0])
        with fits.open(twice[0]) as hdus:
            raw = hdus[0].header.tostring().encode()
        assert alternate_letters(records_of(raw)) == "A"


# ------------------------------------------------------------------------------ the same bits
def test_the_same_bits_whatever_the_number_of_threads(field, solved, tmp_path):
    two = solve(field.image, field.refcat, threads=2)
    assert two.source_rows.tobytes() == solved.source_rows.tobytes()
    assert two.match_rows.tobytes() == solved.match_rows.tobytes()
    cards = [[c for c in header_of(o).cards if c.keyword != "DATE"] for o in (two, solved)]
    assert [str(c) for c in cards[0]] == [str(c) for c in cards[1]]


def test_the_same_bits_whatever_the_number_of_workers_and_a_second_run_does_nothing(
    field, tmp_path
):
    images = []
    for name in ("a.fits", "b.fits"):
        images.append(tmp_path / name)
        shutil.copy(field.image, images[-1])
    one = run_solve(images, field.refcat, tmp_path / "one", threads=1)
    two = run_solve(images, field.refcat, tmp_path / "two", workers=2, threads=1)
    assert [r.status for r in (*one.records, *two.records)] == ["solved"] * 4
    for name in ("a_wcs.fits", "b_wcs.fits", "a.matches.parquet", "b.matches.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    again = run_solve(images, field.refcat, tmp_path / "one", threads=1)
    assert again.records == []
    assert [Path(i).name for i in again.skipped] == ["a.fits", "b.fits"]
    (tmp_path / "one" / "a_wcs.fits").unlink()
    third = run_solve(images, field.refcat, tmp_path / "one", threads=1)
    assert [Path(r.image).name for r in third.records] == ["a.fits"]
    assert third.records[0].status == "solved"


# -------------------------------------------------------------------------------------- records
def test_the_record_has_the_fields_that_scripts_rely_on(field, solved, tmp_path):
    solution = save(solved, field.image, tmp_path, False, False, False)
    content = json.loads((tmp_path / "field.solution.json").read_text())
    assert content["schema"] == "cynosure.solution/1"
    assert [f for f in FIELDS if f not in content] == []
    assert content["status"] == "solved"
    assert content["image"] == str(field.image)
    assert content["sha256"] == solution.sha256 != ""
    assert content["chips"][0]["cards"]["CTYPE1"] == "RA---TPV"
    assert set(content["wcs_error_mas"]) == {"center", "corner"}
    assert content["wcs_error_mas"]["corner"] > content["wcs_error_mas"]["center"] > 0
    assert content["seconds"]["total"] > 0
    assert content["settings"]["fit"]["max_order"] == 7
    assert content["width_deg"] == pytest.approx(520 / 3600, rel=3e-3)
    assert content["tried"]
    assert content["files"] == [
        "field_wcs.fits", "field.matches.parquet", "field.report.npz", "field.solution.json",
    ]


def test_the_table_of_matches_has_the_columns_that_scripts_rely_on(field, solved, tmp_path):
    save(solved, field.image, tmp_path, False, False, False)
    path = tmp_path / "field.matches.parquet"
    schema = pq.read_schema(path)
    assert schema.names == COLUMNS
    for name, unit in UNITS.items():
        assert schema.field(name).metadata[b"unit"].decode() == unit
    assert read_parquet(path, MATCHES).tobytes() == solved.match_rows.tobytes()


def test_the_names_that_python_users_need(field, tmp_path):
    exposure = cynosure.read(field.image)
    refcat = cynosure.open_refcat(field.refcat)
    outcome = cynosure.solve(exposure, refcat)
    assert "SOLVED" in str(outcome)
    assert "<table>" in outcome._repr_html_()
    files = cynosure.write(outcome, tmp_path / "made" / "here", source=field.image)
    assert all(f.exists() for f in files)
    with fits.open(field.image) as hdus:
        pair = solve((hdus[0].data, hdus[0].header), refcat)
        listed = solve(hdus, refcat)
    assert pair.match_rows.tobytes() == listed.match_rows.tobytes() == outcome.match_rows.tobytes()


def test_what_the_caller_knows_goes_before_the_header(field, tmp_path):
    image = tmp_path / "nothing.fits"
    with fits.open(field.image) as hdus:
        fits.PrimaryHDU(hdus[0].data).writeto(image)
    centre = wcs_of(field.truth()).all_pix2world(259.5, 229.5, 0)
    outcome = solve(
        image, field.refcat, center=(float(centre[0]) + 0.02, float(centre[1])), radius=0.1,
        scale=1.05, scale_error=0.1, epoch=2025.5,
    )
    assert outcome.solution.status == "solved"
    assert np.isnan(outcome.solution.before_offset_arcsec)
    assert np.abs(field.error_mas(header_of(outcome))).max() < 150
