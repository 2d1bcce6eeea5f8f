"""Read a grid file and list its runs. docs/grids.md describes the format.

Every path in a grid file is relative to the working directory, as on the command line.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from elip.files import UniqueKeyLoader
from elip.identity import checkpoint_path, weights_id

ALIASES = {
    "reducer": "model.reducer",
    "keep_ratio": "model.schedule.keep_ratio",
    "seed": "seed_everything",
    "image_size": "model.meter.image_size",
    "task": "model.task",
    "dataset": "data.datasets",
}
"""Short axis names and their options."""

BUDGET = "budget"
"""Not a command-line option: the launcher solves for the keep ratio that meets the budget."""

SHELF = "shelf"
"""A value of the axis ``reducer`` that means every reducer on the shelf."""

_NAME_BYTES = 180  # file systems allow 255

Files = Annotated[tuple[str, ...], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]


class GridError(ValueError):
    """The grid cannot run. The message says where the mistake is and how to fix it."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Resources(_Part):
    """Cluster resources of one run of a stage."""

    minutes: Annotated[int, Field(ge=1)] = 60  # a run that reaches it saves, requeues and resumes
    memory_gb: Annotated[float, Field(gt=0)] | None = None  # None: the cluster's default
    cpus: Annotated[int, Field(ge=1)] = 1  # cores per process
    gpus: Annotated[int, Field(ge=0)] | None = 0  # per node; None: as many as trainer.devices
    partition: str | None = None  # None: the cluster's default
    throttle: Annotated[int, Field(ge=1)] = 8  # most runs of the stage at once


class Stage(_Part):
    """One command, run for every combination of some of the axes."""

    name: str  # its key in the file
    command: Literal["fit", "validate", "test", "predict"]  # by default the name
    axes: tuple[str, ...] | None = None  # None: all
    after: str | None = None  # the earlier stage whose checkpoints it uses
    # Train from them (the default for fit) or score them.
    start: Literal["weights", "ckpt_path"] | None = None
    checkpoint: Literal["best", "last"] = "best"
    base: Files = ()  # files that override the grid's
    set: dict[str, Any] = {}  # options that override those files
    resources: Resources = Resources()

    @property
    def weights_option(self) -> str:
        """The option that takes the earlier stage's checkpoint."""
        start = self.start or ("weights" if self.command == "fit" else "ckpt_path")
        return "model.weights" if start == "weights" else start


class _File(_Part):
    base: Files = ()
    set: dict[str, Any] = {}
    axes: dict[str, dict[str, Any] | list[Any]] = {}
    exclude: list[dict[str, Any]] = []
    stages: dict[str, dict[str, Any] | None]


@dataclass(frozen=True)
class Value:
    """One value of an axis: its label, the options it sets, and the files they override."""

    label: str
    options: dict[str, Any]
    base: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    stage: Stage
    labels: dict[str, str]  # by axis; no reduction has no keep ratio or budget
    args: tuple[str, ...]  # the command and its options, with the run directory
    run_id: str
    folder: Path  # the run directory
    stated: dict[str, Any] = field(repr=False)  # options that differ from the defaults
    config: dict[str, Any] = field(repr=False)  # the resolved configuration
    parent: Cell | None = field(repr=False, default=None)  # the run whose checkpoint it uses

    @property
    def key(self) -> str:
        """Stage and name, as shown to the user."""
        return f"{self.stage.name}/{run_name(self.labels)}"

    @property
    def devices(self) -> int:
        """Processes per node. ``auto`` counts as one."""
        asked = self.config["trainer"]["devices"]
        if isinstance(asked, list):
            return len(asked)
        return max(1, int(asked)) if str(asked).lstrip("-").isdigit() else 1

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return int(self.config["trainer"]["num_nodes"])


@dataclass(frozen=True)
class Draft:
    """One combination of axis values in one stage, before the command line's parser reads it."""

    stage: Stage
    labels: dict[str, str]  # by axis
    args: tuple[str, ...]  # the options of the command
    budget: Any = None  # the target cost, such as ``{gflops: 35}``
    parent: Cell | None = None  # the run whose checkpoint it uses

    @property
    def parent_id(self) -> str | None:
        """Identity of the initial weights, which may not exist yet; see `elip.identity.run_id`."""
        if self.parent is None:
            return None
        return weights_id(self.parent.run_id, self.stage.checkpoint)

    def cell(self, root: Path, labels: dict[str, str], args: Iterable[str], parsed: Any) -> Cell:
        """Return the run with its directory in the grid's folder and its parent's checkpoint.

        Args:
            root: The grid's folder.
            labels: Its labels, without those that have no effect.
            args: Its options.
            parsed: An `elip.training.parse.ParsedRun`, which this module does not import.
        """
        folder = root / self.stage.name / f"{run_name(labels)}-{parsed.run_id}"
        args = [self.stage.command, *args, f"--trainer.default_root_dir={folder}"]
        if self.parent is not None:
            checkpoint = checkpoint_path(self.parent.folder, self.stage.checkpoint)
            args.append(f"--{self.stage.weights_option}={checkpoint}")
        return Cell(
            self.stage, labels, tuple(args), parsed.run_id, folder, parsed.stated, parsed.config,
            self.parent,
        )  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """The content of a grid file."""

    name: str  # the file's, without extension
    axes: dict[str, tuple[Value, ...]]  # `SHELF` is one value
    exclude: tuple[dict[str, tuple[str, ...]], ...]  # labels by axis; all axes must match
    stages: dict[str, Stage]  # in order
    base: tuple[str, ...] = ()  # files for all runs
    options: dict[str, Any] = field(default_factory=dict)  # for all runs; they override the files
    last: dict[str, Any] = field(default_factory=dict)  # override all else (``--set``)

    def drafts(self, stage: Stage, shelf: Sequence[str]) -> Iterator[Draft]:
        """Yield every combination of a stage in file order.

        Later layers override earlier ones: the grid's base, a value's base, the grid's options,
        the stage's base and options, a value's options, ``--set``.

        Args:
            stage: The stage.
            shelf: The reducers that `SHELF` expands to.
        """
        axes = list(self.axes) if stage.axes is None else stage.axes
        for values in itertools.product(*(self._values(axis, shelf) for axis in axes)):
            labels = {axis: value.label for axis, value in zip(axes, values, strict=True)}
            # An axis that the stage lacks never matches.
            if any(all(labels.get(x) in allowed for x, allowed in r.items()) for r in self.exclude):
                continue
            bases = [*self.base, *(name for value in values for name in value.base)]
            options = dict(stage.set)
            for layer in (*(value.options for value in values), self.last):
                options |= layer
            args = [f"--config={name}" for name in bases] + _arguments(self.options)
            args += [f"--config={name}" for name in stage.base] + _arguments(options)
            yield Draft(stage, labels, tuple(args), (self.options | options).get(BUDGET))

    def _values(self, axis: str, shelf: Sequence[str]) -> Iterator[Value]:
        named = {value.label for value in self.axes[axis]}
        for value in self.axes[axis]:
            if axis == "reducer" and value.label == SHELF:
                yield from (_value(axis, name, name) for name in shelf if name not in named)
            else:
                yield value


def read_grid(path: Path, sets: Sequence[str] = ()) -> Grid:
    """Read a grid file.

    Args:
        path: The file.
        sets: ``option=value`` strings that override the file.

    Raises:
        GridError: The file is not a valid grid.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)  # noqa: S506  (is safe)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise GridError(f"Cannot read {path}: {error}") from error
    file = _checked(_File, content, str(path))
    axes = {name: _axis(name, values, f"{path}: axes.{name}") for name, values in file.axes.items()}
    stages: dict[str, Stage] = {}
    for name, given in file.stages.items():
        stages[name] = _stage(name, given or {}, axes, stages, f"{path}: stages.{name}")
    if not stages:
        raise GridError(f"{path} has no stages; give at least one, such as `test: {{}}`.")
    exclude = tuple(_rule(rule, axes, f"{path}: exclude") for rule in file.exclude)
    last = {}
    for each in sets:
        option, equals, text = each.partition("=")
        if not (option and equals):
            raise GridError(f"--set {each}: give option=value.")
        try:
            last[option] = yaml.load(text, UniqueKeyLoader)  # noqa: S506  (is safe)
        except yaml.YAMLError as error:
            raise GridError(f"--set {each}: the value is not YAML: {error}") from error
    return Grid(path.stem, axes, exclude, stages, file.base, file.set, last)


def select(cells: Sequence[Cell], filters: Sequence[str]) -> list[Cell]:
    """Return the runs that match any filter, and the runs they start from.

    Args:
        cells: All runs.
        filters: ``stage/name`` patterns (``test/*``), or ``axis=label`` pairs
            (``reducer=ELIP|ToMe,seed=0``). No filter selects everything.

    Raises:
        GridError: A filter matches no run.
    """
    wanted: set[Path] = set()
    for text in filters:
        fitting = [cell for cell in cells if _fits(cell, text)]
        if not fitting:
            axes = sorted({axis for cell in cells for axis in cell.labels})
            raise GridError(
                f"--only {text} matches none of {len(cells)} runs. Use a pattern such as "
                f"'{cells[0].stage.name}/*', or axis=label with the axes {', '.join(axes)}."
            )
        for cell in fitting:
            node: Cell | None = cell
            while node is not None:
                wanted.add(node.folder)
                node = node.parent
    return [cell for cell in cells if not filters or cell.folder in wanted]


def run_name(labels: Mapping[str, str]) -> str:
    """Return a folder name. Bare numbers get their axis as a prefix."""
    parts = []
    for axis, label in labels.items():
        bare = re.fullmatch(r"-?[\d.e+-]+|True|False|None", label)
        parts.append(f"{axis.rsplit('.', 1)[-1]}{label}" if bare else label)
    name = re.sub(r"[^\w.+=-]", "_", "-".join(parts)) or "run"
    return name.encode()[:_NAME_BYTES].decode(errors="ignore")


def _stage(
    name: str,
    given: dict[str, Any],
    axes: Mapping[str, Any],
    before: Mapping[str, Stage],
    where: str,
) -> Stage:
    if not re.fullmatch(r"\w[\w.+=-]*", name):
        raise GridError(f"{where}: the name becomes a folder; use letters, digits and _.+=- only.")
    stage: Stage = _checked(Stage, {"command": name, **given, "name": name}, where)
    for axis in stage.axes or ():
        _one_of(axis, axes, f"{where}.axes")
    if stage.after is not None:
        _one_of(stage.after, before, f"{where}.after (stages before it)")
        needed, own = before[stage.after].axes or tuple(axes), stage.axes or tuple(axes)
        if lost := [axis for axis in needed if axis not in own]:
            raise GridError(f"{where}.axes lacks {', '.join(lost)} of stage {stage.after}.")
    if stage.start == "ckpt_path" and stage.command == "fit":
        raise GridError(f"{where}.start: fit takes weights; ckpt_path would resume a run.")
    return stage


def _axis(name: str, given: dict[str, Any] | list[Any], where: str) -> tuple[Value, ...]:
    named = given.items() if isinstance(given, dict) else [(_label(each), each) for each in given]
    values = tuple(_value(name, str(label), each) for label, each in named)
    labels = [value.label for value in values]
    if not values or len(set(labels)) < len(labels):
        raise GridError(
            f"{where} has no values."
            if not values
            else f"{where} has two values with the same label in {labels}; write `label: value`."
        )
    if "." not in name and any(name in value.options for value in values):
        _one_of(name, (*ALIASES, BUDGET), f"{where} is not an option (it has no dot), and")
    return values


def _value(axis: str, label: str, given: Any) -> Value:
    """Return a value. A mapping of dotted options (and ``base``) sets several options."""
    if isinstance(given, dict) and given and all("." in key or key == "base" for key in given):
        options = {option: each for option, each in given.items() if option != "base"}
        base = given.get("base", ())
        return Value(label, options, (base,) if isinstance(base, str) else tuple(base))
    return Value(label, {ALIASES.get(axis, axis): given})


def _label(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rsplit(".", 1)[-1]
    if isinstance(value, dict):
        return "+".join(f"{key}={each}" for key, each in value.items())
    if isinstance(value, str):
        return Path(value).stem if "/" in value else value.rsplit(".", 1)[-1]
    return str(value)


def _rule(
    rule: dict[str, Any], axes: Mapping[str, tuple[Value, ...]], where: str
) -> dict[str, tuple[str, ...]]:
    labels: dict[str, tuple[str, ...]] = {}
    for axis, given in rule.items():
        _one_of(axis, axes, where)
        labels[axis] = tuple(map(_label, given if isinstance(given, list) else [given]))
        known = [value.label for value in axes[axis]]
        if SHELF not in known:
            for label in labels[axis]:
                _one_of(label, known, f"{where}.{axis}")
    return labels


def _fits(cell: Cell, text: str) -> bool:
    if "=" not in text:
        return any(fnmatchcase(name, text) for name in (cell.key, run_name(cell.labels)))
    pairs = [pair.partition("=") for pair in text.split(",")]
    return all(cell.labels.get(axis.strip()) in label.split("|") for axis, _, label in pairs)


def _arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options as arguments. Nested groups become dotted options; classes stay whole."""
    found = []
    for option, value in options.items():
        if option == BUDGET:
            continue
        if isinstance(value, dict) and value and "class_path" not in value:
            found += _arguments({f"{option}.{key}": each for key, each in value.items()})
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            found.append(f"--{option}={text}")
    return found


def _checked(kind: Any, content: Any, where: str) -> Any:
    """Validate one part of a grid file; `GridError` names the first problem."""
    if not isinstance(content, dict):
        raise GridError(f"{where} is {content!r}; give a mapping.")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(each) for each in first["loc"])
        if first["type"] == "extra_forbidden":
            known = [name for name in kind.model_fields if name != "name"]
            _one_of(place, known, where)
        raise GridError(f"{where}: {place}: {first['msg']}; it is {first['input']!r}.") from error


def _one_of(value: Any, allowed: Iterable[str], where: str) -> None:
    allowed = list(allowed)
    if value not in allowed:
        known = {each.casefold(): each for each in allowed}
        near = get_close_matches(str(value).casefold(), known, n=1)
        hint = f" Did you mean {known[near[0]]!r}?" if near else ""
        raise GridError(f"{where}: {value!r} is not one of {', '.join(allowed)}.{hint}")
