"""Costs as tables on the terminal and as a figure; benchmark results with their machine."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from elip.cost.count import PARTS
from elip.cost.measure import Row

_PHASES = {"encoder": "image encoder", "inference": "inference", "training": "training step"}
_SETTING = ("image_size", "batch_size", "precision", "compiled", "phase")
# Colours that colour-blind readers can tell apart (Okabe and Ito, 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^Dv<>P"


def cost_table(rows: Sequence[Row]) -> Table:
    """Return the table of multiply-adds at one image size."""
    unit, scale = ("G", 1.0) if rows[0]["gflops_total"] >= 1 else ("M", 1e3)
    columns = {part: f"gflops_{part}" for part in (*PARTS, "total")}
    columns["training\nstep"] = "gflops_training_step"
    shown = [
        {name: _short(row[key] and scale * row[key]) for name, key in columns.items()}
        | {"operators": str(row["operators"])}
        for row in rows
    ]
    title = f"{rows[0]['image_size']} px: {unit} multiply-adds an example (one multiply-add = 1)"
    return _table(rows, shown, title)


def time_table(rows: Sequence[Row], device: str) -> Table:
    """Return times and memory of one setting, whose first row is no reduction."""
    columns = {
        "median ms": "latency_ms", "p95 ms": "latency_p95_ms", "examples/s": "examples_per_second",
        "peak MB": "peak_memory_mb", "FLOPs\nspeed-up": "flops_speedup",
        "latency\nspeed-up": "latency_speedup", "efficiency": "efficiency",
        "spread": "latency_spread",
    }  # fmt: skip
    shown = [{name: _short(row[key]) for name, key in columns.items()} for row in rows]
    return _table(rows, shown, f"{_title(rows[0])}, {device}")


def _table(rows: Sequence[Row], shown: Sequence[dict[str, str]], title: str) -> Table:
    table = Table(title=f"\n{title}", box=None, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column("reducer", no_wrap=True)
    fusion = any(row["fusion_keep_ratio"] is not None for row in rows)
    for name in ("keep\nratio", *(["in\nfusion"] if fusion else []), *shown[0]):
        table.add_column(name, justify="right")
    for row, cells in zip(rows, shown, strict=True):
        ratios = [_short(row["keep_ratio"])]
        ratios += [_short(row["fusion_keep_ratio"])] if fusion else []
        table.add_row(row["reducer"], *ratios, *cells.values())
    return table


def _title(row: Row) -> str:
    mode = ", compiled" if row["compiled"] else ""
    phase = _PHASES[row["phase"]]
    return f"{phase}, {row['image_size']} px, batch {row['batch_size']}, {row['precision']}{mode}"


def _short(value: float | None) -> str:
    """Format with three significant digits and at most three decimals."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}" if value >= 5e-4 else "<.001"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Plot latency speed-up over FLOPs speed-up, one panel per setting."""
    settings = list(dict.fromkeys(tuple(row[key] for key in _SETTING) for row in rows))
    names = list(dict.fromkeys(row["reducer"] for row in rows))[1:]
    ratios = [row[key] for row in rows for key in ("flops_speedup", "latency_speedup") if row[key]]
    limits = (0.95 * min(ratios), 1.05 * max(ratios))
    # A panel fits a column of a two-column paper. Font type 42 keeps text searchable.
    style: dict[Any, Any] = {"font.size": 8, "pdf.fonttype": 42, "axes.spines.top": False,
             "axes.spines.right": False, "axes.linewidth": 0.6}  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(3.3 * len(settings), 3.0), layout="constrained")
        axes = figure.subplots(1, len(settings), squeeze=False)[0]
        for axis, setting in zip(axes, settings, strict=True):
            here = [row for row in rows if tuple(row[key] for key in _SETTING) == setting]
            for place, name in enumerate(names):
                points = sorted(
                    (row["flops_speedup"], row["latency_speedup"])
                    for row in here
                    if row["reducer"] == name and row["flops_speedup"]
                )
                axis.plot(
                    *zip(*points, strict=True), marker=_MARKERS[place % 8], markersize=4,
                    linewidth=1, color=_COLOURS[place % 7], label=name,
                )  # fmt: skip
            # On the dashed line, all of the saved arithmetic is saved time.
            axis.axline((1, 1), slope=1, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            axis.set(xlim=limits, ylim=limits, aspect="equal", title=_title(here[0]),
                     xlabel="FLOPs speed-up (×)", ylabel="Latency speed-up (×)")  # fmt: skip
        if names:
            axes[-1].legend(frameon=False, fontsize=7, ncols=1 + len(names) // 12)
        figure.savefig(path)


def tell(rows: Sequence[Row], path: Path, title: str) -> None:
    """Print the rows of a benchmark as a table, and save them with facts about the machine.

    Args:
        rows: Plain values by column, the same columns in each.
        path: The JSON file.
        title: What was measured, and how.
    """
    table = Table(title=title, box=None, padding=(0, 2, 0, 0), title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else _short(v) for v in row.values()))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    content = {
        "title": title,
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        "rows": list(rows),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, object]:
    """Describe the machine that a benchmark ran on."""
    count = torch.cuda.device_count()
    return {
        "processor": platform.machine(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(count)],
        "torch": torch.__version__,
    }
