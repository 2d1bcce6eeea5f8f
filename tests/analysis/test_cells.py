"""Cells: seeds joined, missing ones named, nothing mixed, frontiers, areas, comparisons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.cells import Study, areas, comparisons, improvements, over_tasks, pareto, study
from analysis.load import load
from elip.record import Record, write_record
from tests.analysis.synthetic import failed, record, write_study


def _study(folder: Path, *records: Record) -> Study:
    for number, one in enumerate(records):
        write_record(one, folder / str(number))
    return study(load([folder]))


def test_a_cell_is_the_mean_over_its_seeds_with_students_interval(tmp_path: Path) -> None:
    found = _study(tmp_path, *(record(seed=s, score=0.5 + 0.1 * s) for s in range(3)))
    cell = found.cells.iloc[0]
    half = 4.302652729911275 * 0.1 / 3**0.5
    assert (cell["label"], cell["keep"], cell["seeds"]) == ("ELIP", 0.7, 3)
    assert cell["score"] == pytest.approx(0.6)
    assert cell["low"] == pytest.approx(0.6 - half)
    assert cell["high"] == pytest.approx(0.6 + half)


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    cell = _study(tmp_path, record()).cells.iloc[0]
    assert np.isnan(cell["low"])
    assert np.isnan(cell["high"])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write_study(tmp_path, ("Identity", "ToMe", "EViT"), (0.7, 0.5), seeds=2, tasks=("VQA",))
    for seed in (0, 1):
        (tmp_path / f"VQA-ToMe-0.5-{seed}" / "run.json").unlink()
    (tmp_path / "VQA-EViT-0.7-1" / "run.json").unlink()
    write_record(failed(record("ATS", 0.5)), tmp_path / "ats")
    missing = study(load([tmp_path])).missing
    found = {(row.label, row.keep): row.why for row in missing.itertuples()}
    assert found == {
        ("ATS", 0.5): "failed",
        ("ATS", 0.7): "not run",
        ("ToMe", 0.5): "not run",
        ("EViT", 0.7): "without seed 1",
    }
    write_record(record("DivPrune", 0.5), tmp_path / "more")
    missing = study(load([tmp_path])).missing
    found = {(row.label, row.keep): row.why for row in missing.itertuples()}
    assert found[("DivPrune", 0.7)] == "not run"


def test_a_repeated_run_counts_once_and_is_reported(tmp_path: Path) -> None:
    late = replace(record(score=0.9), started="2027-01-01T00:00:00+00:00")
    found = _study(tmp_path, record(score=0.1), late)
    assert list(found.cells["score"]) == [0.9]
    assert "1 scores of repeated runs" in found.notes[0]


def test_runs_of_other_configurations_are_never_averaged(tmp_path: Path) -> None:
    one, two = record(score=0.5), record(seed=1, score=0.7)
    two = replace(two, config={**two.config, "batch_size": 8})
    found = _study(tmp_path, one, two)
    assert sorted(found.cells["score"]) == [0.5, 0.7]
    assert all(label.startswith("ELIP #") for label in found.cells["label"])
    assert "kept apart" in found.notes[0]


def test_no_reduction_is_shown_beside_methods_off_the_shelf(tmp_path: Path) -> None:
    write_record(record("Identity"), tmp_path / "base")
    checkpoint = str(tmp_path / "base" / "checkpoints" / "best.ckpt")
    fitted = record("Identity", score=0.7)
    for number, name in enumerate(("ToMe", "EViT")):
        one = replace(record(name), subcommand="validate", parent=checkpoint)
        write_record(one, tmp_path / str(number))
    write_record(replace(fitted, subcommand="validate", parent=checkpoint), tmp_path / "same")
    found = study(load([tmp_path]))
    shelf = found.cells[found.cells["setting"].str.endswith("off the shelf")]
    assert sorted(shelf["label"]) == ["EViT", "Identity", "ToMe"]
    # Scored by its own command, not what fit saw on the way.
    assert set(shelf.loc[shelf["label"] == "Identity", "score"]) == {0.7}


def test_pareto() -> None:
    cost = pd.Series([1.0, 2.0, 2.0, 3.0, 4.0, np.nan])
    score = pd.Series([0.5, 0.6, 0.7, 0.65, 0.7, 0.9])
    assert list(pareto(cost, score)) == [True, False, True, False, False, False]


def test_areas_over_the_range_that_all_curves_span(tmp_path: Path) -> None:
    write_study(tmp_path, ("Identity", "ToMe", "EViT"), (0.9, 0.5), seeds=3, tasks=("VQA",))
    found = study(load([tmp_path]))
    (low, high), by_label = areas(found, found.settings[0])
    assert (low, high) == pytest.approx((28.1, 51.4))
    assert set(by_label) == {"ToMe", "EViT"}
    for label, area in by_label.items():
        cells = found.cells.set_index("label")["score"]
        assert cells[label].min() < area.value < max(cells[label].max(), cells["Identity"])
        assert area.low is not None


def test_comparisons_pair_seeds_and_average_over_ratios(tmp_path: Path) -> None:
    records = [record("Identity", seed=s, score=0.8 + 0.01 * s) for s in range(3)]
    for seed in range(3):
        records += [
            record("Random", 0.5, seed, score=0.50 + 0.010 * seed),
            record("Random", 0.7, seed, score=0.60 + 0.010 * seed),
            record("ToMe", 0.5, seed, score=0.70 + 0.011 * seed),
            record("ToMe", 0.7, seed, score=0.75 + 0.011 * seed),
        ]
    found = _study(tmp_path, *records)
    by_pair = {(each.a, each.b): each for each in comparisons(found)}
    assert set(by_pair) == {("Random", "Identity"), ("ToMe", "Identity"), ("ToMe", "Random")}
    each = by_pair["ToMe", "Random"]
    assert each.pairs == 3
    assert each.difference == pytest.approx(0.175 + 0.001)
    assert each.verdict == "ToMe beats Random"
    assert by_pair["ToMe", "Identity"].verdict == "Identity beats ToMe"
    ratios = comparisons(found, ("Random",), by_ratio=True)
    assert [round(each.difference or 0, 3) for each in ratios] == [0.201, 0.151]


def test_over_tasks_takes_only_what_every_setting_has(tmp_path: Path) -> None:
    write_study(
        tmp_path, ("Identity", "Random", "ToMe"), (0.7,), seeds=3, tasks=("VQA", "Retrieval")
    )
    for seed in range(3):
        (tmp_path / f"Retrieval-ToMe-0.7-{seed}" / "run.json").unlink()
    found = study(load([tmp_path]))
    shares = over_tasks(found).set_index("label")
    assert set(shares.index) == {"Identity", "Random"}
    assert shares.loc["Identity", "share"] == pytest.approx(1.0)
    assert set(improvements(found)["label"]) == {"Random"}


def test_a_study_without_scores_is_empty(tmp_path: Path) -> None:
    found = _study(tmp_path, failed(record()))
    assert found.cells.empty
    assert found.settings == []
