"""Soundness: what may be believed, why not, and that every command asks the same question."""

import multiprocessing
import os
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from exposures import headerlet_sky, layout, make_flc, make_tpv, sky
from test_archive import FIT, GSC, moved, refused

from cynosure.data.fits import opening
from cynosure.data.fits.alternates import records_of
from cynosure.data.fits.blocks import sum32
from cynosure.data.fits.parts import Part, card
from cynosure.ground.errors import ImageError, SettingError, Temporary
from cynosure.solutions.files import archive, edits, exchange, invariants
from cynosure.solutions.files.compare import separations
from cynosure.solutions.files.contents import NoSuchSolution, open_holdings
from cynosure.solutions.files.hdrlet import embed, register_hdu, unregister_hdu
from cynosure.solutions.files.headerlet import HeaderletDamaged, same_solution
from cynosure.solutions.files.headerletio import read_headerlet, write_headerlet
from cynosure.solutions.files.hubble import default_solution
from cynosure.solutions.files.wcscorr import find_wcscorr
from cynosure.solutions.soundness import Exposure, bare_name, reasons, relation_px

F02, P04, P05 = "f02-field-wcs", "p04-hst-headerlets", "p05-hst-reffiles"
IDC = "IDC_0461802ej"


@pytest.fixture
def flc(tmp_path):
    return make_flc(tmp_path / "j95y04hpq_flc.fits")


@pytest.fixture
def own(flc):
    return archive.create(flc)


@pytest.fixture
def real(data_dir, tmp_path):
    """Give a copy of a real file by its name."""
    def copy(name, folder=P04):
        path = tmp_path / name
        shutil.copyfile(data_dir / folder / name, path)
        return path
    return copy


def with_cards(headerlet, number, *, drop=(), **cards):
    """Return a headerlet with cards of one chip changed."""
    part = Part([r for r in headerlet.chips[number].records if r[0] not in drop])
    for keyword, value in cards.items():
        part.set(keyword, value)
    chips = list(headerlet.chips)
    chips[number] = replace(chips[number], records=part.records)
    return replace(headerlet, chips=tuple(chips))


def shifted(headerlet, number, by_deg):
    """Return a headerlet of which one chip is moved alone, under the same name."""
    at = headerlet.chips[number].number("CRVAL2")
    return with_cards(headerlet, number, CRVAL2=at + by_deg)


def errors_of(path):
    return [f.text for f in invariants.check(path) if f.level == "error"]


def said(headerlet, *args, **kwargs):
    return {r.kind: r.text for r in reasons(headerlet, *args, **kwargs)}


# --- the predicate --------------------------------------------------------------------------


def test_a_sound_solution_has_no_reasons(flc, own):
    assert own.faults() == own.doubts() == []
    with open_holdings(flc) as held:
        assert held.reasons(own) == []
        assert [e.key for e in held.entries() if held.reasons(e.headerlet, e.key)] == []


def test_every_reason_is_found(own):
    assert said(with_cards(own, 1, WCSNAME="OTHER"))["torn"].endswith("another solution, OTHER")
    assert "PC and a CD" in said(with_cards(own, 0, PC1_1=1.0))["matrix"]
    assert "no reference point" in said(with_cards(own, 0, drop=["CRVAL2"]))["matrix"]
    sip = [r[0] for r in own.chips[0].records if r[0][:2] in ("A_", "B_")]
    plain = with_cards(own, 0, drop=sip)
    assert "no SIP terms" in said(plain)["distortion"]
    named = with_cards(plain, 0, CTYPE1="RA---TAN", CTYPE2="DEC--TAN")
    assert "called distortion corrected" in said(named)["distortion"]
    assert "not in it" in said(replace(own, tables=()))["tables"]
    silent = with_cards(own, 0, drop=["DP1", "DP2"])
    assert "does not say which WCSDVARR" in said(silent)["tables"]
    twice = replace(own.chips[0], records=[*own.chips[0].records, card("CRVAL1", 9.0)])
    assert "CRVAL1 twice" in said(replace(own, chips=(twice, own.chips[1])))["twice"]
    same = replace(own.chips[0], records=[*own.chips[0].records, own.chips[0].records[1]])
    assert said(replace(own, chips=(same, own.chips[1]))) == {}


def test_a_wrong_sipname_beside_the_right_idctab(own):
    text = said(own.replaced(SIPNAME="j95y04hpq_qbu1641sj"))["name"]
    assert "qbu1641sj" in text and "0461802ej" in text
    assert "name" in said(own.replaced(DISTNAME="j95y04hpq_other-NOMODEL-NOMODEL"))
    for sipname in ("NOMODEL", "UNKNOWN", "j95y04hpq_0461802EJ", ""):
        assert said(own.replaced(SIPNAME=sipname)) == {}


def test_sums_of_tables(own):
    table = own.tables[0]
    for total, good in ((sum32(table.data), True), (sum32(table.data) + 1, False)):
        part = Part([*records_of(table.header), card("DATASUM", str(total))])
        changed = replace(table, header=part.header_bytes())
        found = said(replace(own, tables=(changed, *own.tables[1:])))
        assert ("sums" not in found) is good


def test_the_relation_of_the_chips(own):
    """What is common to the chips, a shift, a turn and a scale, does not count."""
    turned = own
    for number, chip in enumerate(own.chips):
        # One rotation of the sky about a point near the field moves all chips as one.
        angle, scale = np.radians(0.02), 1.0 + 2e-5
        c, s = scale * np.cos(angle), scale * np.sin(angle)
        ra, dec = np.radians([chip.number("CRVAL1") - 150.0, chip.number("CRVAL2") - 2.0])
        cd = np.array([[c, s], [-s, c]]) @ chip.linear[4:].reshape(2, 2)
        xi, eta = np.array([[c, s], [-s, c]]) @ [ra * np.cos(np.radians(2.0)), dec]
        turned = with_cards(
            turned, number, CRVAL1=150.0 + 1e-4 + np.degrees(xi) / np.cos(np.radians(2.0)),
            CRVAL2=2.0 + np.degrees(eta),
            **{f"CD{i + 1}_{j + 1}": float(cd[i, j]) for i in (0, 1) for j in (0, 1)},
        )
    assert relation_px(own, turned) < 0.01
    # A chip that is moved by one pixel alone: each of two is half of it from where it should be.
    one_px = float(np.hypot(own.chips[1].number("CD1_2"), own.chips[1].number("CD2_2")))
    assert relation_px(own, shifted(own, 1, one_px)) == pytest.approx(0.5, rel=0.05)
    assert relation_px(own, own.replaced(IDCTAB="jref$other_idc.fits")) is None
    assert relation_px(replace(own, chips=own.chips[:1]), own) is None


def test_the_majority_says_who_is_torn(flc, own):
    torn = shifted(moved(own, 3e-5, FIT), 1, 5e-5)
    with open_holdings(flc) as held:
        assert [r.kind for r in held.reasons(torn)] == ["torn"]  # beside the active one
    archive.attach(flc, moved(own, 1e-4, GSC))
    refused(flc, HeaderletDamaged, lambda: archive.attach(flc, torn), "px otherwise")
    change = archive.attach(flc, torn, force=True)
    assert "by force" in change.warnings[0]
    with open_holdings(flc) as held:
        found = {e.key: held.reasons(e.headerlet, e.key) for e in held.entries()}
    assert [k for k, v in found.items() if v] == ["HDRLET,2"]
    assert any("HDRLET,2: its chips" in e for e in errors_of(flc))


@pytest.mark.parametrize("name", ["IB4606C5Q", "/a/b/ib4606c5q_flc.fits", "ib4606c5q_raw.fits.gz"])
def test_names_of_one_exposure(name):
    assert bare_name(name) == "ib4606c5q"


def test_identity_is_a_comparison_of_facts(own):
    facts = {"EXPSTART": 53436.28571938, "INSTRUME": "ACS", "DETECTOR": "WFC"}
    shapes = {c.target: (48, 64) for c in own.chips}
    exposure = Exposure(
        "renamed", frozenset(["renamed"]), tuple(shapes), facts, shapes
    )
    strange = own.replaced(**facts)
    assert said(strange, exposure) == {}  # time, camera and sizes agree
    assert "identity" in said(own, exposure)
    assert said(own, exposure, held=True) == {}
    assert "EXPSTART" in said(strange.replaced(EXPSTART=53437.0), exposure)["identity"]
    other = with_cards(strange, 0, TG_NAXI1=4096)
    assert "identity" in said(other, exposure)
    # The same name with another time is another exposure.
    named = strange.replaced(DESTIM="renamed", DETECTOR="HRC")
    assert "DETECTOR" in said(named, exposure)["identity"]


# --- torn headerlets ------------------------------------------------------------------------


def test_the_archives_torn_headerlet_is_taken_by_force_only(real):
    path = real("sample_ipppssoot_flc.fits")
    name = "IDC_2731450pi-FIT_REL_GAIAeDR3"
    for work in (archive.activate, archive.restore, archive.apply_alternate):
        refused(path, HeaderletDamaged, lambda w=work: w(path, "HDRLET,8"), "another solution")
    assert "active already" in archive.restore(path, name).done[0]  # a sound one of that name
    sound = archive.solution_of(path)
    archive.activate(path, "HDRLET,5")
    archive.restore(path, name)
    assert same_solution(archive.solution_of(path), sound)
    change = archive.activate(path, "HDRLET,8", force=True)
    assert "holds another solution" in change.warnings[0] and "2.1 px" in change.warnings[0]
    # Its name does not hide it.
    assert any("active WCS of chip,2 holds another" in e for e in errors_of(path))
    with open_holdings(path) as held:
        assert held.reasons(held.active(), "active")


def test_restore_all_leaves_a_torn_one_out(real):
    path = real("sample_ipppssoot_flc.fits")
    before = {v: sky(path, ("SCI", v)) for v in (1, 2)}
    archive.activate(path, "HDRLET,2")
    change = archive.restore_all(path)
    assert any("HDRLET,8" in line and "left out" in line for line in change.done)
    with open_holdings(path) as held:
        assert held.active().wcsname == "IDC_2731450pi-FIT_REL_GAIAeDR3"
        assert not [e.key for e in held.entries()
                    if held.reasons(e.headerlet, e.key) and e.key != "HDRLET,8"]
    assert all(np.array_equal(sky(path, ("SCI", v)), before[v]) for v in (1, 2))
    refused(path, HeaderletDamaged, lambda: archive.restore_all(path, primary="HDRLET,8"))


def test_a_torn_one_whose_names_were_made_alike_is_found_by_its_chips(real):
    path = real("sample_ipppssoot_flc.fits")
    torn = archive.solution_of(path, "HDRLET,8")
    torn = with_cards(torn, 1, WCSNAME=torn.wcsname)
    assert torn.doubts() == []
    refused(path, HeaderletDamaged, lambda: archive.activate(path, torn), "2.1 px")


def test_a_name_that_a_sound_and_a_torn_one_share(flc, own):
    torn = shifted(moved(own, 1e-4, GSC, HDRNAME="torn"), 1, 5e-5)
    archive.attach(flc, torn, force=True)
    sound = moved(own, 1e-4, GSC, HDRNAME="sound")
    archive.apply_alternate(flc, sound)
    with open_holdings(flc) as held:
        assert held.find(GSC).key == "A"  # the alternate before the torn headerlet
    archive.attach(flc, sound)
    archive.activate(flc, GSC)
    assert same_solution(archive.solution_of(flc), sound)
    refused(flc, NoSuchSolution, lambda: archive.delete(flc, [GSC]), "several")
    archive.delete(flc, ["torn"])
    assert archive.names(flc)[0] == "sound"


# --- alternates -----------------------------------------------------------------------------


def test_alternates_do_not_lose_the_distortion_they_name(real):
    path = real("H_opus_alternates.fits", F02)
    wanted = {name: archive.solution_of(path, key) for name, key in
              (("IDC_w3m18525i", "A"), ("IDC_w3m18525i-HSC30", "B"))}
    change = archive.activate(path, "OPUS")
    assert any("alternate A was removed" in line for line in change.done)
    assert errors_of(path) == []
    for name, solution in wanted.items():
        with open_holdings(path) as held:
            found = held.find(name).headerlet
        far = separations(solution, found, {("SCI", 1): (1014, 1014)})
        assert max(m.summary()["max_mas"] for m in far) < 0.1
    assert not [k for k in fits.getheader(path, ("SCI", 1)) if k.startswith("CTYPE1B")]


def test_verify_finds_alternates_that_were_left_without(flc, own):
    archive.apply_alternate(flc, moved(own, 1e-4, GSC))
    with fits.open(flc, mode="update") as units:
        for version in (1, 2):
            header = units["SCI", version].header
            header["CTYPE1"], header["CTYPE2"], header["WCSNAME"] = "RA---TAN", "DEC--TAN", "OPUS"
            for key in [k for k in header if k[:2] in ("A_", "B_")]:
                del header[key]
    found = errors_of(flc)
    assert len([e for e in found if "alternate A" in e and "no SIP terms" in e]) == 2


def test_alternates_that_were_left_without_get_it_back(real):
    path = real("H_opus_alternates.fits", F02)
    before = sky(path, ("SCI", 1), key="A")
    with fits.open(path, mode="update", output_verify="ignore") as units:
        header = units["SCI", 1].header
        header["CTYPE1"], header["CTYPE2"], header["WCSNAME"] = "RA---TAN", "DEC--TAN", "OPUS"
        for key in [k for k in header if k[:2] in ("A_", "B_")]:
            del header[key]
    assert any("alternate A" in e for e in errors_of(path))
    archive.activate(path, "HDRLET,2")
    assert np.abs(sky(path, ("SCI", 1), key="A") - before).max() * 3.6e6 < 0.01
    assert not [e for e in errors_of(path) if "alternate" in e]


def test_a_letter_is_not_written_over_remnants(flc, own):
    with fits.open(flc, mode="update") as units:
        units["SCI", 1].header["CRVAL1A"] = 10.0
        units["SCI", 1].header["WCSNAMEA"] = "OLD"
    solution = moved(own, 1e-4, GSC)
    refused(flc, edits.Refused, lambda: archive.apply_alternate(flc, solution, letter="A"), "left")
    archive.apply_alternate(flc, solution)
    assert fits.getheader(flc, ("SCI", 1))["WCSNAMEB"] == GSC
    assert [f.text for f in invariants.check(flc) if "letter A" in f.text]
    archive.delete(flc, ["A"])
    header = fits.getheader(flc, ("SCI", 1))
    assert "CRVAL1A" not in header and header["WCSNAMEB"] == GSC


def test_a_letter_written_twice_is_a_doubt(real):
    path = real("e1.fits", F02)
    assert any("alternate C" in e and "twice" in e for e in errors_of(path))
    refused(path, HeaderletDamaged, lambda: archive.activate(path, "C"), "twice")
    archive.delete(path, ["C"])
    assert not [e for e in errors_of(path) if "alternate" in e]


def test_an_alternate_in_one_chip_does_not_stop_the_rest(real):
    path = real("B_onechip.fits", F02)
    with open_holdings(path) as held:
        rows = {r["key"]: r for r in invariants.holdings_table(held, distances=False)}
    assert rows["Z"]["doubts"] == ["it has no WCS of SCI,2"]
    refused(path, edits.Refused, lambda: archive.activate(path, "Z"), "no WCS of SCI,2")
    archive.activate(path, "HDRLET,3")
    assert fits.getheader(path, ("SCI", 2))["WCSNAME"] == "IDC_2731450pi-GSC240"
    assert any("alternate Z" in e for e in errors_of(path))
    archive.delete(path, ["Z"])
    assert not any("alternate Z" in e for e in errors_of(path))


# --- identity in files ----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_stwcs_headerlets_of_a_file_without_rootname(real, tmp_path, monkeypatch):
    stwcs = pytest.importorskip("stwcs.wcsutil.headerlet")
    monkeypatch.chdir(tmp_path)
    path = real("sample_ipppssoot_flt.fits")
    with fits.open(path, mode="update", output_verify="ignore") as units:
        for unit in units:
            for key in ("ROOTNAME", "EXPNAME", "FILENAME"):
                unit.header.remove(key, ignore_missing=True)
    theirs = stwcs.create_headerlet(path.name, hdrname="theirs", wcskey="PRIMARY")
    theirs.tofile("theirs_hlet.fits")
    assert read_headerlet(tmp_path / "theirs_hlet.fits").destim == path.name
    renamed = path.rename(tmp_path / "another_name.fits")
    archive.activate(renamed, "HDRLET,5")
    archive.attach(renamed, tmp_path / "theirs_hlet.fits")
    archive.activate(renamed, "theirs")
    assert errors_of(renamed) == []


def test_ours_of_a_renamed_file_by_force_or_by_facts(tmp_path):
    path = make_tpv(tmp_path / "m81.fits")
    solution = moved(archive.create(path), 1e-3, "FIT_IMG_X", HDRNAME="fit")
    renamed = path.rename(tmp_path / "m81_again.fits")
    refused(renamed, edits.WrongExposure, lambda: archive.attach(renamed, solution), "m81")
    with open_holdings(renamed) as held:
        assert not held.warnings
    change = archive.attach(renamed, solution, force=True)
    assert "WCS of m81" in change.warnings[0]
    archive.activate(renamed, "fit")
    assert np.array_equal(sky(renamed, 0), headerlet_sky(solution, ("PRIMARY", 1)))
    assert errors_of(renamed) == []


def test_default_beside_a_solution_of_its_name(real, data_dir):
    path = real("C_default.fits", F02)
    headerlet = default_solution(path, refs=data_dir / P05)
    archive.activate(path, headerlet, force=True)
    assert len(set(archive.names(path))) == 2
    assert same_solution(archive.solution_of(path), headerlet)
    archive.activate(path, default_solution(path, refs=data_dir / P05), force=True)
    assert len(archive.names(path)) == 2
    assert errors_of(path) == []


def test_default_has_the_frame_of_the_pipeline(real, data_dir):
    for stated, frame in (("GSC1", "FK5"), ("ICRS", "ICRS"), ("OTHER", "ICRS")):
        path = real("C_default.fits", F02)
        fits.setval(path, "REFFRAME", value=stated)
        made = default_solution(path, refs=data_dir / P05)
        assert {c.get("RADESYS") for c in made.chips} == {frame}


# --- history --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_stwcs_restores_after_our_changes(real, tmp_path, monkeypatch):
    stwcs = pytest.importorskip("stwcs.wcsutil.headerlet")
    monkeypatch.chdir(tmp_path)
    path = real("sample_ipppssoot_flt.fits")
    for number in (3, 5, 6, 3):
        archive.activate(path, f"HDRLET,{number}")
        rows = fits.getdata(path, "WCSCORR")
        assert rows["WCS_ID"][-1] == ""
        name = archive.names(path)[1]
        copy = tmp_path / "copy.fits"
        shutil.copyfile(path, copy)
        stwcs.restore_from_headerlet(str(copy), hdrname=name, force=True, archive=False)
        assert archive.solution_of(copy).wcsname == "IDC_w3m18525i"


def test_the_last_row_of_the_history_stays_blank(flc, own):
    for number in range(6):
        archive.activate(flc, moved(own, 1e-5 * (number + 1), f"{IDC}-C{number}"))
        with open_holdings(flc) as held:
            table, _ = find_wcscorr(held.file)
            assert table.rows["WCS_ID"][-1] == b"" and not table.faults()


# --- manners --------------------------------------------------------------------------------


def test_attach_is_all_or_nothing(flc, own, tmp_path):
    good = write_headerlet(moved(own, 1e-4, GSC), tmp_path / "good_hlet.fits")
    bad = write_headerlet(moved(own, 2e-4, FIT, DESTIM="j00000000"), tmp_path / "bad_hlet.fits")
    refused(flc, edits.WrongExposure, lambda: archive.attach(flc, good, bad))
    refused(flc, SettingError, lambda: archive.attach(flc, good, good, hdrname="one"))
    assert len(archive.attach(flc, good, bad, force=True).warnings) == 1
    assert archive.names(flc, "WCSNAME") == [GSC, FIT]


def test_convert_fits_over_the_chip_and_not_over_its_stamp(real):
    path = real("sample_ipppssoot_flt.fits")
    before = archive.solution_of(path)
    _, maps = exchange.convert(path, "tan")
    assert maps[0].shape == (1024, 1024)
    found = separations(before, archive.solution_of(path), {("SCI", 1): (1024, 1024)}, side=66)
    stated = maps[0].summary()["max_mas"]
    assert stated == pytest.approx(found[0].summary()["max_mas"], rel=1e-6) and stated > 100


def test_the_sun_is_not_compared_with_the_sky(real):
    path = real("r15_punch.fits", F02)
    rows = archive.listing(path)["solutions"]
    assert rows[1].get("distance_mas") is None and "HPLN" in rows[1]["problem"]
    first, second = (archive.solution_of(path, k) for k in ("active", "A"))
    with pytest.raises(SettingError, match="no distance"):
        separations(first, second, {})
    assert separations(second, second, {})[0].summary()["max_mas"] == 0.0


@pytest.mark.parametrize("broken", ["header", "size"])
def test_what_lies_behind_a_damaged_extension_is_there(real, broken):
    path = real("sample_ipppssoot_flc.fits")
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(3):
        at = data.index(b"XTENSION= 'HDRLET", at + 1)
    if broken == "header":
        data[at : at + 2880] = b"?" * 2880
    else:
        size = data.index(b"NAXIS1  =", at)
        data[size + 10 : size + 30] = b"%20s" % b"xyz"
    path.write_bytes(data)
    listed = archive.listing(path, distances=False)
    keys = [r["key"] for r in listed["solutions"]]
    assert [f"HDRLET,{n}" for n in (1, 2, 4, 5, 6, 7, 8)] == [
        k for k in keys if k.startswith("HDRLET") and k != "HDRLET,3"
    ]
    assert len(listed["damage"]) == 1 and any("no extension" in e for e in errors_of(path))
    before = path.stat().st_size
    archive.activate(path, "HDRLET,4")  # what cannot be read is copied as it is
    assert fits.getval(path, "WCSNAME", 1) == "IDC_2731450pi-HSC30"
    assert 0 <= path.stat().st_size - before < 250_000
    assert broken == "size" or b"?" * 2880 in path.read_bytes()


def test_duplicates_under_different_names(real):
    path = real("sample_ipppssoot_flc.fits")
    found = [f for f in invariants.check(path) if "is the solution of" in f.text]
    assert [f.text.split()[0] for f in found] == ["HDRLET,7"] and "--duplicates" in found[0].cure
    change = archive.delete(path, duplicates=True)
    assert "HDRLET,8 is HDRLET,7 now" in change.done
    assert not [f for f in invariants.check(path) if "is the solution of" in f.text]
    assert len(archive.names(path)) == 7


def test_one_name_of_two_solutions_is_no_duplicate(flc, own):
    first, second = (moved(own, d, GSC, HDRNAME="one") for d in (1e-4, 2e-4))
    archive.attach(flc, first)
    archive.attach(flc, second.replaced(HDRNAME="two"))
    with open_holdings(flc) as held:
        held.parts[-1] = embed(second, 2)
        held.file.save()
    assert not archive.delete(flc, duplicates=True).written


def test_a_headerlet_file_is_listed(own, tmp_path):
    path = write_headerlet(own.replaced(SIPNAME="j95y04hpq_other"), tmp_path / "a_hlet.fits")
    listed = archive.listing(path)
    assert listed["rootname"] == own.destim and listed["chips"] == ["SCI,1", "SCI,2"]
    assert "SIPNAME" in listed["solutions"][0]["doubts"][0]


def test_an_untouched_archive_file_has_no_error(real, data_dir, tmp_path):
    path = tmp_path / "j94f05bgq_flt.fits"
    shutil.copyfile(data_dir / "p12-wcs-zoo" / path.name, path)
    found = invariants.check(path)
    assert not [f for f in found if f.level == "error"]
    assert [f for f in found if "alternate O says -SIP" in f.text]


def test_a_text_that_is_no_header_is_one_error(tmp_path, recwarn):
    path, junk = make_tpv(tmp_path / "m81.fits"), tmp_path / "junk.head"
    for text in ("this is\nno header\n", "CTYPE1 = 12\nline 'two\nthree = <a>\n", "\0" * 9):
        junk.write_text(text)
        with pytest.raises(ImageError, match="no header with a WCS"):
            exchange.import_solution(path, junk)
    assert not [w for w in recwarn if "keyword" in str(w.message)]


def test_a_copy_of_an_extension_is_whole(flc, own, tmp_path):
    archive.attach(flc, moved(own, 1e-4, GSC))
    register_hdu()
    try:
        with fits.open(flc) as units:
            copy = units["HDRLET", 1].copy()
            assert same_solution(copy.headerlet, units["HDRLET", 1].headerlet)
            fits.HDUList([fits.PrimaryHDU(), copy]).writeto(tmp_path / "c.fits")
        with fits.open(tmp_path / "c.fits") as units:
            units.verify("exception")
            assert units[1].headerlet.wcsname == GSC
    finally:
        unregister_hdu()


def test_the_second_of_two_writers_waits(flc, own, monkeypatch):
    archive.attach(flc, moved(own, 1e-4, GSC))
    monkeypatch.setattr(opening, "LOCK_WAIT_S", 30.0)
    with open_holdings(flc, lock=True) as held:
        late = threading.Thread(target=archive.activate, args=(flc, GSC))
        late.start()
        time.sleep(0.05)
        held.primary.set("OBSERVER", "first")
        held.file.save()
    late.join()
    assert fits.getval(flc, "OBSERVER") == "first"  # nothing of the first one is lost
    assert fits.getval(flc, "WCSNAME", 1) == GSC
    monkeypatch.setattr(opening, "LOCK_WAIT_S", 0.01)
    with open_holdings(flc, lock=True):
        refused(flc, Temporary, lambda: archive.activate(flc, IDC), "another program")


def _switch(path, names, n):
    for number in range(n):
        archive.activate(path, names[number % 2])


def test_two_programs_that_write_all_the_time_both_get_through(flc, own):
    for shift, name in ((1e-4, GSC), (2e-4, FIT)):
        archive.attach(flc, moved(own, shift, name))
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    workers = [context.Process(target=_switch, args=(flc, names, 8))
               for names in ((GSC, FIT), (FIT, GSC))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0, 0]
    assert errors_of(flc) == [] and len(set(layout(flc))) == len(layout(flc))
