"""The store, on SQLite and on PostgreSQL alike."""

import dataclasses
import datetime
import gzip
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS
from exposures import headerlet_sky, make_flc, make_tpv
from exposures import sky as exposure_sky
from headerlets import make_headerlet, variants
from postgres import server  # noqa: F401 (a fixture)
from sqlalchemy import inspect, text

from cynosure.ground import sky
from cynosure.ground.errors import (
    CatalogDamaged,
    CynosureError,
    ExitCode,
    ImageError,
    OutputError,
    OutputExists,
    SettingError,
    StoreUnavailable,
    Temporary,
)
from cynosure.solutions.files import archive
from cynosure.solutions.files.headerlet import HeaderletDamaged
from cynosure.solutions.files.headerletio import parse_headerlet
from cynosure.solutions.solution import Solution
from cynosure.solutions.store import migrations, schema
from cynosure.solutions.store.database import Database
from cynosure.solutions.store.export import export_store, import_store
from cynosure.solutions.store.intake import entries_of_bytes, read_entries, read_headerlet
from cynosure.solutions.store.query import Query, conditions
from cynosure.solutions.store.records import read_record
from cynosure.solutions.store.store import Added, GuideStars, Store

CHILD = Path(__file__).parent / "storewriter.py"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    """Give the URL of an empty place for a store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    pg = request.getfixturevalue("server")
    return pg.new_database()


@pytest.fixture
def store(url):
    with Store(url, create=True) as opened:
        yield opened


def entry(*args, **kwargs):
    return read_headerlet(make_headerlet(*args, **kwargs))


IDC = "IDC_0461802ej"
FIT = f"{IDC}-FIT_REL_GAIADR2"


def fit(rootname="j95y04hpq", wcsname=FIT, rms=8.0, nmatch=100, **kwargs):
    primary = {"RMS_RA": rms, "RMS_DEC": rms, "NMATCH": nmatch,
               "FIT_RMS": rms * 1.4, "CATALOG": wcsname.rpartition("_")[2],
               **kwargs.pop("primary", {})}
    return entry(rootname, wcsname, primary=primary, **kwargs)


# --- adding and giving back -----------------------------------------------------------------------


def test_what_goes_in_comes_out(store):
    one = fit(primary={"DATE": "2021-01-05T05:23:11"})
    assert store.add([one]) == Added(1, 0)
    [kept] = store.find(Query(rootname="j95y04hpq"))
    assert (kept.wcsname, kept.kind, kept.catalog) == (FIT, "a posteriori", "GAIADR2")
    assert (kept.idctab, kept.npol, kept.d2im) == ("0461802ej", "02c1450oj", "02c1450nj")
    assert (kept.rms_ra_mas, kept.nmatch, kept.created) == (8.0, 100, "2021-01-05T05:23:11")
    assert kept.valid
    assert np.array_equal(kept.corners, one.corners)
    assert store.payload(kept.content_sha256) == one.payload
    assert store.get(kept.content_sha256).id == kept.id
    assert store.get("0" * 64) is None
    with pytest.raises(SettingError, match="no such solution"):
        store.payload("0" * 64)


def test_the_same_content_is_kept_once(store):
    first = make_headerlet(primary={"DATE": "2021-01-05T05:23:11"})
    again = make_headerlet(primary={"DATE": "2024-12-31T00:00:00"})
    padded = first + b"\0" * 2880
    other = make_headerlet(ra=150.0001)
    assert store.add(map(read_headerlet, [first, again, padded, first])) == Added(1, 3)
    assert store.add([read_headerlet(first), read_headerlet(other)]) == Added(1, 1)
    assert store.count() == 2
    [kept] = [s for s in store.find() if s.created == "2021-01-05T05:23:11"
              and abs(s.corners[0, 0, 0] - read_headerlet(first).corners[0, 0, 0]) < 1e-9]
    assert store.payload(kept.content_sha256) == first


def test_tables_are_shared_and_files_whole(store):
    data = make_headerlet()
    names = [f"j95y{i:05d}" for i in range(40)]
    made = [read_headerlet(d) for d in variants(data, names)]
    store.add(made)
    with store.database.read() as connection:
        shared = connection.scalar(text("SELECT count(*) FROM pieces"))
        own = connection.scalar(text("SELECT max(length(body)) FROM payloads"))
    assert shared == 8
    assert own < len(data) / 4
    assert dict(store.payloads([e.content_sha256 for e in made])) == {
        e.content_sha256: e.payload for e in made
    }


def test_a_solution_is_told_by_its_wcs(store):
    """Names of headerlets, dates and the last digits of numbers make no other solution."""
    first = entry(wcsname=FIT, tables=False)
    twins = [
        entry(wcsname=FIT, tables=False, hdrname="another", primary={"AUTHOR": "x"}),
        entry(wcsname=FIT, tables=False, primary={"DATE": None}),
        # What twenty columns of a card leave of a number.
        entry(wcsname=FIT, tables=False, ra=150.0 + 3e-13),
    ]
    whole = parse_headerlet(first.payload).chips[0]
    others = [
        entry(wcsname=FIT, tables=False, ra=150.0 + 1e-8), entry(wcsname=IDC, tables=False),
        entry("j95y04hqq", FIT, tables=False), entry(wcsname=FIT),
        entry(wcsname=FIT, tables=False, A_0_4=whole.number("A_0_4") * (1 + 1e-7)),
        entry(wcsname=FIT, tables=False, RADESYS="FK4"),
    ]
    assert {e.identity for e in twins} == {first.identity}
    assert len({e.identity for e in [first, *others]}) == 1 + len(others)
    assert store.add([first, *twins]) == Added(1, 3)
    assert store.add([*others, *twins]) == Added(len(others), 3)
    assert store.add(twins[:1]) == Added(0, 1)


def test_a_damaged_copy_does_not_stand_for_a_whole_one(store):
    whole = make_headerlet(tables=True)
    bad, good = read_headerlet(whole.replace(b"'WCSDVARR'", b"'WCSDVARX'")), read_headerlet(whole)
    assert (bool(bad.faults), good.faults) == (True, ())
    assert store.add([bad]) == store.add([good]) == Added(1, 0)
    assert store.best("j95y04hpq").content_sha256 == good.content_sha256


def test_what_only_another_file_says_is_learnt(store):
    bare = entry(wcsname=FIT, primary={"DATE": None, "RMS_RA": None, "RMS_DEC": None,
                                       "AUTHOR": None, "NMATCH": None})
    told = fit(hdrname="told")
    for order in ([bare, told], [told, bare]):
        store.add(order[:1])
        store.add(order[1:])
        [kept] = store.find()
        assert (kept.created, kept.rms_ra_mas, kept.nmatch) == ("2021-01-05T05:23:11", 8.0, 100)
        assert store.payload(kept.content_sha256) == order[0].payload
        store.remove(kept.content_sha256)
    assert store.add([bare, told]) == Added(1, 1)  # in one batch
    assert store.find()[0].nmatch == 100


def test_switches_bring_nothing_new(store, tmp_path):
    """Active, alternate, headerlet: the same three solutions, wherever they lie in the file."""
    (tmp_path / "fitted").mkdir()
    path = make_flc(tmp_path / "j95y04hpq_flc.fits")
    fitted = make_flc(tmp_path / "fitted" / "j95y04hpq_flc.fits")
    with fits.open(fitted, mode="update") as units:
        for k in (1, 2):
            units["SCI", k].header["WCSNAME"] = FIT
            units["SCI", k].header["CRVAL1"] += 1e-4
    other = archive.create(fitted).replaced(DATE="2021-01-05T05:23:11", HDRNAME="mine")
    assert store.add(read_entries(path)) == Added(2, 0)
    archive.activate(path, other)
    assert store.add(read_entries(path)).new == 1
    for name in (IDC, FIT, "OPUS", IDC, FIT):
        archive.activate(path, name, force=True)
        made = list(read_entries(path))
        assert not [e for e in made if isinstance(e, CynosureError)]
        assert store.add(made).new == 0, name
    assert {s.wcsname: s.created for s in store.find()} == {
        IDC: None, "OPUS": None, FIT: "2021-01-05T05:23:11"}


def test_a_record_and_the_image_it_is_of(store, tmp_path):
    """The record of a solve and the solved image hold one solution."""
    path = make_tpv(tmp_path / "m81_wcs.fits", name="FIT_IMG_GAIADR3")
    header = fits.getheader(path)
    cards = {k: header[k] for k in header if re.match(r"CTYPE|CRVAL|CRPIX|CD\d|PV", k)}
    record = Solution(
        "m81.fits", status="solved", quality=1, wcsname="FIT_IMG_GAIADR3", n_used=120,
        rms_ra_mas=20.0, rms_dec_mas=22.0, created="2026-01-02T03:04:05+00:00",
        chips=({"name": "m81.fits", "hdu": 0, "shape": [48, 64], "cards": cards},),
    )
    assert store.add(read_entries(path)) == Added(1, 0)
    assert store.find()[0].created is None
    assert store.add([read_record(record.to_json())]) == Added(0, 1)
    [kept] = store.find()
    assert (kept.quality, kept.nmatch, kept.created) == (1, 120, "2026-01-02T03:04:05")


def test_dates_are_never_made_up(store, tmp_path):
    """What no file states is null, in the store and as JSON, and counts as the oldest."""
    path = make_flc(tmp_path / "j95y04hpq_flc.fits")
    archive.archive(path, "active")
    made = list(read_entries(path))
    assert {e.created for e in made} == {None}
    assert all(parse_headerlet(e.payload).text("DATE") == "" for e in made)
    store.add([*made, entry(ra=150.01, hdrname="dated")])
    rows = json.loads(json.dumps([s.to_dict() for s in store.find(Query(wcsname=IDC))]))
    assert [r["created"] for r in rows] == [None, "2021-01-05T05:23:11"]
    best = store.best("j95y04hpq")
    assert best.hdrname == "dated"
    assert "nobody knows when" in next(
        c.reason for c in best.considered if c.wcsname == IDC and c.verdict != "chosen")
    for bound in ({"created_since": "1900"}, {"created_until": "2100"}):
        assert [s.hdrname for s in store.find(Query(**bound))] == ["dated"]


def test_a_damaged_file_in_the_store_is_not_given_out(store):
    one = entry()
    store.add([one])
    with store.database.engine.begin() as connection:
        body = connection.scalar(text("SELECT body FROM pieces"))
        broken = bytes(body[:3000]) + b"X" + bytes(body[3001:])
        connection.execute(text("UPDATE pieces SET body = :b"), {"b": broken})
    with pytest.raises(CatalogDamaged, match="damaged"):
        store.payload(one.content_sha256)


def test_a_solved_image(store, tmp_path):
    cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 20.0,
             "CRPIX1": 500.5, "CRPIX2": 250.5, "CD1_1": -1e-3, "CD1_2": 0.0, "CD2_1": 0.0,
             "CD2_2": 1e-3}
    record = Solution(
        "night/m81.fits.fz", status="solved", quality=1, wcsname="FIT_IMG_GAIADR3",
        catalog="GAIADR3", n_used=120, rms_ra_mas=20.0, rms_dec_mas=22.0,
        settings={"fit": {"a": 1}}, created="2026-01-02T03:04:05+00:00", seconds={"total": 1.0},
        chips=({"name": "m81", "hdu": 0, "shape": [500, 1000], "cards": cards},),
    )
    path = tmp_path / "m81.solution.json"
    path.write_text(record.to_json())
    assert store.add(read_entries(path)) == Added(1, 0)
    later = record.replaced(created="2027-01-01T00:00:00", seconds={"total": 2.0})
    assert store.add([read_record(later.to_json())]) == Added(0, 1)
    [kept] = store.find(Query(rootname="m81"))
    assert (kept.quality, kept.nmatch, kept.settings) == (1, 120, {"fit": {"a": 1}})
    assert kept.created == "2026-01-02T03:04:05"
    assert Solution.from_json(store.payload(kept.content_sha256).decode()) == record
    assert sky.separation_deg(kept.ra_deg, kept.dec_deg, 10.0, 20.0) < 1e-3
    assert kept.radius_deg == pytest.approx(np.hypot(0.5, 0.25), rel=1e-3)
    with pytest.raises(ImageError, match="no solution"):
        read_record(record.replaced(status="failed").to_json())


# --- finding --------------------------------------------------------------------------------------


def test_queries(store):
    store.add([
        entry("a1", IDC), fit("a1", rms=5.0, nmatch=300, primary={"DATE": "2020-06-01T00:00:00"}),
        fit("a1", f"{IDC}-FIT_IMG_GAIAeDR3", rms=12.0, primary={"DATE": "2022-06-01T00:00:00"}),
        entry("b_2", "OPUS"), entry("bx2", f"{IDC}-GSC240", primary={"CATALOG": "GSC240"}),
        fit("c*3", rms=400.0),
    ])
    def names(**query):
        return [(s.rootname, s.wcsname.removeprefix(IDC)) for s in store.find(Query(**query))]

    assert len(names(rootname="a1")) == 3
    assert names(rootname="b_2") == [("b_2", "OPUS")]
    assert names(rootname="b*") == [("b_2", "OPUS"), ("bx2", "-GSC240")]
    assert names(rootname="c\\*3") == [("c*3", "-FIT_REL_GAIADR2")]
    assert names(rootname="a") == []
    assert names(wcsname="*FIT_IMG*") == [("a1", "-FIT_IMG_GAIAeDR3")]
    assert names(catalog="gaiaEDR3") == [("a1", "-FIT_IMG_GAIAeDR3")]
    assert names(kind="a priori") == [("bx2", "-GSC240")]
    assert names(max_rms_mas=6.0) == [("a1", "-FIT_REL_GAIADR2")]
    assert names(created_since="2022-01-01") == [("a1", "-FIT_IMG_GAIAeDR3")]
    assert names(created_until="2020-12-31", rootname="a1") == [("a1", "-FIT_REL_GAIADR2")]
    assert len(names(added_since="2020-01-01")) == 6
    assert names(added_until="2020-01-01") == []
    assert [s.id for s in store.find(limit=2, offset=3)] == [s.id for s in store.find()][3:5]
    counts = [(e.rootname, e.n_solutions) for e in store.exposures()]
    assert counts == [("a1", 3), ("b_2", 1), ("bx2", 1), ("c*3", 1)]
    assert [e.rootname for e in store.exposures(after="b_2", limit=1)] == ["bx2"]


@pytest.mark.parametrize(("bounds", "n"), [
    ({"created_until": "2021-01-05"}, 2), ({"created_until": "2021-01-04"}, 1),
    ({"created_until": "2021-01"}, 2), ({"created_until": "2020"}, 1),
    ({"created_since": "2021-01-05"}, 2), ({"created_since": "2021-01-06"}, 1),
    ({"created_until": "2021-01-05T05:23"}, 2), ({"created_until": "2021-01-05 05:22:59"}, 1),
    ({"created_until": "2021-01-05T06:23:11+01:00"}, 2),
    ({"created_until": "2021-01-05T06:23:10+01:00"}, 1),
    ({"created_since": "2021-01-05T05:23:11", "created_until": "2021-01-05T05:23:11"}, 1),
    ({"created_since": datetime.date(2021, 1, 5)}, 2),
    ({"created_until": datetime.datetime(2021, 1, 5, 5, 23, 11)}, 2),
    ({"created_until": Time("2021-01-05T05:23:48.184", scale="tai")}, 2),  # 37 s before in UTC
    ({"created_until": Time("2021-01-05T05:23:47", scale="tai")}, 1),
    ({"added_since": "2020-01-01", "added_until": "9998"}, 3), ({"added_until": "2020-01-01"}, 0),
])
def test_dates_are_values(store, bounds, n):
    dates = ("1997-12-31", "2021-01-05T05:23:11", "2022-06-01T00:00:00")
    store.add(entry(ra=150.0 + k, primary={"DATE": d}) for k, d in enumerate(dates))
    assert len(store.find(Query(**bounds))) == n


@pytest.mark.parametrize("text", [
    "yesterday", "", "2021-13", "2021-02-30", "2021-1-5", "05/01/2021", "20210105", "0000",
    "2021-01-05T25:00", "2021-01-05T05", "2021-01-05; drop", 2021, "9999",
])
def test_what_is_no_date(text):
    with pytest.raises(SettingError, match=r"created_until: .* is no date") as caught:
        conditions(Query(created_until=text))
    assert "2021-01-05T05:23" in caught.value.hint
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("ra", "dec"), [(0.0, 0.0), (359.99999, -60.0), (180.0, 89.98), (7.0, -89.98)])
def test_an_exposure_is_where_its_best_solution_has_it(store, ra, dec):
    """Not at the right ascension of one solution and the declination of another."""
    store.add([
        entry(wcsname="OPUS", ra=ra, dec=dec), entry(wcsname=IDC, ra=(ra + 0.02) % 360, dec=dec),
        fit(ra=(ra + 0.01) % 360, dec=max(dec - 0.01, -89.99)), entry("z1", ra=ra, dec=dec),
    ])
    [one, other] = store.exposures()
    [best] = [s for s in store.find() if s.content_sha256 == store.best("j95y04hpq").content_sha256]
    assert (one.ra_deg, one.dec_deg) == (best.ra_deg, best.dec_deg)
    assert (one.n_solutions, one.fitted, other.n_solutions) == (3, True, 1)
    v = sky.unit_vectors(*best.corners.reshape(-1, 2).T)
    assert sky.separation_deg(one.ra_deg, one.dec_deg, *sky.radec(v.mean(axis=0))) < 1e-9
    assert sky.separation_deg(one.ra_deg, one.dec_deg, ra, dec) < 0.05
    assert store.exposures(limit=1) == [one]
    assert store.exposures(after="j95y04hpq") == [other]
    store.choose("j95y04hpq", "OPUS")
    [chosen] = store.find(Query(wcsname="OPUS"))
    assert (store.exposures()[0].ra_deg, store.exposures()[0].dec_deg) == (
        chosen.ra_deg, chosen.dec_deg)


def test_queries_by_quality(store):
    rows = [dataclasses.replace(fit(f"q{q}"), quality=q) for q in (1, 2, 3, 4, 5, -1)]
    store.add(rows)
    assert [s.quality for s in store.find(Query(max_quality=2))] == [1, 2]


@pytest.mark.parametrize("seed", [1, 2])
def test_cones_against_brute_force(store, seed):
    """Fields of all sizes, at the poles and the meridian too, found by the area they share."""
    rng = np.random.default_rng(seed)
    fields = []
    for k in range(80):
        v = rng.normal(size=3)
        ra, dec = (float(a) for a in sky.radec(v))
        if k % 5 == 0:
            ra, dec = float(rng.uniform(-0.5, 0.5) % 360), float(rng.uniform(88.5, 90))
        half = float(10 ** rng.uniform(-2.5, 0.9))
        x, y = np.array([-1, 1, 1, -1]) * half, np.array([-1, -1, 1, 1]) * half
        corners = np.stack(sky.deproject(x, y, ra, dec), axis=-1)[None]
        fields.append(dataclasses.replace(
            fit(f"f{k}", chips=1, tables=False), corners=corners, content_sha256=f"{k:064d}",
        ))
    store.add(fields)
    grid = np.linspace(-1, 1, 25)
    for _ in range(12):
        center = fields[rng.integers(len(fields))].circle()
        radius = float(10 ** rng.uniform(-3, 1.2))
        ra0 = (center[0] + rng.normal() * 3 * radius) % 360
        dec0 = float(np.clip(center[1] + rng.normal() * 2 * radius, -90, 90))
        found = {s.rootname for s in store.find(Query(cone=(ra0, dec0, radius)))}
        for f in fields:
            # Points of the field itself: those within the circle prove that it touches; where
            # even a circle widened by the grid's step is empty it does not.
            q = sky.unit_vectors(f.corners[0, :, 0], f.corners[0, :, 1])
            s, t = (g.ravel()[:, None] for g in np.meshgrid(grid, grid))
            p = (1 - s) * (1 - t) * q[0] + (1 + s) * (1 - t) * q[1]
            p = p + (1 + s) * (1 + t) * q[2] + (1 - s) * (1 + t) * q[3]
            ra, dec = sky.radec(p)
            nearest = float(sky.separation_deg(ra, dec, ra0, dec0).min())
            step = 1.5 * 2 * f.circle()[2] / 24
            if nearest <= radius:
                assert f.rootname in found
            elif nearest > radius + step:
                assert f.rootname not in found
    with pytest.raises(SettingError, match="not on the sky"):
        store.find(Query(cone=(0.0, 91.0, 1.0)))
    assert len(store.find(Query(cone=(0.0, 0.0, 180.0)))) == 80


# --- deciding -------------------------------------------------------------------------------------


def test_best_choice_and_history(store):
    old = fit(rms=8.0)
    store.add([entry("j95y04hpq", IDC), entry("j95y04hpq", f"{IDC}-GSC240"), old])
    best = store.best("j95y04hpq")
    assert (best.wcsname, best.rule) == (FIT, "hierarchy")
    store.record(best)
    assert store.last_decision("j95y04hpq") == best
    assert store.proposals() == []
    time.sleep(0.005)
    store.add([fit(wcsname=f"{IDC}-FIT_REL_GAIAeDR3", rms=6.0)])
    [(before, now)] = store.proposals()
    assert (before.wcsname, now.wcsname) == (FIT, f"{IDC}-FIT_REL_GAIAeDR3")
    chosen = store.choose("j95y04hpq", f"{IDC}-GSC240", made_by="observer")
    assert (chosen.rule, chosen.made_by) == ("user", "observer")
    assert store.best("j95y04hpq").wcsname == f"{IDC}-GSC240"
    assert store.proposals() == []
    store.choose("j95y04hpq", "")
    assert store.best("j95y04hpq").wcsname == f"{IDC}-FIT_REL_GAIAeDR3"
    whats = [event["what"] for event in store.history("j95y04hpq")]
    assert whats.count("solution") == 4
    assert whats[-2:] == ["choice withdrawn", "decision"]
    with pytest.raises(SettingError, match="no solutions are called NOPE"):
        store.choose("j95y04hpq", "NOPE")
    store.add([fit(hdrname="another", ra=150.001)])
    with pytest.raises(SettingError, match="2 solutions are called"):
        store.choose("j95y04hpq", FIT)
    assert store.choose("j95y04hpq", "another").hdrname == "another"
    assert store.best("nobody").reason == "no solution is known"


def test_a_choice_of_nothing_is_not_taken_back(store):
    store.add([entry(), fit()])
    for dry_run in (True, False):
        with pytest.raises(SettingError, match="nobody: no such exposure"):
            store.choose("nobody", "", dry_run=dry_run)
    assert store.history("nobody") == []
    assert store.choose("j95y04hpq", "").wcsname == FIT  # there was no choice: nothing to write
    store.choose("j95y04hpq", IDC, dry_run=True)
    assert [e["what"] for e in store.history("j95y04hpq")] == ["solution", "solution"]
    store.choose("j95y04hpq", IDC)
    store.choose("j95y04hpq", "")
    store.choose("j95y04hpq", "")
    whats = [e["what"] for e in store.history("j95y04hpq")]
    assert whats[2:] == ["decision", "choice withdrawn", "decision"]


def test_a_doubtful_choice_says_so(store):
    data = make_headerlet(wcsname=FIT)
    at = data.rindex(FIT.encode())
    torn = read_headerlet(data[:at] + data[at:].replace(FIT.encode(), IDC.ljust(len(FIT)).encode()))
    assert torn.doubts
    store.add([torn, entry(wcsname="OPUS")])
    best = store.best("j95y04hpq")
    assert best.wcsname == "OPUS"
    assert "doubtful: SIPWCS," in best.considered[1].reason
    forced = store.choose("j95y04hpq", torn.content_sha256)
    assert (forced.wcsname, "doubtful: SIPWCS," in forced.reason) == (FIT, True)


def test_guide_stars(store):
    row = GuideStars("j95y04hpq", 1e-5, 2e-5, 0.0, 1.0, 150.0, 2.0, 150.00001, 2.00002, "GSC240")
    store.set_guide_stars(dataclasses.replace(row, catalog="GSC1"))
    store.set_guide_stars(row)
    assert store.guide_stars("J95Y04HPQ") == row
    assert store.guide_stars("other") is None
    with pytest.raises(SettingError, match="delta_ra_deg"):
        GuideStars.from_dict({**dataclasses.asdict(row), "delta_ra_deg": float("nan")})


def test_remove(store):
    one = entry()
    store.add([one])
    assert store.remove(one.content_sha256)
    assert not store.remove(one.content_sha256)
    assert store.count() == 0
    assert store.find(Query(cone=(150.0, 2.0, 1.0))) == []
    assert store.add([one]) == Added(1, 0)
    assert store.payload(one.content_sha256) == one.payload


# --- whole stores ---------------------------------------------------------------------------------


def filled(store):
    sized = {("SCI", k): (100, 200) for k in (1, 2)}  # what the image said, no headerlet does
    store.add([entry("a1", IDC), fit("a1"), entry("b2", "OPUS", tables=False),
               read_headerlet(make_headerlet("c3", tables=False), shapes=sized)])
    store.record(store.best("a1"))
    store.choose("a1", IDC, made_by="me")
    store.set_guide_stars(GuideStars("a1", 1e-5, 0, 0, 1, 150, 2, 150.00001, 2, "GSC240"))


def test_export_and_import(store, tmp_path):
    filled(store)
    facts = export_store(store, tmp_path / "out")
    assert (facts["solutions"], facts["decisions"], facts["guide_stars"]) == (4, 2, 1)
    with Store(tmp_path / "copy.db", create=True) as copy:
        assert import_store(copy, tmp_path / "out") == Added(4, 0)
        assert import_store(copy, tmp_path / "out") == Added(0, 4)
        for a, b in zip(store.find(), copy.find(), strict=True):
            mine, theirs = a.to_dict(), b.to_dict()
            del mine["id"], theirs["id"]
            assert mine == theirs
            assert copy.payload(a.content_sha256) == store.payload(a.content_sha256)
        assert [s.extent for s in copy.find()] == ["tables", "tables", "assumed", "image"]
        assert copy.best("a1").wcsname == IDC
        assert copy.history("a1") == store.history("a1")
        assert copy.guide_stars("a1") == store.guide_stars("a1")
    with pytest.raises(OutputExists):
        export_store(store, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(OutputExists):
        export_store(store, tmp_path / "mine", overwrite=True)
    export_store(store, tmp_path / "out", overwrite=True)
    assert not list(tmp_path.glob(".*.tmp"))


def test_an_import_keeps_the_order_of_history(store, tmp_path):
    """Older decisions that come in later do not count as newer ones."""
    store.add([fit()])
    store.choose("j95y04hpq", FIT, made_by="first")
    time.sleep(0.002)
    store.add([entry()])
    export_store(store, tmp_path / "old")
    with Store(tmp_path / "copy.db", create=True) as copy:
        time.sleep(0.002)
        copy.add([entry(wcsname="OPUS", tables=False)])
        copy.choose("j95y04hpq", "OPUS", made_by="later")
        import_store(copy, tmp_path / "old")
        assert copy.best("j95y04hpq").wcsname == "OPUS"
        assert copy.last_decision("j95y04hpq").made_by == "later"
        events = [(e["what"], e["wcsname"]) for e in copy.history("j95y04hpq")]
        assert events == [("solution", FIT), ("decision", FIT), ("solution", IDC),
                          ("solution", "OPUS"), ("decision", "OPUS")]
        assert events[:3] == [(e["what"], e["wcsname"]) for e in store.history("j95y04hpq")]
        assert copy.proposals() == []


def test_a_damaged_export_is_noticed(store, tmp_path):
    filled(store)
    out = tmp_path / "out"
    export_store(store, out)
    with Store(tmp_path / "copy.db", create=True) as copy:
        for name, change in (
            ("decisions.jsonl", lambda b: b[: len(b) // 2]),
            ("solutions.parquet", lambda b: b[: len(b) // 2]),
            ("solutions.parquet", lambda b: b.replace(b"SIPWCS", b"SIPWXS")),
            ("store.json", lambda b: b.replace(b"cynosure.store/1", b"cynosure.store/9")),
            ("store.json", lambda b: b.replace(b'"solutions": 4', b'"solutions": 5')),
        ):
            good = (out / name).read_bytes()
            (out / name).write_bytes(change(good))
            if change(good) != good:
                with pytest.raises(CatalogDamaged):
                    import_store(copy, out)
            (out / name).write_bytes(good)
        import_store(copy, out)


def older(url, *, twice=False):
    """Make a store as the first version of the schema had it."""
    with Store(url, create=True) as opened:
        opened.add([entry()])
        if twice:  # as it kept them: of one WCS, and one of which nobody knows the date
            other = entry(hdrname="other", primary={"DATE": None})
            opened.add([dataclasses.replace(other, identity="0" * 32)])
        with opened.database.engine.begin() as connection:
            schema.guide_stars.drop(connection)
            schema.decisions.drop(connection)
            connection.execute(text("DROP INDEX solutions_identity"))
            connection.execute(text("ALTER TABLE solutions DROP COLUMN identity"))
            connection.execute(text("UPDATE solutions SET created = '' WHERE created IS NULL"))
            if connection.dialect.name == "postgresql":
                connection.execute(text("ALTER TABLE solutions ALTER COLUMN created SET NOT NULL"))
            connection.execute(text("ALTER TABLE solutions DROP COLUMN extent"))
            connection.execute(
                text("UPDATE store_facts SET value = '1' WHERE name = 'schema_version'")
            )


def shape(database):
    with database.read() as connection:
        looked = inspect(connection)
        return {
            name: ([(c["name"], str(c["type"]), c["nullable"]) for c in looked.get_columns(name)],
                   sorted(str(i["name"]) for i in looked.get_indexes(name)))
            for name in looked.get_table_names()
        }


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection")
def test_migration(url, tmp_path):
    older(url)
    with pytest.raises(StoreUnavailable, match="schema 1") as caught:
        Store(url)
    assert "cynosure store migrate" in caught.value.hint
    assert caught.value.exit_code == ExitCode.STORE_UNAVAILABLE
    database = Database(url)
    assert len(migrations.migrate(database)) == 3
    assert migrations.migrate(database) == []
    migrated = shape(database)
    with database.engine.begin() as connection:
        schema.metadata.drop_all(connection)
    assert migrations.create(database)
    assert migrated == shape(database)
    database.close()


def test_nothing_is_lost_by_a_migration(url):
    older(url)
    database = Database(url)
    migrations.migrate(database)
    database.close()
    with Store(url) as opened:
        assert opened.best("j95y04hpq").wcsname == IDC
        opened.record(opened.best("j95y04hpq"))


def test_a_migration_reads_every_file_again(url):
    """Identities and faults are those of the files; what was kept twice stays as it is."""
    older(url, twice=True)
    database = Database(url)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE solutions SET valid = false, faults = 'wrong'"))
    migrations.migrate(database)
    database.close()
    with Store(url) as opened:
        first, other = sorted(opened.find(), key=lambda s: s.id)
        assert (first.valid, first.faults, first.identity) == (True, (), entry().identity)
        assert (other.created, other.identity) == (None, other.content_sha256[:32])
        assert [s.id for s in opened.find(Query(created_until="2100"))] == [first.id]
        assert opened.add([entry(), entry(hdrname="third"), entry(hdrname="other")]) == Added(0, 3)


def test_every_version_has_its_step():
    assert sorted(migrations.STEPS) == list(range(2, schema.SCHEMA_VERSION + 1))


def test_a_newer_schema_is_refused(url):
    with Store(url, create=True) as opened, opened.database.engine.begin() as connection:
        connection.execute(
            text("UPDATE store_facts SET value = '99' WHERE name = 'schema_version'")
        )
    with pytest.raises(StoreUnavailable, match="newer cynosure"):
        Store(url)
    database = Database(url)
    with pytest.raises(StoreUnavailable, match="newer cynosure"):
        migrations.migrate(database)
    database.close()


# --- many writers, dead writers -------------------------------------------------------------------


def writer(url, first, count):
    """Start a process that adds solutions one by one."""
    return subprocess.Popen(
        [sys.executable, CHILD, url, str(first), str(count)], stdout=subprocess.PIPE, text=True,
    )


def test_two_writers_lose_nothing(url):
    with Store(url, create=True) as opened:
        # Half of what they add is the same.
        writers = [writer(url, 0, 1000), writer(url, 500, 1000)]
        new = [int(w.communicate(timeout=120)[0].split()[-1]) for w in writers]
        assert [w.returncode for w in writers] == [0, 0]
        assert opened.count() == 1500
        kept = opened.find()
        assert len({s.rootname for s in kept}) == 1500
        assert 1500 <= sum(new) <= 2000
        files = dict(opened.payloads([s.content_sha256 for s in kept]))
        for s in kept[::50]:
            assert read_headerlet(files[s.content_sha256]).rootname == s.rootname
        assert len(opened.find(Query(cone=(150.0, 2.0, 0.1)))) == 1500


@pytest.mark.parametrize("moment", [0.02, 0.11, 0.2])
def test_a_killed_writer_leaves_a_valid_store(url, moment):
    with Store(url, create=True) as opened:
        child = writer(url, 0, 100_000)
        assert child.stdout.readline() == "ready\n"
        time.sleep(moment)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        kept = opened.find()
        files = dict(opened.payloads([s.content_sha256 for s in kept]))
        assert set(files) == {s.content_sha256 for s in kept}
        assert len(opened.find(Query(cone=(150.0, 2.0, 0.1)))) == len(kept)
        if opened.database.is_sqlite:
            with sqlite3.connect(opened.name) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            connection.close()
        assert opened.add([entry("after000", IDC)]) == Added(1, 0)


def test_a_lock_that_is_not_given_back(tmp_path):
    path = tmp_path / "store.db"
    with Store(path, create=True, wait_s=0.2) as opened:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Temporary, match="locked"):
            opened.add([entry()])
        assert opened.count() == 0  # readers do not wait
        other.execute("ROLLBACK")
        other.close()
        assert opened.add([entry()]) == Added(1, 0)


def test_threads_share_a_store(store):
    from concurrent.futures import ThreadPoolExecutor

    made = [read_headerlet(d) for d in variants(
        make_headerlet(chips=1, tables=False), [f"j95y{i:05d}" for i in range(60)])]
    with ThreadPoolExecutor(6) as pool:
        assert sum(a.new for a in pool.map(lambda e: store.add([e]), made)) == 60
        assert all(pool.map(lambda e: store.best(e.rootname).wcsname == IDC, made))


# --- what can be wrong ----------------------------------------------------------------------------


def test_no_store(tmp_path):
    with pytest.raises(StoreUnavailable, match="no such file"):
        Store(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("not a database, but long enough to look at\n" * 40)
    with pytest.raises(StoreUnavailable, match="damaged, or no database"):
        Store(tmp_path / "text.db")
    sqlite3.connect(tmp_path / "foreign.db").execute("CREATE TABLE x (y)").connection.close()
    with pytest.raises(StoreUnavailable, match="there is no store"):
        Store(tmp_path / "foreign.db")
    with pytest.raises(StoreUnavailable):
        Store(tmp_path / "no" / "folder" / "store.db", create=True)
    for wrong in ("mysql://x/y", "sqlite://", "://", "oracle://u:secret@h/d", "postgresql://[bad"):
        with pytest.raises(StoreUnavailable) as caught:
            Store(wrong, create=True)
        assert "secret" not in str(caught.value)


def test_a_database_that_is_down(server):  # noqa: F811
    url = server.new_database()
    with Store(url, create=True) as opened:
        opened.add([entry()])
        server.stop()
        try:
            with pytest.raises(StoreUnavailable) as caught:
                opened.count()
            with pytest.raises(StoreUnavailable):
                opened.add([entry("other")])
            with pytest.raises(StoreUnavailable, match="refused"):
                Store(url.replace("tester@", "tester:secret@"))
            assert "secret" not in str(caught.value)
        finally:
            server.start()
        assert opened.count() == 1  # the same store works again
    with pytest.raises(StoreUnavailable, match="does not exist"):
        Store(url + "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_read_only_file(tmp_path):
    path = tmp_path / "store.db"
    with Store(path, create=True):
        pass
    path.chmod(0o444)
    with Store(path) as opened, pytest.raises(OutputError, match="read-only"):
        opened.add([entry()])


def test_a_full_disk(tmp_path):
    with Store(tmp_path / "store.db", create=True) as opened:
        opened.add([entry("first0000")])
        engine = opened.database.engine
        with engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        from sqlalchemy import event

        @event.listens_for(engine, "connect")
        def small(connection, _):
            connection.execute(f"PRAGMA max_page_count = {pages + 5}")

        engine.dispose()
        many = [read_headerlet(d) for d in variants(
            make_headerlet(chips=1, tables=False), [f"j95y{i:05d}" for i in range(50)])]
        with pytest.raises(OutputError, match="full"):
            opened.add(many)
        assert opened.count() == 1
        assert opened.payload(entry("first0000").content_sha256)


# --- what is read ---------------------------------------------------------------------------------


def test_faults_are_found():
    assert entry().faults == ()
    assert "SIP terms, but its CTYPE does not say" in entry(CTYPE1="RA---TAN").faults[0]
    assert "no SIP terms" in entry(wcsname="OPUS", sip=False, CTYPE1="RA---TAN-SIP").faults[0]
    assert "no SIP terms" in entry(sip=False).faults[0]
    assert "no usable CD matrix" in entry(CD1_1=0.0, CD1_2=0.0).faults[0]
    units = make_headerlet()
    assert "which is not in it" in read_headerlet(
        units.replace(b"'WCSDVARR'", b"'WCSDVARX'")).faults[0]
    nowhere = read_headerlet(units.replace(b"CRVAL1  =", b"XRVAL1  ="))
    assert "no reference point" in nowhere.faults[0]
    nowhere = read_headerlet(units.replace(b"EXTVER: ", b"EXTVEX: "))
    assert "does not say which WCSDVARR it looks up" in nowhere.faults[0]


@pytest.mark.parametrize(("given", "expected"), [
    ({"RMS_RA": 9.0, "RMS_DEC": 7.0}, (9.0, 7.0)),
    ({"RMS_RA": 2.5e-6, "RMS_DEC": 2e-6}, (9.0, 7.2)),
    ({"RMS_RA": "9.0", "RMS_DEC": " "}, (9.0, None)), ({"RMS_RA": -1, "RMS_DEC": 0}, (None, None)),
    ({"RMS_RA": "INDEF", "RMS_DEC": None}, (None, None)),
])
def test_residuals_of_any_kind(given, expected):
    got = fit(primary=given)
    assert (got.rms_ra_mas, got.rms_dec_mas) == (
        pytest.approx(expected[0]) if expected[0] else None,
        pytest.approx(expected[1]) if expected[1] else None,
    )


@pytest.mark.parametrize(("given", "expected"), [
    ("691", 691), (691.0, 691), ("", None), (0, None), ("N/A", None), (None, None)])
def test_counts_of_any_kind(given, expected):
    assert fit(primary={"NMATCH": given}).nmatch == expected


def test_long_and_odd_names():
    name = "hst_11665_06_wfc3_uvis_f555w_ib4606c5_flc_IDC_2731450pi-FIT_SVM_GAIADR2-hlet.fits"
    assert fit(hdrname=name).hdrname == name
    assert entry(hdrname="it's mine").hdrname == "it's mine"
    odd = entry(wcsname="j95y04hpq_flc.fits")
    assert (odd.wcsname, odd.kind) == ("j95y04hpq_flc.fits", "other")


@pytest.mark.filterwarnings("ignore:The WCS transformation has more axes")
def test_footprints_against_wcslib():
    made = entry(ra=359.9, dec=-75.0, turn_deg=77.0)
    with fits.open(io.BytesIO(made.payload)) as hdus:
        for chip in (1, 2):
            wcs = WCS(hdus["SIPWCS", chip].header, hdus)
            truth = wcs.all_pix2world([[0, 0], [4096, 0], [4096, 2048], [0, 2048]], 0)
            sep = sky.separation_deg(*made.corners[chip - 1].T, *truth.T) * 3600
            assert sep.max() < 1.0  # within twenty pixels, made distortion and all


def test_real_exposures(data_dir, store):
    """Seventeen headerlets, a file of one, and an active WCS that is in no headerlet whole."""
    folder = data_dir / "p04-hst-headerlets"
    made = [e for name in sorted(folder.glob("*.fits")) for e in read_entries(name)]
    assert not [e for e in made if isinstance(e, CynosureError) or e.faults]
    assert len(made) == 19
    # The active WCS and the alternates of the FLT are all in its headerlets; so are those of the
    # FLC, but for the active one: the second chip of the headerlet of its name is of another fit.
    twice = [e for e in made if e.wcsname.endswith("-FIT_REL_GAIAeDR3")
             and e.rootname == "ib4606c5q"]
    assert [e.doubts for e in twice] == [
        ("SIPWCS,2 holds another solution, IDC_2731450pi-HSC30",), ()]
    assert sum(len(e.doubts) for e in made) == 1
    assert {e.extent for e in made if e.rootname.startswith("ib46")} == {"image"}
    [alone] = [e for e in made if e.rootname == "ia1d23dmq"]
    assert alone.extent == "assumed"
    # The archive keeps the pointing with the distortion model twice, under two HDRNAMEs.
    assert store.add(made) == Added(17, 2)
    for e in made:
        if store.get(e.content_sha256) is not None:
            assert store.payload(e.content_sha256) == e.payload
    for rootname, n_used in (("ib4606c5q", 573), ("ib4606cpq", 276)):
        best = store.best(rootname)
        assert best.wcsname.endswith("-FIT_REL_GAIAeDR3")
        assert f"{n_used} stars" in best.reason
        assert "doubtful" not in best.reason
    assert store.best("ib4606c5q").content_sha256 == twice[1].content_sha256
    [lost] = [c for c in store.best("ib4606c5q").considered
              if c.content_sha256 == twice[0].content_sha256]
    assert (lost.verdict, lost.reason) == (
        "passed over", "doubtful: SIPWCS,2 holds another solution, IDC_2731450pi-HSC30")
    assert len(store.find(Query(cone=(137.84, -64.91, 0.01)))) == 16
    assert len(store.find(Query(rootname="ia1d23dmq"))) == 1


def test_an_exposure_gives_its_own_solutions(store, tmp_path):
    """Active and alternates come under their true names; what a headerlet holds comes once."""
    path = make_flc(tmp_path / "j95y04hpq_flc.fits")
    with fits.open(path, mode="update") as units:
        units[0].header["DATE"] = "2020-05-06"
        for k in (1, 2):
            header = units["SCI", k].header
            header["WCSNAMEA"], header["HDRNAMEA"] = f"{IDC}-GSC240", "mine_hlet"
            for keyword in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CD1_1", "CD1_2", "CD2_1",
                            "CD2_2", "CTYPE1", "CTYPE2"):
                header[keyword + "A"] = header[keyword]
            header["CRVAL1A"] += 1e-4
    made = {e.wcsname: e for e in read_entries(path)}
    assert set(made) == {IDC, f"{IDC}-GSC240", "OPUS"}
    assert made[f"{IDC}-GSC240"].hdrname == "mine_hlet"
    assert all((e.rootname, e.faults, e.extent, e.created) == (
        "j95y04hpq", (), "image", None) for e in made.values())
    # The same pixels are at the same place by the file and by what was kept of it.
    for name, key in ((IDC, " "), (f"{IDC}-GSC240", "A")):
        kept = parse_headerlet(made[name].payload)
        for chip in (1, 2):
            truth = exposure_sky(path, ("SCI", chip), key)
            assert np.abs(headerlet_sky(kept, ("SCI", chip)) - truth).max() * 3.6e6 < 0.01
    # 64 x 48 pixels of 0.05 arcsec, not what twice CRPIX would say of a stamp.
    assert made[IDC].circle()[2] * 3600 < 120
    assert store.add(made.values()) == Added(3, 0)
    archive.archive(path, IDC)
    again = list(read_entries(path))
    assert sorted(e.wcsname for e in again) == sorted(made)
    assert len({e.content_sha256 for e in again}) == 3
    assert store.add(again) == Added(0, 3)


def test_an_image_of_any_telescope(store, tmp_path):
    path = make_tpv(tmp_path / "m81.fits", name="FIT_IMG_GAIADR3")
    [one] = read_entries(path)
    assert (one.rootname, one.wcsname, one.kind) == ("m81", "FIT_IMG_GAIADR3", "a posteriori")
    assert (one.extent, one.faults) == ("image", ())
    truth = np.array(WCS(fits.getheader(path)).all_pix2world(
        [-0.5, 63.5, 63.5, -0.5], [-0.5, -0.5, 47.5, 47.5], 0)).T
    assert sky.separation_deg(*one.corners[0].T, *truth.T).max() * 3600 < 0.01
    [unnamed] = entries_of_bytes(make_tpv(tmp_path / "m82.fits").read_bytes(), "m82.fits")
    assert (unnamed.rootname, unnamed.wcsname) == ("m82", "ORIGINAL")
    assert store.add([one, unnamed]).new == 2
    fits.writeto(tmp_path / "plain.fits", np.zeros((4, 4)))
    with pytest.raises(ImageError, match="no solution"):
        list(read_entries(tmp_path / "plain.fits"))


def test_the_size_of_a_chip(store):
    """It is known from the image, told by the tables, or assumed; and what is better counts."""
    bare, tables = entry(tables=False), entry()
    assert (bare.extent, tables.extent) == ("assumed", "tables")
    # A stamp in the corner of the chip: twice CRPIX would be a quarter of the sky's place.
    data = make_headerlet(tables=False, CRPIX1=-1500.0)
    guessed = read_headerlet(data)
    known = read_headerlet(data, shapes={("SCI", 1): (200, 300), ("SCI", 2): (200, 300)})
    assert (guessed.extent, known.extent) == ("assumed", "image")
    wide = sky.separation_deg(*known.corners[0, 0], *known.corners[0, 1]) * 3600 / 0.05
    assert wide == pytest.approx(300, rel=0.2)  # the made distortion is strong out there
    assert store.add([guessed]) == Added(1, 0)
    ra, dec, radius = guessed.circle()
    assert len(store.find(Query(cone=(ra, dec, radius / 10)))) == 1
    assert store.add([known]) == Added(0, 1)
    [kept] = store.find()
    assert kept.extent == "image"
    assert np.array_equal(kept.corners, known.corners)
    assert store.find(Query(cone=(*guessed.corners[0, 2], 1e-3))) == []
    assert len(store.find(Query(cone=(*known.corners[0, 2], 1e-3)))) == 1
    assert store.add([guessed]) == Added(0, 1)
    assert store.find()[0].extent == "image"


def test_faults_agree_with_those_of_the_operations():
    for change in ({}, {"CTYPE1": "RA---TAN"}, {"CD1_1": 0.0, "CD1_2": 0.0}, {"sip": False}):
        data = make_headerlet(**change)
        assert set(parse_headerlet(data).faults()) <= set(read_headerlet(data).faults)


def test_packed_headerlets(tmp_path):
    data = make_headerlet()
    packed = np.frombuffer(gzip.compress(data), dtype=np.uint8)
    plain = np.frombuffer(data, dtype=np.uint8)
    path = tmp_path / "j95y04hpq_flc.fits"
    content = fits.PrimaryHDU().header.tostring().encode()
    for version, (array, flag) in enumerate([(packed, True), (plain, False)], start=1):
        header = fits.ImageHDU(array).header
        header["COMPRESS"], header["EXTNAME"], header["EXTVER"] = flag, "HDRLET", version
        content += header.tostring().replace("'IMAGE   '", "'HDRLET  '").encode()
        content += array.tobytes() + bytes(-len(array) % 2880)
    path.write_bytes(content)
    assert [e.payload for e in read_entries(path)] == [data, data]
    broken = content.replace(bytes(packed[:200]), bytes(200))
    path.write_bytes(broken)
    results = list(read_entries(path))
    assert isinstance(results[0], CynosureError)
    assert results[1].payload == data


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    from cynosure.solutions.store import intake

    monkeypatch.setattr(intake, "MAX_HEADERLET_BYTES", 1 << 20)
    with pytest.raises(HeaderletDamaged, match="no headerlet"):
        intake._unpacked(gzip.compress(bytes(3 << 20)), "bomb")
    with pytest.raises(HeaderletDamaged, match="no headerlet"):
        read_headerlet(bytes(2 << 20))


def test_what_is_not_a_headerlet(tmp_path):
    data = make_headerlet()
    for wrong in (b"", b"hello", data[:1000], data[:5000], data.replace(b"DESTIM", b"DESTIX"),
                  data.replace(b"SIPWCS", b"SIPWCX")):
        with pytest.raises(HeaderletDamaged):
            read_headerlet(wrong)
    path = tmp_path / "x.solution.json"
    for wrong in ("{", "[]", '{"schema": "cynosure.solution/1"}', "null", '{"a": 1}',
                  '{"schema": "cynosure.solution/1", "image": "a", "n_used": "many"}'):
        path.write_text(wrong)
        with pytest.raises(CynosureError):
            list(read_entries(path))
    with pytest.raises(ImageError):
        list(read_entries(tmp_path / "absent.fits"))


def test_names_that_no_database_takes(store):
    nul = make_headerlet().replace(b"'somebody'", b"'some\0\n\x1b!'")
    assert store.add([read_headerlet(nul)]) == Added(1, 0)
    assert store.find()[0].author == "some   !"
    with pytest.raises(ImageError, match="300 characters"):
        entry("x" * 300)
    cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 20.0,
             "CRPIX1": 5.0, "CRPIX2": 5.0, "CD1_1": -1e-3, "CD2_2": 1e-3}
    good = Solution("a.fits", status="solved", wcsname="x", n_used=10**30, quality=99,
                    chips=({"name": "a", "shape": [10, 10], "cards": cards},))
    kept = read_record(good.to_json())
    assert (kept.nmatch, kept.quality) == (None, None)
    odd = good.to_json().replace('"a.fits"', '"a\\u0000\\u001b.fits"')
    assert store.add([kept, read_record(odd)]) == Added(2, 0)
    for wrong in (good.to_json().replace('"a.fits"', '"a\\ud800.fits"'),
                  good.to_json().replace('"shape": [\n        10,', '"shape": [\n        "x",')):
        with pytest.raises(ImageError, match="damaged record"):
            read_record(wrong)


def test_mutated_headerlets_never_surprise():
    """Cut, swap and overwrite at random; only our own errors, and never a half-read one."""
    rng = np.random.default_rng(5)
    small = np.frombuffer(make_headerlet(chips=1, tables=False), dtype=np.uint8)
    large = np.frombuffer(make_headerlet(), dtype=np.uint8)
    outcomes = {True: 0, False: 0}
    for k in range(4000):
        data = (large if k % 8 == 0 else small).copy()
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(0, 11000)) % len(data)
            data[at : at + rng.integers(1, 12)] = rng.integers(0, 256)
        if k % 3 == 0:
            data = data[: rng.integers(0, len(data))]
        if k % 7 == 0:
            data = np.roll(data, 80)
        try:
            made = read_headerlet(data.tobytes())
            made.circle()
            outcomes[True] += 1
        except CynosureError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 300


def test_the_store_survives_odd_but_legal_headerlets(store):
    """NaN, infinities, huge numbers and names in any letters."""
    rows = [
        fit(CRVAL1=1e300), fit(wcsname=FIT, primary={"AUTHOR": "x" * 60}),
        entry(CRVAL2=-90.0, ra=0.0), fit(primary={"NMATCH": 10**30}), entry(CRPIX1=-1e9),
    ]
    assert store.add(rows) == Added(4, 1)  # two of the files are of one WCS
    assert len(store.find()) == 4
    assert store.best("j95y04hpq").wcsname == FIT
    json.dumps([s.to_dict() for s in store.find()], allow_nan=False)
