"""Settings: a TOML section is the keyword arguments of one function.

A default is defined in the function's signature only. Its unit and its range are in the
annotation, ``radius_px: Annotated[float, Unit("px"), Range(0.5, 50)] = 3.0``, and its meaning in
the numpydoc docstring; ``cynosure config show`` and ``explain`` print these.

:class:`Settings` applies files and ``section.key=value`` texts to those defaults, records the
origin of each value, and refuses an unknown key with the nearest known one.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cynosure.ground.errors import SettingError

__all__ = ["Choice", "Range", "Setting", "Settings", "Unit", "keyword_settings", "unknown_name"]

BUILT_IN = "built-in"


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of a setting, as it is printed."""

    name: str


@dataclass(frozen=True, slots=True)
class Range:
    """The closed range in which a setting makes sense."""

    low: float
    high: float


Choice = Literal  # a setting with a few words to choose from is annotated Literal["a", "b"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One keyword argument, as read from a signature and its docstring."""

    section: str
    name: str
    default: Any
    kind: Any
    unit: str
    range: Range | None
    text: str

    def check(self, value: Any, origin: str) -> Any:
        """Return `value` in the setting's type, or raise :class:`SettingError`."""
        value = _coerce(self, value, origin)
        if self.range is not None and value is not None:
            for number in value if isinstance(value, tuple) else (value,):
                if not self.range.low <= number <= self.range.high:
                    raise SettingError(
                        "{section}.{key} = {value}: outside {low:g} … {high:g} {unit} "
                        "(from {origin})",
                        section=self.section, key=self.name, value=number, low=self.range.low,
                        high=self.range.high, unit=self.unit, origin=origin,
                        hint=f"The default is {self.default}.",
                    )
        return value


def keyword_settings(section: str, function: Callable[..., Any]) -> dict[str, Setting]:
    """Read the settings of a function: its keyword-only arguments that have a default."""
    hints = get_type_hints(function, include_extras=True)
    texts = parameter_texts(inspect.getdoc(function) or "")
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            continue
        kind, extras = _strip(hints.get(name, Any))
        if not _settable(kind):
            continue
        unit = next((e.name for e in extras if isinstance(e, Unit)), "")
        limits = next((e for e in extras if isinstance(e, Range)), None)
        found[name] = Setting(
            section, name, parameter.default, kind, unit, limits, texts.get(name, "")
        )
    return found


class Settings(Mapping[str, dict[str, Any]]):
    """The settings of one run, section by section, with the origin of each.

    Parameters
    ----------
    sections : mapping
        Section name to its function, or to the path ``"package.module:function"``.

    Examples
    --------
    >>> def smooth(image, *, width_px: Annotated[float, Unit("px")] = 2.0): ...
    >>> settings = Settings({"smooth": smooth}).updated({"smooth": {"width_px": 3}}, "demo")
    >>> settings["smooth"], settings.origin("smooth", "width_px")
    ({'width_px': 3.0}, 'demo')
    """

    def __init__(
        self,
        sections: Mapping[str, str | Callable[..., Any]],
        values: Mapping[str, Mapping[str, tuple[Any, str]]] | None = None,
    ):
        self._sections = dict(sections)
        self._values = {k: dict(v) for k, v in (values or {}).items()}
        self._known: dict[str, dict[str, Setting]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._sections)

    def __len__(self) -> int:
        return len(self._sections)

    def known(self, section: str) -> dict[str, Setting]:
        """All settings of a section."""
        if section not in self._sections:
            raise unknown_name("section", section, list(self._sections), "the command")
        if section not in self._known:
            function = self._sections[section]
            if isinstance(function, str):
                module, name = function.split(":")
                function = getattr(importlib.import_module(module), name)
            self._known[section] = keyword_settings(section, function)
        return self._known[section]

    def __getitem__(self, section: str) -> dict[str, Any]:
        """Return the values that differ from the signature: ``function(**settings["section"])``."""
        if section not in self._sections:
            raise unknown_name("section", section, list(self._sections), "the command")
        return {k: v for k, (v, _) in self._values.get(section, {}).items()}

    def resolved(self) -> dict[str, dict[str, Any]]:
        """Every setting of every section with its value, JSON-safe: what a solution records."""
        return {
            s: {k: self[s].get(k, setting.default) for k, setting in self.known(s).items()}
            for s in self._sections
        }

    def origin(self, section: str, name: str) -> str:
        """Return the origin of a value."""
        return self._values.get(section, {}).get(name, (None, BUILT_IN))[1]

    def changed(self) -> dict[str, dict[str, Any]]:
        """Return only the values that were set, JSON-safe."""
        return {s: self[s] for s, values in self._values.items() if values}

    def updated(self, changes: Mapping[str, Mapping[str, Any]], origin: str) -> Settings:
        """Return new settings with `changes` applied to these."""
        values = {k: dict(v) for k, v in self._values.items()}
        for section, pairs in changes.items():
            if not isinstance(pairs, Mapping):
                raise SettingError(
                    "{origin}: {section!r} is a value, a [section] is expected",
                    origin=origin, section=section,
                    hint=f"Known sections: {', '.join(self._sections)}.",
                )
            known = self._named(section, origin)
            for key, value in pairs.items():
                if key not in known:
                    raise unknown_name(f"setting in [{section}]", key, list(known), origin)
                values.setdefault(section, {})[key] = (known[key].check(value, origin), origin)
        return Settings(self._sections, values)

    def over(self, defaults: Mapping[str, Mapping[str, Any]], origin: str) -> Settings:
        """Return new settings with these applied to `defaults`: values that were set are kept."""
        under = Settings(self._sections).updated(defaults, origin)
        values = {k: dict(v) for k, v in under._values.items()}
        for section, pairs in self._values.items():
            values.setdefault(section, {}).update(pairs)
        return Settings(self._sections, values)

    def _named(self, section: str, origin: str) -> dict[str, Setting]:
        if section not in self._sections:
            raise unknown_name("section", section, list(self._sections), origin)
        return self.known(section)

    def with_file(self, path: str | Path) -> Settings:
        """Return new settings with a TOML file applied to these."""
        return self.updated(read_toml(path), str(path))

    def with_texts(self, texts: tuple[str, ...] | list[str]) -> Settings:
        """Return new settings with ``section.key=value`` texts applied; values are TOML."""
        new = self
        for text in texts:
            section, key, value = split_text(text)
            new = new.updated({section: {key: value}}, f"--set {text}")
        return new


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file; an invalid one raises :class:`SettingError`."""
    try:
        with Path(path).open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise SettingError(
            "{path}: {reason}", path=str(path), reason=error.strerror,
            hint="`cynosure config show` prints a complete file.",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(
            "{path}: not TOML ({reason})", path=str(path), reason=str(error)
        ) from error


def split_text(text: str) -> tuple[str, str, Any]:
    """Split ``section.key=value``; the value is TOML, a bare word is a string.

    Examples
    --------
    >>> split_text("fit.order = 3")
    ('fit', 'order', 3)
    """
    match = re.fullmatch(r"\s*(\w+)\.(\w+)\s*=\s*(.*?)\s*", text)
    if match is None:
        raise SettingError(
            "--set {text}: not of the form section.key=value", text=text,
            hint="For instance --set fit.clipping_threshold=4.",
        )
    section, key, value = match.groups()
    return section, key, _toml_value(value)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string


def unknown_name(what: str, name: str, known: list[str], origin: str) -> SettingError:
    """Return the error of a name that is not known, with the nearest known one as its hint."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(known))}."
    return SettingError(
        "{origin}: no {what} {name!r}", what=what, name=name, origin=origin, hint=hint
    )


def _strip(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the type without its annotations, and the annotations."""
    if get_origin(kind) is Annotated:
        inner, *given = get_args(kind)
        bare, more = _strip(inner)
        return bare, (*given, *more)
    if get_origin(kind) is Union or type(kind).__name__ == "UnionType":
        parts = [_strip(part) for part in get_args(kind)]
        extras = tuple(extra for _, more in parts for extra in more)
        return Union[tuple(bare for bare, _ in parts)], extras  # noqa: UP007 - built at run time
    return kind, ()


SCALARS = (bool, int, float, str, type(None))


def _settable(kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Union:
        return all(_settable(k) for k in get_args(kind))
    if origin is tuple:
        return all(k is Ellipsis or _settable(k) for k in get_args(kind))
    return origin is Literal or kind in SCALARS


def _coerce(setting: Setting, value: Any, origin: str) -> Any:
    options = get_args(setting.kind) if get_origin(setting.kind) is Union else (setting.kind,)
    for kind in options:
        ok, result = _try(kind, value)
        if ok:
            return result
    raise SettingError(
        "{section}.{key} = {value!r}: {expected} expected (from {origin})",
        section=setting.section, key=setting.name, value=value,
        expected=" or ".join(_kind_name(k) for k in options), origin=origin,
        hint=f"The default is {setting.default!r}.",
    )


def _try(kind: Any, value: Any) -> tuple[bool, Any]:
    if get_origin(kind) is Literal:
        return value in get_args(kind), value
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            return False, None
        parts = get_args(kind)
        if len(parts) == 2 and parts[1] is Ellipsis:
            parts = (parts[0],) * len(value)
        if len(parts) != len(value):
            return False, None
        tried = [_try(k, v) for k, v in zip(parts, value)]
        return all(ok for ok, _ in tried), tuple(v for _, v in tried)
    if kind is type(None):
        return value is None or value in ("none", "auto"), None
    if kind is float:
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        return ok, float(value) if ok else None
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    return isinstance(value, kind), value


def _kind_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    return {float: "a number", int: "an integer", str: "a text", bool: "true or false"}.get(
        kind, "none" if kind is type(None) else str(kind)
    )


def parameter_texts(doc: str, *headings: str) -> dict[str, str]:
    """Return the texts of the names under some headings of a numpydoc docstring.

    Parameters
    ----------
    doc : str
        The docstring.
    *headings : str
        By default ``Parameters`` and ``Other Parameters``.

    Returns
    -------
    dict of str to str
        The text of each name, its lines joined; names that share an entry share the text.
    """
    headings = headings or ("Parameters", "Other Parameters")
    texts: dict[str, str] = {}
    names: list[str] = []
    inside = False
    lines = inspect.cleandoc(doc).splitlines()
    for line, following in zip(lines, [*lines[1:], ""]):
        underline = following.strip()
        if underline and set(underline) == {"-"} and line.strip():
            inside = line.strip() in headings
            names = []
        elif inside and line.strip() and set(line.strip()) != {"-"}:
            if not line.startswith(" "):
                names = [name.strip() for name in line.split(":")[0].split(",")]
            else:
                for name in names:
                    texts[name] = (texts.get(name, "") + " " + line.strip()).strip()
    return texts
