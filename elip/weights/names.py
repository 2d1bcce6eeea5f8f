"""From the names of other people's weights to ours.

Our names start with ``meter.`` (the model) or ``task.`` (the heads).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

# METER's names (Dou et al., 2022; 671 keys in the released pre-training state) and ours.
_METER: tuple[tuple[str, str], ...] = (
    (r"vit_model\.visual\.(.+)", r"visual.\1"),
    (r"text_transformer\.(?!pooler\.|embeddings\.position_ids$)(.+)", r"meter.text.transformer.\1"),
    (r"cross_modal_(text|image)_transform\.(.+)", r"meter.\1_projection.\2"),
    (r"cross_modal_(text|image)_pooler\.(.+)", r"meter.\1_pooler.\2"),
    (r"token_type_embeddings\.weight", r"meter.token_types.weight"),
    (r"mlm_score\.transform\.dense\.(.+)", r"task.mlm.dense.\1"),
    (r"mlm_score\.transform\.LayerNorm\.(.+)", r"task.mlm.norm.\1"),
    (r"mlm_score\.decoder\.weight", r"task.mlm.decoder.weight"),
    (r"mlm_score\.bias", r"task.mlm.decoder.bias"),
    (r"itm_score\.fc\.(.+)", r"task.itm.\1"),
    (r"rank_output\.(.+)", r"task.rank.\1"),
    (r"(?:vqa|nlvr2|snli)_classifier\.(.+)", r"task.classifier.\1"),
)
_FUSION = re.compile(r"cross_modal_(text|image)_layers\.(\d+)\.(.+)\.(weight|bias)")
_FUSION_PARTS = {
    "attention.self.query": "self_attention.query",
    "attention.self.key": "self_attention.key",
    "attention.self.value": "self_attention.value",
    "attention.output.dense": "self_attention.out",
    "attention.output.LayerNorm": "self_attention.norm",
    "crossattention.self.query": "cross_attention.query",
    "crossattention.self.key": "cross_attention.key",
    "crossattention.self.value": "cross_attention.value",
    "crossattention.output.dense": "cross_attention.out",
    "crossattention.output.LayerNorm": "cross_attention.norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward.norm",
}
# OpenAI's names for a CLIP image tower, and timm's.
_CLIP: tuple[tuple[str, str], ...] = (
    (r"visual\.class_embedding", r"cls_token"),
    (r"visual\.positional_embedding", r"pos_embed"),
    (r"visual\.conv1\.weight", r"patch_embed.proj.weight"),
    (r"visual\.ln_pre\.(.+)", r"norm_pre.\1"),
    (r"visual\.ln_post\.(.+)", r"norm.\1"),
    (r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(.+)", r"blocks.\1.attn.qkv.\2"),
    (r"visual\.transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
    (r"visual\.transformer\.resblocks\.(\d+)\.ln_([12])\.(.+)", r"blocks.\1.norm\2.\3"),
    (r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    (r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.+)", r"blocks.\1.mlp.fc2.\2"),
)


def is_meter(state: dict[str, Tensor]) -> bool:
    """Whether these are METER's names."""
    return "cross_modal_text_transform.weight" in state


def is_clip(state: dict[str, Tensor]) -> bool:
    """Whether these are OpenAI CLIP's names."""
    return "visual.class_embedding" in state


def from_meter(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Rename a METER state.

    Keys and values of the fusion are stored apart by METER and together here. A table of two
    token types gets a third row, a copy of the second, as METER does for NLVR2.

    Returns:
        The state under our names, and the METER names that have no place here (parts that METER
        carries along and never uses, or that are not its own).
    """
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, value in state.items():
        ours = _meter_name(name)
        if ours is None:
            unknown.append(name)
        elif ours.startswith("visual."):
            image, left = from_clip({ours: value})
            renamed |= {f"meter.image.vit.{key}": tensor for key, tensor in image.items()}
            unknown += [name] if left else []
        else:
            renamed[ours] = value
    for name in [name for name in renamed if ".key." in name and name.startswith("meter.fusion.")]:
        partner = name.replace(".key.", ".value.")
        if partner not in renamed:
            raise ValueError(f"The checkpoint is not whole: it has {name}, but no {partner}.")
        key, value = renamed.pop(name), renamed.pop(partner)
        if key.shape != value.shape or not key.ndim:
            raise ValueError(
                f"The checkpoint is damaged: {name} is {tuple(key.shape)}, and {partner} "
                f"{tuple(value.shape)}."
            )
        both = torch.cat([key, value])
        renamed[name.replace(".key.", ".key_value.")] = both
    types = renamed.get("meter.token_types.weight")
    if types is not None and types.shape[:1] == (2,):
        renamed["meter.token_types.weight"] = torch.cat([types, types[1:]])
    return renamed, tuple(unknown)


def _meter_name(name: str) -> str | None:
    fusion = _FUSION.fullmatch(name)
    if fusion:
        stream, layer, part, kind = fusion.groups()
        ours = _FUSION_PARTS.get(part)
        return None if ours is None else f"meter.fusion.{stream}_layers.{layer}.{ours}.{kind}"
    return _substitute(name, _METER)


def from_clip(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Rename OpenAI's image tower to timm's names (no prefix).

    Returns:
        The image tower, and the names that have no place in it.
    """
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, value in state.items():
        ours = _substitute(name, _CLIP)
        if ours is None:
            unknown.append(name)
        elif ours == "cls_token":
            renamed[ours] = value.reshape(1, 1, -1)
        elif ours == "pos_embed":
            renamed[ours] = value.unsqueeze(0)
        else:
            renamed[ours] = value
    return renamed, tuple(unknown)


def _substitute(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, replacement in table:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return None
