"""Draw what reducers keep of some images, side by side.

    python -m analysis.gallery RUNS [RUNS ...] --out gallery.png [--stages] [--image test-3-0]

``RUNS`` are folders in which ``run_experiment.py predict`` left token maps, searched at any depth.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from analysis.style import FAMILY_COLOURS, INK, MUTED, figures
from analysis.tokenmaps import TILE, TokenMap, draw, load_tokens
from elip.arguments import output_file, positive

Key = tuple[str, int, int]

# Inches.
_PANEL, _GAP, _TITLE, _HEADING, _MARGIN = 1.1, 0.1, 0.32, 0.36, 0.1
_LEGEND = "as it was: kept     within one colour: merged into one token     dark: dropped"


def gallery(
    maps: Sequence[TokenMap],
    examples: int = 4,
    columns: int = 8,
    stages: bool = False,
    first: int = 0,
) -> Figure:
    """Draw several reducers side by side, for each image under its text.

    Args:
        maps: From `load_tokens`; images that all reducers have come first.
        examples: How many images.
        columns: Pictures a line.
        stages: Draw what every reduction left; False draws the last only.
        first: The image to begin with, from 0.

    Raises:
        ValueError: There are no maps.
    """
    if not maps:
        raise ValueError("There are no token maps; run predict first.")
    by_key: dict[Key, dict[str, TokenMap]] = {}
    for each in maps:
        by_key.setdefault(each.key, {})[each.title] = each
    keys = _various(sorted(by_key, key=lambda key: (-len(by_key[key]), key)), by_key)
    keys = keys[first : first + examples]
    families = {each.title: each.family for each in maps if each.stages}
    titles = sorted(families, key=lambda title: (_rank(families[title]), title))
    depth = max((len(each.stages) for each in maps), default=1) if stages else 1
    across = max(1, min(columns // depth, len(titles) + 1))
    lines = -(-(len(titles) + 1) // across)
    cell = depth * _PANEL + (depth - 1) * _GAP / 2 + _GAP
    line = _TITLE + _PANEL + _GAP
    block = _HEADING + lines * line
    width, height = across * cell - _GAP + 2 * _MARGIN, len(keys) * block + 0.2 + _MARGIN
    with figures():
        page = _Page(width, height)
        for number, key in enumerate(keys):
            top = number * block
            shown = by_key[key]
            one = next(iter(shown.values()))
            page.write(_MARGIN, top + 0.22, f"\u201c{_wrapped(one.text, width)}\u201d", 8.5, INK)
            page.picture(_MARGIN, top + _HEADING + _TITLE, _picture(one))
            page.title(_MARGIN, top + _HEADING, "the image", "", INK)
            for place, title in enumerate(titles, start=1):
                x = _MARGIN + place % across * cell
                y = top + _HEADING + place // across * line
                colour = FAMILY_COLOURS.get(families[title], INK)
                _draw_method(page, x, y, title, colour, shown.get(title), stages)
        page.write(_MARGIN, height - _MARGIN, _LEGEND, 6.5, MUTED)
    return page.figure


class _Page:
    """A figure on which things are placed in inches from the upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))

    def write(
        self, x: float, y: float, text: str, size: float, colour: str, weight: str = "normal"
    ) -> None:
        place = (x / self.width, 1 - y / self.height)
        self.figure.text(*place, text, fontsize=size, color=colour, fontweight=weight)

    def title(self, x: float, y: float, name: str, said: str, colour: str) -> None:
        self.write(x, y + 0.14, name, 7, colour, "bold")
        self.write(x, y + 0.26, said, 5.5, MUTED)

    def picture(self, x: float, y: float, image: Image.Image) -> None:
        place = (x / self.width, 1 - (y + _PANEL) / self.height)
        axes = self.figure.add_axes((*place, _PANEL / self.width, _PANEL / self.height))
        axes.imshow(image, aspect="auto")
        axes.set_axis_off()


def _draw_method(
    page: _Page, x: float, y: float, title: str, colour: str, found: TokenMap | None, every: bool
) -> None:
    """Draw the last stage of one method on one image, or every one, under its count."""
    if found is None:
        page.title(x, y, title, "no token map of this image", colour)
        return
    image = _picture(found)
    for number, stage in enumerate(found.stages if every else found.stages[-1:]):
        left = x + number * (_PANEL + _GAP / 2)
        said = f"{stage.tokens} tokens"
        if every:
            said = f"{stage.where} {stage.layer}: {said}"
        elif stage.dropped:
            said += f", {stage.dropped} dropped"
        page.title(left, y, "" if number else title, said, colour)
        page.picture(left, y + _TITLE, draw(image, stage.origin, found.grid))


def _picture(found: TokenMap) -> Image.Image:
    with Image.open(found.image) as opened:
        return opened.convert("RGB").resize((TILE, TILE))


def _wrapped(text: str, width: float) -> str:
    """Cut a text to one line of the page."""
    return textwrap.shorten(text, int(width * 15), placeholder=" ...")


def _rank(family: str) -> int:
    order = list(FAMILY_COLOURS)
    return order.index(family) if family in order else len(order)


def _various(keys: Sequence[Key], by_key: dict[Key, dict[str, TokenMap]]) -> list[Key]:
    """Put one text of each image first."""
    seen: Counter[bytes] = Counter()
    turns = []
    for key in keys:
        content = next(iter(by_key[key].values())).image.read_bytes()
        turns.append(seen[content])
        seen[content] += 1
    return [key for _, key in sorted(zip(turns, keys, strict=True), key=lambda pair: pair[0])]


def save_png(figure: Figure, path: Path, dpi: int = 150) -> Path:
    """Write a figure on white: as PNG, or as what the file's ending says.

    Raises:
        ValueError: The ending is that of no format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"savefig.transparent": False}):
        figure.savefig(path, dpi=dpi, facecolor="white", format=path.suffix[1:] or "png")
    return path


def _of_images(maps: Sequence[TokenMap], names: Sequence[str]) -> list[TokenMap]:
    """Return the maps of some images, by their files' names."""
    known = sorted({each.image.stem for each in maps})
    for name in names:
        if known and name not in known:
            raise ValueError(f"--image {name}: no token maps of it. There are {', '.join(known)}.")
    return [each for each in maps if each.image.stem in names]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.gallery",
        description="What reducers keep of some images, side by side, as one PNG.",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders with token maps, at any depth")
    parser.add_argument("--out", type=output_file, required=True, help="the PNG file")
    parser.add_argument("--examples", type=positive, default=2, help="how many images")
    parser.add_argument("--columns", type=positive, default=8, help="pictures a line")
    parser.add_argument("--stages", action="store_true", help="draw every reduction, not the last")
    parser.add_argument("--image", action="append", help="only these images, by their file's name")
    given = parser.parse_args(arguments)
    try:
        for place in given.runs:
            if not place.is_dir():
                raise ValueError(f"There is no folder {place}.")
        maps = load_tokens(given.runs)
        if given.image:
            maps = _of_images(maps, given.image)
        figure = gallery(maps, given.examples, given.columns, given.stages)
        path = save_png(figure, given.out)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
