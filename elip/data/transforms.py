"""From an encoded image file to uint8 pixels of a fixed size, by named transforms.

Normalisation is not done here: pixels travel as uint8, and the model normalises them on the device,
as its own `pixels` says, whatever the transform.
"""

from __future__ import annotations

import difflib
import io
import random
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from elip.data.augment import rand_augment
from elip.data.datasets.base import DataError

Pixels = NDArray[np.uint8]

# What Pillow raises on files that are cut short, garbled or absurdly large.
_UNREADABLE = (
    MemoryError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# What data sets hold. Pillow reads more, and for some of that it starts other programs.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")

_LONGEST = 50
"""Long side over short side, beyond which an image is cut before it is resized."""


class ImageError(DataError):
    """An image cannot be decoded."""


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
            data: Bytes of an image file that Pillow reads (JPEG, PNG, GIF, WebP, ...). Of
                several frames the first counts.
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
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if fast and not self.augments:
                # Pillow does so at 1/2, 1/4 or 1/8, wherever that leaves enough pixels.
                image.draft("RGB", _scaled(image.size, size))
            image.load()
            return self._pixels(_trimmed(_eight_bits(image)), size, rng, fast)
        except _UNREADABLE as error:
            raise ImageError(f"not a readable image ({type(error).__name__}: {error})") from error

    def _pixels(
        self, image: Image.Image, size: int, rng: random.Random | None, fast: bool
    ) -> Pixels:
        if self.augments:
            if rng is None:
                raise TypeError(f"transform {self.name} needs a source of randomness")
            image = rand_augment(image.convert("RGB"), rng)
        elif self.resizes_alpha and image.has_transparency_data:
            image = image.convert("RGBA")
        elif image.mode != "RGB":
            image = image.convert("RGB")
        width, height = _scaled(image.size, size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        if fast and image.mode == "RGB":
            resized = _resized_by_torch(image, width, height)
        else:
            if (width, height) != image.size:
                image = image.resize((width, height), Image.Resampling.BICUBIC)
            resized = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        square = resized[top : top + size, left : left + size]
        return np.ascontiguousarray(square.transpose(2, 0, 1))


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


def find_transform(name: str) -> Transform:
    """Return the transform with that name.

    Raises:
        DataError: If there is none; the message gives the nearest name.
    """
    if name in TRANSFORMS:
        return TRANSFORMS[name]
    near = difflib.get_close_matches(name.lower(), TRANSFORMS, n=1, cutoff=0.3)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise DataError(f"There is no transform {name!r}.{hint} Known: {', '.join(TRANSFORMS)}.")


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


def _eight_bits(image: Image.Image) -> Image.Image:
    """Bring grey values of 16 bits to 8; Pillow would cut everything above 255 to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no fixed range; store 8 or 16 bits")
    return image


def _trimmed(image: Image.Image) -> Image.Image:
    """Cut off the ends of a strip: only its middle is used, and whole it would fill the memory."""
    width, height = image.size
    most = _LONGEST * min(image.size)
    if max(image.size) <= most:
        return image
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    return image.crop((left, top, left + min(width, most), top + min(height, most)))


def decoded_mode(data: bytes) -> str:
    """Decode an image wholly and return Pillow's color mode of it ("RGB", "CMYK", ...).

    Raises:
        ImageError: If the bytes are not a whole image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            image.load()
            return image.mode
    except _UNREADABLE as error:
        raise ImageError(f"not a readable image ({type(error).__name__}: {error})") from error
