"""METER's optimiser: AdamW with parameter groups, warm-up and decay of the learning rate.

Source: Dou et al., 2022, arXiv:2111.02387, section 4.1 and the official code.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

if TYPE_CHECKING:
    from elip.model.meter import Meter

log = logging.getLogger(__name__)

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)

Owner = Literal["backbone", "cross_modal", "head"]


@dataclass(frozen=True)
class Optimization:
    """Options of the optimiser.

    Args:
        learning_rate: Peak learning rate of the backbone (image and text encoder).
        weight_decay: Decay of all parameters except biases and norms.
        head_multiplier: Learning rate of the task's heads, relative to the backbone.
        cross_modal_multiplier: Learning rate of projections, token types, fusion and poolers,
            relative to the backbone.
        warmup: Steps of linear warm-up, or a share of all steps if below 1.
        end_learning_rate: Learning rate of the backbone at the last step.
        decay_power: Power of the polynomial decay, or ``cosine``.
        betas: Betas of AdamW.
        eps: Epsilon of AdamW.
        grouping: ``ownership`` groups parameters by the module that owns them; ``reference``
            follows the official code, where the norms of CLIP and of classifiers decay, and the
            rank head and token types train at the backbone's rate.
    """

    learning_rate: float = 1e-5
    weight_decay: float = 0.01
    head_multiplier: float = 5.0
    cross_modal_multiplier: float = 5.0
    warmup: float = 0.1
    end_learning_rate: float = 0.0
    decay_power: float | Literal["cosine"] = 1.0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    grouping: Literal["ownership", "reference"] = "ownership"


class Placement(NamedTuple):
    """The owner of a parameter, and whether it decays."""

    owner: Owner
    decays: bool


def placements(
    module: nn.Module, grouping: Literal["ownership", "reference"]
) -> dict[str, Placement]:
    """Return the placement of every parameter of a module with parts ``meter`` and ``task``."""
    groups = cast("Meter", module.get_submodule("meter")).parameter_groups()
    group_of = {f"meter.{name}": group for group, names in groups.items() for name in names}
    places: dict[str, Placement] = {}
    for name, _ in module.named_parameters():
        group = group_of.get(name, "head")
        owner: Owner = "head" if group == "head" else "cross_modal"
        if group in ("image", "text"):
            owner = "backbone"
        owner_name, _, kind = name.rpartition(".")
        decays = not isinstance(module.get_submodule(owner_name), _NORMS)
        if grouping == "reference":
            decays |= group == "image" or name.startswith("task.classifier.")
            if group == "token_types" or name.startswith("task.rank."):
                owner = "backbone"
        places[name] = Placement(owner, decays and not kind.endswith("bias"))
    return places


def build_optimizer(module: nn.Module, options: Optimization) -> AdamW:
    """Make AdamW over the trainable parameters, in up to six groups."""
    rates: dict[Owner, float] = {
        "backbone": options.learning_rate,
        "head": options.learning_rate * options.head_multiplier,
        "cross_modal": options.learning_rate * options.cross_modal_multiplier,
    }
    places = placements(module, options.grouping)
    members: dict[Placement, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            members.setdefault(places[name], []).append(parameter)
    groups = [
        {
            "params": parameters,
            "lr": rates[owner],
            "weight_decay": options.weight_decay if decays else 0.0,
            "name": f"{owner}{'' if decays else ' without decay'}",
        }
        for (owner, decays), parameters in members.items()
    ]
    fused = all(p.device.type in ("cpu", "cuda") for ps in members.values() for p in ps)
    return AdamW(
        groups, lr=options.learning_rate, betas=options.betas, eps=options.eps, fused=fused
    )


def learning_rate_factor(step: int, num_steps: int, options: Optimization) -> float:
    """Return the learning rate of an optimiser step relative to its peak.

    Linear from 0 over the warm-up; then ``(1 - e) r^p + e`` with r the share of steps that remain
    and e the end rate over the peak rate, or half a cosine wave instead of ``r^p``. Steps count
    from 0.
    """
    warm = _warmup_steps(num_steps, options)
    if step < warm:
        return step / max(1, warm)
    remaining = max(0.0, 1 - (step - warm) / max(1, num_steps - warm))
    if options.decay_power == "cosine":
        share = 0.5 * (1 - math.cos(math.pi * remaining))
    else:
        share = remaining**options.decay_power
    end = options.end_learning_rate / options.learning_rate
    return (1 - end) * share + end


def _warmup_steps(num_steps: int, options: Optimization) -> int:
    return int(num_steps * options.warmup if options.warmup < 1 else options.warmup)


def build_schedule(optimizer: AdamW, num_steps: int, options: Optimization) -> LambdaLR:
    """Make the learning-rate schedule, stepped after each optimiser step."""
    if (warm := _warmup_steps(num_steps, options)) >= num_steps:
        log.warning(
            "The warm-up of %d steps is as long as the run of %d, so the learning rate never "
            "reaches its peak. Lower model.optimization.warmup.", warm, num_steps,
        )  # fmt: skip
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, num_steps, options))
