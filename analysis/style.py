"""How every figure looks: sizes, fonts, colours of the families, markers of the methods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl

ONE_COLUMN, TWO_COLUMN = 3.3, 6.9
"""Widths of a figure in a paper, in inches."""

SMALL = 5.8
"""Size of the smallest type, in points."""

INK = "#1f2328"
"""Text, axes and lines that belong to no family. The report swaps it for the page's own colour."""

MUTED = "#8b929a"
"""What is there for orientation only; readable on white and on black."""

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

PART_COLOURS: dict[str, str] = {
    "vision": "#0f7ac4",
    "probe": "#d4500b",
    "reducer": "#e3a008",
    "text": "#8b929a",
    "fusion": "#0a9471",
    "head": "#b4579a",
}
"""Colours of the parts of the cost."""

_MARKERS = "oXs^DPv*<hp>d8H"


@dataclass(frozen=True)
class Look:
    """How one method is drawn.

    Attributes:
        colour: Of its family.
        marker: Its own within the family.
    """

    colour: str
    marker: str


def looks(families: Mapping[str, str]) -> dict[str, Look]:
    """Give every method its family's colour and a marker of its own within the family.

    Args:
        families: Family by label.
    """
    taken: dict[str, int] = {}
    result = {}
    for label in sorted(families):
        family = families[label] if families[label] in FAMILY_COLOURS else "other"
        number = taken.get(family, 0)
        taken[family] = number + 1
        result[label] = Look(FAMILY_COLOURS[family], _MARKERS[number % len(_MARKERS)])
    return result


@contextmanager
def figures() -> Iterator[None]:
    """Draw with the project's settings: small type, embedded fonts, no frame, no background.

    One weight of one font: a second one would take a PDF file half as long again to write.
    """
    settings: Any = {
        "figure.dpi": 150, "savefig.dpi": 300, "savefig.transparent": True,
        "pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "analysis",
        "text.parse_math": False, "font.family": "DejaVu Sans", "font.size": 7,
        "axes.titlesize": 8, "axes.labelsize": 7, "xtick.labelsize": 6.5, "ytick.labelsize": 6.5,
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
    if not wanted:
        return []
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
