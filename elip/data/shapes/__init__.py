"""The built-in dataset: generated images of a few small objects, with full annotations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from elip.data.datasets.base import PHASES, SCHEMAS, DataError, DatasetSpec, Phase, Splits, View
from elip.data.download import Download, Row
from elip.data.shapes import language
from elip.data.shapes.scene import Scene, draw, png, random_scene
from elip.files import remove_remains, whole_file

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
        scenes = dict.fromkeys(("train", "val", "test"), (2, 10_000_000))
        ranges = {"pixels": (48, 4096), "things": (2, 4), "seed": (0, 2**32 - 1), **scenes}
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise DataError(f"shapes: {name} is {value}; it must be {least} to {most}.")


def _view(kind: str, num_answers: int = 0) -> View:
    splits: Splits = {phase: {phase: (f"shapes_{kind}_{phase}.arrow",)} for phase in PHASES}
    answers = _ANSWER_FILE if kind == "question" else None
    return View(splits, num_answers=num_answers, answer_file=answers)


def _schema(kind: str) -> pa.Schema:
    """Return the columns of a kind, and the scene as JSON (``scene_0`` and ``_1`` in pairs)."""
    names = ("scene_0", "scene_1") if kind == "pair" else ("scene",)
    return pa.schema([*SCHEMAS[kind], *(pa.field(name, pa.string()) for name in names)])


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
    files = {f"shapes_{kind}_{split}.arrow": _schema(kind) for split in PHASES for kind in SCHEMAS}

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()

    def prepare(self, root: Path) -> None:
        """Draw the default dataset in ``root / "shapes"``, unless it exists."""
        write_shapes(root / self.name)

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per scene and kind; pairs join every two scenes. Nothing is downloaded."""
        from elip.data.tokenize import word_tokenizer  # late: it imports transformers

        download.side_files[_ANSWER_FILE] = json.dumps(language.ANSWERS, indent=1) + "\n"
        tokenizer = word_tokenizer(language.WORDS).to_str(pretty=True)
        download.side_files["tokenizer/tokenizer.json"] = tokenizer
        for split in PHASES:
            yield from _rows(split, self.options)


def _rows(split: Phase, options: Options) -> Iterator[Row]:
    before: tuple[Scene, bytes] | None = None
    for index in range(getattr(options, split)):
        seed = (options.seed, PHASES.index(split), index)
        scene = random_scene(seed, options.pixels, options.things)
        image, rng = png(draw(scene)), np.random.default_rng([*seed, 2])
        name, number = f"{split}-{index}", PHASES.index(split) * 10_000_000 + index
        asked, answers = zip(*language.questions(scene, rng), strict=True)
        said = _truths(language.statements(scene, rng))
        rows: dict[str, dict[str, Any]] = {
            "caption": {
                "caption": language.captions(scene, rng), "image_id": name, "split": split,
            },
            "question": {
                "questions": asked,
                "answers": [[answer] for answer in answers],
                "answer_labels": [[language.ANSWERS.index(answer)] for answer in answers],
                "answer_scores": [[1.0] for _ in answers],
                "image_id": number,
                "question_id": [number * 10 + place for place in range(len(asked))],
                "split": split,
            },
            "statement": said | {"identifier": name, "directory": split, "permutation": 0},
        }  # fmt: skip
        for kind, values in rows.items():
            values |= {"scene": scene.to_json()}
            yield Row(f"shapes_{kind}_{split}.arrow", {"image": image}, values)
        hidden = random_scene(seed, options.pixels, options.things, card=bool(index % 2))
        premise = language.captions(hidden, rng)[0]
        supposed, labels = zip(*language.hypotheses(hidden, rng), strict=True)
        values = {"sentences": [[premise, each] for each in supposed], "labels": labels}
        values |= {"scene": hidden.to_json()}
        yield Row(f"shapes_entailment_{split}.arrow", {"image": png(draw(hidden))}, values)
        if index % 2 and before:
            values = _truths(language.pair_statements(before[0], scene, rng))
            values |= {"scene_0": before[0].to_json(), "scene_1": scene.to_json()}
            values |= {"identifier": f"{split}-{index // 2}"}
            images = {"image_0": before[1], "image_1": image}
            yield Row(f"shapes_pair_{split}.arrow", images, values)
        before = scene, image


def _truths(said: list[tuple[str, bool]]) -> dict[str, Any]:
    return {"questions": [text for text, _ in said], "answers": [str(true) for _, true in said]}


def write_shapes(folder: Path, options: Options | None = None, progress: bool = True) -> Options:
    """Draw the dataset in a folder, unless it is complete; return its options.

    Writes ``shapes_{kind}_{split}.arrow`` in the layouts of COCO captions, VQAv2, NLVR2, SNLI-VE
    and NLVR, with the scene as JSON in every row; also the list of answers and the tokenizer. If
    several processes call this, one draws and the others wait. An incomplete dataset is drawn again
    with its own options.

    Args:
        folder: Folder of the files.
        options: What to draw; None keeps what exists, or draws the default.
        progress: Show a progress bar.
    """
    from elip.data.convert import convert  # late: it imports the datasets, this one too

    def stated() -> tuple[Options | None, bool]:
        """Return the options of the existing dataset, and whether it can stay."""
        if not card.exists():
            return None, False
        found = json.loads(card.read_text("utf-8"))
        is_whole = found.pop("version") == _VERSION and all(map(Path.is_file, files))
        return Options(**found), is_whole and options in (None, Options(**found))

    card, files = folder / "shapes.json", [folder / file for file in Shapes.files]
    existing, may_stay = stated()  # before locking: the folder may be read-only
    if existing and may_stay:
        return existing
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        existing, may_stay = stated()  # another process may have drawn it meanwhile
        if existing and may_stay:
            return existing
        options = options or existing or Options()
        for path in files:
            path.unlink(missing_ok=True)
        remove_remains(folder)
        with whole_file(card) as temporary:
            content = {"version": _VERSION, **asdict(options)}
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        convert(Shapes(options), folder, folder, check=False, progress=progress)
        return options
