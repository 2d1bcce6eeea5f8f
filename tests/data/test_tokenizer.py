"""The tokenizer that is made from a user's own texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from elip.data.arrow_writer import ArrowWriter
from elip.data.datasets.base import DataError
from elip.data.datasets.captions import CAPTION
from elip.data.tokenize import TextTokenizer, load_tokenizer, main, train_wordpiece

TEXTS = [
    f"A {size} {color} dog{end}"
    for size in ("small", "große")
    for color in ("red", "blue", "grey")
    for end in (" is jumping.", " jumps", "'s ball")
]


def test_the_same_texts_give_the_same_vocabulary_whatever_their_order() -> None:
    made = [train_wordpiece(texts, 100).get_vocab() for texts in (TEXTS, TEXTS[::-1], TEXTS)]
    assert made[0] == made[1] == made[2]
    assert sorted(made[0].values()) == list(range(len(made[0])))


def test_words_are_read_by_pieces_and_rare_letters_are_unknown() -> None:
    tokenizer = train_wordpiece([*TEXTS * 9, "A quick brown fox vexes \N{SNOWMAN}"], 100)
    assert tokenizer.tokenize("DOG's \N{SNOWMAN}") == ["dog", "'", "s", "[UNK]"]
    assert "".join(tokenizer.tokenize("redjumper")).replace("##", "") == "redjumper"


def test_the_command_reads_training_texts_only_and_transformers_reads_what_it_writes(
    tmp_path: Path,
) -> None:
    for split, words in (("train", TEXTS), ("restval", ["yellow"] * 20), ("val", ["zebra"] * 20)):
        with ArrowWriter(tmp_path / f"coco_{split}.arrow", CAPTION) as writer:
            writer.write({"image": b"", "caption": words, "image_id": "1", "split": split})
    assert main(["--data", str(tmp_path), "--vocab", "150"]) == 0
    ours = load_tokenizer(tmp_path / "tokenizer")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert theirs.get_vocab() == ours.get_vocab()
    assert "yellow" in ours.get_vocab()
    assert "##z" not in ours.get_vocab()
    encoded = TextTokenizer(ours, 8)
    assert (encoded.whole_words, encoded.vocab_size) == (True, len(ours))
    assert encoded(["a dog"]).ids[0, 0] == encoded.cls_id


def test_without_texts_there_is_no_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(tmp_path)]) == 2
    assert "no words" in capsys.readouterr().err
    with pytest.raises(DataError, match="at least 100"):
        train_wordpiece(["a"], 10)
