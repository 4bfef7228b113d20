"""A folder or a file, on this disk or behind a URL."""

from __future__ import annotations

import contextlib
import os
import posixpath
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cynosure.ground.errors import CatalogDamaged, CatalogMissing, Temporary

__all__ = ["Place"]

TABLE_SUFFIXES = (
    ".parquet", ".parq", ".pq", ".fits", ".fit", ".fts", ".fits.gz", ".ecsv", ".csv", ".csv.gz",
    ".ecsv.gz", ".vot", ".votable", ".xml", ".cat", ".ldac",
)


class Place:
    """A folder or file, local or behind a URL.

    Attributes
    ----------
    text : str
        What messages call it.
    root : str
        The path, without a slash at its end.
    fs : fsspec filesystem or None
        None is the local disk.
    """

    def __init__(self, source: str | Path, fs: Any = None):
        self.text = str(source)
        self.fs = fs
        self.root = self.text.rstrip("/") or "/"
        if fs is None and isinstance(source, str) and "://" in source:
            if source.startswith("file://"):
                self.root = source[len("file://") :].rstrip("/")
            else:
                self.fs, self.root = _filesystem(source)

    def at(self, name: str) -> str:
        """Return the path of a file in it."""
        return f"{self.root}/{name}"

    def child(self, name: str) -> Place:
        """Return a folder in it, or the place of an absolute name."""
        if "://" in name or name.startswith("/"):
            return Place(name)
        place = Place.__new__(Place)
        place.fs, place.root = self.fs, posixpath.normpath(f"{self.root}/{name}")
        if self.fs is not None and "://" in self.root:
            place.root = f"{self.root}/{name.strip('/')}"
        place.text = f"{self.text.rstrip('/')}/{name}"
        return place

    def is_table(self) -> bool:
        """Say whether it is one file rather than a folder."""
        if self.fs is None:
            path = Path(self.root)
            if not path.exists():
                raise CatalogMissing(catalog=self.text, reason="there is no such file or folder")
            return path.is_file()
        return self.root.lower().split("?")[0].endswith(TABLE_SUFFIXES)

    def read_text(self, name: str) -> str | None:
        """Return a small file's text; None where there is no such file."""
        path = self.at(name)
        try:
            with self.errors(path):
                if self.fs is None:
                    return Path(path).read_text(encoding="utf-8")
                return self.fs.cat_file(path).decode("utf-8")
        except CatalogMissing:
            return None

    def names(self, name: str) -> list[str]:
        """Return the sorted names in a folder in it."""
        path = self.at(name)
        with self.errors(path):
            if self.fs is None:
                return sorted(p.name for p in Path(path).iterdir())
            return sorted(posixpath.basename(p.rstrip("/")) for p in self.fs.ls(path, detail=False))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """Open a file for pyarrow: a path if it is local, else a stream that reads by ranges."""
        path = self.at(name)
        with self.errors(path):
            if self.fs is None:
                yield path
            else:
                # No read-ahead: pyarrow asks for just the bytes it needs.
                with self.fs.open(path, "rb", cache_type="none") as stream:
                    yield stream

    @contextlib.contextmanager
    def local_copy(self) -> Iterator[Path]:
        """Give the file as a local one."""
        if self.fs is None:
            yield Path(self.root)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / posixpath.basename(self.root)
            with self.errors(self.root):
                self.fs.get_file(self.root, str(path))
            yield path

    @contextlib.contextmanager
    def errors(self, path: str) -> Iterator[None]:
        """Convert errors of reading a file into errors with facts."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            # fsspec reports a failing server as a missing file.
            cause = error.__cause__
            if isinstance(cause, _network_errors(self.fs)) and getattr(cause, "status", 0) != 404:
                raise Temporary(resource=str(path), reason=str(cause) or repr(cause)) from error
            raise CatalogMissing(catalog=str(path), reason="there is no such file") from error
        except PermissionError as error:
            raise CatalogMissing(catalog=str(path), reason="it may not be read") from error
        except _network_errors(self.fs) as error:
            reason = str(error).strip().splitlines()
            raise Temporary(
                resource=str(path), reason=reason[0] if reason else type(error).__name__
            ) from error
        except _damage_errors() as error:
            reason = str(error).strip().splitlines()
            raise CatalogDamaged(
                catalog=str(path),
                reason=f"not a file that can be read ({reason[0] if reason else '?'})",
            ) from error


def _filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        options: dict[str, Any] = {}
        if url.startswith("s3://") and not any(k.startswith("AWS_") for k in os.environ):
            options["anon"] = True  # catalogues lie in public buckets
        fs, root = url_to_fs(url, **options)
    except ImportError as error:
        raise CatalogMissing(
            catalog=url, reason=f"{error.name} is not installed",
            hint="Install the network extra: pip install 'cynosure[online]'.",
        ) from error
    except ValueError as error:
        raise CatalogMissing(catalog=url, reason=str(error)) from error
    return fs, root.rstrip("/")


def _network_errors(fs: Any) -> tuple[type[BaseException], ...]:
    if fs is None:
        return (TimeoutError,)
    found: list[type[BaseException]] = [OSError, TimeoutError]
    with contextlib.suppress(ImportError):
        import aiohttp

        found.append(aiohttp.ClientError)
    with contextlib.suppress(ImportError):
        import botocore.exceptions

        found.append(botocore.exceptions.BotoCoreError)
    return tuple(found)


def _damage_errors() -> tuple[type[BaseException], ...]:
    import pyarrow as pa

    return (pa.ArrowException, OSError, UnicodeDecodeError, EOFError)
