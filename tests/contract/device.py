"""Find code that reads a device from the host, without a GPU: fake CUDA tensors have no values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal"}


class HostReads(TorchDispatchMode):
    """Record every operator that reads a value or mixes devices.

    Attributes:
        found: Number of such calls by operator; empty is right.
        launches: Number of operators with results on the device, including views.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        self.found[name] += name in _READS
        indices = args[1] if name == "index" else ()
        self.found["index by a mask"] += any(
            index is not None and index.dtype == torch.bool for index in indices
        )
        result = func(*args, **(kwargs or {}))
        given, made = _devices((args, kwargs)), _devices(result)
        self.found[f"{name} of CPU and device"] += {"cpu", "cuda"} <= given | made
        self.launches += "cuda" in made
        self.found = +self.found
        return result


def _devices(tree: Any) -> set[str]:
    return {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Use CUDA tensors that have only shape and type. Reading a value is an error."""
    with patch.object(torch.cuda, "current_device", lambda: 0), FakeTensorMode():
        yield


def on_cuda(tensor: Tensor) -> Tensor:
    """Return a fake CUDA tensor like this one."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
