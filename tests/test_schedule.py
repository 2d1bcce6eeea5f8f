"""From a keep ratio to integer counts."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from elip.schedule import Schedule

ACTS = ["before_block", "after_attention", "fusion"]


@given(
    ratio=st.floats(0.35, 1.0),
    patches=st.integers(1, 1500),
    blocks=st.integers(3, 24),
    placement=st.sampled_from(ACTS),
)
def test_counts_fall_stay_above_0_and_meet_the_ratio(
    ratio: float, patches: int, blocks: int, placement: str
) -> None:
    try:
        plan = Schedule(keep_ratio=ratio).plan(patches, blocks, placement)
    except ValueError as error:
        assume("cannot be reached" not in str(error))
        raise
    counts = list(plan.keep.values())
    assert counts == sorted(counts, reverse=True)
    assert all(1 <= count <= patches for count in counts)
    assert list(plan.tokens_per_block) == sorted(plan.tokens_per_block, reverse=True)
    assert len(plan.tokens_per_block) == blocks + 1
    assert plan.tokens_per_block[0] in (patches, counts[0])
    # Each count is rounded by at most half a token; the floor of 1 adds at most one more.
    assert plan.keep_ratio == pytest.approx(ratio, abs=0.5 / patches + 1e-6) or 1 in counts


@given(patches=st.integers(1, 600), blocks=st.integers(2, 24), placement=st.sampled_from(ACTS))
def test_keep_ratio_1_keeps_all(patches: int, blocks: int, placement: str) -> None:
    plan = Schedule(keep_ratio=1.0).plan(patches, blocks, placement)
    assert set(plan.keep.values()) == {patches}
    assert plan.keep_ratio == 1.0


@given(
    low=st.floats(0.4, 1.0),
    high=st.floats(0.4, 1.0),
    placement=st.sampled_from(ACTS),
)
def test_a_higher_ratio_never_keeps_fewer(low: float, high: float, placement: str) -> None:
    low, high = sorted((low, high))
    fewer, more = (Schedule(keep_ratio=ratio).plan(324, 11, placement) for ratio in (low, high))
    pairs = zip(fewer.tokens_per_block, more.tokens_per_block, strict=True)
    assert all(a <= b for a, b in pairs)


def test_official_shares_are_the_profile_as_it_stands() -> None:
    plan = Schedule(keep_ratio=None).plan(324, 11, "before_block")
    assert plan.keep == {2: 292, 4: 227, 9: 146}
    assert plan.tokens_per_block == (324, 324, 292, 292, 227, 227, 227, 227, 227, 146, 146, 146)
    assert plan.keep_ratio == pytest.approx(0.745, abs=0.005)


def test_every_kind_thins_the_same_blocks_by_default() -> None:
    before, after = (
        Schedule(keep_ratio=0.7).plan(324, 11, placement)
        for placement in ("before_block", "after_attention")
    )
    assert before.tokens_per_block == after.tokens_per_block
    assert tuple(before.keep) == (2, 4, 9)
    assert tuple(after.keep) == (1, 3, 8)


def test_a_named_layer_is_where_the_reducer_acts() -> None:
    schedule = Schedule(layers=(3,), counts=(50,))
    early, late = schedule.plan(100, 6, "before_block"), schedule.plan(100, 6, "after_attention")
    assert early.tokens_per_block == (100, 100, 100, 50, 50, 50, 50)
    assert late.tokens_per_block == (100, 100, 100, 100, 50, 50, 50)


def test_explicit_counts_are_kept_to_the_token() -> None:
    plan = Schedule(layers=(2, 4, 9), counts=(45, 35, 23)).plan(49, 11, "before_block")
    assert plan.keep == {2: 45, 4: 35, 9: 23}


def test_no_reduction_has_no_layers() -> None:
    plan = Schedule(keep_ratio=0.5).plan(100, 4, "never")
    assert plan.keep == {}
    assert plan.tokens_per_block == (100,) * 5


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"keep_ratio": 0.0}, "above 0 and at most 1"),
        ({"keep_ratio": 1.1}, "above 0 and at most 1"),
        ({"layers": ()}, "at least one block number"),
        ({"layers": (4, 2)}, "larger than the one before"),
        ({"layers": (-1, 2)}, "0-based"),
        ({"profile": (0.5, 0.7)}, "none larger than the one before"),
        ({"profile": (1.2,)}, "at most 1"),
        ({"counts": (10, 20)}, "none larger than the one before"),
        ({"counts": (0,)}, "at least 1"),
    ],
)
def test_impossible_values_are_refused(given_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**given_)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Schedule(layers=(12,)), "layers go from 0 to 10"),
        (Schedule(layers=(2, 4), profile=(0.5,)), "1 entries for 2 reduction layers"),
        (Schedule(layers=(2, 4), counts=(50, 40, 30)), "3 entries for 2 reduction layers"),
        (Schedule(layers=(2, 4), counts=(400, 40)), "only 324 patches"),
        (Schedule(keep_ratio=0.5, layers=(8,)), "it must be above 0.727"),
    ],
)
def test_what_does_not_fit_the_encoder_is_refused(schedule: Schedule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule.plan(324, 11, "before_block")
