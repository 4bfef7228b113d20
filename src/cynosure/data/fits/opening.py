"""Open a FITS file for changes: its lock, and the search for units behind a damaged one."""

from __future__ import annotations

import fcntl
import os
import re
import time
from pathlib import Path
from typing import BinaryIO

from cynosure.data.fits.blocks import BLOCK
from cynosure.data.fits.file import open_fits
from cynosure.ground.errors import ImageError, OutputError, Temporary
from cynosure.ground.files import reason_of

__all__ = ["LOCK_WAIT_S", "next_unit", "opened"]

# A writer waits this long for another one, about ten changes of a file of 100 MB, and polls the
# lock at this interval, which is shorter than the pause between changes of a busy program.
LOCK_WAIT_S, LOCK_POLL_S = 5.0, 0.001


def opened(path: Path, *, lock: bool) -> tuple[BinaryIO, int | None]:
    """Open a file; for writing, wait a short while for its lock.

    Another writer replaces the file, so that each attempt opens it again.
    """
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        stream, size = open_fits(path)
        try:
            if lock and hasattr(stream, "raw"):
                _lock(stream, path)
            return stream, size
        except Temporary:
            stream.close()
            if time.monotonic() >= until:
                raise
            time.sleep(LOCK_POLL_S)
        except BaseException:
            stream.close()
            raise


def _lock(stream: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Temporary(resource=str(path), reason="another program is writing to it") from error
    except OSError as error:  # file systems without locks
        if error.errno not in (37, 38, 95):  # ENOLCK, ENOSYS, EOPNOTSUPP
            raise OutputError(path=str(path), reason=reason_of(error)) from error
    mine = os.fstat(stream.fileno())
    try:
        theirs = path.stat()
    except OSError as error:
        raise ImageError(image=str(path), reason=reason_of(error)) from error
    if (mine.st_ino, mine.st_dev) != (theirs.st_ino, theirs.st_dev):
        raise Temporary(resource=str(path), reason="another program has just changed it")


def next_unit(stream: BinaryIO, end: int, size: int) -> int | None:
    """Return the offset of the next extension behind bytes that are not one; None without any.

    The extensions of a headerlet may lie within the damaged one: they are passed over.
    """
    for at in range(end, size - BLOCK + 1, BLOCK):
        stream.seek(at)
        if stream.read(10) == b"XTENSION= ":
            stream.seek(at)
            header = stream.read(10 * BLOCK).partition(b" END" + b" " * 77)[0]
            if not re.search(rb"EXTNAME = '(SIPWCS|WCSDVARR|D2IMARR) *'", header):
                return at
    return None
