"""Recorded cases of the official reducers, and the official blocks rebuilt from their weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from elip.model.image_encoder import ImageEncoder
from elip.model.interface import EncodedImage
from elip.model.signals import BlockSignals
from elip.schedule import Schedule
from reducers import EncodedText, Reduced, Reducer, Signals
from reducers.identity import Identity


@dataclass(frozen=True)
class Case:
    """One recorded case: its description and its tensors."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def params(self) -> dict[str, Any]:
        params: dict[str, Any] = self.about["params"]
        return params

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        return tensor if tensor.dtype != torch.uint8 else tensor.bool()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @property
    def weights(self) -> dict[str, Tensor]:
        """The official module's weights, by their names."""
        return {name[2:]: w for name, w in self.tensors.items() if name.startswith("w.")}

    def close(self, ours: Tensor, name: str, atol: float | None = None) -> None:
        """Compare with a recorded tensor; ``atol`` None takes the case's own tolerance."""
        limit = self.about["tolerance"]["atol"] if atol is None else atol
        torch.testing.assert_close(ours, self[name], atol=limit, rtol=limit)

    def same(self, ours: Tensor, name: str) -> None:
        """Compare whole numbers exactly."""
        torch.testing.assert_close(ours, self[name].to(ours.dtype), atol=0, rtol=0)


def near(ours: Tensor, official: Tensor) -> None:
    """Compare the tokens after one reduction."""
    torch.testing.assert_close(ours, official, atol=1e-5, rtol=1e-5)


def case_ids(golden: Path) -> list[str]:
    index = golden / "reducers" / "index.json"
    if not index.is_file():
        return []
    return [case["id"] for case in json.loads(index.read_text())["cases"]]


def load_case(golden: Path, name: str) -> Case:
    path = golden / "reducers" / name
    tensors = path.with_suffix(".safetensors")
    return Case(
        json.loads(path.with_suffix(".json").read_text()),
        load_file(tensors) if tensors.is_file() else {},
    )


def signals(patches: Tensor, **known: Any) -> Signals:
    """Make signals from the given values and harmless defaults."""
    batch, count, width = patches.shape
    always = {
        "cls": patches.new_zeros(batch, 1, width),
        "stage": 0,
        "layer": 0,
        "grid": (1, count),
        "seeds": torch.zeros(batch, dtype=torch.int64),
    }
    fields = {
        name: known.pop(name) for name in ("cls", "stage", "layer", "grid", "mask") if name in known
    }
    return Signals(**(always | fields), requested=known)


def ones(patches: Tensor) -> Tensor:
    return torch.ones(patches.shape[:2])


def heads(metric: Tensor) -> Tensor:
    """Keys [B,1,N,C] of one head whose mean over heads is ``metric`` [B,N,C]."""
    return metric.unsqueeze(1)


def kept_indices(reduced: Reduced, kept: int) -> Tensor:
    """Return the old token of each of the first ``kept`` new tokens, [B,kept]."""
    return old_behind(reduced.assignment, kept)


def old_behind(assignment: Tensor, kept: int) -> Tensor:
    index = torch.arange(assignment.shape[1]).expand_as(assignment)
    alone = (assignment >= 0) & (assignment < kept)
    return (
        torch.full((len(assignment), kept + 1), -1)
        .scatter(1, torch.where(alone, assignment, kept), index)[:, :kept]
        .contiguous()
    )


def with_cls(assignment: Tensor) -> Tensor:
    """Shift an assignment of patches so that CLS is token 0; -1 stays -1."""
    shifted = torch.where(assignment >= 0, assignment + 1, assignment)
    return torch.cat([torch.zeros_like(shifted[:, :1]), shifted], dim=1)


_OFFICIAL_NAMES = (
    ("resblocks.", "blocks."),
    ("attn.in_proj_weight", "attn.qkv.weight"),
    ("attn.in_proj_bias", "attn.qkv.bias"),
    ("attn.out_proj", "attn.proj"),
    ("ln_1", "norm1"),
    ("ln_2", "norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)


def encoder_of(case: Case, reducer: Reducer | None, schedule: Schedule) -> ImageEncoder:
    """Rebuild the case's blocks from their weights and put the reducer in; no final norm."""
    weights = {}
    for name, tensor in case.weights.items():
        for official, ours in _OFFICIAL_NAMES:
            name = name.replace(official, ours)
        weights[name] = tensor
    params = case.params
    depth = 1 + max(int(name.split(".")[1]) for name in weights)
    hidden, width = weights["blocks.0.mlp.fc1.weight"].shape
    vit = VisionTransformer(
        img_size=(1, params["N"] - 1),
        patch_size=1,
        in_chans=1,
        embed_dim=width,
        depth=depth,
        num_heads=params["heads"],
        mlp_ratio=hidden / width,
        num_classes=0,
        global_pool="",
        act_layer="quick_gelu" if params.get("act") == "quickgelu" else nn.GELU,
        norm_layer=partial(nn.LayerNorm, eps=params["ln_eps"]),
    )
    vit.norm = nn.Identity()
    missing, unexpected = vit.load_state_dict(weights, strict=False)
    assert not unexpected
    assert not [name for name in missing if name.startswith("blocks.")]
    encoder = ImageEncoder(vit, BlockSignals(vit, nn.Identity(), nn.Identity()), width)
    encoder.set_reduction(reducer or Identity(), schedule)
    return encoder.eval()


@torch.no_grad()
def encode(encoder: ImageEncoder, tokens: Tensor, text_cls: Tensor | None = None) -> EncodedImage:
    """Run the rebuilt blocks on the recorded tokens [B,1+P,D]."""
    text = None
    if text_cls is not None:
        text = EncodedText(text_cls.unsqueeze(1), torch.ones(len(tokens), 1, dtype=torch.bool))
    return encoder(start(tokens), text)


def start(tokens: Tensor) -> EncodedImage:
    """Begin an encoding with recorded tokens [B,1+P,D]."""
    batch, count = tokens.shape[0], tokens.shape[1] - 1
    return EncodedImage(
        tokens=tokens,
        block=0,
        sizes=torch.ones(batch, count),
        patch_to_token=torch.arange(count).expand(batch, count),
        seeds=torch.zeros(batch, dtype=torch.int64),
    )
