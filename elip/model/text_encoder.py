"""The text encoder: RoBERTa or BERT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, PretrainedConfig, RobertaConfig

from elip.data.batch import TextBatch
from elip.model.config import Sizes
from elip.model.initialise import start_size
from reducers.contract import EncodedText

# The published configurations (Devlin et al., 2019, arXiv:1810.04805; Liu et al., 2019,
# arXiv:1907.11692), so that building a model needs no network: kind, word pieces, width, layers,
# heads.
_PUBLISHED = {
    "bert-base-uncased": ("bert", 30522, 768, 12, 12),
    "roberta-base": ("roberta", 50265, 768, 12, 12),
    "roberta-large": ("roberta", 50265, 1024, 24, 16),
}


def text_config(sizes: Sizes, vocab_size: int | None) -> PretrainedConfig:
    """Return the transformers configuration of the text encoder.

    Args:
        sizes: The model's sizes; ``sizes.vocab_size`` takes precedence.
        vocab_size: The tokenizer's number of word pieces.

    Raises:
        ValueError: The encoder or the vocabulary size is unknown.
    """
    name = sizes.text_encoder
    vocab = sizes.vocab_size or vocab_size
    if name in _PUBLISHED:
        kind, known, width, layers, heads = _PUBLISHED[name]
        return _build(kind, vocab or known, width, layers, heads, sizes)
    if name in ("roberta", "bert"):
        if vocab is None:
            raise ValueError("No vocabulary size: give model.meter.vocab_size or a tokenizer.")
        return _build(name, vocab, sizes.text_width, sizes.text_layers, sizes.text_heads, sizes)
    if Path(name).is_dir():
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.model_type not in ("roberta", "bert"):
            raise ValueError(
                f"text_encoder {name!r} holds a {config.model_type!r} model; METER's text encoders "
                "are 'roberta' and 'bert'."
            )
        return config
    raise ValueError(
        f"text_encoder {name!r} is neither a folder nor one of "
        f"{['bert', 'roberta', *sorted(_PUBLISHED)]}."
    )


def _build(
    kind: str, vocab: int, width: int, layers: int, heads: int, sizes: Sizes
) -> PretrainedConfig:
    common: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "hidden_dropout_prob": sizes.dropout,
        "attention_probs_dropout_prob": sizes.dropout,
        "initializer_range": start_size(width),
    }
    if kind == "bert":
        return BertConfig(max_position_embeddings=512, layer_norm_eps=1e-12, **common)
    # RoBERTa's position ids start after the padding id, hence two more positions.
    return RobertaConfig(
        max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, **common
    )


class TextEncoder(nn.Module):
    """RoBERTa or BERT without pooler."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.width: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.transformer = AutoModel.from_config(config, add_pooling_layer=False)

    def forward(self, text: TextBatch) -> EncodedText:
        """Encode [B,L] token ids to [B,L,Dt] tokens; position 0 is the text CLS."""
        # The library's own forward pass reads the mask on the host, which would stall a GPU.
        hidden = self.transformer.embeddings(input_ids=text.ids)
        bias = None
        if text.padded:
            mask = text.mask[:, None, None, :]
            bias = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device)
            bias = bias.masked_fill(~mask, torch.finfo(hidden.dtype).min)
        for layer in self.transformer.encoder.layer:
            hidden = layer(hidden, bias)
        return EncodedText(hidden, text.mask, text.padded)
