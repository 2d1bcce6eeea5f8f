"""Token maps: read, drawn so that kept, merged and dropped patches differ, put side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.tokenmaps import draw, gallery, load_tokens, save_png, stages

# Patch 0 is kept, 1 is dropped, 2 and 3 share a token.
ORIGIN = [0, -1, 1, 1]


def _write(folder: Path, reducer: str, origin: list[int], text: str = "a cat") -> None:
    place = folder / reducer / "tokens"
    place.mkdir(parents=True)
    Image.new("RGB", (32, 32), "white").save(place / "test-0-0.png")
    stage = {"where": "block", "layer": 2, "origin": origin}
    image = {"file": "test-0-0.png", "split": "test", "example": 0, "image": 0, "text": text}
    content = {
        "reducer": reducer, "family": "other", "keep_ratio": 0.5, "grid": [2, 2],
        "images": [{**image, "stages": [stage]}],
    }  # fmt: skip
    (place / "tokens.json").write_text(json.dumps(content))


def test_kept_is_bright_merged_is_darker_and_outlined_dropped_is_dark() -> None:
    drawn = np.asarray(draw(Image.new("RGB", (32, 32), "white"), ORIGIN, (2, 2)), dtype=int)
    side = drawn.shape[0] // 2
    middles = (side // 2, side + side // 2)
    centres = [drawn[y, x].sum() for y in middles for x in middles]
    assert centres[0] == 3 * 255
    assert centres[1] < 3 * 60 < centres[2] == centres[3] < centres[0]
    corner, inside = drawn[-1, 0], drawn[side + side // 2, side - 1]
    assert corner.max() - corner.min() > 50  # the outline has a colour
    assert inside.max() - inside.min() < 5  # none between two patches of one group


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="4 patches do not fill a grid of 3 x 3"):
        draw(Image.new("RGB", (30, 30)), ORIGIN, (3, 3))


def test_maps_are_read_and_drawn_side_by_side(tmp_path: Path) -> None:
    _write(tmp_path, "ToMe", ORIGIN)
    _write(tmp_path, "TopK", [0, -1, -1, 1])
    maps = load_tokens([tmp_path])
    assert [(each.title, each.stages[0].tokens) for each in maps] == [
        ("ToMe 0.5", 2),
        ("TopK 0.5", 2),
    ]
    figure = gallery(maps)
    said = [axes.get_title("left") for axes in figure.axes]
    assert said[:3] == ["a cat", "ToMe 0.5\n2 tokens, 1 dropped", "TopK 0.5\n2 tokens, 2 dropped"]
    path = save_png(figure, tmp_path / "gallery.png")
    with Image.open(path) as saved:
        assert min(saved.size) > 100
    assert len(stages(maps).axes) == 4


def test_damaged_or_missing_maps_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run predict first"):
        gallery(load_tokens([tmp_path]))
    _write(tmp_path, "ToMe", ORIGIN)
    (tmp_path / "ToMe" / "tokens" / "tokens.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokens\.json holds no token maps"):
        load_tokens([tmp_path])
