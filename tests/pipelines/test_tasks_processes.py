"""Workers: order, isolation, time limit, death, interrupts."""

import os
import signal
import time

import pytest

from cynosure.ground.errors import NoMatch, TimedOut
from cynosure.pipelines.workers import Fault, Task, WorkerDied, execute


def job(payload, log):
    """Do what the payload says; at top level, so that a worker can import it."""
    kind, value = payload
    log(f"doing {kind}")
    if kind == "sleep":
        time.sleep(value)
    if kind == "error":
        raise NoMatch(image="a.fits", n_sources=value, n_reference=2)
    if kind == "bug":
        return 1 / value
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return value, os.getpid()


class Recorder:
    def __init__(self):
        self.events = []

    def started(self, key):
        self.events.append(("started", key))

    def step(self, key, text):
        self.events.append(("step", key, text))

    def finished(self, done):
        self.events.append(("finished", done.key))

    def tick(self):
        pass


def test_serial_runs_here_in_order_and_isolates():
    watch = Recorder()
    done = execute(
        job, [Task("a", ("value", 1)), Task("b", ("bug", 0)), Task("c", ("error", 5))], watch=watch
    )
    assert [d.key for d in done] == ["a", "b", "c"]
    assert done[0].value == (1, os.getpid())
    assert isinstance(done[1].error, Fault)
    assert "ZeroDivisionError" in done[1].error.traceback
    assert "job" in done[1].error.traceback
    assert isinstance(done[2].error, NoMatch)
    assert done[2].error.n_sources == 5
    assert watch.events[:3] == [("started", "a"), ("step", "a", "doing value"), ("finished", "a")]


def test_workers_keep_the_order_and_the_facts_of_errors():
    tasks = [Task(str(k), ("sleep", 0.3 if k == 0 else 0.0)) for k in range(5)]
    tasks += [Task("e", ("error", 7)), Task("b", ("bug", 0))]
    order = []
    watch = Recorder()
    done = execute(job, tasks, workers=2, watch=watch, on_done=lambda d: order.append(d.key))
    assert [d.key for d in done] == [t.key for t in tasks]
    assert order != [t.key for t in tasks], "the slow first task should end after a later one"
    assert sorted(order) == sorted(t.key for t in tasks)
    assert os.getpid() not in {d.value[1] for d in done[:5]}
    assert done[5].error.n_sources == 7
    assert "ZeroDivisionError" in done[6].error.traceback
    assert ("step", "e", "doing error") in watch.events


def test_timeout_kills_the_worker_and_the_others_go_on():
    tasks = [Task("stuck", ("sleep", 600)), Task("quick", ("value", 3)), Task("last", ("value", 4))]
    start = time.monotonic()
    done = execute(job, tasks, workers=1, timeout_s=3.0)
    assert time.monotonic() - start < 30
    assert isinstance(done[0].error, TimedOut)
    assert done[0].error.seconds == 3.0
    assert 3.0 <= done[0].seconds < 6.0
    assert [d.value[0] for d in done[1:]] == [3, 4]


def test_a_worker_that_dies_is_a_row():
    done = execute(job, [Task("dead", ("die", 0)), Task("next", ("value", 1))], workers=2)
    assert isinstance(done[0].error, WorkerDied)
    assert "signal 9" in str(done[0].error)
    assert done[1].value[0] == 1


def test_interrupt_ends_the_workers():
    class Impatient(Recorder):
        def step(self, key, text):
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        execute(job, [Task("long", ("sleep", 600))], timeout_s=600, watch=Impatient())
    assert time.monotonic() - start < 30


def test_no_tasks():
    assert execute(job, [], workers=4) == []
