"""The figures of a study. Each function draws one at a width in inches, for paper and page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.cells import Study, over_tasks, pareto
from analysis.literature import Published
from analysis.load import Runs, training_curves
from analysis.style import (
    INK,
    MUTED,
    ONE_COLUMN,
    PART_COLOURS,
    Look,
    looks,
    spread,
)

_SMALL = 5.6
_LONGEST = 26
_LINE = 0.085
"""Height of a line of small type, in inches."""


@dataclass(frozen=True)
class Subject:
    """What the figures draw.

    Attributes:
        runs: The runs.
        study: Their cells.
        published: Results from the literature to draw beside them.
    """

    runs: Runs
    study: Study
    published: tuple[Published, ...] = ()

    @cached_property
    def logs(self) -> pd.DataFrame:
        """The validation scores of all training runs."""
        return training_curves(self.runs)

    @cached_property
    def over_tasks(self) -> pd.DataFrame:
        """The cells averaged over the settings."""
        return over_tasks(self.study) if len(self.study.cells) else pd.DataFrame()

    @cached_property
    def looks(self) -> dict[str, Look]:
        """Colour and marker of every method."""
        cells = self.study.cells
        return looks(dict(zip(cells["label"], cells["family"], strict=True)))

    @cached_property
    def reference(self) -> float:
        """The keep ratio at which most methods were run; of several, the middle one."""
        cells = self.study.cells
        reduced = cells[cells["label"] != "Identity"]
        counts = reduced.groupby("keep")["label"].nunique()
        if counts.empty:
            return 1.0
        most = sorted(counts.index[counts == counts.max()])
        return float(most[len(most) // 2])


@dataclass(frozen=True)
class Plot:
    """One figure of the report.

    Attributes:
        name: Of its files.
        title: Heading.
        caption: What is drawn, in words.
        draw: Draws it at a width; None where there is nothing to draw.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Subject, float], Figure | None]


def _grid(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return panels: one a line in one column, two a line in two."""
    across = 1 if width <= ONE_COLUMN + 0.1 or count == 1 else 2
    down = -(-count // across)
    figure = Figure(figsize=(width, height * down), layout="constrained")
    panels = list(np.ravel(figure.subplots(down, across, squeeze=False)))
    for empty in panels[count:]:
        empty.set_axis_off()
    return figure, panels[:count]


@dataclass(frozen=True)
class _Names:
    """Names that go beside the data of one panel instead of a legend.

    Attributes:
        axes: The panel.
        points: x, y, text and colour of each name.
        left: Whether they stand left of the data or right of it.
    """

    axes: Axes
    points: Sequence[tuple[float, float, str, str]]
    left: bool = True


def _shown(label: object) -> str:
    """Return a method's name as it stands in a figure."""
    text = "no reduction" if label == "Identity" else str(label)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _write(figure: Figure, columns: Sequence[_Names]) -> Figure:
    """Write the names into columns without overlaps, with a thin line to each point.

    Call it last: the layout is settled here, once, and kept.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for names in columns:
        _column(names, figure.dpi)
    return figure


def _column(names: _Names, dpi: float) -> None:
    axes, left = names.axes, names.left
    box = axes.get_window_extent()
    wide, high = box.width / dpi, box.height / dpi
    room = 0.12 + 0.046 * max((len(text) for _, _, text, _ in names.points), default=0)
    start, end = axes.get_xlim()
    extra = (end - start) * room / max(0.3, wide - room)
    axes.set_xticks([tick for tick in axes.get_xticks() if start <= tick <= end])
    axes.set_xlim((start - extra, end) if left else (start, end + extra))
    edge = start - 0.06 * extra if left else end + 0.06 * extra
    bottom, top = axes.get_ylim()
    gap = _LINE * (top - bottom) / high
    wanted = [y for _, y, _, _ in names.points]
    places = spread(wanted, gap, bottom + gap / 2, top - gap / 2)
    leaders = []
    for (x, y, text, _), place in zip(names.points, places, strict=True):
        leaders.append([(edge, place), (x, y)])
        axes.text(
            edge, place, text, color=INK, fontsize=_SMALL, va="center_baseline",
            ha="right" if left else "left",
        )  # fmt: skip
    colours = [colour for _, _, _, colour in names.points]
    axes.add_collection(
        LineCollection(leaders, colors=colours, linewidths=0.35, alpha=0.55, zorder=1),
        autolim=False,
    )


def _curves(axes: Axes, cells: pd.DataFrame, x: str, looked: dict[str, Look]) -> _Names:
    """Draw every method's points with intervals, joined in the order of their keep ratios.

    A line stops where a keep ratio that others have is missing.
    """
    reduced = cells[~cells["label"].isin(["Identity", "Smaller image"])]
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
        _bars(axes, group, x, look.colour)
        first = group.sort_values(x).iloc[0]
        points.append((float(first[x]), float(first["score"]), _shown(label), look.colour))
    front = cells[pareto(cells[x], cells["score"])].sort_values(x)
    if x != "keep_ratio" and len(front) > 1:
        axes.step(front[x], front["score"], where="post", color=INK, lw=2.2, alpha=0.22, zorder=1)
    axes.margins(x=0.04, y=0.08)
    return _Names(axes, points)


def _bars(axes: Axes, group: pd.DataFrame, x: str, colour: str, score: str = "") -> None:
    bars = group[[x, f"{score}low", f"{score}high"]].dropna().to_numpy(dtype=float)
    if len(bars):
        axes.vlines(*bars.T, color=colour, lw=0.6, alpha=0.55, zorder=3)


def _no_reduction(axes: Axes, cell: pd.Series, x: str) -> None:
    axes.axhline(cell["score"], color=MUTED, lw=0.6, ls=(0, (1, 2)), zorder=1)
    axes.plot(cell[x], cell["score"], "o", ms=4.6, mfc="none", mec=INK, mew=1.0, zorder=5)
    _bars(axes, cell.to_frame().T, x, INK)
    axes.annotate(
        "no reduction", (cell[x], cell["score"]), xytext=(-4, 5), textcoords="offset points",
        ha="right", fontsize=_SMALL,
    )  # fmt: skip


def score_against(x: str, label: str) -> Callable[[Subject, float], Figure | None]:
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
        figure, panels = _grid(len(settings), width, _height(cells))
        names = []
        for axes, setting in zip(panels, settings, strict=True):
            mine = cells[cells["setting"] == setting]
            axes.set_title(setting)
            axes.set_xlabel(label)
            axes.set_ylabel(str(mine["metric"].iloc[0]))
            _published(axes, subject.published, mine)
            names.append(_curves(axes, mine, x, subject.looks))
            _chance(axes, mine["chance"].mean())
        return _write(figure, names)

    return draw


def _height(cells: pd.DataFrame) -> float:
    most = cells.groupby("setting")["label"].nunique().max() if "setting" in cells else 12
    return max(2.1, 0.65 + (_LINE + 0.012) * float(most))


def _chance(axes: Axes, chance: float) -> None:
    if np.isnan(chance):
        return
    low, high = axes.get_ylim()
    if low <= chance <= high:
        axes.axhline(chance, color=MUTED, lw=0.6, ls=(0, (4, 2)), zorder=1)
    axes.text(
        0.99, 0.02, f"chance {chance:.3g}", transform=axes.transAxes, ha="right", va="bottom",
        fontsize=_SMALL, color=MUTED,
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
        splits = " and ".join(dict.fromkeys(one.split for one in group))
        axes.annotate(
            f"{model}, {dataset} {splits} (published)", (0.97, max(scores)),
            xycoords=axes.get_yaxis_transform(), xytext=(-5, 0), textcoords="offset points",
            ha="right", va="center", fontsize=_SMALL,
        )  # fmt: skip


def relative(subject: Subject, width: float) -> Figure | None:
    """Draw the share of the score without reduction, over all settings, a panel for each family."""
    cells = subject.over_tasks
    if cells.empty or cells["gflops_total"].isna().all():
        return None
    families = [name for name in dict.fromkeys(_FAMILY_ORDER) if (cells["family"] == name).any()]
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
    figure.supxlabel("GFLOPs, inference (one multiply-add = 1)", fontsize=7)
    return figure


_FAMILY_ORDER = (
    "baseline", "position", "attention", "similarity", "clustering", "diversity", "text", "other",
)  # fmt: skip


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
        name = _shown(label)
        axes.plot(
            group["gflops_total"], group["share"], marker=look.marker, color=look.colour, ms=3.4,
            mec="none", lw=0.8, label=name, zorder=3,
        )  # fmt: skip
        _bars(axes, group, "gflops_total", look.colour, "share_")
    axes.legend(
        loc="lower right", fontsize=5.2, frameon=False, handlelength=1.1, labelspacing=0.2,
        borderaxespad=0.1,
    )  # fmt: skip


def tokens_by_block(subject: Subject, width: float) -> Figure | None:
    """Draw the patch tokens that enter each block at the reference keep ratio."""
    series: dict[tuple[float, ...], set[str]] = {}
    table = subject.runs.table
    for record, label, keep in zip(
        subject.runs.records, table["label"], table["keep"], strict=True
    ):
        wanted = keep == subject.reference or label == "Identity"
        if wanted and record.tokens is not None and record.evaluations:
            series.setdefault(record.tokens.entering, set()).add(str(label))
    if not series:
        return None
    looked = subject.looks
    figure = Figure(figsize=(width, 2.2), layout="constrained")
    axes = figure.subplots()
    points = []
    for entering, labels in sorted(series.items()):
        names = sorted(labels)
        colours = {looked[name].colour for name in names if name in looked}
        colour = colours.pop() if len(colours) == 1 else INK
        places = np.arange(len(entering))
        axes.step(places, entering, where="mid", color=colour, lw=1.1)
        said = f"{len(names)} methods" if len(names) > 2 else ", ".join(map(_shown, names))
        points.append((float(places[-1]), float(entering[-1]), said, colour))
    blocks = max(map(len, series)) - 1
    axes.set_xticks(range(blocks + 1), [*map(str, range(blocks)), "out"])
    axes.set_xlabel("block that they enter")
    axes.set_ylabel("patch tokens")
    axes.set_ylim(bottom=0)
    axes.set_xlim(-0.5, blocks + 0.5)
    axes.grid(axis="x", visible=False)
    return _write(figure, [_Names(axes, points, left=False)])


def cost_breakdown(subject: Subject, width: float) -> Figure | None:
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
    names = [_shown(label) for label in means.index]
    start = np.zeros(len(means))
    for part, colour in PART_COLOURS.items():
        values = means[f"gflops_{part}"].to_numpy()
        axes.barh(names, values, left=start, color=colour, height=0.72, label=part)
        start += values
    for place, total in enumerate(start):
        axes.text(total, place, f" {total:.3g}", va="center", fontsize=_SMALL)
    axes.set_xlabel("GFLOPs of a forward pass (one multiply-add = 1)")
    axes.margins(x=0.1, y=0.01)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    figure.legend(
        loc="outside upper center", ncols=6, fontsize=_SMALL, frameon=False, handlelength=0.8,
        columnspacing=0.9, handletextpad=0.4,
    )  # fmt: skip
    return figure


def curves(subject: Subject, width: float) -> Figure | None:
    """Draw the validation score over the training steps, mean over the seeds."""
    logs = subject.logs
    if logs.empty:
        return None
    columns = ["folder", "label", "keep", "task", "datasets", "main_metric"]
    logs = logs.merge(subject.runs.table[columns], on="folder")
    logs = logs[(logs["keep"] == subject.reference) | (logs["label"] == "Identity")]
    tasks = list(dict.fromkeys(zip(logs["task"], logs["datasets"], strict=True)))
    if not tasks:
        return None
    most = int(logs.groupby("task")["label"].nunique().max())
    figure, panels = _grid(len(tasks), width, max(2.0, 0.65 + _LINE * most))
    looked, names = subject.looks, []
    for axes, (task, datasets) in zip(panels, tasks, strict=True):
        mine = logs[(logs["task"] == task) & (logs["datasets"] == datasets)]
        points = []
        for label, group in mine.groupby("label"):
            line = group.groupby("step")["score"].mean()
            colour = looked[str(label)].colour if str(label) in looked else MUTED
            axes.plot(line.index, line, color=colour, lw=0.8, alpha=0.85)
            name = _shown(label)
            points.append((float(line.index[-1]), float(line.iloc[-1]), name, colour))
        axes.set_title(f"{task}, {datasets}")
        axes.set_xlabel("optimiser steps")
        axes.set_ylabel(f"{mine['main_metric'].iloc[0]}, validation")
        axes.margins(x=0.02)
        names.append(_Names(axes, points, left=False))
    return _write(figure, names)


def coverage(subject: Subject, width: float) -> Figure | None:
    """Draw how many seeds each cell has; what failed or was not run shows as such."""
    cells, missing = subject.study.cells, subject.study.missing
    reduced = cells[~cells["label"].isin(["Identity", "Smaller image"])]
    gaps = missing[~missing["why"].str.startswith("without")]
    keeps = sorted({*reduced["keep"], *gaps["keep"]})
    labels = sorted({*reduced["label"], *gaps["label"]}, reverse=True)
    settings = subject.study.settings
    if not labels or len(keeps) > 12:
        return None
    figure, panels = _grid(len(settings), width, 0.55 + 0.13 * len(labels))
    for axes, setting in zip(panels, settings, strict=True):
        mine = reduced[reduced["setting"] == setting]
        named = zip(mine["label"], mine["keep"], strict=True)
        seeds = dict(zip(named, mine["seeds"].astype(int), strict=True))
        most = max(seeds.values(), default=1)
        gone = gaps[gaps["setting"] == setting]
        named = zip(gone["label"], gone["keep"], strict=True)
        why = dict(zip(named, gone["why"], strict=True))
        for y, label in enumerate(labels):
            for x, keep in enumerate(keeps):
                _cell(axes, x, y, seeds.get((label, keep)), most, why.get((label, keep)))
        axes.set_title(setting)
        axes.set_xticks(range(len(keeps)), [f"{keep:g}" for keep in keeps])
        axes.set_yticks(range(len(labels)), [_shown(label) for label in labels])
        axes.set_xlabel("keep ratio")
        axes.set_xlim(-0.5, len(keeps) - 0.5)
        axes.set_ylim(-0.5, len(labels) - 0.5)
        axes.grid(visible=False)
        axes.tick_params(length=0)
    return figure


def _cell(axes: Axes, x: int, y: int, seeds: int | None, most: int, why: str | None) -> None:
    box = Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, facecolor="none", edgecolor="none")
    if seeds is not None:
        full, text = seeds == most, str(seeds)
        box.set_facecolor(("#0a9471", 0.28) if full else ("#e3a008", 0.5))
    else:
        failed = why not in (None, "not run")
        text = (why or "") if failed else ""
        look = {"facecolor": ("#d4500b", 0.3)} if failed else {"hatch": "//////"}
        box.set(edgecolor="#d4500b" if failed else MUTED, linewidth=0.5, **look)
    axes.add_patch(box)
    axes.text(x, y, text, ha="center", va="center", fontsize=4.6 if len(text) > 2 else _SMALL)


_POINTS = (
    "Points are means over the seeds, bars their 95% interval (Student; none with one seed). The "
    "broad grey line joins the points that none beats at its cost. A line that breaks off lacks a "
    "keep ratio that others have."
)

PLOTS: tuple[Plot, ...] = (
    Plot(
        "score_gflops",
        "Score against inference cost",
        "GFLOPs of one forward pass, one multiply-add = 1, the method's own work included. "
        + _POINTS,
        score_against("gflops_total", "GFLOPs, inference (one multiply-add = 1)"),
    ),
    Plot(
        "relative_score",
        "Share of the score without reduction, over all settings",
        "Each family in its colour before all others in grey. Mean over the settings of the score "
        "as a share of the mean score without reduction; bars are 95% intervals by a stratified "
        "bootstrap over the seeds. Only methods that every setting has.",
        relative,
    ),
    Plot(
        "score_training",
        "Score against training cost",
        f"GFLOPs of one training step for an example, forward and backward. {_POINTS}",
        score_against("gflops_training_step", "GFLOPs, training step (one multiply-add = 1)"),
    ),
    Plot(
        "score_latency",
        "Score against latency",
        f"Median time of a batch, as measured on the machine named below. {_POINTS}",
        score_against("latency_ms", "latency of a batch, ms"),
    ),
    Plot(
        "score_keep_ratio",
        "Score against keep ratio",
        f"Measured mean share of the patch tokens that enter a block. {_POINTS}",
        score_against("keep_ratio", "measured keep ratio"),
    ),
    Plot(
        "tokens_by_block",
        "Token counts by block",
        "Patch tokens that enter each block of the image encoder, CLS left out, and that leave it.",
        tokens_by_block,
    ),
    Plot(
        "cost_breakdown",
        "Where the cost goes",
        "Vision without the two next parts; probe: passes that only score tokens; reducer: the "
        "method's own work.",
        cost_breakdown,
    ),
    Plot(
        "training_curves",
        "Training curves",
        "Validation score during training, mean over the seeds.",
        curves,
    ),
    Plot(
        "coverage",
        "What was run",
        "Seeds of each cell; yellow has fewer than others, red failed or was interrupted, hatched "
        "was not run.",
        coverage,
    ),
)
"""All figures, in the order of the report."""
