"""What the runs of a grid would read now, before any of them is started."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
from jsonargparse import ArgumentParser

from elip.data.datamodule import DataModule
from elip.data.datasets import DataError, MissingFilesError
from elip.inputs import code_digests, file_digest, input_files
from elip.tasks.base import Task
from experiments.budgets import find_class
from experiments.grid import get

# Options that take a path and nothing else, and those that also take a name on a hub.
_PATHS = ("model.weights", "ckpt_path")
_PATHS_OR_NAMES = ("model.text_weights", "model.meter.text_encoder", "data.tokenizer")
_WEIGHTS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
# The options of the data that decide which files are read.
_READ = ("datasets", "root", "splits", "tokenizer")


class DataAsItLies(DataModule):
    """Data of which nothing is made that is not there yet: that is for the first run to do."""

    def prepare(self) -> None:
        """Make nothing."""


class Present:
    """Digests of what runs read, each computed once."""

    def __init__(self) -> None:
        self._files: dict[Path, str] = {}
        self._tasks: dict[str, Task | None] = {}
        self._data: dict[str, DataModule] = {}
        self._inputs: dict[str, dict[str, str]] = {}
        self._code: dict[tuple[type, ...], dict[str, str]] = {}

    def files(self, resolved: Mapping[str, Any]) -> dict[str, str | None]:
        """Return the digest of each file and folder that a run starts from, by option.

        None where an option names one that is not there. Names on a hub are left out.

        Args:
            resolved: The resolved configuration.
        """
        # As of a test: the checkpoint that a fit of a grid names is another run's, and counts. On
        # from its own it goes without being told so in the grid.
        found = input_files("test", resolved)
        return {
            **{option: self._file(path) for option, path in found.items()},
            **dict.fromkeys(_missing(resolved, found)),
        }

    def inputs(self, command: str, resolved: Mapping[str, Any]) -> dict[str, str]:
        """Return the digests of data, tokenizer, answers and code, as a run's record names them.

        What is not on this machine is left out; nothing is drawn or converted for it.

        Args:
            command: ``fit``, ``validate``, ``test`` or ``predict``.
            resolved: The resolved configuration.

        Raises:
            ValueError: The task or the data refuse an option, as they would in the run.
        """
        model, given = resolved["model"], resolved["data"]
        data = _data(given)
        named = [find_class(each) for each in (model["task"], model["reducer"]) if each]
        kinds = (*named, *map(type, data.datasets if data else ()))
        if kinds not in self._code:
            self._code[kinds] = code_digests(kinds)
        code = self._code[kinds]
        task = self._task(model["task"])
        if task is None or data is None:
            return code
        place = json.dumps([given[name] for name in _READ])
        key = json.dumps([command, task.spec.kind, place])
        if key not in self._inputs:
            # One for all of a place, so that its tables and its tokenizer are read once.
            self._inputs[key] = _digests(self._data.setdefault(place, data), command, task)
        return self._inputs[key] | code

    def _task(self, given: Mapping[str, Any]) -> Task | None:
        key = json.dumps(given)
        if key not in self._tasks:
            self._tasks[key] = _built(given)
        return self._tasks[key]

    def _file(self, path: Path) -> str:
        if path not in self._files:
            self._files[path] = file_digest(path)
        return self._files[path]


def _built(given: Mapping[str, Any]) -> Task | None:
    """Return a task; None where it needs what only the machine of its run may have.

    Raises:
        ValueError: It refuses its options.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(find_class(given), "task")
    parsed = parser.parse_object({"task": given.get("init_args") or {}})
    try:
        built: Task = parser.instantiate(parsed).task
    except (OSError, ImportError, RuntimeError):
        return None
    except Exception as error:  # somebody else's code may raise anything, and would in the run
        raise ValueError(f"model.task cannot be built: {error}") from error
    return built


def _data(given: Mapping[str, Any]) -> DataModule | None:
    """Return the data; None where its files are not here."""
    try:
        return DataAsItLies(**given)
    except MissingFilesError:
        return None


def _digests(data: DataModule, command: str, task: Task) -> dict[str, str]:
    try:
        return data.digests(command, task.spec)
    except (DataError, OSError):  # of files that are not whole, the run will say what is wrong
        return {}


def _missing(resolved: Mapping[str, Any], found: Collection[str]) -> Iterator[str]:
    """Yield the options that name a file or folder that is not there, as loading would find."""
    for option in _PATHS:
        if get(resolved, option) is not None and option not in found:
            yield option
    image = get(resolved, "model.image_weights")
    if image is not None and "model.image_weights" not in found and not timm.is_model(image):
        yield "model.image_weights"
    for option in _PATHS_OR_NAMES:
        named = get(resolved, option)
        if named is not None and _is_path(named) and not Path(os.path.expanduser(named)).exists():
            yield option


def _is_path(named: str) -> bool:
    """Whether this can be no name on a hub; of others only the hub knows."""
    return Path(named).is_absolute() or named.startswith((".", "~")) or named.endswith(_WEIGHTS)
