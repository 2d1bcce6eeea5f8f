"""Compare each method with recorded outputs of its official code, through the contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elip.model.config import MeterConfig
from elip.model.image_encoder import ImageEncoder
from elip.model.interface import EncodedImage
from elip.model.signals import BlockSignals
from elip.model.timm_shim import build_vit
from elip.schedule import Schedule
from elip.weights import from_clip, resize_positions
from reducers import EncodedText, Host
from reducers.atc import ATC
from reducers.ats import ATS
from reducers.cdpruner import CDPruner
from reducers.diffrate import DiffRate
from reducers.divprune import DivPrune
from reducers.dpcknn import DPCKNN
from reducers.elip import ELIP
from reducers.evit import EViT
from reducers.kmedoids import KMedoids
from reducers.mctf import MCTF
from reducers.pitome import PiToMe
from reducers.pool import Pool
from reducers.pumer import PuMer
from reducers.radial import Radial
from reducers.tome import ToMe
from reducers.topk import TopK
from reducers.visionzip import VisionZip
from reducers.vispruner import VisPruner
from tests.parity.reducer_cases import (
    Case,
    case_ids,
    encode,
    encoder_of,
    heads,
    kept_indices,
    load_case,
    near,
    old_behind,
    ones,
    signals,
    start,
    with_cls,
)

Check = Callable[[Case], None]
_CHECKS: dict[str, Check] = {}

# Cases that the contract does not cover, and why.
_OUT_OF_SCOPE = {
    "evit/keep_rate_schedule": "a cosine schedule over training epochs; counts are the schedule's",
    "pool/adaptive_18_12": "windows of adaptive pooling overlap; a patch has one new token here",
    "pool/avg2_ceil_7x7": "cuts off windows at the border; ours are of similar size",
    "pool/avg2_floor_7x7": "drops the last row and column; ours pools all patches",
}
_NOT_CARRIED = {
    "crossget": "needs cross tokens learnt in training, in every block",
}


def check(method: str) -> Callable[[Check], Check]:
    def register(function: Check) -> Check:
        _CHECKS[method] = function
        return function

    return register


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        golden = Path(metafunc.config.getoption("--golden"))
        metafunc.parametrize("name", case_ids(golden))


def test_case(golden: Path, name: str) -> None:
    method = name.split("/")[0]
    if name in _OUT_OF_SCOPE:
        pytest.skip(_OUT_OF_SCOPE[name])
    if method in _NOT_CARRIED:
        pytest.skip(_NOT_CARRIED[method])
    _CHECKS[method](load_case(golden, name))


@check("topk")
@check("evit")
def _attention_methods(case: Case) -> None:
    fuse = case.params["fuse_token"]
    method = EViT if fuse else TopK
    depth = case.params["depth"]
    entering = [case.params["N"] - 1]
    for block in range(depth):
        before, after = case[f"out.b{block}.x_post_attn"], case[f"out.b{block}.x_reduced"]
        count = after.shape[1] - 1
        entering.append(count)
        if count == before.shape[1] - 1:
            continue
        patches = before[:, 1:]
        reduced = method()(
            patches, count, signals(patches, cls_attention=case[f"out.b{block}.cls_attn"])
        )
        case.same(kept_indices(reduced, count - fuse), f"out.b{block}.keep_idx")
        near(reduced.tokens, after[:, 1:])
    schedule = Schedule(layers=tuple(range(depth)), counts=tuple(entering[1:]))
    image = encode(encoder_of(case, method(), schedule), case["in.x"])
    for stage in image.stages:
        kept = case[f"out.b{stage.layer}.keep_idx"]
        case.same(old_behind(stage.assignment, kept.shape[1]), f"out.b{stage.layer}.keep_idx")
    case.close(image.tokens, f"out.b{depth - 1}.x_out")


@check("none")
def _no_reduction(case: Case) -> None:
    if "in.pos" in case:
        resized = resize_positions(case["in.pos"].unsqueeze(0), case.params["grid_after"] ** 2)
        case.close(resized[0], "out.pos")
        return
    params = case.params
    sizes = MeterConfig(
        image_size=params["res"], patch_size=params["patch"], image_width=params["D"],
        image_heads=params["heads"], image_blocks=params["blocks"],
    ).resolve()  # fmt: skip
    vit = build_vit(sizes)
    state, unknown = from_clip({f"visual.{name}": w for name, w in case.weights.items()})
    assert not unknown
    vit.load_state_dict(state)
    encoder = ImageEncoder(vit, BlockSignals(vit, nn.Identity(), nn.Identity()), 0)
    case.close(encoder(encoder.embed(case["in.image"], None)).tokens, "out.y")


@check("elip")
def _elip(case: Case) -> None:
    state = case.params["prune_state"]
    layers, depths = tuple(state["begin_layer"]), tuple(state["num_act_layers"])
    counts = tuple(count + 1 for count in state["num_keep_tokens"])
    reducer = ELIP(mix=case.params["lambda"], probe_depth=depths)
    if case.about["id"] in ("elip/keep_all", "elip/keep_more_than_present"):
        image = _elip_past_the_count(case, reducer, layers, counts)
    else:
        encoder = encoder_of(case, reducer, Schedule(layers=layers, counts=counts))
        image = encode(encoder, case["in.x"], case["in.text_cls"])
    assert len(image.stages) == len(layers)
    for number, stage in enumerate(image.stages):
        kept = old_behind(stage.assignment, case[f"out.s{number}.keep_idx"].shape[1] - 1) + 1
        case.same(F.pad(kept, (1, 0)), f"out.s{number}.keep_idx")
    case.close(image.tokens, "out.y")


def _elip_past_the_count(
    case: Case, reducer: ELIP, layers: tuple[int, ...], counts: tuple[int, ...]
) -> EncodedImage:
    """Reduce although all patches stay, as the official code does and our host never does.

    The fused token is then the sum of nothing: one more token, of zeros.
    """
    encoder = encoder_of(case, None, Schedule())
    text = EncodedText(case["in.text_cls"].unsqueeze(1), torch.ones(len(case["in.x"]), 1).bool())
    reducer.configure(Host(encoder.width, 1, encoder.num_blocks, layers, encoder.width))
    image = start(case["in.x"])
    for number, (layer, count) in enumerate(zip(layers, counts, strict=True)):
        image = encoder(image, end=layer)
        cls, patches = image.tokens[:, :1], image.tokens[:, 1:]

        def probe(cls: Tensor, patches: Tensor, depth: int, layer: int = layer) -> Tensor:
            return encoder.probe(cls, patches, None, layer, depth)

        known = signals(patches, cls=cls, stage=number, layer=layer, text=text, probe=probe)
        reduced = reducer(patches, min(count, patches.shape[1] + 1), known)
        image = image.reduce(layer, cls, reduced)
    return encoder(image)


@check("tome")
def _tome(case: Case) -> None:
    if "table" in case.about:
        _tome_counts(case)
    elif case.about["kind"] == "block":
        _tome_blocks(case)
    else:
        _merging_steps(case, lambda step: _tome_of(case))


def _tome_of(case: Case) -> ToMe:
    return ToMe(sources="odd" if case.params["class_token"] else "even")


def _tome_counts(case: Case) -> None:
    """The plan reproduces ToMe's r of each layer, given as counts."""
    for entry in case.about["table"].values():
        left, counts = 576, []
        for removed in entry["schedule"]:
            left -= min(removed, left // 2)
            counts.append(left)
        schedule = Schedule(layers=tuple(range(entry["layers"])), counts=tuple(counts))
        plan = schedule.plan(576, entry["layers"], "after_attention")
        assert plan.tokens_per_block == (576, *counts)


def _tome_blocks(case: Case) -> None:
    depth = case.params["depth"]
    counts = tuple(case[f"out.b{block}.x_reduced"].shape[1] - 1 for block in range(depth))
    schedule = Schedule(layers=tuple(range(depth)), counts=counts)
    reducer = ToMe(proportional=case.params["prop_attn"])
    image = encode(encoder_of(case, reducer, schedule), case["in.x"])
    case.same(with_cls(image.patch_to_token), f"out.b{depth - 1}.assign")
    case.close(F.pad(image.sizes, (1, 0), value=1).unsqueeze(-1), f"out.b{depth - 1}.size")
    case.close(image.tokens, f"out.b{depth - 1}.x_out")
    for block in range(depth):
        patches = case[f"out.b{block}.x_post_attn"][:, 1:]
        if counts[block] == patches.shape[1]:
            continue
        before = case[f"out.b{block - 1}.size"][:, 1:, 0] if block else ones(patches)
        known = signals(patches, keys=heads(case[f"out.b{block}.metric"][:, 1:]), sizes=before)
        reduced = ToMe()(patches, counts[block], known)
        near(reduced.tokens, case[f"out.b{block}.x_reduced"][:, 1:])


def _merging_steps(case: Case, method: Callable[[int], Any]) -> None:
    """Compare a merging method step by step, with sizes; CLS, if any, stays first."""
    first = int(case.params["class_token"])
    patches = case["in.x"][:, first:]
    sizes, origin = ones(patches), torch.arange(patches.shape[1]).expand(len(patches), -1)
    step = 0
    while f"out.x{step}" in case:
        count = case[f"out.x{step}"].shape[1] - first
        if count < patches.shape[1]:
            known = signals(patches, keys=heads(case[f"in.metric{step}"][:, first:]), sizes=sizes)
            reduced = method(step)(patches, count, known)
            patches = reduced.tokens
            sizes = torch.zeros(len(sizes), count).scatter_add(1, reduced.assignment, sizes)
            origin = reduced.assignment.gather(1, origin)
        order = torch.arange(count).expand(len(patches), -1)
        if case.about["id"] == "tome/nocls_odd_r9":
            # Without CLS the official code orders the unmerged tokens by similarity.
            order = torch.zeros_like(order).scatter(1, origin, case[f"out.assign{step}"])
        moved = order.gather(1, origin)
        case.same(with_cls(moved) if first else moved, f"out.assign{step}")
        after = case[f"out.x{step}"][:, first:].gather(1, order.unsqueeze(-1).expand_as(patches))
        near(patches, after)
        after = case[f"out.size{step}"][:, first:, 0].gather(1, order)
        torch.testing.assert_close(sizes, after, atol=0, rtol=0)
        step += 1
    assert step


@check("pitome")
def _pitome(case: Case) -> None:
    params = case.params
    _merging_steps(
        case,
        lambda step: PiToMe(
            margin=params["margins"][step],
            alpha=params["alpha"],
            split_all=params["use_bsm_pitome"],
        ),
    )


@check("diffrate")
def _diffrate(case: Case) -> None:
    origin = torch.arange(case.params["N"] - 1).expand(case.params["B"], -1)
    for block in range(case.params["depth"]):
        patches = case[f"out.b{block}.x_post_attn"][:, 1:]
        attention = case[f"out.b{block}.cls_attn"]
        after = case[f"out.b{block}.x_reduced"][:, 1:]
        pruned = patches.shape[1] - (case.params["prune_kept_incl_cls"][block] - 1)
        removed = patches.shape[1] - after.shape[1]
        if removed:
            reducer = DiffRate(merged=(removed - pruned) / removed, weighted=False)
            known = signals(patches, cls_attention=attention, sizes=ones(patches))
            reduced = reducer(patches, after.shape[1], known)
            tokens, went = reduced.tokens, reduced.assignment
        else:  # the official code sorts all the same
            order = attention.argsort(dim=1, descending=True, stable=True)
            tokens = patches.gather(1, order.unsqueeze(-1).expand_as(patches))
            went = order.argsort(dim=1)
        near(tokens, after)
        origin = torch.where(origin >= 0, went.gather(1, origin.clamp(min=0)), origin)
        case.same(with_cls(origin), f"out.b{block}.assign")


class _Recorded(nn.Module):
    """Replace the learnt layer: return the log of the recorded weights."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, patches: Tensor) -> Tensor:
        return self.weight.log()


@check("dpcknn")
def _dpcknn(case: Case) -> None:
    patches, clusters = case["in.x"], case.params["clusters"]
    reducer = DPCKNN(k=case.params["k"], weighted=case.params["weighted"])
    if case.params["weighted"]:
        reducer.score = _Recorded(case["in.weight"])
    reduced = reducer(patches, clusters, signals(patches))
    case.same(reduced.assignment, "out.assign")
    own = torch.arange(clusters).expand(len(patches), -1)
    assert torch.equal(reduced.assignment.gather(1, case["out.centers"]), own)
    near(reduced.tokens, case["out.x"])


@check("kmedoids")
def _kmedoids(case: Case) -> None:
    patches, params = case["in.x"], case.params
    weighted = not params["equal_weight"]
    reducer = KMedoids(
        rounds=params["iters"],
        weighted=weighted,
        first=0 if weighted else int(case["in.init_idx"]),
        official=True,
    )
    received = case["in.weight"].squeeze(-1) if weighted else None
    reduced = reducer(patches, params["clusters"], signals(patches, attention_received=received))
    case.same(reduced.assignment, "out.assign")
    assert torch.equal(
        reduced.tokens,
        patches.gather(1, case["out.centers"].unsqueeze(-1).expand_as(case["out.x"])),
    )
    near(reduced.tokens, case["out.x"])


@check("divprune")
def _divprune(case: Case) -> None:
    patches, count = case["in.x"], case.params["K"]
    reduced = DivPrune()(patches, count, signals(patches))
    case.same(kept_indices(reduced, count), "out.keep_idx")


@check("cdpruner")
def _cdpruner(case: Case) -> None:
    patches = case["in.features"]
    text = case["in.text_embeds"].expand(len(patches), -1, -1)
    known = signals(patches, joint_embeddings=(case["in.image_embeds"], text))
    reduced = CDPruner(negate=True, over_batch=True)(patches, case.params["T"], known)
    case.same(kept_indices(reduced, case.params["T"]), "out.keep_idx")
    if len(patches) == 1:  # then the batch is the image, and the default scaling is the official
        reduced = CDPruner(negate=True)(patches, case.params["T"], known)
        case.same(kept_indices(reduced, case.params["T"]), "out.keep_idx")


@check("vispruner")
def _vispruner(case: Case) -> None:
    patches, count = case["in.features"], case.params["T"]
    attention = case["in.cls_attn_heads"].mean(dim=1)
    reducer = VisPruner(important=case.params["important_ratio"])
    reduced = reducer(patches, count, signals(patches, cls_attention=attention))
    case.same(kept_indices(reduced, count), "out.keep_idx")


@check("visionzip")
def _visionzip(case: Case) -> None:
    patches, params = case["in.x"][:, 1:], case.params
    dominant, count = params["dominant"], params["dominant"] + params["contextual"]
    known = signals(
        patches,
        cls_attention=case["in.attn"][:, :, 0, 1:].mean(dim=1),
        keys=heads(case["in.metric"][:, 1:]),
    )
    reducer = VisionZip(contextual=params["contextual"] / count, official=True)
    reduced = reducer(patches, count, known)
    official = case["out.all_indices"][:, 1:].sort(dim=1).values - 1
    assert torch.equal(kept_indices(reduced, dominant), official)
    near(reduced.tokens, case["out.y"][:, 1:])


@check("radial")
def _radial(case: Case) -> None:
    side = case.params["grid"]
    index = torch.arange(side * side)
    places = torch.stack([index // side, index % side], dim=1).float().unsqueeze(0)
    patches = torch.zeros(1, side * side, 1)
    norm = case.params["pattern"]
    offset = (places[0] - (side - 1) / 2).abs()
    far = torch.linalg.vector_norm(offset, ord={"l1": 1, "l2": 2, "linf": torch.inf}[norm], dim=1)
    for block in case.params["blocks"]:
        mask = case[f"out.mask_block{block}"]
        known = signals(patches, positions=places, grid=(side, side))
        kept = Radial(norm=norm)(patches, int(mask.sum()), known).assignment[0] >= 0
        # Rounding of the official grid can cut through a ring of equally distant patches, as it
        # does once; which of those are kept is then a matter of ties.
        tied = (far - far[mask].max()).abs() < 1e-4
        assert mask[tied].all() or case.about["id"] == "radial/l1_14"
        assert torch.equal(kept[~tied], mask[~tied])
        assert int(kept.sum()) == int(mask.sum())


@check("pool")
def _pool(case: Case) -> None:
    rows, columns = case.params["grid"]
    index = torch.arange(rows * columns)
    places = torch.stack([index // columns, index % columns], dim=1).float()
    patches, after = case["in.x"][:, 1:], case["out.y"][:, 1:]
    known = signals(
        patches,
        positions=places.expand(len(patches), -1, -1),
        sizes=ones(patches),
        grid=(rows, columns),
    )
    reduced = Pool()(patches, after.shape[1], known)
    # Ours come along the curve; the recorded ones row by row: by their first patch.
    order = torch.stack(
        [(reduced.assignment == new).int().argmax(dim=1) for new in range(after.shape[1])], dim=1
    ).argsort(dim=1)
    ours = reduced.tokens.gather(1, order.unsqueeze(-1).expand_as(after))
    near(ours, after)


@check("ats")
def _ats(case: Case) -> None:
    if case.about["kind"] == "block":
        _ats_official(case)
        return
    attention, values = case["in.attn"][:, :, 0, 1:], case["in.v"][:, :, 1:]
    patches = torch.randn(len(values), values.shape[2], 4, generator=torch.manual_seed(0))
    points, width = case.params["K"], case["out.ids"].shape[1] - 1
    known = signals(patches, head_attention=attention, values=values, mask=case["in.mask"][:, 1:])
    reduced = ATS(points=points, rule="haurum")(patches, width, known)
    assert reduced.mask is not None
    assert torch.equal(reduced.mask, case["out.mask"][:, 1:])
    kept = kept_indices(reduced, width)
    official = torch.where(reduced.mask, case["out.ids"][:, 1:] - 1, -1)
    assert torch.equal(kept, official)


def _ats_official(case: Case) -> None:
    depth = len(case.params["n_tokens_per_block"])
    counts = tuple(case[f"out.b{block}.policy"].shape[1] - 1 for block in range(depth))
    if not case.params["drop_tokens"]:  # as wide as the input, with padding
        counts = (int(case["out.b0.count"].max()) - 1,)
    reducer = ATS(points=case.params["n_ref_tokens"] - 1, rule="official")
    schedule = Schedule(layers=tuple(range(depth)), counts=counts)
    image = encode(encoder_of(case, reducer, schedule), case["in.x"])
    assert image.mask is not None
    last = f"out.b{depth - 1}"
    policy = case[f"{last}.policy"][:, : counts[-1] + 1, 0].bool()
    assert torch.equal(image.mask, policy)
    official = case[f"{last}.x"][:, : counts[-1] + 1]
    torch.testing.assert_close(image.tokens * policy.unsqueeze(-1), official, atol=1e-4, rtol=1e-4)


@check("pumer")
def _pumer(case: Case) -> None:
    params, image = case.params, case["in.image"]
    mask = case["in.text_mask"].bool()
    for layer in range(params["layers"]):
        name, kept = f"out.l{layer}", case[f"out.l{layer}.keep_idx"]
        count, left = image.shape[1], kept.shape[1]
        num_keep = case[f"{name}.image"].shape[1]
        if params["prune_r"] == 0:  # then the official code reduces nothing, nor does our host
            assert num_keep == count
            assert case[f"{name}.text"].shape == case["in.text"].shape
            return
        if params["merge_r"] == 0:  # then it prunes and throws the result away; ours prunes
            num_keep = left
        reducer = PuMer(
            prune=(count - left) / (count - num_keep),
            merge_text=params["merge_text"],
            official=True,
        )
        known = signals(
            image,
            cross_attention=case[f"{name}.t2i_attn"].mean(dim=1),
            keys=heads(case[f"{name}.img_metric"]),
            sizes=ones(image),
            text=EncodedText(case[f"{name}.text_pre"], mask),
        )
        reduced = reducer(image, num_keep, known)
        gone = torch.ones(len(image), count, dtype=torch.bool).scatter(1, kept, False)
        assert torch.equal(reduced.assignment < 0, gone)
        if params["merge_r"] == 0:
            case.same(kept_indices(reduced, num_keep), f"{name}.keep_idx")
            return
        near(reduced.tokens, case[f"{name}.image"])
        text = case[f"{name}.text_pre"]
        merged = reducer.reduce_text(text, heads(case[f"{name}.txt_metric"]), mask)
        if merged is not None:
            text = merged.tokens
        case.close(_feed_forward(case, f"w.layers.{layer}", text), f"{name}.text")
        image, mask = case[f"{name}.image"], case[f"{name}.text_mask"] > 0


def _feed_forward(case: Case, layer: str, text: Tensor) -> Tensor:
    def linear(name: str, tokens: Tensor) -> Tensor:
        return F.linear(tokens, case[f"{layer}.{name}.weight"], case[f"{layer}.{name}.bias"])

    hidden = linear("output.dense", F.gelu(linear("intermediate.dense", text)))
    norm = (case[f"{layer}.output.LayerNorm.{part}"] for part in ("weight", "bias"))
    return F.layer_norm(hidden + text, text.shape[-1:], *norm, eps=case.params["ln_eps"])


@check("mctf")
def _mctf(case: Case) -> None:
    params, patches = case.params, case["in.x"][:, 1:]
    sizes = case["in.size"][:, 1:, 0] if "in.size" in case else ones(patches)
    reducer = MCTF(
        params["tau_sim"],
        params["tau_info"],
        params["tau_size"],
        both_ways=bool(params["bidirection"]),
        by_attention=bool(params["pooling_type"]),
    )
    count = case["out.x"].shape[1] - 1
    known = signals(
        patches, attention_received=case["in.attn"].mean(dim=(1, 2))[:, 1:], sizes=sizes
    )
    reduced = reducer(patches, count, known)
    # Ours come in the order of their leaders: compare what each old token became.
    ours, official = reduced.assignment, case["out.assign"][:, 1:]
    renamed = torch.zeros(len(ours), count, dtype=torch.int64).scatter(1, ours, official)
    assert torch.equal(renamed.gather(1, ours), official)
    tokens = case["out.x"].gather(1, renamed.unsqueeze(-1).expand_as(reduced.tokens))
    near(reduced.tokens, tokens)
    summed = torch.zeros(len(ours), count).scatter_add(1, ours, sizes)
    torch.testing.assert_close(summed, case["out.size"][..., 0].gather(1, renamed))


@check("atc")
def _atc(case: Case) -> None:
    patches, sizes = case["in.x"][:, 1:], case["in.size"][:, 1:, 0]
    known = signals(patches, keys=heads(case["in.metric"][:, 1:]), sizes=sizes)
    reducer = ATC(linkage=case.params["linkage"])
    reduced = reducer(patches, case.params["patch_clusters"], known)
    case.same(with_cls(reduced.assignment), "out.canonical_assign")
    near(reduced.tokens, case["out.canonical_x"][:, 1:])
