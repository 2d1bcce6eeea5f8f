"""Data of the reliability tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from elip.data.shapes import Options, write_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little built-in data."""
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root / "shapes", Options(train=100, val=50, test=50), progress=False)
    return root
