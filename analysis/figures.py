"""The figures of a study, in one column (3.3 in) and two columns (6.9 in) of a paper."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from analysis.load import BASELINES, NO_REDUCTION, PARTS, SMALLER, Setting, Study
from analysis.statistics import aggregate, over_tasks, pareto
from analysis.tables import method_name, reference_ratio, slug

ONE_COLUMN, TWO_COLUMN = 3.3, 6.9
"""Widths of a figure in a paper, in inches."""

INK, MUTED = "#1f2328", "#8b929a"
"""Text and axes, and what is there for orientation; the page swaps the ink for its own."""

_SMALL, _LINE = 5.8, 0.088
"""Size of the smallest type in points, and the height of a line of it in inches."""

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
"""One colour a family, chosen to stay apart in the three common kinds of colour blindness and to
hold on white and on black. Markers tell the methods of one family apart, in print as well."""

_PART_COLOURS = ("#0f7ac4", "#d4500b", "#e3a008", "#8b929a", "#0a9471", "#b4579a")
_MARKERS = "oXs^DPv*<hp>d8H"

GFLOPS = "GFLOPs (one multiply-add = 1)"


@dataclass(frozen=True)
class Style:
    """How one method is drawn: the colour of its family, a marker of its own within it."""

    colour: str
    marker: str


@dataclass(frozen=True)
class Plot:
    """One figure.

    Attributes:
        name: Of its files.
        group: The group of settings that it shows.
        title: Heading.
        caption: What is drawn, in words.
        draw: Draws it at a width in inches.
        widths: In which it is made, in inches.
    """

    name: str
    group: str
    title: str
    caption: str
    draw: Callable[[float], Figure]
    widths: tuple[float, ...] = (ONE_COLUMN, TWO_COLUMN)


@contextmanager
def style() -> Iterator[None]:
    """Draw with the project's settings: small type, embedded fonts, no frame, no background."""
    settings: Any = {
        "figure.dpi": 150, "savefig.dpi": 300, "savefig.transparent": True,
        "pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "analysis",
        "text.parse_math": False, "font.family": "DejaVu Sans", "font.size": 7,
        "axes.titlesize": 7.5, "axes.labelsize": 7, "xtick.labelsize": 6.5, "ytick.labelsize": 6.5,
        "axes.titleweight": "normal", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
        "axes.grid": True, "axes.axisbelow": True, "grid.linewidth": 0.4, "grid.alpha": 0.35,
        "grid.color": MUTED, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
        "xtick.major.size": 2.5, "ytick.major.size": 2.5, "lines.linewidth": 0.9,
        "lines.markersize": 3.4, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
        "xtick.color": INK, "ytick.color": INK, "axes.titlecolor": INK,
    }  # fmt: skip
    with mpl.rc_context(settings):
        yield


def styles(scores: pd.DataFrame) -> dict[str, Style]:
    """Give every method its family's colour, and a marker of its own within the family."""
    families = dict(zip(scores["label"], scores["family"], strict=True))
    taken: dict[str, int] = {}
    result = {}
    for label in sorted(families):
        family = families[label] if families[label] in FAMILY_COLOURS else "other"
        number = taken.get(family, 0)
        taken[family] = number + 1
        result[label] = Style(FAMILY_COLOURS[family], _MARKERS[number % len(_MARKERS)])
    return result


def spread(positions: Iterable[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart so that neighbours are ``gap`` away, keeping their order.

    They stay within [low, high] where there is room for all of them; where there is not, the gap
    shrinks to what fits. Overlapping runs move as one block about their mean.

    Args:
        positions: Where the labels want to be, in any order.
        gap: Wanted distance of neighbours.
        low: Lower end.
        high: Upper end.
    """
    wanted = list(positions)
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, int]] = []
    for index in order:
        centre, size = min(max(wanted[index], low), high), 1
        while blocks and centre - gap * size / 2 < blocks[-1][0] + gap * blocks[-1][1] / 2:
            before, count = blocks.pop()
            centre = (before * count + centre * size) / (count + size)
            size += count
        half = gap * (size - 1) / 2
        blocks.append((min(max(centre, low + half), high - half), size))
    placed = [
        centre + gap * (place - (size - 1) / 2) for centre, size in blocks for place in range(size)
    ]
    result = [0.0] * len(wanted)
    for index, place in zip(order, placed, strict=True):
        result[index] = place
    return result


Label = tuple[float, float, str, str]
"""x, y, text and colour of a name beside the data."""


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return panels: one a line in one column, two a line in two."""
    across = 1 if width <= ONE_COLUMN or count == 1 else 2
    down = -(-count // across)
    figure = Figure(figsize=(width, height * down), layout="constrained")
    panels = list(np.ravel(figure.subplots(down, across, squeeze=False)))
    for empty in panels[count:]:
        empty.set_axis_off()
    return figure, panels[:count]


def _finish(
    figure: Figure, foot: str, labels: Sequence[tuple[Axes, Sequence[Label], bool]] = ()
) -> Figure:
    """Write the foot, settle the layout, then write the names beside the data.

    Args:
        figure: The figure.
        foot: What keep ratio, data and seeds it shows.
        labels: Of each panel its names, and whether they stand left of the data.
    """
    width = figure.get_figwidth()
    text = "\n".join(textwrap.wrap(foot, int(width * 20.5)))
    figure.supxlabel(text, fontsize=_SMALL, color=MUTED, x=0.01, ha="left", linespacing=1.25)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, points, left in labels:
        if points:
            _write_labels(axes, points, left, figure.dpi)
    return figure


def _write_labels(axes: Axes, points: Sequence[Label], left: bool, dpi: float) -> None:
    """Write names into a column beside the data, without overlaps, a thin line to each point."""
    box = axes.get_window_extent()
    wide, high = box.width / dpi, box.height / dpi
    room = 0.12 + 0.046 * max(len(text) for _, _, text, _ in points)
    start, end = axes.get_xlim()
    extra = (end - start) * room / max(0.3, wide - room)
    axes.set_xticks([tick for tick in axes.get_xticks() if start <= tick <= end])
    axes.set_xlim((start - extra, end) if left else (start, end + extra))
    edge = start - 0.06 * extra if left else end + 0.06 * extra
    bottom, top = axes.get_ylim()
    gap = _LINE * (top - bottom) / high
    places = spread((y for _, y, _, _ in points), gap, bottom + gap / 2, top - gap / 2)
    leaders = []
    for (x, y, text, _), place in zip(points, places, strict=True):
        leaders.append([(edge, place), (x, y)])
        axes.text(
            edge, place, text, color=INK, fontsize=_SMALL, va="center_baseline",
            ha="right" if left else "left",
        )  # fmt: skip
    colours = [colour for _, _, _, colour in points]
    lines = LineCollection(leaders, colors=colours, linewidths=0.35, alpha=0.55, zorder=1)
    axes.add_collection(lines, autolim=False)


def chosen(cells: pd.DataFrame, x: str, highlight: Sequence[str]) -> set[str]:
    """Return the methods that a figure of one column names.

    They are the baselines, the methods on the Pareto front, and those that the user asks for.
    """
    front = cells[pareto(cells[x], cells["score"])]
    return {*BASELINES, *front["label"], *highlight} & set(cells["label"])


def _curves(
    axes: Axes, cells: pd.DataFrame, x: str, named: set[str], looks: dict[str, Style]
) -> list[Label]:
    """Draw every method's points with intervals, joined in the order of their keep ratios."""
    points: list[Label] = []
    for label, group in cells.groupby("label"):
        group = group.sort_values("keep")
        look, front = looks[str(label)], label in named
        if label == NO_REDUCTION:
            _no_reduction(axes, group.iloc[0], x)
            continue
        axes.plot(
            group[x], group["score"], marker=look.marker, mec="none", ms=3.4 if front else 2.2,
            color=look.colour if front else MUTED, lw=0.8 if front else 0.5,
            alpha=0.95 if front else 0.45, zorder=4 if front else 2,
            ls=":" if group["acts"].iloc[0] == "fusion" else "-",
        )  # fmt: skip
        if front:
            _bars(axes, group, x, look.colour)
            first = group.sort_values(x).iloc[0]
            name = method_name(str(label), str(first["acts"]))
            points.append((float(first[x]), float(first["score"]), name, look.colour))
    best = cells[pareto(cells[x], cells["score"])].sort_values(x)
    if x != "keep_ratio" and len(best) > 1:
        axes.step(best[x], best["score"], where="post", color=INK, lw=2.2, alpha=0.2, zorder=1)
    axes.margins(x=0.04, y=0.08)
    return points


def _bars(axes: Axes, group: pd.DataFrame, x: str, colour: str) -> None:
    if group["score_low"].isna().all():
        return
    ends = group[[x, "score_low", "score_high"]].dropna().to_numpy(dtype=float)
    if len(ends):
        low = np.maximum(ends[:, 1], 0)
        high = ends[:, 2] if group["metric"].iloc[0] == "share" else np.minimum(ends[:, 2], 1)
        axes.vlines(ends[:, 0], low, high, color=colour, lw=0.6, alpha=0.55, zorder=3)


def _no_reduction(axes: Axes, cell: pd.Series, x: str) -> None:
    axes.axhline(cell["score"], color=MUTED, lw=0.6, ls=(0, (1, 2)), zorder=1)
    axes.plot(cell[x], cell["score"], "o", ms=4.6, mfc="none", mec=INK, mew=1.0, zorder=5)
    _bars(axes, cell.to_frame().T, x, INK)
    axes.annotate(
        "no\nreduction", (1, cell["score"]), xycoords=axes.get_yaxis_transform(), xytext=(2, 0),
        textcoords="offset points", va="center", fontsize=_SMALL, linespacing=0.95,
    )  # fmt: skip


def _chance(axes: Axes, chance: float | None) -> None:
    if chance is None:
        return
    low, high = axes.get_ylim()
    if low <= chance <= high:
        axes.axhline(chance, color=MUTED, lw=0.6, ls=(0, (4, 2)), zorder=1)
    axes.text(
        0.99, 0.02, f"guessing {chance:.3g}", transform=axes.transAxes, ha="right", va="bottom",
        fontsize=_SMALL, color=MUTED,
    )  # fmt: skip


def _scores_against(
    parts: Sequence[tuple[str, str, pd.DataFrame, float | None]], x: str, words: str, foot: str,
    looks: dict[str, Style], highlight: Sequence[str], width: float,
) -> Figure:  # fmt: skip
    """Draw scores against a cost: a panel a setting.

    Args:
        parts: Of each panel title, name of the score, cells and the score of guessing.
        x: Column of the cost.
        words: Its name.
        foot: What the figure shows.
        looks: Of the methods.
        highlight: Methods to name beside the baselines and the front.
        width: In inches.
    """
    narrow = width <= ONE_COLUMN
    most = max(cells["label"].nunique() for _, _, cells, _ in parts)
    few = narrow or most > 26
    named = [
        chosen(cells, x, highlight) if few else set(cells["label"]) for _, _, cells, _ in parts
    ]
    lines = max(map(len, named))
    figure, panels = _panels(len(parts), width, max(2.3, 0.75 + _LINE * 1.12 * lines))
    labels = []
    for axes, (title, metric, cells, chance), names in zip(panels, parts, named, strict=True):
        axes.set_title(title)
        axes.set_xlabel(words)
        axes.locator_params(axis="x", nbins=4 if narrow else 5)
        axes.set_ylabel(metric)
        labels.append((axes, _curves(axes, cells, x, names, looks), True))
        _chance(axes, chance)
    grey = most - lines if few else 0
    more = f" Grey: {grey} more methods." if grey > 0 else ""
    fused = any((cells["acts"] == "fusion").any() for _, _, cells, _ in parts)
    more += " Dotted: acts in the fusion." if fused else ""
    return _finish(figure, foot + more, labels)


def _by_width(
    narrow: Callable[[float], Figure], wide: Callable[[float], Figure], width: float
) -> Figure:
    """Draw one thing in one column, and another in two."""
    return (narrow if width <= ONE_COLUMN else wide)(width)


def _breakdown(cells: pd.DataFrame, foot: str, width: float) -> Figure:
    """Draw the multiply-adds of each method by part of the model."""
    cells = cells.dropna(subset=["gflops_total"]).sort_values("gflops_total")
    figure = Figure(figsize=(width, 1.0 + 0.135 * len(cells)), layout="constrained")
    axes = figure.subplots()
    names = [
        f"{SMALLER} ({keep:.0%})" if label == SMALLER else method_name(label, acts)
        for label, acts, keep in zip(cells["label"], cells["acts"], cells["keep"], strict=True)
    ]
    start = np.zeros(len(cells))
    for part, colour in zip(PARTS, _PART_COLOURS, strict=True):
        values = cells[f"gflops_{part}"].astype(float).to_numpy()
        axes.barh(names, values, left=start, color=colour, height=0.72, label=part)
        start += values
    for place, total in enumerate(start):
        axes.text(total, place, f" {total:.3g}", va="center", fontsize=_SMALL)
    axes.set_xlabel(GFLOPS)
    axes.margins(x=0.12, y=0.01)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    figure.legend(
        loc="outside upper center", ncols=6, fontsize=_SMALL, frameon=False, handlelength=0.8,
        columnspacing=0.8, handletextpad=0.4,
    )  # fmt: skip
    return _finish(figure, foot)


def _tokens(rows: pd.DataFrame, foot: str, looks: dict[str, Style], width: float) -> Figure:
    """Draw the patch tokens that enter each block; methods with the same counts share a line."""
    series: dict[tuple[float, ...], list[str]] = {}
    for label, group in rows.groupby("label"):
        counts = group["tokens_per_block"].iloc[0]
        series.setdefault(tuple(round(float(each), 1) for each in counts), []).append(str(label))
    figure = Figure(figsize=(width, 2.3), layout="constrained")
    axes = figure.subplots()
    points = []
    for counts, labels in sorted(series.items()):
        colours = {looks[label].colour for label in labels}
        colour = colours.pop() if len(colours) == 1 else INK
        axes.step(range(len(counts)), counts, where="mid", color=colour, lw=1.1)
        said = ", ".join(labels) if len(labels) < 3 else f"{len(labels)} methods"
        points.append((len(counts) - 1.0, counts[-1], said, colour))
    blocks = max(map(len, series)) - 1
    axes.set_xticks(range(blocks + 1), [*map(str, range(blocks)), "out"])
    axes.set_xlabel("block of the image encoder that they enter")
    axes.set_ylabel("patch tokens")
    axes.set_ylim(bottom=0)
    axes.set_xlim(-0.5, blocks + 0.5)
    axes.grid(axis="x", visible=False)
    return _finish(figure, foot, [(axes, points, False)])


def _training(curves: pd.DataFrame, foot: str, looks: dict[str, Style], width: float) -> Figure:
    """Draw the validation score over the training steps, mean over the seeds."""
    figure = Figure(figsize=(width, 2.4), layout="constrained")
    axes = figure.subplots()
    points = []
    for label, group in curves.groupby("label"):
        line = group.groupby("step")["score"].mean()
        colour = looks[str(label)].colour if label in looks else MUTED
        axes.plot(line.index, line, color=colour, lw=0.8, alpha=0.85)
        points.append((float(line.index[-1]), float(line.iloc[-1]), str(label), colour))
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("validation score")
    axes.margins(x=0.02)
    return _finish(figure, foot, [(axes, points, False)])


_POINTS = (
    "Each line is a method from its lowest keep ratio to its highest; points are means over the "
    "seeds, bars their 95% interval (Student, cut at 0 and 1; none with one seed). The broad grey "
    "line joins the points that none beats at their cost. The circle is no reduction."
)
_AXES = (
    ("gflops_total", GFLOPS, "accuracy against GFLOPs"),
    ("gflops_training_step", "GFLOPs of a training step", "accuracy against training cost"),
    ("latency_share", "inference time, share of no reduction", "accuracy against time"),
    ("keep_ratio", "measured keep ratio in the image encoder", "accuracy against keep ratio"),
)


def foot_line(settings: Sequence[Setting], keeps: Sequence[float]) -> str:
    """Return what a figure shows: keep ratios, data, seeds."""
    ratios = ", ".join(f"{keep:g}" for keep in keeps)
    said = f"Keep ratio{'s' * (len(keeps) > 1)} {ratios}. " if keeps else ""
    data = ", ".join(dict.fromkeys(f"{each.dataset} {each.split}" for each in settings))
    seeds = max(each.seeds for each in settings)
    return f"{said}Data: {data}. {seeds} seed{'s' * (seeds > 1)}."


def plots(
    study: Study, highlight: Sequence[str] = (), curves: pd.DataFrame | None = None
) -> list[Plot]:
    """Return the figures of a study.

    Args:
        study: What is drawn.
        highlight: Methods that figures of one column name beside the baselines and the front.
        curves: Validation scores of training runs, from `analysis.load.training_curves`.
    """
    made: list[Plot] = []
    looks = styles(study.scores)
    cells = aggregate(study.scores)
    for group, settings in study.groups.items():
        rows = study.scores[study.scores["group"] == group]
        mine = cells[cells["group"] == group]
        acting = mine[mine["acts"].isin(("encoder", "fusion"))]
        foot = foot_line(settings, sorted(acting["keep"].unique()))
        add = partial(_against_cost, made, group, settings, rows, mine, foot, looks, highlight)
        for x, words, title in _AXES:
            add(x, words, title)
        first = mine[mine["setting"] == settings[0].name]
        ratio = reference_ratio(first)
        at = first[(first["keep"] == ratio) | first["label"].isin((NO_REDUCTION, SMALLER))]
        said = f"{settings[0].task}. {foot_line(settings[:1], [ratio])}"
        if at["gflops_total"].notna().any():
            made.append(
                Plot(
                    f"cost-{slug(group)}", group, f"Where the cost goes: {group}",
                    "Vision without the two next parts; probe: passes that only score tokens; "
                    "reducer: the method's own work.",
                    partial(_breakdown, at, said),
                )
            )  # fmt: skip
        at_ratio = rows[(rows["keep"] == ratio) | (rows["label"] == NO_REDUCTION)]
        at_ratio = at_ratio[(at_ratio["setting"] == settings[0].name)]
        at_ratio = at_ratio[(at_ratio["acts"] != "fusion") & (at_ratio["tokens_per_block"] != ())]
        if len(at_ratio):
            made.append(
                Plot(
                    f"tokens-{slug(group)}", group, f"Token counts by block: {group}",
                    "Patch tokens that enter each block of the image encoder, CLS left out, and "
                    "that leave it. Methods that act in the fusion are not drawn.",
                    partial(_tokens, at_ratio, said, looks),
                )
            )  # fmt: skip
    groups: list[Any] = [] if curves is None else list(curves.groupby("protocol", sort=False))
    for number, (_, lines) in enumerate(groups, 1):
        reduced = lines[lines["label"] != NO_REDUCTION]
        keep = reduced["keep"].mode().median()
        shown = lines.loc[(lines["keep"] == keep) | (lines["label"] == NO_REDUCTION)]
        first, seeds = shown.iloc[0], shown["seed"].nunique()
        said = f"Keep ratio {keep:g}. Data: {first['dataset']}. {seeds} seed{'s' * (seeds > 1)}."
        made.append(
            Plot(
                f"training-{number}", "", f"Training curves: {first['task']}",
                "Validation score during training, mean over the seeds.",
                partial(_training, shown, said, looks),
            )
        )  # fmt: skip
    return made


def _against_cost(
    made: list[Plot], group: str, settings: Sequence[Setting], rows: pd.DataFrame,
    cells: pd.DataFrame, foot: str, looks: dict[str, Style], highlight: Sequence[str],
    x: str, words: str, title: str,
) -> None:  # fmt: skip
    """Add the figures of scores against one cost: all tasks, and each task by itself."""
    known = cells.dropna(subset=[x])
    if x == "keep_ratio":  # neither the fusion's keep ratio nor another image is this quantity
        known = known[known["acts"].isin(("encoder", "never"))]
    if known["label"].nunique() < 2:
        return
    parts = []
    for setting in settings:
        mine = known[known["setting"] == setting.name]
        if len(mine):
            parts.append((setting.task, setting.metric, mine, setting.chance))
    args = (x, words, foot, looks, highlight)
    base = slug(title.removeprefix("accuracy against "))
    heading = f"{title.capitalize().replace('gflops', 'GFLOPs')}: {group}"
    name, one_column = f"{base}-{slug(group)}", parts
    if len(parts) > 1:
        shares = over_tasks(rows[rows["label"].isin(set(known["label"]))]).dropna(subset=[x])
        mean = f"mean over {len(parts)} tasks"
        if shares["label"].nunique() > 1:
            one_column = [(mean, "share of no reduction", shares, None)]
    if one_column is not parts and x == "gflops_total":
        draw = partial(_scores_against, one_column, *args)
        share = f"Share of the score without reduction, {mean}. {_POINTS}"
        made.append(Plot(f"share-{slug(group)}", group, heading, share, draw))
        draw = partial(_scores_against, parts, *args)
        heading = f"{heading}, by task"
        made.append(Plot(name, group, heading, _POINTS, draw, (TWO_COLUMN,)))
        for part, setting in zip(parts, settings, strict=True):
            draw = partial(_scores_against, [part], *args)
            about = f"{setting.name}: {title}"
            path = f"{base}-{slug(setting.name)}"
            made.append(Plot(path, "", about, _POINTS, draw, (ONE_COLUMN,)))
        return

    narrow, wide = (partial(_scores_against, each, *args) for each in (one_column, parts))
    draw = partial(_by_width, narrow, wide)
    mean = " In one column: the share of no reduction, mean over the tasks."
    caption = _POINTS + (mean if one_column is not parts else "")
    made.append(Plot(name, group, heading, caption, draw))
