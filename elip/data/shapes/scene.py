"""Scenes of the built-in data: a few small things on a grid, generated from a seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

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
    """The complete description of one image.

    Attributes:
        seed: Determines the scene and its drawing.
        pixels: Side of the square image.
        things: Two or more things that do not overlap; no two have the same shape and color.
        card: A white card that hides this part of the image.
    """

    seed: tuple[int, ...]
    pixels: int
    things: tuple[Thing, ...]
    card: Box | None = None

    def to_json(self) -> str:
        """Return the scene as JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Scene:
        """Return the scene that `to_json` wrote."""
        fields = json.loads(text)
        things = tuple(Thing(**thing | {"box": tuple(thing["box"])}) for thing in fields["things"])
        card = tuple(fields["card"]) if fields["card"] else None
        return cls(tuple(fields["seed"]), fields["pixels"], things, card)


def random_scene(seed: Sequence[int], pixels: int = 64, most: int = 3, card: bool = False) -> Scene:
    """Return the scene of a seed.

    Args:
        seed: Non-negative integers, for instance (seed, split, index).
        pixels: Side of the image.
        most: Maximum number of things, 2 to 4.
        card: Let a card hide one cell.
    """
    rng = np.random.default_rng([*seed, 0])
    number = int(rng.integers(2, most + 1))
    cells = rng.choice(CELLS * CELLS, size=number + card, replace=False)
    looks = rng.choice(len(SHAPES) * len(COLORS), size=number, replace=False)
    sizes = rng.integers(len(SIZES), size=number)
    things = tuple(
        _thing(int(cell), int(look), int(size), pixels, rng)
        for cell, look, size in zip(cells[:number], looks, sizes, strict=True)
    )
    hidden = _place(int(cells[number]), pixels // CELLS, pixels) if card else None
    return Scene(tuple(seed), pixels, things, hidden)


def _thing(cell: int, look: int, size: int, pixels: int, rng: np.random.Generator) -> Thing:
    name, share = list(SIZES.items())[size]
    color, shape = list(COLORS)[look // len(SHAPES)], SHAPES[look % len(SHAPES)]
    edge = min(round(share * pixels), pixels // CELLS)
    return Thing(shape, color, name, _place(cell, edge, pixels))


def _place(cell: int, edge: int, pixels: int) -> Box:
    """Return a box in the centre of a cell."""
    pitch = pixels // CELLS
    left, top = (place * pitch + (pitch - edge) // 2 for place in (cell % CELLS, cell // CELLS))
    return left, top, left + edge, top + edge
