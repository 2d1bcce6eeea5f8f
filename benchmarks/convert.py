"""Measure rows per second and peak memory of a conversion, for all rows and for half of them.

``python benchmarks/convert.py [--rows 20000]`` generates image-caption pairs in the layout of SBU,
converts them in a new process, and prints one line for each size.
"""

from __future__ import annotations

import argparse
import io
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


def make_pairs(raw: Path, count: int) -> None:
    """Write ``count`` noisy JPEGs of about 25 kB, with captions, in the layout of SBU."""
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(count):
        path = raw / f"images_train/{number // 1000:04d}/{number:07d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = rng.integers(0, 256, (_EDGE[1] // 4, _EDGE[0] // 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(blocks).resize(_EDGE).save(buffer, "JPEG", quality=80)
        path.write_bytes(buffer.getvalue())
        pairs.append([str(path.relative_to(raw)), f"a caption for picture number {number}"])
    (raw / "annot.json").write_text(json.dumps(pairs))


def measured(raw: Path, out: Path, check: bool) -> None:
    """Convert and print the measurements as JSON."""
    from elip.data.convert import convert

    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = convert("sbu", raw, out, workers=2, check=check, progress=False)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {
        "rows": report.rows["sbu_0.arrow"],
        "rows_per_second": round(report.rows["sbu_0.arrow"] / seconds),
        "peak_mb": round(peak / 1024),
        "peak_mb_before": round(before / 1024),
        "file_mb": round((out / "sbu_0.arrow").stat().st_size / 2**20),
    }
    sys.stdout.write(json.dumps(figures))


def measure(rows: int, check: bool) -> dict[str, int]:
    """Generate ``rows`` pairs, convert them in a new process, and return the measurements."""
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder, "raw"), Path(folder, "out")
        make_pairs(raw, rows)
        command = [sys.executable, __file__, "--raw", str(raw), "--out", str(out)]
        command += [] if check else ["--no-check"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        figures: dict[str, int] = json.loads(done.stdout)
        return figures


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--no-check", dest="check", action="store_false")
    parser.add_argument("--raw", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.raw:
        measured(given.raw, given.out, given.check)
        return
    for rows in (given.rows // 2, given.rows):
        Console().print_json(data=measure(rows, given.check), indent=None)


if __name__ == "__main__":
    main()
