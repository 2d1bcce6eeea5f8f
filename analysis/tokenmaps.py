"""Draw which patches reducers keep, merge or drop, side by side.

    python -m analysis.tokenmaps RUNS [RUNS ...] --out maps.png [--stages] [--image test-3-0]

``RUNS`` are folders, searched at any depth for token maps of ``run_experiment.py predict``.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageColor

from analysis.figures import FAMILY_COLOURS, INK, MUTED, style
from analysis.load import method_labels
from elip.record import RECORD_NAME

TILE = 288
"""Width and height of a drawn image in pixels."""

_DROPPED, _MERGED, _TINT = 0.12, 0.4, 0.22
"""Brightness of a dropped patch, and of one in a very large group; share of a group's colour."""

_GROUPS = ("#ffd23f", "#3fd0ff", "#ff7ab8", "#8dff6e", "#ff8a3d", "#b69cff", "#2ee6b6", "#ff5252")
_DARK = (18, 20, 24)
_LEGEND = "unchanged: kept     outlined in one colour: merged into one token     dark: dropped"
_SIDE, _LINE, _HEAD = 1.2, 1.46, 0.34
"""Width of a picture with its gap, height with its title, and of a text; in inches."""


@dataclass(frozen=True)
class Stage:
    """One reduction: ``origin`` is the token that represents each patch afterwards, or -1."""

    where: str
    layer: int
    origin: tuple[int, ...]


@dataclass(frozen=True)
class TokenMap:
    """What one method did to one image with its text."""

    title: str  # the method, with the options that differ between its runs, and its keep ratio
    family: str
    grid: tuple[int, int]  # rows and columns of patches
    image: Path  # the PNG file
    key: tuple[str, int, int]  # split, example and image
    text: str
    stages: tuple[Stage, ...]  # the reductions in order


def load_tokens(places: Iterable[Path | str], damaged: list[str] | None = None) -> list[TokenMap]:
    """Read all token maps in some folders.

    Args:
        places: Folders, searched at any depth.
        damaged: Collects messages on damaged files, which are skipped. If None, they raise.

    Raises:
        ValueError: A file of token maps or one of its images is damaged; the message names it.
    """
    found: list[tuple[Path, dict[str, Any], list[TokenMap]]] = []
    for path in sorted({p for place in places for p in Path(place).rglob("tokens/tokens.json")}):
        try:
            content = json.loads(path.read_bytes())
            found.append(
                (path, content, [_read(path, content, each) for each in content["images"]])
            )
        except (OSError, ValueError, KeyError, TypeError, SyntaxError) as error:
            message = f"{path} is not a file of token maps: {error}"
            if damaged is None:
                raise ValueError(message) from error
            damaged.append(message)
    labels = method_labels(
        [(content["reducer"], _options(path.parents[1])) for path, content, _ in found]
    )
    maps = []
    for (_, content, mine), label in zip(found, labels, strict=True):
        ratio = content["keep_ratio"]
        full = label if ratio is None else f"{label} {ratio:g}"
        maps += [replace(each, title=full if each.stages else label) for each in mine]
    return maps


def _read(path: Path, content: dict[str, Any], picture: dict[str, Any]) -> TokenMap:
    name, (rows, columns) = picture["file"], content["grid"]
    if Path(name).name != name:
        raise ValueError(f"the image {name!r} is not in the same folder.")
    try:
        _picture(path.parent / name)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {name!r}: {error}") from error
    stages = [
        Stage(each["where"], each["layer"], tuple(each["origin"])) for each in picture["stages"]
    ]
    for stage in stages:
        if len(stage.origin) != rows * columns:
            count = len(stage.origin)
            raise ValueError(f"{count} patches do not fill a grid of {rows} x {columns}.")
    key = picture["split"], picture["example"], picture["image"]
    about = (path.parent / name, key, picture["text"], tuple(stages))
    return TokenMap(content["reducer"], content["family"], (rows, columns), *about)


def _options(run: Path) -> dict[str, object]:
    try:
        return dict(json.loads((run / RECORD_NAME).read_bytes())["reducer_options"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def draw(image: Image.Image, origin: Sequence[int], grid: tuple[int, int]) -> Image.Image:
    """Draw one reduction over its image.

    A patch with its own token is unchanged. Patches that share a token are outlined in their
    group's colour and tinted with it; larger groups are darker. Dropped patches are almost black.

    Args:
        image: The image, with square patches in ``grid``.
        origin: For each patch, the token that represents it, or -1.
        grid: Rows and columns of patches.
    """
    tokens = np.array(origin).reshape(grid)
    sizes = Counter(token for token in origin if token >= 0)
    colours = _colours(tokens, sizes)
    over = np.zeros((*grid, 3))
    share, bright = np.zeros((*grid, 1)), np.ones((*grid, 1))
    over[tokens < 0], share[tokens < 0] = _DARK, 1 - _DROPPED
    for token, colour in colours.items():
        here = tokens == token
        over[here], share[here] = ImageColor.getrgb(colour), _TINT
        bright[here] = _MERGED + (1 - _MERGED) * sizes[token] ** -0.5
    side = max(1, round(TILE / max(grid)))
    pixels = np.asarray(image.convert("RGB").resize((grid[1] * side, grid[0] * side)), dtype=float)
    grown = [each.repeat(side, 0).repeat(side, 1) for each in (over, share, bright, tokens)]
    over, share, bright, tokens = grown
    shaded = ((pixels * (1 - share) + over * share) * bright).astype(np.uint8)
    # A pixel is in an outline if the pixel one pen's width away has another token.
    pen = max(2, side // 9)
    around = np.pad(tokens, pen, constant_values=-2)
    inside = slice(pen, -pen)
    outline = np.any(
        [
            np.roll(around, step, axis)[inside, inside] != tokens
            for axis in (0, 1) for step in (-pen, pen)
        ], axis=0,
    )  # fmt: skip
    for token, colour in colours.items():
        shaded[outline & (tokens == token)] = ImageColor.getrgb(colour)
    return Image.fromarray(shaded)


def _colours(tokens: NDArray[np.int64], sizes: Counter[int]) -> dict[int, str]:
    """Give every group a colour, distinct from its neighbours' if enough colours are left."""
    around = np.pad(tokens, 1, constant_values=-1)
    colours: dict[int, str] = {}
    for group, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        if size > 1:
            here = around == group
            beside = [np.roll(here, step, axis) for axis in (0, 1) for step in (-1, 1)]
            near = {colours.get(token) for token in around[np.any(beside, axis=0)]}
            used = Counter(colours.values())
            free = [colour for colour in _GROUPS if colour not in near] or list(_GROUPS)
            colours[group] = min(free, key=lambda colour: used[colour])
    return colours


def gallery(
    maps: Sequence[TokenMap],
    examples: int = 4,
    columns: int = 8,
    stages: bool = False,
    first: int = 0,
) -> Figure:
    """Draw several methods side by side, for each image under its text.

    Args:
        maps: From `load_tokens`. Images that all methods have come first.
        examples: Number of images.
        columns: Pictures per row.
        stages: Draw every reduction instead of the last.
        first: Index of the first image.
    """
    if not maps:
        raise ValueError("There are no token maps; run predict first.")
    by_key: dict[tuple[str, int, int], dict[str, TokenMap]] = defaultdict(dict)
    for each in maps:
        by_key[each.key][each.title] = each
    seen: Counter[bytes] = Counter()
    order = {}
    for key, methods in sorted(by_key.items()):  # further texts of one image come last
        content = next(iter(methods.values())).image.read_bytes()
        order[key] = (seen[content], -len(methods), key)
        seen[content] += 1
    keys = sorted(by_key, key=lambda key: order[key])[first : first + examples]
    known = list(FAMILY_COLOURS)
    families = {each.title: each.family for each in maps if each.stages}
    titles = sorted(
        families, key=lambda title: (*[families[title] != each for each in known], title)
    )
    depth = max(len(each.stages) for each in maps) if stages else 1
    across = max(1, min(columns // depth, len(titles) + 1)) * depth
    lines = -(-(len(titles) + 1) * depth // across)
    width, block = across * _SIDE + 0.1, lines * _LINE + _HEAD
    with style():
        figure = Figure(figsize=(width, len(keys) * block + 0.3))
        height = figure.get_figheight()

        def place(number: int, top: float) -> Axes:
            row, column = divmod(number, across)
            x, y = 0.1 + column * _SIDE, top + _HEAD + row * _LINE + 0.3
            size = (_SIDE - 0.1) / width, (_SIDE - 0.1) / height
            axes = figure.add_axes((x / width, 1 - y / height - size[1], *size))
            axes.set_axis_off()
            return axes

        for top, key in ((number * block, key) for number, key in enumerate(keys)):
            one = next(iter(by_key[key].values()))
            text = textwrap.shorten(one.text, max(20, int(width * 15)), placeholder=" ...")
            figure.text(0.1 / width, 1 - (top + 0.24) / height, f"“{text}”", fontsize=8.5)
            axes = place(0, top)
            axes.imshow(_picture(one.image))
            _write(axes, "the image", "", INK)
            for number, title in enumerate(titles, start=1):
                colour = FAMILY_COLOURS.get(families[title], INK)
                found = by_key[key].get(title)
                if found is None:
                    axes = place(number * depth, top)
                    _write(axes, title, "no token map of this image", colour)
                    continue
                for step, stage in enumerate(found.stages if stages else found.stages[-1:]):
                    axes = place(number * depth + step, top)
                    axes.imshow(draw(_picture(found.image), stage.origin, found.grid))
                    said = f"{len(set(stage.origin) - {-1})} tokens"
                    if stages:
                        said = f"{stage.where} {stage.layer}: {said}"
                    elif -1 in stage.origin:
                        said += f", {stage.origin.count(-1)} dropped"
                    _write(axes, "" if step else title, said, colour)
        size = min(6.5, 6.5 * width / 3.6)
        figure.text(0.1 / width, 0.1 / height, _LEGEND, fontsize=size, color=MUTED)
    return figure


def _write(axes: Axes, title: str, said: str, colour: str) -> None:
    """Write a title and a line above a picture, in sizes that fit its width."""
    sizes = min(7.0, 115 / max(1, len(title))), min(5.5, 138 / max(1, len(said)))
    at: Any = {"transform": axes.transAxes, "va": "bottom", "ha": "left"}
    axes.text(0, 1.13, title, fontsize=sizes[0], color=colour, fontweight="bold", **at)
    axes.text(0, 1.02, said, fontsize=sizes[1], color=MUTED, **at)


def _picture(path: Path) -> Image.Image:
    with Image.open(path, formats=["PNG"]) as opened:
        return opened.convert("RGB").resize((TILE, TILE))


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure on white, in the format of the file's suffix, or as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"savefig.transparent": False}):
        figure.savefig(path, dpi=150, facecolor="white", format=path.suffix[1:] or "png")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.tokenmaps",
        description="Draw what reducers keep of some images, side by side, in one picture.",
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, help="folders, searched for token maps")
    add("--out", type=Path, required=True, help="the PNG file")
    add("--examples", type=int, default=2, help="number of images")
    add("--columns", type=int, default=8, help="pictures per row")
    add("--stages", action="store_true", help="draw every reduction, not only the last")
    add("--image", action="append", help="only this image, such as test-3-0; repeatable")
    given = parser.parse_args(arguments)
    try:
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
