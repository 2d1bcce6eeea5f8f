"""A grid file unfolds into the runs that it says, and nothing else passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from elip.provenance import merged
from experiments.check import Checked
from experiments.grid import GridError, put
from experiments.grid_file import read_grid
from experiments.plan import Cell, build_plan, refuse_missing, select

SHELF = ("ELIP", "Identity", "ToMe")


def write(folder: Path, content: dict[str, Any], name: str = "grid.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def plan(path: Path, sets: tuple[str, ...] = ()) -> list[Cell]:
    """The plan of a grid, with a parser that takes everything."""
    grid = read_grid(path, sets)
    checked = []
    for draft in grid.drafts(SHELF):
        reducer = draft.config["model"].get("reducer", {"class_path": "ELIP"})
        reduces = reducer["class_path"] != "Identity"
        config = dict(draft.config)
        if not reduces:
            config["model"] = {k: v for k, v in config["model"].items() if k != "schedule"}
        checked.append(
            Checked(draft.stage, draft.labels, config, repr(config), draft.config, reduces)
        )
    return build_plan(grid, checked, path.parent / "runs")


STUDY = {
    "set": {"model.meter.preset": "tiny"},
    "axes": {"reducer": ["Identity", "ELIP"], "keep_ratio": [0.5, 0.7], "seed": [0, 1]},
    "stages": {"fit": {"set": {"trainer.max_steps": 3}}, "test": {"after": "fit"}},
}


def test_product_without_repeats_and_with_parents(tmp_path: Path) -> None:
    cells = plan(write(tmp_path, STUDY))
    names = [cell.key for cell in cells]
    fits = ["Identity-seed0", "Identity-seed1"]
    fits += [f"ELIP-keep_ratio{ratio}-seed{seed}" for ratio in (0.5, 0.7) for seed in (0, 1)]
    assert names == [f"{stage}/{name}" for stage in ("fit", "test") for name in fits]
    for cell in cells[6:]:
        assert cell.parent is not None
        assert cell.parent.name == cell.name
        assert cell.config["ckpt_path"] == str(cell.parent.folder / "checkpoints" / "best.ckpt")
    first = cells[2].config
    assert first["model"]["reducer"] == {"class_path": "ELIP", "init_args": {}}
    assert first["model"]["schedule"] == {"keep_ratio": 0.5}
    assert first["model"]["meter"] == {"preset": "tiny"}
    assert first["trainer"]["max_steps"] == 3
    assert first["seed_everything"] == 0
    assert len({cell.folder for cell in cells}) == len(cells)


def test_identity_follows_the_configuration_and_nothing_else(tmp_path: Path) -> None:
    before = {cell.key: cell.id for cell in plan(write(tmp_path, STUDY))}
    turned = {**STUDY, "axes": {**STUDY["axes"], "keep_ratio": [0.7, 0.5]}}  # type: ignore[dict-item]
    assert {cell.key: cell.id for cell in plan(write(tmp_path, turned))} == before
    after = {cell.key: cell.id for cell in plan(write(tmp_path, STUDY), ("trainer.max_steps=4",))}
    assert not set(before.values()) & set(after.values())


def test_layers_lie_over_each_other_in_order(tmp_path: Path) -> None:
    write(tmp_path, {"trainer": {"a": 0, "b": 0, "c": 0, "d": 0, "e": 0, "f": 0}}, "base.yaml")
    write(tmp_path, {"trainer": {"b": 1, "c": 1, "d": 1, "e": 1, "f": 1}}, "vqa.yaml")
    write(tmp_path, {"trainer": {"d": 3, "e": 3, "f": 3}}, "stage.yaml")
    content = {
        "base": "base.yaml",
        "set": {"trainer.c": 2, "trainer.d": 2},
        "axes": {"task": {"vqa": {"base": "vqa.yaml", "trainer.e": 4, "trainer.f": 4}}},
        "stages": {"fit": {"base": "stage.yaml"}},
    }
    grid = read_grid(write(tmp_path, content), ["trainer.f=5"])
    (draft,) = grid.drafts(SHELF)
    assert draft.config["trainer"] == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5}


def test_a_change_in_a_parent_changes_its_children_only(tmp_path: Path) -> None:
    before = {cell.key: cell.id for cell in plan(write(tmp_path, STUDY))}
    longer = {
        **STUDY,
        "stages": {**STUDY["stages"], "test": {"after": "fit", "checkpoint": "last"}},
    }  # type: ignore[dict-item]
    after = {cell.key: cell.id for cell in plan(write(tmp_path, longer))}
    assert {key for key in before if before[key] == after[key]} == {
        key for key in before if key.startswith("fit/")
    }


def test_stages_on_different_axes(tmp_path: Path) -> None:
    tasks = {"vqa": {"model.task": "VQA", "data.batch_size": 2}, "pairs": {"model.task": "NLVR2"}}
    content = {
        "axes": {"reducer": ["shelf"], "task": tasks},
        "exclude": [{"reducer": "ToMe", "task": "pairs"}],
        "stages": {
            "pretrain": {
                "command": "fit",
                "axes": ["reducer"],
                "set": {"model.task": "Pretraining"},
            },
            "finetune": {"command": "fit", "after": "pretrain", "checkpoint": "last"},
            "test": {"after": "finetune"},
        },
    }
    cells = plan(write(tmp_path, content))
    assert [cell.key for cell in cells if cell.stage.name != "test"] == [
        "pretrain/ELIP", "pretrain/Identity", "pretrain/ToMe", "finetune/ELIP-vqa",
        "finetune/ELIP-pairs", "finetune/Identity-vqa", "finetune/Identity-pairs",
        "finetune/ToMe-vqa",
    ]  # fmt: skip
    finetune = cells[3]
    assert finetune.config["model"]["weights"] == str(cells[0].folder / "checkpoints" / "last.ckpt")
    assert finetune.config["model"]["task"] == "VQA"
    assert finetune.config["data"]["batch_size"] == 2


def test_only_takes_parents_along(tmp_path: Path) -> None:
    cells = plan(write(tmp_path, STUDY))
    keys = [cell.key for cell in select(cells, ["test/ELIP-keep_ratio0.5-*"])]
    names = ["ELIP-keep_ratio0.5-seed0", "ELIP-keep_ratio0.5-seed1"]
    assert keys == [f"{stage}/{name}" for stage in ("fit", "test") for name in names]
    assert len(select(cells, ["reducer=Identity|ELIP,seed=1"])) == 6
    assert len(select(cells, [])) == 12
    with pytest.raises(GridError, match="fits none of 12 runs"):
        select(cells, ["reducer=Elip"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stagess": {}}, "Did you mean 'stages'"),
        ({"stages": {}}, "no stages"),
        ({"stages": {"fit": {"comand": "fit"}}}, "Did you mean 'command'"),
        ({"stages": {"train": {}}}, "'train' is not one of"),
        ({"stages": {"fit": {"axes": ["sed"]}}}, "Did you mean 'seed'"),
        ({"stages": {"test": {"after": "fit"}, "fit": {}}}, "stand before it"),
        ({"stages": {"fit": {}, "test": {"after": "fit", "axes": ["seed"]}}}, "lacks .'reducer'"),
        ({"stages": {"fit": {"resources": {"minute": 3}}}}, "Did you mean 'minutes'"),
        ({"stages": {"fit": {"price": {"gflops": 3}}}}, "needs gflops, examples"),
        ({"axes": {"sead": [0]}}, "Did you mean 'seed'"),
        ({"axes": {"seed": []}}, "has no values"),
        ({"axes": {"seed": [1, 1]}}, "named alike"),
        ({"axes": [1]}, "must be a mapping"),
        ({"exclude": [{"size": 1}]}, "'size' is not one of"),
        ({"base": "nowhere.yaml"}, "Cannot read .*nowhere.yaml"),
        ({"base": "no\0where"}, "Cannot read .*null byte"),
        ({"stages": {"fit": {"axes": True}}}, r"stages.fit.axes is True; give a list"),
    ],
)
def test_wrong_files_are_told_what_would_be_right(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(GridError, match=message):
        read_grid(write(tmp_path, {**STUDY, **change}))


def test_layers_and_dotted_options() -> None:
    below = {"model": {"reducer": {"class_path": "A", "init_args": {"x": 1}}, "task": "VQA"}}
    above = {"model": {"reducer": {"class_path": "B", "init_args": {}}}}
    assert merged(below, above)["model"] == {
        "reducer": {"class_path": "B", "init_args": {}},
        "task": "VQA",
    }
    put(below, "model.task.init_args.y", [1])
    put(below, "trainer.max_steps", 3)
    assert below["model"]["task"] == {"class_path": "VQA", "init_args": {"y": [1]}}
    assert below["trainer"] == {"max_steps": 3}


def test_problems_are_listed_and_nothing_is_planned(tmp_path: Path) -> None:
    grid = read_grid(write(tmp_path, STUDY))
    checked = [
        Checked(each.stage, each.labels, each.config, problem="no such option 'mixx'")
        for each in grid.drafts(SHELF)
    ]
    with pytest.raises(GridError) as told:
        build_plan(grid, checked, tmp_path)
    assert str(told.value).splitlines() == [
        "16 of 16 runs cannot start, so none was started:",
        "  fit Identity-keep_ratio0.5-seed0: no such option 'mixx' (15 more like it)",
    ]


def test_a_grid_without_runs_is_refused(tmp_path: Path) -> None:
    everything = {"exclude": [{"seed": [0, 1]}]}
    with pytest.raises(GridError, match="grid has no runs: its exclude"):
        plan(write(tmp_path, {**STUDY, **everything}))


def test_reducers_of_the_shelf_can_be_excluded(tmp_path: Path) -> None:
    axes = {"axes": {"reducer": ["shelf"]}, "exclude": [{"reducer": ["ToMe", "Identity"]}]}
    assert {cell.name for cell in plan(write(tmp_path, {**STUDY, **axes}))} == {"ELIP"}


def test_missing_files_are_refused_before_a_start(tmp_path: Path) -> None:
    grid = read_grid(write(tmp_path, STUDY))
    resolved = {"model": {"weights": "w.ckpt"}}
    lacking = Checked("fit", {}, {}, files={"model.weights": None}, resolved=resolved)
    cells = build_plan(grid, [lacking], tmp_path)
    with pytest.raises(GridError, match=r"model\.weights: no such file w\.ckpt"):
        refuse_missing(cells)
    cut = tmp_path / "run" / "checkpoints" / "best.ckpt"
    cut.parent.mkdir(parents=True)
    cut.write_bytes(b"half")
    lacking = replace(lacking, resolved={"model": {"weights": str(tmp_path / "run")}})
    with pytest.raises(GridError, match=r"best\.ckpt is not a whole checkpoint"):
        refuse_missing(build_plan(grid, [lacking], tmp_path))
