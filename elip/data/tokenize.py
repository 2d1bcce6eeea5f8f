"""From strings to token ids of a fixed length; the command trains a tokenizer on your own data.

``python -m elip.data.tokenize --data ARROWS --vocab 8000``
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from rich.console import Console
from tokenizers import (
    AddedToken,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)  # fmt: skip
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from elip.data.batch import TextBatch
from elip.data.datasets.base import DataError

_SPECIAL = ("pad_token", "cls_token", "sep_token", "mask_token")


class TextTokenizer:
    """A fast tokenizer with a fixed length L: it cuts longer texts and pads shorter ones."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, length: int) -> None:
        missing = [name for name in _SPECIAL if getattr(tokenizer, name, None) is None]
        if missing:
            raise DataError(f"The tokenizer has no {', '.join(missing)}; the model needs them.")
        self.length = length
        self.pad_id, self.cls_id, self.sep_id, self.mask_id = (
            int(tokenizer.convert_tokens_to_ids(getattr(tokenizer, name))) for name in _SPECIAL
        )
        # A copy, because transformers changes its truncation and padding at every call.
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.enable_truncation(length)
        self._backend.enable_padding(
            length=length, pad_id=self.pad_id, pad_token=str(tokenizer.pad_token)
        )
        self.vocab_size = max(self._backend.get_vocab().values()) + 1  # with added tokens
        self.whole_words = isinstance(self._backend.model, models.WordPiece)  # to be masked whole
        ids = self._backend.encode("a").ids
        if ids[0] != self.cls_id or self.sep_id not in ids:
            raise DataError(
                "The tokenizer does not enclose a text in its cls_token and sep_token; its "
                "post_processor is missing."
            )

    def encode(self, texts: Sequence[str]) -> tuple[TextBatch, NDArray[np.int64]]:
        """Return [B,L] ids and mask; and [B,L] word numbers, -1 at special tokens and padding."""
        encoded = self._backend.encode_batch(list(texts))
        words = [[-1 if word is None else word for word in one.word_ids] for one in encoded]
        ids = torch.from_numpy(np.array([one.ids for one in encoded], np.int64))
        mask = torch.from_numpy(np.array([one.attention_mask for one in encoded], np.bool_))
        return TextBatch(ids, mask), np.array(words, np.int64)

    def __call__(self, texts: Sequence[str]) -> TextBatch:
        """Return the [B,L] ids and mask of texts."""
        return self.encode(texts)[0]


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a local folder or the Hugging Face hub.

    The folder has `tokenizer.json`, or `vocab.txt` (BERT), or `vocab.json` and `merges.txt`
    (RoBERTa).
    """
    folder = Path(name).expanduser()
    try:
        if (folder / "config.json").is_file() or not folder.is_dir():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        elif (folder / "tokenizer_config.json").is_file():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
        elif (folder / "tokenizer.json").is_file():
            tokenizer = wrap(Tokenizer.from_file(str(folder / "tokenizer.json")))
        else:
            kind = BertTokenizer if (folder / "vocab.txt").is_file() else RobertaTokenizer
            tokenizer = kind.from_pretrained(str(folder))
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(
            f"No tokenizer in {str(name)!r}: {error} Use a folder with tokenizer.json, or a hub "
            "name such as bert-base-uncased or roberta-base."
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers silently makes an empty one
        raise DataError(f"The tokenizer in {str(name)!r} has no words: its files are missing.")
    return tokenizer


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap a bare tokenizer for transformers, with BERT's or RoBERTa's special tokens."""
    for names in (("[PAD]", "[CLS]", "[SEP]", "[MASK]"), ("<pad>", "<s>", "</s>", "<mask>")):
        if all(tokenizer.token_to_id(name) is not None for name in names):
            special = dict(zip(_SPECIAL, names, strict=True))
            return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>")


def word_tokenizer(words: Iterable[str]) -> Tokenizer:
    """Return a lower-casing tokenizer for a small closed vocabulary.

    The ids are RoBERTa's ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2 and ``<unk>`` 3, then the words (and
    punctuation marks) in the given order, then ``<mask>``.
    """
    tokens = list(dict.fromkeys((*_ROBERTA, *(word.lower() for word in words), "<mask>")))
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, "<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in (*_ROBERTA, "<mask>")]
    )
    return tokenizer


_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing WordPiece tokenizer; the same texts give the same tokenizer.

    The WordPiece trainer of the library breaks ties in the order of a hash table. Here byte-pair
    encoding merges the pairs, and the letters get their numbers beforehand, in code order.

    ``vocab_size`` is the maximum number of tokens, including five special ones. At most half of
    them are single letters, the most common ones.
    """
    texts = list(texts)
    bert, words = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    if vocab_size < 100:
        raise DataError(f"The vocabulary size is {vocab_size}; it must be at least 100.")
    counts = Counter(letter for text in texts for letter in bert.normalize_str(text))
    found = [letter for letter in counts if not letter.isspace()]
    found.sort(key=lambda letter: (-counts[letter], letter))
    if not found:
        raise DataError("There are no words to train a tokenizer on.")
    letters = sorted(found[: vocab_size // 4])  # each alone, and inside a word with ## before it
    rare = str.maketrans(dict.fromkeys(found[len(letters) :], " "))
    first = [*_BERT, *letters, *(f"##{letter}" for letter in letters)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=first, continuing_subword_prefix="##",
        show_progress=False,
    )  # fmt: skip
    merged = Tokenizer(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##"))
    merged.pre_tokenizer = words
    merged.train_from_iterator(
        (bert.normalize_str(text).translate(rare) for text in texts), trainer
    )
    tokenizer = Tokenizer(models.WordPiece(merged.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = bert, words
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, _BERT.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(_BERT))
    return wrap(tokenizer)


def training_texts(folder: Path) -> Iterator[str]:
    """Yield the texts of the Arrow files in a folder, without those of evaluation splits."""
    paths = sorted(folder.glob("*.arrow"))
    held_out = re.compile(r"(^|[_-])(val|dev|test)\d*([_-]|$)")
    for path in [path for path in paths if not held_out.search(path.stem)] or paths:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            names = {"caption", "questions", "sentences"} & set(reader.schema.names)
            for number in range(reader.num_record_batches):
                for name in sorted(names):
                    column = reader.get_batch(number).column(name)
                    texts = pc.list_flatten(column, recursive=True)
                    yield from filter(None, texts.to_pylist())


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a tokenizer on the texts of a folder, and write it there."""
    parser = argparse.ArgumentParser(
        prog="python -m elip.data.tokenize",
        description="Train a WordPiece tokenizer on the texts of your Arrow files.",
    )
    parser.add_argument(
        "--data", metavar="ARROWS", type=Path, required=True, help="folder of the Arrow files"
    )
    parser.add_argument("--vocab", type=int, default=8000, help="tokens (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        tokenizer = train_wordpiece(training_texts(given.data), given.vocab)
    except (DataError, OSError, pa.ArrowException) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    tokenizer.save_pretrained(str(given.data / "tokenizer"))
    Console().print(f"{len(tokenizer):,} tokens, written to {given.data / 'tokenizer'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
