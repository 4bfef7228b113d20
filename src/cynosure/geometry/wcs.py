"""Between :class:`SkyModel` and the dialects of FITS: TAN, TPV, SIP.

A model is a polynomial from pixels to the tangent plane. TPV is a polynomial in the intermediate
coordinates ``c = CD (p - CRPIX)``, SIP one in ``p - CRPIX`` followed by CD; both are linear changes
of the model's variables, so the coefficients follow by algebra, not by a fit, and the header
describes the model to rounding. Only three things are fitted: the inverse terms of SIP, the linear
WCS of the form ``tan``, and the model of a WCS that was read from a file.

Old TAN with PV, SIP with PV and the rest are read by :func:`cynosure.data.fits.wcsread.read_wcs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cynosure.data.fits.wcsread import read_head, read_wcs, sky_of_pixels
from cynosure.geometry.skymodel import SkyModel
from cynosure.ground.errors import ImageError, SettingError
from cynosure.ground.numeric import lstsq, n_terms, poly_design, poly_exponents
from cynosure.ground.sky import MAS_PER_DEG, project, separation_deg

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

__all__ = [
    "Form",
    "SkyModel",
    "header_error_mas",
    "model_from_wcs",
    "model_in_file",
    "model_to_header",
    "read_head",
    "read_wcs",
    "sip_inverse_error_px",
    "sky_of_pixels",
    "substituted",
]

Floats = NDArray[np.floating]
Form = Literal["tpv", "sip", "tan"]
Shape = tuple[int, int]

# TPV has terms up to the seventh degree; SIP as written by common software has up to the ninth
# (Shupe et al. 2005, ASP Conf. 347, 491).
MAX_TPV_DEGREE = 7
MAX_SIP_ORDER = 9
# Largest error (px) of the inverse SIP terms, which software uses to look up pixels: a tenth of the
# best centroid error.
SIP_INVERSE_PX = 1e-3
# A model that agrees with a WCS to this (mas) is taken as exact: a tenth of the best catalogue
# errors.
EXACT_MAS = 1e-3
# A WCS whose tangent point is further than this from the field is modelled on a plane that touches
# the sky in the field: at 30 degrees the scale of the plane already differs by a third.
MAX_TANGENT_DEG = 30.0
TANGENTIAL = ("TAN", "TPV", "TNX", "ZPX")


def _grid(shape: Shape, n: int) -> tuple[Floats, Floats]:
    """Return n x n pixels from corner to corner (outer corners of the outer pixels), flat."""
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(-0.5, nx - 0.5, n), np.linspace(-0.5, ny - 0.5, n))
    return x.ravel(), y.ravel()


# --- polynomials under a linear change of variables -----------------------------------------


def substituted(coeff: Floats, matrix: Floats, shift: Floats) -> Floats:
    """Return polynomials in new variables: ``(u, v) = matrix (U, V) + shift``.

    Parameters
    ----------
    coeff : (k, n_terms) ndarray
        Coefficients of ``u^i v^j``, in the order of :func:`poly_exponents`.
    matrix : (2, 2) ndarray
    shift : (2,) ndarray

    Returns
    -------
    (k, n_terms) ndarray
        Coefficients of ``U^i V^j``; the same polynomials, exactly but for rounding.
    """
    degree = _degree(coeff)
    linear = np.zeros((2, degree + 1, degree + 1))  # [axis, power of U, power of V]
    linear[:, 0, 0] = shift
    if degree:
        linear[:, 1, 0], linear[:, 0, 1] = matrix[:, 0], matrix[:, 1]
    powers = [[_one(degree)], [_one(degree)]]
    for axis in (0, 1):
        for _ in range(degree):
            powers[axis].append(_product(powers[axis][-1], linear[axis]))
    exponents = poly_exponents(degree)
    terms = np.array([_product(powers[0][i], powers[1][j]) for i, j in exponents])
    new = np.tensordot(coeff, terms, axes=1)
    return new[:, exponents[:, 0], exponents[:, 1]]


def _degree(coeff: Floats) -> int:
    return int((np.sqrt(8 * coeff.shape[1] + 1) - 3) / 2 + 0.5)


def _one(degree: int) -> Floats:
    one = np.zeros((degree + 1, degree + 1))
    one[0, 0] = 1.0
    return one


def _product(a: Floats, b: Floats) -> Floats:
    """Multiply polynomials given as [power of U, power of V]; what exceeds the array is zero."""
    out = np.zeros_like(a)
    for i, j in np.argwhere(b):
        out[i:, j:] += b[i, j] * a[: a.shape[0] - i, : a.shape[1] - j]
    return out


# --- model to header ------------------------------------------------------------------------


def model_to_header(model: SkyModel, form: Form = "tpv", *, shape: Shape) -> Header:
    """Return the FITS cards of a model.

    Parameters
    ----------
    model : SkyModel
    form : {"tpv", "sip", "tan"}
        ``tan`` is the linear part that is nearest over the frame; :func:`header_error_mas` says
        what it loses. A model of degree 1 is written as TAN in every form.
    shape : (int, int)
        Rows and columns of the image.

    Returns
    -------
    Header
        With CRPIX where the model has the tangent point, PVi_1 = 1 and no constant, linear or
        radial PV terms; SIP with inverse terms.

    Raises
    ------
    SettingError
        If the degree is beyond what the form can hold.
    """
    if form not in ("tpv", "sip", "tan"):
        raise SettingError("form {form!r} is not known", form=form, hint="One of tpv, sip, tan.")
    limit = {"tpv": MAX_TPV_DEGREE, "sip": MAX_SIP_ORDER, "tan": 99}[form]
    if model.degree > limit:
        raise SettingError(
            "a polynomial of degree {degree} does not fit in {form}, which has {limit}",
            degree=model.degree,
            form=form.upper(),
            limit=limit,
            hint="Use a lower order.",
        )
    if form == "tan" or model.degree == 1:
        model = _linear_part(model, shape)
        form = "tan"
    reference, local = _about_tangent_point(model)
    cd = np.array([[local[0, 1], local[0, 2]], [local[1, 1], local[1, 2]]])
    header = _linear_cards(
        model, reference, cd, {"tpv": "TPV", "sip": "TAN-SIP", "tan": "TAN"}[form]
    )
    if form == "tpv":
        _add_tpv(header, local, cd)
    elif form == "sip":
        _add_sip(header, local, cd, reference, shape)
    return header


def _about_tangent_point(model: SkyModel) -> tuple[Floats, Floats]:
    """Return the pixel of the tangent point and the polynomials in pixels from there.

    Where the polynomial does not reach its tangent point (a crop far from it), the zero of its
    linear part is taken and the rest stays as a constant term.
    """
    x, y = model.plane_to_pixel(0.0, 0.0)
    reference = np.array([float(x), float(y)])
    if not np.isfinite(reference).all():
        at = np.array([model.x0, model.y0])
        value = np.array(model.pixel_to_plane(*at), dtype=float)
        reference = at - np.linalg.solve(model.jacobian(*at), value)
    shift = (reference - [model.x0, model.y0]) / model.scale_px
    local = substituted(model.coeff, np.eye(2) / model.scale_px, shift)
    if np.isfinite(x):
        local[:, 0] = 0.0  # zero to rounding: this is how the reference was found
    return reference, local


def _linear_part(model: SkyModel, shape: Shape) -> SkyModel:
    """Return the linear model nearest to a model over the frame."""
    if model.degree == 1:
        return model
    x, y = _grid(shape, 33)
    xi, eta = model.pixel_to_plane(x, y)
    u, v = (x - model.x0) / model.scale_px, (y - model.y0) / model.scale_px
    fit = lstsq(poly_design(u, v, 1), np.stack([xi, eta], axis=1), what="linear WCS")
    return model.replaced(coeff=fit.x.T)


def _linear_cards(model: SkyModel, reference: Floats, cd: Floats, projection: str) -> Header:
    from astropy.io.fits import Header

    header = Header()
    header["WCSAXES"] = (2, "axes of the WCS")
    header["CTYPE1"] = (f"RA---{projection}", "right ascension")
    header["CTYPE2"] = (f"DEC--{projection}", "declination")
    header["CUNIT1"], header["CUNIT2"] = "deg", "deg"
    header["CRVAL1"] = (model.ra0_deg, "[deg] right ascension of the tangent point")
    header["CRVAL2"] = (model.dec0_deg, "[deg] declination of the tangent point")
    header["CRPIX1"] = (float(reference[0] + 1.0), "[px] tangent point, first pixel is 1")
    header["CRPIX2"] = (float(reference[1] + 1.0), "[px] tangent point, first pixel is 1")
    for i in (0, 1):
        for j in (0, 1):
            header[f"CD{i + 1}_{j + 1}"] = (float(cd[i, j]), "[deg/px]")
    header["RADESYS"] = ("ICRS", "frame of the coordinates")
    header["EQUINOX"] = (2000.0, "[yr]")
    return header


def tpv_index(i: int, j: int) -> int:
    """Return the number m of the PV term ``x^i y^j``; the radial terms 3, 11, 23, 39 are skipped.

    Examples
    --------
    >>> [tpv_index(*e) for e in ((0, 0), (0, 1), (2, 0), (0, 3), (4, 0), (6, 0), (0, 7))]
    [0, 2, 4, 10, 12, 24, 38]
    """
    degree = i + j
    radial = sum(degree > d for d in (1, 3, 5))
    return degree * (degree + 1) // 2 + j + radial


def _add_tpv(header: Header, local: Floats, cd: Floats) -> None:
    """Add PV terms: the polynomials in ``(x, y) = CD (p - CRPIX)``, degrees."""
    plane = substituted(local, np.linalg.inv(cd), np.zeros(2))
    exponents = poly_exponents(_degree(plane))
    for axis in (0, 1):
        for k, (i, j) in enumerate(exponents):
            # The second axis has x and y exchanged: PV2_1 multiplies y.
            m = tpv_index(i, j) if axis == 0 else tpv_index(j, i)
            value = float(plane[axis, k])
            if i + j == 1:
                if m == 1:
                    header[f"PV{axis + 1}_1"] = 1.0
                continue
            if i + j > 1 or value:
                header[f"PV{axis + 1}_{m}"] = value


def _add_sip(header: Header, local: Floats, cd: Floats, reference: Floats, shape: Shape) -> None:
    """Add SIP terms: ``CD^-1`` times the polynomials, without their linear part."""
    degree = _degree(local)
    forward = np.linalg.solve(cd, local)
    exponents = poly_exponents(degree)
    for name, row in zip("AB", forward):
        header[f"{name}_ORDER"] = (degree, "degree of the SIP polynomial")
        for (i, j), value in zip(exponents, row):
            if i + j > 1 or (i + j == 0 and value):
                header[f"{name}_{i}_{j}"] = float(value)
    order, inverse, _ = _sip_inverse(forward, reference, shape)
    for name, row in zip(("AP", "BP"), inverse):
        header[f"{name}_ORDER"] = (order, "degree of the inverse SIP polynomial")
        for (i, j), value in zip(poly_exponents(order), row):
            header[f"{name}_{i}_{j}"] = float(value)


def _sip_inverse(forward: Floats, reference: Floats, shape: Shape) -> tuple[int, Floats, float]:
    """Fit the inverse SIP polynomials over the frame.

    Returns
    -------
    order : int
    inverse : (2, n_terms) ndarray
    worst_px : float
        Largest error over the frame.
    """
    degree = _degree(forward)
    x, y = _grid(shape, 25)
    u, v = x - reference[0], y - reference[1]
    terms = poly_design(u, v, degree)
    big_u, big_v = terms @ forward[0], terms @ forward[1]
    wanted = np.stack([u - big_u, v - big_v], axis=1)
    scale = float(max(np.abs(big_u).max(), np.abs(big_v).max()))
    best: tuple[int, Floats, float] | None = None
    for order in range(min(degree + 1, MAX_SIP_ORDER), MAX_SIP_ORDER + 1):
        design = poly_design(big_u / scale, big_v / scale, order)
        fit = lstsq(design, wanted, max_condition=np.inf, what="inverse SIP terms")
        worst = float(np.abs(design @ fit.x - wanted).max())
        powers = scale ** -poly_exponents(order).sum(axis=1).astype(float)
        if best is None or worst < best[2]:
            best = (order, fit.x.T * powers, worst)
        if worst < SIP_INVERSE_PX:
            break
    assert best is not None
    return best


def sip_inverse_error_px(header: Header, shape: Shape) -> float:
    """Return the largest error, in pixels over the frame, of the inverse SIP terms of a header."""
    if "AP_ORDER" not in header or "A_ORDER" not in header:
        return float("nan")
    x, y = _grid(shape, 49)
    u, v = x - (header["CRPIX1"] - 1), y - (header["CRPIX2"] - 1)
    big_u, big_v = u + _sip_sum(header, "A", u, v), v + _sip_sum(header, "B", u, v)
    back_u = big_u + _sip_sum(header, "AP", big_u, big_v)
    back_v = big_v + _sip_sum(header, "BP", big_u, big_v)
    return float(np.hypot(back_u - u, back_v - v).max())


def _sip_sum(header: Header, name: str, u: Floats, v: Floats) -> Floats:
    order = int(header[f"{name}_ORDER"])
    coeff = np.array([header.get(f"{name}_{i}_{j}", 0.0) for i, j in poly_exponents(order)])
    return poly_design(u, v, order) @ coeff


def header_error_mas(header: Header, model: SkyModel, shape: Shape) -> float:
    """Return the largest distance on the sky between a header, as wcslib reads it, and a model.

    Over a dense grid with the corners of the frame; NaN where the header cannot be read at all.
    """
    wcs, _ = read_wcs(header, shape=shape)
    if wcs is None:
        return float("nan")
    x, y = _grid(shape, 65)
    ra, dec = sky_of_pixels(wcs, x, y)
    apart = separation_deg(ra, dec, *model.pixel_to_sky(x, y)) * MAS_PER_DEG
    return float(apart.max())


def model_in_file(model: SkyModel, cell: int) -> SkyModel:
    """Return a model of a frame as one of the pixels of its file, where cells were made pixels.

    Parameters
    ----------
    model : SkyModel
        Of the pixels of a :class:`~cynosure.data.frame.Frame`.
    cell : int
        Its ``cell``; 1 changes nothing.
    """
    half = (cell - 1) / 2
    return model.replaced(
        x0=cell * model.x0 + half, y0=cell * model.y0 + half, scale_px=cell * model.scale_px
    )


# --- WCS to model ---------------------------------------------------------------------------


def model_from_wcs(wcs: WCS, shape: Shape, *, max_degree: int = 5) -> tuple[SkyModel, float]:
    """Return the model of a WCS over a frame, of the lowest degree that describes it.

    Degrees rise until the model agrees within a thousandth of a milliarcsecond; where none does,
    the best is taken and the error says how good it is (lookup tables, other projections).

    Parameters
    ----------
    wcs : WCS
        Any WCS of astropy, also with lookup tables or in another frame (it is converted to ICRS).
    shape : (int, int)
        Rows and columns of the image.
    max_degree : int
        At most 7 can be written as TPV.

    Returns
    -------
    model : SkyModel
    max_error_mas : float
        Largest distance over the frame.

    Raises
    ------
    ImageError
        If the WCS gives no sky position over most of the frame.
    """
    ny, nx = shape
    x, y = _grid(shape, 2 * max_degree + 9)
    ra, dec = sky_of_pixels(wcs, x, y)
    ra0, dec0 = _tangent_point(wcs, shape)
    xi, eta = (
        project(ra, dec, ra0, dec0) if np.isfinite(ra0 + dec0) else (ra * np.nan, dec * np.nan)
    )
    good = np.isfinite(xi) & np.isfinite(eta)
    if good.mean() < 0.5 or good.sum() < n_terms(1):
        raise ImageError(
            image="WCS",
            reason=f"it gives no sky position over {1 - good.mean():.0%} of the frame",
            hint="Ignore it, and solve with --center and --scale, or --blind.",
        )
    x0, y0, scale = (nx - 1) / 2, (ny - 1) / 2, max(nx, ny) / 2
    u, v = (x[good] - x0) / scale, (y[good] - y0) / scale
    plane = np.stack([xi[good], eta[good]], axis=1)
    check = _grid(shape, 33)
    truth = sky_of_pixels(wcs, *check)
    best: tuple[SkyModel, float] | None = None
    for degree in range(1, max_degree + 1):
        if good.sum() < n_terms(degree):
            break
        fit = lstsq(poly_design(u, v, degree), plane, max_condition=np.inf, what="WCS model")
        model = SkyModel(ra0, dec0, x0, y0, scale, fit.x.T.copy())
        error = float(np.nanmax(separation_deg(*truth, *model.pixel_to_sky(*check)))) * MAS_PER_DEG
        if best is None or error < best[1]:
            best = (model, error)
        if error < EXACT_MAS:
            break
    assert best is not None
    return best


def _tangent_point(wcs: WCS, shape: Shape) -> tuple[float, float]:
    """Return CRVAL where the WCS is a polynomial about it, else the sky at the centre."""
    ny, nx = shape
    ra, dec = sky_of_pixels(wcs, (nx - 1) / 2, (ny - 1) / 2)
    center = float(ra), float(dec)
    crval = np.asarray(wcs.wcs.crval, dtype=float)
    kind = str(wcs.wcs.ctype[wcs.wcs.lng])[5:8]
    plain = wcs.wcs.lngtyp.strip().startswith("RA") and kind in TANGENTIAL
    if plain and np.isfinite(crval).all():
        point = float(crval[wcs.wcs.lng]) % 360.0, float(crval[wcs.wcs.lat])
        x, y = np.array([(nx - 1) / 2]), np.array([(ny - 1) / 2])
        in_icrs = np.allclose(
            np.ravel(sky_of_pixels(wcs, x, y)),
            np.ravel(
                [w for w in (wcs.all_pix2world(x, y, 0)[k] for k in (wcs.wcs.lng, wcs.wcs.lat))]
            ),
            equal_nan=True,
        )
        near = not np.isfinite(sum(center)) or separation_deg(*point, *center) < MAX_TANGENT_DEG
        if in_icrs and near:
            return point
    return center
