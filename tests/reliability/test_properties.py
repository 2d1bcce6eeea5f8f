"""Properties that hold for any input: schedules, reducers, rankings, intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.statistics import holm, t_interval
from elip.schedule import Schedule
from elip.tasks.ranking import guesses, recalls
from reducers import shelf
from tests.contract.subjects import bound, scene

SHARE = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0.01, 1)


@settings(max_examples=200, deadline=None)
@given(
    ratio=st.none() | SHARE,
    layers=st.none() | st.lists(st.integers(-2, 14), max_size=4).map(tuple),
    profile=st.none() | st.lists(SHARE, max_size=4).map(tuple),
    counts=st.none() | st.lists(st.integers(-2, 400), max_size=4).map(tuple),
    patches=st.integers(1, 400),
    blocks=st.integers(1, 14),
    placement=st.sampled_from(["before_block", "after_attention", "fusion"]),
)
def test_any_schedule_is_rejected_or_feasible(
    ratio: Any, layers: Any, profile: Any, counts: Any, patches: int, blocks: int, placement: Any
) -> None:
    try:
        plan = Schedule(ratio, layers, profile, counts).plan(patches, blocks, placement)
    except ValueError:
        return
    entering = list(plan.tokens_per_block)
    assert len(entering) == blocks + 1
    assert entering == sorted(entering, reverse=True)
    assert all(1 <= count <= patches and isinstance(count, int) for count in entering)
    if counts is not None:
        assert list(plan.keep.values()) == [min(count, patches) for count in counts]
    elif ratio is not None and 1 not in plan.keep.values():
        assert plan.keep_ratio == pytest.approx(ratio, abs=0.5 / patches + 1e-6)


@pytest.mark.parametrize(
    "name", [name for name, made in shelf().items() if made.placement != "never"]
)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.integers(2, 6),
    columns=st.integers(2, 6),
    share=st.floats(0, 0.999),
    batch=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 30.0]),
)
def test_a_reducer_keeps_its_contract_at_any_size(
    name: str, rows: int, columns: int, share: float, batch: int, seed: int, scale: float
) -> None:
    reducer = bound(shelf()[name]())
    patches, signals = scene(reducer, batch, (rows, columns), seed)
    count = rows * columns
    keep = 1 + int(share * (count - 1))
    with torch.no_grad():
        reduced = reducer(patches * scale, keep, signals)
    assert reduced.tokens.shape == (batch, keep, patches.shape[2])
    assert bool(reduced.tokens.isfinite().all())
    assert reduced.assignment.shape == (batch, count)
    real = torch.ones(batch, keep, dtype=torch.bool) if reduced.mask is None else reduced.mask
    for row, kept in zip(reduced.assignment, real, strict=True):
        assert set(row[row >= 0].tolist()) == set(kept.nonzero().flatten().tolist())


@given(owners=st.lists(st.integers(0, 3), min_size=1, max_size=12), seed=st.integers(0, 10**6))
def test_recalls_lie_between_nothing_and_everything(owners: list[int], seed: int) -> None:
    known = sorted(set(owners))
    owner = torch.tensor([known.index(each) for each in owners])
    scores = torch.rand(len(known), len(owners), generator=torch.Generator().manual_seed(seed))
    found, chance = recalls(scores, owner), guesses(owner)
    assert found.keys() == chance.keys()
    assert all(0 <= value <= 1 for value in (*found.values(), *chance.values()))
    assert found["ir_r1"] <= found["ir_r5"] <= found["ir_r10"]
    perfect = torch.zeros_like(scores).scatter(0, owner[None], 1.0)
    assert recalls(perfect, owner)["r1"] == 1


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_an_interval_holds_its_mean(values: list[float]) -> None:
    found = t_interval(values)
    assert found.value == pytest.approx(np.mean(values), abs=1e-6)
    assert np.isnan(found.low) or found.low <= found.value <= found.high


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_corrected_p_values_are_larger_and_in_the_same_order(values: list[float]) -> None:
    corrected = holm(values)
    assert all(old <= new <= 1 for old, new in zip(values, corrected, strict=True))
    order = np.argsort(values, kind="stable")
    assert list(np.array(corrected)[order]) == sorted(corrected)
