"""Coverage-guided fuzzing of what reads files: records, grids, and configurations.

    pip install atheris
    python -m tests.reliability.fuzz {record,grid,config} [CORPUS] [-max_total_time=60]

What follows the target is for libFuzzer. A file is refused with the error that its reader
promises, or read; anything else ends the script with the input that did it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import yaml

FOLDER = Path(tempfile.mkdtemp())


def record(data: bytes) -> None:
    """Read bytes as a run record."""
    from elip.record import RecordError, read_record

    (FOLDER / "run.json").write_bytes(data)
    with contextlib.suppress(RecordError):
        read_record(FOLDER)


def grid(data: bytes) -> None:
    """Read bytes as a grid file, and unfold it."""
    from experiments.grid import GridError
    from experiments.grid_file import read_grid

    (FOLDER / "grid.yaml").write_bytes(data)
    with contextlib.suppress(GridError):
        for number, _ in enumerate(read_grid(FOLDER / "grid.yaml").drafts(["ELIP", "ToMe"])):
            if number > 1000:
                break


def config() -> Callable[[bytes], None]:
    """Parse bytes as a configuration of a fit, as far as the parser goes."""
    from elip.training.cli import _file_problem
    from experiments.check import RunParser, _reduces

    parser = RunParser()

    def run(data: bytes) -> None:
        path = FOLDER / "config.yaml"
        path.write_bytes(data)
        if _file_problem(str(path)):
            return
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        with contextlib.suppress(ValueError), contextlib.redirect_stderr(io.StringIO()):
            plain = json.loads(json.dumps(content or {}, default=str))
            _reduces(parser.parse("fit", {"model": {"task": "VQA"}, **plain}))

    return run


TARGETS: dict[str, Callable[[], Callable[[bytes], None]]] = {
    "record": lambda: record,
    "grid": lambda: grid,
    "config": config,
}
"""What can be fuzzed: each returns what reads the bytes."""


def main() -> None:
    """Fuzz until libFuzzer ends."""
    import atheris  # no dependency of the project: only this command wants it

    warnings.simplefilter("ignore")
    target = sys.argv[1]
    watched = ["elip.record", "elip.schedule", "elip.model.config", "experiments.grid",
               "experiments.grid_file", "experiments.check"]  # fmt: skip
    with atheris.instrument_imports(include=watched):
        import experiments.grid_file  # noqa: F401
    run = TARGETS[target]()
    # Words that the readers know, so that the fuzzer need not guess them letter by letter.
    words = FOLDER / "words"
    known = ("schema", "name", "status", "evaluations", "metrics", "stages", "axes", "set", "base",
             "exclude", "reducer", "class_path", "init_args", "seed", "fit", "after", "model",
             "schedule", "keep_ratio", "layers", "counts", "profile", "meter", "image_size", "data",
             "trainer", "!!python/name:os.system", "&a", "*a", "<<:", "ELIP")  # fmt: skip
    words.write_text("".join(f'"{word}"\n' for word in known))
    atheris.Setup([sys.argv[0], *sys.argv[2:], f"-dict={words}"], run)
    atheris.Fuzz()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
