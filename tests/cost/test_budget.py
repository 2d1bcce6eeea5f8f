"""Matched budgets: what a method costs, its own work included, is what it may cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from elip.cost import Timing, measure_cost
from elip.cost import budget as module
from elip.cost.bench import random_batch
from elip.cost.budget import Budget, BudgetError, Met, meet
from elip.data.shapes import Options, write_shapes
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.schedule import Schedule
from elip.tasks.pretrain import Pretraining
from experiments.budgets import BUDGETS_NAME, Budgets
from experiments.check import check
from experiments.grid import GridError
from experiments.grid_file import read_grid
from experiments.launch import main as launch
from experiments.plan import build_plan
from reducers import shelf

ROOT = Path(__file__).parents[2]
SIZES = {
    "image_size": 64, "patch_size": 8, "image_width": 48, "image_blocks": 6, "image_heads": 2,
    "text_width": 48, "text_layers": 1, "fusion_width": 48, "fusion_layers": 2, "max_text_len": 12,
}  # fmt: skip
CONFIG = MeterConfig(vocab_size=60, **SIZES)
SCHEDULE = Schedule(layers=(1, 2, 4))


def build(name: str, device: str = "cpu") -> tuple[Meter, Pretraining]:
    schedule = SCHEDULE if name != "PuMer" else Schedule(layers=(0,))
    with torch.device(device):
        meter, task = Meter(CONFIG.resolve(), shelf()[name](), schedule), Pretraining()
        task.build(meter, 0)
    return meter, task


def solve(name: str, device: str = "cpu", **budget: Any) -> tuple[Met, Meter, Pretraining]:
    meter, task = build(name, device)
    batch = random_batch(meter, budget.get("batch_size", 1)).to(device)
    return meet(Budget(**budget), meter, task, SCHEDULE, batch), meter, task


def total(meter: Meter, task: Pretraining) -> float:
    batch = random_batch(meter, 1)
    return float(measure_cost(meter, lambda: task.infer(meter, batch), head=task).total)


@pytest.mark.parametrize("name", ["Random", "ELIP", "ToMe", "DPCKNN", "TRIPS", "ATS"])
def test_measured_total_meets_the_budget(name: str) -> None:
    meter, task = build(name)
    with meter.reduction_disabled():
        target = 0.8 * total(meter, task)
    met, meter, task = solve(name, gflops=target)
    # Both counters, on the model as the search left it, and on one that is given the counts.
    assert total(meter, task) == pytest.approx(met.cost)
    assert met.cost == pytest.approx(target, rel=0.01)
    assert tuple(meter.plan.keep.values()) == met.counts
    assert meter.plan.keep_ratio == met.keep_ratio
    again = Meter(CONFIG.resolve(), shelf()[name](), Schedule(layers=(1, 2, 4), counts=met.counts))
    assert total(again, task) == pytest.approx(met.cost)


def test_a_probe_is_paid_for_in_tokens() -> None:
    target = 0.85 * total(*build("Identity"))
    random, elip = (solve(name, gflops=target)[0] for name in ("Random", "ELIP"))
    assert elip.keep_ratio < random.keep_ratio - 0.05


def test_shapes_alone_are_enough() -> None:
    target = 0.8 * total(*build("Identity"))
    assert solve("ELIP", "meta", gflops=target)[0] == solve("ELIP", gflops=target)[0]


def test_where_no_ratio_fits_single_counts_do(monkeypatch: pytest.MonkeyPatch) -> None:
    # One token of the last layer is worth 4%, one of the others half a percent.
    meter, task = build("Random")
    price = {1: 0.3, 2: 0.3, 4: 3.0}
    monkeypatch.setattr(
        module, "count_run",
        lambda run: 1e9 * sum(price[layer] * count for layer, count in meter.plan.keep.items()),
    )  # fmt: skip
    asked = 51.6
    by_ratio = {
        sum(price[layer] * count for layer, count in plan.keep.items())
        for plan in (
            Schedule(keep_ratio=ratio / 1000, layers=(1, 2, 4)).plan(64, 6, "before_block")
            for ratio in range(400, 1000)
        )
    }
    assert min(abs(cost / asked - 1) for cost in by_ratio) > 0.01, "else this tests nothing"
    met = meet(Budget(gflops=asked), meter, task, SCHEDULE, random_batch(meter, 1))
    assert met.cost == pytest.approx(asked, rel=0.01)


def test_latency_is_solved_from_times(monkeypatch: pytest.MonkeyPatch) -> None:
    meter, task = build("Random")

    def timed(runs: Mapping[str, Any], rounds: int, device: object) -> dict[str, Timing]:
        # Half of the time goes with the tokens.
        own = 0.010 * (0.5 + 0.5 * meter.plan.keep_ratio)
        return {"own": Timing((own,) * rounds), "full": Timing((0.010,) * rounds)}

    monkeypatch.setattr(module, "time_interleaved", timed)
    batch = random_batch(meter, 4)
    met = meet(Budget(latency_share=0.8, batch_size=4), meter, task, SCHEDULE, batch)
    assert met.keep_ratio == pytest.approx(0.6, abs=0.05)
    met = meet(Budget(latency_ms=9.0), meter, task, SCHEDULE, batch)
    assert met.keep_ratio == pytest.approx(0.8, abs=0.05)


def test_latency_is_really_measured() -> None:
    met, meter, _ = solve("Random", latency_share=0.85, batch_size=16)
    assert 0.8 < met.cost < 0.9
    assert meter.plan.keep_ratio < 1


@pytest.mark.parametrize("gflops", [1e-6, 1e3])
def test_out_of_reach_is_an_error_with_the_range(gflops: float) -> None:
    with pytest.raises(BudgetError, match=r"Random cannot meet budget gflops .* from 0\.0.* to"):
        solve("Random", gflops=gflops)


@pytest.mark.parametrize(
    "value",
    [
        {}, {"gflops": 0}, {"gflops": 1, "latency_ms": 1}, {"gflop": 1}, 35, None,
        {"gflops": "35"}, {"gflops": True}, {"gflops": [35]}, {"latency_ms": 9, "batch_size": 1.5},
    ],
)  # fmt: skip
def test_no_budget(value: object) -> None:
    with pytest.raises(BudgetError, match=r"gflops, latency_ms, latency_share"):
        Budget.read(value)


def test_a_grid_asks_for_a_budget(tmp_path: Path) -> None:
    write_shapes(tmp_path / "data" / "shapes", Options(train=4, val=2, test=2), progress=False)
    full = total(*build("Identity"))
    large, small = (round(share * full, 5) for share in (0.9, 0.8))
    (tmp_path / "g.yaml").write_text(
        f"base: {ROOT}/experiments/elip_0.7.yaml\n"
        f"set: {{data.root: {tmp_path}/data, model.meter: {SIZES}}}\n"
        "axes:\n"
        "  reducer: [Identity, Random, ELIP]\n"
        f"  budget: [{{gflops: {large}}}, {{gflops: {small}}}]\n"
        "  seed: [0, 1]\n"
        "stages: {fit: {}, test: {after: fit}}\n"
    )
    grid, kept = read_grid(tmp_path / "g.yaml"), tmp_path / BUDGETS_NAME
    cells = build_plan(grid, list(check(grid, kept)), tmp_path)
    names = ["Identity"] + [f"{m}-gflops={b}" for m in ("Random", "ELIP") for b in (large, small)]
    fits = [cell for cell in cells if cell.stage.name == "fit"]
    assert [cell.name for cell in fits] == [f"{name}-seed{s}" for name in names for s in (0, 1)]
    counts = [cell.config["model"]["schedule"].get("counts") for cell in fits]
    assert counts[:2] == [None, None]
    assert counts[2] == counts[3] > counts[4] == counts[5]
    assert all("budget" not in cell.config for cell in cells)
    # Solved once: what is kept is taken as it is.
    kept.write_text(
        kept.read_text().replace(f'"counts": [\n   {counts[2][0]}', '"counts": [\n   64')
    )
    again = build_plan(grid, list(check(grid, kept)), tmp_path)
    assert again[2].config["model"]["schedule"]["counts"] == [64, *counts[2][1:]]
    assert again[2].id != cells[2].id
    assert [cell.id for cell in again if cell.name.startswith("ELIP")] == [
        cell.id for cell in cells if cell.name.startswith("ELIP")
    ]


def test_tasks_and_methods_without_options_have_budgets_too(tmp_path: Path) -> None:
    write_shapes(tmp_path / "data" / "shapes", Options(train=4, val=2, test=2), progress=False)
    (tmp_path / "g.yaml").write_text(
        f"base: {ROOT}/experiments/shapes/vqa.yaml\n"
        f"set: {{data.root: {tmp_path}/data, budget: {{gflops: 0.02}}, model.weights: null}}\n"
        "axes: {reducer: [TopK, Stride]}\nstages: {fit: {}}\n"
    )
    found = list(check(read_grid(tmp_path / "g.yaml"), None))
    assert [each.problem for each in found] == [None, None]
    assert all(each.config["model"]["schedule"]["counts"] for each in found)


def test_a_budget_out_of_reach_is_a_problem_of_its_run(tmp_path: Path) -> None:
    write_shapes(tmp_path / "data" / "shapes", Options(train=4, val=2, test=2), progress=False)
    (tmp_path / "g.yaml").write_text(
        f"base: {ROOT}/experiments/elip_0.7.yaml\n"
        f"set: {{data.root: {tmp_path}/data, budget: {{gflops: 35}}}}\n"
        "axes: {reducer: [Identity, ELIP]}\nstages: {fit: {}}\n"
    )
    identity, elip = check(read_grid(tmp_path / "g.yaml"), None)
    assert identity.problem is None
    assert elip.problem is not None
    assert "ELIP cannot meet budget gflops 35" in elip.problem


def test_budgets_are_kept_by_what_they_depend_on(tmp_path: Path) -> None:
    budgets = Budgets(tmp_path / BUDGETS_NAME)
    assert not (tmp_path / BUDGETS_NAME).exists()
    with pytest.raises(BudgetError, match="is no budget"):
        budgets.counts(
            {"gflops": -1},
            {"model": dict.fromkeys(("task", "reducer", "meter", "schedule")),
             "data": {"datasets": "shapes"}},
        )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"a": 1}', '{"a": {}}', '{"a": {"counts": ["x"]}}', b"\xff", "[" * 10**5],
)
def test_kept_budgets_that_are_damaged_are_named(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / BUDGETS_NAME
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(GridError, match=r"budgets\.json, .* is damaged"):
        Budgets(path)


def test_a_latency_budget_is_no_clusters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "g.yaml").write_text(
        f"base: {ROOT}/experiments/elip_0.7.yaml\n"
        "axes: {reducer: [ELIP], budget: [{latency_share: 0.8}]}\nstages: {fit: {}}\n"
    )
    assert launch([str(tmp_path / "g.yaml"), "--launcher=slurm", f"--runs={tmp_path}"]) == 2
    assert "measured where the launcher runs" in capsys.readouterr().err
