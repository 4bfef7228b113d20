"""Observatory exposures with SIP and lookup tables: the distortion stays, CRVAL and CD move.

The scenes are painted here, through astropy's own evaluation of the tables, and judged by it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from scipy.special import erf

from cynosure.data.catalogs.build import build_refcat
from cynosure.data.fits.wcsread import is_wcs_keyword
from cynosure.ground.errors import SettingError
from cynosure.pipelines.solve import solve, write

SHAPE = (300, 420)
SCALE_DEG = 0.05 / 3600.0
STEP = 20.0  # pixels from node to node: finer than any polynomial
GRID = [v.ravel() for v in np.meshgrid(np.linspace(0, 419, 29), np.linspace(0, 299, 23))]
LINEAR = {"CRVAL1", "CRVAL2", "CD1_1", "CD1_2", "CD2_1", "CD2_2"}


def cards(version):
    """Return the WCS cards of a chip: SIP, and the names of its tables."""
    header = fits.Header({
        "WCSAXES": 2, "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "CRPIX1": 210.0,
        "CRPIX2": 150.0, "CRVAL1": 150.0, "CRVAL2": 2.0 + 315 * SCALE_DEG * (version - 1),
        "CD1_1": -SCALE_DEG, "CD1_2": 3e-8, "CD2_1": 5e-8, "CD2_2": 1.01 * SCALE_DEG,
        "CUNIT1": "deg", "CUNIT2": "deg", "RADESYS": "ICRS", "WCSNAME": "IDC_0461802ej",
        "A_ORDER": 3, "B_ORDER": 3, "A_2_0": 3.1e-5 * version, "A_0_3": -2e-8, "B_1_1": -4e-5,
        "B_0_2": 1.7e-5,
    })
    for dis, record in (("CPDIS", "DP"), ("D2IMDIS", "D2IM")):
        for axis in (1, 2):
            header[f"{dis}{axis}"] = "LOOKUP"
            for text in (f"EXTVER: {2 * version - 2 + axis}", "NAXES: 2", "AXIS.1: 1", "AXIS.2: 2"):
                header.append((f"{record}{axis}", text), end=True)
    return header


def tables(version, npol, rng):
    units = []
    for name, amplitude in (("WCSDVARR", npol), ("D2IMARR", 0.01)):
        for axis in (1, 2):
            ny, nx = (int(n / STEP) + 2 for n in SHAPE)
            values = rng.normal(0, amplitude, (ny, nx)).astype(np.float32)
            unit = fits.ImageHDU(values, name=name, ver=2 * version - 2 + axis)
            for i in (1, 2):
                unit.header[f"CRPIX{i}"], unit.header[f"CRVAL{i}"] = 1.0, 1.0
                unit.header[f"CDELT{i}"] = STEP
            units.append(unit)
    return units


def painted(x, y, counts, rng, sigma=1.1):
    """Return an image of Gaussian stars, integrated over pixels, with noise."""
    ny, nx = SHAPE
    image = np.full(SHAPE, 100.0)
    for sx, sy, n in zip(x, y, counts):
        edges = (np.arange(m + 1) - 0.5 - s for m, s in ((ny, sy), (nx, sx)))
        row, column = (np.diff(0.5 * erf(e / (sigma * np.sqrt(2.0)))) for e in edges)
        image += n * np.outer(row, column)
    return rng.normal(image, np.sqrt(image)).astype(np.float32)


@dataclass(frozen=True)
class Scene:
    """An exposure, its catalogue, and the true WCS of each chip."""

    image: Path
    refcat: Path
    truth: list[WCS]

    def error_mas(self, path):
        """Return the error (chips, n, 2) of a solved file as astropy reads it."""
        out = []
        with fits.open(path) as units:
            for version, truth in enumerate(self.truth, start=1):
                wcs = WCS(units["SCI", version].header, units)
                new, true = (np.array(w.all_pix2world(*GRID, 0)) for w in (wcs, truth))
                out.append(((new - true) * 3.6e6).T)
        return np.array(out)


def make_scene(folder, seed=1, npol=0.08, n_stars=150, wrong_tables=False):
    """Write a two-chip exposure whose header is off by 0.6 arcsec and 0.03 deg."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    primary = fits.PrimaryHDU()
    for key, value in (
        ("TELESCOP", "HST"), ("INSTRUME", "ACS"), ("DETECTOR", "WFC"), ("ROOTNAME", "jtst01a1q"),
        ("DATE-OBS", "2016-01-01"), ("EXPSTART", 57388.0), ("EXPEND", 57388.01),
        ("EXPTIME", 350.0), ("IDCTAB", "jref$0461802ej_idc.fits"), ("CCDGAIN", 1.0),
        ("READNSEA", 1.0), ("FILTER1", "CLEAR1L"), ("FILTER2", "F814W"),
    ):
        primary.header[key] = value
    units, lookups, truth, rows = [primary], [], [], []
    turn = np.radians(0.03)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    for version in (1, 2):
        header, own = cards(version), tables(version, npol, rng)
        true = WCS(header, fits.HDUList([fits.PrimaryHDU(), *own]))
        ny, nx = SHAPE
        x, y = rng.uniform(4, nx - 5, n_stars), rng.uniform(4, ny - 5, n_stars)
        counts = 10 ** rng.uniform(3.6, 5.2, n_stars)
        ra, dec = true.all_pix2world(x, y, 0)
        rows.append(np.stack([ra, dec, 25.0 - 2.5 * np.log10(counts)]))
        science = fits.ImageHDU(painted(x, y, counts, rng), name="SCI", ver=version)
        # What the header says, off in position and roll about one point.
        cd = np.array([[header[f"CD{i}_{j}"] for j in (1, 2)] for i in (1, 2)])
        center = np.array([150.0, 2.0])
        away = rotation @ (np.array([header["CRVAL1"], header["CRVAL2"]]) - center)
        header["CRVAL1"], header["CRVAL2"] = center + away + np.array([0.5, -0.3]) / 3600.0
        for (i, j), value in np.ndenumerate(rotation @ cd):
            header[f"CD{i + 1}_{j + 1}"] = value
        science.header.update(header)
        science.header["BUNIT"], science.header["CCDCHIP"] = "ELECTRONS", 3 - version
        units.append(science)
        lookups += tables(version, npol, rng) if wrong_tables else own
        truth.append(true)
    image = folder / "jtst01a1q_flc.fits"
    fits.HDUList(units + lookups).writeto(image)
    ra, dec, mag = np.concatenate(rows, axis=1)
    catalog = Table({
        "source_id": np.arange(len(ra)) + 1, "ra": ra + rng.normal(0, 0.1 / 3.6e6, len(ra)),
        "dec": dec + rng.normal(0, 0.1 / 3.6e6, len(ra)), "ra_error": np.full(len(ra), 0.1),
        "dec_error": np.full(len(ra), 0.1), "pmra": np.zeros(len(ra)), "pmdec": np.zeros(len(ra)),
        "pmra_error": np.full(len(ra), 0.01), "pmdec_error": np.full(len(ra), 0.01),
        "parallax": np.zeros(len(ra)), "parallax_error": np.full(len(ra), 0.01),
        "ref_epoch": np.full(len(ra), 2016.0), "phot_g_mean_mag": mag,
    })
    catalog.write(folder / "stars.fits")
    build_refcat([folder / "stars.fits"], folder / "gaia", name="Gaia DR3")
    return Scene(image, folder / "gaia", truth)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return make_scene(tmp_path_factory.mktemp("flc") / "scene")


@pytest.fixture(scope="module")
def kept(scene):
    return solve(scene.image, scene.refcat)


@pytest.fixture(scope="module")
def written(scene, kept, tmp_path_factory):
    return write(kept, tmp_path_factory.mktemp("kept"), source=scene.image)[0]


def test_the_default_keeps_an_observatorys_distortion(kept):
    solution = kept.solution
    assert solution.status == "solved", solution
    assert solution.form == "keep"
    assert [c["fit"] for c in solution.chips] == ["rscale", "rscale"]
    assert any("distortion of the input WCS is kept" in note for note in solution.notes)
    assert solution.order == 3


def test_the_result_is_within_its_error_of_the_truth(scene, kept, written):
    error = scene.error_mas(written)
    claimed = np.array([c.wcs_error(*GRID).value for c in kept.chips.values()])
    assert 0.02 < claimed.mean() < 0.3
    assert np.sqrt(np.mean((error / claimed) ** 2)) < 2.0
    assert np.abs(error).max() < 5.0 * claimed.max()


def test_only_crval_and_cd_change(scene, written):
    with fits.open(scene.image) as old, fits.open(written) as new:
        for version in (1, 2):
            before, after = old["SCI", version].header, new["SCI", version].header
            lines = {c.keyword: c.image for c in after.cards}
            for card in before.cards:
                if is_wcs_keyword(card.keyword) and card.keyword not in {*LINEAR, "WCSNAME"}:
                    assert lines[card.keyword] == card.image
            assert {k for k in LINEAR if before[k] != after[k]} == LINEAR
            assert after["WCSNAME"].startswith("IDC_0461802ej-FIT_IMG")
        for unit in old:
            if unit.name in ("WCSDVARR", "D2IMARR"):
                assert new[unit.name, unit.ver].data.tobytes() == unit.data.tobytes()
                assert new[unit.name, unit.ver].header["CRVAL1"] == unit.header["CRVAL1"]


def test_what_is_reported_is_of_the_wcs_that_is_written(kept, written):
    rows = kept.match_rows
    with fits.open(written) as units:
        for chip in (0, 1):
            mine = rows[rows["chip"] == chip]
            wcs = WCS(units["SCI", chip + 1].header, units)
            ra, dec = wcs.all_pix2world(mine["x"], mine["y"], 0)
            assert np.abs(ra - mine["ra_deg"]).max() * 3.6e6 < 1e-3
            assert np.abs(dec - mine["dec_deg"]).max() * 3.6e6 < 1e-3
    used = rows["used"]
    solution = kept.solution
    assert solution.n_used == used.sum() > 150
    assert solution.rms_ra_mas == pytest.approx(np.sqrt(np.mean(rows["dra_mas"][used] ** 2)))
    assert 0.8 < solution.chi2_dof < 1.2
    assert solution.sigma0_mas < 0.3
    assert solution.dof == 2 * used.sum() - 4


def test_the_wcs_of_the_outcome_has_its_tables(kept, written):
    with fits.open(written) as units:
        for version, chip in enumerate(kept.chips.values(), start=1):
            wcs = WCS(units["SCI", version].header, units)
            at = [[10.0, 400.0], [20.0, 280.0]]
            assert np.allclose(chip.wcs.all_pix2world(*at, 0), wcs.all_pix2world(*at, 0),
                               rtol=0, atol=1e-12)
            assert chip.wcs.cpdis1 is not None


def test_the_tables_show_in_the_residuals_of_a_polynomial_only(scene, kept, tmp_path):
    flat = solve(scene.image, scene.refcat, form="tpv")
    assert flat.solution.form == "tpv"
    assert any("lookup tables of the input WCS are not part" in n for n in flat.solution.notes)
    # Tables of 0.08 px at the nodes are 2.4 mas rms between them.
    assert flat.solution.sigma0_mas > 1.5 > 5.0 * kept.solution.sigma0_mas
    assert flat.solution.rms_reserved_ra_mas > 1.5 * kept.solution.rms_reserved_ra_mas
    # What the polynomial leaves out is part of its error.
    assert min(flat.solution.wcs_error_mas.values()) > 1.5
    chip = next(iter(flat.chips.values()))
    sky, true = (np.array(w.all_pix2world(*GRID, 0)) for w in (chip.wcs, scene.truth[0]))
    pull = ((sky - true) * 3.6e6).T / chip.wcs_error(*GRID).value
    assert 0.5 < np.sqrt(np.mean(pull**2)) < 1.5


def test_a_repeat_changes_nothing(scene, written, tmp_path):
    again = solve(written, scene.refcat)
    assert again.solution.form == "keep"
    assert again.solution.status == "solved", again
    path = write(again, tmp_path, source=written)[0]
    assert np.abs(scene.error_mas(path) - scene.error_mas(written)).max() < 0.02


def test_wrong_tables_are_replaced_where_the_stars_ask_for_it(tmp_path):
    wrong = make_scene(tmp_path / "wrong", 3, npol=0.2, wrong_tables=True)
    outcome = solve(wrong.image, wrong.refcat)
    assert outcome.solution.form == "tpv"
    assert any("better than the distortion of the input WCS" in n for n in outcome.solution.notes)


def test_what_can_be_kept_and_what_not(scene, tmp_path):
    with pytest.raises(SettingError, match="keeps the distortion"):
        solve(scene.image, scene.refcat, form="keep", order=3)
    one = solve(f"{scene.image}[SCI,1]", scene.refcat, order=3)
    assert one.solution.form == "tpv"
    bare = tmp_path / "bare.fits"
    with fits.open(scene.image) as units:
        header = units["SCI", 1].header
        fits.PrimaryHDU(units["SCI", 1].data).writeto(bare)
        plain = fits.PrimaryHDU(units["SCI", 1].data)
        for key in (*sorted(LINEAR), "CRPIX1", "CRPIX2"):
            plain.header[key] = header[key]
        plain.header["CTYPE1"], plain.header["CTYPE2"] = "RA---TAN", "DEC--TAN"
        plain.header["EXPTIME"] = 350.0
        plain.writeto(tmp_path / "tan.fits")
    failed = solve(bare, scene.refcat, form="keep", center=(150.0, 2.0), scale=0.05).solution
    assert failed.status == "failed"
    assert "no WCS that could be kept" in failed.reason
    # Without tables or IDCTAB the default is a polynomial; a linear WCS can be kept on demand.
    assert solve(tmp_path / "tan.fits", scene.refcat).solution.form == "tpv"
    tan = solve(tmp_path / "tan.fits", scene.refcat, form="keep")
    assert tan.solution.form == "keep"
    header = next(iter(tan.chips.values())).header
    assert header["CTYPE1"] == "RA---TAN"
    assert (header["CRPIX1"], header["CRPIX2"]) == (210.0, 150.0)
    assert tan.solution.sigma0_mas > 10.0  # half a pixel of SIP
