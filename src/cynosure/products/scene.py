"""The description of a simulated scene: one TOML file with a section for each part.

Every section is a frozen dataclass whose fields are settings (:mod:`cynosure.ground.settings`), so
a field's unit, range and meaning stand in one place, an unknown key is refused with the nearest
known one, and a value out of its range names the range. :func:`load_scene` reads a scene by the
name of a packaged one or by path; :func:`scene_toml` writes one back, complete.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from cynosure.ground.errors import SettingError
from cynosure.ground.settings import Range, Settings, Unit, read_toml

__all__ = [
    "Artefacts",
    "Atmosphere",
    "Camera",
    "Catalog",
    "Detector",
    "Distortion",
    "Header",
    "Psf",
    "Scene",
    "Sky",
    "load_scene",
    "scene_names",
    "scene_toml",
]

Fraction = Annotated[float, Range(0.0, 1.0)]
Terms = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sky:
    """The stars and galaxies of the field.

    Parameters
    ----------
    ra_deg : float
        Right ascension of the centre of the focal plane, ICRS.
    dec_deg : float
        Declination of the centre of the focal plane.
    n_stars : int
        Objects expected on the frame (all chips together), galaxies included.
    margin_deg : float
        How far the sky, and with it the catalogue, reaches past the frame.
    mag_bright : float
        Brightest magnitude.
    mag_faint : float
        Faintest magnitude.
    slope : float
        Counts grow as ``10^(slope * mag)``; 0.6 is a uniform space density, 0 a flat one.
    clump_fraction : float
        Fraction of the stars in clumps; the rest is uniform.
    n_clumps : int
        Number of clumps; a single one sits at the centre, as a cluster does.
    clump_sigma_arcmin : float
        Standard deviation of a clump.
    color_mean : float
        Mean colour (BP-RP).
    color_rms : float
        Spread of the colour.
    pm_rms_mas_yr : float
        Standard deviation of proper motion per axis of most stars.
    pm_tail_fraction : float
        Fraction of the stars with faster motions.
    pm_tail_mas_yr : float
        Standard deviation per axis of those.
    high_pm_fraction : float
        Fraction of the stars of very high proper motion.
    high_pm_mas_yr : float
        Size of their motion.
    parallax_mas : float
        Mean parallax; parallaxes are exponential and follow the proper motion.
    binary_fraction : float
        Fraction of the stars that have a companion.
    binary_sep_arcsec : float
        Median separation of the companion, log-normal with a spread of a factor 3.
    galaxy_fraction : float
        Fraction of the objects that are galaxies (exponential discs).
    galaxy_radius_arcsec : float
        Median scale length of a galaxy.
    """

    ra_deg: Annotated[float, Unit("deg"), Range(-360, 360)] = 150.0
    dec_deg: Annotated[float, Unit("deg"), Range(-90, 90)] = 30.0
    n_stars: Annotated[int, Range(0, 3e7)] = 1500
    margin_deg: Annotated[float, Unit("deg"), Range(0, 30)] = 0.3
    mag_bright: Annotated[float, Unit("mag"), Range(-30, 40)] = 9.0
    mag_faint: Annotated[float, Unit("mag"), Range(-30, 40)] = 20.0
    slope: Annotated[float, Unit("dex/mag"), Range(-1, 1)] = 0.3
    clump_fraction: Fraction = 0.0
    n_clumps: Annotated[int, Range(1, 10000)] = 1
    clump_sigma_arcmin: Annotated[float, Unit("arcmin"), Range(1e-4, 1e4)] = 2.0
    color_mean: Annotated[float, Unit("mag"), Range(-5, 10)] = 1.0
    color_rms: Annotated[float, Unit("mag"), Range(0, 5)] = 0.45
    pm_rms_mas_yr: Annotated[float, Unit("mas/yr"), Range(0, 1e5)] = 5.0
    pm_tail_fraction: Fraction = 0.1
    pm_tail_mas_yr: Annotated[float, Unit("mas/yr"), Range(0, 1e5)] = 25.0
    high_pm_fraction: Fraction = 0.001
    high_pm_mas_yr: Annotated[float, Unit("mas/yr"), Range(0, 1e5)] = 500.0
    parallax_mas: Annotated[float, Unit("mas"), Range(0, 1e4)] = 0.8
    binary_fraction: Fraction = 0.01
    binary_sep_arcsec: Annotated[float, Unit("arcsec"), Range(1e-4, 1e3)] = 0.5
    galaxy_fraction: Fraction = 0.05
    galaxy_radius_arcsec: Annotated[float, Unit("arcsec"), Range(1e-3, 1e3)] = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """The reference catalogue of the true sky, with Gaia's columns.

    Parameters
    ----------
    ref_epoch_yr : float
        Julian year of its positions.
    mag_limit : float
        Faintest magnitude of the catalogue.
    missing_fraction : float
        Fraction of the stars that are missing at random.
    error_mas : float
        Error of a position at magnitude 15 and brighter.
    error_slope : float
        Of fainter stars the errors grow as ``10^(error_slope * (mag - 15))``.
    error_scale : float
        The errors in the catalogue are the true ones divided by this.
    mag_error : float
        Error of the magnitudes.
    resolution_arcsec : float
        Closer pairs become one entry at their photocentre, with a large RUWE.
    two_parameter_fraction : float
        Fraction of the stars without proper motion and parallax.
    """

    ref_epoch_yr: Annotated[float, Unit("yr"), Range(1800, 2200)] = 2016.0
    mag_limit: Annotated[float, Unit("mag"), Range(-30, 40)] = 21.0
    missing_fraction: Fraction = 0.0
    error_mas: Annotated[float, Unit("mas"), Range(0, 1e6)] = 0.02
    error_slope: Annotated[float, Unit("dex/mag"), Range(0, 1)] = 0.25
    error_scale: Annotated[float, Range(1e-3, 1e3)] = 1.0
    mag_error: Annotated[float, Unit("mag"), Range(0, 5)] = 0.005
    resolution_arcsec: Annotated[float, Unit("arcsec"), Range(0, 60)] = 0.7
    two_parameter_fraction: Fraction = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """The focal plane, its chips, and the exposure.

    Parameters
    ----------
    width_px, height_px : int
        Size of a chip.
    scale_arcsec : float
        Size of a pixel at the centre of the focal plane.
    rotation_deg : float
        Angle of the +y axis from north through east.
    parity : int
        +1 where east is to the left when north is up, -1 for a mirrored image.
    chip_x_px, chip_y_px : tuple of float
        Centre of each chip from the centre of the focal plane.
    chip_rotation_deg : tuple of float
        Rotation of each chip, counter-clockwise; one for all, or one each.
    date_obs : str
        Start of the exposure, UTC, as in DATE-OBS.
    exptime_s : float
        Exposure time.
    zero_point_mag : float
        Magnitude of a star that gives one electron in the exposure.
    filter : str
        Name of the filter.
    """

    width_px: Annotated[int, Unit("px"), Range(1, 100000)] = 2048
    height_px: Annotated[int, Unit("px"), Range(1, 100000)] = 2048
    scale_arcsec: Annotated[float, Unit("arcsec/px"), Range(1e-3, 3600)] = 0.8
    rotation_deg: Annotated[float, Unit("deg"), Range(-360, 360)] = 0.0
    parity: Annotated[int, Range(-1, 1)] = 1
    chip_x_px: Terms = (0.0,)
    chip_y_px: Terms = (0.0,)
    chip_rotation_deg: Terms = (0.0,)
    date_obs: str = "2025-07-02T12:00:00"
    exptime_s: Annotated[float, Unit("s"), Range(0, 1e6)] = 20.0
    zero_point_mag: Annotated[float, Unit("mag"), Range(-30, 60)] = 25.2
    filter: str = "clear"

    def __post_init__(self) -> None:
        n = len(self.chip_x_px)
        if n == 0 or len(self.chip_y_px) != n or len(self.chip_rotation_deg) not in (1, n):
            raise SettingError(
                "camera: {nx} values of chip_x_px, {ny} of chip_y_px, {nr} of chip_rotation_deg",
                nx=n,
                ny=len(self.chip_y_px),
                nr=len(self.chip_rotation_deg),
                hint="Give one of each for every chip (chip_rotation_deg: one for all is enough).",
            )
        if self.parity == 0:
            raise SettingError("camera.parity = 0: it is 1 or -1")
        try:
            datetime.datetime.fromisoformat(self.date_obs)
        except ValueError as error:
            raise SettingError(
                "camera.date_obs = {value!r}: not a date",
                value=self.date_obs,
                hint="For instance 2025-07-02T12:00:00.",
            ) from error

    @property
    def n_chips(self) -> int:
        """How many chips there are."""
        return len(self.chip_x_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distortion:
    """Departure of the focal plane from the tangent plane.

    Coordinates are in units of the focal plane's half diagonal, so a fraction is the
    displacement of its corner over the corner's distance.

    Parameters
    ----------
    radial3, radial5 : float
        Third- and fifth-order radial distortion at the corner.
    tangential_x, tangential_y : float
        Decentring distortion at the corner (second order).
    random_degree : int
        Degree of a random polynomial (2 and higher terms); 0 for none.
    random_px : float
        Its rms displacement over the focal plane, per axis.
    """

    radial3: Annotated[float, Range(-0.1, 0.1)] = 0.0
    radial5: Annotated[float, Range(-0.1, 0.1)] = 0.0
    tangential_x: Annotated[float, Range(-0.1, 0.1)] = 0.0
    tangential_y: Annotated[float, Range(-0.1, 0.1)] = 0.0
    random_degree: Annotated[int, Range(0, 7)] = 0
    random_px: Annotated[float, Unit("px"), Range(0, 1000)] = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Psf:
    """The point-spread function and its variation over each chip.

    A ``..._terms`` setting is a polynomial in u and v, which run from -1 to 1 over the chip, in
    the order 1, u, v, u^2, uv, v^2, ... (as many as given).

    Parameters
    ----------
    family : str
        Shape of the radial profile.
    fwhm_px : float
        Full width at half maximum of the profile before it is integrated over pixels.
    fwhm_terms : tuple of float
        Relative change of the FWHM: ``fwhm = fwhm_px * (1 + terms)``.
    e1_terms, e2_terms : tuple of float
        Ellipticity: the covariance is proportional to ``[[1 + e1, e2], [e2, 1 - e1]]``.
    coma_x_terms, coma_y_terms : tuple of float
        Displacement of a broader quarter of the light, in FWHM. The centroid stays.
    beta : float
        Exponent of the Moffat profile.
    wing_fraction : float
        Fraction of the light in the second Gaussian of ``double_gaussian``.
    wing_ratio : float
        Its width over that of the first.
    color_slope : float
        Relative change of the FWHM per magnitude of colour.
    """

    family: Literal["gaussian", "moffat", "double_gaussian"] = "gaussian"
    fwhm_px: Annotated[float, Unit("px"), Range(0.8, 100)] = 2.5
    fwhm_terms: Terms = ()
    e1_terms: Terms = ()
    e2_terms: Terms = ()
    coma_x_terms: Terms = ()
    coma_y_terms: Terms = ()
    beta: Annotated[float, Range(2, 20)] = 3.0
    wing_fraction: Fraction = 0.2
    wing_ratio: Annotated[float, Range(1, 20)] = 2.5
    color_slope: Annotated[float, Unit("1/mag"), Range(-0.2, 0.2)] = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Atmosphere:
    """The displacement of positions by the atmosphere.

    Parameters
    ----------
    turbulence_mas : float
        Rms per axis of a random displacement field (von Karman).
    turbulence_arcmin : float
        Its correlation length.
    dcr_mas_mag : float
        Colour refraction towards the zenith at tan z = 1, per magnitude of BP-RP; negative, as
        red stars are refracted less.
    zenith_deg : float
        Zenith distance of the field.
    parallactic_deg : float
        Position angle of the zenith at the centre of the field.
    """

    turbulence_mas: Annotated[float, Unit("mas"), Range(0, 1e5)] = 0.0
    turbulence_arcmin: Annotated[float, Unit("arcmin"), Range(1e-3, 1e4)] = 8.0
    dcr_mas_mag: Annotated[float, Unit("mas/mag"), Range(-1e4, 1e4)] = 0.0
    zenith_deg: Annotated[float, Unit("deg"), Range(0, 85)] = 40.0
    parallactic_deg: Annotated[float, Unit("deg"), Range(-360, 360)] = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """Sky background, noise, saturation and the values of the file.

    Parameters
    ----------
    sky_e : float
        Sky background of a pixel in the exposure.
    sky_terms : tuple of float
        Relative variation of the sky: terms in u, v as in ``[psf]``.
    sky_subtracted : bool
        Whether the mean sky is subtracted from the pixels, so that backgrounds are negative too.
    read_noise_e : float
        Read noise.
    gain_e_adu : float
        Electrons to a unit of the file.
    bias_adu : float
        Constant added to the pixels.
    full_well_e : float
        Largest charge of a pixel; the excess bleeds along its column.
    bleeding : bool
        Whether the excess bleeds; otherwise it is lost.
    saturation_adu : float
        Largest value of the file; 0 for the full well or the largest of the type.
    dtype : str
        Type of the pixels in the file.
    """

    sky_e: Annotated[float, Unit("e-"), Range(0, 1e7)] = 100.0
    sky_terms: Terms = ()
    sky_subtracted: bool = False
    read_noise_e: Annotated[float, Unit("e-"), Range(0, 1e4)] = 3.0
    gain_e_adu: Annotated[float, Unit("e-/adu"), Range(1e-4, 1e4)] = 1.0
    bias_adu: Annotated[float, Unit("adu"), Range(-1e6, 1e6)] = 0.0
    full_well_e: Annotated[float, Unit("e-"), Range(1, 1e12)] = 60000.0
    bleeding: bool = True
    saturation_adu: Annotated[float, Unit("adu"), Range(0, 1e12)] = 0.0
    dtype: Literal["uint16", "int16", "int32", "float32", "float64"] = "uint16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefacts:
    """Defects of the pixels: cosmic rays, hot pixels, dead columns, trails, blank blocks.

    Parameters
    ----------
    cosmic_rays : int
        Cosmic-ray tracks on each chip.
    cosmic_ray_e : float
        Median charge of a track, log-normal with a spread of a factor 3.
    hot_fraction : float
        Fraction of the pixels that are hot.
    hot_e : float
        Median charge of a hot pixel, log-normal with a spread of a factor 3.
    bad_columns : int
        Dead columns on each chip.
    trails : int
        Satellite trails on each chip.
    trail_e : float
        Charge of a trail per pixel of its length.
    nan_blocks : int
        Blocks of NaN on each chip (floating-point files), or of zero (integer files).
    nan_block_px : int
        Size of such a block.
    mask : bool
        Whether ``NAME_mask.fits`` is written: the sum of :class:`~.detector.PixelTruth` of each
        pixel.
    """

    cosmic_rays: Annotated[int, Range(0, 1e6)] = 0
    cosmic_ray_e: Annotated[float, Unit("e-"), Range(0, 1e9)] = 1500.0
    hot_fraction: Fraction = 0.0
    hot_e: Annotated[float, Unit("e-"), Range(0, 1e9)] = 1000.0
    bad_columns: Annotated[int, Range(0, 1e4)] = 0
    trails: Annotated[int, Range(0, 1000)] = 0
    trail_e: Annotated[float, Unit("e-/px"), Range(0, 1e9)] = 600.0
    nan_blocks: Annotated[int, Range(0, 1e4)] = 0
    nan_block_px: Annotated[int, Unit("px"), Range(1, 1e5)] = 40
    mask: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The WCS of the header and its errors.

    Parameters
    ----------
    wcs : str
        ``tan``: a linear WCS with the errors below; ``true``: the true WCS with the pointing,
        rotation and scale off by them; ``pointing``: no WCS, but RA, DEC and SECPIX with the
        errors below; ``none``: nothing.
    pointing_error_deg : float
        Distance of the header's centre from the true one, in a random direction.
    rotation_error_deg : float
        Error of the rotation.
    scale_error : float
        Relative error of the scale.
    extensions : bool
        Whether a single chip is written as an image extension; several chips always are.
    """

    wcs: Literal["tan", "true", "pointing", "none"] = "tan"
    pointing_error_deg: Annotated[float, Unit("deg"), Range(0, 180)] = 0.0
    rotation_error_deg: Annotated[float, Unit("deg"), Range(-180, 180)] = 0.0
    scale_error: Annotated[float, Range(-0.5, 0.5)] = 0.0
    extensions: bool = False


SECTIONS: dict[str, type] = {
    "sky": Sky, "catalog": Catalog, "camera": Camera, "distortion": Distortion, "psf": Psf,
    "atmosphere": Atmosphere, "detector": Detector, "artefacts": Artefacts, "header": Header,
}  # fmt: skip


def _identity(
    *, name: str = "scene", about: str = "", seed: int = -1, faults: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Name a scene: the section ``[scene]``.

    Parameters
    ----------
    name : str
        Name of the scene and of its files.
    about : str
        One sentence about it.
    seed : int
        Seed of everything random; -1 takes it from the content of the scene.
    faults : tuple of str
        Faults by name, see :data:`cynosure.products.faults.FAULTS`.
    """
    return {"name": name, "about": about, "seed": seed, "faults": faults}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A scene of known truth, as described; :func:`~cynosure.products.simulate.simulate_scene`
    makes its files.

    Attributes
    ----------
    name, about : str
        Name of the scene and of its files, and one sentence about it.
    seed : int
        Seed of everything random; -1 takes it from the content of the scene.
    faults : tuple of str
        Faults by name.
    sky, catalog, camera, distortion, psf, atmosphere, detector, artefacts, header
        The sections.
    """

    name: str = "scene"
    about: str = ""
    seed: int = -1
    faults: tuple[str, ...] = ()
    sky: Sky = field(default_factory=Sky)
    catalog: Catalog = field(default_factory=Catalog)
    camera: Camera = field(default_factory=Camera)
    distortion: Distortion = field(default_factory=Distortion)
    psf: Psf = field(default_factory=Psf)
    atmosphere: Atmosphere = field(default_factory=Atmosphere)
    detector: Detector = field(default_factory=Detector)
    artefacts: Artefacts = field(default_factory=Artefacts)
    header: Header = field(default_factory=Header)

    def updated(self, changes: Mapping[str, Mapping[str, Any]], origin: str = "changes") -> Scene:
        """Return a scene with settings changed: ``{"sky": {"n_stars": 20}}``.

        Raises
        ------
        SettingError
            For an unknown section or key (with the nearest known one) or a value out of range.
        """
        settings = Settings({"scene": _identity, **SECTIONS}).updated(changes, origin)
        new: dict[str, Any] = dict(settings["scene"])
        for section in SECTIONS:
            if settings[section]:
                new[section] = dataclasses.replace(getattr(self, section), **settings[section])
        return dataclasses.replace(self, **new)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return every setting of every section."""
        content = dataclasses.asdict(self)
        head = {k: content.pop(k) for k in ("name", "about", "seed", "faults")}
        return {"scene": head, **content}

    def content_seed(self) -> int:
        """Return the seed: the given one, or one that the content of the scene determines."""
        if self.seed >= 0:
            return self.seed
        content = self.to_dict()
        # The name and the words about a scene do not change what is on its pixels.
        content["scene"] = {"faults": self.faults}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
        return int.from_bytes(digest[:4], "big") // 2


def scene_names() -> list[str]:
    """Return the names of the packaged scenes."""
    folder = resources.files("cynosure").joinpath("scenes")
    return sorted(
        p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")
    )


def load_scene(name_or_path: str | Path) -> Scene:
    """Load a packaged scene by its name, or a TOML file by its path.

    Raises
    ------
    SettingError
        If there is no such scene, the file is not TOML, or a setting cannot be used.

    Examples
    --------
    >>> load_scene("demo").camera.width_px
    2048
    """
    path = Path(name_or_path)
    packaged = resources.files("cynosure").joinpath("scenes", f"{name_or_path}.toml")
    if path.suffix != ".toml" and path.name == str(name_or_path) and packaged.is_file():
        content, origin = tomllib.loads(packaged.read_text("utf-8")), f"scene {name_or_path}"
    elif path.is_file():
        content, origin = read_toml(path), str(path)
    else:
        raise SettingError(
            "no scene {name!r}",
            name=str(name_or_path),
            hint=f"Packaged scenes: {', '.join(scene_names())}; or give the path of a TOML file.",
        )
    stem = path.name.removesuffix(".toml").removesuffix(".scene")
    return Scene(name=stem).updated(content, origin)


def scene_toml(scene: Scene) -> str:
    """Return a scene as TOML text with every setting; :func:`load_scene` reads it back."""
    lines = []
    for section, values in scene.to_dict().items():
        lines += [f"[{section}]", *(f"{k} = {_toml(v)}" for k, v in values.items()), ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return repr(value)
