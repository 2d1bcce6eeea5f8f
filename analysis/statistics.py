"""Means with intervals, fair comparisons, and summaries over tasks.

Every interval is at the 95% level. Where the data cannot carry an interval
(one seed, or no spread over seeds) there is none: ``low`` and ``high`` are None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import trapezoid

Array = NDArray[np.float64]
Statistic = Callable[[Sequence[Array]], Array]
"""Reduces the last axis of each stratum, and then the strata, to one number."""

LEVEL = 0.95
"""Level of all intervals unless told otherwise."""


@dataclass(frozen=True)
class Interval:
    """An estimate and where the truth may lie.

    Attributes:
        value: The estimate.
        low, high: Ends of the interval; None where the data carry none.
        count: How many values (seeds, in a study) went in.
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
    return Interval(mean, mean - half, mean + half, count)


def bootstrap_interval(
    strata: Sequence[Sequence[float] | Array],
    statistic: Statistic,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return a statistic of several groups of seeds with a stratified bootstrap interval.

    Seeds are drawn anew within each stratum (a task), n - 1 of n, which makes the bootstrap
    variance of a mean unbiased for the few seeds that a study has; the half-width is Student's t
    (n - 1 degrees of freedom, summed over the strata) times the bootstrap standard error.

    Source: Rao and Wu, 1988, Resampling Inference with Complex Survey Data; Agarwal et al., 2021,
    arXiv:2108.13264, for strata in comparisons over tasks.

    Args:
        strata: The values of each group, one a seed.
        statistic: What is estimated.
        resamples: Bootstrap samples.
        seed: Of the draws.
    """
    data = [np.asarray(values, dtype=float) for values in strata]
    value, count = float(statistic(data)), sum(map(len, data))
    if min(map(len, data)) < 2:
        return Interval(value, None, None, count)
    generator = np.random.default_rng(seed)
    drawn = [
        group[generator.integers(len(group), size=(resamples, len(group) - 1))] for group in data
    ]
    error = float(statistic(drawn).std(ddof=1))
    if error <= _rounding(np.concatenate(data)):
        return Interval(value, None, None, count)
    half = stats.t.ppf((1 + LEVEL) / 2, count - len(data)) * error
    return Interval(value, value - half, value + half, count)


def _rounding(data: Array) -> float:
    return 1e-12 * max(1.0, float(np.abs(data).max()))


def mean_over_tasks(strata: Sequence[Array]) -> Array:
    """Return the mean over tasks of the mean over seeds."""
    means: Array = np.stack([group.mean(axis=-1) for group in strata]).mean(axis=0)
    return means


def interquartile_mean(strata: Sequence[Array]) -> Array:
    """Return the mean of the middle half of all scores of all tasks together.

    Scores must be on one scale, such as shares of the score without reduction. It is meant for
    several tasks: on one task of five seeds its bootstrap interval is on the wide side (97.4%).
    """
    together = np.concatenate(list(strata), axis=-1)
    trimmed: Array = np.asarray(stats.trim_mean(together, 0.25, axis=-1))
    return trimmed


def probability_of_improvement(
    a: Sequence[Sequence[float] | Array],
    b: Sequence[Sequence[float] | Array],
) -> Interval:
    """Return how often a run of A scores above a run of B, averaged over tasks; ties count half.

    ``mean over tasks of U / (n m)`` with the Mann-Whitney U. The interval is cut to [0, 1].

    Args:
        a: Scores of A, one group a task.
        b: Scores of B, in the same order of tasks.
    """
    half = len(a)

    def wins(groups: Sequence[Array]) -> Array:
        shares = []
        for left, right in zip(groups[:half], groups[half:], strict=True):
            gap = left[..., :, None] - right[..., None, :]
            shares.append(((gap > 0) + 0.5 * (gap == 0)).mean(axis=(-2, -1)))
        mean: Array = np.stack(shares).mean(axis=0)
        return mean

    found = bootstrap_interval([*a, *b], wins)
    if found.low is None or found.high is None:
        return found
    return Interval(found.value, max(found.low, 0.0), min(found.high, 1.0), found.count)


def curve_area(cost: Sequence[float], score: Sequence[float], low: float, high: float) -> float:
    """Return the mean height of a score-cost curve between two costs, in units of the score.

    The points are joined by straight lines; nothing is extended beyond them.

    Args:
        cost: GFLOPs of the points, in any order.
        score: Their scores.
        low: Where the range starts.
        high: Where it ends.

    Raises:
        ValueError: The points do not reach over the range; the message gives both.
    """
    x, y = np.asarray(cost, dtype=float), np.asarray(score, dtype=float)
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    if not low < high or low < x[0] or high > x[-1]:
        raise ValueError(
            f"The curve spans {x[0]:g} to {x[-1]:g} GFLOPs; asked for {low:g} to {high:g}."
        )
    inside = (x > low) & (x < high)
    grid = np.concatenate([[low], x[inside], [high]])
    heights = np.concatenate([[np.interp(low, x, y)], y[inside], [np.interp(high, x, y)]])
    return float(trapezoid(heights, grid) / (high - low))


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
        images: [N], the image of each.
    """
    _, of = np.unique(images, return_inverse=True)
    mean, groups = differences.mean(), int(of.max()) + 1
    sums = np.bincount(of, weights=differences - mean, minlength=groups)
    result: Array = mean + groups / len(differences) * sums
    return result


def stacked(groups: Sequence[Array]) -> Array:
    """Return values whose mean is the mean of the groups' means, with the right spread of it.

    Each group has independent values of its own (one an image, of a task); the variance of the
    mean of means is the sum of ``s_k^2 / n_k`` over the K groups, over K^2.

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
        a, b: Their names.
        where: What was scored: setting and keep ratios.
        gaps: Independent values whose mean is the score of A minus that of B: one a seed, or one
            an image.
        differing: How many of the pairs behind them differ at all.
    """

    a: str
    b: str
    where: tuple[str, str]
    gaps: Array
    differing: int


@dataclass(frozen=True)
class Comparison:
    """What a pairing shows.

    Attributes:
        a, b, where: As in the pairing.
        pairs: How many seeds, or images, both have.
        difference: Mean of A minus B; None without a pair.
        low, high: Its interval, corrected for the number of comparisons; None where there is none.
        p_value: Of the paired t-test, corrected likewise.
    """

    a: str
    b: str
    where: tuple[str, str]
    pairs: int
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None

    @property
    def verdict(self) -> str:
        """``A beats B`` only where the corrected interval lies wholly on one side of 0."""
        if self.pairs < 2:
            return "too few pairs"
        if self.low is not None and self.low > 0:
            return f"{self.a} beats {self.b}"
        if self.high is not None and self.high < 0:
            return f"{self.b} beats {self.a}"
        return "no difference shown"


def compare(pairings: Sequence[Pairing]) -> list[Comparison]:
    """Compare with paired t-tests, and correct all of them together (Holm).

    The degrees of freedom are the pairs that differ, minus 1: a thousand images of which four
    differ know as little as four. The interval of a comparison is at level
    ``1 - alpha * p / p_corrected``, so that it leaves out 0 exactly where the corrected p-value is
    below alpha = 1 - `LEVEL`, the chance of any false "A beats B" among them. Differences without
    any spread carry no interval: seeds that change nothing say nothing.

    Args:
        pairings: Everything that is compared in one table.
    """
    tested = [i for i, pairing in enumerate(pairings) if _error(pairing) > 0]
    raw = [_p_value(pairings[i]) for i in tested]
    corrected = dict(zip(tested, zip(raw, holm(raw), strict=True), strict=True))
    results = []
    for index, each in enumerate(pairings):
        mean = float(each.gaps.mean()) if len(each.gaps) else None
        low = high = p_corrected = None
        if index in corrected and mean is not None:
            p, p_corrected = corrected[index]
            share = p / p_corrected if p_corrected > 0 else 1 / len(tested)
            tail = (1 - LEVEL) * share / 2
            half = float(stats.t.isf(tail, each.differing - 1)) * _error(each)
            low, high = mean - half, mean + half
        results.append(
            Comparison(each.a, each.b, each.where, len(each.gaps), mean, low, high, p_corrected)
        )
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
