"""The figures of a study, a module a kind; each draws at a width in inches, for paper and page."""

from __future__ import annotations

from analysis.figures import costs, coverage, relative, scores, training
from analysis.figures.subject import Plot, Subject

__all__ = ["PLOTS", "Plot", "Subject"]

PLOTS: tuple[Plot, ...] = (
    scores.PLOTS[0],
    relative.PLOT,
    *scores.PLOTS[1:],
    *costs.PLOTS,
    training.PLOT,
    coverage.PLOT,
)
"""All figures, in the order of the report."""
