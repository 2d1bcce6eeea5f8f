"""The table of results: every record is a row, and every column has one type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from elip.record import Evaluation, Gflops, Record, parse_record, write_record, write_scores
from experiments.results import gather, main

FULL = Record(
    name="a", run_id="00", command="test", status="completed", started="2026-01-01T00:00:00",
    ended="2026-01-01T00:00:01", protocol="1", protocol_options={}, stated_config={}, config={},
    seed=3, task="VQA", datasets=("shapes",), reducer="ELIP", reducer_options={"mix": 0.8},
    main_metric="accuracy", patches=64, tokens_per_block=(64.0, 10.0), keep_ratio=0.5,
    evaluations=(Evaluation(split="shapes/test", dataset="shapes", examples=7,
                            metrics={"accuracy": 0.5}, chance={"accuracy": 0.1}),),
    gflops=Gflops(vision=1, probe=0, reducer=0, text=1, fusion=1, head=1), latency_ms=1.0,
    grid="g", stage="test", axes={"reducer": "ELIP"},
)  # fmt: skip


def test_a_row_holds_the_record_and_its_examples(tmp_path: Path) -> None:
    path = write_record(FULL, tmp_path / "a")
    write_scores({"shapes/test": np.array([[0, 5, 1.0], [1, 6, 0.25]])}, tmp_path / "a")
    table, bad = gather(tmp_path)
    assert bad == []
    (row,) = table.to_pylist()
    assert FULL.row().items() <= row.items()
    assert parse_record(row["record"], path) == FULL
    assert (row["folder"], row["gflops_total"], row["axis/reducer"]) == ("a", 4.0, "ELIP")
    assert row["scores_split"] == ["shapes/test"] * 2
    assert (row["scores_example"], row["scores_score"]) == ([5, 6], [1.0, 0.25])


def test_missing_is_missing_and_types_stay(tmp_path: Path) -> None:
    write_record(FULL, tmp_path / "a")
    bare = Record(
        name="b", run_id="01", command="fit", status="failed", started="", ended="", protocol="",
        protocol_options={}, stated_config={}, config={}, task="VQA", datasets=(), reducer="ToMe",
        error="MemoryError",
    )  # fmt: skip
    write_record(bare, tmp_path / "only" / "b")
    table, _ = gather(tmp_path)
    row = table.to_pylist()[1]
    assert (row["seed"], row["latency_ms"], row["shapes/test/accuracy"]) == (None, None, None)
    alone, _ = gather(tmp_path / "only")
    assert gather(tmp_path / "nothing")[0]["folder"].to_pylist() == []
    assert {f.name: f.type for f in alone.schema}.items() <= {
        f.name: f.type for f in table.schema
    }.items()
    assert alone.schema.field("latency_ms").type == pa.float64()
    assert alone.schema.field("seed").type == pa.int64()


def test_command_writes_the_file_and_says_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tables" / "t.parquet"
    (tmp_path / "runs").mkdir()
    assert main([str(tmp_path / "runs"), "--out", str(out)]) == 2
    assert not out.exists()
    write_record(FULL, tmp_path / "runs" / "a")
    assert main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert pq.read_table(out).num_rows == 1
    broken = tmp_path / "runs" / "b" / "run.json"
    broken.parent.mkdir()
    broken.write_text("{")
    assert main([str(tmp_path / "runs"), "--out", str(out)]) == 1
    assert str(broken) in capsys.readouterr().err.replace("\n", "")
