"""What each reducer costs: GFLOPs, time of the encoder, time of the reducer's own work.

    OMP_NUM_THREADS=2 python benchmarks/reducer_cost.py --ratios 0.7 > table.md

All methods run on one image encoder (ViT-B/16 sizes, random weights, 288 px, batch 8) in turns;
every figure is the median over the rounds, beside no reduction in the same run. A method that acts
in the fusion is measured on the fusion (six layers a side, 50 text tokens) instead. The smaller
image with as many patches is the plain alternative. Wants a quiet machine; about 2 minutes a keep
ratio on two cores. One multiply-add = 1.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from elip.model.config import MeterConfig
from elip.model.fusion import Fusion
from elip.model.fusion_reduction import FusionReduction
from elip.model.image_encoder import ImageEncoder
from elip.model.interface import EncodedImage
from elip.model.signals import JointEmbeddings
from elip.model.timm_shim import build_vit
from elip.provenance import hardware
from elip.schedule import Schedule
from reducers import EncodedText, Reducer, shelf

_LENGTH = 50


class Plan(NamedTuple):
    """What is to be measured: a method, or none, at a keep ratio in a place."""

    name: str
    make: Callable[[], Reducer] | None
    ratio: float | None
    place: str


@dataclass
class Entry:
    """One method at one keep ratio, and its measured seconds.

    Attributes:
        name: Class name of the method.
        ratio: Keep ratio; None for no reduction.
        place: ``encoder`` or ``fusion``.
        run: One forward pass.
        giga: G multiply-adds of one pass and one example.
        seconds: Of each pass.
        own: Of these, inside the reducer and the signals made for it, the probe apart.
        probe: Of these, inside the probe.
    """

    name: str
    ratio: float | None
    place: str
    run: Callable[[], object]
    giga: float
    seconds: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    probe: list[float] = field(default_factory=list)


class Clock:
    """Adds up the time inside some modules, by forward hooks."""

    def __init__(self, modules: list[nn.Module | None]) -> None:
        self.total = 0.0
        for module in modules:
            if module is not None:
                module.register_forward_pre_hook(self._start)
                module.register_forward_hook(self._stop)

    def _start(self, *_: object) -> None:
        self.total -= time.perf_counter()

    def _stop(self, *_: object) -> None:
        self.total += time.perf_counter()


class Bench:
    """One encoder and one fusion that all methods are put into.

    Args:
        image_size: Pixels a side.
        batch: Images a pass.
        device: ``cpu`` to time, ``meta`` to count without computing.
    """

    def __init__(self, image_size: int, batch: int, device: str) -> None:
        self.sizes = MeterConfig(preset="clip16_roberta", image_size=image_size).resolve()
        width = self.sizes.fusion_width
        with torch.device(device):
            self.vit = build_vit(self.sizes).eval()
            self.pixels = torch.randn(batch, 3, image_size, image_size)
            self.text = EncodedText(
                torch.randn(batch, _LENGTH, width),
                torch.ones(batch, _LENGTH, dtype=torch.bool),
            )
            self.image_projection, self.text_projection = (
                nn.Linear(self.vit.embed_dim, width),
                nn.Linear(width, width),
            )

    def encoder(self, reducer: Reducer | None, schedule: Schedule) -> ImageEncoder:
        """Put a reducer into the encoder."""
        encoder = ImageEncoder(self.vit, reducer, schedule, self.text.tokens.shape[-1])
        encoder.joint_embeddings = JointEmbeddings(
            self.vit.norm, self.image_projection, self.text_projection
        )
        return encoder.eval()

    def fusion(self, reducer: Reducer | None, schedule: Schedule) -> tuple[Fusion, EncodedImage]:
        """Put a reducer into the fusion; also returns the image tokens that enter it."""
        sizes, grid = self.sizes, self.vit.patch_embed.grid_size
        width, heads, layers = sizes.fusion_width, sizes.fusion_heads, sizes.fusion_layers
        reduction = None
        if reducer is not None:
            reduction = FusionReduction(reducer, schedule, grid, width, heads, layers)
        batch, count = len(self.pixels), grid[0] * grid[1]
        with torch.device(self.pixels.device):
            image = EncodedImage(
                tokens=torch.randn(batch, 1 + count, width),
                block=0,
                sizes=torch.ones(batch, count),
                patch_to_token=torch.arange(count).expand(batch, count),
                seeds=torch.zeros(batch, dtype=torch.int64),
            )
            torch.manual_seed(0)
            return Fusion(width, layers, heads, 0.0, reduction).eval(), image

    def runner(
        self, reducer: Reducer | None, schedule: Schedule, place: str
    ) -> tuple[Callable[[], object], Clock, Clock]:
        """Return one forward pass, the clock of the reducer's work and that of the probe."""
        if place == "fusion":
            fusion, image = self.fusion(reducer, schedule)
            clock = Clock([fusion.reduction])
            return lambda: fusion(self.text, image, "pooled"), clock, Clock([])
        encoder = self.encoder(reducer, schedule)
        clock = Clock(
            [encoder.reducer, encoder.signals, encoder.joint_embeddings] if reducer else []
        )
        return lambda: encoder(self.pixels, self.text), clock, Clock([encoder.probe])


def prepare(plan: Plan, timed: Bench, counted: Bench) -> tuple[Entry, Clock, Clock]:
    """Build a method twice: to be timed, and to be counted without computing."""
    schedule = Schedule(keep_ratio=plan.ratio)
    run, own, probe = timed.runner(plan.make and plan.make(), schedule, plan.place)
    dry, _, _ = counted.runner(plan.make and plan.make(), schedule, plan.place)
    return Entry(plan.name, plan.ratio, plan.place, run, giga(dry)), own, probe


def giga(run: Callable[[], object]) -> float:
    """Count the G multiply-adds of a pass."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return float(counter.get_total_flops()) / 2e9


def measure(entries: list[tuple[Entry, Clock, Clock]], repeats: int) -> None:
    """Time all entries in turns, after one pass of each place that does not count."""
    for entry, _, _ in entries:
        if entry.ratio is None:
            entry.run()
    for turn in range(1, repeats + 1):
        for entry, own, probe in entries:
            before_own, before_probe = own.total, probe.total
            start = time.perf_counter()
            entry.run()
            entry.seconds.append(time.perf_counter() - start)
            entry.probe.append(probe.total - before_probe)
            entry.own.append(own.total - before_own - entry.probe[-1])
        sys.stderr.write(f"round {turn} of {repeats} done\n")


def table(entries: list[Entry]) -> str:
    """Return the rows as a Markdown table."""
    base = {e.place: e for e in entries if e.ratio is None}
    lines = [
        "| method | keep ratio | place | GFLOPs | ratio | ms | ratio | own work, ms | share |"
        " probe, ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        plain = base[entry.place]
        full = statistics.median(plain.seconds)
        seconds, own, probe = (
            statistics.median(values) for values in (entry.seconds, entry.own, entry.probe)
        )
        ratio = "all" if entry.ratio is None else f"{entry.ratio:g}"
        lines.append(
            f"| {entry.name} | {ratio} | {entry.place} | {entry.giga:.1f} |"
            f" {entry.giga / plain.giga:.2f} | {seconds * 1e3:.0f} | {seconds / full:.2f} |"
            f" {own * 1e3:.1f} | {own / full:.1%} | {probe * 1e3:.0f} |"
        )
    return "\n".join(lines)


def plans(ratios: list[float], only: list[str] | None) -> list[Plan]:
    """Return what is measured: no reduction in both places, then all methods at each ratio."""
    none = [Plan("Identity", None, None, "encoder"), Plan("Identity", None, None, "fusion")]
    methods: dict[str, Callable[[], Reducer]] = {
        name: method for name, method in shelf().items() if method.placement != "never"
    }
    methods["ELIP (probe_depth=1)"] = partial(shelf()["ELIP"], probe_depth=1)
    chosen = {n: m for n, m in sorted(methods.items()) if not only or n in only}
    return none + [
        Plan(name, make, ratio, "fusion" if make().placement == "fusion" else "encoder")
        for ratio in ratios
        for name, make in chosen.items()
    ]


def smaller(image_size: int, ratio: float) -> int:
    """Return the image size with the share ``ratio`` of the patches of 16 pixels."""
    return 16 * round(image_size / 16 * math.sqrt(ratio))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=288)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.7, 0.5])
    parser.add_argument("--only", nargs="+", help="class names of the methods to measure")
    given = parser.parse_args()
    torch.manual_seed(0)
    entries = []
    with torch.no_grad():
        timed = Bench(given.image_size, given.batch, "cpu")
        counted = Bench(given.image_size, 1, "meta")
        for plan in plans(given.ratios, given.only):
            entries.append(prepare(plan, timed, counted))
        for ratio in given.ratios:
            size = smaller(given.image_size, ratio)
            plan = Plan(f"Identity at {size} px", None, ratio, "encoder")
            entries.append(prepare(plan, Bench(size, given.batch, "cpu"), Bench(size, 1, "meta")))
        measure(entries, given.repeats)
    machine = hardware()
    sys.stdout.write(
        f"ViT-B/16, {given.image_size} px, batch {given.batch}, fp32, {torch.get_num_threads()} "
        f"threads, {given.repeats} rounds; {machine.cpu}, torch {torch.__version__}.\n\n"
        f"{table([entry for entry, _, _ in entries])}\n"
    )


if __name__ == "__main__":
    main()
