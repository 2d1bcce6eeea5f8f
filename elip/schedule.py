"""Turn a keep ratio into integer token counts: the only rounding in the project.

The keep ratio is the share of patch tokens that enter a block, averaged over the blocks of the
image encoder. With profile shares p_i at the reduction layers, layer i keeps the share
``p_i ** c``. The exponent c is solved so that the mean equals the keep ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # analysis reads schedules without torch
    from reducers.contract import Placement

# ELIP on METER: layers 2, 4, 9 of 11 blocks, kept shares 0.90, 0.70, 0.45 of the patches.
# Source: Guo et al., ELIP, 2023, arXiv:2309.16738 (official METER configuration).
_LAYERS, _BLOCKS, _PROFILE = (2, 4, 9), 11, (0.90, 0.70, 0.45)

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Plan:
    """Integer token counts for one image encoder and image size.

    Attributes:
        num_patches: P, patch tokens without reduction.
        keep: Patch tokens kept at each reduction layer.
        tokens_per_block: Patch tokens that enter each block, then those that leave the last block.
    """

    num_patches: int
    keep: dict[int, int]
    tokens_per_block: tuple[int, ...]

    @property
    def keep_ratio(self) -> float:
        """Mean share of patch tokens that enter a block, after rounding."""
        blocks = self.tokens_per_block[:-1]
        return sum(blocks) / (len(blocks) * self.num_patches)


@dataclass(frozen=True)
class Schedule:
    """Where tokens are reduced and how many are kept.

    Args:
        keep_ratio: Share of patch tokens that enter a block, averaged over the blocks, in (0, 1].
            None uses the profile unchanged (c = 1).
        layers: Reduction layers, ascending, 0-based. None scales ELIP's 2, 4, 9 of 11 to the
            number of blocks. A reducer that acts after the attention then uses the block before
            each, so that all methods reduce the input of the same blocks.
        profile: Kept share of the original patches at each layer, in (0, 1], not rising. None
            uses ELIP's 0.90, 0.70, 0.45 for three layers, and otherwise a geometric decay to 0.45.
        counts: Exact number of patch tokens kept at each layer; overrides ``keep_ratio`` and
            ``profile``.

    Raises:
        ValueError: A value is out of range.
    """

    keep_ratio: float | None = 0.7
    layers: tuple[int, ...] | None = None
    profile: tuple[float, ...] | None = None
    counts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        ratio, layers, profile, counts = self.keep_ratio, self.layers, self.profile, self.counts
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(f"keep_ratio is {ratio}; it must be above 0 and at most 1.")
        if layers is not None and not (
            layers and layers[0] >= 0 and all(a < b for a, b in pairwise(layers))
        ):
            raise ValueError(
                f"layers is {list(layers)}; give at least one block number, 0-based, each larger "
                "than the one before."
            )
        if profile is not None and not (
            all(0 < share <= 1 for share in profile) and all(a >= b for a, b in pairwise(profile))
        ):
            raise ValueError(
                f"profile is {list(profile)}; give shares above 0 and at most 1, none larger than "
                "the one before."
            )
        if counts is not None and not (
            all(count >= 1 for count in counts) and all(a >= b for a, b in pairwise(counts))
        ):
            raise ValueError(
                f"counts is {list(counts)}; give whole numbers of at least 1, none larger than the "
                "one before."
            )

    def layers_in(self, num_blocks: int, placement: Placement) -> tuple[int, ...]:
        """Return the reduction layers in an encoder (or fusion) of ``num_blocks`` blocks.

        Raises:
            ValueError: A layer does not exist.
        """
        if self.layers is None:
            scaled = [math.floor(layer * num_blocks / _BLOCKS + 0.5) for layer in _LAYERS]
            early = int(placement == "after_attention")
            return tuple(sorted({max(0, min(layer, num_blocks - 1) - early) for layer in scaled}))
        if self.layers[-1] >= num_blocks:
            raise ValueError(
                f"Reduction layer {self.layers[-1]} does not exist: the image encoder runs "
                f"{num_blocks} blocks, so layers go from 0 to {num_blocks - 1}."
            )
        return self.layers

    def plan(self, num_patches: int, num_blocks: int, placement: Placement) -> Plan:
        """Turn the schedule into integer counts.

        A reducer that acts before a block reduces the input of that block. One that acts after the
        attention reduces the input of the next block. So an equal keep ratio means an equal mean
        number of tokens. In the fusion the mean is over the fusion layers, not the blocks.

        Args:
            num_patches: P.
            num_blocks: Number of blocks (or fusion layers) that run.
            placement: Where the reducer acts.

        Raises:
            ValueError: The schedule does not fit the encoder, or the keep ratio cannot be reached
                with these layers.
        """
        if placement == "never":
            return Plan(num_patches, {}, (num_patches,) * (num_blocks + 1))
        layers = self.layers_in(num_blocks, placement)
        first = tuple(layer + (placement == "after_attention") for layer in layers)
        if self.counts is not None:
            keep = list(_one_each("counts", self.counts, layers))
            if keep[0] > num_patches:
                raise ValueError(
                    f"schedule.counts is {keep}; this model has only {num_patches} patches."
                )
        else:
            shares = self._shares(layers, first, num_blocks)
            keep = [max(1, math.floor(share * num_patches + 0.5)) for share in shares]
        counts = tuple(_spread(keep, first, num_blocks, num_patches))
        return Plan(num_patches, dict(zip(layers, keep, strict=True)), counts)

    def _shares(self, layers: tuple[int, ...], first: tuple[int, ...], blocks: int) -> list[float]:
        profile = self.profile
        if profile is None:
            steps = range(1, len(layers) + 1)
            geometric = tuple(_PROFILE[-1] ** (step / len(layers)) for step in steps)
            profile = _PROFILE if len(layers) == len(_PROFILE) else geometric
        profile = _one_each("profile", profile, layers)
        if self.keep_ratio is None:
            return list(profile)

        def mean(exponent: float) -> float:
            shares = [share**exponent for share in profile]
            return math.fsum(_spread(shares, first, blocks, 1.0)[:-1]) / blocks

        low, high = 0.0, 1.0
        while mean(high) > self.keep_ratio and high < 1e6:
            high *= 2
        if mean(high) > self.keep_ratio + 1e-9:
            raise ValueError(
                f"keep_ratio {self.keep_ratio} cannot be reached with reduction layers "
                f"{list(layers)} of {blocks} blocks: the blocks before the first reduction see "
                f"all tokens, so it must be above {mean(high):.3f}. Reduce earlier "
                "(schedule.layers) or keep more."
            )
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if mean(middle) > self.keep_ratio else (low, middle)
        return [share**high for share in profile]


def _one_each(
    name: str, values: tuple[_Number, ...], layers: tuple[int, ...]
) -> tuple[_Number, ...]:
    if len(values) != len(layers):
        raise ValueError(
            f"schedule.{name} has {len(values)} entries for {len(layers)} reduction layers "
            f"{list(layers)}; give one for each layer."
        )
    return values


def _spread(
    values: Sequence[_Number], first: tuple[int, ...], blocks: int, full: _Number
) -> list[_Number]:
    """Return the value at each block and after the last; each value applies from ``first`` on."""
    spread, current = [], full
    changes = dict(zip(first, values, strict=True))
    for block in range(blocks + 1):
        current = changes.get(block, current)
        spread.append(current)
    return spread
