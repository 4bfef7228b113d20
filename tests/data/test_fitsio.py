"""Reading: the pixels that were planted come back, whatever they are stored in."""

import bz2
import gzip
import hashlib
import lzma
import math
import os
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData, InverseVariance, StdDevUncertainty
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st

from cynosure.data.fits.blocks import checksum_text, read_units, sum32
from cynosure.data.fits.reader import check_pixels, debayered, read, split_path
from cynosure.data.fits.wcsread import sky_of_pixels
from cynosure.data.frame import Frame
from cynosure.geometry.skymodel import SkyModel
from cynosure.geometry.wcs import model_from_wcs, model_in_file, model_to_header
from cynosure.ground.errors import ExitCode, ImageError, SettingError

RNG_SEED = 7
NY, NX = 40, 60


def pixels(dtype="float32", shape=(NY, NX)):
    rng = np.random.default_rng(RNG_SEED)
    if np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        low, high = max(info.min, -(2**23)), min(info.max, 2**23)
        return rng.integers(low, high, shape, dtype=dtype, endpoint=True)
    return rng.normal(1000.0, 30.0, shape).astype(dtype)


def cards(**more):
    header = fits.Header()
    header["DATE-OBS"], header["EXPTIME"] = "2020-06-01T00:00:00", 60.0
    header.update(more)
    return header


def wcs_cards(shape=(NY, NX), form="tan", degree=1):
    coeff = np.zeros((2, (degree + 1) * (degree + 2) // 2))
    coeff[0, 1], coeff[1, 2] = -0.01, 0.01
    coeff[:, 3:] = 1e-5
    model = SkyModel(150.0, 20.0, (shape[1] - 1) / 2, (shape[0] - 1) / 2, 30.0, coeff)
    return model_to_header(model, form, shape=shape), model


def put(path, data, header=None, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits.PrimaryHDU(data, header, **keywords).writeto(path)
    return path


# --- pixels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
def test_every_pixel_type_comes_back(tmp_path, dtype):
    data = pixels(dtype)
    frame = read(put(tmp_path / "a.fits", data)).frames[0]
    assert frame.data.dtype == np.float32
    assert frame.data.dtype.isnative
    assert frame.data.flags["C_CONTIGUOUS"]
    assert frame.mask is None
    assert np.array_equal(frame.data, data.astype(np.float32))


def test_scaled_integers_and_blank_ones(tmp_path):
    stored = pixels("i2")
    stored[3, 4] = -32768
    hdu = fits.PrimaryHDU(stored)
    hdu.header["BSCALE"], hdu.header["BZERO"], hdu.header["BLANK"] = 0.25, 100.0, -32768
    path = tmp_path / "a.fits"
    path.write_bytes(_raw(hdu.header, stored.astype(">i2").tobytes()))
    frame = read(path).frames[0]
    expected = (stored.astype(float) * 0.25 + 100.0).astype(np.float32)
    good = np.ones(stored.shape, dtype=bool)
    good[3, 4] = False
    assert np.isnan(frame.data[3, 4])
    assert np.array_equal(frame.mask, ~good * np.uint32(64))
    assert np.array_equal(frame.data[good], expected[good])


def _raw(header, data):
    text = header.tostring().encode()
    return text + data + b"\0" * (-len(data) % 2880)


def test_pixels_larger_than_one_piece(tmp_path):
    data = pixels("u2", (900, 1100))  # 2 MB are two pieces
    assert np.array_equal(read(put(tmp_path / "a.fits", data)).frames[0].data, data)


def test_nan_and_infinity_are_kept_and_masked(tmp_path):
    data = pixels()
    data[0, 0], data[5, 6], data[7, 8] = np.nan, np.inf, -np.inf
    frame = read(put(tmp_path / "a.fits", data)).frames[0]
    assert np.argwhere(frame.mask).tolist() == [[0, 0], [5, 6], [7, 8]]
    assert np.isnan(frame.data[0, 0])
    assert frame.data[5, 6] == np.inf


def test_a_float64_beyond_float32_is_masked(tmp_path):
    data = pixels("f8")
    data[1, 1] = 1e300
    assert read(put(tmp_path / "a.fits", data)).frames[0].mask.sum() == 64


@pytest.mark.parametrize(
    ("suffix", "squeeze"),
    [
        (".fits.gz", gzip.compress),
        (".fits.bz2", bz2.compress),
        (".fits.xz", lzma.compress),
        (".fit", bytes),
    ],
)
def test_compressed_files_are_told_by_their_bytes(tmp_path, suffix, squeeze):
    data = pixels("i2")
    plain = put(tmp_path / "plain.fits", data).read_bytes()
    for name in (f"a{suffix}", "no_suffix_at_all"):
        (tmp_path / name).write_bytes(squeeze(plain))
        assert np.array_equal(read(tmp_path / name).frames[0].data, data)


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_1", "HCOMPRESS_1"])
def test_tile_compressed_images(tmp_path, kind):
    data = pixels("u2")
    path = tmp_path / "a.fits.fz"
    fits.HDUList(
        [fits.PrimaryHDU(), fits.CompImageHDU(data, cards(GAIN=2.0), compression_type=kind)]
    ).writeto(path)
    frame = read(path).frames[0]
    assert np.array_equal(frame.data, data)
    assert frame.hdu == 1
    assert frame.gain_e_adu == 2.0
    assert frame.saturation_adu == 65535.0
    assert frame.name == "a.fits.fz"


def test_what_is_already_in_memory(tmp_path):
    data = pixels("i2")
    frames = [read(data).frames[0], read((data, cards(GAIN=3.0))).frames[0]]
    with fits.open(put(tmp_path / "a.fits", data, cards(GAIN=3.0))) as hdulist:
        frames.append(read(hdulist).frames[0])
        assert hdulist[0].data is not None, "what the caller opened stays open"
    for frame in frames:
        assert np.array_equal(frame.data, data)
    assert [f.gain_e_adu for f in frames] == [1.0, 3.0, 3.0]
    masked = np.ma.masked_greater(pixels(), 1050.0)
    assert np.array_equal(read(masked).frames[0].mask != 0, masked.mask)


@pytest.mark.parametrize(
    ("uncertainty", "variance"),
    [(StdDevUncertainty, 4.0), (InverseVariance, 0.5), (None, None)],
)
def test_ccddata_brings_mask_and_uncertainty(uncertainty, variance):
    mask = np.zeros((NY, NX), dtype=bool)
    mask[2, 3] = True
    error = None if uncertainty is None else uncertainty(np.full((NY, NX), 2.0))
    ccd = CCDData(pixels(), unit="adu", mask=mask, uncertainty=error, meta={"GAIN": 1.5})
    frame = read(ccd).frames[0]
    assert np.array_equal(frame.mask != 0, mask)
    assert frame.gain_e_adu == 1.5
    if variance is None:
        assert frame.variance is None
    else:
        assert np.allclose(frame.variance, variance)


def test_what_is_no_image_at_all():
    with pytest.raises(ImageError, match="not a path, HDUList"):
        read(3.5)


# --- extensions -----------------------------------------------------------------------------


def mosaic(path, names):
    """Write extensions of given (name, version, data)."""
    hdus = [fits.PrimaryHDU(header=cards(GAIN=2.0, INSTRUME="NOBODY", CRVAL1=1.0))]
    for name, version, data in names:
        hdus.append(fits.ImageHDU(data, name=name, ver=version))
    fits.HDUList(hdus).writeto(path)
    return path


def test_science_extensions_have_their_own_companions(tmp_path):
    science = [pixels() + k for k in range(2)]
    errors = [np.full((NY, NX), 2.0 + k, dtype="f4") for k in range(2)]
    flags = [np.zeros((NY, NX), dtype="i2") for _ in range(2)]
    flags[0][1, 2], flags[1][3, 4] = 4, 16
    path = mosaic(
        tmp_path / "a.fits",
        [
            (n, k + 1, d[k])
            for k in range(2)
            for n, d in (("SCI", science), ("ERR", errors), ("DQ", flags))
        ],
    )
    frames = read(path).frames
    assert [f.name for f in frames] == ["a.fits[SCI,1]", "a.fits[SCI,2]"]
    assert [f.chip for f in frames] == [0, 1]
    assert [f.hdu for f in frames] == [1, 4]
    for k, frame in enumerate(frames):
        assert np.array_equal(frame.data, science[k])
        assert np.allclose(frame.variance, (2.0 + k) ** 2)
        assert np.array_equal(frame.mask, (flags[k] != 0) * np.uint32(1 << 31))
        assert frame.gain_e_adu == 2.0, "inherited from the primary header"
        assert "CRVAL1" not in frame.header, "the mosaic's WCS is not inherited"


@pytest.mark.parametrize(
    "names",
    [
        [("SCI1", 1), ("DQ1", 1), ("SCI2", 1), ("DQ2", 1)],
        [("CCD1", 1), ("CCD1_DQ", 1), ("CCD2", 1), ("CCD2_DQ", 1)],
        [("SCI", 1), ("SCI", 2), ("MASK", 1), ("MASK", 2)],
        [("SCI", 1), ("DQ", 1), ("SCI", 1), ("DQ", 1)],  # EXTVER forgotten: they follow their image
        [("N1", 1), ("BPM", 1), ("N2", 1), ("BPM", 1)],
    ],
)
def test_companions_are_found_in_every_convention(tmp_path, names):
    listed, n_science, n_mask = [], 0, 0
    for name, version in names:
        if "DQ" in name or name in ("MASK", "BPM"):
            data = np.zeros((NY, NX), dtype="u1")
            data[n_mask, 0] = 1
            n_mask += 1
        else:
            data = pixels() + n_science
            n_science += 1
        listed.append((name, version, data))
    frames = read(mosaic(tmp_path / "a.fits", listed)).frames
    assert len(frames) == 2
    for k, frame in enumerate(frames):
        assert np.argwhere(frame.mask).tolist() == [[k, 0]]


def test_variance_weights_and_empty_errors(tmp_path):
    ivar = np.full((NY, NX), 0.25, dtype="f4")
    ivar[0, 0] = 0.0
    frame = read(mosaic(tmp_path / "a.fits", [("SCI", 1, pixels()), ("IVAR", 1, ivar)])).frames[0]
    assert np.argwhere(frame.mask).tolist() == [[0, 0]]
    assert frame.variance[1, 1] == 4.0
    assert frame.variance[0, 0] == np.inf
    frame = read(mosaic(tmp_path / "b.fits", [("SCI", 1, pixels()), ("WHT", 1, ivar)])).frames[0]
    assert frame.variance is None, "a weight has no unit that would make it a variance"
    assert np.count_nonzero(frame.mask) == 1
    frame = read(mosaic(tmp_path / "c.fits", [("SCI", 1, pixels()), ("ERR", 1, ivar * 0)])).frames[
        0
    ]
    assert frame.variance is None
    assert frame.mask is None
    exposure = read(mosaic(tmp_path / "d.fits", [("SCI", 1, pixels()), ("DQ", 1, np.ones((3, 3)))]))
    assert exposure.frames[0].mask is None
    assert any("not the size of the image" in n for n in exposure.notes)


def test_high_bits_of_flags_survive(tmp_path):
    flags = np.zeros((NY, NX), dtype="i4")
    flags[1, 1], flags[2, 2] = 2**30 + 1, 2**30
    own = tmp_path / "own.toml"
    own.write_text("[mask]\nbad = [1]\n")
    path = mosaic(tmp_path / "a.fits", [("SCI", 1, pixels()), ("DQ", 1, flags)])
    frame = read(path, instrument=own).frames[0]
    assert np.argwhere(frame.mask).tolist() == [[1, 1]]


def test_an_extension_can_be_chosen(tmp_path):
    path = mosaic(
        tmp_path / "a.fits",
        [("SCI", 1, pixels()), ("SCI", 2, pixels() + 1), ("OTHER", 1, pixels() + 2)],
    )
    for extension, offset in (("SCI,2", 1), (2, 1), ("2", 1), ("OTHER", 2), ("sci,1", 0)):
        assert read(path, extension=extension).frames[0].data[0, 0] == (pixels() + offset)[0, 0]
        assert len(read(f"{path}[{extension}]").frames) == 1
    assert len(read(path, extension="SCI").frames) == 2
    with pytest.raises(ImageError, match="has no HDU WHAT") as caught:
        read(path, extension="WHAT")
    assert "SCI,2" in caught.value.hint
    with pytest.raises(ImageError, match="is not an image"):
        read(path, extension=0)
    with pytest.raises(ImageError, match="selects nothing"):
        read(path, extension="1,2,3,4")


def test_a_file_may_have_brackets_in_its_name(tmp_path):
    path = put(tmp_path / "m[81]", pixels())
    assert split_path(str(path)) == (path, None)
    assert split_path("x.fits[SCI,2]") == (Path("x.fits"), "SCI,2")
    assert read(path).frames[0].shape == (NY, NX)


def test_overscan_is_masked_and_a_stale_section_is_not_believed(tmp_path):
    path = put(tmp_path / "a.fits", pixels(), cards(DATASEC="[11:50,1:40]"))
    mask = read(path).frames[0].mask
    assert mask[:, :10].all()
    assert mask[:, 50:].all()
    assert not mask[:, 10:50].any()
    stale = put(tmp_path / "b.fits", pixels(), cards(DATASEC="[1:2048,1:4096]"))
    assert read(stale).frames[0].mask is None


# --- cubes ----------------------------------------------------------------------------------


def test_a_cube_is_refused_with_a_way_out(tmp_path):
    data = pixels("f4", (3, NY, NX))
    path = put(tmp_path / "cube.fits", data)
    with pytest.raises(ImageError, match="cube of 60x40x3 pixels, 3 planes") as caught:
        read(path)
    assert "--extension 0,0" in caught.value.hint
    assert caught.value.exit_code == ExitCode.IMAGE_UNREADABLE
    frame = read(f"{path}[0,2]").frames[0]
    assert np.array_equal(frame.data, data[2])
    assert frame.plane == 2
    assert [f.plane for f in read(path, extension="0,all").frames] == [0, 1, 2]
    with pytest.raises(ImageError, match="no plane 3: it has 0 to 2"):
        read(f"{path}[0,3]")


@pytest.mark.parametrize("shape", [(1, NY, NX), (1, 1, NY, NX), (NY, 1, NX)])
def test_degenerate_axes_are_no_cube(tmp_path, shape):
    data = pixels("f4", shape)
    frame = read(put(tmp_path / "a.fits", data)).frames[0]
    assert np.array_equal(frame.data, data.reshape(NY, NX))
    assert frame.plane is None


# --- facts ----------------------------------------------------------------------------------


def test_the_facts_of_an_image(tmp_path):
    header, model = wcs_cards()
    more = cards(EGAIN=1.7, GAIN=139.0, RDNOISE=4.5, SATURATE=50000.0, FILTER="V")
    more.update(header)
    exposure = read(put(tmp_path / "a.fits", pixels(), more))
    frame = exposure.frames[0]
    assert frame.gain_e_adu == 1.7, "GAIN is a setting where EGAIN is given"
    assert (frame.read_noise_e, frame.saturation_adu, frame.filter) == (4.5, 50000.0, "V")
    truth = Time("2020-06-01T00:00:30").tt.jyear
    assert frame.epoch_yr == pytest.approx(truth, abs=1e-9)
    assert frame.exptime_s == 60.0
    center = model.pixel_to_sky((NX - 1) / 2, (NY - 1) / 2)
    assert exposure.pointing.ra_deg == pytest.approx(float(center[0]), abs=1e-9)
    assert exposure.pointing.dec_deg == pytest.approx(float(center[1]), abs=1e-9)
    assert exposure.pointing.scale_arcsec == pytest.approx(1.2, rel=1e-3)
    assert exposure.notes == ()
    assert exposure.instrument == "generic"


def test_an_unknown_epoch_is_said_and_can_be_given(tmp_path):
    path = put(tmp_path / "a.fits", pixels())
    exposure = read(path)
    assert exposure.frames[0].epoch_yr is None
    assert any("--epoch" in n for n in exposure.notes)
    given_one = read(path, epoch_yr=2001.5)
    assert given_one.frames[0].epoch_yr == 2001.5
    assert given_one.notes == ()


@pytest.mark.parametrize(
    ("unit", "gain"),
    [
        ("ADU", 2.0),
        ("ELECTRONS", 1.0),
        ("ELECTRONS/S", 60.0),
        ("COUNTS/S", 120.0),
        ("electron s-1", 60.0),
    ],
)
def test_the_unit_of_the_pixels_sets_the_gain(tmp_path, unit, gain):
    path = put(tmp_path / "a.fits", pixels(), cards(BUNIT=unit, GAIN=2.0))
    assert read(path).frames[0].gain_e_adu == gain


def test_sixteen_bits_saturate_at_their_end(tmp_path):
    assert read(put(tmp_path / "a.fits", pixels("u2"))).frames[0].saturation_adu == 65535.0
    assert read(put(tmp_path / "b.fits", pixels("i2"))).frames[0].saturation_adu == 32767.0
    assert read(put(tmp_path / "c.fits", pixels())).frames[0].saturation_adu == math.inf
    path = put(tmp_path / "d.fits", pixels("u2"), cards(SATURATE=1e6))
    assert read(path).frames[0].saturation_adu == 65535.0


def test_the_instrument_says_what_the_header_does_not(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(
        "[values]\nscale_arcsec = 2.5\ngain_e_adu = 3.0\nread_noise_e = 9.0\n"
        "saturation_adu = 4000\nrotation_deg = 15.0\nparity = -1\npointing_error_deg = 0.5\n"
        "[header]\nra = 'MYRA'\ndec = 'MYDEC'\n"
    )
    header = cards(MYRA="10:00:00", MYDEC="-20:00:00", RA="0:0:1", DEC="0:0:1", XBINNING=2)
    exposure = read(put(tmp_path / "a.fits", pixels(), header), instrument=own)
    pointing, frame = exposure.pointing, exposure.frames[0]
    assert (pointing.ra_deg, pointing.dec_deg) == pytest.approx((150.0, -20.0))
    assert pointing.scale_arcsec == 5.0, "the plate scale is that of an unbinned pixel"
    assert (pointing.rotation_deg, pointing.parity, pointing.radius_deg) == (15.0, -1, 0.5)
    assert (frame.gain_e_adu, frame.read_noise_e, frame.saturation_adu) == (3.0, 9.0, 4000.0)
    with pytest.raises(SettingError):
        read(put(tmp_path / "b.fits", pixels()), instrument="nobody")


def test_a_flip_follows_the_date_of_the_image(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(
        "[values]\nparity = 1\nrotation_deg = 0.0\n[[flip]]\nbefore = '2021-05-24T11:35:53'\n"
        "mirror = true\nturn_deg = 180.0\n"
    )
    mounts = []
    for name, date in (("a", "2021-05-24T11:34:00"), ("b", "2021-05-24T11:36:00")):
        header = cards()
        header["DATE-OBS"] = date
        pointing = read(put(tmp_path / f"{name}.fits", pixels(), header), instrument=own).pointing
        mounts.append((pointing.parity, pointing.rotation_deg))
    assert mounts == [(-1, 180.0), (1, 0.0)]


# --- the checksum of the file ---------------------------------------------------------------


@pytest.mark.parametrize("size", [(NY, NX), (700, 800)])
def test_sha256_is_that_of_the_file(tmp_path, size):
    path = put(tmp_path / "a.fits", pixels("f4", size))
    truth = hashlib.sha256(path.read_bytes()).hexdigest()
    exposure = read(path)
    assert pickle.loads(pickle.dumps(exposure)).sha256 == truth
    assert exposure.sha256 == truth
    assert read(pixels()).sha256 == ""


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=0, max_size=5000), st.integers(0, 5000))
def test_the_sum_of_words_is_that_of_the_standard(data, cut):
    cut = cut // 4 * 4
    total = sum32(data[cut:], sum32(data[:cut]))
    words = np.frombuffer(data.ljust(-(-len(data) // 4) * 4, b"\0"), ">u4").astype(object)
    expected = int(words.sum()) if len(words) else 0
    while expected >> 32:
        expected = (expected & 0xFFFFFFFF) + (expected >> 32)
    assert total == expected
    assert checksum_text(total).isalnum()


# --- what cannot be read --------------------------------------------------------------------


def bad_input(tmp_path):
    """Return (path, words) of files that are no image."""
    good = put(tmp_path / "good.fits", pixels("f4", (200, 300))).read_bytes()
    table = fits.HDUList(
        [fits.PrimaryHDU(), fits.BinTableHDU.from_columns([fits.Column("x", "E", array=[1.0])])]
    )
    table.writeto(tmp_path / "table.fits")
    mosaic(tmp_path / "onlydq.fits", [("DQ", 1, np.zeros((NY, NX), dtype="i2"))])
    fits.PrimaryHDU().writeto(tmp_path / "header.fits")
    contents = {
        "text.fits": (b"this is not FITS\n" * 300, "not a FITS file"),
        "empty.fits": (b"", "empty file"),
        "short.fits": (good[:60_000], "truncated: it ends at byte 60000, HDU 0 needs 242880"),
        "head.fits": (good[:300], "the header of HDU 0 has no END"),
        "short.fits.gz": (gzip.compress(good)[:-5000], "ends too early"),
        "bad.fits.gz": (gzip.compress(good)[:50] + b"junk" * 500, "damaged compression"),
        "html.fits": (b"<html>404 not found</html>", "not a FITS file"),
    }
    for name, (content, words) in contents.items():
        (tmp_path / name).write_bytes(content)
        yield tmp_path / name, words
    yield tmp_path / "table.fits", "no image extension"
    yield tmp_path / "header.fits", "no image extension"
    yield tmp_path / "onlydq.fits", "no science extension"
    yield tmp_path / "none.fits", "no such file"
    yield tmp_path, "is a directory"


def test_bad_files_are_refused_with_their_reason(tmp_path):
    for path, words in bad_input(tmp_path):
        with pytest.raises(ImageError, match=words) as caught:
            read(path)
        assert caught.value.exit_code == ExitCode.IMAGE_UNREADABLE
        assert caught.value.hint
        assert path.name in str(caught.value)


def test_damage_raises_nothing_but_an_image_error(tmp_path):
    """Flip bytes, exchange cards, cut: what can still be read is, the rest is refused."""
    rng = np.random.default_rng(RNG_SEED)
    header, _ = wcs_cards(form="sip", degree=3)
    header.update(cards(GAIN=1.5, RA="10:00:00", DEC="20:00:00", EQUINOX=1950.0))
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(pixels(), header, name="SCI")]
    hdus += [fits.CompImageHDU(pixels("i2"), header, name="DQ")]
    fits.HDUList(hdus).writeto(tmp_path / "good.fits")
    good = (tmp_path / "good.fits").read_bytes()
    values = [b"'abc'", b"NaN  ", b"-1   ", b"0    ", b"1e400", b"T    ", b"     ", b"99999"]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(80):
        raw = bytearray(good)
        kind = rng.integers(3)
        for at in rng.integers(0, len(raw), rng.integers(1, 20)):
            card = at // 80 * 80
            if kind == 0:
                raw[at] = rng.integers(256)
            elif kind == 1:
                raw[card + 10 : card + 15] = values[rng.integers(len(values))]
            else:
                other = rng.integers(len(raw)) // 80 * 80
                raw[card : card + 80] = raw[other : other + 80].ljust(80)
        path = tmp_path / "bad.fits"
        path.write_bytes(raw[: rng.integers(len(raw))] if rng.random() < 0.1 else raw)
        try:
            for frame in read(path).frames:
                check_pixels(frame)
            outcomes["read"] += 1
        except ImageError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) >= 5


def test_missing_padding_is_no_truncation(tmp_path):
    path = put(tmp_path / "a.fits", pixels())
    path.write_bytes(path.read_bytes()[: 2880 + NY * NX * 4])
    assert np.array_equal(read(path).frames[0].data, pixels())


def test_cards_that_cannot_be_read_are_named(tmp_path):
    path = put(tmp_path / "a.fits", pixels(), cards(GAIN=2.0, OBSERVER="nobody"))
    raw = path.read_bytes().replace(b"OBSERVER= 'nobody  '", b"OBSERVER= 'nobody =,")
    path.write_bytes(raw)
    exposure = read(path)
    assert any("cannot be read: OBSERVER" in n for n in exposure.notes)
    assert exposure.frames[0].gain_e_adu == 2.0
    assert "OBSERVER" not in exposure.frames[0].header


def test_a_file_that_may_not_be_read(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    path = put(tmp_path / "a.fits", pixels())
    path.chmod(0)
    with pytest.raises(ImageError, match="permission denied"):
        read(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.full((NY, NX), np.nan), "every pixel is NaN"),
        (np.zeros((NY, NX)), "every pixel is zero"),
        (np.full((NY, NX), 7.0), "every pixel is 7"),
        (np.ones((1, 1)), "1x1 pixels are too few"),
        (np.ones((3, 900)), "900x3 pixels are too few"),
    ],
)
def test_pixels_without_a_star_are_refused(tmp_path, data, words):
    exposure = read(put(tmp_path / "a.fits", data.astype("f4")))
    with pytest.raises(ImageError, match=words) as caught:
        check_pixels(exposure.frames[0])
    assert caught.value.exit_code == ExitCode.IMAGE_UNREADABLE


def test_saturated_and_masked_everywhere():
    data = pixels() + 70000
    with pytest.raises(ImageError, match="100% of the pixels are at or above saturation"):
        check_pixels(Frame(data, saturation_adu=60000.0))
    with pytest.raises(ImageError, match="every pixel is masked"):
        check_pixels(Frame(data, mask=np.ones(data.shape, dtype=bool)))
    check_pixels(Frame(data))


def test_one_odd_pixel_among_many_is_seen():
    data = np.zeros((1000, 1000), dtype=np.float32)
    data[501, 503] = 1.0
    check_pixels(Frame(data))


# --- pictures -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.tiff", "u1"), ("a.tiff", "u2"), ("a.tiff", "f4"), ("a.png", "u1"), ("a.png", "u2")],
)
def test_pictures_are_pixels(tmp_path, name, dtype):
    from PIL import Image

    data = pixels(dtype)
    Image.fromarray(data).save(tmp_path / name)
    exposure = read(tmp_path / name)
    assert np.array_equal(exposure.frames[0].data, data.astype("f4"))
    assert exposure.frames[0].epoch_yr is None
    assert "pixels without a FITS header" in exposure.notes
    assert exposure.sha256
    if dtype != "f4":
        assert exposure.frames[0].saturation_adu == np.iinfo(dtype).max


def test_colour_pictures_are_averaged_and_alpha_is_left_out(tmp_path):
    from PIL import Image

    data = np.random.default_rng(1).integers(0, 255, (NY, NX, 4), dtype="u1")
    Image.fromarray(data).save(tmp_path / "a.png")
    assert np.allclose(read(tmp_path / "a.png").frames[0].data, data[..., :3].mean(axis=2))


def test_the_time_of_a_picture(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[306] = "2019:07:29 20:47:26"
    Image.fromarray(pixels("u1")).save(tmp_path / "a.tiff", exif=exif)
    truth = Time("2019-07-29T20:47:26").tt.jyear
    assert read(tmp_path / "a.tiff").frames[0].epoch_yr == pytest.approx(truth, abs=1e-9)


def test_a_picture_that_is_none(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="not a picture"):
        read(tmp_path / "a.png")
    with pytest.raises(ImageError, match="no such file"):
        read(tmp_path / "none.tiff")


# --- colour cameras -------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "grbg", "gbrg"])
def test_green_planes_of_every_pattern(pattern):
    data = np.zeros((4, 6), dtype=np.float32)
    values = {"r": 1.0, "b": 2.0}
    greens = iter([10.0, 20.0])
    for (j, i), letter in zip([(0, 0), (0, 1), (1, 0), (1, 1)], pattern):
        data[j::2, i::2] = values[letter] if letter in values else next(greens)
    assert np.all(debayered(Frame(data), pattern).data == 15.0)
    assert np.all(debayered(Frame(data), "sum").data == 33.0 / 4)


@pytest.mark.parametrize("form", ["tan", "tpv", "sip"])
def test_cells_keep_their_sky(form):
    header, model = wcs_cards(form=form, degree=1 if form == "tan" else 3)
    frame = read((pixels(), header), bayer="rggb").frames[0]
    assert frame.shape == (NY // 2, NX // 2)
    assert frame.cell == 2
    assert frame.gain_e_adu == 2.0
    ra, dec = sky_of_pixels(frame.wcs, np.array([0.0, 7.0]), np.array([0.0, 11.0]))
    truth = model.pixel_to_sky([0.5, 14.5], [0.5, 22.5])
    assert np.allclose([ra, dec], truth, atol=1e-10)
    of_cells, error = model_from_wcs(frame.wcs, frame.shape)
    assert error < 1e-3
    assert np.allclose(
        model_in_file(of_cells, 2).pixel_to_sky(30.0, 9.0), model.pixel_to_sky(30.0, 9.0)
    )


def test_an_unknown_pattern_and_the_scale_of_cells():
    with pytest.raises(ImageError, match="not a Bayer pattern"):
        read(pixels(), bayer="rgb")
    exposure = read((pixels(), cards(SECPIX=1.5)), bayer="sum")
    assert exposure.pointing.scale_arcsec == 3.0


# --- structure ------------------------------------------------------------------------------


def test_units_are_those_of_astropy(tmp_path):
    table = fits.BinTableHDU.from_columns(
        [fits.Column("x", "PE()", array=np.array([[1.0], [2.0, 3.0]], dtype=object))]
    )
    groups = [
        fits.PrimaryHDU(pixels("u2")),
        fits.ImageHDU(pixels("f8")),
        table,
        fits.CompImageHDU(pixels("i2")),
    ]
    path = tmp_path / "a.fits"
    fits.HDUList(groups).writeto(path)
    with path.open("rb") as stream:
        ours = list(read_units(stream, "a.fits", path.stat().st_size))
    with fits.open(path, disable_image_compression=True) as hdulist:
        assert [u.data_start for u in ours] == [h.fileinfo()["datLoc"] for h in hdulist]
        assert [u.data_size + (-u.data_size % 2880) for u in ours] == [
            h.fileinfo()["datSpan"] for h in hdulist
        ]
        assert [u.raw.decode() for u in ours] == [h.header.tostring() for h in hdulist]
    assert [u.is_image for u in ours] == [True, True, False, True]
    assert ours[3].shape == (NY, NX)


def test_reading_holds_one_copy(tmp_path):
    import tracemalloc

    data = np.zeros((3000, 2000), dtype="u2")
    path = put(tmp_path / "a.fits", data)
    read(path)  # imports and caches
    tracemalloc.start()
    frame = read(path).frames[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < frame.data.nbytes * 1.15


# --- real files -----------------------------------------------------------------------------


def test_real_ptf(data_dir):
    exposure = read(data_dir / "p01-ptf-m81-gaiaedr3" / "PTF_Cropped.fits")
    frame = exposure.frames[0]
    assert exposure.instrument == "ptf_p48"
    assert frame.shape == (1001, 1001)
    assert frame.mask is None, "its DATASEC is that of the whole chip"
    assert (frame.gain_e_adu, frame.read_noise_e, frame.saturation_adu) == (1.6, 5.4, 55000.0)
    assert frame.epoch_yr == pytest.approx(Time("2012-11-20T09:13:00.27").tt.jyear, abs=1e-8)
    assert exposure.pointing.parity == 1


def test_real_decam_with_its_companions(data_dir):
    folder = data_dir / "p06-decam-3band-9epoch-gaia"
    paths = sorted(folder.glob("*_ooi_*"))
    assert len(paths) >= 9
    masked = 0
    for path in paths:
        exposure = read(path)
        frame = exposure.frames[0]
        assert exposure.instrument == "decam_cp"
        assert frame.variance is not None
        weight = fits.getdata(str(path).replace("_ooi_", "_oow_"), 1)
        good = frame.mask == 0 if frame.mask is not None else np.ones(frame.shape, dtype=bool)
        assert np.allclose(frame.variance[good], 1.0 / weight[good])
        masked += 0 if frame.mask is None else np.count_nonzero(frame.unusable("photometry"))
    assert masked > 0


def test_real_dslr_compressed(data_dir):
    exposure = read(data_dir / "p09-panoptes" / "solved.fits.fz")
    frame = exposure.frames[0]
    with fits.open(data_dir / "p09-panoptes" / "solved.fits.fz") as hdulist:
        assert np.array_equal(frame.data, hdulist[1].data.astype("f4"))
    assert frame.wcs is not None
    assert exposure.instrument == "dslr"
    with pytest.raises(ImageError, match="not a FITS file"):
        read(data_dir / "p09-panoptes" / "solved.fits.solved")
    unsolved = read(data_dir / "p09-panoptes" / "unsolved.fits")
    assert unsolved.frames[0].wcs is None
    assert unsolved.pointing.ra_deg == pytest.approx(301.56439)


def test_real_mosaic_of_amplifiers(data_dir):
    exposure = read(data_dir / "p13-lco-mef-raw" / "mef_raw_test_frame.fits")
    assert exposure.instrument == "lco"
    assert [f.shape for f in exposure.frames] == [(522, 544)] * 4
    assert all(6.2 <= f.gain_e_adu <= 6.42 for f in exposure.frames)
    assert [int((f.mask == 0).sum()) for f in exposure.frames] == [512 * 512] * 4
    assert exposure.pointing.scale_arcsec == 0.778
    assert exposure.pointing.ra_deg == pytest.approx(287.32482917)
    assert all(f.wcs is None for f in exposure.frames)


def test_real_wfpc2_cube_with_group_parameters(data_dir):
    path = data_dir / "p14-wfpc2-omegacen" / "u40x010hm_c0f.fits.gz"
    exposure = read(path)
    assert exposure.instrument == "hst_wfpc2"
    assert [f.plane for f in exposure.frames] == [0, 1, 2, 3]
    scales = [
        math.sqrt(abs(np.linalg.det(f.wcs.pixel_scale_matrix))) * 3600 for f in exposure.frames
    ]
    assert scales == pytest.approx([0.0455, 0.0996, 0.0996, 0.0996], rel=1e-2)
    with fits.open(path) as hdulist:
        assert np.array_equal(exposure.frames[2].data, hdulist[0].data[2])
    assert all(0.1 < (f.mask != 0).mean() < 0.15 for f in exposure.frames), "from the c1f file"
    assert len(read(f"{path}[0,1]").frames) == 1
    with pytest.raises(ImageError, match="cube of 800x800x4"):
        read(path, instrument="generic")


def test_real_wfc3_ir_and_stis(data_dir):
    infrared = read(data_dir / "p03-wfc3ir-visit23-f140w-g141" / "ib6o23rsq_flt.fits.gz")
    frame = infrared.frames[0]
    assert infrared.instrument == "hst_wfc3_ir"
    assert frame.gain_e_adu == pytest.approx(1102.935669), "electrons a second"
    assert frame.variance is None, "ERR of this file is empty"
    assert 0.005 < (frame.mask != 0).mean() < 0.02
    stis = read(data_dir / "p15-stis-crsplit" / "o4k19a010_flt.fits.gz")
    first, second = stis.frames
    assert stis.instrument == "hst_stis"
    assert second.epoch_yr > first.epoch_yr
    assert first.variance is not None


def test_real_star_tracker(data_dir):
    path = sorted((data_dir / "p08-startracker-widefield").glob("*.tiff"))[0]
    exposure = read(path, instrument="startracker")
    assert exposure.frames[0].shape == (768, 1024)
    assert exposure.pointing.ra_deg is None


def test_real_files_in_place_are_never_touched(data_dir, tmp_path):
    source = data_dir / "p09-panoptes" / "noheader.fits"
    copy = Path(shutil.copy(source, tmp_path))
    before = copy.read_bytes()
    read(copy)
    assert copy.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["noheader.fits"]


# --- damaged on purpose ---------------------------------------------------------------------


def test_tiles_whose_compression_is_damaged(tmp_path):
    data = np.random.default_rng(3).integers(0, 900, (64, 64)).astype("i2")
    path = tmp_path / "a.fits.fz"
    tiles = fits.CompImageHDU(data, compression_type="GZIP_1")
    fits.HDUList([fits.PrimaryHDU(), tiles]).writeto(path)
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"\x1f\x8b")  # the last tile
    raw[at + 12 : at + 60] = b"\xff" * 48
    path.write_bytes(raw)
    with pytest.raises(ImageError, match="HDU 1 is damaged"):
        read(path)


@pytest.mark.parametrize("keyword", ["NAXIS", "ZNAXIS"])
@pytest.mark.parametrize("n", [99999999, -3])
def test_a_number_of_axes_that_nobody_has(tmp_path, keyword, n):
    path = tmp_path / "a.fits"
    tiles = fits.CompImageHDU(np.ones((40, 40), "i2"), compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), tiles]).writeto(path)
    raw = path.read_bytes()
    at = raw.rindex(keyword.ljust(8).encode() + b"=")
    path.write_bytes(raw[:at] + f"{keyword:<8}= {n:>20}".encode() + raw[at + 30 :])
    with pytest.raises(ImageError, match=f"HDU 1 is damaged .{keyword} = {n}"):
        read(path)


@pytest.mark.parametrize(
    "odd",
    [{"CTYPE1": 5}, {"CTYPE3": 5}, {"CRPIX1": 1e308}, {"PV1_1": "abc"}, {"CRVAL1": "12 00 00"},
     {"LONPOLE": "x"}, {"EQUINOX": "J2000"}, {"RADESYS": 3}, {"CUNIT1": 4}, {"CRVAL2": 1e5}],
    ids=str,
)
def test_cards_of_the_wrong_kind_are_noted(tmp_path, odd):
    header = fits.Header({
        "CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "CRVAL1": 10.0, "CRVAL2": 20.0, "CRPIX1": 20.0,
        "CRPIX2": 20.0, "CD1_1": -1e-4, "CD2_2": 1e-4, "PV1_1": 1.0, "PV2_1": 1.0, **odd,
    })
    path = tmp_path / "a.fits"
    fits.PrimaryHDU(np.ones((40, 40), "f4"), header).writeto(path)
    exposure = read(path)
    assert len([n for n in exposure.notes if "date" not in n]) > 0
