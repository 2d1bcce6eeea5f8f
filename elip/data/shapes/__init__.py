"""The built-in dataset: generated images of a few small objects, with full annotations."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from elip.data.arrow_writer import ArrowWriter, arrow_writer, write_text
from elip.data.datasets.base import SCHEMAS, DataError, DatasetSpec, View
from elip.data.shapes import language
from elip.data.shapes.scene import Scene, draw, png, random_scene
from elip.files import remove_remains

SPLITS = ("train", "val", "test")
_ANSWER_FILE = "shapes_answers.json"
_VERSION = 3
"""Increase it when the same options give other files."""


@dataclass(frozen=True)
class Options:
    """The options of ``python -m elip.data.shapes``."""

    pixels: int = 64  # side of the images
    things: int = 3  # maximum number of things per image; more are harder to learn
    train: int = 4000  # number of training scenes
    val: int = 500  # number of scenes for model selection
    test: int = 500  # number of scenes for the reported scores
    seed: int = 0  # other seeds give other scenes

    def __post_init__(self) -> None:
        # A pair needs two scenes; the numbers of images leave room for ten million per split.
        scenes = dict.fromkeys(SPLITS, (2, 10_000_000))
        ranges = {"pixels": (48, 4096), "things": (2, 4), "seed": (0, 2**32 - 1), **scenes}
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise DataError(f"shapes: {name} is {value}; it must be {least} to {most}.")


def _view(kind: str, num_answers: int = 0) -> View:
    train, val, test = ({split: (f"shapes_{kind}_{split}.arrow",)} for split in SPLITS)
    answers = _ANSWER_FILE if kind == "question" else None
    splits = {"train": train, "val": val, "test": test}
    return View(splits, num_answers=num_answers, answer_file=answers)  # type: ignore[arg-type]


class Shapes(DatasetSpec):
    """Two or three small colored shapes on a cluttered background, made on first use.

    All kinds of examples come from the same scenes. Entailment has its own drawings; in half of
    them a white card hides a part. Drawing takes about ten seconds, once.
    """

    name = "shapes"
    views = {
        "caption": _view("caption"),
        "question": _view("question", len(language.ANSWERS)),
        "pair": _view("pair", 2),
        "entailment": _view("entailment", 3),
        "statement": _view("statement", 2),
    }

    def prepare(self, root: Path) -> None:
        """Draw the default dataset in ``root / "shapes"``, unless it exists."""
        write_shapes(root / self.name)


def write_shapes(folder: Path, options: Options | None = None, progress: bool = True) -> Options:
    """Draw the dataset in a folder, unless it is complete; return its options.

    Writes ``shapes_{kind}_{split}.arrow`` in the layouts of COCO captions, VQAv2, NLVR2, SNLI-VE
    and NLVR, with the scene as JSON in every row (``scene``, or ``scene_0`` and ``scene_1``); also
    the list of answers and the tokenizer. If several processes call this, one draws and the others
    wait. An incomplete dataset is drawn again with its own options.

    Args:
        folder: Folder of the files.
        options: What to draw; None keeps what exists, or draws the default.
        progress: Show a progress bar.
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
        for name, content in (("shapes.json", card), (_ANSWER_FILE, language.ANSWERS)):
            write_text(folder / name, json.dumps(content, indent=1) + "\n")
        tokenizer = word_tokenizer(language.WORDS).to_str(pretty=True)
        write_text(folder / "tokenizer" / "tokenizer.json", tokenizer)
        columns = (TextColumn("Drawing the built-in shapes data: {task.description}"), BarColumn())
        with Progress(*columns, MofNCompleteColumn(), disable=not progress) as bar:
            for split in SPLITS:
                with ExitStack() as stack:
                    files = {
                        kind: stack.enter_context(arrow_writer(path, _schema(kind)))
                        for kind, path in _files(folder, split).items()
                    }
                    indices = bar.track(range(getattr(options, split)), description=split)
                    _write(files, split, options, indices)
        return options


def _stated(folder: Path) -> tuple[Options | None, bool]:
    """Return the options of a folder's dataset, and whether the dataset is complete."""
    path = folder / "shapes.json"
    if not path.exists():
        return None, False
    card = json.loads(path.read_text("utf-8"))
    version = card.pop("version")
    files = [file for split in SPLITS for file in _files(folder, split).values()]
    return Options(**card), version == _VERSION and all(file.is_file() for file in files)


def _files(folder: Path, split: str) -> dict[str, Path]:
    return {kind: folder / f"shapes_{kind}_{split}.arrow" for kind in SCHEMAS}


def _schema(kind: str) -> pa.Schema:
    names = ("scene_0", "scene_1") if kind == "pair" else ("scene",)
    return pa.schema([*SCHEMAS[kind], *(pa.field(name, pa.string()) for name in names)])


def _write(files: dict[str, ArrowWriter], split: str, options: Options, indices: Any) -> None:
    """Write the rows of a split, one per scene and kind; pairs join every two scenes."""
    before: tuple[Scene, bytes] | None = None
    for index in indices:
        seed = (options.seed, SPLITS.index(split), index)
        scene = random_scene(seed, options.pixels, options.things)
        image, rng = png(draw(scene)), np.random.default_rng([*seed, 2])
        seen = {"image": image, "scene": scene.to_json()}
        name, number = f"{split}-{index}", SPLITS.index(split) * 10_000_000 + index
        asked, answers = zip(*language.questions(scene, rng), strict=True)
        said = _truths(language.statements(scene, rng))
        captions = language.captions(scene, rng)
        files["caption"].write(seen | {"caption": captions, "image_id": name, "split": split})
        files["question"].write(
            seen
            | {
                "questions": asked,
                "answers": [[answer] for answer in answers],
                "answer_labels": [[language.ANSWERS.index(answer)] for answer in answers],
                "answer_scores": [[1.0] for _ in answers],
                "image_id": number,
                "question_id": [number * 10 + place for place in range(len(asked))],
                "split": split,
            }
        )
        files["statement"].write(
            seen | said | {"identifier": name, "directory": split, "permutation": 0}
        )
        hidden = random_scene(seed, options.pixels, options.things, card=bool(index % 2))
        premise = language.captions(hidden, rng)[0]
        supposed, labels = zip(*language.hypotheses(hidden, rng), strict=True)
        sentences = [[premise, hypothesis] for hypothesis in supposed]
        files["entailment"].write(
            {"image": png(draw(hidden)), "sentences": sentences, "labels": labels}
            | {"scene": hidden.to_json()}
        )
        if index % 2 and before:
            both = {"image_0": before[1], "image_1": image, "identifier": f"{split}-{index // 2}"}
            both |= {"scene_0": before[0].to_json(), "scene_1": seen["scene"]}
            files["pair"].write(both | _truths(language.pair_statements(before[0], scene, rng)))
        before = scene, image


def _truths(said: list[tuple[str, bool]]) -> dict[str, Any]:
    return {"questions": [text for text, _ in said], "answers": [str(true) for _, true in said]}
