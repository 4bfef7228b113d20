"""A solution that was fitted to a file, put into its headers.

The old WCS stays in the cards, as an alternate; so do the alternates that shared its distortion,
each with a copy. The cards are exchanged by the function that makes a headerlet active.
"""

from __future__ import annotations

from cynosure.solutions.files.contents import Holdings
from cynosure.solutions.files.edits import (
    Before,
    put_active,
    record_solution,
    same_distortion,
)
from cynosure.solutions.files.headerlet import Headerlet
from cynosure.solutions.files.letters import archive_active, complete_alternates, put_beside

__all__ = ["apply_fit"]


def apply_fit(
    held: Holdings, fit: Headerlet, *, archive: str | None = "ORIGINAL", active: bool = True
) -> str:
    """Put a solution that was fitted to this very file into its headers.

    Parameters
    ----------
    held : Holdings
        Its chips are those that were solved.
    fit : Headerlet
        A WCS for each of them. A lookup table that it names is in the file.
    archive : str or None
        The name that the old WCS gets as an alternate where it has none; None drops it. A WCS of
        the same WCSNAME as the new one is replaced.
    active : bool
        Whether it becomes the active WCS. Otherwise the old one stays, card for card, and the new
        one is an alternate.

    Returns
    -------
    str
        The letter of the alternate that was made; empty where none was.

    Raises
    ------
    HeaderletDamaged
        If the WCS cannot be evaluated; nothing is changed then.
    OutputError
        If all letters are taken.
    """
    evaluated = {c.target: fit.wcs(c.target, shape=c.shape) for c in held.chips}
    if held.has_active and not active:
        return put_beside(held, fit)
    letter = ""
    before = {c.target: Before.of(c.part.records) for c in held.chips}
    if not same_distortion(held, fit):
        complete_alternates(held)
    names = {c.part.text("WCSNAME") for c in held.chips if c.part.has("CTYPE1")}
    if archive is not None and names != {fit.wcsname}:
        letter = archive_active(held, archive)
    put_active(held, fit, evaluated, before)
    record_solution(held, fit, pa_only=True)
    held.notes.append(f"{fit.wcsname} is active")
    return letter
