"""Hubble's distortion model, from its reference files to a WCS.

From pixels to the sky, as astropy evaluates it: the detector-to-image tables (D2IM) correct the
pixel; the SIP polynomial and the non-polynomial tables (NPOL) are both taken at the corrected
pixel and their shifts are added; CD; the tangent plane about CRVAL.

The pipeline's default solution, ``IDC_<root>``, is made of the telescope's own pointing (the WCS
``OPUS``, its roll PA_V3) and the reference files: the IDCTAB has for each chip and filter a
polynomial from pixels to arcseconds in the frame of the telescope and the place (V2, V3) of the
chip in it. All chips are laid out on the tangent plane of a reference chip.

Of a subarray or a binned exposure the polynomial is taken about its own reference pixel. WFPC2's
chips have their places from the OFFTAB, and the errors of its rows (Anderson & King 1999), which
the archive keeps in a DGEOFILE, become a D2IM table.

The roll of an aperture is Cox's (spherical triangle of pole, V1 and aperture).
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fits.parts import Part, Value, card, open_parts
from cynosure.ground.errors import ImageError
from cynosure.ground.sky import deproject
from cynosure.solutions.files.contents import RESERVED, Chip, Holdings, open_holdings
from cynosure.solutions.files.edits import unique_hdrname
from cynosure.solutions.files.headerlet import (
    ChipWcs,
    Headerlet,
    LookupTable,
    new_head,
    same_solution,
)
from cynosure.solutions.files.idctab import (
    IdcModel,
    NoModel,
    moved_chip,
    placed,
    read_idctab,
    rotation,
    skewed,
    year_of,
)
from cynosure.solutions.names import Distortion, distname, hdrname, model_root, wcstype

if TYPE_CHECKING:
    from cynosure.data.fits.alternates import Records

__all__ = ["NoModel", "aperture_roll_deg", "default_solution"]

Floats = NDArray[np.float64]

# Signs of the detector's axes against V2 and V3 (columns of IDCTAB, as stwcs takes them).
PARITY = {"WFC": (1.0, -1.0)}
OTHER_PARITY = (-1.0, 1.0)
# The chip whose position the pipeline takes from the pointing; the others are placed from it.
REFERENCE_CHIP = {("ACS", "WFC"): 2, ("WFC3", "UVIS"): 2, ("WFPC2", ""): 3}
# Corrections that the pipeline applies besides the polynomial, by keyword.
TABLES = {
    "ACS": ("NPOLFILE", "D2IMFILE"), "WFC3": ("NPOLFILE", "D2IMFILE"), "WFPC2": ("D2IMFILE",),
    "STIS": (), "NICMOS": (),
}


# --- geometry -------------------------------------------------------------------------------


def aperture_roll_deg(pa_v3_deg: float, dec_deg: float, v2: float, v3: float) -> float:
    """Return the position angle of V3 at an aperture, from that at the telescope's axis V1.

    Parameters
    ----------
    pa_v3_deg : float
        Position angle of V3 at V1.
    dec_deg : float
        Declination of the aperture.
    v2, v3 : float
        Its place in the telescope's frame, arcseconds.
    """
    roll, dec = np.radians(pa_v3_deg), np.radians(dec_deg)
    a, b = np.radians(v2 / 3600.0), np.radians(v3 / 3600.0)
    distance = np.arccos(np.clip(np.cos(a) * np.cos(b), -1.0, 1.0))
    sine = np.sqrt(np.sin(a) ** 2 + np.sin(b) ** 2 - (np.sin(a) * np.sin(b)) ** 2)
    beta = np.arctan2(np.sin(b), np.sin(a) * np.cos(b))
    gamma = np.arctan2(np.sin(a), np.sin(b) * np.cos(a))
    at_v1 = np.pi / 2 + roll - beta
    at_aperture = np.arctan2(
        np.sin(at_v1) * np.cos(dec),
        np.sin(dec) * sine - np.cos(dec) * np.cos(distance) * np.cos(at_v1),
    )
    return float(np.degrees(np.pi - (gamma + at_aperture)))


@dataclass(frozen=True, slots=True)
class _Plane:
    """The tangent plane of the reference chip: its point, and the matrix from its pixels."""

    ra_deg: float
    dec_deg: float
    matrix: Floats
    scale: float

    def sky(self, pixels: Floats) -> tuple[Floats, Floats]:
        """Return the sky of pixels that are counted from the tangent point."""
        xi, eta = self.matrix @ np.atleast_2d(pixels).T
        return deproject(xi, eta, self.ra_deg, self.dec_deg)


def _reference_plane(
    model: IdcModel, pointing: Floats, pa_v3: float, parity: tuple[float, float],
    moved: tuple[float, float], scale_of_skew: float,
) -> _Plane:
    """Return the plane that touches the sky where the pointing puts the model's reference pixel."""
    crval, crpix, cd = pointing[:2], pointing[2:4], pointing[4:].reshape(2, 2)
    xi, eta = cd @ (np.array([model.xref, model.yref]) - crpix)
    ra, dec = deproject(xi, eta, crval[0], crval[1])
    v2 = model.v2 + moved[0] * scale_of_skew
    v3 = model.v3 - moved[1] * scale_of_skew
    # The declination of the pointing's reference pixel, as the pipeline takes it.
    angle = np.radians(aperture_roll_deg(pa_v3, float(crval[1]), v2, v3) + model.theta_deg)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.diag(parity) @ rotation * (model.scale / 3600.0)
    return _Plane(float(ra), float(dec), matrix, model.scale)


def _chip_wcs(
    model: IdcModel, place: tuple[float, float], reference: IdcModel,
    reference_place: tuple[float, float], plane: _Plane, parity: tuple[float, float],
) -> tuple[Floats, Floats]:
    """Return CRVAL and CD of a chip: its place and its linear terms on the reference plane."""
    dv2, dv3 = place[0] - reference_place[0], place[1] - reference_place[1]
    away = np.hypot(dv2, dv3) / plane.scale
    angle = np.arctan2(parity[0] * dv2, parity[1] * dv3) if dv3 else 0.0
    angle += np.radians(reference.theta_deg)
    center = np.array([away * np.sin(angle), away * np.cos(angle)])
    ra, dec = (float(v[0]) for v in plane.sky(center))
    turned = model.theta_deg - reference.theta_deg if model.theta_deg else 0.0
    steps = np.array([[model.cx[1, 1], model.cy[1, 1]], [model.cx[1, 0], model.cy[1, 0]]])
    ends = center + steps / plane.scale @ rotation(turned)
    ra_ends, dec_ends = plane.sky(ends)
    east = ((ra_ends - ra + 180.0) % 360.0 - 180.0) * np.cos(np.radians(dec))
    return np.array([ra, dec]), np.array([east, dec_ends - dec])


# --- the solution ---------------------------------------------------------------------------


@dataclass(slots=True)
class _Given:
    """What an exposure gives to its default solution."""

    held: Holdings
    instrument: str
    detector: str
    pa_v3: float
    files: dict[str, Path | None]


def default_solution(
    path: str | Path, *, idctab: str | Path | None = None, npolfile: str | Path | None = None,
    d2imfile: str | Path | None = None, offtab: str | Path | None = None,
    refs: str | Path | None = None,
) -> Headerlet:
    """Make the pipeline's default solution of an exposure from its reference files.

    Parameters
    ----------
    path : path
        The exposure.
    idctab, npolfile, d2imfile, offtab : path, optional
        The files; those that the header names, by default. A DGEOFILE of WFPC2 serves as D2IMFILE.
    refs : path, optional
        A folder to look for those in, before the folders that variables like ``jref`` name.

    Returns
    -------
    Headerlet
        ``IDC_<root>``; apply it with :func:`cynosure.solutions.files.archive.activate`.

    Raises
    ------
    NoModel
        If a file is not there, or has nothing for this exposure.
    ImageError
        If a file cannot be read.
    """
    with open_holdings(path) as held:
        stated = {"IDCTAB": idctab, "NPOLFILE": npolfile, "D2IMFILE": d2imfile, "OFFTAB": offtab}
        given = _given(held, stated, refs)
        models, skews = [], []
        for chip in held.chips:
            model, skew = _chip_model(given, chip)
            models.append(model)
            skews.append(skew)
        first = _reference_index(given)
        chips, tables = [], []
        for number, chip in enumerate(held.chips):
            cards, own = _chip_cards(given, models, skews, number, first)
            chips.append(ChipWcs(chip.target[1], chip.target, cards))
            tables += own
        made = Headerlet(_default_head(given, chips[0]), tuple(chips), tuple(tables))
        return made.replaced(HDRNAME=_free_hdrname(held, made))


def _free_hdrname(held: Holdings, headerlet: Headerlet) -> str:
    """Return the name of a headerlet; a new one where another WCS has it in the file."""
    for entry in map(held.entry, held.embedded):
        if entry.hdrname == headerlet.hdrname and (
            entry.headerlet is None or not same_solution(entry.headerlet, headerlet)
        ):
            return unique_hdrname(held, headerlet)
    return headerlet.hdrname


def _given(held: Holdings, stated: dict[str, Any], refs: Any) -> _Given:
    primary = held.primary
    instrument, detector = primary.text("INSTRUME").upper(), primary.text("DETECTOR").upper()
    if instrument not in TABLES:
        raise NoModel(
            image=held.name, reason=f"no default solution is built for {instrument or 'it'}",
            hint=f"It is for {', '.join(TABLES)}.",
        )
    roll = primary.get("PA_V3")
    if not isinstance(roll, (int, float)):
        raise NoModel(image=held.name, reason="its header has no PA_V3", hint="")
    files: dict[str, Path | None] = dict.fromkeys(("IDCTAB", "NPOLFILE", "D2IMFILE", "OFFTAB"))
    wanted = ["IDCTAB", *TABLES[instrument]]
    if instrument == "WFPC2":
        detector = ""  # each chip has its own
        wanted.append("OFFTAB")
    for keyword in wanted:
        files[keyword] = _reference(held, keyword, stated[keyword], refs)
    if instrument == "WFPC2" and files["D2IMFILE"] is None:
        files["D2IMFILE"] = _reference(held, "DGEOFILE", None, refs)
    if files["IDCTAB"] is None:
        raise NoModel(image=held.name, reason="its header names no IDCTAB")
    return _Given(held, instrument, detector, float(roll), files)


def _reference(held: Holdings, keyword: str, given: Any, refs: Any) -> Path | None:
    """Find a reference file: the one given, in the folder, or where its variable points."""
    if given is not None:
        return Path(given)
    stated = held.primary.text(keyword)
    if not model_root(stated):
        return None
    variable, _, name = stated.rpartition("$")
    name = Path(name).name
    folders = [refs, os.environ.get(variable) if variable else None]
    for folder in folders:
        if folder is not None and (Path(folder) / name).is_file():
            return Path(folder) / name
    raise NoModel(image=held.name, reason=f"{keyword} {stated} is not there", file=stated)


def _chip_number(given: _Given, chip: Chip) -> int:
    value: Any = 1
    if given.instrument == "WFPC2":
        value = chip.part.get("DETECTOR")
    elif given.instrument == "NICMOS":
        value = given.held.primary.get("CAMERA")
    elif (given.instrument, given.detector) in REFERENCE_CHIP:
        value = chip.part.get("CCDCHIP")
    return int(value) if isinstance(value, (int, float)) else 1


def _reference_index(given: _Given) -> int:
    wanted = REFERENCE_CHIP.get((given.instrument, given.detector))
    numbers = [_chip_number(given, c) for c in given.held.chips]
    return numbers.index(wanted) if wanted in numbers else 0


def _filters(given: _Given, chip: Chip) -> tuple[str, str]:
    primary = given.held.primary
    names = {"ACS": ("FILTER1", "FILTER2"), "STIS": ("OPT_ELEM", "FILTER"),
             "WFPC2": ("FILTNAM1", "FILTNAM2")}
    first, second = names.get(given.instrument, ("FILTER", ""))
    texts = [primary.text(k) or chip.part.text(k) if k else "" for k in (first, second)]
    if given.detector == "SBC":
        texts = [texts[0] or "F115LP", "N/A"]
    return texts[0], texts[1]


def _chip_model(given: _Given, chip: Chip) -> tuple[IdcModel, tuple[float, float]]:
    """Return the model of a chip as it was read out, and the skew that moves the chip."""
    assert given.files["IDCTAB"] is not None
    number = _chip_number(given, chip)
    model = read_idctab(given.files["IDCTAB"], number, *_filters(given, chip))
    skew = (0.0, 0.0)
    if (given.instrument, given.detector) == ("ACS", "WFC"):
        model, skew = skewed(model, year_of(_date(given, chip)))
    if given.files["OFFTAB"] is not None:
        model = placed(model, given.files["OFFTAB"], number, _date(given, chip))
    model = model.binned(_binning(given, chip))
    offset = _offset(chip, model)
    if offset != (0.0, 0.0):
        x, y = _pointing(given.held, chip)[2:4]
        model = model.about(x - offset[0] - model.xref, y - offset[1] - model.yref)
        model = replace(model, xref=float(x), yref=float(y))
    return model, skew


def _date(given: _Given, chip: Chip) -> str:
    """Return DATE-OBS; the models of some detectors change with it."""
    date = given.held.primary.text("DATE-OBS") or chip.part.text("DATE-OBS")
    try:
        year_of(date)
    except ValueError:
        raise NoModel(
            image=given.held.name, reason=f"DATE-OBS {date!r} is no date; the model changes with it"
        ) from None
    return date


def _binning(given: _Given, chip: Chip) -> int:
    if given.instrument == "WFPC2":
        return 2 if given.held.primary.text("MODE").upper() == "AREA" else 1
    value = chip.part.get("BINAXIS1", 1)
    return int(value) if isinstance(value, (int, float)) and value >= 1 else 1


def _offset(chip: Chip, model: IdcModel) -> tuple[float, float]:
    """Return LTV, where pixel (0, 0) of the detector is; none where the model is of this field.

    The field of a polarizer is smaller than the detector, and so is its model.
    """
    size = chip.part.get("NAXIS1", chip.part.get("NPIX1")), chip.part.get(
        "NAXIS2", chip.part.get("NPIX2"))
    if size == (model.xsize, model.ysize):
        return 0.0, 0.0
    return _number(chip.part.get("LTV1")), _number(chip.part.get("LTV2"))


def _pointing(held: Holdings, chip: Chip) -> Floats:
    """Return CRVAL, CRPIX and CD of the telescope's own WCS."""
    has_original = RESERVED in held.letters
    headerlet = held.alternate(RESERVED) if has_original else held.active()
    own = headerlet.chip(chip.target)
    if own is None:
        raise ImageError(image=held.name, reason=f"chip {chip.target} has no WCS to start from")
    return own.linear


def _chip_cards(
    given: _Given, models: list[IdcModel], skews: list[tuple[float, float]], number: int, first: int
) -> tuple[Records, list[LookupTable]]:
    held, chip = given.held, given.held.chips[number]
    model, reference = models[number], models[first]
    parity = PARITY.get(given.detector, OTHER_PARITY)
    pointing = _pointing(held, held.chips[first])
    opus_scale = 3600.0 * float(np.hypot(pointing[4], pointing[6]))
    moved = [
        moved_chip(_chip_number(given, held.chips[k]), skews[k]) for k in (number, first)
    ]
    plane = _reference_plane(
        reference, pointing, given.pa_v3, parity, moved[1], opus_scale / reference.cx[1, 1]
    )
    factor = opus_scale / model.cx[1, 1]
    places = [
        (m.v2 + d[0] * factor, m.v3 - d[1] * factor) for m, d in zip((model, reference), moved)
    ]
    crval, cd = _chip_wcs(model, places[0], reference, places[1], plane, parity)
    aberration = chip.part.get("VAFACTOR")
    if isinstance(aberration, (int, float)) and aberration > 0:
        apart = np.array([(crval[0] - plane.ra_deg + 180.0) % 360.0 - 180.0,
                          crval[1] - plane.dec_deg])
        crval = np.array([plane.ra_deg, plane.dec_deg]) + aberration * apart
        cd = cd * aberration
    part = Part([])
    _linear_cards(part, model, crval, cd, model_root(str(given.files["IDCTAB"])))
    part.set("RADESYS", _frame(held, chip), "reference frame")
    _sip_cards(part, model)
    tables = _d2im(given, chip, part, number) + _npol(given, chip, part, number, model)
    part.set("TG_ENAME", chip.target[0], "EXTNAME of the image")
    part.set("TG_EVER", chip.target[1], "EXTVER of the image")
    return part.records, tables


def _linear_cards(part: Part, model: IdcModel, crval: Floats, cd: Floats, root: str) -> None:
    name = f"IDC_{root}"
    values: list[tuple[str, Value, str]] = [
        ("WCSAXES", 2, "axes of the WCS"), ("WCSNAME", name, "name of the solution"),
        ("WCSTYPE", wcstype(name), ""),
        ("CTYPE1", "RA---TAN-SIP", ""), ("CTYPE2", "DEC--TAN-SIP", ""),
        ("CUNIT1", "deg", ""), ("CUNIT2", "deg", ""),
        ("CRVAL1", float(crval[0]) % 360.0, "[deg]"), ("CRVAL2", float(crval[1]), "[deg]"),
        ("CRPIX1", model.xref, "[px]"), ("CRPIX2", model.yref, "[px]"),
        *((f"CD{i + 1}_{j + 1}", float(cd[i, j]), "[deg/px]") for i in (0, 1) for j in (0, 1)),
        ("RADESYS", "", "reference frame"),
        ("ORIENTAT", float(np.degrees(np.arctan2(cd[0, 1], cd[1, 1]))), "[deg] angle of y"),
        ("OCX10", model.cx[1, 0], "linear term of the IDCTAB"),
        ("OCX11", model.cx[1, 1], "linear term of the IDCTAB"),
        ("OCY10", model.cy[1, 0], "linear term of the IDCTAB"),
        ("OCY11", model.cy[1, 1], "linear term of the IDCTAB"),
        ("IDCSCALE", model.scale, "[arcsec/px] scale of the IDCTAB"),
    ]
    part.records = [card(k, float(v) if isinstance(v, np.floating) else v, c)
                    for k, v, c in values]


def _frame(held: Holdings, chip: Chip) -> str:
    """Return RADESYS as the pipeline has it: what REFFRAME says, else what the chip has.

    The observer chooses REFFRAME: GSC1, the first guide star catalogue, is on the FK5; OTHER says
    nothing.
    """
    stated = held.primary.text("REFFRAME").upper()
    known = {"GSC1": "FK5", "ICRS": "ICRS"}.get(stated, "")
    return known or chip.part.text("RADESYS") or "ICRS"


def _linear_terms(model: IdcModel) -> Floats:
    return np.array([[model.cx[1, 1], model.cx[1, 0]], [model.cy[1, 1], model.cy[1, 0]]])


def _sip_cards(part: Part, model: IdcModel) -> None:
    """Add SIP: the higher terms before the linear ones are applied, that is times their inverse.

    The pipeline multiplies those of every degree by the binning; the power that the geometry asks
    for is one less than the degree, which is the same for the second only.
    """
    inverse = np.linalg.inv(_linear_terms(model))
    for name, axis in (("A", 0), ("B", 1)):
        part.records.append(card(f"{name}_ORDER", model.order, "degree of the SIP polynomial"))
        for n in range(2, model.order + 1):
            for m in range(n + 1):
                value = float((inverse @ [model.cx[n, m], model.cy[n, m]])[axis]) * model.binning
                part.records.append(card(f"{name}_{m}_{n - m}", value, "SIP coefficient"))


def _tables_of(path: Path, chip: int) -> dict[str, tuple[Any, NDArray[np.float32]]]:
    """Return the DX and DY tables of a chip with their headers."""
    from astropy.io import fits

    from cynosure.data.fits.file import understood

    with open_parts(path):
        pass
    out = {}
    with understood(path.name, 1), fits.open(path, memmap=False) as units:
        if units[0].header.get("INSTRUME") == "WFPC2" and "DX" in units:
            own = [u for u in units[1:] if (u.name, u.ver) == ("DY", chip)]
            return {"DY": _row_errors(own[0].data)} if own else {}
        for unit in units[1:]:
            own = unit.header.get("CCDCHIP", unit.header.get("DETECTOR", 1))
            if unit.name in ("DX", "DY") and own == chip:
                out[unit.name] = (unit.header.copy(), np.asarray(unit.data, dtype=np.float32))
    return out


def _row_errors(data: Any) -> tuple[Any, NDArray[np.float32]]:
    """Return what a DGEOFILE of WFPC2 says about its rows; it is the same in every column.

    Its chips are counted by EXTVER, and it has no grid: one value for each pixel.
    """
    return {"CRPIX2": 1.0, "CRVAL2": 1.0}, np.asarray(data[:, :1], dtype=np.float32)


def _lookup(
    part: Part, chip: Chip, kind: str, axis: int, version: int, header: Any,
    data: NDArray[np.float32],
) -> LookupTable:
    """Add the cards that name a table; return the table as it goes into the file.

    Tables stay those of the whole detector. Their grid is moved by LTV and scaled by LTM, with the
    signs that the pipeline uses.
    """
    prefix, error, kinds = (
        ("DP", "CPERR", "CPDIS") if kind == "WCSDVARR" else ("D2IM", "D2IMERR", "D2IMDIS")
    )
    part.records += [
        card(f"{error}{axis}", float(data.max()), "[px] largest correction"),
        card(f"{kinds}{axis}", "Lookup", "kind of the distortion"),
        card(f"{prefix}{axis}", f"EXTVER: {version}", f"EXTVER of the {kind}"),
        card(f"{prefix}{axis}", "NAXES: 2", "independent variables"),
        card(f"{prefix}{axis}", "AXIS.1: 1", "axis of the first"),
        card(f"{prefix}{axis}", "AXIS.2: 2", "axis of the second"),
    ]
    ny, nx = data.shape
    records = [
        card("XTENSION", "IMAGE", "Image extension"), card("BITPIX", -32, "array data type"),
        card("NAXIS", 2, "number of array dimensions"), card("NAXIS1", nx), card("NAXIS2", ny),
        card("PCOUNT", 0, "number of parameters"), card("GCOUNT", 1, "number of groups"),
        card("EXTNAME", kind, "extension name"), card("EXTVER", version, "extension version"),
    ]
    for i in (1, 2):
        shift, step = chip.part.get(f"LTV{i}", 0.0), chip.part.get(f"LTM{i}_{i}", 1.0)
        records += [
            card(f"CRPIX{i}", float(header.get(f"CRPIX{i}", 0.0))),
            card(f"CRVAL{i}", float(header.get(f"CRVAL{i}", 0.0)) - _number(shift)),
            card(f"CDELT{i}", float(header.get(f"CDELT{i}", 1.0)) * _number(step)),
        ]
    return LookupTable(kind, version, Part(records).header_bytes(), data.astype(">f4").tobytes())


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _d2im(given: _Given, chip: Chip, part: Part, number: int) -> list[LookupTable]:
    path = given.files["D2IMFILE"]
    if path is None:
        return []
    out = []
    version = 1 + sum(
        len(_tables_of(path, _chip_number(given, c))) for c in given.held.chips[:number]
    )
    found = _tables_of(path, _chip_number(given, chip))
    for axis, name in ((1, "DX"), (2, "DY")):
        if name in found:
            out.append(_lookup(part, chip, "D2IMARR", axis, version, *found[name]))
            version += 1
    part.records.append(card("D2IMEXT", _as_stated(given, "D2IMFILE")))
    return out


def _npol(
    given: _Given, chip: Chip, part: Part, number: int, model: IdcModel
) -> list[LookupTable]:
    """Add the NPOL tables, turned from behind the linear terms, where they were made, to before."""
    path = given.files["NPOLFILE"]
    if path is None:
        return []
    found = _tables_of(path, _chip_number(given, chip))
    if len(found) < 2 or found["DX"][1].shape != found["DY"][1].shape:
        raise NoModel(
            image=path.name, reason=f"no DX and DY of chip {_chip_number(given, chip)}", hint=""
        )
    (header_x, dx), (header_y, dy) = found["DX"], found["DY"]
    matrix = np.linalg.inv(_linear_terms(model) / model.scale)
    both = (matrix @ np.array([dx.ravel(), dy.ravel()], dtype=float)).astype(np.float32)
    first = 2 * chip.target[1] - 1
    part.records.append(card("NPOLEXT", _as_stated(given, "NPOLFILE")))
    return [
        _lookup(part, chip, "WCSDVARR", axis, first + axis - 1, header,
                both[axis - 1].reshape(dx.shape))
        for axis, header in ((1, header_x), (2, header_y))
    ]


def _as_stated(given: _Given, keyword: str) -> str:
    """Return a reference file as the exposure names it, if it is that one; else its name."""
    path, primary = given.files[keyword], given.held.primary
    if path is None:
        return "N/A"
    names = [primary.text(k) for k in (keyword, "DGEOFILE")]
    return next((n for n in names if model_root(n) == model_root(path.name)), path.name)


def _default_head(given: _Given, chip: ChipWcs) -> Records:
    held, name = given.held, str(chip.get("WCSNAME"))
    stated = {k: _as_stated(given, k) for k in ("IDCTAB", "NPOLFILE", "D2IMFILE")}
    roots = Distortion(*(model_root(v) for v in stated.values()))
    return new_head({
        "DESTIM": held.rootname, "HDRNAME": hdrname(held.stem, name), "WCSNAME": name,
        "DISTNAME": distname(held.rootname, roots),
        "SIPNAME": f"{held.rootname}_{roots.idctab}", **stated,
        "DESCRIP": wcstype(name), "AUTHOR": "cynosure",
        "DATE": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S"),
    })
