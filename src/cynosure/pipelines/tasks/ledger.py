"""The record of earlier runs: which tasks need not run again.

The key of a task is the checksum of its function, its settings and the content of its inputs. A
file counts by its content, a result of another task by that task's key: the same task on the same
inputs makes the same bits. A task was done before if its row in ``run.json`` has the same key and
the files that it wrote are there with the content that it gave them.

A task may change its own input. What it wrote there counts as the input that it had read, so that
the next run finds nothing to do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cynosure.ground.errors import ExitCode, SettingError
from cynosure.pipelines.manifest import PENDING, Manifest, TaskRow, content_of, make_folder
from cynosure.pipelines.tasks.content import digest, identity
from cynosure.pipelines.tasks.done import Done
from cynosure.pipelines.tasks.graph import Plan, Slot, absolute

__all__ = ["Ledger"]

# Least seconds between two writes of the rows, and the largest part of the run's time that writing
# may take: a run that is killed repeats the tasks of that time.
WRITE_S = 0.5
WRITE_PART = 0.05


class Ledger:
    """Keys and rows of the tasks of a plan, kept in the ``run.json`` of a folder."""

    def __init__(self, folder: Path, plan: Plan, facts: Mapping[str, Any], overwrite: bool):
        self.plan = plan
        self.folder = absolute(make_folder(folder))
        self.manifest = Manifest.read(self.folder)
        self.manifest.facts.update(facts)
        if overwrite:
            for task in plan.tasks:
                self.manifest.tasks.pop(task.name, None)
        self._old = dict(self.manifest.tasks)
        self._keys: dict[int, str] = {}
        self._inputs: dict[int, dict[str, str]] = {}
        self._made: dict[int, dict[str, str]] = {}
        self._sources: dict[int, str] = {}
        self._functions: dict[tuple[int, str], str] = {}
        for task in plan.tasks:
            self.manifest.tasks.setdefault(task.name, TaskRow())
        self._write("running")

    def knows(self, k: int) -> bool:
        """Say whether all is known that the task depends on; find its key if so."""
        if k not in self._keys:
            if any(u >= 0 and u not in self._keys for u, _ in self.plan.uses[k]):
                return False
            if any(w not in (-1, k) and w not in self._made for w in self.plan.reads[k].values()):
                return False
            self._keys[k] = self._key(k)
        return True

    def settled(self, k: int) -> bool:
        """Say whether the task was done before and its files are as it left them."""
        task, row = self.plan.tasks[k], self._old.get(self.plan.tasks[k].name)
        if row is None or row.status != "done" or row.fingerprint != self._keys[k]:
            return False
        paths = [absolute(path) for path in task.files.values()]
        made = {self._name(path): self.manifest.content(path) for path in paths}
        if made != row.outputs or "" in made.values():
            return False
        self._made[k] = made
        return True

    def made(self, k: int) -> None:
        """Take note of the files that a task has written."""
        paths = [absolute(path) for path in self.plan.tasks[k].files.values()]
        self._made[k] = {self._name(path): self.manifest.content(path) for path in paths}

    def record(self, k: int, done: Done) -> None:
        """Set the row of a task, and write the manifest if it was not written just now."""
        error = done.error
        self.manifest.tasks[done.key] = TaskRow(
            done.status, "" if error is None else str(error),
            int(ExitCode.OK if error is None else error.exit_code), round(done.seconds, 3),
            self._keys.get(k, ""), self._inputs.get(k, {}),
            self._made.get(k, {}) if error is None else {},
        )
        if time.monotonic() >= self._next:
            self._write("running")

    def close(self, state: str) -> None:
        """Write the manifest as it is at the end of the run."""
        self._write(state)

    def _write(self, state: str) -> None:
        start = time.monotonic()
        self.manifest.write(state)
        end = time.monotonic()
        self._next = end + max(WRITE_S, (end - start) / WRITE_PART)

    def _name(self, path: Path) -> str:
        """Return how a file is named in the manifest: relative where it lies in the folder."""
        inside = path.is_relative_to(self.folder)
        return os.fspath(path.relative_to(self.folder) if inside else path)

    def _key(self, k: int) -> str:
        task = self.plan.tasks[k]
        row = self._old.get(task.name, TaskRow(PENDING))
        contents: dict[Path, str] = {}
        for path, writer in self.plan.reads[k].items():
            name = self._name(path)
            if writer in (-1, k):
                contents[path] = content_of(
                    self.manifest.content(path), row.inputs.get(name, ""), row.outputs.get(name, "")
                )
            else:
                contents[path] = self._made[writer][name]
        self._inputs[k] = {self._name(path): content for path, content in contents.items()}
        uses = [
            [self._keys[u], output] if u >= 0 else self._source(-1 - u)
            for u, output in self.plan.uses[k]
        ]
        own = {absolute(path) for path in task.files.values()}
        try:
            arguments = self._told(self.plan.arguments[k], uses, contents, own)
            which = (id(task.function), task.version)
            if which not in self._functions:
                self._functions[which] = identity(task.function, task.version)
            return digest([self._functions[which], task.outputs, arguments])
        except SettingError as error:
            raise SettingError(f"task {task.name}: {error}", hint=error.hint) from error

    def _source(self, place: int) -> str:
        if place not in self._sources:
            self._sources[place] = digest(self.plan.sources[place])
        return self._sources[place]

    def _told(
        self, template: Any, uses: list[Any], contents: Mapping[Path, str], own: set[Path]
    ) -> Any:
        """Return arguments with the content of what others make or files hold in its place."""
        if isinstance(template, Slot):
            return uses[template.use]
        if type(template) in (list, tuple):
            return type(template)(self._told(t, uses, contents, own) for t in template)
        if type(template) is dict:
            return {k: self._told(t, uses, contents, own) for k, t in template.items()}
        if isinstance(template, Path):
            path = absolute(template)
            told = ["reads", contents[path]] if path in contents else []
            told += ["writes", self._name(path)] if path in own else []
            return told or template
        return template
