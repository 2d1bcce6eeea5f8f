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


@pytest.mark.parametrize("name", FOLDERS)
def test_same_files_columns_and_rows(name: str, golden: Path, tmp_path: Path) -> None:
    theirs = golden / "convert" / FOLDERS[name]
    report = convert(name, theirs / "raw", tmp_path, progress=False)
    expected = json.loads((theirs / "expected.json").read_text())
    assert set(report.rows) == set(expected["files"])
    for file, said in expected["files"].items():
        table = read(tmp_path / file)
        if said["num_rows"]:  # the reference writes all columns as null where there is no row
            columns = [[field.name, str(field.type), field.nullable] for field in table.schema]
            assert columns == said["columns"], file
        rows = [plain(row) for row in table.to_pylist()]
        assert as_text(rows) == as_text(said["rows"]), file
        if expected["row_order"].startswith("file order"):
            assert rows == said["rows"], file
        if (theirs / "expected" / file).exists():
            reference = read(theirs / "expected" / file).to_pylist()
            assert as_text(rows) == as_text([plain(row) for row in reference]), file
