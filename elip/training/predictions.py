"""What ``predict`` leaves: a row an example (see `elip.training.rows`), and token reductions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from elip.data.batch import Batch
from elip.model.interface import Fused
from elip.training.module import MeterModule
from elip.training.rows import write_rows

TOKENS_NAME = "tokens/tokens.json"
"""Which token stands for each patch of some images, beside those images as PNG files.

Its keys: ``reducer``, ``family``, ``keep_ratio`` (as asked), ``grid`` (rows, columns), and
``images``, a list with ``file``, ``split``, ``example``, ``image`` (which one of the example's),
``text``, and ``stages``: for each reduction ``where`` ("block" or "fusion layer"), ``layer``, and
``origin``, for each patch the index of the token that stands for it then, or -1. A token that
stands for one patch was kept, one that stands for several is a merged group, -1 is dropped.
"""


class Predictions(Callback):
    """Write what the task predicts, and what the reducer did to the first images.

    Every ``predict`` has one. To draw more images or fewer:
    ``--trainer.callbacks+=elip.training.predictions.Predictions --trainer.callbacks.images=4``.

    Args:
        images: The number of examples whose token reduction is kept.
        texts: Of an image that has several texts, at most so many.
    """

    def __init__(self, images: int = 16, texts: int = 2) -> None:
        self.images = images
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
        self._rows = []
        if trainer.is_global_zero and self._left:
            self._hook = pl_module.meter.on_fused(self._fused.append)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rows of a batch, and write the pictures while some are wanted."""
        assert isinstance(pl_module, MeterModule)
        split = trainer.datamodule.split_names("predict")[dataloader_idx]  # type: ignore[attr-defined]
        self._rows += [{"split": split, **row} for row in outputs]
        if self._hook is None:
            return
        rows = self._choose(batch.image_id.tolist())
        self._pictures += _pictures(_folder(trainer), split, batch, rows, self._fused)
        self._left -= len(rows)
        self._fused.clear()
        if not self._left:
            self._stop_listening()

    def _choose(self, image_ids: list[int]) -> list[int]:
        rows: list[int] = []
        for row, image_id in enumerate(image_ids):
            if len(rows) < self._left and self._shown[image_id] < self.texts:
                self._shown[image_id] += 1
                rows.append(row)
        return rows

    def _stop_listening(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self._fused.clear()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows of all processes, and what became of the tokens."""
        assert isinstance(pl_module, MeterModule)
        self._stop_listening()
        write_rows(trainer, pl_module.task, "predict", self._rows)
        if trainer.is_global_zero and self._pictures:
            _write_tokens(_folder(trainer), pl_module, self._pictures)


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / Path(TOKENS_NAME).parent


def _pictures(
    folder: Path, split: str, batch: Batch, rows: Sequence[int], passes: Sequence[Fused]
) -> list[dict[str, Any]]:
    """Save some images of a batch, and return what became of their patches in each pass."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for row in rows:
        example = int(batch.example[row])
        # A task fuses each image of an example once, in the order of the images.
        for which, image in enumerate(passes[: batch.images.shape[1]]):
            name = f"{_safe(split)}-{example}-{which}.png"
            Image.fromarray(_pixels(batch.images[row, which])).save(folder / name)
            pictures.append(
                {
                    "file": name,
                    "split": split,
                    "example": example,
                    "image": which,
                    "text": batch.strings[row],
                    "stages": [
                        {"layer": stage.layer, "origin": stage.patch_to_token[row].tolist()}
                        for stage in image.stages
                    ],
                }
            )
    return pictures


def _write_tokens(folder: Path, module: MeterModule, pictures: list[dict[str, Any]]) -> None:
    meter, reducer = module.meter, module.meter.reducer
    where = "fusion layer" if reducer.placement == "fusion" else "block"
    for picture in pictures:
        picture["stages"] = [{"where": where, **stage} for stage in picture["stages"]]
    content = {
        "reducer": type(reducer).__name__,
        "family": reducer.family,
        "keep_ratio": None if module.schedule.counts else module.schedule.keep_ratio,
        "grid": list(meter.grid),
        "images": pictures,
    }
    path = folder / Path(TOKENS_NAME).name
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def _pixels(image: Tensor) -> Any:
    """Return [3,S,S] as an array [S,S,3] of bytes."""
    if image.is_floating_point():
        low, high = image.amin(), image.amax()
        image = ((image - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8)
    return image.permute(1, 2, 0).contiguous().cpu().numpy()


def _safe(name: str) -> str:
    return name.replace("/", "-")
