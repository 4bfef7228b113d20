"""The Python interface of the store: files and headerlets in, tables with units out."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cynosure.ground.errors import CynosureError
from cynosure.ground.quantities import angle_in, sky_position
from cynosure.solutions.files.headerlet import Headerlet
from cynosure.solutions.files.headerletio import parse_headerlet
from cynosure.solutions.store.entry import Entry
from cynosure.solutions.store.intake import as_headerlet, read_entries, read_headerlet
from cynosure.solutions.store.query import Query
from cynosure.solutions.store.selection import Decision
from cynosure.solutions.store.store import Added, Store

if TYPE_CHECKING:
    from types import TracebackType

    from astropy.table import QTable

__all__ = ["SolutionStore"]

# The columns of a table of solutions: type, unit and meaning; numbers that are not known are NaN.
COLUMNS = {
    "rootname": ("U", "", "exposure"),
    "wcsname": ("U", "", "name of the solution"),
    "hdrname": ("U", "", "name of the headerlet"),
    "kind": ("U", "", "a posteriori, a priori, …"),
    "catalog": ("U", "", "reference catalogue"),
    "quality": ("f8", "", "1 best … 5"),
    "status": ("U", "", "solved, compromised or failed"),
    "nmatch": ("f8", "", "stars of the fit"),
    "rms_ra_mas": ("f8", "mas", "rms of the residuals along right ascension, with cos dec"),
    "rms_dec_mas": ("f8", "mas", "rms of the residuals along declination"),
    "ra_deg": ("f8", "deg", "centre of the footprint, ICRS"),
    "dec_deg": ("f8", "deg", "centre of the footprint, ICRS"),
    "radius_deg": ("f8", "deg", "of a circle around the footprint"),
    "created": ("U", "", "when it was made (UTC); empty where no file says it"),
    "added": ("U", "", "when it came into the store (UTC)"),
    "valid": ("?", "", "may be used"),
    "content_sha256": ("U", "", "what identifies it"),
}


class SolutionStore:
    """A store of WCS solutions in a database.

    Parameters
    ----------
    url : str or Path
        ``sqlite:///FILE``, a path of such a file, or ``postgresql://…``.
    create : bool
        Whether to make it where it is not there.

    Attributes
    ----------
    store : Store
        The store behind it, whose methods give records.

    Raises
    ------
    StoreUnavailable
        If it cannot be opened.

    Examples
    --------
    >>> with SolutionStore("sqlite:///solutions.db", create=True) as store:  # doctest: +SKIP
    ...     store.add("j8bt06n0q_flc.fits", "headerlets/")
    ...     print(store.find(center=(150.1, 2.2), radius=0.1)["wcsname", "rms_ra_mas"])
    ...     wcs = store.headerlet(store.best("j8bt06n0q").content_sha256).wcs(1)
    """

    def __init__(self, url: str | Path, *, create: bool = False):
        self.store = Store(url, create=create)

    def __enter__(self) -> SolutionStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self.store.count()

    def __repr__(self) -> str:
        return f"SolutionStore({self.store.name!r})"

    def close(self) -> None:
        """Give the connections back."""
        self.store.close()

    def add(self, *sources: str | Path | Headerlet) -> Added:
        """Add every solution of files, folders and headerlets; what is there already stays.

        Parameters
        ----------
        *sources : path or Headerlet
            An exposure, a headerlet, the ``NAME.solution.json`` of a solved image, or a folder of
            such files.

        Returns
        -------
        Added
            How many came in, and how many were there.

        Raises
        ------
        CynosureError
            If a source cannot be read; what came before it is in the store, or will be with the
            next call.
        """
        return self.store.add(entry for source in sources for entry in _entries(source))

    def find(self, *, center: Any = None, radius: Any = 0.0, **query: Any) -> QTable:
        """Return the solutions that are asked for as a table, by exposure and date.

        Parameters
        ----------
        center : SkyCoord or pair, optional
            A place on the sky that the footprint must touch, or come near.
        radius : Quantity, float or str
            How near; a plain number is in degrees.
        **query
            Fields of :class:`~cynosure.solutions.store.query.Query`: ``rootname``, ``wcsname``,
            ``catalog``, ``kind``, ``max_quality``, ``created_since``, ….

        Returns
        -------
        QTable
            No rows where there is none.

        Raises
        ------
        SettingError
            If an argument cannot be used.
        """
        place = sky_position(center)
        cone = None if place is None else (*place, float(angle_in(radius, "deg", "radius") or 0.0))
        return _table(self.store.find(Query(cone=cone, **query)))

    def best(self, rootname: str) -> Decision:
        """Return which solution of an exposure is to be used, and why."""
        return self.store.best(rootname)

    def headerlet(self, content_sha256: str) -> Headerlet:
        """Return a solution as a headerlet.

        Raises
        ------
        CynosureError
            If the store does not have it.
        """
        payload = as_headerlet(self.store.payload(content_sha256), content_sha256[:12])
        return parse_headerlet(payload, content_sha256[:12])


def _entries(source: str | Path | Headerlet) -> Iterator[Entry]:
    if isinstance(source, Headerlet):
        yield read_headerlet(source.to_bytes(), source.hdrname)
        return
    path = Path(source) if isinstance(source, PathLike) else Path(str(source))
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        for entry in read_entries(file):
            if isinstance(entry, CynosureError):
                raise entry
            yield entry


def _table(found: list[Any]) -> QTable:
    import numpy as np
    from astropy import units
    from astropy.table import Column, QTable

    table = QTable()
    for name, (kind, unit, meaning) in COLUMNS.items():
        values = [getattr(row, name) for row in found]
        if kind == "f8":
            column = np.array([np.nan if v is None else v for v in values], dtype=float)
            table[name] = column * units.Unit(unit) if unit else Column(column)
        else:
            table[name] = Column(
                np.array(["" if v is None else v for v in values], dtype=None if values else kind)
            )
        table[name].info.description = meaning
    return table
