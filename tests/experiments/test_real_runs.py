"""Grids of real runs: killed at random moments, failing, out of memory, preempted."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from experiments.attempt import acquire

from experiments.results import gather
from tests.experiments.test_launch import CHANGING, ROOT, attempts, record_of, write

pytestmark = pytest.mark.slow

TIMED = (
    "latency_ms", "latency_p95_ms", "latency_identity_ms", "examples_per_s", "peak_memory_mb",
    "peak_gpu_memory_mb", "train_s", "train_images_per_s",
)  # fmt: skip

STUDY: dict[str, Any] = {
    "base": [f"{ROOT}/experiments/elip_0.7.yaml", f"{ROOT}/experiments/quick.yaml"],
    "set": {"trainer.max_steps": 12},
    "axes": {"reducer": ["Identity", "Random", "ELIP"], "keep_ratio": [0.5]},
    "stages": {"fit": {}, "test": {"after": "fit", "checkpoint": "last"}},
}


def start(grid: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.launch", str(grid), "--jobs=2",
         f"--runs={grid.parent}/runs"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"},
    )  # fmt: skip


def launch(grid: Path) -> tuple[int, str]:
    process = start(grid)
    try:
        said, _ = process.communicate(timeout=900)
    finally:
        process.terminate()  # where it took too long; it stops its runs
        process.wait()
    return process.returncode, said


def table(grid: Path) -> pa.Table:
    """All that a grid must end in, without times."""
    found, bad = gather(grid.parent / "runs")
    assert not bad
    # What is tested names its checkpoint by path, and the two grids lie in two folders.
    found = found.drop_columns([*CHANGING, *TIMED, "parent", "config_hash"])
    return found.sort_by([("stage", "ascending"), ("cell", "ascending")])


def running(grid: Path) -> list[int]:
    """Process groups of the runs that are at work."""
    groups = []
    for path in grid.parent.glob("runs/*/*/*/.lock"):
        lock = acquire(path)
        if lock is not None:
            lock.close()
        elif text := path.read_text():
            groups.append(json.loads(text)["pid"])
    return groups


def test_launcher_and_runs_killed_three_times_give_the_same_table(tmp_path: Path) -> None:
    undisturbed = write(tmp_path / "undisturbed", STUDY)
    status, said = launch(undisturbed)
    assert status == 0, said
    grid = write(tmp_path / "killed", STUDY)
    draw, killed = random.Random(0), 0
    while killed < 3:  # a moment between two runs kills the launcher only, and does not count
        process = start(grid)
        while not running(grid):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        time.sleep(draw.uniform(0.0, 2.0))
        process.kill()
        process.communicate()
        for group in running(grid):
            os.killpg(group, signal.SIGKILL)
            killed += 1
    status, said = launch(grid)
    assert status == 0, said
    found, expected = table(grid), table(undisturbed)
    assert found.num_rows == 6
    assert found.to_pylist() == expected.to_pylist()
    assert found.schema.equals(expected.schema, check_metadata=True)


def test_a_failing_a_hungry_and_a_preempted_run_among_others(tmp_path: Path) -> None:
    here = "tests.experiments.misbehaving"
    methods = {
        "Random": "Random",
        "bad": {"class_path": f"{here}.BadOption", "init_args": {"mix": 2.0}},
        "hungry": {"class_path": f"{here}.Hungry", "init_args": {}},
        "preempted": {
            "class_path": f"{here}.Preempted", "init_args": {"mark": f"{tmp_path}/mark"},
        },
    }  # fmt: skip
    grid = write(tmp_path, {**STUDY, "axes": {"reducer": methods, "keep_ratio": [0.5]}})
    status, said = launch(grid)
    assert status == 1, said
    bad, hungry = (record_of(grid, f"fit/{name}-keep_ratio0.5") for name in ("bad", "hungry"))
    assert (bad.status, bad.error) == ("failed", "ValueError: mix is 2.0; it must lie in [0, 1].")
    assert any("in forward" in line for line in bad.log_tail)
    assert hungry.status == "failed"
    assert "memory" in hungry.error
    for name in ("bad", "hungry"):
        assert f"test/{name}-keep_ratio0.5: skipped, since fit/{name}-keep_ratio0.5 failed" in said
    # The preempted one was stopped, went on, and gives what an undisturbed one gives.
    assert [each["status"] == 0 for each in attempts(grid)["fit/preempted-keep_ratio0.5"]] == [
        False, True,
    ]  # fmt: skip
    for stage in ("fit", "test"):
        stopped, other = (
            record_of(grid, f"{stage}/{name}-keep_ratio0.5") for name in ("preempted", "Random")
        )
        assert stopped.status == "completed"
        assert stopped.evaluations == other.evaluations
    columns = (table(grid)[name].to_pylist() for name in ("stage", "cell", "status"))
    assert [(a, b.split("-")[0], c) for a, b, c in zip(*columns, strict=True)] == [
        ("fit", "Random", "completed"), ("fit", "bad", "failed"), ("fit", "hungry", "failed"),
        ("fit", "preempted", "completed"), ("test", "Random", "completed"),
        ("test", "preempted", "completed"),
    ]  # fmt: skip
