"""Stand-ins for the parser and for a run, quick enough to be killed by the dozen.

``python fake.py check GRID`` answers as `experiments.check` does, ``python fake.py warm`` as
`experiments.warm`, ``python fake.py launch ...`` is the launcher with these stand-ins (``cold``
starts a process afresh for each run), and every other command is a run: it does 0.05 s of work a
step, keeps a checkpoint, and leaves a record whose score is a function of its configuration. The
option ``fake.inputs`` names a JSON file with the digests of what it reads, by its command.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from elip.old_record import Code, Evaluation, Hardware, Origin, Record, Status, write_record
from elip.provenance import config_hash

SHELF = ("ELIP", "Identity", "Random", "ToMe")
STEP = 0.05


def check(path: str, sets: list[str]) -> int:
    from experiments.check import Checked
    from experiments.grid import GridError
    from experiments.grid_file import read_grid

    try:
        grid = read_grid(Path(path), [each[6:] for each in sets if each.startswith("--set=")])
    except GridError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    answers = []
    for draft in grid.drafts(SHELF):
        model = {"task": "VQA", "schedule": {}, **draft.config.get("model", {})}
        resolved = {"seed_everything": 0, "data": {}, "trainer": {}, **draft.config, "model": model}
        name = model["reducer"]["class_path"]
        reduces = name != "Identity"
        unknown = set(draft.config) - {"seed_everything", "model", "data", "trainer", "fake"}
        problem = f"no option {sorted(unknown)[0]}" if unknown else None
        same = resolved if reduces else {**resolved, "model": {**model, "schedule": {}}}
        answers.append(
            Checked(draft.stage, draft.labels, draft.config, config_hash(same), resolved, reduces,
                    inputs=inputs(grid.stage(draft.stage).command, draft.config), problem=problem)
        )  # fmt: skip
    sys.stdout.write(json.dumps([asdict(each) for each in answers]))
    return 0


def inputs(command: str, config: dict[str, Any]) -> dict[str, str]:
    path = config.get("fake", {}).get("inputs")
    found: dict[str, str] = json.loads(Path(path).read_text())[command] if path else {}
    return found


class Stopped(Exception):
    """The run was asked to stop."""


def run(command: str, arguments: list[str]) -> int:
    config = yaml.safe_load(Path(arguments[1]).read_text())
    fake = config.get("fake", {})
    folder = Path(config["trainer"]["default_root_dir"])
    folder = folder if command == "fit" else folder / command
    checkpoint = folder / "checkpoints" / "last.ckpt"
    done = 0
    if arguments[2:] == ["--ckpt_path", "last"]:
        done = int(checkpoint.read_text())
    for option in (config["model"].get("weights"), config.get("ckpt_path")):
        if option is not None:
            Path(option).read_text()
    signal.signal(signal.SIGTERM, _stop)
    try:
        for step in range(done, int(fake.get("steps", 2))):
            time.sleep(STEP)
            _misbehave(fake, step, folder)
            if command == "fit":
                _keep(checkpoint, step + 1)
    except Stopped:
        record(command, config, folder, "interrupted")
        return 1
    except MemoryError as error:
        record(command, config, folder, "failed", f"MemoryError: {error}")
        raise
    record(command, config, folder, "completed")
    return 0


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


def _stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a cluster's signal may come twice
    raise Stopped


def _misbehave(fake: dict[str, Any], step: int, folder: Path) -> None:
    if step != 1:
        return
    if fake.get("fail"):
        sys.stderr.write("about to fail\n")
        raise ValueError("mix is 2; it must lie in [0, 1]")
    if fake.get("memory"):
        resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))
        bytearray(2**31)
    mark = folder / "was_killed"
    if fake.get("killed") == "always" or (fake.get("killed") == "once" and not mark.exists()):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        signal.raise_signal(signal.SIGKILL)
    if fake.get("preempted") and not mark.exists():
        mark.touch()
        signal.raise_signal(signal.SIGTERM)


def record(
    command: str, config: dict[str, Any], folder: Path, status: Status, error: str | None = None
) -> None:
    reducer = config["model"]["reducer"]["class_path"]
    identity = config_hash({"model": config["model"], "seed": config.get("seed_everything")})
    score = int(identity[:6], 16) / 16**6
    scores = (Evaluation("test", "shapes", 10, {"accuracy": score}, {"accuracy": 0.5}),)
    write_record(
        Record(
            name=folder.name, subcommand=command, status=status,
            started="2026-01-01T00:00:00+00:00", ended="2026-01-01T00:00:01+00:00", config=config,
            config_hash=identity, code=Code("0"), packages={}, hardware=Hardware(),
            seed=config.get("seed_everything"),
            task="VQA", datasets=("shapes",), reducer=reducer, main_metric="accuracy", error=error,
            evaluations=scores if status == "completed" else (),
            inputs=inputs(command, config),
            origin=Origin({}, inputs("fit", config)) if command == "test" else None,
        ),
        folder,
    )  # fmt: skip


def forked(arguments: list[str]) -> None:
    sys.exit(run(arguments[0], arguments[1:]))


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "check":
        sys.exit(check(rest[0], rest[1:]))
    elif what == "warm":
        from experiments.warm import serve

        serve(forked)
    elif what in ("launch", "cold"):
        from experiments.launch import main as launch

        own = (sys.executable, __file__)
        warm = None if what == "cold" else (*own, "warm")
        sys.exit(launch(rest, runner=own, checker=(*own, "check"), warm=warm))
    else:
        sys.exit(run(what, rest))
