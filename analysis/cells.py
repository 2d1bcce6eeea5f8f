"""From runs to cells: one method at one keep ratio in one setting, over its seeds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd

from analysis.load import Runs
from analysis.statistics import t_interval

ENDS = ("Identity", "Random")
"""No reduction, and chance: the two ends that every comparison shows."""

KEYS = ["setting", "label", "keep"]
"""What names a cell."""

WITHOUT_RATIO = ("Identity", "Smaller image")
"""Labels that no keep ratio belongs to."""

COSTS = {
    "keep_ratio": "measured keep ratio",
    "gflops_total": "GFLOPs of a forward pass",
    "gflops_training_step": "GFLOPs of a training step",
    "latency_share": "inference time as a share of no reduction's",
    "tokens_out": "tokens that leave the encoder",
}
"""Columns of a cell beside its score; medians over its runs."""


@dataclass(frozen=True)
class Study:
    """What a set of runs says.

    Attributes:
        scores: One row a run and split: `KEYS`, ``seed``, ``score`` (the main metric), ``metric``,
            ``chance``, ``share`` (of the same seed's score without reduction, or of the mean one
            where that seed lacks), costs, ``outcomes`` (scores of single examples, or None).
        cells: One row a cell: `KEYS`, ``family``, ``score`` with ``low``, ``high`` and ``seeds``,
            ``share`` with ``share_low`` and ``share_high``, and the columns of `COSTS`.
        missing: One row a cell that other methods of the setting have: `KEYS` and ``why``.
        notes: What a reader must know: repeated runs, mixed configurations.
    """

    scores: pd.DataFrame
    cells: pd.DataFrame
    missing: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def settings(self) -> list[str]:
        """Names of the settings, in order."""
        return [str(name) for name in self.scores["setting"].unique()] if len(self.scores) else []


def study(runs: Runs) -> Study:
    """Join the seeds of every cell and find what is missing."""
    scores = _scores(runs)
    if scores.empty:
        empty = pd.DataFrame(
            columns=[*KEYS, "family", "metric", "seed", "seeds", "score", "outcomes", *COSTS]
        )
        return Study(empty, empty, pd.DataFrame(columns=[*KEYS, "why"]), ())
    scores, repeated = _latest(scores)
    scores, selecting = _tested(scores)
    scores, mixed = _apart(scores)
    scores = _with_shares(_with_identity_off_the_shelf(scores))
    notes = (*repeated, *selecting, *mixed, *_without_examples(scores))
    return Study(scores, _cells(scores), _missing(scores, runs), notes)


def _scores(runs: Runs) -> pd.DataFrame:
    rows = []
    for number, record in enumerate(runs.records):
        if record.status != "completed" or record.main_metric is None:
            continue
        run = runs.table.iloc[number]
        for evaluation in record.evaluations:
            score = evaluation.metrics.get(record.main_metric)
            if score is None:
                continue
            rows.append(
                {
                    "setting": _setting(run, evaluation.dataset, evaluation.split),
                    "work": f"{run['task']}, {run['datasets']}",
                    "label": run["label"],
                    "keep": run["keep"],
                    "seed": run["seed"],
                    "score": score,
                    "metric": record.main_metric,
                    "chance": evaluation.chance.get(record.main_metric),
                    "family": run["reducer_family"] or "other",
                    "mode": run["mode"],
                    "subcommand": run["subcommand"],
                    "setup": run["setup"],
                    "started": run["started"],
                    "run": number,
                    "outcomes": runs.outcomes[number].get(evaluation.split),
                    **{name: run[name] for name in COSTS},
                }
            )
    return pd.DataFrame(rows)


def _setting(run: pd.Series, dataset: str, split: str) -> str:
    place = split if split.startswith(dataset) else f"{dataset} {split}"
    return f"{run['task']}, {place}" + (f", {run['mode']}" if run["mode"] != "trained" else "")


def _latest(scores: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Keep one run a seed and setup: scored by its own command before by fit, then the latest."""
    order = scores.assign(own=scores["subcommand"] != "fit").sort_values(["own", "started"])
    kept = order.drop_duplicates([*KEYS, "setup", "seed"], keep="last")
    dropped = len(scores) - len(kept)
    said = f"{dropped} scores of repeated runs are left out; the latest stands."
    kept = kept.sort_values("run").drop(columns="own").reset_index(drop=True)
    return kept, (said,) if dropped else ()


def _tested(scores: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Leave out the validation that chose a training run's weights, where all runs were tested."""
    fitted = scores["subcommand"] == "fit"
    trained = ~fitted & (scores["mode"] == "trained")
    cells = list(zip(scores["work"], scores["label"], scores["keep"], scores["seed"], strict=True))
    tested = {cell for cell, there in zip(cells, trained, strict=True) if there}
    open_work = {
        cell[0] for cell, fit in zip(cells, fitted, strict=True) if fit and cell not in tested
    }
    left_out = fitted & ~scores["work"].isin(open_work)
    said = (
        f"{int(left_out.sum())} validation scores by which training runs chose their weights are "
        "left out: all of these runs were tested."
    )
    return scores[~left_out].reset_index(drop=True), (said,) if left_out.any() else ()


def _apart(scores: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Keep runs of different configurations apart where they would fall into one cell."""
    own = scores["subcommand"] != "fit"
    beaten = scores.assign(own=own).groupby(KEYS)["own"].transform("max") & ~own
    scores = scores[~beaten].reset_index(drop=True)
    setups = scores.groupby(KEYS)["setup"].transform("nunique")
    mixed = setups > 1
    if not mixed.any():
        return scores, ()
    names = sorted(scores.loc[mixed, "label"].unique())
    labels = scores["label"].where(~mixed, scores["label"] + " #" + scores["setup"].str[:4])
    note = (
        f"Runs of {', '.join(names)} differ in more than seed, method and keep ratio; they are "
        "kept apart by the first digits (#) of the identity of their configuration."
    )
    return scores.assign(label=labels), (note,)


def _without_examples(scores: pd.DataFrame) -> tuple[str, ...]:
    lacking = int(scores["outcomes"].isna().sum())
    said = "scored runs left no scores of single examples; they are not compared by example."
    return (f"{lacking} of {len(scores)} {said}",) if lacking else ()


def _with_identity_off_the_shelf(scores: pd.DataFrame) -> pd.DataFrame:
    """Show no reduction beside methods that were put on the model which was trained without."""
    added = []
    for setting in scores.loc[scores["mode"] == "off the shelf", "setting"].unique():
        has = (scores["setting"] == setting) & (scores["label"] == "Identity")
        trained = setting.removesuffix(", off the shelf")
        other = scores[(scores["setting"] == trained) & (scores["label"] == "Identity")]
        if not has.any() and len(other):
            added.append(other.assign(setting=setting))
    return pd.concat([scores, *added], ignore_index=True) if added else scores


def _with_shares(scores: pd.DataFrame) -> pd.DataFrame:
    identity = scores[scores["label"] == "Identity"]
    mean = scores["setting"].map(identity.groupby("setting")["score"].mean())
    same = identity.set_index(["setting", "seed"])["score"]
    same = same[~same.index.duplicated()]
    whole = pd.Series(
        same.reindex(pd.MultiIndex.from_frame(scores[["setting", "seed"]])).to_numpy(),
        index=scores.index,
    ).fillna(mean)
    return scores.assign(share=scores["score"] / whole.where(whole > 0))


def _cells(scores: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for key, group in scores.groupby(KEYS, sort=False):
        found = t_interval(group["score"].to_numpy())
        share = t_interval(group["share"].to_numpy())
        row = dict(zip(KEYS, key, strict=True)) | {
            "family": group["family"].iloc[0],
            "metric": group["metric"].iloc[0],
            "chance": group["chance"].astype(float).mean(),
            "seeds": found.count,
            "score": found.value,
            "low": found.low,
            "high": found.high,
            "share": share.value,
            "share_low": share.low,
            "share_high": share.high,
        }
        rows.append(row | {name: group[name].astype(float).median() for name in COSTS})
    frame = pd.DataFrame(rows)
    numbers = ["low", "high", "share_low", "share_high", *COSTS]
    return frame.astype(dict.fromkeys(numbers, float)).sort_values(KEYS, ignore_index=True)


def _missing(scores: pd.DataFrame, runs: Runs) -> pd.DataFrame:
    """Return what the product of each setting's methods, keep ratios and seeds lacks."""
    ended = {
        (str(run["task"]), str(run["label"]), float(run["keep"])): str(run["status"])
        for _, run in runs.table[runs.table["status"] != "completed"].iterrows()
    }
    rows = []
    for setting, group in scores.groupby("setting", sort=False):
        task = str(setting).split(",")[0]
        methods = group[~group["label"].isin(WITHOUT_RATIO)]
        pairs = zip(methods["label"], methods["keep"], strict=True)
        there = {(str(label), float(keep)) for label, keep in pairs}
        stopped = {
            (str(at[1]), float(at[2]))
            for at in ended
            if at[0] == task and at[1] not in WITHOUT_RATIO
        }
        # Ratios that were solved for a budget differ by method and make no grid.
        used = Counter(keep for _, keep in there | stopped)
        for label in sorted({label for label, _ in there | stopped}):
            for keep in sorted(keep for keep, count in used.items() if count > 1):
                if (label, keep) not in there:
                    rows.append((setting, label, keep, ended.get((task, label, keep), "not run")))
        seeds = set(group["seed"].dropna().astype(int))
        for at, cell in group.groupby(["label", "keep"]):
            label, keep = cast("tuple[str, float]", at)
            absent = sorted(seeds - set(cell["seed"].dropna().astype(int)))
            if absent:
                names = ", ".join(map(str, absent))
                rows.append((setting, label, keep, f"without seed {names}"))
    return pd.DataFrame(rows, columns=[*KEYS, "why"])


def pareto(cost: pd.Series, score: pd.Series) -> pd.Series:
    """Return which points no other point beats: none is as cheap with a higher score."""
    order = np.lexsort((-score.to_numpy(), cost.to_numpy()))
    best, front = -np.inf, np.zeros(len(cost), dtype=bool)
    for place in order:
        value = score.iloc[place]
        if not np.isnan(cost.iloc[place]) and value > best:
            best, front[place] = value, True
    return pd.Series(front, index=cost.index)
