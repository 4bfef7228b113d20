"""Export and import solutions of other software, and convert the form of a WCS.

SCAMP writes its solutions as text, one header a chip, in TPV (``.head``); astrometry.net as a FITS
header without pixels, in SIP (``.wcs``). Both become headerlets of the image they belong to, so
that they can be attached, compared and applied as any other.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cynosure.data.fits.alternates import Records, records_of
from cynosure.data.fits.parts import Part, Value, open_parts
from cynosure.data.fits.wcsread import has_wcs, is_wcs_keyword, read_head
from cynosure.ground.errors import ImageError, SettingError
from cynosure.solutions.files.archive import Change, activate, shapes_of, solution_of
from cynosure.solutions.files.compare import Separation, chip_shape, converted
from cynosure.solutions.files.contents import Holdings, open_holdings
from cynosure.solutions.files.edits import Refused
from cynosure.solutions.files.headerlet import ChipWcs, Headerlet, new_head
from cynosure.solutions.names import hdrname

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = ["convert", "export_solution", "import_solution"]

KINDS = {"head": "tpv", "wcs": "sip"}
# A solution that has the form already is written as it is.
NAMES = {"head": "SCAMP", "wcs": "ASTROMETRY.NET"}


def export_solution(
    path: str | Path, out: str | Path, name: str = "active", *, kind: str | None = None,
    overwrite: bool = False,
) -> float:
    """Write a solution for SCAMP or astrometry.net.

    Parameters
    ----------
    path : path
        An image or a headerlet.
    out : path
        ``.head`` or ``.wcs``.
    name : str
        The solution of an image.
    kind : {"head", "wcs"}, optional
        The format, where the name of `out` does not say.
    overwrite : bool

    Returns
    -------
    float
        Largest distance in mas, over all chips, between what is written and the solution.

    Raises
    ------
    SettingError, OutputExists, ImageError, HeaderletDamaged
    """
    from cynosure.data.fits.solved import write_header_only
    from cynosure.ground.files import write_text

    kind = kind or Path(out).suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise SettingError("{kind!r} is not a format", kind=kind, hint="One of head, wcs.")
    shapes: dict[Any, Any] = {}
    if name == "active":
        headerlet = solution_of(path)
    else:
        headerlet = solution_of(path, name)
    try:
        with open_holdings(path) as held:
            shapes = shapes_of(held)
    except ImageError:  # a headerlet has no pixels
        shapes = {}
    error, written = 0.0, headerlet
    if not all(_has_form(c, kind) for c in headerlet.chips):
        written, maps = converted(
            headerlet, KINDS[kind], shapes=shapes, name=headerlet.wcsname  # type: ignore[arg-type]
        )
        error = max(m.summary()["max_mas"] for m in maps)
    headers = [_plain_header(c) for c in written.chips]
    if kind == "head":
        write_text(out, "".join(map(_head_text, headers)), overwrite=overwrite)
    else:
        sizes = [chip_shape(c, headerlet, shapes.get(c.target)) for c in headerlet.chips]
        write_header_only(out, headers, sizes, overwrite=overwrite)
    return float(error)


def _has_form(chip: ChipWcs, kind: str) -> bool:
    form = str(chip.get("CTYPE1", ""))[5:8]
    sip = any(k[0] in "AB" for k in chip.distortion)
    if chip.lookups:
        return False
    return form == "TPV" or (form == "TAN" and not sip) if kind == "head" else form == "TAN"


def _plain_header(chip: ChipWcs) -> Header:
    cards = [r for r in chip.cards if is_wcs_keyword(r[0])]
    return Part(cards).header()


def _head_text(header: Header) -> str:
    lines = [str(card).rstrip() for card in header.cards]
    return "\n".join([*lines, "END     "]) + "\n"


def import_solution(
    path: str | Path, source: str | Path, *, name: str | None = None
) -> Headerlet:
    """Make a headerlet of an image from a solution that other software wrote.

    Parameters
    ----------
    path : path
        The image.
    source : path
        ``.head`` text, or FITS headers with a WCS.
    name : str, optional
        WCSNAME; ``SCAMP`` or ``ASTROMETRY.NET`` where the source does not say.

    Returns
    -------
    Headerlet
        Not attached yet.

    Raises
    ------
    ImageError
        If either cannot be read.
    Refused
        If the source has not one WCS for each chip.
    """
    with Path(source).open("rb") if Path(source).is_file() else _missing(source) as stream:
        is_fits = stream.read(9).startswith((b"SIMPLE  =", b"\x1f\x8b"))
    kind = "wcs" if is_fits else "head"
    found = _fits_cards(source) if is_fits else _head_cards(source)
    if not found:
        raise ImageError(
            image=str(source), reason="it has no header with a WCS",
            hint="SCAMP's .head text, or FITS headers as astrometry.net's .wcs, are read.",
        )
    with open_holdings(path) as held:
        if len(found) != len(held.chips):
            raise Refused(
                image=held.name, reason=f"it has {len(held.chips)} chips, "
                f"{Path(source).name} has {len(found)} WCSs",
            )
        return _headerlet_of(held, found, name, NAMES[kind])


def _missing(source: str | Path) -> Any:
    raise ImageError(image=str(source), reason="no such file")


def _headerlet_of(
    held: Holdings, found: list[Records], name: str | None, default: str
) -> Headerlet:
    stated = Part(found[0]).text("WCSNAME")
    wcsname = name or stated or default
    chips = []
    for number, (chip, cards) in enumerate(zip(held.chips, found), start=1):
        part = Part([r for r in cards if is_wcs_keyword(r[0])])
        part.set("WCSNAME", wcsname, "name of the solution")
        part.set("TG_ENAME", chip.target[0], "EXTNAME of the image")
        part.set("TG_EVER", chip.target[1], "EXTVER of the image")
        version = chip.target[1] if chip.target[0] == "SCI" else number
        chips.append(ChipWcs(version, chip.target, part.records))
    about: dict[str, Value] = {
        "DESTIM": held.rootname, "HDRNAME": hdrname(held.stem, wcsname), "WCSNAME": wcsname,
        "DESCRIP": f"solution of {default}", "AUTHOR": default,
        "CATALOG": Part(found[0]).text("ASTREFCA"),
        "NMATCH": _first(found, "ASTRNSTR", "NMATCHES"),
    }
    if held.distortion:  # its own distortion is in its polynomial; the model stays what it was
        for keyword in ("IDCTAB", "NPOLFILE", "D2IMFILE", "SIPNAME", "DISTNAME"):
            about[keyword] = held.primary.text(keyword)
    rms = [_first(found, f"ASTRRMS{i}") for i in (1, 2)]
    if all(isinstance(v, (int, float)) for v in rms):
        about["RMS_RA"], about["RMS_DEC"] = (float(v) * 3.6e6 for v in rms)  # type: ignore[arg-type]
    return Headerlet(new_head(about), tuple(chips))


def _first(found: list[Records], *keywords: str) -> Value:
    for keyword in keywords:
        value = Part(found[0]).get(keyword)
        if isinstance(value, (int, float)) and np.isfinite(value):
            return value
    return None


def _head_cards(source: str | Path) -> list[Records]:
    if b"CTYPE1" not in Path(source).read_bytes():
        return []
    out = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about lines that are no cards, one for each
        for header in read_head(source):
            if has_wcs(header):
                text = header.tostring(sep="", endcard=True, padding=True)
                cards = records_of(text.encode("ascii", "replace"))
                out.append(_as_tpv(cards))
    return out


def _as_tpv(cards: Records) -> Records:
    """Name the projection of old SCAMP's TAN with PV terms by what it is."""
    latitude = any(k.startswith("PV2_") for k, _ in cards)
    if not latitude:
        return cards
    return [
        (k, b.replace(b"---TAN'", b"---TPV'").replace(b"--TAN'", b"--TPV'")
         if k.startswith("CTYPE") else b)
        for k, b in cards
    ]


def _fits_cards(source: str | Path) -> list[Records]:
    with open_parts(source) as file:
        return [p.records for p in file.parts if p.has("CTYPE1") and p.has("CRVAL1")]


def convert(
    path: str | Path, form: str, name: str = "active", *, max_degree: int = 7,
    wcsname: str | None = None, max_error_mas: float | None = None,
    out: str | Path | None = None, overwrite: bool = False, dry_run: bool = False,
) -> tuple[Change, list[Separation]]:
    """Make a solution in another form the active one; the one it was made of is kept.

    Parameters
    ----------
    path : path
    form : {"tpv", "sip", "tan"}
    name : str
        The solution to convert.
    max_degree : int
        Highest degree of the polynomial.
    wcsname : str, optional
        Name of the result.
    max_error_mas : float, optional
        Refuse a form that is further off.
    out, overwrite, dry_run
        As of :func:`cynosure.solutions.files.archive.activate`.

    Returns
    -------
    change : Change
    errors : list of Separation
        Between the solution and its new form, over each chip.

    Raises
    ------
    Refused, SettingError, HeaderletDamaged
    """
    with open_holdings(path) as held:
        shapes = shapes_of(held)
    headerlet = solution_of(path, name)
    new, maps = converted(
        headerlet, form, shapes=shapes, max_degree=max_degree, name=wcsname  # type: ignore[arg-type]
    )
    worst = max(m.summary()["max_mas"] for m in maps)
    if max_error_mas is not None and not worst <= max_error_mas:
        raise Refused(
            image=str(path), hint="Use another --form, a higher --degree, or a larger --max-error.",
            reason=f"{form.upper()} is up to {worst:.3g} mas off ({max_error_mas:g} allowed)",
        )
    change = activate(
        path, new, attach=False, out=out, overwrite=overwrite, dry_run=dry_run
    )
    return change, maps
