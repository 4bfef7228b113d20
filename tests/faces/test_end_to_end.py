"""The whole way: a simulated image through the real command, held to its planted truth."""

import json
import logging

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from cynosure.data.catalogs.build import build_refcat
from cynosure.data.tables import MATCHES, read_parquet
from cynosure.faces import cli
from cynosure.ground.sky import separation_deg
from cynosure.products.simulate import load_scene, simulate_scene

SIZE = 1024


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Give a folder with a simulated image, its catalogue, and a copy under another name."""
    folder = tmp_path_factory.mktemp("night")
    scene = load_scene("demo").updated(
        {"sky": {"n_stars": 500}, "camera": {"width_px": SIZE, "height_px": SIZE}}
    )
    files = simulate_scene(scene, folder)
    build_refcat([files.reference], folder / "refcat")
    (folder / "second.fits").write_bytes(files.image.read_bytes())
    return folder


@pytest.fixture(autouse=True)
def no_handlers(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield
    logger = logging.getLogger("cynosure")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def solve(night, *arguments, images=("demo.fits",)):
    names = [str(night / name) for name in images]
    return cli.run(["solve", *names, "--refcat", str(night / "refcat"), *arguments])


def wcs_of(path):
    """Return the WCS of a file that may hold a header only."""
    header = fits.getheader(path)
    del header["NAXIS*"]
    return WCS(header, fix=False)


def worst_error_mas(night, path):
    """Return how far a file's WCS is from the true one anywhere in the frame."""
    x, y = (v.ravel() for v in np.meshgrid(*[np.linspace(0, SIZE - 1, 12)] * 2))
    true = wcs_of(night / "demo_truth.wcs.fits").all_pix2world(x, y, 0)
    return 3.6e6 * separation_deg(*true, *wcs_of(path).all_pix2world(x, y, 0)).max()


@pytest.fixture(scope="module")
def solved(night):
    out = night / "solved"
    assert solve(night, "--out", str(out)) == 0
    return out


def test_the_files_of_the_contract(solved):
    names = {p.name for p in solved.iterdir()}
    assert {"demo_wcs.fits", "demo.solution.json", "demo.matches.parquet", "report.html",
            "run.json", "run.log"} <= names
    assert not [n for n in names if n.endswith(".tmp")]


def test_the_wcs_is_the_true_one_within_its_own_error(night, solved):
    record = json.loads((solved / "demo.solution.json").read_text())
    assert record["status"] == "solved"
    worst = worst_error_mas(night, solved / "demo_wcs.fits")
    assert worst < 5.0 * record["wcs_error_mas"]["corner"]
    assert worst < 100.0, "an eighth of a pixel"


def test_the_record_agrees_with_the_matches(solved):
    record = json.loads((solved / "demo.solution.json").read_text())
    matches = read_parquet(solved / "demo.matches.parquet", MATCHES)
    used, reserved = matches[matches["used"]], matches[matches["reserved"]]
    assert record["n_matched"] == len(matches)
    assert record["n_used"] == len(used)
    assert record["n_reserved"] == len(reserved)
    assert record["rms_ra_mas"] == pytest.approx(np.sqrt(np.mean(used["dra_mas"] ** 2)), rel=1e-6)
    assert record["rms_reserved_dec_mas"] == pytest.approx(
        np.sqrt(np.mean(reserved["ddec_mas"] ** 2)), rel=1e-6
    )
    header = fits.getheader(solved / "demo_wcs.fits")
    assert header["WCSNAME"] == record["wcsname"]


def test_pixels_and_cards_are_kept(night, solved):
    with fits.open(night / "demo.fits") as before, fits.open(solved / "demo_wcs.fits") as after:
        assert np.array_equal(before[0].data, after[0].data)
        old, new = before[0].header, after[0].header
        kept = [k for k in old if k and not k.startswith(("CR", "CD", "CTYPE", "WCS", "PV", "CHECK",
                                                           "DATASUM", "CUNIT", "LON", "LAT",
                                                           "HISTORY", "COMMENT", "CDELT", "RADE"))]
        assert kept
        for key in kept:
            assert new[key] == old[key], key


def test_the_number_of_workers_changes_no_bit(night, solved, tmp_path):
    arguments = ("--out", str(tmp_path), "--no-report", "--workers", "2")
    assert solve(night, *arguments, images=("demo.fits", "second.fits")) == 0
    one = read_parquet(solved / "demo.matches.parquet", MATCHES)
    for name in ("demo", "second"):
        two = read_parquet(tmp_path / f"{name}.matches.parquet", MATCHES)
        assert two.tobytes() == one.tobytes()
        first = fits.getheader(solved / "demo_wcs.fits")
        second = fits.getheader(tmp_path / f"{name}_wcs.fits")
        terms = [k for k in first if k.startswith(("CRVAL", "CRPIX", "CD", "PV"))]
        assert len(terms) > 10
        assert [first[k] for k in terms] == [second[k] for k in terms]


def test_header_only_and_sip(night, tmp_path):
    out = tmp_path / "o"
    assert solve(night, "--out", str(out), "--header-only", "--form", "sip", "--no-report") == 0
    assert fits.getheader(out / "demo.wcs.fits")["CTYPE1"] == "RA---TAN-SIP"
    assert worst_error_mas(night, out / "demo.wcs.fits") < 100.0
    assert not (out / "demo_wcs.fits").exists()


def test_a_hopeless_image_fails_alone(night, tmp_path, capsys):
    rng = np.random.default_rng(1)
    noise = rng.normal(100, 5, (256, 256)).astype("f4")
    header = fits.Header({"RA": 10.0, "DEC": 20.0, "PIXSCALE": 0.8, "DATE-OBS": "2024-01-01"})
    fits.writeto(night / "noise.fits", noise, header, overwrite=True)
    (night / "broken.fits").write_bytes(b"SIMPLE  =")
    out = tmp_path / "o"
    code = solve(night, "--out", str(out), "--no-report", "--json",
                 images=("noise.fits", "demo.fits", "broken.fits"))
    assert code == 3
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    status = {r["image"].rpartition("/")[2]: (r["status"], r["exit_code"]) for r in records}
    assert status["demo.fits"] == ("solved", 0)
    assert status["broken.fits"] == ("failed", 16)
    assert status["noise.fits"][0] == "failed"
    for name in ("noise", "broken"):
        assert json.loads((out / f"{name}.solution.json").read_text())["status"] == "failed"
        assert not (out / f"{name}_wcs.fits").exists()


def test_doctor(night, capsys):
    assert cli.run(["doctor", str(night / "demo.fits")]) == 0
    out = capsys.readouterr().out
    assert f"{SIZE} x {SIZE} px" in out
    assert "WCS RA---TAN" in out
    assert cli.run(["doctor"]) == 0
    assert "self-test    solved" in capsys.readouterr().out


def test_cone_and_info(night, capsys):
    assert cli.run(["refcat", "info", str(night / "refcat"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"] > 500
    arguments = ["refcat", "cone", str(night / "refcat"), "148.97", "69.68", "0.02"]
    assert cli.run([*arguments, "--json"]) == 0
    stars = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert stars
    mags = [star["mag"] for star in stars]
    assert mags == sorted(mags)
    assert max(
        separation_deg(148.97, 69.68, star["ra_deg"], star["dec_deg"]) for star in stars
    ) <= 0.02
