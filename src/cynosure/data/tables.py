"""The schemas of the public tables, and the registry of source flags.

A table inside cynosure is a NumPy structured array with the dtype of a :class:`Schema`; an empty
table has no rows and all columns. :meth:`Schema.to_arrow` and :func:`write_parquet` keep units and
meanings.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.ground.errors import CatalogDamaged, OutputError, SettingError
from cynosure.ground.settings import unknown_name

if TYPE_CHECKING:
    import pyarrow as pa
    from astropy.table import QTable

__all__ = [
    "ASTROMETRY",
    "MATCHES",
    "REFERENCE",
    "SOURCES",
    "Column",
    "Schema",
    "SourceFlag",
    "arrow_array",
    "read_parquet",
    "write_parquet",
]


# Units of the schemas that astropy spells otherwise.
ASTROPY_UNITS = {"px": "pix", "e-": "electron"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, NumPy type, unit and meaning."""

    name: str
    dtype: str
    unit: str
    meaning: str


class Schema:
    """The columns of a table, in order.

    Examples
    --------
    >>> table = SOURCES.empty(2)
    >>> bool(np.isnan(table["x"]).all()), int(table["flags"].sum())
    (True, 0)
    """

    def __init__(self, name: str, columns: Iterable[tuple[str, str, str, str]]):
        self.name = name
        self.columns = tuple(Column(*c) for c in columns)
        self.dtype = np.dtype([(c.name, c.dtype) for c in self.columns])

    @property
    def names(self) -> tuple[str, ...]:
        """The column names, in order."""
        return tuple(c.name for c in self.columns)

    def part(self, names: Iterable[str]) -> Schema:
        """Return a schema of some of the columns, in the order of this one.

        Raises
        ------
        SettingError
            If there is no column of such a name, or none is named.
        """
        wanted = set(names)
        for name in sorted(wanted - set(self.names)):
            raise unknown_name("column", name, list(self.names), self.name)
        if not wanted:
            raise SettingError("{schema}: no columns are asked for", schema=self.name)
        rows = [(c.name, c.dtype, c.unit, c.meaning) for c in self.columns if c.name in wanted]
        return Schema(self.name, rows)

    def empty(self, n: int = 0) -> NDArray[np.void]:
        """Return `n` rows with NaN for every float, 0 for every integer and False for booleans."""
        table = np.zeros(n, dtype=self.dtype)
        for column in self.columns:
            if table.dtype[column.name].kind == "f":
                table[column.name] = np.nan
        return table

    def build(self, **columns: Any) -> NDArray[np.void]:
        """Return a table with the given columns; the others are as in :meth:`empty`."""
        n = max((np.size(v) for v in columns.values()), default=0)
        table = self.empty(n)
        for name, values in columns.items():
            table[name] = values
        return table

    def to_arrow(self, table: NDArray[np.void]) -> pa.Table:
        """Return an Arrow table with unit and meaning in each field's metadata."""
        import pyarrow as pa

        fields, arrays = [], []
        for c in self.columns:
            array = arrow_array(np.ascontiguousarray(table[c.name]))
            arrays.append(array)
            notes = {"unit": c.unit, "meaning": c.meaning}
            fields.append(pa.field(c.name, array.type, metadata=notes))
        schema = pa.schema(fields, metadata={"cynosure": self.name})
        return pa.Table.from_arrays(arrays, schema=schema)

    def to_qtable(self, table: NDArray[np.void]) -> QTable:
        """Return an astropy QTable: columns with units are quantities, meanings are descriptions.

        The memory of the columns is shared with `table`.
        """
        from astropy import units
        from astropy.table import Column as PlainColumn
        from astropy.table import QTable

        out = QTable(meta={"schema": self.name})
        for c in self.columns:
            values = table[c.name]
            unit = units.Unit(ASTROPY_UNITS.get(c.unit, c.unit)) if c.unit else None
            out[c.name] = (
                PlainColumn(values, copy=False) if unit is None
                else units.Quantity(values, unit, copy=False)
            )
            out[c.name].info.description = c.meaning
        return out

    def from_arrow(self, table: pa.Table, where: str = "table") -> NDArray[np.void]:
        """Return a structured array from an Arrow table that has at least these columns."""
        missing = [n for n in self.names if n not in table.column_names]
        if missing:
            raise CatalogDamaged(catalog=where, reason=f"columns missing: {', '.join(missing)}")
        out = self.empty(table.num_rows)
        for name in self.names:
            out[name] = _numpy_array(table.column(name), out.dtype[name])
        return out


def arrow_array(values: NDArray[Any]) -> pa.Array:
    """Return an Arrow array over NumPy's own memory.

    pyarrow's conversions import pandas where it is installed, which takes longer than a table.
    """
    import pyarrow as pa

    if values.dtype.kind == "b":
        packed = np.packbits(values, bitorder="little")
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(packed)])
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _numpy_array(column: pa.ChunkedArray, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a column of numbers without nulls, or with them as NaN, as a NumPy array."""
    kind = str(column.type)
    if column.null_count or kind == "bool" or kind not in _PLAIN:
        return np.array(column.to_pylist(), dtype=dtype)
    plain = _PLAIN[kind]
    parts = [
        np.frombuffer(chunk.buffers()[1], plain)[chunk.offset : chunk.offset + len(chunk)]
        for chunk in column.chunks
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)


_PLAIN = {
    "double": "f8", "float": "f4", "int64": "i8", "int32": "i4", "int16": "i2", "uint32": "u4",
}


def write_parquet(path: str | Path, table: NDArray[np.void], schema: Schema) -> None:
    """Write a table to Parquet: to a temporary file beside it, fsync, rename."""
    import pyarrow.parquet as pq

    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            pq.write_table(schema.to_arrow(table), temporary, compression="zstd")
            with Path(temporary).open("rb") as stream:
                os.fsync(stream.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(path=str(path), reason=error.strerror or str(error)) from error


def read_parquet(path: str | Path, schema: Schema) -> NDArray[np.void]:
    """Read a table of a known schema from Parquet."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        wanted = [n for n in schema.names if n in file.schema_arrow.names]
        return schema.from_arrow(file.read(columns=wanted), str(path))


class SourceFlag(IntFlag):
    """The problems of a source; 0 is a source without any."""

    SATURATED = 1  # a pixel of the core at or above the saturation level
    EDGE = 2  # the measuring aperture leaves the frame
    BAD_PIXEL = 4  # a masked or NaN pixel within the fit radius
    BLENDED = 8  # another source close enough to share pixels of the fit
    COSMIC = 16  # sharper than the PSF: more likely a cosmic ray or hot pixel than a star
    EXTENDED = 32  # broader than the PSF: more likely a galaxy or a blend than a star
    TRAIL = 64  # part of a long thin feature: satellite, bleed, bad column
    NOT_CONVERGED = 128  # the PSF fit did not converge; position from the windowed centroid
    NEAR_BRIGHT = 256  # on the wing of a much brighter star
    FORCED = 512  # measured where it was asked for, not where it was found

    @classmethod
    def unusable(cls) -> SourceFlag:
        """Flags that keep a source out of an astrometric fit."""
        return cls.SATURATED | cls.EDGE | cls.BAD_PIXEL | cls.COSMIC | cls.TRAIL | cls.NOT_CONVERGED


SOURCES = Schema(
    "cynosure.sources/1",
    [
        ("chip", "i4", "", "0-based number of the detector array in its exposure"),
        ("x", "f8", "px", "column of the centre, 0-based, the first pixel's centre is 0.0"),
        ("y", "f8", "px", "row of the centre, 0-based"),
        ("x_err", "f8", "px", "standard error of x"),
        ("y_err", "f8", "px", "standard error of y"),
        ("xy_corr", "f8", "", "correlation of x and y"),
        ("flux_e", "f8", "e-", "flux of the PSF fit"),
        ("flux_err_e", "f8", "e-", "standard error of flux_e"),
        ("snr", "f8", "", "flux_e / flux_err_e, or the detection significance before the fit"),
        ("peak_snr", "f8", "", "significance of the matched-filter peak over the background noise"),
        ("flux_aper_e", "f8", "e-", "flux in a circular aperture of radius aper_radius_px"),
        ("flux_aper_err_e", "f8", "e-", "standard error of flux_aper_e"),
        ("background_e", "f8", "e-", "background under the source, per pixel"),
        ("fwhm_px", "f8", "px", "full width at half maximum from the windowed moments"),
        ("ellipticity", "f8", "", "1 - b/a of the windowed moments"),
        ("theta_deg", "f8", "deg", "position angle of the major axis from +x towards +y"),
        ("sharpness", "f8", "",
         "log-likelihood ratio of a single-pixel spike to a star; above 0 a spike"),
        ("chi2_dof", "f8", "", "chi^2 per degree of freedom of the PSF fit"),
        ("flags", "i4", "", "sum of SourceFlag"),
        ("mask_bits", "u4", "", "bits of the mask dictionary in the measuring aperture"),
        ("mask_bits_center", "u4", "", "bits of the mask dictionary at the centre"),
        ("iteration", "i4", "", "pass in which it was found, 0 the first; -1 for a forced one"),
    ],
)

REFERENCE = Schema(
    "cynosure.reference/1",
    [
        ("ref_id", "i8", "", "identifier in the catalogue (Gaia source_id)"),
        ("ra_deg", "f8", "deg", "right ascension, ICRS, at ref_epoch_yr"),
        ("dec_deg", "f8", "deg", "declination, ICRS, at ref_epoch_yr"),
        ("ref_epoch_yr", "f8", "yr", "Julian year of the position"),
        ("mag", "f8", "mag", "magnitude (Gaia G, or what the catalogue has)"),
        ("mag_error", "f8", "mag", "standard error of mag, NaN where unknown"),
        ("color", "f8", "mag", "colour (Gaia BP-RP), NaN where unknown"),
        ("bp_mag", "f8", "mag", "magnitude in BP, NaN where unknown"),
        ("bp_mag_error", "f8", "mag", "standard error of bp_mag"),
        ("rp_mag", "f8", "mag", "magnitude in RP, NaN where unknown"),
        ("rp_mag_error", "f8", "mag", "standard error of rp_mag"),
        ("ra_error_mas", "f8", "mas", "standard error in ra, with cos dec"),
        ("dec_error_mas", "f8", "mas", "standard error in dec"),
        ("parallax_mas", "f8", "mas", "parallax, NaN where unknown"),
        ("parallax_error_mas", "f8", "mas", "standard error of the parallax"),
        ("pm_ra_mas_yr", "f8", "mas/yr", "proper motion in ra, with cos dec, NaN where unknown"),
        ("pm_dec_mas_yr", "f8", "mas/yr", "proper motion in dec, NaN where unknown"),
        ("pm_ra_error_mas_yr", "f8", "mas/yr", "standard error of pm_ra_mas_yr"),
        ("pm_dec_error_mas_yr", "f8", "mas/yr", "standard error of pm_dec_mas_yr"),
        ("ra_dec_corr", "f4", "", "correlation"),
        ("ra_parallax_corr", "f4", "", "correlation"),
        ("ra_pmra_corr", "f4", "", "correlation"),
        ("ra_pmdec_corr", "f4", "", "correlation"),
        ("dec_parallax_corr", "f4", "", "correlation"),
        ("dec_pmra_corr", "f4", "", "correlation"),
        ("dec_pmdec_corr", "f4", "", "correlation"),
        ("parallax_pmra_corr", "f4", "", "correlation"),
        ("parallax_pmdec_corr", "f4", "", "correlation"),
        ("pmra_pmdec_corr", "f4", "", "correlation"),
        ("good", "?", "", "passes the quality cuts for an astrometric reference"),
    ],
)

# The columns of a reference star for an astrometric fit: all without the photometry of other bands.
PHOTOMETRY_ONLY = ("mag_error", "bp_mag", "bp_mag_error", "rp_mag", "rp_mag_error")
ASTROMETRY = tuple(n for n in REFERENCE.names if n not in PHOTOMETRY_ONLY)

MATCHES = Schema(
    "cynosure.matches/1",
    [
        ("chip", "i4", "", "0-based number of the detector array in its exposure"),
        ("x", "f8", "px", "column of the source, 0-based"),
        ("y", "f8", "px", "row of the source, 0-based"),
        ("x_err", "f8", "px", "standard error of x"),
        ("y_err", "f8", "px", "standard error of y"),
        ("flux_e", "f8", "e-", "flux of the source"),
        ("snr", "f8", "", "signal to noise of the source"),
        ("ra_deg", "f8", "deg", "the source through the solution, ICRS"),
        ("dec_deg", "f8", "deg", "the source through the solution, ICRS"),
        ("ref_id", "i8", "", "identifier of the reference star"),
        ("ref_ra_deg", "f8", "deg", "reference star at the epoch of the image, ICRS"),
        ("ref_dec_deg", "f8", "deg", "reference star at the epoch of the image, ICRS"),
        ("ref_mag", "f8", "mag", "magnitude of the reference star"),
        ("ref_color", "f8", "mag", "colour of the reference star"),
        ("dra_mas", "f8", "mas", "source minus reference in ra, with cos dec"),
        ("ddec_mas", "f8", "mas", "source minus reference in dec"),
        ("sigma_ra_mas", "f8", "mas", "standard error of dra_mas by the error model"),
        ("sigma_dec_mas", "f8", "mas", "standard error of ddec_mas by the error model"),
        ("used", "?", "", "took part in the fit"),
        ("reserved", "?", "", "held out of the fit, to judge it"),
    ],
)
