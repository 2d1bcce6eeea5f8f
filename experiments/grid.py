"""Read a grid file and list its runs. docs/grids.md describes the format.

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

from elip.files import UniqueKeyLoader

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
    """Cluster resources of one run of a stage.

    Attributes:
        minutes: Time limit. A run that reaches it saves, requeues and resumes.
        memory_gb: Main memory in GB. None uses the cluster default.
        cpus: CPU cores per process.
        gpus: GPUs per node. None uses ``trainer.devices``.
        partition: Cluster partition. None uses the default.
        throttle: Maximum number of runs of the stage at once.
    """

    minutes: Annotated[int, Field(ge=1)] = 60
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    cpus: Annotated[int, Field(ge=1)] = 1
    gpus: Annotated[int, Field(ge=0)] | None = 0
    partition: str | None = None
    throttle: Annotated[int, Field(ge=1)] = 8


class Stage(_Part):
    """One command, run for every combination of some of the axes.

    Attributes:
        name: Its key in the file.
        command: The command to run. Defaults to the stage's name.
        axes: The axes that apply. None means all.
        after: The earlier stage whose checkpoints it uses.
        start: ``weights`` trains from that checkpoint (default for fit); ``ckpt_path`` scores it.
        checkpoint: Which of the earlier stage's checkpoints.
        base: Configuration files that override the grid's.
        set: Options that override those files.
        resources: What to request from a cluster.
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
class Draft:
    """One combination of axis values in one stage, before it is parsed.

    Attributes:
        stage: The stage.
        labels: The label of its value on each axis of the stage.
        args: Command-line arguments without the command.
        budget: The target cost, such as ``{gflops: 35}``.
    """

    stage: Stage
    labels: dict[str, str]
    args: tuple[str, ...]
    budget: Any = None


@dataclass(frozen=True)
class Parsed:
    """A draft, parsed by the command line's parser.

    Attributes:
        labels: Its label on each axis. No reduction has no keep ratio or budget.
        args: Command-line arguments without the command.
        run_id: The run id.
        stated: Options that differ from the defaults.
        config: The resolved configuration.
    """

    labels: dict[str, str]
    args: tuple[str, ...]
    run_id: str
    stated: dict[str, Any]
    config: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """The content of a grid file.

    Attributes:
        name: File name without its extension.
        axes: The values of each axis, with `SHELF` not yet expanded.
        exclude: Combinations to leave out: allowed labels by axis. All axes must match.
        stages: The stages in order.
        base: Configuration files for all runs.
        options: Options for all runs. They override the files.
        last: Options that override everything else (``--set``).
    """

    name: str
    axes: dict[str, tuple[Value, ...]]
    exclude: tuple[dict[str, tuple[str, ...]], ...]
    stages: dict[str, Stage]
    base: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)

    @property
    def uses_shelf(self) -> bool:
        """Whether an axis contains `SHELF`."""
        return any(value.label == SHELF for value in self.axes.get("reducer", ()))

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
            if any(_matches(rule, labels) for rule in self.exclude):
                continue
            bases = (*self.base, *itertools.chain.from_iterable(value.base for value in values))
            options = [*stage.set.items()]
            options += itertools.chain.from_iterable(value.options.items() for value in values)
            options += self.last.items()
            layers = (*self.options.items(), *options)
            budget = next((given for name, given in reversed(layers) if name == BUDGET), None)
            args = [f"--config={name}" for name in bases] + _arguments(self.options)
            args += [f"--config={name}" for name in stage.base] + _arguments(dict(options))
            yield Draft(stage, labels, tuple(args), budget)

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
        stage: Its stage.
        name: Readable name made from the labels.
        labels: Its label on each axis. No reduction has no keep ratio or budget.
        args: Command-line arguments, with the command and the run directory.
        run_id: Its run id.
        folder: Its run directory.
        stated: Options that differ from the defaults.
        config: The resolved configuration.
        parent: The run whose checkpoint it uses.
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
        """Stage and name, as shown to the user."""
        return f"{self.stage.name}/{self.name}"

    @property
    def devices(self) -> int:
        """Processes per node. ``auto`` counts as one."""
        asked = self.config.get("trainer", {}).get("devices", 1)
        if isinstance(asked, list):
            return len(asked)
        return max(1, int(asked)) if str(asked).lstrip("-").isdigit() else 1

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return int(self.config.get("trainer", {}).get("num_nodes") or 1)


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


def listing(problems: Iterable[tuple[str, str]], shown: int = 5) -> str:
    """Return each distinct problem once, with the first run that has it."""
    runs: dict[str, list[str]] = {}
    for run, why in problems:
        runs.setdefault(why, []).append(run)
    lines = [
        f"  {names[0]}: {why}" + (f" ({len(names) - 1} more like it)" if len(names) > 1 else "")
        for why, names in list(runs.items())[:shown]
    ]
    return "\n".join(lines + ([f"  and {len(runs) - shown} other problems"] * (len(runs) > shown)))


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


def _matches(rule: Mapping[str, Sequence[str]], labels: Mapping[str, str]) -> bool:
    """Return whether a rule matches. An axis that the stage lacks never matches."""
    return all(labels.get(axis) in allowed for axis, allowed in rule.items())


def _fits(cell: Cell, text: str) -> bool:
    if "=" not in text:
        return any(fnmatch.fnmatchcase(name, text) for name in (cell.key, cell.name))
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
