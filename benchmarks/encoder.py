"""How much of the arithmetic that a method saves in the image encoder becomes saved time.

    python benchmarks/encoder.py
    python benchmarks/encoder.py --device cuda --precision bf16 --batch-size 64 --image-size 384

ViT-B/16 with 11 blocks and random weights, at keep ratio 0.5, each method in turn with no
reduction. ``flops_speedup`` is the multiply-adds of no reduction over those of the method, its own
work included; ``latency_speedup`` is the same of the median time, ``efficiency`` the second over
the first.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from elip.cost.measure import Setting, measure
from elip.cost.show import brief, tell
from elip.model.config import MeterConfig
from elip.schedule import Schedule
from reducers import shelf

METHODS = ("Random", "TopK", "EViT", "ToMe", "ELIP")


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image-size", type=int, default=288)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/encoder.json"))
    given = parser.parse_args()
    methods = {name: partial(shelf()[name]) for name in METHODS}
    methods["ELIP"] = partial(shelf()["ELIP"], probe_depth=1)
    setting = Setting(
        given.image_size, given.batch_size, given.precision, given.compiled, "encoder"
    )
    groups = measure(
        MeterConfig("clip16_roberta"), methods, [Schedule(given.keep_ratio)], [setting],
        torch.device(given.device), given.rounds, training=False,
    )  # fmt: skip
    how = f"{given.precision}, {'compiled' if given.compiled else 'eager'}, {given.device}"
    tell(brief(groups), given.out, f"Image encoder, ELIP with probe_depth 1; {how}")


if __name__ == "__main__":
    main()
