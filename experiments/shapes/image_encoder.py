"""Train the tiny image encoder to name what it sees: what CLIP's pre-training is to METER.

    python experiments/shapes/image_encoder.py --out image_encoder.safetensors

METER starts from an image encoder that knows things by sight (CLIP, Radford et al., 2021,
arXiv:2103.00020), and so does the tiny model: without that, captions alone take a small vision
transformer many hours of one core to tell shapes apart. The encoder learns from the descriptions
of the training scenes. CLS says which of the 72 things (size, color, shape) are in the picture;
each patch says which of them covers it, or none.

Loss: binary cross entropy over the 72 things, summed, plus the mean cross entropy of the patches.
Costs about 2 minutes on one core. Gave 100.0% of the things and of the patches of val (seed 0).
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from elip.data.shapes import write_shapes
from elip.data.shapes.scene import COLORS, SHAPES, SIZES
from elip.model.config import MeterConfig
from elip.model.meter import Meter

THINGS = {look: number for number, look in enumerate(product(SIZES, COLORS, SHAPES))}
NOTHING = len(THINGS)

Data = tuple[Tensor, Tensor, Tensor]
"""Images [I,3,S,S] uint8, things present [I,72] float, what covers each patch [I,P] int64."""


def main() -> None:
    """Read the command line, train, score, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("data"), help="the data root")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    write_shapes(given.root / "shapes")
    meter = Meter(MeterConfig(preset="tiny").resolve(), vocab_size=64)
    image = meter.published_parts()["image"]
    heads = nn.ModuleList(nn.Linear(meter.sizes.image_width, n) for n in (len(THINGS), NOTHING + 1))
    train(meter, heads, _read(given.root, "train"), given)
    recall, patches = score(meter, heads, _read(given.root, "val"))
    Console().print(f"On val: {recall:.1%} of the things, {patches:.1%} of the patches right.")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(image.state_dict(), given.out)


def train(
    meter: Meter,
    heads: nn.ModuleList,
    data: tuple[Tensor, Tensor, Tensor],
    given: argparse.Namespace,
) -> None:
    """Train with AdamW, a tenth of the steps to warm up, then down to 0 along a line."""
    images, present, covering = data
    image = meter.published_parts()["image"]
    parameters = [*image.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, given.learning_rate, (0.9, 0.98), weight_decay=0.01)
    warm = max(1, given.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / warm, (given.steps - k) / (given.steps - warm))
    )
    for _ in track(range(given.steps), "Training the image encoder"):
        rows = torch.randint(len(images), (given.batch_size,))
        things, patches = _logits(meter, heads, images[rows])
        loss = F.binary_cross_entropy_with_logits(things, present[rows]) * len(THINGS)
        loss = loss + F.cross_entropy(patches.flatten(0, 1), covering[rows].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def score(meter: Meter, heads: nn.ModuleList, data: Data) -> tuple[float, float]:
    """Return the share of things among as many likeliest ones, and the share of right patches."""
    images, present, covering = data
    found = right = 0.0
    for rows in torch.arange(len(images)).split(100):
        things, patches = _logits(meter, heads, images[rows])
        rank = things.argsort(dim=1, descending=True).argsort(dim=1)
        found += (present[rows] * (rank < present[rows].sum(dim=1, keepdim=True))).sum().item()
        right += (patches.argmax(dim=-1) == covering[rows]).sum().item()
    return found / present.sum().item(), right / covering.numel()


def _logits(meter: Meter, heads: nn.ModuleList, images: Tensor) -> tuple[Tensor, Tensor]:
    tokens = meter.encode_image(images).tokens
    return heads[0](tokens[:, 0]), heads[1](tokens[:, 1:])


def _read(root: Path, split: str) -> Data:
    """Read the images of a split and what their scenes say."""
    rows = list(_rows(root / "shapes" / f"shapes_caption_{split}.arrow"))
    images = np.stack([np.array(Image.open(io.BytesIO(image)).convert("RGB")) for image, _ in rows])
    present = torch.zeros(len(rows), len(THINGS))
    size = MeterConfig(preset="tiny").resolve().patch_size
    grid = images.shape[1] // size
    covering = torch.full((len(rows), grid, grid), NOTHING)
    for row, (_, scene) in enumerate(rows):
        for thing in scene["things"]:
            number = THINGS[thing["size"], thing["color"], thing["shape"]]
            present[row, number] = 1
            left, top, right, bottom = thing["box"]
            covering[row, top // size : -(-bottom // size), left // size : -(-right // size)] = (
                number
            )
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), present, covering.flatten(1)


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
        for image, scene in zip(table["image"], table["scene"], strict=True):
            yield image.as_py(), json.loads(scene.as_py())


if __name__ == "__main__":
    main()
