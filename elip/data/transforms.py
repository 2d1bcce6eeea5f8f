"""From an encoded image to uint8 pixels of a fixed size; the model normalises them on the device.

EXIF rotation is ignored, as in the reference.
"""

from __future__ import annotations

import io
import math
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps, features

from elip.data.datasets.base import DataError

Pixels = NDArray[np.uint8]

# What Pillow raises on files that are truncated, damaged or absurdly large.
_UNREADABLE = (
    MemoryError, OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip

# The formats of datasets. For some others Pillow starts external programs.
_FORMATS = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"]
_FORMATS += ["AVIF"] if features.check("avif") else []

_MAX_ASPECT_RATIO = 50


class ImageError(DataError):
    """An image cannot be decoded."""


def decode_image(
    data: bytes | memoryview, short_side: int | None = None, keep_alpha: bool = False
) -> Image.Image:
    """Decode the first frame of an image to RGB (or RGBA), with 8 bits per channel.

    Args:
        data: A JPEG, PNG, GIF, WebP, BMP, TIFF, PPM, JPEG 2000 or AVIF file.
        short_side: Required pixels of the short side: JPEGs are then decoded at 1/2, 1/4 or 1/8
            scale, much faster. None decodes at full scale.
        keep_alpha: Return an image with transparency as RGBA.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if short_side is not None:
            image.draft("RGB", _scaled(image.size, short_side))
        image.load()
        image = _eight_bits(image)
        # Cut off the ends of a very long strip: they are not used, but would fill the memory.
        (width, height), most = image.size, _MAX_ASPECT_RATIO * min(image.size)
        left, top = max(0, width - most) // 2, max(0, height - most) // 2
        image = image.crop((left, top, left + min(width, most), top + min(height, most)))
        if keep_alpha and image.has_transparency_data:
            return image.convert("RGBA")
        return image if image.mode == "RGB" else image.convert("RGB")
    except _UNREADABLE as error:
        raise ImageError(f"not a readable image ({type(error).__name__}: {error})") from error


def check_image(data: bytes) -> None:
    """Check that an image is complete.

    A JPEG is if it has a header and ends with the end marker: that costs a fraction of decoding,
    and a decoder accepts most other damage anyway. Other images are decoded.
    """
    if data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9"):
        try:
            Image.open(io.BytesIO(data), formats=["JPEG"])
            return
        except _UNREADABLE:
            pass  # decoding says why
    decode_image(data, short_side=1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of more than 8 bits to 8; Pillow would clip everything above 255 to white.

    32-bit integers and floats have no fixed range. White is 1 (floats only), 255 or 65535, the
    first that no pixel exceeds, or else the brightest pixel.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in ("I", "F"):
        return image
    values = np.nan_to_num(np.asarray(image, np.float64))
    whites = [1, 255, 65535] if image.mode == "F" else [255, 65535]
    if image.format == "PPM":  # Pillow scales these to 16 bits
        whites = [65535]
    white = next((white for white in whites if values.max() <= white), values.max())
    return Image.fromarray((values.clip(0, white) * (255 / white)).round().astype(np.uint8))


@dataclass(frozen=True)
class Transform:
    """Augment (optionally), resize the short side, and crop the centre."""

    name: str
    resizes_alpha: bool = False  # drop transparency after resizing instead of before
    augments: bool = False  # apply two random operations to the original image

    def __call__(
        self,
        data: bytes | memoryview,
        size: int,
        rng: random.Random | None = None,
        fast: bool = False,
    ) -> Pixels:
        """Decode and prepare one image; return [3,S,S] uint8 RGB.

        ``fast`` resizes with torch instead of Pillow, in a third of the time, and decodes large
        JPEGs at a reduced scale (not when augmenting). Resizing changes pixels by at most 2 of 255
        levels, reduced decoding by a fraction of a level on average.
        """
        scaled_decode = size if fast and not self.augments else None
        image = decode_image(data, scaled_decode, keep_alpha=self.resizes_alpha)
        if self.augments:
            assert rng is not None, f"transform {self.name} needs random numbers"
            image = rand_augment(image, rng)
        width, height = _scaled(image.size, size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        if fast and image.mode == "RGB":  # the same bicubic filter as Pillow's, but vectorised
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
            pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
            resized = pixels[0].permute(1, 2, 0).numpy()
        else:
            if (width, height) != image.size:
                image = image.resize((width, height), Image.Resampling.BICUBIC)
            resized = np.asarray(image.convert("RGB"))
        square = resized[top : top + size, left : left + size]
        return np.ascontiguousarray(square.transpose(2, 0, 1))


def _scaled(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Return the size after scaling the short side to ``short``; the long side is rounded down."""
    width, height = size
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


# METER's names. In METER clip and imagenet also normalise differently; here the model normalises.
TRANSFORMS = {
    transform.name: transform
    for transform in (
        Transform("clip", resizes_alpha=True),
        Transform("clip_randaug", augments=True),
        Transform("imagenet"),
        Transform("imagenet_randaug", augments=True),
    )
}

_LEVEL = 9 / 30
Operation = Callable[[Image.Image, random.Random], Image.Image]


def rand_augment(image: Image.Image, rng: random.Random) -> Image.Image:
    """Apply two random `OPERATIONS` of fixed strength to an RGB image.

    Source: Cubuk et al., RandAugment, 2019, arXiv:1909.13719, with the operations and strengths of
    ViLT (Kim et al., 2021, arXiv:2102.03334), N = 2 and M = 9 of 30.
    Differs: ViLT's SolarizeAdd fails with current NumPy.
    """
    for operation in rng.choices(tuple(OPERATIONS.values()), k=2):
        image = operation(image, rng)
    return image


def _signed(value: float, rng: random.Random) -> float:
    return -value if rng.random() > 0.5 else value


def _affine(place: int, strength: float) -> Operation:
    """Return a shear or shift: a strength with random sign at a place of the identity matrix."""

    def operation(image: Image.Image, rng: random.Random) -> Image.Image:
        matrix = [1.0, 0, 0, 0, 1, 0]
        matrix[place] = _signed(strength, rng)
        return image.transform(image.size, Image.Transform.AFFINE, matrix)

    return operation


def _enhanced(enhance: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    # The factor ranges from 0.1 to 1.9; 1 changes nothing.
    return lambda image, _: enhance(image).enhance(0.1 + 1.8 * _LEVEL)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Rotate": lambda image, rng: image.rotate(_signed(30 * _LEVEL, rng)),  # degrees
    "Posterize": lambda image, _: ImageOps.posterize(image, int(4 * _LEVEL)),  # bits left
    "Solarize": lambda image, _: ImageOps.solarize(image, math.ceil(256 * _LEVEL)),
    "SolarizeAdd": lambda image, _: ImageOps.solarize(
        image.point(lambda value: min(value + int(110 * _LEVEL), 255)), 128
    ),
    "Color": _enhanced(ImageEnhance.Color),
    "Contrast": _enhanced(ImageEnhance.Contrast),
    "Brightness": _enhanced(ImageEnhance.Brightness),
    "Sharpness": _enhanced(ImageEnhance.Sharpness),
    "ShearX": _affine(1, 0.3 * _LEVEL),
    "ShearY": _affine(3, 0.3 * _LEVEL),
    "TranslateXabs": _affine(2, 100 * _LEVEL),  # pixels of the original image
    "TranslateYabs": _affine(5, 100 * _LEVEL),
}
