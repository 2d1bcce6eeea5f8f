"""The grids of this repository are taken by the command line's own parser, every run of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.check import check
from experiments.grid import Grid, GridError
from experiments.grid_file import read_grid
from experiments.launch import main as launch
from experiments.plan import Cell, build_plan, refuse_missing

ROOT = Path(__file__).parents[2]
FILES = sorted(ROOT.glob("experiments/**/grids/*.yaml"))


def few(grid: Grid) -> Grid:
    """One value of each number and three reducers: every option once, not every combination."""
    shorter = {axis: grid.axes[axis][:1] for axis in ("keep_ratio", "seed") if axis in grid.axes}
    reducers = tuple(level for level in grid.axes["reducer"] if level.label != "shelf")[:3]
    return replace(grid, axes={**grid.axes, **shorter, "reducer": reducers})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_stage_of_every_grid_parses(path: Path, tmp_path: Path) -> None:
    assert path.read_text().startswith(f"# python -m experiments.launch {path.relative_to(ROOT)}")
    grid = read_grid(path)
    checked = list(check(few(grid)))
    assert [each.problem for each in checked] == [None] * len(checked)
    # Weights that are made or downloaded first need not lie here.
    present = [replace(each, files={}) for each in checked]
    cells = build_plan(few(grid), present, tmp_path)
    assert {cell.stage.name for cell in cells} == {stage.name for stage in grid.stages}
    assert all(cell.parent is not None for cell in cells if cell.stage.after)
    assert {cell.devices for cell in cells} == {8 if "paper" in path.parts else 1}


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_of_every_grid_parses(path: Path) -> None:
    checked = list(check(read_grid(path)))
    assert [each.problem for each in checked if each.problem] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "runs", "hours"), [("finetune", 312, 1506.25), ("pretrain", 20, 2526.14)]
)
def test_a_dry_run_says_what_a_grid_of_the_paper_costs(
    name: str, runs: int, hours: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "experiments" / "paper" / "grids" / f"{name}.yaml"
    assert launch([str(path), "--dry-run", f"--runs={tmp_path}", "--jobs=8"]) == 0
    said = capsys.readouterr().out
    assert f"{runs} runs in {name}: 0 done, {runs} to run." in said
    # GFLOPs x examples / 62 T a second of each price: 39 x (19.498 + 1.256 + 3.348 + 14.519) hours
    # of fine-tuning, and 4 x (597.517 + 19.498 + 14.519) with pre-training.
    told = re.search(r"([\d.]+) device hours", said)
    assert told is not None
    assert float(told[1]) == pytest.approx(hours, abs=0.1)


def test_no_reduction_has_one_identity_and_others_one_each(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text(
        f"base: {ROOT}/experiments/elip_0.7.yaml\n"
        "axes: {reducer: [Identity, ELIP], keep_ratio: [0.5, 0.7, 1.7, 0.1]}\n"
        "exclude: [{reducer: ELIP, keep_ratio: [1.7, 0.1]}, {reducer: Identity, keep_ratio: 1.7}]\n"
        "stages: {fit: {}}\n"
    )
    grid = read_grid(tmp_path / "g.yaml")
    cells = build_plan(grid, list(check(grid)), tmp_path)
    assert [cell.name for cell in cells] == ["Identity", "ELIP-keep_ratio0.5", "ELIP-keep_ratio0.7"]
    assert cells[0].config["model"]["schedule"] == {"keep_ratio": 1.0}
    nothing = replace(grid, axes={**grid.axes, "reducer": grid.axes["reducer"][:1]})
    nothing = replace(nothing, last={"model.reducer": None})
    (same,) = build_plan(nothing, list(check(nothing)), tmp_path)
    assert same.id == cells[0].id


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.reducer=ELIPP", "near it: ELIP"),
        ("model.schedule.keep_ratoi=0.5", "keep_ratoi"),
        ("model.schedule.keep_ratio=1.7", "keep_ratio is 1.7"),
        ("model.schedule.keep_ratio=0.01", "cannot be reached"),
        ("model.meter.image_size=65", "not a multiple of patch_size"),
        ("trainer.max_stepz=3", "max_stepz"),
        ("trainer=3", "trainer is 3; give its options"),
        ("data=null", "data is None; give its options"),
        ("model.schedule=3", "model.schedule is 3; give its options"),
        ("trainer.overfit_batches=2", "give data.train_limit"),
        ("trainer.max_steps=0", "trainer.max_steps is 0: fit would have nothing to do"),
        ("trainer.callbacks=[LearningRateFinder]", "give model.optimization.learning_rate"),
        (f"model.weights={'x' * 300}", "File name too long"),
    ],
)
def test_a_wrong_option_is_a_problem_of_its_run(tmp_path: Path, option: str, message: str) -> None:
    (tmp_path / "g.yaml").write_text(
        f"base: {ROOT}/experiments/elip_0.7.yaml\naxes: {{seed: [0]}}\nstages: {{fit: {{}}}}\n"
    )
    (checked,) = check(read_grid(tmp_path / "g.yaml", [option]))
    assert checked.problem is not None
    assert message in checked.problem


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"devices": 2}, "takes 2 batches of 64 examples, and trainer.accumulate_grad_batches"),
        ({"devices": [0, 1, 2], "num_nodes": 2}, "data.batch_size 32 times 6 processes"),
        ({"accelerator": "cpu"}, "takes 4 batches of 32 examples"),
        ({}, None),  # as many as its machine has
        ({"devices": -1}, None),
    ],
)
def test_batches_that_do_not_add_up_are_a_problem_where_processes_are_known(
    tmp_path: Path, trainer: dict[str, Any], message: str | None
) -> None:
    (tmp_path / "g.yaml").write_text(
        f"base: {ROOT}/experiments/elip_0.7.yaml\naxes: {{seed: [0]}}\nstages: {{fit: {{}}}}\n"
    )
    options = {f"trainer.{name}": value for name, value in trainer.items()}
    options |= {"effective_batch_size": 128, "trainer.accumulate_grad_batches": 3}
    given = [f"{option}={json.dumps(value)}" for option, value in options.items()]
    (checked,) = check(read_grid(tmp_path / "g.yaml", given))
    if message is None:
        assert checked.problem is None
    else:
        assert message in str(checked.problem)


def one_run(tmp_path: Path, *options: str) -> Cell:
    """The run of a grid of one run, laid over by options."""
    (tmp_path / "g.yaml").write_text(
        f"base: {ROOT}/experiments/elip_0.7.yaml\naxes: {{seed: [0]}}\nstages: {{test: {{}}}}\n"
    )
    grid = read_grid(tmp_path / "g.yaml", options)
    (cell,) = build_plan(grid, list(check(grid)), tmp_path)
    return cell


@pytest.mark.parametrize(
    ("option", "file"),
    [
        ("model.weights", "checkpoints/best.ckpt"),
        ("ckpt_path", "checkpoints/best.ckpt"),
        ("model.image_weights", ""),
        ("model.text_weights", "model.safetensors"),
        ("model.meter.text_encoder", "config.json"),
    ],
)
def test_files_and_folders_count_by_what_they_hold(tmp_path: Path, option: str, file: str) -> None:
    path = tmp_path / "given" / file
    path.parent.mkdir(parents=True, exist_ok=True)

    def identity(content: str) -> str:
        with zipfile.ZipFile(path, "w") as archive:  # as a whole checkpoint is one
            archive.writestr(zipfile.ZipInfo("content"), content)
        cell = one_run(tmp_path, f"{option}={tmp_path / 'given'}")
        assert cell.lacks == ()
        return cell.id

    assert identity("one") == identity("one") != identity("two")


@pytest.mark.parametrize(
    ("option", "named", "lack"),
    [
        ("model.weights", "nowhere", "no such file nowhere"),
        ("ckpt_path", "nowhere/a.ckpt", "no such file nowhere/a.ckpt"),
        ("model.image_weights", "vit_tini", "'vit_tini' is neither a file nor a timm model"),
        ("model.image_weights", "vit_tiny_patch16_224.augreg_in21k", None),
        ("model.text_weights", "./roberta", "no such file or folder ./roberta"),
        ("model.text_weights", "~/roberta", "no such file or folder ~/roberta"),
        ("model.text_weights", "all/roberta.safetensors", "no such file or folder all/roberta"),
        ("model.text_weights", "FacebookAI/roberta-base", None),
        ("data.tokenizer", "/nowhere", "no such file or folder /nowhere"),
        ("data.tokenizer", "roberta-base", None),
        ("data.tokenizer", str(ROOT), None),
    ],
)
def test_what_is_not_there_is_told_before_a_start(
    tmp_path: Path, option: str, named: str, lack: str | None
) -> None:
    cell = one_run(tmp_path, f"{option}={named}")
    if lack is None:
        refuse_missing([cell])
    else:
        with pytest.raises(GridError, match=re.escape(f"{option}: {lack}")):
            refuse_missing([cell])


def test_a_grid_may_set_callbacks(tmp_path: Path) -> None:
    own = {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"interval": "epoch"}}
    (tmp_path / "g.yaml").write_text(
        f"base: {ROOT}/experiments/elip_0.7.yaml\naxes: {{seed: [0, 1]}}\nstages: {{fit: {{}}}}\n"
        f"set: {{trainer.callbacks: [{json.dumps(own)}]}}\n"
    )
    grid = read_grid(tmp_path / "g.yaml")
    cells = build_plan(grid, list(check(grid)), tmp_path)
    assert [cell.config["trainer"]["callbacks"] for cell in cells] == [[own], [own]]


def test_the_child_process_answers_in_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.check", "experiments/grids/smoke.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    answers = json.loads(done.stdout)
    assert [each["stage"] for each in answers] == ["fit"] * 3 + ["test"] * 3
    assert answers[0]["resolved"]["model"]["reducer"]["class_path"] == "reducers.identity.Identity"
    (tmp_path / "wrong.yaml").write_text("stages: {}")
    command = [*command[:-1], str(tmp_path / "wrong.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "has no stages" in done.stderr
