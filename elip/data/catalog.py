"""The chosen datasets on disk: their files, their answers, their tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from elip.data.answers import read_answers
from elip.data.batch import Kind
from elip.data.datasets import find_dataset
from elip.data.datasets.base import LAYOUT, DataError, DatasetSpec, Phase, View
from elip.data.reader import ArrowTable

_CLASSES: Mapping[Kind, int] = {"pair": 2, "entailment": 3, "statement": 2}
"""Number of classes by kind, of views that do not state it."""


class Catalog:
    """Several datasets below one root.

    Args:
        names: Names or import paths of the datasets.
        root: Folder of the Arrow files, directly in it or in a subfolder named as the dataset.
        splits: "default" or "official".

    Raises:
        DataError: If a name is unknown.
    """

    def __init__(self, names: Sequence[str], root: Path, splits: str = "default") -> None:
        if not names:
            raise DataError("No dataset is named.")
        self.sources = [find_dataset(name) for name in names]
        if len({source.name for source in self.sources}) < len(names):  # also by an import path
            raise DataError(f"datasets is {list(names)}; a dataset is named twice.")
        self.root = root
        self.splits = splits
        self._tables: dict[tuple[str, ...], ArrowTable] = {}
        for source in self.sources:
            for view in source.views.values():
                view.chosen(splits)

    def __str__(self) -> str:
        """Return the names of the datasets."""
        return ", ".join(source.name for source in self.sources)

    def prepare(self) -> None:
        """Make the files of built-in datasets."""
        for source in self.sources:
            source.prepare(self.root)

    def tables(self, kind: Kind, phase: Phase) -> dict[str, ArrowTable]:
        """Return the splits of one phase by name; with the dataset's name if there are several.

        Raises:
            DataError: If a dataset has no examples of that kind, or a file is missing or wrong.
        """
        found: dict[str, ArrowTable] = {}
        for source in self.sources:
            view = _view(source, kind)
            for name, patterns in view.chosen(self.splits).get(phase, {}).items():
                full = name if len(self.sources) == 1 else f"{source.name}_{name}"
                found[full] = self._table(source, kind, view, patterns)
        return found

    def _table(
        self, source: DatasetSpec, kind: Kind, view: View, patterns: tuple[str, ...]
    ) -> ArrowTable:
        key = (source.name, kind, *patterns)
        if key not in self._tables:
            paths = source.paths(self.root, patterns)
            classes = view.num_answers or _CLASSES.get(kind, 1 << 31)
            columns = view.columns or LAYOUT[kind]
            self._tables[key] = ArrowTable(paths, columns, view.distinct, classes)
        return self._tables[key]

    def num_answers(self) -> int:
        """Return A, the number of answers of the datasets with questions; 0 without any.

        Raises:
            DataError: If the datasets differ in it, or in their answers.
        """
        views = {s: s.views["question"] for s in self.sources if "question" in s.views}
        lists = {source: self._answer_file(source, view) for source, view in views.items()}
        numbers = {s.name: len(lists[s]) or view.num_answers for s, view in views.items()}
        if (
            len(set(numbers.values())) > 1
            or len({tuple(each) for each in lists.values() if each}) > 1
        ):
            raise DataError(f"Datasets with different answers cannot be joined: {numbers}.")
        return next(iter(numbers.values()), 0)

    def answers(self) -> tuple[str, ...]:
        """Return the A answers by number, from the answer file or else the training files.

        Numbers that occur in neither are "unknown".
        """
        known = self.listed_answers()
        if known:
            return known
        words: dict[int, str] = {}
        for table in self.tables("question", "train").values():
            words |= table.answer_words()
        return tuple(words.get(number, "unknown") for number in range(self.num_answers()))

    def listed_answers(self) -> tuple[str, ...]:
        """Return the answers by number that stand in an answer file; none where there is none."""
        for source in self.sources:
            view = source.views.get("question")
            known = self._answer_file(source, view) if view is not None else []
            if known:
                return tuple(known)
        return ()

    def _answer_file(self, source: DatasetSpec, view: View) -> list[str]:
        path = source.beside(self.root, view.answer_file) if view.answer_file else None
        return [] if path is None else read_answers(path)

    def tokenizer(self) -> Path:
        """Return the folder of the first dataset that brings its own tokenizer.

        Raises:
            DataError: If none does.
        """
        for source in self.sources:
            folder = source.beside(self.root, "tokenizer")
            if folder is not None:
                return folder
        raise DataError(
            f"There is no folder `tokenizer` beside the files of {self} in {self.root}. Name one: "
            "data.tokenizer=bert-base-uncased, roberta-base, or a local folder."
        )


def _view(source: DatasetSpec, kind: Kind) -> View:
    if kind not in source.views:
        kinds = ", ".join(source.views)
        raise DataError(f"{source.name} has no examples of kind {kind!r}; it has {kinds}.")
    return source.views[kind]
