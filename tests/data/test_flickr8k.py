"""Flickr8k, from both layouts in the wild."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from elip.data.convert import convert
from elip.data.datasets import find_dataset
from elip.data.datasets.base import LAYOUT
from elip.data.reader import ArrowTable

NAMES = [f"{number}_ab.jpg" for number in range(8)]
CAPTIONS = ["A dog , and a cat .", 'He says "go" .']


def images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in NAMES:
        Image.new("RGB", (40, 30), "red").save(folder / name)


def lists(raw: Path) -> None:
    for word, names in (("train", NAMES[:5]), ("dev", NAMES[5:6]), ("test", NAMES[6:7])):
        (raw / f"Flickr_8k.{word}Images.txt").write_text("\n".join(names) + "\n")


def rows(out: Path, split: str) -> dict[str, list[str]]:
    spec = find_dataset("flickr8k")
    table = ArrowTable(spec.paths(out, (f"flickr8k_{split}.arrow",)), LAYOUT["caption"])
    return {
        table.key(row, 0): [table.text(row, item) for item in range(len(table.items(row)))]
        for row in range(table.num_rows)
    }


def test_the_authors_layout_and_its_copy_give_the_same_rows(tmp_path: Path) -> None:
    authors, copy = tmp_path / "authors", tmp_path / "copy"
    images(authors / "Flicker8k_Dataset")
    images(copy / "Images")
    with (authors / "Flickr8k.token.txt").open("w") as file:
        file.writelines(
            f"{name}#{i}\t{text}\n" for name in NAMES for i, text in enumerate(CAPTIONS)
        )
    with (copy / "captions.txt").open("w") as file:
        file.write("image,caption\n")
        file.writelines(
            f'{n},"{t.replace(chr(34), 2 * chr(34))}"\n' for n in NAMES for t in CAPTIONS
        )
    for raw in (authors, copy):
        lists(raw)
        counts = convert("flickr8k", raw, raw / "out", progress=False)
        assert counts["flickr8k_train.arrow: left out: image in none of the split lists"] == 1
        assert rows(raw / "out", "train") == dict.fromkeys(NAMES[:5], CAPTIONS)
        assert rows(raw / "out", "test") == {NAMES[6]: CAPTIONS}


def test_without_the_lists_the_same_images_are_held_out_each_time(tmp_path: Path) -> None:
    images(tmp_path / "Images")
    text = "".join(f"{name},A dog\n" for name in NAMES)
    drawn = []
    for number in range(2):
        (tmp_path / "captions.txt").write_text("image,caption\n" + text)
        convert("flickr8k", tmp_path, tmp_path / str(number), progress=False)
        parts = [rows(tmp_path / str(number), split) for split in ("train", "val", "test")]
        assert [len(part) for part in parts] == [4, 2, 2]
        drawn.append(parts)
    assert drawn[0] == drawn[1]
