"""The service: its three faces, and what it refuses."""

import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

pytest.importorskip("fastapi", reason="fastapi")
httpx = pytest.importorskip("httpx", reason="httpx")
sys.path.insert(0, str(Path(__file__).parent.parent / "solutions"))

from headerlets import make_headerlet  # noqa: E402

from cynosure.data.catalogs.refcat import open_refcat  # noqa: E402
from cynosure.data.tables import REFERENCE  # noqa: E402
from cynosure.faces.server.app import create_app, new_token  # noqa: E402
from cynosure.faces.server.differences import Difference, differences  # noqa: E402
from cynosure.ground import sky  # noqa: E402
from cynosure.solutions.files.headerletio import parse_headerlet  # noqa: E402
from cynosure.solutions.solution import Solution  # noqa: E402
from cynosure.solutions.store.intake import read_headerlet  # noqa: E402
from cynosure.solutions.store.query import Query  # noqa: E402
from cynosure.solutions.store.records import read_record  # noqa: E402
from cynosure.solutions.store.store import GuideStars, Store  # noqa: E402

TOKEN = "a token of the tests"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
IDC = "IDC_0461802ej"
FIT = f"{IDC}-FIT_REL_GAIADR2"
NASTY = "x<script>alert(1)</script>'\"&"


def fit(rootname="j95y04hpq", wcsname=FIT, ra=150.0001, **primary):
    cards = {"RMS_RA": 5.0, "RMS_DEC": 6.0, "NMATCH": 80, "CATALOG": "GAIADR2", **primary}
    return read_headerlet(make_headerlet(rootname, wcsname, ra, primary=cards))


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store.db", create=True) as opened:
        opened.add([
            read_headerlet(make_headerlet(wcsname="OPUS", tables=False)),
            read_headerlet(make_headerlet()), fit(),
            read_headerlet(make_headerlet(wcsname=f"{IDC}-GSC240")),
            read_headerlet(make_headerlet(wcsname=f"{IDC}-HSC30", CTYPE1="RA---TAN")),
        ])
        yield opened


class Running:
    """The service in a thread, on a free port."""

    def __init__(self, store, **options):
        import uvicorn

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        config = uvicorn.Config(
            create_app(store, **{"token": TOKEN, **options}), host="127.0.0.1", port=self.port,
            log_level="error", loop="asyncio", ws="none",
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, trust_env=False, timeout=300)

    def __enter__(self):
        self.thread.start()
        deadline = time.monotonic() + 300
        while not self.server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        self.client.close()
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def running(store):
    with Running(store) as server:
        yield server


@pytest.fixture
def client(running):
    return running.client


@contextmanager
def client_of(store, **options):
    with Running(store, **options) as server:
        yield server.client


# --- for programs ---------------------------------------------------------------------------------


def test_reading(client, store):
    assert client.get("/api/v1/status").json()["solutions"] == 5
    found = client.get("/api/v1/solutions", params={"kind": "a posteriori"}).json()
    assert [s["wcsname"] for s in found] == [FIT]
    content = found[0]["content_sha256"]
    assert client.get(f"/api/v1/solutions/{content}").json() == found[0]
    file = client.get(f"/api/v1/solutions/{content}/file")
    assert (file.headers["content-type"], file.content) == ("application/fits", fit().payload)
    assert file.headers["content-disposition"].endswith(f'{FIT}-hlet.fits"')
    near = {"ra_deg": 150, "dec_deg": 2, "radius_deg": 0.1}
    assert len(client.get("/api/v1/solutions", params=near).json()) == 5
    assert client.get("/api/v1/solutions", params={**near, "dec_deg": 5}).json() == []
    assert len(client.get("/api/v1/exposures/j95y04hpq").json()) == 5
    [known] = client.get("/api/v1/exposures").json()
    assert (known["rootname"], known["n_solutions"], known["fitted"]) == ("j95y04hpq", 5, True)
    best = client.get("/api/v1/exposures/j95y04hpq/best").json()
    assert best["wcsname"] == FIT
    assert [c["verdict"] for c in best["considered"]].count("excluded") == 1
    assert len(client.get("/api/v1/exposures/j95y04hpq/history").json()) == 5
    apart = client.get("/api/v1/exposures/j95y04hpq/differences").json()
    assert {round(d["east_mas"] or 0) for d in apart if d["content_sha256"] == content} == {0}
    assert client.get("/api/v1/exposures", params={"after": "j95y04hpq"}).json() == []


def test_the_description_names_every_path(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/api/v1/solutions", "/astrometryDB/observation/read/{rootname}"} <= set(paths)
    for methods in paths.values():
        assert all(spec["description"] for spec in methods.values())


def test_writing(client, store):
    new = make_headerlet("other0000").replace(b"somebody", b"someone ")
    answer = client.post("/api/v1/solutions", content=new, headers=AUTH)
    assert (answer.status_code, answer.json()["new"]) == (201, 1)
    assert client.post("/api/v1/solutions", content=new, headers=AUTH).json()["known"] == 1
    cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 20.0,
             "CRPIX1": 500.5, "CRPIX2": 250.5, "CD1_1": -1e-3, "CD2_2": 1e-3}
    record = Solution("m81.fits", status="solved", quality=1, wcsname="FIT_IMG_GAIADR3",
                      chips=({"name": "m81", "shape": [500, 1000], "cards": cards},))
    answer = client.post("/api/v1/solutions", content=record.to_json(), headers=AUTH)
    assert answer.json()["new"] == 1
    assert client.get("/api/v1/exposures/m81/best").json()["wcsname"] == "FIT_IMG_GAIADR3"
    chosen = client.put("/api/v1/exposures/j95y04hpq/choice", headers=AUTH,
                        json={"solution": IDC, "by": "me"})
    assert (chosen.json()["rule"], chosen.json()["made_by"]) == ("user", "me")
    assert store.best("j95y04hpq").wcsname == IDC
    withdrawn = client.delete("/api/v1/exposures/j95y04hpq/choice", headers=AUTH)
    assert withdrawn.json()["wcsname"] == FIT
    assert client.post("/api/v1/exposures/j95y04hpq/decision", headers=AUTH).status_code == 201
    assert client.get("/api/v1/proposals").json() == []
    time.sleep(0.002)
    store.add([fit(wcsname=f"{IDC}-FIT_REL_GAIAEDR3", CATALOG="GAIAEDR3")])
    [proposal] = client.get("/api/v1/proposals").json()
    assert proposal["now"]["wcsname"] == f"{IDC}-FIT_REL_GAIAEDR3"
    row = {"delta_ra_deg": 1e-5, "delta_dec_deg": 0, "delta_roll_deg": 0, "delta_scale": 1,
           "input_ra_deg": 1, "input_dec_deg": 1, "output_ra_deg": 1, "output_dec_deg": 1,
           "catalog": "GSC240"}
    answer = client.put("/api/v1/exposures/a/guide-stars", json=row, headers=AUTH)
    assert answer.json()["rootname"] == "a"
    assert client.get("/api/v1/exposures/a/guide-stars").json()["catalog"] == "GSC240"


WRITES = [
    ("POST", "/api/v1/solutions"), ("PUT", "/api/v1/exposures/j95y04hpq/choice"),
    ("DELETE", "/api/v1/exposures/j95y04hpq/choice"),
    ("POST", "/api/v1/exposures/j95y04hpq/decision"),
    ("PUT", "/api/v1/exposures/j95y04hpq/guide-stars"),
]


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer wrong", "Basic " + TOKEN, "Bearer \xe9"])
def test_writing_needs_the_token(client, store, method, path, header):
    headers = {"Authorization": header.encode("latin-1")} if header else {}
    before = store.history("j95y04hpq")
    answer = client.request(method, path, headers=headers, json={"solution": IDC})
    assert answer.status_code == 401
    assert "Bearer" in answer.headers["www-authenticate"]
    assert store.history("j95y04hpq") == before


def test_every_path_that_writes_is_in_the_test(client):
    paths = client.get("/openapi.json").json()["paths"]
    writing = {(m.upper(), p.replace("{rootname}", "j95y04hpq"))
               for p, methods in paths.items() for m in methods if m != "get"}
    assert writing == set(WRITES)


def test_without_a_token_nobody_writes(store):
    with client_of(store, token="") as client:
        for method, path in WRITES:
            for headers in ({}, {"Authorization": "Bearer x"}):
                assert client.request(method, path, headers=headers).status_code == 403
    assert len(new_token()) >= 32


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "words"), [
    (b"", "empty file"), (b"{", "not JSON"), (b"{}", "not a record"), (b"{\xff}", "not UTF-8"),
    (b"[1]", "not a FITS file"), (b"<xml/>", "not a FITS file"),
    (make_headerlet()[:3000], "truncated"),
    (make_headerlet().replace(b"SIPWCS", b"SIPWXS"), "no SIPWCS"),
    (b'{"schema": "cynosure.solution/1", "image": "a", "chips": [1], "status": "solved"}',
     "damaged"),
    (b'{"a":' * 100_000, "nested too deep"),
])
def test_bad_uploads(client, store, body, words):
    answer = client.post("/api/v1/solutions", content=body, headers=AUTH)
    assert answer.status_code == 422
    assert words in answer.json()["error"]
    assert store.count() == 5


@pytest.mark.parametrize(("method", "path", "body"), [
    ("PUT", "/api/v1/exposures/j95y04hpq/choice", b"{"),
    ("PUT", "/api/v1/exposures/j95y04hpq/choice", b'{"solution": 3}'),
    ("PUT", "/api/v1/exposures/j95y04hpq/choice", b'{"solution": "nope"}'),
    ("PUT", "/api/v1/exposures/j95y04hpq/guide-stars", b"{"),
    ("PUT", "/api/v1/exposures/j95y04hpq/guide-stars", b"[]"),
    ("PUT", "/api/v1/exposures/j95y04hpq/guide-stars", b'{"catalog": 1}'),
    ("GET", "/api/v1/solutions?limit=0", b""), ("GET", "/api/v1/solutions?limit=1e9", b""),
    ("GET", "/api/v1/solutions?ra_deg=1", b""),
    ("GET", "/api/v1/solutions?ra_deg=1&dec_deg=99&radius_deg=1", b""),
    ("GET", "/api/v1/solutions?ra_deg=nan&dec_deg=9&radius_deg=1", b""),
    ("GET", "/api/v1/solutions?offset=-1", b""), ("GET", "/api/v1/exposures/a/best?policy=x", b""),
])
def test_bad_requests(client, method, path, body):
    answer = client.request(method, path, content=body, headers=AUTH)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]


@pytest.mark.parametrize("path", [
    "/api/v1/solutions/..%2f..%2fetc%2fpasswd/file", "/static/..%2f..%2f..%2fetc%2fpasswd",
    "/static/%2e%2e/%2e%2e/pyproject.toml", "/static/style.css%00", "/exposures/..%2f..%2fetc",
    "/astrometryDB/observation/read/..%2f..%2fetc%2fpasswd?wcsname=../../etc/passwd",
    "/api/v1/exposures/%00/best", "/api/v1/solutions/" + "0" * 64, "/api/v1/exposures/nobody",
])
def test_no_path_reaches_a_file(client, path):
    answer = client.get(path)
    assert answer.status_code in (404, 200)
    assert "root:" not in answer.text
    assert "[project]" not in answer.text
    if answer.status_code == 200:
        assert answer.json()["content_sha256"] == ""  # a decision that there is nothing


def test_large_bodies(store):
    with client_of(store, max_body_bytes=100_000) as client:
        answer = client.post("/api/v1/solutions", content=bytes(100_001), headers=AUTH)
        assert answer.status_code == 413

        def endless():
            for _ in range(50):
                yield bytes(10_000)

        answer = client.post("/api/v1/solutions", content=endless(), headers=AUTH)
        assert answer.status_code == 413
        assert client.get("/api/v1/status").status_code == 200


def test_rates(store):
    with client_of(store, requests_per_minute=30) as client:
        codes = [client.get("/api/v1/status").status_code for _ in range(40)]
        assert codes[:30] == [200] * 30
        assert 429 in codes[30:]
        assert int(client.get("/").headers["retry-after"]) >= 1


def test_the_database_goes_away(tmp_path):
    with Store(tmp_path / "store.db", create=True) as opened, client_of(opened) as client:
        opened.close()
        (tmp_path / "store.db").write_bytes(b"no longer a database, sorry" * 1000)
        for path in ("/astrometryDB/availability", "/api/v1/status"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert "damaged" in answer.json()["error"]
        page = client.get("/", headers={"Accept": "text/html"})
        assert page.status_code == 503
        assert "damaged" in page.text


# --- pages ----------------------------------------------------------------------------------------


def test_pages(client, store):
    store.record(store.best("j95y04hpq"))
    time.sleep(0.002)
    store.add([fit(wcsname=f"{IDC}-FIT_REL_GAIAEDR3", CATALOG="GAIAEDR3")])
    page = client.get("/exposures/j95y04hpq").text
    assert "A switch is proposed" in page
    assert page.count('class="field"') == 5
    assert "SIP terms, but its CTYPE does not say -SIP" in page
    assert f"{IDC}-FIT_REL_GAIAEDR3" in client.get("/proposals").text
    index = client.get("/").text
    assert 'href="/exposures/j95y04hpq"' in index
    assert "1 exposures, 6 solutions" in index
    assert client.get("/", params={"q": "j95y04hpq"}, follow_redirects=False).status_code == 303
    assert "1 of 1" in client.get("/", params={"q": "150.0 2.0 0.2"}).text
    assert "Nothing is known here" in client.get("/", params={"q": "150.0 20.0 0.2"}).text
    assert client.get("/", params={"q": "150 95 1"}).status_code == 422
    assert client.get("/exposures/nobody").status_code == 404
    assert "GET /api/v1/solutions" in client.get("/api").text
    for path in ("/", "/exposures/j95y04hpq", "/proposals", "/api", "/exposures/nobody"):
        answer = client.get(path, headers={"Accept": "text/html"})
        outside = re.findall(r"""(?:href|src)=["'](?:https?:)?//[^"']*""", answer.text)
        assert not outside, "everything comes from here"
        assert "<script" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_an_empty_store_has_pages(tmp_path):
    with Store(tmp_path / "empty.db", create=True) as opened, client_of(opened) as client:
        assert "The store is empty" in client.get("/").text
        assert "still stands" in client.get("/proposals").text


def test_nothing_is_believed_to_be_html(tmp_path):
    with Store(tmp_path / "store.db", create=True) as opened, client_of(opened) as client:
        record = Solution(NASTY, status="solved", wcsname=NASTY, catalog=NASTY, reason=NASTY,
                          chips=({"name": NASTY, "shape": [9, 9], "cards": {"CRVAL1": 1}},))
        rootname = read_record(record.to_json()).rootname
        opened.add([read_record(record.to_json())])
        one = opened.find()[0]
        for path in ("/", f"/exposures/{one.rootname}", "/proposals", f"/?q={NASTY}", f"/{NASTY}"):
            answer = client.get(path, headers={"Accept": "text/html"})
            assert "<script" not in answer.text
        assert rootname == "script>'\"&"  # what stands after the last slash
        file = client.get(f"/api/v1/solutions/{one.content_sha256}/file")
        name = re.search(r'filename="([^"]*)"', file.headers["content-disposition"])[1]
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
        listing = client.get(f"/astrometryDB/observation/read/{one.rootname}")
        ElementTree.fromstring(listing.content)


def test_differences_of_a_known_shift(store):
    solutions = store.find(Query(rootname="j95y04hpq"))
    by_name = {s.wcsname: s for s in solutions}
    made = {d.content_sha256: d for d in differences(store, solutions, by_name[IDC].content_sha256)}
    fitted = made[by_name[FIT].content_sha256]
    # The fit was made 0.0001 deg further east, at declination 2.
    assert fitted.shift_mas[0] == pytest.approx(360.0 * np.cos(np.radians(2)), rel=1e-3)
    assert abs(fitted.shift_mas[1]) < 0.5
    assert fitted.rest_mas < 1.0
    assert fitted.apart_mas < 0.5
    assert made[by_name[IDC].content_sha256].distance_mas == 0.0


GRID = np.stack(np.meshgrid(np.linspace(-2e5, 2e5, 9), np.linspace(-5e4, 5e4, 7)), axis=-1)
PLACE = np.stack([GRID - [0.0, 6e4], GRID + [0.0, 6e4]])  # two chips, one above the other, mas


@pytest.mark.parametrize("apart", [(0.0, 0.0), (6.0, -8.0)])
def test_what_all_chips_do_is_told_from_what_one_does(apart):
    """A rotation, a scale and a skew that are common are no movement of chips."""
    turn, grow, skew = 4e-5, -3e-5, 2e-5
    matrix = np.array([[grow + skew, turn], [-turn, grow - skew]])
    moved = PLACE @ matrix.T + [30.0, -40.0]
    moved[1] += apart
    moved[0, 0, 0] = np.nan  # a pixel that one of them cannot place
    made = Difference("x", moved, PLACE)
    reach = np.hypot(2e5, 1.1e5)
    common = made.common()
    assert common.rotation_mas == pytest.approx(turn * reach, rel=0.01)
    assert common.scale_mas == pytest.approx(grow * reach, rel=0.01)
    assert common.skew_mas == pytest.approx(skew * reach, rel=0.01)
    assert made.apart_mas == pytest.approx(np.hypot(*apart), abs=1e-6)
    alone = Difference("x", moved[:1], PLACE[:1])
    assert alone.apart_mas == 0.0
    blind = Difference("x", np.full_like(moved, np.nan), PLACE)
    assert np.isnan([blind.apart_mas, blind.common().scale_mas]).all()
    assert set(blind.to_dict().values()) == {"x", None}


@pytest.mark.parametrize(("ra", "dec"), [(150.0, 2.0), (0.0, -45.0), (77.0, 89.9)])
def test_differences_of_a_turn(tmp_path, ra, dec):
    """A turn of the whole field, anywhere on the sky, is a turn; and the page says so."""
    turned_deg = 0.005
    with Store(tmp_path / "store.db", create=True) as store, client_of(store) as client:
        # Chips on one tangent plane, so that the turn is about its middle.
        store.add([
            read_headerlet(make_headerlet("j95y04hpq", name, ra, dec, turn_deg=30.0 + by,
                                          tables=False, chips=1, sip=False, size=(4096, 4096)))
            for name, by in (("OPUS", 0.0), ("IDC_x-GSC1-TAN", turned_deg))
        ])
        solutions = store.find(Query(rootname="j95y04hpq"))
        best = store.best("j95y04hpq").content_sha256
        [other] = [d for d in differences(store, solutions, best) if d.content_sha256 != best]
        common = other.common()
        reach = np.hypot(2047.5, 2047.5) * 50.0
        assert abs(common.rotation_mas) == pytest.approx(
            np.radians(turned_deg) * reach, rel=1e-3)
        assert max(abs(common.scale_mas), common.skew_mas, other.distance_mas) < 0.01
        page = client.get("/exposures/j95y04hpq").text
        assert "Common to all chips, at the edge of the field (mas): rotation 12.6." in page
        assert "against each other" not in page


def test_chips_that_moved(tmp_path):
    """One chip of two, moved by 20 mas, is told on the page apart from what both have done."""
    data = make_headerlet(tables=False)
    with fits.open(io.BytesIO(make_headerlet(wcsname=FIT, tables=False))) as units:
        for k in (1, 2):
            units["SIPWCS", k].header["CRVAL2"] += (k == 2) * 20.0 / 3.6e6 + 1e-5
        out = io.BytesIO()
        units.writeto(out)
    with Store(tmp_path / "store.db", create=True) as store, client_of(store) as client:
        store.add([read_headerlet(data), read_headerlet(out.getvalue())])
        told = client.get("/api/v1/exposures/j95y04hpq/differences").json()
        assert sorted(d["chips_apart_mas"] for d in told) == pytest.approx([0.0, 20.0], abs=0.05)
        page = client.get("/exposures/j95y04hpq").text
        assert "the chips have moved against each other, two of them by 20.0 mas" in page
        assert "Common to all chips" not in page


def test_dates_and_choices_over_http(client, store):
    """An unknown date is null; a bad one is refused with what is accepted; nobody is chosen of."""
    store.add([fit(wcsname="OPUS", DATE=None)])
    rows = client.get("/api/v1/solutions", params={"wcsname": "OPUS"}).json()
    assert [r["created"] for r in rows].count(None) == 1
    assert ">unknown<" in client.get("/exposures/j95y04hpq").text
    day = {"created_until": "2021-01-05", "created_since": "2021-01-05"}
    assert len(client.get("/api/v1/solutions", params=day).json()) >= 1
    bad = client.get("/api/v1/solutions", params={"added_since": "last week"})
    assert (bad.status_code, "is no date" in bad.json()["error"]) == (422, True)
    assert "2021-01-05" in bad.json()["hint"]
    answer = client.delete("/api/v1/exposures/nobody/choice", headers=AUTH)
    assert (answer.status_code, store.history("nobody")) == (422, [])


def test_hubbles_client_gets_no_doubtful_solution(tmp_path):
    """It would apply it; only where there is no other, or a user chose it."""
    data = make_headerlet(wcsname=FIT)
    at = data.rindex(FIT.encode())
    torn = read_headerlet(data[:at] + data[at:].replace(FIT.encode(), IDC.ljust(len(FIT)).encode()))
    with Store(tmp_path / "store.db", create=True) as store, client_of(store) as client:
        address = "/astrometryDB/observation/read/j95y04hpq"
        store.add([torn])
        assert FIT in client.get(address).text
        store.add([read_headerlet(make_headerlet(wcsname="OPUS"))])
        assert FIT not in client.get(address).text
        assert client.get(address, params={"wcsname": FIT}).status_code == 404
        store.choose("j95y04hpq", FIT)
        assert FIT in client.get(address).text


ODD = [None, True, -1, 1e308, 10**30, "", "x" * 300, "\0", [], {}, [1], {"a": 1}, "RA---ZPN", "12"]


def mutated(record, rng):
    """Return a record's JSON with some values replaced, removed, or under other names."""
    content = json.loads(record)
    for _ in range(rng.integers(1, 5)):
        node = content
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = keys[rng.integers(len(keys))]
            if isinstance(node[key], (dict, list)) and rng.random() < 0.75:
                node = node[key]
                continue
            if rng.random() < 0.2 and isinstance(node, dict):
                del node[key]
            elif rng.random() < 0.2 and isinstance(node, dict):
                node["150.0"] = node.pop(key)
            else:
                node[key] = ODD[rng.integers(len(ODD))]
            break
    return json.dumps(content).encode()


def test_odd_records_never_fail_the_service(store):
    """Whatever is taken in can be shown, compared and offered; the rest is refused."""
    rng, codes = np.random.default_rng(8), {201: 0, 422: 0}
    record = solved().to_json()
    with client_of(store, requests_per_minute=0) as client:
        for _ in range(150):
            answer = client.post("/api/v1/solutions", content=mutated(record, rng), headers=AUTH)
            codes[answer.status_code] += 1
        assert min(codes.values()) > 15
        for known in client.get("/api/v1/exposures", params={"limit": 1000}).json():
            name = quote(known["rootname"], safe="")
            for path in (f"/exposures/{name}", f"/api/v1/exposures/{name}/differences",
                         f"/astrometryDB/observation/read/{name}"):
                assert client.get(path).status_code in (200, 404), (path, known)


# --- a huge upload, a browser, Hubble's client ----------------------------------------------------


def test_a_gigabyte_is_refused_before_it_is_sent(running):
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(
            f"POST /api/v1/solutions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Length: 1073741824\r\n\r\n".encode() + bytes(2880)
        )
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.needs("chromium")
def test_a_browser_draws_the_pages(store, running, tmp_path):
    from PIL import Image

    store.add([fit(f"j95y{k:05d}", ra=15.0 * k) for k in range(20)])
    for name, height, least in (("", 1100, 0.004), ("exposures/j95y04hpq", 1800, 0.01)):
        target = tmp_path / "page.png"
        target.unlink(missing_ok=True)
        done = subprocess.run([
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={target}", f"--window-size=1300,{height}", f"{running.url}/{name}",
        ], capture_output=True, timeout=90, check=False)
        assert target.exists(), done.stderr.decode()[-500:]
        image = np.asarray(Image.open(target).convert("RGB")).astype(int)
        dark = image.min(axis=2) < 160
        for part in np.array_split(dark[: int(height * 0.9)], 3):
            assert part.mean() > least
        green = np.abs(image - np.array([0x00, 0x69, 0x4E])).max(axis=2) < 60
        assert green.sum() > 100, "the chosen solution, the fitted exposures"


HUBBLE = """
import os, sys
from astropy.io import fits
from stwcs.updatewcs import astrometry_utils
from stwcs.wcsutil import headerlet
path, url, gsss = sys.argv[1:]
os.environ["ASTROMETRY_SERVICE_URL"] = url
os.environ["GSSS_WEBSERVICES_URL"] = gsss
db = astrometry_utils.AstrometryDB(raise_errors=True, testing=True)
assert db.available
headerlets, best = db.getObservation("j95y04hpq")
print("LISTED", sorted(h[0].header["WCSNAME"] for h in headerlets.values()), best)
offset = astrometry_utils.find_gsc_offset(path)
print("OFFSET", offset["message"], offset["catalog"], offset["delta_ra"], offset["delta_x"] != 0.0)
db.updateObs(path)
with fits.open(path) as hdus:
    print("ACTIVE", hdus["SCI", 1].header["WCSNAME"], hdus["SCI", 2].header["WCSNAME"])
    print("ATTACHED", sorted(headerlet.get_headerlet_kw_names(hdus, kw="WCSNAME")))
assert astrometry_utils.AstrometryDB(raise_errors=True, testing=True).getObservation("nobody00q") \\
    is not None
"""


def exposure_of(data, path):
    """Write an exposure with the WCS of a headerlet active, as the pipeline leaves it."""
    with fits.open(io.BytesIO(data)) as hlet:
        primary = fits.PrimaryHDU()
        for key in ("IDCTAB", "NPOLFILE", "D2IMFILE", "DISTNAME", "SIPNAME", "UPWCSVER",
                    "PYWCSVER"):
            primary.header[key] = hlet[0].header[key]
        primary.header.update({
            "ROOTNAME": "j95y04hpq", "FILENAME": path.name, "TELESCOP": "HST", "INSTRUME": "ACS",
            "DETECTOR": "WFC", "DATE-OBS": "2006-01-01", "FILTER1": "F606W", "FILTER2": "CLEAR2L",
        })
        hdus = [primary]
        for chip in (1, 2):
            sci = fits.ImageHDU(np.zeros((2048, 4096), np.float32), name="SCI", ver=chip)
            for card in hlet["SIPWCS", chip].header.cards:
                if card.keyword not in ("XTENSION", "BITPIX", "NAXIS", "PCOUNT", "GCOUNT",
                                        "EXTNAME", "EXTVER", "TG_ENAME", "TG_EVER", ""):
                    sci.header.append(card, end=True)
            sci.header.update({"CCDCHIP": 3 - chip, "ORIENTAT": 30.0, "LTV1": 0.0, "LTV2": 0.0})
            hdus.append(sci)
        hdus += [h.copy() for h in hlet if h.name in ("WCSDVARR", "D2IMARR")]
        fits.HDUList(hdus).writeto(path)


def tpv_cards(chip):
    """Return the cards of a TPV with a distortion of some pixels, of one of two chips."""
    pv = {"PV1_1": 1.0 + 2e-4 * chip, "PV2_1": 1.0 - 1e-4, "PV1_4": 0.02, "PV2_5": -0.03,
          "PV1_10": 0.4, "PV2_7": 0.3}
    return {
        "CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "CRVAL1": 150.0, "CRVAL2": 2.0 + 0.029 * chip,
        "CRPIX1": 2048.5, "CRPIX2": 1024.5, "CD1_1": -1.39e-5, "CD1_2": 1e-7, "CD2_1": 1e-7,
        "CD2_2": 1.39e-5, "CUNIT1": "deg", "CUNIT2": "deg", "RADESYS": "ICRS", **pv,
    }


def solved(wcsname=f"{IDC}-FIT_IMG_GAIADR3", **changes):
    """Return the record of an exposure of two chips."""
    chips = tuple(
        {"name": f"j95y04hpq_flc.fits[SCI,{k}]", "hdu": 3 * k - 2, "shape": [2048, 4096],
         "cards": tpv_cards(k)} for k in (1, 2)
    )
    return Solution("data/j95y04hpq_flc.fits", **{
        "status": "solved", "quality": 1, "wcsname": wcsname, "catalog": "GAIADR3",
        "n_used": 321, "rms_ra_mas": 3.0, "rms_dec_mas": 4.0, "software": "cynosure 0.1",
        "created": "2026-01-02T03:04:05+00:00", "chips": chips, "form": "tpv", **changes})


def apart_mas(wcs, truth):
    """Return how far two WCSs are apart at most over a chip."""
    x, y = (g.ravel() for g in np.meshgrid(np.linspace(0, 4095, 23), np.linspace(0, 2047, 17)))
    return sky.separation_deg(
        *wcs.all_pix2world(x, y, 0), *truth.all_pix2world(x, y, 0)).max() * 3.6e6


def test_a_record_is_offered_as_a_headerlet(client, store, tmp_path):
    """What was solved here is an exposure's solution as any other, in the form that is known."""
    kept = read_record(solved().to_json())
    assert (kept.rootname, kept.media) == ("j95y04hpq", "application/json")
    far = solved("IDC_0461802ej-FIT_IMG_GAIADR1")  # more than SIP of degree 7 can say
    for chip in far.chips:
        chip["cards"] = {**chip["cards"], "PV1_39": 3e12}
    store.add([kept, read_record(far.to_json())])
    root = ElementTree.fromstring(client.get("/astrometryDB/observation/read/j95y04hpq").content)
    names = {s.findtext("wcsName"): s.findtext("solutionID") for s in root.iter("solution")}
    assert kept.wcsname in names
    assert far.wcsname not in names
    assert root.findtext("bestSolutionID") == names[kept.wcsname]
    address = "/astrometryDB/observation/read/j95y04hpq"
    got = client.get(address, params={"wcsname": kept.wcsname})
    assert got.headers["content-type"] == "application/fits"
    assert got.headers["content-disposition"].endswith('.fits"')
    made = read_headerlet(got.content)
    assert (made.rootname, made.wcsname, made.faults) == ("j95y04hpq", kept.wcsname, ())
    assert (made.nmatch, made.rms_ra_mas, made.catalog) == (321, 3.0, "GAIADR3")
    for chip in (1, 2):
        truth = WCS(fits.Header(tpv_cards(chip)))
        assert apart_mas(parse_headerlet(got.content).wcs(("SCI", chip)), truth) < 1.0
    assert client.get(address, params={"wcsname": far.wcsname}).status_code == 404
    for record, status in ((kept, 200), (read_record(far.to_json()), 422)):
        file = f"/api/v1/solutions/{record.content_sha256}/file"
        assert Solution.from_json(client.get(file).text).wcsname == record.wcsname
        answer = client.get(file, params={"form": "headerlet"})
        assert answer.status_code == status
        assert answer.content == got.content or "mas off" in answer.json()["error"]
    # The same solution with another date, in another store of this process, has its own file.
    with Store(tmp_path / "other.db", create=True) as other, client_of(other) as second:
        other.add([read_record(solved(created="2027-01-01T00:00:00").to_json())])
        again = second.get(address, params={"wcsname": kept.wcsname})
        assert read_headerlet(again.content).created == "2027-01-01T00:00:00"


def test_hubbles_own_client_takes_a_record(store, running, tmp_path):
    pytest.importorskip("stwcs", reason="stwcs")
    store.add([read_record(solved().to_json())])
    store.set_guide_stars(GuideStars(
        "j95y04hpq", 1e-4, 5e-5, 0.0, 1.0, 150.05, 2.05, 150.0501, 2.05005, "GSC240"))
    path = tmp_path / "j95y04hpq_flc.fits"
    exposure_of(make_headerlet(), path)
    said = asked(running, path)
    name = solved().wcsname
    assert said["LISTED"].endswith(f" {name}")
    assert said["ACTIVE"] == f"{name} {name}"
    with warnings.catch_warnings(), fits.open(path) as hdus:
        warnings.simplefilter("ignore")
        for chip in (1, 2):
            mine = WCS(hdus["SCI", chip].header, hdus)
            assert apart_mas(mine, WCS(fits.Header(tpv_cards(chip)))) < 1.0


@pytest.fixture(scope="module")
def stars():
    """Give a catalogue of known stars around (150, 2): some without a motion."""
    rng = np.random.default_rng(3)
    table = REFERENCE.empty(400)
    table["ref_id"] = np.arange(400) + 4_000_000_000_000_000_000
    table["ra_deg"], table["dec_deg"] = rng.uniform(149.5, 150.5, 400), rng.uniform(1.5, 2.5, 400)
    table["mag"], table["ref_epoch_yr"] = rng.uniform(12, 20, 400), 2016.0
    table["ra_error_mas"] = table["dec_error_mas"] = 0.1
    table["pm_ra_mas_yr"], table["pm_dec_mas_yr"] = rng.normal(0, 50, (2, 400))
    table["pm_ra_error_mas_yr"] = table["pm_dec_error_mas_yr"] = 0.05
    table["pm_ra_mas_yr"][::10] = table["pm_dec_mas_yr"][::10] = np.nan
    return table


@pytest.fixture
def catalog_client(store, stars, tmp_path):
    from astropy.table import Table

    columns = {"source_id": "ref_id", "ra": "ra_deg", "dec": "dec_deg", "phot_g_mean_mag": "mag",
               "ref_epoch": "ref_epoch_yr", "ra_error": "ra_error_mas",
               "dec_error": "dec_error_mas", "pmra": "pm_ra_mas_yr", "pmdec": "pm_dec_mas_yr",
               "pmra_error": "pm_ra_error_mas_yr", "pmdec_error": "pm_dec_error_mas_yr"}
    path = tmp_path / "stars.fits"
    Table({k: stars[v] for k, v in columns.items()}).write(path)
    catalog = open_refcat(path, name="GAIADR3")
    with client_of(store, refcats=[catalog], requests_per_minute=0) as client:
        yield client


def searched(client, **given):
    """Read an answer as the alignment software does."""
    answer = client.get("/webservices/vo/CatalogSearch.aspx", params=given)
    assert answer.status_code == 200, answer.text
    lines = answer.text.split("\r\n")
    assert lines[0].startswith("#"), lines[0]
    del lines[0]
    return list(csv.DictReader(lines))


def test_catalogue_search(catalog_client, stars):
    assert catalog_client.get("/api/v1/status").json()["catalogs"] == ["GAIADR3"]
    by_id = {str(s["ref_id"]): s for s in stars}
    sep = sky.separation_deg(stars["ra_deg"], stars["dec_deg"], 150.1, 2.05)
    rows = searched(catalog_client, RA=150.1, DEC=2.05, SR=0.2, FORMAT="CSV", CAT="GAIADR3",
                    MINDET=5)
    assert {r["objID"] for r in rows} == {str(i) for i in stars["ref_id"][sep <= 0.2]}
    assert len(rows) > 20
    for row in rows:
        star = by_id[row["source_id"]]
        assert float(row["ra"]) == pytest.approx(star["ra_deg"], abs=1e-9)
        assert (row["pmra"] == "") == np.isnan(star["pm_ra_mas_yr"])
        assert float(row["epoch"]) == 2016.0
    mags = [float(r["mag"]) for r in rows]
    assert mags == sorted(mags)
    later = searched(catalog_client, ra=150.1, dec=2.05, sr=0.2, cat="gaiadr3", epoch=2026)
    assert len(later) == len(rows)
    for row in later:
        star = by_id[row["objID"]]
        moved = np.isfinite(star["pm_ra_mas_yr"])
        assert float(row["epoch"]) == (2026.0 if moved else 2016.0)
        truth = star["dec_deg"] + (10 * star["pm_dec_mas_yr"] / 3.6e6 if moved else 0.0)
        assert abs(float(row["dec"]) - truth) * 3.6e6 < 0.01
    few = searched(catalog_client, STCS="CIRCLE 150.1 2.05 0.2", MAXOBJ=5, MAGRANGE="13,18")
    assert [r["objID"] for r in few] == [
        r["objID"] for r in rows if 13 <= float(r["mag"]) <= 18][:5]


def test_catalogue_search_in_polygons(catalog_client, stars):
    ra, dec = stars["ra_deg"], stars["dec_deg"]
    box = searched(catalog_client, BBOX="149.9,1.9,150.2,2.1")
    inside = (ra > 149.9) & (ra < 150.2) & (dec > 1.9) & (dec < 2.1)
    assert {r["objID"] for r in box} == {str(i) for i in stars["ref_id"][inside]}
    # An L, which is not convex; for the sake of the test its sides are nearly great circles.
    corners = [(149.8, 1.8), (150.2, 1.8), (150.2, 1.9), (149.9, 1.9), (149.9, 2.2), (149.8, 2.2)]
    text = "POLYGON ICRS " + " ".join(f"{a} {d}" for a, d in corners)
    rows = searched(catalog_client, STCS=text, CAT="GAIADR3")
    inside = (ra > 149.8) & (dec > 1.8) & (((ra < 150.2) & (dec < 1.9)) |
                                           ((ra < 149.9) & (dec < 2.2)))
    assert {r["objID"] for r in rows} == {str(i) for i in stars["ref_id"][inside]}


@pytest.mark.parametrize(("query", "words"), [
    ("", "numbers are expected"), ("RA=1&DEC=2", "numbers are expected"),
    ("RA=1&DEC=92&SR=1", "DEC=92"), ("RA=nan&DEC=2&SR=1", "numbers"), ("RA=1&DEC=2&SR=90", "wide"),
    ("RA=1&DEC=2&SR=-1", "SR=-1"), ("RA=1&DEC=2&SR=1&CAT=PS1", "not served here, but GAIADR3"),
    ("RA=1&DEC=2&SR=1&FORMAT=VOTABLE", "only CSV"), ("RA=1&DEC=2&SR=1&EPOCH=1e9", "EPOCH"),
    ("STCS=ELLIPSE 1 2 3 4", "CIRCLE or POLYGON"), ("STCS=POLYGON 1 2 3", "expected"),
    ("STCS=POLYGON 1 2 3 4 5 6 7", "pairs"), ("BBOX=1,2,3", "4 numbers"),
    ("RA=1&DEC=2&SR=1&MAXOBJ=0", "MAXOBJ"), ("RA=1&DEC=2&SR=1&MAGRANGE=20,10", "brighter"),
])
def test_bad_catalogue_searches(catalog_client, query, words):
    answer = catalog_client.get(f"/webservices/vo/CatalogSearch.aspx?{query}")
    assert answer.status_code == 400
    assert answer.text.startswith("Error")
    assert words in answer.text


def test_no_stars_and_no_catalogue(catalog_client, client):
    where = "/webservices/vo/CatalogSearch.aspx?RA=10&DEC=-80&SR=0.1"
    answer = catalog_client.get(where)
    assert (answer.status_code, answer.text[:15]) == (200, "No data records")
    assert client.get(where).status_code == 400
    assert client.get(where).text.startswith("Error: no catalogue")


def test_many_readers_and_a_writer(store, stars, tmp_path):
    """Readers never wait for the writer, see whole solutions only, and end with all of them."""
    from concurrent.futures import ThreadPoolExecutor

    files = [make_headerlet(f"k{i:08d}", chips=1, tables=i % 2 == 0) for i in range(60)]
    wrong = []

    def read(client, number):
        seen = 0
        while not done.is_set():
            try:
                status = client.get("/api/v1/status").json()
                rows = client.get("/api/v1/solutions", params={"rootname": "k*", "limit": 1000})
                found = rows.json()
                if status["solutions"] < 5 + seen or len(found) < seen:
                    wrong.append((number, "fewer than before", len(found), seen))
                seen = len(found)
                if found:
                    one = found[number % len(found)]
                    file = client.get(f"/api/v1/solutions/{one['content_sha256']}/file")
                    if read_headerlet(file.content).content_sha256 != one["content_sha256"]:
                        wrong.append((number, "another file"))
                    page = client.get(f"/exposures/{one['rootname']}")
                    listing = client.get(f"/astrometryDB/observation/read/{one['rootname']}")
                    codes = {r.status_code for r in (rows, file, page, listing)}
                    if codes != {200}:
                        wrong.append((number, codes))
            except (httpx.HTTPError, ValueError, KeyError) as error:
                wrong.append((number, repr(error)))

    done = threading.Event()
    with Running(store, requests_per_minute=0) as server, ThreadPoolExecutor(4) as pool:
        clients = [httpx.Client(base_url=server.url, trust_env=False, timeout=300)
                   for _ in range(4)]
        readers = [pool.submit(read, c, k) for k, c in enumerate(clients)]
        try:
            for data in files:
                answer = server.client.post("/api/v1/solutions", content=data, headers=AUTH)
                assert (answer.status_code, answer.json()["new"]) == (201, 1)
        finally:
            done.set()
            for reader in readers:
                reader.result(timeout=60)
            for c in clients:
                c.close()
    assert wrong == []
    assert store.count() == 65


def asked(running, path):
    """Let Hubble's client ask for all it can, and return what it said."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HUBBLE, path, f"{running.url}/astrometryDB/",
         f"{running.url}/webservices"],
        capture_output=True, text=True, timeout=120, cwd=path.parent, check=False,
        env={**os.environ, "no_proxy": "127.0.0.1", "jref": f"{path.parent}/"},
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return dict(line.split(" ", 1) for line in done.stdout.splitlines()
                if line.split(" ", 1)[0] in ("LISTED", "OFFSET", "ACTIVE", "ATTACHED"))


def test_hubbles_own_client(store, running, tmp_path):
    pytest.importorskip("stwcs", reason="stwcs")
    store.set_guide_stars(GuideStars(
        "j95y04hpq", 1e-4, 5e-5, 0.0, 1.0, 150.05, 2.05, 150.0501, 2.05005, "GSC240"))
    path = tmp_path / "j95y04hpq_flc.fits"
    exposure_of(make_headerlet(), path)
    said = asked(running, path)
    # The one whose SIP terms lack their -SIP is not offered.
    assert said["LISTED"] == f"{sorted(['OPUS', IDC, f'{IDC}-GSC240', FIT])} {FIT}"
    assert said["OFFSET"] == "Success GSC240 0.0001 True"
    assert said["ACTIVE"] == f"{FIT} {FIT}"
    assert FIT in said["ATTACHED"]
    # The active WCS is that of the headerlet.
    x, y = np.meshgrid(np.linspace(0, 4095, 7), np.linspace(0, 2047, 5))
    with warnings.catch_warnings(), fits.open(path) as hdus:
        warnings.simplefilter("ignore")
        with fits.open(io.BytesIO(fit().payload)) as hlet:
            for chip in (1, 2):
                mine, theirs = (
                    np.array(wcs.all_pix2world(x.ravel(), y.ravel(), 0)) for wcs in (
                        WCS(hdus["SCI", chip].header, hdus),
                        WCS(hlet["SIPWCS", chip].header, hlet))
                )
                assert np.abs(mine - theirs).max() * 3.6e6 < 0.01


def test_the_contract_as_xml(client, store):
    assert ElementTree.fromstring(client.get("/astrometryDB/availability").content) is not None
    listing = client.get("/astrometryDB/observation/read/J95Y04HPQ")
    assert listing.headers["content-type"].startswith("text/xml")
    root = ElementTree.fromstring(listing.content)
    names = {s.findtext("wcsName"): s.findtext("solutionID") for s in root.iter("solution")}
    assert set(names) == {"OPUS", IDC, f"{IDC}-GSC240", FIT}
    assert root.findtext("bestSolutionID") == names[FIT]
    for name in names:
        got = client.get("/astrometryDB/observation/read/j95y04hpq", params={"wcsname": name})
        assert read_headerlet(got.content).wcsname == name
    for path in ("nobody", "j95y04hpq?wcsname=nope"):
        missing = client.get(f"/astrometryDB/observation/read/{path}")
        assert missing.status_code == 404
        assert ElementTree.fromstring(missing.content).findtext("status") == "ERROR"
    none = client.get("/webservices/GSCConvert/GSCconvert.aspx", params={"IPPPSSOOT": "NOBODY"})
    assert ElementTree.fromstring(none.content).findtext("msg").split()[0] == "Failure:"


def test_the_record_of_a_decision_is_json(client):
    json.loads(client.get("/api/v1/exposures/j95y04hpq/best").text)
