"""Retrieval: cached scores against pair by pair, in any batches and processes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from elip.data.batch import Batch, TextBatch
from elip.model.meter import Meter
from elip.tasks.base import encode_shared
from elip.tasks.retrieval import Retrieval
from reducers.ats import ATS
from reducers.contract import Reducer
from reducers.elip import ELIP
from reducers.identity import Identity
from reducers.pumer import PuMer
from reducers.random import Random
from reducers.tome import ToMe
from tests.tasks.tiny import batch_for, built, take, tiny_meter

REDUCERS = [
    pytest.param(lambda: None, id="none"),
    pytest.param(ToMe, id="ToMe"),
    pytest.param(ELIP, id="ELIP"),
    pytest.param(lambda: ELIP(mix=1.0), id="ELIP without text"),
    pytest.param(ATS, id="ATS"),
    pytest.param(PuMer, id="PuMer"),
]


def prepared(reducer: Reducer | None, pairs: int = 5) -> tuple[Meter, Retrieval, Batch]:
    meter = tiny_meter(reducer)
    task = Retrieval(negative_texts=3, pairs=pairs)
    built(task, meter)
    return meter, task, batch_for(task.spec, count=9)


@torch.no_grad()
def pair_by_pair(meter: Meter, task: Retrieval, batch: Batch) -> Tensor:
    """Each image beside each text by itself, nothing kept: [I,T], images in order of number."""
    rows = [batch.image_id.tolist().index(image) for image in batch.image_id.unique()]
    scores = torch.empty(len(rows), len(batch))
    for i, row in enumerate(rows):
        for t in range(len(batch)):
            text = meter.encode_text(TextBatch(batch.text.ids[[t]], batch.text.mask[[t]]))
            begun = encode_shared(meter, batch.images[[row], 0], training=False)
            scores[i, t] = task.score(meter.fuse(text, meter.encode_suffix(begun, text), "pooled"))
    return scores


@torch.no_grad()
def cached(meter: Meter, task: Retrieval, *batches: Batch) -> Tensor:
    gallery = task.evaluator().gallery
    for batch in batches:
        gallery.add(meter, batch)
    return gallery.scores(meter, task.score, task.pairs)


@pytest.mark.parametrize("reducer", REDUCERS)
def test_cached_scores_equal_pair_by_pair(reducer) -> None:
    meter, task, batch = prepared(reducer())
    want = pair_by_pair(meter, task, batch)
    assert want.std() > 1e-3
    torch.testing.assert_close(cached(meter, task, batch), want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("reducer", "pairs"), [(Random, 1000), (ELIP, 1), (ELIP, 7)])
def test_order_batches_repeats_and_pairs_at_once_do_not_matter(reducer, pairs: int) -> None:
    meter, task, batch = prepared(reducer(), pairs)
    parts = [take(batch, rows) for rows in ([8, 1, 4, 1], [0], [3, 2, 7], [5, 6, 8])]
    got = cached(meter, task, *parts)
    torch.testing.assert_close(got, pair_by_pair(meter, task, batch), atol=2e-6, rtol=1e-5)


def test_texts_padded_to_their_batch_are_accepted() -> None:
    meter, task, batch = prepared(ELIP())
    parts = []
    for rows in ([0, 1, 2], [3, 4, 5, 6, 7, 8]):
        part = take(batch, rows)
        longest = int(part.text.mask.sum(1).max())
        text = TextBatch(part.text.ids[:, :longest], part.text.mask[:, :longest])
        parts.append(replace(part, text=text))
    assert parts[0].text.ids.shape != parts[1].text.ids.shape
    got = cached(meter, task, *parts)
    torch.testing.assert_close(got, pair_by_pair(meter, task, batch), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("reducer", "blocks"), [(Identity, 5), (Random, 5), (ELIP, 1)])
def test_what_no_text_can_change_runs_once_an_image(reducer, blocks: int) -> None:
    meter, task, batch = prepared(reducer())
    images, texts = [], []
    meter.image.vit.blocks[blocks - 1].register_forward_hook(
        lambda module, args, out: images.append(len(out))
    )
    meter.text.register_forward_hook(lambda module, args, out: texts.append(len(out.tokens)))
    cached(meter, task, batch, batch)
    assert sum(images) == 5
    assert sum(texts) == 9


def test_recalls_and_chance_come_from_all_pairs() -> None:
    meter, task, batch = prepared(None)
    evaluator = task.evaluator()
    with torch.no_grad():
        evaluator.update(meter, batch)
    scores, chance = evaluator.compute(meter), evaluator.chance(meter)
    found = pair_by_pair(meter, task, batch)
    right = (found.argmax(dim=0) == torch.arange(9) // 2).double().mean().item()
    assert scores["ir_r1"] == pytest.approx(right)
    assert scores["ir_r10"] == scores["tr_r10"] == 1.0  # fewer than ten of each
    assert chance["ir_r1"] == pytest.approx(1 / 5)
    assert scores.keys() == chance.keys()


def test_scores_run_in_the_precision_of_the_update() -> None:
    meter, task, batch = prepared(None)
    exact = cached(meter, task, batch)
    gallery = task.evaluator().gallery
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        gallery.add(meter, batch)
    low = gallery.scores(meter, task.score, task.pairs)
    assert low.dtype == torch.float32
    assert not torch.equal(low, exact)
    torch.testing.assert_close(low, exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("reducer", [lambda: None, Random, ELIP])
def test_training_loss_and_gradients_equal_repeating_the_images(reducer) -> None:
    meter, task, batch = prepared(reducer())
    ids = torch.cat([batch.text.ids[:, None], batch.negative_text.ids], 1).flatten(0, 1)
    mask = torch.cat([batch.text.mask[:, None], batch.negative_text.mask], 1).flatten(0, 1)
    text = meter.encode_text(TextBatch(ids, mask))
    begun = encode_shared(meter, batch.images[:, 0].repeat_interleave(4, dim=0), training=False)
    scores = task.score(meter.fuse(text, meter.encode_suffix(begun, text), "pooled")).view(-1, 4)
    naive = F.cross_entropy(scores, torch.zeros(len(batch), dtype=torch.int64))
    shared = task.loss(meter, batch).total
    torch.testing.assert_close(shared, naive)
    weights = [
        meter.image.vit.blocks[0].attn.qkv.weight,
        task.rank.weight,
        meter.token_types.weight,
    ]
    for a, b in zip(
        torch.autograd.grad(shared, weights), torch.autograd.grad(naive, weights), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5 * b.abs().max().item(), rtol=1e-4)


def test_the_true_text_stands_first() -> None:
    meter, task, batch = prepared(None)
    worse = replace(batch, text=TextBatch(*(part[:, 0] for part in _parts(batch))))
    assert task.loss(meter, worse).total != task.loss(meter, batch).total
    rows = task.predict(meter, batch)
    own = [pair_by_pair(meter, task, batch)[t // 2, t] for t in range(9)]
    assert [row["score"] for row in rows] == pytest.approx([float(s) for s in own], abs=1e-5)


def _parts(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.negative_text.ids, batch.negative_text.mask


@pytest.mark.parametrize(("negative_texts", "pairs"), [(0, 8), (3, 0)])
def test_numbers_below_one_are_refused(negative_texts: int, pairs: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Retrieval(negative_texts, pairs)
