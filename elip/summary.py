"""Prints the summary at the end of a run: scores, cost, and the path of the record."""

from __future__ import annotations

from pathlib import Path

from rich import get_console
from rich.console import Console
from rich.table import Table
from rich.text import Text

from elip.record import GFLOPS_UNIT, Gflops, Record, display_name

CONSOLE = get_console()
"""Progress, log lines and summaries are printed here; the command line makes it stderr."""


def print_summary(
    record: Record,
    path: Path | str,
    next_command: str | None = None,
    console: Console = CONSOLE,
) -> None:
    """Print the summary of a run, the path of its record, and the command to type next."""
    done = f"{display_name(record.reducer)} on {' + '.join(record.datasets)}, {record.task}"
    console.print("", Text(f"{record.command} {record.status}: {done}", "bold"), sep="\n")
    if record.error is not None:
        console.print(Text(record.error, style="red"))
    console.print(Text(f"Weights: {record.weights}."))
    if record.evaluations:
        console.print(_scores(record))
    if record.tokens_per_block:
        console.print(_tokens(record))
    if record.gflops.total is not None or record.gflops.training_step is not None:
        console.print(_gflops(record), Text(f"GFLOPs: {GFLOPS_UNIT}.", style="dim"), sep="\n")
    for line in (_pace(record), *record.notes):
        if line:
            console.print(Text(line))
    # Never break paths and commands, so that they can be copied.
    console.print(Text(f"Record: {path}"), soft_wrap=True)
    if next_command is not None:
        console.print(Text(f"Next:   {next_command}"), soft_wrap=True)


def _scores(record: Record) -> Table:
    table = _table("split", "examples", "score", "", "chance")
    for evaluation in record.evaluations:
        first = (evaluation.split, f"{evaluation.examples:,}")
        # The main score comes first.
        for name in sorted(evaluation.metrics, key=lambda name: name != record.main_metric):
            style = "bold" if name == record.main_metric else ""
            score, chance = (
                _fixed(of.get(name), 4) for of in (evaluation.metrics, evaluation.chance)
            )
            table.add_row(*first, name, Text(score, style=style), chance)
            first = ("", "")
    return table


def _tokens(record: Record) -> Text:
    *entering, leaving = (f"{count:g}" for count in record.tokens_per_block)
    asked = "" if record.keep_ratio_asked is None else f" (asked {record.keep_ratio_asked:g})"
    where, kind, ratio = "block", "Keep ratio", record.keep_ratio
    if record.fusion_keep_ratio is not None:
        where, kind, ratio = "fusion layer", "Fusion keep ratio", record.fusion_keep_ratio
    return Text(
        f"Patch tokens entering each {where}: {' '.join(entering)}; leaving: {leaving} of "
        f"{record.patches}.\n{kind}: {_fixed(ratio, 3)}{asked}."
    )


def _gflops(record: Record) -> Table:
    names = [name for name in Gflops.model_fields if name != "training_step"]
    table = _table("GFLOPs", *names, "total", "training", gap=1)
    own, full = record.gflops, record.gflops_unreduced
    rows = [(display_name(record.reducer), own)]
    rows += [("No reduction", full)] if own != full else []
    for label, cost in rows:
        values = [getattr(cost, name) for name in (*names, "total", "training_step")]
        table.add_row(label, *(three_digits(value) for value in values))
    if own != full:
        pairs = (own.total, full.total), (own.training_step, full.training_step)
        shares = (f"{100 * part / whole:.0f}%" if part and whole else "-" for part, whole in pairs)
        table.add_row("share", *[""] * len(names), *shares)
    return table


def _pace(record: Record) -> str:
    facts = []
    if record.train_images_per_second is not None:
        facts.append(f"{three_digits(record.train_images_per_second)} images a second in training")
    if record.train_steps is not None and record.train_seconds is not None:
        minutes, seconds = divmod(round(record.train_seconds), 60)
        hours, minutes = divmod(minutes, 60)
        took = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
        facts.append(f"{record.train_steps:,} steps in {took}")
    if record.examples_per_second is not None:
        speed = three_digits(record.examples_per_second)
        facts.append(f"inference {speed} examples a second at batch {record.batch_size}")
    if record.peak_memory_bytes is not None:
        facts.append(f"peak memory {record.peak_memory_bytes / 1e9:.2f} GB")
    if record.peak_gpu_memory_bytes is not None:
        facts.append(f"on the GPU {record.peak_gpu_memory_bytes / 1e9:.2f} GB")
    return f"{'; '.join(facts)}." if facts else ""


def _table(first: str, *others: str, gap: int = 2) -> Table:
    table = Table(box=None, padding=(0, gap, 0, 0), header_style="dim", pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="left" if name == "score" else "right", no_wrap=True)
    return table


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def three_digits(value: float | None) -> str:
    """Return a number with three significant digits and without an exponent."""
    if value is None or value == 0:
        return "-" if value is None else "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}" if value >= 1e-3 else "<0.001"
