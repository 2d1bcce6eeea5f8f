"""Time inference, a training step and retrieval for several methods.

    python benchmarks/speed.py
    python benchmarks/speed.py --against ../elip-before --rounds 5

The model is CLIP ViT-B/16 and RoBERTa-base at 288 px with random weights; captions have 10 to 16
tokens. ``--against`` runs another checkout in turn with this one, so that both see the same load,
and prints the median of the ratios. On a shared machine use ``--cpu-time`` and OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

METHODS = {
    "Identity": "{}", "ELIP": "{}", "ELIP probe 1": '{"probe_depth": 1}', "ToMe": "{}",
    "Random": "{}", "TRIPS": "{}",
}  # fmt: skip
KINDS = ("inference", "training", "retrieval")


def main() -> None:
    """Time this checkout, or two of them in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--text", type=int, default=16, help="tokens of the longest text")
    parser.add_argument("--preset", default="clip16_roberta")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["Identity", "ELIP"])
    parser.add_argument("--cpu-time", action="store_true", help="for a machine that others use")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        sys.path.insert(0, str(given.serve))
        serve(given)
        return
    roots = [Path(__file__).parents[1], *([given.against] if given.against else [])]
    servers = [start(root, sys.argv[1:]) for root in roots]
    for method in given.methods:
        for kind in given.kinds:
            seconds = [[ask(server, kind, method) for server in servers]
                       for _ in range(given.rounds + 1)][1:]  # fmt: skip
            line = {"kind": kind, "method": method, "text": given.text,
                    "seconds": statistics.median(own for own, *_ in seconds)}  # fmt: skip
            if given.against:
                line["faster"] = statistics.median(other / own for own, other in seconds)
            print(json.dumps(line), flush=True)  # noqa: T201
    for server in servers:
        server.kill()


def start(root: Path, arguments: list[str]) -> subprocess.Popen[str]:
    """Start a process that times the code of a checkout on demand."""
    return subprocess.Popen(
        [sys.executable, __file__, *arguments, "--serve", str(root.resolve())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root.resolve())},
    )  # fmt: skip


def ask(server: subprocess.Popen[str], kind: str, method: str) -> float:
    """Return the seconds that one run took."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(f"{kind}\t{method}\n")
    server.stdin.flush()
    return float(server.stdout.readline())


def serve(given: argparse.Namespace) -> None:
    """Time one kind and method per input line."""
    answers, sys.stdout = sys.stdout, sys.stderr  # progress bars go elsewhere
    ready: dict[tuple[str, str], Callable[[], object]] = {}
    for line in sys.stdin:
        kind, method = line.strip().split("\t")
        if (kind, method) not in ready:
            ready.clear()
            ready[kind, method] = prepare(kind, method, given)
        clock = time.process_time if given.cpu_time else time.perf_counter
        began = clock()
        ready[kind, method]()
        print(clock() - began, file=answers, flush=True)


def prepare(kind: str, method: str, given: argparse.Namespace) -> Callable[[], object]:
    """Build a model and a batch; return a function that runs once."""
    from elip.model.config import MeterConfig
    from elip.model.meter import Meter
    from elip.schedule import Schedule
    from elip.tasks.pretrain import Pretraining
    from elip.tasks.retrieval import Retrieval
    from reducers import shelf

    torch.manual_seed(0)
    reducer = shelf()[method.split()[0]](**json.loads(METHODS[method]))
    sizes = MeterConfig(preset=given.preset).resolve()
    meter = Meter(sizes, reducer, Schedule(keep_ratio=0.7), vocab_size=None if "b" in given.preset
                  else 1000)  # fmt: skip
    task = Retrieval(pairs=32) if kind == "retrieval" else Pretraining()
    task.build(meter, 0)
    modules = torch.nn.ModuleList([meter, task]).train(kind == "training")
    count = {"inference": 2, "training": 2, "retrieval": 8}[kind]
    batch = make_batch(sizes, count, given.text)
    if kind == "inference":
        return torch.no_grad()(lambda: task.infer(meter, batch))
    if kind == "training":
        optimizer = torch.optim.AdamW(modules.parameters(), 1e-5)

        def step() -> None:
            optimizer.zero_grad()
            task.loss(meter, batch).total.backward()
            optimizer.step()

        return step
    # Time only the scoring of pairs, which dominates retrieval.
    gallery = task.evaluator().gallery
    with torch.no_grad():
        gallery.add(meter, batch)
    return lambda: gallery.scores(meter, task.score, 32)


def make_batch(sizes: object, count: int, text: int) -> object:
    """Return a batch as the loader of either checkout makes it."""
    from elip.data.batch import Batch, TextBatch

    length, side = sizes.max_text_len, sizes.image_size  # type: ignore[attr-defined]
    draw = torch.Generator().manual_seed(0)
    long = torch.randint(min(10, text), text + 1, (count, 1), generator=draw)
    long[0] = text
    mask = torch.arange(length) < long
    ids = torch.randint(5, 1000, (count, length), generator=draw).where(mask, torch.tensor(1))
    masked = (torch.rand(ids.shape, generator=draw) < 0.15) & mask
    masked[:, 1] = True
    pixels = torch.randint(256, (count, 2, 3, side, side), generator=draw).to(torch.uint8)
    image = torch.arange(count) // 4 * 4 if count == 8 else torch.arange(count)  # 4 texts an image
    negative = (
        "negative" if "negative_images" in Batch.__dataclass_fields__ else "false"
    ) + "_images"
    batch = Batch(
        images=pixels[image, :1], text=TextBatch(ids, mask), strings=("",) * count,
        example=torch.arange(count), image_id=image,
        masked=TextBatch(ids.where(~masked, torch.tensor(4)), mask),
        masked_labels=ids.where(masked, torch.tensor(-100)),
        **{negative: pixels[:, 1:]},
    )  # fmt: skip
    return batch.trimmed() if hasattr(batch, "trimmed") else batch


if __name__ == "__main__":
    main()
