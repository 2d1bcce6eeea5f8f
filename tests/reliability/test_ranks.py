"""Several processes score like one, leave one record, and stop together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from elip.data.datasets.base import DataError
from elip.record import Record, read_record
from elip.training.module import MeterModule
from tests.reliability.forks import ROOT, Fork, options, ranks

pytestmark = pytest.mark.slow

# 19 examples divide neither by 2 nor by 3.
EXAMPLES = 19
TASKS = ("Pretraining", "Retrieval")


def chosen(root: Path, shapes: Path, task: str) -> list[str]:
    made = [*options(root, shapes, 4), "--trainer.strategy=auto", "--trainer.devices=auto"]
    return [*made, f"--model.task={task}"]


def alone(command: str, root: Path, shapes: Path, task: str, log: Path) -> None:
    arguments = [command, *chosen(root, shapes, task), "--trainer.devices=1"]
    ended = Fork(arguments, log).wait()
    assert ended.status == 0, ended.output


def together(command: str, root: Path, shapes: Path, task: str, logs: Path, world: int) -> None:
    arguments = [command, *chosen(root, shapes, task), f"--trainer.devices={world}"]
    for run in ranks(arguments, logs, world):
        ended = run.wait()
        assert ended.status == 0, ended.output


def scores(record: Record) -> dict[str, Any]:
    (split,) = record.evaluations
    assert split.examples == EXAMPLES
    return {**split.metrics, **{f"{name} by chance": v for name, v in split.chance.items()}}


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_one_process(task: str, shapes: Path, tmp_path: Path) -> None:
    world = 2
    alone("validate", tmp_path / "one", shapes, task, tmp_path / "one.txt")
    together("validate", tmp_path / "many", shapes, task, tmp_path / "logs", world)
    one = scores(read_record(tmp_path / "one"))
    many = scores(read_record(tmp_path / "many"))
    assert many.keys() == one.keys()
    for name, value in one.items():
        # Recalls and accuracies are counts, so they are exactly equal.
        exact = not name.startswith("mlm_loss") and not name.startswith("mlm_perplexity")
        assert many[name] == (value if exact else pytest.approx(value, rel=1e-5)), name
    assert len(list(tmp_path.joinpath("many").rglob("run*.json"))) == 1


def test_every_answer_is_written_once(shapes: Path, tmp_path: Path) -> None:
    alone("predict", tmp_path / "one", shapes, "VQA", tmp_path / "one.txt")
    together("predict", tmp_path / "many", shapes, "VQA", tmp_path / "logs", 2)
    one, many = (
        [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").open()]
        for name in ("one", "many")
    )
    assert len({row["key"] for row in many}) == len(many) == EXAMPLES
    assert [(row["key"], row["label"]) for row in many] == [
        (row["key"], row["label"]) for row in one
    ]


def dying_in_step_2() -> None:
    step = MeterModule.training_step

    def dying(self: MeterModule, batch: Any, index: int) -> Any:
        if self.global_step == 2 and self.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, index)

    MeterModule.training_step = dying  # type: ignore[method-assign]


def test_a_killed_process_ends_the_others_with_a_message(shapes: Path, tmp_path: Path) -> None:
    arguments = ["fit", *chosen(tmp_path / "run", shapes, "VQA"), "--trainer.devices=2"]
    first, second = ranks(arguments, tmp_path / "logs", 2, dying_in_step_2)
    assert second.wait().status == -signal.SIGKILL
    ended = first.wait(seconds=60)
    assert ended.status == 2
    assert "another process of this run" in ended.output
    assert "Traceback" not in ended.output
    record = read_record(tmp_path / "run")
    assert record.status == "failed"
    assert "another process of this run" in str(record.error)


def test_a_signal_to_one_process_stops_all(shapes: Path, tmp_path: Path) -> None:
    def slowly() -> None:
        step = MeterModule.training_step

        def slow(self: MeterModule, batch: Any, index: int) -> Any:
            time.sleep(0.2)
            if self.global_step == 2 and self.global_rank == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, batch, index)

        MeterModule.training_step = slow  # type: ignore[method-assign]

    arguments = ["fit", *chosen(tmp_path / "run", shapes, "VQA"), "--trainer.devices=2",
                 "--trainer.max_steps=200"]  # fmt: skip
    for run in ranks(arguments, tmp_path / "logs", 2, slowly):
        ended = run.wait(seconds=120)
        assert ended.status != 0, ended.output
    assert read_record(tmp_path / "run").status == "interrupted"
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_lightning_starts_the_processes_itself(shapes: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    command = [sys.executable, "run_experiment.py", "fit", *chosen(root, shapes, "Retrieval"),
               "--trainer.devices=2", "--trainer.val_check_interval=2"]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = read_record(root)
    assert record.status == "completed"
    assert (record.train_steps, record.processes) == (4, 2)
    assert scores(record)
    assert len(list(tmp_path.rglob("run*.json"))) == 1
    assert len(list(tmp_path.rglob("metrics*.csv"))) == 1


def test_the_process_that_fails_writes_the_record(shapes: Path, tmp_path: Path) -> None:
    def breaking() -> None:
        step = MeterModule.validation_step

        def broken(self: MeterModule, batch: Any, index: int, loader: int = 0) -> None:
            if self.global_rank == 1 and index == 1:
                raise DataError("shapes_val.arrow, row 11: a broken image")
            step(self, batch, index, loader)

        MeterModule.validation_step = broken  # type: ignore[method-assign]

    arguments = ["validate", *chosen(tmp_path / "run", shapes, "VQA"), "--trainer.devices=2",
                 "--data.eval_batch_size=4"]  # fmt: skip
    for run in ranks(arguments, tmp_path / "logs", 2, breaking):
        ended = run.wait(seconds=60)
        assert ended.status == 2
        assert "Traceback" not in ended.output
    record = read_record(tmp_path / "run")
    assert record.status == "failed"
    assert record.error == "DataError: shapes_val.arrow, row 11: a broken image"
