"""Options of the test suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Set before torch is imported: on a busy machine, threads that wait by spinning cost more than
# the tests themselves.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# How long an example takes depends on what else the machine does; it is no failure.
settings.register_profile("elip", deadline=None)
settings.load_profile("elip")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        default=str(Path(__file__).parent / "golden"),
        help="recorded inputs and outputs (subfolders meter, reducers, reader, convert)",
    )


# Remarks of Lightning about small machines and short runs are no failures of these tests.
REMARKS = (
    "ignore::UserWarning",
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"training", "reliability"} & set(item.path.parts):
            for remark in REMARKS:
                item.add_marker(pytest.mark.filterwarnings(remark))


@pytest.fixture(scope="session")
def golden(pytestconfig: pytest.Config) -> Path:
    """The folder of recorded inputs and outputs."""
    return Path(pytestconfig.getoption("--golden"))
