"""Random batches for counting and timing. Costs do not depend on their content."""

from __future__ import annotations

import math

import torch

from elip.data.batch import Batch, TextBatch
from elip.model.meter import Meter
from elip.tasks.base import Task


def random_batch(meter: Meter, count: int, task: Task | None = None) -> Batch:
    """Return a batch of random pixels and words on the CPU; every text has its full length.

    Args:
        meter: The model.
        count: Number of examples.
        task: The task; it decides on images, negative texts and targets.
    """
    sizes, generator = meter.sizes, torch.Generator().manual_seed(0)
    images = 2 if task is not None and task.spec.kind == "pair" else 1
    texts = 0 if task is None else task.spec.negative_texts
    classes = getattr(task, "classes", 1)

    def pixels(number: int) -> torch.Tensor:
        shape = (count, number, 3, sizes.image_size, sizes.image_size)
        return torch.randint(256, shape, generator=generator).to(torch.uint8)

    def words(*shape: int) -> TextBatch:
        shape = (*shape, sizes.max_text_len)
        ids = torch.randint(5, meter.vocab_size, shape, generator=generator)
        return TextBatch(ids, torch.ones(shape, dtype=torch.bool))

    # 15 % of the words, rounded up to a multiple of 4 as in `Batch.trimmed`.
    places = min(4 * math.ceil(0.15 * sizes.max_text_len / 4), sizes.max_text_len)
    target = torch.arange(count) % classes
    if task is not None and task.spec.kind == "question":
        target = torch.rand(count, classes, generator=generator)
    text = words(count)
    return Batch(
        images=pixels(images),
        text=text,
        strings=("",) * count,
        example=torch.arange(count),
        image_id=torch.arange(count),
        masked=text,
        masked_labels=text.ids.masked_fill(torch.arange(sizes.max_text_len) >= places, -100),
        masked_places=places,
        negative_images=pixels(1),
        negative_text=words(count, texts) if texts else None,
        target=target,
    )
