"""Writing the built-in dataset: scenes, their drawings and texts, in Arrow files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from elip.data.arrow_writer import ArrowWriter, write_json
from elip.data.datasets.base import DataError
from elip.data.datasets.captions import CAPTION
from elip.data.datasets.nlvr import STATEMENT
from elip.data.datasets.nlvr2 import PAIR
from elip.data.datasets.snli_ve import ENTAILMENT
from elip.data.datasets.vqav2 import QUESTION
from elip.data.shapes import language
from elip.data.shapes.draw import draw, png
from elip.data.shapes.scene import Scene, random_scene
from elip.files import remove_remains, whole_file

SPLITS = ("train", "val", "test")
_SCHEMAS = {
    "caption": CAPTION, "question": QUESTION, "pair": PAIR,
    "entailment": ENTAILMENT, "statement": STATEMENT,
}  # fmt: skip
KINDS = tuple(_SCHEMAS)
ANSWER_FILE = "shapes_answers.json"
_MARKER = "shapes.json"
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
            value = getattr(self, name)
            if not least <= value <= most:
                raise DataError(
                    f"{name} of the shapes data is {value!r}; it must be {least} to {most}."
                )


def write_shapes(folder: Path, options: Options | None = None, progress: bool = True) -> Options:
    """Draw the dataset in a folder, unless it is complete.

    Writes ``shapes_{kind}_{split}.arrow`` in the layouts of COCO captions, VQAv2, NLVR2, SNLI-VE
    and NLVR, with the scene as JSON in every row (``scene``, or ``scene_0`` and ``scene_1``); also
    `ANSWER_FILE` and the tokenizer. If several processes call this, one draws and the others wait.
    An interrupted or incomplete dataset is drawn again with its own options.

    Args:
        folder: Folder of the files.
        options: What to draw; None keeps what exists, or draws the default.
        progress: Show a progress bar.

    Returns:
        The options of the dataset.

    Raises:
        DataError: The file with the options is damaged.
    """
    stated, is_whole = _stated(folder)  # before locking: the folder may be read-only
    if stated and is_whole and options in (None, stated):
        return stated
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        stated, is_whole = _stated(folder)
        if stated and is_whole and options in (None, stated):
            return stated
        remove_remains(folder)
        options = options or stated or Options()
        card = {"version": _VERSION, **asdict(options)}
        write_json(folder / _MARKER, card | {"unfinished": True})
        title = TextColumn("Drawing the built-in shapes data")
        columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not progress) as bar:
            task = bar.add_task("", total=options.train + options.val + options.test)
            for split in SPLITS:
                _write_split(folder, split, options, lambda: bar.advance(task))
        with whole_file(folder / "tokenizer" / "tokenizer.json") as temporary:
            language.tokenizer().save(str(temporary))
        write_json(folder / ANSWER_FILE, list(language.ANSWERS))
        write_json(folder / _MARKER, card)
        return options


def _stated(folder: Path) -> tuple[Options | None, bool]:
    """Return the options of a folder's dataset, and whether the dataset is complete."""
    path = folder / _MARKER
    if not path.exists():
        return None, False
    try:
        card = json.loads(path.read_text("utf-8"))
        options = Options(**{field.name: card[field.name] for field in fields(Options)})
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} is damaged ({error}). Delete it to draw the data again."
        ) from error
    files = [_file(folder, kind, split) for kind in KINDS for split in SPLITS]
    whole = card == {"version": _VERSION, **asdict(options)}
    return options, whole and all(file.is_file() for file in files)


def _file(folder: Path, kind: str, split: str) -> Path:
    return folder / f"shapes_{kind}_{split}.arrow"


def _write_split(folder: Path, split: str, options: Options, advance: Callable[[], None]) -> None:
    count = getattr(options, split)
    with ExitStack() as stack:
        files = {
            kind: stack.enter_context(ArrowWriter(_file(folder, kind, split), _schema(kind)))
            for kind in KINDS
        }
        before: tuple[Scene, bytes] | None = None
        for index in range(count):
            scene, image = _drawn(options, split, index, card=False)
            rng = np.random.default_rng([*scene.seed, 2])
            for kind, row in _rows(scene, image, split, index, rng).items():
                files[kind].write(row)
            hidden, covered = _drawn(options, split, index, card=bool(index % 2))
            files["entailment"].write(_entailment(hidden, covered, rng))
            if index % 2 and before:
                files["pair"].write(_pair(before, (scene, image), f"{split}-{index // 2}", rng))
            before = scene, image
            advance()


def _drawn(options: Options, split: str, index: int, card: bool) -> tuple[Scene, bytes]:
    seed = (options.seed, SPLITS.index(split), index)
    scene = random_scene(seed, options.pixels, options.things, card)
    return scene, png(draw(scene))


def _schema(kind: str) -> pa.Schema:
    names = ("scene_0", "scene_1") if kind == "pair" else ("scene",)
    return pa.schema([*_SCHEMAS[kind], *(pa.field(name, pa.string()) for name in names)])


def _rows(
    scene: Scene, image: bytes, split: str, index: int, rng: np.random.Generator
) -> dict[str, Mapping[str, Any]]:
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


def _truths(said: list[tuple[str, bool]]) -> dict[str, list[str]]:
    return {
        "questions": [sentence for sentence, _ in said],
        "answers": [str(truth) for _, truth in said],
    }


def _pair(
    left: tuple[Scene, bytes], right: tuple[Scene, bytes], identifier: str, rng: np.random.Generator
) -> Mapping[str, Any]:
    return _truths(language.pair_statements(left[0], right[0], rng)) | {
        "image_0": left[1],
        "image_1": right[1],
        "identifier": identifier,
        "scene_0": left[0].to_json(),
        "scene_1": right[0].to_json(),
    }


def _entailment(scene: Scene, image: bytes, rng: np.random.Generator) -> Mapping[str, Any]:
    premise = language.captions(scene, rng)[0]
    rows = language.hypotheses(scene, rng)
    return {
        "image": image,
        "sentences": [[premise, hypothesis] for hypothesis, _ in rows],
        "labels": [label for _, label in rows],
        "scene": scene.to_json(),
    }
