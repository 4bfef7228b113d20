"""``cynosure wcs``: what it prints, what it returns, what it leaves alone."""

import json
import sys
from pathlib import Path

import pytest
from astropy.io import fits

from cynosure.faces.cli import run

sys.path.insert(0, str(Path(__file__).parent.parent / "solutions"))
from exposures import digest, make_flc, make_tpv

GSC = "IDC_0461802ej-GSC240"


@pytest.fixture
def flc(tmp_path):
    """Give an exposure with an a priori solution attached."""
    from test_archive import moved

    from cynosure.solutions.files import archive

    path = make_flc(tmp_path / "j95y04hpq_flc.fits")
    archive.attach(path, moved(archive.create(path), 1e-4, GSC))
    return path


def call(capsys, *arguments):
    code = run(["wcs", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def test_list_says_what_there_is(flc, capsys):
    code, out, _ = call(capsys, "list", flc)
    assert code == 0
    lines = out.splitlines()
    assert "j95y04hpq, 2 chips, distortion 0461802ej-02c1450oj-02c1450nj" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["active", "O", "HDRLET,1"]
    assert GSC in lines[4] and "360" in lines[4]
    code, out, _ = call(capsys, "list", flc, "--json")
    found = records(out)[0]["solutions"]
    assert found[2]["distance_mas"]["median"] == pytest.approx(359.8, abs=0.3)
    code, out, _ = call(capsys, "list", flc, "--keyword", "wcsname")
    assert out == f"{GSC}\n"
    code, out, _ = call(capsys, "list", flc, "--extensions")
    assert "HDRLET        1    HeaderletHDU" in out


def test_summary_and_show(flc, capsys):
    code, out, _ = call(capsys, "summary", flc)
    assert code == 0 and "INDEF" in out and GSC in out
    code, out, _ = call(capsys, "show", flc, GSC, "--json")
    found = records(out)[0]
    assert found["wcsname"] == GSC and len(found["chips"]) == 2
    assert found["chips"][0]["tables"] == ["WCSDVARR,1", "WCSDVARR,2", "D2IMARR,1", "D2IMARR,2"]
    code, out, _ = call(capsys, "show", flc, "--cards")
    assert "A_2_0" in out


def test_the_session_of_the_primer(flc, tmp_path, capsys):
    """List, extract, activate, look, restore: the worked example, with files."""
    hlet = tmp_path / "gsc_hlet.fits"
    assert call(capsys, "extract", flc, GSC, "--out", hlet)[0] == 0
    assert call(capsys, "activate", flc, GSC)[0] == 0
    assert fits.getval(flc, "WCSNAME", 1) == GSC
    _code, out, _ = call(capsys, "diff", flc, "IDC_0461802ej", "--json")
    assert records(out)[0]["chips"][0]["median_mas"] == pytest.approx(359.8, abs=0.3)
    assert call(capsys, "delete", flc, "IDC_0461802ej", "--dry-run")[0] == 0
    assert call(capsys, "restore", flc, "IDC_0461802ej")[0] == 0
    assert fits.getval(flc, "WCSNAME", 1) == "IDC_0461802ej"
    assert call(capsys, "delete", flc, GSC)[0] == 0
    assert call(capsys, "attach", flc, hlet)[0] == 0
    assert call(capsys, "activate", flc, hlet, "--alternate")[0] == 0
    assert fits.getval(flc, "WCSNAMEA", 1) == GSC
    assert call(capsys, "archive", flc)[0] == 0
    assert call(capsys, "restore", flc, "--all")[0] == 0
    assert call(capsys, "verify", flc)[0] == 0


def test_pictures_of_a_difference(flc, tmp_path, capsys):
    picture = tmp_path / "d.png"
    code, _out, _ = call(capsys, "diff", flc, GSC, "--picture", picture, "--side", 9)
    assert code == 0 and picture.read_bytes().startswith(b"\x89PNG")
    assert call(capsys, "diff", flc, GSC, "--picture", picture)[0] == 17
    assert call(capsys, "diff", flc, GSC, "--picture", tmp_path / "d.txt")[0] == 2


def test_noise_is_not_drawn_over_the_whole_scale(flc, tmp_path):
    """The numbers of a header are good to some 1e-5 mas; a picture of that has one colour."""
    from dataclasses import replace

    from cynosure.faces.report.separation import FLOOR_MAS, draw_separations, top_of_scale
    from cynosure.solutions.files.archive import solution_of
    from cynosure.solutions.files.compare import separations

    maps = separations(solution_of(flc), solution_of(flc, GSC), {})
    largest = max(float(m.sep_mas.max()) for m in maps)
    assert top_of_scale(maps) == largest > 300
    noise = [replace(m, sep_mas=m.sep_mas / largest * 5e-5) for m in maps]
    assert top_of_scale(noise) == FLOOR_MAS > 10 * 5e-5
    draw_separations(tmp_path / "noise.png", noise, "noise")
    nothing = [replace(m, sep_mas=m.sep_mas * float("nan")) for m in maps]
    assert top_of_scale(nothing) == FLOOR_MAS


def test_east_is_to_the_left_in_pictures(flc, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    from cynosure.faces.report.separation import draw_separations
    from cynosure.solutions.files.archive import solution_of
    from cynosure.solutions.files.compare import separations

    drawn = []
    monkeypatch.setattr(Axes, "quiver", lambda self, *args, **_: drawn.append(args))
    maps = separations(solution_of(flc), solution_of(flc, GSC), {})  # 360 mas to the east
    draw_separations(tmp_path / "d.png", maps, "moved")
    assert len(drawn) == 2 and all((u < -300).all() and abs(v).max() < 1 for _, _, u, v in drawn)


def test_doubtful_solutions_need_force_and_are_told(flc, tmp_path, capsys):
    hlet, bad = tmp_path / "gsc_hlet.fits", tmp_path / "bad_hlet.fits"
    assert call(capsys, "extract", flc, GSC, "--out", hlet)[0] == 0
    with fits.open(hlet) as units:
        units["SIPWCS", 2].header["WCSNAME"] = "ANOTHER"
        units[0].header["HDRNAME"] = "bad"
        units.writeto(bad)
    code, out, _ = call(capsys, "list", bad)
    assert code == 0 and "holds another solution, ANOTHER" in out
    before = digest(flc)
    code, _, err = call(capsys, "attach", flc, hlet, bad)
    assert code == 16 and "ANOTHER" in err and "--force" in err and digest(flc) == before
    code, out, err = call(capsys, "attach", flc, hlet, bad, "--force", "--json")
    assert code == 0 and err.startswith("warning: ") and "ANOTHER" in err
    assert "by force" in records(out)[0]["warnings"][0]
    code, _, err = call(capsys, "verify", flc)
    assert code == 13 and f"delete {flc} HDRLET,2" in err
    assert call(capsys, "activate", flc, "bad")[0] == 16
    assert call(capsys, "activate", flc, "bad", "--alternate")[0] == 16
    assert call(capsys, "delete", flc, "HDRLET,2")[0] == 0
    assert call(capsys, "verify", flc)[0] == 0


def test_one_damaged_headerlet_does_not_stop_the_others(flc, tmp_path, capsys):
    from test_archive import moved

    from cynosure.solutions.files import archive

    archive.attach(flc, moved(archive.create(flc), 2e-4, GSC + "-1"))
    data = bytearray(flc.read_bytes())
    at = data.index(b"SIMPLE  =", data.index(b"XTENSION= 'HDRLET"))
    data[at : at + 2880] = b"?" * 2880
    flc.write_bytes(data)
    code, out, err = call(capsys, "extract", flc, "--all", "--out", tmp_path / "all")
    assert code == 3 and err.startswith("error: ") and GSC + "-1" in out
    assert len(list((tmp_path / "all").iterdir())) == 1


@pytest.mark.parametrize(
    "arguments, code",
    [
        (("activate", "FLC", "nonsense"), 2), (("delete", "FLC"), 2), (("delete", "FLC", "O"), 2),
        (("restore", "FLC"), 2), (("export", "FLC"), 2), (("activate", "none.fits", "A"), 16),
        (("attach", "FLC", "FLC"), 16), (("convert", "FLC", "--form", "xyz"), 2),
        (("extract", "FLC", GSC, "--out", "FLC"), 17), (("default", "FLC"), 32),
    ],
)
def test_refusals_have_codes_and_change_nothing(flc, capsys, arguments, code):
    before = digest(flc)
    found, _, err = call(capsys, *(flc if a == "FLC" else a for a in arguments))
    assert found == code and err.startswith("error: ")
    assert digest(flc) == before


def test_several_files_and_one_bad(flc, tmp_path, capsys):
    bad = tmp_path / "bad.fits"
    bad.write_bytes(b"no")
    code, out, _err = call(capsys, "list", flc, bad, "--json")
    assert code == 3
    assert [r.get("exit_code") for r in records(out)] == [None, 16]
    assert call(capsys, "archive", flc, "--dry-run", "--json")[0] == 0


def test_verify_fails_where_something_is_not_true(flc, capsys):
    fits.setval(flc, "NEXTEND", value=3)
    code, _out, err = call(capsys, "verify", flc)
    assert code == 13 and "NEXTEND says 3" in err


def test_convert_export_import(tmp_path, capsys):
    path = make_tpv(tmp_path / "m81.fits", name="FIT_IMG_GAIADR3")
    assert call(capsys, "export", path, "--out", tmp_path / "m81.head")[0] == 0
    assert call(capsys, "export", path, "--out", tmp_path / "m81.wcs")[0] == 0
    code, out, _ = call(capsys, "import", path, tmp_path / "m81.head", "--name", "S", "--activate")
    assert code == 0 and fits.getval(path, "WCSNAME") == "S"
    code, out, _ = call(capsys, "convert", path, "--form", "sip", "--json")
    assert code == 0 and records(out)[0]["errors"][0]["max_mas"] < 1e-3
    assert call(capsys, "convert", path, "--form", "tan", "--max-error", "0.1")[0] == 2
