"""An index is what its stars say, is read back bit by bit, and a damaged one is refused."""

import json
import shutil

import numpy as np
import pytest

from cynosure.geometry.match.index import (
    FIELD_STARS,
    HEADER,
    _thin,
    build_index,
    direction_of,
    open_index,
    project_one,
)
from cynosure.ground.errors import (
    CatalogDamaged,
    CatalogMissing,
    NotEnoughReference,
    OutputError,
    OutputExists,
    SettingError,
)
from cynosure.ground.sky import project, unit_vectors


def sphere(n, seed=0):
    """Stars all over the sky, of power-law magnitudes."""
    rng = np.random.default_rng(seed)
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    return ra, dec, 12 + np.log10(rng.uniform(1e-9, 1, n)) / 0.3


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    path = tmp_path_factory.mktemp("sky") / "sky.index"
    return build_index(*sphere(20_000), path, min_width_deg=8.0, max_width_deg=16.0)


@pytest.fixture
def copy(built, tmp_path):
    return shutil.copytree(built.path, tmp_path / "copy.index")


# ---- what it holds


def test_its_stars_are_those_of_the_table(built):
    ra, dec, mag = sphere(20_000)
    row = built.row
    assert len(np.unique(row)) == len(row)
    np.testing.assert_allclose(built.ra_deg, ra[row] % 360)
    np.testing.assert_array_equal(built.dec_deg, dec[row])
    np.testing.assert_array_equal(built.mag, mag[row].astype("f4"))
    np.testing.assert_allclose(built.rows.vector, unit_vectors(ra[row], dec[row]), atol=1e-7)
    # Of a clump the brightest stay; here all stars are about as dense, and the brightest are in.
    assert np.isin(np.argsort(mag)[:200], row).all()


def test_a_field_of_a_bands_width_holds_its_share(built):
    for band in built.bands[1:4]:
        per_field = len(band.star) * band.width_deg**2 / 41253
        assert 0.6 * FIELD_STARS < per_field < 1.7 * FIELD_STARS
    widths = [band.width_deg for band in built.bands]
    assert widths == sorted(widths)
    assert widths[0] < 8.0
    assert widths[-1] > 16.0


def test_codes_are_those_of_the_quads_and_lie_in_their_cells(built):
    band = built.bands[1]
    rng = np.random.default_rng(1)
    vector = unit_vectors(built.ra_deg, built.dec_deg)[band.star]
    margin, y_max = 0.05, 0.88
    for q in rng.integers(0, len(band.quad), 300):
        corner = vector[band.quad[q]]
        middle = corner.sum(axis=0) / np.linalg.norm(corner.sum(axis=0))
        p = np.array([project_one(*v, *middle) for v in corner])
        # A and B are the most distant; C and D in the frame where A is 0 and B is 1.
        assert abs(p[1] - p[0]) >= np.abs(p[:, None] - p[None, :]).max() - 1e-9
        c, d = (p[2:] - p[0]) / (p[1] - p[0])
        assert c.real <= d.real + 1e-9
        assert c.real + d.real <= 1 + 1e-9
        code = band.code[q] / 65535.0
        x, y = code[::2] * (1 + 2 * margin) - margin, code[1::2] * 2 * (y_max + margin)
        y -= y_max + margin
        np.testing.assert_allclose(x, [c.real, d.real], atol=2e-5)
        np.testing.assert_allclose(y, [c.imag, d.imag], atol=3e-5)
        number = 0
        for k in range(4):
            number = number * band.bins + int(band.code[q, k]) * band.bins // 65536
        assert band.cell[number] <= q < band.cell[number + 1]
    assert band.cell[-1] == len(band.quad)
    assert len(np.unique(np.sort(band.quad, axis=1), axis=0)) == len(band.quad)


def test_thinning_keeps_those_with_few_brighter_ones_near():
    ra, dec, _ = sphere(3000, seed=2)
    vector = unit_vectors(ra, dec)
    kept = _thin(np.radians(ra), np.radians(dec), vector, 0.15, 8)
    near = vector @ vector.T > np.cos(0.15)
    brighter = np.array([near[i, :i].sum() for i in range(len(ra))])
    assert set(kept) == set(np.flatnonzero(brighter < 8))


def test_the_tangent_plane_is_that_of_the_sky():
    rng = np.random.default_rng(3)
    for _ in range(20):
        ra0, dec0 = rng.uniform(0, 360), rng.uniform(-89, 89)
        ra, dec = ra0 + rng.uniform(-0.5, 0.5), np.clip(dec0 + rng.uniform(-0.5, 0.5), -90, 90)
        at, v = unit_vectors(ra0, dec0), unit_vectors(ra, dec)
        w = project_one(*v, *at)
        xi, eta = project(ra, dec, ra0, dec0)
        assert abs(w * 180 / np.pi - complex(-xi, eta)) < 1e-9
        np.testing.assert_allclose(direction_of(w, *at), v, atol=1e-12)


# ---- bits


def test_the_same_stars_give_the_same_bytes(built, tmp_path):
    order = np.random.default_rng(4).permutation(20_000)
    ra, dec, mag = sphere(20_000)
    again = build_index(ra, dec, mag, tmp_path / "a", min_width_deg=8.0, max_width_deg=16.0)
    mixed = build_index(
        ra[order], dec[order], mag[order], tmp_path / "b", min_width_deg=8.0, max_width_deg=16.0
    )
    files = sorted(p.name for p in built.path.iterdir())
    assert files == sorted(p.name for p in again.path.iterdir())
    for name in files:
        first = (built.path / name).read_bytes()
        assert first == (again.path / name).read_bytes(), name
        if name not in ("row.npy", HEADER):  # rows of the table differ with its order
            assert first == (mixed.path / name).read_bytes(), name
    np.testing.assert_array_equal(order[mixed.row], built.row)


def test_it_is_read_back_as_it_was_built(built):
    back = open_index(built.path, check=True)
    for name in ("ra_deg", "dec_deg", "mag", "row"):
        np.testing.assert_array_equal(getattr(back, name), getattr(built, name))
    assert back.n_quads == built.n_quads > 10_000
    assert (back.min_width_deg, back.max_width_deg) == (8.0, 16.0)
    assert "fields of 8 to 16 deg" in repr(back)
    assert str(built.path) in repr(back)


def test_rows_without_a_place_or_a_magnitude_are_left_out(tmp_path):
    ra, dec, mag = sphere(3000)
    ra[5], dec[6], mag[7] = np.nan, np.inf, np.nan
    index = build_index(ra, dec, mag, tmp_path / "i", min_width_deg=20.0, max_width_deg=20.0)
    assert not np.isin(index.row, [5, 6, 7]).any()
    assert ra[5] != ra[5]  # the input is left alone


# ---- what is refused


def test_a_folder_that_is_there_is_replaced_only_when_asked(copy):
    before = (copy / HEADER).read_bytes()
    with pytest.raises(OutputExists) as error:
        build_index(*sphere(2000), copy, min_width_deg=20.0, max_width_deg=20.0)
    assert str(copy) in str(error.value)
    assert (copy / HEADER).read_bytes() == before
    index = build_index(*sphere(2000), copy, min_width_deg=20.0, max_width_deg=20.0, overwrite=True)
    assert index.min_width_deg == 20.0
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]


@pytest.mark.parametrize("widths", [(0.0, 1.0), (-1.0, 5.0), (1.0, 1000.0), (np.nan, 5.0)])
def test_widths_out_of_range_are_refused(widths, tmp_path):
    with pytest.raises(SettingError, match=r"0\.01 to 100"):
        build_index(
            *sphere(100), tmp_path / "i", min_width_deg=widths[0], max_width_deg=widths[1]
        )
    assert list(tmp_path.iterdir()) == []


def test_widths_the_wrong_way_round_are_refused(tmp_path):
    with pytest.raises(SettingError, match="is above"):
        build_index(*sphere(100), tmp_path / "i", min_width_deg=5.0, max_width_deg=2.0)


@pytest.mark.parametrize("n", [0, 1, 4])
def test_too_few_stars_are_refused(n, tmp_path):
    with pytest.raises(NotEnoughReference):
        build_index(*sphere(n), tmp_path / "i")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        build_index(
            *sphere(2000), tmp_path / "file" / "i", min_width_deg=20.0, max_width_deg=20.0
        )
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_where_there_is_no_index(tmp_path):
    (tmp_path / "file").write_text("{}")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(CatalogMissing) as error:
            open_index(path)
        assert "cynosure index build" in error.value.hint


NAMES = ["ra_deg", "vector", "start", "band01_code", "band02_quad", "band00_cell"]


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_array_is_named(copy, name):
    file = copy / f"{name}.npy"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(CatalogDamaged, match=rf"{name}\.npy has \d+ bytes"):
        open_index(copy)


@pytest.mark.parametrize("name", NAMES)
def test_an_array_that_is_not_there_is_named(copy, name):
    (copy / f"{name}.npy").unlink()
    with pytest.raises(CatalogDamaged, match=rf"{name}\.npy is missing"):
        open_index(copy)


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_is_found_by_the_check(copy, name):
    file = copy / f"{name}.npy"
    content = bytearray(file.read_bytes())
    content[-9] ^= 0x10
    file.write_bytes(content)
    with pytest.raises(CatalogDamaged, match=rf"{name}\.npy: its checksum"):
        open_index(copy, check=True)


def test_rows_that_begin_nowhere_are_refused_without_the_check(copy):
    # A compiled loop would read beyond its arrays.
    file = copy / "band01_start.npy"
    start = np.load(file)
    start[3] = 10**9
    np.save(file, start)
    with pytest.raises(CatalogDamaged, match="band 1"):
        open_index(copy)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"schema": "cynosure.index/0"}', "\x00\xff"]
)
def test_a_damaged_header_is_refused(copy, text):
    (copy / HEADER).write_text(text, encoding="latin-1")
    with pytest.raises(CatalogDamaged):
        open_index(copy)


def test_a_header_that_contradicts_its_arrays_is_refused(copy):
    header = json.loads((copy / HEADER).read_text())
    header["bands"][1]["bins"] += 1
    (copy / HEADER).write_text(json.dumps(header))
    with pytest.raises(CatalogDamaged, match="band 1: lengths disagree"):
        open_index(copy)
