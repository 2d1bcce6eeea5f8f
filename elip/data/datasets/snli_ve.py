"""SNLI-VE, visual entailment (Xie et al., 2019, arXiv:1901.06706)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from elip.data.datasets.base import SCHEMAS, DatasetSpec, View
from elip.data.download import Download, Row

_TRAIN = {"train": ("snli_train.arrow",)}
_DEV = {"dev": ("snli_dev.arrow",)}
_TEST = {"test": ("snli_test.arrow",)}
_CLASSES = {"contradiction": 0, "neutral": 1, "entailment": 2}
_ENTRY = {"Flickr30K_ID": str | int, "gold_label": str, "sentence1": str, "sentence2": str}


class SnliVe(DatasetSpec):
    """SNLI-VE: an image contradicts (0), leaves open (1) or entails (2) a sentence.

    By default dev selects the model and test scores it. The reference reports both.
    """

    name = "snli_ve"
    views = {
        "entailment": View(
            {"train": _TRAIN, "val": _DEV, "test": _TEST},
            official={"train": _TRAIN, "val": _DEV | _TEST, "test": _DEV | _TEST},
            num_answers=3,
        )
    }
    layout = "snli_ve_train.jsonl, snli_ve_dev.jsonl, snli_ve_test.jsonl and Flickr30K/images/"
    files = {f"snli_{split}.arrow": SCHEMAS["entailment"] for split in ("train", "dev", "test")}

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per image, in order of first appearance."""
        for split, file in zip(("train", "dev", "test"), self.files, strict=True):
            images: dict[str, list[Any]] = {}
            for entry in download.items(download.find(f"snli_ve_{split}.jsonl"), _ENTRY, ""):
                number = str(entry["Flickr30K_ID"]).removesuffix(".jpg")
                if entry["gold_label"] not in _CLASSES:
                    download.skip("hypothesis without a gold label", entry["sentence2"])
                elif not entry["sentence2"].strip():
                    download.skip("empty hypothesis", f"image {number}")
                else:
                    images.setdefault(number, []).append(entry)
            for number, entries in images.items():
                sentences = [[e["sentence1"].strip(), e["sentence2"].strip()] for e in entries]
                labels = [_CLASSES[entry["gold_label"]] for entry in entries]
                place = download.root / "Flickr30K" / "images" / f"{number}.jpg"
                yield Row(file, {"image": place}, {"sentences": sentences, "labels": labels})
