"""The end of a run in plain words: what was reached, what it cost, where the record lies."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from elip.old_record import CONVENTION, Record

_MISSING = "-"


def print_summary(record: Record, path: Path | str, console: Console | None = None) -> None:
    """Print the summary of a run.

    Args:
        record: The run.
        path: Where its record lies.
        console: Where to print; None takes the terminal.
    """
    console = console or Console()
    console.print(Group(*_lines(record, Path(path))))


def _lines(record: Record, path: Path) -> list[RenderableType]:
    title = f"{record.reducer} on {' + '.join(record.datasets)}, {record.task}: {record.status}"
    parts: list[RenderableType] = ["", Text(title, style="bold")]
    if record.error is not None:
        parts.append(Text(record.error, style="red"))
    if record.evaluations:
        parts.append(_scores(record))
    if record.tokens is not None:
        parts.append(_tokens(record))
    if record.gflops.forward.total is not None or record.gflops.training_step is not None:
        parts += [_gflops(record), Text(f"GFLOPs: {CONVENTION}.", style="dim")]
    parts += [Text(line) for line in (_pace(record), *record.notes) if line]
    parts.append(Text(f"Record: {path}", overflow="fold"))
    return parts


def _scores(record: Record) -> Table:
    table = _table("split", "examples", "score", "", "chance")
    for evaluation in record.evaluations:
        first = (evaluation.split, f"{evaluation.examples:,}")
        # The main score leads; the others follow in their own order.
        names = sorted(evaluation.metrics, key=lambda name: name != record.main_metric)
        for name in names:
            style = "bold" if name == record.main_metric else ""
            score = _number(evaluation.metrics[name], 4)
            chance = _number(evaluation.chance.get(name), 4)
            table.add_row(*first, name, Text(score, style=style), chance)
            first = ("", "")
    return table


def _tokens(record: Record) -> Text:
    tokens = record.tokens
    assert tokens is not None
    counts = " ".join(f"{count:g}" for count in tokens.entering[:-1])
    left = f"{tokens.entering[-1]:g}"
    asked = "" if tokens.keep_ratio_asked is None else f", asked {tokens.keep_ratio_asked:g}"
    return Text(
        f"Patch tokens entering each block: {counts}; leaving: {left} of {tokens.patches} "
        f"(keep ratio {_number(tokens.keep_ratio, 3)}{asked})."
    )


def _gflops(record: Record) -> Table:
    names = [part.name for part in fields(record.gflops.forward)]
    table = _table("GFLOPs", *names, "total", "train step")
    own, full = record.gflops, record.gflops_identity
    for label, cost in ((record.reducer, own), ("no reduction", full)):
        if label == "no reduction" and own == full:
            return table
        values = [getattr(cost.forward, name) for name in (*names, "total")]
        table.add_row(label, *(_short(value) for value in (*values, cost.training_step)))
    share = [
        _share(own.forward.total, full.forward.total),
        _share(own.training_step, full.training_step),
    ]
    table.add_row("share", *[""] * len(names), *share)
    return table


def _pace(record: Record) -> str:
    facts = []
    training, speed = record.training, record.speed
    if training is not None:
        if training.images_per_second is not None:
            facts.append(f"{_short(training.images_per_second)} images a second in training")
        if training.steps is not None and training.seconds is not None:
            facts.append(f"{training.steps:,} steps in {_duration(training.seconds)}")
    if speed is not None and speed.examples_per_second is not None:
        facts.append(
            f"inference {_short(speed.examples_per_second)} examples a second at batch "
            f"{speed.batch_size}"
        )
    if record.peak_memory_bytes is not None:
        facts.append(f"peak memory {record.peak_memory_bytes / 1e9:.2f} GB")
    if record.peak_gpu_memory_bytes is not None:
        facts.append(f"on the GPU {record.peak_gpu_memory_bytes / 1e9:.2f} GB")
    return "" if not facts else f"{'; '.join(facts)}."


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="left" if name in ("score",) else "right")
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
