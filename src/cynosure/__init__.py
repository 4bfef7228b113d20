"""cynosure: astronomical images on the Gaia frame, and proven.

The public names are loaded when they are first used, so that ``import cynosure`` is quick
(PEP 562); type checkers see where each is defined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cynosure._version import __version__

if TYPE_CHECKING:
    from cynosure.data.catalogs.refcat import RefCat, open_refcat
    from cynosure.data.fits.reader import read
    from cynosure.data.frame import Exposure, Frame, Pointing
    from cynosure.ground.errors import CynosureError
    from cynosure.ground.settings import Settings
    from cynosure.pipelines.finder import SourceFinder, build_psf
    from cynosure.pipelines.outcome import Outcome
    from cynosure.pipelines.run import default_settings
    from cynosure.pipelines.solve import solve, write
    from cynosure.solutions.files.archive import solution_of as headerlet_of
    from cynosure.solutions.files.headerlet import Headerlet
    from cynosure.solutions.files.headerletio import read_headerlet
    from cynosure.solutions.solution import Solution
    from cynosure.solutions.store.solutionstore import SolutionStore

# Public name: the module that defines it, and its name there.
_PUBLIC = {
    "CynosureError": ("cynosure.ground.errors", "CynosureError"),
    "Exposure": ("cynosure.data.frame", "Exposure"),
    "Frame": ("cynosure.data.frame", "Frame"),
    "Headerlet": ("cynosure.solutions.files.headerlet", "Headerlet"),
    "Outcome": ("cynosure.pipelines.outcome", "Outcome"),
    "Pointing": ("cynosure.data.frame", "Pointing"),
    "RefCat": ("cynosure.data.catalogs.refcat", "RefCat"),
    "Settings": ("cynosure.ground.settings", "Settings"),
    "Solution": ("cynosure.solutions.solution", "Solution"),
    "SolutionStore": ("cynosure.solutions.store.solutionstore", "SolutionStore"),
    "SourceFinder": ("cynosure.pipelines.finder", "SourceFinder"),
    "build_psf": ("cynosure.pipelines.finder", "build_psf"),
    "default_settings": ("cynosure.pipelines.run", "default_settings"),
    "headerlet_of": ("cynosure.solutions.files.archive", "solution_of"),
    "open_refcat": ("cynosure.data.catalogs.refcat", "open_refcat"),
    "read": ("cynosure.data.fits.reader", "read"),
    "read_headerlet": ("cynosure.solutions.files.headerletio", "read_headerlet"),
    "solve": ("cynosure.pipelines.solve", "solve"),
    "write": ("cynosure.pipelines.solve", "write"),
}

__all__ = [
    "CynosureError",
    "Exposure",
    "Frame",
    "Headerlet",
    "Outcome",
    "Pointing",
    "RefCat",
    "Settings",
    "Solution",
    "SolutionStore",
    "SourceFinder",
    "__version__",
    "build_psf",
    "default_settings",
    "headerlet_of",
    "open_refcat",
    "read",
    "read_headerlet",
    "solve",
    "write",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        import importlib

        module, attribute = _PUBLIC[name]
        return getattr(importlib.import_module(module), attribute)
    message = f"module 'cynosure' has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return list(__all__)
