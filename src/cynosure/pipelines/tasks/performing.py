"""Perform one task, in the same way in every executor; and the interface of an executor."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cynosure.ground.errors import CynosureError, OutputError, SettingError
from cynosure.pipelines.tasks.graph import Task, filled

__all__ = ["Event", "Executor", "Job", "Work", "frozen", "perform"]


@dataclass(frozen=True, slots=True)
class Work:
    """What travels to where a task runs.

    Attributes
    ----------
    name : str
    function : callable
    arguments : dict
        With slots in place of what other tasks made.
    outputs : tuple of str
        As of :class:`~cynosure.pipelines.tasks.graph.Task`.
    files : tuple of Path
        What the function has to write.
    takes_log : bool
    """

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    outputs: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    takes_log: bool = False

    @classmethod
    def of(cls, task: Task, arguments: dict[str, Any]) -> Work:
        """Return the work of a task."""
        return cls(
            task.name, task.function, arguments, task.outputs, tuple(task.files.values()),
            task.takes_log,
        )


@dataclass(frozen=True, slots=True)
class Job:
    """A task that is to run now, under a number, and what its slots stand for.

    Attributes
    ----------
    number : int
    work : Work
    references : sequence
        To values, as the executor gave them (:attr:`Event.references`, :meth:`Executor.put`).
    wanted : frozenset of str
        The outputs that anybody will ask for.
    """

    number: int
    work: Work
    references: Sequence[Any]
    wanted: frozenset[str]


@dataclass(frozen=True, slots=True)
class Event:
    """A job that ended: references to its results by output, or an error; and how long it took."""

    number: int
    references: Mapping[str, Any]
    error: CynosureError | None
    seconds: float


class Executor(Protocol):
    """Where tasks run."""

    @property
    def at_once(self) -> int:
        """How many tasks run at the same time."""

    @property
    def held_bytes(self) -> int:
        """Memory that results and sources take between tasks, where the executor knows it."""

    def put(self, array: np.ndarray[Any, Any]) -> Any:
        """Make a large array known to the workers and return a reference to it."""

    def start(self, job: Job) -> None:
        """Begin a task."""

    def events(self, pause_s: float) -> Iterable[Event]:
        """Wait for tasks to end, at most so long, and return those that did."""

    def elapsed_s(self, number: int) -> float:
        """Return for how long a task has been running."""

    def abandon(self, number: int) -> None:
        """End a task by force."""

    def fetch(self, reference: Any) -> Any:
        """Return a value to the owner."""

    def drop(self, reference: Any) -> None:
        """Let go of a value that no task will use again."""

    def close(self) -> None:
        """End all workers and let go of everything."""


def perform(work: Work, values: Sequence[Any], log: Callable[[str], None]) -> dict[str, Any]:
    """Call the function of a task and return its results by output.

    Raises
    ------
    SettingError
        If it did not return the outputs that the task names.
    OutputError
        If it did not write a file that the task names.
    """
    arguments = filled(work.arguments, [frozen(value) for value in values])
    if work.takes_log:
        arguments["log"] = log
    value = work.function(**arguments)
    for path in work.files:
        if not path.exists():
            raise OutputError(path=str(path), reason=f"task {work.name} did not write it")
    return {name: frozen(item) for name, item in _named(work, value).items()}


def _named(work: Work, value: Any) -> dict[str, Any]:
    if not work.outputs:
        return {"": value}
    if isinstance(value, Mapping) and set(value) == set(work.outputs):
        return {name: value[name] for name in work.outputs}
    if isinstance(value, tuple) and len(value) == len(work.outputs):
        return dict(zip(work.outputs, value, strict=True))
    raise SettingError(
        "task {name}: a mapping or tuple of {outputs} is expected, {kind} was returned",
        name=work.name, outputs=", ".join(work.outputs), kind=type(value).__name__,
    )


def frozen(value: Any) -> Any:
    """Make the arrays in a value read-only: what one task made, no other may change.

    Arrays are looked for in lists, tuples, dictionaries and records.
    """
    if isinstance(value, np.ndarray):
        value.flags.writeable = False
    elif type(value) in (list, tuple):
        for item in value:
            frozen(item)
    elif type(value) is dict:
        for item in value.values():
            frozen(item)
    elif dataclasses.is_dataclass(value) and not inspect.isclass(value):
        for part in dataclasses.fields(value):
            frozen(getattr(value, part.name, None))
    return value
