"""Rows of plain values, one an example, that ``test`` and ``predict`` leave beside the record."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from elip.tasks.base import Task
from elip.training.module import MeterModule

log = logging.getLogger(__name__)

ROWS_NAME = "predictions.jsonl"
"""One line of JSON an example: ``split``, then what the task's `predict` returns."""


class AnswerRows(Callback):
    """Write what a test run answered to every example, and the evaluation server's file."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows of all processes, once and in order."""
        assert isinstance(pl_module, MeterModule)
        splits = pl_module.rows.items()
        rows = [{"split": split, **row} for split, rows in splits for row in rows]
        write_rows(trainer, pl_module.task, "test", rows)


def write_rows(trainer: Trainer, task: Task, stage: str, rows: list[dict[str, Any]]) -> None:
    """Write the rows of all processes to `ROWS_NAME`, and the file for the server if any.

    They stand in the order of splits and examples, each example once. Where no process has a row,
    nothing is left. Every process must call it, also one whose share of the examples is empty.

    Args:
        trainer: The trainer.
        task: The task.
        stage: ``test`` or ``predict``.
        rows: Those of this process: ``split``, and what the task's `predict` returns.
    """
    shares = [rows]
    if trainer.world_size > 1:
        shares = [[]] * trainer.world_size
        dist.all_gather_object(shares, rows)
    if not (trainer.is_global_zero and any(shares)):
        return
    splits: list[str] = trainer.datamodule.split_names(stage)  # type: ignore[attr-defined]
    once = {(splits.index(row["split"]), row["example"]): row for share in shares for row in share}
    rows = [once[key] for key in sorted(once)]
    target = Path(trainer.default_root_dir) / ROWS_NAME
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    _write_submissions(trainer, task, rows, splits)
    log.info("%d predictions: %s", len(rows), target)


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
