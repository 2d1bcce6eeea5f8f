"""The built-in dataset: generated images of a few small objects, with full annotations."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from elip.data.arrow_writer import arrow_writer, write_text
from elip.data.datasets.base import SCHEMAS, DataError
from elip.data.shapes import language
from elip.data.shapes.scene import Scene, draw, png, random_scene
from elip.files import remove_remains

SPLITS = ("train", "val", "test")
ANSWER_FILE = "shapes_answers.json"
_VERSION = 3
"""Increase it when the same options give other files."""

_SCENES = (2, 10_000_000)  # a pair needs two; image numbers leave room for ten million per split
_ALLOWED = {
    "pixels": (48, 4096), "things": (2, 4), "train": _SCENES, "val": _SCENES, "test": _SCENES,
    "seed": (0, 2**32 - 1),
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """The options of ``python -m elip.data.shapes``.

    Attributes:
        pixels: Side of the images.
        things: Maximum number of things per image, 2 to 4; more are harder to learn.
        train: Number of training scenes.
        val: Number of scenes for model selection.
        test: Number of scenes for the reported scores.
        seed: Other seeds give other scenes.

    Raises:
        DataError: An option is out of range.
    """

    pixels: int = 64
    things: int = 3
    train: int = 4000
    val: int = 500
    test: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in _ALLOWED.items():
            if not least <= getattr(self, name) <= most:
                raise DataError(
                    f"{name} of the shapes data is {getattr(self, name)!r}; "
                    f"it must be {least} to {most}."
                )


def write_shapes(folder: Path, options: Options | None = None, progress: bool = True) -> Options:
    """Draw the dataset in a folder, unless it is complete.

    Writes ``shapes_{kind}_{split}.arrow`` in the layouts of COCO captions, VQAv2, NLVR2, SNLI-VE
    and NLVR, with the scene as JSON in every row (``scene``, or ``scene_0`` and ``scene_1``); also
    `ANSWER_FILE` and the tokenizer. If several processes call this, one draws and the others wait.
    An incomplete dataset is drawn again with its own options.

    Args:
        folder: Folder of the files.
        options: What to draw; None keeps what exists, or draws the default.
        progress: Show a progress bar.

    Returns:
        The options of the dataset.
    """
    from elip.data.tokenize import word_tokenizer  # late: it imports transformers

    stated, is_whole = _stated(folder)  # before locking: the folder may be read-only
    if stated and is_whole and options in (None, stated):
        return stated
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        stated, is_whole = _stated(folder)
        if stated and is_whole and options in (None, stated):
            return stated
        options = options or stated or Options()
        for path in folder.glob("shapes_*.arrow"):
            path.unlink()
        remove_remains(folder)
        card = {"version": _VERSION, **asdict(options)}
        write_text(folder / "shapes.json", json.dumps(card, indent=1) + "\n")
        answers = json.dumps(language.ANSWERS, indent=1) + "\n"
        write_text(folder / ANSWER_FILE, answers)
        tokenizer = word_tokenizer(language.WORDS).to_str(pretty=True)
        write_text(folder / "tokenizer" / "tokenizer.json", tokenizer)
        title = TextColumn("Drawing the built-in shapes data")
        columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not progress) as bar:
            task = bar.add_task("", total=options.train + options.val + options.test)
            for split in SPLITS:
                _write_split(folder, split, options, lambda: bar.advance(task))
        return options


def _stated(folder: Path) -> tuple[Options | None, bool]:
    """Return the options of a folder's dataset, and whether the dataset is complete."""
    path = folder / "shapes.json"
    if not path.exists():
        return None, False
    card = json.loads(path.read_text("utf-8"))
    version = card.pop("version")
    files = [_file(folder, kind, split) for kind in SCHEMAS for split in SPLITS]
    return Options(**card), version == _VERSION and all(file.is_file() for file in files)


def _file(folder: Path, kind: str, split: str) -> Path:
    return folder / f"shapes_{kind}_{split}.arrow"


def _write_split(folder: Path, split: str, options: Options, advance: Callable[[], None]) -> None:
    with ExitStack() as stack:
        files = {}
        for kind, schema in SCHEMAS.items():
            names = ("scene_0", "scene_1") if kind == "pair" else ("scene",)
            schema = pa.schema([*schema, *(pa.field(name, pa.string()) for name in names)])
            files[kind] = stack.enter_context(arrow_writer(_file(folder, kind, split), schema))
        before: tuple[Scene, bytes] | None = None
        for index in range(getattr(options, split)):
            seed = (options.seed, SPLITS.index(split), index)
            scene = random_scene(seed, options.pixels, options.things)
            image = png(draw(scene))
            rng = np.random.default_rng([*seed, 2])
            for kind, row in _rows(scene, image, split, index, rng).items():
                files[kind].write(row)
            hidden = random_scene(seed, options.pixels, options.things, card=bool(index % 2))
            files["entailment"].write(_entailment(hidden, png(draw(hidden)), rng))
            if index % 2 and before:
                files["pair"].write(_pair(before, (scene, image), f"{split}-{index // 2}", rng))
            before = scene, image
            advance()


def _rows(
    scene: Scene, image: bytes, split: str, index: int, rng: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """Return the rows of one image, by kind."""
    identifier, number = f"{split}-{index}", SPLITS.index(split) * 10_000_000 + index
    seen = {"image": image, "scene": scene.to_json()}
    asked = language.questions(scene, rng)
    said = language.statements(scene, rng)
    return {
        "caption": seen
        | {"caption": language.captions(scene, rng), "image_id": identifier, "split": split},
        "question": seen
        | {
            "questions": [question for question, _ in asked],
            "answers": [[answer] for _, answer in asked],
            "answer_labels": [[language.ANSWERS.index(answer)] for _, answer in asked],
            "answer_scores": [[1.0] for _ in asked],
            "image_id": number,
            "question_id": [number * 10 + place for place in range(len(asked))],
            "split": split,
        },
        "statement": seen
        | _truths(said)
        | {"identifier": identifier, "directory": split, "permutation": 0},
    }


def _truths(said: list[tuple[str, bool]]) -> dict[str, Any]:
    sentences, truths = zip(*said, strict=True)
    return {"questions": sentences, "answers": [str(truth) for truth in truths]}


def _pair(
    left: tuple[Scene, bytes], right: tuple[Scene, bytes], identifier: str, rng: np.random.Generator
) -> dict[str, Any]:
    return _truths(language.pair_statements(left[0], right[0], rng)) | {
        "image_0": left[1],
        "image_1": right[1],
        "identifier": identifier,
        "scene_0": left[0].to_json(),
        "scene_1": right[0].to_json(),
    }


def _entailment(scene: Scene, image: bytes, rng: np.random.Generator) -> dict[str, Any]:
    premise = language.captions(scene, rng)[0]
    said = language.hypotheses(scene, rng)
    return {
        "image": image,
        "sentences": [[premise, hypothesis] for hypothesis, _ in said],
        "labels": [label for _, label in said],
        "scene": scene.to_json(),
    }
