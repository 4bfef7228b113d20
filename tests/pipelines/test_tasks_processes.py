"""Worker processes: order, isolation, time limit, death, interrupts, arrays in shared memory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from steps import act, double, night, ones, spoil

from cynosure.ground.errors import TimedOut
from cynosure.pipelines.tasks import blocks
from cynosure.pipelines.tasks.blocks import SharedMemoryFull, pack, unlink, unpack
from cynosure.pipelines.tasks.done import Fault, Silent, WorkerDied
from cynosure.pipelines.tasks.graph import Graph
from cynosure.pipelines.tasks.schedule import execute

SHARED = Path("/dev/shm")
needs_folder = pytest.mark.skipif(not SHARED.is_dir(), reason="shared memory is not in /dev/shm")


def left(pid=None):
    """Return the blocks of shared memory that a process left behind."""
    return sorted(p.name for p in SHARED.glob(f"cyn{pid or os.getpid():x}-*"))


def acts(*words):
    graph = Graph()
    for name, kind, value in words:
        graph.add(name, act, inputs={"kind": kind, "value": value})
    return graph


class Recorder(Silent):
    def __init__(self):
        self.events = []

    def started(self, key):
        self.events.append(("started", key))

    def step(self, key, text):
        self.events.append(("step", key, text))

    def finished(self, done):
        self.events.append(("finished", done.key))


# ------------------------------------------------------------------------------ shared memory
def test_arrays_of_every_kind_come_back_and_none_is_pickled():
    big = np.arange(120_000, dtype=np.float64).reshape(300, 400)
    record = np.zeros(3000, [("x", "f8"), ("name", "U4")])
    record["name"] = "abc"
    value = {
        "c": big, "f": big.T, "strided": big[::2, ::3], "same": [big], "record": record,
        "dates": np.arange(3000).astype("M8[D]"), "masked": np.ma.array(big, mask=big > 5),
        "recarray": record.view(np.recarray), "arrow": pa.table({"x": big[0]}),
        "empty": np.zeros((0, 3)), "scalar": np.array(3.5), "text": "text",
    }
    packed = pack(value, f"cyn{os.getpid():x}-test")
    try:
        assert len(packed.pickled) < 5000
        assert packed.nbytes < 3.7 * big.nbytes + 5 * record.nbytes, "the same array once"
        back = unpack(packed)
    finally:
        unlink(packed.block)
        unlink(packed.block)
    assert left() == []
    for name in ("c", "f", "strided", "record", "dates", "empty", "scalar", "recarray"):
        assert back[name].dtype == value[name].dtype
        assert np.array_equal(back[name], value[name])
        assert type(back[name]) is type(value[name])
    assert back["same"][0] is back["c"]
    assert back["f"].flags.f_contiguous
    assert np.array_equal(back["masked"].mask, value["masked"].mask)
    assert back["arrow"].equals(value["arrow"])
    assert not back["c"].flags.writeable
    part = back["c"][5:, 1]
    del back
    assert part[0] == big[5, 1], "a block stays mapped as long as an array looks at it"


@needs_folder
def test_no_room_is_an_error_and_not_the_end(monkeypatch):
    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(blocks.os, "statvfs", lambda folder: Full)
    graph = Graph()
    graph.add("big", np.sum, inputs={"a": np.ones(10**5)})
    graph.add("small", act, inputs={"kind": "value", "value": 1})
    results = execute(graph, workers=2)
    assert isinstance(results["big"].error, SharedMemoryFull)
    assert results["big"].error.needed == 800_000
    assert results["small"].status == "done"


def test_the_same_bits_by_one_process_and_by_two(tmp_path):
    found = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        graph, _ = night(folder)
        results = execute(graph, workers=workers)
        assert [d.error for d in results.values()] == [None] * len(graph)
        scatter = results["scatter"].value
        found.append(((folder / "s.npy").read_bytes(), scatter.tobytes(), list(results)))
    assert found[0] == found[1]
    assert left() == []


def test_no_task_changes_shared_memory_and_results_outlive_the_run():
    graph = Graph()
    array = graph.add("make", ones, settings={"n": 10**5})
    graph.add("spoil", spoil, inputs={"array": array})
    copied = graph.add("copy", np.array, inputs={"object": array})
    results = execute(graph, workers=2)
    assert "read-only" in str(results["spoil"].error)
    value = results.value(copied)
    assert left() == []
    assert value.sum() == 10**5
    assert not value.flags.writeable


@needs_folder
def test_blocks_go_with_their_last_user():
    class Counter(Silent):
        def __init__(self):
            self.counts = []

        def started(self, key):
            self.counts.append(len(left()))

    graph = Graph()
    step = graph.add("0", ones, settings={"n": 10**5})
    for k in range(1, 6):
        step = graph.add(str(k), double, inputs={"array": step})
    watch = Counter()
    results = execute(graph, workers=2, watch=watch)
    assert results.value(step)[0] == 32.0
    assert watch.counts == [0, 1, 1, 1, 1, 1]


# ------------------------------------------------------------------------------ isolation
def test_workers_keep_the_order_and_the_facts_of_errors():
    words = [(str(k), "sleep", 0.3 if k == 0 else 0.0) for k in range(5)]
    words += [("e", "error", 7), ("b", "bug", 0)]
    order = []
    watch = Recorder()
    graph = acts(*words)
    graph.add("lambda", lambda: 1)
    results = execute(graph, workers=2, watch=watch, on_done=lambda d: order.append(d.key))
    assert list(results) == list(graph.tasks)
    assert order != list(graph.tasks), "the slow first task should end after a later one"
    assert sorted(order) == sorted(graph.tasks)
    assert os.getpid() not in {results[str(k)].value[1] for k in range(5)}
    assert results["e"].error.n_sources == 7
    assert "ZeroDivisionError" in results["b"].error.traceback
    assert isinstance(results["lambda"].error, Fault), "it cannot be sent"
    assert ("step", "e", "doing error") in watch.events


def test_timeout_kills_the_worker_and_the_others_go_on():
    graph = acts(("stuck", "sleep", 600), ("quick", "value", 3), ("last", "value", 4))
    graph.add("array", ones, settings={"n": 10**5})
    results = execute(graph, workers=1, timeout_s=1.0)
    assert isinstance(results["stuck"].error, TimedOut)
    assert results["stuck"].error.seconds == 1.0
    assert results["stuck"].seconds >= 1.0
    assert [results[n].value[0] for n in ("quick", "last")] == [3, 4]
    assert results["array"].value.sum() == 10**5


def test_a_worker_that_dies_is_a_row():
    graph = acts(("dead", "die", 0), ("next", "value", 1))
    graph.add("needs", act, inputs={"kind": "value", "value": graph.add("x", ones, inputs={
        "n": 10**5})}, after=["dead"])
    results = execute(graph, workers=2)
    assert isinstance(results["dead"].error, WorkerDied)
    assert "signal 9" in str(results["dead"].error)
    assert results["next"].value[0] == 1
    assert results["needs"].status == "skipped"
    assert left() == []


def test_interrupt_ends_the_workers():
    class Impatient(Recorder):
        def step(self, key, text):
            raise KeyboardInterrupt

    graph = Graph()
    array = graph.add("array", ones, settings={"n": 10**5})
    graph.add("long", act, inputs={"kind": "sleep", "value": [600, array]})
    with pytest.raises(KeyboardInterrupt):
        execute(graph, timeout_s=600, watch=Impatient())
    assert left() == []


OWNER = """
import sys
from steps import hold, ones
from cynosure.pipelines.tasks.graph import Graph
from cynosure.pipelines.tasks.schedule import execute
if __name__ == "__main__":
    graph = Graph()
    array = graph.add("array", ones, settings={"n": 10**6})
    graph.add("hold", hold, inputs={"array": array, "mark": sys.argv[1]})
    execute(graph, workers=2)
"""


@needs_folder
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_owner_leaves_no_block_behind(tmp_path, number):
    script, mark = tmp_path / "owner.py", tmp_path / "mark"
    script.write_text(OWNER)
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    owner = subprocess.Popen(
        [sys.executable, str(script), str(mark)], stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    until = time.monotonic() + 600
    while not mark.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert left(owner.pid)
    owner.send_signal(number)
    owner.wait(600)
    mark.unlink()
    while left(owner.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert left(owner.pid) == []
