"""Converters against the reference's own output on the same downloads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from elip.data.convert import convert

FOLDERS = {
    "coco": "coco",
    "f30k": "f30k",
    "gcc": "conceptual_caption",
    "nlvr2": "nlvr2",
    "sbu": "sbu",
    "snli_ve": "snli_ve",
    "vg": "vg",
    "vqav2": "vqav2",
}


def read(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the recorded JSON has it: images by digest."""
    return {
        name: {"sha256": hashlib.sha256(value).hexdigest(), "bytes": len(value)}
        if isinstance(value, bytes)
        else value
        for name, value in row.items()
    }


def as_text(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


@pytest.fixture(params=FOLDERS)
def converted(request: pytest.FixtureRequest, golden: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Our output, and the reference's folder."""
    theirs = golden / "convert" / FOLDERS[request.param]
    if not theirs.exists():
        pytest.skip(f"{theirs} is not there")
    convert(request.param, theirs / "raw", tmp_path, progress=False)
    return tmp_path, theirs


def test_same_files(converted: tuple[Path, Path]) -> None:
    ours, theirs = converted
    expected = json.loads((theirs / "expected.json").read_text())["files"]
    assert {path.name for path in ours.glob("*.arrow")} == set(expected)


def test_same_rows(converted: tuple[Path, Path]) -> None:
    ours, theirs = converted
    expected = json.loads((theirs / "expected.json").read_text())
    for name, file in expected["files"].items():
        rows = [plain(row) for row in read(ours / name).to_pylist()]
        if expected["row_order"].startswith("file order"):
            assert rows == file["rows"], name
        else:
            assert as_text(rows) == as_text(file["rows"]), name


def test_same_columns(converted: tuple[Path, Path]) -> None:
    ours, theirs = converted
    for name, file in json.loads((theirs / "expected.json").read_text())["files"].items():
        if file["num_rows"] == 0:  # the reference writes all columns as null there
            continue
        schema = read(ours / name).schema
        columns = [[field.name, str(field.type), field.nullable] for field in schema]
        assert columns == file["columns"], name


def test_same_rows_as_the_reference_files(converted: tuple[Path, Path]) -> None:
    ours, theirs = converted
    for path in sorted((theirs / "expected").glob("*.arrow")):
        rows, other = (read(folder / path.name).to_pylist() for folder in (ours, path.parent))
        assert as_text([plain(row) for row in rows]) == as_text([plain(row) for row in other])


def test_nothing_is_lost_silently(converted: tuple[Path, Path]) -> None:
    ours, _ = converted
    notes = [line for path in ours.glob("*.notes.tsv") for line in path.read_text().splitlines()]
    assert all(len(line.split("\t")) == 2 for line in notes)
    assert not list(ours.glob(".*"))  # no temporary file stays
