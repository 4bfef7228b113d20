"""Options, settings, errors, exit codes and the log of a run, for all commands."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cynosure.ground.errors import CynosureError, ExitCode, OutputError, SettingError
from cynosure.ground.files import reason_of

if TYPE_CHECKING:
    from cynosure.ground.settings import Settings

__all__ = ["Command", "Option", "Shell", "describe_error", "option", "shared", "user_files"]

# The same table stands in the documentation; its numbers are ExitCode's.
EXIT_TEXTS = {
    ExitCode.OK: "all inputs solved and verified",
    ExitCode.INTERNAL: "internal fault (a defect: says how to report it)",
    ExitCode.USAGE: "bad command or settings",
    ExitCode.MIXED: "several inputs, mixed results",
    ExitCode.NOTHING_TO_DO: "nothing to do: all were done before",
    ExitCode.NO_SOLUTION: "no solution found",
    ExitCode.NOT_ENOUGH_STARS: "not enough stars in the image",
    ExitCode.NOT_ENOUGH_REFERENCE: "not enough reference stars",
    ExitCode.NOT_VERIFIED: "solved but not verified (compromised)",
    ExitCode.IMAGE_UNREADABLE: "the image cannot be read",
    ExitCode.OUTPUT_EXISTS: "the output exists (--overwrite)",
    ExitCode.OUTPUT_UNWRITABLE: "the output cannot be written",
    ExitCode.NO_CATALOG: "no reference catalogue or index for this field",
    ExitCode.CATALOG_DAMAGED: "catalogue or index damaged",
    ExitCode.STORE_UNAVAILABLE: "solution database unavailable",
    ExitCode.TEMPORARY: "network, lock or time limit: try again",
    ExitCode.INTERRUPTED: "interrupted; state saved, run it again to go on",
}


class Option(click.Option):
    """An option that is printed under a heading of its own in ``--help``."""

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any):
        self.group = group
        super().__init__(*args, **kwargs)


class Command(click.Command):
    """A command whose ``--help`` shows an example first and its options by group."""

    def __init__(self, *args: Any, example: str = "", **kwargs: Any):
        self.example = example
        super().__init__(*args, **kwargs)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, then the text."""
        if self.example:
            with formatter.section("Example"):
                formatter.write(f"{'':>{formatter.current_indent}}{self.example}\n")
        super().format_help_text(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options group by group, in order of appearance, those shared by all last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                group = getattr(parameter, "group", COMMON)
                groups.setdefault(group, []).append(record)
        for name in sorted(groups, key=lambda g: g == COMMON):
            with formatter.section(name):
                formatter.write_dl(groups[name])


COMMON = "Common options"
option = functools.partial(click.option, cls=Option)


@dataclass(slots=True)
class Shell:
    """The shared options of one call, and what is done with them."""

    out: str | None = None
    overwrite: bool = False
    dry_run: bool = False
    texts: tuple[str, ...] = ()
    config: tuple[str, ...] = ()
    verbose: int = 0
    quiet: bool = False
    json: bool = False
    workers: int | str = 1
    timeout_s: float | None = None
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.workers in (0, "") or (self.timeout_s is not None and not self.timeout_s > 0):
            raise SettingError(
                "--workers {workers}, --timeout {timeout}: both must be positive",
                workers=self.workers, timeout=self.timeout_s,
                hint="Leave them out for one image at a time without a limit.",
            )

    @property
    def processes(self) -> int:
        """The number of --workers, for commands that do not run on a cluster.

        Raises
        ------
        SettingError
            If the address of a cluster was given.
        """
        if isinstance(self.workers, str):
            raise SettingError(
                "--workers {workers}: this command does not run on a cluster",
                workers=self.workers, hint="Give the number of processes, --workers N.",
            )
        return self.workers

    def settings(self) -> Settings:
        """Return the settings: built-in < user < project < --config < `changes` < --set."""
        from cynosure.pipelines.run import default_settings

        settings = default_settings()
        for path in [*user_files(), *self.config]:
            settings = settings.with_file(path)
        return settings.updated(self.changes, "the task").with_texts(self.texts)

    def say(self, text: str = "") -> None:
        """Print for people, on standard output; nothing with --quiet or --json."""
        if not (self.quiet or self.json):
            click.echo(text)

    def emit(self, record: dict[str, Any]) -> None:
        """Print a record as one line of JSON, with --json only."""
        if self.json:
            click.echo(json.dumps(record, ensure_ascii=False, sort_keys=True, default=str))

    def tell(self, text: str) -> None:
        """Print on standard error, where progress and log go; nothing with --quiet."""
        if not self.quiet:
            click.echo(text, err=True)

    def folder(self, default: str) -> Path:
        """Return --out, or the default where it was not given."""
        return Path(self.out if self.out is not None else default)


class Workers(click.ParamType):
    """``--workers``: a number of processes, or the address of a Dask scheduler."""

    name = "workers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return the number, or the address as it is."""
        if isinstance(value, int):
            return value
        if re.fullmatch(r"dask://\S+:\d+", value):
            return str(value)
        if not re.fullmatch(r"[+-]?\d+", value):
            self.fail(
                f"{value!r}: a number of processes, or dask://HOST:PORT, is expected", param, ctx
            )
        return max(int(value), 0)


class Bytes(click.ParamType):
    """A size in bytes, or with one of the letters k, M, G, T."""

    name = "bytes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number of bytes."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", str(value))
        if found is None or not float(found[1]):
            self.fail(f"{value!r}: a size such as 800M or 8G is expected", param, ctx)
        return int(float(found[1]) * 1000 ** (" kMGT".index(found[2] or " ")))


SHARED = (
    ("--out", {"metavar": "DIR", "help": "Folder (or file) to write to."}),
    ("--overwrite", {"is_flag": True, "help": "Do it again and replace what is there."}),
    ("--dry-run", {"is_flag": True, "help": "Print what would be done; write nothing."}),
    ("--set", {"multiple": True, "metavar": "SECTION.KEY=VALUE", "help":
               "Change a setting (cynosure config show)."}),
    ("--config", {"multiple": True, "metavar": "FILE", "help": "Settings from a TOML file."}),
    ("--verbose", {"count": True, "help": "Say more; twice for the finest detail."}),
    ("--quiet", {"is_flag": True, "help": "Print nothing but errors."}),
    ("--json", {"is_flag": True, "help": "One JSON object a line on standard output."}),
    ("--workers", {"type": Workers(), "default": 1, "show_default": True,
                   "metavar": "N|dask://HOST:PORT",
                   "help": "Images at a time, or the scheduler of a cluster."}),
    ("--timeout", {"type": float, "metavar": "SECONDS",
                   "help": "Give an image up after this long."}),
)
SHORT = {"--verbose": "-v", "--quiet": "-q", "--out": "-o"}
NAMES = {"--set": "texts", "--timeout": "timeout_s"}


def shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that all commands have; it receives them as a `Shell`."""

    @functools.wraps(function)
    def command(**kwargs: Any) -> Any:
        names = Shell.__dataclass_fields__
        shell = Shell(**{k: kwargs.pop(k) for k in list(kwargs) if k in names})
        return function(shell, **kwargs)

    for name, attributes in reversed(SHARED):
        flags = [SHORT[name], name] if name in SHORT else [name]
        if name in NAMES:
            flags.append(NAMES[name])
        command = option(*flags, group=COMMON, **attributes)(command)
    return command


def user_files() -> list[str]:
    """Return the settings files of the user and of the project that are there, in this order."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    files = (home / "cynosure" / "config.toml", Path("cynosure.toml"))
    return [str(path) for path in files if path.exists()]


def describe_error(error: CynosureError) -> str:
    """Return the lines that are printed for an error: what, and what to try."""
    lines = [f"error: {error}"]
    if error.hint:
        lines.append(f"try: {error.hint}")
    return "\n".join(lines)


def is_first_run() -> bool:
    """Say whether the kernels have yet to be compiled; it takes half a minute, once."""
    from cynosure.ground.cache import marked
    from cynosure.pipelines.compiling import SOLVE

    return not marked(SOLVE)


class _RunLog(logging.FileHandler):
    """A log file; a disk that is full is told by the products, not by the log."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing."""


@contextlib.contextmanager
def log_to(folder: Path, command: list[str], verbose: int) -> Iterator[None]:
    """Append the log of this run to ``run.log``; only commands set up logging.

    Raises
    ------
    OutputError
        If the file cannot be opened.
    """
    path = folder / "run.log"
    try:
        handlers: list[logging.Handler] = [_RunLog(path, encoding="utf-8")]
    except OSError as error:
        raise OutputError(path=str(path), reason=reason_of(error)) from error
    text = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    handlers[0].setFormatter(logging.Formatter(text))
    logger = logging.getLogger("cynosure")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    if verbose:
        console = logging.StreamHandler(sys.stderr)
        console.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)
        console.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        handlers.append(console)
    for handler in handlers:
        logger.addHandler(handler)
    logger.info("command: %s", " ".join(command))
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()
