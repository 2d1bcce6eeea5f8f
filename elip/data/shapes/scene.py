"""Scenes of the built-in data: a few small things on a grid, generated from a seed, and drawn."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
COLORS = {
    "red": (225, 25, 25),
    "green": (20, 165, 40),
    "blue": (35, 55, 235),
    "yellow": (250, 225, 20),
    "purple": (190, 30, 205),
    "cyan": (30, 215, 225),
}
SIZES = {"small": 0.17, "large": 0.25}
"""Side of a thing's box as a fraction of the image's side."""

CELLS = 4
"""The image is a grid of CELLS x CELLS cells; each holds at most one thing, in its centre.

With 8 x 8 patches a cell is 2 x 2 patches. A small vision transformer then learns shapes in minutes
on one core; with things at arbitrary positions it takes hours."""

_FINE = 8  # masks are drawn at this scale and then reduced, for smooth edges

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""


@dataclass(frozen=True)
class Thing:
    """One object: one of `SHAPES`, `COLORS` and `SIZES`, and its place."""

    shape: str
    color: str
    size: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """The complete description of one image."""

    seed: tuple[int, ...]  # determines the scene and its drawing
    pixels: int  # side of the square image
    things: tuple[Thing, ...]  # they do not overlap; no two have the same shape and color
    card: Box | None = None  # a white card that hides this part of the image

    def to_json(self) -> str:
        """Return the scene as JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))


def random_scene(seed: Sequence[int], pixels: int = 64, most: int = 3, card: bool = False) -> Scene:
    """Return the scene of a seed: 2 to ``most`` (at most 4) things, and maybe a card on a cell."""
    rng = np.random.default_rng([*seed, 0])
    number = int(rng.integers(2, most + 1))
    cells = rng.choice(CELLS * CELLS, size=number + card, replace=False).tolist()
    looks = rng.choice(len(SHAPES) * len(COLORS), size=number, replace=False).tolist()
    sizes = rng.integers(len(SIZES), size=number).tolist()
    pitch, things = pixels // CELLS, []

    def place(cell: int, edge: int) -> Box:
        left, top = (n * pitch + (pitch - edge) // 2 for n in (cell % CELLS, cell // CELLS))
        return left, top, left + edge, top + edge

    for cell, look, size in zip(cells[:number], looks, sizes, strict=True):
        name, share = list(SIZES.items())[size]
        color, shape = list(COLORS)[look // len(SHAPES)], SHAPES[look % len(SHAPES)]
        box = place(cell, min(round(share * pixels), pitch))
        things.append(Thing(shape, color, name, box))
    return Scene(tuple(seed), pixels, tuple(things), place(cells[number], pitch) if card else None)


def draw(scene: Scene) -> Image.Image:
    """Return the RGB image of a scene: bright things on a cluttered grey-brown background."""
    rng = np.random.default_rng([*scene.seed, 1])
    image = _background(scene.pixels, rng)
    for thing in scene.things:
        left, top, right, _ = thing.box
        tones = np.clip(COLORS[thing.color] + rng.integers(-12, 13, 3), 0, 255)
        image.paste(tuple(map(int, tones)), (left, top), _mask(thing.shape, right - left))
    if scene.card:
        left, top, right, bottom = scene.card
        corners = (left, top, right - 1, bottom - 1)
        ImageDraw.Draw(image).rectangle(corners, fill=(250, 250, 250), outline=(40, 40, 40))
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
    soft = Image.fromarray(blotches.astype(np.uint8))
    soft = soft.resize((pixels, pixels), Image.Resampling.BICUBIC)
    half = -(-pixels // 2)
    grain = rng.integers(-2, 3, size=(half, half, 1)) * 6
    grain = grain.repeat(2, axis=0).repeat(2, axis=1)[:pixels, :pixels]
    noisy = np.clip(np.asarray(soft, np.int16) + grain, 0, 255).astype(np.uint8)
    image = Image.fromarray(noisy)
    pen = ImageDraw.Draw(image)
    for x, y, angle, length, tone in rng.random((12, 5)):
        reach, grey = 0.25 * length, int(50 + 130 * tone)
        end = x + reach * math.cos(math.tau * angle), y + reach * math.sin(math.tau * angle)
        pen.line(
            [(pixels * x, pixels * y), (pixels * end[0], pixels * end[1])],
            fill=(grey, grey - 8, grey - 16),
            width=1 + (tone > 0.5),
        )
    return image


@lru_cache(maxsize=256)
def _mask(shape: str, edge: int) -> Image.Image:
    """Return the coverage of each pixel by the shape, [edge,edge] from 0 to 255."""
    side, last = edge * _FINE, edge * _FINE - 1
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
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
        radii = [side / 2 * (1 if corner % 2 == 0 else 0.42) for corner in range(10)]
        turns = [(math.sin(math.pi * n / 5), math.cos(math.pi * n / 5)) for n in range(10)]
        points = [
            (side / 2 + r * x, side / 2 - r * y) for r, (x, y) in zip(radii, turns, strict=True)
        ]
        pen.polygon(points, fill=255)
    return mask.resize((edge, edge), Image.Resampling.BOX)
