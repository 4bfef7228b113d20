"""``cynosure report``: the report of a run, drawn again from its files."""

from __future__ import annotations

import click

from cynosure.faces.shell import Command, Shell, option, shared
from cynosure.ground.errors import ExitCode

__all__ = ["report"]


@click.command(cls=Command, example="cynosure report solved/")
@click.argument("run", metavar="RUN")
@option("--image", "names", multiple=True, metavar="NAME",
        help="Only these images; the default is all, the worst first in detail.")
@shared
def report(shell: Shell, run: str, names: tuple[str, ...]) -> int:
    """Write the report of a run.

    RUN is the --out folder of a solve. The report is one HTML file that needs no network.
    """
    from cynosure.faces.report.page import write_report

    path = write_report(run, shell.out, names=names)
    shell.say(str(path))
    shell.emit({"report": str(path)})
    return int(ExitCode.OK)
