"""Reference catalogues: what is planted comes back, from any table, by any tool's HATS."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from cynosure.data.catalogs import build as refbuild
from cynosure.data.catalogs import tablefiles
from cynosure.data.catalogs.build import build_refcat
from cynosure.data.catalogs.columns import catalog_word, unit_scale
from cynosure.data.catalogs.coverage import Coverage
from cynosure.data.catalogs.hats import HatsStore, partition_path, read_properties
from cynosure.data.catalogs.location import Place
from cynosure.data.catalogs.refcat import RefCat, open_refcat
from cynosure.data.catalogs.verify import verify_refcat
from cynosure.data.tables import ASTROMETRY, REFERENCE
from cynosure.ground import sky
from cynosure.ground.errors import (
    CatalogDamaged,
    CatalogMissing,
    OutputError,
    OutputExists,
    SettingError,
)

DATA = Path(os.environ.get("CYNOSURE_TEST_DATA", Path(__file__).parents[3] / "shared/data"))
UNITS = {
    "ra": "deg", "dec": "deg", "ra_error": "mas", "dec_error": "mas", "parallax": "mas",
    "parallax_error": "mas", "pmra": "mas / yr", "pmdec": "mas / yr", "pmra_error": "mas / yr",
    "pmdec_error": "mas / yr", "ref_epoch": "yr", "phot_g_mean_mag": "mag", "bp_rp": "mag",
}


def planted(n=6000, seed=1, circle=None):
    """Return stars by Gaia's names: over the sky, or in a circle (ra, dec, radius)."""
    rng = np.random.default_rng(seed)
    height = rng.uniform(-1, 1, n)
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(height))
    if circle is not None:
        cap = 1 - np.cos(np.radians(circle[2]))
        radius = np.degrees(np.arccos(1 - cap * rng.uniform(size=n)))
        angle = rng.uniform(0, 2 * np.pi, n)
        tan = np.tan(np.radians(radius))
        ra, dec = sky.deproject(
            np.degrees(tan * np.cos(angle)), np.degrees(tan * np.sin(angle)), *circle[:2]
        )
    pm = rng.normal(0, 8, (2, n))
    columns = {
        "source_id": rng.permutation(n).astype(np.int64) + (1 << 60),
        "ra": ra, "dec": dec, "ref_epoch": np.full(n, 2016.0),
        "ra_error": rng.uniform(0.02, 1, n), "dec_error": rng.uniform(0.02, 1, n),
        "parallax": rng.exponential(1, n), "parallax_error": rng.uniform(0.02, 1, n),
        "pmra": pm[0], "pmra_error": rng.uniform(0.02, 1, n),
        "pmdec": pm[1], "pmdec_error": rng.uniform(0.02, 1, n),
        "ra_dec_corr": rng.uniform(-0.9, 0.9, n).astype(np.float32),
        "phot_g_mean_mag": rng.uniform(6, 20, n).astype(np.float32),
        "bp_rp": rng.uniform(-0.5, 3, n).astype(np.float32),
        "phot_variable": rng.uniform(size=n) > 0.5,
    }
    return columns


def table_of(columns, units=None):
    units = UNITS if units is None else units
    return Table({k: u.Quantity(v, units[k]) if k in units else v for k, v in columns.items()})


def arrow_of(columns, units=None):
    units = UNITS if units is None else units
    fields = [
        pa.field(k, pa.array(v).type, metadata={"unit": units[k]} if k in units else None)
        for k, v in columns.items()
    ]
    return pa.table([pa.array(v) for v in columns.values()], schema=pa.schema(fields))


def parquet(path, columns, units=None):
    pq.write_table(arrow_of(columns, units), path)
    return path


def votable(path, columns, units=None, overflow=False):
    """Write a VOTable by hand; NaN is an empty cell."""
    units = UNITS if units is None else units
    kinds = {"f8": "double", "f4": "float", "i8": "long", "b1": "boolean"}
    fields = "".join(
        f'<FIELD name="{k}" datatype="{kinds[np.asarray(v).dtype.str[1:]]}"'
        + (f' unit="{units[k].replace(" ", "")}"' if k in units else "") + "/>"
        for k, v in columns.items()
    )
    cells = [["" if x != x else repr(x) for x in np.asarray(v).tolist()] for v in columns.values()]
    rows = "".join("<TR>" + "".join(f"<TD>{c}</TD>" for c in r) + "</TR>" for r in zip(*cells))
    path.write_text(
        '<?xml version="1.0"?><VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">'
        f'<RESOURCE type="results"><INFO name="QUERY_STATUS" value="OK"/><TABLE>{fields}<DATA>'
        f"<TABLEDATA>{rows}</TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>"
    )
    return path


def inside(columns, ra, dec, radius, low=-np.inf, high=np.inf):
    """Return the identifiers of planted stars within a circle, brightest first, by brute force."""
    far = sky.separation_deg(columns["ra"], columns["dec"], ra, dec)
    mag = columns["phot_g_mean_mag"]
    rows = np.flatnonzero((far <= radius) & (mag >= low) & (mag <= high))
    return columns["source_id"][rows[np.lexsort((columns["source_id"][rows], mag[rows]))]].tolist()


def tree(folder):
    """Return the bytes of a folder, as one checksum a file."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(folder).rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def stars():
    return planted()


@pytest.fixture(scope="module")
def built(stars, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    table = parquet(folder / "stars.parquet", stars)
    build_refcat([table], folder / "cat", name="Gaia DR3", max_rows_per_partition=300)
    return folder / "cat"


# --- build and read ---------------------------------------------------------------------------

CIRCLES = [
    (10.0, 20.0, 8.0), (0.0, 0.0, 10.0), (359.9, -89.9, 12.0), (77.0, 90.0, 5.0),
    (200.0, -41.8, 30.0), (123.0, 45.0, 180.0), (300.0, 10.0, 0.3),
]


@pytest.mark.parametrize("circle", CIRCLES)
def test_a_cone_has_the_planted_stars_brightest_first(built, stars, circle):
    catalog = open_refcat(built)
    found = catalog.cone(*circle)
    assert found.dtype == REFERENCE.dtype
    assert found["ref_id"].tolist() == inside(stars, *circle)
    cut = catalog.cone(*circle, min_mag=9.0, max_mag=14.5)
    assert cut["ref_id"].tolist() == inside(stars, *circle, 9.0, 14.5)
    few = catalog.cone(*circle, max_rows=7)
    assert few["ref_id"].tolist() == inside(stars, *circle)[:7]


def test_every_number_of_every_star_comes_back(built, stars):
    found = open_refcat(built).all()
    found = found[np.argsort(found["ref_id"])]
    rank = np.argsort(stars["source_id"])
    names = {
        "ref_id": "source_id", "ra_deg": "ra", "dec_deg": "dec", "ref_epoch_yr": "ref_epoch",
        "mag": "phot_g_mean_mag", "color": "bp_rp", "ra_error_mas": "ra_error",
        "dec_error_mas": "dec_error", "parallax_mas": "parallax",
        "parallax_error_mas": "parallax_error", "pm_ra_mas_yr": "pmra", "pm_dec_mas_yr": "pmdec",
        "pm_ra_error_mas_yr": "pmra_error", "pm_dec_error_mas_yr": "pmdec_error",
        "ra_dec_corr": "ra_dec_corr",
    }
    for ours, gaia in names.items():
        assert (found[ours] == stars[gaia][rank]).all(), ours
    for name in set(REFERENCE.names) - set(names) - {"good"}:
        assert np.isnan(found[name]).all(), name
    assert found["good"].all()


@pytest.mark.parametrize("suffix", ["fits", "fits.gz", "ecsv", "csv", "xml", "csv.gz", "parquet"])
def test_every_kind_of_table_is_the_same_catalogue(stars, tmp_path, suffix):
    path = tmp_path / f"gaia_dr3.{suffix}"
    few = {k: v[:500] for k, v in stars.items()}
    if suffix == "parquet":
        parquet(path, few)
    elif suffix == "xml":
        votable(path, few)
    else:
        formats = {"ecsv": "ascii.ecsv", "csv": "ascii.csv", "csv.gz": "ascii.ecsv"}
        table_of(few).write(path, **({"format": formats[suffix]} if suffix in formats else {}))
    plain = open_refcat(path)
    hats = build_refcat([path], tmp_path / "cat")
    assert plain.name == hats.name == "GAIADR3"
    for catalog in (plain, hats):
        found = catalog.all()
        assert found["ref_id"].tolist() == inside(few, 0, 0, 180)
        rank = np.argsort(few["source_id"])[np.argsort(np.argsort(found["ref_id"]))]
        for ours, gaia in (("ra_deg", "ra"), ("pm_dec_mas_yr", "pmdec"), ("color", "bp_rp")):
            assert found[ours] == pytest.approx(few[gaia][rank], rel=1e-14), ours
    assert plain.cone(10, 20, 40)["ref_id"].tolist() == hats.cone(10, 20, 40)["ref_id"].tolist()
    assert not verify_refcat(tmp_path / "cat")


def test_masked_values_are_unknown(tmp_path):
    columns = {k: v[:6] for k, v in planted(6).items()}
    table = Table(table_of(columns), masked=True)
    table["pmra"].mask[2] = table["parallax"].mask[2] = table["phot_g_mean_mag"].mask[4] = True
    for name in ("a.ecsv", "a.xml", "a.fits"):
        if name == "a.xml":
            filled = {k: np.asarray(v, float) if np.any(table[k].mask) else np.asarray(v)
                      for k, v in columns.items()}
            for k in filled:
                if np.any(table[k].mask):
                    filled[k] = np.where(table[k].mask, np.nan, filled[k])
            votable(tmp_path / name, filled)
        else:
            table.write(tmp_path / name)
        found = open_refcat(tmp_path / name).all()
        assert found["ref_id"][-1] == columns["source_id"][4]  # of unknown magnitude: last
        assert np.isnan(found["mag"]).sum() == 1
        unknown = found["ref_id"][np.isnan(found["pm_ra_mas_yr"])]
        assert unknown.tolist() == [columns["source_id"][2]]
        build_refcat([tmp_path / name], tmp_path / "cat", overwrite=True)
        again = open_refcat(tmp_path / "cat").all()
        for column in REFERENCE.names:
            np.testing.assert_array_equal(again[column], found[column])
    assert len(open_refcat(tmp_path / "cat").cone(0, 0, 180, max_mag=30)) == 5


def test_the_same_rows_give_the_same_bytes(stars, tmp_path):
    half = {k: v[:3000] for k, v in stars.items()}
    other = {k: v[2500:] for k, v in stars.items()}
    a, b = parquet(tmp_path / "a.parquet", half), parquet(tmp_path / "b.parquet", other)
    one = build_refcat([a, b], tmp_path / "one", name="x", max_rows_per_partition=500)
    build_refcat([b, a], tmp_path / "two", name="x", max_rows_per_partition=500)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert one.all()["ref_id"].tolist() == inside(stars, 0, 0, 180)
    assert "500 duplicate rows were left out" in one.notes


def test_more_rows_than_memory_give_the_same_bytes(stars, tmp_path, monkeypatch):
    parts = []
    for k in range(5):
        part = {name: v[k::5] for name, v in stars.items()}
        parts.append(parquet(tmp_path / f"{k}.parquet", part))
    build_refcat(parts, tmp_path / "one", name="x", max_rows_per_partition=400)
    monkeypatch.setattr(refbuild, "ROWS_IN_MEMORY", 2000)
    monkeypatch.setattr(refbuild, "SPILL_ORDER", 1)
    build_refcat(parts, tmp_path / "two", name="x", max_rows_per_partition=400)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_dense_cells_are_cut_until_they_fit(tmp_path):
    columns = planted(5000, 3, circle=(150.0, 2.0, 0.2))
    sparse = planted(200, 4)
    sparse["source_id"] += 10_000
    tables = [parquet(tmp_path / "d.parquet", columns), parquet(tmp_path / "s.parquet", sparse)]
    build_refcat(tables, tmp_path / "cat", max_rows_per_partition=400)
    store = HatsStore.open(Place(tmp_path / "cat"))
    assert len(set(store.orders.tolist())) > 3
    counts = [sum(t.num_rows for t in store.read(k, None, None)) for k in range(len(store.pixels))]
    assert max(counts) <= 400
    assert sum(counts) == 5200
    assert not verify_refcat(tmp_path / "cat")


def test_extra_columns_units_and_nothing_else_are_stored(built):
    schema = pq.read_schema(built / "dataset/_common_metadata")
    assert schema.names[0] == "_healpix_29"
    assert "phot_variable" in schema.names
    units = {f.name: (f.metadata or {}).get(b"unit", b"").decode() for f in schema}
    assert units["ra"] == "deg"
    assert units["pmra"] == "mas/yr"
    assert units["phot_variable"] == ""
    properties = read_properties((built / "hats.properties").read_text())
    assert (built / "hats.properties").read_bytes() == (built / "properties").read_bytes()
    assert properties["hats_nrows"] == "6000"
    assert {p.name for p in built.iterdir()} == {
        "hats.properties", "properties", "partition_info.csv", "dataset"}
    assert (built / "partition_info.csv").read_text().startswith("Norder,Npix\n")


def test_info_says_what_is_known(built):
    info = open_refcat(built).info()
    assert info["name"] == "GAIADR3"
    assert info["rows"] == 6000
    assert info["epoch_yr"] == 2016.0
    assert info["mag_range"] == pytest.approx([6, 20], abs=0.02)
    assert info["sky_fraction"] == pytest.approx(1.0, abs=0.02)
    assert info["order"][0] < info["order"][1] or info["order"][0] >= 1
    assert info["columns"]["pm_ra_mas_yr"] == "pmra"
    assert "pmra_pmdec_corr" in info["unknown"]
    assert "ra_dec_corr" not in info["unknown"]


def test_a_catalogue_can_be_sent_to_another_process(built, stars):
    catalog = open_refcat(built)
    catalog.cone(*CIRCLES[0])
    copy = pickle.loads(pickle.dumps(catalog))
    assert copy.cone(*CIRCLES[0])["ref_id"].tolist() == inside(stars, *CIRCLES[0])
    assert open_refcat(catalog) is catalog


@pytest.mark.parametrize(
    "circle", [(np.nan, 0, 1), (0, 91, 1), (0, -90.1, 1), (0, 0, -1), (0, 0, np.inf)]
)
def test_no_circle_is_refused(built, circle):
    with pytest.raises(SettingError):
        open_refcat(built).cone(*circle)


# --- speed: only what is needed ---------------------------------------------------------------


def test_only_the_columns_and_row_groups_of_the_circle_are_read(tmp_path, monkeypatch):
    columns = planted(40_000, 5, circle=(80.0, 30.0, 3.0))
    monkeypatch.setattr(refbuild, "ROWS_PER_GROUP", 500)
    build_refcat([parquet(tmp_path / "a.parquet", columns)], tmp_path / "cat")
    calls = []
    plain = pq.ParquetFile.read_row_groups

    def counted(self, groups, columns=None, **kwargs):
        calls.append((len(groups), self.num_row_groups, columns))
        return plain(self, groups, columns=columns, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counted)
    found = open_refcat(tmp_path / "cat").cone(80.5, 30.5, 0.2)
    assert found["ref_id"].tolist() == inside(columns, 80.5, 30.5, 0.2)
    assert len(found) > 50
    (groups, total, read), = calls
    assert total == 54  # the larger of two partitions
    assert groups <= 8
    assert "phot_variable" not in read


def test_a_cone_imports_neither_pandas_nor_astropy(built):
    code = (
        "import sys; from cynosure.data.catalogs.refcat import open_refcat\n"
        f"assert len(open_refcat({str(built)!r}).cone(0, 0, 10, max_mag=18)) > 10\n"
        "print([m for m in ('pandas', 'astropy', 'pyarrow.dataset', 'scipy', 'fsspec') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# --- others' catalogues -----------------------------------------------------------------------


def hats_by_hand(folder, columns, orders=(0, 2), index="_healpix_29", suffix=".parquet",
                 properties="hats.properties", metadata=True, extra=""):
    """Write a catalogue as the format's own tools lay it out: no units, Gaia's names."""
    cells = sky.healpix_cell(columns["ra"], columns["dec"])
    rank = np.argsort(cells, kind="stable")
    cells = cells[rank]
    if index == "_hipscat_index":
        values = ((cells >> 20).astype(np.uint64) << np.uint64(22)) + np.arange(len(cells)) % 7
        values = np.sort(values.astype(np.uint64))
    else:
        values = cells
    whole = pa.table({index: values, **{k: np.asarray(v)[rank] for k, v in columns.items()}})
    lines = []
    dataset = folder / "dataset"
    collected = []
    for base in range(12):
        order = orders[base % len(orders)]
        for pixel in range(base << (2 * order), (base + 1) << (2 * order)):
            rows = np.flatnonzero(cells >> (2 * (29 - order)) == pixel)
            if not len(rows):
                continue
            path = folder / partition_path(order, pixel, suffix)
            if suffix == "/":
                path.mkdir(parents=True)
                (path / "_ignored").write_text("x")
                half = len(rows) // 2
                pq.write_table(whole.take(rows[:half]), path / "part0.parquet")
                pq.write_table(whole.take(rows[half:]), path / "part1.parquet")
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(whole.take(rows), path, metadata_collector=collected)
                collected[-1].set_file_path(path.relative_to(dataset).as_posix())
            lines.append(f"{order},{pixel}")
    if metadata:
        pq.write_metadata(whole.schema, dataset / "_common_metadata")
        (folder / "partition_info.csv").write_text("\n".join(["Norder,Npix", *lines]))
    if suffix != "/":
        pq.write_metadata(whole.schema, dataset / "_metadata", metadata_collector=collected)
    (folder / properties).write_text(
        "#HATS catalog\nobs_collection=gaia_dr3\ndataproduct_type=object\n"
        f"hats_nrows={len(cells)}\nhats_col_ra=ra\nhats_col_dec=dec\nhats_npix_suffix={suffix}\n"
        + (f"hats_col_healpix={index}\nhats_col_healpix_order=29\n" if "healpix" in index else "")
        + extra
    )
    return folder


@pytest.mark.parametrize(
    "kind",
    [{}, {"suffix": "/"}, {"index": "_hipscat_index"}, {"properties": "properties"},
     {"metadata": False}, {"orders": (1, 3)}, {"suffix": ".parq"}],
    ids=str,
)
def test_the_format_of_other_tools_is_read(stars, tmp_path, kind):
    catalog = open_refcat(hats_by_hand(tmp_path, stars, **kind))
    assert catalog.name == "GAIADR3"
    for circle in CIRCLES[:4]:
        assert catalog.cone(*circle)["ref_id"].tolist() == inside(stars, *circle)
    assert len(catalog.all()) == 6000
    assert catalog.info()["rows"] == 6000
    assert not verify_refcat(tmp_path)


def test_a_collection_is_its_main_catalogue(stars, tmp_path):
    hats_by_hand(tmp_path / "gaia" / "main", stars)
    (tmp_path / "gaia" / "collection.properties").write_text(
        "#HATS Collection\nobs_collection=gaia\nhats_primary_table_url=main\nall_margins=margin\n"
    )
    catalog = open_refcat(tmp_path / "gaia")
    assert catalog.cone(*CIRCLES[0])["ref_id"].tolist() == inside(stars, *CIRCLES[0])
    (tmp_path / "gaia" / "collection.properties").write_text("#HATS Collection\nname=x\n")
    with pytest.raises(CatalogDamaged, match="hats_primary_table_url"):
        open_refcat(tmp_path / "gaia")


def test_columns_that_the_properties_name_are_taken(tmp_path):
    columns = planted(500, 9)
    moved = {"meanRa": columns["ra"], "meanDec": columns["dec"]}
    columns["ra"], columns["dec"] = columns["ra"].copy(), columns["dec"].copy()
    folder = hats_by_hand(tmp_path, {**columns, **moved})
    text = (folder / "hats.properties").read_text()
    (folder / "hats.properties").write_text(
        text.replace("hats_col_ra=ra", "hats_col_ra=meanRa").replace("_dec=dec", "_dec=meanDec")
    )
    assert open_refcat(folder).meaning.column("ra_deg") == "meanRa"
    assert len(open_refcat(folder).all()) == 500


def test_a_margin_is_not_a_catalogue(stars, tmp_path):
    hats_by_hand(tmp_path, stars, extra="dataproduct_type=margin\n")
    with pytest.raises(CatalogMissing, match="margin"):
        open_refcat(tmp_path)


def test_positions_that_contradict_their_cells_are_refused(tmp_path):
    columns = planted(500, 10)
    folder = hats_by_hand(tmp_path, columns)
    for path in sorted(folder.glob("dataset/Norder=*/Dir=*/Npix=*")):
        table = pq.read_table(path, partitioning=None)
        swapped = table.set_column(
            table.column_names.index("ra"), "ra", pa.array(np.radians(table["ra"].to_numpy()))
        )
        pq.write_table(swapped, path)
    with pytest.raises(CatalogDamaged, match="not degrees"):
        open_refcat(folder).cone(10, 10, 20)
    assert any("are not in the cell" in p for p in verify_refcat(folder))


def test_hats_opens_what_is_built(built, stars):
    hats = pytest.importorskip("hats")
    from hats.io.validation import is_valid_catalog
    from hats.pixel_math.spatial_index import compute_spatial_index

    catalog = hats.read_hats(built)
    assert catalog.catalog_info.total_rows == 6000
    assert catalog.catalog_info.ra_column == "ra"
    store = HatsStore.open(Place(built))
    theirs = {(p.order, p.pixel) for p in catalog.get_healpix_pixels()}
    assert theirs == set(zip(store.orders.tolist(), store.pixels.tolist()))
    assert is_valid_catalog(built, strict=True)
    parts = range(len(store.pixels))
    table = pa.concat_tables([t for k in parts for t in store.read(k, None, None)])
    index = compute_spatial_index(table["ra"].to_numpy(), table["dec"].to_numpy())
    assert (index == table["_healpix_29"].to_numpy()).all()
    chosen = catalog.filter_by_cone(10.0, 20.0, 8 * 3600)
    found = {(p.order, p.pixel) for p in chosen.get_healpix_pixels()}
    ours = store.overlapping(sky.cone_ranges(10.0, 20.0, 8.0))
    assert {(int(store.orders[k]), int(store.pixels[k])) for k in ours} <= found


def test_lsdb_opens_what_is_built(built, stars):
    lsdb = pytest.importorskip("lsdb", reason="lsdb is not installed")
    found = lsdb.open_catalog(str(built)).cone_search(10.0, 20.0, 8 * 3600).compute()
    assert set(found["source_id"]) == set(inside(stars, 10.0, 20.0, 8.0))


def test_a_catalogue_in_any_file_system_is_read(built, stars):
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    memory = fsspec.filesystem("memory")
    memory.put(str(built), "/bucket/gaia/cat", recursive=True)
    memory.pipe_file("/bucket/gaia/collection.properties", b"hats_primary_table_url=cat\n")
    try:
        for url in ("memory://bucket/gaia/cat", "memory://bucket/gaia"):
            catalog = open_refcat(url)
            assert catalog.cone(*CIRCLES[0])["ref_id"].tolist() == inside(stars, *CIRCLES[0])
        assert verify_refcat("memory://bucket/gaia/cat") == []
        with pytest.raises(CatalogMissing, match="not a HATS catalogue"):
            open_refcat("memory://bucket")
    finally:
        memory.rm("/bucket", recursive=True)


# --- units and names --------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.sampled_from(["deg", "mas", "mas/yr", "yr", "mag"]),
    st.sampled_from(["deg", "rad", "arcsec", "mas", "arcmin", "uas", "hourangle", "arcsec/yr",
                     "mas / yr", "mas yr-1", "mas.yr**-1", "deg/yr", "rad yr-1", "yr", "a", "mag",
                     "km/s", "m", "Jy", "mas/d", "arcsec / h", "degree", "nonsense", "1e-3 deg"]),
)
def test_units_convert_as_in_astropy_or_not_at_all(wanted, unit):
    try:
        expected = float(u.Unit(unit).to(u.Unit(wanted)))
    except (ValueError, u.UnitConversionError):
        expected = {"degree": {"deg": 1.0, "mas": 3.6e6}}.get(unit, {}).get(wanted)
    scale = unit_scale(unit, wanted)
    if expected is None or (unit == "a" and wanted != "yr"):
        assert scale is None
    else:
        assert scale == pytest.approx(expected, rel=1e-12)


def test_declared_units_are_converted(tmp_path):
    stars = planted(300, 6)
    units = {"ra": "rad", "dec": "arcmin", "ra_error": "arcsec", "dec_error": "deg",
             "pmra": "arcsec/yr", "pmdec": "deg / yr", "parallax": "uas", "pmra_error": "rad yr-1"}
    table = {k: u.Quantity(v, UNITS[k]).to_value(units.get(k, UNITS[k])) if k in UNITS else v
             for k, v in stars.items()}
    path = parquet(tmp_path / "a.parquet", table, UNITS | units)
    for catalog in (open_refcat(path), build_refcat([path], tmp_path / "cat")):
        found = catalog.all()
        rank = np.argsort(stars["source_id"])[np.argsort(np.argsort(found["ref_id"]))]
        for ours, gaia in (("ra_deg", "ra"), ("dec_deg", "dec"), ("ra_error_mas", "ra_error"),
                           ("dec_error_mas", "dec_error"), ("pm_ra_mas_yr", "pmra"),
                           ("pm_dec_mas_yr", "pmdec"), ("parallax_mas", "parallax"),
                           ("pm_ra_error_mas_yr", "pmra_error")):
            assert found[ours] == pytest.approx(stars[gaia][rank], rel=1e-12, abs=1e-12), ours


@pytest.mark.parametrize(
    ("column", "unit", "expected"),
    [("pmra", "km/s", "mas/yr"), ("ra", "m", "deg"), ("phot_g_mean_mag", "Jy", "mag"),
     ("ra_error", "mag", "mas"), ("ref_epoch", "K", "yr"), ("dec", "furlong", "deg")],
)
def test_a_unit_of_another_quantity_is_refused(tmp_path, column, unit, expected):
    path = parquet(tmp_path / "a.parquet", planted(30), UNITS | {column: unit})
    with pytest.raises(CatalogDamaged) as caught:
        open_refcat(path)
    for fact in (column, unit, expected, str(path)):
        assert fact in str(caught.value)
    with pytest.raises(CatalogDamaged):
        build_refcat([path], tmp_path / "cat")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dec": lambda v: v * 1.2}, "not degrees"),
        ({"ra": lambda v: v * 15}, "not degrees"),
        ({"ra": np.radians, "dec": np.radians}, "radians"),
        ({"ra": lambda v: v / 15}, "hours"),
    ],
)
def test_numbers_that_cannot_be_degrees_are_refused(tmp_path, change, says):
    stars = planted(2000, 7)
    for column, function in change.items():
        stars[column] = function(stars[column])
    path = parquet(tmp_path / "a.parquet", stars, units={})
    with pytest.raises(CatalogDamaged, match=says):
        open_refcat(path)


def test_numbers_too_small_for_mas_are_unknown_not_believed(tmp_path):
    stars = planted(2000, 8)
    for name in ("pmra", "pmdec", "ra_error"):
        stars[name] = stars[name] / 3.6e6
    catalog = open_refcat(parquet(tmp_path / "gaia_dr3.parquet", stars, units={}))
    found = catalog.all()
    assert np.isnan(found["pm_ra_mas_yr"]).all()
    assert np.isnan(found["pm_ra_error_mas_yr"]).all()
    assert (found["ra_error_mas"] == 0.5).all()
    assert (found["dec_error_mas"] < 1.0001).all()
    assert sum("too small for mas" in n for n in catalog.notes) == 3


def test_the_names_of_vizier_scamp_and_lsst_are_known(tmp_path):
    s = planted(50, 11)
    vizier = {"RAJ2000": s["ra"], "DEJ2000": s["dec"], "e_RAJ2000": s["ra_error"] / 1000,
              "e_DEJ2000": s["dec_error"] / 1000, "pmRA": s["pmra"], "pmDE": s["pmdec"],
              "Plx": s["parallax"], "Gmag": s["phot_g_mean_mag"], "BP-RP": s["bp_rp"],
              "Source": s["source_id"], "RADEcor": s["ra_dec_corr"]}
    units = {"RAJ2000": "deg", "DEJ2000": "deg", "e_RAJ2000": "arcsec", "e_DEJ2000": "arcsec",
             "pmRA": "mas/yr", "pmDE": "mas/yr", "Plx": "mas", "Gmag": "mag", "BP-RP": "mag"}
    votable(tmp_path / "gaia dr3.xml", vizier, units)
    lsst = {"coord_ra": np.radians(s["ra"]), "coord_dec": np.radians(s["dec"]),
            "pm_ra": np.radians(s["pmra"] / 3.6e6), "pm_dec": np.radians(s["pmdec"] / 3.6e6),
            "id": s["source_id"], "mag": s["phot_g_mean_mag"], "epoch": np.full(50, 57388.5)}
    parquet(tmp_path / "lsst.parquet", lsst,
            {"coord_ra": "rad", "coord_dec": "rad", "pm_ra": "rad/yr", "pm_dec": "rad/yr",
             "epoch": "d"})
    ldac = fits.BinTableHDU(Table({"XWIN_WORLD": s["ra"] * u.deg, "YWIN_WORLD": s["dec"] * u.deg,
                                   "ERRAWIN_WORLD": s["ra_error"] / 3.6e6 * u.deg,
                                   "MAG": s["phot_g_mean_mag"] * u.mag,
                                   "OBSDATE": s["ref_epoch"] * u.yr}), name="LDAC_OBJECTS")
    head = fits.BinTableHDU(Table({"Field Header Card": ["x" * 80]}), name="LDAC_IMHEAD")
    fits.HDUList([fits.PrimaryHDU(), head, ldac]).writeto(tmp_path / "gaia-dr3.cat")
    rank = np.argsort(s["phot_g_mean_mag"])
    for name in ("gaia dr3.xml", "lsst.parquet", "gaia-dr3.cat"):
        found = open_refcat(tmp_path / name).all()
        assert found["ra_deg"] == pytest.approx(s["ra"][rank], rel=1e-12), name
        assert found["dec_deg"] == pytest.approx(s["dec"][rank], rel=1e-12, abs=1e-12), name
        assert found["ref_epoch_yr"] == pytest.approx(2016.0, abs=1e-3), name
        if "cat" not in name:
            assert found["pm_ra_mas_yr"] == pytest.approx(s["pmra"][rank], rel=1e-9), name
        if "lsst" not in name:
            assert found["ra_error_mas"] == pytest.approx(s["ra_error"][rank], rel=1e-5), name
    built = build_refcat([tmp_path / "gaia dr3.xml"], tmp_path / "cat")
    assert built.store.schema().names[1:6] == ["source_id", "ra", "dec", "phot_g_mean_mag", "bp_rp"]
    assert built.all()["ra_dec_corr"] == pytest.approx(s["ra_dec_corr"][rank])


def test_colour_is_made_of_two_magnitudes_and_a_v_magnitude_stays_one(tmp_path):
    s = planted(40, 12)
    columns = {"ra": s["ra"], "dec": s["dec"], "vt_mag": s["phot_g_mean_mag"],
               "phot_bp_mean_mag": s["phot_g_mean_mag"] + 0.4,
               "phot_rp_mean_mag": s["phot_g_mean_mag"] - 0.5}
    catalog = build_refcat([parquet(tmp_path / "tycho2.parquet", columns, {})], tmp_path / "cat")
    assert "vt_mag" in catalog.store.schema().names
    assert "phot_g_mean_mag" not in catalog.store.schema().names
    assert catalog.all()["color"] == pytest.approx(0.9, abs=1e-5)


def test_negative_right_ascensions_turn_round(tmp_path):
    s = planted(100, 13)
    s["ra"] = np.where(s["ra"] > 180, s["ra"] - 360, s["ra"])
    for catalog in (open_refcat(parquet(tmp_path / "a.parquet", s)),
                    build_refcat([tmp_path / "a.parquet"], tmp_path / "cat")):
        found = catalog.all()
        assert ((found["ra_deg"] >= 0) & (found["ra_deg"] < 360)).all()
        assert sorted(found["ra_deg"]) == pytest.approx(sorted(s["ra"] % 360), abs=1e-10)
    assert not verify_refcat(tmp_path / "cat")


@pytest.mark.parametrize("missing", ["ra", "dec", "phot_g_mean_mag"])
def test_position_and_magnitude_are_needed(tmp_path, missing):
    s = planted(20)
    del s[missing]
    with pytest.raises(CatalogDamaged, match="no column for") as caught:
        open_refcat(parquet(tmp_path / "a.parquet", s))
    assert "source_id" in str(caught.value)  # it says what it found
    assert "Gaia" in caught.value.hint


def test_a_csv_whose_numbers_change_their_kind_late_is_read(tmp_path, monkeypatch):
    lines = [f"{k % 360},{k % 90},12" for k in range(3000)]
    lines[2500] = "10.5,20.5,13.25"
    (tmp_path / "a.csv").write_text("\n".join(["ra,dec,mag", *lines]))
    monkeypatch.setattr(tablefiles, "FIRST_BLOCK", 4096)
    found = open_refcat(tmp_path / "a.csv").cone(10.5, 20.5, 0.01)
    assert found["mag"].tolist() == [13.25]


def test_text_for_a_position_is_refused_with_the_reason(tmp_path):
    (tmp_path / "a.csv").write_text("ra,dec,mag\n12:30:00,-5:00:00,12.0\n")
    with pytest.raises(CatalogDamaged, match="'ra' is time"):
        open_refcat(tmp_path / "a.csv")


# --- what is unknown --------------------------------------------------------------------------


def least(n=30, seed=14):
    s = planted(n, seed)
    return {"ra": s["ra"], "dec": s["dec"], "mag": s["phot_g_mean_mag"]}


def test_the_least_table_is_a_catalogue_that_says_what_it_lacks(tmp_path):
    path = parquet(tmp_path / "my stars.parquet", least(), {})
    build_refcat([path], tmp_path / "cat")
    for catalog in (open_refcat(path), open_refcat(tmp_path / "cat")):
        found = catalog.all()
        assert catalog.name == "MYSTARS"
        assert np.isnan(found["pm_ra_mas_yr"]).all()
        assert np.isnan(found["ref_epoch_yr"]).all()
        assert (found["ra_error_mas"] == 100.0).all()
        assert found["good"].all()
        assert len(set(found["ref_id"])) == 30
        assert (found["ref_id"] == sky.healpix_cell(found["ra_deg"], found["dec_deg"])).all()
        assert catalog.info()["epoch_yr"] is None
        text = " ".join(catalog.notes)
        assert "100 mas" in text
        assert "proper motions are unknown" in text
        assert "epoch" in text
        assert "--ref-epoch" in text


def test_what_the_user_says_fills_what_is_unknown(tmp_path):
    path = parquet(tmp_path / "a.parquet", least(), {})
    said = {"ref_epoch_yr": 1999.5, "position_error_mas": 33.0}
    build_refcat([path], tmp_path / "cat", **said)
    for catalog in (open_refcat(path, **said), open_refcat(tmp_path / "cat"),
                    open_refcat(tmp_path / "cat", ref_epoch_yr=1999.5)):
        found = catalog.all()
        assert (found["ref_epoch_yr"] == 1999.5).all()
        assert (found["dec_error_mas"] == 33.0).all()
        assert catalog.info()["epoch_yr"] == 1999.5
    assert (open_refcat(tmp_path / "cat", ref_epoch_yr=1950.0).all()["ref_epoch_yr"] == 1950).all()
    assert open_refcat(path, name="UCAC 4").name == "UCAC4"


@pytest.mark.parametrize(
    ("file", "word", "epoch", "error"),
    [("gaia_dr2.parquet", "GAIADR2", 2015.5, 0.7), ("GaiaSource_EDR3.pq", "GAIAEDR3", 2016, 0.5),
     ("tycho2.parquet", "TYCHO2", 2000.0, 60.0), ("Gaia-DR1.parquet", "GAIADR1", 2015.0, 1.0)],
)
def test_a_known_name_tells_epoch_and_error(tmp_path, file, word, epoch, error):
    catalog = open_refcat(parquet(tmp_path / file, least(), {}))
    assert catalog.name == word
    found = catalog.all()
    assert (found["ref_epoch_yr"] == epoch).all()
    assert (found["ra_error_mas"] == error).all()
    assert any(word in n for n in catalog.notes)


def test_names_become_words():
    assert catalog_word("gaiadr3.gaia_source") == "GAIADR3"
    assert catalog_word("GaiaSource_EDR3.csv.gz") == "GAIAEDR3"
    assert catalog_word(None, "", "2MASS PSC.fits") == "2MASSPSC"
    assert catalog_word("gaia_stars.parquet") == "GAIA"
    assert catalog_word("...") == "REFCAT"
    assert len(catalog_word("x" * 99)) == 24


def test_gaia_is_known_by_its_columns(tmp_path):
    s = planted(30)
    assert open_refcat(parquet(tmp_path / "chunk-1.parquet", s)).name == "GAIADR3"
    s["ref_epoch"] = np.full(30, 2015.5)
    assert open_refcat(parquet(tmp_path / "chunk-1.parquet", s)).name == "GAIADR2"
    assert build_refcat([tmp_path / "chunk-1.parquet"], tmp_path / "cat").name == "GAIADR2"


def test_impossible_numbers_are_unknown(tmp_path):
    s = planted(8)
    s["pmra"][0], s["parallax"][1], s["ra_error"][2], s["pmdec_error"][3] = 99999, 1e6, 0.0, -9999
    s["phot_g_mean_mag"][4], s["ref_epoch"][5], s["ra_dec_corr"][6] = 99.99, 0.0, 5.0
    found = open_refcat(parquet(tmp_path / "gaia_dr3.parquet", s)).all()
    by_id = {int(r["ref_id"]): r for r in found}
    row = [by_id[int(i)] for i in s["source_id"]]
    assert np.isnan(row[0]["pm_ra_mas_yr"])
    assert np.isnan(row[1]["parallax_mas"])
    assert row[2]["ra_error_mas"] == 0.5
    assert np.isnan(row[3]["pm_dec_error_mas_yr"])
    assert np.isnan(row[4]["mag"])
    assert row[5]["ref_epoch_yr"] == 2016.0
    assert np.isnan(row[6]["ra_dec_corr"])
    assert row[7]["pm_ra_mas_yr"] == s["pmra"][7]


def test_rows_without_a_position_are_left_out_and_counted(tmp_path):
    s = planted(20)
    s["ra"][3] = s["dec"][4] = np.nan
    path = parquet(tmp_path / "a.parquet", s)
    for catalog in (open_refcat(path), build_refcat([path], tmp_path / "cat")):
        assert len(catalog.all()) == 18
        assert any(n.startswith("2 rows") for n in catalog.notes)


def test_good_is_the_quality_cut(tmp_path):
    s = planted(12)
    s["astrometric_params_solved"] = np.array([31, 95, 3, 31] * 3, dtype=np.int8)
    s["ruwe"] = np.where(np.arange(12) == 4, 1.41, 1.39).astype(np.float32)
    s["ruwe"][5] = np.nan
    s["duplicated_source"] = np.arange(12) == 7
    s["ipd_frac_multi_peak"] = np.where(np.arange(12) == 8, 11, 10).astype(np.int8)
    found = open_refcat(parquet(tmp_path / "a.parquet", s)).all()
    good = {int(r["ref_id"]): bool(r["good"]) for r in found}
    bad = [i for i in range(12) if not good[int(s["source_id"][i])]]
    assert bad == [2, 4, 6, 7, 8, 10]
    unknown = found["ref_id"][np.isnan(found["pm_ra_mas_yr"])]
    assert sorted(unknown) == sorted(s["source_id"][[2, 6, 10]])


def test_magnitudes_in_the_wrong_byte_order_are_mended_and_said(tmp_path):
    s = planted(500, 15)
    truth = np.sort(s["phot_g_mean_mag"])
    s["phot_g_mean_mag"] = s["phot_g_mean_mag"].byteswap()
    path = parquet(tmp_path / "a.parquet", s)
    for catalog in (open_refcat(path), build_refcat([path], tmp_path / "cat")):
        assert (catalog.all()["mag"] == truth.astype(float)).all()
        assert any("has been corrected" in n for n in catalog.notes)


# --- coverage ---------------------------------------------------------------------------------


def test_coverage_is_where_the_stars_are(tmp_path):
    s = planted(20_000, 16, circle=(30.0, 60.0, 2.0))
    for catalog in (open_refcat(parquet(tmp_path / "a.parquet", s)),
                    build_refcat([tmp_path / "a.parquet"], tmp_path / "cat")):
        assert catalog.covers(30.0, 60.0, 1.8)
        assert not catalog.covers(30.0, 62.0, 0.5)
        assert 0.42 < catalog.coverage(30.0, 62.0, 1.0) < 0.6
        assert 0.25 < catalog.coverage(30.0, 60.0, 4.0) < 0.3
        assert catalog.coverage(210.0, -60.0, 1.0) == 0.0
        area = np.sin(np.radians(1.0)) ** 2
        assert area < catalog.info()["sky_fraction"] < 1.2 * area


def test_coverage_of_others_is_their_partitions(stars, tmp_path):
    north = {k: v[stars["dec"] > 45] for k, v in stars.items()}
    catalog = open_refcat(hats_by_hand(tmp_path, north, orders=(3,)))
    assert catalog.covers(10.0, 80.0, 5.0)
    assert catalog.coverage(10.0, -40.0, 5.0) == 0.0


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.sets(st.integers(0, 12 * 4**4 - 1), min_size=1, max_size=40))
def test_coverage_in_text_comes_back(cells):
    coverage = Coverage.of_order(np.array(sorted(cells)), 4)
    again = Coverage.from_text(coverage.to_text())
    assert (again.ranges == coverage.ranges).all()
    assert coverage.sky_fraction == pytest.approx(len(cells) / (12 * 4**4))
    deep = np.arange(12 * 4**4) << 50
    assert coverage.holds(deep).tolist() == [c in cells for c in range(12 * 4**4)]


def test_coverage_reads_a_moc_of_several_orders():
    coverage = Coverage.from_text("0/1 1/0-2,12 3/")
    assert coverage.sky_fraction == pytest.approx(1 / 12 + 4 / 48)


# --- faults -----------------------------------------------------------------------------------


@pytest.fixture
def copy(built, tmp_path):
    shutil.copytree(built, tmp_path / "cat")
    return tmp_path / "cat"


def first_partition(folder):
    return min(folder.glob("dataset/Norder=*/Dir=*/Npix=*.parquet"), key=lambda p: (len(p.name), p))


def rewrite(path, change):
    table = change(pq.read_table(path, partitioning=None))
    pq.write_table(table, path)


def only(problems, *texts):
    """Demand that each problem has one of the texts in it, and each text a problem."""
    for text in texts:
        assert any(text in p for p in problems), (text, problems)
    for problem in problems:
        assert any(text in problem for text in texts), problem


def test_a_whole_catalogue_has_no_problem(built):
    assert verify_refcat(built) == []


def test_verify_finds_a_missing_partition(copy):
    path = first_partition(copy)
    path.unlink()
    only(verify_refcat(copy), path.name, "hats_nrows is 6000", "_metadata")
    with pytest.raises(CatalogMissing, match=path.name):
        open_refcat(copy).all()


def test_verify_finds_a_partition_that_is_not_listed(copy):
    path = first_partition(copy)
    lines = (copy / "partition_info.csv").read_text().splitlines()
    pixel = path.stem.split("=")[1]
    order = path.parts[-3].split("=")[1]
    lines.remove(f"{order},{pixel}")
    (copy / "partition_info.csv").write_text("\n".join(lines))
    only(verify_refcat(copy), "is not in partition_info.csv", "hats_nrows is 6000", "_metadata")


def test_verify_finds_overlapping_partitions(copy):
    with (copy / "partition_info.csv").open("a") as stream:
        order, pixel = HatsStore.open(Place(copy)).orders[0], HatsStore.open(Place(copy)).pixels[0]
        stream.write(f"{order + 1},{4 * pixel}\n{order},{pixel}\n")
    only(verify_refcat(copy), "overlap", "is listed 2 times", "there is no such file",
         "hats_nrows is 6000", "more than one partition")


def test_verify_finds_unsorted_rows(copy):
    rewrite(first_partition(copy), lambda t: t.take(np.arange(t.num_rows)[::-1]))
    only(verify_refcat(copy), "are not sorted by _healpix_29")


def test_verify_finds_rows_in_the_wrong_file(copy):
    a, b = sorted(copy.glob("dataset/Norder=*/Dir=*/Npix=*.parquet"))[:2]
    stray = pq.read_table(b, partitioning=None).slice(0, 2)
    rewrite(b, lambda t: t.slice(2))
    rewrite(a, lambda t: pa.concat_tables([t, stray]))
    only(verify_refcat(copy), "2 rows lie outside of its cell", "_metadata")


def test_verify_finds_positions_that_moved(copy):
    path = first_partition(copy)
    rewrite(path, lambda t: t.set_column(
        t.column_names.index("dec"), t.schema.field("dec"),
        pa.array(np.append(t["dec"].to_numpy()[:-1], t["dec"].to_numpy()[-1] - 1e-4))))
    only(verify_refcat(copy), "1 rows are not in the cell that _healpix_29 says")


def test_verify_finds_identifiers_that_come_twice(copy):
    paths = sorted(copy.glob("dataset/Norder=*/Dir=*/Npix=*.parquet"))[:2]
    other = pq.read_table(paths[0], partitioning=None)["source_id"][0].as_py()

    def change(t):
        ids = t["source_id"].to_numpy().copy()
        ids[0], ids[2] = other, ids[1]
        return t.set_column(t.column_names.index("source_id"), "source_id", pa.array(ids))

    rewrite(paths[1], change)
    only(verify_refcat(copy), "1 identifiers occur more than once",
         "1 identifiers are in more than one partition")


def test_verify_finds_other_columns_types_and_impossible_magnitudes(copy):
    paths = sorted(copy.glob("dataset/Norder=*/Dir=*/Npix=*.parquet"))[:3]
    rewrite(paths[0], lambda t: t.drop_columns(["pmra"]))
    rewrite(paths[1], lambda t: t.set_column(
        t.column_names.index("bp_rp"), "bp_rp", t["bp_rp"].cast(pa.float64())))
    rewrite(paths[2], lambda t: t.set_column(
        t.column_names.index("phot_g_mean_mag"), "phot_g_mean_mag",
        pa.array(np.full(t.num_rows, 1e30, np.float32))))
    only(verify_refcat(copy), "columns missing: pmra", "column 'bp_rp' is double, not float",
         "magnitudes are unknown or impossible")


def test_verify_finds_a_truncated_file(copy):
    path = first_partition(copy)
    path.write_bytes(path.read_bytes()[:-100])
    only(verify_refcat(copy), path.name, "hats_nrows is 6000", "_metadata")
    with pytest.raises(CatalogDamaged, match="not a file that can be read"):
        open_refcat(copy).all()


def test_verify_finds_a_unit_that_changed(copy):
    path = copy / "dataset/_common_metadata"
    schema = pq.read_schema(path)
    k = schema.get_field_index("pmra")
    pq.write_metadata(schema.set(k, schema.field(k).with_metadata({"unit": "km/s"})), path)
    only(verify_refcat(copy), "'km/s'")


def test_verify_reads_tables_too(tmp_path):
    s = planted(40)
    assert verify_refcat(parquet(tmp_path / "a.parquet", s)) == []
    s["source_id"][1] = s["source_id"][0]
    problems = verify_refcat(parquet(tmp_path / "a.parquet", s))
    only(problems, "1 identifiers occur more than once")
    only(verify_refcat(tmp_path / "nothing"), "no such file or folder")


@pytest.mark.parametrize("text", ["", "Norder,Npix\n1,x\n", "a,b\n1,2\n", "Norder,Npix\n0,77\n"])
def test_a_broken_list_of_partitions_is_damage(copy, text):
    (copy / "partition_info.csv").write_text(text)
    with pytest.raises(CatalogDamaged, match="partition_info"):
        open_refcat(copy)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(CatalogMissing, match="no such file or folder"):
        open_refcat(tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CatalogMissing, match="not a HATS catalogue"):
        open_refcat(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.parquet", b"PAR1 and then nothing"), ("a.fits", b"SIMPLE  =                    T"),
     ("a.csv", b""), ("a.bin", b"\x00\x01\x02\x03" * 100), ("a.xml", b"<VOTABLE><broken"),
     ("a.ecsv", b"# %ECSV 1.0\n# nonsense\n"), ("a.gz", b"\x1f\x8b\x08\x00garbage")],
)
def test_a_file_that_is_no_table_is_damage(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CatalogDamaged) as caught:
        open_refcat(tmp_path / name)
    assert name in str(caught.value)


def test_no_rows_is_no_catalogue(tmp_path):
    path = parquet(tmp_path / "a.parquet", {k: v[:0] for k, v in planted(5).items()})
    with pytest.raises(CatalogMissing, match="no rows"):
        open_refcat(path)
    with pytest.raises(CatalogMissing, match="no rows"):
        build_refcat([path], tmp_path / "cat")
    with pytest.raises(CatalogMissing):
        build_refcat([], tmp_path / "cat")
    assert not (tmp_path / "cat").exists()


def test_a_failed_build_leaves_what_was_there(built, tmp_path, stars):
    shutil.copytree(built, tmp_path / "cat")
    before = tree(tmp_path / "cat")
    good = parquet(tmp_path / "a.parquet", {k: v[:50] for k, v in stars.items()})
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(OutputExists):
        build_refcat([good], tmp_path / "cat")
    with pytest.raises(CatalogDamaged):
        build_refcat([good, tmp_path / "b.parquet"], tmp_path / "cat", overwrite=True)

    def broken(done, total, what):
        if what == "writing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_refcat([good], tmp_path / "cat", overwrite=True, progress=broken)
    assert tree(tmp_path / "cat") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet", "cat"]
    assert len(build_refcat([good], tmp_path / "cat", overwrite=True).all()) == 50
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet", "cat"]


def test_a_folder_that_is_no_catalogue_is_never_removed(tmp_path):
    path = parquet(tmp_path / "a.parquet", planted(20))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("miaow")
    with pytest.raises(OutputExists, match="not a catalogue"):
        build_refcat([path], tmp_path / "photos", overwrite=True)
    with pytest.raises(OutputError):
        build_refcat([path], path / "below a file")
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "miaow"


def test_tables_that_disagree_on_a_unit_are_not_put_together(tmp_path):
    s = planted(20)
    a = parquet(tmp_path / "a.parquet", {**s, "flux": np.ones(20)}, UNITS | {"flux": "Jy"})
    b = parquet(tmp_path / "b.parquet", {**s, "flux": np.ones(20)}, UNITS | {"flux": "mJy"})
    with pytest.raises(CatalogDamaged, match="'flux' is in 'Jy' in one table and in 'mJy'"):
        build_refcat([a, b], tmp_path / "cat")


def test_tables_with_other_columns_are_put_together(tmp_path):
    s, t = planted(20, 1), planted(30, 2)
    t["source_id"] += 1000
    del t["parallax"]
    t["phot_g_mean_mag"] = t["phot_g_mean_mag"].astype(float)
    paths = [parquet(tmp_path / "a.parquet", s), parquet(tmp_path / "b.parquet", t)]
    found = build_refcat(paths, tmp_path / "cat").all()
    assert len(found) == 50
    assert np.isnan(found["parallax_mas"]).sum() == 30


def test_progress_is_told(tmp_path):
    told = []
    path = parquet(tmp_path / "a.parquet", planted(20))
    build_refcat([path], tmp_path / "cat", progress=lambda *args: told.append(args))
    assert told == [(0, 2, "a.parquet"), (1, 2, "writing"), (2, 2, "done")]


# --- real data --------------------------------------------------------------------------------


def real(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"CYNOSURE_TEST_DATA has no {name}")
    return path


def test_real_gaia_edr3_parquet(tmp_path):
    path = real("p01-ptf-m81-gaiaedr3/gaia_edr3.parquet")
    catalog = build_refcat([path], tmp_path / "cat")
    assert catalog.name == "GAIAEDR3"
    found = catalog.all()
    assert len(found) == 657
    assert np.isfinite(found["pm_ra_mas_yr"]).mean() > 0.8
    table = pq.read_table(path)
    assert sorted(found["ra_deg"]) == sorted(table["ra"].to_numpy())
    assert not verify_refcat(tmp_path / "cat")


def test_real_scamp_catalogue():
    catalog = open_refcat(real("p16-lco-kb76-ldac-gaiadr2/GAIA-DR2.cat"))
    found = catalog.all()
    assert catalog.name == "GAIADR2"
    assert len(found) == 249
    assert (found["ref_epoch_yr"] == 2015.5).all()
    assert 0.1 < np.median(found["ra_error_mas"]) < 10
    assert np.isnan(found["pm_ra_mas_yr"]).all()


def test_real_chunks_of_gaia_dr2(tmp_path):
    folder = real("p20-legacypipe-testcases")
    chunks = sorted(folder.glob("*/gaia/chunk-*.fits"))
    catalog = build_refcat(chunks, tmp_path / "cat")
    assert catalog.name == "GAIADR2"
    found = catalog.all()
    assert len(np.unique(found["ref_id"])) == len(found)
    assert 0.5 < found["good"].mean() < 0.99
    assert np.isnan(found["pm_ra_mas_yr"][~found["good"]]).any()
    assert not verify_refcat(tmp_path / "cat")


def test_real_list_with_negative_right_ascension():
    catalog = open_refcat(
        real("p02-lco-ogg2m-matched/ogg2m001-ep04-20201006-0097-matched-cat.fits"),
        ref_epoch_yr=2015.5,
    )
    assert catalog.all()["ra_deg"].mean() == pytest.approx(314.9, abs=0.2)
    assert isinstance(catalog, RefCat)


def test_real_tycho2_with_its_turned_magnitudes():
    catalog = open_refcat(real("t01-tycho2/tycho2.parquet"))
    arcturus = catalog.cone(213.9153, 19.1824, 0.01)
    assert arcturus["mag"] == pytest.approx([0.16], abs=0.01)
    assert len(catalog.cone(0, 0, 180, max_mag=2.0)) == 41
    assert len(catalog.store.rows) == 1871011
    assert any("has been corrected" in n for n in catalog.notes)


# --- some of the columns, and photometry ------------------------------------------------------


def photometric(n=300, seed=31):
    """Gaia's columns, with the photometry of its archive: fluxes over their errors."""
    columns = planted(n, seed, circle=(80.0, 30.0, 3.0))
    rng = np.random.default_rng(seed)
    g = np.asarray(columns["phot_g_mean_mag"], float)
    more = {"phot_bp_mean_mag": g + 0.5, "phot_rp_mean_mag": g - 0.7}
    for band in "g bp rp".split():
        more[f"phot_{band}_mean_flux_over_error"] = rng.uniform(5, 2000, n)
    more["phot_bp_mean_mag"][3], more["phot_rp_mean_flux_over_error"][4] = np.nan, 0.0
    return {**columns, **more}


@pytest.mark.parametrize("kind", ["hats", "table"])
def test_photometry_comes_with_its_errors(tmp_path, kind):
    columns = photometric()
    path = parquet(tmp_path / "gaia.parquet", columns)
    if kind == "hats":
        build_refcat([path], tmp_path / "cat")
        path = tmp_path / "cat"
    stars = open_refcat(path).cone(80.0, 30.0, 5.0)
    row = {source: k for k, source in enumerate(columns["source_id"])}
    rows = np.array([row[i] for i in stars["ref_id"]])
    assert len(rows) == 300
    for name, band in (("mag", "g"), ("bp_mag", "bp"), ("rp_mag", "rp")):
        assert np.allclose(stars[name], columns[f"phot_{band}_mean_mag"][rows], equal_nan=True)
        ratio = columns[f"phot_{band}_mean_flux_over_error"][rows]
        with np.errstate(divide="ignore"):
            expected = np.where(ratio > 0, 1.0857362 / ratio, np.nan)
        assert np.allclose(stars[f"{name}_error"], expected, rtol=1e-6, equal_nan=True)


def test_what_a_catalogue_does_not_say_stays_unknown(built):
    stars = open_refcat(built).cone(0, 0, 10)
    for name in ("mag_error", "bp_mag_error", "rp_mag_error"):
        assert np.isnan(stars[name]).all(), name


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Gmag", "e_Gmag"), True), (("mag", "magerr"), True), (("Vmag", "e_Vmag"), True),
        (("MAG_AUTO", "MAGERR_AUTO"), True), (("Gmag", "e_Vmag"), False),
    ],
)
def test_the_error_of_a_magnitude_is_that_of_its_own_column(tmp_path, names, expected):
    columns = {"ra": [1.0, 1.1], "dec": [2.0, 2.1], names[0]: [10.0, 11.0], names[1]: [0.1, 0.2]}
    path = parquet(tmp_path / "stars.parquet", {k: np.array(v) for k, v in columns.items()})
    build_refcat([path], tmp_path / "cat", ref_epoch_yr=2016.0)
    for source in (path, tmp_path / "cat"):
        stars = open_refcat(source, ref_epoch_yr=2016.0).cone(1.0, 2.0, 1.0)
        got = stars["mag_error"].tolist()
        assert got == [0.1, 0.2] if expected else np.isnan(got).all()


@pytest.mark.parametrize("kind", ["hats", "table"])
def test_some_columns_are_those_of_all(tmp_path, kind):
    path = parquet(tmp_path / "gaia.parquet", photometric())
    if kind == "hats":
        build_refcat([path], tmp_path / "cat")
        path = tmp_path / "cat"
    catalog = open_refcat(path)
    whole = catalog.cone(80.0, 30.0, 2.0, max_mag=18.0)
    assert whole.dtype == REFERENCE.dtype
    assert len(whole) > 20
    for names in (["mag"], ["good"], ["color", "ref_id"], ["pm_ra_mas_yr", "ra_deg"],
                  ["bp_mag_error"], list(ASTROMETRY), ["ref_epoch_yr", "ra_error_mas"]):
        part = catalog.cone(80.0, 30.0, 2.0, max_mag=18.0, columns=names)
        assert part.dtype.names == tuple(n for n in REFERENCE.names if n in names)
        for name in names:
            assert np.array_equal(part[name], whole[name], equal_nan=name not in ("ref_id", "good"))
    none = catalog.cone(200.0, -30.0, 0.1, columns=["mag", "ra_deg"])
    assert none.dtype.names == ("ra_deg", "mag")
    assert len(none) == 0
    with pytest.raises(SettingError, match="magg") as caught:
        catalog.cone(80.0, 30.0, 2.0, columns=["magg"])
    assert "mag" in caught.value.hint
    with pytest.raises(SettingError, match="no columns"):
        catalog.cone(80.0, 30.0, 2.0, columns=[])


def test_no_more_is_read_than_is_asked_for(tmp_path, monkeypatch):
    build_refcat([parquet(tmp_path / "a.parquet", photometric())], tmp_path / "cat")
    read = []
    plain = pq.ParquetFile.read_row_groups

    def counted(self, groups, columns=None, **kwargs):
        read.append(set(columns))
        return plain(self, groups, columns=columns, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counted)
    catalog = open_refcat(tmp_path / "cat")
    catalog.cone(80.0, 30.0, 2.0, columns=["ra_deg", "mag"])
    assert read[-1] == {"ra", "dec", "phot_g_mean_mag", "source_id", "_healpix_29"}
    catalog.cone(80.0, 30.0, 2.0, columns=ASTROMETRY)
    assert not {c for c in read[-1] if "flux" in c}
    assert {"parallax", "pmra_error"} <= read[-1]
    catalog.cone(80.0, 30.0, 2.0)
    assert "phot_bp_mean_flux_over_error" in read[-1]
