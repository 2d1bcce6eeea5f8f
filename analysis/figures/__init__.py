"""The figures of a study, a module a kind; each draws at a width in inches, for paper and page."""

from __future__ import annotations

from matplotlib.figure import Figure

from analysis.figures import costs, coverage, relative, scores, training
from analysis.figures.subject import Plot, Subject
from analysis.style import TWO_COLUMN, figures

__all__ = ["PLOTS", "Plot", "Subject", "draw"]

PLOTS: tuple[Plot, ...] = (
    scores.PLOTS[0],
    relative.PLOT,
    *scores.PLOTS[1:],
    *costs.PLOTS,
    training.PLOT,
    coverage.PLOT,
)
"""All figures, in the order of the report."""


def draw(name: str, subject: Subject, width: float = TWO_COLUMN) -> Figure | None:
    """Draw a figure by its name, in the project's style; None where there is nothing to draw.

    Args:
        name: Of one of `PLOTS`.
        subject: What is drawn.
        width: In inches.

    Raises:
        KeyError: There is no such figure.
    """
    by_name = {plot.name: plot for plot in PLOTS}
    with figures():
        return by_name[name].draw(subject, width)
