"""Retrieval evaluation: everything encoded once, against encoding both sides for every pair.

    python benchmarks/retrieval.py
    python benchmarks/retrieval.py --preset clip16_roberta --image-size 384 --images 4 --texts 8

Weights, pixels and words are random: neither the time nor the comparison of scores depends on
what they say. Both ways score the same pairs in chunks of the same size, in turn. ``bound`` is the
speed-up that the arithmetic of the two ways allows on this very gallery, padding included: the
multiply-adds of pair by pair over those of cached. ``bound, large`` is its limit for a gallery so
large that what is encoded once costs nothing: for a method that looks at the text, what every pair
still pays is all from its first reduction layer on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from elip.cost import time_interleaved
from elip.cost.batches import random_batch
from elip.cost.count import count_run
from elip.cost.measure import Row
from elip.cost.show import tell
from elip.data.batch import Batch, TextBatch
from elip.model.config import PRESETS, MeterConfig
from elip.model.meter import Meter
from elip.schedule import Schedule
from elip.tasks.base import begin_images
from elip.tasks.gallery import Gallery
from elip.tasks.retrieval import Retrieval
from reducers import EncodedText, Reducer, shelf

METHODS: dict[str, Callable[[], Reducer]] = {
    **shelf(),
    "ELIP:probe_depth=1": partial(shelf()["ELIP"], probe_depth=1),
}


def main() -> None:
    """Parse the options, measure, print, and keep."""
    options = _options()
    rows = [_row(name, options) for name in options.reducers]
    shape = f"{options.preset}, {options.images} images x {options.texts} texts"
    how = f"keep ratio {options.keep_ratio:g}, {'bf16' if options.bf16 else 'fp32'}"
    tell(rows, options.out, f"Retrieval evaluation: {shape}, {how}, {options.device}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--image-size", type=int, help="pixels a side; default: the preset's")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=64, help="pairs at once, in both ways")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--reducers", nargs="+", choices=METHODS, metavar="NAME",
                        default=["Identity", "Random", "ELIP", "ELIP:probe_depth=1"])  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="run in bfloat16 autocast")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/retrieval.json"))
    return parser.parse_args()


@torch.inference_mode()
def _row(name: str, options: argparse.Namespace) -> Row:
    torch.manual_seed(0)
    meter, task = _build(name, options, options.device)
    batch = _batch(meter, options.images, options.texts).to(options.device)
    with torch.autocast(options.device, dtype=torch.bfloat16, enabled=options.bf16):
        # What is compared warms both up as well.
        difference = _cached(meter, task, batch) - _pair_by_pair(meter, task, batch)
        times = time_interleaved(
            {"cached": partial(_cached, meter, task, batch),
             "naive": partial(_pair_by_pair, meter, task, batch)},
            options.rounds, 0, device=options.device,
        )  # fmt: skip
    ratios = [a / b for a, b in zip(times["naive"].seconds, times["cached"].seconds, strict=True)]
    bound, large = _bounds(name, options, batch.text.mask.sum(dim=1).tolist())
    return {
        "reducer": name,
        "cached s": times["cached"].median,
        "pair by pair s": times["naive"].median,
        "faster": statistics.median(ratios),
        "bound": bound,
        "realised": statistics.median(ratios) / bound,
        "bound, large": large,
        "largest difference": difference.abs().max().item(),
    }


def _build(name: str, options: argparse.Namespace, device: str) -> tuple[Meter, Retrieval]:
    sizes = MeterConfig(preset=options.preset, image_size=options.image_size).resolve()
    reducer = METHODS[name]()
    with torch.device(device):
        meter = Meter(sizes, reducer, Schedule(keep_ratio=options.keep_ratio), vocab_size=1000)
        task = Retrieval(pairs=options.pairs)
        task.build(meter, 0)
    nn.ModuleList([meter, task]).eval()
    return meter, task


def _bounds(name: str, options: argparse.Namespace, lengths: list[int]) -> tuple[float, float]:
    """Return the arithmetic's speed-up for this gallery, and for an endless one of such texts."""
    meter, task = _build(name, options, "meta")
    batch = random_batch(meter, 1).to("meta")
    begun, text = begin_images(meter, batch.images[:, 0], False), meter.encode_text(batch.text)

    def pair(length: int | None) -> int:
        cut = EncodedText(text.tokens[:, :length], text.mask[:, :length])
        return count_run(
            lambda: task.score(meter, meter.encode_suffix(begun.rows(slice(1)), cut), cut)
        )

    once_image = count_run(lambda: begin_images(meter, batch.images[:, 0], False))
    once_text = count_run(lambda: meter.encode_text(batch.text))
    images, texts = options.images, options.texts
    total, ordered = images * texts, sorted(lengths)
    whole = meter.fusion.reduction is not None
    cached = {length: pair(None if whole else length) for length in set(ordered)}
    ends = [min(start + options.pairs, total) for start in range(0, total, options.pairs)]
    starts = [0, *ends[:-1]]
    pairs = sum(
        (end - start) * cached[ordered[(end - 1) // images]]
        for start, end in zip(starts, ends, strict=True)
    )
    naive = total * (once_image + once_text + pair(None))
    return naive / (images * once_image + texts * once_text + pairs), naive / pairs


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
        scores.append(task.score(meter, meter.encode_suffix(begun, text), text))
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
