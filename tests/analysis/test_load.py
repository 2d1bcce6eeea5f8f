"""Every run is accounted for, and only what is alike in all but the method is compared."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.load import Study, load, study
from analysis.report import write_report
from analysis.statistics import comparisons
from elip.record import Evaluation, Record, RecordError
from experiments.results import gather, write_table
from tests.analysis.synthetic import BASE, fit_header, record, write_run

STUDIES = Path(__file__).parents[2] / "docs" / "results"


def of(*records: Record) -> Study:
    rows = [(f"run{i}", one, {}, "") for i, one in enumerate(records)]
    return study(pd.DataFrame(rows, columns=["run", "record", "outcomes", "damage"]))


def fates(found: Study) -> list[str]:
    return list(found.runs["status"])


def methods(found: Study, setting: str) -> list[str]:
    return sorted(set(found.scores.loc[found.scores["setting"] == setting, "label"]))


def test_a_folder_of_every_kind_of_run_is_accounted_for(tmp_path: Path) -> None:
    runs = {
        "used": [record("Identity"), record("ELIP"), record("Random", seed=0)],
        "failed": [record("ToMe", status="failed", evaluations=(), error="out of memory")],
        "interrupted": [record("TopK", status="interrupted", evaluations=(), main_metric=None)],
        "not finite": [record("EViT", score=float("nan")), record("ELIP", seed=1, score=None)],
        "predictions only": [record("ELIP", command="predict", evaluations=())],
        "no score": [record("Stride", evaluations=())],
        "nothing to compare with": [record("ELIP", options={"model": {"task": "VQA", "lr": 0.5}})],
    }
    for number, (_, several) in enumerate(runs.items()):
        for one in several:
            write_run(tmp_path / str(number), one)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "run.json").write_text('{"name": "ha')
    found = study(load([tmp_path]))
    counts = found.runs["status"].value_counts().to_dict()
    assert counts == {name: len(several) for name, several in runs.items()} | {"unreadable": 1}
    why = dict(zip(found.runs["status"], found.runs["why"], strict=True))
    assert why["failed"] == "out of memory"
    assert "run.json" in why["unreadable"]
    assert "model.lr (0.5; there default)" in why["nothing to compare with"]
    page = write_report([tmp_path], tmp_path / "report").read_text()
    for name in ("out of memory", "not finite", "interrupted", "unreadable", "model.lr"):
        assert name in page


def test_without_its_examples_a_run_keeps_its_score(tmp_path: Path) -> None:
    for keep in (0.7, 0.5):
        for name in ("ELIP", "ToMe"):
            write_run(tmp_path, record(name, keep))
    write_run(tmp_path, record("Identity"))
    damaged = tmp_path / record("ELIP", 0.5).run_id / "examples.parquet"
    damaged.write_bytes(b"junk")
    found = study(load([tmp_path]))
    assert set(fates(found)) == {"used"}
    assert len(found.scores) == 5
    (why,) = [why for why in found.runs["why"] if "Not compared by example" in why]
    assert str(damaged) in why
    compared = comparisons(found.scores, unit="examples").set_index("a")["keeps"]
    assert compared.to_dict() == {"ELIP": (0.7,), "ToMe": (0.5, 0.7)}


@pytest.mark.parametrize(
    "bad", [record("ELIP", status="interrupted", evaluations=()), record(score=None)]
)
def test_with_bad_runs_only_there_is_a_report_that_says_so(tmp_path: Path, bad: Record) -> None:
    write_run(tmp_path / "runs", bad)
    page = write_report([tmp_path / "runs"], tmp_path / "report").read_text()
    assert "No run has a score yet" in page
    assert "1 run: 0 used, 1 " in page


def test_off_the_shelf_and_trained_runs_are_apart_and_share_no_reduction() -> None:
    elip, none = fit_header("ELIP", 0.7), fit_header("Identity", None)
    found = of(
        record("Identity", lineage=(none,)),
        record("ELIP", lineage=(none,)),
        record("ELIP", lineage=(elip,)),
        record("ToMe", lineage=(fit_header("ToMe", 0.7),)),
        record("ELIP", 0.5, lineage=(elip,)),
    )
    assert {name: methods(found, name) for name in found.settings} == {
        "VQA, 500 steps, off the shelf": ["ELIP", "No reduction"],
        "VQA, trained with each method, 500 steps": ["ELIP", "No reduction", "ToMe"],
        "VQA, 500 steps, trained with ELIP 0.7": ["ELIP", "No reduction"],
    }
    assert fates(found) == ["used"] * 5


def test_what_the_weights_began_from_counts() -> None:
    start = fit_header("ELIP", 0.7).model_copy(update={"run_id": "start"})
    found = of(
        record("Identity", lineage=(fit_header("Identity", None), BASE)),
        record("ELIP", lineage=(fit_header("ELIP", 0.7), BASE)),
        record("ToMe", lineage=(fit_header("ToMe", 0.7), start)),
    )
    assert {name: methods(found, name) for name in found.settings} == {
        "VQA, fine-tuned with each method, 500 steps": ["ELIP", "No reduction"],
        "VQA, 500 steps, pre-trained with ELIP 0.7, fine-tuned with each method": [
            "No reduction", "ToMe",
        ],
    }  # fmt: skip
    lost = {"lineage": (), "weights": "meter.ckpt"}
    found = of(record("Identity", **lost), record("ELIP", **lost))
    assert list(found.settings) == ["VQA, meter.ckpt, weights of unknown training"]


def test_a_training_that_a_run_tested_is_not_scored_by_its_validation() -> None:
    fit = record("ELIP", lineage=(), command="fit", split="val")
    header = fit_header("ELIP", 0.7).model_copy(update={"run_id": fit.run_id})
    other = record("Identity", lineage=(fit_header("Identity", None),))
    found = of(fit, record("ELIP", lineage=(header,)), other)
    assert fates(found) == ["tested by another run", "used", "used"]
    alone = of(fit, record("Identity", lineage=(), command="fit", split="val"))
    assert fates(alone) == ["used", "used"]


def test_a_repeated_run_counts_once_and_the_latest_stands() -> None:
    late = record("ELIP", score=0.5, started="2026-12-01T00:00:00+00:00")
    found = of(late, record("ELIP"), record("Identity"))
    assert fates(found) == ["used", "repeated", "used"]
    assert found.scores.set_index("label").at["ELIP", "score"] == 0.5


def test_several_scorings_of_one_model_are_one_seed() -> None:
    records = [
        record(name, seed=scoring, lineage=(fit_header(name, keep, seed),), score=score)
        for name, keep in (("Identity", None), ("ELIP", 0.7))
        for seed in (0, 1)
        for scoring, score in ((0, 0.6), (1, 0.4))
    ]
    found = of(*records)
    assert found.scores.groupby("label").size().to_dict() == {"ELIP": 2, "No reduction": 2}
    assert found.scores["score"].tolist() == pytest.approx([0.5] * 4)


def test_a_smaller_image_stands_as_a_method_of_its_own() -> None:
    small = {"model": {"task": "VQA", "meter": {"image_size": 48}}}
    found = of(record("Identity"), record("ELIP"), record("Identity", options=small, patches=36))
    rows = found.scores.set_index("label")
    assert len(found.settings) == 1
    assert rows.at["Smaller image", "keep"] == 0.25
    assert pd.isna(rows.at["Smaller image", "latency_share"])


def test_the_keep_ratio_of_the_fusion_is_another_quantity() -> None:
    rows = of(record("Identity"), record("ELIP"), record("PuMer", 0.5)).scores.set_index("label")
    assert rows["acts"].to_dict() == {
        "No reduction": "never", "ELIP": "encoder", "PuMer": "fusion",
    }  # fmt: skip
    assert pd.isna(rows.at["PuMer", "keep_ratio"])
    assert rows.at["PuMer", "fusion_keep_ratio"] == 0.5


def test_settings_of_one_name_say_in_what_they_differ() -> None:
    slow = {"trainer": {"learning_rate": 0.1}}
    found = of(
        record("Identity"), record("ELIP"),
        record("Identity", options=slow), record("ELIP", options=slow),
    )  # fmt: skip
    assert sorted(found.settings) == [
        "VQA, 1,000 steps, off the shelf, learning rate 0.1",
        "VQA, 1,000 steps, off the shelf, learning rate default",
    ]


def test_tasks_on_different_data_are_never_averaged() -> None:
    photos = Evaluation(split="test", dataset="photos", examples=9, metrics={"r1": 0.5})
    elsewhere = [
        record(name, task="Retrieval", evaluations=(photos,)) for name in ("Identity", "ELIP")
    ]
    found = of(record("Identity"), record("ELIP"), *elsewhere)
    assert [len(settings) for settings in found.groups.values()] == [1, 1]
    assert "VQA, 1,000 steps, off the shelf, on shapes" in found.settings


def test_methods_are_named_by_the_options_in_which_they_differ() -> None:
    found = of(
        record("Identity"),
        *(record("ELIP", reducer_options={"mix": mix, "same": 1}, seed=i)
          for i, mix in enumerate((0.8, 1.0))),
    )  # fmt: skip
    assert set(found.scores["label"]) == {"No reduction", "ELIP (mix=0.8)", "ELIP (mix=1.0)"}


@pytest.mark.parametrize(
    ("name", "runs", "settings"),
    [("offtheshelf", 432, 4), ("keep_ratio", 132, 1), ("short_tuning", 90, 1)],
)
def test_the_stored_studies_are_used_in_whole(name: str, runs: int, settings: int) -> None:
    found = study(load([STUDIES / f"{name}.parquet"]))
    assert len(found.runs) == runs
    assert set(fates(found)) <= {"used", "tested by another run"}
    assert len(found.settings) == settings
    scores = found.scores
    means = [each.mean() for each in scores["outcomes"]]
    assert scores["score"].tolist() == pytest.approx(means, abs=1e-6)


def test_a_table_stands_in_for_its_runs(tmp_path: Path) -> None:
    for name in ("ELIP", "Identity"):
        write_run(tmp_path / "runs", record(name))
    table, bad = gather(tmp_path / "runs")
    assert not bad
    write_table(table, tmp_path / "table.parquet")
    stored, found = load([tmp_path / "table.parquet"]), load([tmp_path / "runs"])
    assert list(stored["record"]) == list(found["record"])
    for one, two in zip(stored["outcomes"], found["outcomes"], strict=True):
        pd.testing.assert_series_equal(one["test"], two["test"])


def test_what_is_no_table_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    for name in ("junk", "other"):
        with pytest.raises(RecordError, match="not a table of runs"):
            load([tmp_path / f"{name}.parquet"])
    (tmp_path / "empty").mkdir()
    for place, said in (("empty", "No run.json in"), ("none", "does not exist")):
        with pytest.raises(FileNotFoundError, match=said):
            load([tmp_path / place])
