from __future__ import annotations

from pathlib import Path

import pytest

from elip.data.convert import convert
from elip.data.datasets import find_dataset, known_datasets
from elip.data.datasets.base import LAYOUT, DataError


def test_names() -> None:
    wanted = {"coco", "f30k", "gcc", "nlvr2", "sbu", "shapes", "snli_ve", "vg", "vqav2"}
    assert wanted <= set(known_datasets())


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(DataError, match=r"'shape'. Did you mean shapes"):
        find_dataset("shape")


def test_import_path() -> None:
    assert find_dataset("tests.data.tiny.Tiny").name == "tiny"
    with pytest.raises(DataError, match="cannot be imported"):
        find_dataset("tests.data.tiny.Absent")
    with pytest.raises(DataError, match="not a DatasetSpec"):
        find_dataset("elip.data.reader.ArrowTable")
    with pytest.raises(DataError, match="states no name and no views"):
        find_dataset("elip.data.datasets.base.DatasetSpec")


def test_a_source_file_that_is_no_python_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "garbled_source.py").write_text("class Mine(DatasetSpec:")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"cannot be imported: .*garbled_source\.py, line 1"):
        find_dataset("garbled_source.Mine")


@pytest.mark.parametrize("name", sorted(known_datasets()))
def test_no_file_serves_both_selection_or_training_and_scores(name: str) -> None:
    source = find_dataset(name)
    for kind, view in source.views.items():
        assert kind in LAYOUT
        files = {
            phase: {pattern for patterns in splits.values() for pattern in patterns}
            for phase, splits in view.chosen("default").items()
        }
        phases = sorted(files)
        for number, phase in enumerate(phases):
            for other in phases[number + 1 :]:
                assert not files[phase] & files[other]


def test_official_splits() -> None:
    vqa = find_dataset("vqav2").views["question"]
    assert vqa.chosen("official")["train"]["train"] == ("vqav2_train.arrow", "vqav2_val.arrow")
    assert vqa.chosen("default")["val"]["val"] == ("vqav2_rest_val.arrow",)
    assert set(find_dataset("nlvr2").views["pair"].chosen("official")["test"]) == {"dev", "test-P"}
    sbu = find_dataset("sbu").views["caption"]
    assert sbu.chosen("official") == sbu.chosen("default")
    with pytest.raises(DataError, match="choose default or official"):
        vqa.chosen("theirs")


def test_a_dataset_without_converter_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no converter"):
        convert("tests.data.tiny.Tiny", tmp_path, tmp_path, progress=False)
