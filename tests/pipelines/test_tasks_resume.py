"""Resume: what is done is not done again, what changed is, and the manifest says so."""

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from steps import act, copy_text, first_letter, night, ones, shout, write_sum

from cynosure.ground.errors import SettingError
from cynosure.pipelines.manifest import Manifest
from cynosure.pipelines.tasks.content import digest, identity
from cynosure.pipelines.tasks.done import Silent
from cynosure.pipelines.tasks.graph import File, Graph
from cynosure.pipelines.tasks.schedule import execute


class Ran(Silent):
    """Take note of the tasks that really ran."""

    def __init__(self):
        self.names = []

    def started(self, key):
        self.names.append(key)


@pytest.fixture
def rerun(tmp_path):
    """Give a function that runs a graph in the folder and returns which tasks ran."""

    def run(graph, **options):
        watch = Ran()
        run.results = execute(graph, folder=tmp_path, watch=watch, **options)
        return watch.names

    return run


def letters(folder, suffix="!"):
    """Copy a text, then its first letter, then that letter with a suffix."""
    graph = Graph()
    copy = graph.add("copy", copy_text, inputs={"source": File(folder / "text")},
                     files={"target": folder / "copy"})
    first = graph.add("first", first_letter, inputs={"source": copy["target"]},
                      files={"target": folder / "first"})
    graph.add("end", copy_text, inputs={"source": first["target"]}, settings={"suffix": suffix},
              files={"target": folder / "end"})
    return graph


def test_a_second_run_finds_nothing_to_do(rerun, tmp_path):
    (tmp_path / "text").write_text("abc")
    assert rerun(letters(tmp_path)) == ["copy", "first", "end"]
    assert rerun(letters(tmp_path)) == []
    assert rerun.results.nothing_to_do
    assert {d.status for d in rerun.results.values()} == {"kept"}
    assert rerun(letters(tmp_path), overwrite=True) == ["copy", "first", "end"]
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["schema"] == "cynosure.run/1"
    assert content["state"] == "finished"
    row = content["tasks"]["first"]
    assert row["status"] == "done"
    assert list(row["inputs"]) == ["copy"]
    assert list(row["outputs"]) == ["first"], "relative to the folder"


def test_what_changed_is_done_again_and_what_only_might_have_is_not(rerun, tmp_path):
    (tmp_path / "text").write_text("abc")
    rerun(letters(tmp_path))
    assert rerun(letters(tmp_path, "?")) == ["end"], "other settings"
    assert (tmp_path / "end").read_text() == "a?"
    (tmp_path / "text").write_text("axy")
    assert rerun(letters(tmp_path, "?")) == ["copy", "first"], "the first letter is the same"
    (tmp_path / "text").write_text("xyz")
    assert rerun(letters(tmp_path, "?")) == ["copy", "first", "end"]
    (tmp_path / "first").unlink()
    assert rerun(letters(tmp_path, "?")) == ["first"], "it is made again as it was"
    (tmp_path / "copy").write_text("somebody else's")
    assert rerun(letters(tmp_path, "?")) == ["copy"]
    assert (tmp_path / "copy").read_text() == "xyz"


def test_a_file_of_the_same_size_and_time_is_not_read_again_unless_it_is_young(rerun, tmp_path):
    text = tmp_path / "text"
    text.write_text("abc")
    rerun(letters(tmp_path))
    young = text.stat()
    text.write_text("xbc")
    os.utime(text, ns=(young.st_atime_ns, young.st_mtime_ns))
    assert rerun(letters(tmp_path)) == ["copy", "first", "end"], "within the clock's resolution"
    os.utime(text, (1e9, 1e9))
    assert rerun(letters(tmp_path)) == []
    text.write_text("ybc")
    os.utime(text, (1e9, 1e9))
    assert rerun(letters(tmp_path)) == [], "this is what the shortcut costs"
    os.utime(text, (1e9, 1e9 + 1))
    assert rerun(letters(tmp_path)) == ["copy", "first", "end"]


def test_a_file_that_was_changed_in_place_is_not_changed_again(rerun, tmp_path):
    def graph():
        made = Graph()
        text = tmp_path / "text"
        made.add("shout", shout, inputs={"source": File(text)}, files={"target": text})
        made.add("copy", copy_text, inputs={"source": File(text)},
                 files={"target": tmp_path / "copy"})
        return made

    (tmp_path / "text").write_text("abc")
    assert rerun(graph()) == ["shout", "copy"]
    assert (tmp_path / "copy").read_text() == "abc!"
    assert rerun(graph()) == []
    assert (tmp_path / "text").read_text() == "abc!"
    (tmp_path / "text").write_text("new")
    assert rerun(graph()) == ["shout", "copy"]
    assert (tmp_path / "copy").read_text() == "new!"


def test_results_in_memory_are_made_again_only_for_those_who_need_them(rerun, tmp_path):
    graph, total = night(tmp_path)
    for name in ("scatter", "error"):
        del graph.tasks[name]
    count = len(graph)
    assert len(rerun(graph)) == count
    assert rerun(graph) == []
    (tmp_path / "s.npy").unlink()
    assert len(rerun(graph)) == count
    assert rerun.results.value(total) == 3
    graph.add("mean", np.mean, inputs={"a": graph.add("other", ones, settings={"n": 2})})
    assert rerun(graph) == ["other", "mean"], "a value that is asked for and in no file"


@pytest.mark.parametrize("n", [10, 10**5])
def test_an_array_counts_by_its_content(rerun, tmp_path, n):
    def graph(array):
        made = Graph()
        made.add("t", write_sum, inputs={"frames": [array]}, files={"out": tmp_path / "t.npy"})
        return made

    array = np.arange(n, dtype=float)
    assert rerun(graph(array)) == ["t"]
    assert rerun(graph(array.copy())) == []
    array[-1] += 1e-9
    assert rerun(graph(array)) == ["t"]


def test_what_failed_or_was_skipped_is_tried_again(rerun, tmp_path):
    graph = letters(tmp_path)
    assert rerun(graph) == ["copy"]
    rows = Manifest.read(tmp_path).tasks
    assert [row.status for row in rows.values()] == ["failed", "skipped", "skipped"]
    assert rows["end"].reason == "end: skipped: copy failed"
    assert rows["end"].exit_code == 75
    (tmp_path / "text").write_text("abc")
    assert rerun(graph) == ["copy", "first", "end"]


def test_a_run_cut_short_is_taken_up(rerun, tmp_path):
    (tmp_path / "text").write_text("abc")
    graph = letters(tmp_path)

    class Impatient(Ran):
        def started(self, key):
            if key == "end":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(graph, folder=tmp_path, watch=Impatient())
    manifest = Manifest.read(tmp_path)
    assert manifest.state == "interrupted"
    assert [row.status for row in manifest.tasks.values()] == ["done", "done", "pending"]
    assert rerun(graph) == ["end"]


def test_the_rows_of_other_tasks_and_images_stay(rerun, tmp_path):
    (tmp_path / "text").write_text("abc")
    rerun(letters(tmp_path))
    part = Graph()
    part.add("other", copy_text, inputs={"source": File(tmp_path / "end")},
             files={"target": tmp_path / "x"})
    rerun(part, facts={"command": ["visit"]})
    assert rerun(letters(tmp_path)) == []
    manifest = Manifest.read(tmp_path)
    assert list(manifest.tasks) == ["copy", "first", "end", "other"]
    assert manifest.facts["command"] == ["visit"]


def test_a_function_that_changed_makes_its_tasks_run(rerun, tmp_path):
    (tmp_path / "text").write_text("abc")

    def graph(function, version=""):
        made = Graph()
        made.add("t", function, inputs={"source": File(tmp_path / "text")},
                 files={"target": tmp_path / "t"}, version=version)
        return made

    def write(source, target):
        Path(target).write_text("one")

    assert rerun(graph(write)) == ["t"]
    assert rerun(graph(write)) == []
    assert rerun(graph(write, "2")) == ["t"]

    def write(source, target):
        Path(target).write_text("two")

    assert rerun(graph(write)) == ["t"]
    assert rerun(graph(partial(copy_text, suffix="a"))) == ["t"]
    assert rerun(graph(partial(copy_text, suffix="b"))) == ["t"]
    assert rerun(graph(partial(copy_text, suffix="b"))) == []


def test_what_cannot_be_told_is_refused(tmp_path):
    graph = Graph()
    graph.add("odd", act, inputs={"kind": object()})
    assert execute(graph)["odd"].status == "done", "without a folder nothing is resumed"
    with pytest.raises(SettingError, match=r"task odd: the content of builtins\.object"):
        execute(graph, folder=tmp_path)


@dataclass
class Point:
    x: float
    y: float = 0.0


def test_checksums_tell_values_apart_and_nothing_else():
    values = [
        None, 0, 0.0, False, "", b"", "0", (), [], {}, set(), [[]], [0], ["a", "b"], ["ab"],
        {"a": 1}, {"a": 2}, {"b": 1}, np.zeros(2), np.zeros(2, "f4"), np.zeros((2, 1)), np.ones(2),
        np.zeros(2, "i8"), np.float64(0), Path("a"), "a", Point(1.0), Point(1.0, 1.0), np.mean,
        np.std, ones, act, partial(ones, n=1), partial(ones, n=2), np.array(["a", None], object),
    ]
    found = [digest(value) for value in values]
    assert len(set(found)) == len(values)
    big = np.arange(12).reshape(3, 4)
    assert digest(big.T) == digest(np.ascontiguousarray(big.T))
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(Point(1.0)) == digest(Point(1.0, 0.0))
    assert identity(ones) != identity(ones, "2")
