"""Closed forms for multiply-adds, to check the counters. One multiply-add = 1."""

from __future__ import annotations

from collections.abc import Sequence


def layer(tokens: int, width: int, source: int | None = None) -> int:
    """Attention of ``tokens`` to ``source`` tokens: four projections, scores, weighted sum."""
    source = tokens if source is None else source
    return 2 * tokens * width**2 + 2 * source * width**2 + 2 * tokens * source * width


def feed_forward(tokens: int, width: int) -> int:
    return 8 * tokens * width**2


def vit(tokens: Sequence[int], width: int, patches: int, patch_size: int) -> int:
    """Patch convolution and blocks; ``tokens`` (CLS included) enter each block."""
    blocks = sum(layer(count, width) + feed_forward(count, width) for count in tokens)
    return patches * width * 3 * patch_size**2 + blocks


def text_encoder(length: int, width: int, layers: int) -> int:
    return layers * (layer(length, width) + feed_forward(length, width))


def cls_row(tokens: int, width: int) -> int:
    """One attention row: the query of CLS, the keys of all, their products."""
    return width**2 + tokens * width**2 + tokens * width


def fusion_layer(rows: int, tokens: int, other: int, width: int) -> int:
    """One layer of one stream; only ``rows`` of its ``tokens`` tokens are computed."""
    return layer(rows, width, tokens) + layer(rows, width, other) + feed_forward(rows, width)


def fusion(text: int, image: int, width: int, layers: int, read: str) -> int:
    """Both streams; the last layer computes only the rows that are read."""
    both = fusion_layer(text, text, image, width) + fusion_layer(image, image, text, width)
    last = {
        "all": both,
        "text": fusion_layer(text, text, image, width),
        "pooled": fusion_layer(1, text, image, width) + fusion_layer(1, image, text, width),
    }[read]
    return (layers - 1) * both + last
