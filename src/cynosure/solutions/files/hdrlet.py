"""The HDRLET extension: a headerlet carried inside the file of its exposure.

Its XTENSION is literally ``HDRLET``; its data are the bytes of the whole headerlet file, gzipped
where COMPRESS is true, and ``XINDn`` are the byte offsets of the embedded extensions. Software
that does not know it skips it as an array of bytes.

:func:`register_hdu` makes astropy open such extensions as :class:`HeaderletHDU` with a `headerlet`;
nothing is registered until it is called, because other packages register a class for them too.
"""

from __future__ import annotations

import io
import zlib
from functools import cache
from typing import Any

from cynosure.data.fits.alternates import Records
from cynosure.data.fits.blocks import CARD, padded, read_units
from cynosure.data.fits.parts import Part, Value, card
from cynosure.solutions.files.headerlet import (
    MAX_HEADERLET_BYTES,
    Headerlet,
    HeaderletDamaged,
)
from cynosure.solutions.files.headerletio import parse_headerlet

__all__ = ["embed", "hdu_class", "is_hdrlet", "register_hdu", "unembed", "unregister_hdu"]

# Cards that are repeated beside the data, to be read without opening them.
REPEATED = {
    "HDRNAME": "Headerlet name",
    "DATE": "Date FITS file was generated",
    "SIPNAME": "SIP distortion model name",
    "WCSNAME": "WCS name",
    "DISTNAME": "Distortion model name",
    "NPOLFILE": "origin of non-polynomial distortion model",
    "D2IMFILE": "origin of detector to image correction",
}
GZIP_MAGIC = b"\x1f\x8b"


def is_hdrlet(part: Part) -> bool:
    """Say whether a part is a headerlet, by its XTENSION or EXTNAME and nothing else."""
    return part.kind in ("HDRLET", "FITS") and (part.kind == "HDRLET" or part.name == "HDRLET")


def embed(headerlet: Headerlet, version: int, *, compress: bool = False) -> Part:
    """Return the extension that holds a headerlet.

    Parameters
    ----------
    headerlet : Headerlet
    version : int
        EXTVER.
    compress : bool
        Whether to gzip the data.
    """
    data = headerlet.to_bytes()
    offsets = [u.data_start - len(u.raw) for u in read_units(io.BytesIO(data), "", len(data))][1:]
    if compress:
        packer = zlib.compressobj(6, zlib.DEFLATED, 31)  # 31: with gzip's header, which has no date
        data = packer.compress(data) + packer.flush()
    return Part(_cards(headerlet, version, len(data), offsets, compress), b"", data, 0, len(data))


def _cards(
    headerlet: Headerlet, version: int, size: int, offsets: list[int], compress: bool
) -> Records:
    values: dict[str, Value] = {key: headerlet.text(key) for key in REPEATED}
    values["HDRNAME"], values["WCSNAME"] = headerlet.hdrname, headerlet.wcsname
    values["DISTNAME"] = headerlet.distname
    return [
        ("XTENSION", b"XTENSION= 'HDRLET  '           / FITS extension".ljust(CARD)),
        card("BITPIX", 8, "array data type"),
        card("NAXIS", 1, "number of array dimensions"),
        card("NAXIS1", size, "Axis length"),
        card("PCOUNT", 0, "number of parameters"),
        card("GCOUNT", 1, "number of groups"),
        *(
            card(f"XIND{i}", at, f"byte offset of extension {i}")
            for i, at in enumerate(offsets[:9999], start=1)
        ),
        card("COMPRESS", compress, "Uses gzip compression"),
        *(card(key, values[key], comment) for key, comment in REPEATED.items()),
        ("EXTNAME", b"EXTNAME = 'HDRLET  '           / Extension name".ljust(CARD)),
        card("EXTVER", version),
    ]


def unembed(part: Part, data: bytes) -> Headerlet:
    """Return the headerlet that an extension holds.

    Parameters
    ----------
    part : Part
        The extension; only its header is looked at.
    data : bytes
        Its data.

    Raises
    ------
    HeaderletDamaged
        If there is no FITS inside, or it is larger than a headerlet can be.
    """
    name = part.text("HDRNAME") or f"HDRLET,{part.version}"
    if data.startswith(GZIP_MAGIC):  # also where COMPRESS says otherwise
        unpacker = zlib.decompressobj(31)
        try:
            data = unpacker.decompress(data, MAX_HEADERLET_BYTES)
        except zlib.error as error:
            reason = f"damaged compression ({error})"
            raise HeaderletDamaged(headerlet=name, reason=reason) from error
        if unpacker.unconsumed_tail:
            raise HeaderletDamaged(
                headerlet=name, reason=f"larger than {MAX_HEADERLET_BYTES >> 20} MiB unpacked"
            )
    headerlet = parse_headerlet(data, name)
    if not headerlet.text("HDRNAME") and part.text("HDRNAME"):
        headerlet = headerlet.replaced(HDRNAME=part.text("HDRNAME"))
    return headerlet


# --- astropy --------------------------------------------------------------------------------


@cache
def hdu_class() -> type[Any]:
    """Return the class of such extensions for astropy; it is made when it is first asked for."""
    from astropy.io.fits.hdu.base import NonstandardExtHDU

    class HeaderletHDU(NonstandardExtHDU):
        """A headerlet in a file; `headerlet` reads it, `from_headerlet` makes one."""

        _extension = "HDRLET"

        @classmethod
        def match_header(cls, header: Any) -> bool:
            """Say whether a header is that of such an extension."""
            text = str(header.get("XTENSION", "")).rstrip()
            return text == "HDRLET"

        @property
        def headerlet(self) -> Headerlet:
            """The headerlet inside."""
            data = self.data
            return unembed(self._part(), b"" if data is None else data.tobytes())

        @classmethod
        def from_headerlet(
            cls, headerlet: Headerlet, version: int = 1, *, compress: bool = False
        ) -> Any:
            """Return an extension that holds a headerlet, to be appended to an HDUList."""
            part = embed(headerlet, version, compress=compress)
            return cls._of_bytes(part.header_bytes(), part.data or b"")

        @classmethod
        def _of_bytes(cls, header: bytes, data: bytes) -> Any:
            return cls.fromstring(header + data.ljust(padded(len(data)), b"\0"))

        def copy(self) -> Any:
            """Return a copy with its data, which astropy's own would leave behind."""
            data = self.data
            header = self.header.tostring(sep="", endcard=True, padding=True)
            return self._of_bytes(header.encode("ascii"), b"" if data is None else data.tobytes())

        def _part(self) -> Part:
            cards = [card(k, self.header.get(k)) for k in ("HDRNAME", "EXTVER")]
            return Part(cards)

        def _summary(self) -> tuple[Any, ...]:
            return (
                self.name, self.ver, "HeaderletHDU", len(self.header),
                (self.header.get("NAXIS1", 0),), self.header.get("WCSNAME", ""), "",
            )

    return HeaderletHDU


def register_hdu() -> type[Any]:
    """Let astropy open HDRLET extensions as :class:`HeaderletHDU`; return that class.

    Examples
    --------
    >>> hdu = register_hdu()
    >>> unregister_hdu()
    """
    from astropy.io.fits import register_hdu as register

    register(hdu_class())
    return hdu_class()


def unregister_hdu() -> None:
    """Undo :func:`register_hdu`; nothing happens where it was not called."""
    from astropy.io.fits import unregister_hdu as unregister

    unregister(hdu_class())
