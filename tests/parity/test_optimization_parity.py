"""Optimiser groups and learning rates against the official code's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW

from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.tasks import tasks
from elip.training.optimizer import (
    Optimization,
    build_optimizer,
    build_schedule,
    learning_rate_factor,
    placements,
)
from elip.weights import from_meter
from tests.parity.meter_cases import Whole


def test_schedule(golden: Path) -> None:
    about = json.loads((golden / "meter" / "c9_lr_schedule.json").read_text())
    checked = 0
    for schedule in about["schedules"]:
        settings = schedule["settings"]
        options = Optimization(
            learning_rate=settings["learning_rate"],
            head_multiplier=settings["lr_mult_head"],
            cross_modal_multiplier=settings["lr_mult_cross_modal"],
            warmup=settings["warmup_steps"],
            end_learning_rate=settings["end_lr"],
            decay_power=settings["decay_power"],
        )
        multipliers = (1, 1, options.head_multiplier, options.head_multiplier,
                       options.cross_modal_multiplier, options.cross_modal_multiplier)  # fmt: skip
        for step, rates in enumerate(schedule["lr_by_step_and_group"]):
            if step > settings["max_steps"]:  # the reference's cosine rises again; ours stays at 0
                break
            factor = learning_rate_factor(step, settings["max_steps"], options)
            for rate, multiplier in zip(rates, multipliers, strict=True):
                got = factor * options.learning_rate * multiplier
                assert got == pytest.approx(rate, rel=1e-9, abs=1e-20), (settings, step)
                checked += 1
    assert checked > 500


_TASKS = {
    "pretrain": ("Pretraining", 0),
    "irtr_f30k": ("Retrieval", 0),
    "nlvr2": ("NLVR2", 2),
    "snli": ("SNLIVE", 3),
    "vqa": ("VQA", 3129),
}


@pytest.fixture(scope="module")
def published() -> Meter:
    with torch.device("meta"):
        return Meter(MeterConfig("clip16_roberta").resolve())


@pytest.mark.parametrize("name", list(_TASKS))
def test_groups_of_the_reference(golden: Path, published: Meter, name: str) -> None:
    """Weight decay and learning-rate multiplier of every official parameter, by name."""
    about = json.loads((golden / "meter" / f"c9_optim_groups_{name}.json").read_text())
    task, answers = _TASKS[name]
    with torch.device("meta"):
        head = tasks()[task]()
        head.build(published, answers)
    places = placements(Whole(published, head), "reference")
    multipliers = {
        "backbone": 1.0,
        "head": float(about["settings"]["lr_mult_head"]),
        "cross_modal": float(about["settings"]["lr_mult_cross_modal"]),
    }
    compared = set()
    for group in about["groups"]:
        for official in group["names"]:
            # Keys and values share a tensor here; each of them must want the same.
            one = {official: torch.zeros(1)}
            if ".key." in official or ".value." in official:
                one = {official.replace(".value.", ".key."): torch.zeros(1)}
                one[next(iter(one)).replace(".key.", ".value.")] = torch.zeros(1)
            renamed = [ours for ours in from_meter(one)[0] if ours in places]
            for ours in renamed:
                place = places[ours]
                assert place.decays == (group["weight_decay"] > 0), official
                assert multipliers[place.owner] == group["lr_multiplier"], official
                compared.add(ours)
    assert compared == set(places)


def test_groups_by_ownership_are_what_they_say() -> None:
    meter = Meter(MeterConfig().resolve(), vocab_size=50)
    head = tasks()["VQA"]()
    head.build(meter, 5)
    whole = Whole(meter, head)
    places = placements(whole, "ownership")
    assert set(places) == {name for name, _ in whole.named_parameters()}
    for name, place in places.items():
        assert (place.owner == "head") == name.startswith("task.")
        assert (place.owner == "backbone") == name.startswith(("meter.image.", "meter.text."))
        if name.endswith("bias") or ".norm" in name or "LayerNorm" in name:
            assert not place.decays, name
    assert places["task.classifier.0.weight"].decays
    assert not places["task.classifier.1.weight"].decays
    groups = build_optimizer(whole, Optimization(learning_rate=1e-3)).param_groups
    rates = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert rates["head"] == pytest.approx((5e-3, 0.01))
    assert rates["backbone without decay"] == (1e-3, 0.0)
    counted = sum(len(group["params"]) for group in groups)
    assert counted == len(places)


@pytest.mark.parametrize("power", [1.0, "cosine"])
def test_the_end_rate_is_reached(power: Any) -> None:
    options = Optimization(1e-3, end_learning_rate=1e-5, decay_power=power)
    assert learning_rate_factor(10, 100, options) == 1
    assert learning_rate_factor(100, 100, options) == pytest.approx(1e-2)


def test_a_warm_up_as_long_as_the_run_is_said(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = AdamW([torch.zeros(1, requires_grad=True)], lr=1e-3)
    build_schedule(optimizer, 100, Optimization(1e-3, warmup=99))
    assert not caplog.text
    build_schedule(optimizer, 100, Optimization(1e-3, warmup=100))
    assert "warm-up of 100 steps is as long as the run of 100" in caplog.text
