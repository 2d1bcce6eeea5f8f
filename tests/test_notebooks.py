"""Notebooks: stored without outputs, no functions of their own, run from top to bottom."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def notebook(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) == 3


@each_notebook
def test_stored_without_outputs(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@each_notebook
def test_holds_no_functions(notebook: nbformat.NotebookNode) -> None:
    made = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            plain = "\n".join(line for line in cell.source.splitlines() if line[:1] != "%")
            assert not any(isinstance(node, made) for node in ast.walk(ast.parse(plain)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # the kernel's remarks about its connection
@each_notebook
def test_runs_from_top_to_bottom(notebook: nbformat.NotebookNode, path: Path) -> None:
    place = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place)
    done = client.execute()
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
