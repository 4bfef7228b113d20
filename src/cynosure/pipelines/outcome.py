"""The outcome of one image: its solution, WCS, tables, and errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.data.fits.reader import split_path
from cynosure.data.fits.solved import output_name
from cynosure.data.fits.wcsread import read_wcs
from cynosure.data.tables import MATCHES, SOURCES, write_parquet
from cynosure.ground.errors import SettingError, Unverified
from cynosure.ground.files import write_text
from cynosure.pipelines.evidence import ENDING, write_evidence
from cynosure.pipelines.save import Request, save_header, save_image
from cynosure.solutions.solution import Solution

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.table import QTable
    from astropy.units import Quantity
    from astropy.wcs import WCS

__all__ = ["Chips", "Manner", "Outcome", "SolvedChip", "write_solution"]


class Manner(NamedTuple):
    """How the files of an outcome are written."""

    header_only: bool = False
    in_place: bool = False
    overwrite: bool = False


def write_solution(solution: Solution, source: Path, folder: Path) -> Solution:
    """Write ``NAME.solution.json``, also over an older one; return the solution that names it."""
    path = folder / output_name(split_path(str(source))[0], ".solution.json")
    solution = solution.replaced(files=(*solution.files, path.name))
    write_text(path, solution.to_json() + "\n", overwrite=True)
    return solution


@dataclass(frozen=True, eq=False)
class SolvedChip:
    """One chip of a solved image.

    Attributes
    ----------
    name : str
        Its key among the chips: ``SCI,2``, or the number of its HDU.
    header : Header
        The cards of its WCS and of how it was made.
    fit : object
        The fit behind it, with ``wcs_error_mas(x, y)``.
    cell : int
        Pixels of the file to a side of one pixel of the fit (see :class:`~cynosure.Frame`).
    tables : HDUList, optional
        What holds the lookup tables that `header` names.
    """

    name: str
    header: Header
    fit: Any
    cell: int = 1
    tables: Any = None

    @cached_property
    def wcs(self) -> WCS:
        """The WCS, for 0-based pixels of the file (APE 14)."""
        wcs, notes = read_wcs(self.header, hdulist=self.tables)
        if wcs is None:
            raise Unverified(image=self.name, reason="; ".join(notes))
        return wcs

    def wcs_error(self, x: ArrayLike, y: ArrayLike) -> Quantity:
        """Return the predicted standard error of the WCS itself.

        Parameters
        ----------
        x, y : array_like
            Pixels of the file, 0-based; they are broadcast against each other.

        Returns
        -------
        Quantity
            In mas, of the shape of the pixels with one more axis of two: along right ascension
            (with cos dec) and along declination.
        """
        from astropy import units

        x, y = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
        half = (self.cell - 1) / 2.0
        inside = [(pixel.ravel() - half) / self.cell for pixel in (x, y)]
        error = self.fit.wcs_error_mas(*inside)
        return error.reshape(*x.shape, 2) * units.mas


class Chips(Mapping[str, SolvedChip]):
    """The solved chips of an image by name: ``chips["SCI,2"]``, ``chips["SCI", 2]``.

    A file of one image has one chip, named by the number of its HDU (``"0"``). A number that is
    no name of a chip counts them in order, from 0.
    """

    def __init__(self, chips: tuple[SolvedChip, ...] = ()):
        self._chips = {c.name: c for c in chips}

    def __getitem__(self, key: Any) -> SolvedChip:
        if isinstance(key, tuple):
            key = ",".join(str(k) for k in key)
        name = re.sub(r"\s", "", str(key)).upper()
        if name in self._chips:
            return self._chips[name]
        if isinstance(key, int) and -len(self) <= key < len(self):
            return list(self._chips.values())[key]
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._chips)

    def __len__(self) -> int:
        return len(self._chips)

    def __repr__(self) -> str:
        return f"<Chips {', '.join(self._chips) or 'none'}>"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of one image.

    Attributes
    ----------
    solution : Solution
        The record: status, reason, counts, errors; what is printed.
    chips : Chips
        The solved chips by name; empty where the image failed.
    match_rows, source_rows : structured array
        The rows of :attr:`matches` and :attr:`sources`, schemas ``MATCHES`` and ``SOURCES``.
    headers : dict
        Place in the file (HDU, or HDU and plane) to the cards of the new WCS.
    kept : dict
        The same of the WCS that the image came with, where that is better and stays in use.
    report : dict
        Arrays and rows that the report draws.
    """

    solution: Solution
    match_rows: NDArray[np.void]
    source_rows: NDArray[np.void]
    chips: Chips = field(default_factory=Chips)
    headers: dict[Any, Header] = field(default_factory=dict)
    kept: dict[Any, Header] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.solution)

    def _repr_html_(self) -> str:
        return self.solution._repr_html_()

    @property
    def solved(self) -> bool:
        """Whether there is a WCS that passed its checks."""
        return self.solution.status == "solved"

    @property
    def wcs(self) -> WCS:
        """The WCS of the first chip.

        Raises
        ------
        Unverified
            If the image failed, with the reason.
        """
        return self._first().wcs

    @cached_property
    def matches(self) -> QTable:
        """The matched stars with their residuals, as a table with units; no rows if it failed."""
        return MATCHES.to_qtable(self.match_rows)

    @cached_property
    def sources(self) -> QTable:
        """The sources that were found, as a table with units."""
        return SOURCES.to_qtable(self.source_rows)

    def wcs_error(self, x: ArrayLike, y: ArrayLike, chip: str | int = 0) -> Quantity:
        """Return the predicted standard error of the WCS; see :meth:`SolvedChip.wcs_error`.

        Parameters
        ----------
        x, y : array_like
            Pixels of the file, 0-based.
        chip : str or int
            Which chip, as :class:`Chips` names them.
        """
        self._first()
        try:
            found = self.chips[chip]
        except KeyError:
            raise SettingError(
                "{image} has no chip {chip!r}", image=self.solution.image, chip=chip,
                hint=f"It has {', '.join(self.chips)}.",
            ) from None
        return found.wcs_error(x, y)

    def write(
        self, out: str | Path, *, source: str | Path | None = None, header_only: bool = False,
        in_place: bool = False, overwrite: bool = False,
    ) -> list[Path]:
        """Write the files of the outcome: image or header, solution, matches, report's data.

        Parameters
        ----------
        out : path
            A folder; it is made.
        source : path, optional
            The image, where it is not what the solution names.
        header_only : bool
            Write ``NAME.wcs.fits`` without pixels.
        in_place : bool
            Change the image itself.
        overwrite : bool
            Whether files may be there already.

        Returns
        -------
        list of Path
            What was written.

        Raises
        ------
        OutputExists, OutputError
            Nothing half-written is left.
        Unverified
            If a file, read again, is not what was fitted.
        """
        folder, image = Path(out), Path(source or self.solution.image)
        folder.mkdir(parents=True, exist_ok=True)
        files = self.write_files(image, folder, Manner(header_only, in_place, overwrite))
        solution = write_solution(self.solution.replaced(files=tuple(files)), image, folder)
        return [folder / f for f in solution.files]

    def write_files(self, source: Path, folder: Path, manner: Manner) -> list[str]:
        """Write all files but the solution; return their names, of a changed image its path."""
        source = split_path(str(source))[0]
        files = []
        if self.headers:
            files.append(self._write_image(source, folder, manner))
            path = folder / output_name(source, ".matches.parquet")
            write_parquet(path, self.match_rows, MATCHES)
            files.append(path.name)
        if self.report:
            path = folder / output_name(source, ENDING)
            write_evidence(path, self.source_rows, self.report)
            files.append(path.name)
        return files

    def _write_image(self, source: Path, folder: Path, manner: Manner) -> str:
        solution = self.solution
        request = Request(
            self.headers, self.kept, solution.form == "keep",
            sha256=solution.sha256 if manner.in_place else None,
        )
        if manner.header_only:
            path = folder / output_name(source, ".wcs.fits")
            shapes = [tuple(c["shape"]) for c in solution.chips]
            save_header(source, path, request, shapes, overwrite=manner.overwrite)
            return path.name
        path = source if manner.in_place else folder / output_name(source, "_wcs.fits")
        save_image(source, path, request, overwrite=manner.overwrite or manner.in_place)
        return str(path) if manner.in_place else path.name

    def _first(self) -> SolvedChip:
        for chip in self.chips.values():
            return chip
        reason = self.solution.reason or "it was not solved"
        raise Unverified(
            image=self.solution.image, reason=f"it has no new WCS: {reason}",
            hint="outcome.solution says what was tried.",
        )
