"""What a report is drawn from: kept small, read back whole, refused when damaged."""

import numpy as np
import pytest

from cynosure.data.tables import SOURCES
from cynosure.ground.errors import CatalogDamaged
from cynosure.pipelines.evidence import (
    MAX_SOURCES,
    columns,
    read_evidence,
    thumbnail,
    write_evidence,
)


def test_there_and_back(tmp_path):
    path = tmp_path / "a.report.npz"
    sources = SOURCES.build(x=np.arange(5.0), y=np.arange(5.0), snr=np.arange(5.0), flags=3)
    extras = {
        "thumbnail": np.ones((3, 4), np.float32), "shape": (30, 40), "scores": {"poly1": 2.5},
        "ledger": [{"round": 1, "rms_mas": np.float64(3.5)}], "reference": np.ones((2, 3)),
    }
    write_evidence(path, sources, extras)
    evidence = read_evidence(path)
    assert evidence.sources["x"].tolist() == [0, 1, 2, 3, 4]
    assert evidence.sources["flags"].tolist() == [3] * 5
    assert evidence.extras["shape"] == [30, 40]
    assert evidence.extras["scores"] == {"poly1": 2.5}
    assert evidence.table("ledger", ("round", "rms_mas")).tolist() == [[1.0, 3.5]]
    assert evidence.table("absent", ("a", "b")).shape == (0, 2)


def test_only_the_brightest_of_many_are_kept(tmp_path):
    sources = SOURCES.build(x=np.arange(MAX_SOURCES + 50.0))
    sources["snr"] = np.arange(MAX_SOURCES + 50.0)
    sources["snr"][:3] = np.nan
    write_evidence(tmp_path / "a.npz", sources, {})
    kept = read_evidence(tmp_path / "a.npz").sources
    assert len(kept) == MAX_SOURCES
    assert kept["x"].min() >= 50


def test_bright_pixels_do_not_overflow(tmp_path):
    image = np.array([[0.0, 1e9], [np.nan, 3.0]], dtype=np.float32)
    write_evidence(tmp_path / "a.npz", SOURCES.empty(), {"thumbnail": image})
    small = read_evidence(tmp_path / "a.npz").extras["thumbnail"]
    assert np.isfinite(small[0]).all()
    assert np.isnan(small[1, 0])


def test_absent_and_damaged(tmp_path):
    assert len(read_evidence(tmp_path / "no.npz").sources) == 0
    for content in (b"", b"not a zip", b"PK\x03\x04 broken"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(CatalogDamaged):
            read_evidence(tmp_path / "bad.npz")
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(CatalogDamaged):
        read_evidence(tmp_path / "other.npz")


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (720, 720), (721, 100), (3000, 4000)])
def test_a_thumbnail_is_small_and_keeps_stars(shape):
    image = np.zeros(shape, dtype=np.float32)
    y, x = shape[0] // 2, shape[1] // 2
    image[max(0, y - 1):y + 2, max(0, x - 1):x + 2] = 50.0
    small = thumbnail(image)
    assert max(small.shape) <= 720
    assert small.max() == 50.0
    row, column = np.argwhere(small == 50.0).mean(axis=0)
    assert abs((row + 0.5) / small.shape[0] - (y + 0.5) / shape[0]) < 0.05 + 0.5 / small.shape[0]
    assert abs((column + 0.5) / small.shape[1] - (x + 0.5) / shape[1]) < 0.05 + 1 / small.shape[1]


def test_tables_of_any_kind():
    expected = [[1.0, 2.0], [3.0, 4.0]]
    names = ("a", "b")
    assert columns({"a": [1, 3], "b": [2, 4], "c": [0, 0]}, names).tolist() == expected
    assert columns([{"a": 1, "b": 2}, {"b": 4, "a": 3}], names).tolist() == expected
    assert columns(np.array(expected), names).tolist() == expected
    assert columns([], names).shape == (0, 2)
