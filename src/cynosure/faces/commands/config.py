"""``cynosure config``: show, check and explain settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cynosure.faces.shell import Command, Shell, shared, user_files
from cynosure.ground.errors import ExitCode, SettingError

if TYPE_CHECKING:
    from cynosure.ground.settings import Setting

__all__ = ["config"]


@click.group()
def config() -> None:
    """Show, check and explain settings."""


@config.command(cls=Command, example="cynosure config show fit")
@click.argument("sections", nargs=-1, metavar="[SECTION…]")
@shared
def show(shell: Shell, sections: tuple[str, ...]) -> int:
    """Print every setting with its value and where it came from; the output is TOML."""
    settings = shell.settings()
    for section in sections or tuple(settings):
        known = settings.known(section)
        values = settings[section]
        shell.say(f"[{section}]")
        for name, setting in known.items():
            value = values.get(name, setting.default)
            origin = settings.origin(section, name)
            unit = f"{setting.unit}, " if setting.unit else ""
            text = f"{name} = {toml_value(value)}"
            shell.say(f"{text:<36} # {unit}{origin}")
            shell.emit({"section": section, "name": name, "value": value, "origin": origin})
        shell.say()
    return int(ExitCode.OK)


@config.command(cls=Command, example="cynosure config check mine.toml")
@click.argument("files", nargs=-1, metavar="[FILE…]")
@shared
def check(shell: Shell, files: tuple[str, ...]) -> int:
    """Check settings files; without one, those of the user and of this folder."""
    settings = shell.settings()
    for path in files or tuple(user_files()):
        settings = settings.with_file(path)
        shell.say(f"{path}: good")
        shell.emit({"file": path, "good": True})
    changed = settings.changed()
    count = sum(len(values) for values in changed.values())
    shell.say(f"{count} settings differ from the built-in ones")
    return int(ExitCode.OK)


@config.command(cls=Command, example="cynosure config explain quality.min_log_odds")
@click.argument("names", nargs=-1, required=True, metavar="SECTION[.KEY]…")
@shared
def explain(shell: Shell, names: tuple[str, ...]) -> int:
    """Say what a setting means, its unit, its range and its default."""
    settings = shell.settings()
    for name in names:
        section, _, key = name.partition(".")
        known = settings.known(section)
        if key and key not in known:
            raise SettingError(
                "no setting {key!r} in [{section}]", section=section, key=key,
                hint=f"Known: {', '.join(sorted(known))}.",
            )
        for setting in [known[key]] if key else known.values():
            shell.say(explained(setting))
            shell.emit({
                "section": section, "name": setting.name, "default": setting.default,
                "unit": setting.unit, "text": setting.text,
                "range": [setting.range.low, setting.range.high] if setting.range else None,
            })
    return int(ExitCode.OK)


def explained(setting: Setting) -> str:
    """Return a setting's lines: name, default, unit and range, meaning."""
    facts = [f"default {toml_value(setting.default)}"]
    if setting.unit:
        facts.append(f"unit {setting.unit}")
    if setting.range is not None:
        facts.append(f"{setting.range.low:g} … {setting.range.high:g}")
    return f"{setting.section}.{setting.name}   ({'; '.join(facts)})\n    {setting.text}"


def toml_value(value: object) -> str:
    """Return a value as TOML writes it.

    Examples
    --------
    >>> toml_value(True), toml_value("a"), toml_value((1, 2.5)), toml_value(None)
    ('true', '"a"', '[1, 2.5]', '"none"')
    """
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return repr(value)
