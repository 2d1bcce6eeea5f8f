"""Find code that reads a device from the host, without a GPU: fake CUDA tensors have no values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal"}


class HostReads(TorchDispatchMode):
    """Record every operator that reads a value, or copies between devices, or mixes them.

    Attributes:
        found: Number of such calls by operator; empty is right.
        launches: Number of all operators but views.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # A view does neither, and an operator of ``prim`` asks a fake tensor for its device.
        if func.is_view or func.namespace == "prim":
            return result
        self.launches += 1
        name = func._schema.name.split("::")[1]
        leaves = tree_leaves((args, kwargs, result))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
        if name in _READS:
            self.found[name] += 1
        if len(devices) > 1:
            self.found[f"{name} on {' and '.join(sorted(devices))}"] += 1
        if name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.found["index by a mask"] += 1
        return result


@contextmanager
def fake_cuda(mode: FakeTensorMode | None = None) -> Iterator[None]:
    """Use CUDA tensors that have only shape and type. Reading a value is an error."""
    with ExitStack() as stack:
        for owner, name, value in (
            (torch.cuda, "current_device", 0),
            (torch.cuda, "is_bf16_supported", True),
            (torch.cuda.amp.common, "amp_definitely_not_available", False),
        ):
            stack.enter_context(patch.object(owner, name, lambda *_, value=value, **__: value))
        stack.enter_context(mode or FakeTensorMode())
        yield


def on_cuda(tensor: Tensor) -> Tensor:
    """Return a fake CUDA tensor like this one."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
