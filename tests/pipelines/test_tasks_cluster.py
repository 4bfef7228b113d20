"""A Dask cluster: a real scheduler and two workers; both may be lost in the middle."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from steps import act, copy_text, die_once, hold, night, solve_text

from cynosure.ground.errors import ExitCode, SettingError
from cynosure.pipelines.run import run_images
from cynosure.pipelines.tasks import cluster
from cynosure.pipelines.tasks.done import ClusterLost, Fault, Silent, WorkerDied
from cynosure.pipelines.tasks.graph import File, Graph
from cynosure.pipelines.tasks.schedule import execute
from cynosure.solutions.solution import Solution

pytest.importorskip("distributed", reason="distributed is not installed")


class Dask:
    """A scheduler and its workers as processes of their own, on loopback."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.address = f"dask://127.0.0.1:{self.port}"
        self.scheduler = self._start(
            "dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-show"
        )
        self.workers = [self.worker() for _ in range(2)]
        self._await()

    def _await(self):
        """Wait until the scheduler listens: a busy machine takes its time to start it."""
        until = time.monotonic() + 600
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return
            except OSError:
                time.sleep(0.1)
        pytest.fail(f"no scheduler: {(self.folder / 'log').read_text()}")

    def worker(self):
        return self._start(
            "dask_worker", f"tcp://127.0.0.1:{self.port}", "--nthreads", "1", "--no-nanny",
            "--local-directory", str(self.folder), "--death-timeout", "60",
        )

    def _start(self, program, *arguments):
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{program}", "--no-dashboard", *arguments],
                stdout=log, stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )

    def close(self):
        for process in [self.scheduler, *self.workers]:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    made = Dask(tmp_path_factory.mktemp("dask"))
    yield made
    made.close()


def test_the_same_bits_here_and_on_a_cluster(dask, tmp_path):
    found, steps = [], []

    class Watcher(Silent):
        def step(self, key, text):
            steps.append((key, text))

    for workers in (1, dask.address):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        graph, total = night(folder)
        results = execute(graph, workers=workers, watch=Watcher())
        assert [d.error for d in results.values()] == [None] * len(graph)
        scatter = results["scatter"].value
        found.append(((folder / "s.npy").read_bytes(), scatter.tobytes(), list(results)))
        assert results.value(total) == 3
    assert found[0] == found[1]
    assert steps[0] == ("flat", "flat")


def test_errors_keep_their_facts_and_touch_nobody_else(dask):
    graph = Graph()
    bad = graph.add("bad", act, inputs={"kind": "error", "value": 5})
    graph.add("child", act, inputs={"kind": "value", "value": bad})
    graph.add("bug", act, inputs={"kind": "bug", "value": 0})
    graph.add("good", act, inputs={"kind": "value", "value": 1})
    results = execute(graph, workers=dask.address)
    assert [d.status for d in results.values()] == ["failed", "skipped", "failed", "done"]
    assert results["bad"].error.n_sources == 5
    assert isinstance(results["bug"].error, Fault)
    assert "ZeroDivisionError" in results["bug"].error.traceback


def test_images_are_done_on_a_cluster(dask, tmp_path):
    images = []
    for name, text in (("a.fits", "sky"), ("b.fits", "bad")):
        images.append(tmp_path / name)
        images[-1].write_text(text)
    seen = []
    run = run_images(
        partial(solve_text, tmp_path / "out"), images, tmp_path / "out", endings=("_wcs.fits",),
        failed=Solution.from_error, workers=dask.address, on_record=seen.append,
    )
    assert [r.status for r in run.records] == ["solved", "failed"]
    assert (tmp_path / "out" / "a_wcs.fits").read_text() == "sky"
    assert len(seen) == 2
    assert run.exit_code == ExitCode.MIXED


def test_a_worker_that_is_killed_costs_nothing_but_time(dask, tmp_path):
    graph = Graph()
    big = graph.add("big", np.full, settings={"shape": 10**5, "fill_value": 2.0})
    once = graph.add("once", die_once, settings={"mark": str(tmp_path / "mark")}, after=[big])
    graph.add("sum", np.sum, inputs={"a": big}, after=[once])
    try:
        results = execute(graph, workers=dask.address)
    finally:
        dask.workers.append(dask.worker())
    assert [str(d.error) for d in results.values() if d.error] == []
    assert results["once"].value == "lived"
    assert results["sum"].value == 2e5


def test_no_workers_no_wait_without_end(dask, monkeypatch):
    """A task that kills every worker it meets is a row, or there is nobody left to try."""
    monkeypatch.setattr(cluster, "PATIENCE_S", 1.0)
    graph = Graph()
    graph.add("deadly", act, inputs={"kind": "die"})
    try:
        results = execute(graph, workers=dask.address)
    except ClusterLost as error:
        assert "no worker" in str(error)
    else:
        assert isinstance(results["deadly"].error, WorkerDied)
    dask.workers += [dask.worker(), dask.worker()]


def test_a_scheduler_that_is_lost_is_an_error_and_what_is_done_stays_done(dask, tmp_path):
    mark = tmp_path / "mark"
    (tmp_path / "text").write_text("abc")

    def graph(last, **settings):
        made = Graph()
        made.add("copy", copy_text, inputs={"source": File(tmp_path / "text")},
                 files={"target": tmp_path / "copy"})
        made.add("last", last, settings=settings, after=["copy"])
        return made

    class Killer(Silent):
        def tick(self):
            if mark.exists():
                dask.scheduler.send_signal(signal.SIGKILL)
                dask.scheduler.wait()

    lost = graph(hold, array=np.ones(3), mark=str(mark))
    with pytest.raises(ClusterLost, match="scheduler is lost") as caught:
        execute(lost, workers=dask.address, folder=tmp_path, watch=Killer())
    assert caught.value.exit_code == ExitCode.TEMPORARY
    mark.unlink()
    results = execute(graph(np.ones, shape=2), folder=tmp_path)
    assert [d.status for d in results.values()] == ["kept", "done"]


def test_nobody_at_the_address(monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"dask://127.0.0.1:{free.getsockname()[1]}"
    graph = Graph()
    graph.add("a", act, inputs={"kind": "value"})
    with pytest.raises(ClusterLost, match=r"dask://127\.0\.0\.1"):
        execute(graph, workers=address)
    with pytest.raises(SettingError, match="not the address"):
        execute(graph, workers="dask://nowhere")
