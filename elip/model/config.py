"""Sizes of a METER model and named presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Literal

Preset = Literal["tiny", "clip16_roberta"]

MOST_TEXT = 512
"""Number of positions of RoBERTa and BERT."""


@dataclass(frozen=True)
class Sizes:
    """All sizes of a METER model; `MeterConfig` explains each. The defaults are those of ``tiny``.

    ``image_blocks`` None runs all blocks of a named model but the last, as METER does.
    ``vocab_size`` None uses the tokenizer's.
    """

    image_encoder: str = "vit"
    image_size: int = 64
    patch_size: int = 8
    image_width: int = 64
    image_blocks: int | None = 5
    image_heads: int = 2
    pixels: Literal["clip", "imagenet"] = "clip"
    text_encoder: str = "roberta"
    vocab_size: int | None = None
    max_text_len: int = 20
    text_width: int = 64
    text_layers: int = 1
    text_heads: int = 2
    fusion_width: int = 64
    fusion_layers: int = 2
    fusion_heads: int = 2
    mlp_ratio: float = 4.0
    dropout: float = 0.0


PRESETS: dict[str, Sizes] = {
    "tiny": Sizes(),
    # Dou et al., An Empirical Study of Training End-to-End Vision-and-Language Transformers, 2022,
    # arXiv:2111.02387: CLIP ViT-B/16 and RoBERTa-base, six co-attention layers a side.
    "clip16_roberta": Sizes(
        image_encoder="vit_base_patch16_clip_quickgelu_224.openai", image_size=288, patch_size=16,
        image_width=768, image_blocks=11, image_heads=12, text_encoder="roberta-base",
        max_text_len=50, text_width=768, text_layers=12, text_heads=12, fusion_width=768,
        fusion_layers=6, fusion_heads=12, dropout=0.1,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class MeterConfig:
    """A preset and the differences from it; None keeps the preset's value.

    Args:
        preset: ``tiny`` trains on a laptop's CPU; ``clip16_roberta`` is the published model.
        image_encoder: ``vit`` for a ViT of the sizes below in CLIP's layout (pre-norm, quick-GELU,
            bias-free patch convolution), or the name of any timm `VisionTransformer`.
        image_size: Side of the image in pixels; a multiple of the patch size.
        patch_size: Side of a patch in pixels (``vit`` only; a named model has its own).
        image_width: Width of the image tokens (``vit`` only).
        image_blocks: Number of image encoder blocks to run.
        image_heads: Attention heads of the image encoder (``vit`` only).
        pixels: Mean and standard deviation for normalising pixels.
        text_encoder: ``roberta`` or ``bert`` with the sizes below; ``roberta-base``,
            ``roberta-large`` or ``bert-base-uncased``; or a folder with a transformers
            configuration.
        vocab_size: Number of word pieces.
        max_text_len: Maximum tokens per text, including special tokens; longer texts are cut.
        text_width: Width of the text encoder (``roberta`` and ``bert`` only).
        text_layers: Layers of the text encoder (``roberta`` and ``bert`` only).
        text_heads: Attention heads of the text encoder (``roberta`` and ``bert`` only).
        fusion_width: Width of the co-attention fusion.
        fusion_layers: Co-attention layers per stream.
        fusion_heads: Attention heads of the fusion.
        mlp_ratio: Inner width of the fusion's feed-forward halves, divided by ``fusion_width``.
        dropout: Dropout of text encoder and fusion, in [0, 1).
    """

    preset: Preset = "tiny"
    image_encoder: str | None = None
    image_size: int | None = None
    patch_size: int | None = None
    image_width: int | None = None
    image_blocks: int | None = None
    image_heads: int | None = None
    pixels: Literal["clip", "imagenet"] | None = None
    text_encoder: str | None = None
    vocab_size: int | None = None
    max_text_len: int | None = None
    text_width: int | None = None
    text_layers: int | None = None
    text_heads: int | None = None
    fusion_width: int | None = None
    fusion_layers: int | None = None
    fusion_heads: int | None = None
    mlp_ratio: float | None = None
    dropout: float | None = None

    def resolve(self) -> Sizes:
        """Return the preset with the differences applied.

        Raises:
            ValueError: The preset is unknown, or the sizes do not fit together.
        """
        if self.preset not in PRESETS:
            near = get_close_matches(self.preset, PRESETS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"No preset {self.preset!r}; choose from {sorted(PRESETS)}.{hint}")
        given = {name: value for name, value in asdict(self).items() if value is not None}
        del given["preset"]
        base = PRESETS[self.preset]
        if given.get("image_encoder", base.image_encoder) != base.image_encoder:
            base = replace(base, image_blocks=None)
        sizes = replace(base, **given)
        _check(sizes)
        return sizes


def _check(sizes: Sizes) -> None:
    for field in fields(sizes):
        value = getattr(sizes, field.name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{field.name} is {value}; it must be at least 1.")
    if sizes.mlp_ratio <= 0:
        raise ValueError(f"mlp_ratio is {sizes.mlp_ratio}; it must be above 0.")
    if not 0 <= sizes.dropout < 1:
        raise ValueError(f"dropout is {sizes.dropout}; it must be at least 0 and below 1.")
    if sizes.max_text_len > MOST_TEXT:
        raise ValueError(
            f"max_text_len is {sizes.max_text_len}; RoBERTa and BERT have {MOST_TEXT} positions."
        )
    if sizes.image_encoder == "vit" and sizes.image_size % sizes.patch_size:
        raise ValueError(
            f"image_size {sizes.image_size} is not a multiple of patch_size {sizes.patch_size}."
        )
    if sizes.image_encoder == "vit" and sizes.image_blocks is None:
        raise ValueError("image_encoder 'vit' needs image_blocks, the number of blocks to run.")
    for part in ("image", "text", "fusion"):
        width, heads = getattr(sizes, f"{part}_width"), getattr(sizes, f"{part}_heads")
        if width % heads:
            raise ValueError(f"{part}_width {width} is not a multiple of {part}_heads {heads}.")
