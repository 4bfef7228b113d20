"""The focal plane: chips turned against each other, and one that has no stars."""

import numpy as np
import pytest
from chips import SHAPE, chip_model, frame_of, observed

from cynosure.geometry.fit.chip import source_covariance
from cynosure.geometry.focalplane import lay_out
from cynosure.geometry.match.lists import Match
from cynosure.geometry.reference import Reference
from cynosure.ground.numeric import propagated

FIT = {"fit": {}}


def plane_of(ra, dec, n=(120, 120), source_px=(0.02, 0.004, 0.7), reference_mas=(0.2, 0.2, 0.0)):
    """Lay out two chips side by side, the second upside down and a little askew."""
    models = [chip_model(ra, dec, 20.0), chip_model(ra, dec, 203.0, at=(1100.0, 200.0))]
    parts = [
        observed(m, max(k, 1), seed=7 + i, source_px=source_px, reference_mas=reference_mas)
        for i, (m, k) in enumerate(zip(models, n))
    ]
    sources = [s[:k] for (s, _), k in zip(parts, n)]
    reference = joined([r for _, r in parts])
    frames = [frame_of(m, k) for k, m in enumerate(models)]
    return lay_out(frames, sources), frames, sources, reference, models


def joined(parts):
    names = ("stars", "ra_deg", "dec_deg", "cov_mas2", "stated_mas2")
    return Reference(*(np.concatenate([getattr(p, k) for p in parts]) for k in names), 2016.0)


def match_of(field):
    """Return what recognition would know: the pseudo-pixels lie north up."""
    model = chip_model(*field.center, 0.0, shape=field.shape)
    px, py = model.sky_to_pixel(*field.models[0].pixel_to_sky(449.5, 399.5))
    want = field.pseudo(0, np.array([449.5]), np.array([399.5]))
    model = model.replaced(
        x0=model.x0 + float(want[0][0] - px), y0=model.y0 + float(want[1][0] - py)
    )
    none = np.zeros(0, np.int64)
    return Match(none, none, model, 99.0, 1, 1, 0.5, 0.0, 1)


@pytest.mark.parametrize(("ra", "dec"), [(40.0, 10.0), (75.0, 89.7), (0.0, -89.9)])
def test_covariances_turn_with_the_chip(ra, dec):
    field, _, sources, _, _ = plane_of(ra, dec)
    every = field.combined(sources)
    for k, table in enumerate(sources):
        x, y = table["x"], table["y"]
        step = 0.01
        slope = np.empty((len(x), 2, 2))
        for c, (dx, dy) in enumerate(((step, 0.0), (0.0, step))):
            ahead, behind = field.pseudo(k, x + dx, y + dy), field.pseudo(k, x - dx, y - dy)
            slope[:, :, c] = (np.array(ahead) - np.array(behind)).T / (2 * step)
        mine = every[: len(x)] if k == 0 else every[len(sources[0]):]
        want = propagated(slope, source_covariance(table))
        got = source_covariance(mine)
        assert np.allclose(got, want, rtol=1e-4, atol=1e-9)
        # The long axis is not that of the pixels any more.
        assert np.abs(got[:, 2] / want[:, :2].max(axis=1)).mean() > 0.1


@pytest.mark.parametrize(("ra", "dec"), [(40.0, 10.0), (75.0, 89.7)])
def test_chips_are_fitted_with_their_own_errors(ra, dec):
    field, frames, sources, reference, models = plane_of(
        ra, dec, (400, 400), source_px=(0.004, 0.0008, 0.7), reference_mas=(12.0, 1.0, 0.3)
    )
    chips = field.fit(frames, sources, reference, match_of(field), FIT)
    x, y = np.array([10.0, 449.5, 890.0]), np.array([10.0, 399.5, 790.0])
    for chip, model in zip(chips, models):
        assert chip.fit.used.sum() > 300
        assert chip.fit.errors.a == pytest.approx(1.0, abs=0.2)
        assert chip.fit.errors.sigma0_mas < 2.0
        back = model.sky_to_pixel(*chip.fit.model.pixel_to_sky(x, y))
        error = 500.0 * np.hypot(back[0] - x, back[1] - y)
        assert (error < 4.0 * np.hypot(*chip.fit.wcs_error_mas(x, y).T) + 0.01).all()


def test_a_chip_without_stars_is_as_uncertain_as_the_plane_is_at_its_worst():
    field, frames, sources, reference, models = plane_of(40.0, 10.0, (200, 0))
    chips = field.fit(frames, sources, reference, match_of(field), FIT)
    assert [c.inherited for c in chips] == [False, True]
    x, y = np.array([0.0, 450.0, 899.0]), np.array([0.0, 400.0, 799.0])
    error = chips[1].fit.wcs_error_mas(x, y)
    own = chips[0].fit.wcs_error_mas(x, y)
    assert (error > own.max(axis=0)).all(), "it lies beyond the stars"
    back = models[1].sky_to_pixel(*chips[1].fit.model.pixel_to_sky(x, y))
    away = 500.0 * np.hypot(back[0] - x, back[1] - y)
    assert (away < 4.0 * np.hypot(*error.T)).all()
    assert (np.hypot(*error.T) < 50.0).all()
    assert SHAPE[0] < field.shape[1]
