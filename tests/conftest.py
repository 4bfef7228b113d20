"""What all tests share: where real data is, which programs are there."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No test is right or wrong by the clock, and none by the day on which it is run.
settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

os.environ.setdefault("NUMBA_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
# `make test-all` installs what tests want and sets this; nothing is then skipped for lack of it.
TEST_ALL = os.environ.get("CYNOSURE_TEST_ALL") == "1"


def pytest_configure(config):
    config.addinivalue_line("markers", "needs(program): skip where a program is not installed")


def pytest_runtest_setup(item):
    for marker in item.iter_markers("needs"):
        program = marker.args[0]
        if shutil.which(program) is None:
            if TEST_ALL:
                pytest.fail(f"{program} is not installed")
            pytest.skip(program)


@pytest.fixture(scope="session")
def root():
    """Give the folder of the project."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir():
    """Give the folder of real data; skip where it is not there."""
    folder = Path(os.environ.get("CYNOSURE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data (CYNOSURE_TEST_DATA)")
    return folder
