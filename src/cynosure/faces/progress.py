"""Progress of a run, on standard error: a bar on a terminal, a line a task elsewhere.

The step of a task is shown at once on a terminal, and at most every ten seconds elsewhere, so that
a long step is not taken for a hang. The time left is estimated from the tasks that have ended.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cynosure.pipelines.tasks.done import Done, Planned

__all__ = ["Pace", "Progress", "Steps", "duration"]

# Seconds between two lines where there is no terminal.
HEARTBEAT_S = 10.0
# A shorter time left, s, is not printed: the estimate is no better than that.
SOON_S = 10.0
LOG = logging.getLogger("cynosure.run")


First = Callable[[Callable[[str], None]], None]


def _nothing(text: str) -> None:
    """Show nothing."""


class Pace:
    """Estimate the time left of a run from the tasks that have ended.

    A task is expected to take its weight times the mean rate (seconds a weight) of its kind; a
    kind of which none has ended yet goes at the rate of all kinds together.

    Parameters
    ----------
    tasks : sequence of Planned
    at_once : int
        How many run at the same time.

    Examples
    --------
    >>> from cynosure.pipelines.tasks.done import Planned
    >>> pace = Pace([Planned("a", "crop"), Planned("b", "crop"), Planned("c", "coadd", 3.0)], 1)
    >>> pace.ended("a", 2.0)
    >>> pace.left_s([])
    8.0
    """

    def __init__(self, tasks: Sequence[Planned], at_once: int):
        self.at_once = max(1, at_once)
        self._tasks = {task.key: task for task in tasks}
        self._left: dict[str, float] = {}
        self._spent: dict[str, tuple[float, float]] = {}
        for task in tasks:
            self._left[task.kind] = self._left.get(task.kind, 0.0) + task.weight

    def ended(self, key: str, seconds: float, *, ran: bool = True) -> None:
        """Take note that a task ended; one that did not really run tells nothing of the rate."""
        task = self._tasks.pop(key, None)
        if task is None:
            return
        self._left[task.kind] -= task.weight
        if ran:
            weight, spent = self._spent.get(task.kind, (0.0, 0.0))
            self._spent[task.kind] = (weight + task.weight, spent + seconds)

    def left_s(self, running_s: Iterable[float]) -> float | None:
        """Return the seconds that are left, None where nothing has ended yet.

        Parameters
        ----------
        running_s : iterable of float
            For how long each running task has been running.
        """
        weight = sum(w for w, _ in self._spent.values())
        if not weight:
            return None
        mean = sum(s for _, s in self._spent.values()) / weight
        work = 0.0
        for kind, left in self._left.items():
            own, spent = self._spent.get(kind, (0.0, 0.0))
            work += left * (spent / own if own else mean)
        return max(0.0, work - sum(running_s)) / min(self.at_once, max(1, len(self._tasks)))


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it.

    Examples
    --------
    >>> duration(42.4), duration(200), duration(9000)
    ('42 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """Watch the tasks of a run (:class:`cynosure.pipelines.tasks.done.Watch`).

    Parameters
    ----------
    total : int
        Number of tasks, until the run says which of them it has to do.
    quiet : bool
        Show nothing.
    first : callable, optional
        Called when the first task begins, with what shows a line: not before, so that a mistake in
        the settings is all there is to read about it.
    what : str
        What the tasks are, for the bar.
    """

    def __init__(
        self, total: int, *, quiet: bool = False, first: First | None = None,
        what: str = "images",
    ):
        self.total = total
        self.quiet = quiet
        self.first = first
        self.what = what
        self.count = 0
        self.pace = Pace((), 1)
        self.active: dict[str, tuple[float, str]] = {}
        self._bar: Any = None
        self._rows: dict[str, Any] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if self.quiet:
            return self
        if sys.stderr.isatty():
            self._open_bar()
        else:
            self._thread = threading.Thread(target=self._beat, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._bar is not None:
            self._bar.stop()
        if self._thread is not None:
            self._thread.join()

    def planned(self, tasks: Sequence[Planned], at_once: int) -> None:
        """Take note of what has to be done."""
        self.total = len(tasks)
        self.pace = Pace(tasks, at_once)
        if self._bar is not None:
            self._bar.update(self._all, total=self.total)

    def started(self, key: str) -> None:
        """Show that a task began."""
        first, self.first = self.first, None
        if first is not None:
            first(_nothing if self.quiet else self._line)
        self.active[key] = (time.monotonic(), "reading")
        if self._bar is not None:
            self._rows[key] = self._bar.add_task(key, total=None, step="reading")

    def step(self, key: str, text: str) -> None:
        """Show the step that a task is at."""
        LOG.debug("%s: %s", key, text)
        self.active[key] = (self.active.get(key, (time.monotonic(), ""))[0], text)
        if self._bar is not None and key in self._rows:
            self._bar.update(self._rows[key], step=text)

    def finished(self, done: Done) -> None:
        """Show that a task ended, and log how; of a defect also where it happened."""
        LOG.info("%s: %s", done.key, _outcome(done))
        if done.error is not None:
            LOG.info("%s: %s", done.key, done.error)
            if "traceback" in done.error.facts:
                LOG.error("%s", done.error.facts["traceback"])
        self.active.pop(done.key, None)
        self.count += 1
        self.pace.ended(done.key, done.seconds, ran=done.error is None)
        if self._bar is not None:
            if done.key in self._rows:
                self._bar.remove_task(self._rows.pop(done.key))
            self._bar.update(self._all, completed=self.count, step=self._left())
        elif not self.quiet and self.total > 1:
            left = self._left(", ")
            self._line(f"[{self.count}/{self.total}] {done.key}: {_outcome(done)}{left}")

    def _left(self, before: str = "") -> str:
        """Return the time left in words, nothing where it is short or not known."""
        now = time.monotonic()
        left = self.pace.left_s(now - start for start, _ in self.active.values())
        return "" if left is None or left < SOON_S else f"{before}about {duration(left)} left"

    def tick(self) -> None:
        """Do nothing: bar and heartbeat have clocks of their own."""

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24),
            TextColumn("{task.fields[step]}"), TimeElapsedColumn(),
            console=Console(stderr=True), transient=True,
        )
        self._bar.start()
        self._all = self._bar.add_task(self.what, total=self.total, step="")

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            now = time.monotonic()
            for key, (start, text) in list(self.active.items()):
                self._line(f"{key}: {text} ({now - start:.0f} s)")

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
            return
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


class Steps:
    """Show how one long piece of work goes; it is called with (done, of how many, what).

    Parameters
    ----------
    quiet : bool
        Show nothing.
    """

    def __init__(self, *, quiet: bool = False):
        self.quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._last = time.monotonic()
        self._shown = False

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown and self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show the step, at once on a terminal, every ten seconds elsewhere."""
        pause = 0.1 if self._terminal else HEARTBEAT_S
        if self.quiet or time.monotonic() - self._last < pause:
            return
        self._last, self._shown = time.monotonic(), True
        text = f"{what} {done}/{total}" if total else what
        sys.stderr.write(f"\r\x1b[K{text}" if self._terminal else f"{text}\n")
        sys.stderr.flush()


def _outcome(done: Done) -> str:
    if done.error is not None:
        return f"failed ({done.error.exit_code}) in {done.seconds:.1f} s"
    status = getattr(done.value, "status", "done")
    return f"{status} in {done.seconds:.1f} s"
