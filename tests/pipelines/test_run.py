"""The run of a door over images: manifest, resume, isolation, what blocks an image."""

import json
from pathlib import Path

import pytest

from cynosure.data.fits.file import file_sha256
from cynosure.ground.errors import (
    CatalogDamaged,
    ExitCode,
    NoMatch,
    OutputError,
    SettingError,
)
from cynosure.ground.files import write_text
from cynosure.ground.settings import Settings
from cynosure.pipelines.manifest import Manifest, stem_of
from cynosure.pipelines.run import SECTIONS, default_settings, run_images
from cynosure.solutions.quality import judge
from cynosure.solutions.solution import Solution

ENDINGS = ("_wcs.fits", ".solution.json")


def solve_one(folder, payload, log):
    """Play the door: an image whose text is 'bad' does not match, 'bug' is a defect."""
    image, overwrite = payload
    log("measure")
    text = Path(image).read_text()
    if text == "bad":
        raise NoMatch(image=image, n_sources=3, n_reference=4)
    if text == "bug":
        raise ZeroDivisionError(text)
    if text == "stop":
        raise KeyboardInterrupt
    stem = stem_of(image)
    write_text(folder / f"{stem}_wcs.fits", text, overwrite=overwrite)
    files = (f"{stem}_wcs.fits",)
    return Solution(image, file_sha256(image), status="solved", quality=1, files=files)


@pytest.fixture
def night(tmp_path):
    """Give a function that runs the door over images made of (name, text) and counts the work."""

    def run(images, out="out", **options):
        paths = []
        for name, text in images.items():
            paths.append(tmp_path / name)
            paths[-1].write_text(text)
        out = tmp_path / out
        worked = []

        def door(payload, log):
            worked.append(Path(payload[0]).name)
            return solve_one(out, payload, log)

        result = run_images(
            door, paths, out, endings=ENDINGS, failed=Solution.from_error, **options
        )
        return result, worked, json.loads((out / "run.json").read_text())

    return run


def test_rows_stand_in_the_order_of_the_images(night):
    run, worked, content = night({"b.fits": "1", "a.fits.fz": "bad", "c.fits": "bug"})
    assert worked == ["b.fits", "a.fits.fz", "c.fits"]
    assert list(content["images"]) == ["b", "a", "c"]
    assert content["tally"] == {"solved": 1, "compromised": 0, "failed": 2}
    assert content["state"] == "finished"
    assert content["software"]["cynosure"]
    assert content["images"]["a"]["reason"].startswith("no match between 3 sources")
    assert [r.exit_code for r in run.records] == [0, 10, 1]
    assert run.exit_code == ExitCode.MIXED


def test_a_run_that_is_repeated_skips_what_is_done(night):
    images = {"a.fits": "1", "b.fits": "bad", "c.fits": "bug"}
    night(images)
    run, worked, content = night(images)
    assert worked == ["b.fits", "c.fits"], "a failure without checksum, and a fault, are redone"
    assert [Path(s).name for s in run.skipped] == ["a.fits"]
    assert content["images"]["a"]["status"] == "solved"
    run, worked, _ = night({"a.fits": "1"})
    assert worked == []
    assert run.exit_code == ExitCode.NOTHING_TO_DO


def test_new_content_or_settings_are_refused_without_overwrite(night):
    night({"a.fits": "1"})
    run, worked, content = night({"a.fits": "2"})
    assert worked == []
    assert run.records[0].reason.endswith("a_wcs.fits exists already")
    assert run.exit_code == ExitCode.OUTPUT_EXISTS
    assert content["images"]["a"]["status"] == "solved", "the row of what is there stays"
    settings = Settings({"quality": judge}).updated({"quality": {"min_used": 9}}, "test")
    run, worked, _ = night({"a.fits": "1"}, settings=settings)
    assert worked == []
    run, worked, content = night({"a.fits": "2"}, settings=settings, overwrite=True)
    assert worked == ["a.fits"]
    assert content["settings"] == {"quality": {"min_used": {"value": 9, "origin": "test"}}}
    assert run.exit_code == ExitCode.OK


def test_a_file_of_somebody_else_is_never_replaced(night, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_wcs.fits").write_text("precious")
    for _ in range(2):  # the second time there is a manifest
        run, worked, _ = night({"a.fits": "1"})
        assert worked == []
        assert run.exit_code == ExitCode.OUTPUT_EXISTS
        assert (tmp_path / "out" / "a_wcs.fits").read_text() == "precious"


def test_a_run_cut_short_is_taken_up(night, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        night({"a.fits": "1", "b.fits": "stop", "c.fits": "3"})
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.state == "interrupted"
    assert [r.status for r in manifest.rows.values()] == ["solved", "pending", "pending"]
    # What the killed run may have left of b is its own and may be replaced.
    (tmp_path / "out" / "b_wcs.fits").write_text("half")
    run, worked, content = night({"a.fits": "1", "b.fits": "2", "c.fits": "3"})
    assert worked == ["b.fits", "c.fits"]
    assert (tmp_path / "out" / "b_wcs.fits").read_text() == "2"
    assert content["tally"]["solved"] == 3
    assert run.exit_code == ExitCode.OK


def test_a_product_that_is_gone_is_made_again(night, tmp_path):
    night({"a.fits": "1"})
    (tmp_path / "out" / "a_wcs.fits").unlink()
    _, worked, _ = night({"a.fits": "1"})
    assert worked == ["a.fits"]


def test_an_image_that_was_changed_itself_is_done(tmp_path):
    """The row knows the checksum that the run gave the file; another change is another file."""
    image = tmp_path / "a.fits"
    image.write_text("sky")

    def run():
        worked = []

        def door(payload, log):
            worked.append(payload)
            before = file_sha256(image)
            write_text(image, image.read_text() + " solved", overwrite=True)
            return Solution(
                str(image), before, status="solved", quality=1, files=(str(image),)
            )

        result = run_images(
            door, [image], tmp_path / "out", endings=(), failed=Solution.from_error
        )
        return result, len(worked)

    assert run()[1] == 1
    result, worked = run()
    assert worked == 0
    assert result.exit_code == ExitCode.NOTHING_TO_DO
    assert image.read_text() == "sky solved"
    image.write_text("another sky")
    assert run()[1] == 1
    assert image.read_text() == "another sky solved"


def test_a_manifest_of_before_is_read(night, tmp_path):
    """Rows without what was added since, and no table of tasks."""
    night({"a.fits": "1"})
    path = tmp_path / "out" / "run.json"
    content = json.loads(path.read_text())
    assert "tasks" not in content
    del content["images"]["a"]["written"]
    path.write_text(json.dumps(content))
    _, worked, _ = night({"a.fits": "1"})
    assert worked == []


def test_images_of_which_too_many_would_not_fit_run_one_by_one(night):
    asked = []

    def memory_of(image):
        asked.append(Path(image).name)
        return 10**15

    run, worked, _ = night({"a.fits": "1", "b.fits": "2"}, memory_of=memory_of, memory_bytes=10)
    assert worked == ["a.fits", "b.fits"]
    assert set(asked) == {"a.fits", "b.fits"}
    assert run.exit_code == ExitCode.OK


def test_two_images_of_one_name_are_refused(tmp_path):
    with pytest.raises(SettingError, match="would both write"):
        run_images(
            solve_one, ["x/a.fits", "y/a.fits.gz"], tmp_path, endings=ENDINGS,
            failed=Solution.from_error,
        )


def test_a_foreign_or_broken_manifest_is_refused(tmp_path):
    for text in ("{", "[]", '{"schema": "cynosure.run/1", "images": {"a": 3}}', '{"schema": 2}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(CatalogDamaged, match="not a manifest"):
            Manifest.read(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        run_images(
            solve_one, [], tmp_path / "file" / "out", endings=ENDINGS, failed=Solution.from_error
        )


def test_sections_name_modules_of_the_house():
    settings = default_settings()
    assert set(settings) <= set(SECTIONS)
    assert settings.known("quality")["min_log_odds"].default == 21.0
