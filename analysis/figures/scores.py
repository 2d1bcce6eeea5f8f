"""Scores against costs: a panel a setting, a line a method, the frontier behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.cells import WITHOUT_RATIO, pareto
from analysis.figures.panels import LINE, Names, grid, shown, write
from analysis.figures.subject import Plot, Subject
from analysis.literature import Published
from analysis.style import INK, MUTED, SMALL, Look


def _curves(axes: Axes, cells: pd.DataFrame, x: str, looked: dict[str, Look]) -> Names:
    """Draw every method's points with intervals, joined in the order of their keep ratios.

    A line stops where a keep ratio that others have is missing.
    """
    reduced = cells[~cells["label"].isin(WITHOUT_RATIO)]
    used = reduced.groupby("keep")["label"].nunique()
    keeps = set(used.index[used > 1])
    points = []
    for label, group in cells.groupby("label"):
        group = group.sort_values("keep")
        look = looked[str(label)]
        if label == "Identity":
            _no_reduction(axes, group.iloc[0], x)
            continue
        line = group.set_index("keep")[[x, "score"]]
        if label != "Smaller image":
            line = line.reindex(sorted(keeps | set(line.index)))
        axes.plot(
            line[x].to_numpy(), line["score"].to_numpy(), marker=look.marker, color=look.colour,
            mec="none", ms=3.4, lw=0.6, alpha=0.9, zorder=4,
        )  # fmt: skip
        bars(axes, group, x, look.colour)
        first = group.sort_values(x).iloc[0]
        points.append((float(first[x]), float(first["score"]), shown(label), look.colour))
    front = cells[pareto(cells[x], cells["score"])].sort_values(x)
    if x != "keep_ratio" and len(front) > 1:
        axes.step(front[x], front["score"], where="post", color=INK, lw=2.2, alpha=0.22, zorder=1)
    axes.margins(x=0.04, y=0.08)
    return Names(axes, points)


def bars(axes: Axes, group: pd.DataFrame, x: str, colour: str, score: str = "") -> None:
    """Draw the intervals of some cells; none where there is none."""
    ends = group[[x, f"{score}low", f"{score}high"]].dropna().to_numpy(dtype=float)
    if len(ends):
        axes.vlines(*ends.T, color=colour, lw=0.6, alpha=0.55, zorder=3)


def _no_reduction(axes: Axes, cell: pd.Series, x: str) -> None:
    axes.axhline(cell["score"], color=MUTED, lw=0.6, ls=(0, (1, 2)), zorder=1)
    axes.plot(cell[x], cell["score"], "o", ms=4.6, mfc="none", mec=INK, mew=1.0, zorder=5)
    bars(axes, cell.to_frame().T, x, INK)
    axes.annotate(
        "no\nreduction", (1, cell["score"]), xycoords=axes.get_yaxis_transform(), xytext=(2, 0),
        textcoords="offset points", va="center", fontsize=SMALL, linespacing=0.95,
    )  # fmt: skip


def _against(x: str, label: str) -> Callable[[Subject, float], Figure | None]:
    """Return a plot of the score against a column of the cells, a panel for each setting."""

    def draw(subject: Subject, width: float) -> Figure | None:
        if subject.study.cells.empty:
            return None
        cells = subject.study.cells.dropna(subset=[x])
        if x == "keep_ratio":  # a smaller image keeps all of its patches
            cells = cells[cells["label"] != "Smaller image"]
        if cells.empty:
            return None
        settings = [name for name in subject.study.settings if (cells["setting"] == name).any()]
        figure, panels = grid(len(settings), width, _height(cells))
        names = []
        for axes, setting in zip(panels, settings, strict=True):
            mine = cells[cells["setting"] == setting]
            axes.set_title(setting)
            axes.set_xlabel(label)
            axes.locator_params(axis="x", nbins=5)
            axes.set_ylabel(str(mine["metric"].iloc[0]))
            _published(axes, subject.published, mine)
            names.append(_curves(axes, mine, x, subject.looks))
            _chance(axes, mine["chance"].mean())
        return write(figure, names)

    return draw


def _height(cells: pd.DataFrame) -> float:
    most = cells.groupby("setting")["label"].nunique().max() if "setting" in cells else 12
    return max(2.1, 0.65 + (LINE + 0.012) * float(most))


def _chance(axes: Axes, chance: float) -> None:
    if np.isnan(chance):
        return
    low, high = axes.get_ylim()
    if low <= chance <= high:
        axes.axhline(chance, color=MUTED, lw=0.6, ls=(0, (4, 2)), zorder=1)
    axes.text(
        0.99, 0.02, f"chance {chance:.3g}", transform=axes.transAxes, ha="right", va="bottom",
        fontsize=SMALL, color=MUTED,
    )  # fmt: skip


def _published(axes: Axes, published: Sequence[Published], cells: pd.DataFrame) -> None:
    """Draw published scores of the same metric as hollow markers at the right edge."""
    mine = [one for one in published if one.metric == cells["metric"].iloc[0]]
    for model, dataset in dict.fromkeys((one.model, one.dataset) for one in mine):
        group = [one for one in mine if (one.model, one.dataset) == (model, dataset)]
        scores = [one.score for one in group]
        axes.plot(
            [0.97] * len(group), scores, "D", transform=axes.get_yaxis_transform(), mfc="none",
            mec=INK, ms=4, mew=0.8, zorder=6,
        )  # fmt: skip
        axes.annotate(
            f"{model}, {dataset}\n(published)", (0.97, max(scores)),
            xycoords=axes.get_yaxis_transform(), xytext=(-5, 0), textcoords="offset points",
            ha="right", va="center", fontsize=SMALL,
        )  # fmt: skip


_POINTS = (
    "Points are means over the seeds, bars their 95% interval (Student; none with one seed). The "
    "broad grey line joins the points that none beats at its cost. A line that breaks off lacks a "
    "keep ratio that others have."
)

PLOTS = (
    Plot(
        "score_gflops",
        "Score against inference cost",
        f"GFLOPs of one forward pass, one multiply-add = 1, the method's own work included. "
        f"{_POINTS}",
        _against("gflops_total", "GFLOPs, inference (one multiply-add = 1)"),
    ),
    Plot(
        "score_training",
        "Score against training cost",
        f"GFLOPs of one training step for an example, forward and backward. {_POINTS}",
        _against("gflops_training_step", "GFLOPs, training step (one multiply-add = 1)"),
    ),
    Plot(
        "score_latency",
        "Score against latency",
        "Median time of a batch as a share of the same batch's without reduction, timed in turn "
        f"with it in the same run: only such ratios compare between runs. {_POINTS}",
        _against("latency_share", "inference time, share of no reduction"),
    ),
    Plot(
        "score_keep_ratio",
        "Score against keep ratio",
        f"Measured mean share of the patch tokens that enter a block. {_POINTS}",
        _against("keep_ratio", "measured keep ratio"),
    ),
)
