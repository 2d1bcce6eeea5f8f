"""A model of a few thousand weights, and a batch of whatever a task asks for."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from elip.data.batch import Batch, SampleSpec, TextBatch
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.schedule import Schedule
from elip.tasks.base import Task
from reducers.contract import Reducer

VOCAB, ANSWERS, LENGTH, PIXELS = 40, 7, 10, 24
CLASSES = {"pair": 2, "statement": 2, "entailment": 3}


IN_THE_ENCODER = Schedule(keep_ratio=None, layers=(1, 3), profile=(0.6, 0.3))
IN_THE_FUSION = Schedule(keep_ratio=None, layers=(0,), profile=(0.6,))


def tiny_meter(reducer: Reducer | None = None, dropout: float = 0.0) -> Meter:
    torch.manual_seed(0)
    sizes = MeterConfig(
        image_size=PIXELS,
        patch_size=4,
        image_width=32,
        image_blocks=5,
        image_heads=2,
        text_width=32,
        text_layers=1,
        text_heads=2,
        fusion_width=24,
        fusion_layers=2,
        fusion_heads=2,
        max_text_len=LENGTH,
        dropout=dropout,
    ).resolve()
    fused = reducer is not None and reducer.placement == "fusion"
    schedule = IN_THE_FUSION if fused else IN_THE_ENCODER
    return Meter(sizes, reducer, schedule, vocab_size=VOCAB).eval()


def built(task: Task, meter: Meter) -> Task:
    torch.manual_seed(1)
    task.build(meter, ANSWERS)
    for parameter in task.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return task.eval()


def batch_for(needs: SampleSpec, count: int = 6, seed: int = 0) -> Batch:
    """A batch as the loader would make it for a task that asks for ``needs``."""
    draw = torch.Generator().manual_seed(seed)
    images = 2 if needs.kind == "pair" else 1
    text, labels = _texts(count, draw), torch.full((count, LENGTH), -100)
    masked = text.ids.clone()
    labels[:, 1], masked[:, 1] = text.ids[:, 1], 3
    labels[0, 2], masked[0, 2] = text.ids[0, 2], 3
    batch = Batch(
        images=_pixels(count, images, draw),
        text=text,
        strings=tuple(f"text {row}" for row in range(count)),
        example=torch.arange(count),
        image_id=100 + torch.arange(count) // 2,
        target=_target(needs.kind, count, draw),
        keys=tuple(str(1000 + row) for row in range(count)),
    )
    # Two texts an image.
    batch = replace(batch, images=batch.images[torch.arange(count) // 2 * 2])
    if needs.masked:
        batch = replace(batch, masked=TextBatch(masked, text.mask), masked_labels=labels)
    if needs.negative_images:
        batch = replace(batch, negative_images=_pixels(count, needs.negative_images, draw))
    if needs.negative_texts:
        false = _texts(count * needs.negative_texts, draw)
        shape = (count, needs.negative_texts, LENGTH)
        batch = replace(
            batch, negative_text=TextBatch(false.ids.view(shape), false.mask.view(shape))
        )
    return batch.trimmed()


def take(batch: Batch, rows: list[int]) -> Batch:
    """The batch of these rows, in this order."""

    def pick(value: Tensor | TextBatch | None) -> Tensor | TextBatch | None:
        if isinstance(value, TextBatch):
            return TextBatch(value.ids[rows], value.mask[rows])
        return None if value is None else value[rows]

    tensors = ("images", "text", "example", "image_id", "masked", "masked_labels",
               "negative_images", "negative_text", "target")  # fmt: skip
    changed = {name: pick(getattr(batch, name)) for name in tensors}
    strings = tuple(batch.strings[row] for row in rows)
    keys = tuple(batch.keys[row] for row in rows)
    return replace(batch, strings=strings, keys=keys, numbers=(), **changed)


def _pixels(count: int, images: int, draw: torch.Generator) -> Tensor:
    shape = (count, images, 3, PIXELS, PIXELS)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)


def _texts(count: int, draw: torch.Generator) -> TextBatch:
    ids = torch.randint(4, VOCAB, (count, LENGTH), generator=draw)
    lengths = torch.randint(4, LENGTH + 1, (count, 1), generator=draw)
    mask = torch.arange(LENGTH) < lengths
    return TextBatch(ids.where(mask, torch.tensor(1)), mask)


def _target(kind: str, count: int, draw: torch.Generator) -> Tensor | None:
    if kind == "caption":
        return None
    if kind == "question":
        return torch.rand(count, ANSWERS, generator=draw).round(decimals=1)
    return torch.randint(0, CLASSES[kind], (count,), generator=draw)
