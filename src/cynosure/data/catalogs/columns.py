"""The meaning of the columns of a star catalogue.

Reference tables have many origins: Gaia, VizieR, SCAMP, LSST, a spreadsheet. This module recognises
their columns by name, converts or refuses their units, and returns their rows in the schema
``REFERENCE``. Values that a table does not have are NaN: unknown is not zero.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.catalogs.roles import (
    BANDS,
    GAIA_NAMES,
    MADE_FROM,
    NEEDED,
    POGSON,
    ROLES,
    Role,
)
from cynosure.data.tables import REFERENCE, Schema
from cynosure.ground.errors import CatalogDamaged
from cynosure.ground.sky import healpix_cell

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "GAIA_NAMES",
    "INDEX_COLUMNS",
    "KNOWN_CATALOGS",
    "Meaning",
    "Pieces",
    "Role",
    "array_values",
    "catalog_word",
    "column_unit",
    "find_meaning",
    "named_by_columns",
    "unit_scale",
]

Floats = NDArray[np.float64]
Pieces = Sequence[tuple["pa.Table", Any]]  # tables, and which of their rows

INDEX_COLUMNS = ("_healpix_29", "_hipscat_index")

# Catalogue word -> epoch of its positions (Julian year), error of a position without one (mas; for
# Gaia the error at magnitude 20, rounded up; Tycho-2: Hog et al. 2000, A&A 355, L27).
KNOWN_CATALOGS: dict[str, tuple[float, float]] = {
    "GAIADR1": (2015.0, 1.0),
    "GAIADR2": (2015.5, 0.7),
    "GAIAEDR3": (2016.0, 0.5),
    "GAIADR3": (2016.0, 0.5),
    "TYCHO2": (2000.0, 60.0),
    "HIPPARCOS": (1991.25, 1.0),
}
# Error of positions of an unknown catalogue: that of USNO-B or GSC, the worst still in use, is
# 200 mas, that of CCD surveys below 100.
UNKNOWN_POSITION_ERROR_MAS = 100.0
BLANK_MAG = 40.0  # larger magnitudes (99.99, 1e20, also -9999) mean "unknown"


# --- units ------------------------------------------------------------------------------------

_ANGLE = {  # in degrees
    "deg": 1.0, "degree": 1.0, "degrees": 1.0, "angle[deg]": 1.0, "°": 1.0,
    "rad": 180.0 / np.pi, "radian": 180.0 / np.pi, "radians": 180.0 / np.pi,
    "arcmin": 1 / 60.0, "arcsec": 1 / 3600.0, "arcsecond": 1 / 3600.0, "asec": 1 / 3600.0,
    "mas": 1 / 3.6e6, "milliarcsec": 1 / 3.6e6, "marcsec": 1 / 3.6e6, "uas": 1 / 3.6e9,
    "hourangle": 15.0, "hour": 15.0, "hours": 15.0, "h": 15.0, "hr": 15.0,
}
_YEARS = ("yr", "year", "years", "a", "jyr", "julianyear")


def unit_scale(unit: str, wanted: str) -> float | None:
    """Return the factor that converts `unit` to `wanted`; None if they are not compatible.

    The common spellings are known here; any other is left to ``astropy.units``, which is imported
    only then.
    """
    text = re.sub(r"\s+", "", unit.strip().strip("'\"")).replace("**", "").replace("^", "")
    if text in ("", wanted):
        return 1.0
    simple = text.lower()
    if wanted in ("deg", "mas"):
        scale = _ANGLE.get(simple)
    elif wanted == "mas/yr":
        angle, years = re.sub(r"[.*]?(yr|year|a|jyr)-1$", r"/\1", simple).rpartition("/")[::2]
        scale = _ANGLE.get(angle) if years in _YEARS else None
    elif wanted == "yr":
        scale = 1.0 if simple in _YEARS else None
    elif wanted == "mag":
        scale = 1.0 if re.fullmatch(r"mag(nitudes?)?(\(.*\)|_?(ab|vega))?", simple) else None
    else:
        scale = None
    if scale is not None:
        return scale * 3.6e6 if wanted.startswith("mas") else scale
    return _astropy_scale(unit, wanted)


def _astropy_scale(unit: str, wanted: str) -> float | None:
    from astropy import units

    try:
        parsed = units.Unit(unit)
        if wanted == "":
            return float(parsed.to(units.dimensionless_unscaled))
        return float(parsed.to(units.Unit(wanted)))
    except (ValueError, TypeError, units.UnitConversionError):
        return None


def column_unit(column: pa.Field) -> str:
    """Return the unit in an Arrow field's metadata, "" where there is none."""
    metadata = column.metadata or {}
    for key in (b"unit", b"units", b"Unit"):
        if key in metadata:
            unit = metadata[key].decode("utf-8", "replace").strip()
            return "" if unit.lower() in ("none", "null", "-", "---") else unit
    return ""


# --- names --------------------------------------------------------------------------------------


_ENDINGS = "parquet parq pq fits? fts fz gz ecsv csv xml vot votable cat ldac bz2".split()


def catalog_word(*texts: str | None) -> str:
    """Return the short word for a catalogue, for WCSNAME: GAIADR3, TYCHO2, or its own name.

    Examples
    --------
    >>> catalog_word("gaia_edr3.parquet"), catalog_word("Tycho-2"), catalog_word("my stars.csv")
    ('GAIAEDR3', 'TYCHO2', 'MYSTARS')
    """
    given = [t for t in texts if t]
    for text in given:
        plain = re.sub(r"[^a-z0-9]", "", text.lower())
        release = re.search(r"gaia(?:source|cat)?(e?dr[1-9])", plain)
        if release:
            return "GAIA" + release.group(1).upper()
        if "tycho2" in plain or re.search(r"i/259\b", text.lower()):
            return "TYCHO2"
        if "hipparcos" in plain:
            return "HIPPARCOS"
    for text in given:
        if "gaia" in text.lower():
            return "GAIA"
    for text in given:
        stem = re.sub(rf"(\.({'|'.join(_ENDINGS)}))+$", "", text.lower())
        word = re.sub(r"[^A-Z0-9]", "", stem.upper())
        if word:
            return word[:24]
    return "REFCAT"


def named_by_columns(schema: pa.Schema | None, epoch_yr: float | None, word: str) -> str:
    """Return the word of the Gaia release that columns and epoch identify, else the given word."""
    if schema is None or word in KNOWN_CATALOGS or epoch_yr is None:
        return word
    if not {"source_id", "phot_g_mean_mag", "ra_error", "ref_epoch"} <= set(schema.names):
        return word
    # The astrometry of EDR3 and of DR3 is the same.
    releases = {2015.0: "GAIADR1", 2015.5: "GAIADR2", 2016.0: "GAIADR3"}
    return releases.get(epoch_yr, word)


# --- meaning ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a role's values come from."""

    column: str
    scale: float
    declared: bool
    from_days: bool = False


@dataclass(frozen=True, slots=True)
class Meaning:
    """The mapping of a catalogue's columns to ``REFERENCE``; made by :func:`find_meaning`.

    Attributes
    ----------
    catalog : str
        What messages call it.
    sources : dict
        Role name to the column it comes from.
    index_column : str or None
        Column of HEALPix cells of order 29, where there is one.
    ref_epoch_yr : float
        For rows without an epoch; NaN is unknown.
    position_error_mas : float
        For rows without a position error.
    """

    catalog: str
    sources: Mapping[str, _Source]
    index_column: str | None = None
    ref_epoch_yr: float = float("nan")
    position_error_mas: float = UNKNOWN_POSITION_ERROR_MAS
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The columns to read, in a fixed order."""
        names = [s.column for s in self.sources.values()]
        if self.index_column:
            names.append(self.index_column)
        return list(dict.fromkeys(names))

    def only(self, columns: Iterable[str]) -> Meaning:
        """Return the mapping restricted to the inputs of some columns of ``REFERENCE``.

        Positions, magnitudes and identifiers are always read: stars are selected and sorted by
        them.
        """
        wanted = {*NEEDED, "ref_id", *columns}
        for name in tuple(wanted):
            if not (name == "color" and "color" in self.sources):
                wanted.update(MADE_FROM.get(name, ()))
        sources = {role: s for role, s in self.sources.items() if role in wanted}
        return dataclasses.replace(self, sources=sources)

    def column(self, role: str) -> str | None:
        """Return the column of a role."""
        source = self.sources.get(role)
        return source.column if source else None

    def values(self, table: pa.Table, role: str, rows: Any = slice(None)) -> Floats:
        """Return a role's numbers in its unit, NaN where there are none."""
        source = self.sources[role]
        values = numbers(table, source.column, self.catalog, rows)
        if source.from_days:
            days = np.where(values > 2.4e6, values - 2400000.5, values)
            return 2000.0 + (days - 51544.5) / 365.25
        return values * source.scale if source.scale != 1.0 else values

    def magnitudes(self, table: pa.Table, rows: Any = slice(None)) -> Floats:
        """Return the magnitudes, with impossible ones as NaN."""
        return _possible("mag", self.values(table, "mag", rows))

    def ranked(self, pieces: Pieces, max_rows: int | None) -> NDArray[np.int64]:
        """Return the order of stars by magnitude, then identifier; unknown magnitudes last."""
        mags = _possible("mag", self._of(pieces, "mag"))
        order = np.argsort(mags, kind="stable")
        sorted_mags = mags[order]
        if np.any(sorted_mags[1:] == sorted_mags[:-1]) or np.isnan(sorted_mags[-2:]).sum() == 2:
            order = np.lexsort((self._identifiers(pieces), mags))
        return order if max_rows is None else order[:max_rows]

    def to_reference(
        self, pieces: Pieces, order: Any = slice(None), schema: Schema = REFERENCE
    ) -> NDArray[np.void]:
        """Return rows of tables as ``REFERENCE``, or a part of it.

        Positions are checked to be possible degrees; a number that is not possible (a motion of
        20"/yr, an error of zero, a magnitude of 99) is unknown.

        Parameters
        ----------
        pieces : list of (Arrow table, rows)
            Joined in this order.
        order : array of int, optional
            Which of all those rows, and in which order.

        Raises
        ------
        CatalogDamaged
            If a declination is beyond the poles or a right ascension beyond a turn.
        """
        found: dict[str, Any] = {
            role: _possible(role, self._of(pieces, role, order))
            for role in self.sources if role != "ref_id"
        }
        ra, dec = found["ra_deg"], found["dec_deg"]
        check_degrees(self.catalog, ra, dec, self.column("ra_deg"), self.column("dec_deg"))
        found["ra_deg"] = ra % 360.0 if np.any((ra < 0) | (ra >= 360.0)) else ra
        if "color" not in found and {"bp_mag", "rp_mag"} <= set(found):
            found["color"] = _possible("color", found["bp_mag"] - found["rp_mag"])
        for band, ratio in BANDS.items():
            if f"{band}_error" not in found and ratio in found:
                with np.errstate(invalid="ignore", divide="ignore"):
                    error = np.where(found[ratio] > 0, POGSON / found[ratio], np.nan)
                found[f"{band}_error"] = error
        for name in ("ra_error_mas", "dec_error_mas"):
            found[name] = _filled(found.get(name), self.position_error_mas)
        found["ref_epoch_yr"] = _filled(found.get("ref_epoch_yr"), self.ref_epoch_yr)
        if "params_solved" in found:  # Gaia's positions without motions say so
            for name in {"pm_ra_mas_yr", "pm_dec_mas_yr", "parallax_mas"} & set(found):
                found[name] = np.where(found["params_solved"] == 3, np.nan, found[name])
        out = np.empty(len(ra), dtype=schema.dtype)
        for name in schema.names:
            out[name] = found.get(name, np.nan) if name not in ("ref_id", "good") else 0
        if "ref_id" in schema.names:
            out["ref_id"] = self._identifiers(pieces)[order]
        if "good" in schema.names:
            out["good"] = _passes(found)
        return out

    def _of(self, pieces: Pieces, role: str, order: Any = slice(None)) -> Floats:
        values = [self.values(table, role, rows) for table, rows in pieces]
        return _joined(values)[order]

    def _identifiers(self, pieces: Pieces) -> NDArray[np.int64]:
        """Return the catalogue's integer identifiers, or else the cells of order 29."""
        name = self.column("ref_id")
        if name is not None and not any(t.column(name).null_count for t, _ in pieces):
            ids = [array_values(t.column(name))[rows].astype(np.int64) for t, rows in pieces]
            return np.asarray(_joined(ids), dtype=np.int64)
        return healpix_cell(self._of(pieces, "ra_deg") % 360.0, self._of(pieces, "dec_deg"))


def _joined(values: list[NDArray[Any]]) -> NDArray[Any]:
    if len(values) == 1:
        return values[0]
    return np.concatenate(values) if values else np.zeros(0)


def _filled(values: Floats | None, unknown: float) -> Floats | float:
    return unknown if values is None else np.where(np.isnan(values), unknown, values)


def _possible(role: str, values: Floats) -> Floats:
    """Replace impossible values, which mean "unknown" in many tables, by NaN.

    The limits: errors in (0, 1e6) mas, motions below 20"/yr (Barnard's star: 10.4), parallaxes
    below 2" (Proxima: 0.77).
    """
    with np.errstate(invalid="ignore"):
        if role in ("mag", "color", "bp_mag", "rp_mag"):
            return np.where(np.abs(values) < BLANK_MAG, values, np.nan)
        if "error" in role:
            return np.where((values > 0) & (values < 1e6), values, np.nan)
        if role.startswith("pm_"):
            return np.where(np.abs(values) < 20000.0, values, np.nan)
        if role == "parallax_mas":
            return np.where(np.abs(values) < 2000.0, values, np.nan)
        if role == "ref_epoch_yr":
            return np.where((values > 1800.0) & (values < 2200.0), values, np.nan)
        if role.endswith("_corr"):
            return np.where(np.abs(values) <= 1.0, values, np.nan)
    return values


def _passes(found: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Say which stars pass the quality cuts whose columns exist.

    A five- or six-parameter solution (31, 95), RUWE below 1.4 (Lindegren 2018, technical note
    GAIA-C3-TN-LU-LL-124), not a duplicate, and few images with several peaks.
    """
    good = np.ones(len(found["ra_deg"]), dtype=bool)
    with np.errstate(invalid="ignore"):
        if "params_solved" in found:
            good &= np.isin(found["params_solved"], (31, 95))
        if "ruwe" in found:
            good &= ~(found["ruwe"] >= 1.4)
        if "duplicated" in found:
            good &= ~(found["duplicated"] > 0)
        if "multi_peak" in found:
            good &= ~(found["multi_peak"] > 10)
    return good


def check_degrees(
    catalog: str, ra_deg: Floats, dec_deg: Floats, ra_name: str | None = "ra",
    dec_name: str | None = "dec",
) -> None:
    """Refuse positions that cannot be degrees; NaN are allowed."""
    for values, name, limit in ((dec_deg, dec_name, 90.0), (ra_deg, ra_name, 360.0)):
        beyond = np.abs(values) > limit * (1 + 1e-12)
        if beyond.any():
            raise CatalogDamaged(
                "{catalog}: column {column!r} has {n} values beyond ±{limit:g}, the first is "
                "{value:g}: not degrees",
                catalog=catalog, column=name, n=int(beyond.sum()), limit=limit,
                value=float(values[np.argmax(beyond)]),
                hint="Declare the column's unit in the table, or convert it to degrees.",
            )


def numbers(table: pa.Table, column: str, catalog: str, rows: Any = slice(None)) -> Floats:
    """Return rows of an Arrow column as float64, null as NaN."""
    import pyarrow as pa

    data = table.column(column)
    kind = data.type
    if pa.types.is_dictionary(kind) or pa.types.is_decimal(kind):
        data = data.cast(pa.float64())
    elif not (
        pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    ):
        raise CatalogDamaged(
            "{catalog}: column {column!r} is {kind}, a number is expected",
            catalog=catalog, column=column, kind=str(kind),
            hint="Sexagesimal text is not read: convert it to degrees.",
        )
    return array_values(data, np.nan)[rows].astype(np.float64, copy=False)


_DTYPES = {
    "double": "f8", "float": "f4", "halffloat": "f2", "int64": "i8", "int32": "i4", "int16": "i2",
    "int8": "i1", "uint64": "u8", "uint32": "u4", "uint16": "u2", "uint8": "u1",
}


def array_values(column: pa.ChunkedArray, null: float | None = None) -> NDArray[Any]:
    """Return the numbers of an Arrow column; `null`, if given, replaces null (as float64).

    ``to_numpy`` would do, but it imports pandas where pandas is installed: a third of a second.
    """
    pieces = [_chunk_values(chunk, null) for chunk in column.chunks if len(chunk)]
    if not pieces:
        return np.zeros(0, dtype=_DTYPES.get(str(column.type), "f8"))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _chunk_values(chunk: pa.Array, null: float | None) -> NDArray[Any]:
    valid, data = chunk.buffers()
    rows = slice(chunk.offset, chunk.offset + len(chunk))
    if str(chunk.type) == "bool":
        values = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[rows]
    else:
        values = np.frombuffer(data, _DTYPES[str(chunk.type)])[rows]
    if null is not None and chunk.null_count:
        bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[rows]
        values = np.where(bits == 1, values.astype(np.float64), null)
    return values


def find_meaning(
    schema: pa.Schema, catalog: str, *, word: str = "", ref_epoch_yr: float | None = None,
    position_error_mas: float | None = None, named: Mapping[str, str] | None = None,
) -> Meaning:
    """Recognise the columns of a catalogue by name and unit.

    Parameters
    ----------
    schema : pyarrow.Schema
        Names, types and (in each field's metadata) units.
    catalog : str
        What messages call it.
    word : str
        The catalogue's word, which determines epoch and errors of known catalogues.
    ref_epoch_yr, position_error_mas : float, optional
        For rows without a value of their own.
    named : mapping, optional
        Role (or "index") to the column that the catalogue's metadata name for it.

    Raises
    ------
    CatalogDamaged
        If there is no position or magnitude, or a unit does not fit the quantity.
    """
    by_name = {name.lower(): name for name in reversed(schema.names)}
    sources: dict[str, _Source] = {}
    own = {role: n for role, n in (named or {}).items() if n in schema.names}
    for role in ROLES:
        names = role.names
        if role.name.endswith("mag_error"):
            names = _error_names(sources.get(role.name.removesuffix("_error")))
        elif role.name == "g_snr" and "phot_g_mean_mag" not in _column_of(sources.get("mag")):
            continue  # the magnitude is in another band
        name = own.get(role.name) or next((by_name[n] for n in names if n in by_name), None)
        if name is not None and _usable(schema.field(name), role):
            sources[role.name] = _source(schema.field(name), role, catalog)
    missing = [n for n in NEEDED if n not in sources]
    if missing:
        raise CatalogDamaged(
            "{catalog}: no column for {missing} among {columns}",
            catalog=catalog, missing=", ".join(missing), columns=", ".join(schema.names[:40]),
            hint="Needed are ra and dec (deg) and a magnitude, by Gaia's names or common ones: "
            "ra, RA_ICRS, RAJ2000, ALPHA_J2000; phot_g_mean_mag, Gmag, mag, vt_mag, Vmag.",
        )
    known_epoch, known_error = KNOWN_CATALOGS.get(
        word, (float("nan"), 0.5 if word == "GAIA" else UNKNOWN_POSITION_ERROR_MAS)
    )
    notes = []
    if "ref_epoch_yr" not in sources and ref_epoch_yr is None and np.isfinite(known_epoch):
        notes.append(f"the epoch of the positions is taken to be {known_epoch:g}, as in {word}")
    error = known_error if position_error_mas is None else position_error_mas
    if "ref_epoch_yr" not in sources and ref_epoch_yr is None and not np.isfinite(known_epoch):
        notes.append("the epoch of the positions is unknown: say it with --ref-epoch")
    if not {"ra_error_mas", "dec_error_mas"} <= set(sources):
        notes.append(f"position errors are unknown and taken to be {error:g} mas")
    if not {"pm_ra_mas_yr", "pm_dec_mas_yr"} <= set(sources):
        notes.append("proper motions are unknown")
    index = own.get("index") or next((n for n in INDEX_COLUMNS if n in schema.names), None)
    epoch = known_epoch if ref_epoch_yr is None else ref_epoch_yr
    return Meaning(catalog, sources, index, epoch, error, tuple(notes))


def _column_of(source: _Source | None) -> str:
    return source.column.lower() if source else ""


def _error_names(source: _Source | None) -> tuple[str, ...]:
    """Return the names of the error of a magnitude: by that of the magnitude's own column."""
    name = _column_of(source)
    if not name:
        return ()
    error = re.sub("^mag", "magerr", name) if name.startswith("mag") else ""
    return tuple(filter(None, (
        f"{name}_error", f"e_{name}", f"{name}_err", f"{name}err", f"sigma_{name}", error,
    )))


def _usable(column: pa.Field, role: Role) -> bool:
    """Say whether a column's type fits: identifiers and flags that are texts are passed over."""
    import pyarrow as pa

    kind = column.type
    if role.name == "ref_id":
        return pa.types.is_integer(kind)
    if role.name in NEEDED:
        return True
    return (
        pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def _source(column: pa.Field, role: Role, catalog: str) -> _Source:
    unit = column_unit(column)
    if role.name == "ref_id" or role.unit == "" or unit == "":
        return _Source(column.name, 1.0, bool(unit))
    if role.unit == "yr" and unit.strip().lower() in ("d", "day", "days", "mjd", "jd"):
        return _Source(column.name, 1.0, True, from_days=True)
    scale = unit_scale(unit, role.unit)
    if scale is None:
        raise CatalogDamaged(
            "{catalog}: column {column!r} is in {unit!r}, a unit of {expected} is expected",
            catalog=catalog, column=column.name, unit=unit, expected=role.unit,
            hint="Correct the unit in the table, or rename the column if it is something else.",
        )
    return _Source(column.name, scale, True)
