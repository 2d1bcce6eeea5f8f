"""Rows of plain values, one an example, that ``test`` and ``predict`` leave beside the record."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from elip.tasks.base import Task
from elip.training.module import Experiment

log = logging.getLogger(__name__)

ROWS_NAME = "predictions.jsonl"
"""One line of JSON an example: ``split``, then what the task's `predict` returns."""


class AnswerRows(Callback):
    """Write what a test run answered to every example, and the evaluation server's file."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows of all processes, once and in order."""
        assert isinstance(pl_module, Experiment)
        part = part_file(trainer, trainer.global_rank)
        part.write_text("", encoding="utf-8")
        for split, rows in pl_module.rows.items():
            append_rows(part, split, rows)
        join_parts(trainer, pl_module.task, "test")


def part_file(trainer: Trainer, rank: int) -> Path:
    """Return where one process keeps its rows until all are joined."""
    return Path(trainer.default_root_dir) / f".{ROWS_NAME}.{rank}"


def append_rows(part: Path, split: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows of a split to a process's part."""
    with part.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"split": split, **row}) + "\n" for row in rows)


def join_parts(trainer: Trainer, task: Task, stage: str) -> None:
    """Join the parts of all processes to `ROWS_NAME`, and write the file for the server if any.

    Where no process has a row, nothing is left. Every process must call it, also one whose share
    of the examples is empty.
    """
    trainer.strategy.barrier()
    if not trainer.is_global_zero:
        return
    splits: list[str] = trainer.datamodule.eval_names(stage)  # type: ignore[attr-defined]
    parts = [part_file(trainer, rank) for rank in range(trainer.world_size)]
    rows = join_rows(parts, splits)
    for part in parts:
        part.unlink()
    if not rows:
        return
    target = Path(trainer.default_root_dir) / ROWS_NAME
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    _write_submissions(trainer, task, rows, splits)
    log.info("%d predictions: %s", len(rows), target)


def join_rows(parts: Sequence[Path], splits: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of all processes in the order of splits and examples, each example once.

    Args:
        parts: The files of the processes.
        splits: Names of the splits in their order.
    """
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for part in parts:
        for line in part.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows[splits.index(row["split"]), row["example"]] = row
    return [rows[key] for key in sorted(rows)]


def _write_submissions(
    trainer: Trainer, task: Task, rows: list[dict[str, Any]], splits: Sequence[str]
) -> None:
    """Write one file a split, for tasks that have an evaluation server."""
    if type(task).submission is Task.submission:
        return
    for split in splits:
        mine = [row for row in rows if row["split"] == split]
        try:
            content = task.submission(mine, trainer.datamodule.answers)  # type: ignore[attr-defined]
        except ValueError as error:
            log.warning("No submission for %s: %s", split, error)
            continue
        safe = split.replace("/", "-")
        name = "submission.json" if len(splits) == 1 else f"submission-{safe}.json"
        (Path(trainer.default_root_dir) / name).write_text(json.dumps(content), encoding="utf-8")
