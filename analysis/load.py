"""Folders of runs in, one table out."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.examples import Outcomes, Reader
from analysis.lineage import Lineage, find_parents, lineages, with_modes
from analysis.pack import unpack
from elip.examples import EXAMPLES_NAME
from elip.old_record import (
    COLUMNS,
    RECORD_NAME,
    Record,
    RecordError,
    parse_record,
    read_record,
)


@dataclass(frozen=True)
class Broken:
    """A record that could not be read.

    Attributes:
        path: Where it lies.
        message: Why.
    """

    path: str
    message: str


@dataclass(frozen=True)
class Runs:
    """Everything that was found.

    Attributes:
        table: One row a run: the columns of `elip.old_record.COLUMNS`, the scores, and ``folder``,
            ``label`` (the method in tables and figures), ``keep`` (the keep ratio that it stands
            under: as asked, else as measured; 1 without reduction; the share of patches of a
            smaller image), ``setup`` (identity of what its scores belong to) and ``mode`` (how the
            model was trained; see `analysis.lineage` for both), and ``latency_share`` (inference
            time as a share of that without reduction).
        records: The records, in the order of the rows.
        lineages: How each run came about, in the order of the rows.
        parents: For rows that began from weights, the row that made them, or else where from.
        outcomes: Scores of single examples by split, in the order of the rows.
        logs: ``val/main`` by step of training, in the order of the rows. Logs that were set aside
            when a run was continued count as well; the latest entry of a step stands.
        broken: Files that could not be read.
    """

    table: pd.DataFrame
    records: tuple[Record, ...]
    lineages: tuple[Lineage, ...]
    parents: dict[int, int | Path]
    outcomes: tuple[dict[str, Outcomes], ...]
    logs: tuple[dict[int, float], ...]
    broken: tuple[Broken, ...]


def load(folders: Iterable[Path | str]) -> Runs:
    """Read every run record below some folders.

    Args:
        folders: Searched at any depth; or files that `analysis.pack` wrote.

    Raises:
        FileNotFoundError: A folder does not exist, or there is no record in any of them.
    """
    places = [Path(folder) for folder in folders]
    for place in places:
        if not place.exists():
            raise FileNotFoundError(f"There is no folder {place}.")
    records, outcomes, logs, rows, found_in = [], [], [], [], []
    broken: list[Broken] = []
    for place, folder, record, examples in _found(places, broken):
        found_in.append(place)
        records.append(record)
        outcomes.append(examples)
        logs.append(_log(folder, broken) if record.subcommand == "fit" else {})
        rows.append({"folder": folder, **record.row()})
    if not records and not broken:
        raise FileNotFoundError(
            f"No {RECORD_NAME} below {', '.join(map(str, places))}. A run writes it when it ends."
        )
    if not records:
        names = ["folder", "setup", *COLUMNS, "label", "keep", "mode", "latency_share"]
        return Runs(pd.DataFrame(columns=names), (), (), {}, (), (), tuple(broken))
    table = _with_labels(pd.DataFrame(rows))
    parents = find_parents(table, records, found_in)
    came = lineages(records, parents)
    table = _with_latency(_with_one_ratio(with_modes(table, records, came, parents)))
    return Runs(
        table, tuple(records), tuple(came), parents, tuple(outcomes), tuple(logs),
        tuple(broken),
    )  # fmt: skip


def _found(
    places: list[Path], broken: list[Broken]
) -> Iterator[tuple[Path, str, Record, dict[str, Outcomes]]]:
    """Yield place, folder, record and outcomes of every run; add what is damaged to ``broken``."""
    reader = Reader()
    by_path = {path: each for each in places for path in _paths(each)}
    for path, place in sorted(by_path.items()):
        try:
            if path.name != RECORD_NAME:
                for found in _unpacked(path, reader, broken):
                    yield (place, *found)
                continue
            record, examples = read_record(path), {}
        except RecordError as error:
            broken.append(Broken(str(path), str(error)))
            continue
        try:
            examples = reader.read(path.parent)
        except RecordError as error:
            broken.append(Broken(str(path.with_name(EXAMPLES_NAME)), str(error)))
        yield place, str(path.parent), record, examples


def _unpacked(
    path: Path, reader: Reader, broken: list[Broken]
) -> Iterator[tuple[str, Record, dict[str, Outcomes]]]:
    for folder, text, table in unpack(path):
        try:
            record = parse_record(text, f"{path}: {folder}")
        except RecordError as error:
            broken.append(Broken(f"{path}: {folder}", str(error)))
            continue
        yield folder, record, reader.by_split(table)


def _paths(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
    for folder, below, files in os.walk(place):
        below[:] = sorted(name for name in below if name not in ("checkpoints", "tensorboard"))
        if RECORD_NAME in files:
            yield Path(folder, RECORD_NAME)


def _with_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Name the methods: the reducer, and its options where the runs differ in them."""
    labels = table["reducer"].copy()
    for reducer, rows in table.groupby("reducer"):
        options = {text: json.loads(text) for text in rows["reducer_options"].unique()}
        named = labelled(str(reducer), list(options.values()))
        for text, label in zip(options, named, strict=True):
            labels.loc[rows.index[rows["reducer_options"] == text]] = label
    identity = table["reducer"] == "Identity"
    smaller = identity & _is_smaller(table)
    keep = table["keep_ratio_asked"].astype(float).fillna(table["keep_ratio"].astype(float))
    largest = table["patches"].where(_is_scored(table))
    largest = largest.groupby([table["task"], table["datasets"]]).transform("max")
    keep = keep.mask(identity, 1.0).mask(smaller, table["patches"] / largest)
    labels[smaller] = "Smaller image"
    return table.assign(label=labels, keep=keep.fillna(1.0).round(3))


def _with_one_ratio(table: pd.DataFrame) -> pd.DataFrame:
    """Put the seeds of an adaptive method that was given counts under one measured keep ratio."""
    measured = table["keep_ratio_asked"].isna() & (table["reducer"] != "Identity")
    mean = table.groupby(["label", "setup"])["keep"].transform("mean").round(3)
    return table.assign(keep=table["keep"].mask(measured, mean))


def _is_scored(table: pd.DataFrame) -> pd.Series:
    return (table["status"] == "completed") & (table["subcommand"] != "predict")


def _is_smaller(table: pd.DataFrame) -> pd.Series:
    """Whether a run's images are smaller than others' of its work, and no method has that size."""
    scored = table[_is_scored(table)]
    work = ["task", "datasets"]
    largest = scored.groupby(work)["patches"].max()
    reduced = scored[scored["reducer"] != "Identity"]
    sizes = set(reduced[[*work, "patches"]].itertuples(index=False, name=None))
    rows = table[[*work, "patches"]].itertuples(index=False, name=None)
    return pd.Series(
        [row not in sizes and row[2] < largest.get(row[:2], row[2]) for row in rows],
        index=table.index,
    )


def labelled(reducer: str, options: list[dict[str, Any]]) -> list[str]:
    """Name a reducer under each of some options: by those in which they differ."""
    differing, labels = _differing(options), []
    for values in options:
        named = [name for name in differing if name in values]
        said = ", ".join(f"{name}={_short(values[name])}" for name in named)
        labels.append(f"{reducer} ({said})" if said else reducer)
    return labels


def _differing(options: list[dict[str, Any]]) -> list[str]:
    """Return the options in which runs differ; one that a run does not state tells nothing."""
    stated: dict[str, set[str]] = {}
    for each in options:
        for name, value in each.items():
            stated.setdefault(name, set()).add(json.dumps(value, sort_keys=True, default=str))
    return sorted(name for name, values in stated.items() if len(values) > 1)


def _short(value: Any) -> str:
    return "none" if value is None else str(value)


def _with_latency(table: pd.DataFrame) -> pd.DataFrame:
    """Add time as a share of no reduction's, timed in the same run; a smaller image's of others."""
    own, whole = table["latency_ms"].astype(float), table["latency_identity_ms"].astype(float)
    smaller = table["label"] == "Smaller image"
    where = [table[name] for name in ("task", "datasets", "cpu", "gpus", "precision")]
    keys = [*where, table["batch_size"].astype(float)]
    usual = whole.mask(smaller).groupby(keys, dropna=False).transform("median")
    return table.assign(latency_share=own / whole.mask(smaller, usual))


def training_curves(runs: Runs) -> pd.DataFrame:
    """Return ``val/main`` over the steps of every training run: ``folder``, ``step``, ``score``."""
    table = [
        (folder, step, score)
        for folder, log in zip(runs.table["folder"], runs.logs, strict=True)
        for step, score in log.items()
    ]
    return pd.DataFrame(table, columns=["folder", "step", "score"]).sort_values(["folder", "step"])


def _log(folder: str, broken: list[Broken]) -> dict[int, float]:
    """Read the logs of a training run; add those that cannot be read to ``broken``.

    Each holds up to the step at which the next one begins: what it has behind that was done over.
    """
    scores: dict[int, float] = {}
    for path in sorted(Path(folder).glob("metrics*.csv"), key=_age):
        try:
            begins, found = _read_log(path)
        except (OSError, ValueError, csv.Error) as error:
            broken.append(Broken(str(path), f"{path} is no log of scores ({error})."))
            continue
        scores = {step: score for step, score in scores.items() if step < begins} | found
    return scores


def _age(path: Path) -> float:
    """Order logs that were set aside (``metrics-1.csv``, ...) before the one in use."""
    number = path.stem.removeprefix("metrics-")
    return int(number) if number.isdigit() else float("inf")


def _read_log(path: Path) -> tuple[float, dict[int, float]]:
    """Return the first step of a log, and the scores by step."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(row.get("step"), row.get("val/main")) for row in csv.DictReader(file)]
    begins = min((int(step) for step, _ in rows if step), default=float("inf"))
    return begins, {int(step): float(score) for step, score in rows if step and score}
