"""The command: its words, exit codes, files, and what it does with mistakes.

The solve door is played by a stand-in that tells an image's fate from its text; the real one is
tried in test_end_to_end.
"""

import json
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from outcomes import make_matches, make_solution

from cynosure.data.fits.file import file_sha256
from cynosure.data.tables import MATCHES, write_parquet
from cynosure.faces import cli
from cynosure.faces.commands.task import find_file
from cynosure.faces.shell import is_first_run
from cynosure.ground.errors import (
    CatalogMissing,
    ExitCode,
    ImageError,
    NoMatch,
    NotEnoughStars,
    SettingError,
)
from cynosure.ground.quantities import sky_position
from cynosure.pipelines.manifest import stem_of
from cynosure.pipelines.run import run_images
from cynosure.solutions.solution import Solution

FATES = {
    "no": lambda image: NoMatch(image=image, n_sources=9, n_reference=214),
    "few": lambda image: NotEnoughStars(image=image, n_sources=3, needed=8),
    "cat": lambda image: CatalogMissing(catalog="gaia", reason="does not cover the field"),
}


@pytest.fixture
def door(monkeypatch):
    """Put a stand-in in the place of the solve door; it notes what it was asked."""
    asked = {}

    def run_solve(images, refcat, out, *, settings, workers, timeout_s, overwrite, watch,
                  on_record, facts, **options):
        asked.update(options, refcat=refcat, settings=settings, workers=workers)
        out = Path(out)

        def work(payload, log):
            image, _ = payload
            log("match")
            fate = Path(image).read_text()
            if fate == "bug":
                raise ZeroDivisionError("planted")
            if fate == "stop":
                raise KeyboardInterrupt
            if fate in FATES:
                raise FATES[fate](image)
            stem = stem_of(image)
            matches = make_matches(200)
            write_parquet(out / f"{stem}.matches.parquet", matches, MATCHES)
            changes = {}
            if fate == "thin":
                changes = {"status": "compromised", "quality": 2, "exit_code": 13,
                           "reason": "stars in 30% of the frame"}
            return make_solution(image, matches, sha256=file_sha256(image),
                                 files=(f"{stem}.matches.parquet",), **changes)

        def failed(image, error):
            return Solution.from_error(image, error)

        return run_images(
            work, images, out, endings=("_wcs.fits",), settings=settings, facts=facts,
            failed=failed, on_record=on_record, workers=1, timeout_s=None, overwrite=overwrite,
            watch=watch,
        )

    module = types.ModuleType("cynosure.pipelines.solve")
    module.run_solve = run_solve
    monkeypatch.setitem(sys.modules, "cynosure.pipelines.solve", module)
    return asked


@pytest.fixture(autouse=True)
def no_user_settings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("CYNOSURE_REFCAT", raising=False)
    monkeypatch.setattr("cynosure.faces.shell.is_first_run", lambda *more: False)
    yield
    logger = logging.getLogger("cynosure")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture
def images(tmp_path):
    def make(**fates):
        for name, fate in fates.items():
            (tmp_path / f"{name}.fits").write_text(fate)
        return [f"{name}.fits" for name in fates]

    return make


def solve(*arguments):
    return cli.run(["solve", *arguments, "--refcat", "gaia", "--out", "out", "--no-report"])


# --- the screen and the exit codes ----------------------------------------------------------------


def test_one_image_prints_its_block_and_a_tally(door, images, capsys):
    assert solve(*images(a="good")) == 0
    out, err = capsys.readouterr()
    assert out.startswith("a.fits  SOLVED  quality 1 of 5")
    assert out.rstrip().endswith("1 solved · 0 compromised · 0 failed")
    assert err == ""


@pytest.mark.parametrize(
    ("fates", "code"),
    [
        ({"a": "good", "b": "good"}, ExitCode.OK),
        ({"a": "no"}, ExitCode.NO_SOLUTION),
        ({"a": "few"}, ExitCode.NOT_ENOUGH_STARS),
        ({"a": "cat", "b": "cat"}, ExitCode.NO_CATALOG),
        ({"a": "thin"}, ExitCode.NOT_VERIFIED),
        ({"a": "good", "b": "no"}, ExitCode.MIXED),
        ({"a": "no", "b": "few"}, ExitCode.MIXED),
        ({"a": "bug"}, ExitCode.INTERNAL),
    ],
)
def test_exit_codes(door, images, fates, code):
    assert solve(*images(**fates)) == code


def test_a_first_run_is_told_once_and_not_before_an_image_begins(door, images, capsys, monkeypatch):
    monkeypatch.setattr("cynosure.faces.shell.is_first_run", lambda *more: True)
    compiled = []

    def compile_kernels(names, say):
        compiled.append(names)
        say(1, len(names))

    monkeypatch.setattr("cynosure.pipelines.compiling.compile_kernels", compile_kernels)
    names = images(a="good", b="good")
    assert solve(*names) == 0
    err = capsys.readouterr().err
    assert err.count("first run: the kernels are compiled") == 1
    assert "kernels: 1 of 4 compiled" in err
    assert len(compiled) == 1
    assert cli.run(["solve", *names, "--refcat", "g", "--order", "9"]) == ExitCode.USAGE
    assert "first run" not in capsys.readouterr().err
    assert solve(*names, "--overwrite", "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_kernels_that_were_compiled_are_found(monkeypatch):
    monkeypatch.setattr("cynosure.ground.cache.marked", lambda names: False)
    assert is_first_run()
    monkeypatch.setattr("cynosure.ground.cache.marked", lambda names: True)
    assert not is_first_run()


def test_several_images_tell_their_fate_on_standard_error(door, images, capsys):
    assert solve(*images(a="good", b="no", c="thin")) == ExitCode.MIXED
    out, err = capsys.readouterr()
    assert "b.fits  FAILED  no match between 9 sources and 214 reference stars (exit 10)" in out
    assert "  try       Try a larger --radius" in out
    assert out.rstrip().endswith("1 solved · 1 compromised · 1 failed")
    assert [line.split()[0] for line in err.splitlines()] == ["[1/3]", "[2/3]", "[3/3]"]


def test_json_is_one_object_a_line_and_nothing_else(door, images, capsys):
    solve(*images(a="good", b="no"), "--json")
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    fates = [(r["image"], r["status"]) for r in records]
    assert fates == [("a.fits", "solved"), ("b.fits", "failed")]
    assert all(r["schema"] == "cynosure.solution/1" for r in records)


def test_quiet(door, images, capsys):
    solve(*images(a="good", b="no"), "--quiet")
    assert capsys.readouterr() == ("", "")


def test_again_there_is_nothing_to_do(door, images, capsys):
    names = images(a="good")
    solve(*names)
    capsys.readouterr()
    assert solve(*names) == ExitCode.NOTHING_TO_DO
    assert "a.fits: done before" in capsys.readouterr().err
    assert solve(*names, "--overwrite") == 0


def test_interrupted(door, images, capsys, tmp_path):
    names = images(a="good", b="stop", c="good")
    assert solve(*names) == ExitCode.INTERRUPTED
    assert "run the same command again" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] == "interrupted"
    images(b="good")
    assert solve(*names) == 0


def test_run_log_and_manifest_say_what_was_called(door, images, tmp_path):
    solve(*images(a="good", b="bug"), "--set", "quality.min_used=9")
    log = (tmp_path / "out" / "run.log").read_text()
    assert "command: cynosure" in log
    assert "a.fits: solved in" in log
    assert "ZeroDivisionError: planted" in log
    assert "Traceback" in log
    content = json.loads((tmp_path / "out" / "run.json").read_text())
    given = content["settings"]["quality"]["min_used"]
    assert given == {"value": 9, "origin": "--set quality.min_used=9"}


def test_the_report_is_written(door, images, capsys, tmp_path):
    assert cli.run(["solve", *images(a="good", b="no"), "--refcat", "g", "--out", "out"]) == 3
    assert (tmp_path / "out" / "report.html").exists()
    assert "report  out/report.html" in capsys.readouterr().out
    assert cli.run(["report", "out", "--out", "again.html"]) == 0
    assert (tmp_path / "again.html").exists()


# --- options --------------------------------------------------------------------------------------


def test_options_reach_the_door(door, images):
    solve(*images(a="good"), "--center", "10:00:00", "-00:30:00", "--radius", "1.5", "--scale",
          "0.8", "--form", "sip", "--order", "4", "--epoch", "2015.5", "--blind", "--index", "i")
    assert door["center"] == (150.0, -0.5)
    assert (door["radius"], door["scale"], door["epoch"]) == (1.5, 0.8, 2015.5)
    assert (door["form"], door["order"], door["blind"], door["index"]) == ("sip", 4, True, "i")


def test_settings_in_layers(door, images, tmp_path):
    (tmp_path / "config" / "cynosure").mkdir(parents=True)
    user = tmp_path / "config" / "cynosure" / "config.toml"
    user.write_text("[quality]\nmin_used = 7\nmin_coverage = 0.5\nmin_log_odds = 25\n")
    (tmp_path / "cynosure.toml").write_text("[quality]\nmin_coverage = 0.4\nmin_log_odds = 26\n")
    (tmp_path / "mine.toml").write_text("[quality]\nmin_log_odds = 27\nmax_chi2_dof = 3\n")
    solve(*images(a="good"), "--config", "mine.toml", "--set", "quality.max_chi2_dof=4")
    settings = door["settings"]
    assert settings["quality"] == {
        "min_used": 7, "min_coverage": 0.4, "min_log_odds": 27.0, "max_chi2_dof": 4.0,
    }
    assert settings.origin("quality", "min_used") == str(user)


@pytest.mark.parametrize(
    ("center", "expected"),
    [
        (("150.5", "+2.25"), (150.5, 2.25)),
        (("-45.1", "89"), (314.9, 89.0)),
        (("10:02:11.5", "-02:14:09"), (150.547917, -2.235833)),
        (("10h02m11.5s", "-02d14m09s"), (150.547917, -2.235833)),
        (("00:00:00", "-00:00:36"), (0.0, -0.01)),
    ],
)
def test_center(center, expected):
    assert sky_position(center, "--center") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("center", [("north", "1"), ("1", "91"), ("10:02", ""), ("1e400", "0")])
def test_center_that_is_none(center):
    with pytest.raises(SettingError, match="--center"):
        sky_position(center, "--center")


def test_workers_are_a_number_or_a_cluster_and_memory_has_a_unit(door, images):
    assert solve(*images(a="good"), "--workers", "3", "--memory", "1.5G") == 0
    assert (door["workers"], door["memory_bytes"]) == (3, 1_500_000_000)
    assert solve(*images(b="good"), "--workers", "dask://127.0.0.1:8786", "--memory", "800") == 0
    assert (door["workers"], door["memory_bytes"]) == ("dask://127.0.0.1:8786", 800)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.fits", "--set", "quality.min_usd=3"],
         ["no setting in [quality] 'min_usd'", "'min_used'"]),
        (["a.fits", "--set", "qality.min_used=3"], ["no section 'qality'", "quality"]),
        (["a.fits", "--set", "quality.min_used"], ["section.key=value"]),
        (["a.fits", "--set", "quality.min_used=-3"], ["outside", "default is 6"]),
        (["a.fits", "--config", "nowhere.toml"], ["nowhere.toml", "No such file"]),
        (["a.fits", "--order", "9"], ["1 to 7"]),
        (["a.fits", "--form", "zpn"], ["zpn", "tpv"]),
        (["a.fits", "--workers", "0"], ["positive"]),
        (["a.fits", "--workers", "many"], ["'many'", "dask://HOST:PORT"]),
        (["a.fits", "--workers", "dask://host"], ["'dask://host'", "dask://HOST:PORT"]),
        (["a.fits", "--memory", "much"], ["'much'", "8G"]),
        (["a.fits", "--frobnicate"], ["frobnicate", "--help"]),
        ([], ["IMAGE", "--help"]),
    ],
)
def test_mistakes_are_told_in_two_lines_with_code_2(door, images, capsys, arguments, words):
    images(a="good")
    assert cli.run(["solve", *arguments, "--refcat", "g"]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("try: ")
    assert "Traceback" not in err
    assert out == ""
    for word in words:
        assert word in err


def test_without_a_catalogue(images, capsys):
    assert cli.run(["solve", *images(a="good")]) == ExitCode.NO_CATALOG
    assert "cynosure refcat build" in capsys.readouterr().err


def test_the_environment_gives_a_catalogue_but_does_not_override(door, images, monkeypatch):
    monkeypatch.setenv("CYNOSURE_REFCAT", "from-environment")
    cli.run(["solve", *images(a="good"), "--no-report"])
    assert door["refcat"] == "from-environment"
    cli.run(["solve", "a.fits", "--refcat", "given", "--out", "o", "--no-report"])
    assert door["refcat"] == "given"


def test_dry_run_writes_nothing(door, images, capsys, tmp_path):
    assert solve(*images(a="good"), "missing.fits", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "a_wcs.fits  a.solution.json  a.matches.parquet" in out
    assert "missing.fits   (not there)" in out
    assert not (tmp_path / "out").exists()


def test_an_error_as_json(capsys):
    assert cli.run(["refcat", "info", "nowhere", "--json"]) == ExitCode.NO_CATALOG
    record = json.loads(capsys.readouterr().out)
    assert record["exit_code"] == 32
    assert "nowhere" in record["error"]


# --- further files --------------------------------------------------------------------------------


def test_regions(door, images, tmp_path):
    solve(*images(a="good"), "--region")
    lines = (tmp_path / "out" / "a.reg").read_text().splitlines()
    matches = make_matches(200)
    assert lines[2] == "icrs"
    assert sum(line.startswith("circle") for line in lines) == 200
    assert sum(line.endswith("color=green") for line in lines) == matches["used"].sum()
    assert sum(line.endswith("color=cyan") for line in lines) == matches["reserved"].sum()


@pytest.mark.parametrize(
    ("fate", "code", "first", "line"),
    [
        ("good", 0, "PLTSOLVD=T", "CRVAL1=148.97"),
        ("thin", 0, "PLTSOLVD=T", "WARNING=stars in 30% of the frame"),
        ("no", 1, "PLTSOLVD=F", "ERROR=No solution"),
        ("few", 2, "PLTSOLVD=F", "ERROR=Not enough stars detected"),
        ("cat", 32, "PLTSOLVD=F", "ERROR=No star database found"),
    ],
)
def test_ini_speaks_astap(door, images, tmp_path, fate, code, first, line):
    assert solve(*images(a=fate), "--ini") == code
    lines = (tmp_path / "out" / "a.ini").read_text().splitlines()
    assert lines[0] == first
    assert line in lines
    assert lines[-1].startswith("CMDLINE=cynosure")


def test_ini_rotation_is_that_of_cd(door, images, tmp_path):
    solve(*images(a="good"), "--ini")
    lines = (tmp_path / "out" / "a.ini").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines)
    # CD = ((-1.9, 1.2), (1.2, 1.9)) 1e-4: east is left, north is turned by -atan(1.2 / 1.9).
    assert float(values["CROTA2"]) == pytest.approx(-32.276, abs=1e-3)
    assert float(values["CDELT2"]) == pytest.approx(2.2472e-4, rel=1e-4)
    assert float(values["CDELT1"]) == pytest.approx(-2.2472e-4, rel=1e-4)


# --- the task door --------------------------------------------------------------------------------


def test_task_of_the_job_queue(door, images, capsys, monkeypatch, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "SAMPLEFILE.fits.fz").write_text("good")
    (scratch / "refcat").mkdir()
    monkeypatch.setenv("CYNOSURE_SCRATCH", str(scratch))
    assert cli.run(["task", '{"task": "astrometer", "filename": "SAMPLEFILE.fits.fz"}']) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["status"] == "solved"
    assert record["image"] == str(scratch / "SAMPLEFILE.fits.fz")
    assert door["refcat"] == str(scratch / "refcat")
    assert (scratch / "cynosure_out" / "run.json").exists()


def test_task_with_options(door, images, capsys):
    images(a="good", b="no")
    text = json.dumps({
        "task": "solve", "filename": ["a.fits", "b.fits"], "refcat": "g", "out": "o", "scale": 2,
        "center": [150, "-0:30:00"], "settings": {"quality": {"min_used": 4}}, "order": 3,
    })
    assert cli.run(["task", text]) == ExitCode.MIXED
    assert door["scale"] == 2.0
    assert door["center"] == (150.0, -0.5)
    assert door["order"] == 3
    assert door["settings"]["quality"] == {"min_used": 4}
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("not json", "not JSON"),
        ("[]", "must be an object"),
        ('{"task": "make coffee", "filename": "a"}', "must be an object"),
        ('{"task": "astrometer"}', "names no file"),
        ('{"task": "astrometer", "filename": "a.fits", "radios": 3}', "no key radios"),
        ('{"task": "astrometer", "filename": "a.fits", "radius": [3]}', "radius is"),
        ('{"task": "astrometer", "filename": "a.fits", "radius": "wide"}', "radius = wide"),
        ('{"task": "astrometer", "filename": "a.fits", "radius": true}', "radius is True"),
        ('{"task": "astrometer", "filename": "a.fits", "center": 3, "refcat": "g"}', "center is 3"),
    ],
)
def test_tasks_that_are_none(images, capsys, text, word):
    images(a="good")
    assert cli.run(["task", text]) == ExitCode.USAGE
    assert word in capsys.readouterr().err


def test_task_without_file_or_catalogue(images, capsys):
    with pytest.raises(ImageError, match=r"nowhere\.fits: not in"):
        find_file("nowhere.fits")
    images(a="good")
    assert cli.run(["task", '{"task": "astrometer", "filename": "a.fits"}']) == 32
    assert "CYNOSURE_REFCAT" in capsys.readouterr().err


# --- settings -------------------------------------------------------------------------------------


def test_config_show_is_toml_that_check_takes(capsys, tmp_path):
    import tomllib

    assert cli.run(["config", "show", "--set", "quality.min_used=9"]) == 0
    text = capsys.readouterr().out
    content = tomllib.loads(text)
    assert content["quality"]["min_used"] == 9
    assert content["quality"]["fine_rms_mas"] == "none"
    (tmp_path / "all.toml").write_text(text)
    assert cli.run(["config", "check", "all.toml"]) == 0
    assert "all.toml: good" in capsys.readouterr().out


def test_config_explain(capsys):
    assert cli.run(["config", "explain", "quality.fine_rms_px"]) == 0
    out = capsys.readouterr().out
    assert "default 0.2; unit px; 0 … 100" in out
    assert cli.run(["config", "explain", "quality.fine"]) == ExitCode.USAGE


# --- the process itself ---------------------------------------------------------------------------


def cynosure(*arguments, **options):
    command = [sys.executable, "-m", "cynosure", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_help_loads_little_and_has_the_exit_codes():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CYNOSURE_")}
    done = cynosure("--help", env={**environment, "PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0
    for code in ExitCode:
        assert f"\n  {int(code)} " in done.stdout
    names = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "cynosure.faces.cli" in names
    assert not names & {"numpy", "astropy", "matplotlib", "pyarrow", "numba", "rich"}


def test_a_defect_says_how_to_report_it():
    code = "from cynosure.faces import cli; cli.run = lambda a: 1 / 0; cli.main([])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: internal fault in cynosure")
    path = Path(lines[1].split()[-1])
    assert "ZeroDivisionError" in path.read_text()
    path.unlink()


def test_version_and_unknown_verb():
    assert cynosure("--version").stdout.startswith("cynosure, version ")
    done = cynosure("sovle")
    assert done.returncode == 2
    assert done.stderr.startswith("error: No such command 'sovle'")


def test_output_into_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m cynosure config explain quality | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "quality." in done.stdout
    assert "Traceback" not in done.stderr


def test_linear_algebra_has_one_thread():
    """Sums must not depend on the number of cores: the variables are set before NumPy is loaded."""
    look = ("import os, sys; from cynosure.faces import cli\n"
            "assert 'numpy' not in sys.modules\n"
            "try: cli.main(['--version'])\n"
            "except SystemExit: print(os.environ['OPENBLAS_NUM_THREADS'])")
    for given, expected in ((None, "1"), ("3", "3")):
        environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
        if given:
            environment["OPENBLAS_NUM_THREADS"] = given
        told = subprocess.run([sys.executable, "-c", look], env=environment, check=True,
                              capture_output=True, text=True, timeout=60)
        assert told.stdout.split()[-1] == expected
