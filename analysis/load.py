"""Read runs and group them into settings that can be compared.

`load` reads folders of runs and tables. `study` gives every run a status, and groups those with a
score into settings: runs that differ only in method, keep ratio and seed.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from elip import identity
from elip.record import (
    RECORD_NAME,
    Record,
    RecordError,
    display_name,
    parse_record,
    read_record,
    read_scores,
)

NO_REDUCTION, RANDOM, SMALLER = "No reduction", "Random", "Smaller image"
BASELINES = (NO_REDUCTION, RANDOM)
"""Every comparison shows these two: the full model, and dropping tokens at random."""

USED, TESTED, ALONE = "used", "tested by another run", "nothing to compare with"
SHELF, TRAINED, TUNED = "off the shelf", "trained with each method", "fine-tuned with each method"
"""The usual ways in which weights were trained."""

TASKS = {
    "SNLIVE": "visual entailment",
    "NLVR2": "two images (NLVR2)",
    "Retrieval": "retrieval",
    "Pretraining": "pre-training",
}
METRICS = {
    "vqa_score": "VQA score",
    "r1": "recall@1",
    "itm_accuracy": "matching accuracy",
    "mlm_accuracy": "masked-word accuracy",
}
"""Display names where they differ. All scores are between 0 and 1."""

PARTS = ("vision", "probe", "reducer", "text", "fusion", "head")
"""Parts of a forward pass that are counted separately."""

COSTS = ["gflops_total", "gflops_training_step", "latency_share", "keep_ratio"]
COSTS += ["fusion_keep_ratio", "tokens_out", *(f"gflops_{part}" for part in PARTS)]
CELL = ["setting", "label", "keep"]
"""A cell is one method at one keep ratio in one setting, over its seeds."""

_SCORE_COLUMNS = [f"scores_{name}" for name in ("split", "image", "example", "score")]


def load(places: Iterable[Path | str]) -> pd.DataFrame:
    """Read all runs in some folders (searched at any depth) and tables.

    Returns:
        One row per run: ``run`` (its folder), ``record`` (None if unreadable), ``outcomes`` (by
        split, the score of each example, indexed by image and example) and ``damage`` (what cannot
        be read).

    Raises:
        FileNotFoundError: A place does not exist or contains no run.
        RecordError: A file is not a table of runs.
    """
    paths = [Path(place) for place in places]
    indexes: dict[bytes, pd.MultiIndex] = {}
    rows: dict[str, tuple[Any, ...]] = {}
    for place in paths:
        if place.is_dir():
            for file in sorted(place.rglob(RECORD_NAME)):
                rows[str(file.resolve())] = _read_folder(file.parent, indexes)
        elif place.exists():
            rows |= _read_table(place, indexes)
        else:
            raise FileNotFoundError(f"{place} does not exist.")
    if not rows:
        raise FileNotFoundError(f"No {RECORD_NAME} in {', '.join(map(str, paths))}.")
    return pd.DataFrame(rows.values(), columns=["run", "record", "outcomes", "damage"])


def _read_folder(folder: Path, indexes: dict[bytes, pd.MultiIndex]) -> tuple[Any, ...]:
    record: Record | None = None
    try:
        record = read_record(folder)
        table = read_scores(folder)
    except RecordError as error:
        return str(folder), record, {}, str(error)
    return str(folder), record, _by_split(table.columns if table else None, indexes), ""


def _read_table(path: Path, indexes: dict[bytes, pd.MultiIndex]) -> dict[str, tuple[Any, ...]]:
    try:
        table = pq.read_table(path, columns=["folder", "record", *_SCORE_COLUMNS])
        lists = [table[name].combine_chunks() for name in _SCORE_COLUMNS]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise RecordError(
            f"{path} is not a table of runs. Make one: python -m experiments.results RUNS --out T."
        ) from error
    rows: dict[str, tuple[Any, ...]] = {}
    texts = zip(table["folder"].to_pylist(), table["record"].to_pylist(), strict=True)
    for number, (folder, text) in enumerate(texts):
        name = f"{path}: {folder}"
        columns = [each[number].values for each in lists]
        try:
            record = parse_record(text or "", name)
            scores = _by_split(None if columns[0] is None else columns, indexes)
            rows[name] = (folder, record, scores, "")
        except RecordError as error:
            rows[name] = (folder, None, {}, str(error))
    return rows


def _by_split(
    columns: Sequence[Any] | None, indexes: dict[bytes, pd.MultiIndex]
) -> dict[str, pd.Series]:
    """Return the scores of each split. Runs on the same examples share an index object."""
    if columns is None:
        return {}
    splits, images, examples, values = map(np.asarray, columns)
    found = {}
    for split in dict.fromkeys(splits):
        here = splits == split
        pair = [images[here], examples[here]]
        key = b"".join(each.tobytes() for each in pair)
        if key not in indexes:
            indexes[key] = pd.MultiIndex.from_arrays(pair, names=["image", "example"])
        found[str(split)] = pd.Series(values[here].astype(float), index=indexes[key])
    return found


@dataclass(frozen=True)
class Setting:
    """Comparable runs: they differ only in method, keep ratio and seed."""

    name: str  # such as "VQA, shipped model, off the shelf"
    group: str  # the name without the task; settings of one group are averaged over their tasks
    task: str
    dataset: str
    split: str
    metric: str  # display name of the score
    seeds: int  # the largest number of any cell
    examples: int
    images: int | None  # None without per-example scores
    chance: float  # the score of guessing; NaN if unknown


@dataclass(frozen=True)
class Study:
    """The scores of some runs, and what happened to each run.

    Attributes:
        scores: One row per seed of a cell: `CELL`, ``seed``, ``group``, ``family`` (of the method),
            ``acts`` (where: "encoder", "fusion", "never" or "image"), ``score``, ``share`` (of the
            same seed's score without reduction), `COSTS`, and ``outcomes`` (scores by image and
            example, or None).
        runs: One row per run: ``run``, ``method``, ``keep ratio``, ``seed``, ``command``,
            ``status``, ``why`` and ``record``.
        settings: The settings by name.
    """

    scores: pd.DataFrame
    runs: pd.DataFrame
    settings: dict[str, Setting]

    @property
    def groups(self) -> dict[str, list[Setting]]:
        """Settings by group."""
        found: dict[str, list[Setting]] = defaultdict(list)
        for setting in self.settings.values():
            found[setting.group].append(setting)
        return found

    def title(self, group: str) -> str:
        """Return the display name of a group: that of its only setting, or with its tasks."""
        settings = self.groups[group]
        return settings[0].name if len(settings) == 1 else f"{len(settings)} tasks, {group}"


def study(runs: pd.DataFrame) -> Study:
    """Give every run of `load` a status, and group those with a score into settings."""
    runs = runs.reset_index(drop=True).assign(status="unreadable", why=list(runs["damage"]))
    known = runs["record"].dropna()
    labels = [(display_name(record.reducer), record.reducer_options) for record in known]
    runs["method"] = pd.Series(method_labels(labels), known.index)
    facts = {"keep ratio": "keep_ratio_asked", "seed": "seed", "command": "command"}
    for name, field in facts.items():
        runs[name] = known.map(attrgetter(field))
    runs.loc[known.index, ["status", "why"]] = _statuses(known)
    fits = {record.run_id: record for record in known if record.command == "fit"}
    rows: list[dict[str, Any]] = []
    for number, run in runs[runs["status"] == USED].iterrows():
        for row in _rows(run["record"], fits):
            if row["score"] is None or not math.isfinite(row["score"]):
                why = f"{row['metric']} on {row['split']} is not a number."
                runs.loc[number, ["status", "why"]] = "not finite", why
            else:
                outcomes = run["outcomes"].get(row["split"])
                rows.append(row | {"run": number, "label": run["method"], "outcomes": outcomes})
    settings: dict[str, Setting] = {}
    if rows:
        parts = _parts(_with_smaller_images(pd.DataFrame(rows)))
        for part in parts:
            first = part.iloc[0]
            alone = part["label"].nunique() < 2
            fate = (ALONE, _why_alone(first, parts)) if alone else (USED, first["setting"])
            mine = runs.index.isin(part["run"]) & runs["status"].eq(USED)
            runs.loc[mine, ["status", "why"]] = fate
            outcomes = next((each for each in part["outcomes"] if each is not None), None)
            settings[first["setting"]] = Setting(
                name=first["setting"],
                **{name: first[name] for name in ("group", "task", "dataset", "split", "metric")},
                seeds=int(part.groupby(["label", "keep"])["seed"].nunique().max()),
                examples=int(part["examples"].max()),
                images=None if outcomes is None else outcomes.index.unique("image").size,
                chance=float(part["chance"].astype(float).mean()),
            )
        scores = _with_shares(_per_seed(pd.concat(parts, ignore_index=True)))
    else:
        names = ["seed", "group", "family", "acts", "score", "share", "outcomes", "metric"]
        scores = pd.DataFrame(columns=[*CELL, *names, *COSTS])
    lost = runs["record"].notna() & runs["damage"].ne("")
    runs.loc[lost, "why"] += " Not compared by example: " + runs["damage"]
    return Study(scores, runs[["run", "method", *facts, "status", "why", "record"]], settings)


def method_labels(methods: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return the names of some methods, with the options in which those of one name differ."""
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name, options in methods:
        for option, value in options.items():
            values[name, option].add(json.dumps(value, sort_keys=True, default=str))
    labels = []
    for name, options in methods:
        differing = sorted(option for option in options if len(values[name, option]) > 1)
        said = ", ".join(f"{option}={options[option]}" for option in differing)
        labels.append(f"{name} ({said})" if said else name)
    return labels


def _statuses(records: pd.Series) -> list[tuple[str, str]]:
    """Return status and reason of each run: `USED` for those with a score that counts."""
    latest: dict[str, Record] = {}
    tested: set[str] = set()
    for record in sorted(records, key=attrgetter("started")):
        if record.status == "completed" and record.command in ("test", "validate"):
            tested |= {header.run_id for header in record.lineage[:1]}
        if record.status == "completed" and record.main_metric and record.evaluations:
            latest[record.run_id] = record

    def status(record: Record) -> tuple[str, str]:
        if record.status != "completed":
            return record.status, record.error or "The record gives no reason."
        if record.command == "predict":
            return "predictions only", "It wrote predictions, not scores."
        if record.main_metric is None or not record.evaluations:
            return "no score", "The record has no score."
        if record.command == "fit" and record.run_id in tested:
            return TESTED, "Its validation score only chose the checkpoint."
        if record is not latest[record.run_id]:
            return "repeated", "There is a later run of the same."
        return USED, ""

    return [status(record) for record in records]


def _rows(record: Record, fits: Mapping[str, Record]) -> Iterator[dict[str, Any]]:
    """Yield a row for each split on which a run has a score."""
    metric = str(record.main_metric)
    evaluations = record.evaluations
    if record.command == "fit":  # prefer test scores: validation chose the checkpoint
        evaluations = tuple(e for e in evaluations if e.split != "val") or evaluations
    maker = next((header for header in record.lineage if header.command == "fit"), None)
    made = record if record.command == "fit" else fits.get(maker.run_id) if maker else None
    steps = made.train_steps if made else maker.steps if maker else None
    whole, fusion = record.reducer == "Identity", record.placement == "fusion"
    columns = record.row()
    keep = columns["keep_ratio_asked"] or columns["fusion_keep_ratio" if fusion else "keep_ratio"]
    time, unreduced = record.latency_ms, record.latency_unreduced_ms
    facts = {
        **{name: columns.get(name) for name in ("protocol", "patches", *COSTS)},
        "gflops_training_step": (made or record).gflops.training_step,
        "latency_share": time / unreduced if time and unreduced else None,
        "keep_ratio": None if fusion else record.keep_ratio,
        "tokens_out": record.tokens_per_block[-1] if record.tokens_per_block else None,
        "options": record.protocol_options,
        "task": TASKS.get(record.task, record.task),
        "mode": _mode(record),
        "weights": _weights(record, steps),
        "family": record.reducer_family or "other",
        "acts": "fusion" if fusion else "never" if whole else "encoder",
        "keep": 1.0 if whole else keep or 1.0,
        "asked": record.keep_ratio_asked is not None,
        "schedule": json.dumps(record.stated_config.get("model", {}).get("schedule")),
        "own_seed": record.seed,
        "training_seed": record.seed if record.command == "fit" else maker and maker.seed,
        "metric": METRICS.get(metric, metric),
    }
    for evaluation in evaluations:
        yield facts | {
            "dataset": evaluation.dataset,
            "split": evaluation.split,
            "examples": evaluation.examples,
            "score": evaluation.metrics.get(metric),
            "chance": evaluation.chance.get(metric),
        }


def _mode(record: Record) -> str:
    """Return how a run's weights were trained; "" if no method was involved at all."""
    trainings = [header for header in record.lineage if header.command == "fit"]
    before = trainings
    if record.command != "fit":
        if not trainings:
            return "random weights" if record.weights == "random" else "weights of unknown training"
        maker, before = trainings[0], trainings[1:]
        schedule = record.config.get("model", {}).get("schedule")
        schedule = schedule or {"keep_ratio": record.keep_ratio_asked}
        if maker.method != identity.method_name(record.reducer, schedule):
            return SHELF if maker.reducer == "Identity" else f"trained with {maker.method}"
    reducers = {header.reducer for header in before}
    if reducers | {record.reducer} == {"Identity"}:
        return ""
    if reducers == {"Identity"}:
        return TUNED
    if reducers <= {record.reducer}:
        return TRAINED
    return f"pre-trained with {before[-1].method}, fine-tuned with each method"


def _weights(record: Record, steps: int | None) -> str:
    given = "" if record.config.get("ckpt_path") else record.config.get("model", {}).get("weights")
    shipped = "experiments/shapes/models" in f"{record.weights} {given}"
    if shipped and record.command != "fit":
        return "shipped model"
    if record.command == "fit" or record.lineage:
        return "" if steps is None else f"{steps:,} steps"
    return "" if record.weights == "random" else Path(record.weights).name


def _with_smaller_images(scores: pd.DataFrame) -> pd.DataFrame:
    """Turn runs without reduction on smaller images into a method of the full-size setting."""
    size = ("model.meter.image_size", "data.image_size", "parent.protocol")
    plain = scores["options"].map(lambda options: identity.digest(identity.without(options, size)))
    for _, rows in scores.groupby([plain, "task", "split"], sort=False):
        most = rows["patches"].max()
        full = rows[rows["patches"] == most]
        small = rows.index[(rows["acts"] == "never") & (rows["patches"] < most)]
        if len(small) and full["protocol"].nunique() == 1:
            mode = next((mode for mode in full["mode"] if mode), "")
            scores.loc[small, ["protocol", "weights"]] = list(full.iloc[0][["protocol", "weights"]])
            scores.loc[small, ["mode", "label", "acts"]] = [mode, SMALLER, "image"]
            scores.loc[small, "keep"] = scores["patches"] / most
            scores.loc[small, "latency_share"] = np.nan  # it was timed against itself
    return scores


def _parts(scores: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the rows of each setting, with ``setting``, ``group`` and ``seed``.

    All ways to train with a method share the runs in which no method was involved.
    """
    parts: list[pd.DataFrame] = []
    for _, rows in scores.groupby(["protocol", "task", "dataset", "split"], sort=False):
        bare = rows[rows["mode"] == ""]
        trained = [mine for _, mine in rows[rows["mode"] != ""].groupby("mode", sort=False)]
        for mine in trained or [bare.assign(mode="no reduction only")]:
            if not (mine["acts"] == "never").any():
                own = mine[["mode", "weights"]].iloc[0]
                mine = pd.concat([mine, bare.assign(**own)])
            # Scorings of one trained model are seeds only if it is the only one.
            training = mine["training_seed"]
            several = training.notna().all() and training.nunique() > 1
            seeds = (training if several else mine["own_seed"]).fillna(-1).astype(int)
            # Runs of one schedule without a configured keep ratio share their mean keep ratio.
            measured = ~mine["asked"] & mine["acts"].isin(["encoder", "fusion"])
            mean = mine.groupby(["label", "schedule"])["keep"].transform("mean")
            keeps = mine["keep"].mask(measured, mean).round(3)
            parts.append(mine.assign(seed=seeds, keep=keeps))
    firsts = [part.iloc[0] for part in parts]
    names = []
    for first in firsts:
        words = [first["weights"], first["mode"]]
        words = words[::-1] if first["mode"] in (TRAINED, TUNED) else words
        names.append([first["task"], *filter(None, words)])
    # Data sets are never averaged. Other settings of one name get the first thing that differs.
    steps: list[tuple[int, Callable[[list[pd.Series]], list[str]]]] = [
        (1, lambda same: [f"on {each['dataset']}" for each in same]),
        (0, lambda same: [f"{each['split']} split" for each in same]),
        (0, _first_option),
        (0, lambda same: [f"variant {number}" for number, _ in enumerate(same, 1)]),
    ]
    for begin, describe in steps:
        alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, name in enumerate(names):
            alike[tuple(name[begin:])].append(number)
        for numbers in alike.values():
            said = describe([firsts[number] for number in numbers])
            for number, word in zip(numbers, said, strict=True) if len(set(said)) > 1 else ():
                names[number].append(word)
    return [
        part.assign(setting=", ".join(name), group=", ".join(name[1:]))
        for part, name in zip(parts, names, strict=True)
    ]


def _first_option(same: Sequence[pd.Series]) -> list[str]:
    """Name the value of the first option in which settings differ."""
    options = [identity.without(each["options"], ("parent", "fingerprint")) for each in same]
    for name in dict.fromkeys(chain.from_iterable(options)):
        values = [each.get(name) for each in options]
        if any(value != values[0] for value in values):
            words = name.rsplit(".", 1)[-1].replace("_", " ")
            return [f"{words} {'default' if value is None else value}" for value in values]
    return [""] * len(same)


def _why_alone(first: pd.Series, parts: Sequence[pd.DataFrame]) -> str:
    """Return the options in which a setting's runs differ from the most similar setting."""
    others = [part.iloc[0] for part in parts]
    others = [
        other for other in others
        if other["task"] == first["task"] and other["setting"] != first["setting"]
    ]  # fmt: skip
    if not others:
        return "No other method was run on this task."
    differs = [identity.differences(first["options"], other["options"]) for other in others]
    closest = min(range(len(others)), key=lambda number: len(differs[number]))
    said = [
        f"{name} ({'; there '.join('default' if each is None else str(each) for each in pair)})"
        for name, pair in differs[closest].items()
    ]
    what = ", ".join(said[:3]) + f" and {len(said) - 3} more" * (len(said) > 3)
    return f"Differs from “{others[closest]['setting']}” in {what or 'its weights or split'}."


def _per_seed(scores: pd.DataFrame) -> pd.DataFrame:
    """Average the runs of one seed of a cell, such as several scorings of one model."""
    keys, numbers = [*CELL, "seed"], ["score", *COSTS]
    scores = scores.astype(dict.fromkeys(numbers, float))
    if not scores.duplicated(keys).any():
        return scores
    groups = scores.groupby(keys, sort=False)
    found = groups[["group", "family", "acts", "metric"]].first().join(groups[numbers].mean())
    outcomes = [  # the mean of each example that all runs have
        None if each.isna().any() else pd.concat(list(each), axis=1, join="inner").mean(axis=1)
        for _, each in groups["outcomes"]
    ]
    return found.assign(outcomes=pd.Series(outcomes, found.index, object)).reset_index()


def _with_shares(scores: pd.DataFrame) -> pd.DataFrame:
    """Add the share of no reduction: of the same seed, or else of the mean over its seeds."""
    whole = scores[scores["acts"] == "never"].rename(columns={"score": "base"})
    keys = ["setting", "seed"]
    own = scores[keys].merge(whole.drop_duplicates(keys)[[*keys, "base"]], on=keys, how="left")
    mean = scores["setting"].map(whole.groupby("setting")["base"].mean())
    base = pd.Series(own["base"].to_numpy(), scores.index).fillna(mean)
    return scores.assign(share=scores["score"] / base.where(base > 0))
