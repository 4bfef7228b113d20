"""Write the pages of docs/reference/ from the code: commands, settings, records, tables, errors.

Run it with ``make docs``; ``--check`` only says whether the pages are current.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path

import click

from cynosure.data import tables
from cynosure.data.mask import mask_dictionary
from cynosure.faces.cli import VERBS, cynosure
from cynosure.faces.commands.config import toml_value
from cynosure.faces.shell import EXIT_TEXTS
from cynosure.ground import errors
from cynosure.ground.settings import parameter_texts
from cynosure.pipelines.run import default_settings
from cynosure.pixels.aperture import aperture_schema
from cynosure.solutions.solution import SCHEMA, Solution

FOLDER = Path(__file__).parent
HELP_WIDTH = 88
MADE = "<!-- made by docs/reference/generate.py; `make docs` writes it anew -->\n\n"


def plain(text: str) -> str:
    """Return the text of a docstring as Markdown, safe in a table."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    return text.replace("|", "\\|")


def commands(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    """Return a command and all below it, with the words that call each."""
    found = [(path, command)]
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                found += commands(inner, f"{path} {name}")
    return found


def help_text(command: click.Command, path: str) -> str:
    """Return a command's ``--help`` at a fixed width."""
    context = click.Context(
        command, info_name=path, terminal_width=HELP_WIDTH, max_content_width=HELP_WIDTH,
        help_option_names=["-h", "--help"],
    )
    return command.get_help(context)


def cli_page() -> str:
    """Return the page of the commands."""
    parts = [MADE, "# Commands\n"]
    for path, command in commands(cynosure, "cynosure"):
        level = "##" if path.count(" ") < 2 else "###"
        parts.append(f"\n{level} `{path}`\n\n```\n{help_text(command, path)}\n```\n")
    return "".join(parts)


def settings_page() -> str:
    """Return the page of the settings."""
    settings = default_settings()
    parts = [
        MADE,
        "# Settings\n\nA section is the keyword arguments of one function. Change a setting with "
        "`--set section.key=value`,\nor in a TOML file (`--config FILE`, `cynosure.toml` in the "
        "folder you work in, `~/.config/cynosure/config.toml`).\n`cynosure config show` prints "
        "what is in force and where it came from.\n",
    ]
    for section in settings:
        parts.append(f"\n## `[{section}]`\n\n| setting | default | unit | range | meaning |\n")
        parts.append("|---|---|---|---|---|\n")
        for name, s in settings.known(section).items():
            limits = f"{s.range.low:g} … {s.range.high:g}" if s.range is not None else ""
            value = toml_value(s.default)
            parts.append(f"| `{name}` | `{value}` | {s.unit} | {limits} | {plain(s.text)} |\n")
    return "".join(parts)


def json_type(annotation: str) -> dict[str, object]:
    """Return the JSON schema of a field of a dataclass."""
    if annotation.startswith("tuple[dict"):
        return {"type": "array", "items": {"type": "object"}}
    if annotation.startswith("tuple[str"):
        return {"type": "array", "items": {"type": "string"}}
    if annotation.startswith("dict"):
        return {"type": "object"}
    kinds = {"str": "string", "int": "integer"}
    return {"type": kinds[annotation]} if annotation in kinds else {"type": ["number", "null"]}


ENUMS = {
    "status": ["solved", "compromised", "failed"], "quality": [1, 2, 3, 4, 5, -1],
    "parity": [1, -1, 0],
}


def solution_schema() -> dict[str, object]:
    """Return the JSON schema of ``NAME.solution.json``."""
    meanings = parameter_texts(Solution.__doc__ or "", "Attributes")
    properties: dict[str, object] = {"schema": {"const": SCHEMA}}
    for field in dataclasses.fields(Solution):
        properties[field.name] = {
            **json_type(str(field.type)),
            **({"enum": ENUMS[field.name]} if field.name in ENUMS else {}),
            "description": plain(meanings[field.name]),
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA,
        "type": "object", "properties": properties, "required": list(properties),
    }


def solution_page() -> str:
    """Return the page of the record of a solution."""
    schema = solution_schema()
    rows = []
    for name, content in schema["properties"].items():  # type: ignore[attr-defined]
        kind = content.get("type", "string")
        kind = " or ".join(kind) if isinstance(kind, list) else kind
        rows.append(f"| `{name}` | {kind} | {content.get('description', f'`{SCHEMA}`')} |\n")
    return "".join([
        MADE,
        f"# NAME.solution.json\n\nThe record of one image, schema `{SCHEMA}`. Fields may be added "
        "under this name of the schema;\nnone is renamed or changes its meaning. A number that is "
        "not known is `null`.\n\n| field | type | meaning |\n|---|---|---|\n", *rows,
        "\n## As JSON schema\n\n```json\n", json.dumps(schema, indent=1, ensure_ascii=False),
        "\n```\n",
    ])


def tables_page() -> str:
    """Return the page of the tables and flags."""
    parts = [
        MADE,
        "# Tables\n\nParquet, with the unit and the meaning of each column in its metadata. Pixels "
        "are 0-based, the centre of the\nfirst pixel is (0, 0). An empty table has no rows and all "
        "columns; a number that is not known is NaN.\n",
    ]
    schemas = {v.name: v for v in vars(tables).values() if isinstance(v, tables.Schema)}
    schemas["cynosure.apertures/1"] = aperture_schema(1)
    for name in sorted(schemas):
        parts.append(f"\n## `{name}`\n\n| column | type | unit | meaning |\n|---|---|---|---|\n")
        for c in schemas[name].columns:
            parts.append(f"| `{c.name}` | {c.dtype} | {c.unit} | {plain(c.meaning)} |\n")
    parts.append("\n## Flags of a source\n\n| bit | name |\n|---|---|\n")
    parts += [f"| {flag.value} | `{flag.name}` |\n" for flag in tables.SourceFlag]
    parts.append("\n## Mask bits\n\n| bit | name | meaning | spoils |\n|---|---|---|---|\n")
    parts += [
        f"| {b.bit} | `{b.name}` | {plain(b.text)} | {', '.join(b.spoils)} |\n"
        for b in mask_dictionary().bits
    ]
    return "".join(parts)


def errors_page() -> str:
    """Return the page of the errors and exit codes."""
    parts = [MADE, "# Errors and exit codes\n\n| code | meaning |\n|---|---|\n"]
    parts += [f"| {int(code)} | {text} |\n" for code, text in EXIT_TEXTS.items()]
    parts.append(
        "\nWith `--ini` the command ends with ASTAP's own codes: 0 solved, 1 no solution, 2 not "
        "enough stars, 16 image\nunreadable, 32 no star database, 33 star database unreadable.\n\n"
        "In Python every error is a `cynosure.CynosureError` with the facts as attributes, a "
        "`hint` and an `exit_code`.\n\n| error | code | when | hint |\n|---|---|---|---|\n"
    )
    for name in sorted(errors.__all__):
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, errors.CynosureError):
            first, code = plain((kind.__doc__ or "").splitlines()[0]), int(kind.exit_code)
            parts.append(f"| `{name}` | {code} | {first} | {plain(kind.hint)} |\n")
    return "".join(parts)


PAGES = {
    "cli.md": cli_page,
    "settings.md": settings_page,
    "solution-json.md": solution_page,
    "tables.md": tables_page,
    "errors.md": errors_page,
}


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name, make in PAGES.items():
        path, text = FOLDER / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{'stale' if check else 'written'}: {', '.join(stale) or 'none'}\n")
    return int(check and bool(stale))


if __name__ == "__main__":
    assert set(VERBS) == {p.split()[1] for p, _ in commands(cynosure, "cynosure") if " " in p}
    sys.exit(main())
