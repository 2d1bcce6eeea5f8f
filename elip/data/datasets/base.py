"""What defines a dataset: its Arrow files, their splits and columns, and its converter.

The files follow ViLT and METER (Arrow IPC file format). Each dataset is one class in a file of this
folder; new files are found automatically.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import pyarrow as pa

from elip.data.batch import Kind

if TYPE_CHECKING:
    from elip.data.download import Download, Row

Phase = Literal["train", "val", "test"]
PHASES: tuple[Phase, ...] = ("train", "val", "test")
Splits = Mapping[Phase, Mapping[str, tuple[str, ...]]]
"""For each phase its named splits, and for each split the file patterns, in reading order."""


class DataError(ValueError):
    """Wrong data or options; the message says what is wrong, where, and what to do."""


class MissingFilesError(DataError, FileNotFoundError):
    """Files of a dataset are missing."""


@dataclass(frozen=True)
class Columns:
    """The column names of an example.

    A row holds images and a list of texts. Target, scores and keys are lists as long as that of the
    texts; keys may also be one value per row.
    """

    images: tuple[str, ...]  # one column of encoded images for each image of an example
    texts: str  # list<string>; of list<list<string>> (premise, hypothesis) the last is the text
    target: str | None = None  # "True"/"False", class numbers, or lists of answer numbers
    scores: str | None = None  # the soft scores of the answers
    answers: str | None = None  # the words of the answers
    keys: str | None = None  # the dataset's identifiers

    @property
    def names(self) -> tuple[str, ...]:
        """All columns to read."""
        others = (self.target, self.scores, self.answers, self.keys)
        return (*self.images, self.texts, *(name for name in others if name is not None))


LAYOUT: Mapping[Kind, Columns] = {
    "caption": Columns(("image",), "caption", keys="image_id"),
    "question": Columns(
        ("image",), "questions", "answer_labels", "answer_scores", "answers", "question_id"
    ),
    "pair": Columns(("image_0", "image_1"), "questions", "answers", keys="identifier"),
    "entailment": Columns(("image",), "sentences", "labels"),
    "statement": Columns(("image",), "questions", "answers", keys="identifier"),
}
"""The columns of ViLT and METER for each kind of example ("statement" follows "pair")."""


_TEXTS = pa.list_(pa.string())
_STATEMENTS = {"questions": _TEXTS, "answers": _TEXTS, "identifier": pa.string()}
SCHEMAS: Mapping[Kind, pa.Schema] = {
    "caption": pa.schema({
        "image": pa.binary(), "caption": _TEXTS, "image_id": pa.string(), "split": pa.string(),
    }),
    "question": pa.schema({
        "image": pa.binary(), "questions": _TEXTS, "answers": pa.list_(_TEXTS),
        "answer_labels": pa.list_(pa.list_(pa.int64())),
        "answer_scores": pa.list_(pa.list_(pa.float64())),
        "image_id": pa.int64(), "question_id": pa.list_(pa.int64()), "split": pa.string(),
    }),
    "pair": pa.schema({"image_0": pa.binary(), "image_1": pa.binary(), **_STATEMENTS}),
    "entailment": pa.schema({
        "image": pa.binary(), "sentences": pa.list_(_TEXTS), "labels": pa.list_(pa.int64()),
    }),
    "statement": pa.schema({
        "image": pa.binary(), **_STATEMENTS, "directory": pa.string(), "permutation": pa.int64(),
    }),
}  # fmt: skip
"""The columns and types that converters write for each kind of example."""


@dataclass(frozen=True)
class View:
    """The examples of one kind in a dataset."""

    splits: Splits  # for training, model selection and scores; no image may be in two phases
    official: Splits | None = None  # the splits of the reference, if they differ
    distinct: bool = False  # keep only the first of equal texts of an image
    num_answers: int = 0  # A, the number of answers or classes, if there is no `answer_file`
    answer_file: str | None = None  # JSON list of the answers by number, beside the Arrow files
    asked_file: str | None = None  # JSON list of the numbers of all questions that a server asks
    columns: Columns | None = None  # None for those in `LAYOUT`

    def chosen(self, name: Literal["default", "official"]) -> Splits:
        """Return the splits of a name."""
        return self.official if name == "official" and self.official is not None else self.splits


class DatasetSpec:
    """One dataset. A subclass defines `name` and `views`, and for a converter the rest."""

    name: ClassVar[str]  # on the command line, in lower case
    views: ClassVar[Mapping[Kind, View]]
    layout: ClassVar[str] = ""  # the expected contents of the download's folder
    files: ClassVar[Mapping[str, pa.Schema]] = {}
    """The Arrow files that the converter writes; a ``*`` stands for any number of files."""

    def prepare(self, root: Path) -> None:
        """Create missing files in ``root / name`` that need no download.

        Every process calls it before reading. It must be quick if nothing is missing, and leave no
        incomplete file behind.
        """

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield the rows of the Arrow files from the official download, in any order of files.

        Pass everything left out to ``download.skip``.
        """
        raise DataError(f"{self.name} has no converter; it reads existing Arrow files.")

    def find(self, root: Path, pattern: str) -> list[Path]:
        """Return the matching files of ``root / name``, or else of ``root``, in numeric order."""
        found = list((root / self.name).glob(pattern)) or list(root.glob(pattern))
        parts = re.compile(r"(\d+)").split
        return sorted(found, key=lambda p: [int(n) if n.isdigit() else n for n in parts(p.name)])

    def paths(self, root: Path, patterns: tuple[str, ...]) -> list[Path]:
        """Return the files of one split; each pattern must match."""
        found = {pattern: self.find(root, pattern) for pattern in patterns}
        if missing := [pattern for pattern, paths in found.items() if not paths]:
            raise MissingFilesError(
                f"{self.name}: no {', '.join(missing)} in {root / self.name} or {root}. "
                f"Set the data root to the folder of your Arrow files, or create them: "
                f"python -m elip.data.convert {self.name} --root RAW --out {root}"
            )
        return [path for paths in found.values() for path in paths]
