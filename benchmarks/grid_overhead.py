"""What a grid of short runs costs beyond the runs themselves.

    python benchmarks/grid_overhead.py

An untrained tiny model is scored on a few built-in examples by several reducers, one run at a time:
once with the runs forked from one process that has imported the model (the launcher's way), once
with a process of its own for each. ``plan`` is reading and checking the grid alone, ``again`` the
same command when everything is done.
"""

from __future__ import annotations

import argparse
import io
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from elip.cost.show import tell
from experiments.launch import WARM
from experiments.launch import main as launch

HOME = Path(__file__).resolve().parent.parent


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/grid_overhead.json"))
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        grid = Path(folder) / "overhead.yaml"
        grid.write_text(yaml.safe_dump(_grid(given.runs, given.examples)))
        forked, fresh = Path(folder) / "forked", Path(folder) / "fresh"
        seconds = {
            "plan": _launch(grid, forked, True, "--dry-run"),
            "forked": _launch(grid, forked, True),
            "again": _launch(grid, forked, True),
            "fresh": _launch(grid, fresh, False),
        }
    runs = given.runs
    rows = [
        {"way": way, "s": s, "s a run": s / runs, "ratio to fresh": s / seconds["fresh"]}
        for way, s in seconds.items()
    ]
    tell(rows, given.out, f"A grid of {runs} runs, {given.examples} examples each")


def _grid(runs: int, examples: int) -> dict[str, object]:
    return {
        "base": str(HOME / "experiments" / "elip_0.7.yaml"),
        "set": {"data.eval_limit": examples, "data.root": str(HOME / "data")},
        "axes": {"reducer": ["Random"], "seed": list(range(runs))},
        "stages": {"test": {}},
    }


def _launch(grid: Path, runs: Path, warm: bool, *options: str) -> float:
    arguments = [str(grid), "--runs", str(runs), "--jobs", "1", *options]
    said = io.StringIO()
    start = time.perf_counter()
    with redirect_stdout(said), redirect_stderr(said):
        status = launch(arguments, warm=WARM if warm else None)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"The grid ended with status {status}:\n{said.getvalue()}")
    return seconds


if __name__ == "__main__":
    main()
