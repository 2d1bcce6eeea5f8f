"""The command line: choosing, layering, refusing, running, resuming, and scoring honestly."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW

from elip.checkpoints import CheckpointError
from elip.cost import cached
from elip.data.datamodule import DataModule
from elip.data.dataset import Examples
from elip.data.datasets.base import DataError
from elip.examples import read_examples
from elip.old_record import Earlier, Origin, Record, origin_as_json, read_record, write_record
from elip.training.checkpoints import check_goes_on, check_same_model, earlier_parts
from elip.training.cli import main
from elip.training.directory import claim, not_ended
from elip.training.module import MeterModule
from elip.training.predictions import Predictions
from elip.training.rows import ROWS_NAME
from reducers.contract import Reducer
from reducers.random import Random
from tests.training.test_configs import Parsed

ROOT = Path(__file__).parents[2]
ELIP_YAML = str(ROOT / "experiments" / "elip_0.7.yaml")

# The trainer's own remarks about a laptop are no failure of ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
]


ACCUMULATED = ["--effective_batch_size=8", "--data.train_limit=24"]
ONE_EPOCH = ["--trainer.max_epochs=1", "--trainer.val_check_interval=5"]


FOLDERS = ("whole", "cut")


class Halving(Random):
    """A reducer of somebody else's, chosen by import path."""


def few(root: Path, data: Path, steps: int = 4) -> list[str]:
    return [
        f"--data.root={data}",
        "--data.batch_size=4",
        "--data.eval_batch_size=8",
        "--data.train_limit=20",
        "--data.eval_limit=16",
        f"--trainer.max_steps={steps}",
        "--trainer.val_check_interval=2",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={root}",
    ]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def fit(root: Path, data: Path, *more: str, steps: int = 4) -> Record:
    main(["fit", "--config", ELIP_YAML, *few(root, data, steps), *more])
    return read_record(root)


def parse(*args: str) -> Any:
    return Parsed(["fit", "--config", ELIP_YAML, *args]).config.fit


def test_files_and_options_layer(tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("data:\n  batch_size: 7\ntrainer:\n  max_steps: 9\n")
    config = parse("--config", str(over), "--trainer.max_steps=3")
    assert config.data.batch_size == 7
    assert config.trainer.max_steps == 3
    assert config.data.image_size == 64
    assert config.model.reducer.class_path == "reducers.elip.ELIP"


def test_a_reducer_is_chosen_by_name_or_import_path() -> None:
    assert parse("--model.reducer=Random").model.reducer.class_path == "reducers.random.Random"
    path = f"{__name__}.Halving"
    assert parse(f"--model.reducer={path}").model.reducer.class_path == path


@pytest.mark.parametrize(
    ("option", "hints"),
    [
        ("--model.reducer=ELPI", ["ELPI", "ELIP", "Random"]),
        ("--model.task=Pretrainin", ["Pretrainin", "Pretraining"]),
        ("--model.reducer.mixx=0.5", ["mixx", "mix"]),
        ("--model.schedule.keep_ratios=0.5", ["model.schedule.keep_ratio"]),
        ("--trainer.max_stepz=3", ["trainer.max_steps"]),
        ("--model.meter.preset=tinny", ["tiny", "clip16_roberta"]),
        ("--model.meter.image_size=65", ["65", "patch_size 8"]),
    ],
)
def test_mistakes_get_one_message(
    option: str, hints: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(option)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert len(message.splitlines()) < 12
    for hint in hints:
        assert hint in message


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--data.datasets=shaps", "shapes"),
        ("--model.schedule.keep_ratio=1.5", "at most 1"),
        ("--model.schedule.layers=[2,40]", "from 0 to 4"),
        ("--model.meter.text_width=128", "widths must be equal"),
        ("--model.reducer.mix=3", "between 0 and 1"),
    ],
)
def test_what_does_not_fit_is_a_message_before_training(
    option: str, hint: str, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", ELIP_YAML, *few(tmp_path, data), option])
    assert stop.value.code == 2
    assert hint in capsys.readouterr().err


def test_fit_leaves_a_whole_record(tmp_path: Path, data: Path) -> None:
    record = fit(tmp_path / "run", data)
    assert record.status == "completed"
    assert record.reducer == "ELIP"
    assert record.main_metric == "itm_accuracy"
    (split,) = record.evaluations
    assert split.examples == 16
    assert split.chance["itm_accuracy"] == 0.5
    assert 0 <= split.metrics["itm_accuracy"] <= 1
    assert record.tokens is not None
    assert record.tokens.entering == (64, 56, 41, 41, 23, 23)
    parts = record.gflops.forward
    assert all(getattr(parts, name) > 0 for name in ("vision", "probe", "text", "fusion", "head"))
    assert parts.total < record.gflops_identity.forward.total
    assert record.gflops.training_step < record.gflops_identity.training_step
    assert record.gflops_identity.forward.probe == 0
    assert record.training is not None
    assert record.training.steps == 4
    assert record.training.epochs == 0.8  # of 5 batches
    assert record.config["model"]["schedule"]["keep_ratio"] == 0.7
    assert (tmp_path / "run" / "config.yaml").is_file()


@pytest.mark.parametrize("kind", [NotImplementedError, IndexError])
def test_a_whole_run_is_recorded_though_its_cost_cannot_be_told(
    kind: type[Exception], tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*given: Any, **named: Any) -> Any:
        kept = read_record(tmp_path / "run")
        assert kept.status == "interrupted"
        assert kept.evaluations
        raise kind("no formula for this operator")

    monkeypatch.setattr(cached, "count_forward", unknown)
    record = fit(tmp_path / "run", data, steps=2)
    assert record.status == "completed"
    assert record.evaluations
    assert record.gflops.forward.total is None
    assert record.speed is not None
    assert "No GFLOPs: no formula for this operator" in record.notes


def test_predictions_are_written_and_not_kept_by_the_trainer(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = Predictions.on_predict_end
    kept: list[bool] = []

    def spy(self: Predictions, trainer: Any, module: Any) -> None:
        kept.append(trainer.predict_loop.return_predictions)
        end(self, trainer, module)

    monkeypatch.setattr(Predictions, "on_predict_end", spy)
    main(["predict", "--config", ELIP_YAML, *few(tmp_path / "run", data)])
    assert kept == [False]
    assert len((tmp_path / "run" / "predict" / ROWS_NAME).read_text().splitlines()) == 16


def test_a_directory_takes_one_run_at_a_time(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elip.training.directory._PATIENCE", 0.0)
    held = claim(tmp_path / "run")
    assert held is not None
    with pytest.raises(SystemExit):
        fit(tmp_path / "run", data, steps=2)
    assert f"Another run is writing into {tmp_path / 'run'}" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()
    held.release()
    fit(tmp_path / "run", data, steps=2)


def test_a_second_run_does_not_touch_the_first(tmp_path: Path, data: Path) -> None:
    first = fit(tmp_path / "run", data, steps=2)
    fit(tmp_path / "run", data, "--seed_everything=1", steps=2)
    assert read_record(tmp_path / "run") == first
    assert read_record(tmp_path / "run-2").seed == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.reducer=Random"], "model.reducer.class_path was reducers.elip.ELIP, is"),
        (["--model.schedule.keep_ratio=0.5"], "model.schedule.keep_ratio was 0.7, is 0.5"),
        (["--data.batch_size=2", "--seed_everything=3"], "seed_everything was 0, is 3; data.batch"),
        (["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/main"],
         "trainer.callbacks was None, is"),
    ],
)  # fmt: skip
def test_a_run_goes_on_under_its_own_configuration_only(
    options: list[str], said: str, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken" / "checkpoints").mkdir(parents=True)
    (tmp_path / "taken" / "checkpoints" / "last.ckpt").touch()
    fit(tmp_path / "run", data, steps=2)
    checkpoint = f"--ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    with pytest.raises(SystemExit):  # in the place of another run
        fit(tmp_path / "taken", data, checkpoint)
    assert f"another run than the one in {tmp_path / 'taken'}" in capsys.readouterr().err
    files = {name: (tmp_path / "run" / name).read_bytes() for name in ("run.json", "config.yaml")}
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path / "run", data, checkpoint, *options)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    for name, content in files.items():
        assert (tmp_path / "run" / name).read_bytes() == content
    assert said in error
    assert "--model.weights in place of --ckpt_path" in error
    assert "'ckpt_path.'" not in error
    longer = fit(tmp_path / "longer", data, checkpoint, "--trainer.max_epochs=9", steps=4)
    assert longer.training is not None
    assert longer.training.steps == 4


def test_a_job_that_its_cluster_requeued_is_held_against_its_beginning(
    tmp_path: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit(tmp_path / "begun", data, steps=2)
    for name in ("same", "other"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "begun" / "metrics.csv", tmp_path / name)
        last = tmp_path / "begun" / "checkpoints" / "last.ckpt"
        shutil.copy(last, tmp_path / name / "hpc_ckpt_1.ckpt")  # where Lightning looks on SLURM
    for name, value in (("NTASKS", 1), ("PROCID", 0), ("LOCALID", 0), ("NODEID", 0), ("JOB_ID", 7)):
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    longer = fit(tmp_path / "same", data, steps=4)
    assert longer.training is not None
    assert longer.training.epochs == 0.8
    assert longer.earlier == (Earlier(2, {"trainer.max_steps": 2}),)
    assert {0, 1} < set(logged(tmp_path / "same", "train/loss"))
    with pytest.raises(SystemExit):
        fit(tmp_path / "other", data, "--model.schedule.keep_ratio=0.5", steps=4)
    assert "keep_ratio was 0.7, is 0.5" in capsys.readouterr().err


def checkpoint_of(origin: Origin, path: Path) -> Path:
    """Write a checkpoint without tensors that says how it was made."""
    recorder = {"origin": origin_as_json(origin)}
    torch.save({"callbacks": {"Recorder": recorder}, "global_step": 7, "state_dict": {}}, path)
    return path


def test_a_run_goes_on_with_as_many_processes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config: dict[str, Any] = {"trainer": {"max_steps": 3}}
    last = checkpoint_of(Origin(config, processes=2), tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="processes were 2, are 1"):
        check_goes_on(last, Origin(config))
    check_goes_on(last, Origin({"trainer": {"max_steps": 9}}, processes=2))
    assert not caplog.text
    torch.save({"state_dict": {}}, tmp_path / "older.ckpt")
    check_goes_on(tmp_path / "older.ckpt", Origin(config))
    assert "does not say its run's configuration" in caplog.text


def test_a_run_goes_on_with_the_files_it_had_wherever_they_lie(tmp_path: Path) -> None:
    config: dict[str, Any] = {"model": {"image_weights": "a.pt"}, "data": {"tokenizer": "t"}}
    moved: dict[str, Any] = {"model": {"image_weights": "/b/a.pt"}, "data": {"tokenizer": "u"}}
    inputs = {"model.image_weights": "1", "tokenizer": "2", "val_data": "3", "code of Mine": "4"}
    last = checkpoint_of(Origin(config, inputs), tmp_path / "last.ckpt")
    check_goes_on(last, Origin(moved, inputs))
    with pytest.raises(CheckpointError, match=r"image_weights was a.pt, is /b/a.pt; data.tokeniz"):
        check_goes_on(last, Origin(moved))
    changed = dict.fromkeys(inputs, "5")
    with pytest.raises(CheckpointError) as error:
        check_goes_on(last, Origin(moved, changed))
    assert (
        "configuration: the code of Mine has changed; the file of model.image_weights has "
        "changed; the tokenizer has changed; the val data has changed." in str(error.value)
    )


def test_a_lengthened_run_is_no_run_that_was_as_long_from_its_start(
    tmp_path: Path, data: Path
) -> None:
    short = fit(tmp_path / "run", data, steps=2)
    longer = fit(tmp_path / "run", data, "--ckpt_path=last", steps=4)
    longest = fit(tmp_path / "run", data, "--ckpt_path=last", steps=6)
    parts = (Earlier(2, {"trainer.max_steps": 2}), Earlier(4, {"trainer.max_steps": 4}))
    assert (short.earlier, longer.earlier, longest.earlier) == ((), parts[:1], parts)
    assert "Its first 2 steps were taken under trainer.max_steps 2." in longest.notes
    logs = (f"metrics{part}.csv" for part in ("-1", "-2", ""))
    rows = [row for name in logs for row in csv.DictReader((tmp_path / "run" / name).open())]
    assert [row["step"] for row in rows if row["train/loss"]] == list("012345")
    assert [row["step"] for row in rows if row["val/main"]] == ["1", "3", "5"]
    straight = fit(tmp_path / "straight", data, steps=4)
    here = {"trainer": {**straight.config["trainer"], "default_root_dir": None}}
    there = {"trainer": {**longer.config["trainer"], "default_root_dir": None}}
    assert here == there
    assert straight.earlier == ()
    assert straight.config_hash != longer.config_hash


def validations_score(patch: pytest.MonkeyPatch, *values: float) -> None:
    """Give the validations to come these scores."""
    scores, finish = iter(values), MeterModule._finish

    def scored_so(self: MeterModule, stage: str, prefix: str) -> None:
        if not self.trainer.sanity_checking:
            scored, main_metric = self._evaluators[0].compute, self.task.main_metric
            made = {main_metric: next(scores)}
            self._evaluators[0].compute = lambda meter: scored(meter) | made  # type: ignore[method-assign]
        finish(self, stage, prefix)

    patch.setattr(MeterModule, "_finish", scored_so)


def test_a_run_of_the_same_length_by_other_options_has_one_part(tmp_path: Path, data: Path) -> None:
    best = f"--ckpt_path={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}"
    fit(tmp_path / "run", data, steps=3)
    as_long = fit(tmp_path / "run", data, best, "--trainer.max_epochs=7", steps=3)
    shorter = fit(tmp_path / "shorter", data, best, "--trainer.max_epochs=1", steps=9)
    (part,) = shorter.earlier
    assert as_long.earlier == ()
    assert part == Earlier(2, {"trainer.max_steps": 3, "trainer.max_epochs": 1000})
    kept = torch.load(tmp_path / "shorter" / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["callbacks"]["Recorder"]["planned"] == 5


@pytest.fixture(scope="module")
def downhill(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Return a run of 4 steps whose best validation was its first."""
    root = tmp_path_factory.mktemp("downhill")
    with pytest.MonkeyPatch.context() as patch:
        validations_score(patch, 0.875, 0.5)
        fit(root, data, steps=4)
    return root


@pytest.mark.parametrize("way", ["moved", "anew", "anew after a kill", "without best"])
def test_best_checkpoint_and_scores_stay_together_where_a_run_moves(
    way: str,
    downhill: Path,
    tmp_path: Path,
    data: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if way == "moved":
        shutil.copytree(downhill, tmp_path / "run")
        checkpoint = "last"
    else:
        shutil.copytree(downhill, tmp_path / "old")
        checkpoint = str(tmp_path / "old")
        if way == "without best":
            (tmp_path / "old" / "checkpoints" / "best.ckpt").unlink()
        elif way == "anew after a kill":  # behind a validation, before its first last checkpoint
            (tmp_path / "run" / "checkpoints").mkdir(parents=True)
            last = downhill / "checkpoints" / "last.ckpt"
            shutil.copy(last, tmp_path / "run" / "checkpoints" / "best.ckpt")
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    record = fit(tmp_path / "run", data, f"--ckpt_path={checkpoint}", steps=6)
    main_metric = str(record.main_metric)
    kept = torch.load(best, weights_only=True)
    score = record.evaluations[0].metrics[main_metric]
    if way == "without best":
        assert kept["global_step"] == 6
        assert kept["callbacks"]["Recorder"]["best"] == score != 0.875
        assert "the best of the validations to come takes its place" in caplog.text
    else:
        assert kept["global_step"] == 2
        assert kept["callbacks"]["Recorder"]["best"] == score == 0.875


def test_a_best_checkpoint_of_lost_steps_is_dropped(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    validations_score(monkeypatch, 0.5, 0.875, 0.25, 0.25)
    fit(tmp_path / "run", data, steps=2)
    shutil.copy(folder / "last.ckpt", tmp_path)
    fit(tmp_path / "run", data, "--ckpt_path=last", steps=4)
    best = folder / "best.ckpt"
    assert torch.load(best, weights_only=True)["global_step"] == 4
    shutil.copy(tmp_path / "last.ckpt", folder)  # as if it had been killed before the next one
    assert fit(tmp_path / "run", data, "--ckpt_path=last", steps=3).evaluations == ()
    assert not best.exists()
    record = fit(tmp_path / "run", data, "--ckpt_path=last", steps=6)
    assert "or of steps that were lost; the best of the validations to come" in caplog.text
    assert record.evaluations[0].metrics[str(record.main_metric)] == 0.25
    kept = torch.load(best, weights_only=True)
    assert (kept["global_step"], kept["callbacks"]["Recorder"]["best"]) == (4, 0.25)


def test_a_best_checkpoint_that_was_none_yet_is_dropped(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, step = tmp_path / "run" / "checkpoints", MeterModule.training_step
    fit(tmp_path / "run", data, steps=1)
    shutil.copy(folder / "last.ckpt", tmp_path)
    fit(tmp_path / "run", data, "--ckpt_path=last", steps=2)
    shutil.copy(tmp_path / "last.ckpt", folder)
    there = []

    def looking(self: MeterModule, batch: Any, index: int) -> Any:
        there.append((folder / "best.ckpt").exists())
        return step(self, batch, index)

    monkeypatch.setattr(MeterModule, "training_step", looking)
    fit(tmp_path / "run", data, "--ckpt_path=last", steps=3)
    assert there == [False, True]  # before its validation, and behind it


def test_a_run_that_goes_on_as_it_was_has_one_part() -> None:
    began = Origin({"trainer": {"max_steps": 9, "max_epochs": None}})
    assert earlier_parts(began, 7, began) == ()
    longer = Origin({"trainer": {"max_steps": 9, "max_epochs": 3}})
    assert earlier_parts(began, 7, longer) == (Earlier(7, {"trainer.max_epochs": None}),)
    assert earlier_parts(began, 0, longer) == ()


HEADS = "model.meter.fusion_heads was 2, is 4; model.meter.pixels was clip, is imagenet"


@pytest.mark.parametrize("given", ["--ckpt_path=", "--model.weights="])
def test_weights_of_another_model_with_tensors_alike_are_refused(
    given: str, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path / "run", data, steps=2)
    changed = ["--model.meter.fusion_heads=4", "--model.meter.pixels=imagenet"]
    asked = [f"{given}{tmp_path / 'run'}", *few(tmp_path / "run", data)]
    with pytest.raises(SystemExit):
        main(["test", "--config", ELIP_YAML, *asked, *changed])
    assert HEADS in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["test", "--config", ELIP_YAML, *asked, "--model.meter.fusion_layers=1"])
    assert (
        "though its tensors fit: model.meter.fusion_layers was 2, is 1" in capsys.readouterr().err
    )
    main(["test", "--config", ELIP_YAML, *asked])
    record = read_record(tmp_path / "run" / "test")
    trained = read_record(tmp_path / "run")
    assert record.origin is not None
    assert record.origin.config == trained.config
    assert record.origin.inputs == trained.inputs
    assert (record.origin.steps, record.origin.kept) == (2, "best")


def test_what_shapes_do_not_tell_of_weights(tmp_path: Path) -> None:
    def of(task: str = "VQA", answers: str = "1", text: str = "2", **meter: Any) -> Origin:
        inputs = {"tokenizer": "0", "answers": answers, "val_data": "any"}
        inputs["model.meter.text_encoder"] = text
        return Origin({"model": {"task": {"class_path": task}, "meter": meter}}, inputs)

    def refused(own: Origin, whole: bool = True, scored: bool = False) -> str:
        with pytest.raises(CheckpointError) as error:
            check_same_model(path, own, whole, scored)
        return str(error.value)

    path = checkpoint_of(of(), tmp_path / "best.ckpt")
    check_same_model(path, of(dropout=0.5, max_text_len=9, image_size=32), whole=True)
    check_same_model(path, of(task="NLVR2", answers="2"), whole=False)
    for depth in ("image_blocks", "text_layers", "fusion_layers"):
        check_same_model(path, of(**{depth: 3}), whole=False)
        assert f"model.meter.{depth} was" in refused(of(**{depth: 3}), whole=False, scored=True)
    assert "model.task was VQA, is NLVR2" in refused(of(task="NLVR2"))
    assert "the answers changed" in refused(of(answers="2"), whole=False)
    assert "the file of model.meter.text_encoder changed" in refused(of(text="3"), whole=False)
    assert "text_heads was 2, is 4" in refused(of(text_heads=4))
    assert "image_heads was 2, is 4" in refused(of(image_heads=4))
    assert "image_encoder was vit, is other" in refused(of(image_encoder="other"))
    named = checkpoint_of(of(preset="clip16_roberta"), tmp_path / "named.ckpt")
    moved = of(preset="clip16_roberta", text_encoder="/models/roberta", text_heads=4, text_layers=3)
    check_same_model(named, moved, whole=True, scored=True)
    untagged = of(preset="clip16_roberta", image_encoder="vit_base_patch16_clip_quickgelu_224")
    check_same_model(named, untagged, whole=True, scored=True)
    with pytest.raises(CheckpointError, match=r"was vit_base_patch16_clip_quickgelu_224, is vit_b"):
        check_same_model(named, of(preset="clip16_roberta", image_encoder="vit_base.a"), whole=True)
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    check_same_model(tmp_path / "foreign.ckpt", of(), whole=True)


def test_scoring_without_weights_is_warned_of_and_recorded(
    tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main(["test", "--config", ELIP_YAML, *few(tmp_path / "run", data)])
    assert "untrained: no weights of a run were given. Give --ckpt_path" in caplog.text
    assert any("untrained" in note for note in read_record(tmp_path / "run" / "test").notes)
    fit(tmp_path / "run", data, steps=2)
    main(["test", "--config", ELIP_YAML, *few(tmp_path / "run", data), "--ckpt_path=last"])
    assert read_record(tmp_path / "run" / "test-2").notes == ()
    weights = f"--model.weights={tmp_path / 'run'}"
    main(["test", "--config", ELIP_YAML, *few(tmp_path / "run", data), weights, "--model.task=VQA"])
    (note,) = read_record(tmp_path / "run" / "test-3").notes
    assert "Untrained, not in the weights: 6 tensors, task.classifier.0." in note
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save({"state_dict": state["state_dict"]}, tmp_path / "foreign.ckpt")
    foreign = [f"--model.weights={tmp_path / 'foreign.ckpt'}", "--model.meter.fusion_layers=1"]
    main(["test", "--config", ELIP_YAML, *few(tmp_path / "run", data), *foreign])
    (note,) = read_record(tmp_path / "run" / "test-4").notes
    assert re.fullmatch(r"Left out of the weights: \d+ tensors, meter\.fusion\.\S+ first\.", note)


def test_scoring_under_code_that_has_changed_is_recorded(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / "method_of_mine.py"
    code.write_text("from reducers.random import Random\n\nclass Mine(Random):\n    'Mine.'\n")
    mine = "--model.reducer=method_of_mine.Mine"
    asked = ["test", "--config", ELIP_YAML, *few(tmp_path / "run", data), "--ckpt_path=last", mine]
    try:
        fit(tmp_path / "run", data, mine, steps=1)
        main(asked)
        code.write_text(code.read_text() + "    edited = True\n")
        main(asked)
    finally:
        sys.modules.pop("method_of_mine", None)
    once, again = (read_record(tmp_path / "run" / name).notes for name in ("test", "test-2"))
    assert once == ()
    assert again == ("The code of Mine has changed since the weights were trained.",)


def test_weights_of_a_run_that_has_not_ended_are_told_of(tmp_path: Path, data: Path) -> None:
    run = tmp_path / "run"
    asked = ["test", "--config", ELIP_YAML, *few(run, data)]
    record = fit(run, data, steps=1)
    write_record(replace(record, status="interrupted"), run)
    main([*asked, "--ckpt_path=last"])
    (run / "run.json").unlink()
    main([*asked, f"--model.weights={run}"])
    last = run / "checkpoints" / "last.ckpt"
    shutil.copy(last, tmp_path)
    main([*asked, f"--ckpt_path={tmp_path / 'last.ckpt'}"])
    said = "The run that made the weights had not ended ({})."
    notes = [read_record(run / name).notes for name in ("test", "test-2", "test-3")]
    assert notes == [(said.format("interrupted"),), (said.format("no record"),), ()]
    write_record(replace(record, status="failed"), run)
    assert not_ended(last) == "failed"
    (run / "run.json").write_text("{}")
    assert not_ended(last) is None


def test_there_must_be_something_to_score(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = few(tmp_path / "run", data)
    with pytest.raises(SystemExit) as stop:
        main(["test", "--config", ELIP_YAML, *short, "--trainer.limit_test_batches=0"])
    assert stop.value.code == 2
    assert "limit_test_batches is 0: test would have nothing" in capsys.readouterr().err


def test_a_checkpoint_is_scored_under_the_reducer_that_was_asked_for(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would take the checkpoint's own configuration back, silently."""
    root = tmp_path / "run"
    fit(root, data, steps=2)
    called: list[str] = []
    forward = Random.forward

    def spy(self: Reducer, *args: Any) -> Any:
        called.append(type(self).__name__)
        return forward(self, *args)

    monkeypatch.setattr(Random, "forward", spy)
    main(["test", "--config", ELIP_YAML, *few(root, data), "--ckpt_path=last",
          "--model.reducer=Random"])  # fmt: skip
    record = read_record(root / "test")
    assert record.reducer == "Random"
    assert record.parent is not None
    assert record.parent.endswith("last.ckpt")
    assert called
    (evaluation,) = record.evaluations
    assert evaluation.split == "test"
    examples = read_examples(root / "test")
    assert examples is not None
    assert examples["split"].unique().to_pylist() == ["test"]
    assert len(examples) == evaluation.examples
    scores = examples["score"].to_numpy()
    assert scores.mean() == pytest.approx(evaluation.metrics[record.main_metric or ""])
    assert record.speed is not None
    assert record.speed.latency_identity_ms > 0
    assert record.speed.latency_identity_ms != record.speed.latency_ms


def test_validating_twice_gives_the_same_scores(tmp_path: Path, data: Path) -> None:
    root = tmp_path / "run"
    fit(root, data, steps=2)
    for _ in range(2):
        main(["validate", "--config", ELIP_YAML, *few(root, data), "--ckpt_path=last"])
    once, again = read_record(root / "validate"), read_record(root / "validate-2")
    assert once.evaluations == again.evaluations


def test_a_missing_checkpoint_names_what_there_is(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["test", "--config", ELIP_YAML, *few(tmp_path, data), "--ckpt_path=last"])
    assert "run fit first" in capsys.readouterr().err


def logged(folder: Path, column: str) -> dict[int, float]:
    found = {}
    for file in sorted(folder.glob("metrics*.csv")):
        for row in csv.DictReader(file.open()):
            if row.get(column):
                found[int(row["step"])] = float(row[column])
    return found


def test_a_run_that_begins_anew_does_not_take_over_the_logs_of_a_killed_one(
    tmp_path: Path, data: Path
) -> None:
    run = tmp_path / "run"
    for steps in (4, 3, 2):  # each killed, in a shell of its own
        fit(run, data, steps=steps)
        assert set(logged(run, "train/loss")) == set(range(steps))
        if steps == 4:
            (run / "metrics-1.csv").write_bytes((run / "metrics.csv").read_bytes())
        (run / "run.json").unlink()
    assert set(logged(run / "abandoned-1", "train/loss")) == {0, 1, 2, 3}
    assert set(logged(run / "abandoned", "train/loss")) == {0, 1, 2}
    assert (run / "abandoned" / "tensorboard").is_dir()
    fit(run, data, "--trainer.logger=false", steps=1)
    assert logged(run, "train/loss") == {}


def test_a_logger_of_the_users_stands_beside_the_csv_log(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "elsewhere"
    fit(
        tmp_path / "run", data, "--trainer.logger=lightning.pytorch.loggers.TensorBoardLogger",
        f"--trainer.logger.save_dir={folder}", steps=2,
    )  # fmt: skip
    assert len(logged(tmp_path / "run", "train/loss")) == 2
    assert list(folder.rglob("events.out.tfevents*"))
    assert not (tmp_path / "run" / "tensorboard").exists()


# A validation is due behind steps 2 and 4, and behind the only epoch's last one, 5.
@pytest.mark.parametrize(
    ("stop_at", "options"), [(3, []), (4, []), (5, []), (2, ACCUMULATED), (5, ONE_EPOCH)]
)
def test_interrupted_and_resumed_equals_undisturbed(
    tmp_path: Path, data: Path, stop_at: int, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(tmp_path / "whole", data, *options, steps=8)
    step = MeterModule.training_step

    def interrupted(self: MeterModule, batch: Any, index: int) -> Any:
        if self.global_step == stop_at - 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # at once again, it is the same request
        return step(self, batch, index)

    monkeypatch.setattr(MeterModule, "training_step", interrupted)
    with pytest.raises(SystemExit):
        fit(tmp_path / "cut", data, *options, steps=8)
    monkeypatch.setattr(MeterModule, "training_step", step)
    assert read_record(tmp_path / "cut").status == "interrupted"
    saved = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == stop_at
    resumed = fit(tmp_path / "cut", data, "--ckpt_path=last", *options, steps=8)
    for column in ("train/loss", "val/main"):
        assert logged(tmp_path / "cut", column) == logged(tmp_path / "whole", column)
    assert whole.evaluations
    assert resumed.evaluations == whole.evaluations
    best = "checkpoints/best.ckpt"
    first, second = (torch.load(tmp_path / each / best, weights_only=True) for each in FOLDERS)
    assert first["global_step"] == second["global_step"]
    assert all(map(torch.equal, first["state_dict"].values(), second["state_dict"].values()))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_gradients_are_clipped_in_mixed_precision(
    tmp_path: Path, data: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms, step = [], AdamW.step

    def spy(self: AdamW, *args: Any, **kwargs: Any) -> Any:
        result = step(self, *args, **kwargs)
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm([g for g in gradients if g is not None])))
        return result

    monkeypatch.setattr(AdamW, "step", spy)
    more = f"--trainer.precision={precision}", "--trainer.gradient_clip_val=0.01"
    record = fit(tmp_path / "run", data, *more, steps=2)
    assert record.status == "completed"
    assert record.gflops.forward.total
    assert norms == [pytest.approx(0.01, rel=0.01)] * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.filename=best"],
            "write over best.ckpt or last.ckpt",
        ),
        (["--trainer.precision=bf16-true"], "bf16-mixed"),
        (["--trainer.max_steps=-1", "--trainer.max_epochs=-1"], "trainer.max_steps or"),
        (["--trainer.val_check_interval=0"], "val_check_interval is 0; it must be above 0"),
        (["--trainer.val_check_interval=-0.5"], "val_check_interval is -0.5"),
        (["--trainer.accumulate_grad_batches=0"], "accumulate_grad_batches is 0"),
        (["--trainer.accumulate_grad_batches=-1"], "accumulate_grad_batches is -1"),
        (["--trainer.gradient_clip_val=-1"], "gradient_clip_val is -1"),
        (["--trainer.overfit_batches=2"], "give data.train_limit"),
        (["--trainer.use_distributed_sampler=true"], "score some examples twice"),
        (["--trainer.limit_train_batches=0"], "fit would have nothing to do"),
        (["--seed_everything=false"], "seed_everything is False; it must be from 0 to"),
        (["--trainer.max_steps=0"], "trainer.max_steps is 0: fit would have nothing to do"),
        (["--trainer.check_val_every_n_epoch=0"], "check_val_every_n_epoch is 0; it must be"),
        (["--trainer.strategy=ddp_spawn"], "ddp_spawn: several processes run with ddp"),
        (["--trainer.callbacks=LearningRateFinder"], "give model.optimization.learning_rate"),
        (["--optimizer=SGD", "--optimizer.lr=1"], "--optimizer has no effect"),
        (
            ["--effective_batch_size=8", "--trainer.accumulate_grad_batches=4"],
            "takes 2 batches of 4 examples, and trainer.accumulate_grad_batches is 4",
        ),
        (
            ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/mian"],
            "`val/mian` which is not available",
        ),
        (["--trainer.limit_train_batches=0.1"], "limit_train_batches"),
        (["--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=9"], "(9) must be"),
    ],
)
def test_a_trainer_that_cannot_go_well_is_refused(
    tmp_path: Path, data: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path / "run", data, *options)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_scoring_that_is_asked_to_stop_is_interrupted_not_failed(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = MeterModule.test_step

    def asked(self: MeterModule, *given: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        step(self, *given)

    monkeypatch.setattr(MeterModule, "test_step", asked)
    with pytest.raises(SystemExit) as stop:
        main(["test", "--config", ELIP_YAML, *few(tmp_path / "run", data)])
    assert stop.value.code == 1
    assert read_record(tmp_path / "run" / "test").status == "interrupted"


def test_a_run_without_logs_still_has_its_record(tmp_path: Path, data: Path) -> None:
    record = fit(tmp_path / "run", data, "--trainer.logger=false", steps=2)
    assert record.status == "completed"
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_what_fails_before_anything_is_set_up_is_recorded(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: DataModule, stage: str | None = None) -> None:
        raise DataError("shapes_train.arrow is gone")

    monkeypatch.setattr(DataModule, "setup", broken)
    with pytest.raises(SystemExit):
        fit(tmp_path / "run", data, steps=2)
    assert "error: shapes_train.arrow is gone" in capsys.readouterr().err
    record = read_record(tmp_path / "run")
    assert record.status == "failed"
    assert record.tokens is None


def test_what_a_prediction_skips_is_recorded(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Examples, "num_skipped", property(lambda self: 2))
    main(["predict", "--config", ELIP_YAML, *few(tmp_path / "run", data)])
    assert "test/test: 2 skipped" in read_record(tmp_path / "run" / "predict").notes
