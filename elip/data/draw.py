"""Randomness as a pure function of seed, epoch, example and purpose.

No generator lives longer than one example, so the number of worker processes and the order in
which they work change nothing, and an epoch can be entered anywhere.
"""

from __future__ import annotations

import random
from typing import NamedTuple


class SampleIndex(NamedTuple):
    """One example of one epoch: what a sampler hands to a dataset.

    Attributes:
        epoch: Number of the epoch, from 0. Always 0 in evaluation.
        example: Position in the dataset.
    """

    epoch: int
    example: int


def sample_rng(seed: int, draw: SampleIndex, purpose: str) -> random.Random:
    """Return the random numbers for one purpose of one example in one epoch."""
    return random.Random(f"{seed}/{draw.epoch}/{draw.example}/{purpose}")
