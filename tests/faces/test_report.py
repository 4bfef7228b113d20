"""The report: complete, offline, small, and really drawn by a browser."""

import base64
import gzip
import io
import re
import subprocess
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cynosure.data.tables import MATCHES
from cynosure.faces.report.page import write_report
from cynosure.ground.errors import CatalogMissing
from cynosure.pipelines.evidence import ENDING, read_evidence


@pytest.fixture(scope="session")
def page(run_folder):
    return write_report(run_folder).read_text(encoding="utf-8")


def test_index_has_every_image_with_its_verdict_as_a_word(page):
    rows = re.findall(r"<tr>\s*<td><a href=\"#(\w+)\"(.*?)</tr>", page, re.DOTALL)
    verdicts = {stem: re.search(r"verdict (\w+)\">. (\w+)<", row).groups() for stem, row in rows}
    assert verdicts == {
        "demo": ("solved", "solved"), "thin": ("compromised", "compromised"),
        "second": ("solved", "solved"), "cloud": ("failed", "failed"),
    }
    assert "no match between 9 sources and 214 reference stars" in dict(rows)["cloud"]


def test_page_needs_nothing_from_outside(page, run_folder):
    for attribute in re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"' >)]+)", page):
        assert attribute.startswith(("data:", "#", "URL.createObjectURL")), attribute
    assert "http://" not in page
    assert "https://" not in page
    assert (run_folder / "report.html").stat().st_size < 5_000_000


def test_figures_are_drawn_with_words_for_those_who_do_not_see_them(page):
    drawn = re.findall(r'<svg class="plot".*?</svg>', page, re.DOTALL)
    alts = [ElementTree.fromstring(text).get("aria-label") for text in drawn]
    per_image = ["Stars", "Residuals", "Distribution", "Errors", "Trends", "Model", "Fit",
                 "Match", "PSF"]
    titles = [alt.split(":")[0] for alt in alts]
    assert titles[:9] == per_image
    # The second image of the run left no evidence: only what its matches and record give.
    assert titles[18:] == ["Residuals", "Distribution", "Errors", "Trends", "Match"]
    assert all("stars used, rms 17.5 mas in ra" in alt for alt in alts)
    for text in drawn:
        assert text.count("<path") + text.count("<rect") + text.count("<image") > 4
    names = re.findall(r'clipPath id="([^"]+)"', page)
    assert len(names) == len(set(names))


def test_data_behind_the_figures_comes_back_whole(page, matches):
    pattern = r'<script type="application/gzip" data-name="([^"]+)">([^<]+)<'
    holders = dict(re.findall(pattern, page))
    for name in re.findall(r'data-table="([^"]+)"', page):
        assert name in holders
    text = gzip.decompress(base64.b64decode(holders["demo.matches"])).decode()
    table = np.genfromtxt(io.StringIO(text), delimiter=",", names=True)
    assert table.dtype.names == MATCHES.names
    assert np.allclose(table["ra_deg"], matches["ra_deg"], atol=1e-9, rtol=0)
    assert np.allclose(table["dra_mas"], matches["dra_mas"], rtol=1e-5)
    assert (table["used"] == matches["used"]).all()
    grid = gzip.decompress(base64.b64decode(holders["demo.distortion"])).decode().splitlines()
    assert grid[0] == "x,y,dx_px,dy_px"


def test_run_page_says_where_settings_came_from(page):
    assert "--set quality.min_used=6" in page
    assert "cynosure solve demo.fits --refcat gaia" in page
    assert re.search(r"<td>numpy</td><td>\d", page)
    assert re.search(r"<td>detect</td><td class=\"n\">2.40</td>", page), "seconds summed by step"


def test_text_of_the_user_is_escaped(run_folder, tmp_path):
    from cynosure.pipelines.manifest import Manifest, Row

    manifest = Manifest(tmp_path)
    manifest.rows["x"] = Row("<script>alert(1)</script>.fits", "failed", "<b>no</b>", exit_code=10)
    manifest.write("finished")
    text = write_report(tmp_path).read_text()
    assert "<script>alert" not in text
    assert "&lt;b&gt;no&lt;/b&gt;" in text


def test_size_is_kept_by_drawing_the_worst_first(run_folder, tmp_path):
    target = write_report(run_folder, tmp_path / "small.html", max_bytes=100_000)
    text = target.read_text()
    assert "without figures" in text
    drawn = re.findall(r'<article id="(\w+)">.*?</article>', text, re.DOTALL)
    assert drawn == ["demo", "thin", "second", "cloud", "run"]
    articles = text.split("<article id=")
    assert "<figure" in next(a for a in articles if a.startswith('"thin"'))
    assert "<figure" not in next(a for a in articles if a.startswith('"demo"'))


def test_one_image_of_a_run(run_folder, tmp_path):
    text = write_report(run_folder, tmp_path / "one.html", names=["cloud.fits"]).read_text()
    assert 'id="cloud"' in text
    assert 'id="demo"' not in text
    with pytest.raises(CatalogMissing, match="no such image"):
        write_report(run_folder, names=["nobody"])


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(CatalogMissing, match="no run"):
        write_report(tmp_path)


def test_evidence_comes_back(run_folder, outcome):
    _, sources, extras = outcome
    evidence = read_evidence(run_folder / f"demo{ENDING}")
    assert np.allclose(evidence.sources["x"], sources["x"], atol=1e-3)
    table = evidence.table("distortion", ("x", "y", "dx_px", "dy_px"))
    assert np.allclose(table[:, 2], extras["distortion"]["dx_px"])
    assert evidence.extras["evidence"] == extras["evidence"]
    assert evidence.extras["thumbnail"].shape == extras["thumbnail"].shape


@pytest.mark.needs("chromium")
def test_a_browser_draws_it(run_folder, page, tmp_path):
    target = tmp_path / "page.png"
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={target}", "--window-size=1300,2600",
        (run_folder / "report.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert target.exists(), done.stderr.decode()[-500:]
    image = np.asarray(Image.open(target).convert("RGB")).astype(int)
    assert image.shape == (2600, 1300, 3)
    # The table, the text block and the figures leave ink in every fifth of the page.
    dark = image.min(axis=2) < 160
    for part in np.array_split(dark, 5):
        assert part.mean() > 0.01
    # The three colours of the verdicts are there.
    for color in ((0x00, 0x69, 0x4E), (0x8A, 0x5A, 0x00), (0xB0, 0x3A, 0x00)):
        assert (np.abs(image - np.array(color)).max(axis=2) < 12).sum() > 20, color
