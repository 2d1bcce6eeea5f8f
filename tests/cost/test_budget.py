"""Matched budgets: the keep ratio found makes a method cost the budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from elip.cost.budget import BudgetError, match_gflops
from elip.cost.count import count_forward, random_batch
from elip.data.shapes import Options, write_shapes
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.schedule import Schedule
from elip.tasks.pretrain import Pretraining
from experiments.grid import read_grid
from experiments.sweep import match_budget, parse_draft
from reducers import shelf

ROOT = Path(__file__).parents[2]
SIZES = {
    "image_size": 64, "patch_size": 8, "image_width": 48, "image_blocks": 6, "image_heads": 2,
    "text_width": 48, "text_layers": 1, "fusion_width": 48, "fusion_layers": 2, "max_text_len": 12,
}  # fmt: skip
CONFIG = MeterConfig(vocab_size=60, **SIZES)
SCHEDULE = Schedule(layers=(1, 2, 4))


def build(name: str, device: str = "meta") -> tuple[Meter, Pretraining]:
    with torch.device(device):
        meter, task = Meter(CONFIG.resolve(), shelf()[name](), SCHEDULE), Pretraining()
        task.build(meter, 0)
    return meter, task


def total(name: str, schedule: Schedule = SCHEDULE) -> float:
    meter, task = build(name, "cpu")
    meter.set_reduction(meter.reducer, schedule)
    return count_forward(meter, task, random_batch(meter, 1)).total


@pytest.mark.parametrize("name", ["Random", "ELIP", "ToMe", "DPCKNN", "ATS"])
def test_counted_total_meets_the_budget(name: str) -> None:
    target = 0.8 * total("Identity")
    meter, task = build(name)
    found = match_gflops(target, meter, task, SCHEDULE)
    # The search uses torch's counter on shapes; this uses fvcore's on a real model.
    assert total(name, found) == pytest.approx(target, rel=0.01)
    assert meter.plan.keep_ratio == pytest.approx(found.keep_ratio, abs=0.02)


def test_a_probe_costs_tokens() -> None:
    target = 0.85 * total("Identity")
    random, elip = (match_gflops(target, *build(name), SCHEDULE) for name in ("Random", "ELIP"))
    assert elip.keep_ratio < random.keep_ratio - 0.05


@pytest.mark.parametrize("gflops", [1e-6, 1e3])
def test_error_gives_the_possible_range(gflops: float) -> None:
    with pytest.raises(BudgetError, match=r"Random cannot cost .* it costs from 0\.0\d+ to 0\.0"):
        match_gflops(gflops, *build("Random"), SCHEDULE)


@pytest.mark.parametrize("value", [{}, {"gflops": 0}, {"latency_ms": 1}, 35, {"gflops": "35"}])
def test_malformed_budget(value: object) -> None:
    with pytest.raises(ValueError, match=r"give \{gflops: NUMBER\}"):
        match_budget(value, {})


def test_grid_with_a_budget(tmp_path: Path) -> None:
    write_shapes(tmp_path / "data" / "shapes", Options(train=4, val=2, test=2), progress=False)
    full = total("Identity")
    large, small = (round(share * full, 5) for share in (0.9, 0.8))
    (tmp_path / "g.yaml").write_text(
        f"base: {ROOT}/experiments/elip_0.7.yaml\n"
        f"set: {{data.root: {tmp_path}/data, model.meter: {SIZES}, model.image_weights: null}}\n"
        "axes:\n"
        "  reducer: [Identity, Random]\n"
        f"  budget: [{{gflops: {large}}}, {{gflops: {small}}}, {{gflops: 35}}]\n"
        "stages: {fit: {}}\n"
    )
    grid = read_grid(tmp_path / "g.yaml")
    parsed = [parse_draft(draft, tmp_path) for draft in grid.drafts(grid.stages["fit"], [])]
    assert "cannot cost 35 GFLOPs" in str(parsed.pop())
    assert not any(isinstance(each, str) for each in parsed), parsed
    kept = [each.config["model"]["schedule"]["keep_ratio"] for each in parsed]
    assert kept[:3] == [1.0, 1.0, 1.0]  # no reduction
    assert 1 > kept[3] > kept[4]
