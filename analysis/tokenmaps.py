"""Which patches a reducer keeps, merges or drops, drawn over the image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw
from pydantic import TypeAdapter, ValidationError

from analysis.load import labelled
from elip.old_record import RECORD_NAME

TILE = 288
"""Pixels a side of a drawn image."""

_DROPPED, _MERGED = 0.12, 0.4
"""Brightness of a dropped patch, and of one in a very large group."""

_TINT = 0.22
"""How far a merged patch takes the colour of its group."""

_GROUPS = ("#ffd23f", "#3fd0ff", "#ff7ab8", "#8dff6e", "#ff8a3d", "#b69cff", "#2ee6b6", "#ff5252")
# Background that dropped patches fade to.
_DARK = np.array([18, 20, 24], dtype=float)


@dataclass(frozen=True)
class Stage:
    """One reduction.

    Attributes:
        where: "block" or "fusion layer".
        layer: Its number, from 0.
        origin: For each patch the token that stands for it from then on, or -1.
    """

    where: str
    layer: int
    origin: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many tokens stand for a patch."""
        return len({token for token in self.origin if token >= 0})

    @property
    def dropped(self) -> int:
        """How many patches no token stands for."""
        return self.origin.count(-1)


@dataclass(frozen=True)
class TokenMap:
    """What one reducer did to one image beside one text.

    Attributes:
        reducer: Class name, and options where several of one class differ in them.
        family: The idea of the method, in one word.
        keep_ratio: As asked; None where there is none.
        grid: Rows and columns of patches.
        image: The PNG file.
        key: Split, example and image: the same for every reducer.
        text: The text.
        stages: The reductions in their order.
    """

    reducer: str
    family: str
    keep_ratio: float | None
    grid: tuple[int, int]
    image: Path
    key: tuple[str, int, int]
    text: str
    stages: tuple[Stage, ...]

    @property
    def title(self) -> str:
        """Name and keep ratio."""
        if self.keep_ratio is None or not self.stages:
            return self.reducer
        return f"{self.reducer} {self.keep_ratio:g}"


@dataclass(frozen=True)
class _Picture:
    file: str
    split: str
    example: int
    image: int
    text: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class _File:
    """What ``tokens.json`` holds."""

    reducer: str
    family: str
    keep_ratio: float | None
    grid: tuple[int, int]
    images: tuple[_Picture, ...]


_ADAPTER = TypeAdapter(_File)


def load_tokens(folders: Iterable[Path | str], damaged: list[str] | None = None) -> list[TokenMap]:
    """Read the token maps that ``predict`` left anywhere below some folders.

    Reducers are named as everywhere: with the options, from the run's record beside the maps, in
    which several of one class differ.

    Args:
        folders: Searched at any depth.
        damaged: Takes what is wrong with files that are passed over; None refuses them.

    Raises:
        ValueError: A file of token maps, one of its images or the record is damaged; the message
            names it.
    """
    maps: list[TokenMap] = []
    paths = {path for folder in folders for path in Path(folder).rglob("tokens/tokens.json")}
    options: dict[str, dict[Path, dict[str, Any]]] = {}
    for path in sorted(paths):
        try:
            found, known = _read(path), _options(path.parents[1] / RECORD_NAME)
        except ValueError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
            continue
        for each in found:
            options.setdefault(each.reducer, {})[path.parent] = known
        maps += found
    labels = {
        folder: label
        for reducer, runs in options.items()
        for folder, label in zip(runs, labelled(reducer, list(runs.values())), strict=True)
    }
    return [replace(each, reducer=labels[each.image.parent]) for each in maps]


def _read(path: Path) -> list[TokenMap]:
    try:
        content = _ADAPTER.validate_json(path.read_bytes())
        return [_token_map(content, picture, path.parent) for picture in content.images]
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} holds no token maps: {place} {first['msg']}.") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no token maps: {error}") from error


def _token_map(content: _File, picture: _Picture, folder: Path) -> TokenMap:
    if Path(picture.file).name != picture.file:
        raise ValueError(f"the image {picture.file!r} does not lie beside it.")
    try:
        with Image.open(folder / picture.file, formats=["PNG"]) as image:
            image.verify()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image {picture.file!r} cannot be read: {error}") from error
    rows, columns = content.grid
    for stage in picture.stages:
        if not len(stage.origin) == rows * columns > 0:
            raise ValueError(_misfit(stage.origin, content.grid))
    return TokenMap(
        reducer=content.reducer,
        family=content.family,
        keep_ratio=content.keep_ratio,
        grid=content.grid,
        image=folder / picture.file,
        key=(picture.split, picture.example, picture.image),
        text=picture.text,
        stages=picture.stages,
    )


def _options(record: Path) -> dict[str, Any]:
    """Return the reducer's options of a record, of which nothing else is needed here."""
    if not record.is_file():
        return {}
    try:
        return dict(json.loads(record.read_bytes()).get("reducer_options", {}))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{record} is damaged ({error}).") from error


def _misfit(origin: Sequence[int], grid: tuple[int, int]) -> str:
    return f"{len(origin)} patches do not fill a grid of {grid[0]} x {grid[1]}."


def draw(image: Image.Image, origin: Sequence[int], grid: tuple[int, int]) -> Image.Image:
    """Draw one reduction over its image.

    A patch that a token of its own stands for is as it was. Patches that share a token lie within
    an outline in their group's colour, take a little of it, and are the darker the more they are.
    Dropped patches are all but black.

    Args:
        image: The image, square patches in ``grid``.
        origin: For each patch the token that stands for it, or -1.
        grid: Rows and columns of patches.

    Raises:
        ValueError: There are more or fewer patches than the grid has.
    """
    rows, columns = grid
    if len(origin) != rows * columns:
        raise ValueError(_misfit(origin, grid))
    tokens = np.array(origin).reshape(rows, columns)
    sizes = Counter(token for token in origin if token >= 0)
    colours = _colours(tokens, sizes)
    light = {token: _MERGED + (1 - _MERGED) * size**-0.5 for token, size in sizes.items()}
    # Over each patch lies a colour: its group's, or for dropped ones the dark.
    over = np.zeros((rows, columns, 3))
    share, bright = np.zeros((rows, columns, 1)), np.ones((rows, columns, 1))
    for place, token in np.ndenumerate(tokens):
        if token < 0:
            over[place], share[place] = _DARK, 1 - _DROPPED
        elif token in colours:
            over[place], share[place] = ImageColor.getrgb(colours[token]), _TINT
            bright[place] = light[token]
    side = max(1, round(TILE / max(rows, columns)))
    pixels = np.asarray(image.convert("RGB").resize((columns * side, rows * side)), dtype=float)
    over, share, bright = (each.repeat(side, 0).repeat(side, 1) for each in (over, share, bright))
    shaded = Image.fromarray(((pixels * (1 - share) + over * share) * bright).astype(np.uint8))
    _outline(ImageDraw.Draw(shaded), tokens, colours, side)
    return shaded


def _colours(tokens: NDArray[np.int64], sizes: Counter[int]) -> dict[int, str]:
    """Give every group a colour, neighbours different ones while there are enough."""
    colours: dict[int, str] = {}
    rows, columns = tokens.shape
    for group, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        if size < 2:
            continue
        near = set()
        for row, column in zip(*np.nonzero(tokens == group), strict=True):
            for y, x in (
                (row - 1, column),
                (row + 1, column),
                (row, column - 1),
                (row, column + 1),
            ):
                if 0 <= y < rows and 0 <= x < columns:
                    near.add(colours.get(int(tokens[y, x])))
        used = Counter(colours.values())
        free = [colour for colour in _GROUPS if colour not in near] or list(_GROUPS)
        colours[group] = min(free, key=lambda colour: used[colour])
    return colours


def _outline(
    pen: ImageDraw.ImageDraw, tokens: NDArray[np.int64], colours: dict[int, str], side: int
) -> None:
    rows, columns = tokens.shape
    width = max(2, side // 9)
    for row in range(rows):
        for column in range(columns):
            token = int(tokens[row, column])
            if token not in colours:
                continue
            x, y = column * side, row * side
            right, bottom = x + side - 1, y + side - 1
            edges = {
                (row - 1, column): (x, y, right, y + width - 1),
                (row + 1, column): (x, bottom - width + 1, right, bottom),
                (row, column - 1): (x, y, x + width - 1, bottom),
                (row, column + 1): (right - width + 1, y, right, bottom),
            }
            for (r, c), box in edges.items():
                if not (0 <= r < rows and 0 <= c < columns) or tokens[r, c] != token:
                    pen.rectangle(box, fill=colours[token])
