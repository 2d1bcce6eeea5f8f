"""Token maps: read, drawn so that kept, merged and dropped patches differ, put side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from analysis.tokenmaps import draw, gallery, load_tokens, main

# Patch 0 is kept, 1 is dropped, 2 and 3 share a token.
ORIGIN = [0, -1, 1, 1]


def write_maps(folder: Path, reducer: str, origin: list[int], text: str = "a cat") -> None:
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
    corner, centre = drawn[-1, 0], drawn[side + side // 2, side // 2]
    assert corner.max() - corner.min() > 50  # the outline has a colour
    for inside in (drawn[side + side // 2, side - 1], drawn[side + side // 2, side]):
        assert (inside == centre).all()  # none between two patches of one group


def test_maps_are_read_and_drawn_side_by_side(tmp_path: Path) -> None:
    write_maps(tmp_path, "ToMe", ORIGIN)
    write_maps(tmp_path, "TopK", [0, -1, -1, 1])
    maps = load_tokens([tmp_path])
    assert [each.title for each in maps] == ["ToMe 0.5", "TopK 0.5"]
    assert _said(gallery(maps)) == [
        "\u201ca cat\u201d", "the image", "ToMe 0.5", "2 tokens, 1 dropped", "TopK 0.5",
        "2 tokens, 2 dropped",
    ]  # fmt: skip
    assert "block 2: 2 tokens" in _said(gallery(maps, stages=True))
    assert main([str(tmp_path), "--out", str(tmp_path / "new" / "gallery.png")]) == 0
    with Image.open(tmp_path / "new" / "gallery.png") as saved:
        assert min(saved.size) > 100


def _said(figure: Figure) -> list[str]:
    texts = [*figure.texts[:-1], *(text for axes in figure.axes for text in axes.texts)]
    return [text.get_text() for text in texts if text.get_text()]  # without the legend


def test_two_of_one_class_are_told_apart_by_their_options(tmp_path: Path) -> None:
    for mix in (0.8, 1.0):
        write_maps(tmp_path / str(mix), "ELIP", ORIGIN)
        record = {"reducer_options": {"mix": mix, "probe_depth": None}}
        (tmp_path / str(mix) / "ELIP" / "run.json").write_text(json.dumps(record))
    assert [each.title for each in load_tokens([tmp_path])] == [
        "ELIP (mix=0.8) 0.5", "ELIP (mix=1.0) 0.5",
    ]  # fmt: skip


def test_only_the_images_that_are_asked_for(tmp_path: Path, capsys) -> None:
    write_maps(tmp_path, "ToMe", ORIGIN)
    assert main([str(tmp_path), "--out", str(tmp_path / "g.png"), "--image", "test-7-0"]) == 2
    said = capsys.readouterr().err
    assert "No token maps of test-7-0" in said
    assert "test-0-0" in said
    assert main([str(tmp_path), "--out", str(tmp_path / "plain"), "--image", "test-0-0"]) == 0
    assert (tmp_path / "plain").is_file()


def test_without_maps_there_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run predict first"):
        gallery(load_tokens([tmp_path]))


def _edited(**changes: object) -> Callable[[Path], None]:
    def edit(place: Path) -> None:
        content = json.loads((place / "tokens.json").read_text())
        for name, value in changes.items():
            target = content if name in content else content["images"][0]
            target[name] = value
        (place / "tokens.json").write_text(json.dumps(content))

    return edit


def _cut(place: Path) -> None:
    picture = place / "test-0-0.png"
    picture.write_bytes(picture.read_bytes()[:50])


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no JSON": (lambda place: (place / "tokens.json").write_bytes(b"\xff"), "tokens.json"),
    "image outside": (_edited(file="../../secret.png"), "is not in the same folder"),
    "image is missing": (_edited(file="none.png"), "none.png"),
    "image is cut": (_cut, "test-0-0.png"),
    "grid of another size": (_edited(grid=[3, 3]), "do not fill a grid of 3 x 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_maps_are_named_and_the_others_drawn(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    Image.new("RGB", (32, 32)).save(tmp_path / "secret.png")
    for reducer in ("ToMe", "TopK"):
        write_maps(tmp_path, reducer, ORIGIN)
    damage(tmp_path / "ToMe" / "tokens")
    with pytest.raises(ValueError, match=message) as refused:
        load_tokens([tmp_path])
    damaged: list[str] = []
    maps = load_tokens([tmp_path], damaged)
    assert damaged == [str(refused.value)]
    assert str(tmp_path / "ToMe") in damaged[0]
    assert [each.title for each in maps] == ["TopK 0.5"]
    gallery(maps)
