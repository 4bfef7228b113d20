"""Records of a distortion that would make wcslib write or read beyond its memory."""

import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

sys.path.insert(0, str(Path(__file__).parent.parent / "solutions"))

from exposures import make_flc

from cynosure.data.fits.wcsread import read_wcs


def with_record(header, old, new):
    """Return the header with one of its cards replaced, as the bytes of a file would have it."""
    text = header.tostring(sep="", endcard=False, padding=False)
    assert text.count(old.ljust(80)) == 1
    return fits.Header.fromstring(text.replace(old.ljust(80), new.ljust(80)))


@pytest.fixture
def exposure(tmp_path):
    with fits.open(make_flc(tmp_path / "j95y04hpq_flc.fits")) as units:
        yield units


def test_good_records_are_kept(exposure):
    wcs, notes = read_wcs(exposure["SCI", 1].header, hdulist=exposure)
    assert wcs.cpdis1 is not None
    assert wcs.det2im1 is not None
    assert not [n for n in notes if "DP" in n or "D2IM" in n]


@pytest.mark.parametrize(("new", "words"), [
    ("DP1     = 'NAXES: 2'", "DP1.NAXES is repeated"),
    ("DP1     = 'NAXES: 99'", "DP1.NAXES is 99"),
    ("DP1     = 'NAXES: 1e9'", "'NAXES: 1e9' is not a distortion record"),
    ("DP1     = 'AXIS.1: 1e9'", "'AXIS.1: 1e9' is not a distortion record"),
    ("DP1     = 'AXIS.1: 7'", "DP1.AXIS.1 is 7"),
    ("DP1     =                    2", "DP1 = 2 is not a distortion record"),
])
def test_records_that_wcslib_must_not_see(exposure, new, words):
    header = with_record(exposure["SCI", 1].header, "ORIENTAT=                  0.5", new)
    for _ in range(20):
        wcs, notes = read_wcs(header, hdulist=exposure, shape=(48, 64))
        assert [n for n in notes if words in n], notes
        if wcs is not None:
            assert np.isfinite(wcs.all_pix2world(10.0, 20.0, 0)).all()
