"""Reading weight files without running any code that they may carry."""

from __future__ import annotations

import pickle
import types
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor


class _Inert:
    """Stands for every object in a checkpoint that is not a tensor; keeps and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> _Inert:
        return self

    def append(self, value: object) -> None:
        """Swallow a list item."""

    def extend(self, values: object) -> None:
        """Swallow list items."""


_TENSOR_PARTS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}


class _TensorsOnly(pickle.Unpickler):
    """An unpickler that builds tensors and plain containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TENSOR_PARTS:
            return _TENSOR_PARTS[module, name]
        if module == "torch" and name.endswith("Storage") and hasattr(torch, name):
            return getattr(torch, name)
        return _Inert


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file by name.

    Accepted: ``.safetensors``; a PyTorch file of a state dict; a Lightning checkpoint (its
    ``state_dict``), also an old one that carries other objects, which are left unread; an OpenAI
    CLIP archive, TorchScript or plain.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or its format is unknown; the message says what was found.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No weight file {path}.")
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if not zipfile.is_zipfile(path) and path.read_bytes()[:2] != b"\x80\x02":
        raise ValueError(
            f"{path} is no weight file: it is neither a zip archive nor a PyTorch pickle (it may "
            "be cut short). Accepted are .safetensors, PyTorch state dicts, Lightning checkpoints "
            "and OpenAI CLIP archives."
        )
    if _is_torchscript(path):
        with warnings.catch_warnings():
            # TorchScript is old and OpenAI still ships it; both categories have been used for that.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    return _tensors(_load(path), path)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/", 1)[-1].startswith("code/") for name in archive.namelist())


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # An old checkpoint with objects beside its tensors: read the tensors, stub the objects.
        restricted = types.ModuleType("restricted_pickle")
        restricted.Unpickler = _TensorsOnly  # type: ignore[attr-defined]
        restricted.load = lambda file, **_: _TensorsOnly(file).load()  # type: ignore[attr-defined]
        try:
            return torch.load(
                path, map_location="cpu", weights_only=False, pickle_module=restricted
            )
        except (pickle.UnpicklingError, RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no tensors that can be read safely: {error}") from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if isinstance(loaded, dict):
        tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
        found = f"a dictionary with the keys {sorted(map(str, loaded))[:8]} and no tensors"
    else:
        found = f"a {type(loaded).__name__}"
    raise ValueError(
        f"{path} holds {found}; accepted are a state dict, a checkpoint with 'state_dict', "
        ".safetensors, and OpenAI CLIP archives."
    )
