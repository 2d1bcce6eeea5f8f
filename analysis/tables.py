"""The tables of a study, as CSV, Markdown, LaTeX (booktabs) and HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.cells import ENDS, Study, areas, comparisons, improvements
from analysis.literature import Published
from analysis.plots import Subject
from analysis.statistics import Comparison

MISSING = "–"
"""What stands where there is no value."""

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
        "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--",
        "±": r"$\pm$", "<": "$<$", ">": "$>$",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: Of its files.
        title: Heading.
        caption: What it shows, in words.
        shown: Cells as they are read, all text.
        raw: The numbers, for the CSV file.
    """

    name: str
    title: str
    caption: str
    shown: pd.DataFrame
    raw: pd.DataFrame

    def markdown(self) -> str:
        """Return the table in Markdown, its numbers aligned right."""
        heads = [_in_markdown(name) for name in self.shown.columns]
        rules = ["---:" if right else ":---" for right in self._right()]
        rows = [[_in_markdown(cell) for cell in row] for row in self.shown.to_numpy()]
        lines = [f"| {' | '.join(cells)} |" for cells in [heads, rules, *rows]]
        return "\n".join([f"**{self.title}.** {self.caption}", "", *lines, ""])

    def latex(self) -> str:
        """Return the table in LaTeX; it needs the booktabs package."""
        heads, *rows = [
            " & ".join(str(cell).translate(_LATEX) for cell in row) + r" \\"
            for row in [self.shown.columns, *self.shown.to_numpy()]
        ]
        columns = "".join("r" if right else "l" for right in self._right())
        return "\n".join(
            [
                r"\begin{table}", r"\centering",
                rf"\caption{{{self.title.translate(_LATEX)}. {self.caption.translate(_LATEX)}}}",
                rf"\label{{tab:{self.name}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
                heads, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
            ]
        )  # fmt: skip

    def html(self) -> str:
        """Return the table in HTML, everything escaped."""
        sides = [' class="n"' if right else "" for right in self._right()]
        rows = ["".join(_head(name, side) for name, side in zip(self.shown, sides, strict=True))]
        for row in self.shown.to_numpy():
            rows.append("".join(_data(cell, side) for cell, side in zip(row, sides, strict=True)))
        head, *body = [f"<tr>{row}</tr>" for row in rows]
        return f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"

    def _right(self) -> list[bool]:
        """Which columns hold numbers."""
        return [
            all(cell == MISSING or cell[:1].isdigit() or cell[:1] in "+-" for cell in column)
            for column in self.shown.astype(str).to_numpy().T
        ]

    def write(self, folder: Path) -> None:
        """Write ``name.csv``, ``name.md`` and ``name.tex``."""
        self.raw.to_csv(folder / f"{self.name}.csv", index=False)
        (folder / f"{self.name}.md").write_text(self.markdown(), encoding="utf-8")
        (folder / f"{self.name}.tex").write_text(self.latex(), encoding="utf-8")


def _in_markdown(cell: object) -> str:
    return html.escape(str(cell), quote=False).replace("|", r"\|").replace("\n", " ")


def _head(name: object, side: str) -> str:
    return f'<th scope="col"{side}>{html.escape(str(name))}</th>'


def _data(cell: object, side: str) -> str:
    return f"<td{side}>{html.escape(str(cell))}</td>"


def number(value: object, digits: int = 3) -> str:
    """Return a number with so many significant digits, or the sign for a missing one."""
    if value is None or pd.isna(value):  # type: ignore[call-overload]
        return MISSING
    return f"{float(value):.{digits}g}"  # type: ignore[arg-type]


def with_interval(value: object, low: object, high: object, digits: int = 3) -> str:
    """Return ``0.712 [0.703, 0.721]``; without the interval where there is none."""
    if value is None or pd.isna(value):  # type: ignore[call-overload]
        return MISSING
    text = f"{float(value):.{digits}f}"  # type: ignore[arg-type]
    if low is None or pd.isna(low) or high is None:  # type: ignore[call-overload]
        return text
    return f"{text} [{float(low):.{digits}f}, {float(high):.{digits}f}]"  # type: ignore[arg-type]


def scores(found: Study) -> list[Table]:
    """Return one table a setting: a line a method, a column a keep ratio."""
    tables = []
    for index, setting in enumerate(found.settings, 1):
        cells = found.cells[found.cells["setting"] == setting].copy()
        cells["shown"] = [
            with_interval(value, low, high)
            for value, low, high in zip(cells["score"], cells["low"], cells["high"], strict=True)
        ]
        smaller = cells["label"] == "Smaller image"
        share = [f"Smaller image, {keep:.0%} of patches" for keep in cells["keep"]]
        rows = cells.assign(
            label=cells["label"].where(~smaller, share), keep=cells["keep"].mask(smaller, 1.0)
        )
        wide = rows.pivot(index="label", columns="keep", values="shown")
        wide = wide[sorted(wide.columns, reverse=True)].fillna(MISSING)
        wide = wide.loc[sorted(wide.index, key=lambda label: (label not in ENDS, label))]
        wide.columns = [f"{keep:g}" for keep in wide.columns]
        seeds = sorted(cells["seeds"].unique())
        tables.append(
            Table(
                f"scores_{index}",
                setting,
                f"{cells['metric'].iloc[0]} by keep ratio: mean over the seeds "
                f"({' or '.join(map(str, seeds))}) [95% interval]. Chance is "
                f"{number(cells['chance'].mean())}. {MISSING}: no result.",
                wide.reset_index(names="method"),
                cells.drop(columns="shown"),
            )
        )
    return tables


def _comparison_table(name: str, title: str, caption: str, found: list[Comparison]) -> Table:
    shown = [
        {
            "setting": each.where,
            "A": each.a,
            "B": each.b,
            "seeds": str(each.pairs),
            "A minus B": with_interval(each.difference, each.low, each.high),
            "p": number(each.p_value, 2),
            "shown": each.verdict,
        }
        for each in found
    ]
    raw = pd.DataFrame([{**vars(each), "verdict": each.verdict} for each in found])
    return Table(name, title, caption, pd.DataFrame(shown), raw)


_HOW = (
    "Paired by seed; intervals and p-values are corrected together for the number of comparisons "
    "in this table (Holm). “A beats B” stands only where the corrected interval leaves out 0."
)


def comparison_tables(found: Study, against: tuple[str, ...]) -> list[Table]:
    """Return the comparisons over all keep ratios, and those at each one."""
    sets = (
        ("comparisons", "Comparisons, mean over the keep ratios", comparisons(found, against)),
        (
            "comparisons_by_ratio",
            "Comparisons by ratio",
            comparisons(found, against, by_ratio=True),
        ),
    )
    return [_comparison_table(name, title, _HOW, rows) for name, title, rows in sets if rows]


def area_table(found: Study) -> Table | None:
    """Return the area under each score-GFLOPs curve, over the range that all of them span."""
    shown, raw = [], []
    for setting in found.settings:
        (low, high), by_label = areas(found, setting)
        for label, area in sorted(by_label.items(), key=lambda item: -item[1].value):
            span = f"{low:.3g} to {high:.3g}"
            value = with_interval(area.value, area.low, area.high, 4)
            shown.append({"setting": setting, "method": label, "GFLOPs": span, "mean score": value})
            raw.append({"setting": setting, "label": label, "from": low, "to": high, **vars(area)})
    if not shown:
        return None
    return Table(
        "areas",
        "Area under the score-GFLOPs curve",
        "Mean height of the curve over the GFLOPs that all methods span, through every keep ratio "
        "and no reduction; one curve a seed, then Student's 95% interval. Nothing is extrapolated.",
        pd.DataFrame(shown),
        pd.DataFrame(raw),
    )


def over_tasks_table(subject: Subject, against: tuple[str, ...]) -> Table | None:
    """Return shares of no reduction over all settings, and the probability of improvement."""
    shares = subject.over_tasks
    if shares.empty or len(subject.study.settings) < 2:
        return None
    wins = improvements(subject.study, against)
    shown = shares[["label", "keep"]].rename(columns={"label": "method", "keep": "keep ratio"})
    shown["keep ratio"] = shown["keep ratio"].map(number)
    for title, name in (("mean share", "share"), ("interquartile mean", "iqm")):
        columns = (shares[name], shares[f"{name}_low"], shares[f"{name}_high"])
        shown[title] = [with_interval(*row) for row in zip(*columns, strict=True)]
    raw = shares
    for other in against:
        mine = wins[wins["against"] == other].drop(columns="against")
        mine = mine.rename(columns={"probability": f"above_{other}"})
        mine = mine.rename(columns={end: f"above_{other}_{end}" for end in ("low", "high")})
        raw = raw.merge(mine, on=["label", "keep"], how="left")
        names = [f"above_{other}", f"above_{other}_low", f"above_{other}_high"]
        shown[f"above {other}"] = [
            with_interval(value, low, high, 2) for value, low, high in raw[names].to_numpy()
        ]
    return Table(
        "over_settings",
        f"Over all {len(subject.study.settings)} settings",
        "Score as a share of the mean score without reduction, whose own spread is not in the "
        "interval; the interquartile mean leaves out the lowest and highest quarter of all runs. "
        "Above X: how often a run scores above one of X, averaged over the settings; no interval "
        "where no run was ever out of order.",
        shown,
        raw,
    )


def cost_table(subject: Subject) -> Table | None:
    """Return what each method costs at the reference keep ratio."""
    cells = subject.study.cells
    if cells.empty:
        return None
    cells = cells[cells["setting"] == subject.study.settings[0]]
    cells = cells[(cells["keep"] == subject.reference) | (cells["label"] == "Identity")]
    cells = cells.sort_values("gflops_total")
    columns = {
        "label": "method", "keep_ratio": "measured keep ratio", "tokens_out": "tokens out",
        "gflops_total": "GFLOPs", "gflops_training_step": "GFLOPs, training step",
        "latency_ms": "latency, ms",
    }  # fmt: skip
    shown = cells[list(columns)].copy()
    for name in list(columns)[1:]:
        shown[name] = shown[name].map(number)
    return Table(
        "costs",
        f"Cost at keep ratio {subject.reference:g}",
        f"{subject.study.settings[0]}. One multiply-add = 1, for one example; latency is the "
        "median time of a batch.",
        shown.rename(columns=columns),
        cells[list(columns)],
    )


def missing_table(found: Study) -> Table | None:
    """Return what was not run, or not to its end."""
    if found.missing.empty:
        return None
    shown = found.missing.assign(keep=found.missing["keep"].map(number))
    return Table(
        "missing",
        "Not run, failed, or short of seeds",
        "What the product of methods, keep ratios and seeds of each setting lacks.",
        shown.rename(columns={"label": "method", "keep": "keep ratio"}),
        found.missing,
    )


def failure_table(subject: Subject) -> Table | None:
    """Return the runs that did not complete, and the records that could not be read."""
    runs = subject.runs
    rows = [
        {"run": run.folder, "status": run.status, "why": run.error or MISSING}
        for run in runs.table.itertuples()
        if run.status != "completed"
    ]
    rows += [
        {"run": each.path, "status": "unreadable", "why": each.message} for each in runs.broken
    ]
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    return Table("failures", "Failed runs", "Their records say why.", frame, frame)


def literature_table(published: Sequence[Published]) -> Table | None:
    """Return the published results that are drawn beside ours."""
    if not published:
        return None
    frame = pd.DataFrame([vars(each) for each in published])
    return Table(
        "literature",
        "Published results",
        "Not measured here. Read what does not compare before setting them beside anything.",
        frame.assign(score=frame["score"].map(lambda score: f"{score:.4f}")),
        frame,
    )


def tables(subject: Subject, against: tuple[str, ...]) -> list[Table]:
    """Return all tables of a study that have content, in the order of the report."""
    found = subject.study
    every = [
        *scores(found),
        over_tasks_table(subject, against),
        *comparison_tables(found, against),
        area_table(found),
        cost_table(subject),
        missing_table(found),
        failure_table(subject),
        literature_table(subject.published),
    ]
    return [table for table in every if table is not None]
