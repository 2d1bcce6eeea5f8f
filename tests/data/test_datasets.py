from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from elip.data.arrow import ArrowTable
from elip.data.convert import convert
from elip.data.datasets import find_dataset, known_datasets
from elip.data.datasets.base import LAYOUT, Columns, DataError, DatasetSpec, Row, View
from elip.data.download import Download
from tests.data.test_convert import put
from tests.data.tiny import png


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(DataError, match=r"'shape'. Did you mean shapes"):
        find_dataset("shape")


def test_import_path() -> None:
    assert find_dataset("tests.data.tiny.Tiny").name == "tiny"
    with pytest.raises(DataError, match="cannot be imported"):
        find_dataset("tests.data.tiny.Absent")
    with pytest.raises(DataError, match="not a DatasetSpec"):
        find_dataset("elip.data.arrow.ArrowTable")
    with pytest.raises(DataError, match="must define `name` and `views`"):
        find_dataset("elip.data.datasets.base.DatasetSpec")


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


def test_a_dataset_with_an_own_kind_of_example_is_one_class(tmp_path: Path) -> None:
    put(tmp_path / "sounds.json", [["a.png", "a dog barks", 3]])
    (tmp_path / "a.png").write_bytes(png(1))
    report = convert("tests.data.test_datasets.Sounds", tmp_path, tmp_path, progress=False)
    assert report.rows == {"sounds.arrow": 1}
    view = Sounds.views["sound"]
    assert view.columns is not None
    table = ArrowTable(Sounds().paths(tmp_path, ("sounds.arrow",)), view.columns)
    assert (table.text(0, 0), table.target(0, 0)) == ("a dog barks", 3)
    with pytest.raises(DataError, match="no converter"):
        convert("tests.data.tiny.Tiny", tmp_path, tmp_path, progress=False)


class Sounds(DatasetSpec):
    """A dataset whose kind of example no other dataset has."""

    name = "sounds"
    views = {
        "sound": View(
            splits={"train": {"train": ("sounds.arrow",)}},
            columns=Columns(("picture",), "says", "loudness"),
            num_answers=5,
        )
    }
    files = {
        "sounds.arrow": pa.schema(
            {
                "picture": pa.binary(),
                "says": pa.list_(pa.string()),
                "loudness": pa.list_(pa.int64()),
            }
        )
    }

    def rows(self, download: Download) -> Iterator[Row]:
        """Read [image, what it says, loudness]."""
        for name, text, loud in download.items(download.find("sounds.json"), (str, str, int)):
            values = {"says": [text], "loudness": [loud]}
            yield Row("sounds.arrow", {"picture": download.root / name}, values)
