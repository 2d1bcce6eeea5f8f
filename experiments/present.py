"""What the runs of a grid would read now, before any of them is started."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import timm

from elip.inputs import file_digest, input_files
from experiments.grid import get

# Options that take a path and nothing else, and those that also take a name on a hub.
_PATHS = ("model.weights", "ckpt_path")
_PATHS_OR_NAMES = ("model.text_weights", "model.meter.text_encoder", "data.tokenizer")
_WEIGHTS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


class Present:
    """Digests of what runs read, each computed once."""

    def __init__(self) -> None:
        self._files: dict[Path, str] = {}

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

    def _file(self, path: Path) -> str:
        if path not in self._files:
            self._files[path] = file_digest(path)
        return self._files[path]


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
