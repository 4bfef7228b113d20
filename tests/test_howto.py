"""What the how-to pages on solutions tell one to type does what they say.

The commands of a page run one after another in one folder with the files that the page names, the
Python after them; a step that fails fails the page.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "solutions"))

from exposures import make_flc, make_tpv  # noqa: E402
from headerlets import make_headerlet, variants  # noqa: E402

from cynosure.data.fits.parts import Part  # noqa: E402
from cynosure.faces.cli import run as cynosure  # noqa: E402
from cynosure.solutions.files import archive  # noqa: E402
from cynosure.solutions.files.headerlet import ChipWcs, Headerlet  # noqa: E402
from cynosure.solutions.solution import Solution  # noqa: E402

# What a page tells one to do that a test cannot: why.
LEFT_OUT = {
    "pip install": "installs from the network",
    "cynosure wcs default": "wants the archive's reference files",
}


def other(headerlet, name, shift_deg, **cards):
    """Return a headerlet with another name, moved in declination."""
    chips = []
    for chip in headerlet.chips:
        part = Part(list(chip.records))
        part.set("CRVAL2", chip.number("CRVAL2") + shift_deg)
        chips.append(ChipWcs(chip.version, chip.target, part.records))
    moved = Headerlet(headerlet.head, tuple(chips), headerlet.tables)
    return moved.replaced(WCSNAME=name, HDRNAME=f"{headerlet.destim}_{name}-hlet.fits", **cards)


def exposure(path, root, idc="IDC_0461802ej", fitted=()):
    """Write an exposure of Hubble with the headerlets that its archive gives it."""
    make_flc(path, root=root, idctab=f"jref${idc.removeprefix('IDC_')}_idc.fits")
    model = idc.removeprefix("IDC_")
    with fits.open(path, mode="update") as units:
        for key in ("SIPNAME", "DISTNAME"):
            units[0].header[key] = units[0].header[key].replace("0461802ej", model)
        for version in (1, 2):
            units["SCI", version].header["WCSNAME"] = idc
    active = archive.solution_of(path)
    for k, name in enumerate(("OPUS-GSC240", f"{idc}-GSC240", "OPUS-HSC30", f"{idc}-HSC30"), 1):
        archive.attach(path, other(active, name, k * 2e-5))
    for k, (name, rms) in enumerate(fitted, 1):
        archive.attach(path, other(active, f"{idc}-{name}", -k * 1e-6, RMS_RA=rms, RMS_DEC=rms,
                                   NMATCH=200 + k, CATALOG=name.rpartition("_")[2]))
    return path


def run(text, folder, environment):
    done = subprocess.run(
        ["bash", "-c", text], cwd=folder, env=environment, capture_output=True, text=True,
        check=False, timeout=600,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def typed(tmp_path, environment, monkeypatch, capsys):
    """Give a function that runs a line as a shell would, but our command in this process."""
    monkeypatch.chdir(tmp_path)
    for name in [k for k in os.environ if k.startswith("CYNOSURE_")]:
        monkeypatch.delenv(name)

    def enter(line):
        if not line.startswith("cynosure "):
            return run(line, tmp_path, environment)
        words = run(f"printf '%s\\0' {line}", tmp_path, environment).split("\0")[1:-1]
        code = cynosure(words)
        said = capsys.readouterr()
        assert code == 0, f"{line}\n{said.out}\n{said.err}"
        return said.out

    return enter


@pytest.fixture
def environment():
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CYNOSURE_")}
    return {**kept, "PATH": path, "PYTHONWARNINGS": "error", "no_proxy": "127.0.0.1"}


def left_out(line, seen):
    for words in LEFT_OUT:
        if line.startswith(words):
            seen.add(words)
            return True
    return False


# --- choose among the solutions of an exposure ----------------------------------------------------


def test_headerlets(tmp_path, environment, typed):
    exposure(tmp_path / "j95y04hpq_flc.fits", "j95y04hpq")
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "j95y04hpq_flc.fits", tmp_path / "copy")
    make_tpv(tmp_path / "m81.fits")
    make_tpv(tmp_path / "m81_wcs.fits", name="FIT_IMG_GAIADR3")
    page = (ROOT / "docs/how-to/headerlets.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    \$ (.*)$", page, re.MULTILINE)
    assert len(lines) >= 15
    seen, said = set(), []
    for line in lines:
        if not left_out(line, seen):
            said.append(typed(line))
    assert seen == {"cynosure wcs default"}
    assert "IDC_0461802ej-GSC240" in said[1]
    assert (tmp_path / "moved.png").stat().st_size > 1000
    blocks = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    # The page's Python starts where its commands did.
    exposure(tmp_path / "j95y04hpq_flc.fits", "j95y04hpq")
    (tmp_path / "gsc240_hlet.fits").unlink()
    for block in blocks:
        (tmp_path / "block.py").write_text(block)
        run(f"{sys.executable} block.py", tmp_path, environment)


# --- keep, compare and serve ----------------------------------------------------------------------


def stars(path):
    rng = np.random.default_rng(1)
    rows = "\n".join(f"{137.84 + a:.6f},{-64.91 + d:.6f},{m:.3f},2.5,-1.5,2016.0" for a, d, m in
                     zip(*rng.uniform(-0.05, 0.05, (2, 50)), rng.uniform(12, 20, 50), strict=True))
    table = path.with_suffix(".csv")
    table.write_text("ra,dec,phot_g_mean_mag,pmra,pmdec,ref_epoch\n" + rows + "\n")
    import pyarrow.csv
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.csv.read_csv(table), path)
    table.unlink()


@pytest.fixture
def folder(tmp_path):
    """Give a folder with the files that the page on the store names."""
    idc = "IDC_2731450pi"
    cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 20.0,
             "CRPIX1": 500.5, "CRPIX2": 250.5, "CD1_1": -1e-3, "CD2_2": 1e-3}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "m81.solution.json").write_text(Solution(
        "m81.fits", status="solved", quality=1, wcsname="FIT_IMG_GAIADR3", catalog="GAIADR3",
        chips=({"name": "m81.fits", "hdu": 0, "shape": [500, 1000], "cards": cards},)).to_json())
    data = make_headerlet("ib4606c5q", f"{idc}-FIT_REL_GAIADR2", 137.84, -64.91, primary={
        "RMS_RA": 5.0, "RMS_DEC": 6.0, "NMATCH": 691, "CATALOG": "GAIADR2",
        "DATE": "2021-06-01T00:00:00"})
    (tmp_path / "ib4606c5q_hlet.fits").write_bytes(data)
    [new] = variants(data, ["ib4606cxq"])
    (tmp_path / "new").write_bytes(new)
    exposure(tmp_path / "ib4606c5q_flc.fits", "ib4606c5q", idc,
             [("FIT_SVM_GAIADR2", 8.0), ("FIT_REL_GAIAeDR3", 5.5)])
    (tmp_path / "archive").mkdir()
    exposure(tmp_path / "archive" / "j95y04hpq_flc.fits", "j95y04hpq")
    stars(tmp_path / "gaia_dr3.parquet")
    return tmp_path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def served(line, folder, environment, port):
    """Start the service and wait until it listens."""
    log = (folder / "serve.log").open("w")
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line} --port {port}"], cwd=folder, env=environment,
        stdout=log, stderr=subprocess.STDOUT,
    )
    log.close()
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.1)
    raise AssertionError((folder / "serve.log").read_text())


@pytest.mark.needs("curl")
def test_solution_store(folder, environment, typed):
    pytest.importorskip("fastapi", reason="fastapi")
    page = (ROOT / "docs/how-to/solution-store.md").read_text(encoding="utf-8")
    port, seen, said, service = free_port(), set(), {}, None
    text = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    try:
        for line in text.replace(":8765", f":{port}").splitlines():
            if left_out(line, seen):
                continue
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").partition("=")
                environment[name] = value
            elif line.startswith("cynosure store serve"):
                service = served(line, folder, environment, port)
                (folder / "new").rename(folder / "new_hlet.fits")
            else:
                said[line] = typed(line)
    finally:
        if service is not None:
            service.terminate()
            service.wait(timeout=30)
    assert seen == {"pip install"}
    assert len(said) >= 16
    answers = list(said.values())
    assert "IDC_2731450pi" in next(v for k, v in said.items() if "exposures/ib4606c5q/best" in k)
    assert '"new":1' in next(v for k, v in said.items() if "data-binary" in k)
    assert answers[-1].startswith("# 50 records of GAIADR3")
    assert (folder / "best_hlet.fits").read_bytes().startswith(b"SIMPLE")
    blocks = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 1
    (folder / "block.py").write_text(blocks[0] + "assert near\n")
    assert "FIT_REL_GAIAeDR3" in run(f"{sys.executable} block.py", folder, environment)
