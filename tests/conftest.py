"""Options of the test suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before torch is imported: on a busy machine, threads that wait by spinning cost more than
# the tests themselves.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        default=str(Path(__file__).parent / "golden"),
        help="recorded inputs and outputs (subfolders meter, reducers, reader, convert)",
    )


@pytest.fixture(scope="session")
def golden(pytestconfig: pytest.Config) -> Path:
    """The folder of recorded inputs and outputs."""
    return Path(pytestconfig.getoption("--golden"))
