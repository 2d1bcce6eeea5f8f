"""The tasks that choose one answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from elip.tasks.classification import Classification
from elip.tasks.entailment import SNLIVE
from elip.tasks.nlvr2 import NLVR2
from elip.tasks.statement import Statement
from elip.tasks.vqa import VQA
from reducers import shelf
from tests.tasks.tiny import ANSWERS, batch_for, built, tiny_meter


@torch.no_grad()
def test_vqa_loss_and_score_by_hand() -> None:
    meter = tiny_meter()
    task = built(VQA(), meter)
    batch = batch_for(task.spec)
    pooled = meter(batch.images[:, 0], batch.text).pooled
    logits = task.classifier(pooled)
    loss = F.binary_cross_entropy_with_logits(logits, batch.target) * ANSWERS
    torch.testing.assert_close(task.loss(meter, batch).total, loss)
    evaluator = task.evaluator()
    evaluator.update(meter, batch)
    chosen = [batch.target[row, answer] for row, answer in enumerate(logits.argmax(1))]
    assert evaluator.compute(meter)["vqa_score"] == pytest.approx(float(sum(chosen)) / len(chosen))
    best = batch.target.double().mean(dim=0).max().item()
    assert evaluator.chance(meter)["vqa_score"] == pytest.approx(best)


def test_vqa_without_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="has none"):
        VQA().build(tiny_meter(), 0)


@torch.no_grad()
def test_vqa_submission_names_each_question_once() -> None:
    meter = tiny_meter()
    task = built(VQA(), meter)
    answers = [f"answer {i}" for i in range(ANSWERS)]
    rows = task.predict(meter, batch_for(task.spec))
    entries = task.submission([*rows, rows[0]], answers)
    assert [entry["question_id"] for entry in entries] == list(range(1000, 1006))
    assert entries[2]["answer"] == answers[rows[2]["label"]]
    with pytest.raises(ValueError, match="question number"):
        task.submission([{**rows[0], "key": "q7"}], answers)
    with pytest.raises(ValueError, match="has 7 answers, but the data only 2"):
        task.submission(rows, answers[:2])
    assert built(Statement(), meter).submission(rows, answers) is None
    numbers = {entry["question_id"] for entry in entries}
    lost = max(numbers) + 1
    whole = task.submission([*rows, *rows], answers, asked={*numbers, lost})
    assert whole[:-1] == entries
    given = [entry["answer"] for entry in entries]
    assert whole[-1] == {"question_id": lost, "answer": max(given, key=given.count)}


@torch.no_grad()
def test_nlvr2_gives_each_image_its_own_token_type() -> None:
    meter = tiny_meter()
    task = built(NLVR2(), meter)
    batch = batch_for(task.spec)
    assert task.classifier[0].in_features == 4 * meter.width
    text = meter.encode_text(batch.text)
    pooled = [
        meter.fuse(text, meter.encode_image(batch.images[:, which]), "pooled", which + 1).pooled
        for which in (0, 1)
    ]
    logits = task.classifier(torch.cat(pooled, dim=-1))
    torch.testing.assert_close(task.logits(meter, batch)[0], logits)
    swapped = replace(batch, images=batch.images.flip(1))
    assert not torch.allclose(task.logits(meter, swapped)[0], logits)
    meter.token_types.weight[2] = 0
    assert not torch.allclose(task.logits(meter, batch)[0], logits)


def test_another_number_of_images_is_refused() -> None:
    meter = tiny_meter()
    task = built(Statement(), meter)
    with pytest.raises(ValueError, match="needs 1 image"):
        task.loss(meter, batch_for(NLVR2.spec))


@pytest.mark.parametrize("kind", [SNLIVE, Statement])
@torch.no_grad()
def test_accuracy_and_majority_by_hand(kind) -> None:
    meter = tiny_meter()
    task = built(kind(), meter)
    batch = batch_for(task.spec, count=9)
    evaluator = task.evaluator()
    evaluator.update(meter, batch)
    labels = [row["label"] for row in task.predict(meter, batch)]
    right = sum(a == b for a, b in zip(labels, batch.target.tolist(), strict=True))
    assert evaluator.compute(meter)["accuracy"] == pytest.approx(right / 9)
    majority = batch.target.bincount().max().item() / 9
    assert evaluator.chance(meter)["accuracy"] == pytest.approx(majority)


@torch.no_grad()
def test_a_split_without_truth_has_no_score_and_cannot_train() -> None:
    meter = tiny_meter()
    task = built(VQA(), meter)
    batch = replace(batch_for(task.spec), target=None)
    evaluator = task.evaluator()
    evaluator.update(meter, batch)
    assert task.predict(meter, batch)
    with pytest.raises(ValueError, match="no answers"):
        task.loss(meter, batch)


@torch.no_grad()
@pytest.mark.parametrize("task", [VQA(), NLVR2()], ids=["one", "two"])
@pytest.mark.parametrize("reducer", ["EViT", "ELIP"])
def test_questions_about_one_image_share_its_encoding(
    task: Classification, reducer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter, encoded = tiny_meter(shelf()[reducer]()), []
    task, batch = built(task, meter), batch_for(task.spec)
    apart = task.infer(meter, replace(batch, numbers=()))
    encode = meter.encode_prefix
    monkeypatch.setattr(meter, "encode_prefix", lambda *a: encoded.append(len(a[0])) or encode(*a))
    torch.testing.assert_close(task.infer(meter, batch), apart)
    assert encoded == [len(batch) // 2 * task.images]
    task.train().infer(meter, batch)
    assert encoded[1] == len(batch) * task.images
