"""Read the WCS of a header in any dialect.

wcslib and astropy do the mathematics. This module adds what they leave to the caller: the choice
between SIP and PV where a header has both, the conversion of old keywords, and notes in plain words
on assumptions and on what cannot be read. No header raises an exception.

The dialects: TAN, SIP (Shupe et al. 2005), TPV and the TAN with PV of old SCAMP (the FITS registry
of conventions), TNX and ZPX (IRAF), ZPN and the other projections of Calabretta & Greisen (2002),
CDELT with PC or CROTA, and the lookup tables of Hubble (CPDIS, D2IMDIS).
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cynosure.data.fits.blocks import printable
from cynosure.ground.errors import ImageError

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.io.fits.hdu.hdulist import HDUList
    from astropy.wcs import WCS

__all__ = ["has_wcs", "is_wcs_keyword", "read_head", "read_wcs", "sky_of_pixels"]

Floats = NDArray[np.float64]

# Every keyword that is part of the primary WCS; alternates (with a letter) are not.
WCS_KEYWORD = re.compile(
    r"(WCSAXES|WCSNAME|(CTYPE|CRVAL|CRPIX|CDELT|CROTA|CUNIT|CNAME|CRDER|CSYER|PROJP|CPDIS|CPERR|CQDIS|CQERR)\d+"
    r"|(CD|PC)\d+_\d+|PC\d{6}|P[VS]\d+_\d+|LONPOLE|LATPOLE|RADESYS|RADECSYS|EQUINOX"
    r"|[AB]P?_ORDER|[AB]P?_\d+_\d+|[AB]P?_DMAX|WAT\d_\d{3}|D[PQ]\d+(\..*)?|D2IM(DIS|ERR)?\d+(\..*)?|D2IMEXT|AXISCORR)"
)
SIP_KEYWORD = re.compile(r"[AB]P?_(ORDER|DMAX|\d+_\d+)")
SIZE_KEYWORD = re.compile(r"(CRVAL|CRPIX|CDELT|CROTA)[12]|(CD|PC)[12]_[12]|PV[12]_\d+")
# Limit of the numbers of a WCS: far above any pixel or degree, and its square does not overflow.
LARGEST = 1e100
PV_KEYWORD = re.compile(r"PV[12]_\d+")
# SIP and PV that agree within this (arcsec) are conversions of one distortion.
SAME_ARCSEC = 1e-3
CELESTIAL = re.compile(r"(RA--|DEC-|[GEHS]LON|[GEHS]LAT|[A-Z]{2}LN|[A-Z]{2}LT)-")

# Messages of wcslib and their translations for users. None: not reported.
PLAIN_WORDS: tuple[tuple[str, str | None], ...] = (
    (r"has more axes .* than the image", None),
    (r"deprecated", None),
    (r"datfix|obsfix", None),
    (r"SCAMP distortion parameters|SIP distortion parameters", None),
    (r"unitfix.*Changed units?:?\s*(.*)", "units mended: {0}"),
    (r"celfix.*made the change '(.*)'", "mended: {0}"),
    (r"cdfix", "a row of zeros in the CD matrix was mended"),
    (r"spcfix|cylfix", None),
)


def is_wcs_keyword(keyword: str) -> bool:
    """Say whether a keyword belongs to the primary WCS."""
    return WCS_KEYWORD.fullmatch(keyword) is not None


def has_wcs(header: Header) -> bool:
    """Say whether a header claims a celestial WCS: CTYPEs of longitude and latitude."""
    return sum(bool(CELESTIAL.match(_text(header, f"CTYPE{i}") + "-")) for i in range(1, 8)) >= 2


def _text(header: Header, keyword: str) -> str:
    from astropy.io.fits import VerifyError

    try:
        value = header.get(keyword)
    except VerifyError:  # the card cannot be read
        return ""
    return value.strip().upper() if isinstance(value, str) else ""


def read_wcs(
    header: Header, *, hdulist: HDUList | None = None, shape: tuple[int, int] | None = None
) -> tuple[WCS | None, tuple[str, ...]]:
    """Read the celestial WCS of a header.

    Parameters
    ----------
    header : Header
    hdulist : HDUList, optional
        The open file, where lookup tables or coordinate tables lie in other extensions.
    shape : (int, int), optional
        Rows and columns of the image; NAXIS1 and NAXIS2 of the header where absent.

    Returns
    -------
    wcs : WCS or None
        None where there is no celestial WCS, or one that cannot be used.
    notes : tuple of str
        What was assumed, corrected, or cannot be read.
    """
    if not has_wcs(header):
        return None, _partial(header)
    shape = shape or _image_shape(header)
    cards, notes = _prepared(header, shape)
    if lost := _missing_crval(cards):
        return None, (*notes, f"the WCS cannot be used: {lost} is missing or not a number")
    if absurd := _impossible_size(cards):
        return None, (*notes, f"the WCS cannot be read: {absurd}")
    if any(k.startswith(("CPDIS", "D2IMDIS")) or "-TAB" in str(cards[k]) for k in cards):
        if hdulist is None:
            notes.append("the lookup tables of the WCS lie in other extensions and were not read")
            _drop(cards, [k for k in cards if re.match(r"CPDIS|CPERR|DP\d|D2IM", k)])
    wcs, said = _build(cards, hdulist)
    notes += said
    if wcs is None:
        return None, tuple(notes)
    if shape is not None:
        wcs.pixel_shape = (shape[1], shape[0])
    notes += _checked(wcs, shape)
    usable = not any(n.startswith("the WCS cannot be used") for n in notes)
    return (wcs if usable else None), tuple(dict.fromkeys(notes))


def _partial(header: Header) -> tuple[str, ...]:
    keys = [k for k in ("CTYPE1", "CRVAL1", "CD1_1", "CDELT1", "CRPIX1") if k in header]
    if not keys:
        return ()
    kinds = " and ".join(repr(_text(header, f"CTYPE{i}")) for i in (1, 2))
    return (f"no celestial WCS: CTYPE1 and CTYPE2 are {kinds}",)


def _missing_crval(cards: Header) -> str:
    """Return the CRVALs of the sky without a value; their default, zero, is not a pointing."""
    kinds = [k for k in cards if k.startswith("CTYPE")]
    axes = [k[5:] for k in kinds if CELESTIAL.match(_text(cards, k) + "-")]
    return " and ".join(f"CRVAL{n}" for n in axes if not _is_number(cards.get(f"CRVAL{n}")))


def _impossible_size(cards: Header) -> str:
    """Return an impossible size of a WCS; reading it could fill the memory or take minutes."""
    for key, most in (("WCSAXES", 99), *((f"{k}_ORDER", 9) for k in ("A", "B", "AP", "BP"))):
        value = cards.get(key, 0)
        if not _is_number(value) or not -1 <= value <= most:
            return f"{key} is {value}, where 0 to {most} is possible"
    for key in cards:
        if SIZE_KEYWORD.fullmatch(key) and _is_number(cards[key]):
            if not abs(cards[key]) < LARGEST:
                return f"{key} is {cards[key]:g}"
    return ""


def _image_shape(header: Header) -> tuple[int, int] | None:
    nx, ny = header.get("NAXIS1"), header.get("NAXIS2")
    if isinstance(nx, int) and isinstance(ny, int) and nx > 0 and ny > 0:
        return ny, nx
    nx, ny = header.get("IMAGEW"), header.get("IMAGEH")
    return (int(ny), int(nx)) if nx and ny else None


def _prepared(header: Header, shape: tuple[int, int] | None) -> tuple[Header, list[str]]:
    """Copy the cards of the WCS, corrected so that wcslib reads them without warnings."""
    from astropy.io.fits import Header, VerifyError

    cards, notes = Header(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cards that violate the standard are read if possible
        for card in header.cards:
            if not is_wcs_keyword(card.keyword):
                continue
            try:
                value = card.value
                if value is None or type(value).__name__ == "Undefined":
                    continue
                if odd := _odd_record(cards, card.keyword, value):
                    notes.append(odd)
                    continue
                # A plain card is formatted again, to avoid warnings about its format.
                cards.append(card if "." in card.keyword else (card.keyword, value))
            except (VerifyError, ValueError):
                notes.append(f"{card.keyword} cannot be read and was left out")
    _rename_old(cards)
    axes = {int(k[5:]) for k in cards if re.fullmatch(r"CTYPE\d+", k)}
    stated = cards.get("WCSAXES")
    if stated is not None:
        if isinstance(stated, float) and stated.is_integer():
            cards["WCSAXES"] = int(stated)
        elif not isinstance(stated, int):
            del cards["WCSAXES"]
    if max(axes, default=0) <= 2 and "WCSAXES" in cards and int(cards["WCSAXES"]) < 2:
        del cards["WCSAXES"]
    notes += _one_matrix(cards) + _one_distortion(cards, shape)
    return cards, notes


def _odd_record(cards: Header, keyword: str, value: Any) -> str:
    """Return the error of a record of a distortion, ``DP1.NAXES``; empty for a valid one.

    wcslib does not check them: it writes beyond its memory where NAXES is repeated or huge, and
    reads beyond it where AXIS.n names an axis that does not exist.
    """
    if re.fullmatch(r"(DP|DQ|D2IM)\d+", keyword):
        return f"{keyword} = {value!r} is not a distortion record and was left out"
    if "." not in keyword:
        return ""
    if keyword in cards:
        return f"{keyword} is repeated; the first one is used"
    axes = (2,) if keyword.endswith(".NAXES") else (1, 2) if ".AXIS." in keyword else None
    if axes is not None and value not in axes:
        return f"{keyword} is {value}, but an image has two axes; it was left out"
    return ""


def _rename_old(cards: Header) -> None:
    """Rename old keywords to their present names: RADECSYS, PC001002, PROJPn."""
    if "RADECSYS" in cards:
        value = cards.pop("RADECSYS")
        cards.setdefault("RADESYS", value)
    for key in [k for k in cards if re.fullmatch(r"PC\d{6}", k)]:
        cards.setdefault(f"PC{int(key[2:5])}_{int(key[5:])}", cards.pop(key))
    for key in [k for k in cards if re.fullmatch(r"PROJP\d+", k)]:
        cards.setdefault(f"PV2_{key[5:]}", cards.pop(key))


def _one_matrix(cards: Header) -> list[str]:
    """Keep one of CD, PC with CDELT, and CROTA with CDELT."""
    cd = [k for k in cards if re.fullmatch(r"CD\d+_\d+", k)]
    pc = [k for k in cards if re.fullmatch(r"PC\d+_\d+", k)]
    crota = [k for k in cards if k.startswith("CROTA")]
    notes = []
    if cd and any(float(cards[k]) for k in cd if _is_number(cards[k])):
        _drop(cards, pc + crota + [k for k in cards if k.startswith("CDELT")])
    elif cd:
        notes.append("CD is all zeros and was left out")
        _drop(cards, cd)
    if pc and crota and not cd:
        _drop(cards, crota)
    return notes


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_distortion(cards: Header, shape: tuple[int, int] | None) -> list[str]:
    """Decide between SIP and PV, as CTYPE says; a header with both has one of them converted."""
    sip = [k for k in cards if SIP_KEYWORD.fullmatch(k)]
    kinds = [_text(cards, "CTYPE1"), _text(cards, "CTYPE2")]
    projection = kinds[0][5:8]
    pv = [k for k in cards if PV_KEYWORD.fullmatch(k)] if projection in ("TAN", "TPV") else []
    notes: list[str] = []
    has_order = "A_ORDER" in cards and "B_ORDER" in cards
    if sip and not has_order:
        notes.append("SIP coefficients without A_ORDER and B_ORDER were left out")
        sip = _drop(cards, sip)
    if sip and pv:
        both = "the header has SIP and PV distortion"
        if kinds[0].endswith("-SIP"):
            notes.append(
                f"{both}; CTYPE says SIP, PV was left out{_difference(cards, pv, sip, shape)}"
            )
            pv = _drop(cards, pv)
        else:
            apart = _difference(cards, pv, sip, shape)
            notes.append(f"{both}; CTYPE says {projection}, SIP was left out{apart}")
            sip = _drop(cards, sip)
    if sip and not kinds[0].endswith("-SIP"):
        notes.append("SIP coefficients are used although CTYPE does not say -SIP")
        for i in (1, 2):
            cards[f"CTYPE{i}"] = _text(cards, f"CTYPE{i}") + "-SIP"
    if not sip and kinds[0].endswith("-SIP"):
        notes.append("CTYPE says SIP, but there are no SIP coefficients")
        for i in (1, 2):
            cards[f"CTYPE{i}"] = _text(cards, f"CTYPE{i}").removesuffix("-SIP")
    if pv and projection == "TAN" and _is_scamp(cards, pv):
        notes.append("TAN with PV terms is read as TPV (old SCAMP)")
        for i in (1, 2):
            cards[f"CTYPE{i}"] = _text(cards, f"CTYPE{i}").replace("TAN", "TPV")
    return notes


def _is_scamp(cards: Header, pv: list[str]) -> bool:
    """Say whether PV terms are a distortion of SCAMP, and not PV1_0 to PV1_4 of a projection.

    The parameters of a projection's native longitude appear on the longitude axis only; a
    distortion has terms on both axes.
    """
    latitude = 2 if _text(cards, "CTYPE1").startswith("RA") else 1
    return any(k.startswith(f"PV{latitude}_") or int(k.split("_")[1]) > 4 for k in pv)


def _drop(cards: Header, keys: list[str]) -> list[str]:
    for key in keys:
        cards.remove(key, ignore_missing=True, remove_all=True)  # also repeated keywords
    return []


def _difference(cards: Header, pv: list[str], sip: list[str], shape: tuple[int, int] | None) -> str:
    """Return a note on the largest difference of the two distortions over the image."""
    if shape is None:
        return ""
    skies = []
    for drop, old, new in ((pv, "TPV", "TAN"), (sip, "TAN", "TPV")):
        one = cards.copy()
        _drop(one, [k for k in drop if k in one])
        for i in (1, 2):
            kind = _text(one, f"CTYPE{i}").removesuffix("-SIP").replace(old, new)
            one[f"CTYPE{i}"] = kind + ("-SIP" if new == "TAN" else "")
        wcs, _ = _build(one, None)
        if wcs is None:
            return ""
        skies.append(wcs)
    x, y = np.meshgrid(np.linspace(0, shape[1] - 1, 5), np.linspace(0, shape[0] - 1, 5))
    (ra1, dec1), (ra2, dec2) = (sky_of_pixels(w, x.ravel(), y.ravel()) for w in skies)
    from cynosure.ground.sky import separation_deg

    apart = separation_deg(ra1, dec1, ra2, dec2) * 3600.0
    if not np.isfinite(apart).any():
        return ""
    largest = float(np.nanmax(apart))
    if largest < SAME_ARCSEC:
        return f" (they agree within {SAME_ARCSEC:g} arcsec)"
    return f" (they differ by up to {largest:.3g} arcsec)"


def _build(cards: Header, hdulist: HDUList | None) -> tuple[WCS | None, list[str]]:
    from astropy.io.fits import VerifyError
    from astropy.wcs import WCS, WcsError

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            # wcslib cannot select the celestial axes of a distorted WCS later, only at reading.
            wcs = WCS(cards, fobj=hdulist, naxis=2 if _celestial_first(cards) else None)
            if wcs.naxis != 2:
                wcs = wcs.celestial
            wcs.wcs.set()
        except (
            WcsError,
            VerifyError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            MemoryError,
            AssertionError,
            AttributeError,
            NameError,  # of astropy itself, for a D2IMDIS that is not a lookup table
            OverflowError,
            RuntimeError,
            OSError,
        ) as error:
            return None, [f"the WCS cannot be read: {_reason(error)}"]
    return wcs, [n for n in (_plain(str(w.message)) for w in caught) if n]


def _celestial_first(cards: Header) -> bool:
    """Say whether a WCS of more than two axes has longitude and latitude on the first two."""
    third = re.compile(r"(CTYPE|CRVAL|CRPIX|CDELT)[3-9]|(CD|PC)[3-9]_[3-9]")
    further = any(third.fullmatch(k) for k in cards)
    return (further or cards.get("WCSAXES", 2) > 2) and all(
        CELESTIAL.match(_text(cards, f"CTYPE{i}") + "-") for i in (1, 2)
    )


def _reason(error: BaseException) -> str:
    lines = [x.strip() for x in str(error).splitlines() if x.strip() and not x.startswith("ERROR")]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")


def _plain(message: str) -> str:
    message = " ".join(message.split())
    for pattern, words in PLAIN_WORDS:
        match = re.search(pattern, message)
        if match is not None:
            return words.format(*match.groups()).rstrip(" '.") if words else ""
    return f"wcslib says: {message}"


def _checked(wcs: WCS, shape: tuple[int, int] | None) -> list[str]:
    notes = []
    matrix = wcs.pixel_scale_matrix
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-30:
        return ["the WCS cannot be used: its matrix is singular"]
    if np.array_equal(matrix, np.eye(2)) and not wcs.wcs.has_cd():
        return ["the WCS cannot be used: no CD, PC or CDELT gives its scale"]
    if wcs.wcs.lng < 0 or wcs.wcs.lat < 0:
        return ["the WCS cannot be used: it has no longitude and latitude"]
    frame = _frame_name(wcs)
    if frame:
        notes.append(f"the WCS is {frame}; it is converted to ICRS")
    if shape is not None:
        ra, dec = sky_of_pixels(wcs, (shape[1] - 1) / 2, (shape[0] - 1) / 2)
        if not np.isfinite(ra + dec):
            notes.append("the WCS gives no sky position at the centre of the image")
    return notes


def _frame_name(wcs: WCS) -> str:
    """Return the name of a WCS's frame; empty for ICRS and for FK5 of J2000.

    FK5 J2000 and ICRS agree within 25 mas, and most headers with FK5 were made with catalogues on
    the ICRS; the fit to Gaia corrects the difference.
    """
    kind = wcs.wcs.lngtyp.strip()
    if kind.startswith(("GLON", "ELON", "HLON", "SLON")):
        return {"G": "galactic", "E": "ecliptic", "H": "helioecliptic", "S": "supergalactic"}[
            kind[0]
        ]
    system, equinox = wcs.wcs.radesys.strip().upper(), wcs.wcs.equinox
    if system.startswith("FK4"):
        return f"{system} of B{equinox if np.isfinite(equinox) else 1950.0:g}"
    if system == "FK5" and np.isfinite(equinox) and abs(equinox - 2000.0) > 0.01:
        return f"FK5 of J{equinox:g}"
    return ""


def sky_of_pixels(wcs: WCS, x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    """Return right ascension and declination (ICRS, deg) of 0-based pixels, in any frame of a WCS.

    NaN where the WCS gives no position.
    """
    from astropy.wcs import WcsError

    x, y = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    try:
        world = wcs.all_pix2world(x.ravel(), y.ravel(), 0)
    except (WcsError, ValueError):
        nan = np.full(x.shape, np.nan)
        return nan, nan.copy()
    ra, dec = world[wcs.wcs.lng].reshape(x.shape), world[wcs.wcs.lat].reshape(x.shape)
    if _frame_name(wcs):
        from astropy.coordinates import SkyCoord
        from astropy.wcs.utils import wcs_to_celestial_frame

        good = np.isfinite(ra) & np.isfinite(dec)
        sky = SkyCoord(ra[good], dec[good], unit="deg", frame=wcs_to_celestial_frame(wcs)).icrs
        ra, dec = np.full(x.shape, np.nan), np.full(x.shape, np.nan)
        ra[good], dec[good] = sky.ra.deg, sky.dec.deg
    return ra, dec


def read_head(path: str | Path) -> list[Header]:
    """Read a text file of header cards, one header per END: SCAMP's ``.head``, ``.hdr`` dumps.

    Cards of 80 columns with or without line ends are read; bytes that are not ASCII are allowed
    (SCAMP writes the names of its authors).

    Raises
    ------
    ImageError
        If it cannot be read or holds no card.
    """
    from astropy.io.fits import Header

    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ImageError(image=str(path), reason=(error.strerror or str(error)).lower()) from error
    decoded = raw.decode("utf-8", errors="replace").replace("\r\n", "\n").rstrip("\0 \n")
    if "\n" in decoded:
        lines = decoded.split("\n")
    else:
        lines = [decoded[i : i + 80] for i in range(0, len(decoded), 80)]
    headers: list[Header] = []
    cards: list[str] = []
    for line in [*lines, "END"]:
        if line.rstrip() == "END":
            if any(c.strip() for c in cards):
                headers.append(Header.fromstring("".join(cards)))
            cards = []
        else:
            cards.append(printable(line.encode("latin-1", "replace"))[:80].ljust(80))
    if not headers or not any(_card_like(h) for h in headers):
        raise ImageError(image=path.name, reason="no header cards in it")
    return headers


def _card_like(header: Header) -> bool:
    return any(k not in ("COMMENT", "HISTORY", "") for k in header)
