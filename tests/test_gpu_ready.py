"""Checks for GPUs that need no GPU.

Every method on every task, in three precisions: does an operator make the host wait for the device,
copy between host and device, or mix both? Fake CUDA tensors, which have no values, tell for the
forward pass under autocast. The autograd engine refuses them without a driver, so the backward pass
runs on ``meta``, where such an operator fails or mixes devices just the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from elip.cost.count import random_batch
from elip.data.batch import Batch
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.schedule import Schedule
from elip.tasks import tasks
from elip.tasks.base import Task
from reducers import shelf
from tests.contract.device import HostReads, fake_cuda, on_cuda

CONFIG = MeterConfig(
    image_size=24, image_width=16, image_blocks=2, image_heads=2, text_width=16, text_layers=1,
    text_heads=2, fusion_width=16, fusion_layers=2, fusion_heads=2, max_text_len=6, vocab_size=60,
    dropout=0.1,
)  # fmt: skip
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
METHODS, TASKS = tuple(shelf()), tuple(tasks())
FAKE = FakeTensorMode()


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, **_: object,
) -> Tensor:  # fmt: skip
    """Attention as one operator, as on a GPU; without one, torch takes it to pieces."""
    if attn_mask is not None:
        bias = attn_mask.to(query.dtype)
        attn_mask = bias.expand(*query.shape[:3], key.shape[2])
    operator = torch.ops.aten._scaled_dot_product_efficient_attention
    output: Tensor = operator(query, key, value, attn_mask, True, dropout_p)[0]
    return output


@lru_cache(maxsize=2)
def model(task_name: str, device: str) -> tuple[Meter, Task, Batch]:
    """Build the model of a task once for all methods."""
    options = {"negative_texts": 1} if task_name == "Retrieval" else {}
    # The other tasks run the fusion layers of these two, so one layer will do.
    sizes = replace(CONFIG.resolve(), fusion_layers=2 if task_name in ("VQA", "Pretraining") else 1)
    with torch.device("meta"):
        meter, task = Meter(sizes), tasks()[task_name](**options)
        task.build(meter, 5)
    both = nn.ModuleList([meter, task]).train()
    if device == "meta":
        return meter, task, random_batch(meter, 2, task).to(device)
    with fake_cuda(FAKE):
        for part in both.modules():
            for name, weight in part.named_parameters(recurse=False):
                part._parameters[name] = nn.Parameter(on_cuda(weight))
            for name, buffer in part.named_buffers(recurse=False):
                part._buffers[name] = on_cuda(buffer)
        return meter, task, random_batch(meter, 2, task).to(device, non_blocking=True)


def reads(
    method: str, task_name: str, device: str, precisions: Iterable[str] = PRECISIONS
) -> dict[str, Counter[str]]:
    """Run a training step in each precision; return the operators that are not allowed."""
    found = {}
    meter, task, batch = model(task_name, device)
    attention = patch.object(F, "scaled_dot_product_attention", fused_attention)
    with attention, fake_cuda(FAKE) if device == "cuda" else nullcontext():
        reducer = shelf()[method]()
        layer = int(reducer.placement == "before_block")
        meter.set_reduction(reducer, Schedule(None, layers=(layer,)))
        for precision in precisions:
            with running(meter, task, device, PRECISIONS[precision]), HostReads() as host:
                loss = task.loss(meter, batch).total
                if device == "meta":
                    loss.backward()
            assert loss.device.type == device
            assert loss.dtype == torch.float32
            found[precision] = host.found
    return {precision: seen for precision, seen in found.items() if seen}


@contextmanager
def running(meter: Meter, task: Task, device: str, dtype: torch.dtype) -> Iterator[None]:
    """Run in a precision: under autocast, or on ``meta``, which has none, with such weights."""
    if device == "cuda":
        half = torch.bfloat16 if dtype == torch.float32 else dtype
        with torch.autocast("cuda", half, enabled=dtype != torch.float32):
            yield
    else:
        both = nn.ModuleList([meter, task]).to(dtype)
        yield
        both.to(torch.float32).zero_grad()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task_name", TASKS)
def test_a_forward_pass_never_waits(task_name: str, method: str) -> None:
    assert reads(method, task_name, "cuda") == {}


ALL = [(task, method) for task in TASKS for method in METHODS]
FEW = [(task, method) for task, method in ALL if task == "VQA" or method in ("ELIP", "PuMer")]


@pytest.mark.parametrize(("task_name", "method"), FEW)
def test_a_training_step_never_waits(task_name: str, method: str) -> None:
    """Every method on one task, and one method in the encoder and one in the fusion on each."""
    assert reads(method, task_name, "meta", ["fp32"]) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("task_name", "method"), ALL)
def test_no_training_step_waits(task_name: str, method: str) -> None:
    assert reads(method, task_name, "meta") == {}


def test_reads_copies_and_mixtures_are_seen() -> None:
    with fake_cuda():
        there = torch.ones(3, device="cuda")
        with HostReads() as host:
            there.cpu()
            there + torch.tensor(1.0)
        assert {name.split()[0] for name in host.found} == {"_to_copy", "add"}
        for read in (lambda: there[there > 0], lambda: bool(there[0]), there.tolist):
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                read()
    there = torch.ones(3, device="meta", requires_grad=True)
    with pytest.raises(RuntimeError, match="meta"):
        there.sum().item()
    with pytest.raises(RuntimeError, match="device"):
        Careless.apply(there).sum().backward()


class Careless(torch.autograd.Function):
    """Mixes devices in the backward pass only."""

    @staticmethod
    def forward(ctx: object, given: Tensor) -> Tensor:
        return given.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient + torch.ones(3)
