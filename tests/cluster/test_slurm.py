"""A small grid on a real SLURM: arrays, throttle, dependencies, failure, requeue, two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.test_launch import (
    ROOT,
    folder_of,
    launch,
    record_of,
    start,
    steps,
    table,
    wait_for,
    write,
)

pytestmark = pytest.mark.slow

FIT: dict[str, Any] = {"resources": {"minutes": 5, "memory_gb": 0.4, "throttle": 2}}
LONG: dict[str, Any] = {
    "set": {"fake.steps": 100},
    "axes": {"reducer": ["ELIP", "ToMe"]},
    "stages": {"fit": FIT, "test": {**FIT, "after": "fit", "set": {"fake.steps": 1}}},
}


def logs(grid: Path) -> str:
    files = [*grid.parent.glob("runs/*/.slurm/*.err"), *grid.parent.glob("runs/*/*/*/log*")]
    return "\n".join(f"{file}\n{file.read_text()[-2000:]}" for file in files)


def job_of(grid: Path, key: str) -> str:
    jobs = json.loads((grid.parent / "runs/study/.slurm/jobs.json").read_text())
    return str(jobs[folder_of(grid, key).name[-8:]])


def wait_for_checkpoint(grid: Path) -> None:
    wait_for(lambda: len(list(grid.parent.glob("runs/*/fit/ELIP-*/checkpoints/last.ckpt"))) == 1)


def test_arrays_throttle_dependencies_and_a_failing_cell(cluster: Path, tmp_path: Path) -> None:
    methods = {
        "Random": "Random", "ELIP": "ELIP", "ToMe": "ToMe",
        "bad": {"model.reducer": "ELIP", "fake.fail": True},
    }  # fmt: skip
    content = {**LONG, "set": {"fake.steps": 20}, "axes": {"reducer": methods}}
    content["stages"] = {**LONG["stages"], "sweep": {**FIT, "command": "test"}}
    grid = write(tmp_path / "a b's", content)  # a path that a shell would take apart
    process = start(grid, "--launcher", "slurm")
    most = _watch(process)
    said, _ = process.communicate()
    assert process.returncode == 1, said + logs(grid)
    assert most == 4  # two arrays at once, of each no more than the throttle allows
    assert "fit/bad failed: ValueError: mix is 2; it must lie in [0, 1]" in said
    assert "test/bad skipped: fit/bad is not done" in said
    found = table(grid)
    columns = (found[name].to_pylist() for name in ("stage", "status"))
    assert sorted(zip(*columns, strict=True)) == [
        ("fit", "completed"), ("fit", "completed"), ("fit", "completed"), ("fit", "failed"),
        ("sweep", "completed"), ("sweep", "completed"), ("sweep", "completed"),
        ("sweep", "failed"), ("test", "completed"), ("test", "completed"), ("test", "completed"),
    ]  # fmt: skip
    # The same grid on this machine ends in the same table.
    local = write(tmp_path / "local", content)
    assert launch(local)[0] == 1
    assert table(local).equals(found)


def test_requeued_run_resumes_and_a_killed_launcher_comes_back(
    cluster: Path, tmp_path: Path
) -> None:
    grid = write(tmp_path, LONG)
    first = start(grid, "--launcher", "slurm")
    wait_for_checkpoint(grid)
    first.kill()
    first.communicate()
    subprocess.run(["scontrol", "requeue", job_of(grid, "fit/ELIP")], check=True)
    status, said = launch(grid, "--launcher", "slurm")
    assert status == 0, said + logs(grid)
    assert table(grid)["status"].to_pylist() == ["completed"] * 4
    assert steps(grid, "fit/ELIP") == list(range(1, 101))
    # The second launcher queued nothing: it took over what the first had queued.
    assert len(list(grid.parent.glob("runs/*/.slurm/[0-9]*_submission.sh"))) == 2


def test_time_limit_is_met_by_saving_and_queueing_again(cluster: Path, tmp_path: Path) -> None:
    grid = write(tmp_path, {**LONG, "axes": {"reducer": ["ELIP"]}})
    process = start(grid, "--launcher", "slurm")
    wait_for_checkpoint(grid)
    # What SLURM sends shortly before the limit, or before it takes the node for somebody else.
    subprocess.run(["scancel", "--signal=USR2", job_of(grid, "fit/ELIP")], check=True)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said + logs(grid)
    assert (folder_of(grid, "fit/ELIP") / "log.txt").read_text().count("===") == 2
    assert steps(grid, "fit/ELIP") == list(range(1, 101))


def test_two_processes_train_one_run(cluster: Path, tmp_path: Path) -> None:
    """The real command line: Lightning's DDP over the two tasks of one job."""
    content = {
        "base": [f"{ROOT}/experiments/elip_0.7.yaml", f"{ROOT}/experiments/quick.yaml"],
        "set": {
            "trainer.accelerator": "cpu", "trainer.devices": 2, "trainer.strategy": "ddp",
            "trainer.max_steps": 2, "trainer.val_check_interval": 2, "data.eval_limit": 20,
            "data.train_limit": 200,
        },
        "axes": {"seed": [0]},
        "stages": {"fit": {"resources": {"minutes": 10, "memory_gb": 3.5}}},
    }  # fmt: skip
    grid = write(tmp_path, content)
    search = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-m", "experiments.launch", str(grid), "--launcher", "slurm",
         f"--runs={tmp_path}/runs"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": search},
        timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + logs(grid)
    record = record_of(grid, "fit/seed0")
    assert (record.status, record.train_steps, record.processes) == ("completed", 2, 2)


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
