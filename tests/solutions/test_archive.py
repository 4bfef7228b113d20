"""Operations on files: nothing lost, nothing twice, and a refusal changes nothing."""

import fcntl
import shutil
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from exposures import digest, headerlet_sky, layout, make_flc, make_tpv, sky

from cynosure.data.fits import opening
from cynosure.data.fits import parts as fitsparts
from cynosure.data.fits.parts import Part
from cynosure.ground.errors import (
    CynosureError,
    ImageError,
    OutputError,
    OutputExists,
    SettingError,
    Temporary,
    Unverified,
)
from cynosure.solutions.files import archive, edits, exchange, invariants
from cynosure.solutions.files.compare import separations
from cynosure.solutions.files.contents import NoSuchSolution, open_holdings
from cynosure.solutions.files.headerlet import HeaderletDamaged
from cynosure.solutions.files.headerletio import read_headerlet, write_headerlet
from cynosure.solutions.files.wcscorr import COLUMNS, new_wcscorr

P04 = "p04-hst-headerlets"
GSC = "IDC_0461802ej-GSC240"
FIT = "IDC_0461802ej-FIT_REL_GAIADR2"
CHIPS = (("SCI", 1), ("SCI", 2))


def moved(headerlet, shift, name, **cards):
    """Return a solution that lies elsewhere, under a name of its own."""
    chips = []
    for chip in headerlet.chips:
        part = Part(list(chip.records))
        part.set("CRVAL1", chip.number("CRVAL1") + shift)
        part.remove(["HDRNAME", "WCSTYPE"])
        chips.append(replace(chip, records=part.records))
    stem = headerlet.hdrname.split("_IDC")[0]
    given = {"HDRNAME": f"{stem}_{name}-hlet.fits", **cards}
    return replace(headerlet, chips=tuple(chips)).replaced(WCSNAME=name, **given)


@pytest.fixture
def flc(tmp_path):
    return make_flc(tmp_path / "j95y04hpq_flc.fits")


@pytest.fixture
def held(flc):
    """Give an exposure that has two more solutions attached, and those."""
    own = archive.create(flc)
    solutions = moved(own, 1e-4, GSC), moved(own, 2e-4, FIT, NMATCH=50, RMS_RA=5.0, RMS_DEC=4.0)
    for headerlet in solutions:
        archive.attach(flc, headerlet)
    return flc, *solutions


def errors_of(path):
    return [f.text for f in invariants.check(path) if f.level == "error"]


# --- the operations -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "change"),
    [("CRVAL1", 1e-9), ("CD1_2", 1e-12), ("A_0_2", 1e-10), ("CTYPE1", "RA---SIN-SIP"),
     ("CRVAL1A", 1e-9)],
)
@pytest.mark.parametrize("verb", ["activate", "restore_all"])
def test_a_defect_of_applying_is_found_before_the_file_is_released(
    held, monkeypatch, keyword, change, verb
):
    flc, first, second = held
    archive.apply_alternate(flc, second, letter="A")
    before, apply = digest(flc), edits.put_active

    def faulty(held, *rest, **more):
        apply(held, *rest, **more)
        part = held.chips[-1].part
        value = part.get(keyword, 0.0)
        part.set(keyword, change if isinstance(change, str) else value + change)

    monkeypatch.setattr(edits, "put_active", faulty)
    with pytest.raises(Unverified, match="written"):
        if verb == "activate":
            archive.activate(flc, first)
        else:
            archive.restore_all(flc, primary=first.hdrname)
    assert digest(flc) == before
    assert [p.name for p in flc.parent.iterdir()] == [flc.name]


def test_a_defect_of_the_tables_is_found_before_the_file_is_released(held, monkeypatch):
    flc, first, _ = held
    before, apply = digest(flc), edits.put_active

    def faulty(held, *rest, **more):
        apply(held, *rest, **more)
        held.parts[:] = [p for p in held.parts if (p.name, p.version) != ("D2IMARR", 2)]

    monkeypatch.setattr(edits, "put_active", faulty)
    with pytest.raises(Unverified, match="written"):
        archive.activate(flc, first)
    assert digest(flc) == before


@pytest.mark.parametrize("keyword", ["CRVAL1", "CD2_2"])
def test_what_an_operation_must_not_touch_is_compared_too(held, monkeypatch, keyword):
    """A headerlet is attached, and the active WCS is not what it was."""
    flc, _, second = held
    before, attach = digest(flc), edits.attach_to

    def faulty(held, *rest, **more):
        part = held.chips[0].part
        part.set(keyword, part.get(keyword) * (1.0 + 1e-10))
        return attach(held, *rest, **more)

    monkeypatch.setattr(edits, "attach_to", faulty)
    with pytest.raises(Unverified, match="would change the active WCS"):
        archive.attach(flc, moved(second, 1e-5, f"{FIT}2"))
    assert digest(flc) == before


@pytest.mark.parametrize("fault", [1e-9, None])
def test_a_wrong_exchange_is_found_before_the_file_is_released(tmp_path, monkeypatch, fault):
    """Two complete WCSs of an image from the ground trade places."""
    path = make_tpv(tmp_path / "a.fits")
    old = archive.create(path)
    archive.apply_alternate(path, moved(old, 1e-3, "OTHER"))
    before, exchange_cards = digest(path), edits.exchanged_cards

    def faulty(records, letter):
        out, new = exchange_cards(records, letter)
        part = Part(out)
        if fault is None:
            part.remove(["CTYPE2"])
        else:
            part.set("CRVAL1", part.get("CRVAL1") + fault)
        return part.records, new

    monkeypatch.setattr(edits, "exchanged_cards", faulty)
    with pytest.raises(Unverified, match="written"):
        archive.activate(path, "OTHER")
    assert digest(path) == before


def test_attach_changes_nothing_else(flc):
    before = sky(flc, ("SCI", 2))
    change = archive.attach(flc, moved(archive.create(flc), 1e-4, GSC))
    assert change.written and change.path == flc
    assert layout(flc)[-1] == ("HDRLET", 1)
    assert np.array_equal(sky(flc, ("SCI", 2)), before)
    assert fits.getval(flc, "NEXTEND") == len(layout(flc)) - 1
    assert archive.names(flc) == [f"j95y04hpq_flc_{GSC}-hlet.fits"]
    assert archive.names(flc, "WCSNAME") == [GSC]
    again = archive.attach(flc, archive.solution_of(flc, GSC))
    assert not again.written and "already" in again.done[0]


def test_activate_is_the_headerlet_to_the_bit_and_keeps_what_was(held):
    flc, gsc, _ = held
    before = {t: sky(flc, t) for t in CHIPS}
    pixels = fits.getdata(flc, ("SCI", 1))
    archive.activate(flc, GSC)
    for target in CHIPS:
        assert np.array_equal(sky(flc, target), headerlet_sky(gsc, target))
    header = fits.getheader(flc, ("SCI", 1))
    assert header["WCSNAME"] == GSC and header["HDRNAME"] == gsc.hdrname
    assert header["WCSTYPE"] == "undistorted a priori solution based on GSC240"
    assert header["HISTORY"][0] == "kept" and header["CCDCHIP"] == 2
    assert header["S_REGION"].startswith("POLYGON ICRS 150.0")
    assert np.array_equal(fits.getdata(flc, ("SCI", 1)), pixels)
    archive.restore(flc, "IDC_0461802ej")
    for target in CHIPS:
        assert np.array_equal(sky(flc, target), before[target])
    assert errors_of(flc) == []


def test_a_hundred_switches_leave_no_clutter(held):
    flc = held[0]
    archive.activate(flc, FIT)
    archive.activate(flc, GSC)
    first, size = layout(flc), flc.stat().st_size
    truth = {t: sky(flc, t) for t in CHIPS}
    cards = len(fits.getheader(flc, ("SCI", 1)))
    for number in range(100):
        archive.activate(flc, FIT if number % 2 == 0 else GSC)
    assert layout(flc) == first
    assert flc.stat().st_size == size
    assert len(fits.getheader(flc, ("SCI", 1))) == cards
    assert all(np.array_equal(sky(flc, t), truth[t]) for t in CHIPS)
    table = fits.getdata(flc, "WCSCORR")
    rows = [tuple(row) for row in table if row["WCS_ID"]]
    assert len(rows) == len(set(rows)) == fits.getval(flc, "TROWS", "WCSCORR")


def test_fifty_switches_of_an_image_of_one_unit(tmp_path):
    path = make_tpv(tmp_path / "m81.fits", name="ORIGINAL")
    fit = moved(archive.create(path), 1e-3, "FIT_IMG_GAIADR3", HDRNAME="fit")
    archive.activate(path, fit)
    first = layout(path)
    truth = sky(path, 0)
    original = headerlet_sky(archive.solution_of(path, "ORIGINAL"), ("PRIMARY", 1))
    for _ in range(25):
        archive.activate(path, "ORIGINAL")
        assert np.array_equal(sky(path, 0), original)
        archive.activate(path, "FIT_IMG_GAIADR3")
    assert layout(path) == first
    assert np.array_equal(sky(path, 0), truth)
    assert fits.getval(path, "OBJECT") == "M 81"


def test_alternates_that_are_whole_are_exchanged(tmp_path):
    """A solved image has its old WCS under a letter; it comes back without a new extension."""
    from cynosure.pipelines.save import Request, save_image

    source = make_tpv(tmp_path / "m81.fits")
    new = fits.getheader(source)
    new["CRVAL1"] += 0.01
    wcs = fits.Header([c for c in new.cards if c.keyword.startswith(("C", "PV"))])
    wcs["WCSNAME"] = "FIT_IMG_GAIADR3"
    wcs["NMATCHES"], wcs["AST_CHI2"] = 77, 1.1
    path = save_image(source, tmp_path / "m81_wcs.fits", Request({0: wcs}, {}))
    solved, old = sky(path, 0), sky(source, 0)
    for _ in range(5):
        archive.activate(path, "ORIGINAL")
        assert np.array_equal(sky(path, 0), old)
        assert "NMATCHES" not in fits.getheader(path)
        archive.activate(path, "FIT_IMG_GAIADR3")
        assert np.array_equal(sky(path, 0), solved)
        assert fits.getheader(path)["NMATCHES"] == 77
        assert fits.getheader(path)["AST_CHI2"] == 1.1
    assert len(layout(path)) == 1


def test_extensions_keep_their_order(held):
    flc = held[0]
    first = layout(flc)
    archive.activate(flc, GSC)
    rest = [u for u in layout(flc) if u in first]
    assert rest == first


def test_a_linear_solution_leaves_the_tables_to_those_that_need_them(held):
    flc = held[0]
    before = {t: sky(flc, t) for t in CHIPS}
    archive.activate(flc, "O")
    header = fits.getheader(flc, ("SCI", 1))
    assert header["CTYPE1"] == "RA---TAN" and "A_ORDER" not in header
    assert np.array_equal(sky(flc, ("SCI", 1)), sky(flc, ("SCI", 1), key="O"))
    archive.activate(flc, "IDC_0461802ej")
    assert all(np.array_equal(sky(flc, t), before[t]) for t in CHIPS)
    assert fits.getheader(flc, ("SCI", 1))["WCSNAMEO"] == "OPUS"


def test_archive_alternate_and_restore_all(held):
    flc, gsc, fit = held
    archive.archive(flc)
    assert not archive.archive(flc).written
    archive.apply_alternate(flc, GSC)
    header = fits.getheader(flc, ("SCI", 2))
    assert header["WCSNAMEA"] == GSC and header["CTYPE1A"] == "RA---TAN-SIP"
    assert np.array_equal(sky(flc, ("SCI", 2), key="A"), headerlet_sky(gsc, ("SCI", 2)))
    archive.restore_all(flc)
    assert fits.getheader(flc, ("SCI", 1))["WCSNAME"] == FIT
    with open_holdings(flc) as found:
        names = {found.alternate(x).wcsname for x in found.letters}
    assert names == {"OPUS", GSC, "IDC_0461802ej"}
    with pytest.raises(NoSuchSolution, match="no headerlet has the distortion model"):
        archive.restore_all(flc, f"{fit.destim}_other-NOMODEL-NOMODEL")


def test_another_distortion_model_is_archived_and_comes_back(held):
    flc, gsc, _ = held
    before = sky(flc, ("SCI", 1))
    archive.apply_alternate(flc, GSC)
    plain = replace(gsc, tables=(), chips=tuple(
        replace(c, records=[r for r in c.records if not r[0].startswith(("DP", "D2IM", "CP"))])
        for c in gsc.chips
    )).replaced(
        WCSNAME="IDC_new", HDRNAME="new", IDCTAB="jref$new_idc.fits", NPOLFILE="N/A",
        D2IMFILE="N/A", DISTNAME="j95y04hpq_new-NOMODEL-NOMODEL",
    )
    with pytest.raises(edits.WrongDistortion, match="0461802ej"):
        archive.activate(flc, plain)
    archive.activate(flc, plain, force=True)
    assert not [u for u in layout(flc) if u[0] in ("WCSDVARR", "D2IMARR")]
    assert "WCSNAMEA" not in fits.getheader(flc, ("SCI", 1))
    assert fits.getval(flc, "IDCTAB") == "jref$new_idc.fits"
    archive.activate(flc, "IDC_0461802ej", force=True)
    assert np.array_equal(sky(flc, ("SCI", 1)), before)
    assert fits.getval(flc, "IDCTAB") == "jref$0461802ej_idc.fits"


def test_extver_is_unique_after_any_sequence(flc):
    rng = np.random.default_rng(2)
    own = archive.create(flc)
    for number in range(25):
        attached = archive.names(flc, "EXTVER")
        assert attached == [str(i + 1) for i in range(len(attached))]
        if len(attached) > 4 or (attached and rng.random() < 0.4):
            archive.delete(flc, [f"HDRLET,{rng.choice(attached)}"])
        else:
            archive.attach(flc, moved(own, 1e-5 * (number + 1), f"IDC_0461802ej-C{number}"))
    assert errors_of(flc) == []


def test_delete_keeps_what_must_stay(held):
    flc = held[0]
    for name in ("active", "O", "IDC_0461802ej"):
        with pytest.raises(edits.Refused):
            archive.delete(flc, [name])
    archive.activate(flc, GSC)
    rows = len(fits.getdata(flc, "WCSCORR"))
    archive.delete(flc, [FIT])
    assert FIT not in archive.names(flc, "WCSNAME")
    assert len(fits.getdata(flc, "WCSCORR")) == rows
    archive.delete(flc, distname="any_0461802ej-02c1450oj-02c1450nj")
    assert archive.names(flc) == []


def test_wcscorr_has_its_24_columns_and_tells_long_names_apart(held):
    flc = held[0]
    archive.activate(flc, GSC)
    with fits.open(flc) as units:
        units.verify("exception")
        table = units["WCSCORR"]
        assert [(c.name, c.format) for c in table.columns] == [
            (n, f) for n, f in COLUMNS
        ]
        rows = table.data
        filled = [r for r in rows if r["WCS_ID"]]
        assert [r["WCS_ID"] for r in filled[:2]] == ["OPUS", "OPUS"]
        assert filled[0]["WCS_key"] == "O"
        last = filled[-1]
        assert (last["WCS_ID"], last["EXTVER"], last["PA_V3"]) == (GSC, 2, 10.0)
        assert last["CRVAL1"] == units["SCI", 2].header["CRVAL1"]
        assert table.header["TROWS"] == len(filled)
    # The same first 24 letters of HDRNAME, another WCS: another row.
    other = moved(archive.solution_of(flc, GSC), 5e-5, GSC, HDRNAME=f"j95y04hpq_flc_{GSC}-2")
    archive.activate(flc, other)
    names = [r["HDRNAME"] for r in fits.getdata(flc, "WCSCORR") if r["WCS_ID"] == GSC]
    assert len(names) == 4 and len(set(names)) == 1


def test_wcscorr_has_a_row_for_an_extver_that_it_has_no_room_for(held):
    whole = archive.create(held[0])
    for version in (-2804639, 0, 1 << 20):
        chip = replace(whole.chips[0], target=("SCI", version))
        table = new_wcscorr()
        assert table.add(replace(whole, chips=(chip,)), 10.0) == 1
        assert table.rows["EXTVER"][0] == 0


def test_a_foreign_wcscorr_is_left_alone(held):
    flc = held[0]
    table = fits.BinTableHDU.from_columns([fits.Column("A", "J", array=[1, 2])])
    table.name = "WCSCORR"
    table.writeto(flc.with_name("t.fits"))
    flc.write_bytes(flc.read_bytes() + flc.with_name("t.fits").read_bytes()[2880:])
    change = archive.activate(flc, GSC)
    assert any("left as it is" in line for line in change.done)
    assert list(fits.getdata(flc, "WCSCORR")["A"]) == [1, 2]


def test_sums_stay_true(tmp_path):
    path = make_flc(tmp_path / "j95y04hpq_flc.fits", checksum=True)
    archive.activate(path, moved(archive.create(path), 1e-4, GSC))
    with fits.open(path, checksum=True) as units:  # warnings are errors here
        assert units["SCI", 1].header["WCSNAME"] == GSC
        assert [u for u in units if "CHECKSUM" in u.header]


def test_dry_run_and_out_leave_the_file(held, tmp_path):
    flc = held[0]
    before = digest(flc)
    change = archive.activate(flc, GSC, dry_run=True)
    assert not change.written and f"{GSC} is active" in change.done
    out = tmp_path / "other.fits"
    archive.activate(flc, GSC, out=out)
    assert digest(flc) == before
    assert fits.getval(out, "WCSNAME", ("SCI", 1)) == GSC
    with pytest.raises(OutputExists):
        archive.activate(flc, GSC, out=out)


# --- refusals -------------------------------------------------------------------------------


def refused(path, error, work, words="."):
    before, files = digest(path), sorted(path.parent.iterdir())
    with pytest.raises(error, match=words) as caught:
        work()
    assert isinstance(caught.value, CynosureError) and caught.value.exit_code > 1
    assert digest(path) == before and sorted(path.parent.iterdir()) == files


def test_refusals_change_nothing(held, tmp_path):
    flc, gsc, _ = held
    wrong = gsc.replaced(DESTIM="j00000000")
    for work in (archive.attach, archive.activate, archive.apply_alternate):
        refused(flc, edits.WrongExposure, lambda w=work: w(flc, wrong), "j00000000")
    other = moved(gsc, 1e-3, GSC)
    refused(flc, edits.NameTaken, lambda: archive.attach(flc, other), "has a headerlet")
    refused(flc, NoSuchSolution, lambda: archive.activate(flc, "nonsense"), "nonsense")
    refused(flc, NoSuchSolution, lambda: archive.activate(flc, "Q"), "no alternate")
    refused(flc, edits.Refused, lambda: archive.create(flc, "O"), "makes no headerlet")
    half = replace(gsc, chips=gsc.chips[:1])
    refused(flc, edits.Refused, lambda: archive.activate(flc, half), "no WCS of SCI,2")
    faulty = replace(gsc, tables=())
    refused(flc, HeaderletDamaged, lambda: archive.attach(flc, faulty), "not in it")
    refused(flc, HeaderletDamaged, lambda: archive.activate(flc, faulty), "not in it")
    path = tmp_path / "junk_hlet.fits"
    path.write_bytes(flc.read_bytes()[:100000])
    refused(flc, CynosureError, lambda: archive.attach(flc, path))


def test_two_headerlets_of_one_name(held):
    flc, gsc, _ = held
    with open_holdings(flc) as found:
        first = found.embedded[0]
        raw = first.header_bytes() + found.file.data_of(first)
    flc.write_bytes(flc.read_bytes() + raw)
    assert "2 headerlets are called" in " ".join(errors_of(flc))
    archive.delete(flc, duplicates=True)
    assert archive.names(flc).count(gsc.hdrname) == 1
    assert errors_of(flc) == []


def test_a_headerlet_that_is_not_fits_inside(held):
    flc = held[0]
    data = bytearray(flc.read_bytes())
    at = data.rfind(b"XTENSION= 'HDRLET")
    at += 2880 * (1 + data[at : at + 28800].find(b"END" + b" " * 77) // 2880)
    data[at : at + 2880] = b"?" * 2880
    flc.write_bytes(data)
    rows = archive.summary(flc)
    assert "not a FITS" in rows[1]["problem"]
    refused(flc, HeaderletDamaged, lambda: archive.activate(flc, "HDRLET,2"), "not a FITS")
    archive.activate(flc, GSC)
    assert any("not a FITS" in e for e in errors_of(flc))


def test_missing_tables_of_the_active_wcs(flc):
    other = moved(archive.create(flc), 1e-4, GSC)
    with fits.open(flc) as units:
        left = fits.HDUList([u for u in units if (u.name, u.ver) != ("D2IMARR", 3)])
        left.writeto(flc.with_name("x.fits"))
    shutil.move(flc.with_name("x.fits"), flc)
    refused(flc, edits.Refused, lambda: archive.activate(flc, other), "D2IMARR,3")
    assert "D2IMARR,3" in " ".join(errors_of(flc))
    archive.activate(flc, other, archive=False)
    assert errors_of(flc) == []


def test_read_only_locked_and_full(held, monkeypatch):
    flc = held[0]
    monkeypatch.setattr(opening, "LOCK_WAIT_S", 0.0)
    with flc.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused(flc, Temporary, lambda: archive.activate(flc, GSC), "another program")
    monkeypatch.setattr(fitsparts.os, "access", lambda *a: False)
    refused(flc, OutputError, lambda: archive.activate(flc, GSC), "read-only")
    monkeypatch.undo()

    real, calls = fitsparts._write_all, []

    def full(sink, data):
        calls.append(len(data))
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        real(sink, data)

    monkeypatch.setattr(fitsparts, "_write_all", full)
    refused(flc, OutputError, lambda: archive.activate(flc, GSC), "no space left")
    assert len(calls) > 20


def test_a_packed_file_needs_out(held, tmp_path):
    import gzip

    packed = tmp_path / "packed.fits.gz"
    packed.write_bytes(gzip.compress(held[0].read_bytes()))
    refused(packed, SettingError, lambda: archive.activate(packed, GSC), "compressed")
    out = archive.activate(packed, GSC, out=tmp_path / "plain.fits").path
    assert fits.getval(out, "WCSNAME", ("SCI", 1)) == GSC


def test_files_without_a_wcs_say_so(tmp_path):
    path = tmp_path / "none.fits"
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(path)
    with pytest.raises(ImageError, match="no image with a WCS"):
        archive.activate(path, "x")


# --- other software -------------------------------------------------------------------------


def test_convert_says_what_it_costs(tmp_path):
    path = make_tpv(tmp_path / "m81.fits", name="FIT_IMG_GAIADR3")
    before = sky(path, 0)
    _, exact = exchange.convert(path, "sip")
    assert exact[0].summary()["max_mas"] < 1e-3
    assert fits.getval(path, "CTYPE1") == "RA---TAN-SIP"
    assert np.abs(sky(path, 0) - before).max() * 3.6e6 < 1e-3
    refused(path, edits.Refused, lambda: exchange.convert(path, "tan", max_error_mas=1.0), "TAN")
    _, tan = exchange.convert(path, "tan")
    assert tan[0].summary()["max_mas"] > 1.0
    archive.activate(path, "FIT_IMG_GAIADR3")
    assert np.array_equal(sky(path, 0), before)


def test_tables_become_a_polynomial(flc):
    own = archive.create(flc)
    change, maps = exchange.convert(flc, "sip", max_degree=5)
    new = archive.solution_of(flc)
    assert not any(c.lookups for c in new.chips)
    assert change.written
    stated = [m.summary()["max_mas"] for m in maps]
    truth = [m.summary()["max_mas"] for m in separations(own, new, {c.target: (48, 64)
                                                                    for c in own.chips}, side=66)]
    assert stated == pytest.approx(truth) and min(stated) > 0.01


@pytest.mark.parametrize("kind", ["head", "wcs"])
def test_export_and_import(tmp_path, kind):
    path = make_tpv(tmp_path / "m81.fits", name="FIT_IMG_GAIADR3")
    before = sky(path, 0)
    out = tmp_path / f"m81.{kind}"
    assert exchange.export_solution(path, out) < 1e-3
    back = exchange.import_solution(path, out, name="BACK")
    archive.activate(path, back)
    assert np.abs(sky(path, 0) - before).max() * 3.6e6 < 1e-3
    assert fits.getval(path, "WCSNAME") == "BACK"


def test_scamp_and_its_old_dialect_are_imported(data_dir, tmp_path):
    path = make_tpv(tmp_path / "m81.fits")
    for name in ("example_scamp.head", "example_externcat_scamp_tpv.head"):
        found = exchange.import_solution(path, data_dir / "p12-wcs-zoo" / name)
        assert found.wcsname == "SCAMP" and found.wcs(1) is not None
        assert np.isfinite(sky_of(found)).all()
    assert found.chips[0].kinds[0] == "RA---TPV"


def sky_of(headerlet):
    return headerlet_sky(headerlet, headerlet.chips[0].target)


# --- real files and the incumbent -----------------------------------------------------------


@pytest.fixture(params=["flc", "flt"])
def real(request, data_dir, tmp_path):
    path = tmp_path / f"sample_{request.param}.fits"
    shutil.copyfile(data_dir / P04 / f"sample_ipppssoot_{request.param}.fits", path)
    return path


def test_every_real_headerlet_is_applied_and_restored(real):
    archive.archive(real)
    archive.archive(real)
    for version in archive.names(real, "EXTVER"):
        headerlet = archive.solution_of(real, f"HDRLET,{version}")
        archive.activate(real, f"HDRLET,{version}", force=True)  # one of the archive's is torn
        for chip in headerlet.chips:
            assert np.array_equal(sky(real, chip.target), headerlet_sky(headerlet, chip.target))
    n_units = len(layout(real))
    for name in archive.names(real):
        archive.activate(real, name, force=True)
    assert len(layout(real)) == n_units


def test_distances_of_the_real_solutions(real):
    """Median distances from the active WCS; those of the archive's own log, in mas."""
    ranges = {"GSC240": (400, 560), "HSC30": (150, 250), "FIT_": (0, 20), "IDC": (260, 420)}
    with open_holdings(real) as found:
        rows = archive.holdings_table(found)
    seen = set()
    for row in rows[1:]:
        if row["doubts"] or row["wcsname"] == "OPUS":
            continue
        kind = next(k for k in ranges if k in row["wcsname"])
        low, high = ranges[kind]
        assert low <= row["distance_mas"]["median"] <= high, row
        seen.add(kind)
    assert seen == set(ranges)


@pytest.mark.filterwarnings("ignore")
def test_stwcs_reads_ours_and_we_read_its(real, tmp_path, monkeypatch):
    stwcs = pytest.importorskip("stwcs.wcsutil.headerlet")
    monkeypatch.chdir(tmp_path)
    own = archive.create(real, hdrname="mine", author="a test")
    write_headerlet(own, tmp_path / "mine_hlet.fits")
    archive.attach(real, own)
    archive.activate(real, "HDRLET,2")
    assert stwcs.get_headerlet_kw_names(str(real)) == archive.names(real)
    theirs = stwcs.Headerlet.fromfile("mine_hlet.fits")
    assert theirs.hdrname == "mine"
    stwcs.restore_from_headerlet(str(real), hdrname="mine", force=True, archive=False)
    assert all(
        m.summary()["max_mas"] == 0.0 for m in separations(own, archive.solution_of(real), {})
    )
    stwcs.extract_headerlet(str(real), "theirs_hlet.fits", extnum=layout(real).index(("HDRLET", 3)),
                            clobber=True)
    found = read_headerlet(tmp_path / "theirs_hlet.fits")
    assert found.hdrname == archive.names(real)[2] and not found.faults()


def test_the_telescopes_own_wcs_gets_the_letter_o(flc):
    with fits.open(flc, mode="update") as units:
        for version in (1, 2):
            header = units["SCI", version].header
            for keyword in [k for k in header if k.endswith("O") and k != "TELESCOPO"]:
                del header[keyword]
            header["WCSNAME"] = "OPUS"
    own = archive.create(flc)
    archive.activate(flc, moved(own, 1e-4, GSC))
    header = fits.getheader(flc, ("SCI", 2))
    assert header["WCSNAMEO"] == "OPUS" and header["CTYPE1O"] == "RA---TAN"
    assert header["CRVAL1O"] == own.chips[1].number("CRVAL1")
    archive.activate(flc, moved(own, 2e-4, FIT))
    assert fits.getheader(flc, ("SCI", 2))["CRVAL1O"] == header["CRVAL1O"]
    assert fits.getdata(flc, "WCSCORR")["WCS_key"][0] == "O"


def test_combined_products_get_no_history(flc):
    fits.setval(flc, "NDRIZIM", value=8)
    archive.activate(flc, moved(archive.create(flc), 1e-4, GSC))
    assert ("WCSCORR", 1) not in layout(flc)


def test_compressed_images_go_the_same_way(tmp_path):
    plain = make_tpv(tmp_path / "m81.fits")
    path = tmp_path / "m81.fits.fz"
    with fits.open(plain) as units:
        tiles = fits.CompImageHDU(units[0].data, units[0].header)
        fits.HDUList([fits.PrimaryHDU(), tiles]).writeto(path)
    before = sky(path, 1)
    archive.activate(path, moved(archive.create(path), 1e-3, "FIT_IMG_X", HDRNAME="fit"))
    assert not np.array_equal(sky(path, 1), before)
    archive.activate(path, "ORIGINAL")
    assert np.array_equal(sky(path, 1), before)
    assert np.array_equal(fits.getdata(path, 1), fits.getdata(plain))
