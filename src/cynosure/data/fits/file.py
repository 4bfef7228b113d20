"""FITS files as units whose pixels are read on demand.

:class:`FitsFile` is a file on disk, compressed or not; :class:`FitsInMemory` gives an HDUList or
plain arrays the same interface. :class:`Selector` selects a unit and a plane.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import math
import os
import re
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fits.blocks import (
    DTYPES,
    Unit,
    card_int,
    float_pixels,
    read_units,
    readable_header,
    stream_integers,
    stream_pixels,
)
from cynosure.ground.errors import ImageError
from cynosure.ground.files import reason_of

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = [
    "FitsFile",
    "FitsInMemory",
    "LazyDigest",
    "Selector",
    "file_sha256",
    "open_fits",
    "planes",
    "sides",
    "split_path",
    "stamp_of",
]

# Files up to this size are hashed at once: a thread would cost more.
SMALL_BYTES = 1 << 20


# --- which extension ------------------------------------------------------------------------


def split_path(source: str) -> tuple[Path, str | None]:
    """Split ``image.fits[SCI,2]`` into the path and what the brackets hold.

    A file whose own name ends in brackets is taken as it is.
    """
    match = re.fullmatch(r"(.+)\[([^\[\]]+)\]", source)
    if match is None or Path(source).exists():
        return Path(source), None
    return Path(match[1]), match[2]


@dataclass(frozen=True, slots=True)
class Selector:
    """A selection of an HDU and its planes: by number, or by EXTNAME and EXTVER."""

    hdu: int | None = None
    name: str | None = None
    version: int | None = None
    plane: int | str | None = None

    @classmethod
    def of(cls, value: str | int | None, image: str) -> Selector | None:
        """Parse a selection; None selects the science images."""
        if value is None:
            return None
        if isinstance(value, int):
            return cls(hdu=value)
        parts = [p.strip() for p in value.split(",")]
        numbers = [int(p) if re.fullmatch(r"\d+", p) else p for p in parts]
        if isinstance(numbers[0], int) and len(parts) <= 2:
            return cls(hdu=numbers[0], plane=_plane(numbers[1:], value, image))
        if isinstance(numbers[0], str) and len(parts) <= 3:
            version = numbers[1] if len(parts) > 1 else None
            if version is None or isinstance(version, int):
                return cls(
                    name=parts[0].upper(), version=version, plane=_plane(numbers[2:], value, image)
                )
        raise ImageError(
            image=image,
            reason=f"[{value}] selects nothing",
            hint="Write NUMBER, NAME, NAME,VERSION, NUMBER,PLANE or NAME,VERSION,PLANE "
            "(HDUs and planes count from 0; all for every plane).",
        )

    def __str__(self) -> str:
        parts = [self.hdu, self.name, self.version, self.plane]
        return ",".join(str(p) for p in parts if p is not None)

    def takes(self, unit: Unit) -> bool:
        """Say whether a unit is selected."""
        if self.hdu is not None:
            return unit.index == self.hdu
        return unit.name == self.name and self.version in (None, unit.version)


def _plane(rest: Sequence[int | str], value: str, image: str) -> int | str | None:
    if not rest:
        return None
    if isinstance(rest[0], int) or rest[0] == "all":
        return rest[0]
    raise ImageError(image=image, reason=f"[{value}]: a plane is a number from 0, or all")


def open_fits(path: Path) -> tuple[BinaryIO, int | None]:
    """Open a file; gzip, bzip2 and xz are recognised by its first bytes.

    Returns
    -------
    stream : binary file
        Seekable; a compressed file is decompressed into memory.
    size : int or None
        Its length in bytes.
    """
    try:
        stream: BinaryIO = path.open("rb")
        magic = stream.read(6)
        stream.seek(0)
        for start, opener in (
            (b"\x1f\x8b", gzip.open),
            (b"BZh", bz2.open),
            (b"\xfd7zXZ\0", lzma.open),
        ):
            if magic.startswith(start):
                with stream, opener(stream, "rb") as unpacked:
                    data = unpacked.read()
                return io.BytesIO(data), len(data)
        return stream, path.stat().st_size
    except EOFError as error:
        raise ImageError(
            image=path.name,
            reason="truncated: the compressed file ends too early",
            hint="Fetch or copy the file again.",
        ) from error
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, ValueError) as error:
        raise ImageError(image=path.name, reason=f"damaged compression ({error})") from error
    except OSError as error:
        raise ImageError(
            image=str(path), reason=reason_of(error), hint="Check the path and the permissions."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress astropy's warnings about cards; the relevant ones become notes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def understood(name: str, index: int) -> Iterator[None]:
    """Convert astropy's errors about a damaged table or compressed image into an ImageError."""
    from astropy.io.fits import VerifyError

    try:  # where astropy 6.1 and later keep it; without it the other errors are caught all the same
        from astropy.io.fits.hdu.compressed._compression import CfitsioException
    except ImportError:
        CfitsioException = OSError
    try:
        with quiet():
            yield
    except (
        *(OSError, EOFError, KeyError, IndexError, ValueError, TypeError, AttributeError),
        *(VerifyError, CfitsioException, OverflowError, MemoryError, AssertionError),
        *(ZeroDivisionError, zlib.error, lzma.LZMAError),
    ) as error:
        reason = " ".join(str(error).split())[:120]
        raise ImageError(
            image=name,
            hdu=index,
            reason=f"HDU {index} is damaged ({reason})",
            hint="Fetch or copy the file again.",
        ) from error


class FitsFile:
    """The units of a FITS file, with their pixels on demand."""

    def __init__(self, path: Path):
        self.path: Path | None = path
        self.name = path.name
        self._stream, size = open_fits(path)
        try:
            self._stamp = stamp_of(path.stat())
            self.units = list(read_units(self._stream, path.name, size))
        except BaseException:
            self._stream.close()
            raise
        self._hdulist: Any = None

    def __enter__(self) -> FitsFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._hdulist is not None:
            self._hdulist.close()
        self._stream.close()

    def digest(self) -> Any:
        """Return an object that returns the SHA-256 of the file when called."""
        return LazyDigest(self.path, self._stamp) if self.path is not None else ""

    def hdulist(self) -> Any:
        """Return astropy's view of the file, for tables and compressed images."""
        if self._hdulist is None:
            from astropy.io import fits

            self._stream.seek(0)
            with quiet():
                self._hdulist = fits.open(self._stream, memmap=False, lazy_load_hdus=True)
        return self._hdulist

    def header(self, unit: Unit) -> Header:
        """Return the header of the image."""
        return unit.header

    def row(self, number: int, plane: int) -> dict[str, Any]:
        """Return a row of a table, by column; empty where there is none."""
        if not 0 <= number < len(self.units):
            return {}
        with understood(self.name, number):
            table = self.hdulist()[number].data
            if table is None or table.dtype.names is None or plane >= len(table):
                return {}
            row = {name: table[name][plane] for name in table.names}
        return {k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()}

    def plane(self, unit: Unit, plane: int) -> tuple[NDArray[np.float32], bool]:
        """Return one plane as float32, and whether all of it is finite."""
        if unit.is_compressed:
            return float_pixels(self._unpacked(unit, plane))
        offset = self._seek(unit, plane)
        return stream_pixels(self._stream, unit, offset, sides(unit.shape), self.name)

    def integers(self, unit: Unit, plane: int) -> NDArray[np.int64]:
        """Return one plane of an image of flags, with all its bits."""
        if unit.is_compressed:
            return _integers(self._unpacked(unit, plane))
        offset = self._seek(unit, plane)
        return stream_integers(self._stream, unit, offset, sides(unit.shape), self.name)

    def _unpacked(self, unit: Unit, plane: int) -> NDArray[Any]:
        with understood(self.name, unit.index):
            data = self.hdulist()[unit.index].data
            if np.shape(data) != unit.shape:
                message = f"{np.shape(data)} pixels instead of {unit.shape}"
                raise ValueError(message)
            return _plane_of(data, plane)

    def _seek(self, unit: Unit, plane: int) -> int:
        """Go to a plane and return its place in the data."""
        bitpix = card_int(unit.raw, "BITPIX")
        if bitpix not in DTYPES:
            raise ImageError(image=self.name, reason=f"BITPIX = {bitpix} is not a FITS pixel type")
        ny, nx = sides(unit.shape)
        offset = plane * ny * nx * abs(bitpix) // 8
        self._stream.seek(unit.data_start + offset)
        return offset


class FitsInMemory(FitsFile):
    """An HDUList, or arrays with headers, with the interface of a file."""

    def __init__(self, hdulist: Any, name: str = "image"):
        self.path, self.name, self._hdulist = None, name, hdulist
        self.units = [_unit_in_memory(i, hdu) for i, hdu in enumerate(hdulist)]

    @classmethod
    def of(cls, source: Any) -> FitsInMemory:
        """Return it for an HDUList, image HDU, array, (data, header), or CCDData with its mask."""
        from astropy.io import fits

        if isinstance(source, fits.HDUList):
            name = source.filename()
            return cls(source, Path(name).name if name else "image")
        if isinstance(source, (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)):
            return cls([source])
        if isinstance(source, np.ndarray):
            source = (source, None)
        if isinstance(source, tuple) and len(source) == 2:
            data, header = source
            header = fits.Header(header) if header is not None else None
            return cls([fits.PrimaryHDU(_pixels(data), header)])
        if hasattr(source, "to_hdu"):
            return cls(_ccd_hdus(source))
        raise ImageError(
            image=type(source).__name__,
            reason="not a path, HDUList, image HDU, array, (data, header) or CCDData",
        )

    def __exit__(self, *_: object) -> None:
        """Do nothing: the caller opened the HDUList and closes it."""

    def header(self, unit: Unit) -> Header:
        """Return the header of the HDU, without cards that cannot be read."""
        with quiet():
            text = self._hdulist[unit.index].header.tostring()
        return readable_header(text.encode("latin-1", "replace"))[0]

    def plane(self, unit: Unit, plane: int) -> tuple[NDArray[np.float32], bool]:
        """Return one plane as float32, and whether all of it is finite."""
        return float_pixels(_plane_of(self._hdulist[unit.index].data, plane))

    def integers(self, unit: Unit, plane: int) -> NDArray[np.int64]:
        """Return one plane of an image of flags, with all its bits."""
        return _integers(_plane_of(self._hdulist[unit.index].data, plane))


class MemoryUnit(Unit):
    """A unit that is not in a file."""

    def __init__(self, index: int, shape: tuple[int, ...], name: str, version: int, image: bool):
        super().__init__(index, b"", 0, 0)
        self.__dict__.update(_shape=shape, _name=name, _version=version, _image=image)

    shape = property(lambda self: self.__dict__["_shape"])
    name = property(lambda self: self.__dict__["_name"])
    version = property(lambda self: self.__dict__["_version"])
    is_image = property(lambda self: self.__dict__["_image"])
    is_compressed = property(lambda self: False)


def _integers(data: NDArray[Any]) -> NDArray[np.int64]:
    return data.astype(np.int64) if data.dtype.kind in "iub" else np.rint(data).astype(np.int64)


def _unit_in_memory(index: int, hdu: Any) -> MemoryUnit:
    image = bool(getattr(hdu, "is_image", False)) and hdu.data is not None and hdu.data.ndim > 0
    shape = tuple(int(n) for n in hdu.data.shape) if image else ()
    return MemoryUnit(index, shape, hdu.name.upper(), hdu.ver, image and min(shape, default=0) > 0)


def _pixels(data: Any) -> NDArray[Any]:
    array = np.asarray(
        np.ma.filled(data, np.nan) if np.ma.isMaskedArray(data) and data.dtype.kind == "f" else data
    )
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def _ccd_hdus(ccd: Any) -> Any:
    """Return the HDUs of a CCDData: pixels, mask, and its uncertainty under the fitting name."""
    from astropy.io import fits

    header = fits.Header(ccd.header)
    if ccd.wcs is not None and "CTYPE1" not in header:
        header.update(ccd.wcs.to_header(relax=True))
    hdus: list[Any] = [fits.PrimaryHDU(np.asarray(ccd.data), header)]
    if ccd.mask is not None:
        hdus.append(fits.ImageHDU(np.asarray(ccd.mask).astype(np.uint8), name="MASK"))
    if ccd.uncertainty is not None:
        role = {"std": "ERR", "var": "VAR", "ivar": "IVAR"}.get(ccd.uncertainty.uncertainty_type)
        if role is not None:
            hdus.append(fits.ImageHDU(np.asarray(ccd.uncertainty.array), name=role))
    return fits.HDUList(hdus)


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the two fastest axes of length above 1 (an image may have degenerate ones)."""
    real = [n for n in shape if n > 1]
    if len(real) >= 2:
        return real[-2], real[-1]
    return (shape[-2], shape[-1]) if len(shape) >= 2 else (1, shape[-1])


def planes(shape: tuple[int, ...]) -> int:
    """Return the number of images in an array, 1 for a plain one."""
    ny, nx = sides(shape)
    return math.prod(shape) // (ny * nx)


def _plane_of(data: NDArray[Any], plane: int) -> NDArray[Any]:
    return np.asarray(data).reshape(-1, *sides(data.shape))[plane]


class LazyDigest:
    """The SHA-256 of a file, computed beside the work that does not need it.

    A file of more than a megabyte is hashed by a thread that starts at once; hashlib releases the
    interpreter's lock. Pickling waits for the result and stores only that. It is empty if the file
    was removed or changed since it was opened, since it may then differ from what was read.
    """

    def __init__(self, path: Path, stamp: tuple[int, ...] | None = None):
        self._path, self._stamp, self._value = path, stamp, ""
        self._thread: threading.Thread | None = None
        try:
            if path.stat().st_size > SMALL_BYTES:
                self._thread = threading.Thread(target=self._compute, daemon=True)
                self._thread.start()
        except OSError:
            pass

    def _compute(self) -> None:
        try:
            value = file_sha256(self._path)
            same = self._stamp is None or stamp_of(self._path.stat()) == self._stamp
        except OSError:  # removed meanwhile
            return
        self._value = value if same else ""

    def __call__(self) -> str:
        """Return the checksum, waiting for it where it is not done."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        elif not self._value:
            self._compute()
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        return (str, (self(),))


def stamp_of(stat: os.stat_result) -> tuple[int, ...]:
    """Return a stamp that changes when a file is replaced or written to: inode, size and time."""
    return stat.st_ino, stat.st_dev, stat.st_size, stat.st_mtime_ns


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
