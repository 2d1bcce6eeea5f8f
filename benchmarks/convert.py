"""Measure a conversion beside a plain script: processor time, and peak memory by size.

``python benchmarks/convert.py [--rows 20000]`` generates image-caption pairs in the layout of SBU.
The plain script reads all images, puts them into a pandas table and writes it, as the converters of
ViLT and METER do. Each way runs in a process of its own; the ratio is the plain script's processor
time by its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

_EDGE = (320, 240)
_WAYS = ("plain", "unchecked", "checked")


def make_pairs(raw: Path, count: int) -> None:
    """Write ``count`` noisy JPEGs of about 25 kB, with captions, in the layout of SBU."""
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(count):
        path = raw / f"images_train/{number // 1000:04d}/{number:07d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = rng.integers(0, 256, (_EDGE[1] // 4, _EDGE[0] // 4, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize(_EDGE).save(path, "JPEG", quality=80)
        pairs.append([str(path.relative_to(raw)), f"a caption for picture number {number}"])
    (raw / "annot.json").write_text(json.dumps(pairs))


def run(way: str, raw: Path, out: Path) -> None:
    """Convert in one way and print the measurements as JSON."""
    import pandas as pd
    import pyarrow as pa

    from elip.data.convert import convert
    from elip.data.datasets import known_datasets

    known_datasets()  # imports them
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if way == "plain":
        rows = [
            [(raw / path).read_bytes(), [caption], Path(path).name, "train"]
            for path, caption in json.loads((raw / "annot.json").read_text())
        ]
        frame = pd.DataFrame(rows, columns=["image", "caption", "image_id", "split"])
        table = pa.Table.from_pandas(frame)
        with (
            pa.OSFile(str(out / "sbu_0.arrow"), "wb") as file,
            pa.ipc.new_file(file, table.schema) as writer,
        ):
            writer.write_table(table)
    else:
        convert("sbu", raw, out, workers=2, check=way == "checked", progress=False)
    seconds, after = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(json.dumps({"seconds": seconds, "added_mb": (after - before) / 1024}))


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        run(given.run[0], Path(given.run[1]), Path(given.run[2]))
        return
    for count in (given.rows // 2, given.rows):
        with tempfile.TemporaryDirectory() as folder:
            make_pairs(Path(folder), count)
            command = [sys.executable, __file__, "--run"]
            measured: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
            for _ in range(given.rounds):
                for way in _WAYS:
                    done = subprocess.check_output([*command, way, folder, folder])
                    measured[way].append(json.loads(done))
        # The least, because other processes only ever add.
        seconds = {way: min(each["seconds"] for each in measured[way]) for way in _WAYS}
        for way in _WAYS:
            figures = {
                "rows": count,
                "way": way,
                "rows_per_second": round(count / seconds[way]),
                "ratio": round(seconds["plain"] / seconds[way], 2),
                "added_mb": round(max(each["added_mb"] for each in measured[way])),
            }
            Console().print_json(data=figures, indent=None)


if __name__ == "__main__":
    main()
