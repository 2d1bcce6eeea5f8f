"""Intervals and corrected comparisons.

Every interval is at the 95% level; its ends are NaN if the data allow none (one seed, or seeds with
equal scores). Comparisons answer two separate questions. *By seed*: what would retraining show?
*By example*: what would other test examples show for the same models?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analysis.load import BASELINES, CELL, COSTS, NO_REDUCTION

Array = NDArray[np.float64]

LEVEL = 0.95
OVER_ALL = "all tasks"

Unit = Literal["seeds", "examples"]
"""What a comparison pairs: trained models, or the test examples of the same models."""


class Interval(NamedTuple):
    """An estimate and its interval."""

    value: float
    low: float
    high: float


def t_interval(values: Sequence[float] | Array) -> Interval:
    """Return the mean of independent values with Student's interval.

    ``mean ± t(n - 1) * s / sqrt(n)``; without an interval if the values have no spread.
    """
    data = np.asarray(values, dtype=float)
    error = _error(data, len(data))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(data) - 1)) * error if error else np.nan
    mean = float(data.mean())
    return Interval(mean, mean - half, mean + half)


def _error(values: Array, differing: int) -> float:
    """Return the standard error of the mean; 0 if the spread is none or rounding."""
    if min(len(values), differing) < 2:
        return 0.0
    spread = float(values.std(ddof=1))
    return spread / len(values) ** 0.5 if spread > 1e-12 * max(1, np.abs(values).max()) else 0.0


def holm(p_values: Sequence[float] | Array) -> Array:
    """Return p-values corrected for multiple comparisons by Holm's step-down procedure.

    Source: Holm, 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


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
    codes, _ = pd.factorize(images, sort=True)
    mean, sums = differences.mean(), np.bincount(codes, weights=differences - differences.mean())
    result: Array = mean + len(sums) / len(differences) * sums
    return result


def stacked(groups: Sequence[Array]) -> Array:
    """Return values whose mean is the mean of the groups' means, with the right spread.

    The groups (tasks) are independent: the variance of the mean over K groups is the sum of
    ``s_k^2 / n_k`` over K^2. Each group has at least two values.
    """
    total, mean = sum(map(len, groups)), np.mean([group.mean() for group in groups])
    scale = [(total * (total - 1) / (len(g) * (len(g) - 1))) ** 0.5 / len(groups) for g in groups]
    return np.concatenate(
        [mean + (g - g.mean()) * factor for g, factor in zip(groups, scale, strict=True)]
    )


@dataclass(frozen=True)
class Pairing:
    """Two methods on the same seeds or examples."""

    a: str
    b: str
    setting: str
    keeps: tuple[float, ...]  # the keep ratios over which scores are averaged
    gaps: Array  # independent values, one per seed or image, whose mean is the score of A minus B
    differing: int  # number of seeds or images that differ from 0 in the data


def compare(pairings: Sequence[Pairing]) -> pd.DataFrame:
    """Compare by paired t-tests, and correct all of them together (Holm).

    The degrees of freedom are the pairs that differ, minus 1: a thousand images of which four
    differ carry no more information than four. Each interval is at level
    ``1 - alpha * p / p_corrected``, so it excludes 0 exactly if the corrected p-value is below
    alpha = 1 - `LEVEL`. Alpha bounds the chance of any false "better" or "worse" in the table.
    Differences without spread get no interval.

    Returns:
        One row per pairing: ``a``, ``b``, ``setting``, ``keeps``, ``pairs``, ``difference``,
        ``low``, ``high``, corrected ``p_value``, and ``verdict``: "better" or "worse" only if the
        interval excludes 0, else "not shown" or "too few pairs".
    """
    columns = ["a", "b", "setting", "keeps", "gaps", "differing"]
    found = pd.DataFrame([vars(each) for each in pairings], columns=columns)
    found["pairs"] = [len(each.gaps) for each in pairings]
    found["difference"] = [each.gaps.mean() for each in pairings]
    error = pd.Series([_error(each.gaps, each.differing) for each in pairings], dtype=float)
    tested = error > 0
    mean, error = found["difference"][tested], error[tested]
    freedom = found["differing"][tested].astype(float) - 1
    p = 2 * stats.t.sf(mean.abs() / error, freedom)
    corrected = holm(p)
    share = np.divide(p, corrected, out=np.full(len(p), 1 / max(1, len(p))), where=corrected > 0)
    half = stats.t.isf((1 - LEVEL) * share / 2, freedom) * error
    found["low"], found["high"] = mean - half, mean + half
    found["p_value"] = pd.Series(corrected, mean.index, float)
    found["verdict"] = np.select(
        [found["pairs"] < 2, found["low"] > 0, found["high"] < 0],
        ["too few pairs", "better", "worse"],
        "not shown",
    )
    return found.drop(columns=["gaps", "differing"])


def comparisons(
    scores: pd.DataFrame,
    against: Sequence[str] = BASELINES,
    by_ratio: bool = False,
    unit: Unit = "seeds",
) -> pd.DataFrame:
    """Compare every method with some others at equal keep ratios, corrected together.

    Includes each setting, and the mean over all settings if all have both methods. A method that
    acts in the fusion has a different kind of keep ratio: it is compared only with no reduction and
    other such methods.

    Args:
        scores: Rows of `analysis.load.Study.scores`: the settings of one group.
        against: The methods to compare with.
        by_ratio: Compare at each keep ratio; else the means over all ratios that both have.
        unit: What is paired.

    Returns:
        As `compare`.
    """
    acts = dict(zip(scores["label"], scores["acts"], strict=True))
    settings = [_Scores(str(name), rows) for name, rows in scores.groupby("setting", sort=False)]
    pairings: list[Pairing] = []
    for b in against:
        for a in sorted(acts):
            if a in (b, NO_REDUCTION) or b not in acts:
                continue
            if b != NO_REDUCTION and acts[a] != acts[b]:
                continue
            found = [each for one in settings for each in one.pairings(a, b, by_ratio, unit)]
            for keeps in dict.fromkeys(each.keeps for each in found):
                mine = [each for each in found if each.keeps == keeps]
                pairings += mine
                gaps = [each.gaps for each in mine if len(each.gaps) > 1]
                if len(settings) > 1 and len(gaps) == len(settings):
                    if unit == "examples":
                        mean = stacked(gaps)
                    elif len(set(map(len, gaps))) == 1:  # one value a seed: its mean over tasks
                        mean = np.mean(gaps, axis=0)
                    else:
                        continue
                    differing = min(len(mean), sum(each.differing for each in mine))
                    pairings.append(Pairing(a, b, OVER_ALL, keeps, mean, differing))
    return compare(pairings)


class _Scores:
    """The scores of one setting: a row per run, and a column per example."""

    def __init__(self, name: str, rows: pd.DataFrame) -> None:
        self.name = name
        self.means = rows["score"].to_numpy(float)
        self.rows: dict[str, dict[tuple[float, int], int]] = {}
        keys = rows[["label", "keep", "seed"]].itertuples(index=False)
        for number, (label, keep, seed) in enumerate(keys):
            self.rows.setdefault(label, {})[keep, seed] = number
        self.unknown = rows["outcomes"].isna().to_numpy()
        known = {i: each for i, each in enumerate(rows["outcomes"]) if each is not None}
        wide = pd.concat(known, axis=1).T if known else pd.DataFrame()
        self.outcomes = wide.reindex(range(len(rows))).to_numpy(float)
        self.images = wide.columns.get_level_values("image").to_numpy() if known else np.empty(0)

    def pairings(self, a: str, b: str, by_ratio: bool, unit: Unit) -> Iterator[Pairing]:
        """Yield A and B on the seeds and keep ratios, or on the examples, that both have."""
        one, two = self.rows.get(a, {}), self.rows.get(b, {})
        both = {
            (keep, seed): (number, two[other])
            for (keep, seed), number in one.items()
            if (other := (1.0 if b == NO_REDUCTION else keep, seed)) in two
            if unit == "seeds" or not self.unknown[[number, two[other]]].any()
        }
        ratios = sorted({keep for keep, _ in both})
        for keeps in [(keep,) for keep in ratios] if by_ratio else [tuple(ratios)]:
            pairs = {key: rows for key, rows in both.items() if key[0] in keeps}
            if unit == "examples" and pairs:
                first, second = np.array(list(pairs.values())).T
                gaps = self.outcomes[first].mean(0) - self.outcomes[second].mean(0)
                shared = ~np.isnan(gaps)
                if shared.any():
                    gaps, images = gaps[shared], self.images[shared]
                    differing = len(np.unique(images[gaps != 0]))
                    yield Pairing(a, b, self.name, keeps, by_image(gaps, images), differing)
            elif unit == "seeds":
                by_seed: dict[int, list[float]] = {}
                for (_, seed), (i, j) in pairs.items():
                    by_seed.setdefault(seed, []).append(self.means[i] - self.means[j])
                whole = [by_seed[s] for s in sorted(by_seed) if len(by_seed[s]) == len(keeps)]
                if whole:
                    gaps = np.mean(whole, axis=1)
                    yield Pairing(a, b, self.name, keeps, gaps, int(np.count_nonzero(gaps)))


def aggregate(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell: means over the seeds with Student's intervals.

    Columns: `CELL`, ``group``, ``family``, ``acts``, ``metric``, ``seeds``, ``score`` and ``share``
    with ``_low`` and ``_high``, and the medians of `COSTS`.
    """
    groups = scores.groupby(CELL, sort=False)
    frame = groups[["group", "family", "acts", "metric"]].first().assign(seeds=groups.size())
    for name in ("score", "share"):
        found = [t_interval(values.to_numpy(float)) for _, values in groups[name]]
        columns = [name, f"{name}_low", f"{name}_high"]
        frame = frame.join(pd.DataFrame(found, frame.index, columns, dtype=float))
    return frame.join(groups[COSTS].median()).reset_index()


def over_tasks(scores: pd.DataFrame) -> pd.DataFrame:
    """Return each method's share of the score without reduction, averaged over the settings.

    Covers only cells that every setting has. Intervals are Student's over the seeds, each the mean
    over the settings. Columns as in `aggregate`; ``score`` is the share.
    """
    settings = scores["setting"].nunique()
    full = scores.groupby(["label", "keep"])["setting"].transform("nunique") == settings
    groups = scores[full & scores["share"].notna()].groupby(["label", "keep", "seed"])
    means = groups[["group", "family", "acts"]].first().join(groups[["share", *COSTS]].mean())
    means = means.assign(setting=OVER_ALL, score=means["share"], metric="share")
    return aggregate(means.reset_index())


def pareto(cost: pd.Series, score: pd.Series) -> pd.Series:
    """Return which points are on the Pareto front: no point as cheap has a higher score."""
    frame = pd.DataFrame({"cost": cost, "score": score}).dropna()
    frame = frame.sort_values(["cost", "score"], ascending=[True, False])
    best = frame["score"].cummax().shift(fill_value=-np.inf)
    return (frame["score"] > best).reindex(cost.index, fill_value=False)
