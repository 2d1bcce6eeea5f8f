"""A grid: base configurations, axes and stages, and the runs that they unfold into."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from elip.provenance import merged

SHELF = "shelf"
"""On the axis ``reducer``: every reducer of the shelf."""


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
AtLeastOne = Annotated[int, Field(ge=1)]


class GridError(ValueError):
    """A grid file does not say what it should; the message says where and what would be right."""


@dataclass(frozen=True)
class Level:
    """One value of an axis.

    Attributes:
        label: Its name, in names of runs and in filters.
        options: What it sets, by dotted option.
        base: Configuration that it brings, under what the grid sets.
    """

    label: str
    options: dict[str, Any]
    base: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def reducer(cls, name: str, label: str | None = None) -> Level:
        """Return the level of a reducer by its name alone."""
        return cls(label or name, {"model.reducer": {"class_path": name, "init_args": {}}})


@dataclass(frozen=True)
class Resources:
    """What a run of a stage needs; a cluster is asked for it.

    Attributes:
        minutes: Time limit; the run is stopped and continued when it is reached.
        memory_gb: Main memory, in GB; None leaves it to the cluster.
        cpus: Processor cores a device.
        gpus: GPUs of a node; None takes ``trainer.devices``, 0 none.
        partition: Partition of the cluster; None for its default.
        throttle: How many runs of the stage are on the cluster at once, at most.
    """

    minutes: AtLeastOne = 60
    memory_gb: Positive | None = None
    cpus: AtLeastOne = 1
    gpus: Annotated[int, Field(ge=0)] | None = 0
    partition: str | None = None
    throttle: AtLeastOne = 8


@dataclass(frozen=True)
class Price:
    """What a run is expected to compute, for an estimate before anything was timed.

    Attributes:
        gflops: G multiply-adds an example (one multiply-add = 1), of a step or a forward pass.
        examples: Examples that go through, all epochs together.
        tera_per_second: T multiply-adds a second that the device keeps up in practice.
    """

    gflops: Positive
    examples: Positive
    tera_per_second: Positive

    @property
    def seconds(self) -> float:
        """Device seconds of one run."""
        return self.gflops * self.examples / (self.tera_per_second * 1e3)


@dataclass(frozen=True)
class Stage:
    """One step of every run of the grid: a command, on some of the axes.

    Attributes:
        name: Name of the stage.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        axes: The axes that matter here.
        after: The stage whose checkpoints it starts from; None for none.
        start: What the checkpoint is: ``weights`` to start from, or ``ckpt_path`` to score.
        checkpoint: Which checkpoint: ``best`` or ``last``.
        base: Configuration of its own, over the grid's.
        sets: What it sets in it, by dotted option.
        resources: What a cluster is asked for.
        price: What a run is expected to compute; None where nothing is stated.
    """

    name: str
    command: str
    axes: tuple[str, ...]
    after: str | None = None
    start: str = "weights"
    checkpoint: str = "best"
    base: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, Any] = field(default_factory=dict)
    resources: Resources = Resources()
    price: Price | None = None


@dataclass(frozen=True)
class Draft:
    """One combination of axis values in one stage, before it is parsed.

    Attributes:
        stage: Name of the stage.
        labels: Label of its value on each of the stage's axes.
        config: Nested configuration, only what the grid says.
    """

    stage: str
    labels: dict[str, str]
    config: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """A grid file, read.

    Attributes:
        name: Name of the file without its ending.
        axes: The values of each axis. `SHELF` stands as a level without options.
        exclude: Combinations that are left out: labels that must all match, by axis.
        stages: The stages, each behind the one it comes after.
        base: Configuration of all runs.
        sets: What the grid sets in it, by dotted option.
        last: What lies over everything else, by dotted option.
    """

    name: str
    axes: dict[str, tuple[Level, ...]]
    exclude: tuple[dict[str, tuple[str, ...]], ...]
    stages: tuple[Stage, ...]
    base: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)

    def stage(self, name: str) -> Stage:
        """Return the stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def drafts(self, shelf: Sequence[str]) -> Iterator[Draft]:
        """Yield every combination of every stage, in the order of the file.

        Args:
            shelf: Names of the reducers that ``shelf`` stands for.
        """
        for stage in self.stages:
            levels = [self._levels(axis, shelf) for axis in stage.axes]
            for chosen in itertools.product(*levels):
                labels = {axis: each.label for axis, each in zip(stage.axes, chosen, strict=True)}
                if any(_matches(rule, labels) for rule in self.exclude):
                    continue
                yield Draft(stage.name, labels, self._config(stage, chosen))

    def _config(self, stage: Stage, chosen: Sequence[Level]) -> dict[str, Any]:
        config = self.base
        for level in chosen:
            config = merged(config, level.base)
        config = merged(config, {})
        put_all(config, self.sets)
        config = merged(config, stage.base)
        for options in (stage.sets, *(level.options for level in chosen), self.last):
            put_all(config, options)
        if stage.after is not None:  # the parent's take their place
            config.get("model", {}).pop("weights", None)
            config.pop("ckpt_path", None)
        return config

    def _levels(self, axis: str, shelf: Sequence[str]) -> list[Level]:
        levels: list[Level] = []
        for level in self.axes[axis]:
            if axis == "reducer" and level.label == SHELF:
                there = {each.label for each in levels}
                levels += [Level.reducer(name) for name in shelf if name not in there]
            else:
                levels.append(level)
        return levels


def get(config: Mapping[str, Any], option: str, default: Any = None) -> Any:
    """Return a dotted option of a nested configuration."""
    node: Any = config
    for key in option.split("."):
        if not isinstance(node, dict) or key not in node:
            return default
        node = node[key]
    return node


def put(config: dict[str, Any], option: str, value: Any) -> None:
    """Set a dotted option in a nested configuration."""
    *parents, last = option.split(".")
    node = config
    for key in parents:
        child = node.setdefault(key, {})
        if isinstance(child, str):  # a class by its name alone
            child = node[key] = {"class_path": child, "init_args": {}}
        elif not isinstance(child, dict):
            child = node[key] = {}
        node = child
    node[last] = copy.deepcopy(value)


def put_all(config: dict[str, Any], options: Mapping[str, Any]) -> None:
    """Set dotted options in a nested configuration."""
    for option, value in options.items():
        put(config, option, value)


def _matches(rule: Mapping[str, Sequence[str]], labels: Mapping[str, str]) -> bool:
    """Return whether a rule meets a combination; an axis that the stage lacks does not match."""
    return all(labels.get(axis) in allowed for axis, allowed in rule.items())
