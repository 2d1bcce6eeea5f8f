"""The tables of a study: as shown, as numbers (CSV), in Markdown and in LaTeX."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from analysis.load import BASELINES, COSTS, NO_REDUCTION, SMALLER, Progress, Setting, Study
from analysis.statistics import OVER_ALL, Comparison, Unit, aggregate, comparisons, over_tasks

MISSING = "–"
"""Stands where there is no value."""

CUT = "An asterisk marks the end of an interval that was cut at the end of the score's range."
_LONG = 200
"""Tables with more rows are written as CSV only."""


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: Of its files.
        title: Heading.
        caption: What it shows, in words.
        shown: The cells as they are read, all text.
        raw: The numbers.
        bold: Rows and columns of the cells in bold.
    """

    name: str
    title: str
    caption: str
    shown: pd.DataFrame
    raw: pd.DataFrame
    bold: frozenset[tuple[int, int]] = frozenset()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Endings of its files."""
        return ("csv", "md", "tex") if len(self.shown) <= _LONG else ("csv",)

    @cached_property
    def right(self) -> list[bool]:
        """Which columns hold numbers."""
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
        """Return the table in LaTeX; it needs the booktabs package."""
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
        """Write its files into a folder."""
        self.raw.to_csv(folder / f"{self.name}.csv", index=False)
        if "tex" in self.kinds:
            (folder / f"{self.name}.md").write_text(self.markdown(), encoding="utf-8")
            (folder / f"{self.name}.tex").write_text(self.latex(), encoding="utf-8")


def number(value: object, digits: int = 3) -> str:
    """Return a number with so many significant digits, or the sign for a missing one."""
    missing = value is None or pd.isna(value)  # type: ignore[call-overload]
    return MISSING if missing else f"{float(value):.{digits}g}"  # type: ignore[arg-type]


def fixed(value: float, digits: int = 3, sign: bool = False) -> str:
    """Return a number with so many decimals; what rounds to 0 has no sign."""
    if round(value, digits) == 0:
        return f"{0:.{digits}f}"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def with_interval(
    value: float, low: float | None, high: float | None, bounded: bool = True, sign: bool = False
) -> str:
    """Return ``0.712 [0.703, 0.721]``; without the interval where there is none.

    Args:
        value: The estimate.
        low: Lower end.
        high: Upper end.
        bounded: The value lies between 0 and 1: ends beyond are cut, and marked ``*``.
        sign: Write the sign of positive numbers.
    """
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return fixed(value, sign=sign)
    ends = [fixed(end, sign=sign) for end in (low, high)]
    if bounded:
        ends[0] = "0.000*" if low < 0 else ends[0]
        ends[1] = "1.000*" if high > 1 else ends[1]
    return f"{fixed(value, sign=sign)} [{ends[0]}, {ends[1]}]"


def slug(text: str) -> str:
    """Return a text as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def method_name(label: str, acts: str) -> str:
    """Return a method's name as tables and figures show it."""
    return f"{label} (fusion)" if acts == "fusion" else label


def reference_ratio(cells: pd.DataFrame) -> float:
    """Return the keep ratio at which most methods were run; of several, the middle one."""
    counts = cells[cells["acts"] == "encoder"].groupby("keep")["label"].nunique()
    most = sorted(counts.index[counts == counts.max()])
    return float(most[len(most) // 2]) if most else 1.0


@dataclass(frozen=True)
class Ranking:
    """How the methods of a group compare.

    Attributes:
        group: Its name.
        order: The methods, the best first: by the mean difference from no reduction.
        found: The comparisons over all keep ratios, by unit.
        at_ratios: Those at each keep ratio.
    """

    group: str
    order: tuple[str, ...]
    found: dict[Unit, list[Comparison]]
    at_ratios: dict[Unit, list[Comparison]]

    @property
    def unit(self) -> Unit | None:
        """What claims rest on: seeds where there are several, else examples."""
        return next(iter(self.found), None)

    def of(self, unit: Unit, other: str) -> dict[str, Comparison]:
        """Return the comparisons with one other method, over all tasks where there are several."""
        mine = [each for each in self.found.get(unit, []) if each.b == other]
        whole = [each for each in mine if each.setting == OVER_ALL]
        names = {each.setting for each in mine}
        return {each.a: each for each in (mine if len(names) == 1 else whole)}


def rank(
    study: Study, group: str, against: Sequence[str], progress: Progress | None = None
) -> Ranking:
    """Compare the methods of a group."""
    rows = study.scores[study.scores["group"] == group]
    units: tuple[Unit, Unit] = ("seeds", "examples")
    found: dict[Unit, list[Comparison]] = {}
    at_ratios: dict[Unit, list[Comparison]] = {}
    for unit in units:
        made = comparisons(rows, against, False, unit, progress)
        if any(each.pairs > 1 for each in made):
            found[unit] = made
            at_ratios[unit] = comparisons(rows, against, True, unit, progress)
    ranking = Ranking(group, (), found, at_ratios)
    shares = rows[rows["label"] != NO_REDUCTION].groupby("label")["share"].mean()
    by = {str(label): float(share) - 1 for label, share in shares.items()}
    if ranking.unit is not None:
        by |= {a: each.difference for a, each in ranking.of(ranking.unit, NO_REDUCTION).items()}
    fused = set(rows.loc[rows["acts"] == "fusion", "label"])
    order = sorted(by, key=lambda a: (a in fused, -by[a]))
    return Ranking(group, tuple(order), found, at_ratios)


_HOW: dict[Unit, str] = {
    "seeds": "Paired by seed: what training anew would show.",
    "examples": "Paired by test example, the examples of one image kept together, scores averaged "
    "over the seeds: what other test examples would show for these very models, not what training "
    "anew would.",
}
_HOLM = (
    "Intervals are at 95%, corrected together for all comparisons of the table (Holm). “Not "
    "shown” does not mean equal: these runs cannot tell."
)


def ranking_tables(study: Study, ranking: Ranking, against: Sequence[str]) -> list[Table]:
    """Return the methods in their order, and how each differs from some others."""
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
            + ("Methods that lack some of them are compared at those they have. " if fewer else "")
            + f"{_HOW[unit]} {_HOLM}"
            + (_FUSION if "fusion" in acts.values() else "")
        )
        name = f"ranking-{slug(ranking.group)}-{unit}"
        title = f"Ranking by {unit[:-1]}: {ranking.group}"
        rows = [{**vars(each), "verdict": each.verdict} for each in raw]
        tables.append(Table(name, title, caption, shown, pd.DataFrame(rows)))
    return tables


_FUSION = (
    " A method marked (fusion) drops tokens in the fusion only: its keep ratio is another "
    "quantity, so it is compared with no reduction and with its like; for the rest see the GFLOPs."
)


def _difference(found: Comparison | None) -> str:
    if found is None:
        return MISSING
    value = with_interval(found.difference, found.low, found.high, bounded=False, sign=True)
    return f"{value} {found.verdict}"


def score_tables(study: Study, cells: pd.DataFrame) -> list[Table]:
    """Return the scores of each setting: a line a method, a column a keep ratio."""
    tables = []
    for setting in study.settings.values():
        mine = cells[cells["setting"] == setting.name]
        for acts, said in (("encoder", "keep ratio"), ("fusion", "keep ratio in the fusion")):
            part = mine[mine["acts"] == acts]
            if part.empty:
                continue
            whole = mine[mine["label"].isin((NO_REDUCTION, SMALLER))]
            tail = "" if acts == "encoder" else "-fusion"
            name = f"scores-{slug(setting.name)}{tail}"
            tables.append(_score_table(name, setting, pd.concat([part, whole]), said))
    return tables


def _score_table(name: str, setting: Setting, cells: pd.DataFrame, said: str) -> Table:
    small = cells["label"] == SMALLER
    label = cells["label"].where(~small, [f"{SMALLER}, {k:.0%} of patches" for k in cells["keep"]])
    lines = cells.assign(line=label, column=cells["keep"].mask(small, 1.0))
    order = lines.groupby("line")["score"].mean().sort_values(ascending=False).index
    names = sorted(order, key=lambda line: line != NO_REDUCTION)
    columns = ["line", "column", "score", "score_low", "score_high"]
    by_place = {(row[0], row[1]): row[2:] for row in lines[columns].to_numpy()}
    shown = pd.DataFrame({"method": names})
    bold = set()
    for column, keep in enumerate(sorted(lines["column"].unique(), reverse=True), 1):
        found = [by_place.get((line, keep)) for line in names]
        shown[f"{said} {keep:g}" if keep < 1 else "all patches"] = [
            MISSING if row is None else with_interval(*row) for row in found
        ]
        values = [-1.0 if row is None else round(float(row[0]), 3) for row in found]
        if keep < 1:
            bold |= {(i, column) for i, value in enumerate(values) if value == max(values) >= 0}
    cut = any("*" in cell for cell in shown.to_numpy().flat)
    caption = _place(setting) + (f" {CUT}" if cut else "")
    title = f"{setting.name}: {setting.metric}"
    return Table(name, title, caption, shown, cells, frozenset(bold))


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
        f"{chance} The best of each column is in bold; {MISSING} stands for no result."
    )


def cost_tables(study: Study, cells: pd.DataFrame) -> list[Table]:
    """Return what each method costs at the reference keep ratio, a table a setting."""
    tables = []
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
                 "gflops_training_step": "GFLOPs of a training step",
                 "tokens_out": "tokens out", "score": setting.metric}  # fmt: skip
        shown = pd.DataFrame(
            {"method": [_at(*row) for row in mine[["label", "acts", "keep"]].to_numpy()]}
        )
        for column, name in names.items():
            shown[name] = raw[column].map(number).to_numpy()
        caption = (
            f"At keep ratio {ratio:g}, the cheapest first. GFLOPs: giga multiply-adds an example, "
            "one multiply-add = 1, the choosing of the tokens included. Speed-ups are relative to "
            "no reduction, latency timed in turn with it in the same run; efficiency is latency "
            "speed-up over FLOPs speed-up: 1 where all saved arithmetic is saved time."
        )
        tables.append(
            Table(f"costs-{slug(setting.name)}", f"Cost: {setting.name}", caption, shown, raw)
        )
    return tables


def _at(label: str, acts: str, keep: float) -> str:
    if label == SMALLER:
        return f"{SMALLER}, {keep:.0%} of patches"
    return f"{label} (fusion {keep:g})" if acts == "fusion" else label


def comparison_tables(study: Study, ranking: Ranking) -> list[Table]:
    """Return every comparison of a group: over the keep ratios, and at each of them."""
    tables = []
    for kind, found in (("over all keep ratios", ranking.found), ("at each", ranking.at_ratios)):
        for unit, rows in found.items():
            frame = pd.DataFrame({**vars(each), "verdict": each.verdict} for each in rows)
            frame["keeps"] = [", ".join(f"{keep:g}" for keep in keeps) for keeps in frame["keeps"]]
            shown = pd.DataFrame(
                {
                    "task": [_task(study, each.setting) for each in rows],
                    "keep ratio": frame["keeps"],
                    "method": frame["a"],
                    "against": frame["b"],
                    "difference": [_difference(each) for each in rows],
                    "p": frame["p_value"].map(lambda p: number(p, 2)),
                    unit if unit == "seeds" else "images": frame["pairs"].astype(str),
                }
            )
            where = kind if kind != "at each" else "at each keep ratio"
            tables.append(
                Table(
                    f"comparisons-{slug(ranking.group)}-{unit}{'-at-each' * (kind == 'at each')}",
                    f"All comparisons by {unit[:-1]}, {where}: {ranking.group}",
                    f"{_HOW[unit]} {_HOLM}",
                    shown,
                    frame,
                )
            )
    return tables


def _task(study: Study, setting: str) -> str:
    return study.settings[setting].task if setting in study.settings else setting


def share_tables(study: Study, group: str) -> list[Table]:
    """Return the share of the score without reduction that is left, mean over the tasks."""
    if len(study.groups[group]) < 2:
        return []
    shares = over_tasks(study.scores[study.scores["group"] == group])
    tables = []
    for acts, said, tail in (("encoder", "", ""), ("fusion", " in the fusion", "-fusion")):
        mine = shares[shares["acts"] == acts]
        if mine.empty:
            continue
        columns = ["label", "keep", "share", "share_low", "share_high"]
        cells = {
            (label, keep): with_interval(share, low, high, bounded=False)
            for label, keep, share, low, high in mine[columns].to_numpy()
        }
        order = mine.groupby("label")["share"].mean().sort_values(ascending=False).index
        shown = pd.DataFrame({"method": order})
        for keep in sorted(mine["keep"].unique(), reverse=True):
            column = [cells.get((label, keep), MISSING) for label in order]
            shown[f"keep ratio{said} {keep:g}"] = column
        tables.append(
            Table(
                f"shares-{slug(group)}{tail}",
                f"Share of the score without reduction: {group}",
                f"Mean over the {len(study.groups[group])} tasks of the score as a share of the "
                "same seed's score without reduction; Student's 95% interval over the seeds where "
                "there are several.",
                shown,
                mine,
            )
        )
    return tables


def account_tables(study: Study) -> list[Table]:
    """Return what became of every run; and by themselves those that are not used."""
    runs = study.runs
    used = runs["what became of it"].isin(("used", "tested by a run of its own"))
    runs = runs.loc[used.sort_values(kind="stable").index]
    shown = runs.astype(object).where(runs.notna(), MISSING).astype(str)
    shown["seed"] = runs["seed"].map(lambda seed: MISSING if pd.isna(seed) else str(int(seed)))
    counts = runs["what became of it"].value_counts()
    said = ", ".join(f"{count} {fate}" for fate, count in counts.items())
    every = Table("runs", "What became of every run", f"{len(runs)} runs: {said}.", shown, runs)
    other = ~used.loc[runs.index]
    if not other.any():
        return [every]
    title, caption = "Runs that are not used, and why", "Scores of these runs are in no mean."
    return [Table("runs-not-used", title, caption, shown[other], runs[other]), every]


def missing_table(study: Study) -> Table | None:
    """Return the cells that other methods of a setting have, and the seeds that a cell lacks."""
    rows = []
    scores = study.scores[~study.scores["acts"].isin(("never", "image"))]
    for (setting, acts), mine in scores.groupby(["setting", "acts"], sort=False):
        used = mine.groupby("keep")["label"].nunique()
        keeps, seeds = used.index[used > 1], set(mine["seed"])
        for label, own in mine.groupby("label"):
            for keep in keeps:
                there = set(own.loc[own["keep"] == keep, "seed"])
                lacking = "all seeds" if not there else ", ".join(map(str, sorted(seeds - there)))
                if lacking:
                    rows.append((setting, method_name(str(label), str(acts)), f"{keep:g}", lacking))
    if not rows:
        return None
    frame = pd.DataFrame(rows, columns=["setting", "method", "keep ratio", "seeds that lack"])
    return Table(
        "missing",
        "What is missing",
        "Runs that the other methods of a setting have. Means of these cells rest on fewer seeds.",
        frame.astype(str),
        frame,
    )


def tables(
    study: Study, rankings: Sequence[Ranking], against: Sequence[str] = BASELINES
) -> list[Table]:
    """Return all tables of a study that have content."""
    cells = aggregate(study.scores)
    made: list[Table | None] = []
    for ranking in rankings:
        made += ranking_tables(study, ranking, against) + share_tables(study, ranking.group)
    made += [*score_tables(study, cells), *cost_tables(study, cells)]
    for ranking in rankings:
        made += comparison_tables(study, ranking)
    made += [missing_table(study), *account_tables(study)]
    return [table for table in made if table is not None]
