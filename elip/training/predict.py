"""Writes what ``test`` and ``predict`` add to the record: predictions, and maps of tokens."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch.utils.hooks import RemovableHandle

from elip.data.batch import Batch
from elip.files import whole_file
from elip.model.interface import Fused
from elip.tasks.base import Task
from elip.training.module import MeterModule

log = logging.getLogger(__name__)

PREDICTIONS_NAME = "predictions.jsonl"
"""One JSON line per example: ``split``, then what the task's `predict` returns."""

TOKENS_NAME = "tokens/tokens.json"
"""Maps each patch of some images to a token; the images are PNG files in the same folder.

Its keys: ``reducer``, ``family``, ``keep_ratio`` (as asked), ``grid`` (rows, columns), and
``images``, a list with ``file``, ``split``, ``example``, ``image`` (which one of the example's),
``text``, and ``stages``: for each reduction ``where`` ("block" or "fusion layer"), ``layer``, and
``origin``, which gives for each patch the index of its token, or -1 if it was dropped. A token of
one patch was kept; a token of several patches was merged.
"""


class Predictions(Callback):
    """Write the predictions of ``test`` and ``predict``, and the file for the evaluation server.

    ``predict`` also writes token maps of the first images. To draw more images or fewer:
    ``--trainer.callbacks+=elip.training.predict.Predictions --trainer.callbacks.images=4``.

    Args:
        images: Number of examples with token maps.
        texts: Most texts for one image.
    """

    def __init__(self, images: int = 16, texts: int = 2) -> None:
        self.texts = texts
        self._left = images
        self._shown: Counter[int] = Counter()
        self._fused: list[Fused] = []
        self._maps: list[dict[str, Any]] = []
        self._hook: RemovableHandle | None = None
        self._rows: list[dict[str, Any]] = []

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows that evaluation computed."""
        results = cast(MeterModule, pl_module).results.items()
        rows = [{"split": name, **row} for name, result in results for row in result.predictions]
        _write_rows(trainer, cast(MeterModule, pl_module), "test", rows)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the fusion for the first images."""
        meter = cast(MeterModule, pl_module).meter
        own = meter.reducer
        self._where = "fusion layer" if own.placement == "fusion" else "block"

        def listen(fused: Fused) -> None:
            if self._left and meter.reducer is own:  # a sweep also runs other reducers
                self._fused.append(fused)

        if trainer.is_global_zero:
            self._hook = meter.on_fused(listen)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rows of a batch, and write the first images."""
        split = trainer.datamodule.split_names("predict")[dataloader_idx]  # type: ignore[attr-defined]
        self._rows += [{"split": split, **row} for row in outputs]
        for row, image_id in enumerate(batch.image_id.tolist() if self._fused else []):
            if self._left and self._shown[image_id] < self.texts:
                self._shown[image_id] += 1
                self._left -= 1
                self._draw(Path(trainer.default_root_dir) / TOKENS_NAME, split, batch, row)
        self._fused.clear()

    def _draw(self, file: Path, split: str, batch: Batch, row: int) -> None:
        """Save the images of an example beside the file, and keep their token maps."""
        file.parent.mkdir(parents=True, exist_ok=True)
        example = int(batch.example[row])
        # A task fuses the images of an example once each, in order.
        for which, fused in enumerate(self._fused[: batch.images.shape[1]]):
            name = f"{_safe(split)}-{example}-{which}.png"
            stages = [
                {
                    "where": self._where,
                    "layer": each.layer,
                    "origin": each.patch_to_token[row].tolist(),
                }
                for each in fused.stages
            ]
            pixels = batch.images[row, which]
            if pixels.is_floating_point():
                low, high = pixels.aminmax()
                pixels = ((pixels - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8)
            Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy()).save(
                file.with_name(name)
            )
            self._maps.append(
                {
                    "file": name, "split": split, "example": example, "image": which,
                    "text": batch.strings[row],
                    "stages": stages,
                }
            )  # fmt: skip

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows of all processes and the token maps."""
        module = cast(MeterModule, pl_module)
        if self._hook is not None:
            self._hook.remove()
        _write_rows(trainer, module, "predict", self._rows)
        if self._maps:
            reducer, schedule = module.meter.reducer, module.schedule
            content = {
                "reducer": type(reducer).__name__,
                "family": reducer.family,
                "keep_ratio": None if schedule.counts else schedule.keep_ratio,
                "grid": list(module.meter.grid),
                "images": self._maps,
            }
            file = Path(trainer.default_root_dir) / TOKENS_NAME
            file.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def _write_rows(
    trainer: Trainer, module: MeterModule, stage: str, rows: list[dict[str, Any]]
) -> None:
    """Write the rows of all processes to `PREDICTIONS_NAME`, and the files for the server if any.

    Rows are sorted by split and example, and each example is written once. Without any row no file
    is written. All processes must call this function. The module gets notes for the record.
    """
    shares = [rows]
    if trainer.world_size > 1:
        shares = [[]] * trainer.world_size
        dist.all_gather_object(shares, rows)
    if not (trainer.is_global_zero and any(shares)):
        return
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    splits: list[str] = data.split_names(stage)
    once = {(splits.index(row["split"]), row["example"]): row for share in shares for row in share}
    rows = [once[key] for key in sorted(once)]
    folder = Path(trainer.default_root_dir)
    with whole_file(folder / PREDICTIONS_NAME) as temporary:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        temporary.write_text(lines, encoding="utf-8")
    if type(module.task).submission is not Task.submission:
        for note in _write_submissions(folder, data, module.task, rows, splits):
            module.notes.append(note)
            log.warning(note)
    log.info("%d predictions: %s", len(rows), folder / PREDICTIONS_NAME)


def _write_submissions(
    folder: Path, data: Any, task: Task, rows: list[dict[str, Any]], splits: list[str]
) -> Iterator[str]:
    """Write one file per split for the evaluation server; yield notes on problems.

    The server expects every test question in each file. Questions without a text or a readable
    image get the most common answer.
    """
    if data.eval_config.limit is not None:
        yield "No submission: data.eval_limit omits questions."
        return
    keys = {str(number) for number in data.asked(task.spec.kind)}
    for split in splits:
        given, asked = [row for row in rows if row["split"] == split], []
        if keys.issuperset(row["key"] for row in given):
            given, asked = [row for row in rows if row["key"] in keys], [int(key) for key in keys]
        try:
            content = task.submission(given, data.info.answers, asked)
        except ValueError as error:
            yield f"No submission for {split}: {error}"
            continue
        if (lost := len(asked) - len({row["key"] for row in given})) > 0:
            yield (
                f"Submission for {split}: {lost} of {len(asked)} questions have no text or no "
                "readable image; they get the most common answer."
            )
        name = "submission.json" if len(splits) == 1 else f"submission-{_safe(split)}.json"
        with whole_file(folder / name) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")


def _safe(split: str) -> str:
    return split.replace("/", "-")
