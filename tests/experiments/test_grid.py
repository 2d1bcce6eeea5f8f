"""A grid file unfolds into the runs that it says; mistakes get a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.grid import Draft, GridError, read_grid, run_name

SHELF = ("ELIP", "Identity", "ToMe")
ROOT = Path(__file__).parents[2]

STUDY: dict[str, Any] = {
    "set": {"model.meter.preset": "tiny"},
    "axes": {"reducer": ["Identity", "ELIP"], "keep_ratio": [0.5, 0.7], "seed": [0, 1]},
    "stages": {"fit": {"set": {"trainer.max_steps": 3}}, "test": {"after": "fit"}},
}


def drafts(folder: Path, content: dict[str, Any], *sets: str) -> list[Draft]:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    grid = read_grid(path, sets)
    return [draft for stage in grid.stages.values() for draft in grid.drafts(stage, SHELF)]


def test_every_combination_of_every_stage(tmp_path: Path) -> None:
    found = drafts(tmp_path, STUDY)
    assert len(found) == 16
    assert found[0].labels == {"reducer": "Identity", "keep_ratio": "0.5", "seed": "0"}
    assert found[5].args == (
        "--model.meter.preset=tiny", "--trainer.max_steps=3", "--model.reducer=ELIP",
        "--model.schedule.keep_ratio=0.5", "--seed_everything=1",
    )  # fmt: skip
    assert found[8].stage.weights_option == "ckpt_path"


def test_layers_override_in_order(tmp_path: Path) -> None:
    content = {
        "base": ["a.yaml", "b.yaml"],
        "set": {"trainer.c": 2},
        "axes": {"task": {"vqa": {"base": "vqa.yaml", "trainer.e": 4}}},
        "stages": {"fit": {"base": "stage.yaml", "set": {"trainer": {"d": [1, 2]}}}},
    }
    (draft,) = drafts(tmp_path, content, "trainer.f=1e-4")
    assert draft.args == (
        "--config=a.yaml", "--config=b.yaml", "--config=vqa.yaml", "--trainer.c=2",
        "--config=stage.yaml", "--trainer.d=[1, 2]", "--trainer.e=4", "--trainer.f=1e-4",
    )  # fmt: skip


def test_values_of_all_kinds(tmp_path: Path) -> None:
    mine = {"class_path": "my.Mine", "init_args": {"x": 1}}
    content = {
        "axes": {
            "reducer": ["Random", "shelf", mine],
            "budget": [{"gflops": 35}],
            "image_size": {"small": 48},
        },
        "exclude": [{"reducer": ["Random", "ToMe"], "image_size": "small"}],
        "stages": {"test": {}},
    }
    found = drafts(tmp_path, content)
    assert [draft.labels["reducer"] for draft in found] == ["ELIP", "Identity", "Mine"]
    assert found[0].labels == {"reducer": "ELIP", "budget": "gflops=35", "image_size": "small"}
    assert found[0].budget == {"gflops": 35}
    assert found[2].args == (
        '--model.reducer={"class_path": "my.Mine", "init_args": {"x": 1}}',
        "--model.meter.image_size=48",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stagess": {}}, "Did you mean 'stages'"),
        ({"stages": {}}, "no stages"),
        ({"stages": {"fit": {"comand": "fit"}}}, "Did you mean 'command'"),
        ({"stages": {"train": {}}}, "'fit', 'validate', 'test' or 'predict'"),
        ({"stages": {"fit": {"axes": ["sed"]}}}, "Did you mean 'seed'"),
        ({"stages": {"test": {"after": "fit"}, "fit": {}}}, "stages before it"),
        ({"stages": {"fit": {}, "test": {"after": "fit", "axes": ["seed"]}}}, "lacks reducer"),
        ({"stages": {"fit": {"start": "ckpt_path"}}}, "fit takes weights"),
        ({"stages": {"a/b": {"command": "fit"}}}, "becomes a folder"),
        ({"stages": {"fit": {"resources": {"minutes": 0}}}}, "resources.minutes"),
        ({"axes": {"keep_rato": [1]}}, "Did you mean 'keep_ratio'"),
        ({"axes": {"seed": []}}, "no values"),
        ({"axes": {"seed": [1, "1"]}}, "same label"),
        ({"axes": [1]}, "axes: Input should be a valid dictionary"),
        ({"exclude": [{"reducer": "Elip"}]}, "Did you mean 'ELIP'"),
        ({"exclude": [{"sed": 1}]}, "Did you mean 'seed'"),
    ],
)
def test_a_mistake_is_a_message(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(GridError, match=message):
        drafts(tmp_path, {**STUDY, **change})


def test_a_file_that_is_no_grid_is_a_message(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    for text in ("a: [", "- 1", "stages: {fit: {}}\nset: {a: 1}\nset: {b: 2}"):
        path.write_text(text)
        with pytest.raises(GridError, match=r"grid\.yaml"):
            read_grid(path)
    with pytest.raises(GridError, match="No such file"):
        read_grid(tmp_path / "none.yaml")
    path.write_text("stages: {fit: {}}")
    with pytest.raises(GridError, match="give option=value"):
        read_grid(path, ["seed"])


def test_names_are_cut_by_bytes_and_stay_names() -> None:
    assert run_name({"task": "vqa", "model.reducer": "a/b c", "seed": "0"}) == "vqa-a_b_c-seed0"
    long = run_name({"a": "第一组实验" * 40})
    assert len(long.encode()) <= 180
    assert long.startswith("第一组实验")


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/**/grids/*.yaml")), ids=str)
def test_shipped_grids_name_files_from_the_repository(path: Path) -> None:
    grid = read_grid(path)
    found = [draft for stage in grid.stages.values() for draft in grid.drafts(stage, SHELF)]
    assert found
    files = {arg.split("=")[1] for draft in found for arg in draft.args if "--config" in arg}
    assert all((ROOT / file).is_file() for file in files), files
