"""Tasks with named inputs and outputs; what depends on what follows from them.

An input is a value, a :class:`File`, or the result of another task (the handle that
:meth:`Graph.add` returns); lists, tuples and dictionaries of these too. A task depends on those
whose results it takes, on those that write a file it reads, and on those named in ``after``.

Examples
--------
>>> import numpy as np
>>> graph = Graph()
>>> bias = graph.add("bias", np.median, inputs={"a": np.ones((5, 4, 4))}, settings={"axis": 0})
>>> level = graph.add("level", np.mean, inputs={"a": bias})
>>> graph.order()
['bias', 'level']
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cynosure.ground.errors import ExitCode, SettingError

__all__ = ["CyclicGraph", "File", "Graph", "Plan", "Result", "Slot", "Task", "Use", "filled"]

# An array of inputs below this size (that of the buffer of a pipe on Linux) is sent with its task;
# a larger one is sent once for all tasks.
SMALL_BYTES = 1 << 16


class CyclicGraph(SettingError):
    """Tasks of which each waits for another one."""

    text = "the tasks wait for each other: {cycle}"
    hint = "One of these must not read what a later one makes."
    exit_code = ExitCode.USAGE


@dataclass(frozen=True, slots=True)
class File:
    """An input that is a file: the function receives its path, its content is what counts."""

    path: str | Path


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a task, or one of its named outputs, to be the input of another task."""

    task: str
    output: str = ""
    names: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Result:
        if name not in self.names:
            raise SettingError(
                "{task} has no output {name!r}; it has {names}", task=self.task, name=name,
                names=", ".join(self.names) or "one without a name",
            )
        return Result(self.task, name, ())


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A task as :meth:`Graph.add` describes it."""

    name: str
    function: Callable[..., Any]
    inputs: dict[str, Any]
    settings: dict[str, Any]
    outputs: tuple[str, ...]
    files: dict[str, Path]
    after: tuple[str, ...]
    memory_bytes: int
    weight: float
    kind: str
    version: str
    takes_log: bool


# One thing that a task uses: an output of the task of that number, or, where the number is
# negative, the source array -1 - number.
Use = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Slot:
    """The place in the arguments of a task where the value of a use goes."""

    use: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A graph with its dependencies worked out; tasks are numbered in the order of their adding.

    Attributes
    ----------
    tasks : list of Task
    arguments : list of dict
        Keyword arguments of each task; a :class:`Slot` stands for what others make.
    uses : list of list of Use
        What the slots of each task stand for.
    reads : list of dict
        The files that each task reads: path to the number of the task that writes it, -1 if none.
    upstream, downstream : list of list of int
        Every dependency, of whatever kind.
    sources : list of array
        The large arrays among the inputs; each is sent to the workers once.
    order : list of int
        An order in which every task comes after those it depends on, and soon after them.
    """

    tasks: list[Task]
    arguments: list[dict[str, Any]]
    uses: list[list[Use]]
    reads: list[dict[Path, int]]
    upstream: list[list[int]]
    downstream: list[list[int]]
    sources: list[np.ndarray[Any, Any]]
    order: list[int]


@dataclass(slots=True)
class Graph:
    """Tasks that depend on each other; :func:`cynosure.pipelines.tasks.schedule.execute` runs it.

    Attributes
    ----------
    tasks : dict of str to Task
        By name, in the order in which they were added: that is the order of the results.
    """

    tasks: dict[str, Task] = field(default_factory=dict)

    def add(
        self, name: str, function: Callable[..., Any], *, inputs: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None, outputs: Sequence[str] = (),
        files: Mapping[str, str | Path] | None = None, after: Iterable[str | Result] = (),
        memory_bytes: int = 0, weight: float = 1.0, kind: str = "", version: str = "",
    ) -> Result:
        """Add a task: ``function(**inputs, **settings, **files)``.

        Parameters
        ----------
        name : str
            Unique in the graph; it names the row of the manifest.
        function : callable
            Importable by name where there are workers. It must not depend on anything but its
            arguments. If it has a parameter ``log``, it receives a function that is told each
            step as it begins.
        inputs : mapping
            Keyword arguments: values, :class:`File` or results of other tasks, also within
            lists, tuples and dictionaries. Arrays arrive read-only.
        settings : mapping
            More keyword arguments; values only.
        outputs : sequence of str
            Names of the results, where there are several: then the function returns a mapping
            with these keys, or a tuple in this order. By default what it returns is one result.
        files : mapping
            Files that the function writes, by the name of the keyword argument that receives the
            path. As an input of another task, ``handle[name]`` is that path.
        after : iterable of str or Result
            Tasks, also such as are added later, that must have ended well before this one begins.
        memory_bytes : int
            The most memory that the function is expected to take, its result included.
        weight, kind
            See :class:`~cynosure.pipelines.tasks.done.Planned`; the default kind is the name
            up to the first colon.
        version : str
            To be changed when the function has come to give other results. The function's own
            code is seen without it, that of the functions it calls is not.

        Returns
        -------
        Result
            To be an input of other tasks.

        Raises
        ------
        SettingError
            If the name is taken, an argument is given twice, or an input is not of this graph.
        """
        inputs, settings = dict(inputs or {}), dict(settings or {})
        paths = {key: Path(path) for key, path in (files or {}).items()}
        if name in self.tasks:
            raise SettingError("there are two tasks {name!r}", name=name)
        arguments = [*inputs, *settings, *paths]
        if len(set(arguments)) < len(arguments) or set(outputs) & set(paths):
            raise SettingError(
                "{name}: an argument or output is given twice: {arguments}", name=name,
                arguments=", ".join([*arguments, *outputs]),
            )
        for result in _results(inputs):
            if result.task not in self.tasks:
                raise SettingError(
                    "{name} takes a result of {other!r}, which is not in this graph", name=name,
                    other=result.task,
                )
        self.tasks[name] = Task(
            name, function, inputs, settings, tuple(outputs), paths,
            tuple(a.task if isinstance(a, Result) else a for a in after), int(memory_bytes),
            float(weight), kind or name.partition(":")[0], version, _takes_log(function),
        )
        return Result(name, "", (*outputs, *paths))

    def __len__(self) -> int:
        return len(self.tasks)

    def order(self) -> list[str]:
        """Return the names of the tasks in the order in which one worker takes them.

        Raises
        ------
        CyclicGraph
            If tasks wait for each other.
        """
        plan = self.plan()
        return [plan.tasks[k].name for k in plan.order]

    def plan(self) -> Plan:
        """Work out what depends on what.

        Raises
        ------
        CyclicGraph
            If tasks wait for each other; the error lists them.
        SettingError
            If two tasks write the same file, or ``after`` names a task that is not there.
        """
        tasks = list(self.tasks.values())
        number = {task.name: k for k, task in enumerate(tasks)}
        writers = _writers(tasks)
        collect = _Collector(tasks, number, writers)
        arguments = [collect(k) for k in range(len(tasks))]
        upstream = [
            sorted(
                {u for u, _ in collect.uses[k] if u >= 0}
                | {w for w in collect.reads[k].values() if w >= 0 and w != k}
                | {_number(number, task, other) for other in task.after}
            )
            for k, task in enumerate(tasks)
        ]
        downstream: list[list[int]] = [[] for _ in tasks]
        for k, those in enumerate(upstream):
            for u in those:
                downstream[u].append(k)
        order = _ordered(upstream, downstream, [task.name for task in tasks])
        return Plan(
            tasks, arguments, collect.uses, collect.reads, upstream, downstream, collect.sources,
            order,
        )


def filled(template: Any, values: Sequence[Any]) -> Any:
    """Return arguments with the values in their slots; arrays in them cannot be written to."""
    if isinstance(template, Slot):
        return values[template.use]
    if type(template) in (list, tuple):
        return type(template)(filled(item, values) for item in template)
    if type(template) is dict:
        return {key: filled(item, values) for key, item in template.items()}
    if type(template) is np.ndarray and template.flags.writeable:
        template = template.view()
        template.flags.writeable = False
    return template


def _takes_log(function: Callable[..., Any]) -> bool:
    try:
        return "log" in inspect.signature(function).parameters
    except ValueError:  # a built-in that does not tell
        return False


def _results(value: Any) -> Iterator[Result]:
    if isinstance(value, Result):
        yield value
    elif type(value) in (list, tuple):
        for item in value:
            yield from _results(item)
    elif type(value) is dict:
        yield from _results(list(value.values()))


def absolute(path: str | Path) -> Path:
    """Return a path as it is compared with others: absolute, without ``..``."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() asks the file system


def _number(number: Mapping[str, int], task: Task, other: str) -> int:
    if other not in number:
        raise SettingError(
            "{name} comes after {other!r}, which is not in this graph", name=task.name, other=other
        )
    return number[other]


def _writers(tasks: Sequence[Task]) -> dict[Path, int]:
    writers: dict[Path, int] = {}
    for k, task in enumerate(tasks):
        for path in map(absolute, task.files.values()):
            if path in writers:
                raise SettingError(
                    "{one} and {other} both write {path}", one=tasks[writers[path]].name,
                    other=task.name, path=path,
                )
            writers[path] = k
    return writers


class _Collector:
    """Take the inputs of tasks apart: results, files, large arrays, and what remains."""

    def __init__(
        self, tasks: Sequence[Task], number: Mapping[str, int], writers: Mapping[Path, int]
    ):
        self.tasks, self.number, self.writers = tasks, number, writers
        self.uses: list[list[Use]] = []
        self.reads: list[dict[Path, int]] = []
        self.sources: list[np.ndarray[Any, Any]] = []
        self._places: dict[int, int] = {}

    def __call__(self, k: int) -> dict[str, Any]:
        """Return the arguments of a task with slots in place of what others make."""
        self.uses.append([])
        self.reads.append({})
        task = self.tasks[k]
        return {
            **{key: self._taken(value) for key, value in task.inputs.items()},
            **task.settings, **task.files,
        }

    def _taken(self, value: Any) -> Any:
        if isinstance(value, Result):
            path = self.tasks[self.number[value.task]].files.get(value.output)
            return self._slot((self.number[value.task], value.output)) if path is None else (
                self._read(path)
            )
        if isinstance(value, File):
            return self._read(Path(value.path))
        if type(value) in (list, tuple):
            return type(value)(self._taken(item) for item in value)
        if type(value) is dict:
            return {key: self._taken(item) for key, item in value.items()}
        if type(value) is np.ndarray and value.nbytes > SMALL_BYTES and not value.dtype.hasobject:
            place = self._places.setdefault(id(value), len(self.sources))
            if place == len(self.sources):
                self.sources.append(value)
            return self._slot((-1 - place, ""))
        return value

    def _slot(self, use: Use) -> Slot:
        uses = self.uses[-1]
        if use not in uses:
            uses.append(use)
        return Slot(uses.index(use))

    def _read(self, path: Path) -> Path:
        self.reads[-1][absolute(path)] = self.writers.get(absolute(path), -1)
        return path


def _ordered(
    upstream: Sequence[Sequence[int]], downstream: Sequence[Sequence[int]], names: Sequence[str]
) -> list[int]:
    """Order the tasks depth first from the last ones back: results are soon used and let go."""
    order: list[int] = []
    state = [0] * len(names)  # 0 not seen, 1 on the way, 2 in the order
    ends = [k for k, those in enumerate(downstream) if not those]
    for root in [*ends, *range(len(names))]:
        if state[root]:
            continue
        state[root] = 1
        way = [(root, iter(upstream[root]))]
        while way:
            k, rest = way[-1]
            u = next((u for u in rest if state[u] < 2), None)
            if u is None:
                state[k] = 2
                order.append(k)
                way.pop()
            elif state[u] == 1:
                on_way = [w for w, _ in way]
                cycle = [*on_way[on_way.index(u):], u]
                raise CyclicGraph(cycle=" <- ".join(names[c] for c in cycle))
            else:
                state[u] = 1
                way.append((u, iter(upstream[u])))
    return order
