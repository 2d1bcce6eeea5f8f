from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from elip.data.datasets.base import DataError
from elip.data.masking import IGNORED, Masking
from elip.data.tokenize import TextTokenizer, load_tokenizer, wrap
from tests.data.tiny import tokenizer, write_tiny


def test_fixed_length(tmp_path: Path) -> None:
    encoder = TextTokenizer(load_tokenizer(write_tiny(tmp_path) / "tokenizer"), 6)
    tokens = encoder(["a red ball", "a red ball is the blue snow", ""])
    assert tokens.ids.shape == (3, 6)
    assert tokens.mask.sum(axis=1).tolist() == [5, 6, 2]
    assert tokens.ids[1, [0, -1]].tolist() == [encoder.cls_id, encoder.sep_id]
    assert tokens.words[0].tolist() == [-1, 0, 1, 2, -1, -1]
    assert (tokens.ids[2, 2:] == encoder.pad_id).all()


def test_special_tokens_and_vocabulary() -> None:
    encoder = TextTokenizer(wrap(tokenizer()), 8)
    assert (encoder.pad_id, encoder.cls_id, encoder.sep_id, encoder.mask_id) == (0, 2, 3, 4)
    assert encoder.vocab_size == tokenizer().get_vocab_size()
    assert encoder.whole_words


def test_words_of_several_pieces() -> None:
    encoder = TextTokenizer(wrap(tokenizer()), 8)
    assert encoder(["snowman 12"]).words[0].tolist() == [-1, 0, 0, 1, 1, -1, -1, -1]


def test_what_a_tokenizer_must_have() -> None:
    bare = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(DataError, match="no pad_token, cls_token, sep_token, mask_token"):
        TextTokenizer(wrap(bare), 8)
    with pytest.raises(DataError, match="at least 3"):
        TextTokenizer(wrap(tokenizer()), 2)


def test_no_such_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no words"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"Give a folder with tokenizer.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"Give a folder with tokenizer.json"):
        load_tokenizer(tmp_path / "absent")


def test_a_tokenizer_may_lie_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert len(load_tokenizer("~")) == tokenizer().get_vocab_size()


def test_masking_shares() -> None:
    masking = Masking(mask_id=4, vocab_size=1000, whole_words=False)
    ids = np.arange(10, 60)
    words = np.r_[-1, np.arange(47), -1, -1]
    chosen = masked = kept = 0
    for seed in range(2000):
        hidden, labels = masking(ids, words, random.Random(seed))
        places = labels != IGNORED
        assert not places[words < 0].any()
        assert (hidden[~places] == ids[~places]).all()
        assert (labels[places] == ids[places]).all()
        chosen += places.sum()
        masked += (hidden[places] == 4).sum()
        kept += (hidden[places] == ids[places]).sum()
    assert chosen / (2000 * 47) == pytest.approx(0.15, abs=0.005)
    assert masked / chosen == pytest.approx(0.8, abs=0.015)
    assert kept / chosen == pytest.approx(0.1, abs=0.015)


def test_whole_words_are_chosen_together() -> None:
    masking = Masking(mask_id=4, vocab_size=1000, whole_words=True)
    words = np.array([-1, 0, 0, 0, 1, 2, 2, -1])
    share = 0
    for seed in range(2000):
        _, labels = masking(np.arange(8) + 10, words, random.Random(seed))
        places = labels != IGNORED
        assert len(set(places[1:4].tolist())) == 1
        assert places[5] == places[6]
        share += places.sum()
    assert share / (2000 * 6) == pytest.approx(0.15, abs=0.01)


def test_masks_depend_on_the_source_of_chance_only() -> None:
    masking = Masking(mask_id=4, vocab_size=1000, whole_words=False)
    ids, words = np.arange(40) + 10, np.arange(40)
    first, again, other = (masking(ids, words, random.Random(seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
