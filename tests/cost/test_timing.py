"""Times: interleaved runs, dropped warm-up, quantiles, the batch."""

from __future__ import annotations

import pytest
import torch

from elip.cost import cached, timing
from elip.cost.cached import choose_batch
from elip.cost.count import random_batch
from elip.cost.timing import inference, time_interleaved
from tests.cost.test_count import build


def test_runs_are_interleaved_in_rotating_order() -> None:
    calls: list[str] = []
    candidates = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = time_interleaved(candidates, rounds=2, warm_up=1, examples=4)
    assert "".join(calls) == "abc" + "bca" + "cab"
    assert list(timings) == ["a", "b", "c"]


def test_median_and_spread_without_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9, 9, 0.5, 0.1, 0.2, 0.3, 0.4])
    monkeypatch.setattr(timing, "time_once", lambda run, device: next(seconds))
    found = time_interleaved({"a": print}, rounds=5, examples=6)["a"]
    assert found.latency_ms == pytest.approx(300)
    assert found.latency_p95_ms == pytest.approx(480)
    assert found.latency_spread == pytest.approx((0.4 - 0.2) / 0.3)
    assert found.examples_per_second == pytest.approx(20)


@pytest.mark.parametrize(("per_example", "chosen"), [(1.0, 1), (0.01, 8), (1e-6, 256)])
def test_the_batch_is_chosen_by_time(
    per_example: float, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter, task = build()
    ran: list[int] = []
    monkeypatch.setattr(task, "infer", lambda meter, batch: ran.append(len(batch)))
    monkeypatch.setattr(cached, "time_once", lambda run, device: (run(), per_example * ran[-1])[1])
    assert choose_batch(meter, task) == chosen


def test_inference_casts_each_weight_once_and_restores_modes() -> None:
    meter, task = build()
    task.eval()
    batch, casts = random_batch(meter, 2), 0

    class Casts(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal casts
            weight = meter.text_projection.weight
            casts += func is torch.ops.aten._to_copy.default and args[0] is weight
            return func(*args, **(kwargs or {}))

    with inference(meter, task, precision="bf16-mixed"), Casts():
        assert not meter.training
        assert task.infer(meter, batch).dtype == torch.bfloat16
        task.infer(meter, batch)
    assert casts == 1
    assert meter.training
    assert not task.training
