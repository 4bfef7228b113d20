"""The command ``cynosure``: its verbs, loaded when they are called, and how it ends.

Exit codes are :class:`cynosure.ground.errors.ExitCode`. An error of the user's making is printed
as ``error: …`` and ``try: …`` without a traceback; a defect of cynosure writes its traceback to a
file and says how to report it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from types import FrameType, TracebackType
from typing import Any, NoReturn

import click

from cynosure._version import __version__
from cynosure.faces.shell import EXIT_TEXTS, describe_error
from cynosure.ground.errors import CynosureError, ExitCode

__all__ = ["cynosure", "main"]

# Verb: where its command is, and its line in the help (the same as the command's own).
VERBS = {
    "solve": ("solve:solve", "Put images on the sky of a reference catalogue."),
    "refcat": ("refcat:refcat", "Build, fetch and look into reference catalogues."),
    "index": ("index:index", "Build blind indexes and look into them."),
    "store": ("store:store", "Keep every solution of every exposure in a database."),
    "wcs": ("wcs:wcs", "List, compare, apply, keep and convert WCS solutions."),
    "simulate": ("simulate:simulate", "Make images of known truth."),
    "report": ("report:report", "Write the report of a run."),
    "config": ("config:config", "Show, check and explain settings."),
    "doctor": ("doctor:doctor", "Check the installation, or a file."),
    "task": ("task:task", "Do what a JSON object asks for."),
}


# Linear algebra in one thread: the bits of a sum must not depend on the number of cores, and the
# threads of a BLAS that wait for work take the cores from ours. It counts before NumPy is loaded.
BLAS_THREADS = (
    "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
)


# A group called without a verb: newer versions of click raise this, older ones print the help.
_NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", ())


class Verbs(click.Group):
    """The verbs, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        if cmd_name not in VERBS:
            return None
        module, name = VERBS[cmd_name][0].split(":")
        command: click.Command = getattr(
            importlib.import_module(f"cynosure.faces.commands.{module}"), name
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs without importing them, and the exit codes."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), text) for code, text in EXIT_TEXTS.items()])


@click.command(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Settings: cynosure config show. Every verb has --help with an example.",
)
@click.version_option(__version__, prog_name="cynosure")
def cynosure() -> None:
    """Put astronomical images on the Gaia frame, and prove it."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and leave with its exit code."""
    for variable in BLAS_THREADS:
        os.environ.setdefault(variable, "1")
    sys.excepthook = _report_fault
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code; a defect is raised as it is."""
    try:
        code = cynosure.main(args=arguments, prog_name="cynosure", standalone_mode=False)
    except CynosureError as error:
        return _end(arguments, error)
    except _NO_ARGUMENTS as error:
        click.echo(error.format_message())
        return int(ExitCode.USAGE)
    except click.ClickException as error:
        return _end(arguments, _usage_error(error))
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; run the same command again to go on", err=True)
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    return int(code or 0)


def _usage_error(error: click.ClickException) -> CynosureError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "cynosure"
    wrapped = CynosureError(error.format_message().replace("\n", " "), hint=f"`{path} --help`")
    wrapped.exit_code = ExitCode.USAGE
    return wrapped


def _end(arguments: list[str], error: CynosureError) -> int:
    """Print an error and return its exit code."""
    click.echo(describe_error(error), err=True)
    if "--json" in arguments:
        facts = {k: v for k, v in error.facts.items() if k != "traceback"}
        record = {"error": str(error), "hint": error.hint, "exit_code": int(error.exit_code)}
        click.echo(json.dumps({**facts, **record}, sort_keys=True, default=str))
    if "traceback" in error.facts:
        click.echo(error.facts["traceback"], err=True)
    return int(error.exit_code)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _report_fault(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> Any:
    """Say how to report a defect; Python itself then exits with 1."""
    text = "".join(traceback.format_exception(kind, error, trace))
    with tempfile.NamedTemporaryFile(
        "w", prefix="cynosure-fault-", suffix=".txt", delete=False, encoding="utf-8"
    ) as stream:
        stream.write(f"cynosure {__version__}, {sys.version}\n{sys.argv}\n\n{text}")
    click.echo(
        f"error: internal fault in cynosure {__version__} ({kind.__name__}: {error})\n"
        f"try: this is a defect; please report it to the developers with {stream.name}",
        err=True,
    )
