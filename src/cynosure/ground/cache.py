"""Compiled kernels, and the cache of their machine code on disk.

:func:`compiled` marks a function for numba. Its machine code is stored under a name that is a
digest of everything it depends on: the byte code and constants of the function and of every kernel
that it calls, directly or indirectly and in any module, the types of its arguments, the processor,
and the versions of numba, llvmlite and Python. A change of any of these gives another name, so that
stale code is never loaded. (numba's own cache compares the date of one source file, and does not
see a change of a kernel that is imported from another.)

The cache is the first of these folders that is writable:

1. ``$NUMBA_CACHE_DIR``, where it is set;
2. ``__pycache__/kernels`` of the package;
3. the user's folder of caches (``$XDG_CACHE_HOME/cynosure``, ``~/.cache/cynosure``, on macOS
   ``~/Library/Caches/cynosure``);
4. a temporary folder that belongs to the user; :func:`describe` then adds a note.

Code is also read from the package's folder if that is not writable: it may have been compiled at
installation.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import secrets
import stat
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["compiled", "content", "describe", "folder", "mark", "marked", "sources"]

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).parent.parent
SUFFIX = ".kernel"
DIGEST_BYTES = 16  # 128 bits: no two kernels share a name

# LLVM's optimisation level. Level 3 takes a fifth longer to compile (it makes a copy of a loop for
# each flag that the loop tests) and made no kernel faster.
LEVEL = 2


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function when it is first called, or load its compiled code from the cache.

    Parameters
    ----------
    function : callable
        A function that numba can compile. It may use constants of its module, NumPy, and other
        compiled functions.
    **options
        Options of :func:`numba.njit`. Kernels release the interpreter's lock, and divide by zero as
        NumPy does.

    Returns
    -------
    kernel : numba dispatcher
        Literal arguments (``True``, ``0``) have the type of any other value, so that a call with a
        constant needs no separate machine code.

    Examples
    --------
    >>> @compiled
    ... def twice(x):
    ...     return 2 * x
    >>> twice(21)
    42
    """
    if function is None:
        return functools.partial(compiled, **options)
    return _dispatcher_class()(function, options)


@functools.cache
def _dispatcher_class() -> type:
    from numba.core.registry import CPUDispatcher
    from numba.core.sigutils import normalize_signature
    from numba.core.types import unliteral

    class Kernel(CPUDispatcher):
        """A numba dispatcher with one signature for literal and other arguments."""

        def __init__(self, py_func: Any, options: dict[str, Any]) -> None:
            defaults = {"nopython": True, "nogil": True, "error_model": "numpy"}
            defaults["no_cfunc_wrapper"] = True
            super().__init__(py_func, targetoptions={**defaults, **options})
            self._cache = _store_class()(self)

        def compile(self, sig: Any) -> Any:
            """Compile for a signature, or load the code from the cache."""
            arguments, result = normalize_signature(sig)
            arguments = tuple(unliteral(a) for a in arguments)
            with _level():
                return super().compile(arguments if result is None else result(*arguments))

    return Kernel


@contextlib.contextmanager
def _level() -> Iterator[None]:
    """Compile at `LEVEL`, unless the user has set another."""
    import numba
    from numba.core.compiler_lock import global_compiler_lock

    config: Any = numba.config
    if "NUMBA_OPT" in os.environ:
        yield
        return
    with global_compiler_lock:
        before = config.OPT
        config.OPT = type(before)(LEVEL)
        try:
            yield
        finally:
            config.OPT = before


# ------------------------------------------------------------------------------------ the content
def content(kernel: Any) -> str:
    """Return a digest of a kernel and of every kernel that it calls.

    It does not depend on comments, docstrings and line numbers.

    Raises
    ------
    TypeError
        If a kernel uses a global value that cannot be represented as text.
    """
    seen: dict[int, tuple[str, bytes]] = {}
    waiting = [kernel]
    while waiting:
        function = getattr(waiting[-1], "py_func", waiting[-1])
        options = getattr(waiting.pop(), "targetoptions", {})
        if id(function) in seen:
            continue
        own, callees = _own_content(function)
        text = repr(sorted((k, _spell_value(v)) for k, v in options.items()))
        name = f"{function.__module__}.{function.__qualname__}"
        seen[id(function)] = name, own + text.encode()
        waiting.extend(callees)
    return _digest(repr(sorted(seen.values())).encode())


def _own_content(function: types.FunctionType) -> tuple[bytes, list[Any]]:
    """Return the content of a function itself, and the functions that it uses."""
    parts, callees = [], []
    names: set[str] = set()
    for code in _codes(function.__code__):
        constants = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
        if constants and constants[0] == function.__doc__:
            constants = constants[1:]
        parts.append(repr((
            code.co_code.hex(), code.co_names, code.co_varnames, code.co_argcount,
            [_spell_value(c) for c in constants],
        )))
        names.update(code.co_names)
    outside = {name: function.__globals__[name] for name in names if name in function.__globals__}
    cells = zip(function.__code__.co_freevars, function.__closure__ or ())
    outside.update((name, cell.cell_contents) for name, cell in cells)
    for name, value in sorted(outside.items()):
        if hasattr(value, "py_func") or isinstance(value, types.FunctionType):
            callees.append(value)
            parts.append(f"{name}()")
        else:
            parts.append(f"{name}={_spell_value(value)}")
    parts.append(repr([_spell_value(v) for v in function.__defaults__ or ()]))
    return "\n".join(parts).encode(), callees


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _spell_value(value: Any) -> str:
    """Return a text of a value; equal texts mean equal values in any process."""
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(_spell_value, value)))}}}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_spell_value, value))})"
    if value is None or value is Ellipsis or isinstance(value, (bool, int, float, complex, str)):
        return repr(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}{getattr(value, '_fields', '')}"
    if isinstance(value, types.ModuleType) and not value.__name__.startswith("cynosure"):
        return value.__name__
    if isinstance(value, types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return f"{value.dtype}{value.shape}{value.tobytes().hex()}"
    raise TypeError(f"a kernel uses {value!r}, whose content is not known: import names from it")


def _spell_type(kind: Any) -> str:
    """Return a text of a numba type; unlike its own it has the names of a tuple's fields."""
    parts = getattr(kind, "types", None)
    if parts is None:
        return str(kind)
    record = getattr(kind, "instance_class", None)
    head = "" if record is None else f"{record.__module__}.{record.__qualname__}{record._fields}"
    return f"{head}({', '.join(map(_spell_type, parts))})"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


@functools.cache
def _versions() -> tuple[Any, ...]:
    import llvmlite
    import numba

    level = os.environ.get("NUMBA_OPT", LEVEL)
    python = (sys.implementation.name, *sys.version_info[:3])
    return numba.__version__, llvmlite.__version__, python, level


# ------------------------------------------------------------------------------------- the store
@functools.cache
def _store_class() -> type:
    from numba.core import serialize
    from numba.core.caching import _Cache
    from numba.core.compiler import CompileResult

    class Store(_Cache):
        """The machine code of one kernel on disk: a file for each signature and content."""

        def __init__(self, kernel: Any) -> None:
            self._kernel = kernel

        @property
        def cache_path(self) -> str:
            return str(folder())

        def enable(self) -> None:
            """Do nothing: the cache is always enabled."""

        disable = flush = enable

        def _name(self, sig: Any, codegen: Any) -> str:
            function = self._kernel.py_func
            arguments = sig if isinstance(sig, tuple) else sig.args
            facts = (
                content(self._kernel), [_spell_type(a) for a in arguments],
                codegen.magic_tuple(), _versions(),
            )
            module = function.__module__.rpartition(".")[2]
            name = f"{module}.{function.__qualname__}".replace("<", "").replace(">", "")
            return f"{name}-{_digest(repr(facts).encode())}{SUFFIX}"

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            target_context.refresh()
            data = _read(self._name(sig, target_context.codegen()))
            if data is None:
                return None
            return CompileResult._rebuild(target_context, *pickle.loads(data))

        def save_overload(self, sig: Any, data: Any) -> None:
            if data.library.has_dynamic_globals or data.lifted:
                return  # holds addresses of this process
            _write(self._name(sig, data.codegen), serialize.dumps(data._reduce()))

    return Store


def _read(name: str) -> bytes | None:
    """Return the data stored under a name, or None if they are missing or damaged."""
    for place in _readable():
        with contextlib.suppress(OSError):
            data = (place / name).read_bytes()
            if data[:DIGEST_BYTES].hex() == _digest(data[DIGEST_BYTES:]):
                return data[DIGEST_BYTES:]
    return None


def _write(name: str, data: bytes) -> None:
    """Store data under a name, atomically; a full disk only logs a warning."""
    path = folder() / name
    try:
        temporary = path.with_name(f".{name}.{secrets.token_hex(4)}.tmp")
        try:
            temporary.write_bytes(bytes.fromhex(_digest(data)) + data)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        log.warning("compiled code cannot be kept in %s: %s", path.parent, error)


# ------------------------------------------------------------------------------------ the folder
@functools.cache
def folder() -> Path:
    """Return the folder to which compiled code is written; it is chosen once a process."""
    for place in _candidates():
        if _is_writable(place):
            return place
    return _temporary_folder()


def describe() -> str:
    """Return the folder of compiled code for messages, with a note if it is temporary."""
    place = str(folder())
    if folder() not in list(_candidates()):
        place += " (temporary: neither the package's folder nor the user's can be written to)"
    return place


def _candidates() -> Iterator[Path]:
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        yield Path(chosen).absolute() / "cynosure"
    yield PACKAGE / "__pycache__" / "kernels"
    caches = os.environ.get("XDG_CACHE_HOME")
    if caches:
        yield Path(caches).absolute() / "cynosure" / "kernels"
        return
    with contextlib.suppress(RuntimeError):  # a user without a home
        home = Path.home()
        caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
        yield home / caches / "cynosure" / "kernels"


def _is_writable(place: Path) -> bool:
    """Say whether a folder can be made and written to."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False


def _temporary_folder() -> Path:
    """Return a temporary folder of this user; code in folders of other users is never loaded."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    place = Path(tempfile.gettempdir()) / f"cynosure-kernels-{user}"
    with contextlib.suppress(OSError):
        place.mkdir(mode=0o700, exist_ok=True)
        facts = place.lstat()
        owned = not hasattr(os, "getuid") or facts.st_uid == user
        if stat.S_ISDIR(facts.st_mode) and owned and not facts.st_mode & 0o022:
            return place
    return Path(tempfile.mkdtemp(prefix="cynosure-kernels-"))


@functools.cache
def _readable() -> tuple[Path, ...]:
    package = PACKAGE / "__pycache__" / "kernels"
    return tuple(dict.fromkeys((folder(), package)))


# ----------------------------------------------------------------------- what was compiled before
@functools.cache
def sources() -> tuple[Path, ...]:
    """Return the package's files that define kernels."""
    mark = b"cynosure.ground.cache import"
    return tuple(p for p in sorted(PACKAGE.rglob("*.py")) if mark in p.read_bytes())


@functools.cache
def _state() -> str:
    """Return a digest of the files that define kernels, of the versions and the processor."""
    from importlib.metadata import version

    parts = [f"{path.relative_to(PACKAGE)}".encode() + path.read_bytes() for path in sources()]
    facts = (version("numba"), version("llvmlite"), sys.version_info[:3], _processor())
    return _digest(b"\0".join(parts) + repr(facts).encode())


def _processor() -> str:
    """Return a description of the processor without loading numba."""
    chosen = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kinds = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
        return repr((chosen, sorted(kinds)))
    import platform

    return repr((chosen, platform.processor(), platform.machine()))


def marked(names: Iterable[str]) -> bool:
    """Say whether all these groups of kernels were compiled from the present source files."""
    return all(any((p / f"{n}-{_state()}.done").exists() for p in _readable()) for n in names)


def mark(name: str) -> None:
    """Note that a group of kernels was compiled."""
    _write(f"{name}-{_state()}.done", b"")
