"""Intervals, and comparisons that are fair.

Every interval is at the 95% level. Where the data carry none (one seed, or seeds that all score
the same), ``low`` and ``high`` are None. Two questions are kept apart: *by seed* asks what training
anew would show, *by example* what other test examples would show for the very models at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analysis.load import BASELINES, COSTS, NO_REDUCTION, Array, Progress, Scores, mean_scores

LEVEL = 0.95

Unit = Literal["seeds", "examples"]
"""What a comparison pairs: trained models, or test examples of the models at hand."""


@dataclass(frozen=True)
class Interval:
    """An estimate and where the truth may lie.

    Attributes:
        value: The estimate.
        low: Lower end; None where the data carry none.
        high: Upper end.
        count: How many values went in.
    """

    value: float
    low: float | None
    high: float | None
    count: int


def t_interval(values: Sequence[float] | Array) -> Interval:
    """Return the mean of independent values with Student's interval.

    ``mean ± t(n - 1) * s / sqrt(n)``.

    Args:
        values: One a seed, at least one.
    """
    data = np.asarray(values, dtype=float)
    mean, count = float(data.mean()), len(data)
    spread = float(data.std(ddof=1)) if count > 1 else 0.0
    if spread <= _rounding(data):
        return Interval(mean, None, None, count)
    half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * spread / count**0.5
    return Interval(mean, float(mean - half), float(mean + half), count)


def _rounding(data: Array) -> float:
    return 1e-12 * max(1.0, float(np.abs(data).max()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, by Holm's step-down rule.

    Source: Holm, 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(p) for p in corrected]


def by_image(differences: Array, images: NDArray[np.int64]) -> Array:
    """Return one value an image, with the mean of all differences and the right spread of it.

    Examples of one image are not independent of each other. With N examples in G images and mean
    m: ``m + G / N * sum over the image's examples of (d - m)``. Student's interval of these values
    is the cluster-robust one of the mean difference; with one example an image they are the
    differences themselves.

    Source: Cameron and Miller, 2015, A Practitioner's Guide to Cluster-Robust Inference.

    Args:
        differences: [N].
        images: [N] image of each.
    """
    _, of = np.unique(images, return_inverse=True)
    mean, groups = differences.mean(), int(of.max()) + 1
    sums = np.bincount(of, weights=differences - mean, minlength=groups)
    result: Array = mean + groups / len(differences) * sums
    return result


def stacked(groups: Sequence[Array]) -> Array:
    """Return values whose mean is the mean of the groups' means, with the right spread of it.

    Each group (a task) has independent values of its own; the variance of the mean of means is the
    sum of ``s_k^2 / n_k`` over the K groups, over K^2.

    Args:
        groups: At least two values each.
    """
    if len(groups) == 1:
        return groups[0]
    total, mean = sum(map(len, groups)), float(np.mean([group.mean() for group in groups]))
    scale = [(total * (total - 1) / (len(g) * (len(g) - 1))) ** 0.5 / len(groups) for g in groups]
    values = [mean + (g - g.mean()) * factor for g, factor in zip(groups, scale, strict=True)]
    return np.concatenate(values)


@dataclass(frozen=True)
class Pairing:
    """Two methods on the same seeds, or on the same examples.

    Attributes:
        a: One method.
        b: The other.
        setting: Where both were scored.
        keeps: The keep ratios over which the scores are averaged.
        gaps: Independent values whose mean is the score of A minus that of B: one a seed, or one
            an image.
        differing: How many of the pairs behind them differ at all.
    """

    a: str
    b: str
    setting: str
    keeps: tuple[float, ...]
    gaps: Array
    differing: int


@dataclass(frozen=True)
class Comparison:
    """What a pairing shows.

    Attributes:
        a: One method.
        b: The other.
        setting: Where both were scored.
        keeps: The keep ratios over which the scores are averaged.
        pairs: How many seeds, or images, both have.
        difference: Mean of A minus B.
        low: Lower end of its interval, corrected for the number of comparisons; None without one.
        high: Upper end.
        p_value: Of the paired t-test, corrected likewise.
    """

    a: str
    b: str
    setting: str
    keeps: tuple[float, ...]
    pairs: int
    difference: float
    low: float | None
    high: float | None
    p_value: float | None

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` only where the corrected interval leaves out 0."""
        if self.pairs < 2:
            return "too few pairs"
        if self.low is not None and self.low > 0:
            return "better"
        return "worse" if self.high is not None and self.high < 0 else "not shown"


def compare(pairings: Sequence[Pairing]) -> list[Comparison]:
    """Compare by paired t-tests, and correct all of them together (Holm).

    The degrees of freedom are the pairs that differ, minus 1: a thousand images of which four
    differ know as little as four. The interval of a comparison is at level
    ``1 - alpha * p / p_corrected``, so that it leaves out 0 exactly where the corrected p-value is
    below alpha = 1 - `LEVEL`, the chance of any false "better" or "worse" among them. Differences
    without any spread carry no interval: seeds that change nothing say nothing.

    Args:
        pairings: Everything that is compared in one table.
    """
    tested = [i for i, pairing in enumerate(pairings) if _error(pairing) > 0]
    raw = [_p_value(pairings[i]) for i in tested]
    corrected = dict(zip(tested, zip(raw, holm(raw), strict=True), strict=True))
    results = []
    for index, each in enumerate(pairings):
        mean, low, high, p_corrected = float(each.gaps.mean()), None, None, None
        if index in corrected:
            p, p_corrected = corrected[index]
            share = p / p_corrected if p_corrected > 0 else 1 / len(tested)
            tail = (1 - LEVEL) * share / 2
            half = float(stats.t.isf(tail, each.differing - 1)) * _error(each)
            low, high = mean - half, mean + half
        names = (each.a, each.b, each.setting, each.keeps, len(each.gaps))
        results.append(Comparison(*names, mean, low, high, p_corrected))
    return results


def _error(pairing: Pairing) -> float:
    """Return the standard error of the mean; 0 where the pairs carry none."""
    gaps, count = pairing.gaps, len(pairing.gaps)
    if count < 2 or pairing.differing < 2:
        return 0.0
    spread = float(gaps.std(ddof=1))
    return spread / count**0.5 if spread > _rounding(gaps) else 0.0


def _p_value(pairing: Pairing) -> float:
    value = abs(float(pairing.gaps.mean())) / _error(pairing)
    return float(2 * stats.t.sf(value, pairing.differing - 1))


Cell = dict[int, tuple[float, Scores | None]]
"""Score and single scores of one method at one keep ratio, by seed."""

OVER_ALL = "all tasks"


def comparisons(
    scores: pd.DataFrame,
    against: Sequence[str] = BASELINES,
    by_ratio: bool = False,
    unit: Unit = "seeds",
    progress: Progress | None = None,
) -> list[Comparison]:
    """Compare every method with some others at equal keep ratios; all corrected together.

    Each setting by itself, and the mean over all of them where all have both methods. The keep
    ratio of a method that acts in the fusion is another quantity: it is compared with no reduction
    and with its like only.

    Args:
        scores: Rows of `analysis.load.Study.scores`: the settings of one group.
        against: The others.
        by_ratio: One comparison a keep ratio; else of the means over all ratios that both have.
        unit: What is paired.
        progress: Shows how far it is.
    """
    cells: dict[tuple[str, str], dict[float, Cell]] = {}
    columns = ["setting", "label", "keep", "seed", "score", "outcomes"]
    for setting, label, keep, seed, score, outcomes in scores[columns].itertuples(index=False):
        cells.setdefault((setting, label), {}).setdefault(keep, {})[seed] = (score, outcomes)
    acts = dict(zip(scores["label"], scores["acts"], strict=True))
    settings = list(dict.fromkeys(scores["setting"]))
    pairs = [
        (label, other)
        for other in against
        for label in sorted(acts)
        if label not in (other, NO_REDUCTION)
        and other in acts
        and (other == NO_REDUCTION or acts[label] == acts[other])
    ]
    pairings: list[Pairing] = []
    for label, other in progress(pairs, f"Comparing by {unit}") if progress else pairs:
        found: dict[tuple[float, ...], dict[str, Pairing]] = {}
        for setting in settings:
            one, two = cells.get((setting, label), {}), cells.get((setting, other), {})
            for keeps, gaps, differing in _gaps(one, two, other == NO_REDUCTION, by_ratio, unit):
                made = Pairing(label, other, setting, keeps, gaps, differing)
                found.setdefault(keeps, {})[setting] = made
        for keeps, mine in found.items():
            pairings += mine.values()
            pairings += _over_all(mine, settings, keeps, unit)
    return compare(pairings)


def _over_all(
    mine: Mapping[str, Pairing], settings: Sequence[str], keeps: tuple[float, ...], unit: Unit
) -> Iterator[Pairing]:
    """Yield the mean over all settings, where each of them has the pair."""
    several = [pairing for pairing in mine.values() if len(pairing.gaps) > 1]
    if len(settings) < 2 or len(several) < len(settings):
        return
    if unit == "examples":
        gaps = stacked([each.gaps for each in several])
    elif len({len(each.gaps) for each in several}) == 1:  # one value a seed: its mean over tasks
        gaps = np.mean([each.gaps for each in several], axis=0)
    else:
        return
    differing = min(len(gaps), sum(each.differing for each in several))
    yield Pairing(several[0].a, several[0].b, OVER_ALL, keeps, gaps, differing)


def _gaps(
    one: dict[float, Cell], two: dict[float, Cell], to_whole: bool, by_ratio: bool, unit: Unit
) -> Iterator[tuple[tuple[float, ...], Array, int]]:
    """Yield keep ratios that both methods have, the gaps there, and how many of them differ."""
    whole = two.get(1.0) if to_whole else None
    both = {
        keep: (cell, other)
        for keep, cell in sorted(one.items())
        if (other := whole if to_whole else two.get(keep)) is not None
    }
    for keeps in [(keep,) for keep in both] if by_ratio else [tuple(both)]:
        pairs = [both[keep] for keep in keeps]
        seeds = sorted(set.intersection(*(set(a) & set(b) for a, b in pairs))) if pairs else []
        if unit == "seeds" and seeds:
            gaps = np.array([np.mean([a[s][0] - b[s][0] for a, b in pairs]) for s in seeds])
            yield keeps, gaps, int(np.count_nonzero(gaps))
        elif unit == "examples":
            shared = [(a[s][1], b[s][1]) for a, b in pairs for s in sorted(a.keys() & b.keys())]
            a, b = (mean_scores([pair[side] for pair in shared]) for side in (0, 1))
            if a is None or b is None:
                continue
            a, b = _on_the_same(a, b), _on_the_same(b, a)
            if len(a.values):
                gaps = a.values - b.values
                yield keeps, by_image(gaps, a.images), len(np.unique(a.images[gaps != 0]))


def _on_the_same(one: Scores, other: Scores) -> Scores:
    if one.examples is other.examples:
        return one
    here = np.isin(one.examples, other.examples, assume_unique=True)
    return Scores(one.examples[here], one.images[here], one.values[here])


def aggregate(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell: the means over its seeds, with Student's intervals.

    Columns: ``setting``, ``group``, ``label``, ``keep``, ``family``, ``acts``, ``seeds``, ``score``
    and ``share`` with ``_low`` and ``_high``, and the medians of the costs.
    """
    rows = []
    for (setting, label, keep), group in scores.groupby(["setting", "label", "keep"], sort=False):
        first = group.iloc[0]
        row = {"setting": setting, "label": label, "keep": keep}
        row |= {name: first[name] for name in ("group", "family", "acts", "metric")}
        row["seeds"] = len(group)
        for name in ("score", "share"):
            found = t_interval(group[name].to_numpy(float))
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        rows.append(row)
    if not rows:
        names = ["setting", "group", "label", "keep", "family", "acts", "metric", "seeds"]
        ends = [f"{name}{end}" for name in ("score", "share") for end in ("", "_low", "_high")]
        return pd.DataFrame(columns=[*names, *ends, *COSTS])
    keys = ["setting", "label", "keep"]
    costs = scores[[*keys, *COSTS]].astype(dict.fromkeys(COSTS, float)).groupby(keys).median()
    frame = pd.DataFrame(rows).merge(costs.reset_index(), on=keys)
    ends = [f"{name}_{end}" for name in ("score", "share") for end in ("low", "high")]
    return frame.astype(dict.fromkeys(ends, float))


def over_tasks(scores: pd.DataFrame) -> pd.DataFrame:
    """Return each method's share of the score without reduction, averaged over the settings.

    Only cells that every setting has are in it; the interval is Student's over the seeds, each the
    mean over the settings. Columns as those of `aggregate`, where ``score`` is the share.
    """
    settings = scores["setting"].nunique()
    full = scores.groupby(["label", "keep"])["setting"].transform("nunique") == settings
    numbers = ["share", *COSTS]
    kept = scores[full & scores["share"].notna()].astype(dict.fromkeys(numbers, float))
    keys = ["label", "keep", "seed"]
    means = kept.groupby(keys)[numbers].mean().reset_index()
    facts = kept.drop_duplicates(keys)[[*keys, "group", "family", "acts"]]
    joined = means.merge(facts, on=keys)
    return aggregate(joined.assign(setting=OVER_ALL, score=joined["share"], metric="share"))


def pareto(cost: pd.Series, score: pd.Series) -> pd.Series:
    """Return which points no other point beats: none is as cheap with a higher score."""
    order = np.lexsort((-score.to_numpy(), cost.to_numpy()))
    best, front = -np.inf, np.zeros(len(cost), dtype=bool)
    for place in order:
        value = score.iloc[place]
        if not np.isnan(cost.iloc[place]) and value > best:
            best, front[place] = value, True
    return pd.Series(front, index=cost.index)
