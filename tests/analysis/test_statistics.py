"""Statistics against closed forms, and against a thousand simulated studies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import (
    Pairing,
    bootstrap_interval,
    compare,
    curve_area,
    holm,
    interquartile_mean,
    mean_over_tasks,
    probability_of_improvement,
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
    return Pairing(name, "B", "here", dict(enumerate(a)), dict(enumerate(b)))


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
    apart = Pairing("A", "B", "here", {0: 0.8}, {1: 0.1})
    assert [each.verdict for each in compare([clear, worse, alike, same, alone, apart])] == [
        "A beats B",
        "B beats A",
        "no difference shown",
        "no difference shown",
        "one seed: no comparison",
        "no common seed",
    ]
    assert compare([]) == []


def test_seeds_are_paired_by_number() -> None:
    pairing = Pairing("A", "B", "here", {0: 0.1, 1: 0.9, 2: 0.5}, {2: 0.4, 0: 0.0, 7: 0.9})
    found = compare([pairing])[0]
    assert (found.pairs, found.difference) == (2, pytest.approx(0.1))


def test_false_claims_are_rare() -> None:
    """Twelve methods, all as good as the baseline: any "beats" in the table is a false one."""
    draw = np.random.default_rng(2026)
    wrong = 0
    for _ in range(STUDIES):
        base = list(draw.normal(0.7, 0.02, size=5))
        table = [_pairing(list(draw.normal(0.7, 0.02, size=5)), base) for _ in range(12)]
        wrong += any("beats" in found.verdict for found in compare(table))
    assert wrong / STUDIES <= 0.05
