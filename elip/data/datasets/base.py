"""What a dataset is to the readers: which Arrow files hold which examples, in which columns.

The files are those of ViLT and METER (Arrow IPC file format). One class per dataset, one file each
in this folder; a new file is found by itself.
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
    """The data, or what was asked of it, is wrong; the message says what, where and what to do."""


class MissingFilesError(DataError, FileNotFoundError):
    """Files of a dataset are not where they should be."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns that make up an example.

    Every row holds its images and a list of texts; target, scores and keys are lists that run
    beside the texts, or (keys only) one value for the row.

    Attributes:
        images: One binary column (an encoded image file) for each image of an example.
        texts: Column of list<string>; list<list<string>> stands for sentence groups, of which the
            last is the text (SNLI-VE: premise caption, then hypothesis).
        target: Column with the truth: "True"/"False", class numbers, or lists of answer numbers.
        scores: Column with the soft scores that belong to the answer numbers.
        answers: Column with the words of the answer numbers.
        keys: Column with the dataset's own identifiers.
    """

    images: tuple[str, ...]
    texts: str
    target: str | None = None
    scores: str | None = None
    answers: str | None = None
    keys: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are read."""
        beside = (self.target, self.scores, self.answers, self.keys)
        return (*self.images, self.texts, *(name for name in beside if name is not None))


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
    """One kind of example, as a dataset's files hold it.

    Attributes:
        splits: Which files are read for training, model selection (val) and scores (test). No
            image may be in two phases.
        official: The splits of the reference's readers, where they differ; chosen by
            `splits: official`.
        distinct: Whether a text that occurs twice with the same image counts once.
        num_answers: A, number of answers or classes; 0 where there are none. With an
            ``answer_file`` that exists, its length takes the place of this number.
        answer_file: JSON file with the list of answers by number, beside the Arrow files.
        asked_file: JSON file with the numbers of all questions that the evaluation server asks,
            those without an example included.
        columns: Column names; None for the ones in `LAYOUT`.
    """

    splits: Splits
    official: Splits | None = None
    distinct: bool = False
    num_answers: int = 0
    answer_file: str | None = None
    asked_file: str | None = None
    columns: Columns | None = None

    def chosen(self, name: str) -> Splits:
        """Return the splits called ``name``.

        Args:
            name: "default" or "official".

        Raises:
            DataError: If there is no such name.
        """
        if name not in ("default", "official"):
            raise DataError(f"splits is {name!r}; choose default or official.")
        return self.official if name == "official" and self.official is not None else self.splits


@dataclass(frozen=True)
class Row:
    """A row that a converter wants written.

    Attributes:
        file: Name of the Arrow file.
        images: The image file of each image column.
        values: The other columns.
        change: What is done to the bytes of each image; None keeps them.
    """

    file: str
    images: Mapping[str, Path]
    values: Mapping[str, Any]
    change: Callable[[bytes], bytes] | None = None


class DatasetSpec:
    """One dataset. A subclass states `name` and `views`; one with a converter also the others.

    Attributes:
        name: How the command line calls the dataset, in lower case.
        views: What it provides, by kind of example.
        download: Where the official download lies.
        layout: What the folder of the download should hold.
        files: The Arrow files that the converter writes, with their columns. Where a name has a
            ``*``, as many files as there are rows for.
        subfolder: Folder below the data root that the converter writes to.
    """

    name: ClassVar[str]
    views: ClassVar[Mapping[Kind, View]]
    download: ClassVar[str] = ""
    layout: ClassVar[str] = ""
    files: ClassVar[Mapping[str, pa.Schema]] = {}
    subfolder: ClassVar[str] = ""

    def prepare(self, root: Path) -> None:
        """Make the files below ``root`` if they are missing and can be made without a download.

        Called before the files are read, by several processes at once if there are several. Must
        be quick when there is nothing to do, and must leave no half-written file behind when it
        is interrupted. Files belong into ``root / name``.
        """

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield the rows of the Arrow files from the official download, in any order of files.

        What is left out goes to ``download.skip``.

        Raises:
            DataError: If this dataset has no converter, or the download is not as expected.
        """
        raise DataError(f"{self.name} has no converter; it reads Arrow files that exist already.")

    def asked(self, root: Path, kind: Kind) -> frozenset[int]:
        """Return the numbers of all questions that the evaluation server asks; none if unknown."""
        name = self.views[kind].asked_file
        path = self.beside(root, name) if name else None
        return frozenset(json.loads(path.read_text("utf-8"))) if path else frozenset()

    def paths(self, root: Path, patterns: tuple[str, ...]) -> list[Path]:
        """Return the files of one split: by pattern, then in numeric order of the shards.

        Files are looked for in ``root / name``, then in ``root``.

        Raises:
            MissingFilesError: If a pattern matches no file.
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
                f"Set the data root to the folder of your Arrow files, or make them: "
                f"python -m elip.data.convert {self.name} --root RAW --out {root}"
            )
        return found

    def beside(self, root: Path, file: str) -> Path | None:
        """Return the path of a side file or folder in ``root / name`` or ``root``, if it is there.

        Args:
            root: The data root.
            file: Name of the file or folder, for instance "tokenizer".
        """
        for folder in (root / self.name, root):
            if (folder / file).exists():
                return folder / file
        return None


def _numeric(path: Path) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name))
