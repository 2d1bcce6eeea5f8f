"""Tokens and masks."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from elip.data.collate import IGNORED, mask_tokens
from elip.data.datasets.base import DataError
from elip.data.tokenize import TextTokenizer, load_tokenizer, wrap
from tests.data.tiny import tokenizer, write_tiny


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


def test_a_tokenizer_that_no_model_can_read_is_refused() -> None:
    made = json.loads(tokenizer().to_str())
    model = made["model"]
    for changed, message in (
        ({"model": model | {"unk_token": "[NOPE]"}}, "fails on unknown words"),
        ({"model": model | {"vocab": model["vocab"] | {"x": 500}}}, "numbers them up to 500"),
        ({"post_processor": None}, "post_processor is missing"),
    ):
        with pytest.raises(DataError, match=message):
            TextTokenizer(wrap(Tokenizer.from_str(json.dumps(made | changed))), 8)
    bare = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(DataError, match="no pad_token, cls_token, sep_token, mask_token"):
        TextTokenizer(wrap(bare), 8)
    with pytest.raises(DataError, match="at least 3"):
        TextTokenizer(wrap(tokenizer()), 2)


@pytest.mark.parametrize(
    "files",
    [{}, {"tokenizer.json": ""}, {"tokenizer.json": "{}"}, {"config.json": "[]"},
     {"tokenizer_config.json": "[]"}, {"vocab.txt": ""}, {"vocab.json": ""}],
)  # fmt: skip
def test_a_folder_without_a_whole_tokenizer_is_named(tmp_path: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
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
