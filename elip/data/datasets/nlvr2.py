"""NLVR2 (Suhr et al., 2018, arXiv:1811.00491)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from elip.data.datasets.base import SCHEMAS, DatasetSpec, View
from elip.data.download import Download, Row

_TRAIN = {"train": ("nlvr2_train.arrow",)}
_DEV = {"dev": ("nlvr2_dev.arrow",)}
_TEST = {"test-P": ("nlvr2_test1.arrow",)}
_SPLITS = ("train", "dev", "test1", "balanced_dev", "balanced_test1", "unbalanced_dev",
           "unbalanced_test1")  # fmt: skip


class Nlvr2(DatasetSpec):
    """NLVR2: is a sentence true of two photographs?

    By default dev selects the model and test-P scores it. The reference reports both.
    """

    name = "nlvr2"
    views = {
        "pair": View(
            {"train": _TRAIN, "val": _DEV, "test": _TEST},
            official={"train": _TRAIN, "val": _DEV | _TEST, "test": _DEV | _TEST},
            num_answers=2,
        )
    }
    layout = "nlvr2/data/ with its JSON files, images/train/, dev/ and test1/"
    files = {f"nlvr2_{split}.arrow": SCHEMAS["pair"] for split in _SPLITS}

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per pair of images, in order of first appearance."""
        for name, file in zip(_SPLITS, self.files, strict=True):
            kind, _, split = name.rpartition("_")
            groups: dict[str, list[Any]] = {}
            for entry in statements(download, f"nlvr2/data/{kind}/{name}.json", split == "train"):
                groups.setdefault(entry["identifier"].rpartition("-")[0], []).append(entry)
            for pair, entries in groups.items():
                train = split == "train"
                folder = f"images/train/{entries[0]['directory']}" if train else split
                images = {
                    f"image_{n}": download.root / folder / f"{pair}-img{n}.png" for n in (0, 1)
                }
                values = {
                    "questions": [entry["sentence"] for entry in entries],
                    "answers": [entry["label"] for entry in entries],
                    "identifier": pair,
                }
                yield Row(file, images, values)


def statements(download: Download, path: str, by_folder: bool) -> Iterator[dict[str, Any]]:
    """Yield the entries of NLVR2 or NLVR with a sentence and a label, "True" or "False".

    Args:
        download: The download.
        path: The file of sentences.
        by_folder: Entries name the folder of their images.
    """
    shape = {"identifier": str, "sentence": str, "label": str | bool}
    shape |= {"directory": str | int} if by_folder else {}
    for entry in download.items(download.find(path), shape, ""):
        label = str(entry["label"]).capitalize()
        if entry["sentence"].strip() and label in ("True", "False"):
            yield {**entry, "label": label}
        else:
            download.skip("missing sentence or label", entry["identifier"])
