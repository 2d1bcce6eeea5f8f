"""Heads on top of the fusion: masked language modelling, and classification of the pooled CLS."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MaskedLanguageHead(nn.Module):
    """Predict word pieces: linear, GELU, layer norm, linear to the vocabulary.

    Args:
        width: W, width of the fusion.
        vocab_size: Number of word pieces.
    """

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.decoder = nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [..., W] to logits [..., vocab_size]."""
        logits: Tensor = self.decoder(self.norm(F.gelu(self.dense(tokens))))
        return logits


class Classifier(nn.Sequential):
    """Linear to twice the width, layer norm, GELU, linear to the classes.

    Args:
        inputs: Width of the pooled features.
        hidden: Width between the two linear maps.
        classes: Number of classes.
    """

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__(
            nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, classes)
        )
