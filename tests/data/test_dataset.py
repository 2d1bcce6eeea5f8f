"""Examples and batches: what is drawn, decoded, encoded and masked for each."""

from __future__ import annotations

import dataclasses
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from elip.data.arrow import ArrowTable
from elip.data.batch import Batch, SampleSpec
from elip.data.collate import IGNORED, Collator
from elip.data.dataset import DatasetConfig, Example, Examples
from elip.data.datasets.base import LAYOUT, Columns, DataError
from elip.data.sampling import SampleIndex
from elip.data.tokenize import TextTokenizer, wrap
from elip.data.transforms import TRANSFORMS, ImageError
from tests.data.tiny import captions, noise, png, tokenizer, write, write_tiny

TRAIN = DatasetConfig(TRANSFORMS["clip"], image_size=8, train=True)
EVAL = dataclasses.replace(TRAIN, train=False)
CAPTION = LAYOUT["caption"]
BARE = Columns(("image",), "caption")


@pytest.fixture
def table(tmp_path: Path) -> ArrowTable:
    return ArrowTable([captions(tmp_path / "a.arrow", 0, 6)], CAPTION)


def read(examples: Examples, example: int, epoch: int = 0) -> Example:
    found = examples[SampleIndex(epoch, example)]
    assert found is not None
    return found


def shown(pixels: np.ndarray | None) -> list[int]:
    """The row numbers that images show (see `captions`)."""
    assert pixels is not None
    return list(map(int, pixels[..., 0, 0, 0]))


def test_one_example_per_text(table: ArrowTable) -> None:
    examples = Examples([table], SampleSpec("caption"), EVAL)
    assert len(examples) == 18
    example = read(examples, 7)
    assert (example.text, example.image_id, example.key) == ("2 blue ball", 2, "image 2")
    assert shown(example.images) == [2]
    assert (example.negative_images, example.target) == (None, None)
    # The images of a row are decoded once for its texts; training may augment them.
    assert read(examples, 0).images is read(examples, 1).images is not read(examples, 3).images
    training = Examples([table], SampleSpec("caption"), TRAIN)
    assert read(training, 0).images is not read(training, 1).images


def test_one_example_per_image_with_a_drawn_text(table: ArrowTable, tmp_path: Path) -> None:
    spec = SampleSpec("caption", every_text=False)
    examples = Examples([table], spec, TRAIN)
    assert len(examples) == 6
    texts = {read(examples, 4, epoch).text for epoch in range(20)}
    assert texts == {"4 red ball", "4 blue ball", "4 green ball"}
    columns = {"image": [png(0)] * 2, "caption": [["a"], []]}
    bare = ArrowTable([write(tmp_path / "bare.arrow", columns)], BARE)
    with pytest.raises(DataError, match=r"bare\.arrow, row 1: there is no text"):
        Examples([bare], spec, TRAIN)[1]


def test_negatives_are_uniform_over_all_others_of_a_table(
    table: ArrowTable, tmp_path: Path
) -> None:
    spec = SampleSpec("caption", negative_images=1, negative_texts=2)
    examples = Examples([table], spec, TRAIN)
    drawn: list[int] = []
    for epoch in range(300):
        example = read(examples, 4, epoch)  # row 1
        drawn += shown(example.negative_images) + [int(text[0]) for text in example.negative_texts]
    counts = np.bincount(drawn, minlength=6)
    assert (counts[1], counts.sum()) == (0, 900)
    assert abs(counts[[0, 2, 3, 4, 5]] - 180).max() < 60
    every = Examples([table], spec, dataclasses.replace(TRAIN, exclude_own=False))
    texts = [text for epoch in range(60) for text in read(every, 4, epoch).negative_texts]
    assert any(text.startswith("1 ") for text in texts)
    other = ArrowTable([captions(tmp_path / "b.arrow", 50, 2)], CAPTION)
    joined = read(Examples([table, other], spec, EVAL), 22)
    assert (joined.text, joined.image_id, shown(joined.images)) == ("51 blue ball", 7, [51])
    assert shown(joined.negative_images) == [50]


def test_the_limit_holds_for_negatives_too(table: ArrowTable) -> None:
    spec = SampleSpec("caption", negative_images=1)
    examples = Examples([table], spec, dataclasses.replace(TRAIN, limit=7))
    assert len(examples) == 7
    assert {shown(read(examples, 0, n).negative_images)[0] for n in range(60)} == {1, 2}
    with pytest.raises(DataError, match=r"a.arrow, row 0: there is no other image"):
        Examples([table], spec, dataclasses.replace(TRAIN, limit=3))[0]


def test_draws_depend_on_epoch_and_seed_only(table: ArrowTable) -> None:
    spec = SampleSpec("caption", negative_images=3)
    examples = Examples([table], spec, TRAIN)
    copy = pickle.loads(pickle.dumps(examples))  # noqa: S301  (made above)
    reseeded = Examples([table], spec, dataclasses.replace(TRAIN, seed=1))

    def drawn(source: Examples, epoch: int) -> list[list[int]]:
        return [shown(read(source, number, epoch).negative_images) for number in range(6)]

    assert drawn(examples, 0) == drawn(copy, 0) == drawn(examples, 0)
    assert drawn(examples, 0) not in (drawn(examples, 1), drawn(reseeded, 0))
    # Trained models and their scores rest on these draws.
    assert drawn(examples, 0)[:3] == [[4, 2, 4], [3, 4, 1], [2, 4, 5]]
    texts = Examples([table], SampleSpec("caption", negative_texts=2), TRAIN)
    assert read(texts, 0).negative_texts == ("1 blue ball", "4 red ball")


def test_a_bad_image_is_an_error_left_out_or_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [png(0), noise(0)[:200], png(2), b""]
    path = write(tmp_path / "bad.arrow", {"image": images, "caption": [["a"], ["b"], ["c"], ["d"]]})
    table, spec = ArrowTable([path], BARE), SampleSpec("caption")
    with pytest.raises(ImageError, match=r"bad.arrow, row 1: not a readable image"):
        Examples([table], spec, EVAL)[1]
    examples = Examples([table], spec, dataclasses.replace(EVAL, skip_bad=True))
    with caplog.at_level(logging.WARNING):
        assert [examples[number] is None for number in range(4)] == [False, True, False, True]
    assert examples.num_skipped == 2
    assert "bad.arrow, row 3" in caplog.text
    training = Examples([table], spec, TRAIN)
    found = [read(training, 1, epoch).text for epoch in range(20)]
    assert set(found) == {"a", "c"}
    assert training.num_skipped >= 20
    assert [read(training, 1, epoch).text for epoch in range(20)] == found
    path = write(tmp_path / "none.arrow", {"image": [b"x"] * 3, "caption": [["a"]] * 3})
    with pytest.raises(DataError, match="20 examples in a row had a bad image"):
        Examples([ArrowTable([path], BARE)], spec, TRAIN)[0]


def test_impossible_requests(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    pairs = ArrowTable([tmp_path / "tiny_pairs.arrow"], LAYOUT["pair"])
    with pytest.raises(DataError, match="Negative images are not defined"):
        Examples([pairs], SampleSpec("pair", negative_images=1), TRAIN)
    empty = write(tmp_path / "none.arrow", {"image": [], "caption": [], "image_id": []})
    with pytest.raises(DataError, match=r"no example in .*none\.arrow"):
        Examples([ArrowTable([empty], CAPTION)], SampleSpec("caption"), TRAIN)


def batch_of(examples: Examples, numbers: range, collate: Collator) -> Batch:
    batch = collate([examples[number] for number in numbers])
    assert batch is not None
    return batch


def test_a_batch_of_captions(table: ArrowTable) -> None:
    spec = SampleSpec("caption", masked=True, negative_images=1, negative_texts=2)
    examples = Examples([table], spec, TRAIN)
    collate = Collator(TextTokenizer(wrap(tokenizer()), 8), masked=True)
    batch = batch_of(examples, range(18), collate)
    assert (batch.images.shape, batch.images.dtype) == ((18, 1, 3, 8, 8), torch.uint8)
    assert batch.text.ids.shape == batch.text.mask.shape == (18, 8)
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
    assert collate([None, None]) is None


def test_batches_of_questions_and_pairs(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    encoder = TextTokenizer(wrap(tokenizer()), 8)
    table = ArrowTable([tmp_path / "tiny_questions.arrow"], LAYOUT["question"])
    questions = Examples([table], SampleSpec("question"), TRAIN)
    batch = batch_of(questions, range(3), Collator(encoder, num_answers=4))
    assert batch.target is not None
    expected = torch.tensor([[0.3, 0.9, 0, 0], [0, 1.0, 0, 0], [0, 0, 0.6, 0]])
    assert torch.equal(batch.target, expected)
    assert batch.keys == ("70", "71", "80")
    table = ArrowTable([tmp_path / "tiny_pairs.arrow"], LAYOUT["pair"])
    batch = batch_of(Examples([table], SampleSpec("pair"), TRAIN), range(3), Collator(encoder))
    assert batch.images[:, :, 0, 0, 0].tolist() == [[0, 100], [0, 100], [1, 101]]
    assert batch.target is not None
    assert batch.target.tolist() == [1, 0, 0]
