"""Runs the command line in forked processes, which need no imports."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers.models.roberta.modeling_roberta  # noqa: F401  (or every fork would import it)

from elip.training.cli import parse, run

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "experiments" / "elip_0.7.yaml")

parse(["fit", "--config", CONFIG])  # reads the options of all classes, for all forks


@dataclass(frozen=True)
class Ended:
    """A finished run.

    Attributes:
        status: Exit status; negative for the signal that ended it.
        output: Everything that it printed.
        seconds: How long it took.
    """

    status: int
    output: str
    seconds: float


class Fork:
    """The command line in a forked process.

    Args:
        arguments: The command line.
        log: File for its output.
        prepare: Called in the new process before the command line.
        environment: Added to its environment.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        prepare: Callable[[], object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log, self._started = log, time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_be(arguments, log, prepare, environment or {}))

    def wait(self, seconds: float = 300) -> Ended:
        """Wait for it to end, and kill it after ``seconds``, which is an error."""
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            took = time.monotonic() - self._started
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return Ended(code, self.log.read_text(errors="replace"), took)
            if took > seconds:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                said = self.log.read_text(errors="replace")[-3000:]
                raise TimeoutError(f"still running after {seconds} s:\n{said}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Send SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def _be(
    arguments: Sequence[str],
    log: Path,
    prepare: Callable[[], object] | None,
    environment: Mapping[str, str],
) -> int:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.environ.update(environment)
    sys.argv = ["run_experiment.py", *arguments]
    torch.set_num_threads(1)
    try:
        if prepare is not None:
            prepare()
        status = run(list(arguments))
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  (the outermost frame of a process)
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def ranks(
    arguments: Sequence[str],
    folder: Path,
    world: int,
    prepare: Callable[[], object] | None = None,
) -> list[Fork]:
    """Start the processes of one run in the environment that torchrun sets."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    return [
        Fork(
            arguments,
            folder / f"rank{rank}.txt",
            prepare,
            {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world)
    ]


def options(root: Path, data: Path, steps: int, **more: object) -> list[str]:
    """Return the options of a small fit of the tiny model; ``more`` has __ for dots."""
    chosen = {
        "data.root": data,
        "data.batch_size": 4,
        "data.eval_batch_size": 8,
        "data.train_limit": 26,
        "data.eval_limit": 19,
        "model.image_weights": "null",
        "model.meter.text_layers": 1,
        "model.meter.fusion_layers": 1,
        "model.meter.image_blocks": 3,
        "model.meter.image_size": 32,
        "model.schedule.keep_ratio": 0.8,
        "trainer.max_steps": steps,
        "trainer.val_check_interval": 5,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": root,
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    return ["--config", CONFIG, *(f"--{name}={value}" for name, value in chosen.items())]


def losses(folder: Path) -> dict[int, float]:
    """Return the logged loss of every step, over all attempts at a run."""
    return dict(_logged(folder, "train/loss"))


def _logged(folder: Path, column: str) -> Iterator[tuple[int, float]]:
    for file in sorted(folder.glob("metrics*.csv"), key=lambda file: file.stat().st_mtime):
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                if row.get("step") and row.get(column):
                    yield int(row["step"]), float(row[column])
