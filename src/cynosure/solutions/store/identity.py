"""Identity of a solution: its exposure, its name and its WCS in a canonical form.

The active WCS of an exposure, an alternate of it and a headerlet are the same solution where their
numbers are, whatever their headerlets are called and whatever else they say. The numbers are
compared in a canonical form, in which the last digits that a header may round away do not count:
the reference point to 1e-10 deg (0.4 microarcsec) and 1e-6 px, the matrix to 1e-10 of its largest
element (1e-6 px over a chip), distortion terms to 10 digits. ICRS and FK5, 20 mas apart and often
taken for each other in the headers of alternates, are not told apart here.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

from cynosure.solutions.files.headerlet import ChipWcs, Headerlet

__all__ = ["wcs_identity"]

# Decimals of positions: 1e-10 deg and 1e-6 px, below what any header that is rounded states.
DIGITS_DEG, DIGITS_PX = 10, 6
# Matrix elements are rounded to 2^-33 = 1.2e-10 of the largest one.
MATRIX_BITS = 33
SAME_FRAME = ("", "ICRS", "FK5")


def wcs_identity(headerlet: Headerlet, rootname: str, *, sound: bool) -> str:
    """Return 32 hexadecimal digits that all files of a solution share.

    Parameters
    ----------
    headerlet : Headerlet
        The solution.
    rootname : str
        The exposure.
    sound : bool
        Whether nothing is wrong with it: a damaged copy never stands for a whole one.
    """
    said = [rootname, headerlet.wcsname.upper(), "" if sound else "unsound"]
    for chip in sorted(headerlet.chips, key=lambda c: c.target):
        said += [repr(chip.target), _numbers(chip), _terms(tuple(chip.distortion.items()))]
        said += [str(chip.get("CTYPE1", "")), str(chip.get("CTYPE2", "")), _frame(chip)]
        said += [kind for kind, _ in chip.lookups]
    used = {kind for chip in headerlet.chips for kind, _ in chip.lookups}
    model = headerlet.distortion
    for kind, root in (("WCSDVARR", model.npol), ("D2IMARR", model.d2im)):
        if kind in used:
            said.append(root or _tables(headerlet, kind))
    return hashlib.sha256("\n".join(said).encode("utf-8", "replace")).hexdigest()[:32]


def _numbers(chip: ChipWcs) -> str:
    """Return reference point and matrix in their canonical form."""
    ra, dec, x, y, *matrix = chip.linear.tolist()
    if not all(map(math.isfinite, (ra, dec, x, y, *matrix))):
        return repr((ra, dec, x, y, matrix))
    unit = math.ldexp(1.0, math.frexp(max(map(abs, matrix)))[1] - MATRIX_BITS)
    place = (
        round(ra % 360.0, DIGITS_DEG) % 360.0, round(dec, DIGITS_DEG) + 0.0,
        round(x, DIGITS_PX) + 0.0, round(y, DIGITS_PX) + 0.0,
    )
    return repr((place, [round(v / unit) for v in matrix], chip.get("LONPOLE", 180.0) == 180.0))


@lru_cache(maxsize=512)  # exposures of one camera share their distortion
def _terms(terms: tuple[tuple[str, float], ...]) -> str:
    return ",".join(f"{name}={value:.9e}" for name, value in sorted(terms))


def _frame(chip: ChipWcs) -> str:
    frame = str(chip.get("RADESYS", "")).strip().upper()
    return "" if frame in SAME_FRAME else frame


def _tables(headerlet: Headerlet, kind: str) -> str:
    """Return a hash of tables that no reference file is named for."""
    total = hashlib.sha256()
    for table in sorted(headerlet.tables, key=lambda t: t.version):
        if table.name == kind:
            total.update(table.data)
    return total.hexdigest()
