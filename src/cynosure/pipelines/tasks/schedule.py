"""Run a graph: start tasks, skip those that are done, and release results that nobody needs.

The bits of the results do not depend on where and in which order the tasks run: a task sees its
arguments alone, and results are returned in the order of the graph.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cynosure.ground.errors import CynosureError, SettingError, TimedOut
from cynosure.pipelines.tasks.done import Done, Planned, Silent, Skipped, Watch
from cynosure.pipelines.tasks.graph import Graph, Plan, Result, Task, Use
from cynosure.pipelines.tasks.ledger import Ledger
from cynosure.pipelines.tasks.performing import Event, Executor, Job, Work
from cynosure.pipelines.tasks.processes import Processes
from cynosure.pipelines.tasks.serial import Serial

__all__ = ["Results", "available_bytes", "execute"]

# Seconds after which a time limit is noticed at the latest.
TICK_S = 0.5
# The part of the memory free at the start that tasks may take together; the rest is for the page
# cache and for errors of the estimates.
MEMORY_PART = 0.8

# The states of a task. Undecided: whether it must run depends on files that are being made.
# Asleep: it runs only if somebody needs its results, for it was done before or makes no file.
# Ready: all that it needs is there.
UNDECIDED, ASLEEP, WANTED, READY, RUNNING, ENDED = range(6)


@dataclass(frozen=True, slots=True)
class Results(Mapping[str, Done]):
    """What came of the tasks of a graph, by name, in the order of the graph."""

    rows: dict[str, Done]

    def __getitem__(self, name: str | Result) -> Done:
        return self.rows[name.task if isinstance(name, Result) else name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nothing_to_do(self) -> bool:
        """Whether an earlier run had done everything."""
        return all(done.kept for done in self.rows.values())

    def value(self, result: Result) -> Any:
        """Return a result that was wanted.

        Raises
        ------
        CynosureError
            What its task failed with.
        """
        done = self.rows[result.task]
        if done.error is not None:
            raise done.error
        return done.value[result.output] if result.output else done.value


def execute(
    graph: Graph, *, workers: int | str = 1, folder: str | Path | None = None,
    memory_bytes: int | None = None, timeout_s: float | None = None,
    wanted: Iterable[Result] | None = None, overwrite: bool = False,
    facts: Mapping[str, Any] | None = None, watch: Watch | None = None,
    on_done: Callable[[Done], None] | None = None,
) -> Results:
    """Run the tasks of a graph and return what came of them.

    Parameters
    ----------
    graph : Graph
    workers : int or str
        1: in this process, unless there is a time limit; more: so many worker processes;
        ``dask://HOST:PORT``: the workers of a Dask scheduler.
    folder : path, optional
        Where ``run.json`` is kept; what an earlier run did there is not done again.
    memory_bytes : int, optional
        What the running tasks may take together, by their own estimates and with the results
        that are held. A task that states more runs alone. The default is 80 % of what is free.
    timeout_s : float, optional
        A task that takes longer is ended by killing its worker.
    wanted : iterable of Result, optional
        Results to be returned in :attr:`Done.value`; by default those that no task uses. A
        wanted task that writes no file always runs.
    overwrite : bool
        Do everything again.
    facts : mapping, optional
        What else ``run.json`` is to say.
    watch : Watch, optional
    on_done : callable, optional
        Called with each :class:`Done` as it comes, in order of completion.

    Returns
    -------
    Results
        A row for each task; one that fails touches only those that need its results.

    Raises
    ------
    CyclicGraph
        If tasks wait for each other.
    ClusterLost
        If the Dask scheduler is lost; what is done stays done.
    """
    plan = graph.plan()
    watch = watch or Silent()
    ledger = None if folder is None else Ledger(Path(folder), plan, facts or {}, overwrite)
    names = [task.name for task in plan.tasks]

    def on_step(number: int, text: str) -> None:
        watch.step(names[number], text)

    executor = _executor(workers, len(plan.tasks), timeout_s, on_step)
    state = "interrupted"
    try:
        run = _Run(plan, executor, ledger, watch, on_done, timeout_s)
        run.limit = memory_bytes or getattr(executor, "memory_bytes", 0) or int(
            MEMORY_PART * available_bytes()
        )
        run.want(wanted)
        results = run.run()
        state = "finished"
        return results
    finally:
        try:
            executor.close()
        finally:
            if ledger is not None:
                ledger.close(state)


def _executor(
    workers: int | str, tasks: int, timeout_s: float | None, on_step: Callable[[int, str], None]
) -> Executor:
    if isinstance(workers, str):
        from cynosure.pipelines.tasks.cluster import Cluster

        return Cluster(workers, on_step)
    if workers < 1:
        raise SettingError("workers {workers}: 1 or more are needed", workers=workers)
    if timeout_s is None and (workers == 1 or tasks <= 1):
        return Serial(on_step)
    return Processes(max(1, min(workers, tasks)), on_step)


def available_bytes() -> int:
    """Return the memory that is free for this process: of the machine and of its container."""
    free = 1 << 33  # where the system does not say it: 8 GiB
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = _read("/proc/meminfo")
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    most, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if most.strip().isdigit() and used.strip().isdigit():
        free = min(free, int(most) - int(used))
    return max(free, 0)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


class _Run:
    """One run of a plan: the state of every task, and the values that are held."""

    def __init__(
        self, plan: Plan, executor: Executor, ledger: Ledger | None, watch: Watch,
        on_done: Callable[[Done], None] | None, timeout_s: float | None,
    ):
        self.plan, self.executor, self.ledger, self.watch = plan, executor, ledger, watch
        self.on_done, self.timeout_s = on_done, timeout_s
        self.limit = 0
        count = len(plan.tasks)
        self.state = [UNDECIDED] * count
        self.done: list[Done | None] = [None] * count
        self.wanted: list[set[str]] = [set() for _ in range(count)]
        self.forced = [False] * count
        self.place = {k: place for place, k in enumerate(plan.order)}
        self.ready: list[tuple[int, int]] = []
        self.running: dict[int, float] = {}
        self.left = count
        self.awaited = [len(those) for those in plan.downstream]
        self.held: dict[Use, Any] = {}
        self.users: dict[Use, set[int]] = {}
        for k, uses in enumerate(plan.uses):
            for use in uses:
                self.users.setdefault(use, set()).add(k)

    def want(self, wanted: Iterable[Result] | None) -> None:
        """Note which results are to be returned, by default those that no task uses."""
        number = {task.name: k for k, task in enumerate(self.plan.tasks)}
        if wanted is None:
            for k, task in enumerate(self.plan.tasks):
                if not any((k, o) in self.users for o in task.outputs or ("",)):
                    self.wanted[k] = set(task.outputs or ("",))
        for result in wanted or ():
            task = self.plan.tasks[number[result.task]]
            names = {result.output} if result.output else set(task.outputs or ("",))
            self.wanted[number[result.task]] |= names - set(task.files)
        for k, task in enumerate(self.plan.tasks):
            self.forced[k] = bool(self.wanted[k]) and not task.files

    def run(self) -> Results:
        """Run everything that has to."""
        plan = self.plan
        self._decide(plan.order)
        self.watch.planned(
            [
                Planned(task.name, task.kind, task.weight)
                for k, task in enumerate(plan.tasks)
                if self.state[k] in (UNDECIDED, WANTED, READY)
            ],
            self.executor.at_once,
        )
        while self.left:
            self._start()
            if not self.running and not self.ready:
                self._rest()
                continue
            for event in self.executor.events(self._pause()):
                if event.number in self.running:
                    self._finish(event)
                else:  # given up before its result came
                    self._drop(event.references.values())
            self._expire()
            self.watch.tick()
        return Results({task.name: self._row(k) for k, task in enumerate(plan.tasks)})

    def _row(self, k: int) -> Done:
        return self.done[k] or Done(self.plan.tasks[k].name, kept=True)

    # ------------------------------------------------------------------- what has to run
    def _decide(self, numbers: Iterable[int]) -> None:
        """Decide of tasks whether they must run, as far as that can be known by now."""
        waiting = list(numbers)[::-1]
        while waiting:
            k = waiting.pop()
            if self.state[k] == UNDECIDED and self._decided(k):
                for d in self.plan.downstream[k]:
                    self._offer(d)
                    waiting.append(d)

    def _decided(self, k: int) -> bool:
        """Decide of one task, if all that it depends on is known; return whether it is."""
        task = self.plan.tasks[k]
        if self.ledger is None:
            self._request(k)
            return False
        if not self.ledger.knows(k):
            return False
        settled = self.ledger.settled(k)
        if self.forced[k] or not (settled or not task.files):
            self._request(k)
        elif settled and not any((k, o) in self.users for o in task.outputs or ("",)):
            self._end(k, Done(task.name, kept=True))
        else:
            self.state[k] = ASLEEP
        return True

    def _request(self, k: int) -> None:
        """Have a task run, and those whose results it takes and that are not there."""
        waiting = [k]
        while waiting:
            k = waiting.pop()
            if self.state[k] not in (UNDECIDED, ASLEEP):
                continue
            self.state[k] = WANTED
            for u, output in self.plan.uses[k]:
                if u >= 0 and (u, output) not in self.held:
                    waiting.append(u)
            self._offer(k)

    def _offer(self, k: int) -> None:
        """Put a task among those that may run now, if it may."""
        if self.state[k] != WANTED or any(
            use[0] >= 0 and use not in self.held for use in self.plan.uses[k]
        ):
            return
        if all(self.state[u] in (ASLEEP, ENDED) for u in self.plan.upstream[k]):
            self.state[k] = READY
            heapq.heappush(self.ready, (self.place[k], k))

    # ------------------------------------------------------------------- running
    def _start(self) -> None:
        """Start tasks, first in the order first, as long as workers and memory are free."""
        later = []
        while self.ready and len(self.running) < self.executor.at_once:
            item = heapq.heappop(self.ready)
            if self._fits(self.plan.tasks[item[1]]):
                self._launch(item[1])
            else:
                later.append(item)
        for item in later:
            heapq.heappush(self.ready, item)

    def _fits(self, task: Task) -> bool:
        if not self.running:
            return True
        used = sum(self.plan.tasks[k].memory_bytes for k in self.running)
        return used + self.executor.held_bytes + task.memory_bytes <= self.limit

    def _launch(self, k: int) -> None:
        task = self.plan.tasks[k]
        self.state[k] = RUNNING
        self.running[k] = time.monotonic()
        self.watch.started(task.name)
        used = {o for o in task.outputs or ("",) if self.users.get((k, o))}
        try:
            for use in self.plan.uses[k]:
                if use[0] < 0 and use not in self.held:
                    self.held[use] = self.executor.put(self.plan.sources[-1 - use[0]])
        except CynosureError as error:
            self._finish(Event(k, {}, error, 0.0))
            return
        self.executor.start(Job(
            k, Work.of(task, self.plan.arguments[k]), [self.held[u] for u in self.plan.uses[k]],
            frozenset(used | self.wanted[k]),
        ))

    def _pause(self) -> float:
        if self.timeout_s is None or not self.running:
            return TICK_S
        longest = max(map(self.executor.elapsed_s, self.running))
        return min(TICK_S, max(0.0, self.timeout_s - longest))

    def _expire(self) -> None:
        """End what takes too long."""
        if self.timeout_s is None:
            return
        late = [k for k in self.running if self.executor.elapsed_s(k) >= self.timeout_s]
        for k in late:
            self.executor.abandon(k)
            error = TimedOut(image=self.plan.tasks[k].name, seconds=self.timeout_s)
            self._finish(Event(k, {}, error, time.monotonic() - self.running[k]))

    # ------------------------------------------------------------------- what came of it
    def _finish(self, event: Event) -> None:
        k, task, error = event.number, self.plan.tasks[event.number], event.error
        del self.running[k]
        value = None
        if error is None:
            try:
                value = self._fetched(task, self.wanted[k], event.references)
                if self.ledger is not None:
                    self.ledger.made(k)
            except CynosureError as failure:
                error = failure
        for output, reference in event.references.items():
            if error is None and self.users.get((k, output)):
                self.held[k, output] = reference
            else:
                self.executor.drop(reference)
        self._end(k, Done(task.name, value, error, event.seconds))
        if error is not None:
            self._skip(k)
        else:
            self._decide(self.plan.downstream[k])
            for d in self.plan.downstream[k]:
                self._offer(d)

    def _drop(self, references: Iterable[Any]) -> None:
        for reference in references:
            self.executor.drop(reference)

    def _fetched(self, task: Task, wanted: set[str], references: Mapping[str, Any]) -> Any:
        values = {o: self.executor.fetch(references[o]) for o in task.outputs or ("",)
                  if o in wanted}
        return values if task.outputs else values.get("")

    def _end(self, k: int, done: Done) -> None:
        """Note what came of a task, and let go of what only it still needed."""
        ended = [(k, done)]
        while ended:
            k, done = ended.pop()
            self.state[k] = ENDED
            self.left -= 1
            self.done[k] = done
            for use in self.plan.uses[k]:
                users = self.users[use]
                users.discard(k)
                if not users and use in self.held:
                    self.executor.drop(self.held.pop(use))
            if not done.kept:
                self._tell(k, done)
            for u in self.plan.upstream[k]:
                self.awaited[u] -= 1
                if not self.awaited[u] and self.state[u] == ASLEEP:
                    ended.append((u, Done(self.plan.tasks[u].name, kept=True)))

    def _tell(self, k: int, done: Done) -> None:
        if self.ledger is not None:
            self.ledger.record(k, done)
        if not isinstance(done.error, Skipped):
            self.watch.finished(done)
        if self.on_done is not None:
            self.on_done(done)

    def _skip(self, failed: int) -> None:
        """End all that need, or might need, what a task failed to make."""
        waiting = list(self.plan.downstream[failed])
        while waiting:
            k = waiting.pop()
            if self.state[k] not in (UNDECIDED, WANTED):
                continue
            task = self.plan.tasks[k]
            error = Skipped(task=task.name, upstream=self.plan.tasks[failed].name)
            self._end(k, Done(task.name, None, error))
            waiting += self.plan.downstream[k]

    def _rest(self) -> None:
        """End the tasks of which nobody needs anything: all that can run has run."""
        for k, state in enumerate(self.state):
            if state == ASLEEP:
                self._end(k, Done(self.plan.tasks[k].name, kept=True))
        if self.left and not self.ready:
            stuck = [self.plan.tasks[k].name for k, s in enumerate(self.state) if s != ENDED]
            raise AssertionError(f"tasks that can never run: {stuck}")
