"""Bad input: each kind ends in one clear error, the right exit code, and nothing half-written."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from cynosure.data.catalogs.build import build_refcat
from cynosure.data.catalogs.refcat import open_refcat
from cynosure.faces import cli
from cynosure.ground.errors import ExitCode, OutputExists
from cynosure.products.simulate import Scene, simulate_scene

SCENE = Scene().updated({
    "scene": {"name": "field", "seed": 11},
    "sky": {"n_stars": 220, "margin_deg": 0.7, "mag_bright": 11.0, "mag_faint": 18.0,
            "galaxy_fraction": 0.0, "binary_fraction": 0.0},
    "camera": {"width_px": 440, "height_px": 400, "scale_arcsec": 1.0, "zero_point_mag": 26.0},
    "psf": {"fwhm_px": 2.5},
    "detector": {"sky_e": 150.0, "bias_adu": 200.0},
    "header": {"pointing_error_deg": 0.02, "rotation_error_deg": 1.0},
})  # fmt: skip


def simulate(folder, *faults, **sections):
    """Make the image of the scene with faults; the sky, and so the catalogue, stays the same."""
    scene = dataclasses.replace(SCENE.updated(sections), faults=faults)
    return simulate_scene(scene, folder)


@pytest.fixture(scope="session")
def sky(tmp_path_factory):
    """Give a good image and the catalogue of its region."""
    folder = tmp_path_factory.mktemp("sky")
    files = simulate(folder)
    build_refcat([files.reference], folder / "gaia", name="Gaia DR3")
    return files.image, folder / "gaia", files.reference


@pytest.fixture
def run(sky, tmp_path, capsys):
    """Give a function that runs ``cynosure solve`` here and returns what a user would see."""

    def call(*images, refcat=sky[1], out=tmp_path / "out", options=(), raises=False):
        arguments = ["solve", *map(str, images), "--refcat", str(refcat), "--out", str(out)]
        code = cli.run([*arguments, "--no-report", *map(str, options)])
        seen = capsys.readouterr()
        return Seen(code, seen.out, seen.err, Path(out))

    return call


@dataclasses.dataclass
class Seen:
    code: int
    out: str
    err: str
    folder: Path

    @property
    def text(self):
        return self.out + self.err

    def solution(self, stem="field"):
        return json.loads((self.folder / f"{stem}.solution.json").read_text())

    def names(self):
        return {p.name for p in self.folder.iterdir()}


ALWAYS = {"run.json", "run.log"}
PRODUCTS = {"field_wcs.fits", "field.matches.parquet", "field.report.npz", "field.solution.json"}


def assert_refused(seen, code, *words, wrote=("field.solution.json",)):
    """Say that a run of one image ended in one clear error and left nothing half-done."""
    assert seen.code == code, seen.text
    assert "Traceback" not in seen.text
    assert seen.out.count("FAILED") == 1
    record = seen.solution()
    assert record["status"] == "failed"
    assert record["exit_code"] == code
    assert record["hints"], "it says what to try"
    assert all(h in seen.out for h in record["hints"])
    for word in words:
        assert word in record["reason"], record["reason"]
        assert word in seen.out
    assert f"(exit {int(code)})" in seen.out
    assert "0 solved · 0 compromised · 1 failed" in seen.out
    assert seen.names() == {*ALWAYS, *wrote}


# --------------------------------------------------------------------------- files and pixels
READ = ExitCode.IMAGE_UNREADABLE
FILES = [
    ("not_fits", READ, ("not a FITS file",)),
    ("empty_file", READ, ("empty file",)),
    ("truncated", READ, ("truncated", "needs")),
    ("no_image", READ, ("no image extension", "2 HDU")),
    ("all_nan", READ, ("every pixel is NaN",)),
    ("all_zero", READ, ("every pixel is zero",)),
    ("constant", READ, ("every pixel is 3",)),
    ("saturated_everywhere", READ, ("every pixel is 65535",)),
    ("one_pixel", READ, ("1x1 pixels",)),
    ("cube", READ, ("cube of 440x400x3", "3 planes")),
]


@pytest.mark.parametrize(("fault", "code", "words"), FILES, ids=[f[0] for f in FILES])
def test_files_without_a_sky(run, tmp_path, fault, code, words):
    image = simulate(tmp_path / "in", fault).image
    assert_refused(run(image), code, *words)


def test_nearly_everything_saturated(run, tmp_path, sky):
    with fits.open(sky[0]) as hdus:
        pixels = hdus[0].data.copy()
        pixels[:300] = 65535
        fits.PrimaryHDU(pixels, hdus[0].header).writeto(tmp_path / "field.fits")
    assert_refused(run(tmp_path / "field.fits"), READ, "75% of the pixels", "saturation")


def test_an_image_that_is_not_there(run, tmp_path):
    seen = run(tmp_path / "field.fits")
    assert_refused(seen, READ, "no such file")


def test_a_folder_instead_of_an_image(run, tmp_path):
    (tmp_path / "field.fits").mkdir()
    assert_refused(run(tmp_path / "field.fits"), READ)


# ---------------------------------------------------------------------------------- few stars
STARS = {"field.solution.json", "field.report.npz"}


def test_nothing_but_sky(run, tmp_path):
    image = simulate(tmp_path / "in", "no_stars").image
    seen = run(image)
    assert_refused(seen, ExitCode.NOT_ENOUGH_STARS, "stars found", "needed", wrote=STARS)


def test_three_stars(run, tmp_path):
    image = simulate(tmp_path / "in", "three_stars").image
    seen = run(image)
    assert_refused(seen, ExitCode.NOT_ENOUGH_STARS, "3 stars found, 5 needed", wrote=STARS)
    assert "threshold" in seen.out


def test_a_satellite_trail_and_nothing_else(run, tmp_path):
    image = simulate(tmp_path / "in", "one_trail").image
    seen = run(image)
    assert seen.code in (ExitCode.NO_SOLUTION, ExitCode.NOT_ENOUGH_STARS)
    assert_refused(seen, seen.code, wrote=STARS)


# ------------------------------------------------------------- what does not keep it from solving
@pytest.mark.parametrize(
    "fault", ["bzero_integer", "bscale_integer", "nan_quarter", "no_gain", "hot_column", "mirrored"]
)
def test_odd_images_are_solved(run, tmp_path, fault):
    seen = run(simulate(tmp_path / "in", fault).image)
    assert seen.code == 0, seen.text
    assert "1 solved" in seen.out
    assert seen.names() == ALWAYS | PRODUCTS


def test_a_missing_date_is_said_and_widens_the_errors(run, tmp_path):
    image = simulate(tmp_path / "in", "no_date").image
    seen = run(image)
    assert seen.code in (0, ExitCode.NOT_VERIFIED), seen.text
    assert "--epoch" in seen.out
    assert "errors that cover 10 years" in seen.out
    told = run(image, out=tmp_path / "told", options=["--epoch", 2025.5])
    assert told.code == 0
    assert "--epoch" not in told.out
    wide, narrow = seen.solution(), told.solution()
    assert wide["wcs_error_mas"]["center"] > 1.2 * narrow["wcs_error_mas"]["center"]
    assert narrow["epoch_yr"] == 2025.5


# ---------------------------------------------------------------------------- absurd pointings
def with_cards(path, image, **cards):
    """Copy an image with cards whose value is put in byte for byte, as a broken telescope would."""
    data = image.read_bytes()
    for key, value in cards.items():
        start = data.index(f"{key:<8}=".encode())
        data = data[:start] + f"{key:<8}= {value:>20}".encode().ljust(80) + data[start + 80:]
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("cards", [
    {"CRVAL2": "95.0"}, {"CRVAL1": "NaN"}, {"CRVAL1": "512.0", "CRVAL2": "-123.0"},
    {"CRVAL1": "'unknown'"}, {"CD1_1": "0.0", "CD1_2": "0.0"},
], ids=["dec 95", "ra nan", "beyond", "text", "flat"])  # fmt: skip
def test_a_header_that_points_nowhere_is_not_believed(run, tmp_path, sky, cards):
    seen = run(with_cards(tmp_path / "field.fits", sky[0], **cards))
    assert "Traceback" not in seen.text
    assert seen.code == 0, seen.text
    assert "note" in seen.out
    record = seen.solution()
    assert record["center_ra_deg"] == pytest.approx(150.0, abs=0.01)
    assert record["center_dec_deg"] == pytest.approx(30.0, abs=0.01)


def test_the_wrong_hemisphere(run, tmp_path, sky):
    seen = run(with_cards(tmp_path / "field.fits", sky[0], CRVAL2="-30.0"))
    assert_refused(seen, ExitCode.NO_CATALOG, "GAIADR3 has no stars within", "-30.0",
                   "lie within", "+29.99", wrote=STARS)


@pytest.mark.parametrize("center", [("200", "95"), ("nan", "10"), ("ten", "20")])
def test_a_center_that_is_not_on_the_sky_is_an_error_of_the_command(run, sky, center):
    seen = run(sky[0], options=["--center", *center])
    assert seen.code == ExitCode.USAGE
    assert seen.err.startswith("error: ")
    assert "try: " in seen.err
    assert not seen.folder.exists()


# --------------------------------------------------------------------------------- catalogues
def test_no_catalogue(run, sky, tmp_path):
    seen = run(sky[0], refcat=tmp_path / "nowhere")
    assert seen.code == ExitCode.NO_CATALOG
    assert "nowhere" in seen.err
    assert "cynosure refcat" in seen.err
    assert seen.names() <= ALWAYS


def test_a_catalogue_of_another_region(run, sky, tmp_path):
    other = simulate(tmp_path / "in", "catalog_elsewhere").reference
    build_refcat([other], tmp_path / "gaia", name="Gaia DR3")
    seen = run(sky[0], refcat=tmp_path / "gaia")
    assert_refused(seen, ExitCode.NO_CATALOG, "no stars within", "lie within", wrote=STARS)
    assert "cynosure refcat fetch" in seen.out


def test_a_catalogue_in_radians_that_does_not_say_so(run, sky, tmp_path):
    other = simulate(tmp_path / "in", "catalog_radians").reference
    build_refcat([other], tmp_path / "gaia", name="Gaia DR3")
    seen = run(sky[0], refcat=tmp_path / "gaia")
    assert_refused(seen, ExitCode.NO_CATALOG, "radians?", wrote=STARS)


def test_a_catalogue_whose_units_are_declared(run, sky, tmp_path):
    stars = open_refcat(sky[1]).all()
    table = Table({"ra": np.radians(stars["ra_deg"]), "dec": np.radians(stars["dec_deg"]),
                   "mag": stars["mag"]})
    table["ra"].unit = table["dec"].unit = "rad"
    table.write(tmp_path / "good.ecsv")
    assert run(sky[0], refcat=tmp_path / "good.ecsv").code in (0, ExitCode.NOT_VERIFIED)
    table["ra"].unit = "m"
    table.write(tmp_path / "bad.ecsv")
    seen = run(sky[0], refcat=tmp_path / "bad.ecsv", out=tmp_path / "out2")
    assert seen.code == ExitCode.CATALOG_DAMAGED
    assert "'ra' is in 'm'" in seen.err
    assert "try: " in seen.err


def test_an_empty_catalogue(run, sky, tmp_path):
    table = simulate(tmp_path / "in", "catalog_empty").reference
    seen = run(sky[0], refcat=table)
    assert seen.code == ExitCode.NO_CATALOG
    assert "no rows" in seen.err


def test_a_catalogue_that_is_no_catalogue(run, sky, tmp_path):
    (tmp_path / "stars.parquet").write_bytes(b"PAR1 nothing PAR1")
    seen = run(sky[0], refcat=tmp_path / "stars.parquet")
    assert seen.code == ExitCode.CATALOG_DAMAGED
    assert "stars.parquet" in seen.err


def test_a_catalogue_with_a_part_missing(run, sky, tmp_path):
    shutil.copytree(sky[1], tmp_path / "gaia")
    for part in (tmp_path / "gaia").rglob("Npix=*.parquet"):
        part.write_bytes(part.read_bytes()[:2000])
    seen = run(sky[0], refcat=tmp_path / "gaia")
    assert seen.code == ExitCode.CATALOG_DAMAGED, seen.text
    assert "Traceback" not in seen.text


# ------------------------------------------------------------------------------------- output
def mountable(folder, options):
    """Mount a file system of memory; False where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def disk(tmp_path):
    """Give a function that mounts a small or a read-only disk."""
    mounted = []

    def mount(options):
        folder = tmp_path / "disk"
        if not mountable(folder, options):
            pytest.skip("mounting is not allowed")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_file_where_the_folder_is_to_be(run, sky, tmp_path):
    (tmp_path / "out").write_text("mine")
    seen = run(sky[0])
    assert seen.code == ExitCode.OUTPUT_UNWRITABLE
    assert str(tmp_path / "out") in seen.err
    assert "try: " in seen.err
    assert (tmp_path / "out").read_text() == "mine"


def test_a_disk_that_cannot_be_written(run, sky, disk):
    folder = disk("ro")
    for out in (folder / "out", folder):
        seen = run(sky[0], out=out)
        assert seen.code == ExitCode.OUTPUT_UNWRITABLE
        assert "read-only" in seen.err
        assert "Traceback" not in seen.text


@pytest.mark.parametrize("size", ["16k", "300k", "640k"])
def test_a_disk_that_is_full(run, sky, disk, size):
    folder = disk(f"size={size}")
    seen = run(sky[0], out=folder)
    assert seen.code == ExitCode.OUTPUT_UNWRITABLE, seen.text
    assert "no space left" in seen.text
    assert "Traceback" not in seen.text
    left = {p.name for p in folder.iterdir()}
    assert not [n for n in left if n.startswith(".") or n.endswith(".tmp")]
    if "field_wcs.fits" in left:  # what is there is whole
        with fits.open(folder / "field_wcs.fits", checksum=True) as hdus:
            assert hdus[0].data.shape == (400, 440)


# Every product with an error, and every error with a product: they do not depend on each other.
@pytest.mark.parametrize(("number", "product"), [
    (errno.ENOSPC, "field_wcs.fits"), (errno.EROFS, "field.matches.parquet"),
    (errno.EIO, "field.solution"), (errno.EDQUOT, "field_wcs.fits"),
])  # fmt: skip
def test_a_write_that_fails_leaves_nothing_half_written(
    run, sky, tmp_path, monkeypatch, number, product
):
    real = os.fsync

    def fsync(handle):
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if path.name.startswith(f".{product}"):
            raise OSError(number, os.strerror(number))
        real(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    monkeypatch.setattr(os, "fsync", fsync)
    seen = run(sky[0])
    assert seen.code == ExitCode.OUTPUT_UNWRITABLE, seen.text
    assert product in seen.text
    assert os.strerror(number).lower() in seen.text.lower()
    assert "Traceback" not in seen.text
    assert not [n for n in seen.names() if n.startswith(".") or n.endswith(".tmp")]
    monkeypatch.setattr(os, "fsync", real)
    again = run(sky[0])
    assert again.code == 0, again.text
    assert again.names() == ALWAYS | PRODUCTS


def test_an_image_that_cannot_be_changed_in_place_stays_as_it_was(run, sky, tmp_path, monkeypatch):
    image = tmp_path / "field.fits"
    shutil.copy(sky[0], image)
    real = os.fsync

    def fsync(handle):
        if "field.fits" in Path(f"/proc/self/fd/{handle}").readlink().name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    monkeypatch.setattr(os, "fsync", fsync)
    seen = run(image, options=["--in-place"])
    assert seen.code == ExitCode.OUTPUT_UNWRITABLE
    assert image.read_bytes() == sky[0].read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"field.fits", "out"}


def test_output_that_is_there(run, sky, tmp_path):
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "field_wcs.fits"
    mine.write_text("mine")
    seen = run(sky[0])
    assert seen.code == ExitCode.OUTPUT_EXISTS
    assert "field_wcs.fits exists already" in seen.out
    assert OutputExists.hint in seen.out
    assert mine.read_text() == "mine"
    assert seen.names() == ALWAYS | {"field_wcs.fits"}
    assert run(sky[0], options=["--overwrite"]).code == 0
    with fits.open(mine) as hdus:
        assert "WCSNAME" in hdus[0].header


# -------------------------------------------------------------------------------------- batches
def test_a_bad_image_does_not_touch_the_good_ones(run, sky, tmp_path):
    for name in ("a.fits", "c.fits"):
        shutil.copy(sky[0], tmp_path / name)
    (tmp_path / "b.fits").write_text("not an image")
    images = [tmp_path / f"{n}.fits" for n in "abc"]
    seen = run(*images)
    assert seen.code == ExitCode.MIXED
    assert "2 solved · 0 compromised · 1 failed" in seen.out
    assert [seen.solution(n)["status"] for n in "abc"] == ["solved", "failed", "solved"]
    assert {f"{n}_wcs.fits" for n in "ac"} <= seen.names()
    assert "b_wcs.fits" not in seen.names()
    manifest = json.loads((seen.folder / "run.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["tally"] == {"solved": 2, "compromised": 0, "failed": 1}
    again = run(*images)
    assert again.out.count("FAILED") == 1, "the failure is tried again, what is solved is not"


def test_json_of_a_failure(run, tmp_path):
    (tmp_path / "field.fits").write_text("not an image")
    seen = run(tmp_path / "field.fits", options=["--json"])
    (line,) = seen.out.splitlines()
    record = json.loads(line)
    assert record["status"] == "failed"
    assert record["exit_code"] == seen.code == READ
    assert record["reason"]
    assert record["hints"]


# --------------------------------------------------------------- interrupted, killed, too slow
def start(sky, folder, n, *options):
    """Start the command on n copies of the good image."""
    images = []
    for k in range(n):
        images.append(folder / f"n{k}.fits")
        shutil.copy(sky[0], images[-1])
    arguments = ["solve", *map(str, images), "--refcat", str(sky[1]), "--out",
                 str(folder / "out"), "--no-report", *options]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cynosure", *arguments], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment,
    )
    return process, arguments


def wait_for_first(process, folder):
    """Wait until one image is done."""
    manifest = folder / "out" / "run.json"
    until = time.monotonic() + 600
    while time.monotonic() < until and process.poll() is None:
        if manifest.exists() and '"solved"' in manifest.read_text().partition('"images"')[2]:
            return
        time.sleep(0.02)
    pytest.fail(f"nothing was solved: {process.communicate()}")


@pytest.mark.parametrize(
    ("number", "options"),
    [(signal.SIGINT, ()), (signal.SIGTERM, ()), (signal.SIGINT, ("--workers", "2")),
     (signal.SIGKILL, ())],
    ids=["interrupted", "terminated", "interrupted with workers", "killed"],
)  # fmt: skip
def test_a_run_that_is_cut_short_goes_on_where_it_was(sky, tmp_path, capsys, number, options):
    n = 5
    process, arguments = start(sky, tmp_path, n, *options)
    wait_for_first(process, tmp_path)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert "Traceback" not in out + err
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == ExitCode.INTERRUPTED, out + err
        assert "run the same command again" in err
        left = [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]
        assert not left, "only what is killed leaves a temporary file"
    manifest = json.loads((tmp_path / "out" / "run.json").read_text())
    done = [s for s, row in manifest["images"].items() if row["status"] == "solved"]
    assert 0 < len(done) < n
    for stem in done:
        with fits.open(tmp_path / "out" / f"{stem}_wcs.fits", checksum=True) as hdus:
            assert hdus[0].data.shape == (400, 440)
    code, seen = cli.run(arguments), capsys.readouterr()
    assert code == 0, seen.out + seen.err
    assert seen.out.count("SOLVED") == n - len(done)
    assert seen.err.count("done before") == len(done)
    manifest = json.loads((tmp_path / "out" / "run.json").read_text())
    assert manifest["tally"]["solved"] == n
    assert manifest["state"] == "finished"


def test_an_image_that_takes_too_long(sky, tmp_path):
    process, arguments = start(sky, tmp_path, 1, "--timeout", "0.05")
    out, err = process.communicate(timeout=600)
    assert process.returncode == ExitCode.TEMPORARY, out + err
    assert "not finished after 0.05 s" in out
    assert "--timeout" in out
    record = json.loads((tmp_path / "out" / "n0.solution.json").read_text())
    assert record["status"] == "failed"
    assert {p.name for p in (tmp_path / "out").iterdir()} == ALWAYS | {"n0.solution.json"}
    assert cli.run([*arguments[:-1], "300"]) == 0


# ----------------------------------------------------------------------------- a million sources
@pytest.mark.slow
def test_a_million_sources(tmp_path):
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(2)
    size, n, scale = 5000, 1_000_000, 0.5 / 3600.0
    x, y = rng.uniform(0, size - 1, (2, n))
    flux = 250.0 * rng.uniform(0, 1, n) ** (-1 / 1.3)
    image = np.zeros((size, size), np.float32)
    np.add.at(image, (np.rint(y).astype(int), np.rint(x).astype(int)), flux.astype(np.float32))
    image = gaussian_filter(image, 0.95, truncate=4.0)
    image += rng.normal(100.0, 10.0, image.shape)
    header = fits.Header({
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 2500.5, "CRPIX2": 2500.5,
        "CRVAL1": 266.4, "CRVAL2": -29.0, "CD1_1": -scale, "CD2_2": scale, "CD1_2": 0.0,
        "CD2_1": 0.0, "CUNIT1": "deg", "CUNIT2": "deg", "DATE-OBS": "2016-01-01T12:00:00",
        "MJD-OBS": 57388.5,
    })  # fmt: skip
    from astropy.wcs import WCS

    bright = np.argsort(-flux)[:300_000]
    ra, dec = WCS(header).all_pix2world(np.rint(x[bright]), np.rint(y[bright]), 0)
    stars = Table({"ra": ra, "dec": dec, "phot_g_mean_mag": 25 - 2.5 * np.log10(flux[bright]),
                   "source_id": bright})
    stars.write(tmp_path / "stars.fits")
    header["CRVAL1"] += 0.01
    fits.PrimaryHDU(image, header).writeto(tmp_path / "rich.fits")
    refcat = tmp_path / "gaia"
    build_refcat([tmp_path / "stars.fits"], refcat, name="dense", ref_epoch_yr=2016.0,
                 position_error_mas=1.0)
    code = (
        "import resource, sys; from cynosure.faces import cli; code = cli.run(sys.argv[1:]);"
        "print('MB', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024); sys.exit(code)"
    )
    arguments = ["solve", str(tmp_path / "rich.fits"), "--refcat", str(refcat), "--out",
                 str(tmp_path / "out"), "--no-report"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "out" / "rich.solution.json").read_text())
    assert record["n_sources"] > 500_000
    assert record["center_ra_deg"] == pytest.approx(266.4, abs=2e-4)
    assert int(done.stdout.split("MB")[1]) < 6000
