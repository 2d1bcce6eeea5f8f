"""The table of results: every record is a row, every column has a type and a meaning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from elip.old_record import (
    COLUMNS,
    Code,
    Cost,
    Earlier,
    Evaluation,
    Gflops,
    Hardware,
    Record,
    Speed,
    Tokens,
    Training,
    write_record,
)
from experiments.board import Estimates
from experiments.changed import say_mixed
from experiments.results import CELL_COLUMNS, SCHEMA, gather, kind, main

COST = Cost(*(1.5,) * 6)
FULL = Record(
    name="a", subcommand="test", status="completed", started="2026-01-01T00:00:00+00:00",
    ended="2026-01-01T00:00:01+00:00", config={}, config_hash="00", code=Code("1", "abc", True),
    packages={}, hardware=Hardware("cpu", 2, 3, ("gpu",), 4), seed=3, task="VQA",
    datasets=("shapes",), reducer="ELIP", reducer_options={"mix": 0.8}, main_metric="accuracy",
    evaluations=(Evaluation("shapes/test", "shapes", 7, {"accuracy": 0.5}, {"accuracy": 0.1}),),
    tokens=Tokens(64, (64.0, 10.0), 0.5, 0.51), gflops=Gflops(COST, 2.0),
    gflops_identity=Gflops(COST, 3.0), speed=Speed(8, 1.0, 2.0, 3.0), peak_memory_bytes=1000,
    peak_gpu_memory_bytes=1000, training=Training(5, 0.5, 1.0, 2.0), parent="b", error="none",
)  # fmt: skip


def cell(folder: Path, **more: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"grid": "g", "stage": "test", "name": "ELIP", "id": "1f", "parent": None,
               "labels": {"reducer": "ELIP"}, **more}  # fmt: skip
    (folder / "cell.json").write_text(json.dumps(content))


def test_every_column_has_its_type_and_meaning(tmp_path: Path) -> None:
    write_record(FULL, tmp_path / "ELIP" / "test")
    cell(tmp_path / "ELIP")
    lines = [
        {"started": "", "seconds": 1.5, "status": -9},
        {"started": "", "seconds": 2, "status": 0},
    ]
    (tmp_path / "ELIP" / "attempts.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    table, bad = gather(tmp_path)
    assert bad == []
    row = table.to_pylist()[0]
    assert set(CELL_COLUMNS) | set(COLUMNS) < set(table.column_names)
    for name, value in FULL.row().items():
        assert row[name] == value, name
        if value is not None:
            expected = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
            assert kind(name) == expected[type(value)], name
    assert (row["attempts"], row["wall_s"], row["axis/reducer"]) == (2, 3.5, "ELIP")
    assert row["shapes/test/accuracy/chance"] == 0.1
    assert all(field.metadata[b"description"] for field in table.schema)
    assert table.schema.metadata[b"elip.table.schema"] == str(SCHEMA).encode()


def test_what_was_made_by_hand_beside_a_run_is_no_run_of_the_grid(tmp_path: Path) -> None:
    write_record(replace(FULL, subcommand="fit"), tmp_path / "fitted")
    cell(tmp_path / "fitted")
    for folder, command in (("fitted/test", "test"), ("scored/test", "test"),
                            ("scored/test-2", "test"), ("scored/validate", "test")):  # fmt: skip
        write_record(replace(FULL, subcommand=command), tmp_path / folder)
    cell(tmp_path / "scored")
    table, _ = gather(tmp_path, planned={"1f"})
    named = {row["folder"] for row in table.to_pylist() if row["cell_id"] is not None}
    assert named == {"fitted", "scored/test"}
    assert table["planned"].drop_null().to_pylist() == [True, True]
    part = Earlier(4, {"trainer.max_steps": 4})
    write_record(replace(FULL, subcommand="fit", earlier=(part,)), tmp_path / "fitted")
    table, _ = gather(tmp_path, planned={"1f"})
    assert table["planned"].drop_null().to_pylist() == [False, True]


def test_runs_that_read_different_things_by_one_name_are_told_of(tmp_path: Path) -> None:
    def told(*several: dict[str, str]) -> str | None:
        cells: list[Any] = []
        for number, inputs in enumerate(several):
            write_record(replace(FULL, inputs=inputs), tmp_path / str(number))
            cells.append(SimpleNamespace(record_folder=tmp_path / str(number)))
        return say_mixed(cells)

    one = {"code of Mine": "1", "test_data": "1", "ckpt_path": "1"}
    assert told(one, one | {"ckpt_path": "2"}, {}) is None
    assert told(one, one | {"code of Mine": "2", "test_data": "2"}) == (
        "Not all finished runs read the same: code of Mine, test_data (VQA, shapes) changed "
        "between them."
    )


def test_missing_is_missing_and_the_schema_stays(tmp_path: Path) -> None:
    write_record(FULL, tmp_path / "a")
    bare = Record(
        name="b", subcommand="fit", status="failed", started="", ended="", config={},
        config_hash="01", code=Code("1"), packages={}, hardware=Hardware(), seed=None, task="VQA",
        datasets=(), reducer="ToMe", error="MemoryError",
    )  # fmt: skip
    write_record(bare, tmp_path / "b")
    table, _ = gather(tmp_path)
    row = table.to_pylist()[1]
    present = {"folder", "name", "status", "subcommand", "config_hash", "started", "task",
               "datasets", "reducer", "reducer_options", "error"}  # fmt: skip
    assert {name for name, value in row.items() if value is not None} == present
    (tmp_path / "only").mkdir()
    write_record(bare, tmp_path / "only" / "b")
    alone, _ = gather(tmp_path / "only")
    assert {field.name: field.type for field in alone.schema}.items() <= {
        field.name: field.type for field in table.schema
    }.items()


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff", b'{"grid": "g"}', b"[" * 10**5, b'{"labels": [1]}']
)
def test_a_damaged_cell_is_named_and_its_record_stays(tmp_path: Path, text: bytes) -> None:
    for name in ("a", "b"):
        write_record(FULL, tmp_path / "fit" / name)
        cell(tmp_path / "fit" / name)
        line = {"started": "", "seconds": 2, "status": 0}
        (tmp_path / "fit" / name / "attempts.jsonl").write_text(json.dumps(line))
    (tmp_path / "fit" / "a" / "cell.json").write_bytes(text)
    table, bad = gather(tmp_path)
    assert table["grid"].to_pylist() == [None, "g"]
    assert table["folder"].to_pylist() == ["fit/a", "fit/b"]
    (message,) = bad
    assert str(tmp_path / "fit" / "a" / "cell.json") in message
    Estimates(tmp_path)


def test_command_writes_the_file_and_says_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(FULL, tmp_path / "runs" / "a")
    out = tmp_path / "tables" / "t.parquet"
    assert main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert pq.read_table(out).num_rows == 1
    broken = tmp_path / "runs" / "b" / "run.json"
    broken.parent.mkdir()
    broken.write_text("{")
    assert main([str(tmp_path / "runs"), "--out", str(out)]) == 1
    assert str(broken) in capsys.readouterr().err.replace("\n", "")
    assert main([str(tmp_path / "nowhere"), "--out", str(out)]) == 2


def test_a_folder_without_runs_gives_no_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.parquet"
    (tmp_path / "runs").mkdir()
    assert main([str(tmp_path / "runs"), "--out", str(out)]) == 2
    assert f"error: No run.json below {tmp_path / 'runs'}" in capsys.readouterr().err
    assert not out.exists()
