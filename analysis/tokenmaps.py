"""Which patches a reducer keeps, merges or drops, drawn over the image."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from analysis.style import figures

_TILE = 288
_DROPPED, _MERGED = 0.1, 0.35
"""Brightness of a dropped patch, and of one in a very large group."""

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


@dataclass(frozen=True)
class TokenMap:
    """What one reducer did to one image beside one text.

    Attributes:
        reducer: Class name.
        keep_ratio: As asked; None where there is none.
        grid: Rows and columns of patches.
        image: The PNG file.
        key: Split, example and image: the same for every reducer.
        text: The text.
        stages: The reductions in their order.
    """

    reducer: str
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


def load_tokens(folders: Iterable[Path | str]) -> list[TokenMap]:
    """Read the token maps that ``predict`` left anywhere below some folders.

    Raises:
        ValueError: A file of token maps is damaged; the message names it.
    """
    maps: list[TokenMap] = []
    paths = {path for folder in folders for path in Path(folder).rglob("tokens/tokens.json")}
    for path in sorted(paths):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            maps += [_token_map(content, image, path.parent) for image in content["images"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no token maps: {error!r}.") from error
    return maps


def _token_map(content: dict, image: dict, folder: Path) -> TokenMap:  # type: ignore[type-arg]
    rows, columns = content["grid"]
    return TokenMap(
        reducer=content["reducer"],
        keep_ratio=content["keep_ratio"],
        grid=(rows, columns),
        image=folder / image["file"],
        key=(image["split"], image["example"], image["image"]),
        text=image["text"],
        stages=tuple(
            Stage(stage["where"], stage["layer"], tuple(stage["origin"]))
            for stage in image["stages"]
        ),
    )


def draw(image: Image.Image, origin: Sequence[int], grid: tuple[int, int]) -> Image.Image:
    """Draw one reduction over its image.

    A patch that a token of its own stands for is bright. The more patches share a token, the
    darker they are, down to a third, within an outline in the group's colour. Dropped patches are
    all but black.

    Args:
        image: The image, square patches in ``grid``.
        origin: For each patch the token that stands for it, or -1.
        grid: Rows and columns of patches.

    Raises:
        ValueError: There are more or fewer patches than the grid has.
    """
    rows, columns = grid
    if len(origin) != rows * columns:
        raise ValueError(f"{len(origin)} patches do not fill a grid of {rows} x {columns}.")
    tokens = np.array(origin).reshape(rows, columns)
    sizes = Counter(token for token in origin if token >= 0)
    side = max(1, round(_TILE / max(rows, columns)))
    pixels = np.asarray(image.convert("RGB").resize((columns * side, rows * side)), dtype=float)
    shades = {token: _MERGED + (1 - _MERGED) * size**-0.5 for token, size in sizes.items()}
    light = np.array([shades.get(token, _DROPPED) for token in origin]).reshape(rows, columns)
    light = np.kron(light, np.ones((side, side)))[..., None]
    shaded = Image.fromarray((pixels * light + _DARK * (1 - light)).astype(np.uint8))
    _outline(ImageDraw.Draw(shaded), tokens, _colours(tokens, sizes), side)
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


def gallery(maps: Sequence[TokenMap], examples: int = 4, columns: int = 8) -> Figure:
    """Draw several reducers side by side: for each image its text, then every reducer's last stage.

    Args:
        maps: From `load_tokens`; images that all reducers have come first.
        examples: How many images.
        columns: Pictures a line.

    Raises:
        ValueError: There are no maps.
    """
    if not maps:
        raise ValueError("There are no token maps; run predict first.")
    titles = sorted({each.title for each in maps if each.stages})
    by_key: dict[tuple[str, int, int], dict[str, TokenMap]] = {}
    for each in maps:
        by_key.setdefault(each.key, {})[each.title] = each
    keys = _various(sorted(by_key, key=lambda key: (-len(by_key[key]), key)), by_key)[:examples]
    columns = min(columns, len(titles) + 1)
    lines = -(-(len(titles) + 1) // columns)
    with figures():
        figure = Figure(figsize=(1.05 * columns, 1.38 * lines * len(keys)))
        parts = figure.add_gridspec(
            len(keys), 1, hspace=0.1, left=0.01, right=0.99, top=1, bottom=0
        )
        for number, key in enumerate(keys):
            grid = parts[number].subgridspec(lines, columns, wspace=0.05, hspace=0.18)
            panels = [
                figure.add_subplot(grid[place // columns, place % columns])
                for place in range(lines * columns)
            ]
            _fill(panels, by_key[key], titles)
    return figure


def _fill(panels: Sequence[Axes], maps: dict[str, TokenMap], titles: Sequence[str]) -> None:
    """Draw one image: itself under its text, then what every reducer left of it."""
    first = next(iter(maps.values()))
    for axes in panels:
        axes.set_axis_off()
    with Image.open(first.image) as opened:
        image = opened.convert("RGB")
    text = "\n".join(textwrap.wrap(first.text, 26)[:3])
    panels[0].imshow(image.resize((_TILE, _TILE)))
    panels[0].set_title(text, fontsize=5.5, style="italic", pad=2)
    for axes, title in zip(panels[1:], titles, strict=False):
        if title not in maps:
            axes.text(0.5, 0.5, f"{title}\nmissing", ha="center", va="center", fontsize=6)
            continue
        stage = maps[title].stages[-1]
        axes.imshow(draw(image, stage.origin, maps[title].grid))
        dropped = stage.origin.count(-1)
        said = f"{stage.tokens} tokens" + (f", {dropped} dropped" if dropped else "")
        axes.set_title(f"{title}\n{said}", fontsize=5.5, fontweight="normal", pad=2)


def _various(
    keys: Sequence[tuple[str, int, int]], by_key: dict[tuple[str, int, int], dict[str, TokenMap]]
) -> list[tuple[str, int, int]]:
    """Put one text of each image first."""
    seen: Counter[bytes] = Counter()
    turns = []
    for key in keys:
        content = next(iter(by_key[key].values())).image.read_bytes()
        turns.append(seen[content])
        seen[content] += 1
    return [key for _, key in sorted(zip(turns, keys, strict=True), key=lambda pair: pair[0])]


def stages(maps: Sequence[TokenMap]) -> Figure:
    """Draw the stages of several reducers on one image, a line each.

    Args:
        maps: One a reducer, of the same image and text.

    Raises:
        ValueError: None of them has a stage.
    """
    maps = [each for each in maps if each.stages]
    if not maps:
        raise ValueError("None of these token maps has a reduction.")
    columns = 1 + max(len(each.stages) for each in maps)
    with figures():
        figure = Figure(figsize=(1.3 * columns, 1.5 * len(maps)), layout="constrained")
        grid = figure.subplots(len(maps), columns, squeeze=False)
        for line, each in zip(grid, maps, strict=True):
            with Image.open(each.image) as opened:
                image = opened.convert("RGB")
            for axes in line:
                axes.set_axis_off()
            line[0].imshow(image.resize((_TILE, _TILE)))
            line[0].set_title(each.title, fontsize=6.5)
            for axes, stage in zip(line[1:], each.stages, strict=False):
                axes.imshow(draw(image, stage.origin, each.grid))
                axes.set_title(f"{stage.where} {stage.layer}: {stage.tokens} tokens", fontsize=5.5)
    return figure


def save_png(figure: Figure, path: Path, dpi: int = 170) -> Path:
    """Write a figure as PNG on white."""
    with mpl.rc_context({"savefig.transparent": False}):
        figure.savefig(path, dpi=dpi, facecolor="white", bbox_inches="tight", pad_inches=0.05)
    return path
