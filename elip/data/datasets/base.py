"""What defines a dataset: its Arrow files, their splits and columns, and its converter.

The files follow ViLT and METER (Arrow IPC file format). Each dataset is one class in one file of
this folder; new files are found automatically.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa

from elip.data.batch import Kind

if TYPE_CHECKING:
    from elip.data.download import Download

Phase = Literal["train", "val", "test"]
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

    Attributes:
        images: One binary column (an encoded image) for each image of an example.
        texts: Column of list<string>. In list<list<string>> the last string of a group is the text
            (SNLI-VE: premise, then hypothesis).
        target: Column of the target: "True"/"False", class numbers, or lists of answer numbers.
        scores: Column of the soft scores of the answers.
        answers: Column of the answer words.
        keys: Column of the dataset's identifiers.
    """

    images: tuple[str, ...]
    texts: str
    target: str | None = None
    scores: str | None = None
    answers: str | None = None
    keys: str | None = None

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


@dataclass(frozen=True)
class View:
    """The examples of one kind in a dataset.

    Attributes:
        splits: The files for training, model selection (val) and scores (test). No image may be in
            two phases.
        official: The splits of the reference, if they differ (`splits: official`).
        distinct: Keep only the first of equal texts of an image.
        num_answers: A, the number of answers or classes; 0 if there are none. An ``answer_file``
            takes precedence.
        answer_file: JSON list of the answers by number, beside the Arrow files.
        asked_file: JSON list of the numbers of all questions in the server's test set, including
            those that have no example.
        columns: Column names; None for those in `LAYOUT`.
    """

    splits: Splits
    official: Splits | None = None
    distinct: bool = False
    num_answers: int = 0
    answer_file: str | None = None
    asked_file: str | None = None
    columns: Columns | None = None

    def chosen(self, name: str) -> Splits:
        """Return the splits called ``name``, "default" or "official"."""
        if name not in ("default", "official"):
            raise DataError(f"splits is {name!r}; choose default or official.")
        return self.official if name == "official" and self.official is not None else self.splits


@dataclass(frozen=True)
class Row:
    """A row that a converter writes.

    Attributes:
        file: Name of the Arrow file.
        images: Path of the image for each image column.
        values: The other columns.
        change: Converts the bytes of each image; None keeps them.
    """

    file: str
    images: Mapping[str, Path]
    values: Mapping[str, Any]
    change: Callable[[bytes], bytes] | None = None


class DatasetSpec:
    """One dataset. A subclass defines `name` and `views`, and for a converter the rest.

    Attributes:
        name: Name on the command line, in lower case.
        views: The examples, by kind.
        layout: The expected contents of the download's folder.
        files: The Arrow files that the converter writes, with their columns. A name with a ``*``
            stands for any number of files.
        subfolder: Folder below the data root that the converter writes to.
    """

    name: ClassVar[str]
    views: ClassVar[Mapping[Kind, View]]
    layout: ClassVar[str] = ""
    files: ClassVar[Mapping[str, pa.Schema]] = {}
    subfolder: ClassVar[str] = ""

    def prepare(self, root: Path) -> None:
        """Create missing files in ``root / name`` that need no download.

        Every process calls it before reading. It must be quick if nothing is missing, and leave no
        incomplete file behind.
        """

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield the rows of the Arrow files from the official download, in any order of files.

        Pass everything left out to ``download.skip``.

        Raises:
            DataError: There is no converter, or the download has another form.
        """
        raise DataError(f"{self.name} has no converter; it reads existing Arrow files.")

    def asked(self, root: Path, kind: Kind) -> frozenset[int]:
        """Return the numbers of all questions in the server's test set; empty if unknown."""
        name = self.views[kind].asked_file
        path = self.beside(root, name) if name else None
        return frozenset(json.loads(path.read_text("utf-8"))) if path else frozenset()

    def paths(self, root: Path, patterns: tuple[str, ...]) -> list[Path]:
        """Return the files of one split, by pattern and then in numeric order.

        The files are in ``root / name`` or in ``root``.

        Raises:
            MissingFilesError: A pattern matches no file.
        """
        found: list[Path] = []
        missing: list[str] = []
        for pattern in patterns:
            matches = list((root / self.name).glob(pattern)) or list(root.glob(pattern))
            found += sorted(matches, key=_numeric)
            missing += [] if matches else [pattern]
        if missing:
            raise MissingFilesError(
                f"{self.name}: no {', '.join(missing)} in {root / self.name} or {root}. "
                f"Set the data root to the folder of your Arrow files, or create them: "
                f"python -m elip.data.convert {self.name} --root RAW --out {root}"
            )
        return found

    def beside(self, root: Path, file: str) -> Path | None:
        """Return the path of a file or folder beside the Arrow files, if it exists."""
        paths = (root / self.name / file, root / file)
        return next((path for path in paths if path.exists()), None)


def _numeric(path: Path) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name))
