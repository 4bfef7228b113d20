"""Opening a FITS file to change it: the lock, and what lies behind a damaged extension."""

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

# A writer waits this long for another one: some ten changes of a file of 100 MB. It looks again
# this often, which is shorter than the pause of a program that makes one change after another.
LOCK_WAIT_S, LOCK_POLL_S = 5.0, 0.001


def opened(path: Path, *, lock: bool) -> tuple[BinaryIO, int | None]:
    """Open a file, for writing with its lock, for which it waits a short while.

    The other writer puts a new file in the place of this one, so each try opens what is there.
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
    """Return where the next extension begins behind bytes that are none; None where none does.

    Those of a headerlet (its WCSs and tables) may lie within the damaged one: they are passed over.
    """
    for at in range(end, size - BLOCK + 1, BLOCK):
        stream.seek(at)
        if stream.read(10) == b"XTENSION= ":
            stream.seek(at)
            header = stream.read(10 * BLOCK).partition(b" END" + b" " * 77)[0]
            if not re.search(rb"EXTNAME = '(SIPWCS|WCSDVARR|D2IMARR) *'", header):
                return at
    return None
