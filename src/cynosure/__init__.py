"""cynosure: astronomical images on the Gaia frame, and proven.

The public names are loaded when they are first used, so that ``import cynosure`` is quick
(PEP 562).
"""

from __future__ import annotations

import importlib
from typing import Any

from cynosure._version import __version__

_PUBLIC = {
    "CynosureError": "cynosure.ground.errors",
    "Exposure": "cynosure.data.frame",
    "Frame": "cynosure.data.frame",
    "Pointing": "cynosure.data.frame",
    "Settings": "cynosure.ground.settings",
    "open_refcat": "cynosure.data.catalogs.refcat",
    "read": "cynosure.data.fits.reader",
    "solve": "cynosure.pipelines.solve",
    "write": "cynosure.pipelines.solve",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    message = f"module 'cynosure' has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
