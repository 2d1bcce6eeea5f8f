"""Cells: seeds joined, missing ones named, nothing mixed, frontiers, areas, comparisons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.cells import Study, pareto, study
from analysis.compare import areas, comparisons, improvements, over_tasks
from analysis.load import load
from analysis.statistics import curve_area
from elip.examples import write_examples
from elip.old_record import Origin, Record, Training, write_record
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


def changed(one: Record, **options: object) -> Record:
    """The same run under other options, given with dots as ``trainer__max_steps``."""
    config = dict(one.config)
    for option, value in options.items():
        *sections, name = option.split("__")
        node = config
        for section in sections:
            node[section] = dict(node.get(section) or {})
            node = node[section]
        node[name] = value
    return replace(one, config=config)


def test_runs_of_other_configurations_are_never_averaged(tmp_path: Path) -> None:
    one, two = record(score=0.5), record(seed=1, score=0.7)
    found = _study(tmp_path, one, changed(two, data__batch_size=8))
    assert sorted(found.cells["score"]) == [0.5, 0.7]
    assert all(name.startswith("VQA, shapes val #") for name in found.settings)
    assert len(found.settings) == 2
    assert "runs differ in data.batch_size in training (none, 8), beside" in found.notes[0]


def test_what_one_method_differs_in_keeps_its_runs_apart(tmp_path: Path) -> None:
    one, two = record(score=0.5), record(seed=1, score=0.7)
    found = _study(tmp_path, one, changed(two, model__schedule__layers=[1, 2]), record("Identity"))
    assert len(found.settings) == 1
    ours = found.cells[found.cells["label"] != "Identity"]
    assert sorted(ours["score"]) == [0.5, 0.7]
    assert all(label.startswith("ELIP #") for label in ours["label"])
    assert "model.schedule.layers" in found.notes[0]


STEPS = (
    "runs differ in trainer.max_steps in training (200, 100), beside seed, method and keep ratio"
)


def test_methods_are_compared_within_one_protocol_only(tmp_path: Path) -> None:
    records = []
    for steps, gain in ((100, 0.0), (200, 0.2)):
        for seed in range(3):
            named = {"Identity": 0.6, "ToMe": 0.5} if steps == 200 else {"Identity": 0.6}
            records += [
                changed(record(name, 0.7, seed, score=score + gain + seed / 100),
                        trainer__max_steps=steps)
                for name, score in named.items()
            ]  # fmt: skip
    found = _study(tmp_path, *records)
    assert len(found.settings) == 2
    assert any(
        STEPS in note or STEPS.replace("200, 100", "100, 200") in note for note in found.notes
    )
    shares = found.scores[found.scores["label"] == "ToMe"]["share"]
    assert list(shares) == pytest.approx([(0.7 + s / 100) / (0.8 + s / 100) for s in range(3)])
    (each,) = comparisons(found, ("Identity",))
    assert each.difference == pytest.approx(-0.1)
    together = study(load([tmp_path]), ("trainer.max_steps",))
    assert together.settings == ["VQA, shapes val"]
    assert len(set(together.cells["label"])) == 3  # no reduction, in two lengths, and ToMe


@pytest.mark.parametrize("where", ["own", "of the weights"])
def test_runs_on_other_data_are_compared_apart(tmp_path: Path, where: str) -> None:
    records = []
    for seed, digest in ((0, "aaaa"), (1, "bbbb")):
        one = record("Identity", seed=seed)
        if where == "own":
            records.append(replace(one, inputs={"data": digest}))
        else:
            origin = Origin(one.config, {"data": digest})
            records.append(replace(one, subcommand="test", origin=origin, parent="gone/best.ckpt"))
    found = _study(tmp_path, *records)
    assert list(found.cells["seeds"]) == [1, 1]
    of = " in training" if where == "of the weights" else ""
    assert f"differ in the content of data{of}, beside" in found.notes[0]
    assert list(study(load([tmp_path]), ("data",)).cells["seeds"]) == [1, 1]


def test_no_reduction_on_smaller_images_has_the_protocol_of_the_larger(tmp_path: Path) -> None:
    def of(name: str, size: int | None, patches: int) -> Record:
        one = changed(
            record(name, patches=patches),
            model__meter={"image_size": size}, data__image_size=size or 288,
        )  # fmt: skip
        return replace(one, subcommand="test", origin=Origin(one.config), parent="gone.ckpt")

    found = _study(
        tmp_path, of("Identity", None, 144), of("ToMe", None, 144), of("Identity", 96, 36)
    )
    assert found.settings == ["VQA, shapes val"]
    assert set(found.cells["label"]) == {"Identity", "ToMe", "Smaller image"}
    write_record(of("ToMe", 96, 36), tmp_path / "small")
    assert len(study(load([tmp_path])).settings) == 2  # it is no method of larger images


def scored(
    name: str = "ToMe",
    trained: str | None = None,
    seeds: tuple[int, ...] = (0, 0),
    pretrained: str | None = None,
    score: float = 0.5,
    kept: str = "best",
) -> Record:
    """A test: of a method on weights that another trained, from weights that a third trained.

    ``seeds`` are those of the test, of training, and of pretraining.
    """
    own, made = record(name, seed=seeds[0]), record(trained or name, seed=seeds[1])
    before = None
    if len(seeds) > 2:
        config = changed(record(pretrained or trained or name, seed=seeds[2]), data__size=3).config
        before = Origin(config, kept="best")
    origin = Origin(changed(made, trainer__max_steps=9).config, kept=kept, origin=before)
    return replace(own, subcommand="test", origin=origin, parent="gone/best.ckpt",
                   evaluations=record(name, score=score).evaluations, training=None)  # fmt: skip


def test_repeats_are_those_of_training_however_they_were_tested(tmp_path: Path) -> None:
    runs = [scored(name, seeds=(0, seed), score=0.5 + 0.1 * seed + 0.2 * (name == "Identity"))
            for name in ("Identity", "ToMe") for seed in range(3)]  # fmt: skip
    found = _study(tmp_path, *runs)
    assert list(found.cells["seeds"]) == [3, 3]
    assert found.notes[:-1] == ()  # the last one is of examples, which these records lack
    shares = found.scores[found.scores["label"] == "ToMe"].set_index("seed")["share"]
    assert dict(shares) == pytest.approx({"0": 5 / 7, "1": 6 / 8, "2": 7 / 9})


def test_models_of_other_seeds_are_no_pair(tmp_path: Path) -> None:
    found = _study(tmp_path, scored("Identity", seeds=(0, 0)), scored("ToMe", seeds=(0, 1)))
    assert comparisons(found, ("Identity",)) == []
    assert {row.label: row.why for row in found.missing.itertuples()} == {
        "Identity": "without seed 1",
        "ToMe": "without seed 0",
    }


def test_one_model_scored_under_several_seeds_has_those_as_repeats(tmp_path: Path) -> None:
    runs = [scored("Random", "Identity", (seed, 7), score=0.3 + seed / 10) for seed in range(3)]
    found = _study(tmp_path, *runs)
    assert list(found.scores["seed"]) == ["0", "1", "2"]
    assert found.settings == ["VQA, shapes val, off the shelf"]


def test_training_twice_from_two_pretrainings_is_no_repeated_run(tmp_path: Path) -> None:
    runs = [scored("ToMe", seeds=(0, 0, before), score=0.4 + before / 5) for before in (0, 1)]
    found = _study(tmp_path, *runs)
    assert list(found.cells["seeds"]) == [2]
    assert found.notes[:-1] == ()
    assert list(found.scores["seed"]) == ["0", "1"]
    more = _study(tmp_path, *runs, scored("ToMe", seeds=(0, 1, 0)))
    assert list(more.scores["seed"]) == ["0/0", "0/1", "1/0"]


def test_where_several_models_are_scored_several_times_it_is_said(tmp_path: Path) -> None:
    runs = [scored("Random", "Identity", (own, made)) for own in (0, 1) for made in (0, 1)]
    assert any("so runs share models" in note for note in _study(tmp_path, *runs).notes)


def test_several_versions_of_the_code_are_said(tmp_path: Path) -> None:
    one, two = record("Identity"), record("ToMe")
    found = _study(tmp_path, one, replace(two, code=replace(two.code, dirty=True)))
    assert "VQA, shapes val: runs were made by 2 versions of the code." in found.notes


def test_best_and_last_are_not_averaged(tmp_path: Path) -> None:
    best, last = scored(seeds=(0, 0)), scored(seeds=(0, 1), kept="last")
    found = _study(tmp_path, best, last)
    assert list(found.cells["seeds"]) == [1, 1]
    assert "differ in which checkpoint was scored (best, last)" in found.notes[0]
    both = study(load([tmp_path]), ("kept",))
    assert len(both.settings) == 1


def test_off_the_shelf_is_what_was_trained_without_reduction_only(tmp_path: Path) -> None:
    found = _study(
        tmp_path,
        scored("Identity", "ToMe", score=0.2),
        scored("ToMe", "Identity", score=0.4),
        scored("Random", "ToMe", score=0.1),
        scored("Identity", "Identity", score=0.8),
    )
    by_setting = {name: set(rows["label"]) for name, rows in found.cells.groupby("setting")}
    assert by_setting == {
        "VQA, shapes val": {"Identity"},
        "VQA, shapes val, off the shelf": {"Identity", "ToMe"},
        "VQA, shapes val, trained with ToMe 0.7": {"Identity", "Random"},
    }
    shares = found.scores.set_index(["setting", "label"])["share"]
    assert shares["VQA, shapes val, off the shelf", "ToMe"] == pytest.approx(0.5)
    assert shares["VQA, shapes val, trained with ToMe 0.7", "Random"] == pytest.approx(0.5)


def test_where_no_reduction_is_not_alike_it_is_said_why(tmp_path: Path) -> None:
    shelf = scored("ToMe", "Identity")
    assert shelf.origin is not None
    other = changed(replace(record(), config=shelf.origin.config), trainer__max_steps=20).config
    found = _study(
        tmp_path, scored("Identity"), replace(shelf, origin=replace(shelf.origin, config=other))
    )
    assert found.notes[0] == (
        "VQA, shapes val, off the shelf: without shares, since no run without reduction is like "
        "these; the first one differs in trainer.max_steps in training (9, 20)."
    )


def test_how_weights_were_pretrained_names_the_setting(tmp_path: Path) -> None:
    found = _study(
        tmp_path,
        scored("ToMe", seeds=(0, 0, 0)),
        scored("Random", seeds=(0, 0, 0), pretrained="Identity", score=0.4),
        scored("EViT", seeds=(0, 0, 0), pretrained="ToMe"),
        scored("Identity", seeds=(0, 0, 0), score=0.8),
    )
    by_setting = {name: set(rows["label"]) for name, rows in found.cells.groupby("setting")}
    assert by_setting == {
        "VQA, shapes val": {"Identity", "ToMe"},
        "VQA, shapes val, pretrained without reduction": {"Identity", "Random"},
        "VQA, shapes val, pretrained with ToMe 0.7": {"EViT"},
    }
    shares = found.scores[found.scores["label"] == "Random"]["share"]
    assert list(shares) == pytest.approx([0.5])


def test_no_reduction_has_one_name(tmp_path: Path) -> None:
    by_class = scored("Identity")
    assert by_class.origin is not None
    named, schedule = {"class_path": "reducers.identity.Identity"}, {"keep_ratio": 0.5}
    none = changed(by_class, model__reducer=None, model__schedule=schedule)
    made = changed(replace(record(), config=by_class.origin.config), model__reducer=named)
    none = replace(none, origin=replace(by_class.origin, config=made.config))
    for number, one in enumerate((by_class, none)):
        write_record(one, tmp_path / str(number))
    one, two = load([tmp_path]).lineages
    assert one == two
    assert one.mode == "trained"


def test_options_of_training_do_not_split_what_is_scored(tmp_path: Path) -> None:
    runs = [
        changed(scored(name), data__batch_size=size, trainer__max_steps=size,
                model__optimization={"learning_rate": size})
        for name, size in (("Identity", 4), ("ToMe", 8))
    ]  # fmt: skip
    assert _study(tmp_path, *runs).settings == ["VQA, shapes val"]


def test_a_validation_by_its_own_command_stands_for_its_fit(tmp_path: Path) -> None:
    fits = [replace(record(name), inputs={"train_data": "t", "val_data": "v"}, processes=1)
            for name in ("Identity", "ToMe")]  # fmt: skip
    own = replace(fits[1], subcommand="validate", inputs={"val_data": "v"}, parent="x/best.ckpt",
                  origin=Origin(fits[1].config, fits[1].inputs, kept="best"))  # fmt: skip
    found = _study(tmp_path, *fits, replace(own, evaluations=record("ToMe", score=0.1).evaluations))
    assert found.settings == ["VQA, shapes val"]
    assert found.notes[:-1] == ()
    assert found.cells.set_index("label")["score"]["ToMe"] == 0.1


def test_code_of_a_method_is_part_of_the_method(tmp_path: Path) -> None:
    mine = changed(record("Mine"), model__reducer={"class_path": "my.Mine", "init_args": {}})
    found = _study(tmp_path, record("Identity"), replace(mine, inputs={"code of Mine": "1"}))
    assert found.settings == ["VQA, shapes val"]
    other = replace(mine, seed=1, inputs={"code of Mine": "2"})
    apart = _study(tmp_path, record("Identity"), replace(mine, inputs={"code of Mine": "1"}), other)
    assert len(apart.settings) == 1
    assert "the content of code of Mine" in apart.notes[0]


def test_inputs_and_options_that_may_differ_are_told_apart_and_known(tmp_path: Path) -> None:
    one, two = record("Identity"), record("ToMe")
    write_record(replace(one, inputs={"data": "1"}), tmp_path / "0")
    more = {"data": "2"}
    write_record(changed(replace(two, inputs=more), data__eval_transform="other"), tmp_path / "1")
    runs = load([tmp_path])
    assert len(study(runs, ("data",)).settings) == 2  # the option differs still
    assert len(study(runs, ("data", "data.eval_transform")).settings) == 1
    with pytest.raises(ValueError, match=r"'daat' that may differ. Near it: data"):
        study(runs, ("daat",))


def test_records_from_before_and_after_can_be_compared(tmp_path: Path) -> None:
    new = replace(record("ToMe"), processes=1, inputs={"data": "1", "tokenizer": "2"})
    found = _study(tmp_path, record("Identity"), new)
    assert len(found.settings) == 2
    assert "the content of data (not recorded in some)" in found.notes[0]
    assert len(study(load([tmp_path]), ("inputs", "processes")).settings) == 1


def test_where_runs_saw_other_numbers_it_is_said(tmp_path: Path) -> None:
    one, two = record("Identity"), record("ToMe")
    (split,) = two.evaluations
    two = replace(
        two, evaluations=(replace(split, examples=998),), training=Training(90, 1.0, 9.0, 9.0)
    )
    found = _study(tmp_path, one, two)
    assert found.notes[:2] == (
        "VQA, shapes val: runs were scored on 998 to 1000 examples.",
        "VQA, shapes val: runs were trained for 90 to 100 steps.",
    )


def test_a_tested_run_does_not_hide_one_that_was_not(tmp_path: Path) -> None:
    for number, rate in enumerate((0.1, 0.2)):
        one = changed(record("ToMe"), model__optimization__learning_rate=rate)
        write_record(one, tmp_path / str(number))
    checkpoint = str(tmp_path / "0" / "checkpoints" / "best.ckpt")
    (validation,) = one.evaluations
    test = replace(one, subcommand="test", parent=checkpoint,
                   evaluations=(replace(validation, split="test"),))  # fmt: skip
    write_record(test, tmp_path / "0" / "test")
    found = study(load([tmp_path]))
    assert len([name for name in found.settings if " val" in name]) == 2
    assert not any("all of these runs were tested" in note for note in found.notes)


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


def test_what_chose_the_weights_is_no_result_once_all_runs_are_tested(tmp_path: Path) -> None:
    for number, name in enumerate(("Identity", "ToMe")):
        one = record(name)
        write_record(one, tmp_path / str(number))
        (validation,) = one.evaluations
        test = replace(
            one,
            subcommand="test",
            parent=str(tmp_path / str(number) / "checkpoints" / "best.ckpt"),
            evaluations=(replace(validation, split="test"),),
        )
        assert set(study(load([tmp_path])).settings) >= {"VQA, shapes val"}
        write_record(test, tmp_path / str(number) / "test")
    found = study(load([tmp_path]))
    assert list(found.settings) == ["VQA, shapes test"]
    assert "2 validation scores" in found.notes[0]


def test_pareto() -> None:
    cost = pd.Series([1.0, 2.0, 2.0, 3.0, 4.0, np.nan])
    score = pd.Series([0.5, 0.6, 0.7, 0.65, 0.7, 0.9])
    assert list(pareto(cost, score)) == [True, False, True, False, False, False]


def test_areas_over_the_range_that_all_curves_span(tmp_path: Path) -> None:
    write_study(tmp_path, ("Identity", "ToMe", "EViT"), (0.9, 0.5), seeds=3, tasks=("VQA",))
    found = study(load([tmp_path]))
    (low, high), by_label, unit = areas(found, found.settings[0])
    assert unit == "seeds"
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


def _examples(*scores: float) -> np.ndarray:
    """One example an image, numbered from 10."""
    return np.array([[10 + i, 10 + i, score] for i, score in enumerate(scores)])


def test_comparisons_by_example_need_one_seed_only(tmp_path: Path) -> None:
    hits = {"Random": (0, 0, 1, 0, 1, 0), "ToMe": (1, 1, 1, 1, 0, 1)}
    for name, scores in hits.items():
        write_record(record(name, 0.5, score=float(np.mean(scores))), tmp_path / name)
        write_examples(tmp_path / name, {"val": _examples(*scores)})
    found = study(load([tmp_path]))
    (each,) = comparisons(found, ("Random",), unit="examples")
    assert (each.a, each.b, each.pairs) == ("ToMe", "Random", 6)
    assert each.difference == pytest.approx(3 / 6)
    gaps = np.subtract(hits["ToMe"], hits["Random"])
    half = stats.t.ppf(0.975, 5 - 1) * gaps.std(ddof=1) / 6**0.5  # five of six differ
    assert each.low == pytest.approx(3 / 6 - half)
    assert comparisons(found, ("Random",))[0].verdict == "too few pairs"


def test_examples_are_paired_by_number_and_averaged_over_seeds(tmp_path: Path) -> None:
    rows = {
        ("Random", 0): _examples(0, 0, 1, 1),
        ("Random", 1): _examples(1, 0, 1, 0),
        ("ToMe", 0): _examples(1, 1, 1, 0)[::1],
        ("ToMe", 1): _examples(9, 1, 1, 1)[1:],  # lacks the first example
    }
    for (name, seed), values in rows.items():
        place = tmp_path / f"{name}{seed}"
        write_record(record(name, 0.5, seed, score=0.5), place)
        write_examples(place, {"val": values})
    (each,) = comparisons(study(load([tmp_path])), ("Random",), unit="examples")
    assert each.pairs == 3
    assert each.difference == pytest.approx(((1 + 1) / 2 - 0 + 1 - 1 + 0.5 - 0.5) / 3)


def test_over_all_settings_both_units_average_the_settings(tmp_path: Path) -> None:
    write_study(tmp_path, ("Random", "ToMe"), (0.5,), 3, ("VQA", "Retrieval"))
    found = study(load([tmp_path]))
    for unit in ("seeds", "examples"):
        rows = comparisons(found, ("Random",), unit=unit)
        whole = [each for each in rows if each.where[0] == "all 2 settings"]
        parts = [each.difference for each in rows if each.where[0] != "all 2 settings"]
        assert len(whole) == 1
        assert len(parts) == 2
        assert whole[0].difference == pytest.approx(np.mean(parts))
        assert whole[0].low is not None


def test_an_area_of_one_seed_has_its_interval_over_the_examples(tmp_path: Path) -> None:
    write_study(tmp_path, ("Identity", "ToMe"), (0.9, 0.5), seeds=1, tasks=("VQA",))
    found = study(load([tmp_path]))
    span, by_label, unit = areas(found, found.settings[0])
    curve = found.scores.sort_values("gflops_total")
    want = curve_area(list(curve["gflops_total"]), list(curve["score"]), *span)
    assert unit == "examples"
    assert by_label["ToMe"].value == pytest.approx(want)
    assert by_label["ToMe"].count == 100
    assert by_label["ToMe"].low is not None


def test_a_share_is_of_the_same_seeds_score(tmp_path: Path) -> None:
    scores = {("Identity", 0): 0.8, ("Identity", 1): 0.4, ("ToMe", 0): 0.6, ("ToMe", 1): 0.2}
    records = [record(name, 0.5, seed, score=score) for (name, seed), score in scores.items()]
    found = _study(tmp_path, *records, record("ToMe", 0.5, 2, score=0.3)).scores
    shares = found[found["label"] == "ToMe"].set_index("seed")["share"]
    # Seed 2 has no run without reduction: the mean of the others stands in.
    assert list(shares) == pytest.approx([0.75, 0.5, 0.5])
