"""Validation scores during training."""

from __future__ import annotations

from matplotlib.figure import Figure

from analysis.figures.panels import LINE, Names, grid, shown, write
from analysis.figures.subject import Plot, Subject
from analysis.style import MUTED


def _draw(subject: Subject, width: float) -> Figure | None:
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
    figure, panels = grid(len(tasks), width, max(2.0, 0.65 + LINE * most))
    looked, names = subject.looks, []
    for axes, (task, datasets) in zip(panels, tasks, strict=True):
        mine = logs[(logs["task"] == task) & (logs["datasets"] == datasets)]
        points = []
        for label, group in mine.groupby("label"):
            line = group.groupby("step")["score"].mean()
            colour = looked[str(label)].colour if str(label) in looked else MUTED
            axes.plot(line.index, line, color=colour, lw=0.8, alpha=0.85)
            name = shown(label)
            points.append((float(line.index[-1]), float(line.iloc[-1]), name, colour))
        axes.set_title(f"{task}, {datasets}")
        axes.set_xlabel("optimiser steps")
        axes.set_ylabel(f"{mine['main_metric'].iloc[0]}, validation")
        axes.margins(x=0.02)
        names.append(Names(axes, points, left=False))
    return write(figure, names)


PLOT = Plot(
    "training_curves",
    "Training curves",
    "Validation score during training, mean over the seeds.",
    _draw,
)
