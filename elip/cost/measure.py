"""Many reducers on many schedules in one METER: multiply-adds, time and memory of each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from elip.cost.batches import random_batch
from elip.cost.count import PARTS, check_count, count_forward, count_training_step
from elip.cost.timing import Run, inference, peak_memory, time_interleaved
from elip.data.batch import Batch
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.record import Gflops
from elip.schedule import Schedule
from elip.tasks.base import Task
from elip.tasks.pretrain import Pretraining
from reducers import Identity
from reducers.contract import Reducer

NO_REDUCTION = "No reduction"
# Word pieces of a text encoder that has no vocabulary of its own; the data would bring it.
_VOCAB = 1000

Phase = Literal["encoder", "inference", "training"]
"""What is timed: the image encoder; a whole forward pass; a training step, both passes of
pre-training forward and backward, then the optimiser."""

PHASES: tuple[Phase, ...] = get_args(Phase)

Row = dict[str, Any]
"""One line of the table: plain values by column, None where something is missing."""

Methods = Mapping[str, Callable[[], Reducer]]
"""Reducers by name, each made anew on call."""


@dataclass(frozen=True)
class Setting:
    """How the candidates run.

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
class Candidate:
    """A method in a model that shares its weights with all others.

    Attributes:
        name: Name of the method.
        meter: The model.
        task: Pre-training; its inference is one image-text pair scored.
        gflops: What it costs.
        operators: Operators that a forward pass launches.
    """

    name: str
    meter: Meter
    task: Task
    gflops: Gflops
    operators: int


def measure(
    config: MeterConfig,
    methods: Methods,
    schedules: Sequence[Schedule],
    settings: Sequence[Setting],
    device: torch.device,
    rounds: int = 10,
    training: bool = True,
    check: bool = False,
) -> Iterator[list[Row]]:
    """Measure every method on every schedule, and no reduction, in every setting.

    Args:
        config: The model's sizes; its image size gives way to the settings'.
        methods: The reducers.
        schedules: When and how much they reduce.
        settings: How to run them.
        device: Where.
        rounds: Timed runs of each candidate, after two that are dropped; 0 only counts.
        training: Whether the training step is counted (it takes as long as some runs).
        check: Whether the forward pass is counted by torch as well.

    Yields:
        For each setting its rows, no reduction first. ``gflops`` is what was timed, in G
        multiply-adds an example, ``gflops_*`` are the parts. ``flops_speedup`` is the multiply-adds
        without reduction over those with, ``latency_speedup`` the same of the time, ``efficiency``
        the second over the first.

    Raises:
        ValueError: A keep ratio cannot be reached, or method and model do not fit.
        CostError: A cost is not known, or the counters disagree.
    """
    built: tuple[int, bool] | None = None
    candidates: list[Candidate] = []
    training = training or any(each.phase == "training" for each in settings)
    for setting in settings:
        if built != (setting.image_size, setting.compiled):
            built = (setting.image_size, setting.compiled)
            sized = replace(config, image_size=setting.image_size)
            candidates = build(sized, methods, schedules, device, training, check)
            if setting.compiled:
                _compile(candidates)
        yield _rows(candidates, setting, device, rounds)


def build(
    config: MeterConfig,
    methods: Methods,
    schedules: Sequence[Schedule],
    device: torch.device,
    training: bool = False,
    check: bool = False,
) -> list[Candidate]:
    """Build and count a model for each method and schedule, no reduction first; see `measure`."""
    sizes = config.resolve()
    vocab = _VOCAB if sizes.text_encoder in ("roberta", "bert") else None

    def on(where: torch.device | str) -> tuple[Meter, Task]:
        with torch.device(where):
            meter, task = Meter(sizes, vocab_size=vocab), Pretraining()
            task.build(meter, 0)
        return meter, task

    (base, task), (shapes, dry) = on(device), on("meta")
    tensors = (*base.parameters(), *base.buffers())
    one, two = (random_batch(base, count) for count in (1, 2))

    def candidate(name: str, make: Callable[[], Reducer], schedule: Schedule) -> Candidate:
        # The copy shares all tensors with the base.
        meter = copy.deepcopy(base, {id(tensor): tensor for tensor in tensors})
        meter.set_reduction(make(), schedule)
        cost = (check_count if check else count_forward)(meter, task, one.to(device))
        # Shapes are enough for the rest. Of two examples, one gets a false image.
        shapes.set_reduction(make(), schedule)
        step = count_training_step(shapes, dry, two.to("meta")) if training else None
        cost = cost.model_copy(update={"training_step": step})
        return Candidate(name, meter, task, cost, count_operators(shapes, dry, one.to("meta")))

    found = [candidate(NO_REDUCTION, Identity, Schedule())]
    for name, make in methods.items():
        # A method that never acts is no reduction: it has no ratio.
        for schedule in schedules if make().placement != "never" else ():
            found.append(candidate(name, make, schedule))
    return found


def _compile(candidates: list[Candidate]) -> None:
    # All candidates share the code of their modules; none may fall back to running eagerly.
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * len(candidates))
    dynamo.fail_on_recompile_limit_hit = True
    for candidate in candidates:
        candidate.meter.compile_parts()


def _rows(
    candidates: list[Candidate], setting: Setting, device: torch.device, rounds: int
) -> list[Row]:
    batch = random_batch(candidates[0].meter, setting.batch_size).to(device)
    optimizer = None
    if setting.phase == "training":
        # Of the weights that all share; at this rate they stay all but as they are.
        weights = candidates[0].meter.parameters()
        optimizer = AdamW(weights, lr=1e-9, fused=device.type in ("cpu", "cuda"))
    runs = {str(i): _run(each, batch, setting, optimizer) for i, each in enumerate(candidates)}
    timings, memory = {}, dict[str, int | None]()
    if rounds:
        parts = [part for each in candidates for part in (each.meter, each.task)]
        half = "bf16-mixed" if setting.precision == "bf16" else None
        if setting.phase == "training":
            timings = time_interleaved(runs, rounds, 2, len(batch), device)
            memory = {name: peak_memory(run, device) for name, run in runs.items()}
        else:
            with inference(*parts, precision=half):
                timings = time_interleaved(runs, rounds, 2, len(batch), device)
                memory = {name: peak_memory(run, device) for name, run in runs.items()}
    rows: list[Row] = []
    for name, each in zip(runs, candidates, strict=True):
        ratio, fusion = each.meter.plan.keep_ratio, _in_fusion(each.meter)
        row: Row = {
            "reducer": each.name,
            "keep_ratio": 1.0 if fusion else ratio,
            "fusion_keep_ratio": ratio if fusion else None,
            **asdict(setting),
            "gflops": _timed_gflops(each.gflops, setting.phase),
            **{f"gflops_{part}": getattr(each.gflops, part) for part in PARTS},
            "gflops_total": each.gflops.total,
            "gflops_training_step": each.gflops.training_step,
            "operators": each.operators,
        }
        row["flops_speedup"] = _over(rows[0]["gflops"] if rows else row["gflops"], row["gflops"])
        if name in timings:
            timing = timings[name]
            peak = memory[name]
            row |= {
                "latency_ms": 1e3 * timing.median,
                "latency_p95_ms": 1e3 * timing.p95,
                "latency_spread": timing.spread,
                "examples_per_second": timing.examples_per_second,
                "peak_memory_mb": None if peak is None else peak / 1e6,
                "latency_speedup": timings["0"].median / timing.median,
            }
            row["efficiency"] = _over(row["latency_speedup"], row["flops_speedup"])
        rows.append(row)
    return rows


def _in_fusion(meter: Meter) -> bool:
    return meter.reducer.placement == "fusion"


def _over(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def _timed_gflops(cost: Gflops, phase: Phase) -> float | None:
    if phase == "training":
        return cost.training_step
    if phase == "inference":
        return cost.total
    return sum(part or 0 for part in (cost.vision, cost.probe, cost.reducer))


def _run(each: Candidate, batch: Batch, setting: Setting, optimizer: AdamW | None) -> Run:
    """Return one pass of a candidate; `inference` surrounds those that do not train."""
    meter, task = each.meter, each.task
    if setting.phase == "inference":
        return lambda: task.infer(meter, batch)
    if setting.phase == "encoder":
        with torch.no_grad():
            text = meter.eval().encode_text(batch.text)
        return lambda: meter.encode_image(batch.images[:, 0], text, batch.example)
    assert optimizer is not None
    both = nn.ModuleList([meter, task])

    def step() -> None:
        both.train()
        with torch.autocast(
            batch.images.device.type, torch.bfloat16, enabled=setting.precision == "bf16"
        ):
            loss = task.loss(meter, batch).total
        loss.backward()
        optimizer.step()
        both.zero_grad()

    return step


class _Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Views launch nothing.
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def count_operators(meter: Meter, task: Task, batch: Batch) -> int:
    """Return how many operators, views apart, one forward pass hands to the device."""
    with inference(meter, task), _Launches() as launches:
        task.infer(meter, batch)
    count: int = launches.count
    return count
