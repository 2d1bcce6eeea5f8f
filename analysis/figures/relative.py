"""Shares of the score without reduction over all settings: a panel a family."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.panels import shown
from analysis.figures.scores import bars
from analysis.figures.subject import Plot, Subject
from analysis.style import FAMILY_COLOURS, MUTED, ONE_COLUMN, Look


def _draw(subject: Subject, width: float) -> Figure | None:
    """Draw the share of the score without reduction, over all settings, a panel for each family."""
    cells = subject.over_tasks
    if cells.empty or cells["gflops_total"].isna().all():
        return None
    families = [name for name in FAMILY_COLOURS if (cells["family"] == name).any()]
    across = 2 if width <= ONE_COLUMN + 0.1 else 4
    across = min(across, len(families))
    down = -(-len(families) // across)
    figure = Figure(figsize=(width, 1.75 * down), layout="constrained")
    panels = np.ravel(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False))
    for empty in panels[len(families) :]:
        empty.set_axis_off()
    looked = subject.looks
    for number, (axes, family) in enumerate(zip(panels, families, strict=False)):
        _family_panel(axes, cells, family, looked)
        if number % across == 0:
            axes.set_ylabel("share of no reduction")
        axes.tick_params(labelbottom=True)
        axes.locator_params(axis="x", nbins=4)
    figure.supxlabel("GFLOPs, inference (one multiply-add = 1)", fontsize=7)
    return figure


def _family_panel(axes: Axes, cells: pd.DataFrame, family: str, looked: dict[str, Look]) -> None:
    axes.set_title(family)
    axes.axhline(1, color=MUTED, lw=0.6, ls=(0, (1, 2)), zorder=1)
    for label, group in cells.groupby("label"):
        group = group.sort_values("gflops_total")
        mine = group["family"].iloc[0] == family
        if not mine:
            axes.plot(
                group["gflops_total"], group["share"], color=MUTED, lw=0.4, alpha=0.4, zorder=1
            )
            continue
        look = looked[str(label)]
        name = shown(label)
        axes.plot(
            group["gflops_total"], group["share"], marker=look.marker, color=look.colour, ms=3.4,
            mec="none", lw=0.8, label=name, zorder=3,
        )  # fmt: skip
        bars(axes, group, "gflops_total", look.colour, "share_")
    axes.legend(
        loc="best", fontsize=5.2, frameon=False, handlelength=1.1, labelspacing=0.2,
        borderaxespad=0.1,
    )  # fmt: skip


PLOT = Plot(
    "relative_score",
    "Share of the score without reduction, over all settings",
    "Each family in its colour before all others in grey. Mean over the settings of the score as a "
    "share of the score without reduction; bars are 95% intervals by a stratified bootstrap over "
    "the seeds. Only methods that every setting has.",
    _draw,
)
