"""From an encoded image file to uint8 pixels of a fixed size.

Pixels travel as uint8; the model normalises them on the device, as its own `pixels` says. EXIF
rotation is ignored, as in the reference, whose models were trained on pixels as they are stored.
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

# What Pillow raises on files that are cut short, garbled or absurdly large.
_UNREADABLE = (
    MemoryError, OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip

# What datasets hold. Pillow reads more, and for some of that it starts other programs.
_FORMATS = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"]
_FORMATS += ["AVIF"] if features.check("avif") else []

_LONGEST = 50
"""Long side over short side, beyond which an image is cut before it is resized."""


class ImageError(DataError):
    """An image cannot be decoded."""


def decode_image(
    data: bytes | memoryview, short_side: int | None = None, keep_alpha: bool = False
) -> Image.Image:
    """Decode one image file; reader and converters both do it here, so what converts also reads.

    Args:
        data: Bytes of a JPEG, PNG, GIF, WebP, BMP, TIFF, PPM, JPEG 2000 or AVIF file. Of several
            frames the first counts. More than 8 bits are brought to 8 (`_eight_bits`).
        short_side: Pixels of the short side that are enough: JPEGs are then decoded at 1/2, 1/4 or
            1/8 scale, much faster. None decodes at full scale.
        keep_alpha: Whether an image with transparency is returned as RGBA.

    Returns:
        The image with 8 bits a channel: RGB, or RGBA. EXIF rotation is ignored.

    Raises:
        ImageError: If the bytes are not a whole image.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if short_side is not None:
            image.draft("RGB", _scaled(image.size, short_side))
        image.load()
        image = _trimmed(_eight_bits(image))
        if keep_alpha and image.has_transparency_data:
            return image.convert("RGBA")
        return image if image.mode == "RGB" else image.convert("RGB")
    except _UNREADABLE as error:
        raise ImageError(f"not a readable image ({type(error).__name__}: {error})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Bring grey values of more than 8 bits to 8; Pillow would cut everything above 255 to white.

    32-bit integers and floats have no fixed range: white is 1 (floats only), 255 or 65535, the
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


def _trimmed(image: Image.Image) -> Image.Image:
    """Cut off the ends of a strip: only its middle is used, and whole it would fill the memory."""
    width, height = image.size
    most = _LONGEST * min(image.size)
    if max(image.size) <= most:
        return image
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    return image.crop((left, top, left + min(width, most), top + min(height, most)))


@dataclass(frozen=True)
class Transform:
    """How images become pixels: resize the short side, crop the centre, and (some) augment first.

    Attributes:
        name: Name on the command line.
        resizes_alpha: Whether transparency takes part in the resizing; otherwise it is dropped
            before. It is always dropped in the end.
        augments: Whether two random operations are done on the original image first.
    """

    name: str
    resizes_alpha: bool = False
    augments: bool = False

    def __call__(
        self,
        data: bytes | memoryview,
        size: int,
        rng: random.Random | None = None,
        fast: bool = False,
    ) -> Pixels:
        """Decode one image.

        Args:
            data: Bytes of an image file, see `decode_image`.
            size: S, pixels of each side of the result.
            rng: Source of the augmentation's random choices; needed where ``augments``.
            fast: Whether torch resizes instead of Pillow, in a third of the time, and large JPEGs
                that are not augmented are decoded at a reduced scale. Pixels differ by at most 2 of
                255 levels, by more (a fraction of a level in the mean) where the scale was reduced.

        Returns:
            [3,S,S] uint8, red, green and blue.

        Raises:
            ImageError: If the bytes are not a whole image.
        """
        scaled_decode = size if fast and not self.augments else None
        image = decode_image(data, scaled_decode, keep_alpha=self.resizes_alpha)
        if self.augments:
            assert rng is not None, f"transform {self.name} needs random numbers"
            image = rand_augment(image, rng)
        width, height = _scaled(image.size, size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        if fast and image.mode == "RGB":
            resized = _resized_by_torch(image, width, height)
        else:
            if (width, height) != image.size:
                image = image.resize((width, height), Image.Resampling.BICUBIC)
            resized = np.asarray(image.convert("RGB"))
        square = resized[top : top + size, left : left + size]
        return np.ascontiguousarray(square.transpose(2, 0, 1))


def _scaled(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Return width and height with the short side at ``short``; the long side is cut to whole."""
    width, height = size
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _resized_by_torch(image: Image.Image, width: int, height: int) -> Pixels:
    """Resize (bicubic) to [height,width,3]; the same filter as Pillow's, on vector instructions."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    resized: Pixels = pixels[0].permute(1, 2, 0).numpy()
    return resized


# METER's names. The plain ones differ in transparent images only, the augmenting ones in nothing:
# what else differs in METER is the normalisation, which is the model's here.
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
    """Return an RGB image after two random operations of `OPERATIONS`, at a fixed strength.

    Source: Cubuk et al., RandAugment, 2019, arXiv:1909.13719, with the operations and strengths of
    ViLT (Kim et al., 2021, arXiv:2102.03334), N = 2 and M = 9 of 30.
    Differs: ViLT's SolarizeAdd fails on current NumPy; here it works.
    """
    for operation in rng.choices(tuple(OPERATIONS.values()), k=2):
        image = operation(image, rng)
    return image


def _signed(value: float, rng: random.Random) -> float:
    return -value if rng.random() > 0.5 else value


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _solarize_add(image: Image.Image, _: random.Random) -> Image.Image:
    brighter = np.asarray(image).astype(np.int64) + int(110 * _LEVEL)
    pixels = np.clip(brighter, 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(pixels), 128)


def _enhanced(enhance: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    # A factor of 1 leaves the image as it is; the range runs from 0.1 to 1.9.
    return lambda image, _: enhance(image).enhance(0.1 + 1.8 * _LEVEL)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Rotate": lambda image, rng: image.rotate(_signed(30 * _LEVEL, rng)),  # degrees
    "Posterize": lambda image, _: ImageOps.posterize(image, int(4 * _LEVEL)),  # bits left
    "Solarize": lambda image, _: ImageOps.solarize(image, math.ceil(256 * _LEVEL)),
    "SolarizeAdd": _solarize_add,
    "Color": _enhanced(ImageEnhance.Color),
    "Contrast": _enhanced(ImageEnhance.Contrast),
    "Brightness": _enhanced(ImageEnhance.Brightness),
    "Sharpness": _enhanced(ImageEnhance.Sharpness),
    "ShearX": lambda image, rng: _affine(image, 1, _signed(0.3 * _LEVEL, rng), 0, 0, 1, 0),
    "ShearY": lambda image, rng: _affine(image, 1, 0, 0, _signed(0.3 * _LEVEL, rng), 1, 0),
    "TranslateXabs": lambda image, rng: _affine(  # pixels of the original image
        image, 1, 0, _signed(100 * _LEVEL, rng), 0, 1, 0
    ),
    "TranslateYabs": lambda image, rng: _affine(image, 1, 0, 0, 0, 1, _signed(100 * _LEVEL, rng)),
}
