"""The figures of a study."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

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
"""Colours of text and of guide lines. The page replaces the ink by its own text colour."""

_SMALL, _LINE = 5.8, 0.088
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

_POINTS = (
    "Each line is a method, from its lowest keep ratio to its highest. Points are means over the "
    "seeds, bars their 95% interval (Student, cut at 0 and 1; none with one seed). The broad grey "
    "line joins the points that no cheaper point beats. The circle is no reduction."
)


@dataclass(frozen=True)
class Style:
    """How one method is drawn."""

    colour: str
    marker: str


@dataclass(frozen=True)
class Plot:
    """One figure.

    Attributes:
        name: Of its files.
        section: Section of the page.
        title: Heading.
        caption: What is drawn.
        draw: Draws the figure at a width in inches, `TWO_COLUMN` by default.
    """

    name: str
    section: Literal["accuracy", "cost", "appendix"]
    title: str
    caption: str
    draw: Callable[..., Figure]


@dataclass(frozen=True)
class _Panel:
    title: str
    metric: str
    cells: pd.DataFrame
    chance: float | None = None


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
    """Give every method its family's colour and its own marker."""
    families = dict(zip(scores["label"], scores["family"], strict=True))
    taken: dict[str, int] = {}
    result = {}
    for label in sorted(families):
        family = families[label] if families[label] in FAMILY_COLOURS else "other"
        number = taken.get(family, 0)
        taken[family] = number + 1
        result[label] = Style(FAMILY_COLOURS[family], _MARKERS[number % len(_MARKERS)])
    return result


def plots(study: Study, highlight: Sequence[str] = ()) -> list[Plot]:
    """Return the figures of a study.

    Args:
        study: The scores to draw.
        highlight: Name these methods, the baselines and the Pareto front only; the rest is grey.
    """
    made: list[Plot] = []
    looks = styles(study.scores)
    cells = aggregate(study.scores)
    for group, settings in study.groups.items():
        rows = study.scores[study.scores["group"] == group]
        mine = cells[cells["group"] == group]
        name, many = slug(group), len(settings) > 1
        keeps = mine.loc[mine["acts"].isin(("encoder", "fusion")), "keep"]
        foot = _foot(settings, sorted(keeps.unique()))
        draw = partial(_scores_against, looks=looks, highlight=highlight, foot=foot)

        if many:
            shares = over_tasks(rows)
            mean = f"mean over {len(settings)} tasks"
            whole = [_Panel(mean, "share of no reduction", shares)]
            about = f"Share of the score without reduction, {mean}. {_POINTS}"
        else:
            shares = mine
            whole = [_Panel(settings[0].task, settings[0].metric, mine, settings[0].chance)]
            about = _POINTS
        title = f"Accuracy against GFLOPs: {group}"
        if _drawable(shares, "gflops_total"):
            against = partial(draw, whole, "gflops_total", GFLOPS)
            made.append(Plot(f"gflops-{name}", "accuracy", title, about, against))
        if many and _drawable(mine, "gflops_total"):
            tasks = [
                _Panel(each.task, each.metric, mine[mine["setting"] == each.name], each.chance)
                for each in settings
            ]
            against = partial(draw, tasks, "gflops_total", GFLOPS)
            title = f"{title}, by task"
            made.append(Plot(f"gflops-by-task-{name}", "accuracy", title, _POINTS, against))
        for x, said, axis in (
            ("latency_share", "time", "inference time, share of no reduction"),
            ("keep_ratio", "keep ratio", "measured keep ratio in the image encoder"),
        ):
            if _drawable(shares, x):
                title = f"Accuracy against {said}: {group}"
                against = partial(draw, whole, x, axis)
                made.append(Plot(f"{slug(said)}-{name}", "appendix", title, about, against))

        first = mine[mine["setting"] == settings[0].name]
        ratio = reference_ratio(first)
        at = first[(first["keep"] == ratio) | first["label"].isin((NO_REDUCTION, SMALLER))]
        if at["gflops_total"].notna().any():
            foot = f"{settings[0].task}. {_foot(settings[:1], [ratio])}"
            title = f"Where the cost goes: {group}"
            about = (
                "Vision excludes the next two parts. Probe: extra passes that only score tokens. "
                "Reducer: the method's own work."
            )
            made.append(
                Plot(f"cost-{name}", "cost", title, about, partial(_breakdown, at, foot=foot))
            )
    return made


def _foot(settings: Sequence[Setting], keeps: Sequence[float]) -> str:
    ratios = ", ".join(f"{keep:g}" for keep in keeps)
    said = f"Keep ratio{'s' * (len(keeps) > 1)} {ratios}. " if keeps else ""
    data = ", ".join(dict.fromkeys(f"{each.dataset} {each.split}" for each in settings))
    seeds = max(each.seeds for each in settings)
    return f"{said}Data: {data}. {seeds} seed{'s' * (seeds > 1)}."


def _drawable(cells: pd.DataFrame, x: str) -> bool:
    return bool(_known(cells, x)["label"].nunique() > 1)


def _known(cells: pd.DataFrame, x: str) -> pd.DataFrame:
    """Return the cells that have a cost. Only the encoder has the keep ratio of the encoder."""
    cells = cells.dropna(subset=[x])
    return cells[cells["acts"].isin(("encoder", "never"))] if x == "keep_ratio" else cells


def chosen(cells: pd.DataFrame, x: str, highlight: Sequence[str]) -> set[str]:
    """Return the methods to name where not all are: baselines, Pareto front and ``highlight``."""
    front = cells[pareto(cells[x], cells["score"])]
    return {*BASELINES, *front["label"], *highlight} & set(cells["label"])


def _scores_against(
    panels: Sequence[_Panel],
    x: str,
    axis: str,
    width: float = TWO_COLUMN,
    *,
    looks: dict[str, Style],
    highlight: Sequence[str],
    foot: str,
) -> Figure:
    """Draw scores against the cost ``x``, a panel per task."""
    cells = [_known(panel.cells, x) for panel in panels]
    most = max(each["label"].nunique() for each in cells)
    few = bool(highlight) or width < TWO_COLUMN or most > _MANY
    named = [chosen(each, x, highlight) if few else set(each["label"]) for each in cells]
    lines = max(map(len, named))

    across = 1 if width <= ONE_COLUMN or len(panels) == 1 else 2
    down = -(-len(panels) // across)
    height = max(2.3, 0.75 + _LINE * 1.12 * lines)
    figure = Figure(figsize=(width, height * down), layout="constrained")
    places = list(np.ravel(figure.subplots(down, across, squeeze=False)))
    for empty in places[len(panels) :]:
        empty.set_axis_off()
    labels = []
    for axes, panel, mine, names in zip(places, panels, cells, named, strict=False):
        axes.set_title(panel.title)
        axes.set_xlabel(axis)
        axes.locator_params(axis="x", nbins=5)
        axes.set_ylabel(panel.metric)
        labels.append((axes, _curves(axes, mine, x, names, looks)))
        _chance(axes, panel.chance)
    if most > lines:
        foot += f" Grey: {most - lines} more methods."
    if any((each["acts"] == "fusion").any() for each in cells):
        foot += " Dotted: acts in the fusion."
    return _finish(figure, foot, labels)


Label = tuple[float, float, str, str]
"""x, y, text and colour of a name beside the data."""


def _curves(
    axes: Axes, cells: pd.DataFrame, x: str, named: set[str], looks: dict[str, Style]
) -> list[Label]:
    """Draw every method's points and intervals, joined in the order of their keep ratios."""
    points: list[Label] = []
    for label, group in cells.groupby("label"):
        group = group.sort_values("keep")
        look, front = looks[str(label)], label in named
        acts = str(group["acts"].iloc[0])
        if label == NO_REDUCTION:
            _no_reduction(axes, group, x)
            continue
        axes.plot(
            group[x], group["score"], marker=look.marker, mec="none", ms=3.4 if front else 2.2,
            color=look.colour if front else MUTED, lw=0.8 if front else 0.5,
            alpha=0.95 if front else 0.45, zorder=4 if front else 2,
            ls=":" if acts == "fusion" else "-",
        )  # fmt: skip
        if front:
            _bars(axes, group, x, look.colour)
            left = group.sort_values(x).iloc[0]
            name = method_name(str(label), acts)
            points.append((float(left[x]), float(left["score"]), name, look.colour))
    best = cells[pareto(cells[x], cells["score"])].sort_values(x)
    if x != "keep_ratio" and len(best) > 1:
        axes.step(best[x], best["score"], where="post", color=INK, lw=2.2, alpha=0.2, zorder=1)
    axes.margins(x=0.04, y=0.08)
    return points


def _bars(axes: Axes, group: pd.DataFrame, x: str, colour: str) -> None:
    known = group.dropna(subset=["score_low", "score_high"])
    highest = np.inf if group["metric"].iloc[0] == "share" else 1
    low, high = known["score_low"].clip(lower=0), known["score_high"].clip(upper=highest)
    if len(known):
        axes.vlines(known[x], low, high, color=colour, lw=0.6, alpha=0.55, zorder=3)


def _no_reduction(axes: Axes, group: pd.DataFrame, x: str) -> None:
    cell = group.iloc[0]
    axes.axhline(cell["score"], color=MUTED, lw=0.6, ls=(0, (1, 2)), zorder=1)
    axes.plot(cell[x], cell["score"], "o", ms=4.6, mfc="none", mec=INK, mew=1.0, zorder=5)
    _bars(axes, group, x, INK)
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


def _breakdown(cells: pd.DataFrame, width: float = TWO_COLUMN, *, foot: str) -> Figure:
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


def _finish(
    figure: Figure, foot: str, labels: Sequence[tuple[Axes, Sequence[Label]]] = ()
) -> Figure:
    """Write the foot, fix the layout, then write the names beside the data of each panel."""
    text = "\n".join(textwrap.wrap(foot, int(figure.get_figwidth() * 20.5)))
    figure.supxlabel(text, fontsize=_SMALL, color=MUTED, x=0.01, ha="left", linespacing=1.25)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")
    for axes, points in labels:
        if points:
            _write_labels(axes, points, figure.dpi)
    return figure


def _write_labels(axes: Axes, points: Sequence[Label], dpi: float) -> None:
    """Write names in a column left of the data, with a thin line to each point."""
    box = axes.get_window_extent()
    wide, high = box.width / dpi, box.height / dpi
    room = 0.12 + 0.046 * max(len(text) for _, _, text, _ in points)
    start, end = axes.get_xlim()
    extra = (end - start) * room / max(0.3, wide - room)
    axes.set_xticks([tick for tick in axes.get_xticks() if start <= tick <= end])
    axes.set_xlim(start - extra, end)
    edge = start - 0.06 * extra
    bottom, top = axes.get_ylim()
    gap = _LINE * (top - bottom) / high
    places = spread((y for _, y, _, _ in points), gap, bottom + gap / 2, top - gap / 2)
    for (_, _, text, _), place in zip(points, places, strict=True):
        axes.text(
            edge, place, text, color=INK, fontsize=_SMALL, va="center_baseline", ha="right"
        )  # fmt: skip
    lines = [[(edge, place), point[:2]] for point, place in zip(points, places, strict=True)]
    colours = [colour for _, _, _, colour in points]
    leaders = LineCollection(lines, colors=colours, linewidths=0.35, alpha=0.55, zorder=1)
    axes.add_collection(leaders, autolim=False)


def spread(positions: Iterable[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart until neighbours are ``gap`` away, keeping their order.

    They stay within [low, high]; the gap shrinks if there is not enough room. Positions that would
    overlap move as one block around their mean.
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
