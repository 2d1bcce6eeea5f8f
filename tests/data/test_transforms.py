"""From bytes to pixels: odd images are read right, bad ones are one kind of error."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from elip.data.transforms import TRANSFORMS, ImageError, check_image, decode_image
from tests.data.tiny import noise

CLIP = TRANSFORMS["clip"]
RED = (200, 100, 50)
GREY = (90, 90, 90)


def encode(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def red(mode: str = "RGB", size: tuple[int, int] = (20, 20)) -> Image.Image:
    return Image.new("RGB", size, RED).convert(mode)


def grey(value: float, kind: type) -> Image.Image:
    return Image.fromarray(np.full((20, 20), value, kind))


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = red(size=(40, 20))
    image.paste((0, 0, 0), (0, 0, 10, 20))  # at the left, outside the middle that is cut out
    return encode(image, "JPEG", exif=exif)


# Odd but whole images, and the mean color that they come out with.
ODD: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "1x1": (encode(red(size=(1, 1))), RED),
    "a thread": (encode(red(size=(60_000, 1))), RED),
    "CMYK": (encode(red("CMYK"), "JPEG"), RED),
    "rotated by EXIF": (rotated(), RED),
    "grey": (encode(grey(90, np.uint8)), GREY),
    "16 bits": (encode(grey(90 * 257, np.uint16)), GREY),
    "16 bits PGM": (b"P5\n2 2\n65535\n" + np.full(4, 90 * 257, ">u2").tobytes(), GREY),
    "wide int32 TIFF": (encode(grey(90 * 257, np.int32), "TIFF"), GREY),
    "float TIFF to 1": (encode(grey(90 / 255, np.float32), "TIFF"), GREY),
    "float TIFF to 255": (encode(grey(90, np.float32), "TIFF"), GREY),
    "palette": (encode(red("P")), (204, 102, 51)),
    "alpha": (encode(red("RGBA")), RED),
    "WebP": (encode(red(), "WEBP", lossless=True), RED),
}  # fmt: skip
if features.check("avif"):
    ODD["AVIF"] = (encode(red(), "AVIF"), RED)

PNG, JPEG = noise(1), noise(2, "JPEG")
BOMB = PNG[:16] + (60_000).to_bytes(4, "big") * 2 + PNG[24:]  # promises 60,000 x 60,000 pixels
BAD = {
    "empty": b"", "text": b"not an image", "bomb": BOMB, "half": PNG[:400],
    "cut near its end": PNG[:-200], "half a JPEG": JPEG[:500], "half a GIF": noise(3, "GIF")[:300],
    "half a WebP": noise(4, "WEBP")[:200], "half a TIFF": noise(5, "TIFF")[:100],
    "no width": PNG[:16] + bytes(4) + PNG[20:], "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%EOF\n",
}  # fmt: skip


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ODD)
def test_an_odd_image_is_read_right(name: str, transform: str) -> None:
    data, mean = ODD[name]
    pixels = TRANSFORMS[transform](memoryview(data), 16, random.Random(0))
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert decode_image(data).mode == "RGB"
    if "randaug" not in transform:
        assert pixels.mean(axis=(1, 2)) == pytest.approx(mean, abs=3)


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_one_kind_of_error_at_any_scale(name: str) -> None:
    for read in (lambda: CLIP(BAD[name], 16), lambda: CLIP(BAD[name], 4, fast=True),
                 lambda: check_image(BAD[name])):  # fmt: skip
        with pytest.raises(ImageError, match="not a readable image"):
            read()


def test_an_opaque_image_of_the_right_size_is_left_as_it_is() -> None:
    data = noise(0, size=(16, 16))
    expected = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
    assert np.array_equal(CLIP(data, 16), expected)
    with_alpha = encode(Image.open(io.BytesIO(data)).convert("RGBA"))
    assert np.array_equal(CLIP(with_alpha, 16), expected)


def test_fast_pixels_differ_little() -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for size in ((640, 480), (333, 517), (200, 150)):
        data = encode(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), "JPEG")
        slow, fast = (CLIP(data, 288, fast=choice).astype(int) for choice in (False, True))
        assert abs(slow - fast).max() <= 2
        assert abs(slow - fast).mean() < 0.05
    data = encode(Image.linear_gradient("L").convert("RGB").resize((640, 480)), "JPEG")
    slow, fast = (CLIP(data, 32, fast=choice).astype(int) for choice in (False, True))
    assert abs(slow - fast).max() <= 6  # decoded at a reduced scale
