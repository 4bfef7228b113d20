"""Fixtures of an outcome and of a finished run."""

import pytest
from outcomes import (
    make_extras,
    make_image,
    make_matches,
    make_solution,
    make_sources,
    with_reference,
)

from cynosure.data.tables import MATCHES, write_parquet
from cynosure.pipelines.evidence import ENDING, write_evidence
from cynosure.pipelines.manifest import Manifest, Row
from cynosure.solutions.solution import Solution


@pytest.fixture(scope="session")
def matches():
    return make_matches()


@pytest.fixture(scope="session")
def outcome(matches):
    """Give matches, sources and extras of one image."""
    sources = make_sources(matches)
    extras = make_extras(make_image(sources, matches))
    return matches, sources, with_reference(extras, matches)


@pytest.fixture(scope="session")
def run_folder(outcome, tmp_path_factory):
    """Give the folder of a finished run of four images: all three verdicts, two solved."""
    matches, sources, extras = outcome
    folder = tmp_path_factory.mktemp("run")
    compromised = make_solution("thin.fits", status="compromised", quality=2, exit_code=13,
                                reason="stars in 31% of the frame's 4 x 4 cells, 60% needed")
    failed = Solution(
        "night/cloud.fits", status="failed", quality=5, exit_code=10, n_sources=9, n_reference=214,
        reason="no match between 9 sources and 214 reference stars",
        tried=({"step": "quads", "quads": 5012, "best_log_odds": 4.2, "needed": 21.0},),
        hints=("Try a larger --radius, or --blind <index>.",),
    )
    solutions = [make_solution(), compromised, make_solution("second.fits"), failed]
    manifest = Manifest(folder, facts={
        "command": ["cynosure", "solve", "demo.fits", "--refcat", "gaia"],
        "settings": {"quality": {"min_used": {"value": 6, "origin": "--set quality.min_used=6"}}},
        "catalog": {"name": "GAIADR3", "source": "gaia", "rows": 12345},
    })
    for solution in solutions:
        stem = solution.image.rpartition("/")[2].removesuffix(".fits")
        (folder / f"{stem}.solution.json").write_text(solution.to_json())
        if solution.status != "failed":
            write_parquet(folder / f"{stem}.matches.parquet", matches, MATCHES)
        if stem in ("demo", "thin"):
            write_evidence(folder / f"{stem}{ENDING}", sources, extras)
        manifest.rows[stem] = Row(solution.image, solution.status, solution.reason,
                                  solution.quality, exit_code=solution.exit_code, seconds=1.1)
    manifest.write("finished")
    return folder
