"""The pages on simulation: they list what there is, and their snippets run."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from cynosure.data.tables import MATCHES, read_parquet, write_parquet
from cynosure.products.faults import FAULTS
from cynosure.products.scene import load_scene, scene_names
from cynosure.products.simulate import TRUTH, simulate_scene

ROOT = Path(__file__).parents[2]
EXPLAIN = ROOT / "docs/explain/simulation.md"
HOW_TO = ROOT / "docs/how-to/validate-with-simulations.md"


def snippets(page):
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def test_every_fault_and_scene_is_explained():
    text = EXPLAIN.read_text("utf-8")
    for name, fault in FAULTS.items():
        assert f"| `{name}` | {fault.about} |" in text
    for name in scene_names():
        assert f"| `{name}` |" in text


def test_the_example_scene_is_one(tmp_path):
    scene = load_scene(ROOT / "examples/scenes/guide_camera.toml")
    assert scene.name == "guide_camera"
    files = simulate_scene(scene.updated({"sky": {"n_stars": 50}}), tmp_path)
    assert files.mask.exists()


def test_the_snippets_of_the_explanation_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for snippet in snippets(EXPLAIN):
        exec(compile(snippet, EXPLAIN.name, "exec"), {})
    assert (tmp_path / "out/demo.fits").exists()


@pytest.fixture
def solved_demo(tmp_path):
    """Make the files of the demo and of a solution of it: the truth with known errors."""
    files = simulate_scene(load_scene("demo"), tmp_path / "demo")
    (tmp_path / "demo/solved").mkdir()
    header = fits.getheader(files.truth_wcs)
    header["CRVAL2"] += 5.0 / 3.6e6
    fits.PrimaryHDU(header=header).writeto(tmp_path / "demo/solved/demo_wcs.fits")
    truth = read_parquet(files.truth, TRUTH)
    truth = truth[truth["in_catalog"]]
    rng = np.random.default_rng(1)
    matches = MATCHES.build(
        ref_id=truth["id"], x=truth["x"] + 1.1 * truth["x_crb"] * rng.standard_normal(len(truth))
    )
    matches["x_err"] = 1.1 * truth["x_crb"]
    write_parquet(tmp_path / "demo/solved/demo.matches.parquet", matches, MATCHES)
    return tmp_path


def test_the_snippets_of_the_how_to_run_and_tell_the_truth(solved_demo, monkeypatch, capsys):
    monkeypatch.chdir(solved_demo)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy on headers without pixels
        for snippet in snippets(HOW_TO):
            exec(compile(snippet, HOW_TO.name, "exec"), {})
    printed = capsys.readouterr().out
    rms, worst = map(float, re.search(r"rms (\S+) mas, worst (\S+) mas", printed).groups())
    assert (rms, worst) == (pytest.approx(5.0, abs=0.01), pytest.approx(5.0, abs=0.01))
    assert float(re.search(r"over the bound (\S+)", printed)[1]) == pytest.approx(1.1, abs=0.08)
    assert float(re.search(r"pulls (\S+)", printed)[1]) == pytest.approx(1.0, abs=0.08)
    assert (solved_demo / "mine/demo_truth.parquet").exists()
