"""Simulate scenes of known truth: images, their reference catalogue, and the truth of both.

>>> scene = load_scene("demo").updated({"sky": {"n_stars": 200}})
>>> scene.name
'demo'

:func:`simulate_scene` writes, for a scene ``NAME``: ``NAME.fits`` (the image),
``reference.parquet`` (the catalogue, like Gaia's), ``NAME_truth.parquet``, ``NAME_truth.wcs.fits``,
``NAME.scene.toml`` and ``NAME.faults.json``. The same scene and seed give the same bits.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.data.tables import Schema, write_parquet
from cynosure.geometry.wcs import SkyModel, model_to_header
from cynosure.ground.errors import OutputError, OutputExists, SettingError
from cynosure.ground.files import atomic_path, reason_of, write_text
from cynosure.ground.sky import at_epoch, project
from cynosure.products import camera as cam
from cynosure.products.bounds import scene_bounds
from cynosure.products.detector import (
    PixelTruth,
    add_artefacts_into,
    add_sky_into,
    blank_blocks_into,
    bleed_into,
    count_into,
    digitise,
    draw_trail_into,
    kill_columns_into,
    saturation_adu,
    sky_level,
    sky_values,
)
from cynosure.products.faults import FAULTS, Faults
from cynosure.products.render import (
    FWHM_TO_SIGMA,
    Mixture,
    central_share,
    disc_mixture,
    psf_fwhm_px,
    psf_mixture,
    render_stars,
    render_stars_into,
)
from cynosure.products.scene import Scene, load_scene, scene_names, scene_toml
from cynosure.products.starfield import (
    GAIA,
    GALAXY,
    draw_sky,
    gaia_of_reference,
    observe_catalog,
    reference_of_stars,
    sky_of_reference,
)

if TYPE_CHECKING:
    from astropy.io.fits import HDUList, Header

__all__ = [
    "FAULTS",
    "TRUTH",
    "Scene",
    "SceneFiles",
    "draw_sky",
    "load_scene",
    "render_stars",
    "scene_names",
    "simulate_scene",
]

Floats = NDArray[np.float64]
Table = NDArray[np.void]

# Stars up to this far outside the frame (px) are drawn, since their wings may reach it.
OUTSIDE_PX = 60.0
# A component of a star is drawn down to this fraction of the noise of a pixel: a thousand stars
# that overlap there still leave out less than the noise.
CUTOFF = 1e-3
RENDER_CHUNK = 20000  # objects drawn at a time; it limits the memory
MAX_OBJECTS = 3e7  # objects that can be drawn: some gigabytes of tables

TRUTH = Schema(
    "cynosure.truth/1",
    [
        ("chip", "i4", "", "0-based number of the chip"),
        ("id", "i8", "", "identifier, the same in the reference catalogue"),
        ("kind", "i4", "", "0 star, 1 companion of a star, 2 galaxy"),
        ("primary", "i8", "", "identifier of the star it is a companion of, or its own"),
        ("x", "f8", "px", "column of the centroid, 0-based, the air included"),
        ("y", "f8", "px", "row of the centroid, 0-based, the air included"),
        (
            "x_wcs",
            "f8",
            "px",
            "column at which the true WCS has (ra_deg, dec_deg): without the air",
        ),
        ("y_wcs", "f8", "px", "row at which the true WCS has (ra_deg, dec_deg): without the air"),
        ("flux_e", "f8", "e-", "flux on an infinite detector"),
        ("ra_deg", "f8", "deg", "right ascension at mid-exposure, parallax included, ICRS"),
        ("dec_deg", "f8", "deg", "declination at mid-exposure, parallax included, ICRS"),
        ("epoch_yr", "f8", "yr", "Julian year of mid-exposure"),
        ("mag", "f8", "mag", "magnitude"),
        ("color", "f8", "mag", "colour (BP-RP)"),
        ("pm_ra_mas_yr", "f8", "mas/yr", "proper motion in ra, with cos dec"),
        ("pm_dec_mas_yr", "f8", "mas/yr", "proper motion in dec"),
        ("parallax_mas", "f8", "mas", "parallax"),
        ("radius_px", "f8", "px", "scale length of a galaxy before the PSF, 0 for a star"),
        ("axis_ratio", "f8", "", "axis ratio of a galaxy, 1 for a star"),
        ("angle_deg", "f8", "deg", "long axis of a galaxy from +x towards +y"),
        ("fwhm_px", "f8", "px", "FWHM of the PSF there, before it is integrated over pixels"),
        ("peak_e", "f8", "e-", "expected brightest pixel without the sky, centred on a pixel"),
        ("x_crb", "f8", "px", "Cramer-Rao bound of x of an isolated star, NaN for a galaxy"),
        ("y_crb", "f8", "px", "Cramer-Rao bound of y"),
        ("flux_crb_e", "f8", "e-", "Cramer-Rao bound of the flux"),
        ("saturated", "?", "", "its expected brightest pixel and the sky reach the full well"),
        ("in_catalog", "?", "", "is an entry of the reference catalogue"),
    ],
)


@dataclass(frozen=True, slots=True)
class SceneFiles:
    """The files of a simulated scene.

    Attributes
    ----------
    image : Path
        The image.
    reference : Path
        The reference catalogue, under Gaia's column names.
    truth : Path
        Schema `TRUTH`.
    truth_wcs : Path
        The true WCS as TPV, headers without pixels.
    scene : Path
        The scene with every setting and its seed: simulated again, it gives the same bits.
    faults : Path
        The record of the faults.
    mask : Path
        Truth of the pixels; written if ``artefacts.mask`` is set.
    """

    image: Path
    reference: Path
    truth: Path
    truth_wcs: Path
    scene: Path
    faults: Path
    mask: Path

    @classmethod
    def of(cls, name: str, out: str | Path) -> SceneFiles:
        """Return the paths of a scene's files in a folder."""
        out = Path(out)
        return cls(
            out / f"{name}.fits",
            out / "reference.parquet",
            out / f"{name}_truth.parquet",
            out / f"{name}_truth.wcs.fits",
            out / f"{name}.scene.toml",
            out / f"{name}.faults.json",
            out / f"{name}_mask.fits",
        )


class _Streams:
    """One random stream for each purpose, so that a change in one does not affect the others."""

    def __init__(self, seed: int):
        self.seed = seed

    def __call__(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(purpose.encode())])


def simulate_scene(
    scene: Scene,
    out: str | Path,
    *,
    seed: int | None = None,
    overwrite: bool = False,
    refcat: Table | None = None,
) -> SceneFiles:
    """Make the files of a scene.

    Parameters
    ----------
    scene : Scene
        What to simulate.
    out : str or Path
        Folder of the files; it is made.
    seed : int, optional
        Overrides the scene's own.
    overwrite : bool
        Whether files that are there may be replaced.
    refcat : structured array, optional
        Schema ``REFERENCE`` of :mod:`cynosure.data.tables`: stars are taken from it instead of
        drawn, each moved from its catalogue position by a draw from the catalogue's own errors.

    Returns
    -------
    SceneFiles
        Where they are.

    Raises
    ------
    OutputExists
        If one of the files is there and `overwrite` is false.
    OutputError
        If they cannot be written.
    SettingError
        For a fault that has no such name.
    """
    faults = Faults(scene.faults)
    scene = dataclasses.replace(scene, seed=scene.content_seed() if seed is None else int(seed))
    files = SceneFiles.of(scene.name, out)
    _prepare(files, overwrite)
    resolved = scene_toml(scene)
    scene = faults.on_scene(scene)
    streams = _Streams(scene.seed)
    plane = cam.build_focal_plane(scene, streams("distortion"))
    stars, gaia = _make_sky(scene, plane, streams, refcat)
    objects = [
        faults.on_objects(rows, scene) for rows in _objects(scene, plane, streams, stars, gaia)
    ]
    chips, masks = [], []
    for chip, rows in enumerate(objects):
        numbers, mask = _make_chip(scene, streams, chip, rows)
        chips.append(faults.on_pixels(numbers, sky_level(scene.detector), streams("faults"), chip))
        masks.append(mask)
    headers = []
    for chip, model in enumerate(cam.believed_models(scene, plane, streams("header"))):
        header = _pixel_header(scene, faults.on_model(model, scene, chip))
        headers.append(faults.on_header(header, scene, chip))
    _write_image(files.image, faults.on_hdus(_image_hdus(scene, chips, headers)))
    faults.on_file(files.image)
    if scene.artefacts.mask:
        _write_image(files.mask, _image_hdus(scene, masks, _blank_headers(len(masks))))
    _write_image(files.truth_wcs, _truth_hdus(scene, plane.models))
    write_parquet(files.truth, np.concatenate([_finished(scene, rows) for rows in objects]), TRUTH)
    write_parquet(files.reference, faults.on_catalog(gaia), GAIA)
    write_text(files.scene, resolved, overwrite=True)
    record = {"scene": scene.name, "seed": scene.seed, "faults": faults.record()}
    write_text(files.faults, json.dumps(record, indent=2) + "\n", overwrite=True)
    return files


def _prepare(files: SceneFiles, overwrite: bool) -> None:
    try:
        files.image.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(path=str(files.image.parent), reason=reason_of(error)) from error
    if not overwrite:
        for path in dataclasses.astuple(files):
            if path.exists():
                raise OutputExists(path=str(path))


def _make_sky(
    scene: Scene, plane: cam.FocalPlane, streams: _Streams, refcat: Table | None
) -> tuple[Table, Table]:
    """Return the true sky and its catalogue."""
    if refcat is not None:
        return sky_of_reference(streams("sky"), refcat, scene.sky), gaia_of_reference(refcat)
    camera, sky = scene.camera, scene.sky
    scale = camera.scale_arcsec / 3600.0
    half = [h * scale + sky.margin_deg for h in (plane.half_width_px, plane.half_height_px)]
    area = camera.n_chips * camera.width_px * camera.height_px * scale**2
    # Clumps lie on the frame; the other stars have the same density in the margin.
    clumped = round(sky.n_stars * sky.clump_fraction)
    n = clumped + round((sky.n_stars - clumped) * 4 * half[0] * half[1] / area)
    sky = dataclasses.replace(sky, clump_fraction=clumped / max(n, 1))
    if n > MAX_OBJECTS:
        raise SettingError(
            "sky.n_stars = {n_stars}, sky.margin_deg = {margin:g}: {n:.3g} objects in all",
            n_stars=sky.n_stars,
            margin=sky.margin_deg,
            n=n,
            hint=f"At most {MAX_OBJECTS:.0e} can be drawn; lower n_stars or margin_deg.",
        )
    stars = draw_sky(
        streams("sky"),
        sky,
        n,
        *half,
        rotation_deg=camera.rotation_deg,
        epoch_yr=scene.catalog.ref_epoch_yr,
    )
    return stars, observe_catalog(streams("catalog"), stars, scene.catalog)


def _objects(
    scene: Scene, plane: cam.FocalPlane, streams: _Streams, stars: Table, gaia: Table
) -> list[Table]:
    """Return for each chip the truth of all objects on it or within OUTSIDE_PX of its edges."""
    camera = scene.camera
    epoch = cam.epoch_yr(camera)
    scale = camera.scale_arcsec / 3600.0
    reach = 1.3 * np.hypot(plane.half_width_px, plane.half_height_px) * scale + OUTSIDE_PX * scale
    xi, eta = project(stars["ra_deg"], stars["dec_deg"], scene.sky.ra_deg, scene.sky.dec_deg)
    # 0.02 deg allows for the motion over decades, except for the few fastest stars.
    with np.errstate(invalid="ignore"):
        stars = stars[np.hypot(xi, eta) < reach + 0.02]
    ra, dec, _ = at_epoch(reference_of_stars(stars), epoch)
    center = (scene.sky.ra_deg, scene.sky.dec_deg, scene.sky.color_mean)
    shift = cam.displacement_mas(streams("air"), scene.atmosphere, ra, dec, stars["color"], center)
    still = not any(np.any(s) for s in shift)
    seen = (ra, dec) if still else cam.moved(ra, dec, *shift)
    known = np.isin(stars["id"], gaia["source_id"])
    parts = []
    for chip, model in enumerate(plane.models):
        x, y = model.sky_to_pixel(ra, dec)
        near = np.flatnonzero(_near(camera.width_px, x) & _near(camera.height_px, y))
        part = TRUTH.empty(len(near))
        part["chip"], part["epoch_yr"] = chip, epoch
        for name in (
            "id",
            "kind",
            "primary",
            "mag",
            "color",
            "pm_ra_mas_yr",
            "pm_dec_mas_yr",
            "parallax_mas",
        ):
            part[name] = stars[name][near]
        part["ra_deg"], part["dec_deg"] = ra[near], dec[near]
        part["x_wcs"], part["y_wcs"] = x[near], y[near]
        part["x"], part["y"] = x[near], y[near]
        if not still:
            part["x"], part["y"] = model.sky_to_pixel(seen[0][near], seen[1][near])
        part["flux_e"] = 10.0 ** (0.4 * (camera.zero_point_mag - part["mag"]))
        part["in_catalog"] = known[near]
        part["radius_px"] = stars["radius_arcsec"][near] / camera.scale_arcsec
        part["axis_ratio"] = stars["axis_ratio"][near]
        part["angle_deg"] = _pixel_angle_deg(model, stars["pa_deg"][near])
        parts.append(part)
    return parts


def _near(size: int, x: Floats) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        return (x > -OUTSIDE_PX) & (x < size + OUTSIDE_PX)


def _pixel_angle_deg(model: SkyModel, pa_deg: Floats) -> Floats:
    """Return the direction in pixels of a position angle on the sky, at the centre of a chip."""
    inverse = np.linalg.inv(model.jacobian(model.x0, model.y0))
    x, y = inverse @ np.stack([np.sin(np.radians(pa_deg)), np.cos(np.radians(pa_deg))])
    return np.degrees(np.arctan2(y, x))


def _uv(scene: Scene, part: Table) -> tuple[Floats, Floats]:
    """Return the place on the chip, -1 to 1."""
    nx, ny = scene.camera.width_px, scene.camera.height_px
    return 2.0 * part["x"] / max(nx - 1, 1) - 1.0, 2.0 * part["y"] / max(ny - 1, 1) - 1.0


def _finished(scene: Scene, part: Table) -> Table:
    """Return the truth of the objects on the chip, with their Cramer-Rao bounds."""
    nx, ny = scene.camera.width_px, scene.camera.height_px
    inside = (np.abs(part["x"] - (nx - 1) / 2) < nx / 2) & (
        np.abs(part["y"] - (ny - 1) / 2) < ny / 2
    )
    part = part[inside]
    if len(part) == 0:
        return part
    u, v = _uv(scene, part)
    bounds = scene_bounds(scene.psf, scene.detector, part["flux_e"])
    x, y, flux = bounds.at(u, v, part["flux_e"])
    star = part["kind"] != GALAXY
    for name, value in (("x_crb", x), ("y_crb", y), ("flux_crb_e", flux)):
        part[name] = np.where(star, value, np.nan)
    fwhm, peak = _shape(scene, part, u, v)
    part["fwhm_px"], part["peak_e"] = fwhm, peak * part["flux_e"]
    sky = sky_values(scene.detector, u, v)
    part["saturated"] = part["peak_e"] + sky >= scene.detector.full_well_e
    return part


def _shape(scene: Scene, part: Table, u: Floats, v: Floats) -> tuple[Floats, Floats]:
    """Return FWHM of the PSF and share of the flux in a central pixel, at each object."""
    color = part["color"] - scene.sky.color_mean
    fwhm, peak = np.empty(len(part)), np.empty(len(part))
    for start in range(0, len(part), RENDER_CHUNK):
        cut = slice(start, start + RENDER_CHUNK)
        mixture = _mixture(scene, part[cut], u[cut], v[cut])
        fwhm[cut] = psf_fwhm_px(scene.psf, u[cut], v[cut], color[cut])
        peak[cut] = central_share(mixture)
    return fwhm, peak


def _mixture(scene: Scene, part: Table, u: Floats, v: Floats) -> Mixture:
    """Return the profiles of objects: the PSF, for galaxies convolved with a disc."""
    mixture = psf_mixture(scene.psf, u, v, part["color"] - scene.sky.color_mean)
    if not np.any(part["kind"] == GALAXY):
        return mixture
    return mixture.convolved(disc_mixture(part["radius_px"], part["axis_ratio"], part["angle_deg"]))


def _render_into(image: NDArray[np.float32], scene: Scene, part: Table) -> None:
    detector = scene.detector
    noise = np.sqrt(detector.sky_e + detector.read_noise_e**2 + 0.1)
    for galaxies in (False, True):
        some = part[(part["kind"] == GALAXY) == galaxies]
        u, v = _uv(scene, some)
        step = RENDER_CHUNK // (10 if galaxies else 1)
        for start in range(0, len(some), step):
            cut = slice(start, start + step)
            one = some[cut]
            mixture = _mixture(scene, one, u[cut], v[cut])
            render_stars_into(image, one["x"], one["y"], one["flux_e"], mixture, CUTOFF * noise)


def _make_chip(
    scene: Scene, streams: _Streams, chip: int, rows: Table
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Return the pixels of a chip as they are in the file, and their truth."""
    camera, detector, artefacts = scene.camera, scene.detector, scene.artefacts
    image = np.zeros((camera.height_px, camera.width_px), dtype=np.float32)
    mask = np.zeros(image.shape, dtype=np.uint8)
    add_sky_into(image, detector)
    _render_into(image, scene, rows)
    rng, noise = streams(f"artefacts {chip}"), streams(f"noise {chip}")
    for _ in range(artefacts.trails):
        draw_trail_into(image, mask, rng, artefacts.trail_e, scene.psf.fwhm_px * FWHM_TO_SIGMA)
    count_into(image, noise)
    add_artefacts_into(image, mask, artefacts, rng)
    bleed_into(image, detector.full_well_e, detector.bleeding)
    if artefacts.mask:
        mask[image >= detector.full_well_e] |= np.uint8(PixelTruth.SATURATED)
    kill_columns_into(image, mask, artefacts, rng)
    numbers = digitise(image, detector, noise)
    blank_blocks_into(numbers, mask, artefacts, rng)
    return numbers, mask


# --------------------------------------------------------------------------------- the files


def _pixel_header(scene: Scene, model: SkyModel) -> Header:
    """Return the header of a chip: the instrument's cards and the header's WCS."""
    from astropy.io.fits import Header

    camera, detector = scene.camera, scene.detector
    header = Header()
    header["OBJECT"] = scene.name[:60]
    header["INSTRUME"] = ("CYNOSIM", "simulated by cynosure")
    header["DATE-OBS"] = (camera.date_obs, "start of the exposure, UTC")
    header["EXPTIME"] = (camera.exptime_s, "[s]")
    header["FILTER"] = camera.filter
    header["GAIN"] = (detector.gain_e_adu, "[e-/adu]")
    header["RDNOISE"] = (detector.read_noise_e, "[e-]")
    header["SATURATE"] = (saturation_adu(detector), "[adu]")
    if scene.header.wcs == "pointing":
        center = model.pixel_to_sky((camera.width_px - 1) / 2, (camera.height_px - 1) / 2)
        header["RA"], header["DEC"] = float(center[0]), float(center[1])
        header["SECPIX"] = (camera.scale_arcsec * (1.0 + scene.header.scale_error), "[arcsec/px]")
    elif scene.header.wcs != "none":
        header.update(model_to_header(model, "tpv", shape=(camera.height_px, camera.width_px)))
    return header


def _blank_headers(n: int) -> list[Header]:
    from astropy.io.fits import Header

    return [Header() for _ in range(n)]


def _image_hdus(scene: Scene, chips: list[NDArray[Any]], headers: list[Header]) -> HDUList:
    from astropy.io import fits

    if len(chips) == 1 and not scene.header.extensions:
        return fits.HDUList([fits.PrimaryHDU(chips[0], headers[0])])
    primary = fits.PrimaryHDU()
    primary.header["OBJECT"] = scene.name[:60]
    primary.header["NEXTEND"] = len(chips)
    pairs = enumerate(zip(chips, headers), 1)
    return fits.HDUList([primary, *(fits.ImageHDU(d, h, name="SCI", ver=k) for k, (d, h) in pairs)])


def _truth_hdus(scene: Scene, models: tuple[SkyModel, ...]) -> HDUList:
    """Return the true WCS as headers without pixels, laid out as the image is."""
    from astropy.io import fits

    headers = []
    for model in models:
        header = model_to_header(
            model, "tpv", shape=(scene.camera.height_px, scene.camera.width_px)
        )
        header["IMAGEW"] = (scene.camera.width_px, "[px] width of the image")
        header["IMAGEH"] = (scene.camera.height_px, "[px] height of the image")
        headers.append(header)
    if len(models) == 1 and not scene.header.extensions:
        return fits.HDUList([fits.PrimaryHDU(header=headers[0])])
    pairs = enumerate(headers, 1)
    return fits.HDUList(
        [fits.PrimaryHDU(), *(fits.ImageHDU(header=h, name="SCI", ver=k) for k, h in pairs)]
    )


def _write_image(path: Path, hdus: HDUList) -> None:
    with atomic_path(path, overwrite=True) as temporary, temporary.open("wb") as stream:
        hdus.writeto(stream)
