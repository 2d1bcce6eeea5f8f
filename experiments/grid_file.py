"""Reading a grid file, with a message for whatever in it is wrong. docs/grids.md has the format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from elip.provenance import merged
from elip.strict_yaml import mapping, read_mapping, read_yaml
from experiments.grid import SHELF, Grid, GridError, Level, Price, Resources, Stage

ALIASES = {
    "reducer": "model.reducer",
    "keep_ratio": "model.schedule.keep_ratio",
    "budget": "budget",
    "seed": "seed_everything",
    "image_size": "model.meter.image_size",
    "task": "model.task",
    "dataset": "data.datasets",
}
"""Short names of axes, and the option that each stands for. ``budget`` is none of the command
line's: the token counts that meet it are solved, and these are set."""

_COMMANDS = ("fit", "validate", "test", "predict")


def read_grid(path: Path, sets: Sequence[str] = ()) -> Grid:
    """Read a grid file.

    Args:
        path: The file.
        sets: ``option=value`` each, laid over everything that the file says.

    Raises:
        GridError: The file is no grid; the message says what is wrong.
    """
    if not path.stem.strip("."):
        raise GridError(f"{path}: the grid's runs lie in a folder of its name; give it a name.")
    content = _load(path)
    _known(content, ("base", "set", "axes", "exclude", "stages"), str(path))
    axes = {
        name: _axis(name, values, path)
        for name, values in _mapping(content.get("axes", {}), f"{path}: axes").items()
    }
    stages: dict[str, Stage] = {}
    for name, value in _mapping(content.get("stages", {}), f"{path}: stages").items():
        stages[name] = _stage(name, value, axes, stages, path)
    if not stages:
        raise GridError(f"{path} has no stages; give at least one, such as `test: {{}}`.")
    rules = content.get("exclude") or []
    if not isinstance(rules, list):
        raise GridError(f"{path}: exclude is {rules!r}; give a list of `axis: label` mappings.")
    exclude = tuple(_rule(rule, axes, path) for rule in rules)
    base, own = _layers(content, path, str(path))
    return Grid(path.stem, axes, exclude, tuple(stages.values()), base, own, _given(sets))


def _stage(
    name: str, value: Any, axes: Mapping[str, Any], before: Mapping[str, Stage], path: Path
) -> Stage:
    where = f"{path}: stages.{name}"
    if not re.fullmatch(r"\w[\w.+=-]*", name):
        raise GridError(
            f"{where}: a stage is a folder; name it with letters, digits and _.+=- only."
        )
    content = _mapping(value or {}, where)
    allowed = (
        "command", "axes", "after", "start", "checkpoint", "base", "set", "resources", "price",
    )  # fmt: skip
    _known(content, allowed, where)
    command = content.get("command", name)
    _one_of(command, _COMMANDS, f"{where}.command")
    after = content.get("after")
    if after is not None:
        _one_of(after, tuple(before), f"{where}.after (stages that stand before it)")
    chosen = content.get("axes")
    chosen = list(axes) if chosen is None else chosen
    if not isinstance(chosen, list):
        raise GridError(f"{where}.axes is {chosen!r}; give a list of {list(axes)}.")
    for axis in chosen:
        _one_of(axis, tuple(axes), f"{where}.axes")
    lost = [axis for axis in (before[after].axes if after else ()) if axis not in chosen]
    if lost:
        raise GridError(f"{where}.axes lacks {lost}: one run has one parent in stage {after!r}.")
    start = content.get("start", "weights" if command == "fit" else "ckpt_path")
    _one_of(start, ("weights", "ckpt_path"), f"{where}.start")
    if start == "ckpt_path" and command == "fit":
        raise GridError(f"{where}.start: a fit starts from weights; ckpt_path would continue it.")
    checkpoint = content.get("checkpoint", "best")
    _one_of(checkpoint, ("best", "last"), f"{where}.checkpoint")
    resources = _fields(Resources, content.get("resources") or {}, f"{where}.resources")
    price = content.get("price")
    return Stage(
        name, command, tuple(chosen), after, start, checkpoint, *_layers(content, path, where),
        resources, None if price is None else _fields(Price, price, f"{where}.price"),
    )  # fmt: skip


def _fields(kind: type[Any], value: Any, where: str) -> Any:
    content = _mapping(value, where)
    _known(content, tuple(kind.__dataclass_fields__), where)
    try:
        return TypeAdapter(kind).validate_python(kind(**content).__dict__)
    except ValidationError as error:
        first = error.errors()[0]
        given = f"{where}.{first['loc'][0]} is {first['input']!r}"
        raise GridError(f"{given}: {first['msg']}.") from error
    except TypeError as error:
        needed = ", ".join(kind.__dataclass_fields__)
        raise GridError(f"{where} needs {needed}; it has {sorted(content)}.") from error


def _layers(
    content: Mapping[str, Any], path: Path, where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    return _files(content.get("base"), path), _mapping(content.get("set") or {}, f"{where}: set")


def _files(names: Any, path: Path) -> dict[str, Any]:
    """Merge configuration files, named from the grid file's folder."""
    config: dict[str, Any] = {}
    listed = [names] if isinstance(names, str) else names or []
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise GridError(f"{path}: base is {names!r}; give a file name, or a list of them.")
    for name in listed:
        file = path.parent / name
        config = merged(config, _load(file))
    return config


def _given(sets: Sequence[str]) -> dict[str, Any]:
    """Read the ``option=value`` of the command line."""
    options = {}
    for each in sets:
        option, equals, text = each.partition("=")
        if not equals or not option:
            raise GridError(f"--set {each}: give option=value.")
        try:
            options[option] = read_yaml(text)
        except yaml.YAMLError as error:
            raise GridError(f"--set {each}: the value is no YAML: {error}") from error
    return options


def _axis(name: str, values: Any, path: Path) -> tuple[Level, ...]:
    where = f"{path}: axes.{name}"
    if isinstance(values, dict):
        levels = tuple(_level(name, str(label), value, path) for label, value in values.items())
    else:
        given = values if isinstance(values, list) else [values]
        levels = tuple(_level(name, _label(value), value, path) for value in given)
    labels = [level.label for level in levels]
    if len(set(labels)) < len(labels):
        raise GridError(f"{where} has two values named alike in {labels}; write `label: value`.")
    plain = any(tuple(level.options) == (name,) for level in levels)
    if plain and name not in ALIASES and "." not in name:
        near = get_close_matches(name, ALIASES, n=1)
        raise GridError(
            f"{where}: {name!r} is no option. Name a dotted option, one of {sorted(ALIASES)}, or "
            "give each value the options that it sets."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )
    if not levels:
        raise GridError(f"{where} has no values.")
    return levels


def _level(axis: str, label: str, value: Any, path: Path) -> Level:
    """Make a level: a mapping of dotted options (and ``base``) sets these, else it is the value."""
    if isinstance(value, dict) and value and all("." in key or key == "base" for key in value):
        options = {option: each for option, each in value.items() if option != "base"}
        return Level(label, options, _files(value.get("base"), path))
    if axis == "reducer" and isinstance(value, str):
        return Level.reducer(value, label)
    return Level(label, {ALIASES.get(axis, axis): value})


def _label(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rsplit(".", 1)[-1]
    if isinstance(value, dict):
        return "+".join(f"{key}={each}" for key, each in value.items())
    if isinstance(value, str):
        return value.rsplit(".", 1)[-1] if "/" not in value else Path(value).stem
    return str(value)


def _rule(
    rule: Any, axes: Mapping[str, tuple[Level, ...]], path: Path
) -> dict[str, tuple[str, ...]]:
    content = _mapping(rule, f"{path}: exclude")
    for axis in content:
        _one_of(axis, tuple(axes), f"{path}: exclude")
    labels = {
        axis: tuple(_label(each) for each in (value if isinstance(value, list) else [value]))
        for axis, value in content.items()
    }
    for axis, named in labels.items():
        known = [level.label for level in axes[axis]]
        if axis == "reducer" and SHELF in known and not set(named) <= set(known):
            from reducers import shelf  # late: it takes seconds, and few grids ask

            known += shelf()
        for label in named:
            _one_of(label, known, f"{path}: exclude.{axis}")
    return labels


def _load(path: Path) -> dict[str, Any]:
    try:
        return read_mapping(path)
    except ValueError as error:
        raise GridError(str(error)) from error


def _mapping(value: Any, where: str) -> dict[str, Any]:
    try:
        return mapping(value, where)
    except ValueError as error:
        raise GridError(str(error)) from error


def _known(content: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for key in content:
        _one_of(key, allowed, where)


def _one_of(value: Any, allowed: Sequence[str], where: str) -> None:
    if value not in allowed:
        near = get_close_matches(str(value), allowed, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise GridError(f"{where}: {value!r} is not one of {list(allowed)}.{hint}")
