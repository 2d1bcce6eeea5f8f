"""Costs as tables, as a CSV file, as a figure; benchmark results with the machine they ran on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from elip.cost.bench import Cell, Row
from elip.provenance import code_version, hardware

_PARTS = ("vision", "probe", "reducer", "text", "fusion", "head", "total")
_SETTING = ("image_size", "batch_size", "precision", "compiled", "phase")
_PHASES = {"encoder": "image encoder", "inference": "inference", "training": "training step"}


def cost_table(cells: list[Cell]) -> Table:
    """Return the multiply-adds of one image size; nothing else of a setting changes them."""
    rows = [cell.row(cells[0]) for cell in cells]
    unit, scale = ("G", 1.0) if rows[0]["gflops_total"] >= 1 else ("M", 1e3)
    size = cells[0].setting.image_size
    table = _empty(
        f"{size} px: {unit} multiply-adds an example (one multiply-add = 1)",
        *(*_PARTS, "train"),
    )
    columns = [f"gflops_{part}" for part in _PARTS] + ["gflops_training_step"]
    for row in rows:
        values = [None if row[name] is None else scale * row[name] for name in columns]
        table.add_row(row["reducer"], f"{row['keep_ratio']:.2f}", *map(_short, values))
    return table


def time_table(cells: list[Cell], device: str) -> Table:
    """Return times and memory of one setting, whose first cell is no reduction."""
    setting = cells[0].setting
    title = (
        f"{setting.image_size} px, batch {setting.batch_size}, {setting.precision}, "
        f"{'compiled' if setting.compiled else 'eager'}, {device}, "
        f"{_PHASES[setting.phase]}"
    )
    columns = {
        "p50 ms": "latency_p50_ms", "p95 ms": "latency_p95_ms", "/s": "examples_per_s",
        "peak MB": "peak_memory_mb", "less work": "less_work",
        "faster": "faster", "realised": "realised",
    }  # fmt: skip
    table = _empty(title, *columns, "spread")
    for row in (cell.row(cells[0]) for cell in cells):
        shown = [_short(row[column]) for column in columns.values()]
        spread = f"{row['latency_spread']:.0%}"
        table.add_row(row["reducer"], f"{row['keep_ratio']:.2f}", *shown, spread)
    return table


def _empty(title: str, *columns: str) -> Table:
    table = Table(title=f"\n{title}", box=None, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column("reducer", no_wrap=True)
    for name in ("keep", *columns):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _short(value: float | None) -> str:
    """Three significant digits, at most three of them behind the point."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}" if value >= 5e-4 else "<.001"


def write_csv(rows: list[Row], path: Path) -> None:
    """Write one line a cell; the columns are those of `Cell.row`."""
    pd.DataFrame(rows).to_csv(path, index=False)


def tell_cells(groups: Iterable[list[Cell]], path: Path, title: str) -> None:
    """`tell` of measured cells: what a setting does to work, time and memory.

    Args:
        groups: For each setting its cells, no reduction first.
        path: As in `tell`.
        title: As in `tell`.
    """
    columns = {
        "reducer": "reducer", "keep_ratio": "keep", "phase": "phase", "image_size": "px",
        "batch_size": "batch", "gflops": "GFLOPs", "latency_p50_ms": "p50 ms",
        "latency_p95_ms": "p95 ms", "peak_memory_mb": "peak MB", "less_work": "less work",
        "faster": "faster", "realised": "realised", "latency_spread": "spread",
    }  # fmt: skip
    rows = [cell.row(cells[0]) for cells in groups for cell in cells]
    tell([{new: row[old] for old, new in columns.items()} for row in rows], path, title)


def tell(rows: Sequence[Row], path: Path, title: str) -> None:
    """Print the rows of a benchmark as a table, and keep them with what they were measured on.

    Args:
        rows: Plain values by column, the same columns in each.
        path: The JSON file.
        title: What was measured, and how.
    """
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else _short(v) for v in row.values()))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(title)
    console.print(table)
    machine, gigabyte = hardware(), 2**30
    content = {
        "title": title,
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": {
            "cores": machine.cores,
            "threads": torch.get_num_threads(),
            "vector_instructions": torch.backends.cpu.get_cpu_capability(),
            "memory_gb": machine.memory_bytes and round(machine.memory_bytes / gigabyte),
            "gpus": list(machine.gpus),
        },
        "torch": torch.__version__,
        "commit": code_version().commit,
        "rows": list(rows),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def draw(rows: list[Row], path: Path) -> None:
    """Draw the real speed-up over that of the arithmetic, one panel a setting."""
    settings = list(dict.fromkeys(tuple(row[key] for key in _SETTING) for row in rows))
    figure = Figure(figsize=(4.2 * len(settings), 4), layout="constrained")
    axes = figure.subplots(1, len(settings), squeeze=False)[0]
    names = list(dict.fromkeys(row["reducer"] for row in rows))
    ratios = [row[key] for row in rows for key in ("less_work", "faster") if row[key] is not None]
    limits = (0.9 * min(ratios), 1.1 * max(ratios))
    for axis, setting in zip(axes, settings, strict=True):
        for place, name in enumerate(names):
            mine = [
                row for row in rows
                if row["reducer"] == name and tuple(row[key] for key in _SETTING) == setting
            ]  # fmt: skip
            points = [(row["less_work"], row["faster"]) for row in mine if row["less_work"]]
            across, up = [point[0] for point in points], [point[1] for point in points]
            style = "os^Dv"[place % 5] + "-"
            axis.plot(across, up, style, color=f"C{place % 10}", label=name)
        # On the dashed line, all of the saved arithmetic is saved time.
        axis.axline((1, 1), slope=1, color="grey", linewidth=0.8, linestyle="--")
        axis.set(xlim=limits, ylim=limits, aspect="equal")
        size, batch, precision, compiled, phase = setting
        axis.set_title(
            f"{size} px, batch {batch}, {precision}{', compiled' if compiled else ''}, "
            f"{_PHASES[phase]}", fontsize=9,
        )  # fmt: skip
        axis.set_xlabel("multiply-adds without reduction / with")
        axis.set_ylabel("time without reduction / with")
    axes[-1].legend(fontsize=7)
    figure.savefig(path, dpi=150)
