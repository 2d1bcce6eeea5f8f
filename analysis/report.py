"""The report: one HTML page, and every figure and table of it as files."""

from __future__ import annotations

import base64
import html
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup
from rich.console import Console
from rich.progress import track

from analysis.figures import INK, TWO_COLUMN, Plot, plots, style
from analysis.load import (
    BASELINES,
    CELL,
    NO_REDUCTION,
    RANDOM,
    SHELF,
    SMALLER,
    TRAINED,
    TUNED,
    Setting,
    Study,
    load,
    study,
)
from analysis.statistics import Unit, aggregate, over_tasks
from analysis.tables import Ranking, method_names, number, rank, summary, tables
from analysis.tokenmaps import gallery, load_tokens, save_png

REPORT_NAME = "report.html"

_HELD = 0.99
"""The findings name methods that keep this share of the score without reduction."""

_LEARNED = 0.1
"""A model that closes less of the gap between guessing and 1 is said to have learned little."""

_MAPS, _MOST = 4, 6
"""The page shows this many token maps, and different values of one fact about the runs."""
_HOW: dict[Unit, str] = {
    "seeds": "by seed (what retraining would show)",
    "examples": "by example (what other test examples would show)",
}


def write_report(
    places: Iterable[Path | str],
    out: Path | str,
    title: str = "Token reduction: report",
    against: Sequence[str] = (),
    highlight: Sequence[str] = (),
    width: float = TWO_COLUMN,
) -> Path:
    """Read runs and write the report.

    Args:
        places: Folders of runs, searched at any depth, and tables.
        out: Folder of the report. Figures and tables of an earlier report are removed.
        title: Heading of the page.
        against: Methods to compare all others with, in addition to no reduction and Random.
        highlight: Name these methods, the baselines and the Pareto front only; the rest is grey.
        width: Width of the figures in inches.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: A place does not exist or contains no run.
        ValueError: A method is not among the runs; the message lists them.
    """
    console = Console(stderr=True)
    bar = partial(track, console=console, transient=True, disable=not console.is_terminal)
    folders, out = [Path(place) for place in places], Path(out)
    known = study(load(folders))
    against = _labels(known, against)
    highlight = _labels(known, highlight)
    for name in ("figures", "tables"):
        (out / name).mkdir(parents=True, exist_ok=True)
        for path in (out / name).iterdir() if (out / REPORT_NAME).exists() else ():
            if path.suffix in (".csv", ".md", ".tex", ".pdf", ".svg", ".png"):
                path.unlink()
    rankings = [rank(known, group, against) for group in bar(list(known.groups), "Comparing")]
    made = list(tables(known, rankings))
    for table in bar(made, "Tables"):
        table.write(out / "tables")
    with style():
        pictures = [
            (plot, _write_figure(plot, out / "figures", width))
            for plot in bar(plots(known, highlight), "Figures")
        ]
    damaged: list[str] = []
    tokens = load_tokens([place for place in folders if place.is_dir()], damaged)
    maps = [
        save_png(
            gallery(tokens, 1, 7, first=image), out / "figures" / f"token_maps_{image + 1}.png"
        )
        for image in range(min(_MAPS, len({each.key for each in tokens})))
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        summary=summary(known),
        findings=[
            (_upper(known.title(one.group)), findings(known, one))
            for one in rankings
            if len({*one.acts, *one.against}) > 1
        ],
        scored=len(known.scores),
        pictures=pictures,
        tables=made,
        maps=[base64.b64encode(path.read_bytes()).decode("ascii") for path in maps],
        damaged=damaged,
        provenance=_provenance(known),
    )
    path = out / REPORT_NAME
    path.write_text(page, encoding="utf-8")
    return path


def _labels(known: Study, names: Sequence[str]) -> list[str]:
    """Return the methods that some names mean, including all variants in their options."""
    labels = list(dict.fromkeys(known.scores["label"]))
    found = []
    for name in names:
        name = NO_REDUCTION if name == "Identity" else name
        mine = [label for label in labels if name in (label, label.split(" (")[0])]
        if not mine and name not in BASELINES:
            raise ValueError(f"No scored run of {name!r}. There are: {', '.join(sorted(labels))}.")
        found += mine
    return found


def _write_figure(plot: Plot, folder: Path, width: float) -> Markup:
    """Write a figure as PDF and SVG; return the drawing for use inside the page.

    On the page, ids get a prefix to keep the drawings apart, and ink takes the colour of the text.
    """
    figure = plot.draw(width)
    base = folder / plot.name
    figure.savefig(base.with_suffix(".pdf"), metadata={"CreationDate": None})
    figure.savefig(base.with_suffix(".svg"), metadata={"Date": None})
    text = base.with_suffix(".svg").read_text(encoding="utf-8")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{plot.name}-", text).replace(
        INK, "currentColor"
    )
    head = f'<svg role="img" aria-label="{html.escape(plot.title, quote=True)}"'
    return Markup(text.replace("<svg", head, 1))


def findings(known: Study, ranking: Ranking) -> list[tuple[str, str]]:
    """Say what a group of settings shows and what it does not, as topics and statements."""
    settings = known.groups[ranking.group]
    rows = known.scores[known.scores["group"] == ranking.group]
    said = [("What was compared", _compared(settings, rows)), _held(settings, rows)]
    for other in sorted(ranking.against, key=lambda other: other != RANDOM):
        tables = {unit: ranking.of(unit, other) for unit in ranking.found}
        text = " ".join(_verdicts(found, _HOW[unit]) for unit, found in tables.items())
        if len(tables) == 2:
            both = {_verdicts(found, "by seed and by example") for found in tables.values()}
            text = both.pop() if len(both) == 1 else text
        name = other.replace(NO_REDUCTION, NO_REDUCTION.lower())
        said.append((f"Compared with {name}, mean over the keep ratios", text))
    said.append(("What these runs do not show", _not_shown(settings, ranking, rows)))
    return [(about, text) for about, text in said if text]


def _compared(settings: Sequence[Setting], rows: pd.DataFrame) -> str:
    own = rows[rows["acts"].isin(["encoder", "fusion"]) & (rows["label"] != RANDOM)]
    names = sorted(own["label"].unique())
    keeps = _joined([f"{keep:g}" for keep in sorted(own["keep"].unique())])
    at = f" at keep ratio{'s' * (' ' in keeps)} {keeps}" if keeps else ""
    others = [label for label in (NO_REDUCTION, RANDOM, SMALLER) if label in set(rows["label"])]
    baselines = f"Baselines: {_joined(others)}. " if others else ""
    group = settings[0].group
    how = (
        "The models were trained without reduction; the methods were added for scoring only. "
        if SHELF in group
        else "Each method was active while its own models were trained. "
        if TRAINED in group
        else "Models trained without reduction were trained further with each method active. "
        if TUNED in group
        else ""
    )
    whole = rows[rows["acts"] == "never"].groupby("setting")["score"].mean()
    tasks = []
    for each in settings:
        score = f" {whole[each.name]:.3f} without reduction" if each.name in whole else ""
        chance = "" if pd.isna(each.chance) else f", {each.chance:.3f} by guessing"
        images = f" about {each.images:,} images" if each.images else ""
        size = f"{each.examples:,} examples{images}"
        tasks.append(f" {_upper(each.task)}: {each.metric}{score}{chance}; {size}.")
    data = _joined(sorted({f"{each.dataset}, {each.split} split" for each in settings}))
    most = max(each.seeds for each in settings)
    seeds = f"{most} seeds per method" if most > 1 else "one seed"
    return (
        f"{len(names)} method{'s' * (len(names) != 1)}{at}; {seeds}. {baselines}{how}"
        f"Data: {data}.{''.join(tasks)}"
    )


def _held(settings: Sequence[Setting], rows: pd.DataFrame) -> tuple[str, str]:
    """Say at which lowest cost each method holds the score."""
    many = len(settings) > 1
    cells = over_tasks(rows) if many else aggregate(rows)
    cells = cells.dropna(subset=["gflops_total"]).sort_values("gflops_total")
    cells["name"] = method_names(cells)
    whole, reduced = cells[cells["acts"] == "never"], cells[cells["acts"] != "never"]
    if whole.empty or reduced.empty:
        return "", ""
    base = float(whole["gflops_total"].iloc[0])
    about = f"Within 1% of no reduction, which costs {number(base)} GFLOPs per example"
    mean = f"Mean over the {len(settings)} tasks. " if many else ""
    held = reduced[(reduced["share"] >= _HELD) & (reduced["gflops_total"] < base)]
    if held.empty:
        best = reduced.sort_values("share").iloc[-1]
        return about, (
            f"{mean}No method that saves GFLOPs, at any tested keep ratio. The closest is "
            f"{best['name']}, with {best['share']:.1%} of the score at "
            f"{number(best['gflops_total'])} GFLOPs."
        )
    held = held.drop_duplicates("label")
    said = [
        f"{name} at {number(cost)} ({1 - cost / base:.0%} less)"
        for name, cost in zip(held["name"], held["gflops_total"], strict=True)
    ]
    text = f"{mean}The cheapest point of each method with at least 99% of the score, in GFLOPs: "
    text += f"{_joined(said)}."
    if RANDOM in set(held["label"]):
        text += " Random is among them; methods that cost as much or more save no more than it."
    others = sorted(set(reduced["label"]) - set(held["label"]))
    text += f" At no tested keep ratio: {_joined(others)}." if others else ""
    return about, f"{text} These are measured means, not tests; the comparisons below are tests."


def _verdicts(found: pd.DataFrame, how: str) -> str:
    """List the methods by verdict."""
    said: list[str] = []
    by = found.groupby("verdict")["a"].agg(sorted)
    for verdict in ("better", "worse", "not shown", "too few pairs"):
        if verdict in by:
            head = "no difference is shown" if verdict == "not shown" else verdict
            every = len(by) == 1 and len(found) > 1
            names = f"all {len(found)} methods" if every else _joined(by[verdict])
            said.append(f"{_upper(head)}{'' if said else f' {how}'}: {names}.")
    return " ".join(said)


def _not_shown(settings: Sequence[Setting], ranking: Ranking, rows: pd.DataFrame) -> str:
    said = []
    for each in settings:
        whole = rows[(rows["setting"] == each.name) & (rows["acts"] == "never")]["score"].mean()
        if whole - each.chance < _LEARNED * (1 - each.chance):
            said.append(
                f"How the methods compare on a model that has learned {each.task}: this one scores "
                f"{whole:.3f} without reduction and {each.chance:.3f} by guessing."
            )
    if rows.groupby(CELL)["seed"].nunique().max() == 1:
        said.append("How the methods would compare after retraining: there is one seed.")
    if "examples" not in ranking.found and rows["label"].nunique() > 1:
        said.append("How the methods differ on single examples: they share none with scores.")
    missing = [name for name in BASELINES if name not in set(rows["label"])]
    if missing:
        said.append(f"Any comparison with {_joined(missing)}, which was not run.")
    random = [verdict for unit in ranking.found for verdict in ranking.of(unit, RANDOM)["verdict"]]
    if random and not {"better", "worse"} & set(random):
        said.append("That any method differs from dropping tokens at random.")
    fused = sorted(set(rows.loc[rows["acts"] == "fusion", "label"]))
    if fused:
        said.append(
            f"{_joined(fused)} at the keep ratios of the others: it drops tokens in the fusion, "
            "where the keep ratio is a different quantity. Compare by GFLOPs."
        )
    return " ".join(said)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _joined(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), *names[-1:]]) if len(names) > 1 else "".join(names)


def _provenance(known: Study) -> dict[str, str]:
    """Return code, packages, machines and times of the runs."""
    facts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in known.runs["record"].dropna():
        changed = " with uncommitted changes" if record.dirty else ""
        facts["grid"][record.grid or "none"] += 1
        facts["commit of the code"][f"{record.commit or 'unknown'}{changed}"] += 1
        facts["day"][record.started[:10]] += 1
        facts["processor"][record.cpu or "unknown"] += 1
        facts["GPUs"]["+".join(record.gpus) or "none"] += 1
        facts["weights from"][re.sub(r"\brun [0-9a-f]{8}\b", "a run", record.weights)] += 1
        facts["packages"][" ".join(f"{k} {v}" for k, v in sorted(record.packages.items()))] += 1
        facts["notes of the runs"].update(record.notes)
    said = {}
    for name, counts in facts.items():
        most = counts.most_common(_MOST)
        values = [f"{value} ({count} run{'s' * (count > 1)})" for value, count in most]
        more = [f"and {len(counts) - _MOST} more"] if len(counts) > _MOST else []
        said[name] = "; ".join(values + more) or "none"
    return said
