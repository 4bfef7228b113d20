"""The solution record of one image: its pointing, errors, counts, checks and reasons.

The same fields stand in ``NAME.solution.json``, on the screen and in the report. A number that
is not known is NaN here and ``null`` in JSON.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
from dataclasses import dataclass, field
from typing import Any

from cynosure.ground.errors import CatalogDamaged, CynosureError, ExitCode

__all__ = ["SCHEMA", "Solution", "sexagesimal"]

SCHEMA = "cynosure.solution/1"
NAN = math.nan


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """One image's solution, or why it has none.

    Two solutions are equal where all that :meth:`to_dict` gives is.

    Attributes
    ----------
    image : str
        The image, as it was named.
    sha256 : str
        Checksum of its file.
    software : str
        Name and version of what solved it.
    created : str
        Date and time in UTC, ISO 8601.
    settings : dict
        Every setting, section by section.
    status : str
        ``solved``, ``compromised`` or ``failed``.
    reason : str
        Why it is not solved; empty where it is.
    tried : tuple of dict
        What was tried, one entry a step: ``step``, and ``text`` or numbers by name.
    hints : tuple of str
        What to try next.
    quality : int
        1 … 5; -1 where the code itself failed.
    wcsname : str
        Name of the solution (:mod:`cynosure.solutions.names`).
    catalog : str
        The reference catalogue.
    epoch_yr : float
        Julian year to which the reference stars were moved.
    n_sources : int
        Sources found.
    n_reference : int
        Reference stars in the field.
    n_matched : int
        Pairs of a source and a reference star.
    n_used : int
        Pairs that took part in the fit.
    n_reserved : int
        Pairs that were held out of the fit, to judge it.
    rms_ra_mas, rms_dec_mas : float
        Residuals in this axis, root mean square about zero over the `n_used`; ra with cos dec.
    rms_reserved_ra_mas, rms_reserved_dec_mas : float
        The same over the `n_reserved`, which the fit never saw.
    sigma0_mas, a : float
        The error model: sigma^2 = a^2 S_source + S_reference + sigma0^2.
    chi2 : float
        Of the residuals under the error model.
    dof : float
        Degrees of freedom of `chi2`.
    chi2_dof : float
        `chi2` over `dof`; near 1 where the errors are calibrated.
    chi2_all : float
        The same sum over all pairs that are not outliers, with those held out: the final chi^2.
    log_odds : float
        Natural logarithm of the odds of the match against chance.
    before_offset_arcsec : float
        How far the WCS that the image came with was off, at the centre.
    before_rms_mas : float
        Residuals of the same stars under the WCS that the image came with, per axis.
    center_ra_deg, center_dec_deg : float
        The frame's centre, ICRS.
    scale_arcsec : float
        Size of a pixel at the centre.
    rotation_deg : float
        Angle of the +y axis from north through east.
    parity : int
        +1 where east is left when north is up, -1 for a mirrored image, 0 for not known.
    width_deg, height_deg : float
        Size of the frame along x and y.
    form : str
        ``tpv``, ``sip``, ``tan``, or ``keep``: the input WCS with other CRVAL and CD.
    order : int
        Total degree of the polynomial; 0 where nothing was fitted.
    chips : tuple of dict
        One entry an extension: ``name``, ``hdu``, ``shape`` (rows, columns) and ``cards``, the
        WCS as header cards by keyword.
    wcs_error_mas : dict
        Predicted 1-sigma error of the WCS itself at the ``center`` and at the worst ``corner``.
    checks : tuple of dict
        The checks of the verdict: ``name``, ``passed``, ``value``, ``limit``, ``text``.
    n_clipped : int
        Pairs that were clipped.
    clip_rounds : int
        Rounds of the fit in which they were.
    notes : tuple of str
        What was found odd or was mended while reading.
    files : tuple of str
        Files that were written, relative to the folder of the run.
    exit_code : int
        What the command returns for this image alone.
    seconds : dict
        Wall-clock seconds by step, and their ``total``.
    """

    image: str
    sha256: str = ""
    software: str = ""
    created: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    status: str = "failed"
    reason: str = ""
    tried: tuple[dict[str, Any], ...] = ()
    hints: tuple[str, ...] = ()
    quality: int = -1
    wcsname: str = ""
    catalog: str = ""
    epoch_yr: float = NAN
    n_sources: int = 0
    n_reference: int = 0
    n_matched: int = 0
    n_used: int = 0
    n_reserved: int = 0
    rms_ra_mas: float = NAN
    rms_dec_mas: float = NAN
    rms_reserved_ra_mas: float = NAN
    rms_reserved_dec_mas: float = NAN
    sigma0_mas: float = NAN
    a: float = NAN
    chi2: float = NAN
    dof: float = NAN
    chi2_dof: float = NAN
    chi2_all: float = NAN
    log_odds: float = NAN
    before_offset_arcsec: float = NAN
    before_rms_mas: float = NAN
    center_ra_deg: float = NAN
    center_dec_deg: float = NAN
    scale_arcsec: float = NAN
    rotation_deg: float = NAN
    parity: int = 0
    width_deg: float = NAN
    height_deg: float = NAN
    form: str = ""
    order: int = 0
    chips: tuple[dict[str, Any], ...] = ()
    wcs_error_mas: dict[str, float] = field(default_factory=dict)
    checks: tuple[dict[str, Any], ...] = ()
    n_clipped: int = 0
    clip_rounds: int = 0
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    exit_code: int = int(ExitCode.OK)
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_error(cls, image: str, error: CynosureError, **known: Any) -> Solution:
        """Return the record of an image that failed with `error`.

        The error's facts that are fields of a solution fill them, but for the reason, which is
        the whole text of the error; `known` fields come first.
        """
        own = ("image", "reason")
        facts = {k: v for k, v in error.facts.items() if k in _FIELDS and k not in own}
        given: dict[str, Any] = {
            "status": "failed",
            "reason": str(error).removeprefix(f"{image}: "),
            "quality": -1 if error.exit_code == ExitCode.INTERNAL else 5,
            "hints": (error.hint,) if error.hint else (),
            "exit_code": int(error.exit_code),
        }
        return cls(image=image, **{**given, **facts, **known})

    def replaced(self, **changes: Any) -> Solution:
        """Return a record with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and the schema's name, JSON-safe: NaN becomes None."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return {"schema": SCHEMA, **{k: _json_safe(v) for k, v in values.items()}}

    def to_json(self, indent: int | None = 2) -> str:
        """Return the record as JSON with sorted keys; ``indent=None`` puts it on one line."""
        return json.dumps(
            self.to_dict(), indent=indent, sort_keys=True, ensure_ascii=False, allow_nan=False
        )

    @classmethod
    def from_dict(cls, content: dict[str, Any], where: str = "solution") -> Solution:
        """Return the record that :meth:`to_dict` wrote; fields it does not know are left out.

        Raises
        ------
        CatalogDamaged
            If `content` is of another schema.
        """
        if content.get("schema") != SCHEMA or "image" not in content:
            raise CatalogDamaged(
                catalog=where, reason=f"not a record of schema {SCHEMA}",
                hint="Solve the image again, or use the version of cynosure that wrote it.",
            )
        return cls(**{k: _restored(k, content[k]) for k in _FIELDS if k in content})

    @classmethod
    def from_json(cls, text: str, where: str = "solution") -> Solution:
        """Return the record that :meth:`to_json` wrote."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise CatalogDamaged(catalog=where, reason=f"not JSON ({error})") from error
        return cls.from_dict(content if isinstance(content, dict) else {}, where)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Solution) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.image, self.sha256, self.created, self.status))

    @property
    def rms_mas(self) -> float:
        """Residuals of the fit per axis: root mean square of the two axes."""
        return math.hypot(self.rms_ra_mas, self.rms_dec_mas) / math.sqrt(2.0)

    @property
    def rms_reserved_mas(self) -> float:
        """Residuals of the reserved stars per axis."""
        return math.hypot(self.rms_reserved_ra_mas, self.rms_reserved_dec_mas) / math.sqrt(2.0)

    def __str__(self) -> str:
        return "\n".join([_headline(self), *(f"  {name:<9} {text}" for name, text in _lines(self))])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in _lines(self)
        )
        return f"<table><caption>{html.escape(_headline(self))}</caption>{rows}</table>"


_FIELDS = {f.name: f for f in dataclasses.fields(Solution)}
_TUPLES = {name for name, f in _FIELDS.items() if str(f.type).startswith("tuple")}
_FLOATS = {name for name, f in _FIELDS.items() if f.type == "float"}
_INTEGERS = {name for name, f in _FIELDS.items() if f.type == "int"}


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _json_safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(v) for v in value]
    if hasattr(value, "tolist"):  # a NumPy scalar or array
        return _json_safe(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _restored(name: str, value: Any) -> Any:
    if name in _FLOATS:
        return NAN if value is None else float(value)
    if name in _INTEGERS:
        return int(value)
    return tuple(value) if name in _TUPLES else value


def sexagesimal(ra_deg: float, dec_deg: float) -> tuple[str, str]:
    """Return right ascension in hours and declination in degrees as texts.

    Examples
    --------
    >>> sexagesimal(150.5478417, 2.2359250)
    ('10:02:11.482', '+02:14:09.33')
    >>> sexagesimal(359.99999999, -0.0000001)
    ('00:00:00.000', '-00:00:00.00')
    >>> sexagesimal(math.nan, 0.0)
    ('unknown', 'unknown')
    """
    if not math.isfinite(ra_deg + dec_deg):
        return "unknown", "unknown"
    ms = round((ra_deg % 360.0) / 15.0 * 3.6e6) % 86_400_000
    cs = round(abs(dec_deg) * 3.6e5)
    sign = "-" if math.copysign(1.0, dec_deg) < 0 else "+"
    ra = f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms % 60_000 / 1000:06.3f}"
    return ra, f"{sign}{cs // 360_000:02d}:{cs // 6000 % 60:02d}:{cs % 6000 / 100:05.2f}"


def _headline(s: Solution) -> str:
    if s.status == "failed":
        return f"{s.image}  FAILED  {s.reason or 'no solution'} (exit {s.exit_code})"
    name = f"   ({s.wcsname})" if s.wcsname else ""
    return f"{s.image}  {s.status.upper()}  quality {s.quality} of 5{name}"


def _lines(s: Solution) -> list[tuple[str, str]]:
    if s.status == "failed":
        lines = [("tried", ";  ".join(map(_step_text, s.tried))), ("stars", _counts(s))]
    else:
        lines = [
            ("why", s.reason),
            ("centre", _center(s)),
            ("stars", _counts(s)),
            ("error", _errors(s)),
            ("reserved", _reserved(s)),
            ("checks", _checks(s)),
        ]
    lines += [("note", note) for note in s.notes]
    lines += [("try", ";  or ".join(s.hints)), ("wrote", "  ".join(s.files))]
    return [(name, text) for name, text in lines if text]


def _step_text(step: dict[str, Any]) -> str:
    numbers = ", ".join(
        f"{k.replace('_', ' ')} {v:.4g}" if isinstance(v, float) else f"{k.replace('_', ' ')} {v}"
        for k, v in step.items() if k not in ("step", "text")
    )
    return ": ".join(filter(None, [str(step.get("step", "")), str(step.get("text", numbers))]))


def _center(s: Solution) -> str:
    if not math.isfinite(s.center_ra_deg + s.center_dec_deg):
        return ""
    ra, dec = sexagesimal(s.center_ra_deg, s.center_dec_deg)
    parity = {1: "parity normal", -1: "parity mirrored"}.get(s.parity, "parity unknown")
    return (
        f"{ra}  {dec}   scale {s.scale_arcsec:.5g}″/px   "
        f"size {_angle(s.width_deg)} x {_angle(s.height_deg)}   "
        f"up is {s.rotation_deg % 360.0:.2f}° E of N   {parity}"
    )


def _short(value: float) -> str:
    """Return three digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _angle(degrees: float) -> str:
    for factor, mark in ((1.0, "°"), (60.0, "′")):
        if degrees * factor >= 1.0:
            return f"{degrees * factor:.3g}{mark}"
    return f"{degrees * 3600.0:.3g}″"


def _counts(s: Solution) -> str:
    found = f"{s.n_sources} found, {s.n_reference} reference"
    if s.status == "failed" and not s.n_matched:
        return found if s.n_sources or s.n_reference else ""
    clipped = f" ({s.n_clipped} clipped in {s.clip_rounds} rounds)" if s.n_clipped else ""
    reserved = f", {s.n_reserved} reserved" if s.n_reserved else ""
    return f"{found}, {s.n_matched} matched, {s.n_used} used{reserved}{clipped}"


def _errors(s: Solution) -> str:
    if not math.isfinite(s.rms_ra_mas):
        return ""
    text = f"RA {_short(s.rms_ra_mas)} mas   Dec {_short(s.rms_dec_mas)} mas"
    if math.isfinite(s.sigma0_mas):
        text += f"   σ0 {_short(s.sigma0_mas)} mas   a {s.a:.3g}   χ²/dof {s.chi2_dof:.2f}"
    if s.wcs_error_mas:
        at = "  ".join(f"{k} {_short(v)}" for k, v in s.wcs_error_mas.items() if v is not None)
        text += f"   WCS ± {at} mas"
    return text


def _reserved(s: Solution) -> str:
    parts = []
    if s.n_reserved:
        parts.append(
            f"RA {_short(s.rms_reserved_ra_mas)} mas   Dec {_short(s.rms_reserved_dec_mas)} mas "
            f"on {s.n_reserved} stars"
        )
    if math.isfinite(s.before_offset_arcsec):
        rms = f", residuals {_short(s.before_rms_mas)} mas" if s.before_rms_mas >= 0 else ""
        parts.append(f"before: off by {_short(s.before_offset_arcsec)}″{rms}")
    return "     ".join(parts)


def _checks(s: Solution) -> str:
    odds = f"log-odds {s.log_odds:.4g}" if math.isfinite(s.log_odds) else ""
    passed = sum(bool(c.get("passed")) for c in s.checks)
    done = f"{passed} of {len(s.checks)} passed" if s.checks else ""
    failed = ", ".join(str(c.get("name")) for c in s.checks if not c.get("passed"))
    shape = f"{s.form} of order {s.order}" if s.form else ""
    bad = f"not: {failed}" if failed else ""
    return "   ".join(filter(None, [done, bad, odds, shape]))
