"""Random augmentation of an image: two operations of fourteen, at a fixed strength.

Source: Cubuk et al., RandAugment, 2019, arXiv:1909.13719, with the operations and strengths of
ViLT (Kim et al., 2021, arXiv:2102.03334), N = 2 and M = 9 of 30.
Differs: ViLT's SolarizeAdd fails on current NumPy; here it works.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_LEVEL = 9 / 30
Operation = Callable[[Image.Image, random.Random], Image.Image]


def rand_augment(image: Image.Image, rng: random.Random) -> Image.Image:
    """Return the image after two random operations.

    Args:
        image: An RGB image.
        rng: Source of the choices of operations and directions.
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
