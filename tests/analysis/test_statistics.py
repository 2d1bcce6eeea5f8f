"""Statistics against closed forms, and against a thousand simulated studies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import (
    Pairing,
    bootstrap_interval,
    by_image,
    compare,
    curve_area,
    holm,
    interquartile_mean,
    mean_over_tasks,
    probability_of_improvement,
    stacked,
    t_interval,
)

STUDIES = 1000


def test_t_interval_is_the_closed_form() -> None:
    found = t_interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446305284263 * (5 / 3) ** 0.5 / 2
    assert (found.value, found.count) == (2.5, 4)
    assert found.low == pytest.approx(2.5 - half)
    assert found.high == pytest.approx(2.5 + half)


@pytest.mark.parametrize("values", [[0.7], [0.7, 0.7, 0.7], [0.1 + 0.2, 0.3]])
def test_without_spread_there_is_no_interval(values: list[float]) -> None:
    found = t_interval(values)
    assert found.value == pytest.approx(np.mean(values))
    assert found.low is None
    assert found.high is None


def test_bootstrap_of_the_mean_is_students_interval_up_to_resampling() -> None:
    values = np.random.default_rng(1).normal(size=6)
    exact = t_interval(values)
    found = bootstrap_interval([values], mean_over_tasks, resamples=200_000)
    assert found.value == pytest.approx(exact.value)
    assert found.low == pytest.approx(exact.low, rel=0.02)
    assert found.high == pytest.approx(exact.high, rel=0.02)


def test_bootstrap_is_seeded() -> None:
    strata = [[0.1, 0.4, 0.2], [0.7, 0.9]]
    first = bootstrap_interval(strata, interquartile_mean, seed=3)
    assert first == bootstrap_interval(strata, interquartile_mean, seed=3)
    assert first != bootstrap_interval(strata, interquartile_mean, seed=4)


def test_a_stratum_of_one_seed_gives_no_interval() -> None:
    assert bootstrap_interval([[1.0, 2.0], [1.0]], mean_over_tasks).low is None


@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage_of_the_t_interval(seeds: int) -> None:
    data = np.random.default_rng(seeds).normal(0.7, 0.02, size=(STUDIES, seeds))
    hits = [
        found.low <= 0.7 <= found.high
        for found in map(t_interval, data)
        if found.low is not None and found.high is not None
    ]
    assert len(hits) == STUDIES
    assert 0.93 <= np.mean(hits) <= 0.97


@pytest.mark.parametrize(
    ("statistic", "tasks", "seeds"),
    [
        (mean_over_tasks, 1, 5),
        (mean_over_tasks, 4, 3),
        (interquartile_mean, 4, 3),
        (interquartile_mean, 3, 5),
    ],
)
def test_coverage_of_the_bootstrap_interval(statistic, tasks: int, seeds: int) -> None:  # type: ignore[no-untyped-def]
    data = np.random.default_rng(tasks * seeds).normal(0.9, 0.05, size=(STUDIES, tasks, seeds))
    hits = []
    for number, study in enumerate(data):
        found = bootstrap_interval(list(study), statistic, resamples=400, seed=number)
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= 0.9 <= found.high)
    assert 0.93 <= np.mean(hits) <= 0.97


def test_interquartile_mean_leaves_out_a_quarter_on_each_side() -> None:
    scores = [np.array([0.0, 3.0, 5.0, 100.0]), np.array([1.0, 4.0, 6.0, 50.0])]
    assert interquartile_mean(scores) == pytest.approx((3 + 4 + 5 + 6) / 4)


def test_probability_of_improvement_is_mann_whitney() -> None:
    a, b = [0.5, 0.7, 0.6], [0.5, 0.4, 0.65]
    u = stats.mannwhitneyu(a, b).statistic
    found = probability_of_improvement([a, a], [b, b])
    assert found.value == pytest.approx(u / 9)
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low < found.value < found.high <= 1


def test_separated_scores_have_no_spread_to_make_an_interval_of() -> None:
    found = probability_of_improvement([[0.9, 0.8]], [[0.1, 0.2]])
    assert (found.value, found.low) == (1.0, None)


def test_area_of_straight_lines() -> None:
    assert curve_area([10, 20, 30], [0.5, 0.7, 0.7], 10, 30) == pytest.approx(0.65)
    assert curve_area([30, 10, 20], [0.7, 0.5, 0.7], 15, 25) == pytest.approx(0.675)


@pytest.mark.parametrize(("low", "high"), [(5, 20), (15, 31), (20, 20)])
def test_area_is_never_extended(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="The curve spans 10 to 30"):
        curve_area([10, 30], [0.1, 0.2], low, high)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def _pairing(a: list[float], b: list[float], name: str = "A") -> Pairing:
    gaps = np.subtract(a, b)
    return Pairing(name, "B", ("here", "0.5"), gaps, int(np.count_nonzero(gaps)))


def test_the_interval_leaves_out_zero_exactly_where_the_corrected_p_value_is_small() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        gaps = draw.normal(draw.uniform(0, 1.5, size=8)[:, None], 0.5, size=(8, 5))
        for found in compare([_pairing(list(gap), [0.0] * 5) for gap in gaps]):
            assert found.p_value is not None
            assert found.low is not None
            assert found.high is not None
            assert (found.low > 0 or found.high < 0) == (found.p_value < 0.05)
            assert (" beats " in found.verdict) == (found.p_value < 0.05)


def test_verdicts() -> None:
    clear = _pairing([0.80, 0.81, 0.79, 0.80], [0.60, 0.62, 0.59, 0.61])
    worse = _pairing([0.60, 0.62, 0.59, 0.61], [0.80, 0.81, 0.79, 0.80])
    alike = _pairing([0.80, 0.70, 0.75], [0.78, 0.74, 0.73])
    same = _pairing([0.80, 0.70], [0.70, 0.60])
    alone = _pairing([0.8], [0.1])
    apart = _pairing([], [])
    assert [each.verdict for each in compare([clear, worse, alike, same, alone, apart])] == [
        "A beats B",
        "B beats A",
        "no difference shown",
        "no difference shown",
        "too few pairs",
        "too few pairs",
    ]
    assert compare([]) == []


def test_false_claims_are_rare() -> None:
    """Twelve methods, all as good as the baseline: any "beats" in the table is a false one."""
    draw = np.random.default_rng(2026)
    wrong = 0
    for _ in range(STUDIES):
        base = list(draw.normal(0.7, 0.02, size=5))
        table = [_pairing(list(draw.normal(0.7, 0.02, size=5)), base) for _ in range(12)]
        wrong += any("beats" in found.verdict for found in compare(table))
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
    return Pairing("A", "B", ("here", "0.5"), by_image(gap, images), differing)


def test_on_many_examples_the_p_value_is_mcnemars() -> None:
    a, b = (np.random.default_rng(s).random(4000) < 0.6 for s in (6, 7))
    found = compare([_by_example(a.astype(float), b.astype(float), np.arange(4000))])[0]
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
        found = compare([_by_example(two[0], two[1], images)])[0]
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= 0 <= found.high)
    assert 0.93 <= np.mean(hits) <= 0.97


def test_false_claims_by_example_are_rare() -> None:
    """Twelve methods and a baseline, all equally good, on the same examples."""
    images = np.repeat(np.arange(100), 3)
    wrong = 0
    for number in range(STUDIES):
        runs = _outcomes(np.random.default_rng(number), 13, 100)
        table = compare([_by_example(run, runs[0], images) for run in runs[1:]])
        wrong += any("beats" in found.verdict for found in table)
    assert wrong / STUDIES <= 0.05


@pytest.mark.parametrize("share", [0.002, 0.005, 0.02])
def test_false_claims_are_rare_where_few_examples_differ(share: float) -> None:
    """A method that changes next to nothing: of 1,000 answers two, five, twenty."""
    draw, wrong = np.random.default_rng(8), 0
    for _ in range(STUDIES):
        differs = draw.random(1000) < share
        gap = differs * draw.choice([-1.0, 1.0], size=1000)
        pairing = Pairing("A", "B", ("here", "0.9"), gap, int(differs.sum()))
        wrong += "beats" in compare([pairing])[0].verdict
    assert wrong / STUDIES <= 0.05
