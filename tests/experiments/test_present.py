"""What runs would read is known before they start, and nothing is made to know it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from elip.data.datamodule import DataModule
from elip.data.shapes.write import Options, write_shapes
from elip.tasks.pretrain import Pretraining
from experiments.check import Checked, check
from experiments.grid_file import read_grid

ROOT = Path(__file__).parents[2]


def runs(folder: Path, *options: str, axes: str = "seed: [0]") -> list[Checked]:
    """The runs of a grid on data below a folder."""
    (folder / "g.yaml").write_text(
        f"base: {ROOT}/experiments/elip_0.7.yaml\n"
        f"axes: {{{axes}}}\nstages: {{fit: {{}}, test: {{}}}}\n"
    )
    return list(check(read_grid(folder / "g.yaml", [f"data.root={folder}/data", *options])))


CODE = {"code of ELIP"}


def draw(folder: Path, seed: int = 0) -> Path:
    place = folder / "data" / "shapes"
    write_shapes(place, Options(train=4, val=2, test=2, seed=seed), progress=False)
    return place


def test_data_that_is_drawn_on_first_use_is_not_drawn_to_be_looked_at(tmp_path: Path) -> None:
    checked = runs(tmp_path)
    assert [(set(each.inputs), each.problem) for each in checked] == [(CODE, None)] * 2
    assert not (tmp_path / "data").exists()


def test_data_counts_as_in_the_record_of_a_run(tmp_path: Path) -> None:
    draw(tmp_path)
    data, needs = DataModule(root=str(tmp_path / "data")), Pretraining().spec
    fit, test = runs(tmp_path)
    assert set(fit.inputs) == {"train_data", "val_data", "tokenizer", *CODE}
    assert set(test.inputs) == {"test_data", "tokenizer", *CODE}
    assert fit.inputs.items() > data.digests("fit", needs).items()
    assert test.inputs.items() > data.digests("test", needs).items()
    draw(tmp_path, seed=1)
    other, _ = runs(tmp_path)
    changed = {name for name in fit.inputs if fit.inputs[name] != other.inputs[name]}
    assert changed == {"train_data", "val_data"}
    assert (fit.settings, fit.files) == (other.settings, other.files)


def test_data_is_looked_at_once_for_all_runs_that_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path)
    looked = []
    digests = DataModule.digests
    monkeypatch.setattr(
        DataModule, "digests", lambda self, *given: looked.append(self) or digests(self, *given)
    )
    checked = runs(tmp_path, axes="seed: [0, 1, 2], data.batch_size: [2, 4]")
    assert len(checked) == 12
    read = [name for each in checked for name in each.inputs]
    assert (read.count("train_data"), read.count("test_data")) == (6, 6)
    assert len(looked) == 2  # in a fit, and in a test
    assert len(set(looked)) == 1


def test_damaged_data_is_for_the_run_to_tell(tmp_path: Path) -> None:
    (draw(tmp_path) / "shapes_caption_test.arrow").write_bytes(b"cut short")
    fit, test = runs(tmp_path)
    assert (fit.problem, test.problem) == (None, None)
    assert "train_data" in fit.inputs
    assert set(test.inputs) == CODE


def test_code_of_others_counts_as_it_stands_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / "own_method.py"
    code.write_text("from reducers.random import Random\n\nclass Mine(Random):\n    '''Mine.'''\n")
    try:
        before, _ = runs(tmp_path, "model.reducer=own_method.Mine")
        assert set(before.inputs) == {"code of Mine"}
        code.write_text(code.read_text() + "    edited = True\n")
        after, _ = runs(tmp_path, "model.reducer=own_method.Mine")
    finally:
        sys.modules.pop("own_method", None)
    assert before.inputs != after.inputs
    assert before.settings == after.settings


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.task.init_args.mlm=-1", "model.task cannot be built: mlm is -1"),
        ("data.datasets=shaps", "Did you mean shapes?"),
        ("data.train_limit=0", "data.train_limit is 0"),
    ],
)
def test_options_that_task_and_data_refuse_are_problems(
    tmp_path: Path, option: str, message: str
) -> None:
    checked = runs(tmp_path, option)
    assert all(message in str(each.problem) for each in checked)


def test_a_task_that_needs_what_is_not_here_is_let_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_task.py").write_text(
        "from elip.tasks.vqa import VQA\n\nclass Far(VQA):\n    '''Far.'''\n\n"
        "    def __init__(self) -> None:\n        open('/nowhere/words.txt')\n"
    )
    draw(tmp_path)
    try:
        fit, _ = runs(tmp_path, "model.task=own_task.Far")
    finally:
        sys.modules.pop("own_task", None)
    assert fit.problem is None
    assert set(fit.inputs) == {"code of Far", *CODE}
