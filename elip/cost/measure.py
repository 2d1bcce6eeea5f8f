"""Measure many reducers and schedules in one METER: multiply-adds, time and memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
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
# For text encoders whose vocabulary comes from the data.
_VOCAB = 1000

Phase = Literal["encoder", "inference", "training"]
"""What is timed: the image encoder, the whole forward pass, or a training step (both pre-training
objectives forward and backward, then the optimiser)."""

PHASES: tuple[Phase, ...] = get_args(Phase)

Row = dict[str, Any]
"""One table row: column -> plain value, None if missing."""

Methods = Mapping[str, Callable[[], Reducer]]
"""Name -> function that makes a new reducer."""


@dataclass(frozen=True)
class Setting:
    """How the candidates run; ``precision`` is ``fp32`` or ``bf16`` (autocast)."""

    image_size: int
    batch_size: int
    precision: str = "fp32"
    compiled: bool = False
    phase: Phase = "inference"


@dataclass(frozen=True)
class Candidate:
    """A method in its own copy of the model. All copies share their weights."""

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
    """Measure no reduction, and every method on every schedule, in every setting.

    Args:
        config: The model's sizes. The settings override its image size.
        methods: The reducers.
        schedules: When and how much they reduce.
        settings: How to run them.
        device: Where to run them.
        rounds: Timed runs of each candidate, after two warm-up runs; 0 only counts.
        training: Whether to count the training step too.
        check: Whether to count the forward pass with torch too and compare.

    Yields:
        The rows of one setting, no reduction first. ``gflops`` (G multiply-adds per example) covers
        the timed phase and ``gflops_*`` the parts. ``flops_speedup`` and ``latency_speedup`` divide
        the value without reduction by the value with it. ``efficiency`` is latency speed-up over
        FLOPs speed-up.

    Raises:
        ValueError: A keep ratio cannot be reached, or a method does not fit the model.
        CostError: An operator's cost is unknown, or the counters disagree.
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
                # All candidates share compiled code. None may silently fall back to eager mode.
                dynamo = torch._dynamo.config
                dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * len(candidates))
                dynamo.fail_on_recompile_limit_hit = True
                for candidate in candidates:
                    candidate.meter.compile_parts()
        yield _rows(candidates, setting, device, rounds)


def build(
    config: MeterConfig,
    methods: Methods,
    schedules: Sequence[Schedule],
    device: torch.device,
    training: bool = False,
    check: bool = False,
) -> list[Candidate]:
    """Build and count a model per method and schedule, no reduction first; see `measure`."""
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
        # The memo makes the copy share all tensors with the base.
        meter = copy.deepcopy(base, {id(tensor): tensor for tensor in tensors})
        meter.set_reduction(make(), schedule)
        cost = (check_count if check else count_forward)(meter, task, one.to(device))
        # The rest needs only shapes. Pre-training needs two examples: one gets a negative image.
        shapes.set_reduction(make(), schedule)
        step = count_training_step(shapes, dry, two.to("meta")) if training else None
        cost = cost.model_copy(update={"training_step": step})
        return Candidate(name, meter, task, cost, count_operators(shapes, dry, one.to("meta")))

    found = [candidate(NO_REDUCTION, Identity, Schedule())]
    for name, make in methods.items():
        # "No reduction" is in the list already.
        for schedule in schedules if make().placement != "never" else ():
            found.append(candidate(name, make, schedule))
    return found


def _rows(
    candidates: list[Candidate], setting: Setting, device: torch.device, rounds: int
) -> list[Row]:
    batch = random_batch(candidates[0].meter, setting.batch_size).to(device)
    training, optimizer = setting.phase == "training", None
    if training:
        # All candidates share these weights. The tiny rate leaves them nearly unchanged.
        weights = candidates[0].meter.parameters()
        optimizer = AdamW(weights, lr=1e-9, fused=device.type in ("cpu", "cuda"))
    runs = {str(i): _run(each, batch, setting, optimizer) for i, each in enumerate(candidates)}
    timings, memory = {}, dict[str, int | None]()
    if rounds:
        parts = [part for each in candidates for part in (each.meter, each.task)]
        half = "bf16-mixed" if setting.precision == "bf16" else None
        with nullcontext() if training else inference(*parts, precision=half):
            timings = time_interleaved(runs, rounds, 2, len(batch), device)
            memory = {name: peak_memory(run, device) for name, run in runs.items()}
    rows: list[Row] = []
    for name, each in zip(runs, candidates, strict=True):
        ratio, cost = each.meter.plan.keep_ratio, each.gflops
        fusion = each.meter.reducer.placement == "fusion"
        gflops = {
            "encoder": (cost.vision or 0) + (cost.probe or 0) + (cost.reducer or 0),
            "inference": cost.total,
            "training": cost.training_step,
        }[setting.phase]
        row: Row = {
            "reducer": each.name,
            "keep_ratio": 1.0 if fusion else ratio,
            "fusion_keep_ratio": ratio if fusion else None,
            **asdict(setting),
            "gflops": gflops,
            **{
                f"gflops_{part}": getattr(cost, part) for part in (*PARTS, "total", "training_step")
            },
            "operators": each.operators,
            "flops_speedup": _over(rows[0]["gflops"] if rows else gflops, gflops),
        }
        if name in timings:
            timing, peak = timings[name], memory[name]
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


def _over(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def _run(each: Candidate, batch: Batch, setting: Setting, optimizer: AdamW | None) -> Run:
    meter, task = each.meter, each.task
    if setting.phase == "inference":
        return lambda: task.infer(meter, batch)
    if setting.phase == "encoder":
        with torch.no_grad():
            text = meter.eval().encode_text(batch.text)
        return lambda: meter.encode_image(batch.images[:, 0], text, batch.example)
    assert optimizer is not None
    both, device = nn.ModuleList([meter, task]), batch.images.device.type

    def step() -> None:
        both.train()
        with torch.autocast(device, torch.bfloat16, enabled=setting.precision == "bf16"):
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
        self.count += not func.is_view  # views launch nothing
        return func(*args, **(kwargs or {}))


def count_operators(meter: Meter, task: Task, batch: Batch) -> int:
    """Count the operators of one forward pass, without views."""
    with inference(meter, task), _Launches() as launches:
        task.infer(meter, batch)
    count: int = launches.count
    return count
