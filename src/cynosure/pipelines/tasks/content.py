"""Checksums of content: of values, arrays, functions, and of what a task depends on.

Two values have the same checksum if and only if they are the same for a task that receives them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
from collections.abc import Callable
from datetime import date, time, timedelta
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np

from cynosure._version import __version__
from cynosure.ground.errors import SettingError
from cynosure.ground.settings import Settings

__all__ = ["digest", "identity"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None), date, time, timedelta, PurePath)


def digest(value: Any) -> str:
    """Return the SHA-256 of a value in hexadecimal.

    Parameters
    ----------
    value : Any
        Numbers, texts, paths, dates, enumerations, arrays, records (dataclasses), settings,
        functions; lists, tuples, sets and dictionaries (in any order) of these.

    Raises
    ------
    SettingError
        If there is anything else in it.

    Examples
    --------
    >>> digest({"a": 1, "b": [2.0]}) == digest({"b": [2.0], "a": 1})
    True
    >>> digest(1) == digest(1.0)
    False
    """
    content = hashlib.sha256()
    _feed(content.update, value)
    return content.hexdigest()


def identity(function: Callable[..., Any], version: str = "") -> str:
    """Return the checksum of a function: its name, its code, its version and cynosure's.

    The code of functions that it calls is not seen, nor what a closure holds.
    """
    return digest([__version__, version, function])


def _feed(update: Callable[[Any], None], value: Any) -> None:
    if type(value) in _PLAIN or isinstance(value, (PurePath, Enum)):
        _tag(update, type(value).__name__, repr(value))
    elif isinstance(value, np.generic) or type(value) is np.ndarray:
        _feed_array(update, np.asarray(value))
    elif isinstance(value, (list, tuple)):
        _tag(update, type(value).__name__, str(len(value)))
        for item in value:
            _feed(update, item)
    elif isinstance(value, dict):
        _tag(update, "dict", str(len(value)))
        for key, item in sorted((digest(key), item) for key, item in value.items()):
            _tag(update, "key", key)
            _feed(update, item)
    elif isinstance(value, (set, frozenset)):
        _tag(update, "set", " ".join(sorted(map(digest, value))))
    elif isinstance(value, Settings):
        _tag(update, "settings", "")
        _feed(update, value.resolved())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        _tag(update, "record", f"{kind.__module__}.{kind.__qualname__}")
        _feed(update, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif callable(value):
        _feed_function(update, value)
    else:
        raise SettingError(
            "the content of {kind} cannot be told, so that a task that depends on it cannot be "
            "resumed", kind=f"{type(value).__module__}.{type(value).__qualname__}",
            hint="Pass arrays, numbers, texts, dataclasses, or lists and dictionaries of these.",
        )


def _tag(update: Callable[[Any], None], kind: str, text: str) -> None:
    """Add a text with its kind and length, so that neighbours cannot run into each other."""
    content = text.encode("utf-8", "surrogatepass")
    update(f"{kind}:{len(content)}:".encode())
    update(content)


def _feed_array(update: Callable[[Any], None], array: np.ndarray[Any, Any]) -> None:
    _tag(update, "array", f"{np.dtype(array.dtype).descr} {array.shape}")
    if array.dtype.hasobject:
        for item in array.ravel().tolist():
            _feed(update, item)
    elif array.size:
        update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _feed_function(update: Callable[[Any], None], value: Any) -> None:
    if isinstance(value, functools.partial):
        _tag(update, "partial", "")
        _feed(update, [value.func, value.args, value.keywords])
        return
    inner = getattr(value, "__wrapped__", getattr(value, "py_func", value))
    method = getattr(inner, "__func__", inner)
    name = getattr(method, "__qualname__", "")
    if not name:
        kind = type(value)
        _tag(update, "callable", f"{kind.__module__}.{kind.__qualname__}")
        return
    _tag(update, "function", f"{getattr(method, '__module__', '')}.{name}")
    code = getattr(method, "__code__", None)
    if code is not None:
        _feed_code(update, code)
        for name, value in [
            *enumerate(method.__defaults__ or ()), *(method.__kwdefaults__ or {}).items()
        ]:
            _tag(update, "default", str(name))
            try:
                _feed(update, value)
            except SettingError:  # something that stands for "not given"
                _tag(update, "default", type(value).__qualname__)


def _feed_code(update: Callable[[Any], None], code: types.CodeType) -> None:
    """Add what a function does; file and line numbers do not count."""
    _tag(update, "code", code.co_code.hex())
    _tag(update, "names", " ".join(code.co_names))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _feed_code(update, constant)
        else:
            _tag(update, "constant", repr(constant))
