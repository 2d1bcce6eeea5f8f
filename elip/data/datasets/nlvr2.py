"""NLVR2 (Suhr et al., 2018, arXiv:1811.00491)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elip.data.arrow_writer import PAIR
from elip.data.conversion import Conversion
from elip.data.datasets.base import DatasetSpec, View
from elip.data.entries import Note, Parsed, Row, having, parsed

_TRAIN = {"train": ("nlvr2_train.arrow",)}
_DEV = {"dev": ("nlvr2_dev.arrow",)}
_TEST = {"test-P": ("nlvr2_test1.arrow",)}


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

    def convert(self, job: Conversion) -> None:
        """Convert ``nlvr2/data/*.json`` and the images in ``images/train``, ``dev``, ``test1``."""
        for split in ("train", "dev", "test1"):
            _write(job, f"nlvr2/data/{split}.json", f"nlvr2_{split}.arrow", split)
        for kind in ("balanced", "unbalanced"):
            for split in ("dev", "test1"):
                source = f"nlvr2/data/{kind}/{kind}_{split}.json"
                _write(job, source, f"nlvr2_{kind}_{split}.arrow", split)


def _write(job: Conversion, source: str, name: str, split: str) -> None:
    """Write one row a pair of images, in order of first appearance, with all its sentences."""

    def rows() -> Parsed:
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for entry in having(job.lines(job.find(source)), identifier=str, sentence=str, label=str):
            if isinstance(entry, Note):
                yield entry
            elif entry["sentence"].strip() and entry["label"] in ("True", "False"):
                groups.setdefault(entry["identifier"].rpartition("-")[0], []).append(entry)
            else:
                yield Note("left out: no sentence or no label", entry["identifier"])
        job.expect(len(groups))
        yield from parsed(groups.items(), row)

    def row(group: tuple[str, list[Mapping[str, Any]]]) -> Parsed:
        pair, entries = group
        folder = f"images/train/{entries[0]['directory']}" if split == "train" else split
        yield Row(
            (job.raw / folder / f"{pair}-img0.png", job.raw / folder / f"{pair}-img1.png"),
            {
                "questions": [entry["sentence"] for entry in entries],
                "answers": [entry["label"] for entry in entries],
                "identifier": pair,
            },
        )

    job.write(name, PAIR, rows())
