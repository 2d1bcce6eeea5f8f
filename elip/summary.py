"""Prints the summary at the end of a run: scores, cost, and the path of the record."""

from __future__ import annotations

from pathlib import Path

from rich import get_console
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from elip.record import GFLOPS_UNIT, Gflops, Record, display_name

CONSOLE = get_console()
"""Progress, log lines and summaries are printed here; the command line makes it stderr."""

_MISSING = "-"


def print_summary(
    record: Record,
    path: Path | str,
    next_command: str | None = None,
    console: Console = CONSOLE,
) -> None:
    """Print the summary of a run, the path of its record, and the command to type next."""
    console.print(Group(*_lines(record)))
    # Never break paths and commands, so that they can be copied.
    console.print(Text(f"Record: {path}"), soft_wrap=True)
    if next_command is not None:
        console.print(Text(f"Next:   {next_command}"), soft_wrap=True)


def _lines(record: Record) -> list[RenderableType]:
    done = f"{display_name(record.reducer)} on {' + '.join(record.datasets)}, {record.task}"
    parts: list[RenderableType] = ["", Text(f"{record.command} {record.status}: {done}", "bold")]
    if record.error is not None:
        parts.append(Text(record.error, style="red"))
    parts.append(Text(f"Weights: {record.weights}."))
    if record.evaluations:
        parts.append(_scores(record))
    if record.tokens_per_block:
        parts.append(_tokens(record))
    if record.gflops.total is not None or record.gflops.training_step is not None:
        parts += [_gflops(record), Text(f"GFLOPs: {GFLOPS_UNIT}.", style="dim")]
    return [*parts, *(Text(line) for line in (_pace(record), *record.notes) if line)]


def _scores(record: Record) -> Table:
    table = _table("split", "examples", "score", "", "chance")
    for evaluation in record.evaluations:
        first = (evaluation.split, f"{evaluation.examples:,}")
        # The main score comes first.
        names = sorted(evaluation.metrics, key=lambda name: name != record.main_metric)
        for name in names:
            style = "bold" if name == record.main_metric else ""
            score = _number(evaluation.metrics[name], 4)
            chance = _number(evaluation.chance.get(name), 4)
            table.add_row(*first, name, Text(score, style=style), chance)
            first = ("", "")
    return table


def _tokens(record: Record) -> Text:
    counts = " ".join(f"{count:g}" for count in record.tokens_per_block[:-1])
    left = f"{record.tokens_per_block[-1]:g}"
    asked = "" if record.keep_ratio_asked is None else f", asked {record.keep_ratio_asked:g}"
    fused = record.fusion_keep_ratio is not None
    ratio = _number(record.fusion_keep_ratio if fused else record.keep_ratio, 3)
    return Text(
        f"Patch tokens entering each {'fusion layer' if fused else 'block'}: {counts}; leaving: "
        f"{left} of {record.patches} ({'fusion ' if fused else ''}keep ratio {ratio}{asked})."
    )


def _gflops(record: Record) -> Table:
    names = [name for name in Gflops.model_fields if name != "training_step"]
    table = _table("GFLOPs", *names, "total", "training", gap=1)
    own, full = record.gflops, record.gflops_unreduced
    rows = [(display_name(record.reducer), own)]
    rows += [("No reduction", full)] if own != full else []
    for label, cost in rows:
        values = [getattr(cost, name) for name in (*names, "total", "training_step")]
        table.add_row(label, *(_short(value) for value in values))
    if own != full:
        shares = [_share(own.total, full.total), _share(own.training_step, full.training_step)]
        table.add_row("share", *[""] * len(names), *shares)
    return table


def _pace(record: Record) -> str:
    facts = []
    if record.train_images_per_second is not None:
        facts.append(f"{_short(record.train_images_per_second)} images a second in training")
    if record.train_steps is not None and record.train_seconds is not None:
        facts.append(f"{record.train_steps:,} steps in {_duration(record.train_seconds)}")
    if record.examples_per_second is not None:
        facts.append(
            f"inference {_short(record.examples_per_second)} examples a second at batch "
            f"{record.batch_size}"
        )
    if record.peak_memory_bytes is not None:
        facts.append(f"peak memory {record.peak_memory_bytes / 1e9:.2f} GB")
    if record.peak_gpu_memory_bytes is not None:
        facts.append(f"on the GPU {record.peak_gpu_memory_bytes / 1e9:.2f} GB")
    return "" if not facts else f"{'; '.join(facts)}."


def _table(first: str, *others: str, gap: int = 2) -> Table:
    table = Table(box=None, padding=(0, gap, 0, 0), header_style="dim", pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="left" if name == "score" else "right", no_wrap=True)
    return table


def _number(value: float | None, digits: int) -> str:
    return _MISSING if value is None else f"{value:.{digits}f}"


def _short(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return _MISSING
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}" if value >= 1e-3 else "<0.001"


def _share(part: float | None, whole: float | None) -> str:
    return _MISSING if part is None or not whole else f"{100 * part / whole:.0f}%"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
