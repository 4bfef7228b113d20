"""Tasks on the workers of a Dask scheduler, given by its address.

Results stay with the workers that made them and pass between workers by Dask's own protocol,
which does not pickle arrays; only what is wanted at the end comes to the owner. When a worker is
lost, Dask repeats on others what was lost with it. A task at which several workers were lost one
after the other fails.

Workers have to see the files of the run under the same paths, and to have the same versions of
the packages that make the numbers.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cynosure.ground.errors import CynosureError, SettingError
from cynosure.pipelines.manifest import versions
from cynosure.pipelines.tasks.done import ClusterLost, Fault, Isolated, WorkerDied
from cynosure.pipelines.tasks.performing import Event, Job, Work, perform

__all__ = ["Cluster"]

# Seconds for the connection; Dask's own default is 30, and a scheduler that runs answers at once.
CONNECT_S = 10.0
# Seconds that a scheduler may be without workers: a cluster replaces a lost worker in this time.
PATIENCE_S = 60.0
# Seconds between two requests for the list of workers; their heartbeat is 0.5 s or more.
ASK_S = 2.0
# The client learns within this time whether a result was lost with its worker or the scheduler.
GRACE_S = 2.0


def _perform(
    name: str, pickled: bytes, number: int, topic: str, values: list[Any], picks: list[str | None]
) -> dict[str, Any]:
    """Perform a task on a worker, and raise what it fails with as an error of cynosure."""
    from distributed import get_worker

    worker = get_worker()
    results: dict[str, Any] = {}
    with Isolated(name) as isolated:
        work: Work = pickle.loads(pickled)
        given = [v if pick is None else v[pick] for v, pick in zip(values, picks, strict=True)]
        results = perform(
            work, given, lambda text: worker.log_event(topic, {"number": number, "text": text})
        )
    if isolated.error is not None:
        raise isolated.error
    return results


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """One output of a task whose results a worker keeps, or a source (output None)."""

    future: Any
    output: str | None


class Cluster:
    """The workers of a Dask scheduler.

    Parameters
    ----------
    address : str
        ``dask://HOST:PORT``.
    on_step : callable
        Told the number of a task and the step that it begins.

    Raises
    ------
    SettingError
        If the address is none, Dask is not installed, or a worker has other versions.
    ClusterLost
        If nobody answers there.
    """

    held_bytes = 0  # the workers watch over what they hold

    def __init__(self, address: str, on_step: Callable[[int, str], None]):
        self._address = address
        self._client = _connected(address)
        self._events: queue.SimpleQueue[tuple[str, int, Any]] = queue.SimpleQueue()
        self._futures: dict[int, Any] = {}
        self._names: dict[int, str] = {}
        self._begin: dict[int, float] = {}
        self._uses: dict[str, int] = {}
        self._failed: list[Event] = []
        self._wanted: dict[int, list[str]] = {}
        self._starts = 0
        self._on_step = on_step
        self._run = f"cynosure-{secrets.token_hex(4)}"
        self._workers: dict[str, int] = {}
        self._asked = 0.0
        self._seen = time.monotonic()
        self.memory_bytes = 0
        try:
            with self._watched():
                self._client.subscribe_topic(self._run, self._stepped)
                _check_versions(self._client, address)
                self._look()
        except BaseException:
            self.close()
            raise

    @property
    def at_once(self) -> int:
        """How many threads the workers have together."""
        self._look()
        return sum(self._workers.values())

    def put(self, array: np.ndarray[Any, Any]) -> _Held:
        """Give every worker a copy, so that none is lost with another."""
        with self._watched():
            future = self._client.scatter(array, broadcast=True, hash=False)
        self._uses[future.key] = 1
        return _Held(future, None)

    def start(self, job: Job) -> None:
        """Submit a task; the workers, not the scheduler, have to be able to import its function."""
        import cloudpickle

        pickled = b""
        with Isolated(job.work.name) as isolated:
            pickled = cloudpickle.dumps(job.work)
        if isolated.error is not None:
            self._failed.append(Event(job.number, {}, isolated.error, 0.0))
            return
        references: list[_Held] = list(job.references)
        self._names[job.number], self._wanted[job.number] = job.work.name, sorted(job.wanted)
        self._starts += 1
        self._begin[job.number] = time.monotonic()
        with self._watched():
            future = self._client.submit(
                _perform, job.work.name, pickled, job.number, self._run,
                [r.future for r in references], [r.output for r in references],
                key=f"{self._run}-{self._starts}", pure=False,
            )
        self._futures[job.number] = future
        future.add_done_callback(
            lambda ended, number=job.number: self._events.put(("ended", number, ended))
        )

    def events(self, pause_s: float) -> list[Event]:
        """Wait for tasks to end; return those that did.

        Raises
        ------
        ClusterLost
            If the scheduler is lost, or has been without workers for too long.
        """
        self._check()
        ended, self._failed = self._failed, []
        until = time.monotonic() + pause_s
        while True:
            wait = 0.0 if ended else max(0.0, until - time.monotonic())
            try:
                kind, number, content = self._events.get(timeout=wait) if wait else (
                    self._events.get_nowait()
                )
            except queue.Empty:
                return ended
            if kind == "step":
                if number in self._futures:
                    self._on_step(number, content)
            elif self._futures.get(number) is content:
                ended.append(self._ended(number, content))

    def elapsed_s(self, number: int) -> float:
        """Return for how long a task has been submitted; no more are than there are threads."""
        return time.monotonic() - self._begin[number]

    def abandon(self, number: int) -> None:
        """Give a task up and restart the worker that is at it, where a nanny can."""
        future = self._futures.pop(number)
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            busy = [w for w, keys in self._client.processing().items() if future.key in keys]
            future.cancel(reason="time limit", msg="the task took too long")
            if busy:
                self._client.restart_workers(busy, timeout=CONNECT_S, raise_for_error=False)

    def fetch(self, reference: _Held) -> Any:
        """Bring a value here."""
        with self._watched():
            return reference.future.result()[reference.output]

    def drop(self, reference: _Held) -> None:
        """Let the workers forget a task's results when all of them were dropped."""
        self._uses[reference.future.key] -= 1
        if self._uses[reference.future.key] <= 0:
            reference.future.release()

    def close(self) -> None:
        """Leave the scheduler; what is not done is cancelled."""
        with contextlib.suppress(OSError, TimeoutError):
            for future in self._futures.values():
                future.release()
            self._client.close(timeout=GRACE_S)

    # ---------------------------------------------------------------------------------- within
    def _watched(self) -> contextlib.AbstractContextManager[None]:
        return _typed(self._address)

    def _stepped(self, event: Any) -> None:
        content = event[1]
        self._events.put(("step", content["number"], content["text"]))

    def _look(self) -> None:
        """Ask which workers there are, from time to time."""
        now = time.monotonic()
        if now - self._asked < ASK_S:
            return
        with self._watched():
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
        self._asked = now
        self._workers = {name: int(worker["nthreads"]) for name, worker in workers.items()}
        limits = [int(worker["memory_limit"] or 0) for worker in workers.values()]
        self.memory_bytes = int(0.8 * sum(limits)) if limits and all(limits) else 0
        if self._workers:
            self._seen = now

    def _check(self) -> None:
        if self._client.status != "running":
            raise ClusterLost(
                address=self._address, reason=f"the scheduler is lost ({len(self._futures)} tasks "
                "were at work)",
            )
        self._look()
        if time.monotonic() - self._seen > PATIENCE_S:
            raise ClusterLost(
                address=self._address, reason=f"no worker has been there for {PATIENCE_S:g} s"
            )

    def _ended(self, number: int, future: Any) -> Event:
        del self._futures[number]
        name = self._names[number]
        seconds = time.monotonic() - self._begin[number]
        if future.status == "finished":
            wanted = self._wanted[number]
            self._uses[future.key] = len(wanted)
            if not wanted:
                future.release()
            return Event(number, {o: _Held(future, o) for o in wanted}, None, seconds)
        if future.status == "cancelled":
            until = time.monotonic() + GRACE_S
            while time.monotonic() < until:
                self._check()
                time.sleep(0.05)
            error: CynosureError = WorkerDied(image=name, reason="what it needs was lost with it")
        else:
            error = _error_of(name, future.exception())
        return Event(number, {}, error, seconds)


def _connected(address: str) -> Any:
    found = re.fullmatch(r"dask://(\S+:\d+)", address)
    if found is None:
        raise SettingError(
            "{address!r} is not the address of a scheduler", address=address,
            hint="dask://HOST:PORT is expected, for instance dask://127.0.0.1:8786.",
        )
    try:
        from distributed import Client
    except ImportError as error:
        raise SettingError(
            "{address}: Dask is not installed", address=address,
            hint="pip install 'cynosure[dask]'",
        ) from error
    with _typed(address):
        return Client(f"tcp://{found[1]}", timeout=CONNECT_S, set_as_default=False)


@contextlib.contextmanager
def _typed(address: str) -> Any:
    """Turn what Dask raises when nobody answers into our own error."""
    from concurrent.futures import CancelledError

    try:
        yield
    except (OSError, TimeoutError, CancelledError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ClusterLost(address=address, reason=reason) from error


def _check_versions(client: Any, address: str) -> None:
    """Refuse workers that would not make the same bits."""
    ours = versions()
    try:
        theirs: dict[str, dict[str, str]] = client.run(versions)
    except ImportError as error:
        raise SettingError(
            "{address}: its workers lack a package ({reason})", address=address, reason=str(error),
            hint="Install cynosure on all machines of the cluster, in the same version.",
        ) from error
    for worker, found in theirs.items():
        differing = [f"{n} {found.get(n)} for {v}" for n, v in ours.items() if found.get(n) != v]
        if differing:
            raise SettingError(
                "{address}: worker {worker} has {differing}", address=address, worker=worker,
                differing=", ".join(differing),
                hint="Install the same versions on all machines: others may give other numbers.",
            )


def _error_of(name: str, error: BaseException) -> CynosureError:
    from distributed.scheduler import KilledWorker

    if isinstance(error, CynosureError):
        return error
    if isinstance(error, KilledWorker):
        lost = error.allowed_failures + 1
        return WorkerDied(image=name, reason=f"{lost} workers were lost at it")
    return Fault(image=name, kind=type(error).__name__, reason=str(error), traceback="")
