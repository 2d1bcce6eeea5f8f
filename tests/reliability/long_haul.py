"""A long run: memory, open files and logs must not grow with the steps.

    nice python -m tests.reliability.long_haul --data DIR --out DIR [--steps 20000]

Trains the smallest METER with validation and checkpoints, samples itself every 100 steps, and
prints what grew after the first tenth of the steps; the exit status is 1 where memory grew by 2%
or more, or files were left open.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

import elip.training.cli
import elip.training.trainer
from tests.reliability.forks import options

EVERY = 100
MOST_GROWTH = 0.02


class Samples(Callback):
    """Notes memory, open files and threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        """Take a sample now and then."""
        if trainer.global_step % EVERY:
            return
        status = Path("/proc/self/status").read_text().splitlines()
        values = {line.split(":")[0]: line.split()[1] for line in status if len(line.split()) > 1}
        self.rows.append(
            {
                "step": trainer.global_step,
                "megabytes": int(values["VmRSS"]) / 1024,
                "files": len(os.listdir("/proc/self/fd")),
                "threads": int(values["Threads"]),
            }
        )
        self.path.write_text(json.dumps(self.rows))


def judge(rows: list[dict[str, float]], out: Path) -> int:
    """Print what grew after the first tenth; return the exit status."""
    tenth = rows[len(rows) // 10 :]
    part = max(1, len(tenth) // 10)

    def mean(some: list[dict[str, float]], name: str) -> float:
        return sum(row[name] for row in some) / len(some)

    first, last = tenth[:part], tenth[-part:]
    growth = mean(last, "megabytes") / mean(first, "megabytes") - 1
    files = mean(last, "files") - mean(first, "files")
    logs = sum(file.stat().st_size for file in out.rglob("*") if "checkpoints" not in file.parts
               and file.is_file())  # fmt: skip
    sys.stdout.write(
        f"steps {rows[-1]['step']:.0f}; memory {mean(first, 'megabytes'):.0f} MB, then "
        f"{mean(last, 'megabytes'):.0f} MB ({growth:+.2%}); files {first[0]['files']:.0f}, then "
        f"{last[-1]['files']:.0f}; threads {first[0]['threads']:.0f}, then "
        f"{last[-1]['threads']:.0f}; logs {logs / 1e6:.2f} MB, {logs / rows[-1]['step']:.0f} bytes "
        "a step\n"
    )
    return int(growth >= MOST_GROWTH or files >= 1)


def main() -> int:
    """Run, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20_000)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    samples = Samples(chosen.out / "samples.json")
    build = elip.training.cli.build_callbacks
    elip.training.cli.build_callbacks = lambda *given: [*build(*given), samples]
    arguments = options(
        chosen.out / "run", chosen.data, chosen.steps,
        trainer__val_check_interval=500, trainer__log_every_n_steps=50, data__eval_limit=64,
        data__train_limit=2000, model__meter__image_width=32, model__meter__text_width=32,
        model__meter__fusion_width=32, trainer__max_epochs=-1,
    )  # fmt: skip
    elip.training.cli.main(["fit", *arguments])
    return judge(samples.rows, chosen.out / "run")


if __name__ == "__main__":
    sys.exit(main())
