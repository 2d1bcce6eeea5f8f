"""The report: one HTML page, and every figure and table of it as files."""

from __future__ import annotations

import base64
import html
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from analysis.figures import INK, TWO_COLUMN, Plot, plots, style
from analysis.load import (
    BASELINES,
    NO_REDUCTION,
    RANDOM,
    TASKS,
    TESTED,
    USED,
    Runs,
    Setting,
    Study,
    load,
    study,
)
from analysis.statistics import Comparison, Unit, aggregate, over_tasks
from analysis.tables import Ranking, method_name, rank, tables
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
    folders, out = [Path(place) for place in places], Path(out)
    found = load(folders)
    known = study(found)
    against = list(dict.fromkeys([*BASELINES, *_labels(known, against)]))
    highlight = _labels(known, highlight)
    for name in ("figures", "tables"):
        (out / name).mkdir(parents=True, exist_ok=True)
        for path in (out / name).iterdir() if (out / REPORT_NAME).exists() else ():
            if path.suffix in (".csv", ".md", ".tex", ".pdf", ".svg", ".png"):
                path.unlink()
    rankings = [rank(known, group, against) for group in known.groups]
    made = tables(known, rankings, against)
    for table in made:
        table.write(out / "tables")
    with style():
        pictures = [
            (plot, _write_figure(plot, out / "figures", width)) for plot in plots(known, highlight)
        ]
    maps, damaged = _token_maps(folders, out / "figures")
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    page = environment.get_template("report.html.j2").render(
        title=title,
        summary=_summary(known),
        findings=[
            (_heading(known.groups[each.group]), findings(known, each, against[len(BASELINES) :]))
            for each in rankings
        ],
        pictures=pictures,
        tables=made,
        maps=maps,
        damaged=damaged,
        provenance=_provenance(found),
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
    tested = counts.pop(TESTED, 0)
    said += [f"{tested} trainings {TESTED}"] if tested else []
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
    text = re.sub(r'\bid="', f'id="{plot.name}-', text)
    text = text.replace("url(#", f"url(#{plot.name}-").replace('href="#', f'href="#{plot.name}-')
    text = text.replace(INK, "currentColor")
    head = f'<svg role="img" aria-label="{html.escape(plot.title, quote=True)}"'
    return Markup(text.replace("<svg", head, 1))


def _token_maps(places: Sequence[Path], folder: Path) -> tuple[list[str], list[str]]:
    """Draw the token maps of a few images; return them in base64, and messages on damaged files."""
    damaged: list[str] = []
    maps = load_tokens([place for place in places if place.is_dir()], damaged)
    pictures = []
    for image in range(min(_MAPS, len({each.key for each in maps}))):
        path = folder / f"token_maps_{image + 1}.png"
        save_png(gallery(maps, 1, 7, first=image), path)
        pictures.append(base64.b64encode(path.read_bytes()).decode("ascii"))
    return pictures, damaged


# Findings in plain words.


@dataclass(frozen=True)
class Finding:
    """One statement and its topic."""

    about: str
    text: str


_UNITS: dict[Unit, str] = {
    "seeds": "By seed (if models were retrained)",
    "examples": "By example (other test examples, same models)",
}


def findings(known: Study, ranking: Ranking, against: Sequence[str] = ()) -> list[Finding]:
    """Say what a group of settings shows, and what it does not."""
    settings = known.groups[ranking.group]
    rows = known.scores[known.scores["group"] == ranking.group]
    said = [_data(settings), _held(settings, rows)]
    for other in dict.fromkeys((RANDOM, NO_REDUCTION, *against)):
        texts = {unit: _verdicts(ranking.of(unit, other)) for unit in ranking.found}
        texts = {unit: text for unit, text in texts.items() if text}
        if len(texts) == 2 and len(set(texts.values())) == 1:
            text = f"By seed and by example: {next(iter(texts.values()))}."
        else:
            text = " ".join(f"{_UNITS[unit]}: {text}." for unit, text in texts.items())
        than = other.lower() if other == NO_REDUCTION else other
        said.append(Finding(f"Compared with {than}", text))
    said.append(_not_shown(ranking, rows))
    return [each for each in said if each.text]


def _data(settings: Sequence[Setting]) -> Finding:
    parts = []
    for each in settings:
        images = f" about {each.images:,} images" if each.images else ""
        parts.append(f"{each.task} ({each.metric}; {each.examples:,} examples{images})")
    data = _joined(list(dict.fromkeys(f"{each.dataset}, {each.split} split" for each in settings)))
    seeds = max(each.seeds for each in settings)
    models = f"{seeds} seeds per method" if seeds > 1 else "one seed"
    return Finding("Data", f"{_upper(_joined(parts))}, on {data}; {models}.")


def _held(settings: Sequence[Setting], rows: pd.DataFrame) -> Finding:
    """Say how far each method cuts the cost while it holds the score."""
    many = len(settings) > 1
    cells = over_tasks(rows) if many else aggregate(rows)
    cells = cells.dropna(subset=["gflops_total"])
    whole = cells[cells["label"] == NO_REDUCTION]
    reduced = cells[cells["label"] != NO_REDUCTION]
    if whole.empty or reduced.empty:
        return Finding("", "")
    base = float(whole["gflops_total"].iloc[0])
    held = reduced[(reduced["share"] >= _HELD) & (reduced["gflops_total"] < base)]
    mean = f"Mean over the {len(settings)} tasks: " if many else ""
    about = f"Within 1% of no reduction ({base:.3g} GFLOPs per example)"
    if held.empty:
        best = reduced.sort_values("share").iloc[-1]
        return Finding(
            about,
            f"{mean}no method at any keep ratio that saves GFLOPs. The closest is "
            f"{best['label']}, with {best['share']:.1%} of the score at "
            f"{best['gflops_total']:.3g} GFLOPs.",
        )
    cheapest = held.sort_values("gflops_total").drop_duplicates("label")
    said = [
        f"{method_name(label, acts)} down to {cost:.3g} ({cost / base - 1:.0%})"
        for label, acts, cost in cheapest[["label", "acts", "gflops_total"]].to_numpy()
    ]
    others = sorted(set(reduced["label"]) - set(held["label"]))
    never = f" At no tested keep ratio: {_joined(others)}." if others else ""
    return Finding(about, f"{mean}{_joined(said)}.{never}")


def _verdicts(found: dict[str, Comparison]) -> str:
    """List the methods by verdict; the largest group comes last, as "all others" if it is long."""
    words = {
        "better": "{} better",
        "worse": "{} worse",
        "not shown": "no difference is shown for {}",
        "too few pairs": "too few pairs for {}",
    }
    by: dict[str, list[str]] = {}
    for name, each in found.items():
        by.setdefault(each.verdict, []).append(name)
    most = max(by, key=lambda verdict: len(by[verdict]), default="")
    said = []
    for verdict in sorted(by, key=lambda each: (each == most, list(words).index(each))):
        names = sorted(by[verdict])
        if len(by) == 1 and len(names) > 1:
            listed = "any method" if verdict == "not shown" else "all methods"
        else:
            listed = "all others" if verdict == most and len(names) > 6 else _joined(names)
        verb = "is" if len(names) == 1 else "are"
        bare = verdict in ("better", "worse")
        said.append(words[verdict].format(f"{listed} {verb}" if bare else listed))
    return "; ".join(said)


def _not_shown(ranking: Ranking, rows: pd.DataFrame) -> Finding:
    said = []
    if "seeds" not in ranking.found:
        said.append("how the methods would compare after retraining (there is one seed)")
    if "examples" not in ranking.found:
        said.append("how these models differ on single examples (they share none)")
    missing = [name for name in BASELINES if name not in set(rows["label"])]
    if missing:
        said.append(f"any comparison with {_joined(missing)}, which was not run")
    fused = sorted(set(rows.loc[rows["acts"] == "fusion", "label"]))
    if fused:
        said.append(
            f"{_joined(fused)} at the keep ratios of the others (it acts in the fusion, where the "
            "keep ratio is a different quantity; compare by GFLOPs)"
        )
    return Finding("Not shown here", f"{_upper('; '.join(said))}." if said else "")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _provenance(found: Runs) -> dict[str, str]:
    """Return code, packages, machines and times of the runs."""
    records = [run.record for run in found.runs]
    if not records:
        return {}
    dirty = sum(bool(record.dirty) for record in records)
    return {
        "tasks": _counted(TASKS.get(record.task, record.task) for record in records),
        "grids": _counted(record.grid or "none" for record in records),
        "code (commits)": _counted(record.commit or "unknown" for record in records),
        "uncommitted changes": f"{dirty} of {len(records)} runs",
        "time": f"{min(r.started for r in records)} to {max(r.ended for r in records)}",
        "processors": _counted(record.cpu or "unknown" for record in records),
        "GPUs": _counted("+".join(record.gpus) or "none" for record in records),
        "weights from": _counted(
            re.sub(r"\brun [0-9a-f]{8}\b", "a run", record.weights) for record in records
        ),
        "packages": _counted(
            " ".join(f"{name} {version}" for name, version in sorted(record.packages.items()))
            for record in records
        ),
        "notes of the runs": _counted(note for record in records for note in record.notes),
    }


def _counted(values: Iterable[str], most: int = 6) -> str:
    counts = Counter(values)
    said = [f"{value} ({count} runs)" for value, count in counts.most_common(most)]
    more = [f"and {len(counts) - most} more"] if len(counts) > most else []
    return "; ".join(said + more) or "none"
