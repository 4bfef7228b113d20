"""The verdict: each check trips alone, and quality follows its table."""

import math

import numpy as np
import pytest

from cynosure.solutions.quality import Measured, coverage_4x4, judge

GOOD = {
    "n_used": 200, "n_reserved": 30, "rms_mas": 30.0, "rms_reserved_mas": 31.0,
    "scale_arcsec": 1.0, "log_odds": 300.0, "chi2_dof": 1.0, "coverage": 1.0,
    "before_ratio": 0.04, "wcs_error_mas": 3.0,
}


def test_a_good_solution_passes_every_check():
    verdict = judge(Measured(**GOOD))
    assert (verdict.status, verdict.quality, verdict.reasons) == ("solved", 1, ())
    assert [c.name for c in verdict.checks] == [
        "odds", "stars", "rms", "coverage", "reserved", "chi2", "corner", "before",
    ]


@pytest.mark.parametrize(
    ("name", "fault", "status", "quality"),
    [
        ("odds", {"log_odds": 20.9}, "failed", 5),
        ("odds", {"log_odds": math.nan}, "failed", 5),
        ("stars", {"n_used": 5, "n_reserved": 0}, "compromised", 2),
        ("rms", {"rms_mas": 1001.0, "rms_reserved_mas": 1001.0},
         "compromised", 4),
        ("coverage", {"coverage": 0.5}, "compromised", 2),
        ("reserved", {"rms_reserved_mas": 90.0}, "compromised", 2),
        ("chi2", {"chi2_dof": 2.1}, "compromised", 2),
        ("corner", {"wcs_error_mas": 501.0}, "compromised", 2),
        ("before", {"before_ratio": 1.2}, "compromised", 2),
    ],
)
def test_each_fault_trips_its_check_alone(name, fault, status, quality):
    verdict = judge(Measured(**{**GOOD, **fault}))
    assert [c.name for c in verdict.checks if not c.passed] == [name]
    assert (verdict.status, verdict.quality) == (status, quality)
    assert len(verdict.reasons) == 1
    assert verdict.reasons[0]


@pytest.mark.parametrize(
    ("rms_mas", "quality"), [(199.9, 1), (200.0, 3), (1000.0, 3), (1000.1, 4)]
)
def test_limits_follow_the_pixel(rms_mas, quality):
    numbers = {**GOOD, "rms_mas": rms_mas, "rms_reserved_mas": rms_mas}
    assert judge(Measured(**numbers)).quality == quality
    half = {**numbers, "rms_mas": rms_mas / 2, "rms_reserved_mas": rms_mas / 2, "scale_arcsec": 0.5}
    assert judge(Measured(**half)).quality == quality


@pytest.mark.parametrize(("rms_mas", "quality"), [(9.9, 1), (10.0, 3), (20.0, 3)])
def test_limits_of_the_archives(rms_mas, quality):
    numbers = {**GOOD, "rms_mas": rms_mas, "rms_reserved_mas": rms_mas, "scale_arcsec": 0.05}
    assert judge(Measured(**numbers), fine_rms_mas=10.0, coarse_rms_mas=1000.0).quality == quality


def test_what_is_not_known_is_not_held_against_a_solution():
    unknown = {k: math.nan for k in ("rms_reserved_mas", "chi2_dof", "before_ratio",
                                     "wcs_error_mas")}
    assert judge(Measured(**{**GOOD, **unknown, "n_reserved": 0})).quality == 1
    assert judge(Measured(**{**GOOD, "rms_mas": math.nan})).status == "failed"


def test_honest_reserved_stars_rarely_trip():
    rng = np.random.default_rng(5)
    tripped = 0
    for _ in range(2000):
        n_used, n_reserved = rng.integers(8, 200), rng.integers(2, 40)
        used, reserved = rng.normal(size=2 * n_used), rng.normal(size=2 * n_reserved)
        verdict = judge(Measured(**{**GOOD, "n_used": int(n_used), "n_reserved": int(n_reserved),
                           "rms_mas": float(np.sqrt(np.mean(used**2))),
                           "rms_reserved_mas": float(np.sqrt(np.mean(reserved**2)))}))
        tripped += not next(c for c in verdict.checks if c.name == "reserved").passed
    assert tripped <= 2
    # and twice the residuals on as many stars do
    verdict = judge(Measured(**{**GOOD, "n_reserved": 40, "rms_reserved_mas": 62.0}))
    assert verdict.reasons


def test_coverage():
    assert coverage_4x4([], [], 100, 100) == 0.0
    assert coverage_4x4([-0.5, 99.4], [0, 99.4], 100, 100) == 2 / 16
    x, y = np.meshgrid(np.arange(0, 100, 25), np.arange(0, 60, 15))
    assert coverage_4x4(x.ravel(), y.ravel(), 100, 60) == 1.0
    # Few stars strewn at random do not fill sixteen cells, and are not asked to.
    rng = np.random.default_rng(1)
    passed = 0
    for _ in range(300):
        coverage = coverage_4x4(*rng.uniform(0, 100, (2, 8)), 100, 100)
        verdict = judge(Measured(**{**GOOD, "n_used": 8, "n_reserved": 0, "coverage": coverage}))
        passed += not verdict.reasons
    assert passed > 294
