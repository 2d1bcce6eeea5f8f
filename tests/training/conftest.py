"""One tiny fit, shared by the tests of this folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from elip.cost.cached import RunCost
from elip.data.shapes import Options, write_shapes
from elip.training.cli import run

TINY = """
model:
  task: Pretraining
  reducer: {class_path: ELIP, init_args: {}}
  schedule: {keep_ratio: 0.8}
  meter: {preset: tiny, image_blocks: 3, image_size: 32}
data: {root: ROOT, batch_size: 4, eval_batch_size: 8, train_limit: 26, eval_limit: 19}
trainer:
  max_steps: 4
  max_epochs: 100
  val_check_interval: 2
  check_val_every_n_epoch: null
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  accelerator: cpu
"""


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration file of a few steps, and its data."""
    root = tmp_path_factory.mktemp("tiny")
    write_shapes(root / "data" / "shapes", Options(train=60, val=30, test=30), progress=False)
    file = root / "tiny.yaml"
    file.write_text(TINY.replace("ROOT", str(root / "data")))
    return file


@pytest.fixture(scope="session")
def home(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the configuration was trained; tests read it and write elsewhere."""
    folder = tmp_path_factory.mktemp("home")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run(["fit", "--config", str(config)]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def trained(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run directory of that fit, in a copy that is the working directory."""
    shutil.copytree(home / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (folder,) = Path("runs/tiny").iterdir()
    return folder


Go = Callable[..., int]


@pytest.fixture
def go(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Go:
    """Run a command of the tiny configuration in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda command, *options: run([command, "--config", str(config), *options])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave GFLOPs and times out of records."""
    monkeypatch.setattr("elip.training.recorder.cached_cost", lambda *_, **__: RunCost())
