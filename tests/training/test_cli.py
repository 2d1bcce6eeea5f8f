"""The command line: options, error messages, run directories, resuming, origin of weights."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from elip.identity import checkpoint_path, read_checkpoint_info
from elip.record import read_record
from elip.training import cli
from elip.training import parse as parse_module
from elip.training.cli import parse, run
from elip.training.module import MeterModule
from reducers.random import Random
from tests.training.conftest import Go

ROOT = Path(__file__).parents[2]
ELIP_YAML = str(ROOT / "experiments" / "elip_0.7.yaml")


class Halving(Random):
    """A reducer outside the package, chosen by import path."""


def asked(*options: str) -> Any:
    return parse(["fit", "--config", ELIP_YAML, *options])


def test_files_and_options_layer(tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("data:\n  batch_size: 7\ntrainer:\n  max_steps: 9\n")
    config = asked("--config", str(over), "--trainer.max_steps=3").config
    assert config["data"]["batch_size"] == 7
    assert config["trainer"]["max_steps"] == 3
    assert config["data"]["image_size"] == 64
    assert config["model"]["reducer"]["class_path"] == "reducers.elip.ELIP"


def test_the_resolved_configuration_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", "--config", ELIP_YAML, "--trainer.max_steps=3", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["max_steps"] == 3
    assert printed["model"]["reducer"]["class_path"] == "reducers.elip.ELIP"


def test_a_reducer_is_chosen_by_name_or_import_path() -> None:
    assert asked("--model.reducer=Random").reducer == "Random"
    assert asked(f"--model.reducer={__name__}.Halving").reducer == "Halving"


@pytest.mark.parametrize(
    ("option", "hints"),
    [
        ("--model.reducer=ELPI", ["ELPI", "ELIP", "Random"]),
        ("--model.task=Pretrainin", ["Pretrainin", "Pretraining"]),
        ("--model.reducer.mixx=0.5", ["mixx", "fit --model.reducer.help=reducers.elip.ELIP"]),
        ("--model.schedule.keep_ratios=0.5", ["model.schedule.keep_ratio"]),
        ("--trainer.max_stepz=3", ["trainer.max_steps"]),
        ("--model.meter.preset=tinny", ["tiny", "clip16_roberta"]),
        ("--model.meter.image_size=65", ["65", "patch_size 8"]),
        ("--trainer.strategy=fsdp", ["ddp"]),
        ("--ckpt_path=last", ["Run fit first"]),
    ],
)
def test_a_mistake_is_one_message(option: str, hints: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(hints[0])) as error:
        asked(option)
    assert len(str(error.value).splitlines()) < 12
    for hint in hints:
        assert hint in str(error.value)


def test_fit_without_a_task_mentions_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit"]) == 2
    assert "Give --config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--data.datasets=shaps", "shapes"),
        ("--model.schedule.keep_ratio=1.5", "at most 1"),
        ("--model.schedule.layers=[2,40]", "from 0 to"),
        ("--model.reducer.mix=3", "must be in [0, 1]"),
        ("--trainer.devices=0", "devices="),
        ("--effective_batch_size=9", "effective_batch_size 9"),
    ],
)
def test_values_out_of_range_are_refused_before_training(
    option: str, hint: str, go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("fit", option) == 2
    assert hint in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_run_directory_is_a_function_of_what_is_stated() -> None:
    first = asked()
    assert first.run_dir.parent == Path("runs/elip_0.7")
    assert first.run_dir.name == f"ELIP-0.7-s0-{first.run_id}"
    machine = ["--trainer.devices=2", "--data.num_workers=3", "--trainer.accelerator=cpu"]
    assert asked(*machine, "--trainer.precision=32").run_dir == first.run_dir
    assert asked("--model.schedule.keep_ratio=0.7").run_id == first.run_id  # a default
    for other in ("--model.reducer=ToMe", "--seed_everything=1", "--data.batch_size=8"):
        assert asked(other).run_id != first.run_id
    assert asked("--trainer.default_root_dir=a/b").run_dir == Path("a/b")
    assert asked() == first  # the options of one command line never reach the next


def test_a_fit_leaves_a_whole_record(trained: Path) -> None:
    record = read_record(trained)
    assert record.status == "completed"
    assert record.name == trained.name == f"ELIP-0.8-s0-{record.run_id}"
    assert (record.reducer, record.main_metric) == ("ELIP", "itm_accuracy")
    (split,) = record.evaluations
    assert (split.split, split.examples, split.chance["itm_accuracy"]) == ("val", 19, 0.5)
    assert record.tokens_per_block == (16, 13, 10, 10)
    assert record.gflops.total is not None
    assert record.gflops_unreduced.total is not None
    assert record.gflops.total < record.gflops_unreduced.total
    assert record.gflops_unreduced.probe == 0
    assert record.latency_ms is not None
    assert (record.train_steps, record.train_epochs) == (4, 4 / 6)
    assert {"data/train", "data/val"} <= set(record.fingerprints)
    assert record.weights == "random"
    assert record.lineage == ()


def test_the_options_of_a_fit_find_its_checkpoint(
    trained: Path, go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("test", "--ckpt_path=best") == 0
    record = read_record(trained / "test")
    assert record.weights == "trained with ELIP 0.8"
    assert record.lineage[0].run_id == read_record(trained).run_id
    assert record.lineage[0].checkpoint == "best"
    said = capsys.readouterr().err.splitlines()
    assert said[-2].startswith(f"Record: {trained}/test/run.json")
    assert said[-1].startswith("Next:   python -m analysis runs/tiny")


@pytest.mark.usefixtures("quick")
def test_another_reducer_is_never_restored_silently(
    trained: Path, go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("test", "--model.reducer=Random", "--ckpt_path=best") == 2
    assert f"Existing fits:\n    {trained}" in capsys.readouterr().err
    assert go("test", "--model.reducer=Random", f"--model.weights={trained}") == 0
    said = "trained with ELIP 0.8; tested with Random 0.8 (off the shelf)"
    (folder,) = Path("runs/tiny").glob("test-Random-0.8-s0-*")
    assert read_record(folder).weights == said
    assert f"Weights: {said}." in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_an_untrained_head_is_not_scored(
    trained: Path, go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    other = [
        "--model.task=Statement",
        f"--model.weights={trained}",
        "--trainer.limit_test_batches=1",
    ]
    assert go("test", *other) == 2
    assert "would be scored untrained" in capsys.readouterr().err
    assert go("test", *other, "--model.allow_untrained=true") == 0


def test_weights_of_another_model_with_tensors_alike_are_refused(
    trained: Path, go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in ("--ckpt_path", "--model.weights"):
        assert go("test", f"{given}={trained}", "--model.meter.fusion_heads=4") == 2
        assert "fusion_heads was 2, is 4" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="Unexpected key"):
        go("test", f"--ckpt_path={trained}", "--model.meter.fusion_layers=1")


@pytest.mark.usefixtures("quick")
def test_a_completed_fit_is_moved_aside(
    trained: Path, go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained / "run.json").read_bytes()
    assert go("fit", "--trainer.logger=false") == 0
    aside = trained.with_name(f"{trained.name}~1")
    assert f"{trained} held an earlier run, now moved to {aside}." in capsys.readouterr().err
    assert (aside / "run.json").read_bytes() == before
    assert read_record(trained).evaluations == read_record(aside).evaluations


def test_a_run_directory_is_locked(
    go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_LOCK_SECONDS", 0.0)
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".running"):
        assert go("fit", f"--trainer.default_root_dir={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err
    assert f"error: Another process is writing into {tmp_path / 'run'}" in error
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_run_resumes_only_with_its_own_options(
    trained: Path, go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model.reducer=Random", "--seed_everything=3"]
    assert go("fit", f"--ckpt_path={trained}", *options) == 2
    error = capsys.readouterr().err
    assert "model.reducer.class_path was reducers.elip.ELIP, is reducers.random.Random" in error
    assert "seed_everything was None, is 3" in error
    assert "--model.weights instead of --ckpt_path" in error
    bare = torch.load(checkpoint_path(trained, "last"), weights_only=True)
    del bare["elip_run"]
    torch.save(bare, "foreign.ckpt")
    assert go("fit", "--ckpt_path=foreign.ckpt") == 2
    assert "does not say how it was trained" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_a_longer_run_is_a_new_run(trained: Path, go: Go) -> None:
    first = read_record(trained)
    longer = ["--trainer.max_steps=5", "--data.num_workers=0"]
    assert go("fit", *longer, f"--ckpt_path={trained}") == 0
    (folder,) = set(Path("runs/tiny").iterdir()) - {trained}
    record = read_record(folder)
    assert record.train_steps == 5
    assert record.lineage[0].run_id == first.run_id
    assert record.evaluations == first.evaluations  # the best checkpoint came along
    assert checkpoint_path(folder, "best").is_file()
    # It resumes as the same run after its directory moved.
    shutil.move(folder, "moved")
    assert go("fit", *longer, "--ckpt_path=moved") == 0
    assert read_record(Path("moved")).run_id == record.run_id


def test_changed_data_is_refused_on_resume(
    trained: Path, go: Go, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "elip.data.datamodule.DataModule.fingerprints", lambda *_: {"data/train": "other"}
    )
    assert go("fit", "--ckpt_path=last") == 2
    assert "fingerprint.data/train was" in capsys.readouterr().err


# Validations come after steps 2 and 4, and after step 6, the last of the epoch.
@pytest.mark.parametrize(
    ("stop_at", "options"),
    [
        (3, []),
        (2, ["--effective_batch_size=8"]),
        pytest.param(4, [], marks=pytest.mark.slow),
        pytest.param(
            6, ["--trainer.max_epochs=1", "--trainer.val_check_interval=6"], marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.usefixtures("quick")
def test_interrupted_and_resumed_equals_undisturbed(
    stop_at: int,
    options: list[str],
    go: Go,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [*options, "--trainer.max_steps=7"]
    assert go("fit", *options, "--trainer.default_root_dir=whole") == 0
    step = MeterModule.training_step

    def interrupted(self: MeterModule, batch: Any, index: int) -> Any:
        if self.global_step == stop_at - 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # repeated at once, it is the same request
        return step(self, batch, index)

    monkeypatch.setattr(MeterModule, "training_step", interrupted)
    capsys.readouterr()
    assert go("fit", *options, "--trainer.default_root_dir=cut") == 130
    monkeypatch.setattr(MeterModule, "training_step", step)
    said = [line for line in capsys.readouterr().err.splitlines() if "Resume:" in line]
    assert len(said) == 1
    assert said[0].startswith("Resume: python run_experiment.py fit")
    assert read_record("cut").status == "interrupted"
    assert go("fit", *options, "--trainer.default_root_dir=cut", "--ckpt_path=last") == 0
    whole, cut = read_record("whole"), read_record("cut")
    assert whole.evaluations
    assert cut.evaluations == whole.evaluations
    for name in ("best", "last"):
        one, two = (
            torch.load(checkpoint_path(Path(each), name), weights_only=True)
            for each in ("whole", "cut")
        )
        assert one["global_step"] == two["global_step"]
        assert all(map(torch.equal, one["state_dict"].values(), two["state_dict"].values()))


def test_a_checkpoint_carries_the_header_of_its_run(trained: Path) -> None:
    record = read_record(trained)
    for name, steps in (("best", None), ("last", 4)):
        info = read_checkpoint_info(checkpoint_path(trained, name))
        assert info is not None
        header = info.lineage[0]
        assert (header.run_id, header.method) == (record.run_id, "ELIP 0.8")
        assert (header.protocol, header.checkpoint) == (record.protocol, name)
        assert steps in (None, header.steps)


def test_a_failed_run_is_recorded(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        MeterModule, "on_fit_start", lambda self: (_ for _ in ()).throw(OSError("no disk"))
    )
    assert go("fit", "--trainer.default_root_dir=run") == 2
    assert "error: no disk" in capsys.readouterr().err
    record = read_record("run")
    assert (record.status, record.error) == ("failed", "OSError: no disk")


def test_a_loss_that_is_not_finite_stops_the_step(
    go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model.optimization.learning_rate=1e30", "--model.optimization.warmup=0"]
    assert go("fit", *options, "--trainer.default_root_dir=run") == 2
    error = capsys.readouterr().err
    assert "error: The loss is " in error
    assert "Lower the learning rate" in error
    assert read_record("run").status == "failed"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "stray",
    [
        {"RANK": "1"},
        {"SLURM_JOB_ID": "5", "SLURM_JOB_NAME": "interactive", "SLURM_PROCID": "2",
         "SLURM_LOCALID": "2", "SLURM_NTASKS": "4"},
    ],
)  # fmt: skip
def test_a_rank_left_in_the_shell_is_ignored(
    stray: dict[str, str], go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as it is read from there
    for name, value in stray.items():
        monkeypatch.setenv(name, value)
    assert go("fit", "--trainer.max_steps=1", "--trainer.default_root_dir=run") == 0
    there = {path.name for path in Path("run").iterdir()}
    assert {"run.json", "metrics.csv", "tensorboard", "config.yaml"} <= there


class Older(Random):
    """A reducer before an update."""


class Newer(Random):
    """The same reducer with a new option that has a default."""

    def __init__(self, more: float = 0.5) -> None:
        super().__init__()


class NewerTrainer(Trainer):
    """The trainer of a later Lightning."""

    def __init__(self, *args: Any, brand_new: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


Newer.__name__ = Newer.__qualname__ = "Older"


def test_a_new_option_with_a_default_changes_no_identity(
    trained: Path, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = f"--model.reducer={__name__}.Older"
    before = (asked(), asked(mine))
    parse_module.parsers.cache_clear()
    monkeypatch.setattr(f"{__name__}.Older", Newer)

    try:
        # Trainer and reducer both get a new option.
        monkeypatch.setattr(parse_module, "Trainer", NewerTrainer)
        monkeypatch.setattr(cli, "Trainer", NewerTrainer)
        after = (asked(), asked(mine))
        assert after[0].config["trainer"]["brand_new"] == 1.0
        assert after[1].config["model"]["reducer"]["init_args"]["more"] == 0.5
        for old, new in zip(before, after, strict=True):
            assert (new.run_id, new.run_dir) == (old.run_id, old.run_dir)
        assert go("fit", "--ckpt_path=last") == 0  # it resumes
        assert read_record(trained).run_id == trained.name.rsplit("-", 1)[-1]
    finally:
        parse_module.parsers.cache_clear()
