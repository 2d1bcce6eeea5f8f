"""Intervals and corrected comparisons.

Every interval is at the 95% level; ``low`` and ``high`` are None if the data allow none (one seed,
or seeds with equal scores). Comparisons answer two separate questions. *By seed*: what would
retraining show? *By example*: what would other test examples show for the same models?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analysis.load import BASELINES, CELL, COSTS, NO_REDUCTION, Array, Scores, mean_scores

LEVEL = 0.95

Unit = Literal["seeds", "examples"]
"""What a comparison pairs: trained models, or the test examples of the same models."""


@dataclass(frozen=True)
class Interval:
    """An estimate, its interval (None if there is none) and the number of values."""

    value: float
    low: float | None
    high: float | None
    count: int


def t_interval(values: Sequence[float] | Array) -> Interval:
    """Return the mean of independent values with Student's interval.

    ``mean ± t(n - 1) * s / sqrt(n)``.
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
    """Return p-values corrected for multiple comparisons by Holm's step-down procedure.

    Source: Holm, 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(p) for p in corrected]


def by_image(differences: Array, images: NDArray[np.int64]) -> Array:
    """Return one value per image with the mean of all differences and a cluster-robust spread.

    Examples of one image are not independent. With N examples in G images and mean m, an image's
    value is ``m + G / N * sum over its examples of (d - m)``. Student's interval of these values is
    the cluster-robust interval of the mean difference. With one example per image, the values are
    the differences.

    Source: Cameron and Miller, 2015, A Practitioner's Guide to Cluster-Robust Inference.

    Args:
        differences: [N].
        images: [N] image of each example.
    """
    _, of = np.unique(images, return_inverse=True)
    mean, groups = differences.mean(), int(of.max()) + 1
    sums = np.bincount(of, weights=differences - mean, minlength=groups)
    result: Array = mean + groups / len(differences) * sums
    return result


def stacked(groups: Sequence[Array]) -> Array:
    """Return values whose mean is the mean of the groups' means, with the right spread.

    The groups (tasks) are independent: the variance of the mean over K groups is the sum of
    ``s_k^2 / n_k`` over K^2.

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
    """Two methods on the same seeds or examples.

    Attributes:
        a: One method.
        b: The other.
        setting: Name of the setting.
        keeps: The keep ratios over which scores are averaged.
        gaps: Independent values, one per seed or image, whose mean is the score of A minus B.
        differing: Number of them that differ from 0 in the data.
    """

    a: str
    b: str
    setting: str
    keeps: tuple[float, ...]
    gaps: Array
    differing: int


@dataclass(frozen=True)
class Comparison:
    """The result of a `Pairing`.

    Attributes:
        a: One method.
        b: The other.
        setting: Name of the setting.
        keeps: The keep ratios over which scores are averaged.
        pairs: Number of seeds or images that both have.
        difference: Mean of A minus B.
        low: Lower end of the corrected interval, or None.
        high: Upper end.
        p_value: Corrected p-value of the paired t-test.
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
        """``better`` or ``worse`` only if the corrected interval excludes 0."""
        if self.pairs < 2:
            return "too few pairs"
        if self.low is not None and self.low > 0:
            return "better"
        return "worse" if self.high is not None and self.high < 0 else "not shown"


def compare(pairings: Sequence[Pairing]) -> list[Comparison]:
    """Compare by paired t-tests, and correct all of them together (Holm).

    The degrees of freedom are the pairs that differ, minus 1: a thousand images of which four
    differ carry no more information than four. Each interval is at level
    ``1 - alpha * p / p_corrected``, so it excludes 0 exactly if the corrected p-value is below
    alpha = 1 - `LEVEL`. Alpha bounds the chance of any false "better" or "worse" in the table.
    Differences without spread get no interval.

    Args:
        pairings: All comparisons of one table.
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
    """Return the standard error of the mean; 0 if the pairs have no spread."""
    gaps, count = pairing.gaps, len(pairing.gaps)
    if count < 2 or pairing.differing < 2:
        return 0.0
    spread = float(gaps.std(ddof=1))
    return spread / count**0.5 if spread > _rounding(gaps) else 0.0


def _p_value(pairing: Pairing) -> float:
    value = abs(float(pairing.gaps.mean())) / _error(pairing)
    return float(2 * stats.t.sf(value, pairing.differing - 1))


Cell = dict[int, tuple[float, Scores | None]]
"""Mean score and per-example scores of one method at one keep ratio, by seed."""

OVER_ALL = "all tasks"


def comparisons(
    scores: pd.DataFrame,
    against: Sequence[str] = BASELINES,
    by_ratio: bool = False,
    unit: Unit = "seeds",
) -> list[Comparison]:
    """Compare every method with some others at equal keep ratios, corrected together.

    Includes each setting, and the mean over all settings if all have both methods. A method that
    acts in the fusion has a different kind of keep ratio: it is compared only with no reduction and
    other such methods.

    Args:
        scores: Rows of `analysis.load.Study.scores`: the settings of one group.
        against: The methods to compare with.
        by_ratio: Compare at each keep ratio; else the means over all ratios that both have.
        unit: What is paired.
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
    for label, other in pairs:
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
    """Yield the mean over all settings, if each of them has the pair."""
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
    """Yield keep ratios, the gaps there, and the number of pairs that differ."""
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
    """Return one row per cell: means over the seeds with Student's intervals.

    Columns: `CELL`, ``group``, ``family``, ``acts``, ``metric``, ``seeds``, ``score`` and ``share``
    with ``_low`` and ``_high``, and the medians of `COSTS`.
    """
    groups = scores.astype(dict.fromkeys(COSTS, float)).groupby(CELL, sort=False)
    frame = groups[["group", "family", "acts", "metric"]].first().assign(seeds=groups.size())
    for name in ("score", "share"):
        found = [t_interval(values.to_numpy(float)) for _, values in groups[name]]
        frame[name] = [each.value for each in found]
        frame[f"{name}_low"] = np.array([each.low for each in found], dtype=float)
        frame[f"{name}_high"] = np.array([each.high for each in found], dtype=float)
    return frame.join(groups[list(COSTS)].median()).reset_index()


def over_tasks(scores: pd.DataFrame) -> pd.DataFrame:
    """Return each method's share of the score without reduction, averaged over the settings.

    Covers only cells that every setting has. Intervals are Student's over the seeds, each the mean
    over the settings. Columns as in `aggregate`; ``score`` is the share.
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
    """Return which points are on the Pareto front: no point as cheap has a higher score."""
    order = np.lexsort((-score.to_numpy(), cost.to_numpy()))
    best, front = -np.inf, np.zeros(len(cost), dtype=bool)
    for place in order:
        value = score.iloc[place]
        if not np.isnan(cost.iloc[place]) and value > best:
            best, front[place] = value, True
    return pd.Series(front, index=cost.index)
