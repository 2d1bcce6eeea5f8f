"""Draw which patches reducers keep, merge or drop, side by side.

    python -m analysis.tokenmaps RUNS [RUNS ...] --out maps.png [--stages] [--image test-3-0]

``RUNS`` are folders, searched at any depth for token maps of ``run_experiment.py predict``.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw
from pydantic import TypeAdapter, ValidationError

from analysis.figures import FAMILY_COLOURS, INK, MUTED, style
from elip.record import RECORD_NAME

TILE = 288
"""Width and height of a drawn image in pixels."""

_DROPPED, _MERGED = 0.12, 0.4
"""Brightness of a dropped patch, and of one in a very large group."""

_TINT = 0.22
"""Share of its group's colour in a merged patch."""

_GROUPS = ("#ffd23f", "#3fd0ff", "#ff7ab8", "#8dff6e", "#ff8a3d", "#b69cff", "#2ee6b6", "#ff5252")
_DARK = np.array([18, 20, 24], dtype=float)

# Inches.
_PANEL, _GAP, _TITLE, _HEADING, _MARGIN = 1.1, 0.1, 0.32, 0.36, 0.1
_LEGEND = "unchanged: kept     outlined in one colour: merged into one token     dark: dropped"

Key = tuple[str, int, int]
"""Split, example and image."""


@dataclass(frozen=True)
class Stage:
    """One reduction.

    Attributes:
        where: "block" or "fusion layer".
        layer: Its number, from 0.
        origin: For each patch, the token that represents it afterwards, or -1.
    """

    where: str
    layer: int
    origin: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens that represent a patch."""
        return len({token for token in self.origin if token >= 0})

    @property
    def dropped(self) -> int:
        """Number of dropped patches."""
        return self.origin.count(-1)


@dataclass(frozen=True)
class TokenMap:
    """What one reducer did to one image with its text.

    Attributes:
        reducer: Class name, with the options that differ between its runs.
        family: Family of the method.
        keep_ratio: The configured keep ratio, if any.
        grid: Rows and columns of patches.
        image: The PNG file.
        key: Split, example and image.
        text: The text.
        stages: The reductions in order.
    """

    reducer: str
    family: str
    keep_ratio: float | None
    grid: tuple[int, int]
    image: Path
    key: Key
    text: str
    stages: tuple[Stage, ...]

    @property
    def title(self) -> str:
        """The name, and the keep ratio if there is one."""
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
    """The content of ``tokens.json``."""

    reducer: str
    family: str
    keep_ratio: float | None
    grid: tuple[int, int]
    images: tuple[_Picture, ...]


_ADAPTER = TypeAdapter(_File)


def load_tokens(places: Iterable[Path | str], damaged: list[str] | None = None) -> list[TokenMap]:
    """Read all token maps in some folders.

    Args:
        places: Folders, searched at any depth.
        damaged: Collects messages on damaged files, which are skipped. If None, they raise.

    Raises:
        ValueError: A file of token maps or one of its images is damaged; the message names it.
    """
    found: list[tuple[list[TokenMap], dict[str, Any]]] = []
    for path in sorted({p for place in places for p in Path(place).rglob("tokens/tokens.json")}):
        try:
            maps = _read(path)
        except ValueError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
            continue
        try:
            options = dict(
                json.loads((path.parents[1] / RECORD_NAME).read_bytes())["reducer_options"]
            )
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            options = {}
        found.append((maps, options))
    values: dict[tuple[str, str], set[str]] = {}
    for maps, options in found:
        for name, value in options.items() if maps else ():
            values.setdefault((maps[0].reducer, name), set()).add(str(value))
    result = []
    for maps, options in found:
        for each in maps:
            names = sorted(n for n in options if len(values[each.reducer, n]) > 1)
            said = ", ".join(f"{name}={options[name]}" for name in names)
            result.append(replace(each, reducer=f"{each.reducer} ({said})") if said else each)
    return result


def _read(path: Path) -> list[TokenMap]:
    maps = []
    try:
        content = _ADAPTER.validate_json(path.read_bytes())
        for picture in content.images:
            image = path.parent / picture.file
            if Path(picture.file).name != picture.file:
                raise ValueError(f"the image {picture.file!r} is not in the same folder.")
            try:
                with Image.open(image, formats=["PNG"]) as opened:
                    opened.verify()
            except (OSError, SyntaxError, Image.DecompressionBombError) as error:
                raise ValueError(f"cannot read the image {picture.file!r}: {error}") from error
            for stage in picture.stages:
                _check_grid(stage.origin, content.grid)
            key = (picture.split, picture.example, picture.image)
            about = (content.reducer, content.family, content.keep_ratio, content.grid)
            maps.append(TokenMap(*about, image, key, picture.text, picture.stages))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} is not a file of token maps: {place} {first['msg']}.") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a file of token maps: {error}") from error
    return maps


def _check_grid(origin: Sequence[int], grid: tuple[int, int]) -> None:
    if not len(origin) == grid[0] * grid[1] > 0:
        raise ValueError(f"{len(origin)} patches do not fill a grid of {grid[0]} x {grid[1]}.")


def draw(image: Image.Image, origin: Sequence[int], grid: tuple[int, int]) -> Image.Image:
    """Draw one reduction over its image.

    A patch with its own token is unchanged. Patches that share a token are outlined in their
    group's colour and tinted with it; larger groups are darker. Dropped patches are almost black.

    Args:
        image: The image, with square patches in ``grid``.
        origin: For each patch, the token that represents it, or -1.
        grid: Rows and columns of patches.

    Raises:
        ValueError: The number of patches does not fit the grid.
    """
    _check_grid(origin, grid)
    rows, columns = grid
    tokens = np.array(origin).reshape(rows, columns)
    sizes = Counter(token for token in origin if token >= 0)
    colours = _colours(tokens, sizes)
    light = {token: _MERGED + (1 - _MERGED) * size**-0.5 for token, size in sizes.items()}
    # The colour over each patch: that of its group, or dark if it was dropped.
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


def _neighbours(row: int, column: int, shape: tuple[int, ...]) -> list[tuple[int, int] | None]:
    """Return the positions above, below, left and right; None outside the grid."""
    places = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return [p if 0 <= p[0] < shape[0] and 0 <= p[1] < shape[1] else None for p in places]


def _colours(tokens: NDArray[np.int64], sizes: Counter[int]) -> dict[int, str]:
    """Give every group a colour, distinct from its neighbours' if enough colours are left."""
    colours: dict[int, str] = {}
    for group, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        if size < 2:
            continue
        near = {
            colours.get(int(tokens[place]))
            for row, column in np.argwhere(tokens == group)
            for place in _neighbours(row, column, tokens.shape)
            if place is not None
        }
        used = Counter(colours.values())
        free = [colour for colour in _GROUPS if colour not in near] or list(_GROUPS)
        colours[group] = min(free, key=lambda colour: used[colour])
    return colours


def _outline(
    pen: ImageDraw.ImageDraw, tokens: NDArray[np.int64], colours: dict[int, str], side: int
) -> None:
    width = max(2, side // 9)
    for (row, column), value in np.ndenumerate(tokens):
        token = int(value)
        if token not in colours:
            continue
        x, y = column * side, row * side
        right, bottom = x + side - 1, y + side - 1
        edges = (
            (x, y, right, y + width - 1),
            (x, bottom - width + 1, right, bottom),
            (x, y, x + width - 1, bottom),
            (right - width + 1, y, right, bottom),
        )
        for box, place in zip(edges, _neighbours(row, column, tokens.shape), strict=True):
            if place is None or tokens[place] != token:
                pen.rectangle(box, fill=colours[token])


class _Page:
    """A figure with coordinates in inches from the upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))

    def write(
        self, x: float, y: float, text: str, size: float, colour: str, weight: str = "normal"
    ) -> None:
        place = (x / self.width, 1 - y / self.height)
        self.figure.text(*place, text, fontsize=size, color=colour, fontweight=weight)

    def title(self, x: float, y: float, name: str, said: str, colour: str, width: float) -> None:
        """Write a name and a line below it, in a size that fits the width."""
        size = min(7.0, 7.0 * width / max(0.01, 0.068 * len(name)))
        self.write(x, y + 0.14, name, size, colour, "bold")
        self.write(x, y + 0.26, said, min(5.5, 5.5 * width / (0.045 * len(said) + 0.01)), MUTED)

    def picture(self, x: float, y: float, image: Image.Image) -> None:
        place = (x / self.width, 1 - (y + _PANEL) / self.height)
        axes = self.figure.add_axes((*place, _PANEL / self.width, _PANEL / self.height))
        axes.imshow(image, aspect="auto")
        axes.set_axis_off()


def gallery(
    maps: Sequence[TokenMap],
    examples: int = 4,
    columns: int = 8,
    stages: bool = False,
    first: int = 0,
) -> Figure:
    """Draw several reducers side by side, for each image under its text.

    Args:
        maps: From `load_tokens`. Images that all reducers have come first.
        examples: Number of images.
        columns: Pictures per row.
        stages: Draw every reduction instead of the last.
        first: Index of the first image.

    Raises:
        ValueError: ``maps`` is empty.
    """
    if not maps:
        raise ValueError("There are no token maps; run predict first.")
    by_key: dict[Key, dict[str, TokenMap]] = {}
    for each in maps:
        by_key.setdefault(each.key, {})[each.title] = each
    keys = _various(sorted(by_key, key=lambda key: (-len(by_key[key]), key)), by_key)
    keys = keys[first : first + examples]
    families = {each.title: each.family for each in maps if each.stages}
    order = [*FAMILY_COLOURS, *sorted(set(families.values()) - set(FAMILY_COLOURS))]
    titles = sorted(families, key=lambda title: (order.index(families[title]), title))
    depth = max((len(each.stages) for each in maps), default=1) if stages else 1
    across = max(1, min(columns // depth, len(titles) + 1))
    lines = -(-(len(titles) + 1) // across)
    cell = depth * _PANEL + (depth - 1) * _GAP / 2 + _GAP
    line = _TITLE + _PANEL + _GAP
    block = _HEADING + lines * line
    width, height = across * cell - _GAP + 2 * _MARGIN, len(keys) * block + 0.2 + _MARGIN
    with style():
        page = _Page(width, height)
        for number, key in enumerate(keys):
            top = number * block
            shown = by_key[key]
            one = next(iter(shown.values()))
            text = textwrap.shorten(one.text, max(20, int(width * 15)), placeholder=" ...")
            page.write(_MARGIN, top + 0.22, f"\u201c{text}\u201d", 8.5, INK)
            page.picture(_MARGIN, top + _HEADING + _TITLE, _picture(one))
            page.title(_MARGIN, top + _HEADING, "the image", "", INK, _PANEL)
            for place, title in enumerate(titles, start=1):
                x = _MARGIN + place % across * cell
                y = top + _HEADING + place // across * line
                colour = FAMILY_COLOURS.get(families[title], INK)
                _draw_method(page, x, y, title, colour, shown.get(title), stages)
        page.write(_MARGIN, height - _MARGIN, _LEGEND, min(6.5, 6.5 * width / 3.4), MUTED)
    return page.figure


def _draw_method(
    page: _Page, x: float, y: float, title: str, colour: str, found: TokenMap | None, every: bool
) -> None:
    """Draw the last stage of one method on one image, or every stage."""
    if found is None:
        page.title(x, y, title, "no token map of this image", colour, _PANEL)
        return
    image = _picture(found)
    for number, stage in enumerate(found.stages if every else found.stages[-1:]):
        left = x + number * (_PANEL + _GAP / 2)
        said = f"{stage.tokens} tokens"
        if every:
            said = f"{stage.where} {stage.layer}: {said}"
        elif stage.dropped:
            said += f", {stage.dropped} dropped"
        page.title(left, y, "" if number else title, said, colour, _PANEL)
        page.picture(left, y + _TITLE, draw(image, stage.origin, found.grid))


def _picture(found: TokenMap) -> Image.Image:
    with Image.open(found.image) as opened:
        return opened.convert("RGB").resize((TILE, TILE))


def _various(keys: Sequence[Key], by_key: dict[Key, dict[str, TokenMap]]) -> list[Key]:
    """Move further texts of the same image to the end."""
    seen: Counter[bytes] = Counter()
    turns = []
    for key in keys:
        content = next(iter(by_key[key].values())).image.read_bytes()
        turns.append(seen[content])
        seen[content] += 1
    return [key for _, key in sorted(zip(turns, keys, strict=True), key=lambda pair: pair[0])]


def save_png(figure: Figure, path: Path, dpi: int = 150) -> Path:
    """Write a figure on white, in the format of the file's suffix, or as PNG.

    Raises:
        ValueError: The suffix is not a known format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"savefig.transparent": False}):
        figure.savefig(path, dpi=dpi, facecolor="white", format=path.suffix[1:] or "png")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.tokenmaps",
        description="Draw what reducers keep of some images, side by side, in one picture.",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders, searched for token maps")
    parser.add_argument("--out", type=Path, required=True, help="the PNG file")
    parser.add_argument("--examples", type=int, default=2, help="number of images")
    parser.add_argument("--columns", type=int, default=8, help="pictures per row")
    parser.add_argument(
        "--stages", action="store_true", help="draw every reduction, not only the last"
    )
    parser.add_argument(
        "--image", action="append", help="only this image, such as test-3-0; repeatable"
    )
    given = parser.parse_args(arguments)
    try:
        for place in given.runs:
            if not place.is_dir():
                raise ValueError(f"{place} is not a folder.")
        maps = load_tokens(given.runs)
        if given.image:
            known = sorted({each.image.stem for each in maps})
            if unknown := sorted(set(given.image) - set(known)):
                said = f"No token maps of {', '.join(unknown)}. There are: {', '.join(known)}."
                raise ValueError(said)
            maps = [each for each in maps if each.image.stem in given.image]
        figure = gallery(maps, max(1, given.examples), max(1, given.columns), given.stages)
        path = save_png(figure, given.out)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
