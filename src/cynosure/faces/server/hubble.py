"""The contract that Hubble's own client speaks, so that it works with this store.

``stwcs.updatewcs.astrometry_utils`` asks for three things under ``ASTROMETRY_SERVICE_URL``:
whether the service is there, the list of an exposure's solutions as XML, and one of them as a
headerlet. Under ``GSSS_WEBSERVICES_URL`` it asks for the offsets of the guide stars.

A client takes a solution by its WCSNAME alone; where several have one name, the one that the
selection ranks first is offered, and only what may be applied. It knows nothing but headerlets:
the record of a solved image is given as one, if SIP can say what it says.
"""

from __future__ import annotations

import functools
from xml.etree import ElementTree as Xml

from fastapi import APIRouter, Response

from cynosure.faces.server.access import OpenStore, file_headers
from cynosure.ground.errors import CynosureError
from cynosure.solutions.store.entry import FITS
from cynosure.solutions.store.intake import as_headerlet
from cynosure.solutions.store.query import Query, escaped
from cynosure.solutions.store.schema import Stored
from cynosure.solutions.store.selection import Decision
from cynosure.solutions.store.store import Store

__all__ = ["router"]

router = APIRouter(tags=["Hubble's client"])


@router.get("/astrometryDB/availability")
def availability(store: OpenStore) -> Response:
    """Say that the service is up; 503 where its database is not."""
    root = Xml.Element("availability")
    Xml.SubElement(root, "available").text = "true"
    Xml.SubElement(root, "solutions").text = str(store.count())
    return _xml(root)


@router.get("/astrometryDB/observation/read/{rootname}")
def observation(rootname: str, store: OpenStore, wcsname: str | None = None) -> Response:
    """List the solutions of an exposure as XML, or give one of them as a headerlet."""
    offered, decision = _offered(store, rootname)
    if not offered:
        return _unknown(f"no solutions of {rootname} are known")
    if wcsname is not None:
        stored = offered.get(wcsname)
        if stored is None:
            return _unknown(f"{rootname} has no solution {wcsname}")
        return Response(
            _headerlet(store, stored), media_type=FITS, headers=file_headers(stored, FITS)
        )
    root = Xml.Element("observation")
    Xml.SubElement(root, "observationID").text = next(iter(offered.values())).rootname
    solutions = Xml.SubElement(root, "solutions")
    for stored in offered.values():
        solution = Xml.SubElement(solutions, "solution")
        Xml.SubElement(solution, "solutionID").text = str(stored.id)
        Xml.SubElement(solution, "wcsName").text = stored.wcsname
        Xml.SubElement(solution, "hdrName").text = stored.hdrname
        Xml.SubElement(solution, "catalog").text = stored.catalog
    best = offered.get(decision.wcsname)
    if best is not None:
        Xml.SubElement(root, "bestSolutionID").text = str(best.id)
    return _xml(root)


def _offered(store: Store, rootname: str) -> tuple[dict[str, Stored], Decision]:
    """Return the headerlets of an exposure by WCSNAME, the best first."""
    found: list[Stored] = []
    for name in dict.fromkeys((rootname, rootname.lower())):
        found = found or store.find(Query(rootname=escaped(name), valid=True))
    decision = store.best(found[0].rootname if found else rootname)
    by_content = {
        s.content_sha256: s for s in found
        if s.wcsname and (s.media == FITS or _headerlet(store, s) is not None)
    }
    offered: dict[str, Stored] = {}
    for considered in decision.considered:
        stored = by_content.get(considered.content_sha256)
        if stored is None or considered.verdict == "excluded":
            continue
        # That client applies whatever it is given: a doubtful solution is for who chose it, or
        # where there is no other.
        if not stored.doubts or considered.verdict == "chosen":
            offered.setdefault(stored.wcsname, stored)
    return offered, decision


@functools.lru_cache(maxsize=64)
def _converted(record: bytes) -> bytes | None:
    try:
        return as_headerlet(record)
    except CynosureError:
        return None  # it stays what it is, under its own address


def _headerlet(store: Store, stored: Stored) -> bytes | None:
    """Return a solution as a headerlet; None for a record that cannot be one."""
    if stored.media == FITS:
        return store.payload(stored.content_sha256)
    return _converted(store.payload(stored.content_sha256))


@router.get("/webservices/GSCConvert/GSCconvert.aspx")
def guide_star_offsets(store: OpenStore, IPPPSSOOT: str = "") -> Response:
    """Give the offsets of an exposure's guide stars as XML."""
    root = Xml.Element("GSCConvert")
    offsets = store.guide_stars(IPPPSSOOT) if IPPPSSOOT else None
    if offsets is None:
        Xml.SubElement(root, "msg").text = f"Failure: no guide stars of {IPPPSSOOT} are known"
        return _xml(root)
    fields = {
        "msg": "Success", "deltaRA": offsets.delta_ra_deg, "deltaDEC": offsets.delta_dec_deg,
        "deltaROLL": offsets.delta_roll_deg, "deltaSCALE": offsets.delta_scale,
        "dGSinputRA": offsets.input_ra_deg, "dGSinputDEC": offsets.input_dec_deg,
        "dGSoutputRA": offsets.output_ra_deg, "dGSoutputDEC": offsets.output_dec_deg,
        "outputCatalog": offsets.catalog,
    }
    for name, value in fields.items():
        Xml.SubElement(root, name).text = str(value)
    return _xml(root)


def _unknown(message: str) -> Response:
    root = Xml.Element("xml")
    Xml.SubElement(root, "status").text = "ERROR"
    Xml.SubElement(root, "msg").text = message
    Xml.SubElement(root, "data")
    return _xml(root, 404)


def _xml(root: Xml.Element, status: int = 200) -> Response:
    for element in root.iter():
        if element.text is not None and not element.text.isprintable():
            element.text = "".join(c if c.isprintable() else "?" for c in element.text)
    return Response(
        Xml.tostring(root, encoding="utf-8", xml_declaration=True), status, media_type="text/xml"
    )
