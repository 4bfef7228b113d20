"""Write FITS products: images, compressed or not, and tables of a schema.

:func:`write_product` makes a file from :class:`ImagePlane` and :class:`TablePlane` records. The
write is atomic, every unit has DATASUM and CHECKSUM, and the same input gives the same bytes: the
only dates are those of the caller. :mod:`cynosure.data.fits.parts` changes existing files.

FITS 4.0; the compression of tiles is its section 10, done by astropy.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fits.blocks import checksum_text, padded, split_cards, sum32
from cynosure.data.fits.parts import Part, Value, card, parts_of_bytes
from cynosure.data.mask import MASK_CARD, mask_dictionary
from cynosure.data.tables import Column, Schema
from cynosure.ground.errors import SettingError
from cynosure.ground.files import atomic_path
from cynosure.ground.settings import unknown_name

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = ["Compression", "ImagePlane", "TablePlane", "mask_cards", "write_product"]

Cards = Sequence[tuple[str, Value, str]]
Record = tuple[str, bytes]

KEYWORD = re.compile(r"[A-Z0-9_-]{1,8}")
COMMENTARY = ("COMMENT", "HISTORY", "")
# Structural keywords, which are written for each unit; those of a given header are left out.
STRUCTURAL = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|GROUPS|BZERO|BSCALE|BLANK|TFIELDS|THEAP"
    r"|CHECKSUM|DATASUM|EXTNAME|EXTVER|EXTLEVEL|INHERIT|BUNIT|END"
    r"|T(FORM|TYPE|UNIT|DISP|COMM|NULL|ZERO|SCAL|DIM)\d+"
    r"|Z(IMAGE|TABLE|CMPTYPE|BITPIX|NAXIS\d*|TILE\d+|NAME\d+|VAL\d+|QUANTIZ|DITHER0|BLANK|SCALE"
    r"|ZERO|SIMPLE|TENSION|EXTEND|PCOUNT|GCOUNT|HECKSUM|DATASUM)"
)

# NumPy kind and size to BITPIX, the type in the file, and the zero that makes it unsigned (or, of
# one byte, signed).
PIXELS: dict[str, tuple[int, str, int]] = {
    "u1": (8, ">u1", 0), "i1": (8, ">u1", -128), "i2": (16, ">i2", 0), "u2": (16, ">i2", 1 << 15),
    "i4": (32, ">i4", 0), "u4": (32, ">i4", 1 << 31), "i8": (64, ">i8", 0),
    "u8": (64, ">i8", 1 << 63), "f4": (-32, ">f4", 0), "f8": (-64, ">f8", 0),
}
# The same for the columns of a table: TFORM, type, TZERO.
FORMS: dict[str, tuple[str, str, int]] = {
    "b1": ("L", ">u1", 0), "u1": ("B", ">u1", 0), "i1": ("B", ">u1", -128),
    "i2": ("I", ">i2", 0), "u2": ("I", ">i2", 1 << 15), "i4": ("J", ">i4", 0),
    "u4": ("J", ">i4", 1 << 31), "i8": ("K", ">i8", 0), "u8": ("K", ">i8", 1 << 63),
    "f4": ("E", ">f4", 0), "f8": ("D", ">f8", 0),
}
# Units of the schemas in the spelling of FITS (the standard has no word for an electron), and the
# display format of numbers in a unit: to about a tenth of the smallest measurable difference.
FITS_UNITS = {"px": "pixel", "e-": "electron"}
DISPLAYS = {
    "deg": "F14.9", "px": "F12.4", "mag": "F9.4", "mas": "F11.3", "mas/yr": "F11.3", "yr": "F11.5",
    "e-": "E14.6",
}
KINDS = ("RICE_1", "GZIP_1", "GZIP_2", "PLIO_1", "HCOMPRESS_1")
METHODS = {"none": -1, "dither": 1, "dither_zero": 2}  # numbers of the CFITSIO library


@dataclass(frozen=True, slots=True)
class Compression:
    """The compression of an image by tiles.

    Attributes
    ----------
    kind : str
        ``RICE_1``, ``GZIP_1``, ``GZIP_2``, ``PLIO_1`` or ``HCOMPRESS_1``. It is lossless for
        integers.
    tile : (ny, nx), optional
        Size of a tile; a row by default.
    quantize : float
        Floating-point pixels are rounded to steps of the noise divided by this: 16 adds 0.02 % to
        the standard deviation. 0 does not round, and needs a GZIP.
    method : str
        ``none``; ``dither`` adds a random part of a step before rounding, so that faint light is
        not biased; ``dither_zero`` also keeps pixels of exactly 0.
    seed : int
        Seed of the dither, 1 to 10000.
    """

    kind: str = "RICE_1"
    tile: tuple[int, int] | None = None
    quantize: float = 16.0
    method: str = "dither_zero"
    seed: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class ImagePlane:
    """An image of a product.

    Attributes
    ----------
    data : ndarray or None
        Pixels, [y, x]; of any integer or floating type, or bool, which becomes 0 and 1.
    name : str
        EXTNAME; "" or PRIMARY puts the image into the primary unit, if it is the first.
    version : int
        EXTVER.
    cards : Header, or sequence of (keyword, value, comment)
        The cards of the header, without the structural ones.
    unit : str
        BUNIT.
    compression : Compression, optional
    """

    data: NDArray[Any] | None
    name: str = ""
    version: int = 1
    cards: Header | Cards = ()
    unit: str = ""
    compression: Compression | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TablePlane:
    """A table of a product.

    Attributes
    ----------
    table : structured ndarray, may be masked
        Has the columns of the schema. Masked numbers become NaN, masked integers the null.
    schema : Schema
        Names, units and meanings (TTYPE, TUNIT, TCOMM).
    name, version, cards
        As in :class:`ImagePlane`.
    nulls : mapping of column to int
        The value of unknown numbers of an integer column (TNULL); by default the smallest number of
        its type in a column with masked values. Unsigned columns have no null: masked values are 0.
    """

    table: NDArray[Any]
    schema: Schema
    name: str
    version: int = 1
    cards: Header | Cards = ()
    nulls: Mapping[str, int] = field(default_factory=dict)


def write_product(
    path: str | Path, planes: Iterable[ImagePlane | TablePlane], *, cards: Header | Cards = (),
    overwrite: bool = False,
) -> Path:
    """Write a FITS file.

    Parameters
    ----------
    path : str or Path
    planes : iterable of ImagePlane or TablePlane
        The units, in order. If the first is not an image for the primary unit, a primary unit
        without pixels precedes it.
    cards : Header, or sequence of (keyword, value, comment)
        Cards of the primary unit, before those of its image.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputExists, OutputError
        If the file exists, or cannot be written.
    SettingError
        If a keyword is invalid, two units have the same name and version, or FITS has no such type.

    Examples
    --------
    >>> import tempfile
    >>> from astropy.io import fits
    >>> plane = ImagePlane(np.zeros((4, 5), np.uint16), "MASK", cards=mask_cards())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = write_product(Path(folder) / "a.fits", [plane], cards=[("RUN", 7, "a number")])
    ...     fits.getheader(made)["RUN"], fits.getheader(made, "MASK")["MASKDICT"]
    (7, 'default')
    """
    path, planes = Path(path), list(planes)
    _check_names(planes)
    primary = ImagePlane(None)
    if planes and _goes_first(planes[0]):
        primary = planes.pop(0)  # type: ignore[assignment]
    with atomic_path(path, overwrite=overwrite) as temporary, temporary.open("wb") as sink:
        given = [*_records(cards), *_records(primary.cards)]
        for part in (_image(primary, given, True), *(_part(p) for p in planes)):
            header, data = _summed(part)
            sink.write(header)
            sink.write(data)
            sink.write(bytes(padded(len(data)) - len(data)))
    return path


def mask_cards(name: str = "default") -> list[tuple[str, Value, str]]:
    """Return the cards of a mask of uint32 that describe its dictionary, bit by bit."""
    dictionary = mask_dictionary(name)
    cards: list[tuple[str, Value, str]] = [(MASK_CARD, name, "dictionary of the mask's bits")]
    for bit in dictionary.bits:
        cards.append((f"MSKBIT{bit.bit:02d}", bit.name, bit.text))
    return cards


def _goes_first(plane: ImagePlane | TablePlane) -> bool:
    first = isinstance(plane, ImagePlane) and plane.name.upper() in ("", "PRIMARY")
    return first and plane.compression is None  # type: ignore[union-attr]


def _check_names(planes: Sequence[ImagePlane | TablePlane]) -> None:
    seen = set()
    for plane in planes:
        key = (plane.name.upper(), plane.version)
        if key in seen:
            raise SettingError(
                "two units are called {name},{version}", name=key[0] or "PRIMARY", version=key[1],
                hint="Give them names or versions of their own.",
            )
        seen.add(key)


def _part(plane: ImagePlane | TablePlane) -> Part:
    if isinstance(plane, TablePlane):
        return _table(plane)
    if plane.compression is not None:
        return _compressed(plane, plane.compression)
    return _image(plane, _records(plane.cards), False)


# --- cards ----------------------------------------------------------------------------------


def _records(cards: Header | Cards) -> list[Record]:
    """Return cards as records, without those of the structure."""
    if hasattr(cards, "tostring"):
        raw = cards.tostring(padding=False, endcard=False).encode("latin-1", "replace")
        return [(k, body) for k, body in split_cards(raw) if not STRUCTURAL.fullmatch(k)]
    out: list[Record] = []
    for keyword, value, comment in cards:
        if keyword in COMMENTARY:
            text = str(value)
            for at in range(0, max(len(text), 1), 72):
                body = f"{keyword:<8}{text[at : at + 72]}".ljust(80)
                out.append((keyword, body.encode("ascii", "replace")))
            continue
        if not KEYWORD.fullmatch(keyword) or STRUCTURAL.fullmatch(keyword):
            raise SettingError(
                "{keyword!r} cannot be the keyword of a card", keyword=keyword,
                hint="A to Z, 0 to 9, - and _, eight at most, and none of the structure's.",
            )
        out.append(card(keyword, _plain(value), comment))
    return out


def _plain(value: Any) -> Value:
    """Return NumPy's scalars as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _named(plane: ImagePlane | TablePlane) -> list[Record]:
    if not plane.name:
        return []
    return [
        card("EXTNAME", plane.name, "name of this unit"),
        card("EXTVER", plane.version, "its number"),
    ]


def _summed(part: Part) -> tuple[bytes, bytes]:
    """Return header and data of a part, with DATASUM and CHECKSUM."""
    data = part.data or b""
    total = sum32(data)
    records = [r for r in part.records if r[0] not in ("CHECKSUM", "DATASUM")]
    records.append(card("DATASUM", str(total), "sum of the data"))
    blank = Part([*records, card("CHECKSUM", "0" * 16, "sum of this unit")]).header_bytes()
    text = checksum_text(sum32(blank, total))
    return Part([*records, card("CHECKSUM", text, "sum of this unit")]).header_bytes(), data


# --- images ---------------------------------------------------------------------------------


def _kind(dtype: np.dtype[Any]) -> str:
    return f"{dtype.kind}{dtype.itemsize}"


def _stored(values: NDArray[Any], kind: str, zero: int) -> NDArray[Any]:
    """Return the stored numbers: big-endian, minus their zero."""
    if zero > 0:  # subtracting half the range of an unsigned integer flips its first bit
        half = values.dtype.type(zero)
        return (values ^ half).astype(values.dtype.newbyteorder(">")).view(kind)
    if zero < 0:
        return (values.view(np.uint8) ^ np.uint8(0x80)).view(kind)
    return values.astype(kind)


def _image(plane: ImagePlane, given: list[Record], primary: bool) -> Part:
    """Return an image as a part of a file."""
    first = (
        card("SIMPLE", True, "FITS 4.0") if primary else card("XTENSION", "IMAGE", "image")
    )
    data, zero, bitpix = b"", 0, 8
    shape: tuple[int, ...] = ()
    if plane.data is not None:
        pixels = _pixels(plane)
        bitpix, kind, zero = PIXELS[_kind(pixels.dtype)]
        shape, data = pixels.shape[::-1], _stored(pixels, kind, zero).tobytes()
    records = [first, card("BITPIX", bitpix, "bits of a pixel, negative for floating point")]
    records.append(card("NAXIS", len(shape), "number of axes"))
    records += [card(f"NAXIS{k}", n, "") for k, n in enumerate(shape, 1)]
    if primary:
        records.append(card("EXTEND", True, "there may be extensions"))
    else:
        records += [card("PCOUNT", 0, ""), card("GCOUNT", 1, ""), *_named(plane)]
    if zero:
        records += [card("BSCALE", 1, ""), card("BZERO", zero, "the pixels are of the other sign")]
    if plane.unit:
        records.append(card("BUNIT", plane.unit, "unit of the pixels"))
    return Part([*records, *given], data=data)


def _pixels(plane: ImagePlane) -> NDArray[Any]:
    """Return the pixels of a plane in a type of FITS."""
    pixels = np.ascontiguousarray(plane.data)
    if pixels.dtype.kind == "b":
        pixels = pixels.view(np.uint8)
    if _kind(pixels.dtype) == "f2":
        pixels = pixels.astype(np.float32)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if _kind(pixels.dtype) not in PIXELS:
        raise SettingError(
            "{name}: pixels of {dtype} have no form in FITS", name=plane.name or "PRIMARY",
            dtype=str(pixels.dtype), hint="Integers, float32 and float64 have one.",
        )
    return pixels


def _compressed(plane: ImagePlane, how: Compression) -> Part:
    """Return an image compressed by tiles, as a table."""
    from astropy.io import fits

    if plane.data is None:
        raise SettingError("{name}: nothing to compress", name=plane.name or "image")
    for what, word, known in (("method", how.method, METHODS), ("kind", how.kind, KINDS)):
        if word not in known:
            raise unknown_name(f"compression {what}", word, list(known), plane.name or "image")
    header = Part([
        card("XTENSION", "IMAGE", ""), *_records(plane.cards),
        *([card("BUNIT", plane.unit, "unit of the pixels")] if plane.unit else []),
    ]).header()
    pixels = _pixels(plane)
    try:
        hdu = fits.CompImageHDU(
            pixels, header, name=plane.name, compression_type=how.kind,
            tile_shape=how.tile, quantize_level=how.quantize if pixels.dtype.kind == "f" else None,
            quantize_method=METHODS[how.method], dither_seed=how.seed,
        )
        hdu.ver = plane.version
        buffer = io.BytesIO()
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(buffer)
    except ValueError as error:
        raise SettingError(
            "{name}: {kind} does not compress it ({reason})", name=plane.name or "image",
            kind=how.kind, reason=str(error).splitlines()[0],
        ) from error
    return parts_of_bytes(buffer.getvalue(), plane.name)[1]


# --- tables ---------------------------------------------------------------------------------


def _table(plane: TablePlane) -> Part:
    """Return a binary table as a part of a file."""
    values = np.ma.getdata(plane.table)
    masks: Any = np.ma.getmaskarray(plane.table) if np.ma.isMaskedArray(plane.table) else None
    columns, cards = [], []
    for k, column in enumerate(plane.schema.columns, 1):
        mask = None if masks is None else masks[column.name]
        stored, form, more = _column(plane, column, values[column.name], mask)
        columns.append(stored)
        cards += [card(f"TTYPE{k}", column.name, ""), card(f"TFORM{k}", form, "")]
        cards += [card(f"{word}{k}", value, "") for word, value in more]
    dtype = [(c.name, v.dtype) for c, v in zip(plane.schema.columns, columns)]
    rows = np.empty(len(values), dtype=dtype)
    for column, stored in zip(plane.schema.columns, columns):
        rows[column.name] = stored
    records = [
        card("XTENSION", "BINTABLE", "table"), card("BITPIX", 8, ""), card("NAXIS", 2, ""),
        card("NAXIS1", rows.dtype.itemsize, "bytes of a row"),
        card("NAXIS2", len(rows), "number of rows"), card("PCOUNT", 0, ""), card("GCOUNT", 1, ""),
        card("TFIELDS", len(columns), "number of columns"), *_named(plane),
    ]
    records += [*cards, *_records(plane.cards)]
    return Part(records, data=rows.tobytes())


def _column(
    plane: TablePlane, column: Column, values: NDArray[Any], mask: NDArray[np.bool_] | None
) -> tuple[NDArray[Any], str, list[tuple[str, Value]]]:
    """Return the stored column, its TFORM, and its other cards."""
    more: list[tuple[str, Value]] = []
    if column.unit:
        more.append(("TUNIT", FITS_UNITS.get(column.unit, column.unit)))
    values = np.ascontiguousarray(values)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind in "SU":
        text = np.char.encode(values, "ascii", "replace") if values.dtype.kind == "U" else values
        stored = text.astype(f"S{max(text.dtype.itemsize, 1)}")
        return stored, f"{stored.dtype.itemsize}A", [*more, ("TCOMM", column.meaning)]
    kind = _kind(values.dtype)
    if kind not in FORMS or values.ndim != 1:
        raise SettingError(
            "{name}: column {column!r} of {dtype} has no form in FITS", name=plane.name,
            column=column.name, dtype=str(values.dtype),
        )
    form, stored_kind, zero = FORMS[kind]
    null = plane.nulls.get(column.name)
    if mask is not None and mask.any():
        if values.dtype.kind == "f":
            values = np.where(mask, values.dtype.type(np.nan), values)
        elif zero:  # readers do not agree on the null of an unsigned column
            values = np.where(mask, values.dtype.type(0), values)
        elif values.dtype.kind in "iu":
            null = int(np.iinfo(values.dtype).min) if null is None else null
            values = np.where(mask, values.dtype.type(null), values)
    if values.dtype.kind == "b":
        stored = np.where(values, np.uint8(ord("T")), np.uint8(ord("F")))
        if mask is not None:
            stored[mask] = 0
    else:
        stored = _stored(values, stored_kind, zero)
    if zero:
        more += [("TSCAL", 1), ("TZERO", zero)]
    if null is not None and not zero:
        more.append(("TNULL", null))
    display = DISPLAYS.get(column.unit, "G14.7") if values.dtype.kind == "f" else "I12"
    if values.dtype.kind != "b":
        more.append(("TDISP", display))
    return stored, form, [*more, ("TCOMM", column.meaning)]
