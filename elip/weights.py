"""Load weights from other programs without running code from a file, and export our own.

``load_weights`` loads a whole model, ``load_image_weights`` and ``load_text_weights`` one encoder.
Each returns a `LoadReport` that lists every tensor. To export the weights of a run:

    python -m elip.weights runs/shapes/vqa --out vqa.safetensors
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from timm.layers.activations import QuickGELU
from torch import Tensor, nn
from transformers import AutoModel

from elip.files import whole_file
from elip.identity import INFO_KEY, find_checkpoint, read_checkpoint_info
from elip.model.meter import Meter

State = dict[str, Tensor]


@dataclass(frozen=True)
class LoadReport:
    """What happened to every tensor."""

    source: str  # where the weights came from
    used: tuple[str, ...]  # tensors that were copied
    resized: tuple[str, ...]  # those of them that were interpolated first
    missing: tuple[str, ...]  # tensors that the source lacks; they keep their initial values
    unused: tuple[str, ...]  # tensors of the source that the model does not have

    def __str__(self) -> str:
        """Summarise the report in a few lines."""
        lines = [f"Weights from {self.source}: {len(self.used)} tensors used."]
        for what in ("resized", "missing", "unused"):
            if names := getattr(self, what):
                groups = Counter(".".join(name.split(".")[:3]) for name in names)
                listed = (f"{group} ({n})" if n > 1 else group for group, n in groups.items())
                lines.append(f"  {len(names)} {what}: {', '.join(listed)}")
        return "\n".join(lines)


# --- loading


def load_weights(module: nn.Module, source: str) -> LoadReport:
    """Load a whole model into a module with ``meter`` and ``task`` submodules.

    Args:
        module: The module.
        source: A run directory, one of our checkpoints or exports, or a METER checkpoint.
    """
    path = find_checkpoint(source)
    state, unknown = read_state(path), tuple[str, ...]()
    if "cross_modal_text_transform.weight" in state:
        if isinstance(meter := getattr(module, "meter", None), Meter):
            _check_activation(meter, f"{path} is a METER checkpoint")
        state, unknown = from_meter(state)
    elif not any(name.startswith("meter.") for name in state):
        hint = " Load OpenAI CLIP with --model.image_weights." if _CLIP_NAME in state else ""
        raise ValueError(f"{path} is not a METER checkpoint; it has {sorted(state)[:3]}.{hint}")
    if "task.rank.weight" in module.state_dict() and "task.rank.weight" not in state:
        # The rank head starts from the matching head's row for "match" (Dou et al., 2022).
        for kind in ("weight", "bias"):
            if (matching := state.get(f"task.itm.{kind}")) is not None:
                state[f"task.rank.{kind}"] = matching[1:]
    return _copy(module, state, str(path), unknown)


def load_image_weights(meter: Meter, source: str) -> LoadReport:
    """Load the image encoder from an OpenAI CLIP archive, a timm file, or a timm name."""
    path, unknown = Path(source).expanduser(), tuple[str, ...]()
    if path.exists():
        state = read_state(path)
        if _CLIP_NAME in state:
            if "input_resolution" in state:  # OpenAI's own; OpenCLIP's models use GELU
                _check_activation(meter, f"{source} is an OpenAI CLIP archive")
            state, unknown = from_clip(state)
    elif timm.is_model(source):
        state = timm.create_model(source, pretrained=True, num_classes=0).state_dict()
    else:
        raise FileNotFoundError(f"image_weights {source!r} is neither a file nor a timm model.")
    return _copy(meter.published_parts()["image"], state, source, unknown)


def load_text_weights(meter: Meter, source: str) -> LoadReport:
    """Load the text encoder from a transformers folder or a hub name."""
    path = Path(source).expanduser()
    loaded, found = AutoModel.from_pretrained(
        str(path) if path.is_dir() else source,
        add_pooling_layer=False, trust_remote_code=False, output_loading_info=True,
    )  # fmt: skip
    # transformers fills missing tensors with random numbers; ours keep their initial values.
    state = {k: v for k, v in loaded.state_dict().items() if k not in found["missing_keys"]}
    unknown = tuple(sorted(found["unexpected_keys"]))
    return _copy(meter.published_parts()["text"], state, source, unknown)


def _check_activation(meter: Meter, what: str) -> None:
    """Refuse weights trained with QuickGELU if the encoder has another activation."""
    activation = meter.published_parts()["image"].blocks[0].mlp.act  # type: ignore[index, union-attr]
    if not isinstance(activation, QuickGELU):
        name = meter.sizes.image_encoder
        right = name.partition(".")[0].replace("_clip_", "_clip_quickgelu_") + ".openai"
        if "quickgelu" not in right or not timm.is_model(right):
            right = "vit or a timm model named *_clip_quickgelu_*"
        raise ValueError(
            f"{what}, trained with QuickGELU, but {name} has {type(activation).__name__}. Set "
            f"model.meter.image_encoder to {right}."
        )


def _copy(module: nn.Module, state: State, source: str, unknown: tuple[str, ...]) -> LoadReport:
    target = module.state_dict()
    used, resized, wrong, unused = [], [], [], [*unknown]
    for name, value in state.items():
        place = target.get(name)
        if place is None:
            unused.append(name)
            continue
        if value.shape != place.shape and name.endswith("pos_embed"):
            value = resize_positions(value.float(), place.shape[1] - 1)
            resized.append(name)
        if value.shape == place.shape:
            place.copy_(value)
            used.append(name)
        else:
            wrong.append(f"{name} is {tuple(value.shape)}, expected {tuple(place.shape)}")
    if wrong:
        raise ValueError(
            f"{source} does not fit this model in {len(wrong)} tensors: {'; '.join(wrong[:5])}. "
            "Give model.meter the sizes of the checkpoint."
        )
    if not used:
        raise ValueError(f"No tensor of {source} fits this model: {sorted(state)[:3]}, ...")
    missing = tuple(name for name in target if name not in used)
    return LoadReport(source, tuple(used), tuple(resized), missing, tuple(unused))


def resize_positions(positions: Tensor, num_patches: int) -> Tensor:
    """Resample position embeddings to another square grid, as METER does.

    Bicubic, without antialiasing and without aligned corners; the class position is unchanged.

    Args:
        positions: [1,1+P,D] float.
        num_patches: The new number of patches, a square.

    Returns:
        [1,1+num_patches,D] float.
    """
    old, new = math.isqrt(positions.shape[1] - 1), math.isqrt(num_patches)
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


# --- names: ours start with ``meter.`` (the model) or ``task.`` (the heads)

# OpenAI's names for a CLIP image tower, and timm's.
_CLIP = {
    r"visual\.class_embedding": r"cls_token",
    r"visual\.positional_embedding": r"pos_embed",
    r"visual\.conv1\.weight": r"patch_embed.proj.weight",
    r"visual\.ln_pre\.(.+)": r"norm_pre.\1",
    r"visual\.ln_post\.(.+)": r"norm.\1",
    r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(.+)": r"blocks.\1.attn.qkv.\2",
    r"visual\.transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.+)": r"blocks.\1.attn.proj.\2",
    r"visual\.transformer\.resblocks\.(\d+)\.ln_([12])\.(.+)": r"blocks.\1.norm\2.\3",
    r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.+)": r"blocks.\1.mlp.fc1.\2",
    r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.+)": r"blocks.\1.mlp.fc2.\2",
}
# Parts of a fusion layer: METER's names and ours.
_FUSION = {
    r"attention\.self": "self_attention",
    r"attention\.output\.dense": "self_attention.out",
    r"attention\.output\.LayerNorm": "self_attention.norm",
    r"crossattention\.self": "cross_attention",
    r"crossattention\.output\.dense": "cross_attention.out",
    r"crossattention\.output\.LayerNorm": "cross_attention.norm",
    r"intermediate\.dense": "feed_forward.up",
    r"output\.dense": "feed_forward.down",
    r"output\.LayerNorm": "feed_forward.norm",
}
# METER's names (Dou et al., 2022) and ours.
_METER = {
    r"text_transformer\.(?!pooler\.|embeddings\.position_ids$)(.+)": r"meter.text.transformer.\1",
    r"cross_modal_(text|image)_transform\.(.+)": r"meter.\1_projection.\2",
    r"cross_modal_(text|image)_pooler\.(.+)": r"meter.\1_pooler.\2",
    r"token_type_embeddings\.weight": r"meter.token_types.weight",
    r"mlm_score\.transform\.dense\.(.+)": r"task.mlm.dense.\1",
    r"mlm_score\.transform\.LayerNorm\.(.+)": r"task.mlm.norm.\1",
    r"mlm_score\.decoder\.weight": r"task.mlm.decoder.weight",
    r"mlm_score\.bias": r"task.mlm.decoder.bias",
    r"itm_score\.fc\.(.+)": r"task.itm.\1",
    r"rank_output\.(.+)": r"task.rank.\1",
    r"(?:vqa|nlvr2|snli)_classifier\.(.+)": r"task.classifier.\1",
    **{rf"vit_model\.{theirs}": rf"meter.image.vit.{ours}" for theirs, ours in _CLIP.items()},
    **{
        rf"cross_modal_(text|image)_layers\.(\d+)\.{theirs}\.(.+)":
        rf"meter.fusion.\1_layers.\2.{ours}.\3"
        for theirs, ours in _FUSION.items()
    },
}  # fmt: skip


_CLIP_NAME = "visual.class_embedding"


def from_meter(state: State) -> tuple[State, tuple[str, ...]]:
    """Rename a METER state.

    METER stores the fusion's keys and values separately, this model in one matrix. As METER does
    for NLVR2, a table of two token types gets a third row, a copy of the second.

    Returns:
        The state under our names, and METER's names that this model does not use.
    """
    renamed, unknown = _rename(state, _METER)
    for name in [name for name in renamed if re.match(r"meter\.fusion\..*\.key\.", name)]:
        key, value = renamed.pop(name), renamed.pop(name.replace(".key.", ".value."))
        renamed[name.replace(".key.", ".key_value.")] = torch.cat([key, value])
    types = renamed.get("meter.token_types.weight")
    if types is not None and len(types) == 2:
        renamed["meter.token_types.weight"] = torch.cat([types, types[1:]])
    return renamed, unknown


def from_clip(state: State) -> tuple[State, tuple[str, ...]]:
    """Rename OpenAI's image tower to timm's names; also return the names of all other tensors."""
    return _rename(state, _CLIP)


def _rename(state: State, table: dict[str, str]) -> tuple[State, tuple[str, ...]]:
    renamed, unknown = {}, []
    for theirs, value in state.items():
        matches = ((re.fullmatch(pattern, theirs), ours) for pattern, ours in table.items())
        name = next((match.expand(ours) for match, ours in matches if match), None)
        if name is None:
            unknown.append(theirs)
        elif name.endswith("cls_token"):  # OpenAI stores [D], timm [1,1,D]
            renamed[name] = value.reshape(1, 1, -1)
        else:
            renamed[name] = value[None] if name.endswith("pos_embed") else value
    return renamed, tuple(unknown)


# --- files


def read_state(path: Path) -> State:
    """Return the tensors of a weight file by name.

    Reads ``.safetensors``, PyTorch state dicts, checkpoints of Lightning (``state_dict``) and
    DeepSpeed (``module``), and OpenAI CLIP archives. Objects other than tensors are ignored. A
    prefix ``module.`` of all names is removed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no weight file {path}.")
    try:
        loaded = _load(path)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"{path} is damaged or not a weight file. Supported are .safetensors, PyTorch state "
            "dicts, Lightning and DeepSpeed checkpoints, and OpenAI CLIP archives."
        ) from error
    for wrapper in ("state_dict", "module"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    items = loaded.items() if isinstance(loaded, dict) else ()
    state = {str(name): value.detach() for name, value in items if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no tensors by name.")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


class _Inert:
    """Replaces every object in a file that is not a tensor. It keeps its parts and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.parts: dict[str, object] = {}

    def __setstate__(self, state: object) -> None:
        self.parts = state if isinstance(state, dict) else {}

    def _ignore(self, *args: object, **kwargs: object) -> _Inert:
        return self

    __call__ = __setitem__ = append = extend = _ignore

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield all tensors in it by name."""
        for name, part in self.parts.items():
            if isinstance(part, Tensor):
                yield f"{prefix}{name}", part
            elif isinstance(part, _Inert):
                yield from part.tensors(f"{prefix}{name}.")


class _Tensors(pickle.Unpickler):
    """Builds only tensors and plain containers; everything else becomes inert.

    So it reads what ``torch.load(weights_only=True)`` refuses: TorchScript archives, and
    checkpoints with objects of other packages.
    """

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in (
            "collections.OrderedDict", "torch.Size",
            "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
        ):  # fmt: skip
            return super().find_class(module, name)
        return _Inert


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    if not zipfile.is_zipfile(path):  # PyTorch before 1.6
        return torch.load(path, map_location="cpu", weights_only=True)
    archive, reader = torch._C.PyTorchFileReader(str(path)), SimpleNamespace(Unpickler=_Tensors)
    loaded = torch.serialization._load(archive, "cpu", reader)  # torch.load would run TorchScript
    return dict(loaded.tensors()) if isinstance(loaded, _Inert) else loaded


# --- export


def export(run: Path, out: Path, half: bool = False) -> None:
    """Write the model of a run's best checkpoint, or else its last, without the optimiser.

    The metadata of the file names the run and its lineage. ``half`` stores float16.
    """
    path, state = find_checkpoint(run), {}
    for name, tensor in read_state(path).items():
        dtype = torch.float16 if half and tensor.is_floating_point() else tensor.dtype
        # A copy: safetensors takes neither views nor one tensor under two names.
        state[name] = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
        if not state[name].isfinite().all():
            raise ValueError(f"{path}: {name} has values that are NaN or too large for {dtype}.")
    info = read_checkpoint_info(path)
    about = {} if info is None else {INFO_KEY: info.model_dump_json()}
    with whole_file(out) as temporary:
        # `save_file` would make the file readable for its owner only.
        temporary.write_bytes(safetensors.torch.save(state, metadata=about))


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(
        prog="python -m elip.weights", description="Export the weights of a run."
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--out", type=Path, required=True, help="file ending in .safetensors")
    parser.add_argument("--half", action="store_true", help="store float16, at half the size")
    given = parser.parse_args()
    if given.out.suffix != ".safetensors":
        parser.error(f"--out is {given.out}; it must end in .safetensors.")
    try:
        export(given.run, given.out, given.half)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{given.out}: {given.out.stat().st_size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
