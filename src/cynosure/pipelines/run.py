"""Running a door over images: settings, manifest, resume, isolation, time limit."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cynosure.ground.errors import CynosureError, ExitCode, OutputExists
from cynosure.ground.settings import Settings
from cynosure.pipelines.manifest import (
    Manifest,
    Row,
    exit_code_of,
    fingerprint,
    make_folder,
    stems_of,
)
from cynosure.pipelines.tasks.done import Done, Watch
from cynosure.pipelines.tasks.graph import Graph
from cynosure.pipelines.tasks.schedule import execute

__all__ = [
    "SECTIONS",
    "Function",
    "Record",
    "Run",
    "default_settings",
    "expected_bytes",
    "placed",
    "run_images",
    "settings_of",
]

Function = Callable[[Any, Callable[[str], None]], Any]

# A section of the settings is the keyword-only arguments of one function.
SECTIONS = {
    "background": "cynosure.pixels.background:estimate_background",
    "detect": "cynosure.pixels.detect:detect_sources",
    "psf": "cynosure.pixels.psf:build_psf",
    "measure": "cynosure.pixels.measure:fit_psf",
    "refcat": "cynosure.geometry.reference:select_reference",
    "match": "cynosure.geometry.match.pointing:match_pointing",
    "blind": "cynosure.geometry.match.blind:solve_blind",
    "fit": "cynosure.geometry.fit.exposure:fit_wcs",
    "quality": "cynosure.solutions.quality:judge",
}

# Memory that solving takes: a constant for the libraries and the catalogue, and a multiple of the
# size of the file.
# Measured: 330 MB for 1 Mpix, 680 MB for 61 Mpix of 16 bits; a compressed sky has about a third
# of its bytes.
MEMORY_BYTES = 350_000_000
MEMORY_A_BYTE = 4
PACKED_RATIO = 3


def default_settings() -> Settings:
    """Return the settings as built in, of all sections whose module is installed."""
    return Settings({name: path for name, path in SECTIONS.items() if _exists(path)})


def settings_of(given: Settings | Mapping[str, Mapping[str, Any]] | None) -> Settings:
    """Return settings, built-in ones with what a mapping of sections changes."""
    if isinstance(given, Settings):
        return given
    return default_settings().updated(given or {}, "the argument settings")


def _exists(path: str) -> bool:
    return importlib.util.find_spec(path.split(":")[0]) is not None


class Record(Protocol):
    """What the function of :func:`run_images` returns for an image: a Solution is one."""

    @property
    def status(self) -> str:
        """``solved``, ``compromised`` or ``failed``."""

    @property
    def reason(self) -> str:
        """Why it is not solved."""

    @property
    def quality(self) -> int:
        """1 … 5 or -1."""

    @property
    def sha256(self) -> str:
        """Checksum of the image's file."""

    @property
    def exit_code(self) -> int:
        """What the command returns for this image alone."""

    @property
    def files(self) -> tuple[str, ...]:
        """Files that were written, relative to the folder of the run."""


@dataclass(frozen=True, slots=True)
class Run:
    """What came of :func:`run_images`.

    Attributes
    ----------
    records : list of Record
        In the order of the images; those that were skipped are not among them.
    skipped : tuple of str
        Images that an earlier run had done with the same settings.
    manifest : Manifest
        As it stands in ``run.json``.
    exit_code : ExitCode
    """

    records: list[Record]
    skipped: tuple[str, ...]
    manifest: Manifest
    exit_code: ExitCode


def run_images(
    function: Function,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    endings: Sequence[str],
    options: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    facts: Mapping[str, Any] | None = None,
    failed: Callable[[str, CynosureError], Record],
    on_record: Callable[[Record], None] | None = None,
    workers: int | str = 1,
    timeout_s: float | None = None,
    memory_bytes: int | None = None,
    memory_of: Callable[[str], int] = lambda image: 0,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> Run:
    """Run a door over images, with manifest, resume, isolation and time limit.

    Parameters
    ----------
    function : callable
        ``function((image, overwrite), log) -> Record``: does one image and writes its files.
        `overwrite` is true also where the files were left by a run that was cut short.
    images : sequence of str or Path
    out : str or Path
        The folder of the run; ``run.json`` is written there after every image.
    endings : sequence of str
        What the names of an image's products end with, after its stem. An image of which a
        product is there already, not from a run that was cut short, is not done but fails with
        :class:`~cynosure.ground.errors.OutputExists`.
    options, settings : mapping, Settings
        What the result depends on beside the image: an image that was done with the same is
        skipped.
    facts : mapping, optional
        What else ``run.json`` is to say: the command, the catalogue.
    failed : callable
        ``failed(image, error) -> Record``: makes (and writes) the record of an image whose
        function raised. Where its output exists (OutputExists) it must leave that alone.
    on_record : callable, optional
        Called with every record as soon as its row is written, in order of completion.
    workers, timeout_s, memory_bytes, watch
        As in :func:`~cynosure.pipelines.tasks.schedule.execute`.
    memory_of : callable
        The most memory (bytes) that an image is expected to take.
    overwrite : bool
        Do everything again and replace the files.

    Raises
    ------
    SettingError
        If two images would write files of the same names.
    OutputError
        If the folder cannot be made or written.
    """
    folder = make_folder(out)
    stems = stems_of(images)
    changed = settings.changed() if settings is not None else {}
    mark = fingerprint({"options": dict(options or {}), "settings": changed})
    old = Manifest(folder) if overwrite else Manifest.read(folder)
    skipped = {s: i for s, i in stems.items() if old.is_done(s, i, mark)}
    blocked = {} if overwrite else {
        s: found for s in stems
        if s not in skipped and not old.is_ours(s) and (found := _existing(folder, s, endings))
    }
    todo = {s: i for s, i in stems.items() if s not in skipped and s not in blocked}
    manifest = Manifest(folder, dict(old.rows), {"settings": _origins(settings), **(facts or {})})
    manifest.rows.update({stem: Row(image) for stem, image in todo.items()})
    manifest.write()
    recorder = _Recorder(manifest, {i: s for s, i in stems.items()}, mark, failed, on_record)
    for stem, path in blocked.items():
        recorder(_blocked(stems[stem], path))
    state = "interrupted"
    try:
        execute(
            _graph(function, todo, {s for s in todo if overwrite or old.is_ours(s)}, memory_of),
            workers=workers, timeout_s=timeout_s, memory_bytes=memory_bytes, watch=watch,
            on_done=recorder,
        )
        state = "finished"
    finally:
        manifest.write(state)
    records = [recorder.records[s] for s in stems if s in recorder.records]
    codes = [int(r.exit_code) for r in records]
    if codes:
        codes += [manifest.rows[s].exit_code for s in skipped]
    return Run(records, tuple(skipped.values()), manifest, exit_code_of(codes))


@dataclass(frozen=True, slots=True)
class _OneImage:
    """The door as the function of a task."""

    function: Function

    def __call__(self, payload: tuple[str, bool], log: Callable[[str], None]) -> Any:
        return self.function(payload, log)


def _graph(
    function: Function, images: Mapping[str, str], replaced: set[str],
    memory_of: Callable[[str], int],
) -> Graph:
    """Return the graph of a run over images (by stem): each is a task, none needs another."""
    graph = Graph()
    for stem, image in images.items():
        graph.add(
            image, _OneImage(function), inputs={"payload": (image, stem in replaced)}, kind="image",
            memory_bytes=memory_of(image), weight=float(memory_of(image) or 1),
        )
    return graph


def expected_bytes(image: str) -> int:
    """Estimate the most memory (bytes) that solving an image takes, from the size of its file."""
    from cynosure.data.fits.file import split_path

    path = split_path(image)[0]
    try:
        size = path.stat().st_size
    except OSError:  # the task will say so
        return 0
    packed = path.suffix.lower() in (".fz", ".gz", ".bz2", ".xz", ".zst")
    return MEMORY_BYTES + MEMORY_A_BYTE * size * (PACKED_RATIO if packed else 1)


def placed(path: Any) -> Any:
    """Return an absolute path; a URL, a name and what is no path stay as they are."""
    if isinstance(path, Path) or (isinstance(path, str) and Path(path).exists()):
        return str(Path(path).absolute())
    return path


def _origins(settings: Settings | None) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the settings that somebody changed, each with its origin."""
    if settings is None:
        return {}
    return {
        section: {
            name: {"value": value, "origin": settings.origin(section, name)}
            for name, value in values.items()
        }
        for section, values in settings.changed().items()
    }


def _existing(folder: Path, stem: str, endings: Sequence[str]) -> Path | None:
    return next((p for e in endings if (p := folder / f"{stem}{e}").exists()), None)


def _blocked(image: str, path: Path) -> Done:
    return Done(image, None, OutputExists("{image}: {path} exists already", image=image, path=path))


@dataclass(slots=True)
class _Recorder:
    """Make a record and a row of whatever came of a task."""

    manifest: Manifest
    stems: Mapping[str, str]
    mark: str
    failed: Callable[[str, CynosureError], Record]
    on_record: Callable[[Record], None] | None
    records: dict[str, Record] = field(default_factory=dict)

    def __call__(self, done: Done) -> None:
        stem = self.stems[done.key]
        record: Record = done.value
        if done.error is not None:
            record = self.failed(done.key, done.error)
        self.records[stem] = record
        # An image whose output exists already keeps its row.
        if not (isinstance(done.error, OutputExists) and stem in self.manifest.rows):
            self.manifest.record(stem, self._row(done, record))
        if self.on_record is not None:
            self.on_record(record)

    def _row(self, done: Done, record: Record) -> Row:
        mark = "" if isinstance(done.error, OutputExists) else self.mark
        return Row(
            done.key, record.status, record.reason, record.quality, record.sha256, mark,
            int(record.exit_code), round(done.seconds, 3), tuple(record.files),
            _written(self.manifest.folder, done.key, record.files),
        )


def _written(folder: Path, image: str, files: Sequence[str]) -> str:
    """Return the checksum of the image's file if the run changed that file itself."""
    from cynosure.data.fits.file import file_sha256, split_path

    path = split_path(image)[0]
    if not path.exists():  # it never was, or it is at another site
        return ""
    same = any((folder / f).exists() and (folder / f).samefile(path) for f in files)
    return file_sha256(path) if same else ""
