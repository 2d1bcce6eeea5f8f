"""What was run, what failed, what was not run."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.cells import WITHOUT_RATIO
from analysis.figures.panels import grid, shown
from analysis.figures.subject import Plot, Subject
from analysis.style import MUTED, SMALL


def _draw(subject: Subject, width: float) -> Figure | None:
    """Draw how many seeds each cell has; what failed or was not run shows as such."""
    cells, missing = subject.study.cells, subject.study.missing
    reduced = cells[~cells["label"].isin(WITHOUT_RATIO)]
    gaps = missing[~missing["why"].str.startswith("without")]
    keeps = sorted({*reduced["keep"], *gaps["keep"]})
    labels = sorted({*reduced["label"], *gaps["label"]}, reverse=True)
    settings = subject.study.settings
    if not labels or len(keeps) > 12:
        return None
    figure, panels = grid(len(settings), width, 0.55 + 0.13 * len(labels))
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
        axes.set_yticks(range(len(labels)), [shown(label) for label in labels])
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
    axes.text(x, y, text, ha="center", va="center", fontsize=4.6 if len(text) > 2 else SMALL)


PLOT = Plot(
    "coverage",
    "What was run",
    "Seeds of each cell; yellow has fewer than others, red failed or was interrupted, hatched was "
    "not run.",
    _draw,
)
