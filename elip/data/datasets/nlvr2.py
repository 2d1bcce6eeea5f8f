"""NLVR2 (Suhr et al., 2018, arXiv:1811.00491)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from elip.data.datasets.base import DatasetSpec, Row, View

if TYPE_CHECKING:
    from elip.data.download import Download

PAIR = pa.schema(
    {
        "image_0": pa.binary(),
        "image_1": pa.binary(),
        "questions": pa.list_(pa.string()),
        "answers": pa.list_(pa.string()),
        "identifier": pa.string(),
    }
)
"""Sentences about two images, "True" or "False"."""

_TRAIN = {"train": ("nlvr2_train.arrow",)}
_DEV = {"dev": ("nlvr2_dev.arrow",)}
_TEST = {"test-P": ("nlvr2_test1.arrow",)}
_SPLITS = (
    ("train", ""), ("dev", ""), ("test1", ""),
    ("dev", "balanced"), ("test1", "balanced"), ("dev", "unbalanced"), ("test1", "unbalanced"),
)  # fmt: skip


class Nlvr2(DatasetSpec):
    """NLVR2: is a sentence true of two photographs?

    By default dev selects the model and test-P scores it. The reference reports both.
    """

    name = "nlvr2"
    views = {
        "pair": View(
            splits={"train": _TRAIN, "val": _DEV, "test": _TEST},
            official={"train": _TRAIN, "val": _DEV | _TEST, "test": _DEV | _TEST},
            num_answers=2,
        )
    }
    layout = "nlvr2/data/ with its JSON files, images/train/, dev/ and test1/"
    files = {f"nlvr2_{kind}{'_' if kind else ''}{split}.arrow": PAIR for split, kind in _SPLITS}

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per pair of images, in order of first appearance."""
        for (split, kind), file in zip(_SPLITS, self.files, strict=True):
            path = f"nlvr2/data/{kind}/{kind}_{split}.json" if kind else f"nlvr2/data/{split}.json"
            groups: dict[str, list[Any]] = {}
            for entry in statements(download, path, split == "train"):
                groups.setdefault(entry["identifier"].rpartition("-")[0], []).append(entry)
            for pair, entries in groups.items():
                train = split == "train"
                folder = f"images/train/{entries[0]['directory']}" if train else split
                names = {f"image_{n}": f"{pair}-img{n}.png" for n in (0, 1)}
                yield Row(
                    file,
                    {column: download.root / folder / name for column, name in names.items()},
                    {
                        "questions": [entry["sentence"] for entry in entries],
                        "answers": [entry["label"] for entry in entries],
                        "identifier": pair,
                    },
                )


def statements(download: Download, path: str, by_folder: bool) -> Iterator[dict[str, Any]]:
    """Yield the entries of NLVR2 or NLVR with a sentence and a label, "True" or "False".

    Args:
        download: The download.
        path: The file of sentences.
        by_folder: Entries name the folder of their images.
    """
    shape = {"identifier": str, "sentence": str, "label": str | bool}
    shape |= {"directory": str | int} if by_folder else {}
    for entry in download.lines(download.find(path), shape):
        label = str(entry["label"]).capitalize()
        if entry["sentence"].strip() and label in ("True", "False"):
            yield {**entry, "label": label}
        else:
            download.skip("missing sentence or label", entry["identifier"])
