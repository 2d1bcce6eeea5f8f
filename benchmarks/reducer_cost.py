"""What each reducer costs: GFLOPs, time of the encoder, time of the reducer's own work.

    python benchmarks/reducer_cost.py [--image-size 288] [--batch 8] [--repeats 3]

All methods run on one image encoder (ViT-B/16 sizes, random weights) in turns and by processor
time, so that whatever else the machine does hits all alike and little; every figure is set beside
no reduction in the same run. A
method that acts in the fusion is measured on the fusion (six layers a side, 50 text tokens)
instead. About 20 minutes on two cores. One multiply-add = 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from elip.model.config import MeterConfig
from elip.model.fusion import Fusion
from elip.model.fusion_reduction import FusionReduction
from elip.model.image_encoder import EncodedImage, ImageEncoder
from elip.model.meter import build_vit
from elip.model.signals import SharedSpace
from elip.schedule import Schedule
from reducers import Reducer, Text, shelf

_LENGTH = 50


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
        self.total -= time.process_time()

    def _stop(self, *_: object) -> None:
        self.total += time.process_time()


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
            self.text = Text(
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
        encoder.shared = SharedSpace(self.vit.norm, self.image_projection, self.text_projection)
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
                origin=torch.arange(count).expand(batch, count),
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
        clock = Clock([encoder.reducer, encoder.signals, encoder.shared] if reducer else [])
        return lambda: encoder(self.pixels, self.text), clock, Clock([encoder.probe])


def giga(run: Callable[[], object]) -> float:
    """Count the G multiply-adds of a pass."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops() / 2e9


def measure(entries: list[tuple[Entry, Clock, Clock]], repeats: int) -> None:
    """Time all entries in turns; the first round warms up and does not count."""
    for turn in range(repeats + 1):
        for entry, own, probe in entries:
            before_own, before_probe = own.total, probe.total
            start = time.process_time()
            entry.run()
            seconds = time.process_time() - start
            if turn:
                looked = probe.total - before_probe
                entry.seconds.append(seconds)
                entry.probe.append(looked)
                entry.own.append(own.total - before_own - looked)
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
    timed = Bench(given.image_size, given.batch, "cpu")
    counted = Bench(given.image_size, 1, "meta")
    plans: list[tuple[str, type[Reducer] | None, float | None, str]] = [
        ("Identity", None, None, "encoder"),
        ("Identity", None, None, "fusion"),
    ]
    for ratio in given.ratios:
        for name, method in shelf().items():
            if method.acts != "never" and (not given.only or name in given.only):
                place = "fusion" if method.acts == "fusion" else "encoder"
                plans.append((name, method, ratio, place))
    entries = []
    with torch.no_grad():
        for name, method, ratio, place in plans:
            schedule = Schedule(keep_ratio=ratio)
            run, own, probe = timed.runner(method() if method else None, schedule, place)
            dry, _, _ = counted.runner(method() if method else None, schedule, place)
            entries.append((Entry(name, ratio, place, run, giga(dry)), own, probe))
        measure(entries, given.repeats)
    sys.stdout.write(table([entry for entry, _, _ in entries]) + "\n")


if __name__ == "__main__":
    main()
