"""The figures of a study."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from analysis.load import BASELINES, NO_REDUCTION, PARTS, Setting, Study
from analysis.statistics import aggregate, over_tasks, pareto
from analysis.tables import Section, at_reference, method_names, number, slug

ONE_COLUMN, TWO_COLUMN = 3.3, 6.9
"""Widths of a figure in a paper, in inches."""

INK, MUTED = "#1f2328", "#8b929a"
"""Colours of text and of guide lines. The page replaces the ink by its own text colour."""

_SMALL, _LINE = 5.8, 0.092
"""The smallest type in points, and the height of one line of it in inches."""

FAMILY_COLOURS: dict[str, str] = {
    "baseline": "#a0a0a0",
    "position": "#775b36",
    "attention": "#1462c0",
    "similarity": "#b74b00",
    "clustering": "#1eb766",
    "diversity": "#ae4995",
    "text": "#c59b00",
    "other": "#8843f8",
}
"""One colour per family, distinct under the three common kinds of colour blindness and on white
and black. Markers distinguish the methods of one family."""

_PART_COLOURS = ("#0f7ac4", "#d4500b", "#e3a008", "#8b929a", "#0a9471", "#b4579a")
_MARKERS = "oXs^DPv*<hp>d8H"

_MANY = 26
"""A panel has room for the names of this many methods."""

GFLOPS = "GFLOPs (one multiply-add = 1)"
_AXES = {
    "gflops_total": ("GFLOPs", GFLOPS, ""),
    "latency_share": (
        "time",
        "inference time, share of no reduction",
        "Each run timed its batch alternately with the same batch without reduction.",
    ),
    "keep_ratio": (
        "keep ratio",
        "measured keep ratio in the image encoder",
        "Methods that act in the fusion have another kind of keep ratio and are not shown.",
    ),
}
"""Name, label and caption of each horizontal axis."""


@dataclass(frozen=True)
class Plot:
    """One figure."""

    name: str  # of its files
    section: Section  # of the page
    title: str
    caption: str
    draw: Callable[..., Figure]  # at a width in inches, `TWO_COLUMN` by default


@dataclass(frozen=True)
class _Panel:
    title: str
    metric: str
    cells: pd.DataFrame
    chance: float = np.nan


def style() -> AbstractContextManager[None]:
    """Draw with the project's settings, those of ``paper.mplstyle``."""
    return matplotlib.style.context(Path(__file__).with_name("paper.mplstyle"))


def styles(scores: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Give every method its family's colour and its own marker."""
    taken: Counter[str] = Counter()
    result = {}
    for label, family in sorted(set(zip(scores["label"], scores["family"], strict=True))):
        colour = FAMILY_COLOURS.get(family, FAMILY_COLOURS["other"])
        result[label] = colour, _MARKERS[taken[colour] % len(_MARKERS)]
        taken[colour] += 1
    return result


def plots(study: Study, highlight: Sequence[str] = ()) -> list[Plot]:
    """Return the figures of a study.

    Args:
        study: The scores to draw.
        highlight: Name these methods, the baselines and the Pareto front only; the rest is grey.
    """
    made: list[Plot] = []
    cells = aggregate(study.scores)
    for group, settings in study.groups.items():
        rows = study.scores[study.scores["group"] == group]
        mine = cells[cells["group"] == group]
        foot = _foot(mine.loc[mine["acts"].isin(["encoder", "fusion"]), "keep"], settings)
        draw = partial(_scores_against, looks=styles(study.scores), highlight=highlight)
        tasks = [
            _Panel(each.task, each.metric, mine[mine["setting"] == each.name], each.chance)
            for each in settings
        ]
        about, mean = "", tasks
        if len(tasks) > 1:
            over = f"mean over {len(tasks)} tasks"
            mean = [_Panel(over, "share of no reduction", over_tasks(rows))]
            about = f"Share of the score without reduction, {over}. "
        for x, (said, _, note) in _AXES.items():
            if _known(mean[0].cells, x)["label"].nunique() < 2:
                continue
            title = f"Accuracy against {said}: {study.title(group)}"
            name = f"{slug(said)}-{slug(group)}"
            section: Section = "accuracy" if x == "gflops_total" else "appendix"
            made.append(Plot(name, section, title, about + note, partial(draw, mean, x, foot)))
            if len(tasks) > 1 and section == "accuracy":
                name, title = f"gflops-by-task-{slug(group)}", f"{title}, by task"
                made.append(Plot(name, section, title, "", partial(draw, tasks, x, foot)))
        ratio, at = at_reference(tasks[0].cells)
        at = at.dropna(subset=["gflops_total"]).sort_values("gflops_total")
        if at["label"].nunique() > 1:
            title = f"Where the cost goes: {settings[0].name}"
            said = f"{_foot(pd.Series([ratio]), settings[:1])} Task: {settings[0].task}."
            draw_cost = partial(_breakdown, at, said)
            made.append(Plot(f"cost-{slug(group)}", "cost", title, "", draw_cost))
    return made


def _foot(keeps: pd.Series, settings: Sequence[Setting]) -> str:
    ratios = [f"{keep:g}" for keep in sorted(keeps.unique())]
    said = f"Keep ratio{'s' * (len(ratios) > 1)} {', '.join(ratios)}. " if ratios else ""
    data = ", ".join(dict.fromkeys(f"{each.dataset} {each.split}" for each in settings))
    seeds = max(each.seeds for each in settings)
    return f"{said}Data: {data}. {seeds} seed{'s' * (seeds > 1)}."


def _known(cells: pd.DataFrame, x: str) -> pd.DataFrame:
    """Return the cells that have a cost. Only the encoder has the keep ratio of the encoder."""
    cells = cells.dropna(subset=[x])
    return cells[cells["acts"].isin(["encoder", "never"])] if x == "keep_ratio" else cells


def chosen(cells: pd.DataFrame, x: str, highlight: Sequence[str]) -> set[str]:
    """Return the methods to name where not all are: baselines, Pareto front and ``highlight``."""
    front = cells[pareto(cells[x], cells["score"])]
    return {*BASELINES, *front["label"], *highlight} & set(cells["label"])


def _sheet(width: float, height: float, across: int, down: int, foot: str) -> tuple[Figure, Any]:
    """Return a figure of panels with margins in inches, over a foot; ``height`` is of a panel."""
    lines = textwrap.wrap(foot, int(width * 20.5))
    bottom = 0.12 + 0.1 * len(lines)
    total = height * down + bottom
    figure = Figure(figsize=(width, total))
    figure.supxlabel("\n".join(lines), fontsize=_SMALL, color=MUTED, x=0.06 / width, y=0.04 / total,
                     ha="left", va="bottom", linespacing=1.25)  # fmt: skip
    places = figure.subplots(down, across, squeeze=False)
    wide, high = (width - 1.02 * across) / across, height - 0.62
    figure.subplots_adjust(
        left=0.5 / width, right=1 - 0.52 / width, wspace=1.02 / wide, hspace=0.62 / high,
        bottom=(bottom + 0.37) / total, top=1 - 0.25 / total,
    )  # fmt: skip
    return figure, places.ravel()


def _scores_against(
    panels: Sequence[_Panel],
    x: str,
    foot: str,
    width: float = TWO_COLUMN,
    *,
    looks: dict[str, tuple[str, str]],
    highlight: Sequence[str],
) -> Figure:
    """Draw scores against the cost ``x``, a panel per task."""
    cells = [_known(panel.cells, x) for panel in panels]
    most = max(each["label"].nunique() for each in cells)
    few = bool(highlight) or width < TWO_COLUMN or most > _MANY
    named = [chosen(each, x, highlight) if few else set(each["label"]) for each in cells]
    lines = max(map(len, named))
    if most > lines:
        foot += f" Grey: {most - lines} more methods."
    if any((each["acts"] == "fusion").any() for each in cells):
        foot += " Dotted: acts in the fusion."
    across = 1 if width <= ONE_COLUMN or len(panels) == 1 else 2
    height = max(1.95 if width <= ONE_COLUMN else 2.3, 0.75 + _LINE * 1.12 * lines)
    figure, sheet = _sheet(width, height, across, -(-len(panels) // across), foot)
    for empty in sheet[len(panels) :]:
        empty.set_axis_off()
    for axes, panel, mine, names in zip(sheet, panels, cells, named, strict=False):
        axes.set_title(panel.title)
        axes.set_xlabel(_AXES[x][1])
        axes.set_ylabel(panel.metric)
        axes.locator_params(axis="x", nbins=5)
        points = _curves(axes, mine, x, names, looks)
        low, high = axes.get_ylim()
        whole = mine.loc[mine["label"] == NO_REDUCTION, "score"]
        notes = [(float(score), "no\nreduction", INK) for score in whole[:1]]
        if not np.isnan(panel.chance):
            side = " ↓" if panel.chance < low else " ↑" if panel.chance > high else ""
            if not side:
                axes.axhline(panel.chance, color=MUTED, lw=0.6, ls=(0, (4, 2)), zorder=1)
            notes.append((panel.chance, f"guessing\n{panel.chance:.3g}{side}", MUTED))
        inches = axes.get_position().height * figure.get_figheight()
        gap = 2.2 * _LINE * (high - low) / inches
        places = spread((note[0] for note in notes), gap, low + gap / 2, high - gap / 2)
        for (_, text, colour), place in zip(notes, places, strict=True):
            axes.annotate(
                text, (1, place), xycoords=axes.get_yaxis_transform(), xytext=(2, 0), color=colour,
                textcoords="offset points", va="center", fontsize=_SMALL, linespacing=0.95,
            )  # fmt: skip
        if points:
            _write_labels(figure, axes, points)
    return figure


Label = tuple[float, float, str, str, str]
"""x, y, text, colour and marker of a name beside the data."""


def _curves(
    axes: Axes, cells: pd.DataFrame, x: str, named: set[str], looks: dict[str, tuple[str, str]]
) -> list[Label]:
    """Draw every method's points and intervals, joined in the order of their keep ratios."""
    points: list[Label] = []
    for label, group in cells.sort_values("keep").groupby("label"):
        name, (colour, marker) = str(label), looks[str(label)]
        front = name in named
        fusion = group["acts"].iloc[0] == "fusion"
        left = group.sort_values(x).iloc[0]
        cost, score = float(left[x]), float(left["score"])
        if name == NO_REDUCTION:
            colour = INK
            axes.axhline(score, color=MUTED, lw=0.6, ls=(0, (1, 2)), zorder=1)
            axes.plot(cost, score, "o", ms=4.6, mfc="none", mec=INK, mew=1.0, zorder=5)
        else:
            axes.plot(
                group[x], group["score"], marker=marker, mec="none", ms=3.4 if front else 2.2,
                color=colour if front else MUTED, lw=0.8 if front else 0.5,
                alpha=0.95 if front else 0.45, zorder=4 if front else 2, ls=":" if fusion else "-",
            )  # fmt: skip
            if front:
                points.append((cost, score, name + " (fusion)" * fusion, colour, marker))
        known = group.dropna(subset=["score_low", "score_high"])
        if front and len(known):
            highest = np.inf if known["metric"].iloc[0] == "share" else 1
            low, high = known["score_low"].clip(lower=0), known["score_high"].clip(upper=highest)
            axes.vlines(known[x], low, high, color=colour, lw=0.6, alpha=0.55, zorder=3)
    best = cells[pareto(cells[x], cells["score"])].sort_values(x)
    if x != "keep_ratio" and len(best) > 1:
        axes.step(best[x], best["score"], where="post", color=INK, lw=2.2, alpha=0.2, zorder=1)
    axes.margins(x=0.04, y=0.08)
    return points


def _breakdown(cells: pd.DataFrame, foot: str, width: float = TWO_COLUMN) -> Figure:
    """Draw the multiply-adds of each method by part of the model."""
    figure, (axes,) = _sheet(width, 0.85 + 0.135 * len(cells), 1, 1, foot)
    names = method_names(cells)
    figure.subplots_adjust(left=(0.15 + 0.048 * max(map(len, names))) / width, right=0.98)
    start = np.zeros(len(cells))
    for part, colour in zip(PARTS, _PART_COLOURS, strict=True):
        values = cells[f"gflops_{part}"].to_numpy(float)
        axes.barh(names, values, left=start, color=colour, height=0.72, label=part)
        start += values
    for place, total in enumerate(start):
        axes.text(total, place, f" {number(total)}", va="center", fontsize=_SMALL)
    axes.set_xlabel(GFLOPS)
    axes.margins(y=0.01)
    axes.set_xlim(0, start.max() * (1 + 0.6 / width))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    figure.legend(
        loc="upper center", ncols=6, fontsize=_SMALL, frameon=False, handlelength=0.8,
        columnspacing=0.8, handletextpad=0.4,
    )  # fmt: skip
    return figure


def _write_labels(figure: Figure, axes: Axes, points: Sequence[Label]) -> None:
    """Write names in a column left of the data, with a thin line to each point."""
    box = axes.get_position()
    wide, high = box.width * figure.get_figwidth(), box.height * figure.get_figheight()
    room = 0.2 + 0.046 * max(len(point[2]) for point in points)
    start, end = axes.get_xlim()
    bottom, top = axes.get_ylim()
    inch = (end - start) / max(0.3, wide - room)
    axes.set_xticks([tick for tick in axes.get_xticks() if start <= tick <= end])
    axes.set_xlim(start - inch * room, end)
    axes.set_ylim(bottom, top)
    gap = _LINE * (top - bottom) / high
    places = spread((point[1] for point in points), gap, bottom + gap / 2, top - gap / 2)
    edge = start - 0.06 * inch
    for (_, _, text, colour, marker), place in zip(points, places, strict=True):
        axes.plot(edge, place, marker, color=colour, ms=2.6, mec="none")
        axes.text(
            edge - 0.05 * inch, place, text, fontsize=_SMALL, va="center_baseline", ha="right"
        )
    lines = [[(edge, place), point[:2]] for point, place in zip(points, places, strict=True)]
    colours = [point[3] for point in points]
    leaders = LineCollection(lines, colors=colours, linewidths=0.35, alpha=0.55, zorder=1)
    axes.add_collection(leaders, autolim=False)


def spread(positions: Iterable[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart until neighbours are ``gap`` away, keeping their order.

    They stay within [low, high]; the gap shrinks if there is not enough room.
    """
    wanted = np.array(list(positions))
    order = np.argsort(wanted, kind="stable")
    steps = np.arange(len(wanted)) * min(gap, (high - low) / max(1, len(wanted) - 1))
    # Without the steps, positions are far enough apart if they do not decrease.
    flat = wanted[order] - steps
    up, down = np.maximum.accumulate(flat), np.minimum.accumulate(flat[::-1])[::-1]
    result = np.empty(len(wanted))
    result[order] = np.clip((up + down) / 2, low, high - steps[-1:]) + steps
    return list(map(float, result))
