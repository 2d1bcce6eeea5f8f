"""The tables of a study."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from analysis.cells import ENDS, Study
from analysis.compare import Unit, areas, comparisons, improvements
from analysis.figures import Subject
from analysis.literature import Published
from analysis.statistics import Comparison
from analysis.table import MISSING, Table, number, with_interval


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


_HOLM = (
    "Intervals and p-values are corrected together for the number of comparisons in this table "
    "(Holm). “A beats B” stands only where the corrected interval leaves out 0."
)

_UNITS: dict[Unit, tuple[str, str]] = {
    "seeds": ("by seed", "Paired by seed: what training anew would show."),
    "examples": (
        "by example",
        "Paired by example, examples of one image kept together, scores averaged over the seeds: "
        "what other examples would show for these very models, not what training anew would.",
    ),
}


def comparison_tables(found: Study, against: tuple[str, ...]) -> list[Table]:
    """Return the comparisons by seed and by example, over all keep ratios and at each one."""
    tables = []
    for unit, (name, how) in _UNITS.items():
        for by_ratio in (False, True):
            rows = comparisons(found, against, by_ratio, unit)
            if all(each.pairs < 2 for each in rows):
                continue
            over = "at each keep ratio" if by_ratio else "mean over the keep ratios"
            tables.append(
                Table(
                    f"comparisons_by_{unit}{'_and_ratio' if by_ratio else ''}",
                    f"Comparisons {name}, {over}",
                    f"{how} {_HOLM}",
                    _comparisons_shown(rows, "seeds" if unit == "seeds" else "images"),
                    _comparisons_raw(rows),
                )
            )
    return tables


def _comparisons_shown(rows: list[Comparison], pairs: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "setting": each.where[0],
            "keep ratio": each.where[1],
            "A": each.a,
            "B": each.b,
            pairs: str(each.pairs),
            "A minus B": with_interval(each.difference, each.low, each.high),
            "p": number(each.p_value, 2),
            "shown": each.verdict,
        }
        for each in rows
    )


def _comparisons_raw(rows: list[Comparison]) -> pd.DataFrame:
    return pd.DataFrame(
        {**vars(each), "where": each.where[0], "keep": each.where[1], "verdict": each.verdict}
        for each in rows
    ).rename(columns={"where": "setting"})


def finding_tables(made: Sequence[Table]) -> list[Table]:
    """Return who is above and below whom, a line a method and a column a setting.

    Args:
        made: The tables of comparisons over all keep ratios; the first one is read: by seed where
            there are several seeds, by example otherwise.
    """
    whole = [table for table in made if not table.name.endswith("ratio")]
    if not whole:
        return []
    raw = whole[0].raw
    tables = []
    for other, group in raw.groupby("b", sort=False):
        name = "no reduction" if other == "Identity" else str(other)
        cells = group.assign(shown=[_finding(*row) for row in group[_ENDS].to_numpy()])
        wide = cells.pivot_table("shown", "a", "setting", aggfunc="first", sort=False)
        wide = wide[sorted(wide, key=lambda setting: not str(setting).startswith("all "))]
        order = cells[cells["setting"] == wide.columns[0]].set_index("a")["difference"]
        wide = wide.loc[sorted(wide.index, key=lambda a: -order.get(a, -float("inf")))]
        names = [str(setting) for setting in wide.columns]
        short = [setting.split(",")[0] for setting in names]
        wide.columns = pd.Index(short if len(set(short)) == len(names) else names)
        tables.append(
            Table(
                re.sub(r"[^\w-]+", "_", f"findings_against_{other}"),
                f"Score minus that of {name}",
                f"Mean over the keep ratios that both have. {whole[0].caption} Without a word "
                "no difference was shown, which does not mean equal: these runs cannot tell.",
                wide.fillna(MISSING).reset_index(names="method"),
                group,
            )
        )
    return tables


_ENDS = ["difference", "low", "high"]


def _finding(difference: float, low: float | None, high: float | None) -> str:
    word = " better" if low is not None and low > 0 else ""
    word = " worse" if high is not None and high < 0 else word
    return f"{difference:+.3f}{word}"


def area_table(found: Study) -> Table | None:
    """Return the area under each score-GFLOPs curve, over the range that three quarters span."""
    shown, raw = [], []
    for setting in found.settings:
        (low, high), by_label, unit = areas(found, setting)
        for label, area in sorted(by_label.items(), key=lambda item: -item[1].value):
            span = f"{low:.3g} to {high:.3g}"
            value = with_interval(area.value, area.low, area.high, 4)
            shown.append(
                {"setting": setting, "method": label, "GFLOPs": span, "mean score": value,
                 "interval over": unit}
            )  # fmt: skip
            raw.append(
                {"setting": setting, "label": label, "from": low, "to": high, "over": unit,
                 **vars(area)}
            )  # fmt: skip
    if not shown:
        return None
    return Table(
        "areas",
        "Area under the score-GFLOPs curve",
        "Mean height of the curve over the GFLOPs that three quarters of the methods span (the "
        "others have no area and are not listed), through every keep ratio "
        "and no reduction, with Student's 95% interval: over the seeds, one curve each; with one "
        "seed over the test examples of that one model. Nothing is extrapolated.",
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
        "Score as a share of the same seed's score without reduction; the interquartile mean "
        "leaves out the lowest and highest quarter of all runs. Above X: how often a run scores "
        "above one of X, averaged over the settings; no interval where no run was ever out of "
        "order.",
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
        "latency_share": "inference time, share",
    }  # fmt: skip
    shown = cells[list(columns)].copy()
    for name in list(columns)[1:]:
        shown[name] = shown[name].map(number)
    return Table(
        "costs",
        f"Cost at keep ratio {subject.reference:g}",
        f"{subject.study.settings[0]}. One multiply-add = 1, for one example; inference time as "
        "a share of no reduction's, timed in turn with it in the same run.",
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
    compared = comparison_tables(found, against)
    every = [
        *finding_tables(compared),
        *scores(found),
        over_tasks_table(subject, against),
        *compared,
        area_table(found),
        cost_table(subject),
        missing_table(found),
        failure_table(subject),
        literature_table(subject.published),
    ]
    return [_with_plain_names(table) for table in every if table is not None]


def _with_plain_names(table: Table) -> Table:
    """Return the table with the words for ``Identity`` that figures have."""
    shown = table.shown.replace(r"\bIdentity\b", "no reduction", regex=True)
    columns = {"above Identity": "above no reduction"}
    return replace(table, shown=shown.rename(columns=columns))
