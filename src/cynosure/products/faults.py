"""Named faults of images, headers, catalogues and files, for tests.

A fault changes the scene before it is simulated, or one of its products, and returns a record of
the change; a scene writes the records into ``NAME.faults.json``. Each fault makes the change that
its description states and no other, so that a test can address exactly one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cynosure.geometry.wcs import SkyModel
from cynosure.ground.settings import unknown_name
from cynosure.products.scene import Scene

if TYPE_CHECKING:
    from astropy.io.fits import HDUList, Header

__all__ = ["FAULTS", "Fault", "Faults"]

Facts = dict[str, Any]
Table = NDArray[np.void]
Pixels = NDArray[Any]

# Share of a truncated file that is left.
LEFT = 0.6


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: its description, and the change that it makes at each stage.

    Attributes
    ----------
    about : str
        The description, one sentence.
    scene : mapping, optional
        Settings that it changes.
    objects : callable, optional
        ``(truth rows of a chip, scene) -> rows that are kept``.
    catalog : callable, optional
        ``(catalogue) -> catalogue``.
    model : callable, optional
        ``(model of a chip's header, scene) -> model``.
    header : callable, optional
        ``(header of a chip, scene) -> facts``; changes it in place.
    pixels : callable, optional
        ``(numbers of a chip, level, rng) -> facts``; changes them in place. `level` is the
        value of the sky in the file and its noise.
    hdus : callable, optional
        ``(HDUs) -> HDUs``.
    file : callable, optional
        ``(path) -> facts``; changes the file.
    """

    about: str
    scene: dict[str, dict[str, Any]] | None = None
    objects: Callable[[Table, Scene], Table] | None = None
    catalog: Callable[[Table], Table] | None = None
    model: Callable[[SkyModel, Scene], SkyModel] | None = None
    header: Callable[[Header, Scene], Facts] | None = None
    pixels: Callable[[Pixels, tuple[float, float], np.random.Generator], Facts] | None = None
    hdus: Callable[[HDUList], HDUList] | None = None
    file: Callable[[Path], Facts] | None = None


FLOAT = {"detector": {"dtype": "float32"}}


# --- the sky --------------------------------------------------------------------------------


def _no_objects(rows: Table, scene: Scene) -> Table:
    return rows[:0]


def _three_stars(rows: Table, scene: Scene) -> Table:
    """Keep the three brightest stars that lie well inside and below half the full well."""
    nx, ny = scene.camera.width_px, scene.camera.height_px
    inside = (rows["x"] > 0.05 * nx) & (rows["x"] < 0.95 * nx)
    inside &= (rows["y"] > 0.05 * ny) & (rows["y"] < 0.95 * ny)
    below = rows["flux_e"] < 2.0 * scene.detector.full_well_e
    rows = rows[inside & below & (rows["kind"] == 0)]
    return rows[np.argsort(rows["mag"], kind="stable")[:3]]


# --- the header -----------------------------------------------------------------------------


def _mirror(model: SkyModel, scene: Scene) -> SkyModel:
    """Reflect the header's model about the direction of +y, through its tangent point."""
    angle = np.radians(scene.camera.rotation_deg + scene.header.rotation_error_deg)
    axis = np.array([np.sin(angle), np.cos(angle)])
    return model.replaced(coeff=(2.0 * np.outer(axis, axis) - np.eye(2)) @ model.coeff)


def _without(*keys: str) -> Callable[[Header, Scene], Facts]:
    def change(header: Header, scene: Scene) -> Facts:
        for key in keys:
            header.remove(key, ignore_missing=True)
        return {"missing": list(keys)}

    return change


def _with_cards(**cards: Any) -> Callable[[Header, Scene], Facts]:
    def change(header: Header, scene: Scene) -> Facts:
        for key, value in cards.items():
            header[key.replace("_", "-") if key == "DATE_OBS" else key] = value
        return {"cards": cards}

    return change


# --- the pixels -----------------------------------------------------------------------------


def _fill(what: str) -> Callable[[Pixels, tuple[float, float], np.random.Generator], Facts]:
    def change(numbers: Pixels, level: tuple[float, float], rng: np.random.Generator) -> Facts:
        top = np.iinfo(numbers.dtype).max if numbers.dtype.kind in "iu" else 65535
        value = {"nan": np.nan, "zero": 0, "constant": round(level[0]), "top": top}[what]
        numbers[:] = value
        return {"value": None if what == "nan" else float(value)}

    return change


def _added(numbers: Pixels, where: Any, amount: float) -> None:
    part = numbers[where].astype(float) + amount
    if numbers.dtype.kind in "iu":
        limits = np.iinfo(numbers.dtype)
        part = np.clip(np.rint(part), limits.min, limits.max)
    numbers[where] = part


def _hot_column(numbers: Pixels, level: tuple[float, float], rng: np.random.Generator) -> Facts:
    column = int(rng.integers(numbers.shape[1]))
    amount = 300.0 * level[1]
    _added(numbers, (slice(None), column), amount)
    return {"column": column, "added_adu": amount}


def _dead_row(numbers: Pixels, level: tuple[float, float], rng: np.random.Generator) -> Facts:
    row = int(rng.integers(numbers.shape[0]))
    numbers[row] = 0
    return {"row": row, "value": 0.0}


def _half_frame(numbers: Pixels, level: tuple[float, float], rng: np.random.Generator) -> Facts:
    half, amount = numbers.shape[0] // 2, 15.0 * level[1]
    _added(numbers, (slice(half, None), slice(None)), amount)
    return {"first_row": half, "added_adu": amount}


def _block(what: str) -> Callable[[Pixels, tuple[float, float], np.random.Generator], Facts]:
    def change(numbers: Pixels, level: tuple[float, float], rng: np.random.Generator) -> Facts:
        ny, nx = numbers.shape
        y, x = int(rng.integers(ny // 2 + 1)), int(rng.integers(nx // 2 + 1))
        where = slice(y, y + ny // 2), slice(x, x + nx // 2)
        numbers[where] = np.nan if what == "nan" else round(level[0])
        return {"x": x, "y": y, "width": nx // 2, "height": ny // 2}

    return change


# --- the file -------------------------------------------------------------------------------


def _cube(hdus: HDUList) -> HDUList:
    for hdu in hdus:
        if hdu.data is not None:
            hdu.data = np.stack([hdu.data] * 3)
    return hdus


def _one_pixel(hdus: HDUList) -> HDUList:
    for hdu in hdus:
        if hdu.data is not None:
            hdu.data = hdu.data[:1, :1]
    return hdus


def _bscale(hdus: HDUList) -> HDUList:
    for hdu in hdus:
        if hdu.data is not None:
            hdu.data = hdu.data.astype(np.float32)
            hdu.scale("int16", bscale=2.0, bzero=32768.0)
    return hdus


def _no_image(hdus: HDUList) -> HDUList:
    from astropy.io import fits

    column = fits.Column(name="TIME", format="D", array=np.arange(5.0))
    return fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns([column])])


def _truncated(path: Path) -> Facts:
    size = path.stat().st_size
    left = int(size * LEFT)
    with path.open("r+b") as stream:
        stream.truncate(left)
    return {"bytes": left, "bytes_whole": size}


def _replaced(content: bytes) -> Callable[[Path], Facts]:
    def change(path: Path) -> Facts:
        path.write_bytes(content)
        return {"bytes": len(content)}

    return change


# --- the catalogue --------------------------------------------------------------------------


def _elsewhere(catalog: Table) -> Table:
    catalog = catalog.copy()
    catalog["ra"] = (catalog["ra"] + 180.0) % 360.0
    catalog["dec"] = -catalog["dec"]
    return catalog


def _radians(catalog: Table) -> Table:
    catalog = catalog.copy()
    for name in ("ra", "dec"):
        catalog[name] = np.radians(catalog[name])
    return catalog


def _empty(catalog: Table) -> Table:
    return catalog[:0]


FAULTS: dict[str, Fault] = {
    "wrong_pointing": Fault(
        "The header points half a degree off.", scene={"header": {"pointing_error_deg": 0.5}}
    ),
    "wrong_rotation": Fault(
        "The header is rotated by 90 degrees.", scene={"header": {"rotation_error_deg": 90.0}}
    ),
    "wrong_scale": Fault(
        "The header's scale is 8 % too large.", scene={"header": {"scale_error": 0.08}}
    ),
    "absurd_pointing": Fault(
        "The header points at right ascension 512 and declination -123.",
        header=_with_cards(CRVAL1=512.0, CRVAL2=-123.0),
    ),
    "mirrored": Fault("The image is mirrored against its header.", model=_mirror),
    "no_wcs": Fault("The header has no WCS and no pointing.", scene={"header": {"wcs": "none"}}),
    "no_date": Fault("The header has no date.", header=_without("DATE-OBS")),
    "absurd_date": Fault(
        "The clock was never set.", header=_with_cards(DATE_OBS="0000-00-00T00:00:00")
    ),
    "no_gain": Fault(
        "The header has neither gain nor read noise.", header=_without("GAIN", "RDNOISE")
    ),
    "no_stars": Fault("Nothing but sky.", objects=_no_objects),
    "three_stars": Fault("Three stars and nothing else.", objects=_three_stars),
    "one_trail": Fault(
        "A satellite trail and nothing else.",
        scene={"artefacts": {"trails": 1, "cosmic_rays": 0, "hot_fraction": 0.0}},
        objects=_no_objects,
    ),
    "all_nan": Fault("Every pixel is NaN.", scene=FLOAT, pixels=_fill("nan")),
    "all_zero": Fault("Every pixel is zero.", pixels=_fill("zero")),
    "constant": Fault("Every pixel has the value of the sky.", pixels=_fill("constant")),
    "saturated_everywhere": Fault(
        "Every pixel has the largest value of its type.", pixels=_fill("top")
    ),
    "nan_quarter": Fault("A quarter of the frame is NaN.", scene=FLOAT, pixels=_block("nan")),
    "fixed_quarter": Fault("A quarter of the frame has one value.", pixels=_block("fixed")),
    "hot_column": Fault("One column lies 300 sigma above the sky.", pixels=_hot_column),
    "dead_row": Fault("One row is zero.", pixels=_dead_row),
    "half_frame_offset": Fault(
        "The upper half of the frame lies 15 sigma above the lower.", pixels=_half_frame
    ),
    "negative_background": Fault(
        "The sky is subtracted: half of the pixels are negative.",
        scene={"detector": {"dtype": "float32", "sky_subtracted": True, "bias_adu": 0.0}},
    ),
    "bzero_integer": Fault(
        "Unsigned integers, written as signed ones with BZERO.",
        scene={"detector": {"dtype": "uint16"}},
    ),
    "bscale_integer": Fault("Integers with BSCALE 2 and BZERO 32768.", hdus=_bscale),
    "cube": Fault("Three planes instead of an image.", hdus=_cube),
    "no_image": Fault("A FITS file with a table and no image.", hdus=_no_image),
    "one_pixel": Fault("An image of one pixel.", hdus=_one_pixel),
    "truncated": Fault("The last 40 % of the file are missing.", file=_truncated),
    "empty_file": Fault("A file of no bytes.", file=_replaced(b"")),
    "not_fits": Fault("A text file with the name of an image.", file=_replaced(b"not an image\n")),
    "catalog_elsewhere": Fault(
        "The catalogue covers the other side of the sky.", catalog=_elsewhere
    ),
    "catalog_radians": Fault("The catalogue's positions are radians.", catalog=_radians),
    "catalog_empty": Fault("The catalogue has no rows.", catalog=_empty),
}


class Faults:
    """The faults of one scene, applied stage by stage, with a record of their changes.

    Parameters
    ----------
    names : tuple of str
        Names from :data:`FAULTS`.

    Raises
    ------
    SettingError
        For an unknown name, with the nearest known one.
    """

    def __init__(self, names: tuple[str, ...]):
        for name in names:
            if name not in FAULTS:
                raise unknown_name("fault", name, list(FAULTS), "scene.faults")
        self._faults = {name: FAULTS[name] for name in names}
        self._facts: dict[str, list[Facts]] = {name: [] for name in names}

    def record(self) -> list[Facts]:
        """Return the record of each fault: name, description and numbers, JSON-safe."""
        return [
            {"fault": name, "about": fault.about, "facts": self._facts[name]}
            for name, fault in self._faults.items()
        ]

    def on_scene(self, scene: Scene) -> Scene:
        """Return the scene with the settings that the faults change."""
        for name, fault in self._faults.items():
            if fault.scene:
                scene = scene.updated(fault.scene, f"fault {name}")
                self._facts[name].append({"settings": fault.scene})
        return scene

    def on_objects(self, rows: Table, scene: Scene) -> Table:
        """Return the objects of a chip that the faults leave."""
        for name, fault in self._faults.items():
            if fault.objects:
                rows = fault.objects(rows, scene)
                self._facts[name].append({"n_objects": len(rows)})
        return rows

    def on_catalog(self, catalog: Table) -> Table:
        """Return the catalogue with its faults."""
        for name, fault in self._faults.items():
            if fault.catalog:
                catalog = fault.catalog(catalog)
                self._facts[name].append({"n_entries": len(catalog)})
        return catalog

    def on_model(self, model: SkyModel, scene: Scene, chip: int) -> SkyModel:
        """Return the model of a chip's header, with its faults."""
        for name, fault in self._faults.items():
            if fault.model:
                model = fault.model(model, scene)
                determinant = float(np.linalg.det(model.jacobian(model.x0, model.y0)))
                self._facts[name].append(
                    {"chip": chip, "header_parity": 1 if determinant < 0 else -1}
                )
        return model

    def on_header(self, header: Header, scene: Scene, chip: int) -> Header:
        """Change the header of a chip in place, and return it."""
        for name, fault in self._faults.items():
            if fault.header:
                self._facts[name].append({"chip": chip, **fault.header(header, scene)})
        return header

    def on_pixels(
        self, numbers: Pixels, level: tuple[float, float], rng: np.random.Generator, chip: int
    ) -> Pixels:
        """Change the numbers of a chip in place, and return them."""
        for name, fault in self._faults.items():
            if fault.pixels:
                self._facts[name].append({"chip": chip, **fault.pixels(numbers, level, rng)})
        return numbers

    def on_hdus(self, hdus: HDUList) -> HDUList:
        """Return the HDUs that go into the file."""
        for fault in self._faults.values():
            if fault.hdus:
                hdus = fault.hdus(hdus)
        return hdus

    def on_file(self, path: Path) -> None:
        """Damage the file."""
        for name, fault in self._faults.items():
            if fault.file:
                self._facts[name].append(fault.file(path))
