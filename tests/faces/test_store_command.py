"""The command `cynosure store`, from an empty file to an export, and its exit codes."""

import json
import sqlite3
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "solutions"))

from headerlets import make_headerlet, variants

from cynosure.faces.cli import run
from cynosure.ground.errors import ExitCode
from cynosure.solutions.files.headerletio import read_headerlet
from cynosure.solutions.solution import Solution

IDC = "IDC_0461802ej"
FIT = f"{IDC}-FIT_REL_GAIADR2"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Give a folder with three headerlets and a store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CYNOSURE_STORE", raising=False)
    cards = {"RMS_RA": 5.0, "RMS_DEC": 6.0, "NMATCH": 80, "CATALOG": "GAIADR2"}
    Path("a_hlet.fits").write_bytes(make_headerlet())
    Path("b_hlet.fits").write_bytes(make_headerlet(wcsname=FIT, primary=cards))
    Path("c_hlet.fits").write_bytes(make_headerlet("other0000", "OPUS", 10.0, -20.0))
    assert run(["store", "init", "--store", "sky.db"]) == ExitCode.OK
    return tmp_path


def records(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_from_headerlets_to_a_decision(folder, capsys):
    assert run(["store", "init", "--store", "sky.db"]) == ExitCode.NOTHING_TO_DO
    assert run(["store", "add", "--store", "sqlite:///sky.db", "a_hlet.fits", "."]) == ExitCode.OK
    assert "3 new, 1 known, 0 refused" in capsys.readouterr().out
    assert run(["store", "add", "--store", "sky.db", "."]) == ExitCode.NOTHING_TO_DO
    capsys.readouterr()
    assert run(["store", "find", "--store", "sky.db", "--json", "j95*"]) == ExitCode.OK
    assert [r["wcsname"] for r in records(capsys)] == [IDC, FIT]
    near = ["store", "find", "--store", "sky.db", "--json", "--cone"]
    assert run([*near, "10.0", "-20.0", "0.1"]) == ExitCode.OK
    assert [r["rootname"] for r in records(capsys)] == ["other0000"]
    assert run([*near, "00:40:00", "+20:00:00", "0.1"]) == ExitCode.NOTHING_TO_DO
    assert run(["store", "find", "--store", "sky.db", "--catalog", "gaiadr2"]) == ExitCode.OK
    assert FIT in capsys.readouterr().out
    best = ["store", "best", "--store", "sky.db", "j95y04hpq"]
    assert run([*best, "--record", "--write", "best.fits"]) == ExitCode.OK
    assert "a posteriori, fitted to GAIADR2, 80 stars" in capsys.readouterr().out
    assert Path("best.fits").read_bytes() == Path("b_hlet.fits").read_bytes()
    assert run([*best, "--write", "best.fits"]) == ExitCode.OUTPUT_EXISTS
    assert run([*best, "--choose", IDC, "--by", "me", "--dry-run", "--json"]) == ExitCode.OK
    capsys.readouterr()
    assert run([*best, "--choose", IDC, "--by", "me", "--json"]) == ExitCode.OK
    assert [(r["wcsname"], r["rule"], r["made_by"]) for r in records(capsys)] == [
        (IDC, "user", "me")]
    assert run([*best, "--withdraw", "--json"]) == ExitCode.OK
    assert records(capsys)[0]["wcsname"] == FIT
    assert run([*best, "--choose", "nothing"]) == ExitCode.USAGE
    assert run([*best, "--record", "--withdraw"]) == ExitCode.USAGE
    assert run(["store", "best", "--store", "sky.db", "nobody"]) == ExitCode.NO_SOLUTION
    capsys.readouterr()
    assert run(["store", "history", "--store", "sky.db", "j95y04hpq"]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        "solution", "solution", "decision", "decision", "choice withdrawn", "decision"]


def test_dates(folder, capsys):
    """A day is meant whole, an unknown date is null, and what is no date says what is one."""
    Path("d_hlet.fits").write_bytes(make_headerlet(ra=10.0, primary={"DATE": None}))
    assert run(["store", "add", "--store", "sky.db", "."]) == ExitCode.OK
    capsys.readouterr()
    find = ["store", "find", "--store", "sky.db"]
    for bound, n in (("--until=2021-01-05", 3), ("--since=2021-01-05", 3), ("--until=2021", 3),
                     ("--until=2021-01-04", 0), ("--since=2021-01-06", 0)):
        run([*find, "--json", bound])
        assert len(records(capsys)) == n, bound
    run([*find, "--json"])
    assert [r["created"] for r in records(capsys)].count(None) == 1
    assert run(find) == ExitCode.OK
    assert "unknown" in capsys.readouterr().out
    for text in ("tomorrow", "2021-02-30", "5.1.2021"):
        assert run([*find, "--until", text]) == ExitCode.USAGE
        said = capsys.readouterr().err
        assert f"'{text}' is no date" in said
        assert "2021-01-05T05:23" in said


def test_withdrawing_from_nobody(folder, capsys):
    withdraw = ["store", "best", "--store", "sky.db", "nobody", "--withdraw"]
    before = Path("sky.db").read_bytes()
    for options in ([], ["--dry-run"]):
        assert run([*withdraw, *options]) == ExitCode.USAGE
        assert "nobody: no such exposure" in capsys.readouterr().err
    assert run(["store", "history", "--store", "sky.db", "nobody"]) == ExitCode.NOTHING_TO_DO
    assert Path("sky.db").read_bytes() == before


def test_a_record_is_written_in_the_form_that_its_name_says(folder, capsys):
    cards = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "CRVAL1": 10.0, "CRVAL2": 20.0,
             "CRPIX1": 500.5, "CRPIX2": 250.5, "CD1_1": -1e-4, "CD2_2": 1e-4, "PV1_1": 1.0,
             "PV2_1": 1.0, "PV1_4": 0.01}
    record = Solution("m81.fits", status="solved", quality=1, wcsname="FIT_IMG_GAIADR3",
                      chips=({"name": "m81.fits", "hdu": 0, "shape": [500, 1000], "cards": cards},))
    Path("m81.solution.json").write_text(record.to_json())
    assert run(["store", "add", "--store", "sky.db", "m81.solution.json"]) == ExitCode.OK
    best = ["store", "best", "--store", "sky.db", "m81", "--write"]
    assert run([*best, "best.json"]) == run([*best, "best.fits"]) == ExitCode.OK
    assert Solution.from_json(Path("best.json").read_text()).wcsname == "FIT_IMG_GAIADR3"
    headerlet = read_headerlet("best.fits")
    assert (headerlet.destim, headerlet.wcsname) == ("m81", "FIT_IMG_GAIADR3")
    assert headerlet.chips[0].get("CTYPE1") == "RA---TAN-SIP"


def test_export_and_import(folder, capsys):
    run(["store", "add", "--store", "sky.db", "."])
    assert run(["store", "export", "--store", "sky.db", "--out", "backup"]) == ExitCode.OK
    assert run(["store", "export", "--store", "sky.db", "--out", "backup"]) == (
        ExitCode.OUTPUT_EXISTS)
    assert run(["store", "export", "--store", "sky.db"]) == ExitCode.USAGE
    run(["store", "init", "--store", "copy.db"])
    capsys.readouterr()
    assert run(["store", "add", "--store", "copy.db", "backup", "--json"]) == ExitCode.OK
    assert records(capsys)[0]["new"] == 3


def test_what_cannot_be_added(folder, capsys):
    Path("bad_hlet.fits").write_bytes(make_headerlet()[:4000])
    Path("bad.solution.json").write_text("{")
    add = ["store", "add", "--store", "sky.db"]
    assert run([*add, "bad_hlet.fits"]) == ExitCode.IMAGE_UNREADABLE
    assert run([*add, "absent.fits"]) == ExitCode.IMAGE_UNREADABLE
    assert run([*add, "."]) == ExitCode.MIXED
    captured = capsys.readouterr()
    assert "3 new, 0 known, 2 refused" in captured.out
    assert "truncated" in captured.err
    assert run([*add, "--dry-run", "a_hlet.fits"]) == ExitCode.OK


def test_many_files_by_several_workers(folder, capsys):
    Path("many").mkdir()
    for k, data in enumerate(variants(
        make_headerlet(chips=1, tables=False), [f"j95y{i:05d}" for i in range(30)])):
        Path(f"many/{k}_hlet.fits").write_bytes(data)
    Path("many/x_hlet.fits").write_bytes(b"nothing")
    assert run(["store", "add", "--store", "sky.db", "many", "--workers", "2"]) == ExitCode.MIXED
    assert "30 new, 0 known, 1 refused" in capsys.readouterr().out


def test_exit_codes_without_a_database(folder, capsys):
    for url in ("none.db", "postgresql://nobody@127.0.0.1:1/none", "mysql://x/y"):
        for verb in (["find"], ["best", "x"], ["history", "x"], ["add", "a_hlet.fits"],
                     ["export", "--out", "y"], ["migrate"], ["serve"]):
            assert run(["store", *verb, "--store", url]) == ExitCode.STORE_UNAVAILABLE, (verb, url)
    assert "try:" in capsys.readouterr().err
    assert run(["store", "find"]) == ExitCode.USAGE
    assert not Path("none.db").exists()


def test_versions(folder, capsys):
    migrate = ["store", "migrate", "--store", "sky.db"]
    assert run(migrate) == ExitCode.NOTHING_TO_DO
    with sqlite3.connect("sky.db") as connection:
        connection.executescript(
            "DROP TABLE decisions; DROP TABLE guide_stars; "
            "ALTER TABLE solutions DROP COLUMN extent; "
            "UPDATE store_facts SET value = '1' WHERE name = 'schema_version'")
    connection.close()
    assert run(["store", "find", "--store", "sky.db"]) == ExitCode.STORE_UNAVAILABLE
    assert "cynosure store migrate" in capsys.readouterr().err
    assert run([*migrate, "--dry-run"]) == ExitCode.OK
    assert run(migrate) == ExitCode.OK
    with sqlite3.connect("sky.db") as connection:
        connection.execute("UPDATE store_facts SET value = '99' WHERE name = 'schema_version'")
    connection.close()
    assert run(migrate) == ExitCode.STORE_UNAVAILABLE
    assert "newer cynosure" in capsys.readouterr().err


def test_guide_stars_and_the_environment(folder, capsys, monkeypatch):
    monkeypatch.setenv("CYNOSURE_STORE", "sky.db")
    row = {"rootname": "a", "delta_ra_deg": 0, "delta_dec_deg": 0, "delta_roll_deg": 0,
           "delta_scale": 1, "input_ra_deg": 1, "input_dec_deg": 1, "output_ra_deg": 1,
           "output_dec_deg": 1, "catalog": "GSC240"}
    Path("one.json").write_text(json.dumps(row))
    Path("two.json").write_text(json.dumps([row, {**row, "rootname": "b"}]))
    assert run(["store", "guide-stars", "one.json", "two.json"]) == ExitCode.OK
    assert "offsets of 3 exposures" in capsys.readouterr().out
    Path("bad.json").write_text(json.dumps({**row, "delta_scale": "x"}))
    assert run(["store", "guide-stars", "bad.json"]) == ExitCode.USAGE
    Path("bad.json").write_text("{")
    assert run(["store", "guide-stars", "bad.json"]) == ExitCode.USAGE
    Path("stars.csv").write_text("ra,dec,mag\n10.0,20.0,12.5\n10.1,20.1,13.5\n")
    assert run(["store", "serve", "--dry-run", "--refcat", "MINE=stars.csv"]) == ExitCode.OK
    said = capsys.readouterr().err
    assert "only reading" in said
    assert "catalogue MINE: stars.csv" in said
    assert run(["store", "serve", "--dry-run", "--refcat", "absent.csv"]) == (
        ExitCode.NO_CATALOG)
