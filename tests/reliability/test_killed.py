"""A run that is killed and resumed ends exactly like an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from elip.cost.cached import RunCost
from elip.record import RECORD_NAME, Record, read_record
from elip.training import callbacks, recorder
from elip.training.module import MeterModule
from tests.reliability.forks import Fork, losses, options

STEPS = 8


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def often() -> None:
    """Save the last checkpoint several times a second."""
    callbacks.SAVE_SECONDS = 0.1
    callbacks._LEAST_PAUSE = 0
    recorder.cached_cost = lambda *_, **__: RunCost()  # would take longer than this training


def in_a_step(chance: random.Random) -> Callable[[], None]:
    at, step = chance.randrange(2, STEPS), MeterModule.training_step

    def dying(self: MeterModule, batch: Any, index: int) -> Any:
        loss = step(self, batch, index)
        if self.global_step == at:
            die()
        return loss

    def prepare() -> None:
        often()
        MeterModule.training_step = dying

    return prepare


def while_validating(chance: random.Random) -> Callable[[], None]:
    """The validation must be repeated, and its checkpoint kept if it is the best."""
    at, step = chance.choice(range(4, STEPS + 1, 4)), MeterModule.validation_step

    def dying(self: MeterModule, batch: Any, index: int, loader: int = 0) -> None:
        if self.global_step == at and index == 1:
            die()
        step(self, batch, index, loader)

    def prepare() -> None:
        often()
        MeterModule.validation_step = dying

    return prepare


def while_saving(chance: random.Random) -> Callable[[], None]:
    left, save = chance.randrange(1, 3), torch.save

    def dying(content: Any, file: Any, *rest: Any) -> None:
        nonlocal left
        left -= 1
        save(content, file, *rest)
        if not left:
            file.truncate(file.tell() // 2)
            die()

    def prepare() -> None:
        often()
        torch.save = dying

    return prepare


def while_renaming(chance: random.Random) -> Callable[[], None]:
    """Before or after a checkpoint gets its final name."""
    left, after, rename = chance.randrange(1, 4), chance.random() < 0.5, Path.replace

    def dying(self: Path, target: Any) -> Any:
        nonlocal left
        left -= 1
        if not left and not after:
            die()
        rename(self, target)
        if not left:
            die()

    def prepare() -> None:
        often()
        Path.replace = dying  # type: ignore[method-assign]

    return prepare


def while_recording(chance: random.Random) -> Callable[[], None]:
    """When the record is written but does not have its final name."""
    rename = Path.replace

    def dying(self: Path, target: Any) -> Any:
        if Path(target).name == RECORD_NAME:
            die()
        return rename(self, target)

    def prepare() -> None:
        often()
        Path.replace = dying  # type: ignore[method-assign]

    return prepare


def attempt(root: Path, data: Path, log: Path, prepare: Callable[[], object], resume: bool) -> Fork:
    more = ["--ckpt_path=last"] if resume else []
    arguments = ["fit", *options(root, data, STEPS, trainer__val_check_interval=4), *more]
    return Fork(arguments, log, prepare)


def weights(root: Path) -> dict[str, torch.Tensor]:
    state = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == STEPS
    tensors: dict[str, torch.Tensor] = state["state_dict"]
    return tensors


def best(root: Path) -> int:
    step: int = torch.load(root / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    return step


def can_resume(root: Path) -> bool:
    return any((root / "checkpoints").glob("[!.]*.ckpt"))


@pytest.fixture(scope="module")
def undisturbed(
    shapes: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Record, Path, float]:
    root = tmp_path_factory.mktemp("whole")
    ended = attempt(root / "run", shapes, root / "log.txt", often, resume=False).wait()
    assert ended.status == 0, ended.output
    return read_record(root / "run"), root / "run", ended.seconds


def kinds() -> list[tuple[str, int]]:
    named = [
        in_a_step, while_validating, while_saving, while_renaming, while_recording,
    ]  # fmt: skip
    return [(kind.__name__, seed) for kind in named for seed in range(3)] + [
        ("any_time", seed) for seed in range(5)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seed"), kinds())
def test_killed_and_resumed_ends_as_the_undisturbed_run(
    kind: str, seed: int, shapes: Path, tmp_path: Path, undisturbed: tuple[Record, Path, float]
) -> None:
    whole, folder, seconds = undisturbed
    root, chance = tmp_path / "run", random.Random(f"{kind} {seed}")
    if kind == "any_time":
        run = attempt(root, shapes, tmp_path / "killed.txt", often, resume=False)
        time.sleep(chance.uniform(0.2, 0.95) * seconds)
        run.kill()
    else:
        prepare = globals()[kind](chance)
        run = attempt(root, shapes, tmp_path / "killed.txt", prepare, resume=False)
    killed = run.wait()
    assert killed.status == -signal.SIGKILL or kind == "any_time", killed.output
    if killed.status != 0:
        assert not (root / RECORD_NAME).exists()
        run = attempt(root, shapes, tmp_path / "log.txt", often, resume=can_resume(root))
        ended = run.wait()
        assert ended.status == 0, ended.output
    record = read_record(root)
    assert record.status == "completed"
    assert record.run_id == whole.run_id
    assert record.evaluations == whole.evaluations
    assert best(root) == best(folder)
    # A kill can lose a line of the log, but no line may differ.
    assert losses(root).items() <= losses(folder).items()
    for name, value in weights(folder).items():
        assert torch.equal(weights(root)[name], value), name
    assert not list(root.rglob(".*part"))
