"""Checkpoints that are whole or not there, the flags of a step, the bar and the log lines."""

from __future__ import annotations

import logging
import os
import resource
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from elip.training.callbacks import DurableCheckpointIO, LogLines, StepFlags
from elip.training.module import LossError, MeterModule
from tests.training.conftest import Go


def test_a_checkpoint_that_does_not_fit_the_disk_leaves_the_old_one(tmp_path: Path) -> None:
    path, save = tmp_path / "last.ckpt", DurableCheckpointIO().save_checkpoint
    save({"state_dict": {"a": torch.ones(1000)}}, path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save({"state_dict": {"a": torch.zeros(1000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_the_flags_of_a_step() -> None:
    flags = StepFlags()
    assert flags.exchange(torch.tensor(2.5), 1, 7) == 1
    assert flags.loss == 2.5
    assert flags.read() == 0  # nothing is on its way
    with pytest.raises(LossError, match="The loss is inf at step 8"):
        flags.exchange(torch.tensor(float("inf")), 0, 8)


READS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal"}


class Reads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.seen[name] += name in READS
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("quick")
def test_the_host_never_waits_for_the_device_in_a_step(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, steps = Reads(), []

    def start(module: MeterModule, batch: object, number: int) -> None:
        if 1 <= module.global_step < 4:  # the first batch is examined
            reads.__enter__()
            steps.append(number)

    def end(module: MeterModule, outputs: object, batch: object, number: int) -> None:
        if number in steps:
            reads.__exit__(None, None, None)

    monkeypatch.setattr(MeterModule, "on_train_batch_start", start, raising=False)
    monkeypatch.setattr(MeterModule, "on_train_batch_end", end, raising=False)
    assert go("fit", "--trainer.log_every_n_steps=50") == 0
    assert steps == [1, 2, 3]
    assert +reads.seen == Counter()


@pytest.mark.usefixtures("quick")
def test_a_terminal_shows_one_bar_over_all_epochs(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert go("fit", "--trainer.max_steps=9", "--trainer.val_check_interval=3") == 0
    shown = capsys.readouterr().err
    assert "Training" in shown
    assert "9/9" in shown
    assert "loss: " in shown
    assert "loss: nan" not in shown  # before the first step


@pytest.mark.parametrize("terminal", [True, False])
def test_long_log_lines_break_between_words_in_a_terminal_only(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = StringIO()
    console = Console(file=output, width=80, force_terminal=terminal, color_system=None)
    monkeypatch.setattr("elip.training.callbacks.CONSOLE", console)
    words = "a line of words that is longer than a terminal of the usual eighty columns is wide"
    LogLines().emit(logging.LogRecord("elip", logging.INFO, "", 0, words, None, None))
    lines = output.getvalue().splitlines()
    assert len(lines) == 1 + terminal
    assert " ".join(line.strip() for line in lines) == words
