"""Access to the store of the application, and authorisation of writers, for all routes."""

from __future__ import annotations

import hmac
import re
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request

from cynosure.solutions.store.entry import FITS
from cynosure.solutions.store.schema import Stored
from cynosure.solutions.store.store import Store

__all__ = ["OpenStore", "Writer", "file_headers"]


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def _writer(request: Request) -> str:
    """Let through who knows the token; returns who it says it is."""
    token = request.app.state.token
    if not token:
        raise HTTPException(403, "this service only reads (it was started without a token)")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    known = hmac.compare_digest(given.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not known:
        raise HTTPException(
            401, "a token is needed: Authorization: Bearer TOKEN",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return request.client.host if request.client is not None else ""


OpenStore = Annotated[Store, Depends(_store)]
Writer = Annotated[str, Depends(_writer)]


def file_headers(stored: Stored, media: str = "") -> dict[str, str]:
    """Return the headers under which a solution's file is downloaded; its name is made safe.

    With a `media` type the file is given in that form.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", stored.hdrname or stored.wcsname or stored.rootname)
    stem = stem.removesuffix(".fits").strip("._") or "solution"
    media = media or stored.media
    ending = ".fits" if media == FITS else ".solution.json"
    headers: dict[str, Any] = {
        "Content-Disposition": f'attachment; filename="{stem[:150]}{ending}"',
        "ETag": f'"{stored.content_sha256}{"" if media == stored.media else "-headerlet"}"',
    }
    return headers
