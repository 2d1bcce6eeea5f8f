"""What a run reads beside its configuration: digests of files and code, and its weights' origin."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from elip.checkpoints import BEST, FOLDER, LAST, CheckpointError, checkpoint_in
from elip.old_record import Origin, origin_from_json
from elip.weights.read import BROKEN

if TYPE_CHECKING:
    from elip.data.datamodule import DataModule
    from elip.tasks.base import Task
    from reducers.contract import Reducer

TEXT_CONFIG = "model.meter.text_encoder"
"""Option of the configuration of a text encoder, which decides what its tensors mean."""

_CONFIG_NAME = "config.json"
# What transformers notes in a configuration of how it was written, which is nothing of the model.
_NOTED = {"transformers_version", "_name_or_path", "architectures", "torch_dtype", "dtype"}

# What the record's commit stands for, and its versions. Reducers are edited and left uncommitted.
_KNOWN = {"elip", "torch", "lightning", *sys.stdlib_module_names}
_INSTALLED = {"site-packages", "dist-packages"}


def run_inputs(
    command: str,
    config: Mapping[str, Any],
    task: Task,
    reducer: Reducer | None,
    data: DataModule,
) -> dict[str, str]:
    """Return the digests of everything that a run reads, by what it is.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        config: The resolved configuration.
        task: The task.
        reducer: The reducer.
        data: The data.
    """
    files = {option: file_digest(path) for option, path in input_files(command, config).items()}
    kinds = [type(task), type(reducer), *map(type, data.datasets)]
    return {**files, **data.digests(command, task.spec), **code_digests(kinds)}


def input_files(command: str, config: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files and folders that a run starts from, by option, those that there are.

    Names on a hub are none; nor is the checkpoint that a training run goes on from, which is its
    own.
    """
    model = config.get("model") or {}
    named = {
        "model.weights": model.get("weights"),
        "ckpt_path": None if command == "fit" else config.get("ckpt_path"),
    }
    found: dict[str, Path] = {}
    for option, given in named.items():
        if given is not None:
            try:
                found[option] = checkpoint_in(given)
            except (FileNotFoundError, CheckpointError):
                continue
    for option in ("image_weights", "text_weights"):
        if model.get(option) is not None:
            found[f"model.{option}"] = Path(os.path.expanduser(model[option]))
    encoder = (model.get("meter") or {}).get("text_encoder")
    if encoder is not None:
        found[TEXT_CONFIG] = Path(os.path.expanduser(encoder), _CONFIG_NAME)
    return {option: path for option, path in found.items() if path.exists()}


def file_digest(path: Path) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a file, or of the files in a folder.

    A text encoder's configuration counts by what it says of the model.
    """
    digest = hashlib.sha256()
    if path.name == _CONFIG_NAME and (config := _model_config(path)):
        digest.update(json.dumps(config, sort_keys=True).encode())
        return digest.hexdigest()[:16]
    for file in sorted(each for each in path.rglob("*") if each.is_file()) or [path]:
        digest.update(f"{file.relative_to(path)}\n{file.stat().st_size}\n".encode())
        with file.open("rb") as content:
            while block := content.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def _model_config(path: Path) -> dict[str, Any] | None:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    return {name: value for name, value in config.items() if name not in _NOTED}


def code_digests(kinds: Iterable[type]) -> dict[str, str]:
    """Return the digests of the code of classes, by class name.

    The modules of a class and of those it is made from count, with all that they import, save what
    the record tells of otherwise: this package's commit, and the versions of installed packages.
    How code is laid out, its comments and its docstrings do not count.
    """
    found: dict[str, str] = {}
    for kind in kinds:
        named = [base.__module__ for base in kind.__mro__]
        own = named[0].partition(".")[0]
        codes = _codes(named, {own} - _KNOWN)
        if codes:
            text = json.dumps(codes, sort_keys=True)
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            found[f"code of {kind.__name__}"] = digest
    return found


def _codes(named: list[str], own: set[str]) -> dict[str, str]:
    """Return the code of some modules and of those that they import, by name."""
    codes: dict[str, str] = {}
    todo, seen = [*named], set(named)
    while todo:
        name = todo.pop()
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        top = name.partition(".")[0]
        if module is None or file is None or top in _KNOWN or not file.endswith(".py"):
            continue
        if top not in own and _INSTALLED.intersection(Path(file).parts):
            continue
        try:
            tree = ast.parse(Path(file).read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        more = [each for each in _imported(tree, module.__package__ or "") if each not in seen]
        seen.update(more)
        todo += more
        codes[name] = _plain_code(tree)
    return codes


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            name = importlib.util.resolve_name(relative, package) if node.level else relative
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)


def _plain_code(tree: ast.Module) -> str:
    """Return code as Python would write it, without comments and docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return ast.unparse(ast.fix_missing_locations(tree))


def read_origin(path: Path | str) -> Origin | None:
    """Return how the weights in a file were made; None where it does not say.

    Args:
        path: A checkpoint, or weights that ``python -m elip.weights`` wrote.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get("origin")
            return None if text is None else origin_from_json(text)
        # Mapped, so that its tensors are not read.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        origin = origin_from_json(loaded["callbacks"]["Recorder"]["origin"])
        return replace(origin, steps=loaded.get("global_step"), kept=_kept(path.absolute()))
    except BROKEN:  # another program's; what is wrong with it, reading the weights will say
        return None


def _kept(path: Path) -> str | None:
    """Return which of a run's checkpoints a file is; None for one that lies elsewhere."""
    return path.stem if path.parent.name == FOLDER and path.stem in (BEST, LAST) else None
