"""The launcher carries a grid to its end, whatever is killed on the way.

The runs are stand-ins (see fake.py); the launcher is a process of its own, as a person starts it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from elip.old_record import read_record
from experiments.attempt import ATTEMPTS_NAME, acquire, seconds_spent
from experiments.attempt import attempts as attempts_at
from experiments.grid import GridError
from experiments.results import gather

FAKE = Path(__file__).with_name("fake.py")
ROOT = Path(__file__).parents[2]
CHANGING = ("attempts", "wall_s", "folder", "started")

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


def start(grid: Path, *options: str, how: str = "launch") -> subprocess.Popen[str]:
    search = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": search, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, str(FAKE), how, str(grid), f"--runs={grid.parent}/runs", *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip


def launch(grid: Path, *options: str) -> tuple[int, str]:
    process = start(grid, "--jobs", "4", *options)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def table(grid: Path) -> pa.Table:
    """All that a launch must end in, without what differs from one time to the next."""
    found, bad = gather(grid.parent / "runs")
    assert not bad
    found = found.drop_columns([*CHANGING, "parent"])
    return found.sort_by([("stage", "ascending"), ("cell", "ascending")])


def attempts(grid: Path) -> dict[str, list[dict[str, Any]]]:
    files = sorted(grid.parent.glob("runs/*/*/*/attempts.jsonl"))
    return {
        f"{file.parents[1].name}/{file.parent.name[:-9]}": [
            json.loads(line) for line in file.read_text().splitlines()
        ]
        for file in files
    }


def record_of(grid: Path, key: str) -> Any:
    stage, name = key.split("/")
    folder = next(grid.parent.glob(f"runs/*/{stage}/{name}-????????"))
    return read_record(folder if stage.startswith("fit") else folder / "test")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    grid = write(tmp_path_factory.mktemp("undisturbed"), STUDY)
    status, said = launch(grid)
    assert status == 0, said
    found = table(grid)
    assert found.num_rows == 10  # (1 + 2 + 2) x 2 stages
    assert pq.read_table(grid.parent / "runs/study/table.parquet").num_rows == 10
    assert found["status"].to_pylist() == ["completed"] * 10
    return found


def test_nothing_is_run_twice(tmp_path: Path) -> None:
    grid = write(tmp_path, SMALL)
    assert launch(grid)[0] == 0
    once = attempts(grid)
    status, said = launch(grid)
    assert status == 0
    assert "4 runs, 4 done before" in said
    assert attempts(grid) == once
    # A changed run is run; the others are not.
    changed = {**SMALL, "axes": {**SMALL["axes"], "seed": [0, 1]}}
    status, said = launch(write(tmp_path, changed))
    assert "8 runs, 4 done before" in said
    assert {key: value for key, value in attempts(grid).items() if "seed0" in key} == once


def test_finished_runs_of_other_inputs_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    read = tmp_path / "inputs.json"
    old = {"fit": {"data": "1", "code of Mine": "1"}, "test": {"data": "1", "tokenizer": "1"}}
    read.write_text(json.dumps(old))
    grid = write(tmp_path, {**SMALL, "set": {"fake.inputs": str(read)}})
    assert launch(grid)[0] == 0
    once = attempts(grid)
    assert launch(grid)[0] == 0
    read.write_text(json.dumps({"fit": {"code of Mine": "2"}, "test": {"data": "2"}}))
    status, said = launch(grid, "--retry-failed")
    assert status == 2
    assert "4 of 4 finished runs were made from other inputs than there are now." in said
    told = {line.partition(": ")[2] for line in said.splitlines() if "/runs/study/" in line}
    assert told == {"code of Mine", "data, code of Mine of fit"}
    assert "give the grid file another name, or --runs another folder" in said
    assert attempts(grid) == once
    status, dry = launch(grid, "--dry-run")
    assert status == 0
    assert "4 of 4 finished runs were made from other inputs than there are now." in dry
    # A test says what the weights that it scored were made from, wherever these are now.
    shutil.rmtree(tmp_path / "runs" / "study" / "fit")
    status, said = launch(grid)
    assert status == 2
    assert "2 of 2 finished runs" in said
    # Made anew elsewhere or in place of the old ones, or with the old inputs.
    assert launch(grid, f"--runs={tmp_path}/others")[0] == 0
    read.write_text(json.dumps(old))
    status, said = launch(grid)
    assert status == 0
    assert "4 runs, 2 done before." in said


def test_finished_runs_that_do_not_say_what_they_read_are_kept(tmp_path: Path) -> None:
    read = tmp_path / "inputs.json"
    read.write_text(json.dumps({"fit": {}, "test": {}}))
    grid = write(tmp_path, {**SMALL, "set": {"fake.inputs": str(read)}})
    assert launch(grid)[0] == 0
    read.write_text(json.dumps({"fit": {"data": "1"}, "test": {"data": "1"}}))
    status, said = launch(grid)
    assert status == 0
    assert "4 runs, 4 done before." in said


def test_runs_of_an_earlier_plan_are_marked_in_the_table(tmp_path: Path) -> None:
    grid = write(tmp_path, SMALL)
    path = tmp_path / "runs" / "study" / "table.parquet"
    _, said = launch(grid)
    assert "earlier plan" not in said
    assert pq.read_table(path)["planned"].to_pylist() == [True] * 4
    # What a filter leaves out is planned all the same.
    _, said = launch(grid, "--only", "fit/ELIP-*")
    assert "earlier plan" not in said
    assert pq.read_table(path)["planned"].to_pylist() == [True] * 4
    _, said = launch(grid, "--set", "fake.steps=1", "--only", "fit/*")
    assert "Table of 6 runs" in said
    assert "4 of them are of an earlier plan" in said
    rows = pq.read_table(path).select(["planned", "stage", "cell_id"]).to_pylist()
    assert sorted((row["stage"], row["planned"]) for row in rows) == [
        ("fit", False), ("fit", False), ("fit", True), ("fit", True), ("test", False),
        ("test", False),
    ]  # fmt: skip
    # Of the folder alone nobody knows what is planned.
    found, _ = gather(tmp_path / "runs")
    assert found["planned"].to_pylist() == [None] * 6


@pytest.mark.parametrize(("seed", "how"), [(0, "launch"), (1, "launch"), (2, "cold")])
def test_launcher_killed_three_times_gives_the_same_table(
    tmp_path: Path, undisturbed: pa.Table, seed: int, how: str
) -> None:
    grid = write(tmp_path, STUDY)
    draw = random.Random(seed)
    for _ in range(3):
        process = start(grid, "--jobs", "2", how=how)
        time.sleep(draw.uniform(0.8, 2.2))
        process.kill()
        process.communicate()
    status, said = launch(grid)
    assert status == 0, said
    assert table(grid).equals(undisturbed)
    # No run was ever at work twice at once: each step was done once, or again after a death.
    for log in grid.parent.glob("runs/*/fit/*/log.txt"):
        steps = [line for line in log.read_text().splitlines() if line.startswith("step")]
        assert steps == ["step 1", "step 2", "step 3"], log


def test_worker_and_launcher_killed_give_the_same_table(
    tmp_path: Path, undisturbed: pa.Table
) -> None:
    grid = write(tmp_path, STUDY)
    draw = random.Random(3)
    for _ in range(3):
        process = start(grid, "--jobs", "2")
        time.sleep(draw.uniform(1.0, 2.0))
        process.kill()
        process.communicate()
        for lock in grid.parent.glob("runs/*/*/*/.lock"):
            held = acquire(lock)
            if held is None:
                os.killpg(json.loads(lock.read_text())["pid"], signal.SIGKILL)
            else:
                held.close()
    status, said = launch(grid)
    assert status == 0, said
    assert table(grid).equals(undisturbed)


def test_forking_process_killed_gives_the_same_table(tmp_path: Path, undisturbed: pa.Table) -> None:
    grid = write(tmp_path, STUDY)
    process = start(grid, "--jobs", "2")
    _wait_for(lambda: list(grid.parent.glob("runs/*/fit/*/checkpoints/last.ckpt")))
    (warm,) = [pid for pid in _children(process.pid) if b"warm" in _command(pid)]
    os.kill(warm, signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert table(grid).equals(undisturbed)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in text.split()]


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_ctrl_c_stops_and_goes_on(tmp_path: Path) -> None:
    grid = write(tmp_path, {**STUDY, "set": {"fake.steps": 40}})
    process = start(grid, "--jobs", "2")
    _wait_for(lambda: len(list(grid.parent.glob("runs/*/fit/*/checkpoints/last.ckpt"))) == 2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said.count("stopped; start again to go on") == 2
    assert record_of(grid, "fit/Identity").status == "interrupted"
    _, said = launch(grid, "--only", "fit/Identity")
    assert said.count("goes on") == 1
    log = next(grid.parent.glob("runs/*/fit/Identity-*/log.txt")).read_text()
    assert [line for line in log.splitlines() if line.startswith("step")] == [
        f"step {number}" for number in range(1, 41)
    ]


def test_ctrl_c_while_the_grid_is_checked_is_one_line(tmp_path: Path) -> None:
    grid = write(tmp_path, SMALL)
    slow = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    code = (
        "import signal, sys; from experiments.launch import main\n"
        # Whoever starts the tests in the background has it ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.exit(main([{str(grid)!r}], checker=(sys.executable, '-c', {slow!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (130, "Stopped. Start again to go on.\n")
    assert done.stderr == ""


def test_failing_cell_is_isolated_and_said(tmp_path: Path) -> None:
    axes = {
        "reducer": {
            "Identity": "Identity",
            "bad": {"model.reducer.class_path": "ELIP", "fake.fail": True},
        }
    }
    grid = write(tmp_path, {**STUDY, "axes": axes})
    status, said = launch(grid)
    assert status == 1
    assert "fit/bad: failed: ValueError: mix is 2; it must lie in [0, 1]" in said
    assert "test/bad: skipped, since fit/bad failed" in said
    assert "test/Identity: done" in said
    record = record_of(grid, "fit/bad")
    assert record.status == "failed"
    assert record.error == "ValueError: mix is 2; it must lie in [0, 1]"
    assert "about to fail" in record.log_tail
    assert record.reducer == "ELIP"
    assert record.datasets == ()
    assert table(grid)["status"].to_pylist() == ["completed", "failed", "completed"]
    # It is not tried again unless that is asked for; then its children come along.
    status, said = launch(grid)
    assert status == 1
    assert "starts" not in said
    assert launch(grid, "--retry-failed")[0] == 1
    assert len(attempts(grid)["fit/bad"]) == 2
    assert len(list(grid.parent.glob("runs/*/fit/bad-*/run-1.json"))) == 1


@pytest.mark.parametrize(
    ("behaviour", "error", "tries"),
    [
        ({"fake.memory": True}, "MemoryError: ", 1),
        ({"fake.killed": "always"}, "Killed from outside (SIGKILL), 3 times in a row.", 3),
    ],
)
def test_out_of_memory(tmp_path: Path, behaviour: dict[str, Any], error: str, tries: int) -> None:
    axes = {"reducer": {"ToMe": "ToMe", "big": {"model.reducer.class_path": "ELIP", **behaviour}}}
    grid = write(tmp_path, {**STUDY, "axes": axes})
    status, _ = launch(grid)
    assert status == 1
    record = record_of(grid, "fit/big")
    assert record.status == "failed"
    assert record.error.startswith(error)
    assert len(attempts(grid)["fit/big"]) == tries
    assert record_of(grid, "test/ToMe").status == "completed"


@pytest.mark.parametrize("behaviour", [{"fake.killed": "once"}, {"fake.preempted": True}])
def test_preempted_cell_resumes(tmp_path: Path, behaviour: dict[str, Any]) -> None:
    content = {**SMALL, "stages": {"fit": {"set": behaviour}, "test": {"after": "fit"}}}
    grid = write(tmp_path, content)
    status, said = launch(grid)
    assert status == 0, said
    assert "fit/ELIP-seed0: was killed from outside; it is started again" in said
    assert "fit/ELIP-seed0: goes on" in said
    log = next(grid.parent.glob("runs/*/fit/ELIP-seed0-*/log.txt")).read_text()
    assert [line for line in log.splitlines() if line.startswith("step")] == [
        "step 1", "step 2", "step 3",
    ]  # fmt: skip


def test_dry_run_starts_nothing_and_knows_times(tmp_path: Path) -> None:
    price = {"gflops": 50.0, "examples": 7.2e6, "tera_per_second": 100.0}
    fit = {**SMALL["stages"]["fit"], "price": price}
    grid = write(tmp_path, {**SMALL, "stages": {**SMALL["stages"], "fit": fit}})
    status, said = launch(grid, "--dry-run")
    assert status == 0
    assert not (tmp_path / "runs").exists()
    assert "4 runs in study: 0 done, 4 to run." in said
    assert "About 2.0 h one after the other" in said
    assert "Of 2 of them nothing is known" in said
    assert launch(grid, "--only", "Identity-*")[0] == 0
    status, said = launch(grid, "--dry-run")
    assert "4 runs in study: 2 done, 2 to run." in said
    assert "nothing is known" not in said
    assert "Passed over" not in said
    next(tmp_path.glob("runs/*/fit/*/cell.json")).write_text("{")
    _, said = launch(grid, "--dry-run")
    assert "Passed over: the times of 1 runs whose cell.json is damaged." in said


def test_a_typo_in_one_cell_stops_everything(tmp_path: Path) -> None:
    axes = {"reducer": {"ELIP": "ELIP", "bad": {"model.reducer.class_path": "ELIP", "modle.x": 1}}}
    grid = write(tmp_path, {**STUDY, "axes": axes})
    status, said = launch(grid)
    assert status == 2
    assert "2 of 4 runs cannot start, so none was started:" in said
    assert "fit bad: no option modle" in said
    assert not (tmp_path / "runs").exists()


def test_one_launcher_a_grid(tmp_path: Path) -> None:
    grid = write(tmp_path, {**SMALL, "set": {"fake.steps": 40}})
    first = start(grid, "--jobs", "1")
    _wait_for(lambda: list(grid.parent.glob("runs/*/fit/*/log.txt")))
    status, said = launch(grid)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=30)
    assert status == 2
    assert f"is being launched already, by process {first.pid}" in said


def test_damaged_record_is_a_failure_that_can_be_retried(tmp_path: Path) -> None:
    grid = write(tmp_path, SMALL)
    assert launch(grid)[0] == 0
    whole = table(grid)
    next(tmp_path.glob("runs/*/test/ELIP-*/test/run.json")).write_text('{"schema": 1')
    status, said = launch(grid)
    assert status == 1
    assert "half written or damaged" in said
    assert launch(grid, "--retry-failed")[0] == 0
    assert table(grid).equals(whole)


def test_overhead_of_a_cell_is_small(tmp_path: Path) -> None:
    """What the launcher adds to the time of its child processes, at one run at a time."""
    content = {"axes": {"reducer": ["ELIP"], "seed": list(range(10))}, "stages": {"fit": {}}}
    grid = write(tmp_path, content)
    assert launch(grid, "--only", "seed=0")[0] == 0  # also makes the check's files warm
    process = start(grid, "--jobs", "1")
    began = time.monotonic()
    said, _ = process.communicate(timeout=120)
    wall = time.monotonic() - began
    assert process.returncode == 0, said
    inside = sum(each[0]["seconds"] for key, each in attempts(grid).items() if "seed0" not in key)
    again = time.monotonic()
    assert launch(grid)[0] == 0
    fixed = time.monotonic() - again
    overhead = (wall - inside - fixed) / 9
    assert overhead < 0.5


def _wait_for(condition: Any, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*given: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(GridError, match=r"cannot be locked: .*No locks available"):
        acquire(tmp_path / ".lock")


def test_an_attempt_whose_line_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    assert seconds_spent(attempts_at(tmp_path)) is None
    whole = [{"started": "then", "seconds": seconds, "status": 0} for seconds in (1.5, 2.0)]
    text = "\n".join(json.dumps(each) for each in whole) + '\n{"started": "th'
    text += '\n5\n{"started": "then"}\n{"started": "then", "seconds": "x", "status": 0}\n\xff'
    (tmp_path / ATTEMPTS_NAME).write_text(text, encoding="latin-1")
    assert attempts_at(tmp_path) == whole
    assert seconds_spent(attempts_at(tmp_path)) == 3.5


def test_an_attempt_is_noted_behind_a_line_that_was_cut_short(tmp_path: Path) -> None:
    grid = write(tmp_path, {**SMALL, "axes": {"reducer": ["ELIP"]}, "stages": {"fit": {}}})
    assert launch(grid)[0] == 0
    (notes,) = grid.parent.glob(f"runs/*/*/*/{ATTEMPTS_NAME}")
    (whole,) = attempts_at(notes.parent)
    notes.write_text('{"started": "th')
    (notes.parent / "run.json").unlink()
    assert launch(grid)[0] == 0
    (again,) = attempts_at(notes.parent)
    assert again["status"] == whole["status"] == 0
