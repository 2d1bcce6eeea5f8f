"""What every reducer must do inside METER; no method is named here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from elip.cost.count import count_parts
from elip.model.interface import Fused
from elip.model.meter import Meter
from reducers import Reducer
from tests.contract.device import HostReads
from tests.contract.subjects import pairs, tiny

Make = Callable[[], Reducer]


def run(meter: Meter, read: str = "pooled") -> Fused:
    images, text, seeds = pairs()
    fused: Fused = meter(images, text, read, seeds)
    return fused


def test_counts_sizes_and_origins_are_kept(make: Make) -> None:
    meter = tiny(make()).eval()
    images, text, seeds = pairs()
    with torch.no_grad():
        encoded = meter.encode_text(text)
        image = meter.encode_image(images, encoded, seeds)
        stages = meter.fuse(encoded, image, "all").stages
    assert meter.reducer is not None
    assert [stage.layer for stage in stages] == list(meter.plan.keep)
    for stage in stages:
        count = meter.plan.keep[stage.layer]
        assert int(stage.patch_to_token.max()) < count
        assert stage.patch_to_token.shape == (3, meter.plan.num_patches)
        if meter.reducer.fixed_count:
            assert all(len(set(row[row >= 0].tolist())) == count for row in stage.patch_to_token)
    assert meter.plan.keep_ratio == pytest.approx(0.6, abs=0.02)
    if meter.reducer.placement != "fusion":
        assert image.tokens_per_block == meter.plan.tokens_per_block[:-1]
        assert image.tokens.shape[1] == 1 + meter.plan.tokens_per_block[-1]
        stands_for = (image.patch_to_token >= 0).sum(dim=1).float()
        assert torch.equal(image.sizes.sum(dim=1), stands_for)


def test_keep_ratio_1_is_exactly_no_reduction(make: Make) -> None:
    with torch.no_grad():
        kept, plain = (run(tiny(reducer, ratio=1.0).eval(), "all") for reducer in (make(), None))
    assert torch.equal(kept.text, plain.text)
    assert kept.image is not None
    assert plain.image is not None
    assert torch.equal(kept.image, plain.image)


def test_disabling_reduction_gives_no_reduction(make: Make) -> None:
    meter, plain = tiny(make()).eval(), tiny(None).eval()
    with torch.no_grad():
        before = run(meter)
        with meter.reduction_disabled():
            assert torch.equal(run(meter).text, run(plain).text)
        assert torch.equal(run(meter).text, before.text)


@pytest.mark.parametrize("read", ["pooled", "text"])
def test_trains(make: Make, read: str) -> None:
    meter = tiny(make()).train()
    fused = run(meter, read)
    loss = fused.text.square().mean()
    if fused.pooled is not None:
        loss = loss + fused.pooled.square().mean()
    loss.backward()
    for name, parameter in meter.image.vit.named_parameters():
        if parameter.requires_grad and not name.startswith("norm."):
            assert parameter.grad is not None, name
            assert bool(torch.isfinite(parameter.grad).all()), name


def test_batch_mates_do_not_matter(make: Make) -> None:
    meter = tiny(make()).eval()
    images, text, seeds = pairs()
    with torch.no_grad():
        together = meter(images, text, "pooled", seeds).pooled
        for row in range(len(images)):
            part = slice(row, row + 1)
            words = type(text)(text.ids[part], text.mask[part])
            alone = meter(images[part], words, "pooled", seeds[part]).pooled
            torch.testing.assert_close(alone, together[part], atol=1e-5, rtol=1e-5)


def test_half_precision_stays_finite(make: Make) -> None:
    meter = tiny(make()).eval().to(torch.bfloat16)
    with torch.no_grad():
        assert bool(torch.isfinite(run(meter).text).all())


def test_mixed_precision_trains(make: Make) -> None:
    meter = tiny(make()).train()
    with torch.autocast("cpu", torch.bfloat16):
        fused = run(meter)
        assert fused.pooled is not None
        loss = fused.pooled.float().square().mean()
    loss.backward()
    assert bool(torch.isfinite(loss))
    gradients = [p.grad for p in meter.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_the_host_never_waits_for_the_device(make: Make) -> None:
    meter = tiny(make()).eval()
    with torch.no_grad(), HostReads() as host:
        run(meter)
    assert not host.found


def test_what_is_not_read_is_not_needed(make: Make) -> None:
    """The two CLS tokens are the same whether a head reads only them or all tokens."""
    meter = tiny(make()).eval()
    if hasattr(meter.reducer, "merge_text"):
        setattr(meter.reducer, "merge_text", 0.0)  # noqa: B010
    with torch.no_grad():
        pooled, whole = run(meter, "pooled"), run(meter, "all")
    assert pooled.image is not None
    assert whole.image is not None
    torch.testing.assert_close(pooled.text, whole.text[:, :1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled.image, whole.image[:, :1], atol=1e-5, rtol=1e-5)


def test_cost_falls_as_tokens_fall(make: Make) -> None:
    images, text, seeds = pairs()
    totals = []
    for ratio in (0.9, 0.75, 0.6):  # not 1.0: without a probe it can be cheaper than 0.9
        meter = tiny(make(), ratio).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            meter(images, text, "pooled", seeds)
        totals.append(counter.get_total_flops())
    assert totals[0] > totals[1] > totals[2]


def test_the_cost_of_every_operator_is_known(make: Make) -> None:
    meter = tiny(make()).eval()
    images, text, seeds = pairs()
    counts = count_parts(
        lambda: meter(images, text, "pooled", seeds).pooled, meter, meter.cost_parts(), "head"
    )
    assert counts["vision"] > 0


@pytest.mark.slow
def test_compiles_with_its_host_as_one_graph(make: Make) -> None:
    meter = tiny(make()).eval()
    images, text, seeds = pairs()
    torch.compiler.reset()
    compiled = torch.compile(meter, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        ours, plain = compiled(images, text, "pooled", seeds), run(meter)
    assert plain.pooled is not None
    assert torch.equal(ours.pooled, plain.pooled)


def graphs_of_split_work(meter: Meter) -> int:
    """Compile the image encoder, use it as the tasks do, and return the number of graphs."""
    meter.eval()
    images, text, seeds = pairs()
    graphs = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    with torch.no_grad():
        encoded = meter.encode_text(text)

        def encode() -> torch.Tensor:
            begun = meter.encode_prefix(images, seeds)
            return meter.encode_suffix(begun, encoded).tokens

        plain = encode()
        meter.image.compile(backend=backend, dynamic=False)
        for _ in range(3):
            assert torch.equal(encode(), plain)
    return len(graphs)


def test_an_encoder_without_reduction_is_one_graph() -> None:
    assert graphs_of_split_work(tiny(None)) == 1


@pytest.mark.slow
def test_work_that_is_split_at_the_text_takes_one_graph_each(make: Make) -> None:
    meter = tiny(make())
    # A method that reads the text in the first block leaves no block to the prefix.
    split = 0 < meter.image.prefix_end < meter.image.num_blocks
    assert graphs_of_split_work(meter) == 1 + split
