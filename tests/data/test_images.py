from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from elip.data.datasets.base import DataError
from elip.data.transforms import TRANSFORMS, ImageError, find_transform
from tests.data.tiny import noise

CLIP = TRANSFORMS["clip"]


def encode(image: Image.Image, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
@pytest.mark.parametrize(
    "data",
    [
        encode(Image.new("RGB", (1, 1), "red")),
        encode(Image.new("L", (30, 50), 200)),
        encode(Image.new("LA", (30, 50), (200, 3))),
        encode(Image.new("P", (50, 30), 7)),
        encode(Image.new("I;16", (50, 30), 40_000)),
        encode(Image.new("1", (50, 30), 1)),
        encode(Image.new("CMYK", (50, 30), (1, 2, 3, 4)), "JPEG"),
        encode(Image.new("P", (50, 30), 7), "GIF"),
        encode(Image.new("RGBA", (300, 7), (1, 2, 3, 100))),
    ],
)
def test_every_mode_becomes_rgb_of_the_asked_size(name: str, data: bytes) -> None:
    pixels = TRANSFORMS[name](memoryview(data), 24, random.Random(0))
    assert pixels.shape == (3, 24, 24)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


def test_an_opaque_image_of_the_right_size_is_left_as_it_is() -> None:
    data = noise(0, size=(16, 16))
    expected = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
    assert np.array_equal(CLIP(data, 16), expected)


def test_opaque_rgb_and_rgba_give_the_same_pixels() -> None:
    image = Image.open(io.BytesIO(noise(1, size=(57, 91))))
    assert np.array_equal(CLIP(encode(image), 32), CLIP(encode(image.convert("RGBA")), 32))


def test_the_middle_is_cut_out() -> None:
    image = Image.new("RGB", (30, 10), "red")
    image.paste((0, 255, 0), (10, 0, 20, 10))
    pixels = CLIP(encode(image), 10)
    assert (pixels[0] == 0).all()
    assert (pixels[1] == 255).all()


def test_augmentation_is_decided_by_its_source_of_chance() -> None:
    transform, data = TRANSFORMS["clip_randaug"], noise(2)
    results = [transform(data, 16, random.Random(seed)) for seed in (1, 1, 2, 3)]
    assert np.array_equal(results[0], results[1])
    assert not (np.array_equal(results[0], results[2]) and np.array_equal(results[0], results[3]))
    with pytest.raises(TypeError, match="randomness"):
        transform(data, 16)


@pytest.mark.parametrize("size", [(640, 480), (375, 500), (333, 517), (301, 299), (200, 150)])
def test_fast_pixels_differ_by_two_levels_at_most(size: tuple[int, int]) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    data = encode(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), "JPEG")
    slow, fast = (CLIP(data, 288, fast=choice) for choice in (False, True))
    assert fast.shape == (3, 288, 288)
    assert fast.flags["C_CONTIGUOUS"]
    off = abs(slow.astype(int) - fast)
    assert off.max() <= 2
    assert off.mean() < 0.05


def test_fast_decoding_of_a_large_jpeg_differs_little() -> None:
    smooth = Image.linear_gradient("L").convert("RGB").resize((640, 480))
    data = encode(smooth, "JPEG")
    slow, fast = (CLIP(data, 32, fast=choice).astype(int) for choice in (False, True))
    assert abs(slow - fast).max() <= 6


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "RGB"])
@pytest.mark.parametrize("name", ["clip", "clip_randaug", "imagenet"])
def test_fast_pixels_of_other_modes_and_of_augmented_images(mode: str, name: str) -> None:
    picture = Image.linear_gradient("L").resize((90, 70)).convert(mode)
    slow, fast = (
        TRANSFORMS[name](encode(picture), 64, random.Random(0), fast=choice)
        for choice in (False, True)
    )
    assert abs(slow.astype(int) - fast).max() <= 2


@pytest.mark.parametrize("cut", [100, -2])
def test_fast_decoding_refuses_a_cut_file(cut: int) -> None:
    with pytest.raises(ImageError, match="not a readable image"):
        CLIP(noise(0, "JPEG")[:cut], 4, fast=True)


@pytest.mark.parametrize(
    "data", [b"", b"not an image", noise(0)[:300], noise(0, "JPEG")[:500], b"\xff\xd8\xff\xe0abc"]
)
def test_bad_bytes_are_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(ImageError, match="not a readable image"):
        CLIP(data, 16)


def test_a_misspelt_transform_gets_the_nearest() -> None:
    with pytest.raises(DataError, match=r"Did you mean clip_randaug\?"):
        find_transform("clip_randag")
