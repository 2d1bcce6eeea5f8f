"""Reading weight files without running any code that they may carry."""

from __future__ import annotations

import io
import pickle
import types
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor


class _Inert:
    """Stands for every object in a file that is not a tensor; keeps its parts, does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.parts: dict[str, object] = {}

    def __setstate__(self, state: object) -> None:
        self.parts = state if isinstance(state, dict) else {}

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> _Inert:
        return self

    def append(self, value: object) -> None:
        """Swallow a list item."""

    def extend(self, values: object) -> None:
        """Swallow list items."""


BROKEN = (
    pickle.UnpicklingError, RuntimeError, EOFError, TypeError, AttributeError, ValueError,
    LookupError, zipfile.BadZipFile, OSError, RecursionError, OverflowError, MemoryError,
    zlib.error, SafetensorError, NotImplementedError,
)  # fmt: skip
"""What reading a damaged or hostile file can raise."""

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


_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip


class _ScriptTensors(pickle.Unpickler):
    """Reads the tensors of a TorchScript archive; `torch.jit.load` would run code on the way."""

    def __init__(self, archive: zipfile.ZipFile, pickled: str) -> None:
        super().__init__(io.BytesIO(archive.read(pickled)))
        self._archive, self._folder = archive, pickled.removesuffix("data.pkl")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        data = self._archive.read(f"{self._folder}data/{key}")
        return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda flat, start, size, stride, *_: flat.as_strided(size, stride, start)
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        return _Inert


_READABLE = {*_DTYPES.values()}


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file by name.

    Accepted: ``.safetensors``; a PyTorch file of a state dict; a Lightning checkpoint (its
    ``state_dict``), also an old one that carries other objects, which are left unread; an OpenAI
    CLIP archive, TorchScript or plain.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, its format is unknown, or it holds other tensors than dense
            ones of the usual numbers; the message says what was found.
    """
    state = _read(path)
    for name, tensor in state.items():
        if tensor.dtype not in _READABLE or tensor.layout != torch.strided or tensor.is_meta:
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise ValueError(
                f"{path}: {name} is a tensor that is not read here ({kind}). Save the weights as "
                "dense tensors of float32 or float16."
            )
    return state


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"No weight file {path}.")
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load_file(path))
        except BROKEN as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    with path.open("rb") as file:
        begins = file.read(2)
    if not zipfile.is_zipfile(path) and begins != b"\x80\x02":
        raise ValueError(
            f"{path} is no weight file: it is neither a zip archive nor a PyTorch pickle (it may "
            "be cut short). Accepted are .safetensors, PyTorch state dicts, Lightning checkpoints "
            "and OpenAI CLIP archives."
        )
    pickled = _script_pickle(path)
    return _tensors(_load(path) if pickled is None else _load_script(path, pickled), path)


def _script_pickle(path: Path) -> str | None:
    """Return the name of the object tree in a TorchScript archive; None for other files."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except BROKEN as error:
        raise ValueError(f"{path} is a damaged archive: {error}") from error
    if not any(name.split("/", 1)[-1].startswith("code/") for name in names):
        return None
    return next((name for name in names if name.split("/", 1)[-1] == "data.pkl"), None)


def _load_script(path: Path, pickled: str) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            return dict(_named_tensors(_ScriptTensors(archive, pickled).load(), ""))
    except BROKEN as error:
        raise ValueError(f"{path} is a damaged TorchScript archive: {error}") from error


def _named_tensors(tree: object, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, part in tree.parts.items() if isinstance(tree, _Inert) else ():
        if isinstance(part, Tensor):
            yield f"{prefix}{name}", part
        else:
            yield from _named_tensors(part, f"{prefix}{name}.")


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
        except BROKEN as error:
            raise ValueError(f"{path} holds no tensors that can be read safely: {error}") from error
    except BROKEN as error:
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
