"""The reducers under test, and hosts for them: random signals and the tiny METER."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from elip.data.batch import TextBatch
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.schedule import Schedule
from reducers import EncodedText, Host, Reducer, Signals, shelf

WIDTH, HEADS, WORDS = 32, 4, 6
FOREIGN = "tests.contract.foreign.Longest"


def by_import_path(path: str) -> Reducer:
    """Make a reducer from an import path, as a configuration does."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reducer", type=Reducer)
    reducer: Reducer = parser.instantiate(parser.parse_args([f"--reducer={path}"])).reducer
    return reducer


METHODS = [
    pytest.param(cls, id=name) for name, cls in shelf().items() if cls.placement != "never"
] + [pytest.param(lambda: by_import_path(FOREIGN), id="foreign")]


def bound(reducer: Reducer) -> Reducer:
    """Configure a reducer for a host whose second block is the only reduction layer."""
    reducer.configure(Host(WIDTH, HEADS, num_blocks=4, layers=(1,), text_width=WIDTH))
    return reducer.eval()


def scene(
    reducer: Reducer, batch: int = 3, grid: tuple[int, int] = (6, 6), seed: int = 0
) -> tuple[Tensor, Signals]:
    """Make random patches and the signals that the reducer requests."""
    rng = torch.Generator().manual_seed(seed)
    count = grid[0] * grid[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    patches = normal(batch, count, WIDTH)
    index = torch.arange(count)
    places = torch.stack([index // grid[1], index % grid[1]], dim=1).float()
    mask = torch.arange(WORDS) < torch.tensor([[WORDS], [4], [2]]).repeat(batch, 1)[:batch]
    cls, by_head = normal(batch, 1, WIDTH), normal(batch, HEADS, count).softmax(dim=-1)
    signals = {
        "cls_attention": by_head.mean(dim=1),
        "head_attention": by_head,
        "attention_received": normal(batch, count).softmax(dim=-1),
        "text_attention": normal(batch, count).softmax(dim=-1),
        "keys": normal(batch, HEADS, count, WIDTH // HEADS),
        "values": normal(batch, HEADS, count, WIDTH // HEADS),
        "text": EncodedText(normal(batch, WORDS, WIDTH), mask),
        "joint_embeddings": (normal(batch, count, 8), normal(batch, 1, 8)),
        "probe": lambda cls, tokens, depth: (tokens @ cls.mT)[..., 0].softmax(dim=1),
        "sizes": torch.randint(1, 5, (batch, count), generator=rng).float(),
        "positions": places.expand(batch, -1, -1),
        "cross_attention": normal(batch, WORDS, count).softmax(dim=-1),
    }
    return patches, Signals(
        cls=cls,
        stage=0,
        layer=1,
        grid=grid,
        seeds=torch.arange(batch) * 7919 + 11,
        requested={name: signals[name] for name in reducer.needs},
        reader=type(reducer).__name__,
    )


def mapped(signals: Signals, function: Callable[[Tensor], Tensor]) -> Signals:
    """Apply a function to every tensor."""

    def each(value: Any) -> Any:
        if isinstance(value, EncodedText):
            return EncodedText(function(value.tokens), function(value.mask))
        if isinstance(value, tuple):
            return tuple(map(function, value))
        return function(value) if isinstance(value, Tensor) else value

    requested = {name: each(value) for name, value in signals.requested.items()}
    cls, seeds = function(signals.cls), function(signals.seeds)
    return replace(signals, cls=cls, seeds=seeds, requested=requested)


def permuted(signals: Signals, order: Tensor) -> Signals:
    """Put the patches in another order."""

    def each(name: str, value: Any) -> Any:
        if name in ("text", "probe"):
            return value
        if name == "joint_embeddings":
            return value[0][:, order], value[1]
        by_head = name in ("head_attention", "keys", "values", "cross_attention")
        return value.index_select(1 + by_head, order)

    requested = {name: each(name, value) for name, value in signals.requested.items()}
    return replace(signals, requested=requested)


def groups(assignment: Tensor) -> Tensor:
    """Label each token by the first member of its group, -1 if dropped."""
    batch, count = assignment.shape
    index = torch.arange(count).expand(batch, -1)
    first = torch.full((batch, count), count).scatter_reduce(
        1, assignment.clamp(min=0), torch.where(assignment >= 0, index, count), "amin"
    )
    return torch.where(assignment >= 0, first.gather(1, assignment.clamp(min=0)), -1)


def tiny(reducer: Reducer | None, ratio: float = 0.6, seed: int = 0) -> Meter:
    torch.manual_seed(seed)
    sizes = MeterConfig(preset="tiny", vocab_size=50, image_size=48).resolve()
    return Meter(sizes, reducer, Schedule(keep_ratio=ratio))


def pairs(batch: int = 3) -> tuple[Tensor, TextBatch, Tensor]:
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (batch, 3, 48, 48), generator=rng, dtype=torch.uint8)
    ids = torch.randint(5, 50, (batch, 10), generator=rng)
    mask = torch.arange(10) < torch.tensor([[10], [7], [4]]).repeat(batch, 1)[:batch]
    return images, TextBatch(ids.where(mask, 1), mask), torch.arange(batch) + 3
