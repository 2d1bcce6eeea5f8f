"""From runs to cells: one method at one keep ratio in one setting, over its seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import cast

import numpy as np
import pandas as pd

from analysis.lineage import check_names, differences, identity, protocol
from analysis.load import Runs
from analysis.statistics import t_interval

ENDS = ("Identity", "Random")
"""No reduction, and chance: the two ends that every comparison shows."""

KEYS = ["setting", "label", "keep"]
"""What names a cell."""

WITHOUT_RATIO = ("Identity", "Smaller image")
"""Labels that no keep ratio belongs to."""

_WITHOUT = ("off the shelf", "pretrained without reduction")

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
        scores: One row a run and split: `KEYS`, ``seed`` (text: what repeats differ in),
            ``score`` (the main metric), ``metric``, ``chance``, ``share`` (of the same seed's score
            without reduction, or of the mean one where that seed lacks), costs, ``outcomes``
            (scores of single examples, or None).
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


def study(runs: Runs, may_differ: Sequence[str] = ()) -> Study:
    """Join the seeds of every cell and find what is missing.

    Args:
        runs: The runs.
        may_differ: Options, or names of inputs, in which runs that are compared may differ; beside
            method and keep ratio, everything else must agree. See `analysis.lineage.protocol`.

    Raises:
        ValueError: No run has such an option or input.
    """
    check_names(may_differ, [each.setup for each in runs.lineages])
    scores = _scores(runs)
    if scores.empty:
        empty = pd.DataFrame(
            columns=[*KEYS, "family", "metric", "seed", "seeds", "score", "outcomes", *COSTS]
        )
        return Study(empty, empty, pd.DataFrame(columns=[*KEYS, "why"]), ())
    scores, repeated = _latest(scores)
    scores, selecting = _tested(scores, runs)
    scores, protocols = _by_protocol(scores, runs, may_differ)
    scores, mixed = _apart(scores, runs)
    scores, bare = _with_identity(_with_seeds(scores))
    scores = _with_shares(scores)
    notes = (
        *repeated, *selecting, *protocols, *mixed, *bare, *_uneven(scores),
        *_without_examples(scores),
    )  # fmt: skip
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
                    "setting": _setting(run, evaluation.dataset, evaluation.split, run["mode"]),
                    "work": f"{run['task']}, {run['datasets']}",
                    "place": _setting(run, evaluation.dataset, evaluation.split),
                    "label": run["label"],
                    "keep": run["keep"],
                    "seeds": runs.lineages[number].seeds,
                    "score": score,
                    "metric": record.main_metric,
                    "chance": evaluation.chance.get(record.main_metric),
                    "family": run["reducer_family"] or "other",
                    "mode": run["mode"],
                    "subcommand": run["subcommand"],
                    "setup": run["setup"],
                    "started": run["started"],
                    "run": number,
                    "examples": evaluation.examples,
                    "train_steps": run["train_steps"],
                    "code": f"{run['commit']} {run['dirty']}",
                    "outcomes": runs.outcomes[number].get(evaluation.split),
                    **{name: run[name] for name in COSTS},
                }
            )
    return pd.DataFrame(rows)


def _setting(run: pd.Series, dataset: str, split: str, mode: str = "trained") -> str:
    place = split if split.startswith(dataset) else f"{dataset} {split}"
    return f"{run['task']}, {place}" + (f", {mode}" if mode != "trained" else "")


def _latest(scores: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Keep one run a seed and setup: scored by its own command before by fit, then the latest."""
    order = scores.assign(own=scores["subcommand"] != "fit").sort_values(["own", "started"])
    names = [*KEYS, "setup", "seeds"]
    kept = order.drop_duplicates(names, keep="last")
    # A fit's own score beside the same one by validate is no repeated run.
    dropped = len(order) - len(order.drop_duplicates([*names, "own"]))
    said = f"{dropped} scores of repeated runs are left out; the latest stands."
    kept = kept.sort_values("run").drop(columns="own").reset_index(drop=True)
    return kept, (said,) if dropped else ()


def _tested(scores: pd.DataFrame, runs: Runs) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Leave out the validation that chose a training run's weights, where all runs were tested."""
    fitted = scores["subcommand"] == "fit"
    tested = {runs.parents.get(run) for run in scores.loc[~fitted, "run"]}
    open_work = set(scores.loc[fitted & ~scores["run"].isin(tested), "work"])
    left_out = fitted & ~scores["work"].isin(open_work)
    said = (
        f"{int(left_out.sum())} validation scores by which training runs chose their weights are "
        "left out: all of these runs were tested."
    )
    return scores[~left_out].reset_index(drop=True), (said,) if left_out.any() else ()


def _by_protocol(
    scores: pd.DataFrame, runs: Runs, may_differ: Sequence[str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Make runs that differ in more than the method settings of their own."""
    patches = scores.assign(patches=scores["run"].map(runs.table["patches"])).dropna(
        subset="patches"
    )
    whole = patches.sort_values("patches").groupby("work")["run"].last()
    largest = {str(work): runs.lineages[run].setup for work, run in whole.items()}
    smaller = scores["label"] == "Smaller image"
    shared = [
        protocol(runs.lineages[run].setup, may_differ, largest.get(work) if small else None)
        for run, work, small in zip(scores["run"], scores["work"], smaller, strict=True)
    ]
    scores = scores.assign(
        shared=pd.Series(shared, index=scores.index, dtype=object),
        protocol=[identity(each) for each in shared],
    )
    notes = []
    for setting, rows in scores.groupby("setting"):
        several = [shared[row] for row in rows.drop_duplicates("protocol").index]
        if len(several) > 1:
            notes.append(
                f"{setting}: runs differ in {differences(several)}, beside seed, method and keep "
                "ratio. They are compared apart, under the first digits (#) of what the runs of "
                "each part share; --may-differ OPTION compares them all the same."
            )
    mixed = scores.groupby("setting")["protocol"].transform("nunique") > 1
    marked = scores["setting"] + " #" + scores["protocol"].str[:4]
    return scores.assign(setting=scores["setting"].where(~mixed, marked)), tuple(notes)


def _apart(scores: pd.DataFrame, runs: Runs) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Keep runs of different configurations apart where they would fall into one cell."""
    setups = scores.groupby(KEYS)["setup"].transform("nunique")
    mixed = setups > 1
    if not mixed.any():
        return scores, ()
    notes = []
    for (setting, label, keep), rows in scores[mixed].groupby(KEYS):
        several = [runs.lineages[run].setup for run in rows.drop_duplicates("setup")["run"]]
        notes.append(
            f"Runs of {label} at {keep:g} in {setting} differ in {differences(several)}; they are "
            "kept apart by the first digits (#) of the identity of their configuration."
        )
    labels = scores["label"].where(~mixed, scores["label"] + " #" + scores["setup"].str[:4])
    return scores.assign(label=labels), tuple(notes)


def _uneven(scores: pd.DataFrame) -> Iterator[str]:
    """Say where the runs of a setting are not alike in what no option says."""
    for setting, rows in scores.groupby("setting"):
        if rows["code"].nunique() > 1:
            yield f"{setting}: runs were made by {rows['code'].nunique()} versions of the code."
        if rows["seed"].astype(str).str.contains("/").any():
            yield (
                f"{setting}: seeds differ in several ways (a/b), so runs share models: intervals "
                "over seeds are too narrow, and shares are of the mean."
            )
        for column, said in (("examples", "scored on {} to {} examples"),
                             ("train_steps", "trained for {} to {} steps")):  # fmt: skip
            counts = rows[column].dropna().astype(int)
            if counts.nunique() > 1:
                yield f"{setting}: runs were {said.format(counts.min(), counts.max())}."


def _without_examples(scores: pd.DataFrame) -> tuple[str, ...]:
    lacking = int(scores["outcomes"].isna().sum())
    said = "scored runs left no scores of single examples; they are not compared by example."
    return (f"{lacking} of {len(scores)} {said}",) if lacking else ()


def _with_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """Name in each setting what the runs of a cell are repeats by: ``seed``, as text.

    The seed of training, where each has its own; else the first other seed that tells them apart
    (of scoring, where one model is scored several times; of what training began from); else all.
    """
    named: dict[int, str | None] = {}
    for _, rows in scores.groupby("setting"):
        seeds = list(rows["seeds"])
        alone = [each for each in zip_longest(*seeds) if _tells_apart(rows, each)]
        if alone:
            texts: list[str | None] = [str(seed) for seed in alone[0]]
        elif any(seed is not None for each in seeds for seed in each):
            texts = ["/".join(map(str, each)) for each in seeds]
        else:
            texts = [None] * len(seeds)
        named |= dict(zip(rows.index, texts, strict=True))
    return scores.assign(seed=pd.Series(named, dtype=object))


def _tells_apart(rows: pd.DataFrame, seeds: tuple[int | None, ...]) -> bool:
    """Whether every run has a seed, and no two of one cell have the same."""
    cells = list(zip(rows["label"], rows["keep"], seeds, strict=True))
    return None not in seeds and len(set(cells)) == len(cells)


def _with_identity(scores: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Show no reduction beside methods that were put on weights which were made without."""
    added, notes = [], []
    trained = scores[(scores["mode"] == "trained") & (scores["label"] == "Identity")]
    for setting, rows in scores.groupby("setting"):
        first = rows.iloc[0]
        there = trained[trained["place"] == first["place"]]
        if "Identity" in set(rows["label"]) or there.empty:
            continue
        same = there[there["protocol"] == first["protocol"]]
        if first["mode"].endswith(_WITHOUT) and len(same):
            added.append(same.assign(setting=setting))
        elif same.empty:
            differ = differences([there.iloc[0]["shared"], first["shared"]])
            notes.append(
                f"{setting}: without shares, since no run without reduction is like these; the "
                f"first one differs in {differ}."
            )
    return pd.concat([scores, *added], ignore_index=True), tuple(notes)


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
        seeds = set(group["seed"].dropna())
        for at, cell in group.groupby(["label", "keep"]):
            label, keep = cast("tuple[str, float]", at)
            absent = sorted(seeds - set(cell["seed"]), key=lambda seed: (len(seed), seed))
            if absent:
                names = ", ".join(absent)
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
