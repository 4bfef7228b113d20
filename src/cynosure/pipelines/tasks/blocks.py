"""Values between processes: their arrays in shared memory, only the rest pickled.

A value is packed into at most one block of shared memory. Whoever unpacks it maps the block and
sees the arrays where they are; they cannot be written to. Passing an array on therefore costs the
one copy into the block. A block exists until :func:`unlink`, its memory until no process has it
mapped. Blocks of an owner that was killed are removed by the resource tracker that
Python's multiprocessing starts beside it.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np

from cynosure.ground.errors import ExitCode, Temporary

__all__ = ["Packed", "SharedMemoryFull", "pack", "unlink", "unpack"]

# The compiled kernels read whole cache lines.
ALIGN = 64
# Where Linux keeps blocks of shared memory: as files.
FOLDER = Path("/dev/shm")


class SharedMemoryFull(Temporary):
    """No room in shared memory for the arrays of a task."""

    text = "{folder}: {needed} bytes are needed for arrays, {free} are free"
    hint = "Use fewer --workers or a lower --memory; a container may want a larger --shm-size."
    exit_code = ExitCode.TEMPORARY


@dataclass(frozen=True, slots=True)
class Packed:
    """A value as it travels: a pickle without its arrays, and the block that holds them."""

    pickled: bytes
    block: str = ""
    nbytes: int = 0
    buffers: tuple[tuple[int, int], ...] = ()


class _Packer(pickle.Pickler):
    """Put arrays aside, each once, and leave a note of where they will be."""

    def __init__(self, stream: io.BytesIO):
        super().__init__(stream, protocol=5, buffer_callback=self._put_buffer)
        self.arrays: list[tuple[int, np.ndarray[Any, Any]]] = []
        self.buffers: list[tuple[int, int]] = []
        self.end = 0
        self._notes: dict[int, tuple[Any, ...]] = {}

    def persistent_id(self, value: Any) -> Any:
        """Return the note of a plain array, None for anything else."""
        if type(value) is not np.ndarray or value.dtype.hasobject or not value.nbytes:
            return None
        if id(value) not in self._notes:
            order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
            start = self._reserve(value.nbytes)
            self.arrays.append((start, value))
            self._notes[id(value)] = (start, value.nbytes, value.dtype, value.shape, order)
        return self._notes[id(value)]

    def reducer_override(self, value: Any) -> Any:
        """Take masked and record arrays apart into plain ones."""
        if type(value) is np.recarray:
            return _as_records, (value.view(np.ndarray),)
        if type(value) is np.ma.MaskedArray:
            return _masked, (np.asarray(value.data), np.ma.getmask(value), value.fill_value)
        return NotImplemented

    def _put_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Put aside what is no array but has buffers: Arrow tables."""
        raw = np.frombuffer(buffer.raw(), np.uint8)
        start = self._reserve(raw.nbytes)
        self.buffers.append((start, raw.nbytes))
        if raw.nbytes:
            self.arrays.append((start, raw))
        return False

    def _reserve(self, nbytes: int) -> int:
        start = -(-self.end // ALIGN) * ALIGN
        self.end = start + nbytes
        return start


def _as_records(array: np.ndarray[Any, Any]) -> Any:
    return array.view(np.recarray)


def _masked(data: np.ndarray[Any, Any], mask: Any, fill_value: Any) -> Any:
    return np.ma.MaskedArray(data, mask, fill_value=fill_value, copy=False)


class _Unpacker(pickle.Unpickler):
    """Find the arrays where the notes say."""

    def __init__(self, packed: Packed, content: np.ndarray[Any, Any]):
        super().__init__(
            io.BytesIO(packed.pickled),
            buffers=[content[start : start + size] for start, size in packed.buffers],
        )
        self.content = content
        self._seen: dict[int, np.ndarray[Any, Any]] = {}

    def persistent_load(self, note: Any) -> Any:
        """Return the array of a note."""
        start, nbytes, dtype, shape, order = note
        if start not in self._seen:
            there = self.content[start : start + nbytes]
            self._seen[start] = there.view(dtype).reshape(shape, order=order)
        return self._seen[start]


class _Mapping:
    """A block that stays mapped as long as an array looks at it."""

    def __init__(self, name: str):
        self.memory = SharedMemory(name)
        first = np.asarray(self.memory.buf, np.uint8)
        self.__array_interface__ = {
            "shape": (self.memory.size,), "typestr": "|u1", "data": (first.ctypes.data, True),
            "version": 3,
        }


def pack(value: Any, block: str) -> Packed:
    """Pack a value.

    Parameters
    ----------
    value : Any
        Anything that pickles.
    block : str
        Name of the block to make, where there are arrays in it.

    Raises
    ------
    SharedMemoryFull
        If the arrays do not fit.
    """
    stream = io.BytesIO()
    packer = _Packer(stream)
    packer.dump(value)
    if not packer.end:
        return Packed(stream.getvalue(), buffers=tuple(packer.buffers))
    _check_room(packer.end)
    memory = SharedMemory(block, create=True, size=packer.end)
    try:
        for start, array in packer.arrays:
            order: Any = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
            there: np.ndarray[Any, Any] = np.ndarray(
                array.shape, array.dtype, memory.buf, start, order=order
            )
            there[...] = array
            del there
    finally:
        memory.close()
    return Packed(stream.getvalue(), block, packer.end, tuple(packer.buffers))


def unpack(packed: Packed) -> Any:
    """Return the value; its arrays look at the block and cannot be written to."""
    content = np.asarray(_Mapping(packed.block)) if packed.block else np.zeros(0, np.uint8)
    return _Unpacker(packed, content).load()


def unlink(block: str) -> None:
    """Remove a block; those who have it mapped keep it until they let go. None there: nothing."""
    with contextlib.suppress(FileNotFoundError):
        try:
            memory = SharedMemory(block)
        except ValueError:  # its maker was killed before it had a size
            (FOLDER / block).unlink(missing_ok=True)
            return
        memory.close()
        memory.unlink()


def _check_room(nbytes: int) -> None:
    """Refuse what does not fit: writing beyond the end would kill the process."""
    if not FOLDER.is_dir():
        return
    there = os.statvfs(FOLDER)
    free = there.f_bavail * there.f_frsize
    if nbytes > free:
        raise SharedMemoryFull(folder=str(FOLDER), needed=nbytes, free=free)
