"""WCSCORR: the table of every WCS that an exposure had, in Hubble's 24 columns.

One row is one chip of one solution. The first rows are those of the telescope's own WCS, which are
never removed; a solution that is only attached has one row with EXTVER 0. Rows without a WCS_ID are
reserve. A row is not written twice: names longer than their column are told apart by the numbers
of their WCS, never by what is left of the name.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fits.alternates import Records
from cynosure.data.fits.blocks import CARD
from cynosure.data.fits.parts import FitsParts, Part, card
from cynosure.solutions.files.headerlet import ChipWcs, Headerlet
from cynosure.solutions.names import model_name, parse_distname

__all__ = ["COLUMNS", "WcsCorr", "find_wcscorr", "new_wcscorr"]

# Name and TFORM of each column, in the order in which stwcs writes them.
COLUMNS = (
    ("WCS_ID", "40A"), ("EXTVER", "I"), ("WCS_key", "A"), ("HDRNAME", "24A"), ("SIPNAME", "24A"),
    ("NPOLNAME", "24A"), ("D2IMNAME", "24A"), ("CRVAL1", "D"), ("CRVAL2", "D"), ("CRPIX1", "D"),
    ("CRPIX2", "D"), ("CD1_1", "D"), ("CD1_2", "D"), ("CD2_1", "D"), ("CD2_2", "D"),
    ("CTYPE1", "24A"), ("CTYPE2", "24A"), ("ORIENTAT", "D"), ("PA_V3", "D"), ("RMS_RA", "D"),
    ("RMS_Dec", "D"), ("NMatch", "J"), ("Catalog", "40A"), ("DESCRIP", "128A"),
)
LINEAR = ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CD1_1", "CD1_2", "CD2_1", "CD2_2")
TYPES = {"I": ">i2", "J": ">i4", "K": ">i8", "D": ">f8", "E": ">f4", "L": "S1", "B": "u1"}
# More rows than any history has; a header that states more is damaged.
MAX_ROWS = 100_000
ORIGINAL = "OPUS"


class WcsCorr:
    """The table of a file.

    Attributes
    ----------
    rows : ndarray
        Structured array, as it lies in the file.
    """

    def __init__(self, part: Part, rows: NDArray[Any]):
        self.part = part
        self.rows = rows

    @property
    def filled(self) -> NDArray[Any]:
        """The rows that say something."""
        return self.rows[self.rows["WCS_ID"] != b""]

    def add(self, headerlet: Headerlet, pa_v3: float, *, attached: bool = False) -> int:
        """Write the rows of a solution that are not there yet; return how many.

        Parameters
        ----------
        headerlet : Headerlet
        pa_v3 : float
            Roll angle of the exposure in degrees.
        attached : bool
            The solution is not in the science headers, only attached.
        """
        added = 0
        for chip in headerlet.chips:
            row = self._row(headerlet, chip, pa_v3)
            if attached:
                row["EXTVER"] = 0
            if not self._has(row, any_version=attached):
                self._append(row)
                added += 1
            if attached:  # one row stands for all chips
                break
        return added

    def _row(self, headerlet: Headerlet, chip: ChipWcs, pa_v3: float) -> NDArray[Any]:
        row = np.zeros(1, self.rows.dtype)[0]
        names = parse_distname(headerlet.distname)
        rms = np.nan_to_num(headerlet.rms_mas)
        texts = {
            "WCS_ID": headerlet.wcsname, "HDRNAME": headerlet.hdrname, "SIPNAME": names.sipname,
            "NPOLNAME": names.npolname or model_name(headerlet.text("NPOLFILE"), False),
            "D2IMNAME": names.d2imname or model_name(headerlet.text("D2IMFILE"), False),
            "CTYPE1": chip.kinds[0], "CTYPE2": chip.kinds[1], "Catalog": headerlet.catalog,
            "DESCRIP": headerlet.text("DESCRIP"),
        }
        for name, text in texts.items():
            row[name] = text.encode("ascii", "replace")
        row["EXTVER"] = chip.target[1] if 0 < chip.target[1] < 1 << 15 else 0
        for name, value in zip(LINEAR, chip.linear):
            row[name] = value
        row["ORIENTAT"], row["PA_V3"] = chip.number("ORIENTAT"), pa_v3
        row["RMS_RA"], row["RMS_Dec"] = rms
        row["NMatch"] = min(headerlet.n_matched, 2**31 - 1)
        return row

    def _has(self, row: NDArray[Any], *, any_version: bool) -> bool:
        """Say whether a row is there: the same names as far as they fit, and the same numbers."""
        rows = self.filled
        same = np.ones(rows.size, dtype=bool)
        for name in ("WCS_ID", "SIPNAME"):
            same &= rows[name] == row[name]
        # The tables that Hubble's pipeline makes leave HDRNAME and the tables' names out of the
        # first rows; those are the same solution if their numbers are.
        for name in ("HDRNAME", "NPOLNAME", "D2IMNAME"):
            same &= (rows[name] == row[name]) | (rows[name] == b"")
        if not any_version:
            same &= rows["EXTVER"] == row["EXTVER"]
        for name in LINEAR:
            same &= np.isclose(rows[name], row[name], rtol=1e-12, atol=1e-18)
        return bool(same.any())

    def _append(self, row: NDArray[Any]) -> None:
        free = np.flatnonzero(self.rows["WCS_ID"] == b"")
        if free.size < 2:
            # The last row stays blank: other software looks for it to see where it may write.
            reserve = _blank_rows(max(len(self.rows), 2), self.rows.dtype)
            self.rows = _joined(self.rows, reserve)
            free = np.flatnonzero(self.rows["WCS_ID"] == b"")
        self.rows[free[0]] = row
        self._store()

    def remove(self, headerlet: Headerlet) -> int:
        """Remove the rows of a solution, never those of the telescope's own; return how many."""
        if headerlet.wcsname.upper() == ORIGINAL:
            return 0
        name = headerlet.wcsname.encode("ascii", "replace")[: self.rows.dtype["WCS_ID"].itemsize]
        gone = np.zeros(self.rows.size, dtype=bool)
        hdrname = headerlet.hdrname.encode("ascii", "replace")
        hdrname = hdrname[: self.rows.dtype["HDRNAME"].itemsize]
        for chip in headerlet.chips:
            same = (self.rows["WCS_ID"] == name) & (self.rows["HDRNAME"] == hdrname)
            for column, value in zip(LINEAR, chip.linear):
                same &= np.isclose(self.rows[column], value, rtol=1e-12, atol=1e-18)
            gone |= same
        gone &= self.rows["WCS_key"] != b"O"
        if gone.any():
            reserve = _blank_rows(int(gone.sum()), self.rows.dtype)
            self.rows = _joined(self.rows[~gone], reserve)
            self._store()
        return int(gone.sum())

    def faults(self) -> list[str]:
        """Say what is not true of it."""
        out = []
        stated, filled = self.part.get("TROWS"), int((self.rows["WCS_ID"] != b"").sum())
        if stated is not None and stated != filled:
            out.append(f"WCSCORR: TROWS says {stated}, {filled} rows are filled")
        if filled == self.rows.size and filled:
            out.append("WCSCORR: no row is blank; other software fails to add one")
        return out

    def _store(self) -> None:
        # Filled rows first, so that TROWS is where the reserve begins.
        order = np.argsort(self.rows["WCS_ID"] == b"", kind="stable")
        self.rows = self.rows[order]
        self.part.data = self.rows.tobytes()
        self.part.size = len(self.part.data)
        self.part.raw = b""
        self.part.set("NAXIS2", int(self.rows.size))
        self.part.set("TROWS", int(self.filled.size), "rows that are filled")


def _joined(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    # Joining structured arrays turns their numbers into the machine's byte order.
    return np.concatenate([a, b]).astype(a.dtype)


def _blank_rows(n: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    rows = np.zeros(n, dtype)
    for name in ("CD1_1", "CD2_2"):
        rows[name] = 1.0
    return rows


def find_wcscorr(file: FitsParts) -> tuple[WcsCorr | None, str]:
    """Return the table of a file, or why there is none; a foreign one is left as it is.

    Returns
    -------
    table : WcsCorr or None
    reason : str
        Empty where there is no such extension at all.
    """
    part = next((p for p in file.parts if p.name == "WCSCORR"), None)
    if part is None:
        return None, ""
    dtype = _dtype(part)
    if dtype is None:
        return None, "WCSCORR does not have the 24 columns and was left as it is"
    n = part.get("NAXIS2")
    if not isinstance(n, int) or not 0 <= n <= MAX_ROWS or part.get("PCOUNT", 0) != 0:
        return None, "WCSCORR is no plain table and was left as it is"
    data = file.data_of(part)
    rows = np.frombuffer(data[: n * dtype.itemsize], dtype).copy()
    for name in dtype.names or ():
        if dtype[name].kind == "S":  # texts may be filled with blanks or with zeros
            rows[name] = np.char.rstrip(rows[name])
    return WcsCorr(part, rows), ""


def _dtype(part: Part) -> np.dtype[Any] | None:
    """Return the type of a row; None where the columns are not those 24."""
    if part.kind != "BINTABLE" or part.get("TFIELDS") != len(COLUMNS):
        return None
    fields: list[tuple[str, str]] = []
    for i, (name, form) in enumerate(COLUMNS, start=1):
        found = re.fullmatch(r"(\d{0,5})([AIJKDELB])", part.text(f"TFORM{i}"))
        if part.text(f"TTYPE{i}") != name or found is None:
            return None
        text = found[2] == "A"
        if text != form.endswith("A") or (not text and found[1] not in ("", "1")):
            return None
        if any(part.has(f"{k}{i}") for k in ("TSCAL", "TZERO")):
            return None
        width = int(found[1] or 1)
        if text and width < 1:
            return None
        fields.append((name, f"S{width}" if text else TYPES[found[2]]))
    dtype = np.dtype(fields)
    return dtype if dtype.itemsize == part.get("NAXIS1") else None


def new_wcscorr() -> WcsCorr:
    """Return an empty table, to be appended to a file."""
    dtype = np.dtype([(n, f"S{f[:-1] or 1}" if f[-1] == "A" else TYPES[f]) for n, f in COLUMNS])
    records: Records = [
        ("XTENSION", b"XTENSION= 'BINTABLE'           / binary table extension".ljust(CARD)),
        card("BITPIX", 8, "array data type"),
        card("NAXIS", 2, "number of array dimensions"),
        card("NAXIS1", dtype.itemsize, "length of dimension 1"),
        card("NAXIS2", 0, "length of dimension 2"),
        card("PCOUNT", 0, "number of group parameters"),
        card("GCOUNT", 1, "number of groups"),
        card("TFIELDS", len(COLUMNS), "number of table fields"),
    ]
    for i, (name, form) in enumerate(COLUMNS, start=1):
        records += [card(f"TTYPE{i}", name), card(f"TFORM{i}", form)]
    records += [
        card("TROWS", 0, "rows that are filled"), card("EXTNAME", "WCSCORR", "extension name"),
        card("EXTVER", 1),
    ]
    return WcsCorr(Part(records, b"", b""), np.zeros(0, dtype))
