"""The run record: written whole or not at all, read strictly, flat as a row."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from elip import provenance
from elip.old_record import (
    COLUMNS,
    RECORD_NAME,
    SCHEMA,
    Code,
    Cost,
    Evaluation,
    Gflops,
    Hardware,
    Record,
    RecordError,
    Speed,
    Tokens,
    Training,
    read_record,
    write_record,
)

FULL = Record(
    name="elip_0.7",
    subcommand="fit",
    status="completed",
    started="2026-11-23T20:00:00+00:00",
    ended="2026-11-23T20:05:00+00:00",
    config={"model": {"reducer": {"class_path": "ELIP"}}, "lr": 1e-3, "layers": [1, 2]},
    config_hash="0123456789abcdef",
    code=Code("0.1.0", "abc", False),
    packages={"torch": "2.15.0"},
    hardware=Hardware("a cpu", 2, 8_000_000_000),
    seed=0,
    task="Pretrain",
    datasets=("shapes",),
    reducer="ELIP",
    reducer_options={"mix": 0.8},
    main_metric="accuracy",
    evaluations=(Evaluation("val", "shapes", 100, {"accuracy": 0.8}, {"accuracy": 0.5}),),
    tokens=Tokens(64, (64.0, 40.5, 20.0), 0.7, 0.6965),
    gflops=Gflops(Cost(1.0, 0.5, 0.25, 2.0, 3.0, 0.125), 20.0),
    gflops_identity=Gflops(Cost(2.0, 0.0, 0.0, 2.0, 4.0, 0.125), 24.0),
    speed=Speed(8, 12.5, 14.0, 640.0),
    peak_memory_bytes=1_500_000_000,
    training=Training(100, 1.5, 250.0, 48.0),
    parent="runs/first",
    log_tail=("a line",),
)
BARE = replace(
    FULL, status="failed", error="out of memory", seed=None, evaluations=(), tokens=None,
    gflops=Gflops(), gflops_identity=Gflops(), speed=None, peak_memory_bytes=None, training=None,
)  # fmt: skip


@pytest.mark.parametrize("record", [FULL, BARE])
def test_what_is_written_is_read(record: Record, tmp_path: Path) -> None:
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


def test_half_written_record_is_named_as_such(tmp_path: Path) -> None:
    path = write_record(FULL, tmp_path)
    whole = path.read_bytes()
    for share in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:share])
        with pytest.raises(RecordError, match=r"run\.json is half written or damaged"):
            read_record(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": SCHEMA + 1}, f"version {SCHEMA + 1}; this program reads version {SCHEMA}"),
        ({"schema": None}, "no schema version"),
        ({"seed": "0"}, r"seed: Input should be a valid integer"),
        ({"status": "done"}, r"status: Input should be 'completed', 'failed' or 'interrupted'"),
        ({"colour": 1}, r"colour: Unexpected keyword argument"),
        ({"tokens": {"patches": 1.5, "entering": []}}, r"tokens\.patches"),
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


def test_missing_record_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"No run record at .*run\.json: No such file"):
        read_record(tmp_path)


def test_score_that_is_not_finite_is_missing_with_a_note(tmp_path: Path) -> None:
    broken = Evaluation("val", "shapes", 3, {"loss": math.nan, "accuracy": 0.5})
    read = read_record(write_record(replace(FULL, evaluations=(broken,)), tmp_path))
    assert read.evaluations[0].metrics == {"loss": None, "accuracy": 0.5}
    assert read.notes == ("val/loss was nan and is stored as missing.",)


def test_one_entry_a_split() -> None:
    with pytest.raises(ValueError, match="each split once"):
        replace(FULL, evaluations=FULL.evaluations * 2)


def test_row_of_a_full_record() -> None:
    row = FULL.row()
    assert set(COLUMNS) < set(row)
    assert row["val/accuracy"] == 0.8
    assert row["val/accuracy/chance"] == 0.5
    assert row["val/examples"] == 100
    assert row["gflops_probe"] == 0.5
    assert row["gflops_total"] == 6.875
    assert row["gflops_identity_training_step"] == 24.0
    assert row["tokens_out"] == 20.0
    assert row["peak_memory_mb"] == 1500.0
    assert all(value is None or isinstance(value, str | int | float) for value in row.values())


def test_row_of_a_bare_record_has_the_same_columns_and_no_zeros() -> None:
    row = BARE.row()
    assert list(row) == list(COLUMNS)
    assert 0 not in [value for name, value in row.items() if name != "dirty"]
    assert row["gflops_total"] is None


def test_cost_with_a_missing_part_has_no_total() -> None:
    assert Cost(1.0, 0.0, 0.0, 1.0, 1.0).total is None
    assert Cost(1.0, 0.0, 0.0, 1.0, 1.0, 0.0).total == 3.0


def test_identity_of_a_configuration() -> None:
    config = {"trainer": {"max_epochs": 3, "default_root_dir": "runs/a"}, "seed_everything": 0}
    same = {"seed_everything": 0, "trainer": {"default_root_dir": "runs/b", "max_epochs": 3}}
    other = {"seed_everything": 1, "trainer": {"max_epochs": 3}}
    assert provenance.config_hash(config) == provenance.config_hash(same)
    assert provenance.config_hash(config) != provenance.config_hash(other)
    seedless = (*provenance.VOLATILE, "seed_everything")
    assert provenance.config_hash(config, seedless) == provenance.config_hash(other, seedless)
    assert config["trainer"] == {"max_epochs": 3, "default_root_dir": "runs/a"}


def test_callbacks_are_part_of_the_identity_if_there_are_any() -> None:
    bare, none, empty, early, late = (
        {"trainer": {"max_epochs": 3, **more}}
        for more in (
            {}, {"callbacks": None}, {"callbacks": []},
            *({"callbacks": [{"class_path": "EarlyStopping", "init_args": {"patience": patience}}]}
              for patience in (1, 2)),
        )
    )  # fmt: skip
    same = {provenance.config_hash(config) for config in (bare, none, empty)}
    assert len(same) == 1
    assert len(same | {provenance.config_hash(config) for config in (early, late)}) == 3


def test_a_precision_has_one_identity_by_all_its_names() -> None:
    def of(*precisions: str | int | None) -> set[str]:
        return {provenance.config_hash({"trainer": {"precision": each}}) for each in precisions}

    assert len(of(None, 32, "32", "32-true")) == 1
    assert len(of(16, "16-mixed")) == len(of("bf16", "bf16-mixed")) == 1
    assert len(of(None, 16, "bf16")) == 3


def test_where_configurations_differ() -> None:
    one = {"data": {"root": "a", "size": 3, "gone": None}, "trainer": {"callbacks": None}, "x": {}}
    other = {"data": {"root": "b", "size": 4}, "trainer": {}, "x": {"y": [1]}}
    differ = provenance.config_differences(one, other, ("data.root",))
    assert differ == {"data.size": (3, 4), "x": ({}, None), "x.y": (None, [1])}


def test_provenance_of_this_machine() -> None:
    machine, code = provenance.hardware(), provenance.code_version()
    assert machine.cores is not None
    assert machine.cores >= 1
    assert machine.memory_bytes is not None
    assert machine.memory_bytes > provenance.peak_memory_bytes() > 1_000_000
    assert {"python", "torch", "timm"} <= set(provenance.package_versions())
    assert code.version
    assert (code.commit is None) == (code.dirty is None)


def test_records_are_read_without_torch() -> None:
    code = (
        "import sys, elip.old_record, elip.provenance, elip.summary; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.stdout.strip() == "False"
