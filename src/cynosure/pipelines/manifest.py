"""The manifest of a run, ``run.json``: its inputs, products, settings, software and results.

The file is written as a whole after every image, so that a run that was killed can be resumed: an
image whose content and settings are those of its row is not processed again. The rows of a graph
of tasks are beside those of images (:mod:`cynosure.pipelines.tasks`).
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cynosure._version import __version__
from cynosure.ground.errors import CatalogDamaged, ExitCode, OutputError, SettingError
from cynosure.ground.files import reason_of, write_text

__all__ = [
    "Manifest",
    "Row",
    "TaskRow",
    "content_of",
    "exit_code_of",
    "fingerprint",
    "stem_of",
    "tally",
    "versions",
]

SCHEMA = "cynosure.run/1"
FILE_NAME = "run.json"

PACKAGES = ("numpy", "scipy", "astropy", "pyerfa", "numba", "pyarrow")

PENDING = "pending"
# Resolution of the time of change, ns, of the coarsest file system in use (FAT: two seconds).
CLOCK_NS = 2_000_000_000
# Exit codes of failures that may pass without a change of image or settings.
PASSING = (ExitCode.INTERNAL, ExitCode.TEMPORARY, ExitCode.INTERRUPTED, ExitCode.OUTPUT_UNWRITABLE)


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a run.

    Attributes
    ----------
    image : str
        The image, as it was named.
    status : str
        ``solved``, ``compromised``, ``failed``, or ``pending`` while it is not done.
    reason : str
        Why it is not solved.
    quality : int
        1 … 5 or -1.
    sha256 : str
        Checksum of the file.
    fingerprint : str
        Checksum of the settings (:func:`fingerprint`).
    exit_code : int
        What the command would return for this image alone.
    seconds : float
        Wall-clock time.
    products : tuple of str
        Files that were written, relative to the folder of the run.
    written : str
        Checksum that the image's file was given, where it was changed itself.
    """

    image: str
    status: str = PENDING
    reason: str = ""
    quality: int = -1
    sha256: str = ""
    fingerprint: str = ""
    exit_code: int = int(ExitCode.OK)
    seconds: float = 0.0
    products: tuple[str, ...] = ()
    written: str = ""


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One task of a graph.

    Attributes
    ----------
    status : str
        ``done``, ``failed``, ``skipped``, or ``pending`` while it is not run.
    reason : str
        Why it is not done.
    exit_code : int
        What the command would return for this task alone.
    seconds : float
        Wall-clock time.
    fingerprint : str
        Checksum of all that the task depends on.
    inputs, outputs : dict of str to str
        Checksum of each file that it read and wrote, relative to the folder of the run where
        they lie in it.
    """

    status: str = PENDING
    reason: str = ""
    exit_code: int = int(ExitCode.OK)
    seconds: float = 0.0
    fingerprint: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Manifest:
    """``run.json`` of one folder.

    Attributes
    ----------
    folder : Path
        The folder of the run.
    rows : dict of str to Row
        By the image's stem (:func:`stem_of`), in the order of the inputs.
    facts : dict
        ``command``, ``settings``, ``catalog`` and what else describes the run.
    state : str
        ``running``, ``finished`` or ``interrupted``.
    software : dict
        Versions (:func:`versions`).
    started : str
        Date and time in UTC.
    tasks : dict of str to TaskRow
        By the name of the task, in the order of the graph.
    files : dict of str to list
        Size, time of change (ns) and checksum of files as they were last read.
    """

    folder: Path
    rows: dict[str, Row] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    state: str = "running"
    software: dict[str, str] = field(default_factory=lambda: versions())
    started: str = field(default_factory=lambda: _now())
    tasks: dict[str, TaskRow] = field(default_factory=dict)
    files: dict[str, list[Any]] = field(default_factory=dict)
    _clock: float = field(default_factory=time.monotonic)

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """Read the manifest of a folder; one without ``run.json`` gives an empty manifest.

        Raises
        ------
        CatalogDamaged
            If ``run.json`` is not a manifest.
        """
        folder = Path(folder)
        path = folder / FILE_NAME
        if not path.exists():
            return cls(folder)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise KeyError(content["schema"])
            rows = {
                stem: Row(**{**values, "products": tuple(values["products"])})
                for stem, values in content["images"].items()
            }
            facts = {k: v for k, v in content.items() if k not in _OWN}
            state, software, started = (content[n] for n in ("state", "software", "started"))
            tasks = {name: TaskRow(**row) for name, row in content.get("tasks", {}).items()}
            files = dict(content.get("files", {}))
            return cls(folder, rows, facts, state, software, started, tasks, files)
        except (KeyError, TypeError, ValueError) as error:
            raise CatalogDamaged(
                catalog=str(path), reason=f"not a manifest of schema {SCHEMA}",
                hint="Use another --out, or remove the file.",
            ) from error

    def record(self, stem: str, row: Row) -> None:
        """Set an image's row and write the manifest."""
        self.rows[stem] = row
        self.write()

    def write(self, state: str | None = None) -> None:
        """Write ``run.json``, whole or not at all."""
        self.state = state or self.state
        content = {
            "schema": SCHEMA,
            "software": self.software,
            "state": self.state,
            "started": self.started,
            "written": _now(),
            "seconds": round(time.monotonic() - self._clock, 3),
            "tally": tally(r.status for r in self.rows.values()),
            "images": {stem: asdict(row) for stem, row in self.rows.items()},
            **({"tasks": {name: asdict(row) for name, row in self.tasks.items()}}
               if self.tasks else {}),
            **({"files": self.files} if self.files else {}),
            **self.facts,
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
        write_text(self.folder / FILE_NAME, text + "\n", overwrite=True)

    def is_done(self, stem: str, image: str | Path, mark: str) -> bool:
        """Say whether an image was done with the same content and the same settings."""
        from cynosure.data.fits.file import file_sha256, split_path

        row = self.rows.get(stem)
        if row is None or row.status == PENDING or row.fingerprint != mark:
            return False
        file = split_path(str(image))[0]
        if row.exit_code in PASSING or not row.sha256 or not file.is_file():
            return False
        if not all((self.folder / product).exists() for product in row.products):
            return False
        return content_of(file_sha256(file), row.sha256, row.written) == row.sha256

    def content(self, path: Path) -> str:
        """Return the checksum of a file, "" if it cannot be read.

        A file with the size and the time of change that it had when it was last read is not read
        again, unless it was written so shortly before that it may have been written once more
        within the resolution of the clock.
        """
        from cynosure.data.fits.file import file_sha256

        try:
            now = path.stat()
            seen = self.files.get(str(path))
            if seen is None or seen[:2] != [now.st_size, now.st_mtime_ns]:
                trusted = time.time_ns() - now.st_mtime_ns > CLOCK_NS
                seen = [now.st_size, now.st_mtime_ns if trusted else 0, file_sha256(path)]
                self.files[str(path)] = seen
            return str(seen[2])
        except OSError:
            self.files.pop(str(path), None)
            return ""

    def is_ours(self, stem: str) -> bool:
        """Say whether files of this image were left by a run that did not come to its end."""
        row = self.rows.get(stem)
        return row is not None and (row.status == PENDING or row.exit_code in PASSING)


_OWN = {
    "schema", "software", "state", "started", "written", "seconds", "tally", "images", "tasks",
    "files",
}


def content_of(now: str, read: str, written: str) -> str:
    """Return the checksum of the input that a file stands for.

    A file that was changed by what read it counts as what had been read, as long as nobody else
    has changed it since.

    Parameters
    ----------
    now, read, written : str
        Checksum of the file as it is, as it was read, and as it was then written ("" if it was
        not).

    Examples
    --------
    >>> content_of("b", "a", "b"), content_of("c", "a", "b"), content_of("a", "a", "")
    ('a', 'c', 'a')
    """
    return read if written and now == written else now


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of cynosure, of Python and of the packages that make its numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"cynosure": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "?"
    return found


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Return a checksum of settings and options, the same for the same values in any order."""
    text = json.dumps([__version__, facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def stem_of(image: str | Path) -> str:
    """Return what an image's products are named after.

    Examples
    --------
    >>> stem_of("night/m81.fits.fz"), stem_of("m81.FIT[SCI,1]"), stem_of("m81.v2.fits")
    ('m81', 'm81', 'm81.v2')
    """
    from cynosure.data.fits.file import split_path
    from cynosure.data.fits.solved import output_name

    return output_name(split_path(str(image))[0], "")


def stems_of(images: Iterable[str | Path]) -> dict[str, str]:
    """Return the images by their stem, in order.

    Raises
    ------
    SettingError
        If two images would write files of the same names.
    """
    found: dict[str, str] = {}
    for image in map(str, images):
        stem = stem_of(image)
        if stem in found and found[stem] != image:
            raise SettingError(
                "{first} and {second} would both write {stem}_wcs.fits",
                first=found[stem], second=image, stem=stem,
                hint="Solve them into two folders (--out).",
            )
        found[stem] = image
    return found


def make_folder(folder: str | Path) -> Path:
    """Make a folder of output, with its parents.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(path=str(folder), reason=reason_of(error)) from error
    return folder


def tally(statuses: Iterable[str]) -> dict[str, int]:
    """Count the statuses; the three verdicts are always there.

    Examples
    --------
    >>> tally(["solved", "failed", "solved"])
    {'solved': 2, 'compromised': 0, 'failed': 1}
    """
    counts = {"solved": 0, "compromised": 0, "failed": 0}
    for status in statuses:
        counts[status] = counts.get(status, 0) + 1
    return counts


def exit_code_of(codes: Iterable[int]) -> ExitCode:
    """Return the exit code of a run from those of its images.

    All the same code: that one; several codes: MIXED; no image: NOTHING_TO_DO.

    Examples
    --------
    >>> exit_code_of([0, 0]).name, exit_code_of([10, 10]).name, exit_code_of([0, 10]).name
    ('OK', 'NO_SOLUTION', 'MIXED')
    """
    distinct = set(codes)
    if not distinct:
        return ExitCode.NOTHING_TO_DO
    return ExitCode(distinct.pop()) if len(distinct) == 1 else ExitCode.MIXED
