"""Small images of known truth, and what a solution of them is held against: astropy alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning

from cynosure.data.catalogs.build import build_refcat
from cynosure.products.simulate import Scene, SceneFiles, simulate_scene

# A frame of 8' that solves in a fraction of a second; its stars' errors are a few mas and more.
SMALL = {
    "sky": {"n_stars": 260, "margin_deg": 0.12, "mag_bright": 11.0, "mag_faint": 18.5,
            "galaxy_fraction": 0.05, "binary_fraction": 0.0},
    "camera": {"width_px": 520, "height_px": 460, "scale_arcsec": 1.0, "zero_point_mag": 26.0,
               "rotation_deg": 33.0},
    "distortion": {"radial3": 0.001},
    "psf": {"family": "moffat", "fwhm_px": 2.6, "beta": 3.5, "e1_terms": [0.03, 0.03]},
    "detector": {"sky_e": 150.0, "read_noise_e": 4.0, "bias_adu": 200.0},
    "artefacts": {"cosmic_rays": 10},
    "header": {"pointing_error_deg": 0.03, "rotation_error_deg": 1.0, "scale_error": 0.002},
}  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """A simulated image, its catalogue, and its true WCS."""

    files: SceneFiles
    refcat: Path
    scene: Scene

    @property
    def image(self) -> Path:
        return self.files.image

    def truth(self, chip: int = 0) -> fits.Header:
        """Return the header of the true WCS of a chip."""
        with fits.open(self.files.truth_wcs) as hdus:
            return [h.header for h in hdus if "CRVAL1" in h.header][chip]

    def stars(self):
        """Return the truth of every object."""
        return pq.read_table(self.files.truth).to_pandas()

    def error_mas(self, header: fits.Header, chip: int = 0, n: int = 15) -> np.ndarray:
        """Return the error (n * n, 2) of a header over the frame, along ra (cos dec) and dec."""
        x, y = grid(self.truth(chip), n)
        return apart_mas(wcs_of(header), wcs_of(self.truth(chip)), x, y)


def wcs_of(header: fits.Header, key: str = " ", naxis: int | None = None) -> WCS:
    """Return astropy's WCS of a header, also of one without pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        return WCS(header, key=key, naxis=naxis)


def grid(header: fits.Header, n: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels over a frame, its corners included."""
    nx, ny = header["IMAGEW"], header["IMAGEH"]
    x, y = np.meshgrid(np.linspace(0, nx - 1, n), np.linspace(0, ny - 1, n))
    return x.ravel(), y.ravel()


def apart_mas(wcs: WCS, truth: WCS, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the difference of two WCSs at pixels, (n, 2)."""
    ra, dec = wcs.all_pix2world(x, y, 0)
    ra0, dec0 = truth.all_pix2world(x, y, 0)
    dra = (ra - ra0 + 180.0) % 360.0 - 180.0
    return np.stack([dra * np.cos(np.radians(dec0)), dec - dec0], axis=1) * 3.6e6


def plant(folder: Path, seed: int = 1, name: str = "field", **sections: dict) -> Planted:
    """Simulate a small field, with some settings changed."""
    changes = {k: {**SMALL.get(k, {}), **sections.get(k, {})} for k in {*SMALL, *sections}}
    changes["scene"] = {"name": name, "seed": seed, **sections.get("scene", {})}
    scene = Scene().updated(changes)
    files = simulate_scene(scene, folder)
    refcat = folder / "gaia"
    build_refcat([files.reference], refcat, name="Gaia DR3")
    return Planted(files, refcat, scene)
