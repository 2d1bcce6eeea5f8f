"""Nothing outside `elip/model` reaches past the face of the model."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from torch import nn

from elip.model.interface import Backbone
from elip.model.meter import Meter

ROOT = Path(__file__).parents[2]
MODULES = {"config", "guard", "initialise", "interface", "meter"}
"""The modules of `elip.model` that others may import."""

ROOMS = ("elip", "experiments", "analysis", "reducers")
SOURCES = [
    path
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
    if not path.is_relative_to(ROOT / "elip" / "model")
]
FACE = {name for name in [*vars(Backbone), *Backbone.__annotations__] if not name.startswith("_")}
PUBLIC = FACE | {"sizes", "resolve", "as_dict"} | {n for n in dir(nn.Module) if n[0] != "_"}


def uses(tree: ast.AST) -> set[str]:
    """Names that are read off something that is called ``meter``, or is ``<x>.meter``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", None)
            if name == "meter":
                found.add(node.attr)
    return found


def imports(tree: ast.AST) -> set[str]:
    """Modules of `elip.model` that are imported."""
    found = set()
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        found |= {name.split(".")[2] for name in names if name.startswith("elip.model.")}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_face_is_used(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert uses(tree) <= PUBLIC
    assert imports(tree) <= MODULES


def test_meter_offers_the_face_and_nothing_else() -> None:
    instance = {"width", "text_width", "vocab_size"}
    assert {name for name in vars(Meter) if name[0] != "_"} - {"forward"} == FACE - instance
