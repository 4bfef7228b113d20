"""``cynosure task``: a JSON object in, JSON lines out; the door for job queues and containers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from cynosure.faces.commands.solve import solve_images, to_numbers
from cynosure.faces.shell import Command, Shell, shared
from cynosure.ground.errors import CatalogMissing, ExitCode, ImageError, SettingError

__all__ = ["find_file", "task"]

EXAMPLE = """cynosure task '{"task": "astrometer", "filename": "SAMPLEFILE.fits.fz"}'"""

SCRATCH = "/local/scratch"
TASKS = ("astrometer", "solve")

# Keys of the object beside task and filename: the option of `solve` that each stands for, its type.
KEYS: dict[str, tuple[str, Any]] = {
    "radius": ("radius", (float, str)),
    "scale": ("scale", (float, str)),
    "blind": ("blind", bool),
    "index": ("index", str),
    "epoch": ("epoch", (float, str)),
    "instrument": ("instrument", str),
    "form": ("form", str),
    "order": ("order", (int, str)),
    "chips": ("chips", str),
    "header_only": ("header_only", bool),
    "in_place": ("in_place", bool),
}
OTHERS = ("task", "filename", "refcat", "out", "center", "settings", "overwrite")


@click.command(cls=Command, example=EXAMPLE)
@click.argument("text", metavar="JSON")
@shared
def task(shell: Shell, text: str) -> int:
    """Do what a JSON object asks for.

    For job queues and containers. "filename" is one file or a list; it is looked for in this
    folder and in the scratch folder ($CYNOSURE_SCRATCH, /local/scratch). "refcat" may be left
    to $CYNOSURE_REFCAT, else it is looked for as "refcat" in the same folders. Other keys are
    the options of solve: center, radius, scale, blind, index, epoch, instrument, form, order,
    chips, header_only, in_place, out, overwrite, and settings as {section: {key: value}}. JSON
    may also be a file, or - for standard input. The results are JSON lines on standard output.
    """
    content = _content(text)
    images = tuple(str(find_file(name)) for name in _file_names(content))
    options = _options(content)
    shell.json = True
    shell.overwrite = shell.overwrite or bool(content.get("overwrite", False))
    if shell.out is None:
        shell.out = str(content.get("out") or Path(images[0]).parent / "cynosure_out")
    shell.changes = content.get("settings", {})
    shell.settings()  # so that a mistake in them shows before anything is done
    if shell.dry_run:
        shell.emit({"task": content["task"], "images": images, "out": shell.out, **options})
        return int(ExitCode.OK)
    return solve_images(shell, images, options)


def _content(text: str) -> dict[str, Any]:
    """Read the object: the text itself, a file of it, or standard input."""
    if text == "-":
        text = sys.stdin.read()
    elif not text.lstrip().startswith("{") and Path(text).is_file():
        text = Path(text).read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingError(
            "the task is not JSON ({reason})", reason=str(error), hint=f"For instance {EXAMPLE}"
        ) from error
    if not isinstance(content, dict) or content.get("task") not in TASKS:
        raise SettingError(
            'the task must be an object with "task": "astrometer" and "filename"',
            hint=f"For instance {EXAMPLE}",
        )
    unknown = sorted(set(content) - set(KEYS) - set(OTHERS))
    if unknown:
        raise SettingError(
            "the task has no key {unknown}", unknown=", ".join(unknown),
            hint=f"Known: {', '.join([*OTHERS, *KEYS])}.",
        )
    return content


def _file_names(content: dict[str, Any]) -> list[str]:
    names = content.get("filename")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise SettingError('the task names no file ("filename")', hint=f"For instance {EXAMPLE}")
    return names


def folders() -> list[Path]:
    """Return where files are looked for: this folder, then the scratch folder."""
    return [Path(), Path(os.environ.get("CYNOSURE_SCRATCH", SCRATCH))]


def find_file(name: str) -> Path:
    """Return the path of a file of a task.

    Raises
    ------
    ImageError
        If it is in none of the folders.
    """
    for folder in folders():
        if (folder / name).exists():
            return folder / name
    places = " or ".join(str(folder.resolve()) for folder in folders())
    raise ImageError(
        image=name, reason=f"not in {places}",
        hint=f"Mount the folder of the file (docker run -v {SCRATCH}:{SCRATCH} …).",
    )


def _options(content: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `solve`, those that are not given as `solve` has them."""
    options: dict[str, Any] = {
        "radius": None, "scale": None, "blind": False, "index": None, "epoch": None,
        "instrument": None, "form": "tpv", "order": "auto", "chips": "together",
        "header_only": False, "in_place": False,
    }
    for key, (name, kind) in KEYS.items():
        if content.get(key) is None:
            continue
        value = content[key]
        wrong = isinstance(value, bool) and kind is not bool
        if kind == (float, str) and isinstance(value, int) and not wrong:
            value = float(value)
        if wrong or not isinstance(value, kind):
            raise SettingError("the task's {key} is {value!r}", key=key, value=value)
        options[name] = value
    options["center"] = _center(content.get("center"))
    to_numbers(options)
    options["refcat"] = _refcat(content.get("refcat"))
    return options


def _center(value: Any) -> tuple[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise SettingError("the task's center is {value!r}", value=value,
                           hint='Give it as "center": [150.55, 2.236].')
    return str(value[0]), str(value[1])


def _refcat(given: str | None) -> str:
    if given is not None:
        found = next((str(f / given) for f in folders() if (f / given).exists()), None)
        return found or given
    default = os.environ.get("CYNOSURE_REFCAT")
    places = [default] if default else [str(f / "refcat") for f in folders()]
    for place in places:
        if default or Path(place).exists():
            return place
    raise CatalogMissing(
        catalog="refcat", reason="the task names none, and it is in none of the folders",
        hint='Add "refcat": PATH, or set CYNOSURE_REFCAT.',
    )
