"""Folders of runs to one table: what is read, what is counted, how methods are named."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.load import load, training_curves
from analysis.pack import main as pack
from elip.examples import EXAMPLES_NAME, write_examples
from elip.old_record import COLUMNS, Earlier, Origin, Record, Speed, Training, write_record
from tests.analysis.synthetic import failed, record, write_study


def test_every_record_is_a_row_and_unreadable_ones_are_named(tmp_path: Path) -> None:
    count = write_study(tmp_path, ("Identity", "ToMe"), (0.7, 0.5), seeds=2, tasks=("VQA",))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text('{"schema": 1, "na')
    runs = load([tmp_path])
    assert len(runs.table) == len(runs.records) == count == 6
    assert set(COLUMNS) <= set(runs.table.columns)
    assert [Path(each.path).parent.name for each in runs.broken] == ["torn"]
    assert "half written" in runs.broken[0].message


def test_one_record_found_through_two_folders_counts_once(tmp_path: Path) -> None:
    write_record(record(), tmp_path / "a" / "run")
    assert len(load([tmp_path, tmp_path / "a"]).records) == 1


def test_examples_are_read_and_damaged_ones_named(tmp_path: Path) -> None:
    for name in ("good", "none", "torn"):
        write_record(record(), tmp_path / name)
    write_examples(tmp_path / "good", {"val": np.array([[4, 7, 1.0]]), "test": np.eye(3)[::-1]})
    (tmp_path / "torn" / EXAMPLES_NAME).write_bytes(b"PAR1")
    runs = load([tmp_path])
    good, none, torn = runs.outcomes
    assert set(good) == {"val", "test"}
    assert (none, torn) == ({}, {})
    assert good["val"].names.images.tolist() == [4]
    assert good["val"].names.examples.tolist() == [7]
    assert good["val"].scores.tolist() == [1.0]
    assert [Path(each.path).name for each in runs.broken] == [EXAMPLES_NAME]


def test_tables_of_something_else_are_named(tmp_path: Path) -> None:
    write_record(record(), tmp_path)
    pq.write_table(pa.table({"folder": ["a"]}), tmp_path / EXAMPLES_NAME)
    shutil.copy(tmp_path / EXAMPLES_NAME, tmp_path / "table.parquet")
    runs = load([tmp_path, tmp_path / "table.parquet"])
    assert len(runs.records) == 1
    assert ["it lacks" in one.message for one in runs.broken] == [True, True]


def test_weights_of_unknown_origin_are_named(tmp_path: Path) -> None:
    one = replace(record("ToMe"), subcommand="test", parent="models/vqa.safetensors")
    write_record(one, tmp_path)
    assert list(load([tmp_path]).table["mode"]) == ["from vqa.safetensors"]


def test_weights_files_count_by_content_and_else_by_their_whole_path(tmp_path: Path) -> None:
    def setups(**inputs: list[str]) -> int:
        for number, folder in enumerate(("a", "b")):
            given = {name: each[number] for name, each in inputs.items()}
            weights = f"/{folder}/vqa.safetensors"
            one = replace(record("ToMe", seed=number), subcommand="test", parent=weights)
            write_record(replace(one, inputs=given), tmp_path / str(number))
        return int(load([tmp_path]).table["setup"].nunique())

    assert setups() == 2
    assert setups(ckpt_path=["1", "2"]) == 2
    assert setups(ckpt_path=["1", "1"]) == 1


def test_a_record_says_itself_how_its_weights_were_made(tmp_path: Path) -> None:
    def of(trained: str, length: int, seed: int) -> Record:
        fit = record(trained, seed=seed)
        origin = Origin({**fit.config, "trainer": {"max_steps": length}}, {"data": "a"})
        inputs = {"ckpt_path": f"{trained} {length} {seed}", "data": "b"}
        return replace(
            record("ToMe", seed=seed), subcommand="test", origin=origin, inputs=inputs,
            parent=f"gone/elip_0.7/{seed}",
        )  # fmt: skip

    cases = [("ToMe", 100), ("ToMe", 200), ("Identity", 100)]
    for trained, length in cases:
        for seed in (0, 1):
            write_record(of(trained, length, seed), tmp_path / f"{trained}{length}{seed}")
    table = load([tmp_path]).table
    assert table["setup"].nunique() == len(cases)
    assert table.groupby("setup").size().tolist() == [2, 2, 2]
    shelf = table["folder"].str.contains("Identity")
    assert set(table.loc[shelf, "mode"]) == {"off the shelf"}
    assert set(table.loc[~shelf, "mode"]) == {"trained"}


def test_runs_of_one_name_in_two_places_keep_their_own_parents(tmp_path: Path) -> None:
    for place, steps in (("a", 100), ("b", 200)):
        run = tmp_path / place / "runs" / "x"
        fit = replace(record("ToMe"), training=Training(steps, 1.0, 1.0, 1.0))
        write_record(fit, run)
        bare = replace(fit, subcommand="test", training=None)
        write_record(replace(bare, parent=str(run / "checkpoints" / "best.ckpt")), run / "here")
        write_record(replace(bare, parent="/moved/runs/x/checkpoints/best.ckpt"), run / "moved")
    both = load([tmp_path / "a", tmp_path / "b"]).table
    for place, steps in (("/a/", 100), ("/b/", 200)):
        mine = both[both["folder"].str.contains(place)]
        assert set(mine["train_steps"]) == {steps}
        assert set(mine["mode"]) == {"trained"}
    # Two of that name and nothing that tells them apart.
    whole = load([tmp_path]).table.set_index("folder")["mode"]
    assert whole[str(tmp_path / "a" / "runs" / "x" / "moved")] == "from x"


def test_a_run_that_made_other_weights_is_no_parent(tmp_path: Path) -> None:
    fit = record("ToMe")
    fit = replace(fit, config={**fit.config, "trainer": {"max_steps": 5}})
    write_record(fit, tmp_path / "fit")
    checkpoint = str(tmp_path / "fit" / "checkpoints" / "best.ckpt")
    bare = replace(fit, subcommand="test", training=None, parent=checkpoint)
    longer = {**fit.config, "trainer": {"max_steps": 9}}
    other = {**fit.config, "trainer": {"gradient_clip_val": 1.0}}
    for name, config in (("own", fit.config), ("longer", longer), ("other", other)):
        write_record(replace(bare, origin=Origin(config)), tmp_path / name)
    table, parents = (runs := load([tmp_path])).table, runs.parents
    rows = {Path(folder).name: row for row, folder in enumerate(table["folder"])}
    assert parents[rows["own"]] == parents[rows["longer"]] == rows["fit"]
    assert parents[rows["other"]] == tmp_path / "fit"
    # What it took to train the weights is not known any more once the run was lengthened.
    assert table["train_steps"][rows["own"]] == 100
    assert table["train_steps"][[rows["longer"], rows["other"]]].isna().all()


def test_a_lengthened_run_is_a_setting_of_its_own(tmp_path: Path) -> None:
    one = record("ToMe")
    part = Earlier(50, {"trainer.max_steps": 50})
    write_record(one, tmp_path / "a")
    write_record(replace(one, earlier=(part,)), tmp_path / "b")
    assert load([tmp_path]).table["setup"].nunique() == 2


def test_runs_that_were_moved_together_still_find_their_parents(tmp_path: Path) -> None:
    write_record(record("ToMe"), tmp_path / "grid" / "fit" / "one")
    parent = "/elsewhere/runs/grid/fit/one/checkpoints/best.ckpt"
    test = replace(record("ToMe"), subcommand="test", parent=parent)
    write_record(test, tmp_path / "grid" / "test" / "one")
    assert list(load([tmp_path]).table["mode"]) == ["trained", "trained"]


def test_how_weights_were_made_tells_runs_apart_and_which_seed_does_not(tmp_path: Path) -> None:
    for steps in (500, 1000):
        for seed in (0, 1):
            made = record("ToMe", seed=seed)
            trainer = {"trainer": {"max_steps": steps, "accelerator": ("cpu", "gpu")[seed]}}
            place = tmp_path / f"fit-{steps}" / str(seed)
            write_record(replace(made, config={**made.config, **trainer}), place)
            checkpoint = str(place / "checkpoints" / "best.ckpt")
            write_record(replace(made, subcommand="test", parent=checkpoint), place / "test")
    table = load([tmp_path]).table
    table["steps"] = table["folder"].str.extract(r"fit-(\d+)")
    for command in ("fit", "test"):
        mine = table[table["subcommand"] == command]
        assert mine.groupby("steps")["setup"].nunique().tolist() == [1, 1]
        assert mine["setup"].nunique() == 2


def test_processes_count_by_their_number_where_the_machine_decided_it(tmp_path: Path) -> None:
    made = record("ToMe")
    auto = {**made.config, "trainer": {"devices": "auto"}}
    for processes in (1, 8):
        write_record(replace(made, config=auto, processes=processes), tmp_path / str(processes))
    assert load([tmp_path]).table["setup"].nunique() == 2


@pytest.mark.parametrize(("effective", "settings"), [(None, 2), (64, 1)])
def test_processes_that_make_a_batch_larger_make_another_setting(
    tmp_path: Path, effective: int | None, settings: int
) -> None:
    for devices in (1, 8):
        made = record("ToMe")
        batch = {"trainer": {"devices": devices}, "effective_batch_size": effective}
        place = tmp_path / str(devices)
        write_record(replace(made, subcommand="fit", config={**made.config, **batch}), place)
    assert load([tmp_path]).table["setup"].nunique() == settings


def test_packed_runs_still_find_their_parents(tmp_path: Path) -> None:
    write_record(record("ToMe"), tmp_path / "runs" / "one")
    parent = str(tmp_path / "runs" / "one" / "checkpoints" / "best.ckpt")
    test = replace(record("ToMe"), subcommand="test", parent=parent)
    write_record(test, tmp_path / "runs" / "one" / "test")
    assert pack([str(tmp_path / "runs"), "--out", str(tmp_path / "study.parquet")]) == 0
    assert list(load([tmp_path / "study.parquet"]).table["mode"]) == ["trained", "trained"]


def test_latency_is_a_share_of_no_reduction_in_the_same_run(tmp_path: Path) -> None:
    fast, slow = Speed(8, 30.0, latency_identity_ms=60.0), Speed(8, 90.0, latency_identity_ms=180.0)
    small = Speed(8, 40.0, latency_identity_ms=40.0)
    write_record(replace(record("ToMe"), speed=fast), tmp_path / "a")
    write_record(replace(record("ToMe", seed=1), speed=slow), tmp_path / "b")
    write_record(replace(record("Identity", patches=36), speed=small), tmp_path / "c")
    shares = load([tmp_path]).table["latency_share"]
    # A smaller image has no larger one beside it in its run: the median of the others stands in.
    assert list(shares) == pytest.approx([0.5, 0.5, 40 / 120])


def test_a_packed_study_reads_as_the_folders_do(tmp_path: Path) -> None:
    write_study(tmp_path / "runs", ("Identity", "ToMe"), (0.5,), 2, ("VQA",))
    write_record(record("EViT"), tmp_path / "runs" / "bare")  # left no examples
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "run.json").write_text("{")
    file = tmp_path / "study.parquet"
    assert pack([str(tmp_path / "runs"), "--out", str(file)]) == 0
    folders, packed = load([tmp_path / "runs"]), load([file])
    assert packed.records == folders.records
    assert len(packed.records) == 5
    assert [each.path for each in packed.broken] == [f"{file}: runs/torn"]
    for one, two in zip(packed.outcomes, folders.outcomes, strict=True):
        assert one.keys() == two.keys()
        for split, outcome in one.items():
            assert outcome.scores.tolist() == two[split].scores.tolist()
            assert outcome.names.images.tolist() == two[split].names.images.tolist()


def test_what_cannot_be_packed_or_unpacked_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack([str(tmp_path), "--out", str(tmp_path / "study.parquet")]) == 2
    assert "No run.json below" in capsys.readouterr().err
    file = tmp_path / "other.parquet"
    file.write_bytes(b"PAR1")
    assert "holds no packed runs" in load([file]).broken[0].message


def test_no_folder_and_no_record_are_errors_that_say_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        load([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match="A run writes it when it ends"):
        load([tmp_path])


def test_methods_are_named_with_the_options_they_differ_in(tmp_path: Path) -> None:
    deep = replace(record(), reducer_options={"mix": 0.8, "probe_depth": None})
    flat = replace(record(seed=1), reducer_options={"mix": 0.8, "probe_depth": 1})
    for number, one in enumerate((deep, flat, record("ToMe"))):
        write_record(one, tmp_path / str(number))
    labels = list(load([tmp_path]).table["label"])
    assert labels == ["ELIP (probe_depth=none)", "ELIP (probe_depth=1)", "ToMe"]


def test_seeds_of_an_adaptive_method_stand_under_one_measured_ratio(tmp_path: Path) -> None:
    for seed, measured in ((0, 0.376), (1, 0.385)):
        one = record("ATS", seed=seed)
        assert one.tokens is not None
        tokens = replace(one.tokens, keep_ratio_asked=None, keep_ratio=measured)
        write_record(replace(one, tokens=tokens), tmp_path / str(seed))
    assert list(load([tmp_path]).table["keep"]) == [0.38, 0.38]


def test_only_scored_runs_make_an_image_a_smaller_one(tmp_path: Path) -> None:
    write_record(record("Identity"), tmp_path / "a")
    write_record(record("ToMe"), tmp_path / "b")
    write_record(failed(record("ToMe", patches=400)), tmp_path / "failed")
    write_record(replace(record("Identity", patches=400), subcommand="predict"), tmp_path / "p")
    labels = load([tmp_path]).table.set_index("folder")["label"]
    assert labels[str(tmp_path / "a")] == "Identity"
    # Two whole studies, each at its size.
    write_record(record("Identity", patches=400), tmp_path / "large")
    assert labels[str(tmp_path / "a")] == "Identity"


def test_a_smaller_image_is_a_method_of_its_own(tmp_path: Path) -> None:
    write_record(record("Identity"), tmp_path / "a")
    write_record(record("Identity", patches=36), tmp_path / "b")
    table = load([tmp_path]).table
    assert list(table["label"]) == ["Identity", "Smaller image"]
    assert list(table["keep"]) == [1.0, 0.25]


def test_a_scored_run_takes_the_cost_of_training_from_its_parent(tmp_path: Path) -> None:
    fit = record("ToMe")
    write_record(fit, tmp_path / "fit")
    checkpoint = str(tmp_path / "fit" / "checkpoints" / "best.ckpt")
    bare = replace(fit, subcommand="test", training=None, parent=checkpoint)
    test = replace(bare, gflops=replace(fit.gflops, training_step=None))
    write_record(test, tmp_path / "test")
    other = record("EViT").config
    write_record(replace(test, reducer="EViT", config=other), tmp_path / "other")
    table = load([tmp_path]).table.set_index("folder")
    own, other = table.loc[str(tmp_path / "test")], table.loc[str(tmp_path / "other")]
    assert own["gflops_training_step"] == fit.gflops.training_step
    assert own["mode"] == "trained"
    assert other.isna()["gflops_training_step"]
    assert other["mode"] == "trained with ToMe 0.7"


def test_a_log_holds_up_to_where_the_next_one_begins(tmp_path: Path) -> None:
    write_record(record(), tmp_path)
    (tmp_path / "metrics-1.csv").write_text("step,val/main\n9,0.1\n19,0.2\n29,0.9\n39,0.9\n")
    (tmp_path / "metrics.csv").write_text("step,val/main\n20,\n24,0.3\n")
    assert list(training_curves(load([tmp_path]))["step"]) == [9, 19, 24]


def test_curves_join_logs_that_were_set_aside(tmp_path: Path) -> None:
    write_record(record(), tmp_path)
    (tmp_path / "metrics-1.csv").write_text("epoch,step,val/main\n0,9,0.1\n0,19,0.2\n0,29,\n")
    (tmp_path / "metrics.csv").write_text("epoch,step,val/main\n0,19,0.3\n0,29,0.4\n")
    curve = training_curves(load([tmp_path]))
    assert list(curve["step"]) == [9, 19, 29]
    assert list(curve["score"]) == [0.1, 0.3, 0.4]


@pytest.mark.parametrize("text", [b"step,val/main\n9,0.1\nx,0.2\n", b"step,val/main\n9,\xff\n"])
def test_a_damaged_log_is_named_and_the_others_count(tmp_path: Path, text: bytes) -> None:
    write_record(record(), tmp_path)
    (tmp_path / "metrics-1.csv").write_bytes(text)
    (tmp_path / "metrics.csv").write_text("epoch,step,val/main\n0,19,0.3\n")
    runs = load([tmp_path])
    assert [one.path for one in runs.broken] == [str(tmp_path / "metrics-1.csv")]
    assert "metrics-1.csv is no log of scores" in runs.broken[0].message
    assert list(training_curves(runs)["step"]) == [19]


def test_a_failed_run_is_a_row(tmp_path: Path) -> None:
    write_record(failed(record()), tmp_path)
    assert list(load([tmp_path]).table["status"]) == ["failed"]


def test_analysis_imports_no_torch() -> None:
    code = (
        "import pkgutil, sys, importlib, analysis\n"
        "for module in pkgutil.iter_modules(analysis.__path__):\n"
        "    if module.name != '__main__': importlib.import_module('analysis.' + module.name)\n"
        "import analysis.__main__\n"
        "heavy = {'torch', 'lightning', 'transformers', 'reducers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
