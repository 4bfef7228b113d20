"""Writing: a new WCS, every other byte as it was, all of it or nothing."""

import errno
import gzip
import os
import stat
import subprocess
import sys
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from cynosure.data.fits import parts as fitswrite
from cynosure.data.fits.alternates import records_of, restore_alternate
from cynosure.data.fits.blocks import read_units
from cynosure.data.fits.reader import output_name, read, write_header_only
from cynosure.data.fits.wcsread import is_wcs_keyword
from cynosure.geometry.skymodel import SkyModel
from cynosure.geometry.wcs import header_error_mas, model_from_wcs, model_to_header
from cynosure.ground.errors import ImageError, OutputError, OutputExists, SettingError
from cynosure.pipelines.save import Request, save_image
from cynosure.solutions.files.headerlet import is_solution_keyword

SHAPE = (40, 60)
SUMS = ("CHECKSUM", "DATASUM", "ZHECKSUM")


def model(seed=0):
    rng = np.random.default_rng(seed)
    coeff = np.zeros((2, 10))
    coeff[0, 1], coeff[1, 2] = -0.01, 0.01
    coeff[:, 3:] = rng.normal(0, 1e-5, (2, 7))
    return SkyModel(150.0, 20.0, 29.5, 19.5, 30.0, coeff)


def new_cards(name="GAIA", seed=0, shape=SHAPE):
    wcs = model_to_header(model(seed), "tpv", shape=shape)
    wcs.insert(0, ("WCSNAME", name))
    wcs["NMATCHES"] = (120, "stars in the fit")
    return wcs


def write_solved(source, out, cards, *, overwrite=False, archive="ORIGINAL"):
    return save_image(source, out, Request(cards, {}, archive=archive), overwrite=overwrite)


def source(tmp_path, data=None, name="a.fits", **cards):
    header = fits.Header([("OBJECT", "M81", "kept"), ("GAIN", 1.5), *cards.items()])
    header.extend(model_to_header(model(5), "sip", shape=SHAPE).cards, end=True)
    header["LAST"] = ("card", "after the WCS")
    header["HISTORY"] = "told once"
    header["HISTORY"] = "told once"
    if data is None:
        data = np.random.default_rng(1).integers(0, 60000, SHAPE).astype("u2")
    path = tmp_path / name
    fits.PrimaryHDU(data, header).writeto(path)
    return path


def units(path):
    with path.open("rb") as stream:
        return list(read_units(stream, path.name, path.stat().st_size))


def data_bytes(path):
    raw = path.read_bytes()
    return [raw[u.data_start : u.data_start + u.data_size] for u in units(path)]


def verified(path):
    """Return the headers after astropy has found every sum and card right."""
    with fits.open(path, checksum=True) as hdulist:
        hdulist.verify("exception")
        return [hdu.header.copy() for hdu in hdulist]


def kept(path, index=0):
    records = records_of(units(path)[index].raw)
    return [
        r
        for r in records
        if not is_solution_keyword(r[0]) and r[0] not in (*SUMS, "")
    ]


# --- what is kept ---------------------------------------------------------------------------


def test_pixels_and_cards_are_kept_and_the_new_wcs_is_active(tmp_path):
    path = source(tmp_path)
    out = write_solved(path, tmp_path / "out.fits", {0: new_cards()})
    assert data_bytes(out) == data_bytes(path)
    header = verified(out)[0]
    assert (header["BZERO"], header["NMATCHES"], header["GAIN"]) == (32768, 120, 1.5)
    assert header.comments["OBJECT"] == "kept"
    assert list(header["HISTORY"]) == ["told once", "told once"]
    assert header_error_mas(header, model(), SHAPE) < 1e-3
    ours = [r for r in kept(out) if not r[0].endswith("A")]
    assert ours == kept(path), "every other card, to the byte, in its order"
    frame = read(out).frames[0]
    assert np.array_equal(frame.data, read(path).frames[0].data)
    assert list(header).index("WCSNAME") < list(header).index("LAST"), "where the old one was"


def test_other_readers_see_the_new_wcs(tmp_path):
    out = write_solved(source(tmp_path), tmp_path / "out.fits", {0: new_cards()})
    sky = WCS(fits.getheader(out)).all_pix2world([[10.0, 20.0], [50.0, 3.0]], 0)
    truth = np.column_stack(model().pixel_to_sky([10.0, 50.0], [20.0, 3.0]))
    assert np.allclose(sky, truth, atol=1e-12)


def test_the_old_wcs_can_be_restored(tmp_path):
    path = source(tmp_path)
    out = write_solved(path, tmp_path / "out.fits", {0: new_cards()})
    header = verified(out)[0]
    assert header["WCSNAMEA"] == "ORIGINAL"
    old = [str(c) for c in fits.getheader(path).cards if is_wcs_keyword(c.keyword)]
    restore_alternate(header, "A")
    assert [str(c) for c in header.cards if is_wcs_keyword(c.keyword)] == old


def test_a_repeat_changes_nothing(tmp_path):
    path = source(tmp_path)
    first = write_solved(path, tmp_path / "1.fits", {0: new_cards()})
    second = write_solved(first, tmp_path / "2.fits", {0: new_cards()})
    assert second.read_bytes() == first.read_bytes()
    third = write_solved(first, tmp_path / "3.fits", {0: new_cards(seed=3)})
    assert len(verified(third)[0]) == len(verified(first)[0]), (
        "a solution of the same name is replaced"
    )
    fourth = write_solved(first, tmp_path / "4.fits", {0: new_cards("OTHER", seed=3)})
    assert verified(fourth)[0]["WCSNAMEB"] == "GAIA", "one of another name is kept"
    bare = write_solved(path, tmp_path / "5.fits", {0: new_cards()}, archive=None)
    assert "WCSNAMEA" not in verified(bare)[0]


def test_an_image_without_a_wcs(tmp_path):
    path = tmp_path / "a.fits"
    fits.PrimaryHDU(np.ones(SHAPE, "f4")).writeto(path)
    header = verified(write_solved(path, tmp_path / "out.fits", {0: new_cards()}))[0]
    assert not [k for k in header if k.endswith("A")]
    assert header_error_mas(header, model(), SHAPE) < 1e-3


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "i8", "f4", "f8"])
def test_every_pixel_type_is_copied(tmp_path, dtype):
    data = (np.random.default_rng(2).normal(100, 20, (37, 41))).astype(dtype)
    path = source(tmp_path, data)
    out = write_solved(path, tmp_path / "out.fits", {0: new_cards()})
    verified(out)
    assert data_bytes(out) == data_bytes(path)


def test_other_extensions_are_copied_to_the_byte(tmp_path):
    rng = np.random.default_rng(3)
    table = fits.BinTableHDU.from_columns([fits.Column("x", "E", array=rng.normal(size=100))])
    squeezed = fits.CompImageHDU(rng.integers(0, 9, SHAPE).astype("i2"), name="SCI")
    path = tmp_path / "a.fits"
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(rng.normal(size=SHAPE), name="SCI"), table, squeezed]
    fits.HDUList(hdus).writeto(path, checksum=True)
    out = write_solved(path, tmp_path / "out.fits", {1: new_cards(), 3: new_cards(seed=2)})
    verified(out)
    assert data_bytes(out) == data_bytes(path)
    assert [u.raw for u in units(out)][::2] == [u.raw for u in units(path)][::2]
    with fits.open(out) as hdulist:
        assert np.array_equal(hdulist[3].data, squeezed.data)
        assert header_error_mas(hdulist[3].header, model(2), SHAPE) < 1e-3


def test_compressed_images_stay_compressed(tmp_path):
    data = np.random.default_rng(4).integers(0, 60000, SHAPE).astype("u2")
    path = tmp_path / "a.fits.fz"
    header = model_to_header(model(5), "tpv", shape=SHAPE)
    hdus = [fits.PrimaryHDU(), fits.CompImageHDU(data, header)]
    fits.HDUList(hdus).writeto(path, checksum=True)
    out = write_solved(path, tmp_path / "out.fits.fz", {1: new_cards()})
    assert data_bytes(out) == data_bytes(path)
    assert "ZHECKSUM" not in verified(out)[1]
    frame = read(out).frames[0]
    assert np.array_equal(frame.data, data)
    assert header_error_mas(frame.header, model(), SHAPE) < 1e-3
    assert frame.header["WCSNAMEA"] == "ORIGINAL"


def test_gzip_is_written_plain(tmp_path):
    path = source(tmp_path)
    packed = tmp_path / "b.fits.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    out = write_solved(packed, tmp_path / "out.fits", {0: new_cards()})
    assert data_bytes(out) == data_bytes(path)
    with pytest.raises(SettingError, match="cannot be changed in place"):
        write_solved(packed, packed, {0: new_cards()})


def test_cards_that_are_not_quite_fits_survive(tmp_path):
    path = source(tmp_path)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"OBJECT  =")
    odd = b"OBJECT  = 'Barnard\xb4s star / unterminated".ljust(80)
    raw[at : at + 80] = odd
    path.write_bytes(raw)
    out = write_solved(path, tmp_path / "out.fits", {0: new_cards()})
    assert odd in out.read_bytes()
    assert read(out).frames[0].wcs is not None


def test_long_strings_and_hierarch_cards_survive(tmp_path):
    long = "x" * 200
    path = source(tmp_path, LONGTEXT=long)
    with fits.open(path, mode="update") as hdulist:
        hdulist[0].header["HIERARCH ESO DET OUT1 CONAD"] = 2.5
    header = verified(write_solved(path, tmp_path / "out.fits", {0: new_cards()}))[0]
    assert header["LONGTEXT"] == long
    assert header["ESO DET OUT1 CONAD"] == 2.5


def test_bytes_after_the_last_unit_survive(tmp_path):
    path = source(tmp_path)
    special = b"special records".ljust(2880, b"\0")
    with path.open("ab") as stream:
        stream.write(special)
    out = write_solved(path, tmp_path / "out.fits", {0: new_cards()})
    assert out.read_bytes().endswith(special)


def test_the_planes_of_a_cube_get_headers_of_their_own(tmp_path):
    data = np.random.default_rng(5).normal(size=(3, *SHAPE)).astype("f4")
    path = tmp_path / "cube.fits"
    fits.PrimaryHDU(data, fits.Header({"OBJECT": "cube"})).writeto(path)
    out = write_solved(
        path, tmp_path / "out.fits", {(0, 0): new_cards(), (0, 2): new_cards(seed=2)}
    )
    assert data_bytes(out)[0] == data_bytes(path)[0]
    headers = verified(out)
    assert headers[0]["AST_PLAN"] == 0
    assert header_error_mas(headers[0], model(), SHAPE) < 1e-3, "the first plane's, for others"
    assert [(h["EXTNAME"], h["EXTVER"], h["PLANE"]) for h in headers[1:]] == [
        ("WCS", 1, 0),
        ("WCS", 3, 2),
    ]
    assert header_error_mas(headers[2], model(2), SHAPE) < 1e-3
    assert headers[1]["NMATCHES"] == 120
    again = write_solved(out, tmp_path / "2.fits", {(0, 2): new_cards(seed=4)})
    found = {h["PLANE"]: h for h in verified(again)[1:]}
    assert sorted(found) == [0, 2]
    assert header_error_mas(found[2], model(4), SHAPE) < 1e-3
    for plane, seed in ((0, 0), (2, 4)):
        frame = read(again, extension=f"0,{plane}").frames[0]
        assert np.array_equal(frame.data, data[plane])
        assert header_error_mas(frame.header, model(seed), SHAPE) < 1e-3
        assert frame.wcs is not None


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_a_picture_becomes_fits(tmp_path, dtype):
    from PIL import Image

    data = np.random.default_rng(6).integers(0, 255, SHAPE).astype(dtype)
    Image.fromarray(data).save(tmp_path / "a.tiff")
    out = write_solved(tmp_path / "a.tiff", tmp_path / "a_wcs.fits", {0: new_cards()})
    header = verified(out)[0]
    assert np.array_equal(fits.getdata(out), data)
    assert header["NMATCHES"] == 120
    assert np.array_equal(read(out).frames[0].data, data.astype("f4"))
    assert header_error_mas(header, model(), SHAPE) < 1e-3
    with pytest.raises(SettingError, match="cannot hold a WCS"):
        write_solved(tmp_path / "a.tiff", tmp_path / "a.tiff", {0: new_cards()})


# --- in place -------------------------------------------------------------------------------


def test_in_place_keeps_name_mode_and_links(tmp_path):
    path = source(tmp_path)
    path.chmod(0o640)
    link = tmp_path / "link.fits"
    link.symlink_to(path)
    before = data_bytes(path)
    write_solved(link, link, {0: new_cards()})
    assert link.is_symlink()
    assert data_bytes(path) == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert verified(path)[0]["WCSNAME"] == "GAIA"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.fits", "link.fits"]


# --- headers alone --------------------------------------------------------------------------


def test_a_header_without_pixels(tmp_path):
    out = write_header_only(tmp_path / "a.wcs.fits", new_cards(), SHAPE)
    header = verified(out)[0]
    assert (header["NAXIS"], header["IMAGEW"], header["IMAGEH"]) == (0, 60, 40)
    assert header_error_mas(header, model(), SHAPE) < 1e-3
    assert out.stat().st_size % 2880 == 0


def test_headers_of_several_chips(tmp_path):
    headers = [new_cards(seed=k) for k in range(3)]
    out = write_header_only(tmp_path / "a.wcs.fits", headers, [SHAPE] * 3)
    found = verified(out)
    assert len(found) == 4
    assert [h["EXTVER"] for h in found[1:]] == [1, 2, 3]
    for k in range(3):
        assert header_error_mas(found[k + 1], model(k), SHAPE) < 1e-3


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("m81.fits", "m81_wcs.fits"),
        ("x/m81.fits.fz", "m81_wcs.fits"),
        ("m81.FIT.gz", "m81_wcs.fits"),
        ("m81.v2.tiff", "m81.v2_wcs.fits"),
        ("m81", "m81_wcs.fits"),
        (".fits", ".fits_wcs.fits"),
    ],
)
def test_names_of_products(name, result):
    assert output_name(name, "_wcs.fits") == result


# --- all of it or nothing -------------------------------------------------------------------


def nothing_new(folder, *names):
    return sorted(p.name for p in folder.iterdir()) == sorted(names)


def test_an_existing_output_is_kept_unless_asked(tmp_path):
    path = source(tmp_path)
    out = tmp_path / "out.fits"
    out.write_bytes(b"precious")
    with pytest.raises(OutputExists):
        write_solved(path, out, {0: new_cards()})
    with pytest.raises(OutputExists):
        write_header_only(out, new_cards(), SHAPE)
    assert out.read_bytes() == b"precious"
    write_solved(path, out, {0: new_cards()}, overwrite=True)
    verified(out)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("after", [0, 1])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch, code, after):
    path = source(tmp_path)
    calls = []

    def full(sink, data):
        calls.append(len(data))
        if len(calls) > after:
            raise OSError(code, os.strerror(code))
        write(sink, data)

    write = fitswrite._write_all
    monkeypatch.setattr(fitswrite, "_write_all", full)
    with pytest.raises(OutputError) as caught:
        write_solved(path, tmp_path / "out.fits", {0: new_cards()})
    assert os.strerror(code).lower() in str(caught.value)
    assert nothing_new(tmp_path, "a.fits")
    before = path.read_bytes()
    with pytest.raises(OutputError):
        write_solved(path, path, {0: new_cards()})
    assert path.read_bytes() == before, "in place, the old file survives"


def test_a_really_full_disk(tmp_path):
    """A limit on the size of files is the nearest to a full disk that needs no mount."""
    path = source(tmp_path, np.zeros((600, 600), "f4"))
    cards = tmp_path / "cards.txt"
    new_cards().tofile(cards, endcard=True)
    code = (
        "import resource, signal, sys\n"
        "from cynosure.pipelines.save import Request, save_image\n"
        "from cynosure.ground.errors import OutputError\n"
        "from astropy.io.fits import Header\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "try:\n"
        "    cards = Header.fromfile(sys.argv[3], endcard=False, padding=False)\n"
        "    save_image(sys.argv[1], sys.argv[2], Request({0: cards}, {}))\n"
        "except OutputError as error:\n"
        "    sys.exit(int(error.exit_code))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "out.fits"), str(cards)],
        check=False,
        capture_output=True,
    )
    assert done.returncode == 18, done.stderr
    assert nothing_new(tmp_path, "a.fits", "cards.txt")


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    path = source(tmp_path)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fitswrite, "checksum_text", stop)
    with pytest.raises(KeyboardInterrupt):
        write_solved(path, tmp_path / "out.fits", {0: new_cards()})
    assert nothing_new(tmp_path, "a.fits")


def test_a_folder_that_may_not_be_written(tmp_path):
    path = source(tmp_path)
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        if os.geteuid() == 0:
            pytest.skip("root writes everywhere")
        with pytest.raises(OutputError, match="permission denied"):
            write_solved(path, folder / "out.fits", {0: new_cards()})
    finally:
        folder.chmod(0o700)


def test_a_file_system_that_is_read_only(tmp_path, monkeypatch):
    path = source(tmp_path)

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match="read-only file system"):
        write_solved(path, tmp_path / "out.fits", {0: new_cards()})


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="no such file or directory"):
        write_solved(source(tmp_path), tmp_path / "none" / "out.fits", {0: new_cards()})


def test_a_source_that_is_truncated_or_lacks_the_extension(tmp_path):
    path = source(tmp_path)
    with pytest.raises(ImageError, match="no HDU 3"):
        write_solved(path, tmp_path / "out.fits", {3: new_cards()})
    path.write_bytes(path.read_bytes()[:7000])
    with pytest.raises(ImageError, match="truncated"):
        write_solved(path, tmp_path / "out.fits", {0: new_cards()})
    assert nothing_new(tmp_path, "a.fits")


# --- real files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hdu"),
    [
        ("p01-ptf-m81-gaiaedr3/PTF_Cropped.fits", 0),
        ("p09-panoptes/solved.fits.fz", 1),
        ("p15-stis-crsplit/o4k19a010_flt.fits.gz", 4),
        ("p04-hst-headerlets/sample_ipppssoot_flc.fits", 1),
        ("p12-wcs-zoo/tpv.fits", 0),
    ],
)
def test_real_files_keep_their_pixels_and_get_their_wcs(data_dir, tmp_path, name, hdu):
    path = data_dir / name
    frame = next(f for f in read(path).frames if f.hdu == hdu)
    solved, error = model_from_wcs(frame.wcs, frame.shape)
    wcs = model_to_header(solved, "tpv", shape=frame.shape)
    wcs["WCSNAME"] = "GAIA"
    out = write_solved(path, tmp_path / output_name(path, "_wcs.fits"), {hdu: wcs})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(path) as old, fits.open(out) as new:
            assert len(old) == len(new)
            for a, b in zip(old, new):
                if a.is_image and a.data is not None:
                    assert np.array_equal(a.data, b.data, equal_nan=a.data.dtype.kind == "f")
            assert new[hdu].verify_checksum() if hasattr(new[hdu], "verify_checksum") else True
    again = next(f for f in read(out).frames if f.hdu == hdu)
    assert header_error_mas(again.header, solved, frame.shape) < 1e-3
    assert np.array_equal(again.data, frame.data, equal_nan=True)
    assert error < 5.0
