"""Timing: interleaved runs, dropped warm-up, quantiles; memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from elip.cost import Timing, time_interleaved


def test_runs_are_interleaved_and_the_order_moves_on() -> None:
    calls: list[str] = []
    names = ["a", "b", "c"]
    candidates = {name: lambda name=name: calls.append(name) for name in names}
    timings = time_interleaved(candidates, rounds=2, warm_up=1, examples=4)
    assert "".join(calls) == "abc" + "bca" + "cab"
    assert {name: len(timing.seconds) for name, timing in timings.items()} == dict.fromkeys(
        names, 2
    )


def test_median_and_spread() -> None:
    timing = Timing((0.5, 0.1, 0.2, 0.3, 0.4), examples=6)
    assert timing.median == 0.3
    assert timing.p95 == pytest.approx(0.48)
    assert timing.spread == pytest.approx((0.4 - 0.2) / 0.3)
    assert timing.examples_per_second == pytest.approx(20)


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(ValueError, match="0 candidates and 10 rounds"):
        time_interleaved({})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the resident memory's peak")
def test_peak_memory_sees_what_is_freed_again() -> None:
    script = """
import torch
from elip.cost.timing import peak_memory
held = torch.ones(1)
def run():
    first = torch.ones(20_000_000)
    second = first + held
    del first
    torch.ones(5_000_000).add_(second[0])
run()
print(peak_memory(run))
"""
    # A process of its own: threads that other tests left behind have memory of their own.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert int(done.stdout) == pytest.approx(160e6, rel=0.1)
