"""The application: its routes, its limits, and its answers to errors."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cynosure._version import __version__
from cynosure.data.catalogs.refcat import RefCat
from cynosure.faces.server import api, catalogs, hubble, pages
from cynosure.faces.server.limits import Limits
from cynosure.ground.errors import (
    CatalogDamaged,
    CynosureError,
    ImageError,
    OutputError,
    SettingError,
    StoreUnavailable,
    Temporary,
)
from cynosure.ground.settings import Range, Unit
from cynosure.solutions.files.contents import NoSuchSolution
from cynosure.solutions.files.headerlet import HeaderletDamaged
from cynosure.solutions.store.store import Store

__all__ = ["create_app", "new_token", "serve"]

STATUS = {
    SettingError: 422, ImageError: 422, HeaderletDamaged: 422, NoSuchSolution: 422,
    CatalogDamaged: 422, StoreUnavailable: 503,
    Temporary: 503, OutputError: 507,
}


def create_app(
    store: Store,
    *,
    token: str = "",
    refcats: Sequence[RefCat] = (),
    max_body_bytes: Annotated[int, Unit("bytes"), Range(1024, 1 << 34)] = 64 << 20,
    requests_per_minute: Annotated[int, Range(0, 1_000_000)] = 1200,
) -> FastAPI:
    """Make the application for a store.

    Parameters
    ----------
    store : Store
        It stays open while the application lives, and is closed by who opened it.
    token : str
        Who writes must show it; without one the service only reads.
    refcats : sequence of RefCat
        Reference catalogues that are served by their names, the first where none is named.
    max_body_bytes : int
        A larger upload is refused before it is read.
    requests_per_minute : int
        For each address; 0 for no limit.
    """
    app = FastAPI(
        title="cynosure", version=__version__, docs_url=None, redoc_url=None,
        summary="Every WCS solution that an exposure ever had.",
    )
    app.state.store, app.state.token = store, token
    app.state.catalogs = catalogs.by_name(refcats)
    for part in (hubble, catalogs, api, pages):
        app.include_router(part.router)
    app.add_middleware(
        Limits, max_body_bytes=max_body_bytes, requests_per_minute=requests_per_minute
    )
    app.add_exception_handler(CynosureError, _tell_error)
    app.add_exception_handler(HTTPException, _tell_refusal)
    app.add_exception_handler(RequestValidationError, _tell_malformed)
    return app


def _tell_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CynosureError)
    status = next((s for kind, s in STATUS.items() if isinstance(error, kind)), 500)
    return _told(request, status, str(error), error.hint)


def _tell_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _told(request, error.status_code, str(error.detail), "", dict(error.headers or {}))


def _tell_malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(p) for p in first.get("loc", ()) if p != "body")
    return _told(request, 422, f"{place}: {first.get('msg', 'malformed')}".removeprefix(": "), "")


def _told(
    request: Request, status: int, error: str, hint: str, headers: dict[str, str] | None = None
) -> Response:
    """Answer programs in JSON, browsers with a page."""
    if status == 503:
        headers = {**(headers or {}), "Retry-After": "10"}
    path = request.url.path
    programs = path.startswith(("/api/", "/astrometryDB", "/webservices", "/openapi"))
    if programs or "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"error": error, "hint": hint}, status, headers=headers)
    return pages.error_page(status, error, hint, headers)


def new_token() -> str:
    """Return a token that nobody can guess."""
    return secrets.token_urlsafe(24)


def serve(
    store: Store,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Range(1, 65535)] = 8765,
    token: str = "",
    **options: Any,
) -> None:
    """Serve a store until it is interrupted.

    Parameters
    ----------
    store : Store
        What is served.
    host : str
        Address to listen on; the default can be reached from this machine only.
    port : int
        Port to listen on.
    token : str
        See :func:`create_app`.
    **options
        See :func:`create_app`.
    """
    import uvicorn

    uvicorn.run(
        create_app(store, token=token, **options), host=host, port=port, log_level="warning",
        server_header=False, timeout_keep_alive=10, limit_concurrency=200,
    )
