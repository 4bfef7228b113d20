"""Tasks one after the other in this process; results pass by reference."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cynosure.pipelines.tasks.done import Isolated
from cynosure.pipelines.tasks.performing import Event, Job, frozen, perform

__all__ = ["Serial"]


class Serial:
    """Run each task when it is started.

    Parameters
    ----------
    on_step : callable
        Told the number of a task and the step that it begins.
    """

    at_once = 1
    held_bytes = 0

    def __init__(self, on_step: Callable[[int, str], None]):
        self._on_step = on_step
        self._ended: list[Event] = []

    def put(self, array: np.ndarray[Any, Any]) -> Any:
        """Return a view that cannot be written to."""
        return frozen(array.view())

    def start(self, job: Job) -> None:
        """Run the task."""
        begin = time.monotonic()
        results: dict[str, Any] = {}
        with Isolated(job.work.name) as isolated:
            results = perform(
                job.work, job.references, lambda text: self._on_step(job.number, text)
            )
        results = {name: value for name, value in results.items() if name in job.wanted}
        self._ended.append(Event(job.number, results, isolated.error, time.monotonic() - begin))

    def events(self, pause_s: float) -> list[Event]:
        """Return what was run since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def elapsed_s(self, number: int) -> float:
        """Return nothing: no task is running when this can be called."""
        return 0.0

    def abandon(self, number: int) -> None:
        """Do nothing: nothing is running when this can be called."""

    def fetch(self, reference: Any) -> Any:
        """Return the value: the reference is the value."""
        return reference

    def drop(self, reference: Any) -> None:
        """Do nothing: Python lets go of it."""

    def close(self) -> None:
        """Let go of everything."""
        self._ended = []
