"""Checks for GPUs that need no GPU.

Fake CUDA tensors have shapes and devices but no values. They reveal every operator that would make
the host wait for the device, copy between host and device, or mix both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elip.cost.batches import random_batch
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.schedule import Schedule
from elip.tasks import tasks
from elip.tasks.base import Task
from elip.tasks.retrieval import Retrieval
from elip.tasks.vqa import VQA
from reducers import Reducer, shelf

# Operators that make the host read a value. Fake tensors reject most of them.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal"}
REFUSED = (DataDependentOutputException, DynamicOutputShapeException)
SIZES = MeterConfig(
    image_size=32, image_width=16, image_blocks=3, image_heads=2, text_width=16, text_layers=1,
    text_heads=2, fusion_width=16, fusion_layers=2, fusion_heads=2, max_text_len=6, vocab_size=60,
    dropout=0.1,
).resolve()  # fmt: skip


class Watch(TorchDispatchMode):
    """Counts operators that read a value on the host, or copy between or mix devices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        result = func(*args, **(kwargs or {}))
        devices = {
            leaf.device.type
            for leaf in tree_leaves((args, kwargs, result))
            if isinstance(leaf, Tensor)
        }
        if name in READS:
            self.seen[name] += 1
        elif len(devices) > 1:
            self.seen[f"{name} on {' and '.join(sorted(devices))}"] += 1
        return result


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    with FakeTensorMode():
        yield


def move(module: nn.Module) -> None:
    """Move a module from ``meta`` to the fake device."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    fake: Tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    tensors[key] = nn.Parameter(fake) if tensors is part._parameters else fake


def watch(
    reducer: Reducer,
    task: Task,
    half: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
    infers: bool = True,
) -> Counter[str]:
    """Run a training (and an inference) pass on the fake device; return what the watch saw."""
    layers = (0,) if reducer.placement == "fusion" else (1, 2) if infers else (0,)
    sizes = SIZES if infers else replace(SIZES, image_blocks=2)
    with torch.device("meta"):
        meter = Meter(sizes, reducer, Schedule(None, layers=layers))
        task.build(meter, 5)
    both = nn.ModuleList([meter, task]).train()
    with fake_cuda(monkeypatch):
        move(both)
        batch = random_batch(meter, 2, task).to("cuda", non_blocking=True)
        autocast = torch.autocast("cuda", half or torch.bfloat16, enabled=half is not None)
        with Watch() as host, autocast:
            loss = task.loss(meter, batch).total
            if infers:
                with torch.no_grad():
                    assert task.eval().infer(meter.eval(), batch).is_cuda
        assert loss.is_cuda
        assert loss.dtype == torch.float32
    return host.seen


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", shelf())
def test_no_method_makes_the_host_wait(
    method: str, half: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not watch(shelf()[method](), VQA(), half, monkeypatch)


@pytest.mark.parametrize("method", shelf())
def test_no_task_makes_the_host_wait(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {name: made for name, made in tasks().items() if made is not VQA}
    for name, made in others.items():
        task = made(negative_texts=1) if made is Retrieval else made()
        seen = watch(shelf()[method](), task, torch.bfloat16, monkeypatch, infers=False)
        assert not seen, name


def test_the_watch_sees_reads_copies_and_mixtures(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch):
        there = torch.ones(3, device="cuda")
        with Watch() as host:
            there.cpu()
            there + torch.tensor(1.0)
        assert {name.split()[0] for name in host.seen} == {"_to_copy", "add"}
        for read in (lambda: there[there > 0], lambda: bool(there[0]), there.tolist):
            with (
                pytest.raises((DataDependentOutputException, DynamicOutputShapeException)),
                Watch(),
            ):
                read()
