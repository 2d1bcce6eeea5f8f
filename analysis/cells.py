"""From runs to cells: one method at one keep ratio in one setting, over its seeds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd

from analysis.load import Runs
from analysis.statistics import (
    Comparison,
    Interval,
    Pairing,
    bootstrap_interval,
    compare,
    curve_area,
    interquartile_mean,
    mean_over_tasks,
    probability_of_improvement,
    t_interval,
)

ENDS = ("Identity", "Random")
"""No reduction, and chance: the two ends that every comparison shows."""

KEYS = ["setting", "label", "keep"]
"""What names a cell."""

_WITHOUT_RATIO = ("Identity", "Smaller image")

COSTS = {
    "keep_ratio": "measured keep ratio",
    "gflops_total": "GFLOPs of a forward pass",
    "gflops_training_step": "GFLOPs of a training step",
    "latency_ms": "latency in ms a batch",
    "tokens_out": "tokens that leave the encoder",
}
"""Columns of a cell beside its score; medians over its runs."""


@dataclass(frozen=True)
class Study:
    """What a set of runs says.

    Attributes:
        scores: One row a run and split: `KEYS`, ``seed``, ``score`` (the main metric), ``metric``,
            ``chance``, ``share`` (of the mean score without reduction), costs, ``run`` (row of
            the table of runs).
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
        return list(dict.fromkeys(self.scores["setting"])) if len(self.scores) else []


def study(runs: Runs) -> Study:
    """Join the seeds of every cell and find what is missing."""
    scores = _scores(runs)
    if scores.empty:
        empty = pd.DataFrame(columns=[*KEYS, "family", "metric", "seed", "seeds", "score", *COSTS])
        return Study(empty, empty, pd.DataFrame(columns=[*KEYS, "why"]), ())
    scores, repeated = _latest(scores)
    scores, mixed = _apart(scores)
    scores = _with_shares(_with_identity_off_the_shelf(scores))
    return Study(scores, _cells(scores), _missing(scores, runs), (*repeated, *mixed))


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
                    **{name: run[name] for name in COSTS},
                }
            )
    return pd.DataFrame(rows)


def _setting(run: pd.Series, dataset: str, split: str) -> str:
    place = split if split.startswith(dataset) else f"{dataset} {split}"
    return f"{run['task']}, {place}" + (", off the shelf" if run["mode"] != "trained" else "")


def _latest(scores: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Keep one run a seed and setup: scored by its own command before by fit, then the latest."""
    order = scores.assign(own=scores["subcommand"] != "fit").sort_values(["own", "started"])
    kept = order.drop_duplicates([*KEYS, "setup", "seed"], keep="last")
    dropped = len(scores) - len(kept)
    said = f"{dropped} scores of repeated runs are left out; the latest stands."
    kept = kept.sort_values("run").drop(columns="own").reset_index(drop=True)
    return kept, (said,) if dropped else ()


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


def _with_identity_off_the_shelf(scores: pd.DataFrame) -> pd.DataFrame:
    """Show no reduction beside methods that were put on the model which was trained without."""
    added = []
    for setting in scores.loc[scores["mode"] != "trained", "setting"].unique():
        has = (scores["setting"] == setting) & (scores["label"] == "Identity")
        trained = setting.removesuffix(", off the shelf")
        other = scores[(scores["setting"] == trained) & (scores["label"] == "Identity")]
        if not has.any() and len(other):
            added.append(other.assign(setting=setting))
    return pd.concat([scores, *added], ignore_index=True) if added else scores


def _with_shares(scores: pd.DataFrame) -> pd.DataFrame:
    identity = scores[scores["label"] == "Identity"].groupby("setting")["score"].mean()
    whole = scores["setting"].map(identity)
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
        methods = group[~group["label"].isin(_WITHOUT_RATIO)]
        pairs = zip(methods["label"], methods["keep"], strict=True)
        there = {(str(label), float(keep)) for label, keep in pairs}
        stopped = {
            (str(at[1]), float(at[2]))
            for at in ended
            if at[0] == task and at[1] not in _WITHOUT_RATIO
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


def over_tasks(found: Study) -> pd.DataFrame:
    """Return each method's share of the score without reduction, averaged over the settings.

    Only cells that every setting has are in it. Columns: ``label``, ``keep``, ``family``,
    ``settings``, ``share``, ``share_low``, ``share_high`` (stratified bootstrap over the seeds),
    and the mean of the columns of `COSTS`.
    """
    rows = []
    for (label, keep), group in found.scores.groupby(["label", "keep"], sort=False):
        strata = [part["share"].to_numpy() for _, part in group.groupby("setting")]
        if len(strata) < len(found.settings) or any(np.isnan(part).any() for part in strata):
            continue
        share = bootstrap_interval(strata, mean_over_tasks)
        middle = bootstrap_interval(strata, interquartile_mean)
        costs = {name: group[name].astype(float).mean() for name in COSTS}
        rows.append(
            {"label": label, "keep": keep, "family": group["family"].iloc[0],
             "settings": len(strata), "share": share.value, "share_low": share.low,
             "share_high": share.high, "iqm": middle.value, "iqm_low": middle.low,
             "iqm_high": middle.high, **costs}
        )  # fmt: skip
    return pd.DataFrame(rows)


def comparisons(
    found: Study, against: tuple[str, ...] = ENDS, by_ratio: bool = False
) -> list[Comparison]:
    """Compare every method by seed with some others; all in one table are corrected together.

    Args:
        found: The study.
        against: Labels of the others; Identity is the same at every keep ratio.
        by_ratio: One comparison a keep ratio, or one of the means over all ratios that both have.
    """
    cells: dict[tuple[str, str], dict[float, dict[int, float]]] = {}
    seeded = found.scores.dropna(subset=["seed"])
    for (setting, label, keep), group in seeded.groupby(KEYS):
        scores = dict(zip(group["seed"].astype(int), group["score"], strict=True))
        cells.setdefault((str(setting), str(label)), {})[float(str(keep))] = scores
    pairings = []
    for setting, label in sorted(cells):
        for other in against:
            if (setting, other) not in cells or label in (other, "Identity"):
                continue
            mine, base = cells[setting, label], cells[setting, other]
            whole = base.get(1.0) if other == "Identity" else None
            pairs = {keep: (mine[keep], whole or base.get(keep)) for keep in sorted(mine)}
            both = {keep: (a, b) for keep, (a, b) in pairs.items() if b is not None}
            groups = [[keep] for keep in both] if by_ratio else [list(both)]
            for keeps in filter(None, groups):
                ratios = ", ".join(f"{keep:g}" for keep in keeps)
                where = f"{setting}, keep ratio {ratios}"
                ours = _mean_by_seed([both[keep][0] for keep in keeps])
                theirs = _mean_by_seed([both[keep][1] for keep in keeps])
                pairings.append(Pairing(label, other, where, ours, theirs))
    return compare(pairings)


def _mean_by_seed(cells: list[dict[int, float]]) -> dict[int, float]:
    """Return each seed's mean over several cells; seeds that one of them lacks are left out."""
    seeds = set.intersection(*(set(cell) for cell in cells))
    return {seed: float(np.mean([cell[seed] for cell in cells])) for seed in seeds}


def areas(found: Study, setting: str) -> tuple[tuple[float, float], dict[str, Interval]]:
    """Return the range of GFLOPs that all curves of a setting span, and each one's area over it.

    Each seed has its own curve through all keep ratios of its method and no reduction; the
    interval is Student's over the seeds.
    """
    scores = found.scores[found.scores["setting"] == setting].dropna(subset="gflops_total")
    identity = scores[scores["label"] == "Identity"]
    curves: dict[str, list[pd.DataFrame]] = {}
    for label, group in scores[scores["label"] != "Identity"].groupby("label"):
        points = group["keep"].nunique()
        for seed, mine in group.groupby("seed"):
            end = identity[identity["seed"] == seed]
            if mine["keep"].nunique() == points and len(end):
                curves.setdefault(str(label), []).append(pd.concat([mine, end]))
    if not curves:
        return (0.0, 0.0), {}
    every = [curve["gflops_total"] for group in curves.values() for curve in group]
    low, high = max(cost.min() for cost in every), min(cost.max() for cost in every)
    if not low < high:
        return (low, high), {}
    result = {
        label: t_interval(
            [curve_area(list(c["gflops_total"]), list(c["score"]), low, high) for c in group]
        )
        for label, group in curves.items()
    }
    return (low, high), result


def improvements(found: Study, against: tuple[str, ...] = ENDS) -> pd.DataFrame:
    """Return the probability that a method scores above another, averaged over the settings.

    Columns: ``label``, ``against``, ``keep``, ``probability``, ``low``, ``high``.
    """
    by_cell = {key: group["score"].to_numpy() for key, group in found.scores.groupby(KEYS)}
    rows = []
    for label, keep in sorted({(label, keep) for _, label, keep in by_cell}):
        for other in against:
            base = 1.0 if other == "Identity" else keep
            pairs = [
                (by_cell[setting, label, keep], by_cell[setting, other, base])
                for setting in found.settings
                if (setting, label, keep) in by_cell and (setting, other, base) in by_cell
            ]
            if label in (other, "Identity") or len(pairs) < len(found.settings):
                continue
            one, two = zip(*pairs, strict=True)
            chance = probability_of_improvement(one, two)
            rows.append(
                {"label": label, "against": other, "keep": keep, "probability": chance.value,
                 "low": chance.low, "high": chance.high}
            )  # fmt: skip
    return pd.DataFrame(rows, columns=["label", "against", "keep", "probability", "low", "high"])
