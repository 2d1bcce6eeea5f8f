"""Writes what ``test`` and ``predict`` add to the record: predictions, and maps of tokens."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor
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


class TestPredictions(Callback):
    """Write the answers of a test run, and the file for the evaluation server."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the predictions of all processes, in order."""
        assert isinstance(pl_module, MeterModule)
        splits = pl_module.predictions.items()
        rows = [{"split": split, **row} for split, rows in splits for row in rows]
        write_predictions(trainer, pl_module, "test", rows)


class Predictions(Callback):
    """Write the task's predictions, and the token maps of the first images.

    Every ``predict`` run has this callback. To draw more images or fewer:
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
        self._pictures: list[dict[str, Any]] = []
        self._hook: RemovableHandle | None = None
        self._rows: list[dict[str, Any]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the fusion for the first images."""
        assert isinstance(pl_module, MeterModule)
        meter, own = pl_module.meter, pl_module.meter.reducer

        def listen(fused: Fused) -> None:
            if meter.reducer is own:  # a sweep also runs other reducers
                self._fused.append(fused)

        if trainer.is_global_zero and self._left:
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
        if self._hook is None:
            return
        for row, image_id in enumerate(batch.image_id.tolist()):
            if self._left and self._shown[image_id] < self.texts:
                self._shown[image_id] += 1
                self._left -= 1
                self._draw(trainer, split, batch, row)
        self._fused.clear()
        if not self._left:
            self._stop_listening()

    def _draw(self, trainer: Trainer, split: str, batch: Batch, row: int) -> None:
        """Save the images of an example, and keep their token maps."""
        folder, example = _tokens_file(trainer).parent, int(batch.example[row])
        folder.mkdir(parents=True, exist_ok=True)
        # A task fuses the images of an example once each, in order.
        for which, fused in enumerate(self._fused[: batch.images.shape[1]]):
            name = f"{_safe(split)}-{example}-{which}.png"
            _image(batch.images[row, which]).save(folder / name)
            stages = [
                {"layer": stage.layer, "origin": stage.patch_to_token[row].tolist()}
                for stage in fused.stages
            ]
            self._pictures.append(
                {
                    "file": name, "split": split, "example": example, "image": which,
                    "text": batch.strings[row], "stages": stages,
                }
            )  # fmt: skip

    def _stop_listening(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows of all processes and the token maps."""
        assert isinstance(pl_module, MeterModule)
        self._stop_listening()
        write_predictions(trainer, pl_module, "predict", self._rows)
        if not self._pictures:
            return
        reducer, schedule = pl_module.meter.reducer, pl_module.schedule
        where = "fusion layer" if reducer.placement == "fusion" else "block"
        for picture in self._pictures:
            picture["stages"] = [{"where": where, **stage} for stage in picture["stages"]]
        content = {
            "reducer": type(reducer).__name__,
            "family": reducer.family,
            "keep_ratio": None if schedule.counts else schedule.keep_ratio,
            "grid": list(pl_module.meter.grid),
            "images": self._pictures,
        }
        text = json.dumps(content, separators=(",", ":"))
        _tokens_file(trainer).write_text(text, encoding="utf-8")


def write_predictions(
    trainer: Trainer, module: MeterModule, stage: str, rows: list[dict[str, Any]]
) -> None:
    """Write the rows of all processes to `PREDICTIONS_NAME`, and the file for the server if any.

    Rows are sorted by split and example, and each example is written once. Without any row no file
    is written. All processes must call this function. The module gets notes for the record.
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
    target = Path(trainer.default_root_dir) / PREDICTIONS_NAME
    with whole_file(target) as temporary:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        temporary.write_text(lines, encoding="utf-8")
    if type(module.task).submission is not Task.submission:
        for note in _write_submissions(trainer, module.task, rows, splits):
            module.notes.append(note)
            log.warning(note)
    log.info("%d predictions: %s", len(rows), target)


def _write_submissions(
    trainer: Trainer, task: Task, rows: list[dict[str, Any]], splits: list[str]
) -> Iterator[str]:
    """Write one file per split for the evaluation server; yield notes on problems.

    The server expects every test question in each file. Questions without a text or a readable
    image get the most common answer.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
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
        with whole_file(Path(trainer.default_root_dir) / name) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")


def _tokens_file(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / TOKENS_NAME


def _safe(split: str) -> str:
    return split.replace("/", "-")


def _image(pixels: Tensor) -> Image.Image:
    """Return [3,S,S] as an image."""
    if pixels.is_floating_point():
        low, high = pixels.aminmax()
        pixels = ((pixels - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
