"""Putting weights into a model, with an account of every tensor."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoModel

from elip.identity import find_checkpoint
from elip.model.meter import Meter
from elip.weights.names import from_clip, from_meter, is_clip, is_meter
from elip.weights.read import BROKEN, read_state


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor.

    Attributes:
        source: Where the weights came from.
        used: Tensors that were copied.
        resized: Tensors that were interpolated first.
        missing: Tensors of the model that the source does not have; they keep their start values.
        unused: Tensors of the source that the model has no place for.
    """

    source: str
    used: tuple[str, ...]
    resized: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """Say it in a few lines."""
        lines = [f"Weights from {self.source}: {len(self.used)} tensors used."]
        for name in ("resized", "missing", "unused"):
            tensors: tuple[str, ...] = getattr(self, name)
            if tensors:
                lines.append(f"  {len(tensors)} {name}: {_shorten(tensors)}")
        return "\n".join(lines)


def _shorten(names: tuple[str, ...]) -> str:
    groups: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        group = ".".join(parts[:3]) if len(parts) > 3 else name
        groups[group] = groups.get(group, 0) + 1
    return ", ".join(f"{g} ({n})" if n > 1 else g for g, n in groups.items())


def load_weights(module: nn.Module, source: str) -> LoadReport:
    """Load a whole model into a module that has ``meter`` and ``task`` submodules.

    Args:
        module: The module.
        source: A run directory, a checkpoint of ours, or a METER checkpoint; ``~`` is the home
            folder.

    Raises:
        FileNotFoundError: There is no such file, or no checkpoint in the folder.
        ValueError: It is damaged or of unknown format, or a tensor has the wrong shape.
    """
    path = find_checkpoint(source)
    state = read_state(path)
    unknown: tuple[str, ...] = ()
    if is_meter(state):
        state, unknown = from_meter(state)
    elif not any(name.startswith("meter.") for name in state):
        kind = "OpenAI CLIP (use --model.image_weights)" if is_clip(state) else "another model"
        raise ValueError(
            f"{path} is no METER checkpoint: its first tensors are {sorted(state)[:3]}, which look "
            f"like {kind}."
        )
    if "task.rank.weight" in module.state_dict() and "task.rank.weight" not in state:
        state |= _rank_from_matching(state)
    return _apply(module, state, str(path), unknown)


def load_image_weights(meter: Meter, source: str) -> LoadReport:
    """Load the image encoder from an OpenAI CLIP archive, a timm file, or a timm model name.

    Raises:
        FileNotFoundError: There is no such file and no such model.
        ValueError: The format is unknown, or a tensor has the wrong shape.
    """
    unknown: tuple[str, ...] = ()
    path = Path(os.path.expanduser(source))
    if path.exists():
        state = read_state(path)
        if is_meter(state):
            named, unknown = from_meter(state)
            prefix = "meter.image.vit."
            state = {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}
        elif is_clip(state):
            state, unknown = from_clip(state)
    elif timm.is_model(source):
        try:
            state = timm.create_model(source, pretrained=True, num_classes=0).state_dict()
        except BROKEN as error:
            raise ValueError(
                f"image_weights {source!r} is a timm model that cannot be fetched: {error}"
            ) from error
    else:
        raise FileNotFoundError(f"image_weights {source!r} is neither a file nor a timm model.")
    return _apply(meter.published_parts()["image"], state, source, unknown)


def load_text_weights(meter: Meter, source: str) -> LoadReport:
    """Load the text encoder from a transformers folder or hub name, or from a METER checkpoint.

    Raises:
        ValueError: The folder or name cannot be read, or a tensor has the wrong shape.
    """
    unknown: tuple[str, ...] = ()
    place = os.path.expanduser(source)
    if Path(place).is_file():
        state = read_state(Path(place))
        named = from_meter(state)[0] if is_meter(state) else state
        prefix = "meter.text.transformer."
        state = {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}
    else:
        try:
            loaded, found = AutoModel.from_pretrained(
                place,
                add_pooling_layer=False,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (*BROKEN, StrictDataclassError) as error:
            raise ValueError(
                f"text_weights {source!r} is no folder of a transformers model, nor one that can "
                f"be fetched: {error}"
            ) from error
        # What its files lack, transformers has filled with random numbers.
        unknown = tuple(sorted(found["unexpected_keys"]))
        lacking = set(found["missing_keys"])
        state = {k: v for k, v in loaded.state_dict().items() if k not in lacking}
    return _apply(meter.published_parts()["text"], state, source, unknown)


def _rank_from_matching(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Start the rank head from the matching head's row for "match" (Dou et al., 2022)."""
    return {
        f"task.rank.{kind}": state[f"task.itm.{kind}"][1:]
        for kind in ("weight", "bias")
        if f"task.itm.{kind}" in state and state[f"task.itm.{kind}"].ndim
    }


def _apply(
    module: nn.Module, state: dict[str, Tensor], source: str, unknown: tuple[str, ...]
) -> LoadReport:
    target = module.state_dict()
    # In float32, as they are used: a larger number of 64 bits is infinite there.
    broken = [k for k, v in state.items() if not v.float().isfinite().all()]
    if broken:
        raise ValueError(
            f"{source} has values that are not finite in {len(broken)} tensors, {broken[0]} first: "
            "the run that made it had failed, or the file is damaged. Take another checkpoint."
        )
    used, resized, wrong = [], [], []
    unused = [*unknown]
    for name, value in state.items():
        place = target.get(name)
        if place is None:
            unused.append(name)
            continue
        value = value.to(torch.float32) if value.is_floating_point() else value
        if value.shape != place.shape and name.endswith("pos_embed"):
            value = resize_positions(value, place.shape[1] - 1)
            resized.append(name)
        if value.shape != place.shape:
            wrong.append(f"{name} is {tuple(value.shape)}, wanted {tuple(place.shape)}")
            continue
        if value.is_floating_point() != place.is_floating_point():
            wrong.append(f"{name} holds {value.dtype}, wanted {place.dtype}")
            continue
        place.copy_(value)
        used.append(name)
    if wrong:
        raise ValueError(
            f"{source} does not fit this model in {len(wrong)} tensors: {'; '.join(wrong[:5])}. "
            "Set model.meter to the sizes of the checkpoint."
        )
    if not used:
        raise ValueError(f"Nothing in {source} fits this model; it begins {sorted(state)[:3]}.")
    missing = [name for name in target if name not in used]
    return LoadReport(source, tuple(used), tuple(resized), tuple(missing), tuple(unused))


def resize_positions(positions: Tensor, num_patches: int) -> Tensor:
    """Resample position embeddings to another square grid, as METER does.

    Bicubic, without antialiasing and without aligned corners; the class position stays.

    Args:
        positions: [1,1+P,D] float.
        num_patches: The new number of patches, a square.

    Returns:
        [1,1+num_patches,D] float.
    """
    if positions.ndim != 3 or positions.shape[0] != 1 or positions.shape[1] < 2:
        raise ValueError(
            f"Position embeddings are {tuple(positions.shape)}, wanted (1, 1 + patches, width)."
        )
    old = math.isqrt(positions.shape[1] - 1)
    new = math.isqrt(num_patches)
    if old**2 != positions.shape[1] - 1 or new**2 != num_patches:
        raise ValueError(
            f"Position embeddings of {positions.shape[1] - 1} patches cannot be resized to "
            f"{num_patches}: both must be squares."
        )
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
