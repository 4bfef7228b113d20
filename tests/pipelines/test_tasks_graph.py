"""A graph of tasks: what depends on what, what fails, what is held, what runs at once."""

import gc
import weakref

import numpy as np
import pytest
from steps import act, copy_text, expected_sum, flatten, median, night, ones, spoil

from cynosure.ground.errors import NoMatch, OutputError, SettingError
from cynosure.pipelines.tasks import schedule
from cynosure.pipelines.tasks.done import Fault, Silent, Skipped
from cynosure.pipelines.tasks.graph import CyclicGraph, File, Graph
from cynosure.pipelines.tasks.performing import Event
from cynosure.pipelines.tasks.schedule import execute
from cynosure.pipelines.tasks.serial import Serial


def test_three_steps_with_arrays_between_them(tmp_path):
    graph, total = night(tmp_path)
    results = execute(graph)
    assert list(results) == list(graph.tasks)
    assert {done.status for done in results.values()} == {"done"}
    assert np.array_equal(np.load(tmp_path / "s.npy"), expected_sum())
    assert results.value(total) == 3
    assert results["error"].value == pytest.approx(0.01)
    assert results["bias"].value is None, "what other tasks use is not kept unless wanted"


def test_wanted_results_are_returned(tmp_path):
    graph, _ = night(tmp_path)
    bias, flat = (graph.add(f"{n} again", np.asarray, inputs={"a": np.ones(3)}) for n in "ab")
    results = execute(graph, wanted=[bias])
    assert results.value(bias).tolist() == [1, 1, 1]
    assert results["b again"].status == "done"
    assert results["b again"].value is None
    graph = Graph()
    flat = graph.add("flat", flatten, inputs={"frames": [np.ones((2, 2))], "bias": 0.5},
                     outputs=("flat", "error"))
    assert execute(graph).value(flat["flat"]).tolist() == [[1, 1], [1, 1]]


def test_dependencies_come_from_inputs_files_and_after(tmp_path):
    graph = Graph()
    graph.add("read", copy_text, inputs={"source": File(tmp_path / "x" / ".." / "b")},
              files={"target": tmp_path / "c"})
    write = graph.add("write", copy_text, inputs={"source": File(tmp_path / "a")},
                      files={"target": tmp_path / "b"})
    graph.add("last", ones, settings={"n": 1}, after=["read"])
    graph.add("by handle", copy_text, inputs={"source": write["target"]},
              files={"target": tmp_path / "d"})
    order = graph.order()
    assert order.index("write") < order.index("read") < order.index("last")
    assert order.index("write") < order.index("by handle")
    (tmp_path / "a").write_text("text")
    (tmp_path / "x").mkdir()
    assert {d.status for d in execute(graph).values()} == {"done"}
    assert (tmp_path / "c").read_text() == (tmp_path / "d").read_text() == "text"


def test_a_cycle_is_refused_and_listed(tmp_path):
    graph = Graph()
    for name, source, target in (("one", "a", "b"), ("two", "b", "c"), ("three", "c", "a")):
        graph.add(name, copy_text, inputs={"source": File(tmp_path / source)},
                  files={"target": tmp_path / target})
    with pytest.raises(CyclicGraph, match="one <- three <- two <- one"):
        execute(graph)
    graph = Graph()
    graph.add("a", ones, settings={"n": 1}, after=["b"])
    graph.add("b", ones, settings={"n": 1}, after=["a"])
    with pytest.raises(CyclicGraph, match="a <- b <- a"):
        graph.order()


def test_mistakes_are_refused(tmp_path):
    graph = Graph()
    one = graph.add("one", ones, settings={"n": 1}, files={"out": tmp_path / "x"})
    with pytest.raises(SettingError, match="two tasks 'one'"):
        graph.add("one", ones)
    with pytest.raises(SettingError, match="given twice"):
        graph.add("two", ones, inputs={"n": 1}, settings={"n": 1})
    with pytest.raises(SettingError, match="no output 'flat'"):
        one["flat"]
    with pytest.raises(SettingError, match="not in this graph"):
        Graph().add("two", ones, inputs={"n": one})
    graph.add("two", ones, settings={"n": 1}, files={"out": tmp_path / "y" / ".." / "x"})
    with pytest.raises(SettingError, match="one and two both write"):
        execute(graph)
    graph = Graph()
    graph.add("one", ones, settings={"n": 1}, after=["nobody"])
    with pytest.raises(SettingError, match="'nobody'"):
        execute(graph)
    with pytest.raises(SettingError, match="workers 0"):
        execute(Graph(), workers=0)
    with pytest.raises(SettingError, match="not the address"):
        execute(Graph(), workers="tcp://here:1")


def test_a_failure_skips_its_dependents_and_nobody_else(tmp_path):
    graph = Graph()
    bad = graph.add("bad", act, inputs={"kind": "error", "value": 5})
    child = graph.add("child", act, inputs={"kind": "value", "value": bad})
    graph.add("grandchild", act, inputs={"kind": "value", "value": [{"deep": child}]})
    graph.add("after", act, inputs={"kind": "value"}, after=[child])
    bug = graph.add("bug", act, inputs={"kind": "bug", "value": 0})
    graph.add("good", act, inputs={"kind": "value", "value": 1})
    told = []
    results = execute(graph, on_done=lambda done: told.append(done.key))
    assert [d.status for d in results.values()] == [
        "failed", "skipped", "skipped", "skipped", "failed", "done",
    ]
    assert isinstance(results["bad"].error, NoMatch)
    assert isinstance(results["grandchild"].error, Skipped)
    assert str(results["grandchild"].error) == "grandchild: skipped: bad failed"
    assert isinstance(results["bug"].error, Fault)
    assert "ZeroDivisionError" in results["bug"].error.traceback
    assert sorted(told) == sorted(graph.tasks)
    with pytest.raises(Fault):
        results.value(bug)


def test_what_is_returned_must_be_what_was_named(tmp_path):
    graph = Graph()
    graph.add("names", ones, settings={"n": 2}, outputs=("a", "b"))
    graph.add("file", median, inputs={"frames": [np.ones(2)]}, files={"out": tmp_path / "x"})
    graph.add("lazy", act, inputs={"kind": "value"}, files={"value": tmp_path / "y"})
    results = execute(graph)
    assert "a mapping or tuple of a, b" in str(results["names"].error)
    assert isinstance(results["file"].error, Fault), "it takes no argument of that name"
    assert isinstance(results["lazy"].error, OutputError)
    assert "lazy did not write it" in str(results["lazy"].error)


@pytest.mark.parametrize("n", [10, 10**5])
def test_no_task_changes_what_another_one_reads(n):
    graph = Graph()
    mine = np.zeros(n)
    array = graph.add("make", ones, settings={"n": n})
    graph.add("spoil", spoil, inputs={"array": array})
    graph.add("spoil mine", spoil, inputs={"array": mine})
    graph.add("sum", np.sum, inputs={"a": array})
    results = execute(graph)
    assert "read-only" in str(results["spoil"].error)
    assert "read-only" in str(results["spoil mine"].error)
    assert results["sum"].value == n
    mine[0] = 1.0


def test_results_are_held_only_as_long_as_somebody_needs_them():
    made = {}

    def make(name, before):
        array = np.ones(4)
        made[name] = weakref.ref(array)
        gc.collect()
        return array, sorted(n for n, ref in made.items() if ref() is not None)

    def last(before):
        gc.collect()
        return sorted(n for n, ref in made.items() if ref() is not None)

    graph = Graph()
    step = None
    for name in "abcd":
        step = graph.add(name, make, inputs={"name": name, "before": step})
    end = graph.add("end", last, inputs={"before": step})
    assert execute(graph).value(end) == ["d"]


class Reluctant(Serial):
    """An executor of four seats that ends the task that began last, one at each look."""

    at_once = 4

    def __init__(self, on_step):
        super().__init__(on_step)
        self.busy = []
        self.seen = []

    def start(self, job):
        self.busy.append(job)
        self.seen.append({j.work.name for j in self.busy})

    def events(self, pause_s):
        super().start(self.busy.pop())
        return super().events(pause_s)


@pytest.fixture
def reluctant(monkeypatch):
    made = []

    def executor(workers, tasks, timeout_s, on_step):
        made.append(Reluctant(on_step))
        return made[-1]

    monkeypatch.setattr(schedule, "_executor", executor)
    return made


def test_tasks_at_once_stay_within_the_memory(reluctant):
    graph = Graph()
    sizes = {"a": 3, "b": 3, "c": 3, "d": 50, "e": 3, "f": 4, "g": 0}
    for name, size in sizes.items():
        graph.add(name, act, inputs={"kind": "value", "value": name}, memory_bytes=size)
    results = execute(graph, memory_bytes=10)
    assert list(results) == list(sizes), "in the order of the graph, not of their ends"
    assert {d.status for d in results.values()} == {"done"}
    for busy in reluctant[0].seen:
        assert sum(sizes[name] for name in busy) <= 10 or busy == {"d"}
    assert max(map(len, reluctant[0].seen)) == 4


def test_a_result_that_is_held_counts(reluctant, monkeypatch):
    graph = Graph()
    for name in "abc":
        graph.add(name, act, inputs={"kind": "value"}, memory_bytes=3)
    monkeypatch.setattr(Reluctant, "held_bytes", 8)
    execute(graph, memory_bytes=10)
    assert max(map(len, reluctant[0].seen)) == 1


def test_what_is_made_is_soon_used(tmp_path):
    """A chain is finished before the next one begins, so that few results are held."""
    graph = Graph()
    first = [graph.add(f"a{k}", ones, settings={"n": 3}) for k in range(3)]
    for k in range(3):
        graph.add(f"b{k}", np.sum, inputs={"a": first[k]})
    assert graph.order() == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_the_plan_is_told_before_the_first_task_begins():
    class Watcher(Silent):
        def __init__(self):
            self.events = []

        def planned(self, tasks, at_once):
            self.events.append(([(t.key, t.kind, t.weight) for t in tasks], at_once))

        def started(self, key):
            self.events.append(key)

    graph = Graph()
    graph.add("crop:1", ones, settings={"n": 1}, weight=2.0)
    graph.add("x", ones, settings={"n": 1}, kind="coadd")
    watch = Watcher()
    execute(graph, watch=watch)
    assert watch.events == [([("crop:1", "crop", 2.0), ("x", "coadd", 1.0)], 1), "crop:1", "x"]


def test_an_executor_may_answer_late(monkeypatch):
    """A result that comes after its task was given up is dropped."""
    graph = Graph()
    graph.add("a", ones, settings={"n": 1})
    dropped = []

    class Late(Reluctant):
        def events(self, pause_s):
            return [Event(77, {"": "late"}, None, 0.0), *super().events(pause_s)]

        def drop(self, reference):
            dropped.append(reference)

    monkeypatch.setattr(schedule, "_executor", lambda *arguments: Late(arguments[-1]))
    assert execute(graph)["a"].status == "done"
    assert dropped[0] == "late"


def test_no_tasks():
    assert dict(execute(Graph())) == {}
    assert execute(Graph()).nothing_to_do


def test_available_memory_is_told():
    assert 10**6 < schedule.available_bytes() < 10**14
