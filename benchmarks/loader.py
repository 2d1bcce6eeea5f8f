"""Measure the decoding of JPEGs to pixels, in images per second on one thread.

    python benchmarks/loader.py

``plain`` uses Pillow and torchvision's transforms, like most training code. ``exact`` is this
project's default and gives the same pixels. ``fast`` is ``--data.fast_decode true``. The images are
generated, with file sizes like those of photographs.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from elip.cost.timing import time_interleaved
from elip.data.transforms import TRANSFORMS
from elip.record import environment

Decode = Callable[[bytes], NDArray[np.uint8]]


def make_picture(seed: int, width: int, height: int) -> bytes:
    """Return a JPEG of noise at several scales."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (4, 8, 16, 32, 64, 160, 400):
        shape = (cells * height // width, cells, 3)
        noise = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / cells**0.7
    total = 255 * (total - total.min()) / (total.max() - total.min())
    buffer = io.BytesIO()
    Image.fromarray(total.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def ways(size: int) -> dict[str, Decode]:
    """Return the three functions from a JPEG to [3,size,size] pixels."""
    bicubic = transforms.InterpolationMode.BICUBIC
    chain = transforms.Compose(
        [
            transforms.Resize(size, interpolation=bicubic),
            transforms.CenterCrop(size),
            lambda image: image.convert("RGB"),
            transforms.PILToTensor(),
        ]
    )
    ours = TRANSFORMS["clip"]
    return {
        "plain": lambda data: chain(Image.open(io.BytesIO(data))).numpy(),
        "exact": lambda data: ours(data, size),
        "fast": lambda data: ours(data, size, fast=True),
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("runs/loader.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for width, height, size in ((640, 480, 288), (640, 480, 384), (1280, 960, 288)):
        files = [make_picture(seed, width, height) for seed in range(options.images)]
        decode = ways(size)
        runs = {
            name: lambda way=way, files=files: [way(data) for data in files]
            for name, way in decode.items()
        }
        times = time_interleaved(runs, options.rounds, examples=len(files))
        truth = [decode["plain"](data).astype(int) for data in files]
        for name, way in decode.items():
            off = [np.abs(way(data) - true) for data, true in zip(files, truth, strict=True)]
            rows.append(
                {
                    "JPEG": f"{width}x{height}",
                    "pixels": size,
                    "way": name,
                    "images/s": times[name].examples_per_second,
                    "ratio": times["plain"].latency_ms / times[name].latency_ms,
                    "spread": times[name].latency_spread,
                    "largest difference": int(max(each.max() for each in off)),
                    "mean difference": float(np.mean([each.mean() for each in off])),
                }
            )
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.3g"))  # noqa: T201
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": environment(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
