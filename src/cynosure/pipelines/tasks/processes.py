"""Tasks in worker processes of this machine: isolated, monitored, killed at their time limit.

Arrays pass in shared memory (:mod:`cynosure.pipelines.tasks.blocks`): from the worker that made
them to the workers that use them, by one copy. If a worker dies, only the task that it was running
fails. The workers are not forks of this process, so a script that uses them needs the usual
``if __name__ == "__main__":``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import secrets
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cynosure.ground.errors import CynosureError
from cynosure.pipelines.tasks.blocks import Packed, pack, unlink, unpack
from cynosure.pipelines.tasks.done import Isolated, WorkerDied
from cynosure.pipelines.tasks.performing import Event, Job, perform

__all__ = ["Processes"]

# Seconds that a worker may take to start and to import what a task needs, before the time limit of
# the task begins; on a loaded machine without a file cache an import takes tens of seconds.
START_S = 60.0


def _serve(pipe: Any, threads: int) -> None:
    """Perform tasks from a pipe until it closes; the owner decides about interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("NUMBA_NUM_THREADS", str(threads))
    # The owner has ended, and so does the worker.
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            name, blocks, packed, inputs = pipe.recv()
            references, error = _performed(pipe, name, blocks, packed, inputs)
            pipe.send(("done", (references, error)))


def _performed(
    pipe: Any, name: str, blocks: dict[str, str], packed: Packed,
    inputs: list[Packed],
) -> tuple[dict[str, Packed], CynosureError | None]:
    """Return the results of a task, packed into the blocks of those names.

    Whatever it had mapped is let go of when this returns.
    """
    references: dict[str, Packed] = {}
    with Isolated(name) as isolated:
        values = [unpack(value) for value in inputs]
        work = unpack(packed)
        pipe.send(("begin", None))
        results = perform(work, values, lambda text: pipe.send(("step", text)))
        for output, block in blocks.items():
            references[output] = pack(results[output], block)
    return references, isolated.error


class _Seat:
    """One worker process, its pipe, and the task it is at."""

    def __init__(self, context: Any, threads: int):
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.number = -1
        self.name = ""
        self.blocks: list[str] = []
        self.given = 0.0
        self.begin: float | None = None

    @property
    def busy(self) -> bool:
        return self.number >= 0

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Processes:
    """Worker processes that their owner can kill one by one.

    Parameters
    ----------
    workers : int
        How many tasks run at the same time.
    on_step : callable
        Told the number of a task and the step that it begins.
    """

    def __init__(self, workers: int, on_step: Callable[[int, str], None]):
        methods = multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context(
            "forkserver" if "forkserver" in methods else "spawn"
        )
        self.at_once = max(1, workers)
        self._threads = max(1, (os.cpu_count() or 1) // self.at_once)
        self._on_step = on_step
        self._seats: list[_Seat] = []
        self._ended: list[Event] = []
        self._held: dict[str, int] = {}
        self._prefix = f"cyn{os.getpid():x}-{secrets.token_hex(3)}"
        self._blocks = 0

    @property
    def held_bytes(self) -> int:
        """Shared memory in use, without what running tasks are about to add."""
        return sum(self._held.values())

    def put(self, array: np.ndarray[Any, Any]) -> Packed:
        """Copy an array into shared memory."""
        return self._keep(pack(array, self._name()))

    def start(self, job: Job) -> None:
        """Give a task to a worker that has none."""
        blocks = {output: self._name() for output in sorted(job.wanted)}
        packed = Packed(b"")
        with Isolated(job.work.name) as isolated:
            packed = self._keep(pack(job.work, self._name()))
        if isolated.error is not None:  # a function that cannot be sent, no room for an array
            self._ended.append(Event(job.number, {}, isolated.error, 0.0))
            return
        seat = self._free_seat()
        seat.number, seat.name = job.number, job.work.name
        seat.given, seat.begin = time.monotonic(), None
        seat.blocks = [packed.block, *blocks.values()]
        # A worker that has died since is found by the next look at its pipe.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            seat.pipe.send((job.work.name, blocks, packed, list(job.references)))

    def events(self, pause_s: float) -> list[Event]:
        """Wait for a word of any worker; return the tasks that ended."""
        ended, self._ended = self._ended, []
        busy: dict[Any, _Seat] = {seat.pipe: seat for seat in self._seats if seat.busy}
        pipes: list[Any] = list(
            multiprocessing.connection.wait(list(busy), 0.0 if ended else pause_s)
        )
        for pipe in pipes:
            seat = busy[pipe]
            try:
                kind, content = pipe.recv()
            except (EOFError, ConnectionResetError):
                ended.append(self._died(seat))
                continue
            if kind == "begin":
                seat.begin = time.monotonic()
            elif kind == "step":
                self._on_step(seat.number, content)
            else:
                ended.append(self._came(seat, *content))
        return ended

    def elapsed_s(self, number: int) -> float:
        """Return for how long a task has been running, without the start of its worker."""
        now = time.monotonic()
        for seat in self._seats:
            if seat.number == number:
                return now - (seat.given + START_S if seat.begin is None else seat.begin)
        return 0.0

    def abandon(self, number: int) -> None:
        """Kill the worker of a task."""
        for seat in [s for s in self._seats if s.number == number]:
            self._dismiss(seat)

    def fetch(self, reference: Packed) -> Any:
        """Map a value; its arrays lie in shared memory as long as somebody has them."""
        return unpack(reference)

    def drop(self, reference: Packed) -> None:
        """Remove the block of a value."""
        if reference.block:
            self._held.pop(reference.block, None)
            unlink(reference.block)

    def close(self) -> None:
        """Kill the workers and remove all blocks."""
        for seat in list(self._seats):
            self._dismiss(seat)
        for block in list(self._held):
            self._held.pop(block)
            unlink(block)

    def _name(self) -> str:
        self._blocks += 1
        return f"{self._prefix}-{self._blocks:x}"

    def _keep(self, packed: Packed) -> Packed:
        if packed.block:
            self._held[packed.block] = packed.nbytes
        return packed

    def _free_seat(self) -> _Seat:
        for seat in self._seats:
            if not seat.busy:
                return seat
        self._seats.append(_Seat(self._context, self._threads))
        return self._seats[-1]

    def _came(
        self, seat: _Seat, references: dict[str, Packed], error: CynosureError | None
    ) -> Event:
        event = Event(seat.number, {}, error, time.monotonic() - seat.given)
        self.drop(Packed(b"", seat.blocks[0]))
        if error is None:
            event = Event(seat.number, references, None, event.seconds)
            for reference in references.values():
                self._keep(reference)
        else:  # what it packed before it failed
            self._forget(seat)
        seat.number, seat.blocks = -1, []
        return event

    def _died(self, seat: _Seat) -> Event:
        seat.process.join(1.0)
        code = seat.process.exitcode
        reason = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        error = WorkerDied(image=seat.name, reason=reason)
        event = Event(seat.number, {}, error, time.monotonic() - seat.given)
        self._dismiss(seat)
        return event

    def _dismiss(self, seat: _Seat) -> None:
        seat.end()
        self._forget(seat)
        self._seats.remove(seat)

    def _forget(self, seat: _Seat) -> None:
        """Remove the blocks of a task that did not come to its end."""
        for block in seat.blocks:
            self.drop(Packed(b"", block))
