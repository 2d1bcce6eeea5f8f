"""The scores of single examples: one run's, and two methods' differences on what both saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from elip.examples import read_examples


@dataclass(frozen=True, eq=False)
class Names:
    """Which examples a run was scored on.

    Attributes:
        examples: [N] example numbers, rising.
        images: [N], the image of each.
    """

    examples: NDArray[np.int64]
    images: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The main score of every example of one run on one split.

    Attributes:
        names: The examples; runs on the same ones share one object.
        scores: [N] float.
    """

    names: Names
    scores: NDArray[Any]


class Reader:
    """Reads the outcomes of runs; what many runs have in common is kept once."""

    def __init__(self) -> None:
        self._known: dict[bytes, Names] = {}

    def read(self, folder: Path | str) -> dict[str, Outcomes]:
        """Return the outcomes of a run by split; none where it left none.

        Raises:
            RecordError: The file is damaged.
        """
        return self.by_split(read_examples(folder))

    def by_split(self, table: pa.Table | None) -> dict[str, Outcomes]:
        """Return the outcomes in a table of examples by split; none of no table."""
        if table is None:
            return {}
        splits = table["split"].cast(pa.string())
        return {
            str(split): self._outcomes(table.filter(pc.equal(splits, split)))
            for split in splits.unique().to_pylist()
        }

    def _outcomes(self, table: pa.Table) -> Outcomes:
        examples, images = table["example"].to_numpy(), table["image"].to_numpy()
        key = blake2b(examples.tobytes() + images.tobytes(), digest_size=16).digest()
        names = self._known.setdefault(key, Names(examples, images))
        return Outcomes(names, table["score"].to_numpy())


def mean_outcomes(runs: Sequence[Outcomes]) -> Outcomes:
    """Return the mean score of each example over several runs; examples that one lacks are out."""
    names = runs[0].names
    for run in runs[1:]:
        if run.names is not names:
            shared = np.isin(names.examples, run.names.examples, assume_unique=True)
            names = Names(names.examples[shared], names.images[shared])
    picked = [_at(run, names) for run in runs]
    scores: NDArray[np.float64] = np.asarray(np.mean(picked, axis=0, dtype=np.float64))
    return Outcomes(names, scores)


def _at(run: Outcomes, names: Names) -> NDArray[Any]:
    if run.names is names:
        return run.scores
    return run.scores[np.searchsorted(run.names.examples, names.examples)]


def difference(a: Outcomes, b: Outcomes) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return A minus B on the examples of both, and the image of each."""
    both = mean_outcomes([a, b]).names
    return _at(a, both).astype(np.float64) - _at(b, both), both.images
