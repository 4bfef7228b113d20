"""The numbers of a verdict: what is counted, along which axes, and which corner is the worst."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "geometry"))
from chips import SHAPE, chip_model, frame_of, observed

from cynosure.data.tables import MATCHES
from cynosure.geometry.fit.chip import fit_chip
from cynosure.pipelines.verdict import _before, _match_rows, _numbers, _wcs_error


def chip_at(ra, dec, n=600, settings=None, **errors):
    model = chip_model(ra, dec)
    sources, reference = observed(model, n, **errors)
    frame = frame_of(model)
    chip = fit_chip(frame.replaced(wcs=None), sources, reference, model, SHAPE,
                    {"fit": settings or {}})
    return chip, SimpleNamespace(reference=reference), frame


@pytest.mark.parametrize(("ra", "dec"), [(75.0, 89.7), (0.0, -89.9), (0.0, 30.0)])
def test_the_match_table_is_along_ra_and_dec(ra, dec):
    chip, plate, _ = chip_at(ra, dec, reference_mas=(30.0, 3.0, 0.4),
                             source_px=(0.002, 0.002, 0.0))
    rows = _match_rows(chip, plate)
    assert len(rows) > 500
    # The catalogue's 30 and 3 mas, and 1 to 10 mas of the sources.
    assert np.median(rows["sigma_ra_mas"]) == pytest.approx(30.2, abs=1.0)
    assert 3.0 < np.median(rows["sigma_dec_mas"]) < 6.0
    for axis in ("ra", "dec"):
        pull = rows[f"d{axis}_mas"] / rows[f"sigma_{axis}_mas"]
        assert np.std(pull[rows["used"]]) == pytest.approx(1.0, abs=0.08)
        assert np.std(pull[rows["reserved"]]) == pytest.approx(1.0, abs=0.25)
    numbers = _numbers([chip], rows)
    assert numbers["rms_ra_mas"] == pytest.approx(30.2, rel=0.1)
    assert numbers["rms_dec_mas"] < 8.0
    assert numbers["sigma0_mas"] < 2.0


def test_the_wcs_that_made_the_stars_is_as_good_as_the_fit_at_a_pole():
    chip, plate, frame = chip_at(75.0, 89.7, reference_mas=(30.0, 3.0, 0.4))
    chip = type(chip)(frame, *(getattr(chip, k) for k in list(chip.__slots__)[1:]))
    before, ratio = _before([chip], _match_rows(chip, plate))
    assert before["before_offset_arcsec"] < 0.01
    assert ratio == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("threshold", [4.3, 3.0])
def test_every_star_that_the_fit_holds_out_is_counted(threshold):
    chip, plate, _ = chip_at(40.0, 10.0, 1500, {"error_threshold": threshold}, scatter_mas=5.0)
    rows = _match_rows(chip, plate)
    numbers = _numbers([chip], rows)
    held = rows["reserved"]
    assert numbers["n_reserved"] == chip.fit.reserved.sum() == held.sum()
    for axis in ("ra", "dec"):
        want = np.sqrt(np.mean(rows[f"d{axis}_mas"][held] ** 2))
        assert numbers[f"rms_reserved_{axis}_mas"] == pytest.approx(want)
        typical = np.sqrt(np.mean(rows[f"sigma_{axis}_mas"][held] ** 2))
        assert want / typical == pytest.approx(1.0, abs=0.15)
    assert numbers["n_clipped"] == len(rows) - numbers["n_used"] - numbers["n_reserved"]


def test_the_worst_corner_of_the_worst_chip_is_reported():
    def chip(center, corners):
        table = np.repeat([center, *corners], 2).reshape(5, 2)
        error = SimpleNamespace(wcs_error_mas=lambda x, y: table)
        return SimpleNamespace(frame=SimpleNamespace(shape=SHAPE), fit=error)

    chips = [chip(1.0, (2.0, 9.0, 3.0, 4.0)), chip(1.5, (2.0, 2.0, 2.0, 2.0))]
    assert _wcs_error(chips) == {"center": 1.5, "corner": 9.0}
    assert len(MATCHES.names) > 0
