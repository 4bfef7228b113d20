"""Simulated scenes: what is planted is found again by means that share no code with it."""

import json
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning

from cynosure.data.tables import REFERENCE, read_parquet
from cynosure.ground.errors import OutputError, OutputExists, SettingError
from cynosure.ground.sky import at_epoch, separation_deg
from cynosure.products.detector import PixelTruth
from cynosure.products.scene import Scene, load_scene
from cynosure.products.simulate import FAULTS, TRUTH, simulate_scene
from cynosure.products.starfield import GAIA

QUIET = {
    "sky": {"n_stars": 60, "margin_deg": 0.05, "galaxy_fraction": 0.0, "binary_fraction": 0.0,
            "mag_bright": 12.0, "mag_faint": 18.0},
    "camera": {"width_px": 300, "height_px": 200},
    "artefacts": {}, "header": {},
}  # fmt: skip
BLANK = {"sky": {"n_stars": 0}, "camera": {"width_px": 512, "height_px": 512}}


def quiet(**sections):
    """Return a small scene without anything odd, changed by sections."""
    return Scene(name="s").updated(QUIET).updated(sections)


def wcs_of(path, ext=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        return WCS(fits.getheader(path, ext))


def truth_of(files):
    return read_parquet(files.truth, TRUTH)


def gaia_of(files):
    return read_parquet(files.reference, GAIA)


def reference_of(gaia):
    """Read a simulated Gaia table as a reference table, name by name."""
    names = {
        "ref_id": "source_id", "ra_deg": "ra", "dec_deg": "dec", "ref_epoch_yr": "ref_epoch",
        "mag": "phot_g_mean_mag", "color": "bp_rp", "ra_error_mas": "ra_error",
        "dec_error_mas": "dec_error", "parallax_mas": "parallax",
        "parallax_error_mas": "parallax_error", "pm_ra_mas_yr": "pmra", "pm_dec_mas_yr": "pmdec",
        "pm_ra_error_mas_yr": "pmra_error", "pm_dec_error_mas_yr": "pmdec_error",
    }  # fmt: skip
    names |= {n: n for n in REFERENCE.names if n.endswith("_corr")}
    return REFERENCE.build(good=True, **{k: gaia[v] for k, v in names.items()})


def offsets_mas(ra1, dec1, ra2, dec2):
    """Return (ra2, dec2) minus (ra1, dec1) by plain small-angle formulas."""
    dra = (ra2 - ra1 + 180.0) % 360.0 - 180.0
    return dra * np.cos(np.radians(dec1)) * 3.6e6, (dec2 - dec1) * 3.6e6


# ------------------------------------------------------------------------------- the files


def test_the_same_scene_gives_the_same_bits_and_another_seed_others(tmp_path):
    scene = quiet(artefacts={"cosmic_rays": 20, "trails": 1, "hot_fraction": 1e-3, "mask": True})
    a = simulate_scene(scene, tmp_path / "a")
    b = simulate_scene(scene, tmp_path / "b")
    for name in a.__dataclass_fields__:
        assert getattr(a, name).read_bytes() == getattr(b, name).read_bytes(), name
    c = simulate_scene(scene, tmp_path / "c", seed=5)
    assert a.image.read_bytes() != c.image.read_bytes()
    again = load_scene(c.scene)
    assert again.seed == 5
    assert simulate_scene(again, tmp_path / "d").image.read_bytes() == c.image.read_bytes()


def test_one_section_leaves_the_others_alone(tmp_path):
    scene = quiet(scene={"seed": 3})
    a = truth_of(simulate_scene(scene, tmp_path / "a"))
    b = truth_of(simulate_scene(scene.updated({"detector": {"sky_e": 500}}), tmp_path / "b"))
    np.testing.assert_array_equal(a["x"], b["x"])
    assert np.all(a["x_crb"] < b["x_crb"])


def test_files_are_not_overwritten_unasked_and_nothing_half_written_is_left(tmp_path):
    files = simulate_scene(quiet(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "reference.parquet", "s.faults.json", "s.fits", "s.scene.toml", "s_truth.parquet",
        "s_truth.wcs.fits",
    ]  # fmt: skip
    before = files.image.read_bytes()
    with pytest.raises(OutputExists, match=r"s\.fits"):
        simulate_scene(quiet(), tmp_path, seed=9)
    assert files.image.read_bytes() == before
    simulate_scene(quiet(), tmp_path, seed=9, overwrite=True)
    assert files.image.read_bytes() != before
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        simulate_scene(quiet(), tmp_path / "file")


# ------------------------------------------------------------------------------ the geometry

LENSES = {
    "plain": {},
    "cubic, mirrored": {"distortion": {"radial3": 0.01},
                        "camera": {"parity": -1, "rotation_deg": 50}},
    "fifth order": {"distortion": {"radial3": 0.008, "radial5": -0.002, "tangential_x": 0.001},
                    "camera": {"rotation_deg": -170}},
    "random seventh": {"distortion": {"random_degree": 7, "random_px": 2.0}},
    "at the pole": {"sky": {"dec_deg": 89.95}, "distortion": {"radial3": 0.005}},
    "at the meridian": {"sky": {"ra_deg": 0.0},
                        "camera": {"rotation_deg": 90, "scale_arcsec": 20.0}},
    "three chips": {"camera": {"chip_x_px": [-320, 0, 325], "chip_y_px": [3, 0, -2],
                               "chip_rotation_deg": [1, 0, -2]},
                    "distortion": {"radial3": 0.004, "radial5": 0.001}},
}  # fmt: skip


@pytest.mark.parametrize("name", LENSES)
def test_astropy_puts_the_truth_where_the_truth_says(name, tmp_path):
    scene = quiet(sky={"n_stars": 200}).updated(LENSES[name])
    files = simulate_scene(scene, tmp_path)
    truth = truth_of(files)
    assert len(truth) > 100
    for chip in range(scene.camera.n_chips):
        rows = truth[truth["chip"] == chip]
        wcs = wcs_of(files.truth_wcs, 0 if scene.camera.n_chips == 1 else chip + 1)
        ra, dec = wcs.all_pix2world(rows["x"], rows["y"], 0)
        separation = separation_deg(ra, dec, rows["ra_deg"], rows["dec_deg"]) * 3600
        assert separation.max() < 1e-6 * scene.camera.scale_arcsec
        x, y = wcs.all_world2pix(rows["ra_deg"], rows["dec_deg"], 0, tolerance=1e-9)
        np.testing.assert_allclose(x, rows["x"], atol=1e-6)
        np.testing.assert_allclose(y, rows["y"], atol=1e-6)


def test_scale_rotation_and_parity_are_those_asked_for(tmp_path):
    for parity in (1, -1):
        camera = {"rotation_deg": 30.0, "parity": parity, "scale_arcsec": 2.0}
        wcs = wcs_of(simulate_scene(quiet(camera=camera), tmp_path, overwrite=True).truth_wcs)
        cd = wcs.pixel_scale_matrix
        assert np.sqrt(abs(np.linalg.det(cd))) * 3600 == pytest.approx(2.0)
        assert np.sign(np.linalg.det(cd)) == -parity
        assert np.degrees(np.arctan2(cd[0, 1], cd[1, 1])) == pytest.approx(30.0)  # of +y, N to E
        ra, dec = wcs.all_pix2world(149.5, 99.5, 0)
        assert separation_deg(ra, dec, 150.0, 30.0) < 1e-9


def test_distortion_displaces_the_corner_by_the_fraction_that_was_asked_for(tmp_path):
    def corner(**distortion):
        wcs = wcs_of(
            simulate_scene(quiet(distortion=distortion), tmp_path, overwrite=True).truth_wcs
        )
        return np.array(wcs.pix2foc([[-0.5, -0.5]], 0)[0]), wcs

    straight = np.array([-150.0, -100.0])
    for name, share in (("radial3", 0.01), ("radial5", -0.004)):
        _, wcs = corner(**{name: share})
        ra, dec = wcs.all_pix2world(-0.5, -0.5, 0)
        plain = wcs_of(simulate_scene(quiet(), tmp_path, overwrite=True).truth_wcs)
        x, y = plain.all_world2pix(ra, dec, 0)
        np.testing.assert_allclose([x - 149.5, y - 99.5], straight * (1 + share), atol=1e-5)


def test_the_header_is_as_wrong_as_it_should_be(tmp_path):
    header = {"pointing_error_deg": 0.25, "rotation_error_deg": 4.0, "scale_error": 0.02}
    scene = quiet(header=header, camera={"rotation_deg": 10.0}, distortion={"radial3": 0.005})
    files = simulate_scene(scene, tmp_path)
    true, said = wcs_of(files.truth_wcs), wcs_of(files.image)
    assert fits.getheader(files.image)["CTYPE1"] == "RA---TAN"
    center = (149.5, 99.5, 0)
    distance = separation_deg(*true.all_pix2world(*center), *said.all_pix2world(*center))
    assert distance == pytest.approx(0.25, abs=1e-9)
    cd = said.pixel_scale_matrix
    assert np.degrees(np.arctan2(cd[0, 1], cd[1, 1])) == pytest.approx(14.0)
    assert np.sqrt(-np.linalg.det(cd)) * 3600 == pytest.approx(0.8 * 1.02)
    right = simulate_scene(scene.updated({"header": {"wcs": "true"}}), tmp_path, overwrite=True)
    assert fits.getheader(right.image)["CTYPE1"] == "RA---TPV"
    off = separation_deg(*true.all_pix2world(0, 0, 0), *wcs_of(right.image).all_pix2world(0, 0, 0))
    assert off == pytest.approx(0.25, abs=0.01)
    only = simulate_scene(quiet(header={"wcs": "pointing"}), tmp_path, overwrite=True)
    card = fits.getheader(only.image)
    assert "CTYPE1" not in card
    assert separation_deg(card["RA"], card["DEC"], 150.0, 30.0) < 1e-9
    assert card["SECPIX"] == 0.8


def test_several_chips_are_extensions_of_one_rigid_camera(tmp_path):
    scene = load_scene("multichip").updated(
        {"camera": {"width_px": 128, "height_px": 128, "chip_x_px": [-200, -66, 70, 204]},
         "sky": {"n_stars": 200}, "header": {"pointing_error_deg": 0.0, "rotation_error_deg": 0.0},
         "distortion": {"radial3": 0.0, "radial5": 0.0, "tangential_x": 0.0}}
    )  # fmt: skip
    files = simulate_scene(scene, tmp_path)
    with fits.open(files.image) as hdus:
        assert hdus[0].data is None
        assert [(h.name, h.ver, h.data.shape) for h in hdus[1:]] == [
            ("SCI", k, (128, 128)) for k in (1, 2, 3, 4)
        ]
    for ext in (1, 2, 3, 4):
        said, true = wcs_of(files.image, ext), wcs_of(files.truth_wcs, ext)
        x, y = said.all_world2pix(*true.all_pix2world([0, 127], [0, 127], 0), 0)
        np.testing.assert_allclose(x, [0, 127], atol=1e-6)
        np.testing.assert_allclose(y, [0, 127], atol=1e-6)
    centers = [wcs_of(files.truth_wcs, k).all_pix2world(63.5, 63.5, 0) for k in (1, 4)]
    apart = separation_deg(*centers[0], *centers[1]) * 3600 / scene.camera.scale_arcsec
    assert apart == pytest.approx(np.hypot(404, 3.5), rel=1e-6)
    counts = np.bincount(truth_of(files)["chip"], minlength=4)
    assert counts.min() > 20


def test_one_chip_may_be_an_extension(tmp_path):
    files = simulate_scene(quiet(header={"extensions": True}), tmp_path)
    for path in (files.image, files.truth_wcs):
        with fits.open(path) as hdus:
            assert len(hdus) == 2
            assert (hdus[1].name, hdus[1].ver) == ("SCI", 1)


# -------------------------------------------------------------------------- sky and catalogue


def test_stars_move_as_astropy_moves_them(tmp_path):
    from astropy.coordinates import SkyCoord
    from astropy.time import Time
    from astropy.units import Quantity

    sky = {"parallax_mas": 0.0, "pm_rms_mas_yr": 300.0, "n_stars": 300}
    scene = quiet(sky=sky, catalog={"error_mas": 0.0, "two_parameter_fraction": 0.0})
    files = simulate_scene(scene, tmp_path)
    truth, gaia = truth_of(files), gaia_of(files)
    assert truth["epoch_yr"][0] == pytest.approx(Time("2025-07-02T12:00:10").tt.jyear, abs=1e-9)
    at = {i: k for k, i in enumerate(gaia["source_id"])}
    gaia = gaia[[at[i] for i in truth["id"]]]
    start = SkyCoord(
        Quantity(gaia["ra"], "deg"), Quantity(gaia["dec"], "deg"),
        pm_ra_cosdec=Quantity(gaia["pmra"], "mas/yr"), pm_dec=Quantity(gaia["pmdec"], "mas/yr"),
        obstime=Time(2016.0, format="jyear"), distance=Quantity(20, "pc"),
    )  # fmt: skip
    end = start.apply_space_motion(new_obstime=Time(truth["epoch_yr"][0], format="jyear"))
    off = separation_deg(end.ra.deg, end.dec.deg, truth["ra_deg"], truth["dec_deg"]) * 3.6e6
    assert np.hypot(gaia["pmra"], gaia["pmdec"]).max() > 800
    assert off.max() < 0.01  # mas; the rest is the second order of the motion


def pulls(files, select=slice(None)):
    """Return the normalised offsets of the catalogue from the truth, by full covariance."""
    truth, reference = truth_of(files), reference_of(gaia_of(files))
    truth = truth[np.isin(truth["id"], reference["ref_id"])]
    order = np.argsort(reference["ref_id"])
    reference = reference[order[np.searchsorted(reference["ref_id"][order], truth["id"])]]
    known = np.isfinite(reference["pm_ra_mas_yr"])
    truth, reference = truth[known], reference[known]
    ra, dec, cov = at_epoch(reference, float(truth["epoch_yr"][0]))
    dx, dy = offsets_mas(truth["ra_deg"], truth["dec_deg"], ra, dec)
    det = cov[:, 0] * cov[:, 1] - cov[:, 2] ** 2
    q = (cov[:, 1] * dx**2 - 2 * cov[:, 2] * dx * dy + cov[:, 0] * dy**2) / det
    return dx / np.sqrt(cov[:, 0]), dy / np.sqrt(cov[:, 1]), q


def test_the_catalogue_is_as_wrong_as_its_errors_say(tmp_path):
    scene = quiet(sky={"n_stars": 3000})
    dx, dy, q = pulls(simulate_scene(scene, tmp_path))
    n = len(dx)
    assert n > 2500
    assert abs(np.mean(dx)) < 4 / np.sqrt(n)
    assert abs(np.mean(dy)) < 4 / np.sqrt(n)
    assert np.std(dx) == pytest.approx(1, abs=4 / np.sqrt(2 * n))
    assert np.std(dy) == pytest.approx(1, abs=4 / np.sqrt(2 * n))
    assert np.mean(q) == pytest.approx(2, abs=8 / np.sqrt(n))  # holds only with the correlations
    lie = scene.updated({"catalog": {"error_scale": 2.0}})
    assert np.mean(pulls(simulate_scene(lie, tmp_path, overwrite=True))[2]) == pytest.approx(
        8, rel=0.1
    )


def test_the_catalogue_lacks_what_it_should(tmp_path):
    catalog = {"mag_limit": 17.0, "missing_fraction": 0.3, "two_parameter_fraction": 0.2}
    scene = quiet(sky={"n_stars": 2000, "galaxy_fraction": 0.1}, catalog=catalog)
    files = simulate_scene(scene, tmp_path)
    truth, gaia = truth_of(files), gaia_of(files)
    assert gaia["phot_g_mean_mag"].max() < 17.05
    bright = truth[(truth["mag"] < 17.0) & (truth["kind"] == 0)]
    assert np.mean(bright["in_catalog"]) == pytest.approx(0.7, abs=0.06)
    assert not truth["in_catalog"][truth["kind"] == 2].any()
    assert np.mean(truth["kind"] == 2) == pytest.approx(0.1, abs=0.03)
    two = gaia["astrometric_params_solved"] == 3
    assert np.mean(two) == pytest.approx(0.2, abs=0.04)
    assert np.isnan(gaia["pmra"][two]).all()
    assert np.isfinite(gaia["pmra"][~two]).all()
    assert gaia["ra_error"][two].min() > 1.0


def test_pairs_that_gaia_does_not_resolve_are_one_entry_at_their_photocentre(tmp_path):
    sky = {"n_stars": 400, "binary_fraction": 0.5, "binary_sep_arcsec": 0.3, "pm_rms_mas_yr": 0.0,
           "pm_tail_fraction": 0.0, "high_pm_fraction": 0.0, "parallax_mas": 0.0}  # fmt: skip
    catalog = {"error_mas": 0.0, "mag_error": 0.0, "two_parameter_fraction": 0.0}
    files = simulate_scene(quiet(sky=sky, catalog=catalog, camera={"scale_arcsec": 2.0}), tmp_path)
    truth, gaia = truth_of(files), gaia_of(files)
    rows = {r["id"]: r for r in truth}
    entries = {g["source_id"]: g for g in gaia}
    merged = resolved = 0
    for b in truth[truth["kind"] == 1]:
        a = rows.get(b["primary"])
        if a is None:
            continue
        apart = separation_deg(a["ra_deg"], a["dec_deg"], b["ra_deg"], b["dec_deg"]) * 3600
        entry = entries[a["id"]]
        if apart < 0.7:
            merged += 1
            share = b["flux_e"] / (a["flux_e"] + b["flux_e"])
            dec = a["dec_deg"] + share * (b["dec_deg"] - a["dec_deg"])
            assert entry["dec"] == pytest.approx(dec, abs=1e-9)
            total = -2.5 * np.log10(10 ** (-0.4 * a["mag"]) + 10 ** (-0.4 * b["mag"]))
            assert entry["phot_g_mean_mag"] == pytest.approx(total, abs=1e-9)
            assert entry["ruwe"] > 1.4
            assert b["id"] not in entries
        else:
            resolved += 1
            assert entries[b["id"]]["dec"] == pytest.approx(b["dec_deg"], abs=1e-9)
    assert merged > 50
    assert resolved > 15


def test_magnitudes_motions_and_clumps_follow_their_laws(tmp_path):
    sky = {"n_stars": 20000, "slope": 0.4, "mag_bright": 10.0, "mag_faint": 20.0,
           "clump_fraction": 0.5, "clump_sigma_arcmin": 0.3, "high_pm_fraction": 0.01}  # fmt: skip
    scene = quiet(sky=sky)
    gaia = gaia_of(simulate_scene(scene, tmp_path))
    mag = gaia["phot_g_mean_mag"]
    ratio = np.sum(mag < 19.0) / np.sum(mag < 18.0)
    assert ratio == pytest.approx(10**0.4, rel=0.08)
    pm = np.hypot(gaia["pmra"], gaia["pmdec"])
    assert np.nanmean(pm > 240) == pytest.approx(0.01, rel=0.3)
    assert np.nanmedian(pm) == pytest.approx(5 * 1.18, rel=0.1)
    distance = separation_deg(gaia["ra"], gaia["dec"], 150.0, 30.0) * 60
    inner = np.sum(distance < 0.3 * 1.177)  # half of a Gaussian clump, and some of the rest
    assert inner == pytest.approx(5000 + 10000 * np.pi * 0.353**2 / (4.0 * 2.667), rel=0.1)
    on_frame = len(read_parquet(tmp_path / "s_truth.parquet", TRUTH))
    assert on_frame == pytest.approx(20000, rel=0.03)


def test_stars_may_come_from_a_catalogue(tmp_path):
    first = simulate_scene(quiet(sky={"n_stars": 2000}), tmp_path / "a")
    reference = reference_of(gaia_of(first))
    files = simulate_scene(quiet(), tmp_path / "b", refcat=reference)
    gaia, truth = gaia_of(files), truth_of(files)
    for ours, theirs in (("source_id", "ref_id"), ("ra", "ra_deg"), ("dec", "dec_deg")):
        np.testing.assert_array_equal(gaia[ours], reference[theirs])
    assert np.isin(truth["id"], reference["ref_id"]).all()
    assert 1500 < len(truth) < 2500
    _, _, q = pulls(files)
    assert np.mean(q) == pytest.approx(2, abs=10 / np.sqrt(len(q)))
    assert np.isfinite(truth["pm_ra_mas_yr"]).all()


# --------------------------------------------------------------------------------- the air


def shifts(files, scene):
    """Return the displacement by the air in mas towards east and north, from the pixels."""
    truth = truth_of(files)
    wcs = wcs_of(files.truth_wcs)
    ra, dec = wcs.all_pix2world(truth["x"], truth["y"], 0)
    return truth, *offsets_mas(truth["ra_deg"], truth["dec_deg"], ra, dec)


def test_colour_refraction_is_towards_the_zenith_and_linear_in_colour(tmp_path):
    air = {"dcr_mas_mag": -132.0, "zenith_deg": 50.0, "parallactic_deg": 30.0}
    scene = quiet(sky={"n_stars": 300}, atmosphere=air)
    truth, east, north = shifts(simulate_scene(scene, tmp_path), scene)
    expected = -132.0 * (truth["color"] - 1.0) * np.tan(np.radians(50.0))
    np.testing.assert_allclose(east, expected * 0.5, atol=0.6)  # tan z varies over the field
    np.testing.assert_allclose(north, expected * np.sqrt(0.75), atol=0.6)
    assert np.ptp(expected) > 200
    np.testing.assert_allclose(
        np.hypot(truth["x"] - truth["x_wcs"], truth["y"] - truth["y_wcs"]) * 800.0,
        np.hypot(east, north), rtol=1e-4, atol=1e-3,
    )  # fmt: skip


def test_turbulence_has_its_size_and_its_length():
    from scipy.special import gamma, kv

    from cynosure.products.camera import displacement_mas
    from cynosure.products.scene import Atmosphere

    air = Atmosphere(turbulence_mas=20.0, turbulence_arcmin=6.0)
    along = np.array([0.0, 1.0, 3.0, 6.0, 12.0]) / 60.0
    dec = np.zeros(5)
    fields = np.array(
        [
            displacement_mas(np.random.default_rng(k), air, along, dec, dec, (0.0, 0.0, 0.0))
            for k in range(1500)
        ]
    )  # (draws, east and north, places)
    assert np.sqrt(np.mean(fields**2)) == pytest.approx(20.0, rel=0.03)
    correlation = np.mean(fields[..., :1] * fields, axis=(0, 1)) / 400.0
    r = along[1:] * 60.0 / 6.0
    matern = 2 ** (1 / 6) / gamma(5 / 6) * r ** (5 / 6) * kv(5 / 6, r)
    np.testing.assert_allclose(correlation[1:], matern, atol=0.04)


# ------------------------------------------------------------------------------- the pixels


def frame_of(files, ext=0):
    return fits.getdata(files.image, ext).astype(float)


def test_noise_is_that_of_sky_and_readout(tmp_path):
    detector = {"sky_e": 120.0, "read_noise_e": 5.0, "gain_e_adu": 2.0, "bias_adu": 300.0,
                "sky_terms": [0.0, 0.2, 0.0, 0.0, 0.1]}  # fmt: skip
    data = frame_of(simulate_scene(quiet(detector=detector).updated(BLANK), tmp_path))
    v, u = np.meshgrid(np.linspace(-1, 1, 512), np.linspace(-1, 1, 512), indexing="ij")
    sky = 120.0 * (1 + 0.2 * u + 0.1 * u * v)
    chi = (data - 300.0 - sky / 2.0) / np.sqrt(sky / 4.0 + 25.0 / 4.0 + 1.0 / 12.0)
    assert np.mean(chi) == pytest.approx(0, abs=4 / 512)
    assert np.mean(chi**2) == pytest.approx(1, abs=4 * np.sqrt(2) / 512)


@pytest.mark.parametrize("sky", [0.3, 5.0, 31.0, 400.0])
def test_counts_are_poisson(sky, tmp_path):
    from scipy.stats import poisson

    detector = {"sky_e": sky, "read_noise_e": 0.0}
    data = frame_of(simulate_scene(quiet(detector=detector).updated(BLANK), tmp_path))
    values, counts = np.unique(data, return_counts=True)
    n = data.size
    expected = n * poisson.pmf(values, sky)
    common = expected > 20
    chi2 = np.sum((counts - expected)[common] ** 2 / expected[common])
    dof = common.sum() - 1
    assert chi2 < dof + 5 * np.sqrt(2 * dof)
    assert (
        counts[~common].sum() < 6 * np.sqrt(expected[~common].sum() + 1) + expected[~common].sum()
    )


def test_fluxes_are_those_of_the_truth(tmp_path):
    import photutils.aperture as ap

    sky = {"n_stars": 25, "mag_bright": 13.0, "mag_faint": 15.0}
    scene = quiet(sky=sky, camera={"width_px": 600, "height_px": 600}, detector={"full_well_e": 1e7,
                  "dtype": "float32"})  # fmt: skip
    files = simulate_scene(scene, tmp_path)
    truth, data = truth_of(files), frame_of(files) - 100.0
    distance = np.hypot(*(truth[c][:, None] - truth[c] for c in ("x", "y"))) + 1e9 * np.eye(
        len(truth)
    )
    alone = (
        (distance.min(axis=0) > 25)
        & (np.abs(truth["x"] - 300) < 285)
        & (np.abs(truth["y"] - 300) < 285)
    )
    assert alone.sum() > 8
    spots = ap.CircularAperture(np.stack([truth["x"], truth["y"]], axis=1)[alone], r=9.0)
    flux = np.array(ap.aperture_photometry(data, spots)["aperture_sum"])
    error = np.sqrt(truth["flux_e"][alone] + spots.area * 109.0)
    pull = (flux - truth["flux_e"][alone]) / error
    assert np.abs(pull).max() < 4
    assert np.abs(np.mean(pull)) < 4 / np.sqrt(alone.sum())
    # A pixel that is centred on the star holds its peak.
    at = np.rint(truth["y"][alone]).astype(int), np.rint(truth["x"][alone]).astype(int)
    assert np.all(data[at] < truth["peak_e"][alone] * 1.05 + 50)
    assert np.median(data[at] / truth["peak_e"][alone]) == pytest.approx(0.9, abs=0.12)


def test_galaxies_are_wider_than_stars_and_have_no_bounds(tmp_path):
    sky = {"galaxy_fraction": 0.5, "galaxy_radius_arcsec": 3.0, "mag_bright": 13.0,
           "mag_faint": 15.0, "n_stars": 20}  # fmt: skip
    scene = quiet(
        sky=sky, camera={"width_px": 600, "height_px": 600}, detector={"full_well_e": 1e7}
    )
    files = simulate_scene(scene, tmp_path)
    truth, data = truth_of(files), frame_of(files) - 100.0
    galaxy = truth["kind"] == 2
    assert np.isnan(truth["x_crb"][galaxy]).all()
    assert np.isfinite(truth["x_crb"][~galaxy]).all()
    inside = (np.abs(truth["x"] - 300) < 280) & (np.abs(truth["y"] - 300) < 280)
    share = {True: [], False: []}
    for row in truth[inside]:
        j, i = np.indices(data.shape)
        near = np.hypot(i - row["x"], j - row["y"]) < 2.0
        share[bool(row["kind"] == 2)].append(data[near].sum() / row["flux_e"])
    assert np.median(share[True]) < 0.5 * np.median(share[False])


def test_saturated_stars_bleed_along_columns_and_keep_their_charge(tmp_path):
    base = {"sky": {"n_stars": 3, "mag_bright": 8.0, "mag_faint": 8.5, "high_pm_fraction": 0.0},
            "camera": {"width_px": 400, "height_px": 400}, "scene": {"seed": 4},
            "artefacts": {"mask": True}}  # fmt: skip
    dark = {"read_noise_e": 0.0, "dtype": "float32"}
    held = quiet(detector=dark | {"full_well_e": 20000.0}).updated(base)
    free = held.updated({"detector": {"full_well_e": 1e9}})
    lost = held.updated({"detector": {"bleeding": False}})
    a, b, c = (
        simulate_scene(scene, tmp_path / str(k)) for k, scene in enumerate((held, free, lost))
    )
    truth = truth_of(a)
    assert truth["saturated"].any()
    assert not truth_of(b)["saturated"].any()
    bled, whole, clipped = frame_of(a), frame_of(b), frame_of(c)
    assert bled.max() <= 20000.0
    assert whole.max() > 30000.0
    assert bled.sum() == pytest.approx(whole.sum(), rel=1e-6)
    assert clipped.sum() < 0.99 * whole.sum()
    mask = fits.getdata(a.mask)
    full = (mask & PixelTruth.SATURATED) > 0
    assert full.sum() > (whole > 20000.0).sum()
    rows, columns = np.nonzero(full)
    assert np.ptp(rows) > np.ptp(np.nonzero(whole > 20000.0)[0])
    wide = np.nonzero(whole > 20000.0 - 20)[1]
    assert set(columns) <= set(wide)
    header = fits.getheader(a.image)
    assert header["SATURATE"] == 20000.0


def test_artefacts_are_where_the_mask_says(tmp_path):
    artefacts = {"cosmic_rays": 200, "hot_fraction": 1e-3, "bad_columns": 3, "trails": 1,
                 "nan_blocks": 2, "nan_block_px": 20, "mask": True}  # fmt: skip
    deep = {"dtype": "float32", "full_well_e": 1e9}  # so that nothing bleeds to other pixels
    scene = quiet(artefacts=artefacts, detector=deep).updated(BLANK)
    files = simulate_scene(scene, tmp_path)
    data, mask = frame_of(files), fits.getdata(files.mask)
    nan = (mask & PixelTruth.MISSING) > 0
    np.testing.assert_array_equal(nan, np.isnan(data))
    assert 400 < nan.sum() <= 800
    dead = ((mask & PixelTruth.BAD_COLUMN) > 0) & ~nan
    assert len(set(np.nonzero(dead)[1])) in (2, 3)
    assert np.abs(data[dead].mean()) < 1
    clean = data[mask == 0]
    assert np.mean((clean - 100.0) ** 2) == pytest.approx(109.0, rel=0.05)  # trail wings included
    for bit, least in ((PixelTruth.COSMIC, 250), (PixelTruth.HOT, 200), (PixelTruth.TRAIL, 1000)):
        some = ((mask & bit) > 0) & (mask & (PixelTruth.MISSING | PixelTruth.BAD_COLUMN) == 0)
        assert some.sum() > least
        assert np.median(data[some]) > 130.0
    rows, columns = np.nonzero(mask & PixelTruth.TRAIL)
    assert max(np.ptp(rows), np.ptp(columns)) == 511


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", "float64"])
def test_files_have_the_type_that_was_asked_for(dtype, tmp_path):
    files = simulate_scene(quiet(detector={"dtype": dtype, "saturation_adu": 3000.0}), tmp_path)
    data = fits.getdata(files.image)
    assert data.dtype.newbyteorder("=") == np.dtype(dtype)
    assert data.max() == 3000
    assert np.median(data) == pytest.approx(100, abs=2)
    assert fits.getheader(files.image)["SATURATE"] == 3000.0


def test_the_header_says_what_the_detector_is(tmp_path):
    detector = {"gain_e_adu": 1.7, "read_noise_e": 6.0, "bias_adu": 100.0}
    header = fits.getheader(simulate_scene(quiet(detector=detector), tmp_path).image)
    assert (header["GAIN"], header["RDNOISE"], header["EXPTIME"]) == (1.7, 6.0, 20.0)
    assert header["DATE-OBS"] == "2025-07-02T12:00:00"
    assert header["SATURATE"] == pytest.approx(60000 / 1.7 + 100)


def test_a_scene_may_be_empty_or_a_pixel(tmp_path):
    files = simulate_scene(quiet().updated(BLANK), tmp_path)
    assert len(truth_of(files)) == 0
    assert len(gaia_of(files)) == 0
    one = {"width_px": 1, "height_px": 1}
    tiny = quiet(camera=one, sky={"n_stars": 0}, detector={"sky_terms": [0.0, 0.1]})
    assert fits.getdata(simulate_scene(tiny, tmp_path, overwrite=True).image).shape == (1, 1)
    with pytest.raises(SettingError, match="margin_deg"):
        simulate_scene(quiet(camera=one, sky={"margin_deg": 1.0}), tmp_path / "x")


# ------------------------------------------------------------------------------- the faults

FIELD = quiet(
    sky={"n_stars": 150, "mag_bright": 11.0},
    camera={"rotation_deg": 40.0},
    header={"pointing_error_deg": 0.01},
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Return the files of the field without a fault."""
    return simulate_scene(FIELD, tmp_path_factory.mktemp("sound"), seed=11)


def faulty(name, folder):
    files = simulate_scene(FIELD.updated({"scene": {"faults": [name]}}), folder, seed=11)
    record = json.loads(files.faults.read_text())
    assert [f["fault"] for f in record["faults"]] == [name]
    assert record["seed"] == 11
    return files, record["faults"][0]["facts"]


def same(files, sound, *but):
    """Demand that everything that a fault does not touch is as it was."""
    for name in ("image", "reference", "truth", "truth_wcs"):
        if name not in but:
            assert getattr(files, name).read_bytes() == getattr(sound, name).read_bytes(), name


def test_a_sound_scene_records_no_faults(sound):
    assert json.loads(sound.faults.read_text())["faults"] == []


def said_center(files):
    return wcs_of(files.image).all_pix2world(149.5, 99.5, 0)


HEADER_FAULTS = {
    "wrong_pointing": lambda f, s: abs(separation_deg(*said_center(f), 150.0, 30.0) - 0.5) < 1e-6,
    "wrong_rotation": lambda f, s: np.allclose(
        wcs_of(s.image).pixel_scale_matrix,
        np.array([[0, -1], [1, 0]]) @ wcs_of(f.image).pixel_scale_matrix,
    ),
    "wrong_scale": lambda f, s: np.allclose(
        wcs_of(f.image).pixel_scale_matrix, 1.08 * wcs_of(s.image).pixel_scale_matrix
    ),
    "absurd_pointing": lambda f, s: fits.getval(f.image, "CRVAL2") == -123.0,
    "no_wcs": lambda f, s: "CTYPE1" not in fits.getheader(f.image)
    and "RA" not in fits.getheader(f.image),
    "no_date": lambda f, s: "DATE-OBS" not in fits.getheader(f.image),
    "absurd_date": lambda f, s: fits.getval(f.image, "DATE-OBS").startswith("0000"),
    "no_gain": lambda f, s: not {"GAIN", "RDNOISE"} & set(fits.getheader(f.image)),
    "mirrored": lambda f, s: np.linalg.det(wcs_of(f.image).pixel_scale_matrix) > 0
    and np.allclose(  # the direction of +y is right
        wcs_of(f.image).pixel_scale_matrix[:, 1], wcs_of(s.image).pixel_scale_matrix[:, 1]
    )
    and separation_deg(*said_center(f), *said_center(s)) < 1e-9,
}  # fmt: skip


@pytest.mark.parametrize("name", HEADER_FAULTS)
def test_faults_of_the_header_are_only_in_the_header(name, sound, tmp_path):
    files, facts = faulty(name, tmp_path)
    assert facts
    assert HEADER_FAULTS[name](files, sound)
    assert not HEADER_FAULTS[name](sound, sound)
    same(files, sound, "image")
    np.testing.assert_array_equal(fits.getdata(files.image), fits.getdata(sound.image))


CATALOG_FAULTS = {
    "catalog_empty": lambda g, s: len(g) == 0,
    "catalog_elsewhere": lambda g, s: (
        len(g) == len(s) and separation_deg(g["ra"], g["dec"], s["ra"], s["dec"]).min() > 110
    ),
    "catalog_radians": lambda g, s: np.allclose(np.degrees(g["dec"]), s["dec"]),
}


@pytest.mark.parametrize("name", CATALOG_FAULTS)
def test_faults_of_the_catalogue_are_only_in_the_catalogue(name, sound, tmp_path):
    files, facts = faulty(name, tmp_path)
    assert facts[0]["n_entries"] == len(gaia_of(files))
    assert CATALOG_FAULTS[name](gaia_of(files), gaia_of(sound))
    assert not CATALOG_FAULTS[name](gaia_of(sound), gaia_of(sound))
    same(files, sound, "reference")


def pixels_all_nan(data, clean, facts):
    assert np.isnan(data).all()


def pixels_all_zero(data, clean, facts):
    assert not data.any()


def pixels_constant(data, clean, facts):
    assert np.all(data == 100)


def pixels_saturated_everywhere(data, clean, facts):
    assert np.all(data == 65535)


def pixels_nan_quarter(data, clean, facts):
    nan = np.isnan(data)
    assert nan.mean() == 0.25
    y, x = facts["y"], facts["x"]
    assert nan[y : y + 100, x : x + 150].all()
    assert np.abs(data - clean)[~nan].max() <= 0.5  # not rounded here, and rounded there


def pixels_fixed_quarter(data, clean, facts):
    box = slice(facts["y"], facts["y"] + 100), slice(facts["x"], facts["x"] + 150)
    assert np.all(data[box] == 100)
    data[box] = clean[box]
    np.testing.assert_array_equal(data, clean)


def pixels_hot_column(data, clean, facts):
    difference = data.astype(float) - clean
    column = facts["column"]
    assert difference[:, column].min() >= min(3000, 65535 - clean[:, column].max())
    difference[:, column] = 0
    assert not difference.any()


def pixels_dead_row(data, clean, facts):
    assert not data[facts["row"]].any()
    data[facts["row"]] = clean[facts["row"]]
    np.testing.assert_array_equal(data, clean)


def pixels_half_frame_offset(data, clean, facts):
    difference = data.astype(float) - clean
    assert not difference[:100].any()
    step = 15 * np.sqrt(109)
    assert np.all((np.abs(difference[100:] - step) <= 0.5) | (data[100:] == 65535))


def pixels_negative_background(data, clean, facts):
    assert np.mean(data < 0) == pytest.approx(0.5, abs=0.05)
    unclipped = clean < 60000
    assert np.abs(data + 100.0 - clean)[unclipped].max() <= 0.5


def pixels_bzero_integer(data, clean, facts):
    np.testing.assert_array_equal(data, clean)


def pixels_bscale_integer(data, clean, facts):
    assert np.abs(data - clean).max() <= 1


def pixels_cube(data, clean, facts):
    assert data.shape == (3, *clean.shape)
    for plane in data:
        np.testing.assert_array_equal(plane, clean)


def pixels_one_pixel(data, clean, facts):
    np.testing.assert_array_equal(data, clean[:1, :1])


PIXEL_FAULTS = {
    k.removeprefix("pixels_"): f for k, f in globals().items() if k.startswith("pixels_")
}


@pytest.mark.parametrize("name", PIXEL_FAULTS)
def test_faults_of_the_pixels_are_only_in_the_pixels(name, sound, tmp_path):
    files, facts = faulty(name, tmp_path)
    same(files, sound, "image", "truth" if name == "negative_background" else "")
    data, clean = fits.getdata(files.image), fits.getdata(sound.image)
    PIXEL_FAULTS[name](data, clean, facts[-1] if facts else None)


def test_integers_are_scaled_as_the_header_says(tmp_path):
    for name, bscale in (("bzero_integer", 1), ("bscale_integer", 2)):
        files, _ = faulty(name, tmp_path / name)
        with fits.open(files.image, do_not_scale_image_data=True) as hdus:
            header = hdus[0].header
        assert (header["BITPIX"], header.get("BSCALE", 1), header["BZERO"]) == (16, bscale, 32768)


def test_faults_of_the_sky(sound, tmp_path):
    files, _ = faulty("no_stars", tmp_path / "a")
    assert len(truth_of(files)) == 0
    data = frame_of(files)
    assert np.std(data) == pytest.approx(np.sqrt(109), rel=0.02)
    assert len(gaia_of(files)) == len(gaia_of(sound))
    files, _ = faulty("three_stars", tmp_path / "b")
    truth = truth_of(files)
    assert len(truth) == 3
    assert not truth["saturated"].any()
    data = frame_of(files) - 100
    j, i = np.indices(data.shape)
    near = np.any([np.hypot(i - r["x"], j - r["y"]) < 12 for r in truth], axis=0)
    assert np.std(data[~near]) == pytest.approx(np.sqrt(109), rel=0.02)
    assert data[near].sum() == pytest.approx(truth["flux_e"].sum(), rel=0.05)
    files, _ = faulty("one_trail", tmp_path / "c")
    assert len(truth_of(files)) == 0
    bright = frame_of(files) > 100 + 8 * np.sqrt(109)
    rows, columns = np.nonzero(bright)
    edges = (rows.min() == 0, rows.max() == 199, columns.min() == 0, columns.max() == 299)
    assert sum(edges) >= 2  # from one edge to another
    _, values, _ = np.linalg.svd(np.stack([rows, columns], 1) - [rows.mean(), columns.mean()])
    assert values[1] < 0.02 * values[0]  # a line


def test_faults_of_the_file(sound, tmp_path):
    files, facts = faulty("truncated", tmp_path / "a")
    whole = sound.image.read_bytes()
    assert files.image.read_bytes() == whole[: int(0.6 * len(whole))]
    assert facts[0] == {"bytes": int(0.6 * len(whole)), "bytes_whole": len(whole)}
    files, _ = faulty("empty_file", tmp_path / "b")
    assert files.image.stat().st_size == 0
    files, _ = faulty("not_fits", tmp_path / "c")
    with pytest.raises(OSError, match="SIMPLE"):
        fits.open(files.image)
    files, _ = faulty("no_image", tmp_path / "d")
    with fits.open(files.image) as hdus:
        assert [type(h).__name__ for h in hdus] == ["PrimaryHDU", "BinTableHDU"]
        assert hdus[0].data is None
    same(files, sound, "image")


def test_every_fault_is_tested():
    sky = {"no_stars", "three_stars", "one_trail"}
    file = {"truncated", "empty_file", "not_fits", "no_image"}
    assert set(FAULTS) == sky | file | set(HEADER_FAULTS) | set(CATALOG_FAULTS) | set(PIXEL_FAULTS)


def test_faults_add_up_and_an_unknown_one_is_refused(tmp_path):
    two = FIELD.updated({"scene": {"faults": ["no_date", "hot_column"]}})
    files = simulate_scene(two, tmp_path)
    record = json.loads(files.faults.read_text())["faults"]
    assert [f["fault"] for f in record] == ["no_date", "hot_column"]
    assert "DATE-OBS" not in fits.getheader(files.image)
    with pytest.raises(SettingError, match="no fault 'no_dates'"):
        simulate_scene(FIELD.updated({"scene": {"faults": ["no_dates"]}}), tmp_path / "none")
    assert not (tmp_path / "none").exists()
