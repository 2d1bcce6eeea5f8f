"""Read runs and group them into settings that can be compared.

`load` reads folders of runs and tables. `study` accounts for every run and groups those with a
score into settings: runs that differ only in method, keep ratio and seed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from elip import identity
from elip.record import (
    RECORD_NAME,
    Record,
    RecordError,
    RunHeader,
    display_name,
    parse_record,
    read_record,
    read_scores,
)

Array = NDArray[np.float64]

NO_REDUCTION, RANDOM, SMALLER = "No reduction", "Random", "Smaller image"
BASELINES = (NO_REDUCTION, RANDOM)
"""Every comparison shows these two: the full model, and dropping tokens at random."""

SHELF, TRAINED, TUNED, GIVEN = (
    "off the shelf",
    "trained with each method",
    "fine-tuned with each method",
    "weights of unknown training",
)
"""How the weights of a setting were trained."""

TASKS = {
    "VQA": "VQA",
    "SNLIVE": "visual entailment",
    "NLVR2": "two images (NLVR2)",
    "Retrieval": "retrieval",
    "Pretraining": "pre-training",
}
METRICS = {
    "vqa_score": "VQA score",
    "accuracy": "accuracy",
    "r1": "recall@1",
    "itm_accuracy": "matching accuracy",
    "mlm_accuracy": "masked-word accuracy",
}
"""Display names of the scores, all between 0 and 1."""

PARTS = ("vision", "probe", "reducer", "text", "fusion", "head")
"""Parts of a forward pass that are counted separately."""

COSTS = (
    "gflops_total",
    "gflops_training_step",
    "latency_share",
    "keep_ratio",
    "fusion_keep_ratio",
    "tokens_out",
    *(f"gflops_{part}" for part in PARTS),
)
"""Cost columns of `Study.scores`."""

CELL = ["setting", "label", "keep"]
"""A cell is one method at one keep ratio in one setting, over its seeds."""

USED, TESTED = "used", "tested by another run"
"""The status of runs whose scores, or whose checkpoint's scores, are in the means."""

_SCORE_COLUMNS = [f"scores_{name}" for name in ("split", "image", "example", "score")]
_IMAGE_SIZE = ("model.meter.image_size", "data.image_size")


@dataclass(frozen=True, eq=False)
class Scores:
    """The main score of every example of one run on one split.

    Attributes:
        examples: [N] example numbers, ascending.
        images: [N] image of each example.
        values: [N] scores.
    """

    examples: NDArray[np.int64]
    images: NDArray[np.int64]
    values: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Run:
    """The folder, the record and the per-example scores (by split) of one run."""

    folder: str
    record: Record
    scores: dict[str, Scores]


@dataclass(frozen=True)
class Runs:
    """Runs that could be read, and the path and error of each file that could not."""

    runs: tuple[Run, ...]
    unreadable: tuple[tuple[str, str], ...] = ()


def load(places: Iterable[Path | str]) -> Runs:
    """Read all runs in some folders and tables.

    Args:
        places: Folders, searched for ``run.json`` at any depth, and ``table.parquet`` files.

    Raises:
        FileNotFoundError: A place does not exist or contains no run.
        RecordError: A table is damaged or is not a table of runs.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if not place.exists():
            raise FileNotFoundError(f"{place} does not exist.")
        found += [place] if place.is_file() else _records(place)
    if not found:
        raise FileNotFoundError(f"No {RECORD_NAME} in {', '.join(map(str, places))}.")
    runs: dict[str, Run] = {}
    unreadable: dict[str, str] = {}
    known: dict[bytes, Scores] = {}
    for path in found:
        if path.name != RECORD_NAME:
            _read_table(path, runs, unreadable, known)
            continue
        folder = path.parent
        try:
            record = read_record(path)
        except RecordError as error:
            unreadable[str(path)] = str(error)
            continue
        scores: dict[str, Scores] = {}
        try:
            table = read_scores(folder)
            if table is not None:
                scores = _by_split([table[name] for name in table.column_names], known)
        except RecordError as error:
            unreadable[str(folder)] = str(error)
        runs[str(folder.resolve())] = Run(str(folder), record, scores)
    return Runs(tuple(runs.values()), tuple(unreadable.items()))


def _records(place: Path) -> list[Path]:
    found = []
    for folder, below, files in os.walk(place):
        below[:] = sorted(name for name in below if name not in ("checkpoints", "tensorboard"))
        if RECORD_NAME in files:
            found.append(Path(folder, RECORD_NAME))
    return found


def _read_table(
    path: Path, runs: dict[str, Run], unreadable: dict[str, str], known: dict[bytes, Scores]
) -> None:
    columns = ["folder", "record", *_SCORE_COLUMNS]
    try:
        table = pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise RecordError(f"{path} is not a table of runs: {str(error).splitlines()[0]}") from error
    if table.column_names != columns:
        raise RecordError(
            f"{path} is not a table of runs. Make one: python -m experiments.results RUNS --out T."
        )
    folders, records = table["folder"].to_pylist(), table["record"].to_pylist()
    lists = [table[name].combine_chunks() for name in _SCORE_COLUMNS]
    for row, (folder, text) in enumerate(zip(folders, records, strict=True)):
        place = f"{path}: {folder}"
        try:
            record = parse_record(text or "", place)
        except RecordError as error:
            unreadable[place] = str(error)
            continue
        parts = [column[row].values for column in lists]
        scores = {} if parts[0] is None else _by_split(parts, known)
        runs[place] = Run(str(folder), record, scores)


def _by_split(columns: Sequence[Any], known: dict[bytes, Scores]) -> dict[str, Scores]:
    """Return scores by split from the columns split, image, example, score.

    Runs with the same examples share their index arrays through ``known``.
    """
    splits, images, examples, values = (np.asarray(column) for column in columns)
    found = {}
    for split in dict.fromkeys(splits):
        here = slice(None) if (splits == split).all() else splits == split
        numbers, of, own = examples[here], images[here], values[here]
        if (np.diff(numbers) <= 0).any():
            order = np.argsort(numbers, kind="stable")
            numbers, of, own = numbers[order], of[order], own[order]
        key = numbers.tobytes() + of.tobytes()
        first = known.setdefault(key, Scores(numbers, of, own))
        found[str(split)] = Scores(first.examples, first.images, own)
    return found


@dataclass(frozen=True)
class Setting:
    """Comparable runs: they differ only in method, keep ratio and seed.

    Attributes:
        name: Such as "VQA, shipped model, off the shelf".
        group: The name without the task. Settings of one group are averaged over their tasks.
        task: Display name of the task.
        dataset: Name of the dataset.
        split: Name of the split.
        metric: Display name of the score.
        mode: How the weights were trained: `SHELF`, `TRAINED`, `TUNED`, ...
        seeds: The largest number of seeds of any cell.
        examples: Number of scored examples.
        images: Number of their images; None if per-example scores are missing.
        chance: Score of guessing; None if unknown.
    """

    name: str
    group: str
    task: str
    dataset: str
    split: str
    metric: str
    mode: str
    seeds: int
    examples: int
    images: int | None
    chance: float | None


@dataclass(frozen=True)
class Study:
    """The scores of a set of runs, and what happened to each run.

    Attributes:
        scores: One row per seed of a cell: `CELL`, ``seed``, ``group``, ``family`` (of the method),
            ``acts`` (where: "encoder", "fusion", "never" or "image"), ``score``, ``share`` (of the
            same seed's score without reduction), `COSTS`, and ``outcomes`` (`Scores` or None).
        runs: One row per run: ``run``, ``method``, ``keep ratio``, ``seed``, ``command``,
            ``status`` and ``why``.
        settings: The settings by name.
    """

    scores: pd.DataFrame
    runs: pd.DataFrame
    settings: dict[str, Setting]

    @property
    def groups(self) -> dict[str, list[Setting]]:
        """Settings by group."""
        found: dict[str, list[Setting]] = {}
        for setting in self.settings.values():
            found.setdefault(setting.group, []).append(setting)
        return found


def study(found: Runs) -> Study:
    """Account for every run, and group those with a score into settings."""
    fates: list[tuple[str, str]] = [("", "")] * len(found.runs)
    labels = method_labels([run.record for run in found.runs])
    fits = {run.record.run_id: run.record for run in found.runs if run.record.command == "fit"}
    rows: list[dict[str, Any]] = []
    for number in _latest(found.runs, fates):
        rows += _scored(number, found.runs, labels[number], fits, fates)
    if rows:
        scores = _with_settings(pd.DataFrame(rows), fates)
        settings = _settings(scores)
        scores = _with_shares(_per_seed(scores))
    else:
        names = ["run", "seed", "group", "family", "acts", "score", "share", "outcomes", "metric"]
        scores, settings = pd.DataFrame(columns=[*CELL, *names, *COSTS]), {}
    return Study(scores, _account(found, labels, fates), settings)


def method_labels(records: Sequence[Record]) -> list[str]:
    """Return the reducer of each record, with the options that differ between its runs."""
    options: dict[str, dict[str, set[str]]] = {}
    for record in records:
        seen = options.setdefault(record.reducer, {})
        for name, value in record.reducer_options.items():
            seen.setdefault(name, set()).add(json.dumps(value, sort_keys=True, default=str))
    labels = []
    for record in records:
        own = record.reducer_options
        differing = sorted(name for name in own if len(options[record.reducer][name]) > 1)
        said = ", ".join(f"{name}={own[name]}" for name in differing)
        name = display_name(record.reducer)
        labels.append(f"{name} ({said})" if said else name)
    return labels


def _latest(runs: Sequence[Run], fates: list[tuple[str, str]]) -> list[int]:
    """Return the numbers of the runs that count; of repeated runs, the latest."""
    tested = {
        run.record.lineage[0].run_id
        for run in runs
        if run.record.command in ("test", "validate")
        and run.record.status == "completed"
        and run.record.lineage
    }
    latest: dict[str, int] = {}
    for number, run in enumerate(runs):
        record = run.record
        if record.status != "completed":
            fates[number] = (record.status, record.error or "The record gives no reason.")
        elif record.command == "predict":
            fates[number] = ("predictions only", "It wrote predictions, not scores.")
        elif record.main_metric is None or not record.evaluations:
            fates[number] = ("no score", "The record has no score.")
        elif record.command == "fit" and record.run_id in tested:
            fates[number] = (TESTED, "Its validation score only chose the checkpoint.")
        else:
            before = latest.get(record.run_id)
            if before is not None:
                older = min(before, number, key=lambda each: runs[each].record.started)
                newer = before + number - older
                fates[older] = ("repeated", f"{runs[newer].folder} is a later run of the same.")
                number = newer
            latest[record.run_id] = number
    return sorted(latest.values())


def _scored(
    number: int,
    runs: Sequence[Run],
    label: str,
    fits: dict[str, Record],
    fates: list[tuple[str, str]],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each split on which a run has a finite score."""
    run = runs[number]
    record = run.record
    metric = str(record.main_metric)
    evaluations = record.evaluations
    if record.command == "fit":  # prefer test scores: validation chose the checkpoint
        evaluations = tuple(e for e in evaluations if e.split != "val") or evaluations
    maker = next((header for header in record.lineage if header.command == "fit"), None)
    made = record if record.command == "fit" else fits.get(maker.run_id) if maker else None
    steps = made.train_steps if made else maker.steps if maker else None
    unreduced, time = record.latency_unreduced_ms, record.latency_ms
    fusion = record.placement == "fusion"
    keep = record.keep_ratio_asked
    if keep is None:
        keep = record.fusion_keep_ratio if fusion else record.keep_ratio
    for evaluation in evaluations:
        score = evaluation.metrics.get(metric)
        if score is None or not math.isfinite(score):
            fates[number] = ("not finite", f"{metric} on {evaluation.split} is not a number.")
            continue
        yield {
            "run": number,
            "protocol": record.protocol,
            "options": record.protocol_options,
            "task": TASKS.get(record.task, record.task),
            "dataset": evaluation.dataset,
            "split": evaluation.split,
            "mode": _mode(record),
            "weights": _weights(record, steps),
            "label": label,
            "family": record.reducer_family or "other",
            "acts": "fusion" if fusion else "never" if label == NO_REDUCTION else "encoder",
            "keep": 1.0 if label == NO_REDUCTION or keep is None else keep,
            "schedule": json.dumps(record.stated_config.get("model", {}).get("schedule")),
            "asked": record.keep_ratio_asked is not None,
            "own_seed": record.seed,
            "training_seed": record.seed if record.command == "fit" else maker and maker.seed,
            "score": score,
            "metric": METRICS.get(metric, metric),
            "chance": evaluation.chance.get(metric),
            "examples": evaluation.examples,
            "outcomes": run.scores.get(evaluation.split),
            "patches": record.patches,
            "gflops_total": record.gflops.total,
            "gflops_training_step": (made or record).gflops.training_step,
            "latency_share": time / unreduced if time and unreduced else None,
            "keep_ratio": None if fusion else record.keep_ratio,
            "fusion_keep_ratio": record.fusion_keep_ratio,
            "tokens_out": record.tokens_per_block[-1] if record.tokens_per_block else None,
            "tokens_per_block": record.tokens_per_block,
            **{f"gflops_{part}": getattr(record.gflops, part) for part in PARTS},
        }


def _mode(record: Record) -> str:
    """Return how a run's weights were trained; "" if no reduction was involved at all."""
    trainings = [header for header in record.lineage if header.command == "fit"]
    if record.command == "fit":
        own, before = True, trainings
    elif trainings:
        own, before = _same_method(trainings[0], record), trainings[1:]
    elif record.weights != "random":
        return GIVEN
    else:
        return "random weights"
    reducers = {header.reducer for header in trainings}
    if reducers | {record.reducer} == {"Identity"}:
        return ""
    if not own:
        maker = trainings[0]
        return SHELF if maker.reducer == "Identity" else f"trained with {maker.method}"
    if {header.reducer for header in before} == {"Identity"}:
        return TUNED
    if {header.reducer for header in before} <= {record.reducer}:
        return TRAINED
    return f"pre-trained with {before[-1].method}, fine-tuned with each method"


def _same_method(maker: RunHeader, record: Record) -> bool:
    schedule = record.config.get("model", {}).get("schedule")
    schedule = schedule or {"keep_ratio": record.keep_ratio_asked}
    return maker.method == identity.method_name(record.reducer, schedule)


def _weights(record: Record, steps: int | None) -> str:
    given = "" if record.config.get("ckpt_path") else record.config.get("model", {}).get("weights")
    shipped = "experiments/shapes/models" in f"{record.weights} {given}"
    if shipped and record.command != "fit":
        return "shipped model"
    if record.command == "fit" or record.lineage:
        return "" if steps is None else f"{steps:,} steps"
    return "" if record.weights == "random" else Path(record.weights).name


def _with_settings(scores: pd.DataFrame, fates: list[tuple[str, str]]) -> pd.DataFrame:
    """Add ``setting`` and ``group`` to the scores, and record the fate of their runs."""
    scores = _with_smaller_images(scores)
    place = ["protocol", "task", "dataset", "split"]
    parts: list[pd.DataFrame] = []
    for _, rows in scores.groupby(place, sort=False):
        bare = rows[rows["mode"] == ""]
        for mode, mine in rows[rows["mode"] != ""].groupby("mode", sort=False):
            if NO_REDUCTION not in set(mine["label"]):
                mine = pd.concat([mine, bare.assign(mode=mode, weights=mine["weights"].iloc[0])])
            parts.append(mine)
        if (rows["mode"] == "").all():
            parts.append(bare.assign(mode="no reduction only"))
    parts = _named(parts)
    for mine in parts:
        if mine["label"].nunique() < 2:
            why = _why_alone(mine, [part for part in parts if part is not mine])
            for number in mine["run"]:
                fates[number] = ("nothing to compare with", why)
    joined = pd.concat(parts, ignore_index=True)
    measured = ~joined["asked"] & joined["acts"].isin(["encoder", "fusion"])
    mean = joined.groupby(["setting", "label", "schedule"])["keep"].transform("mean")
    joined["keep"] = joined["keep"].mask(measured, mean).round(3)
    for number, name in zip(joined["run"], joined["setting"], strict=True):
        if fates[number][0] == "":
            fates[number] = (USED, name)
    return joined


def _with_smaller_images(scores: pd.DataFrame) -> pd.DataFrame:
    """Turn runs without reduction on smaller images into a method of the full-size setting."""
    ignored = (*_IMAGE_SIZE, "parent.protocol")
    columns = scores[["options", "task", "split"]].itertuples(index=False)
    plain = [identity.digest([identity.without(o, ignored), *place]) for o, *place in columns]
    scores = scores.assign(plain=plain)
    largest = scores.groupby("plain")["patches"].transform("max")
    small = (scores["label"] == NO_REDUCTION) & (scores["patches"] < largest)
    for index in scores.index[small]:
        same = scores[(scores["plain"] == scores.at[index, "plain"]) & ~small]
        same = same[same["patches"] == largest[index]]
        if same["protocol"].nunique() != 1:
            continue
        first = same.iloc[0]
        changes = {
            "protocol": first["protocol"],
            "weights": first["weights"],
            "mode": next((mode for mode in same["mode"] if mode), ""),
            "label": SMALLER,
            "acts": "image",
            "family": "baseline",
            "keep": scores.at[index, "patches"] / largest[index],
            "latency_share": np.nan,  # it was timed against itself
        }
        for name, value in changes.items():
            scores.loc[index, name] = value
    return scores


def _named(parts: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Name each setting; settings of one name get the dataset, split or option that differs."""
    firsts = [part.iloc[0] for part in parts]
    names: list[list[str]] = []
    for first in firsts:
        trained = first["mode"] in (TRAINED, TUNED)
        order = ("task", "mode", "weights") if trained else ("task", "weights", "mode")
        names.append([first[name] for name in order if first[name]])
    for describe in (_dataset, _split, _option):
        for same in _same_names(names):
            others = [same[0] if number != same[0] else same[1] for number in same]
            words = [describe(firsts[i], firsts[j]) for i, j in zip(same, others, strict=True)]
            if len(set(words)) > 1:
                for number, word in zip(same, words, strict=True):
                    names[number].append(word)
    for same in _same_names(names):
        for rank, number in enumerate(same, 1):
            names[number].append(f"variant {rank}")
    return [
        part.assign(setting=", ".join(name), group=", ".join(name[1:]))
        for part, name in zip(parts, names, strict=True)
    ]


def _same_names(names: Sequence[Sequence[str]]) -> list[list[int]]:
    places: dict[tuple[str, ...], list[int]] = {}
    for number, name in enumerate(names):
        places.setdefault(tuple(name), []).append(number)
    return [same for same in places.values() if len(same) > 1]


def _dataset(one: pd.Series, other: pd.Series) -> str:
    return f"on {one['dataset']}"


def _split(one: pd.Series, other: pd.Series) -> str:
    return "validation" if one["split"] == "val" else str(one["split"])


def _option(one: pd.Series, other: pd.Series) -> str:
    for name, (value, _) in identity.differences(one["options"], other["options"]).items():
        if not name.startswith(("parent.", "fingerprint.")):
            words = name.rsplit(".", 1)[-1].replace("_", " ")
            return f"{words} {'default' if value is None else value}"
    return ""


def _why_alone(mine: pd.DataFrame, others: Sequence[pd.DataFrame]) -> str:
    """Return the options in which runs differ from the most similar setting."""
    first, closest = mine.iloc[0], None
    for each in others:
        other = each.iloc[0]
        if other["task"] == first["task"]:
            differs = identity.differences(first["options"], other["options"])
            rank = (len(differs), -len(each))
            if closest is None or rank < closest[0]:
                closest = rank, differs, other["setting"]
    if closest is None:
        return "No other method was run on this task."
    _, differs, setting = closest
    shown = [
        "the training of its weights"
        if name.startswith("parent.")
        else f"the content of {name.removeprefix('fingerprint.')}"
        if name.startswith("fingerprint.")
        else f"{name} ({own}; there {there})"
        for name, (own, there) in differs.items()
    ]
    if not shown:
        return f"Its weights or split differ from those of “{setting}”."
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return f"Differs from “{setting}” in {', '.join(shown[:3])}{more}."


def _settings(scores: pd.DataFrame) -> dict[str, Setting]:
    found = {}
    for name, rows in scores.groupby("setting", sort=False):
        first = rows.iloc[0]
        outcomes = next((each for each in rows["outcomes"] if each is not None), None)
        chance = rows["chance"].astype(float).mean()
        found[str(name)] = Setting(
            name=str(name),
            group=str(first["group"]),
            task=str(first["task"]),
            dataset=str(first["dataset"]),
            split=str(first["split"]),
            metric=str(first["metric"]),
            mode=str(first["mode"]),
            seeds=int(_seeds(rows).groupby([rows["label"], rows["keep"]]).nunique().max()),
            examples=int(rows["examples"].max()),
            images=None if outcomes is None else len(np.unique(outcomes.images)),
            chance=None if np.isnan(chance) else float(chance),
        )
    return found


def _seeds(rows: pd.DataFrame) -> pd.Series:
    """Return the training seeds of the runs; the scoring seeds if all share one trained model."""
    several = rows["training_seed"].notna().all() and rows["training_seed"].nunique() > 1
    return rows["training_seed" if several else "own_seed"].fillna(-1).astype(int)


def _per_seed(scores: pd.DataFrame) -> pd.DataFrame:
    """Average the runs of one seed of a cell, such as several scorings of one model."""
    seeds = [_seeds(rows) for _, rows in scores.groupby("setting")]
    scores = scores.assign(seed=pd.concat(seeds))
    keys = [*CELL, "seed"]
    first = scores.drop_duplicates(keys)
    if len(first) == len(scores):
        return scores
    numbers = ["score", *COSTS]
    means = scores.astype(dict.fromkeys(numbers, float)).groupby(keys)[numbers].mean()
    joined = {
        key: mean_scores(list(rows["outcomes"])) for key, rows in scores.groupby(keys, sort=False)
    }
    first = first.drop(columns=numbers).merge(means.reset_index(), on=keys)
    index = first[keys].itertuples(index=False, name=None)
    return first.assign(outcomes=pd.Series([joined[key] for key in index], dtype=object))


def _with_shares(scores: pd.DataFrame) -> pd.DataFrame:
    whole = scores[scores["label"] == NO_REDUCTION]
    same = whole.set_index(["setting", "seed"])["score"]
    same = same[~same.index.duplicated()]
    own = same.reindex(pd.MultiIndex.from_frame(scores[["setting", "seed"]])).to_numpy()
    mean = scores["setting"].map(whole.groupby("setting")["score"].mean())
    base = pd.Series(own, index=scores.index).fillna(mean)
    return scores.assign(share=scores["score"] / base.where(base > 0))


def mean_scores(several: Sequence[Scores | None]) -> Scores | None:
    """Return the mean score of each example that all runs have; None if a run has no scores."""
    if not several or any(each is None for each in several):
        return None
    runs = [each for each in several if each is not None]
    examples, images = runs[0].examples, runs[0].images
    for run in runs[1:]:
        if run.examples is not examples:
            both = np.isin(examples, run.examples, assume_unique=True)
            examples, images = examples[both], images[both]
    picked = [
        run.values
        if len(run.examples) == len(examples)
        else run.values[np.searchsorted(run.examples, examples)]
        for run in runs
    ]
    return Scores(examples, images, np.asarray(np.mean(picked, axis=0, dtype=np.float64)))


def _account(found: Runs, labels: Sequence[str], fates: list[tuple[str, str]]) -> pd.DataFrame:
    names = ["run", "method", "keep ratio", "seed", "command", "status", "why"]
    rows: list[tuple[Any, ...]] = []
    for run, label, fate in zip(found.runs, labels, fates, strict=True):
        record = run.record
        rows.append(
            (run.folder, label, record.keep_ratio_asked, record.seed, record.command, *fate)
        )
    for path, why in found.unreadable:
        rows.append((path, None, None, None, None, "unreadable", why))
    return pd.DataFrame(rows, columns=names)
