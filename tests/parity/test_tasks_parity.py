"""Our tasks against the official code's recorded losses, logits, scores and metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from elip.data.batch import Batch, TextBatch
from elip.model.interface import Fused
from elip.model.meter import Meter
from elip.tasks.base import Task
from elip.tasks.entailment import SNLIVE
from elip.tasks.nlvr2 import NLVR2
from elip.tasks.pretrain import Pretraining
from elip.tasks.ranking import recalls
from elip.tasks.retrieval import Retrieval
from elip.tasks.scores import Sums
from elip.tasks.vqa import VQA
from elip.weights import load_weights
from tests.parity.meter_cases import (
    Case,
    Whole,
    assert_close,
    build_meter,
    load_case,
    load_case_weights,
    official_gradients,
)

FEATURES, LOSS, VQA_LOSS = 2e-5, 1e-5, 1e-4
# Official parts that are never used, or belong to other heads.
UNUSED = (
    "vit_model.positional_embedding", "vit_model.ln_final.", "text_transformer.pooler.",
    "text_transformer.embeddings.position_ids", "task.itm.",
)  # fmt: skip


def whole_of(case: Case, task: Task, scratch: Path, num_answers: int = 0) -> Whole:
    """The case's model with a task of ours, its weights loaded and all accounted for."""
    meter = build_meter(case, scratch)
    task.build(meter, num_answers)
    whole = Whole(meter, task)
    report = load_case_weights(case, whole, scratch)
    assert not report.missing
    assert all(name.startswith(UNUSED) for name in report.unused), report.unused
    return whole


def batch_of(case: Case, images: Tensor, target: Tensor | None = None) -> Batch:
    count = len(images)
    return Batch(
        images=images,
        text=case.text(),
        strings=("",) * count,
        example=torch.arange(count),
        image_id=torch.arange(count),
        target=target,
    )


def score_of(task: Task, meter: Meter, batch: Batch) -> float:
    evaluator = task.evaluator()
    evaluator.update(meter, batch)
    return evaluator.compute(meter)[task.main_metric]


@pytest.mark.parametrize("name", ["c5_grad_elip", "c5b_grad_meter_noprune"])
def test_pretraining_losses_and_gradients(golden: Path, tmp_path: Path, name: str) -> None:
    case = load_case(golden, name)
    whole = whole_of(case, Pretraining(), tmp_path)
    # In evaluation examples with an even number keep their true image.
    matches = torch.tensor(case.about["itm_labels"])
    plain = batch_of(case, case.tensors["in.image"][:, None])
    batch = Batch(
        **{
            **vars(plain),
            "example": 2 * torch.arange(len(plain)) + 1 - matches,
            "negative_images": case.tensors["in.false_image_0"][:, None],
            "masked": case.text("_mlm"),
            "masked_labels": case.tensors["in.text_labels_mlm"],
        }
    )
    loss = whole.task.loss(whole.meter, batch)
    assert_close(loss.parts["mlm"], case.tensors["out.mlm_loss"], LOSS)
    assert_close(loss.parts["itm"], case.tensors["out.itm_loss"], LOSS)
    assert_close(loss.total.detach(), case.tensors["out.total"], LOSS)
    loss.total.backward()
    gradients = {key: parameter.grad for key, parameter in whole.named_parameters()}
    wanted = official_gradients(case)
    assert len(wanted) == 10
    for key, want in wanted.items():
        # The official table has two token types; the importer adds the third.
        rows = 2 if key == "meter.token_types.weight" else len(want)
        assert_close(gradients[key][:rows], want[:rows], 1e-4 * want.abs().max().item())


@pytest.mark.parametrize("name", ["c6_nlvr2_meter", "c6b_nlvr2_elip"])
@torch.no_grad()
def test_nlvr2(golden: Path, tmp_path: Path, name: str) -> None:
    case = load_case(golden, name)
    whole = whole_of(case, NLVR2(), tmp_path)
    tensors = case.tensors
    images = torch.stack([tensors["in.image_0"], tensors["in.image_1"]], dim=1)
    batch = batch_of(case, images, tensors["out.nlvr2_labels"])
    assert_close(whole.task.logits(whole.meter, batch)[0], tensors["out.nlvr2_logits"], FEATURES)
    assert_close(whole.task.loss(whole.meter, batch).total, tensors["out.nlvr2_loss"], LOSS)
    right = tensors["out.nlvr2_logits"].argmax(1) == tensors["out.nlvr2_labels"]
    assert score_of(whole.task, whole.meter, batch) == right.double().mean()


@pytest.mark.parametrize("name", ["c7_irtr_meter", "c7b_irtr_elip"])
@torch.no_grad()
def test_retrieval(golden: Path, tmp_path: Path, name: str) -> None:
    case = load_case(golden, name)
    count = sum(key.startswith("in.false_text_") and key.endswith("_ids") for key in case.tensors)
    whole = whole_of(case, Retrieval(negative_texts=count), tmp_path)
    ids, masks = (
        torch.stack([case.tensors[f"in.false_text_{i}_{part}"] for i in range(count)], dim=1)
        for part in ("ids", "masks")
    )
    plain = batch_of(case, case.tensors["in.image"][:, None])
    batch = Batch(**{**vars(plain), "negative_text": TextBatch(ids, masks.bool())})
    assert_close(whole.task.loss(whole.meter, batch).total, case.tensors["out.irtr_loss"], LOSS)
    official = case.tensors["out.scores"]
    own = [row["score"] for row in whole.task.predict(whole.meter, batch)]
    assert_close(torch.tensor(own), official[:, 0], FEATURES)
    evaluator = whole.task.evaluator()
    for text in range(count):
        false = TextBatch(ids[:, text], masks[:, text].bool())
        names = {"text": false, "example": torch.arange(3) + 100 * text}
        evaluator.gallery.add(whole.meter, Batch(**{**vars(plain), **names}))
    scores = evaluator.gallery.scores(whole.meter, whole.task.score, 4)
    # Columns are in order of image and then example, so image i's texts are its own false texts.
    for image in range(3):
        columns = slice(image * count, (image + 1) * count)
        assert_close(scores[image, columns], official[image, 1:], FEATURES)


def test_the_rank_head_starts_from_the_matching_head(golden: Path, tmp_path: Path) -> None:
    case = load_case(golden, "c7_irtr_meter")
    assert case.about["init_rule"]["rank_weight_is_itm_row1"]
    official = case.weights()
    state = {k: v.contiguous() for k, v in official.items() if not k.startswith("rank_output")}
    save_file(state, tmp_path / "pretrained.safetensors")
    meter, task = build_meter(case, tmp_path), Retrieval()
    task.build(meter, 0)
    report = load_weights(Whole(meter, task), str(tmp_path / "pretrained.safetensors"))
    assert not report.missing
    assert torch.equal(task.rank.weight, official["itm_score.fc.weight"][1:].float())
    assert torch.equal(task.rank.bias, official["itm_score.fc.bias"][1:].float())


def test_recalls(golden: Path) -> None:
    case = load_case(golden, "c7r_irtr_recall")
    for recorded in case.about["cases"]:
        name = recorded["name"]
        scores = case.tensors[f"scores.{name}"]
        found = recalls(scores, case.tensors[f"text_to_image.{name}"])
        # Several official processes count repeated rows twice; one process does not.
        official = recorded.get("official_one_process", recorded["official"])
        for metric, value in official.items():
            if recorded["ties"]:
                bounds = recorded["tie_bounds"]
                assert bounds[f"{metric}_worst"] - 1e-6 <= found[metric]
                assert found[metric] <= bounds[f"{metric}_best"] + 1e-6
            else:
                assert found[metric] == pytest.approx(value, abs=1e-6), (name, metric)


@pytest.mark.parametrize("name", ["c8_vqa_meter", "c8b_vqa_elip"])
@torch.no_grad()
def test_vqa(golden: Path, tmp_path: Path, name: str) -> None:
    case = load_case(golden, name)
    targets = case.tensors["out.vqa_targets"]
    whole = whole_of(case, VQA(), tmp_path, num_answers=targets.shape[1])
    batch = batch_of(case, case.tensors["in.image"][:, None], targets)
    logits = whole.task.logits(whole.meter, batch)[0]
    assert_close(logits, case.tensors["out.vqa_logits"], FEATURES)
    loss = whole.task.loss(whole.meter, batch).total
    assert_close(loss, case.tensors["out.vqa_loss"], VQA_LOSS)
    score = score_of(whole.task, whole.meter, batch)
    assert score == pytest.approx(case.about["vqa_score_metric"], abs=1e-6)


@torch.no_grad()
def test_snli_ve(golden: Path, tmp_path: Path) -> None:
    case = load_case(golden, "c8c_snli_meter")
    whole = whole_of(case, SNLIVE(), tmp_path)
    labels = case.tensors["out.snli_labels"]
    batch = batch_of(case, case.tensors["in.image"][:, None], labels)
    logits = whole.task.logits(whole.meter, batch)[0]
    assert_close(logits, case.tensors["out.snli_logits"], FEATURES)
    assert_close(whole.task.loss(whole.meter, batch).total, case.tensors["out.snli_loss"], LOSS)
    right = case.tensors["out.snli_logits"].argmax(1) == labels
    assert score_of(whole.task, whole.meter, batch) == right.double().mean()


class Given(VQA):
    """VQA whose logits are the recorded ones."""

    recorded: Tensor

    def logits(self, meter: Meter, batch: Batch) -> tuple[Tensor, list[Fused]]:
        return self.recorded, []


def test_vqa_score_and_loss_over_batches(golden: Path, tmp_path: Path) -> None:
    case = load_case(golden, "c8m_vqa_metric")
    meter = build_meter(load_case(golden, "c1_meter_roberta"), tmp_path)
    task = Given()
    task.build(meter, case.about["classes"])
    evaluator = task.evaluator()
    for number, recorded in enumerate(case.about["batches"]):
        task.recorded = case.tensors[f"logits{number}"]
        targets = case.tensors[f"targets{number}"]
        rows = torch.arange(len(targets))
        examples = rows + 1000 * number
        batch = Batch(
            rows, TextBatch(rows, rows), ("",) * len(rows), examples, examples, target=targets
        )
        assert task.loss(meter, batch).total.item() == pytest.approx(recorded["loss"], abs=1e-5)
        evaluator.update(meter, batch)
        score = evaluator.compute(meter)["vqa_score"]
        assert score == pytest.approx(recorded["running_score"], abs=1e-5)


def test_accuracy_at_masked_places(golden: Path, tmp_path: Path) -> None:
    case = load_case(golden, "c8m_vqa_metric")
    meter = build_meter(load_case(golden, "c1_meter_roberta"), tmp_path)
    logits, target = case.tensors["acc_logits"], case.tensors["acc_target"]
    places = Sums(2)
    for row in range(len(target)):
        hits = logits[row].argmax(-1) == target[row]
        places.update(torch.stack([hits, target[row] != -100], dim=-1))
    right, total = places.over_processes(meter).tolist()
    assert total == case.about["accuracy"]["total"]
    assert right / total == pytest.approx(case.about["accuracy"]["value"])
