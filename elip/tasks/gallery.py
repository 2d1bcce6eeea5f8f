"""Score all pairs of images and texts, and share all work that does not depend on the pair.

Each text is encoded once. Each image is encoded once, up to the first block that depends on the
text. The one-sided part of the fusion runs once per block of images or texts. With several
processes, one process that has an image scores it against the texts of all. Shape legend:
I images, T texts, L text length, D widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from elip.data.batch import Batch, TextBatch
from elip.model.interface import EncodedImage, Fused, Reading
from elip.model.meter import Meter
from elip.tasks.base import encode_shared
from elip.tasks.scores import gather
from reducers.contract import EncodedText

Head = Callable[[Fused], Tensor]
"""``head(fused) -> [B] float32``: one score per pair."""

_BLOCK = 32
"""Images whose one-sided part is in memory: 0.3 GB in fp32 at full size and 384 pixels."""


class Gallery:
    """The images and texts of a split, encoded as far as they do not depend on each other.

    Rows (images) are sorted by image number, columns (texts) by image number and example number.
    Repeats count once.
    """

    def __init__(self) -> None:
        self._encoded: list[EncodedImage] = []
        self._texts: list[EncodedText] = []
        self._images: dict[int, None] = {}
        self._examples: dict[int, int] = {}
        self._precision: torch.dtype | None = None

    def add(self, meter: Meter, batch: Batch) -> None:
        """Encode the new images and texts of a batch."""
        images, texts = [], []
        for row, (image, example) in enumerate(batch.host_numbers()):
            if image not in self._images:
                self._images[image] = None
                images.append(row)
            if example not in self._examples:
                self._examples[example] = image
                texts.append(row)
        device = batch.example.device
        enabled = torch.is_autocast_enabled(device.type)
        self._precision = torch.get_autocast_dtype(device.type) if enabled else None
        if images:
            rows = torch.tensor(images, device=device)
            encoded = encode_shared(meter, batch.images[rows, 0], training=False)
            if self._precision is not None and meter.shares_prefix:
                # Lossless, because the next operator casts to this precision anyway.
                encoded = replace(encoded, tokens=encoded.tokens.to(self._precision))
            self._encoded.append(replace(encoded, stages=()))
        if texts:
            rows = torch.tensor(texts, device=device)
            text = TextBatch(batch.text.ids[rows], batch.text.mask[rows], batch.text.padded)
            self._texts.append(meter.encode_text(text))

    def image_of_text(self, meter: Meter) -> Tensor:
        """Return the row of each column's image, [T] int64; all processes must call this."""
        columns = sorted(set(self._names(meter)))
        row = {image: i for i, image in enumerate(dict.fromkeys(image for image, _ in columns))}
        return torch.tensor([row[image] for image, _ in columns], dtype=torch.int64,
                            device=meter.device)  # fmt: skip

    def image_numbers(self, meter: Meter) -> Tensor:
        """Return the image number of each row, [I] int64; all processes must call this."""
        images = torch.tensor(list(self._images), dtype=torch.int64, device=meter.device)
        numbers: Tensor = torch.cat(gather(images)).unique()
        return numbers

    @torch.no_grad()
    def scores(self, meter: Meter, head: Head, pairs: int) -> Tensor:
        """Return the scores [I,T] float32 of all pairs; all processes must call this.

        Args:
            meter: The model.
            head: The head; it runs in the precision of `add`.
            pairs: Maximum number of pairs per pass.
        """
        text, rows, device = self._all_texts(meter), self._own_rows(meter), meter.device
        block = torch.zeros(len(rows), len(text.tokens), device=device)
        precision = self._precision
        if block.numel():
            self._encoded = [_stack_images(self._encoded)]
            own = torch.tensor(rows, device=device)
            with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
                block = score_pairs(meter, head, self._encoded[0], own, text, pairs)
        images = list(self._images)
        names = torch.tensor([images[row] for row in rows], dtype=torch.int64, device=device)
        order = torch.cat(gather(names)).argsort()
        return torch.cat(gather(block))[order]

    def _names(self, meter: Meter) -> list[tuple[int, int]]:
        """Return image and example number of each text, over all processes."""
        names = [[image, example] for example, image in self._examples.items()]
        own = torch.tensor(names, dtype=torch.int64, device=meter.device).view(-1, 2)
        return [(image, example) for image, example in torch.cat(gather(own)).tolist()]

    def _all_texts(self, meter: Meter) -> EncodedText:
        """Return the texts of all processes, one a column."""
        device = meter.device
        # A process without examples must take part, too.
        empty = EncodedText(
            torch.zeros(0, 1, meter.text_width, device=device),
            torch.zeros(0, 1, dtype=torch.bool, device=device),
        )
        own = _stack_texts(self._texts or [empty])
        shards = zip(gather(own.tokens.contiguous()), gather(own.mask.long()), strict=True)
        text = _stack_texts([EncodedText(tokens, mask.bool()) for tokens, mask in shards])
        column = {name: row for row, name in enumerate(self._names(meter))}
        if not column:
            return text
        order = torch.tensor([column[name] for name in sorted(column)], device=device)
        return EncodedText(text.tokens[order], text.mask[order])

    def _own_rows(self, meter: Meter) -> list[int]:
        """Return the images that this process scores; the load is even over processes."""
        images = torch.tensor(list(self._images), dtype=torch.int64, device=meter.device)
        shards = [set(shard.tolist()) for shard in gather(images)]
        load, rank = [0] * len(shards), dist.get_rank() if len(shards) > 1 else 0
        place, rows = {image: row for row, image in enumerate(self._images)}, []
        for image in sorted(set().union(*shards)):
            holders = (i for i, shard in enumerate(shards) if image in shard)
            owner = min(holders, key=lambda i: (load[i], i))
            load[owner] += 1
            if owner == rank:
                rows.append(place[image])
        return rows


def score_pairs(
    meter: Meter, head: Head, images: EncodedImage, rows: Tensor, text: EncodedText, pairs: int
) -> Tensor:
    """Return the scores [I,T] of the encoded images at ``rows`` [I] with the encoded texts.

    Texts are sorted by length and each block is cut to its longest text, to save padding.
    """
    device, num_texts = rows.device, len(text.tokens)
    lengths = text.mask.sum(dim=1)
    order = lengths.argsort(stable=True)
    longest = lengths[order].tolist()
    block = min(_BLOCK, pairs, len(rows))
    step = max(1, pairs // block)
    scores = torch.empty(len(rows), num_texts, device=device)
    hidden = dist.is_available() and dist.is_initialized() and dist.get_rank() > 0
    with Progress(transient=True, disable=hidden) as progress:
        bar = progress.add_task("Scoring pairs", total=scores.numel())
        for first in range(0, len(rows), block):
            some = images.rows(rows[first : first + block])
            count = len(some.tokens)
            shared = meter.prepare_image(some) if meter.shares_prefix else None
            for start in range(0, num_texts, step):
                columns = order[start : start + step]
                cut = longest[start + len(columns) - 1]
                part = EncodedText(
                    text.tokens[columns, :cut], text.mask[columns, :cut], longest[start] < cut
                )
                image = torch.arange(count, device=device).repeat(len(columns))
                column = torch.arange(len(columns), device=device).repeat_interleave(count)
                words = meter.prepare_text(part).rows(column)
                if shared is None:
                    beside = EncodedText(part.tokens[column], part.mask[column], part.padded)
                    sides = meter.prepare_image(meter.encode_suffix(some.rows(image), beside))
                else:
                    sides = shared.rows(image)
                fused = meter.fuse_prepared(words, sides, [Reading(len(image), "pooled")])[0]
                scores[first : first + count, columns] = head(fused).view(len(columns), count).T
                progress.advance(bar, len(image))
    return scores


def _stack_texts(texts: list[EncodedText]) -> EncodedText:
    """Join texts, padded to the longest."""
    longest = max(text.mask.shape[1] for text in texts)
    tokens = [F.pad(text.tokens, (0, 0, 0, longest - text.tokens.shape[1])) for text in texts]
    masks = [F.pad(text.mask, (0, longest - text.mask.shape[1])) for text in texts]
    return EncodedText(torch.cat(tokens), torch.cat(masks))


def _stack_images(images: list[EncodedImage]) -> EncodedImage:
    """Join encoded images."""
    masks = [image.mask for image in images if image.mask is not None]
    return replace(
        images[0],
        tokens=torch.cat([image.tokens for image in images]),
        sizes=torch.cat([image.sizes for image in images]),
        patch_to_token=torch.cat([image.patch_to_token for image in images]),
        seeds=torch.cat([image.seeds for image in images]),
        mask=torch.cat(masks) if masks else None,
    )
