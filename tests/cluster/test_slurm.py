"""A small grid on a real SLURM: arrays, throttle, dependencies, failure, requeue, two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elip.provenance import cores
from tests.experiments.test_launch import launch, record_of, start, table, write

pytestmark = pytest.mark.slow

FIT: dict[str, Any] = {"resources": {"minutes": 5, "memory_gb": 0.3, "throttle": 2}}


def logs(grid: Path) -> str:
    return "\n".join(file.read_text() for file in grid.parent.glob("runs/*/.slurm/*.err"))


def steps(grid: Path, key: str) -> list[str]:
    stage, name = key.split("/")
    log = next(grid.parent.glob(f"runs/*/{stage}/{name}-????????/log.txt")).read_text()
    return [line for line in log.splitlines() if line.startswith("step")]


def test_arrays_throttle_dependencies_and_a_failing_cell(cluster: Path, tmp_path: Path) -> None:
    methods = {
        "Random": "Random", "ELIP": "ELIP", "ToMe": "ToMe",
        "bad": {"model.reducer.class_path": "ELIP", "fake.fail": True},
    }  # fmt: skip
    content = {
        "set": {"fake.steps": 20},
        "axes": {"reducer": methods},
        "stages": {"fit": FIT, "test": {**FIT, "after": "fit", "set": {"fake.steps": 1}}},
    }
    grid = write(tmp_path, content)
    process = start(grid, "--launcher", "slurm")
    most = _watch(process)
    said, _ = process.communicate()
    assert process.returncode == 1, said + logs(grid)
    assert most == 2  # of the array's four, no more than the throttle allows at once
    assert "fit/bad: failed: ValueError: mix is 2; it must lie in [0, 1]" in said
    assert "test/bad: skipped, since fit/bad failed" in said
    found = table(grid)
    columns = (found[name].to_pylist() for name in ("stage", "cell", "status"))
    assert list(zip(*columns, strict=True)) == [
        ("fit", "ELIP", "completed"), ("fit", "Random", "completed"), ("fit", "ToMe", "completed"),
        ("fit", "bad", "failed"), ("test", "ELIP", "completed"), ("test", "Random", "completed"),
        ("test", "ToMe", "completed"),
    ]  # fmt: skip
    # The same, in this machine's own processes, ends in the same table.
    (tmp_path / "local").mkdir()
    local = write(tmp_path / "local", content)
    assert launch(local)[0] == 1
    assert table(local).equals(found)


def test_requeued_cell_resumes_and_a_killed_launcher_comes_back(
    cluster: Path, tmp_path: Path
) -> None:
    content = {
        "set": {"fake.steps": 100},
        "axes": {"reducer": ["ELIP", "ToMe"]},
        "stages": {"fit": FIT, "test": {**FIT, "after": "fit", "set": {"fake.steps": 1}}},
    }
    grid = write(tmp_path, content)
    first = start(grid, "--launcher", "slurm")
    _wait_for(lambda: len(list(grid.parent.glob("runs/*/fit/ELIP-*/checkpoints/last.ckpt"))) == 1)
    first.kill()
    first.communicate()
    folder = next(grid.parent.glob("runs/*/fit/ELIP-*"))
    job = json.loads((folder / "job.json").read_text())["job"]
    subprocess.run(["scontrol", "requeue", job], check=True)
    status, said = launch(grid, "--launcher", "slurm")
    assert status == 0, said + logs(grid)
    assert table(grid)["status"].to_pylist() == ["completed"] * 4
    assert steps(grid, "fit/ELIP") == [f"step {number}" for number in range(1, 101)]
    assert "--ckpt_path last" in (folder / "log.txt").read_text()
    # Each run was queued once: the second launcher took over what the first had queued.
    scripts = [file.name for file in grid.parent.glob("runs/*/.slurm/[0-9]*_submission.sh")]
    assert len(scripts) == 2, scripts


def test_time_limit_is_met_by_saving_and_queueing_again(cluster: Path, tmp_path: Path) -> None:
    content = {"set": {"fake.steps": 100}, "axes": {"reducer": ["ELIP"]}, "stages": {"fit": FIT}}
    grid = write(tmp_path, content)
    process = start(grid, "--launcher", "slurm")
    _wait_for(lambda: len(list(grid.parent.glob("runs/*/fit/ELIP-*/checkpoints/last.ckpt"))) == 1)
    folder = next(grid.parent.glob("runs/*/fit/ELIP-*"))
    job = json.loads((folder / "job.json").read_text())["job"]
    # What SLURM sends shortly before the limit, or before it takes the node for somebody else.
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said + logs(grid)
    assert (folder / "log.txt").read_text().count("===") == 2
    assert len((folder / "attempts.jsonl").read_text().splitlines()) == 2
    assert steps(grid, "fit/ELIP") == [f"step {number}" for number in range(1, 101)]


@pytest.mark.skipif(cores() < 2, reason="needs two cores")
def test_two_processes_train_one_run(cluster: Path, tmp_path: Path) -> None:
    """The real command line: Lightning's DDP over the two tasks of one job."""
    root = Path(__file__).parents[2]
    resources = {**FIT["resources"], "memory_gb": 3.5, "minutes": 10}
    content = {
        "base": [f"{root}/experiments/elip_0.7.yaml", f"{root}/experiments/quick.yaml"],
        "set": {
            "trainer.accelerator": "cpu", "trainer.devices": 2, "trainer.strategy": "ddp",
            "trainer.max_steps": 2, "trainer.val_check_interval": 2, "data.eval_limit": 20,
            "data.train_limit": 200,
        },
        "axes": {"seed": [0]},
        "stages": {"fit": {"resources": resources}},
    }  # fmt: skip
    grid = write(tmp_path, content)
    search = f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-m", "experiments.launch", str(grid), "--launcher", "slurm",
         f"--runs={tmp_path}/runs"],
        capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONPATH": search},
        timeout=400, check=False,
    )  # fmt: skip
    files = "\n".join(file.read_text()[-3000:] for file in tmp_path.glob("runs/*/fit/*/log*.txt"))
    assert done.returncode == 0, done.stdout + done.stderr + logs(grid) + files
    record = record_of(grid, "fit/seed0")
    assert record.status == "completed"
    assert record.training.steps == 2
    assert "world_size" in files.lower() or "MEMBER: 2/2" in files


def _watch(process: subprocess.Popen[str]) -> int:
    """Wait for a process; return how many jobs the cluster ran at once meanwhile, at most."""
    most, until = 0, time.monotonic() + 200
    while process.poll() is None:
        assert time.monotonic() < until
        listed = subprocess.run(
            ["squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i"],
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        most = max(most, len(listed.split()))
        time.sleep(0.3)
    return most


def _wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
