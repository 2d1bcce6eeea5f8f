"""The plan of a grid: which runs there are, what each is called, where it lies, what it awaits."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elip.checkpoints import CheckpointError, checkpoint_in, checkpoint_path
from experiments.check import Checked
from experiments.grid import Grid, GridError, Stage, get, put

_SHOWN_PROBLEMS = 5
_OF_REDUCTION = ("keep_ratio", "budget")
_LONGEST = 200  # a file system takes names of 255 bytes


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        id: Identity: a hash of all that determines the result, 16 hexadecimal digits.
        name: Readable name, from the labels on the axes.
        stage: The stage that it belongs to.
        labels: Label on each axis; a method that never reduces has none for keep ratio and budget.
        config: The configuration that the command line is given.
        resolved: What that resolves to.
        folder: Its run directory.
        parent: The run whose checkpoint it starts from; None for none.
        lacks: Files that it starts from and that are not there, each as a sentence.
        inputs: Digests of the data and code that it would read now, as far as they are here.
    """

    id: str
    name: str
    stage: Stage = field(repr=False)
    labels: dict[str, str] = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    resolved: dict[str, Any] = field(repr=False)
    folder: Path = field(repr=False)
    parent: Cell | None = field(repr=False, default=None)
    lacks: tuple[str, ...] = field(repr=False, default=())
    inputs: dict[str, str] = field(repr=False, default_factory=dict)

    @property
    def key(self) -> str:
        """Stage and name, as tables show them."""
        return f"{self.stage.name}/{self.name}"

    @property
    def record_folder(self) -> Path:
        """Where the command line writes the run's record."""
        return self.folder if self.stage.command == "fit" else self.folder / self.stage.command

    @property
    def parent_checkpoint(self) -> Path | None:
        """The checkpoint that it starts from, of its parent."""
        if self.parent is None:
            return None
        return checkpoint_path(self.parent.folder, self.stage.checkpoint)

    @property
    def devices(self) -> int:
        """Devices of one node that it takes; ``auto`` takes one."""
        asked = self.resolved.get("trainer", {}).get("devices", 1)
        if isinstance(asked, list):
            return len(asked)
        return max(1, int(asked)) if str(asked).lstrip("-").isdigit() else 1

    @property
    def nodes(self) -> int:
        """Nodes that it takes."""
        return int(self.resolved.get("trainer", {}).get("num_nodes") or 1)


def build_plan(grid: Grid, checked: Sequence[Checked], root: Path) -> list[Cell]:
    """Turn parsed combinations into runs, each once, parents before children.

    Args:
        grid: The grid.
        checked: All its combinations, parsed.
        root: Folder of the grid's runs.

    Raises:
        GridError: A combination is wrong; the message says which and why. Or there is none.
    """
    _refuse(checked)
    cells: dict[str, Cell] = {}
    found: dict[tuple[str, frozenset[tuple[str, str]]], Cell] = {}
    for each in checked:
        stage = grid.stage(each.stage)
        parent = None
        if stage.after is not None:
            axes = grid.stage(stage.after).axes
            labels = {axis: label for axis, label in each.labels.items() if axis in axes}
            parent = found.get((stage.after, frozenset(labels.items())))
            if parent is None:
                continue  # its parent is excluded
        cell = _cell(each, stage, parent, root)
        # Where combinations mean the same run, the first one stands for all.
        cell = cells.setdefault(cell.id, cell)
        found[each.stage, frozenset(each.labels.items())] = cell
    if not cells:
        raise GridError(f"{grid.name} has no runs: its exclude leaves out every combination.")
    return list(cells.values())


def select(cells: Iterable[Cell], filters: Sequence[str]) -> list[Cell]:
    """Return the runs that a filter names, with the runs that they start from.

    Args:
        cells: The plan.
        filters: Each is a pattern of ``stage/name`` (``test/*``), or ``axis=label`` pairs joined
            by commas, labels joined by ``|`` (``reducer=ELIP|ToMe,seed=0``). A run is taken when
            one of them fits; none at all takes everything.

    Raises:
        GridError: A filter fits no run.
    """
    cells = list(cells)
    if not filters:
        return cells
    wanted: set[str] = set()
    for each in filters:
        fitting = [cell for cell in cells if _fits(cell, each)]
        if not fitting:
            axes = sorted({axis for cell in cells for axis in cell.labels})
            raise GridError(
                f"--only {each} fits none of {len(cells)} runs. Give a pattern such as "
                f"'{cells[0].stage.name}/*', or axis=label of the axes {axes}."
            )
        for cell in fitting:
            node: Cell | None = cell
            while node is not None:
                wanted.add(node.id)
                node = node.parent
    return [cell for cell in cells if cell.id in wanted]


def _fits(cell: Cell, text: str) -> bool:
    if "=" not in text:
        return any(fnmatch.fnmatchcase(name, text) for name in (cell.key, cell.name))
    pairs = [pair.partition("=") for pair in text.split(",")]
    return all(cell.labels.get(axis.strip()) in label.split("|") for axis, _, label in pairs)


def _refuse(checked: Sequence[Checked]) -> None:
    named = [(f"{each.stage} {_title(each.labels)}", each.problem) for each in checked]
    bad = [(name, problem) for name, problem in named if problem is not None]
    if bad:
        raise GridError(_listing(bad, len(checked)))


def refuse_missing(cells: Sequence[Cell]) -> None:
    """Refuse runs that start from files that are not there.

    Raises:
        GridError: There are some; the message names them.
    """
    bad = [(cell.key, why) for cell in cells for why in cell.lacks]
    if bad:
        raise GridError(_listing(bad, len(cells)))


def _listing(bad: Sequence[tuple[str, str]], count: int) -> str:
    """Return what is wrong, each thing once, with the first run that it is wrong with."""
    by_reason: dict[str, list[str]] = {}
    for name, why in bad:
        by_reason.setdefault(why, []).append(name)
    lines = [
        f"  {names[0]}: {why}" + (f" ({len(names) - 1} more like it)" if len(names) > 1 else "")
        for why, names in list(by_reason.items())[:_SHOWN_PROBLEMS]
    ]
    if len(by_reason) > _SHOWN_PROBLEMS:
        lines.append(f"  and {len(by_reason) - _SHOWN_PROBLEMS} other problems")
    return f"{len(bad)} of {count} runs cannot start, so none was started:\n" + "\n".join(lines)


def _cell(each: Checked, stage: Stage, parent: Cell | None, root: Path) -> Cell:
    determines = {
        "command": stage.command,
        "settings": each.settings,
        "files": each.files,
        "parent": parent and [parent.id, stage.start, stage.checkpoint],
    }
    text = json.dumps(determines, sort_keys=True)
    identity = hashlib.sha256(text.encode()).hexdigest()[:16]
    labels = {a: b for a, b in each.labels.items() if each.reduces or a not in _OF_REDUCTION}
    name = _title(labels)
    folder = root / stage.name / f"{name[:_LONGEST]}-{identity[:8]}"
    config = json.loads(json.dumps(each.config))
    put(config, "trainer.default_root_dir", str(folder))
    # A bar in a log file is a thousand lines.
    config["trainer"].setdefault("enable_progress_bar", False)
    lacks = tuple(
        f"{option}: {_lack(option, str(get(each.resolved, option)))}"
        for option, digest in each.files.items()
        if digest is None
    )
    cell = Cell(
        identity, name, stage, labels, config, each.resolved, folder, parent, lacks, each.inputs
    )
    if parent is not None:
        put(config, "model.weights" if stage.start == "weights" else "ckpt_path",
            str(cell.parent_checkpoint))  # fmt: skip
    return cell


def _lack(option: str, named: str) -> str:
    """Return what keeps a run from starting from what an option names."""
    if option == "model.image_weights":
        return f"{named!r} is neither a file nor a timm model"
    if option not in ("model.weights", "ckpt_path"):
        return f"no such file or folder {named}"
    try:
        return f"no such file {checkpoint_in(named)}"
    except (FileNotFoundError, CheckpointError) as error:
        return str(error)


def _title(labels: Mapping[str, str]) -> str:
    """Return a name that a file may have: words speak for themselves, numbers say of what."""
    parts = []
    for axis, label in labels.items():
        bare = re.fullmatch(r"-?[\d.e+-]+|True|False|None", label)
        parts.append(f"{axis.rsplit('.', 1)[-1]}{label}" if bare else label)
    return re.sub(r"[^\w.+=-]", "_", "-".join(parts)) or "run"
