"""Tables keep their schema, their numbers and their units."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from cynosure.data.tables import (
    MATCHES,
    REFERENCE,
    SOURCES,
    SourceFlag,
    read_parquet,
    write_parquet,
)
from cynosure.ground.errors import CatalogDamaged, OutputError

ALL = [SOURCES, REFERENCE, MATCHES]


def random_table(schema, n, seed=0):
    rng = np.random.default_rng(seed)
    table = schema.empty(n)
    for column in schema.columns:
        kind = table.dtype[column.name].kind
        if kind == "f":
            table[column.name] = rng.normal(size=n)
        elif kind == "b":
            table[column.name] = rng.random(n) < 0.5
        else:
            table[column.name] = rng.integers(0, 2**30, n)
    if n:
        table[schema.names[1]][0] = np.nan
    return table


@pytest.mark.parametrize("schema", ALL, ids=lambda s: s.name)
@pytest.mark.parametrize("n", [0, 1, 7, 1000])
def test_round_trip_is_exact(schema, n, tmp_path):
    table = random_table(schema, n)
    write_parquet(tmp_path / "t.parquet", table, schema)
    back = read_parquet(tmp_path / "t.parquet", schema)
    assert back.dtype == schema.dtype
    assert back.tobytes() == table.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_units_and_meanings_travel(tmp_path):
    write_parquet(tmp_path / "t.parquet", MATCHES.empty(2), MATCHES)
    field = pq.read_schema(tmp_path / "t.parquet").field("dra_mas")
    assert field.metadata[b"unit"] == b"mas"
    assert b"cos dec" in field.metadata[b"meaning"]


def test_the_match_table_has_the_columns_that_scripts_rely_on():
    assert MATCHES.names == tuple(
        "chip x y x_err y_err flux_e snr ra_deg dec_deg ref_id ref_ra_deg ref_dec_deg ref_mag "
        "ref_color dra_mas ddec_mas sigma_ra_mas sigma_dec_mas used reserved".split()
    )


def test_empty_has_all_columns_and_nan():
    table = SOURCES.empty(3)
    assert np.isnan(table["x"]).all()
    assert (table["flags"] == 0).all()
    assert SOURCES.build(x=[1.0, 2.0], y=3.0)["y"].tolist() == [3.0, 3.0]


def test_missing_columns_are_named(tmp_path):
    write_parquet(tmp_path / "t.parquet", SOURCES.empty(1), SOURCES)
    with pytest.raises(CatalogDamaged, match="ref_id"):
        read_parquet(tmp_path / "t.parquet", MATCHES)


def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        write_parquet(tmp_path / "no" / "t.parquet", SOURCES.empty(1), SOURCES)


def test_flags_are_distinct_bits():
    bits = [int(f) for f in SourceFlag]
    assert len(set(bits)) == len(bits)
    assert all(b & (b - 1) == 0 for b in bits)
    assert not SourceFlag.unusable() & (SourceFlag.BLENDED | SourceFlag.NEAR_BRIGHT)
