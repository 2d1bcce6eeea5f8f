"""Word-level tokenizers for small closed vocabularies, made in code and the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel

from elip.files import whole_file

_FIRST = ("<s>", "<pad>", "</s>", "<unk>")


def word_tokenizer(words: Iterable[str]) -> Tokenizer:
    """Return a lower-casing tokenizer that knows these words and punctuation marks.

    The special tokens are RoBERTa's, with its numbers: ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2,
    ``<unk>`` 3; then the words in the order given, without repetitions; ``<mask>`` comes last. A
    text becomes ``<s> text </s>``, two texts ``<s> first </s> </s> second </s>``.
    """
    tokens = list(dict.fromkeys((*_FIRST, *(word.lower() for word in words), "<mask>")))
    tokenizer = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}, "<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in (*_FIRST, "<mask>")]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer/tokenizer.json`` into a folder of Arrow files, all or nothing."""
    with whole_file(folder / "tokenizer" / "tokenizer.json") as temporary:
        tokenizer.save(str(temporary))
