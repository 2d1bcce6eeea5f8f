"""Retrieval evaluation: everything encoded once, against encoding both sides for every pair.

    python benchmarks/retrieval.py
    python benchmarks/retrieval.py --preset clip16_roberta --image-size 384 --images 6 --texts 6

Weights, pixels and words are random: neither the time nor the comparison of scores depends on
what they say. Both ways score the same pairs in chunks of the same size. One row a reducer:
seconds of both ways (processor time on a CPU, so that a busy machine does no harm), their ratio,
and the largest difference of a score.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from rich.live import Live
from rich.table import Table
from torch import Tensor

from elip.data.batch import Batch, TextBatch
from elip.model.config import PRESETS, MeterConfig
from elip.model.meter import Meter
from elip.schedule import Schedule
from elip.tasks.base import begin_images
from elip.tasks.gallery import Gallery
from elip.tasks.retrieval import Retrieval
from reducers import Reducer, shelf

METHODS = shelf()


def main() -> None:
    """Parse the options, measure, and show the table."""
    options = _options()
    columns = ("reducer", "cached s", "pair by pair s", "speed-up", "largest difference")
    shape = f"{options.preset}, {options.images} images x {options.texts} texts"
    table = Table(*columns, title=f"Retrieval evaluation: {shape}, {options.device}")
    with Live(table):
        for name in options.reducers:
            table.add_row(name, *_row(METHODS[name], options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--image-size", type=int, help="pixels a side; default: the preset's")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=64, help="pairs at once, in both ways")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--reducers", nargs="+", choices=METHODS, metavar="NAME",
                        default=["Identity", "Random", "ELIP"])  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="run in bfloat16 autocast")
    return parser.parse_args()


@torch.inference_mode()
def _row(method: type[Reducer], options: argparse.Namespace) -> tuple[str, ...]:
    torch.manual_seed(0)
    sizes = MeterConfig(preset=options.preset, image_size=options.image_size).resolve()
    schedule = Schedule(keep_ratio=options.keep_ratio)
    meter = Meter(sizes, method(), schedule, vocab_size=1000).eval().to(options.device)
    task = Retrieval(pairs=options.pairs)
    task.build(meter, 0)
    task.eval().to(options.device)
    batch = _batch(meter, options.images, options.texts).to(options.device)
    with torch.autocast(options.device, dtype=torch.bfloat16, enabled=options.bf16):
        cached, fast = _timed(lambda: _cached(meter, task, batch), options.device)
        naive, slow = _timed(lambda: _pair_by_pair(meter, task, batch), options.device)
    difference = (cached - naive).abs().max().item()
    return f"{fast:.1f}", f"{slow:.1f}", f"{slow / fast:.2f}", f"{difference:.1e}"


def _timed(work: Callable[[], Tensor], device: str) -> tuple[Tensor, float]:
    if device == "cuda":
        torch.cuda.synchronize()
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    result = work().cpu()
    return result, clock() - start


def _batch(meter: Meter, images: int, texts: int) -> Batch:
    """Make ``texts`` examples of ``images`` images; captions are 8 to 16 tokens long."""
    side, length = meter.sizes.image_size, meter.sizes.max_text_len
    owner = torch.arange(texts) * images // texts
    mask = torch.arange(length) < torch.randint(8, 17, (texts, 1))
    return Batch(
        images=torch.randint(0, 256, (images, 1, 3, side, side), dtype=torch.uint8)[owner],
        text=TextBatch(torch.randint(5, 1000, (texts, length)), mask),
        strings=("",) * texts,
        example=torch.arange(texts),
        image_id=owner,
    )


def _cached(meter: Meter, task: Retrieval, batch: Batch) -> Tensor:
    gallery = Gallery()
    for rows in torch.arange(len(batch)).split(task.pairs):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        gallery.add(meter, _rows(batch, part))
    return gallery.scores(meter, task.score, task.pairs)


def _pair_by_pair(meter: Meter, task: Retrieval, batch: Batch) -> Tensor:
    images, texts = len(batch.image_id.unique()), len(batch)
    first = torch.searchsorted(batch.image_id, torch.arange(images, device=batch.image_id.device))
    scores = []
    for index in torch.arange(images * texts, device=first.device).split(task.pairs):
        column, image = index % texts, first[index // texts]
        text = meter.encode_text(TextBatch(batch.text.ids[column], batch.text.mask[column]))
        begun = begin_images(meter, batch.images[image, 0], training=False)
        scores.append(task.score(meter, meter.image.finish(begun, text), text))
    return torch.cat(scores).view(images, texts)


def _rows(batch: Batch, part: slice) -> Batch:
    return Batch(
        images=batch.images[part],
        text=TextBatch(batch.text.ids[part], batch.text.mask[part]),
        strings=batch.strings[part],
        example=batch.example[part],
        image_id=batch.image_id[part],
    )


if __name__ == "__main__":
    main()
