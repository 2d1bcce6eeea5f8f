"""The report: one HTML page, and every figure and table of it as files."""

from __future__ import annotations

import base64
import html
import re
from collections import Counter
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
    NO_REDUCTION,
    RANDOM,
    TESTED,
    TRAINED,
    TUNED,
    USED,
    Setting,
    Study,
    load,
    study,
)
from analysis.statistics import aggregate, over_tasks
from analysis.tables import Ranking, method_names, rank, tables
from analysis.tokenmaps import gallery, load_tokens, save_png
from elip.record import GFLOPS_UNIT

REPORT_NAME = "report.html"

_HELD = 0.99
"""The findings name methods that keep this share of the score without reduction."""

_MAPS = 4


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
    against = list(dict.fromkeys([*BASELINES, *_labels(known, against)]))
    highlight = _labels(known, highlight)
    for name in ("figures", "tables"):
        (out / name).mkdir(parents=True, exist_ok=True)
        for path in (out / name).iterdir() if (out / REPORT_NAME).exists() else ():
            if path.suffix in (".csv", ".md", ".tex", ".pdf", ".svg", ".png"):
                path.unlink()
    rankings = [rank(known, group, against) for group in bar(list(known.groups), "Comparing")]
    made = list(tables(known, rankings, against))
    for table in bar(made, "Tables"):
        table.write(out / "tables")
    with style():
        pictures = [
            (plot, _write_figure(plot, out / "figures", width))
            for plot in bar(plots(known, highlight), "Figures")
        ]
    maps, damaged = _token_maps(folders, out / "figures")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        summary=_summary(known),
        findings=[
            (_heading(known.groups[one.group]), findings(known, one, against)) for one in rankings
        ],
        pictures=pictures,
        tables=made,
        maps=maps,
        damaged=damaged,
        provenance=_provenance(known),
        gflops_unit=GFLOPS_UNIT,
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


def _heading(settings: Sequence[Setting]) -> str:
    first = settings[0]
    return _upper(first.name) if len(settings) == 1 else f"{len(settings)} tasks, {first.group}"


def _summary(known: Study) -> str:
    counts = Counter(known.runs["status"])
    said = [f"{counts.pop(USED, 0)} used"]
    if tested := counts.pop(TESTED, 0):
        said.append(f"{tested} trainings {TESTED}")
    said += [f"{count} {status}" for status, count in counts.most_common()]
    number = len(known.runs)
    return f"{number} run{'s' * (number != 1)}: {', '.join(said)}."


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


def _token_maps(places: Sequence[Path], folder: Path) -> tuple[list[str], list[str]]:
    """Draw the token maps of a few images; return them in base64, and messages on damaged files."""
    damaged: list[str] = []
    maps = load_tokens([place for place in places if place.is_dir()], damaged)
    pictures = []
    for image in range(min(_MAPS, len({each.key for each in maps}))):
        path = save_png(gallery(maps, 1, 7, first=image), folder / f"token_maps_{image + 1}.png")
        pictures.append(base64.b64encode(path.read_bytes()).decode("ascii"))
    return pictures, damaged


def findings(
    known: Study, ranking: Ranking, against: Sequence[str] = BASELINES
) -> list[tuple[str, str]]:
    """Say what a group of settings shows and what it does not, as topics and statements."""
    settings = known.groups[ranking.group]
    rows = known.scores[known.scores["group"] == ranking.group]
    said = [("What was compared", _compared(settings, rows)), _held(settings, rows)]
    for other in dict.fromkeys((RANDOM, NO_REDUCTION, *against)):
        found = {unit: ranking.of(unit, other) for unit in ranking.found}
        texts = {unit: _verdicts(each) for unit, each in found.items() if len(each)}
        if texts:
            if len(texts) == 2 and len(set(texts.values())) == 1:
                text = f"By seed and by example: {texts['seeds']}"
            else:
                text = " ".join(f"By {unit[:-1]}: {text}" for unit, text in texts.items())
            name = other.lower() if other == NO_REDUCTION else other
            said.append((f"Compared with {name}, mean over the keep ratios", text))
    said.append(("What these runs do not show", _not_shown(ranking, rows)))
    return [(about, text) for about, text in said if text]


def _compared(settings: Sequence[Setting], rows: pd.DataFrame) -> str:
    group = settings[0].group
    reduced = rows[rows["acts"] != "never"]
    count = reduced["label"].nunique()
    keeps = sorted(reduced.loc[reduced["acts"] != "image", "keep"].unique())
    how = (
        "each added for scoring to a model that was trained without reduction"
        if "off the shelf" in group
        else "each active while its own model was trained, from random weights on"
        if TRAINED in group
        else "each active while a model that was trained without reduction was trained further"
        if TUNED in group
        else ""
    )
    tasks = []
    for each in settings:
        images = f" about {each.images:,} images" if each.images else ""
        tasks.append(f"{each.task} ({each.metric}; {each.examples:,} test examples{images})")
    data = _joined(sorted({f"{each.dataset}, {each.split} split" for each in settings}))
    most = max(each.seeds for each in settings)
    seeds = f"Up to {most} seeds per method" if most > 1 else "One seed"
    ratios = f", at keep ratios {_joined([f'{keep:g}' for keep in keeps])}" if keeps else ""
    return (
        f"{count} method{'s' * (count != 1)}{ratios}{', ' * bool(how)}{how}. Tasks: "
        f"{_joined(tasks)}, on {data}. {seeds}."
    )


def _held(settings: Sequence[Setting], rows: pd.DataFrame) -> tuple[str, str]:
    """Say at which lowest cost each method holds the score."""
    many = len(settings) > 1
    cells = over_tasks(rows) if many else aggregate(rows)
    cells = cells.dropna(subset=["gflops_total"]).sort_values("gflops_total")
    cells["name"] = method_names(cells)
    whole = cells[cells["acts"] == "never"]
    reduced = cells[cells["acts"] != "never"]
    if whole.empty or reduced.empty:
        return "", ""
    base = float(whole["gflops_total"].iloc[0])
    mean = f"in the mean over the {len(settings)} tasks " if many else ""
    about = f"Within 1% of no reduction, which costs {base:.3g} GFLOPs per example"
    held = reduced[(reduced["share"] >= _HELD) & (reduced["gflops_total"] < base)]
    if held.empty:
        best = reduced.sort_values("share").iloc[-1]
        return about, (
            f"No method that saves GFLOPs, {mean}at any tested keep ratio. The closest is "
            f"{best['name']}, with {best['share']:.1%} of the score at "
            f"{best['gflops_total']:.3g} GFLOPs."
        )
    held = held.drop_duplicates("label")
    costs = held[["name", "gflops_total"]].itertuples(index=False)
    said = [f"{name} at {cost:.3g} ({1 - cost / base:.0%} less)" for name, cost in costs]
    text = (
        f"The cheapest measured points that {mean}keep at least 99% of the score, in GFLOPs: "
        f"{_joined(said)}."
    )
    if RANDOM in set(held["label"]):
        text += (
            " Random is among them, so on this data the methods that need as many GFLOPs or more "
            "hold the score no better than chance choice."
        )
    others = sorted(set(reduced["label"]) - set(held["label"]))
    text += f" At no tested keep ratio: {_joined(others)}." if others else ""
    return about, f"{text} These are means, not tests; the comparisons below are tests."


def _verdicts(found: pd.DataFrame) -> str:
    """List the methods by verdict."""
    words = {
        "better": "better: {}",
        "worse": "worse: {}",
        "not shown": "no difference shown: {}",
        "too few pairs": "too few pairs: {}",
    }
    by = found.groupby("verdict")["a"].agg(sorted)
    said = [words[verdict].format(_joined(by[verdict])) for verdict in words if verdict in by]
    if len(by) == 1 and len(found) > 1:
        said = [words[by.index[0]].format(f"all {len(found)} methods")]
    return f"{'; '.join(said)}."


def _not_shown(ranking: Ranking, rows: pd.DataFrame) -> str:
    said = []
    if "seeds" not in ranking.found:
        said.append("How the methods would compare after retraining: there is one seed.")
    if "examples" not in ranking.found:
        said.append("How the methods differ on single examples: they share none.")
    missing = [name for name in BASELINES if name not in set(rows["label"])]
    if missing:
        said.append(f"Any comparison with {_joined(missing)}, which was not run.")
    fused = sorted(set(rows.loc[rows["acts"] == "fusion", "label"]))
    if fused:
        said.append(
            f"{_joined(fused)} at the keep ratios of the others: it acts in the fusion, where the "
            "keep ratio is a different quantity. Compare by GFLOPs."
        )
    return " ".join(said)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _joined(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), *names[-1:]]) if len(names) > 1 else "".join(names)


def _provenance(known: Study) -> dict[str, str]:
    """Return code, packages, machines and times of the runs."""
    records = list(known.runs["record"].dropna())
    if not records:
        return {}
    packages = [
        " ".join(f"{name} {version}" for name, version in sorted(record.packages.items()))
        for record in records
    ]
    return {
        "grids": _counted(record.grid or "none" for record in records),
        "code (commits)": _counted(record.commit or "unknown" for record in records),
        "uncommitted changes": f"{sum(r.dirty is True for r in records)} of {len(records)} runs",
        "time": f"{min(r.started for r in records)} to {max(r.ended for r in records)}",
        "processors": _counted(record.cpu or "unknown" for record in records),
        "GPUs": _counted("+".join(record.gpus) or "none" for record in records),
        "weights from": _counted(
            re.sub(r"\brun [0-9a-f]{8}\b", "a run", record.weights) for record in records
        ),
        "packages": _counted(packages),
        "notes of the runs": _counted(note for record in records for note in record.notes),
    }


def _counted(values: Iterable[str], most: int = 6) -> str:
    counts = Counter(values)
    said = [f"{value} ({count} runs)" for value, count in counts.most_common(most)]
    more = [f"and {len(counts) - most} more"] if len(counts) > most else []
    return "; ".join(said + more) or "none"
