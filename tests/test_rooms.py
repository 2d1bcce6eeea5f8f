"""Imports run one way: reducers -> elip -> experiments; analysis reads files only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("reducers", "elip", "experiments", "analysis")


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_from_their_left(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    right = set(ROOMS[ROOMS.index(room) + 1 :]) | {"tests", "notebooks", "run_experiment"}
    for file in files:
        assert not imports_of(file) & right, file


def test_reducers_import_torch_and_the_standard_library_only() -> None:
    import sys

    allowed = {"torch", "reducers", *sys.stdlib_module_names}
    for file in (ROOT / "reducers").rglob("*.py"):
        assert imports_of(file) <= allowed, file


def test_analysis_reads_files_only() -> None:
    allowed = {"elip.record", "elip.identity", "elip.schedule"}
    for file in (ROOT / "analysis").rglob("*.py"):
        assert not imports_of(file) & {"torch", "lightning", "transformers", "timm", "experiments"}
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("elip"):
                names = {f"elip.{name.name}" for name in node.names}
                assert node.module in allowed or names <= allowed, file


def test_the_apparatus_names_no_method() -> None:
    """elip/ knows the contract, `Identity`, and how to find a method by its name."""
    allowed = ("reducers", "reducers.contract", "reducers.identity", "reducers.__main__")
    for file in (ROOT / "elip").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("reducers"):
                assert node.module in allowed, file
