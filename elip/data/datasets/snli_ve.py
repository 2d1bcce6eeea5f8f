"""SNLI-VE, visual entailment (Xie et al., 2019, arXiv:1901.06706)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elip.data.arrow_writer import ENTAILMENT
from elip.data.conversion import Conversion
from elip.data.datasets.base import DatasetSpec, View
from elip.data.entries import Note, Parsed, Row, having

_TRAIN = {"train": ("snli_train.arrow",)}
_DEV = {"dev": ("snli_dev.arrow",)}
_TEST = {"test": ("snli_test.arrow",)}


class SnliVe(DatasetSpec):
    """SNLI-VE: does an image contradict (0), leave open (1) or entail (2) a sentence?

    By default dev selects the model and test scores it. The reference reports both.
    """

    name = "snli_ve"
    views = {
        "entailment": View(
            splits={"train": _TRAIN, "val": _DEV, "test": _TEST},
            official={"train": _TRAIN, "val": _DEV | _TEST, "test": _DEV | _TEST},
            num_answers=3,
        )
    }

    def convert(self, job: Conversion) -> None:
        """Convert ``snli_ve_{train,dev,test}.jsonl`` and ``Flickr30K/images/``."""
        for split in ("train", "dev", "test"):
            annotations = job.find(f"snli_ve_{split}.jsonl")
            job.write(f"snli_{split}.arrow", ENTAILMENT, _rows(job, annotations))


_CLASSES = {"contradiction": 0, "neutral": 1, "entailment": 2}


def _rows(job: Conversion, annotations: Path) -> Parsed:
    """Return one row an image, in order of first appearance, with all its sentences."""
    images: dict[str, list[Mapping[str, Any]]] = {}
    kinds = {"Flickr30K_ID": str | int, "gold_label": str, "sentence1": str, "sentence2": str}
    for entry in having(job.lines(annotations), **kinds):
        if isinstance(entry, Note):
            yield entry
        elif entry["gold_label"] not in _CLASSES:
            yield Note("left out: annotators do not agree on a class", _name(entry))
        elif not entry["sentence2"].strip():
            yield Note("left out: empty hypothesis", _name(entry))
        else:
            number = str(entry["Flickr30K_ID"]).removesuffix(".jpg")
            images.setdefault(number, []).append(entry)
    job.expect(len(images))
    for number, entries in images.items():
        yield Row(
            (job.raw / "Flickr30K" / "images" / f"{number}.jpg",),
            {
                "sentences": [[entry["sentence1"], entry["sentence2"]] for entry in entries],
                "labels": [_CLASSES[entry["gold_label"]] for entry in entries],
            },
        )


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("pairID", entry["Flickr30K_ID"]))
