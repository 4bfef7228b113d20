"""The writer of products: astropy reads back what was given, sums are true, files are whole."""

import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from cynosure.data.fits.products import (
    Compression,
    ImagePlane,
    TablePlane,
    mask_cards,
    write_product,
)
from cynosure.data.fits.reader import read
from cynosure.data.mask import mask_dictionary
from cynosure.data.tables import MATCHES, SOURCES, Schema
from cynosure.ground.errors import OutputError, OutputExists, SettingError
from cynosure.pixels.aperture import aperture_schema

SHAPE = (37, 53)
TYPES = "u1 i1 i2 u2 i4 u4 i8 u8 f4 f8".split()


def numbers(dtype, shape=SHAPE):
    rng = np.random.default_rng(3)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        values = rng.normal(100, 20, shape).astype(kind)
        values[3, 4], values[5, 6], values[7, 8] = np.nan, np.inf, 0.0
        return values
    info = np.iinfo(kind)
    values = rng.integers(info.min, info.max, shape, dtype=kind, endpoint=True)
    values[0, 0], values[0, 1] = info.min, info.max
    return values


def opened(path):
    """Open a file and demand that it is right: by the standard, and its sums."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(path, checksum=True, disable_image_compression=True) as hdul:
            hdul.verify("exception")
            for hdu in hdul:
                assert hdu.verify_datasum() == 1
                assert hdu.verify_checksum() == 1
        hdul = fits.open(path)
        hdul.verify("exception")
    return hdul


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["", "SCI"])
def test_pixels_of_every_type_come_back(tmp_path, dtype, name):
    data = numbers(dtype)
    for order in "<>":
        given = data.astype(data.dtype.newbyteorder(order))
        path = write_product(tmp_path / "a.fits", [ImagePlane(given, name)], overwrite=True)
        with opened(path) as hdul:
            back = hdul[name or 0].data
            assert back.dtype.kind + str(back.dtype.itemsize) == dtype
            assert np.array_equal(back, data, equal_nan=dtype[0] == "f")


def test_bool_and_half_floats_are_widened_and_objects_refused(tmp_path):
    flags = numbers("f4") > 100
    path = write_product(tmp_path / "a.fits", [
        ImagePlane(flags, "FLAGS"), ImagePlane(np.float16([[1.5, 2.0]]), "HALF")
    ])
    with opened(path) as hdul:
        assert np.array_equal(hdul["FLAGS"].data, flags)
        assert hdul["HALF"].data.tolist() == [[1.5, 2.0]]
    with pytest.raises(SettingError, match="complex128"):
        write_product(tmp_path / "b.fits", [ImagePlane(np.zeros((2, 2), complex), "C")])
    assert not (tmp_path / "b.fits").exists()


def test_headers_have_units_comments_and_long_texts(tmp_path):
    header = fits.Header([("CRVAL1", 10.5, "deg"), ("BITPIX", 16), ("CHECKSUM", "no")])
    header["Q"] = "it's"
    header["HIERARCH ESO TEL"] = 3
    header.add_history("made")
    cards = [
        ("EXPTIME", np.float64(20.0), "[s] exposure"), ("GOOD", np.bool_(True), ""),
        ("N", np.int64(1 << 40), ""), ("LONG", "x" * 150, "cut"), ("NOTHING", None, "unknown"),
        ("HISTORY", "h" * 100, ""), ("NAN", np.nan, "undefined"),
    ]
    path = write_product(
        tmp_path / "a.fits",
        [ImagePlane(numbers("f4"), cards=header, unit="electron"),
         ImagePlane(numbers("u4"), "MASK", 2, mask_cards())],
        cards=cards,
    )
    with opened(path) as hdul:
        first, second = hdul[0].header, hdul["MASK", 2].header
        assert first["BUNIT"] == "electron"
        assert first["EXPTIME"] == 20.0
        assert first.comments["EXPTIME"] == "[s] exposure"
        assert first["GOOD"] is True
        assert first["N"] == 1 << 40
        assert first["LONG"] == "x" * 150
        assert first["NOTHING"] is None
        assert first["NAN"] is None
        assert first["CRVAL1"] == 10.5
        assert first["Q"] == "it's"
        assert first["ESO TEL"] == 3
        assert "".join(first["HISTORY"]) == "h" * 100 + "made"
        assert first["BITPIX"] == -32, "the structure is that of the pixels"
        for bit in mask_dictionary().bits:
            assert second[f"MSKBIT{bit.bit:02d}"] == bit.name


@pytest.mark.parametrize("keyword", ["lower", "TOOLONGKEY", "NAXIS1", "CHECKSUM", "A B"])
def test_keywords_that_are_none_are_refused(tmp_path, keyword):
    with pytest.raises(SettingError, match="keyword"):
        write_product(tmp_path / "a.fits", [], cards=[(keyword, 1, "")])
    assert list(tmp_path.iterdir()) == []


def test_two_units_of_one_name_are_refused(tmp_path):
    planes = [ImagePlane(numbers("f4"), "SCI"), ImagePlane(numbers("f4"), "sci")]
    with pytest.raises(SettingError, match="SCI,1"):
        write_product(tmp_path / "a.fits", planes)


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1"])
def test_compressed_integers_lose_nothing(tmp_path, kind):
    data = numbers("i2", (64, 80)) // 64
    plane = ImagePlane(data, "SCI", 3, [("GAIN", 1.5, "")], "adu", Compression(kind, (32, 40)))
    with opened(write_product(tmp_path / "a.fits", [plane])) as hdul:
        assert np.array_equal(hdul["SCI", 3].data, data)
        header = hdul["SCI", 3].header
        assert (header["GAIN"], header["BUNIT"]) == (1.5, "adu")
        assert hdul[0].data is None
    with fits.open(tmp_path / "a.fits", disable_image_compression=True) as hdul:
        assert hdul[1].header["ZCMPTYPE"] == kind
        assert (hdul[1].header["ZTILE1"], hdul[1].header["ZTILE2"]) == (40, 32)


def test_compressed_masks_keep_all_their_bits(tmp_path):
    mask = np.zeros((64, 80), np.uint32)
    mask[3, 4], mask[10:20, 30] = mask_dictionary()["unusable"], mask_dictionary()["streak"]
    data = np.random.default_rng(1).normal(0, 1, mask.shape).astype(np.float32)
    path = write_product(tmp_path / "a.fits", [
        ImagePlane(data, "SCI"),
        ImagePlane(mask, "MASK", 1, mask_cards(), compression=Compression()),
    ])
    with opened(path) as hdul:
        assert np.array_equal(hdul["MASK"].data, mask)
    assert np.array_equal(read(path).frames[0].mask, mask), "read as bits of the dictionary"
    assert read(path).frames[0].dq is None


def test_compressed_numbers_are_rounded_as_asked(tmp_path):
    data = np.random.default_rng(2).normal(50, 4, (120, 130)).astype(np.float32)
    data[5, 6], data[20, 20] = 0.0, np.nan
    errors = {}
    for level in (4.0, 32.0):
        plane = ImagePlane(data, "SCI", compression=Compression(quantize=level))
        with opened(write_product(tmp_path / f"{level}.fits", [plane])) as hdul:
            back = hdul["SCI"].data
        assert back[5, 6] == 0.0
        assert np.isnan(back[20, 20])
        errors[level] = np.nanmax(np.abs(back - data))
    assert errors[4.0] < 4.0 / 4.0
    assert errors[32.0] < 0.25 * errors[4.0]
    whole = ImagePlane(data, "SCI", compression=Compression("GZIP_2", quantize=0.0))
    with opened(write_product(tmp_path / "whole.fits", [whole])) as hdul:
        assert np.array_equal(hdul["SCI"].data, data, equal_nan=True)


def test_a_compression_that_does_not_exist_is_refused(tmp_path):
    for how in (Compression("LZW"), Compression(method="guess")):
        with pytest.raises(SettingError):
            write_product(tmp_path / "a.fits", [ImagePlane(numbers("i2"), "A", compression=how)])


@pytest.mark.parametrize("schema", [SOURCES, MATCHES, aperture_schema(2)])
@pytest.mark.parametrize("n", [0, 1, 50])
def test_tables_of_every_schema_come_back(tmp_path, schema, n):
    rng = np.random.default_rng(4)
    table = schema.empty(n)
    for name in schema.names[::2]:
        table[name] = rng.integers(0, 2**31 - 1, n) if table.dtype[name].kind != "b" else n > 0
    path = write_product(tmp_path / "a.fits", [TablePlane(table, schema, "CAT")])
    with opened(path) as hdul:
        back, header = hdul["CAT"].data, hdul["CAT"].header
        assert len(back) == n
        for k, column in enumerate(schema.columns, 1):
            assert header[f"TCOMM{k}"] == column.meaning
            assert np.array_equal(
                back[column.name], table[column.name], equal_nan=column.dtype[0] == "f"
            )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'electron'")  # the standard has no word for it
        read_back = Table.read(path, hdu="CAT")
    if "x" in schema.names:
        assert str(read_back["x"].unit) == "pix"


def test_nulls_and_texts_of_tables(tmp_path):
    schema = Schema("test/1", [
        ("id", "i8", "", "number"), ("bits", "u4", "", "flags"), ("mag", "f4", "mag", "magnitude"),
        ("ok", "?", "", "good"), ("name", "U8", "", "text"), ("n", "i2", "", "count"),
    ])
    table = np.ma.zeros(3, dtype=schema.dtype)
    table["id"], table["bits"], table["mag"] = [1, 2, 3], [9, 1 << 31, 7], [1.5, 2.5, np.nan]
    table["ok"], table["name"], table["n"] = [True, False, True], ["a", "längste!", ""], [-5, 6, 7]
    table.mask["id"][1] = table.mask["mag"][0] = table.mask["n"][2] = table.mask["bits"][0] = True
    plane = TablePlane(table, schema, "CAT", nulls={"n": -1})
    with opened(write_product(tmp_path / "a.fits", [plane])) as hdul:
        header, raw = hdul["CAT"].header, hdul["CAT"].data
        assert (header["TNULL1"], header["TNULL6"]) == (-(2**63), -1)
        assert raw["id"].tolist() == [1, -(2**63), 3]
        assert np.isnan(raw["mag"]).tolist() == [True, False, True]
        assert raw["ok"].tolist() == [True, False, True]
        assert raw["name"].tolist() == ["a", "l?ngste!", ""]
        assert raw["bits"].tolist() == [0, 1 << 31, 7]
    back = Table.read(tmp_path / "a.fits")
    assert back["n"].mask.tolist() == [False, False, True]
    assert back["id"].mask.tolist() == [False, True, False]


def test_the_same_input_gives_the_same_bytes_and_nothing_is_replaced_unasked(tmp_path):
    planes = [
        ImagePlane(numbers("f4")),
        ImagePlane(numbers("f4")[:, :50], "WHT", compression=Compression()),
        TablePlane(SOURCES.empty(4), SOURCES, "CAT"),
    ]
    one, two = (write_product(tmp_path / f"{k}.fits", planes) for k in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert len(one.read_bytes()) % 2880 == 0
    with pytest.raises(OutputExists):
        write_product(one, planes[:1])
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(OutputError):
        write_product(tmp_path / "none" / "a.fits", planes)


def test_a_product_is_an_exposure(tmp_path):
    rng = np.random.default_rng(6)
    data = rng.normal(100, 3, (40, 50)).astype(np.float32)
    variance = np.full_like(data, 9.0)
    path = write_product(tmp_path / "a.fits", [
        ImagePlane(data, "SCI", cards=[("DATE-OBS", "2026-01-01T00:00:00", "start")]),
        ImagePlane(variance, "VAR"), ImagePlane(np.zeros(data.shape, np.uint32), "MASK", 1,
                                                mask_cards()),
    ])
    frame = read(path).frames[0]
    assert np.array_equal(frame.data, data)
    assert np.array_equal(frame.variance, variance)
    assert frame.mask.dtype == np.uint32
    assert not frame.mask.any()
