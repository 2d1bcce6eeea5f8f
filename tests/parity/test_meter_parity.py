"""Our METER against the official code's recorded inputs and outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elip.model.meter import Meter
from elip.tasks.pretrain import MaskedLanguageHead
from elip.weights import from_meter
from reducers.contract import Reduced, Signals
from reducers.elip import ELIP
from tests.parity.meter_cases import (
    Case,
    Whole,
    assert_close,
    build_meter,
    load_case,
    load_case_weights,
    official_gradients,
)

FEATURES = 2e-5


class Heads(nn.Module):
    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.mlm = MaskedLanguageHead(meter.width, meter.vocab_size)
        self.itm = nn.Linear(2 * meter.width, 2)


def whole_of(case: Case, scratch: Path) -> Whole:
    meter = build_meter(case, scratch)
    whole = Whole(meter, Heads(meter))
    report = load_case_weights(case, whole, scratch)
    assert not report.missing
    dead = ("vit_model.positional_embedding", "vit_model.ln_final.", "text_transformer.pooler.",
            "text_transformer.embeddings.position_ids")  # fmt: skip
    others = tuple(f"task.{head}." for head in ("classifier", "rank"))
    for name in report.unused:
        assert name.removeprefix("meter.").startswith(dead) or name.startswith(others), name
    return whole


def losses(case: Case, whole: Whole) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    meter, heads = whole.meter, whole.task
    images, wrong = case.tensors["in.image"], case.tensors["in.false_image_0"]
    fused = meter(images, case.text("_mlm"), "text")
    mlm = heads.mlm(fused.text)
    mlm_loss = F.cross_entropy(
        mlm.flatten(0, 1), case.tensors["in.text_labels_mlm"].flatten(), ignore_index=-100
    )
    labels = torch.tensor(case.about.get("itm_labels") or case.about["itm"]["itm_labels"])
    mixed = torch.where(labels.bool()[:, None, None, None], images, wrong)
    itm = heads.itm(meter(mixed, case.text(), "pooled").pooled)
    return mlm, mlm_loss, itm, F.cross_entropy(itm, labels)


@pytest.mark.parametrize("name", ["c1_meter_roberta", "c2_elip_roberta", "c4_meter_bert"])
def test_forward(golden: Path, tmp_path: Path, name: str) -> None:
    case = load_case(golden, name)
    whole = whole_of(case, tmp_path)
    images, out = case.tensors["in.image"], case.tensors
    with torch.no_grad():
        for key, text in (("nomask", case.text()), ("mlm", case.text("_mlm"))):
            encoded = whole.meter.encode_text(text)
            image = whole.meter.encode_image(images, encoded)
            assert [1 + count for count in image.tokens_per_block] == case.about["token_counts"][
                "main_path"
            ]
            if key == "nomask":
                assert_close(encoded.tokens, out["inter.nomask.text_encoder_out"], FEATURES)
                assert_close(image.tokens, out["inter.nomask.vit_out"], FEATURES)
            fused = whole.meter.fuse(encoded, image, "all")
            assert_close(fused.text, out[f"out.{key}.text_feats"], FEATURES)
            assert_close(fused.image, out[f"out.{key}.image_feats"], FEATURES)
            assert_close(fused.pooled, out[f"out.{key}.cls_feats"], FEATURES)
        mlm, mlm_loss, itm, itm_loss = losses(case, whole)
    assert_close(mlm, out["out.mlm_logits"], FEATURES)
    assert_close(itm, out["out.itm_logits"], FEATURES)
    assert_close(mlm_loss, out["out.mlm_loss"], 1e-5)
    assert_close(itm_loss, out["out.itm_loss"], 1e-5)


class Watched(ELIP):
    """ELIP that remembers what it saw and did."""

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        probe = signals.probe
        scores: list[Tensor] = []

        def watch(cls: Tensor, tokens: Tensor, depth: int) -> Tensor:
            scores.append(probe(cls, tokens, depth))
            return scores[-1]

        watched = replace(signals, requested={**signals.requested, "probe": watch})
        reduced = super().forward(patches, num_keep, watched)
        self.seen.append((scores[0], reduced))
        return reduced


@pytest.mark.parametrize("which", ["nomask", "mlm"])
def test_elip_stages(golden: Path, tmp_path: Path, which: str) -> None:
    case = load_case(golden, "c2_elip_roberta")
    whole = whole_of(case, tmp_path)
    watched = Watched(probe_depth=whole.meter.image.reducer.depths)
    watched.depths = whole.meter.image.reducer.depths
    watched.seen = []
    whole.meter.image.reducer = watched
    with torch.no_grad():
        encoded = whole.meter.encode_text(case.text("_mlm" if which == "mlm" else ""))
        whole.meter.encode_image(case.tensors["in.image"], encoded)
    assert len(watched.seen) == 3
    for stage, (scores, reduced) in enumerate(watched.seen):
        want = {
            key.rsplit(".", 1)[1]: value
            for key, value in case.tensors.items()
            if key.startswith(f"prune.{which}.stage{stage}.")
        }
        assert_close(scores, want["attn_cls"], 2e-6)
        count = reduced.tokens.shape[1]
        # Official indices count CLS as 0.
        kept = (reduced.assignment < count - 1).nonzero()[:, 1].view(len(scores), -1) + 1
        assert torch.equal(kept, want["keep_ind"][:, 1:])
        weights = torch.zeros_like(scores).scatter(1, want["pruned_ind"] - 1, want["merge_weight"])
        rest = scores * (reduced.assignment == count - 1)
        assert_close(rest / (rest.sum(1, keepdim=True) + 1e-6), weights, 5e-6)
        assert_close(reduced.tokens[:, -1:], want["merged"], 2e-5)
        if "x_after" in want:
            assert_close(reduced.tokens, want["x_after"][:, 1:], 2e-5)


@pytest.mark.parametrize("read", ["pooled", "text"])
@pytest.mark.parametrize("name", ["c1_meter_roberta", "c2_elip_roberta"])
def test_rows_not_read_are_only_left_out(
    golden: Path, tmp_path: Path, name: str, read: str
) -> None:
    """Skipping what no head reads changes nothing that a head reads."""
    case = load_case(golden, name)
    meter = whole_of(case, tmp_path).meter
    with torch.no_grad():
        everything = meter(case.tensors["in.image"], case.text(), "all")
        part = meter(case.tensors["in.image"], case.text(), read)
    if read == "pooled":
        assert part.text.shape[1] == part.image.shape[1] == 1
        assert_close(part.pooled, everything.pooled, 2e-6)
    else:
        assert part.image is None
        assert_close(part.text, everything.text, 2e-6)


def test_resized_positions(golden: Path, tmp_path: Path) -> None:
    case = load_case(golden, "c3_posinterp_64_to_96")
    meter = build_meter(case, tmp_path)
    whole = Whole(meter, nn.Module())
    report = load_case_weights(case, whole, tmp_path)
    assert report.resized == ("meter.image.vit.pos_embed",)
    assert_close(
        meter.image.vit.pos_embed[0].detach(), case.tensors["out.positional_embedding"], 2e-6
    )
    with torch.no_grad():
        fused = meter(case.tensors["in.image"], case.text(), "all")
    assert_close(fused.text, case.tensors["out.text_feats"], FEATURES)
    assert_close(fused.image, case.tensors["out.image_feats"], FEATURES)
    assert_close(fused.pooled, case.tensors["out.cls_feats"], FEATURES)


@pytest.mark.parametrize("name", ["c5_grad_elip", "c5b_grad_meter_noprune"])
def test_gradients(golden: Path, tmp_path: Path, name: str) -> None:
    case = load_case(golden, name)
    whole = whole_of(case, tmp_path)
    _, mlm_loss, _, itm_loss = losses(case, whole)
    total = mlm_loss + itm_loss
    total.backward()
    assert_close(total.detach(), case.tensors["out.total"], 1e-5)
    ours = dict(whole.named_parameters())
    compared = 0
    for official, want in official_gradients(case).items():
        got = ours[official].grad[: len(want)]
        if official == "meter.token_types.weight":
            assert not ours[official].grad[2].any()
            got, want = got[:2], want[:2]
        atol = 1e-4 * want.abs().max().item()
        assert_close(got, want, atol)
        compared += 1
    assert compared >= 10
    assert_norms(case, ours)


def assert_norms(case: Case, ours: dict[str, nn.Parameter]) -> None:
    """Hold the gradient norm of every official parameter against its place in ours.

    Each official tensor is filled with its number and renamed; where the number lands is its place.
    """
    names = list(case.about["grad_norms"])
    weights = case.weights()
    places, _ = from_meter(
        {n: torch.full_like(weights[n], i, dtype=torch.float32) for i, n in enumerate(names)}
    )
    got = dict.fromkeys(names, 0.0)
    for name, place in places.items():
        grad = ours[name].grad if name in ours else None
        for number in place.unique().tolist():
            where = place == number
            if grad is not None:
                got[names[int(number)]] = grad[where].norm().item()
    for name, want in case.about["grad_norms"].items():
        if want is not None:
            close = pytest.approx(want, rel=5e-4) if want > 1e-5 else pytest.approx(want, abs=1e-6)
            assert got[name] == close, name
