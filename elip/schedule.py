"""From a keep ratio to integer token counts: the only rounding in the project.

The keep ratio is the mean, over the blocks of the image encoder, of the share of patch tokens
that enter a block. With kept shares p_i at the reduction layers, the share at layer i is
``p_i ** c``, and c is solved so that the mean is the keep ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from reducers.contract import Placement

# ELIP on METER: layers 2, 4, 9 of 11 blocks, kept shares 0.90, 0.70, 0.45 of the patches.
# Source: Guo et al., ELIP, 2023, arXiv:2309.16738 (official METER configuration).
_LAYERS = (2, 4, 9)
_BLOCKS = 11
_PROFILE = (0.90, 0.70, 0.45)


@dataclass(frozen=True)
class Plan:
    """Integer token counts for one image encoder and image size.

    Attributes:
        num_patches: P, patch tokens without reduction.
        keep: Number of patch tokens kept at each reduction layer, by layer.
        tokens_per_block: Patch tokens that enter each block, then those that leave the last one.
    """

    num_patches: int
    keep: dict[int, int]
    tokens_per_block: tuple[int, ...]

    @property
    def keep_ratio(self) -> float:
        """Mean share of patch tokens that enter a block, as it really is after rounding."""
        blocks = self.tokens_per_block[:-1]
        return sum(blocks) / (len(blocks) * self.num_patches)


@dataclass(frozen=True)
class Schedule:
    """When tokens are dropped and how many are left.

    Args:
        keep_ratio: Mean over the blocks of the share of patch tokens that enter a block, in
            (0, 1]. None takes the profile as it stands (c = 1).
        layers: Blocks at which the reducer acts, ascending, 0-based. None takes ELIP's 2, 4, 9 of
            11, scaled to the number of blocks; a reducer that acts after the attention then takes
            the block before each, so that every method thins the same blocks.
        profile: Kept share of the original patches at each of these layers, in (0, 1], not
            rising: the shape of the decay. None takes ELIP's 0.90, 0.70, 0.45 for three layers
            and a geometric decay to 0.45 otherwise.
        counts: Exact number of patch tokens kept at each layer; takes the place of ``keep_ratio``
            and ``profile``.
    """

    keep_ratio: float | None = 0.7
    layers: tuple[int, ...] | None = None
    profile: tuple[float, ...] | None = None
    counts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what no encoder could carry.

        Raises:
            ValueError: A value is out of its range; the message names it.
        """
        ratio = self.keep_ratio
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(f"keep_ratio is {ratio}; it must be above 0 and at most 1.")
        if self.layers is not None:
            ascending = all(a < b for a, b in zip(self.layers, self.layers[1:], strict=False))
            if not self.layers or not ascending or self.layers[0] < 0:
                raise ValueError(
                    f"layers is {list(self.layers)}; give at least one block number, 0-based, "
                    "each larger than the one before."
                )
        if self.profile is not None:
            falling = all(a >= b for a, b in zip(self.profile, self.profile[1:], strict=False))
            if not falling or not all(0 < share <= 1 for share in self.profile):
                raise ValueError(
                    f"profile is {list(self.profile)}; give shares above 0 and at most 1, none "
                    "larger than the one before."
                )
        if self.counts is not None:
            falling = all(a >= b for a, b in zip(self.counts, self.counts[1:], strict=False))
            if not falling or not all(count >= 1 for count in self.counts):
                raise ValueError(
                    f"counts is {list(self.counts)}; give whole numbers of at least 1, none "
                    "larger than the one before."
                )

    def layers_in(self, num_blocks: int, placement: Placement) -> tuple[int, ...]:
        """Return the reduction layers in an encoder (or fusion) of ``num_blocks`` blocks.

        Raises:
            ValueError: A layer lies beyond the last block.
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

        A reducer that acts before a block thins what enters that block; one that acts after the
        attention thins what enters the next. The same keep ratio therefore means the same mean
        number of tokens for both kinds. One that acts in the fusion thins what enters the image
        side's layers there: its keep ratio is the mean over the fusion layers, not the blocks.

        Args:
            num_patches: P.
            num_blocks: Number of blocks (fusion: layers) that run.
            placement: Where the reducer acts.

        Raises:
            ValueError: The schedule does not fit the encoder, or the keep ratio cannot be reached
                with these layers; the message gives the reachable range.
        """
        if placement == "never":
            return Plan(num_patches, {}, (num_patches,) * (num_blocks + 1))
        layers = self.layers_in(num_blocks, placement)
        first = tuple(layer + (placement == "after_attention") for layer in layers)
        if self.counts is not None:
            self._same_length("counts", len(self.counts), layers)
            keep = [min(count, num_patches) for count in self.counts]
        else:
            shares = self._shares(layers, first, num_blocks)
            keep = [max(1, math.floor(share * num_patches + 0.5)) for share in shares]
        tokens_per_block = tuple(_spread(keep, first, num_blocks, num_patches))
        return Plan(num_patches, dict(zip(layers, keep, strict=True)), tokens_per_block)

    def _shares(self, layers: tuple[int, ...], first: tuple[int, ...], blocks: int) -> list[float]:
        profile = self.profile
        if profile is None:
            count = len(layers)
            geometric = tuple(_PROFILE[-1] ** ((i + 1) / count) for i in range(count))
            profile = _PROFILE if count == len(_PROFILE) else geometric
        self._same_length("profile", len(profile), layers)
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

    @staticmethod
    def _same_length(name: str, length: int, layers: tuple[int, ...]) -> None:
        if length != len(layers):
            raise ValueError(
                f"schedule.{name} has {length} entries for {len(layers)} reduction layers "
                f"{list(layers)}; give one for each layer."
            )


_Number = TypeVar("_Number", int, float)


def _spread(
    values: Sequence[_Number], first: tuple[int, ...], blocks: int, full: _Number
) -> list[_Number]:
    """Return what enters each block and what leaves the last, ``values`` holding from ``first``."""
    tokens_per_block, current = [], full
    changes = dict(zip(first, values, strict=True))
    for block in range(blocks + 1):
        current = changes.get(block, current)
        tokens_per_block.append(current)
    return tokens_per_block
