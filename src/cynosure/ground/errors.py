"""Errors with facts.

Every error of cynosure is a :class:`CynosureError`: a text with its facts, the facts as attributes,
a hint about what to try next, and the exit code of the command. Errors are pickled with all of
these, so that an error of a worker process reaches the user unchanged.

A new error is a class with three lines::

    class NoMatch(CynosureError):
        text = "{image}: {n_sources} sources did not match {n_reference} reference stars"
        hint = "Try a larger --radius, or --blind."
        exit_code = ExitCode.NO_SOLUTION
"""

from __future__ import annotations

from enum import IntEnum
from string import Formatter
from typing import Any

__all__ = [
    "CatalogDamaged",
    "CatalogMissing",
    "CynosureError",
    "Degenerate",
    "ExitCode",
    "ImageError",
    "NoMatch",
    "NotEnoughReference",
    "NotEnoughStars",
    "OutputError",
    "OutputExists",
    "SettingError",
    "StoreUnavailable",
    "Temporary",
    "TimedOut",
    "Unverified",
]


class ExitCode(IntEnum):
    """The exit codes of the command; ``cynosure --help`` prints this table."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    MIXED = 3
    NOTHING_TO_DO = 4
    NO_SOLUTION = 10
    NOT_ENOUGH_STARS = 11
    NOT_ENOUGH_REFERENCE = 12
    NOT_VERIFIED = 13
    IMAGE_UNREADABLE = 16
    OUTPUT_EXISTS = 17
    OUTPUT_UNWRITABLE = 18
    NO_CATALOG = 32
    CATALOG_DAMAGED = 33
    STORE_UNAVAILABLE = 40
    TEMPORARY = 75
    INTERRUPTED = 130


class _Blank(dict[str, Any]):
    """A mapping that keeps a missing fact visible as ``{name}`` instead of failing."""

    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


class CynosureError(Exception):
    """The root of all errors of cynosure.

    Parameters
    ----------
    message : str, optional
        Replaces the class's own text. It may name facts in braces.
    hint : str, optional
        Replaces the class's own hint.
    **facts
        Numbers and names of the case; each becomes an entry of ``facts`` and an attribute.

    Examples
    --------
    >>> error = NotEnoughStars(image="m81.fits", n_sources=3, needed=8)
    >>> str(error)
    'm81.fits: 3 stars found, 8 needed'
    >>> error.n_sources
    3
    """

    text = "{message}"
    hint = ""
    exit_code = ExitCode.INTERNAL

    def __init__(self, message: str | None = None, *, hint: str | None = None, **facts: Any):
        self.message = message
        self.facts = facts
        if hint is not None:
            self.hint = hint
        template = type(self).text if message is None else message
        super().__init__(Formatter().vformat(template, (), _Blank(facts)) if facts else template)

    def __getattr__(self, name: str) -> Any:
        facts = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.facts))


def _rebuild(
    cls: type[CynosureError], message: str | None, hint: str, facts: dict[str, Any]
) -> CynosureError:
    return cls(message, hint=hint, **facts)


class SettingError(CynosureError):
    """A setting or an argument that cannot be used."""

    exit_code = ExitCode.USAGE


class ImageError(CynosureError):
    """An image that cannot be read, or that holds nothing to measure."""

    text = "{image}: {reason}"
    hint = "Check the file with `cynosure doctor FILE`."
    exit_code = ExitCode.IMAGE_UNREADABLE


class NotEnoughStars(CynosureError):
    """Too few stars in the image for what was asked."""

    text = "{image}: {n_sources} stars found, {needed} needed"
    hint = (
        "Lower the threshold (--set detect.threshold_sigma=3.5), or check that the image is in "
        "focus."
    )
    exit_code = ExitCode.NOT_ENOUGH_STARS


class NotEnoughReference(CynosureError):
    """Too few reference stars in the field."""

    text = "{image}: {n_reference} reference stars in the field, {needed} needed"
    hint = "Use a deeper catalogue, or check that it covers the field (cynosure refcat info)."
    exit_code = ExitCode.NOT_ENOUGH_REFERENCE


class NoMatch(CynosureError):
    """The stars of the image were not recognised among the reference stars."""

    text = "{image}: no match between {n_sources} sources and {n_reference} reference stars"
    hint = "Try a larger --radius, give --center and --scale, or solve with --blind --index PATH."
    exit_code = ExitCode.NO_SOLUTION


class Unverified(CynosureError):
    """A solution was found, but it did not pass its checks."""

    text = "{image}: {reason}"
    exit_code = ExitCode.NOT_VERIFIED


class OutputExists(CynosureError):
    """An output file is already there."""

    text = "{path}: exists already"
    hint = "Use --overwrite, or another --out."
    exit_code = ExitCode.OUTPUT_EXISTS


class OutputError(CynosureError):
    """An output file cannot be written; nothing half-written is left."""

    text = "{path}: cannot be written ({reason})"
    hint = "Check the permissions and the free space of the folder, or use another --out."
    exit_code = ExitCode.OUTPUT_UNWRITABLE


class CatalogMissing(CynosureError):
    """No reference catalogue, or none that covers the field."""

    text = "{catalog}: {reason}"
    hint = (
        "Build one with `cynosure refcat build`, or fetch the field with `cynosure refcat fetch`."
    )
    exit_code = ExitCode.NO_CATALOG


class CatalogDamaged(CynosureError):
    """A reference catalogue or index that contradicts itself or its schema."""

    text = "{catalog}: {reason}"
    hint = "Check it with `cynosure refcat verify`, then build or fetch it again."
    exit_code = ExitCode.CATALOG_DAMAGED


class StoreUnavailable(CynosureError):
    """A database of solutions that cannot be used: absent, down, foreign, or of another schema."""

    text = "{store}: {reason}"
    hint = "Make one with `cynosure store init`, or check the URL and that the server runs."
    exit_code = ExitCode.STORE_UNAVAILABLE


class Temporary(CynosureError):
    """Something that may work when tried again: a network, a lock."""

    text = "{resource}: {reason}"
    hint = "Try again; what was already done is kept."
    exit_code = ExitCode.TEMPORARY


class TimedOut(CynosureError):
    """An image took longer than --timeout allows."""

    text = "{image}: not finished after {seconds:g} s"
    hint = "Raise --timeout, or give --center, --radius and --scale to narrow the search."
    exit_code = ExitCode.TEMPORARY


class Degenerate(CynosureError):
    """A fit whose data do not determine its parameters."""

    text = (
        "{what}: {n_points} points do not determine {n_parameters} parameters "
        "(condition {condition:.3g})"
    )
    hint = "Use a lower order, or more stars spread over the field."
    exit_code = ExitCode.NO_SOLUTION
