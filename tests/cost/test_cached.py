"""The cost of a run is measured once and stored beside the runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from elip.cost import cached
from elip.cost.cached import RunCost, cached_cost, time_together
from elip.cost.count import count_forward, count_training_step, random_batch
from elip.schedule import Schedule
from reducers import shelf
from tests.cost.test_count import build


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "costs.jsonl"


def entries(store: Path) -> list[str]:
    return [json.loads(line)["what"] for line in store.read_text().splitlines()]


def test_measured_values(store: Path) -> None:
    meter, task = build(shelf()["ELIP"]())
    found = cached_cost(meter, task, store, training=True)
    one, two = random_batch(meter, 1, task), random_batch(meter, 2, task)
    step = {"training_step": count_training_step(meter, task, two)}
    assert found.gflops == count_forward(meter, task, one).model_copy(update=step)
    assert found.gflops_unreduced.total > found.gflops.vision + found.gflops.fusion
    assert found.gflops_unreduced.probe == 0
    assert found.batch_size >= 1
    assert found.latency_p95_ms >= found.latency_ms > 0
    assert found.latency_unreduced_ms > 0
    assert found.examples_per_second == pytest.approx(1e3 * found.batch_size / found.latency_ms)
    assert found.notes == ()
    assert meter.training
    assert meter.plan.keep


def test_once_for_each_model_reducer_counts_and_task(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "_times", lambda *_: [{}])

    def measured(name: str = "Random", task: str = "Pretraining", **options: object) -> int:
        before = len(entries(store)) if store.exists() else 0
        cached_cost(*build(shelf()[name](**options), task), store)
        return len(entries(store)) - before

    assert measured() == 2  # with and without reduction
    assert measured() == 0
    assert measured("ELIP") == 1
    assert measured("ELIP", probe_depth=1) == 1
    assert measured("ELIP", probe_depth=1) == 0
    assert measured("ELIP", "VQA") == 2
    meter, task = build(shelf()["Random"]())
    meter.set_reduction(meter.reducer, Schedule(layers=(1, 2), counts=(10, 6)))
    cached_cost(meter, task, store)
    assert len(entries(store)) == 7
    # Changed code is measured again.
    monkeypatch.setattr(cached, "_code_hash", lambda *classes: "other")
    assert measured() == 2


def test_times_are_stored(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cached_cost(*build(shelf()["Random"]()), store)
    monkeypatch.setattr(cached, "time_interleaved", None)
    assert cached_cost(*build(shelf()["Random"]()), store) == first
    other = cached_cost(*build(shelf()["Random"]()), store, precision="bf16-mixed")
    assert other.latency_ms is None
    assert "No times" in other.notes[0]


def test_times_of_a_sweep_share_their_rounds(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter, task = build(shelf()["Random"]())
    reductions = [meter.reduction]
    for name in ("Identity", "ELIP"):
        meter.set_reduction(shelf()[name](), Schedule())
        reductions.append(meter.reduction)
    time_together(meter, task, reductions, store)
    assert meter.reduction == reductions[-1]
    monkeypatch.setattr(cached, "time_interleaved", None)
    found = []
    for meter.reduction in reductions:
        found.append(cached_cost(meter, task, store))
    assert len({each.latency_ms for each in found}) == 3
    assert {each.latency_unreduced_ms for each in found} == {found[1].latency_ms}


def test_a_damaged_store_is_measured_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "_times", lambda *_: [{}])
    model = build(shelf()["Random"]())
    found = cached_cost(*model, store)
    store.write_bytes(b'{"key": "half a li\n[]\n\xff\n' + store.read_bytes()[:-20])
    assert cached_cost(*model, store) == found


def test_failed_measurements_become_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hidden(shelf()["Random"]):
        def forward(self, patches, num_keep, signals):
            reduced = super().forward(patches, num_keep, signals)
            torch.linalg.inv(torch.eye(3) + reduced.tokens.sum() * 0)[0, 0].item()
            raise IndexError("nobody knows")

    found = cached_cost(*build(Hidden()))
    assert found == RunCost(notes=("No GFLOPs: nobody knows", "No times: nobody knows"))
