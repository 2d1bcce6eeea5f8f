"""Many reducers on many schedules in one METER: multiply-adds, time and memory of each.

All candidates share one set of random weights, so that many fit into memory and take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim import AdamW

from elip.cost.count import measure_cost, measure_training_cost
from elip.cost.timing import Timing, peak_memory, time_interleaved
from elip.data.batch import Batch, TextBatch
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.old_record import Cost
from elip.schedule import Schedule
from elip.tasks.base import Task
from elip.tasks.pretrain import Pretraining
from reducers.contract import Reducer

NO_REDUCTION = "no reduction"
# Word pieces of a text encoder that has no vocabulary of its own; the data would bring it.
_VOCAB = 1000


Phase = Literal["encoder", "inference", "training"]
"""What is timed: the image encoder; a whole forward pass; a training step, both passes of
pre-training forward and backward, then the optimiser."""

PHASES: tuple[Phase, ...] = get_args(Phase)

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
        phase: What is timed.
    """

    image_size: int
    batch_size: int
    precision: str = "fp32"
    compiled: bool = False
    phase: Phase = "inference"


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
        the time, ``realised`` how much of the first the second is; ``gflops`` is what was timed,
        in G multiply-adds an example, ``gflops_*`` are those of the parts.

        Args:
            baseline: No reduction in the same setting.
        """
        work, full = self.work, baseline.work
        less_work = full / work if work and full else None
        faster = baseline.timing.median / self.timing.median
        return {
            "reducer": self.reducer,
            "keep_ratio": self.keep_ratio,
            **asdict(self.setting),
            "gflops": work,
            **{f"gflops_{part}": value for part, value in asdict(self.cost).items()},
            "gflops_total": self.cost.total,
            "gflops_training_step": self.training_step,
            "latency_p50_ms": 1e3 * self.timing.median,
            "latency_p95_ms": 1e3 * self.timing.p95,
            "latency_spread": self.timing.spread,
            "examples_per_s": self.timing.examples_per_second,
            "peak_memory_mb": None if self.memory is None else self.memory / 1e6,
            "less_work": less_work,
            "faster": faster,
            "realised": None if less_work is None else faster / less_work,
        }

    @property
    def work(self) -> float | None:
        """G multiply-adds an example of what was timed; None where that was not counted."""
        cost = self.cost
        if self.setting.phase == "training":
            return self.training_step
        if self.setting.phase == "inference":
            return cost.total
        return sum(part or 0 for part in (cost.vision, cost.probe, cost.reducer))


@dataclass(frozen=True)
class _Candidate:
    name: str
    meter: Meter
    task: Task
    training_step: float | None


Methods = Mapping[str, Callable[[], Reducer]]
"""Reducers by name, each made anew on call."""


def measure(
    config: MeterConfig,
    methods: Methods,
    schedules: Sequence[Schedule],
    settings: Sequence[Setting],
    device: torch.device,
    rounds: int = 10,
    count_training: bool = True,
) -> Iterator[list[Cell]]:
    """Measure every method on every schedule, and no reduction, in every setting.

    Args:
        config: The model's sizes; its image size gives way to the settings'.
        methods: The reducers.
        schedules: When and how much they reduce.
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
    costs: dict[int, list[Cost]] = {}
    counting = count_training or any(each.phase == "training" for each in settings)
    for setting in settings:
        size = setting.image_size
        if built != (size, setting.compiled):
            built = (size, setting.compiled)
            sized = replace(config, image_size=size)
            candidates = _candidates(sized, methods, schedules, device, counting)
        if size not in costs:
            costs[size] = [_forward_cost(candidate, device) for candidate in candidates]
        if setting.compiled:
            # All candidates share the code of their modules; none may fall back to running eagerly.
            dynamo = torch._dynamo.config
            dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * len(candidates))
            dynamo.fail_on_recompile_limit_hit = True
            for candidate in candidates:
                candidate.meter.compile_parts()
        yield _run(candidates, costs[size], setting, device, rounds)


def _candidates(
    config: MeterConfig,
    methods: Methods,
    schedules: Sequence[Schedule],
    device: torch.device,
    count_training: bool,
) -> list[_Candidate]:
    sizes = config.resolve()
    vocab = _VOCAB if sizes.text_encoder in ("roberta", "bert") else None
    with device:
        base, base_task = Meter(sizes, vocab_size=vocab), Pretraining()
        base_task.build(base, 0)
    found = []

    def add(name: str, reducer: Reducer | None, schedule: Schedule | None) -> None:
        with torch.device("meta"):
            meter, task = Meter(sizes, reducer, schedule, vocab), Pretraining()
            task.build(meter, 0)
        step = _training_cost(meter, task) if count_training else None
        _share_weights(meter, base, device)
        _share_weights(task, base_task, device)
        found.append(_Candidate(name, meter, task, step))

    add(NO_REDUCTION, None, None)
    for name, make in methods.items():
        # A method that never acts is no reduction: it has no ratio.
        for schedule in schedules if make().placement != "never" else ():
            add(name, make(), schedule)
    return found


def _share_weights(module: nn.Module, base: nn.Module, device: torch.device) -> None:
    """Give ``module``, built without memory, the weights of ``base``; zeros where base has none."""
    for name, part in module.named_modules():
        # Shadowed by nothing in base: a method's own weights, whose values do not change a cost.
        source = base.get_submodule(name) if _has(base, name) else nn.Module()
        for kind in ("_parameters", "_buffers"):
            own, given = getattr(part, kind), getattr(source, kind)
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


def _forward_cost(candidate: _Candidate, device: torch.device) -> Cost:
    meter, task = candidate.meter, candidate.task
    batch = random_batch(meter, 1).to(device)
    return measure_cost(meter, lambda: task.infer(meter, batch), head=task)


def _training_cost(meter: Meter, task: Task) -> float:
    """Count a training step on shapes alone; of two examples, one gets a negative image."""
    batch = random_batch(meter, 2).to("meta")
    both = nn.ModuleList([meter, task]).train()
    return measure_training_cost(both, lambda: task.loss(meter, batch).total, len(batch))


def _run(
    candidates: list[_Candidate],
    costs: list[Cost],
    setting: Setting,
    device: torch.device,
    rounds: int,
) -> list[Cell]:
    batch = random_batch(candidates[0].meter, setting.batch_size).to(device)
    optimizer = None
    if setting.phase == "training":
        # Of the weights that all share; at this rate they stay all but as they are.
        weights = candidates[0].meter.parameters()
        optimizer = AdamW(weights, lr=1e-9, fused=device.type in ("cpu", "cuda"))
    work = {
        str(place): _work(candidate, batch, setting, device, optimizer)
        for place, candidate in enumerate(candidates)
    }
    timings = time_interleaved(work, rounds, examples=len(batch), device=device)
    cells = []
    for (place, run), candidate, cost in zip(work.items(), candidates, costs, strict=True):
        cell = Cell(
            reducer=candidate.name,
            keep_ratio=candidate.meter.plan.keep_ratio,
            setting=setting,
            cost=cost,
            training_step=candidate.training_step,
            timing=timings[place],
            memory=peak_memory(run, device),
        )
        cells.append(cell)
    return cells


def _work(
    candidate: _Candidate,
    batch: Batch,
    setting: Setting,
    device: torch.device,
    optimizer: AdamW | None,
) -> Callable[[], object]:
    meter, task = candidate.meter, candidate.task
    both = nn.ModuleList([meter, task])
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "bf16")

    def infer() -> object:
        both.eval()
        with torch.no_grad(), autocast:
            return task.infer(meter, batch)

    def step() -> object:
        assert optimizer is not None
        both.train()
        with autocast:
            loss = task.loss(meter, batch).total
        loss.backward()
        optimizer.step()
        both.zero_grad()
        return loss

    if setting.phase != "encoder":
        return step if setting.phase == "training" else infer
    with torch.no_grad():
        text = meter.eval().encode_text(batch.text)

    def encode() -> object:
        meter.eval()
        with torch.no_grad(), autocast:
            return meter.encode_image(batch.images[:, 0], text, batch.example)

    return encode


def random_batch(meter: Meter, count: int, images: int = 1) -> Batch:
    """Return a batch of random pixels and words; what they say does not change a cost.

    Args:
        meter: The model that it is for.
        count: Examples.
        images: Images an example.
    """
    sizes, generator = meter.sizes, torch.Generator().manual_seed(0)
    shape = (count, images, 3, sizes.image_size, sizes.image_size)
    words = (count, sizes.max_text_len)
    ids = torch.randint(5, meter.vocab_size, words, generator=generator)
    text = TextBatch(ids, torch.ones(words, dtype=torch.bool))
    return Batch(
        images=torch.randint(256, shape, generator=generator).to(torch.uint8),
        text=text,
        strings=("",) * count,
        example=torch.arange(count),
        image_id=torch.arange(count),
        masked=text,
        masked_labels=text.ids,
        negative_images=torch.randint(256, shape, generator=generator).to(torch.uint8),
    )
