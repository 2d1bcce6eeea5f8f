"""Measure a GPU in at most 8 minutes. Each result is written at once, as one JSON line.

    python benchmarks/gpu.py --out runs/gpu.jsonl
    python benchmarks/gpu.py --tiny             # try the script at tiny size on a CPU

Weights, pixels and words are random. The most informative parts run first. Parts that would
take too long are skipped:

- ``smoke``: every method and task, forward and backward, in bf16, fp16 and fp32; an operator that
  makes the host wait is an error.
- ``agreement``: do CPU and GPU keep the same tokens, given the same weights and pixels?
- ``speed``: every method in bf16 at batch 64 and 1, 288 and 384 px. ``host_ms`` is the
  time to launch a pass. If it is close to ``gpu_ms``, the GPU waits for the host.
- ``training``: a training step and its peak memory.
- ``retrieval``: pairs scored a second, encoded once.
- ``loading``: JPEGs decoded a second.
- ``compiled``: speed with torch.compile, and the time of the first pass.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from elip.cost.count import GIGA, count_run, random_batch
from elip.cost.timing import inference, peak_memory
from elip.data.batch import Batch
from elip.data.transforms import TRANSFORMS
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.record import environment
from elip.schedule import Schedule
from elip.tasks import tasks
from elip.tasks.base import Task
from elip.tasks.gallery import Gallery
from elip.tasks.retrieval import Retrieval
from reducers import Reducer, shelf

METHODS: dict[str, Callable[[], Reducer]] = {
    **shelf(), "ELIP:probe_depth=1": partial(shelf()["ELIP"], probe_depth=1),
}  # fmt: skip
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
_ANSWERS = 3129  # VQAv2


class Bench:
    """Size, device, clock and log of one run of this script."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.tiny: bool = options.tiny
        self.seconds: float = options.seconds
        self.device = torch.device("cpu" if self.tiny else "cuda")
        self.preset = "tiny" if self.tiny else "clip16_roberta"
        self.image_sizes = (64,) if self.tiny else (288, 384)
        self.batch_size = 2 if self.tiny else 64
        self.methods = METHODS
        if self.tiny:
            few = ("Identity", "ToMe", "ELIP", "ELIP:probe_depth=1", "PuMer")
            self.methods = {name: METHODS[name] for name in few}
        self.start = time.monotonic()
        self.out: Path = options.out
        self.out.parent.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.seconds - (time.monotonic() - self.start)

    def say(self, part: str, **row: Any) -> None:
        """Log one result."""
        passed = round(time.monotonic() - self.start, 1)
        line = json.dumps({"part": part, "at_s": passed, **row})
        print(line, flush=True)  # noqa: T201
        with self.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def model(self, task: Task, size: int, preset: str | None = None) -> Meter:
        """Build a model without reduction, and the task's heads."""
        config = MeterConfig(preset or self.preset, image_size=size).resolve()  # type: ignore[arg-type]
        own = config.text_encoder in ("roberta", "bert")
        torch.manual_seed(0)
        with self.device:
            meter = Meter(config, vocab_size=1000 if own else None)
            task.build(meter, 10 if self.tiny else _ANSWERS)
        return meter

    def batch(self, meter: Meter, task: Task, count: int) -> Batch:
        """Make a batch on the device."""
        return random_batch(meter, count, task).to(self.device)

    def sync(self) -> None:
        """Wait for the device."""
        if not self.tiny:
            torch.cuda.synchronize()

    def clock(self, run: Callable[[], object], rounds: int = 8) -> dict[str, float]:
        """Return the median GPU time of a run, and the time that the host took to launch it."""
        for _ in range(3):
            run()
        self.sync()
        gpu, host = [], []
        for _ in range(rounds):
            start = time.perf_counter()
            if self.tiny:
                run()
                host.append(1e3 * (time.perf_counter() - start))
                gpu.append(host[-1])
                continue
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            host.append(1e3 * (time.perf_counter() - start))
            self.sync()
            gpu.append(begin.elapsed_time(end))
        times = {"gpu_ms": statistics.median(gpu), "host_ms": statistics.median(host)}
        return {name: round(value, 3) for name, value in times.items()}

    @contextmanager
    def waiting_is_an_error(self) -> Iterator[None]:
        """Make torch raise an error where the host waits for the device."""
        if not self.tiny:
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            if not self.tiny:
                torch.cuda.set_sync_debug_mode("default")


def step(meter: Meter, task: Task, batch: Batch, half: torch.dtype | None) -> torch.Tensor:
    """Run one pass forward and backward."""
    device = batch.images.device.type
    with torch.autocast(device, half or torch.bfloat16, enabled=half is not None):
        loss = task.loss(meter, batch).total
    loss.backward()
    return loss


def smoke(bench: Bench) -> None:
    """Run every method, task and precision; report what fails, waits or is not finite."""
    for precision, half in PRECISIONS.items():
        if bench.tiny and half is torch.float16:  # a minute on a CPU
            continue
        failures, waits, ran = [], [], 0
        for task_name, made in tasks().items():
            task = made()
            meter = bench.model(task, 64, "tiny")
            both = nn.ModuleList([meter, task]).train()
            batch = bench.batch(meter, task, 2)
            for name, make in bench.methods.items():
                if bench.left < 30:
                    break
                where, ran = f"{name} {task_name}", ran + 1
                try:
                    meter.set_reduction(make(), _schedule(make))
                    bench.sync()
                    try:
                        with bench.waiting_is_an_error():
                            step(meter, task, batch, half)
                    except RuntimeError as error:
                        if "synchroniz" not in str(error):
                            raise
                        waits.append(f"{where}: {_place(error)}")
                        step(meter, task, batch, half)
                    if not all(
                        weight.grad is None or bool(weight.grad.isfinite().all())
                        for weight in both.parameters()
                    ):
                        failures.append(f"{where}: a gradient is not finite")
                except Exception as error:  # noqa: BLE001  (try every method)
                    failures.append(f"{where}: {type(error).__name__}: {str(error)[:120]}")
                both.zero_grad()
        bench.say("smoke", precision=precision, ran=ran, failures=failures, waits=waits)


def _schedule(make: Callable[[], Reducer]) -> Schedule:
    return Schedule(layers=(0,), profile=(0.7,)) if make().placement == "fusion" else Schedule()


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame for frame in frames if "/elip/" in frame.filename or "/reducers/" in frame.filename
    ]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""


def agreement(bench: Bench) -> None:
    """Compare scores and kept tokens of CPU and GPU, fp32."""
    task = tasks()["VQA"]()
    meter = bench.model(task, 64, "tiny")
    both = nn.ModuleList([meter, task]).eval()
    batch = random_batch(meter, 4, task)
    for name, make in bench.methods.items():
        reducer, found = make(), []
        for device in ("cpu", bench.device):
            both.to(device)
            meter.set_reduction(reducer.to(device), _schedule(make))
            there = batch.to(device)
            with torch.no_grad():
                text = meter.encode_text(there.text)
                image = meter.encode_image(there.images[:, 0], text, there.example)
                stages = meter.fuse(text, image, "pooled").stages
                scores = task.infer(meter, there)
            found.append((scores.cpu(), [stage.assignment.cpu() for stage in stages]))
        (one, kept), (other, kept_there) = found
        same = [
            round(float((a == b).float().mean()), 4) for a, b in zip(kept, kept_there, strict=True)
        ]
        apart = float((one - other).abs().max())
        bench.say("agreement", reducer=name, largest_difference=apart, same_assignment=same)


def speed(bench: Bench) -> None:
    """Time the inference of every method and count its multiply-adds."""
    for size in bench.image_sizes:
        task = tasks()["VQA"]()
        meter = bench.model(task, size)
        with torch.device("meta"):
            shapes = Meter(meter.sizes, vocab_size=meter.vocab_size)
            dry = tasks()["VQA"]()
            dry.build(shapes, 10 if bench.tiny else _ANSWERS)
        one = random_batch(shapes, 1, task).to("meta")
        gflops: dict[str, float] = {}
        for count in (bench.batch_size, 1):
            batch, full = bench.batch(meter, task, count), dict[str, float]()
            for name in sorted(bench.methods, key=lambda name: name != "Identity"):
                if bench.left < 0.45 * bench.seconds:
                    bench.say("speed", stopped_before=name, image_size=size, batch_size=count)
                    return
                schedule = _schedule(METHODS[name])
                for each in (meter, shapes):
                    each.set_reduction(METHODS[name](), schedule)
                if name not in gflops:
                    with inference(shapes, dry):
                        gflops[name] = count_run(partial(dry.infer, shapes, one)) / GIGA
                run = partial(task.infer, meter, batch)
                with inference(meter, task, precision="bf16-mixed"):
                    times, memory = bench.clock(run), peak_memory(run, bench.device)
                full = full or {"ms": times["gpu_ms"], "gflops": gflops[name]}
                latency, flops = full["ms"] / times["gpu_ms"], full["gflops"] / gflops[name]
                bench.say(
                    "speed", reducer=name, image_size=size, batch_size=count, **times,
                    gflops=round(gflops[name], 3), flops_speedup=round(flops, 3),
                    latency_speedup=round(latency, 3), efficiency=round(latency / flops, 3),
                    peak_gb=_gb(memory),
                )  # fmt: skip


def _gb(memory: int | None) -> float | None:
    return None if memory is None else round(memory / 1e9, 3)


def training(bench: Bench) -> None:
    """Time a pre-training step in bf16, optimiser included."""
    task = tasks()["Pretraining"]()
    meter = bench.model(task, bench.image_sizes[0])
    both = nn.ModuleList([meter, task]).train()
    batch = bench.batch(meter, task, bench.batch_size)
    optimizer = torch.optim.AdamW(both.parameters(), lr=1e-9, fused=True)

    def whole() -> None:
        step(meter, task, batch, torch.bfloat16)
        optimizer.step()
        optimizer.zero_grad()

    names = ("Identity", "Random", "EViT", "ToMe", "ELIP:probe_depth=1", "ELIP", "DPCKNN", "PuMer")
    for name in (name for name in names if name in bench.methods):
        if bench.left < 0.3 * bench.seconds:
            return
        meter.set_reduction(METHODS[name](), _schedule(METHODS[name]))
        both.train()
        times, memory = bench.clock(whole, 5), peak_memory(whole, bench.device)
        bench.say("training", reducer=name, batch_size=len(batch), **times, peak_gb=_gb(memory))


def retrieval(bench: Bench) -> None:
    """Score every pair of a gallery, encoding each image and text once."""
    images, texts = (2, 4) if bench.tiny else (256, 512)
    for name in ("Identity", "ToMe", "ELIP:probe_depth=1"):
        task = Retrieval(pairs=512)
        meter = bench.model(task, bench.image_sizes[-1])
        meter.set_reduction(METHODS[name](), Schedule())
        gallery, size = Gallery(), min(64, texts)
        with inference(meter, task, precision="bf16-mixed"):
            start = time.perf_counter()
            for first in range(0, texts, size):
                batch = random_batch(meter, size)
                number = torch.arange(first, first + size)
                batch = replace(batch, example=number, image_id=number % images)
                gallery.add(meter, batch.to(bench.device))
            bench.sync()
            encoded = time.perf_counter()
            gallery.scores(meter, task.score, task.pairs)
            bench.sync()
        scored = images * texts / (time.perf_counter() - encoded)
        memory = None if bench.tiny else torch.cuda.max_memory_allocated()
        bench.say("retrieval", reducer=name, encode_s=round(encoded - start, 2),
                  pairs_per_s=round(scored), peak_gb=_gb(memory))  # fmt: skip


def compiled(bench: Bench) -> None:
    """Time the inference of compiled models."""
    for name in ("Identity", "ToMe"):
        for count in (1, bench.batch_size):
            if bench.left < 0.1 * bench.seconds:
                return
            task = tasks()["VQA"]()
            meter = bench.model(task, bench.image_sizes[0])
            meter.set_reduction(METHODS[name](), Schedule())
            torch.compiler.reset()
            meter.compile_parts(**({"backend": "eager"} if bench.tiny else {}))
            run = partial(task.infer, meter, bench.batch(meter, task, count))
            with inference(meter, task, precision="bf16-mixed"):
                start = time.perf_counter()
                run()
                bench.sync()
                first = time.perf_counter() - start
                times = bench.clock(run)
            bench.say("compiled", reducer=name, batch_size=count, first_s=round(first, 1), **times)


def loading(bench: Bench) -> None:
    """Decode and crop JPEGs of 640x480 in worker processes."""
    small = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG")
    for fast in (False, True):
        for workers in (1,) if bench.tiny else (1, 8, 16):
            count = 8 if bench.tiny else 200 * workers
            job = partial(_decode, file.getvalue(), fast)
            with ProcessPoolExecutor(workers) as pool:
                list(pool.map(job, range(workers)))
                start = time.perf_counter()
                list(pool.map(job, range(count), chunksize=max(1, count // workers // 4)))
            rate = round(count / (time.perf_counter() - start))
            bench.say("loading", fast_decode=fast, workers=workers, images_per_s=rate)


def _decode(data: bytes, fast: bool, number: int) -> None:
    torch.set_num_threads(1)
    TRANSFORMS["clip"](data, 288, random.Random(number), fast)


PARTS = (smoke, agreement, speed, training, retrieval, loading, compiled)


def main(arguments: list[str] | None = None) -> None:
    """Run as many parts as the time allows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.jsonl"))
    parser.add_argument("--seconds", type=float, default=480, help="time for all of it")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--only", nargs="+", choices=[part.__name__ for part in PARTS])
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.exit(2, "error: there is no GPU here; --tiny tries the script on the CPU.\n")
    bench = Bench(options)
    bench.say("machine", **environment())
    for part in PARTS:
        if options.only and part.__name__ not in options.only:
            continue
        try:
            part(bench)
        except Exception as error:  # noqa: BLE001  (run the other parts)
            message = f"{type(error).__name__}: {error}"[:300]
            bench.say(part.__name__, error=message, at=_place(error))
    bench.say("end", seconds_left=round(bench.left))


if __name__ == "__main__":
    main()
