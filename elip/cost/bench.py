"""Many reducers at many keep ratios in one METER: multiply-adds, time and memory of each.

All candidates share one set of random weights, so that many fit into memory and take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from elip.cost.count import measure_cost, measure_training_cost
from elip.cost.timing import Timing, peak_memory, time_interleaved
from elip.data.batch import Batch, TextBatch
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.record import Cost
from elip.schedule import Schedule
from elip.tasks.base import Task
from elip.tasks.pretrain import Pretraining
from reducers.contract import Reducer

NO_REDUCTION = "no reduction"
# Word pieces of a text encoder that has no vocabulary of its own; the data would bring it.
_VOCAB = 1000
_COUNTED_EXAMPLES = 2


Row = dict[str, Any]
"""One line of the table: plain values by column, None where something is missing."""


@dataclass(frozen=True)
class Setting:
    """How the candidates are run.

    Attributes:
        image_size: Pixels a side.
        batch_size: Examples a batch.
        precision: ``fp32``, or ``bf16`` for bfloat16 autocast.
        compiled: Whether image encoder and fusion are compiled.
        training: Whether a training step is timed instead of a forward pass.
    """

    image_size: int
    batch_size: int
    precision: str = "fp32"
    compiled: bool = False
    training: bool = False


@dataclass(frozen=True)
class Cell:
    """What one candidate costs in one setting.

    Attributes:
        reducer: Name of the method.
        keep_ratio: Measured mean share of patch tokens that enter a block.
        setting: How it was run.
        cost: Forward pass, G multiply-adds an example (one multiply-add = 1).
        training_step: Training step, likewise; None where it was not counted.
        timing: Times of a batch.
        memory: Peak memory above weights and inputs, bytes; None where it cannot be told.
    """

    reducer: str
    keep_ratio: float
    setting: Setting
    cost: Cost
    training_step: float | None
    timing: Timing
    memory: int | None

    def row(self, baseline: Cell) -> Row:
        """Return one row of the table.

        ``less_work`` is the multiply-adds of ``baseline`` over this cell's, ``faster`` the same of
        the time; ``gflops_*`` are G multiply-adds an example.

        Args:
            baseline: No reduction in the same setting.
        """
        gflops, full = self.cost.total, baseline.cost.total
        if self.setting.training:
            gflops, full = self.training_step, baseline.training_step
        return {
            "reducer": self.reducer,
            "keep_ratio": self.keep_ratio,
            **asdict(self.setting),
            **{f"gflops_{part}": value for part, value in asdict(self.cost).items()},
            "gflops_total": self.cost.total,
            "gflops_training_step": self.training_step,
            "latency_p50_ms": 1e3 * self.timing.median,
            "latency_p95_ms": 1e3 * self.timing.p95,
            "latency_spread": self.timing.spread,
            "examples_per_s": self.timing.examples_per_second,
            "peak_memory_mb": None if self.memory is None else self.memory / 1e6,
            "less_work": full / gflops if gflops and full else None,
            "faster": baseline.timing.median / self.timing.median,
        }


@dataclass(frozen=True)
class _Candidate:
    name: str
    meter: Meter
    task: Task


Methods = Mapping[str, Callable[[], Reducer]]
"""Reducers by name, each made anew on call."""


def measure(
    config: MeterConfig,
    schedule: Schedule,
    methods: Methods,
    keep_ratios: Sequence[float],
    settings: Sequence[Setting],
    device: torch.device,
    rounds: int = 10,
    count_training: bool = True,
) -> Iterator[list[Cell]]:
    """Measure every method at every keep ratio, and no reduction, in every setting.

    Args:
        config: The model's sizes; its image size gives way to the settings'.
        schedule: Layers and profile; its keep ratio gives way to the ones below.
        methods: The reducers.
        keep_ratios: In (0, 1].
        settings: How to run them.
        device: Where.
        rounds: Timed runs of each candidate, after two that are dropped.
        count_training: Whether the training step is counted (it takes as long as some runs).

    Yields:
        For each setting its cells, no reduction first.

    Raises:
        ValueError: A keep ratio cannot be reached, or method and model do not fit.
        CostError: A cost cannot be counted with certainty.
    """
    built: tuple[int, bool] | None = None
    candidates: list[_Candidate] = []
    costs: dict[int, list[tuple[Cost, float | None]]] = {}
    for setting in settings:
        size = setting.image_size
        if built != (size, setting.compiled):
            built = (size, setting.compiled)
            sized = replace(config, image_size=size)
            candidates = _candidates(sized, schedule, methods, keep_ratios, device)
        if size not in costs:
            counted = count_training or any(s.training for s in settings)
            costs[size] = [_count(candidate, counted, device) for candidate in candidates]
        if setting.compiled:
            for candidate in candidates:
                candidate.meter.image.compile()
                candidate.meter.fusion.compile()
        yield _run(candidates, costs[size], setting, device, rounds)


def _candidates(
    config: MeterConfig,
    schedule: Schedule,
    methods: Methods,
    keep_ratios: Sequence[float],
    device: torch.device,
) -> list[_Candidate]:
    sizes = config.resolve()
    vocab = _VOCAB if sizes.text_encoder in ("roberta", "bert") else None
    base = Meter(sizes, vocab_size=vocab).to(device)
    found = [_candidate(NO_REDUCTION, base, base)]
    for name, make in methods.items():
        # A method that never acts is no reduction: it has no ratio.
        for ratio in keep_ratios if make().acts != "never" else ():
            asked = replace(schedule, keep_ratio=ratio, counts=None)
            with torch.device("meta"):
                meter = Meter(sizes, make(), asked, vocab)
            _share_weights(meter, base, device)
            found.append(_candidate(name, meter, base))
    return found


def _candidate(name: str, meter: Meter, base: Meter) -> _Candidate:
    task = Pretraining()
    task.build(meter, 0)
    return _Candidate(name, meter, task.to(base.pixel_mean.device))


def _share_weights(meter: Meter, base: Meter, device: torch.device) -> None:
    """Give ``meter``, built without memory, the weights of ``base``; zeros where base has none."""
    for name, module in meter.named_modules():
        # Shadowed by nothing in base: a method's own weights, whose values do not change a cost.
        source = base.get_submodule(name) if _has(base, name) else nn.Module()
        for kind in ("_parameters", "_buffers"):
            own, given = getattr(module, kind), getattr(source, kind)
            for key, tensor in own.items():
                if tensor is not None:
                    zeros = torch.zeros_like(tensor, device=device)
                    fresh = nn.Parameter(zeros) if kind == "_parameters" else zeros
                    own[key] = given.get(key, fresh)


def _has(module: nn.Module, name: str) -> bool:
    try:
        return module.get_submodule(name) is not None
    except AttributeError:
        return False


def _count(
    candidate: _Candidate, training: bool, device: torch.device
) -> tuple[Cost, float | None]:
    meter, task = candidate.meter, candidate.task
    batch = _batch(meter, _COUNTED_EXAMPLES).to(device)
    cost = measure_cost(meter, lambda: task.infer(meter, batch), len(batch), head=task)
    if not training:
        return cost, None
    both = nn.ModuleList([meter, task]).train()
    return cost, measure_training_cost(both, lambda: task.loss(meter, batch).total, len(batch))


def _run(
    candidates: list[_Candidate],
    costs: list[tuple[Cost, float | None]],
    setting: Setting,
    device: torch.device,
    rounds: int,
) -> list[Cell]:
    batch = _batch(candidates[0].meter, setting.batch_size).to(device)
    work = {
        str(place): _work(candidate, batch, setting, device)
        for place, candidate in enumerate(candidates)
    }
    timings = time_interleaved(work, rounds, examples=len(batch), device=device)
    cells = []
    for (place, run), candidate, (cost, step) in zip(work.items(), candidates, costs, strict=True):
        ratio = candidate.meter.plan.keep_ratio
        memory = peak_memory(run, device)
        cells.append(
            Cell(candidate.name, ratio, setting, cost, step, timings[place], memory)
        )  # fmt: skip
    return cells


def _work(
    candidate: _Candidate, batch: Batch, setting: Setting, device: torch.device
) -> Callable[[], object]:
    meter, task = candidate.meter, candidate.task
    both = nn.ModuleList([meter, task])
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "bf16")

    def infer() -> object:
        both.eval()
        with torch.no_grad(), autocast:
            return task.infer(meter, batch)

    def step() -> object:
        both.train()
        with autocast:
            loss = task.loss(meter, batch).total
        loss.backward()
        both.zero_grad()
        return loss

    return step if setting.training else infer


def _batch(meter: Meter, count: int) -> Batch:
    """Return a batch of random pixels and words; what they say does not change a cost."""
    sizes, generator = meter.sizes, torch.Generator().manual_seed(0)
    shape = (count, 1, 3, sizes.image_size, sizes.image_size)
    words = (count, sizes.max_text_len)
    ids = torch.randint(5, meter.text.vocab_size, words, generator=generator)
    text = TextBatch(ids, torch.ones(words, dtype=torch.bool))
    return Batch(
        images=torch.randint(256, shape, generator=generator).to(torch.uint8),
        text=text,
        strings=("",) * count,
        example=torch.arange(count),
        image_id=torch.arange(count),
        masked=text,
        masked_labels=text.ids,
        false_images=torch.randint(256, shape, generator=generator).to(torch.uint8),
    )
