"""The JSON interface of the store, for programs."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from cynosure.faces.server.access import OpenStore, Writer, file_headers
from cynosure.faces.server.differences import differences
from cynosure.ground.errors import CynosureError
from cynosure.solutions.store import query as store_query
from cynosure.solutions.store.entry import FITS, Entry
from cynosure.solutions.store.intake import as_headerlet, entries_of_bytes
from cynosure.solutions.store.schema import Stored
from cynosure.solutions.store.store import GuideStars, Store

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["JSON"])

# Solutions in one answer, about 1 MB of JSON; `offset` asks for the next.
MAX_ROWS = 1000
Policy = Literal["hierarchy", "measured"]
Limit = Annotated[int, Query(ge=1, le=MAX_ROWS)]
Name = Annotated[str, Field(max_length=500)]


class Choice(BaseModel):
    """The user's choice: WCSNAME, HDRNAME or content of a solution, and who chose."""

    solution: Annotated[str, Field(min_length=1, max_length=500)]
    by: Name = ""


@router.get("/status")
def status(request: Request, store: OpenStore) -> dict[str, Any]:
    """Say what the store holds, and which reference catalogues are served."""
    held = {k: v for k, v in store.info().items() if k != "store"}
    return {**held, "catalogs": [c.name for c in request.app.state.catalogs.values()]}


@router.get("/solutions")
def find(
    store: OpenStore, rootname: str | None = None, wcsname: str | None = None,
    catalog: str | None = None, kind: str | None = None,
    max_quality: Annotated[int | None, Query(ge=1, le=4)] = None,
    max_rms_mas: float | None = None, created_since: str | None = None,
    created_until: str | None = None, added_since: str | None = None,
    added_until: str | None = None, valid: bool | None = None, ra_deg: float | None = None,
    dec_deg: float | None = None, radius_deg: float | None = None, limit: Limit = 100,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> list[dict[str, Any]]:
    """Find solutions; ``*`` stands for any characters in names, and a circle needs all three."""
    circle = (ra_deg, dec_deg, radius_deg)
    if None in circle and circle != (None, None, None):
        raise HTTPException(422, "ra_deg, dec_deg and radius_deg belong together")
    asked = store_query.Query(
        rootname=rootname, wcsname=wcsname, catalog=catalog, kind=kind, max_quality=max_quality,
        max_rms_mas=max_rms_mas, created_since=created_since, created_until=created_until,
        added_since=added_since, added_until=added_until, valid=valid,
        cone=None if ra_deg is None else circle,  # type: ignore[arg-type]
    )
    return [s.to_dict() for s in store.find(asked, limit=limit, offset=offset)]


@router.post("/solutions", status_code=201)
async def add(request: Request, store: OpenStore, writer: Writer) -> dict[str, Any]:
    """Add a headerlet, an exposure that carries some, or the record of a solved image.

    The body is the file itself.
    """
    body = await request.body()
    return await run_in_threadpool(_add, store, body)


def _add(store: Store, body: bytes) -> dict[str, Any]:
    made = list(entries_of_bytes(body))
    refused = [e for e in made if isinstance(e, CynosureError)]
    entries = [e for e in made if isinstance(e, Entry)]
    if refused and not entries:
        raise refused[0]
    added = store.add(entries)
    return {
        "new": added.new, "known": added.known, "refused": [str(e) for e in refused],
        "solutions": [e.content_sha256 for e in entries],
    }


@router.get("/solutions/{content_sha256}")
def solution(content_sha256: str, store: OpenStore) -> dict[str, Any]:
    """Give one solution."""
    return _stored(store, content_sha256).to_dict()


@router.get("/solutions/{content_sha256}/file", response_class=Response)
def file(
    content_sha256: str, store: OpenStore, form: Literal["own", "headerlet"] = "own"
) -> Response:
    """Give a solution's file: a headerlet, or the record of a solved image.

    With ``form=headerlet`` a record is given as a headerlet too, if SIP can say what it says.
    """
    stored = _stored(store, content_sha256)
    payload, media = store.payload(content_sha256), stored.media
    if form == "headerlet":
        payload, media = as_headerlet(payload, stored.hdrname or stored.rootname), FITS
    return Response(payload, media_type=media, headers=file_headers(stored, media))


def _stored(store: Store, content_sha256: str) -> Stored:
    stored = store.get(content_sha256)
    if stored is None:
        raise HTTPException(404, f"no solution {content_sha256[:64]}")
    return stored


@router.get("/exposures")
def exposures(store: OpenStore, after: str = "", limit: Limit = 100) -> list[dict[str, Any]]:
    """List exposures by name, those after a name."""
    return [dataclasses.asdict(e) for e in store.exposures(after=after, limit=limit)]


@router.get("/exposures/{rootname}")
def exposure(rootname: str, store: OpenStore) -> list[dict[str, Any]]:
    """List the solutions of an exposure."""
    found = store.find(store_query.Query(rootname=store_query.escaped(rootname)))
    if not found:
        raise HTTPException(404, f"no exposure {rootname[:200]}")
    return [s.to_dict() for s in found]


@router.get("/exposures/{rootname}/best")
def best(rootname: str, store: OpenStore, policy: Policy = "hierarchy") -> dict[str, Any]:
    """Say which solution is to be active, and why."""
    return store.best(rootname, policy=policy).to_dict()


@router.get("/exposures/{rootname}/history")
def history(rootname: str, store: OpenStore) -> list[dict[str, Any]]:
    """List all that happened to an exposure, oldest first."""
    return store.history(rootname)


@router.get("/exposures/{rootname}/differences")
def offsets(rootname: str, store: OpenStore) -> list[dict[str, Any]]:
    """Say how far each solution puts the pixels from where the best one does."""
    found = store.find(store_query.Query(rootname=store_query.escaped(rootname)))
    return [d.to_dict() for d in differences(store, found, store.best(rootname).content_sha256)]


@router.put("/exposures/{rootname}/choice")
def choose(rootname: str, choice: Choice, store: OpenStore, writer: Writer) -> dict[str, Any]:
    """Make a solution the choice, above all rules."""
    return store.choose(rootname, choice.solution, made_by=choice.by or writer).to_dict()


@router.delete("/exposures/{rootname}/choice")
def withdraw(rootname: str, store: OpenStore, writer: Writer) -> dict[str, Any]:
    """Take a choice back."""
    return store.choose(rootname, "", made_by=writer).to_dict()


@router.post("/exposures/{rootname}/decision", status_code=201)
def record(
    rootname: str, store: OpenStore, writer: Writer, policy: Policy = "hierarchy"
) -> dict[str, Any]:
    """Decide which solution is to be active, and keep the decision."""
    decision = store.best(rootname, policy=policy, made_by=writer)
    if not decision.content_sha256:
        raise HTTPException(404, decision.reason)
    store.record(decision)
    return decision.to_dict()


@router.get("/exposures/{rootname}/guide-stars")
def guide_stars(rootname: str, store: OpenStore) -> dict[str, Any]:
    """Give the offsets of the guide stars."""
    offsets = store.guide_stars(rootname)
    if offsets is None:
        raise HTTPException(404, f"no guide stars of {rootname[:200]}")
    return dataclasses.asdict(offsets)


@router.put("/exposures/{rootname}/guide-stars")
async def set_guide_stars(
    rootname: str, request: Request, store: OpenStore, writer: Writer
) -> dict[str, Any]:
    """Keep the offsets of the guide stars."""
    try:
        content = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"not JSON ({error})") from error
    offsets = GuideStars.from_dict(
        {**content, "rootname": rootname} if isinstance(content, dict) else content
    )
    await run_in_threadpool(store.set_guide_stars, offsets)
    return dataclasses.asdict(offsets)


@router.get("/proposals")
def proposals(store: OpenStore, limit: Limit = 100) -> list[dict[str, Any]]:
    """List exposures whose best solution is not the one that was last decided on."""
    return [{"before": a.to_dict(), "now": b.to_dict()} for a, b in store.proposals(limit=limit)]
