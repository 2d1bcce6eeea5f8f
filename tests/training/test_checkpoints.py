"""Checkpoints that are whole or not there; flags and times that the host reads of a step."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from elip.identity import CheckpointError
from elip.training.callbacks import DurableCheckpointIO, StepFlags, StepTimer


def saved(path: Path, **more: Any) -> Path:
    DurableCheckpointIO().save_checkpoint({"state_dict": {"a": torch.ones(1000)}, **more}, path)
    return path


def test_a_checkpoint_that_does_not_fit_the_disk_leaves_the_old_one(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.ckpt")
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="Make room"):
            saved(path, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_checkpoint_that_cannot_be_read_says_which(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.ckpt")
    read = DurableCheckpointIO().load_checkpoint
    assert read(path)["state_dict"]["a"].sum() == 1000
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged"):
        read(path)
    torch.save({"state_dict": {}, "code": SimpleNamespace()}, path)
    with pytest.raises(CheckpointError, match="carries objects"):
        read(path)
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of a run"):
        read(path)


def test_the_flags_of_a_step() -> None:
    cpu = SimpleNamespace(world_size=1, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    flags = StepFlags(cpu)  # type: ignore[arg-type]
    assert flags.exchange(torch.tensor(2.5), 1) == (True, 1, 2.5)
    told = flags.exchange(torch.tensor(float("inf")), 0)
    assert told is not None
    assert told[0] is False
    assert flags.read() is None  # nothing is on its way


def test_steps_are_timed_without_what_lies_between(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 50.0, 53.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    timer = StepTimer(seconds=1.0)
    for _ in range(2):
        timer.start(torch.device("cpu"))
        timer.stop()
    assert timer.seconds() == 6.0
