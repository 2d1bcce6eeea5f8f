"""Starting weights of everything that is not loaded."""

from __future__ import annotations

import math

from torch import nn


def start_size(width: int) -> float:
    """Return the standard deviation of starting weights of layers with inputs of this width."""
    return 0.02 * math.sqrt(max(1.0, 768 / width))


def initialise(module: nn.Module) -> None:
    """Start linear and embedding weights at N(0, s) and biases at 0.

    METER and BERT take s = 0.02 at a width of 768. Narrower layers get
    ``s = 0.02 * sqrt(768 / width)``, so that their outputs start at the same size; with 0.02 a
    small model's attention starts all but uniform and takes thousands of steps to leave that.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=start_size(module.weight.shape[1]))
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
