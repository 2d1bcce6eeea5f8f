"""How much of a wrong core do the default tests see? Small faults, one at a time.

    nice python -m tests.reliability.mutate --out mutants.jsonl [--count 200] [--again]

Faults are drawn with a fixed seed from the schedule, the reducers, the fusion, the tasks and the
record. One process imports the libraries and forks a child for each fault, which imports the
changed module and runs the default tests of that module. The file has a line a fault; started
again, the script goes on where it stopped, with ``--again`` after trying once more what was not
caught.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.machinery
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIBRARIES = ("torch", "timm", "transformers", "lightning.pytorch.cli", "torchmetrics", "pyarrow",
             "pandas", "scipy.stats", "hypothesis", "fvcore.nn", "pytest")  # fmt: skip
SHARES = {"schedule": 30, "reducers": 80, "fusion": 25, "tasks": 45, "record": 20}
FILES = {
    "schedule": ["elip/schedule.py"],
    "reducers": sorted(
        str(file.relative_to(ROOT))
        for file in (ROOT / "reducers").glob("*.py")
        if file.name not in ("__init__.py", "__main__.py", "contract.py")
    ),
    "fusion": ["elip/model/fusion.py", "elip/model/fusion_reduction.py"],
    "tasks": sorted(str(file.relative_to(ROOT)) for file in (ROOT / "elip/tasks").glob("*.py")),
    "record": ["elip/record.py"],
}
_ALL = ["tests/reliability/test_faults.py", "tests/reliability/test_properties.py"]
TESTS = {
    "schedule": ["tests/test_schedule.py", *_ALL],
    "reducers": ["tests/parity/test_reducers_parity.py", "tests/contract", "tests/test_shelf.py",
                 *_ALL],
    "fusion": ["tests/parity/test_meter_parity.py", "tests/parity/test_reducers_parity.py",
               "tests/contract/test_in_meter.py", "tests/cost", *_ALL],
    "tasks": ["tests/tasks", "tests/parity/test_tasks_parity.py", *_ALL],
    "record": ["tests/test_record.py", "tests/test_summary.py", *_ALL],
}  # fmt: skip
SECONDS = 600

_PAIRS = ((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.In, ast.NotIn),
          (ast.Is, ast.IsNot), (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.And, ast.Or),
          (ast.BitAnd, ast.BitOr))  # fmt: skip
_SWAPPED: dict[type, type] = {
    **dict(_PAIRS), **{b: a for a, b in _PAIRS}, ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One change of one file.

    Attributes:
        part: Key of `FILES`.
        file: The file.
        line: Where.
        number: Which of the file's faults.
        was: The code before.
        now: The code after.
    """

    part: str
    file: str
    line: int
    number: int
    was: str
    now: str


def changed(node: ast.AST) -> ast.AST | None:
    """Return a faulty copy of a node; None where no fault is defined."""
    node = copy.deepcopy(node)
    if isinstance(node, ast.Compare):
        node.ops[0] = _SWAPPED[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
        if type(node.op) not in _SWAPPED:
            return None
        node.op = _SWAPPED[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        return node.operand
    elif isinstance(node, ast.IfExp):
        node.body, node.orelse = node.orelse, node.body
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        node.value = node.value + 1
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.Pass()
    else:
        return None
    return node


class _Places(ast.NodeTransformer):
    """Counts the places where a fault can be, and makes one of them."""

    def __init__(self, wanted: int | None = None) -> None:
        self.wanted, self.found = wanted, 0
        self.places: list[tuple[int, str, str]] = []

    def visit(self, node: ast.AST) -> Any:
        # Annotations and messages of errors are no behaviour that a result depends on.
        if isinstance(node, ast.AnnAssign):
            node.value = self.visit(node.value) if node.value else None
            return node
        if isinstance(node, ast.FunctionDef):
            node.body = [self.visit(each) for each in node.body]
            node.args.defaults = [self.visit(each) for each in node.args.defaults]
            return node
        if isinstance(node, ast.ClassDef):  # frozen or not is no result either
            node.body = [self.visit(each) for each in node.body]
            return node
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
            return node
        faulty = changed(node)
        if faulty is not None:
            number, self.found = self.found, self.found + 1
            if self.wanted is None:
                before, after = ast.unparse(node), ast.unparse(faulty)
                self.places.append((getattr(node, "lineno", 0), before, after))
            elif number == self.wanted:
                return ast.copy_location(faulty, node)
        return self.generic_visit(node)


def faults(part: str, file: str) -> Iterator[Fault]:
    """Yield every fault of a file."""
    places = _Places()
    places.visit(ast.parse((ROOT / file).read_text()))
    for number, (line, was, now) in enumerate(places.places):
        yield Fault(part, file, line, number, was[:120], now[:120])


def drawn(count: int) -> list[Fault]:
    """Draw faults in the shares of the parts, in mixed order."""
    chance, chosen = random.Random(0), []
    for part, share in SHARES.items():
        known = [fault for file in FILES[part] for fault in faults(part, file)]
        chosen += chance.sample(known, min(len(known), round(share * count / 200)))
    chance.shuffle(chosen)
    return chosen


def _be_wrong(fault: Fault) -> None:
    """Run the tests on the faulty module; exits with pytest's status. No fault has number -1."""
    import pytest
    import torch

    torch.set_num_threads(1)
    path = str(ROOT / fault.file)
    tree = ast.fix_missing_locations(_Places(fault.number).visit(ast.parse(Path(path).read_text())))
    code, load = compile(tree, path, "exec"), importlib.machinery.SourceFileLoader.get_code

    def get_code(self: Any, name: str) -> Any:
        return code if self.path == path else load(self, name)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain", *TESTS[fault.part]]
    own = Path(fault.file).stem
    classes = [node.name for node in ast.parse(Path(path).read_text()).body
               if isinstance(node, ast.ClassDef) and fault.part == "reducers"]  # fmt: skip
    if classes:
        arguments += ["-k", " or ".join([*classes, f"[{own}", "test_faults", "test_properties"])]
    os._exit(int(pytest.main(arguments)))


def tried(fault: Fault) -> tuple[bool, float]:
    """Return whether the tests passed on a fault, and how long that took, in seconds."""
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            _be_wrong(fault)
        finally:  # only where pytest itself breaks
            os._exit(9)
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() - start > SECONDS:  # a fault that runs forever is seen, too
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False, SECONDS
        time.sleep(0.05)
    status = os.waitstatus_to_exitcode(ended[1])
    # 1: a test failed; 2 or 4: a module could not even be imported; below 0: it crashed.
    if status not in (0, 1, 2, 4) and status > 0:
        raise RuntimeError(f"pytest ended with {status} on {fault}")
    return status == 0, time.monotonic() - start


def main() -> int:
    """Try the faults that are left; print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--parts", nargs="+", choices=[*SHARES], default=[*SHARES])
    parser.add_argument("--again", action="store_true", help="retry what was not caught")
    chosen = parser.parse_args()
    chosen.out = chosen.out.resolve()
    os.chdir(ROOT)
    for name in LIBRARIES:
        importlib.import_module(name)
    for part in chosen.parts:
        passed, seconds = tried(Fault(part, FILES[part][0], 0, -1, "", ""))
        if not passed:
            raise RuntimeError(f"the tests of {part} fail without any fault")
        sys.stdout.write(f"{part}: sound in {seconds:.0f} s\n")
        sys.stdout.flush()
    lines = chosen.out.read_text().splitlines() if chosen.out.exists() else []
    done = [json.loads(line) for line in lines]
    if chosen.again:
        done = [each for each in done if each["caught"]]
        chosen.out.write_text("".join(json.dumps(each) + "\n" for each in done))
    known = {(each["file"], each["number"]) for each in done}
    for fault in drawn(chosen.count):
        if (fault.file, fault.number) in known or fault.part not in chosen.parts:
            continue
        passed, seconds = tried(fault)
        done.append({**asdict(fault), "caught": not passed, "seconds": round(seconds, 1)})
        with chosen.out.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    for part in chosen.parts:
        mine = [each["caught"] for each in done if each["part"] == part]
        sys.stdout.write(f"{part}: {sum(mine)} of {len(mine)} caught\n")
    total = sum(each["caught"] for each in done)
    sys.stdout.write(f"all: {total} of {len(done)} caught\n")
    return int(total < 0.9 * len(done))


if __name__ == "__main__":
    sys.exit(main())
