"""Running tasks: serial or in worker processes, one by one isolated, timed and watched.

A task that fails is a :class:`Done` with an error; it touches no other task. A task that takes
too long is ended by the owner, who kills its worker: no step has to cooperate. Results come in
the order of the tasks, whatever the number of workers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol

from cynosure.ground.errors import CynosureError, ExitCode, TimedOut

__all__ = ["Done", "Fault", "Function", "Task", "Watch", "WorkerDied", "execute"]

# How long the owner sleeps at most between two looks at the clock.
TICK_S = 0.5


class Fault(CynosureError):
    """A defect of cynosure itself that one task ran into."""

    text = "{image}: internal fault ({kind}: {reason})"
    hint = "This is a defect of cynosure: please report it with the traceback in run.log."
    exit_code = ExitCode.INTERNAL


class WorkerDied(CynosureError):
    """A worker process that ended without a word."""

    text = "{image}: its worker process ended ({reason})"
    hint = "Most often memory ran out: use fewer --workers, or run this image alone."
    exit_code = ExitCode.TEMPORARY


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done: a name for messages, and what the function is called with."""

    key: str
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a task: a value or an error, and the wall-clock seconds."""

    key: str
    value: Any = None
    error: CynosureError | None = None
    seconds: float = 0.0


class Watch(Protocol):
    """Who wants to know how the tasks go; the faces implement it."""

    def started(self, key: str) -> None:
        """Take note that a task began."""

    def step(self, key: str, text: str) -> None:
        """Take note of the step that a task is at."""

    def finished(self, done: Done) -> None:
        """Take note that a task ended."""

    def tick(self) -> None:
        """Be called at least twice a second while workers are busy."""


class _Silent:
    def started(self, key: str) -> None: ...
    def step(self, key: str, text: str) -> None: ...
    def finished(self, done: Done) -> None: ...
    def tick(self) -> None: ...


Function = Callable[[Any, Callable[[str], None]], Any]


def execute(
    function: Function,
    tasks: Iterable[Task],
    *,
    workers: int = 1,
    timeout_s: float | None = None,
    watch: Watch | None = None,
    on_done: Callable[[Done], None] | None = None,
) -> list[Done]:
    """Call ``function(payload, log)`` for every task and return what came of them, in order.

    Parameters
    ----------
    function : callable
        Importable by name where there are workers. It calls ``log(text)`` to say which step it
        is at.
    tasks : iterable of Task
    workers : int
        With one worker and no timeout everything runs in this process.
    timeout_s : float, optional
        A task that takes longer is ended by killing its process.
    watch : Watch, optional
    on_done : callable, optional
        Called in this process with each result as it comes, in order of completion.

    Notes
    -----
    Worker processes are not forks of this one, so a script that uses them needs the usual
    ``if __name__ == "__main__":``.
    """
    tasks = list(tasks)
    watch = watch or _Silent()

    def finish(done: Done) -> Done:
        watch.finished(done)
        if on_done is not None:
            on_done(done)
        return done

    if timeout_s is None and (workers <= 1 or len(tasks) <= 1):
        return [finish(_run_here(function, task, watch)) for task in tasks]
    pool = _Pool(function, min(workers, len(tasks)), timeout_s, watch)
    try:
        return pool.run(tasks, finish)
    finally:
        pool.close()


class _Isolated:
    """Take down what a task raises, so that the next task does not suffer from it.

    This is the one place that stops every exception: what cynosure raises on purpose is kept as
    it is, anything else becomes a :class:`Fault` with its traceback. KeyboardInterrupt passes.
    """

    def __init__(self, key: str):
        self.key = key
        self.error: CynosureError | None = None

    def __enter__(self) -> _Isolated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if isinstance(error, CynosureError):
            self.error = error
        elif isinstance(error, Exception):
            text = "".join(traceback.format_exception(kind, error, trace))
            self.error = Fault(
                image=self.key, kind=type(error).__name__, reason=str(error), traceback=text
            )
        return self.error is not None


def _run_here(function: Function, task: Task, watch: Watch) -> Done:
    watch.started(task.key)
    start = time.monotonic()
    value = None
    with _Isolated(task.key) as isolated:
        value = function(task.payload, partial(watch.step, task.key))
    return Done(task.key, value, isolated.error, time.monotonic() - start)


def _worker(function: Function, pipe: Any, threads: int) -> None:
    """Serve tasks from a pipe until it closes; the owner decides about interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("NUMBA_NUM_THREADS", str(threads))
    # An owner that is gone wants nothing more.
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            task = pipe.recv()
            value = None
            with _Isolated(task.key) as isolated:
                value = function(task.payload, lambda text: pipe.send(("step", text)))
            pipe.send(("done", (value, isolated.error)))


class _Seat:
    """One worker process, its pipe, and the task it is at."""

    def __init__(self, context: Any, function: Function, threads: int):
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_worker, args=(function, theirs, threads), daemon=True
        )
        self.process.start()
        theirs.close()
        self.index = -1
        self.task = Task("")
        self.start = 0.0

    @property
    def busy(self) -> bool:
        return self.index >= 0

    def give(self, index: int, task: Task) -> None:
        self.index, self.task, self.start = index, task, time.monotonic()
        self.pipe.send(task)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Pool:
    """Worker processes that their owner can kill one by one."""

    def __init__(self, function: Function, workers: int, timeout_s: float | None, watch: Watch):
        methods = multiprocessing.get_all_start_methods()
        self.context = multiprocessing.get_context(
            "forkserver" if "forkserver" in methods else "spawn"
        )
        self.function = function
        self.timeout_s = timeout_s
        self.watch = watch
        self.threads = max(1, (os.cpu_count() or 1) // max(1, workers))
        self.size = max(1, workers)
        self.seats: list[_Seat] = []

    def run(self, tasks: Sequence[Task], finish: Callable[[Done], Done]) -> list[Done]:
        results: list[Done | None] = [None] * len(tasks)
        waiting = list(range(len(tasks)))[::-1]
        while waiting or any(s.busy for s in self.seats):
            while waiting and sum(s.busy for s in self.seats) < self.size:
                index = waiting.pop()
                self.watch.started(tasks[index].key)
                self._free_seat().give(index, tasks[index])
            for seat, value, error in self._events():
                done = Done(seat.task.key, value, error, time.monotonic() - seat.start)
                results[seat.index] = finish(done)
                seat.index = -1
            self.watch.tick()
        return [r for r in results if r is not None]

    def _free_seat(self) -> _Seat:
        for seat in self.seats:
            if not seat.busy:
                return seat
        self.seats.append(_Seat(self.context, self.function, self.threads))
        return self.seats[-1]

    def _events(self) -> list[tuple[_Seat, Any, CynosureError | None]]:
        """Wait for something to happen; return the seats whose task ended."""
        busy: dict[Any, _Seat] = {seat.pipe: seat for seat in self.seats if seat.busy}
        now = time.monotonic()
        pause = TICK_S
        if self.timeout_s is not None:
            pause = min(pause, *(max(0.0, s.start + self.timeout_s - now) for s in busy.values()))
        ended: list[tuple[_Seat, Any, CynosureError | None]] = []
        pipes: list[Any] = list(multiprocessing.connection.wait(list(busy), pause))
        for pipe in pipes:
            seat = busy.pop(pipe)
            try:
                kind, content = pipe.recv()
            except (EOFError, ConnectionResetError):
                ended.append((seat, None, self._died(seat)))
                continue
            if kind == "step":
                self.watch.step(seat.task.key, content)
                busy[pipe] = seat
            else:
                ended.append((seat, *content))
        if self.timeout_s is not None:
            late = [s for s in busy.values() if time.monotonic() - s.start >= self.timeout_s]
            for seat in late:
                self._dismiss(seat)
                error = TimedOut(image=seat.task.key, seconds=self.timeout_s)
                ended.append((seat, None, error))
        return ended

    def _died(self, seat: _Seat) -> WorkerDied:
        seat.process.join(1.0)
        code = seat.process.exitcode
        self._dismiss(seat)
        reason = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return WorkerDied(image=seat.task.key, reason=reason)

    def _dismiss(self, seat: _Seat) -> None:
        seat.end()
        self.seats.remove(seat)

    def close(self) -> None:
        for seat in self.seats:
            seat.end()
        self.seats = []
