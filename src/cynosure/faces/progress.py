"""How a run goes, on standard error: a bar on a terminal, a line an image elsewhere.

A long silence looks like a hang: the step that an image is at is shown at once on a terminal,
and at most every ten seconds elsewhere.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cynosure.pipelines.workers import Done

__all__ = ["Progress", "Steps"]

HEARTBEAT_S = 10.0
LOG = logging.getLogger("cynosure.run")


First = Callable[[Callable[[str], None]], None]


def _nothing(text: str) -> None:
    """Show nothing."""


class Progress:
    """Watch the tasks of a run (:class:`cynosure.pipelines.workers.Watch`).

    Parameters
    ----------
    total : int
        Number of images.
    quiet : bool
        Show nothing.
    first : callable, optional
        Called when the first image begins, with what shows a line: not before, so that a mistake
        in the settings is all there is to read about it.
    """

    def __init__(self, total: int, *, quiet: bool = False, first: First | None = None):
        self.total = total
        self.quiet = quiet
        self.first = first
        self.count = 0
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

    def started(self, key: str) -> None:
        """Show that an image began."""
        first, self.first = self.first, None
        if first is not None:
            first(_nothing if self.quiet else self._line)
        self.active[key] = (time.monotonic(), "reading")
        if self._bar is not None:
            self._rows[key] = self._bar.add_task(key, total=None, step="reading")

    def step(self, key: str, text: str) -> None:
        """Show the step that an image is at."""
        LOG.debug("%s: %s", key, text)
        self.active[key] = (self.active.get(key, (time.monotonic(), ""))[0], text)
        if self._bar is not None and key in self._rows:
            self._bar.update(self._rows[key], step=text)

    def finished(self, done: Done) -> None:
        """Show that an image ended, and log how; of a defect also where it happened."""
        LOG.info("%s: %s", done.key, _outcome(done))
        if done.error is not None:
            LOG.info("%s: %s", done.key, done.error)
            if "traceback" in done.error.facts:
                LOG.error("%s", done.error.facts["traceback"])
        self.active.pop(done.key, None)
        self.count += 1
        if self._bar is not None:
            if done.key in self._rows:
                self._bar.remove_task(self._rows.pop(done.key))
            self._bar.update(self._all, completed=self.count)
        elif not self.quiet and self.total > 1:
            self._line(f"[{self.count}/{self.total}] {done.key}: {_outcome(done)}")

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
        self._all = self._bar.add_task("images", total=self.total, step="")

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
