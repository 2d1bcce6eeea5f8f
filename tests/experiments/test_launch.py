"""The launcher carries a grid to its end, whatever is killed on the way.

The runs are stand-ins (fake.py); the launcher is a process of its own, as a person starts it.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from elip.record import Record, read_record
from experiments.results import gather

ROOT = Path(__file__).parents[2]
LAUNCH = (
    "import sys; from experiments.launch import main; "
    "sys.exit(main(sys.argv[1:], worker='tests.experiments.fake'))"
)

STUDY: dict[str, Any] = {
    "set": {"fake.steps": 3},
    "axes": {"reducer": ["Identity", "Random", "ELIP"], "keep_ratio": [0.5, 0.7]},
    "stages": {"fit": {}, "test": {"after": "fit", "checkpoint": "last", "set": {"fake.steps": 1}}},
}
SMALL = {**STUDY, "axes": {"reducer": ["Identity", "ELIP"], "seed": [0]}}


def write(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def start(grid: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"
                   if "PYTHONPATH" in os.environ else str(ROOT), "COLUMNS": "80"}  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(grid), f"--runs={grid.parent}/runs", *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip


def launch(grid: Path, *options: str) -> tuple[int, str]:
    process = start(grid, "--jobs=4", *options)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def table(grid: Path) -> pa.Table:
    """All that a launch must end in, without what differs from one time to the next."""
    found, bad = gather(grid.parent / "runs")
    assert not bad
    kept = ["stage", "name", "run_id", "status", "test/vqa_score"]
    return found.select([name for name in kept if name in found.column_names])


def folder_of(grid: Path, key: str) -> Path:
    (found,) = grid.parent.glob(f"runs/study/{key}-????????")
    return found


def record_of(grid: Path, key: str) -> Record:
    return read_record(folder_of(grid, key))


def steps(grid: Path, key: str) -> list[int]:
    log = (folder_of(grid, key) / "log.txt").read_text()
    return [int(line.split()[1]) for line in log.splitlines() if line.startswith("step")]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    grid = write(tmp_path_factory.mktemp("undisturbed"), STUDY)
    status, said = launch(grid)
    assert status == 0, said
    found = table(grid)
    assert found["status"].to_pylist() == ["completed"] * 10  # (1 + 2 + 2) x 2 stages
    assert pq.read_table(grid.parent / "runs/study/table.parquet").num_rows == 10
    return found


def test_nothing_is_run_twice_and_a_changed_run_is_another(tmp_path: Path) -> None:
    grid = write(tmp_path, SMALL)
    assert launch(grid)[0] == 0
    once = {log: log.read_text() for log in tmp_path.glob("runs/study/*/*/log.txt")}
    assert len(once) == 4
    status, said = launch(grid)
    assert status == 0
    assert "study: 4 done, 0 to go." in said
    status, said = launch(write(tmp_path, {**SMALL, "axes": {**SMALL["axes"], "seed": [0, 1]}}))
    assert "study: 4 done, 4 to go." in said
    assert {log: log.read_text() for log in once} == once
    _, said = launch(grid, "--set", "fake.steps=1", "--only", "fit/*")
    assert "8 runs in the table are no longer in the grid file." in said
    assert "study: 4 done, 0 to go.\nTable" in said


def test_dry_run_starts_nothing(tmp_path: Path) -> None:
    grid = write(tmp_path, {**SMALL, "stages": {**SMALL["stages"], "plain": {"command": "test"}}})
    status, said = launch(grid, "--dry-run")
    assert status == 0
    assert said.splitlines() == [
        f"to run  {stage}/{name}-seed0"
        for stage in ("fit", "test", "plain")
        for name in ("Identity", "ELIP")
    ] + ["6 runs in study: 6 to run.", "2 of them in 1 sweeps."]
    assert not (tmp_path / "runs").exists()


def test_a_wrong_option_starts_nothing_and_is_reported_once(tmp_path: Path) -> None:
    status, said = launch(write(tmp_path, SMALL), "--set", "modle.x=1")
    assert status == 2
    assert "fit/Identity-seed0: no option modle.x (1 more like it)" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("seed", [0, 1])
def test_launcher_killed_three_times_gives_the_same_table(
    tmp_path: Path, undisturbed: pa.Table, seed: int
) -> None:
    grid = write(tmp_path, STUDY)
    draw = random.Random(seed)
    for _ in range(3):
        process = start(grid, "--jobs=2")
        time.sleep(draw.uniform(0.8, 2.5))
        process.kill()
        process.communicate()
    status, said = launch(grid)
    assert status == 0, said
    assert table(grid).equals(undisturbed)
    # No run was ever at work twice at once: each step was done once.
    for folder in grid.parent.glob("runs/study/fit/*"):
        assert steps(grid, f"fit/{folder.name[:-9]}") == [1, 2, 3]


def test_ctrl_c_stops_and_the_same_command_resumes(tmp_path: Path) -> None:
    grid = write(tmp_path, {**STUDY, "set": {"fake.steps": 40}})
    process = start(grid, "--jobs=2")
    wait_for(lambda: len(list(grid.parent.glob("runs/*/fit/*/checkpoints/last.ckpt"))) == 2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Stopped. The same command resumes." in said
    assert record_of(grid, "fit/Identity").status == "interrupted"
    launch(grid, "--only", "fit/Identity")
    assert record_of(grid, "fit/Identity").status == "completed"
    assert steps(grid, "fit/Identity") == list(range(1, 41))


def test_a_failing_and_a_killed_run_among_others(tmp_path: Path) -> None:
    axes = {
        "reducer": {
            "Identity": "Identity",
            "bad": {"model.reducer": "ELIP", "fake.fail": True},
            "killed": {"model.reducer": "ELIP", "fake.killed": True},
        }
    }
    grid = write(tmp_path, {**STUDY, "axes": axes})
    status, said = launch(grid)
    assert status == 1
    assert "fit/bad failed: ValueError: mix is 2; it must lie in [0, 1]" in said
    assert "test/bad skipped: fit/bad is not done" in said
    assert "Killed by SIGKILL. Out of memory?" in said
    assert "2 done, 2 failed, 2 skipped, 0 to go." in said
    bad, killed = record_of(grid, "fit/bad"), record_of(grid, "fit/killed")
    assert "about to fail" in bad.log_tail
    assert (killed.status, killed.reducer, killed.datasets) == ("failed", "ELIP", ("shapes",))
    assert killed.log_tail[-1] == "step 1"
    assert table(grid)["status"].to_pylist() == ["completed", "failed", "failed", "completed"]
    # Failed runs are tried again when that is asked for, with the command that was printed.
    assert "starts" not in launch(grid)[1]
    retry = re.search(r"Retry: +python -m experiments.launch (.*)", said.replace("\n", " "))
    assert retry is not None
    assert retry[1].split()[-1] == "--retry-failed"
    status, said = launch(grid, "--retry-failed")
    assert "4 done, 1 failed, 1 skipped, 0 to go." in said
    assert steps(grid, "fit/killed") == [1, 2, 3]


def test_runs_that_differ_in_the_method_only_are_one_sweep(tmp_path: Path) -> None:
    grid = write(tmp_path, {**SMALL, "axes": {**SMALL["axes"], "seed": [0, 1]},
                            "stages": {"test": {}, "fit": {}}})  # fmt: skip
    status, said = launch(grid)
    assert status == 0
    assert said.count("and 1 more in one sweep done") == 2
    logs = list(tmp_path.glob("runs/study/test/*.log"))
    assert len(logs) == 2
    assert all("a sweep of 2" in log.read_text() for log in logs)


def test_many_runs_in_one_sweep_are_split_among_the_slots(tmp_path: Path) -> None:
    axes = {"reducer": ["Random", "ELIP"], "keep_ratio": [n / 10 for n in range(1, 10)]}
    grid = write(tmp_path, {"axes": axes, "set": {"fake.steps": 0}, "stages": {"test": {}}})
    assert "18 of them in 2 sweeps." in launch(grid, "--dry-run")[1]
    status, said = launch(grid)
    assert status == 0
    assert said.count("and 8 more in one sweep done") == 2
    assert launch(grid, "--jobs=1", "--dry-run")[1].splitlines()[-1] == "18 runs in study: 18 done."


def test_a_run_of_several_devices_takes_as_many_slots(tmp_path: Path) -> None:
    grid = write(tmp_path, {**SMALL, "set": {"trainer.devices": 2}})
    status, said = launch(grid, "--jobs=1")
    assert status == 2
    assert "needs 2 devices on 1 nodes; this machine has 1 slots. Use --jobs 2" in said
    assert launch(grid, "--jobs=2")[0] == 0


def test_a_long_name_in_any_script_is_a_folder(tmp_path: Path) -> None:
    long = "第一组实验：使用随机增强的图像，学习率为万分之一" * 5
    grid = write(tmp_path, {"axes": {"data.x": {f"{long}甲": 1, f"{long}乙": 2}},
                            "stages": {"test": {}}})  # fmt: skip
    assert launch(grid)[0] == 0
    assert len(list(tmp_path.glob("runs/study/test/第一组*/run.json"))) == 2


def test_only_takes_parents_along(tmp_path: Path) -> None:
    status, said = launch(write(tmp_path, STUDY), "--dry-run", "--only", "test/ELIP-*0.5")
    assert status == 0
    assert said.splitlines()[:2] == [f"to run  {s}/ELIP-keep_ratio0.5" for s in ("fit", "test")]
    _, said = launch(tmp_path / "study.yaml", "--dry-run", "--only", "reducer=Identity|ELIP")
    assert "6 runs in study" in said
    status, said = launch(tmp_path / "study.yaml", "--only", "reducer=Elip")
    assert status == 2
    assert "matches none of 10 runs" in said


def test_output_fits_80_columns(tmp_path: Path) -> None:
    labels = {f"a method with quite a long name {n}": {"model.reducer": "ELIP"} for n in "ab"}
    axes = {"reducer": {"Identity": "Identity", **labels},
            "keep_ratio": [n / 20 for n in range(1, 20)]}  # fmt: skip
    grid = write(tmp_path, {"axes": axes, "set": {"fake.steps": 0}, "stages": {"test": {}}})
    status, said = launch(grid)
    assert status == 0
    lines = said[said.index("test, vqa_score") : said.index("study: 39 done")].splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("No reduction") for line in lines) == 3  # 19 columns, 8 at a time
