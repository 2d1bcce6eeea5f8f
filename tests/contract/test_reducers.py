"""What every reducer must do; no method is named here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter

import pytest
import torch
from torch import Tensor

from reducers import Reduced, Reducer, Signals
from reducers.contract import SIGNALS, MissingSignal
from tests.contract.device import HostReads, fake_cuda, on_cuda
from tests.contract.subjects import bound, groups, mapped, permuted, scene

Make = Callable[[], Reducer]
KEEP = 20


def valid(reduced: Reduced, reducer: Reducer, batch: int, count: int, num_keep: int) -> None:
    went = reduced.assignment
    assert reduced.tokens.shape[:2] == (batch, num_keep)
    assert bool(torch.isfinite(reduced.tokens).all())
    assert went.shape == (batch, count)
    assert went.dtype == torch.int64
    assert int(went.min()) >= -1
    assert int(went.max()) < num_keep
    members = torch.zeros(batch, num_keep, dtype=torch.int64)
    members = members.scatter_add(1, went.clamp(min=0), (went >= 0).long())
    if reducer.fixed_count:
        assert reduced.mask is None
        assert bool((members > 0).all())
    else:
        assert reduced.mask is not None
        assert torch.equal(members > 0, reduced.mask)
        assert bool(reduced.mask.any(dim=1).all())


@pytest.mark.parametrize("grid", [(6, 6), (5, 7)])
def test_returns_exactly_the_count_and_a_valid_assignment(
    make: Make, grid: tuple[int, int]
) -> None:
    reducer = bound(make())
    patches, signals = scene(reducer, grid=grid)
    count = patches.shape[1]
    for num_keep in (1, 2, 9, 17, 18, 19, 30, count - 1):
        with torch.no_grad():
            reduced = reducer(patches, num_keep, signals)
        valid(reduced, reducer, len(patches), count, num_keep)


def test_equal_tokens_and_ties_do_no_harm(make: Make) -> None:
    reducer = bound(make())
    patches, signals = scene(reducer)
    same = mapped(signals, torch.ones_like)
    kept = {name: signals.requested[name] for name in {"positions"} & reducer.needs}
    same = replace(same, requested={**same.requested, **kept})
    with torch.no_grad():
        reduced = reducer(torch.ones_like(patches), KEEP, same)
    valid(reduced, reducer, len(patches), patches.shape[1], KEEP)


def test_the_rest_of_the_batch_does_not_matter(make: Make) -> None:
    reducer = bound(make())
    patches, signals = scene(reducer)
    with torch.no_grad():
        together = reducer(patches, KEEP, signals)
        for row in range(len(patches)):
            part = slice(row, row + 1)
            alone = reducer(patches[part], KEEP, mapped(signals, itemgetter(part)))
            assert torch.equal(alone.assignment, together.assignment[part])
            torch.testing.assert_close(alone.tokens, together.tokens[part])


def test_the_order_of_the_patches_does_not_matter(make: Make) -> None:
    reducer = bound(make())
    if not reducer.equivariant:
        pytest.skip("declared to depend on the order of the patches")
    patches, signals = scene(reducer)
    order = torch.randperm(patches.shape[1], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = reducer(patches, KEEP, signals)
        after = reducer(patches[:, order], KEEP, permuted(signals, order))
    back = after.assignment.gather(1, order.argsort().expand(len(patches), -1))
    assert torch.equal(groups(before.assignment), groups(back))
    torch.testing.assert_close(
        _by_old_token(before.tokens, before.assignment), _by_old_token(after.tokens, back),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip


def _by_old_token(tokens: Tensor, assignment: Tensor) -> Tensor:
    index = assignment.clamp(min=0).unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    return tokens.gather(1, index) * (assignment >= 0).unsqueeze(-1)


def test_the_same_call_gives_the_same_result(make: Make) -> None:
    first, second = (bound(make()) for _ in range(2))
    patches, signals = scene(first)
    one, two = first.train()(patches, KEEP, signals), second.train()(patches, KEEP, signals)
    assert torch.equal(one.assignment, two.assignment)
    assert torch.equal(one.tokens, two.tokens)


def test_half_precision_stays_finite_and_in_its_type(make: Make) -> None:
    reducer = bound(make()).to(torch.bfloat16)
    patches, signals = scene(reducer)
    half = mapped(signals, lambda each: each.bfloat16() if each.is_floating_point() else each)
    with torch.no_grad():
        reduced = reducer(patches.to(torch.bfloat16), KEEP, half)
    assert reduced.tokens.dtype == torch.bfloat16
    valid(reduced, reducer, len(patches), patches.shape[1], KEEP)


def test_gradients_reach_a_patch_behind_every_new_token(make: Make) -> None:
    reducer = bound(make())
    patches, signals = scene(reducer)
    patches.requires_grad_()
    reduced = reducer(patches, KEEP, signals)
    weights = torch.linspace(1, 2, reduced.tokens.shape[-1])
    (reduced.tokens * weights).sum().backward()
    assert patches.grad is not None
    felt = (patches.grad.abs().sum(dim=-1) > 0).long() * (reduced.assignment >= 0)
    reached = torch.zeros(len(patches), KEEP, dtype=torch.int64)
    reached = reached.scatter_add(1, reduced.assignment.clamp(min=0), felt) > 0
    assert torch.equal(reached, torch.ones_like(reached) if reduced.mask is None else reduced.mask)


def reads_of(reducer: Reducer, patches: Tensor, signals: Signals) -> dict[str, int]:
    """Run a reducer on fake CUDA tensors and return the operators that read values."""
    with fake_cuda():
        known, tokens = mapped(signals, on_cuda), on_cuda(patches)
        with HostReads() as host:
            reducer(tokens, KEEP, known)
    return dict(host.found)


def test_the_host_never_waits_for_the_device(make: Make) -> None:
    reducer = bound(make())
    if any(True for _ in reducer.parameters()):
        pytest.skip("has parameters: tested inside METER")
    assert reads_of(reducer, *scene(reducer)) == {}


class Copies(Reducer):
    """A faulty reducer that copies a number from the CPU, twice."""

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        scores = patches.sum(dim=-1) - patches.new_tensor([0.5])
        scores[scores > 0] = 2.0
        return Reduced(patches[:, :num_keep], scores.argsort(dim=1))


def test_a_copy_from_the_cpu_is_found() -> None:
    reducer = Copies()
    assert len(reads_of(reducer, *scene(reducer))) == 2


def test_compiles_as_one_graph(make: Make) -> None:
    reducer = bound(make())
    patches, signals = scene(reducer)
    torch.compiler.reset()
    compiled = torch.compile(reducer, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        ours, plain = compiled(patches, KEEP, signals), reducer(patches, KEEP, signals)
    assert torch.equal(ours.assignment, plain.assignment)
    torch.testing.assert_close(ours.tokens, plain.tokens)


def test_a_signal_that_is_not_requested_cannot_be_read(make: Make) -> None:
    reducer = bound(make())
    _, signals = scene(reducer)
    name = next(name for name in SIGNALS if name not in reducer.needs)
    with pytest.raises(MissingSignal, match=f"reads signals.{name}, but its needs does not name"):
        getattr(signals, name)


def test_says_what_it_is(make: Make) -> None:
    doc = type(make()).__doc__ or ""
    assert "Source:" in doc
    assert "Differs:" in doc
