"""VQA v2 (Goyal et al., 2016, arXiv:1612.00837)."""

from __future__ import annotations

from elip.data.sources.base import Source, View

_TEST = {"test-dev": ("vqav2_test-dev.arrow",), "test-std": ("vqav2_test.arrow",)}


class VqaV2(Source):
    """VQA v2: questions with ten human answers each, as soft scores over the frequent answers.

    By default the images of `rest_val` select the model and all others train it. The reference
    trains on train and val and selects on val.
    """

    name = "vqav2"
    views = {
        "question": View(
            splits={
                "train": {"train": ("vqav2_train.arrow", "vqav2_trainable_val.arrow")},
                "val": {"val": ("vqav2_rest_val.arrow",)},
                "test": _TEST,
            },
            official={
                "train": {"train": ("vqav2_train.arrow", "vqav2_val.arrow")},
                "val": {"val": ("vqav2_val.arrow",)},
                "test": {"test-std": ("vqav2_test.arrow",)},
            },
            num_answers=3129,
            answer_file="vqav2_answers.json",
        )
    }
