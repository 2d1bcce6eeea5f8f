"""Scoring every image beside every text, with everything encoded once that can be.

Each text is encoded once. Each image is encoded once as far as no text can change it: wholly where
the reducer is blind to the text, up to the first reduction layer where it looks at it. Only the
rest runs once a pair. Over several processes each image is scored by one process that holds it,
beside the texts of all. Shape legend: I images, T texts, L text length, D widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from elip.data.batch import Batch, TextBatch
from elip.model.interface import EncodedImage
from elip.model.meter import Meter
from elip.tasks.base import begin_images
from elip.tasks.scores import gather
from reducers.contract import EncodedText

Score = Callable[[Meter, EncodedImage, EncodedText], Tensor]
"""``score(meter, image, text) -> [B]``: one score for each image beside its text."""


class Gallery:
    """The images and texts of a split, encoded as far as one side alone goes.

    Rows (images) are in order of image number, columns (texts) in order of image number and then
    example number, whatever the order, batches and processes that they came in. What comes twice
    counts once.
    """

    def __init__(self) -> None:
        self._begun: list[EncodedImage] = []
        self._texts: list[EncodedText] = []
        self._images: dict[int, None] = {}
        self._examples: dict[int, int] = {}
        self._precision: torch.dtype | None = None

    def add(self, meter: Meter, batch: Batch) -> None:
        """Encode what a batch has that was not here before."""
        images, texts = [], []
        pairs = zip(batch.image_id.tolist(), batch.example.tolist(), strict=True)
        for row, (image, example) in enumerate(pairs):
            if image not in self._images:
                self._images[image] = None
                images.append(row)
            if example not in self._examples:
                self._examples[example] = image
                texts.append(row)
        if images:
            self._begun.append(begin_images(meter, batch.images[images, 0], training=False))
        if texts:
            text = TextBatch(batch.text.ids[texts], batch.text.mask[texts])
            self._texts.append(meter.encode_text(text))
        device = batch.example.device.type
        enabled = torch.is_autocast_enabled(device)
        self._precision = torch.get_autocast_dtype(device) if enabled else None

    def image_of_text(self, meter: Meter) -> Tensor:
        """Return the row of each column's image, [T] int64; every process must ask."""
        columns = sorted(set(_everywhere(self._names(meter))))
        row = {image: i for i, image in enumerate(dict.fromkeys(image for image, _ in columns))}
        rows = [row[image] for image, _ in columns]
        return torch.tensor(rows, dtype=torch.int64, device=meter.device)

    def image_numbers(self, meter: Meter) -> Tensor:
        """Return the image number of each row, [I] int64; every process must ask."""
        images = torch.tensor(list(self._images), dtype=torch.int64, device=meter.device)
        numbers: Tensor = torch.cat(gather(images)).unique()
        return numbers

    @torch.no_grad()
    def scores(self, meter: Meter, score: Score, pairs: int) -> Tensor:
        """Return the scores [I,T] float32 of all pairs; every process must ask.

        Args:
            meter: The model.
            score: The head. It runs in the precision that `add` ran in.
            pairs: How many pairs are scored at once.
        """
        text = self._all_texts(meter)
        rows = self._own_rows(meter)
        device = meter.device
        block = torch.zeros(len(rows), len(text.tokens), device=device)
        if rows and block.numel():
            self._begun = [_stack_images(self._begun)]
            own = torch.tensor(rows, device=device)
            precision = self._precision
            with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
                block = score_pairs(meter, score, self._begun[0], own, text, pairs)
        images = list(self._images)
        names = torch.tensor([images[row] for row in rows], dtype=torch.int64, device=device)
        order = torch.cat(gather(names)).argsort()
        return torch.cat(gather(block))[order]

    def _names(self, meter: Meter) -> Tensor:
        """Return image and example number of each text of this process, [T,2]."""
        names = [[image, example] for example, image in self._examples.items()]
        device = meter.device
        return torch.tensor(names, dtype=torch.int64, device=device).view(-1, 2)

    def _all_texts(self, meter: Meter) -> EncodedText:
        """Return the texts of all processes, one a column."""
        device = meter.device
        # A process without examples still has to take part.
        empty = EncodedText(
            torch.zeros(0, 1, meter.text_width, device=device),
            torch.zeros(0, 1, dtype=torch.bool, device=device),
        )
        own = _stack_texts(self._texts or [empty])
        tokens, masks = gather(own.tokens.contiguous()), gather(own.mask.long())
        shards = zip(tokens, masks, strict=True)
        text = _stack_texts([EncodedText(tokens, mask.bool()) for tokens, mask in shards])
        column = {name: row for row, name in enumerate(_everywhere(self._names(meter)))}
        order = torch.tensor([column[name] for name in sorted(column)], device=device)
        return EncodedText(text.tokens[order], text.mask[order]) if len(column) else text

    def _own_rows(self, meter: Meter) -> list[int]:
        """Return which of its images this process scores: each is scored once, loads are even."""
        device = meter.device
        images = torch.tensor(list(self._images), dtype=torch.int64, device=device)
        shards = [set(shard.tolist()) for shard in gather(images)]
        load = [0] * len(shards)
        rank = dist.get_rank() if len(shards) > 1 else 0
        place = {image: row for row, image in enumerate(self._images)}
        rows = []
        for image in sorted(set().union(*shards)):
            holders = (i for i, shard in enumerate(shards) if image in shard)
            owner = min(holders, key=lambda i: (load[i], i))
            load[owner] += 1
            if owner == rank:
                rows.append(place[image])
        return rows


def score_pairs(
    meter: Meter, score: Score, begun: EncodedImage, rows: Tensor, text: EncodedText, pairs: int
) -> Tensor:
    """Return the scores [I,T] of the begun images at ``predictions`` [I] beside encoded texts.

    ``pairs`` of them go at a time, texts in order of length and each chunk cut to its longest, so
    that little padding is fused. Reducers in the fusion get whole texts: how many tokens they
    leave may depend on the padded length.
    """
    num_images, num_texts = len(rows), len(text.tokens)
    device, total = begun.tokens.device, num_images * num_texts
    lengths = text.mask.sum(dim=1)
    order = lengths.argsort(stable=True)
    longest = lengths[order].tolist()
    flat = torch.empty(total, device=device)
    with _progress() as progress:
        bar = progress.add_task("Scoring pairs", total=total)
        for start in range(0, total, pairs):
            index = torch.arange(start, min(start + pairs, total), device=device)
            column = order[index // num_images]
            cut = None
            if meter.reducer.placement != "fusion":
                cut = longest[(start + len(index) - 1) // num_images]
            chunk = EncodedText(text.tokens[column, :cut], text.mask[column, :cut])
            image = meter.encode_suffix(begun.rows(rows[index % num_images]), chunk)
            flat[index] = score(meter, image, chunk)
            progress.advance(bar, len(index))
    scores = torch.empty(num_images, num_texts, device=device)
    scores[:, order] = flat.view(num_texts, num_images).T
    return scores


def _progress() -> Progress:
    first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    return Progress(*columns, transient=True, disable=not first)


def _everywhere(names: Tensor) -> list[tuple[int, int]]:
    return [(image, example) for image, example in torch.cat(gather(names)).tolist()]


def _stack_texts(texts: list[EncodedText]) -> EncodedText:
    """Join texts, padded to the longest."""
    longest = max(text.mask.shape[1] for text in texts)
    tokens = [F.pad(text.tokens, (0, 0, 0, longest - text.tokens.shape[1])) for text in texts]
    masks = [F.pad(text.mask, (0, longest - text.mask.shape[1])) for text in texts]
    return EncodedText(torch.cat(tokens), torch.cat(masks))


def _stack_images(images: list[EncodedImage]) -> EncodedImage:
    """Join begun images. What happened at each reduction is left out: no score reads it."""
    masks = [image.mask for image in images if image.mask is not None]
    return replace(
        images[0],
        tokens=torch.cat([image.tokens for image in images]),
        sizes=torch.cat([image.sizes for image in images]),
        patch_to_token=torch.cat([image.patch_to_token for image in images]),
        seeds=torch.cat([image.seeds for image in images]),
        mask=torch.cat(masks) if masks else None,
        stages=(),
    )
