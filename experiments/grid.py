"""A grid file: axes and stages, and the runs that they unfold into. docs/grids.md has the format.

Every path in a grid file is relative to the working directory, as on the command line.
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

ALIASES = {
    "reducer": "model.reducer",
    "keep_ratio": "model.schedule.keep_ratio",
    "seed": "seed_everything",
    "image_size": "model.meter.image_size",
    "task": "model.task",
    "dataset": "data.datasets",
}
"""Short names of axes, and the option that each stands for."""

BUDGET = "budget"
"""No option of the command line: token counts are solved that cost what it says."""

SHELF = "shelf"
"""On the axis ``reducer``: every reducer of the shelf."""

_NAME_BYTES = 180  # a file system takes names of 255 bytes

Files = Annotated[tuple[str, ...], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]


class GridError(ValueError):
    """A grid cannot be carried out; the message says where it is wrong and what would be right."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Resources(_Part):
    """What a run of a stage asks of a cluster.

    Attributes:
        minutes: Time limit. A run that reaches it saves, is queued again and goes on.
        memory_gb: Main memory, in GB; None leaves it to the cluster.
        cpus: Processor cores a process.
        gpus: GPUs of a node; None takes ``trainer.devices``, 0 none.
        partition: Partition of the cluster; None for its default.
        throttle: The most runs of the stage that the cluster works on at once.
    """

    minutes: Annotated[int, Field(ge=1)] = 60
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    cpus: Annotated[int, Field(ge=1)] = 1
    gpus: Annotated[int, Field(ge=0)] | None = 0
    partition: str | None = None
    throttle: Annotated[int, Field(ge=1)] = 8


class Stage(_Part):
    """One step of every run of the grid: a command, on some of the axes.

    Attributes:
        name: Name of the stage; comes from its key in the file.
        command: What runs; the stage's name where it is left out.
        axes: The axes that matter here; None for all.
        after: The stage whose checkpoints it starts from.
        start: What that checkpoint is: ``weights`` to start from (the default of a fit), or
            ``ckpt_path`` to score.
        checkpoint: Which checkpoint of the earlier stage.
        base: Configuration files of its own, over the grid's.
        set: Options of its own, over those files.
        resources: What a cluster is asked for.
    """

    name: str
    command: Literal["fit", "validate", "test", "predict"]
    axes: tuple[str, ...] | None = None
    after: str | None = None
    start: Literal["weights", "ckpt_path"] | None = None
    checkpoint: Literal["best", "last"] = "best"
    base: Files = ()
    set: dict[str, Any] = {}
    resources: Resources = Resources()

    @property
    def weights_option(self) -> str:
        """The option that names the earlier stage's checkpoint."""
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
    """One value of an axis: its label, the options that it sets, and files that lie under them."""

    label: str
    options: dict[str, Any]
    base: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draft:
    """One combination of axis values in one stage, before it is parsed.

    Attributes:
        stage: The stage.
        labels: Label of its value on each of the stage's axes.
        args: Arguments of the command line, without the command.
        budget: What its token counts shall cost, such as ``{gflops: 35}``.
    """

    stage: Stage
    labels: dict[str, str]
    args: tuple[str, ...]
    budget: Any = None


@dataclass(frozen=True)
class Grid:
    """A grid file, read.

    Attributes:
        name: Name of the file without its ending.
        axes: The values of each axis; `SHELF` stands as a value without options.
        exclude: Combinations that are left out: by axis the labels, which must all match.
        stages: The stages, each behind the one that it comes after.
        base: Configuration files of all runs.
        options: Options of all runs, over those files.
        last: Options that lie over everything else (``--set``).
    """

    name: str
    axes: dict[str, tuple[Value, ...]]
    exclude: tuple[dict[str, tuple[str, ...]], ...]
    stages: dict[str, Stage]
    base: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)

    @property
    def asks_for_shelf(self) -> bool:
        """Whether an axis names the shelf."""
        return any(value.label == SHELF for value in self.axes.get("reducer", ()))

    def drafts(self, stage: Stage, shelf: Sequence[str]) -> Iterator[Draft]:
        """Yield every combination of a stage, in the order of the file.

        What lies over what: the grid's base, a value's base, the grid's options, the stage's base
        and options, a value's options, ``--set``.

        Args:
            stage: The stage.
            shelf: Names of the reducers that `SHELF` stands for.
        """
        axes = list(self.axes) if stage.axes is None else stage.axes
        for values in itertools.product(*(self._values(axis, shelf) for axis in axes)):
            labels = {axis: value.label for axis, value in zip(axes, values, strict=True)}
            if any(_matches(rule, labels) for rule in self.exclude):
                continue
            bases = (*self.base, *itertools.chain.from_iterable(value.base for value in values))
            options = [*stage.set.items()]
            options += itertools.chain.from_iterable(value.options.items() for value in values)
            options += self.last.items()
            layers = (*self.options.items(), *options)
            budget = next((given for name, given in reversed(layers) if name == BUDGET), None)
            args = (*_files(bases), *_arguments(self.options), *_files(stage.base))
            yield Draft(stage, labels, (*args, *_arguments(dict(options))), budget)

    def _values(self, axis: str, shelf: Sequence[str]) -> list[Value]:
        values = list(self.axes[axis])
        labels = [value.label for value in values]
        if axis == "reducer" and SHELF in labels:
            place = labels.index(SHELF)
            values[place : place + 1] = [
                _value(axis, name, name) for name in shelf if name not in labels
            ]
        return values


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        stage: The stage that it belongs to.
        name: Readable name, from the labels on the axes.
        labels: Label on each axis; no reduction has none for keep ratio and budget.
        args: Arguments of the command line, command first, run directory included.
        run_id: Its identity.
        folder: Its run directory.
        stated: The options that differ from the defaults.
        config: The resolved configuration.
        parent: The run whose checkpoint it starts from.
    """

    stage: Stage
    name: str
    labels: dict[str, str]
    args: tuple[str, ...]
    run_id: str
    folder: Path
    stated: dict[str, Any] = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    parent: Cell | None = field(repr=False, default=None)

    @property
    def key(self) -> str:
        """Stage and name, as tables show them."""
        return f"{self.stage.name}/{self.name}"

    @property
    def devices(self) -> int:
        """Processes of one node; ``auto`` means one."""
        asked = self.config.get("trainer", {}).get("devices", 1)
        if isinstance(asked, list):
            return len(asked)
        return max(1, int(asked)) if str(asked).lstrip("-").isdigit() else 1

    @property
    def nodes(self) -> int:
        """Nodes that it takes."""
        return int(self.config.get("trainer", {}).get("num_nodes") or 1)


def read_grid(path: Path, sets: Sequence[str] = ()) -> Grid:
    """Read a grid file.

    Args:
        path: The file.
        sets: ``option=value`` each, laid over everything that the file says.

    Raises:
        GridError: It is no grid; the message says what is wrong.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # noqa: S506  (is safe)
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
            last[option] = yaml.load(text, _UniqueKeys)  # noqa: S506  (is safe)
        except yaml.YAMLError as error:
            raise GridError(f"--set {each}: the value is no YAML: {error}") from error
    return Grid(path.stem, axes, exclude, stages, file.base, file.set, last)


def select(cells: Sequence[Cell], filters: Sequence[str]) -> list[Cell]:
    """Return the runs that a filter names, with the runs that they start from.

    Args:
        cells: All runs.
        filters: Patterns of ``stage/name`` (``test/*``), or ``axis=label`` pairs joined by commas,
            labels joined by ``|`` (``reducer=ELIP|ToMe,seed=0``). One that fits is enough; no
            filter takes everything.

    Raises:
        GridError: A filter fits no run.
    """
    wanted: set[Path] = set()
    for text in filters:
        fitting = [cell for cell in cells if _fits(cell, text)]
        if not fitting:
            axes = sorted({axis for cell in cells for axis in cell.labels})
            raise GridError(
                f"--only {text} fits none of {len(cells)} runs. Give a pattern such as "
                f"'{cells[0].stage.name}/*', or axis=label of the axes {', '.join(axes)}."
            )
        for cell in fitting:
            node: Cell | None = cell
            while node is not None:
                wanted.add(node.folder)
                node = node.parent
    return [cell for cell in cells if not filters or cell.folder in wanted]


def run_name(labels: Mapping[str, str]) -> str:
    """Return a name for a folder: words speak for themselves, numbers say what they are of."""
    parts = []
    for axis, label in labels.items():
        bare = re.fullmatch(r"-?[\d.e+-]+|True|False|None", label)
        parts.append(f"{axis.rsplit('.', 1)[-1]}{label}" if bare else label)
    name = re.sub(r"[^\w.+=-]", "_", "-".join(parts)) or "run"
    return name.encode()[:_NAME_BYTES].decode(errors="ignore")


def listing(problems: Iterable[tuple[str, str]], shown: int = 5) -> str:
    """Return what is wrong, each thing once, with the first run that it is wrong with."""
    runs: dict[str, list[str]] = {}
    for run, why in problems:
        runs.setdefault(why, []).append(run)
    lines = [
        f"  {names[0]}: {why}" + (f" ({len(names) - 1} more like it)" if len(names) > 1 else "")
        for why, names in list(runs.items())[:shown]
    ]
    return "\n".join(lines + ([f"  and {len(runs) - shown} other problems"] * (len(runs) > shown)))


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1 and key != "<<"}:
            raise yaml.YAMLError(f"{', '.join(sorted(twice))} stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def _stage(
    name: str,
    given: dict[str, Any],
    axes: Mapping[str, Any],
    before: Mapping[str, Stage],
    where: str,
) -> Stage:
    if not re.fullmatch(r"\w[\w.+=-]*", name):
        raise GridError(f"{where}: a stage is a folder; use letters, digits and _.+=- only.")
    stage: Stage = _checked(Stage, {"command": name, **given, "name": name}, where)
    for axis in stage.axes or ():
        _one_of(axis, axes, f"{where}.axes")
    if stage.after is not None:
        _one_of(stage.after, before, f"{where}.after (stages before it)")
        needed, own = before[stage.after].axes or tuple(axes), stage.axes or tuple(axes)
        if lost := [axis for axis in needed if axis not in own]:
            raise GridError(f"{where}.axes lacks {', '.join(lost)} of stage {stage.after}.")
    if stage.start == "ckpt_path" and stage.command == "fit":
        raise GridError(f"{where}.start: a fit starts from weights; ckpt_path would continue it.")
    return stage


def _axis(name: str, given: dict[str, Any] | list[Any], where: str) -> tuple[Value, ...]:
    named = given.items() if isinstance(given, dict) else [(_label(each), each) for each in given]
    values = tuple(_value(name, str(label), each) for label, each in named)
    labels = [value.label for value in values]
    if not values or len(set(labels)) < len(labels):
        raise GridError(
            f"{where} has no values."
            if not values
            else f"{where} has two values named alike in {labels}; write `label: value`."
        )
    if "." not in name and any(name in value.options for value in values):
        _one_of(name, (*ALIASES, BUDGET), f"{where} names no option: it has no dot, and")
    return values


def _value(axis: str, label: str, given: Any) -> Value:
    """Return a value: a mapping of dotted options (and ``base``) sets these, else it is the one."""
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


def _matches(rule: Mapping[str, Sequence[str]], labels: Mapping[str, str]) -> bool:
    """Return whether a rule meets a combination; an axis that the stage lacks does not match."""
    return all(labels.get(axis) in allowed for axis, allowed in rule.items())


def _fits(cell: Cell, text: str) -> bool:
    if "=" not in text:
        return any(fnmatch.fnmatchcase(name, text) for name in (cell.key, cell.name))
    pairs = [pair.partition("=") for pair in text.split(",")]
    return all(cell.labels.get(axis.strip()) in label.split("|") for axis, _, label in pairs)


def _files(names: Iterable[str]) -> list[str]:
    return [f"--config={name}" for name in names]


def _arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options as arguments; groups are taken apart, classes stay whole."""
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
    """Return a part of a grid file as its class.

    Raises:
        GridError: It does not fit; the first problem is named.
    """
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
