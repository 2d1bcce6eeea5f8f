"""Statistics against closed forms, and against a thousand simulated studies."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.load import COSTS
from analysis.statistics import (
    OVER_ALL,
    Pairing,
    Unit,
    by_image,
    compare,
    comparisons,
    holm,
    over_tasks,
    pareto,
    stacked,
    t_interval,
)

STUDIES = 1000


def test_t_interval_is_the_closed_form() -> None:
    half = 3.182446305284263 * (5 / 3) ** 0.5 / 2
    assert t_interval([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, 2.5 - half, 2.5 + half))


@pytest.mark.parametrize("values", [[0.7], [0.7, 0.7, 0.7], [0.1 + 0.2, 0.3]])
def test_without_spread_there_is_no_interval(values: list[float]) -> None:
    value, *ends = t_interval(values)
    assert value == pytest.approx(np.mean(values))
    assert np.isnan(ends).all()


@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage_of_the_t_interval(seeds: int) -> None:
    data = np.random.default_rng(seeds).normal(0.7, 0.02, size=(STUDIES, seeds))
    hits = [low <= 0.7 <= high for _, low, high in map(t_interval, data)]
    assert 0.93 <= np.mean(hits) <= 0.97


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert list(holm([0.9, 0.8])) == [1.0, 1.0]


def _pairing(a: list[float], b: list[float], name: str = "A") -> Pairing:
    gaps = np.subtract(a, b)
    return Pairing(name, "B", "here", (0.5,), gaps, int(np.count_nonzero(gaps)))


def test_the_interval_leaves_out_zero_exactly_where_the_corrected_p_value_is_small() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        gaps = draw.normal(draw.uniform(0, 1.5, size=8)[:, None], 0.5, size=(8, 5))
        found = compare([_pairing(list(gap), [0.0] * 5) for gap in gaps])
        small = found["p_value"] < 0.05
        assert ((found["low"] > 0) | (found["high"] < 0)).equals(small)
        assert (found["verdict"] != "not shown").equals(small)


def _claims(found: pd.DataFrame) -> bool:
    return bool(found["verdict"].isin(["better", "worse"]).any())


def test_verdicts() -> None:
    clear = _pairing([0.80, 0.81, 0.79, 0.80], [0.60, 0.62, 0.59, 0.61])
    worse = _pairing([0.60, 0.62, 0.59, 0.61], [0.80, 0.81, 0.79, 0.80])
    alike = _pairing([0.80, 0.70, 0.75], [0.78, 0.74, 0.73])
    same = _pairing([0.80, 0.70], [0.70, 0.60])
    alone = _pairing([0.8], [0.1])
    found = compare([clear, worse, alike, same, alone])["verdict"]
    assert list(found) == ["better", "worse", "not shown", "not shown", "too few pairs"]
    assert compare([]).empty


@pytest.mark.slow
def test_false_claims_are_rare() -> None:
    """Twelve methods, all as good as the baseline: any claim in the table is a false one."""
    draw = np.random.default_rng(2026)
    wrong = 0
    for _ in range(STUDIES):
        base = list(draw.normal(0.7, 0.02, size=5))
        table = [_pairing(list(draw.normal(0.7, 0.02, size=5)), base) for _ in range(12)]
        wrong += _claims(compare(table))
    assert wrong / STUDIES <= 0.05


def test_with_one_example_an_image_the_values_are_the_differences() -> None:
    gaps = np.random.default_rng(3).normal(size=40)
    assert by_image(gaps, np.arange(40)[::-1]) == pytest.approx(gaps[::-1])


def test_examples_of_one_image_give_the_cluster_robust_error() -> None:
    draw = np.random.default_rng(4)
    images = draw.integers(0, 15, size=60)
    gaps = draw.normal(size=60) + draw.normal(size=15)[images]
    groups = np.unique(images)
    sums = np.array([(gaps[images == g] - gaps.mean()).sum() for g in groups])
    count = len(groups)
    error = (count / (count - 1) * (sums**2).sum()) ** 0.5 / 60
    values = by_image(gaps, images)
    assert values.mean() == pytest.approx(gaps.mean())
    assert values.std(ddof=1) / count**0.5 == pytest.approx(error)


def test_groups_stacked_keep_the_mean_of_means_and_its_error() -> None:
    draw = np.random.default_rng(5)
    groups = [draw.normal(m, s, size=n) for m, s, n in ((1, 2, 30), (3, 1, 200), (0, 5, 80))]
    values = stacked(groups)
    error = sum(g.var(ddof=1) / len(g) for g in groups) ** 0.5 / 3
    assert values.mean() == pytest.approx(np.mean([g.mean() for g in groups]))
    assert values.std(ddof=1) / len(values) ** 0.5 == pytest.approx(error)


def _outcomes(draw: np.random.Generator, runs: int, images: int) -> np.ndarray:
    """Hits of equally good methods, three examples an image, easy and hard images: [runs, N]."""
    ease = np.repeat(draw.beta(2, 1, size=images), 3)
    hits = draw.random((runs, 3 * images)) < ease
    # Methods that differ err together on an image: its three examples flip at once.
    flip = np.repeat(draw.random((runs, images)) < 0.1, 3, axis=1)
    return np.where(flip, draw.random((runs, 3 * images)) < 0.5, hits).astype(float)


def _by_example(a: np.ndarray, b: np.ndarray, images: np.ndarray) -> Pairing:
    gap = a - b
    differing = len(np.unique(images[gap != 0]))
    return Pairing("A", "B", "here", (0.5,), by_image(gap, images), differing)


def test_on_many_examples_the_p_value_is_mcnemars() -> None:
    a, b = (np.random.default_rng(s).random(4000) < 0.6 for s in (6, 7))
    found = compare([_by_example(a.astype(float), b.astype(float), np.arange(4000))]).iloc[0]
    only_a, only_b = (a & ~b).sum(), (b & ~a).sum()
    chi2 = (only_a - only_b) ** 2 / (only_a + only_b)
    assert found.difference == pytest.approx((only_a - only_b) / 4000)
    assert found.p_value == pytest.approx(stats.chi2.sf(chi2, 1), rel=0.02)


def test_coverage_of_the_interval_by_example() -> None:
    """Paired differences with a shift of their own in every image; the truth is 0."""
    images = np.repeat(np.arange(100), 3)
    hits = []
    for number in range(STUDIES):
        draw = np.random.default_rng(number)
        two = _outcomes(draw, 2, 100)
        found = compare([_by_example(two[0], two[1], images)]).iloc[0]
        hits.append(found.low <= 0 <= found.high)
    assert 0.93 <= np.mean(hits) <= 0.97


@pytest.mark.slow
def test_false_claims_by_example_are_rare() -> None:
    """Twelve methods and a baseline, all equally good, on the same examples."""
    images = np.repeat(np.arange(100), 3)
    wrong = 0
    for number in range(STUDIES):
        runs = _outcomes(np.random.default_rng(number), 13, 100)
        table = compare([_by_example(run, runs[0], images) for run in runs[1:]])
        wrong += _claims(table)
    assert wrong / STUDIES <= 0.05


@pytest.mark.parametrize("share", [0.002, 0.005, 0.02])
def test_false_claims_are_rare_where_few_examples_differ(share: float) -> None:
    """A method that changes next to nothing: of 1,000 answers two, five, twenty."""
    draw, wrong = np.random.default_rng(8), 0
    for _ in range(STUDIES):
        differs = draw.random(1000) < share
        gap = differs * draw.choice([-1.0, 1.0], size=1000)
        pairing = Pairing("A", "B", "here", (0.9,), gap, int(differs.sum()))
        wrong += _claims(compare([pairing]))
    assert wrong / STUDIES <= 0.05


def _rows(tasks: int = 2, seeds: int = 3, examples: int = 400) -> pd.DataFrame:
    """Scores of three methods: B is as good as A and C is 0.2 worse; F acts in the fusion."""
    rows = []
    number = np.arange(examples)
    index = pd.MultiIndex.from_arrays([number // 2, number], names=["image", "example"])
    for task in range(tasks):
        draw = np.random.default_rng(task)
        for seed in range(seeds):
            whole = (draw.random(examples) < 0.8).astype(float)
            for label, loss in (
                ("No reduction", 0.0),
                ("A", 0.05),
                ("B", 0.05),
                ("C", 0.25),
                ("F", 0.05),
            ):
                for keep in (1.0,) if label == "No reduction" else (0.5, 0.7):
                    values = whole * (draw.random(examples) >= loss)
                    acts = {"No reduction": "never", "F": "fusion"}.get(label, "encoder")
                    rows.append(
                        {"setting": f"task {task}", "group": "g", "label": label, "keep": keep,
                         "seed": seed, "score": values.mean(), "metric": "accuracy",
                         "share": values.mean() / whole.mean(), "family": "other", "acts": acts,
                         "outcomes": pd.Series(values, index),
                         **dict.fromkeys(COSTS, keep)}
                    )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("unit", ["seeds", "examples"])
def test_methods_are_compared_at_equal_keep_ratio_and_over_tasks(unit: Unit) -> None:
    rows = _rows(seeds=5)
    found = comparisons(rows, ("No reduction", "A"), unit=unit)
    by = found.set_index(["a", "b", "setting"]).sort_index()
    assert by.at[("C", "A", OVER_ALL), "verdict"] == "worse"
    assert by.at[("B", "A", OVER_ALL), "verdict"] == "not shown"
    assert by.at[("C", "A", OVER_ALL), "keeps"] == (0.5, 0.7)
    assert by.at[("F", "No reduction", "task 0"), "verdict"] == "worse"
    assert ("F", "A", "task 0") not in by.index
    scores = rows.set_index(["setting", "label"])["score"].groupby(level=[0, 1]).mean()
    gap = np.mean([scores[f"task {t}", "C"] - scores[f"task {t}", "A"] for t in (0, 1)])
    assert by.at[("C", "A", OVER_ALL), "difference"] == pytest.approx(gap)
    at_each = comparisons(rows, ("A",), by_ratio=True, unit=unit)
    assert set(at_each["keeps"]) == {(0.5,), (0.7,)}


def test_runs_on_different_examples_are_compared_on_those_of_both() -> None:
    rows = _rows(tasks=1, seeds=1)
    half = [
        s[:100] if label == "C" else s
        for s, label in zip(rows["outcomes"], rows["label"], strict=True)
    ]
    rows["outcomes"] = pd.Series(half, dtype=object)
    pairs = comparisons(rows, ("No reduction",), unit="examples").set_index("a")["pairs"]
    assert (pairs["C"], pairs["A"]) == (50, 200)


def test_means_over_tasks_take_only_what_every_task_has() -> None:
    rows = _rows(seeds=3)
    lacking = rows[~((rows["label"] == "B") & (rows["setting"] == "task 1"))]
    found = over_tasks(lacking)
    assert set(found["label"]) == {"No reduction", "A", "C", "F"}
    assert (found["seeds"] == 3).all()
    one = found[(found["label"] == "A") & (found["keep"] == 0.5)].iloc[0]
    mine = rows[(rows["label"] == "A") & (rows["keep"] == 0.5)]
    assert one["share"] == pytest.approx(mine["share"].mean())
    assert one["share_low"] < one["share"] < one["share_high"]


def test_the_front_is_what_no_point_beats() -> None:
    front = pareto(pd.Series([1.0, 2.0, 2.0, 3.0, np.nan]), pd.Series([0.5, 0.4, 0.7, 0.7, 0.9]))
    assert front.tolist() == [True, False, True, False, False]
