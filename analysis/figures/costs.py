"""Where tokens and multiply-adds go."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from analysis.figures.panels import Names, shown, write
from analysis.figures.subject import Plot, Subject
from analysis.style import INK, PART_COLOURS, SMALL


def _tokens_by_block(subject: Subject, width: float) -> Figure | None:
    """Draw the patch tokens that enter each block at the reference keep ratio."""
    counts: dict[str, list[tuple[float, ...]]] = {}
    table = subject.runs.table
    for record, label, keep in zip(
        subject.runs.records, table["label"], table["keep"], strict=True
    ):
        wanted = keep == subject.reference or label == "Identity"
        if wanted and record.tokens is not None and record.evaluations:
            counts.setdefault(str(label), []).append(record.tokens.entering)
    if not counts:
        return None
    # Image sizes and places to act can differ between the runs of one method.
    length = max(len(entering) for found in counts.values() for entering in found)
    series: dict[tuple[float, ...], set[str]] = {}
    for label, found in counts.items():
        for several in {len(entering) for entering in found}:
            alike = [entering for entering in found if len(entering) == several]
            mean = tuple(np.mean(alike, axis=0).round(2).tolist())
            series.setdefault(mean, set()).add(label)
    looked = subject.looks
    figure = Figure(figsize=(width, 2.2), layout="constrained")
    axes = figure.subplots()
    points = []
    for entering, labels in sorted(series.items()):
        names = sorted(labels)
        colours = {looked[name].colour for name in names if name in looked}
        colour = colours.pop() if len(colours) == 1 else INK
        places = np.arange(len(entering))
        fused = len(entering) < length
        axes.step(places, entering, where="mid", color=colour, lw=1.1, ls=":" if fused else "-")
        said = f"{len(names)} methods" if len(names) > 2 else ", ".join(map(shown, names))
        said += " (fusion)" if fused else ""
        points.append((float(places[-1]), float(entering[-1]), said, colour))
    blocks = length - 1
    axes.set_xticks(range(blocks + 1), [*map(str, range(blocks)), "out"])
    axes.set_xlabel("block that they enter")
    axes.set_ylabel("patch tokens")
    axes.set_ylim(bottom=0)
    axes.set_xlim(-0.5, blocks + 0.5)
    axes.grid(axis="x", visible=False)
    return write(figure, [Names(axes, points, left=False)])


def _breakdown(subject: Subject, width: float) -> Figure | None:
    """Draw where the multiply-adds go, by part of the model, at the reference keep ratio."""
    table = subject.runs.table
    columns = [f"gflops_{part}" for part in PART_COLOURS]
    if table.empty or table["gflops_total"].isna().all():
        return None
    table = table.dropna(subset=["gflops_total"])
    first = table["task"].iloc[0]
    at = (table["keep"] == subject.reference) | (table["label"] == "Identity")
    means = table[at & (table["task"] == first)].groupby("label")[columns].median()
    if means.empty:
        return None
    means = means.loc[means.sum(axis=1).sort_values().index]
    figure = Figure(figsize=(width, 0.75 + 0.155 * len(means)), layout="constrained")
    axes = figure.subplots()
    names = [shown(label) for label in means.index]
    start = np.zeros(len(means))
    for part, colour in PART_COLOURS.items():
        values = means[f"gflops_{part}"].to_numpy()
        axes.barh(names, values, left=start, color=colour, height=0.72, label=part)
        start += values
    for place, total in enumerate(start):
        axes.text(total, place, f" {total:.3g}", va="center", fontsize=SMALL)
    axes.set_xlabel("GFLOPs of a forward pass (one multiply-add = 1)")
    axes.margins(x=0.1, y=0.01)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    figure.legend(
        loc="outside upper center", ncols=6, fontsize=SMALL, frameon=False, handlelength=0.8,
        columnspacing=0.9, handletextpad=0.4,
    )  # fmt: skip
    return figure


PLOTS = (
    Plot(
        "tokens_by_block",
        "Token counts by block",
        "Patch tokens that enter each block of the image encoder, CLS left out, and that leave it; "
        "mean over the runs. Dotted: a method that acts in the fusion, by fusion layer.",
        _tokens_by_block,
    ),
    Plot(
        "cost_breakdown",
        "Where the cost goes",
        "Vision without the two next parts; probe: passes that only score tokens; reducer: the "
        "method's own work.",
        _breakdown,
    ),
)
