"""Initial weights."""

from __future__ import annotations

import math

from torch import nn


def start_size(width: int) -> float:
    """Return the standard deviation of the initial weights for inputs of this width."""
    return 0.02 * math.sqrt(max(1.0, 768 / width))


def initialise(module: nn.Module) -> None:
    """Initialise linear and embedding weights with N(0, s) and biases with 0.

    METER and BERT use s = 0.02 at width 768. Narrower layers use ``s = 0.02 * sqrt(768 / width)``.
    With 0.02 a small model's attention starts nearly uniform and stays so for thousands of steps.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=start_size(module.weight.shape[1]))
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
