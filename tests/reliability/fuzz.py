"""Coverage-guided fuzzing of what reads files: records, grids, and configurations.

    pip install atheris
    python -m tests.reliability.fuzz {record,grid,config} [CORPUS] [-max_total_time=60]

What follows the target is for libFuzzer. Its bytes choose small changes of a file that is right
(or, where the first one is 0, are the file). A file is refused with the error that its reader
promises, or read; anything else ends the script with the input that did it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

FOLDER = Path(tempfile.mkdtemp())
GRIDS = Path(__file__).parents[2] / "experiments" / "grids"
SCALARS = [None, True, False, 0, 1, -1, 2, 10**30, 0.5, 1.5, -0.0, float("nan"), float("inf"), "",
           " ", "0.7", "null", "../..", "a" * 300, "\u0000", "\u00e9", "!!python/name:os.system",
           "ELIP", "Nobody", "VQA", "shapes", "best", "2026-11-25"]  # fmt: skip
WORDS = ["name", "seed", "class_path", "init_args", "stages", "axes", "set", "base", "exclude",
         "after", "budget", "gflops", "reducer", "model.reducer", "keep_ratio", "schedule", "x.y",
         "model", "data", "trainer", "meter", "metrics", "schema", ""]  # fmt: skip
Read = Callable[[bytes], None]
Choice = TypeVar("Choice")


class Choices:
    """Bytes as choices, one each; where they end, the first option is taken."""

    def __init__(self, data: bytes) -> None:
        self._bytes = iter(data)

    def number(self, below: int) -> int:
        """Choose a number."""
        return next(self._bytes, 0) % below

    def one(self, options: Sequence[Choice]) -> Choice:
        """Choose an option."""
        return options[self.number(len(options))]


def value(choices: Choices, depth: int = 0) -> Any:
    """Make a value: mostly a scalar, else a list or a mapping."""
    kind = choices.number(4 if depth < 3 else 2)
    if kind < 2:
        return choices.one(SCALARS)
    inside = [value(choices, depth + 1) for _ in range(choices.number(4))]
    return inside if kind == 2 else {choices.one(WORDS): each for each in inside}


def changed(tree: Any, choices: Choices) -> Any:
    """Change something somewhere in a tree of mappings and lists."""
    if isinstance(tree, dict | list) and tree and choices.number(5):
        key: Any = choices.one(list(tree) if isinstance(tree, dict) else range(len(tree)))
        if choices.number(6) == 5:
            del tree[key]
        else:
            tree[key] = changed(tree[key], choices)
        return tree
    if isinstance(tree, dict) and choices.number(2):
        return {**tree, choices.one(WORDS): value(choices)}
    return value(choices)


def file_of(right: Any, data: bytes, write: Callable[[Any], str]) -> bytes:
    """Return the file that some bytes stand for."""
    if not data or data[0] == 0:
        return data[1:]
    choices, tree = Choices(data[1:]), copy.deepcopy(right)
    for _ in range(1 + data[0] % 3):
        tree = changed(tree, choices)
    return write(tree).encode("utf-8", "surrogatepass")


def record() -> Read:
    """Read a run record, and make its row of a table."""
    from elip.old_record import RecordError, read_record, write_record
    from tests.reliability import old_synthetic as synthetic

    right = json.loads(write_record(synthetic.record(), FOLDER).read_bytes())

    def run(data: bytes) -> None:
        (FOLDER / "run.json").write_bytes(file_of(right, data, json.dumps))
        with contextlib.suppress(RecordError):
            read_record(FOLDER).row()

    return run


def grid() -> Read:
    """Read a grid file, and unfold it."""
    from experiments.grid import GridError
    from experiments.grid_file import read_grid

    right = yaml.safe_load((GRIDS / "offtheshelf.yaml").read_text())
    right |= yaml.safe_load((GRIDS / "smoke.yaml").read_text())
    right |= {"set": {"trainer.max_steps": 5}, "exclude": [{"reducer": "ELIP", "seed": 0}]}

    def run(data: bytes) -> None:
        path = FOLDER / "grid.yaml"
        path.write_bytes(file_of(right, data, yaml.safe_dump))
        with contextlib.suppress(GridError):
            for number, _ in enumerate(read_grid(path).drafts(["ELIP", "ToMe"])):
                if number > 1000:
                    break

    return run


def config() -> Read:
    """Parse a configuration of a fit, as far as the parser goes."""
    from elip.training.cli import _file_problem
    from experiments.check import RunParser, _reduces

    parser = RunParser()
    right = parser.parse("fit", {"model": {"task": "VQA", "reducer": "ELIP"}})
    del right["config"]

    def run(data: bytes) -> None:
        path = FOLDER / "config.yaml"
        path.write_bytes(file_of(right, data, yaml.safe_dump))
        if _file_problem(str(path)):
            return
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        plain = json.loads(json.dumps(content, default=str))
        with contextlib.suppress(ValueError):
            _reduces(parser.parse("fit", plain))

    return run


TARGETS: dict[str, Callable[[], Read]] = {"record": record, "grid": grid, "config": config}
"""What can be fuzzed: each returns what reads the bytes."""


def main() -> None:
    """Fuzz until libFuzzer ends."""
    import atheris  # no dependency of the project: only this command wants it

    warnings.simplefilter("ignore")
    watched = ["elip.old_record", "elip.schedule", "elip.model.config", "elip.training.cli",
               "experiments", "jsonargparse", "yaml"]  # fmt: skip
    with atheris.instrument_imports(include=watched):
        run = TARGETS[sys.argv[1]]()
    atheris.Setup([sys.argv[0], *sys.argv[2:]], run)
    atheris.Fuzz()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
