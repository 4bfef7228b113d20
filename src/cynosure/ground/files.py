"""Atomic writing of files.

All output is written through :func:`atomic_path`: a temporary file in the same folder, fsync,
rename. A reader never sees a partial file, and a full disk leaves none behind.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cynosure.ground.errors import OutputError, OutputExists

__all__ = ["atomic_path", "reason_of", "write_text"]


@contextmanager
def atomic_path(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path to write to; it is renamed to `path` when the block succeeds.

    The temporary file is in the same folder, is created empty (so that the permissions follow the
    umask), and is flushed to the disk before it is renamed. Any exception removes it,
    KeyboardInterrupt included.

    Parameters
    ----------
    path : str or Path
        The file to write.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputExists
        If the file exists and `overwrite` is false.
    OutputError
        If anything fails with an OSError (full disk, permissions, read-only file system).

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder) / "a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     (Path(folder) / "a.txt").read_text()
    'whole'
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputExists(path=str(path))
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            yield temporary
            _flush(temporary)
            if path.exists() and not overwrite:  # another process has written it meanwhile
                raise OutputExists(path=str(path))
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise OutputError(path=str(path), reason=reason_of(error)) from error


def write_text(path: str | Path, text: str, *, overwrite: bool = False) -> None:
    """Write a text file (UTF-8) by :func:`atomic_path`."""
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def reason_of(error: OSError) -> str:
    """Return the system's message of an error, without the path."""
    return (error.strerror or str(error)).lower()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Flush the rename itself, where the file system can flush folders."""
    with contextlib.suppress(OSError):
        _flush(folder)
