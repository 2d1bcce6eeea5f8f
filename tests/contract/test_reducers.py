"""What every reducer must do, whatever it is; no method is named here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter

import pytest
import torch

from reducers import Reduced, Reducer
from reducers.contract import SIGNALS, MissingSignal
from tests.contract.subjects import bound, groups, mapped, permuted, scene

Make = Callable[[], Reducer]
COUNTS = [((6, 6), k) for k in (1, 2, 9, 17, 18, 19, 30, 35)] + [
    ((5, 7), k) for k in (1, 3, 17, 18, 34)
]


def valid(reduced: Reduced, reducer: Reducer, batch: int, count: int, num_keep: int) -> None:
    assert reduced.tokens.shape[:2] == (batch, num_keep)
    assert reduced.assignment.shape == (batch, count)
    assert reduced.assignment.dtype == torch.int64
    assert int(reduced.assignment.min()) >= -1
    assert int(reduced.assignment.max()) < num_keep
    went = reduced.assignment.clamp(min=0)
    alive = (reduced.assignment >= 0).long()
    members = torch.zeros(batch, num_keep, dtype=torch.int64).scatter_add(1, went, alive)
    if reducer.fixed_count:
        assert reduced.mask is None
        assert bool((members > 0).all())
    else:
        assert reduced.mask is not None
        assert torch.equal(members > 0, reduced.mask)
        assert bool(reduced.mask.any(dim=1).all())
    assert bool(torch.isfinite(reduced.tokens).all())


@pytest.mark.parametrize(("grid", "num_keep"), COUNTS)
def test_returns_exactly_the_count_and_a_valid_assignment(
    make: Make, grid: tuple[int, int], num_keep: int
) -> None:
    reducer = bound(make())
    patches, signals = scene(reducer, grid=grid)
    with torch.no_grad():
        reduced = reducer(patches, num_keep, signals)
    valid(reduced, reducer, len(patches), patches.shape[1], num_keep)


def test_equal_tokens_and_ties_do_no_harm(make: Make) -> None:
    reducer = bound(make())
    patches, signals = scene(reducer)
    same = mapped(signals, torch.ones_like)
    kept = {name: signals.requested[name] for name in {"positions"} & reducer.needs}
    same = replace(same, requested={**same.requested, **kept})
    with torch.no_grad():
        reduced = reducer(torch.ones_like(patches), 20, same)
    valid(reduced, reducer, len(patches), patches.shape[1], 20)


def test_batch_mates_do_not_matter(make: Make) -> None:
    reducer = bound(make())
    patches, signals = scene(reducer)
    with torch.no_grad():
        together = reducer(patches, 20, signals)
        for row in range(len(patches)):
            part = slice(row, row + 1)
            alone = reducer(patches[part], 20, mapped(signals, itemgetter(part)))
            assert torch.equal(alone.assignment, together.assignment[part])
            torch.testing.assert_close(alone.tokens, together.tokens[part])


def test_order_of_the_patches_does_not_matter(make: Make) -> None:
    reducer = bound(make())
    if not reducer.equivariant:
        pytest.skip("declared to depend on the order of the patches")
    patches, signals = scene(reducer)
    order = torch.randperm(patches.shape[1], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = reducer(patches, 20, signals)
        after = reducer(patches[:, order], 20, permuted(signals, order))
    back = after.assignment.gather(1, order.argsort().expand(len(patches), -1))
    assert torch.equal(groups(before.assignment), groups(back))
    torch.testing.assert_close(
        _by_old_token(before.tokens, before.assignment), _by_old_token(after.tokens, back),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip


def _by_old_token(tokens: torch.Tensor, assignment: torch.Tensor) -> torch.Tensor:
    index = assignment.clamp(min=0).unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    return tokens.gather(1, index) * (assignment >= 0).unsqueeze(-1)


def test_the_same_call_gives_the_same_result(make: Make) -> None:
    first, second = (bound(make()) for _ in range(2))
    patches, signals = scene(first)
    one, two = first.train()(patches, 20, signals), second.train()(patches, 20, signals)
    assert torch.equal(one.assignment, two.assignment)
    assert torch.equal(one.tokens, two.tokens)


def test_half_precision_stays_finite_and_in_its_type(make: Make) -> None:
    reducer = bound(make()).to(torch.bfloat16)
    patches, signals = scene(reducer)
    half = mapped(signals, lambda value: value.bfloat16() if value.is_floating_point() else value)
    with torch.no_grad():
        reduced = reducer(patches.to(torch.bfloat16), 20, half)
    assert reduced.tokens.dtype == torch.bfloat16
    valid(reduced, reducer, len(patches), patches.shape[1], 20)


def test_gradients_reach_a_patch_behind_every_new_token(make: Make) -> None:
    reducer = bound(make())
    patches, signals = scene(reducer)
    patches.requires_grad_()
    reduced = reducer(patches, 20, signals)
    weights = torch.linspace(1, 2, reduced.tokens.shape[-1])
    (reduced.tokens * weights).sum().backward()
    assert patches.grad is not None
    felt = (patches.grad.abs().sum(dim=-1) > 0).long() * (reduced.assignment >= 0)
    reached = torch.zeros(len(patches), 20, dtype=torch.int64)
    reached = reached.scatter_add(1, reduced.assignment.clamp(min=0), felt) > 0
    assert torch.equal(reached, torch.ones_like(reached) if reduced.mask is None else reduced.mask)


def test_compiles_as_one_graph(make: Make) -> None:
    reducer = bound(make())
    patches, signals = scene(reducer)
    torch.compiler.reset()
    compiled = torch.compile(reducer, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        ours, plain = compiled(patches, 20, signals), reducer(patches, 20, signals)
    assert torch.equal(ours.assignment, plain.assignment)
    torch.testing.assert_close(ours.tokens, plain.tokens)


@pytest.mark.slow
def test_compiles_with_the_default_backend(make: Make) -> None:
    reducer = bound(make())
    patches, signals = scene(reducer)
    torch.compiler.reset()
    compiled = torch.compile(reducer, fullgraph=True, dynamic=False)
    with torch.no_grad():
        ours, plain = compiled(patches, 20, signals), reducer(patches, 20, signals)
    assert torch.equal(ours.assignment, plain.assignment)
    torch.testing.assert_close(ours.tokens, plain.tokens, atol=1e-5, rtol=1e-5)


def test_a_signal_that_is_not_requested_cannot_be_read(make: Make) -> None:
    reducer = bound(make())
    _, signals = scene(reducer)
    name = next(name for name in SIGNALS if name not in reducer.needs)
    with pytest.raises(MissingSignal, match=f"reads signals.{name}, but its needs does not name"):
        getattr(signals, name)


def test_says_what_it_is(make: Make) -> None:
    reducer = make()
    doc = type(reducer).__doc__ or ""
    assert "Source:" in doc
    assert "Differs:" in doc
