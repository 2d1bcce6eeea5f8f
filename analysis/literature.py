"""Published results to hold ours against, as far as they have been checked.

None of them is measured by this project. They come from the same model in another setting: full
size, web-scale pre-training, other test data than a small study has.
"""

from __future__ import annotations

from dataclasses import dataclass

_METER = "Dou et al., 2022, arXiv:2111.02387"
_FULL = "METER, CLIP-ViT-B/16 and RoBERTa-base, pre-trained on COCO, VG, CC and SBU; no reduction"


@dataclass(frozen=True)
class Published:
    """One published score.

    Attributes:
        model: Name of the model.
        dataset: Data set.
        split: Its split.
        metric: Score, under this project's name for it.
        score: Share in [0, 1].
        setting: How it was made.
        source: Where it stands.
        caution: What does not compare.
    """

    model: str
    dataset: str
    split: str
    metric: str
    score: float
    setting: str
    source: str
    caution: str


def _retrieval(dataset: str, tr: tuple[float, ...], ir: tuple[float, ...]) -> tuple[Published, ...]:
    return tuple(
        Published(
            "METER", dataset, "test", f"{side}_r{k}", percent / 100, _FULL,
            f"released checkpoints; {_METER}", "Karpathy test split; fine-tuned at 384 px",
        )
        for side, values in (("tr", tr), ("ir", ir))
        for k, percent in zip((1, 5, 10), values, strict=True)
    )  # fmt: skip


PUBLISHED: tuple[Published, ...] = (
    Published("METER", "vqav2", "test-dev", "vqa_score", 0.7768, _FULL, _METER,
              "scored by the evaluation server; fine-tuned at 576 px on train and val"),
    Published("METER", "vqav2", "test-std", "vqa_score", 0.7764, _FULL, _METER,
              "scored by the evaluation server; fine-tuned at 576 px on train and val"),
    *_retrieval("f30k", (94.3, 99.6, 99.9), (82.2, 96.3, 98.4)),
    *_retrieval("coco", (76.2, 93.2, 96.8), (57.1, 82.7, 90.1)),
)  # fmt: skip
"""The table."""
