"""What the figures draw, and what a figure of the report is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from matplotlib.figure import Figure

from analysis.cells import Study
from analysis.compare import over_tasks
from analysis.literature import Published
from analysis.load import Runs, training_curves
from analysis.style import Look, looks


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
