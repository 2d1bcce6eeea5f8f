"""Which method is better: by seed, by example, over tasks, over a range of costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis.cells import COSTS, ENDS, KEYS, Study
from analysis.examples import Outcomes, difference, mean_outcomes
from analysis.statistics import (
    Array,
    Comparison,
    Interval,
    Pairing,
    bootstrap_interval,
    by_image,
    compare,
    curve_area,
    interquartile_mean,
    mean_over_tasks,
    probability_of_improvement,
    stacked,
    t_interval,
)

Unit = Literal["seeds", "examples"]
"""What a comparison is paired by: training runs, or test examples of the models at hand."""

Cell = dict[str, tuple[float, Outcomes | None]]
"""The scores of a cell by seed, in whole and by example."""

Cells = dict[tuple[str, str], dict[float, Cell]]
"""The cells of each setting and label, by keep ratio."""


@dataclass(frozen=True)
class _Gap:
    """A minus B in one setting.

    Attributes:
        values: Independent values: one a seed, or one an image.
        differing: How many of the pairs differ at all.
        seeds: The seeds, where the values are one a seed.
    """

    values: Array
    differing: int
    seeds: tuple[str, ...] = ()


def comparisons(
    found: Study, against: tuple[str, ...] = ENDS, by_ratio: bool = False, unit: Unit = "seeds"
) -> list[Comparison]:
    """Compare every method with some others; all in one table are corrected together.

    Each setting by itself, and the mean over all settings where all have both methods.

    Args:
        found: The study.
        against: Labels of the others; Identity is the same at every keep ratio.
        by_ratio: One comparison a keep ratio, or one of the means over all ratios that both have.
        unit: Pair runs by seed, which speaks of new training runs; or by example (the mean over
            the seeds of each), which speaks of new examples for the very models at hand.
    """
    cells: Cells = {}
    columns = [*KEYS, "seed", "score", "outcomes"]
    seeded = found.scores.dropna(subset="seed")
    for setting, label, keep, seed, score, outcomes in seeded[columns].to_numpy():
        cell = cells.setdefault((setting, label), {}).setdefault(keep, {})
        cell[seed] = (score, outcomes)
    labels = sorted({label for _, label in cells})
    pairings: list[Pairing] = []
    for other in against:
        for label in labels:
            if label in (other, "Identity"):
                continue
            named: dict[str, dict[str, _Gap]] = {}
            for setting in found.settings:
                for ratios, gap in _gaps(cells, setting, label, other, by_ratio, unit):
                    named.setdefault(ratios, {})[setting] = gap
            for ratios, gaps in named.items():
                pairings += _pairings(label, other, ratios, gaps, found.settings, unit)
    return compare(pairings)


def _pairings(
    label: str, other: str, ratios: str, gaps: Mapping[str, _Gap], settings: list[str], unit: Unit
) -> Iterator[Pairing]:
    for setting, gap in gaps.items():
        yield Pairing(label, other, (setting, ratios), gap.values, gap.differing)
    enough = [gap for gap in gaps.values() if len(gap.values) > 1]
    if len(settings) < 2 or len(enough) < len(settings):
        return
    where = (f"all {len(settings)} settings", ratios)
    if unit == "examples":
        values = stacked([gap.values for gap in enough])
    else:  # one value a seed: its mean over the settings
        if len({gap.seeds for gap in enough}) > 1:
            return
        values = np.mean([gap.values for gap in enough], axis=0)
    yield Pairing(label, other, where, values, min(len(values), sum(g.differing for g in enough)))


def _gaps(
    cells: Cells, setting: str, label: str, other: str, by_ratio: bool, unit: Unit
) -> Iterator[tuple[str, _Gap]]:
    """Yield the keep ratios that both methods have in a setting, and their difference there."""
    mine, base = cells.get((setting, label), {}), cells.get((setting, other), {})
    whole = base.get(1.0) if other == "Identity" else None
    both = {
        keep: (own, there)
        for keep, own in sorted(mine.items())
        if (there := whole if whole is not None else base.get(keep)) is not None
    }
    for keeps in [[keep] for keep in both] if by_ratio else [list(both)]:
        pairs = [both[keep] for keep in keeps]
        gap = (_by_seed if unit == "seeds" else _by_example)(pairs) if pairs else None
        if gap is not None:
            yield ", ".join(f"{keep:g}" for keep in keeps), gap


def _by_seed(pairs: list[tuple[Cell, Cell]]) -> _Gap | None:
    """Return the difference of each seed, its mean over the pairs of cells."""
    seeds = sorted(set.intersection(*(set(a) & set(b) for a, b in pairs)))
    if not seeds:
        return None
    values = np.array([np.mean([a[s][0] - b[s][0] for a, b in pairs]) for s in seeds])
    return _Gap(values, int(np.count_nonzero(values)), tuple(seeds))


def _by_example(pairs: list[tuple[Cell, Cell]]) -> _Gap | None:
    """Return the difference of each image, its mean over the seeds and the pairs of cells."""
    both = [(a[seed][1], b[seed][1]) for a, b in pairs for seed in a.keys() & b.keys()]
    one = [a for a, b in both if a is not None and b is not None]
    two = [b for a, b in both if a is not None and b is not None]
    if not both or len(one) < len(both):
        return None
    gap, images = difference(mean_outcomes(one), mean_outcomes(two))
    if not len(gap):
        return None
    return _Gap(by_image(gap, images), len(np.unique(images[gap != 0])))


def areas(found: Study, setting: str) -> tuple[tuple[float, float], dict[str, Interval], Unit]:
    """Return a range of GFLOPs of a setting, and the area over it of each curve that spans it.

    The range starts where three quarters of the methods reach down to, so that one which saves
    little does not narrow it for all, and ends where the first curve ends; a method that does not
    span it has no area.

    Each seed has its own curve through all keep ratios of its method and no reduction; the
    interval is Student's over the seeds. With one seed each example has its own curve, since the
    area is linear in the scores, and the interval is over the images.

    Returns:
        The range, the areas by label, and what their intervals are over.
    """
    scores = found.scores[found.scores["setting"] == setting].dropna(subset="gflops_total")
    identity = scores[scores["label"] == "Identity"]
    curves: dict[str, list[pd.DataFrame]] = {}
    for label, group in scores[scores["label"] != "Identity"].groupby("label"):
        points = group["keep"].nunique()
        for seed, mine in group.groupby("seed"):
            end = identity[identity["seed"] == seed]
            if mine["keep"].nunique() == points and len(end):
                curves.setdefault(str(label), []).append(pd.concat([mine, end]))
    if not curves:
        return (0.0, 0.0), {}, "seeds"
    costs = {name: [curve["gflops_total"] for curve in group] for name, group in curves.items()}
    starts = {name: max(cost.min() for cost in group) for name, group in costs.items()}
    low = float(np.quantile(list(starts.values()), 0.75, method="higher"))
    high = float(min(cost.max() for group in costs.values() for cost in group))
    if not low < high:
        return (low, high), {}, "seeds"
    unit: Unit = "seeds" if max(map(len, curves.values())) > 1 else "examples"
    found_areas = {
        name: _area(group, low, high) for name, group in curves.items() if starts[name] <= low
    }
    return (low, high), found_areas, unit


def _area(curves: list[pd.DataFrame], low: float, high: float) -> Interval:
    if len(curves) > 1 or any(each is None for each in curves[0]["outcomes"]):
        values = [_height(c, list(c["score"]), low, high) for c in curves]
        return t_interval(values)
    outcomes: list[Outcomes] = list(curves[0]["outcomes"])
    names = mean_outcomes(outcomes).names
    if any(each.names is not names for each in outcomes):
        return t_interval([_height(curves[0], list(curves[0]["score"]), low, high)])
    scores = np.array([each.scores for each in outcomes], dtype=float)
    # The weight of each point in the area, from the areas of unit vectors.
    weights = [_height(curves[0], list(row), low, high) for row in np.eye(len(scores))]
    return t_interval(by_image(np.array(weights) @ scores, names.images))


def _height(curve: pd.DataFrame, scores: list[float], low: float, high: float) -> float:
    return curve_area(list(curve["gflops_total"]), scores, low, high)


def over_tasks(found: Study) -> pd.DataFrame:
    """Return each method's share of the score without reduction, averaged over the settings.

    Only cells that every setting has are in it. Columns: ``label``, ``keep``, ``family``,
    ``settings``, ``share``, ``share_low``, ``share_high`` (stratified bootstrap over the seeds),
    ``iqm``, ``iqm_low``, ``iqm_high`` likewise, and the mean of the columns of `COSTS`.
    """
    rows = []
    for (label, keep), group in found.scores.groupby(["label", "keep"], sort=False):
        strata = [part["share"].to_numpy() for _, part in group.groupby("setting")]
        if len(strata) < len(found.settings) or any(np.isnan(part).any() for part in strata):
            continue
        row = {"label": label, "keep": keep, "family": group["family"].iloc[0]}
        row |= {"settings": len(strata)}
        for name, statistic in (("share", mean_over_tasks), ("iqm", interquartile_mean)):
            made = bootstrap_interval(strata, statistic)
            row |= {name: made.value, f"{name}_low": made.low, f"{name}_high": made.high}
        rows.append(row | {name: group[name].astype(float).mean() for name in COSTS})
    frame = pd.DataFrame(rows)
    numbers = ("share_low", "share_high", "iqm_low", "iqm_high", *COSTS)
    return frame.astype({name: float for name in numbers if name in frame})


def improvements(found: Study, against: tuple[str, ...] = ENDS) -> pd.DataFrame:
    """Return the probability that a method scores above another, averaged over the settings.

    Columns: ``label``, ``against``, ``keep``, ``probability``, ``low``, ``high``.
    """
    by_cell = {key: group["score"].to_numpy() for key, group in found.scores.groupby(KEYS)}
    rows = []
    for label, keep in sorted({(label, keep) for _, label, keep in by_cell}):
        for other in against:
            base = 1.0 if other == "Identity" else keep
            pairs = [
                (by_cell[setting, label, keep], by_cell[setting, other, base])
                for setting in found.settings
                if (setting, label, keep) in by_cell and (setting, other, base) in by_cell
            ]
            if label in (other, "Identity") or len(pairs) < len(found.settings):
                continue
            one, two = zip(*pairs, strict=True)
            chance = probability_of_improvement(one, two)
            rows.append(
                {"label": label, "against": other, "keep": keep, "probability": chance.value,
                 "low": chance.low, "high": chance.high}
            )  # fmt: skip
    return pd.DataFrame(rows, columns=["label", "against", "keep", "probability", "low", "high"])
