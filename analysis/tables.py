"""The tables of a study, on the page and as CSV, Markdown and LaTeX."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from analysis.load import BASELINES, COSTS, NO_REDUCTION, SMALLER, TESTED, USED, Setting, Study
from analysis.statistics import OVER_ALL, Comparison, Unit, aggregate, comparisons, over_tasks

MISSING = "–"
"""Shown for a missing value."""

_LONG = 200
"""Longer tables are written as CSV only."""


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: Of its files.
        title: Heading.
        caption: What it shows.
        shown: The cells as text.
        raw: The numbers.
        section: Section of the page.
        bold: Rows and columns of the cells in bold.
        folded: The page shows it on request.
    """

    name: str
    title: str
    caption: str
    shown: pd.DataFrame
    raw: pd.DataFrame
    section: Literal["ranking", "cost", "appendix"] = "appendix"
    bold: frozenset[tuple[int, int]] = frozenset()
    folded: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """Suffixes of its files."""
        return ("csv", "md", "tex") if len(self.shown) <= _LONG else ("csv",)

    @cached_property
    def right(self) -> list[bool]:
        """Which columns are numbers, aligned right."""
        start = re.compile(r"[+-]?\d")
        columns = self.shown.astype(str).to_numpy().T
        return [all(cell in (MISSING, "") or start.match(cell) for cell in c) for c in columns]

    def markdown(self) -> str:
        """Return the table in Markdown."""

        def line(cells: Sequence[object]) -> str:
            said = [html.escape(str(cell), quote=False).replace("|", r"\|") for cell in cells]
            return f"| {' | '.join(' '.join(each.split()) for each in said)} |"

        rows = [
            [f"**{cell}**" if (i, j) in self.bold else cell for j, cell in enumerate(row)]
            for i, row in enumerate(self.shown.to_numpy())
        ]
        rule = line(["---:" if right else ":---" for right in self.right])
        body = [line(list(self.shown.columns)), rule, *map(line, rows)]
        return "\n".join([f"**{self.title}.** {self.caption}", "", *body, ""])

    def latex(self) -> str:
        """Return the table in LaTeX, for the booktabs package."""
        weights = pd.DataFrame("", self.shown.index, self.shown.columns)
        for row, column in self.bold:
            weights.iat[row, column] = "textbf:--rwrap;"
        style = self.shown.style.hide(axis="index").format(escape="latex")
        style = style.format_index(escape="latex", axis=1).apply(lambda _: weights, axis=None)
        caption = f"{self.title}. {self.caption}"
        text: str = style.to_latex(
            hrules=True,
            position="t",
            position_float="centering",
            label=f"tab:{self.name}",
            caption=re.sub(r"([&%$#_{}])", r"\\\1", caption).replace("^", r"\^{}"),
            column_format="".join("r" if right else "l" for right in self.right),
        )
        text = text.replace("\\centering\n", "\\centering\n\\footnotesize\n", 1)
        for sign, name in (("–", "--"), ("“", "``"), ("”", "''"), ("×", r"$\times$")):
            text = text.replace(sign, name)
        return text

    def write(self, folder: Path) -> None:
        """Write the files into a folder."""
        self.raw.to_csv(folder / f"{self.name}.csv", index=False)
        if "tex" in self.kinds:
            (folder / f"{self.name}.md").write_text(self.markdown(), encoding="utf-8")
            (folder / f"{self.name}.tex").write_text(self.latex(), encoding="utf-8")


def number(value: object, digits: int = 3) -> str:
    """Return a number with some significant digits, or `MISSING`."""
    missing = value is None or pd.isna(value)  # type: ignore[call-overload]
    return MISSING if missing else f"{float(value):.{digits}g}"  # type: ignore[arg-type]


def fixed(value: float, digits: int = 3, sign: bool = False) -> str:
    """Return a number with some decimals. Zero never has a sign."""
    if round(value, digits) == 0:
        return f"{0:.{digits}f}"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def with_interval(
    value: float, low: float | None, high: float | None, bounded: bool = True, sign: bool = False
) -> str:
    """Return ``0.712 [0.703, 0.721]``, or the value alone if it has no interval.

    If ``bounded``, values are between 0 and 1, and interval ends outside are cut and marked ``*``.
    """
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return fixed(value, sign=sign)
    ends = [fixed(end, sign=sign) for end in (low, high)]
    if bounded:
        ends[0] = "0.000*" if low < 0 else ends[0]
        ends[1] = "1.000*" if high > 1 else ends[1]
    return f"{fixed(value, sign=sign)} [{ends[0]}, {ends[1]}]"


def slug(text: str) -> str:
    """Return a text in the form used in file names."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def method_name(label: str, acts: str) -> str:
    """Return a method's name for tables and figures."""
    return f"{label} (fusion)" if acts == "fusion" else label


def reference_ratio(cells: pd.DataFrame) -> float:
    """Return the keep ratio with the most methods; the middle one of several."""
    counts = cells[cells["acts"] == "encoder"].groupby("keep")["label"].nunique()
    most = sorted(counts.index[counts == counts.max()])
    return float(most[len(most) // 2]) if most else 1.0


@dataclass(frozen=True)
class Ranking:
    """How the methods of a group compare.

    Attributes:
        group: Name of the group.
        order: The methods, best first, by the mean difference from no reduction.
        found: Comparisons of the means over all keep ratios, by unit.
        at_ratios: Comparisons at each keep ratio, by unit.
    """

    group: str
    order: tuple[str, ...]
    found: dict[Unit, list[Comparison]]
    at_ratios: dict[Unit, list[Comparison]]

    @property
    def unit(self) -> Unit | None:
        """The unit that orders the methods: seeds if there are several, else examples."""
        return next(iter(self.found), None)

    def of(self, unit: Unit, other: str) -> dict[str, Comparison]:
        """Return the comparisons with one method, over all tasks if there are several."""
        mine = [each for each in self.found.get(unit, []) if each.b == other]
        whole = [each for each in mine if each.setting == OVER_ALL]
        names = {each.setting for each in mine}
        return {each.a: each for each in (mine if len(names) == 1 else whole)}


def rank(study: Study, group: str, against: Sequence[str]) -> Ranking:
    """Compare the methods of a group with some of them."""
    rows = study.scores[study.scores["group"] == group]
    units: tuple[Unit, Unit] = ("seeds", "examples")
    found: dict[Unit, list[Comparison]] = {}
    at_ratios: dict[Unit, list[Comparison]] = {}
    for unit in units:
        made = comparisons(rows, against, False, unit)
        if any(each.pairs > 1 for each in made):
            found[unit] = made
            at_ratios[unit] = comparisons(rows, against, True, unit)
    ranking = Ranking(group, (), found, at_ratios)
    shares = rows[rows["label"] != NO_REDUCTION].groupby("label")["share"].mean()
    by = {str(label): float(share) - 1 for label, share in shares.items()}
    if ranking.unit is not None:
        by |= {a: each.difference for a, each in ranking.of(ranking.unit, NO_REDUCTION).items()}
    fused = set(rows.loc[rows["acts"] == "fusion", "label"])
    order = sorted(by, key=lambda a: (a in fused, -by[a]))
    return Ranking(group, tuple(order), found, at_ratios)


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


def ranking_tables(study: Study, ranking: Ranking, against: Sequence[str]) -> list[Table]:
    """Return a table per unit: the methods in order, and their differences from some others."""
    scores = study.scores[study.scores["group"] == ranking.group]
    acts = dict(zip(scores["label"], scores["acts"], strict=True))
    settings = study.groups[ranking.group]
    metrics = ", ".join(dict.fromkeys(setting.metric for setting in settings))
    over = f" and the {len(settings)} tasks" if len(settings) > 1 else ""
    tables = []
    for unit, found in ranking.found.items():
        shown = pd.DataFrame({"method": [method_name(a, acts[a]) for a in ranking.order]})
        raw: list[Comparison] = []
        for other in against:
            if mine := ranking.of(unit, other):
                than = other.lower() if other == NO_REDUCTION else other
                shown[f"minus {than}"] = [_difference(mine.get(a)) for a in ranking.order]
                raw += mine.values()
        usual = max((each.keeps for each in found), key=len)
        fewer = any(each.keeps != usual for each in raw)
        caption = (
            f"Difference of the scores ({metrics}), mean over the keep ratios "
            f"{', '.join(f'{keep:g}' for keep in usual)}{over}. "
            + ("Methods without some of them are compared at those they have. " if fewer else "")
            + f"{_HOW[unit]} {_HOLM}"
            + (_FUSION if "fusion" in acts.values() else "")
        )
        name = f"ranking-{slug(ranking.group)}-{unit}"
        title = f"Ranking by {unit[:-1]}: {ranking.group}"
        rows = [{**vars(each), "verdict": each.verdict} for each in raw]
        tables.append(Table(name, title, caption, shown, pd.DataFrame(rows), "ranking"))
    return tables


def _difference(found: Comparison | None) -> str:
    if found is None:
        return MISSING
    value = with_interval(found.difference, found.low, found.high, bounded=False, sign=True)
    return f"{value} {found.verdict}"


def score_tables(study: Study, cells: pd.DataFrame) -> list[Table]:
    """Return the shares of each group of several tasks, then the scores of each setting."""
    tables: list[Table] = []
    for group, settings in study.groups.items():
        if len(settings) > 1:
            shares = over_tasks(study.scores[study.scores["group"] == group])
            title = f"Share of the score without reduction: {group}"
            caption = (
                f"Mean over the {len(settings)} tasks of the score as a share of the same seed's "
                "score without reduction, with Student's 95% interval over the seeds if there are "
                "several."
            )
            tables += _score_tables(f"shares-{slug(group)}", title, caption, shares)
    for setting in study.settings.values():
        mine = cells[cells["setting"] == setting.name]
        title = f"{setting.name}: {setting.metric}"
        tables += _score_tables(f"scores-{slug(setting.name)}", title, _place(setting), mine)
    return tables


def _score_tables(name: str, title: str, caption: str, cells: pd.DataFrame) -> Iterator[Table]:
    """Yield a row per method, a column per keep ratio: one table each for encoder and fusion."""
    whole = cells[cells["label"].isin((NO_REDUCTION, SMALLER))]
    for acts, said, tail in (
        ("encoder", "keep ratio", ""),
        ("fusion", "keep ratio in the fusion", "-fusion"),
    ):
        part = cells[cells["acts"] == acts]
        if part.empty:
            continue
        raw = pd.concat([part, whole])
        rows: dict[str, dict[float, tuple[float, float, float]]] = {}
        columns = ["label", "keep", "score", "score_low", "score_high"]
        for label, keep, score, low, high in raw[columns].itertuples(index=False):
            small = label == SMALLER
            line = f"{SMALLER}, {keep:.0%} of patches" if small else label
            rows.setdefault(line, {})[1.0 if small else keep] = (score, low, high)
        means = {
            line: np.mean([values[0] for values in row.values()]) for line, row in rows.items()
        }
        lines = sorted(rows, key=lambda line: (line != NO_REDUCTION, -means[line]))
        shown = pd.DataFrame({"method": lines})
        bounded = raw["metric"].iloc[0] != "share"
        bold = set()
        for j, keep in enumerate(sorted({keep for row in rows.values() for keep in row})[::-1], 1):
            found = [rows[line].get(keep) for line in lines]
            shown[f"{said} {keep:g}" if keep < 1 else "all patches"] = [
                with_interval(*row, bounded=bounded) if row else MISSING for row in found
            ]
            values = [-1.0 if row is None else round(row[0], 3) for row in found]
            if keep < 1:
                bold |= {(i, j) for i, value in enumerate(values) if value == max(values) >= 0}
        if any("*" in cell for cell in shown.to_numpy().flat):
            caption += " An asterisk marks an interval cut at the end of the score's range."
        yield Table(f"{name}{tail}", title, caption, shown, raw, bold=frozenset(bold))


def _place(setting: Setting) -> str:
    images = f" about {setting.images:,} images" if setting.images else ""
    chance = "" if setting.chance is None else f" Guessing scores {setting.chance:.3f}."
    how = (
        f"Means over up to {setting.seeds} seeds, with Student's 95% interval."
        if setting.seeds > 1
        else "One seed, so there is no interval over training."
    )
    return (
        f"{setting.dataset}, {setting.split} split, {setting.examples:,} examples{images}. {how}"
        f"{chance} The best of each column is in bold; {MISSING} means no result."
    )


def cost_tables(study: Study, cells: pd.DataFrame) -> list[Table]:
    """Return the cost of each method at the reference keep ratio, a table per setting."""
    tables = []
    firsts = {settings[0].name for settings in study.groups.values()}
    for setting in study.settings.values():
        mine = cells[cells["setting"] == setting.name]
        ratio = reference_ratio(mine)
        at = (mine["keep"] == ratio) | mine["label"].isin((NO_REDUCTION, SMALLER))
        mine = mine[at].sort_values("gflops_total")
        whole = mine[mine["label"] == NO_REDUCTION]["gflops_total"]
        if mine["gflops_total"].isna().all() or whole.empty:
            continue
        flops = whole.iloc[0] / mine["gflops_total"]
        latency = 1 / mine["latency_share"]
        raw = mine[["label", "keep", "acts", "score", *COSTS]].assign(
            flops_speedup=flops, latency_speedup=latency, efficiency=latency / flops
        )
        names = {"gflops_total": "GFLOPs", "flops_speedup": "FLOPs speed-up",
                 "latency_speedup": "latency speed-up", "efficiency": "efficiency",
                 "gflops_training_step": "GFLOPs per training step",
                 "tokens_out": "tokens out", "score": setting.metric}  # fmt: skip
        shown = pd.DataFrame(
            {"method": [_at(*row) for row in mine[["label", "acts", "keep"]].to_numpy()]}
        )
        for column, name in names.items():
            shown[name] = raw[column].map(number).to_numpy()
        caption = (
            f"At keep ratio {ratio:g}, cheapest first. GFLOPs: giga multiply-adds per example (one "
            "multiply-add = 1), including the work of choosing tokens. Speed-ups are relative to "
            "no reduction, timed alternately in the same run. Efficiency is latency speed-up over "
            "FLOPs speed-up: 1 if time falls as much as arithmetic."
        )
        name, title = f"costs-{slug(setting.name)}", f"Cost: {setting.name}"
        if setting.name in firsts:
            tables.append(Table(name, title, caption, shown, raw, "cost"))
        else:
            tables.append(Table(name, title, caption, shown, raw, folded=True))
    return tables


def _at(label: str, acts: str, keep: float) -> str:
    if label == SMALLER:
        return f"{SMALLER}, {keep:.0%} of patches"
    return f"{label} (fusion {keep:g})" if acts == "fusion" else label


def comparison_tables(study: Study, ranking: Ranking) -> list[Table]:
    """Return every comparison of a group: over all keep ratios, and at each of them."""
    tables = []
    for where, tail, comparisons_of in (
        ("over all keep ratios", "", ranking.found),
        ("at each keep ratio", "-at-each", ranking.at_ratios),
    ):
        for unit, rows in comparisons_of.items():
            frame = pd.DataFrame({**vars(each), "verdict": each.verdict} for each in rows)
            frame["keeps"] = [", ".join(f"{keep:g}" for keep in keeps) for keeps in frame["keeps"]]
            tasks = {each.name: each.task for each in study.settings.values()}
            shown = pd.DataFrame(
                {
                    "task": [tasks.get(each.setting, each.setting) for each in rows],
                    "keep ratio": frame["keeps"],
                    "method": frame["a"],
                    "against": frame["b"],
                    "difference": [_difference(each) for each in rows],
                    "p": frame["p_value"].map(lambda p: number(p, 2)),
                    "seeds" if unit == "seeds" else "images": frame["pairs"].astype(str),
                }
            )
            name = f"comparisons-{slug(ranking.group)}-{unit}{tail}"
            title = f"All comparisons by {unit[:-1]}, {where}: {ranking.group}"
            tables.append(Table(name, title, f"{_HOW[unit]} {_HOLM}", shown, frame, folded=True))
    return tables


def account_tables(study: Study) -> list[Table]:
    """Return the status of every run, and a separate table of those that are not used."""
    runs = study.runs
    used = runs["status"].isin((USED, TESTED))
    runs = runs.loc[used.sort_values(kind="stable").index]
    shown = runs.astype(object).where(runs.notna(), MISSING).astype(str)
    shown["seed"] = runs["seed"].map(lambda seed: MISSING if pd.isna(seed) else str(int(seed)))
    said = ", ".join(f"{count} {status}" for status, count in runs["status"].value_counts().items())
    every = Table("runs", "All runs", f"{len(runs)} runs: {said}.", shown, runs, folded=True)
    other = ~used.loc[runs.index]
    if not other.any():
        return [every]
    title, caption = "Runs that are not used, and why", "Scores of these runs are in no mean."
    return [Table("runs-not-used", title, caption, shown[other], runs[other]), every]


def missing_table(study: Study) -> list[Table]:
    """Return the cells and seeds that a method lacks but others of the setting have."""
    rows = []
    scores = study.scores[~study.scores["acts"].isin(("never", "image"))]
    for (setting, acts), mine in scores.groupby(["setting", "acts"], sort=False):
        used = mine.groupby("keep")["label"].nunique()
        keeps, seeds = used.index[used > 1], set(mine["seed"])
        for label, own in mine.groupby("label"):
            for keep in keeps:
                there = set(own.loc[own["keep"] == keep, "seed"])
                lacking = ", ".join(map(str, sorted(seeds - there))) if there else "all seeds"
                if lacking:
                    rows.append((setting, method_name(str(label), str(acts)), f"{keep:g}", lacking))
    if not rows:
        return []
    frame = pd.DataFrame(rows, columns=["setting", "method", "keep ratio", "missing seeds"])
    caption = "Runs that other methods of a setting have. Means of these cells have fewer seeds."
    return [Table("missing", "What is missing", caption, frame.astype(str), frame)]


def tables(
    study: Study, rankings: Sequence[Ranking], against: Sequence[str] = BASELINES
) -> list[Table]:
    """Return all tables of a study that have content, in the order of the page."""
    cells = aggregate(study.scores)
    made: list[Table] = []
    for ranking in rankings:
        made += ranking_tables(study, ranking, against)
    made += [*score_tables(study, cells), *cost_tables(study, cells)]
    for ranking in rankings:
        made += comparison_tables(study, ranking)
    return [*made, *missing_table(study), *account_tables(study)]
