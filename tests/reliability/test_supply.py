"""What is imported is declared with its reason, and what CI installs is pinned."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML by itself")

ROOT = Path(__file__).parents[2]
ROOMS = ("reducers", "elip", "experiments", "analysis", "benchmarks", "tests")
NAMES = {"yaml": "pyyaml", "PIL": "pillow"}
# Comes with another one by its very purpose, or is asked for by a script that says so.
BROUGHT = {"torchvision": "timm", "packaging": "pytest", "markupsafe": "jinja2",
           "nbformat": "nbconvert", "nbclient": "nbconvert",
           "huggingface_hub": "transformers"}  # fmt: skip


def declared() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        lines += extra
    return {each.name.lower(): each for each in map(Requirement, lines)}


def pinned() -> dict[str, str]:
    lines = (ROOT / "requirements" / "ci.txt").read_text().splitlines()
    return dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))


def test_what_is_imported_is_declared() -> None:
    found: dict[str, str] = {}
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                named = [each.name for each in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    named = [node.module or ""]
                for name in named:
                    found.setdefault(name.split(".")[0], str(file.relative_to(ROOT)))
    foreign = {
        NAMES.get(name, name).lower(): file
        for name, file in found.items()
        if name not in sys.stdlib_module_names and name not in (*ROOMS, "run_experiment")
    }
    assert {name: file for name, file in foreign.items() if name not in declared()
            and name not in BROUGHT} == {}  # fmt: skip


def test_ci_installs_exact_versions_within_the_bounds() -> None:
    versions = pinned()
    for name, asked in declared().items():
        key = next((key for key in versions if key.replace("_", "-") == name), None)
        assert key is not None, name
        assert asked.specifier.contains(versions[key], prereleases=True), name
    assert all(re.fullmatch(r"[\w.!+]+", version) for version in versions.values())


def test_every_dependency_has_a_lower_bound_or_only_types() -> None:
    for name, asked in declared().items():
        only_types = name.startswith("types-") or name.endswith("-stubs")
        assert asked.specifier or only_types, name


def test_every_dependency_has_its_reason_beside_it() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    required = {
        Requirement(each) for each in tomllib.loads("\n".join(lines))["project"]["dependencies"]
    }
    for each in required:
        line = next(line for line in lines if line.strip().startswith(f'"{each.name}'))
        assert re.search(r"# \w+", line), each.name
