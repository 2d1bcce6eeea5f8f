"""Recall at k from a matrix of scores, and the recall of guessing.

Shape legend: I images, T texts. ``scores`` is [I,T] float, and ``image_of_text`` [T] int64 the row
of each text's image.
"""

from __future__ import annotations

from math import comb

import torch
from torch import Tensor

CUTOFFS = (1, 5, 10)


def ranks(scores: Tensor, image_of_text: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ranks, from 0, of each text's image [T] and of each image's best own text [I].

    Among equal scores the lower row or column comes first.
    """
    num_images, num_texts = scores.shape
    rows = torch.arange(num_images, device=scores.device)[:, None]
    columns = torch.arange(num_texts, device=scores.device)
    own = scores.gather(0, image_of_text[None])
    ahead = (scores > own) | ((scores == own) & (rows < image_of_text))
    image_rank = ahead.sum(dim=0)
    mine = scores.masked_fill(image_of_text != rows, -torch.inf)
    best = mine.amax(dim=1, keepdim=True)
    first = torch.where(mine == best, columns, num_texts).amin(dim=1, keepdim=True)
    ahead = (scores > best) | ((scores == best) & (columns < first))
    return image_rank, ahead.sum(dim=1)


def recalls(scores: Tensor, image_of_text: Tensor) -> dict[str, float]:
    """Return image retrieval (``ir_r*``) and text retrieval (``tr_r*``) recall at 1, 5 and 10.

    ``ir_rk`` is the share of texts whose image is among the k best images; ``tr_rk`` the share of
    images with at least one own text among the k best texts; ``r1`` is the mean of both at k = 1.
    `ranks` breaks ties. With fewer than k candidates all are among the k best.

    Returns:
        Shares in [0, 1]; NaN if there is nothing to rank or a score is not finite.
    """
    if not _ranked(scores):
        return _named([float("nan")] * 3, [float("nan")] * 3)
    image_rank, text_rank = ranks(scores, image_of_text)
    return _named(
        [(image_rank < k).double().mean().item() for k in CUTOFFS],
        [(text_rank < k).double().mean().item() for k in CUTOFFS],
    )


def first_hits(scores: Tensor, image_of_text: Tensor) -> Tensor:
    """Return the contribution of each image and its texts to ``r1``, [I] float64, with mean ``r1``.

    With I images and T texts it is half of: 1 if an own text ranks first, plus I / T times the
    number of own texts that find the image. Empty if the order is undefined.
    """
    if not _ranked(scores):
        return torch.zeros(0, dtype=torch.float64, device=scores.device)
    image_rank, text_rank = ranks(scores, image_of_text)
    found = (image_rank == 0).double() * scores.shape[0] / scores.shape[1]
    return (text_rank == 0).double().index_add(0, image_of_text, found) / 2


def _ranked(scores: Tensor) -> bool:
    return bool(scores.numel()) and bool(scores.isfinite().all())


def guesses(image_of_text: Tensor) -> dict[str, float]:
    """Return the expected recalls of a random order.

    For I images, T texts and c texts of an image: ``ir_rk = min(k, I) / I`` and
    ``tr_rk = mean(1 - C(T - c, k) / C(T, k))``.
    """
    texts = image_of_text.bincount().tolist()
    total = sum(texts)
    if not total:
        return {}
    image = [min(k, len(texts)) / len(texts) for k in CUTOFFS]
    text = []
    for k in (min(k, total) for k in CUTOFFS):
        missed = [comb(total - own, k) / comb(total, k) for own in texts]
        text.append(1 - sum(missed) / len(missed))
    return _named(image, text)


def _named(image: list[float], text: list[float]) -> dict[str, float]:
    named = {f"ir_r{k}": value for k, value in zip(CUTOFFS, image, strict=True)}
    named |= {f"tr_r{k}": value for k, value in zip(CUTOFFS, text, strict=True)}
    return named | {"r1": (image[0] + text[0]) / 2}
