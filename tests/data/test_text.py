"""Tokens and masks."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from elip.data.collate import IGNORED, mask_tokens
from elip.data.datasets.base import DataError
from elip.data.tokenize import TextTokenizer, load_tokenizer, main, train_wordpiece, wrap
from tests.data.tiny import tokenizer, write, write_tiny


def test_fixed_length_and_words(tmp_path: Path) -> None:
    encoder = TextTokenizer(load_tokenizer(write_tiny(tmp_path) / "tokenizer"), 6)
    text, words = encoder.encode(["a red ball", "a red ball is the blue snow", ""])
    assert text.ids.shape == (3, 6)
    assert text.mask.sum(dim=1).tolist() == [5, 6, 2]
    assert text.ids[1, [0, -1]].tolist() == [encoder.cls_id, encoder.sep_id]
    assert words[0].tolist() == [-1, 0, 1, 2, -1, -1]
    assert (text.ids[2, 2:] == encoder.pad_id).all()
    assert (encoder.pad_id, encoder.cls_id, encoder.sep_id, encoder.mask_id) == (0, 2, 3, 4)
    assert encoder.vocab_size == tokenizer().get_vocab_size()
    assert encoder.whole_words
    assert encoder.encode(["snowman 12"])[1][0].tolist() == [-1, 0, 0, 1, 1, -1]


@pytest.mark.parametrize(
    "text",
    ["", " \t\n ", "red ball " * 5_000, "x" * 20_000, "红色的球", "كرة حمراء", "🧑‍🚀🎈" * 50,
     "a\x00b\u202ed", "[CLS] [MASK] [SEP] [PAD]", "\ufffd\ufffe\U0010ffff"],
)  # fmt: skip
def test_any_text_becomes_tokens(text: str) -> None:
    encoder = TextTokenizer(wrap(tokenizer()), length=12)
    tokens = encoder([text, "a red ball"])
    assert tokens.ids.shape == (2, 12)
    assert 0 <= int(tokens.ids.min()) <= int(tokens.ids.max()) < encoder.vocab_size
    assert tokens.mask[:, 0].all()


def test_a_tokenizer_that_no_model_can_use_is_refused(tmp_path: Path) -> None:
    made = json.loads(tokenizer().to_str())
    vocab = made["model"]["vocab"] | {"x": 500}
    sparse = Tokenizer.from_str(json.dumps(made | {"model": made["model"] | {"vocab": vocab}}))
    assert TextTokenizer(wrap(sparse), 8).vocab_size == 501  # every number can be embedded
    with pytest.raises(DataError, match="post_processor is missing"):
        TextTokenizer(wrap(Tokenizer.from_str(json.dumps(made | {"post_processor": None}))), 8)
    bare = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(DataError, match="no pad_token, cls_token, sep_token, mask_token"):
        TextTokenizer(wrap(bare), 8)
    for name, content in (("none", ""), ("tokenizer.json", ""), ("config.json", "[]")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=str(tmp_path)):
            load_tokenizer(tmp_path)


def test_a_tokenizer_that_brings_code_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}})
    )
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    with pytest.raises(DataError, match=str(tmp_path)):
        load_tokenizer(tmp_path)
    assert not mark.exists()


def test_masking_shares() -> None:
    ids, units = np.arange(10, 60), np.r_[-1, np.arange(47), -1, -1]
    chosen = masked = kept = 0
    for seed in range(2000):
        hidden, labels = mask_tokens(ids, units, 4, 1000, random.Random(seed))
        places = labels != IGNORED
        assert not places[units < 0].any()
        assert (hidden[~places] == ids[~places]).all()
        assert (labels[places] == ids[places]).all()
        chosen += places.sum()
        masked += (hidden[places] == 4).sum()
        kept += (hidden[places] == ids[places]).sum()
    assert chosen / (2000 * 47) == pytest.approx(0.15, abs=0.005)
    assert masked / chosen == pytest.approx(0.8, abs=0.015)
    assert kept / chosen == pytest.approx(0.1, abs=0.015)


def test_tokens_of_one_unit_are_chosen_together() -> None:
    units = np.array([-1, 0, 0, 0, 1, 2, 2, -1])
    share = 0
    for seed in range(2000):
        _, labels = mask_tokens(np.arange(8) + 10, units, 4, 1000, random.Random(seed))
        places = labels != IGNORED
        assert len(set(places[1:4].tolist())) == 1
        assert places[5] == places[6]
        share += places.sum()
    assert share / (2000 * 6) == pytest.approx(0.15, abs=0.01)


# --- a tokenizer from own texts

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
        write(tmp_path / f"coco_{split}.arrow", {"image": [b""], "caption": [words]})
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
