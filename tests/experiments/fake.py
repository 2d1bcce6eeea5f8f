"""A stand-in for `experiments.sweep`: parses and runs without the model, in a moment.

A run does 0.05 s of work a step, keeps a checkpoint, and leaves a record whose score is a function
of its options. Options below ``fake.`` make it misbehave.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from elip.identity import digest, run_id
from elip.record import Evaluation, Record, Status, write_record
from experiments.grid import Cell, Draft
from experiments.jobs import now

SHELF = ("ELIP", "Identity", "Random", "ToMe")
OPTIONS = ("model", "data", "trainer", "seed_everything", "fake", "ckpt_path")
STEP = 0.05


def shelf() -> list[str]:
    return list(SHELF)


def _options(args: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """Options by dotted name; files lie where they stand."""
    found: dict[str, Any] = {}
    for each in args:
        name, _, text = each.removeprefix("--").partition("=")
        if name == "config":
            found |= {k: v for k, v in yaml.safe_load(Path(text).read_text()).items()}
        else:
            found[name] = yaml.safe_load(text)
    return found


def parse_draft(draft: Draft, root: Path) -> Cell | str:
    options = _options(draft.args)
    for name in options:
        if name.split(".")[0] not in OPTIONS:
            return f"no option {name}"
    labels = dict(draft.labels)
    if options.get("model.reducer") == "Identity":
        labels.pop("keep_ratio", None)
        options.pop("model.schedule.keep_ratio", None)
    reducer = options.get("model.reducer", "Identity")
    config = {
        "seed_everything": options.get("seed_everything", 0),
        "model": {"task": {"class_path": "elip.tasks.VQA"}, "reducer": {"class_path": reducer}},
        "data": {"datasets": "shapes"},
        "trainer": {"devices": options.get("trainer.devices", 1), "num_nodes": 1},
    }
    identity = run_id(draft.stage.command, options, draft.parent_id)
    args = [f"--{k}={v}" for k, v in options.items()]
    parsed = SimpleNamespace(run_id=identity, stated=options, config=config)
    return draft.cell(root, labels, args, parsed)


class Stopped(Exception):
    """The run was asked to stop."""


def _stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Stopped


def sweep(grid: str, cells: tuple[Cell, ...], arguments: list[list[str]]) -> int:
    sys.stdout.write(f"a sweep of {len(cells)}\n")
    return max(
        run(args, grid, cell.stage.name, cell.labels)
        for cell, args in zip(cells, arguments, strict=True)
    )


def run(args: list[str], grid: str, stage: str, axes: dict[str, str]) -> int:
    options = _options(args[1:])
    folder = Path(options["trainer.default_root_dir"])
    checkpoint = folder / "checkpoints" / "last.ckpt"
    done = int(checkpoint.read_text()) if options.get("ckpt_path") == "last" else 0
    for name in ("model.weights", "ckpt_path"):
        if options.get(name, "last") != "last":
            Path(options[name]).read_text()
    status, error = "completed", None
    signal.signal(signal.SIGTERM, _stop)
    try:
        for step in range(done, int(options.get("fake.steps", 2))):
            time.sleep(STEP)
            _misbehave(options, step, folder)
            if args[0] == "fit":
                _keep(checkpoint, step + 1)
    except Stopped:
        status = "interrupted"
    except ValueError as problem:
        status, error = "failed", f"ValueError: {problem}"
    labels = {"grid": grid, "stage": stage, "axes": axes}
    record = _record(args[0], labels, options, status, error)  # type: ignore[arg-type]
    write_record(record, folder)
    return int(status != "completed")


def _keep(checkpoint: Path, step: int) -> None:
    """Keep a checkpoint and say so; a request to stop waits until both are done."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    for path in (checkpoint, checkpoint.with_name("best.ckpt")):
        part = path.with_suffix(".part")
        part.write_text(str(step))
        part.replace(path)
    sys.stdout.write(f"step {step}\n")
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _misbehave(options: dict[str, Any], step: int, folder: Path) -> None:
    if step != 1:
        return
    if options.get("fake.fail"):
        sys.stderr.write("about to fail\n")
        raise ValueError("mix is 2; it must lie in [0, 1]")
    if options.get("fake.killed") and not (folder / "was_killed").exists():
        (folder / "was_killed").touch()
        signal.raise_signal(signal.SIGKILL)


def _record(
    command: str, labels: dict[str, Any], options: dict[str, Any], status: Status, error: str | None
) -> Record:
    folder = Path(options["trainer.default_root_dir"])
    method = {name: value for name, value in options.items() if name.startswith("model.")}
    method.pop("model.weights", None)
    score = int(digest({**method, "seed": options.get("seed_everything")}, 6), 16) / 16**6
    scores = (Evaluation(split="test", dataset="shapes", examples=10,
                         metrics={"vqa_score": score}, chance={"vqa_score": 0.5}),)  # fmt: skip
    return Record(
        name=folder.name, run_id=folder.name[-8:], command=command,  # type: ignore[arg-type]
        status=status, started=now(), ended=now(), protocol="0", protocol_options={},
        stated_config=options, config={}, task="VQA", datasets=("shapes",),
        main_metric="vqa_score", reducer=options.get("model.reducer", "Identity"), error=error,
        evaluations=scores if status == "completed" else (), **labels,
    )  # fmt: skip
