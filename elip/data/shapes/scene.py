"""What a picture of the built-in data shows: a few small things on a grid, drawn from a seed."""

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
"""Edge of a thing's box as a share of the image's edge."""

CELLS = 4
"""The picture is a grid of CELLS x CELLS cells; each holds at most one thing, in its middle.

With 8 x 8 patches a cell is 2 x 2 of them. Things that lie anywhere take a small vision transformer
hours of one core to tell apart by shape; in the middle of cells they take it minutes."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are the first pixels outside."""


@dataclass(frozen=True)
class Thing:
    """One object.

    Attributes:
        shape: One of `SHAPES`.
        color: One of `COLORS`.
        size: One of `SIZES`.
        box: Where it is.
    """

    shape: str
    color: str
    size: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """The whole truth about one picture.

    Attributes:
        seed: The numbers that everything about the picture follows from.
        pixels: Edge of the square image.
        things: Two or more things, no two of the same shape and color, none overlapping.
        card: A white card that hides this part of the picture; nobody knows what is under it.
    """

    seed: tuple[int, ...]
    pixels: int
    things: tuple[Thing, ...]
    card: Box | None = None

    def to_json(self) -> str:
        """Return the scene as a JSON object."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Scene:
        """Return the scene that `to_json` wrote."""
        fields = json.loads(text)
        things = tuple(Thing(**thing | {"box": tuple(thing["box"])}) for thing in fields["things"])
        card = tuple(fields["card"]) if fields["card"] else None
        return cls(tuple(fields["seed"]), fields["pixels"], things, card)


def random_scene(seed: Sequence[int], pixels: int = 64, most: int = 3, card: bool = False) -> Scene:
    """Return the scene that belongs to a seed.

    Args:
        seed: Non-negative integers, for instance (seed, split, index).
        pixels: Edge of the image; below 48 shapes cannot be told apart.
        most: Most things in a picture, 2 to 4; the more, the harder to learn.
        card: Whether a card hides one cell.
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
    """Put a box into the middle of a cell."""
    pitch = pixels // CELLS
    left, top = (place * pitch + (pitch - edge) // 2 for place in (cell % CELLS, cell // CELLS))
    return left, top, left + edge, top + edge
