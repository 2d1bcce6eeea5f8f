from __future__ import annotations

import dataclasses
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from elip.data.batch import Batch, SampleSpec
from elip.data.collate import Collator
from elip.data.dataset import Example, Examples, Reading
from elip.data.datasets.base import LAYOUT, Columns, DataError
from elip.data.draw import SampleIndex
from elip.data.masking import IGNORED
from elip.data.reader import ArrowTable
from elip.data.tokenize import TextTokenizer, wrap
from elip.data.transforms import TRANSFORMS, ImageError
from tests.data.tiny import captions, noise, png, tokenizer, write, write_tiny

TRAIN = Reading(TRANSFORMS["clip"], image_size=8, train=True)
EVAL = dataclasses.replace(TRAIN, train=False)
CAPTION = LAYOUT["caption"]


@pytest.fixture
def table(tmp_path: Path) -> ArrowTable:
    return ArrowTable([captions(tmp_path / "a.arrow", 0, 6)], CAPTION)


def read(examples: Examples, draw: SampleIndex | int) -> Example:
    example = examples[draw]
    assert example is not None
    return example


def shown(pixels: np.ndarray) -> list[int]:
    """The row numbers that images show (see `captions`)."""
    return pixels[..., 0, 0, 0].tolist()


def test_one_example_per_text(table: ArrowTable) -> None:
    examples = Examples([table], SampleSpec("caption"), EVAL)
    assert len(examples) == 18
    example = read(examples, 7)
    assert (example.text, example.image_id, example.key) == ("2 blue ball", 2, "image 2")
    assert shown(example.images) == [2]
    assert example.negative_images is None
    assert example.target is None
    with pytest.raises(IndexError):
        examples[18]


def test_one_example_per_image_with_a_drawn_text(table: ArrowTable) -> None:
    examples = Examples([table], SampleSpec("caption", every_text=False), TRAIN)
    assert len(examples) == 6
    texts = {read(examples, SampleIndex(epoch, 4)).text for epoch in range(20)}
    assert texts == {"4 red ball", "4 blue ball", "4 green ball"}
    assert read(examples, SampleIndex(3, 4)).text == read(examples, SampleIndex(3, 4)).text


def test_an_image_without_texts_is_found_before_it_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "bare.arrow"
    texts = [["a"], ["b", "c"], [], ["d"]]
    columns = {"image": [png(0)] * 4, "caption": texts, "image_id": list("0123")}
    write(path, columns)
    table, needs = ArrowTable([path], CAPTION), SampleSpec("caption", every_text=False)
    with pytest.raises(DataError, match=r"bare\.arrow, row 2: there is no text for this image"):
        Examples([table], needs, TRAIN)
    assert len(Examples([table], needs, dataclasses.replace(TRAIN, limit=2))) == 2
    assert len(Examples([table], SampleSpec("caption"), TRAIN)) == 4


def test_joined_tables(table: ArrowTable, tmp_path: Path) -> None:
    other = ArrowTable([captions(tmp_path / "b.arrow", 50, 2)], CAPTION)
    examples = Examples([table, other], SampleSpec("caption", negative_images=2), EVAL)
    assert len(examples) == 24
    example = read(examples, 22)
    assert (example.text, example.image_id, shown(example.images)) == ("51 blue ball", 7, [51])
    assert example.negative_images is not None
    assert shown(example.negative_images) == [50, 50]  # from the example's own table


def test_false_ones_are_uniform_over_all_others(table: ArrowTable) -> None:
    needs = SampleSpec("caption", negative_images=1, negative_texts=2)
    examples = Examples([table], needs, TRAIN)
    drawn: list[int] = []
    for epoch in range(300):
        example = read(examples, SampleIndex(epoch, 4))  # row 1
        assert example.negative_images is not None
        drawn += shown(example.negative_images) + [int(text[0]) for text in example.negative_texts]
    counts = np.bincount(drawn, minlength=6)
    assert counts[1] == 0
    assert counts.sum() == 900
    assert abs(counts[[0, 2, 3, 4, 5]] - 180).max() < 60
    every = Examples([table], needs, dataclasses.replace(TRAIN, exclude_own=False))
    texts = [
        text for epoch in range(60) for text in read(every, SampleIndex(epoch, 4)).negative_texts
    ]
    assert any(text.startswith("1 ") for text in texts)


def test_limit_holds_for_false_ones_too(table: ArrowTable) -> None:
    needs = SampleSpec("caption", negative_images=1)
    examples = Examples([table], needs, dataclasses.replace(TRAIN, limit=7))
    assert len(examples) == 7
    drawn = set()
    for epoch in range(60):
        example = read(examples, SampleIndex(epoch, 0))
        assert example.negative_images is not None
        drawn |= set(shown(example.negative_images))
    assert drawn == {1, 2}
    with pytest.raises(DataError, match=r"a.arrow, row 0: no other image"):
        Examples([table], needs, dataclasses.replace(TRAIN, limit=3))[0]


def test_draws_change_with_epoch_and_seed_but_not_with_the_object(table: ArrowTable) -> None:
    needs = SampleSpec("caption", negative_images=3)
    examples = Examples([table], needs, TRAIN)
    copy = pickle.loads(pickle.dumps(examples))  # noqa: S301  (made above)
    reseeded = Examples([table], needs, dataclasses.replace(TRAIN, seed=1))

    def false(source: Examples, epoch: int) -> list[list[int]]:
        found = []
        for number in range(6):
            images = read(source, SampleIndex(epoch, number)).negative_images
            assert images is not None
            found.append(shown(images))
        return found

    assert false(examples, 0) == false(copy, 0) == false(examples, 0)
    assert false(examples, 0) != false(examples, 1)
    assert false(examples, 0) != false(reseeded, 0)


def test_a_row_is_decoded_once_for_its_texts_in_evaluation_only(table: ArrowTable) -> None:
    examples = Examples([table], SampleSpec("caption"), EVAL)
    assert read(examples, 0).images is read(examples, 1).images
    assert read(examples, 3).images is not read(examples, 0).images
    training = Examples([table], SampleSpec("caption"), TRAIN)
    assert read(training, 0).images is not read(training, 1).images


@pytest.fixture
def broken(tmp_path: Path) -> ArrowTable:
    images = [png(0), noise(0)[:200], png(2), b""]
    path = write(tmp_path / "bad.arrow", {"image": images, "caption": [["a"], ["b"], ["c"], ["d"]]})
    return ArrowTable([path], Columns(("image",), "caption"))


def test_a_bad_image_in_evaluation_names_file_and_row(broken: ArrowTable) -> None:
    with pytest.raises(ImageError, match=r"bad.arrow, row 1: not a readable image"):
        Examples([broken], SampleSpec("caption"), EVAL)[1]


def test_a_bad_image_in_evaluation_is_left_out_and_counted_if_asked(
    broken: ArrowTable, caplog: pytest.LogCaptureFixture
) -> None:
    examples = Examples([broken], SampleSpec("caption"), dataclasses.replace(EVAL, skip_bad=True))
    with caplog.at_level(logging.WARNING):
        found = [examples[number] for number in range(4)]
    assert [example is None for example in found] == [False, True, False, True]
    assert examples.num_skipped == 2
    assert "bad.arrow, row 3" in caplog.text


def test_a_bad_image_in_training_is_replaced_and_counted(broken: ArrowTable) -> None:
    examples = Examples([broken], SampleSpec("caption"), TRAIN)
    found = [read(examples, SampleIndex(epoch, 1)) for epoch in range(20)]
    assert {example.text for example in found} == {"a", "c"}
    assert examples.num_skipped >= 20
    assert [read(examples, SampleIndex(epoch, 1)).text for epoch in range(20)] == [
        e.text for e in found
    ]


def test_retries_end(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.arrow", {"image": [b"x"] * 3, "caption": [["a"]] * 3})
    table = ArrowTable([path], Columns(("image",), "caption"))
    with pytest.raises(DataError, match="examples in a row had a bad image"):
        Examples([table], SampleSpec("caption"), TRAIN)[0]


def test_what_cannot_be_asked_for(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    pairs = ArrowTable([tmp_path / "tiny_pairs.arrow"], LAYOUT["pair"])
    with pytest.raises(DataError, match="Negative images are not defined"):
        Examples([pairs], SampleSpec("pair", negative_images=1), TRAIN)
    with pytest.raises(DataError, match="no example"):
        Examples([], SampleSpec("caption"), TRAIN)


def batch_of(examples: Examples, numbers: range, collate: Collator) -> Batch:
    batch = collate([examples[number] for number in numbers])
    assert batch is not None
    return batch


def test_a_batch_of_captions(table: ArrowTable) -> None:
    needs = SampleSpec("caption", masked=True, negative_images=1, negative_texts=2)
    examples = Examples([table], needs, TRAIN)
    collate = Collator(TextTokenizer(wrap(tokenizer()), 8), masked=True)
    batch = batch_of(examples, range(18), collate)
    assert batch.images.shape == (18, 1, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert batch.text.ids.shape == batch.text.mask.shape == (18, 8)
    assert batch.text.mask.dtype == torch.bool
    assert batch.strings[1] == "0 blue ball"
    assert batch.example.tolist() == list(range(18))
    assert batch.image_id.tolist() == [number // 3 for number in range(18)]
    assert batch.target is None
    assert batch.negative_images is not None
    assert batch.negative_images.shape == (18, 1, 3, 8, 8)
    assert batch.negative_text is not None
    assert batch.negative_text.ids.shape == (18, 2, 8)
    assert batch.masked is not None
    assert batch.masked_labels is not None
    places = batch.masked_labels != IGNORED
    assert places.any()
    assert torch.equal(batch.masked_labels[places], batch.text.ids[places])
    assert torch.equal(batch.masked.ids[~places], batch.text.ids[~places])
    alone = batch_of(examples, range(5, 6), collate)
    assert alone.masked is not None
    assert torch.equal(alone.masked.ids[0], batch.masked.ids[5])  # not decided by its neighbours


def test_batches_of_questions_and_pairs(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    encoder = TextTokenizer(wrap(tokenizer()), 8)
    questions = Examples(
        [ArrowTable([tmp_path / "tiny_questions.arrow"], LAYOUT["question"])],
        SampleSpec("question"),
        TRAIN,
    )
    batch = batch_of(questions, range(3), Collator(encoder, num_answers=4))
    assert batch.target is not None
    expected = torch.tensor([[0.3, 0.9, 0, 0], [0, 1.0, 0, 0], [0, 0, 0.6, 0]])
    assert torch.equal(batch.target, expected)
    assert batch.keys == ("70", "71", "80")
    with pytest.raises(DataError, match=r"Question 80 .* 2 answers are known"):
        batch_of(questions, range(3), Collator(encoder, num_answers=2))
    pairs = Examples(
        [ArrowTable([tmp_path / "tiny_pairs.arrow"], LAYOUT["pair"])], SampleSpec("pair"), TRAIN
    )
    batch = batch_of(pairs, range(3), Collator(encoder))
    assert batch.images[:, :, 0, 0, 0].tolist() == [[0, 100], [0, 100], [1, 101]]
    assert batch.target is not None
    assert batch.target.tolist() == [1, 0, 0]


def test_an_empty_batch_is_none(table: ArrowTable) -> None:
    assert Collator(TextTokenizer(wrap(tokenizer()), 8))([None, None]) is None
