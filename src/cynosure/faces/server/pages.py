"""The pages: a map of the exposures, an exposure's solutions compared, proposals to switch."""

from __future__ import annotations

import functools
import math
import time
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request, Response

from cynosure.faces.server.access import OpenStore
from cynosure.faces.server.differences import Difference, differences
from cynosure.faces.server.drawings import Mark, draw_field, draw_offsets, draw_sky
from cynosure.solutions.solution import sexagesimal
from cynosure.solutions.store.query import Query, escaped
from cynosure.solutions.store.schema import Stored
from cynosure.solutions.store.selection import Considered
from cynosure.solutions.store.store import Known, Store

__all__ = ["error_page", "router"]

router = APIRouter(include_in_schema=False)

# Exposures in a list, and pictures on a page: what a browser shows without delay.
ROWS = 200
PICTURES = 12
# A movement below this, mas, is in the picture and not in the text.
TOLD_MAS = 1.0
# Seconds for which the map of all exposures is kept.
KEPT_S = 60.0


@functools.cache
def _templates() -> Any:
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("cynosure", "templates/server"), autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )
    environment.filters.update(mas=_mas, when=_when)
    return environment


def _page(name: str, status: int = 200, headers: Any = None, **values: Any) -> Response:
    text = _templates().get_template(name).render(**values)
    return Response(text, status, media_type="text/html; charset=utf-8", headers=headers)


def _mas(value: float | None) -> str:
    """Write an angle in mas or arcsec, short."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}″"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 1 else 2
    return f"{value:.{digits}f}"


def _when(text: str | None) -> str:
    return "unknown" if not text else text[:16].replace("T", " ")


def error_page(status: int, error: str, hint: str, headers: Any = None) -> Response:
    """Return the page that tells an error."""
    return _page("error.html.j2", status, headers, code=status, error=error, hint=hint)


@router.get("/static/style.css")
def style() -> Response:
    """Give the style of the pages."""
    text = files("cynosure").joinpath("templates", "server", "style.css").read_text("utf-8")
    return Response(text, media_type="text/css", headers={"Cache-Control": "max-age=3600"})


def _everything(request: Request, store: Store) -> list[Known]:
    """Return all exposures; for a large store they are counted anew only when something came in."""
    newest, now = store.newest(), time.monotonic()
    kept = getattr(request.app.state, "exposures", None)
    if kept is None or kept[0] != newest or now - kept[1] > KEPT_S:
        kept = (newest, now, store.exposures())
        request.app.state.exposures = kept
    known: list[Known] = kept[2]
    return known


@router.get("/")
def index(request: Request, store: OpenStore, q: str = "", after: str = "") -> Response:
    """Show the exposures on a map of the sky, and as a table."""
    everything = _everything(request, store)
    shown = [k for k in _search(store, q, everything) if k.rootname > after]
    if q and len(shown) == 1 and shown[0].rootname == q.strip():
        target = {"Location": str(f"/exposures/{_quoted(shown[0].rootname)}")}
        return Response(status_code=303, headers=target)
    places = {k.rootname: sexagesimal(k.ra_deg, k.dec_deg) if k.ra_deg is not None
              and k.dec_deg is not None else ("", "") for k in shown[:ROWS]}
    return _page(
        "index.html.j2", map=draw_sky(everything if not q else shown), q=q, places=places,
        shown=shown[:ROWS], n_found=len(shown), n_exposures=len(everything),
        n_solutions=sum(k.n_solutions for k in everything),
        last=shown[ROWS - 1].rootname if len(shown) > ROWS else "",
    )


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")


def _search(store: Store, q: str, everything: list[Known]) -> list[Known]:
    """Return the exposures that a text asks for: a name with ``*``, or three numbers of degrees."""
    words = q.split()
    if not words:
        return everything
    try:
        ra, dec, radius = (float(w) for w in words)
    except ValueError:
        names = {s.rootname for s in store.find(Query(rootname=q.strip()[:300]))}
    else:
        names = {s.rootname for s in store.find(Query(cone=(ra, dec, radius)))}
    return [k for k in everything if k.rootname in names]


@router.get("/exposures/{rootname}")
def exposure(rootname: str, store: OpenStore) -> Response:
    """Compare the solutions of an exposure."""
    solutions = store.find(Query(rootname=escaped(rootname)))
    if not solutions:
        return error_page(404, f"no exposure {rootname[:200]}", "Search by name with *.")
    decision = store.best(rootname)
    last = store.last_decision(rootname)
    by_content = {s.content_sha256: s for s in solutions}
    reference = decision.content_sha256 or solutions[0].content_sha256
    apart = {d.content_sha256: d for d in differences(store, solutions, reference)}
    rows = [
        _row(number, c, by_content[c.content_sha256], apart.get(c.content_sha256))
        for number, c in enumerate(decision.considered, start=1)
    ]
    pictures = [r for r in rows if r["difference"] is not None and not r["is_reference"]]
    ranked = (by_content[c.content_sha256] for c in decision.considered)
    place = next((s for s in ranked if s.ra_deg is not None), None)
    return _page(
        "exposure.html.j2", rootname=rootname, decision=decision, last=last, rows=rows,
        center=sexagesimal(place.ra_deg, place.dec_deg)  # type: ignore[arg-type]
        if place is not None else None,
        offsets=draw_offsets([r["mark"] for r in rows if r["mark"] is not None]),
        pictures=[{**r, "svg": draw_field(r["difference"]), "moved": _moved(r["difference"])}
                  for r in pictures[:PICTURES]],
        history=store.history(rootname)[::-1][:50],
    )


def _moved(difference: Difference) -> dict[str, Any]:
    """Say what all chips have done together, and what they have done against each other."""
    common, apart = difference.common(), difference.apart_mas
    parts = (("rotation", common.rotation_mas), ("scale", common.scale_mas),
             ("skew", common.skew_mas))
    return {
        "common": ", ".join(f"{name} {_mas(abs(v))}" for name, v in parts if abs(v) >= TOLD_MAS),
        "apart": apart if len(common.chips_mas) > 1 and apart >= TOLD_MAS else 0.0,
    }


def _row(
    number: int, considered: Considered, stored: Stored, difference: Difference | None
) -> dict[str, Any]:
    shift = difference.shift_mas if difference is not None else (math.nan, math.nan)
    known = difference is not None and math.isfinite(shift[0])
    return {
        "number": number, "c": considered, "s": stored, "east": shift[0], "north": shift[1],
        "distance": math.hypot(*shift), "difference": difference if known else None,
        "rest": difference.rest_mas if difference is not None else math.nan,
        "is_reference": considered.verdict == "chosen",
        "mark": Mark(number, stored.wcsname, *shift, considered.verdict) if known else None,
    }


@router.get("/proposals")
def proposals(store: OpenStore) -> Response:
    """List exposures whose best solution is not the one that was last decided on."""
    rows = []
    for before, now in store.proposals(limit=ROWS):
        both = [s for s in (store.get(before.content_sha256), store.get(now.content_sha256)) if s]
        apart = differences(store, both, now.content_sha256) if len(both) == 2 else []
        distance = next((d.distance_mas for d in apart
                         if d.content_sha256 == before.content_sha256), math.nan)
        rows.append({"before": before, "now": now, "distance": distance})
    return _page("proposals.html.j2", rows=rows)


@router.get("/api")
def interface(request: Request) -> Response:
    """List what programs may ask for."""
    paths = [
        (path, method.upper(), spec.get("description", ""), (spec.get("tags") or [""])[0])
        for path, methods in request.app.openapi()["paths"].items()
        for method, spec in methods.items()
    ]
    return _page("api.html.j2", paths=paths)


