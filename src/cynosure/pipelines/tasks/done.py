"""The result of a task: a value or an error, and the interface of those who are notified.

A task that fails is a :class:`Done` with an error; it touches no other task, except that those
which need its results are skipped, each with an error that names it.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from cynosure.ground.errors import CynosureError, ExitCode

__all__ = [
    "ClusterLost",
    "Done",
    "Fault",
    "Isolated",
    "Planned",
    "Silent",
    "Skipped",
    "Watch",
    "WorkerDied",
]


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


class Skipped(CynosureError):
    """A task that was not run because one whose results it needs has failed."""

    text = "{task}: skipped: {upstream} failed"
    hint = "Run it again when the reason is mended; what was done is kept."
    exit_code = ExitCode.TEMPORARY


class ClusterLost(CynosureError):
    """A Dask scheduler that cannot be reached, or one that has no workers left."""

    text = "{address}: {reason}"
    hint = (
        "Check that `dask scheduler` and its `dask worker`s run at that address, then run the "
        "same command again: what was done is kept."
    )
    exit_code = ExitCode.TEMPORARY


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a task.

    Attributes
    ----------
    key : str
        Name of the task.
    value : Any
        What its function returned, where that is wanted at the end of the run. Arrays in it
        cannot be written to.
    error : CynosureError, optional
        Why it failed or was skipped.
    seconds : float
        Wall-clock time.
    kept : bool
        Whether it was not run because an earlier run had done the same; its value is None.
    """

    key: str
    value: Any = None
    error: CynosureError | None = None
    seconds: float = 0.0
    kept: bool = False

    @property
    def status(self) -> str:
        """``done``, ``kept``, ``failed``, or ``skipped`` because of another task's failure."""
        if self.error is not None:
            return "skipped" if isinstance(self.error, Skipped) else "failed"
        return "kept" if self.kept else "done"


@dataclass(frozen=True, slots=True)
class Planned:
    """What is known of a task before it runs: from it the time left is estimated.

    Attributes
    ----------
    key : str
        Name of the task.
    kind : str
        Tasks of one kind take about the same time for the same weight.
    weight : float
        Expected time relative to other tasks of its kind.
    """

    key: str
    kind: str = ""
    weight: float = 1.0


class Watch(Protocol):
    """Who wants to know how the tasks go; the faces implement it."""

    def planned(self, tasks: Sequence[Planned], at_once: int) -> None:
        """Take note of the tasks that may run, and of how many run at the same time."""

    def started(self, key: str) -> None:
        """Take note that a task began."""

    def step(self, key: str, text: str) -> None:
        """Take note of the step that a task is at."""

    def finished(self, done: Done) -> None:
        """Take note that a task ended."""

    def tick(self) -> None:
        """Be called at least twice a second while workers are busy."""


class Silent:
    """A watch that takes note of nothing."""

    def planned(self, tasks: Sequence[Planned], at_once: int) -> None: ...  # noqa: D102
    def started(self, key: str) -> None: ...  # noqa: D102
    def step(self, key: str, text: str) -> None: ...  # noqa: D102
    def finished(self, done: Done) -> None: ...  # noqa: D102
    def tick(self) -> None: ...  # noqa: D102


class Isolated:
    """Take down what a task raises, so that the next task does not suffer from it.

    This is the one place that stops every exception: what cynosure raises on purpose is kept as
    it is, anything else becomes a :class:`Fault` with its traceback. KeyboardInterrupt passes.
    """

    def __init__(self, key: str):
        self.key = key
        self.error: CynosureError | None = None

    def __enter__(self) -> Isolated:
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
