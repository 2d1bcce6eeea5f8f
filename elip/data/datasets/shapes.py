"""The built-in data: drawn scenes with captions, questions, statements and hypotheses."""

from __future__ import annotations

from pathlib import Path

from elip.data.batch import Kind
from elip.data.datasets.base import DatasetSpec, Splits, View
from elip.data.shapes import ANSWER_FILE, SPLITS, write_shapes
from elip.data.shapes.language import ANSWERS


def _view(kind: Kind, num_answers: int = 0, answer_file: str | None = None) -> View:
    train, val, test = ({split: (f"shapes_{kind}_{split}.arrow",)} for split in SPLITS)
    splits: Splits = {"train": train, "val": val, "test": test}
    return View(splits, num_answers=num_answers, answer_file=answer_file)


class Shapes(DatasetSpec):
    """Two or three small colored shapes on a cluttered background, made on first use.

    All kinds of examples come from the same scenes. Entailment has its own drawings; in half of
    them a white card hides a part. Drawing takes about ten seconds, once.
    """

    name = "shapes"
    views = {
        "caption": _view("caption"),
        "question": _view("question", len(ANSWERS), ANSWER_FILE),
        "pair": _view("pair", 2),
        "entailment": _view("entailment", 3),
        "statement": _view("statement", 2),
    }

    def prepare(self, root: Path) -> None:
        """Draw the default dataset in ``root / "shapes"``, unless it exists."""
        write_shapes(root / self.name)
