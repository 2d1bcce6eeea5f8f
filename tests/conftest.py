"""Options of the test suite."""

from __future__ import annotations

from pathlib import Path

import pytest


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
