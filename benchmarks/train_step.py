"""Inference and training step of the whole model, with and without reduction.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --device cuda --precision bf16 --inference 64 --training 64

ViT-B/16 and RoBERTa-base with random weights, 50 text tokens, at ELIP's published counts (292, 227
and 146 tokens at layers 2, 4 and 9, of 324; for other image sizes the same shares). A training step
is the forward and backward pass of masked words and matching, and the optimiser. Columns as in
encoder.py; the GFLOPs leave the optimiser out, which multiplies no matrices.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from elip.cost.measure import Phase, Setting, measure
from elip.cost.show import brief, tell
from elip.model.config import MeterConfig
from elip.schedule import Schedule
from reducers import shelf

LAYERS, SHARES = (2, 4, 9), (0.90, 0.70, 0.45)


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image-size", type=int, default=288)
    parser.add_argument("--inference", type=int, default=4, help="batch size")
    parser.add_argument("--training", type=int, default=2, help="batch size; 0 leaves it out")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train_step.json"))
    given = parser.parse_args()
    elip = shelf()["ELIP"]
    methods = {
        "ELIP": partial(elip),
        "ELIP:probe_depth=1": partial(elip, probe_depth=1),
        "Random": partial(shelf()["Random"]),
    }
    sizes: dict[Phase, int] = {"inference": given.inference, "training": given.training}
    settings = [
        Setting(given.image_size, size, given.precision, given.compiled, phase)
        for phase, size in sizes.items()
        if size
    ]
    patches = (given.image_size // 16) ** 2
    counts = tuple(int(share * patches + 0.5) for share in SHARES)
    groups = measure(
        MeterConfig("clip16_roberta"), methods, [Schedule(layers=LAYERS, counts=counts)], settings,
        torch.device(given.device), given.rounds,
    )  # fmt: skip
    how = f"{given.precision}, {'compiled' if given.compiled else 'eager'}, {given.device}"
    tell(brief(groups), given.out, f"METER at full size, counts {list(counts)}; {how}")


if __name__ == "__main__":
    main()
