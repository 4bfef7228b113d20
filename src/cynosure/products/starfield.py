"""The true sky, and a simulated reference catalogue of it.

:func:`draw_sky` draws stars and galaxies; :func:`sky_of_reference` takes them from a reference
catalogue instead. :func:`observe_catalog` makes the catalogue of a drawn sky: true values at the
catalogue's epoch plus errors with sizes and correlations like those of Gaia.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cynosure.data.tables import REFERENCE, Schema
from cynosure.ground.sky import MAS_PER_DEG, deproject, east_north, radec, unit_vectors
from cynosure.products.scene import Catalog, Sky

__all__ = ["GAIA", "STARS", "draw_sky", "gaia_of_reference", "observe_catalog", "sky_of_reference"]

Floats = NDArray[np.float64]
Table = NDArray[np.void]

STAR, COMPANION, GALAXY = 0, 1, 2
# Identifiers of simulated stars start here, so that they are not taken for row numbers.
FIRST_ID = 1_000_000_000
LINES = ("ra", "dec", "parallax", "pmra", "pmdec")
PAIRS = [(i, j) for i in range(5) for j in range(i + 1, 5)]

STARS = Schema(
    "cynosure.stars/1",
    [
        ("id", "i8", "", "identifier, the same in the reference catalogue"),
        ("kind", "i4", "", "0 star, 1 companion of a star, 2 galaxy"),
        ("primary", "i8", "", "identifier of the star it is a companion of, or its own"),
        ("ra_deg", "f8", "deg", "true right ascension, ICRS, at epoch_yr"),
        ("dec_deg", "f8", "deg", "true declination, ICRS, at epoch_yr"),
        ("epoch_yr", "f8", "yr", "Julian year of the position"),
        ("mag", "f8", "mag", "true magnitude"),
        ("color", "f8", "mag", "true colour (BP-RP)"),
        ("parallax_mas", "f8", "mas", "true parallax"),
        ("pm_ra_mas_yr", "f8", "mas/yr", "true proper motion in ra, with cos dec"),
        ("pm_dec_mas_yr", "f8", "mas/yr", "true proper motion in dec"),
        ("radius_arcsec", "f8", "arcsec", "scale length of a galaxy, 0 for a star"),
        ("axis_ratio", "f8", "", "axis ratio of a galaxy"),
        ("pa_deg", "f8", "deg", "position angle of a galaxy's long axis"),
    ],
)

GAIA = Schema(
    "cynosure.simulated_gaia/1",
    [
        ("source_id", "i8", "", "identifier"),
        ("ref_epoch", "f8", "yr", "Julian year of the position"),
        ("ra", "f8", "deg", "right ascension, ICRS"),
        ("ra_error", "f8", "mas", "standard error of ra, with cos dec"),
        ("dec", "f8", "deg", "declination, ICRS"),
        ("dec_error", "f8", "mas", "standard error of dec"),
        ("parallax", "f8", "mas", "parallax"),
        ("parallax_error", "f8", "mas", "standard error of parallax"),
        ("pmra", "f8", "mas/yr", "proper motion in ra, with cos dec"),
        ("pmra_error", "f8", "mas/yr", "standard error of pmra"),
        ("pmdec", "f8", "mas/yr", "proper motion in dec"),
        ("pmdec_error", "f8", "mas/yr", "standard error of pmdec"),
        *((f"{LINES[i]}_{LINES[j]}_corr", "f4", "", "correlation") for i, j in PAIRS),
        ("astrometric_params_solved", "i2", "", "31 five parameters, 3 position only"),
        ("phot_g_mean_mag", "f8", "mag", "G magnitude"),
        ("phot_g_mean_flux_over_error", "f4", "", "signal to noise of the G flux"),
        ("bp_rp", "f8", "mag", "colour BP-RP"),
        ("ruwe", "f4", "", "renormalised unit weight error; above 1.4 not a single star"),
        ("duplicated_source", "?", "", "true for sources with duplicates"),
    ],
)


def draw_sky(
    rng: np.random.Generator,
    sky: Sky,
    n: int,
    half_width_deg: float,
    half_height_deg: float,
    *,
    rotation_deg: float = 0.0,
    epoch_yr: float = 2016.0,
) -> Table:
    """Draw the true sky in a rectangle of the tangent plane.

    Parameters
    ----------
    rng : Generator
        Randomness.
    sky : Sky
        The settings of the sky. `n_stars` is not used.
    n : int
        Objects in the rectangle; companions come on top.
    half_width_deg, half_height_deg : float
        Half the sides of the rectangle.
    rotation_deg : float
        Angle of its upward axis from north through east.
    epoch_yr : float
        Julian year of the positions.

    Returns
    -------
    structured array of schema `STARS`
    """
    stars = STARS.empty(n)
    stars["id"] = stars["primary"] = FIRST_ID + np.arange(n)
    right, up = _positions(rng, sky, n, half_width_deg, half_height_deg)
    c, s = np.cos(np.radians(rotation_deg)), np.sin(np.radians(rotation_deg))
    stars["ra_deg"], stars["dec_deg"] = deproject(
        -c * right + s * up, s * right + c * up, sky.ra_deg, sky.dec_deg
    )
    stars["epoch_yr"] = epoch_yr
    stars["mag"] = _magnitudes(rng, n, sky.mag_bright, sky.mag_faint, sky.slope)
    # A red tail: half of the spread is an exponential.
    spread = 0.8 * rng.standard_normal(n) + 0.6 * (rng.standard_exponential(n) - 1.0)
    stars["color"] = sky.color_mean + sky.color_rms * spread
    _draw_motions(rng, sky, stars)
    galaxy = rng.random(n) < sky.galaxy_fraction
    stars["kind"][galaxy] = GALAXY
    for name in ("pm_ra_mas_yr", "pm_dec_mas_yr", "parallax_mas"):
        stars[name][galaxy] = 0.0
    size = sky.galaxy_radius_arcsec * np.exp(0.5 * rng.standard_normal(n))
    stars["radius_arcsec"] = np.where(galaxy, size, 0.0)
    stars["axis_ratio"] = np.where(galaxy, rng.uniform(0.3, 1.0, n), 1.0)
    stars["pa_deg"] = np.where(galaxy, rng.uniform(0.0, 180.0, n), 0.0)
    return np.concatenate([stars, _companions(rng, sky, stars)])


def _positions(
    rng: np.random.Generator, sky: Sky, n: int, half_width: float, half_height: float
) -> tuple[Floats, Floats]:
    """Draw uniform and clumped positions; those beyond the edge are reflected into the frame."""
    x, y = rng.uniform(-1, 1, n) * half_width, rng.uniform(-1, 1, n) * half_height
    clumped = np.flatnonzero(rng.random(n) < sky.clump_fraction)
    if len(clumped) == 0:
        return x, y
    inner_w = max(half_width - sky.margin_deg, 0.1 * half_width)
    inner_h = max(half_height - sky.margin_deg, 0.1 * half_height)
    cx, cy = (
        rng.uniform(-inner_w, inner_w, sky.n_clumps),
        rng.uniform(-inner_h, inner_h, sky.n_clumps),
    )
    if sky.n_clumps == 1:
        cx[:], cy[:] = 0.0, 0.0
    which = rng.integers(sky.n_clumps, size=len(clumped))
    sigma = sky.clump_sigma_arcmin / 60.0
    x[clumped] = cx[which] + sigma * rng.standard_normal(len(clumped))
    y[clumped] = cy[which] + sigma * rng.standard_normal(len(clumped))
    return _folded(x, half_width), _folded(y, half_height)


def _folded(x: Floats, half: float) -> Floats:
    return np.abs((x + half) % (4 * half) - 2 * half) - half if half > 0 else np.zeros_like(x)


def _magnitudes(
    rng: np.random.Generator, n: int, bright: float, faint: float, slope: float
) -> Floats:
    """Draw from counts that grow as 10^(slope mag)."""
    u = rng.random(n)
    if abs(slope) * max(faint - bright, 0.0) < 1e-9:
        return bright + u * (faint - bright)
    return faint + np.log10(u + (1.0 - u) * 10.0 ** (slope * (bright - faint))) / slope


def _draw_motions(rng: np.random.Generator, sky: Sky, stars: Table) -> None:
    """Fill proper motions with their tails, and parallaxes that correlate with them."""
    n = len(stars)
    kind = rng.random(n)
    sigma = np.where(kind < sky.pm_tail_fraction, sky.pm_tail_mas_yr, sky.pm_rms_mas_yr)
    ra, dec = sigma * rng.standard_normal(n), sigma * rng.standard_normal(n)
    fast = kind > 1.0 - sky.high_pm_fraction
    angle = rng.uniform(0, 2 * np.pi, n)
    size = sky.high_pm_mas_yr * rng.uniform(0.5, 2.0, n)
    stars["pm_ra_mas_yr"] = np.where(fast, size * np.sin(angle), ra)
    stars["pm_dec_mas_yr"] = np.where(fast, size * np.cos(angle), dec)
    # At one transverse velocity the parallax is proportional to the motion.
    motion = np.hypot(stars["pm_ra_mas_yr"], stars["pm_dec_mas_yr"])
    typical = max(sky.pm_rms_mas_yr, 1e-9)
    scale = (
        sky.parallax_mas * np.where(fast, 0.3, 1.0) * np.sqrt(1.0 + (motion / typical) ** 2) / 1.7
    )
    stars["parallax_mas"] = np.minimum(scale * rng.standard_exponential(n), 700.0)


def _companions(rng: np.random.Generator, sky: Sky, stars: Table) -> Table:
    """Give some stars a fainter, redder companion that moves with them."""
    has = np.flatnonzero((rng.random(len(stars)) < sky.binary_fraction) & (stars["kind"] == STAR))
    more = stars[has].copy()
    m = len(more)
    more["kind"] = COMPANION
    more["id"] = FIRST_ID + len(stars) + np.arange(m)
    fainter = 3.0 * rng.random(m) ** 1.5
    more["mag"] += fainter
    more["color"] += 0.2 * fainter
    separation = sky.binary_sep_arcsec * np.exp(np.log(3.0) * rng.standard_normal(m))
    angle = rng.uniform(0, 2 * np.pi, m)
    _move(
        more,
        "ra_deg",
        "dec_deg",
        1e3 * separation * np.sin(angle),
        1e3 * separation * np.cos(angle),
    )
    return more


def _move(table: Table, ra: str, dec: str, east_mas: Floats, north_mas: Floats) -> None:
    """Move positions in place by an offset on the sky; exact at the poles too."""
    east, north = east_north(table[ra], table[dec])
    rad = np.radians(1.0 / MAS_PER_DEG)
    moved = unit_vectors(table[ra], table[dec])
    moved = moved + (east_mas * rad)[:, None] * east + (north_mas * rad)[:, None] * north
    table[ra], table[dec] = radec(moved)


# ------------------------------------------------------------------------------ the catalogue


def observe_catalog(rng: np.random.Generator, stars: Table, catalog: Catalog) -> Table:
    """Return the reference catalogue of a true sky.

    Parameters
    ----------
    rng : Generator
        Randomness.
    stars : structured array
        Schema `STARS`, at the epoch of the catalogue.
    catalog : Catalog
        Errors and completeness.

    Returns
    -------
    structured array of schema `GAIA`
    """
    entries, ruwe = _resolved(rng, stars, catalog)
    keep = entries["mag"] < catalog.mag_limit
    keep &= rng.random(len(entries)) >= catalog.missing_fraction
    entries, ruwe = entries[keep], ruwe[keep]
    n = len(entries)
    gaia = GAIA.empty(n)
    gaia["source_id"], gaia["ref_epoch"] = entries["id"], catalog.ref_epoch_yr
    gaia["ruwe"] = ruwe
    sigma = catalog.error_mas * 10.0 ** (
        catalog.error_slope * np.maximum(entries["mag"] - 15.0, 0.0)
    )
    two = rng.random(n) < catalog.two_parameter_fraction
    # Gaia's ratios of the errors; a position without motion and parallax is much worse.
    errors = sigma[:, None] * np.array([1.0, 0.9, 1.2, 1.05, 0.95])
    errors[two, :2] = 1.0 + 20.0 * errors[two, :2]
    noise, correlations = _correlated(rng, errors)
    for i, (name, true) in enumerate(
        zip(LINES[2:], ("parallax_mas", "pm_ra_mas_yr", "pm_dec_mas_yr")), 2
    ):
        gaia[name] = np.where(two, np.nan, entries[true] + noise[:, i])
    gaia["ra"], gaia["dec"] = entries["ra_deg"], entries["dec_deg"]
    _move(gaia, "ra", "dec", noise[:, 0], noise[:, 1])
    for i, name in enumerate(LINES):
        stated = errors[:, i] / catalog.error_scale
        gaia[f"{name}_error"] = np.where(two & (i > 1), np.nan, stated)
    for k, (i, j) in enumerate(PAIRS):
        gaia[f"{LINES[i]}_{LINES[j]}_corr"] = np.where(two & (j > 1), np.nan, correlations[:, k])
    gaia["astrometric_params_solved"] = np.where(two, 3, 31)
    gaia["phot_g_mean_mag"] = entries["mag"] + catalog.mag_error * rng.standard_normal(n)
    gaia["phot_g_mean_flux_over_error"] = 1.0857 / max(catalog.mag_error, 1e-4)
    gaia["bp_rp"] = entries["color"] + 3.0 * catalog.mag_error * rng.standard_normal(n)
    return gaia


def _resolved(rng: np.random.Generator, stars: Table, catalog: Catalog) -> tuple[Table, Floats]:
    """Merge close pairs to their photocentres; leave galaxies out. Returns entries and RUWE."""
    entries = stars[stars["kind"] != GALAXY].copy()
    ruwe = np.exp(0.05 * rng.standard_normal(len(entries)))
    companion = np.flatnonzero(entries["kind"] == COMPANION)
    order = np.argsort(entries["id"])
    primary = order[np.searchsorted(entries["id"], entries["primary"][companion], sorter=order)]
    a, b = entries[primary], entries[companion]
    va, vb = unit_vectors(a["ra_deg"], a["dec_deg"]), unit_vectors(b["ra_deg"], b["dec_deg"])
    close = np.degrees(np.linalg.norm(va - vb, axis=1)) * 3600.0 < catalog.resolution_arcsec
    share = 1.0 / (1.0 + 10.0 ** (0.4 * (b["mag"] - a["mag"])))
    ra, dec = radec((1.0 - share)[:, None] * va + share[:, None] * vb)
    at = primary[close]
    entries["ra_deg"][at], entries["dec_deg"][at] = ra[close], dec[close]
    entries["mag"][at] += 2.5 * np.log10(1.0 - share[close])
    ruwe[at] = rng.uniform(1.5, 8.0, len(at))
    keep = np.ones(len(entries), dtype=bool)
    keep[companion[close]] = False
    return entries[keep], ruwe[keep]


def _correlated(rng: np.random.Generator, errors: Floats) -> tuple[Floats, Floats]:
    """Draw (n, 5) errors with correlations of Gaia's size, and those (n, 10) correlations."""
    n = len(errors)
    root = np.tril(0.25 * rng.standard_normal((n, 5, 5)), -1) + np.eye(5)
    root /= np.linalg.norm(root, axis=2, keepdims=True)  # rows of length 1: corr = root root^T
    noise = errors * np.einsum("nij,nj->ni", root, rng.standard_normal((n, 5)))
    correlations = np.stack([np.sum(root[:, i] * root[:, j], axis=1) for i, j in PAIRS], axis=1)
    return noise, correlations


# -------------------------------------------------------------------------- from a catalogue

REFERENCE_LINES = ("ra", "dec", "parallax_mas", "pm_ra_mas_yr", "pm_dec_mas_yr")
REFERENCE_ERRORS = (
    *("ra_error_mas", "dec_error_mas", "parallax_error_mas"),
    *("pm_ra_error_mas_yr", "pm_dec_error_mas_yr"),
)


def sky_of_reference(rng: np.random.Generator, reference: Table, sky: Sky) -> Table:
    """Return a true sky of which `reference` would be the catalogue.

    Each star lies where the catalogue has it plus a draw from the catalogue's own covariance, so
    the pulls of the catalogue are standard normal. Unknown motions are drawn from `sky`.

    Parameters
    ----------
    rng : Generator
        Randomness.
    reference : structured array
        Schema ``REFERENCE`` of :mod:`cynosure.data.tables`.
    sky : Sky
        The distribution of values that the catalogue does not have.
    """
    n = len(reference)
    stars = STARS.empty(n)
    stars["id"] = stars["primary"] = reference["ref_id"]
    for ours, theirs in (
        ("ra_deg",) * 2,
        ("dec_deg",) * 2,
        ("epoch_yr", "ref_epoch_yr"),
        ("mag",) * 2,
    ):
        stars[ours] = reference[theirs]
    stars["color"] = np.where(np.isfinite(reference["color"]), reference["color"], sky.color_mean)
    _draw_motions(rng, sky, stars)
    errors = np.stack([np.nan_to_num(reference[name]) for name in REFERENCE_ERRORS], axis=1)
    matrix = np.tile(np.eye(5), (n, 1, 1))
    for i, j in PAIRS:
        rho = np.nan_to_num(reference[f"{LINES[i]}_{LINES[j]}_corr"])
        matrix[:, i, j] = matrix[:, j, i] = np.clip(rho, -0.999, 0.999)
    value, vector = np.linalg.eigh(matrix)  # rounded correlations may be slightly indefinite
    root = vector * np.sqrt(np.maximum(value, 0.0))[:, None, :]
    noise = errors * np.einsum("nij,nj->ni", root, rng.standard_normal((n, 5)))
    _move(stars, "ra_deg", "dec_deg", noise[:, 0], noise[:, 1])
    for i, name in enumerate(REFERENCE_LINES[2:], 2):
        known = np.isfinite(reference[name])
        stars[name] = np.where(known, reference[name] + noise[:, i], stars[name])
    stars["radius_arcsec"], stars["axis_ratio"], stars["pa_deg"] = 0.0, 1.0, 0.0
    return stars


def gaia_of_reference(reference: Table) -> Table:
    """Return a reference catalogue under Gaia's names."""
    gaia = GAIA.empty(len(reference))
    gaia["source_id"], gaia["ref_epoch"] = reference["ref_id"], reference["ref_epoch_yr"]
    gaia["ra"], gaia["dec"] = reference["ra_deg"], reference["dec_deg"]
    for name, value, error in zip(LINES, REFERENCE_LINES, REFERENCE_ERRORS):
        if name not in ("ra", "dec"):
            gaia[name] = reference[value]
        gaia[f"{name}_error"] = reference[error]
    for i, j in PAIRS:
        name = f"{LINES[i]}_{LINES[j]}_corr"
        gaia[name] = reference[name]
    gaia["astrometric_params_solved"] = np.where(np.isfinite(reference["pm_ra_mas_yr"]), 31, 3)
    gaia["phot_g_mean_mag"], gaia["bp_rp"] = reference["mag"], reference["color"]
    gaia["ruwe"] = np.where(reference["good"], 1.0, 2.0)
    return gaia


def reference_of_stars(stars: Table) -> Table:
    """Return the true sky as an error-free reference table, for ``ground.sky.at_epoch``."""
    table = REFERENCE.empty(len(stars))
    table["ref_id"], table["ref_epoch_yr"] = stars["id"], stars["epoch_yr"]
    for name in (
        "ra_deg",
        "dec_deg",
        "mag",
        "color",
        "parallax_mas",
        "pm_ra_mas_yr",
        "pm_dec_mas_yr",
    ):
        table[name] = stars[name]
    for name in REFERENCE_ERRORS:
        table[name] = 0.0
    return table
