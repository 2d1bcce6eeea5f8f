"""The tables of a study, on the page and as CSV, Markdown and LaTeX."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.load import BASELINES, COSTS, NO_REDUCTION, SMALLER, TESTED, USED, Study
from analysis.statistics import OVER_ALL, Unit, aggregate, comparisons, over_tasks

MISSING = "–"
"""Shown for a missing value."""


Section = Literal["accuracy", "ranking", "cost", "appendix"]
"""Sections of the page."""


@dataclass(frozen=True, eq=False)
class Table:
    """One table, as text (``shown``) and as numbers (``raw``)."""

    name: str  # of its files
    title: str
    caption: str
    shown: pd.DataFrame
    raw: pd.DataFrame
    section: Section = "appendix"
    bold: set[tuple[int, int]] = field(default_factory=set)  # rows and columns
    folded: bool = False  # the page shows it on request

    @property
    def kinds(self) -> tuple[str, ...]:
        """Suffixes of its files."""
        return ("csv", "md", "tex") if len(self.shown) <= 200 else ("csv",)

    @cached_property
    def right(self) -> list[bool]:
        """Which columns are plain numbers, aligned right. Intervals line up on the left."""
        number = re.compile(rf"[+-]?\d[\d.e+-]*|{MISSING}")
        return [all(map(number.fullmatch, column)) for column in self.shown.to_numpy().T]

    def markdown(self) -> str:
        """Return the table in Markdown."""
        cells = self.shown.map(lambda cell: html.escape(cell, quote=False).replace("|", r"\|"))
        for place in self.bold:
            cells.iat[place] = "**" + str(cells.iat[place]) + "**"
        rule = ["---:" if right else ":---" for right in self.right]
        lines = [f"| {' | '.join(row)} |" for row in [list(cells), rule, *cells.to_numpy()]]
        return "\n".join([f"**{self.title}.** {self.caption}", "", *lines, ""])

    def latex(self) -> str:
        """Return the table in LaTeX, for the booktabs package."""
        weights = pd.DataFrame("", self.shown.index, self.shown.columns)
        for place in self.bold:
            weights.iat[place] = "textbf:--rwrap;"
        style = self.shown.style.hide(axis="index").format(escape="latex")
        style = style.format_index(escape="latex", axis=1).apply(lambda _: weights, axis=None)
        text: str = style.to_latex(
            hrules=True,
            position="t",
            position_float="centering",
            label=f"tab:{self.name}",
            caption=re.sub(r"([&%$#_{}])", r"\\\1", f"{self.title}. {self.caption}"),
            column_format="".join("r" if right else "l" for right in self.right),
        )
        text = text.replace("\\centering", "\\centering\\footnotesize", 1)
        return text.replace("–", "--").replace("“", "``").replace("”", "''")

    def write(self, folder: Path) -> None:
        """Write the files into a folder."""
        self.raw.to_csv(folder / f"{self.name}.csv", index=False)
        if "tex" in self.kinds:
            (folder / f"{self.name}.md").write_text(self.markdown(), encoding="utf-8")
            (folder / f"{self.name}.tex").write_text(self.latex(), encoding="utf-8")


def number(value: Any, digits: int = 3) -> str:
    """Return a number with some significant digits, or `MISSING`."""
    if pd.isna(value):
        return MISSING
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.{digits}g}".rstrip(".")


def fixed(value: float, sign: bool = False) -> str:
    """Return a number with three decimals. Zero never has a sign."""
    return "0.000" if round(value, 3) == 0 else f"{value:{'+' if sign else ''}.3f}"


def with_interval(value: Any, low: Any, high: Any, bounded: bool = True, sign: bool = False) -> str:
    """Return ``0.712 [0.703, 0.721]``, or the value alone if it has no interval.

    If ``bounded``, values are between 0 and 1, and interval ends outside are cut and marked ``*``.
    """
    if pd.isna(value):
        return MISSING
    if pd.isna(low) or pd.isna(high):
        return fixed(value, sign)
    start = "0.000*" if bounded and low < 0 else fixed(low, sign)
    end = "1.000*" if bounded and high > 1 else fixed(high, sign)
    return f"{fixed(value, sign)} [{start}, {end}]"


def slug(text: str) -> str:
    """Return a text in the form used in file names."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def method_names(cells: pd.DataFrame, ratio: bool = False) -> list[str]:
    """Return the names of methods for tables and figures; ``ratio`` adds that of the fusion."""
    return [
        f"{SMALLER}, {keep:.0%} of patches" if acts == "image"
        else f"{label} (fusion{f' {keep:g}' if ratio else ''})" if acts == "fusion"
        else label
        for label, acts, keep in cells[["label", "acts", "keep"]].itertuples(index=False)
    ]  # fmt: skip


def at_reference(cells: pd.DataFrame) -> tuple[float, pd.DataFrame]:
    """Return the keep ratio with the most methods (the middle one of several), and its cells.

    They include no reduction and smaller images.
    """
    counts = cells[cells["acts"] == "encoder"].groupby("keep")["label"].nunique()
    most = counts.index[counts == counts.max()]
    ratio = float(most[len(most) // 2]) if len(most) else 1.0
    return ratio, cells[(cells["keep"] == ratio) | cells["acts"].isin(["never", "image"])]


@dataclass(frozen=True, eq=False)
class Ranking:
    """How the methods of a group compare."""

    group: str
    acts: dict[str, str]  # where each method acts; the best comes first
    against: tuple[str, ...]  # the methods with which all are compared
    found: dict[Unit, pd.DataFrame]  # comparisons of the means over all keep ratios, by unit

    def of(self, unit: Unit, other: str) -> pd.DataFrame:
        """Return the comparisons with one method, over all tasks if there are several."""
        mine = self.found[unit]
        mine = mine[mine["b"] == other]
        if mine["setting"].nunique() > 1:
            mine = mine[mine["setting"] == OVER_ALL]
        return mine.set_index("a", drop=False)


def rank(study: Study, group: str, against: Sequence[str] = ()) -> Ranking:
    """Compare the methods of a group, and order them by the mean difference from no reduction.

    The difference is by seed if there are several, else by example, else of the means.

    Args:
        study: The scores.
        group: Name of the group.
        against: Methods to compare with, in addition to the baselines. If the group has none of
            them, all methods are compared with each other.
    """
    rows = study.scores[study.scores["group"] == group]
    others = dict.fromkeys([*BASELINES, *against])
    known = [other for other in others if other in set(rows["label"])] or sorted(set(rows["label"]))
    units: tuple[Unit, Unit] = ("seeds", "examples")
    found = {unit: comparisons(rows, known, False, unit) for unit in units}
    found = {unit: made for unit, made in found.items() if (made["pairs"] > 1).any()}
    rows = rows[rows["acts"] != "never"]
    acts = dict(zip(rows["label"], rows["acts"], strict=True))
    ranking = Ranking(group, acts, tuple(known), found)
    means = rows.groupby("label")[["share", "score"]].mean()
    gains = (means["share"] - 1).fillna(means["score"])
    for unit in list(found)[:1]:
        gains = ranking.of(unit, NO_REDUCTION)["difference"].combine_first(gains)
    order = sorted(acts, key=lambda label: (acts[label] == "fusion", -gains[label]))
    return replace(ranking, acts={label: acts[label] for label in order})


_HOW: dict[Unit, str] = {
    "seeds": "Paired by seed: what retraining would show.",
    "examples": "Paired by test example, with the examples of one image kept together and scores "
    "averaged over the seeds: what other test examples would show for these models, not what "
    "retraining would show.",
}
_HOLM = (
    "95% intervals, corrected together for all comparisons of the table (Holm). “Not shown” does "
    "not mean equal: these runs cannot tell."
)
_FUSION = (
    " A method marked (fusion) drops tokens in the fusion only. Its keep ratio is a different "
    "quantity, so it is compared with no reduction and other such methods only; compare the rest "
    "by GFLOPs."
)


def ranking_tables(study: Study, ranking: Ranking) -> Iterator[Table]:
    """Yield a table per unit: the methods in order, and their differences from some others."""
    settings = study.groups[ranking.group]
    metrics = ", ".join(dict.fromkeys(setting.metric for setting in settings))
    over = f" and the {len(settings)} tasks" if len(settings) > 1 else ""
    names = [f"{a} (fusion)" if acts == "fusion" else a for a, acts in ranking.acts.items()]
    for unit, found in ranking.found.items():
        shown = pd.DataFrame({"method": names})
        parts = {other: ranking.of(unit, other) for other in ranking.against}
        parts = {other: part for other, part in parts.items() if len(part)}
        for other, part in parts.items():
            said = differences(part).reindex(list(ranking.acts), fill_value=MISSING)
            shown[f"minus {other.replace(NO_REDUCTION, NO_REDUCTION.lower())}"] = said.to_numpy()
        raw = pd.concat(parts.values())
        usual = max(found["keeps"], key=len)
        fewer = (raw["keeps"] != usual).any()
        caption = (
            f"Difference of the scores ({metrics}), mean over the keep ratios "
            f"{', '.join(f'{keep:g}' for keep in usual)}{over}. "
            + ("Methods tested at only some of these are compared there. " if fewer else "")
            + f"{_HOW[unit]} {_HOLM}"
            + (_FUSION if "fusion" in ranking.acts.values() else "")
        )
        title = f"Ranking by {unit[:-1]}: {study.title(ranking.group)}"
        name = f"ranking-{slug(ranking.group)}-{unit}"
        yield Table(name, title, caption, shown, raw, "ranking")


def differences(found: pd.DataFrame) -> pd.Series:
    """Return each difference with its interval and verdict as text."""
    columns = found[["difference", "low", "high", "verdict"]].itertuples(index=False)
    said = []
    for value, low, high, verdict in columns:
        text = with_interval(value, low, high, bounded=False, sign=True)
        if verdict in ("better", "worse"):  # the end that rounds to 0 is not 0
            text = text.replace(", 0.000]", ", below 0]").replace("[0.000,", "[above 0,")
        said.append(f"{text} {verdict}")
    return pd.Series(said, found.index, dtype=str)


def score_tables(study: Study, cells: pd.DataFrame) -> Iterator[Table]:
    """Yield the shares of each group of several tasks, then the scores of each setting."""
    for group, settings in study.groups.items():
        if len(settings) > 1:
            shares = over_tasks(study.scores[study.scores["group"] == group])
            title = f"Share of the score without reduction: {group}"
            caption = (
                f"Mean over the {len(settings)} tasks of the score as a share of the same seed's "
                "score without reduction, with Student's 95% interval over the seeds if there are "
                "several."
            )
            yield from _score_tables(f"shares-{slug(group)}", title, caption, shares)
    for setting in study.settings.values():
        mine = cells[cells["setting"] == setting.name]
        title = f"{setting.name}: {setting.metric}"
        images = f" about {setting.images:,} images" if setting.images else ""
        chance = "" if pd.isna(setting.chance) else f" Guessing scores {setting.chance:.3f}."
        how = (
            f"Means over up to {setting.seeds} seeds, with Student's 95% interval."
            if setting.seeds > 1
            else "One seed, so there is no interval over training."
        )
        caption = (
            f"Data: {setting.dataset}, {setting.split} split, {setting.examples:,} examples"
            f"{images}. {how}{chance} The best of each column is in bold; {MISSING} means no "
            "result."
        )
        yield from _score_tables(f"scores-{slug(setting.name)}", title, caption, mine)


def _score_tables(name: str, title: str, caption: str, cells: pd.DataFrame) -> Iterator[Table]:
    """Yield a row per method, a column per keep ratio: one table each for encoder and fusion."""
    bounded = "share" not in set(cells["metric"])
    ends = zip(cells["score"], cells["score_low"], cells["score_high"], strict=True)
    image = cells["acts"] == "image"
    cells = cells.assign(
        method=cells["label"].mask(image, pd.Series(method_names(cells), cells.index)),
        column=cells["keep"].mask(image, 1.0),
        text=[with_interval(*each, bounded=bounded) for each in ends],
    )
    for acts, ratio, tail in (
        ("encoder", "keep ratio", ""),
        ("fusion", "keep ratio in the fusion", "-fusion"),
    ):
        mine = cells[cells["acts"].isin([acts, "never", *["image"] * (acts == "encoder")])]
        if acts not in set(mine["acts"]):
            continue
        score = mine.pivot(index="method", columns="column", values="score")
        means = score.mean(axis=1).mask(score.index == NO_REDUCTION, np.inf)
        order = means.sort_values(ascending=False, kind="stable").index
        score = score.loc[order].sort_index(axis=1, ascending=False).round(3)
        shown = mine.pivot(index="method", columns="column", values="text").fillna(MISSING)
        shown = shown.reindex_like(score).reset_index()
        keeps = [float(keep) for keep in score.columns]
        shown.columns = pd.Index(
            ["method", *(f"{ratio} {k:g}" if k < 1 else "all patches" for k in keeps)]
        )
        best = (score.eq(score.max()) & (np.array(keeps) < 1)).to_numpy()
        bold = {(int(i), int(j) + 1) for i, j in zip(*best.nonzero(), strict=True)}
        cut = " An asterisk marks an interval cut at the end of the score's range."
        said = caption + cut * bool(mine["text"].str.contains("*", regex=False).any())
        raw = mine.drop(columns=["method", "column", "text"])
        yield Table(
            name + tail, title + ", in the fusion" * bool(tail), said, shown, raw, bold=bold
        )


def cost_tables(study: Study, cells: pd.DataFrame) -> Iterator[Table]:
    """Yield the cost of each method at the reference keep ratio, a table per setting."""
    for setting in [each for settings in study.groups.values() for each in settings]:
        ratio, mine = at_reference(cells[cells["setting"] == setting.name])
        whole = mine.loc[mine["acts"] == "never", "gflops_total"]
        if mine["gflops_total"].isna().all() or whole.empty:
            continue
        raw = mine.sort_values("gflops_total")[["label", "keep", "acts", "score", *COSTS]]
        raw["flops_speedup"] = whole.iloc[0] / raw["gflops_total"]
        raw["latency_speedup"] = 1 / raw["latency_share"]
        raw["efficiency"] = raw["latency_speedup"] / raw["flops_speedup"]
        heads = {
            "gflops_total": "GFLOPs",
            "flops_speedup": "FLOPs speed-up",
            "latency_speedup": "latency speed-up",
            "efficiency": "efficiency",
            "gflops_training_step": "GFLOPs per training step",
            "tokens_out": "tokens out",
            "score": setting.metric,
        }
        shown = raw[list(heads)].map(number).rename(columns=heads)
        shown = shown.loc[:, (shown != MISSING).any()]
        shown.insert(0, "method", method_names(raw, ratio=True))
        caption = (
            f"At keep ratio {ratio:g}, cheapest first. GFLOPs: giga multiply-adds per example "
            "(one multiply-add = 1), including the work of choosing tokens. Speed-ups are relative "
            "to no reduction, timed alternately in the same run. Efficiency is latency speed-up "
            "over FLOPs speed-up: 1 if time falls as much as arithmetic."
        )
        group = study.groups[setting.group]
        first = setting is group[0]
        if first and len(group) > 1:
            caption += " The appendix has the same table for each other task."
        name, title = f"costs-{slug(setting.name)}", f"Cost: {setting.name}"
        section: Section = "cost" if first else "appendix"
        yield Table(name, title, caption, shown, raw, section, folded=not first)


def comparison_tables(study: Study, ranking: Ranking) -> Iterator[Table]:
    """Yield every comparison of a group: over all keep ratios, and at each of them."""
    tasks = {each.name: each.task for each in study.settings.values()}
    rows = study.scores[study.scores["group"] == ranking.group]
    at_each = {unit: comparisons(rows, ranking.against, True, unit) for unit in ranking.found}
    for where, tail, frames in (
        ("over all keep ratios", "", ranking.found),
        ("at each keep ratio", "-at-each", at_each),
    ):
        for unit, frame in frames.items():
            keeps = [", ".join(f"{keep:g}" for keep in keeps) for keeps in frame["keeps"]]
            shown = pd.DataFrame(
                {
                    "task": frame["setting"].replace(tasks),
                    "keep ratio": keeps,
                    "method": frame["a"],
                    "against": frame["b"],
                    "difference": differences(frame),
                    "p": [number(p, 2) for p in frame["p_value"]],
                    "seeds" if unit == "seeds" else "images": frame["pairs"].astype(str),
                }
            )
            name = f"comparisons-{slug(ranking.group)}-{unit}{tail}"
            title = f"All comparisons by {unit[:-1]}, {where}: {study.title(ranking.group)}"
            raw = frame.assign(keeps=keeps)
            yield Table(name, title, f"{_HOW[unit]} {_HOLM}", shown, raw, folded=True)


def summary(study: Study) -> str:
    """Say how many runs there are, and what happened to them."""
    counts = study.runs["status"].value_counts().to_dict()
    said = [f"{counts.pop(USED, 0)} used"]
    if tested := counts.pop(TESTED, 0):
        said.append(f"{tested} only trained a model that another run tested")
    said += [f"{count} {status}" for status, count in counts.items()]
    number = len(study.runs)
    return f"{number} run{'s' * (number != 1)}: {', '.join(said)}."


def status_tables(study: Study) -> Iterator[Table]:
    """Yield the runs that are not used, then the status of every run."""
    used = study.runs["status"].isin((USED, TESTED))
    runs = study.runs.drop(columns="record").loc[used.sort_values(kind="stable").index]
    shown = runs.convert_dtypes().astype(str).where(runs.notna(), MISSING)
    other = ~used.loc[runs.index]
    if other.any():
        title, caption = "Runs that are not used, and why", "Scores of these runs are in no mean."
        yield Table("runs-not-used", title, caption, shown[other], runs[other])
    yield Table("runs", "All runs", summary(study), shown, runs, folded=True)


def tables(study: Study, rankings: Sequence[Ranking]) -> Iterator[Table]:
    """Yield all tables of a study that have content, in the order of the page."""
    cells = aggregate(study.scores)
    for ranking in rankings:
        yield from ranking_tables(study, ranking)
    yield from score_tables(study, cells)
    yield from cost_tables(study, cells)
    for ranking in rankings:
        yield from comparison_tables(study, ranking)
    yield from status_tables(study)
