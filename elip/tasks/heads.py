"""Heads: masked language modelling, and classification of the pooled CLS tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MaskedLanguageHead(nn.Module):
    """Predicts word pieces: linear, GELU, layer norm, linear to the vocabulary."""

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
    """Linear, layer norm, GELU, linear to the classes."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__(
            nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, classes)
        )
