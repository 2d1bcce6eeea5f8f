"""Equal runs give equal losses and scores, bit for bit, with any number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from elip.record import read_record
from tests.reliability.forks import Fork, losses, options

STEPS = 10


@pytest.mark.slow
def test_runs_repeat_bit_for_bit(shapes: Path, tmp_path: Path) -> None:
    variants = {"once": {}, "two_workers": {"data__num_workers": 2}}
    for name, more in variants.items():
        arguments = ["fit", *options(tmp_path / name, shapes, STEPS, **more)]
        ended = Fork(arguments, tmp_path / f"{name}.txt").wait()
        assert ended.status == 0, ended.output
    first, known = read_record(tmp_path / "once"), losses(tmp_path / "once")
    assert sorted(known) == list(range(STEPS))
    assert read_record(tmp_path / "two_workers").evaluations == first.evaluations
    assert losses(tmp_path / "two_workers") == known


@pytest.mark.slow
def test_another_seed_is_another_run(shapes: Path, tmp_path: Path) -> None:
    """The values that the test above compares can differ."""
    for seed in (0, 1):
        arguments = ["fit", *options(tmp_path / str(seed), shapes, 3, seed_everything=seed)]
        assert Fork(arguments, tmp_path / f"{seed}.txt").wait().status == 0
    zero, one = losses(tmp_path / "0"), losses(tmp_path / "1")
    assert all(zero[step] != one[step] for step in zero)
