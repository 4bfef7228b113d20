"""The blind index on disk: quads of the whole sky, or of a part of it, at every scale.

The index has bands, each for fields half as large again in area as the one before. In a band the
stars are thinned by the same rule as the sources of an image
(:func:`cynosure.geometry.match.asterisms.select`): a star is kept where fewer than eight brighter
ones lie within a radius, so that a field of the band's width holds about two dozen of them at any
density of the sky. Each star makes quads with its nearest neighbours; their codes are sorted into
cells of code space.

A folder holds one ``.npy`` file an array, and ``index.json`` with version, shapes, sizes and
checksums. The arrays are mapped into memory, not read: opening takes milliseconds, and a search
touches only the cells it needs. The same stars give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.geometry.match.asterisms import Y_MAX, canonical
from cynosure.geometry.match.lists import RANK
from cynosure.ground.cache import compiled
from cynosure.ground.errors import (
    CatalogDamaged,
    CatalogMissing,
    NotEnoughReference,
    OutputError,
    OutputExists,
    SettingError,
)
from cynosure.ground.settings import Range, Unit
from cynosure.ground.sky import unit_vectors

__all__ = ["Band", "QuadIndex", "Rows", "build_index", "open_index"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SCHEMA = "cynosure.index/1"
HEADER = "index.json"
WIDTHS_DEG = 0.01, 100.0  # narrowest and widest fields that an index can serve
# Stars of a band in a square field of its width: enough quads where a third of them is missing.
FIELD_STARS = 24
# Width of a band's fields over that of the next narrower band: the density of stars changes by two
# from band to band, which the list lengths that a blind search tries (20, 28, 14, 40) bridge.
BAND_STEP = np.sqrt(2.0)
# Neighbours that a star makes quads with: 4 make four quads a star, which sets the size of the
# index; 6 make twenty, in bands of fewer stars than FEW, where size does not matter.
NEAR = 4
NEAR_FEW = 6
FEW = 150_000
# Codes are stored as 16-bit integers over the range of x and y, widened by this margin for noise.
CODE_MARGIN = 0.05
# The index keeps stars this many times as dense as the densest band, for the verification.
DEPTH = 4.0
STAR_ARRAYS = ("ra_deg", "dec_deg", "mag", "row", "vector", "ra", "start")
BAND_ARRAYS = ("vector", "ra", "start", "star", "code", "quad", "cell")


class Rows(NamedTuple):
    """Stars in rows of declination, each sorted by right ascension, for searches by position.

    Attributes
    ----------
    vector : (n, 3) ndarray of float32
        Unit vectors.
    ra : (n,) ndarray
        Right ascension, radians.
    start : (rows + 1,) ndarray of int
        Where each row begins.
    """

    vector: NDArray[np.float32]
    ra: Floats
    start: Ints


class Band(NamedTuple):
    """The stars and quads for fields of one width.

    Attributes
    ----------
    width_deg : float
        Width of the fields that it serves.
    bins : int
        Cells on each axis of code space.
    rows : Rows
        Its stars.
    star : (n,) ndarray of int32
        The number of each of them in the index.
    code : (q, 4) ndarray of uint16
        x and y of C and D of each quad, by cell.
    quad : (q, 4) ndarray of int32
        A, B, C, D, as numbers in this band.
    cell : (bins^4 + 1,) ndarray of int32
        Where each cell begins.
    """

    width_deg: float
    bins: int
    rows: Rows
    star: NDArray[np.int32]
    code: NDArray[np.uint16]
    quad: NDArray[np.int32]
    cell: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class QuadIndex:
    """An open index.

    Attributes
    ----------
    path : Path
    ra_deg, dec_deg, mag : (n,) ndarray
        Its stars, in the order of `rows`. A blind match's `reference_index` counts in these.
    row : (n,) ndarray of int
        The number of each star in the table the index was built from.
    rows : Rows
        All its stars.
    bands : tuple of Band
        From the narrowest fields to the widest.
    min_width_deg, max_width_deg : float
        Widths of the narrowest and the widest fields that it serves.
    """

    path: Path
    ra_deg: Floats
    dec_deg: Floats
    mag: NDArray[np.float32]
    row: Ints
    rows: Rows
    bands: tuple[Band, ...]
    min_width_deg: float
    max_width_deg: float

    @property
    def n_quads(self) -> int:
        """Number of quads in all bands."""
        return sum(len(b.quad) for b in self.bands)

    def __repr__(self) -> str:
        return (
            f"QuadIndex({str(self.path)!r}: {len(self.ra_deg)} stars, {self.n_quads} quads, "
            f"fields of {self.min_width_deg:g} to {self.max_width_deg:g} deg)"
        )


@compiled
def _thin(ra: Floats, dec: Floats, vector: Floats, radius: float, rank: int) -> Ints:
    """Return the stars, brightest first, with fewer than `rank` brighter ones within `radius`."""
    n = ra.size
    n_rows = max(int(np.pi / radius), 1)
    height = np.pi / n_rows
    columns = np.empty(n_rows, np.int64)
    first = np.zeros(n_rows + 1, np.int64)
    for j in range(n_rows):
        low, high = -0.5 * np.pi + j * height, -0.5 * np.pi + (j + 1) * height
        columns[j] = max(int(2.0 * np.pi * min(np.cos(low), np.cos(high)) / radius), 1)
        first[j + 1] = first[j] + columns[j]
    head = np.full(first[-1], -1, np.int64)
    listed = np.zeros(first[-1], np.int64)
    following = np.full(n, -1, np.int64)
    kept = np.empty(n, np.int64)
    n_kept = 0
    cosine = np.cos(radius)
    for i in range(n):
        home_row = min(int((dec[i] + 0.5 * np.pi) / height), n_rows - 1)
        brighter = 0
        for step in range(3):
            j = home_row + (step + 1) % 3 - 1  # the star's own row first
            if j < 0 or j >= n_rows or brighter >= rank:
                continue
            m = columns[j]
            at = min(int(ra[i] / (2.0 * np.pi) * m), m - 1)
            for c in range(min(m, 3)):
                k = head[first[j] + (at + (0 if c == 0 else 2 * c - 3) + m) % m]
                while k >= 0 and brighter < rank:
                    dot = vector[i, 0] * vector[k, 0] + vector[i, 1] * vector[k, 1]
                    if dot + vector[i, 2] * vector[k, 2] > cosine:
                        brighter += 1
                    k = following[k]
        if brighter < rank:
            kept[n_kept] = i
            n_kept += 1
        m = columns[home_row]
        home = first[home_row] + min(int(ra[i] / (2.0 * np.pi) * m), m - 1)
        if listed[home] < 5 * rank:
            following[i] = head[home]
            head[home] = i
            listed[home] += 1
    return kept[:n_kept]


@compiled
def _quads_of(
    vector: Floats, near: NDArray[np.int32]
) -> tuple[NDArray[np.int32], Floats]:
    """Return the quads of each star and three of its neighbours, each once, and their codes."""
    n, m = near.shape
    capacity = n * (m * (m - 1) * (m - 2) // 6)
    quad = np.empty((capacity, 4), np.int32)
    code = np.empty((capacity, 4))
    side = np.empty((4, 4))
    who = np.empty(4, np.int64)
    p = np.empty(4, np.complex128)
    q = 0
    for r in range(n):
        for i in range(m):
            for j in range(i + 1, m):
                for k in range(j + 1, m):
                    who[0], who[1], who[2], who[3] = r, near[r, i], near[r, j], near[r, k]
                    if _listed_before(near, who):
                        continue
                    _plane(vector, who, p)
                    for s in range(4):
                        for t in range(4):
                            side[s, t] = abs(p[s] - p[t])
                    if side.max() <= 0.0:
                        continue
                    a, b, c, d, u, v = canonical(p, side, 1, 2, 3)
                    quad[q, 0], quad[q, 1], quad[q, 2], quad[q, 3] = who[a], who[b], who[c], who[d]
                    code[q, 0], code[q, 1], code[q, 2], code[q, 3] = u.real, u.imag, v.real, v.imag
                    q += 1
    return quad[:q], code[:q]


@compiled
def _listed_before(near: NDArray[np.int32], who: Ints) -> bool:
    """Say whether an earlier star lists the same quad."""
    for s in range(1, 4):
        x = who[s]
        if x >= who[0]:
            continue
        has = 0
        for t in range(4):
            if t == s:
                continue
            for k in range(near.shape[1]):
                has += near[x, k] == who[t]
        if has == 3:
            return True
    return False


@compiled
def _plane(vector: Floats, who: Ints, out: NDArray[np.complex128]) -> tuple[float, float, float]:
    """Project four stars on the plane tangent at their mean: -xi + i eta, radians."""
    x, y, z = 0.0, 0.0, 0.0
    for k in range(4):
        x += vector[who[k], 0]
        y += vector[who[k], 1]
        z += vector[who[k], 2]
    length = np.sqrt(x * x + y * y + z * z)
    x, y, z = x / length, y / length, z / length
    for k in range(4):
        v = vector[who[k]]
        out[k] = project_one(v[0], v[1], v[2], x, y, z)
    return x, y, z


@compiled(inline="always")
def project_one(vx: float, vy: float, vz: float, x: float, y: float, z: float) -> complex:
    """Project a direction on the plane that touches the sky at (x, y, z): -xi + i eta, radians.

    At the poles, where east is not defined, a fixed direction replaces it; the parity is kept.
    """
    h = np.sqrt(x * x + y * y)
    if h > 1e-9:
        ex, ey = -y / h, x / h
    else:
        ex, ey = 0.0, 1.0
    # north = n0 x east
    gx, gy, gz = -z * ey, z * ex, x * ey - y * ex
    cosine = vx * x + vy * y + vz * z
    return complex(-(vx * ex + vy * ey) / cosine, (vx * gx + vy * gy + vz * gz) / cosine)


@compiled
def direction_of(w: complex, x: float, y: float, z: float) -> Floats:
    """Invert :func:`project_one`."""
    h = np.sqrt(x * x + y * y)
    ex, ey = (-y / h, x / h) if h > 1e-9 else (0.0, 1.0)
    gx, gy, gz = -z * ey, z * ex, x * ey - y * ex
    vx, vy, vz = x - w.real * ex + w.imag * gx, y - w.real * ey + w.imag * gy, z + w.imag * gz
    length = np.sqrt(vx * vx + vy * vy + vz * vz)
    out = np.empty(3)
    out[0], out[1], out[2] = vx / length, vy / length, vz / length
    return out


@compiled
def quantised(value: float, is_x: bool) -> float:
    """Return a code's coordinate on the scale of the stored 16-bit integers."""
    low = -CODE_MARGIN if is_x else -Y_MAX - CODE_MARGIN
    high = 1.0 + CODE_MARGIN if is_x else Y_MAX + CODE_MARGIN
    return (value - low) / (high - low) * 65535.0


@compiled
def _store(code: Floats, bins: int) -> tuple[NDArray[np.uint16], Ints]:
    """Return the codes as integers, and the cell of each."""
    n = code.shape[0]
    out = np.empty((n, 4), np.uint16)
    cell = np.empty(n, np.int64)
    for i in range(n):
        number = 0
        for k in range(4):
            q = min(max(int(quantised(code[i, k], k % 2 == 0) + 0.5), 0), 65535)
            out[i, k] = q
            number = number * bins + q * bins // 65536
        cell[i] = number
    return out, cell


def _in_rows(ra: Floats, dec: Floats, height: float) -> tuple[Ints, Ints]:
    """Return the order of stars in rows of declination of about `height`, and where rows begin."""
    n_rows = int(np.clip(np.pi / height, 1, 20000))
    row = np.minimum(((dec + np.pi / 2) / np.pi * n_rows).astype(np.int64), n_rows - 1)
    order = np.lexsort((ra, row))
    return order, np.searchsorted(row[order], np.arange(n_rows + 1)).astype(np.int64)


def _make_band(ra: Floats, dec: Floats, vector: Floats, width_deg: float) -> dict[str, Any] | None:
    """Return the arrays of one band from stars sorted by brightness."""
    from scipy.spatial import cKDTree

    radius = np.sqrt(RANK / (np.pi * FIELD_STARS)) * np.radians(width_deg)
    star = _thin(ra, dec, vector, radius, RANK)
    if len(star) <= NEAR:
        return None
    order, start = _in_rows(ra[star], dec[star], 0.5 * radius)
    star = star[order]
    v = vector[star]
    near = NEAR_FEW if NEAR_FEW < len(star) <= FEW else NEAR
    _, near = cKDTree(v).query(v, k=near + 1)
    quad, code = _quads_of(v, near[:, 1:].astype(np.int32))
    bins = int(np.clip(np.ceil(len(quad) ** 0.25), 8, 40))
    stored, cell = _store(code, bins)
    order = np.argsort(cell, kind="stable")
    return {
        "width_deg": float(width_deg),
        "bins": bins,
        "vector": v.astype(np.float32),
        "ra": ra[star],
        "star": star.astype(np.int32),
        "start": start,
        "code": stored[order],
        "quad": quad[order],
        "cell": np.searchsorted(cell[order], np.arange(bins**4 + 1)).astype(np.int32),
    }


def build_index(
    ra_deg: ArrayLike, dec_deg: ArrayLike, mag: ArrayLike, out: str | Path,
    *,
    min_width_deg: Annotated[float, Unit("deg"), Range(*WIDTHS_DEG)] = 1.0,
    max_width_deg: Annotated[float, Unit("deg"), Range(*WIDTHS_DEG)] = 20.0,
    overwrite: bool = False,
) -> QuadIndex:
    """Build a blind index from stars, and open it.

    Parameters
    ----------
    ra_deg, dec_deg, mag : (n,) array_like
        Stars, in any order. Rows that are not finite are left out.
    out : str or Path
        The folder to make. It appears whole or not at all.
    min_width_deg, max_width_deg : float
        The narrowest and the widest fields that it serves.
    overwrite : bool
        Whether an existing folder is replaced.

    Returns
    -------
    QuadIndex

    Raises
    ------
    NotEnoughReference
        If the stars make no quads.
    OutputExists, OutputError, SettingError
    """
    if not (WIDTHS_DEG[0] <= min_width_deg and max_width_deg <= WIDTHS_DEG[1]):
        raise SettingError(
            "fields of {low:g} to {high:g} deg; an index is for {least:g} to {most:g} deg",
            low=min_width_deg, high=max_width_deg, least=WIDTHS_DEG[0], most=WIDTHS_DEG[1],
        )
    if min_width_deg > max_width_deg:
        raise SettingError(
            "min_width_deg = {low:g} is above max_width_deg = {high:g}",
            low=min_width_deg, high=max_width_deg,
        )
    out = Path(out)
    if out.exists() and not overwrite:
        raise OutputExists(path=str(out))
    ra, dec, mag = (np.asarray(v, dtype=float) for v in (ra_deg, dec_deg, mag))
    good = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec) & np.isfinite(mag))
    row = good[np.lexsort((ra[good], dec[good], mag[good]))].astype(np.int64)
    ra_rad, dec_rad = np.radians(ra[row] % 360.0), np.radians(dec[row])
    finest = np.sqrt(RANK / (np.pi * FIELD_STARS * DEPTH)) * np.radians(min_width_deg)
    vector = unit_vectors(ra[row], dec[row])
    kept = _thin(ra_rad, dec_rad, vector, finest, RANK) if len(row) else row
    row, ra_rad, dec_rad, vector = row[kept], ra_rad[kept], dec_rad[kept], vector[kept]
    n_bands = int(np.ceil(np.log(max_width_deg / min_width_deg) / np.log(BAND_STEP) - 1e-9)) + 2
    bands = []
    # One small band beyond either end, for lists that are deeper or shallower than usual.
    for k in range(-1, n_bands):
        if k < 0 and len(row) > FEW:
            continue
        band = _make_band(ra_rad, dec_rad, vector, min_width_deg * BAND_STEP**k)
        if band is not None:
            bands.append(band)
    if not bands:
        raise NotEnoughReference(image=str(out), n_reference=len(row), needed=NEAR + 1)
    order, start = _in_rows(ra_rad, dec_rad, finest)
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(len(order))
    arrays = {
        "ra_deg": ra[row][order] % 360.0, "dec_deg": dec[row][order],
        "mag": mag[row][order].astype("f4"), "row": row[order],
        "vector": vector[order].astype("f4"), "ra": ra_rad[order], "start": start,
    }
    for k, band in enumerate(bands):
        band["star"] = number[band["star"]]
        arrays |= {f"band{k:02d}_{name}": band[name] for name in BAND_ARRAYS}
    header = {
        "schema": SCHEMA,
        "min_width_deg": float(min_width_deg),
        "max_width_deg": float(max_width_deg),
        "bands": [{k: b[k] for k in ("width_deg", "bins")} for b in bands],
    }
    _write(out, header, arrays)
    return open_index(out)


def _write(out: Path, header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Write the folder beside its place, then move it there."""
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            temporary.mkdir(parents=True)
            entries = {}
            for name, array in arrays.items():
                path = temporary / f"{name}.npy"
                np.save(path, np.ascontiguousarray(array))
                entries[name] = {
                    "shape": list(array.shape), "dtype": array.dtype.str,
                    "bytes": path.stat().st_size, "sha256": _sha256(path),
                }
            text = json.dumps({**header, "arrays": entries}, indent=1, sort_keys=True)
            (temporary / HEADER).write_text(text + "\n")
            if out.exists():
                old = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
                out.rename(old)
                temporary.rename(out)
                shutil.rmtree(old)
            else:
                temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise OutputError(path=str(out), reason=error.strerror or str(error)) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_index(path: str | Path, *, check: bool = False) -> QuadIndex:
    """Open an index; its arrays are mapped into memory, not read.

    Parameters
    ----------
    path : str or Path
        The folder.
    check : bool
        Whether the checksum of every array is compared as well as its size, which reads it all.

    Raises
    ------
    CatalogMissing
        If there is no index at `path`.
    CatalogDamaged
        If the header or an array is missing, or contradicts the other.
    """
    path = Path(path)
    try:
        header = json.loads((path / HEADER).read_text())
        if header["schema"] != SCHEMA:
            raise CatalogDamaged(
                catalog=str(path), reason=f"schema {header['schema']!r}, {SCHEMA!r} is expected",
                hint="Build it again with `cynosure index build`.",
            )
        entries = header["arrays"]
        stars = [_open_array(path, n, entries[n], check) for n in STAR_ARRAYS]
        bands = []
        for k, facts in enumerate(header["bands"]):
            names = [f"band{k:02d}_{n}" for n in BAND_ARRAYS]
            arrays = [_open_array(path, n, entries[n], check) for n in names]
            bands.append(Band(facts["width_deg"], facts["bins"], Rows(*arrays[:3]), *arrays[3:]))
        index = QuadIndex(
            path, stars[0], stars[1], stars[2], stars[3], Rows(*stars[4:]), tuple(bands),
            float(header["min_width_deg"]), float(header["max_width_deg"]),
        )
        _check_shapes(index)
        return index
    except FileNotFoundError as error:
        if not (path / HEADER).exists():
            raise CatalogMissing(
                catalog=str(path), reason="no index here",
                hint="Build one with `cynosure index build`.",
            ) from error
        reason = f"{Path(error.filename).name} is missing"
        raise CatalogDamaged(catalog=str(path), reason=reason) from error
    except NotADirectoryError as error:
        raise CatalogMissing(
            catalog=str(path), reason="a file; an index is a folder",
            hint="Give the folder that `cynosure index build` made.",
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise CatalogDamaged(catalog=str(path), reason=f"{HEADER}: {error}") from error


def _check_shapes(index: QuadIndex) -> None:
    """Check what compiled loops assume: the starts of rows, and that lengths agree."""
    for name, rows, n in (
        ("the stars", index.rows, len(index.ra_deg)),
        *((f"band {k}", b.rows, len(b.star)) for k, b in enumerate(index.bands)),
    ):
        start = rows.start
        if len(start) < 2 or start[0] != 0 or start[-1] != n or np.any(np.diff(start) < 0):
            raise CatalogDamaged(catalog=str(index.path), reason=f"{name}: invalid starts of rows")
        if rows.vector.shape != (n, 3) or rows.ra.shape != (n,):
            raise CatalogDamaged(catalog=str(index.path), reason=f"{name}: lengths disagree")
    for k, b in enumerate(index.bands):
        q = len(b.quad)
        if b.quad.shape != (q, 4) or b.code.shape != (q, 4) or b.cell.shape != (b.bins**4 + 1,):
            raise CatalogDamaged(catalog=str(index.path), reason=f"band {k}: lengths disagree")


def _open_array(path: Path, name: str, entry: dict[str, Any], check: bool) -> NDArray[Any]:
    file = path / f"{name}.npy"
    if file.stat().st_size != entry["bytes"]:
        raise CatalogDamaged(
            catalog=str(path),
            reason=f"{file.name} has {file.stat().st_size} bytes, {entry['bytes']} are expected",
        )
    if check and _sha256(file) != entry["sha256"]:
        raise CatalogDamaged(catalog=str(path), reason=f"{file.name}: its checksum is wrong")
    array = np.load(file, mmap_mode="r")
    if list(array.shape) != entry["shape"] or array.dtype.str != entry["dtype"]:
        raise CatalogDamaged(catalog=str(path), reason=f"{file.name}: its shape is wrong")
    return np.asarray(array)
