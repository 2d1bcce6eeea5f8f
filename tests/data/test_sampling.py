from __future__ import annotations

import pytest

from elip.data.datasets.base import DataError
from elip.data.draw import SampleIndex
from elip.data.sampling import DistributedBatchSampler


def numbers(batches: DistributedBatchSampler) -> list[list[int]]:
    return [[draw.example for draw in batch] for batch in batches]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("num_examples", [1, 2, 5, 24, 31])
def test_evaluation_sees_each_example_once_in_order(num_examples: int, world_size: int) -> None:
    parts = [
        DistributedBatchSampler(num_examples, 4, train=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    seen = [example for part in parts for batch in numbers(part) for example in batch]
    assert seen == list(range(num_examples))
    assert [len(part) for part in parts] == [len(numbers(part)) for part in parts]
    assert {part.num_dropped for part in parts} == {0}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_gives_every_process_the_same_number_of_whole_batches(world_size: int) -> None:
    parts = [
        DistributedBatchSampler(31, 4, train=True, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    seen = [example for part in parts for batch in numbers(part) for example in batch]
    assert len(set(seen)) == len(seen) == 31 - parts[0].num_dropped
    assert {len(batch) for part in parts for batch in numbers(part)} == {4}
    assert len({len(part) for part in parts}) == 1


def test_a_step_holds_the_same_examples_whatever_the_number_of_processes() -> None:
    single = numbers(DistributedBatchSampler(32, 8, train=True, seed=3))
    pair = [numbers(DistributedBatchSampler(32, 4, True, 3, rank, 2)) for rank in range(2)]
    for step, batch in enumerate(single):
        assert sorted(batch) == sorted(pair[0][step] + pair[1][step])


def test_order_depends_on_seed_and_epoch_only() -> None:
    batches = DistributedBatchSampler(20, 4, train=True, seed=1)
    first = numbers(batches)
    assert numbers(batches) == first
    batches.set_epoch(1)
    assert numbers(batches) != first
    assert next(iter(batches))[0].epoch == 1
    assert numbers(DistributedBatchSampler(20, 4, train=True, seed=2)) != first


def test_evaluation_has_one_epoch_only() -> None:
    batches = DistributedBatchSampler(3, 4, train=False)
    batches.set_epoch(5)
    assert list(batches) == [[SampleIndex(0, 0), SampleIndex(0, 1), SampleIndex(0, 2)]]


def test_entering_in_the_middle() -> None:
    batches = DistributedBatchSampler(20, 4, train=True)
    whole = numbers(batches)
    batches.start = 3
    assert numbers(batches) == whole[3:]
    assert len(batches) == 5  # the length is that of the epoch


def test_fewer_examples_than_a_batch() -> None:
    assert [len(batch) for batch in DistributedBatchSampler(3, 64, train=True)] == [3]
    with pytest.raises(DataError, match="1 training examples for 2 processes"):
        DistributedBatchSampler(1, 64, train=True, world_size=2)
    with pytest.raises(DataError, match="at least 1"):
        DistributedBatchSampler(1, 0, train=True)
