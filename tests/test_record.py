"""The run record: written whole or not at all, read strictly, flat as a row."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from elip.record import (
    RECORD_NAME,
    Evaluation,
    Gflops,
    Record,
    RecordError,
    RunHeader,
    environment,
    peak_memory_bytes,
    read_record,
    read_scores,
    write_record,
    write_scores,
)

PARENT = RunHeader(
    run_id="00000000", command="fit", reducer="ELIP", method="ELIP 0.7", protocol="p", steps=800
)
FULL = Record(
    name="ELIP-0.7-s0-01234567",
    run_id="01234567",
    command="fit",
    status="completed",
    started="2026-11-23T20:00:00+00:00",
    ended="2026-11-23T20:05:00+00:00",
    protocol="0123456789abcdef",
    protocol_options={"command": "fit", "trainer.max_steps": 100},
    stated_config={"trainer": {"max_steps": 100}},
    config={"model": {"reducer": {"class_path": "ELIP"}}, "lr": 1e-3, "layers": [1, 2]},
    lineage=(PARENT,),
    weights="started from weights trained with ELIP 0.7",
    fingerprints={"data/train": "aa", "data/val": "bb"},
    seed=0,
    task="Pretrain",
    datasets=("shapes",),
    reducer="ELIP",
    reducer_options={"mix": 0.8},
    placement="before_block",
    patches=64,
    tokens_per_block=(64.0, 40.5, 20.0),
    keep_ratio_asked=0.7,
    keep_ratio=0.6965,
    main_metric="accuracy",
    evaluations=(
        Evaluation(
            split="val",
            dataset="shapes",
            examples=100,
            metrics={"accuracy": 0.8},
            chance={"accuracy": 0.5},
        ),
    ),
    gflops=Gflops(
        vision=1.0, probe=0.5, reducer=0.25, text=2.0, fusion=3.0, head=0.125, training_step=20.0
    ),
    gflops_unreduced=Gflops(
        vision=2.0, probe=0.0, reducer=0.0, text=2.0, fusion=4.0, head=0.125, training_step=24.0
    ),
    batch_size=8,
    latency_ms=12.5,
    latency_p95_ms=14.0,
    examples_per_second=640.0,
    peak_memory_bytes=1_500_000_000,
    train_steps=100,
    train_epochs=1.5,
    train_seconds=250.0,
    train_images_per_second=48.0,
    log_tail=("a line",),
)
BARE = Record(
    **{
        name: getattr(FULL, name)
        for name in (
            "name", "run_id", "command", "started", "ended", "protocol", "protocol_options",
            "stated_config", "config", "task", "datasets", "reducer",
        )
    },
    status="failed",
    error="out of memory",
)  # fmt: skip


@pytest.mark.parametrize("record", [FULL, BARE])
def test_a_record_survives_a_round_trip(record: Record, tmp_path: Path) -> None:
    path = write_record(record, tmp_path / "new" / "run")
    assert path.name == RECORD_NAME
    assert read_record(path) == read_record(path.parent) == record
    assert [file.name for file in path.parent.iterdir()] == [RECORD_NAME]


def test_an_interrupted_write_leaves_the_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(FULL, tmp_path)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_record(BARE, tmp_path)
    assert read_record(tmp_path) == FULL
    assert [file.name for file in tmp_path.iterdir()] == [RECORD_NAME]


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    path = write_record(FULL, tmp_path)
    whole = path.read_bytes()
    for share in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:share])
        with pytest.raises(RecordError, match=r"run\.json is damaged .*Invalid JSON"):
            read_record(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "not a run record of version 2"),
        ({"status": "done"}, r"status: Input should be 'completed', 'failed' or 'interrupted'"),
        ({"colour": 1}, r"colour: Extra inputs"),
        ({"patches": 1.5}, "patches"),
    ],
)
def test_other_content_is_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:  # fmt: skip
    path = write_record(FULL, tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_record_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"No run record at .*run\.json: No such file"):
        read_record(tmp_path)


def test_a_score_that_is_not_finite_is_missing(tmp_path: Path) -> None:
    metrics = {"loss": math.nan, "accuracy": 0.5}
    broken = Evaluation(split="val", dataset="shapes", examples=3, metrics=metrics)
    read = read_record(write_record(FULL.model_copy(update={"evaluations": (broken,)}), tmp_path))
    assert read.evaluations[0].metrics == {"loss": None, "accuracy": 0.5}


def test_the_row_of_a_full_record_is_flat() -> None:
    row = FULL.model_copy(update={"axes": {"reducer": "ELIP"}}).row()
    assert row["val/accuracy"] == 0.8
    assert row["val/accuracy/chance"] == 0.5
    assert row["val/examples"] == 100
    assert row["gflops_total"] == 6.875
    assert row["gflops_unreduced_training_step"] == 24.0
    assert row["axis/reducer"] == "ELIP"
    assert all(value is None or isinstance(value, str | int | float) for value in row.values())


def test_the_row_of_a_bare_record_has_no_zeros() -> None:
    row = BARE.row()
    assert row["gflops_total"] is None
    assert 0 not in row.values()


def test_a_cost_with_a_missing_part_has_no_total() -> None:
    assert Gflops(vision=1.0, probe=0.0, reducer=0.0, text=1.0, fusion=1.0).total is None


def test_per_example_scores_are_kept_by_split(tmp_path: Path) -> None:
    write_scores({"val": np.array([[7, 0, 1.0], [7, 1, 0.0]]), "test": np.zeros((0, 3))}, tmp_path)
    table = read_scores(tmp_path)
    assert table is not None
    assert table["split"].to_pylist() == ["val", "val"]
    assert table["image"].to_pylist() == [7, 7]
    assert table["score"].to_pylist() == [1.0, 0.0]
    (tmp_path / "examples.parquet").write_bytes(b"PAR1")
    with pytest.raises(RecordError, match="holds no per-example scores"):
        read_scores(tmp_path)


def test_the_environment_of_this_machine() -> None:
    found = environment()
    assert found["cores"] >= 1
    assert found["memory_bytes"] > peak_memory_bytes() > 1_000_000
    assert {"python", "torch", "timm"} <= set(found["packages"])
    assert (found["commit"] is None) == (found["dirty"] is None)


def test_records_are_read_without_torch() -> None:
    code = "import sys, elip.record, elip.identity, elip.summary; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.stdout.strip() == "False"
