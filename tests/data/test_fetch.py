"""Fetching from a TAP service and from HATS over HTTP, both served on this machine."""

import io
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cynosure.data.catalogs import build as refbuild
from cynosure.data.catalogs import fetch
from cynosure.data.catalogs.build import build_refcat
from cynosure.data.catalogs.fetch import fetch_refcat
from cynosure.data.catalogs.hats import HatsStore
from cynosure.data.catalogs.refcat import open_refcat
from cynosure.data.catalogs.verify import verify_refcat
from cynosure.ground import sky
from cynosure.ground.errors import CatalogDamaged, CatalogMissing, OutputExists, Temporary

pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")

UNITS = {"ra": "deg", "dec": "deg", "pmra": "mas.yr**-1", "ra_error": "mas",
         "phot_g_mean_mag": "mag"}
CIRCLE = {"ra_deg": 359.8, "dec_deg": 30.0, "radius_deg": 0.8}


def gaia_sky(n=16_000, seed=1):
    """Return stars by Gaia's names around the circle; identifiers hold the cell, as Gaia's do."""
    rng = np.random.default_rng(seed)
    ra, dec = sky.deproject(*rng.uniform(-3, 3, (2, n)), 359.8, 30.0)
    cell = sky.healpix_cell(ra, dec, 12)
    return {
        "source_id": (cell << 35) + np.arange(n), "ra": ra, "dec": dec,
        "ra_error": rng.uniform(0.02, 1, n), "dec_error": rng.uniform(0.02, 1, n),
        "pmra": np.where(rng.uniform(size=n) < 0.1, np.nan, rng.normal(0, 5, n)),
        "pmdec": rng.normal(0, 5, n), "ref_epoch": np.full(n, 2016.0),
        "phot_g_mean_mag": rng.uniform(8, 21, n), "nonsense": np.arange(n),
    }


def inside(columns, ra_deg, dec_deg, radius_deg, max_mag=np.inf):
    far = sky.separation_deg(columns["ra"], columns["dec"], ra_deg, dec_deg)
    keep = (far <= radius_deg) & (columns["phot_g_mean_mag"] <= max_mag)
    return set(columns["source_id"][keep].tolist())


@contextmanager
def served(handler, **facts):
    """Serve a handler on a free port; `facts` are attributes of the server."""
    server = Server(("127.0.0.1", 0), handler)
    for name, value in facts.items():
        setattr(server, name, value)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Say nothing where a client hangs up."""


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def reply(self, body, status=200, kind="text/xml", **headers):
        body = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


# --- a TAP service ----------------------------------------------------------------------------


def votable(columns, overflow=False, error=None):
    if error:
        return (f'<VOTABLE version="1.4"><RESOURCE type="results"><INFO name="QUERY_STATUS" '
                f'value="ERROR">{error}</INFO></RESOURCE></VOTABLE>')
    kind = {"f": "double", "i": "long"}
    fields = "".join(
        f'<FIELD name="{k}" datatype="{kind[np.asarray(v).dtype.kind]}"'
        + (f' unit="{UNITS[k]}"' if k in UNITS else "") + "/>" for k, v in columns.items()
    )
    cells = [["" if x != x else repr(x) for x in np.asarray(v).tolist()] for v in columns.values()]
    rows = "".join("<TR>" + "".join(f"<TD>{c}</TD>" for c in r) + "</TR>" for r in zip(*cells))
    # As real services do: OK before the rows, and only after them that they were cut short.
    tail = '<INFO name="QUERY_STATUS" value="OVERFLOW"/>' if overflow else ""
    return ('<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">'
            '<RESOURCE type="results"><INFO name="QUERY_STATUS" value="OK"/>'
            f"<TABLE>{fields}<DATA><TABLEDATA>{rows}</TABLEDATA></DATA></TABLE>{tail}"
            "</RESOURCE></VOTABLE>")


class Tap(Quiet):
    """A TAP service that knows the few forms of query that are asked of it."""

    def do_POST(self):
        size = int(self.headers.get("Content-Length", 0))
        form = {k: v[0] for k, v in parse_qs(self.rfile.read(size).decode()).items()}
        path = urlparse(self.path).path
        server = self.server
        if path.endswith("/async"):
            server.jobs.append(form)
            place = f"http://{self.headers['Host']}/tap/async/{len(server.jobs)}"
            self.reply("", 303, Location=place)
        elif "/async/" in path:
            self.reply("", 303, Location=f"http://{self.headers['Host']}{path.rsplit('/', 1)[0]}")
        else:
            self.answer(form)

    def do_DELETE(self):
        self.reply("", 303, Location=f"http://{self.headers['Host']}/tap/async")

    def do_GET(self):
        path = urlparse(self.path).path
        job = re.search(r"/async/(\d+)(/.*)?$", path)
        if job is None:
            self.answer({k: v[0] for k, v in parse_qs(urlparse(self.path).query).items()})
        elif (job.group(2) or "").startswith("/results/result"):
            self.answer(self.server.jobs[int(job.group(1)) - 1])
        else:
            self.reply(
                '<uws:job xmlns:uws="http://www.ivoa.net/xml/UWS/v1.0" '
                'xmlns:xlink="http://www.w3.org/1999/xlink">'
                f"<uws:jobId>{job.group(1)}</uws:jobId><uws:phase>COMPLETED</uws:phase>"
                '<uws:results><uws:result id="result" '
                f'xlink:href="http://{self.headers["Host"]}{path}/results/result"/></uws:results>'
                "</uws:job>"
            )

    def answer(self, form):
        server = self.server
        query = form["QUERY"]
        server.queries.append(query)
        if server.failures:
            how = server.failures.pop(0)
            if how == "cut":
                text = votable(server.columns)
                self.reply(text[: len(text) // 2])
            elif how == "hang up":
                self.close_connection = True
                self.connection.close()
            else:
                self.reply("service unavailable", 503)
            return
        if server.table not in query:
            self.reply(votable({}, error="no such table"), 400)
            return
        rows = self.chosen(query)
        if "COUNT(*)" in query:
            self.reply(votable({"n": np.array([len(rows)])}))
            return
        names = re.match(r"SELECT (?:TOP \d+ )?(.*) FROM", query).group(1)
        names = list(server.columns) if names == "*" else re.split(r", *", names.replace('"', ""))
        limit = min(int(form.get("MAXREC", 10**9)), server.limit)
        if "TOP 1" in query:
            limit = 1
        overflow = len(rows) > limit and server.honest
        self.reply(votable({k: server.columns[k][rows[:limit]] for k in names}, overflow))

    def chosen(self, query):
        columns = self.server.columns
        keep = np.ones(len(columns["ra"]), dtype=bool)
        between = re.search(r"source_id BETWEEN (\d+) AND (\d+)", query)
        if between:
            ids = columns["source_id"]
            keep &= (ids >= int(between.group(1))) & (ids <= int(between.group(2)))
        circle = re.search(r"CIRCLE\('ICRS', ([\d.-]+), ([\d.-]+), ([\d.-]+)\)", query)
        if circle:
            ra, dec, radius = map(float, circle.groups())
            keep &= sky.separation_deg(columns["ra"], columns["dec"], ra, dec) <= radius
        faint = re.search(r"phot_g_mean_mag <= ([\d.]+)", query)
        if faint:
            keep &= columns["phot_g_mean_mag"] <= float(faint.group(1))
        return np.flatnonzero(keep)


def tap(columns, limit=10**9, failures=(), table="gaiadr3.gaia_source", honest=True):
    return served(Tap, columns=columns, limit=limit, failures=list(failures), table=table,
                  honest=honest, queries=[], jobs=[])


@pytest.fixture(scope="module")
def stars():
    return gaia_sky()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    waits = []
    monkeypatch.setattr(fetch.time, "sleep", waits.append)
    return waits


def check(catalog, stars, max_mag=np.inf):
    found = catalog.cone(*CIRCLE.values(), max_mag=None if np.isinf(max_mag) else max_mag)
    assert set(found["ref_id"].tolist()) == inside(stars, **CIRCLE, max_mag=max_mag)
    assert len(found) == len(set(found["ref_id"].tolist())) > 100
    assert not verify_refcat(catalog.source)
    return found


@pytest.mark.parametrize("mode", ["auto", "sync", "async"])
def test_all_stars_of_the_circle_come(stars, tmp_path, mode):
    with tap(stars) as (server, url):
        catalog = fetch_refcat(tmp_path / "cat", **CIRCLE, service=f"{url}/tap", mode=mode)
    found = check(catalog, stars)
    assert catalog.name == "GAIADR3"
    assert catalog.covers(*CIRCLE.values())
    assert not catalog.covers(180.0, -40.0, 1.0)
    by_id = dict(zip(stars["source_id"].tolist(), stars["pmra"]))
    expected = [by_id[i] for i in found["ref_id"].tolist()]
    np.testing.assert_array_equal(found["pm_ra_mas_yr"], expected)
    assert "nonsense" not in catalog.store.schema().names
    assert bool(server.jobs) == (mode == "async")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cat"]
    properties = catalog.store.properties
    assert properties["cynosure_region"].startswith("circle 359.8")
    assert "gaiadr3.gaia_source" in properties["cynosure_origin"]


@pytest.mark.parametrize("honest", [True, False], ids=["overflow said", "cut without a word"])
def test_a_service_that_cuts_short_is_asked_in_smaller_cells(stars, tmp_path, honest):
    with tap(stars, limit=400, honest=honest) as (server, url):
        catalog = fetch_refcat(tmp_path / "cat", **CIRCLE, service=f"{url}/tap")
    check(catalog, stars)
    assert sum("COUNT" in q for q in server.queries) < len(server.queries) - 10
    assert any("TOP 1" in q for q in server.queries)


def test_a_service_that_never_gives_what_it_counts_is_damage(stars, tmp_path):
    few = {k: v[:2000] for k, v in stars.items()}
    circle = {"ra_deg": few["ra"][0], "dec_deg": few["dec"][0], "radius_deg": 0.01}
    with tap(few, limit=0, honest=False) as (_, url), pytest.raises(CatalogDamaged) as caught:
        fetch_refcat(tmp_path / "cat", **circle, service=f"{url}/tap")
    assert caught.value.given == 0
    assert caught.value.n > 0
    assert caught.value.order == 12
    assert not (tmp_path / "cat").exists()


def test_cells_with_too_many_rows_are_not_even_asked_for(stars, tmp_path):
    with tap(stars) as (server, url):
        catalog = fetch_refcat(
            tmp_path / "cat", **CIRCLE, service=f"{url}/tap", max_rows_per_query=300
        )
    check(catalog, stars)
    for query in server.queries:
        if "COUNT" not in query and "TOP 1" not in query:
            assert len(Tap.chosen(type("H", (), {"server": server}), query)) <= 300


def test_only_bright_stars_come_if_only_they_are_wanted(stars, tmp_path):
    with tap(stars) as (_, url):
        catalog = fetch_refcat(tmp_path / "cat", **CIRCLE, service=f"{url}/tap", max_mag=15.5)
    check(catalog, stars, 15.5)
    assert catalog.info()["mag_range"][1] <= 15.5
    assert catalog.store.properties["cynosure_max_mag"] == "15.5"


def test_another_table_is_asked_by_circles_and_no_star_comes_twice(stars, tmp_path):
    other = {"objid": np.arange(len(stars["ra"])), "ra": stars["ra"], "dec": stars["dec"],
             "phot_g_mean_mag": stars["phot_g_mean_mag"]}
    with tap(other, table='"I/259/tyc2"') as (server, url):
        catalog = fetch_refcat(
            tmp_path / "cat", **CIRCLE, service=f"{url}/tap", table='"I/259/tyc2"'
        )
    assert catalog.name == "TYCHO2"
    assert all("BETWEEN" not in q for q in server.queries)
    found = catalog.cone(*CIRCLE.values())
    far = sky.separation_deg(other["ra"], other["dec"], *list(CIRCLE.values())[:2])
    assert sorted(found["ref_id"].tolist()) == np.flatnonzero(far <= 0.8).tolist()
    assert (found["ref_epoch_yr"] == 2000.0).all()
    assert not verify_refcat(tmp_path / "cat")


@pytest.mark.parametrize("how", ["cut", "hang up", "busy"])
def test_what_fails_is_tried_again(stars, tmp_path, how, no_waiting):
    with tap(stars, failures=[how, how]) as (_, url):
        catalog = fetch_refcat(tmp_path / "cat", **CIRCLE, service=f"{url}/tap")
    check(catalog, stars)
    assert no_waiting[:2] == [1.0, 2.0]


def test_a_broken_off_fetch_goes_on_where_it_was(stars, tmp_path):
    with tap(stars) as (server, url):
        whole = fetch_refcat(tmp_path / "whole", **CIRCLE, service=f"{url}/tap")
        needed = len(server.queries)
    half = needed // 2

    def kill(done, total, what):
        if done == 5:
            raise KeyboardInterrupt

    with tap(stars) as (server, url):
        service = f"{url}/tap"
        with pytest.raises(KeyboardInterrupt):
            fetch_refcat(tmp_path / "cat", **CIRCLE, service=service, progress=kill)
        before = len(server.queries)
        assert 0 < before < half + 5
        assert not (tmp_path / "cat").exists()
        server.failures = ["busy"] * 2
        with pytest.raises(Temporary) as caught:
            fetch_refcat(tmp_path / "cat", **CIRCLE, service=service, retries=1)
        assert "kept in" in caught.value.hint
        asked = len(server.queries)
        catalog = fetch_refcat(tmp_path / "cat", **CIRCLE, service=service)
        assert len(server.queries) - asked == needed - before
    check(catalog, stars)
    same = [p.relative_to(tmp_path / "cat") for p in (tmp_path / "cat").rglob("*.parquet")]
    assert same
    for name in same:
        assert (tmp_path / "cat" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cat", "whole"]
    assert len(whole.all()) == len(catalog.all())


def test_a_cache_of_ones_own_serves_the_next_fetch(stars, tmp_path):
    with tap(stars) as (server, url):
        for k, radius in enumerate((0.8, 0.79)):
            fetch_refcat(
                tmp_path / f"cat{k}", **(CIRCLE | {"radius_deg": radius}), service=f"{url}/tap",
                cache=tmp_path / "cache",
            )
            if k == 0:
                first = len(server.queries)
        assert len(server.queries) == first
        fetch_refcat(
            tmp_path / "cat2", **CIRCLE, service=f"{url}/tap", max_mag=12.0,
            cache=tmp_path / "cache",
        )
        assert len(server.queries) > first
    assert (tmp_path / "cache").is_dir()


def test_errors_of_the_service_are_told(stars, tmp_path):
    with tap(stars) as (_, url):
        with pytest.raises(CatalogMissing, match="no such table"):
            fetch_refcat(tmp_path / "cat", **CIRCLE, service=f"{url}/tap", table="gaiadr9.x")
        empty = CIRCLE | {"ra_deg": 100.0, "dec_deg": -60.0}
        with pytest.raises(CatalogMissing, match="no stars"):
            fetch_refcat(tmp_path / "cat", **empty, service=f"{url}/tap")
    with pytest.raises(Temporary):
        fetch_refcat(tmp_path / "cat", **CIRCLE, service=f"{url}/tap", retries=0)
    assert not (tmp_path / "cat").exists()
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "hats.properties").write_text("")
    with pytest.raises(OutputExists):
        fetch_refcat(tmp_path / "cat", **CIRCLE, service=f"{url}/tap")


# --- HATS over HTTP ---------------------------------------------------------------------------


class Files(Quiet):
    """Files by ranges, as web servers give them; it counts what it sends."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server
        path = Path(server.root) / urlparse(self.path).path.lstrip("/")
        server.requests.append((self.command, self.path, self.headers.get("Range")))
        if server.failures:
            server.failures.pop(0)
            self.reply("no", 500)
            return
        if not path.is_file():
            self.reply("not found", 404)
            return
        body = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first = int(asked.group(1))
            last = min(int(asked.group(2) or len(body) - 1), len(body) - 1)
            part = body[first : last + 1]
            server.sent += len(part)
            self.reply(part, 206, "application/octet-stream", Accept_Ranges="bytes",
                       Content_Range=f"bytes {first}-{last}/{len(body)}")
            return
        if self.command == "GET":
            server.sent += len(body)
        self.reply(body, 200, "application/octet-stream", Accept_Ranges="bytes")


@pytest.fixture(scope="module")
def remote(stars, tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    fields = [pa.field(k, pa.array(v).type) for k, v in stars.items()]
    for k in range(30):
        fields.append(pa.field(f"extra{k}", pa.float64()))
    rng = np.random.default_rng(5)
    table = pa.table(
        [pa.array(v, from_pandas=True) for v in stars.values()]
        + [pa.array(rng.normal(size=len(stars["ra"]))) for _ in range(30)], schema=pa.schema(fields)
    )
    pq.write_table(table, folder / "gaia_dr3.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refbuild, "ROWS_PER_GROUP", 1000)
        build_refcat([folder / "gaia_dr3.parquet"], folder / "cat", max_rows_per_partition=6000)
    (folder / "coll").mkdir()
    (folder / "coll/collection.properties").write_text("hats_primary_table_url=../cat\n")
    return folder


def files(remote, **facts):
    return served(Files, root=remote, requests=[], sent=0, failures=[], **facts)


def test_a_cone_over_http_reads_only_what_it_needs(remote, stars):
    total = sum(p.stat().st_size for p in (remote / "cat").rglob("*.parquet"))
    circle = {"ra_deg": 0.2, "dec_deg": 30.3, "radius_deg": 0.2}
    with files(remote) as (server, url):
        catalog = open_refcat(f"{url}/cat")
        opened = len(server.requests)
        found = catalog.cone(*circle.values())
        sent, requests = server.sent, server.requests[opened:]
        again = catalog.cone(*circle.values())
    assert set(found["ref_id"].tolist()) == inside(stars, **circle)
    assert again["ref_id"].tolist() == found["ref_id"].tolist()
    assert len(found) > 20
    assert opened <= 6
    store = catalog.store
    touched = store.overlapping(sky.cone_ranges(*circle.values()))
    assert len(touched) < len(store.pixels)
    asked = {r[1] for r in requests}
    assert len(asked) == len(touched)
    # Ten of forty columns, and few of the row groups, of few of the partitions.
    assert sent < 0.12 * total, (sent, total)
    assert len(requests) <= 12 * len(touched)


def test_http_and_disk_give_the_same_stars(remote):
    local = open_refcat(remote / "cat")
    with files(remote) as (_, url):
        distant = open_refcat(f"{url}/coll/../cat")
        assert distant.name == local.name
        a, b = distant.cone(*CIRCLE.values()), local.cone(*CIRCLE.values())
        table = open_refcat(f"{url}/gaia_dr3.parquet")
        c = table.cone(*CIRCLE.values())
    for name in a.dtype.names:
        np.testing.assert_array_equal(a[name], b[name])
        np.testing.assert_array_equal(c[name], b[name])


def test_a_region_of_a_distant_catalogue_is_copied(remote, stars, tmp_path):
    with files(remote) as (server, url):
        catalog = fetch_refcat(tmp_path / "cat", **CIRCLE, service=f"{url}/cat", max_mag=19.0)
        total = sum(p.stat().st_size for p in (remote / "cat").rglob("*.parquet"))
        assert server.sent < 0.25 * total
    found = check(catalog, stars, 19.0)
    assert len(found) == len(catalog.all())
    assert catalog.coverage(*CIRCLE.values()) > 0.95
    assert catalog.coverage(3.0, 31.0, 0.5) == 0.0
    assert "extra0" not in catalog.store.schema().names
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cat"]


def test_a_copy_that_was_broken_off_goes_on(remote, stars, tmp_path):
    def kill(done, total, what):
        if done == 1:
            raise KeyboardInterrupt

    wide = CIRCLE | {"radius_deg": 2.5}
    with files(remote) as (server, url):
        with pytest.raises(KeyboardInterrupt):
            fetch_refcat(tmp_path / "cat", **wide, service=f"{url}/cat", progress=kill)
        first = {r[1] for r in server.requests if "Npix" in r[1]}
        assert len(first) == 1
        server.requests.clear()
        catalog = fetch_refcat(tmp_path / "cat", **wide, service=f"{url}/cat")
        assert not first & {r[1] for r in server.requests}
    assert set(catalog.all()["ref_id"].tolist()) == inside(stars, **wide)


def test_what_is_wrong_with_a_distant_catalogue_is_told(remote):
    with files(remote) as (server, url):
        with pytest.raises(CatalogMissing, match="not a HATS catalogue"):
            open_refcat(f"{url}/nothing")
        catalog = open_refcat(f"{url}/cat")
        server.failures = [1]
        assert len(catalog.cone(*CIRCLE.values())) > 100  # tried again
        server.failures = [1] * 500
        with pytest.raises(Temporary):
            catalog.cone(*CIRCLE.values())
    with pytest.raises(Temporary):
        open_refcat(f"{url}/cat")
    with pytest.raises(CatalogMissing, match="not known"):
        open_refcat("nosuchprotocol://x/cat")


def test_a_region_of_a_local_catalogue_is_copied_too(remote, stars, tmp_path):
    catalog = fetch_refcat(tmp_path / "cat", **CIRCLE, service=str(remote / "cat"))
    check(catalog, stars)
    with pytest.raises(CatalogMissing, match="not a HATS catalogue") as caught:
        fetch_refcat(tmp_path / "x", **CIRCLE, service=str(remote / "gaia_dr3.parquet"))
    assert "refcat build" in caught.value.hint
    assert isinstance(catalog.store, HatsStore)


def test_the_server_of_these_tests_speaks_as_services_do():
    table = __import__("astropy.io.votable", fromlist=["parse"]).parse(
        io.BytesIO(votable({"n": np.array([3])}, overflow=True).encode())
    )
    assert [i.value for i in table.resources[0].infos] == ["OK", "OVERFLOW"]
