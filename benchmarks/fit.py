"""Where the time of `fit` goes: forward, guard, backward, optimiser, data, and all the rest.

    python benchmarks/fit.py
    python benchmarks/fit.py --config experiments/random_0.7.yaml --steps 100

Runs the command line as it is, loggers, callbacks and record included, with a clock around each
part of a step. ``guard`` is what holding the reducer to its contract costs, ``rest`` what the
training loop itself does. The first steps are dropped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from torch.optim import AdamW

from elip.data.datamodule import Loader
from elip.model import guard
from elip.record import environment
from elip.training import cli
from elip.training.module import MeterModule
from elip.training.watch import ReducerWatch

_WARM_UP = 20


class Clock:
    """Adds up the time inside each part, one part inside another apart."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._running: list[float] = []

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a clock around it."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            self._running.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole, inside = time.perf_counter() - start, self._running.pop()
                self.spent[part] = self.spent.get(part, 0.0) + whole - inside
                if self._running:
                    self._running[-1] += whole

        return timed


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="experiments/elip_0.7.yaml")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/fit.json"))
    given = parser.parse_args()
    clock, marks = Clock(), list[tuple[float, dict[str, float]]]()
    forward, update, iterate = MeterModule.training_step, AdamW.step, Loader.__iter__

    def step(module: Any, batch: Any, index: int) -> Any:
        marks.append((time.perf_counter(), dict(clock.spent)))
        return clock.around("forward", forward)(module, batch, index)

    def optimise(optimizer: Any, closure: Callable[[], Any]) -> Any:
        # Lightning runs forward and backward in here, and what lies around them is its own.
        return clock.around("optimiser", update)(optimizer, clock.around("loop", closure))

    def batches(loader: Loader) -> Any:
        iterator = iterate(loader)
        following = clock.around("data", lambda: next(iterator, None))
        while (batch := following()) is not None:
            yield batch

    MeterModule.training_step = step
    MeterModule.backward = clock.around("backward", MeterModule.backward)
    ReducerWatch._look = clock.around("guard", ReducerWatch._look)
    guard.check = clock.around("guard", guard.check)
    AdamW.step = optimise
    Loader.__iter__ = batches
    with TemporaryDirectory() as folder:
        last = _WARM_UP + given.steps + 1
        cli.run(["fit", "--config", given.config, f"--trainer.default_root_dir={folder}",
                 f"--trainer.max_steps={last}", "--trainer.limit_val_batches=0",
                 "--trainer.enable_progress_bar=false"])  # fmt: skip
    rows = _rows(marks)
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.3g"))  # noqa: T201
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"machine": environment(), "rows": rows}, indent=1))


def _rows(marks: list[tuple[float, dict[str, float]]]) -> list[dict[str, Any]]:
    (start, before), (end, after) = marks[_WARM_UP], marks[-1]
    steps, whole = len(marks) - 1 - _WARM_UP, end - start
    parts = {name: after[name] - before[name] for name in before if name != "loop"}
    parts["rest"] = whole - sum(parts.values())
    return [
        {"part": name, "ms": 1e3 * spent / steps, "share": spent / whole}
        for name, spent in parts.items()
    ]


if __name__ == "__main__":
    main()
