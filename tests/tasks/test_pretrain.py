"""Masked language modelling and image-text matching."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from elip.data.batch import Batch
from elip.model.meter import Meter
from elip.tasks.base import encode_shared
from elip.tasks.pretrain import Pretraining
from reducers.elip import ELIP
from reducers.pumer import PuMer
from reducers.random import Random
from tests.tasks.tiny import LENGTH, VOCAB, batch_for, built, take, tiny_meter


def naive_loss(task: Pretraining, meter: Meter, batch: Batch) -> torch.Tensor:
    """Two passes that share nothing, as the reference runs them."""

    def encode(images, text):
        begun = encode_shared(meter, images, training=False)
        return meter.encode_suffix(begun, text)

    masked = meter.encode_text(batch.masked)
    words = task.mlm(meter.fuse(masked, encode(batch.images[:, 0], masked), "text").text)
    mlm = F.cross_entropy(words.flatten(0, 1), batch.masked_labels.flatten(), ignore_index=-100)
    match = (batch.example % 2 == 0).long()
    mixed = torch.where(
        match[:, None, None, None] == 1, batch.images[:, 0], batch.negative_images[:, 0]
    )
    text = meter.encode_text(batch.text)
    pooled = meter.fuse(text, encode(mixed, text), "pooled").pooled
    return mlm + F.cross_entropy(task.itm(pooled), match)


@pytest.mark.parametrize("reducer", [lambda: None, Random, ELIP, lambda: ELIP(mix=1.0), PuMer])
def test_sharing_images_changes_neither_loss_nor_gradients(reducer) -> None:
    meter = tiny_meter(reducer())
    task = built(Pretraining(), meter)
    batch = batch_for(task.spec, count=5)
    parameters = {**dict(meter.named_parameters()), **dict(task.named_parameters())}
    grads = []
    for loss in (task.loss(meter, batch).total, naive_loss(task, meter, batch)):
        grads.append(torch.autograd.grad(loss, list(parameters.values()), allow_unused=True))
        grads[-1] = (loss.detach(), *grads[-1])
    torch.testing.assert_close(grads[0][0], grads[1][0])
    for name, shared, naive in zip(parameters, grads[0][1:], grads[1][1:], strict=True):
        if shared is None or naive is None:
            # Read by no head, so the last layer does not compute it.
            assert naive is None or naive.abs().max() < 1e-7, name
        else:
            scale = naive.abs().max().clamp(min=1e-3)
            torch.testing.assert_close(shared / scale, naive / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("options", "encoded"), [({}, 5 + 3), ({"itm": 0}, 5), ({"mlm": 0}, 5)])
def test_each_distinct_image_enters_once(options: dict[str, float], encoded: int) -> None:
    meter = tiny_meter(Random())
    task = built(Pretraining(**options), meter).train()
    seen = []
    meter.image.vit.patch_embed.register_forward_hook(
        lambda m, args, out: seen.append(len(args[0]))
    )
    task.loss(meter, batch_for(task.spec, count=5))
    assert seen == [encoded]


def test_training_keeps_half_of_the_true_images_drawn_anew() -> None:
    task = built(Pretraining(), tiny_meter()).train()
    batch = batch_for(task.spec, count=7)
    draws = set()
    for _ in range(20):
        keep, swap = task._halves(batch)
        assert (len(keep), len(swap)) == (3, 4)
        assert sorted([*keep.tolist(), *swap.tolist()]) == list(range(7))
        draws.add(tuple(sorted(keep.tolist())))
    assert len(draws) > 5


def test_evaluation_keeps_the_same_examples_in_any_batch() -> None:
    task = built(Pretraining(), tiny_meter())
    batch = take(batch_for(task.spec), [5, 0, 3, 2])
    keep, swap = task._halves(batch)
    assert batch.example[keep].tolist() == [0, 2]
    assert batch.example[swap].tolist() == [5, 3]


def test_seeds_follow_the_pixels_in_evaluation_and_the_step_in_training() -> None:
    meter = tiny_meter(Random())
    images = batch_for(Pretraining().spec).negative_images[:, 0]
    seeds = encode_shared(meter, images, training=False).seeds
    assert len(set(seeds.tolist())) == len(images)
    torch.testing.assert_close(encode_shared(meter, images.flip(0), False).seeds, seeds.flip(0))
    changed = images.clone()
    changed[0, 1, 2, 3] += 1
    assert encode_shared(meter, changed, False).seeds[0] != seeds[0]
    first, second = (encode_shared(meter, images, training=True).seeds for _ in range(2))
    assert (first != second).all()


@torch.no_grad()
def test_scores_by_hand() -> None:
    meter = tiny_meter()
    task = built(Pretraining(), meter)
    batch = batch_for(task.spec)
    evaluator = task.evaluator()
    evaluator.update(meter, batch)
    scores, chance = evaluator.compute(meter), evaluator.chance(meter)
    text = meter.encode_text(batch.masked)
    image = meter.encode_image(batch.images[:, 0])
    words = task.mlm(meter.fuse(text, image, "text").text)
    there = batch.masked_labels != -100
    right = words.argmax(-1)[there] == batch.masked_labels[there]
    loss = F.cross_entropy(words[there], batch.masked_labels[there]).item()
    assert scores["mlm_accuracy"] == pytest.approx(right.double().mean().item())
    assert scores["mlm_loss"] == pytest.approx(loss, rel=1e-5)
    assert scores["mlm_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert chance["itm_accuracy"] == 0.5
    most = batch.masked_labels[there].bincount().max().item()
    assert chance["mlm_accuracy"] == pytest.approx(most / there.sum().item())


def test_a_batch_without_masked_words_has_a_loss() -> None:
    meter = tiny_meter()
    task = built(Pretraining(itm=0), meter)
    batch = batch_for(task.spec)
    batch = replace(batch, masked_labels=torch.full_like(batch.masked_labels, -100))
    loss = task.loss(meter, batch)
    loss.total.backward()
    assert loss.total == 0


def test_weights_scale_the_losses() -> None:
    meter = tiny_meter()
    task = built(Pretraining(mlm=0.5, itm=2.0), meter)
    loss = task.loss(meter, batch_for(task.spec))
    torch.testing.assert_close(
        loss.total.detach(), 0.5 * loss.parts["mlm"] + 2.0 * loss.parts["itm"]
    )


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("weights", [(0, 0), (-1, 1), (1, -1), (NAN, 1), (1, NAN), (INF, 1)])
def test_weights_out_of_range_are_refused(weights: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        Pretraining(*weights)


def test_a_pass_that_is_off_asks_for_no_data() -> None:
    assert Pretraining(itm=0).spec.negative_images == 0
    assert Pretraining(itm=0).main_metric == "mlm_accuracy"
    assert not Pretraining(mlm=0).spec.masked


@torch.no_grad()
def test_without_matching_the_forward_pass_gives_words_and_there_is_nothing_to_predict() -> None:
    meter = tiny_meter(ELIP())
    task = built(Pretraining(itm=0), meter)
    batch = batch_for(task.spec)
    assert task.infer(meter, batch).shape == (6, LENGTH, VOCAB)
    with pytest.raises(ValueError, match="itm above 0"):
        task.predict(meter, batch)
