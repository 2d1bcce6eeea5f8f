"""Panels side by side, and names beside the data instead of a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from analysis.style import INK, ONE_COLUMN, SMALL, spread

_LONGEST = 26
LINE = 0.085
"""Height of a line of small type, in inches."""


def grid(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return panels: one a line in one column, two a line in two."""
    across = 1 if width <= ONE_COLUMN + 0.1 or count == 1 else 2
    down = -(-count // across)
    figure = Figure(figsize=(width, height * down), layout="constrained")
    panels = list(np.ravel(figure.subplots(down, across, squeeze=False)))
    for empty in panels[count:]:
        empty.set_axis_off()
    return figure, panels[:count]


@dataclass(frozen=True)
class Names:
    """Names that go beside the data of one panel instead of a legend.

    Attributes:
        axes: The panel.
        points: x, y, text and colour of each name.
        left: Whether they stand left of the data or right of it.
    """

    axes: Axes
    points: Sequence[tuple[float, float, str, str]]
    left: bool = True


def shown(label: object) -> str:
    """Return a method's name as it stands in a figure."""
    text = "no reduction" if label == "Identity" else str(label)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def write(figure: Figure, columns: Sequence[Names]) -> Figure:
    """Write the names into columns without overlaps, with a thin line to each point.

    Call it last: the layout is settled here, once, and kept.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for names in columns:
        _column(names, figure.dpi)
    return figure


def _column(names: Names, dpi: float) -> None:
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
    gap = LINE * (top - bottom) / high
    wanted = [y for _, y, _, _ in names.points]
    places = spread(wanted, gap, bottom + gap / 2, top - gap / 2)
    leaders = []
    for (x, y, text, _), place in zip(names.points, places, strict=True):
        leaders.append([(edge, place), (x, y)])
        axes.text(
            edge, place, text, color=INK, fontsize=SMALL, va="center_baseline",
            ha="right" if left else "left",
        )  # fmt: skip
    colours = [colour for _, _, _, colour in names.points]
    axes.add_collection(
        LineCollection(leaders, colors=colours, linewidths=0.35, alpha=0.55, zorder=1),
        autolim=False,
    )
