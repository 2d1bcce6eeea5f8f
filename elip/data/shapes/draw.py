"""Drawing a scene: things in bright colors on a cluttered grey-brown background."""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from elip.data.shapes.scene import COLORS, Scene

_FINE = 8
"""Masks are drawn at this scale and then reduced, for smooth edges."""


def draw(scene: Scene) -> Image.Image:
    """Return the RGB image of a scene; equal scenes give identical images."""
    rng = np.random.default_rng([*scene.seed, 1])
    image = _background(scene.pixels, rng)
    for thing in scene.things:
        left, top, right, _ = thing.box
        color = tuple(
            int(c) for c in np.clip(COLORS[thing.color] + rng.integers(-12, 13, 3), 0, 255)
        )
        image.paste(color, (left, top), _mask(thing.shape, right - left))
    if scene.card:
        left, top, right, bottom = scene.card
        ImageDraw.Draw(image).rectangle(
            (left, top, right - 1, bottom - 1), fill=(250, 250, 250), outline=(40, 40, 40)
        )
    return image


def png(image: Image.Image) -> bytes:
    """Return the image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _background(pixels: int, rng: np.random.Generator) -> Image.Image:
    """Return soft blotches, grain in 2 x 2 blocks, and a dozen muted strokes."""
    base = rng.integers(85, 150)
    blotches = base + rng.integers(-28, 29, size=(5, 5, 1)) + rng.integers(-8, 9, size=(5, 5, 3))
    image = Image.fromarray(blotches.astype(np.uint8)).resize(
        (pixels, pixels), Image.Resampling.BICUBIC
    )
    grain = rng.integers(-2, 3, size=(-(-pixels // 2), -(-pixels // 2), 1)) * 6
    grain = grain.repeat(2, axis=0).repeat(2, axis=1)[:pixels, :pixels]
    noisy = np.asarray(image, dtype=np.int16) + grain
    image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for x, y, angle, length, tone in rng.random((12, 5)):
        end = (
            pixels * (x + 0.25 * length * math.cos(math.tau * angle)),
            pixels * (y + 0.25 * length * math.sin(math.tau * angle)),
        )
        grey = int(50 + 130 * tone)
        pen.line(
            [(pixels * x, pixels * y), end],
            fill=(grey, grey - 8, grey - 16),
            width=1 + (tone > 0.5),
        )
    return image


@lru_cache(maxsize=256)
def _mask(shape: str, edge: int) -> Image.Image:
    """Return the coverage of each pixel by the shape, [edge,edge] from 0 to 255."""
    side = edge * _FINE
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    last = side - 1
    if shape in ("circle", "ring"):
        pen.ellipse((0, 0, last, last), fill=255)
    if shape == "ring":
        pen.ellipse((0.3 * side, 0.3 * side, 0.7 * side, 0.7 * side), fill=0)
    if shape == "square":
        pen.rectangle((0.06 * side, 0.06 * side, 0.94 * side, 0.94 * side), fill=255)
    if shape == "triangle":
        pen.polygon([(side / 2, 0), (last, last), (0, last)], fill=255)
    if shape == "cross":
        pen.rectangle((0.33 * side, 0, 0.67 * side, last), fill=255)
        pen.rectangle((0, 0.33 * side, last, 0.67 * side), fill=255)
    if shape == "star":
        pen.polygon(_star(side), fill=255)
    return mask.resize((edge, edge), Image.Resampling.BOX)


def _star(side: int) -> list[tuple[float, float]]:
    points = []
    for corner in range(10):
        radius = side / 2 * (1 if corner % 2 == 0 else 0.42)
        angle = math.pi * corner / 5
        points.append((side / 2 + radius * math.sin(angle), side / 2 - radius * math.cos(angle)))
    return points
