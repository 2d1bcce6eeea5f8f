"""Optimiser groups and learning rates against the official code's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from elip.training.optimization import Optimization, learning_rate_factor


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
            factor = learning_rate_factor(step, settings["max_steps"], options)
            for rate, multiplier in zip(rates, multipliers, strict=True):
                got = factor * options.learning_rate * multiplier
                assert got == pytest.approx(rate, rel=1e-9, abs=1e-20), (settings, step)
                checked += 1
    assert checked > 500
