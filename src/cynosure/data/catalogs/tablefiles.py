"""Table files of any kind, as Arrow tables whose fields carry their units."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cynosure.ground.errors import CatalogDamaged, CatalogMissing

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["from_astropy", "read_table", "table_in_memory"]

# Bytes of a CSV from which the types of its columns are inferred, and pyarrow's largest block.
FIRST_BLOCK = 1 << 24
WHOLE_FILE = 2**31 - 1


def read_table(path: str | Path) -> pa.Table:
    """Read a Parquet, FITS, ECSV, CSV or VOTable file as an Arrow table with units.

    The format is recognised by the first bytes, not by the name, also of a file with gzip.

    Raises
    ------
    CatalogMissing
        If there is no such file.
    CatalogDamaged
        If it cannot be read as a table.
    """
    path = Path(path)
    if not path.is_file():
        raise CatalogMissing(catalog=str(path), reason="there is no such file")
    try:
        reader = _reader(path)
        return reader(path)
    except (
        OSError, ValueError, KeyError, TypeError, IndexError, EOFError, NotImplementedError,
    ) as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CatalogDamaged(
            catalog=str(path), reason=f"not a table that can be read ({text})",
            hint="Parquet, FITS, ECSV, CSV and VOTable are read.",
        ) from error


def _reader(path: Path) -> Callable[[Path], pa.Table]:
    with _opened(path) as stream:
        head = stream.read(4096)
    if not head.strip():
        raise CatalogDamaged(catalog=str(path), reason="the file is empty")
    if head[:4] == b"PAR1":
        return _read_parquet
    if head[:9] == b"SIMPLE  =":
        return _read_fits
    if head.lstrip().startswith(b"<") and b"VOTABLE" in head.upper():
        return _read_votable
    if b"%ECSV" in head[:200]:
        return _read_ecsv
    if b"\0" in head:
        raise CatalogDamaged(catalog=str(path), reason="not a table of a kind that is read here")
    return _read_csv


def _opened(path: Path) -> Any:
    """Open a file, through gzip where its content is compressed."""
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read()


def _read_csv(path: Path) -> pa.Table:
    return _parse_csv(path, 0, ",", None)


def _read_ecsv(path: Path) -> pa.Table:
    """Read an ECSV table: its header by astropy, its rows by Arrow (a hundred times faster)."""
    import pyarrow as pa
    from astropy.table.meta import get_header_from_yaml

    header = []
    with _opened(path) as stream:
        for line in stream:
            if not line.startswith(b"#"):
                break
            header.append(line.decode("utf-8").lstrip("#").removeprefix(" ").rstrip("\n\r"))
    found = get_header_from_yaml(header[1:])  # the first line names the format
    kinds = {
        column["name"]: getattr(pa, _ARROW_NAMES[column["datatype"]])()
        for column in found["datatype"]
        if column["datatype"] in _ARROW_NAMES and "subtype" not in column
    }
    table = _parse_csv(path, len(header), found.get("delimiter", " "), kinds)
    units = {column["name"]: column.get("unit") for column in found["datatype"]}
    fields = [
        f.with_metadata({"unit": str(units[f.name])}) if units.get(f.name) else f
        for f in table.schema
    ]
    return table.cast(pa.schema(fields))


_ARROW_NAMES = {
    "float64": "float64", "float32": "float32", "float16": "float32", "int64": "int64",
    "int32": "int32", "int16": "int16", "int8": "int8", "uint64": "uint64", "uint32": "uint32",
    "uint16": "uint16", "uint8": "uint8", "bool": "bool_", "string": "string",
}


def _parse_csv(path: Path, skip: int, delimiter: str, kinds: dict[str, Any] | None) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv

    convert = csv.ConvertOptions(
        null_values=["", "null", "NULL", "nan", "NaN", "--", "N/A"], column_types=kinds,
        true_values=["True", "true", "TRUE"], false_values=["False", "false", "FALSE"],
        strings_can_be_null=True,
    )
    parse = csv.ParseOptions(delimiter=delimiter)
    # The types are inferred from the first block; if that fails, from the whole file as one block.
    for block in (FIRST_BLOCK, WHOLE_FILE):
        reading = csv.ReadOptions(skip_rows=skip, block_size=block)
        try:
            with _opened(path) as stream:
                return csv.read_csv(stream, reading, parse, convert)
        except pa.ArrowInvalid:
            if block == WHOLE_FILE:
                raise
    raise AssertionError("unreachable")


def _read_votable(path: Path) -> pa.Table:
    import warnings

    from astropy.io.votable import parse_single_table
    from astropy.io.votable.exceptions import VOWarning

    with warnings.catch_warnings():
        # Most services deviate from the standard in details; the numbers are checked later.
        warnings.simplefilter("ignore", VOWarning)
        return from_astropy(parse_single_table(path).to_table(use_names_over_ids=True))


def _read_fits(path: Path) -> pa.Table:
    import warnings

    from astropy.io import fits

    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        stream = stack.enter_context(_opened(path))
        hdus = stack.enter_context(fits.open(stream, memmap=False))
        tables = [h for h in hdus if isinstance(h, (fits.BinTableHDU, fits.TableHDU)) and not
                  isinstance(h, fits.CompImageHDU)]
        # SCAMP's catalogues put the header of the image in a table of its own before the objects.
        tables = [h for h in tables if h.name != "LDAC_IMHEAD"]
        if not tables:
            raise CatalogDamaged(catalog=str(path), reason="no table in this FITS file")
        hdu = max(tables, key=lambda h: h.name == "LDAC_OBJECTS")
        columns = {
            c.name: (np.asarray(hdu.data[c.name]), c.unit or "", c.null) for c in hdu.columns
        }
    return _from_columns(columns)


def table_in_memory(source: Any) -> pa.Table:
    """Return a table of any of the usual kinds as an Arrow table.

    Parameters
    ----------
    source : Table, QTable, pyarrow.Table, DataFrame or structured array

    Raises
    ------
    CatalogDamaged
        If it is no table.
    """
    if hasattr(source, "colnames"):
        return from_astropy(source)
    if hasattr(source, "column_names") and hasattr(source, "schema"):
        return source
    if hasattr(source, "to_records"):  # pandas
        source = source.to_records(index=False)
    names = getattr(getattr(source, "dtype", None), "names", None)
    if not names:
        raise CatalogDamaged(
            catalog=type(source).__name__,
            reason="neither a path nor a table of stars",
            hint="Give a folder, a file, an astropy Table or QTable, or a structured array.",
        )
    return _from_columns({name: (source[name], "", None) for name in names})


def from_astropy(table: Any) -> pa.Table:
    """Return an astropy table as an Arrow table, masked values as null.

    A column of sky coordinates becomes the two columns ``ra`` and ``dec``, ICRS degrees.
    """
    columns = {}
    for name in table.colnames:
        column = table[name]
        if hasattr(column, "icrs"):
            place = column.icrs
            columns["ra"] = (place.ra.deg, "deg", None)
            columns["dec"] = (place.dec.deg, "deg", None)
            continue
        if getattr(column, "masked", False) and hasattr(column, "unmasked"):  # a masked quantity
            values = np.ma.MaskedArray(np.asarray(column.unmasked), np.asarray(column.mask))
            columns[name] = (values, str(column.unit or ""), None)
            continue
        unit = "" if column.unit is None else str(column.unit)
        values = getattr(column, "value", column)
        columns[name] = (values, unit, None)
    return _from_columns(columns)


def _from_columns(columns: Mapping[str, tuple[Any, str, Any]]) -> pa.Table:
    """Return an Arrow table of name → (values, unit, value of null)."""
    import pyarrow as pa

    fields, arrays = [], []
    for name, (values, unit, null) in columns.items():
        array = _to_arrow(values, null)
        if array is None:
            continue
        fields.append(pa.field(name, array.type, metadata={"unit": unit} if unit else None))
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _to_arrow(values: Any, null: Any) -> pa.Array | None:
    import pyarrow as pa

    mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    data = np.asarray(values.data if isinstance(values, np.ma.MaskedArray) else values)
    if data.dtype.kind in "SU":
        text = np.char.decode(data, "latin-1") if data.dtype.kind == "S" else data
        return pa.array([t.strip() for t in text.tolist()]) if data.ndim == 1 else None
    if data.dtype.kind == "O" and any(isinstance(v, np.ndarray) for v in data.ravel()):
        return None  # arrays of various lengths
    if data.dtype.kind == "O":
        return pa.array([None if v is None else str(v) for v in data]) if data.ndim == 1 else None
    if data.dtype.kind not in "iufb":
        return None
    data = np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("="))
    if null is not None and data.dtype.kind in "iu" and data.ndim == 1:
        mask = data == null
    if data.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(data.ravel()), data.shape[1])
    return pa.array(data, mask=mask) if data.ndim == 1 else None
