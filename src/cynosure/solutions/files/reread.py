"""A file that holds a solution, read again as others read it, before it is released.

astropy reads the header with the open file, as a user would; the solutions are listed as
``cynosure wcs list`` lists them. Both must give the sky that is meant, over the whole frame.
Headers and tables are read, pixels are not.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fits.parts import FitsParts, open_parts
from cynosure.data.fits.wcsread import sky_of_pixels
from cynosure.ground.errors import CynosureError, Unverified
from cynosure.ground.sky import MAS_PER_DEG, separation_deg
from cynosure.solutions.files.contents import Chip, Holdings
from cynosure.solutions.files.headerlet import Headerlet, Target, same_solution

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = ["Meant", "check_file"]

# Two readings of the same cards agree to the rounding of a position, some 1e-7 mas.
LIMIT_MAS = 1e-3
SIDE = 9

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Meant:
    """What one unit of a written file must say.

    Attributes
    ----------
    index : int
        0-based number of the HDU.
    target : (str, int)
        How the chip is called.
    shape : (int, int)
        Rows and columns.
    wcs : WCS
        What its WCS must be.
    letter : str
        The alternate that is meant; empty for the active WCS.
    foreign : bool
        Whether other software can read it as well: SIP and lookup tables have no alternates.
    """

    index: int
    target: Target
    shape: tuple[int, int]
    wcs: WCS
    letter: str = ""
    foreign: bool = True


def check_file(
    path: Path, meant: Sequence[Meant], alternates: dict[str, Headerlet], name: str
) -> None:
    """Compare what a written file says with what is meant.

    Parameters
    ----------
    path : Path
    meant : sequence of Meant
    alternates : dict
        Letters to solutions that must still be what they were.
    name : str
        What errors call the file.

    Raises
    ------
    Unverified
        If any reading differs by more than a micro-arcsecond, or fails.
    """
    with open_parts(path) as file:
        with _opened_by_others(path, file) as hdulist:
            for one in meant:
                if one.foreign:
                    _compare(one, _sky_of_others(hdulist, file, one, name), "astropy", name)
        chips = dict.fromkeys((m.index, m.target, m.shape) for m in meant)
        held = Holdings(file, [Chip(file.parts[i], target, shape) for i, target, shape in chips])
        _check_holdings(held, meant, name)
        for letter, before in alternates.items():
            if letter not in held.letters or not same_solution(held.alternate(letter), before):
                raise Unverified(
                    image=name, reason=f"the written file would change alternate {letter}, "
                    f"{before.wcsname}", hint=REPORT,
                )


def _check_holdings(held: Holdings, meant: Sequence[Meant], name: str) -> None:
    """Compare the list of solutions with what is meant."""
    read: dict[str, Headerlet] = {}
    for one in meant:
        try:
            if one.letter not in read:
                read[one.letter] = held.alternate(one.letter) if one.letter else held.active()
            wcs = read[one.letter].wcs(one.target, shape=one.shape)
        except CynosureError as error:
            raise _wrong(name, one, f"it cannot be read again ({error})") from error
        _compare(one, sky_of_pixels(wcs, *_grid(one.shape)), "its list of solutions", name)


@contextlib.contextmanager
def _opened_by_others(path: Path, file: FitsParts) -> Iterator[Any]:
    """Open a file with astropy; None where it has records after its last unit, as few may have."""
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what astropy says of odd cards that were there before
        if file.tail[1]:
            yield None
            return
        with fits.open(path, memmap=True, lazy_load_hdus=True) as hdulist:
            yield hdulist


REPORT = "Nothing was written. Please report this with the header of the image."


def _grid(shape: tuple[int, int]) -> tuple[Floats, Floats]:
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, SIDE), np.linspace(0, ny - 1, SIDE))
    return x.ravel(), y.ravel()


def _sky_of_others(
    hdulist: Any, file: FitsParts, one: Meant, name: str
) -> tuple[Floats, Floats]:
    """Return the sky over the frame as astropy reads it from the open file."""
    from astropy.wcs import WCS

    header = file.parts[one.index].unit.header if hdulist is None else hdulist[one.index].header
    flat = {} if header.get("NAXIS", 0) <= 2 else {"naxis": 2}
    try:
        wcs = WCS(header, hdulist, key=one.letter or " ", **flat)
        if not flat:
            return sky_of_pixels(wcs, *_grid(one.shape))
        if wcs.sip is None and wcs.cpdis1 is None and wcs.det2im1 is None:
            WCS(header, hdulist, key=one.letter or " ")  # all axes: distorted ones have two only
        return sky_of_pixels(wcs, *_grid(one.shape))
    except (ValueError, KeyError, IndexError, TypeError, AssertionError, OSError) as error:
        said = " ".join(str(error).split())[-200:]
        raise _wrong(name, one, f"astropy cannot read it ({said})") from error


def _compare(one: Meant, found: tuple[Floats, Floats], reader: str, name: str) -> None:
    truth = sky_of_pixels(one.wcs, *_grid(one.shape))
    known = np.isfinite(truth[0]) & np.isfinite(truth[1])
    apart = separation_deg(*(v[known] for v in (*found, *truth))) * MAS_PER_DEG
    worst = float(np.max(apart, initial=0.0))
    if not worst < LIMIT_MAS:
        raise _wrong(
            name, one, f"{reader} reads it {worst:.3g} mas from the fit ({LIMIT_MAS:g} allowed)"
        )


def _wrong(name: str, one: Meant, reason: str) -> Unverified:
    where = f"HDU {one.index}" + (f", alternate {one.letter}" if one.letter else "")
    return Unverified(image=name, reason=f"the written WCS of {where}: {reason}", hint=REPORT)
